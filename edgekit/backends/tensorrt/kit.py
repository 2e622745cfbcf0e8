"""The build kit: all that a device needs to make its engines, check them and say so, without Python.

    engines/<name>/        the graph and what TensorRT has to know of its numbers
    engines.txt            one line an engine: its name and `ek_trt build`'s arguments, separated by tabs
    flow.txt               flow.json for ek_trt
    passport.txt           the device it is for
    golden/                a few clips with the float model's answers, see clips.py
    heldout.txt            digest of heldout.tar, which comes beside the bundle
    finish.sh, device.sh   builds, runs, compares, records; device/ has them
    ek_trt/                the source of the tool that does so

`export` writes the first two, since they follow from the graphs; `package` adds the rest, which
changes without any graph being made again.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekit import document
from edgekit.artifact import hash_file
from edgekit.backends import EngineKit, Kit
from edgekit.backends.tensorrt import form_of
from edgekit.backends.tensorrt.cache import CACHE_NAME, SAFE_NAME, check_cache, version_number, write_cache
from edgekit.bundle import HELDOUT
from edgekit.errors import EdgekitError, ResourceError
from edgekit.formats import read_json, write_json

DEVICE = Path(__file__).parent / "device"
TOOL = "ek_trt"


def compile(kit: Kit, out: Path) -> None:
    """Write engines/<name>/, engines.txt and build.json.

    Raises:
        EdgekitError: a name that a line of our text files cannot carry.
    """
    builds = {}
    lines = []
    for engine in kit.engines:
        _require_name(engine.name, f"engine name `{engine.name}` cannot stand in a shell script", "/.")
        folder = out / "engines" / engine.name
        folder.mkdir(parents=True, exist_ok=True)
        arguments = write_engine(engine, folder, kit.target)
        lines.append("\t".join([engine.name, *arguments]))
        digests = {f"engines/{engine.name}/{path.name}": _sha256(path) for path in sorted(folder.iterdir())}
        builds[engine.name] = {"arguments": arguments, "sha256": digests, "int8_layers": len(engine.int8) + len(engine.fused), "fp32_layers": len(engine.fp32)}
    (out / "engines.txt").write_text("\n".join(lines) + "\n", encoding="ascii", newline="\n")
    write_json(
        out / "build.json",
        {
            "backend": "tensorrt",
            "runtime": dict(kit.target["runtime"]),
            "build_on": kit.target["build_on"],
            "command": "sh finish.sh [--heldout FILE] [RESULT_FOLDER]",
            "engines": builds,
            "note": "a layer in INT8 may write INT8 or FP16, as the builder finds faster; the host simulates the latter",
        },
    )


def write_engine(engine: EngineKit, folder: Path, target: Mapping[str, Any]) -> list[str]:
    """Write one engine's files in the form that the target's TensorRT takes.

    Returns:
        `ek_trt build`'s arguments beside --onnx, --engine and the like; paths start at the kit's folder.

    Raises:
        TargetError: a Q/DQ graph that TensorRT would read otherwise than written.
    """
    form = form_of(target["runtime"]["version"])
    workspace = ["--workspace", str(target["device"].get("workspace_mib", 1024))]
    if form == "8.5":
        return [*_with_cache(engine, folder, target), *workspace]
    from edgekit import graph
    from edgekit.backends.tensorrt import forms

    model = forms.explicit(graph.load(engine.qdq_onnx), f"engine `{engine.name}`")
    if form == "11":
        graph.save(forms.strong(model, engine.fp32), folder / "model.onnx")
        return ["--strongly-typed", *workspace]
    graph.save(model, folder / "model.onnx")
    # INT8 stands in the graph; of the rest the builder may run anything in FP16 but these.
    wide = forms.keep_float32(model, engine.fp32) - {*engine.int8, *engine.fused}
    arguments = ["--fp16", *(["--int8"] if engine.int8 else []), *_precisions_file(engine, {node.name: "fp32" for node in model.graph if node.name in wide}, folder)]
    return [*arguments, *workspace]


def _with_cache(engine: EngineKit, folder: Path, target: Mapping[str, Any]) -> list[str]:
    """engines/<name>/{model.onnx, calibration.cache, precisions.json, precisions.txt, int8_tensors.txt}: the float graph, and its numbers beside it."""
    # Here and not at the top: it needs numpy, and a plan asks this package for `problems`.
    from edgekit.quant import Numbers, scale_of

    numbers = Numbers.from_target(target["numbers"])
    version = version_number(target["runtime"]["version"])
    shutil.copyfile(engine.float_onnx, folder / "model.onnx")
    precisions = _precisions(engine)
    scales = {name: scale_of(r, numbers).scale for name, r in engine.ranges.items()}
    text = write_cache(scales, version)
    check_cache(text, version, list(engine.ranges))
    (folder / CACHE_NAME).write_text(text, encoding="ascii", newline="\n")
    write_json(folder / "precisions.json", precisions)
    # A layer of ours loses INT8 if one of these has no scale: ek_trt refuses then.
    (folder / "int8_tensors.txt").write_text("".join(f"{name}\n" for name in scales), encoding="ascii", newline="\n")
    here = f"engines/{engine.name}"
    arguments = ["--fp16"]
    if engine.int8:
        arguments += ["--int8", "--cache", f"{here}/{CACHE_NAME}", "--int8-tensors", f"{here}/int8_tensors.txt"]
    return [*arguments, *_precisions_file(engine, precisions, folder)]


def _precisions_file(engine: EngineKit, precisions: Mapping[str, str], folder: Path) -> list[str]:
    """precisions.txt, for ek_trt, which reads no JSON; and its argument."""
    (folder / "precisions.txt").write_text("".join(f"{layer}\t{precision}\n" for layer, precision in precisions.items()), encoding="ascii", newline="\n")
    return ["--precisions", f"engines/{engine.name}/precisions.txt"] if precisions else []


def _precisions(engine: EngineKit) -> dict[str, str]:
    """{layer: precision}.

    Every layer that computes is named, rather than all: a default would also bind the parser's own
    layers, such as the inside of an LSTM's loop, and obeying fails where one has no such kernel.
    Without a precision of its own, a layer between two tensors with scales might run in INT8.
    """
    precisions = {**dict.fromkeys(engine.fp16, "fp16"), **dict.fromkeys(engine.fp32, "fp32"), **dict.fromkeys((*engine.int8, *engine.fused), "int8")}
    for name in precisions:
        _require_name(name, f"engine `{engine.name}`: layer name `{name}` cannot stand in a line of precisions.txt")
    return precisions


def _require_name(name: str, message: str, without: str = "") -> None:
    if not SAFE_NAME.fullmatch(name) or any(character in name for character in without):
        raise EdgekitError(message, "names are made of A-Z a-z 0-9 _ . / -" if not without else "names are made of A-Z a-z 0-9 _ -")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --------------------------------------------------------------------------- what package adds


def tools_digest() -> str:
    """Of all that `complete` copies into a kit."""
    digest = hashlib.sha256()
    for name, path in _device_files():
        digest.update(f"{name} {_sha256(path)}\n".encode())
    return digest.hexdigest()


def _device_files() -> Iterator[tuple[str, Path]]:
    """(path in the kit, file) of the scripts and of ek_trt's source."""
    for path in sorted(DEVICE.glob("*.sh")):
        yield path.name, path
    source = document.shipped(TOOL) or document.shipped(f"native/tools/{TOOL}")
    if source is None or not (source / "Makefile").is_file():
        raise ResourceError(f"{TOOL}: its source is in no place where edgekit looks for it", "install edgekit anew, or run it from a whole checkout")
    example = source.parent.parent / "examples/run_bundle.cpp"  # in a checkout; a wheel has it beside the tool
    for path in sorted([*source.iterdir(), *([example] if example.is_file() else [])], key=lambda path: path.name):
        if path.suffix in (".cpp", ".h") or path.name == "Makefile":
            yield f"{TOOL}/{path.name}", path


def complete(bundle: Path, name: str, target: Mapping[str, Any], reference: Path, verify: Path, parity: Mapping[str, Any]) -> None:
    """Add to a bundle what finish.sh needs beside the engines.

    Args:
        target: `Target.spec()`.
        reference, verify: those stages' directories.
        parity: the report's.
    """
    from safetensors.numpy import load_file

    from edgekit.backends.tensorrt import clips

    for file, source in _device_files():
        if file != "check.sh":  # of a bundle that has engines
            _copy(source, bundle / file)
    (bundle / "passport.txt").write_text("".join(f"{key}={value}\n" for key, value in passport(name, target).items()), encoding="utf-8", newline="\n")
    flow = read_json(bundle / "flow.json")
    (bundle / "flow.txt").write_text(flow_text(flow), encoding="ascii", newline="\n")
    put = _putter(bundle / "golden")
    golden = load_file(reference / "golden.safetensors")
    for clip in read_json(reference / "reference.json")["golden"]:
        if clip["derived_from"] is None:  # cut and stretched ones are there for preprocessing, which is not done here
            inputs = {tensor: golden[f"{clip['id']}/input/{tensor}"] for tensor in flow["inputs"]}
            clips.put_inputs(put, clip["id"], clips.encode(read_json(bundle / "preprocess.json"), inputs, golden.get(f"{clip['id']}/raw/audio")))
            clips.put_reference(put, clip["id"], {tensor: golden[f"{clip['id']}/output/{tensor}"] for tensor in flow["outputs"]})
    put("tolerance.txt", clips.tolerance({tensor: parity[tensor] for tensor in flow["outputs"]}, clips.GOLDEN_DB))
    heldout = verify / HELDOUT
    if heldout.is_file():
        (bundle / "heldout.txt").write_text(f"sha256={hash_file(heldout)}\nbytes={heldout.stat().st_size}\n", encoding="ascii", newline="\n")


def passport(name: str, target: Mapping[str, Any]) -> dict[str, str]:
    """What must be the same on the device: {name, target, sm, tensorrt, cuda}."""
    facts = target["device"]
    return {"name": name, "target": target["name"], "sm": str(facts["sm"]), "tensorrt": str(target["runtime"]["version"]), "cuda": str(facts["cuda"])}


def read_passport(text: str) -> dict[str, str]:
    """{key: value} of passport.txt, device.txt and the like."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def flow_text(flow: Mapping[str, Any]) -> str:
    """flow.json as ek_trt reads it: one statement a line, fields separated by tabs.

    Raises:
        EdgekitError: a name that such a line cannot hold, or a host step that ek_trt lacks.
    """
    from edgekit.flow import HOST  # needs numpy, which a plan must not load

    lines: list[tuple[Any, ...]] = [("input", name, ",".join(map(str, want["shape"]))) for name, want in sorted(flow["inputs"].items())]
    missing = [step["step"] for step in flow.get("host_steps", []) if step["step"] in HOST and step["step"] not in _HOST]
    if missing:
        raise EdgekitError(f"flow.json: the host step `{missing[0]}` is not in ek_trt", "this is a bug of edgekit; please report it")
    host = [_HOST[step["step"]](step) for step in flow.get("host_steps", []) if step["step"] in _HOST]
    # Only to be read in its order: ek_trt runs a host step as soon as what it reads is there, as run_flow does.
    lines += [line for line in host if line[0] == "stft"]
    for step in flow["steps"]:
        lines.append(("step", step["engine"]))
        for kind in ("feed", "each", "stack", "give"):
            lines += [(kind, port, tensor) for port, tensor in sorted(step.get(kind, {}).items())]
        lines += [("state", pair["in"], pair["out"], f"{pair['init']:.9g}") for pair in flow.get("states", {}).get(step["engine"], [])]
    lines += [line for line in host if line[0] != "stft"]
    lines += [("output", name) for name in flow["outputs"]]
    for line in lines:
        for field in line:
            if not SAFE_NAME.fullmatch(str(field).replace(",", "").replace("+", "") or "0"):
                raise EdgekitError(f"flow.json: `{field}` cannot stand in a line of flow.txt", "names are made of A-Z a-z 0-9 _ . / -")
    return "".join("\t".join(map(str, line)) + "\n" for line in lines)


def _sizes(step: Mapping[str, Any]) -> tuple[int, ...]:
    return step["win_length"], step["hop_length"], step["n_fft"], step.get("delay", 0), step.get("chunk", 0)


def _fields(*keys: str, numbers: tuple[str, ...] = ()) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    """A statement of ek_trt from a host step: its name, tensors by `keys`, numbers."""
    return lambda step: (step["step"], *(step[key] for key in keys), *(f"{step[key]:.9g}" for key in numbers))


_HOST: dict[str, Callable[[Mapping[str, Any]], tuple[Any, ...]]] = {
    "stft": lambda step: ("stft", step["from"], step["give"], *_sizes(step)),
    "masked_istft": lambda step: ("masked_istft", step["spectrum"], step["masks"], step["give"], *_sizes(step), step["mask"], step["samples"]),
    "match": _fields("speech", "noisy", "give"),
    "snr": _fields("speech", "noisy", "give", numbers=("low", "high")),
    "alpha": _fields("snr_db", "give", numbers=("at_knee", "knee_db", "full_db", "floor")),
    "blend": _fields("share", "of", "rest", "give"),
    "normalize": _fields("from", "give", numbers=("eps",)),
}


def _putter(folder: Path) -> Callable[[str, bytes], None]:
    def put(name: str, data: bytes) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    return put


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755 if source.suffix == ".sh" else 0o644)


def complete_measured(bundle: Path, result: Path) -> None:
    """Make of a kit what is flashed: the engines, the board's passport and check.sh in place of what built them."""
    for folder in sorted((result / "engines").iterdir()):
        for file in ("model.engine", "layers.json"):
            _copy(folder / file, bundle / "engines" / folder.name / file)
    for name in ("finish.sh", "engines.txt", "heldout.txt"):
        (bundle / name).unlink(missing_ok=True)
    _copy(DEVICE / "check.sh", bundle / "check.sh")
    made_for = read_passport((bundle / "passport.txt").read_text(encoding="utf-8"))
    found = read_passport((result / "device.txt").read_text(encoding="utf-8"))
    lines = {**made_for, **{key: found.get(key, "") for key in ("sm", "tensorrt", "cuda", "board", "l4t")}}
    (bundle / "passport.txt").write_text("".join(f"{key}={value}\n" for key, value in lines.items()), encoding="utf-8", newline="\n")

"""What finish.sh brings back from a device: checked file by file before a number of it is believed.

    result.txt            kit, name, digest of the held-out clips, when
    device.txt            the board's passport; version.json: what TensorRT and CUDA said themselves
    engines/<name>/       model.engine, layers.json (TensorRT's own word on every layer), build.json
    golden/, heldout/     outputs/<clip>/<tensor>.npy, run.json (latency, memory), compare.json
    SHA256SUMS            of all of it

A result is the word of whoever holds the device. The sums tell damage and mixed-up files, not lies.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.artifact import hash_file, tree
from edgekit.backends.tensorrt.kit import read_passport
from edgekit.bundle import Bundle
from edgekit.errors import DataError, EdgekitError, IntegrityError, TargetError, UsageError
from edgekit.formats import engines_of, read_json

if TYPE_CHECKING:
    import numpy as np

SUMS = "SHA256SUMS"
_SUM = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_MAX_BYTES = 16 << 30
PASSPORT = ("sm", "tensorrt", "cuda")


@dataclass(frozen=True)
class Device:
    """The board that a result comes from."""

    board: str
    passport: Mapping[str, str]

    @property
    def title(self) -> str:
        """Such as `Jetson-AGX, sm_72, TensorRT 8.5.2`."""
        return f"{self.board or 'unnamed board'}, sm_{self.passport['sm']}, TensorRT {self.passport['tensorrt']}"


def check(result: Path, bundle: Bundle) -> Device:
    """Refuse a result that is damaged, of another bundle or device, not complete, or not a number.

    Raises:
        UsageError: no result, or of another bundle, or without held-out clips.
        IntegrityError: files are missing, changed or not listed, or a number is NaN.
        TargetError: made on another device than the bundle is for.
    """
    from edgekit.backends.tensorrt import clips

    _check_sums(result)
    about = read_passport(_text(result / "result.txt"))
    kit = hash_file(bundle.path / SUMS)
    if about.get("kit") != kit:
        raise UsageError(f"{result}: the result of another kit ({about.get('kit', 'none')[:12]}) than {bundle.source} ({kit[:12]})", "give the bundle that finish.sh ran in, with `--bundle`")
    heldout = read_passport(_text(bundle.path / "heldout.txt")).get("sha256")
    if about.get("heldout") != heldout:
        raise UsageError(f"{result}: ran without the held-out clips of this bundle, so there is nothing to measure", "run finish.sh again with `--heldout FILE`; it keeps the engines")
    device = _device(result, bundle)
    flow = read_json(bundle.path / "flow.json")
    for engine in engines_of(flow):
        for name in ("model.engine", "layers.json", "build.json"):
            _require(result, f"engines/{engine}/{name}")
        layers(result / "engines" / engine)
    for kind in ("golden", "heldout"):
        run, compared = (_document(result, f"{kind}/{name}.json") for name in ("run", "compare"))
        numbers_of(run, f"{result}/{kind}/run.json")
        if compared.get("failed") != []:
            raise IntegrityError(f"{result}/{kind}/compare.json: {compared.get('failed')} failed, yet it was published", "run finish.sh again")
    _, golden = ids_of(bundle)
    ids = list((bundle.report.get("predictions") or {}).get("ids") or [])
    if not ids:
        raise IntegrityError(f"{bundle.source}/report.json: names no held-out clips")
    for kind, wanted in (("golden", golden), ("heldout", ids)):
        folder = result / kind / "outputs"
        expected = {f"{clips.folder_of(clip)}/{output}.npy" for clip in wanted for output in flow["outputs"]}
        found = set(tree(folder)) if folder.is_dir() else set()
        if missing := sorted(expected - found):
            raise IntegrityError(f"{folder}: {missing[0]} is missing, and {len(missing) - 1} more", "every clip has to be run")
        if extra := sorted(found - expected):
            raise IntegrityError(f"{folder}: {extra[0]!a} is of no clip of this bundle")
    for output in flow["outputs"]:
        outputs(result, "heldout", ids, output)
        outputs(result, "golden", golden, output)
    return device


def ids_of(bundle: Bundle) -> tuple[list[str], list[str]]:
    """(all golden clips, those that the device runs: as they were recorded)."""
    described = read_json(bundle.path / "golden.json")["clips"]
    return [clip["id"] for clip in described], [clip["id"] for clip in described if clip.get("derived_from") is None]


def device_of(result: Path) -> Device:
    passport = read_passport(_text(result / "device.txt"))
    return Device(passport.get("board", ""), {**passport, **{key: passport.get(key, "") for key in PASSPORT}})


def outputs(result: Path, kind: str, ids: Iterable[str], output: str) -> np.ndarray:
    """float32 [clips, ...] of one output, `kind` being golden or heldout.

    Raises:
        IntegrityError: NaN or infinity, no .npy, or shapes that differ from clip to clip.
    """
    import numpy as np

    from edgekit.backends.tensorrt import clips

    rows: list[np.ndarray] = []
    for clip in ids:
        path = result / kind / "outputs" / clips.folder_of(clip) / f"{output}.npy"
        try:
            value = clips.read_npy(path, None if not rows else rows[0].shape)
        except EdgekitError as error:
            raise IntegrityError(error.message, "run finish.sh again") from error
        if not np.isfinite(value).all():
            raise IntegrityError(f"{path}: NaN or infinity: the engine's answer is no number", "keep the layer that overflows in float32, see `quantize.skip` and docs/tensorrt.md")
        rows.append(value)
    return np.stack(rows)


def numbers_of(run: Mapping[str, Any], where: str) -> dict[str, float]:
    """{latency_ms, latency_p50_ms, device_memory_mib, load_ms} of a run.json; latency_ms is the 99th percentile of a window.

    Raises:
        IntegrityError: one is no positive number.
    """
    latency = run.get("latency_ms") or {}
    memory = run.get("device_memory_bytes")
    found = {"latency_ms": latency.get("p99"), "latency_p50_ms": latency.get("p50"), "load_ms": run.get("load_ms")}
    for name, value in found.items():
        if not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise IntegrityError(f"{where}: {name} is {value!r}, expected a positive number")
    # Null where other processes gave memory back meanwhile: not measured, so that a gate on it cannot pass.
    if memory is not None and (not isinstance(memory, int | float) or not 0 <= memory < float("inf")):
        raise IntegrityError(f"{where}: device_memory_bytes is {memory!r}, expected a positive number or null")
    return {**found, "device_memory_mib": None if memory is None else memory / 2**20}


def summary(result: Path) -> dict[str, Any]:
    """What of a device enters the report: passport, latency, memory, how the engines were built."""
    golden = read_json(result / "golden/run.json")
    engines = {}
    for folder in sorted((result / "engines").iterdir()):
        built, timed = read_json(folder / "build.json"), golden.get("engines")
        ran = timed.get(folder.name) if isinstance(timed, dict) else None
        engines[folder.name] = {**(ran if isinstance(ran, dict) else {}), "engine_bytes": (folder / "model.engine").stat().st_size, "build_seconds": built.get("build_seconds") if isinstance(built, dict) else None}
    device = device_of(result)
    return {
        "board": device.board,
        "passport": dict(device.passport),
        **numbers_of(golden, "golden/run.json"),
        "windows_timed": (golden.get("latency_ms") or {}).get("n"),
        "power_mode": golden.get("power_mode"),
        "clocks_khz": golden.get("clocks_khz"),
        "engines": engines,
        "result_sha256": hash_file(result / SUMS),
    }


# --------------------------------------------------------------------------- layers


def layers(folder: Path) -> dict[str, str]:
    """{node of ours: int8, fp16 or fp32} out of TensorRT's layers.json.

    A layer of the engine names the nodes that it came of: in its name, joined by ` + `, up to 8.5, and
    in `Metadata` as `[ONNX Layer: node]` after that. Its precision is that of its weights if it has
    any, else of its first input. What Myelin swallowed (`{ForeignNode[a...b]}`) names only the ends
    of a range, so nothing is said of it.

    Raises:
        IntegrityError: not what TensorRT's inspector writes in detail.
    """
    document = read_json(folder / "layers.json")
    listed = document.get("Layers") if isinstance(document, dict) else None
    if not isinstance(listed, list) or not listed:
        raise IntegrityError(f"{folder}/layers.json: `Layers` is not a list of layers")
    if not all(isinstance(layer, dict) for layer in listed):
        raise IntegrityError(f"{folder}/layers.json: names of layers only", "the engine was built without detailed profiling")
    found: dict[str, str] = {}
    for layer in sorted(listed, key=_has_weights):  # the layer that has a node's weights has the last word on it
        precision = _precision(layer)
        # A copy into another layout is named after the layer that it is for.
        if precision is not None and layer.get("LayerType") not in ("Reformat", "NoOp"):
            for node in _nodes(layer):
                found[node] = precision
    return found


def _has_weights(layer: Mapping[str, Any]) -> bool:
    weights = layer.get("Weights")
    return isinstance(weights, dict) and isinstance(weights.get("Count"), int) and weights["Count"] > 0


def _nodes(layer: Mapping[str, Any]) -> list[str]:
    metadata = str(layer.get("Metadata") or "")
    named = re.findall(r"\[ONNX Layer: ([^\]\x1e]+)\]", metadata)
    if named:
        return named
    name = str(layer.get("Name") or "")
    if "ForeignNode[" in name:
        return []
    return [part.strip() for part in re.split(r" \+ | \|\| ", name) if part.strip()]


def _precision(layer: Mapping[str, Any]) -> str | None:
    if _has_weights(layer):
        return _type(str(layer["Weights"].get("Type")))
    inputs = layer.get("Inputs")
    if not isinstance(inputs, list) or not inputs or not isinstance(inputs[0], dict):
        return None
    return _type(str(inputs[0].get("Format/Datatype") or inputs[0].get("Datatype") or ""))


def _type(text: str) -> str | None:
    lowered = text.lower()
    for words, name in ((("int8",), "int8"), (("half", "fp16", "float16"), "fp16"), (("float", "fp32"), "fp32")):
        if any(word in lowered for word in words):
            return name
    return None


# --------------------------------------------------------------------------- checks


def _check_sums(result: Path) -> None:
    if not (result / SUMS).is_file() or not (result / "result.txt").is_file():
        hint = "finish.sh did not come to its end: run it again, it goes on where it stopped" if (result / "done").is_dir() else "give the folder that finish.sh made, `result`"
        raise UsageError(f"{result}: no finished result of a device", hint)
    listed = {}
    for number, line in enumerate(_text(result / SUMS).splitlines(), start=1):
        match = _SUM.fullmatch(line)
        if match is None:
            raise IntegrityError(f"{result}/{SUMS}:{number}: not a line of sha256sum")
        listed[match[2]] = match[1]
    found = [name for name in tree(result) if name != SUMS]  # refuses links
    if sum((result / name).stat().st_size for name in found) > _MAX_BYTES:
        raise IntegrityError(f"{result}: larger than {_MAX_BYTES >> 30} GiB")
    faults = [f"{name!a} is missing" for name in sorted(set(listed) - set(found))]
    faults += [f"{name!a} is not in {SUMS}" for name in sorted(set(found) - set(listed))]
    faults += [f"{name!a} does not match its sha256" for name in found if name in listed and hash_file(result / name) != listed[name]]
    if faults:
        more = f"; and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise IntegrityError(f"{result}: {'; '.join(faults[:4])}{more}", "copy it from the device again")


def _device(result: Path, bundle: Bundle) -> Device:
    device = device_of(result)
    wanted = read_passport(_text(bundle.path / "passport.txt"))
    version = _document(result, "version.json")
    said = {"sm": str(version.get("sm")), "tensorrt": str(version.get("tensorrt")), "cuda": str(version.get("cuda_runtime"))}
    for key in PASSPORT:
        for who, value in (("device.txt", device.passport[key]), ("version.json", said[key])):
            if value != wanted.get(key):
                raise TargetError(f"{result}/{who}: {key} is {value or 'none'}, the bundle is for {wanted.get(key)}", "engines run on the device that built them, and on its like")
    return device


def _document(result: Path, name: str) -> dict[str, Any]:
    _require(result, name)
    try:
        document = json.loads((result / name).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{result}/{name}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise IntegrityError(f"{result}/{name}: not a JSON object")
    return document


def _require(result: Path, name: str) -> None:
    if not (result / name).is_file() or not (result / name).stat().st_size:
        raise IntegrityError(f"{result}: {name} is missing or empty", "run finish.sh again")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error

"""package: judge the gates and put together what is delivered.

Runs no model and imports no torch, so that a changed gate takes seconds. A gate that is missed
or cannot be decided leaves the report and nothing that could be flashed.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import edgekit
from edgekit import backends
from edgekit import report as html
from edgekit.artifact import FolderSource, Source, directory_digest, tool_version, tree
from edgekit.bundle import MANIFEST, file_table, sealed
from edgekit.datasets import open_dataset
from edgekit.errors import RecipeError
from edgekit.formats import read_json, write_json
from edgekit.recipe import DEVICE_GATES, SLICE
from edgekit.stages import Job
from edgekit.stages.verify import OUTPUTS

if TYPE_CHECKING:
    from edgekit.recipe import Recipe
    from edgekit.target import Target

NEEDS = ("export", "verify", "reference", "prune")
SEMANTICS = 3  # 3: report.html draws speech. 2: README.txt tells host steps, results and every file
TOOLS = ("safetensors",)

BUILT_WITH = ("torch", "onnxsim", "transformers", "onnx", "onnx_ir", "onnxruntime", "torch-pruning", "numpy", "safetensors")
NOT_STATED = "not stated"

Row = dict[str, Any]


def plan(recipe: Recipe, target: Target) -> tuple[dict[str, Any], dict[str, Source]]:
    spec = {
        "name": recipe.name,
        "gates": recipe.section("gates") or {},
        # As edgekit understood it, overrides included; comments and spelling change no bundle. Gates stand above.
        "recipe": recipe.model_dump(mode="json", exclude_none=True, exclude={"gates"}),
        "target": {"name": target.name, "description": target.description, "build_on": target.build_on, "runtime": target.runtime.model_dump(mode="json"), "spec": target.spec()},
        "versions": {"edgekit": edgekit.__version__, **{tool: v for tool in BUILT_WITH if (v := tool_version(tool)) is not None}},
    }
    waiting = [gate for gate in recipe.gates if gate in DEVICE_GATES]
    backend = backends.get(target.backend)
    if hasattr(backend, "finisher"):
        spec["finisher"] = backend.finisher(target.spec())
    elif waiting:
        raise RecipeError(f"{recipe.where(f'gates.{waiting[0]}')}: `{waiting[0]}` is measured on a device, which {target.name} brings nothing back from", "drop the gate, or measure with `edgekit bench`")
    data = open_dataset(recipe.calibrate.data, "calibration", recipe.calibrate.clips, recipe.dir, recipe.cache_root)
    files: dict[str, Source] = {"calibration": cast(Source, data)}
    if recipe.device_result is not None:
        files["result"] = FolderSource(recipe.device_result)
    return spec, files


def run(job: Job) -> None:
    from safetensors.numpy import load_file

    # Imported here: it needs numpy, and a plan must not.
    from edgekit import preprocess as definition

    spec, bundle = job.spec, job.out / "bundle"
    measured = read_json(job.inputs["verify"] / "report.json")
    reference = read_json(job.inputs["reference"] / "reference.json")
    model = read_json(job.inputs["prune"] / "model.json")
    gates = judge(spec["gates"], measured)
    stages = {name: directory_digest(path) for name, path in sorted(job.inputs.items())}
    calibration = {"name": spec["recipe"]["calibrate"]["data"], "split": "calibration", "clips": spec["recipe"]["calibrate"].get("clips"), "sha256": job.files["calibration"].digest()}
    provenance = model.get("provenance", {})
    understood = {**spec["recipe"], "gates": spec["gates"]}
    recipe = _yaml(understood)
    report = {
        **measured,
        "name": spec["name"],
        "target": spec["target"],
        "verdict": verdict_of(gates, measured["measured_on"]),
        "gates": gates,
        "provenance": {
            "checkpoint": _digests(provenance.get("checkpoint_sha256", NOT_STATED)),
            "calibration_data": f"{calibration['name']}, {calibration['clips']} clips, sha256 {calibration['sha256']}",
            "versions": spec["versions"],
            "stages": stages,
            "recipe": recipe,
        },
    }
    bundle.mkdir()
    golden_path = job.inputs["reference"] / "golden.safetensors"
    write_json(bundle / "report.json", report)
    audio = read_json(job.inputs["export"] / "preprocess.json").get("audio", {})
    sound = html.sound(job.inputs["reference"], job.inputs["verify"] / OUTPUTS, audio.get("sample_rate_hz", 0))
    (bundle / "report.html").write_text(html.render(report, html.samples(load_file(golden_path), reference["golden"]), sound), encoding="utf-8")
    if report["verdict"] not in ("pass", "pending-device"):
        return

    for name in tree(job.inputs["export"]):
        if name.split("/")[0] == "float" or name == "target.json":
            continue  # verify's yardstick, nothing to flash; the target stands in the manifest
        _place(job.inputs["export"] / name, bundle / name)
    _place(golden_path, bundle / "golden.safetensors")
    if "finisher" in spec:
        from edgekit.backends.tensorrt import kit

        kit.complete(bundle, spec["name"], spec["target"]["spec"], job.inputs["reference"], job.inputs["verify"], measured["parity"])
        if "result" in job.files:
            kit.complete_measured(bundle, cast(FolderSource, job.files["result"]).path)
    preprocess = read_json(bundle / "preprocess.json")
    (bundle / "PREPROCESS.txt").write_text(definition.__doc__ or "", encoding="utf-8")
    write_json(bundle / "golden.json", _golden(reference, measured, preprocess))
    (bundle / "recipe.yaml").write_text(recipe, encoding="utf-8")
    licences = _licences(spec, model, reference, calibration)
    write_json(bundle / "licences.json", licences)
    (bundle / "LICENSES.md").write_text(_licences_text(licences), encoding="utf-8")
    (bundle / "README.txt").write_text(_readme(report, read_json(bundle / "flow.json"), read_json(bundle / "io.json"), model), encoding="utf-8")
    sums = file_table(bundle)
    (bundle / "SHA256SUMS").write_text("".join(f"{entry['sha256']}  {name}\n" for name, entry in sums.items()), encoding="utf-8")
    manifest = {
        "schema": 1,
        "name": spec["name"],
        "target": spec["target"],
        "verdict": report["verdict"],
        "measured_on": report["measured_on"],
        "model": {key: model.get(key) for key in ("model", "config_name", "pruned", "parameters", "macs")},
        "versions": spec["versions"],
        "stages": stages,
        "recipe": understood,
        "data": {"calibration": calibration, "verify": reference["data"]},
        **_device_part(bundle, measured),
        "provenance": provenance,
        "files": file_table(bundle),
    }
    write_json(bundle / MANIFEST, sealed(manifest))


def _device_part(bundle: Path, report: Mapping[str, Any]) -> Row:
    """{"passport": what a device must be; "device": what was measured there}, each where there is one."""
    found: Row = {"device": report["device"]} if "device" in report else {}
    if (bundle / "passport.txt").is_file():
        lines = (bundle / "passport.txt").read_text(encoding="utf-8").splitlines()
        found["passport"] = dict(line.split("=", 1) for line in lines)
    return found


# gates


def judge(gates: Mapping[str, Mapping[str, float]], report: Mapping[str, Any]) -> list[Row]:
    """Every limit of every gate against the report.

    Returns:
        rows `{name, metric, kind, limit, value, low, high, verdict, pass}`. A gate passes when the
        bad end of its interval is within the limit, fails when the value itself is beyond it or is
        not a number, and is inconclusive in between. What only a device can measure is pending-device.

    Raises:
        RecipeError: the report has no such metric.
    """
    asked = [(name, kind, limit) for name, limits in sorted(gates.items()) for kind, limit in sorted(limits.items())]
    # `max_over: {mhlt: 0}` is one limit for each comparison.
    single = [(name, f"{kind} {key}", value) for name, kind, limit in asked if isinstance(limit, Mapping) for key, value in sorted(limit.items())]
    return [_judge(name, kind, limit, report) for name, kind, limit in [*(row for row in asked if not isinstance(row[2], Mapping)), *single]]


def _judge(name: str, kind: str, limit: float, report: Mapping[str, Any]) -> Row:
    if name in DEVICE_GATES and "device" not in report:
        return {"name": name, "metric": name, "kind": kind, "limit": limit, "value": None, "low": None, "high": None, "verdict": "pending-device", "pass": False}
    value, low, high = _measured(name, kind, report)
    at_most = kind != "min"
    bad_end = high if at_most else low
    # Written so that a null, which was NaN, is never within.
    is_within = value is not None and (value <= limit if at_most else value >= limit)
    is_sure = is_within and bad_end is not None and (bad_end <= limit if at_most else bad_end >= limit)
    verdict = "pass" if is_sure else "inconclusive" if is_within else "fail"
    return {"name": name, "metric": name, "kind": kind, "limit": limit, "value": value, "low": low, "high": high, "verdict": verdict, "pass": is_sure}


def _measured(name: str, kind: str, report: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
    """(value, low, high) that a limit is about: the artifact's own value, or its change against the original."""
    if name in DEVICE_GATES:
        value = report["device"].get(name)
        return value, value, value
    if kind.startswith("max_over ") or re.fullmatch(SLICE, name):
        return _measured_part(name, kind, report)
    if name == "int8_macs":
        share = report["coverage"]["int8_macs"]
        return share, share, share
    if name == "agreement" and "agreement" in report:
        return tuple(report["agreement"][key] for key in ("value", "low", "high"))
    if name not in report["metrics"]["artifact"]:
        raise RecipeError(f"gate `{name}`: the report has no such metric", f"it has: {', '.join(report['metrics']['artifact'])}, int8_macs")
    if kind in ("min", "max"):
        low, high = report["intervals"]["artifact"][name]
        return report["metrics"]["artifact"][name], low, high
    change = report["drops"]["total"][name]
    value, low, high = (change[key] for key in ("value", "low", "high"))
    if kind == "max_increase":
        return value, low, high
    return tuple(None if x is None else 0.0 - x for x in (value, high, low))  # 0.0 - x: no minus zero


def _measured_part(name: str, kind: str, report: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
    """The same of a slice (`mae at snr_db=-5`), or of the artifact over a comparison.

    Raises:
        RecipeError: the report has no such slice, metric or comparison.
    """
    at = re.fullmatch(SLICE, name)
    if at is None:
        part, metric = {"comparisons": report.get("comparisons", {})}, name
    else:
        metric = at["metric"]
        found = [one for one in report["slices"] if one["tag"] == at["tag"] and one["value"] == at["value"] and (one["metric"] == metric or metric in one.get("outputs", {}))]
        if not found:
            known = [f"{one['metric']} at {one['tag']}={one['value']}" for one in report["slices"]]
            raise RecipeError(f"gate `{name}`: the report has no such slice", f"it has: {', '.join(known) or 'none'}")
        part = found[0]
    if metric in part.get("outputs", {}):
        largest = part["outputs"][metric]["max"]
        return largest, largest, largest
    if kind.startswith("max_over "):
        other = kind.removeprefix("max_over ")
        if other not in part.get("comparisons", {}):
            raise RecipeError(f"gate `{name}`: the report has no comparison `{other}`", f"it has: {', '.join(part.get('comparisons', {})) or 'none'}")
        change = part["comparisons"][other][metric]["over"]
        return change["value"], change["low"], change["high"]
    if kind in ("min", "max"):
        return part["artifact"], part["low"], part["high"]
    value, low, high = (part["total"][key] for key in ("value", "low", "high"))
    return (value, low, high) if kind == "max_increase" else (None if value is None else 0.0 - value, None if high is None else 0.0 - high, None if low is None else 0.0 - low)


def verdict_of(gates: list[Row], measured_on: str) -> str:
    """`fail | inconclusive | pending-device | pass`, the worst gate first; what was only simulated is pending."""
    for verdict in ("fail", "inconclusive"):
        if any(gate["verdict"] == verdict for gate in gates):
            return verdict
    waits = measured_on == "host-simulated" or any(gate["verdict"] == "pending-device" for gate in gates)
    return "pending-device" if waits else "pass"


# contents


def _place(source: Path, target: Path) -> None:
    """Copy a file into the bundle. Publishing shares its bytes with the cache, so nothing is linked here."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755 if source.stat().st_mode & 0o100 or source.suffix == ".sh" else 0o644)


def _golden(reference: Row, report: Row, preprocess: Row) -> Row:
    """What golden.safetensors holds, the answers to expect, and how close the device must come."""
    tolerance = {}
    if "video" in preprocess:
        # Pixels reach 255 before the mean goes off: a fused multiply-add moves a few float32 steps of 1.5e-5.
        tolerance["video"] = 1e-4 / min(preprocess["video"]["std"])
    if "audio" in preprocess:
        # Of spectra in decibels, a log10 of another library's; both are divided by the scale.
        spectra = preprocess["audio"].get("features", {})
        tolerance |= {name: 1e-3 / _least(how.get("scale", 1.0)) for name, how in spectra.items()} if spectra else {"wave": 1e-4}
    tolerance |= {name: 1e-4 / _least(how["std"]) for name, how in preprocess.get("features", {}).items()}
    return {
        "tensors": "golden.safetensors",
        "keys": ["<clip>/raw/frames uint8 [n, h, w, 3] RGB", "<clip>/raw/audio int16 [samples]", "<clip>/raw/frame_ms float64 [n], where frames have times of their own", "<clip>/raw/features/<name>", "<clip>/input/<name>", "<clip>/output/<name> of the pruned float model", "<clip>/state/<engine>/<name> [steps, ...]"],
        "clips": reference["golden"],
        "preprocess_max_abs": tolerance,
        "answers": report["golden"],
        "parity": report["parity"],
    }


def _least(scale: float | list[float]) -> float:
    return min(map(abs, scale)) if isinstance(scale, list) else abs(scale)


def _digests(checkpoint: str | dict[str, str]) -> str:
    return checkpoint if isinstance(checkpoint, str) else ", ".join(f"{part} {digest}" for part, digest in checkpoint.items())


def _licences(spec: Row, model: Row, reference: Row, calibration: Row) -> list[Row]:
    stated = _stated(model.get("provenance", {}))
    data = reference["data"]
    return [
        {"part": "engines/", "what": f"weights of {model.get('model')}/{model.get('config_name')}, converted from the checkpoint in manifest.json", "licence": stated or NOT_STATED, "shipped": True},
        {"part": "golden.safetensors, report.html", "what": f"clips of the data set {data['name']}", "licence": data.get("licence") or NOT_STATED, "shipped": True},
        {"part": "everything else", "what": f"written by edgekit {spec['versions']['edgekit']}", "licence": _own_licence(), "shipped": True},
        *({"part": tool, "what": f"{tool} {version}, used to build, no code of it is in here", "licence": _licence_of(tool), "shipped": False} for tool, version in sorted(spec["versions"].items()) if tool != "edgekit"),
    ]


def _stated(provenance: Row) -> str | None:
    """The terms that stand beside the checkpoint; of several, those of each part. None where nothing does."""
    training, digests = provenance.get("training"), provenance.get("checkpoint_sha256")
    if not isinstance(training, dict):
        return None
    if not isinstance(digests, dict):
        return training.get("licence") or training.get("license")
    terms = {part: (training.get(part) or {}).get("licence") or NOT_STATED for part in digests}
    return next(iter(terms.values())) if len(set(terms.values())) == 1 else ", ".join(f"{part}: {said}" for part, said in terms.items())


def _licences_text(licences: list[Row]) -> str:
    lines = ["# Licences", "", "What is in this bundle, and under which terms. `not stated` means that the", "checkpoint or data set came without a word on it: ask its owner before you ship.", ""]
    lines += ["| part | what | licence |", "|---|---|---|"]
    lines += [f"| {_cell(row['part'])} | {_cell(row['what'])} | {_cell(row['licence'])} |" for row in licences if row["shipped"]]
    lines += ["", "Used to build it, not shipped:", "", "| tool | licence |", "|---|---|"]
    lines += [f"| {_cell(row['what'].split(',')[0])} | {_cell(row['licence'])} |" for row in licences if not row["shipped"]]
    return "\n".join(lines) + "\n"


def _cell(text: object) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _licence_of(distribution: str) -> str:
    """What a distribution says of itself, in one line."""
    try:
        metadata = importlib.metadata.metadata(distribution)
    except importlib.metadata.PackageNotFoundError:
        return NOT_STATED
    classifiers = [c.rpartition(" :: ")[2] for c in metadata.get_all("Classifier") or [] if c.startswith("License ::")]
    text = metadata.get("License-Expression") or (", ".join(classifiers)) or (metadata.get("License") or "").strip().partition("\n")[0]
    return text[:120] or NOT_STATED


def _own_licence() -> str:
    licence = _licence_of("edgekit")
    return "edgekit's own, see its repository" if licence == NOT_STATED else licence


def _yaml(recipe: Row) -> str:
    import yaml

    return "# as edgekit understood it, overrides included\n" + yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)


def _readme(report: Row, flow: Row, io: Row, model: Row) -> str:
    target = report["target"]
    runtime = f"{target['runtime']['name']} {target['runtime']['version']}"
    verdict = {"pass": "PASS: every gate holds.", "pending-device": "PENDING DEVICE: every gate holds in simulation on the build machine. Nothing has run on the device yet."}[report["verdict"]]
    lead = report["lead"]
    scores = ", ".join(f"{row} {report['metrics'][key][lead]:.4g}" for row, key in (("float", "float"), ("pruned", "pruned"), ("INT8", "artifact")))
    steps = "\n".join(_step(number, step, io, flow) for number, step in enumerate(flow["steps"], start=1))
    every = ", ".join(f"{engine} {hz:.4g} Hz" for engine, hz in (flow.get("rates_hz") or {}).items())
    rates = f"   - rates in a stream: {every}\n" if every else ""
    host = "".join(_host_step(step) for step in flow.get("host_steps") or [] if step["step"] != "preprocess")
    states = "".join(
        f"   - {engine} keeps a state: feed output `{pair['out']}` back into `{pair['in']}` {pair['shape']}, {pair['init']:g} at the start of a window\n"
        for engine, pairs in (flow.get("states") or {}).items()
        for pair in pairs
    )
    build = (
        f"""2. Build the engines and check them, on the device ({runtime}):
       sh finish.sh --heldout {report["name"]}.heldout.tar
   It refuses another device or version before it touches anything (passport.txt), compiles ek_trt, builds,
   runs golden/ and the held-out clips, and leaves result/. Interrupt it whenever you like, and run it again
   to go on. Then, on the build machine, `edgekit adopt result` makes a bundle that holds the engines and
   what was measured. Engines are tied to this very board and library version."""
        if target["build_on"] == "device" and "device" not in report
        else f"""2. The engines in engines/ were built and measured on a reference board: {report["device"]["board"]}, passport.txt.
   On any other board first ask whether they belong there:
       sh check.sh --golden"""
        if "device" in report
        else "2. The engines in engines/ are ready to load."
    )
    kit = _kit_files("device" in report) if target["build_on"] == "device" else ""
    return f"""{report["name"]}: {model.get("model")}/{model.get("config_name")} in INT8 for {target["description"] or target["name"]}

{verdict}
{lead} on {report["n"]} held-out clips ({report["measured_on"]}): {scores}. See report.html.

1. Check that the files arrived whole:
       sha256sum -c SHA256SUMS
{build}
3. Preprocess exactly as preprocess.json says; PREPROCESS.txt defines each of its words so
   that it can be written in C. A wrong resize or padding costs more accuracy than INT8.
   golden.safetensors holds raw clips and the tensors they must become. Two of the clips are
   not of the model's own frame size and length on purpose: test with every one.
   golden.json says how close is close enough (preprocess_max_abs).
4. Run one window in this order; all engine tensors are float32 with batch 1 in front:
{steps}
{rates}{host}{states}5. Compare the outputs with golden.json: `answers` has, per golden clip, the pruned float model's
   (`float`) and the simulated INT8 artifact's (`artifact`) output. The device computes the
   float layers in other precisions and orders, so expect the simulated values only up to the
   size of `parity.max_abs` in golden.json.

golden.safetensors: 8 bytes little-endian header length, a JSON header
{{name: {{dtype, shape, data_offsets}}}}, then the tensors, little-endian, row-major.

Files
  manifest.json      every file with sha256 and size, versions, recipe, data, provenance
  SHA256SUMS         the same sums, as sha256sum checks them
  report.html .json  accuracy, parity, coverage, gates
  engines/<name>/    per engine: its graph, scales and precisions, or what was built of them
  build.json         how each engine is built, and the digests of what from
{kit}  flow.json io.json  the order above; names, shapes, units of all tensors
  preprocess.json    from camera and microphone to tensors, defined by PREPROCESS.txt
  golden.safetensors real clips, raw, preprocessed and answered; golden.json says what they are
  coverage.json      which layers are declared INT8, and why the others are not
  names.json         which module a layer comes from, and where each scale comes from
  recipe.yaml        what this was built from
  LICENSES.md        terms of weights and clips; licences.json is the same for machines
The device writes only below result/; nothing else in here should ever change.
"""


def _kit_files(is_measured: bool) -> str:
    own = (
        "  check.sh           whether the engines belong on a board\n"
        if is_measured
        else "  finish.sh          builds, runs and compares on the device\n  engines.txt        what it tells the builder, for each engine\n  heldout.txt        digest of the held-out clips, which come beside the bundle\n"
    )
    return (
        f"{own}  device.sh          what the script shares: reading and comparing passports\n"
        "  passport.txt       the device and versions that this is for\n"
        "  ek_trt/            source of the tool that builds, runs and compares; `make` compiles it there\n"
        "  flow.txt           flow.json for it\n"
        "  golden/            golden clips as it reads them, the float model's answers, and how close is close enough\n"
    )


def _host_step(step: Row) -> str:
    what = ", ".join(f"{key} {' '.join(value) if isinstance(value, list) else value}" for key, value in step.items() if key not in ("step", "why"))
    return f"   - the host itself: {step['step']} {what}{' (' + step['why'] + ')' if 'why' in step else ''}\n"


def _step(number: int, step: Row, io: Row, flow: Row) -> str:
    engine = io["engines"].get(step["engine"], {})
    shapes = {tensor["name"]: tensor["shape"] for tensor in (*engine.get("inputs", []), *engine.get("outputs", []))}
    lines = [f"   {number}. {step['engine']}"]
    for port, tensor in step.get("each", {}).items():
        lines.append(f"        in  {port} {shapes.get(port, '')} <- {tensor}[i], once for every i")
    for port, tensor in step.get("feed", {}).items():
        lines.append(f"        in  {port} {shapes.get(port, '')} <- {tensor}")
    for port, tensor in step.get("stack", {}).items():
        lines.append(f"        out {port} {shapes.get(port, '')} -> {tensor}[i]")
    for port, tensor in step.get("give", {}).items():
        lines.append(f"        out {port} {shapes.get(port, '')} -> {tensor}{'  (result)' if tensor in flow['outputs'] else ''}")
    return "\n".join(lines)

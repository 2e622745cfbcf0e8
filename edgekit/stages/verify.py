"""verify: what pruning and INT8 cost on held-out clips, measured and always written down.

Where the backend runs here, the built artifact itself runs (`measured_on: host`); otherwise ONNX
Runtime computes its Q/DQ graph, exactly the target's numbers, which is a simulation
(`host-simulated`). Parity is against the pruned float model (what conversion broke), drops are
against the original (what it cost in all). Gates are not judged here and not in the key, so a
changed gate never runs a model again.

An artifact that runs here is first checked against two references, engine by engine: its float form
against the float graph, and its INT8 form against the Q/DQ graph. Compilers do ship kernels that
are silently wrong, and an accuracy gate would not say where.

For a device that builds its own engines the same clips go into `heldout.tar`. What it brings back
(`edgekit adopt`) then takes the place of the simulation: outputs, coverage, latency and memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from edgekit import backends
from edgekit.artifact import FolderSource, Source
from edgekit.bundle import HELDOUT
from edgekit.datasets import Clip, Dataset, metrics_of, open_dataset
from edgekit.errors import DataError, TargetError
from edgekit.formats import engines_of, read_json, write_json
from edgekit.progress import track
from edgekit.recipe import LARGEST
from edgekit.slices import bins
from edgekit.stages import Job
from edgekit.stages.export import GRAPH_FLOW
from edgekit.stages.reference import COMPARED, GOLDEN, PREDICTIONS, REFERENCE

if TYPE_CHECKING:
    import numpy as np

    from edgekit.compare import Difference
    from edgekit.metrics import Metric
    from edgekit.recipe import Recipe
    from edgekit.target import Target

NEEDS = ("reference", "export", "quantize")
SEMANTICS = 5  # 5: classes and timelines. 4: an NPU is simulated. 2: weights without the graph around them; layers blamed on recorded clips. 3: built artifacts run, self-check
TOOLS = ("onnxruntime", "onnx", "numpy")

RESAMPLES, SEED = 2000, 0
FLOAT_TOLERANCE = 1e-4  # of max(1, largest output): float32 sums in another order
EXACT_ENOUGH_DB = 30  # kernels round sums by another rule, one step here and there: about what 8 bits cost once more. Wrong ones are further off
OUTPUTS = "outputs.safetensors"
HELDOUT_FORMAT = 1  # of heldout.tar, see backends/tensorrt/clips.py
WORST_LAYERS = 12

Row = dict[str, Any]


def tools(target: Target) -> dict[str, str | None]:
    return backends.get(target.backend).versions(target.spec())


def plan(recipe: Recipe, target: Target) -> tuple[dict[str, Any], dict[str, Source]]:
    data = open_dataset(recipe.verify.data, "test", recipe.verify.clips, recipe.dir, recipe.cache_root)
    spec = {"metrics": list(data.metrics), "resamples": RESAMPLES, "seed": SEED, "target": target.spec()}
    files: dict[str, Source] = {"data": cast(Source, data)}
    if hasattr(backends.get(target.backend), "finisher"):
        spec["heldout"] = HELDOUT_FORMAT
    if recipe.device_result is not None:
        files["result"] = FolderSource(recipe.device_result)
    return spec, files


def run(job: Job) -> None:
    from safetensors.numpy import load_file, save_file

    # They need numpy, which a plan of a warm cache must not load.
    from edgekit import report as html
    from edgekit.flow import scored, task_of, title_of

    data = cast(Dataset, job.files["data"])
    reference = read_json(job.inputs["reference"] / REFERENCE)
    want = load_file(job.inputs["reference"] / PREDICTIONS)
    golden = load_file(job.inputs["reference"] / GOLDEN)
    flow = read_json(job.inputs["export"] / "flow.json")
    if list(data.ids) != reference["ids"]:
        raise DataError(f"{data.source}: other clips than the float reference ran on", "run the build again")

    inner = job.inputs["export"] / GRAPH_FLOW
    graph_flow = read_json(inner) if inner.is_file() else flow
    artifact = _artifact(job, flow)
    check = _self_check if graph_flow is flow else _self_check_whole
    self_check = check(job, flow, graph_flow, artifact, golden, reference["golden"])
    device = _Device(cast(FolderSource, job.files["result"]).path) if "result" in job.files else None
    keep: dict[str, Row] = {}  # each clip's inputs, encoded for a device
    if device is not None:
        got = {name: device.outputs("heldout", data.ids, name) for name in flow["outputs"]}
    else:
        got = _run_artifact(job, flow, data, artifact, "artifact", _encoder(job, keep))
    parity = _parity(flow, want, got, data.ids)
    if keep:
        _write_heldout(job, flow, data.ids, keep, want, parity)
    artifact_golden, engines, layers = _look_inside(job, flow, graph_flow, artifact, golden, reference["golden"])
    coverage = read_json(job.inputs["export"] / "coverage.json")
    if device is not None:
        artifact_golden |= device.answers(flow, artifact_golden, reference["golden"])
        coverage = device.coverage(coverage)
    labels = scored(flow, want, "label/")
    rows = {"float": scored(flow, want, "original/"), "pruned": scored(flow, want, "pruned/"), "artifact": scored(flow, got)}
    names = {key.split("/")[0] for key in want if key.startswith(COMPARED)}
    compared = {name.removeprefix(COMPARED): scored(flow, want, f"{name}/") for name in sorted(names)}
    scores = _scores(data, task_of(flow), labels, rows["float"])
    noisy = None
    if task_of(flow) == "speech":
        labels, rows, scores, noisy = _scored_clips(job, flow, data, labels, rows, scores)
    judge = _Judge(labels, job.spec["resamples"], job.spec["seed"])
    sizes = _sizes(reference["models"], job.inputs)
    report = {
        "schema": 1,
        "measured_on": device.title if device is not None else "host-simulated" if _is_simulated(job) else "host",
        **({"device": device.summary} if device is not None else {}),
        "n": len(data.ids),
        "primary": title_of(flow),
        "task": task_of(flow),
        **({"classes": list(flow["classes"]), "agreement": judge.agreement(rows["pruned"], rows["artifact"])} if task_of(flow) == "classes" else {}),
        "lead": next(iter(scores)),  # the data set's first metric; JSON objects are written sorted
        "data": reference["data"],
        "is_pruned": reference["is_pruned"],
        "metrics": {row: {name: metric(labels, values) for name, metric in scores.items()} for row, values in rows.items()},
        "intervals": {row: {name: judge.interval(metric, values) for name, metric in scores.items()} for row, values in rows.items()},
        "drops": {
            "prune_cost": {name: judge.change(metric, rows["float"], rows["pruned"]) for name, metric in scores.items()},
            "int8_cost": {name: judge.change(metric, rows["pruned"], rows["artifact"]) for name, metric in scores.items()},
            "total": {name: judge.change(metric, rows["float"], rows["artifact"]) for name, metric in scores.items()},
        },
        "bootstrap": {"resamples": job.spec["resamples"], "seed": job.spec["seed"], "level": 0.95, "paired_over": "clips"},
        "metric_info": {name: {"unit": m.unit, "direction": m.direction, "title": m.title} for name, m in scores.items()},
        "postprocessed": _postprocessed(reference, want, labels, rows, scores),
        **({"input": _gain(noisy, rows, scores, judge)} if noisy is not None else {}),
        "other_outputs": _other_outputs(flow, want, got, scores),
        "parity": parity,
        "self_check": self_check,
        "deployed": _deployed(job, flow, data, want, scores),
        "engines": engines,
        "layers": layers,
        "coverage": _coverage(coverage),
        "sizes": sizes,
        **({"comparisons": judge.against(scores, rows["artifact"], compared)} if compared else {}),
        "slices": _slices(reference["tags"], next(iter(scores.values())), labels, rows, judge, compared, {k: got[k] for k in flow["outputs"] if k in LARGEST}),
        "predictions": {"ids": list(data.ids), **_listed(labels, rows, noisy)},
        "golden": artifact_golden,
    }
    report = finite(report)
    write_json(job.out / "report.json", report)
    save_file(got, job.out / OUTPUTS)
    audio = read_json(job.inputs["export"] / "preprocess.json").get("audio", {})
    sound = html.sound(job.inputs["reference"], job.out / OUTPUTS, audio.get("sample_rate_hz", 0))
    (job.out / "report.html").write_text(html.render(report, html.samples(golden, reference["golden"]), sound), encoding="utf-8")


def _backend(job: Job) -> ModuleType:
    return backends.get(job.spec["target"]["backend"])


def _is_simulated(job: Job) -> bool:
    backend = _backend(job)
    return not backend.EXECUTES or (hasattr(backend, "simulates") and backend.simulates(job.spec["target"]))


def _artifact(job: Job, flow: dict[str, Any], folder: str = "engines", deployed: bool = False) -> dict[str, Any]:
    """{engine: session} of the built engines; of the Q/DQ graphs where those cannot run here."""
    from edgekit.backends import onnxruntime

    backend = _backend(job)
    if not backend.EXECUTES:
        return {engine: onnxruntime.simulate(_graph(job, engine, "qdq")) for engine in engines_of(flow)}
    open_engine = backend.open_deployed if deployed else backend.open
    return {engine: open_engine(job.inputs["export"] / folder / engine, job.spec["target"]) for engine in engines_of(flow)}


def _run_artifact(
    job: Job, flow: dict[str, Any], data: Dataset, sessions: dict[str, Any], what: str, seen: Callable[[Clip, dict[str, np.ndarray]], None] | None = None
) -> dict[str, np.ndarray]:
    """{output: [clips, ...]} of the artifact on every held-out clip; `seen(clip, inputs)` is told what it ran on."""
    import numpy as np

    from edgekit.flow import run_flow
    from edgekit.preprocess import preprocess

    spec = read_json(job.inputs["export"] / "preprocess.json")
    rows: dict[str, list] = {name: [] for name in flow["outputs"]}
    for clip_id in track(data.ids, what):
        clip = data.clip(clip_id)
        inputs = preprocess(spec, clip)
        if seen is not None:
            seen(clip, inputs)
        for name, value in run_flow(flow, sessions, inputs).items():
            rows[name].append(value)
    return {name: np.asarray(values, np.float32) for name, values in rows.items()}


def _encoder(job: Job, keep: dict[str, Row]) -> Callable[[Clip, dict[str, np.ndarray]], None] | None:
    """Keeps every clip as a device takes it; None where none does."""
    if "heldout" not in job.spec:
        return None
    from edgekit.backends.tensorrt import clips

    spec = read_json(job.inputs["export"] / "preprocess.json")

    def see(clip: Clip, inputs: dict[str, np.ndarray]) -> None:
        keep[clip.id] = clips.encode(spec, inputs, clip.audio)

    return see


def _write_heldout(job: Job, flow: dict[str, Any], ids: list[str], keep: dict[str, Row], want: dict[str, np.ndarray], parity: dict[str, Row]) -> None:
    from edgekit.backends.tensorrt import clips

    with clips.HeldOut(job.out / HELDOUT) as tar:
        for i, clip_id in enumerate(ids):
            tar.add(clip_id, keep[clip_id], {name: want[f"pruned/{name}"][i] for name in flow["outputs"]})
        tar.limits(finite(parity))


class _Device:
    """What a device brought back, in place of the simulation."""

    def __init__(self, result: Path):
        from edgekit.backends.tensorrt import result as results

        self._result, self._results = result, results
        self.title = results.device_of(result).title
        self.summary = results.summary(result)

    def outputs(self, kind: str, ids: list[str], name: str) -> np.ndarray:
        return self._results.outputs(self._result, kind, ids, name)

    def answers(self, flow: dict[str, Any], simulated: Row, clips: list[Row]) -> Row:
        """The golden clips that the device ran, with its answers in place of the simulation's."""
        found: Row = {}
        for clip in clips:
            if clip["derived_from"] is None:
                of_clip = simulated.get(clip["id"], {})
                found[clip["id"]] = {name: {**row, "artifact": self.outputs("golden", [clip["id"]], name)[0].tolist()} for name, row in of_clip.items()}
        return found

    def coverage(self, declared: Row) -> Row:
        """Export's coverage with what TensorRT says that every layer really got."""
        measured = {engine: self._results.layers(self._result / "engines" / engine) for engine in {row["engine"] for row in declared["layers"]}}
        rows = []
        for row in declared["layers"]:
            precision = measured[row["engine"]].get(row["node"], "not found")
            reason = None if precision == "int8" else row["reason"]
            if precision != "int8" and row["declared"] == "int8":
                reason = "declared INT8, the engine names no such layer" if precision == "not found" else f"declared INT8, the engine runs it in {precision}"
            rows.append({**row, "precision": precision, "reason": reason})
        total = sum(row["macs"] * row["runs_per_window"] for row in rows)
        in_int8 = sum(row["macs"] * row["runs_per_window"] for row in rows if row["precision"] == "int8")
        return {**declared, "grade": "measured", "int8_macs": in_int8 / total if total else 0.0, "layers": rows}


def _deployed(job: Job, flow: dict[str, Any], data: Dataset, want: dict[str, np.ndarray], scores: dict[str, Metric]) -> Row | None:
    """The artifact as the device runs it, where that is another precision than the one parity is measured in."""
    backend = _backend(job)
    precision = job.spec["target"].get("device", {}).get("precision_hint", "f32")
    if not hasattr(backend, "open_deployed") or precision == "f32":
        return None
    from edgekit.flow import scored

    got = _run_artifact(job, flow, data, _artifact(job, flow, deployed=True), f"artifact in {precision}")
    labels = scored(flow, want, "label/")
    return {
        "precision": precision,
        "metrics": {name: metric(labels, scored(flow, got)) for name, metric in scores.items()},
        "parity": _parity(flow, want, got, data.ids),
    }


def _self_check(job: Job, flow: dict[str, Any], _: dict[str, Any], artifact: dict[str, Any], golden: dict[str, np.ndarray], clips: list[dict[str, Any]]) -> Row | None:
    """Every engine's float form against the float graph and INT8 form against the Q/DQ graph, on the golden clips.

    An INT8 kernel may round its sums in another order, so it may be off by less than INT8 itself
    costs; a wrong one is off by more.

    Returns:
        {engine: {output: {float_max_abs, float_limit, int8_sqnr_db (to the Q/DQ graph), cost_sqnr_db (Q/DQ graph to float)}}};
        None where nothing runs here.

    Raises:
        TargetError: an engine computes something else than its reference.
    """
    import numpy as np

    from edgekit.backends import onnxruntime
    from edgekit.flow import run_flow, runs_per_window

    if not _backend(job).EXECUTES:
        return None
    target = job.spec["target"]
    references = {kind: {engine: onnxruntime.simulate(_graph(job, engine, kind)) for engine in engines_of(flow)} for kind in ("float", "qdq")}
    built = {"float": _artifact(job, flow, "float/engines"), "qdq": artifact}
    seen: dict[tuple[str, str], dict[str, list]] = {}

    checked = {name: _checked(runs) for name, runs in runs_per_window(flow).items()}
    count: dict[str, int] = {}

    def tap(engine: str, feeds: dict[str, np.ndarray], outputs: Any) -> None:
        count[engine] = count.get(engine, -1) + 1
        if count[engine] not in checked[engine]:
            return
        given = {"float": outputs, "qdq": references["qdq"][engine](feeds), "built float": built["float"][engine](feeds), "built qdq": built["qdq"][engine](feeds)}
        for port in outputs:
            rows = seen.setdefault((engine, port), {kind: [] for kind in given})
            for kind, tensors in given.items():
                rows[kind].append(np.asarray(tensors[port]))

    for clip in track([clip for clip in clips if clip["derived_from"] is None], "self-check"):
        count.clear()
        run_flow(flow, references["float"], {name: golden[f"{clip['id']}/input/{name}"] for name in flow["inputs"]}, tap=tap)
    found: Row = {}
    for (engine, port), rows in seen.items():
        stacked = {kind: np.stack(values) for kind, values in rows.items()}
        found.setdefault(engine, {})[port] = _judged(stacked, f"engine `{engine}`, output `{port}`: {target['runtime']['name']}")
    return found


CHECKED_RUNS = 24


def _checked(runs: int) -> set[int]:
    """Which runs of a window are checked: all, or of a long stream its first ones and others throughout."""
    if runs <= CHECKED_RUNS:
        return set(range(runs))
    return {*range(CHECKED_RUNS // 3), *(round(i * (runs - 1) / (CHECKED_RUNS - 1)) for i in range(CHECKED_RUNS))}


def _self_check_whole(job: Job, flow: dict[str, Any], graph_flow: dict[str, Any], artifact: dict[str, Any], golden: dict[str, np.ndarray], clips: list[dict[str, Any]]) -> Row:
    """`_self_check` of an artifact whose one engine computes the whole flow: streams against streams, each with its own states.

    Raises:
        TargetError: as there.
    """
    import numpy as np

    from edgekit.backends import onnxruntime
    from edgekit.flow import run_flow

    graphs = {kind: {name: onnxruntime.simulate(_graph(job, name, kind)) for name in engines_of(graph_flow)} for kind in ("float", "qdq")}
    built = {"float": _artifact(job, flow, "float/engines"), "qdq": artifact}
    seen: dict[str, dict[str, list]] = {name: {} for name in flow["outputs"]}
    for clip in track([clip for clip in clips if clip["derived_from"] is None], "self-check"):
        inputs = {name: golden[f"{clip['id']}/input/{name}"] for name in flow["inputs"]}
        for kind in ("float", "qdq"):
            for row, outputs in ((kind, run_flow(graph_flow, graphs[kind], inputs)), (f"built {kind}", run_flow(flow, built[kind], inputs))):
                for name, value in outputs.items():
                    seen[name].setdefault(row, []).append(value)
    [engine] = engines_of(flow)
    stacked = {name: {row: np.stack(values) for row, values in rows.items()} for name, rows in seen.items()}
    return {engine: {name: _judged(rows, f"engine `{engine}`, output `{name}`: {job.spec['target']['runtime']['name']}") for name, rows in stacked.items()}}


def _judged(stacked: dict[str, np.ndarray], where: str) -> Row:
    """One output of the float and Q/DQ graphs against that of what was built from them.

    Raises:
        TargetError: further off than rounding.
    """
    import numpy as np

    from edgekit.compare import difference

    as_float = difference(where, stacked["float"], stacked["built float"])
    as_int8, cost = difference(where, stacked["qdq"], stacked["built qdq"]), difference(where, stacked["float"], stacked["qdq"])
    limit = FLOAT_TOLERANCE * max(1.0, float(np.abs(stacked["float"]).max()))
    if not as_float.within(limit):
        raise TargetError(f"{where} computes the float graph {as_float.max_abs:.3g} off (max_abs, at most {limit:.3g} is rounding)", "this is a bug of the lowering or of the runtime; please report it")
    if not as_int8.sqnr_db >= min(cost.sqnr_db, EXACT_ENOUGH_DB):
        raise TargetError(
            f"{where} computes the INT8 graph with {as_int8.sqnr_db:.1f} dB against its reference, where INT8 itself costs only {cost.sqnr_db:.1f} dB",
            "one of its INT8 kernels is wrong: find the layer with `quantize.skip`, or use another version of the runtime",
        )
    return {"float_max_abs": as_float.max_abs, "float_limit": limit, "int8_sqnr_db": as_int8.sqnr_db, "cost_sqnr_db": cost.sqnr_db}


def _parity(flow: dict[str, Any], want: dict[str, np.ndarray], got: dict[str, np.ndarray], ids: list[str]) -> dict[str, Row]:
    """Artifact against the pruned float model, per output over all clips."""
    from edgekit.compare import compare

    differences = compare({name: want[f"pruned/{name}"] for name in flow["outputs"]}, got, "artifact against the pruned float model")
    return {name: {**_row(d), "worst_clip": ids[d.worst[0]]} for name, d in differences.items()}


def _look_inside(
    job: Job, flow: dict[str, Any], graph_flow: dict[str, Any], artifact: dict[str, Any], golden: dict[str, np.ndarray], clips: list[dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any], list[Row]]:
    """The artifact's answers, and which engine and layer the error comes from, on golden clips that were recorded so.

    Every engine gets the *float* inputs, so that it is blamed for its own error only; inside an
    engine the error of earlier layers is still in that of later ones.

    Returns:
        {clip: {output: {"float", "artifact"}}}; {engine: {output: parity}}; the worst layers first.
    """
    import numpy as np

    from edgekit.backends import onnxruntime
    from edgekit.compare import difference
    from edgekit.flow import run_flow

    layers = {engine: _layers_in_both(_graph(job, engine, "float"), _graph(job, engine, "qdq")) for engine in engines_of(graph_flow)}
    sessions = {
        kind: {engine: onnxruntime.simulate(_graph(job, engine, kind), also=layers[engine]) for engine in engines_of(graph_flow)} for kind in ("float", "qdq")
    }
    energy: dict[tuple[str, str], list[float]] = {}  # (engine, tensor) -> [signal, noise, max_abs]
    ends: dict[tuple[str, str], tuple[list, list]] = {}
    ports = {engine["engine"]: [*engine.get("give", {}), *engine.get("stack", {})] for engine in graph_flow["steps"]}

    def tap(engine: str, feeds: dict[str, np.ndarray], outputs: Any) -> None:
        quantized = sessions["qdq"][engine](feeds)
        for tensor in layers[engine]:
            want, got = np.asarray(outputs[tensor], np.float64), np.asarray(quantized[tensor], np.float64)
            sums = energy.setdefault((engine, tensor), [0.0, 0.0, 0.0])
            sums[0] += float((want * want).sum())
            sums[1] += float(((want - got) ** 2).sum())
            sums[2] = max(sums[2], float(np.abs(want - got).max(initial=0.0)))
        for port in ports[engine]:
            pair = ends.setdefault((engine, port), ([], []))
            pair[0].append(outputs[port])
            pair[1].append(quantized[port])

    answers = {}
    for clip in track(clips, "where the error comes from"):
        inputs = {name: golden[f"{clip['id']}/input/{name}"] for name in flow["inputs"]}
        if clip["derived_from"] is None:  # cut and stretched ones are unlike anything that ranges were calibrated on
            run_flow(graph_flow, sessions["float"], inputs, tap=tap)
        answered = run_flow(flow, artifact, inputs)
        answers[clip["id"]] = {
            name: {"float": golden[f"{clip['id']}/output/{name}"].tolist(), "artifact": value.tolist()}
            for name, value in answered.items()
            if value.size <= 16  # larger ones stand in golden.safetensors only
        }
    engines: dict[str, Any] = {}
    for (engine, port), (want, got) in ends.items():
        engines.setdefault(engine, {})[port] = _row(difference(port, np.stack(want), np.stack(got)))
    rows = [
        {"engine": engine, "layer": layers[engine][tensor][0], "op": layers[engine][tensor][1], "sqnr_db": _sqnr(signal, noise), "max_abs": worst if math.isfinite(noise) else math.nan}
        for (engine, tensor), (signal, noise, worst) in energy.items()
        if noise != 0  # untouched layers are no news; NaN noise is
    ]
    rows.sort(key=lambda row: (not math.isnan(row["sqnr_db"]), row["sqnr_db"]))
    return answers, engines, rows[:WORST_LAYERS]


def _layers_in_both(float_graph: Path, qdq_graph: Path) -> dict[str, tuple[str, str]]:
    """{output tensor: (node, op)} of every layer with MACs that both graphs have under one name."""
    import onnx

    from edgekit.graph import MAC_OPS

    def outputs(path: Path) -> dict[str, tuple[str, str]]:
        nodes = onnx.load(str(path), load_external_data=False).graph.node
        return {name: (node.name, node.op_type) for node in nodes if node.op_type in MAC_OPS for name in node.output[:1] if name}

    quantized = outputs(qdq_graph)
    return {name: layer for name, layer in outputs(float_graph).items() if name in quantized}


def _scores(data: Dataset, task: str, labels: np.ndarray, predictions: np.ndarray) -> dict[str, Metric]:
    """The data set's own metrics first, then every other of ours that the task and its labels allow, so that any may be gated."""
    from edgekit.metrics import DEFAULTS, METRICS

    own = metrics_of(data) if data.metrics else {name: METRICS[name] for name in DEFAULTS[task]}
    wrong = [name for name, metric in own.items() if metric.task not in (task, None)]
    if wrong:
        raise DataError(f"{data.source}: metric `{wrong[0]}` is for {own[wrong[0]].task}, the model gives {task}", f"use {', '.join(name for name, metric in METRICS.items() if metric.task == task)}")
    others = {}
    for name, metric in METRICS.items():
        if metric.task != task or metric.needs_package:
            continue
        try:
            metric(labels, predictions)
        except DataError:
            continue  # such as a correlation with constant labels; a gate on it then says that it is not there
        others[name] = metric
    return own | {name: metric for name, metric in others.items() if name not in own}


def _scored_clips(
    job: Job, flow: dict[str, Any], data: Dataset, clean: np.ndarray, rows: dict[str, np.ndarray], scores: dict[str, Metric]
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, Metric], np.ndarray]:
    """Speech [clips, samples] becomes a row of scores for each clip, once: intervals and slices then draw from those.

    Returns:
        labels (all 0: scores need none any more), {row: [clips, metrics]}, the metrics as means of a column, and the scores of the noisy input.
    """
    from dataclasses import replace

    import numpy as np

    from edgekit.preprocess import preprocess

    spec = read_json(job.inputs["export"] / "preprocess.json")
    [wave] = flow["inputs"]
    noisy = np.stack([preprocess(spec, data.clip(clip_id))[wave] for clip_id in data.ids])

    def scored(waves: np.ndarray) -> np.ndarray:
        return np.stack([metric.per_clip(np.float64(clean), np.float64(waves)) for metric in scores.values()], axis=-1)

    def mean_of(column: int):
        return lambda labels, values: values[..., column].mean(axis=-1)

    means = {name: replace(metric, fn=mean_of(k), task=None, per_clip=None) for k, (name, metric) in enumerate(scores.items())}
    found = {row: scored(waves) for row, waves in track(rows.items(), "scoring speech")}
    return np.zeros(len(clean)), found, means, scored(noisy)


def _gain(noisy: np.ndarray, rows: dict[str, np.ndarray], scores: dict[str, Metric], judge: _Judge) -> Row:
    """The scores of what went in, and what each model adds to them."""
    return {
        "metrics": {name: metric(judge.labels, noisy) for name, metric in scores.items()},
        "gain": {row: {name: judge.change(metric, noisy, values) for name, metric in scores.items()} for row, values in rows.items()},
    }


def _listed(labels: np.ndarray, rows: dict[str, np.ndarray], noisy: np.ndarray | None) -> dict[str, list]:
    """Per clip, what the report draws: labels and predictions; of speech the first metric's scores, of what went in as label."""
    if noisy is None:
        return {"label": labels.tolist(), **{row: values.tolist() for row, values in rows.items()}}
    return {"label": noisy[:, 0].tolist(), **{row: values[:, 0].tolist() for row, values in rows.items()}}


class _Judge:
    """Bootstrap intervals over one set of labels."""

    def __init__(self, labels: np.ndarray, resamples: int, seed: int):
        self.labels, self.resamples, self.seed = labels, resamples, seed

    def interval(self, metric: Metric, values: np.ndarray) -> list[float]:
        from edgekit.metrics import bootstrap

        return list(bootstrap(metric, self.labels, values, self.resamples, self.seed))

    def change(self, metric: Metric, a: np.ndarray, b: np.ndarray) -> Row:
        from edgekit.metrics import paired_bootstrap

        value, low, high = paired_bootstrap(metric, self.labels, a, b, self.resamples, self.seed)
        return {"value": value, "low": low, "high": high}

    def agreement(self, a: np.ndarray, b: np.ndarray) -> Row:
        """Share of clips on which both choose the same class, in %, with its interval."""
        from edgekit.metrics import METRICS, agreement, bootstrap

        # Scored against the other's choice in place of labels, accuracy is agreement.
        low, high = bootstrap(METRICS["wa"], a.argmax(axis=-1), b, self.resamples, self.seed)
        return {"value": agreement(a, b), "low": low, "high": high}

    def against(self, scores: dict[str, Metric], artifact: np.ndarray, compared: dict[str, np.ndarray]) -> dict[str, Row]:
        """{comparison: {metric: {its own "value", and "over": artifact minus it on the same clips}}}."""
        return {
            name: {metric.name: {"value": metric(self.labels, values), "over": self.change(metric, values, artifact)} for metric in scores.values()}
            for name, values in compared.items()
        }

    def only(self, keep: np.ndarray) -> _Judge:
        return _Judge(self.labels[keep], self.resamples, self.seed)


def _postprocessed(reference: Row, want: dict[str, np.ndarray], labels: np.ndarray, rows: dict[str, np.ndarray], scores: dict[str, Metric]) -> Row | None:
    """The scores over recordings, each put together from its windows and smoothed; None where clips are no windows of recordings."""
    from edgekit.metrics import SMOOTHED_OVER, postprocessed, recordings

    if "series" not in reference or labels.ndim != 3:
        return None
    series, at = reference["series"], want["at"].astype("int64")
    truth = recordings(series, at, labels.astype("float64"))
    return {
        "how": f"clipped to -1..1, moving average over {SMOOTHED_OVER[0]} frames of valence and {SMOOTHED_OVER[1]} of arousal in each recording",
        "metrics": {row: {name: metric(truth, postprocessed(series, at, values.astype("float64"))) for name, metric in scores.items() if metric.task} for row, values in rows.items()},
    }


def _other_outputs(flow: dict[str, Any], want: dict, got: dict, scores: dict[str, Metric]) -> dict[str, Any]:
    """The same scores of every labelled output that is one number and not scored already."""
    from edgekit.flow import primaries

    found: dict[str, Any] = {}
    for name in flow["outputs"]:
        labels = want.get(f"label/{name}")
        if name in primaries(flow) or labels is None or got[name].ndim != 1:
            continue
        for row, values in (("float", want[f"original/{name}"]), ("pruned", want[f"pruned/{name}"]), ("artifact", got[name])):
            for metric in scores.values():
                if metric.task not in ("value", None) or (metric.needs_varied_labels and labels.min() == labels.max()):
                    continue
                found.setdefault(name, {}).setdefault(row, {})[metric.name] = metric(labels, values)
    return found


def _slices(
    tags: list[dict[str, Any]], metric: Metric, labels: np.ndarray, rows: dict[str, np.ndarray], judge: _Judge, compared: dict[str, np.ndarray], largest: dict[str, np.ndarray]
) -> list[Row]:
    """The first metric per bin of every tag that has few enough values, with n and intervals; what it is compared with, and outputs whose size matters, too."""
    import numpy as np

    from edgekit.metrics import is_varied

    found = []
    for tag in sorted({name for clip in tags for name in clip}):
        for label, low, high, member in bins(tag, [clip.get(tag) for clip in tags]):
            keep = np.asarray(member)
            if keep.sum() < 2 or (metric.needs_varied_labels and not is_varied(labels[keep])):
                continue
            part = judge.only(keep)
            total = part.change(metric, rows["float"][keep], rows["artifact"][keep])
            band = part.interval(metric, rows["artifact"][keep])
            found.append(
                {
                    "tag": tag,
                    "value": label,
                    "from": low,
                    "to": high,
                    "n": int(keep.sum()),
                    "metric": metric.name,
                    **{row: metric(labels[keep], values[keep]) for row, values in rows.items()},
                    "low": band[0],
                    "high": band[1],
                    "total": total,
                    **({"comparisons": part.against({metric.name: metric}, rows["artifact"][keep], {k: v[keep] for k, v in compared.items()})} if compared else {}),
                    **({"outputs": {k: {"mean": float(v[keep].mean()), "max": float(v[keep].max())} for k, v in largest.items()}} if largest else {}),
                }
            )
    return found


def _coverage(coverage: Row) -> Row:
    """MACs per window and how many of them are INT8, in all, by engine and by op; and why a layer is not."""
    engines: dict[str, Row] = {}
    ops: dict[str, Row] = {}
    skipped: dict[str, dict[str, str]] = {}
    for layer in coverage["layers"]:
        macs = layer["macs"] * layer["runs_per_window"]
        for table, key in ((engines, layer["engine"]), (ops, layer["op"])):
            row = table.setdefault(key, {"macs": 0, "int8_macs": 0})
            row["macs"] += macs
            row["int8_macs"] += macs if layer["precision"] == "int8" else 0
        if layer["precision"] != "int8":
            skipped.setdefault(layer["engine"], {})[layer["node"]] = f"{layer['precision']}: {layer['reason']}"
    more = {key: coverage[key] for key in ("units", "unit", "gate") if key in coverage}
    return {**more, "grade": coverage["grade"], "int8_macs": coverage["int8_macs"], "macs": coverage["macs"], "engines": engines, "ops": ops, "skipped": skipped}


def _sizes(models: dict[str, Any], inputs: dict[str, Path]) -> dict[str, Any]:
    """Parameters, MACs per window and bytes of weights before and after.

    The artifact's `bytes` are the weights in its Q/DQ graphs: int8 where a layer is INT8, float32
    elsewhere. What the device's compiler stores may differ, and is only known on the device.
    `engine_bytes` are the files that are flashed, `float_bytes` the same engines compiled without INT8.
    """
    import onnx

    graphs = [onnx.load(str(path)).graph for path in sorted((inputs["quantize"] / "engines").glob("*/qdq.onnx"))]
    as_float = inputs["export"] / "float" / "engines"
    return {
        **models,
        "artifact": {
            "parameters": models["pruned"]["parameters"],
            "macs": models["pruned"]["macs"],
            "bytes": sum(onnx.numpy_helper.to_array(weight).nbytes for graph in graphs for weight in graph.initializer),
            "engine_bytes": _flashed_bytes(inputs["export"]),
            "float_bytes": _flashed_bytes(as_float.parent) if as_float.is_dir() else None,
        },
    }


def _flashed_bytes(export: Path) -> int:
    """Size of the engines' own files where build.json names them, else of all that stands in their folders."""
    engines = read_json(export / "build.json").get("engines", {})
    files = [row["file"] for row in engines.values() if "file" in row] if isinstance(engines, dict) else []
    return sum((export / file).stat().st_size for file in files) or _bytes_below(export / "engines")


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _graph(job: Job, engine: str, kind: str) -> Path:
    return job.inputs["quantize"] / "engines" / engine / f"{kind}.onnx"


def _row(d: Difference) -> Row:
    return {"max_abs": d.max_abs, "mean_abs": d.mean_abs, "sqnr_db": d.sqnr_db, "cosine": d.cosine, "worst": list(d.worst)}


def _sqnr(signal: float, noise: float) -> float:
    if math.isnan(signal) or math.isnan(noise):
        return math.nan
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def finite(value: Any) -> Any:
    """`value` with null for every NaN and infinity, which JSON lacks.

    A null `max_abs` or metric was NaN and fails every gate; a null `sqnr_db` beside `max_abs` 0 means equal.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value

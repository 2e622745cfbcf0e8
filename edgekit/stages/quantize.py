"""quantize: the target's rewrites, then ranges, then the graph that computes in the target's numbers.

Statistics come from calibrate, which knew no target. A rewrite says of each new tensor whose range
it has (`same_as`), what bounds it (`bound`), or that it must be observed; only the last, and only
where an INT8 layer needs it, costs a second pass over the clips.

Every rewrite is run against the graph before it on real calibration clips, and must give the same
outputs up to float32 rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from edgekit.artifact import Source
from edgekit.datasets import open_dataset
from edgekit.errors import EdgekitError, RecipeError
from edgekit.formats import read_json, write_json
from edgekit.progress import note, track
from edgekit.stages import Job

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from edgekit.calibration import Statistics
    from edgekit.qdq import Precisions
    from edgekit.quant import Range
    from edgekit.recipe import Recipe
    from edgekit.target import Target

NEEDS = ("prune", "calibrate")
SEMANTICS = 6  # 6: kernels whose own scale is too coarse. 5: what a Concat joins has one scale; joins may broadcast. 4: symmetric products. 3: tensors in fixed scales are not listed. 2: every kind of layer; last layers that cost nothing give floats
TOOLS = ("onnx", "onnx_ir", "onnxruntime", "numpy")

PROOF_CLIPS = 2
CHECKED_LATER = ("constant_inputs", "outputs", "attributes")  # of an op rule: export's business, and not in this stage's key


def plan(recipe: Recipe, target: Target) -> tuple[dict[str, Any], dict[str, Source]]:
    rules = target.spec()
    spec = {
        **(recipe.section("quantize") or {}),
        "numbers": rules["numbers"],
        "rewrites": rules.get("rewrites", []),
        "int8": {op: {key: value for key, value in rule.items() if key not in CHECKED_LATER} for op, rule in rules["ops"].items() if rule.get("int8") or "." in op},
    }
    data = open_dataset(recipe.calibrate.data, "calibration", recipe.calibrate.clips, recipe.dir, recipe.cache_root)
    return spec, {"data": data}


@dataclass
class _Engine:
    """One engine on its way through this stage."""

    name: str
    model: ir.Model
    words: dict[str, str]
    fp32: list[str]
    precisions: Precisions | None = None

    @cached_property
    def tensors(self) -> frozenset[str]:
        """Of the rewritten graph."""
        return frozenset(value.name for value in (*self.model.graph.inputs, *(out for node in self.model.graph for out in node.outputs)))


def run(job: Job) -> None:
    from edgekit import graph, qdq
    from edgekit.calibration import Statistics
    from edgekit.quant import Numbers, scale_of

    prune, calibrate = job.inputs["prune"], job.inputs["calibrate"]
    flow = read_json(prune / "flow.json")
    numbers = Numbers.from_target(job.spec["numbers"])
    statistics = Statistics.open(calibrate)
    names = sorted(path.name for path in (calibrate / "engines").iterdir())
    feeds = _real_feeds(job, flow, {name: calibrate / "engines" / name / "float.onnx" for name in names})

    engines, log = [], {}
    for name in names:
        note(f"rewriting {name}")
        engine, log[name] = _rewrite(job, name, calibrate / "engines" / name / "float.onnx", feeds.get(name, []))
        graph.save(engine.model, job.out / "engines" / name / "float.onnx")
        engines.append(engine)

    skips = _skips(job.spec.get("skip", []), engines)
    for engine in engines:
        if numbers.outputs:
            ports = [port for step in flow["steps"] if step["engine"] == engine.name for way in ("give", "stack") for port, name in step.get(way, {}).items() if name in flow["outputs"]]
            for layer in qdq.last_layers(engine.model, ports):
                skips[engine.name].setdefault(layer, "gives a result: integers would leave it 256 values")
        for node in qdq.too_coarse(engine.model, job.spec["int8"], partial(_seen, statistics, engine.name), numbers):
            skips[engine.name].setdefault(node, "its kernel writes in a scale that is too coarse for its values")
        engine.precisions = qdq.precisions(engine.model, job.spec["int8"], skips[engine.name], numbers.outputs)

    ranges = _ranges(job, flow, engines, statistics)
    for engine in engines:
        own = {tensor: r for tensor, (r, _) in ranges[engine.name].items()}
        integer = qdq.insert_qdq(engine.model, engine.precisions, own, numbers)
        graph.save(integer, job.out / "engines" / engine.name / "qdq.onnx")

    def scale(engine: _Engine, tensor: str, r: Range) -> float:
        return scale_of(r, numbers.as_symmetric() if tensor in engine.precisions.symmetric else numbers).scale

    write_json(
        job.out / "ranges.json",
        {
            e.name: {
                tensor: {"low": r.low, "high": r.high, "scale": scale(e, tensor, r), "from": source} for tensor, (r, source) in ranges[e.name].items()
            }
            for e in engines
        },
    )
    write_json(job.out / "skipped.json", {e.name: e.precisions.skipped for e in engines})
    write_json(
        job.out / "layers.json",
        {
            e.name: {"int8": e.precisions.int8, "fused": e.precisions.fused, "fp32": e.fp32, "tensors": e.precisions.observed}
            for e in engines
        },
    )
    write_json(job.out / "rewrites.json", log)


def _seen(statistics: Statistics, engine: str, tensor: str) -> Range | None:
    histogram = statistics.find(engine, tensor)
    return None if histogram is None else histogram.minmax()


# --------------------------------------------------------------------------- rewrites


def _real_feeds(job: Job, flow: dict, paths: dict[str, Path]) -> dict[str, list[dict]]:
    """What the first clips feed to each engine, to prove rewrites on; at most four feeds an engine."""
    from itertools import islice

    from edgekit.backends import onnxruntime
    from edgekit.calibration import batches
    from edgekit.flow import run_flow

    feeds: dict[str, list[dict]] = {name: [] for name in paths}
    if not job.spec["rewrites"]:
        return feeds

    def keep(engine: str, fed: dict, outputs: object) -> None:
        if len(feeds[engine]) < 2 * PROOF_CLIPS:
            feeds[engine].append(dict(fed))

    sessions = {name: onnxruntime.simulate(path) for name, path in paths.items()}
    for _, inputs in islice(batches(job.files["data"], read_json(job.inputs["prune"] / "preprocess.json")), PROOF_CLIPS):
        run_flow(flow, sessions, inputs, keep)
    return feeds


def _rewrite(job: Job, name: str, path: Path, feeds: list[dict]) -> tuple[_Engine, list[dict]]:
    """Apply the target's rewrites one by one, each measured against the graph before it."""
    from edgekit import graph, rewrites
    from edgekit.backends import onnxruntime

    engine = _Engine(name, graph.load(path), {}, [])
    log: list[dict] = []
    before = None
    for rewrite in job.spec["rewrites"]:
        changes = rewrites.apply(engine.model, rewrite)
        if not changes:
            continue
        for change in changes:
            engine.words.update(change.tensors)
            engine.fp32 += change.fp32
        if before is None:
            original = onnxruntime.simulate(path)
            before = [original(fed) for fed in feeds]
        step = job.scratch / f"{name}.onnx"
        graph.save(engine.model, step)
        rewritten = onnxruntime.simulate(step)
        after = [rewritten(fed) for fed in feeds]
        step.unlink()
        max_abs, largest = _difference(before, after)
        if not max_abs <= graph.PROOF_TOLERANCE * max(largest, 1e-3):  # NaN fails
            raise EdgekitError(
                f"engine `{name}`: rewrite `{rewrite}` changes the outputs by {max_abs:.3g} (max_abs), the largest is {largest:.3g}",
                "this is a bug of the rewrite; leave it out of the target's `rewrites` and report it",
            )
        before = after
        sites = [change.site for change in changes]
        log.append({"rewrite": rewrite, "sites": sites, "max_abs": max_abs, "largest_output": largest, "runs": len(feeds)})
    nodes = {node.name for node in engine.model.graph}
    engine.fp32 = [node for node in engine.fp32 if node in nodes]
    return engine, log


def _difference(want: list[dict], got: list[dict]) -> tuple[float, float]:
    """(largest absolute difference, largest absolute value) over all outputs of all runs."""
    import numpy as np

    pairs = [(w[name], g[name]) for w, g in zip(want, got, strict=True) for name in w]
    differences = [float(np.max(np.abs(g - w))) for w, g in pairs]
    worst = float("nan") if any(d != d for d in differences) else max(differences, default=0.0)
    return worst, max((float(np.max(np.abs(w))) for w, _ in pairs), default=0.0)


def _skips(patterns: list[str], engines: list[_Engine]) -> dict[str, dict[str, str]]:
    """{engine: {layer: reason}} of the recipe's globs over `layer` and `engine/layer`.

    Raises:
        RecipeError: a glob that no layer matches.
    """
    from difflib import get_close_matches
    from fnmatch import fnmatchcase

    from edgekit.graph import MAC_OPS

    layers = {(e.name, node.name) for e in engines for node in e.model.graph if node.op_type in MAC_OPS}
    skips: dict[str, dict[str, str]] = {e.name: {} for e in engines}
    for pattern in patterns:
        matches = [(e, layer) for e, layer in layers if fnmatchcase(layer, pattern) or fnmatchcase(f"{e}/{layer}", pattern)]
        if not matches:
            close = get_close_matches(pattern, [f"{e}/{layer}" for e, layer in layers], n=1, cutoff=0.3)
            raise RecipeError(f"`quantize.skip`: `{pattern}` matches no layer", f"for example `{close[0]}`" if close else None)
        for engine, layer in matches:
            skips[engine].setdefault(layer, f"quantize.skip: {pattern}")
    return skips


# --------------------------------------------------------------------------- ranges


def _ranges(job: Job, flow: dict, engines: list[_Engine], statistics: Statistics) -> dict[str, dict[str, tuple[Range, str]]]:
    """The range of every tensor that an INT8 layer reads or writes, and where it comes from."""
    from edgekit import qdq
    from edgekit.quant import Numbers, Range

    observed = _observe_missing(job, flow, engines, statistics)
    percent = {} if job.spec.get("percentile") is None else {"percent": job.spec["percentile"]}
    numbers = Numbers.from_target(job.spec["numbers"])

    def of_data(engine: str, tensor: str, numbers: Numbers = numbers) -> Range:
        histogram = statistics.find(engine, tensor) or observed.find(engine, tensor)
        return histogram.observe(job.spec["observer"], numbers=numbers, **percent)

    found: dict[str, dict[str, tuple[Range, str]]] = {}
    for engine in engines:
        mine = found.setdefault(engine.name, {})
        sources = {tensor: _source(engine, statistics, tensor) for tensor in engine.precisions.observed}
        for tensor, (source, kind) in sources.items():
            if kind == "bound":
                mine[tensor] = (Range(*map(float, source.split())), "bound")
            else:
                found_range = of_data(engine.name, source, numbers.as_symmetric() if tensor in engine.precisions.symmetric else numbers)
                kept = qdq.useful(engine.model, tensor, found_range)
                word = "observed" if source == tensor else f"same_as {source}"
                mine[tensor] = (kept, word if kept == found_range else f"{word}, without what its readers cannot tell apart")
        shared = qdq.joined(engine.precisions, {tensor: r for tensor, (r, _) in mine.items()})
        mine.update({tensor: (r, "joined by a Concat") for tensor, r in shared.items()})
        for tensor, written in qdq.passed_on(engine.model, engine.precisions).items():
            mine[tensor] = (mine[written][0], f"same_as {written}")
        # Both ends of a state get one range: the device feeds the integers back as they are.
        for pair in flow.get("states", {}).get(engine.name, []):
            ends = (pair["in"], pair["out"])
            readers = [tensor for tensor, (source, _) in sources.items() if source in ends]
            if readers:
                both = of_data(engine.name, ends[0]).union(of_data(engine.name, ends[1]))
                mine.update(dict.fromkeys((*ends, *readers), (both, f"state {ends[0]} = {ends[1]}")))
        looped = qdq.tied(engine.model, engine.precisions, {tensor: r for tensor, (r, _) in mine.items()})
        mine.update({tensor: (r, "loop state") for tensor, r in looped.items()})
    return found


def _source(engine: _Engine, statistics: Statistics, tensor: str) -> tuple[str, str]:
    """Follow `same_as` to (tensor with a histogram, "histogram"), ("low high", "bound") or (tensor, "observe")."""
    from edgekit import graph

    rearranged = graph.aliases(engine.model)
    seen: list[str] = []
    while True:
        if statistics.find(engine.name, tensor) is not None:
            return tensor, "histogram"
        word = engine.words.get(tensor, "observe")
        if word.startswith("bound "):
            return word.removeprefix("bound "), "bound"
        seen.append(tensor)
        after = word.removeprefix("same_as ") if word.startswith("same_as ") else rearranged.get(tensor)
        if after is None or after in seen:  # the graph may have lost the last of them to another rewrite
            return next((name for name in reversed(seen) if name in engine.tensors), tensor), "observe"
        tensor = after


def _observe_missing(job: Job, flow: dict, engines: list[_Engine], statistics: Statistics) -> Statistics:
    """One more pass over the clips, for tensors of INT8 layers that no statistics cover; none if there are none."""
    from edgekit.backends import onnxruntime
    from edgekit.calibration import Statistics, batches, observe

    wanted: dict[str, list[str]] = {}
    for engine in engines:
        sources = (_source(engine, statistics, tensor) for tensor in engine.precisions.observed)
        missing = dict.fromkeys(source for source, kind in sources if kind == "observe")
        if missing:
            wanted[engine.name] = list(missing)
    if not wanted:
        return Statistics({})
    sessions = {
        e.name: onnxruntime.simulate(job.out / "engines" / e.name / "float.onnx", also=wanted.get(e.name, ())) for e in engines
    }
    data = job.files["data"]
    spec = read_json(job.inputs["prune"] / "preprocess.json")
    return observe(flow, sessions, wanted, track(batches(data, spec), "observing new tensors", total=len(data.ids)))

"""`edgekit compare A B` in Python: open both, feed both, measure, judge.

The loop holds one sample at a time. What it does beside running the two models is kept under a tenth of that.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import edgekit
from edgekit import progress
from edgekit.artifact import tool_version
from edgekit.compare import decibel
from edgekit.errors import DataError, UsageError
from edgekit.flow import primaries, task_of
from edgekit.metrics import DEFAULTS, METRICS, Metric, Task, is_varied, paired_bootstrap
from edgekit.parity.flows import BundleSide, FlowSide, coverage_of
from edgekit.parity.gaps import gaps
from edgekit.parity.measure import Accumulator, Limits, tolerance
from edgekit.parity.pairing import aligned, feeds_of, pair_outputs, read_map
from edgekit.parity.recorded import RecordedSide
from edgekit.parity.release import release_diff
from edgekit.parity.result import DIFFERS, SAME, Comparison, SideInfo, Slice, TaskMetric
from edgekit.parity.runners import Options, Side, kind_of, open_side, split_words
from edgekit.parity.samples import Sample, Samples, Wish, of_arrays, open_samples
from edgekit.parity.stream import Cut, Streams, one_graph
from edgekit.parity.tolerance import Cost, cost
from edgekit.slices import bins

DEFAULT_STEPS = 64
LIBRARIES = ("numpy", "onnxruntime", "onnx", "openvino", "ai-edge-litert", "torch")

Tolerances = float | Mapping[str, float] | None
Data = str | Path | Iterable[Mapping[str, np.ndarray]] | None


def compare(
    a: str | Path | Side,
    b: str | Path | Side,
    data: Data = None,
    *,
    atol: Tolerances = None,
    rtol: Tolerances = None,
    check_error_stat: str | Mapping[str, str] | None = None,
    quantile: float = 0.99,
    min_sqnr_db: Tolerances = None,
    min_cosine: Tolerances = None,
    infinities_compare_equal: bool = False,
    mapping: str | Path | Mapping[str, str] | None = None,
    outputs: Sequence[str] = (),
    samples: int | None = None,
    seed: int = 0,
    val_range: Mapping[str, tuple[float, float]] | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    stream: bool = False,
    stream_axis: int | None = None,
    steps: int | None = None,
    chunk_a: int | None = None,
    chunk_b: int | None = None,
    rate_hz: float | None = None,
    states: Mapping[str, str] | None = None,
    threads: int | None = None,
    cache: str | Path = ".edgekit",
    condition: str | None = None,
    keep: int = 0,
    on_sample: Callable[[str, Mapping[str, np.ndarray], Mapping[str, np.ndarray], Mapping[str, np.ndarray]], None] | None = None,
) -> Comparison:
    """Run A and B on the same data and say whether, where and by how much B differs.

    Args:
        a, b: what `runners.open_side` opens; A is the reference. An open side stays open.
        data: what `samples.open_samples` opens, or dicts {input: array}; by default what a recording or a bundle brings
            along, else eight random samples. Two bundles without data are compared as releases, and nothing is run.
        atol, rtol: absolute and relative tolerance, for all outputs or {output: tolerance}, "" for the others. Without any
            tolerance the default depends on the numbers of both sides, and `Tolerance.why` says which it is.
        check_error_stat: elemwise, max, mean, median or quantile, as in Polygraphy.
        min_sqnr_db, min_cosine: further limits, over all samples together.
        infinities_compare_equal: the same infinity on both sides is no error.
        mapping: {B's name: A's name} of inputs and outputs, or the path of a YAML file with that.
        outputs: A's outputs to compare; all if empty.
        samples: the first so many only.
        seed, val_range, input_shapes: of random data; {input: (low, high)} and {input: shape}, "" for all other inputs.
        stream: samples are streams; states are carried from call to call.
        stream_axis: the inputs' time axis; by default a call takes one step and the data has an axis 1 more.
        steps: length of random streams.
        chunk_a, chunk_b: steps per call where a side leaves that free; by default the whole stream.
        rate_hz: steps a second, for the time axis.
        states: {input: output} pairs of single graphs; by default `x_in` and `x_out`.
        threads: inside one op; all cores if None.
        cache: edgekit's cache, for generated data sets and pruned models.
        condition: of conditions.CONDITIONS: clips of a data set are changed so before they are preprocessed.
        keep: put tensors of the first so many samples into `Comparison.kept`.
        on_sample: called as on_sample(id, feeds, outputs of A, outputs of B), such as to write them down.

    Raises:
        UsageError, DataError, RecipeError: what was asked for is not there, or names, shapes or data do not fit.
        ToolMissing: a runtime is not installed.
        IntegrityError: a file is damaged.
    """
    limits = Limits(_table(atol), _table(rtol), _table(check_error_stat), quantile, _table(min_sqnr_db), _table(min_cosine))
    options = Options(threads, Path(cache), states)
    if data is None and not stream and _is_bundle(a) and _is_bundle(b):
        return _releases(str(a), str(b))
    names = read_map(Path(mapping)) if isinstance(mapping, str | Path) else dict(mapping or {})
    started = time.perf_counter()
    with ExitStack() as stack:
        side_a, side_b = (side if isinstance(side, Side) else stack.enter_context(open_side(side, options)) for side in (a, b))
        whole = side_a, side_b
        if stream:
            side_a, side_b = one_graph(side_a), one_graph(side_b)
        wish = Wish(seed, val_range or {}, input_shapes or {}, (steps or DEFAULT_STEPS) if stream else None, stream_axis, samples, condition)
        source = _source(data, side_a, side_b, names, wish, options)
        for side in (side_a, side_b):
            if isinstance(side, RecordedSide) and source.ids is not None:
                side.rename(source.ids)
        if not stream:
            _one_way_of_states(side_a, side_b)
        pairs, only_a, only_b = pair_outputs(side_a, side_b, names, outputs, without_states=stream)
        limits.check_names([name for name, _ in pairs])
        measured = Cost() if all(limits.is_given(name) for name, _ in pairs) else cost(side_a, side_b, names, source, stream, 1 if stream_axis is None else stream_axis)
        accumulators = [Accumulator(pair, tolerance(pair[0], limits, side_a.numbers, side_b.numbers, measured.limits.get(pair[0])), infinities_compare_equal) for pair in pairs]
        run = _Run(side_a, side_b, names, accumulators, keep, on_sample, {} if stream else _speech(whole, source.metrics))
        run.seconds["open"] = time.perf_counter() - started
        streams = Streams(side_a, side_b, names, Cut(1 if stream_axis is None else stream_axis, chunk_a, chunk_b, rate_hz)) if stream else None
        for sample in progress.track(run.timed(source), "comparing", None if source.ids is None else len(source.ids)):
            run.stream(sample, streams) if streams is not None else run.sample(sample)
        if not run.count:
            raise DataError(f"{source.text}: no samples", "give data with at least one")
        with _Clock(run.seconds, "compare"):
            found = [accumulator.result() for accumulator in accumulators]
        reasons = [output.reason for output in found if output.reason] + list(measured.reasons)
        streamed = None
        if streams is not None:
            with _Clock(run.seconds, "checks"):
                streamed, failed = streams.result(accumulators)
            reasons = failed + reasons  # a lost state explains the outputs
        release = release_diff(whole[0].bundle, whole[1].bundle) if all(isinstance(side, BundleSide) for side in whole) else None  # type: ignore[attr-defined]
        made = Comparison(
            a=side_a.info(), b=side_b.info(), verdict=DIFFERS if reasons else SAME, reasons=tuple(reasons),
            data=source.info(run.count, run.labelled()), outputs=tuple(found), metrics=run.metrics(source.metrics, pairs),
            stream=streamed, release=release, bisect=measured.layers, slices=run.slices(source.metrics), only_a=tuple(only_a), only_b=tuple(only_b),
            provenance=provenance(), seconds=run.seconds, kept=run.everything_kept(),
        )  # fmt: skip
        return with_gaps(made)


def with_gaps(found: Comparison) -> Comparison:
    """`found` with what it does not show under provenance, `open`; again where more was found out since."""
    return replace(found, provenance={**found.provenance, "open": gaps(found)})


def provenance() -> dict[str, Any]:
    """Versions of what computed the numbers, and the machine's kind."""
    versions = {name: version for name in LIBRARIES if (version := tool_version(name)) is not None}
    return {"edgekit": edgekit.__version__, "python": platform.python_version(), "machine": platform.machine(), "versions": versions, "open": []}


def _source(data: Data, a: Side, b: Side, names: Mapping[str, str], wish: Wish, options: Options) -> Samples:
    if data is None or isinstance(data, str | Path):
        return open_samples(None if data is None else str(data), a, b, names, wish, options)
    return of_arrays(data)


def _one_way_of_states(a: Side, b: Side) -> None:
    """Single calls start from the states that the data give, which a side that keeps its own cannot take.

    Raises:
        UsageError: one side is such a one, and the other is not.
    """
    if a.is_opaque == b.is_opaque:
        return
    inside = a if a.is_opaque else b
    raise UsageError(f"{inside.text}: its states cannot be set from outside, so single calls of it and of {(b if a.is_opaque else a).text} start from different ones", "add `--stream`: both then carry their own from the start")


def _speech(sides: Sequence[Side], own: Mapping[str, Metric]) -> dict[str, list[Metric]]:
    """{output that is speech: metrics that score it clip by clip}, as a flow says; nothing where no side is such a flow."""
    flows = [side.flow for side in sides if isinstance(side, FlowSide) and task_of(side.flow) == "speech"]
    if not flows:
        return {}
    fitting = [metric for metric in own.values() if metric.task == "speech"] or [METRICS[name] for name in DEFAULTS["speech"]]
    return dict.fromkeys(primaries(flows[0]), fitting)


def _table(value: Any) -> dict[str, Any]:
    """One value for all as {"": value}."""
    return dict(value) if isinstance(value, Mapping) else {} if value is None else {"": value}


def _is_bundle(side: str | Path | Side) -> bool:
    if isinstance(side, Side):
        return False
    path, words = split_words(str(side))
    return not words and path.exists() and kind_of(path) == "bundle"


def _releases(a: str, b: str) -> Comparison:
    """Two bundles, of which neither is run."""
    from edgekit.bundle import open_bundle

    with open_bundle(a) as first, open_bundle(b) as second:
        first.verify()
        second.verify()
        release = release_diff(first, second)
        infos = [SideInfo(text, "bundle", {}, {}, numbers="int8", facts={"manifest_sha256": bundle.manifest.get("sha256"), "target": (bundle.manifest.get("target") or {}).get("name"), **coverage_of(bundle)}) for text, bundle in ((a, first), (b, second))]
    parts = list(dict.fromkeys(change.part for change in release.changes))
    reasons = (f"{len(release.changes)} things changed, in {', '.join(parts)}",) if parts else ()
    return with_gaps(Comparison(*infos, verdict=DIFFERS if parts else SAME, reasons=reasons, release=release, provenance=provenance()))


class _Run:
    """The two sides at work; what is kept of every sample is a few numbers."""

    def __init__(self, a: Side, b: Side, names: Mapping[str, str], accumulators: list[Accumulator], keep: int, on_sample: Any, speech: Mapping[str, list[Metric]]):
        """
        Args:
            speech: outputs that are scored clip by clip, and by what: hundreds of waves are not kept for it.
        """
        self._speech = speech
        self.a, self.b, self._names, self._accumulators, self._keep, self._on_sample = a, b, names, accumulators, keep, on_sample
        self.seconds = {"open": 0.0, "data": 0.0, "a": 0.0, "b": 0.0, "compare": 0.0, "checks": 0.0}
        self.kept: dict[str, np.ndarray] = {}
        self.count = 0
        self._labels: list[Mapping[str, float | np.ndarray]] = []
        self._tags: list[Mapping[str, float | str]] = []
        self._answers: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {}  # of outputs that are one number, or have a label

    def timed(self, source: Samples) -> Iterable[Sample]:
        """The samples, their making counted as `data`."""
        iterator = iter(source)
        while True:
            with _Clock(self.seconds, "data"):
                sample = next(iterator, None)
            if sample is None:
                return
            yield sample

    def sample(self, sample: Sample) -> None:
        with _Clock(self.seconds, "compare"):
            feeds = feeds_of(self.a, sample.feeds, {}), feeds_of(self.b, sample.feeds, self._names)
        with _Clock(self.seconds, "a"):
            a = self.a.run(feeds[0], sample=sample.id)
        with _Clock(self.seconds, "b"):
            b = self.b.run(feeds[1], sample=sample.id)
        with _Clock(self.seconds, "compare"):
            for accumulator in self._accumulators:
                name, partner = accumulator.names
                x, y = aligned(self.a, self.b, name, _given(self.a, a, name), _given(self.b, b, partner))
                accumulator.add(sample.id, x, y)
                if name in self._speech and name in sample.labels:
                    pair = self._answers.setdefault(name, ([], []))
                    for scores, wave in zip(pair, (x, y), strict=True):
                        scores.append(_scores(self._speech[name], sample.labels[name], wave))
                elif x.size == 1 or name in sample.labels:
                    pair = self._answers.setdefault(name, ([], []))
                    pair[0].append(np.array(x, np.float64).reshape(-1))
                    pair[1].append(np.array(y, np.float64).reshape(-1))
            self._note(sample, a, b)

    def stream(self, sample: Sample, streams: Streams) -> None:
        with _Clock(self.seconds, "compare"):
            feeds = streams.feeds(sample.id, sample.feeds)
        played = {}
        for name in ("a", "b"):
            with _Clock(self.seconds, name):
                played[name] = streams.play(name, feeds[name], sample.id)
        with _Clock(self.seconds, "compare"):
            streams.add(sample.id, self._accumulators, played["a"], played["b"])
            self._note(sample, played["a"], played["b"])

    def _note(self, sample: Sample, a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> None:
        if self.count < self._keep:
            for part, tensors in (("a", a), ("b", b), ("input", sample.feeds)):
                self.kept.update({f"{sample.id}/{part}/{name}": np.array(value) for name, value in tensors.items()})
        if self._on_sample is not None:
            self._on_sample(sample.id, sample.feeds, a, b)
        self.count += 1
        self._labels.append({name: 0.0 if name in self._speech else value for name, value in sample.labels.items()})
        self._tags.append(sample.tags)

    def labelled(self) -> list[str]:
        """Outputs with a finite label in every sample."""
        named = [name for name in self._accumulators_by_name() if all(name in labels for labels in self._labels)]
        return [name for name in named if all(np.isfinite(labels[name]).all() for labels in self._labels)] if self._labels else []

    def _scored(self, name: str) -> tuple[Task, np.ndarray, np.ndarray, np.ndarray] | None:
        """(task, labels, A's, B's) as the task's metrics take them; None where there is nothing to score.

        A number with a label is a value, several with one label are scores of classes, and as many as labels are a timeline. Of speech
        every clip has its scores already, a column for each metric, and the labels say no more.
        """
        if name not in self.labelled() or len(self._answers.get(name, ((), ()))[0]) != self.count or self.count < 2:
            return None
        labels = np.array([np.asarray(labels[name], np.float64).reshape(-1) for labels in self._labels])
        a, b = (np.array(values) for values in self._answers[name])
        if name in self._speech:
            return "speech", labels[:, 0], a, b
        if labels.shape[1] == 1:
            return ("value", labels[:, 0], a[:, 0], b[:, 0]) if a.shape[1] == 1 else ("classes", labels[:, 0], a, b)
        return ("timeline", labels[..., None], a[..., None], b[..., None]) if labels.shape == a.shape else None

    def _fitting(self, own: Mapping[str, Metric], task: Task, output: str) -> list[Metric]:
        """The data set's metrics that are for this task; each output stands alone here, so none that picks one of several."""
        if task == "speech":
            return [replace(metric, fn=_mean_of(column), task=None, per_clip=None) for column, metric in enumerate(self._speech[output])]
        chosen = [metric for metric in own.values() if metric.task in (task, None)] or [METRICS[name] for name in DEFAULTS[task]]
        return [metric for metric in chosen if metric.quantity is None]

    def _accumulators_by_name(self) -> list[str]:
        return [accumulator.names[0] for accumulator in self._accumulators]

    def metrics(self, own: Mapping[str, Metric], pairs: list[tuple[str, str]]) -> tuple[TaskMetric, ...]:
        """What both are worth against the labels; intervals need two samples."""
        rows = []
        for name, _ in pairs:
            scored = self._scored(name)
            if scored is None:
                continue
            task, labels, a, b = scored
            for metric in self._fitting(own, task, name):
                if metric.needs_varied_labels and not is_varied(labels):
                    continue
                change, low, high = paired_bootstrap(metric, labels, a, b)
                rows.append(TaskMetric(name, metric.name, metric.title, metric.unit, metric.direction, self.count, metric(labels, a), metric(labels, b), change, low, high))
        return tuple(rows)

    def slices(self, own: Mapping[str, Metric]) -> tuple[Slice, ...]:
        """Errors, and the first metric with the interval of its change, per bin of every tag."""
        rows = []
        scored = {name: self._scored(name) for name in self._accumulators_by_name()}
        for tag in sorted({name for tags in self._tags for name in tags}):
            cut = list(bins(tag, [tags.get(tag) for tags in self._tags]))
            for value, _, _, membership in cut if any(sum(bin[3]) > 1 for bin in cut) else ():  # one sample each is no slice
                members = [i for i, is_member in enumerate(membership) if is_member]
                for accumulator in self._accumulators if members else ():
                    name = accumulator.names[0]
                    points = [accumulator.points[i] for i in members]
                    powers = [accumulator.powers[i] for i in members]
                    sqnr = decibel(sum(p[0] for p in powers), sum(p[1] for p in powers))
                    is_within = all(p.is_within for p in points) and self._keeps_sqnr(accumulator, sqnr)
                    rows.append(Slice(tag, value, len(members), name, float(np.max([p.max_abs for p in points])), sqnr, is_within, *self._worth(own, name, scored[name], members)))
        return tuple(rows)

    @staticmethod
    def _keeps_sqnr(accumulator: Accumulator, sqnr_db: float) -> bool:
        """Whether samples taken together keep what is asked of all together."""
        least = accumulator.tolerance.min_sqnr_db
        return least is None or sqnr_db >= least

    def _worth(self, own: Mapping[str, Metric], output: str, scored: tuple[Task, np.ndarray, np.ndarray, np.ndarray] | None, members: list[int]) -> tuple[Any, ...]:
        """(metric, A's, B's, 95 % interval of the change) of the first metric over some samples; nothing without labels."""
        if scored is None or len(members) < 2:
            return ()
        task, *columns = scored
        metric = self._fitting(own, task, output)[0]
        labels, a, b = (values[members] for values in columns)
        if metric.needs_varied_labels and not is_varied(labels):
            return ()
        _, low, high = paired_bootstrap(metric, labels, a, b)
        return metric.name, metric(labels, a), metric(labels, b), low, high

    def everything_kept(self) -> dict[str, np.ndarray]:
        """`kept`, and every sample's value of outputs that have one."""
        if not self._keep:
            return {}
        answers = {name: pair for name, pair in self._answers.items() if len(pair[0]) == self.count}
        # Of speech the first metric's score.
        values = {f"*/{side}/{name}": _column([row[:1] for row in pair[i]] if name in self._speech else pair[i]) for name, pair in answers.items() for i, side in enumerate("ab")}
        labels = {f"*/label/{name}": _column([np.asarray(row[name]).reshape(-1) for row in self._labels]) for name in self.labelled() if name not in self._speech}
        return {**self.kept, **values, **labels}


def _scores(metrics: Sequence[Metric], clean: np.ndarray | float, wave: np.ndarray) -> np.ndarray:
    """[metrics] of one clip; NaN where the wave is not finite."""
    pair = [np.asarray(one, np.float64).reshape(1, -1) for one in (clean, wave)]
    if not np.isfinite(pair[1]).all():
        return np.full(len(metrics), np.nan)
    return np.array([metric.per_clip(*pair)[0] for metric in metrics if metric.per_clip is not None])


def _mean_of(column: int) -> Callable[..., np.ndarray]:
    return lambda labels, values: values[..., column].mean(axis=-1)


def _column(rows: list[np.ndarray]) -> np.ndarray:
    """[samples], or [samples, n] of n numbers each."""
    values = np.array(rows)
    return values[:, 0] if values.shape[1:] == (1,) else values


def _given(side: Side, outputs: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in outputs:
        raise DataError(f"{side.text}: output `{name}` was not given out", f"it gave {', '.join(outputs) or 'nothing'}")
    return np.asarray(outputs[name])


class _Clock:
    """Adds the time of a `with` block to one entry."""

    def __init__(self, seconds: dict[str, float], name: str):
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._from = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._name] += time.perf_counter() - self._from

"""State carried over chunks on both sides: error over time, the first step that diverges, drift, reset and restore.

A stream is a sample with a time axis. Where an input of a side has that axis, a call takes a chunk
of it; where it lacks it, a call takes one step. The two sides may differ: what they give out is put
together along the axis again, and compared over the length that both reach.

What the state is worth is measured too: both sides run once with their state reset before every
call. If that changes A and does not change B alike, B loses its state, however close the outputs are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from edgekit.compare import decibel
from edgekit.errors import DataError, UsageError
from edgekit.parity.flows import FlowSide
from edgekit.parity.measure import Accumulator
from edgekit.parity.native import NativeSide
from edgekit.parity.pairing import aligned, fit
from edgekit.parity.result import StreamCheck, StreamOutput, StreamResult
from edgekit.parity.runners import Port, Side

MAX_BINS = 400
# Reset, restore and the state's effect are run on the first calls of the first stream: so many that it costs a tenth of the whole.
LEAST_CHECKED, MOST_CHECKED, CHECKED_SHARE = 8, 64, 1 / 40
REPEATS = 1e-6  # of the largest output: a runtime may split its sums anew with every run, and no more than that
# A lost h or c of an LSTM takes half or more of the state's effect with it, INT8 a hundredth; what INT8 costs without any
# state is known from the runs without.
LOST_SHARE, NOISE_FACTOR = 0.25, 8.0

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Cut:
    """How streams are cut.

    Attributes:
        axis: the time axis of the data.
        chunk: along it per call where a side leaves it free; None is the whole stream.
        rate_hz: steps a second, for the curve's axis.
    """

    axis: int = 1
    chunk_a: int | None = None
    chunk_b: int | None = None
    rate_hz: float | None = None


def one_graph(side: Side) -> Side:
    """The side itself, or of a flow the one engine that carries a state, and of a native weight file its network.

    Raises:
        UsageError: the flow has none, or several.
    """
    if isinstance(side, NativeSide):
        return side.step()
    if not isinstance(side, FlowSide):
        return side
    found = side.stateful()
    if len(found) != 1:
        what = "has no engine with a state" if not found else f"has {len(found)} engines with states: {', '.join(found)}"
        raise UsageError(f"{side.text} {what}", f"name one: `{side.text}@{(found or side.engines())[0]}`")
    return side.engine(found[0])


class Player:
    """One side, called chunk by chunk."""

    def __init__(self, side: Side, mapping: Mapping[str, str], axis: int, chunk: int | None):
        self.side, self._mapping, self.axis, self._chunk = side, mapping, axis, chunk
        self._carried = {state.output for state in side.states}

    def cut(self, sample: Mapping[str, np.ndarray]) -> tuple[list[Arrays], int, bool]:
        """(feeds of every call without states, steps per call, whether a call is one step without the axis).

        Raises:
            DataError: an input is missing, has no such axis, or not one whole chunk.
        """
        axis, parts = self.axis, {}
        sizes: dict[str, int] = {}
        lengths: dict[str, int] = {}
        steps_only = True
        for name, port in self.side.data_inputs.items():
            array = sample.get(self._mapping.get(name, name))
            if array is None:
                raise DataError(f"{self.side.text}: the stream has no `{name}`", "name it in a mapping file (`--map`)")
            where = f"{self.side.text}: input `{name}`"
            if array.ndim == len(port.shape) + 1:
                if axis >= array.ndim:
                    raise DataError(f"{where}: the stream {list(array.shape)} has no axis {axis}")
                parts[name], sizes[name], lengths[name] = (array, port), 1, array.shape[axis]
                continue
            if array.ndim != len(port.shape) or axis >= array.ndim:
                raise DataError(f"{where} takes {port}, the stream is {list(array.shape)}", "a stream has the input's axes, or one more for the steps")
            steps_only = False
            parts[name], lengths[name] = (array, port), array.shape[axis]
            sizes[name] = port.shape[axis] or self._chunk or array.shape[axis]
        if not parts:
            raise DataError(f"{self.side.text}: nothing but states goes in, there is no stream to feed")
        calls = min(lengths[name] // sizes[name] for name in parts)
        if calls < 1:
            short = min(parts, key=lambda name: lengths[name] // sizes[name])
            raise DataError(f"{self.side.text}: input `{short}` takes {sizes[short]} steps a call, the stream has {lengths[short]}", "give a longer stream")
        fed = [{name: self._piece(*parts[name], sizes[name], i, f"{self.side.text}: input `{name}`") for name in parts} for i in range(calls)]
        return fed, max(sizes.values()), steps_only

    def _piece(self, array: np.ndarray, port: Port, size: int, i: int, where: str) -> np.ndarray:
        index: list[slice | int] = [slice(None)] * array.ndim
        index[self.axis] = i if array.ndim > len(port.shape) else slice(i * size, (i + 1) * size)
        return fit(array[tuple(index)], port, where)

    def start(self) -> Arrays:
        """The states at their init."""
        return {state.input: np.full(state.shape, state.init, self.side.inputs[state.input].dtype) for state in self.side.states}

    def calls(self, fed: list[Arrays], states: Arrays | None = None, reset: bool = False, stream: str | None = None) -> Iterator[tuple[Arrays, Arrays]]:
        """(outputs without states, states after) of every call."""
        states = self.start() if states is None else states
        for feeds in fed:
            outputs = self.side.run({**feeds, **(self.start() if reset else states)}, sample=stream)
            states = {state.input: np.array(outputs[state.output]) for state in self.side.states}
            yield {name: value for name, value in outputs.items() if name not in self._carried}, states

    def together(self, outputs: list[Arrays], steps_only: bool) -> Arrays:
        """Outputs of all calls along the axis; those without it get it, one entry per call."""
        joined = {}
        for name in outputs[0]:
            values = [call[name] for call in outputs]
            has_axis = not steps_only and values[0].ndim > self.axis
            joined[name] = np.concatenate(values, self.axis) if has_axis else np.stack(values, min(self.axis, values[0].ndim))
        return joined


@dataclass
class _Course:
    """One output step by step, over all streams."""

    worst: np.ndarray = field(default_factory=lambda: np.zeros(0))
    total: np.ndarray = field(default_factory=lambda: np.zeros(0))
    signal: np.ndarray = field(default_factory=lambda: np.zeros(0))
    noise: np.ndarray = field(default_factory=lambda: np.zeros(0))
    count: np.ndarray = field(default_factory=lambda: np.zeros(0))
    first: tuple[int, str] | None = None
    per_stream: list[tuple[str, np.ndarray, np.ndarray, np.ndarray, float]] = field(default_factory=list)

    def add(self, stream: str, a: np.ndarray, b: np.ndarray, atol: float, rtol: float) -> None:
        """a, b: [steps, elements]."""
        x, y = a.astype(np.float64), b.astype(np.float64)
        error = np.abs(x - y)
        size = np.where(y == 0, 2.2e-16, np.abs(y))
        beyond = (~(error <= atol) & ~(error / size <= rtol)).any(1)
        rows = {"worst": error.max(1), "total": error.sum(1), "signal": (x * x).sum(1), "noise": (error * error).sum(1), "count": np.full(len(x), x.shape[1], float)}
        for name, row in rows.items():
            before = getattr(self, name)
            grown = np.zeros(max(len(before), len(row)))
            grown[: len(before)] = before
            grown[: len(row)] = np.maximum(grown[: len(row)], row) if name == "worst" else grown[: len(row)] + row
            setattr(self, name, grown)
        self.per_stream.append((stream, rows["worst"], beyond, rows["noise"], float(rows["signal"].mean())))


class Streams:
    """Both sides over all streams; `add` each, then `result`."""

    def __init__(self, a: Side, b: Side, mapping: Mapping[str, str], cut: Cut):
        self.players = {"a": Player(a, {}, cut.axis, cut.chunk_a), "b": Player(b, mapping, cut.axis, cut.chunk_b)}
        self._cut = cut
        self._courses: dict[str, _Course] = {}
        self._first: tuple[str, dict[str, tuple[list[Arrays], bool]]] | None = None
        self._chunks = {"a": 0, "b": 0}
        self._calls = {"a": 0, "b": 0}
        self._played = {"a": 0, "b": 0}  # calls of all streams
        self._steps = self._streams = 0
        self.notes: list[str] = []

    def feeds(self, stream: str, sample: Mapping[str, np.ndarray]) -> dict[str, tuple[list[Arrays], bool]]:
        """{side: (feeds of every call, whether a call is one step)}."""
        found = {}
        for name, player in self.players.items():
            fed, size, steps_only = player.cut(sample)
            self._chunks[name] = size
            self._calls[name] = len(fed)
            found[name] = (fed, steps_only)
        if self._first is None:
            self._first = (stream, {name: (fed[:MOST_CHECKED], steps_only) for name, (fed, steps_only) in found.items()})
        return found

    def play(self, name: str, fed: tuple[list[Arrays], bool], stream: str) -> Arrays:
        """One side over one stream."""
        player = self.players[name]
        self._played[name] += len(fed[0])
        return player.together([outputs for outputs, _ in player.calls(fed[0], stream=stream)], fed[1])

    def add(self, stream: str, accumulators: list[Accumulator], a: Arrays, b: Arrays) -> None:
        """One stream's outputs, over the common length.

        Raises:
            DataError: shapes differ beside the stream axis.
        """
        self._streams += 1
        for accumulator in accumulators:
            name, partner = accumulator.names
            x, y = aligned_streams(self.players["a"].side, self.players["b"].side, name, a[name], b[partner], self._cut.axis)
            self._steps = x.shape[min(self._cut.axis, x.ndim - 1)]
            accumulator.add(stream, x, y)
            rows = (np.moveaxis(z, min(self._cut.axis, z.ndim - 1), 0).reshape(self._steps, -1) for z in (x, y))
            t = accumulator.tolerance
            elementwise = t.of_peak is None and not (t.atol is None and t.rtol is None)
            atol, rtol = ((-math.inf if v is None else v) for v in (t.atol, t.rtol)) if elementwise else (math.inf, math.inf)
            self._courses.setdefault(name, _Course()).add(stream, *rows, atol, rtol)

    def result(self, accumulators: list[Accumulator]) -> tuple[StreamResult, list[str]]:
        """What was found, and sentences on what fails."""
        checks, failed = [], []
        first: dict[str, Arrays] = {}
        without: dict[str, Arrays] = {}
        for name in ("a", "b"):
            made, first[name], without[name] = self._check(name)  # type: ignore[arg-type]
            checks += made
        for check in checks:
            if not check.is_ok:
                done = "after a reset a second run differs from the first" if check.check == "reset" else f"going on from a saved state (call {check.at_step}) differs"
                failed.append(f"side {check.side.upper()}: {done} by {check.max_abs:.4g}")
        effects, sqnr, lost = self._state_effect([acc.names for acc in accumulators], first, without)
        failed += lost
        outputs = tuple(self._output(acc) for acc in accumulators)
        states = {name: {s.input: s.output for s in player.side.states} for name, player in self.players.items()}
        return StreamResult(
            self._streams, self._steps, self._cut.axis, self._chunks["a"], self._chunks["b"], self._calls["a"], self._calls["b"],
            states["a"], states["b"], outputs, tuple(checks), effects["a"], effects["b"], sqnr, tuple(self.notes),
        ), failed  # fmt: skip

    # ------------------------------------------------------------------------- states

    def _check(self, name: str) -> tuple[list[StreamCheck], Arrays, Arrays]:
        """Reset and restore on the first stream; (checks, its outputs, its outputs with the state reset before every call)."""
        assert self._first is not None
        player, (stream, feeds) = self.players[name], self._first
        fed, steps_only = feeds[name]
        fed = fed[: max(LEAST_CHECKED, round(CHECKED_SHARE * self._played[name]))]
        middle = len(fed) // 2
        saved: Arrays = {}
        outputs = []
        for i, (given, states) in enumerate(player.calls(fed, stream=stream)):
            outputs.append(given)
            if i + 1 == middle:
                saved = {key: value.copy() for key, value in states.items()}
        again = [given for given, _ in player.calls(fed, stream=stream)]
        found = [self._same(name, "reset", outputs, again)]
        if player.side.states and middle:
            after = [given for given, _ in player.calls(fed[middle:], saved, stream=stream)]
            found.append(self._same(name, "restore", outputs[middle:], after, middle))
        elif not player.side.states:
            self.notes.append(f"side {name.upper()} shows no states: what it may keep inside cannot be reset or restored")
        reset = [given for given, _ in player.calls(fed, reset=True, stream=stream)] if player.side.states else []
        return found, player.together(outputs, steps_only), player.together(reset, steps_only) if reset else {}

    @staticmethod
    def _same(side: str, check: str, first: list[Arrays], second: list[Arrays], at: int | None = None) -> StreamCheck:
        worst = peak = 0.0
        for one, two in zip(first, second, strict=True):
            for name, value in one.items():
                off = np.abs(value.astype(np.float64) - two[name])
                worst = float(np.maximum(worst, off.max(initial=0.0)))  # NaN stays
                peak = max(peak, float(np.abs(value).max(initial=0.0)))
        return StreamCheck(side, check, worst <= REPEATS * max(peak, 1e-30), worst, at)  # type: ignore[arg-type]

    def _state_effect(self, pairs: list[tuple[str, str]], first: dict[str, Arrays], without: dict[str, Arrays]) -> tuple[dict[str, float], float, list[str]]:
        """({side: max_abs that its state makes}, SQNR of B's effect against A's, what fails)."""
        effects = {"a": math.nan, "b": math.nan}
        for side, index in (("a", 0), ("b", 1)):
            if without[side]:
                effects[side] = max((float(np.abs(first[side][p[index]].astype(np.float64) - without[side][p[index]]).max(initial=0.0)) for p in pairs), default=0.0)
        if not (without["a"] and without["b"]):
            return effects, math.nan, []
        signal = noise = floor = 0.0
        a, b = self.players["a"].side, self.players["b"].side
        for name, partner in pairs:
            x, y = aligned_streams(a, b, name, first["a"][name], first["b"][partner], self._cut.axis)
            x0, y0 = aligned_streams(a, b, name, without["a"][name], without["b"][partner], self._cut.axis)
            if x.shape != x0.shape:
                continue
            effect_a, effect_b = x.astype(np.float64) - x0, y.astype(np.float64) - y0
            signal += float((effect_a**2).sum())
            noise += float(((effect_a - effect_b) ** 2).sum())
            floor += float(((x0.astype(np.float64) - y0) ** 2).sum())
        if signal <= NOISE_FACTOR * floor:
            if noise > 0:
                self.notes.append("the state changes A less than the two differ without it: a lost state could not be told from that")
            return effects, decibel(signal, noise), []
        if self._chunks["a"] != self._chunks["b"]:
            # A reset before every call means something else where calls are of other lengths.
            self.notes.append("chunk sizes differ, so what the state is worth is not compared")
            return effects, math.nan, []
        if noise <= max(LOST_SHARE * signal, NOISE_FACTOR * floor):
            return effects, decibel(signal, noise), []
        lost = f"B loses its state, or a part of it: resetting it before every call changes A by {effects['a']:.4g} and B by {effects['b']:.4g} (max_abs)"
        return effects, decibel(signal, noise), [lost]

    # ------------------------------------------------------------------------- over time

    def _output(self, accumulator: Accumulator) -> StreamOutput:
        course, name = self._courses[accumulator.names[0]], accumulator.names[0]
        steps = len(course.worst)
        width = max(1, math.ceil(steps / MAX_BINS))
        starts = np.arange(0, steps, width)
        count = np.add.reduceat(course.count, starts)
        mean = np.divide(course.total, course.count, out=np.zeros(steps), where=course.count > 0)
        slope = float(np.polyfit(np.arange(steps), mean, 1)[0]) if steps > 1 and np.isfinite(mean).all() else 0.0
        level = float(mean.mean())
        first = self._first_divergent(course, accumulator)
        rate = self._cut.rate_hz or 1.0
        return StreamOutput(
            name,
            tuple(float(t / rate) for t in starts),
            tuple(float(v) for v in np.maximum.reduceat(course.worst, starts)),
            tuple(float(v) for v in np.add.reduceat(course.total, starts) / np.maximum(count, 1)),
            tuple(decibel(float(s), float(n)) for s, n in zip(np.add.reduceat(course.signal, starts), np.add.reduceat(course.noise, starts), strict=True)),
            None if first is None else first[0],
            None if first is None else first[1],
            slope,
            slope * (steps - 1) / level if level > 0 else 0.0,
        )

    @staticmethod
    def _first_divergent(course: _Course, accumulator: Accumulator) -> tuple[int, str] | None:
        """The earliest step of any stream beyond the tolerance: of its elements, of the peak, or of the stream's mean power."""
        t, limit = accumulator.tolerance, accumulator.limit()
        found: list[tuple[int, str]] = []
        for stream, worst, beyond, noise, signal in course.per_stream:
            if limit is not None:
                over = ~(worst <= limit)
            elif t.min_sqnr_db is not None and t.atol is None:
                over = ~(noise <= signal / 10 ** (t.min_sqnr_db / 10))
            else:
                over = beyond
            if over.any():
                found.append((int(np.argmax(over)), stream))
        return min(found, default=None)


def aligned_streams(a: Side, b: Side, name: str, x: np.ndarray, y: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Both cut to the common length along the stream axis, in one shape."""
    along = min(axis, x.ndim - 1)
    if x.ndim == y.ndim:
        common = min(x.shape[along], y.shape[along])
        cut = [slice(None)] * x.ndim
        cut[along] = slice(common)
        x, y = x[tuple(cut)], y[tuple(cut)]
    return aligned(a, b, name, x, y)

"""Where B becomes different from A: the error that every layer introduces, against the one that it inherits.

Tensors that both sides have are taps (matching.py). B is run twice: as it is, which shows the error so
far, and with every tap's readers fed from A instead, which shows what the part between two taps
adds by itself. Each is one session with all taps, nothing is compiled per layer.

Rounding to integers is an error too, and a right one. What it may cost is measured and not guessed: A is
rounded in the same places, with scales that fit its own values and weights, and its parts are run in the
same way. A part is ranked by how much more it adds than that, as a share of its own signal's power.

The graphs' states go on from call to call, A's own on the clean side, since a fault of a state shows only in one that is not zero.
"""

from __future__ import annotations

import fnmatch
import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.compare import decibel
from edgekit.document import suggestion
from edgekit.errors import DataError, UsageError
from edgekit.graph import COPY_OPS
from edgekit.parity.inside import OnnxInside, inside_of
from edgekit.parity.matching import Match, match
from edgekit.parity.measure import FLOAT_OF_PEAK, LUCK
from edgekit.parity.pairing import feeds_of, read_map
from edgekit.parity.result import Bisect, Comparisons, LayerRow
from edgekit.parity.runners import Options, Side, open_side
from edgekit.parity.samples import Samples, Wish, of_arrays, open_samples
from edgekit.parity.stream import Player
from edgekit.parity.surgery import DEQUANTIZE, QUANTIZE, Fit, Grid, Net, Rounding, rounded_twin, without_loops_rounding

Arrays = Mapping[str, np.ndarray]

MARGIN = 4.0
"""Introduced noise power over the expected one. A range of other data, an observer that clips, a wider weight scale: each may cost some dB, 6 are allowed."""
FLOAT_NOISE = 1e-5
"""RMS of float32 sums in another order, as a share of the signal's; a hundred times what one rounding costs."""
MAX_CALLS = 64
WARM_UP = 3
"""Calls before the one that tensors are matched on, where there are states."""
FAULT, ROUNDING, SAME = "fault", "rounding", "same"


def bisect(
    a: str | Path | Side,
    b: str | Path | Side,
    data: str | Path | Iterable[Arrays] | None = None,
    *,
    nodes: str | Sequence[str] | None = None,
    repro: str | Path | None = None,
    mapping: Mapping[str, str] | None = None,
    samples: int | None = None,
    seed: int = 0,
    val_range: Mapping[str, tuple[float, float]] | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    stream: bool = False,
    stream_axis: int | None = None,
    steps: int | None = None,
    states: Mapping[str, str] | None = None,
    threads: int | None = None,
    cache: str | Path = ".edgekit",
) -> Bisect:
    """Rank the layers of B by the error that they introduce.

    Args:
        a, b: graphs; A, the reference, is ONNX.
        data: as for `compare`.
        nodes: names or globs (`encoder/*`); only these layers are ranked.
        repro: folder for the first layer's part of B as ONNX, with its inputs and A's output.
        The others are those of `compare`.

    Raises:
        UsageError: a side shows no inner tensors, or `nodes` fits none.
        DataError: inputs do not match, there is no data, or no tensor of B is one of A's.
    """
    started = time.perf_counter()
    options = Options(threads, Path(cache), states)
    with open_side(a, options) as side_a, open_side(b, options) as side_b:
        wish = Wish(seed, val_range or {}, input_shapes or {}, (steps or MAX_CALLS) if stream else None, stream_axis, samples)
        source = open_samples(None if data is None else str(data), side_a, side_b, mapping or {}, wish, options) if data is None or isinstance(data, str | Path) else of_arrays(data)
        hunt = Hunt(side_a, side_b, mapping or {}, Calls(side_a, source, stream, 1 if stream_axis is None else stream_axis), threads)
        found = hunt.run([nodes] if isinstance(nodes, str) else list(nodes or ()))
        minimal = hunt.save_repro(found[0], Path(repro)) if repro is not None and found else {}
    return hunt.result(found, time.perf_counter() - started, minimal)


def with_layers(every: Comparisons, a: str, b: str, data: str | None, mapping: Path | None = None, **how: Any) -> Comparisons:
    """The one comparison with its layers ranked, as the command line has it; arguments are those of `bisect`."""
    from edgekit.parity.check import with_gaps

    found = bisect(a, b, data, mapping=None if mapping is None else read_map(mapping), **how)
    return replace(every, comparisons=(with_gaps(replace(every.comparisons[0], bisect=found)),))


class Calls:
    """A's feeds without states, call by call: (sample, whether its states start anew, feeds).

    Args:
        stream: samples are streams along `axis`, and cut into calls.
        samples, calls: take no more than the first so many.
    """

    def __init__(self, side: Side, source: Samples, stream: bool, axis: int, samples: int | None = None, calls: int = MAX_CALLS):
        self._side, self._source, self._stream, self._axis, self._samples, self._calls = side, source, stream, axis, samples, calls

    def __iter__(self) -> Iterator[tuple[str, bool, Arrays]]:
        return itertools.islice(self._all(), self._calls)

    def _all(self) -> Iterator[tuple[str, bool, Arrays]]:
        carried = {state.input for state in self._side.states}
        player = Player(self._side, {}, self._axis, None) if self._stream else None
        for sample in itertools.islice(self._source, self._samples):
            if player is not None:
                fed = player.cut(sample.feeds)[0]
                yield from ((sample.id, i == 0, feeds) for i, feeds in enumerate(fed))
            else:
                feeds = feeds_of(self._side, sample.feeds, {})
                yield sample.id, False, {name: value for name, value in feeds.items() if name not in carried or name in sample.feeds}


@dataclass
class _Sums:
    """One tap over all calls, in B's layout."""

    signal: float = 0.0
    introduced: float = 0.0
    so_far: float = 0.0
    expected: float = 0.0
    peak: float = 0.0
    max_abs: float = 0.0
    is_finite: bool = True
    worst: int = 0
    """The call with the largest introduced error."""
    note: str = ""
    size: int = 1
    calls: int = 0
    floor: float = 0.0
    """Expected power by arithmetic, where the part does nothing but round."""

    @property
    def allowed(self) -> float:
        """Introduced power that is no fault: float32's own noise, and MARGIN of the expected; of few elements more, since either noise may be small by luck."""
        luck = math.exp(LUCK / math.sqrt(self.size * math.sqrt(max(self.calls, 1))))
        return MARGIN * max(self.expected * luck, self.floor) + FLOAT_NOISE**2 * self.signal


@dataclass(frozen=True)
class Found:
    """A row and where it comes from."""

    row: LayerRow
    score: float
    worst: int
    matched: Mapping[str, Match] = field(repr=False, default_factory=dict)


class Hunt:
    """One pair of graphs."""

    def __init__(self, a: Side, b: Side, mapping: Mapping[str, str], calls: Calls, threads: int | None):
        self._side_a, self._side_b, self._map, self._calls = a, b, mapping, calls
        if a.engine_graph() is None:
            raise UsageError(f"{a.text}: the reference of a bisection is an ONNX file", "put the ONNX file first")
        self.a, self.b = inside_of(a, threads), inside_of(b, threads)
        self._states = {state.input: (state.output, np.full(state.shape, state.init, a.inputs[state.input].dtype)) for state in a.states}
        self._states_b = {state.input: (state.output, np.full(state.shape, state.init, b.inputs[state.input].dtype)) for state in b.states}
        self._ours = {name: mapping.get(name, name) for name in b.inputs}
        missing = [theirs for theirs, ours in self._ours.items() if ours not in a.inputs]
        if missing:
            raise DataError(f"{b.text}: input `{missing[0]}` is none of A's", suggestion(missing[0], list(a.inputs)) or "name its partner in a mapping file (`--map`)")
        self.unmatched_a: list[str] = []
        self.unmatched_b: list[str] = []
        self._engine = a.path.parent.name if a.path.name in ("float.onnx", "qdq.onnx", "model.onnx") else a.path.stem

    # ------------------------------------------------------------------------- running

    def _feeds(self, run: Any) -> Iterator[tuple[int, Arrays, dict[str, np.ndarray]]]:
        """(number, feeds, what `run` gives) of every call of A, states carried."""
        states: dict[str, np.ndarray] = {}
        for i, (_, is_first, feeds) in enumerate(self._calls):
            if is_first or not i:
                states = {name: init for name, (_, init) in self._states.items()}
            fed = {**states, **feeds}
            given = run(fed)
            states = {name: given[output] for name, (output, _) in self._states.items()}
            yield i, fed, given

    def _feeds_b(self, fed: Arrays, states: Arrays, is_fresh: bool) -> dict[str, np.ndarray]:
        """B's feeds, its own states among them unless A's come from the data."""
        own = {name: init for name, (_, init) in self._states_b.items()} if is_fresh else states
        plain = {theirs: _shaped(fed[ours], self._side_b.inputs[theirs].shape) for theirs, ours in self._ours.items()}
        return {**plain, **own}

    # ------------------------------------------------------------------------- the hunt

    def run(self, globs: list[str]) -> list[Found]:
        self.match()
        rows = self.rows(globs)
        return self._ranked(rows, self._measure(rows))

    def result(self, found: Sequence[Found], seconds: float, minimal: Mapping[str, Any] | None = None) -> Bisect:
        return Bisect(tuple(row.row for row in found), _modules(found), len(found), tuple(self.unmatched_a), tuple(self.unmatched_b), dict(minimal or {}), seconds)

    def match(self) -> None:
        """Find B's tensors in A: `matched`, and the parts between them.

        Raises:
            DataError: none is there.
        """
        a, b = self.a.net, self.b.net
        self._values_a, self._values_b, fed = values_a, values_b, _ = self._first()

        def clean(matched: Mapping[str, Match]) -> Arrays:
            run = self.b.open_loose(matched, values_b, [name for name in b.tensors if name in values_b])
            return run({**fed, **{name: m.to_b(values_a[m.a]).astype(values_b[name].dtype, copy=False) for name, m in matched.items()}})

        self.matched = match(a, b, self._ours, values_a, values_b, clean)
        taken = {m.a for m in self.matched.values()}
        self.unmatched_a = [name for name in a.tensors if name in values_a and name not in taken and a.op(name) not in DEQUANTIZE]
        self.unmatched_b = [name for name in b.tensors if name in values_b and name not in self.matched and b.op(name) not in DEQUANTIZE]
        self.parts_a = {m.a: a.part(m.a, taken) for m in self.matched.values() if m.a in a.producer}
        self.parts_b = {name: b.part(name, self.matched) for name in self.matched if name in b.producer}
        if not self.parts_a or not self.parts_b:
            raise DataError(f"{self._side_a.text} and {self._side_b.text}: no inner tensor of one is found in the other", "are these the same model?")

    def _first(self) -> tuple[Arrays, Arrays, dict[str, np.ndarray]]:
        """Every float tensor of both on one call, and B's feeds of it."""
        run_a, run_b = self.a.open([*self.a.net.inputs, *self.a.net.tensors]), self.b.open([*self.b.net.inputs, *self.b.net.tensors])
        states: dict[str, np.ndarray] = {}
        number = -1
        for number, fed, given in self._feeds(run_a):  # noqa: B007  the last one is kept
            fed_b = self._feeds_b(fed, states, not number)
            given_b = run_b(fed_b)
            states = {name: given_b[output] for name, (output, _) in self._states_b.items()}
            if not self._states or number + 1 >= WARM_UP:
                break
        if number < 0:
            raise DataError("there is no data to bisect on", "give at least one sample")
        return _floats(given), _floats(given_b), fed_b

    def rows(self, globs: list[str]) -> dict[str, tuple[str, str]]:
        """{B's tap: (node, op)} of what is ranked."""
        named = {}
        for name in self.matched:
            if name in self.parts_b and self.matched[name].a in self.parts_a:
                node = self.a.net.layer(self.parts_a[self.matched[name].a])
                named[name] = (node.name or self.matched[name].a, node.op_type)
        if not globs:
            return named
        chosen = {name: row for name, row in named.items() if any(fnmatch.fnmatchcase(row[0], glob) or row[0] == glob for glob in globs)}
        if not chosen:
            raise UsageError(f"no layer is called {globs[0]}", suggestion(globs[0], [row[0] for row in named.values()]) or "names and globs of nodes, such as encoder/*")
        return chosen

    def roundings(self, rows: Iterable[str]) -> list[Rounding]:
        return [r for name in rows if (r := self.b.rounding(name, self.matched[name].a, self.matched)).is_any]

    def _measure(self, rows: Mapping[str, tuple[str, str]]) -> dict[str, _Sums]:
        values_a, values_b = self._values_a, self._values_b
        needed = {*rows, *(tap for name in rows for tap in self.parts_b[name].taps if tap in self.matched)}
        taps_a = [self.matched[name].a for name in self.matched]
        state_ends = [output for output, _ in self._states.values()], [output for output, _ in self._states_b.values()]
        roundings = self.all_roundings = self.roundings(rows)
        run_a = self.a.open([*taps_a, *state_ends[0]])
        run_b = self.b.open([*needed, *state_ends[1]])
        loose = self.b.open_loose(self.matched, values_b, rows)
        fits = self.all_fits = self.fits(roundings)
        twin = self._twin(roundings, fits, values_a, [self.matched[name].a for name in rows])
        loops = self._loops(rows)
        sums = {name: _Sums(note=self._note(name, roundings, fits)) for name in needed}
        steps = self._bare_steps(roundings, fits)
        states: dict[str, np.ndarray] = {}
        fresh = [is_first for _, is_first, _ in self._calls] if self._states_b else []
        for i, fed, given in self._feeds(run_a):
            fed_b = self._feeds_b(fed, states, not i or (bool(fresh) and fresh[i]))
            running = run_b(fed_b)
            states = {name: running[output] for name, (output, _) in self._states_b.items()}
            clean = {name: m.to_b(given[m.a]).astype(values_b[name].dtype, copy=False) for name, m in self.matched.items()}
            alone = loose({**fed_b, **clean})
            expected = twin({**fed, **given}) if twin is not None else {}
            for name, value in loops({**fed_b, **clean}).items() if loops is not None else ():
                sums[name].expected += _power(alone[name], value)[0]
            for name in needed:
                sums[name].floor += steps.get(name, 0.0) ** 2 / 12 * clean[name].size
                self._add(sums[name], i, clean[name], running[name], alone.get(name), expected.get(self.matched[name].a), self.matched[name])
        return sums

    def _twin(self, roundings: list[Rounding], fits: Mapping[tuple[str, Grid], Fit], examples: Arrays, wanted: list[str]) -> Any:
        """A, rounded where B is, its parts by themselves; None where B rounds nothing."""
        if not roundings:
            return None
        net = Net(rounded_twin(self.a.net, self.parts_a, roundings, fits))
        return self.a.open_loose({m.a: m for m in self.matched.values()}, examples, wanted, net)

    def _loops(self, rows: Iterable[str]) -> Any:
        """B's parts with loops that round inside, without that rounding: what it costs is the difference. None where there is none."""
        model = without_loops_rounding(self.b.net) if isinstance(self.b, OnnxInside) else None
        if model is None:
            return None
        wanted = [name for name in rows if any(a.HasField("g") for i in self.parts_b[name].nodes for a in self.b.net.nodes[i].attribute)]
        return self.b.open_loose(self.matched, self._values_b, wanted, Net(model)) if wanted else None

    def _bare_steps(self, roundings: Iterable[Rounding], fits: Mapping[tuple[str, Grid], Fit]) -> dict[str, float]:
        """{B's tap: step} of the parts that do nothing but round and move values."""
        theirs = {self.matched[name].a: name for name in self.parts_b}
        found = {}
        for r in roundings:
            part = self.parts_b[theirs[r.tensor]]
            grids = [fits[tap, grid].honest for tap, grid in (*r.reads.items(), *([(r.tensor, r.output)] if r.output else ())) if (tap, grid) in fits]
            if grids and all(self.b.net.nodes[i].op_type in (*QUANTIZE, *DEQUANTIZE, *COPY_OPS) for i in part.nodes):
                found[theirs[r.tensor]] = max(grid.scale or 0.0 for grid in grids)
        return found

    def _note(self, name: str, roundings: list[Rounding], fits: Mapping[tuple[str, Grid], Fit]) -> str:
        """What is wrong with the scales that a part reads through."""
        faults = [(tap, fits[tap, grid].fault) for r in roundings if r.tensor == self.matched[name].a for tap, grid in r.reads.items() if (tap, grid) in fits]
        return "; ".join(f"`{tap}`: {fault}" for tap, fault in faults if fault)

    def fits(self, roundings: Iterable[Rounding]) -> dict[tuple[str, Grid], Fit]:
        """How B's grids fit A's values, over all calls."""
        asked = {(tap, grid) for r in roundings for tap, grid in (*r.reads.items(), *([(r.tensor, r.output)] if r.output else ()))}
        if not asked:
            return {}
        seen = {pair: [math.inf, -math.inf, 0, 0] for pair in asked}
        run = self.a.open([*{tap for tap, _ in asked}, *(output for output, _ in self._states.values())])
        for _, fed, given in self._feeds(run):
            for (name, grid), sums in seen.items():
                value = given[name] if name in given else fed[name]
                low, high = grid.ends
                step = grid.scale or 0.0
                sums[0], sums[1] = np.minimum(sums[0], value.min()), np.maximum(sums[1], value.max())  # NaN stays
                if not (low - step <= sums[0] and sums[1] <= high + step):
                    sums[2] += int(np.count_nonzero((value < low - step) | (value > high + step)))
                sums[3] += value.size
        return {pair: Fit(pair[1], float(low), float(high), outside, count) for pair, (low, high, outside, count) in seen.items() if math.isfinite(low) and math.isfinite(high)}

    @staticmethod
    def _add(sums: _Sums, call: int, want: np.ndarray, running: np.ndarray, alone: np.ndarray | None, expected: np.ndarray | None, layout: Match) -> None:
        signal, peak = _power(want, None)
        sums.size, sums.calls = want.size, sums.calls + 1
        sums.signal += signal
        sums.peak = max(sums.peak, peak)
        if running.shape == want.shape:
            sums.so_far += _power(want, running)[0]
        if expected is not None:
            sums.expected += _power(want, layout.to_b(expected))[0]
        if alone is None:
            return
        if alone.shape != want.shape:
            sums.is_finite, sums.note = False, f"shape {list(alone.shape)} in place of {list(want.shape)}"
            return
        introduced, worst = _power(want, alone)
        if not math.isfinite(introduced):
            if sums.is_finite:
                sums.worst = call
            sums.is_finite, sums.note = False, "NaN or infinity"
        elif sums.is_finite and worst > sums.max_abs:
            sums.worst = call
        sums.introduced += introduced
        sums.max_abs = worst if math.isnan(worst) else max(sums.max_abs, worst)

    # ------------------------------------------------------------------------- the verdict

    def _ranked(self, rows: Mapping[str, tuple[str, str]], sums: Mapping[str, _Sums]) -> list[Found]:
        order = {name: i for i, name in enumerate(self.b.net.tensors)}
        scores = {name: _score(sums[name]) for name in rows}
        # What is within the expected is ranked by how far it is from nothing, behind everything that is not.
        ranked = sorted(rows, key=lambda name: (-scores[name], -_relative(sums[name]), order.get(name, 0)))
        weights = {name: (1.0 if math.isinf(scores[name]) else scores[name]) for name in rows}
        if not sum(weights.values()):
            weights = {name: _relative(sums[name]) for name in rows}
        total = sum(weights.values()) or 1.0
        found = []
        for rank, name in enumerate(ranked, 1):
            s, (node, op) = sums[name], rows[name]
            taps = [sums[tap] for tap in self.parts_b[name].taps if tap in sums]
            inherited = decibel(sum(t.signal for t in taps), sum(t.so_far for t in taps))
            row = LayerRow(
                rank, node, op, _module(node, op), self.matched[name].a, name, self._engine,
                decibel(s.signal, s.so_far), decibel(s.signal, s.introduced), inherited, s.max_abs if s.is_finite else math.nan, weights[name] / total, s.note,
                expected_db=decibel(s.signal, s.expected), verdict=_verdict(s), matched_by=self.matched[name].how,
            )  # fmt: skip
            found.append(Found(row, scores[name], s.worst))
        return found

    # ------------------------------------------------------------------------- the repro

    def save_repro(self, first: Found, folder: Path) -> dict[str, Any]:
        from edgekit.parity import repro

        if not isinstance(self.b, OnnxInside):
            raise UsageError(f"{self._side_b.text}: only a part of an ONNX file can be saved", "leave out `--save-repro`")
        name = first.row.tensor_b
        part = self.b.net.part(name, self.matched)
        taps = [tap for tap in part.taps if tap in self.matched]
        run = self.a.open([self.matched[tap].a for tap in (*taps, name)] + [output for output, _ in self._states.values()])
        given = next(given for i, _, given in self._feeds(run) if i == first.worst)
        arrays = {tap: self.matched[tap].to_b(given[self.matched[tap].a]) for tap in (*taps, name)}
        return repro.save(folder, self.b.net, name, part, arrays, first.row)


def _shaped(value: np.ndarray, shape: tuple[int | None, ...]) -> np.ndarray:
    return value.reshape([n if n is not None else value.shape[k] for k, n in enumerate(shape)]) if len(shape) == value.ndim and None in shape else value.reshape([int(n) for n in shape]) if None not in shape else value


def _floats(values: Arrays) -> dict[str, np.ndarray]:
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size}


def _power(want: np.ndarray, got: np.ndarray | None) -> tuple[float, float]:
    """(sum of squares, largest magnitude) of `want`, or of what `got` is off by; where `want` is not finite, `got` must be equal."""
    x = np.asarray(want).reshape(-1)
    if got is not None:
        y = np.asarray(got).reshape(-1)
        with np.errstate(invalid="ignore", over="ignore"):
            off = x - y
        if not np.isfinite(off).all():
            off = np.where(x == y, 0, off)
        x = off
    elif not np.isfinite(x).all():
        x = np.where(np.isfinite(x), x, 0)
    peak = float(np.abs(x).max(initial=0))
    if not 1e-15 < peak < 1e15:  # squares of float32 end at 1e38
        x = x.astype(np.float64)
    return float(np.dot(x, x)), peak


def _relative(s: _Sums) -> float:
    return s.introduced / s.signal if s.signal > 0 else float(s.introduced > 0)


def _is_float_noise(s: _Sums) -> bool:
    return s.max_abs <= FLOAT_OF_PEAK * max(s.peak, 1e-30) and s.introduced <= FLOAT_NOISE**2 * s.signal


def _score(s: _Sums) -> float:
    """Power that is introduced beyond what is expected, as a share of the signal's."""
    if not s.is_finite or math.isnan(s.introduced):
        return math.inf
    if s.introduced == 0:
        return 0.0
    beyond = max(0.0, s.introduced - s.allowed)
    return beyond / s.signal if s.signal > 0 else min(beyond, 1e6)


def _verdict(s: _Sums) -> str:
    if _score(s) > 0:
        return FAULT
    return SAME if _is_float_noise(s) or s.introduced == 0 else ROUNDING


def _module(node: str, op: str) -> str:
    """`encoder/layers.0/q_proj/MatMul` → `encoder/layers.0/q_proj`."""
    head, slash, _ = node.rpartition("/")
    return head if slash else node


def _modules(found: Sequence[Found]) -> tuple[tuple[str, float], ...]:
    shares: dict[str, float] = {}
    for row in (f.row for f in found):
        shares[row.module] = shares.get(row.module, 0.0) + row.share
    return tuple(sorted(shares.items(), key=lambda item: -item[1]))

"""How far apart two outputs are, accumulated sample by sample, and when that is within tolerance.

The definitions are Polygraphy's: relative errors are of |B| (an exact 0 counts as 2.2e-16), SQNR and
PSNR of A. Everything is computed in float64, so numbers equal numpy's to rounding. Sums and extremes
stream; quantiles are exact up to 262,144 elements, and beyond that read off a histogram of 256
bins an octave. Small outputs are gathered over samples and large ones cut into blocks, since a
checker that costs more than a tenth of the models would be switched off.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgekit.compare import cosine_of, decibel
from edgekit.document import suggestion
from edgekit.errors import DataError, UsageError
from edgekit.parity.result import Errors, Histogram, OutputResult, Point, Tolerance, Worst

EXACT_ELEMENTS = 1 << 18
BLOCK = 1 << 14  # elements at work at a time: what they need stays in a core's own cache
MAX_PENDING = 256  # samples
QUANTILES = ("0.5", "0.9", "0.99", "0.999")
STATS = ("elemwise", "max", "mean", "median", "quantile")
AROUND = 3
TINY = 2.220446049250313e-16

# Defaults, where the command line names no tolerance. Another runtime or compiler sums float32 in another order: a deep
# net's outputs then differ by some 1e-6 to 1e-5 of the largest. bfloat16 keeps 4e-3 and TF32 5e-4, which must not pass.
FLOAT_OF_PEAK, FLOAT_FLOOR = 1e-4, 1e-5
# INT8 against float: Polygraphy's own default for SNR. Its cosine of 0.997 would ask for 22 dB on top, and not see a wrong scale.
INT8_SQNR_DB = 20.0
# INT8 against INT8 in the same numbers: kernels may round a sum the other way, by one step here and there.
SAME_INT8_SQNR_DB = 40.0
# Two honest noises of n values differ by chance: exp(LUCK / sqrt(n)) is about where 999 of 1000 ratios of their powers lie, the F distribution's quantile for n of 4 to 64.
LUCK = 6.2


@dataclass(frozen=True)
class Limits:
    """Tolerances as the command line gives them: a value for all outputs under "", others by A's name."""

    atol: Mapping[str, float]
    rtol: Mapping[str, float]
    stat: Mapping[str, str]
    quantile: float = 0.99
    min_sqnr_db: Mapping[str, float] | None = None
    min_cosine: Mapping[str, float] | None = None

    def is_given(self, name: str) -> bool:
        tables = (self.atol, self.rtol, self.stat, self.min_sqnr_db or {}, self.min_cosine or {})
        return any(name in table or "" in table for table in tables)

    def check_names(self, outputs: Sequence[str]) -> None:
        """Raise UsageError where a tolerance is for an output that is not compared."""
        for table in (self.atol, self.rtol, self.stat, self.min_sqnr_db or {}, self.min_cosine or {}):
            for name in table:
                if name and name not in outputs:
                    raise UsageError(f"a tolerance is given for output `{name}`, which is not compared", suggestion(name, list(outputs)))


def tolerance(name: str, limits: Limits, numbers_a: str, numbers_b: str, measured: tuple[float, str] | None = None) -> Tolerance:
    """What output `name` must keep: as given, else a default for the numbers that the two compute in.

    Args:
        measured: (least SQNR in dB, why), where tolerance.py could measure what INT8 costs.
    """

    def own(table: Mapping[str, float] | None, default: float | None) -> float | None:
        return (table or {}).get(name, (table or {}).get("", default))

    if limits.is_given(name):
        is_sqnr_only = not any(name in t or "" in t for t in (limits.atol, limits.rtol, limits.stat))
        stat = limits.stat.get(name, limits.stat.get("", "elemwise"))
        # As Polygraphy: whichever of the two is not given is 1e-5.
        default = None if is_sqnr_only else 1e-5
        return Tolerance(stat, own(limits.atol, default), own(limits.rtol, default), limits.quantile, own(limits.min_sqnr_db, None), own(limits.min_cosine, None), None, "as given")  # type: ignore[arg-type]
    if measured is not None:
        return Tolerance("elemwise", None, None, min_sqnr_db=measured[0], why=measured[1])
    integers = [numbers_a, numbers_b].count("int8")
    if integers == 2:
        return Tolerance("elemwise", None, None, min_sqnr_db=SAME_INT8_SQNR_DB, why="default for INT8 against INT8: kernels may round a sum by one step")
    if integers == 1:
        return Tolerance("elemwise", None, None, min_sqnr_db=INT8_SQNR_DB, why="default for INT8 against float")
    why = "default for float against float: sums in another order, not another precision"
    if "unknown" in (numbers_a, numbers_b):
        why = "default for float against float, a recording does not say what it was computed in"
    return Tolerance("max", FLOAT_FLOOR, None, of_peak=FLOAT_OF_PEAK, why=why)


class Accumulator:
    """One pair of outputs.

    Args:
        names: A's and B's name of it.
        infinities_compare_equal: the same infinity on both sides is no error.
    """

    def __init__(self, names: tuple[str, str], tolerance: Tolerance, infinities_compare_equal: bool = False):
        self.names, self.tolerance, self._inf_equal = names, tolerance, infinities_compare_equal
        self.shape: tuple[int, ...] = ()
        self.dtypes = ("", "")
        self.points: list[Point] = []
        self.powers: list[tuple[float, float]] = []  # (signal, noise) of each sample
        self._n = self._mismatched = self._bad_a = self._bad_b = 0
        self._sum = self._sum_rel = self._signal = self._noise = self._power_b = self._dot = 0.0
        self._max = self._max_rel = -math.inf
        self._low_a = self._low_b = math.inf
        self._high_a = self._high_b = -math.inf
        self._worst: Worst | None = None
        self._first_bad: str = ""
        self._abs, self._rel = _Spread(), _Spread()
        self._failing = 0
        self._first_failing = ""
        self._pending: list[tuple[str, np.ndarray, np.ndarray]] = []
        # Either is enough; one that is not asked for never is.
        self._atol, self._rtol = (-math.inf if limit is None else limit for limit in (tolerance.atol, tolerance.rtol))

    def add(self, sample: str, a: np.ndarray, b: np.ndarray) -> None:
        """One sample; both of one shape, and not written to afterwards.

        Raises:
            DataError: not real numbers.
        """
        for array in (a, b):
            if array.dtype.kind not in "fiub":
                raise DataError(f"output `{self.names[0]}` has dtype {array.dtype}, expected real numbers")
        if a.shape != self.shape or a.size > BLOCK or a.size == 0:
            self._flush()
        self.shape, self.dtypes = a.shape, (a.dtype.name, b.dtype.name)
        if a.size == 0:
            self.points.append(Point(sample, 0.0, 0.0, math.inf, True))
            self.powers.append((0.0, 0.0))
        elif a.size > BLOCK:
            self._large(sample, a, b)
        else:
            self._pending.append((sample, a, b))
            if len(self._pending) * a.size >= BLOCK or len(self._pending) >= MAX_PENDING:
                self._flush()

    def _flush(self) -> None:
        """Measure the samples that were gathered, a row each."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        x, y = (np.array([sample[i].reshape(-1) for sample in pending], np.float64) for i in (1, 2))
        rows, error, relative = self._rows(x, y)
        within = self._within(rows, error, relative)
        for i, (sample, a, b) in enumerate(pending):
            self._take(sample, a, b, {name: row[i] for name, row in rows.items()}, bool(within[i]))

    def _large(self, sample: str, a: np.ndarray, b: np.ndarray) -> None:
        """Measure one sample block by block."""
        x, y = a.reshape(-1), b.reshape(-1)
        whole: dict[str, Any] = {}
        kept: list[tuple[np.ndarray, np.ndarray]] = []
        for start in range(0, x.size, BLOCK):
            part = slice(start, start + BLOCK)
            rows, error, relative = self._rows(np.array(x[None, part], np.float64), np.array(y[None, part], np.float64))
            if self.tolerance.stat in ("median", "quantile"):
                kept.append((error, relative))
            found = {name: row[0] for name, row in rows.items()} | {"at": rows["at"][0] + start}
            if not whole:
                whole = found
                continue
            # Not <=, so that a NaN is the larger one; and the first of several stays.
            later = not math.isnan(whole["max"]) and not found["max"] <= whole["max"]
            at = found["at"] if later else whole["at"]
            whole = {name: _JOIN[name](whole[name], value) for name, value in found.items() if name != "at"} | {"at": at}
        errors = [np.concatenate([pair[i] for pair in kept], axis=1) if kept else np.zeros((1, 0)) for i in (0, 1)]
        within = self._within({name: np.array([value]) for name, value in whole.items()} | {"size": np.array([x.size])}, *errors)
        self._take(sample, a, b, whole, bool(within[0]))

    def _rows(self, x: np.ndarray, y: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """(sums and extremes of every row, |x - y|, that over |y|) of float64 [rows, elements]."""
        with np.errstate(invalid="ignore", over="ignore"):
            error = x - y
            np.abs(error, out=error)
            if self._inf_equal:
                error[np.isinf(x) & (x == y)] = 0.0
            size = np.abs(y)
            if not size.all():
                size[size == 0] = TINY
            relative = error / size
            rows = {
                "total": error.sum(1), "total_rel": relative.sum(1), "max": error.max(1), "at": error.argmax(1), "max_rel": relative.max(1),  # NaN wins in these
                "signal": np.einsum("ij,ij->i", x, x), "noise": np.einsum("ij,ij->i", error, error), "dot": np.einsum("ij,ij->i", x, y), "power_b": np.einsum("ij,ij->i", y, y),
                "low_a": x.min(1), "high_a": x.max(1), "low_b": y.min(1), "high_b": y.max(1), "size": np.full(len(x), x.shape[1]),
            }  # fmt: skip
        t = self.tolerance
        if t.stat == "elemwise" and t.of_peak is None and not (t.atol is None and t.rtol is None):
            # Not (x <= limit), so that NaN is beyond it.
            rows["beyond"] = np.count_nonzero(~(error <= self._atol) & ~(relative <= self._rtol), axis=1)
        finite = np.isfinite(rows["signal"]) & np.isfinite(rows["power_b"])
        rows["bad_a"], rows["bad_b"] = np.zeros(len(x), int), np.zeros(len(x), int)
        for i in np.flatnonzero(~finite):
            same = (np.isinf(x[i]) & (x[i] == y[i])) if self._inf_equal else False
            rows["bad_a"][i], rows["bad_b"][i] = ((~np.isfinite(side[i]) & ~np.asarray(same)).sum() for side in (x, y))
        self._abs.add(error.reshape(-1))
        self._rel.add(relative.reshape(-1))
        return rows, error, relative

    def _within(self, rows: Mapping[str, np.ndarray], error: np.ndarray, relative: np.ndarray) -> np.ndarray:
        """Which rows keep `stat`; what is of all samples together is judged at the end."""
        t = self.tolerance
        if t.of_peak is not None or (t.atol is None and t.rtol is None):
            return ~np.isnan(rows["max"])
        if t.stat == "elemwise":
            return rows["beyond"] == 0
        if t.stat == "max":
            found = rows["max"], rows["max_rel"]
        elif t.stat == "mean":
            found = rows["total"] / rows["size"], rows["total_rel"] / rows["size"]
        else:
            share = 0.5 if t.stat == "median" else t.quantile
            with np.errstate(invalid="ignore"):
                found = np.quantile(error, share, axis=1), np.quantile(relative, share, axis=1)
        return (found[0] <= self._atol) | (found[1] <= self._rtol)

    def _take(self, sample: str, a: np.ndarray, b: np.ndarray, row: Mapping[str, Any], within: bool) -> None:
        """Add one sample's row to the whole."""
        largest, signal, noise = float(row["max"]), float(row["signal"]), float(row["noise"])
        self._n += a.size
        self._sum += float(row["total"])
        self._sum_rel += float(row["total_rel"])
        self._signal, self._noise, self._dot, self._power_b = self._signal + signal, self._noise + noise, self._dot + float(row["dot"]), self._power_b + float(row["power_b"])
        self._max_rel = _larger(self._max_rel, float(row["max_rel"]))
        self._low_a, self._high_a = min(self._low_a, float(row["low_a"])), max(self._high_a, float(row["high_a"]))
        self._low_b, self._high_b = min(self._low_b, float(row["low_b"])), max(self._high_b, float(row["high_b"]))
        self._mismatched += int(row.get("beyond", 0))
        if not self._bad_a and not self._bad_b and (row["bad_a"] or row["bad_b"]):
            self._first_bad = sample
        self._bad_a, self._bad_b = self._bad_a + int(row["bad_a"]), self._bad_b + int(row["bad_b"])
        if self._worst is None or (not math.isnan(self._max) and not largest <= self._max):
            self._worst = _worst(sample, a, b, int(row["at"]))
        self._max = _larger(self._max, largest)
        if not within and not self._failing:
            self._first_failing = sample
        self._failing += not within
        self.points.append(Point(sample, largest, float(row["total"]) / a.size, decibel(signal, noise), within))
        self.powers.append((signal, noise))

    # ------------------------------------------------------------------------- the result

    def errors(self) -> Errors:
        self._flush()
        if self._n == 0:
            return Errors(0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, dict.fromkeys(QUANTILES, 0.0), dict.fromkeys(QUANTILES, 0.0), True, math.inf, math.inf, 1.0, 0.0, 0.0, 0.0, 0.0)
        mean_square = self._noise / self._n
        peak = self._high_a if self._high_a > 0 else 1.0
        norms = math.sqrt(self._signal) * math.sqrt(self._power_b) if math.isfinite(self._signal + self._power_b) else math.nan
        same = self._noise == 0 or (self._signal == 0 and self._power_b == 0)
        return Errors(
            elements=self._n,
            mismatched=self._mismatched,
            nonfinite_a=self._bad_a,
            nonfinite_b=self._bad_b,
            max_abs=self._max,
            mean_abs=self._sum / self._n,
            rms=math.sqrt(mean_square) if mean_square >= 0 else math.nan,
            max_rel=self._max_rel,
            mean_rel=self._sum_rel / self._n,
            quantiles_abs=self._abs.quantiles(),
            quantiles_rel=self._rel.quantiles(),
            quantiles_are_exact=self._abs.is_exact,
            sqnr_db=decibel(self._signal, self._noise),
            psnr_db=math.inf if mean_square == 0 else math.nan if math.isnan(mean_square) else 20 * math.log10(peak) - 10 * math.log10(mean_square),
            cosine=1.0 if same else cosine_of(self._dot, norms),
            low_a=self._low_a, high_a=self._high_a, low_b=self._low_b, high_b=self._high_b,
        )  # fmt: skip

    def result(self) -> OutputResult:
        errors, limit = self.errors(), self.limit()
        points = self.points if limit is None else [replace(p, is_within=p.max_abs <= limit) for p in self.points]
        reason = self._reason(errors, limit)
        return OutputResult(
            self.names[0], self.names[1], tuple(self.shape), *self.dtypes, not reason, reason,
            replace(self.tolerance, atol=limit) if limit is not None else self.tolerance,
            errors, self._worst if errors.max_abs != 0 else None, tuple(points), self._abs.histogram(),
        )  # fmt: skip

    def limit(self) -> float | None:
        """max_abs that a share of A's peak allows."""
        if self.tolerance.of_peak is None:
            return None
        peak = max(abs(self._low_a), abs(self._high_a)) if self._n else 0.0
        return max(self.tolerance.atol or 0.0, self.tolerance.of_peak * peak) if math.isfinite(peak) else 0.0

    def _reason(self, errors: Errors, limit: float | None) -> str:
        name, t = f"output `{self.names[0]}`", self.tolerance
        where = f"; worst in sample {self._worst.sample} at {list(self._worst.index)}: A {self._worst.a:.6g}, B {self._worst.b:.6g}" if self._worst else ""
        if errors.nonfinite_a or errors.nonfinite_b:
            return f"{name} holds NaN or infinity: {errors.nonfinite_a} values of A, {errors.nonfinite_b} of B, first in sample {self._first_bad}"
        if limit is not None:
            return "" if errors.max_abs <= limit else f"{name} is off by {errors.max_abs:.4g} (max_abs), allowed {limit:.3g}{where}"
        if self._failing:
            allowed = " or ".join(f"{value:g} {kind}" for value, kind in ((t.atol, "absolute"), (t.rtol, "relative")) if value is not None)
            what = f"{errors.mismatched} of {errors.elements} elements are" if t.stat == "elemwise" else f"the {t.stat} error is"
            return f"{name}: {what} beyond {allowed} in {self._failing} of {len(self.points)} samples, first {self._first_failing}; max_abs {errors.max_abs:.4g}{where}"
        if t.min_sqnr_db is not None and not errors.sqnr_db >= t.min_sqnr_db:
            return f"{name} has {errors.sqnr_db:.1f} dB SQNR, at least {t.min_sqnr_db:g} is asked; max_abs {errors.max_abs:.4g}{where}"
        if t.min_cosine is not None and not errors.cosine >= t.min_cosine:
            return f"{name} has cosine {errors.cosine:.5f}, at least {t.min_cosine:g} is asked; max_abs {errors.max_abs:.4g}{where}"
        return ""


# How the rows of a sample's blocks become its row.
_JOIN: dict[str, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(("total", "total_rel", "signal", "noise", "dot", "power_b", "size", "beyond", "bad_a", "bad_b"), operator.add),
    **dict.fromkeys(("max", "max_rel", "high_a", "high_b"), np.maximum),  # NaN wins
    **dict.fromkeys(("low_a", "low_b"), np.minimum),
}


def _larger(so_far: float, value: float) -> float:
    return so_far if math.isnan(so_far) or so_far >= value else value


def _worst(sample: str, a: np.ndarray, b: np.ndarray, flat: int) -> Worst:
    index = tuple(int(i) for i in np.unravel_index(flat, a.shape))
    line_a, line_b = (array.reshape(-1, array.shape[-1])[flat // array.shape[-1]] if array.ndim else array.reshape(1) for array in (a, b))
    at = flat % len(line_a)
    start = max(0, at - AROUND)
    near = slice(start, at + AROUND + 1)
    return Worst(sample, index, float(line_a[at]), float(line_b[at]), start, tuple(float(v) for v in line_a[near]), tuple(float(v) for v in line_b[near]))


class _Spread:
    """Quantiles and a histogram of values >= 0, without keeping more than EXACT_ELEMENTS of them."""

    _FINE = 44  # bits of a float64 below which values share a bin: 11 of exponent and 8 of mantissa stay

    def __init__(self) -> None:
        self._kept: list[np.ndarray] = []
        self._held = 0
        self._counts: np.ndarray | None = None
        self._nonfinite = 0

    @property
    def is_exact(self) -> bool:
        return self._counts is None

    def add(self, values: np.ndarray) -> None:
        if self._counts is None and self._held + values.size <= EXACT_ELEMENTS:
            self._kept.append(values)
            self._held += values.size
            return
        if self._counts is None:
            self._counts = np.zeros(1 << (63 - self._FINE), np.int64)
            for kept in self._kept:
                self._count(kept)
            self._kept = []
        self._count(values)

    def _count(self, values: np.ndarray) -> None:
        assert self._counts is not None
        bins, nonfinite = self._bins(values)
        self._nonfinite += nonfinite
        if bins.size:
            low = int(bins.min())
            counted = np.bincount(bins - low)
            self._counts[low : low + counted.size] += counted

    def _bins(self, values: np.ndarray) -> tuple[np.ndarray, int]:
        finite = np.isfinite(values)
        kept = values if finite.all() else values[finite]
        return np.ascontiguousarray(kept).view(np.int64) >> self._FINE, int(values.size - kept.size)

    def quantiles(self) -> dict[str, float]:
        if self._counts is None:
            values = np.concatenate(self._kept)
            with np.errstate(invalid="ignore"):
                return dict(zip(QUANTILES, (float(v) for v in np.quantile(values, [float(q) for q in QUANTILES])), strict=True))
        if self._nonfinite:
            return dict.fromkeys(QUANTILES, math.nan)
        below = np.cumsum(self._counts)
        found = {}
        for q in QUANTILES:
            at = int(np.searchsorted(below, float(q) * (below[-1] - 1), side="right"))
            edges = (np.array([at, at + 1], np.int64) << self._FINE).view(np.float64)
            found[q] = float(edges.mean()) if at else 0.0
        return found

    def histogram(self) -> Histogram:
        if self._counts is None:
            values = np.concatenate(self._kept) if self._kept else np.zeros(0)
            bins, nonfinite = self._bins(values)
            octaves = np.bincount(bins >> 8, minlength=2048)
        else:
            octaves, nonfinite = self._counts.reshape(2048, 256).sum(1), self._nonfinite
        used = np.flatnonzero(octaves[1:]) + 1
        if not used.size:
            return Histogram(int(octaves[0]), (), (), nonfinite)
        first, last = int(used[0]), int(used[-1])
        edges = tuple(math.ldexp(1.0, exponent - 1023) if exponent < 2047 else math.inf for exponent in range(first, last + 2))
        return Histogram(int(octaves[0]), edges, tuple(int(n) for n in octaves[first : last + 1]), nonfinite)

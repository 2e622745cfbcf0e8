"""Quantization arithmetic: histograms, ranges, scales, rounding. Numpy only, no graphs.

What flows: `Histogram` (streamed over any number of clips) -> `Range` (an observer's choice)
-> `Scale` (a target's number rules) -> integers. `minmax` and `percentile` are facts
about the data and the same for every target, `entropy` and `mse` weigh them against a target's
integers; a scale is a range under one target's rules.

NaN and infinity are refused where they enter: a histogram that silently drops them would
calibrate a broken network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from .errors import DataError

BINS_PER_SIDE = 4096
"""Bins on each side of zero. The bin width is a power of two, so between half and all of them
are used: the finest that a percentile can resolve is max|x| / 2048."""

OBSERVERS = ("minmax", "percentile", "entropy", "mse")
DEFAULT_PERCENTILE = 99.99

_CHUNK = 1 << 15
_SMALLEST_EXPONENT = -140  # below float32's smallest subnormal (2^-149) times BINS_PER_SIDE


@dataclass(frozen=True)
class Range:
    """The interval [low, high] that a tensor's values are mapped from, in the tensor's unit."""

    low: float
    high: float

    def __post_init__(self):
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise DataError(f"range [{self.low}, {self.high}] is not a finite interval")

    @property
    def amax(self) -> float:
        """The larger magnitude of the two ends."""
        return max(abs(self.low), abs(self.high))

    def union(self, other: Range) -> Range:
        return Range(min(self.low, other.low), max(self.high, other.high))


# What a range's end is multiplied by, in the search for the least squared error. All have 1 in them, so the error never
# grows; below 1/32 a step of 8 bits would be finer than the histogram's bins.
_COARSE = tuple(2.0 ** (-i / 8) for i in range(41))
_SIDE = tuple(2.0 ** (i / 8) for i in range(-12, 13))
_FINE = tuple(2.0 ** (i / 64) for i in range(-8, 9))


class Histogram:
    """Counts of a tensor's values, streamed, in memory that never grows.

    Bin i counts i*width <= x < (i+1)*width for i in [-BINS_PER_SIDE, BINS_PER_SIDE). `width` is
    the smallest power of two that fits every value seen; when a larger value comes, neighbouring
    bins merge in pairs, which is exact because the edges are multiples of powers of two. So the
    result depends on the values alone, not on their order or on how they were batched.
    """

    def __init__(self):
        self.counts = np.zeros(2 * BINS_PER_SIDE, np.int64)
        self.exponent = _SMALLEST_EXPONENT
        self.low = math.inf
        self.high = -math.inf

    @property
    def width(self) -> float:
        return math.ldexp(1.0, self.exponent)

    @property
    def n(self) -> int:
        return int(self.counts.sum())

    def update(self, x: np.ndarray, what: str = "tensor") -> None:
        """Count every value of `x` (any shape, float).

        Raises:
            DataError: `x` holds NaN or infinity; the message names `what` and the first index.
        """
        flat = np.ascontiguousarray(x, np.float32).reshape(-1)
        if flat.size == 0:
            return
        low, high = float(flat.min()), float(flat.max())  # NaN propagates through both
        if not (math.isfinite(low) and math.isfinite(high)):
            at = int(np.flatnonzero(~np.isfinite(flat))[0])
            where = tuple(int(i) for i in np.unravel_index(at, np.shape(x)))
            raise DataError(f"{what}: {flat[at]} at {list(where)}", hint="every value must be finite to be calibrated")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._fit(max(-low, high))

        # Scaling up by a power of two is exact in float32. Scaling down is not: a tiny negative value would underflow
        # to the bin above zero.
        dtype = np.float32 if -127 <= self.exponent <= 0 else np.float64
        scale = dtype(math.ldexp(1.0, -self.exponent))
        n_bins = 2 * BINS_PER_SIDE
        size = min(_CHUNK, flat.size)
        scaled, index = np.empty(size, dtype), np.empty(size, np.int32)
        for start in range(0, flat.size, _CHUNK):  # chunks that stay in cache: 3x faster than one sweep
            part = flat[start : start + _CHUNK]
            s, i = scaled[: part.size], index[: part.size]
            np.multiply(part, scale, out=s, dtype=dtype)
            np.floor(s, out=s)
            np.copyto(i, s, casting="unsafe")
            i += BINS_PER_SIDE
            self.counts += np.bincount(i, minlength=n_bins)

    def _fit(self, amax: float) -> None:
        """Widen the bins until `amax` fits."""
        if amax == 0.0:
            return
        # frexp: amax = m * 2^e with 0.5 <= m < 1, so amax < 2^e; -amax itself fits bin -BINS_PER_SIDE.
        needed = math.frexp(amax)[1] - (BINS_PER_SIDE.bit_length() - 1)
        shift = needed - self.exponent
        if shift <= 0:
            return
        index = np.arange(-BINS_PER_SIDE, BINS_PER_SIDE) >> min(shift, 62)
        merged = np.zeros_like(self.counts)
        np.add.at(merged, index + BINS_PER_SIDE, self.counts)
        self.counts, self.exponent = merged, needed

    def minmax(self) -> Range:
        """The exact smallest and largest value seen."""
        self._require_values()
        return Range(self.low, self.high)

    def percentile(self, percent: float, symmetric: bool = True) -> Range:
        """The range that keeps `percent` % of the values, to one bin, never wider than `minmax`.

        symmetric: t is the smallest bin edge so that at least percent/100 of all values have
            |x| <= t; the range is minmax clipped to [-t, t].
        asymmetric: each end is the outermost bin edge that leaves at most (100 - percent)/200 of
            all values outside it.
        """
        self._require_values()
        if not 0 < percent <= 100:
            raise DataError(f"percentile {percent} is not in (0, 100]")
        if symmetric:
            # Bin -j-1 covers -(j+1)w <= x < -jw, so its mirror image ends at the same edge as bin j.
            folded = self.counts[BINS_PER_SIDE:] + self.counts[:BINS_PER_SIDE][::-1]
            enough = np.ceil(percent / 100 * self.n)
            t = (int(np.searchsorted(np.cumsum(folded), enough)) + 1) * self.width
            return Range(max(self.low, -t), min(self.high, t)) if self.low <= t and self.high >= -t else self.minmax()
        outside = math.floor((100 - percent) / 200 * self.n)
        first = int(np.searchsorted(np.cumsum(self.counts), outside, side="right"))
        last = int(np.searchsorted(np.cumsum(self.counts[::-1]), outside, side="right"))
        low = (first - BINS_PER_SIDE) * self.width
        high = (BINS_PER_SIDE - last) * self.width
        return Range(max(self.low, low), min(self.high, high))

    def entropy(self, numbers: Numbers | None = None) -> Range:
        """The range whose integers keep most of the distribution's shape, as TensorRT's entropy calibration finds it.

        For every candidate t, P is the histogram of |x| up to t, with all beyond in its last bin, and Q
        is what remains of P when its bins are merged into as many levels as there are integers. The
        range ends at the t of the least Kullback-Leibler divergence from Q to P. Zeros do not count:
        they are exact under any scale, and after a ReLU they would outweigh everything.

        Signed tensors with a zero point are searched on each side of zero, with its share of the levels.

        Source: S. Migacz, "8-bit Inference with TensorRT", GTC 2017; NVIDIA/TensorRT,
        tools/pytorch-quantization/pytorch_quantization/calib/histogram.py, _compute_amax_entropy.
        """
        self._require_values()
        numbers = numbers or Numbers()
        negative, positive = self.counts[:BINS_PER_SIDE][::-1], self.counts[BINS_PER_SIDE:]
        if numbers.symmetric:
            levels = 256 if scale_of(self.minmax(), numbers).dtype == "uint8" else 128
            t = _entropy_bins(negative + positive, levels) * self.width
            return self._clipped(-t, t)
        sides = [np.trim_zeros(side, "b") for side in (negative, positive)]
        n_bins = sum(side.size for side in sides)
        low, high = (_entropy_bins(side, max(1, round(256 * side.size / n_bins))) * self.width for side in sides)
        return self._clipped(-low, high)

    def mse(self, numbers: Numbers | None = None) -> Range:
        """The range under which rounding and clamping to the target's integers cost the least squared error.

        The error of a candidate is exact for values spread evenly inside each bin. Candidates go down to
        steps of one bin, below which the histogram shows nothing.
        """
        self._require_values()
        numbers = numbers or Numbers()
        occupied = np.flatnonzero(self.counts)
        first, last = int(occupied[0]), int(occupied[-1]) + 1
        counts, edges = self.counts[first:last], np.arange(first - BINS_PER_SIDE, last - BINS_PER_SIDE + 1) * self.width

        def best(candidates: list[Range]) -> Range:
            return candidates[int(np.argmin(_squared_errors(counts, edges, [scale_of(r, numbers) for r in candidates])))]

        found = self.minmax()
        if numbers.symmetric:
            for ratios in (_COARSE, _FINE):
                found = best([self._clipped(-found.amax * ratio, found.amax * ratio) for ratio in ratios])
            return found
        found = best([self._clipped(self.low * ratio, self.high * ratio) for ratio in _COARSE])
        for ratios in (_SIDE, _FINE):  # each end by itself, twice, since both share one step
            found = best([self._clipped(found.low, found.high * ratio) for ratio in ratios])
            found = best([self._clipped(found.low * ratio, found.high) for ratio in ratios])
        return found

    def observe(self, observer: str, percent: float = DEFAULT_PERCENTILE, numbers: Numbers | None = None) -> Range:
        """The range that `observer`, one of OBSERVERS, chooses for the target's numbers."""
        numbers = numbers or Numbers()
        if observer == "minmax":
            return self.minmax()
        if observer == "percentile":
            return self.percentile(percent, numbers.symmetric)
        if observer == "entropy":
            return self.entropy(numbers)
        if observer == "mse":
            return self.mse(numbers)
        raise DataError(f"unknown observer `{observer}`", hint=f"one of {', '.join(OBSERVERS)}")

    def _clipped(self, low: float, high: float) -> Range:
        """minmax, clipped to [low, high]."""
        return Range(min(max(self.low, low), high), max(min(self.high, high), low))

    def _require_values(self) -> None:
        if self.low > self.high:
            raise DataError("no values were observed", hint="calibrate on at least one clip")


def _entropy_bins(counts: np.ndarray, levels: int) -> int:
    """How many bins, from zero on, `levels` integers should be spread over: see `Histogram.entropy`.

    Args:
        counts: [bin] of |x|.
    """
    used = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 0
    merge = max(1, 2 ** math.ceil(math.log2(used / 2048))) if used else 1  # TensorRT's 2048 bins
    used = math.ceil(used / merge)
    c = np.pad(counts, (0, -counts.size % merge)).reshape(-1, merge).sum(1)[:used].astype(np.float64)
    if used <= levels:
        return used * merge
    c[0] = c[1]
    c_before, n_before, plogp_before = (np.concatenate([[0.0], np.cumsum(x)]) for x in (c, c > 0, _xlogx(c)))
    if c_before[-1] == 0:  # zeros alone
        return used * merge

    ends = np.arange(levels, used + 1)  # candidates
    beyond = c_before[-1] - c_before[ends]
    bounds = np.arange(levels + 1) * ends[:, None] // levels  # [candidate, level]: first bin of each level
    q = np.diff(c_before[bounds], axis=1)
    bins = np.diff(n_before[bounds], axis=1)
    bins[:, -1] += (beyond > 0) & (c[ends - 1] == 0)
    p = q.copy()
    p[:, -1] += beyond

    last = c[ends - 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        # sum p log p - sum p log q, of P and Q that sum to 1. Infinite where Q has nothing of what P has in a level.
        p_log_p = plogp_before[ends] - _xlogx(last) + _xlogx(last + beyond)
        p_log_q = np.where(p > 0, p * np.log(q / bins), 0).sum(1)
        divergence = (p_log_p - p_log_q) / c_before[-1] + np.log(c_before[ends] / c_before[-1])
    divergence[~np.isfinite(divergence)] = np.inf
    return int(ends[np.argmin(divergence)]) * merge if np.isfinite(divergence).any() else used * merge


def _xlogx(x: np.ndarray) -> np.ndarray:
    return x * np.log(np.where(x > 0, x, 1))


def _squared_errors(counts: np.ndarray, edges: np.ndarray, scales: list[Scale]) -> np.ndarray:
    """Expected sum of (x - fake_quantize(x))^2 under each scale, for values spread evenly inside each bin.

    Args:
        counts: [bin].
        edges: [bin + 1], ascending.
    """
    step = np.array([[s.scale] for s in scales])
    lowest, highest = (np.array([[_LIMITS[s.dtype][i] - s.zero_point] for s in scales], np.float64) for i in (0, 1))
    # The integral from 0 to x of (u - rounded u)^2: k whole steps have step^3 / 12 each, the rest is a cube.
    k = np.clip(np.rint(edges / step), lowest, highest)
    rest = edges - k * step
    integral = k * (step**3 / 12) + rest * rest * rest / 3
    return np.diff(integral, axis=1) @ counts / (edges[1] - edges[0])


@dataclass(frozen=True)
class Numbers:
    """How a target writes activations and weights as integers (`numbers` in targets/*.yaml)."""

    dtype: str = "int8"
    symmetric: bool = True
    divisor: float = 127.0
    nonnegative: str | None = None
    weight_per_channel: bool = True
    weight_divisor: float = 127.0
    outputs: bool = False

    @classmethod
    def from_target(cls, numbers: dict) -> Numbers:
        activation, weight = numbers["activation"], numbers["weight"]
        if numbers.get("rounding", "half_even") != "half_even":
            raise DataError(f"numbers.rounding: `{numbers['rounding']}` is not known", hint="half_even")
        if weight.get("range", "max_abs") != "max_abs":
            raise DataError(f"numbers.weight.range: `{weight['range']}` is not known", hint="max_abs")
        return cls(
            dtype=activation["dtype"],
            symmetric=activation["symmetric"],
            divisor=float(activation.get("divisor", 127)),
            nonnegative=activation.get("nonnegative"),
            weight_per_channel=weight.get("granularity", "per_channel") == "per_channel",
            weight_divisor=float(weight.get("divisor", 127)),
            outputs=numbers.get("outputs", False),
        )


    def as_symmetric(self) -> Numbers:
        """The same with zero point 0: int8, and uint8 for tensors without negative values."""
        return replace(self, dtype="int8", symmetric=True, divisor=127.0, nonnegative="uint8")


@dataclass(frozen=True)
class Scale:
    """real = (integer - zero_point) * scale. `scale` is a float32 value."""

    scale: float
    zero_point: int = 0
    dtype: str = "int8"


_LIMITS = {"int8": (-128, 127), "uint8": (0, 255)}
_SMALLEST_SCALE = float(np.float32(2.0**-100))  # keeps 1/scale finite in float32


def scale_of(r: Range, numbers: Numbers) -> Scale:
    """Scale and zero point of range `r` under a target's number rules.

    A range of zero width at zero (a dead tensor) gets scale 1/divisor: any scale maps zero to zero.
    """
    if numbers.symmetric and numbers.nonnegative == "uint8" and r.low >= 0 and r.high > 0:
        return Scale(_float32_scale(r.high / 255), 0, "uint8")
    if numbers.symmetric:
        scale = r.amax / numbers.divisor if r.amax > 0 else 1.0 / numbers.divisor
        return Scale(_float32_scale(scale), 0, numbers.dtype)
    q_min, q_max = _LIMITS[numbers.dtype]
    low, high = min(r.low, 0.0), max(r.high, 0.0)  # zero must be exact: padding is made of it
    scale = _float32_scale((high - low) / (q_max - q_min) if high > low else 1.0 / (q_max - q_min))
    zero_point = int(np.clip(np.rint(q_min - low / scale), q_min, q_max))
    return Scale(scale, zero_point, numbers.dtype)


def quantize(x: np.ndarray, s: Scale) -> np.ndarray:
    """Integers of `x`: divide, round half to even, add the zero point, clamp to the type's limits."""
    q_min, q_max = _LIMITS[s.dtype]
    q = np.rint(np.asarray(x, np.float32) / np.float32(s.scale)) + np.float32(s.zero_point)
    return np.clip(q, q_min, q_max).astype(s.dtype)


def dequantize(q: np.ndarray, s: Scale) -> np.ndarray:
    return (q.astype(np.float32) - np.float32(s.zero_point)) * np.float32(s.scale)


def fake_quantize(x: np.ndarray, s: Scale) -> np.ndarray:
    """`x` after a trip through the integers, float32, same shape."""
    return dequantize(quantize(x, s), s)


def weight_scales(w: np.ndarray, numbers: Numbers, axis: int = 0) -> np.ndarray:
    """Symmetric max-abs scales of a weight, float32: [w.shape[axis]] per channel, or one repeated.

    A channel of zeros gets scale 1: it stays zero under any.
    """
    if not np.isfinite(w).all():
        raise DataError("weights hold NaN or infinity")
    amax = np.abs(w).max(axis=tuple(i for i in range(w.ndim) if i != axis)).astype(np.float32)
    if not numbers.weight_per_channel:
        amax = np.full_like(amax, amax.max())
    scales = np.where(amax > 0, amax / np.float32(numbers.weight_divisor), np.float32(1))
    return np.maximum(scales, np.float32(_SMALLEST_SCALE)).astype(np.float32)


def quantize_weight(w: np.ndarray, scales: np.ndarray, axis: int = 0) -> np.ndarray:
    """int8 of a weight under per-channel `scales` [w.shape[axis]], zero point 0."""
    shape = [1] * w.ndim
    shape[axis] = -1
    return np.clip(np.rint(w.astype(np.float32) / scales.reshape(shape)), -127, 127).astype(np.int8)


def _float32_scale(scale: float) -> float:
    return max(float(np.float32(scale)), _SMALLEST_SCALE)

"""Histograms, ranges, scales and rounding, each against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit.errors import DataError
from edgekit.quant import (
    BINS_PER_SIDE,
    OBSERVERS,
    Histogram,
    Numbers,
    Range,
    Scale,
    _entropy_bins,
    _squared_errors,
    dequantize,
    fake_quantize,
    quantize,
    quantize_weight,
    scale_of,
    weight_scales,
)

INT8 = Numbers()
UINT8 = Numbers(dtype="uint8", symmetric=False)
finite = st.floats(-(2.0**100), 2.0**100, width=32)
arrays = hnp.arrays(np.float32, st.integers(1, 300), elements=finite)
few = settings(max_examples=60, deadline=None)


def filled(*parts: np.ndarray) -> Histogram:
    h = Histogram()
    for part in parts:
        h.update(part)
    return h


@few
@given(arrays)
def test_every_value_lies_in_its_bin(x):
    h = filled(x)
    index = np.floor(x.astype(np.float64) / h.width).astype(np.int64)
    want = np.zeros(2 * BINS_PER_SIDE, np.int64)
    np.add.at(want, index + BINS_PER_SIDE, 1)
    assert (h.counts == want).all()
    assert h.n == x.size
    assert h.minmax() == Range(float(x.min()), float(x.max()))


@few
@given(arrays, st.integers(0, 5), st.randoms())
def test_counts_do_not_depend_on_order_or_batching(x, cuts, random):
    shuffled = list(x)
    random.shuffle(shuffled)
    parts = np.array_split(np.array(shuffled, np.float32), cuts + 1)
    one, many = filled(x), filled(*parts)
    assert one.exponent == many.exponent
    assert (one.counts == many.counts).all()
    assert one.minmax() == many.minmax()


@few
@given(arrays)
def test_the_bins_are_the_finest_power_of_two_that_fits(x):
    h = filled(x)
    amax = float(np.abs(x).max())
    assert amax <= BINS_PER_SIDE * h.width
    if amax > 2.0**-120:
        assert amax >= BINS_PER_SIDE * h.width / 2


@pytest.mark.parametrize("largest", [2.0**-140, 2.0**-117, 1.0, 4095.0, 4096.0, 1e6, 2.0**100])
def test_the_smallest_negative_value_lies_below_zero_beside_any_largest_one(largest):
    tiny = np.float32(2.0**-149)
    h = filled(np.array([-tiny, largest], np.float32))
    assert h.counts[BINS_PER_SIDE - 1] == 1
    assert h.counts[:BINS_PER_SIDE].sum() == 1 and h.n == 2


def test_memory_does_not_grow_with_what_is_counted():
    rng = np.random.default_rng(0)
    h = Histogram()
    for scale in (1e-6, 1.0, 1e6):
        h.update(rng.standard_normal(1000).astype(np.float32) * np.float32(scale))
        assert h.counts.shape == (2 * BINS_PER_SIDE,)
    assert h.n == 3000


@pytest.mark.parametrize("percent", [50, 90, 99, 99.9, 100])
@pytest.mark.parametrize("seed", range(4))
def test_symmetric_percentile_keeps_its_share_within_one_bin(percent, seed):
    x = (np.random.default_rng(seed).standard_t(3, 20_000) + 0.3 * seed).astype(np.float32)
    h = filled(x)
    r = h.percentile(percent)
    kept = np.mean(np.abs(x) <= r.amax)
    assert kept >= percent / 100
    # one bin less keeps too little: t is the smallest such edge
    exact = np.sort(np.abs(x))[math.ceil(percent / 100 * x.size) - 1]
    assert exact <= r.amax <= exact + h.width


@pytest.mark.parametrize("percent", [90, 99, 99.9, 100])
def test_asymmetric_percentile_cuts_at_most_half_of_the_rest_at_each_end(percent):
    x = np.random.default_rng(1).gamma(2.0, 1.0, 20_000).astype(np.float32)
    h = filled(x)
    r = h.percentile(percent, symmetric=False)
    outside = (100 - percent) / 200 * x.size
    assert np.sum(x < r.low) <= outside and np.sum(x > r.high) <= outside
    assert r.low - np.sort(x)[math.floor(outside)] <= 0 and r.low >= x.min()
    assert np.sort(x)[::-1][math.floor(outside)] <= r.high <= np.sort(x)[::-1][math.floor(outside)] + h.width


def test_a_percentile_is_never_wider_than_minmax():
    h = filled(np.array([0.1, 0.2, 0.3], np.float32))
    assert h.percentile(100) == h.minmax()
    assert h.observe("percentile", 100) == h.observe("minmax")


def test_one_outlier_moves_minmax_and_not_the_percentile():
    x = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    with_outlier = filled(x, np.array([100.0], np.float32))
    assert with_outlier.minmax().amax == 100
    assert with_outlier.percentile(99.9).amax < 4


def test_zeros_alone_have_the_range_zero_and_a_usable_scale():
    h = filled(np.zeros(10, np.float32))
    assert h.minmax() == Range(0, 0) == h.percentile(99.99)
    assert scale_of(Range(0, 0), INT8).scale == pytest.approx(1 / 127)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_and_located(bad):
    x = np.zeros((3, 4), np.float32)
    x[1, 2] = bad
    with pytest.raises(DataError, match=r"conv1: .* at \[1, 2\]"):
        Histogram().update(x, "conv1")


def test_an_empty_histogram_has_no_range():
    with pytest.raises(DataError, match="no values"):
        Histogram().minmax()


@pytest.mark.parametrize("percent", [0, 100.1, float("nan")])
def test_a_percentile_outside_0_to_100_is_refused(percent):
    with pytest.raises(DataError):
        filled(np.ones(3, np.float32)).percentile(percent)


@pytest.mark.parametrize("low, high", [(1, 0), (float("nan"), 1), (0, float("inf"))])
def test_a_range_that_is_no_interval_is_refused(low, high):
    with pytest.raises(DataError):
        Range(low, high)


def test_symmetric_scale_is_max_abs_over_127():
    assert scale_of(Range(-2.54, 1.0), INT8) == Scale(float(np.float32(0.02)), 0, "int8")


@few
@given(finite, finite)
def test_asymmetric_zero_is_exact(a, b):
    r = Range(min(a, b), max(a, b))
    s = scale_of(r, UINT8)
    assert 0 <= s.zero_point <= 255
    assert fake_quantize(np.zeros(1, np.float32), s)[0] == 0


def test_rounding_is_half_to_even():
    s = Scale(1.0)
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5], np.float32)
    assert quantize(x, s).tolist() == [0, 2, 2, 0, -2, -2]


def test_values_beyond_the_limits_are_clamped():
    assert quantize(np.array([1e9, -1e9], np.float32), Scale(1.0)).tolist() == [127, -128]
    assert quantize(np.array([1e9, -1e9], np.float32), Scale(1.0, 10, "uint8")).tolist() == [255, 0]


@few
@given(arrays)
def test_values_inside_the_range_move_by_at_most_half_a_step(x):
    r = Range(float(x.min()), float(x.max()))
    s = scale_of(r, INT8)
    error = np.abs(fake_quantize(x, s).astype(np.float64) - x.astype(np.float64))
    assert (error <= 0.5 * s.scale + 1e-6 * r.amax).all()  # 1e-6: float32 division and product


@few
@given(arrays)
def test_fake_quantize_twice_is_fake_quantize_once(x):
    s = scale_of(Range(float(x.min()), float(x.max())), INT8)
    once = fake_quantize(x, s)
    assert (fake_quantize(once, s) == once).all()


def test_fake_quantize_is_what_onnx_runtime_computes():
    import onnx
    import onnxruntime as ort

    x = np.concatenate([np.random.default_rng(0).standard_normal(4000) * 3, np.arange(-6, 6, 0.5)]).astype(np.float32)
    for s in (Scale(0.5), Scale(float(np.float32(0.0173))), Scale(float(np.float32(0.03)), 77, "uint8")):
        zero = onnx.numpy_helper.from_array(np.array(s.zero_point, s.dtype), "z")
        nodes = [
            onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ]
        graph = onnx.helper.make_graph(
            nodes,
            "g",
            [onnx.helper.make_tensor_value_info("x", 1, x.shape)],
            [onnx.helper.make_tensor_value_info("y", 1, x.shape)],
            [onnx.numpy_helper.from_array(np.float32(s.scale), "s"), zero],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        got = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        assert (got == fake_quantize(x, s)).all()


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (5, 1, 2), (2, 6)])
def test_weight_scales_are_each_channels_max_abs_over_127(shape):
    w = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    w[0] = 0
    scales = weight_scales(w, INT8)
    assert scales.dtype == np.float32 and scales[0] == 1
    for channel in range(1, shape[0]):
        assert scales[channel] == np.float32(np.abs(w[channel]).max() / np.float32(127))
    q = quantize_weight(w, scales)
    assert q.dtype == np.int8 and np.abs(q.astype(int)).max() == 127
    restored = np.stack([dequantize(q[c], Scale(float(scales[c]))) for c in range(shape[0])])
    assert (np.abs(restored - w) <= 0.5001 * scales.reshape(-1, *[1] * (w.ndim - 1))).all()


def test_per_tensor_weights_share_the_largest_scale():
    w = np.array([[1.0, -2.0], [0.5, 0.25]], np.float32)
    assert (weight_scales(w, Numbers(weight_per_channel=False)) == np.float32(2 / np.float32(127))).all()


def test_weights_with_nan_are_refused():
    with pytest.raises(DataError):
        weight_scales(np.array([[np.nan]], np.float32), INT8)


def test_unknown_number_rules_are_refused():
    rules = {"activation": {"dtype": "int8", "symmetric": True}, "weight": {}, "rounding": "half_up"}
    with pytest.raises(DataError, match="half_up"):
        Numbers.from_target(rules)


# entropy and mse


ASYMMETRIC = Numbers(dtype="uint8", symmetric=False)
NONNEGATIVE = Numbers(nonnegative="uint8")
ALL_NUMBERS = pytest.mark.parametrize("numbers", [INT8, NONNEGATIVE, ASYMMETRIC], ids=["int8", "uint8 if nonnegative", "asymmetric"])


def shares(quantile, n: int = 500_000) -> np.ndarray:
    """A distribution without chance: its quantiles in the middle of n equal shares."""
    return quantile((np.arange(n) + 0.5) / n).astype(np.float32)


def gaussian(n: int = 500_000) -> np.ndarray:
    from scipy.special import ndtri

    return shares(ndtri, n)


def laplace(n: int = 500_000) -> np.ndarray:
    return shares(lambda u: np.where(u < 0.5, np.log(2 * u), -np.log(2 - 2 * u)), n)


def slow_divergence(counts: list[int], end: int, levels: int) -> float:
    """Kullback-Leibler divergence of one candidate, bin by bin, as Migacz describes it."""
    p = [float(c) for c in counts[:end]]
    beyond = float(sum(counts[end:]))
    p[-1] += beyond
    q = [0.0] * end
    for level in range(levels):
        a, b = level * end // levels, (level + 1) * end // levels
        filled_bins = [i for i in range(a, b) if p[i] > 0]
        for i in filled_bins:
            q[i] = sum(counts[a:b]) / len(filled_bins)
    total_p, total_q = sum(p), sum(q)
    if any(x > 0 and y == 0 for x, y in zip(p, q, strict=True)):
        return math.inf
    return sum(x / total_p * math.log(x / total_p / (y / total_q)) for x, y in zip(p, q, strict=True) if x > 0)


@few
@given(st.lists(st.integers(0, 30) | st.just(0), min_size=6, max_size=60), st.integers(2, 9))
def test_entropy_finds_what_a_search_bin_by_bin_finds(counts, levels):
    while counts and counts[-1] == 0:
        counts.pop()
    got = _entropy_bins(np.array(counts, np.int64), levels)
    if len(counts) <= levels:
        assert got == len(counts)
        return
    counts[0] = counts[1]
    divergences = {end: slow_divergence(counts, end, levels) for end in range(levels, len(counts) + 1)} if any(counts) else {len(counts): 0.0}
    assert divergences[got] <= min(divergences.values()) + 1e-9


@few
@given(
    hnp.arrays(np.int64, st.integers(1, 40), elements=st.integers(0, 9)),
    st.integers(-30, 30),
    st.sampled_from([Scale(0.5), Scale(0.3, 0, "uint8"), Scale(0.02, 100, "uint8"), Scale(7.0), Scale(0.004)]),
)
def test_the_squared_error_is_that_of_values_spread_evenly_in_their_bins(counts, first, scale):
    width, n = 0.25, 2000
    edges = (first + np.arange(counts.size + 1)) * width
    inside = (np.arange(n) + 0.5) / n * width
    want = sum(c * np.mean((edges[i] + inside - fake_quantize(edges[i] + inside, scale)) ** 2) for i, c in enumerate(counts))
    assert _squared_errors(counts, edges, [scale])[0] == pytest.approx(want, rel=2e-3, abs=1e-6)


def error_of(x: np.ndarray, r: Range, numbers: Numbers) -> float:
    return float(np.mean((x - fake_quantize(x, scale_of(r, numbers))).astype(np.float64) ** 2))


SHAPES = {
    "normal": lambda r: r.standard_normal(20_000),
    "heavy tails": lambda r: r.standard_t(3, 20_000),
    "relu": lambda r: np.maximum(r.standard_t(4, 20_000), 0),
    "gelu": lambda r: (lambda z: z * (1 + np.vectorize(math.erf)(z / 2**0.5)) / 2)(r.standard_normal(20_000) * 2),
    "shifted": lambda r: r.gamma(2, 1, 20_000) - 1,
    "negative": lambda r: -r.exponential(1, 20_000),
    "far from zero": lambda r: 5 + r.standard_normal(20_000) * 0.1,
    "two peaks": lambda r: r.choice([-1.0, 3.0], 20_000) + r.standard_normal(20_000) * 0.1,
}


@ALL_NUMBERS
@pytest.mark.parametrize("shape", SHAPES)
def test_mse_is_as_good_as_the_best_of_a_dense_search(shape, numbers):
    x = SHAPES[shape](np.random.default_rng(3)).astype(np.float32)
    h = filled(x)
    full = h.minmax()
    ratios = np.linspace(0.05, 1, 96)
    if numbers.symmetric:
        tried = [Range(max(full.low, -t), max(min(full.high, t), -t)) for t in ratios * full.amax if t >= full.low]
    else:
        tried = [Range(min(full.low, 0) * a, max(full.high, 0) * b) for a in ratios[5::10] for b in ratios[5::10]]
    found = error_of(x, h.observe("mse", numbers=numbers), numbers)
    assert found <= 1.03 * min(error_of(x, r, numbers) for r in tried)  # 3 %: two ends searched in turn, bins of finite width
    assert found <= 1.01 * error_of(x, full, numbers)  # 1 %: so much less does a bin show than the values in it


@pytest.mark.parametrize(
    ("distribution", "optimum"),
    # Banner et al. 2018 (ACIQ), arXiv 1810.05723: optimal clipping at 8 bits, of sigma for the normal and of b for the Laplace distribution
    [(gaussian, 3.92), (laplace, 9.89)],
)
def test_mse_clips_where_the_optimum_is_known(distribution, optimum):
    assert filled(distribution()).observe("mse", numbers=INT8).amax == pytest.approx(optimum, rel=0.03)  # rel: ACIQ has 256 steps, INT8 254


@pytest.mark.parametrize("observer", ["entropy", "mse"])
@ALL_NUMBERS
@pytest.mark.parametrize("power", [-90, -3, 5, 80])
def test_a_power_of_two_scales_the_range_and_changes_nothing_else(observer, numbers, power):
    x = np.random.default_rng(0).standard_t(4, 20_000).astype(np.float32)
    r = filled(x).observe(observer, numbers=numbers)
    scaled = filled(np.ldexp(x, power).astype(np.float32)).observe(observer, numbers=numbers)
    assert scaled == Range(math.ldexp(r.low, power), math.ldexp(r.high, power))


@pytest.mark.parametrize("observer", ["entropy", "mse"])
@pytest.mark.parametrize("numbers", [INT8, ASYMMETRIC], ids=["int8", "asymmetric"])
def test_counting_everything_twice_changes_no_range(observer, numbers):
    x = np.random.default_rng(1).standard_t(4, 20_000).astype(np.float32)
    assert filled(x, x).observe(observer, numbers=numbers) == filled(x).observe(observer, numbers=numbers)


@pytest.mark.parametrize("observer", ["entropy", "mse"])
@ALL_NUMBERS
def test_no_range_is_wider_than_minmax(observer, numbers):
    for shape in SHAPES.values():
        h = filled(shape(np.random.default_rng(0)).astype(np.float32))
        r, full = h.observe(observer, numbers=numbers), h.minmax()
        assert full.low <= r.low <= r.high <= full.high


@pytest.mark.parametrize("observer", ["entropy", "mse"])
@ALL_NUMBERS
def test_a_mirrored_tensor_has_the_mirrored_range(observer, numbers):
    x = np.random.default_rng(2).standard_t(4, 20_001).astype(np.float32)
    h, mirrored = filled(x), filled(-x)
    r, m = h.observe(observer, numbers=numbers), mirrored.observe(observer, numbers=numbers)
    # -128 is one step more than 127, and a value on an edge falls to the other bin
    assert (m.low, m.high) == pytest.approx((-r.high, -r.low), rel=0.03)


@pytest.mark.parametrize("observer", OBSERVERS)
@ALL_NUMBERS
def test_dead_and_constant_tensors_have_a_range(observer, numbers):
    assert filled(np.zeros(10, np.float32)).observe(observer, numbers=numbers) == Range(0, 0)
    for value in (3.0, -3.0, 1e-20):
        r = filled(np.full(10, value, np.float32)).observe(observer, numbers=numbers)
        assert abs(fake_quantize(np.float32(value), scale_of(r, numbers)) - value) <= abs(value) / 100


@pytest.mark.parametrize("observer", ["entropy", "mse"])
@ALL_NUMBERS
def test_one_outlier_among_many_values_is_clipped(observer, numbers):
    h = filled(gaussian(), np.array([20.0], np.float32))
    assert h.minmax().high == 20
    assert 3 < h.observe(observer, numbers=numbers).high < 12


def test_zeros_do_not_drive_the_entropy():
    x = np.abs(gaussian(100_000))
    sparse = filled(x, np.zeros(900_000, np.float32)).observe("entropy", numbers=NONNEGATIVE)
    assert sparse.high == filled(x).observe("entropy", numbers=NONNEGATIVE).high


def test_entropy_of_a_normal_distribution_keeps_nearly_all_of_it():
    r = filled(gaussian()).observe("entropy")
    assert 3 < r.amax < 4.9 and r.amax == max(-r.low, r.high)


def test_an_observer_that_does_not_exist_is_refused():
    with pytest.raises(DataError, match="unknown observer `median`"):
        filled(np.ones(3, np.float32)).observe("median")


@pytest.mark.parametrize("observer", OBSERVERS)
def test_nothing_observed_is_refused(observer):
    with pytest.raises(DataError, match="no values were observed"):
        Histogram().observe(observer)

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
    Histogram,
    Numbers,
    Range,
    Scale,
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

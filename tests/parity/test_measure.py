"""Numbers are numpy's and Polygraphy's, and NaN never passes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgekit.errors import UsageError
from edgekit.parity import arguments, measure
from edgekit.parity.measure import Accumulator, Limits, tolerance
from edgekit.parity.result import Tolerance

LOOSE = Tolerance("elemwise", 1e9, 1e9)


def made(seed: int = 0, samples: int = 5, shape: tuple[int, ...] = (2, 7, 11), noise: float = 1e-3):
    rng = np.random.default_rng(seed)
    a = [rng.standard_normal(shape).astype(np.float32) for _ in range(samples)]
    return a, [x + noise * rng.standard_normal(shape).astype(np.float32) for x in a]


def measured(a, b, asked: Tolerance = LOOSE, **options):
    accumulator = Accumulator(("y", "y"), asked, **options)
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        accumulator.add(str(i), np.asarray(x), np.asarray(y))
    return accumulator.result()


def test_numbers_are_numpys():
    a, b = made()
    found = measured(a, b)
    x, y = (np.stack(v).astype(np.float64) for v in (a, b))
    error, e = np.abs(x - y), found.errors
    assert e.elements == x.size and e.quantiles_are_exact
    assert e.max_abs == error.max() and e.mean_abs == pytest.approx(error.mean(), rel=1e-12) and e.rms == pytest.approx(np.sqrt((error**2).mean()), rel=1e-12)
    assert e.max_rel == (error / np.abs(y)).max() and e.mean_rel == pytest.approx((error / np.abs(y)).mean(), rel=1e-12)
    for q in (0.5, 0.9, 0.99, 0.999):
        assert e.quantiles_abs[str(q)] == np.quantile(error, q) and e.quantiles_rel[str(q)] == np.quantile(error / np.abs(y), q)
    assert e.sqnr_db == pytest.approx(10 * np.log10((x * x).sum() / (error * error).sum()), rel=1e-12)
    assert e.psnr_db == pytest.approx(20 * np.log10(x.max()) - 10 * np.log10((error**2).mean()), rel=1e-12)
    assert e.cosine == pytest.approx(x.reshape(-1) @ y.reshape(-1) / np.linalg.norm(x) / np.linalg.norm(y), rel=1e-12)
    assert (e.low_a, e.high_a, e.low_b, e.high_b) == (x.min(), x.max(), y.min(), y.max())
    assert [p.max_abs for p in found.curve] == [np.abs(v.astype(np.float64) - w).max() for v, w in zip(a, b, strict=True)]


@pytest.mark.parametrize("block, shape", [(8, (2, 7, 11)), (154, (2, 7, 11)), (1000, (2, 7, 11)), (16, (1,)), (16, ())])
def test_gathered_small_outputs_and_cut_large_ones_give_the_same(monkeypatch, block, shape):
    a, b = made(samples=9, shape=shape)
    for asked in (Tolerance("elemwise", 1e-3, 1e-4), Tolerance("quantile", 2e-3, 0.0), Tolerance("mean", 8e-4, None)):
        want = measured(a, b, asked)
        monkeypatch.setattr(measure, "BLOCK", block)
        got = measured(a, b, asked)
        monkeypatch.undo()
        assert (got.worst, got.is_within, got.histogram) == (want.worst, want.is_within, want.histogram)
        assert [p.is_within for p in got.curve] == [p.is_within for p in want.curve] and got.errors.mismatched == want.errors.mismatched
        assert got.errors.sqnr_db == pytest.approx(want.errors.sqnr_db, rel=1e-12) and got.errors.mean_rel == pytest.approx(want.errors.mean_rel, rel=1e-12)
        assert got.errors.quantiles_abs == want.errors.quantiles_abs


def test_samples_of_other_shapes_are_measured_together():
    found = measured([np.ones(3), np.ones(5), np.ones(3)], [np.ones(3), np.zeros(5), np.ones(3)])
    assert found.errors.elements == 11 and found.errors.mean_abs == pytest.approx(5 / 11) and [p.id for p in found.curve] == ["0", "1", "2"]


def test_the_worst_element_has_its_sample_index_and_neighbours():
    a = [np.zeros((2, 10)), np.zeros((2, 10))]
    b = [np.zeros((2, 10)), np.zeros((2, 10))]
    a[1][1], b[1][1, 8] = np.arange(10), 100.0
    b[1][1, :8] = np.arange(8)
    b[1][1, 9] = 9
    worst = measured(a, b).worst
    assert (worst.sample, worst.index, worst.a, worst.b, worst.start) == ("1", (1, 8), 8.0, 100.0, 5)
    assert worst.around_a == (5, 6, 7, 8, 9) and worst.around_b == (5, 6, 7, 100, 9)


def test_the_histogram_counts_every_element_once():
    a, b = [np.zeros(8)], [np.array([0, 0, 0.5, 0.75, 1.0, 3.0, np.nan, np.inf])]
    found = measured(a, b).histogram
    assert found.zeros == 2 and found.nonfinite == 2
    assert found.edges == (0.5, 1.0, 2.0, 4.0) and found.counts == (2, 1, 1)


@pytest.mark.parametrize("parts", [1, 7])
def test_beyond_the_exact_size_quantiles_are_within_half_a_percent(monkeypatch, parts):
    monkeypatch.setattr(measure, "EXACT_ELEMENTS", 1000)
    a, b = made(samples=parts, shape=(5000,))
    b[0][:50] = a[0][:50]  # some are equal
    found = measured(a, b)
    error = np.abs(np.stack(a).astype(np.float64) - np.stack(b))
    assert not found.errors.quantiles_are_exact and found.histogram.zeros == (error == 0).sum()
    assert sum(found.histogram.counts) + found.histogram.zeros == error.size
    for q, value in found.errors.quantiles_abs.items():
        assert value == pytest.approx(np.quantile(error, float(q)), rel=4e-3)


@pytest.mark.parametrize("a, b", [(math.nan, 1.0), (1.0, math.nan), (math.nan, math.nan), (math.inf, 1.0), (1.0, -math.inf), (math.inf, math.inf)])
@pytest.mark.parametrize("asked", [LOOSE, Tolerance("max", 1e9, 1e9), Tolerance("mean", 1e9, 1e9), Tolerance("median", 1e9, None), Tolerance(atol=None, rtol=None, min_sqnr_db=-1e9), Tolerance("max", 1e9, None, of_peak=1e9)])
def test_nan_and_infinity_fail_whatever_the_tolerance(a, b, asked):
    found = measured([np.array([1.0, a])], [np.array([1.0, b])], asked)
    assert not found.is_within and "NaN or infinity" in found.reason and "first in sample 0" in found.reason


def test_equal_infinities_pass_when_they_are_asked_to():
    a = [np.array([1.0, math.inf])]
    assert measured(a, a, infinities_compare_equal=True).is_within
    assert not measured(a, [np.array([1.0, -math.inf])], infinities_compare_equal=True).is_within


@pytest.mark.parametrize("stat, atol, passes", [("elemwise", 0.5, False), ("elemwise", 1.0, True), ("max", 0.9, False), ("mean", 0.11, True), ("mean", 0.09, False), ("median", 1e-9, True), ("quantile", 0.95, True), ("quantile", 0.5, False)])
def test_each_statistic_is_held_against_the_tolerance(stat, atol, passes):
    a, b = [np.ones(10)], [np.ones(10)]
    b[0][3] = 2.0
    assert measured(a, b, Tolerance(stat, atol, 0.0)).is_within == passes


def test_one_of_both_tolerances_is_enough_per_element():
    a, b = [np.array([1000.0, 0.001])], [np.array([1000.5, 0.0011])]
    assert not measured(a, b, Tolerance("max", 1e-3, 1e-3)).is_within
    assert measured(a, b, Tolerance("elemwise", 1e-3, 1e-3)).is_within
    assert measured(a, b, Tolerance("elemwise", 1e-5, 1e-3)).errors.mismatched == 1


def test_every_sample_must_hold_not_their_mean():
    a, b = [np.zeros(4)] * 10, [np.zeros(4)] * 9 + [np.full(4, 0.5)]
    found = measured(a, b, Tolerance("mean", 0.1, None))
    assert not found.is_within and "in 1 of 10 samples, first 9" in found.reason
    assert [p.is_within for p in found.curve] == [True] * 9 + [False]


def test_defaults_follow_the_numbers_of_both_sides():
    none = Limits({}, {}, {})
    as_float, int8, same = (tolerance("y", none, *pair) for pair in (("float", "float"), ("float", "int8"), ("int8", "int8")))
    assert as_float.of_peak == 1e-4 and int8.min_sqnr_db == 20 and same.min_sqnr_db == 40
    assert "recording" in tolerance("y", none, "unknown", "float").why
    given = tolerance("y", Limits({"": 0.1, "y": 0.2}, {}, {"y": "mean"}), "float", "int8")
    assert (given.atol, given.rtol, given.stat, given.min_sqnr_db) == (0.2, 1e-5, "mean", None)


@pytest.mark.parametrize("other, passes", [("float32 sums in another order", True), ("bfloat16", False)])
def test_the_float_default_tells_an_order_from_a_precision(other, passes):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((64, 512)).astype(np.float32), rng.standard_normal((512, 128)).astype(np.float32)
    if passes:
        y = sum(x[:, i : i + 8] @ w[i : i + 8] for i in range(0, 512, 8))
    else:
        cut = np.array([0xFFFF0000], np.uint32)
        y = (x.view(np.uint32) & cut).view(np.float32) @ (w.view(np.uint32) & cut).view(np.float32)
    assert measured([x @ w], [y], tolerance("y", Limits({}, {}, {}), "float", "float")).is_within == passes


def test_empty_and_scalar_outputs_and_other_dtypes():
    assert measured([np.zeros((0, 3))], [np.zeros((0, 3))]).is_within
    found = measured([np.float32(2)], [np.float32(2.5)], Tolerance("max", 0.4, 0.0))
    assert found.worst.index == () and found.worst.around_a == (2.0,) and not found.is_within
    assert measured([np.array([True, False])], [np.array([True, True])]).errors.max_abs == 1
    assert measured([np.array([255], np.uint8)], [np.array([0], np.uint8)]).errors.max_abs == 255


def test_arguments_are_polygraphys():
    assert arguments.numbers(["1e-3", "a:b:0.5"], "--atol") == {"": 1e-3, "a:b": 0.5}
    assert arguments.ranges(["[0,1]", "ids:0,9"]) == {"": (0.0, 1.0), "ids": (0.0, 9.0)}
    assert arguments.shapes(["x:[1,3,4]"]) == {"x": (1, 3, 4)} and arguments.states(["h:hn"]) == {"h": "hn"}
    for call in (lambda: arguments.numbers(["x"], "--atol"), lambda: arguments.numbers(["-1"], "--rtol"), lambda: arguments.numbers(["nan"], "--atol"),
                 lambda: arguments.stats(["maximum"]), lambda: arguments.ranges(["1"]), lambda: arguments.ranges(["2,1"]), lambda: arguments.shapes(["1,2"]), lambda: arguments.states(["h"])):  # fmt: skip
        with pytest.raises(UsageError):
            call()


class TestPolygraphy:
    """Against the real thing: `pip install polygraphy` in any environment (0.53.6 was used), or put it on PYTHONPATH."""

    @pytest.fixture(autouse=True)
    def polygraphy(self):
        pytest.importorskip("polygraphy", reason="polygraphy is not installed")

    @staticmethod
    def theirs(compare, a, b):
        from polygraphy.comparator import IterationResult
        from polygraphy.logger import G_LOGGER

        with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            return compare(IterationResult({"y": a}), IterationResult({"y": b}))["y"]

    @pytest.mark.parametrize("noise", [1e-6, 1e-4, 1e-2])
    def test_statistics_agree(self, noise):
        from polygraphy.comparator.compare import SimpleCompareFunc

        a, b = made(samples=1, noise=noise)
        got, want = measured(a, b).errors, self.theirs(SimpleCompareFunc(check_error_stat="quantile"), a[0], b[0])
        for ours, name in ((got.max_abs, "max_absdiff"), (got.max_rel, "max_reldiff"), (got.mean_abs, "mean_absdiff"), (got.mean_rel, "mean_reldiff"),
                           (got.quantiles_abs["0.5"], "median_absdiff"), (got.quantiles_rel["0.5"], "median_reldiff"),
                           (got.quantiles_abs["0.99"], "quantile_absdiff"), (got.quantiles_rel["0.99"], "quantile_reldiff")):  # fmt: skip
            assert ours == pytest.approx(getattr(want, name), rel=1e-4), name  # theirs is float32
        for ours, name, field in ((got.sqnr_db, "SnrCompareFunc", "snr"), (got.psnr_db, "PsnrCompareFunc", "psnr"), (got.cosine, "CosineSimilarityCompareFunc", "cosine_similarity")):
            from polygraphy.comparator import compare

            assert ours == pytest.approx(getattr(self.theirs(getattr(compare, name)(), a[0], b[0]), field), rel=1e-4), name

    @pytest.mark.parametrize("stat", measure.STATS)
    @pytest.mark.parametrize("atol, rtol", [(1e-5, 1e-5), (1e-3, 1e-5), (1e-5, 1e-3), (3e-3, 3e-3), (1e-2, 0.0), (0.0, 1e-2)])
    @pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-3, 1e-2])
    def test_verdicts_agree(self, stat, atol, rtol, noise):
        from polygraphy.comparator.compare import SimpleCompareFunc

        a, b = made(samples=1, noise=noise)
        b[0].reshape(-1)[0] = 0
        want = bool(self.theirs(SimpleCompareFunc(atol=atol, rtol=rtol, check_error_stat=stat), a[0], b[0]))
        assert measured(a, b, Tolerance(stat, atol, rtol)).is_within == want

    @pytest.mark.parametrize("stat", measure.STATS)
    def test_nan_fails_there_too(self, stat):
        from polygraphy.comparator.compare import SimpleCompareFunc

        a, b = np.array([1.0, np.nan], np.float32), np.array([1.0, np.nan], np.float32)
        assert not self.theirs(SimpleCompareFunc(check_error_stat=stat), a, b) and not measured([a], [b], Tolerance(stat, 1e-5, 1e-5)).is_within

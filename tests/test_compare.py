import math

import numpy as np
import pytest

from edgekit.compare import compare
from edgekit.errors import DataError


def test_the_worst_index_and_the_sizes_of_the_error_are_found():
    want = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    got = want.copy()
    got[1, 0, 2] += 0.5
    got[0, 0, 0] -= 0.25
    diff = compare({"y": want}, {"y": got})["y"]
    assert (diff.max_abs, diff.worst) == (0.5, (1, 0, 2))
    assert diff.mean_abs == pytest.approx(0.75 / 24)
    assert diff.sqnr_db == pytest.approx(10 * math.log10((want.astype(float) ** 2).sum() / (0.25 + 0.0625)))
    assert diff.cosine == pytest.approx((want * got).sum() / np.linalg.norm(want) / np.linalg.norm(got), abs=1e-6)
    assert str(diff) == "`y` is off by 0.5 (max_abs); worst at [1, 0, 2]"


def test_names_must_match_exactly_and_are_all_named():
    with pytest.raises(DataError, match="missing mask, o; unexpected mask_0"):
        compare({"o": [1.0], "mask": [1.0], "v": [1.0]}, {"v": [1.0], "mask_0": [1.0]})


def test_shapes_are_checked_before_values_and_never_broadcast():
    with pytest.raises(DataError, match=r"`y` has shape \[1\], expected \[1, 1\]"):
        compare({"x": [math.nan], "y": np.ones((1, 1))}, {"x": [0.0], "y": np.ones(1)})


@pytest.mark.parametrize("want, got", [([math.nan], [1.0]), ([1.0], [math.nan]), ([math.nan], [math.nan])])
def test_nan_fails_on_either_side_and_on_both(want, got):
    diff = compare({"y": want}, {"y": got})["y"]
    assert math.isnan(diff.max_abs)
    assert not diff.within(math.inf)


def test_the_first_nan_is_the_worst():
    assert compare({"y": [9.0, 1.0, 2.0]}, {"y": [0.0, math.nan, math.nan]})["y"].worst == (1,)


def test_equal_infinities_agree_and_others_fail():
    assert compare({"y": [math.inf, 1]}, {"y": [math.inf, 1]})["y"].max_abs == 0
    assert not compare({"y": [math.inf]}, {"y": [-math.inf]})["y"].within(1e300)


def test_equal_tensors_have_infinite_sqnr_and_cosine_one():
    diff = compare({"y": [1.0, -2.0]}, {"y": [1.0, -2.0]})["y"]
    assert (diff.max_abs, diff.sqnr_db, diff.cosine) == (0, math.inf, 1)


def test_silence_against_silence_and_against_noise():
    assert compare({"y": [0.0]}, {"y": [0.0]})["y"].cosine == 1
    noisy = compare({"y": [0.0, 0.0]}, {"y": [0.0, 1.0]})["y"]
    assert (noisy.sqnr_db, noisy.cosine, noisy.max_abs) == (-math.inf, 0, 1)


def test_scalars_and_empty_tensors_have_a_difference():
    assert compare({"y": np.float32(1)}, {"y": 1.25})["y"].max_abs == 0.25
    assert compare({"y": np.zeros((0, 3))}, {"y": np.zeros((0, 3))})["y"].within(0)


def test_unsigned_integers_do_not_wrap_around():
    assert compare({"y": np.uint8([0])}, {"y": np.uint8([1])})["y"].max_abs == 1


def test_complex_and_text_are_refused():
    with pytest.raises(DataError, match="complex"):
        compare({"y": [1j]}, {"y": [1j]})

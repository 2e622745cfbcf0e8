"""Metrics against brute force, one clip at a time in plain Python, and what happens on bad input."""

import math
import warnings

import numpy as np
import pytest
import sklearn.metrics as sklearn

from edgekit.errors import DataError
from edgekit.metrics import METRICS, agreement, bootstrap, paired_bootstrap, postprocessed, recordings, smoothed


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def brute_mae(labels, predictions):
    clip = lambda x: max(-1.0, min(1.0, x))  # noqa: E731
    return sum(abs(clip(p) - clip(y)) for y, p in zip(labels, predictions, strict=True)) / len(labels)


def brute_f1(labels, predictions):
    total = 0.0
    for positive in (False, True):
        pairs = [((y > 0) == positive, (p > 0) == positive) for y, p in zip(labels, predictions, strict=True)]
        tp = sum(t and g for t, g in pairs)
        precision = tp / max(1, sum(g for _, g in pairs))
        recall = tp / max(1, sum(t for t, _ in pairs))
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        total += sum(t for t, _ in pairs) / len(pairs) * f1
    return 100 * total


def brute_corr(labels, predictions):
    n, my, mp = len(labels), sum(labels) / len(labels), sum(predictions) / len(predictions)
    cov = sum((y - my) * (p - mp) for y, p in zip(labels, predictions, strict=True)) / n
    sy = math.sqrt(sum((y - my) ** 2 for y in labels) / n)
    sp = math.sqrt(sum((p - mp) ** 2 for p in predictions) / n)
    return cov / (sy * sp)


def brute_accuracy(cuts):
    def interval(x):
        edges = [-math.inf, *cuts, math.inf]
        return next(i for i in range(len(edges) - 1) if edges[i] < x <= edges[i + 1])

    return lambda ys, ps: 100 * sum(interval(y) == interval(p) for y, p in zip(ys, ps, strict=True)) / len(ys)


BRUTE = {
    "mae": brute_mae,
    "f1": brute_f1,
    "corr": brute_corr,
    "acc2": brute_accuracy([0.0]),
    "acc3": brute_accuracy([-0.1, 0.1]),
    "acc5": brute_accuracy([-0.7, -0.1, 0.1, 0.7]),
    "mae7": lambda ys, ps: sklearn.mean_absolute_error(ys, ps),
    "acc2_has0": lambda ys, ps: 100 * sklearn.accuracy_score([y >= 0 for y in ys], [p >= 0 for p in ps]),
    "acc2_non0": lambda ys, ps: 100 * sklearn.accuracy_score(*signs(ys, ps)),
    "f1_non0": lambda ys, ps: 100 * sklearn.f1_score(*signs(ys, ps), average="weighted"),
    "acc7": lambda ys, ps: 100 * sklearn.accuracy_score(*([round(max(-3.0, min(3.0, x))) for x in xs] for xs in (ys, ps))),
}


def signs(labels, predictions):
    kept = [(y > 0, p > 0) for y, p in zip(labels, predictions, strict=True) if y != 0]
    return [y for y, _ in kept], [p for _, p in kept]


def brute_concordance(labels, predictions):
    """Lin's definition from numpy's own moments, of every quantity."""
    rows = []
    for d in range(labels.shape[2]):
        x, y = labels[..., d].ravel(), predictions[..., d].ravel()
        (sxx, sxy), (_, syy) = np.cov(x, y, bias=True)
        rows.append(2 * sxy / (sxx + syy + (x.mean() - y.mean()) ** 2))
    return rows


CLASSES = {
    "wa": lambda ys, chosen: sklearn.accuracy_score(ys, chosen),
    "ua": lambda ys, chosen: sklearn.balanced_accuracy_score(ys, chosen),
    "f1_macro": lambda ys, chosen: sklearn.f1_score(ys, chosen, average="macro", labels=np.unique(ys)),
    "f1_weighted": lambda ys, chosen: sklearn.f1_score(ys, chosen, average="weighted", labels=np.unique(ys)),
}
TIMELINE = {
    "ccc": lambda ys, ps: np.mean(brute_concordance(ys, ps)),
    "ccc_valence": lambda ys, ps: brute_concordance(ys, ps)[0],
    "ccc_arousal": lambda ys, ps: brute_concordance(ys, ps)[1],
    "rmse": lambda ys, ps: np.mean([math.sqrt(((ys[..., d] - ps[..., d]) ** 2).mean()) for d in range(ys.shape[2])]),
}
SPEECH = ("si_sdr", "stoi", "pesq")  # test_speech_quality.py
VALUE = [name for name, metric in METRICS.items() if metric.task == "value"]


def sample(name, n, rng):
    """Labels and predictions as the metric's task has them."""
    task = METRICS[name].task
    if METRICS[name].needs_package:
        pytest.importorskip(METRICS[name].needs_package, reason=f"{name} needs a package that is not installed")
    if task == "speech":
        return speech(n, rng)
    if task == "classes":
        return rng.integers(0, 5, n).astype(float), rng.normal(0, 1, (n, 5))
    shape = (n,) if task == "value" else (n, 7, 2)
    return rng.uniform(-1, 1, shape), rng.uniform(-1, 1, shape)


def speech(n, rng):
    """Noise that comes in bursts, as words do, 0.6 s of it, and more noise: [n, samples] twice."""
    words = 0.05 + (np.sin(np.arange(9600) / 800 + rng.uniform(0, 6, (n, 1))) > 0)
    clean = 0.1 * words * rng.normal(0, 1, (n, 9600))
    return clean, clean + rng.normal(0, 0.05, (n, 9600))


def test_every_metric_is_checked_against_another_definition():
    assert set(METRICS) == {*BRUTE, *CLASSES, *TIMELINE, *SPEECH}


@pytest.mark.parametrize("name", CLASSES)
def test_a_metric_of_classes_equals_scikit_learns(name, rng):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class that was chosen and never occurs
        for n in (2, 3, 17, 200):
            labels, scores = sample(name, n, rng)
            assert METRICS[name](labels, scores) == pytest.approx(100 * CLASSES[name](labels, scores.argmax(1)), abs=1e-12)


@pytest.mark.parametrize("name", TIMELINE)
def test_a_metric_over_time_equals_its_definition_from_numpys_moments(name, rng):
    for n in (2, 30):
        labels, predictions = sample(name, n, rng)
        predictions = 0.6 * labels + 0.4 * predictions + 0.2
        assert METRICS[name](labels, predictions) == pytest.approx(TIMELINE[name](labels, predictions), abs=1e-12)


def test_concordance_is_1_for_equal_0_for_constant_and_falls_with_bias_and_scale(rng):
    labels = rng.uniform(-1, 1, (10, 4, 2))
    ccc = METRICS["ccc"]
    assert ccc(labels, labels) == pytest.approx(1)
    assert ccc(labels, np.full_like(labels, 0.3)) == pytest.approx(0, abs=1e-12)
    assert ccc(labels, labels + 0.5) < 0.9 and ccc(labels, 0.5 * labels) < 0.9 and ccc(labels, -labels) < 0


def test_a_class_out_of_range_is_refused_by_its_place():
    with pytest.raises(DataError, match="label 1 is 3, not the index of one of 3 classes"):
        METRICS["ua"]([0, 3], np.eye(3)[:2])


def test_agreement_counts_equal_choices_and_is_nan_with_nan():
    a = np.array([[0.1, 0.2], [0.5, 0.4], [1, 0]])
    assert agreement(a, a + np.array([[0, 0], [0, 0.2], [0, 0]])) == pytest.approx(200 / 3)
    assert math.isnan(agreement(a, a * math.nan))


def test_windows_become_recordings_again_in_the_order_of_their_frames():
    at = np.array([[4, 2], [0, 2], [7, 8]])
    values = np.array([[40, 20], [0, 30], [1, 2]])[..., None] * np.ones(2)
    got = recordings(["a", "a", "b"], at, values)
    np.testing.assert_array_equal(got[0, :, 0], [0, 25, 40, 1, 2])  # a's frames 0, 2 (the mean of two windows), 4; b's 7, 8
    assert got.shape == (1, 5, 2)


def test_postprocessing_clips_and_smooths_every_recording_alone(rng):
    at = np.arange(120).reshape(2, 60)
    values = rng.normal(0, 1, (2, 60, 2))
    got = postprocessed(["a", "b"], at, values)[0]
    for d, over in enumerate((20, 50)):
        want = np.concatenate([smoothed(np.clip(values[i, :, d], -1, 1), over) for i in range(2)])
        np.testing.assert_allclose(got[:, d], want)


def test_smoothing_keeps_the_length_and_starts_from_zeros():
    series = np.ones(100)
    got = smoothed(series, 20)
    assert len(got) == 100 and got[50] == pytest.approx(1) and got[0] == pytest.approx(0.5)
    np.testing.assert_allclose(got, np.convolve(np.pad(series, (10, 9)), np.ones(20) / 20, "valid"))


@pytest.mark.parametrize("name", BRUTE)
def test_a_metric_equals_its_definition_written_out(name, rng):
    for n in (2, 3, 17, 100):
        # Tenths put many values exactly on the cut points, where classes are easy to get wrong.
        labels = rng.integers(-10, 11, n) / 10
        labels[:2] = (-0.5, 0.5)
        predictions = np.where(rng.random(n) < 0.5, rng.integers(-13, 14, n) / 10, rng.normal(0, 0.6, n))
        got = METRICS[name](labels, predictions)
        assert got == pytest.approx(BRUTE[name](labels.tolist(), predictions.tolist()), abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_scores_many_resamples_at_once_as_one_by_one(name, rng):
    labels, predictions = sample(name, 40, rng)
    rows = rng.integers(0, 40, (5, 40))
    many = bootstrap(METRICS[name], labels, predictions, n=5, seed=2)
    rows = np.random.default_rng(2).integers(0, 40, (5, 40))
    one_by_one = [METRICS[name](labels[i], predictions[i]) for i in rows]
    np.testing.assert_allclose(many, np.percentile(one_by_one, (2.5, 97.5)), atol=1e-12)


def test_zero_is_in_the_left_class_and_cut_points_close_their_interval_on_the_right():
    assert METRICS["f1"]([0.0, 1.0], [-1.0, 1.0]) == 100
    assert METRICS["acc2"]([0.0], [1e-9]) == 0
    assert METRICS["acc3"]([0.1], [0.05]) == 100
    assert METRICS["acc3"]([0.1], [0.100001]) == 0
    assert METRICS["acc5"]([-0.7], [-1.0]) == 100


def test_mae_clips_both_sides_to_the_scale():
    assert METRICS["mae"]([1.0, -1.0], [3.0, -9.0]) == 0


def test_units_and_directions_are_stated():
    assert (METRICS["mae"].unit, METRICS["mae"].direction) == ("", "lower")
    assert (METRICS["f1"].unit, METRICS["f1"].direction) == ("points", "higher")
    assert {m.direction for name, m in METRICS.items() if name not in ("mae", "mae7", "rmse")} == {"higher"}


@pytest.mark.parametrize("name", METRICS)
def test_a_prediction_that_is_not_finite_makes_the_metric_nan(name):
    labels, predictions = sample(name, 4, np.random.default_rng(0))
    for bad in (math.nan, math.inf):  # inf would clip to 1 and look like a fine prediction
        broken = predictions.copy()
        broken[(1,) * broken.ndim] = bad
        assert math.isnan(METRICS[name](labels, broken))
        assert math.isnan(paired_bootstrap(METRICS[name], labels, predictions, broken)[2])


@pytest.mark.parametrize("name", METRICS)
def test_no_clips_other_shapes_and_bad_labels_are_refused(name):
    labels, predictions = sample(name, 3, np.random.default_rng(0))
    with pytest.raises(DataError, match="no clips"):
        METRICS[name](labels[:0], predictions[:0])
    with pytest.raises(DataError, match=r"shape \[2.*\], predictions \[3"):
        METRICS[name](labels[:2], predictions)
    labels[1] = math.nan
    with pytest.raises(DataError, match="label 1 is nan"):
        METRICS[name](labels, predictions)


def test_constant_predictions_correlate_with_nothing():
    assert METRICS["corr"]([0.1, 0.5, -0.3], [0.1, 0.1, 0.1]) == 0
    assert METRICS["f1"]([0.5, 0.4, -0.3, 0.2], [0.1] * 4) == pytest.approx(100 * 0.75 * 2 * 0.75 / 1.75)


def test_correlation_with_constant_labels_is_refused():
    with pytest.raises(DataError, match=r"all 3 labels are 0\.2"):
        METRICS["corr"]([0.2, 0.2, 0.2], [0.1, 0.2, 0.3])


@pytest.mark.parametrize("name", METRICS)
def test_the_bootstrap_equals_a_loop_over_resamples(name, rng):
    labels, a = sample(name, 30, rng)
    b = a + rng.normal(0, 0.2, a.shape)
    metric = METRICS[name]
    delta, low, high = paired_bootstrap(metric, labels, a, b, n=200, seed=3)
    drawn = np.random.default_rng(3).integers(0, 30, size=(200, 30))
    deltas = [metric(labels[i], b[i]) - metric(labels[i], a[i]) for i in drawn]
    assert delta == pytest.approx(metric(labels, b) - metric(labels, a), abs=1e-12)
    assert (low, high) == pytest.approx((np.percentile(deltas, 2.5), np.percentile(deltas, 97.5)), abs=1e-9)


def test_the_interval_of_a_pair_is_narrower_than_that_of_its_two_scores(rng):
    labels = rng.uniform(-1, 1, 300)
    a = labels + rng.normal(0, 0.3, 300)
    b = a + rng.normal(0, 0.01, 300)
    _, low, high = paired_bootstrap(METRICS["mae"], labels, a, b)
    alone_low, alone_high = bootstrap(METRICS["mae"], labels, a)
    assert (high - low) * 5 < alone_high - alone_low


def test_the_interval_covers_the_true_change_about_19_times_in_20(rng):
    covered = 0
    for seed in range(200):
        noise = rng.normal(0, 0.1, (2, 120))
        # The clip to [-1, 1] is out of reach, so the expected change is that of the half-normal means.
        labels = np.zeros(120)
        _, low, high = paired_bootstrap(METRICS["mae"], labels, noise[0], 1.5 * noise[1], n=300, seed=seed)
        covered += low <= 0.05 * math.sqrt(2 / math.pi) <= high
    assert 178 <= covered <= 200  # 190 +- 4 standard deviations of a binomial, upper end open


def test_the_same_seed_gives_the_same_interval_and_memory_stays_bounded(rng):
    labels, a, b = rng.uniform(-1, 1, (3, 5000))
    again = [paired_bootstrap(METRICS["mae"], labels, a, b, n=500, seed=1) for _ in range(2)]
    assert again[0] == again[1]


def test_an_unchanged_prediction_costs_exactly_nothing(rng):
    labels, a = rng.uniform(-1, 1, (2, 50))
    assert paired_bootstrap(METRICS["mae"], labels, a, a) == (0, 0, 0)


def test_one_clip_has_no_interval():
    with pytest.raises(DataError, match="at least 2 clips, got 1"):
        paired_bootstrap(METRICS["mae"], [0.1], [0.1], [0.2])


def test_labels_beyond_what_mae_clips_to_are_refused_and_not_scored_wrongly():
    with pytest.raises(DataError, match=r"mae: a label is -3.5, and everything beyond ±1 would be clipped"):
        METRICS["mae"]([0.5, -3.5, 2.0], [0.5, -3.5, 2.0])
    assert METRICS["corr"]([0.5, -3.5, 2.0], [0.5, -3.5, 2.0]) == pytest.approx(1)

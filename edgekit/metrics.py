"""What a prediction is worth, and how sure we are of it.

A metric is for one task, which fixes its shapes (n clips):

- value: labels [n], predictions [n], such as one valence a clip. Cut points, clipping and weighting follow
  MMSA's evaluation, `thuiar/MMSA:src/MMSA/utils/metricsTop.py`;
- classes: labels [n] are class indices 0..C-1, predictions [n, C] are scores such as logits; the largest counts;
- timeline: labels [n, T, D], predictions [n, T, D]: T moments of D quantities, such as valence and arousal.
  CCC is taken over all moments of all clips together, and its mean over the D quantities;
- speech: labels [n, samples] are clean speech at 16 kHz, predictions [n, samples] denoised speech. Every clip gets a score
  (speech_quality.py), and the metric is their mean.

Intervals come from resampling whole clips, since moments of one clip hang together.

Degenerate input, decided once and for all metrics:

- no clips, shapes that differ, or a label that is not finite: DataError;
- a prediction that is not finite: the metric is NaN, which no gate passes;
- constant predictions: correlation and CCC 0, since they say nothing about the label;
- a label outside −1..1: DataError for the mean absolute error, which clips there;
- constant labels: DataError for correlation and CCC (undefined), 0 inside a bootstrap resample;
- a class that no label has: it does not enter the mean recall or the mean F1, as it has none;
- clean speech that is silent: DataError, since nothing can be as good as silence;
- denoised speech that is silent: SI-SDR -80 dB, STOI 0, PESQ NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgekit import speech_quality
from edgekit.errors import DataError

Floats = NDArray[np.float64]
Task = Literal["value", "classes", "timeline", "speech"]


@dataclass(frozen=True)
class Metric:
    """A score of predictions against labels."""

    name: str
    fn: Callable[..., Floats]
    """Of arrays [rows, n, ...] to scores [rows], so that one call scores many bootstrap resamples at once. value: labels, predictions;
    classes: indices of both; timeline: one array of sums for each clip, see `_sums`; speech: one array of the clips' scores."""
    unit: str
    direction: Literal["lower", "higher"]
    """Which way is better."""
    title: str
    needs_varied_labels: bool = False
    labels_within: float | None = None
    """Labels beyond ± this would be clipped, and the score would be wrong."""
    quantity: int | None = None
    """Of a timeline: the one quantity that it is about, where it is not about all."""
    task: Task | None = "value"
    """None: a function of the user's, which takes labels and predictions of any task as they are."""
    per_clip: Callable[[Floats, Floats], Floats] | None = None
    """Of speech: clean and denoised [n, samples] to scores [n], which are computed once and then drawn from."""
    needs_package: str | None = None
    """A package that edgekit does not install: the metric is for those who name it."""

    def __call__(self, labels: object, predictions: object) -> float:
        """Score predictions against labels; shapes as the task has them.

        Raises:
            DataError: no clips, shapes that differ, labels that are not finite or do not vary.
        """
        return _whole(self, _parts(self, labels, predictions))


def mean_absolute_error(labels: Floats, predictions: Floats) -> Floats:
    """mean|y' - y| with both clipped to [-1, 1]: a prediction beyond the scale counts as its end."""
    return np.abs(np.clip(predictions, -1, 1) - np.clip(labels, -1, 1)).mean(axis=-1)


def weighted_f1(labels: Floats, predictions: Floats) -> Floats:
    """F1 of the classes [-1, 0] and (0, 1], weighted by how many labels each has, x100."""
    score = np.zeros(labels.shape[:-1])
    for positive in (False, True):
        truth, guess = (labels > 0) == positive, (predictions > 0) == positive
        hits = (truth & guess).sum(axis=-1)
        named = truth.sum(axis=-1) + guess.sum(axis=-1)  # 2 TP + FP + FN
        f1 = np.divide(2 * hits, named, out=np.zeros(hits.shape), where=named > 0)
        score = score + truth.mean(axis=-1) * f1
    return 100 * score


def pearson_correlation(labels: Floats, predictions: Floats) -> Floats:
    """Pearson r; 0 where either side is constant."""
    y = labels - labels.mean(axis=-1, keepdims=True)
    p = predictions - predictions.mean(axis=-1, keepdims=True)
    norm = np.sqrt((y * y).sum(axis=-1) * (p * p).sum(axis=-1))
    # The mean of equal numbers may be off by an ulp, which leaves a residue instead of zeros:
    # ask the data whether it varies, not the residue.
    varied = (np.ptp(labels, axis=-1) > 0) & (np.ptp(predictions, axis=-1) > 0) & (norm > 0)
    return np.divide((y * p).sum(axis=-1), norm, out=np.zeros(norm.shape), where=varied)


def absolute_error(labels: Floats, predictions: Floats) -> Floats:
    """mean|y' - y|, nothing clipped."""
    return np.abs(predictions - labels).mean(axis=-1)


def accuracy_of_sign(with_zero: bool) -> Callable[[Floats, Floats], Floats]:
    """Share of clips on the right side of 0, x100: negative against the rest, or, without the labels that are 0, against positive."""

    def share(labels: Floats, predictions: Floats) -> Floats:
        if with_zero:
            return 100 * ((labels >= 0) == (predictions >= 0)).mean(axis=-1)
        counts = labels != 0
        hits = counts & ((labels > 0) == (predictions > 0))
        return 100 * _ratio(hits.sum(axis=-1), counts.sum(axis=-1))

    return share


def f1_of_sign(labels: Floats, predictions: Floats) -> Floats:
    """F1 of negative and positive, weighted by how many labels each has, over labels that are not 0, x100."""
    counts = labels != 0
    total, score = counts.sum(axis=-1), np.zeros(labels.shape[:-1])
    for positive in (False, True):
        truth, guess = counts & ((labels > 0) == positive), counts & ((predictions > 0) == positive)
        named = truth.sum(axis=-1) + guess.sum(axis=-1)
        score = score + _ratio(truth.sum(axis=-1), total) * _ratio(2 * (truth & guess).sum(axis=-1), named)
    return 100 * score


def accuracy_rounded(limit: int) -> Callable[[Floats, Floats], Floats]:
    """Share of clips whose prediction rounds to the label's integer, both clipped to ± limit first, x100. Halves round to even."""

    def share(labels: Floats, predictions: Floats) -> Floats:
        want, got = (np.round(np.clip(values, -limit, limit)) for values in (labels, predictions))
        return 100 * (want == got).mean(axis=-1)

    return share


def class_accuracy(labels: Floats, chosen: Floats) -> Floats:
    """Share of clips whose class is right, x100: the weighted accuracy (WA) of emotion recognition."""
    return 100 * (labels == chosen).mean(axis=-1)


def mean_recall(labels: Floats, chosen: Floats) -> Floats:
    """Mean over the classes that occur of the share of their clips that were found, x100: the unweighted accuracy (UA)."""
    recalls, present = _per_class(labels, chosen, lambda truth, guess: _ratio((truth & guess).sum(axis=-1), truth.sum(axis=-1)))
    return 100 * _ratio((recalls * present).sum(axis=0), present.sum(axis=0))


def class_f1(weighted: bool) -> Callable[[Floats, Floats], Floats]:
    """Mean F1 of the classes that occur, plain (macro) or weighted by how many labels each has, x100."""

    def score(labels: Floats, chosen: Floats) -> Floats:
        f1, present = _per_class(labels, chosen, lambda truth, guess: _ratio(2 * (truth & guess).sum(axis=-1), truth.sum(axis=-1) + guess.sum(axis=-1)))
        if weighted:
            present = _per_class(labels, chosen, lambda truth, guess: truth.mean(axis=-1))[0]
        return 100 * _ratio((f1 * present).sum(axis=0), present.sum(axis=0))

    return score


def _per_class(labels: Floats, chosen: Floats, score: Callable) -> tuple[Floats, Floats]:
    """([classes, rows] of `score`, whether a class occurs), over every class that is a label in any row."""
    classes = np.unique(labels)
    rows = np.array([score(labels == c, chosen == c) for c in classes])
    present = np.array([(labels == c).any(axis=-1) for c in classes], dtype=np.float64)
    return rows, present


def _ratio(part: Floats, whole: Floats) -> Floats:
    """part / whole, 0 where there is nothing."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.zeros(np.broadcast(part, whole).shape), where=whole > 0)


def concordance(which: int | None = None) -> Callable[[Floats], Floats]:
    """Lin's concordance, 2 s_xy / (s_x^2 + s_y^2 + (mean x - mean y)^2) with population moments over all moments of all clips:
    of quantity `which`, or its mean over all."""

    def score(sums: Floats) -> Floats:
        count, x, y, xx, yy, xy = np.moveaxis(sums.sum(axis=-3), -2, 0)  # each [rows, D]
        mean_x, mean_y = x / count, y / count
        covariance = xy / count - mean_x * mean_y
        spread = xx / count - mean_x**2 + yy / count - mean_y**2 + (mean_x - mean_y) ** 2
        ccc = np.divide(2 * covariance, spread, out=np.zeros(spread.shape), where=spread > 1e-15)
        return ccc.mean(axis=-1) if which is None else ccc[..., which]

    return score


def root_mean_square_error(sums: Floats) -> Floats:
    """sqrt of the mean squared error over all moments of all clips; mean over the quantities."""
    count, _, _, xx, yy, xy = np.moveaxis(sums.sum(axis=-3), -2, 0)
    return np.sqrt(np.maximum(xx - 2 * xy + yy, 0) / count).mean(axis=-1)


def mean_of_clips(scores: Floats) -> Floats:
    """Every clip counts the same."""
    return scores.mean(axis=-1)


def _sums(labels: Floats, predictions: Floats) -> Floats:
    """[n, 6, D]: of every clip the number of moments and the sums of x, y, x^2, y^2, xy; what a resample adds up."""
    centre = labels.mean(axis=(0, 1))  # sums of squares of large numbers would lose their differences
    x, y = labels - centre, predictions - centre
    return np.stack([np.ones_like(x).sum(axis=1), x.sum(axis=1), y.sum(axis=1), (x * x).sum(axis=1), (y * y).sum(axis=1), (x * y).sum(axis=1)], axis=1)


def smoothed(series: Floats, frames: int) -> Floats:
    """Moving average over `frames` neighbours of a video's series [T], as long as the series, zeros beyond its ends.

    What AVER's released evaluation does to a video's predictions before scoring, after clipping them to -1..1:
    20 frames for valence, 50 for arousal.
    """
    kernel = np.ones(frames) / frames
    return np.convolve(series, kernel)[(frames - 1) // 2 :][: len(series)]


SMOOTHED_OVER = (20, 50)  # frames, of valence and arousal


def recordings(series: list[str], at: NDArray[np.int64], values: Floats) -> Floats:
    """[1, frames, D]: what windows say, put together by recording and frame; frames that several windows speak of get their mean.

    Args:
        series: [n], the recording of each window.
        at: [n, T], the frame that each moment stands for.
        values: [n, T, D].
    """
    parts = []
    for name in dict.fromkeys(series):
        mine = [i for i, one in enumerate(series) if one == name]
        frames, where = np.unique(at[mine].reshape(-1), return_inverse=True)
        sums = np.zeros((len(frames), values.shape[-1]))
        np.add.at(sums, where.reshape(-1), values[mine].reshape(-1, values.shape[-1]))
        parts.append(sums / np.bincount(where.reshape(-1))[:, None])
    return np.concatenate(parts)[None]


def postprocessed(series: list[str], at: NDArray[np.int64], predictions: Floats) -> Floats:
    """`recordings` of predictions as AVER's evaluation scores them: clipped to -1..1, then every recording `smoothed`."""
    parts = []
    for name in dict.fromkeys(series):
        mine = np.array([one == name for one in series])
        joined = np.clip(recordings([name] * int(mine.sum()), at[mine], predictions[mine])[0], -1, 1)
        parts.append(np.stack([smoothed(joined[:, d], SMOOTHED_OVER[min(d, 1)]) for d in range(joined.shape[1])], axis=1))
    return np.concatenate(parts)[None]


def accuracy(cuts: tuple[float, ...]) -> Callable[[Floats, Floats], Floats]:
    """Share of clips in the right interval, x100; intervals are open left and closed right."""
    edges = np.asarray(cuts)

    def share(labels: Floats, predictions: Floats) -> Floats:
        # side="left" counts the cuts strictly below the value, so a value on a cut stays left.
        return 100 * (np.searchsorted(edges, labels) == np.searchsorted(edges, predictions)).mean(axis=-1)

    return share


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("mae", mean_absolute_error, "", "lower", "mean absolute error", labels_within=1.0),
        Metric("f1", weighted_f1, "points", "higher", "weighted F1 at 0"),
        Metric("corr", pearson_correlation, "", "higher", "Pearson correlation", needs_varied_labels=True),
        Metric("acc2", accuracy((0.0,)), "%", "higher", "accuracy, 2 classes"),
        Metric("acc3", accuracy((-0.1, 0.1)), "%", "higher", "accuracy, 3 classes"),
        Metric("acc5", accuracy((-0.7, -0.1, 0.1, 0.7)), "%", "higher", "accuracy, 5 classes"),
        Metric("mae7", absolute_error, "", "lower", "mean absolute error, −3 to 3", labels_within=3.0),
        Metric("acc2_has0", accuracy_of_sign(True), "%", "higher", "accuracy, negative or not"),
        Metric("acc2_non0", accuracy_of_sign(False), "%", "higher", "accuracy, negative or positive"),
        Metric("f1_non0", f1_of_sign, "points", "higher", "weighted F1, negative or positive"),
        Metric("acc7", accuracy_rounded(3), "%", "higher", "accuracy, 7 classes"),
        Metric("wa", class_accuracy, "%", "higher", "accuracy (WA)", task="classes"),
        Metric("ua", mean_recall, "%", "higher", "mean recall (UA)", task="classes"),
        Metric("f1_macro", class_f1(weighted=False), "points", "higher", "macro F1", task="classes"),
        Metric("f1_weighted", class_f1(weighted=True), "points", "higher", "weighted F1", task="classes"),
        Metric("ccc", concordance(), "", "higher", "mean CCC", needs_varied_labels=True, task="timeline"),
        Metric("ccc_valence", concordance(0), "", "higher", "CCC of valence", needs_varied_labels=True, quantity=0, task="timeline"),
        Metric("ccc_arousal", concordance(1), "", "higher", "CCC of arousal", needs_varied_labels=True, quantity=1, task="timeline"),
        Metric("rmse", root_mean_square_error, "", "lower", "root mean square error", task="timeline"),
        Metric("si_sdr", mean_of_clips, "dB", "higher", "SI-SDR", task="speech", per_clip=speech_quality.si_sdr),
        Metric("stoi", mean_of_clips, "", "higher", "STOI", task="speech", per_clip=speech_quality.stoi),
        Metric("pesq", mean_of_clips, "", "higher", "PESQ, wide band", task="speech", per_clip=speech_quality.pesq, needs_package="pesq"),
    )
}
# What a model is scored by where its data set names nothing.
DEFAULTS: dict[Task, tuple[str, ...]] = {
    "value": ("mae", "f1", "corr"),
    "classes": ("wa", "ua", "f1_macro"),
    "timeline": ("ccc", "ccc_valence", "ccc_arousal"),
    "speech": ("si_sdr", "stoi"),
}


def paired_bootstrap(
    metric: Metric, labels: object, a: object, b: object, n: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """How much `metric` changes from predictions a to b, and its 95 % percentile interval.

    Clips are drawn with replacement, and each draw scores a and b on the same clips: what makes
    a clip hard hits both, so the interval is of the change and not of the two scores.

    Args:
        labels, a, b: as the metric's task has them, clips first.
        n: number of resamples.

    Returns:
        (delta, low, high), delta = metric(b) - metric(a). All NaN when a prediction is.

    Raises:
        DataError: as `Metric`, and fewer than 2 clips, of which no interval can be taken.
    """
    parts_a, parts_b = _parts(metric, labels, a), _parts(metric, labels, b)
    _enough(labels)
    if not (parts_a and parts_b):
        return float("nan"), float("nan"), float("nan")
    clips = len(parts_a[0])
    drawn = np.concatenate([_score(metric, parts_b, i) - _score(metric, parts_a, i) for i in _resamples(clips, n, seed)])
    low, high = np.percentile(drawn, (2.5, 97.5))
    return _whole(metric, parts_b) - _whole(metric, parts_a), float(low), float(high)


def bootstrap(metric: Metric, labels: object, predictions: object, n: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval (low, high) of one score; arguments and errors as `paired_bootstrap`."""
    parts = _parts(metric, labels, predictions)
    _enough(labels)
    if not parts:
        return float("nan"), float("nan")
    drawn = np.concatenate([_score(metric, parts, i) for i in _resamples(len(parts[0]), n, seed)])
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)


def agreement(a: object, b: object) -> float:
    """Share of clips on which two models choose the same class, of scores [n, C] each, in %; NaN where a score is."""
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return float("nan")
    return float(100 * (first.argmax(axis=-1) == second.argmax(axis=-1)).mean())


def _whole(metric: Metric, parts: tuple[Floats, ...]) -> float:
    """The score of all clips."""
    return float(metric.fn(*(part[None] for part in parts))[0]) if parts else float("nan")


def _score(metric: Metric, parts: tuple[Floats, ...], drawn: NDArray[np.int64]) -> Floats:
    """Scores [rows] of clips drawn [rows, n]."""
    return metric.fn(*(part[drawn] for part in parts))


def _resamples(clips: int, n: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Clip indices [rows, clips], n rows in all, in pieces that keep memory under some 100 MB."""
    random = np.random.default_rng(seed)
    rows = max(1, 1_000_000 // clips)
    for start in range(0, n, rows):
        yield random.integers(0, clips, size=(min(rows, n - start), clips))


def _parts(metric: Metric, labels: object, predictions: object) -> tuple[Floats, ...]:
    """What `metric.fn` takes, clips first and without rows; nothing where a prediction is not finite.

    Raises:
        DataError: see `Metric.__call__`.
    """
    want, got = np.asarray(labels, dtype=np.float64), np.asarray(predictions, dtype=np.float64)
    _check_shapes(metric, want, got)
    if want.size == 0:
        raise DataError(f"{metric.name}: no clips to score")
    if not np.isfinite(want).all():
        worst = np.argwhere(~np.isfinite(want))[0]
        raise DataError(f"{metric.name}: label {worst[0]} is {want[tuple(worst)]}", hint="every clip needs a finite label")
    if metric.labels_within is not None and np.abs(want).max() > metric.labels_within:
        raise DataError(
            f"{metric.name}: a label is {want[np.abs(want).argmax()]:g}, and everything beyond ±{metric.labels_within:g} would be clipped",
            hint="list other `metrics` in the data set's YAML, or give a `metric` of your own",
        )
    if metric.needs_varied_labels and want.size > 1 and not is_varied(want):
        raise DataError(
            f"{metric.name}: all {len(want)} labels are {want.reshape(-1)[0]:g}, a correlation with them is undefined",
            hint="use more clips, or a data set whose labels vary",
        )
    if metric.task == "classes":
        _check_classes(metric, want, got)
    if not np.isfinite(got).all():
        return ()
    if metric.task == "classes":
        return want, got.argmax(axis=-1).astype(np.float64)
    if metric.per_clip is not None:
        return (metric.per_clip(want, got),)
    return (_sums(want, got),) if metric.task == "timeline" else (want, got)


def is_varied(labels: Floats) -> bool:
    """Whether labels [n] vary, or every quantity of [n, T, D] does."""
    values = np.asarray(labels)
    return bool((np.ptp(values.reshape(-1, values.shape[-1]) if values.ndim == 3 else values.reshape(-1, 1), axis=0) > 0).all())


def _check_shapes(metric: Metric, want: Floats, got: Floats) -> None:
    right = {
        "value": want.ndim == 1 and want.shape == got.shape,
        "classes": want.ndim == 1 and got.ndim == 2 and len(got) == len(want),
        "timeline": want.ndim == 3 and want.shape == got.shape,
        "speech": want.ndim == 2 and want.shape == got.shape,
        None: want.ndim >= 1 and len(want) == len(got),
    }[metric.task]
    if not right:
        raise DataError(f"{metric.name}: labels have shape {list(want.shape)}, predictions {list(got.shape)}")


def _check_classes(metric: Metric, want: Floats, got: Floats) -> None:
    wrong = np.flatnonzero((want != np.round(want)) | (want < 0) | (want >= got.shape[-1]))
    if len(wrong):
        raise DataError(f"{metric.name}: label {wrong[0]} is {want[wrong[0]]:g}, not the index of one of {got.shape[-1]} classes", "the model's classes and the data set's must be the same")


def _enough(labels: object) -> None:
    if len(np.asarray(labels)) < 2:
        raise DataError(f"an interval needs at least 2 clips, got {len(np.asarray(labels))}", hint="raise `verify.clips`")

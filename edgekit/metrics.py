"""What a prediction is worth, and how sure we are of it.

Every metric takes labels and predictions of shape [..., n] and returns [...], so that one
call scores all bootstrap resamples at once. Its definition (cut points, clipping, weighting)
follows MMSA's CH-SIMS evaluation, `thuiar/MMSA:src/MMSA/utils/metricsTop.py`.

Degenerate input, decided once and for all metrics:

- no clips, shapes that differ, or a label that is not finite: DataError;
- a prediction that is not finite: the metric is NaN, which no gate passes;
- constant predictions: correlation 0, since they say nothing about the label;
- a label outside −1..1: DataError for the mean absolute error, which clips there;
- constant labels: DataError for correlation (undefined), 0 inside a bootstrap resample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """A score of predictions against labels."""

    name: str
    fn: Callable[[Floats, Floats], Floats]
    unit: str
    direction: Literal["lower", "higher"]
    """Which way is better."""
    title: str
    needs_varied_labels: bool = False
    labels_within: float | None = None
    """Labels beyond ± this would be clipped, and the score would be wrong."""

    def __call__(self, labels: object, predictions: object) -> float:
        """Score predictions [n] against labels [n].

        Raises:
            DataError: no clips, shapes that differ, labels that are not finite or do not vary.
        """
        want, got = _checked(self, labels, predictions)
        return float(self.fn(want, got)) if np.isfinite(got).all() else float("nan")


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
    )
}


def paired_bootstrap(
    metric: Metric, labels: object, a: object, b: object, n: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """How much `metric` changes from predictions a to b, and its 95 % percentile interval.

    Clips are drawn with replacement, and each draw scores a and b on the same clips: what makes
    a clip hard hits both, so the interval is of the change and not of the two scores.

    Args:
        labels, a, b: [clips].
        n: number of resamples.

    Returns:
        (delta, low, high), delta = metric(b) - metric(a). All NaN when a prediction is.

    Raises:
        DataError: as `Metric`, and fewer than 2 clips, of which no interval can be taken.
    """
    want, first = _checked(metric, labels, a)
    _, second = _checked(metric, labels, b)
    _enough(want)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return float("nan"), float("nan"), float("nan")
    drawn = np.concatenate(
        [metric.fn(want[i], second[i]) - metric.fn(want[i], first[i]) for i in _resamples(len(want), n, seed)]
    )
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(metric.fn(want, second) - metric.fn(want, first)), float(low), float(high)


def bootstrap(metric: Metric, labels: object, predictions: object, n: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval (low, high) of one score; arguments and errors as `paired_bootstrap`."""
    want, got = _checked(metric, labels, predictions)
    _enough(want)
    if not np.isfinite(got).all():
        return float("nan"), float("nan")
    drawn = np.concatenate([metric.fn(want[i], got[i]) for i in _resamples(len(want), n, seed)])
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)


def _resamples(clips: int, n: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Clip indices [rows, clips], n rows in all, in pieces that keep memory under some 100 MB."""
    random = np.random.default_rng(seed)
    rows = max(1, 1_000_000 // clips)
    for start in range(0, n, rows):
        yield random.integers(0, clips, size=(min(rows, n - start), clips))


def _checked(metric: Metric, labels: object, predictions: object) -> tuple[Floats, Floats]:
    want, got = np.asarray(labels, dtype=np.float64), np.asarray(predictions, dtype=np.float64)
    if want.ndim != 1 or want.shape != got.shape:
        raise DataError(f"{metric.name}: labels have shape {list(want.shape)}, predictions {list(got.shape)}")
    if want.size == 0:
        raise DataError(f"{metric.name}: no clips to score")
    if not np.isfinite(want).all():
        worst = int(np.flatnonzero(~np.isfinite(want))[0])
        raise DataError(f"{metric.name}: label {worst} is {want[worst]}", hint="every clip needs a finite label")
    if metric.labels_within is not None and np.abs(want).max() > metric.labels_within:
        raise DataError(
            f"{metric.name}: a label is {want[np.abs(want).argmax()]:g}, and everything beyond ±{metric.labels_within:g} would be clipped",
            hint="list other `metrics` in the data set's YAML, or give a `metric` of your own",
        )
    if metric.needs_varied_labels and np.ptp(want) == 0 and want.size > 1:
        raise DataError(
            f"{metric.name}: all {want.size} labels are {want[0]:g}, a correlation with them is undefined",
            hint="use more clips, or a data set whose labels vary",
        )
    return want, got


def _enough(labels: Floats) -> None:
    if labels.size < 2:
        raise DataError(f"an interval needs at least 2 clips, got {labels.size}", hint="raise `verify.clips`")

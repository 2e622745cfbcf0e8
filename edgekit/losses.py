"""Training losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def regression_loss(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    """Sum over the heads that have a target of the mean absolute error; a scalar.

    MHLT's paper gives no loss. L1 with equal weights on the joint and both unimodal labels is what
    its metric (MAE) and the closest public code with the same labels use.
    """
    return sum((outputs[k] - target).abs().mean() for k, target in targets.items())


def ccc_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """1 − CCC of two tensors of one shape, all their values taken as one series; a scalar in 0..2.

    CCC = 2 s_xy / (s_x² + s_y² + (mean x − mean y)²), with population variances. Two equal constants have CCC 0.
    Source: Lin 1989, a concordance correlation coefficient to evaluate reproducibility.
    """
    x, y = predicted.flatten(), target.flatten()
    x_mean, y_mean = x.mean(), y.mean()
    covariance = ((x - x_mean) * (y - y_mean)).mean()
    spread = x.var(correction=0) + y.var(correction=0) + (x_mean - y_mean).square()
    return 1 - 2 * covariance / spread.clamp_min(1e-12)

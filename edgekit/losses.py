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

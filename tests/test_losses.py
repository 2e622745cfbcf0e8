"""Losses are what their formulas say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.losses import ccc_loss


def test_concordance_is_lins_formula_over_all_values():
    rng = np.random.default_rng(3)
    y = rng.standard_normal((4, 30))
    x = 0.6 * y + 0.3 * rng.standard_normal((4, 30)) + 0.2
    covariance = np.cov(x.ravel(), y.ravel(), bias=True)
    want = 2 * covariance[0, 1] / (covariance[0, 0] + covariance[1, 1] + (x.mean() - y.mean()) ** 2)
    assert ccc_loss(torch.from_numpy(x), torch.from_numpy(y)).item() == pytest.approx(1 - want, abs=1e-12)


@pytest.mark.parametrize(("factor", "offset", "want"), [(1.0, 0.0, 0.0), (-1.0, 0.0, 2.0), (1.0, 1e3, 1.0)])
def test_equal_curves_lose_nothing_opposite_ones_two_and_distant_ones_one(factor, offset, want):
    y = torch.randn(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = y - y.mean()
    assert ccc_loss(factor * y + offset, y).item() == pytest.approx(want, abs=1e-5)


def test_constants_are_no_nan_and_the_gradient_leads_uphill():
    flat = torch.full((8,), 0.5, requires_grad=True)
    ccc_loss(flat, torch.full((8,), 0.5)).backward()
    assert flat.grad.isfinite().all()
    y = torch.linspace(-1, 1, 20)
    x = torch.randn(20, generator=torch.Generator().manual_seed(2), requires_grad=True)
    before = ccc_loss(x, y)
    before.backward()
    assert ccc_loss(x - x.grad, y) < before

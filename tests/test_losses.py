"""Losses are what their formulas say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Normal, kl_divergence

from edgekit import losses
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


def two(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 32, generator=generator) * 2 + 1, torch.randn(3, 32, generator=generator)


def test_the_gaussian_divergence_is_both_kullback_leiblers_of_the_entries_normals():
    p, q = two()
    a, b = (Normal(x.mean(1), x.var(1, correction=0).sqrt()) for x in (p, q))
    want = kl_divergence(a, b) + kl_divergence(b, a)
    assert torch.allclose(losses.gaussian_divergence(p, q), want, rtol=1e-5) and want.min() > 0.1


def test_the_softmax_divergence_is_both_kullback_leiblers():
    p, q = two()
    a, b = Categorical(logits=p), Categorical(logits=q)
    want = kl_divergence(a, b) + kl_divergence(b, a)
    assert torch.allclose(losses.softmax_divergence(p, q), want, rtol=1e-5) and want.min() > 0.1


@pytest.mark.parametrize("divergence", [losses.gaussian_divergence, losses.softmax_divergence])
def test_a_vector_is_not_apart_from_itself(divergence):
    p, q = two()
    assert torch.allclose(divergence(p, p), torch.zeros(3), atol=1e-6)
    assert torch.allclose(divergence(p, q), divergence(q, p))


def test_a_constant_vector_has_a_finite_gaussian_divergence():
    p = torch.ones(1, 8, requires_grad=True)
    value = losses.gaussian_divergence(p, two()[1][:1, :8])
    value.sum().backward()
    assert value.isfinite().all() and p.grad.isfinite().all()


def test_cross_entropy_takes_a_class_as_a_number():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    want = -(logits.log_softmax(1)[0, 0] + logits.log_softmax(1)[1, 2]) / 2
    assert losses.cross_entropy(logits, torch.tensor([0.0, 2.0])).item() == pytest.approx(want.item(), abs=1e-6)

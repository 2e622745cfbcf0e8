"""Losses are what their formulas say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Normal, kl_divergence

from edgekit import losses
from edgekit.losses import ccc_loss
from edgekit.spectrum import Stft


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


def waves(n: int = 3, samples: int = 4000, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randn(n, samples, generator=generator) * 0.1
    return clean + torch.randn(n, samples, generator=generator) * torch.tensor([0.001, 0.05, 0.5])[:n, None], clean


def test_si_snr_is_the_ratio_of_what_lies_along_the_speech_and_across():
    estimate, clean = waves()
    for got, e, s in zip(losses.si_snr(estimate, clean), estimate.double().numpy(), clean.double().numpy(), strict=True):
        along = (e @ s) / np.linalg.norm(s)
        assert got.item() == pytest.approx(10 * math.log10(along**2 / (e @ e - along**2)), abs=1e-3)


def test_si_snr_ignores_the_level_and_counts_the_mean():
    estimate, clean = waves()
    assert torch.allclose(losses.si_snr(7 * estimate, clean), losses.si_snr(estimate, clean), atol=1e-4)
    assert (losses.si_snr(estimate + 1, clean) < losses.si_snr(estimate, clean) - 3).all()


@pytest.mark.parametrize("silent", ["estimate", "clean", "both"])
def test_silence_has_a_finite_si_snr_and_gradient(silent):
    estimate, clean = waves()
    estimate = (estimate * (silent == "clean")).requires_grad_()
    value = losses.si_snr(estimate, clean * (silent == "estimate"))
    value.sum().backward()
    assert value.isfinite().all() and value.max() < 0 and estimate.grad.isfinite().all()


def test_the_band_loss_is_the_weighted_error_of_dccrns_own_spectrum():
    estimate, clean = waves()
    stft = Stft()
    for got, e, s in zip(losses.band_loss(estimate, clean), estimate.numpy(), clean.numpy(), strict=True):
        apart = (stft.analyse(e).astype(float) - stft.analyse(s))[:, :, 31:96]  # without DC, so bins 32 to 96
        want = (np.arange(32, 97) * 31.25 / 1000 * (apart**2).sum(1)).mean()
        assert apart.shape == (43, 2, 65) and got.item() == pytest.approx(want, rel=1e-4)


def test_the_band_loss_hears_its_band_only_and_the_upper_end_more():
    t = torch.arange(8000) / 16_000
    tone = {hz: 0.1 * torch.sin(2 * math.pi * hz * t)[None] for hz in (300, 1200, 2800, 5000)}
    loss = {hz: losses.band_loss(wave, torch.zeros_like(wave)).item() for hz, wave in tone.items()}
    assert loss[300] < 1e-3 * loss[1200] and loss[5000] < 1e-3 * loss[1200] and loss[2800] / loss[1200] == pytest.approx(2800 / 1200, rel=0.02)
    low = losses.band_loss(tone[300], torch.zeros(1, 8000), band_hz=(100, 900), weights=torch.ones(25))
    assert low.item() > 100 * loss[300]


def test_the_band_loss_can_be_descended():
    estimate, clean = waves()
    estimate.requires_grad_()
    before = losses.band_loss(estimate, clean).sum()
    before.backward()
    assert losses.band_loss(estimate - 0.1 * estimate.grad, clean).sum() < before and not losses.band_loss(clean, clean).any()


def test_lips_that_agree_cost_nothing_and_opposite_ones_two():
    lips, sound = two()
    assert losses.sync_loss(lips, 3 * lips) == pytest.approx(torch.zeros(3), abs=1e-6)
    assert losses.sync_loss(lips, -lips) == pytest.approx(torch.full((3,), 2.0))
    want = 1 - (lips * sound).sum(1) / (lips.norm(dim=1) * sound.norm(dim=1))
    assert torch.allclose(losses.sync_loss(lips, sound), want, atol=1e-6)

"""Training losses."""

from __future__ import annotations

import math
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


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Mean over the batch of -log softmax(logits)[label]. Args: logits [n, classes]; label [n], a class's index as a float."""
    from torch.nn import functional

    return functional.cross_entropy(logits, label.long())


def gaussian_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(P||Q) + KL(Q||P) of the normal distributions with the mean and variance of each vector's entries: [n, d] twice → [n].

    1/2 [(var_p + diff^2) / var_q + (var_q + diff^2) / var_p] - 1. Source: Zhang et al. 2025 (ATTSF-Net), Eq. 14-17.
    """
    var_p, var_q = (x.var(1, correction=0).clamp_min(1e-6) for x in (p, q))
    apart = (p.mean(1) - q.mean(1)).square()
    return 0.5 * ((var_p + apart) / var_q + (var_q + apart) / var_p) - 1


def softmax_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(P||Q) + KL(Q||P) of softmax distributions over the entries: [n, d] twice → [n]."""
    log_p, log_q = p.log_softmax(1), q.log_softmax(1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(1)


def si_snr(estimate: Tensor, clean: Tensor) -> Tensor:
    """Scale-invariant signal-to-noise ratio in dB: [n, samples] twice → [n].

    t = <e, s> s / (|s|^2 + eps), 10 log10(|t|^2 / (|e - t|^2 + eps) + eps), eps = 1e-8; means stay, as in DCCRN's code. Source: Hu et al. 2020.
    """
    scale = (estimate * clean).sum(-1, keepdim=True) / (clean.square().sum(-1, keepdim=True) + 1e-8)
    target = scale * clean
    ratio = target.square().sum(-1) / ((estimate - target).square().sum(-1) + 1e-8)
    return 10 * (ratio + 1e-8).log10()


def band_loss(
    estimate: Tensor, clean: Tensor, *, band_hz: tuple[float, float] = (1000.0, 3000.0), weights: Tensor | None = None,
    sample_rate_hz: int = 16_000, win_length: int = 400, hop_length: int = 100, n_fft: int = 512,
) -> Tensor:  # fmt: skip
    """Squared error of the spectrum in one band, where wind is loud: [n, samples] twice → [n].

    Mean over the frames and the band's bins k (both ends included) of weight[k] * (dRe^2 + dIm^2), on DCCRN's own short-time
    spectrum (see spectrum.py), without normalization. With the defaults: 65 bins 32 to 96 of 31.25 Hz.

    Args:
        weights: [bins of the band]; by default each bin's frequency in kHz, 1.0 to 3.0.

    Source: the DCCRN++ of MHLT's paper, Eq. 14, which leaves norm and scale open.
    """
    import torch
    from torch.nn import functional

    first, last = math.ceil(band_hz[0] * n_fft / sample_rate_hz), math.floor(band_hz[1] * n_fft / sample_rate_hz)
    if weights is None:
        weights = torch.arange(first, last + 1, device=clean.device) * (sample_rate_hz / n_fft / 1000)
    pad = win_length - hop_length
    frames = functional.pad(estimate - clean, (pad, pad)).unfold(-1, win_length, hop_length)
    window = torch.hann_window(win_length, device=clean.device)
    apart = torch.fft.rfft(frames * window, n_fft)[..., first : last + 1]  # the transform is linear: of the difference
    return (weights * (apart.real.square() + apart.imag.square())).mean((-2, -1))


def sync_loss(lips: Tensor, sound: Tensor) -> Tensor:
    """1 - cosine of what two frozen encoders make of moving lips and of the speech that goes with them: [n, d] twice → [n].

    Source: SyncNet (Chung and Zisserman 2016), as DCCRN++ names it: 5 frames at 25 fps go with 0.2 s of sound.
    """
    from torch.nn import functional

    return 1 - functional.cosine_similarity(lips, sound, dim=-1)

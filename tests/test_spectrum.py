"""Short-time spectra: DCCRN's kernels in numpy, and what the host steps of a flow make of them."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit import spectrum
from edgekit.spectrum import Stft

SIZES = [Stft(), Stft(128, 32, 128), Stft(100, 25, 128)]


def kernels(sizes: Stft) -> tuple[np.ndarray, np.ndarray]:
    """([2 * (n_fft/2 + 1), win] analysis, the same of synthesis) as the reference makes them: a windowed DFT and its windowed pseudo-inverse."""
    angle = 2 * np.pi * np.outer(np.arange(sizes.n_fft // 2 + 1), np.arange(sizes.win_length)) / sizes.n_fft
    kernel = np.concatenate([np.cos(angle), -np.sin(angle)])
    window = np.hanning(sizes.win_length + 1)[:-1]
    return kernel * window, np.linalg.pinv(kernel).T * window


@pytest.mark.parametrize("sizes", SIZES)
def test_a_spectrum_is_the_wave_through_the_reference_s_kernel(sizes):
    rng = np.random.default_rng(1)
    wave = rng.standard_normal(1000)
    forth, _ = kernels(sizes)
    padded = np.concatenate([np.zeros(sizes.pad), wave, np.zeros(sizes.pad)])
    frames = sizes.analyse(wave)
    assert frames.shape == (sizes.frames(1000), 2, sizes.bins)
    for t, frame in enumerate(frames):
        want = forth @ padded[t * sizes.hop_length : t * sizes.hop_length + sizes.win_length]
        real, imag = np.split(want, 2)
        assert np.abs(frame - np.stack([real[1:], imag[1:]])).max() < 1e-5  # float32 of values around 10


@pytest.mark.parametrize("sizes", SIZES)
def test_a_wave_is_the_spectrum_through_the_reference_s_pseudo_inverse(sizes):
    rng = np.random.default_rng(2)
    frames = 0.1 * rng.standard_normal((9, 2, sizes.bins))
    _, back = kernels(sizes)
    length = 8 * sizes.hop_length + sizes.win_length
    wave, weight = np.zeros(length), np.zeros(length)
    for t, (real, imag) in enumerate(frames):
        here = slice(t * sizes.hop_length, t * sizes.hop_length + sizes.win_length)
        wave[here] += back.T @ np.concatenate([[0], real, [0], imag])
        weight[here] += np.hanning(sizes.win_length + 1)[:-1] ** 2
    want = (wave / (weight + 1e-8))[sizes.pad : -sizes.pad]
    got = sizes.synthesize(frames, len(want))
    assert np.abs(got - want).max() < 1e-6


def test_there_and_back_leaves_all_but_the_mean():
    rng = np.random.default_rng(3)
    t = np.arange(8000) / 16_000
    wave = 0.3 * np.sin(2 * np.pi * 440 * t) + 0.05 * rng.standard_normal(8000)
    sizes = Stft()
    # Without the DC bin what varies slower than a window is lost: at the ends, where the padding makes steps, a percent.
    assert np.abs(sizes.synthesize(sizes.analyse(wave), 8000) - wave).max() < 0.05
    assert np.abs(sizes.synthesize(sizes.analyse(wave), 8000) - wave)[1000:-1000].max() < 0.02


def test_a_wave_is_kept_within_full_scale():
    sizes = Stft()
    assert np.abs(sizes.synthesize(100 * sizes.analyse(np.sin(np.arange(4000) / 5)), 4000)).max() == 1


@pytest.mark.parametrize("chunk", [0, 1, 7])
@pytest.mark.parametrize("delay", [0, 3])
def test_masks_of_one_that_come_late_give_the_wave_back(chunk, delay):
    rng = np.random.default_rng(4)
    sizes = Stft(128, 32, 128)
    step = {**sizes.to_json(), "delay": delay, "mask": "C", "samples": 1600} | ({"chunk": chunk} if chunk else {})
    wave = 0.1 * rng.standard_normal(1600)
    frames = spectrum.before(step, wave)
    assert len(frames) == -(-(sizes.frames(1600) + delay) // max(chunk, 1))
    ones = np.zeros_like(frames)
    ones[:, 0] = 1
    if delay and not chunk:
        ones[:delay] = np.nan  # what comes before the first mask is not looked at
    assert np.abs(spectrum.after(step, frames, ones) - sizes.synthesize(sizes.analyse(wave), 1600)).max() < 1e-7


def test_mask_e_of_a_silent_bin_is_silence_and_a_large_one_passes_the_phase_only():
    x = np.array([[[3.0], [4.0]]])
    assert np.array_equal(spectrum.masked(x, np.zeros((1, 2, 1)), "E"), np.zeros((1, 2, 1)))
    assert np.allclose(spectrum.masked(x, np.array([[[1e9], [0.0]]]), "E"), x)
    assert np.allclose(spectrum.masked(x, np.array([[[0.0], [1e9]]]), "E"), [[[-4], [3]]])

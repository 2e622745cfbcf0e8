"""Short-time spectra as DCCRN has them, and back: what the host does on both sides of the network.

A window of `win_length` samples (periodic Hann) every `hop_length`, its DFT of `n_fft` points, bins 0..n_fft/2. The wave gets
win_length - hop_length zeros at both ends first, so that every sample lies in as many windows as any other.

Back: every frame goes through the pseudo-inverse of the DFT matrix K [n_fft + 2, win_length] (real rows, then imaginary), is windowed
again and added up, and the sum is divided by the sum of the squared windows. K'K = n_fft/2 * I + E, where E is 1 between samples whose
distance is even, so the pseudo-inverse needs no matrix: with v = K'[re; im] and s[n] the sum of v over all samples of n's parity,

    x[n] = (v[n] - s[n] / (n_fft/2 + c[n])) / (n_fft/2),     c[n] the number of samples of that parity.

Source: `huyanxin/DeepComplexCRN:conv_stft.py`, whose kernels these are; float64 here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

MASKS = ("E", "C", "R")


@dataclass(frozen=True)
class Stft:
    """The sizes of a short-time Fourier transform, in samples."""

    win_length: int = 400
    hop_length: int = 100
    n_fft: int = 512

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    @property
    def bins(self) -> int:
        """Bins that the network sees: all but DC."""
        return self.n_fft // 2

    @property
    def pad(self) -> int:
        """Zeros before and after the wave."""
        return self.win_length - self.hop_length

    def frames(self, samples: int) -> int:
        """Frames of a wave of so many samples; a last incomplete hop has none of its own."""
        return (samples + 2 * self.pad - self.win_length) // self.hop_length + 1

    def window(self) -> np.ndarray:
        """[win_length] float64, the periodic Hann window."""
        return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.win_length) / self.win_length)

    def analyse(self, wave: np.ndarray, more: int = 0) -> np.ndarray:
        """[samples] → [frames + more, 2, bins] float32, real and imaginary parts without DC; `more` frames of the silence after the wave."""
        padded = np.concatenate([np.zeros(self.pad), np.asarray(wave, np.float64), np.zeros(self.pad + more * self.hop_length)])
        starts = np.arange(self.frames(len(wave)) + more) * self.hop_length
        cut = padded[starts[:, None] + np.arange(self.win_length)] * self.window()
        spectrum = np.fft.rfft(cut, self.n_fft)[:, 1:]
        return np.stack([spectrum.real, spectrum.imag], axis=1).astype(np.float32)

    def pieces(self, frames: np.ndarray) -> np.ndarray:
        """[frames, 2, bins] without DC → [frames, win_length] float64: what each frame adds to the wave, before the division by `weight`."""
        values = np.asarray(frames, np.float64)
        spectrum = np.concatenate([np.zeros((len(values), 1)), values[:, 0] + 1j * values[:, 1]], axis=1)
        half = self.n_fft / 2
        # irfft counts DC and the last bin once and the others twice; K' counts all once, the sum over n_fft/2.
        last = 0.5 * values[:, 0, -1:] * (-1.0) ** np.arange(self.win_length)
        v = np.fft.irfft(spectrum, self.n_fft)[:, : self.win_length] * half + last
        for parity in (0, 1):
            mine = v[:, parity::2]
            mine -= mine.sum(axis=1, keepdims=True) / (half + mine.shape[1])
        return v * (self.window() / half)

    def synthesize(self, frames: np.ndarray, samples: int) -> np.ndarray:
        """[frames, 2, bins] without DC → [samples] float32, within ±1."""
        v, window = self.pieces(frames), self.window()
        length = (len(v) - 1) * self.hop_length + self.win_length
        wave, weight = np.zeros(length), np.zeros(length)
        for t, frame in enumerate(v):
            here = slice(t * self.hop_length, t * self.hop_length + self.win_length)
            wave[here] += frame
            weight[here] += window * window
        wave = (wave / (weight + 1e-8))[self.pad :]
        return np.clip(np.concatenate([wave, np.zeros(samples)])[:samples], -1, 1).astype(np.float32)


def masked(spectrum: np.ndarray, mask: np.ndarray, kind: str) -> np.ndarray:
    """A complex mask on a spectrum, both [frames, 2, bins]; E: tanh(|M|)/|M| · M·X, C: M·X, R: each part by its own."""
    (xr, xi), (mr, mi) = (np.moveaxis(np.asarray(v, np.float64), 1, 0) for v in (spectrum, mask))
    if kind == "R":
        return np.stack([xr * mr, xi * mi], axis=1)
    if kind == "E":
        size = np.maximum(np.hypot(mr, mi), 1e-12)
        gain = np.tanh(size) / size
        mr, mi = mr * gain, mi * gain
    return np.stack([xr * mr - xi * mi, xr * mi + xi * mr], axis=1)


def before(step: Mapping[str, Any], wave: np.ndarray) -> np.ndarray:
    """The host step `stft` of a flow: [samples] → [frames + delay, 2, bins]; with `chunk`, [chunks, 2, bins, chunk], the last one filled up with silence."""
    sizes, late, chunk = _sizes(step), step.get("delay", 0), step.get("chunk", 0)
    if not chunk:
        return sizes.analyse(wave, late)
    short = -(sizes.frames(len(wave)) + late) % chunk
    return sizes.analyse(wave, late + short).reshape(-1, chunk, 2, sizes.bins).transpose(0, 2, 3, 1)


def after(step: Mapping[str, Any], spectrum: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The host step `masked_istft` of a flow: the spectrum under its masks, which come `delay` frames late, as a wave [samples]."""
    sizes, late = _sizes(step), step.get("delay", 0)
    if step.get("chunk"):
        spectrum, masks = (v.transpose(0, 3, 1, 2).reshape(-1, 2, sizes.bins) for v in (spectrum, masks))
    frames = sizes.frames(step["samples"])
    return sizes.synthesize(masked(spectrum[:frames], masks[late : late + frames], step["mask"]), step["samples"])


def _sizes(step: Mapping[str, Any]) -> Stft:
    return Stft(step["win_length"], step["hop_length"], step["n_fft"])

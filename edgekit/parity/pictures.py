"""What a tensor looks like: waveforms, spectrograms, maps and frames, small enough for a page."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Sequence

import numpy as np

from edgekit.page import WIDTH, esc
from edgekit.report import png

LEAST_WAVE = 1024  # samples of a tensor that is taken for a waveform
LEAST_MAP = 8  # rows and columns of a tensor that is taken for a picture
WINDOW, HOP = 512, 128
FLOOR_DB = -80.0
MAX_COLUMNS, MAX_ROWS = 480, 128
ENVELOPE = 240
LEVELS = 48  # colours of a map: what the eye tells apart, and few enough to compress
_AUDIO = re.compile(r"wav|audio|pcm|speech|enhanced|clean|noisy|denoised|waveform", re.IGNORECASE)

# Dark to bright with even steps of lightness, so that it reads without colour too.
_RAMP = np.array([(13, 8, 35), (64, 15, 92), (121, 28, 109), (181, 46, 93), (232, 86, 58), (252, 152, 38), (246, 216, 92), (252, 253, 210)], np.float64)


def waveform_of(name: str, tensor: np.ndarray) -> np.ndarray | None:
    """float64 [samples] if the tensor is a waveform: one long axis, or by its name chunks of one; the first of two channels."""
    array = np.asarray(tensor)
    squeezed = array.reshape([n for n in array.shape if n != 1])
    if squeezed.dtype.kind != "f" or squeezed.size < LEAST_WAVE or squeezed.ndim not in (1, 2):
        return None
    if squeezed.ndim == 2:
        if squeezed.shape[0] == 2:
            squeezed = squeezed[0]
        elif not _AUDIO.search(name):
            return None
    return np.nan_to_num(squeezed.reshape(-1).astype(np.float64), posinf=0.0, neginf=0.0)


def map_of(tensor: np.ndarray) -> np.ndarray | None:
    """float64 [rows, columns], rows upwards, if the tensor is a map such as a mask over frequency and time."""
    array = np.asarray(tensor)
    squeezed = array.reshape([n for n in array.shape if n != 1])
    while squeezed.ndim > 2:
        squeezed = squeezed[0]
    if squeezed.dtype.kind != "f" or squeezed.ndim != 2 or min(squeezed.shape) < LEAST_MAP:
        return None
    return np.nan_to_num(squeezed.astype(np.float64), posinf=0.0, neginf=0.0)


def frames_of(tensor: np.ndarray, count: int = 4) -> np.ndarray | None:
    """uint8 [h, w*count, 3]: frames from first to last side by side, stretched to the full range; None if the tensor holds no frames.

    One axis must be 3, the colours; of the others the last two are rows and columns, those before them time.
    """
    array = np.asarray(tensor)
    colours = [axis for axis, n in enumerate(array.shape) if n == 3]
    if array.ndim < 3 or not colours or array.dtype.kind not in "fu":
        return None
    for axis in (array.ndim - 1, *reversed(colours)):
        if axis not in colours:
            continue
        moved = np.moveaxis(array, axis, -1)
        height, width = moved.shape[-3:-1]
        if min(height, width) >= LEAST_MAP:
            frames = moved.reshape(-1, height, width, 3)
            break
    else:
        return None
    step = math.ceil(max(height, width) / 96)
    picked = [frames[round(i * (len(frames) - 1) / max(1, count - 1)), ::step, ::step] for i in range(min(count, len(frames)))]
    strip = np.nan_to_num(np.concatenate(picked, axis=1).astype(np.float64))
    low, high = strip.min(), strip.max()
    return np.rint(255 * (strip - low) / (high - low or 1.0)).astype(np.uint8)


def spectrogram(wave: np.ndarray) -> np.ndarray:
    """float64 [WINDOW/2 + 1, frames]: dB of a Hann-windowed STFT against full scale 1; frequency upwards."""
    window = np.hanning(WINDOW + 1)[:-1]
    padded = np.pad(wave, (0, max(0, WINDOW - len(wave))))
    count = 1 + (len(padded) - WINDOW) // HOP
    index = np.arange(WINDOW)[None] + HOP * np.arange(count)[:, None]
    power = np.abs(np.fft.rfft(padded[index] * window, axis=1) / (window.sum() / 2)) ** 2
    return 10 * np.log10(np.maximum(power, 1e-20)).T


def maps(a: np.ndarray, b: np.ndarray) -> tuple[list[np.ndarray], tuple[float, float], float]:
    """([A, B, |A - B|] as uint8 [h, w, 3], (lowest, highest) of A and B, largest difference); the difference has a scale of its own, from 0."""
    low, high = min(float(a.min()), float(b.min())), max(float(a.max()), float(b.max()))
    off = np.abs(a - b)
    worst = float(off.max())
    shares = ((a - low) / ((high - low) or 1.0), (b - low) / ((high - low) or 1.0), off / (worst or 1.0))
    return [_coloured(_thinned(share)) for share in shares], (low, high), worst


def spectrograms(a: np.ndarray, b: np.ndarray) -> tuple[list[np.ndarray], float]:
    """([A, B, A - B] as uint8 [h, w, 3], loudest level in dB of full scale), all from FLOOR_DB below the loudest up to it."""
    levels = [spectrogram(wave) for wave in (a, b, a - b)]
    loudest = max(float(levels[0].max()), float(levels[1].max()))
    return [_coloured(_thinned((level - loudest - FLOOR_DB) / -FLOOR_DB)) for level in levels], loudest


def _thinned(image: np.ndarray) -> np.ndarray:
    """At most MAX_ROWS x MAX_COLUMNS: the largest of every block stays, so that a click is not lost."""
    for axis, most in ((0, MAX_ROWS), (1, MAX_COLUMNS)):
        step = math.ceil(image.shape[axis] / most)
        if step > 1:
            image = np.maximum.reduceat(image, np.arange(0, image.shape[axis], step), axis=axis)
    return image


def _coloured(shares: np.ndarray) -> np.ndarray:
    """0..1 [rows, columns], rows upwards → uint8 [rows, columns, 3]."""
    at = np.rint(np.clip(shares, 0, 1) * (LEVELS - 1)) / (LEVELS - 1) * (len(_RAMP) - 1)
    left = np.minimum(at.astype(int), len(_RAMP) - 2)
    share = (at - left)[..., None]
    return np.rint(_RAMP[left] * (1 - share) + _RAMP[left + 1] * share).astype(np.uint8)[::-1]


def image(pixels: np.ndarray, alt: str, css: str = "") -> str:
    data = base64.b64encode(png(np.ascontiguousarray(pixels))).decode()
    named = f' class="{css}"' if css else ""
    return f'<img{named} src="data:image/png;base64,{data}" width="{pixels.shape[1]}" height="{pixels.shape[0]}" alt="{esc(alt)}">'


def envelopes(waves: Sequence[tuple[str, str, np.ndarray]], peak: float, name: str) -> str:
    """Outlines of waveforms one under another, on one scale, as wide as there is room.

    Args:
        waves: (css tone, what it is, samples).
        peak: the amplitude that fills a row.
    """
    return "".join(f'<div class="row"><small>{esc(said)}</small>{_envelope(tone, wave, peak, f"Waveform of {name}: {said}")}</div>' for tone, said, wave in waves)


def _envelope(tone: str, wave: np.ndarray, peak: float, said: str) -> str:
    pieces = np.array_split(wave, min(ENVELOPE, len(wave)))
    last = len(pieces) - 1
    # An area from the highest to the lowest of every stretch, at least half a unit thick, so that silence is a line.
    top = [(i, 24 - 23 * float(p.max()) / peak - 0.25) for i, p in enumerate(pieces)]
    bottom = [(i, 24 - 23 * float(p.min()) / peak + 0.25) for i, p in enumerate(pieces)]
    path = "L".join(f"{WIDTH * i / max(1, last):.1f} {y:.1f}" for i, y in (*top, *reversed(bottom)))
    return f'<svg class="wide" viewBox="0 0 {WIDTH} 48" preserveAspectRatio="none" role="img" aria-label="{esc(said)}"><path class="fill {tone}" d="M{path}Z"/></svg>'

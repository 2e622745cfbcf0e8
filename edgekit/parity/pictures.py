"""What a tensor looks like: waveforms, spectrograms, maps and frames, small enough for a page."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from edgekit.page import WIDTH, esc
from edgekit.pictures import FLOOR_DB, WINDOW, coloured, image, spectrogram, thinned

LEAST_WAVE = 1024  # samples of a tensor that is taken for a waveform
LEAST_MAP = 8  # rows and columns of a tensor that is taken for a picture
ENVELOPE = 240
_AUDIO = re.compile(r"wav|audio|pcm|speech|enhanced|clean|noisy|denoised|waveform", re.IGNORECASE)

__all__ = ["FLOOR_DB", "WINDOW", "envelopes", "frames_of", "image", "map_of", "maps", "spectrogram", "spectrograms", "waveform_of"]


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


def maps(a: np.ndarray, b: np.ndarray) -> tuple[list[np.ndarray], tuple[float, float], float]:
    """([A, B, |A - B|] as uint8 [h, w, 3], (lowest, highest) of A and B, largest difference); the difference has a scale of its own, from 0."""
    low, high = min(float(a.min()), float(b.min())), max(float(a.max()), float(b.max()))
    off = np.abs(a - b)
    worst = float(off.max())
    shares = ((a - low) / ((high - low) or 1.0), (b - low) / ((high - low) or 1.0), off / (worst or 1.0))
    return [coloured(thinned(share)) for share in shares], (low, high), worst


def spectrograms(a: np.ndarray, b: np.ndarray) -> tuple[list[np.ndarray], float]:
    """([A, B, A - B] as uint8 [h, w, 3], loudest level in dB of full scale), all from FLOOR_DB below the loudest up to it."""
    levels = [spectrogram(wave) for wave in (a, b, a - b)]
    loudest = max(float(levels[0].max()), float(levels[1].max()))
    return [coloured(thinned((level - loudest - FLOOR_DB) / -FLOOR_DB)) for level in levels], loudest


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

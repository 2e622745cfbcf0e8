"""Sound: the raw wave, and spectra of it. Definition: edgekit.preprocess."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from edgekit.datasets import Clip
from edgekit.errors import DataError

from .picture import describe, frame_count, frame_times, output_count, output_frames, refuse_nan, subsequence_spans

POWER_FLOOR, TOP_DB = 1e-10, 80.0
UNTIL = ("end_of_frame", "start_of_frame")
REACH = 4  # columns on either side that a delta looks at
# Least squares over 9 columns: slope of a line, and second derivative of a parabola (Savitzky & Golay 1964).
DELTA = np.arange(-4, 5) / 60.0
DELTA_DELTA = np.array([28, 7, -8, -17, -20, -17, -8, 7, 28]) / 462.0


def wave(spec: dict[str, Any], clip: Clip) -> np.ndarray:
    """The `audio` section without `features`: float32 [S] in its layout."""
    valid = samples_of(spec, clip)[: spec["samples"]]
    out = np.zeros(spec["samples"], np.float32)
    out[: len(valid)] = _normalized(valid, spec)
    return out[None] if spec.get("layout") == "CS" else out


def feature(name: str, spec: dict[str, Any], clip: Clip) -> np.ndarray:
    """One of `audio.features`: float32 [D, columns], [K, 1, D, columns] or [T, D], by its `per`.

    Args:
        spec: preprocess.json, checked.
    """
    audio = spec["audio"]
    how = audio["features"][name]
    x = _cleaned(audio, samples_of(audio, clip).astype(np.float64) / float(audio["scale"]))
    if how["per"] == "clip":
        return np.float32(_coefficients(how, audio, fit(x, how["samples"], how["fit"]))[:, : how.get("frames")])
    if how["per"] == "frame":
        return np.ascontiguousarray(np.float32(_at_frames(how, audio, x, _centres(spec, clip))).T)
    out = np.zeros(shape(how, spec), np.float32)
    for part, (start, end) in zip(out, _spans(spec, clip, how.get("until", UNTIL[0])), strict=True):
        heard = x[start:end]
        heard = np.concatenate([np.zeros(max(0, how["samples"] - len(heard))), heard])
        columns = _coefficients(how, audio, heard)[:, -part.shape[-1] :]
        part[0, :, part.shape[-1] - columns.shape[1] :] = columns
    return out


def shape(how: dict[str, Any], spec: dict[str, Any]) -> tuple[int, ...]:
    """What `feature` returns."""
    if how["per"] == "clip":
        return dimension(how), how.get("frames", column_count(how, how["samples"]))
    if how["per"] == "subsequence":
        return spec["video"]["clips"], 1, dimension(how), how.get("frames", column_count(how, how["samples"]))
    return output_count(spec["video"]), dimension(how)


def dimension(how: dict[str, Any]) -> int:
    """D: values in one column."""
    return how["n_mfcc"] * (3 if how.get("deltas") else 1) if how["kind"] == "mfcc" else how["n_mels"]


def column_count(how: dict[str, Any], n_samples: int) -> int:
    """Spectra in `n_samples`, 0 or less where they are too few for one."""
    return 1 + n_samples // how["hop_length"] if how["center"] else 1 + (n_samples - how["n_fft"]) // how["hop_length"]


def samples_of(audio: dict[str, Any], clip: Clip) -> np.ndarray:
    """int16 [samples] of a clip whose sound can be used. Raises DataError."""
    samples = clip.audio
    if not isinstance(samples, np.ndarray) or samples.ndim != 1:
        raise DataError(f"clip {clip.id}: audio must be [samples] mono, got {describe(samples)}")
    if not len(samples):
        raise DataError(f"clip {clip.id}: no audio, 0 samples")
    refuse_nan(clip, "audio", samples)
    if samples.dtype != np.int16:
        raise DataError(f"clip {clip.id}: audio must be int16, got {describe(samples)}")
    if clip.sample_rate_hz != audio["sample_rate_hz"]:
        raise DataError(
            f"clip {clip.id}: audio is at {clip.sample_rate_hz} Hz, the model takes {audio['sample_rate_hz']} Hz",
            "preprocessing does not resample; "
            f"set `sample_rate_hz: {audio['sample_rate_hz']}` in the data set's YAML to resample while decoding",
        )
    return samples


def fit(x: np.ndarray, n_samples: int, how: str) -> np.ndarray:
    """[n_samples]: the start or the middle of `x`, zeros on the right where it is shorter."""
    start = max(0, len(x) - n_samples) // 2 if how == "center" else 0
    x = x[start : start + n_samples]
    return np.concatenate([x, np.zeros(n_samples - len(x))])


def _cleaned(audio: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """Sound without its steady noise, at the loudness that is asked for, where `audio` asks for either."""
    if "subtract" in audio:
        x = subtracted(x, **audio["subtract"])
    loudest = np.abs(x).max()
    return x * (audio["peak"] / loudest) if "peak" in audio and loudest > 0 else x


def subtracted(x: np.ndarray, n_fft: int, hop_length: int, quietest: float, over: float, floor: float) -> np.ndarray:
    """Spectral subtraction (Boll 1979): what the quietest columns sound like is taken out of all; phases stay."""
    lead = n_fft - hop_length
    count = -(-(len(x) + lead) // hop_length)
    window = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(n_fft) / n_fft)
    starts = hop_length * np.arange(count)
    padded = np.concatenate([np.zeros(lead), x, np.zeros(starts[-1] + n_fft - lead - len(x))])
    spectra = np.fft.rfft(padded[starts[:, None] + np.arange(n_fft)] * window)
    sizes = np.abs(spectra)
    within = np.flatnonzero((starts >= lead) & (starts + n_fft <= lead + len(x)))
    within = within if len(within) else np.arange(count)
    order = within[np.argsort((sizes[within] ** 2).sum(axis=1), kind="stable")]
    noise = sizes[order[: max(1, int(quietest * len(within)))]].mean(axis=0)
    gains = np.maximum(1.0 - over * noise / np.where(sizes > 0, sizes, 1.0), floor)
    out, weight = np.zeros(len(padded)), np.zeros(len(padded))
    for start, part in zip(starts, np.fft.irfft(spectra * gains, n_fft) * window, strict=True):
        out[start : start + n_fft] += part
        weight[start : start + n_fft] += window * window
    here = slice(lead, lead + len(x))
    return out[here] / weight[here]


@lru_cache(maxsize=16)
def mel_filters(kind: str, sample_rate_hz: int, n_fft: int, n_mels: int, f_min: float, f_max: float) -> np.ndarray:
    """float64 [n_mels, n_fft/2 + 1]: triangles on the slaney scale with unit area in Hz ("mfcc"), or on the HTK scale with unit height."""
    to_mel, to_hz = (_slaney_mel, _slaney_hz) if kind == "mfcc" else (_htk_mel, _htk_hz)
    low, high = to_mel(f_min), to_mel(f_max)
    edges = np.array([to_hz(low + (high - low) * m / (n_mels + 1)) for m in range(n_mels + 2)])
    bins = np.arange(n_fft // 2 + 1) * float(sample_rate_hz) / n_fft
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    filters = np.maximum(0.0, np.minimum(rising, falling))
    if kind == "mfcc":
        filters *= (2.0 / (edges[2:] - edges[:-2]))[:, None]
    filters.setflags(write=False)  # the cache hands out the same array
    return filters


@lru_cache(maxsize=16)
def _window(name: str, win_length: int, n_fft: int) -> np.ndarray:
    """float64 [n_fft]: a periodic window with zeros on both sides."""
    a = 0.5 if name == "hann" else 0.54
    out, left = np.zeros(n_fft), (n_fft - win_length) // 2
    out[left : left + win_length] = a - (1.0 - a) * np.cos(2.0 * np.pi * np.arange(win_length) / win_length)
    out.setflags(write=False)
    return out


@lru_cache(maxsize=16)
def _dct(n_out: int, n_in: int) -> np.ndarray:
    """float64 [n_out, n_in]: the first rows of the orthonormal DCT-II."""
    k, m = np.arange(n_out)[:, None], np.arange(n_in)
    out = np.sqrt(2.0 / n_in) * np.cos(np.pi * k * (2 * m + 1) / (2 * n_in))
    out[0] = np.sqrt(1.0 / n_in)
    out.setflags(write=False)
    return out


def _normalized(valid: np.ndarray, spec: dict[str, Any]) -> np.ndarray:
    scaled = valid.astype(np.float32) / np.float32(spec["scale"])
    if spec["normalize"] == "none":
        return scaled
    wide = valid.astype(np.int64)
    mean = float(wide.sum()) / len(wide)
    var = max(0.0, float((wide * wide).sum()) / len(wide) - mean * mean)
    scale = float(spec["scale"])
    offset = np.float32(mean / scale)
    gain = np.float32(1.0 / math.sqrt(var / scale**2 + spec["eps"]))
    return (scaled - offset) * gain


def _coefficients(how: dict[str, Any], audio: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """float64 [D, columns] of the samples x."""
    columns = column_count(how, len(x))
    if how["center"]:
        x = np.pad(x, how["n_fft"] // 2, mode="reflect" if how["pad_mode"] == "reflect" else "constant")
    out = _cepstra(how, _decibels(how, audio, x, how["hop_length"] * np.arange(columns)))
    if how.get("deltas"):
        middle = np.clip(np.arange(columns), REACH, columns - 1 - REACH)
        around = out[:, middle[:, None] + np.arange(-REACH, REACH + 1)]  # [D, columns, 9]
        out = np.concatenate([out, around @ DELTA, around @ DELTA_DELTA])
    return _scaled(how, out)


def _at_frames(how: dict[str, Any], audio: dict[str, Any], x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """float64 [D, T] of the windows around the samples `centres`, with zeros before and after x."""
    offsets = np.arange(-REACH, REACH + 1) * how["hop_length"] if how.get("deltas") else np.zeros(1, np.int64)
    starts = (centres[:, None] + offsets).reshape(-1) - how["n_fft"] // 2
    # A time stamp may lie far outside the sound: a window that misses it is moved to just beside it.
    starts = np.clip(starts, -how["n_fft"], len(x))
    out = _cepstra(how, _decibels(how, audio, np.pad(x, how["n_fft"]), starts + how["n_fft"]))
    if how.get("deltas"):
        around = out.reshape(len(out), len(centres), -1)
        out = np.concatenate([around[:, :, REACH], around @ DELTA, around @ DELTA_DELTA])
    return _scaled(how, out)


def _decibels(how: dict[str, Any], audio: dict[str, Any], x: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """float64 [n_mels, len(starts)]: mel powers of the windows of x that begin at `starts`, in dB, at most 80 below the loudest."""
    n_fft = how["n_fft"]
    spectra = np.fft.rfft(x[starts[:, None] + np.arange(n_fft)] * _window(how["window"], how["win_length"], n_fft))
    filters = mel_filters(how["kind"], audio["sample_rate_hz"], n_fft, how["n_mels"], float(how["f_min"]), float(how["f_max"]))
    power = filters @ (spectra.real**2 + spectra.imag**2).T
    decibels = 10.0 * np.log10(np.maximum(POWER_FLOOR, power))
    return np.maximum(decibels, decibels.max() - TOP_DB)


def _cepstra(how: dict[str, Any], decibels: np.ndarray) -> np.ndarray:
    return _dct(how["n_mfcc"], how["n_mels"]) @ decibels if how["kind"] == "mfcc" else decibels


def _scaled(how: dict[str, Any], x: np.ndarray) -> np.ndarray:
    shift, scale = (np.array(how.get(key, neutral), np.float64).reshape(-1, 1) for key, neutral in (("shift", 0.0), ("scale", 1.0)))
    return (x + shift) / scale


def _centres(spec: dict[str, Any], clip: Clip) -> np.ndarray:
    """int64 [T]: the sample at which every output frame was taken."""
    times = frame_times(clip)[output_frames(spec["video"], clip)]
    return _sample_at(times, spec["audio"]["sample_rate_hz"])


def _spans(spec: dict[str, Any], clip: Clip, until: str) -> list[tuple[int, int]]:
    """The samples [start, end) that are heard during every sub-sequence."""
    video = spec["video"]
    first, last = subsequence_spans(frame_count(clip), video["clips"], video["frames_per_window"])
    at = np.clip(_sample_at(frame_times(clip), spec["audio"]["sample_rate_hz"]), 0, len(clip.audio))
    end = last + 1 if until == "end_of_frame" else last
    return list(zip(at[first].tolist(), at[end].tolist(), strict=True))


def _sample_at(times_ms: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    return np.floor(times_ms * sample_rate_hz / 1000.0 + 0.5).astype(np.int64)


def _slaney_mel(hz: float) -> float:
    return hz * 3.0 / 200.0 if hz < 1000.0 else 15.0 + 27.0 * math.log(hz / 1000.0) / math.log(6.4)


def _slaney_hz(mel: float) -> float:
    return mel * 200.0 / 3.0 if mel < 15.0 else 1000.0 * math.exp((mel - 15.0) * math.log(6.4) / 27.0)


def _htk_mel(hz: float) -> float:
    return 2595.0 * math.log10(1.0 + hz / 700.0)


def _htk_hz(mel: float) -> float:
    return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)

"""Frames: which are taken, what each output stands for, and pixels. Definition: edgekit.preprocess."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.datasets import Clip
from edgekit.errors import DataError
from edgekit.resize import resize_bilinear

_MAX_MS = 1e9  # eleven days; keeps samples within 64 bits


def video(spec: dict[str, Any], clip: Clip) -> np.ndarray:
    """The `video` section: float32 [K, 3, T, H, W] in its layout.

    Raises:
        DataError: the clip has no frames, or frames of another type.
    """
    frames = clip.frames
    n_clips, n_times, height, width = (spec[key] for key in ("clips", "frames_per_clip", "height", "width"))
    tall, wide = spec.get("resize_to", (height, width))
    top, left = (tall - height) // 2, (wide - width) // 2
    mean, std = np.float32(spec["mean"]), np.float32(spec["std"])
    out = np.empty((n_clips, 3, n_times, height, width), np.float32)
    if "average" in spec:
        image = resize_bilinear(_summary(frames, chosen_frames(spec, clip)), tall, wide)[top : top + height, left : left + width]
        out[0, :, 0] = ((image - mean) / std).transpose(2, 0, 1)
        return _in_layout(out, spec["layout"])
    before = -1
    for i, index in enumerate(chosen_frames(spec, clip)):
        if index != before:  # a short clip repeats its frames
            image = resize_bilinear(frames[index], tall, wide)[top : top + height, left : left + width]
            image = (image - mean) / std
            before = index
        out[i // n_times, :, i % n_times] = image.transpose(2, 0, 1)
    return _in_layout(out, spec["layout"])


def _summary(frames: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """float32 [h, w, 3]: the mean of uint8 frames, added up one by one as a device would while they come in."""
    total = np.zeros(frames.shape[1:], np.uint32)
    for index in chosen:
        total += frames[index]
    return total.astype(np.float32) / np.float32(len(chosen))


def chosen_frames(spec: dict[str, Any], clip: Clip) -> np.ndarray:
    """int64 [K*T]: the frames that `video` shows, in its order; with `average` those that it adds up."""
    n, n_clips, n_times = frame_count(clip), spec["clips"], spec["frames_per_clip"]
    if "average" in spec:
        return frame_indices(n, n if spec["average"] == "all" else spec["average"])
    if spec["sampling"] == "floor_offset":
        return floor_offset_indices(min(n, spec.get("window_frames", n)), n_clips * n_times, spec["offset_divisor"])
    if spec["sampling"] == "subsequences":
        return subsequence_indices(n, n_clips, n_times, spec["frames_per_window"]).reshape(-1)
    return frame_indices(n, n_clips * n_times)


def output_frames(spec: dict[str, Any], clip: Clip) -> np.ndarray:
    """int64: the frames that a model's outputs over time stand for, [K] with sub-sequences, else [K*T]."""
    if spec["sampling"] == "subsequences":
        return subsequence_spans(frame_count(clip), spec["clips"], spec["frames_per_window"])[1]
    chosen = chosen_frames(spec, clip)
    return chosen[-1:] if "average" in spec else chosen


def output_count(spec: dict[str, Any]) -> int:
    """T: how many frames `output_frames` names."""
    return spec["clips"] if spec["sampling"] == "subsequences" else spec["clips"] * spec["frames_per_clip"]


def frame_count(clip: Clip) -> int:
    """Number of frames of a clip whose frames can be used. Raises DataError."""
    frames = clip.frames
    if not isinstance(frames, np.ndarray) or frames.ndim != 4 or frames.shape[3] != 3:
        raise DataError(f"clip {clip.id}: frames must be [n, h, w, 3], got {describe(frames)}")
    if 0 in frames.shape:
        raise DataError(f"clip {clip.id}: no video, frames are {describe(frames)}")
    refuse_nan(clip, "frames", frames)
    if frames.dtype != np.uint8:
        raise DataError(f"clip {clip.id}: frames must be uint8, got {describe(frames)}")
    return len(frames)


def frame_times(clip: Clip) -> np.ndarray:
    """float64 [n + 1]: when every frame was taken, in ms, and when the last one ends.

    Raises:
        DataError: `frame_ms` is not one finite number for every frame, or time runs backwards; or no `fps` to go by.
    """
    n = frame_count(clip)
    if not np.isfinite(clip.fps) or not clip.fps > 0:
        raise DataError(f"clip {clip.id}: fps must be a positive number, got {clip.fps!r}")
    if clip.frame_ms is None:
        return 1000.0 * np.arange(n + 1) / float(clip.fps)
    times = clip.frame_ms
    if not isinstance(times, np.ndarray) or times.shape != (n,) or times.dtype.kind not in "fiu":
        raise DataError(f"clip {clip.id}: frame_ms must be a number for each of {n} frames, got {describe(times)}")
    if not (np.abs(times) <= _MAX_MS).all() or (np.diff(times) < 0).any():
        raise DataError(f"clip {clip.id}: frame_ms must be finite, within {_MAX_MS:g} ms, and must not fall")
    return np.append(times.astype(np.float64), float(times[-1]) + 1000.0 / float(clip.fps))


def frame_indices(n_frames: int, n_wanted: int) -> np.ndarray:
    """int64 [n_wanted]: half-to-even rounding of linspace(0, n_frames - 1, n_wanted), in exact arithmetic.

    np.linspace multiplies a rounded step, so its exact halves may land on either side; this cannot.
    """
    if n_wanted == 1:
        return np.zeros(1, np.int64)
    index, rest = np.divmod(np.arange(n_wanted, dtype=np.int64) * (n_frames - 1), n_wanted - 1)
    up = (2 * rest > n_wanted - 1) | ((2 * rest == n_wanted - 1) & (index % 2 == 1))
    return index + up


def floor_offset_indices(n_frames: int, n_wanted: int, offset_divisor: int) -> np.ndarray:
    """int64 [n_wanted]: floor(i*n/n_wanted) + floor(n/offset_divisor), at most n - 1."""
    index = np.arange(n_wanted, dtype=np.int64) * n_frames // n_wanted + n_frames // offset_divisor
    return np.minimum(index, n_frames - 1)


def subsequence_spans(n_frames: int, n_clips: int, frames_per_window: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 [n_clips] twice: the first and the last frame of every sub-sequence, both included."""
    last = np.maximum(0, n_frames - 1 - np.arange(n_clips - 1, -1, -1, dtype=np.int64) * frames_per_window)
    return np.maximum(0, last - frames_per_window + 1), last


def subsequence_indices(n_frames: int, n_clips: int, frames_per_clip: int, frames_per_window: int) -> np.ndarray:
    """int64 [n_clips, frames_per_clip]: every step-th frame counted back from the last; the last again where there are too few."""
    first, last = subsequence_spans(n_frames, n_clips, frames_per_window)
    available = last - first + 1
    step = np.maximum(1, available // frames_per_clip)
    start = np.where(available < frames_per_clip, first, last - (frames_per_clip - 1) * step)
    index = start[:, None] + step[:, None] * np.arange(frames_per_clip, dtype=np.int64)
    return np.minimum(index, last[:, None])


def refuse_nan(clip: Clip, what: str, values: np.ndarray) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError(f"clip {clip.id}: {what} hold NaN or infinity")


def describe(values: Any) -> str:
    return f"{values.dtype} {list(values.shape)}" if isinstance(values, np.ndarray) else type(values).__name__


def _in_layout(video: np.ndarray, layout: str) -> np.ndarray:
    """[K, 3, T, H, W] with its axes in another order; those that are left out have length 1."""
    left_out = tuple(i for i, axis in enumerate("KCTHW") if axis not in layout)
    axes = [axis for axis in "KCTHW" if axis in layout]
    return np.ascontiguousarray(video.squeeze(left_out).transpose([axes.index(axis) for axis in layout]))

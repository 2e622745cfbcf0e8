"""From a decoded clip to model inputs, by `preprocess.json` alone.

The device must compute the same tensors, so the definition below is integer arithmetic wherever an
index or a sum is formed and plain float32 elsewhere: it can be written again in C from this page
(compile with -ffp-contract=off: a fused multiply-add rounds once less). Golden vectors in every
bundle hold raw and preprocessed clips to check it against.

video: frames uint8 [n, h, w, 3] RGB -> float32 [K, 3, T, H, W], or its axes as `layout` has them
    1. N = K*T frames are taken uniformly, first and last included, repeats where n < N:
           q = i*(n-1);  d = N-1;  index = q/d;  r = q%d          (integers; index 0 if N = 1)
           if 2*r > d, or 2*r = d and index is odd: index += 1     (round half to even)
       Frame i goes to clip k = i/T at time t = i%T.
    2. Bilinear resize, half-pixel centres, no antialias. For output column x of W from width w
       (and the same for rows with H, h):
           p = max(0, (2*x+1)*w - W);  x0 = p/(2*W);  x1 = min(x0+1, w-1)      (integers)
           a = float32(p % (2*W)) / float32(2*W)
       Columns first, then rows, each in float32 as
           v = v0 + (v1 - v0)*a
    3. out[k, c, t, y, x] = (v - mean[c]) / std[c] in float32; mean and std in units of pixels 0..255.
    4. `layout` names the axes of the result, outermost first; without K or T, that count is 1.

wave: audio int16 [samples] mono at exactly `sample_rate_hz` -> float32 [S], or [1, S] with `layout: CS`
    1. Keep the first m = min(samples, S) samples x.
    2. Zero mean, unit variance over these m valid samples. The sums are exact in 64-bit integers:
           s1 = sum(x);  s2 = sum(x*x)
           mean = s1/m;  var = max(0, s2/m - mean*mean)                         (float64)
           offset = float32(mean/scale);  gain = float32(1/sqrt(var/scale^2 + eps))
           out = (float32(x)/float32(scale) - offset)*gain                      (float32)
       With `normalize: none` instead: out = float32(x)/float32(scale).
    3. Zeros follow on the right up to S.

Nothing is resampled here: a clip at another sample rate is refused, since the resampling filter
would be one more thing that the device must have in common with the host.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgekit.datasets import Clip
from edgekit.errors import DataError
from edgekit.resize import resize_bilinear

_VIDEO_CONSTANTS = {
    "color": "RGB",
    "resize": "bilinear_half_pixel",
    "sampling": "uniform_round_linspace",
}
_AUDIO_CONSTANTS = {"pad": "right_zero_after_normalize"}
_VIDEO_KEYS = ("clips", "frames_per_clip", "height", "width", "layout", *_VIDEO_CONSTANTS, "mean", "std")
_AUDIO_KEYS = ("sample_rate_hz", "samples", "scale", "normalize", *_AUDIO_CONSTANTS)
VIDEO_LAYOUTS = ("KCTHW", "CTHW", "TCHW", "THWC", "CHW", "HWC")
AUDIO_LAYOUTS = ("S", "CS")
NORMALIZE = ("zero_mean_unit_variance", "none")

_MAX_SIZE = 1 << 24  # of any count in a spec; keeps the index arithmetic within 64 bits


def preprocess(spec: dict[str, Any], clip: Clip) -> dict[str, np.ndarray]:
    """Turn one clip into model inputs.

    Args:
        spec: preprocess.json, with "video", "audio" or both.
        clip: see edgekit.datasets.Clip.

    Returns:
        {"video": float32 [K, 3, T, H, W], "wave": float32 [S]} in their layouts, each if its part is in the spec.

    Raises:
        DataError: the spec is wrong, or the clip is empty, of another type or at another sample rate.
    """
    check_spec(spec)
    inputs = {}
    if "video" in spec:
        inputs["video"] = _video(spec["video"], clip)
    if "audio" in spec:
        inputs["wave"] = _wave(spec["audio"], clip)
    return inputs


def check_spec(spec: dict[str, Any]) -> None:
    """Raise DataError unless `spec` is a preprocess.json that this module defines."""
    if not isinstance(spec, dict) or not spec or not set(spec) <= {"video", "audio"}:
        seen = list(spec) if isinstance(spec, dict) else type(spec).__name__
        raise DataError(f"preprocess.json: expected `video`, `audio` or both, got {seen}")
    if "video" in spec:
        video = _section(spec, "video", _VIDEO_KEYS, _VIDEO_CONSTANTS)
        for key in ("clips", "frames_per_clip", "height", "width"):
            _count(video, "video", key)
        _one_of(video, "video", "layout", VIDEO_LAYOUTS)
        for axis, key in (("K", "clips"), ("T", "frames_per_clip")):
            if axis not in video["layout"] and video[key] != 1:
                raise DataError(f"preprocess.json: `video.{key}` is {video[key]}, but `layout` {video['layout']} has no axis {axis}")
        for key in ("mean", "std"):
            values = video[key]
            if not isinstance(values, (list, tuple)) or len(values) != 3 or not all(map(_is_finite, values)):
                raise DataError(f"preprocess.json: `video.{key}` must be three finite numbers, got {values!r}")
        if not all(value > 0 for value in video["std"]):
            raise DataError(f"preprocess.json: `video.std` must be positive, got {video['std']!r}")
    if "audio" in spec:
        has_mean = isinstance(spec["audio"], dict) and spec["audio"].get("normalize") != "none"
        audio = _section(spec, "audio", (*_AUDIO_KEYS, "eps") if has_mean else _AUDIO_KEYS, _AUDIO_CONSTANTS, optional=("layout",))
        _one_of(audio, "audio", "normalize", NORMALIZE)
        _one_of({"layout": "S", **audio}, "audio", "layout", AUDIO_LAYOUTS)
        for key in ("sample_rate_hz", "samples"):
            _count(audio, "audio", key)
        for key in ("scale", "eps") if has_mean else ("scale",):
            if not _is_finite(audio[key]) or not audio[key] > 0:
                raise DataError(f"preprocess.json: `audio.{key}` must be a positive number, got {audio[key]!r}")


def frame_indices(n_frames: int, n_wanted: int) -> np.ndarray:
    """int64 [n_wanted]: half-to-even rounding of linspace(0, n_frames - 1, n_wanted), in exact arithmetic.

    np.linspace multiplies a rounded step, so its exact halves may land on either side; this cannot.
    """
    if n_wanted == 1:
        return np.zeros(1, np.int64)
    index, rest = np.divmod(np.arange(n_wanted, dtype=np.int64) * (n_frames - 1), n_wanted - 1)
    up = (2 * rest > n_wanted - 1) | ((2 * rest == n_wanted - 1) & (index % 2 == 1))
    return index + up


def _video(spec: dict[str, Any], clip: Clip) -> np.ndarray:
    frames = clip.frames
    if not isinstance(frames, np.ndarray) or frames.ndim != 4 or frames.shape[3] != 3:
        raise DataError(f"clip {clip.id}: frames must be [n, h, w, 3], got {_describe(frames)}")
    if 0 in frames.shape:
        raise DataError(f"clip {clip.id}: no video, frames are {_describe(frames)}")
    _refuse_nan(clip, "frames", frames)
    if frames.dtype != np.uint8:
        raise DataError(f"clip {clip.id}: frames must be uint8, got {_describe(frames)}")

    n_clips, n_times = spec["clips"], spec["frames_per_clip"]
    mean, std = np.float32(spec["mean"]), np.float32(spec["std"])
    out = np.empty((n_clips, 3, n_times, spec["height"], spec["width"]), np.float32)
    before = -1
    for i, index in enumerate(frame_indices(len(frames), n_clips * n_times)):
        if index != before:  # a short clip repeats its frames
            image = (resize_bilinear(frames[index], spec["height"], spec["width"]) - mean) / std
            before = index
        out[i // n_times, :, i % n_times] = image.transpose(2, 0, 1)
    return _in_layout(out, spec["layout"])


def _in_layout(video: np.ndarray, layout: str) -> np.ndarray:
    """[K, 3, T, H, W] with its axes in another order; those that are left out have length 1."""
    left_out = tuple(i for i, axis in enumerate("KCTHW") if axis not in layout)
    axes = [axis for axis in "KCTHW" if axis in layout]
    return np.ascontiguousarray(video.squeeze(left_out).transpose([axes.index(axis) for axis in layout]))


def _wave(spec: dict[str, Any], clip: Clip) -> np.ndarray:
    audio = clip.audio
    if not isinstance(audio, np.ndarray) or audio.ndim != 1:
        raise DataError(f"clip {clip.id}: audio must be [samples] mono, got {_describe(audio)}")
    if not len(audio):
        raise DataError(f"clip {clip.id}: no audio, 0 samples")
    _refuse_nan(clip, "audio", audio)
    if audio.dtype != np.int16:
        raise DataError(f"clip {clip.id}: audio must be int16, got {_describe(audio)}")
    if clip.sample_rate_hz != spec["sample_rate_hz"]:
        raise DataError(
            f"clip {clip.id}: audio is at {clip.sample_rate_hz} Hz, the model takes {spec['sample_rate_hz']} Hz",
            "preprocessing does not resample; "
            f"set `sample_rate_hz: {spec['sample_rate_hz']}` in the data set's YAML to resample while decoding",
        )

    valid = audio[: spec["samples"]]
    out = np.zeros(spec["samples"], np.float32)
    out[: len(valid)] = _normalized(valid, spec)
    return out[None] if spec.get("layout") == "CS" else out


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


def _section(spec: dict[str, Any], name: str, keys: tuple[str, ...], constants: dict[str, str], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    section = spec[name]
    if not isinstance(section, dict):
        raise DataError(f"preprocess.json: `{name}` must be a mapping, got {section!r}")
    for key in keys:
        if key not in section:
            raise DataError(f"preprocess.json: `{name}.{key}` is missing")
    for key in section:
        if key not in (*keys, *optional):
            raise DataError(f"preprocess.json: unknown key `{name}.{key}`", f"known: {', '.join(keys)}")
    for key, value in constants.items():
        if section[key] != value:
            raise DataError(f"preprocess.json: `{name}.{key}` is {section[key]!r}, only {value!r} is defined")
    return section


def _one_of(section: dict[str, Any], name: str, key: str, known: tuple[str, ...]) -> None:
    if section[key] not in known:
        raise DataError(f"preprocess.json: `{name}.{key}` is {section[key]!r}, defined are {', '.join(known)}")


def _count(section: dict[str, Any], name: str, key: str) -> None:
    value = section[key]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_SIZE:
        raise DataError(f"preprocess.json: `{name}.{key}` must be an integer of 1 to {_MAX_SIZE}, got {value!r}")


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _refuse_nan(clip: Clip, what: str, values: np.ndarray) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError(f"clip {clip.id}: {what} hold NaN or infinity")


def _describe(values: Any) -> str:
    return f"{values.dtype} {list(values.shape)}" if isinstance(values, np.ndarray) else type(values).__name__

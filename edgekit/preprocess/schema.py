"""What preprocess.json may say. Definition of each word: edgekit.preprocess."""

from __future__ import annotations

import math
from typing import Any

from edgekit.errors import DataError

from . import sound

VIDEO_LAYOUTS = ("KCTHW", "CTHW", "TCHW", "THWC", "CHW", "HWC")
AUDIO_LAYOUTS = ("S", "CS")
NORMALIZE = ("zero_mean_unit_variance", "none")
SAMPLING = {"uniform_round_linspace": (), "floor_offset": ("offset_divisor",), "subsequences": ("frames_per_window",)}  # → its keys

_SECTIONS = ("video", "audio", "features")
_VIDEO_CONSTANTS = {"color": "RGB", "resize": "bilinear_half_pixel"}
_AUDIO_CONSTANTS = {"pad": "right_zero_after_normalize"}
_VIDEO_KEYS = ("clips", "frames_per_clip", "height", "width", "layout", *_VIDEO_CONSTANTS, "sampling", "mean", "std")
_AUDIO_KEYS = ("sample_rate_hz", "samples", "scale", "normalize", *_AUDIO_CONSTANTS)
_SPECTRUM_KEYS = ("kind", "per", "n_fft", "win_length", "window", "n_mels", "f_min", "f_max")
_CUT_KEYS = {"clip": ("samples", "fit", "hop_length", "center"), "subsequence": ("samples", "hop_length", "center"), "frame": ()}  # of every `per`
_CHOICES = {"window": ("hann", "hamming"), "fit": ("start", "center"), "center": (True, False), "pad_mode": ("constant", "reflect"), "deltas": (True, False), "until": sound.UNTIL}

_MAX_SIZE = 1 << 24  # of any count in a spec; keeps the index arithmetic within 64 bits


def check_spec(spec: dict[str, Any]) -> None:
    """Raise DataError unless `spec` is a preprocess.json that edgekit.preprocess defines."""
    if not isinstance(spec, dict) or not spec or not set(spec) <= set(_SECTIONS):
        seen = list(spec) if isinstance(spec, dict) else type(spec).__name__
        raise DataError(f"preprocess.json: expected {', '.join(f'`{name}`' for name in _SECTIONS)} or some of them, got {seen}")
    if "video" in spec:
        _check_video(spec["video"])
    if "audio" in spec:
        if isinstance(spec["audio"], dict) and "features" in spec["audio"]:
            _check_sound_features(spec)
        else:
            _check_wave(spec["audio"])
    if "features" in spec:
        _check_features(spec)


def _check_video(video: Any) -> None:
    sampling = video.get("sampling", "uniform_round_linspace") if isinstance(video, dict) else None
    own = SAMPLING.get(sampling, ()) if isinstance(sampling, str) else ()
    optional = {"floor_offset": ("resize_to", "window_frames"), "uniform_round_linspace": ("resize_to", "average")}.get(str(sampling), ("resize_to",))
    _keys(video, "video", (*_VIDEO_KEYS, *own), _VIDEO_CONSTANTS, optional)
    _one_of(video, "video", "sampling", SAMPLING)
    for key in ("clips", "frames_per_clip", "height", "width", *own, *(key for key in ("window_frames",) if key in video)):
        _count(video, "video", key)
    _one_of(video, "video", "layout", VIDEO_LAYOUTS)
    for axis, key in (("K", "clips"), ("T", "frames_per_clip")):
        if axis not in video["layout"] and video[key] != 1:
            raise DataError(f"preprocess.json: `video.{key}` is {video[key]}, but `layout` {video['layout']} has no axis {axis}")
    if "average" in video:
        if video["average"] != "all":
            _count(video, "video", "average")
        if (video["clips"], video["frames_per_clip"]) != (1, 1):
            raise DataError("preprocess.json: `video.average` makes one picture, so `clips` and `frames_per_clip` must be 1")
    if sampling == "subsequences" and video["frames_per_window"] < video["frames_per_clip"]:
        raise DataError(f"preprocess.json: `video.frames_per_window` is {video['frames_per_window']}, fewer than `frames_per_clip` {video['frames_per_clip']}")
    size = (video["height"], video["width"])
    resize_to = video.get("resize_to", size)
    if not isinstance(resize_to, (list, tuple)) or len(resize_to) != 2 or not all(_is_count(v) and v >= least for v, least in zip(resize_to, size, strict=True)):
        raise DataError(f"preprocess.json: `video.resize_to` must be [height, width] of at least {list(size)}, whose middle is taken, got {resize_to!r}")
    for key in ("mean", "std"):
        values = video[key]
        if not isinstance(values, (list, tuple)) or len(values) != 3 or not all(map(_is_finite, values)):
            raise DataError(f"preprocess.json: `video.{key}` must be three finite numbers, got {values!r}")
    if not all(value > 0 for value in video["std"]):
        raise DataError(f"preprocess.json: `video.std` must be positive, got {video['std']!r}")


def _check_wave(audio: Any) -> None:
    has_mean = isinstance(audio, dict) and audio.get("normalize") != "none"
    _keys(audio, "audio", (*_AUDIO_KEYS, "eps") if has_mean else _AUDIO_KEYS, _AUDIO_CONSTANTS, ("layout",))
    _one_of(audio, "audio", "normalize", NORMALIZE)
    _one_of({"layout": "S", **audio}, "audio", "layout", AUDIO_LAYOUTS)
    for key in ("sample_rate_hz", "samples"):
        _count(audio, "audio", key)
    for key in ("scale", "eps") if has_mean else ("scale",):
        _positive(audio, "audio", key)


def _check_sound_features(spec: dict[str, Any]) -> None:
    audio = spec["audio"]
    _keys(audio, "audio", ("sample_rate_hz", "scale", "features"), optional=("subtract", "peak"))
    _count(audio, "audio", "sample_rate_hz")
    for key in ("scale", "peak"):
        if key in audio:
            _positive(audio, "audio", key)
    if "subtract" in audio:
        _check_subtract(audio["subtract"], "audio.subtract")
    _names(audio["features"], "audio.features", taken=("video", "wave"))
    for name, how in audio["features"].items():
        _check_spectrum(how, f"audio.features.{name}", audio["sample_rate_hz"], spec.get("video"))


def _check_subtract(how: Any, path: str) -> None:
    _keys(how, path, ("n_fft", "hop_length", "quietest", "over", "floor"))
    for key in ("n_fft", "hop_length"):
        _count(how, path, key)
    if how["n_fft"] % 2 or how["n_fft"] < 2 * how["hop_length"]:  # with fewer than two columns over a sample, the window's zeros stay unheard
        raise DataError(f"preprocess.json: `{path}.n_fft` must be even and at least twice `hop_length` {how['hop_length']}, got {how['n_fft']}")
    for key in ("quietest", "over", "floor"):
        if not _is_finite(how[key]) or not 0 <= how[key] <= (math.inf if key == "over" else 1):
            raise DataError(f"preprocess.json: `{path}.{key}` must be a number of 0 {'or more' if key == 'over' else 'to 1'}, got {how[key]!r}")


def _check_spectrum(how: Any, path: str, sample_rate_hz: int, video: dict[str, Any] | None) -> None:
    _present(how, path, ("kind", "per"))
    _one_of(how, path, "kind", ("mfcc", "log_mel"))
    _one_of(how, path, "per", _CUT_KEYS)
    for key, known in _CHOICES.items():
        if key in how:
            _one_of(how, path, key, known)
    per = how["per"]
    keys = (*_SPECTRUM_KEYS, *_CUT_KEYS[per])
    keys += ("pad_mode",) * (how.get("center") is True) + ("hop_length",) * (per == "frame" and how.get("deltas") is True)
    optional = ("shift", "scale", *{"subsequence": ("frames", "until"), "clip": ("frames",)}.get(per, ()))
    if how["kind"] == "mfcc":
        keys, optional = (*keys, "n_mfcc"), (*optional, "deltas")
    _keys(how, path, keys, optional=optional)

    for key in ("samples", "n_fft", "win_length", "hop_length", "n_mels", "n_mfcc", "frames"):
        if key in how:
            _count(how, path, key)
    for key, most, of in (("win_length", how["n_fft"], "n_fft"), ("n_mfcc", how["n_mels"], "n_mels")):
        if key in how and how[key] > most:
            raise DataError(f"preprocess.json: `{path}.{key}` is {how[key]}, more than `{of}` {most}")
    if how["n_fft"] % 2:
        raise DataError(f"preprocess.json: `{path}.n_fft` must be even, got {how['n_fft']}")
    low, high = how["f_min"], how["f_max"]
    if not _is_finite(low) or not _is_finite(high) or not 0 <= low < high <= sample_rate_hz / 2:
        raise DataError(f"preprocess.json: `{path}.f_min` and `f_max` must hold 0 <= f_min < f_max <= {sample_rate_hz / 2:g} (half the sample rate), got {low!r} and {high!r}")
    _check_numbers(how, path, "shift", sound.dimension(how))
    _check_numbers(how, path, "scale", sound.dimension(how), positive=True)
    if per == "frame" and video is None:
        raise DataError(f"preprocess.json: `{path}.per` is 'frame', but there is no `video` whose frames it follows")
    if per == "subsequence" and (video is None or video["sampling"] != "subsequences"):
        raise DataError(f"preprocess.json: `{path}.per` is 'subsequence', but `video.sampling` is not 'subsequences'")
    if per != "frame":
        _check_length(how, path)


def _check_length(how: dict[str, Any], path: str) -> None:
    """`samples` must hold what one spectrum, its border and the deltas need."""
    columns = sound.column_count(how, how["samples"])
    if how.get("pad_mode") == "reflect" and how["samples"] <= how["n_fft"] // 2:
        raise DataError(f"preprocess.json: `{path}.samples` is {how['samples']}, reflection needs more than half of `n_fft` {how['n_fft']}")
    if columns < (least := 2 * sound.REACH + 1 if how.get("deltas") else 1):
        raise DataError(f"preprocess.json: `{path}.samples` is {how['samples']}, too few for {least} spectra of `n_fft` {how['n_fft']}, `hop_length` {how['hop_length']}")
    if how["per"] == "clip" and how.get("frames", columns) > columns:
        raise DataError(f"preprocess.json: `{path}.frames` is {how['frames']}, `samples` give {columns} columns only")
    if how["per"] == "subsequence" and how.get("frames", columns) < columns:
        raise DataError(f"preprocess.json: `{path}.frames` is {how['frames']}, fewer than the {columns} that `samples` give")


def _check_features(spec: dict[str, Any]) -> None:
    taken = ("video", "wave", *spec.get("audio", {}).get("features", ()))
    _names(spec["features"], "features", taken)
    for name, how in spec["features"].items():
        path = f"features.{name}"
        _present(how, path, ("dim", "mean", "std"))
        _one_of({"per": "frame", **how}, path, "per", ("frame", "clip"))
        is_whole = how.get("per") == "clip"
        _keys(how, path, ("dim", "mean", "std") + ("rows",) * is_whole, optional=("per",))
        for key in ("dim", "rows") if is_whole else ("dim",):
            _count(how, path, key)
        _check_numbers(how, path, "mean", how["dim"])
        _check_numbers(how, path, "std", how["dim"], positive=True)
        if not is_whole and "video" not in spec:
            raise DataError(f"preprocess.json: `{path}` are taken at the frames that `video` takes, but there is no `video`", "features of a whole clip are `per: clip`")


def _names(section: Any, path: str, taken: tuple[str, ...]) -> None:
    """Names of flow inputs: they become tensor names, file keys and C identifiers."""
    if not isinstance(section, dict) or not section:
        raise DataError(f"preprocess.json: `{path}` must be a mapping of at least one name, got {section!r}")
    for name in section:
        if not isinstance(name, str) or not name.isidentifier() or not name.isascii():
            raise DataError(f"preprocess.json: `{path}`: {name!r} is no name of letters, digits and `_`")
        if name in taken:
            raise DataError(f"preprocess.json: `{path}.{name}`: another input has that name")


def _present(section: Any, path: str, keys: tuple[str, ...]) -> None:
    if not isinstance(section, dict):
        raise DataError(f"preprocess.json: `{path}` must be a mapping, got {section!r}")
    for key in keys:
        if key not in section:
            raise DataError(f"preprocess.json: `{path}.{key}` is missing")


def _keys(section: Any, path: str, keys: tuple[str, ...], constants: dict[str, str] | None = None, optional: tuple[str, ...] = ()) -> None:
    _present(section, path, keys)
    for key in section:
        if key not in (*keys, *optional):
            raise DataError(f"preprocess.json: unknown key `{path}.{key}`", f"known: {', '.join((*keys, *optional))}")
    for key, value in (constants or {}).items():
        if section[key] != value:
            raise DataError(f"preprocess.json: `{path}.{key}` is {section[key]!r}, only {value!r} is defined")


def _one_of(section: dict[str, Any], path: str, key: str, known: Any) -> None:
    if not any(section[key] is value or (isinstance(value, str) and section[key] == value) for value in known):
        raise DataError(f"preprocess.json: `{path}.{key}` is {section[key]!r}, defined are {', '.join(map(str, known))}")


def _count(section: dict[str, Any], path: str, key: str) -> None:
    if not _is_count(section[key]):
        raise DataError(f"preprocess.json: `{path}.{key}` must be an integer of 1 to {_MAX_SIZE}, got {section[key]!r}")


def _positive(section: dict[str, Any], path: str, key: str) -> None:
    if not _is_finite(section[key]) or not section[key] > 0:
        raise DataError(f"preprocess.json: `{path}.{key}` must be a positive number, got {section[key]!r}")


def _check_numbers(section: dict[str, Any], path: str, key: str, size: int, positive: bool = False) -> None:
    """One number, or a list of `size`."""
    value = section.get(key, 1.0)
    values = value if isinstance(value, (list, tuple)) else [value] * size
    if len(values) != size or not all(_is_finite(v) and (v > 0 or not positive) for v in values):
        raise DataError(f"preprocess.json: `{path}.{key}` must be {size} finite{' positive' * positive} numbers, got {value!r}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MAX_SIZE


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

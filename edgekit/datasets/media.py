"""Decode one media file to frames or samples, whatever its container, and refuse what is damaged.

Everything ends as a Clip holds it: frames uint8 [n, h, w, 3] RGB, and int16 mono samples at the
rate asked for. One definition for all sources of sound, in float64:

    mono = mean over the channels;  scipy.signal.resample_poly if the rate differs;
    sample = clip(round_half_even(mono * 32768), -32768, 32767)

so 16-bit mono at the right rate passes unchanged. Files are not trusted: the demuxer is chosen by
suffix, never by content (an .mp4 that is really a playlist would make FFmpeg open other files),
arrays are never pickles, and sizes are checked before memory is taken.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from edgekit.errors import DataError

# suffix -> FFmpeg demuxer
CONTAINERS = {".mp4": "mp4", ".mkv": "matroska", ".webm": "matroska", ".flv": "flv", ".avi": "avi"}
SOUND_FILES = (".wav", ".flac")
PICTURES = {".png": "png_pipe", ".jpg": "jpeg_pipe", ".jpeg": "jpeg_pipe"}  # video of one frame
VIDEO_SUFFIXES = (".npz", *CONTAINERS, *PICTURES)
AUDIO_SUFFIXES = (".npz", *CONTAINERS, *SOUND_FILES)

MAX_FRAME_BYTES = 1 << 30  # decoded frames of one clip
MAX_SAMPLES = 1 << 26  # values of one clip's sound, all channels; 23 min of 48 kHz mono
_MIN_RATE_HZ, _MAX_RATE_HZ = 1000, 768_000
_INSTANT_S = 1e-3  # some containers round time stamps to ms
_PREROLL_S = 0.5  # sound decoded before a span and thrown away: lossy codecs need the blocks before
_FULL_SCALE_SLACK = 2.0  # lossy codecs overshoot full scale and are saturated; beyond 6 dB the unit is wrong


def read_video(path: Path, span_s: tuple[float, float] | None = None) -> tuple[np.ndarray, float]:
    """(frames uint8 [n, h, w, 3] RGB, frames per second).

    Args:
        span_s: take only frames that begin in [start, end), in the file's own time; only of containers.

    Raises:
        DataError: not a video that can be decoded to its end, none in the file, too large, or over before the span is.
    """
    if path.suffix.lower() == ".npz" and span_s is None:
        return _npz_video(path)
    if path.suffix.lower() in (*CONTAINERS, *(PICTURES if span_s is None else ())):
        return _container_video(path, span_s)
    raise DataError(f"{path}: video cannot be read from `{path.suffix}`", f"known: {', '.join(VIDEO_SUFFIXES)}")


def read_audio(path: Path, sample_rate_hz: int, span_s: tuple[float, float] | None = None) -> np.ndarray:
    """int16 [samples], mono, resampled to `sample_rate_hz`.

    Args:
        span_s: take only [start, end), cut before it is resampled; only of containers.

    Raises:
        DataError: not sound that can be decoded to its end, none in the file, NaN, too large, or over before the span is.
    """
    suffix = path.suffix.lower()
    if suffix in CONTAINERS:
        channels, rate_hz = _container_audio(path, span_s)
    elif suffix == ".npz" and span_s is None:
        channels, rate_hz = _npz_audio(path)
    elif suffix in SOUND_FILES and span_s is None:
        channels, rate_hz = _sound_file(path)
    else:
        raise DataError(f"{path}: audio cannot be read from `{path.suffix}`", f"known: {', '.join(AUDIO_SUFFIXES)}")
    if not channels.size:
        raise DataError(f"{path}: audio of zero length")
    if not _MIN_RATE_HZ <= rate_hz <= _MAX_RATE_HZ:
        raise DataError(f"{path}: sample rate of {rate_hz} Hz, expected {_MIN_RATE_HZ} to {_MAX_RATE_HZ}")
    if not np.isfinite(channels).all():
        raise DataError(f"{path}: audio holds NaN or infinity")
    peak = float(np.abs(channels).max())
    if not peak <= _FULL_SCALE_SLACK:
        raise DataError(f"{path}: float audio reaches {peak:g}, expected -1 to 1", "divide by full scale, or store int16")

    mono = channels.mean(axis=0)
    if rate_hz != sample_rate_hz:
        from scipy.signal import resample_poly

        common = math.gcd(rate_hz, sample_rate_hz)
        mono = resample_poly(mono, sample_rate_hz // common, rate_hz // common)
    return np.clip(np.rint(mono * 32768.0), -32768, 32767).astype(np.int16)


def has_audio(path: Path) -> bool:
    """Whether a container has a sound track at all.

    Raises:
        DataError: not a container that can be opened.
    """
    with _container(path) as container:
        return bool(container.streams.audio)


def read_npy(path: Path, max_bytes: int = MAX_FRAME_BYTES) -> np.ndarray:
    """One array of numbers. Its header is checked before memory is taken, and a pickle is never loaded.

    Raises:
        DataError: not a .npy, damaged, of Python objects, or larger than `max_bytes`.
    """
    try:
        with _opened(path) as file:
            return _npy(path, path.name, file, max_bytes)
    except (ValueError, EOFError) as e:
        raise DataError(f"{path}: not a .npy that can be read ({e})", "write it with numpy.save") from e


# -- .npz: frames, fps, audio, sample_rate_hz ----------------------------------------------------


def _npz_video(path: Path) -> tuple[np.ndarray, float]:
    frames = _npz_array(path, "frames", MAX_FRAME_BYTES)
    if frames is None:
        raise DataError(f"{path}: no video, the file has no array `frames`")
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise DataError(f"{path}: `frames` is {frames.dtype} {list(frames.shape)}, expected uint8 [n, h, w, 3]")
    if not frames.size:
        raise DataError(f"{path}: video of zero length, `frames` is {list(frames.shape)}")
    return frames, _positive(path, "fps", _npz_number(path, "fps"))


def _npz_audio(path: Path) -> tuple[np.ndarray, int]:
    audio = _npz_array(path, "audio", MAX_SAMPLES * 8)
    if audio is None:
        raise DataError(f"{path}: no audio, the file has no array `audio`")
    if audio.ndim != 1 or not (audio.dtype == np.int16 or audio.dtype.kind == "f"):
        raise DataError(f"{path}: `audio` is {audio.dtype} {list(audio.shape)}, expected int16 or float [samples]")
    rate_hz = _positive(path, "sample_rate_hz", _npz_number(path, "sample_rate_hz"))
    if rate_hz != int(rate_hz):
        raise DataError(f"{path}: `sample_rate_hz` is {rate_hz}, expected a whole number")
    samples = audio / 32768.0 if audio.dtype == np.int16 else audio.astype(np.float64)
    return samples[None], int(rate_hz)


def _npz_number(path: Path, name: str) -> float:
    value = _npz_array(path, name, 64)
    if value is None or value.size != 1 or value.dtype.kind not in "iuf":
        seen = "missing" if value is None else f"{value.dtype} {list(value.shape)}"
        raise DataError(f"{path}: `{name}` must be one number, it is {seen}")
    return float(value.reshape(()))


def _npz_array(path: Path, name: str, max_bytes: int) -> np.ndarray | None:
    """One array, or None if it is not there. Its header is checked before memory is taken."""
    try:
        with zipfile.ZipFile(path) as archive:
            if f"{name}.npy" not in archive.namelist():
                return None
            with archive.open(f"{name}.npy") as member:
                return _npy(path, name, member, max_bytes)
    # What zipfile and numpy raise for damaged bytes; NotImplementedError: an unknown compression,
    # RuntimeError: an encrypted member.
    except (zipfile.BadZipFile, zipfile.zlib.error, ValueError, EOFError, NotImplementedError, RuntimeError) as e:
        raise DataError(f"{path}: not a .npz that can be read ({e})", "write it with numpy.savez") from e
    except OSError as e:
        raise _unreadable(path, e) from e


def _npy(path: Path, name: str, file: IO[bytes], max_bytes: int) -> np.ndarray:
    version = np.lib.format.read_magic(file)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise DataError(f"{path}: `{name}` is of .npy version {version}, expected 1.0 or 2.0")
    shape, is_fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise DataError(f"{path}: `{name}` holds Python objects", "store numbers; pickles are never loaded")
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes > max_bytes:
        raise _too_large(path, n_bytes, max_bytes)
    data = file.read(n_bytes + 1)  # +1: in an archive, reading past the end also checks the CRC
    if len(data) != n_bytes:
        raise DataError(f"{path}: `{name}` has {len(data)} bytes, its header says {n_bytes}", "the file is damaged")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")


# -- .wav, .flac ---------------------------------------------------------------------------------


def _sound_file(path: Path) -> tuple[np.ndarray, int]:
    import soundfile

    with _opened(path) as file:
        _refuse_truncated_riff(path, file)
        try:
            with soundfile.SoundFile(file) as sound:
                if sound.frames * sound.channels > MAX_SAMPLES:
                    raise _too_large(path, sound.frames * sound.channels * 8, MAX_SAMPLES * 8)
                samples = sound.read(dtype="float64", always_2d=True)
                expected, rate_hz = sound.frames, sound.samplerate
        except soundfile.SoundFileError as e:
            raise DataError(f"{path}: not sound that can be decoded ({e})") from e
    if len(samples) != expected:
        raise DataError(f"{path}: {len(samples)} samples decoded, its header says {expected}", "the file is cut off")
    return samples.T, rate_hz


def sound_size(path: Path) -> tuple[int, int]:
    """(sample rate in Hz, samples of one channel) of a .wav or .flac, as its header says.

    Raises:
        DataError: not such a file.
    """
    import soundfile

    with _opened(path) as file:
        try:
            with soundfile.SoundFile(file) as sound:
                return sound.samplerate, sound.frames
        except soundfile.SoundFileError as e:
            raise DataError(f"{path}: not sound that can be decoded ({e})") from e


def _refuse_truncated_riff(path: Path, file: BinaryIO) -> None:
    """libsndfile silently shortens a .wav whose data chunk ends early; we say so instead."""
    file.seek(0, 2)
    size = file.tell()
    file.seek(0)
    if file.read(4) == b"RIFF":
        at = 12
        while at + 8 <= size:
            file.seek(at)
            name, length = file.read(4), int.from_bytes(file.read(4), "little")
            if name == b"data":
                # 2^32 - 1 is how a program that writes to a pipe says "until the end".
                if length != 0xFFFFFFFF and at + 8 + length > size:
                    raise DataError(f"{path}: {size} bytes, its header says {at + 8 + length}", "the file is cut off")
                break
            at += 8 + length + length % 2
    file.seek(0)


# -- .mp4, .mkv, .webm, .flv, .avi ---------------------------------------------------------------------------


def _container_video(path: Path, span_s: tuple[float, float] | None = None) -> tuple[np.ndarray, float]:
    images: list[np.ndarray] = []
    n_bytes, fps = 0, 0.0
    for image, fps in stream_video(path, span_s):  # noqa: B007, it is the same for all
        n_bytes += image.nbytes
        if n_bytes > MAX_FRAME_BYTES:
            raise _too_large(path, n_bytes, MAX_FRAME_BYTES)
        images.append(image)
    return np.stack(images), fps


def stream_video(path: Path, span_s: tuple[float, float] | None = None) -> Iterator[tuple[np.ndarray, float]]:
    """(frame uint8 [h, w, 3] RGB, frames per second), one after the other: what `read_video` holds at once. Only of containers.

    Raises:
        DataError: as `read_video`; a cut-off or too short file only after its last frame.
    """
    with _container(path) as container:
        if not container.streams.video:
            raise DataError(f"{path}: no video stream")
        stream = container.streams.video[0]
        # Without this FFmpeg paints over damaged parts with what it guesses.
        stream.codec_context.options = {"err_detect": "explode"}
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        shape, count, end_s = None, 0, 0.0
        if span_s:
            _seek(container, stream, span_s[0])
        for frame in container.decode(stream):
            if span_s:
                at_s = _time_s(path, frame)
                if at_s >= span_s[1] - _INSTANT_S:
                    break
                if at_s < span_s[0] - _INSTANT_S:
                    continue
            if frame.is_corrupt:
                raise DataError(f"{path}: frame {count} is damaged")
            if (n_bytes := frame.width * frame.height * 3) > MAX_FRAME_BYTES:
                raise _too_large(path, n_bytes, MAX_FRAME_BYTES)
            # Phones store upright video lying down, with the turn beside it.
            image = np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90) % 4)
            shape = shape or image.shape
            if image.shape != shape:
                raise DataError(f"{path}: frame {count} is {image.shape[1]}x{image.shape[0]}, the first is {shape[1]}x{shape[0]}")
            shown_s = float(frame.duration * frame.time_base) if frame.duration else 1 / (fps or 25)
            end_s = max(end_s, (frame.time or 0.0) + shown_s)
            count += 1
            yield image, _positive(path, "frame rate", fps)
        if span_s:
            _refuse_short(path, stream, span_s, end_s)
        if not count:
            raise DataError(f"{path}: video of zero length")
        if not span_s:
            _refuse_cut_off(path, container, stream, end_s)


def _container_audio(path: Path, span_s: tuple[float, float] | None = None) -> tuple[np.ndarray, int]:
    import av

    with _container(path) as container:
        if not container.streams.audio:
            raise DataError(f"{path}: no audio stream")
        stream = container.streams.audio[0]
        rate_hz = stream.sample_rate
        # Only the sample format changes here: layout and rate stay, so that the mean over channels
        # and the resampling are ours and the same for every container.
        convert = av.AudioResampler(format="dblp", layout=stream.layout, rate=rate_hz)
        pieces: list[np.ndarray] = []
        n_values, end_s, first_s = 0, 0.0, None
        if span_s:
            _seek(container, stream, max(0.0, span_s[0] - _PREROLL_S))
        for frame in container.decode(stream):
            if span_s:
                at_s = _time_s(path, frame)
                if at_s >= span_s[1]:
                    break
                first_s = at_s if first_s is None else first_s
            if frame.is_corrupt:
                raise DataError(f"{path}: audio is damaged at {frame.time or 0:.2f} s")
            if frame.sample_rate != rate_hz or frame.layout.name != stream.layout.name:
                raise DataError(f"{path}: sample rate or channels change at {frame.time or 0:.2f} s")
            n_values += frame.samples * frame.layout.nb_channels
            if n_values > MAX_SAMPLES:
                raise _too_large(path, n_values * 8, MAX_SAMPLES * 8)
            end_s = max(end_s, (frame.time or 0.0) + frame.samples / rate_hz)
            pieces += [piece.to_ndarray() for piece in convert.resample(frame)]
        if span_s:
            _refuse_short(path, stream, span_s, end_s)
        if not pieces:
            raise DataError(f"{path}: audio of zero length")
        pieces += [piece.to_ndarray() for piece in convert.resample(None)]
        samples = np.concatenate(pieces, axis=1)
        if span_s:
            begin, end = (max(0, round((at_s - (first_s or 0.0)) * rate_hz)) for at_s in span_s)
            return samples[:, begin:end], rate_hz
        _refuse_cut_off(path, container, stream, end_s)
        return samples, rate_hz


@contextmanager
def _container(path: Path) -> Iterator:
    import av

    with _opened(path) as file:
        try:
            with av.open(file, format=(CONTAINERS | PICTURES)[path.suffix.lower()]) as container:
                yield container
        except av.error.FFmpegError as e:
            raise DataError(f"{path}: not media that can be decoded to its end ({e.strerror})", "the file is damaged") from e


def _seek(container, stream, to_s: float) -> None:
    """To the key frame at or before `to_s`."""
    if to_s > 0:
        container.seek(int(to_s / stream.time_base), stream=stream)


def _time_s(path: Path, frame) -> float:
    if frame.time is None:
        raise DataError(f"{path}: frames without time stamps, so no part can be cut out", "write it again with FFmpeg, or cut it into clips")
    return frame.time


def _refuse_short(path: Path, stream, span_s: tuple[float, float], end_s: float) -> None:
    """As _refuse_cut_off: a tenth of the span and 0.1 s may be missing, since who wrote the times rounded them."""
    start_s, until_s = span_s
    if not end_s >= start_s + 0.9 * (until_s - start_s) - 0.1:
        raise DataError(f"{path}: {stream.type} has nothing from {max(end_s, start_s):.2f} s on, {start_s:.2f} to {until_s:.2f} s is asked for", "are the times of another file?")


def _refuse_cut_off(path: Path, container, stream, end_s: float) -> None:
    """Matroska ends quietly where it was cut, so hold what was decoded against what the header promises.

    Only a stream's own duration counts: sound and picture of one file may differ in length. A tenth
    of it and 0.1 s are left for headers that round or count an edit list.
    """
    # Matroska's own tag, as FFmpeg and mkvmerge write it.
    tagged = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", "").strip("\0 "))
    if stream.duration:
        promised_s = float(stream.duration * stream.time_base)
    elif tagged:
        promised_s = int(tagged[1]) * 3600 + int(tagged[2]) * 60 + float(tagged[3])
    elif container.duration and len(container.streams) == 1:
        promised_s = container.duration / 1e6
    else:
        return
    if end_s < 0.9 * promised_s - 0.1:
        raise DataError(f"{path}: {stream.type} ends at {end_s:.2f} s, its header says {promised_s:.2f} s", "the file is cut off")


# -- shared --------------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as e:  # FFmpeg's errors never get here: they are turned into DataError further in
        raise _unreadable(path, e) from e


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read ({error.strerror or error})")


def _positive(path: Path, what: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise DataError(f"{path}: `{what}` must be a positive number, it is {value:g}")
    return value


def _too_large(path: Path, n_bytes: int, allowed: int) -> DataError:
    return DataError(
        f"{path}: {n_bytes / 2**20:.0f} MiB decoded, at most {allowed / 2**20:.0f} MiB are read for one clip",
        "cut the clip into utterances, or crop it to the face",
    )

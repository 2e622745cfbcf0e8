"""The native DCCRN engine from Python: a thin ctypes layer over libedgekit.so (native/include/edgekit/edgekit.h).

The library is found in the installed package `edgekit_native` (`pip install ./native`), or where EDGEKIT_NATIVE points.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np

from .errors import DataError, EdgekitError, IntegrityError, ResourceError, TargetError, ToolMissing, UsageError

LIBRARY_VARIABLE = "EDGEKIT_NATIVE"
INSTALL_HINT = "pip install ./native"
PRECISIONS = {"auto": 0, "fp32": 1, "bf16": 2, "int8": 3}
ALGORITHMS = {"auto": 0, "four_mult": 1, "gauss": 2, "fast": 3}
MASKS = ("E", "C", "R")
KINDS = ("lstm", "gru")
WEIGHT_FORMATS = {0: "f32", 1: "f16", 3: "int8"}
# ek_status → the error that says whose fault it is.
_ERRORS: Mapping[int, type[EdgekitError]] = {1: UsageError, 2: DataError, 3: IntegrityError, 4: TargetError, 5: ResourceError, 6: DataError, 7: DataError}
_MAX_DEPTH, _MAX_RECURRENT = 8, 4


class _Options(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("isa", ctypes.c_char_p),
        ("precision", ctypes.c_int32),
        ("algorithm", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    ]


class _Info(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        *((name, ctypes.c_uint32) for name in ("format_version", "weight_format", "sample_rate_hz", "win_length", "hop_length", "n_fft", "bins", "depth")),
        *((name, ctypes.c_uint32) for name in ("mask", "look_ahead", "rnn_kind", "rnn_layers")),
        ("encoder_channels", ctypes.c_uint32 * (_MAX_DEPTH + 1)),
        ("decoder_channels", ctypes.c_uint32 * (_MAX_DEPTH + 1)),
        ("hidden", ctypes.c_uint32 * _MAX_RECURRENT),
        ("crc32", ctypes.c_uint32),
        ("file_bytes", ctypes.c_uint64),
        ("parameters", ctypes.c_uint64),
        ("macs_per_frame", ctypes.c_uint64),
        ("latency_samples", ctypes.c_uint32),
        ("precision", ctypes.c_int32),
        ("algorithm", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("isa", ctypes.c_char * 16),
        ("row", ctypes.c_char * 24),
        ("packed_bytes", ctypes.c_uint64),
        ("stream_bytes", ctypes.c_uint64),
        ("state_bytes", ctypes.c_uint64),
    ]


# name → (result, arguments); P: an opaque pointer.
_P, _SIZE, _STATUS = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
_FLOATS = ctypes.c_void_p  # an address: making a typed pointer of an array costs 3 us, a fiftieth of a frame
_FUNCTIONS = {
    "ek_version": (ctypes.c_char_p, []),
    "ek_status_text": (ctypes.c_char_p, [_STATUS]),
    "ek_last_message": (ctypes.c_char_p, []),
    "ek_best_isa": (ctypes.c_char_p, []),
    "ek_model_open": (_STATUS, [ctypes.c_char_p, ctypes.POINTER(_Options), ctypes.POINTER(_P)]),
    "ek_model_open_memory": (_STATUS, [ctypes.c_char_p, _SIZE, ctypes.POINTER(_Options), ctypes.POINTER(_P)]),
    "ek_model_info": (_STATUS, [_P, ctypes.POINTER(_Info)]),
    "ek_model_close": (None, [_P]),
    "ek_file_info": (_STATUS, [ctypes.c_char_p, ctypes.POINTER(_Info)]),
    "ek_stream_create": (_STATUS, [_P, ctypes.POINTER(_P)]),
    "ek_stream_close": (None, [_P]),
    "ek_stream_process": (_STATUS, [_P, _FLOATS, _FLOATS, _SIZE]),
    "ek_stream_latency": (_SIZE, [_P]),
    "ek_stream_flush": (_STATUS, [_P, _FLOATS, _SIZE]),
    "ek_stream_reset": (_STATUS, [_P]),
    "ek_stream_state_bytes": (_SIZE, [_P]),
    "ek_stream_save": (_STATUS, [_P, ctypes.c_char_p, _SIZE]),
    "ek_stream_restore": (_STATUS, [_P, ctypes.c_char_p, _SIZE]),
    "ek_denoise": (_STATUS, [_P, _FLOATS, _FLOATS, _SIZE]),
    "ek_step": (_STATUS, [_P, _FLOATS, _FLOATS]),
}


def _library_path() -> Path | None:
    if named := os.environ.get(LIBRARY_VARIABLE):
        path = Path(named)
        return path / "libedgekit.so" if path.is_dir() else path
    try:
        import edgekit_native
    except ImportError:
        return None
    return edgekit_native.LIBRARY


@cache
def library() -> ctypes.CDLL:
    """libedgekit.so with the types of its functions; ToolMissing if it is not here or does not load."""
    path = _library_path()
    if path is None:
        raise ToolMissing("the native engine is not installed", hint=INSTALL_HINT)
    try:
        lib = ctypes.CDLL(str(path))
    except OSError as error:
        raise ToolMissing(f"the native engine {path} does not load: {error}", hint=INSTALL_HINT) from None
    for name, (result, arguments) in _FUNCTIONS.items():
        if not hasattr(lib, name):
            raise ToolMissing(f"{path} has no `{name}`: it is older than this edgekit", hint=INSTALL_HINT)
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def available() -> bool:
    """Whether the library is here and loads."""
    try:
        library()
    except ToolMissing:
        return False
    return True


def best_isa() -> str:
    """The instruction set that runs unless one is asked for; TargetError if EDGEKIT_ISA names one that cannot run here."""
    isa = library().ek_best_isa()
    if isa is None:
        raise TargetError(f"EDGEKIT_ISA={os.environ.get('EDGEKIT_ISA')}: {_message()}")
    return isa.decode()


def file_info(path: Path | str) -> dict:
    """What a weight file says of itself, checked as it would be for running."""
    info = _Info(size=ctypes.sizeof(_Info))
    _check(library().ek_file_info(os.fsencode(path), ctypes.byref(info)), str(path))
    return _info_dict(info)


class Denoiser:
    """One stream of a model. Audio is float32, mono, at `info["sample_rate_hz"]`.

    Args:
        model: the weight file's path, or its bytes.
        isa: "scalar", "avx2", "avx512", "neon", "neon_dotprod"; None: the best here, or EDGEKIT_ISA.
        threads: 1 uses the calling thread alone.
        precision: "fp32", "bf16" (of a float file) or "int8" (of a quantized one); None: int8 or fp32, as the file is.
        algorithm: "four_mult"; "gauss" (three real products; fp32 only); "fast" (besides, two frames for the products of one and a half; not
            for fp32 on Arm, and of an int8 file only where the sums of two frames' weights fit int8); None: what is fastest.

    Raises:
        ToolMissing: the library is not installed. IntegrityError: a damaged file. TargetError: this CPU cannot run that.
    """

    def __init__(
        self,
        model: Path | str | bytes,
        *,
        isa: str | None = None,
        threads: int = 1,
        precision: str | None = None,
        algorithm: str | None = None,
    ):
        self._model, self._stream = _P(), _P()
        self._lib = library()
        options = _Options(
            size=ctypes.sizeof(_Options),
            isa=isa.encode() if isa is not None else None,
            precision=_choice(PRECISIONS, precision, "precision"),
            algorithm=_choice(ALGORITHMS, algorithm, "algorithm"),
            threads=threads,
        )
        self._where = "weight file" if isinstance(model, bytes) else str(model)
        if isinstance(model, bytes):
            status = self._lib.ek_model_open_memory(model, len(model), ctypes.byref(options), ctypes.byref(self._model))
        else:
            status = self._lib.ek_model_open(os.fsencode(model), ctypes.byref(options), ctypes.byref(self._model))
        _check(status, self._where)
        _check(self._lib.ek_stream_create(self._model, ctypes.byref(self._stream)), self._where)
        info = _Info(size=ctypes.sizeof(_Info))
        _check(self._lib.ek_model_info(self._model, ctypes.byref(info)), self._where)
        self.info = _info_dict(info)
        self.latency_samples: int = self._lib.ek_stream_latency(self._stream)
        # step() is called for every frame: numpy takes most of a microsecond to say where an array lies, so these are asked once.
        self._spectrum, self._mask = np.zeros((2, 2, self.info["bins"]), np.float32)
        self._spectrum_at, self._mask_at = _P(_address(self._spectrum)), _P(_address(self._mask))
        self._out, self._out_at = self._mask, self._mask_at

    def close(self) -> None:
        if self._stream:
            self._lib.ek_stream_close(self._stream)
        if self._model:
            self._lib.ek_model_close(self._model)
        self._model, self._stream = _P(), _P()

    def __enter__(self) -> Denoiser:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_lib"):
            self.close()

    def process(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """[n] → [n], `latency_samples` late, into `out` if there is one (it may be x). DataError if a sample is NaN, infinite or beyond ±65536;
        the stream is then as before."""
        x = _wave(x)
        y = np.empty_like(x) if out is None else _to_write(out, x.shape)
        _check(self._lib.ek_stream_process(self._stream, _address(x), _address(y), x.size), "audio")
        return y

    def flush(self) -> np.ndarray:
        """Ends the clip: the last `latency_samples` samples. The next process begins a new one."""
        y = np.empty(self.latency_samples, np.float32)
        _check(self._lib.ek_stream_flush(self._stream, _address(y), y.size), "stream")
        return y

    def reset(self) -> None:
        _check(self._lib.ek_stream_reset(self._stream), "stream")

    def save(self) -> bytes:
        """The stream's state, for restore() on a stream of the same weights, instruction set, precision and algorithm."""
        blob = ctypes.create_string_buffer(self._lib.ek_stream_state_bytes(self._stream))
        _check(self._lib.ek_stream_save(self._stream, blob, len(blob)), "stream")
        return blob.raw

    def restore(self, state: bytes) -> None:
        """DataError if the state is damaged or another model's; the stream is then as before."""
        _check(self._lib.ek_stream_restore(self._stream, state, len(state)), "state")

    def step(self, spectrum: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """One frame of the network alone: spectrum [2, bins] without DC → mask [2, bins] before tanh, of the frame `delay` calls ago.

        With `out`, [2, bins] float32, the mask is written there; fastest where it is the array of the call before.
        """
        if spectrum.shape != self._spectrum.shape:
            raise UsageError(f"a spectrum is {list(self._spectrum.shape)}, got {list(spectrum.shape)}")
        np.copyto(self._spectrum, spectrum)
        if out is not None and out is not self._out:
            self._out, self._out_at = out, _P(_address(_to_write(out, self._mask.shape)))
        status = self._lib.ek_step(self._stream, self._spectrum_at, self._mask_at if out is None else self._out_at)
        if status:
            _check(status, "spectrum")
        return self._mask.copy() if out is None else out

    def denoise(self, wave: np.ndarray) -> np.ndarray:
        """A whole clip [n] → [n], as the model's forward does it. Resets the stream."""
        x = _wave(wave)
        y = np.empty_like(x)
        _check(self._lib.ek_denoise(self._stream, _address(x), _address(y), x.size), "audio")
        return y


def _wave(x: np.ndarray) -> np.ndarray:
    x = np.ascontiguousarray(x, np.float32)
    if x.ndim != 1:
        raise UsageError(f"audio is one channel [n], got {list(x.shape)}")
    return x


def _to_write(out: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`out`, if a result of this shape can be written straight into it."""
    if out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous or not out.flags.writeable:
        raise UsageError(f"`out` is {out.dtype}{list(out.shape)}, expected float32{list(shape)}, contiguous and writeable")
    return out


def _address(x: np.ndarray) -> int:
    return x.ctypes.data


def _choice(known: Mapping[str, int], value: str | None, what: str) -> int:
    if value is None:
        return 0
    if value not in known:
        raise UsageError(f"unknown {what} `{value}`", hint=f"one of {', '.join(known)}")
    return known[value]


def _message() -> str:
    return library().ek_last_message().decode(errors="replace")


def _check(status: int, where: str) -> None:
    if status != 0:
        raise _ERRORS.get(status, EdgekitError)(f"{where}: {_message() or library().ek_status_text(status).decode()}")


def _info_dict(info: _Info) -> dict:
    depth, layers = info.depth, info.rnn_layers
    names = {value: name for name, value in PRECISIONS.items()}
    algorithms = {value: name for name, value in ALGORITHMS.items()}
    return {
        **{name: int(getattr(info, name)) for name, kind in _Info._fields_ if kind in (ctypes.c_uint32, ctypes.c_uint64) and name != "size"},
        "weight_format": WEIGHT_FORMATS[info.weight_format],
        "mask": MASKS[info.mask],
        "look_ahead": bool(info.look_ahead),
        "rnn_kind": KINDS[info.rnn_kind],
        "encoder_channels": list(info.encoder_channels[: depth + 1]),
        "decoder_channels": list(info.decoder_channels[: depth + 1]),
        "hidden": list(info.hidden[:layers]),
        "precision": names[info.precision] if info.isa else None,
        "algorithm": algorithms[info.algorithm] if info.isa else None,
        "threads": info.threads,
        "isa": info.isa.decode() or None,
        "row": info.row.decode() or None,
    }

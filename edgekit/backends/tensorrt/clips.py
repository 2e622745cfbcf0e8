"""Clips in the form that ek_trt reads without our preprocessing: one .npy a clip and tensor.

Frames are chosen, resized and laid out here; what is left for the device is one subtraction and one
multiplication. A tensor that comes of integers that way is stored as them and decoded by a line of
`decode.txt`, fields separated by tabs:

    tensor  inner  mean,mean,..  gain,gain,..
    float32((double(x[i]) - mean[c]) * gain[c]),  c = (i / inner) % number of gains;  zeros follow after the last x

Whether it does is not taken from preprocess.json but tried, clip by clip: frames that were resized or
added up are no integers any more, and spectra never were. Those are stored as float32.

    inputs/<clip>/<tensor>.npy, inputs/<clip>/decode.txt    what goes in
    reference/<clip>/<tensor>.npy                           what the pruned float model answers
    tolerance.txt                                           tensor, largest max_abs, least SQNR in dB
"""

from __future__ import annotations

import io
import math
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from edgekit.errors import EdgekitError
from edgekit.preprocess import sources

# float32((v - mean)/std) of the host against our product in float64: some steps of float32 of values up to about 4.
EXACT = 2e-6
# The simulation's distance from the float model is what INT8 costs. TensorRT adds FP16 and rounds sums in another order:
# it may be off by twice as much. Worse is a wrong scale, a wrong engine or a wrong wire.
FACTOR, HELDOUT_DB, GOLDEN_DB = 2.0, 6.0, 12.0


@dataclass(frozen=True)
class Decode:
    """How the device makes floats of stored integers."""

    inner: int
    means: tuple[float, ...]
    gains: tuple[float, ...]

    def line(self, tensor: str) -> str:
        return "\t".join([tensor, str(self.inner), ",".join(f"{v:.17g}" for v in self.means), ",".join(f"{v:.17g}" for v in self.gains)])

    def floats(self, stored: np.ndarray, count: int) -> np.ndarray:
        """float32 [count], as ek_trt computes it."""
        flat = stored.reshape(-1).astype(np.float64)
        channel = np.arange(len(flat)) // self.inner % len(self.gains)
        out = np.zeros(count, np.float32)
        out[: len(flat)] = (flat - np.asarray(self.means)[channel]) * np.asarray(self.gains)[channel]
        return out


def folder_of(clip_id: str) -> str:
    """The clip's folder: any id becomes one plain name, and no two the same."""
    name = quote(clip_id, safe="-_~")  # dots are escaped too, below: `..` is no name
    return name.replace(".", "%2E")


def encode(spec: Mapping[str, Any], inputs: Mapping[str, np.ndarray], audio: np.ndarray | None) -> dict[str, tuple[np.ndarray, Decode | None]]:
    """{tensor: (what is stored, how it is decoded or None)} of one clip's model inputs.

    Args:
        spec: preprocess.json.
        inputs: what `preprocess` made of the clip.
        audio: the clip's int16 samples, where the model takes sound.
    """
    found: dict[str, tuple[np.ndarray, Decode | None]] = {}
    kinds = sources(dict(spec))
    for name, value in inputs.items():
        value = np.array(value, np.float32, order="C")  # ascontiguousarray would give a number an axis
        tried = None
        if kinds[name] == "video":
            tried = _pixels(spec["video"], value)
        elif kinds[name] == "audio" and "features" not in spec["audio"] and audio is not None:
            tried = _samples(spec["audio"], audio)
        if tried is not None and _is_exact(value, *tried):
            found[name] = tried
        else:
            found[name] = (value, None)
    return found


def _is_exact(value: np.ndarray, stored: np.ndarray, how: Decode) -> bool:
    off = np.abs(how.floats(stored, value.size).astype(np.float64) - value.reshape(-1))
    return bool((off <= EXACT * np.maximum(1.0, np.abs(value.reshape(-1)))).all())


def _pixels(video: Mapping[str, Any], value: np.ndarray) -> tuple[np.ndarray, Decode]:
    axis = video["layout"].index("C")
    shape = [1] * value.ndim
    shape[axis] = 3
    mean, std = (np.float64(np.float32(video[key])).reshape(shape) for key in ("mean", "std"))
    pixels = np.clip(np.rint(value.astype(np.float64) * std + mean), 0, 255).astype(np.uint8)
    return pixels, Decode(math.prod(value.shape[axis + 1 :]), tuple(mean.reshape(-1)), tuple(1.0 / std.reshape(-1)))


def _samples(audio: Mapping[str, Any], samples: np.ndarray) -> tuple[np.ndarray, Decode]:
    """Definition: edgekit.preprocess, `wave`."""
    kept = np.ascontiguousarray(samples[: audio["samples"]], np.int16)
    scale, offset, gain = float(audio["scale"]), 0.0, 1.0
    if audio["normalize"] == "zero_mean_unit_variance":
        x, m = kept.astype(np.int64), len(kept)
        mean = int(x.sum()) / m
        variance = max(0.0, int((x * x).sum()) / m - mean * mean)
        offset, gain = float(np.float32(mean / scale)), float(np.float32(1.0 / math.sqrt(variance / scale**2 + audio["eps"])))
    return kept, Decode(1, (offset * scale,), (gain / scale,))


# --------------------------------------------------------------------------- where they go

Put = Callable[[str, bytes], None]


def put_inputs(put: Put, clip_id: str, encoded: Mapping[str, tuple[np.ndarray, Decode | None]]) -> None:
    """Write one clip's inputs through `put(relative path, bytes)`."""
    folder = f"inputs/{folder_of(clip_id)}"
    lines = []
    for name, (stored, how) in sorted(encoded.items()):
        put(f"{folder}/{name}.npy", npy(stored))
        lines += [] if how is None else [how.line(name)]
    if lines:
        put(f"{folder}/decode.txt", ("\n".join(lines) + "\n").encode())


def put_reference(put: Put, clip_id: str, outputs: Mapping[str, np.ndarray]) -> None:
    for name, value in sorted(outputs.items()):
        put(f"reference/{folder_of(clip_id)}/{name}.npy", npy(np.array(value, np.float32, order="C")))


def tolerance(parity: Mapping[str, Mapping[str, Any]], less_db: float) -> bytes:
    """How far the engines' answers may be from the pruned float model's, of what the simulation's were.

    An output whose parity is null was NaN: its limit is 0, which nothing passes.
    """
    lines = []
    for name, row in sorted(parity.items()):
        worst, sqnr = row["max_abs"], row["sqnr_db"]
        if worst is None:
            lines.append(f"{name}\t0\t1000")
        else:  # equal outputs have no SQNR; what float16 and another order of sums cost remains
            lines.append(f"{name}\t{FACTOR * worst + 1e-3:.9g}\t{40.0 if sqnr is None else sqnr - less_db:.6g}")
    return ("\n".join(lines) + "\n").encode()


def npy(value: np.ndarray) -> bytes:
    """The bytes of an .npy file, version 1.0, C order."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, value, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def read_npy(path: Path, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """float32, of this shape if one is given, from a device.

    Raises:
        EdgekitError: another type or shape, or no .npy at all.
    """
    try:
        with path.open("rb") as file:
            value = np.lib.format.read_array(file, allow_pickle=False, max_header_size=4096)
    except (OSError, ValueError, EOFError) as error:
        raise EdgekitError(f"{path}: not an .npy file: {error}") from error
    if value.dtype != np.float32 or (shape is not None and value.shape != tuple(shape)):
        raise EdgekitError(f"{path}: {value.dtype} {list(value.shape)}, expected float32{'' if shape is None else f' {list(shape)}'}")
    return value


class HeldOut:
    """heldout.tar, written clip by clip; equal clips give equal bytes. Use in a `with` block."""

    def __init__(self, path: Path):
        self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def __enter__(self) -> HeldOut:
        return self

    def __exit__(self, *_: object) -> None:
        self._tar.close()

    def add(self, clip_id: str, encoded: Mapping[str, tuple[np.ndarray, Decode | None]], outputs: Mapping[str, np.ndarray]) -> None:
        """One clip's inputs, see `encode`, and the pruned float model's outputs."""
        put_inputs(self._put, clip_id, encoded)
        put_reference(self._put, clip_id, outputs)

    def limits(self, parity: Mapping[str, Mapping[str, Any]]) -> None:
        self._put("tolerance.txt", tolerance(parity, HELDOUT_DB))

    def _put(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))

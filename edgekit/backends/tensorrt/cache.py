"""The calibration cache, a text file from which TensorRT before 11 reads scales:

    TRT-8502-EntropyCalibration2
    <tensor name>: <8 hex digits of the big-endian float32 scale>

with scale = max|x| / 127 for activations. Weights get their scales inside TensorRT.

Sources: NVIDIA/TensorRT tag 8.5.2, samples/common/sampleEngines.cpp.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Any

from edgekit.errors import DataError

CACHE_NAME = "calibration.cache"
ALGORITHM = "EntropyCalibration2"
# What trtexec and the cache can hold: they split on `,` `:` and `=`, and sh on everything else.
SAFE_NAME = re.compile(r"[A-Za-z0-9_./-]+")
_HEADER = re.compile(r"TRT-(\d{4,6})-(\w+)")
_LINE = re.compile(r"(.+): ([0-9a-f]{8})")


def version_number(version: str) -> str:
    """`8.5.2` -> `8502`: major * 1000 + minor * 100 + patch, as TensorRT prints it."""
    major, minor, patch = (int(part) for part in version.split(".")[:3])
    return str(major * 1000 + minor * 100 + patch)


def write_cache(scales: Mapping[str, float], version: str) -> str:
    """The text of a calibration cache, in the order given.

    Raises:
        DataError: a name that the format cannot hold, or a scale that is not a positive number.
    """
    lines = [f"TRT-{version}-{ALGORITHM}"]
    for name, scale in scales.items():
        if not SAFE_NAME.fullmatch(name):
            raise DataError(f"{CACHE_NAME}: tensor name `{name}` cannot be written", "names are made of A-Z a-z 0-9 _ . / -")
        # struct rounds to float32; a scale must survive that as a positive, finite number
        try:
            packed = struct.pack("!f", scale)
        except OverflowError:
            packed = struct.pack("!f", float("inf"))
        if not 0 < struct.unpack("!f", packed)[0] < float("inf"):
            raise DataError(f"{CACHE_NAME}: scale {scale} of `{name}` is not a positive float32")
        lines.append(f"{name}: {packed.hex()}")
    return "\n".join(lines) + "\n"


def read_cache(text: str, where: str = CACHE_NAME) -> tuple[str, dict[str, float]]:
    """(TensorRT version such as `8502`, {tensor: scale}) of a cache's text.

    Raises:
        DataError: it is not a cache; the message has the line number.
    """
    lines = text.split("\n")
    header = _HEADER.fullmatch(lines[0])
    if header is None or header[2] != ALGORITHM:
        raise DataError(f"{where}:1: `{lines[0][:60]}` is not the header of a cache", f"expected TRT-<version>-{ALGORITHM}")
    if lines[-1] != "":
        raise DataError(f"{where}:{len(lines)}: the last line has no end", "the file is cut off")
    scales: dict[str, float] = {}
    for number, line in enumerate(lines[1:-1], start=2):
        match = _LINE.fullmatch(line)
        if match is None:
            raise DataError(f"{where}:{number}: `{line[:60]}` is not `name: 8 hex digits`")
        scale = struct.unpack("!f", bytes.fromhex(match[2]))[0]
        if not 0 < scale < float("inf"):
            raise DataError(f"{where}:{number}: scale {scale} of `{match[1]}` is not a positive number")
        if match[1] in scales:
            raise DataError(f"{where}:{number}: `{match[1]}` stands here twice")
        scales[match[1]] = scale
    return header[1], scales


def check_cache(text: str, version: str, tensors: Mapping[str, Any] | list[str], where: str = CACHE_NAME) -> None:
    """Refuse a cache of another version, or without a scale for one of `tensors`.

    Raises:
        DataError: says which.
    """
    found, scales = read_cache(text, where)
    if found != version:
        raise DataError(f"{where}:1: made for TensorRT {found}, expected {version}")
    missing = [name for name in tensors if name not in scales]
    if missing:
        raise DataError(f"{where}: no scale for {len(missing)} tensors, the first is `{missing[0]}`")

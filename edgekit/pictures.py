"""Pixels and sound as small PNGs that stand in a page: no library needed to make them.

numpy is imported where it is used, since a page without pictures must render without it.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from typing import TYPE_CHECKING

from edgekit.page import esc

if TYPE_CHECKING:
    import numpy as np

WINDOW, HOP = 512, 128
FLOOR_DB = -80.0
MAX_COLUMNS, MAX_ROWS = 480, 128
LEVELS = 48  # colours of a map: what the eye tells apart, and few enough to compress

# Dark to bright with even steps of lightness, so that it reads without colour too.
RAMP = ((13, 8, 35), (64, 15, 92), (121, 28, 109), (181, 46, 93), (232, 86, 58), (252, 152, 38), (246, 216, 92), (252, 253, 210))


def png(pixels: np.ndarray, palette: np.ndarray | None = None) -> bytes:
    """Encode uint8 [h, w, 3] RGB as PNG; or uint8 [h, w], which of the colours of `palette`, uint8 [n, 3]."""
    height, width = pixels.shape[:2]
    if palette is None:
        # Filter 2 (up) on all rows but the first: photographs compress by a fifth better than unfiltered.
        wide = pixels.reshape(height, -1).astype("int16")
        rows = [b"\x00" + pixels[0].tobytes()]
        rows += [b"\x02" + ((wide[y] - wide[y - 1]) % 256).astype("uint8").tobytes() for y in range(1, height)]
    else:
        rows = [b"\x00" + row.tobytes() for row in pixels]  # numbers of colours are no gradients

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2 if palette is None else 3, 0, 0, 0)
    colours = b"" if palette is None else chunk(b"PLTE", palette.tobytes())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + colours + chunk(b"IDAT", zlib.compress(b"".join(rows), 9)) + chunk(b"IEND", b"")


def uri(picture: bytes) -> str:
    """A PNG as a page's own address."""
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def image(pixels: np.ndarray, alt: str, css: str = "") -> str:
    """uint8 [h, w, 3] as an <img>."""
    import numpy as np

    named = f' class="{css}"' if css else ""
    return f'<img{named} src="{uri(png(np.ascontiguousarray(pixels)))}" width="{pixels.shape[1]}" height="{pixels.shape[0]}" alt="{esc(alt)}">'


def spectrogram(wave: np.ndarray, hop: int = HOP) -> np.ndarray:
    """float64 [WINDOW/2 + 1, frames]: dB of a Hann-windowed STFT against full scale 1; frequency upwards."""
    import numpy as np

    window = np.hanning(WINDOW + 1)[:-1]
    padded = np.pad(wave, (0, max(0, WINDOW - len(wave))))
    count = 1 + (len(padded) - WINDOW) // hop
    index = np.arange(WINDOW)[None] + hop * np.arange(count)[:, None]
    power = np.abs(np.fft.rfft(padded[index] * window, axis=1) / (window.sum() / 2)) ** 2
    return 10 * np.log10(np.maximum(power, 1e-20)).T


def thinned(image: np.ndarray) -> np.ndarray:
    """At most MAX_ROWS x MAX_COLUMNS: the largest of every block stays, so that a click is not lost."""
    import numpy as np

    for axis, most in ((0, MAX_ROWS), (1, MAX_COLUMNS)):
        step = math.ceil(image.shape[axis] / most)
        if step > 1:
            image = np.maximum.reduceat(image, np.arange(0, image.shape[axis], step), axis=axis)
    return image


def levels_of(shares: np.ndarray) -> np.ndarray:
    """0..1 [rows, columns], rows upwards → uint8 [rows, columns] of LEVELS, rows downwards as pictures have them."""
    import numpy as np

    return np.rint(np.clip(shares, 0, 1) * (LEVELS - 1)).astype(np.uint8)[::-1]


def palette() -> np.ndarray:
    """uint8 [LEVELS, 3]: RAMP in even steps."""
    import numpy as np

    ramp = np.array(RAMP, np.float64)
    at = np.arange(LEVELS) / (LEVELS - 1) * (len(ramp) - 1)
    left = np.minimum(at.astype(int), len(ramp) - 2)
    share = (at - left)[:, None]
    return np.rint(ramp[left] * (1 - share) + ramp[left + 1] * share).astype(np.uint8)


def coloured(shares: np.ndarray) -> np.ndarray:
    """0..1 [rows, columns], rows upwards → uint8 [rows, columns, 3]."""
    return palette()[levels_of(shares)]

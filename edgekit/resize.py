"""Bilinear resize in a fixed order of float32 operations, so that a device can reach the same bits.

Half-pixel centres, no antialias. For output column x of W from width w (and rows with H, h alike):

    p = max(0, (2*x+1)*w - W);  x0 = p/(2*W);  x1 = min(x0+1, w-1)      (integers)
    a = float32(p % (2*W)) / float32(2*W)

Columns first, then rows, each in float32 as v = v0 + (v1 - v0)*a.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # data sets are opened by `edgekit plan`, which must start without numpy
    import numpy as np


def resize_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize [h, w, c] uint8 to float32 [height, width, c]."""
    import numpy as np

    x0, x1, ax = taps(image.shape[1], width)
    y0, y1, ay = taps(image.shape[0], height)
    left, right = image[:, x0].astype(np.float32), image[:, x1].astype(np.float32)
    rows = left + (right - left) * ax[None, :, None]
    top, bottom = rows[y0], rows[y1]
    return top + (bottom - top) * ay[:, None, None]


def taps(size_in: int, size_out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both source positions of every output position, and the float32 weight of the second."""
    import numpy as np

    position = np.maximum(0, (2 * np.arange(size_out, dtype=np.int64) + 1) * size_in - size_out)
    first, rest = np.divmod(position, 2 * size_out)
    weight = rest.astype(np.float32) / np.float32(2 * size_out)
    return first, np.minimum(first + 1, size_in - 1), weight

"""Want against got: are these the same tensors, and where do they differ most?

Names are matched exactly, shapes before values, and NaN fails: it makes `max_abs` NaN,
and `NaN <= limit` is False.
"""

from __future__ import annotations

import importlib
import math
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.errors import DataError


@dataclass(frozen=True)
class Difference:
    """How far one tensor is off."""

    name: str
    max_abs: float
    """NaN when either side holds a NaN, inf where one holds an infinity that the other lacks."""
    worst: tuple[int, ...]
    """Index of the largest difference, of the first NaN if there is one; () for scalars and empty tensors."""
    mean_abs: float
    sqnr_db: float
    """10 log10(signal power / noise power); +inf when equal, -inf when want is silent and got is not."""
    cosine: float
    """Exactly 1 when equal, 0 when only one side is all zero."""

    def within(self, max_abs: float) -> bool:
        return self.max_abs <= max_abs  # NaN <= x is False, so NaN fails

    def __str__(self) -> str:
        where = f"; worst at {list(self.worst)}" if self.worst else ""
        return f"`{self.name}` is off by {self.max_abs:.4g} (max_abs){where}"


def compare(want: Mapping[str, object], got: Mapping[str, object], where: str = "compare") -> dict[str, Difference]:
    """Compare tensors by name, in the order of `want`.

    Args:
        want, got: arrays of any shape and real dtype; compared in float64.
        where: what is being compared, for the message.

    Raises:
        DataError: a name is missing or unexpected, or a shape differs; values are not looked at then.
    """
    missing, unexpected = sorted(set(want) - set(got)), sorted(set(got) - set(want))
    if missing or unexpected:
        raise DataError(
            f"{where}: names differ: "
            + "; ".join(f"{what} {', '.join(names)}" for what, names in (("missing", missing), ("unexpected", unexpected)) if names),
            hint="outputs are paired by their exact name",
        )
    arrays = {name: (_real(where, name, want[name]), _real(where, name, got[name])) for name in want}
    for name, (a, b) in arrays.items():
        if a.shape != b.shape:
            raise DataError(f"{where}: `{name}` has shape {list(b.shape)}, expected {list(a.shape)}")
    return {name: difference(name, a, b) for name, (a, b) in arrays.items()}


def difference(name: str, want: np.ndarray, got: np.ndarray) -> Difference:
    """The difference of two arrays of one shape."""
    a, b = np.asarray(want, dtype=np.float64), np.asarray(got, dtype=np.float64)
    if a.size == 0:
        return Difference(name, 0.0, (), 0.0, math.inf, 1.0)
    with np.errstate(invalid="ignore", over="ignore"):
        # Equal infinities agree; inf - inf would say NaN.
        off = np.where(a == b, 0.0, np.abs(a - b))
        signal, noise = float((a * a).sum()), float((off * off).sum())
        dot, norms = float((a * b).sum()), math.sqrt(signal) * math.sqrt(float((b * b).sum()))
    bad = np.isnan(off)
    flat = int(np.argmax(bad)) if bad.any() else int(np.argmax(off))
    return Difference(
        name=name,
        max_abs=float(off.reshape(-1)[flat]),
        worst=tuple(int(i) for i in np.unravel_index(flat, a.shape)),
        mean_abs=float(off.mean()),
        sqnr_db=decibel(signal, noise),
        cosine=1.0 if noise == 0 else cosine_of(dot, norms),
    )


def decibel(signal: float, noise: float) -> float:
    """10 log10(signal power / noise power); +inf without noise, -inf without signal."""
    if math.isnan(signal) or math.isnan(noise):
        return math.nan
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 and math.isfinite(noise) else -math.inf


def cosine_of(dot: float, norms: float) -> float:
    """dot / product of both norms; 0 where one of them is 0."""
    if math.isnan(dot) or math.isnan(norms):
        return math.nan
    if norms == 0:
        return 0.0
    return float(np.clip(dot / norms, -1.0, 1.0))


def _real(where: str, name: str, value: object) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise DataError(f"{where}: `{name}` has dtype {array.dtype}, expected real numbers")
    return array


class _CallableModule(types.ModuleType):
    """`edgekit.compare` is this module and the public function of edgekit.parity; whichever was imported first, both work."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # By name: parity stands above this module, and is only asked for by who calls.
        return importlib.import_module("edgekit.parity.check").compare(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule

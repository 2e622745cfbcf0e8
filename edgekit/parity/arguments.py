"""The command line's spellings, as Polygraphy's users know them: `[name:]value`, the name may hold colons itself."""

from __future__ import annotations

from collections.abc import Iterable

from edgekit.document import suggestion
from edgekit.errors import UsageError
from edgekit.parity.measure import STATS


def numbers(texts: Iterable[str] | None, option: str) -> dict[str, float] | None:
    """`1e-3`, `mask:0.02` → {"": 0.001, "mask": 0.02}; None if nothing was given.

    Raises:
        UsageError: not a number, or a tolerance below 0.
    """
    found: dict[str, float] = {}
    for text in texts or ():
        name, _, number = text.rpartition(":")
        try:
            value = float(number)
        except ValueError:
            raise UsageError(f"{option} {text}: `{number}` is not a number", f"such as {option} 0.001, or {option} output:0.001") from None
        if value != value or (option in ("--atol", "--rtol") and value < 0):
            raise UsageError(f"{option} {text}: a tolerance is a number from 0")
        found[name] = value
    return found or None


def stats(texts: Iterable[str] | None) -> dict[str, str] | None:
    """`max`, `mask:mean` → {"": "max", "mask": "mean"}."""
    found: dict[str, str] = {}
    for text in texts or ():
        name, _, stat = text.rpartition(":")
        if stat not in STATS:
            raise UsageError(f"--check-error-stat {text}: `{stat}` is not known", suggestion(stat, STATS))
        found[name] = stat
    return found or None


def ranges(texts: Iterable[str] | None) -> dict[str, tuple[float, float]] | None:
    """`-1,1`, `[0,1]`, `ids:0,9` → {"": (-1, 1), "ids": (0, 9)}."""
    found: dict[str, tuple[float, float]] = {}
    for text in texts or ():
        name, _, pair = text.rpartition(":")
        try:
            low, high = (float(part) for part in pair.strip("[]()").split(","))
        except ValueError:
            raise UsageError(f"--val-range {text}: not two numbers", "such as --val-range -1,1 or --val-range ids:0,9") from None
        if not low <= high:
            raise UsageError(f"--val-range {text}: {low:g} is above {high:g}")
        found[name] = (low, high)
    return found or None


def shapes(texts: Iterable[str] | None) -> dict[str, tuple[int, ...]] | None:
    """`x:1,3,224,224` → {"x": (1, 3, 224, 224)}."""
    found: dict[str, tuple[int, ...]] = {}
    for text in texts or ():
        name, _, listed = text.rpartition(":")
        parts = [part for part in listed.strip("[]()").split(",") if part.strip()]
        if not name or not all(part.strip().isdecimal() and int(part) for part in parts):
            raise UsageError(f"--input-shape {text}: not a name and a shape", "such as --input-shape x:1,3,224,224")
        found[name] = tuple(int(part) for part in parts)
    return found or None


def states(texts: Iterable[str] | None) -> dict[str, str] | None:
    """`h0:hn` → {"h0": "hn"}."""
    found: dict[str, str] = {}
    for text in texts or ():
        name, _, partner = text.rpartition(":")
        if not name or not partner:
            raise UsageError(f"--state {text}: not an input and an output", "such as --state h_in:h_out")
        found[name] = partner
    return found or None

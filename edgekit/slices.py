"""How samples are cut into slices by their tags, such as 5 dB of noise each: where a model is weak, and where INT8 costs most."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

SNR_BIN_DB = 5
MAX_VALUES = 8  # a tag with more values than this is no slice, such as a clip's sentence


def bins(tag: str, values: list[Any]) -> Iterable[tuple[str, float | None, float | None, list[bool]]]:
    """(label, from, to, membership): single values if there are few, else ranges of numbers; nothing for a tag that cuts no slices.

    Args:
        values: the tag's value of every sample; None where a sample lacks it.
    """
    present = {value for value in values if value is not None}
    if len(present) < 2 and tag != "snr_db":
        return
    numbers = sorted(v for v in present if isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v))
    if len(present) <= MAX_VALUES:
        for value in sorted(present, key=lambda v: (isinstance(v, str), v)):
            at = float(value) if not isinstance(value, str) else None
            yield (f"{value:g}" if at is not None else str(value)), at, at, [v == value for v in values]
        return
    if len(numbers) < len(present):
        return
    if tag == "snr_db":
        first, last = math.floor(numbers[0] / SNR_BIN_DB), math.ceil(numbers[-1] / SNR_BIN_DB)
        edges = [float(SNR_BIN_DB * i) for i in range(first, max(last, first + 1) + 1)]
    else:
        edges = sorted({numbers[round(i * (len(numbers) - 1) / 4)] for i in range(5)})
    for low, high in itertools.pairwise(edges):
        is_last = high == edges[-1]
        member = [v is not None and low <= v and (v < high or (is_last and v == high)) for v in values]
        yield f"{low:g} to {high:g}", low, high, member

"""Times of calls that take turns, so that a busy moment of the machine hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from edgekit.progress import track


def interleaved(calls: Mapping[str, Callable[[], Any]], runs: int, what: str = "measuring") -> dict[str, list[float]]:
    """{name: seconds of each of `runs` runs}. Every call runs once before: first runs allocate."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in track(range(runs), what):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds

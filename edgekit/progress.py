"""Progress on stderr for people, silence for everything else.

A bar is drawn only when stderr is a terminal, so logs and pipes stay clean, and only
once a loop is slow enough to notice (rich draws nothing for loops that end at once).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Turn all progress off (`--quiet`, `--json`)."""
    global _quiet
    _quiet = quiet


def is_shown() -> bool:
    return not _quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def track(items: Iterable[T], what: str, total: float | None = None) -> Iterator[T]:
    """Yield `items` under a progress bar that names `what` is being done."""
    if not is_shown():
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("  {task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(items, total=total, description=what)


@contextlib.contextmanager
def bar(what: str, total: float | None = None) -> Iterator[Callable[[float, str | None], None]]:
    """A bar that the block moves itself: `move(done, what)`, `what` if it is called otherwise by now. Silent where nobody looks."""
    if not is_shown():
        yield lambda done, what=None: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    with Progress(TextColumn("  {task.description:<40}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=total)
        yield lambda done, what=None: shown.update(task, completed=done, **({} if what is None else {"description": what}))


def note(text: str) -> None:
    """Print one line about what is happening."""
    if is_shown():
        print(f"  {text}", file=sys.stderr, flush=True)

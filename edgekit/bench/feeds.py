"""What a benchmark runs on: stages of a recipe that was built before, and what real clips feed to an engine.

Feeds lie on disk, so that a benchmark reads one clip at a time and preprocesses none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.cache import Cache
from edgekit.errors import UsageError
from edgekit.flow import Session, run_flow
from edgekit.plan import make_plan
from edgekit.recipe import load_recipe


def finished(recipe: str | Path, stages: Sequence[str], overrides: Sequence[str] = ()) -> dict[str, Path]:
    """Output directories of stages of a recipe that was built before: a benchmark must not measure a build.

    Raises:
        UsageError: one of them is not built.
    """
    loaded = load_recipe(recipe, overrides)
    with Cache(loaded.cache_root) as cache:
        entries = {step.stage: step.entry for step in make_plan(loaded, cache).steps}
    missing = [stage for stage in stages if entries[stage] is None]
    if missing:
        raise UsageError(f"{recipe}: `{missing[0]}` is not built", f"run `edgekit build {recipe}` first")
    return {stage: entries[stage].out for stage in stages}


def record(flow: Mapping[str, Any], sessions: Mapping[str, Session], clips: Iterable[tuple[str, dict[str, np.ndarray]]], engine: str, folder: Path) -> list[Path]:
    """Write one .npz a clip: {input of `engine`: [runs, *shape]}, of every run of `engine` in the flow.

    Args:
        clips: (id, {flow input: array}), as `calibration.batches` gives them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, (_, inputs) in enumerate(clips):
        runs: list[Mapping[str, np.ndarray]] = []
        run_flow(dict(flow), sessions, inputs, lambda name, fed, _, runs=runs: runs.append(fed) if name == engine else None)
        path = folder / f"{i:04}.npz"
        np.savez(path, **{port: np.concatenate([fed[port] for fed in runs]) for port in runs[0]})
        paths.append(path)
    return paths


def read(path: Path) -> Iterator[dict[str, np.ndarray]]:
    """The runs of one clip: {input: [1, *shape]}."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    for i in range(len(next(iter(arrays.values())))):
        yield {name: array[i : i + 1] for name, array in arrays.items()}

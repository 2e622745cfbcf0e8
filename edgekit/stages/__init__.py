"""The stages, in order, and what a stage is.

    recipe -> plan -> load -> prune -> reference -> calibrate -> quantize -> export -> verify -> package

A stage sees only what is in its cache key: its spec, its input directories, the files its plan
named, and an empty output directory. Modules are imported when first asked for, and are cheap
to import: torch and numpy only inside `run`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgekit.artifact import Source

if TYPE_CHECKING:
    from edgekit.recipe import Recipe
    from edgekit.target import Target


@dataclass(frozen=True)
class Job:
    """Everything a stage may look at while it runs.

    Attributes:
        spec: what its `plan` returned; JSON-able, in the key.
        inputs: output directory of every stage in NEEDS; read-only.
        files: the sources its `plan` returned.
        out: empty directory; published as it is when `run` returns, thrown away when it raises.
        scratch: survives a failure, so that training can resume; gone after success.
        cache_root: `cache_root / "data"` may hold generated clips.
    """

    spec: dict[str, Any]
    inputs: dict[str, Path]
    files: dict[str, Source]
    out: Path
    scratch: Path
    cache_root: Path


class Stage(Protocol):
    """A module in edgekit/stages."""

    NEEDS: tuple[str, ...]
    """Stages whose output directories it reads."""
    SEMANTICS: int
    """Bumped when the meaning of the output changes; a comment says how."""
    TOOLS: tuple[str, ...]
    """Distributions whose versions are in the key, such as torch."""

    # Optional: tools(target) -> {tool: version or None}, what this target's backend needs beside TOOLS.

    def plan(self, recipe: Recipe, target: Target) -> tuple[dict[str, Any], dict[str, Source]]:
        """(spec, files): what enters the key. Cheap; refuses what cannot work."""
        ...

    def run(self, job: Job) -> None:
        """Fill `job.out`, deterministically."""
        ...


# In order. Tests put their own modules here.
STAGES: dict[str, str | Stage] = {
    name: f"edgekit.stages.{name}"
    for name in ("load", "prune", "reference", "calibrate", "quantize", "export", "verify", "package")
}


def get(name: str) -> Stage:
    """The module of a stage."""
    stage = STAGES[name]
    return importlib.import_module(stage) if isinstance(stage, str) else stage  # type: ignore[return-value]

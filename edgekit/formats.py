"""What flows: engines, their states, and JSON files that equal values always write equally."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import IntegrityError

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, ...]


@dataclass(frozen=True)
class State:
    """A tensor that an engine takes back in at its next step. Both ends share one scale and zero point."""

    input: str
    output: str
    shape: Shape
    init: float = 0.0

    def to_json(self) -> dict:
        return {"in": self.input, "out": self.output, "shape": list(self.shape), "init": self.init}


@dataclass(frozen=True)
class Engine:
    """One graph of an artifact. Its module takes the inputs in order and returns a tuple of the outputs.

    Shapes have batch 1 in front; state tensors are ordinary inputs and outputs that `states` pairs up.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    states: tuple[State, ...] = field(default=())


def engines_of(flow: Mapping[str, Any]) -> list[str]:
    """Every engine of a flow.json once, in the order in which they first run."""
    return list(dict.fromkeys(step["engine"] for step in flow["steps"]))


def outputs_in(title: str) -> list[str]:
    """The outputs that a report's `primary` names, such as `valence, arousal`; see `flow.title_of`."""
    return title.split(", ")


def read_json(path: Path) -> Any:
    """The JSON document at `path`.

    Raises:
        IntegrityError: the file is missing or not JSON; stage directories are written whole or not at all.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{path}: {error}", "remove the cache entry, or run `edgekit cache verify`") from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON with sorted keys and a closing newline, so that equal values are equal files."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")

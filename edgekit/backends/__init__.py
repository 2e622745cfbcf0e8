"""Compilers and runtimes. A backend is code, a target (targets/*.yaml) is data about a device.

A backend is a module with

    versions() -> dict[str, str]        what stands in build.json
    problems(target) -> list[str]       why this backend cannot serve that target; empty if it can
    lower(kit, out) -> None             write what the device needs into `out`
    open(path, ...) -> session          for those that run on the host
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgekit.errors import TargetError

if TYPE_CHECKING:
    from edgekit.quant import Range

BACKENDS = {
    "onnxruntime": "edgekit.backends.onnxruntime",
    "tensorrt": "edgekit.backends.tensorrt",
}


def get(name: str) -> ModuleType:
    """The backend called `name`.

    Raises:
        TargetError: there is none.
    """
    if name not in BACKENDS:
        raise TargetError(f"unknown backend `{name}`", f"known: {', '.join(BACKENDS)}")
    return import_module(BACKENDS[name])


@dataclass(frozen=True)
class EngineKit:
    """One engine, ready to be lowered.

    Attributes:
        onnx: the float graph in the target's form.
        int8: layers to compute in INT8, and the activations fused to them.
        fp32: layers that must not run in FP16.
        fp16: the other layers that compute, except loops.
        ranges: {tensor: Range} of every tensor that those INT8 layers read or write.
    """

    name: str
    onnx: Path
    int8: tuple[str, ...]
    fp32: tuple[str, ...]
    fp16: tuple[str, ...]
    ranges: Mapping[str, Range]


@dataclass(frozen=True)
class Kit:
    """All engines of an artifact and the target's data (`Target.spec()`)."""

    engines: tuple[EngineKit, ...]
    target: Mapping[str, Any]

"""Compilers and runtimes. A backend is code, a target (targets/*.yaml) is data about a device.

A backend is a module, cheap to import, with

    EXECUTES: bool                              whether what it makes runs on this host
    versions(target) -> {distribution: version or None}   what compile and open need; None is not installed here
    problems(target) -> list[str]               why this backend cannot serve that target; empty if it can
    compile(kit, out) -> None                   write what the device needs: out/engines/<name>/ and out/build.json
    open(folder, target, threads=None) -> session   of out/engines/<name>/, if EXECUTES
    coverage(folder, engine, target) -> {node: precision} or None   read out of what was built; None: cannot be read
    install_hint(missing) -> str                optional: the command that installs what versions() lacks
    simulates(target) -> bool                   optional, with EXECUTES: what runs here computes the artifact's integers, but is not the artifact
    placement(folder, engine, target) -> {node: unit}   optional: which unit of the device runs a layer, such as npu or cpu
    flow(graph_flow) -> flow                    optional: the artifact's flow, where its one engine computes the whole flow of the graphs
    optional(target) -> {distribution: version} optional: what compile uses if it is installed, "none" where it is not
    unit(engine, model, target) -> {name, placed: {node: None or why not}, pieces, falls_back} or None    optional: what an accelerator of the device would take
    gated(engine, model, target) -> {compiler, form, precisions: {node: precision}} or None    optional: what a compiler of its family, on this host, makes of the graph
    open_deployed(folder, target, threads=None) optional: as the device runs it, where that is not the parity session
    KIT: int                                    optional: bumped when what `compile` writes changes
    finisher(target) -> dict                    optional: the device builds and checks the artifact itself and brings back a result; what of
                                                that enters package's key. So far TensorRT's kit only (`tensorrt/kit.py`, `tensorrt/result.py`)

`target` is `Target.spec()`. A session is called with {input: array} and gives {output: array}, batch 1
in front, named as in the ONNX graph. An installed package adds a backend by an entry point of the group
`edgekit.backends` (see `plugins.py`). Every backend lowers the Q/DQ graph (see `qdq.py`), so that all
compute with the same integers; a kit whose `qdq` is its `float` graph makes the float artifact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgekit import plugins
from edgekit.errors import TargetError

if TYPE_CHECKING:
    from edgekit.quant import Range

BACKENDS = {
    "native": "edgekit.backends.native",
    "onnxruntime": "edgekit.backends.onnxruntime",
    "openvino": "edgekit.backends.openvino",
    "tensorrt": "edgekit.backends.tensorrt",
    "tflite": "edgekit.backends.tflite",
}
PROTOCOL = ("EXECUTES", "versions", "problems", "compile", "open", "coverage")


def get(name: str) -> ModuleType:
    """The backend called `name`, ours or an installed package's.

    Raises:
        TargetError: there is none.
        UsageError, ToolMissing: two packages give it, or its package is broken.
    """
    module = plugins.load("edgekit.backends", name, BACKENDS, PROTOCOL)
    if module is None:
        raise TargetError(f"unknown backend `{name}`", f"known: {', '.join(plugins.names('edgekit.backends', BACKENDS))}")
    return module


@dataclass(frozen=True)
class EngineKit:
    """One engine, ready to be lowered.

    Attributes:
        float_onnx: the float graph in the target's form.
        qdq_onnx: the same graph in the target's numbers.
        int8: layers to compute in INT8.
        fused: activations and bias additions joined to them.
        fp32: layers that must not run in FP16.
        fp16: the other layers that compute, except loops.
        ranges: {tensor: Range} of every tensor that those INT8 layers read or write.
    """

    name: str
    float_onnx: Path
    qdq_onnx: Path
    int8: tuple[str, ...] = ()
    fused: tuple[str, ...] = ()
    fp32: tuple[str, ...] = ()
    fp16: tuple[str, ...] = ()
    ranges: Mapping[str, Range] = field(default_factory=dict)

    def as_float(self) -> EngineKit:
        """The same engine without any integers."""
        return EngineKit(self.name, self.float_onnx, self.float_onnx)


@dataclass(frozen=True)
class Kit:
    """All engines of an artifact, the target's data (`Target.spec()`), and the pruned float model's directory."""

    engines: tuple[EngineKit, ...]
    target: Mapping[str, Any]
    source: Path

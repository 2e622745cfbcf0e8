"""The precision of each layer, read out of a .tflite: what its op reads there, not what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.backends.tflite import MODEL
from edgekit.formats import read_json

if TYPE_CHECKING:
    from edgekit.backends import EngineKit

# {op with MACs: its (activation, weight) inputs}
_MACS = {
    "CONV_2D": (0, 1),
    "DEPTHWISE_CONV_2D": (0, 1),
    "TRANSPOSE_CONV": (2, 1),
    "FULLY_CONNECTED": (0, 1),
    "BATCH_MATMUL": (0, 1),
}
_PRECISION = {("INT8", "INT8"): "int8", ("FLOAT32", "FLOAT32"): "fp32"}


@dataclass(frozen=True)
class FileOp:
    """One op of a file: its name, the types of its inputs in order ("" for one left out), the name of its first output."""

    name: str
    types: tuple[str, ...]
    output: str


def read(path: Path) -> list[list[FileOp]]:
    """The ops of every subgraph, in execution order."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    types = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    found = []
    for subgraph in model.subgraphs:
        ops = []
        for op in subgraph.operators or []:
            code = model.operatorCodes[op.opcodeIndex]
            inputs = tuple("" if i < 0 else types[subgraph.tensors[i].type] for i in op.inputs)
            ops.append(FileOp(names[max(code.builtinCode, code.deprecatedBuiltinCode)], inputs, subgraph.tensors[op.outputs[0]].name.decode()))
        found.append(ops)
    return found


def of_layers(folder: Path, engine: EngineKit) -> dict[str, str]:
    """{node of float.onnx with MACs: precision}, bodies of loops included.

    int8 and fp32: all its products are of two such tensors. mixed: they differ, or a float activation meets
    int8 weights, which we never write. unknown: no op with products writes what the node became.
    """
    from edgekit import graph

    made = read_json(folder / "ops.json")
    writers = {op.output: op for ops in read(folder / MODEL) for op in ops}
    found = {}
    for node in graph.load(engine.float_onnx).graph:
        if node.op_type in graph.MAC_OPS:
            ops = [writers[tensor] for tensor in made.get(node.name, []) if tensor in writers]
            kinds = {_precision(op) for op in ops if op.name in _MACS}
            found[node.name] = "unknown" if not kinds else kinds.pop() if len(kinds) == 1 else "mixed"
    return found


def placed(folder: Path, engine: EngineKit, units: Mapping[str, str]) -> dict[str, str]:
    """{node of float.onnx with MACs: unit} from {output tensor of an op: unit}; a layer in parts on two units is `both`."""
    from edgekit import graph

    made = read_json(folder / "ops.json")
    writers = {op.output: op for ops in read(folder / MODEL) for op in ops}
    found = {}
    for node in graph.load(engine.float_onnx).graph:
        if node.op_type in graph.MAC_OPS:
            where = {units[tensor] for tensor in made.get(node.name, []) if tensor in units and writers[tensor].name in _MACS}
            found[node.name] = "unknown" if not where else where.pop() if len(where) == 1 else "both"
    return found


def _precision(op: FileOp) -> str:
    activation, weight = _MACS[op.name]
    return _PRECISION.get((op.types[activation], op.types[weight]), "mixed")

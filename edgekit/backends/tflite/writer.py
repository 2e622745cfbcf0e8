"""A .tflite flatbuffer, written tensor by tensor and op by op: the schema's own classes and no converter.

    model = Model("what it is")
    main = model.subgraph("main")
    x = main.tensor("x", (1, 8, 8, 3), "float32")
    y = main.tensor("y", (1, 8, 8, 3), "float32")
    main.op("RELU", [x], [y])
    main.inputs, main.outputs = {"x": x}, {"y": y}
    model.save(path)

An op's version is derived from the types that it reads and writes, as the converter of TensorFlow Lite
does (tensorflow/lite/tools/versioning/op_version.cc): runtimes refuse a version they do not know, so a
version higher than needed shuts out old devices.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import EdgekitError

SCHEMA_VERSION = 3
SIGNATURE = "serving_default"
ALIGNMENT = 16  # of constants in the file: the schema's `force_align`, which lets a runtime use them in place
OPTIONAL = -1  # the index of an input that is left out

TYPES = {
    "float32": "FLOAT32",
    "float16": "FLOAT16",
    "int8": "INT8",
    "uint8": "UINT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
}

# Options class of an op, where it is not the op's name in camel case followed by `Options`.
_OPTIONS = {
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "MEAN": "ReducerOptions",
    "SUM": "ReducerOptions",
    "REDUCE_MAX": "ReducerOptions",
    "REDUCE_MIN": "ReducerOptions",
    "REDUCE_PROD": "ReducerOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "PADV2": "PadV2Options",
}

# The first TensorFlow Lite that knows an op's version, of those that we write and that came after 2.3
# (tensorflow/lite/tools/versioning/runtime_version.cc).
_SINCE = {
    ("ABS", 2): (2, 4, 0),
    ("RELU6", 3): (2, 5, 0),
    ("SLICE", 5): (2, 5, 0),
    ("PAD", 4): (2, 6, 0),
    ("PADV2", 4): (2, 6, 0),
    ("BROADCAST_TO", 2): (2, 5, 0),
    ("BROADCAST_TO", 3): (2, 5, 0),
    ("DEQUANTIZE", 5): (2, 7, 0),
    ("CONV_2D", 6): (2, 9, 0),
    ("GELU", 1): (2, 9, 0),
    ("GELU", 2): (2, 9, 0),
    ("CAST", 3): (2, 8, 0),
    ("DYNAMIC_UPDATE_SLICE", 1): (2, 9, 0),
    ("TRANSPOSE", 6): (2, 12, 0),
    ("SELECT_V2", 2): (2, 12, 0),
    ("TRANSPOSE_CONV", 4): (2, 13, 0),
}
_OLDEST = (2, 3, 0)


@dataclass(frozen=True)
class Quant:
    """How a tensor's integers are read: real = (integer - zero point) * scale.

    Attributes:
        scale: one value, or one a channel.
        axis: of the channels, if there is more than one scale.
    """

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int = 0

    @classmethod
    def per_tensor(cls, scale: float, zero_point: int = 0) -> Quant:
        return cls((float(np.float32(scale)),), (int(zero_point),))

    @classmethod
    def per_channel(cls, scales: Iterable[float], axis: int) -> Quant:
        """Symmetric: every zero point is 0."""
        values = tuple(float(np.float32(s)) for s in scales)
        return cls(values, (0,) * len(values), axis)


@dataclass(frozen=True)
class Tensor:
    """One tensor of a subgraph; `data` holds a constant's bytes and is empty for an activation."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    quant: Quant | None = None
    is_constant: bool = False
    data: bytes = b""


@dataclass(frozen=True)
class Op:
    """One op of a subgraph. `inputs` and `outputs` are tensor indices."""

    name: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, Any]


class Model:
    """A .tflite file: subgraphs that share constants. The first subgraph is the one a caller runs."""

    def __init__(self, description: str = ""):
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        self.description = description
        self.subgraphs: list[Subgraph] = []
        self._names: set[str] = set()  # unique over all subgraphs, so that a name says which tensor is meant

    def subgraph(self, name: str) -> Subgraph:
        made = Subgraph(self, name, len(self.subgraphs))
        self.subgraphs.append(made)
        return made

    def prune(self) -> None:
        """Drop ops whose results nobody reads, and tensors that no op uses."""
        for subgraph in self.subgraphs:
            subgraph._prune()

    def _codes(self) -> list[tuple[str, int]]:
        """Every (op, version) in use, in order of appearance."""
        return list(dict.fromkeys((op.name, op.version) for subgraph in self.subgraphs for op in subgraph.ops))

    def min_runtime_version(self) -> str:
        """The oldest TensorFlow Lite that knows all ops in the versions used."""
        return ".".join(map(str, max((_SINCE.get(code, _OLDEST) for code in self._codes()), default=_OLDEST)))

    def serialize(self) -> bytes:
        """The file's bytes; the same calls give the same bytes."""
        import flatbuffers

        schema = self.schema
        codes = self._codes()
        # Equal bytes are one buffer. Buffer 0 is empty: that of every activation.
        contents = dict.fromkeys((b"", *(t.data for subgraph in self.subgraphs for t in subgraph.tensors)))
        buffers = {content: i for i, content in enumerate(contents)}
        model = schema.ModelT()
        model.version = SCHEMA_VERSION
        model.description = self.description.encode()
        model.operatorCodes = [self._operator_code(op, version) for op, version in codes]
        model.subgraphs = [subgraph._pack(buffers, {code: i for i, code in enumerate(codes)}) for subgraph in self.subgraphs]
        model.signatureDefs = [self._signature(self.subgraphs[0])]
        metadata = schema.MetadataT()
        metadata.name = b"min_runtime_version"
        metadata.buffer = len(buffers)
        model.metadata = [metadata]
        aligned = _aligned_buffer(schema)
        model.buffers = [aligned(content) for content in (*buffers, self.min_runtime_version().encode().ljust(16, b"\0"))]
        builder = flatbuffers.Builder(sum(map(len, buffers)) + (1 << 16))
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.serialize())

    def _operator_code(self, op: str, version: int) -> Any:
        code = self.schema.OperatorCodeT()
        code.builtinCode = getattr(self.schema.BuiltinOperator, op)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)  # 127 tells old readers to look at builtinCode
        code.version = version
        return code

    def _signature(self, main: Subgraph) -> Any:
        def port(name: str, index: int) -> Any:
            entry = self.schema.TensorMapT()
            entry.name, entry.tensorIndex = name.encode(), index
            return entry

        signature = self.schema.SignatureDefT()
        signature.signatureKey = SIGNATURE.encode()
        signature.subgraphIndex = 0
        signature.inputs = [port(name, index) for name, index in main.inputs.items()]
        signature.outputs = [port(name, index) for name, index in main.outputs.items()]
        return signature


class Subgraph:
    """Tensors and ops in execution order. Inputs and outputs are {name: tensor index}."""

    def __init__(self, model: Model, name: str, index: int):
        self.model = model
        self.name = name
        self.index = index
        self.tensors: list[Tensor] = []
        self.inputs: dict[str, int] = {}
        self.outputs: dict[str, int] = {}
        self.ops: list[Op] = []
        self._constants: dict[tuple, int] = {}

    def tensor(self, name: str, shape: Sequence[int], dtype: str, data: np.ndarray | None = None, quant: Quant | None = None) -> int:
        """Add a tensor and return its index. A taken name gets a number behind it."""
        if dtype not in TYPES:
            raise EdgekitError(f"tensor `{name}`: TFLite tensors of type {dtype} are not written", f"one of {', '.join(TYPES)}")
        if data is not None and (tuple(data.shape) != tuple(shape) or data.dtype != np.dtype(dtype)):
            raise EdgekitError(f"tensor `{name}`: data is {data.dtype} {data.shape}, the tensor is {dtype} {tuple(shape)}")
        self.tensors.append(Tensor(self._unique(name), tuple(int(d) for d in shape), dtype, quant, data is not None, b"" if data is None else np.ascontiguousarray(data).tobytes()))
        return len(self.tensors) - 1

    def constant(self, name: str, data: np.ndarray, quant: Quant | None = None) -> int:
        """A tensor with these values; equal constants of a subgraph are one tensor."""
        data = np.asarray(data)
        key = (data.shape, data.dtype.str, quant, data.tobytes())
        if key not in self._constants:
            self._constants[key] = self.tensor(name, data.shape, str(data.dtype), data, quant)
        return self._constants[key]

    def op(self, op: str, inputs: Sequence[int], outputs: Sequence[int], options: Mapping[str, Any] | None = None, version: int | None = None) -> None:
        """Append an op.

        Args:
            op: a name of the schema's BuiltinOperator.
            options: fields of the op's options class, spelled as in the schema's Python classes.
            version: the op's version; derived from the types if None.
        """
        options = dict(options or {})
        if version is None:
            version = op_version(op, [self.tensors[i] if i != OPTIONAL else None for i in inputs], [self.tensors[i] for i in outputs], options)
        self.ops.append(Op(op, version, tuple(inputs), tuple(outputs), options))

    def _unique(self, wanted: str) -> str:
        name, i = wanted, 1
        while name in self.model._names:
            name, i = f"{wanted};{i}", i + 1
        self.model._names.add(name)
        return name

    def _prune(self) -> None:
        used = {*self.inputs.values(), *self.outputs.values()}
        kept = []
        for op in reversed(self.ops):
            if used & set(op.outputs):
                kept.append(op)
                used.update((*op.inputs, *op.outputs))
        order = sorted(used - {OPTIONAL})
        new = {old: i for i, old in enumerate(order)} | {OPTIONAL: OPTIONAL}
        self.tensors = [self.tensors[old] for old in order]
        self.ops = [replace(op, inputs=tuple(new[i] for i in op.inputs), outputs=tuple(new[i] for i in op.outputs)) for op in reversed(kept)]
        self.inputs = {name: new[i] for name, i in self.inputs.items()}
        self.outputs = {name: new[i] for name, i in self.outputs.items()}
        self._constants = {key: new[i] for key, i in self._constants.items() if i in new}

    def _pack(self, buffers: Mapping[bytes, int], codes: Mapping[tuple[str, int], int]) -> Any:
        schema = self.model.schema
        packed = schema.SubGraphT()
        packed.name = self.name.encode()
        packed.inputs = np.array(list(self.inputs.values()), np.int32)
        packed.outputs = np.array(list(self.outputs.values()), np.int32)
        packed.tensors = [self._pack_tensor(tensor, buffers[tensor.data]) for tensor in self.tensors]
        packed.operators = [self._pack_op(op, codes[op.name, op.version]) for op in self.ops]
        return packed

    def _pack_tensor(self, tensor: Tensor, buffer: int) -> Any:
        schema = self.model.schema
        packed = schema.TensorT()
        packed.name = tensor.name.encode()
        packed.shape = np.array(tensor.shape, np.int32)
        packed.hasRank = True
        packed.type = getattr(schema.TensorType, TYPES[tensor.dtype])
        packed.buffer = buffer
        if tensor.quant is not None:
            quant = schema.QuantizationParametersT()
            quant.scale = np.array(tensor.quant.scale, np.float32)
            quant.zeroPoint = np.array(tensor.quant.zero_point, np.int64)
            quant.quantizedDimension = tensor.quant.axis
            packed.quantization = quant
        return packed

    def _pack_op(self, op: Op, code: int) -> Any:
        schema = self.model.schema
        packed = schema.OperatorT()
        packed.opcodeIndex = code
        packed.inputs, packed.outputs = np.array(op.inputs, np.int32), np.array(op.outputs, np.int32)
        name = _options_class(op.name)
        if hasattr(schema.BuiltinOptions, name):
            packed.builtinOptionsType = getattr(schema.BuiltinOptions, name)
            packed.builtinOptions = getattr(schema, f"{name}T")()
        for field, value in op.options.items():
            if not hasattr(packed.builtinOptions, field):
                raise EdgekitError(f"{op.name} has no option `{field}`")
            setattr(packed.builtinOptions, field, np.array(value, np.int32) if isinstance(value, list | tuple) else value)
        return packed


def _options_class(op: str) -> str:
    return _OPTIONS.get(op) or "".join(part.capitalize() for part in re.split("_", op)) + "Options"


def _aligned_buffer(schema: Any) -> Callable[[bytes], Any]:
    """BufferT whose bytes start at a multiple of ALIGNMENT: the generated Pack leaves them at 4."""

    class AlignedBuffer(schema.BufferT):
        def __init__(self, content: bytes):
            super().__init__()
            self.content = content

        def Pack(self, builder: Any) -> Any:
            n = len(self.content)
            if n:
                builder.StartVector(1, n, ALIGNMENT)
                builder.head -= n
                builder.Bytes[builder.Head() : builder.Head() + n] = self.content
                vector = builder.EndVector()
            schema.BufferStart(builder)
            if n:
                schema.BufferAddData(builder, vector)
            return schema.BufferEnd(builder)

    return AlignedBuffer


# --------------------------------------------------------------------------- versions

# fmt: off
_INT8_IS_2 = frozenset((
    "ABS", "ADD", "ARG_MAX", "ARG_MIN", "AVERAGE_POOL_2D", "BATCH_MATMUL", "CONCATENATION", "DEQUANTIZE", "EQUAL", "EXP", "GATHER", "GELU", "GREATER",
    "GREATER_EQUAL", "LESS", "LESS_EQUAL", "LOG", "LOGISTIC", "MAX_POOL_2D", "MAXIMUM", "MEAN", "MINIMUM", "MIRROR_PAD", "MUL", "PACK", "PAD",
    "PADV2", "REDUCE_MAX", "REDUCE_MIN", "RELU", "RELU6", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "RSQRT", "SELECT", "SELECT_V2", "SLICE",
    "SOFTMAX", "SPLIT", "SPLIT_V", "SQUARED_DIFFERENCE", "STRIDED_SLICE", "SUB", "SUM", "TANH", "TRANSPOSE", "UNPACK",
))
# fmt: on
_RANK_5 = {"TRANSPOSE": 4, "SLICE": 5, "PAD": 4, "PADV2": 4, "STRIDED_SLICE": 4}
_WIDE_BROADCAST = {"SUB": 3, "DIV": 2, "MAXIMUM": 3, "MINIMUM": 3}


def op_version(op: str, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], options: Mapping[str, Any]) -> int:
    """The lowest version of `op` that has a kernel for these tensors (op_version.cc)."""
    first = inputs[0] if inputs else None
    if op in ("SPLIT", "TRANSPOSE_CONV"):  # their first input is the axis, the output's shape
        first = inputs[1]
    dtype = first.dtype if first is not None else ""
    rank = len(first.shape) if first is not None else 0
    if op == "CONV_2D":
        if inputs[1].shape[3] != first.shape[3]:
            return 6  # grouped
        return 3 if dtype == "int8" else 1
    if op == "DEPTHWISE_CONV_2D":
        if dtype == "int8":
            return 3
        return 2 if (options.get("dilationWFactor", 1), options.get("dilationHFactor", 1)) != (1, 1) else 1
    if op == "FULLY_CONNECTED":
        if len(inputs) == 2:
            return 6
        if options.get("keepNumDims"):
            return 5
        return 4 if dtype == "int8" else 1
    if op == "TRANSPOSE_CONV":
        if options.get("fusedActivationFunction"):
            return 4
        if len(inputs) == 4:
            return 3
        return 2 if dtype == "int8" else 1
    if op == "MUL" and dtype == "int8" and _rescale_of(inputs, outputs) >= 1:
        return 3
    if op == "DEQUANTIZE" and dtype == "int8" and len(first.quant.scale) > 1:
        return 5
    if op == "DEQUANTIZE" and dtype in ("int16", "float16"):
        return 3
    if op == "QUANTIZE":
        return 3 if len(outputs[0].quant.scale) > 1 else 1
    if op == "TRANSPOSE" and rank > 5:
        return 6
    if op in _RANK_5 and rank > 4:
        return _RANK_5[op]
    if op in _WIDE_BROADCAST and inputs[0].shape != inputs[1].shape and max(len(t.shape) for t in inputs) > 4:
        return _WIDE_BROADCAST[op]
    if op == "SPLIT" and dtype == "int32":
        return 3
    if op == "RESIZE_BILINEAR" and options.get("halfPixelCenters"):
        return 3
    if op == "RESIZE_NEAREST_NEIGHBOR" and (options.get("halfPixelCenters") or options.get("alignCorners")):
        return 3
    if op == "BROADCAST_TO":
        return 3 if dtype == "int8" else 2
    if op == "CAST":
        return 3 if "int8" in (dtype, outputs[0].dtype) else 1
    if op == "TILE":
        return 3 if dtype == "int8" else 1
    if op == "REVERSE_V2":
        return {"int8": 3, "bool": 2}.get(dtype, 1)
    return 2 if dtype == "int8" and op in _INT8_IS_2 else 1


def _rescale_of(inputs: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> float:
    a, b, y = (t.quant.scale[0] for t in (*inputs[:2], outputs[0]))
    return math.prod((a, b)) / y

"""The forms of one quantized model, one for each generation of TensorRT.

| form | for | what it is |
|---|---|---|
| 8.5 | 8.5 | the float graph; scales in a calibration cache, precisions in a build script (`kit.py`) |
| 10 | 8.6 to 10 | the Q/DQ graph as it is: symmetric int8, zero point 0, float biases; the builder chooses FP16 |
| 11 | 11, TensorRT-RTX, and 10 with `--stronglyTyped` | the same, with every type written into the graph |

TensorRT 11 has neither calibrators nor weak typing, so nothing but the graph says what runs in FP16. In form
11 an INT8 layer stays an island of float32 types: its scales are float32, and in FP16 the scale of a weak
channel would be a subnormal number with a few bits. What is fused with the layer (bias, activation) costs
nothing in float32, since the integer sum ends there anyway. Around the islands stand Casts, and between them
FP16, but for `keep_float32`.

Sources: docs.nvidia.com/deeplearning/tensorrt, "Strongly-Typed Networks" and "Explicit Quantization";
onnx/onnx-tensorrt, branch 10.1-GA (96e781103cfc), docs/operators.md, QuantizeLinear and DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import TargetError
from edgekit.graph import COPY_OPS, MAC_OPS, Editor, constant, is_float

if TYPE_CHECKING:
    import onnx_ir as ir

QDQ = ("QuantizeLinear", "DequantizeLinear")
# Sums over many values, and functions that leave FP16's range or resolution.
WIDE_OPS = frozenset(
    {
        "Softmax", "LogSoftmax", "LayerNormalization", "InstanceNormalization", "GroupNormalization",
        "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSumExp",
        "Exp", "Log", "Pow", "Sqrt", "Reciprocal", "Softplus", "Scan", "Loop", "If",
    }
)  # fmt: skip
FP16_MAX, FP16_SMALLEST_NORMAL = 65504.0, 2.0**-14


# --------------------------------------------------------------------------- form 10


def faults(model: ir.Model) -> list[str]:
    """What TensorRT's parser refuses of a Q/DQ graph, or reads otherwise than written; one line each.

    uint8 is the worst: the parser takes it for int8 with a mere warning.
    """
    found = []
    for node in model.graph:
        if node.op_type not in QDQ:
            continue
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        zeros = constant(zero)
        if zero is not None and zeros is None:
            found.append(f"`{node.name}`: its zero point is computed")
        elif zeros is None and node.op_type == "QuantizeLinear":
            found.append(f"`{node.name}`: without a zero point it would be uint8")
        elif zeros is not None and zeros.dtype != np.int8:
            found.append(f"`{node.name}`: zero point of type {zeros.dtype}, only int8 is taken")
        elif zeros is not None and zeros.any():
            found.append(f"`{node.name}`: zero point {int(zeros.reshape(-1)[np.flatnonzero(zeros)[0]])}, only 0 is taken")
        if node.op_type == "DequantizeLinear" and (stored := constant(node.inputs[0])) is not None and stored.dtype != np.int8:
            found.append(f"`{node.name}`: dequantizes {stored.dtype}, only int8 is taken")
        if constant(node.inputs[1]) is None:
            found.append(f"`{node.name}`: its scale is computed")
    return found


def explicit(model: ir.Model, where: str) -> ir.Model:
    """Form 10: the Q/DQ graph, refused where TensorRT would read other numbers out of it.

    Raises:
        TargetError: names up to four nodes.
    """
    found = faults(model)
    if found:
        raise TargetError(f"{where}: TensorRT cannot take this Q/DQ graph: {'; '.join(found[:4])}", "symmetric int8 needs `numbers.activation: {dtype: int8, symmetric: true, ...}` in the target")
    return model.clone(deep_copy=True)


# --------------------------------------------------------------------------- form 11


def keep_float32(model: ir.Model, also: Iterable[str] = ()) -> set[str]:
    """Nodes that must not run in FP16: `also`, norms and softmax, sums, squares, and constants that FP16 does not hold."""
    also = set(also)
    return {node.name for node in model.graph if node.name in also or _is_wide(node)}


def _is_wide(node: ir.Node) -> bool:
    if node.op_type in WIDE_OPS:
        return True
    activations = [value for value in node.inputs if value is not None and constant(value) is None]
    if node.op_type == "Mul" and len(activations) == 2 and activations[0] is activations[1]:
        return True  # a square
    if node.op_type == "Div" and len(node.inputs) == 2 and constant(node.inputs[1]) is None:
        return True  # by something that may be near zero
    return any(_is_outside_fp16(constant(value)) for value in node.inputs if value is not None and is_float(value))


def _is_outside_fp16(array: np.ndarray | None) -> bool:
    """Whether a constant overflows, or is one number (an epsilon) that would lose its bits. Small weights among others may."""
    if array is None or array.size == 0:
        return False
    largest = float(np.abs(array).max())
    return largest > FP16_MAX or (array.size == 1 and 0 < largest < FP16_SMALLEST_NORMAL)


def strong(model: ir.Model, fp32: Iterable[str] = ()) -> ir.Model:
    """Form 11 of a graph in form 10: Casts and FP16 constants, so that every tensor has the type that it is computed in.

    Inputs and outputs of the graph stay float32, and so do INT8 layers with their activations, `keep_float32` and `fp32`.

    Args:
        model: not changed.
    """
    import onnx_ir.passes.common as passes

    model = model.clone(deep_copy=True)
    wide = keep_float32(model, fp32)
    edit, types = Editor(model), _Types()
    for node in list(model.graph):  # in topological order
        half = not _is_float32(node, wide, types)
        _feed(edit, node, half, types)
        for value in node.outputs:
            if value.dtype is not None and is_float(value) and half:
                types.set_half(value)
    for value in list(model.graph.outputs):
        if types.is_half(value):
            _end_in_float32(edit, value)
    passes.RemoveUnusedNodesPass()(model)  # constants that now stand there in FP16
    return model


class _Types:
    """Which values are FP16, and the Casts that there are already."""

    def __init__(self) -> None:
        self._half: set[int] = set()
        self.casts: dict[tuple[int, bool], ir.Value] = {}

    def is_half(self, value: ir.Value | None) -> bool:
        return value is not None and id(value) in self._half

    def set_half(self, value: ir.Value) -> None:
        import onnx_ir as ir

        value.type = ir.TensorType(ir.DataType.FLOAT16)  # not `value.dtype = ...`: a clone shares its types with the original
        self._half.add(id(value))


def _is_float32(node: ir.Node, wide: set[str], types: _Types) -> bool:
    floats = [value for value in node.inputs if value is not None and constant(value) is None and is_float(value)]
    if node.name in wide or node.op_type in QDQ:
        return True
    if node.op_type in COPY_OPS:  # as what it moves; a Concat of both kinds in FP16
        return not any(types.is_half(value) for value in floats)
    producers = [value.producer() for value in node.inputs if value is not None]
    if any(producer is not None and producer.op_type == "DequantizeLinear" for producer in producers):
        return True
    first = producers[0] if producers else None  # an activation joined to an INT8 layer
    return node.op_type in ("Relu", "Clip", "LeakyRelu") and first is not None and first.op_type in MAC_OPS and not types.is_half(node.inputs[0])


def _feed(edit: Editor, node: ir.Node, half: bool, types: _Types) -> None:
    """Give every float input the type that the node computes in."""
    import onnx_ir as ir

    want = ir.DataType.FLOAT16 if half else ir.DataType.FLOAT
    for i, value in enumerate(node.inputs):
        if value is None or value.dtype is None or not is_float(value) or types.is_half(value) == half:
            continue
        key = (id(value), half)
        if key not in types.casts:
            array = constant(value)
            if array is not None:
                types.casts[key] = edit.constant(f"{value.name}.fp16", array.astype(np.float16))
            else:
                types.casts[key] = edit.add(node, "Cast", [value], value.shape, {"to": int(want)}, f"{value.name}/{'FP16' if half else 'FP32'}", want)
            if half:
                types.set_half(types.casts[key])
        node.replace_input_with(i, types.casts[key])


def _end_in_float32(edit: Editor, value: ir.Value) -> None:
    """A graph output keeps its name and float32; what was computed goes under another name."""
    import onnx_ir as ir

    name = value.name
    position = next(i for i, out in enumerate(edit.graph.outputs) if out is value)
    value.name = edit.unique(f"{name}_fp16")
    last = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=edit.unique(f"{name}/FP32"))
    cast = last.outputs[0]
    cast.name, cast.shape, cast.dtype = name, value.shape, ir.DataType.FLOAT
    edit.graph.append(last)
    edit.graph.outputs[position] = cast


# --------------------------------------------------------------------------- what form 11 costs


def rounded(model: ir.Model) -> ir.Model:
    """A float32 graph that computes what form 11 does: every result of an FP16 node rounded to FP16, and its constants.

    ONNX Runtime has few FP16 kernels for CPUs. It computes the others in float32 and drops the Casts between
    them, and with these the rounding; Casts that stand in the graph it honours. Inside of an LSTM or GRU
    nothing is rounded, only what it gives.

    Args:
        model: in form 11; not changed.
    """
    import onnx_ir as ir
    import onnx_ir.passes.common as passes

    model = model.clone(deep_copy=True)
    edit = Editor(model)
    single = ir.TensorType(ir.DataType.FLOAT)
    for value in list(model.graph.initializers.values()):
        if value.dtype == ir.DataType.FLOAT16:
            edit.replace(value, edit.constant(value.name, constant(value).astype(np.float32)))
    for node in list(model.graph):
        if node.op_type == "Cast":
            node.attributes.add(ir.AttrInt64("to", int(ir.DataType.FLOAT)))
        for value in [value for value in node.outputs if value.dtype == ir.DataType.FLOAT16]:
            value.type = single
            uses = [(use.node, use.idx) for use in value.uses()]
            if not uses:
                continue
            half = edit.add(uses[0][0], "Cast", [value], value.shape, {"to": int(ir.DataType.FLOAT16)}, f"{value.name}/rounded", ir.DataType.FLOAT16)
            back = edit.add(uses[0][0], "Cast", [half], value.shape, {"to": int(ir.DataType.FLOAT)}, f"{value.name}/back", ir.DataType.FLOAT)
            for user, i in uses:
                user.replace_input_with(i, back)
    passes.TopologicalSortPass()(model)
    return model

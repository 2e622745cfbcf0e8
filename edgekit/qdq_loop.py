"""Q/DQ inside the body of a Scan that `rnn_to_scan` made: the step of a recurrent layer on integers.

The state goes round on integers: where it enters the step, where it leaves it and where it is
given out over time it has ONE scale and zero point. So what one step wrote the next one reads
without another rounding, and quantizing a value that is on the grid already changes nothing. In
ONNX a state is float all the same; a backend may keep it in int8.

Two kinds of cell:

    float   the products with the weights and h are int8; gates and c are float. The error of a
            trained LSTM is 3 to 6 dB smaller so, of a GRU 1 dB, and the file is no larger
    int8    every tensor of the step is int8, for what has integer units only

Ranges of the body's tensors are those of the Scan's outputs that calibration saw.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import EdgekitError
from .graph import constant, shape_of
from .quant import Numbers, Range, Scale, fake_quantize, quantize_weight, scale_of, weight_scales

if TYPE_CHECKING:
    import onnx_ir as ir

CELLS = ("float", "int8")

# What TensorFlow Lite's kernels write, whatever the data; a target's table may say otherwise.
FIXED = {"Sigmoid": Scale(1 / 256, -128), "Tanh": Scale(1 / 128, 0)}

# Beyond these a sigmoid or tanh in 8 bits does not change any more: ln(511) and atanh(1 - 2^-8).
_SATURATES = {"Sigmoid": 6.24, "Tanh": 3.12}


@dataclass(frozen=True)
class LoopTensors:
    """What quantizing a Scan needs to know and decides about the tensors around it.

    Attributes:
        observed: tensors whose range must be given.
        tied: groups of these that must have one range: both ends of a state and its values over time.
        reads: inputs of the Scan that it reads as integers.
        writes: outputs that it writes as integers.
    """

    observed: tuple[str, ...]
    tied: tuple[tuple[str, ...], ...]
    reads: tuple[int, ...]
    writes: tuple[str, ...]


def tensors_of(node: ir.Node, cell: str = "float") -> LoopTensors:
    """Names of the tensors outside of `node`, a Scan of a recurrent layer, that its integers depend on."""
    loop = _Loop(node)
    tied, writes = [], []
    for k in range(loop.states if cell == "int8" else 1):
        start, last = node.inputs[k], node.outputs[k]
        group = [start.name] if constant(start) is None else []
        group += [last.name] if last.uses() or last.is_graph_output() else []
        group.append(loop.stacked[loop.after[k]].name)
        tied.append(tuple(group))
        writes += [name for name in group if name != node.inputs[k].name]
    rounded = _rounded(loop, cell)
    observed = [loop.stacked[value].name for value in rounded if value in loop.stacked and value.producer().op_type not in FIXED]
    observed += [name for group in tied for name in group]
    observed.append(node.inputs[loop.states].name)
    reads = [k for k in range(loop.states if cell == "int8" else 1) if constant(node.inputs[k]) is None]
    return LoopTensors(tuple(dict.fromkeys(observed)), tuple(tied), (*reads, loop.states), tuple(writes))


def tied_ranges(node: ir.Node, ranges: Mapping[str, Range], cell: str = "float") -> dict[str, Range]:
    """One range for every group of `tensors_of(node).tied`: the union, with the constants that a state starts at."""
    tensors, found = tensors_of(node, cell), {}
    for k, group in enumerate(tensors.tied):
        parts = [_range(ranges, node, name) for name in group]
        start = constant(node.inputs[k])
        if start is not None:
            parts.append(Range(float(start.min()), float(start.max())))
        both = parts[0]
        for part in parts[1:]:
            both = both.union(part)
        found.update(dict.fromkeys(group, both))
    return found


def quantize_scan(
    node: ir.Node, ranges: Mapping[str, Range], numbers: Numbers, cell: str = "float", fixed: Mapping[str, Scale] = FIXED
) -> None:
    """Put Q/DQ into the body of `node`, in place; nothing outside of it changes.

    To be called before Q/DQ stands around the Scan: tensors outside are found by their names.

    Args:
        node: a Scan that rnn_to_scan made.
        ranges: {tensor: Range} of every tensor in `tensors_of(node, cell).observed`.
        cell: `int8` or `float`.
        fixed: {op: the scale that its kernel writes in}, of Sigmoid and Tanh.

    Raises:
        EdgekitError: a range is missing, or the body is none that rnn_to_scan makes.
    """
    if cell not in CELLS:
        raise EdgekitError(f"Scan `{node.name}`: a cell is one of {', '.join(CELLS)}, not `{cell}`")
    loop = _Loop(node)
    ranges = {**ranges, **tied_ranges(node, ranges, cell)}
    scales = {value: _scale(loop, value, ranges, numbers, fixed) for value in _rounded(loop, cell)}
    for value, scale in scales.items():
        _round(loop, value, scale)
    for matmul in [n for n in loop.body if n.op_type == "MatMul"]:
        _quantize_weight(loop, matmul, numbers)
    loop.body.sort()


# --------------------------------------------------------------------------- the body


class _Loop:
    """A Scan and the pairs of tensors inside and outside of its body."""

    def __init__(self, node: ir.Node):
        self.node = node
        self.body: ir.Graph = node.attributes["body"].value
        self.states = len(node.inputs) - int(node.attributes["num_scan_inputs"].value)
        self.before, self.x = self.body.inputs[: self.states], self.body.inputs[self.states :]
        self.after = list(self.body.outputs[: self.states])
        if len(self.x) != 1:
            raise EdgekitError(f"Scan `{node.name}` reads {len(self.x)} sequences: only loops that rnn_to_scan made are quantized")
        # {tensor inside: the Scan's output that has its values at every step}
        self.stacked: dict[ir.Value, ir.Value] = {}
        for inside, outside in zip(self.body.outputs[self.states :], node.outputs[self.states :], strict=True):
            copy = inside.producer()
            if copy.op_type != "Identity":
                raise EdgekitError(f"Scan `{node.name}`: output `{inside.name}` is not a copy of a tensor: only loops that rnn_to_scan made are quantized")
            self.stacked[copy.inputs[0]] = outside


def _rounded(loop: _Loop, cell: str) -> list[ir.Value]:
    """The body's tensors that stand on integers, in the order of computation."""
    states = loop.states if cell == "int8" else 1
    found = [*loop.before[:states], *loop.x]
    for node in loop.body:
        y = node.outputs[0]
        is_layer = (node.op_type == "MatMul" and _bias_after(node) is None) or _is_bias(node)
        is_operand = any(use.node.op_type == "MatMul" for use in y.uses())
        is_step = cell == "int8" and node.op_type in ("Add", "Sub", "Mul", "Sigmoid", "Tanh") and not (is_layer or _bias_after(node))
        if is_layer or is_operand or is_step or y in loop.after[:states]:
            found.append(y)
    return found


def _bias_after(node: ir.Node) -> ir.Node | None:
    """The Add of a constant to a MatMul's output: integers are made of the sum only."""
    uses = [use for use in node.outputs[0].uses() if use.node.op_type != "Identity"]
    return uses[0].node if node.op_type == "MatMul" and len(uses) == 1 and _is_bias(uses[0].node) else None


def _is_bias(node: ir.Node) -> bool:
    return node.op_type == "Add" and constant(node.inputs[1]) is not None


def _scale(loop: _Loop, value: ir.Value, ranges: Mapping[str, Range], numbers: Numbers, fixed: Mapping[str, Scale]) -> Scale:
    node = value.producer()
    if value in loop.before:
        outside = loop.stacked[loop.after[loop.before.index(value)]]
    elif value in loop.x:
        outside = loop.node.inputs[loop.states]
    elif node.op_type in fixed:
        return _kernels(loop, node.op_type, fixed[node.op_type])
    elif value in loop.stacked:
        outside = loop.stacked[value]
    else:
        raise EdgekitError(f"Scan `{loop.node.name}`: nothing outside holds the values of `{value.name}`")
    found = _range(ranges, loop.node, outside.name)
    limits = [_SATURATES.get(op) for op in _read_by(value)]
    if limits and None not in limits and value not in loop.after:  # c is read by a Tanh, and by the next step
        limit = max(limits)
        found = Range(float(np.clip(found.low, -limit, limit)), float(np.clip(found.high, -limit, limit)))
    return scale_of(found, numbers)


def _kernels(loop: _Loop, op: str, scale: Scale) -> Scale:
    """The scale of a Sigmoid's or Tanh's kernel, if it can hold what the op gives: a Tanh in uint8 would lose its sign."""
    low, high = fake_quantize(np.array([-1.0 if op == "Tanh" else 0.0, 1.0], np.float32), scale)
    if abs(low - (-1.0 if op == "Tanh" else 0.0)) > 0.02 or abs(high - 1.0) > 0.02:
        raise EdgekitError(
            f"Scan `{loop.node.name}`: {op} on scale {scale.scale:.6g}, zero point {scale.zero_point} in {scale.dtype} reaches from {low:.3g} to {high:.3g}",
            "check `int8_output` of the op in the target's table",
        )
    return scale


def _read_by(value: ir.Value) -> Iterable[str]:
    """The ops that compute on `value`, Splits and copies for calibration aside."""
    for use in value.uses():
        if use.node.op_type == "Split":
            for part in use.node.outputs:
                yield from _read_by(part)
        elif use.node.op_type != "Identity":
            yield use.node.op_type


def _range(ranges: Mapping[str, Range], node: ir.Node, name: str) -> Range:
    if name not in ranges:
        raise EdgekitError(f"Scan `{node.name}`: no range for `{name}`")
    return ranges[name]


def _round(loop: _Loop, value: ir.Value, scale: Scale) -> None:
    """Let everybody in the body read `value` through integers, the next step too."""
    import onnx_ir as ir

    uses = [(use.node, use.idx) for use in value.uses()]
    s = _weight(loop, f"{value.name}.scale", np.float32(scale.scale))
    z = _weight(loop, f"{value.name}.zero_point", np.array(scale.zero_point, scale.dtype))
    q = _node(loop, "QuantizeLinear", [value, s, z], f"{value.name}/QuantizeLinear", shape_of(value), z.dtype)
    rounded = _node(loop, "DequantizeLinear", [q, s, z], f"{value.name}/DequantizeLinear", shape_of(value), ir.DataType.FLOAT)
    for node, i in uses:
        node.replace_input_with(i, rounded)
    for k, output in enumerate(loop.body.outputs):
        if output is value:
            loop.body.outputs[k] = rounded


def _quantize_weight(loop: _Loop, matmul: ir.Node, numbers: Numbers) -> None:
    import onnx_ir as ir

    value = matmul.inputs[1]
    array = constant(value)
    scales = weight_scales(array, numbers, axis=1)
    s = _weight(loop, f"{value.name}.scale", scales)
    z = _weight(loop, f"{value.name}.zero_point", np.zeros(scales.shape, np.int8))
    q = _weight(loop, f"{value.name}.int8", quantize_weight(array, scales, axis=1))
    matmul.replace_input_with(1, _node(loop, "DequantizeLinear", [q, s, z], f"{value.name}/DequantizeLinear", array.shape, ir.DataType.FLOAT, {"axis": 1}))
    del loop.body.initializers[value.name]


def _weight(loop: _Loop, name: str, array: Any) -> ir.Value:
    """A constant of the body. Its name comes from a tensor's, and these are unique."""
    import onnx_ir as ir

    value = ir.Value(name=name, const_value=ir.tensor(np.asarray(array), name=name))
    value.dtype, value.shape = value.const_value.dtype, ir.Shape(np.shape(array))
    loop.body.register_initializer(value)
    return value


def _node(loop: _Loop, op: str, inputs: list, name: str, shape: tuple[int, ...], dtype: ir.DataType, attributes: dict | None = None) -> ir.Value:
    import onnx_ir as ir

    node = ir.node(op, inputs, attributes, name=name)
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].dtype = f"{name}_out", ir.Shape(shape), dtype
    loop.body.append(node)
    return node.outputs[0]

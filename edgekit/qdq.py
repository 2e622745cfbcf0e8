"""Which layers a target computes on integers, and the graph that computes them so.

The Q/DQ graph is the one contract between quantize and every backend: QuantizeLinear and
DequantizeLinear stand exactly where the target rounds, in exactly its numbers, and everything else
is float. ONNX Runtime can execute it as written, so each built artifact has a reference.

Two kinds of targets. On those with `numbers.outputs` (TFLite, ONNX Runtime) an integer layer writes
integers, so the tensor itself is quantized and everybody reads the rounded values. On the others
(TensorRT, OpenVINO) a layer may write floats, and a tensor is rounded only where an integer layer
reads it. Where its table takes Concat, MaxPool or another op that moves values in INT8, a layer
whose values such ops bring to another integer layer writes integers too: moved as they are, they are a
quarter of the bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import EdgekitError
from .graph import COPY_OPS, MAC_OPS, Editor, attribute, constant, count_macs, data_input, is_float, shape_of
from .qdq_loop import FIXED, LoopTensors, quantize_scan, tensors_of, tied_ranges
from .quant import Numbers, Range, Scale, quantize_weight, scale_of, weight_scales

if TYPE_CHECKING:
    import onnx_ir as ir

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "PRelu")  # compilers join these to the layer before
JOINS = ("Add", "Sub", "Mul")
# One activation in, and an integer kernel exists wherever the target's table says so.
FOLLOWERS = ("AveragePool", "GlobalAveragePool", "ReduceMean", "Sigmoid", "Tanh", "Softmax", "Gelu", "HardSwish", *ACTIVATIONS)
PASSES_INTEGERS = (*COPY_OPS, "MaxPool")


@dataclass(frozen=True)
class Precisions:
    """What of one engine a target computes on integers.

    Attributes:
        int8: the layers with MACs.
        fused: activations and bias additions that the compiler joins to the layer before.
        others: joins, pools and the like between integer layers.
        skipped: {every other layer with MACs: the reason}.
        reads: {node: inputs that it reads as integers}, of `int8` and `others`.
        writes: tensors that are written as integers, so that everybody reads the rounded values.
        fixed: {tensor: the scale that the kernel writes in, whatever the data}.
        cells: {Scan: how its step is computed, see qdq_loop.py}.
        fixed_ops: {op: the scale that its kernel writes in}, inside loops.
        joined: groups of tensors on one scale: what a Concat joins, and the result, which then is written as integers too.
        symmetric: tensors whose integers have zero point 0 although others have one of their own.
        tensors: activations that `int8`, `fused` and `others` read and write; a target that wants a
            scale for each finds them here.
    """

    int8: tuple[str, ...]
    fused: tuple[str, ...]
    skipped: dict[str, str]
    tensors: tuple[str, ...]
    others: tuple[str, ...] = ()
    reads: dict[str, tuple[int, ...]] = field(default_factory=dict)
    writes: tuple[str, ...] = ()
    fixed: dict[str, Scale] = field(default_factory=dict)
    cells: dict[str, str] = field(default_factory=dict)
    fixed_ops: dict[str, Scale] = field(default_factory=dict)
    joined: tuple[tuple[str, ...], ...] = ()
    symmetric: frozenset[str] = frozenset()

    @property
    def observed(self) -> tuple[str, ...]:
        """Every tensor whose range must come from data or from what an operator bounds."""
        return tuple(name for name in dict.fromkeys((*self.tensors, *self.writes)) if name not in self.fixed)


def precisions(
    model: ir.Model, ops: Mapping[str, Mapping[str, Any]], skip: Mapping[str, str] | None = None, outputs: bool = False
) -> Precisions:
    """Sort the nodes of `model` by what the target's table takes in INT8.

    Args:
        ops: the target's table; the keys read are int8, int8_ranks, ranks, int8_output and cell. `Conv.depthwise`,
            `Conv.odd_groups` and `MatMul.activations`, if there, further restrict these kinds.
        skip: {node: reason} of layers, joins and followers to leave in float.
        outputs: integer layers write integers (`numbers.outputs`).
    """
    return _Sorting(model, ops, skip or {}, outputs).run()


class _Sorting:
    def __init__(self, model: ir.Model, ops: Mapping[str, Mapping[str, Any]], skip: Mapping[str, str], outputs: bool):
        self.model, self.ops, self.skip, self.outputs = model, ops, skip, outputs
        self.movers = frozenset(PASSES_INTEGERS) if outputs else frozenset(op for op in PASSES_INTEGERS if ops.get(op, {}).get("int8"))
        self.skipped: dict[str, str] = {}
        self.layers: dict[str, ir.Node] = {}
        for node in model.graph:
            if node.op_type in MAC_OPS:
                reason = skip.get(node.name) or _not_in_int8(node, ops)
                if reason is None:
                    self.layers[node.name] = node
                else:
                    self.skipped[node.name] = reason
        self.cells = {name: ops["Scan"].get("cell") or "float" for name, node in self.layers.items() if node.op_type == "Scan"}
        self.loops: dict[str, LoopTensors] = {name: tensors_of(self.layers[name], cell) for name, cell in self.cells.items()}
        self.fused: dict[str, ir.Node] = {}
        self.others: dict[str, ir.Node] = {}
        # The last tensors of each layer: what it writes.
        self.ends: dict[str, list[ir.Value]] = {}
        for name, node in self.layers.items():
            self.ends[name] = [v for v in node.outputs if v.name in self.loops[name].writes] if name in self.loops else [self._end(node)]
        self.others = self._others()

    def run(self) -> Precisions:
        reads = {name: self.loops[name].reads if name in self.loops else tuple(_reads(node)) for name, node in {**self.layers, **self.others}.items()}
        writes: list[str] = []
        fixed: dict[str, Scale] = {}
        if self.outputs:
            ends = [(node, end) for name, node in self.layers.items() for end in self.ends[name]]
            for node, end in (*ends, *((node, node.outputs[0]) for node in self.others.values())):
                writes.append(end.name)
                scale = _fixed(self.ops, node.op_type)
                if scale is not None:
                    fixed[end.name] = scale
        joined = self._joined({name for name in writes if name not in fixed} if self.outputs else {end.name for ends in self.ends.values() for end in ends})
        if not self.outputs:
            parts = {part for _, parts in joined for part in parts}
            writes += [end.name for ends in self.ends.values() for end in ends if end.name in parts or self._is_moved_to_int8(end, self.movers - {"Concat"})]
        writes += [value.name for value, _ in joined]
        in_int8 = {*self.layers, *self.fused, *self.others}
        tensors: dict[str, None] = {}
        for node in self.model.graph:
            if node.name in reads:
                tensors.update(dict.fromkeys(node.inputs[i].name for i in reads[node.name]))
            if node.name in in_int8 and not self.outputs:  # the device needs a scale for what it may write, too
                tensors.update(dict.fromkeys(v.name for v in (*node.inputs[:1], *node.outputs) if is_float(v)))
        for loop in self.loops.values():
            tensors.update(dict.fromkeys(loop.observed))
        order = [node.name for node in self.model.graph]
        others = sorted(self.others, key=order.index)
        fused = sorted(self.fused, key=order.index)
        return Precisions(tuple(self.layers), tuple(fused), self.skipped, tuple(tensors), tuple(others), reads, tuple(dict.fromkeys(writes)), fixed, self.cells, {op: scale for op in FIXED if (scale := _fixed(self.ops, op))}, _united(joined), self._symmetric(reads))

    def _joined(self, written: set[str]) -> list[tuple[ir.Value, frozenset[str]]]:
        """(output, written tensors that it is made of) of every Concat that joins integers and that an integer kernel reads.

        A shuffle network passes half of its channels by again and again: on one scale they stay the integers that they are,
        and without a rounding at every Concat. What a loop writes has its state's scale and joins nothing.
        """
        loops = {name for loop in self.loops.values() for name in loop.writes}
        made_of: dict[str, frozenset[str]] = {name: frozenset([name]) for name in written - loops}
        found = []
        for node in self.model.graph:
            if node.op_type not in self.movers or not node.inputs:
                continue
            parts = [made_of.get(value.name) for value in (node.inputs if node.op_type == "Concat" else node.inputs[:1]) if value is not None]
            if not parts or None in parts:
                continue
            union = frozenset().union(*parts)
            if node.op_type == "Concat":
                if not self._reaches_int8(node.outputs[0], self.movers):
                    continue
                found.append((node.outputs[0], union))
            made_of.update({out.name: union for out in node.outputs})
        return found

    def _reaches_int8(self, value: ir.Value, movers: frozenset[str]) -> bool:
        """Whether an integer kernel reads a value, at once or after `movers` moved it."""
        return any(use.node.name in self.layers or use.node.name in self.others for use in value.uses()) or self._is_moved_to_int8(value, movers)

    def _is_moved_to_int8(self, value: ir.Value, movers: frozenset[str]) -> bool:
        """Whether `movers`, and at least one of them, bring a value to an integer kernel."""
        after = [use.node for use in value.uses() if use.node.op_type in movers]
        return any(self._reaches_int8(out, movers) for node in after for out in node.outputs)

    def _symmetric(self, reads: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
        """What only products of two activations read, where the target wants these symmetric."""
        if not self.ops.get("MatMul.activations", {}).get("symmetric"):
            return frozenset()
        of_products: dict[str, bool] = {}
        for name, inputs in reads.items():
            node = self.layers.get(name) or self.others[name]
            is_product = node.op_type == "MatMul" and len(inputs) == 2
            for i in inputs:
                of_products[node.inputs[i].name] = of_products.get(node.inputs[i].name, True) and is_product
        return frozenset(tensor for tensor, only in of_products.items() if only)

    def _end(self, layer: ir.Node) -> ir.Value:
        """The last tensor of the layer and what is joined to it: its bias addition, its activation."""
        value = layer.outputs[0]
        while True:
            user = _only_user(value)
            if user is None or user.name in self.layers:
                return value
            is_bias = self.outputs and layer.op_type == "MatMul" and value is layer.outputs[0] and _is_bias(user, value)
            if not is_bias and not self._is_joined(user, value):
                return value
            self.fused[user.name] = user
            value = user.outputs[0]

    def _is_joined(self, user: ir.Node, value: ir.Value) -> bool:
        if user.op_type not in ("Relu", "Clip", "LeakyRelu") or user.inputs[0] is not value or not self.ops.get(user.op_type, {}).get("int8"):
            return False
        if self.outputs:
            return user.op_type != "LeakyRelu"  # it has a kernel of its own there: a follower
        # Joined only between integer layers: where floats are read, the compiler may well keep them.
        if self._is_moved_to_int8(user.outputs[0], self.movers):
            return True
        after = [use.node for use in user.outputs[0].uses()]
        return bool(after) and not user.outputs[0].is_graph_output() and all(n.name in self.layers and n.inputs[0] is user.outputs[0] for n in after)

    def _others(self) -> dict[str, ir.Node]:
        """Joins and followers whose inputs are integers already and whose readers want integers again: they add no rounding."""
        integers = {id(end) for ends in self.ends.values() for end in ends}
        found: dict[str, ir.Node] = {}
        for node in self.model.graph:  # in topological order
            if node.name in self.layers or node.name in self.fused:
                continue
            if node.op_type in PASSES_INTEGERS:
                data = node.inputs if node.op_type == "Concat" else node.inputs[:1]
                if data and all(id(value) in integers for value in data):
                    integers.update(id(value) for value in node.outputs)
            elif self._may_be_int8(node) and all(id(node.inputs[i]) in integers for i in _reads(node)):
                found[node.name] = node
                integers.add(id(node.outputs[0]))
        while True:  # dropping one may leave the one before it without an integer reader
            kept = {name: node for name, node in found.items() if self._is_read_as_int8(node.outputs[0], found)}
            if len(kept) == len(found):
                return found
            found = kept

    def _may_be_int8(self, node: ir.Node) -> bool:
        if node.op_type not in (*JOINS, *FOLLOWERS) or not self.ops.get(node.op_type, {}).get("int8") or node.name in self.skip:
            return False
        if node.op_type in ("Add", "Sub", "Mul"):
            a, b = node.inputs
            return constant(a) is None and constant(b) is None and a is not b and len(shape_of(a)) == len(shape_of(b))
        ranks = self.ops[node.op_type].get("int8_ranks")
        return is_float(node.outputs[0]) and (not ranks or len(shape_of(data_input(node))) in ranks)

    def _is_read_as_int8(self, value: ir.Value, others: Mapping[str, ir.Node]) -> bool:
        uses = list(value.uses())
        if value.is_graph_output() or not uses:
            return False
        for use in uses:
            if use.node.name in self.layers or use.node.name in others:
                continue
            if use.node.op_type not in PASSES_INTEGERS or not all(self._is_read_as_int8(out, others) for out in use.node.outputs):
                return False
        return True


def _united(joined: Iterable[tuple[ir.Value, frozenset[str]]]) -> tuple[tuple[str, ...], ...]:
    """Groups of tensors that must have one scale: those of Concats that share a part are one."""
    groups: list[set[str]] = []
    for value, parts in joined:
        group = {value.name, *parts}
        for other in [g for g in groups if g & group]:
            groups.remove(other)
            group |= other
        groups.append(group)
    return tuple(tuple(sorted(group)) for group in groups)


def _fixed(ops: Mapping[str, Mapping[str, Any]], op: str) -> Scale | None:
    forced = ops.get(op, {}).get("int8_output")
    return Scale(float(np.float32(forced["scale"])), forced["zero_point"], forced.get("dtype", "int8")) if forced else None


def _reads(node: ir.Node) -> Iterable[int]:
    """The inputs that an integer node reads as integers: its float activations."""
    inputs = range(len(node.inputs)) if node.op_type in (*JOINS, "MatMul", "Gemm") else range(1)
    for i in inputs:
        value = node.inputs[i]
        if value is not None and constant(value) is None and is_float(value) and not (node.op_type == "Gemm" and i == 2):
            yield i


def _only_user(value: ir.Value) -> ir.Node | None:
    users = [use.node for use in value.uses()]
    return users[0] if len(users) == 1 and not value.is_graph_output() else None


def _is_bias(node: ir.Node, value: ir.Value) -> bool:
    """Whether `node` adds one constant per channel of the last axis to `value`."""
    if node.op_type != "Add":
        return False
    other = constant(node.inputs[1] if node.inputs[0] is value else node.inputs[0])
    return other is not None and np.ndim(other) > 0 and other.size == np.shape(other)[-1] and other.size in (1, shape_of(value)[-1])


def _not_in_int8(node: ir.Node, ops: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Why the target runs a layer in float, or None."""
    rule = ops.get(node.op_type, {})
    rank = len(shape_of(data_input(node)))
    if not rule.get("int8"):
        return f"{node.op_type} is not taken in INT8"
    ranks = rule.get("int8_ranks") or rule.get("ranks")
    if ranks and rank not in ranks:
        return f"{node.op_type} of rank {rank} is not taken in INT8"
    if node.op_type not in WEIGHTED:
        return None if node.op_type == "Scan" else f"{node.op_type} has no Q/DQ form"
    is_constant = constant(node.inputs[1]) is not None
    if node.op_type == "MatMul" and not is_constant:
        if constant(node.inputs[0]) is not None:
            return "MatMul with its weight in front is not quantized"
        return None if ops.get("MatMul.activations", {}).get("int8") else "MatMul of two activations is not taken in INT8"
    if not is_constant:
        return f"{node.op_type} with a weight that is not constant is not quantized"
    if node.op_type == "MatMul" and len(shape_of(node.inputs[1])) != 2:
        return "MatMul with a weight that is no matrix is not quantized"
    if node.op_type == "Gemm" and (attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0):
        return "Gemm with transA, alpha or beta is not quantized"
    kind = conv_kind(node) if node.op_type == "Conv" else None
    if kind is not None and not ops.get(f"Conv.{kind}", {"int8": True}).get("int8"):
        return f"{kind.replace('_', ' ')} Conv is not taken in INT8"
    return None


def conv_kind(node: ir.Node) -> str | None:
    """`depthwise`: one input channel a group; `odd_groups`: groups that are no multiple of 4 channels; else None."""
    group = attribute(node, "group", 1)
    if group == 1:
        return None
    out, into = shape_of(node.inputs[1])[:2]
    if into == 1:
        return "depthwise"
    return "odd_groups" if into % 4 or (out // group) % 4 else None


COARSE = 4.0  # times: two of eight bits


def too_coarse(model: ir.Model, ops: Mapping[str, Mapping[str, Any]], range_of: Callable[[str], Range | None], numbers: Numbers) -> list[str]:
    """Ops whose kernel writes in a scale of its own that is COARSE times what their values would need, or more.

    A Tanh in steps of 1/128, whose values are all below 0.1, has a dozen of them; what it gives may be a
    correlation that the next layer multiplies by.

    Args:
        range_of: {tensor: what was seen of it, or None}.
    """
    found = []
    for node in model.graph:
        scale, seen = _fixed(ops, node.op_type), range_of(node.outputs[0].name)
        if scale is not None and seen is not None and scale.scale > COARSE * scale_of(seen, numbers).scale:
            found.append(node.name)
    return found


SMALL = 0.01  # of an engine's MACs


def last_layers(model: ir.Model, outputs: Iterable[str]) -> list[str]:
    """Layers that give `outputs` and cost next to nothing.

    Where integer layers write integers, a network's result would have 256 values: for a regression
    that is most of what INT8 costs, and a head of a few hundred MACs saves nothing.
    """
    macs = count_macs(model)
    found: dict[str, None] = {}
    for value in (value for value in model.graph.outputs if value.name in set(outputs)):
        while (node := value.producer()) is not None:
            if node.op_type in MAC_OPS:
                if macs[node.name] <= SMALL * sum(macs.values()):
                    found[node.name] = None
                break
            activations = [v for v in node.inputs if v is not None and constant(v) is None]
            if len(activations) != 1:
                break
            value = activations[0]
    return list(found)


# --------------------------------------------------------------------------- the graph


def insert_qdq(model: ir.Model, chosen: Precisions, ranges: Mapping[str, Range], numbers: Numbers) -> ir.Model:
    """A copy of `model` that computes `chosen` in exactly the target's numbers.

    Each tensor gets one QuantizeLinear/DequantizeLinear pair, however many nodes read it, and each
    weight becomes an int8 initializer with a DequantizeLinear per output channel. Biases stay
    float: the integer engine adds them at accumulator precision.

    Args:
        chosen: which nodes, from `precisions` of the same graph.
        ranges: {tensor: Range} of every tensor in `chosen.observed`.

    Raises:
        EdgekitError: a range is missing.
    """
    model = model.clone(deep_copy=True)
    edit = Editor(model)
    nodes = {node.name: node for node in model.graph}
    for name, cell in chosen.cells.items():  # first, while the tensors around it have their own names
        quantize_scan(nodes[name], ranges, numbers, cell, {**FIXED, **chosen.fixed_ops})
    values = {value.name: value for value in model.graph.inputs} | {v.name: v for node in model.graph for v in node.outputs}
    written = set(chosen.writes)
    readers: dict[str, list[tuple[ir.Node, int]]] = {}
    for name, inputs in chosen.reads.items():
        for i in inputs:
            readers.setdefault(nodes[name].inputs[i].name, []).append((nodes[name], i))
    for tensor in dict.fromkeys((*readers, *chosen.writes)):
        if tensor not in ranges and tensor not in chosen.fixed:
            who = readers[tensor][0][0].name if tensor in readers else tensor
            raise EdgekitError(f"layer `{who}`: no range for `{tensor}`")
        scale = chosen.fixed.get(tensor) or scale_of(ranges[tensor], numbers.as_symmetric() if tensor in chosen.symmetric else numbers)
        value = values[tensor]
        uses = [(use.node, use.idx) for use in value.uses()] if tensor in written else readers[tensor]
        before = uses[0][0] if uses else value.producer()
        rounded = _activation_qdq(edit, before, value, tensor, scale)
        for node, i in uses:
            node.replace_input_with(i, rounded)
        if tensor in written and value.is_graph_output():
            _take_over_output(edit, value, rounded)
    for name in chosen.int8:
        node = nodes[name]
        if node.op_type in WEIGHTED and (weight := constant(node.inputs[1])) is not None:
            node.replace_input_with(1, _weight_dq(edit, node, weight, numbers))
    for name in chosen.others:
        if nodes[name].op_type == "PRelu" and (slope := constant(nodes[name].inputs[1])) is not None and slope.size > 1:
            nodes[name].replace_input_with(1, _slope_dq(edit, nodes[name], slope))
    _sort(model)
    return model


# Outside of these an activation in 8 bits does not change any more: GELU(-3) = -0.004, ln(511), atanh(1 - 2^-8).
_FLAT_OUTSIDE = {"Gelu": (-3.0, math.inf), "HardSwish": (-3.0, math.inf), "Sigmoid": (-6.24, 6.24), "Tanh": (-3.12, 3.12)}


def useful(model: ir.Model, tensor: str, r: Range) -> Range:
    """`r` without the part in which all readers of `tensor` are flat: its steps are better spent where they are not.

    On MHLT's audio encoder, seven convolutions with a GELU behind each, it takes a quarter of what INT8 costs.
    """
    readers = [node.op_type for node in model.graph for value in node.inputs if value is not None and value.name == tensor]
    if not readers or not set(readers) <= _FLAT_OUTSIDE.keys() or any(value.name == tensor for value in model.graph.outputs):
        return r
    low, high = min(_FLAT_OUTSIDE[op][0] for op in readers), max(_FLAT_OUTSIDE[op][1] for op in readers)
    return Range(min(max(r.low, low), high), max(min(r.high, high), low))


def passed_on(model: ir.Model, chosen: Precisions) -> dict[str, str]:
    """{tensor that is read as integers: the tensor that was written as integers, and only moved since}.

    Of its own, a Slice's range would be a bit smaller, and the device would have to rescale for it.
    """
    written, found = set(chosen.writes), {}
    producers = {value.name: node for node in model.graph for value in node.outputs}
    for tensor in chosen.observed:
        source = tensor
        while source not in written and (node := producers.get(source)) is not None and node.op_type in PASSES_INTEGERS and node.op_type != "Concat":
            source = node.inputs[0].name
        if source != tensor and source in written and source not in chosen.fixed:
            found[tensor] = source
    return found


def joined(chosen: Precisions, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """One range for all that a Concat joins, and for its result."""
    return {tensor: reduce(Range.union, (ranges[part] for part in group)) for group in chosen.joined for tensor in group}


def tied(model: ir.Model, chosen: Precisions, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """One range for both ends of every loop's state, and for its values over time."""
    nodes = {node.name: node for node in model.graph}
    found: dict[str, Range] = {}
    for name, cell in chosen.cells.items():
        found.update(tied_ranges(nodes[name], ranges, cell))
    return found


def _take_over_output(edit: Editor, value: ir.Value, rounded: ir.Value) -> None:
    """Let the rounded tensor be the graph's output, under the output's name."""
    graph, name = edit.graph, value.name
    position = next(i for i, out in enumerate(graph.outputs) if out is value)
    graph.outputs[position] = rounded
    value.name, rounded.name = edit.unique(f"{name}_before"), name


def _activation_qdq(edit: Editor, node: ir.Node, x: ir.Value, name: str, scale: Scale) -> ir.Value:
    import onnx_ir as ir

    integer = ir.DataType.INT8 if scale.dtype == "int8" else ir.DataType.UINT8
    s = edit.constant(f"{name}.scale", np.float32(scale.scale))
    z = edit.constant(f"{name}.zero_point", np.array(scale.zero_point, scale.dtype))
    q = edit.add(node, "QuantizeLinear", [x, s, z], shape_of(x), name=f"{name}/QuantizeLinear", dtype=integer)
    return edit.add(node, "DequantizeLinear", [q, s, z], shape_of(x), name=f"{name}/DequantizeLinear", dtype=x.dtype)


def weight_axis(node: ir.Node) -> int:
    """The axis of a layer's weight that counts output channels."""
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}[node.op_type]


def _weight_dq(edit: Editor, node: ir.Node, weight: np.ndarray, numbers: Numbers) -> ir.Value:
    import onnx_ir as ir

    axis = weight_axis(node)
    scales = weight_scales(weight, numbers, axis)
    s = edit.constant(f"{node.name}.weight.scale", scales)
    z = edit.constant(f"{node.name}.weight.zero_point", np.zeros(scales.shape, np.int8))
    q = edit.constant(f"{node.name}.weight.int8", quantize_weight(weight, scales, axis))
    return edit.add(node, "DequantizeLinear", [q, s, z], weight.shape, {"axis": axis}, f"{node.name}/weight/DequantizeLinear", ir.DataType.FLOAT)


def _slope_dq(edit: Editor, node: ir.Node, slope: np.ndarray) -> ir.Value:
    """A PRelu's slopes in int8, all on one scale: integer kernels multiply by them as they do by another activation. One slope alone is a factor."""
    import onnx_ir as ir

    scale = np.float32(np.abs(slope).max() / 127 or 1.0)
    s = edit.constant(f"{node.name}.slope.scale", scale)
    z = edit.constant(f"{node.name}.slope.zero_point", np.int8(0))
    q = edit.constant(f"{node.name}.slope.int8", np.rint(slope / scale).astype(np.int8))
    return edit.add(node, "DequantizeLinear", [q, s, z], slope.shape, None, f"{node.name}/slope/DequantizeLinear", ir.DataType.FLOAT)


def _sort(model: ir.Model) -> None:
    import onnx_ir.passes.common as passes

    passes.RemoveUnusedNodesPass()(model)
    passes.TopologicalSortPass()(model)

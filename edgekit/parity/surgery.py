"""ONNX graphs cut open: what reads what, every node on clean inputs, a graph rounded as another one is, a part as a file.

All of it works on any ONNX file, on protobufs, and never runs anything.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.graph import MAC_OPS

if TYPE_CHECKING:
    import onnx

QUANTIZE, DEQUANTIZE = ("QuantizeLinear", "DynamicQuantizeLinear"), ("DequantizeLinear",)
# One float in, the same values out, to the precision of what is asked here.
PASSING = ("Identity", "Cast", "Max", "Min", "Sum")
LAYERS = (*MAC_OPS, "Softmax", "LayerNormalization", "InstanceNormalization", "BatchNormalization", "RNN")
SMALLEST = 1e-30
HALF = -1
"""In place of the axis of a weight's scales: it is kept in float16."""
WIDER = 4.0
"""How much wider than the data a range may be and still be an honest one: it was calibrated on other data, with louder moments."""
CLIPPED = 0.01
"""Share of the values that an honest range may leave out: observers of percentiles and entropy clip on purpose, other data a little more."""


@dataclass(frozen=True)
class Part:
    """The nodes between a tensor and the nearest taps before it.

    Attributes:
        nodes: positions in the graph, in order; what hangs on constants alone is not among them.
        taps: tensors where it begins, graph inputs among them.
    """

    nodes: tuple[int, ...]
    taps: tuple[str, ...]


class Net:
    """An ONNX graph, indexed. The model's weights are in memory.

    Args:
        floats: names of its float tensors, where ONNX cannot infer types.
    """

    def __init__(self, model: onnx.ModelProto, floats: Iterable[str] | None = None):
        self.model, self._floats = model, floats if floats is None else set(floats)
        self.nodes = list(model.graph.node)
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.inputs = [value.name for value in model.graph.input if value.name not in self.initializers]
        self.outputs = [value.name for value in model.graph.output]
        self.producer = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.reads = [_reads(node) for node in self.nodes]
        self.constants = set(self.initializers)
        for i, node in enumerate(self.nodes):
            if not node.op_type.startswith("Random") and all(name in self.constants for name in self.reads[i]):
                self.constants.update(name for name in node.output if name)
        self.readers: dict[str, list[int]] = {}
        for i, names in enumerate(self.reads):
            for name in names:
                self.readers.setdefault(name, []).append(i)

    @functools.cached_property
    def tensors(self) -> list[str]:
        """Float tensors that depend on data, in the order of computation; those of unknown type are among them."""
        import onnx
        from onnx import TensorProto

        whole = {name for node in self.nodes if node.op_type in QUANTIZE for name in node.output}
        computed = [name for node in self.nodes for name in node.output if name and name not in self.constants and name not in whole]
        if self._floats is not None:
            return [name for name in computed if name in self._floats]
        floats = (TensorProto.UNDEFINED, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)  # numpy has no bfloat16
        inferred = onnx.shape_inference.infer_shapes(self.model).graph
        types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
        return [name for name in computed if types.get(name, 0) in floats]

    def op(self, tensor: str) -> str:
        return self.nodes[self.producer[tensor]].op_type if tensor in self.producer else "input"

    def source(self, tensor: str) -> str:
        """`tensor` before Q and DQ, copies and casts."""
        while tensor in self.producer:
            node = self.nodes[self.producer[tensor]]
            data = [name for name in node.input if name]
            if not (node.op_type in (*QUANTIZE, *DEQUANTIZE) or (node.op_type in PASSING and len(data) == 1)) or data[0] in self.constants:
                break
            tensor = data[0]
        return tensor

    def constant(self, name: str) -> np.ndarray | None:
        """The value of an initializer, also of one behind a DequantizeLinear or a copy."""
        from onnx import numpy_helper

        if name in self.initializers:
            return numpy_helper.to_array(self.initializers[name])
        node = self.nodes[self.producer[name]] if name in self.producer else None
        if node is None or name not in self.constants:
            return None
        if node.op_type == "Constant":
            return next((numpy_helper.to_array(a.t) for a in node.attribute if a.name == "value"), None)
        parts = [self.constant(part) if part else None for part in node.input]
        if node.op_type in PASSING and len(parts) == 1:
            return parts[0]
        if node.op_type == "Transpose" and parts[0] is not None:
            return np.transpose(parts[0], next((list(a.ints) for a in node.attribute if a.name == "perm"), None))
        if node.op_type not in DEQUANTIZE or parts[0] is None or parts[1] is None:
            return None
        shape = [1] * parts[0].ndim
        if parts[1].size > 1:
            shape[next((a.i for a in node.attribute if a.name == "axis"), 1)] = parts[1].size
        zero = parts[2].astype(np.float32).reshape(shape if parts[2].size > 1 else ()) if len(parts) > 2 and parts[2] is not None else np.float32(0)
        return (parts[0].astype(np.float32) - zero) * parts[1].reshape(shape if parts[1].size > 1 else ())

    def part(self, tensor: str, taps: Iterable[str]) -> Part:
        """What computes `tensor` from `taps` and graph inputs."""
        taps = taps if isinstance(taps, set | dict | frozenset) else set(taps)
        found, ends, stack = set(), {}, [tensor]
        while stack:
            i = self.producer.get(stack.pop())
            if i is None or i in found:
                continue
            found.add(i)
            for name in self.reads[i]:
                if name in self.constants:
                    continue
                if name in taps or name not in self.producer:
                    ends[name] = None
                else:
                    stack.append(name)
        return Part(tuple(sorted(found)), tuple(ends))

    def layer(self, part: Part) -> onnx.NodeProto:
        """The node that a part is named after: its layer with weights, else its last node that is no rounding."""
        nodes = [self.nodes[i] for i in part.nodes]
        chosen = [node for node in nodes if node.op_type in LAYERS] or [node for node in nodes if node.op_type not in (*QUANTIZE, *DEQUANTIZE)] or nodes
        return chosen[-1]

    def roundings(self, part: Part) -> dict[str, int]:
        """{tap: its QuantizeLinear}, of the taps that a part reads through one; {"": node} if something inside is rounded too."""
        found: dict[str, int] = {}
        for i in part.nodes:
            node = self.nodes[i]
            if node.op_type in QUANTIZE:
                source = self.source(node.input[0])
                found[source if source in part.taps else ""] = i
            elif node.op_type.startswith(("QLinear", "MatMulInteger", "ConvInteger", "DynamicQuantize")):
                found.update(dict.fromkeys((*part.taps, ""), i))
        return found

    def integer_weights(self, part: Part) -> list[tuple[tuple[int, ...], int | None]]:
        """(shape, axis of its scales) of every weight of integers that a part reads, loops' bodies included; axis None: one scale."""
        found = []
        for i in part.nodes:
            for graph_nodes, constant in [(self.nodes, self.constant), *_bodies(self.nodes[i])]:
                for name in self.reads[i] if graph_nodes is self.nodes else [n for node in graph_nodes for n in node.input]:
                    node = next((n for n in (_chain(self, name) if graph_nodes is self.nodes else graph_nodes) if name in n.output), None)
                    if node is None or node.op_type not in DEQUANTIZE:
                        continue
                    values, scales = constant(node.input[0]), constant(node.input[1])
                    if values is not None and scales is not None:
                        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
                        found.append((values.shape, axis % values.ndim if scales.size > 1 else None))
        return found


def _chain(net: Net, name: str) -> list[onnx.NodeProto]:
    """The constant node that makes `name`, if there is one."""
    return [net.nodes[net.producer[name]]] if name in net.producer and name in net.constants else []


def _graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [graph for a in node.attribute for graph in (*([a.g] if a.HasField("g") else ()), *a.graphs)]


def _bodies(node: onnx.NodeProto) -> list[tuple[list[onnx.NodeProto], object]]:
    from onnx import numpy_helper

    found = []
    for graph in _graphs(node):
        values = {tensor.name: tensor for tensor in graph.initializer}
        found.append((list(graph.node), lambda name, values=values: numpy_helper.to_array(values[name]) if name in values else None))
        for inner in graph.node:
            found += _bodies(inner)
    return found


def _reads(node: onnx.NodeProto) -> list[str]:
    """Tensors that a node reads, those that its bodies capture included."""
    names = dict.fromkeys(name for name in node.input if name)
    for graph in _graphs(node):
        own = {v.name for v in graph.input} | {t.name for t in graph.initializer}
        for inner in graph.node:
            names.update(dict.fromkeys(name for name in _reads(inner) if name not in own))
            own.update(inner.output)
        names.update(dict.fromkeys(v.name for v in graph.output if v.name not in own))
    return list(names)


def _rename_reads(nodes: Iterable[onnx.NodeProto], names: Mapping[str, str]) -> None:
    for node in nodes:
        for i, name in enumerate(node.input):
            if name in names:
                node.input[i] = names[name]
        for graph in _graphs(node):
            own = {v.name for v in graph.input} | {t.name for t in graph.initializer} | {name for inner in graph.node for name in inner.output}
            _rename_reads(graph.node, {old: new for old, new in names.items() if old not in own})


def without_loops_rounding(net: Net) -> onnx.ModelProto | None:
    """A copy whose loops' bodies do not round their activations; None if none of them does."""
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(net.model)
    changed = [_skip_rounding(body) for node in model.graph.node for body in _graphs(node)]
    return model if any(changed) else None


def _skip_rounding(body: onnx.GraphProto) -> bool:
    quantized = {node.output[0]: node.input[0] for node in body.node if node.op_type in QUANTIZE}
    skipped = {node.output[0]: quantized[node.input[0]] for node in body.node if node.op_type in DEQUANTIZE and node.input[0] in quantized}
    for node in body.node:  # what goes out of the body keeps its name
        if node.op_type in DEQUANTIZE and node.output[0] in skipped:
            node.op_type = "Identity"
            del node.input[:], node.attribute[:]
            node.input.append(skipped[node.output[0]])
    return any([bool(skipped), *(_skip_rounding(inner) for node in body.node for inner in _graphs(node))])


# --------------------------------------------------------------------------- graphs made of graphs


@dataclass(frozen=True)
class Loose:
    """A graph whose parts do not hang together any more.

    Attributes:
        model: what to run.
        feeds: {tap: the input that is fed in its place}; graph inputs are fed under their own names.
    """

    model: onnx.ModelProto
    feeds: Mapping[str, str]


def cut_loose(net: Net, taps: Mapping[str, np.ndarray], wanted: Iterable[str]) -> Loose:
    """A copy in which whoever reads a tap reads an input instead, and `wanted` are the outputs.

    Args:
        taps: {tensor: an example of it}, for dtype and shape.
    """
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(net.model)
    graph = model.graph
    taken = {*net.producer, *net.constants, *net.inputs}
    feeds = {name: _unused(f"{name}/clean", taken) for name in taps if name in net.producer}
    _rename_reads(graph.node, feeds)
    for name, feed in feeds.items():
        example = taps[name]
        graph.input.append(onnx.helper.make_tensor_value_info(feed, onnx.helper.np_dtype_to_tensor_dtype(example.dtype), example.shape))
    _set_outputs(model, [name for name in wanted if name in net.producer])
    return Loose(model, feeds)


def give_out(net: Net, wanted: Iterable[str]) -> onnx.ModelProto:
    """A copy with `wanted` as its outputs."""
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(net.model)
    _set_outputs(model, wanted)
    return model


def _set_outputs(model: onnx.ModelProto, wanted: Iterable[str]) -> None:
    import onnx

    known = {value.name: value for value in (*model.graph.output, *model.graph.value_info)}
    outputs = [known.get(name) or onnx.helper.make_empty_tensor_value_info(name) for name in wanted]
    del model.graph.output[:]
    model.graph.output.extend(outputs)


def _unused(wanted: str, taken: set[str]) -> str:
    name, i = wanted, 1
    while name in taken:
        name, i = f"{wanted}_{i}", i + 1
    taken.add(name)
    return name


def extract(net: Net, tensor: str, part: Part, examples: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The part that computes `tensor`, as a model of its own with the part's taps as inputs.

    Args:
        examples: {tensor: array} of `tensor` and of every tap.
    """
    import onnx

    wanted, stack = set(part.nodes), [name for i in part.nodes for name in net.reads[i]]
    while stack:  # nodes that compute its constants
        i = net.producer.get(name := stack.pop())
        if i is not None and i not in wanted and name in net.constants:
            wanted.add(i)
            stack.extend(net.reads[i])
    nodes = [net.nodes[i] for i in sorted(wanted)]
    needed = {name for i in wanted for name in net.reads[i]}

    def port(name: str) -> onnx.ValueInfoProto:
        return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(examples[name].dtype), examples[name].shape)

    graph = onnx.helper.make_graph(nodes, "part", [port(name) for name in part.taps], [port(tensor)], [net.initializers[name] for name in net.initializers if name in needed])
    return onnx.helper.make_model(graph, opset_imports=net.model.opset_import, ir_version=net.model.ir_version, functions=net.model.functions)


# --------------------------------------------------------------------------- an honest rounding


@dataclass(frozen=True)
class Grid:
    """The integers that one QuantizeLinear rounds to. `scale` is None where it is made while running."""

    dtype: np.dtype
    scale: float | None
    zero: int

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest real number on it."""
        limits, scale = np.iinfo(self.dtype), self.scale or math.inf
        return (limits.min - self.zero) * scale, (limits.max - self.zero) * scale

    def fitting(self, low: float, high: float, is_clipping: bool = True) -> Grid:
        """The grid of this kind that values in [low, high] ask for: this one if it is an honest choice.

        Args:
            is_clipping: more values lie beyond this grid's ends than an honest one would leave out.
        """
        limits = np.iinfo(self.dtype)
        low, high = min(low, 0.0), max(high, 0.0)
        if self.dtype.kind == "i" and self.zero == 0:
            scale, zero = max(max(-low, high) / limits.max, SMALLEST), 0
        else:
            scale = max((high - low) / (limits.max - limits.min), SMALLEST)
            zero = int(np.clip(np.rint(limits.min - low / scale), limits.min, limits.max))
        if self.scale is not None and self.scale <= WIDER * scale and not is_clipping:
            return self
        return Grid(self.dtype, scale, zero)


@dataclass(frozen=True)
class Fit:
    """A grid against the values that it is for."""

    grid: Grid
    low: float
    high: float
    outside: int
    """Values beyond its ends, of `count`."""
    count: int

    @property
    def is_clipping(self) -> bool:
        return self.outside > CLIPPED * self.count + 2  # two may be bad luck

    @property
    def honest(self) -> Grid:
        return self.grid.fitting(self.low, self.high, self.is_clipping)

    @property
    def fault(self) -> str:
        """What is wrong with the grid; empty if nothing is."""
        if self.honest is self.grid or self.grid.scale is None or not self.honest.scale:
            return ""
        if self.is_clipping:
            return f"{100 * self.outside / self.count:.2g} % of the values are beyond its scale"
        return f"its scale is {self.grid.scale / self.honest.scale:.2g} times what the values ask for"


@dataclass(frozen=True)
class Rounding:
    """What one part of a graph rounds, told in the tensors of the reference.

    Attributes:
        tensor: what the part computes.
        reads: {tap: its grid}.
        output: the grid that something inside the part is rounded to, or None.
        weights: (shape, axis) of its integer weights, as `Net.integer_weights` gives them, and of those in float16.
    """

    tensor: str
    reads: Mapping[str, Grid]
    output: Grid | None
    weights: tuple[tuple[tuple[int, ...], int | None], ...]

    @property
    def is_any(self) -> bool:
        return bool(self.reads or self.output or self.weights)


def grid_of(net: Net, node: int) -> Grid:
    """The grid of a QuantizeLinear; of an op that quantizes while it runs, uint8."""
    q = net.nodes[node]
    scale, zero = (net.constant(name) if name else None for name in (*q.input[1:3], "", "")[:2]) if q.op_type == "QuantizeLinear" else (None, None)
    if zero is None:
        return Grid(np.dtype("uint8"), float(scale.reshape(-1)[0]) if scale is not None and scale.size == 1 else None, 0)
    dtype = zero.dtype if zero.dtype.kind in "iu" and zero.dtype.itemsize <= 4 else np.dtype("int8")
    return Grid(dtype, float(scale) if scale is not None and scale.size == 1 else None, int(np.asarray(zero, np.int64).reshape(-1)[0]))


def rounded_twin(net: Net, parts: Mapping[str, Part], roundings: Iterable[Rounding], fits: Mapping[tuple[str, Grid], Fit]) -> onnx.ModelProto:
    """The reference, rounded in every place where the other side rounds, with scales that fit its own values and weights.

    Its error is what that many integers cost when nothing is wrong.

    Args:
        parts: {tensor: its part}, of the reference.
        fits: {(tensor, grid): how it fits the reference's values}.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.ModelProto()
    model.CopyFrom(net.model)
    graph = model.graph
    taken = {*net.producer, *net.constants, *net.inputs}
    before: dict[int, list[onnx.NodeProto]] = {}
    done: dict[tuple[str, Grid], str] = {}

    def round_to(source: str, target: str, grid: Grid, tensor: str) -> list[onnx.NodeProto]:
        fit = fits[tensor, grid].honest
        names = [_unused(f"{target}/{what}", taken) for what in ("scale", "zero", "q")]
        graph.initializer.extend([numpy_helper.from_array(np.float32(fit.scale), names[0]), numpy_helper.from_array(np.asarray(fit.zero, fit.dtype), names[1])])
        return [helper.make_node("QuantizeLinear", [source, *names[:2]], [names[2]], name=names[2]), helper.make_node("DequantizeLinear", [names[2], *names[:2]], [target], name=f"{names[2]}/d")]

    for rounding in roundings:
        part = parts[rounding.tensor]
        for tap, grid in rounding.reads.items():
            if (tap, grid) not in fits or tap not in part.taps or grid.dtype.itemsize > 1:  # 16 bits cost nothing, and Q/DQ has them from opset 21 on only
                continue
            if (tap, grid) not in done:
                done[tap, grid] = _unused(f"{tap}/rounded", taken)
                before.setdefault(min(net.readers[tap]), []).extend(round_to(tap, done[tap, grid], grid, tap))
            _rename_reads([graph.node[i] for i in part.nodes], {tap: done[tap, grid]})
        for shape, axis in rounding.weights:
            for i in part.nodes:
                _round_weights(net, graph, i, shape, axis, taken)
        if rounding.output and rounding.output.dtype.itemsize == 1 and (rounding.tensor, rounding.output) in fits and rounding.tensor in net.producer:
            i = net.producer[rounding.tensor]
            exact = _unused(f"{rounding.tensor}/exact", taken)
            node = graph.node[i]
            node.output[list(node.output).index(rounding.tensor)] = exact
            before.setdefault(i + 1, [])[:0] = round_to(exact, rounding.tensor, rounding.output, rounding.tensor)
    nodes = list(graph.node)
    del graph.node[:]
    for i in range(len(nodes) + 1):
        graph.node.extend(before.get(i, ()))
        graph.node.extend(nodes[i : i + 1])
    if not any(entry.domain == "" and entry.version >= 13 for entry in model.opset_import):
        return net.model  # no Q/DQ in this opset
    return model


def _round_weights(net: Net, graph: onnx.GraphProto, i: int, shape: tuple[int, ...], axis: int | None, taken: set[str]) -> None:
    """Round the weights of one node that have this shape, or its transpose: another exporter may keep them so."""
    from onnx import numpy_helper

    for position, name in enumerate(net.nodes[i].input):
        weight = net.constant(name) if name in net.constants else None
        if weight is None or weight.dtype.kind != "f" or graph.node[i].input[position] != name or weight.size != int(np.prod(shape)) or weight.size < 2:
            continue
        along = axis
        if axis not in (None, HALF) and weight.shape != tuple(shape):
            along = next((k for k, n in enumerate(weight.shape) if n == shape[axis]), None)
        new = _unused(f"{name}/rounded", taken)
        graph.initializer.append(numpy_helper.from_array(_rounded_weight(weight, along), new))
        graph.node[i].input[position] = new
    for body in _graphs(graph.node[i]):
        for tensor in body.initializer:
            weight = numpy_helper.to_array(tensor)
            if weight.dtype.kind == "f" and weight.shape == tuple(shape):
                tensor.CopyFrom(numpy_helper.from_array(_rounded_weight(weight, axis), tensor.name))


def _rounded_weight(weight: np.ndarray, axis: int | None) -> np.ndarray:
    if axis == HALF:
        return weight.astype(np.float16).astype(weight.dtype)
    over = tuple(k for k in range(weight.ndim) if k != axis) if axis is not None else None
    scale = np.maximum(np.abs(weight).max(axis=over, keepdims=True), 1e-30) / 127
    return (np.rint(weight / scale) * scale).astype(weight.dtype)

"""An ONNX graph (onnx-ir, with or without Q/DQ) as a TFLite subgraph.

Two things are kept lazy, so that no op is emitted that nobody needs:

- **Layout.** A TFLite tensor stores the axes of an ONNX tensor in some order, perhaps with further axes
  of length 1. A `Base` knows the stored orders of one tensor, a `Ref` is how one ONNX value sees it.
  Transpose, Squeeze, Unsqueeze and a Reshape that moves only axes of length 1 make another Ref of the
  same Base. A TRANSPOSE or RESHAPE is emitted when an op asks for an order that is not stored yet, once
  for each order. So NCHW costs nothing between the convolutions of a CNN, which want NHWC.
- **Integers.** A Base holds floats or int8. QuantizeLinear of something that has these integers already
  is free, and DEQUANTIZE is emitted when an op that computes in float reads int8.

An op that reads int8 and whose every reader quantizes its result the same way becomes one int8 op, with
its bias and activation fused. If anything of that is missing, it computes in float on dequantized
activations and dequantized weights: kernels that mix float activations with int8 weights are wrong on
some runtimes. What only moves values (Slice, Concat, MaxPool...) stays int8 whenever its input is.

Ops are lowered by functions in sibling modules, registered with `@lowers("Conv", ranks=(3, 4))`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgekit.backends.tflite.writer import Model, Quant, Subgraph
from edgekit.errors import TargetError
from edgekit.graph import attribute, constant, shape_of

if TYPE_CHECKING:
    import onnx_ir as ir

Order = tuple[int | None, ...]
"""What a stored tensor's axes are: the logical axis at each place, None for a further axis of length 1."""

_HANDLER_MODULES = ("macs", "elementwise", "layout", "reduce", "loop")
_ALL_RANKS = (0, 1, 2, 3, 4, 5, 6)

_HANDLERS: dict[str, Callable[[Lowering, ir.Node], None]] = {}
OPS: dict[str, tuple[int, ...]] = {}
"""{op: ranks of its data input} of what we lower. Complete after `load_handlers`."""

# Between a value and the QuantizeLinear that reads it, these change nothing but where a value stands.
_COMMUTES_WITH_Q = frozenset(["Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Split", "Expand", "Gather", "Concat", "Pad"])


def lowers(*op_types: str, ranks: Sequence[int] = _ALL_RANKS) -> Callable:
    """Register a function (lowering, node) for these ops. It binds every output of the node with `Lowering.bind`."""

    def register(handler: Callable[[Lowering, ir.Node], None]) -> Callable[[Lowering, ir.Node], None]:
        for op_type in op_types:
            _HANDLERS[op_type] = handler
            OPS[op_type] = tuple(ranks)
        return handler

    return register


def load_handlers() -> dict[str, tuple[int, ...]]:
    """Import every module that registers ops; returns OPS."""
    for name in _HANDLER_MODULES:
        import_module(f"edgekit.backends.tflite.{name}")
    return OPS


# --------------------------------------------------------------------------- what an ONNX value is


class Stored(NamedTuple):
    """One TFLite tensor that holds a Base in one order."""

    order: Order
    index: int


@dataclass
class Base:
    """The values of an ONNX tensor, wherever they are stored.

    Attributes:
        shape: logical.
        quant: of the integers, or None for floats and for types that are never quantized.
        stored: the tensors of type `dtype`, the one that the producer wrote first.
        floats: DEQUANTIZEd copies.
        requantized: the same values with other scales.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    quant: Quant | None
    stored: list[Stored]
    floats: list[Stored] = field(default_factory=list)
    requantized: dict[Quant, Base] = field(default_factory=dict)


@dataclass(frozen=True)
class Ref:
    """How one ONNX value sees a Base: its axis i is the Base's axis `axes[i]`, or has length 1 if that is None."""

    base: Base
    axes: tuple[int | None, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(1 if a is None else self.base.shape[a] for a in self.axes)

    @property
    def quant(self) -> Quant | None:
        return self.base.quant

    @property
    def dtype(self) -> str:
        return self.base.dtype

    @property
    def order(self) -> Order:
        """The order of the tensor that the producer wrote, in this value's own axes."""
        mine = {a: i for i, a in enumerate(self.axes) if a is not None}
        return tuple(mine.get(a) if a is not None else None for a in self.base.stored[0].order)

    def view(self, axes: Iterable[int | None]) -> Ref:
        """The same values with other axes: axis i is this value's `axes[i]`, or new and of length 1."""
        return Ref(self.base, tuple(None if a is None else self.axes[a] for a in axes))


@dataclass(frozen=True)
class Constant:
    """An initializer: `array` as floats (or integers that are not quantized), and the int8 behind it if it was quantized."""

    name: str
    array: np.ndarray
    integers: np.ndarray | None = None
    quant: Quant | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape


@dataclass(frozen=True)
class Tail:
    """What one TFLite op can take over behind an ONNX node.

    Attributes:
        value: the value that the op will write.
        activation: `NONE`, `RELU`, `RELU6` or `RELU_N1_TO_1`.
        quant: of `value`, if every reader quantizes it this way.
        nodes: ONNX nodes that the op takes over, the first one included.
        bias: constant [channels] that is added, or None.
    """

    value: ir.Value
    activation: str
    quant: Quant | None
    nodes: tuple[ir.Node, ...]
    bias: np.ndarray | None = None


# --------------------------------------------------------------------------- the lowering


class Lowering:
    """Lowers the nodes of one ONNX graph into one TFLite subgraph.

    Attributes:
        env: {ONNX value name: Ref or Constant} of everything that was lowered.
        made: {ONNX node name: names of the TFLite tensors that its ops write}.
    """

    def __init__(self, sub: Subgraph, made: dict[str, list[str]] | None = None):
        load_handlers()
        self.sub = sub
        self.env: dict[str, Ref | Constant] = {}
        self.made: dict[str, list[str]] = {} if made is None else made
        self._taken_over: set[ir.Node] = set()
        self._shared: dict[tuple, int] = {}

    def child(self, name: str) -> Lowering:
        """A lowering into a new subgraph of the same file, for a loop's body."""
        return Lowering(self.sub.model.subgraph(name), self.made)

    def lower(self, nodes: Iterable[ir.Node]) -> None:
        """Lower nodes in topological order.

        Raises:
            TargetError: an op, or a form of it, that we cannot express; the message names the node.
        """
        for node in nodes:
            if node in self._taken_over:
                continue
            handler = _HANDLERS.get(node.op_type)
            if handler is None:
                raise unsupported(node, "there is no TFLite form of this op", f"known: {', '.join(sorted(OPS))}")
            handler(self, node)

    # ------------------------------------------------------------------ values in

    def ref(self, value: ir.Value) -> Ref:
        """The activation of an ONNX value; a constant becomes one."""
        found = self.env.get(value.name) or self._initializer(value)
        return self._as_activation(found) if isinstance(found, Constant) else found

    def constant(self, value: ir.Value | None) -> Constant | None:
        """The constant behind an ONNX value (an initializer, dequantized or not), or None for an activation."""
        if value is None:
            return None
        found = self.env.get(value.name)
        if found is None and constant(value) is not None:
            found = self._initializer(value)
        return found if isinstance(found, Constant) else None

    def _initializer(self, value: ir.Value) -> Constant:
        array = constant(value)
        if array is None:
            raise TargetError(f"tensor `{value.name}` is used before it is computed", "the graph is not in topological order, or reads an outer graph's tensor")
        found = Constant(value.name, array)
        self.env[value.name] = found
        return found

    def _as_activation(self, value: Constant) -> Ref:
        axes = tuple(range(value.array.ndim))
        if value.integers is not None and len(value.quant.scale) == 1:
            index = self.sub.constant(value.name, value.integers, value.quant)
            return Ref(Base(value.name, value.shape, "int8", value.quant, [Stored(axes, index)]), axes)
        index = self.sub.constant(value.name, value.array)
        return Ref(Base(value.name, value.shape, str(value.array.dtype), None, [Stored(axes, index)]), axes)

    # ------------------------------------------------------------------ values out

    def bind(self, value: ir.Value, ref: Ref | Constant) -> None:
        self.env[value.name] = ref

    def new(self, name: str, shape: Sequence[int], order: Order | None = None, dtype: str = "float32", quant: Quant | None = None) -> Ref:
        """A new tensor of logical `shape`, stored in `order` (as it is if None); its index is `index_of(ref)`."""
        shape = tuple(int(d) for d in shape)
        order = tuple(range(len(shape))) if order is None else order
        if quant is not None:
            dtype = "int8"
        index = self.sub.tensor(name, physical(shape, order), dtype, quant=quant)
        return Ref(Base(name, shape, dtype, quant, [Stored(order, index)]), tuple(range(len(shape))))

    def record(self, node: ir.Node | Iterable[ir.Node], index: int) -> None:
        """Note which TFLite tensor an ONNX node's arithmetic ends up in, for `coverage`."""
        for n in [node] if hasattr(node, "op_type") else node:
            self.made.setdefault(n.name, []).append(self.sub.tensors[index].name)

    def emit(
        self,
        node: ir.Node | Tail,
        op: str,
        inputs: Sequence[int],
        shape: Sequence[int] | None = None,
        order: Order | None = None,
        *,
        quant: Quant | None = None,
        dtype: str = "float32",
        options: dict[str, Any] | None = None,
        name: str | None = None,
    ) -> Ref:
        """Append an op with one new output, and return it. A Tail's last value names it; its nodes are not lowered again."""
        value = node.value if isinstance(node, Tail) else node.outputs[0]
        nodes = node.nodes if isinstance(node, Tail) else (node,)
        out = self.new(name or value.name, shape_of(value) if shape is None else shape, order, dtype, quant)
        self.sub.op(op, inputs, [index_of(out)], options)
        self.record(nodes, index_of(out))
        self._taken_over.update(nodes[1:])
        return out

    # ------------------------------------------------------------------ orders

    def native(self, ref: Ref, order: Order) -> int:
        """The tensor with a value's own type (int8 if it is quantized), its axes in `order`."""
        return self._lay(ref.base, ref.base.stored, _in_base(ref, order))

    def floats(self, ref: Ref, order: Order) -> int:
        """The tensor with a value as float32, its axes in `order`."""
        if ref.quant is None:
            return self.native(ref, order)
        base, wanted = ref.base, _in_base(ref, order)
        for stored in base.floats:
            if stored.order == wanted:
                return stored.index
        source = self._lay(base, base.stored, wanted)
        index = self.sub.tensor(f"{base.name}/float", physical(base.shape, wanted), "float32")
        self.sub.op("DEQUANTIZE", [source], [index])
        base.floats.append(Stored(wanted, index))
        return index

    def _lay(self, base: Base, stored: list[Stored], order: Order) -> int:
        shape, order = physical(base.shape, order), _plain(base.shape, order)
        known = [Stored(_plain(base.shape, s.order), s.index) for s in stored]
        for s in known:
            if s.order == order:
                return s.index
        near = next((s for s in known if _moved(s.order) == _moved(order)), None)
        source = near or known[0]
        if near is None:
            if len(source.order) == len(order):
                index = self._transpose(base, source, _permutation(source.order, order), shape)
                stored.append(Stored(order, index))
                return index
            rank = len(source.order)  # TRANSPOSE, then RESHAPE to the other number of axes
            padded = (*(a for a in order if a is not None), *[None] * (rank - len(_moved(order))))
            index = self._transpose(base, source, _permutation(source.order, padded), physical(base.shape, padded))
            source = Stored(padded, index)
            stored.append(source)
        index = self._copy_of(base, shape)
        self.sub.op("RESHAPE", [source.index, self.ints(shape)], [index], {"newShape": shape})
        stored.append(Stored(order, index))
        return index

    def _transpose(self, base: Base, source: Stored, perm: tuple[int, ...], shape: tuple[int, ...]) -> int:
        index = self._copy_of(base, shape)
        self.sub.op("TRANSPOSE", [source.index, self.ints(perm)], [index])
        return index

    def _copy_of(self, base: Base, shape: tuple[int, ...]) -> int:
        return self.sub.tensor(base.name, shape, base.dtype, quant=base.quant)

    # ------------------------------------------------------------------ constants

    def ints(self, values: Sequence[int] | int) -> int:
        """An int32 constant: axes, shapes, paddings."""
        array = np.array(values, np.int32)
        return self.sub.constant(f"int32{list(np.atleast_1d(array).reshape(-1))}".replace("np.int32(", "").replace(")", ""), array)

    def laid_constant(self, value: Constant, rank: int, order: Order, *, integers: bool = False) -> int:
        """A constant that broadcasts against a tensor of `rank` logical axes, permuted for that tensor's `order`."""
        array = value.integers if integers else value.array
        full = array.reshape((1,) * (rank - array.ndim) + array.shape)
        kept = [a for a in order if a is not None]
        rest = [a for a in range(rank) if a not in kept]  # of length 1
        shape = tuple(1 if a is None else full.shape[a] for a in order)
        moved = full.transpose([*kept, *rest]).reshape(shape)
        if not integers and moved.dtype == np.float64:
            moved = moved.astype(np.float32)
        return self.sub.constant(value.name, np.ascontiguousarray(moved), value.quant if integers else None)

    # ------------------------------------------------------------------ integers

    def quantize(self, ref: Ref, quant: Quant) -> Ref:
        """The value as integers of `quant`: itself if it has them, else one QUANTIZE in the order in which it is stored."""
        if ref.quant == quant:
            return ref
        base = ref.base
        if quant not in base.requantized:
            source = base.stored[0]
            index = self.sub.tensor(f"{base.name}/int8", physical(base.shape, source.order), "int8", quant=quant)
            self.sub.op("QUANTIZE", [source.index], [index])
            base.requantized[quant] = Base(base.name, base.shape, "int8", quant, [Stored(source.order, index)])
        return Ref(base.requantized[quant], ref.axes)

    def tail(self, node: ir.Node, bias_channels: int | None = None) -> Tail:
        """The bias Add and the activation that one op can take over behind `node`, and how its result is quantized.

        Args:
            bias_channels: length of the last axis, if a constant that is added along it may become the op's bias.
        """
        value, nodes, bias, activation = node.outputs[0], [node], None, "NONE"
        reader = _only_reader(value)
        if bias_channels is not None and reader is not None and reader.op_type == "Add":
            other = self.constant(next(v for v in reader.inputs if v is not value)) if reader.inputs[0] is not reader.inputs[1] else None
            row = None if other is None else as_row(other.array, bias_channels)
            if row is not None and shape_of(reader.outputs[0]) == shape_of(value):
                value, bias = reader.outputs[0], row
                nodes.append(reader)
                reader = _only_reader(value)
        fused = None if reader is None else self.fused_activation(reader)
        if fused is not None:
            value, activation = reader.outputs[0], fused
            nodes.append(reader)
        return Tail(value, activation, self.quant_of(value), tuple(nodes), bias)

    def fused_activation(self, node: ir.Node) -> str | None:
        """The activation that TFLite can fuse, if `node` is one."""
        if node.op_type == "Relu":
            return "RELU"
        if node.op_type == "Clip":
            return {(0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1", (0.0, np.inf): "RELU"}.get(self.clip_limits(node))
        return None

    def clip_limits(self, node: ir.Node) -> tuple[float, float] | None:
        """The constant bounds of a Clip, infinite where it has none; None if they are computed."""
        limits = []
        for i, default in ((1, -np.inf), (2, np.inf)):
            value = node.inputs[i] if len(node.inputs) > i else None
            found = self.constant(value)
            if value is not None and found is None:
                return None
            limits.append(default if found is None else float(found.array.reshape(())))
        return limits[0], limits[1]

    def quant_of(self, value: ir.Value) -> Quant | None:
        """The scale and zero point in which every reader of a float value quantizes it, or None."""
        if value.is_graph_output():
            return None
        found: set[Quant | None] = set()
        for node, index in value.uses():
            if node.op_type == "QuantizeLinear" and index == 0:
                found.add(quant_from(self, node))
            elif node.op_type in _COMMUTES_WITH_Q and (index == 0 or node.op_type == "Concat") and not (node.op_type == "Pad" and not self._pads_with_zero(node)):
                found.update(self.quant_of(output) for output in node.outputs if output.uses() or output.is_graph_output())
            else:
                return None
        return found.pop() if len(found) == 1 else None

    def output(self, value: ir.Value, taken: set[int]) -> int:
        """The float tensor of a graph output in ONNX order; a copy if that tensor is in `taken` (an input, or another output) or constant."""
        ref = self.ref(value)
        order = tuple(range(len(ref.shape)))
        index = self.floats(ref, order)
        if index not in taken and not self.sub.tensors[index].is_constant:
            return index
        copy = self.sub.tensor(value.name, ref.shape, self.sub.tensors[index].dtype)
        self.sub.op("RESHAPE", [index, self.ints(ref.shape)], [copy], {"newShape": ref.shape})
        return copy

    def _pads_with_zero(self, node: ir.Node) -> bool:
        value = self.constant(node.inputs[2]) if len(node.inputs) > 2 else None
        return value is None or not value.array.any()

    # ------------------------------------------------------------------ shared ops

    def shared(self, key: tuple, make: Callable[[], int]) -> int:
        """The tensor of an op that several readers need, emitted once."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def pad(self, index: int, pads: Sequence[tuple[int, int]]) -> int:
        """The tensor padded with (before, after) zeros along each of its own axes; int8 is padded with its zero point."""
        pads = tuple((int(b), int(a)) for b, a in pads)
        if not any(b or a for b, a in pads):
            return index
        tensor = self.sub.tensors[index]

        def make() -> int:
            shape = tuple(d + b + a for d, (b, a) in zip(tensor.shape, pads, strict=True))
            out = self.sub.tensor(f"{tensor.name}/padded", shape, tensor.dtype, quant=tensor.quant)
            self.sub.op("PAD", [index, self.ints(pads)], [out])
            return out

        return self.shared(("PAD", index, pads), make)


# --------------------------------------------------------------------------- Q and DQ


def quant_from(low: Lowering, node: ir.Node) -> Quant:
    """Scale and zero point of a QuantizeLinear or DequantizeLinear, as int8: uint8 integers are 128 higher."""
    scale = low.constant(node.inputs[1])
    zero = low.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None or (len(node.inputs) > 2 and node.inputs[2] is not None and zero is None):
        raise unsupported(node, "scale and zero point are not constants")
    zeros = np.zeros(scale.array.size, np.uint8) if zero is None else zero.array.reshape(-1)
    if zeros.dtype not in (np.int8, np.uint8):
        raise unsupported(node, f"integers are {zeros.dtype}, int8 is taken")
    shift = 128 if zeros.dtype == np.uint8 else 0
    return Quant(tuple(float(s) for s in scale.array.reshape(-1)), tuple(int(z) - shift for z in zeros), 0)


@lowers("QuantizeLinear")
def _quantize_linear(low: Lowering, node: ir.Node) -> None:
    quant = quant_from(low, node)
    if len(quant.scale) != 1:
        raise unsupported(node, "an activation with a scale per channel", "TFLite takes one scale per activation")
    low.bind(node.outputs[0], low.quantize(low.ref(node.inputs[0]), quant))


@lowers("DequantizeLinear")
def _dequantize_linear(low: Lowering, node: ir.Node) -> None:
    weight = low.constant(node.inputs[0])
    if weight is None:
        low.bind(node.outputs[0], low.ref(node.inputs[0]))  # it stays int8 until somebody needs floats
        return
    if weight.array.dtype != np.int8:
        raise unsupported(node, f"a {weight.array.dtype} weight", "int8 with zero point 0 is taken")
    quant = quant_from(low, node)
    axis = attribute(node, "axis", 1) % max(weight.array.ndim, 1)
    scales, zeros = np.array(quant.scale, np.float32), np.array(quant.zero_point, np.float32)
    if len(scales) > 1:
        spread = [-1 if i == axis else 1 for i in range(weight.array.ndim)]
        scales, zeros = scales.reshape(spread), zeros.reshape(spread)
    floats = ((weight.array.astype(np.float32) - zeros) * scales).astype(np.float32)
    low.bind(node.outputs[0], Constant(weight.name, floats, weight.array, Quant(quant.scale, quant.zero_point, axis if len(quant.scale) > 1 else 0)))


# --------------------------------------------------------------------------- small helpers


def unsupported(node: ir.Node, why: str, hint: str | None = None) -> TargetError:
    return TargetError(f"node `{node.name}` ({node.op_type}): {why}", hint)


def index_of(ref: Ref) -> int:
    """The tensor that the producer wrote."""
    return ref.base.stored[0].index


def physical(shape: Sequence[int], order: Order) -> tuple[int, ...]:
    """The stored shape of a logical `shape`."""
    return tuple(1 if a is None else int(shape[a]) for a in order)


def as_row(array: np.ndarray, width: int) -> np.ndarray | None:
    """A constant that varies along the last axis only, as [width] floats; None if it is another."""
    if array.size not in (1, width) or (array.ndim and array.shape[-1] != array.size):
        return None
    return np.ascontiguousarray(np.broadcast_to(array.reshape(-1), (width,)), np.float32)


def _in_base(ref: Ref, order: Order) -> Order:
    """An order in a value's axes as one in its Base's; axes of length 1 are all alike."""
    return _plain(ref.base.shape, tuple(None if a is None else ref.axes[a] for a in order))


def _moved(order: Order) -> tuple[int, ...]:
    return tuple(a for a in order if a is not None)


def _plain(shape: tuple[int, ...], order: Order) -> Order:
    """The order with None for every axis of length 1: two orders are the same tensor if these are equal."""
    return tuple(None if a is None or shape[a] == 1 else a for a in order)


def _permutation(source: Order, target: Order) -> tuple[int, ...]:
    """For each place of `target`, the place of `source` with its axis; axes of length 1 in order."""
    units = (i for i, a in enumerate(source) if a is None)
    return tuple(next(units) if a is None else source.index(a) for a in target)


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


# --------------------------------------------------------------------------- a whole graph


@dataclass(frozen=True)
class Lowered:
    """A graph as a file, and where its nodes went: {ONNX node: names of the TFLite tensors that its ops write}."""

    model: Model
    made: dict[str, list[str]]


def lower(graph: ir.Graph, description: str = "") -> Lowered:
    """The TFLite file of an ONNX graph with static shapes. Inputs and outputs are float32, under the ONNX names and in ONNX order.

    Raises:
        TargetError: a node has no TFLite form.
    """
    model = Model(description)
    main = model.subgraph("main")
    low = Lowering(main)
    for value in graph.inputs:
        ref = low.new(value.name, shape_of(value), dtype=dtype_of(value))
        main.inputs[value.name] = index_of(ref)
        quant = low.quant_of(value)
        low.bind(value, ref if quant is None else low.quantize(ref, quant))
    low.lower(graph)
    taken = set(main.inputs.values())
    for value in graph.outputs:
        index = low.output(value, taken)
        taken.add(index)
        main.outputs[value.name] = index
    model.prune()
    return Lowered(model, low.made)


def dtype_of(value: ir.Value) -> str:
    """The type of an ONNX value, as numpy spells it."""
    return str(np.dtype(value.dtype.numpy()))

"""Scan as a WHILE: the step is one subgraph, however many steps there are.

    main    WHILE(i = 0, sequence, states, stacked)
    cond    i < T
    body    SLICE(sequence, i), the step, DYNAMIC_UPDATE_SLICE(stacked, i), i + 1

A state, the sequence and what is stacked over time are int8 inside the loop wherever the step reads
and writes them in the same integers: nothing is rounded between two steps. A backward Scan reads
and writes at T - 1 - i. Subgraphs see nothing of each other but what a WHILE hands on, so the body
gets the sequence whole. The batch, of length 1, is not stored beside the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.backends.tflite.lower import Base, Lowering, Ref, Stored, dtype_of, index_of, lowers, unsupported
from edgekit.backends.tflite.writer import Quant
from edgekit.graph import attribute, shape_of
from edgekit.quant import Scale, quantize

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class _Variable:
    """What a WHILE hands from step to step: indices of what it starts as, what a step begins with and what it ends with.

    `start` is in the graph around the loop, the others are in the body.
    """

    name: str
    start: int
    before: int
    after: int


@lowers("Scan", ranks=(2, 3))
def _scan(low: Lowering, node: ir.Node) -> None:
    loop = _Loop(low, node)
    variables = loop.variables()
    results = _while(low, node.name, variables, loop.body, loop.steps)
    for name, value in loop.given.items():
        stacked = len(shape_of(value)) == 3
        order = (0, 2) if stacked else (0, 1)
        tensor = low.sub.tensors[results[name]]
        base = Base(value.name, shape_of(value), tensor.dtype, tensor.quant, [Stored(order, results[name])])
        low.bind(value, Ref(base, tuple(range(len(base.shape)))))
    for inner in loop.graph:
        if inner.op_type == "MatMul":  # the Scan's arithmetic is that of its products
            low.made.setdefault(node.name, []).extend(low.made.get(inner.name, []))


class _Loop:
    """One Scan on its way into a body: its own variables, and the step between them."""

    def __init__(self, low: Lowering, node: ir.Node):
        self.low, self.node = low, node
        sequences = int(attribute(node, "num_scan_inputs", 1))
        self.states = len(node.inputs) - sequences
        self.steps = shape_of(node.inputs[self.states])[0]
        self.graph = _part_that_is_read(node, self.states)
        self.stacked = [value for value in node.outputs[self.states :] if _is_read(value)]
        self.given = {f"state{k}": value for k, value in enumerate(node.outputs[: self.states])}
        self.given |= {f"stacked{k}": value for k, value in enumerate(self.stacked)}
        self._refuse_unknown_forms()
        self.reads_backward = list(attribute(node, "scan_input_directions", [0] * sequences))
        directions = attribute(node, "scan_output_directions", [0] * (len(node.outputs) - self.states))
        self.writes_backward = [d for d, value in zip(directions, node.outputs[self.states :], strict=True) if _is_read(value)]
        self.body = low.child(f"{node.name}/body")
        self.i = self.body.sub.tensor("i", (), "int32")

    def _refuse_unknown_forms(self) -> None:
        for key in ("scan_input_axes", "scan_output_axes"):
            if any(attribute(self.node, key, [])):
                raise unsupported(self.node, f"`{key}` is {list(attribute(self.node, key, []))}", "steps are taken along the first axis")
        for value in (*self.graph.inputs, *self.graph.outputs):
            if len(shape_of(value)) != 2 or shape_of(value)[0] != 1:
                raise unsupported(self.node, f"`{value.name}` has shape {list(shape_of(value))} in a step, [1, n] is taken", "batch 1")

    def variables(self) -> list[_Variable]:
        main, sub = self.low.sub, self.body.sub
        first = main.constant("int32[0]", np.array(0, np.int32))
        sequences = [self._sequence(k) for k in range(len(self.reads_backward))]
        before = [self._enter(k) for k in range(self.states)]
        self.body.lower(self.graph)
        states = [self._leave(k, before[k]) for k in range(self.states)]
        stacks = [self._stack(k) for k in range(len(self.stacked))]
        after = sub.tensor("i/next", (), "int32")
        sub.op("ADD", [self.i, sub.constant("int32[1]", np.array(1, np.int32))], [after])
        return [_Variable("i", first, self.i, after), *sequences, *states, *stacks]

    def _place(self, backward: int) -> int:
        """Where this step's part of a [T, n] tensor begins: [i, 0], or [T - 1 - i, 0]."""
        sub = self.body.sub

        def make() -> int:
            at = self.i
            if backward:
                at = sub.tensor("i/backward", (), "int32")
                sub.op("SUB", [sub.constant(f"int32[{self.steps - 1}]", np.array(self.steps - 1, np.int32)), self.i], [at])
            place = sub.tensor("place", (2,), "int32")
            sub.op("PACK", [at, sub.constant("int32[0]", np.array(0, np.int32))], [place], {"valuesCount": 2, "axis": 0})
            return place

        return self.body.shared(("place", bool(backward)), make)

    def _sequence(self, k: int) -> _Variable:
        """A scan input: the loop hands it on as it is, and each step slices its part out."""
        outer, inner = self.low.ref(self.node.inputs[self.states + k]), self.graph.inputs[self.states + k]
        quant = self.body.quant_of(inner)
        width, name = shape_of(inner)[1], f"sequence{k}"
        if quant is not None:
            outer = self.low.quantize(outer, quant)
        start = self.low.native(outer, (0, 1, 2)) if quant is not None else self.low.floats(outer, (0, 1, 2))
        start = _reshaped(self.low, start, (self.steps, width))
        dtype = "float32" if quant is None else "int8"
        whole = self.body.sub.tensor(f"{inner.name}/all", (self.steps, width), dtype, quant=quant)
        part = self.body.new(inner.name, shape_of(inner), dtype=dtype, quant=quant)
        self.body.sub.op("SLICE", [whole, self._place(self.reads_backward[k]), self.body.ints((1, width))], [index_of(part)])
        self.body.bind(inner, part)
        return _Variable(name, start, whole, whole)

    def _enter(self, k: int) -> Ref:
        """A state as the step begins with it: int8 if the step reads it so."""
        inner = self.graph.inputs[k]
        state = self.body.new(inner.name, shape_of(inner), dtype=dtype_of(inner), quant=self.body.quant_of(inner))
        self.body.bind(inner, state)
        return state

    def _leave(self, k: int, before: Ref) -> _Variable:
        """A state as the step ends with it, in the form in which it begins.

        Raises:
            TargetError: it is read and written in integers of different scales.
        """
        outer, after = self.node.inputs[k], self.body.ref(self.graph.outputs[k])
        if before.quant is not None and after.quant != before.quant:
            written = "floats" if after.quant is None else f"scale {after.quant.scale[0]:.6g}, zero point {after.quant.zero_point[0]}"
            read = f"scale {before.quant.scale[0]:.6g}, zero point {before.quant.zero_point[0]}"
            raise unsupported(self.node, f"state {k} is read with {read} and written with {written}", "both ends of a state have one range")
        order = (0, 1)
        left = self.body.native(after, order) if before.quant is not None else self.body.floats(after, order)
        return _Variable(f"state{k}", self._start(outer, before.quant), index_of(before), left)

    def _start(self, outer: ir.Value, quant: Quant | None) -> int:
        """The tensor with a state's first value; integers of a constant are made here, not on the device."""
        constant = self.low.constant(outer)
        if constant is not None and quant is not None:
            integers = quantize(constant.array, Scale(quant.scale[0], quant.zero_point[0]))
            return self.low.sub.constant(f"{constant.name}/int8", integers, quant)
        ref = self.low.ref(outer)
        return self.low.floats(ref, (0, 1)) if quant is None else self.low.native(self.low.quantize(ref, quant), (0, 1))

    def _stack(self, k: int) -> _Variable:
        """What the step gives out, put beside what the steps before gave."""
        ref, main, sub = self.body.ref(self.graph.outputs[self.states + k]), self.low.sub, self.body.sub
        width = ref.shape[1]
        value, shape = self.body.native(ref, (0, 1)), (self.steps, ref.shape[1])
        # Every step overwrites its part: any content will do to start with, as long as it costs no room in the file.
        start = main.tensor(f"{self.node.name}/stacked{k}", shape, ref.dtype, quant=ref.quant)
        nothing = main.constant(f"nothing/{ref.dtype}", np.zeros((1, 1), ref.dtype), ref.quant)
        main.op("BROADCAST_TO", [nothing, self.low.ints((self.steps, width))], [start])
        before, after = (sub.tensor(f"stacked{k}/{when}", shape, ref.dtype, quant=ref.quant) for when in ("before", "after"))
        sub.op("DYNAMIC_UPDATE_SLICE", [before, value, self._place(self.writes_backward[k])], [after])
        return _Variable(f"stacked{k}", start, before, after)


def _while(low: Lowering, name: str, variables: list[_Variable], body: Lowering, steps: int) -> dict[str, int]:
    """The op and its condition; returns {variable: the tensor with its last value}."""
    main, inside = low.sub, body.sub
    cond = main.model.subgraph(f"{name}/cond")
    like = [inside.tensors[v.before] for v in variables]
    cond.inputs = {v.name: cond.tensor(v.name, t.shape, t.dtype, quant=t.quant) for v, t in zip(variables, like, strict=True)}
    goes_on = cond.tensor("goes_on", (), "bool")
    cond.op("LESS", [cond.inputs["i"], cond.constant("steps", np.array(steps, np.int32))], [goes_on])
    cond.outputs = {"goes_on": goes_on}
    inside.inputs = {v.name: v.before for v in variables}
    inside.outputs = {v.name: v.after for v in variables}
    results = {v.name: main.tensor(f"{name}/{v.name}", t.shape, t.dtype, quant=t.quant) for v, t in zip(variables, like, strict=True)}
    options = {"condSubgraphIndex": cond.index, "bodySubgraphIndex": inside.index}
    main.op("WHILE", [v.start for v in variables], list(results.values()), options)
    return results


def _reshaped(low: Lowering, index: int, shape: tuple[int, ...]) -> int:
    tensor = low.sub.tensors[index]
    if tensor.shape == shape:
        return index

    def make() -> int:
        flat = low.sub.tensor(f"{tensor.name}/flat", shape, tensor.dtype, quant=tensor.quant)
        low.sub.op("RESHAPE", [index, low.ints(shape)], [flat], {"newShape": shape})
        return flat

    return low.shared(("reshape", index, shape), make)


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _part_that_is_read(node: ir.Node, states: int) -> ir.Graph:
    """A copy of the body without the stacked outputs that only calibration read."""
    import onnx_ir as ir
    import onnx_ir.passes.common as passes

    body = node.attributes["body"].value.clone()
    for k in reversed(range(states, len(node.outputs))):
        if not _is_read(node.outputs[k]):
            del body.outputs[k]
    passes.RemoveUnusedNodesPass()(ir.Model(body, ir_version=8))
    return body

"""LSTM and GRU as one product over all time steps and a loop over what depends on the state.

    gates_x = x W + b                       one MatMul for all steps, outside
    Scan: (h, c, gates_x[t]) -> (h, c)      the step

A runtime without a recurrent op that takes our numbers has MatMul, element-wise ops and some form
of loop. A net of one time step whose state is its caller's needs no loop: its step then stands in
the graph itself, and both ends of the state are plain tensors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.graph import Editor, attribute, constant, shape_of
from edgekit.rewrites.change import Change, free_name, nodes_of

if TYPE_CHECKING:
    import onnx_ir as ir

_ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"]}


def rnn_to_scan(model: ir.Model) -> list[Change]:
    """LSTM and GRU -> MatMul over all time steps, and a Scan of the rest; of one step -> the step itself.

    The Scan keeps the op's node name, with `/forward` and `/reverse` behind it if there are two
    directions. Its outputs are the last states, then, stacked over time, the hidden state and what
    calibration has to see of the inside; these have the name of the body's tensor and `_all`. The
    body reads nothing from outside but its inputs, and its h·R is the MatMul `<module>/h_matmul`.

    requires: constant weights, the default activations, sequences of full length, time first; no
        clipping, no peepholes, no coupled gates. torch exports nothing else.
    ensures: no such LSTM or GRU.
    """
    edit, changes = Editor(model), []
    for node in nodes_of(model, "LSTM", "GRU"):
        rnn = _read(node)
        if rnn is None:
            continue
        name = free_name(edit, node)
        words: dict[str, str] = {}
        directions = [_direction(edit, node, rnn, d, name, words) for d in range(len(rnn.backward))]
        _put_sequence(edit, node, [sequence for sequence, _ in directions], name, words)
        for k in range(len(rnn.initial)):
            _put_state(edit, node, 1 + k, [last[k] for _, last in directions], f"{_module(name)}/{'hc'[k]}_last", words)
        changes.append(Change("rnn_to_scan", name, words))
    return changes


def _module(name: str) -> str:
    """`lstm_a/LSTM` -> `lstm_a`; the second layer's `rnn/GRU_1` -> `rnn_1`."""
    return re.sub(r"/(?:LSTM|GRU)(_\d+)?(?=/|$)", r"\1", name)


# --------------------------------------------------------------------------- the op


@dataclass(frozen=True)
class _Rnn:
    """What an LSTM or GRU node says; `g` is 4 gates (input, output, forget, cell) or 3 (update, reset, hidden).

    Attributes:
        w: [directions, g * hidden, in]; r: [directions, g * hidden, hidden]; b: [directions, 2 * g * hidden].
        initial: h, and c of an LSTM: [directions, batch, hidden], or None for zeros.
        backward: per direction, whether it runs from the last step to the first.
        reset_after: of a GRU: the reset gate is applied to the product, as torch does, not to the state.
    """

    kind: str
    w: np.ndarray
    r: np.ndarray
    b: np.ndarray
    initial: tuple[ir.Value | None, ...]
    backward: tuple[bool, ...]
    reset_after: bool


def _read(node: ir.Node) -> _Rnn | None:
    """The node's content, or None if it is of a form that this rewrite does not take."""
    x, w, r, b, lengths, *states, peepholes = [*node.inputs, *[None] * (8 - len(node.inputs))]
    w, r = constant(w), constant(r)
    if w is None or r is None or peepholes is not None:
        return None
    bias = np.zeros((len(w), 2 * w.shape[1]), np.float32) if b is None else constant(b)
    if bias is None or (lengths is not None and not np.all(constant(lengths) == shape_of(x)[0])):
        return None
    direction = attribute(node, "direction", "forward")
    backward = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]
    usual = _ACTIVATIONS[node.op_type] * len(backward)
    other = attribute(node, "input_forget", 0) or attribute(node, "layout", 0) or attribute(node, "clip", None) is not None
    if other or list(attribute(node, "activations", usual)) != usual:
        return None
    states = states[: 2 if node.op_type == "LSTM" else 1]
    return _Rnn(node.op_type, w, r, bias, tuple(states), backward, bool(attribute(node, "linear_before_reset", 0)))


def _direction(edit: Editor, node: ir.Node, rnn: _Rnn, d: int, name: str, words: dict[str, str]) -> tuple[ir.Value, list[ir.Value]]:
    """One direction -> (hidden states [T, batch, hidden], [last states [batch, hidden]])."""
    if len(rnn.backward) > 1:
        name = f"{name}/{'reverse' if rnn.backward[d] else 'forward'}"
    module = _module(name)
    # Without a caller's state a single step has nothing to multiply R by but a constant: rare, and the loop does it.
    inline = shape_of(node.inputs[0])[0] == 1 and all(v is not None and constant(v) is None for v in rnn.initial)
    cell = _Cell(rnn.kind, module, rnn.r[d], rnn.b[d], rnn.reset_after)
    gates = _gates_of_x(edit, node, rnn.w[d], cell.outer_bias, module, inline, words)
    states = [_initial(edit, node, value, d, f"{module}/{'hc'[k]}0", words) for k, value in enumerate(rnn.initial)]
    if not inline:
        return _scan(edit, node, cell, gates, states, rnn.backward[d], name, words)
    place = _Place(edit, module, before=node)
    after = cell.step(place, gates, states)
    words.update(place.words)
    return _unsqueeze(edit, node, after[0], 0, f"{module}/h_sequence", words), after


def _gates_of_x(edit: Editor, node: ir.Node, w: np.ndarray, bias: np.ndarray, module: str, inline: bool, words: dict[str, str]) -> ir.Value:
    """x W + b for all steps: [T, batch, in] -> [T, batch, g * hidden]; [batch, g * hidden] of a single one."""
    x = node.inputs[0]
    if inline:
        axes = edit.constant(f"{module}.first", np.array([0], np.int64))
        source = x.name
        x = edit.add(node, "Squeeze", [x, axes], shape_of(x)[1:], name=f"{module}/x_step")
        words[x.name] = f"same_as {source}"
    shape = (*shape_of(x)[:-1], len(w))
    y = edit.add(node, "MatMul", [x, edit.constant(f"{module}.W", w.T)], shape, name=f"{module}/x_matmul")
    words[y.name] = "observe"
    if bias.any():
        y = edit.add(node, "Add", [y, edit.constant(f"{module}.B", bias)], shape, name=f"{module}/x_bias")
        words[y.name] = "observe"
    return y


def _initial(edit: Editor, node: ir.Node, value: ir.Value | None, d: int, name: str, words: dict[str, str]) -> ir.Value:
    """The state before the first step of direction `d`, [batch, hidden]."""
    batch, hidden = shape_of(node.inputs[0])[1], shape_of(node.inputs[2])[2]
    if value is None:
        return edit.constant(name, np.zeros((batch, hidden), np.float32))
    if (array := constant(value)) is not None:
        return edit.constant(name, array[d])
    source = value.name
    if shape_of(value)[0] > 1:
        bounds = [edit.constant(f"{name}.{k}", np.array([i], np.int64)) for k, i in (("start", d), ("end", d + 1), ("axis", 0))]
        value = edit.add(node, "Slice", [value, *bounds], (1, batch, hidden), name=f"{name}/slice")
        words[value.name] = "observe"
        source = value.name
    state = edit.add(node, "Squeeze", [value, edit.constant(f"{name}.axes", np.array([0], np.int64))], (batch, hidden), name=name)
    words[state.name] = f"same_as {source}"
    return state


# --------------------------------------------------------------------------- the step


@dataclass
class _Place:
    """Where a step's nodes go: before a node of the graph, or into a list that becomes a loop's body."""

    edit: Editor
    module: str
    before: ir.Node | None = None
    nodes: list[ir.Node] = field(default_factory=list)
    weights: list[ir.Value] = field(default_factory=list)
    words: dict[str, str] = field(default_factory=dict)

    def add(self, op: str, name: str, inputs: list[ir.Value], *shapes: tuple[int, ...], word: str = "observe", **attributes: Any) -> Any:
        """A node `<module>/<name>`; returns its output, or the tuple of its outputs if there are several shapes."""
        import onnx_ir as ir

        node = ir.node(op, inputs, attributes, num_outputs=len(shapes), name=self.edit.unique(f"{self.module}/{name}"))
        for i, (value, shape) in enumerate(zip(node.outputs, shapes, strict=True)):
            value.name = self.edit.unique(f"{node.name}_out{i if len(shapes) > 1 else ''}")
            value.shape, value.dtype = ir.Shape(shape), inputs[0].dtype
            self.words[value.name] = word
        if self.before is None:
            self.nodes.append(node)
        else:
            self.edit.graph.insert_before(self.before, node)
        return node.outputs[0] if len(shapes) == 1 else tuple(node.outputs)

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        import onnx_ir as ir

        name = f"{self.module}.{name}"
        if self.before is not None:
            return self.edit.constant(name, array)
        name = self.edit.unique(name)
        value = ir.Value(name=name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
        value.dtype, value.shape = value.const_value.dtype, ir.Shape(array.shape)
        self.weights.append(value)
        return value

    def split(self, name: str, x: ir.Value, widths: list[int], word: str = "observe") -> tuple[ir.Value, ...]:
        """`x` cut along its last axis."""
        sizes = self.constant(f"{name}.sizes", np.array(widths, np.int64))
        return self.add("Split", name, [x, sizes], *[(*shape_of(x)[:-1], n) for n in widths], word=word, axis=-1)


class _Cell:
    """The step of one direction: [batch, g * hidden] gates of x and the states -> the states after it."""

    def __init__(self, kind: str, module: str, r: np.ndarray, b: np.ndarray, reset_after: bool):
        self.kind, self.module, self.r, self.reset_after = kind, module, r, reset_after
        self.hidden = r.shape[1]
        of_x, of_h = np.split(b, 2)
        # torch's GRU multiplies R's bias of the hidden gate by the reset gate, so that one stays inside.
        self.inner_bias = of_h * (np.arange(len(of_h)) >= 2 * self.hidden) if kind == "GRU" and reset_after else np.zeros_like(of_h)
        self.outer_bias = of_x + of_h - self.inner_bias

    def step(self, place: _Place, gates_x: ir.Value, states: list[ir.Value]) -> list[ir.Value]:
        return self._lstm(place, gates_x, *states) if self.kind == "LSTM" else self._gru(place, gates_x, *states)

    def _lstm(self, place: _Place, gates_x: ir.Value, h: ir.Value, c: ir.Value) -> list[ir.Value]:
        n, one, all_gates = self.hidden, shape_of(h), shape_of(gates_x)
        three = (*one[:-1], 3 * n)
        gates_h = place.add("MatMul", "h_matmul", [h, place.constant("R", self.r.T)], all_gates)
        gates = place.add("Add", "gates", [gates_x, gates_h], all_gates)
        doors, cell = place.split("gates_split", gates, [3 * n, n])
        doors = place.add("Sigmoid", "doors", [doors], three, word="bound 0 1")
        i, o, f = place.split("doors_split", doors, [n, n, n], word="bound 0 1")
        cell = place.add("Tanh", "cell", [cell], one, word="bound -1 1")
        kept = place.add("Mul", "kept", [f, c], one)
        new = place.add("Mul", "new", [i, cell], one, word="bound -1 1")
        c = place.add("Add", "c", [kept, new], one)
        squashed = place.add("Tanh", "squashed", [c], one, word="bound -1 1")
        return [place.add("Mul", "h", [o, squashed], one, word="bound -1 1"), c]

    def _gru(self, place: _Place, gates_x: ir.Value, h: ir.Value) -> list[ir.Value]:
        n, one = self.hidden, shape_of(h)
        two = (*one[:-1], 2 * n)
        doors_x, hidden_x = place.split("x_split", gates_x, [2 * n, n])
        if self.reset_after:
            gates_h = place.add("MatMul", "h_matmul", [h, place.constant("R", self.r.T)], (*one[:-1], 3 * n))
            if self.inner_bias.any():
                gates_h = place.add("Add", "h_bias", [gates_h, place.constant("Rb", self.inner_bias)], (*one[:-1], 3 * n))
            doors_h, hidden_h = place.split("h_split", gates_h, [2 * n, n])
        else:
            doors_h = place.add("MatMul", "h_matmul", [h, place.constant("R", self.r[: 2 * n].T)], two)
        doors = place.add("Add", "gates", [doors_x, doors_h], two)
        doors = place.add("Sigmoid", "doors", [doors], two, word="bound 0 1")
        z, r = place.split("doors_split", doors, [n, n], word="bound 0 1")
        if self.reset_after:
            reset = place.add("Mul", "reset", [r, hidden_h], one)
        else:
            reset = place.add("Mul", "reset_h", [r, h], one)
            reset = place.add("MatMul", "reset_matmul", [reset, place.constant("Rh", self.r[2 * n :].T)], one)
        hidden = place.add("Add", "hidden_gate", [hidden_x, reset], one)
        hidden = place.add("Tanh", "hidden", [hidden], one, word="bound -1 1")
        back = place.add("Sub", "back", [h, hidden], one)
        kept = place.add("Mul", "kept", [z, back], one)
        return [place.add("Add", "h", [hidden, kept], one)]


# --------------------------------------------------------------------------- the loop


def _scan(
    edit: Editor, node: ir.Node, cell: _Cell, gates: ir.Value, states: list[ir.Value], backward: bool, name: str, words: dict[str, str]
) -> tuple[ir.Value, list[ir.Value]]:
    """A Scan of the step -> (hidden states over time, last states)."""
    import onnx_ir as ir

    place = _Place(edit, cell.module)
    inside = [_value(edit, f"{cell.module}/{'hc'[k]}_in", shape_of(v)) for k, v in enumerate(states)]
    gates_t = _value(edit, f"{cell.module}/gates_x", shape_of(gates)[1:])
    after = cell.step(place, gates_t, inside)
    # What no operator bounds has to be seen by calibration. Splits hold a part of what stands before them.
    seen = [after[0]] + [
        n.outputs[0] for n in place.nodes if n.op_type in ("MatMul", "Add", "Sub", "Mul") and n.outputs[0] is not after[0]
    ]
    stacked = [place.add("Identity", f"{_stem(v)}_t", [v], shape_of(v)) for v in seen]
    body = ir.Graph([*inside, gates_t], [*after, *stacked], nodes=place.nodes, initializers=place.weights, opset_imports={"": 17}, name=f"{name}/body")

    attributes: dict[str, Any] = {"num_scan_inputs": 1}
    if backward:
        attributes |= {"scan_input_directions": [1], "scan_output_directions": [1] * len(stacked)}
    scan = ir.node("Scan", [*states, gates], attributes, num_outputs=len(after) + len(stacked), name=edit.unique(name))
    scan.attributes.add(ir.AttrGraph("body", body))
    lasts = [f"{cell.module}/{'hc'[k]}_last" for k in range(len(after))]
    alls = [f"{v.name.removesuffix('_out')}_all" for v in seen]
    steps = shape_of(gates)[0]
    shapes = [*map(shape_of, after), *((steps, *shape_of(v)) for v in seen)]
    for value, wanted, shape in zip(scan.outputs, [*lasts, *alls], shapes, strict=True):
        value.name, value.shape, value.dtype = edit.unique(wanted), ir.Shape(shape), ir.DataType.FLOAT
        words[value.name] = "observe"
    edit.graph.insert_before(node, scan)
    return scan.outputs[len(after)], list(scan.outputs[: len(after)])


def _value(edit: Editor, name: str, shape: tuple[int, ...]) -> ir.Value:
    import onnx_ir as ir

    return ir.Value(name=edit.unique(name), shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def _stem(value: ir.Value) -> str:
    """`lstm_a/h_matmul_out` -> `h_matmul`."""
    return value.name.rsplit("/", 1)[-1].removesuffix("_out")


# --------------------------------------------------------------------------- the op's outputs


def _put_sequence(edit: Editor, node: ir.Node, sequences: list[ir.Value], name: str, words: dict[str, str]) -> None:
    """Let readers of Y [T, directions, batch, hidden] read the directions' [T, batch, hidden]."""
    y = node.outputs[0]
    if not (y.uses() or y.is_graph_output()):
        return
    known = _merged(y, len(sequences))
    if known is not None and len(sequences) == 1:
        _take(edit, known, sequences[0], words)
        return
    if known is not None:
        joined = edit.add(node, "Concat", sequences, shape_of(known), {"axis": 2}, f"{_module(name)}/directions")
        edit.take_over(known, joined)
        return
    parts = [_unsqueeze(edit, node, sequence, 1, f"{_module(name)}/h_sequence", words) for sequence in sequences]
    _join(edit, node, y, parts, 1, f"{_module(name)}/directions", words)


def _merged(y: ir.Value, directions: int) -> ir.Value | None:
    """What torch's export makes of Y: [T, batch, directions * hidden], by a Squeeze, or by a Transpose and a Reshape."""
    uses = list(y.uses())
    if len(uses) != 1 or y.is_graph_output():
        return None
    reader = uses[0].node
    if directions == 1 and reader.op_type == "Squeeze":
        axes = constant(reader.inputs[1]) if len(reader.inputs) > 1 else None
        return reader.outputs[0] if axes is not None and [int(a) % 4 for a in axes] == [1] else None
    if directions == 2 and reader.op_type == "Transpose" and list(attribute(reader, "perm", [])) == [0, 2, 1, 3]:
        after = list(reader.outputs[0].uses())
        steps, _, batch, hidden = shape_of(y)
        if len(after) == 1 and after[0].node.op_type == "Reshape" and shape_of(after[0].node.outputs[0]) == (steps, batch, 2 * hidden):
            return after[0].node.outputs[0]
    return None


def _put_state(edit: Editor, node: ir.Node, index: int, lasts: list[ir.Value], name: str, words: dict[str, str]) -> None:
    """Y_h or Y_c [directions, batch, hidden] of the directions' last states."""
    if len(node.outputs) <= index or not (node.outputs[index].uses() or node.outputs[index].is_graph_output()):
        return
    parts = [_unsqueeze(edit, node, last, 0, f"{name}_state", words) for last in lasts]
    _join(edit, node, node.outputs[index], parts, 0, f"{name}_directions", words)


def _join(edit: Editor, node: ir.Node, old: ir.Value, parts: list[ir.Value], axis: int, name: str, words: dict[str, str]) -> None:
    if len(parts) == 1:
        _take(edit, old, parts[0], words)
    else:
        edit.take_over(old, edit.add(node, "Concat", parts, shape_of(old), {"axis": axis}, name))


def _unsqueeze(edit: Editor, node: ir.Node, x: ir.Value, axis: int, name: str, words: dict[str, str]) -> ir.Value:
    shape = list(shape_of(x))
    shape.insert(axis, 1)
    y = edit.add(node, "Unsqueeze", [x, edit.constant(f"{name}.axes", np.array([axis], np.int64))], shape, name=name)
    words[y.name] = f"same_as {x.name}"
    return y


def _take(edit: Editor, old: ir.Value, new: ir.Value, words: dict[str, str]) -> None:
    """`new` takes the name of `old`, and what was said to be the same as `new` now is the same as that name."""
    before = new.name
    words.pop(before, None)
    edit.take_over(old, new)
    for tensor, word in words.items():
        if word == f"same_as {before}":
            words[tensor] = f"same_as {new.name}"

"""Channels read where they were made: shuffles, and the splits and joins around them, become the order of weights.

ShuffleNet's units pass half of their channels by, join them with what the other half became, and shuffle. All that moves,
unit after unit, and computes nothing: on an INT8 engine it is half of the time. But a channel is read by one layer or two,
and layers do not care in which order they read. So every layer that makes channels writes those of one reader side by side
(its weights are put in that order, once), and each reader joins the pieces that are its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgekit.graph import Editor, attribute, constant, is_float, shape_of
from edgekit.rewrites.change import Change, free_name, nodes_of

if TYPE_CHECKING:
    import onnx_ir as ir

Lanes = list[tuple["ir.Value", int]]
"""For every channel of a tensor, the tensor that it was computed in and its place there."""

PIECES = 4  # of one tensor in another, at most on average: more would cost what the shuffle did


def multiplier_to_concat(model: ir.Model) -> list[Change]:
    """A Conv that makes m channels of each single one -> m depthwise Convs, Concat, and a Gather that shuffles.

    Engines have fast kernels for one channel to one, and slow ones for groups of another shape (OpenVINO's for INT8 takes
    twice as long as in float32). `direct_channels` then has the Gather vanish. An activation behind the Conv goes to each part,
    for engines join it to the layer that it follows.

    ensures: no Conv with one input channel a group and several outputs.
    """
    edit, changes = Editor(model), []
    for node in nodes_of(model, "Conv"):
        weight, bias = constant(node.inputs[1]), constant(node.inputs[2]) if len(node.inputs) > 2 else None
        x, old = node.inputs[0], node.outputs[0]
        if weight is None or weight.shape[1] != 1 or (len(node.inputs) > 2 and bias is None):
            continue
        groups, out = shape_of(x)[1], len(weight)
        times = out // groups
        if times < 2 or groups < 2 or attribute(node, "group", 1) != groups:
            continue
        users = [use.node for use in old.uses()]
        activation = users[0] if len(users) == 1 and users[0].op_type in ("Clip", "Relu") and not old.is_graph_output() else None
        name, parts = free_name(edit, node), []
        tensors: dict[str, str] = {}
        shape = (shape_of(old)[0], groups, *shape_of(old)[2:])
        for j in range(times):
            inputs = [x, edit.constant(f"{name}.weight{j}", weight[j::times])]
            if bias is not None:
                inputs.append(edit.constant(f"{name}.bias{j}", bias[j::times]))
            part = edit.add(node, "Conv", inputs, shape, dict(node.attributes), f"{name}/times{j}")
            tensors[part.name] = "observe"
            if activation is not None:
                part = edit.add(node, activation.op_type, [part, *activation.inputs[1:]], shape, dict(activation.attributes), f"{activation.name}/times{j}")
                tensors[part.name] = "observe"
            parts.append(part)
        if activation is not None:
            old = activation.outputs[0]
        joined = edit.add(node, "Concat", parts, shape_of(old), {"axis": 1}, f"{name}/join")
        order = edit.constant(f"{name}.order", np.arange(out).reshape(times, groups).T.reshape(-1))
        edit.take_over(old, edit.add(node, "Gather", [joined, order], shape_of(old), {"axis": 1}, name))
        tensors[joined.name] = f"same_as {joined.uses()[0].node.outputs[0].name}"
        changes.append(Change("multiplier_to_concat", name, tensors))
    return changes


def direct_channels(model: ir.Model) -> list[Change]:
    """Gather, Slice, Split and Concat over channels, shuffles among them -> weights in another order, one Split behind a layer, one Concat before another.

    Layers are dense Convs, Gemms and MatMuls on [n, c]; what works on each channel by itself (activations, pools, depthwise
    Convs, sums) goes along in the order of its channels. What fixes an order (an output, a grouped Conv) has it kept.

    requires: channels are axis 1; something shuffles them. Left as they are: shuffles that would fall into more than PIECES
        pieces of a tensor, since another order is fixed on their way.
    ensures: none of these ops between the layers of a rewritten net but Split and Concat; tensors in another order have names of their own.
    """
    net = _Net(model)
    return [change for component in net.components() for change in net.rewrite(component)]


# --------------------------------------------------------------------------- what moves channels


def _lanes_through(node: ir.Node, lanes_of: dict[ir.Value, Lanes]) -> dict[ir.Value, Lanes] | None:
    """What a node that only moves channels does to them: {output: lanes}; None for every other node."""

    def lanes(value: ir.Value) -> Lanes:
        return lanes_of.get(value) or [(value, i) for i in range(shape_of(value)[1])]

    x, out = (node.inputs[0] if node.inputs else None), node.outputs[0]
    if x is None or constant(x) is not None or not is_float(out) or len(shape_of(x)) < 2:
        return None
    rank = len(shape_of(x))
    if node.op_type == "Reshape":
        order = _shuffle_by_reshape(node)
        return None if order is None else {out: [lanes(_before_shuffle(node))[i] for i in order]}
    if node.op_type == "Slice":
        chosen = _sliced(node, shape_of(x)[1])
        return None if chosen is None else {out: [lanes(x)[i] for i in chosen]}
    if attribute(node, "axis", 0) % rank != 1:
        return None
    if node.op_type == "Gather":
        indices = constant(node.inputs[1])
        return None if indices is None or indices.ndim != 1 else {out: [lanes(x)[i] for i in indices.tolist()]}
    if node.op_type == "Concat":
        return None if any(constant(value) is not None for value in node.inputs) else {out: [lane for value in node.inputs for lane in lanes(value)]}
    if node.op_type == "Split":
        ends = np.cumsum([shape_of(part)[1] for part in node.outputs])
        return {part: lanes(x)[end - shape_of(part)[1] : end] for part, end in zip(node.outputs, ends.tolist(), strict=True)}
    return None


def _sliced(node: ir.Node, channels: int) -> range | None:
    """The channels that a Slice of no other axis keeps."""
    parts = [constant(value) for value in node.inputs[1:]]
    if len(parts) < 3 or any(part is None or part.size != 1 for part in parts) or int(parts[2].item()) % len(shape_of(node.inputs[0])) != 1:
        return None
    start, end, step = (int(part.item()) for part in (*parts[:2], parts[3] if len(parts) > 3 else np.array(1)))
    return range(channels)[slice(start, end, step)] if step > 0 else None


def _shuffle_by_reshape(node: ir.Node) -> list[int] | None:
    """The order of channels that Reshape, Transpose, Reshape make of an axis of g groups, as public code writes a shuffle."""
    turn = node.inputs[0].producer()
    apart = turn.inputs[0].producer() if turn is not None and turn.op_type == "Transpose" else None
    if apart is None or apart.op_type != "Reshape" or any(len(value.uses()) != 1 or value.is_graph_output() for value in (turn.outputs[0], apart.outputs[0])):
        return None
    before, wide, after = shape_of(apart.inputs[0]), shape_of(apart.outputs[0]), shape_of(node.outputs[0])
    if before != after or len(wide) != len(before) + 1 or wide[0] != before[0] or wide[3:] != before[2:]:
        return None
    if list(attribute(turn, "perm", [])) != [0, 2, 1, *range(3, len(wide))]:
        return None
    return np.arange(before[1]).reshape(wide[1], wide[2]).T.reshape(-1).tolist()


def _before_shuffle(node: ir.Node) -> ir.Value:
    return node.inputs[0].producer().inputs[0].producer().inputs[0]


def _shuffles(node: ir.Node) -> bool:
    return node.op_type in ("Gather", "Reshape")


# --------------------------------------------------------------------------- what computes

ONE_BY_ONE = frozenset(["Abs", "Clip", "Elu", "Erf", "Exp", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Neg", "Relu", "Sigmoid", "Softplus", "Sqrt", "Tanh"])
POOLS = frozenset(["AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"])
PAIRS = frozenset(["Add", "Div", "Max", "Min", "Mul", "Sub"])


@dataclass
class _Roles:
    """How the channels of a node's tensors hang together.

    Attributes:
        alike: tensors whose channels correspond, one to one.
        weights: (input, axis, tensor): constants with one entry along `axis` for each channel of `tensor`, which may have any order if they follow.
        fixed: tensors whose order stays.
    """

    alike: list[ir.Value] = field(default_factory=list)
    weights: list[tuple[int, int, ir.Value]] = field(default_factory=list)
    fixed: list[ir.Value] = field(default_factory=list)


def _roles(node: ir.Node) -> _Roles:
    values = [value for value in (*node.inputs, *node.outputs) if value is not None and constant(value) is None and value.name]
    out, x = node.outputs[0], node.inputs[0] if node.inputs else None
    if x is None or (constant(x) is not None and node.op_type not in PAIRS):
        return _Roles(fixed=values)
    if node.op_type in ("Conv", "Gemm", "MatMul"):
        return _layer(node, x, out) or _Roles(fixed=values)
    same_channels = len(shape_of(x)) > 1 and len(shape_of(out)) > 1 and shape_of(x)[:2] == shape_of(out)[:2]
    if node.op_type in PAIRS:
        return _pair(node, out) or _Roles(fixed=values)
    if not same_channels:
        return _Roles(fixed=values)
    rank = len(shape_of(x))
    if node.op_type in ONE_BY_ONE or (node.op_type in POOLS and len(node.outputs) == 1):
        return _Roles(alike=[x, out])
    if node.op_type in ("Flatten", "Reshape", "Squeeze", "Unsqueeze"):
        return _Roles(alike=[x, out])  # with n and c as they were, only what is behind them can change
    if node.op_type == "Transpose" and list(attribute(node, "perm", []))[:2] == [0, 1]:
        return _Roles(alike=[x, out])
    if node.op_type == "ReduceMean" and all(axis % rank > 1 for axis in attribute(node, "axes", None) or [0]):
        return _Roles(alike=[x, out])
    if node.op_type == "Concat" and attribute(node, "axis", 0) % rank > 1:
        return _Roles(alike=[*node.inputs, out]) if len(values) == len(node.inputs) + 1 else _Roles(fixed=values)
    if node.op_type == "Split" and attribute(node, "axis", 0) % rank > 1:
        return _Roles(alike=[x, *node.outputs])
    if node.op_type == "Slice" and len(node.inputs) > 3 and (axes := constant(node.inputs[3])) is not None and all(int(a) % rank > 1 for a in axes):
        return _Roles(alike=[x, out])
    return _Roles(fixed=values)


def _layer(node: ir.Node, x: ir.Value, out: ir.Value) -> _Roles | None:
    weight, bias = constant(node.inputs[1]), constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if weight is None or (len(node.inputs) > 2 and bias is None) or (node.op_type != "Conv" and len(shape_of(x)) != 2):
        return None
    if node.op_type == "Conv":
        group = attribute(node, "group", 1)
        of_bias = [(2, 0, out)] if bias is not None else []
        if group == 1:
            return _Roles(weights=[(1, 1, x), (1, 0, out), *of_bias])
        return _Roles(alike=[x, out], weights=[(1, 0, out), *of_bias]) if group == shape_of(x)[1] == len(weight) else None
    if node.op_type == "Gemm" and attribute(node, "transA", 0):
        return None
    rows = 1 if node.op_type == "Gemm" and attribute(node, "transB", 0) else 0
    of_bias = [(2, bias.ndim - 1, out)] if bias is not None and bias.size == shape_of(out)[1] else []
    if bias is not None and not of_bias and bias.size != 1:
        return None
    return _Roles(weights=[(1, rows, x), (1, 1 - rows, out), *of_bias])


def _pair(node: ir.Node, out: ir.Value) -> _Roles | None:
    """Arithmetic of two: tensors with one channel go with any, constants with one entry a channel follow."""
    rank, channels = len(shape_of(out)), shape_of(out)[1] if len(shape_of(out)) > 1 else 0
    roles = _Roles(alike=[out])
    for i, value in enumerate(node.inputs):
        shape = shape_of(value)
        width = shape[1 - rank] if len(shape) >= rank - 1 and rank > 1 else 1  # what stands at the channels when ranks are aligned
        if constant(value) is not None:
            if width == channels:
                roles.weights.append((i, len(shape) + 1 - rank, out))
        elif len(shape) != rank:
            return None
        elif width == channels:
            roles.alike.append(value)
    return roles


# --------------------------------------------------------------------------- orders


class _Net:
    def __init__(self, model: ir.Model):
        self.edit = Editor(model)
        self.nodes = list(model.graph)
        self.lanes: dict[ir.Value, Lanes] = {}
        self.moves: dict[ir.Node, bool] = {}  # whether it shuffles
        for node in self.nodes:
            found = _lanes_through(node, self.lanes)
            if found is not None:
                self.lanes.update(found)
                self.moves[node] = _shuffles(node)
        # The inner two of Reshape, Transpose, Reshape are the move's own.
        self.inner = {inner for node in self.moves if node.op_type == "Reshape" for inner in (node.inputs[0].producer(), node.inputs[0].producer().inputs[0].producer())}
        self.parent: dict[ir.Value, ir.Value] = {}
        self.fixed: set[ir.Value] = set()
        self.roles = {node: _roles(node) for node in self.nodes if node not in self.moves and node not in self.inner}
        for roles in self.roles.values():
            for value in roles.alike[1:]:
                self._unite(roles.alike[0], value)
        fixed = [value for roles in self.roles.values() for value in roles.fixed]
        for value in (*fixed, *model.graph.inputs, *model.graph.outputs):
            self.fixed.add(self._root(value))

    def _root(self, value: ir.Value) -> ir.Value:
        path = [value]
        while (above := self.parent.get(path[-1], path[-1])) is not path[-1]:
            path.append(above)
        for below in path[:-1]:
            self.parent[below] = path[-1]
        return path[-1]

    def _unite(self, a: ir.Value, b: ir.Value) -> None:
        a, b = self._root(a), self._root(b)
        if a is not b:
            self.parent[b] = a
            if b in self.fixed:
                self.fixed.add(a)

    def components(self) -> Iterator[tuple[list[ir.Value], set[ir.Value]]]:
        """(moved tensors that something but a move reads, roots of the classes that they join), where a shuffle is among the moves."""
        read = [value for value in self.lanes if value.is_graph_output() or any(use.node not in self.moves and use.node not in self.inner for use in value.uses())]
        groups: list[tuple[list[ir.Value], set[ir.Value]]] = []
        for value in read:
            mine = {self._root(value), *(self._root(source) for source, _ in self.lanes[value])}
            values = [value]
            for other in [group for group in groups if group[1] & mine]:
                groups.remove(other)
                values, mine = other[0] + values, other[1] | mine
            groups.append((values, mine))
        order = {value: i for i, value in enumerate(self.lanes)}
        for values, classes in groups:
            values.sort(key=order.__getitem__)
            if any(self.moves[node] for value in values for node in self._moves_before(value)):
                yield values, classes

    def _moves_before(self, value: ir.Value) -> Iterable[ir.Node]:
        waiting, seen = [value], set()
        while waiting:
            node = waiting.pop().producer()
            if node in self.moves and node not in seen:
                seen.add(node)
                waiting += [_before_shuffle(node)] if node.op_type == "Reshape" else [v for v in node.inputs if v is not None]
        return seen

    def rewrite(self, component: tuple[list[ir.Value], set[ir.Value]]) -> list[Change]:
        read, classes = component
        orders = self._orders(read, classes)
        runs = {value: _runs(self._stored(value, orders), {source: _inverse(orders[self._root(source)]) for source, _ in self.lanes[value]}) for value in read}
        if any(len(found) > PIECES * len({source for source, _, _ in found}) for found in runs.values()):
            return []
        return self._write(read, orders, runs)

    def _stored(self, value: ir.Value, orders: dict[ir.Value, list[int]]) -> Lanes:
        """The lanes of a moved tensor in the order in which it is going to be."""
        return [self.lanes[value][i] for i in orders[self._root(value)]]

    def _orders(self, read: list[ir.Value], classes: set[ir.Value]) -> dict[ir.Value, list[int]]:
        """{class: which of its channels stands first, second, ..}.

        Channels are sorted into ever finer groups: in a tensor that is read, by who reads them and in which group of theirs; in
        one that is moved together, by the tensor that each is from and its group there. Groups keep their order when they
        are divided, so what is read as one piece stands as one piece. What then is still in one group may have any order
        that all agree on: each class that is asked takes its own, and the others follow.
        """
        width = {root: shape_of(root)[1] for root in classes}
        rank = {root: list(range(width[root])) if root in self.fixed else [0] * width[root] for root in classes}
        asked = dict.fromkeys(self._root(tensor) for value in read for tensor in (value, *(source for source, _ in self.lanes[value])))
        sources = {source: i for i, source in enumerate(dict.fromkeys(source for value in read for source, _ in self.lanes[value]))}
        while True:
            keys: dict[ir.Value, list[list]] = {root: [[old] for old in rank[root]] for root in classes}
            for value in read:
                mine = self._root(value)
                readers: dict[tuple[ir.Value, int], list[int]] = {}
                for place, (source, i) in enumerate(self.lanes[value]):
                    keys[mine][place].append((sources[source], rank[self._root(source)][i]))
                    readers.setdefault((source, i), []).append(rank[mine][place])
                for source in dict.fromkeys(source for source, _ in self.lanes[value]):
                    for i in range(width[self._root(source)]):
                        found = readers.get((source, i))
                        keys[self._root(source)][i].append((0, *sorted(found)) if found else (1,))
            finer = {root: rank[root] if root in self.fixed else _ranks(keys[root]) for root in classes}
            undecided = next((root for root in asked if len(set(rank[root])) < width[root]), None) if finer == rank else None
            if undecided is not None:
                finer[undecided] = _ranks([[old, i] for i, old in enumerate(rank[undecided])])
            elif finer == rank:
                return {root: _inverse(rank[root]) for root in classes}
            rank = finer

    # ----------------------------------------------------------------------- writing

    def _write(self, read: list[ir.Value], orders: dict[ir.Value, list[int]], runs: dict[ir.Value, list[tuple[ir.Value, int, int]]]) -> list[Change]:
        tensors: dict[str, str] = {}
        self._order_weights(orders)
        sorted_as = {}
        for node in self.roles:  # tensors in another order are other tensors
            for value in node.outputs:
                order = orders.get(self._root(value))
                if order is not None and order != sorted(order):
                    name, value.name = value.name, self.edit.unique(f"{value.name}.sorted")
                    tensors[value.name], sorted_as[value] = f"same_as {name}", name
        cuts: dict[ir.Value, set[int]] = {}
        for found in runs.values():
            for source, start, end in found:
                cuts.setdefault(source, {0, shape_of(source)[1]}).update((start, end))
        pieces = {source: self._pieces(source, sorted(at), tensors) for source, at in cuts.items()}
        changes = []
        for value in read:
            parts = [part for source, start, end in runs[value] for part_start, part in pieces[source].items() if start <= part_start < end]
            users = [use for use in value.uses() if use.node not in self.moves and use.node not in self.inner]
            before = users[0].node if users else value.producer()
            joined = parts[0]
            if len(parts) > 1:
                joined = self.edit.add(before, "Concat", parts, shape_of(value), {"axis": 1}, f"{value.name}/direct")
            if joined is not parts[0] or joined.name in tensors:
                tensors[joined.name] = f"same_as {value.name}"
            for use in users:
                use.node.replace_input_with(use.idx, joined)
            if value.is_graph_output():
                self.edit.take_over(value, joined)
            changes.append(Change("direct_channels", value.producer().name))
        return [Change("direct_channels", changes[0].site, tensors), *changes[1:]]

    def _order_weights(self, orders: dict[ir.Value, list[int]]) -> None:
        for node, roles in self.roles.items():
            for i, axis, value in roles.weights:
                order = orders.get(self._root(value))
                if order is None or order == sorted(order):
                    continue
                array = constant(node.inputs[i])
                node.replace_input_with(i, self.edit.constant(node.inputs[i].name.removesuffix(".sorted") + ".sorted", np.take(array, order, axis)))

    def _pieces(self, source: ir.Value, cuts: list[int], tensors: dict[str, str]) -> dict[int, ir.Value]:
        """{first channel: the piece of a tensor from there to the next cut}."""
        import onnx_ir as ir

        if len(cuts) == 2:
            return {0: source}
        edit, shape = self.edit, shape_of(source)
        sizes = np.diff(cuts)
        name = edit.unique(f"{source.name}/pieces")
        node = ir.node("Split", [source, edit.constant(f"{name}.sizes", sizes.astype(np.int64))], {"axis": 1}, num_outputs=len(sizes), name=name)
        for i, (out, size) in enumerate(zip(node.outputs, sizes.tolist(), strict=True)):
            out.name, out.dtype, out.shape = edit.unique(f"{name}{i}"), source.dtype, ir.Shape((shape[0], size, *shape[2:]))
            tensors[out.name] = "observe"
        first = source.producer()
        if first is None:
            edit.graph.insert_before(next(iter(edit.graph)), node)
        else:
            edit.graph.insert_after(first, node)
        return dict(zip(cuts[:-1], node.outputs, strict=True))


def _ranks(keys: list[list]) -> list[int]:
    """The place of each key among all different ones, in order."""
    place = {key: i for i, key in enumerate(sorted({tuple(key) for key in keys}))}
    return [place[tuple(key)] for key in keys]


def _inverse(order: list[int]) -> list[int]:
    return np.argsort(order).tolist()


def _runs(lanes: Lanes, places: dict[ir.Value, list[int]]) -> list[tuple[ir.Value, int, int]]:
    """(tensor, from, to) of what lies side by side already, tensors being stored with channel i at places[tensor][i]."""
    found: list[tuple[ir.Value, int, int]] = []
    for source, i in lanes:
        place = places[source][i]
        if found and found[-1][0] is source and found[-1][2] == place:
            found[-1] = (source, found[-1][1], place + 1)
        else:
            found.append((source, place, place + 1))
    return found

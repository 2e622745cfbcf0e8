"""Ops that move values. Most become another view of the same tensor; the rest stay int8 if their input is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekit.backends.tflite.elementwise import common_order
from edgekit.backends.tflite.lower import Constant, Lowering, Order, Ref, lowers, physical, unsupported
from edgekit.backends.tflite.writer import Quant
from edgekit.graph import attribute, shape_of

if TYPE_CHECKING:
    import onnx_ir as ir


@lowers("Identity")
def identity(low: Lowering, node: ir.Node) -> None:
    low.bind(node.outputs[0], low.constant(node.inputs[0]) or low.ref(node.inputs[0]))


@lowers("Transpose")
def transpose(low: Lowering, node: ir.Node) -> None:
    x = low.ref(node.inputs[0])
    low.bind(node.outputs[0], x.view(attribute(node, "perm", tuple(reversed(range(len(x.shape)))))))


@lowers("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(low: Lowering, node: ir.Node) -> None:
    x, shape = low.ref(node.inputs[0]), shape_of(node.outputs[0])
    old = [i for i, d in enumerate(x.shape) if d != 1]
    if [x.shape[i] for i in old] == [d for d in shape if d != 1]:
        following = iter(old)
        low.bind(node.outputs[0], x.view(next(following) if d != 1 else None for d in shape))
        return
    before, after = _orders_around(x, shape)
    new = physical(shape, after)
    low.bind(
        node.outputs[0],
        low.emit(node, "RESHAPE", [low.native(x, before), low.ints(new)], shape, after, quant=x.quant, dtype=x.dtype, options={"newShape": new}),
    )


def _orders_around(x: Ref, shape: tuple[int, ...]) -> tuple[Order, Order]:
    """Orders in which a RESHAPE turns `x` into `shape`: the stored one, if axes that merge or split stand together in it."""
    groups = _groups(x.shape, shape)
    stored = [a for a in x.order if a is not None and x.shape[a] != 1]
    after: list[int] = []
    position = 0
    while groups is not None and position < len(stored):
        group = next((g for g in groups if g[0] and g[0][0] == stored[position]), None)
        if group is None or stored[position : position + len(group[0])] != group[0]:
            break
        after += group[1]
        position += len(group[0])
    else:
        if groups is not None:
            if after == sorted(after):
                return x.order, tuple(range(len(shape)))
            # As many axes as before, if that is possible: what an op wants next mostly has as many.
            return x.order, (*[None] * (len(x.order) - len(after)), *after)
    return tuple(range(len(x.shape))), tuple(range(len(shape)))


def _groups(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]] | None:
    """Runs of old axes and of new axes with the same number of elements, axes of length 1 left out; None if a length is 0."""
    if 0 in old or 0 in new:
        return None
    left, right = ([i for i, d in enumerate(s) if d != 1] for s in (old, new))
    groups = []
    while left or right:
        a, b = ([left.pop(0)] if left else []), ([right.pop(0)] if right else [])
        n, m = (int(np.prod([s[i] for i in g])) for s, g in ((old, a), (new, b)))
        while n != m:
            if n < m:
                a.append(left.pop(0))
                n *= old[a[-1]]
            else:
                b.append(right.pop(0))
                m *= new[b[-1]]
        groups.append((a, b))
    return groups


@lowers("Concat")
def concat(low: Lowering, node: ir.Node) -> None:
    """int8 if the result is quantized in one way, whatever the parts are, or if all parts already agree."""
    shape = shape_of(node.outputs[0])
    axis = attribute(node, "axis", 0) % len(shape)
    parts = [low.constant(value) or low.ref(value) for value in node.inputs]
    refs = [part for part in parts if isinstance(part, Ref)]
    if not refs:
        raise unsupported(node, "all parts are constants", "fold them first: graph.tidy")
    if len(parts) == 1:
        low.bind(node.outputs[0], parts[0])
        return
    quant = low.quant_of(node.outputs[0]) if refs[0].dtype in ("float32", "int8") else None
    if quant is None and len({ref.quant for ref in refs}) == 1:
        quant = refs[0].quant
    integers = [_as_integers(low, part, quant) for part in parts]
    if quant is None or any(part is None for part in integers):
        quant, integers = None, parts
    refs = [part for part in integers if isinstance(part, Ref)]
    order = _stacked(refs[0], axis) if all(part.shape[axis] == 1 for part in parts) else None
    order = order or common_order(refs, shape)
    inputs = [
        low.laid_constant(part, len(shape), order, integers=quant is not None) if isinstance(part, Constant) else (low.floats if quant is None else low.native)(part, order)
        for part in integers
    ]
    dtype = low.sub.tensors[inputs[0]].dtype
    low.bind(node.outputs[0], low.emit(node, "CONCATENATION", inputs, shape, order, quant=quant, dtype=dtype, options={"axis": order.index(axis)}))


def _stacked(x: Ref, axis: int) -> Order | None:
    """The stored order of one part with the axis along which all are stacked right behind the axis before it.

    What follows a stack mostly merges these two: a channel shuffle does.
    """
    order = [a for a in x.order if a is not None and a != axis and x.shape[a] != 1]
    if axis - 1 not in order:
        return None
    order.insert(order.index(axis - 1) + 1, axis)
    rest = [a for a in range(len(x.shape)) if a not in order]  # of length 1: in front, so that as many axes stay
    return (*rest, *order)


def _as_integers(low: Lowering, part: Ref | Constant, quant: Quant | None) -> Ref | Constant | None:
    """A part as integers of `quant`; a constant only if that changes none of its values."""
    if quant is None:
        return None
    if isinstance(part, Ref):
        return low.quantize(part, quant)
    scale, zero = np.float32(quant.scale[0]), quant.zero_point[0]
    integers = np.clip(np.rint(part.array / scale) + zero, -128, 127)
    if not (((integers - zero) * scale).astype(np.float32) == part.array).all():
        return None
    return Constant(f"{part.name}/int8", part.array, integers.astype(np.int8), quant)


@lowers("Split")
def split(low: Lowering, node: ir.Node) -> None:
    x = low.ref(node.inputs[0])
    axis = attribute(node, "axis", 0) % len(x.shape)
    sizes = [shape_of(value)[axis] for value in node.outputs]
    if len(sizes) == 1:
        low.bind(node.outputs[0], x)
        return
    order = common_order([x], x.shape)
    place = order.index(axis)
    outs = []
    for value in node.outputs:
        outs.append(low.new(value.name, shape_of(value), order, x.dtype, x.quant))
        low.bind(value, outs[-1])
    indices = [out.base.stored[0].index for out in outs]
    source = low.native(x, order)
    if len(set(sizes)) == 1:
        low.sub.op("SPLIT", [low.ints(place), source], indices, {"numSplits": len(sizes)})
    else:
        low.sub.op("SPLIT_V", [source, low.ints(sizes), low.ints(place)], indices, {"numSplits": len(sizes)})
    for index in indices:
        low.record(node, index)


@lowers("Slice")
def slice_(low: Lowering, node: ir.Node) -> None:
    x, shape = low.ref(node.inputs[0]), shape_of(node.outputs[0])
    found = [low.constant(value) if value is not None else None for value in node.inputs[1:]]
    if any(value is not None and constant is None for value, constant in zip(node.inputs[1:], found, strict=True)):
        raise unsupported(node, "its bounds are not constants")
    starts, ends = (found[i].array.reshape(-1) for i in (0, 1))
    axes = found[2].array.reshape(-1) if len(found) > 2 and found[2] is not None else np.arange(len(starts))
    steps = found[3].array.reshape(-1) if len(found) > 3 and found[3] is not None else np.ones(len(starts), int)
    cuts = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis = int(axis) % len(x.shape)
        cuts[axis] = (*slice(int(start), int(end), int(step)).indices(x.shape[axis])[:2], int(step))
    low.bind(node.outputs[0], cut(low, node, x, cuts, shape))


def cut(low: Lowering, node: ir.Node, x: Ref, cuts: dict[int, tuple[int, int, int]], shape: tuple[int, ...]) -> Ref:
    """x[start:end:step] along some axes, `end` -1 meaning below the first element if the step is negative."""
    if shape == x.shape and all(step > 0 for _, _, step in cuts.values()):
        return x
    if 0 in shape:
        raise unsupported(node, "the result is empty")
    order = common_order([x], x.shape)
    source = low.native(x, order)
    if all(step == 1 for _, _, step in cuts.values()):
        begin = [0 if a is None else cuts.get(a, (0,))[0] for a in order]
        return low.emit(node, "SLICE", [source, low.ints(begin), low.ints(physical(shape, order))], shape, order, quant=x.quant, dtype=x.dtype)
    full = [cuts.get(a, (0, x.shape[a], 1)) if a is not None else (0, 1, 1) for a in order]
    end_mask = sum(1 << i for i, (_, end, step) in enumerate(full) if step < 0 and end < 0)
    begin, end, step = (low.ints([c[i] for c in full]) for i in range(3))
    return low.emit(node, "STRIDED_SLICE", [source, begin, end, step], shape, order, quant=x.quant, dtype=x.dtype, options={"endMask": end_mask})


@lowers("Gather")
def gather(low: Lowering, node: ir.Node) -> None:
    x, indices = low.ref(node.inputs[0]), low.constant(node.inputs[1])
    axis = attribute(node, "axis", 0) % len(x.shape)
    if indices is None:
        return _dynamic_gather(low, node, x, axis)
    wanted = indices.array.reshape(-1).astype(np.int64) % x.shape[axis]
    if indices.array.ndim > 1:
        raise unsupported(node, f"indices of {indices.array.ndim} axes, 0 or 1 are taken")
    shape = tuple(len(wanted) if i == axis else d for i, d in enumerate(x.shape))
    if (np.diff(wanted) == 1).all():
        out = cut(low, node, x, {axis: (int(wanted[0]), int(wanted[-1]) + 1, 1)}, shape)
    else:
        order = common_order([x], x.shape)
        out = low.emit(
            node, "GATHER", [low.native(x, order), low.ints(wanted)], shape, order, quant=x.quant, dtype=x.dtype, options={"axis": order.index(axis)}
        )
    low.bind(node.outputs[0], out if indices.array.ndim else out.view(i for i in range(len(x.shape)) if i != axis))
    return None


def _dynamic_gather(low: Lowering, node: ir.Node, x: Ref, axis: int) -> None:
    """An embedding: the indices are computed."""
    indices = low.ref(node.inputs[1])
    inputs = [low.native(ref, tuple(range(len(ref.shape)))) for ref in (x, indices)]
    low.bind(node.outputs[0], low.emit(node, "GATHER", inputs, quant=x.quant, dtype=x.dtype, options={"axis": axis}))


@lowers("Pad")
def pad(low: Lowering, node: ir.Node) -> None:
    x, shape = low.ref(node.inputs[0]), shape_of(node.outputs[0])
    pads = low.constant(node.inputs[1])
    value = low.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if pads is None or (len(node.inputs) > 2 and node.inputs[2] is not None and value is None):
        raise unsupported(node, "its pads or its value are not constants")
    before, after = pads.array.reshape(2, -1).astype(int)
    if (before < 0).any() or (after < 0).any():
        raise unsupported(node, "it crops", "use a Slice")
    order = common_order([x], shape)
    widths = [(0, 0) if a is None else (int(before[a]), int(after[a])) for a in order]
    mode, number = attribute(node, "mode", "constant"), 0.0 if value is None else float(value.array.reshape(()))
    if mode == "constant" and number == 0.0:
        inputs, op, options = [low.native(x, order), low.ints(widths)], "PAD", {}
    elif mode == "constant" and x.quant is None:
        inputs, op, options = [low.native(x, order), low.ints(widths), low.sub.constant(f"{node.name}/value", np.array(number, x.dtype))], "PADV2", {}
    elif mode == "reflect":
        inputs, op, options = [low.native(x, order), low.ints(widths)], "MIRROR_PAD", {"mode": 0}
    elif mode == "constant":
        x = Ref(low.ref(node.inputs[0]).base, x.axes)
        inputs, op, options = [low.floats(x, order), low.ints(widths), low.sub.constant(f"{node.name}/value", np.array(number, np.float32))], "PADV2", {}
        low.bind(node.outputs[0], low.emit(node, op, inputs, shape, order))
        return
    else:
        raise unsupported(node, f"mode `{mode}`, `constant` and `reflect` are taken")
    low.bind(node.outputs[0], low.emit(node, op, inputs, shape, order, quant=x.quant, dtype=x.dtype, options=options))


@lowers("Expand")
def expand(low: Lowering, node: ir.Node) -> None:
    shape = shape_of(node.outputs[0])
    x = low.ref(node.inputs[0])
    x = x.view((None,) * (len(shape) - len(x.shape)) + tuple(range(len(x.shape))))
    if x.shape == shape:
        low.bind(node.outputs[0], x)
        return
    order = common_order([x], shape)
    inputs = [low.native(x, order), low.ints(physical(shape, order))]
    low.bind(node.outputs[0], low.emit(node, "BROADCAST_TO", inputs, shape, order, quant=x.quant, dtype=x.dtype))

"""Convolutions and linear layers as 2-D convolutions, and the layout ops around them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import EdgekitError
from edgekit.graph import Editor, attribute, batch_norm_affine, constant, shape_of
from edgekit.rewrites.change import Change, free_name, nodes_of

if TYPE_CHECKING:
    import onnx_ir as ir


def conv1d_to_conv2d(model: ir.Model) -> list[Change]:
    """Conv, ConvTranspose, MaxPool and AveragePool on [n, c, t] -> the same on [n, c, 1, t], between Unsqueeze and Squeeze.

    TensorRT's parser does the same to convolutions, but leaves the new tensors without names, so no scale of
    ours would reach them; it has no pool of rank 3. `merge_layout_ops` then removes what stands between consecutive ones.

    requires: constant weights; a MaxPool without indices.
    ensures: no such op of rank 3; groups, strides, dilations, padding and bias as before.
    """
    edit = Editor(model)
    changes = [_pool2d(edit, node) for node in nodes_of(model, "MaxPool", "AveragePool") if len(shape_of(node.inputs[0])) == 3 and len(node.outputs) == 1]
    for node in nodes_of(model, "Conv", "ConvTranspose"):
        x, weight, old = node.inputs[0], constant(node.inputs[1]), node.outputs[0]
        if weight is None or weight.ndim != 3:
            continue
        n, c, t = shape_of(x)
        attributes: dict[str, Any] = {"group": attribute(node, "group", 1), "kernel_shape": [1, weight.shape[2]]}
        for key, unit in (("strides", 1), ("dilations", 1)):
            attributes[key] = [1, *attribute(node, key, [unit])]
        before, after = attribute(node, "pads", [0, 0])
        auto_pad = attribute(node, "auto_pad", "NOTSET")
        if auto_pad == "NOTSET":
            attributes["pads"] = [0, before, 0, after]
        else:
            attributes["auto_pad"] = auto_pad
        if node.op_type == "ConvTranspose":
            attributes["output_padding"] = [0, *attribute(node, "output_padding", [0])]
            if attribute(node, "output_shape", None) is not None:
                continue
        name = free_name(edit, node)
        axes = edit.constant(f"{name}.axes", np.array([2], np.int64))
        wide = edit.add(node, "Unsqueeze", [x, axes], (n, c, 1, t), name=f"{name}/to_4d")
        inputs = [wide, edit.constant(f"{name}.weight2d", weight[:, :, None, :]), *node.inputs[2:]]
        m, o, t_out = shape_of(old)
        y = edit.add(node, node.op_type, inputs, (m, o, 1, t_out), attributes, name)
        narrow = edit.add(node, "Squeeze", [y, axes], shape_of(old), name=f"{name}/to_3d")
        edit.take_over(old, narrow)
        tensors = {wide.name: f"same_as {x.name}", y.name: f"same_as {narrow.name}"}
        changes.append(Change("conv1d_to_conv2d", name, tensors))
    return changes


def _pool2d(edit: Editor, node: ir.Node) -> Change:
    x, old = node.inputs[0], node.outputs[0]
    attributes = {key: attribute(node, key, 0) for key in ("ceil_mode", "count_include_pad") if key in node.attributes}
    for key in ("kernel_shape", "strides", "dilations"):
        if key in node.attributes:
            attributes[key] = [1, *attribute(node, key, [])]
    before, after = attribute(node, "pads", [0, 0])
    auto_pad = attribute(node, "auto_pad", "NOTSET")
    attributes |= {"pads": [0, before, 0, after]} if auto_pad == "NOTSET" else {"auto_pad": auto_pad}
    name = free_name(edit, node)
    axes = edit.constant(f"{name}.axes", np.array([2], np.int64))
    (n, c, t), (m, o, t_out) = shape_of(x), shape_of(old)
    wide = edit.add(node, "Unsqueeze", [x, axes], (n, c, 1, t), name=f"{name}/to_4d")
    y = edit.add(node, node.op_type, [wide], (m, o, 1, t_out), attributes, name)
    narrow = edit.add(node, "Squeeze", [y, axes], shape_of(old), name=f"{name}/to_3d")
    edit.take_over(old, narrow)
    return Change("conv1d_to_conv2d", name, {wide.name: f"same_as {x.name}", y.name: f"same_as {narrow.name}"})


def linear_to_conv2d(model: ir.Model) -> list[Change]:
    """MatMul with a constant matrix (and its bias Add), and Gemm, -> a 1x1 Conv on 4-D tensors.

    [.., l, k] becomes [n, k, 1, l], so that the rows run along the convolution's width; [n, k]
    becomes [n, k, 1, 1]. TensorRT 8.5 runs MatMul and Gemm in FP32 or FP16 only, Conv in INT8.

    requires: the matrix and the bias are constants.
    ensures: no MatMul or Gemm with a constant right side is left; Transpose and Squeeze only stand
        around the convolution.
    """
    edit, changes = Editor(model), []
    for node in nodes_of(model, "MatMul", "Gemm"):
        linear = _linear(node)
        if linear is None:
            continue
        matrix, bias, last = linear  # [k, m], [m] or None, the node whose output is the layer's
        x, old = node.inputs[0], last.outputs[0]
        k, m = matrix.shape
        name = free_name(edit, node)
        tensors: dict[str, str] = {}

        def same(value: ir.Value, source: str, tensors=tensors) -> ir.Value:
            tensors[value.name] = f"same_as {source}"
            return value

        wide, axes = x, [2, 3]
        rows = math.prod(shape_of(x)[:-1])
        if len(shape_of(x)) > 2:
            axes, length = [2], shape_of(x)[-2]
            n = rows // length
            if len(shape_of(x)) > 3:
                shape = edit.constant(f"{name}.rows", np.array([n, length, k], np.int64))
                wide = same(edit.add(node, "Reshape", [wide, shape], (n, length, k), name=f"{name}/rows"), x.name)
            wide = same(edit.add(node, "Transpose", [wide], (n, k, length), {"perm": [0, 2, 1]}, f"{name}/channels_first"), x.name)
            shape_in, shape_out = (n, k, 1, length), (n, m, 1, length)
        else:
            shape_in, shape_out = (rows, k, 1, 1), (rows, m, 1, 1)
        axes_value = edit.constant(f"{name}.axes", np.array(axes, np.int64))
        wide = same(edit.add(node, "Unsqueeze", [wide, axes_value], shape_in, name=f"{name}/to_4d"), x.name)

        inputs = [wide, edit.constant(f"{name}.weight", matrix.T[:, :, None, None])]
        if bias is not None:
            inputs.append(edit.constant(f"{name}.bias", bias))
        one = {"kernel_shape": [1, 1], "strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1], "group": 1}
        conv = edit.add(last, "Conv", inputs, shape_out, one, name)

        y = edit.add(last, "Squeeze", [conv, axes_value], [d for i, d in enumerate(shape_out) if i not in axes], name=f"{name}/from_4d")
        inside = [conv, y]
        if len(shape_of(x)) > 2:
            y = edit.add(last, "Transpose", [y], (n, length, m), {"perm": [0, 2, 1]}, f"{name}/channels_last")
            inside.append(y)
            if len(shape_of(x)) > 3:
                shape = edit.constant(f"{name}.shape", np.array(shape_of(old), np.int64))
                y = edit.add(last, "Reshape", [y, shape], shape_of(old), name=f"{name}/unrows")
                inside.append(y)
        edit.take_over(old, y)
        for value in inside[:-1]:
            same(value, y.name)
        changes.append(Change("linear_to_conv2d", name, tensors))
    return changes


def rows_to_sequence(model: ir.Model) -> list[Change]:
    """MatMul and Gemm with a constant matrix on rows [n, k] -> MatMul on [1, n, k] (and Add), between Unsqueeze and Squeeze.

    OpenVINO 2026.4 makes one kernel of two such integer layers in a row, which is wrong by orders of magnitude
    where no bias follows the first. Of sequences, and of single rows, it makes none.

    requires: more than one row; the matrix and a Gemm's bias are constants.
    ensures: no such op of rank 2.
    """
    edit, changes = Editor(model), []
    for node in nodes_of(model, "MatMul", "Gemm"):
        linear = _linear(node)
        if linear is None or len(shape_of(node.inputs[0])) != 2 or shape_of(node.inputs[0])[0] == 1:
            continue
        matrix, bias, _ = linear
        x, old = node.inputs[0], node.outputs[0]
        n, k = shape_of(x)
        name = free_name(edit, node)
        axes = edit.constant(f"{name}.axes", np.array([0], np.int64))
        wide = edit.add(node, "Unsqueeze", [x, axes], (1, n, k), name=f"{name}/to_sequence")
        y = product = edit.add(node, "MatMul", [wide, edit.constant(f"{name}.weight", matrix)], (1, n, matrix.shape[1]), name=name)
        if node.op_type == "Gemm" and bias is not None:
            y = edit.add(node, "Add", [product, edit.constant(f"{name}.bias", bias)], shape_of(product), name=f"{name}/bias")
        rows = edit.add(node, "Squeeze", [y, axes], shape_of(old), name=f"{name}/to_rows")
        edit.take_over(old, rows)
        tensors = {wide.name: f"same_as {x.name}", y.name: f"same_as {rows.name}"}
        changes.append(Change("rows_to_sequence", name, tensors if y is product else {**tensors, product.name: "observe"}))
    return changes


def batch_norm_to_conv(model: ir.Model) -> list[Change]:
    """BatchNormalization on [n, c, ..] -> a depthwise Conv of one element, with a bias.

    One that stands before a convolution that pads, or between two residual additions, can join neither. As a
    multiplication and an addition it is float, and takes the additions around it along; as a Conv it has an
    integer kernel, whose one weight a channel is exact at that channel's own scale.

    requires: constant statistics, rank 3 to 5.
    ensures: no BatchNormalization of these ranks.
    """
    edit, changes = Editor(model), []
    for node in nodes_of(model, "BatchNormalization"):
        affine, old = batch_norm_affine(node), node.outputs[0]
        rank = len(shape_of(old))
        if affine is None or not 3 <= rank <= 5:
            continue
        factor, shift = (terms.astype(np.float32) for terms in affine)
        name, ones = free_name(edit, node), [1] * (rank - 2)
        inputs = [node.inputs[0], edit.constant(f"{name}.weight", factor.reshape(-1, 1, *ones)), edit.constant(f"{name}.bias", shift)]
        attributes = {"group": len(factor), "kernel_shape": ones, "strides": ones, "dilations": ones, "pads": [0] * 2 * len(ones)}
        edit.take_over(old, edit.add(node, "Conv", inputs, shape_of(old), attributes, name))
        changes.append(Change("batch_norm_to_conv", name))
    return changes


def _linear(node: ir.Node) -> tuple[np.ndarray, np.ndarray | None, ir.Node] | None:
    """(matrix [k, m], bias [m], last node) of a constant Linear, or None."""
    right = constant(node.inputs[1])
    if right is None or right.ndim != 2 or constant(node.inputs[0]) is not None or len(shape_of(node.inputs[0])) < 2:
        return None
    if node.op_type == "Gemm":
        if attribute(node, "transA", 0):
            return None
        matrix = (right.T if attribute(node, "transB", 0) else right) * np.float32(attribute(node, "alpha", 1.0))
        if len(node.inputs) < 3 or node.inputs[2] is None:
            return matrix, None, node
        bias = _row(constant(node.inputs[2]), matrix.shape[1])
        return None if bias is None else (matrix, bias * np.float32(attribute(node, "beta", 1.0)), node)
    uses = list(node.outputs[0].uses())
    if len(uses) == 1 and uses[0].node.op_type == "Add" and not node.outputs[0].is_graph_output():
        add = uses[0].node
        other = constant(add.inputs[1 - uses[0].idx])
        bias = _row(other, right.shape[1]) if other is not None and other.ndim <= 1 else None
        if bias is not None:
            return right, bias, add
    return right, None, node


def _row(array: np.ndarray | None, width: int) -> np.ndarray | None:
    """`array` as a bias [width], if it is one."""
    if array is None or array.size not in (1, width) or (array.ndim and array.shape[-1] != array.size):
        return None
    return np.ascontiguousarray(np.broadcast_to(array.reshape(-1), (width,)), np.float32)


def gather_to_shuffle(model: ir.Model) -> list[Change]:
    """A Gather that shuffles all of an axis in g groups (the first of each group, the second of each ...) -> Reshape, Transpose, Reshape.

    OpenVINO 2026.4 folds a Gather that permutes channels into the weights of the convolution behind it by the
    permutation where it should be by its inverse: right for reversed colours, which the pass is made for, and for nothing
    else. Of the three ops it makes one, ShuffleChannels.

    ensures: at most four axes.
    """
    edit, changes = Editor(model), []
    for node in nodes_of(model, "Gather"):
        x, indices, old = node.inputs[0], constant(node.inputs[1]), node.outputs[0]
        if indices is None or constant(x) is not None:
            continue
        shape = shape_of(x)
        axis = attribute(node, "axis", 0) % len(shape)
        groups = shuffled_groups(indices, shape[axis])
        if groups is None:
            continue
        lead, tail = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        split, turned = (lead, groups, shape[axis] // groups, tail), (lead, shape[axis] // groups, groups, tail)
        name = free_name(edit, node)
        apart = edit.add(node, "Reshape", [x, edit.constant(f"{name}.groups", np.array(split, np.int64))], split, name=f"{name}/groups")
        mixed = edit.add(node, "Transpose", [apart], turned, {"perm": [0, 2, 1, 3]}, name)
        y = edit.add(node, "Reshape", [mixed, edit.constant(f"{name}.shape", np.array(shape, np.int64))], shape, name=f"{name}/together")
        edit.take_over(old, y)
        changes.append(Change("gather_to_shuffle", name, {apart.name: f"same_as {x.name}", mixed.name: f"same_as {x.name}"}))
    return changes


def shuffled_groups(indices: np.ndarray, length: int) -> int | None:
    """The g of 0, n/g, 2n/g, .. 1, n/g + 1, .. or None if the indices are anything else, the identity too."""
    if indices.shape != (length,) or length < 4:
        return None
    step = int(indices[1])
    if not 1 < step < length or length % step:
        return None
    return length // step if np.array_equal(indices, np.arange(length).reshape(-1, step).T.reshape(-1)) else None


# --------------------------------------------------------------------------- layout

ELEMENTWISE = frozenset(
    ["Abs", "Add", "Clip", "Div", "Elu", "Erf", "Exp", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Max", "Min", "Mul", "Neg", "PRelu", "Pow", "Relu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Tanh"]
)


def merge_layout_ops(model: ir.Model) -> list[Change]:
    """Move element-wise ops before the Squeeze or Transpose that feeds them, and drop pairs that cancel.

    Between two convolutions that were made 4-D there is then nothing but the arithmetic that was
    there before: GELU's Erf, a decomposed InstanceNorm and the last frame's Slice stay 4-D too.

    ensures: no Squeeze -> Unsqueeze or Transpose -> Transpose pair that does nothing, and no two
        equal layout ops on one tensor.
    """
    edit, changes = Editor(model), []
    for _ in range(100):
        moved = [change for node in list(model.graph) if (change := _hoist(edit, node)) is not None]
        changes += moved
        if not (_cancel(edit, model) | _share(edit, model)) and not moved:
            return changes
    raise EdgekitError("merge_layout_ops does not come to an end")


def _hoist(edit: Editor, node: ir.Node) -> Change | None:
    """f(layout(x)) -> layout(f(x)) for one node, if every activation it reads comes from equal layout ops."""
    reduces, slices = node.op_type == "ReduceMean", node.op_type == "Slice"
    if not (node.op_type in ELEMENTWISE or reduces or slices) or node.outputs[0].is_graph_output():
        return None
    activations = [i for i, value in enumerate(node.inputs) if value is not None and constant(value) is None]
    producers = [node.inputs[i].producer() for i in activations]
    if not producers or any(p is None or p.op_type not in ("Squeeze", "Transpose") for p in producers):
        return None
    layout = producers[0]
    if any(_layout_key(p) != _layout_key(layout) for p in producers):
        return None
    if layout.op_type == "Transpose" and (reduces or slices):
        return None  # normalizing over another axis than the last would be slower, not simpler

    old = node.outputs[0]
    rank = len(shape_of(old))
    inputs: list[ir.Value | None] = list(node.inputs)
    attributes = dict(node.attributes)
    for i in activations:
        inputs[i] = node.inputs[i].producer().inputs[0]
    if layout.op_type == "Squeeze":
        axes = _axes(layout)
        outer = [i for i in range(rank + len(axes)) if i not in axes]  # where each axis was before the squeeze
        expand = [1 if i in axes else None for i in range(rank + len(axes))]
        shape = _fill(expand, shape_of(old))
    else:
        perm = attribute(layout, "perm", None)
        inverse = [int(i) for i in np.argsort(perm)]
        shape = tuple(shape_of(old)[i] for i in inverse)

    if reduces:
        if not attribute(node, "keepdims", 1) or attribute(node, "axes", None) is None:
            return None
        attributes = {"axes": [outer[a % rank] for a in attribute(node, "axes", None)], "keepdims": 1}
    elif slices:
        if len(inputs) < 4 or any(constant(v) is None for v in inputs[1:]):
            return None
        inputs[3] = edit.constant(f"{node.name}.axes4d", np.array([outer[int(a) % rank] for a in constant(inputs[3])], np.int64))
    else:
        for i, value in enumerate(inputs):
            array = constant(value)
            if array is None or array.size == 1:
                continue
            full = array.reshape((1,) * (rank - array.ndim) + array.shape)
            moved = full.reshape(_fill(expand, full.shape)) if layout.op_type == "Squeeze" else full.transpose(inverse)
            inputs[i] = edit.constant(f"{value.name}.moved", moved)

    name = free_name(edit, node)
    y = edit.add(node, node.op_type, inputs, shape, attributes, name)
    after = edit.add(node, layout.op_type, [y, *layout.inputs[1:]], shape_of(old), dict(layout.attributes), f"{name}/{layout.op_type.lower()}")
    edit.take_over(old, after)
    edit.graph.remove(node, safe=True)
    return Change("merge_layout_ops", name, {y.name: f"same_as {after.name}"})


def _cancel(edit: Editor, model: ir.Model) -> bool:
    """Drop the second of two layout ops that undo each other, and join two Transposes."""
    changed = False
    for node in list(model.graph):
        if node.op_type not in ("Squeeze", "Unsqueeze", "Transpose") or not node.inputs:
            continue
        first = node.inputs[0].producer()
        if first is None:
            continue
        x, y = first.inputs[0], node.outputs[0]
        undoes = {node.op_type, first.op_type} == {"Squeeze", "Unsqueeze"} and shape_of(x) == shape_of(y) and _axes(first) == _axes(node)
        if node.op_type == first.op_type == "Transpose":
            p, q = attribute(first, "perm", None), attribute(node, "perm", None)
            joined = [p[i] for i in q]
            if joined == sorted(joined):
                undoes = True
            else:
                edit.take_over(y, edit.add(node, "Transpose", [x], shape_of(y), {"perm": joined}, free_name(edit, node)))
                edit.graph.remove(node, safe=True)
                changed = True
                continue
        if undoes and not y.is_graph_output():
            edit.replace(y, x)
            edit.graph.remove(node, safe=True)
            changed = True
    for node in reversed(list(model.graph)):
        outputs = node.outputs
        if node.op_type in ("Squeeze", "Unsqueeze", "Transpose") and not outputs[0].uses() and not outputs[0].is_graph_output():
            edit.graph.remove(node, safe=True)
            changed = True
    return changed


def _share(edit: Editor, model: ir.Model) -> bool:
    """Let equal layout ops on one tensor be one: q, k and v read the same transposed tensor."""
    changed = False
    seen: dict[tuple, ir.Value] = {}
    for node in list(model.graph):
        if node.op_type not in ("Squeeze", "Unsqueeze", "Transpose", "Reshape"):
            continue
        if node.op_type != "Transpose" and constant(node.inputs[1]) is None:
            continue
        key = (node.inputs[0].name, *_layout_key(node))
        first = seen.setdefault(key, node.outputs[0])
        if first is not node.outputs[0] and not node.outputs[0].is_graph_output():
            edit.replace(node.outputs[0], first)
            edit.graph.remove(node, safe=True)
            changed = True
    return changed


def _layout_key(node: ir.Node) -> tuple:
    if node.op_type == "Transpose":
        return ("Transpose", *attribute(node, "perm", ()))
    if node.op_type == "Reshape":
        return ("Reshape", *shape_of(node.outputs[0]))
    return (node.op_type, *_axes(node))


def _axes(node: ir.Node) -> tuple[int, ...]:
    """The axes of the larger tensor that a Squeeze or Unsqueeze is about, non-negative."""
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    larger = node.inputs[0] if node.op_type == "Squeeze" else node.outputs[0]
    if axes is None:
        return tuple(i for i, d in enumerate(shape_of(larger)) if d == 1)
    return tuple(sorted(int(a) % len(shape_of(larger)) for a in axes.reshape(-1)))


def _fill(pattern: Iterable[int | None], values: Iterable[int]) -> tuple[int, ...]:
    """`pattern` with its Nones replaced by `values` in order."""
    rest = iter(values)
    return tuple(next(rest) if p is None else p for p in pattern)



"""Exact rewrites: the same values in forms that a target's compiler takes.

Each is one function `rewrite(model) -> list[Change]`, edits the model in place, and says what it
requires and ensures. "Exact" means equal up to float32 rounding; stages/quantize.py measures that
on real data and refuses anything else. A target lists those it needs in `rewrites`, in order.

Every new tensor comes with one of three words about its range, so that statistics taken once on
the float graph stay good for every target:

    same_as NAME    it holds the values of NAME, rearranged: it has that tensor's range
    bound LOW HIGH  its range follows from the operator
    observe         nothing is known: observe it, if an INT8 layer turns out to read or write it
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import EdgekitError
from .graph import Editor, attribute, constant, shape_of

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Change:
    """One place that a rewrite changed.

    Attributes:
        rewrite: the function's name.
        site: name of the node that was rewritten.
        tensors: {new tensor: its range word}. Tensors that a later step removed are kept: a chain of
            `same_as` may lead through them.
        fp32: new nodes that overflow or lose their meaning in FP16 and must stay in FP32.
    """

    rewrite: str
    site: str
    tensors: dict[str, str] = field(default_factory=dict)
    fp32: tuple[str, ...] = ()


def apply(model: ir.Model, name: str) -> list[Change]:
    """Run one rewrite by its name and remove what nobody uses any longer.

    Raises:
        EdgekitError: there is no such rewrite.
    """
    import onnx_ir.passes.common as passes

    if name not in REWRITES:
        raise EdgekitError(f"unknown rewrite `{name}`", f"known: {', '.join(REWRITES)}")
    changes = REWRITES[name](model)
    passes.RemoveUnusedNodesPass()(model)
    passes.TopologicalSortPass()(model)
    return changes


# --------------------------------------------------------------------------- arithmetic


def pow_to_mul(model: ir.Model) -> list[Change]:
    """Pow(x, 2) -> Mul(x, x): Pow goes through log and exp, which collapses in FP16.

    ensures: no Pow with the constant exponent 2.
    """
    edit, changes = Editor(model), []
    for node in _nodes(model, "Pow"):
        exponent = constant(node.inputs[1])
        if exponent is None or exponent.size != 1 or float(exponent.reshape(())) != 2.0:
            continue
        x = node.inputs[0]
        edit.take_over(node.outputs[0], edit.add(node, "Mul", [x, x], shape_of(x), name=_free_name(edit, node)))
        changes.append(Change("pow_to_mul", _site(node)))
    return changes


def clamp_int64(model: ir.Model) -> list[Change]:
    """Clamp int64 constants to int32, which is what TensorRT before 9 computes shapes in.

    requires: int64 constants are axes, shapes and slice bounds. A slice bound beyond 2^31 means
        "to the end" before and after.
    ensures: every int64 constant fits in int32.
    """
    edit, changes = Editor(model), []
    limits = np.iinfo(np.int32)
    for value in list(model.graph.initializers.values()):
        array = constant(value)
        if array is None or array.dtype != np.int64 or ((array >= limits.min) & (array <= limits.max)).all():
            continue
        site = next(iter(value.uses())).node.name if value.uses() else value.name
        edit.replace(value, edit.constant(value.name, np.clip(array, limits.min, limits.max)))
        changes.append(Change("clamp_int64", site))
    return changes


def decompose_instance_norm(model: ir.Model) -> list[Change]:
    """InstanceNormalization -> mean, Sub, Mul(d, d), mean, Add, Sqrt, Div (and scale and bias).

    TensorRT 8.5 runs the op as a plug-in that needs cuDNN.

    ensures: no InstanceNormalization; the mean, the square and the root are named in `fp32`: a sum
        over thousands of samples and a square leave FP16's range.
    """
    edit, changes = Editor(model), []
    for node in _nodes(model, "InstanceNormalization"):
        x, gamma, beta = node.inputs[0], constant(node.inputs[1]), constant(node.inputs[2])
        if gamma is None or beta is None:
            continue
        rank = len(shape_of(x))
        y, tensors, fp32 = _normalize(edit, node, x, list(range(2, rank)), attribute(node, "epsilon", 1e-5))
        per_channel = (1, -1, *[1] * (rank - 2))
        y = _scale_and_shift(edit, node, y, gamma.reshape(per_channel), beta.reshape(per_channel), tensors)
        _finish(edit, node, y, tensors)
        changes.append(Change("decompose_instance_norm", _site(node), tensors, fp32))
    return changes


def decompose_layer_norm(model: ir.Model) -> list[Change]:
    """LayerNormalization -> mean, Sub, Mul(d, d), mean, Add, Sqrt, Div, scale and bias.

    TensorRT has no LayerNormalization before 8.6, and the exporters' own decomposition uses Pow.

    requires: the op's Mean and InvStdDev outputs are not used.
    ensures: no LayerNormalization; mean, square and root are named in `fp32`.
    """
    edit, changes = Editor(model), []
    for node in _nodes(model, "LayerNormalization"):
        if any(extra.uses() for extra in node.outputs[1:]):
            continue
        x, gamma = node.inputs[0], constant(node.inputs[1])
        beta = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if gamma is None or (len(node.inputs) > 2 and node.inputs[2] is not None and beta is None):
            continue
        rank = len(shape_of(x))
        axes = list(range(attribute(node, "axis", -1) % rank, rank))
        y, tensors, fp32 = _normalize(edit, node, x, axes, attribute(node, "epsilon", 1e-5))
        y = _scale_and_shift(edit, node, y, gamma, np.zeros(1, np.float32) if beta is None else beta, tensors)
        _finish(edit, node, y, tensors)
        changes.append(Change("decompose_layer_norm", _site(node), tensors, fp32))
    return changes


def _normalize(edit: Editor, node: ir.Node, x: ir.Value, axes: list[int], eps: float):
    """(x - mean) / sqrt(mean((x - mean)^2) + eps) over `axes`."""
    full = shape_of(x)
    reduced = tuple(1 if i in axes else d for i, d in enumerate(full))
    name = node.name
    keep = {"axes": axes, "keepdims": 1}
    epsilon = edit.constant(f"{name}.eps", np.float32(eps))
    mean = edit.add(node, "ReduceMean", [x], reduced, keep, f"{name}/mean")
    centred = edit.add(node, "Sub", [x, mean], full, name=f"{name}/centred")
    square = edit.add(node, "Mul", [centred, centred], full, name=f"{name}/square")
    variance = edit.add(node, "ReduceMean", [square], reduced, keep, f"{name}/variance")
    positive = edit.add(node, "Add", [variance, epsilon], reduced, name=f"{name}/variance_eps")
    std = edit.add(node, "Sqrt", [positive], reduced, name=f"{name}/std")
    y = edit.add(node, "Div", [centred, std], full, name=f"{name}/normalized")
    steps = (mean, centred, square, variance, positive, std, y)
    tensors = {value.name: "observe" for value in steps}
    # |x - mean| / std over n values is at most sqrt(n - 1): all the variance in one of them.
    n = math.prod(full[i] for i in axes)
    tensors[y.name] = f"bound {-math.sqrt(max(n - 1, 1)):.9g} {math.sqrt(max(n - 1, 1)):.9g}"
    return y, tensors, tuple(value.producer().name for value in steps)


def _scale_and_shift(edit: Editor, node: ir.Node, y: ir.Value, gamma: np.ndarray, beta: np.ndarray, tensors: dict[str, str]) -> ir.Value:
    if not (gamma == 1).all():
        y = edit.add(node, "Mul", [y, edit.constant(f"{node.name}.gamma", gamma)], shape_of(y), name=f"{node.name}/scaled")
        tensors[y.name] = "observe"
    if (beta != 0).any():
        y = edit.add(node, "Add", [y, edit.constant(f"{node.name}.beta", beta)], shape_of(y), name=f"{node.name}/shifted")
        tensors[y.name] = "observe"
    return y


def _finish(edit: Editor, node: ir.Node, y: ir.Value, tensors: dict[str, str]) -> None:
    """The last tensor of a decomposition takes the name, and with it the range, of the op's output."""
    tensors.pop(y.name, None)
    edit.take_over(node.outputs[0], y)


# --------------------------------------------------------------------------- convolutions


def conv1d_to_conv2d(model: ir.Model) -> list[Change]:
    """Conv and ConvTranspose on [n, c, t] -> the same on [n, c, 1, t], between Unsqueeze and Squeeze.

    TensorRT's parser does the same, but leaves the new tensors without names, so no scale of ours
    would reach them. `merge_layout_ops` then removes what stands between consecutive ones.

    requires: constant weights.
    ensures: no such op of rank 3; groups, strides, dilations, padding and bias as before.
    """
    edit, changes = Editor(model), []
    for node in _nodes(model, "Conv", "ConvTranspose"):
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
        name = _free_name(edit, node)
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


def linear_to_conv2d(model: ir.Model) -> list[Change]:
    """MatMul with a constant matrix (and its bias Add), and Gemm, -> a 1x1 Conv on 4-D tensors.

    [.., l, k] becomes [n, k, 1, l], so that the rows run along the convolution's width; [n, k]
    becomes [n, k, 1, 1]. TensorRT 8.5 runs MatMul and Gemm in FP32 or FP16 only, Conv in INT8.

    requires: the matrix and the bias are constants.
    ensures: no MatMul or Gemm with a constant right side is left; Transpose and Squeeze only stand
        around the convolution.
    """
    edit, changes = Editor(model), []
    for node in _nodes(model, "MatMul", "Gemm"):
        linear = _linear(node)
        if linear is None:
            continue
        matrix, bias, last = linear  # [k, m], [m] or None, the node whose output is the layer's
        x, old = node.inputs[0], last.outputs[0]
        k, m = matrix.shape
        name = _free_name(edit, node)
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

    name = _free_name(edit, node)
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
                edit.take_over(y, edit.add(node, "Transpose", [x], shape_of(y), {"perm": joined}, _free_name(edit, node)))
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


# --------------------------------------------------------------------------- common


def _nodes(model: ir.Model, *op_types: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type in op_types]


_REPLACED = "\0replaced "


def _free_name(edit: Editor, node: ir.Node) -> str:
    """The name of a node that is about to be replaced, so that its successor can have it."""
    name = node.name
    edit._taken.discard(name)
    node.name = _REPLACED + name
    return name


def _site(node: ir.Node) -> str:
    return node.name.removeprefix(_REPLACED)


REWRITES: Mapping[str, Callable[[ir.Model], list[Change]]] = {
    "pow_to_mul": pow_to_mul,
    "clamp_int64": clamp_int64,
    "decompose_instance_norm": decompose_instance_norm,
    "decompose_layer_norm": decompose_layer_norm,
    "conv1d_to_conv2d": conv1d_to_conv2d,
    "linear_to_conv2d": linear_to_conv2d,
    "merge_layout_ops": merge_layout_ops,
}

"""Arithmetic in forms that keep their meaning in FP16 and in old parsers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edgekit.graph import Editor, attribute, constant, shape_of
from edgekit.rewrites.change import Change, free_name, nodes_of, site_of

if TYPE_CHECKING:
    import onnx_ir as ir


def pow_to_mul(model: ir.Model) -> list[Change]:
    """Pow(x, 2) -> Mul(x, x): Pow goes through log and exp, which collapses in FP16.

    ensures: no Pow with the constant exponent 2.
    """
    edit, changes = Editor(model), []
    for node in nodes_of(model, "Pow"):
        exponent = constant(node.inputs[1])
        if exponent is None or exponent.size != 1 or float(exponent.reshape(())) != 2.0:
            continue
        x = node.inputs[0]
        edit.take_over(node.outputs[0], edit.add(node, "Mul", [x, x], shape_of(x), name=free_name(edit, node)))
        changes.append(Change("pow_to_mul", site_of(node)))
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
    for node in nodes_of(model, "InstanceNormalization"):
        x, gamma, beta = node.inputs[0], constant(node.inputs[1]), constant(node.inputs[2])
        if gamma is None or beta is None:
            continue
        rank = len(shape_of(x))
        y, tensors, fp32 = _normalize(edit, node, x, list(range(2, rank)), attribute(node, "epsilon", 1e-5))
        per_channel = (1, -1, *[1] * (rank - 2))
        y = _scale_and_shift(edit, node, y, gamma.reshape(per_channel), beta.reshape(per_channel), tensors)
        _finish(edit, node, y, tensors)
        changes.append(Change("decompose_instance_norm", site_of(node), tensors, fp32))
    return changes


def decompose_layer_norm(model: ir.Model) -> list[Change]:
    """LayerNormalization -> mean, Sub, Mul(d, d), mean, Add, Sqrt, Div, scale and bias.

    TensorRT has no LayerNormalization before 8.6, and the exporters' own decomposition uses Pow.

    requires: the op's Mean and InvStdDev outputs are not used.
    ensures: no LayerNormalization; mean, square and root are named in `fp32`.
    """
    edit, changes = Editor(model), []
    for node in nodes_of(model, "LayerNormalization"):
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
        changes.append(Change("decompose_layer_norm", site_of(node), tensors, fp32))
    return changes


def decompose_reduce_l2(model: ir.Model) -> list[Change]:
    """ReduceL2 -> Mul(x, x), ReduceSum, Sqrt.

    TensorFlow Lite has no such op, and in FP16 a sum of squares overflows from 65 504 on.

    requires: axes are an attribute or constant.
    ensures: no ReduceL2; square, sum and root are named in `fp32`.
    """
    edit, changes = Editor(model), []
    for node in nodes_of(model, "ReduceL2"):
        x, y = node.inputs[0], node.outputs[0]
        given = constant(node.inputs[1]) if len(node.inputs) > 1 else attribute(node, "axes", None)
        if given is None and len(node.inputs) > 1:
            continue
        axes = [int(a) for a in given] if given is not None else list(range(len(shape_of(x))))
        name = free_name(edit, node)
        square = edit.add(node, "Mul", [x, x], shape_of(x), name=f"{name}/square")
        total = edit.add(node, "ReduceSum", [square, edit.constant(f"{name}.axes", np.array(axes, np.int64))], shape_of(y), {"keepdims": attribute(node, "keepdims", 1)}, f"{name}/sum")
        edit.take_over(y, edit.add(node, "Sqrt", [total], shape_of(y), name=name))
        changes.append(Change("decompose_reduce_l2", name, {square.name: "observe", total.name: "observe"}, (f"{name}/square", f"{name}/sum", name)))
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



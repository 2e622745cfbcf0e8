"""Convolutions and matrix products: CONV_2D, DEPTHWISE_CONV_2D, TRANSPOSE_CONV, FULLY_CONNECTED, BATCH_MATMUL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.backends.tflite.lower import Constant, Lowering, Order, Ref, Tail, as_row, index_of, lowers, unsupported
from edgekit.backends.tflite.writer import Quant
from edgekit.graph import attribute, shape_of

if TYPE_CHECKING:
    import onnx_ir as ir

SAME, VALID = 0, 1  # the schema's Padding
ACTIVATIONS = {"NONE": 0, "RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}  # the schema's ActivationFunctionType
NHWC: Order = (0, 2, 3, 1)
NTC: Order = (0, None, 2, 1)  # [n, c, t] as a picture of height 1


# --------------------------------------------------------------------------- filters and biases


@dataclass(frozen=True)
class Filter:
    """Weights [channels, ...] with a bias [channels], float or int8."""

    weights: np.ndarray
    bias: np.ndarray
    scales: np.ndarray | None = None
    x_scale: float = 1.0

    def constants(self, low: Lowering, name: str, arrange, axis: int) -> tuple[int, int]:
        """The two tensors; `arrange` brings the weights into the kernel's order, whose channels are then `axis`."""
        if self.scales is None:
            return low.sub.constant(f"{name}.weight", arrange(self.weights)), low.sub.constant(f"{name}.bias", self.bias)
        bias_scales = self.scales.astype(np.float64) * self.x_scale
        weights = low.sub.constant(f"{name}.weight", np.ascontiguousarray(arrange(self.weights)), Quant.per_channel(self.scales, axis))
        return weights, low.sub.constant(f"{name}.bias", self.bias, Quant.per_channel(bias_scales, 0))


def make_filter(weight: Constant, axis: int, bias: np.ndarray | None, x: Quant | None, y: Quant | None) -> Filter:
    """Weights with their channel axis first and their bias: integers if `x` and `y` are given, else floats.

    The bias of an int8 kernel is an int32 at scale x * w. So a channel whose weights are all zero, and have
    no scale of their own, gets one at which its bias is fine enough, and a channel whose weights are so small
    that its bias would not fit is put on a coarser grid.
    """
    channels = weight.shape[axis]
    bias = np.zeros(channels, np.float32) if bias is None else np.ascontiguousarray(bias, np.float32)
    if x is None or y is None:
        return Filter(np.ascontiguousarray(np.moveaxis(weight.array, axis, 0), np.float32), bias)
    integers = np.ascontiguousarray(np.moveaxis(weight.integers, axis, 0))
    scales = np.broadcast_to(np.array(weight.quant.scale, np.float32), channels).copy()
    x_scale, y_scale = x.scale[0], y.scale[0]
    dead = ~integers.reshape(channels, -1).any(axis=1)
    scales[dead] = np.float32(y_scale / x_scale / 256)
    needed = (np.abs(bias.astype(np.float64)) / x_scale / 2**30).astype(np.float32)
    coarser = scales < needed
    if coarser.any():
        shrink = np.where(coarser, scales / np.where(coarser, needed, 1), 1).reshape(-1, *[1] * (integers.ndim - 1))
        integers = np.rint(integers * shrink).astype(np.int8)
        scales = np.where(coarser, needed, scales)
    exact = bias.astype(np.float64) / (scales.astype(np.float64) * x_scale)
    return Filter(integers, np.rint(exact).astype(np.int32), scales, x_scale)


def integer_numbers(x: Ref, weight: Constant, axis: int, tail: Tail) -> tuple[Quant, Quant] | tuple[None, None]:
    """(of the input, of the output) if the op can run in int8, else (None, None)."""
    if x.quant is None or tail.quant is None or weight.integers is None or any(weight.quant.zero_point):
        return None, None
    if len(weight.quant.scale) > 1 and weight.quant.axis != axis:
        return None, None
    return x.quant, tail.quant


def _bias(low: Lowering, node: ir.Node, channels: int) -> np.ndarray | None:
    """The bias input of a Conv or ConvTranspose."""
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return None
    found = low.constant(node.inputs[2])
    row = None if found is None else as_row(found.array, channels)
    if row is None:
        raise unsupported(node, "the bias is not a constant")
    return row


# --------------------------------------------------------------------------- Conv


@lowers("Conv", ranks=(3, 4))
def conv(low: Lowering, node: ir.Node) -> None:
    x, weight = low.ref(node.inputs[0]), low.constant(node.inputs[1])
    if weight is None:
        raise unsupported(node, "the weights are not constant")
    spatial = len(weight.shape) - 2
    if spatial not in (1, 2):
        raise unsupported(node, f"{spatial} spatial axes, 1 or 2 are taken", "list the rewrite `conv3d_to_conv2d` in the target" if spatial == 3 else None)
    group = attribute(node, "group", 1)
    stride, dilation = spatial_attribute(node, "strides", spatial), spatial_attribute(node, "dilations", spatial)
    in_hw, out_hw = as_2d(x.shape[2:]), as_2d(shape_of(node.outputs[0])[2:])
    kernel = as_2d(weight.shape[2:])
    pads = pads_of(node, in_hw, kernel, stride, dilation)

    tail = low.tail(node)
    order = NHWC if spatial == 2 else NTC
    in_q, out_q = integer_numbers(x, weight, 0, tail)
    made = make_filter(weight, 0, _bias(low, node, weight.shape[0]), in_q, out_q)
    source = low.floats(x, order) if in_q is None else low.native(x, order)
    padding, source = _pad_picture(low, source, in_hw, out_hw, kernel, stride, dilation, pads)
    options = {
        "padding": padding,
        "strideH": stride[0],
        "strideW": stride[1],
        "dilationHFactor": dilation[0],
        "dilationWFactor": dilation[1],
        "fusedActivationFunction": ACTIVATIONS[tail.activation],
    }
    o, i = weight.shape[:2]
    if i == 1 and group == x.shape[1] > 1:
        options["depthMultiplier"] = o // group
        weights, bias = made.constants(low, node.name, lambda w: w.reshape(o, *kernel).transpose(1, 2, 0)[None], 3)
        out = low.emit(tail, "DEPTHWISE_CONV_2D", [source, weights, bias], order=order, quant=out_q, options=options)
    else:
        weights, bias = made.constants(low, node.name, lambda w: w.reshape(o, i, *kernel).transpose(0, 2, 3, 1), 0)
        out = low.emit(tail, "CONV_2D", [source, weights, bias], order=order, quant=out_q, options=options)
    low.bind(tail.value, out)


def as_2d(sizes: Sequence[int], fill: int = 1) -> tuple[int, int]:
    """(height, width) of one or two sizes."""
    sizes = tuple(int(s) for s in sizes)
    return (fill, *sizes) if len(sizes) == 1 else sizes


def spatial_attribute(node: ir.Node, name: str, spatial: int) -> tuple[int, int]:
    return as_2d(attribute(node, name, [1] * spatial))


def pads_of(node: ir.Node, in_hw, kernel, stride, dilation) -> tuple[tuple[int, int], tuple[int, int]]:
    """((top, bottom), (left, right)) of a Conv or a pool."""
    auto = attribute(node, "auto_pad", "NOTSET")
    if auto == "VALID":
        return (0, 0), (0, 0)
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        both = []
        for d, k, s, r in zip(in_hw, kernel, stride, dilation, strict=True):
            total = max((math.ceil(d / s) - 1) * s + (k - 1) * r + 1 - d, 0)
            small, large = total // 2, total - total // 2
            both.append((small, large) if auto == "SAME_UPPER" else (large, small))
        return both[0], both[1]
    flat = attribute(node, "pads", None)
    if flat is None:
        return (0, 0), (0, 0)
    if len(flat) == 2:
        return (0, 0), (flat[0], flat[1])
    return (flat[0], flat[2]), (flat[1], flat[3])


def same_padding(in_hw, out_hw, kernel, stride, dilation, pads) -> bool:
    """Whether TFLite's SAME pads exactly like this."""
    for d, o, k, s, r, (before, after) in zip(in_hw, out_hw, kernel, stride, dilation, pads, strict=True):
        total = max((o - 1) * s + (k - 1) * r + 1 - d, 0)
        if o != math.ceil(d / s) or before != total // 2 or after < total - before:
            return False
    return True


def _pad_picture(low: Lowering, source: int, in_hw, out_hw, kernel, stride, dilation, pads) -> tuple[int, int]:
    """(the op's padding, the tensor to read)."""
    if not any(b or a for b, a in pads):
        return VALID, source
    if same_padding(in_hw, out_hw, kernel, stride, dilation, pads):
        return SAME, source
    return VALID, low.pad(source, ((0, 0), *pads, (0, 0)))


# --------------------------------------------------------------------------- ConvTranspose


@lowers("ConvTranspose", ranks=(3, 4))
def conv_transpose(low: Lowering, node: ir.Node) -> None:
    """TRANSPOSE_CONV, and a SLICE where the padding is not TFLite's SAME; groups one by one."""
    x, weight = low.ref(node.inputs[0]), low.constant(node.inputs[1])
    if weight is None:
        raise unsupported(node, "the weights are not constant")
    spatial = len(weight.shape) - 2
    if spatial not in (1, 2):
        raise unsupported(node, f"{spatial} spatial axes, 1 or 2 are taken")
    if spatial_attribute(node, "dilations", spatial) != (1, 1):
        raise unsupported(node, "dilated transposed convolution")
    if attribute(node, "auto_pad", "NOTSET") != "NOTSET" or attribute(node, "output_shape", None) is not None:
        raise unsupported(node, "padding that follows from the output's shape", "give `pads` and `output_padding`")
    group = attribute(node, "group", 1)
    stride, kernel = spatial_attribute(node, "strides", spatial), as_2d(weight.shape[2:])
    in_hw, out_hw = as_2d(x.shape[2:]), as_2d(shape_of(node.outputs[0])[2:])
    pads = pads_of(node, in_hw, kernel, stride, (1, 1))
    order = NHWC if spatial == 2 else NTC

    tail = low.tail(node)
    in_q, out_q = integer_numbers(x, weight, 1, tail)
    source = low.floats(x, order) if in_q is None else low.native(x, order)
    channels = weight.shape[1] * group
    bias = _bias(low, node, channels)
    same = all(o == d * s and p[0] == max((d - 1) * s + k - o, 0) // 2 for d, o, s, k, p in zip(in_hw, out_hw, stride, kernel, pads, strict=True))
    full = out_hw if same else tuple(max((d - 1) * s + k, p[0] + o) for d, s, k, p, o in zip(in_hw, stride, kernel, pads, out_hw, strict=True))

    crops = full != out_hw or (not same and any(p[0] for p in pads))
    n, o = x.shape[0], weight.shape[1]
    options = {"padding": SAME if same else VALID, "strideH": stride[0], "strideW": stride[1]}
    dtype = "float32" if out_q is None else "int8"
    shape = shape_of(tail.value)
    results = []
    for g, part in enumerate(_split_channels(low, source, group)):
        rows = slice(g * x.shape[1] // group, (g + 1) * x.shape[1] // group)
        own = Constant(weight.name, weight.array[rows], None if weight.integers is None else weight.integers[rows], weight.quant)
        made = make_filter(own, 1, None if bias is None else bias[g * o : (g + 1) * o], in_q, out_q)
        weights, bias_index = made.constants(low, node.name if group == 1 else f"{node.name}.{g}", lambda w: w.reshape(o, -1, *kernel).transpose(0, 2, 3, 1), 0)
        sizes = (n, *full, o)
        # Version 3 has a bias; a fused activation would need version 4, of TensorFlow Lite 2.13.
        inputs = [low.ints(sizes), weights, part, bias_index]
        if group == 1 and not crops:
            low.bind(tail.value, _activate(low, tail, low.emit(tail, "TRANSPOSE_CONV", inputs, shape, order, quant=out_q, options=options), order))
            return
        results.append(low.sub.tensor(f"{tail.value.name}/full", sizes, dtype, quant=out_q))
        low.sub.op("TRANSPOSE_CONV", inputs, [results[-1]], options)
        low.record(tail.nodes, results[-1])
    if not crops:
        out = low.emit(tail, "CONCATENATION", results, shape, order, quant=out_q, options={"axis": 3})
    else:
        joined = results[0]
        if group > 1:
            joined = low.sub.tensor(f"{tail.value.name}/groups", (n, *full, channels), dtype, quant=out_q)
            low.sub.op("CONCATENATION", results, [joined], {"axis": 3})
        begin, size = (0, *[0 if same else p[0] for p in pads], 0), (n, *out_hw, channels)
        out = low.emit(tail, "SLICE", [joined, low.ints(begin), low.ints(size)], shape, order, quant=out_q)
    low.bind(tail.value, _activate(low, tail, out, order))


def _activate(low: Lowering, tail: Tail, x: Ref, order: Order) -> Ref:
    """The tail's activation as an op of its own."""
    if tail.activation == "NONE":
        return x
    return low.emit(tail, tail.activation, [index_of(x)], shape_of(tail.value), order, quant=x.quant)


def _split_channels(low: Lowering, source: int, group: int) -> list[int]:
    if group == 1:
        return [source]
    tensor = low.sub.tensors[source]
    shape = (*tensor.shape[:-1], tensor.shape[-1] // group)
    parts = [low.sub.tensor(f"{tensor.name}/group{g}", shape, tensor.dtype, quant=tensor.quant) for g in range(group)]
    low.sub.op("SPLIT", [low.ints(len(shape) - 1), source], parts, {"numSplits": group})
    return parts


# --------------------------------------------------------------------------- Gemm and MatMul


@lowers("Gemm", ranks=(2,))
def gemm(low: Lowering, node: ir.Node) -> None:
    x, right = low.ref(node.inputs[0]), low.constant(node.inputs[1])
    if right is None:
        raise unsupported(node, "the second matrix is not constant")
    alpha, beta = float(attribute(node, "alpha", 1.0)), float(attribute(node, "beta", 1.0))
    if alpha != 1.0:
        integers = right.integers if alpha > 0 else None
        quant = right.quant if right.quant is None else Quant(tuple(s * abs(alpha) for s in right.quant.scale), right.quant.zero_point, right.quant.axis)
        right = Constant(right.name, right.array * np.float32(alpha), integers, quant)
    axis = 0 if attribute(node, "transB", 0) else 1
    bias = None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        found = low.constant(node.inputs[2])
        bias = None if found is None else as_row(found.array * np.float32(beta), right.shape[axis])
        if bias is None:
            raise unsupported(node, "the bias is not a constant row")
    if attribute(node, "transA", 0):
        x = x.view((1, 0))
    _fully_connected(low, node, x, right, axis, low.tail(node), bias)


@lowers("MatMul", ranks=(2, 3, 4, 5))
def matmul(low: Lowering, node: ir.Node) -> None:
    left, right = (low.constant(value) for value in node.inputs)
    if min(len(shape_of(node.inputs[0])) if left is None else left.array.ndim, len(shape_of(node.inputs[1])) if right is None else right.array.ndim) < 2:
        raise unsupported(node, "a product with a vector", "give both operands two axes")
    if left is None and right is not None and right.array.ndim == 2:
        tail = low.tail(node, bias_channels=right.shape[1])
        _fully_connected(low, node, low.ref(node.inputs[0]), right, 1, tail, tail.bias)
    else:
        _batch_matmul(low, node)


def _fully_connected(low: Lowering, node: ir.Node, x: Ref, matrix: Constant, axis: int, tail: Tail, bias: np.ndarray | None) -> None:
    """x [.., k] times a constant matrix whose axis `axis` is the output's."""
    rank = len(x.shape)
    order = order_with_last(x, rank - 1)
    in_q, out_q = integer_numbers(x, matrix, axis, tail)
    made = make_filter(matrix, axis, bias, in_q, out_q)
    source = low.floats(x, order) if in_q is None else low.native(x, order)
    weights, bias_index = made.constants(low, node.name, lambda w: w, 0)
    rows = [a for a in order[:-1] if a is not None and x.shape[a] > 1]
    if rank == 2 and len(rows) <= 1:
        order = (0, 1)  # without keepNumDims the kernel flattens all axes but the last
    options = {"fusedActivationFunction": ACTIVATIONS[tail.activation], "keepNumDims": len(order) > 2}
    low.bind(tail.value, low.emit(tail, "FULLY_CONNECTED", [source, weights, bias_index], order=order, quant=out_q, options=options))


def order_with_last(x: Ref, axis: int) -> Order:
    """The stored order if it ends with `axis`, else the logical order with it at the end. At least two axes."""
    stored = x.order
    if x.shape[axis] == 1 and axis not in stored:
        stored = (*stored, axis)
    if stored[-1] != axis:
        stored = (*(a for a in range(len(x.shape)) if a != axis), axis)
    return stored if len(stored) > 1 else (None, *stored)


def _batch_matmul(low: Lowering, node: ir.Node) -> None:
    tail = low.tail(node)
    shape = shape_of(node.outputs[0])
    rank = len(shape)
    a, b = (low.ref(value) for value in node.inputs)
    a, b = (v.view((None,) * (rank - len(v.shape)) + tuple(range(len(v.shape)))) for v in (a, b))
    batch = tuple(i for i in range(rank - 2) if shape[i] > 1)
    width = max(len(a.order), len(b.order), len(batch) + 2, 3)
    if len(batch) + 2 > 5:
        raise unsupported(node, f"{len(batch)} batch axes, 3 are taken")
    lead = (None,) * (min(width, 5) - len(batch) - 2) + batch
    order = (*lead, rank - 2, rank - 1)
    # Kernels read the right side's rows along k: a transposed right side that is stored with k last stays as it is.
    last = next((axis for axis in reversed(b.order) if axis is not None and b.shape[axis] > 1), rank - 1)
    flipped = last == rank - 2
    b_order = (*lead, rank - 1, rank - 2) if flipped else order
    integer = a.quant is not None and b.quant is not None and tail.quant is not None
    read = low.native if integer else low.floats
    out = low.emit(
        tail if tail.activation == "NONE" else Tail(node.outputs[0], "NONE", None, (node,)),
        "BATCH_MATMUL",
        [read(a, order), read(b, b_order)],
        order=order,
        quant=tail.quant if integer else None,
        options={"adjY": flipped},
    )
    low.bind(tail.value, _activate(low, tail, out, order))

"""Reductions, pooling, softmax and resizing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekit.backends.tflite.elementwise import FORCED, common_order
from edgekit.backends.tflite.lower import Constant, Lowering, Order, Ref, index_of, lowers, unsupported
from edgekit.backends.tflite.macs import NHWC, NTC, SAME, VALID, as_2d, order_with_last, pads_of, same_padding, spatial_attribute
from edgekit.backends.tflite.writer import Quant
from edgekit.graph import attribute, shape_of

if TYPE_CHECKING:
    import onnx_ir as ir

_REDUCTIONS = {"ReduceMean": "MEAN", "ReduceSum": "SUM", "ReduceMax": "REDUCE_MAX", "ReduceMin": "REDUCE_MIN", "ReduceProd": "REDUCE_PROD"}
_PICKS = ("REDUCE_MAX", "REDUCE_MIN")  # their result is one of their inputs


@lowers(*_REDUCTIONS, "GlobalAveragePool", "GlobalMaxPool")
def reduce(low: Lowering, node: ir.Node) -> None:
    """The axes stay, with length 1, in the file; a value without them is a view."""
    x = low.ref(node.inputs[0])
    rank = len(x.shape)
    if node.op_type.startswith("Global"):
        op, axes, keep = ("MEAN" if "Average" in node.op_type else "REDUCE_MAX"), list(range(2, rank)), True
    else:
        op, keep = _REDUCTIONS[node.op_type], bool(attribute(node, "keepdims", 1))
        given = low.constant(node.inputs[1]) if len(node.inputs) > 1 else None
        axes = [int(a) for a in given.array.reshape(-1)] if given is not None else list(attribute(node, "axes", None) or [])
        if not axes and attribute(node, "noop_with_empty_axes", 0):
            low.bind(node.outputs[0], x)
            return
        axes = [a % rank for a in axes] or list(range(rank))
    shape = tuple(1 if i in axes else d for i, d in enumerate(x.shape))
    out = x
    if shape != x.shape:
        order = common_order([x], x.shape)
        places = [order.index(a) for a in axes if a in order]
        quant = x.quant if op in _PICKS else low.quant_of(node.outputs[0])
        integer = x.quant is not None and quant is not None and op != "REDUCE_PROD"
        source = low.native(x, order) if integer else low.floats(x, order)
        out = low.emit(node, op, [source, low.ints(sorted(places))], shape, order, quant=quant if integer else None, options={"keepDims": True})
    low.bind(node.outputs[0], out if keep else out.view(i for i in range(rank) if i not in axes))


@lowers("Softmax", "LogSoftmax", ranks=(1, 2, 3, 4, 5))
def softmax(low: Lowering, node: ir.Node) -> None:
    x, quant = low.ref(node.inputs[0]), low.quant_of(node.outputs[0])
    axis = attribute(node, "axis", -1) % len(x.shape)
    op = "SOFTMAX" if node.op_type == "Softmax" else "LOG_SOFTMAX"
    order = order_with_last(x, axis)
    options = {"beta": 1.0} if op == "SOFTMAX" else {}
    if op == "SOFTMAX" and x.quant is not None and quant is not None:
        out = low.emit(node, op, [low.native(x, order)], order=order, quant=FORCED[op], options=options)
        low.bind(node.outputs[0], low.quantize(out, quant))
        return
    low.bind(node.outputs[0], low.emit(node, op, [low.floats(x, order)], order=order, options=options))


@lowers("MaxPool", "AveragePool", ranks=(3, 4))
def pool(low: Lowering, node: ir.Node) -> None:
    x, shape = low.ref(node.inputs[0]), shape_of(node.outputs[0])
    spatial = len(x.shape) - 2
    if spatial not in (1, 2):
        raise unsupported(node, f"{spatial} spatial axes, 1 or 2 are taken", "list the rewrite `conv3d_to_conv2d` in the target" if spatial == 3 else None)
    if len(node.outputs) > 1 or spatial_attribute(node, "dilations", spatial) != (1, 1):
        raise unsupported(node, "indices or dilation")
    kernel, stride = as_2d(attribute(node, "kernel_shape", None)), spatial_attribute(node, "strides", spatial)
    in_hw, out_hw = as_2d(x.shape[2:]), as_2d(shape[2:])
    # With ceil_mode the last window may reach beyond the padding: what it reads there is padding too.
    pads = [
        (b, max(a, (o - 1) * s + k - d - b))
        for (b, a), d, o, k, s in zip(pads_of(node, in_hw, kernel, stride, (1, 1)), in_hw, out_hw, kernel, stride, strict=True)
    ]
    order = NHWC if spatial == 2 else NTC
    average = node.op_type == "AveragePool"
    padded = any(b or a for b, a in pads)
    same = padded and same_padding(in_hw, out_hw, kernel, stride, (1, 1), pads)
    counts_padding = average and bool(attribute(node, "count_include_pad", 0))
    if average and attribute(node, "ceil_mode", 0) and counts_padding and padded:
        raise unsupported(node, "ceil_mode with count_include_pad")
    integer = x.quant is not None and (not average or low.quant_of(node.outputs[0]) is not None)
    correct: np.ndarray | None = None
    if padded and average and not counts_padding and not same:
        integer, correct = False, _share_of_real_pixels(in_hw, out_hw, kernel, stride, pads)
    if average and integer and (not padded or counts_padding) and low.quant_of(node.outputs[0]) != x.quant:
        low.bind(node.outputs[0], _average_by_conv(low, node, x, order, kernel, stride, pads))
        return
    source = low.native(x, order) if integer else low.floats(x, order)
    if padded and (not same or counts_padding):
        same = False
        source = low.pad(source, ((0, 0), *pads, (0, 0))) if average else _pad_lowest(low, source, ((0, 0), *pads, (0, 0)))
    options = {"padding": SAME if same else VALID, "strideH": stride[0], "strideW": stride[1], "filterHeight": kernel[0], "filterWidth": kernel[1]}
    op = "AVERAGE_POOL_2D" if average else "MAX_POOL_2D"
    out = low.emit(node, op, [source], shape, order, quant=x.quant if integer else None, options=options)
    if correct is not None:
        factor = Constant(f"{node.name}/factor", correct if spatial == 2 else correct[0])
        out = low.emit(node, "MUL", [index_of(out), low.laid_constant(factor, len(shape), order)], shape, order)
    low.bind(node.outputs[0], out)


def _average_by_conv(low: Lowering, node: ir.Node, x: Ref, order: Order, kernel, stride, pads) -> Ref:
    """An int8 mean in numbers of its own: AVERAGE_POOL_2D writes in those of its input, a convolution with ones of scale 1/n rounds once."""
    quant, channels = low.quant_of(node.outputs[0]), x.shape[1]
    ones = np.ones((1, *kernel, channels), np.int8)
    scale = np.full(channels, 1 / (kernel[0] * kernel[1]), np.float32)
    weights = low.sub.constant(f"{node.name}/ones", ones, Quant.per_channel(scale, 3))
    bias = low.sub.constant(f"{node.name}/zeros", np.zeros(channels, np.int32), Quant.per_channel(scale * x.quant.scale[0], 0))
    source = low.pad(low.native(x, order), ((0, 0), *pads, (0, 0)))
    options = {"padding": VALID, "strideH": stride[0], "strideW": stride[1], "depthMultiplier": 1}
    return low.emit(node, "DEPTHWISE_CONV_2D", [source, weights, bias], shape_of(node.outputs[0]), order, quant=quant, options=options)


def _share_of_real_pixels(in_hw, out_hw, kernel, stride, pads) -> np.ndarray:
    """[h, w]: window size / pixels of it that are no padding."""
    rows = []
    for d, o, k, s, (before, _) in zip(in_hw, out_hw, kernel, stride, pads, strict=True):
        start = np.arange(o) * s - before
        rows.append(k / (np.minimum(start + k, d) - np.maximum(start, 0)))
    return np.outer(rows[0], rows[1]).astype(np.float32)


def _pad_lowest(low: Lowering, source: int, pads) -> int:
    """Padded with the smallest value there is, which no maximum picks."""
    tensor = low.sub.tensors[source]

    def make() -> int:
        shape = tuple(d + b + a for d, (b, a) in zip(tensor.shape, pads, strict=True))
        lowest = np.array(-128, np.int8) if tensor.quant is not None else np.array(np.finfo(np.float32).min, np.float32)
        out = low.sub.tensor(f"{tensor.name}/padded", shape, tensor.dtype, quant=tensor.quant)
        low.sub.op("PADV2", [source, low.ints(pads), low.sub.constant(f"{tensor.name}/lowest", lowest, tensor.quant)], [out])
        return out

    return low.shared(("PADV2", source, tuple(pads)), make)


# --------------------------------------------------------------------------- Resize


@lowers("Resize", ranks=(4,))
def resize(low: Lowering, node: ir.Node) -> None:
    """RESIZE_NEAREST_NEIGHBOR or RESIZE_BILINEAR, if one of TFLite's three ways to map pixels is ONNX's."""
    x, shape = low.ref(node.inputs[0]), shape_of(node.outputs[0])
    if len(shape) != 4 or shape[:2] != x.shape[:2]:
        raise unsupported(node, "it resizes other axes than the last two of four")
    mode, ways = attribute(node, "mode", "nearest"), attribute(node, "coordinate_transformation_mode", "half_pixel")
    if mode == "nearest":
        op = "RESIZE_NEAREST_NEIGHBOR"
        options = _nearest_options(node, ways, x.shape[2:], shape[2:])
    elif mode == "linear" and (ways in ("half_pixel", "align_corners", "asymmetric") or (ways == "pytorch_half_pixel" and min(shape[2:]) > 1)):
        op, options = "RESIZE_BILINEAR", {"alignCorners": ways == "align_corners", "halfPixelCenters": "half_pixel" in ways}
    else:
        raise unsupported(node, f"mode `{mode}` with `{ways}`")
    integer = x.quant is not None and (mode == "nearest" or low.quant_of(node.outputs[0]) is not None)
    source = low.native(x, NHWC) if integer else low.floats(x, NHWC)
    out = low.emit(node, op, [source, low.ints(shape[2:])], shape, NHWC, quant=x.quant if integer else None, options=options)
    low.bind(node.outputs[0], out)


def _nearest_options(node: ir.Node, ways: str, old: tuple[int, ...], new: tuple[int, ...]) -> dict[str, bool]:
    rounding = attribute(node, "nearest_mode", "round_prefer_floor")
    for half, corners in ((False, False), (True, False), (False, True)):
        if all(np.array_equal(_onnx_nearest(ways, rounding, d, o), _tflite_nearest(half, corners, d, o)) for d, o in zip(old, new, strict=True)):
            return {"halfPixelCenters": half, "alignCorners": corners}
    raise unsupported(node, f"nearest with `{ways}` and `{rounding}` picks other pixels than TFLite can")


def _onnx_nearest(ways: str, rounding: str, d: int, o: int) -> np.ndarray:
    """Which of `d` pixels each of `o` is, by ONNX's Resize."""
    i, scale = np.arange(o), o / d
    at = {
        "half_pixel": (i + 0.5) / scale - 0.5,
        "pytorch_half_pixel": (i + 0.5) / scale - 0.5 if o > 1 else i * 0.0,
        "asymmetric": i / scale,
        "align_corners": i * (d - 1) / (o - 1) if o > 1 else i * 0.0,
    }.get(ways)
    if at is None:
        return np.full(o, -1)
    at = np.round(at, 9)
    picked = {
        "floor": np.floor(at),
        "ceil": np.ceil(at),
        "round_prefer_floor": np.ceil(at - 0.5),
        "round_prefer_ceil": np.floor(at + 0.5),
    }[rounding]
    return np.clip(picked, 0, d - 1).astype(int)


def _tflite_nearest(half: bool, corners: bool, d: int, o: int) -> np.ndarray:
    """The same by TFLite's reference kernel."""
    scale = (d - 1) / (o - 1) if corners and o > 1 else d / o
    at = np.round((np.arange(o) + (0.5 if half else 0)) * scale, 9)
    return np.clip(np.floor(at + 0.5) if corners else np.floor(at), 0, d - 1).astype(int)

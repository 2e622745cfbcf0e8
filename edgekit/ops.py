"""Complex convolution and complex transposed convolution: what they mean, in torch and in ONNX.

Each has an exact plain form, one real convolution with the block weights [[Wr, -Wi], [Wi, Wr]], and that
is computed wherever nothing better is at hand. Where edgekit-native is installed with its torch ops,
float32 tensors of few frames on a CPU go to the fused kernels; `native_ops` says whether that is so, or why not.
A traced or compiled graph holds the op whatever the number of frames, which may be dynamic there.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import ToolMissing, UsageError
from edgekit.native import LIBRARY_VARIABLE

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

TORCH_LIBRARY, OPENVINO_LIBRARY = "libedgekit_torch.so", "libedgekit_openvino.so"
ONNX_DOMAIN = "edgekit"
_INSTALL = "pip install --no-build-isolation ./native  # in the environment that has torch and openvino"

# What native/include/edgekit/ops.h promises; beyond it the plain form computes.
_MAX_TAPS, _MAX_KERNEL, _MAX_STRIDE, _MAX_PADDING, _MAX_CHANNELS = 32, 64, 16, 4096, 4096
# Over DCCRN's twelve layers the fused op is 5 times faster than torch's convolution on one frame, 1.2 times on 16; from 64 on torch is as fast or faster.
_FEW_FRAMES = 32


class ShapeError(UsageError):
    """Dimensions of two tensors do not fit together."""


def complex_conv2d(
    x: Tensor, w: Tensor, b: Tensor | None = None, stride: tuple[int, int] = (1, 1), padding: tuple[int, int, int, int] = (0, 0, 0, 0)
) -> Tensor:
    """Complex 2-D convolution on stacked real and imaginary channels.

    Args:
        x: [n, 2*c_in, f, t] float32; the first c_in channels are real, the rest imaginary.
        w: [2, c_out, c_in, kf, kt]; w[0] real, w[1] imaginary.
        b: [2, c_out] added as written. A DCCRN checkpoint holds two convs with biases p and q:
            pass (p - q, p + q), see models/dccrn.py.
        stride: (frequency, time) in bins and frames.
        padding: zeros around x, in ONNX's order: frequency begin, time begin, frequency end, time end.
            (2, 1, 2, 0) is DCCRN's encoder: causal, five bins wide.

    Returns:
        [n, 2*c_out, f_out, t_out], same stacking.

    Raises:
        ShapeError: a dimension does not match; the message has both shapes.

    Source: Hu et al. 2020 (DCCRN), arXiv 2008.00264.
    """
    _check(x, w, b, stride, padding, c_in=2)
    taps = w.shape[3] * w.shape[4]
    if taps <= _MAX_TAPS and _is_fused(x, w, b, stride, padding):
        import torch

        return torch.ops.edgekit.complex_conv2d(x, w, b, list(stride), list(padding))
    return packed_conv2d(x, w, b, stride, padding)


def complex_conv_transpose2d(
    x: Tensor, w: Tensor, b: Tensor | None = None, stride: tuple[int, int] = (1, 1), padding: tuple[int, int, int, int] = (0, 0, 0, 0)
) -> Tensor:
    """Complex transposed 2-D convolution on stacked real and imaginary channels.

    Args:
        x: [n, 2*c_in, f, t] float32, stacked as in `complex_conv2d`.
        w: [2, c_in, c_out, kf, kt], torch's transposed order; w[0] real, w[1] imaginary.
        b: [2, c_out] added as written.
        stride: (frequency, time).
        padding: what is cut off the full output, in ONNX's order. torch's output_padding makes the end's that
            much smaller. (2, 1, 1, 0) is DCCRN's decoder: padding 2, output_padding 1, the first frame dropped.

    Returns:
        [n, 2*c_out, f_out, t_out] with f_out = (f - 1) * stride + kf - padding begin - padding end.

    Raises:
        ShapeError: a dimension does not match; the message has both shapes.

    Source: Hu et al. 2020 (DCCRN), arXiv 2008.00264.
    """
    _check(x, w, b, stride, padding, c_in=1)
    taps = -(-w.shape[3] // stride[0]) * -(-w.shape[4] // stride[1])
    if taps <= _MAX_TAPS and max(w.shape[3:]) <= _MAX_KERNEL and _is_fused(x, w, b, stride, padding):
        import torch

        return torch.ops.edgekit.complex_conv_transpose2d(x, w, b, list(stride), list(padding))
    return packed_conv_transpose2d(x, w, b, stride, padding)


def packed_conv2d(x: Tensor, w: Tensor, b: Tensor | None, stride: tuple[int, int], padding: tuple[int, int, int, int]) -> Tensor:
    """`complex_conv2d` as one real convolution; any device, dtype and size."""
    from torch.nn import functional

    return functional.conv2d(_padded(x, padding), block_weight(w), None if b is None else b.flatten(), list(stride))


def packed_conv_transpose2d(x: Tensor, w: Tensor, b: Tensor | None, stride: tuple[int, int], padding: tuple[int, int, int, int]) -> Tensor:
    """`complex_conv_transpose2d` as one real transposed convolution; any device, dtype and size."""
    from torch.nn import functional

    y = functional.conv_transpose2d(x, block_weight(w, is_transposed=True), None if b is None else b.flatten(), list(stride))
    return y[:, :, padding[0] : y.shape[2] - padding[2], padding[1] : y.shape[3] - padding[3]]


def block_weight(w: Tensor, is_transposed: bool = False) -> Tensor:
    """Weights of the equal real convolution.

    Args:
        w: [2, c_out, c_in, kf, kt], or transposed [2, c_in, c_out, kf, kt].

    Returns:
        [2*c_out, 2*c_in, kf, kt] = [[Wr, -Wi], [Wi, Wr]], or transposed [2*c_in, 2*c_out, kf, kt] = [[Wr, Wi], [-Wi, Wr]].
    """
    import torch

    re, im = w[0], w[1]
    upper, lower = (im, -im) if is_transposed else (-im, im)
    return torch.cat([torch.cat([re, upper], 1), torch.cat([lower, re], 1)], 0)


def native_ops() -> tuple[bool, str]:
    """(whether the fused torch ops are used, their library or why there is none and what to do)."""
    path, missing = _library(TORCH_LIBRARY, "torch")
    if missing:
        return False, f"{missing}\n  hint: {_INSTALL}"
    if not _use_native():
        return False, f"{path} cannot be loaded by this torch: {_failure}"
    return True, str(path)


def openvino_extension() -> Path:
    """What `openvino.Core.add_extension` takes to run `edgekit.ComplexConv2d` and its transposed form by the fused kernels.

    It loads into the OpenVINO version that it was built with.

    Raises:
        ToolMissing: edgekit-native is not installed, or was built without OpenVINO.
    """
    path, missing = _library(OPENVINO_LIBRARY, "openvino")
    if path is None:
        raise ToolMissing(missing, _INSTALL)
    return path


def onnx_functions() -> list[onnx.FunctionProto]:
    """`edgekit.ComplexConv2d` and `edgekit.ComplexConvTranspose2d` as functions of standard operators (opset 17).

    Put them into a model's `functions` and import the domain `edgekit`, version 1: ONNX Runtime then runs nodes of
    that name, and OpenVINO runs its own kernel if native/openvino's extension is loaded. OpenVINO does not expand
    functions itself: without the extension, `onnx.inliner.inline_local_functions` leaves standard operators only.

    Inputs X, W, B as the torch functions have them, all required; attributes `strides` [2] and `pads` [4].
    """
    from onnx import helper

    functions = []
    for name, conv, upper, lower in (("ComplexConv2d", "Conv", "negative", "im"), ("ComplexConvTranspose2d", "ConvTranspose", "im", "negative")):
        node = helper.make_node(conv, ["X", "weight", "bias"], ["Y"])
        for attribute, kind in (("strides", "INTS"), ("pads", "INTS")):
            reference = node.attribute.add()
            reference.name = reference.ref_attr_name = attribute
            reference.type = _attribute_type(kind)
        nodes = [
            helper.make_node("Constant", [], ["zero"], value_int=0),
            helper.make_node("Constant", [], ["one"], value_int=1),
            helper.make_node("Constant", [], ["flat"], value_ints=[-1]),
            helper.make_node("Gather", ["W", "zero"], ["re"], axis=0),
            helper.make_node("Gather", ["W", "one"], ["im"], axis=0),
            helper.make_node("Neg", ["im"], ["negative"]),
            helper.make_node("Concat", ["re", upper], ["upper"], axis=1),
            helper.make_node("Concat", [lower, "re"], ["lower"], axis=1),
            helper.make_node("Concat", ["upper", "lower"], ["weight"], axis=0),
            helper.make_node("Reshape", ["B", "flat"], ["bias"]),
            node,
        ]
        functions.append(helper.make_function(ONNX_DOMAIN, name, ["X", "W", "B"], ["Y"], nodes, [helper.make_opsetid("", 17)], ["strides", "pads"]))
    return functions


def _attribute_type(kind: str) -> int:
    from onnx import AttributeProto

    return AttributeProto.AttributeType.Value(kind)


def _padded(x: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
    from torch.nn import functional

    return functional.pad(x, (padding[1], padding[3], padding[0], padding[2])) if any(padding) else x


def _check(x: Tensor, w: Tensor, b: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...], c_in: int) -> None:
    """Shapes that fit together. c_in: the axis of `w` that x's channels go into."""
    if x.dim() != 4 or w.dim() != 5 or w.shape[0] != 2:
        raise ShapeError(f"complex convolution: x is {list(x.shape)} and w is {list(w.shape)}", "x is [n, 2*c_in, f, t], w is [2, ., ., kf, kt]")
    if x.shape[1] != 2 * w.shape[c_in]:
        raise ShapeError(f"complex convolution: x {list(x.shape)} has {x.shape[1]} channels, w {list(w.shape)} reads 2*{w.shape[c_in]}")
    if b is not None and (b.dim() != 2 or b.shape[0] != 2 or b.shape[1] != w.shape[3 - c_in]):
        raise ShapeError(f"complex convolution: b is {list(b.shape)}, w {list(w.shape)} needs [2, {w.shape[3 - c_in]}]")
    if len(stride) != 2 or len(padding) != 4 or min(stride) < 1 or min(padding) < 0:
        raise ShapeError(f"complex convolution: stride {tuple(stride)}, padding {tuple(padding)}", "two numbers of 1 or more, and four of 0 or more")


def _is_fused(x: Tensor, w: Tensor, b: Tensor | None, stride: tuple[int, int], padding: tuple[int, int, int, int]) -> bool:
    import torch

    if not torch.compiler.is_compiling() and x.shape[0] * x.shape[3] > _FEW_FRAMES:
        return False
    tensors = (x, w) if b is None else (x, w, b)
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in tensors):
        return False
    return max(w.shape[1:3]) <= _MAX_CHANNELS and max(stride) <= _MAX_STRIDE and max(padding) <= _MAX_PADDING and _use_native()


def _native_folder() -> Path | None:
    """Where the libraries lie: as edgekit.native finds its own, but nothing is imported (torch.compile asks while it traces)."""
    if named := os.environ.get(LIBRARY_VARIABLE):
        return Path(named) if Path(named).is_dir() else Path(named).parent
    spec = find_spec("edgekit_native")
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _library(name: str, built_with: str) -> tuple[Path | None, str]:
    """(a library of edgekit-native, why there is none)."""
    folder = _native_folder()
    if folder is None:
        return None, "edgekit-native is not installed"
    path = folder / name
    return (path, "") if path.is_file() else (None, f"{folder} has no {name}: it was built where {built_with} was not to be seen")


_state: bool | None = None
_failure = ""


def _use_native() -> bool:
    """Whether torch.ops.edgekit has the fused ops; they are loaded by the first call."""
    global _state, _failure
    if _state is None:
        path, missing = _library(TORCH_LIBRARY, "torch")
        _state = False
        if not missing:
            import torch

            try:
                torch.ops.load_library(path)
            except OSError as error:
                _failure = str(error.__cause__ or error)
            else:
                _register()
                _state = True
    return _state


# torch.compile asks once while it traces and keeps the answer. (What torch.compiler.assume_constant_result sets; torch is not imported yet.)
_use_native._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _register() -> None:
    """Shapes for tracing, and gradients by plain operators. The fused ops only run forward."""
    import torch
    from torch.library import register_autograd, register_fake

    def fake_conv(x, w, b, stride, padding):
        f, t = ((x.shape[2 + axis] + padding[axis] + padding[axis + 2] - w.shape[3 + axis]) // stride[axis] + 1 for axis in (0, 1))
        return x.new_empty(x.shape[0], 2 * w.shape[1], f, t)

    def fake_transpose(x, w, b, stride, padding):
        f, t = ((x.shape[2 + axis] - 1) * stride[axis] + w.shape[3 + axis] - padding[axis] - padding[axis + 2] for axis in (0, 1))
        return x.new_empty(x.shape[0], 2 * w.shape[2], f, t)

    def keep(ctx, inputs, output):
        x, w, b, ctx.stride, ctx.padding = inputs
        ctx.has_bias = b is not None
        ctx.save_for_backward(x, w)

    def backward(ctx, grad, is_transposed):
        x, w = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
        top, left, bottom, right = ctx.padding
        if is_transposed:
            dy = _padded(grad, ctx.padding)
            dx, dw, _ = torch.ops.aten.convolution_backward(dy, x, block_weight(w, True), None, ctx.stride, [0, 0], [1, 1], True, [0, 0], 1, wanted)
        else:
            padded = _padded(x, ctx.padding)
            # Frames and bins that the last stride does not reach get zeros from convolution_backward itself.
            dx, dw, _ = torch.ops.aten.convolution_backward(grad, padded, block_weight(w), None, ctx.stride, [0, 0], [1, 1], False, [0, 0], 1, wanted)
            if wanted[0]:
                dx = dx[:, :, top : dx.shape[2] - bottom, left : dx.shape[3] - right]
        if wanted[1]:
            # The four blocks share two tensors: [[re, -im], [im, re]], transposed [[re, im], [-im, re]].
            rows, columns = w.shape[1], w.shape[2]
            rr, ri, ir, ii = dw[:rows, :columns], dw[:rows, columns:], dw[rows:, :columns], dw[rows:, columns:]
            dw = torch.stack([rr + ii, ri - ir if is_transposed else ir - ri])
        db = grad.sum((0, 2, 3)).reshape(2, -1) if ctx.has_bias else None
        return dx if wanted[0] else None, dw if wanted[1] else None, db, None, None

    register_fake("edgekit::complex_conv2d", fake_conv)
    register_fake("edgekit::complex_conv_transpose2d", fake_transpose)
    register_autograd("edgekit::complex_conv2d", lambda ctx, grad: backward(ctx, grad, False), setup_context=keep)
    register_autograd("edgekit::complex_conv_transpose2d", lambda ctx, grad: backward(ctx, grad, True), setup_context=keep)

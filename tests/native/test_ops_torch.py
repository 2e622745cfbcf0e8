"""edgekit.ops in torch: the definition by complex numbers, the fused custom ops, and what traces through them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from edgekit import ops

CONV, TRANSPOSE = ops.complex_conv2d, ops.complex_conv_transpose2d
PLAIN = {CONV: ops.packed_conv2d, TRANSPOSE: ops.packed_conv_transpose2d}


@pytest.fixture(scope="module")
def fused():
    """The custom ops by the function that dispatches to them."""
    is_there, what = ops.native_ops()
    if not is_there:
        pytest.skip(f"needs the torch ops of edgekit-native: {what}")
    return {CONV: torch.ops.edgekit.complex_conv2d.default, TRANSPOSE: torch.ops.edgekit.complex_conv_transpose2d.default}


def arguments(function, c_in=3, c_out=5, f=12, t=9, kernel=(5, 2), stride=(2, 1), padding=None, bias=True, n=2, dtype=torch.float32):
    draw = torch.Generator().manual_seed(c_in + 10 * c_out + 100 * f + t)
    x = torch.randn(n, 2 * c_in, f, t, generator=draw, dtype=dtype)
    w = torch.randn(2, *((c_in, c_out) if function is TRANSPOSE else (c_out, c_in)), *kernel, generator=draw, dtype=dtype)
    b = torch.randn(2, c_out, generator=draw, dtype=dtype) if bias else None
    return x, w, b, stride, padding or ((2, 1, 1, 0) if function is TRANSPOSE else (2, 1, 2, 0))


def as_listed(x, w, b, stride, padding):
    return x, w, b, list(stride), list(padding)


def by_complex_numbers(function, x, w, b, stride, padding):
    z = torch.complex(*x.chunk(2, 1))
    top, left, bottom, right = padding
    bias = None if b is None else torch.complex(b[0], b[1])
    if function is TRANSPOSE:
        y = functional.conv_transpose2d(z, torch.complex(w[0], w[1]), bias, stride)
        y = y[:, :, top : y.shape[2] - bottom, left : y.shape[3] - right]
    else:
        y = functional.conv2d(functional.pad(z, (left, right, top, bottom)), torch.complex(w[0], w[1]), bias, stride)
    return torch.cat([y.real, y.imag], 1)


def assert_close(got, want, relative=1e-5):  # float32 sums of some hundred products
    assert got.shape == want.shape and got.dtype == want.dtype
    worst = (got - want).abs().max().item()
    assert worst <= relative * max(1.0, want.abs().max().item()), worst


CASES = [
    {},
    {"bias": False, "kernel": (3, 3), "stride": (1, 2), "padding": (0, 0, 0, 0)},
    {"c_in": 16, "c_out": 17, "f": 7, "t": 33, "kernel": (4, 3), "stride": (3, 2), "padding": (1, 2, 0, 1)},
    {"c_in": 1, "c_out": 1, "f": 1, "t": 1, "kernel": (1, 1), "stride": (1, 1), "padding": (0, 0, 0, 0)},
]


@pytest.mark.parametrize("function", [CONV, TRANSPOSE])
@pytest.mark.parametrize("case", CASES)
def test_plain_form_equals_convolution_of_complex_numbers(function, case):
    given = arguments(function, dtype=torch.float64, **case)
    assert_close(PLAIN[function](*given), by_complex_numbers(function, *given), 1e-12)
    assert_close(function(*given), by_complex_numbers(function, *given), 1e-12)  # float64 is not the fused op's business


@pytest.mark.parametrize("function", [CONV, TRANSPOSE])
@pytest.mark.parametrize("case", CASES)
def test_fused_op_equals_the_plain_form(fused, function, case):
    given = arguments(function, **case)
    assert_close(fused[function](*as_listed(*given)), PLAIN[function](*given))
    assert_close(function(*given), PLAIN[function](*given))


@pytest.mark.parametrize("function", [CONV, TRANSPOSE])
def test_strided_views_are_read_as_they_look(fused, function):
    x, w, b, stride, padding = arguments(function)
    views = (x.transpose(2, 3).contiguous().transpose(2, 3), w.flip(3).contiguous().flip(3), b.t().contiguous().t())
    assert_close(fused[function](*views, list(stride), list(padding)), PLAIN[function](x, w, b, stride, padding))


def test_weights_changed_in_place_are_used_at_once(fused):
    """Packed weights are kept between calls of few frames; nothing tells the library that a tensor was written to."""
    x, w, b, stride, padding = arguments(CONV, t=2)
    CONV(x, w, b, stride, padding)
    w[1, 4, 2, 4, 1] += 1
    assert_close(CONV(x, w, b, stride, padding), ops.packed_conv2d(x, w, b, stride, padding))
    b[0, 0] += 1
    assert_close(CONV(x, w, b, stride, padding), ops.packed_conv2d(x, w, b, stride, padding))
    assert_close(CONV(x, w, None, stride, padding), ops.packed_conv2d(x, w, None, stride, padding))
    assert_close(CONV(x, w, b, stride, (2, 1, 1, 0)), ops.packed_conv2d(x, w, b, stride, (2, 1, 1, 0)))


def test_more_taps_than_the_kernels_take_are_computed_by_the_plain_form(fused):
    given = arguments(CONV, kernel=(7, 5), padding=(3, 2, 3, 2))
    assert_close(CONV(*given), by_complex_numbers(CONV, *given))
    with pytest.raises(RuntimeError, match="35 taps reach one output; at most 32 may"):
        fused[CONV](*as_listed(*given))


@pytest.mark.parametrize("function", [CONV, TRANSPOSE])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_equal_those_of_the_plain_form(fused, function, bias):
    x, w, b, stride, padding = arguments(function, bias=bias, t=10)
    leaves = [t.requires_grad_() for t in (x, w, b) if t is not None]
    y = fused[function](*as_listed(x, w, b, stride, padding))
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    for got, want in zip(torch.autograd.grad(y, leaves, dy), torch.autograd.grad(PLAIN[function](x, w, b, stride, padding), leaves, dy), strict=True):
        assert_close(got, want)


@pytest.mark.parametrize("function", [CONV, TRANSPOSE])
@pytest.mark.parametrize("needs_grad", [False, True])
def test_opcheck(fused, function, needs_grad):
    x, w, b, stride, padding = arguments(function)
    given = (x.requires_grad_(needs_grad), w.requires_grad_(needs_grad), b, list(stride), list(padding))
    assert set(torch.library.opcheck(fused[function], given).values()) == {"SUCCESS"}


def test_long_clips_go_to_torchs_own_convolution_unless_traced(fused, monkeypatch):
    """Which is as fast there; a graph with dynamic frames can hold one op only."""
    called = []
    monkeypatch.setattr(ops, "packed_conv2d", lambda *given: called.append(given[0].shape[3]))
    for t in (1, 16, 33, 400):
        x, w, b, stride, padding = arguments(CONV, n=1, t=t)
        CONV(x, w, b, stride, padding)
    assert called == [33, 400]


class Layer(torch.nn.Module):
    def __init__(self, function, w, b, stride, padding):
        super().__init__()
        self.function, self.w, self.b, self.stride, self.padding = function, torch.nn.Parameter(w), torch.nn.Parameter(b), stride, padding

    def forward(self, x):
        return self.function(x, self.w, self.b, self.stride, self.padding) * 2


@pytest.mark.parametrize("function", [CONV, TRANSPOSE])
def test_export_with_dynamic_clips_and_frames_keeps_the_op(fused, function):
    x, *rest = arguments(function)
    layer = Layer(function, *rest)
    shapes = {"x": {0: torch.export.Dim("n"), 3: torch.export.Dim("t", min=2)}}
    program = torch.export.export(layer, (x,), dynamic_shapes=shapes)
    assert fused[function] in {node.target for node in program.graph.nodes}
    other = torch.randn(3, 6, 12, 21, generator=torch.Generator().manual_seed(1))
    assert_close(program.module()(other), layer(other))


@pytest.mark.parametrize("function", [CONV, TRANSPOSE])
def test_compile_takes_the_whole_graph_forward_and_back(fused, function):
    x, *rest = arguments(function)
    layer = Layer(function, *rest)
    # aot_eager: what inductor is given, without its C++ compiler.
    y = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(y, layer(x))
    y.square().sum().backward()
    got, layer.w.grad = layer.w.grad, None
    (PLAIN[function](x, layer.w, layer.b, *rest[2:]) * 2).square().sum().backward()
    assert_close(got, layer.w.grad)


def test_shapes_that_do_not_fit_are_named():
    x, w, b, stride, padding = arguments(CONV)
    with pytest.raises(ops.ShapeError, match=r"x \[2, 4, 12, 9\] has 4 channels, w \[2, 5, 3, 5, 2\] reads 2\*3"):
        CONV(x[:, :4], w, b, stride, padding)
    with pytest.raises(ops.ShapeError, match=r"b is \[2, 4\], w \[2, 5, 3, 5, 2\] needs \[2, 5\]"):
        CONV(x, w, b[:, :4], stride, padding)
    with pytest.raises(ops.ShapeError, match=r"x is \[6, 12, 9\] and w is"):
        TRANSPOSE(x[0], w, b, stride, padding)
    with pytest.raises(ops.ShapeError, match=r"stride \(0, 1\)"):
        TRANSPOSE(x, w.transpose(1, 2), b, (0, 1), padding)


def test_without_the_native_package_the_plain_form_computes_and_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_NATIVE", str(tmp_path))
    monkeypatch.setattr(ops, "_state", None)
    given = arguments(CONV)
    assert_close(CONV(*given), by_complex_numbers(CONV, *given))
    is_there, what = ops.native_ops()
    assert not is_there and f"{tmp_path} has no libedgekit_torch.so" in what and "pip install --no-build-isolation ./native" in what

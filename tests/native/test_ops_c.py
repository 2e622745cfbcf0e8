"""ek_complex_conv2d of libedgekit.so against a plain float64 definition, through ctypes."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edgekit import native
from edgekit.errors import ToolMissing

BAD_ARGUMENT, UNSUPPORTED = 1, 4


class Shape(ctypes.Structure):
    _fields_ = [
        ("transposed", ctypes.c_int32),
        ("c_in", ctypes.c_int32),
        ("c_out", ctypes.c_int32),
        ("f", ctypes.c_int32),
        ("kernel", ctypes.c_int32 * 2),
        ("stride", ctypes.c_int32 * 2),
        ("padding", ctypes.c_int32 * 4),
    ]


@pytest.fixture(scope="module")
def lib():
    try:
        library = native.library()
    except ToolMissing as missing:
        pytest.skip(f"needs the native library: {missing.message}")
    library.ek_complex_conv2d_free.restype, library.ek_complex_conv2d_free.argtypes = None, [ctypes.c_void_p]
    return library


def floats(a):
    return None if a is None else a.ctypes.data_as(ctypes.c_void_p)


def shape_of(x, w, stride, padding, transposed) -> Shape:
    c_out, c_in = (w.shape[2], w.shape[1]) if transposed else (w.shape[1], w.shape[2])
    return Shape(transposed, c_in, c_out, x.shape[2], tuple(w.shape[3:]), stride, padding)


def output(lib, shape, t) -> tuple[int, int]:
    f_out, t_out = ctypes.c_int64(), ctypes.c_int64()
    status = lib.ek_complex_conv2d_output(ctypes.byref(shape), ctypes.c_int64(t), ctypes.byref(f_out), ctypes.byref(t_out))
    if status:
        raise ValueError(status)
    return f_out.value, t_out.value


def convolve(lib, x, w, b, stride, padding, transposed=False):
    shape = shape_of(x, w, stride, padding, transposed)
    f_out, t_out = output(lib, shape, x.shape[3])
    y = np.full((x.shape[0], 2 * shape.c_out, f_out, t_out), np.nan, np.float32)
    function = lib.ek_complex_conv_transpose2d_f32 if transposed else lib.ek_complex_conv2d_f32
    status = function(ctypes.byref(shape), ctypes.c_int64(x.shape[0]), ctypes.c_int64(x.shape[3]), floats(x), floats(w), floats(b), floats(y))
    if status:
        raise ValueError(status)
    return y


def defined(x, w, b, stride, padding, transposed=False):
    """The definition by sums over the kernel, in complex128."""
    z = x[:, : x.shape[1] // 2] + 1j * x[:, x.shape[1] // 2 :].astype(np.float64)
    k = w[0] + 1j * w[1].astype(np.float64)
    n, _, f, t = z.shape
    kf, kt = k.shape[2:]
    top, left, bottom, right = padding
    if transposed:
        full = np.zeros((n, k.shape[1], (f - 1) * stride[0] + kf, (t - 1) * stride[1] + kt), np.complex128)
        for i in range(kf):
            for j in range(kt):
                full[:, :, i : i + (f - 1) * stride[0] + 1 : stride[0], j : j + (t - 1) * stride[1] + 1 : stride[1]] += np.einsum(
                    "ncft,cd->ndft", z, k[:, :, i, j]
                )
        y = full[:, :, top : max(full.shape[2] - bottom, 0), left : max(full.shape[3] - right, 0)]
    else:
        z = np.pad(z, ((0, 0), (0, 0), (top, bottom), (left, right)))
        f_out, t_out = (max((z.shape[2 + a] - (kf, kt)[a]) // stride[a] + 1, 0) for a in (0, 1))
        y = np.zeros((n, k.shape[0], f_out, t_out), np.complex128)
        for i in range(kf if y.size else 0):
            for j in range(kt):
                y += np.einsum(
                    "ncft,dc->ndft", z[:, :, i : i + (f_out - 1) * stride[0] + 1 : stride[0], j : j + (t_out - 1) * stride[1] + 1 : stride[1]], k[:, :, i, j]
                )
    if b is not None:
        y = y + (b[0] + 1j * b[1].astype(np.float64))[None, :, None, None]
    return np.concatenate([y.real, y.imag], 1)


def tensors(rng, n, c_in, c_out, f, t, kernel, transposed, bias=True):
    x = rng.standard_normal((n, 2 * c_in, f, t), np.float32)
    w = rng.standard_normal((2, *((c_in, c_out) if transposed else (c_out, c_in)), *kernel), np.float32)
    return x, w, rng.standard_normal((2, c_out), np.float32) if bias else None


def assert_equal(got, want):
    assert got.shape == want.shape
    # float32 sums of up to 2 * 256 * 10 products: a few units in the last place of the largest.
    worst = np.abs(got - want).max()
    assert worst <= 1e-5 * max(1, np.abs(want).max()), worst


ENCODER, DECODER = ((5, 2), (2, 1), (2, 1, 2, 0)), ((5, 2), (2, 1), (2, 1, 1, 0))


@pytest.mark.parametrize(("c_in", "c_out", "f"), [(1, 16, 256), (16, 32, 128), (32, 64, 64), (64, 128, 32), (128, 128, 8)])
@pytest.mark.parametrize("t", [1, 2, 17])
def test_dccrn_encoder_layers_equal_the_definition(lib, c_in, c_out, f, t):
    kernel, stride, padding = ENCODER
    x, w, b = tensors(np.random.default_rng(f + t), 1, c_in, c_out, f, t, kernel, False)
    assert_equal(convolve(lib, x, w, b, stride, padding), defined(x, w, b, stride, padding))


@pytest.mark.parametrize(("c_in", "c_out", "f"), [(256, 128, 4), (256, 64, 16), (128, 32, 32), (64, 16, 64), (32, 1, 128)])
@pytest.mark.parametrize("t", [1, 2, 17])
def test_dccrn_decoder_layers_equal_the_definition(lib, c_in, c_out, f, t):
    kernel, stride, padding = DECODER
    x, w, b = tensors(np.random.default_rng(f + t), 1, c_in, c_out, f, t, kernel, True)
    assert_equal(convolve(lib, x, w, b, stride, padding, True), defined(x, w, b, stride, padding, True))


@pytest.mark.parametrize("seed", range(8))
def test_any_kernel_stride_padding_and_width_equals_the_definition(lib, seed):
    rng = np.random.default_rng(seed)
    computed = 0
    for _ in range(40):
        transposed = bool(rng.integers(2))
        n, c_in, c_out = int(rng.integers(1, 4)), *(int(c) for c in rng.choice([1, 2, 15, 16, 17, 33], 2))
        f, t = int(rng.integers(1, 24)), int(rng.choice([1, 2, 15, 16, 17, 33, 40]))
        kernel, stride = (int(rng.integers(1, 8)), int(rng.integers(1, 5))), tuple(int(s) for s in rng.integers(1, 4, 2))
        padding = tuple(int(p) for p in rng.integers(0, 4, 4))
        x, w, b = tensors(rng, n, c_in, c_out, f, t, kernel, transposed, bool(rng.integers(2)))
        want = defined(x, w, b, stride, padding, transposed)
        if want.size == 0:
            with pytest.raises(ValueError, match=str(BAD_ARGUMENT)):
                convolve(lib, x, w, b, stride, padding, transposed)
            continue
        assert_equal(convolve(lib, x, w, b, stride, padding, transposed), want)
        computed += 1
    assert computed > 20


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512", "neon"])
def test_every_instruction_set_of_this_cpu_equals_the_definition(lib, monkeypatch, isa):
    monkeypatch.setenv("EDGEKIT_ISA", isa)
    if lib.ek_best_isa() is None:
        pytest.skip(f"this CPU or build lacks {isa}")
    x, w, b = tensors(np.random.default_rng(1), 2, 17, 33, 13, 19, (5, 2), False)
    assert_equal(convolve(lib, x, w, b, (2, 1), (2, 1, 2, 0)), defined(x, w, b, (2, 1), (2, 1, 2, 0)))


def test_a_stride_beyond_the_kernel_leaves_the_bias_alone(lib):
    x, w, b = tensors(np.random.default_rng(2), 1, 3, 4, 5, 6, (2, 1), True)
    y = convolve(lib, x, w, b, (3, 2), (0, 0, 0, 0), True)
    assert np.array_equal(y[0, :, 2, 0], b.flatten()) and np.array_equal(y[0, :, 0, 1], b.flatten())


def test_one_nan_frame_spoils_the_frames_that_read_it_and_no_other(lib):
    x, w, b = tensors(np.random.default_rng(3), 1, 3, 5, 12, 40, (5, 2), False)
    x[:, :, :, 20] = np.nan
    y = convolve(lib, x, w, b, *ENCODER[1:])
    assert np.isnan(y[..., 20:22]).all() and np.isfinite(y[..., :20]).all() and np.isfinite(y[..., 22:]).all()


def test_ranges_of_frames_from_many_threads_make_up_the_whole(lib):
    x, w, b = tensors(np.random.default_rng(4), 3, 9, 20, 12, 21, (5, 2), True)
    want = convolve(lib, x, w, b, *DECODER[1:], True)
    shape, packed = shape_of(x, w, *DECODER[1:], True), ctypes.c_void_p()
    assert lib.ek_complex_conv2d_pack(ctypes.byref(shape), floats(w), floats(b), ctypes.byref(packed)) == 0
    y = np.full_like(want, np.nan)

    def run(first):
        last = min(first + 5, 3 * want.shape[3])
        return lib.ek_complex_conv2d_run(packed, *(ctypes.c_int64(v) for v in (3, 21)), floats(x), floats(y), ctypes.c_int64(first), ctypes.c_int64(last))

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(run, range(0, 3 * want.shape[3], 5))) == {0}
    lib.ek_complex_conv2d_free(packed)
    assert np.array_equal(y, want)


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"kernel": (7, 5)}, UNSUPPORTED, "35 taps"),
        ({"stride": (0, 1)}, BAD_ARGUMENT, "stride in frequency is 0"),
        ({"stride": (2, 17)}, BAD_ARGUMENT, "stride in time is 17"),
        ({"padding": (-1, 0, 0, 0)}, BAD_ARGUMENT, "first frequency is -1"),
        ({"c_in": 0}, BAD_ARGUMENT, "c_in is 0"),
        ({"c_out": 2**31 - 1}, BAD_ARGUMENT, "c_out is"),
        ({"f": 2}, BAD_ARGUMENT, "nothing comes out of 2 frequencies"),
        ({"transposed": 2}, BAD_ARGUMENT, "`transposed` is 2"),
    ],
)
def test_what_is_beyond_the_limits_is_a_status_with_a_sentence(lib, change, status, words):
    shape = Shape(0, 2, 3, 12, (5, 2), (2, 1), (0, 0, 0, 0))
    for name, value in change.items():
        setattr(shape, name, type(getattr(shape, name))(*value) if isinstance(value, tuple) else value)
    with pytest.raises(ValueError, match=str(status)):
        output(lib, shape, 4)
    assert words in lib.ek_last_message().decode()


def test_null_pointers_are_refused(lib):
    shape, y = Shape(0, 2, 3, 12, (5, 2), (2, 1), (0, 0, 0, 0)), np.zeros(1, np.float32)
    one = ctypes.c_int64(1)
    assert lib.ek_complex_conv2d_f32(None, one, one, floats(y), floats(y), None, floats(y)) == BAD_ARGUMENT
    assert lib.ek_complex_conv2d_f32(ctypes.byref(shape), one, one, floats(y), None, None, floats(y)) == BAD_ARGUMENT
    assert lib.ek_complex_conv2d_pack(ctypes.byref(shape), floats(y), None, None) == BAD_ARGUMENT
    assert lib.ek_complex_conv2d_run(None, one, one, floats(y), floats(y), ctypes.c_int64(0), one) == BAD_ARGUMENT

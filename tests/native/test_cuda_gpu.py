"""The CUDA engine on a GPU, through its C API. Needs one, and EDGEKIT_NATIVE=…/libedgekit.so built with `cmake --preset cuda`; else skipped.

What the same nodes give on a CPU is in test_cuda_frame.py; here it is that a GPU agrees, and what only a GPU can show.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

SCRIPT = Path(__file__).parents[2] / "native/bench/gpu.py"


def library() -> ctypes.CDLL | str:
    """The library, or why there is none to test."""
    path = os.environ.get("EDGEKIT_NATIVE")
    if not path:
        return "needs EDGEKIT_NATIVE, a libedgekit.so with CUDA"
    found = ctypes.CDLL(path)
    if not hasattr(found, "ek_cuda_devices"):
        return f"{path} was built without CUDA"
    found.ek_last_message.restype = ctypes.c_char_p
    return found


LIBRARY = library()
HAS_CUDA = not isinstance(LIBRARY, str)
needs_gpu = pytest.mark.skipif(not HAS_CUDA or LIBRARY.ek_cuda_devices() == 0, reason=LIBRARY if not HAS_CUDA else "needs a CUDA device")


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu_bench", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def network(gpu, config: str, streams: int, frames: int):
    """Weight file, clips [streams, 2, bins, frames] and their masks by torch in fp64."""
    module, cfg = gpu.random_module(config)
    clips = torch.randn(streams, 2, cfg.n_fft // 2, frames, generator=torch.Generator().manual_seed(1))
    weights = gpu.weight_file(module, cfg)
    with torch.no_grad():
        return weights, clips.numpy(), module.double().mask(clips.double()).numpy(), cfg.delay


def allowed(precision: str, want: np.ndarray) -> float:
    return {"fp32": 1e-5, "fp16": 1e-2}[precision] * float(np.abs(want).max())  # some tens of roundings of 2^-24 and of 2^-11


@needs_gpu
@pytest.mark.parametrize("io", [0, 1])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("config", "streams"), [("tiny", 5), ("tiny_causal", 1), ("half", 8), ("default", 1), ("default", 8), ("default", 64)])
def test_streams_equal_torch_to_the_last_frame_of_the_clip(gpu, config, streams, precision, io):
    frames = 10
    weights, clips, want, delay = network(gpu, config, streams, frames)
    engine = gpu.Engine(LIBRARY, weights, streams, precision, io)
    masks = [engine.step(np.ascontiguousarray(clips[..., t])).copy() for t in range(frames)]
    for stream in range(streams):
        engine.end(stream)
    rubbish = np.full((streams, 2, clips.shape[2]), 9.0, np.float32)
    masks += [engine.step(rubbish).copy() for _ in range(delay)]
    assert np.abs(np.stack(masks[delay:], -1) - want).max() <= allowed(precision, want)
    engine.close()


@needs_gpu
def test_a_reset_stream_starts_over_and_the_others_go_on(gpu):
    streams, frames = 3, 9
    weights, clips, want, delay = network(gpu, "tiny", streams, frames)
    engine = gpu.Engine(LIBRARY, weights, streams, "fp32")
    for now in range(frames + 4):
        if now == 4:
            engine.reset(1)
        spectrum = np.stack([clips[s, ..., min(now - (4 if s == 1 and now >= 4 else 0), frames - 1)] for s in range(streams)])
        masks = engine.step(np.ascontiguousarray(spectrum))
        for s in range(streams):
            t = now - (4 if s == 1 else 0) - delay
            if t >= 0 and now - (4 if s == 1 else 0) < frames:
                assert np.abs(masks[s] - want[s, ..., t]).max() <= allowed("fp32", want)
    engine.close()


@needs_gpu
def test_dccrn_is_sixteen_nodes_a_frame(gpu):
    module, cfg = gpu.random_module("default")
    weights = gpu.weight_file(module, cfg)
    for streams in (1, 8, 64):
        for precision in ("fp32", "fp16"):
            engine = gpu.Engine(LIBRARY, weights, streams, precision)
            assert engine.info.graph_nodes == 16
            engine.close()


@needs_gpu
def test_bad_spectra_are_refused_and_no_stream_moves_on(gpu):
    weights, clips, want, _ = network(gpu, "tiny_causal", 2, 6)
    engine = gpu.Engine(LIBRARY, weights, 2, "fp32")
    for t in range(6):
        bad = np.ascontiguousarray(clips[..., t])
        bad[1, 0, 3] = np.nan
        with pytest.raises(RuntimeError, match="stream 1"):
            engine.step(bad)
        assert np.abs(engine.step(np.ascontiguousarray(clips[..., t])) - want[..., t]).max() <= allowed("fp32", want)
    engine.close()


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("c_in", "c_out", "f", "t"), [(1, 16, 256, 9), (3, 5, 8, 1), (64, 128, 32, 160), (129, 1, 16, 7)])
def test_complex_convolution_equals_torch(gpu, c_in, c_out, f, t, transposed, dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 2 * c_in, f, t, device="cuda").to(dtype)
    w = (torch.randn(*((2, c_in, c_out) if transposed else (2, c_out, c_in)), 5, 2, device="cuda") / (20 * c_in) ** 0.5).to(dtype)
    (x_r, x_i), (w_r, w_i) = x.double().chunk(2, 1), w.double()
    if transposed:
        got = gpu.complex_conv2d(LIBRARY, x, w, (2, 1), (2, 0, 1, 0), transposed=True)
        conv = lambda v, k: F.conv_transpose2d(v, k, None, (2, 1), (2, 0), (1, 0))  # noqa: E731
    else:
        got = gpu.complex_conv2d(LIBRARY, x, w, (2, 1), (2, 1, 2, 0))
        conv = lambda v, k: F.conv2d(F.pad(v, (1, 0)), k, None, (2, 1), (2, 0))  # noqa: E731
    want = torch.cat([conv(x_r, w_r) - conv(x_i, w_i), conv(x_r, w_i) + conv(x_i, w_r)], 1)
    assert got.shape == want.shape
    # Outputs are near 1: fp32 sums of a thousand terms; fp16 outputs round by 2^-11 of up to 8.
    assert (got.double() - want).abs().max() <= (4e-3 if dtype == torch.float16 else 2e-5)


@pytest.mark.skipif(not HAS_CUDA or LIBRARY.ek_cuda_devices() > 0, reason="needs a library with CUDA on a machine without a GPU")
def test_without_a_gpu_opening_says_so(gpu):
    module, cfg = gpu.random_module("tiny")
    with pytest.raises(RuntimeError, match=r"CUDA.*\(4\)"):
        gpu.Engine(LIBRARY, gpu.weight_file(module, cfg), 1, "fp32")

"""The CUDA engine against what torch can do with the same network on the same GPU. Prints one JSON row a line.

    python native/bench/gpu.py --library build/cuda/libedgekit.so [--config default] [--streams 1 8 64] > gpu.jsonl

Rows: {engine, precision, streams, copies, median_us, p10_us, snr_db, max_abs} of the frame step: one frame of every stream, from the call until
the masks are there. `copies`: spectra start and masks end in host memory. snr_db and max_abs are against the same network in fp64.
{op, precision, median_us, p10_us, max_abs} of the complex convolution alone, one second of audio. An engine that fails gives {engine, error}.
tf32 is fp32 with TF32 allowed in convolutions and products. Engines take turns: 8 calls to warm up, 40 timed, `--rounds` times over.

The library must have been built with `cmake --preset cuda`, this GPU's architecture in CMAKE_CUDA_ARCHITECTURES.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit import native_format
from edgekit.bench import denoise_graphs as graphs
from edgekit.models import dccrn

WARM_UP, TIMED = 8, 40
PARITY_FRAMES = 40
PRECISIONS = {"fp32": 0, "fp16": 1}
TORCH_TYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16}
HOWS = ("eager", "graph", "reduce-overhead", "max-autotune", "max-autotune + graph")  # see `torchs`
HOST, DEVICE = 0, 1


# --- our engine ---


class Options(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), *((name, ctypes.c_int32) for name in ("device", "streams", "precision", "io"))]


class Info(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        *((name, ctypes.c_int32) for name in ("streams", "precision", "io", "bins", "delay", "graph_nodes", "graphs", "multiprocessors", "compute_capability")),
        *((name, ctypes.c_uint64) for name in ("weight_bytes", "state_bytes", "macs_per_frame")),
        ("device", ctypes.c_char * 256),
    ]


class Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("transposed", "c_in", "c_out", "f")),
        *((name, ctypes.c_int32 * n) for name, n in (("kernel", 2), ("stride", 2), ("padding", 4))),
    ]


def load(path: Path) -> ctypes.CDLL:
    """libedgekit.so with the functions of edgekit/cuda.h."""
    library = ctypes.CDLL(str(path))
    if not hasattr(library, "ek_cuda_open"):
        raise SystemExit(f"{path} was built without CUDA: build it with `cmake --preset cuda`")
    library.ek_last_message.restype = ctypes.c_char_p
    library.ek_cuda_stream.restype = ctypes.c_void_p
    return library


class Engine:
    """edgekit/cuda.h from Python: just enough to test and to time."""

    def __init__(self, library: ctypes.CDLL, weights: bytes, streams: int, precision: str, io: int = HOST):
        self.library, self.handle = library, ctypes.c_void_p()
        options = Options(ctypes.sizeof(Options), 0, streams, PRECISIONS[precision], io)
        self.call("ek_cuda_open_memory", weights, ctypes.c_size_t(len(weights)), ctypes.byref(options), ctypes.byref(self.handle))
        self.info = Info(ctypes.sizeof(Info))
        self.call("ek_cuda_get_info", self.handle, ctypes.byref(self.info))
        self.mask = np.empty((streams, 2, self.info.bins), np.float32)

    def call(self, name: str, *args: object) -> None:
        if status := getattr(self.library, name)(*args):
            raise RuntimeError(f"{name}: {self.library.ek_last_message().decode()} ({status})")

    def step(self, spectrum: np.ndarray) -> np.ndarray:
        """[streams, 2, bins] float32 → masks, in the same array every time."""
        self.call("ek_cuda_step", self.handle, spectrum.ctypes.data_as(ctypes.c_void_p), self.mask.ctypes.data_as(ctypes.c_void_p))
        return self.mask

    def launch(self) -> None:
        self.call("ek_cuda_launch", self.handle)

    def wait(self) -> None:
        self.call("ek_cuda_wait", self.handle)

    def reset(self, stream: int = -1) -> None:
        self.call("ek_cuda_reset", self.handle, ctypes.c_int32(stream))

    def end(self, stream: int) -> None:
        self.call("ek_cuda_end", self.handle, ctypes.c_int32(stream))

    def close(self) -> None:
        self.library.ek_cuda_close(self.handle)
        self.handle = ctypes.c_void_p()


def complex_conv2d(library: ctypes.CDLL, x: Tensor, w: Tensor, stride: tuple[int, int], padding: tuple[int, int, int, int], transposed: bool = False) -> Tensor:
    """ek_cuda_complex_conv2d on tensors of the GPU; padding as in ONNX: frequency, time at the begin, then at the end."""
    n, c2, f, t = x.shape
    c_out = w.shape[2] if transposed else w.shape[1]
    shape = Shape(transposed, c2 // 2, c_out, f, (ctypes.c_int32 * 2)(*w.shape[3:]), (ctypes.c_int32 * 2)(*stride), (ctypes.c_int32 * 4)(*padding))
    f_out, t_out = ctypes.c_int64(), ctypes.c_int64()
    if library.ek_complex_conv2d_output(ctypes.byref(shape), ctypes.c_int64(t), ctypes.byref(f_out), ctypes.byref(t_out)):
        raise RuntimeError(library.ek_last_message().decode())
    y = x.new_empty(n, 2 * c_out, f_out.value, t_out.value)
    pointers = [ctypes.c_void_p(p) for p in (x.data_ptr(), w.data_ptr(), None, None)]
    status = library.ek_cuda_complex_conv2d(
        ctypes.byref(shape), ctypes.c_int64(n), ctypes.c_int64(t), int(x.dtype == torch.float16), *pointers, ctypes.c_float(1.0),
        ctypes.c_void_p(y.data_ptr()), ctypes.c_void_p(torch.cuda.current_stream().cuda_stream),
    )  # fmt: skip
    if status:
        raise RuntimeError(library.ek_last_message().decode())
    return y


# --- torch's best ---


class Step(nn.Module):
    """One frame of every stream, [streams, 2, bins] → mask: batch norm folded, one real convolution [[Wr, -Wi], [Wi, Wr]] a layer on two frames
    stacked as channels, transposed convolutions as two plain ones and an interleave, one LSTM call for both inputs of a net.

    States are buffers, written at the end of a step by one fused copy: a CUDA graph needs them where they were.
    """

    def __init__(self, net: graphs.Network, streams: int):
        super().__init__()
        self.n, self.rows, self.look_ahead = len(net.encoder), net.rows, net.look_ahead
        self.own = [layer.own for layer in net.decoder]
        self.names: list[str] = []
        f = net.bins
        for i, layer in enumerate(net.encoder):
            self._conv(f"e{i}", layer, False)
            self._state(f"before_e{i}", streams, 2 * layer.real.shape[1], f)
            f //= 2
        self.nets = nn.ModuleList()
        for k, pair in enumerate(net.nets):
            for name, trained in zip("RI", pair, strict=True):
                copy = type(trained)(trained.input_size, trained.hidden_size)
                copy.load_state_dict(trained.state_dict())
                self.nets.append(copy)
                for cell in "hc" if isinstance(trained, nn.LSTM) else "h":
                    self._state(f"{cell}{k}{name}", 1, 2 * streams, trained.hidden_size)
        self.project = nn.ModuleList()
        for linear in net.projection:
            copy = nn.Linear(linear.in_features, linear.out_features)
            copy.load_state_dict(linear.state_dict())
            self.project.append(copy)
        for j, layer in enumerate(net.decoder):
            self._conv(f"d{j}", layer, True)
            self._state(f"before_d{j}", streams, 2 * layer.real.shape[0], f)
            if net.look_ahead:
                for age in range(1, j + 1):
                    self._state(f"skip{j}_{age}", streams, 2 * net.encoder[self.n - 1 - j].real.shape[0], f)
            f *= 2
        self.eval()

    def _state(self, name: str, *shape: int) -> None:
        self.names.append(name)
        self.register_buffer(name, torch.zeros(shape))

    def _conv(self, name: str, layer: graphs.Layer, is_transposed: bool) -> None:
        real, imag = ((w.transpose(0, 1).flip(3) if is_transposed else w) for w in (layer.real, layer.imag))  # tap 0 meets the older frame
        p, q = layer.biases
        bias = torch.cat([p - q, p + q])
        gain, offset = (torch.ones_like(bias), bias) if layer.gain is None else (layer.gain, layer.gain * bias + layer.offset)
        columns = []
        for here in (slice(None, layer.own), slice(layer.own, None)):  # own channels real, imaginary, then the skip's
            columns += [torch.cat([real[:, here], imag[:, here]]), torch.cat([-imag[:, here], real[:, here]])]
        w = gain[:, None, None, None] * torch.cat(columns, 1)
        w = torch.cat([w[..., 0], w[..., 1]], 1)
        if is_transposed:
            self.register_buffer(f"{name}_even", w[:, :, [4, 2, 0]].contiguous())
            self.register_buffer(f"{name}_odd", w[:, :, [3, 1]].contiguous())
        else:
            self.register_buffer(f"{name}_w", w.contiguous())
        self.register_buffer(f"{name}_b", offset)
        if layer.slope is not None:
            self.register_buffer(f"{name}_slope", layer.slope.clone())

    def _act(self, name: str, y: Tensor) -> Tensor:
        return F.prelu(y, getattr(self, f"{name}_slope")) if hasattr(self, f"{name}_slope") else y

    def forward(self, x: Tensor) -> Tensor:
        streams, new, encoded = len(x), {}, []
        for i in range(self.n):
            new[f"before_e{i}"] = x
            both = torch.cat([getattr(self, f"before_e{i}"), x], 1)
            x = self._act(f"e{i}", F.conv1d(both, getattr(self, f"e{i}_w"), getattr(self, f"e{i}_b"), 2, 2))
            encoded.append(x)
        x_r, x_i = (part.reshape(1, streams, -1) for part in x.chunk(2, 1))
        for k in range(len(self.nets) // 2):
            outputs = []
            for name, net in zip("RI", self.nets[2 * k : 2 * k + 2], strict=True):
                cells = [f"{cell}{k}{name}" for cell in ("hc" if isinstance(net, nn.LSTM) else "h")]
                before = tuple(getattr(self, cell) for cell in cells)
                y, after = net(torch.cat([x_r, x_i], 1), before if len(before) > 1 else before[0])
                new |= dict(zip(cells, after if isinstance(after, tuple) else (after,), strict=True))
                outputs.append(y.chunk(2, 1))
            (r_r, r_i), (i_r, i_i) = outputs
            x_r, x_i = r_r - i_i, r_i + i_r
        x = torch.cat([self.project[0](x_r), self.project[1](x_i)], 2).reshape(streams, -1, self.rows)
        for j in range(self.n):
            skip = encoded[self.n - 1 - j]
            if self.look_ahead and j > 0:
                new[f"skip{j}_1"] = skip
                for age in range(2, j + 1):
                    new[f"skip{j}_{age}"] = getattr(self, f"skip{j}_{age - 1}")
                skip = getattr(self, f"skip{j}_{j}")
            joined = torch.cat([x, skip], 1)
            both = torch.cat([getattr(self, f"before_d{j}"), joined], 1)
            new[f"before_d{j}"] = joined
            bias = getattr(self, f"d{j}_b")
            even = F.conv1d(both, getattr(self, f"d{j}_even"), bias, padding=1)
            odd = F.conv1d(F.pad(both, (0, 1)), getattr(self, f"d{j}_odd"), bias)
            x = self._act(f"d{j}", torch.stack([even, odd], 3).flatten(2))
        # A line of skips moves by one: oldest first, so that none is overwritten before it is read.
        names = sorted(self.names, key=lambda name: -int(name.rpartition("_")[2]) if name.startswith("skip") else 0)
        for name in names:
            getattr(self, name).copy_(new[name])
        return x

    def zero(self) -> None:
        for name in self.names:
            getattr(self, name).zero_()


def parity(got: np.ndarray, want: np.ndarray) -> dict[str, float]:
    """Both [frames, streams, 2, bins]; NaN stays NaN."""
    error = got.astype(np.float64) - want
    return {"snr_db": round(float(10 * np.log10((want**2).mean() / max((error**2).mean(), 1e-300))), 1), "max_abs": float(np.abs(error).max())}


# --- timing ---


@dataclass
class Candidate:
    """
    Attributes:
        run: one step on what stands in its input.
        stream: a function of spectra [frames, streams, 2, bins] that gives masks of the same shape, from zero states; None: was checked already.
    """

    row: dict
    run: Callable[[], object]
    stream: Callable[[np.ndarray], np.ndarray] | None = None


def timed(candidates: list[Candidate], rounds: int) -> Iterator[dict]:
    times: list[list[float]] = [[] for _ in candidates]
    for _ in range(rounds):
        for candidate, own in zip(candidates, times, strict=True):
            for _ in range(WARM_UP):
                candidate.run()
            for _ in range(TIMED):
                start = time.perf_counter_ns()
                candidate.run()
                own.append((time.perf_counter_ns() - start) / 1e3)
    for candidate, own in zip(candidates, times, strict=True):
        yield candidate.row | {"median_us": round(statistics.median(own), 2), "p10_us": round(float(np.percentile(own, 10)), 2)}


def ours(library: ctypes.CDLL, weights: bytes, streams: int, precision: str) -> Iterator[Candidate]:
    host, device = (Engine(library, weights, streams, precision, io) for io in (HOST, DEVICE))
    row = {"engine": "edgekit cuda graph", "precision": precision, "streams": streams, "graph_nodes": host.info.graph_nodes}

    def stream(engine: Engine) -> Callable[[np.ndarray], np.ndarray]:
        def run(spectra: np.ndarray) -> np.ndarray:
            engine.reset()
            return np.stack([engine.step(np.ascontiguousarray(frame)).copy() for frame in spectra])

        return run

    spectrum = np.zeros((streams, 2, host.info.bins), np.float32)
    yield Candidate(row | {"copies": True}, lambda: host.step(spectrum), stream(host))

    def resident() -> None:
        device.launch()
        device.wait()

    yield Candidate(row | {"copies": False}, resident, stream(device))


def torchs(net: graphs.Network, streams: int, precision: str, how: str) -> Iterator[Candidate]:
    """`how`: "eager", "graph" (a manual torch.cuda.CUDAGraph), a mode of torch.compile, or "max-autotune + graph"."""
    dtype = TORCH_TYPES[precision]
    step = Step(net, streams).to("cuda", dtype)
    function: Callable[[Tensor], Tensor] = step
    compiled, _, by_hand = how.partition(" + ")
    if compiled not in ("eager", "graph"):
        function = torch.compile(step, mode="max-autotune-no-cudagraphs" if by_hand else compiled)
    x = torch.zeros(streams, 2, net.bins, device="cuda", dtype=dtype)
    host_x, host_mask = (torch.zeros(x.shape, pin_memory=True) for _ in range(2))
    tf32 = precision == "tf32"

    def allowed(work: Callable[[], object]) -> Callable[[], object]:
        def run() -> object:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
            return work()

        return run

    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                allowed(lambda: function(x))()
        torch.cuda.current_stream().wait_stream(side)
        if "graph" in how:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = allowed(lambda: function(x))()

    def forward() -> Tensor:
        if "graph" in how:
            graph.replay()
            return out
        with torch.no_grad():
            return function(x)

    def resident() -> None:
        forward()
        torch.cuda.synchronize()

    def copied() -> None:
        x.copy_(host_x, non_blocking=True)
        host_mask.copy_(forward(), non_blocking=True)
        torch.cuda.synchronize()

    def stream(spectra: np.ndarray) -> np.ndarray:
        step.zero()
        masks = []
        for frame in spectra:
            host_x.copy_(torch.from_numpy(np.ascontiguousarray(frame)))
            allowed(copied)()
            masks.append(host_mask.numpy().copy())
        return np.stack(masks)

    name = {"eager": "torch eager", "graph": "torch CUDAGraph"}.get(how, f"torch.compile {how}")
    row = {"engine": name, "precision": precision, "streams": streams}
    yield Candidate(row | {"copies": True}, allowed(copied), stream)
    yield Candidate(row | {"copies": False}, allowed(resident))


def frame_rows(
    library: ctypes.CDLL, module: dccrn.DCCRN, weights: bytes, bins: int, streams: int, rounds: int, precisions: list[str], hows: list[str]
) -> Iterator[dict]:
    net = graphs.network(module, bins)
    spectra = np.random.default_rng(1).standard_normal((PARITY_FRAMES, streams, 2, bins)).astype(np.float32)
    exact = Step(net, streams).to("cuda", torch.float64)
    with torch.no_grad():
        want = torch.stack([exact(torch.from_numpy(frame).to("cuda", torch.float64)) for frame in spectra]).cpu().numpy()
    makers: list[tuple[dict, Callable[[], Iterator[Candidate]]]] = []
    for precision in (p for p in precisions if p in PRECISIONS):
        makers.append(({"engine": "edgekit cuda graph", "precision": precision}, lambda p=precision: ours(library, weights, streams, p)))
    for precision in precisions:
        for how in hows:
            makers.append(({"engine": f"torch {how}", "precision": precision}, lambda p=precision, h=how: torchs(net, streams, p, h)))
    candidates: list[Candidate] = []
    for about, make in makers:
        try:
            made = list(make())
            seen = None
            for candidate in made:
                if candidate.stream is not None:
                    seen = parity(candidate.stream(spectra), want)
                candidate.row |= seen
                candidate.run()  # what does not run is said now, before the turns
            candidates += made
        except Exception as e:  # an engine that this torch cannot build must not hide the others: its row says why
            yield about | {"streams": streams, "error": str(e).partition("\n")[0]}
    yield from timed(candidates, rounds)


def op_rows(library: ctypes.CDLL, rounds: int) -> Iterator[dict]:
    """The complex convolution of one second (T = 160) at DCCRN's encoder shapes, against one cuDNN convolution with block weights."""
    candidates = []
    for c_in, c_out, f in ((1, 16, 256), (32, 64, 64), (64, 128, 32), (128, 128, 16)):
        for precision, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
            torch.manual_seed(0)
            x = torch.randn(1, 2 * c_in, f, 160, device="cuda").to(dtype)
            w = (torch.randn(2, c_out, c_in, 5, 2, device="cuda") / (20 * c_in) ** 0.5).to(dtype)
            block = torch.cat([torch.cat([w[0], -w[1]], 1), torch.cat([w[1], w[0]], 1)])
            want = F.conv2d(F.pad(x, (1, 0)).double(), block.double(), None, (2, 1), (2, 0))

            def own(x: Tensor = x, w: Tensor = w) -> Tensor:
                y = complex_conv2d(library, x, w, (2, 1), (2, 1, 2, 0))
                torch.cuda.synchronize()
                return y

            def cudnn(x: Tensor = x, block: Tensor = block) -> Tensor:
                y = F.conv2d(F.pad(x, (1, 0)), block, None, (2, 1), (2, 0))
                torch.cuda.synchronize()
                return y

            for engine, run in (("edgekit", own), ("torch block conv2d", cudnn)):
                row = {"op": f"complex_conv2d {c_in}->{c_out} f={f} t=160", "engine": engine, "precision": precision}
                candidates.append(Candidate(row | {"max_abs": float((run().double() - want).abs().max())}, run))
    torch.backends.cudnn.allow_tf32 = False
    yield from timed(candidates, rounds)


def random_module(config: str, seed: int = 3) -> tuple[dccrn.DCCRN, dccrn.Config]:
    """A DCCRN with a batch norm that does something; speed does not depend on the weights."""
    cfg = dccrn.CONFIGS[config]
    torch.manual_seed(seed)
    module = dccrn.build(cfg).eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 2)
            nn.init.normal_(part.weight, 1, 0.2)
            nn.init.normal_(part.bias, 0, 0.1)
    return module, cfg


def weight_file(module: dccrn.DCCRN, cfg: dccrn.Config) -> bytes:
    state = {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}
    options = {"n_fft": cfg.n_fft, "win_length": cfg.win_length, "hop_length": cfg.hop_length, "mask": cfg.mask, "look_ahead": cfg.look_ahead}
    return native_format.to_bytes(native_format.from_state(state, **options))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--library", type=Path, required=True, help="libedgekit.so, built with CUDA")
    parser.add_argument("--config", default="default", choices=[name for name in dccrn.CONFIGS if not name.endswith("chunk")])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precisions", nargs="+", default=list(TORCH_TYPES), choices=list(TORCH_TYPES))
    parser.add_argument("--torch", nargs="+", default=list(HOWS), choices=HOWS, help="what torch does; max-autotune takes minutes to compile")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("this benchmark needs an NVIDIA GPU that torch can use, and there is none here", file=sys.stderr)
        raise SystemExit(5)
    library = load(args.library)
    module, cfg = random_module(args.config)
    weights = weight_file(module, cfg)
    print(json.dumps({"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda, "config": args.config}), flush=True)
    for streams in args.streams:
        for row in frame_rows(library, module, weights, cfg.n_fft // 2, streams, args.rounds, args.precisions, args.torch):
            print(json.dumps(row), flush=True)
    for row in op_rows(library, args.rounds):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

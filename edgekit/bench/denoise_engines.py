"""What is timed: one graph in one framework, called with a spectrum, its states bound in place.

No state is copied between calls: every output that comes back later has as many buffers as it needs, in turn, and all bindings are made
before the first call. An engine is called with float32 [2, bins] or [2, bins, frames] and gives its mask, in memory of its own that the
next calls overwrite.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgekit.bench.denoise_graphs import INPUT, OUTPUT, Graph

OPSET = 17


class Engine(Protocol):
    def __call__(self, spectrum: np.ndarray) -> np.ndarray: ...

    def reset(self) -> None:
        """Back to the states before the first frame."""
        ...


@dataclass(frozen=True)
class Plan:
    """Ports of a graph, and what is carried; see `denoise_graphs.Graph`."""

    inputs: Mapping[str, tuple[int, ...]]
    outputs: tuple[str, ...]
    carried: Mapping[str, tuple[str, int]]

    @classmethod
    def of(cls, graph: Graph) -> Plan:
        return cls(graph.inputs, graph.outputs, graph.carried)

    @classmethod
    def read(cls, path: Path) -> Plan:
        """From the .json beside a graph's file."""
        data = json.loads(path.with_suffix(".json").read_text())
        return cls({name: tuple(shape) for name, shape in data["inputs"].items()}, tuple(data["outputs"]), {name: (o, k) for name, (o, k) in data["carried"].items()})

    def write(self, path: Path) -> None:
        path.with_suffix(".json").write_text(json.dumps({"inputs": self.inputs, "outputs": self.outputs, "carried": self.carried}))

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an output, or of the input."""
        if name in (INPUT, OUTPUT):
            return self.inputs[INPUT]
        return next(self.inputs[here] for here, (source, _) in self.carried.items() if source == name)


class Rings:
    """Buffers of everything that goes in and out, and which of them call t uses."""

    def __init__(self, plan: Plan):
        self.plan = plan
        depth = {name: 1 for name in (INPUT, *plan.outputs)}
        for source, calls in plan.carried.values():
            depth[source] = max(depth[source], calls + 1)
        self.buffers = {name: [_aligned(plan.shape(name)) for _ in range(n)] for name, n in depth.items()}
        self.period = math.lcm(*depth.values())
        self.t = 0

    def bound(self, t: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """({input: buffer}, {output: buffer}) of call t."""
        sources = {INPUT: (INPUT, 0), **self.plan.carried}
        inputs = {name: self.buffers[source][(t - calls) % len(self.buffers[source])] for name, (source, calls) in sources.items()}
        return {name: inputs[name] for name in self.plan.inputs}, {name: self.buffers[name][t % len(self.buffers[name])] for name in self.plan.outputs}

    def fill(self, spectrum: np.ndarray) -> int:
        """Put the input where call t reads it; t modulo the period."""
        t, ring = self.t % self.period, self.buffers[INPUT]
        np.copyto(ring[t % len(ring)][0], spectrum)
        self.t += 1
        return t

    def mask(self) -> np.ndarray:
        return self.buffers[OUTPUT][0][0]

    def reset(self) -> None:
        for ring in self.buffers.values():
            for buffer in ring:
                buffer[...] = 0
        self.t = 0


def _aligned(shape: Sequence[int], to: int = 64) -> np.ndarray:
    """Zeros on a cache line of their own, float32."""
    size = 4 * math.prod(shape)
    memory = np.zeros(size + to, np.uint8)
    start = -memory.ctypes.data % to
    return memory[start : start + size].view(np.float32).reshape(shape)


# --------------------------------------------------------------------------- frameworks


class TorchEngine:
    """A graph as torch runs it, eager or compiled."""

    def __init__(self, graph: Graph, compiled: bool = False):
        import torch

        self.plan = Plan.of(graph)
        self._module = torch.compile(graph.module) if compiled else graph.module
        self._mode = torch.inference_mode
        self.reset()

    def reset(self) -> None:
        import torch

        depth = max((calls for _, calls in self.plan.carried.values()), default=0)
        zeros = {name: torch.zeros(self.plan.shape(name)) for name in (INPUT, *self.plan.outputs)}
        self._history = [zeros] * (depth + 1)  # newest first

    def carried(self) -> dict[str, np.ndarray]:
        """The states that the next call is given."""
        return {name: self._history[calls - 1][source].numpy().copy() for name, (source, calls) in self.plan.carried.items()}

    def __call__(self, spectrum: np.ndarray) -> np.ndarray:
        import torch

        x = torch.from_numpy(spectrum)[None]
        with self._mode():
            carried = [self._history[calls - 1][source] for source, calls in self.plan.carried.values()]
            outputs = dict(zip(self.plan.outputs, self._module(x, *carried), strict=True))
        self._history = [{**outputs, INPUT: x}, *self._history[:-1]]
        return outputs[OUTPUT][0].numpy()


class OnnxRuntimeEngine:
    """An ONNX graph in ONNX Runtime, all inputs and outputs bound."""

    def __init__(self, path: Path, threads: int):
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._rings = Rings(Plan.read(path))
        self.reset = self._rings.reset
        self._bindings = []
        for t in range(self._rings.period):
            binding = self._session.io_binding()
            inputs, outputs = self._rings.bound(t)
            for name, array in inputs.items():
                binding.bind_input(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
            for name, array in outputs.items():
                binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
            self._bindings.append(binding)

    def __call__(self, spectrum: np.ndarray) -> np.ndarray:
        self._session.run_with_iobinding(self._bindings[self._rings.fill(spectrum)])
        return self._rings.mask()


class OpenVinoEngine:
    """A graph (ONNX or IR) in OpenVINO's CPU plug-in, inputs and outputs in shared memory, one request for every turn of the buffers."""

    def __init__(self, path: Path, threads: int, hint: str):
        from edgekit.backends.openvino import configuration, runtime

        ov = runtime()
        core = ov.Core()
        compiled = core.compile_model(core.read_model(path), "CPU", configuration(hint, threads))
        plan = Plan.read(path)
        self._rings = Rings(plan)
        self.reset = self._rings.reset
        self._requests = []
        for t in range(self._rings.period):
            request = compiled.create_infer_request()
            for bound, set_tensor in zip(self._rings.bound(t), (request.set_input_tensor, request.set_output_tensor), strict=True):
                for i, array in enumerate(bound.values()):
                    set_tensor(i, ov.Tensor(array, shared_memory=True))
            self._requests.append(request)

    def __call__(self, spectrum: np.ndarray) -> np.ndarray:
        request = self._requests[self._rings.fill(spectrum)]
        request.start_async()
        request.wait()
        return self._rings.mask()


class NativeEngine:
    """Ours, which takes one frame [2, bins] at a time whatever the chunk."""

    def __init__(self, path: Path, threads: int, **options: Any):
        from edgekit.native import Denoiser

        self._denoiser = Denoiser(path, threads=threads, **options)
        self._mask = np.empty((2, self._denoiser.info["bins"]), np.float32)
        self.reset = self._denoiser.reset

    def __call__(self, spectrum: np.ndarray) -> np.ndarray:
        return self._denoiser.step(spectrum, self._mask)


class NativeLive(NativeEngine):
    """Ours on a live stream: a hop of samples in, a hop out, the transform of both included."""

    def __init__(self, path: Path, threads: int, **options: Any):
        super().__init__(path, threads, **options)
        self._heard = np.empty(self._denoiser.info["hop_length"], np.float32)

    def __call__(self, hop: np.ndarray) -> np.ndarray:
        return self._denoiser.process(hop, self._heard)


class NativeClip(NativeEngine):
    """Ours on a whole wave [samples], its spectrum and the way back included."""

    def __call__(self, wave: np.ndarray) -> np.ndarray:
        return self._denoiser.denoise(wave)


# --------------------------------------------------------------------------- files


def export(graph: Graph, path: Path) -> Path:
    """Write a graph as ONNX, and its plan beside it."""
    import contextlib
    import io
    import warnings

    import torch

    example = tuple(torch.zeros(shape) for shape in graph.inputs.values())
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own deprecation, and "LSTM with batch size other than 1", which is fixed here
        torch.onnx.export(graph.module, example, str(path), input_names=list(graph.inputs), output_names=list(graph.outputs), opset_version=OPSET, dynamo=False)
    Plan.of(graph).write(path)
    return path


def identity(plan: Plan, path: Path) -> Path:
    """Write a graph with these ports that computes nothing: what a call alone costs."""
    import onnx
    from onnx import TensorProto, helper

    source = {output: INPUT for output in plan.outputs} | {output: name for name, (output, _) in plan.carried.items() if output != INPUT}
    nodes = [helper.make_node("Identity", [source[output]], [output]) for output in plan.outputs]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in plan.inputs.items()]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, plan.shape(name)) for name in plan.outputs]
    model = helper.make_model(helper.make_graph(nodes, "identity", ports, results), opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.save(model, str(path))
    plan.write(path)
    return path


def recorded(graph: Graph, spectra: Sequence[np.ndarray], limit: int) -> list[dict[str, np.ndarray]]:
    """Inputs of a graph, with the states that it really has, at `limit` calls spread evenly over these clips [2, bins, t]; fewer if there are not so many."""
    engine, plan = TorchEngine(graph), Plan.of(graph)
    every = max(1, sum(1 for clip in spectra for _ in calls(clip, plan)) // limit)
    found: list[dict[str, np.ndarray]] = []
    t = 0
    for clip in spectra:
        engine.reset()
        for part in calls(clip, plan):
            if t % every == 0:
                found.append({INPUT: part[None].copy(), **engine.carried()})
                if len(found) == limit:
                    return found
            engine(part)
            t += 1
    return found


def calls(clip: np.ndarray, plan: Plan) -> Iterator[np.ndarray]:
    """The spectrum of a clip [2, bins, t] as a graph takes it, call by call; what is left over at the end is dropped."""
    shape = plan.inputs[INPUT]
    if len(shape) == 3:
        yield from np.ascontiguousarray(clip.transpose(2, 0, 1))
        return
    frames = shape[3]
    for start in range(0, clip.shape[2] - frames + 1, frames):
        yield np.ascontiguousarray(clip[:, :, start : start + frames])


def quantize_onnxruntime(source: Path, feeds: Sequence[Mapping[str, np.ndarray]], path: Path) -> Path:
    """ONNX Runtime's own INT8: Q/DQ around convolutions, calibrated on `feeds`, and LSTMs that quantize what they get as they run."""
    import logging

    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.items = iter(feeds)

        def get_next(self) -> Mapping[str, np.ndarray] | None:
            return next(self.items, None)

    logging.getLogger().setLevel(logging.ERROR)
    static = path.with_suffix(".static.onnx")
    quantize_static(
        str(source), str(static), Reader(), quant_format=QuantFormat.QDQ, op_types_to_quantize=["Conv"], per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,  # with signed activations half as fast here
    )  # fmt: skip
    quantize_dynamic(str(static), str(path), op_types_to_quantize=["LSTM"], weight_type=QuantType.QInt8)
    static.unlink()
    Plan.read(source).write(path)
    return path


def quantize_openvino(source: Path, feeds: Sequence[Mapping[str, np.ndarray]], path: Path) -> Path:
    """OpenVINO's INT8: the graph as `nncf.quantize` makes it by default, calibrated on `feeds`."""
    import contextlib
    import io
    import logging

    from edgekit.backends.openvino import runtime

    ov = runtime()
    import nncf  # after OpenVINO, which it would import with its telemetry on

    logging.getLogger("nncf").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):  # its progress bars; ours is what --json prints
        model = nncf.quantize(ov.Core().read_model(source), nncf.Dataset(list(feeds)), subset_size=len(feeds))
    ov.save_model(model, path, compress_to_fp16=False)
    Plan.read(source).write(path)
    return path


"""Faults planted into models, for what must find them: twelve mutators, three magnitudes, three models.

Models, each as float and as INT8 (Q/DQ):

    foreign  an ONNX file as another tool writes it: built by hand, tensors numbered, quantized by ONNX Runtime's own
             quantizer. A streaming enhancer: two frames of cache, two convolutions, attention, a GRU
    tiny     edgekit's stateful toy through its own export and Q/DQ: a 3-D convolution and an LSTM
    mhlt     the trained MHLT small, its audio encoder and head on a wave of 0.4 s

A mutator changes a copy of the model and says which nodes of the model it has made wrong.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.parity import nets

ROOT = Path(__file__).resolve().parents[2]
F = TensorProto.FLOAT
Right = set[str] | None


class Absent(Exception):
    """The model has nothing that this could go wrong in."""


@dataclass(frozen=True)
class Subject:
    """A model and the data that it is compared on.

    Attributes:
        layers: {role: nodes}, what the mutators look for.
        data: as edgekit.compare takes it.
        how: keywords of compare and bisect: streams and states.
        inputs: those that are normalized.
        calls: feeds call by call, states included: what ranges are calibrated on.
    """

    name: str
    folder: Path
    layers: dict[str, tuple[str, ...]]
    data: list[dict[str, np.ndarray]]
    how: dict
    inputs: tuple[str, ...]
    calls: list[dict[str, np.ndarray]]

    def path(self, kind: str) -> Path:
        return self.folder / f"{kind}.onnx"


# --------------------------------------------------------------------------- models


_FOLDERS: list[tempfile.TemporaryDirectory] = []  # removed when the process ends


def _new_folder(name: str) -> Path:
    _FOLDERS.append(tempfile.TemporaryDirectory(prefix=f"edgekit-{name}-"))
    return Path(_FOLDERS[-1].name)


def subject(name: str) -> Subject:
    return {"foreign": foreign, "tiny": tiny, "mhlt": mhlt}[name]()


def smooth(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Noise whose neighbours along the last two axes are alike, as in pictures and spectra; unit power."""
    x = rng.standard_normal(shape)
    for axis in (-1, -2):
        if shape[axis] > 3:
            x = x + np.roll(x, 1, axis) + np.roll(x, 2, axis)
    return (x / x.std()).astype(np.float32)


@functools.cache
def foreign() -> Subject:
    folder = _new_folder("foreign")
    rng = np.random.default_rng(5)
    c, f, h = 6, 24, 12

    def weight(name: str, *shape: int, gain: float = 1.0) -> onnx.TensorProto:
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else 4
        return numpy_helper.from_array((gain * rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32), name)

    def ints(name: str, *values: int) -> onnx.TensorProto:
        return numpy_helper.from_array(np.array(values, np.int64), name)

    weights = [
        numpy_helper.from_array(np.float32([[[0.4], [-0.3]]]), "w.mean"), numpy_helper.from_array(np.float32([[[1.6], [0.7]]]), "w.std"),
        weight("w.enc1", c, 2, 3, 3, gain=1.5), weight("b.enc1", c), weight("w.enc2", c, c, 1, 3, gain=1.5), weight("b.enc2", c),
        weight("w.sq", c * f // 4, c * f // 4, gain=1.5), weight("b.sq", c * f // 4), weight("w.in", c * f // 4, h, gain=2),
        weight("g.w", 1, 3 * h, h, gain=1.5), weight("g.r", 1, 3 * h, h, gain=1.5), weight("g.b", 1, 6 * h), weight("w.out", h, f, gain=2), weight("b.out", f),
        ints("i.axis2", 2), ints("i.axis0", 0), ints("i.one", 1), ints("i.three", 3), ints("i.flat", 1, 4, c * f // 4), ints("i.four", 4), ints("i.step", 1, 1, h),
    ]  # fmt: skip
    n = helper.make_node
    nodes = [
        n("Sub", ["frame", "w.mean"], ["50"], name="Sub_0"), n("Div", ["50", "w.std"], ["51"], name="Div_1"),
        n("Unsqueeze", ["51", "i.axis2"], ["52"], name="Unsqueeze_2"), n("Concat", ["past", "52"], ["53"], name="Concat_3", axis=2),
        n("Slice", ["53", "i.one", "i.three", "i.axis2"], ["past_next"], name="Slice_4"),
        n("Conv", ["53", "w.enc1", "b.enc1"], ["55"], name="Conv_5", kernel_shape=[3, 3], pads=[0, 1, 0, 1]), n("Relu", ["55"], ["56"], name="Relu_6"),
        n("Conv", ["56", "w.enc2", "b.enc2"], ["57"], name="Conv_7", kernel_shape=[1, 3], pads=[0, 1, 0, 1]), n("Tanh", ["57"], ["58"], name="Tanh_8"),
        n("Softmax", ["57"], ["59"], name="Softmax_9", axis=3), n("Mul", ["58", "59"], ["60"], name="Mul_10"), n("Add", ["60", "56"], ["61"], name="Add_11"),
        n("Reshape", ["61", "i.flat"], ["62"], name="Reshape_12"), n("MatMul", ["62", "w.sq"], ["63"], name="MatMul_13"), n("Add", ["63", "b.sq"], ["64"], name="Add_14"),
        n("MatMul", ["64", "w.in"], ["65"], name="MatMul_15"), n("Transpose", ["65"], ["66"], name="Transpose_16", perm=[1, 0, 2]),
        n("GRU", ["66", "g.w", "g.r", "g.b", "", "memory"], ["67", "memory_next"], name="GRU_17", hidden_size=h, linear_before_reset=1),
        n("Slice", ["67", "i.three", "i.four", "i.axis0"], ["68"], name="Slice_18"), n("Reshape", ["68", "i.step"], ["69"], name="Reshape_19"),
        n("MatMul", ["69", "w.out"], ["70"], name="MatMul_20"), n("Add", ["70", "b.out"], ["71"], name="Add_21"), n("Sigmoid", ["71"], ["mask"], name="Sigmoid_22"),
    ]  # fmt: skip
    shapes = {"frame": [1, 2, f], "past": [1, 2, 2, f], "memory": [1, 1, h], "mask": [1, 1, f], "past_next": [1, 2, 2, f], "memory_next": [1, 1, h]}
    ports = {name: helper.make_tensor_value_info(name, F, shape) for name, shape in shapes.items()}
    graph = helper.make_graph(nodes, "enhancer", [ports[k] for k in ("frame", "past", "memory")], [ports[k] for k in ("mask", "past_next", "memory_next")], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7, producer_name="another tool")
    onnx.checker.check_model(model)
    onnx.save(model, str(folder / "float.onnx"))
    data = [{"frame": (0.4 + 1.5 * smooth(np.random.default_rng((7, i)), 1, 16, 2, f))} for i in range(2)]
    states = {"past": "past_next", "memory": "memory_next"}
    calls = _calls(folder / "float.onnx", [{"frame": d["frame"][:, t]} for d in data for t in range(16)], states)
    quantize_elsewhere(folder / "float.onnx", folder / "int8.onnx", calls)
    layers = {
        "conv": ("Conv_5", "Conv_7"), "matmul": ("MatMul_13", "MatMul_15", "MatMul_20"), "softmax": ("Softmax_9",), "square": ("MatMul_13",), "bias": ("Conv_5", "Conv_7", "Add_14", "Add_21"),
        "rnn": ("GRU_17",), "memory": ("memory",), "cache": ("Slice_4",), "mean": ("Sub_0",), "std": ("Div_1",), "first": ("Sub_0",), "last": ("MatMul_20",),
    }  # fmt: skip
    return Subject("foreign", folder, layers, data, {"stream": True, "states": states}, ("frame",), calls)


def _calls(path: Path, frames: list[dict[str, np.ndarray]], states: dict[str, str]) -> list[dict[str, np.ndarray]]:
    """Feeds of a stateful model, call by call."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    carried = {v.name: np.zeros(v.shape, np.float32) for v in session.get_inputs() if v.name in states}
    calls, names = [], [v.name for v in session.get_outputs()]
    for frame in frames:
        calls.append({**frame, **carried})
        given = dict(zip(names, session.run(None, calls[-1]), strict=True))
        carried = {name: given[partner] for name, partner in states.items()}
    return calls


def quantize_elsewhere(path: Path, out: Path, calls: list[dict[str, np.ndarray]]) -> None:
    """Q/DQ by ONNX Runtime's quantizer, a tool that knows nothing of edgekit."""
    import logging

    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = iter(calls)

        def get_next(self):
            return next(self.left, None)

    logging.disable(logging.WARNING)
    try:
        quantize_static(str(path), str(out), Reader(), QuantFormat.QDQ, ["Conv", "MatMul"], per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
    finally:
        logging.disable(logging.NOTSET)


@functools.cache
def tiny() -> Subject:
    folder = _new_folder("tiny")
    nets.save_step(folder / "float.onnx")
    data = [{"clip": smooth(np.random.default_rng((3, i)), 1, 12, 3, 2, 16, 16)} for i in range(2)]
    states = {"h_in": "h_out", "c_in": "c_out"}
    calls = _calls(folder / "float.onnx", [{"clip": d["clip"][:, t]} for d in data for t in range(12)], states)
    quantize_here(folder, calls)
    ops = {node.op_type: node.name for node in onnx.load(str(folder / "float.onnx")).graph.node}
    layers = {
        "conv": (ops["Conv"],), "bias": (ops["Conv"], ops["LSTM"]), "rnn": (ops["LSTM"],), "square": (ops["LSTM"],), "memory": ("h_in", "c_in"), "first": (ops["Conv"],), "last": (ops["LSTM"],),
    }  # fmt: skip
    return Subject("tiny", folder, layers, data, {"stream": True, "states": states}, ("clip",), calls)


def quantize_here(folder: Path, calls: list[dict[str, np.ndarray]], observer: str = "percentile", out: str = "int8", target: str = "onnxruntime_x86"):
    """Q/DQ by edgekit in a target's numbers: float.onnx → `out`.onnx, beside the float graph that it was made of, `out`_float.onnx; the engine."""
    from edgekit import graph, qdq, rewrites
    from edgekit.backends import EngineKit, onnxruntime
    from edgekit.quant import Histogram, Numbers
    from edgekit.target import load_target

    spec = load_target(target, ROOT).spec()
    numbers = Numbers.from_target(spec["numbers"])
    model = graph.load(folder / "float.onnx")
    for rewrite in spec.get("rewrites") or ():
        rewrites.apply(model, rewrite)
    source = folder / f"{out}_float.onnx"
    graph.save(model, source)
    chosen = qdq.precisions(model, spec["ops"], {}, numbers.outputs)
    session = onnxruntime.simulate(source, 1, [name for name in chosen.observed if name not in calls[0]])
    seen = {name: Histogram() for name in chosen.observed}
    for feeds in calls:
        values = {**feeds, **session(feeds)}
        for name, histogram in seen.items():
            histogram.update(values[name])
    ranges = {name: histogram.observe(observer, 99.99, numbers) for name, histogram in seen.items()}
    graph.save(qdq.insert_qdq(model, chosen, {**ranges, **qdq.tied(model, chosen, ranges)}, numbers), folder / f"{out}.onnx")
    return EngineKit("main", source, folder / f"{out}.onnx", int8=chosen.int8, fused=chosen.fused)


SAMPLES = 6400


@functools.cache
def mhlt() -> Subject:
    import torch

    from edgekit import graph
    from edgekit.formats import Engine
    from edgekit.models import checkpoint
    from edgekit.models import mhlt as definition

    folder = _new_folder("mhlt")
    config = definition.CONFIGS["small"]
    path = ROOT / "recipes/checkpoints/mhlt_small.safetensors.xz"
    module = definition.fold(definition.build(config)).eval()
    checkpoint.load_into(module, definition.normalize_keys(checkpoint.read_state(path), config), path, definition.OPTIONAL_KEYS)

    class Cut(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.audio, self.lstm_v, self.lstm_a, self.attn = module.audio, module.lstm_v, module.lstm_a, module.attn
            self.fc_o, self.fc_a, self.fc_v = module.fc_o, module.fc_a, module.fc_v

        def forward(self, clip_features, wave):
            features = self.audio(wave).last_hidden_state
            out = definition.MHLT.fuse(self, clip_features, features)
            return (features, *(out[k] for k in definition.OUTPUTS))

    frames = definition.frames(SAMPLES)
    outputs = {"audio_features": (1, frames, config.hubert.hidden), **{k: (1,) for k in definition.OUTPUTS}}
    graph.export_onnx(Engine("cut", Cut().eval(), {"clip_features": (1, config.clips, config.last), "wave": (1, SAMPLES)}, outputs), folder / "float.onnx")
    data = []
    for i in range(4):
        rng = np.random.default_rng((11, i))
        t = np.arange(SAMPLES) / definition.SAMPLE_RATE_HZ
        voice = sum(np.sin(2 * np.pi * k * (110 + 30 * i) * t + rng.uniform(0, 6)) / k for k in range(1, 12)) * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * t))
        wave = voice + 0.1 * rng.standard_normal(SAMPLES)
        data.append({"clip_features": np.abs(rng.standard_normal((1, config.clips, config.last)) * 0.5).astype(np.float32), "wave": ((wave - wave.mean()) / wave.std()).astype(np.float32)[None]})
    quantize_here(folder, data)
    nodes = onnx.load(str(folder / "float.onnx")).graph.node
    ops = {op: tuple(node.name for node in nodes if node.op_type == op) for op in ("Conv", "Softmax", "MatMul", "LSTM", "Gemm")}
    projections = tuple(name for name in ops["MatMul"] if name.endswith("_proj/MatMul"))
    biases = tuple(node.name for node in nodes if node.op_type == "Add" and "_proj/" in node.name)
    layers = {
        "conv": ops["Conv"][1:], "matmul": projections, "softmax": ops["Softmax"], "square": projections, "bias": biases, "rnn": ops["LSTM"],
        "pos": tuple(name for name in ops["Conv"] if "pos_conv" in name), "first": (ops["Conv"][0], ops["LSTM"][0]), "last": projections[-1:],
    }  # fmt: skip
    return Subject("mhlt", folder, layers, data, {}, ("wave",), data)


# --------------------------------------------------------------------------- what the mutators do it with


class Patient:
    """A model under change."""

    def __init__(self, path: Path, of: Subject):
        self.model = onnx.load(str(path))
        self.of = of
        self.graph = self.model.graph
        self.is_int8 = any(node.op_type == "QuantizeLinear" for node in self.graph.node)

    def roles(self, *names: str) -> tuple[str, ...]:
        for name in names:
            if self.of.layers.get(name):
                return self.of.layers[name]
        raise Absent

    def node(self, name: str) -> onnx.NodeProto:
        return next(node for node in self.graph.node if node.name == name)

    def maker(self, tensor: str) -> onnx.NodeProto | None:
        return next((node for node in self.graph.node if tensor in node.output), None)

    def holder(self, node: str, position: int) -> onnx.TensorProto:
        """The initializer behind an input: the integers, where it is dequantized."""
        name = self.node(node).input[position]
        made = self.maker(name)
        while made is not None:
            name = made.input[0]
            made = self.maker(name)
        found = next((tensor for tensor in self.graph.initializer if tensor.name == name), None)
        if found is None:
            raise Absent
        return found

    def weight_position(self, node: str) -> int:
        n = self.node(node)
        for i, name in enumerate(n.input):
            if i and name:
                return i
        raise Absent

    def change(self, tensor: onnx.TensorProto, value: np.ndarray) -> None:
        old = numpy_helper.to_array(tensor)
        if old.dtype.kind == "i":
            value = np.clip(np.rint(value), np.iinfo(old.dtype).min, np.iinfo(old.dtype).max)
        tensor.CopyFrom(numpy_helper.from_array(value.astype(old.dtype), tensor.name))

    def edit(self, node: str, change: Callable[[np.ndarray], np.ndarray], position: int | None = None) -> None:
        holder = self.holder(node, self.weight_position(node) if position is None else position)
        self.change(holder, change(numpy_helper.to_array(holder).copy()))

    def dequantizer(self, node: str, position: int) -> onnx.NodeProto:
        made = self.maker(self.node(node).input[position])
        if made is None or made.op_type != "DequantizeLinear":
            raise Absent
        return made

    def constant(self, name: str, value: np.ndarray) -> str:
        taken = {tensor.name for tensor in self.graph.initializer}
        while name in taken:
            name += "_"
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def insert_before(self, node: onnx.NodeProto, *new: onnx.NodeProto) -> None:
        at = next(i for i, other in enumerate(self.graph.node) if other is node or other.output == node.output)
        for other in reversed(new):
            self.graph.node.insert(at, other)

    def attribute(self, node: str, name: str) -> onnx.AttributeProto:
        return next(a for a in self.node(node).attribute if a.name == name)

    def save(self, path: Path) -> Path:
        del self.graph.value_info[:]
        onnx.save(self.model, str(path))
        return path


def some(names: tuple[str, ...], magnitude: int) -> tuple[str, ...]:
    """One of them, half, all."""
    count = (1, max(1, len(names) // 2), len(names))[magnitude]
    middle = len(names) // 2
    return names[middle : middle + 1] if count == 1 else names[:count]


def portion(size: int, magnitude: int) -> int:
    """A quarter, half, all."""
    return max(1, (size // 4, size // 2, size)[magnitude])


# --------------------------------------------------------------------------- the twelve


def wrong_scale(p: Patient, m: int) -> Right:
    """A weight's scale is not the one that it was quantized with: 1.25, 1.5, 3 times."""
    node = p.roles("matmul", "conv")[0]
    scale = p.dequantizer(node, p.weight_position(node)).input[1]
    tensor = next(t for t in p.graph.initializer if t.name == scale)
    p.change(tensor, numpy_helper.to_array(tensor) * (1.25, 1.5, 3)[m])
    return {node}


def swapped_channels(p: Patient, m: int) -> Right:
    """A quarter, half or all of a convolution's output channels in another order."""
    node = p.roles("conv")[0]

    def swap(w: np.ndarray) -> np.ndarray:
        count = max(2, portion(len(w), m))
        return np.concatenate([w[:count][::-1], w[count:]])

    p.edit(node, swap)
    return {node}


def dropped_bias(p: Patient, m: int) -> Right:
    """A bias is gone: for half of the channels of one layer, for all, for all layers."""
    names = p.roles("bias")
    chosen = names[:1] if m < 2 else names
    for name in chosen:
        n = p.node(name)
        position = {"Conv": 2, "LSTM": 3}.get(n.op_type)
        if position is None:
            position = next(i for i, t in enumerate(n.input) if any(t == w.name for w in p.graph.initializer) or (p.maker(t) is not None and p.maker(t).op_type == "DequantizeLinear" and p.maker(t).input[0] in {w.name for w in p.graph.initializer}))

        def drop(b: np.ndarray) -> np.ndarray:
            flat = b.reshape(-1)
            flat[: flat.size // 2 if m == 0 else None] = 0
            return b

        p.edit(name, drop, position)
    return set(chosen)


def wrong_axis(p: Patient, m: int) -> Right:
    """Softmax over another axis, or a kernel's axes exchanged; in one place, in half of them, in all."""
    softmax = p.of.layers.get("softmax", ())
    if softmax and not (m == 2 and len(softmax) == 1):
        chosen = some(softmax, m)
        if len(softmax) == 1 and m == 1:
            p.attribute(softmax[0], "axis").i = 2  # an axis of length 1
        else:
            for name in chosen:
                found = [a for a in p.node(name).attribute if a.name == "axis"]
                if found:
                    found[0].i = 1 if p.of.name == "foreign" else 2
        return set(chosen)
    node = p.roles("conv")[0]
    w = numpy_helper.to_array(p.holder(node, 1))
    axes = [i for i in range(2, w.ndim) if w.shape[i] == w.shape[-1]]
    if len(axes) < 2:
        raise Absent
    order = list(range(w.ndim))
    exchanged = {0: axes[-2:], 1: axes[:2], 2: axes}[m]
    for old, new in zip(exchanged, exchanged[1:] + exchanged[:1], strict=True):
        order[old] = new
    p.edit(node, lambda w: np.ascontiguousarray(w.transpose(order)))
    return {node}


def off_by_one_pad(p: Patient, m: int) -> Right:
    """A convolution pads one more in front and one less behind: along one axis, along two or in two layers, everywhere."""
    names = p.roles("pos", "conv")
    chosen = names if m == 2 else names[: 1 + (m if len(names) > 1 else 0)]
    for name in chosen:
        pads = p.attribute(name, "pads").ints
        half = len(pads) // 2
        axes = [i for i in reversed(range(half)) if pads[half + i] > 0]
        by = (1, 2, 4)[m] if p.of.name == "mhlt" else 1
        for axis in axes if m == 2 else axes[: m + 1]:
            pads[axis] += by
            pads[half + axis] -= by
    return set(chosen)


def lost_state(p: Patient, m: int) -> Right:
    """A recurrent layer starts anew: a quarter, half or all of its units; without an outer state, twice, three times or at every step of a window."""
    node = p.node(p.roles("rnn")[-1])
    if p.of.layers.get("memory"):
        position = 5
        size = next(int(a.i) for a in node.attribute if a.name == "hidden_size")
        keep = np.ones((1, 1, size), np.float32)
        keep[..., : portion(size, m)] = 0
        new = helper.make_node("Mul", [node.input[position], p.constant("kept", keep)], ["kept_state"], name="keep")
        p.insert_before(node, new)
        p.node(node.name).input[position] = "kept_state"
        return {node.name}
    # Its sequence in pieces, each from zero.
    length = p.of.data[0]["wave"].shape[1] // 320 - 1 if "lstm_a" in node.name else 4
    pieces = (2, 3, length)[m]
    sizes = [len(part) for part in np.array_split(np.arange(length), pieces)]
    parts = [f"part{i}" for i in range(pieces)]
    p.insert_before(node, helper.make_node("Split", [node.input[0], p.constant("sizes", np.array(sizes, np.int64))], parts, name="split", axis=0))
    target = p.node(node.name)
    made = []
    for i, part in enumerate(parts):
        copy = onnx.NodeProto()
        copy.CopyFrom(target)
        copy.name, copy.input[0] = f"{target.name}/{i}", part
        del copy.output[:]
        copy.output.extend([f"piece{i}"])
        made.append(copy)
    made.append(helper.make_node("Concat", [f"piece{i}" for i in range(pieces)], [target.output[0]], name=f"{target.name}/join", axis=0))
    p.insert_before(target, *made)
    p.graph.node.remove(next(n for n in p.graph.node if n.name == node.name))
    return {node.name}


def not_a_number(p: Patient, m: int) -> Right:
    """NaN in one weight of the last layer, of a layer in the middle, or in all weights of one."""
    names = (*p.roles("matmul", "conv"), *p.roles("last"))
    node = (names[-1], names[len(names) // 2], names[0])[m]
    if p.is_int8 and p.maker(p.node(node).input[p.weight_position(node)]) is not None:
        scale = p.dequantizer(node, p.weight_position(node)).input[1]
        tensor = next(t for t in p.graph.initializer if t.name == scale)
        value = numpy_helper.to_array(tensor).copy()
        value.reshape(-1)[: value.size if m == 2 else 1] = np.nan
        p.change(tensor, value)
    else:

        def spoil(w: np.ndarray) -> np.ndarray:
            w.reshape(-1)[: w.size if m == 2 else 1] = np.nan
            return w

        p.edit(node, spoil)
    return {node}


def transposed_weight(p: Patient, m: int) -> Right:
    """A square matrix the wrong way round: one block or layer, half, all."""
    names = p.roles("square")
    first = p.node(names[0])
    if first.op_type == "LSTM":

        def turn(w: np.ndarray) -> np.ndarray:
            size = w.shape[2]
            for gate in range((1, 2, 4)[m]):
                w[0, gate * size : (gate + 1) * size] = w[0, gate * size : (gate + 1) * size].T.copy()
            return w

        p.edit(names[0], turn, 2)
        return {names[0]}
    if len(names) == 1:

        def block(w: np.ndarray) -> np.ndarray:
            size = portion(len(w), m)
            w[:size, :size] = w[:size, :size].T.copy()
            return w

        p.edit(names[0], block)
        return {names[0]}
    chosen = some(names, m)
    for name in chosen:
        p.edit(name, lambda w: np.ascontiguousarray(w.T))
    return set(chosen)


def stale_cache(p: Patient, m: int) -> Right:
    """What is kept for the next call is the old one, for a quarter, half or all of it; without a cache: weights kept from an earlier training, 10, 20 or 50 % off."""
    if p.of.layers.get("cache"):
        node = p.node(p.of.layers["cache"][0])
        width = 24
        old = np.zeros((1, 1, 1, width), np.float32)
        old[..., : portion(width, m)] = 1
        new, result = "window", node.output[0]
        node.output[0] = new
        at = next(i for i, other in enumerate(p.graph.node) if other.name == node.name)
        extra = [
            helper.make_node("Mul", [new, p.constant("fresh", 1 - old)], ["fresh_part"], name="fresh"),
            helper.make_node("Mul", ["past", p.constant("old", old)], ["old_part"], name="old"),
            helper.make_node("Add", ["fresh_part", "old_part"], [result], name="both"),
        ]
        for i, other in enumerate(extra):
            p.graph.node.insert(at + 1 + i, other)
        return {node.name}
    node = p.roles("matmul", "conv")[-1]
    rng = np.random.default_rng(9)
    p.edit(node, lambda w: w + (0.1, 0.2, 0.5)[m] * w.astype(np.float32).std() * rng.standard_normal(w.shape))
    return {node}


def wrong_mean_std(p: Patient, m: int) -> Right:
    """The input is normalized with other numbers: 10 % and 0.1 off, 30 % and 0.3, twice and 1."""
    factor, shift = ((1.1, 0.1), (1.3, 0.3), (2.0, 1.0))[m]
    if p.of.layers.get("mean"):
        mean, std = p.of.layers["mean"][0], p.of.layers["std"][0]
        p.edit(mean, lambda w: w + np.float32(shift), 1)
        p.edit(std, lambda w: w * np.float32(factor), 1)
        return {mean, std}
    [name] = p.of.inputs
    renamed = f"{name}_normalized"
    for node in p.graph.node:
        for i, read in enumerate(node.input):
            if read == name:
                node.input[i] = renamed
    p.graph.node.insert(0, helper.make_node("Mul", [name, p.constant("over_std", np.float32(1 / factor))], ["scaled"], name="normalize/Mul"))
    p.graph.node.insert(1, helper.make_node("Add", ["scaled", p.constant("mean", np.float32(shift))], [renamed], name="normalize/Add"))
    return None  # nothing of the model is wrong; what reads the input takes the blame


def clipped_range(p: Patient, m: int) -> Right:
    """The range that a layer's input is rounded in is 0.35, 0.2 or 0.1 of the one that it was calibrated to."""
    node = p.roles("matmul", "conv")[0]
    dequantizer = p.dequantizer(node, 0)
    scale = dequantizer.input[1]
    tensor = next(t for t in p.graph.initializer if t.name == scale)
    p.change(tensor, numpy_helper.to_array(tensor) * (0.35, 0.2, 0.1)[m])
    return readers(p, dequantizer.output[0])


def readers(p: Patient, tensor: str) -> set[str]:
    """Nodes of the float graph that read a tensor, through layouts too."""
    return {node.name for node in p.graph.node if tensor in node.input}


def bf16_for_f32(p: Patient, m: int) -> Right:
    """Computed in bfloat16: one layer's weights, its input too, all layers' weights."""
    if p.is_int8:
        raise Absent
    names = p.roles("matmul", "conv")

    def rounded(w: np.ndarray) -> np.ndarray:
        bits = w.astype(np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)

    chosen = names if m == 2 else names[:1]
    for name in chosen:
        p.edit(name, rounded)
    if m == 1:
        node = p.node(names[0])
        source = node.input[0]
        p.insert_before(
            node, helper.make_node("Cast", [source], ["as_bf16"], name="to_bf16", to=TensorProto.BFLOAT16), helper.make_node("Cast", ["as_bf16"], ["as_f32"], name="from_bf16", to=F)
        )  # fmt: skip
        p.node(names[0]).input[0] = "as_f32"
    return set(chosen)


MUTATORS: dict[str, Callable[[Patient, int], Right]] = {
    "wrong scale": wrong_scale,
    "swapped channels": swapped_channels,
    "dropped bias": dropped_bias,
    "wrong axis": wrong_axis,
    "off-by-one pad": off_by_one_pad,
    "lost state": lost_state,
    "NaN": not_a_number,
    "transposed weight": transposed_weight,
    "stale cache": stale_cache,
    "wrong mean/std": wrong_mean_std,
    "clipped range": clipped_range,
    "bf16 for f32": bf16_for_f32,
}
INT8_ONLY = ("wrong scale", "clipped range")
MAGNITUDES = ("small", "medium", "large")
MODELS = ("foreign", "tiny", "mhlt")


# --------------------------------------------------------------------------- the campaign


@dataclass(frozen=True)
class Case:
    """One planted fault and what became of it.

    Attributes:
        kind: float or int8, what it was planted into.
        is_found: compare said that they differ, at its defaults.
        rank: of the first wrong layer; None where no layer is.
    """

    mutator: str
    magnitude: str
    model: str
    kind: str
    is_found: bool
    rank: int | None
    says: str

    @property
    def has_layer(self) -> bool:
        return self.rank is not None


def cases(models: tuple[str, ...] = MODELS, mutators: tuple[str, ...] = tuple(MUTATORS)) -> list[tuple[str, int, str, str]]:
    """(mutator, magnitude, model, kind) of every case there is."""
    return [
        (mutator, m, model, kind) for mutator in mutators for m in range(3) for model in models for kind in ("float", "int8")
        if not (mutator in INT8_ONLY and kind == "float") and not (mutator == "bf16 for f32" and kind == "int8")
    ]  # fmt: skip


def plant(mutator: str, m: int, model: str, kind: str, path: Path) -> Right:
    """Write the model with the fault.

    Raises:
        Absent: the model has nothing of the kind.
    """
    patient = Patient(subject(model).path(kind), subject(model))
    right = MUTATORS[mutator](patient, m)
    if model == "foreign" and kind == "float":
        rename_inside(patient.model)
    patient.save(path)
    return right


def rename_inside(model: onnx.ModelProto) -> None:
    """Other names for all inner tensors, none for nodes: as yet another exporter leaves them."""
    kept = {v.name for v in (*model.graph.input, *model.graph.output)} | {t.name for t in model.graph.initializer} | {""}
    new: dict[str, str] = {}
    for i, node in enumerate(model.graph.node):
        node.name = ""
        for names in (node.input, node.output):
            for k, name in enumerate(names):
                if name not in kept:
                    names[k] = new.setdefault(name, f"onnx::{node.op_type}_{i}_{len(new)}")


def run(mutator: str, m: int, model: str, kind: str, folder: Path) -> Case:
    """Plant, compare, bisect."""
    import edgekit
    from edgekit.errors import EdgekitError
    from edgekit.parity.bisect import bisect

    of = subject(model)
    path = folder / f"{mutator.replace(' ', '_').replace('/', '_')}-{m}-{model}-{kind}.onnx"
    right = plant(mutator, m, model, kind, path)
    try:
        found = edgekit.compare(of.path("float"), path, of.data, threads=1, **of.how)
        is_found, says = not found, (found.reasons or ("same",))[0]
    except EdgekitError as error:
        is_found, says = True, str(error)
    rank = None
    if right is not None:
        rows = bisect(of.path("float"), path, of.data, threads=1, **of.how).rows
        rank = next((row.rank for row in rows if row.node in right), len(rows) + 1)
        says = f"{rows[0].node} ({rows[0].verdict}, {rows[0].introduced_db:.1f} dB, expected {rows[0].expected_db:.1f}); {says}"
    path.unlink()
    return Case(mutator, MAGNITUDES[m], model, kind, is_found, rank, says)


def table(found: list[Case]) -> str:
    """Markdown: per mutator how many were found, and how many have a wrong layer at rank 1."""
    lines = ["| planted | found, float | found, INT8 | right layer first |", "|---|---|---|---|"]
    for name in dict.fromkeys(case.mutator for case in found):
        own = [case for case in found if case.mutator == name]
        cells = []
        for kind in ("float", "int8"):
            part = [case for case in own if case.kind == kind]
            cells.append(f"{sum(case.is_found for case in part)} of {len(part)}" if part else "")
        ranked = [case for case in own if case.has_layer]
        cells.append(f"{sum(case.rank == 1 for case in ranked)} of {len(ranked)}" if ranked else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    ranked = [case for case in found if case.has_layer]
    both = [[case for case in found if case.kind == kind] for kind in ("float", "int8")]
    totals = [f"{sum(case.is_found for case in part)} of {len(part)}" for part in both]
    lines.append(f"| **all** | {' | '.join(totals)} | {sum(case.rank == 1 for case in ranked)} of {len(ranked)} |")
    return "\n".join(lines)


BEGIN, END = "<!-- planted: written by `python -m tests.parity.planted --write` -->", "<!-- /planted -->"


def main() -> None:
    """`python -m tests.parity.planted [--write] [MODEL...]`: the table, and every case that was missed; --write puts it into docs/parity.md."""
    import sys

    from tests.parity import honest

    models = tuple(name for name in sys.argv[1:] if name in MODELS) or MODELS
    found, alarms, built = [], 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(models):
            found.append(run(*case, Path(folder)))
            if not found[-1].is_found or (found[-1].has_layer and found[-1].rank != 1):
                print(found[-1])
        for i, rebuild in enumerate(r for r in honest.REBUILDS if r.model in models and r.is_possible):
            (Path(folder) / str(i)).mkdir()
            verdict = honest.judge(rebuild, Path(folder) / str(i))
            built, alarms = built + 1, alarms + (not verdict)
            if not verdict:
                print("alarm:", rebuild.model, rebuild.name, *verdict.reasons)
    text = f"{table(found)}\n\nOf {built} honest rebuilds, {alarms} raised an alarm."
    print(text)
    if "--write" in sys.argv:
        path = ROOT / "docs/parity.md"
        before, mark, rest = path.read_text().partition(BEGIN)
        path.write_text(f"{before}{mark}\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()

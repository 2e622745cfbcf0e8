"""edgekit's own engine for DCCRN: one weight file, and a C library that denoises with it hop by hop.

The engine computes the whole flow, spectrum and masks included, so the artifact's flow is one step from wave to wave. Scales come
from the Q/DQ graph as every backend's do. What the engine fixes by itself: states h have scale 1/127, both halves of a complex
tensor share a scale, and so do all taps of a transposed convolution, which the graph has as two layers; and a convolution's weights are
so coarse that those of two frames add up within int8, for the engine shares products between frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.backends import EngineKit, Kit
from edgekit.errors import TargetError
from edgekit.formats import read_json, write_json

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from edgekit.native_format import ConvLayer, Dense, Net, SpeechModel

EXECUTES = True
FILE = "model.ekd"
VERSION = "1"
KIT = 2  # of what `compile` writes: 2: weights of two frames add up within int8
MODELS = ("dccrn", "dccrnpp")
LARGEST_SUM = 126  # of two weights before they are rounded, in steps: rounding may add 1


def versions(target: Mapping[str, Any]) -> dict[str, str | None]:
    try:
        return {"edgekit-native": version("edgekit-native")}
    except PackageNotFoundError:
        return {"edgekit-native": None}


def install_hint(missing: str) -> str:
    return "pip install ./native"


def problems(target: Mapping[str, Any]) -> list[str]:
    found = []
    if target["runtime"]["version"] != VERSION:
        found.append(f"runtime {target['runtime']['version']}: this edgekit writes weight files of version {VERSION}")
    numbers = target["numbers"]
    if not numbers["activation"]["symmetric"] or numbers.get("outputs"):
        found.append("numbers: the engine takes symmetric int8 activations, and layers that give floats")
    return found


def flow(graph_flow: Mapping[str, Any]) -> dict[str, Any]:
    """The flow of the artifact: the engine takes the wave and gives the wave."""
    [step] = graph_flow["steps"]
    [(wave, _)] = graph_flow["inputs"].items()
    [speech] = graph_flow["outputs"]
    kept = {key: value for key, value in graph_flow.items() if key not in ("steps", "states", "host_steps", "rates_hz")}
    hop = next(one for one in graph_flow["host_steps"] if one["step"] == "stft")
    inside = [one for one in graph_flow["host_steps"] if one["step"] in ("stft", "masked_istft")]
    return {
        **kept,
        "steps": [{"engine": step["engine"], "feed": {wave: wave}, "give": {speech: speech}}],
        "rates_hz": {step["engine"]: graph_flow["rates_hz"][step["engine"]]},
        "hop_samples": hop["hop_length"],
        "host_steps": [one for one in graph_flow["host_steps"] if one["step"] == "preprocess"],
        "inside": inside,  # what the engine does itself
    }


def compile(kit: Kit, out: Path) -> None:
    """Write engines/<name>/model.ekd and build.json.

    Raises:
        TargetError: the model is no DCCRN that can stream, or layers that the engine computes in INT8 are not.
    """
    from safetensors.numpy import load_file

    from edgekit import native_format

    model = read_json(kit.source / "model.json")
    if model["model"] not in MODELS or len(kit.engines) != 1:
        raise TargetError(f"target `{kit.target['name']}`: the native engine computes DCCRN only, not `{model['model']}`", "choose another target for this model")
    config = model["config"]
    if config["is_bidirectional"]:
        raise TargetError(f"target `{kit.target['name']}`: a bidirectional GRU cannot stream", "use a causal configuration, such as `half_causal`")
    [engine] = kit.engines
    sizes = {name: config[name] for name in ("sample_rate_hz", "n_fft", "win_length", "hop_length", "mask", "look_ahead")}
    speech = native_format.from_state(load_file(kit.source / "model.safetensors"), **sizes)
    if engine.int8:
        speech = _integers(speech, engine, kit.target)
    path = native_format.write(speech, _made(out / "engines" / engine.name) / FILE)
    write_json(
        out / "build.json",
        {
            "backend": "native",
            "runtime": dict(kit.target["runtime"]),
            "build_on": kit.target["build_on"],
            "engines": {engine.name: {"file": str(path.relative_to(out)), "int8_layers": len(engine.int8)}},
            "note": "`ek_dccrn model.ekd noisy.wav clean.wav` runs it; the C API is edgekit.h, see native/README.md",
        },
    )


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def open(folder: Path, target: Mapping[str, Any], threads: int | None = None):
    """The engine as a session: {"wave": [1, samples]} -> {"speech": [1, samples]}, a stream from its start, then silence until all has come out."""
    import numpy as np

    from edgekit import native

    denoiser = native.Denoiser(folder / FILE, threads=threads or 1)

    def call(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        [wave] = feeds["wave"]
        denoiser.reset()
        late = denoiser.latency_samples
        heard = denoiser.process(np.concatenate([np.asarray(wave, np.float32), np.zeros(late, np.float32)]))
        return {"speech": heard[None, late:]}

    return call


def coverage(folder: Path, engine: EngineKit, target: Mapping[str, Any]) -> dict[str, str]:
    """{layer: precision}, from the file: an int8 file has its first and last layer in float, and all others in int8."""
    from edgekit import graph, native

    info = native.file_info(folder / FILE)
    model = graph.load(engine.float_onnx)
    layers = [node.name for node in model.graph if node.op_type in graph.MAC_OPS]
    if info["weight_format"] != "int8":
        return dict.fromkeys(layers, "fp32")
    first, last = "encoder.0/", f"decoder.{info['depth'] - 1}/"
    return {name: "fp32" if name.startswith((first, last)) else "int8" for name in layers}


# --------------------------------------------------------------------------- INT8


class _Graph:
    """The Q/DQ graph: which layers are on integers, and in which scale each reads."""

    def __init__(self, engine: EngineKit, target: str):
        from edgekit import graph

        self.model, self.target = graph.load(engine.qdq_onnx), target
        self.nodes: dict[str, ir.Node] = {node.name: node for node in self.model.graph}

    def scale(self, name: str) -> float:
        """The scale of what layer `name` reads.

        Raises:
            TargetError: the layer is not INT8.
        """
        from edgekit import graph

        node = self.nodes.get(name)
        value = node.inputs[0] if node is not None else None
        while value is not None and (maker := value.producer()) is not None:
            if maker.op_type == "DequantizeLinear":
                return float(graph.constant(maker.inputs[1]))
            if maker.op_type not in graph.COPY_OPS:
                break
            value = maker.inputs[0]
        raise TargetError(
            f"target `{self.target}`: `{name}` is not INT8; the engine computes all layers but the first and the last in INT8, or none",
            "skip `encoder.0/*` and the last decoder layer only",
        )

    def names(self, prefix: str, end: str) -> list[str]:
        return [name for name in self.nodes if name.startswith(prefix) and name.endswith(end)]


def _integers(speech: SpeechModel, engine: EngineKit, target: Mapping[str, Any]) -> SpeechModel:
    """The same model with integers where the engine has them, in the Q/DQ graph's scales."""
    from dataclasses import replace

    graph, depth = _Graph(engine, target["name"]), len(speech.encoder)
    largest = target["numbers"]["weight"].get("divisor", 127)
    into_conv = [graph.scale(f"encoder.{k}/conv/Conv") for k in range(1, depth)]
    into_decoder = [max(graph.scale(name) for name in graph.names(f"decoder.{k}/", "/Conv")) for k in range(depth - 1)]
    into_rnn = [max(graph.scale(name) for name in graph.names(f"enhance.{k}/", "x_matmul")) for k in range(len(speech.recurrent))]
    into_dense = max(graph.scale(name) for name in graph.names(f"enhance.{len(speech.recurrent) - 1}/", "_trans/MatMul"))

    # A frame of an encoder goes to the next layer and to a decoder, in one scale; that of the first goes to the last decoder in float.
    made = [into_conv[0], *(max(into_conv[k], into_decoder[depth - 1 - k]) for k in range(1, depth - 1)), max(into_rnn[0], into_decoder[0])]
    encoder = [replace(speech.encoder[0], out_scale=made[0])]
    for k in range(1, depth):
        encoder.append(_conv(speech.encoder[k], [(made[k - 1], slice(None))], made[k], largest, transposed=False))
    recurrent = []
    scales = [made[-1], *into_rnn[1:], into_dense]
    for k, layer in enumerate(speech.recurrent):
        recurrent.append(replace(layer, nets=tuple(_net(net, scales[k], largest) for net in layer.nets), out_scale=scales[k + 1]))
    decoder, skips = [], made[::-1]
    for k in range(depth - 1):
        before = speech.decoder_channels[k]
        after = into_decoder[k + 1] if k + 2 < depth else 1.0
        decoder.append(_conv(speech.decoder[k], [(into_decoder[k], slice(0, before)), (skips[k], slice(before, None))], after, largest, transposed=True))
    return replace(
        speech, encoder=encoder, recurrent=recurrent, decoder=[*decoder, speech.decoder[-1]],
        projection=tuple(_dense(one, into_dense, largest) for one in speech.projection), projection_scale=into_decoder[0],
    )  # fmt: skip


def _conv(layer: ConvLayer, sources: list[tuple[float, slice]], out_scale: float, largest: int, transposed: bool) -> ConvLayer:
    """Integers for one scale of the sums: where the inputs differ in scale, the weights of the finer one are smaller.

    The engine adds the weights of a layer's two frames where it shares products between frames, so these sums fit int8 too.

    Args:
        sources: (scale, input channels) of each input.
        largest: the integer that the largest weight of a row becomes, if no sum of two is larger.
    """
    from dataclasses import replace

    import numpy as np

    weight = np.float64(layer.weight)  # [2, c_out, c_in, 5, 2], transposed [2, c_in, c_out, 5, 2]
    common = max(scale for scale, _ in sources)
    for scale, channels in sources:
        weight[:, channels] *= scale / common if transposed else 1.0
    c_out = 2 if transposed else 1
    axes = tuple(axis for axis in range(5) if axis != c_out)
    most = np.maximum(np.abs(weight).max(axis=axes), 1e-30)
    both = np.abs(weight.sum(-1)).max(axis=axes[:-1])
    step = np.maximum(most / largest, both / LARGEST_SUM)
    q = np.rint(weight / step.reshape([-1 if axis == c_out else 1 for axis in range(5)]))
    return replace(layer, weight=q.astype(np.int8), gain=np.float32(layer.gain * (step * common)), out_scale=out_scale)


def _net(net: Net, x_scale: float, largest: int) -> Net:
    from dataclasses import replace

    import numpy as np

    (q_x, step_x), (q_h, step_h) = _rows(net.w_x, largest), _rows(net.w_h, largest)
    return replace(net, w_x=q_x, w_h=q_h, scale_x=np.float32(step_x * x_scale), scale_h=np.float32(step_h / 127))


def _dense(dense: Dense, x_scale: float, largest: int) -> Dense:
    from dataclasses import replace

    import numpy as np

    q, step = _rows(dense.weight, largest)
    return replace(dense, weight=q, scale=np.float32(step * x_scale))


def _rows(weight: np.ndarray, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """(int8, scale of each row) of a matrix."""
    import numpy as np

    step = np.maximum(np.abs(np.float64(weight)).max(axis=1), 1e-30) / largest
    return np.rint(weight / step[:, None]).astype(np.int8), step

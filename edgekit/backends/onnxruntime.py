"""ONNX Runtime: the runtime of x86 hosts, and the reference for every other backend.

As a runtime (`open`) it gets the Q/DQ graph as it is and fuses Q, DQ and the op between them into
integer kernels while it loads. A file that was optimized before would save that time, but holds
kernels of this very CPU (https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html,
"Online/offline mode").

As the reference (`simulate`) it must do the opposite: compute Q, DQ and the float op between them
as written, since the fused kernels have roundings of their own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.backends import EngineKit, Kit
from edgekit.errors import ToolMissing
from edgekit.formats import write_json

if TYPE_CHECKING:
    import numpy as np
    import onnx

EXECUTES = True

# What stands in an optimized graph for layers with MACs. Anything else is no kernel that we know: see `coverage`.
_KERNELS = {
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "QAttention", "QLinearConvTranspose"), "int8"),
    **dict.fromkeys(("ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"), "int8"),
    **dict.fromkeys(("Conv", "FusedConv", "ConvTranspose", "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "LSTM", "GRU"), "fp32"),
    **dict.fromkeys(("Attention", "MultiHeadAttention"), "fp32"),
}


def versions(target: Mapping[str, Any]) -> dict[str, str | None]:
    try:
        return {"onnxruntime": version("onnxruntime")}
    except PackageNotFoundError:
        return {"onnxruntime": None}


def install_hint(missing: str) -> str:
    return "pip install onnxruntime"


def problems(target: Mapping[str, Any]) -> list[str]:
    """Number rules that ONNX Runtime's integer kernels for x86 do not take: their layers would run in float without a word."""
    found = []
    if target["build_on"] != "host":
        found.append(f"build_on: {target['build_on']}: ONNX Runtime optimizes the graph where it is loaded, there is nothing to build on the device")
    numbers = target["numbers"]
    activation = numbers["activation"]
    # QDQS8ToU8Transformer turns int8 into uint8 only where one layer reads a tensor, so int8 graphs with branches stay in float.
    if activation["dtype"] != "uint8" or activation["symmetric"]:
        found.append(f"numbers.activation: {activation['dtype']}{', symmetric' if activation['symmetric'] else ''}: x86 kernels take uint8, asymmetric")
    if not numbers.get("outputs"):
        found.append("numbers.outputs: false: integer convolutions write integers")
    return found


def compile(kit: Kit, out: Path) -> None:
    """Write engines/<name>/model.onnx, the Q/DQ graph, and build.json."""
    import onnx

    for engine in kit.engines:
        folder = out / "engines" / engine.name
        folder.mkdir(parents=True, exist_ok=True)
        model = onnx.load(str(engine.qdq_onnx))
        _keep_float(model, engine.int8, kit.target["ops"])
        _drop_relus(model)
        onnx.save(model, str(folder / "model.onnx"))
    write_json(
        out / "build.json",
        {
            "backend": "onnxruntime",
            "runtime": dict(kit.target["runtime"]),
            "build_on": kit.target["build_on"],
            "session": {"graph_optimization_level": "ORT_ENABLE_ALL", "providers": ["CPUExecutionProvider"]},
            "engines": {engine.name: {"file": f"engines/{engine.name}/model.onnx", "int8_layers": len(engine.int8)} for engine in kit.engines},
            "note": "integer kernels are formed while the session loads; with all optimizations, which is the default",
        },
    )


# Their kernels on integers compute by tables of their own: QLinearSoftmax was seen 8 dB off.
_TABLES = ("Softmax", "Sigmoid", "LeakyRelu", "AveragePool", "GlobalAveragePool")


def _keep_float(model: onnx.ModelProto, int8: Iterable[str], ops: Mapping[str, Any]) -> None:
    """Make ONNX Runtime leave layers in float that are not in `int8`, and other ops that the target's table does not take in INT8.

    Between a DQ and a Q its optimizer quantizes the float weights of Conv, ConvTranspose and Gemm by itself, and
    per tensor at that (core/optimizer/qdq_transformer/weight_bias_quantization.cc). A Max of one tensor in
    between changes nothing, and no optimizer removes it.
    """
    import onnx

    from edgekit.graph import COPY_OPS

    int8 = set(int8)
    dequantized: set[str] = set()
    for node in model.graph.node:  # the optimizer moves Q and DQ through what only moves values
        if node.op_type == "DequantizeLinear" or (node.op_type in COPY_OPS and any(name in dequantized for name in node.input)):
            dequantized.update(node.output)
    for i, node in reversed(list(enumerate(model.graph.node))):
        is_layer = node.op_type in ("Conv", "ConvTranspose", "Gemm") and node.name not in int8
        is_table = node.op_type in _TABLES and not ops.get(node.op_type, {}).get("int8")
        if (is_layer or is_table) and node.input[0] in dequantized:
            name = f"{node.name}/keep_float"
            model.graph.node.insert(i, onnx.helper.make_node("Max", [node.input[0]], [f"{name}_out"], name))
            node.input[0] = f"{name}_out"


def _drop_relus(model: onnx.ModelProto) -> None:
    """Remove every Relu whose readers quantize it with the lowest integer as zero point: that clamps at 0 all the same.

    The optimizer knows this too, but first makes MatMul and bias a Gemm between Reshapes; then the Q does not reach
    the Gemm past the Relu, which stays float.
    """
    import onnx

    lowest = {}
    for tensor in model.graph.initializer:
        if tensor.data_type in (onnx.TensorProto.UINT8, onnx.TensorProto.INT8) and not tensor.dims:
            lowest[tensor.name] = int(onnx.numpy_helper.to_array(tensor)) == (0 if tensor.data_type == onnx.TensorProto.UINT8 else -128)
    kept = {value.name for value in model.graph.output}
    for relu in [node for node in model.graph.node if node.op_type == "Relu" and node.output[0] not in kept]:
        readers = [node for node in model.graph.node if relu.output[0] in node.input]
        if readers and all(node.op_type == "QuantizeLinear" and len(node.input) > 2 and lowest.get(node.input[2]) for node in readers):
            for node in readers:
                node.input[0] = relu.input[0]
            model.graph.node.remove(relu)


def coverage(folder: Path, engine: EngineKit, target: Mapping[str, Any]) -> dict[str, str]:
    """{node of float.onnx with MACs: int8, fp32 or unknown}, read out of the graph that ONNX Runtime makes of model.onnx here.

    `unknown`: neither the node nor a kernel that computes its output is there, or the kernel is none that we know.
    """
    import onnx

    from edgekit import graph

    optimized = _optimized(folder / "model.onnx")
    source = onnx.load(str(folder / "model.onnx"))
    wanted = [node.name for node in source.graph.node if node.op_type in graph.MAC_OPS]
    kernels = {node.name: node.op_type for node in optimized.graph.node if node.op_type in _KERNELS}
    found = {name: _by_name(name, wanted, kernels) for name in wanted}
    for kernel in optimized.graph.node:
        # Fused attention has a new name and swallows several layers, but its inputs and outputs keep theirs.
        if kernel.op_type in ("QAttention", "Attention", "MultiHeadAttention"):
            for name in _between(source, kernel):
                found[name] = found.get(name) or kernel.op_type
    return {name: _KERNELS.get(kernel or "", "unknown") for name, kernel in found.items()}


def _optimized(path: Path) -> onnx.ModelProto:
    """The graph that ONNX Runtime makes of the one at `path`, without the layouts of ORT_ENABLE_ALL: these drop the names of float layers."""
    import onnx
    import onnxruntime as ort

    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        options = _options(None)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def _by_name(name: str, wanted: Iterable[str], kernels: Mapping[str, str]) -> str | None:
    """The kernel of a layer. Fusions keep the layer's name and may append theirs: `proj/MatMul/MatMulAddFusion`."""
    if name in kernels:
        return kernels[name]
    others = [other for other in wanted if other.startswith(f"{name}/")]
    fused = [op for kernel, op in kernels.items() if kernel.startswith(f"{name}/") and not any(kernel == o or kernel.startswith(f"{o}/") for o in others)]
    return fused[0] if len(fused) == 1 else None


def _between(source: onnx.ModelProto, kernel: onnx.NodeProto) -> list[str]:
    """Nodes of `source` that compute the kernel's outputs from its inputs."""
    producers = {name: node for node in source.graph.node for name in node.output}
    names, seen, stack = [], set(kernel.input), list(kernel.output)
    while stack:
        tensor = stack.pop()
        node = producers.get(tensor)
        if tensor in seen or node is None:
            continue
        seen.update(node.output)
        names.append(node.name)
        stack.extend(node.input)
    return names


class Session:
    """An ONNX graph that can be called: {input: array} -> {output: array}, batch 1 in front."""

    def __init__(self, model: Path | str | bytes, threads: int | None = None, as_written: bool = True):
        import onnxruntime as ort

        options = _options(threads)
        if as_written:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        source = model if isinstance(model, bytes) else str(model)
        self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self.inputs = [value.name for value in self._session.get_inputs()]
        self.outputs = [value.name for value in self._session.get_outputs()]

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self.outputs, self._session.run(self.outputs, dict(feeds)), strict=True))


def _options(threads: int | None) -> Any:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise ToolMissing(f"onnxruntime cannot be loaded: {error}", install_hint("onnxruntime")) from None

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.inter_op_num_threads = 1
    if threads is not None:
        options.intra_op_num_threads = threads
    # Waiting threads sleep: with as many busy processes as cores, spinning costs more than it saves.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def open(folder: Path, target: Mapping[str, Any], threads: int | None = None) -> Session:
    """The engine in `folder` as it is deployed: with every optimization, Q/DQ fused into integer kernels."""
    return Session(folder / "model.onnx", threads, as_written=False)


def simulate(path: Path | str, threads: int | None = None, also: Iterable[str] = ()) -> Session:
    """A session that computes the graph at `path` as written, Q and DQ included.

    Args:
        threads: inside one op; all cores if None.
        also: further tensors of the graph to give out beside its outputs.
    """
    also = list(also)
    return Session(path if not also else with_outputs(path, also), threads)


def with_outputs(path: Path | str, names: Iterable[str]) -> bytes:
    """The graph at `path` with `names` among its outputs, serialized."""
    import onnx

    model = onnx.load(str(path))
    outputs = {value.name for value in model.graph.output}
    known = {value.name: value for value in model.graph.value_info}
    for name in names:
        if name not in outputs:
            outputs.add(name)
            model.graph.output.append(known.get(name) or onnx.helper.make_empty_tensor_value_info(name))
    return model.SerializeToString()

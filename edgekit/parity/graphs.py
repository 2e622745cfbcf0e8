"""Sides of one graph: an ONNX file, an OpenVINO IR, a TensorFlow Lite model.

Files come from anywhere: they are data. An ONNX file whose weights lie in other files may only name
plain files in its own folder, no extension library is ever loaded, and what a runtime refuses is one sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.artifact import file_digest, tool_version
from edgekit.errors import EdgekitError, IntegrityError, ToolMissing
from edgekit.parity.runners import DEFAULTS, Arrays, Options, Port, Side, damaged, pair_states, refuse_words, require_feeds

if TYPE_CHECKING:
    import numpy as np
    import onnx

_INTEGER_OPS = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul")
_TFLITE_TOOLS = {"2.14": "tflite214", "2.14-arm64": "tflite214-arm64"}
_KEPT_SESSIONS = 4  # with different taps; each holds the weights once more


class _Graph(Side):
    """A graph whose sessions are made per set of taps and kept."""

    def __init__(self, text: str, path: Path, words: tuple[str, ...], options: Options):
        super().__init__(text, path)
        self._options = options
        self._sessions: dict[tuple[str, ...], Callable[[Arrays], dict[str, np.ndarray]]] = {}

    def run(self, feeds: Arrays, taps: Iterable[str] = (), sample: str | None = None) -> dict[str, np.ndarray]:
        require_feeds(self, feeds)
        wanted = tuple(taps)
        if wanted not in self._sessions:
            if len(self._sessions) >= _KEPT_SESSIONS:
                del self._sessions[next(iter(self._sessions))]
            self._sessions[wanted] = self._open(wanted)
        try:
            return self._sessions[wanted](feeds)
        except EdgekitError:
            raise
        except Exception as error:  # a runtime's errors have no common type below Exception; what the model does with its inputs is the model's fault
            raise damaged(self.path, f"it fails on its inputs: {_without_prefix(error)}") from None

    def _open(self, taps: tuple[str, ...]) -> Callable[[Arrays], dict[str, np.ndarray]]:
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        return {"sha256": file_digest(self.path)}


# --------------------------------------------------------------------------- ONNX


class OnnxSide(_Graph):
    """An ONNX file, computed by ONNX Runtime as written: Q, DQ and float ops apart. `@fused`: as deployed, with every optimization."""

    kind = "onnx"

    def __init__(self, text: str, path: Path, words: tuple[str, ...] = (), options: Options = DEFAULTS):
        super().__init__(text, path, words, options)
        refuse_words(text, words, ("fused",))
        _require("onnxruntime", "pip install onnxruntime")
        self.is_fused = "fused" in words
        self._graph = load_onnx(path).graph
        initialized = {value.name for value in self._graph.initializer}
        self.inputs = {value.name: _onnx_port(path, value) for value in self._graph.input if value.name not in initialized}
        self.outputs = {value.name: _onnx_port(path, value) for value in self._graph.output}
        self.states = pair_states(text, self.inputs, self.outputs, options.states)
        self.numbers = "int8" if any(node.op_type in _INTEGER_OPS for node in _nodes(self._graph)) else "float"
        self._sessions[()] = self._open(())

    def _open(self, taps: tuple[str, ...]) -> Callable[[Arrays], dict[str, np.ndarray]]:
        from edgekit.backends.onnxruntime import Session, with_outputs

        try:
            # From the path where nothing is added: weights in other files are found beside it.
            session = Session(with_outputs(self.path, taps) if taps else self.path, self._options.threads, as_written=not self.is_fused)
        except EdgekitError:
            raise
        except Exception as error:  # ONNX Runtime's errors have no common type below Exception
            raise damaged(self.path, _without_prefix(error)) from None
        # An output of an optional type or of no tensor would end here as a list; none of ours has one.
        return session

    def taps(self) -> tuple[str, ...]:
        return tuple(name for node in self._graph.node for name in node.output if name and name not in self.outputs)

    def engine_graph(self) -> Path | None:
        return self.path

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "runtime": "onnxruntime", "version": tool_version("onnxruntime"), "computed": "fused" if self.is_fused else "as written"}


def load_onnx(path: Path) -> onnx.ModelProto:
    """The model without the weights that lie in other files, checked before anything else reads it.

    Raises:
        IntegrityError: not an ONNX file, or it reaches outside its folder.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError, OSError) as error:
        raise IntegrityError(f"{path}: not an ONNX file ({type(error).__name__})", "the file is damaged or of another kind") from None
    if not model.HasField("graph") or not model.graph.output:
        raise IntegrityError(f"{path}: not an ONNX file, it has no graph with outputs", "the file is damaged or of another kind")
    try:
        for node in _nodes(model.graph):
            _ = (node.name, node.op_type, node.domain, *node.input, *node.output)
        _ = [value.name for value in (*model.graph.input, *model.graph.output, *model.graph.initializer, *model.graph.value_info)]
    except UnicodeDecodeError:
        raise IntegrityError(f"{path}: a name in it is not UTF-8", "the file is damaged") from None
    _refuse_strange_files(model, path)
    return model


def _refuse_strange_files(model: onnx.ModelProto, path: Path) -> None:
    """Weights may lie in plain files in the model's own folder, nowhere else."""
    import onnx

    folder = path.parent.resolve()
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
        file = folder / location
        if not location or Path(location).is_absolute() or ".." in Path(location).parts or "\\" in location or ":" in location:
            raise IntegrityError(f"{path}: weight `{tensor.name}` lies at {location[:200]!a}, outside the model's folder", "do not load this file")
        if file.is_symlink() or not file.resolve().is_relative_to(folder):
            raise IntegrityError(f"{path}: weight `{tensor.name}` lies behind the link {location[:200]!a}", "do not load this file")
        if not file.is_file():
            raise IntegrityError(f"{path}: its weights lie in {location[:200]!a}, which is not there", "copy it beside the model")


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: initializers, constants in attributes, all of them in subgraphs and functions too."""
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield sparse.values
                yield sparse.indices
            nodes.extend(graph.node)
            continue
        for attribute in nodes.pop().attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield sparse.values
                yield sparse.indices
            graphs.extend((attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ())


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
                yield from _nodes(inner)


def _onnx_port(path: Path, value: onnx.ValueInfoProto) -> Port:
    import onnx

    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape") or tensor.elem_type not in onnx.TensorProto.DataType.values()[1:]:
        raise IntegrityError(f"{path}: `{value.name}` is no tensor of a known rank", "compare a graph whose inputs and outputs are tensors")
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return Port(dtype, tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in tensor.shape.dim))


def _without_prefix(error: Exception) -> str:
    """`[ONNXRuntimeError] : 1 : FAIL : Load model from x failed:...` → what went wrong."""
    return str(error).rpartition(" : ")[2] or type(error).__name__


# --------------------------------------------------------------------------- OpenVINO


class OpenvinoSide(_Graph):
    """An OpenVINO IR on the CPU plug-in, float layers in float32. `@deployed`: as the plug-in chooses, bfloat16 where the CPU has it."""

    kind = "openvino"

    def __init__(self, text: str, path: Path, words: tuple[str, ...] = (), options: Options = DEFAULTS):
        super().__init__(text, path, words, options)
        refuse_words(text, words, ("deployed",))
        _require("openvino", "pip install 'edgekit[openvino]'")
        self._is_deployed = "deployed" in words
        _, model = self._read()
        self.inputs = {port.any_name: _ov_port(port) for port in model.inputs}
        self.outputs = {port.any_name: _ov_port(port) for port in model.outputs}
        self.states = pair_states(text, self.inputs, self.outputs, options.states)
        self.numbers = "int8" if any(op.get_type_name() == "FakeQuantize" or _holds_int8(op) for op in model.get_ops()) else "float"
        self._sessions[()] = self._open(())

    def _read(self) -> tuple[Any, Any]:
        import openvino as ov

        core = ov.Core()
        try:
            model = core.read_model(self.path)
            for port in (*model.inputs, *model.outputs):
                _ = port.any_name, port.get_names()  # raises where a port has no name, or one that is no UTF-8
            for op in model.get_ops():
                _ = op.get_friendly_name(), [port.get_names() for port in op.outputs()]
        except (RuntimeError, UnicodeDecodeError) as error:
            raise damaged(self.path, _ov_said(error)) from None
        return core, model

    def _open(self, taps: tuple[str, ...]) -> Callable[[Arrays], dict[str, np.ndarray]]:
        import numpy as np

        core, model = self._read()
        try:
            if taps:
                named = self._tap_ports(model)
                model.add_outputs([named[name] for name in taps])
            config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
            if not self._is_deployed:
                config |= {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
            if self._options.threads is not None:
                config["INFERENCE_NUM_THREADS"] = str(self._options.threads)
            request = core.compile_model(model, "CPU", config).create_infer_request()
        except (RuntimeError, UnicodeDecodeError) as error:
            raise damaged(self.path, _ov_said(error)) from None
        names = [*self.outputs, *taps]

        def call(feeds: Arrays) -> dict[str, np.ndarray]:
            request.infer({name: np.ascontiguousarray(value) for name, value in feeds.items()})
            # By index: added outputs come after the model's own, in the order of `taps`.
            return {name: np.array(request.get_output_tensor(i).data) for i, name in enumerate(names)}

        return call

    @staticmethod
    def _tap_ports(model: Any) -> dict[str, Any]:
        """{tensor name: output port} of every op that computes something; the ONNX tensor's name where the IR kept it."""
        ends = {name for port in model.outputs for name in port.get_names()}
        found: dict[str, Any] = {}
        for op in model.get_ordered_ops():
            if op.get_type_name() in ("Constant", "Parameter", "Result"):
                continue
            for port in op.outputs():
                names = sorted(port.get_names()) or [op.get_friendly_name() if len(op.outputs()) == 1 else f"{op.get_friendly_name()}.{port.get_index()}"]
                if not ends & set(names):
                    found.update({name: port for name in names})
        return found

    def taps(self) -> tuple[str, ...]:
        return tuple(self._tap_ports(self._read()[1]))

    def facts(self) -> dict[str, Any]:
        weights = self.path.with_suffix(".bin")
        return {
            **super().facts(),
            **({"weights_sha256": file_digest(weights)} if weights.is_file() else {}),
            "runtime": "openvino", "version": tool_version("openvino"), "computed": "as deployed" if self._is_deployed else "float layers in float32",
        }  # fmt: skip


def _ov_port(port: Any) -> Port:
    from openvino import Type

    dtype = "float32" if port.get_element_type() == Type.bf16 else port.get_element_type().to_dtype().name
    shape = port.get_partial_shape()
    return Port(dtype, tuple(dim.get_length() if dim.is_static else None for dim in shape))


def _holds_int8(op: Any) -> bool:
    return op.get_type_name() == "Constant" and op.get_element_type().get_type_name() in ("i8", "u8") and op.get_output_shape(0) not in ([], [1])


def _ov_said(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith(("Exception from", "Check "))]
    return lines[0] if lines else str(error)


# --------------------------------------------------------------------------- TensorFlow Lite


class TfliteSide(_Graph):
    """A .tflite with ai-edge-litert. `@2.14`: tflite-runtime 2.14 of the side environment, `@2.14-arm64`: that one under qemu.

    Inputs and outputs that are int8 with a scale are given and taken as float32, converted here: a
    float model on the other side has no integers to compare with.
    """

    kind = "tflite"
    def __init__(self, text: str, path: Path, words: tuple[str, ...] = (), options: Options = DEFAULTS):
        super().__init__(text, path, words, options)
        refuse_words(text, words, _TFLITE_TOOLS)
        if path.read_bytes()[4:8] != b"TFL3":
            raise IntegrityError(f"{path}: not a TensorFlow Lite file", "the file is damaged or of another kind")
        self._side: Any = None
        self._scales: dict[str, tuple[float, int, str]] = {}
        self._tool = _TFLITE_TOOLS[words[0]] if words else None
        # The file is described by the interpreter of this environment, also where another one runs it.
        _require("ai-edge-litert", "pip install 'edgekit[tflite]'")
        runner, details = self._described()
        self.inputs = {name: self._port(name, d) for name, d in runner.get_input_details().items()}
        self.outputs = {name: self._port(name, d) for name, d in runner.get_output_details().items()}
        self.states = pair_states(text, self.inputs, self.outputs, options.states)
        integer = [d for d in details if d["dtype"].__name__ in ("int8", "uint8", "int16") and len(d["shape"])]
        self.numbers = "int8" if any(len(d["quantization_parameters"]["scales"]) for d in integer) else "float"
        self._sessions[()] = self._open(())

    def _interpreter(self, preserve: bool = False) -> Any:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        # XNNPACK overwrites inner tensors: taps are computed by the built-in kernels.
        extra = {"experimental_preserve_all_tensors": True, "experimental_op_resolver_type": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES} if preserve else {}
        try:
            interpreter = Interpreter(model_path=str(self.path), num_threads=self._options.threads, **extra)
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise damaged(self.path, error) from None
        return interpreter

    def _described(self) -> tuple[Any, list[dict]]:
        interpreter = self._interpreter()
        signatures = list(interpreter.get_signature_list())
        if len(signatures) != 1:
            raise IntegrityError(f"{self.path}: it has {len(signatures)} signatures, names of inputs and outputs are taken from the only one", "save the model with one signature")
        return interpreter.get_signature_runner(signatures[0]), interpreter.get_tensor_details()

    def _port(self, name: str, detail: Mapping[str, Any]) -> Port:
        dtype = detail["dtype"].__name__
        scale, zero = detail["quantization"]
        if dtype in ("int8", "uint8", "int16") and scale:
            self._scales[name] = (float(scale), int(zero), dtype)
            dtype = "float32"
        return Port(dtype, tuple(int(n) for n in detail["shape"]))

    def _open(self, taps: tuple[str, ...]) -> Callable[[Arrays], dict[str, np.ndarray]]:
        if taps and self._tool is not None:
            raise ToolMissing(f"{self.text}: tflite-runtime 2.14 gives out no inner tensors", f"look into `{self.path}` without the `@`")
        if self._tool is not None:
            from edgekit.backends.tflite import side

            self._side = call_raw = side.open(self.path, self._options.threads, tool=self._tool)
        else:
            interpreter = self._interpreter(preserve=bool(taps))
            runner = interpreter.get_signature_runner()
            call_raw = lambda feeds: runner(**feeds)  # noqa: E731
        inner = {d["name"]: d for d in interpreter.get_tensor_details()} if taps else {}

        def call(feeds: Arrays) -> dict[str, np.ndarray]:
            results = {name: self._as_float(name, value) for name, value in call_raw({name: self._as_stored(name, value) for name, value in feeds.items()}).items()}
            for name in taps:
                results[name] = _dequantized(interpreter.get_tensor(inner[name]["index"]), inner[name])
            return results

        return call

    def _as_stored(self, name: str, value: np.ndarray) -> np.ndarray:
        import numpy as np

        if name not in self._scales:
            return np.ascontiguousarray(value)
        scale, zero, dtype = self._scales[name]
        limits = np.iinfo(dtype)
        return np.clip(np.rint(np.asarray(value, np.float32) / np.float32(scale)) + zero, limits.min, limits.max).astype(dtype)

    def _as_float(self, name: str, value: np.ndarray) -> np.ndarray:
        import numpy as np

        if name not in self._scales:
            return np.array(value)  # the runner's own memory is written over by the next call
        scale, zero, _ = self._scales[name]
        return (value.astype(np.float32) - np.float32(zero)) * np.float32(scale)

    def taps(self) -> tuple[str, ...]:
        if self._tool is not None:
            return ()
        interpreter = self._interpreter()
        written = [index for op in interpreter._get_ops_details() for index in op["outputs"]]
        details = {d["index"]: d["name"] for d in interpreter.get_tensor_details()}
        ends = {d["index"] for d in interpreter.get_output_details()}
        return tuple(dict.fromkeys(details[i] for i in written if i in details and i not in ends and details[i]))

    def facts(self) -> dict[str, Any]:
        version = tool_version("ai-edge-litert") if self._tool is None else "2.14.0"
        io = {"io": "int8 inputs and outputs, converted by their scales"} if self._scales else {}
        return {**super().facts(), "runtime": "tflite-runtime" if self._tool else "ai-edge-litert", "version": version, **io}

    def close(self) -> None:
        self._sessions.clear()
        if self._side is not None:
            self._side.close()


def _dequantized(value: np.ndarray, detail: Mapping[str, Any]) -> np.ndarray:
    import numpy as np

    parameters = detail["quantization_parameters"]
    scales, zeros = np.asarray(parameters["scales"], np.float32), np.asarray(parameters["zero_points"], np.float32)
    if not len(scales) or value.dtype.kind == "f":
        return np.array(value)
    shape = [1] * value.ndim
    if len(scales) > 1:
        shape[parameters["quantized_dimension"]] = len(scales)
    return (value.astype(np.float32) - zeros.reshape(shape)) * scales.reshape(shape)


def _require(distribution: str, hint: str) -> None:
    """Refuse where a runtime is not installed, before a traceback does."""
    import importlib.util

    module = {"ai-edge-litert": "ai_edge_litert"}.get(distribution, distribution)
    if importlib.util.find_spec(module) is None:
        raise ToolMissing(f"{distribution} is not installed here", hint)

"""OpenVINO on x86: an IR of the Q/DQ graph, run by the CPU plug-in.

compile reads qdq.onnx and saves it as OpenVINO's own format, model.xml and model.bin, with the int8
weights as they are. Which layers then run on integers is the plug-in's choice on the machine at hand,
so it is read back from the compiled model (`coverage`) and never assumed.

Four traps that this module knows:

- On CPUs with bfloat16 the plug-in computes in bfloat16 unless told otherwise. `open` asks for float32,
  which is what parity is about; `open_deployed` for `device.precision_hint`.
- Without VNNI, products of u8 and s8 are summed in pairs in 16 bits, which saturates. A target with
  `device.max_cpu_isa` is run in a process of its own that may use no newer instructions (isolated.py).
- A convolution of what a Concat along time or space has joined stays in float, whatever its ranges: the plug-in moves the Q/DQ up through the
  Concat and then keeps the zero point between Concat and convolution, in float. Where the convolution pads, a Pad in front of the Q/DQ
  holds it in its place, and the layer runs on integers. Without padding there is no such hold; `coverage` tells.
- An LSTM with Q/DQ on its input and its weights runs on integers with wrong numbers. Nothing here could
  notice: leave LSTM and GRU out of the target's INT8, and compare artifacts with the Q/DQ graph.

An IR is data: no extension library is ever loaded.

Sources: docs.openvino.ai 2026, "Precision Control", "CPU Device", "Quantized models compute and restrictions".
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgekit.backends import EngineKit, Kit
from edgekit.backends.openvino import isolated
from edgekit.errors import EdgekitError, IntegrityError, TargetError, ToolMissing
from edgekit.formats import write_json

if TYPE_CHECKING:
    import numpy as np
    import openvino as ov

    from edgekit.compare import Difference

EXECUTES = True

MODEL = "model.xml"
HINTS = {"f32": "fp32", "bf16": "bf16"}
"""`device.precision_hint`, and what the target's `floats` must say then."""


def versions(target: Mapping[str, Any]) -> dict[str, str | None]:
    try:
        return {"openvino": version("openvino")}
    except PackageNotFoundError:
        return {"openvino": None}


def install_hint(missing: list[str]) -> str:
    return "pip install 'edgekit[openvino]'"


def problems(target: Mapping[str, Any]) -> list[str]:
    found, device = [], target.get("device", {})
    if target["runtime"]["name"] != "OpenVINO":
        found.append(f"runtime {target['runtime']['name']}: this backend is OpenVINO's")
    if target["build_on"] != "host":
        found.append(f"build_on: {target['build_on']}: an IR is written on the host")
    hint, floats = _hint(target), target.get("floats", "fp32")
    if hint not in HINTS:
        found.append(f"device.precision_hint: {hint}: one of {', '.join(HINTS)}")
    elif floats != HINTS[hint]:
        found.append(f"floats: {floats}: with device.precision_hint {hint} what is not on integers runs in {HINTS[hint]}")
    if device.get("max_cpu_isa") is not None and device["max_cpu_isa"] not in isolated.ISAS:
        found.append(f"device.max_cpu_isa: {device['max_cpu_isa']}: one of {', '.join(isolated.ISAS)}")
    if device.get("recurrent_weights", "float32") not in ("float32", "float16"):
        found.append(f"device.recurrent_weights: {device['recurrent_weights']}: float32 or float16")
    for op in ("LSTM", "GRU"):
        if target["ops"].get(op, {}).get("int8"):
            found.append(f"ops.{op}.int8: OpenVINO computes a quantized {op} wrongly; leave it in float")
    attention = target["ops"].get("MatMul.activations", {})
    if attention.get("int8") and not (attention.get("symmetric") or target["numbers"]["activation"]["symmetric"]):
        found.append("ops.MatMul.activations.int8: attention takes symmetric integers only (`symmetric: true`); with a zero point it would run in float")
    return found


def runtime() -> ModuleType:
    """The package openvino, without its telemetry: importing it would report itself to Google Analytics.

    With openvino_telemetry out of reach it falls back to a stub of its own.

    Raises:
        ToolMissing: it is not installed, or cannot be loaded.
    """
    name = "openvino_telemetry"
    hidden = name not in sys.modules
    if hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # makes `import openvino_telemetry` an ImportError
    try:
        import openvino
    except ImportError as error:
        raise ToolMissing(f"openvino cannot be loaded: {error}", install_hint(["openvino"])) from None
    finally:
        if hidden:
            del sys.modules[name]
    return openvino


# --------------------------------------------------------------------------- writing


def compile(kit: Kit, out: Path) -> None:
    """Write engines/<name>/{model.xml, model.bin} and build.json. The same kit gives the same bytes.

    Raises:
        TargetError: another OpenVINO is installed than the target runs, or its reader refuses a graph.
    """
    ov = runtime()
    installed, wanted = version("openvino"), str(kit.target["runtime"]["version"])
    if not f"{installed}.".startswith(f"{wanted}."):
        raise TargetError(f"target `{kit.target['name']}` runs OpenVINO {wanted}, {installed} is installed", f"pip install 'openvino=={wanted}.*'")
    core = ov.Core()
    half = kit.target.get("device", {}).get("recurrent_weights") == "float16"
    for engine in kit.engines:
        folder = out / "engines" / engine.name
        folder.mkdir(parents=True, exist_ok=True)
        model = _read(core, engine)
        _name_ports(model, engine)
        if engine.qdq_onnx != engine.float_onnx:  # a float artifact is to be exact, and plain
            if half:
                _halve_recurrent_weights(model)
            _pad_before_quantizing(model)
        _name_ops(model)
        # OpenVINO's own compression leaves a graph with Q/DQ as it is, and takes more than weights in others.
        ov.save_model(model, folder / MODEL, compress_to_fp16=False)
    write_json(out / "build.json", {"engines": [engine.name for engine in kit.engines], "float16_recurrent_weights": half, "openvino": installed})


def _read(core: ov.Core, engine: EngineKit) -> ov.Model:
    try:
        return core.read_model(engine.qdq_onnx)
    except RuntimeError as error:
        raise TargetError(f"engine `{engine.name}`: OpenVINO cannot read {engine.qdq_onnx.name}: {_first_line(error)}") from error


def _name_ports(model: ov.Model, engine: EngineKit) -> None:
    """Give every input and output its ONNX name and no other, so that a session finds it by the only one."""
    from edgekit import graph

    onnx = graph.load(engine.qdq_onnx)
    for kind, values, find in (("input", onnx.graph.inputs, model.input), ("output", onnx.graph.outputs, model.output)):
        for value in values:
            try:
                find(value.name).get_tensor().set_names({value.name})
            except RuntimeError as error:
                raise EdgekitError(f"engine `{engine.name}`: OpenVINO lost {kind} `{value.name}`: {_first_line(error)}") from error


def _halve_recurrent_weights(model: ov.Model) -> None:
    """Store the weights of LSTM and GRU, which stay in float, as float16: 11 bits of each, where INT8 layers keep 8.

    The plug-in computes with float32: it converts them once, when it compiles.
    """
    import numpy as np

    ov = runtime()
    for op in model.get_ordered_ops():
        if op.get_type_name() not in ("LSTMSequence", "GRUSequence"):
            continue
        ports = op.input_values()[-3:-1]  # W and R; the frontend reorders their gates by ops on the constant
        while ports:
            source = ports.pop().get_node()
            if source.get_type_name() != "Constant":
                ports.extend(source.input_values())
                continue
            if source.get_element_type() != ov.Type.f32 or np.abs(source.get_data()).max() > np.finfo(np.float16).max:
                continue
            readers = source.output(0).get_target_inputs()
            small = ov.opset13.convert(ov.opset13.constant(source.get_data().astype(np.float16)), "f32")
            for reader in readers:
                reader.replace_source_output(small.output(0))


def _pad_before_quantizing(model: ov.Model) -> None:
    """Where a convolution pads a quantized Concat along time or space: pad first, and it runs on integers. Exact, for 0 is one of them."""
    import numpy as np

    ov = runtime()
    for conv in model.get_ordered_ops():
        if conv.get_type_name() not in ("Convolution", "GroupConvolution"):
            continue
        attributes = conv.get_attributes()
        pads = [list(attributes[name]) for name in ("pads_begin", "pads_end")]
        quantize = conv.input_value(0).get_node()
        while quantize.get_type_name() in ("Convert", "Subtract", "Multiply") and len(quantize.output(0).get_target_inputs()) == 1:
            quantize = quantize.input_value(0).get_node()
        if not any(map(any, pads)) or quantize.get_type_name() != "FakeQuantize" or len(quantize.output(0).get_target_inputs()) != 1:
            continue
        joined = quantize.input_value(0)
        if joined.get_node().get_type_name() != "Concat" or joined.get_node().get_attributes()["axis"] in (1, 1 - len(joined.get_partial_shape())):
            continue
        around = [ov.opset13.constant(np.int64([0, 0, *side])) for side in pads]
        padded = ov.opset13.pad(joined, *around, "constant", ov.opset13.constant(np.float32(0)))
        padded.set_friendly_name(f"{conv.get_friendly_name()}/Pad")
        quantize.input(0).replace_source_output(padded.output(0))
        for name, side in zip(("pads_begin", "pads_end"), pads, strict=True):
            conv.set_attribute(name, [0] * len(side))


def _name_ops(model: ov.Model) -> None:
    """Replace names that OpenVINO counted up over the life of this process, so that equal graphs are equal files."""
    for i, op in enumerate(model.get_ordered_ops()):
        kind, _, number = op.get_friendly_name().rpartition("_")
        if kind == op.get_type_name() and number.isdecimal():
            op.set_friendly_name(f"{kind}#{i}")


# --------------------------------------------------------------------------- running


class Session:
    """A compiled IR that can be called: {input: array} -> {output: array}, batch 1 in front."""

    def __init__(self, xml: Path, config: Mapping[str, Any]):
        model, compiled = _compiled(xml, config)
        # The IR's names: a compiled port may have those of tensors that were joined to it too, and `any_name` is then the first in the alphabet.
        self.inputs = [port.any_name for port in model.inputs]
        self.outputs = [port.any_name for port in model.outputs]
        self._request = compiled.create_infer_request()

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        import numpy as np

        if set(feeds) != set(self.inputs):
            raise EdgekitError(f"inputs are {sorted(self.inputs)}, given: {sorted(feeds)}")
        results = self._request.infer({name: np.ascontiguousarray(array) for name, array in feeds.items()})
        return {name: np.array(array) for name, array in zip(self.outputs, results.values(), strict=True)}


def open(folder: Path, target: Mapping[str, Any], threads: int | None = None) -> Session | isolated.Session:
    """A session that computes everything that is not on integers in float32: for parity with the Q/DQ graph.

    Args:
        folder: of one engine, as `compile` wrote it.
        threads: of all ops; all cores if None.
    """
    return _open(folder, target, "f32", threads)


def open_deployed(folder: Path, target: Mapping[str, Any], threads: int | None = None) -> Session | isolated.Session:
    """A session as it is deployed: with `device.precision_hint`, float32 if the target names none."""
    return _open(folder, target, _hint(target), threads)


def _open(folder: Path, target: Mapping[str, Any], hint: str, threads: int | None) -> Session | isolated.Session:
    isa = target.get("device", {}).get("max_cpu_isa")
    xml, config = folder / MODEL, configuration(hint, threads)
    return Session(xml, config) if isa is None else isolated.Session(isa, xml, config)


def _hint(target: Mapping[str, Any]) -> str:
    return target.get("device", {}).get("precision_hint", "f32")


def configuration(hint: str, threads: int | None = None) -> dict[str, Any]:
    """The CPU plug-in's properties of a session."""
    config: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_PRECISION_HINT": hint,
        # Pinned to a core, the calling thread would drag the thread pools of torch and ONNX Runtime onto it: 100 times slower.
        "ENABLE_CPU_PINNING": False,
        # Never quantize what the Q/DQ graph left in float.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    }
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = str(threads)
    return config


def _compiled(xml: Path, config: Mapping[str, Any]) -> tuple[ov.Model, ov.CompiledModel]:
    """The IR and what the plug-in makes of it; their ports are in the same order."""
    core = runtime().Core()
    try:
        model = core.read_model(xml)
        return model, core.compile_model(model, "CPU", dict(config))
    except RuntimeError as error:
        raise IntegrityError(f"{xml}: OpenVINO cannot compile it: {_first_line(error)}", "build it again with the OpenVINO of the target") from error


def _first_line(error: Exception) -> str:
    """The part of an OpenVINO error that says what is wrong; the lines around it name source files of its own."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith(("Exception from", "Check "))]
    return lines[0] if lines else str(error).strip()


# --------------------------------------------------------------------------- measuring


def coverage(folder: Path, engine: EngineKit, target: Mapping[str, Any]) -> dict[str, str]:
    """The precision that every MAC node of float.onnx has in the compiled model, as it is deployed on this CPU.

    Raises:
        EdgekitError: a node is not found in the compiled model.
    """
    from edgekit import graph

    tensors = {node.name: node.outputs[0].name for node in graph.load(engine.float_onnx).graph if node.op_type in graph.MAC_OPS}
    isa = target.get("device", {}).get("max_cpu_isa")
    xml, config = folder / MODEL, configuration(_hint(target))
    if isa is not None:
        return isolated.precisions(isa, xml, config, tensors)
    from edgekit.backends.openvino.layers import precisions

    return precisions(xml, config, tensors)


def saturation(folder: Path, runs: list[Mapping[str, np.ndarray]], isa: str = "AVX512_CORE") -> dict[str, Difference]:
    """How far a CPU with no newer instructions than `isa` is off, against this CPU, over all `runs`.

    AVX512_CORE is without VNNI. Equal up to rounding means that no sum of two products passed 16 bits on these inputs.

    Args:
        runs: inputs of the engine, one dict a run.
    """
    import numpy as np

    from edgekit.compare import compare

    config = configuration("f32")
    here, there = Session(folder / MODEL, config), isolated.Session(isa, folder / MODEL, config)
    want, got = ([session(feeds) for feeds in runs] for session in (here, there))
    stacked = ({name: np.stack([run[name] for run in side]) for name in here.outputs} for side in (want, got))
    return compare(*stacked, f"{folder.name} on {isa}")

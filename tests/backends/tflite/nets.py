"""Small ONNX graphs, their Q/DQ form in TFLite's numbers, and both run as a .tflite file."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from edgekit import graph
from edgekit.backends import onnxruntime
from edgekit.backends.tflite.lower import Lowered, lower
from edgekit.qdq import insert_qdq, joined, passed_on, precisions
from edgekit.quant import Histogram, Numbers

NUMBERS = Numbers(dtype="int8", symmetric=False, outputs=True)
FORCED = {"scale": 1 / 256, "zero_point": -128}
INT8 = {
    **{op: {"int8": True} for op in ("Conv", "ConvTranspose", "Gemm", "MatMul", "MatMul.activations", "Relu", "Clip", "LeakyRelu", "PRelu", "Add", "Mul", "Sub")},
    **{op: {"int8": True} for op in ("AveragePool", "GlobalAveragePool", "ReduceMean", "Gelu", "HardSwish", "Concat")},
    "Sigmoid": {"int8": True, "int8_output": FORCED},
    "Softmax": {"int8": True, "int8_output": FORCED},
    "Tanh": {"int8": True, "int8_output": {"scale": 1 / 128, "zero_point": 0}},
}


def net(nodes, inputs: dict[str, tuple], outputs: dict[str, tuple], weights: dict[str, np.ndarray] | None = None, known: dict[str, tuple] | None = None) -> ir.Model:
    """A tidy model of (op, inputs, output or outputs, attributes) tuples; `known`: shapes behind ops that ONNX does not know."""
    made = []
    for i, (op, ins, out, *attributes) in enumerate(nodes):
        domain = "com.microsoft" if op == "Gelu" else ""
        made.append(onnx.helper.make_node(op, ins.split(), out.split(), f"{op}{i}", domain=domain, **(attributes[0] if attributes else {})))
    info = onnx.helper.make_tensor_value_info
    proto = onnx.helper.make_graph(
        made,
        "g",
        [info(name, 1, shape) for name, shape in inputs.items()],
        [info(name, 1, shape) for name, shape in outputs.items()],
        [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in (weights or {}).items()],
        value_info=[info(name, 1, shape) for name, shape in (known or {}).items()],
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = ir.from_proto(onnx.helper.make_model(proto, opset_imports=opsets, ir_version=8))
    graph.tidy(model)
    return model


def onnx_run(model: ir.Model, fed: dict[str, np.ndarray], also=()) -> dict[str, np.ndarray]:
    proto = ir.to_proto(model)
    for name in also:
        if name not in {o.name for o in proto.graph.output}:
            proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    return onnxruntime.Session(proto.SerializeToString(), threads=1)(fed)


def random_feeds(model: ir.Model, seed: int = 0, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {v.name: (scale * rng.standard_normal(graph.shape_of(v))).astype(np.float32) for v in model.graph.inputs}


def quantized(model: ir.Model, runs: int = 3, ops=INT8) -> ir.Model:
    """The Q/DQ form, with ranges observed on random inputs."""
    chosen = precisions(model, ops, outputs=True)
    inputs = [v.name for v in model.graph.inputs]
    ranges: dict[str, Histogram] = {name: Histogram() for name in chosen.observed}
    for seed in range(runs):
        fed = random_feeds(model, seed)
        values = onnx_run(model, fed, also=[name for name in ranges if name not in inputs])
        for name, histogram in ranges.items():
            histogram.update({**values, **fed}[name])
    observed = {name: h.minmax() for name, h in ranges.items()}
    observed |= joined(chosen, observed)
    observed |= {name: observed[written] for name, written in passed_on(model, chosen).items()}
    return insert_qdq(model, chosen, observed, NUMBERS)


def tflite_run(lowered: Lowered, fed: dict[str, np.ndarray], xnnpack: bool = False) -> dict[str, np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kind = OpResolverType.AUTO if xnnpack else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_content=lowered.model.serialize(), num_threads=1, experimental_op_resolver_type=kind)
    return interpreter.get_signature_runner("serving_default")(**fed)


def ops_of(lowered: Lowered) -> list[str]:
    return [op.name for op in lowered.model.subgraphs[0].ops]


def types_of(lowered: Lowered) -> list[tuple[str, str]]:
    """(op, type of its first output)."""
    sub = lowered.model.subgraphs[0]
    return [(op.name, sub.tensors[op.outputs[0]].dtype) for op in sub.ops]


def check_float(model: ir.Model, seed: int = 0, atol: float = 1e-5, scale: float = 1.0) -> Lowered:
    """Lower a float model and compare it with ONNX Runtime, with and without XNNPACK."""
    fed = random_feeds(model, seed, scale)
    want, lowered = onnx_run(model, fed), lower(model.graph)
    for xnnpack in (False, True):
        got = tflite_run(lowered, fed, xnnpack)
        assert set(got) == set(want)
        for name in want:
            assert got[name].shape == want[name].shape
            np.testing.assert_allclose(got[name], want[name], rtol=0, atol=atol * max(1.0, np.abs(want[name]).max()))
    return lowered


def sqnr_db(want: np.ndarray, got: np.ndarray) -> float:
    noise = float(((want - got).astype(np.float64) ** 2).sum())
    return 10 * np.log10(float((want.astype(np.float64) ** 2).sum()) / max(noise, 1e-30))


def check_int8(model: ir.Model, steps: float = 1.0, ops=INT8) -> Lowered:
    """Lower the Q/DQ form: within `steps` of the simulation, where a step is the scale of an output (the float error is larger)."""
    qdq = quantized(model, ops=ops)
    lowered = lower(qdq.graph)
    fed = random_feeds(model, 1)
    simulated = onnx_run(qdq, fed)
    for xnnpack in (False, True):
        got = tflite_run(lowered, fed, xnnpack)
        for name in simulated:
            scale = output_scale(qdq, name)
            worst = np.abs(got[name] - simulated[name]).max()
            assert worst <= steps * scale * 1.001, f"{name}: {worst / scale:.2f} steps (xnnpack={xnnpack})"
    return lowered


def output_scale(qdq: ir.Model, name: str) -> float:
    """The step of a graph output that a DequantizeLinear writes, perhaps through ops that only move values."""
    value = next(v for v in qdq.graph.outputs if v.name == name)
    while value.producer().op_type != "DequantizeLinear":
        value = value.producer().inputs[0]
    return float(graph.constant(value.producer().inputs[1]))

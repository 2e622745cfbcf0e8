"""Small models of every kind, for comparing: a net of two layers, and the toy's step with its state."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

F = TensorProto.FLOAT


def save_net(path: Path, seed: int = 0, scale: float = 1.0, outputs: Sequence[str] = ("y", "z"), batch: int | str = 1) -> Path:
    """x [batch, 6] → y [batch, 4] = relu(x W + b), z [batch, 3] = y V; `scale` multiplies V."""
    rng = np.random.default_rng(seed)
    w, b, v = (rng.standard_normal(shape).astype(np.float32) for shape in ((6, 4), (4,), (4, 3)))
    y, z = outputs
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"], name="first/MatMul"),
        helper.make_node("Add", ["xw", "b"], ["xwb"], name="first/Add"),
        helper.make_node("Relu", ["xwb"], [y], name="first/Relu"),
        helper.make_node("MatMul", [y, "v"], [z], name="second/MatMul"),
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in (("w", w), ("b", b), ("v", np.float32(scale) * v))]
    ports = [helper.make_tensor_value_info("x", F, [batch, 6])], [helper.make_tensor_value_info(y, F, [batch, 4]), helper.make_tensor_value_info(z, F, [batch, 3])]
    return save_graph(path, nodes, *ports, initializers)


def save_graph(path: Path, nodes, inputs, outputs, initializers=()) -> Path:
    model = helper.make_model(helper.make_graph(nodes, "net", inputs, outputs, list(initializers)), opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


@functools.cache
def tiny_module():
    """The toy, with weights large enough for its state to matter."""
    import torch

    from edgekit.models import tiny

    torch.manual_seed(6)
    module = tiny.build(tiny.Config()).eval()
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(3)
    return module


def save_step(path: Path) -> Path:
    """The toy's step as ONNX: clip, h_in, c_in → y, h_out, c_out."""
    from edgekit import graph
    from edgekit.models import tiny

    graph.export_onnx(next(e for e in tiny.engines(tiny_module(), tiny.Config()) if e.name == "step"), path)
    return path


def save_int8_step(path: Path, loses: str | None = None) -> Path:
    """The step with the LSTM's weights and h in INT8; `loses` is `h_in` or `c_in`, which the LSTM then takes to be zero."""
    model = onnx.load(str(save_step(path)))
    graph = model.graph
    lstm = next(node for node in graph.node if node.op_type == "LSTM")
    weights = {init.name: init for init in graph.initializer}
    added = []
    for i in (1, 2):
        w = numpy_helper.to_array(weights[lstm.input[i]])
        scale = np.float32(np.abs(w).max() / 127)
        name = f"q{i}"
        graph.initializer.extend([numpy_helper.from_array(np.clip(np.rint(w / scale), -127, 127).astype(np.int8), name), numpy_helper.from_array(scale, f"{name}_scale"), numpy_helper.from_array(np.int8(0), f"{name}_zero")])
        added.append(helper.make_node("DequantizeLinear", [name, f"{name}_scale", f"{name}_zero"], [f"{name}_dq"], name=f"{name}/DQ"))
        lstm.input[i] = f"{name}_dq"
    graph.initializer.extend([numpy_helper.from_array(np.float32(1 / 127), "h_scale"), numpy_helper.from_array(np.int8(0), "h_zero")])
    added += [helper.make_node("QuantizeLinear", [lstm.input[5], "h_scale", "h_zero"], ["h_q"], name="h/Q"), helper.make_node("DequantizeLinear", ["h_q", "h_scale", "h_zero"], ["h_dq"], name="h/DQ")]
    source = lstm.input[5]
    lstm.input[5] = "h_dq"
    if loses is not None:
        graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1, 16), np.float32), "nothing"))
        lstm.input[{"h_in": 5, "c_in": 6}[loses]] = "nothing"
        if loses == "h_in":
            added = added[:-2]
    at = next(i for i, node in enumerate(graph.node) if node is lstm or node.name == lstm.name)
    assert source
    for node in reversed(added):
        graph.node.insert(at, node)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def save_whole_lstm(path: Path, chunk: int | str, hidden: int = 5, features: int = 3) -> Path:
    """x [1, chunk, features], h_in, c_in → y [1, chunk, hidden], h_out, c_out: an LSTM over a chunk of any length, batch first."""
    rng = np.random.default_rng(3)
    arrays = {"W": rng.standard_normal((1, 4 * hidden, features)), "R": rng.standard_normal((1, 4 * hidden, hidden)), "B": rng.standard_normal((1, 8 * hidden))}
    nodes = [
        helper.make_node("Transpose", ["x"], ["xt"], name="in/Transpose", perm=[1, 0, 2]),
        helper.make_node("LSTM", ["xt", "W", "R", "B", "", "h_in", "c_in"], ["yt", "h_out", "c_out"], name="lstm/LSTM", hidden_size=hidden),
        helper.make_node("Squeeze", ["yt", "one"], ["ys"], name="out/Squeeze"),
        helper.make_node("Transpose", ["ys"], ["y"], name="out/Transpose", perm=[1, 0, 2]),
    ]
    state = [1, 1, hidden]
    inputs = [helper.make_tensor_value_info(name, F, shape) for name, shape in (("x", [1, chunk, features]), ("h_in", state), ("c_in", state))]
    outputs = [helper.make_tensor_value_info(name, F, shape) for name, shape in (("y", [1, chunk, hidden]), ("h_out", state), ("c_out", state))]
    initializers = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()] + [numpy_helper.from_array(np.array([1], np.int64), "one")]
    return save_graph(path, nodes, inputs, outputs, initializers)

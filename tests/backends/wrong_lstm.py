"""A Q/DQ graph that OpenVINO computes wrongly, without a word: what a self-check after every build is for.

Q/DQ on the input and on both weights of an LSTM makes the CPU plug-in run the whole sequence on uint8,
hidden state too, with the scale of the input. edgekit never writes such a graph; other tools do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgekit import graph
from edgekit.backends import EngineKit, onnxruntime
from edgekit.quant import Numbers, Range, quantize, quantize_weight, scale_of, weight_scales
from tests.onnx_nets import Lambda, export


def write(folder: Path, steps: int = 20) -> tuple[EngineKit, dict[str, np.ndarray]]:
    """(an engine whose qdq.onnx has a quantized LSTM, an input that its ranges are made for).

    Input x0 [1, steps, 16], output y0 [1, steps, 8].
    """
    import onnx_ir as ir

    torch.manual_seed(0)
    module = Lambda(lambda m, x: m.head(m.rnn(x)[0]), rnn=nn.LSTM(16, 32, 2, batch_first=True), head=nn.Linear(32, 8))
    with torch.no_grad():
        for weight in module.rnn.parameters():
            weight.mul_(3)  # torch's initial weights hardly move the gates
    path = export(folder, module, (1, steps, 16), name="float")
    feeds = {"x0": np.random.default_rng(0).standard_normal((1, steps, 16)).astype(np.float32)}

    model = graph.load(path)
    layers = [node for node in model.graph if node.op_type == "LSTM"]
    read = [node.inputs[0].name for node in layers]
    seen = {**feeds, **onnxruntime.simulate(path, threads=1, also=[name for name in read if name not in feeds])(feeds)}
    edit = graph.Editor(model)
    for node, name in zip(layers, read, strict=True):
        scale = scale_of(Range(float(seen[name].min()), float(seen[name].max())), Numbers())
        s, z = edit.constant("scale", np.float32(scale.scale)), edit.constant("zero", quantize(np.float32(0), scale))
        shape = graph.shape_of(node.inputs[0])
        q = edit.add(node, "QuantizeLinear", [node.inputs[0], s, z], shape, dtype=ir.DataType.INT8)
        node.replace_input_with(0, edit.add(node, "DequantizeLinear", [q, s, z], shape, dtype=ir.DataType.FLOAT))
        for i in (1, 2):
            weight = graph.constant(node.inputs[i])
            scales = weight_scales(weight, Numbers(), axis=1)
            arrays = (quantize_weight(weight, scales, axis=1), scales, np.zeros(scales.shape, np.int8))
            integers = [edit.constant(f"{node.name}.{i}", array) for array in arrays]
            node.replace_input_with(i, edit.add(node, "DequantizeLinear", integers, weight.shape, {"axis": 1}, dtype=ir.DataType.FLOAT))
    graph.save(model, folder / "qdq.onnx")
    return EngineKit("main", path, folder / "qdq.onnx", int8=tuple(node.name for node in layers)), feeds

"""A small net with every kind of layer that the forms treat differently, quantized by a target's own table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgekit import graph, qdq, rewrites
from edgekit.backends import onnxruntime
from edgekit.quant import Numbers, Range
from edgekit.target import load_target
from tests.onnx_nets import Lambda, export, feeds

ROOT = Path(__file__).parents[3]


def make(tmp_path: Path, target: str = "jetson_xavier") -> tuple:
    """(Q/DQ model, precisions, fp32 layers of rewrites, feeds) of Conv, ReLU, LayerNorm, LSTM, Softmax and Linear."""

    def forward(m, x):
        x = torch.relu(m.stem(x))
        x = (m.body(x) + x).flatten(2).transpose(1, 2)  # [1, 16, 8]
        x = m.norm(m.lstm(x)[0])
        scores = torch.softmax(x @ x.transpose(1, 2), -1)
        return m.out(scores @ x)

    torch.manual_seed(1)
    net = Lambda(forward, stem=nn.Conv2d(3, 8, 3, 2, 1), body=nn.Conv2d(8, 8, 3, 1, 1), lstm=nn.LSTM(8, 8, batch_first=True), norm=nn.LayerNorm(8), out=nn.Linear(8, 4))
    return quantized(graph.load(export(tmp_path, net, (1, 3, 8, 8))), tmp_path, target)


def quantized(model, tmp_path: Path, target: str = "jetson_xavier") -> tuple:
    spec = load_target(target, ROOT).spec()
    fp32 = [node for name in spec["rewrites"] for change in rewrites.apply(model, name) for node in change.fp32]
    chosen = qdq.precisions(model, spec["ops"])
    path = tmp_path / "float.onnx"
    graph.save(model, path)
    fed = feeds(model)
    seen = {**fed, **onnxruntime.simulate(path, threads=1, also=chosen.observed)(fed)}
    ranges = {name: Range(float(np.min(seen[name])), float(np.max(seen[name]))) for name in chosen.observed}
    return qdq.insert_qdq(model, chosen, ranges, Numbers.from_target(spec["numbers"])), chosen, fp32, fed

"""Small torch nets for graph tests, and the few lines that export and run them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from edgekit import graph
from edgekit.backends import onnxruntime
from edgekit.formats import Engine


class Lambda(nn.Module):
    """A module of its parts and a function of (module, *inputs) -> output or tuple."""

    def __init__(self, function, **parts: nn.Module):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *inputs):
        out = self.function(self, *inputs)
        return out if isinstance(out, tuple) else (out,)


def export(tmp_path: Path, module: nn.Module, *shapes: tuple[int, ...], name: str = "main") -> Path:
    """Export a module whose inputs are x0, x1.. and outputs y0, y1.., in eval mode."""
    module = module.eval()
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = module(*[torch.zeros(shape) for shape in shapes])
    engine = Engine(
        name,
        module,
        {f"x{i}": shape for i, shape in enumerate(shapes)},
        {f"y{i}": tuple(out.shape) for i, out in enumerate(outputs)},
    )
    path = tmp_path / f"{name}.onnx"
    graph.export_onnx(engine, path)
    return path


def feeds(model, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {v.name: rng.standard_normal(graph.shape_of(v)).astype(np.float32) for v in model.graph.inputs}


def run(path: Path, fed: dict[str, np.ndarray], also=()) -> dict[str, np.ndarray]:
    return onnxruntime.simulate(path, threads=1, also=also)(fed)


def op_counts(model) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in model.graph:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


class Stem(nn.Module):
    """HuBERT-like: Conv1d without bias, GroupNorm on the first, GELU, then LayerNorm and a Linear."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv1d(1, 8, 10, 5, bias=False), nn.Conv1d(8, 8, 3, 2, bias=False), nn.Conv1d(8, 8, 2, 2, bias=False)])
        self.norm = nn.GroupNorm(8, 8)
        self.layer_norm = nn.LayerNorm(8)
        self.proj = nn.Linear(8, 12)
        self.pos = nn.utils.parametrizations.weight_norm(nn.Conv1d(12, 12, 4, padding=2, groups=3), dim=2)

    def forward(self, wave):
        x = wave[:, None]
        for i, conv in enumerate(self.convs):
            x = conv(x)
            x = F.gelu(self.norm(x) if i == 0 else x)
        x = self.proj(self.layer_norm(x.transpose(1, 2)))
        return (x + F.gelu(self.pos(x.transpose(1, 2))[:, :, :-1]).transpose(1, 2),)


class Block(nn.Module):
    """A post-norm transformer block."""

    def __init__(self, d: int = 12, heads: int = 3):
        super().__init__()
        self.heads = heads
        self.qkv = nn.ModuleList([nn.Linear(d, d) for _ in range(3)])
        self.out, self.up, self.down = nn.Linear(d, d), nn.Linear(d, 2 * d), nn.Linear(2 * d, d)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, x):
        n, t, d = x.shape
        q, k, v = (m(x).view(n, t, self.heads, -1).transpose(1, 2) for m in self.qkv)
        a = torch.softmax(q @ k.transpose(-1, -2) / (d // self.heads) ** 0.5, -1) @ v
        x = self.norm1(x + self.out(a.transpose(1, 2).reshape(n, t, d)))
        return (self.norm2(x + self.down(F.gelu(self.up(x)))),)


class Inverted3d(nn.Module):
    """Two MobileNetV2 blocks in 3-D, the second with a residual."""

    def __init__(self):
        super().__init__()

        def block(i, o, s):
            h = 2 * i
            return nn.Sequential(
                nn.Conv3d(i, h, 1, bias=False), nn.BatchNorm3d(h), nn.ReLU6(),
                nn.Conv3d(h, h, 3, s, 1, groups=h, bias=False), nn.BatchNorm3d(h), nn.ReLU6(),
                nn.Conv3d(h, o, 1, bias=False), nn.BatchNorm3d(o),
            )  # fmt: skip

        self.stem = nn.Sequential(nn.Conv3d(3, 8, 3, (1, 2, 2), 1, bias=False), nn.BatchNorm3d(8), nn.ReLU6())
        self.a, self.b = block(8, 8, 2), block(8, 8, 1)
        for m in self.modules():
            if isinstance(m, nn.BatchNorm3d):
                nn.init.normal_(m.running_mean)
                nn.init.uniform_(m.running_var, 0.5, 2)

    def forward(self, x):
        x = self.a(self.stem(x))
        return ((x + self.b(x)).mean((2, 3, 4)),)

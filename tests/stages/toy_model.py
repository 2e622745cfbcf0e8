"""A toy model for calibrate, quantize and export: a Conv1d stem and a gated cell whose state feeds a Linear."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from edgekit.datasets import Clip
from edgekit.formats import Engine, State
from edgekit.stages import Job
from edgekit.target import load_target

TARGET = load_target("jetson_xavier", Path(__file__).parents[2]).spec()
HIDDEN, FRAMES, SAMPLES = 8, 9, 400
STATE = State("h_in", "h_out", (1, HIDDEN), 0.5)


@dataclass(frozen=True)
class Config:
    hidden: int = HIDDEN

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, fields) -> Config:
        return cls(**fields)


CONFIGS = {"tiny": Config()}


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.c0, self.c1, self.c2 = nn.Conv1d(1, 8, 10, 5, bias=False), nn.Conv1d(8, 8, 3, 2, groups=2), nn.Conv1d(8, 8, 6, 4)
        self.norm, self.layer_norm = nn.GroupNorm(8, 8), nn.LayerNorm(8)
        self.x, self.h, self.out = nn.Linear(8, 2 * HIDDEN), nn.Linear(HIDDEN, 2 * HIDDEN, bias=False), nn.Linear(HIDDEN, 1)


class Encoder(nn.Module):
    def __init__(self, toy: Toy):
        super().__init__()
        self.toy = toy

    def forward(self, wave):
        m = self.toy
        x = F.gelu(m.norm(m.c0(wave[:, None])))
        x = m.c2(F.relu(m.c1(x))).transpose(1, 2)
        return (m.layer_norm(x),)


class Cell(nn.Module):
    def __init__(self, toy: Toy):
        super().__init__()
        self.toy = toy

    def forward(self, x, h):
        z, g = (self.toy.x(x) + self.toy.h(h)).chunk(2, 1)
        h = torch.sigmoid(z) * h + 2 * torch.tanh(g)
        return self.toy.out(h)[:, 0], h


def build(cfg: Config) -> Toy:
    torch.manual_seed(0)
    return Toy()


def fold(module: Toy) -> Toy:
    return module


def engines(module: Toy, cfg: Config) -> list[Engine]:
    state = STATE.shape
    return [
        Engine("encoder", Encoder(module), {"wave": (1, SAMPLES)}, {"features": (1, FRAMES, 8)}),
        Engine("cell", Cell(module), {"x": (1, 8), "h_in": state}, {"y": (1,), "h_out": state}, (STATE,)),
    ]


def flow(cfg: Config) -> dict:
    return {
        "inputs": {"wave": {"shape": [SAMPLES], "dtype": "float32"}},
        "steps": [
            {"engine": "encoder", "feed": {"wave": "wave"}, "give": {"features": "features"}},
            {"engine": "cell", "each": {"x": "features"}, "runs": FRAMES, "stack": {"y": "o"}},
        ],
        "outputs": ["o"],
        "primary": "o",
        "states": {"cell": [STATE.to_json()]},
    }


def io_spec(cfg: Config) -> dict:
    return {"inputs": {}, "outputs": {}}


def preprocess_spec(cfg: Config) -> dict:
    return {
        "audio": {
            "sample_rate_hz": 16000, "samples": SAMPLES, "scale": 32768.0, "normalize": "zero_mean_unit_variance",
            "eps": 1e-7, "pad": "right_zero_after_normalize",
        }
    }  # fmt: skip


class Noise:
    """A data set of noise."""

    name, source, metrics = "noise", Path("calibration/noise.yaml"), ()

    def __init__(self, n: int):
        self.ids = [f"clip-{i:04d}" for i in range(n)]

    def clip(self, id: str) -> Clip:
        rng = np.random.default_rng(int(id[-4:]))
        audio = (rng.standard_normal(SAMPLES) * 3000).astype(np.int16)
        return Clip(id, np.zeros((1, 2, 2, 3), np.uint8), 25.0, audio, 16000, {"o": 0.0})

    def digest(self) -> str:
        return hashlib.sha256(str(len(self.ids)).encode()).hexdigest()


def prune_dir(root: Path) -> Path:
    """What prune leaves: the toy's float model."""
    from edgekit import models
    from edgekit.float_model import save_float_model

    models.MODELS["toy"] = __name__
    (root / "prune").mkdir(parents=True)
    save_float_model(root / "prune", build(Config()).eval(), "toy", Config(), "tiny", {}, pruned=False)
    return root / "prune"


def run(stage, root: Path, spec: dict, needs: tuple[str, ...], files: dict | None = None) -> Path:
    """Run a stage module on directories root/<need>; returns its output directory."""
    name = stage.__name__.rsplit(".", 1)[1]
    out, scratch = root / name, root / f"{name}-scratch"
    out.mkdir()
    scratch.mkdir()
    stage.run(Job(spec, {need: root / need for need in needs}, files or {}, out, scratch, root / ".edgekit"))
    return out


def link_stages(made: Path, root: Path, needs: tuple[str, ...]) -> Path:
    """`root` with the output directories that stages left in `made`, for another run of a stage after them."""
    for need in needs:
        (root / need).symlink_to(made / need)
    return root


def quantize_spec(**changes) -> dict:
    int8 = {op: rule for op, rule in TARGET["ops"].items() if rule.get("int8") or "." in op}
    return {"observer": "percentile", "skip": [], "numbers": TARGET["numbers"], "rewrites": TARGET["rewrites"], "int8": int8, **changes}

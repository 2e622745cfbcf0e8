"""A toy with state: one video clip in, an LSTM step, valence out. It shows every seam that a streaming model needs.

Its step engine carries `h` and `c` from clip to clip, so calibration, the Q/DQ graph and the flow
have to keep them; a build that loses the state between steps fails its parity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from ..formats import Engine, State
from . import mhlt

OUTPUTS = ("o", "a", "v")


@dataclass(frozen=True)
class Config:
    clips: int = 4
    frames: int = 2
    height: int = 16
    width: int = 16
    channels: int = 8
    hidden: int = 16

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping) -> Config:
        return cls(**fields)


CONFIGS = {"default": Config(), "tiny": Config()}
OPTIONAL_KEYS: tuple[str, ...] = ()


class Tiny(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.conv = nn.Conv3d(3, cfg.channels, 3, stride=(1, 2, 2), padding=1)
        self.lstm = nn.LSTM(cfg.channels, cfg.hidden, batch_first=True)
        self.fc = nn.Linear(cfg.hidden, len(OUTPUTS))

    def step(self, clip: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One clip [n, 3, t, h, w] and the state [1, n, hidden] → (hidden [n, hidden], h, c)."""
        features = torch.relu(self.conv(clip)).mean((2, 3, 4))
        out, (h, c) = self.lstm(features.unsqueeze(1), (h, c))
        return out.squeeze(1), h, c

    def forward(self, video: Tensor) -> Tensor:
        """[n, k, 3, t, h, w] → [n, 3]: o, a, v, from the mean over clips."""
        h = c = video.new_zeros(1, len(video), self.lstm.hidden_size)
        steps = []
        for clip in video.unbind(1):
            y, h, c = self.step(clip, h, c)
            steps.append(y)
        return self.fc(torch.stack(steps, 1).mean(1))


def build(cfg: Config) -> Tiny:
    return Tiny(cfg)


def fold(module: Tiny) -> Tiny:
    return module


def for_training(module: Tiny) -> Tiny:
    return module


def towers(module: Tiny) -> dict:
    return {}


def normalize_keys(state: Mapping[str, Tensor], cfg: Config) -> dict[str, Tensor]:
    return dict(state)


class Step(nn.Module):
    def __init__(self, model: Tiny):
        super().__init__()
        self.conv, self.lstm = model.conv, model.lstm

    def forward(self, clip: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return Tiny.step(self, clip, h, c)


class Head(nn.Module):
    def __init__(self, model: Tiny):
        super().__init__()
        self.fc = model.fc

    def forward(self, steps: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.fc(steps.mean(1)).unbind(1))


def engines(module: Tiny, cfg: Config) -> list[Engine]:
    hidden = module.lstm.hidden_size
    state = (1, 1, hidden)
    clip = (1, 3, cfg.frames, cfg.height, cfg.width)
    return [
        Engine(
            "step", Step(module), {"clip": clip, "h_in": state, "c_in": state}, {"y": (1, hidden), "h_out": state, "c_out": state},
            (State("h_in", "h_out", state), State("c_in", "c_out", state)),
        ),
        Engine("head", Head(module), {"steps": (1, cfg.clips, hidden)}, {k: (1,) for k in OUTPUTS}),
    ]  # fmt: skip


def flow(cfg: Config) -> dict:
    return {
        "inputs": {"video": {"shape": [cfg.clips, 3, cfg.frames, cfg.height, cfg.width], "dtype": "float32"}},
        "steps": [
            {"engine": "step", "each": {"clip": "video"}, "stack": {"y": "steps"}},
            {"engine": "head", "feed": {"steps": "steps"}, "give": {k: k for k in OUTPUTS}},
        ],
        "outputs": list(OUTPUTS),
        "primary": "o",
        "rates_hz": {},
        "host_steps": [{"step": "preprocess", "spec": "preprocess.json"}],
    }


def io_spec(cfg: Config) -> dict:
    spec = mhlt.io_spec(mhlt.CONFIGS["tiny"])
    return {"inputs": {"video": spec["inputs"]["video"]}, "outputs": spec["outputs"]}


def preprocess_spec(cfg: Config) -> dict:
    video = mhlt.preprocess_spec(mhlt.CONFIGS["tiny"])["video"]
    sizes = {"clips": cfg.clips, "frames_per_clip": cfg.frames, "height": cfg.height, "width": cfg.width}
    return {"video": {**video, **sizes, "std": [58.0, 58.0, 58.0]}}


def train_forward(module: Tiny, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return dict(zip(OUTPUTS, module(batch["video"]).unbind(1), strict=True))


def prune_groups(module: Tiny, cfg: Config) -> list:
    return []

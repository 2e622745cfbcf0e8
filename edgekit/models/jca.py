"""JCA: joint cross-attention on the features that AVER uses, the baseline it was made from.

Same backbones, same keys, same inputs and outputs as `aver`; the fusion has no temporal attention blocks and one
co-attention layer: audio-guided attention → joint cross-attention → BiLSTM → two regressors.
Source: Praveen et al. 2023, IEEE T-BIOM; github.com/praveena2j/Joint-Cross-Attention-for-Audio-Visual-Fusion.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from . import aver
from .aver import AVER, OPTIONAL_KEYS, Config, augment, encode, engines, flow, fold, for_training, io_spec, loss, preprocess_spec, towers, train_forward
from .blocks.joint_attention import AudioGuidedAttention, CoAttention, RecurrentFeature, regressor, xavier
from .groups import Group, Slice
from .joint_groups import fusion_groups, guided_group

__all__ = [
    "CONFIGS", "OPTIONAL_KEYS", "UNPRUNABLE", "Config", "augment", "build", "encode", "engines", "flow", "fold", "for_training", "io_spec", "loss", "normalize_keys",
    "preprocess_spec", "prune_groups", "towers", "train_forward",
]  # fmt: skip

CONFIGS = {name: aver.CONFIGS[name] for name in ("default", "release", "small", "tiny")}


class Fusion(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        c, p = cfg.channels, cfg.dropout
        self.coattn = CoAttention(c, cfg.steps, 1, 0.6 * p)
        self.avga = AudioGuidedAttention(c, cfg.positions)
        self.Joint = RecurrentFeature(2 * c, c, 0.0)
        self.vregressor = regressor(c, cfg.hidden, 1, 0.6 * p)
        self.aregressor = regressor(c, cfg.hidden, 1, 0.6 * p)
        xavier(self)

    def forward(self, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """video [n, l, positions*c], audio [n, l, c] → valence, arousal [n, l]."""
        joint = self.Joint(torch.cat(self.coattn(self.avga(video, audio), audio), -1))
        return self.vregressor(joint).squeeze(-1), self.aregressor(joint).squeeze(-1)


def build(cfg: Config) -> AVER:
    return AVER(cfg, Fusion(cfg))


def normalize_keys(state: Mapping[str, Tensor], cfg: Config) -> dict[str, Tensor]:
    """As AVER's; the public code calls the audio-guided attention `video_attn`.

    Raises:
        CheckpointError: see `aver.normalize_keys`.
    """
    return aver.normalize_keys({_guided(key): value for key, value in state.items()}, cfg)


def _guided(key: str) -> str:
    bare = key.removeprefix("module.").removeprefix("fusion.")
    return "avga." + bare.removeprefix("video_attn.") if bare.startswith("video_attn.") else key


# What prune refuses to touch: {layer: why}.
UNPRUNABLE = {layer: why for layer, why in aver.UNPRUNABLE.items() if "tlab" not in layer} | {
    "fusion.coattn.dcn_layers.0.linears.1.0": "adds to the audio feature, which is of unit length over all its channels",
}


def prune_groups(module: AVER, cfg: Config) -> list[Group]:
    """What can be removed, in the order of its layers. Widths come from the module, since it may be pruned."""
    fusion = module.fusion
    return [
        *aver.backbone_groups(module),
        *fusion_groups(fusion, "fusion"),
        guided_group("fusion.avga", fusion.avga, _seen_stream()),
        *aver.head_groups(fusion),
    ]


def _seen_stream() -> list[Slice]:
    """Everything that carries the video stream's channels from the guided attention to the joint BiLSTM.

    A value's row meets the correlation of its channel, which is not zero for a channel that is: with the row at zero it has no effect.
    """
    layer = "fusion.coattn.dcn_layers.0"
    value = f"{layer}.dense_coattn.value1_linear"
    return [
        *(Slice(f"{layer}.linears.0.0", t, 0, "out") for t in ("weight", "bias")),
        *(Slice(value, t, 0, "in") for t in ("weight", "bias")),
        *(Slice(m, "weight", 1, "in") for m in (value, f"{layer}.dense_coattn.query_linear", "fusion.Joint.linear")),
        *(Slice("fusion.Joint.rnn", f"weight_ih_l0{suffix}", 1, "in") for suffix in ("", "_reverse")),
    ]

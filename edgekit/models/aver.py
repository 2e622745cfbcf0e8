"""AVER: valence and arousal over time, from sub-sequences of video frames and their mel spectrograms.

R(2+1)D and ResNet encode each sub-sequence; each feature is brought to unit length. The fusion sees
`steps` of them: TLAB on audio, audio-guided attention and TLAB on video, joint cross-attention, a
BiLSTM, one regressor for valence and one for arousal. Three engines: a live system encodes one new
sub-sequence at a time and keeps the features of those before.

Two forms of the fusion: `release`, which is what the authors' code computes and has the size that
the paper states (26.97 M), and `paper`, Eqs. 1-14 to the letter, where the video feature is the mean over positions.
Source: Moon et al. 2025, CMC 85(2); github.com/asmoon002/AVER; backbones: Kuhnke et al. 2020, arXiv 2002.01025.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..formats import Engine
from ..losses import ccc_loss
from .blocks.joint_attention import (
    TLAB,
    AudioGuidedAttention,
    CoAttention,
    LiteralCrossAttention,
    LiteralTLAB,
    RecurrentFeature,
    l2_normalize,
    regressor,
    xavier,
)
from .blocks.r2plus1d import R2Plus1D
from .blocks.resnet2d import ResNet2D
from .groups import Group, Slice, convolution_groups, one_axis
from .joint_groups import fusion_groups, guided_group, joint_group, lstm_group, regressor_group, tlab_input

OUTPUTS = ("valence", "arousal")
FPS = 30.0  # of the videos the release was trained on; most of Aff-Wild2
# Kinetics' mean colour and deviation on 0..255, the public backbone's.
KINETICS_MEAN = (110.2008, 100.63983, 95.99475)
KINETICS_STD = (58.14765, 56.4672525, 55.332195)
TOWER_MSE = 0.1  # weight of the squared error beside CCC where a backbone is trained alone: CCC says little while predictions are nearly constant


@dataclass(frozen=True)
class Mel:
    """How a sub-sequence's spectrogram is made: out = (dB + shift) / scale."""

    sample_rate_hz: int = 44_100
    samples: int = 45_599  # shorter sounds get zeros in front up to these; they give 104 columns
    until: Literal["start_of_frame", "end_of_frame"] = "start_of_frame"  # of the last frame: the public code cuts 31 intervals for 32 frames
    n_fft: int = 1024
    win_length: int = 882
    hop_length: int = 441
    n_mels: int = 64
    shift: float = 14.8
    scale: float = 19.895

    @property
    def frames(self) -> int:
        return 1 + self.samples // self.hop_length


@dataclass(frozen=True)
class Config:
    """Sizes of one AVER. The defaults are the authors' release."""

    form: Literal["release", "paper"] = "release"
    steps: int = 16  # sub-sequences of one window; part of the weights
    frames: int = 8  # of a sub-sequence that are looked at
    frames_per_window: int = 32  # of a sub-sequence
    fps: float = FPS
    height: int = 112
    width: int = 112
    mel: Mel = Mel()
    video_stem: tuple[int, int] = (45, 64)
    video_widths: tuple[int, ...] = (64, 128, 256, 512)
    audio_stem: int = 64
    audio_widths: tuple[int, ...] = (64, 128, 256, 512)
    blocks: int = 2
    heads: int = 2
    hidden: int = 128  # of the regressors
    inner: int = 32  # k of the paper's Eq. 10, which gives it no number
    dropout: float = 1.0  # times the release's rates
    pixel_mean: tuple[float, float, float] = KINETICS_MEAN
    pixel_std: tuple[float, float, float] = KINETICS_STD

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping) -> Config:
        tuples = {k: tuple(fields[k]) for k in ("video_stem", "video_widths", "audio_widths", "pixel_mean", "pixel_std")}
        return cls(**{**fields, **tuples, "mel": Mel(**fields["mel"])})

    @property
    def channels(self) -> int:
        """Width of the fusion's streams: the backbones' last one, the same for both."""
        return self.audio_widths[-1]

    @property
    def positions(self) -> int:
        """Entries of the video backbone's map per channel: time is halved after each stage but the first, space in the stem too."""
        halvings = len(self.video_widths) - 1
        return ceil(self.frames / 2**halvings) * ceil(self.height / 2 ** (halvings + 1)) * ceil(self.width / 2 ** (halvings + 1))

    @property
    def video_feature(self) -> int:
        return self.channels * (self.positions if self.form == "release" else 1)


_MEL_16K = Mel(sample_rate_hz=16_000, samples=10_240, until="end_of_frame", n_fft=512, win_length=320, hop_length=160, n_mels=40)
SMALL = Config(
    steps=8, frames_per_window=8, fps=12.5, height=48, width=48, mel=_MEL_16K,
    video_stem=(8, 8), video_widths=(8, 20, 32, 48), audio_stem=8, audio_widths=(8, 16, 24, 48), blocks=1, hidden=32, dropout=0.5,
)  # fmt: skip
TINY = Config(
    steps=4, frames_per_window=8, fps=12.5, height=32, width=32, mel=replace(_MEL_16K, samples=3_680, n_mels=32),
    video_stem=(8, 8), video_widths=(8, 12, 16, 24), audio_stem=8, audio_widths=(8, 12, 16, 24), blocks=1, hidden=16, inner=8,
)  # fmt: skip
CONFIGS = {"default": Config(), "release": Config(), "paper": Config(form="paper"), "small": SMALL, "tiny": TINY}
OPTIONAL_KEYS: tuple[str, ...] = ()


class VideoModel(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.is_pooled = cfg.form == "paper"
        self.r2plus1d = R2Plus1D(cfg.video_stem, cfg.video_widths, cfg.blocks)

    def forward(self, clip: Tensor) -> Tensor:
        """[n, 3, t, h, w] → [n, positions*c] of length 1, channels outermost; pooled: [n, c] as it comes."""
        maps = self.r2plus1d(clip)
        return maps.mean((2, 3, 4)) if self.is_pooled else l2_normalize(maps.flatten(1))


class AudioModel(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.is_plain = cfg.form == "paper"
        self.resnet = ResNet2D(cfg.audio_stem, cfg.audio_widths, cfg.blocks)

    def forward(self, mel: Tensor) -> Tensor:
        """[n, 1, bands, frames] → [n, c] of length 1; plain: as it comes."""
        feature = self.resnet(mel)
        return feature if self.is_plain else l2_normalize(feature)


class Fusion(nn.Module):
    """The release's fusion. Children have the public code's names."""

    def __init__(self, cfg: Config):
        super().__init__()
        c, p = cfg.channels, cfg.dropout
        self.coattn = CoAttention(c, cfg.steps, 2, 0.4 * p)
        self.avga = AudioGuidedAttention(c, cfg.positions)
        self.audio_tlab = TLAB(c, cfg.heads, p)
        self.video_tlab = TLAB(c, cfg.heads, p)
        self.Joint = RecurrentFeature(2 * c, c, 0.2 * p)
        self.vregressor = regressor(c, cfg.hidden, 1, 0.6 * p)
        self.aregressor = regressor(c, cfg.hidden, 1, 0.6 * p)
        xavier(self)

    def forward(self, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """video [n, l, positions*c], audio [n, l, c] → valence, arousal [n, l]."""
        audio = self.audio_tlab(audio)
        video = self.video_tlab(self.avga(video, audio))
        joint = self.Joint(torch.cat(self.coattn(video, audio), -1))
        return self.vregressor(joint).squeeze(-1), self.aregressor(joint).squeeze(-1)


class PaperFusion(nn.Module):
    """Eqs. 1-14; one value per sub-sequence, since the labels and CCC are per frame, where Eq. 14 averages over the sequence."""

    def __init__(self, cfg: Config):
        super().__init__()
        c, p = cfg.channels, cfg.dropout
        self.audio_tlab = LiteralTLAB(c, p)
        self.video_tlab = LiteralTLAB(c, p)
        self.video_cross = LiteralCrossAttention(c, cfg.steps, cfg.inner)
        self.audio_cross = LiteralCrossAttention(c, cfg.steps, cfg.inner)
        self.lstm = nn.LSTM(2 * c, c // 2, num_layers=2, bidirectional=True, batch_first=True)
        self.head = regressor(c, cfg.hidden, 2, 0.0)
        xavier(self)

    def forward(self, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """video, audio [n, l, c] → valence, arousal [n, l]."""
        video, audio = self.video_tlab(video), self.audio_tlab(audio)
        joint = torch.cat([audio, video], -1)
        hidden, _ = self.lstm(torch.cat([self.video_cross(video, joint), self.audio_cross(audio, joint)], -1))
        valence, arousal = self.head(hidden).unbind(-1)
        return valence, arousal


class AVER(nn.Module):
    """Two backbones and a fusion, which is AVER's or, for a baseline on the same features, another."""

    def __init__(self, cfg: Config, fusion: nn.Module):
        super().__init__()
        self.video_model = VideoModel(cfg)
        self.audio_model = AudioModel(cfg)
        self.fusion = fusion

    def encode_video(self, video: Tensor) -> Tensor:
        """[n, l, 3, t, h, w] → [n, l, video_feature]."""
        return self.video_model(video.flatten(0, 1)).unflatten(0, video.shape[:2])

    def encode_audio(self, mel: Tensor) -> Tensor:
        """[n, l, 1, bands, frames] → [n, l, c]."""
        return self.audio_model(mel.flatten(0, 1)).unflatten(0, mel.shape[:2])

    def forward(self, video: Tensor, mel: Tensor) -> dict[str, Tensor]:
        """video [n, l, 3, t, h, w], mel [n, l, 1, bands, frames] → valence, arousal [n, l]."""
        return dict(zip(OUTPUTS, self.fusion(self.encode_video(video), self.encode_audio(mel)), strict=True))


def build(cfg: Config) -> AVER:
    return AVER(cfg, Fusion(cfg) if cfg.form == "release" else PaperFusion(cfg))


def fold(module: AVER) -> AVER:
    """Nothing to fold: the exporter folds batch norms."""
    return module


FUSION_PARTS = ("coattn", "avga", "audio_tlab", "video_tlab", "Joint", "vregressor", "aregressor", "video_cross", "audio_cross", "lstm", "head")
# A temporal block's layers stand in the public checkpoints a second time, by their place in a sequence.
_ALIASES = {".net.0.": ".conv1.", ".net.4.": ".conv2."}
_STEM = "video_model.r2plus1d.stem.0.weight"


def normalize_keys(state: Mapping[str, Tensor], cfg: Config) -> dict[str, Tensor]:
    """Accept the public spellings: the fusion's own names, DataParallel's prefix on either part, weights that are there twice, the
    backbone's stem for colour and mask, of which the colours are kept.

    Raises:
        CheckpointError: the backbones or the fusion are not there at all, or one weight is there in two spellings.
    """
    renamed: dict[str, Tensor] = {}
    given = {_our_key(spelling) for spelling in state}
    for spelling, value in state.items():
        key = _our_key(spelling)
        alias = next((a for a in _ALIASES if a in key and ".tcn.network." in key), None)
        if alias:
            key = key.replace(alias, _ALIASES[alias])
            if key in given:
                continue
        if key in renamed:
            raise CheckpointError(f"`{key}` is there twice, once as `{spelling}`", "keep one of the two in the checkpoint")
        renamed[key] = value
    parts = {"video_model.r2plus1d": "the video backbone", "audio_model.resnet": "the audio backbone", "fusion": "the fusion"}
    absent = [prefix for prefix in parts if not any(key.startswith(f"{prefix}.") for key in renamed)]
    if absent and len(absent) < len(parts):
        listed = " and ".join(f"{parts[prefix]} (`{prefix}.`)" for prefix in absent)
        raise CheckpointError(
            f"the checkpoint is partial: {listed} {'is' if len(absent) == 1 else 'are'} not in it",
            "put the backbones' and the fusion's weights into one file: they have no names in common",
        )
    if _STEM in renamed and renamed[_STEM].dim() == 5:
        renamed[_STEM] = renamed[_STEM][:, :3]
    return renamed


def _our_key(spelling: str) -> str:
    key = spelling.removeprefix("module.")
    head = key.partition(".")[0]
    prefix = "fusion." if head in FUSION_PARTS else {"r2plus1d": "video_model.", "resnet": "audio_model."}.get(head, "")
    return (prefix + key).replace(".module.", ".")


class VideoBackbone(nn.Module):
    def __init__(self, model: AVER):
        super().__init__()
        self.video_model = model.video_model

    def forward(self, clip: Tensor) -> tuple[Tensor]:
        return (self.video_model(clip),)


class AudioBackbone(nn.Module):
    def __init__(self, model: AVER):
        super().__init__()
        self.audio_model = model.audio_model

    def forward(self, mel: Tensor) -> tuple[Tensor]:
        return (self.audio_model(mel),)


class FusionEngine(nn.Module):
    def __init__(self, model: AVER):
        super().__init__()
        self.fusion = model.fusion

    def forward(self, v_features: Tensor, a_features: Tensor) -> tuple[Tensor, ...]:
        return self.fusion(v_features, a_features)


def engines(module: AVER, cfg: Config) -> list[Engine]:
    """Video backbone, audio backbone and fusion. The features between them keep their widths when pruned."""
    v, a = cfg.video_feature, cfg.channels
    return [
        Engine("v_backbone", VideoBackbone(module), {"clip": (1, 3, cfg.frames, cfg.height, cfg.width)}, {"v_feature": (1, v)}),
        Engine("a_backbone", AudioBackbone(module), {"mel": (1, 1, cfg.mel.n_mels, cfg.mel.frames)}, {"a_feature": (1, a)}),
        Engine(
            "fusion", FusionEngine(module), {"v_features": (1, cfg.steps, v), "a_features": (1, cfg.steps, a)}, {k: (1, cfg.steps) for k in OUTPUTS},
        ),
    ]  # fmt: skip


def flow(cfg: Config) -> dict:
    """How the engines make one window's answer, and what the host does around them."""
    step_s = cfg.frames_per_window / cfg.fps
    kept = [
        {"step": "keep", "tensor": name, "count": cfg.steps - 1, "why": "sliding window: only the new sub-sequence is encoded"}
        for name in ("v_feature", "a_feature")
    ]
    return {
        "inputs": {
            "video": {"shape": [cfg.steps, 3, cfg.frames, cfg.height, cfg.width], "dtype": "float32"},
            "mel": {"shape": [cfg.steps, 1, cfg.mel.n_mels, cfg.mel.frames], "dtype": "float32"},
        },
        "steps": [
            {"engine": "v_backbone", "each": {"clip": "video"}, "stack": {"v_feature": "v_features"}},
            {"engine": "a_backbone", "each": {"mel": "mel"}, "stack": {"a_feature": "a_features"}},
            {"engine": "fusion", "feed": {"v_features": "v_features", "a_features": "a_features"}, "give": {k: k for k in OUTPUTS}},
        ],
        "outputs": list(OUTPUTS),
        "primary": list(OUTPUTS),
        "task": "timeline",
        "window_s": cfg.steps * step_s,
        # Live: each new sub-sequence runs every engine once, on `steps - 1` kept features and a new one.
        "rates_hz": {name: 1 / step_s for name in ("v_backbone", "a_backbone", "fusion")},
        "host_steps": [
            {"step": "preprocess", "spec": "preprocess.json"},
            *kept,
            {"step": "clamp", "outputs": list(OUTPUTS), "low": -1.0, "high": 1.0, "why": "labels are within −1..1; the heads are linear"},
        ],
    }


def io_spec(cfg: Config) -> dict:
    """Units and meaning of what goes in and comes out; shapes are the engines'."""
    return {
        "inputs": {
            "video": {"unit": "(pixel 0..255 − mean) / std", "axes": ["sub-sequence", "colour", "frame", "height", "width"]},
            "mel": {"unit": "(dB + shift) / scale", "axes": ["sub-sequence", "channel", "mel band", "column"], "sample_rate_hz": cfg.mel.sample_rate_hz},
        },
        "outputs": {
            "valence": {"unit": "valence −1..1", "meaning": "unpleasant to pleasant, at the last frame of each sub-sequence"},
            "arousal": {"unit": "arousal −1..1", "meaning": "calm to excited, at the last frame of each sub-sequence"},
        },
    }


def preprocess_spec(cfg: Config) -> dict:
    mel = cfg.mel
    return {
        "video": {
            "clips": cfg.steps,
            "frames_per_window": cfg.frames_per_window,
            "frames_per_clip": cfg.frames,
            "height": cfg.height,
            "width": cfg.width,
            "color": "RGB",
            "layout": "KCTHW",
            "resize": "bilinear_half_pixel",
            "sampling": "subsequences",
            "mean": list(cfg.pixel_mean),
            "std": list(cfg.pixel_std),
        },
        "audio": {
            "sample_rate_hz": mel.sample_rate_hz,
            "scale": 32768.0,
            "features": {
                "mel": {
                    "kind": "log_mel", "per": "subsequence", "samples": mel.samples, "until": mel.until,
                    "n_fft": mel.n_fft, "win_length": mel.win_length, "window": "hann", "hop_length": mel.hop_length, "center": True, "pad_mode": "reflect",
                    "n_mels": mel.n_mels, "f_min": 0.0, "f_max": mel.sample_rate_hz / 2, "shift": mel.shift, "scale": mel.scale, "frames": mel.frames,
                }
            },
        },
    }  # fmt: skip


def loss(outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
    """1 − (ρ_valence + ρ_arousal)/2 over all steps of the batch, and TOWER_MSE times the squared error of every output `<label>.mse`."""
    made = [k for k in OUTPUTS if k in outputs and k in labels]
    total = sum(ccc_loss(outputs[k], labels[k]) for k in made) / len(made)
    return total + TOWER_MSE * sum((outputs[f"{k}.mse"] - labels[k]).square().mean() for k in made if f"{k}.mse" in outputs)


def augment(batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Mirror, shift and relight a sample's video; shift its spectrograms in time and cover bands and columns of them. Labels stay true.

    One draw for all sub-sequences of a sample. Covering (Park et al. 2019, SpecAugment) moved the audio backbone's CCC of arousal
    from 0.39 to 0.62 on clips of other speakers, of 320 synthetic ones to learn from.
    """

    def below(limit: int) -> int:
        return int(torch.randint(limit, (), generator=generator))

    out = dict(batch)
    if "video" in out:
        out["video"] = video = out["video"].clone()
        reach = video.shape[-1] // 16
        for x in video:
            moved = x.flip(-1) if below(2) else x
            x.copy_(moved.roll((below(2 * reach + 1) - reach, below(2 * reach + 1) - reach), (-2, -1)) * (0.8 + 0.4 * torch.rand((), generator=generator)))
    if "mel" in out:
        out["mel"] = mel = out["mel"].clone()
        fill, reach = mel.mean(), mel.shape[-1] // 10
        for x in mel:
            x.copy_(x.roll(below(2 * reach + 1) - reach, -1))
            for axis in (-2, -1) * 2:
                width = below(x.shape[axis] // 5 + 1)
                x.narrow(axis, below(x.shape[axis] - width + 1), width).fill_(fill)
    return out


def encode(module: AVER, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the frozen backbones make of a batch: v_features, a_features. Their batch norms keep their statistics."""
    was_training = module.training
    module.eval()
    with torch.no_grad():
        encoded = {
            "v_features": batch["v_features"] if "v_features" in batch else module.encode_video(batch["video"]),
            "a_features": batch["a_features"] if "a_features" in batch else module.encode_audio(batch["mel"]),
        }
    module.train(was_training)
    return encoded


def train_forward(module: AVER, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{"video": [n, l, 3, t, h, w], "mel": [n, l, 1, bands, frames]}, or what `encode` made of them → valence, arousal [n, l].

    A modality given with n = 1 is shared by all samples: a silenced one need not be encoded n times.
    """
    video = batch["v_features"] if "v_features" in batch else module.encode_video(batch["video"])
    audio = batch["a_features"] if "a_features" in batch else module.encode_audio(batch["mel"])
    n = max(len(video), len(audio))
    return dict(zip(OUTPUTS, module.fusion(video.expand(n, -1, -1), audio.expand(n, -1, -1)), strict=True))


class Tower(nn.Module):
    """One backbone with a linear valence and arousal for each sub-sequence, to be trained alone.

    The head sees the feature as the fusion does: of unit length, and the video's as the mean of its `positions` rows, which is the
    fusion's attention when it is even.
    """

    def __init__(self, encoder: nn.Module, width: int, source: str):
        super().__init__()
        self.encoder, self.source = encoder, source
        self.fc = nn.Linear(width, len(OUTPUTS))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = batch[self.source]
        feature = self.encoder(x.flatten(0, 1))
        rows = feature.unflatten(1, (-1, self.fc.in_features)) * feature.shape[1] ** 0.5
        out = dict(zip(OUTPUTS, self.fc(rows.mean(1)).unflatten(0, x.shape[:2]).unbind(-1), strict=True))
        return {**out, **{f"{k}.mse": v for k, v in out.items()}} if self.training else out


def towers(module: AVER) -> dict[str, Tower]:
    """What may be trained alone before the whole: the backbones, which then stand in `module` as trained."""
    width = module.audio_model.resnet.layer4[-1].bn2.num_features
    return {"video": Tower(module.video_model, width, "video"), "audio": Tower(module.audio_model, width, "mel")}


def for_training(module: AVER) -> AVER:
    """Lay weights out for the fastest training on a CPU: channels-last 3-D convolutions take two thirds of the time.

    In bfloat16 they would take half, but torch 2.13 then gives NaN now and then in the weight gradient of a (3, 1, 1) kernel over
    two frames: oneDNN reads what nobody wrote.
    """
    module.video_model.to(memory_format=torch.channels_last_3d)
    module.audio_model.to(memory_format=torch.channels_last)
    return module


# What prune refuses to touch: {layer: why}.
UNPRUNABLE = {
    "video_model.r2plus1d.layer4": "makes the video feature, whose numbers the fusion reads in an order that the width is part of",
    "audio_model.resnet.layer4": "makes the audio feature, which is brought to unit length before the fusion carries it on",
    "fusion.audio_tlab.lstm.linear": "is normalised by TLAB's LayerNorm together with what attention adds",
    "fusion.video_tlab.lstm.linear": "is normalised by TLAB's LayerNorm together with what attention adds",
    "fusion.audio_tlab.out_fc": "adds to what TLAB's LayerNorm normalises",
    "fusion.video_tlab.out_fc": "adds to what TLAB's LayerNorm normalises",
    "fusion.vregressor.3": "is an output",
    "fusion.aregressor.3": "is an output",
}


def prune_groups(module: AVER, cfg: Config) -> list[Group]:
    """What can be removed, in the order of its layers. Widths come from the module, since it may be pruned."""
    found = [*backbone_groups(module), *fusion_groups(module.fusion, "fusion")]
    if cfg.form == "paper":
        return [*found, *_paper_streams(module.fusion), regressor_group("fusion.head", module.fusion.head)]
    return [*found, guided_group("fusion.avga", module.fusion.avga, tlab_input("fusion.video_tlab")), *head_groups(module.fusion)]


def backbone_groups(module: AVER) -> list[Group]:
    """Of both backbones all channels but those of the features that they give."""
    feature = Slice("fusion", "feature", 1, "in")
    # Any window does: couplings do not depend on it. These are quick.
    video = convolution_groups(module.video_model.r2plus1d, torch.zeros(1, 3, 2, 16, 16), "video_model.r2plus1d", [feature])
    audio = convolution_groups(module.audio_model.resnet, torch.zeros(1, 1, 32, 32), "audio_model.resnet", [feature])
    return [group for group in (*video, *audio) if feature not in group.axes[0].slices]


def head_groups(fusion: nn.Module) -> list[Group]:
    """The joint feature and both regressors, as AVER and its baseline have them."""
    names = ("vregressor", "aregressor")
    joint = joint_group("fusion.Joint", fusion.Joint, [f"fusion.{name}.0" for name in names])
    return [joint, *(regressor_group(f"fusion.{name}", getattr(fusion, name)) for name in names)]


def _paper_streams(fusion: PaperFusion) -> list[Group]:
    """What each literal TLAB gives: the BiLSTM reads it, its own cross-attention adds to it, and both correlate it as a part of J."""
    groups = [lstm_group("fusion.lstm", fusion.lstm, [Slice("fusion.head.0", "weight", 1, "in")])]
    audio, video = fusion.audio_tlab.value_fc.out_features, fusion.video_tlab.value_fc.out_features
    for name, width, in_joint, in_lstm in (("audio", audio, 0, video), ("video", video, audio, 0)):
        maker, cross = f"fusion.{name}_tlab.value_fc", f"fusion.{name}_cross"
        slices = [
            *(Slice(maker, t, 0, "out") for t in ("weight", "bias")),
            Slice(f"{cross}.back", "weight", 0, "out"),
            *(Slice(f"{cross}.{reader}", "weight", 1, "in") for reader in ("joint", "own")),
            *(Slice(f"fusion.{other}_cross.joint", "weight", 0, "in", starts=(in_joint,)) for other in ("video", "audio")),
            *(Slice("fusion.lstm", f"weight_ih_l0{suffix}", 1, "in", starts=(in_lstm,)) for suffix in ("", "_reverse")),
        ]
        groups.append(one_axis(maker, "channels", width, slices))
    return groups

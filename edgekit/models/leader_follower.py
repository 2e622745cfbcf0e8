"""Leader-Follower: valence and arousal of every frame, from a face (which leads), and two streams of audio features (which follow).

IR-ResNet per frame → causal TCN; one causal TCN for each audio stream; per frame, attention over the three
modalities; one linear layer on the leader and the attended three. Two engines: the face encoder once per new
frame, the head once per hop over the whole window.

The streams are, per video frame: in `release` VGGish's 128 features, which come with the clip (`Clip.features`:
its network is no part of this model), and 39 MFCCs; in `small` and `tiny` a log-mel spectrum stands in VGGish's
place, so that they need nothing but sound.

Sizes: the public code's module with one output has 38 376 449 parameters, 128 of which (`gn1`, `gn2`) nothing
reads; `build` has them, `fold` drops them. It gives one network for each dimension: `release_valence` and
`release_arousal` are those. `release` gives both from one, with 225 parameters more.
Source: Zhang et al. 2021, arXiv 2107.01175; public code sucv/ABAW2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor, nn

from ..formats import Engine
from ..losses import ccc_loss
from .blocks import tcn
from .blocks.ir_resnet import IRResNet, IRSize, ir_groups
from .blocks.tcn import TCN
from .groups import Group, Slice

SAMPLE_RATE_HZ = 16_000
STRIDE = 4  # of the frames that the face encoder is trained on when it is alone
_SLOPE = 0.01  # of the TCNs' leaky ReLUs


@dataclass(frozen=True)
class Config:
    """Sizes of one Leader-Follower; the defaults are the public code's.

    Attributes:
        outputs: what the last layer gives, in this order.
        frames, hop: of a window, and how many of them the next one is later.
        resize_to: size of the whole face, whose middle is seen.
        stream: the first audio stream, `vggish` (of the clip) or `log_mel` (made of its sound).
        leader, follower: channels of the TCNs' blocks.
        attention: width of keys, queries and values.
        mfcc_dim: a third of them coefficients, the others their first and second derivatives.
        mfcc_mean, mfcc_std: one number for all or one for each, of the training set. The public code's are not published.
    """

    outputs: tuple[str, ...] = ("valence", "arousal")
    frames: int = 300
    hop: int = 200
    fps: float = 30.0
    height: int = 40
    width: int = 40
    resize_to: tuple[int, int] = (48, 48)
    face: IRSize = field(default_factory=IRSize)
    stream: str = "vggish"
    stream_dim: int = 128
    mfcc_dim: int = 39
    mfcc_mean: tuple[float, ...] = (0.0,)
    mfcc_std: tuple[float, ...] = (1.0,)
    leader: tuple[int, ...] = (128, 128, 128, 128)
    follower: tuple[int, ...] = (32, 32, 32, 32)
    kernel: int = 5
    attention: int = 32
    dropout: float = 0.1

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping) -> Config:
        face = IRSize(**{k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in fields["face"].items()})
        return cls(**{**fields, "face": face, **{k: tuple(fields[k]) for k in ("outputs", "resize_to", "leader", "follower", "mfcc_mean", "mfcc_std")}})


_RELEASE = Config()

# Of 13 coefficients, their slopes and their second derivatives, over a minute of synthesized speech.
_SPEECH_MEAN = (-140.0, 50.0, -5.0, 8.0, *[0.0] * 35)
_SPEECH_STD = (
    30.0, 24.0, 13.0, 12.0, 9.0, 7.5, 5.5, 5.0, 4.0, 4.0, 3.5, 3.0, 3.0,
    6.0, 4.0, 2.0, 2.0, 1.5, 1.3, 1.0, 0.8, 0.7, 0.7, 0.6, 0.5, 0.5,
    2.0, 2.0, 1.1, 0.9, 0.7, 0.7, 0.5, 0.5, 0.5, 0.4, 0.4, 0.3, 0.3,
)  # fmt: skip

CONFIGS = {
    "default": _RELEASE,
    "release": _RELEASE,
    "release_valence": replace(_RELEASE, outputs=("valence",)),
    "release_arousal": replace(_RELEASE, outputs=("arousal",)),
    "small": Config(
        frames=64, hop=32, fps=12.5, height=32, width=32, resize_to=(32, 32), face=IRSize((8, 16, 32, 64), (1, 1, 1, 1), 64),
        stream="log_mel", stream_dim=40, mfcc_mean=_SPEECH_MEAN, mfcc_std=_SPEECH_STD, leader=(32, 32, 32), follower=(16, 16, 16), attention=16,
    ),
    "tiny": Config(
        frames=12, hop=4, fps=12.5, height=16, width=16, resize_to=(16, 16), face=IRSize((8, 12, 16), (1, 2, 1), 16),
        stream="log_mel", stream_dim=10, mfcc_dim=6, mfcc_mean=(-140.0, 50.0, 0.0, 0.0, 0.0, 0.0), mfcc_std=(30.0, 24.0, 6.0, 4.0, 2.0, 2.0), leader=(12, 12), follower=(8, 8), kernel=3, attention=8,
    ),
}  # fmt: skip


class LeaderFollower(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.outputs, self.stream = cfg.outputs, cfg.stream
        lead, follow, d = cfg.leader[-1], cfg.follower[-1], cfg.attention
        self.spatial = IRResNet(cfg.face, cfg.height, cfg.width)
        self.temporal = TCN(cfg.face.embedding, cfg.leader, cfg.kernel, _SLOPE, cfg.dropout, normed=True)
        self.temporal1 = TCN(cfg.stream_dim, cfg.follower, cfg.kernel, _SLOPE, cfg.dropout, normed=True)
        self.temporal2 = TCN(cfg.mfcc_dim, cfg.follower, cfg.kernel, _SLOPE, cfg.dropout, normed=True)
        # Keys. The followers' queries and values are made of their keys, not of what their TCNs give: so it was trained.
        self.encoder1, self.encoder2, self.encoder3 = nn.Linear(lead, d), nn.Linear(follow, d), nn.Linear(follow, d)
        self.encoderQ1, self.encoderQ2, self.encoderQ3 = nn.Linear(lead, d), nn.Linear(d, d), nn.Linear(d, d)
        self.encoderV1, self.encoderV2, self.encoderV3 = nn.Linear(lead, d), nn.Linear(d, d), nn.Linear(d, d)
        self.gn1, self.gn2 = nn.GroupNorm(math.gcd(8, d), d), nn.GroupNorm(math.gcd(8, d), d)
        self.ln = nn.LayerNorm([3, d])
        self.regressor = nn.Linear(lead + 3 * d, len(cfg.outputs))

    def encode_faces(self, video: Tensor) -> Tensor:
        """[n, t, 3, h, w] → [n, t, embedding], each of length 1."""
        return self.spatial(video.flatten(0, 1)).unflatten(0, video.shape[:2])

    def fuse(self, faces: Tensor, stream: Tensor, mfcc: Tensor) -> Tensor:
        """Three streams [n, t, d] → [n, t, outputs]."""
        lead = self.temporal(faces)
        keys = self.encoder1(lead), self.encoder2(self.temporal1(stream)), self.encoder3(self.temporal2(mfcc))
        k = torch.stack(keys, 2)
        q = torch.stack((self.encoderQ1(lead), self.encoderQ2(keys[1]), self.encoderQ3(keys[2])), 2)
        v = torch.stack((self.encoderV1(lead), self.encoderV2(keys[1]), self.encoderV3(keys[2])), 2)
        weights = torch.softmax(k @ q.transpose(2, 3) / math.sqrt(k.shape[-1]), -1)  # keys ask, queries answer: as published
        attended = self.ln(weights @ v + v)
        return self.regressor(torch.cat((lead, attended.flatten(2)), -1))

    def forward(self, video: Tensor, stream: Tensor, mfcc: Tensor) -> Tensor:
        """video [n, t, 3, h, w], stream [n, t, stream_dim], mfcc [n, t, mfcc_dim] → [n, t, outputs]."""
        return self.fuse(self.encode_faces(video), stream, mfcc)


def build(cfg: Config) -> LeaderFollower:
    return LeaderFollower(cfg)


def fold(module: LeaderFollower) -> LeaderFollower:
    """Write the TCNs' weight norms into plain weights and drop the group norms that nothing reads, in place."""
    tcn.fold(module)
    for name in ("gn1", "gn2"):
        if hasattr(module, name):
            delattr(module, name)
    return module


def normalize_keys(state: Mapping[str, Tensor], cfg: Config) -> dict[str, Tensor]:
    """Accept the public spellings: both weight norms, convolutions named twice, group norms that nothing reads.

    Raises:
        CheckpointError: a weight norm over other axes, or one weight in two spellings.
    """
    return tcn.plain_weights({key: value for key, value in state.items() if not key.startswith(("gn1.", "gn2."))})


OPTIONAL_KEYS: tuple[str, ...] = ()


class FaceEncoder(nn.Module):
    def __init__(self, model: LeaderFollower):
        super().__init__()
        self.spatial = model.spatial

    def forward(self, face: Tensor) -> tuple[Tensor]:
        return (self.spatial(face),)


_FUSED = tuple(f"encoder{kind}{i}" for kind in ("", "Q", "V") for i in (1, 2, 3))


class Head(nn.Module):
    def __init__(self, model: LeaderFollower):
        super().__init__()
        for name in ("temporal", "temporal1", "temporal2", *_FUSED, "ln", "regressor"):
            setattr(self, name, getattr(model, name))

    def forward(self, frame_features: Tensor, stream: Tensor, mfcc: Tensor) -> tuple[Tensor, ...]:
        return LeaderFollower.fuse(self, frame_features, stream, mfcc).unbind(-1)


def engines(module: LeaderFollower, cfg: Config) -> list[Engine]:
    """Face encoder and head."""
    embedding, t = cfg.face.embedding, cfg.frames
    head = {"frame_features": (1, t, embedding), cfg.stream: (1, t, cfg.stream_dim), "mfcc": (1, t, cfg.mfcc_dim)}
    return [
        Engine("frame", FaceEncoder(module), {"face": (1, 3, cfg.height, cfg.width)}, {"frame_feature": (1, embedding)}),
        Engine("head", Head(module), head, {name: (1, t) for name in cfg.outputs}),
    ]


def flow(cfg: Config) -> dict:
    """How the engines make one window's answer, and what the host does around them."""
    t, streams = cfg.frames, (cfg.stream, "mfcc")
    shapes = {"video": [t, 3, cfg.height, cfg.width], cfg.stream: [t, cfg.stream_dim], "mfcc": [t, cfg.mfcc_dim]}
    return {
        "inputs": {name: {"shape": shape, "dtype": "float32"} for name, shape in shapes.items()},
        "steps": [
            {"engine": "frame", "each": {"face": "video"}, "stack": {"frame_feature": "frame_features"}},
            {"engine": "head", "feed": {name: name for name in ("frame_features", *streams)}, "give": {name: name for name in cfg.outputs}},
        ],
        "outputs": list(cfg.outputs),
        "task": "timeline",
        "primary": list(cfg.outputs),
        "window_s": t / cfg.fps,
        "rates_hz": {"frame": cfg.fps, "head": cfg.fps / cfg.hop},
        "host_steps": [
            {"step": "preprocess", "spec": "preprocess.json"},
            {"step": "keep", "tensor": "frame_feature", "count": t - cfg.hop, "why": "windows overlap: only new frames are encoded"},
            {"step": "clamp", "outputs": list(cfg.outputs), "low": -1.0, "high": 1.0, "why": "labels end there; the last layer is linear"},
        ],
    }


def io_spec(cfg: Config) -> dict:
    """Units and meaning of what goes in and comes out; shapes are the engines'."""
    streams = {
        "vggish": {"unit": "VGGish features, each with mean 0 and variance 1 over the training set", "axes": ["frame", "feature"]},
        "log_mel": {"unit": "(mel power in dB + 20) / 20", "axes": ["frame", "band"], "sample_rate_hz": SAMPLE_RATE_HZ},
        "mfcc": {"unit": "cepstral coefficients of dB and their derivatives, less their mean, by their standard deviation", "axes": ["frame", "coefficient"], "sample_rate_hz": SAMPLE_RATE_HZ},
    }
    meaning = {"valence": "unpleasant to pleasant", "arousal": "calm to excited"}
    return {
        "inputs": {
            "video": {"unit": "(pixel 0..255 − 127.5) / 127.5", "axes": ["frame", "colour", "height", "width"]},
            **{name: streams[name] for name in (cfg.stream, "mfcc")},
        },
        "outputs": {name: {"unit": "−1..1", "axes": ["frame"], "meaning": meaning[name]} for name in cfg.outputs},
    }


def preprocess_spec(cfg: Config) -> dict:
    """The middle of the resized face of every frame, and the sound around it."""
    video = {
        "clips": 1, "frames_per_clip": cfg.frames, "height": cfg.height, "width": cfg.width, "resize_to": list(cfg.resize_to),
        "color": "RGB", "layout": "TCHW", "resize": "bilinear_half_pixel", "sampling": "uniform_round_linspace", "mean": [127.5] * 3, "std": [127.5] * 3,
    }  # fmt: skip
    bands = {"per": "frame", "window": "hamming", "f_min": 0.0, "f_max": SAMPLE_RATE_HZ / 2}
    shift, scale = [-m for m in cfg.mfcc_mean], list(cfg.mfcc_std)
    sound = {
        "mfcc": {
            **bands, "kind": "mfcc", "n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": 26, "n_mfcc": cfg.mfcc_dim // 3, "deltas": True,
            "shift": shift if len(shift) > 1 else shift[0], "scale": scale if len(scale) > 1 else scale[0],
        },
    }  # fmt: skip
    if cfg.stream == "log_mel":  # 64 ms, most of the 80 ms from frame to frame; in dB, of which speech fills some -60 to 20
        sound["log_mel"] = {**bands, "kind": "log_mel", "n_fft": 1024, "win_length": 1024, "n_mels": cfg.stream_dim, "shift": 20.0, "scale": 20.0}
        return {"video": video, "audio": {"sample_rate_hz": SAMPLE_RATE_HZ, "scale": 32768.0, "features": sound}}
    brought = {cfg.stream: {"dim": cfg.stream_dim, "mean": [0.0] * cfg.stream_dim, "std": [1.0] * cfg.stream_dim}}
    return {"video": video, "audio": {"sample_rate_hz": SAMPLE_RATE_HZ, "scale": 32768.0, "features": sound}, "features": brought}


def encode(module: LeaderFollower, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch with the faces' features in place of the video, for a head that is trained on a frozen face encoder."""
    return {"frame_features": module.encode_faces(batch["video"]), **{k: v for k, v in batch.items() if k != "video"}}


def train_forward(module: LeaderFollower, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{"video": [n, t, 3, h, w], or "frame_features": [n, t, embedding]; the two streams [n, t, d]} → {output: [n, t]}.

    What is given with n = 1 is shared by all samples: a silenced modality need not be encoded n times.
    """
    faces = batch["frame_features"] if "frame_features" in batch else module.encode_faces(batch["video"])
    streams = faces, batch[module.stream], batch["mfcc"]
    n = max(map(len, streams))
    out = module.fuse(*(x.expand(n, -1, -1) for x in streams))
    return dict(zip(module.outputs, out.unbind(-1), strict=True))


def loss(outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
    """1 − concordance over all frames of the batch, mean of the outputs that have a label."""
    return torch.stack([ccc_loss(value, labels[name]) for name, value in outputs.items() if name in labels]).mean()


class FaceTower(nn.Module):
    """The face encoder with a linear layer of its own. While training it sees every STRIDE-th frame, whose answer stands for its neighbours."""

    source = "video"

    def __init__(self, model: LeaderFollower):
        super().__init__()
        self.encoder, self.outputs = model.spatial, model.outputs
        self.fc = nn.Linear(model.temporal.network[0].conv1.in_channels, len(self.outputs))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        video = batch["video"]
        n, t = video.shape[:2]
        frames = torch.arange(t)
        if self.training:
            frames = (frames // STRIDE * STRIDE + torch.randint(STRIDE, ())).clamp_max(t - 1)
        seen, place = torch.unique(frames, return_inverse=True)
        features = self.encoder(video[:, seen].flatten(0, 1)).unflatten(0, (n, len(seen)))
        return dict(zip(self.outputs, self.fc(features)[:, place].unbind(-1), strict=True))


def towers(module: LeaderFollower) -> dict[str, FaceTower]:
    """What may be trained alone before the whole: the face encoder, which then stands in `module` as trained."""
    return {"video": FaceTower(module)}


def for_training(module: LeaderFollower) -> LeaderFollower:
    """Lay weights out for the fastest training on a CPU."""
    module.spatial.to(memory_format=torch.channels_last)
    return module


_IN_SCALE = "makes the attention's features, whose number is in the softmax's scale and in the layer norm"
# What prune refuses to touch: {layer: why}.
UNPRUNABLE = {
    "spatial.output_layer.3": "makes the embedding, whose length is normalized over all of it",
    **dict.fromkeys(_FUSED, _IN_SCALE),
    "ln": "normalizes the attention's features",
    "regressor": "gives the outputs",
}


def prune_groups(module: LeaderFollower, cfg: Config) -> list[Group]:
    """What can be removed from a folded module. Widths come from the module, since it may be pruned."""
    lead = [Slice(path, "weight", 1, "in") for path in ("encoder1", "encoderQ1", "encoderV1", "regressor")]
    return [
        *ir_groups(module.spatial, "spatial"),
        *tcn.tcn_groups(module.temporal, "temporal", lead),
        *tcn.tcn_groups(module.temporal1, "temporal1", [Slice("encoder2", "weight", 1, "in")]),
        *tcn.tcn_groups(module.temporal2, "temporal2", [Slice("encoder3", "weight", 1, "in")]),
    ]

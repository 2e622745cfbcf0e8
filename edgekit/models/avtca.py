"""AVT-CA: the emotion of an utterance from 15 faces and the MFCCs of its sound.

EfficientFace per frame → 1-D CNN over frames; a 1-D CNN over MFCCs. Half-way each stream asks the other in a transformer block, and
the answer is added. At the end each attends to itself (`paper`: after asking the other once more), is pooled over time, and both
together are classified. Two engines: `face` sees one frame, so that a live system keeps its vectors while the window slides, and
`head` does the rest.

Sources: Joe Dhanith et al. 2024 (AVT-CA), arXiv 2407.18552, and its authors' release; the paper's algorithms contradict themselves in
places, where the release's building blocks stand in. Base: Chumachenko et al. 2022, arXiv 2201.11095.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from .. import losses
from ..errors import CheckpointError
from ..formats import Engine
from .blocks import efficientface
from .blocks.efficientface import EfficientFace, EfficientFaceSize
from .groups import Group, Slice, one_axis

OUTPUT = "emotion"
HOP, N_FFT = 512, 2048
RAVDESS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
CREMA_D = ("neutral", "happy", "sad", "angry", "fearful", "disgust")
MOSEI = ("happy", "sad", "angry", "fearful", "disgust", "surprised")


@dataclass(frozen=True)
class Config:
    """Sizes of one AVT-CA. The defaults are the paper's for RAVDESS.

    Attributes:
        variant: "paper", or "release" for the public module: one attention shared by both streams at the end, mean for maximum.
        samples: of the sound; a clip is cut at both ends, or padded, to it.
        window_frames: at most so many of a clip's frames are looked at, those of `samples` at the data's frame rate; 0 for all.
        mfcc_mean, mfcc_std: of each coefficient, taken out before the network; empty for MFCCs as they are. The first is
            hundreds below zero, which one INT8 scale for all of them would pay for.
        audio, video: channels of the four convolutions over time of each stream; the last are one width.
        channel_order: "bgr" for a public checkpoint, whose frames came from OpenCV. Preprocessing gives RGB always.
    """

    variant: str = "paper"
    classes: tuple[str, ...] = RAVDESS
    frames: int = 15
    face: EfficientFaceSize = efficientface.SIZES["default"]
    sample_rate_hz: int = 22_050
    samples: int = 79_380
    window_frames: int = 108
    coefficients: int = 10
    mfcc_mean: tuple[float, ...] = ()
    mfcc_std: tuple[float, ...] = ()
    audio: tuple[int, int, int, int] = (64, 128, 256, 128)
    video: tuple[int, int, int, int] = (64, 64, 128, 128)
    heads: int = 4
    mlp_ratio: int = 2
    dropout: float = 0.0
    channel_order: str = "rgb"

    @property
    def steps(self) -> int:
        """MFCC frames: one at every hop, centred, first and last included."""
        return 1 + self.samples // HOP

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping) -> Config:
        tuples = {k: tuple(fields[k]) for k in ("classes", "mfcc_mean", "mfcc_std", "audio", "video")}
        return cls(**{**fields, **tuples, "face": EfficientFaceSize.from_json(fields["face"])})


CONFIGS = {
    "default": Config(),
    "release": Config(variant="release", heads=8, channel_order="bgr"),
    "cremad": Config(classes=CREMA_D),
    "mosei": Config(classes=MOSEI),
    "small": Config(
        frames=8, face=efficientface.SIZES["small"], sample_rate_hz=16_000, samples=48_000, window_frames=0,
        mfcc_mean=(-145, 99, -18, 18, -9, 5, -8, 2, -5, 4), mfcc_std=(90, 36, 27, 19, 15, 12, 11, 9, 8, 7),  # of synthetic_emotion
        audio=(32, 64, 96, 64), video=(48, 48, 64, 64), dropout=0.2,
    ),
    "tiny": Config(
        frames=4, face=efficientface.SIZES["tiny"], sample_rate_hz=16_000, samples=39 * HOP, coefficients=6, audio=(16, 32, 32, 32), video=(16, 16, 32, 32), heads=2,
    ),
}  # fmt: skip


class AudioNet(nn.Module):
    """Four blocks of convolution (3, unpadded), batch norm, ReLU, maximum of two neighbours; each shortens by three steps."""

    def __init__(self, coefficients: int, channels: tuple[int, ...]):
        super().__init__()
        for i, (c_in, c_out) in enumerate(zip((coefficients, *channels), channels, strict=False)):
            self.add_module(f"conv1d_{i}", nn.Sequential(nn.Conv1d(c_in, c_out, 3), nn.BatchNorm1d(c_out), nn.ReLU(inplace=True), nn.MaxPool1d(2, 1)))

    def forward(self, x: Tensor, pair: int) -> Tensor:
        """[n, c, steps] through the first pair of blocks or the second, which stand on either side of the streams' meeting."""
        return self.conv1d_1(self.conv1d_0(x)) if pair == 0 else self.conv1d_3(self.conv1d_2(x))


class VideoNet(EfficientFace):
    """EfficientFace, and four blocks of convolution (3, padded) over the frames' vectors; one module, since the public keys have it so."""

    def __init__(self, face: EfficientFaceSize, channels: tuple[int, ...]):
        super().__init__(face)
        for i, (c_in, c_out) in enumerate(zip((face.last, *channels), channels, strict=False)):
            self.add_module(f"conv1d_{i}", nn.Sequential(nn.Conv1d(c_in, c_out, 3, padding=1), nn.BatchNorm1d(c_out), nn.ReLU(inplace=True)))

    def forward(self, x: Tensor, pair: int | None = None) -> Tensor:
        """Faces [n, 3, h, w] → [n, last]; with `pair`, frames' vectors [n, c, t] through that pair of blocks."""
        return self.features(x) if pair is None else AudioNet.forward(self, x, pair)


class Attention(nn.Module):
    """Multi-head attention: `query` [n, t, width] asks `memory` [n, s, c] → [n, t, width]."""

    def __init__(self, width: int, memory: int, heads: int, bias: bool = False):
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.k_proj = nn.Linear(memory, width, bias=bias)
        self.v_proj = nn.Linear(memory, width, bias=bias)
        self.out_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        q, k, v = (x.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (self.q_proj(query), self.k_proj(memory), self.v_proj(memory)))
        weights = (q * self.head_dim**-0.5 @ k.transpose(2, 3)).softmax(-1)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class AttentionBlock(nn.Module):
    """A transformer block whose attention replaces the query: only the MLP has a residual."""

    def __init__(self, width: int, memory: int, heads: int, mlp_ratio: int):
        super().__init__()
        self.norm1_q, self.norm1_k = nn.LayerNorm(width), nn.LayerNorm(memory)
        self.attn = Attention(width, memory, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_ratio * width)

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        x = self.attn(self.norm1_q(query), self.norm1_k(memory))
        return x + self.mlp(self.norm2(x))


class AVTCA(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        width = cfg.audio[3]
        if cfg.variant not in ("paper", "release") or cfg.video[3] != width:
            raise ValueError(f"{cfg}: `variant` must be `paper` or `release`, and both streams end in one width")
        self.audio_model = AudioNet(cfg.coefficients, cfg.audio)
        self.visual_model = VideoNet(cfg.face, cfg.video)
        self.av1 = AttentionBlock(cfg.audio[1], cfg.video[1], cfg.heads, cfg.mlp_ratio)
        self.va1 = AttentionBlock(cfg.video[1], cfg.audio[1], cfg.heads, cfg.mlp_ratio)
        self.is_release = cfg.variant == "release"
        if self.is_release:
            self.finalAttention = Attention(width, width, cfg.heads, bias=True)
        else:
            self.sav, self.sva = (Attention(width, width, cfg.heads) for _ in range(2))
            self.fa, self.fv = (Attention(width, width, cfg.heads, bias=True) for _ in range(2))
        self.dropout = nn.Dropout(cfg.dropout)
        self.classifier_1 = nn.Sequential(nn.Linear(2 * width, len(cfg.classes)))

    def encode_frames(self, video: Tensor) -> Tensor:
        """[n, t, 3, h, w] → [n, t, face.last]."""
        return self.visual_model(video.flatten(0, 1)).unflatten(0, video.shape[:2])

    def fuse(self, mfcc: Tensor, frame_features: Tensor) -> Tensor:
        """[n, coefficients, steps] and [n, t, face.last] → logits [n, classes]. Either may have n = 1."""
        audio = self.audio_model(mfcc, 0)
        video = self.visual_model(frame_features.transpose(1, 2), 0)
        n = max(len(audio), len(video))
        audio, video = audio.expand(n, -1, -1), video.expand(n, -1, -1)
        heard, seen = audio.transpose(1, 2), video.transpose(1, 2)
        audio = self.audio_model(audio + self.av1(heard, seen).transpose(1, 2), 1).transpose(1, 2)
        video = self.visual_model(video + self.va1(seen, heard).transpose(1, 2), 1).transpose(1, 2)
        if self.is_release:
            pooled = [self.finalAttention(x, x).mean(1) for x in (audio, video)]
        else:
            audio, video = audio + self.sav(audio, video), video + self.sva(video, audio)
            pooled = [_maximum(self.fa(audio, audio)), _maximum(self.fv(video, video))]
        return self.classifier_1(self.dropout(torch.cat(pooled, 1)))

    def forward(self, mfcc: Tensor, video: Tensor) -> Tensor:
        """[n, coefficients, steps] and [n, t, 3, h, w] → logits [n, classes]."""
        return self.fuse(mfcc, self.encode_frames(video))


def _maximum(x: Tensor) -> Tensor:
    """[n, t, c] → [n, c] as a pool, which INT8 passes through; OpenVINO 2026.4 gives wrong numbers for a ReduceMax that is then quantized."""
    return nn.functional.max_pool1d(x.transpose(1, 2), int(x.shape[1])).flatten(1)


def build(cfg: Config) -> AVTCA:
    return AVTCA(cfg)


def fold(module: AVTCA) -> AVTCA:
    return module


# --- checkpoints ---

# Heads of the release's unimodal networks, which its forward does not use.
_UNUSED = ("audio_model.classifier_1.", "visual_model.classifier_1.")


def normalize_keys(state: Mapping[str, Tensor], cfg: Config) -> dict[str, Tensor]:
    """The release's spelling → ours: its attentions' joint projections are split, and the heads that it does not use are dropped.

    A checkpoint in that spelling was trained on MFCCs as they are, and on BGR frames where `channel_order` says so. Its first
    convolutions are rewritten for what our preprocessing gives, which is exact; one in our spelling stays as it is.

    Raises:
        CheckpointError: a joint projection that cannot be split, or two spellings of one weight.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith(_UNUSED):
            continue
        for new, part in _split(key, value):
            if new in renamed:
                raise CheckpointError(f"`{new}` is there twice, once as `{key}`", "keep one spelling of the attention in the checkpoint")
            renamed[new] = part
    is_public = any(".attn.kv." in key or "in_proj_" in key for key in state)
    return _for_our_inputs(renamed, cfg) if is_public else renamed


def _split(key: str, value: Tensor) -> list[tuple[str, Tensor]]:
    """(our key, tensor) of what one tensor of the release holds."""
    for theirs, ours in ((".attn.q.", ".attn.q_proj."), (".attn.proj.", ".attn.out_proj.")):
        if theirs in key:
            return [(key.replace(theirs, ours), value)]
    for theirs, letters in ((".attn.kv.", "kv"), ("finalAttention.in_proj_", "qkv")):
        if theirs in key:
            if value.shape[0] % len(letters):
                raise CheckpointError(f"`{key}` is {list(value.shape)}, which {len(letters)} projections of one width cannot share")
            stem = theirs.replace(".kv.", ".{}_proj.").replace("in_proj_", "{}_proj.")
            return [(key.replace(theirs, stem.format(letter)), part.clone()) for letter, part in zip(letters, value.chunk(len(letters)), strict=True)]
    return [(key, value)]


def _for_our_inputs(state: dict[str, Tensor], cfg: Config) -> dict[str, Tensor]:
    """First convolutions of BGR pixels and plain MFCCs → of RGB pixels and (MFCC - mean) / std."""
    first, weight, bias = "visual_model.conv1.0.weight", "audio_model.conv1d_0.0.weight", "audio_model.conv1d_0.0.bias"
    if cfg.channel_order == "bgr" and first in state:
        state[first] = state[first].flip(1)
    if cfg.mfcc_mean and weight in state and bias in state:
        # The convolution is unpadded, so the means add one number to each of its outputs.
        mean, std = (torch.tensor(x, dtype=torch.float64)[:, None] for x in (cfg.mfcc_mean, cfg.mfcc_std))
        plain = state[weight].double()
        state[bias] = (state[bias].double() + (plain * mean).sum((1, 2))).to(state[bias].dtype)
        state[weight] = (plain * std).to(state[weight].dtype)
    return state


# --- engines ---


class Face(nn.Module):
    def __init__(self, model: AVTCA):
        super().__init__()
        self.visual_model = model.visual_model

    def forward(self, frame: Tensor) -> tuple[Tensor]:
        return (self.visual_model(frame),)


class Head(nn.Module):
    def __init__(self, model: AVTCA):
        super().__init__()
        self.is_release = model.is_release
        for name, child in model.named_children():
            self.add_module(name, child)

    def forward(self, mfcc: Tensor, frame_features: Tensor) -> tuple[Tensor]:
        return (AVTCA.fuse(self, mfcc, frame_features),)


def engines(module: AVTCA, cfg: Config) -> list[Engine]:
    """One frame's vector, and everything else. Widths come from the module, since it may be pruned."""
    width = module.visual_model.conv5[0].out_channels
    feeds = {"mfcc": (1, cfg.coefficients, cfg.steps), "frame_features": (1, cfg.frames, width)}
    return [
        Engine("face", Face(module), {"frame": (1, 3, cfg.face.image, cfg.face.image)}, {"frame_feature": (1, width)}),
        Engine("head", Head(module), feeds, {OUTPUT: (1, len(cfg.classes))}),
    ]


def flow(cfg: Config) -> dict:
    """How the engines make one window's answer, and what the host does around them."""
    window_s = cfg.samples / cfg.sample_rate_hz
    return {
        "inputs": {
            "video": {"shape": [cfg.frames, 3, cfg.face.image, cfg.face.image], "dtype": "float32"},
            "mfcc": {"shape": [cfg.coefficients, cfg.steps], "dtype": "float32"},
        },
        "steps": [
            {"engine": "face", "each": {"frame": "video"}, "stack": {"frame_feature": "frame_features"}},
            {"engine": "head", "feed": {"mfcc": "mfcc", "frame_features": "frame_features"}, "give": {OUTPUT: OUTPUT}},
        ],
        "outputs": [OUTPUT],
        "primary": OUTPUT,
        "task": "classes",
        "classes": list(cfg.classes),
        "window_s": window_s,
        # A live system takes one frame per hop and slides the window by it; the head sees the whole window anew.
        "rates_hz": {name: cfg.frames / window_s for name in ("face", "head")},
        "host_steps": [
            {"step": "preprocess", "spec": "preprocess.json"},
            {"step": "keep", "tensor": "frame_feature", "count": cfg.frames - 1, "why": "sliding window: only the new frame is encoded"},
        ],
    }


def io_spec(cfg: Config) -> dict:
    """Units and meaning of what goes in and comes out; shapes are the engines'."""
    unit = "(MFCC − mean) / std, by coefficient" if cfg.mfcc_mean else "MFCC"
    return {
        "inputs": {
            "video": {"unit": "pixel 0..255 / 255", "axes": ["frame", "colour", "height", "width"]},
            "mfcc": {"unit": unit, "axes": ["coefficient", "step"], "sample_rate_hz": cfg.sample_rate_hz},
        },
        "outputs": {OUTPUT: {"unit": "logit", "axes": ["class"], "meaning": ", ".join(cfg.classes)}},
    }


def preprocess_spec(cfg: Config) -> dict:
    mfcc = {
        "kind": "mfcc", "per": "clip", "samples": cfg.samples, "fit": "center",
        "n_mfcc": cfg.coefficients, "n_mels": 128, "n_fft": N_FFT, "hop_length": HOP, "win_length": N_FFT, "window": "hann",
        "center": True, "pad_mode": "constant", "f_min": 0.0, "f_max": cfg.sample_rate_hz / 2,
    }  # fmt: skip
    if cfg.mfcc_mean:
        mfcc |= {"shift": [-mean for mean in cfg.mfcc_mean], "scale": list(cfg.mfcc_std)}
    window = {"window_frames": cfg.window_frames} if cfg.window_frames else {}
    return {
        "video": {
            "clips": 1, "frames_per_clip": cfg.frames, "height": cfg.face.image, "width": cfg.face.image, "color": "RGB", "layout": "TCHW",
            "resize": "bilinear_half_pixel", "sampling": "floor_offset", "offset_divisor": 30, **window,
            "mean": [0.0, 0.0, 0.0], "std": [255.0, 255.0, 255.0],
        },
        "audio": {"sample_rate_hz": cfg.sample_rate_hz, "scale": 32768.0, "features": {"mfcc": mfcc}},
    }  # fmt: skip


# --- training ---


def train_forward(module: AVTCA, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{"mfcc": [n, coefficients, steps], "video": [n, t, 3, h, w] or "frame_features": [n, t, width]} → {"emotion": [n, classes]}.

    A modality given with n = 1 is shared by all samples: a silenced one need not be encoded n times.
    """
    batch = encode(module, batch)
    return {OUTPUT: module.fuse(batch["mfcc"], batch["frame_features"])}


def encode(module: AVTCA, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch with its frames as EfficientFace's vectors, `frame_features` [n, t, width]; an encoded one as it is."""
    rest = {name: value for name, value in batch.items() if name != "video"}
    return rest | ({"frame_features": module.encode_frames(batch["video"])} if "video" in batch else {})


def loss(outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
    """Eq. 1: cross-entropy."""
    return losses.cross_entropy(outputs[OUTPUT], labels[OUTPUT])


# Share of a batch's samples that hear nothing or see nothing: the release trains on copies of the batch with one modality noise.
MODALITY_DROPOUT = 0.1


def augment(batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Mirror, shift and relight each sample's frames alike, shift its MFCCs in time, and now and then silence one of the two."""
    out = dict(batch)
    n = max(len(value) for value in out.values())

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    drop = uniform(0, 1)
    if "video" in out and len(out["video"]) == n:
        mirror, bright = uniform(0, 1) < 0.5, uniform(0.8, 1.2) * (drop >= MODALITY_DROPOUT)
        reach = out["video"].shape[-1] // 16
        shifts = torch.stack([uniform(-reach, reach), uniform(-reach, reach)], 1).round().long().tolist()
        moved = [(x.flip(-1) if flip else x).roll(shift, (-2, -1)) for x, flip, shift in zip(out["video"], mirror, shifts, strict=True)]
        out["video"] = torch.stack(moved) * bright[:, None, None, None, None]
    if "mfcc" in out and len(out["mfcc"]) == n:
        reach = out["mfcc"].shape[-1] // 16
        shifts = uniform(-reach, reach).round().long().tolist()
        moved = torch.stack([x.roll(shift, -1) for x, shift in zip(out["mfcc"], shifts, strict=True)])
        out["mfcc"] = moved * (drop <= 1 - MODALITY_DROPOUT)[:, None, None]
    return out


class Tower(nn.Module):
    """One stream alone, pooled over time and classified, as the release's unimodal networks are."""

    def __init__(self, model: AVTCA, source: str):
        super().__init__()
        self.source = source
        self.net = model.visual_model if source == "video" else model.audio_model
        self.fc = nn.Linear(self.net.conv1d_3[0].out_channels, model.classifier_1[0].out_features)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = batch[self.source]
        if self.source == "video":
            x = self.net(x.flatten(0, 1)).unflatten(0, x.shape[:2]).transpose(1, 2)
        return {OUTPUT: self.fc(self.net(self.net(x, 0), 1).mean(2))}


def towers(module: AVTCA) -> dict[str, Tower]:
    """What may be trained alone before the whole: the encoders, which then stand in `module` as trained."""
    return {"video": Tower(module, "video"), "audio": Tower(module, "mfcc")}


def for_training(module: AVTCA) -> AVTCA:
    return module


# --- pruning ---

_NORMED = "adds to a stream that a LayerNorm reads, whose statistics see every channel"
# What prune refuses to touch: {layer: why}.
UNPRUNABLE = {
    **{f"visual_model.{layer}": why for layer, why in efficientface.UNPRUNABLE.items()},
    **{f"{model}.conv1d_1.0": _NORMED for model in ("audio_model", "visual_model")},
    **{f"{block}.{layer}": _NORMED for block in ("av1", "va1") for layer in ("attn.out_proj", "mlp.fc2")},
    "classifier_1.0": "is an output",
}


def prune_groups(module: AVTCA, cfg: Config) -> list[Group]:
    """What can be removed, in the order of its layers. Widths come from the module, since it may be pruned."""
    blocks = ("av1", "va1")
    attentions = [f"{block}.attn" for block in blocks] + (["finalAttention"] if module.is_release else ["sav", "sva", "fa", "fv"])
    return [
        *efficientface.prune_groups(module.visual_model, "visual_model.", (Slice("visual_model.conv1d_0.0", "weight", 1, "in"),)),
        *(_inner_group(module, f"{model}.conv1d_{i}.0", f"{model}.conv1d_{i + 1}.0") for model in ("visual_model", "audio_model") for i in (0, 2)),
        *(_ffn_group(module, f"{block}.mlp") for block in blocks),
        *(_heads_group(module, path) for path in attentions),
        *(_release_ends(module) if module.is_release else _paper_ends(module)),
    ]


def _inner_group(module: AVTCA, conv: str, reader: str) -> Group:
    return one_axis(conv, "channels", module.get_submodule(conv).out_channels, [*_conv_bn(conv), Slice(reader, "weight", 1, "in")])


def _conv_bn(conv: str) -> list[Slice]:
    """What a convolution with a bias and the batch norm after it make."""
    made = [Slice(conv, name, 0, "out") for name in ("weight", "bias")]
    return made + [Slice(f"{conv.removesuffix('.0')}.1", name, 0, "out") for name in ("weight", "bias", "running_mean", "running_var")]


def _ffn_group(module: AVTCA, mlp: str) -> Group:
    made = [Slice(f"{mlp}.fc1", name, 0, "out") for name in ("weight", "bias")]
    return one_axis(mlp, "ffn_units", module.get_submodule(mlp).fc1.out_features, [*made, Slice(f"{mlp}.fc2", "weight", 1, "in")])


def _heads_group(module: AVTCA, path: str) -> Group:
    attention = module.get_submodule(path)
    made = [
        Slice(f"{path}.{p}_proj", name, 0, "out", width=attention.head_dim) for p in "qkv" for name, _ in getattr(attention, f"{p}_proj").named_parameters()
    ]
    read = Slice(f"{path}.out_proj", "weight", 1, "in", width=attention.head_dim)
    return one_axis(path, "heads", attention.num_heads, [*made, read], step=1, heads=(path,))


def _asks(path: str, letters: str = "qkv") -> list[Slice]:
    """An attention's projections as readers of a stream."""
    return [Slice(f"{path}.{p}_proj", "weight", 1, "in") for p in letters]


def _answer_group(module: AVTCA, path: str, starts: tuple[int, ...]) -> Group:
    """What the last attention gives, pooled and classified: its columns begin at `starts`."""
    made = [Slice(f"{path}.out_proj", name, 0, "out") for name in ("weight", "bias")]
    read = Slice("classifier_1.0", "weight", 1, "in", starts=starts)
    return one_axis(f"{path}.out_proj", "channels", module.get_submodule(path).out_proj.out_features, [*made, read])


def _release_ends(module: AVTCA) -> list[Group]:
    """One attention reads both streams and answers for both: the streams lose the same channels."""
    audio, video = "audio_model.conv1d_3.0", "visual_model.conv1d_3.0"
    width = module.get_submodule(audio).out_channels
    stream = one_axis(audio, "channels", width, [*_conv_bn(audio), *_conv_bn(video), *_asks("finalAttention")])
    return [stream, _answer_group(module, "finalAttention", (0, module.classifier_1[0].in_features // 2))]


def _paper_ends(module: AVTCA) -> list[Group]:
    """Each stream is what its convolution makes and its question to the other one adds; that question, the other's answer and its own last attention read it."""
    groups = []
    answered = module.fa.out_proj.out_features
    for net, own, other, last, start in (("audio_model", "sav", "sva", "fa", 0), ("visual_model", "sva", "sav", "fv", answered)):
        conv = f"{net}.conv1d_3.0"
        made = [*_conv_bn(conv), *(Slice(f"{own}.out_proj", name, 0, "out") for name in ("weight", "bias"))]
        read = [*_asks(own, "q"), *_asks(other, "kv"), *_asks(last)]
        groups += [one_axis(conv, "channels", module.get_submodule(conv).out_channels, [*made, *read]), _answer_group(module, last, (start,))]
    return groups

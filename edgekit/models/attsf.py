"""ATTSF-Net: the emotion of an utterance from 15 faces and the MFCCs of its sound, with text if there is any.

EfficientFace per frame → LSTM; a 1-D CNN over MFCCs → LSTM; both are brought to one length by a convolution whose channels are
time steps. Cross-modal blocks (CMB) let the two streams ask each other, shared-attention blocks (SAB) let a learnt token ask both,
encoders (AVAM) keep what each modality says alone, and one of three rules fuses the pooled streams with that. Two engines: `face`
sees one frame, so that a live system keeps its vectors while the window slides, and `head` does the rest. For clips that are there
as a whole, `face` may take all frames in one run, with the same weights.

Source: Zhang et al. 2025 (ATTSF-Net), IEEE T-AFFC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from .. import losses
from ..formats import Engine
from .blocks import efficientface
from .blocks.crossmodal import CrossModalBlock, Encoder, FoldedSharedAttentionBlock, SharedAttentionBlock, fold_shared_attention, split_in_proj
from .blocks.efficientface import EfficientFace, EfficientFaceSize
from .groups import Group, Slice, one_axis

SAMPLE_RATE_HZ = 16_000
HOP = 480
RAVDESS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
IEMOCAP = ("neutral", "happy", "sad", "angry")
FUSIONS = ("net", "l2", "gat")
SIMILARITIES = ("gaussian", "softmax")
# Eq. 18: the weights of the heads on audio and video alone, and of the similarity of the token with both streams.
LAMBDA_A, LAMBDA_V, LAMBDA_SIMILARITY = 0.5, 0.5, 0.3


@dataclass(frozen=True)
class Config:
    """Sizes of one ATTSF-Net. The defaults are the paper's for RAVDESS.

    Attributes:
        samples: of the sound; a clip is cut or padded to it.
        coefficients: MFCCs of a frame.
        mfcc_shift, mfcc_scale: of each coefficient, (x + shift) / scale. The paper's network takes them as they are, which
            leaves all but the first, hundreds large, few steps of an 8-bit scale; `small` has those of synthetic speech.
        video_window: frames that are looked at, 0 for all of a clip.
        at_once: whether one run of `face` takes all frames of a clip; if not, it takes one.
        audio: channels of the four convolutions over time.
        d, l: features and positions of every stream once the two have been made alike.
        layers: cross-modal blocks of each stream, and shared-attention blocks.
        text: positions of a text's features, 0 for none; they join at the classifier.
        classes: empty for a model that gives one number, `score`.
        sab_residual: whether the token is added to what it asked for; the paper's Eq. 11 does not.
        similarity: what the training loss compares: "gaussian" (Eq. 14-17) or "softmax" distributions.
    """

    frames: int = 15
    face: EfficientFaceSize = efficientface.SIZES["default"]
    samples: int = 57_600
    coefficients: int = 12
    mfcc_shift: tuple[float, ...] = (0.0,) * 12
    mfcc_scale: tuple[float, ...] = (1.0,) * 12
    video_window: int = 108
    at_once: bool = False
    audio: tuple[int, int, int, int] = (64, 128, 256, 128)
    d: int = 128
    l: int = 128  # noqa: E741  the paper's name
    layers: int = 6
    heads: int = 4
    ffn: int = 256
    avam_layers: int = 2
    avam_ffn: int = 256
    text: int = 0
    text_width: int = 768
    classes: tuple[str, ...] = RAVDESS
    fusion: str = "net"
    sab_residual: bool = False
    similarity: str = "gaussian"
    dropout: float = 0.4

    def __post_init__(self):
        if self.fusion not in FUSIONS or self.similarity not in SIMILARITIES:
            raise ValueError(f"fusion must be one of {FUSIONS}, similarity one of {SIMILARITIES}, got {self.fusion!r}, {self.similarity!r}")

    @property
    def steps(self) -> int:
        """MFCC frames: one at every hop, centred, first and last included."""
        return 1 + self.samples // HOP

    @property
    def output(self) -> str:
        return "emotion" if self.classes else "score"

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping) -> Config:
        tuples = {k: tuple(fields[k]) for k in ("audio", "classes", "mfcc_shift", "mfcc_scale")}
        return cls(**{**fields, **tuples, "face": EfficientFaceSize.from_json(fields["face"])})


_IEMOCAP = Config(video_window=0, l=64, layers=5, avam_layers=1, avam_ffn=128, classes=IEMOCAP)
_SMALL = Config(
    frames=8, face=EfficientFaceSize(repeats=(3, 4, 2), channels=(24, 96, 144, 192, 192), image=64), samples=48_000, video_window=0,
    mfcc_shift=(230.0, -100.0, 15.0, -20.0, 8.0, -6.0, 6.0, -3.0, 5.0, -5.0, 1.0, -2.0),
    mfcc_scale=(72.0, 41.0, 27.0, 21.0, 16.0, 14.0, 11.0, 9.0, 8.0, 8.0, 7.0, 6.0),
    audio=(32, 48, 64, 48), d=48, l=32, layers=2, ffn=64, avam_layers=1, avam_ffn=64, dropout=0.1,
)  # fmt: skip

CONFIGS = {
    "default": Config(),
    "default_at_once": Config(at_once=True),
    "ravdess_l2": Config(fusion="l2"),
    "ravdess_gat": Config(fusion="gat"),
    "iemocap": _IEMOCAP,
    "iemocap_text": replace(_IEMOCAP, text=50),
    "mosi": replace(_IEMOCAP, text=50, classes=()),
    "small": _SMALL,
    "small_at_once": replace(_SMALL, at_once=True),
    "small_l2": replace(_SMALL, fusion="l2"),
    "small_gat": replace(_SMALL, fusion="gat"),
    "tiny": Config(
        frames=4, face=efficientface.SIZES["tiny"], samples=39 * HOP, video_window=0, coefficients=6, mfcc_shift=(0.0,) * 6, mfcc_scale=(1.0,) * 6,
        audio=(8, 16, 16, 16), d=32, l=16, layers=2, ffn=32, avam_layers=1, avam_ffn=32,
    ),
}  # fmt: skip


class AudioNet(nn.Module):
    """Four of convolution (3, unpadded), batch norm, ReLU, maximum of two neighbours: each shortens by three steps."""

    def __init__(self, coefficients: int, channels: tuple[int, ...]):
        super().__init__()
        inputs = (coefficients, *channels[:-1])
        self.cnn = nn.Sequential(*(
            nn.Sequential(nn.Conv1d(a, b, 3), nn.BatchNorm1d(b), nn.ReLU(), nn.MaxPool1d(2, 1)) for a, b in zip(inputs, channels, strict=True)
        ))  # fmt: skip

    def forward(self, mfcc: Tensor) -> Tensor:
        """[n, coefficients, t] → [n, t - 12, channels]."""
        return self.cnn(mfcc).transpose(1, 2)


class ATTSF(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        outputs = len(cfg.classes) or 1
        d, audio_steps = cfg.d, cfg.steps - 3 * len(cfg.audio)
        self.fusion, self.output, self.similarity = cfg.fusion, cfg.output, cfg.similarity
        self.is_score, self.with_text = not cfg.classes, cfg.text > 0
        self.audio = AudioNet(cfg.coefficients, cfg.audio)
        self.video = EfficientFace(cfg.face)
        self.lstm_a = nn.LSTM(cfg.audio[-1], d, batch_first=True)
        self.lstm_v = nn.LSTM(cfg.face.last, d, batch_first=True)
        self.len_a = nn.Conv1d(audio_steps, cfg.l, 1)
        self.len_v = nn.Conv1d(cfg.frames, cfg.l, 1)
        self.pos_a = nn.Parameter(torch.zeros(1, cfg.l, d))
        self.pos_v = nn.Parameter(torch.zeros(1, cfg.l, d))
        self.token = nn.Parameter(torch.randn(1, 1, d) * 0.02)
        self.cmb_a = nn.ModuleList(CrossModalBlock(d, cfg.heads, cfg.ffn, cfg.dropout) for _ in range(cfg.layers))
        self.cmb_v = nn.ModuleList(CrossModalBlock(d, cfg.heads, cfg.ffn, cfg.dropout) for _ in range(cfg.layers))
        self.sab = nn.ModuleList(SharedAttentionBlock(d, cfg.heads, cfg.ffn, cfg.dropout, cfg.sab_residual) for _ in range(cfg.layers))
        self.avam_a = Encoder(d, cfg.heads, cfg.avam_ffn, cfg.avam_layers, cfg.dropout)
        self.avam_v = Encoder(d, cfg.heads, cfg.avam_ffn, cfg.avam_layers, cfg.dropout)
        if cfg.fusion == "gat":
            self.gate_a, self.gate_v = nn.Linear(2 * d, 2), nn.Linear(2 * d, 2)
        if self.with_text:
            self.lstm_t = nn.LSTM(cfg.text_width, d, batch_first=True)
            self.len_t = nn.Conv1d(cfg.text, cfg.l, 1)
            self.avam_t = Encoder(d, cfg.heads, cfg.avam_ffn, 1, cfg.dropout)
        self.head = nn.Linear((3 + self.with_text) * d, outputs)
        self.aux_a = nn.Linear(d, outputs)
        self.aux_v = nn.Linear(d, outputs)

    def encode_frames(self, video: Tensor) -> Tensor:
        """[n, t, 3, h, w] → [n, t, face.last]."""
        return self.video(video.flatten(0, 1)).unflatten(0, video.shape[:2])

    def streams(self, mfcc: Tensor, frame_features: Tensor) -> tuple[Tensor, Tensor]:
        """Both modalities as [n, l, d]: positions are what len_* makes of the time steps."""
        audio = self.len_a(self.lstm_a(self.audio(mfcc))[0]) + self.pos_a
        return audio, self.len_v(self.lstm_v(frame_features)[0]) + self.pos_v

    def fuse(self, audio: Tensor, video: Tensor, text: Tensor | None = None, for_loss: bool = False) -> dict[str, Tensor]:
        """Streams [n, l, d] and a text's features [n, steps, text_width] → {"emotion": [n, classes]} or {"score": [n]}.

        Args:
            for_loss: add what only the training loss reads: the heads on each modality alone, and `similarity` [n].
        """
        own_a, own_v = self.avam_a(audio), self.avam_v(video)
        token = self.token if hasattr(self, "token") else None
        for cmb_a, cmb_v, sab in zip(self.cmb_a, self.cmb_v, self.sab, strict=True):
            audio, video = cmb_a(audio, video), cmb_v(video, audio)
            token = sab(token, video, audio)
        pooled_a, pooled_v, token = audio.mean(1), video.mean(1), token.squeeze(1)
        parts = [self._combine("a", pooled_a, own_a), self._combine("v", pooled_v, own_v), token]
        if self.with_text:
            parts.append(self.avam_t(self.len_t(self.lstm_t(text)[0])))
        out = {self.output: self._answer(self.head, torch.cat(parts, 1))}
        if for_loss:
            distance = losses.gaussian_divergence if self.similarity == "gaussian" else losses.softmax_divergence
            out[f"{self.output}_a"], out[f"{self.output}_v"] = self._answer(self.aux_a, own_a), self._answer(self.aux_v, own_v)
            out["similarity"] = 0.5 * (distance(token, pooled_a) + distance(token, pooled_v))
        return out

    def _answer(self, head: nn.Linear, x: Tensor) -> Tensor:
        return head(x).squeeze(-1) if self.is_score else head(x)

    def _combine(self, modality: str, mixed: Tensor, own: Tensor) -> Tensor:
        """What the blocks made of a modality, with what it says alone; [n, d] each (Eq. 19, 20-21, and the gate)."""
        if self.fusion == "net":
            return mixed + own
        if self.fusion == "l2":
            # clamp_min, since exporters drop a tiny summand
            long, short = (mixed * mixed).sum(1, keepdim=True).sqrt(), (own * own).sum(1, keepdim=True).sqrt()
            return (long * mixed + short * own) / (long + short).clamp_min(1e-6)
        gate = self.gate_a if modality == "a" else self.gate_v
        weights = gate(torch.cat((own, mixed), 1)).softmax(1)
        return weights[:, :1] * own + weights[:, 1:] * mixed

    def forward(self, mfcc: Tensor, video: Tensor, text: Tensor | None = None) -> dict[str, Tensor]:
        """mfcc [n, coefficients, steps], video [n, t, 3, h, w], text [n, steps, width] → the answer, see `fuse`."""
        return self.fuse(*self.streams(mfcc, self.encode_frames(video)), text)


def build(cfg: Config) -> ATTSF:
    return ATTSF(cfg)


# --- the inference form ---


def fold(module: ATTSF) -> ATTSF:
    """Fold what one token and constant summands make superfluous, in place; outputs stay, see `_folded`."""
    if module.len_a.bias is None:
        return module
    state = _folded(module.state_dict(), module.sab[0].residual)
    for conv in (module.len_a, module.len_v):
        conv.bias = None
    for i, block in enumerate(module.sab):
        width, ffn = block.ffn[2].out_features, block.ffn[0].out_features
        with torch.device(module.pos_a.device):
            module.sab[i] = FoldedSharedAttentionBlock(width, ffn, block.drop.p, block.residual, is_first=i == 0).train(module.training)
    if "token" not in state:
        del module.token
    module.load_state_dict(state)
    return module


def _folded(state: Mapping[str, Tensor], with_token: bool) -> dict[str, Tensor]:
    """Weights as built, or as folded already, in the folded form.

    The convolutions over time steps give one bias to each position, which moves into the position's own vector. For the
    shared-attention blocks see `FoldedSharedAttentionBlock`; the learnt token itself is read only where it is a summand.
    """
    folded = dict(state)
    for m in "av":
        if f"len_{m}.bias" in folded:
            folded[f"pos_{m}"] = folded[f"pos_{m}"] + folded.pop(f"len_{m}.bias")[:, None]
    for prefix in sorted({key[: key.index(".xv.q.weight") + 1] for key in state if key.startswith("sab.") and key.endswith(".xv.q.weight")}):
        folded = fold_shared_attention(folded, prefix, folded["token"] if prefix == "sab.0." else None)
    if not with_token:
        folded.pop("token", None)
    return folded


def normalize_keys(state: Mapping[str, Tensor], cfg: Config) -> dict[str, Tensor]:
    """Accept a checkpoint as trained or folded, nn.MultiheadAttention's spelling, and the public EfficientFace's names, which have no prefix."""
    renamed = {f"video.{key}" if key.startswith(FACE_KEYS) else key: value for key, value in state.items()}
    # EfficientFace's own classes are not part of ATTSF-Net.
    return _folded(split_in_proj({k: v for k, v in renamed.items() if not k.startswith("video.fc.")}), cfg.sab_residual)


FACE_KEYS = ("conv1.", "stage2.", "stage3.", "stage4.", "local.", "modulator.", "conv5.", "fc.")
OPTIONAL_KEYS: tuple[str, ...] = ()


# --- engines ---


class Face(nn.Module):
    def __init__(self, model: ATTSF):
        super().__init__()
        self.video = model.video

    def forward(self, frame: Tensor) -> tuple[Tensor]:
        return (self.video(frame),)


class Faces(nn.Module):
    """All frames of a clip: [1, t, 3, h, w] → [1, t, width]."""

    def __init__(self, model: ATTSF):
        super().__init__()
        self.video = model.video

    def forward(self, frames: Tensor) -> tuple[Tensor]:
        return (self.video(frames.flatten(0, 1)).unflatten(0, (1, -1)),)


class Head(nn.Module):
    """Everything but EfficientFace and the heads that only the training loss reads, under the model's own paths."""

    streams, fuse, _combine, _answer = ATTSF.streams, ATTSF.fuse, ATTSF._combine, ATTSF._answer

    def __init__(self, model: ATTSF):
        super().__init__()
        self.fusion, self.output, self.is_score, self.with_text = model.fusion, model.output, model.is_score, model.with_text
        for name, part in model.named_children():
            if name not in ("video", "aux_a", "aux_v"):
                setattr(self, name, part)
        for name, parameter in model.named_parameters(recurse=False):
            setattr(self, name, parameter)

    def forward(self, mfcc: Tensor, frame_features: Tensor, text: Tensor | None = None) -> tuple[Tensor]:
        return tuple(self.fuse(*self.streams(mfcc, frame_features), text).values())


def engines(module: ATTSF, cfg: Config) -> list[Engine]:
    """Vectors of one frame or of all, and everything else. Widths come from the module, since it may be pruned."""
    width, picture = module.lstm_v.input_size, (3, cfg.face.image, cfg.face.image)
    feeds = {"mfcc": (1, cfg.coefficients, cfg.steps), "frame_features": (1, cfg.frames, width)}
    if cfg.text:
        feeds["text"] = (1, cfg.text, cfg.text_width)
    one = Engine("face", Face(module), {"frame": (1, *picture)}, {"frame_feature": (1, width)})
    every = Engine("face", Faces(module), {"frames": (1, cfg.frames, *picture)}, {"frame_features": (1, cfg.frames, width)})
    return [
        every if cfg.at_once else one,
        Engine("head", Head(module), feeds, {cfg.output: (1, len(cfg.classes)) if cfg.classes else (1,)}),
    ]


def flow(cfg: Config) -> dict:
    """How the engines make one window's answer, and what the host does around them."""
    window_s = cfg.samples / SAMPLE_RATE_HZ
    size = cfg.face.image
    inputs = {
        "video": {"shape": [cfg.frames, 3, size, size], "dtype": "float32"},
        "mfcc": {"shape": [cfg.coefficients, cfg.steps], "dtype": "float32"},
    }
    if cfg.text:
        inputs["text"] = {"shape": [cfg.text, cfg.text_width], "dtype": "float32"}
    feed = {name: name for name in inputs if name != "video"}
    one = {"engine": "face", "each": {"frame": "video"}, "stack": {"frame_feature": "frame_features"}}
    every = {"engine": "face", "feed": {"frames": "video"}, "give": {"frame_features": "frame_features"}}
    kept = {"step": "keep", "tensor": "frame_feature", "count": cfg.frames - 1, "why": "sliding window: only the new frame is encoded"}
    return {
        "inputs": inputs,
        "steps": [
            every if cfg.at_once else one,
            {"engine": "head", "feed": {**feed, "frame_features": "frame_features"}, "give": {cfg.output: cfg.output}},
        ],
        "outputs": [cfg.output],
        "primary": cfg.output,
        **({"task": "classes", "classes": list(cfg.classes)} if cfg.classes else {"task": "value"}),
        "window_s": window_s,
        # A live system takes one frame per hop and slides the window by it; the head sees the whole window anew.
        "rates_hz": {name: (1 if cfg.at_once else cfg.frames) / window_s for name in ("face", "head")},
        "host_steps": [{"step": "preprocess", "spec": "preprocess.json"}, *([] if cfg.at_once else [kept])],
    }


def io_spec(cfg: Config) -> dict:
    """Units and meaning of what goes in and comes out; shapes are the engines'."""
    inputs = {
        "video": {"unit": "pixel 0..255 / 255", "axes": ["frame", "colour", "height", "width"]},
        "mfcc": {"unit": "(coefficient + shift) / scale", "axes": ["coefficient", "step"], "sample_rate_hz": SAMPLE_RATE_HZ},
    }
    if cfg.text:
        inputs["text"] = {"unit": "BERT-base, last hidden state", "axes": ["token", "feature"]}
    if cfg.classes:
        return {"inputs": inputs, "outputs": {"emotion": {"unit": "logit", "axes": ["class"], "meaning": ", ".join(cfg.classes)}}}
    return {"inputs": inputs, "outputs": {"score": {"unit": "sentiment −3..3", "meaning": "negative to positive"}}}


def preprocess_spec(cfg: Config) -> dict:
    """preprocess.json. The MFCCs are librosa's, but for a Hamming window of 50 ms every 30 ms; faces are RGB in 0..1."""
    video = {
        "clips": 1,
        "frames_per_clip": cfg.frames,
        "height": cfg.face.image,
        "width": cfg.face.image,
        "color": "RGB",
        "layout": "TCHW",
        "resize": "bilinear_half_pixel",
        "sampling": "uniform_round_linspace",
        "mean": [0.0, 0.0, 0.0],
        "std": [255.0, 255.0, 255.0],
    }
    if cfg.video_window:
        # Of the first 3.6 s: each of 15 frames is the fourth of its stretch of 7.
        video |= {"sampling": "floor_offset", "offset_divisor": 30, "window_frames": cfg.video_window}
    mfcc = {
        "kind": "mfcc",
        "per": "clip",
        "samples": cfg.samples,
        "fit": "center",
        "n_fft": 1024,
        "win_length": 800,
        "window": "hamming",
        "hop_length": HOP,
        "center": True,
        "pad_mode": "constant",
        "n_mels": 128,
        "f_min": 0.0,
        "f_max": SAMPLE_RATE_HZ / 2,
        "n_mfcc": cfg.coefficients,
        "shift": list(cfg.mfcc_shift),
        "scale": list(cfg.mfcc_scale),
    }
    spec = {"video": video, "audio": {"sample_rate_hz": SAMPLE_RATE_HZ, "scale": 32768.0, "features": {"mfcc": mfcc}}}
    if cfg.text:
        spec["features"] = {"text": {"per": "clip", "rows": cfg.text, "dim": cfg.text_width, "mean": 0.0, "std": 1.0}}
    return spec


# --- training ---


def train_forward(module: ATTSF, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{"mfcc": [n, coefficients, steps], "video": [n, t, 3, h, w] or "frame_features", and "text"} → {"emotion": [n, classes]} or {"score": [n]}.

    While training also what `loss` reads besides: the heads on each modality alone, and the similarity. A modality given
    with n = 1 is shared by all samples: a silenced one need not be encoded n times.
    """
    batch = encode(module, batch)
    n = max(len(value) for value in batch.values())
    audio, video = module.streams(batch["mfcc"], batch["frame_features"])
    text = batch["text"].expand(n, -1, -1) if module.with_text else None
    return module.fuse(audio.expand(n, -1, -1), video.expand(n, -1, -1), text, for_loss=module.training)


def encode(module: ATTSF, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch with its frames as EfficientFace's vectors, `frame_features` [n, t, width]; an encoded one as it is."""
    rest = {name: value for name, value in batch.items() if name != "video"}
    return rest | ({"frame_features": module.encode_frames(batch["video"])} if "video" in batch else {})


def augment(batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Mirror, shift and relight each sample's video [n, t, 3, h, w]; shift its MFCCs [n, coefficients, steps] in time and its loudness, which is the first."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) * 2 - 1

    out = dict(batch)
    if "video" in out:
        video = out["video"].clone()
        reach = video.shape[-1] // 16
        for i, (mirror, down, right, light) in enumerate(uniform(len(video), 4).tolist()):
            picture = video[i].flip(-1) if mirror > 0 else video[i]
            video[i] = picture.roll((round(down * reach), round(right * reach)), (-2, -1)) * (1 + 0.2 * light)
        out["video"] = video
    if "mfcc" in out:
        mfcc = out["mfcc"]
        reach = mfcc.shape[-1] // 16
        out["mfcc"] = torch.stack([x.roll(round(shift * reach), -1) for x, shift in zip(mfcc, uniform(len(mfcc)).tolist(), strict=True)])
        out["mfcc"][:, 0] += 0.2 * mfcc[:, 0].std() * uniform(len(mfcc), 1)
    return out


def loss(outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
    """Eq. 18: cross-entropy (L1 of a score) of the main head and of those on one modality, and the similarity of the token with both streams."""
    name = "score" if "score" in outputs else "emotion"

    def distance(output: str) -> Tensor:
        if name == "score":
            return (outputs[output] - labels[name]).abs().mean()
        return losses.cross_entropy(outputs[output], labels[name])

    total = distance(name)
    for suffix, weight in (("a", LAMBDA_A), ("v", LAMBDA_V)):
        if f"{name}_{suffix}" in outputs:
            total = total + weight * distance(f"{name}_{suffix}")
    return total + LAMBDA_SIMILARITY * outputs["similarity"].mean() if "similarity" in outputs else total


class Tower(nn.Module):
    """One encoder with a linear head of its own, to be trained alone first, as the paper does with EfficientFace."""

    def __init__(self, encoder: nn.Module, width: int, source: str, like: ATTSF):
        super().__init__()
        self.encoder, self.source, self.output = encoder, source, like.output
        self.fc = nn.Linear(width, like.head.out_features)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        y = self.fc(self.features(batch[self.source]))
        return {self.output: y.squeeze(-1) if self.output == "score" else y}

    def features(self, x: Tensor) -> Tensor:
        """[n, width]"""
        if self.source == "mfcc":
            return self.encoder(x).mean(1)
        # While training, one frame of each sample, drawn anew every time: a fraction of the work, more variety.
        n, t = x.shape[:2]
        if self.training:
            return self.encoder(x[torch.arange(n), torch.randint(t, (n,))])
        return self.encoder(x.flatten(0, 1)).unflatten(0, (n, t)).mean(1)


class AudioTower(nn.Module):
    """The audio network up to its LSTM."""

    def __init__(self, model: ATTSF):
        super().__init__()
        self.audio, self.lstm_a = model.audio, model.lstm_a

    def forward(self, mfcc: Tensor) -> Tensor:
        return self.lstm_a(self.audio(mfcc))[0]


def towers(module: ATTSF) -> dict[str, Tower]:
    """What may be trained alone before the whole: the encoders, which then stand in `module` as trained."""
    return {
        "video": Tower(module.video, module.lstm_v.input_size, "video", module),
        "audio": Tower(AudioTower(module), module.lstm_a.hidden_size, "mfcc", module),
    }


def for_training(module: ATTSF) -> ATTSF:
    return module


# --- pruning ---

_STREAM = "d, the width of both streams, which every block adds to"
# What prune refuses to touch: {layer: why}.
UNPRUNABLE = {
    **{f"video.{layer}": why for layer, why in efficientface.UNPRUNABLE.items()},
    **{f"lstm_{m}": f"makes {_STREAM}" for m in "avt"},
    **{f"len_{m}": "makes l, the positions of both streams" for m in "avt"},
    **{name: f"its values and outputs are {_STREAM}; FFN units, heads, and what queries and keys compare can go" for name in ("cmb_a", "cmb_v", "avam_a", "avam_v", "avam_t")},
    "sab": f"its outputs are {_STREAM}; FFN units can go",
    "gate_a": "weighs two vectors",
    "gate_v": "weighs two vectors",
    "head": "is an output",
    "aux_a": "is an output of training",
    "aux_v": "is an output of training",
}


def prune_groups(module: ATTSF, cfg: Config) -> list[Group]:
    """What can be removed from a folded ATTSF-Net, in the order of its layers. Widths come from the module, since it may be pruned."""
    groups = [*efficientface.prune_groups(module.video, "video.", (Slice("lstm_v", "weight_ih_l0", 1, "in"),)), *_audio_groups(module)]
    for name in ("cmb_a", "cmb_v", "sab"):
        for i, block in enumerate(getattr(module, name)):
            if name != "sab":
                groups += [_asking_group(f"{name}.{i}", block.q.out_features), _heads_group(f"{name}.{i}.mha", block.mha.num_heads, block.mha.head_dim)]
            groups.append(_ffn_group(f"{name}.{i}.ffn.0", f"{name}.{i}.ffn.2", block.ffn[0].out_features))
    for name in ("avam_a", "avam_v", *(["avam_t"] if module.with_text else [])):
        for i, layer in enumerate(getattr(module, name).layers):
            path = f"{name}.layers.{i}"
            groups.append(_heads_group(f"{path}.self_attn", layer.self_attn.num_heads, layer.self_attn.head_dim))
            groups.append(_ffn_group(f"{path}.linear1", f"{path}.linear2", layer.linear1.out_features))
    return groups


def _audio_groups(module: ATTSF) -> list[Group]:
    """The CNN's channels: each layer's are the next one's input; the last feed the LSTM."""
    groups = []
    for i, layer in enumerate(module.audio.cnn):
        path = f"audio.cnn.{i}"
        made = [Slice(f"{path}.0", name, 0, "out") for name in ("weight", "bias")]
        made += [Slice(f"{path}.1", name, 0, "out") for name in ("weight", "bias", "running_mean", "running_var")]
        is_last = i + 1 == len(module.audio.cnn)
        read = Slice("lstm_a", "weight_ih_l0", 1, "in") if is_last else Slice(f"audio.cnn.{i + 1}.0", "weight", 1, "in")
        groups.append(one_axis(f"{path}.0", "channels", layer[0].out_channels, [*made, read]))
    return groups


def _asking_group(path: str, inner: int) -> Group:
    """Features in which a query is compared with the keys; their number is free, since nothing else reads them."""
    slices = [Slice(f"{path}.{p}", name, 0, role) for p, role in (("q", "out"), ("k", "in")) for name in ("weight", "bias")]
    return one_axis(f"{path}.q", "channels", inner, slices)


def _heads_group(path: str, heads: int, head_dim: int) -> Group:
    made = [Slice(f"{path}.{p}_proj", name, 0, "out", width=head_dim) for p in "qkv" for name in ("weight", "bias")]
    return one_axis(path, "heads", heads, [*made, Slice(f"{path}.out_proj", "weight", 1, "in", width=head_dim)], step=1, heads=(path,))


def _ffn_group(first: str, second: str, units: int) -> Group:
    return one_axis(first, "ffn_units", units, [Slice(first, "weight", 0, "out"), Slice(first, "bias", 0, "out"), Slice(second, "weight", 1, "in")])

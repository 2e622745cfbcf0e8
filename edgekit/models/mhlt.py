"""MHLT: driver emotion (o), and its audio-only (a) and video-only (v) valence, from K video clips and a waveform.

3D-MobileNetV2 per clip → LSTM over clips; HuBERT → LSTM over frames; multi-head attention with
Q = video, K = V = audio; one linear head on the time mean of each of the three. Three engines,
because they run at different rates: the clip encoder once per new clip, the audio encoder once
per window, the head on both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..formats import Engine
from .blocks.hubert import HubertSize, build_hubert, fold_pos_conv, frames
from .blocks.mobilenet3d import ROWS_MOBILENETV2_3D, MobileNetV2_3D, Row
from .groups import Axis, Group, Slice, convolution_groups, one_axis

OUTPUTS = ("o", "a", "v")
SAMPLE_RATE_HZ = 16_000
# ActivityNet's mean colour on 0..255, the public backbone's default.
ACTIVITYNET_MEAN = (114.7748, 107.7354, 99.4750)


@dataclass(frozen=True)
class Config:
    """Sizes of one MHLT. The defaults are the paper's, where it gives them."""

    clips: int = 8
    frames: int = 16
    height: int = 112
    width: int = 112
    samples: int = 96_000
    stem: int = 32
    rows: tuple[Row, ...] = ROWS_MOBILENETV2_3D
    last: int = 1280
    hubert: HubertSize = field(default_factory=HubertSize)
    hidden: int = 256  # of both LSTMs, and the attention's embedding: the paper's Eq. 6 forces them equal
    heads: int = 8
    pixel_mean: tuple[float, float, float] = ACTIVITYNET_MEAN
    pixel_std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping) -> Config:
        rows = tuple((t, c, n, tuple(s)) for t, c, n, s in fields["rows"])
        tuples = {k: tuple(fields[k]) for k in ("pixel_mean", "pixel_std")}
        return cls(**{**fields, **tuples, "rows": rows, "hubert": HubertSize(**fields["hubert"])})


_SMALL_ROWS: tuple[Row, ...] = (
    (1, 8, 1, (1, 1, 1)),
    (6, 16, 2, (2, 2, 2)),
    (6, 24, 3, (2, 2, 2)),
    (6, 48, 4, (2, 2, 2)),
    (6, 72, 3, (1, 1, 1)),
    (6, 112, 3, (2, 2, 2)),
    (6, 224, 1, (1, 1, 1)),
)
_TINY_ROWS: tuple[Row, ...] = ((1, 8, 1, (1, 1, 1)), (2, 12, 2, (2, 2, 2)), (2, 16, 1, (2, 2, 2)))

CONFIGS = {
    "default": Config(),
    "small": Config(
        clips=4, frames=8, height=64, width=64, samples=48_000, stem=16, rows=_SMALL_ROWS,
        hubert=HubertSize(conv_dim=128, hidden=192, layers=4, heads=6, ffn=768),
        hidden=160, heads=5, pixel_std=(58.0, 58.0, 58.0),
    ),
    "tiny": Config(
        clips=2, frames=8, height=32, width=32, samples=8_000, stem=8, rows=_TINY_ROWS, last=32,
        hubert=HubertSize(conv_dim=32, hidden=48, layers=2, heads=4, ffn=96, pos_kernel=16, pos_groups=4),
        hidden=32, heads=4,
    ),
}  # fmt: skip


class MHLT(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.video = MobileNetV2_3D(cfg.stem, cfg.rows, cfg.last)
        self.audio = build_hubert(cfg.hubert)
        self.lstm_v = nn.LSTM(cfg.last, cfg.hidden, batch_first=True)
        self.lstm_a = nn.LSTM(cfg.hubert.hidden, cfg.hidden, batch_first=True)
        self.attn = nn.MultiheadAttention(cfg.hidden, cfg.heads, batch_first=True)
        self.fc_o = nn.Linear(cfg.hidden, 1)
        self.fc_a = nn.Linear(cfg.hidden, 1)
        self.fc_v = nn.Linear(cfg.hidden, 1)

    def encode_clips(self, video: Tensor) -> Tensor:
        """[n, k, 3, t, h, w] → [n, k, last]."""
        return self.video(video.flatten(0, 1)).unflatten(0, video.shape[:2])

    def encode_audio(self, wave: Tensor) -> Tensor:
        """[n, samples] → [n, frames, hubert.hidden]."""
        return self.audio(wave).last_hidden_state

    def fuse(self, clip_features: Tensor, audio_features: Tensor, with_weights: bool = False):
        """Features of both → {"o", "a", "v"} [n], and "attn" [n, k, frames] if `with_weights`."""
        h_v, _ = self.lstm_v(clip_features)
        h_a, _ = self.lstm_a(audio_features)
        fused, weights = self.attn(h_v, h_a, h_a, need_weights=with_weights)
        means = {"o": fused.mean(1), "a": h_a.mean(1), "v": h_v.mean(1)}
        out = {k: getattr(self, f"fc_{k}")(mean).squeeze(-1) for k, mean in means.items()}
        return {**out, "attn": weights} if with_weights else out

    def forward(self, video: Tensor, wave: Tensor) -> dict[str, Tensor]:
        """video [n, k, 3, t, h, w], wave [n, samples] → o, a, v [n] and attn [n, k, frames]."""
        return self.fuse(self.encode_clips(video), self.encode_audio(wave), with_weights=True)


def build(cfg: Config) -> MHLT:
    return MHLT(cfg)


def fold(module: MHLT) -> MHLT:
    """Replace the positional convolution's weight norm by its plain weight, and clear pre-training's mask vector, in place."""
    from torch.nn.utils import parametrize

    # Inference never reads the mask, and checkpoints leave it out: at its random start, equal checkpoints would give unequal files.
    with torch.no_grad():
        module.audio.masked_spec_embed.zero_()
    conv = module.audio.encoder.pos_conv_embed.conv
    if parametrize.is_parametrized(conv, "weight"):
        parametrize.remove_parametrizations(conv, "weight")
    return module


def normalize_keys(state: Mapping[str, Tensor], cfg: Config) -> dict[str, Tensor]:
    """Accept the public spellings: HuBERT under `audio.` or `hubert.`, both weight norms, the backbone's own names.

    Raises:
        CheckpointError: two spellings of one weight, or a weight norm over other axes than HuBERT's.
    """
    renamed: dict[str, Tensor] = {}
    for spelling, value in state.items():
        key = spelling
        if key.startswith("audio.hubert."):
            key = "audio." + key.removeprefix("audio.hubert.")
        elif key.startswith("hubert."):
            key = "audio." + key.removeprefix("hubert.")
        elif key.startswith(("feature_extractor.", "feature_projection.", "encoder.")):
            key = "audio." + key
        elif key.startswith("features."):
            key = "video." + key
        if key.startswith(("classifier.", "video.classifier.")) or key in ("masked_spec_embed", "audio.masked_spec_embed"):
            continue  # the backbone's own classes, and pre-training's mask: not part of MHLT
        if key in renamed:
            raise CheckpointError(f"`{key}` is there twice, once as `{spelling}`", "keep one of the two encoders in the checkpoint")
        renamed[key] = value
    return fold_pos_conv(renamed, "audio.")


# fold() keeps HuBERT's mask vector, which inference never reads; a checkpoint may leave it out.
OPTIONAL_KEYS = ("audio.masked_spec_embed",)


class ClipEncoder(nn.Module):
    def __init__(self, model: MHLT):
        super().__init__()
        self.video = model.video

    def forward(self, clip: Tensor) -> tuple[Tensor]:
        return (self.video(clip),)


class AudioEncoder(nn.Module):
    def __init__(self, model: MHLT):
        super().__init__()
        self.audio = model.audio

    def forward(self, wave: Tensor) -> tuple[Tensor]:
        return (self.audio(wave).last_hidden_state,)


class Head(nn.Module):
    def __init__(self, model: MHLT):
        super().__init__()
        self.lstm_v, self.lstm_a, self.attn = model.lstm_v, model.lstm_a, model.attn
        self.fc_o, self.fc_a, self.fc_v = model.fc_o, model.fc_a, model.fc_v

    def forward(self, clip_features: Tensor, audio_features: Tensor) -> tuple[Tensor, ...]:
        out = MHLT.fuse(self, clip_features, audio_features)
        return tuple(out[k] for k in OUTPUTS)


def engines(module: MHLT, cfg: Config) -> list[Engine]:
    """Clip encoder, audio encoder and head. Widths come from the module, since it may be pruned."""
    clip_width = module.lstm_v.input_size
    audio_width = module.lstm_a.input_size
    audio_shape = (1, frames(cfg.samples), audio_width)
    clip = (1, 3, cfg.frames, cfg.height, cfg.width)
    return [
        Engine("clip_encoder", ClipEncoder(module), {"clip": clip}, {"clip_feature": (1, clip_width)}),
        Engine("audio_encoder", AudioEncoder(module), {"wave": (1, cfg.samples)}, {"audio_features": audio_shape}),
        Engine(
            "head",
            Head(module),
            {"clip_features": (1, cfg.clips, clip_width), "audio_features": audio_shape},
            {k: (1,) for k in OUTPUTS},
        ),
    ]


def flow(cfg: Config) -> dict:
    """How the engines make one window's answer, and what the host does around them."""
    window_s = cfg.samples / SAMPLE_RATE_HZ
    return {
        "inputs": {
            "video": {"shape": [cfg.clips, 3, cfg.frames, cfg.height, cfg.width], "dtype": "float32"},
            "wave": {"shape": [cfg.samples], "dtype": "float32"},
        },
        "steps": [
            {"engine": "clip_encoder", "each": {"clip": "video"}, "stack": {"clip_feature": "clip_features"}},
            {"engine": "audio_encoder", "feed": {"wave": "wave"}, "give": {"audio_features": "audio_features"}},
            {
                "engine": "head",
                "feed": {"clip_features": "clip_features", "audio_features": "audio_features"},
                "give": {k: k for k in OUTPUTS},
            },
        ],
        "outputs": list(OUTPUTS),
        "primary": "o",
        "window_s": window_s,
        # A live system slides the window by one clip: lstm_v starts at the window's first clip, so
        # the last clips - 1 features can be kept, and the clip encoder runs once per hop.
        "rates_hz": {name: cfg.clips / window_s for name in ("clip_encoder", "audio_encoder", "head")},
        "host_steps": [
            {"step": "preprocess", "spec": "preprocess.json"},
            {"step": "keep", "tensor": "clip_feature", "count": cfg.clips - 1, "why": "sliding window: only the new clip is encoded"},
            {"step": "clamp", "outputs": list(OUTPUTS), "low": -1.0, "high": 1.0, "why": "metrics clamp; the heads are linear"},
        ],
    }


def io_spec(cfg: Config) -> dict:
    """Units and meaning of what goes in and comes out; shapes are the engines'."""
    return {
        "inputs": {
            "video": {"unit": "(pixel 0..255 − mean) / std", "axes": ["clip", "colour", "frame", "height", "width"]},
            "wave": {"unit": "zero-mean, unit-variance amplitude", "axes": ["sample"], "sample_rate_hz": SAMPLE_RATE_HZ},
        },
        "outputs": {
            "o": {"unit": "valence −1..1", "meaning": "joint emotion"},
            "a": {"unit": "valence −1..1", "meaning": "emotion heard"},
            "v": {"unit": "valence −1..1", "meaning": "emotion seen"},
        },
    }


def preprocess_spec(cfg: Config) -> dict:
    return {
        "video": {
            "clips": cfg.clips,
            "frames_per_clip": cfg.frames,
            "height": cfg.height,
            "width": cfg.width,
            "color": "RGB",
            "layout": "KCTHW",
            "resize": "bilinear_half_pixel",
            "sampling": "uniform_round_linspace",
            "mean": list(cfg.pixel_mean),
            "std": list(cfg.pixel_std),
        },
        "audio": {
            "sample_rate_hz": SAMPLE_RATE_HZ,
            "samples": cfg.samples,
            "scale": 32768.0,
            "normalize": "zero_mean_unit_variance",
            "eps": 1e-7,
            "pad": "right_zero_after_normalize",
        },
    }


def train_forward(module: MHLT, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{"video": [n, k, 3, t, h, w], "wave": [n, samples]} → o, a, v [n], every parameter in reach of the gradient.

    A modality given with n = 1 is shared by all samples: a silenced one need not be encoded n times.
    The audio tower runs in bfloat16 while training: twice the speed where the CPU multiplies it
    natively, and its output and the loss stay float32.
    """
    n = max(len(batch["video"]), len(batch["wave"]))
    with torch.autocast("cpu", torch.bfloat16, enabled=module.training):
        audio = module.encode_audio(batch["wave"])
    clips = module.encode_clips(batch["video"])
    return module.fuse(clips.expand(n, -1, -1), audio.float().expand(n, -1, -1))


class Tower(nn.Module):
    """One encoder with a linear head of its own, to be trained alone on its unimodal label."""

    def __init__(self, encoder: nn.Module, width: int, source: str, label: str):
        super().__init__()
        self.encoder, self.source, self.label = encoder, source, label
        self.fc = nn.Linear(width, 1)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = batch[self.source]
        if self.source == "video":
            # While training, one clip of each sample, drawn anew every time: a fourth of the work, more variety.
            n, k = x.shape[:2]
            clips = x[torch.arange(n), torch.randint(k, (n,))] if self.training else x.flatten(0, 1)
            features = self.encoder(clips.contiguous(memory_format=torch.channels_last_3d))
            features = features if self.training else features.unflatten(0, (n, k)).mean(1)
        else:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.training):
                features = self.encoder(x).last_hidden_state.mean(1)
        return {self.label: self.fc(features.float()).squeeze(-1)}


def towers(module: MHLT) -> dict[str, Tower]:
    """What may be trained alone before the whole: the encoders, which then stand in `module` as trained."""
    return {
        "video": Tower(module.video, module.lstm_v.input_size, "video", "v"),
        "audio": Tower(module.audio, module.lstm_a.input_size, "wave", "a"),
    }


def for_training(module: MHLT) -> MHLT:
    """Lay weights out for the fastest training on a CPU: channels-last 3-D convolutions take half the time."""
    module.video.to(memory_format=torch.channels_last_3d)
    return module


# What prune refuses to touch: {layer: why}.
UNPRUNABLE = {
    "audio.feature_projection.projection": "makes HuBERT's hidden features, which one residual stream carries through every layer",
    "audio.encoder.pos_conv_embed": "adds to HuBERT's residual stream, and its groups fix how the channels lie",
    "audio.encoder.layer_norm": "normalizes HuBERT's residual stream",
    "fc_o": "is an output",
    "fc_a": "is an output",
    "fc_v": "is an output",
}


def prune_groups(module: MHLT, cfg: Config) -> list[Group]:
    """What can be removed from a folded MHLT, in the order of its layers. Widths come from the module, since it may be pruned."""
    features = Slice("lstm_v", "weight_ih_l0", 1, "in")
    # Any window does: the backbone pools, and its couplings do not depend on it. This one is quick.
    video = convolution_groups(module.video, torch.zeros(1, 3, 4, 32, 32), "video", readers=[features])
    return [*video, *_stem_groups(module), *_transformer_groups(module), _fusion_group(module)]


def _stem_groups(module: MHLT) -> list[Group]:
    """HuBERT's convolutions: each one's channels are the next one's input; the last feed the projection through a LayerNorm."""
    stem = "audio.feature_extractor.conv_layers"
    layers = module.audio.feature_extractor.conv_layers
    groups = []
    for i, layer in enumerate(layers):
        made = [Slice(f"{stem}.{i}.conv", "weight", 0, "out")]
        if layer.conv.bias is not None:
            made.append(Slice(f"{stem}.{i}.conv", "bias", 0, "out"))
        if i == 0:  # GroupNorm of one channel each
            made += [Slice(f"{stem}.0.layer_norm", name, 0, "out") for name in ("weight", "bias")]
        if i + 1 < len(layers):
            read = [Slice(f"{stem}.{i + 1}.conv", "weight", 1, "in")]
        else:
            made += [Slice("audio.feature_projection.layer_norm", name, 0, "out") for name in ("weight", "bias")]
            read = [Slice("audio.feature_projection.projection", "weight", 1, "in")]
        groups.append(one_axis(f"{stem}.{i}.conv", "channels", layer.conv.out_channels, [*made, *read]))
    return groups


def _transformer_groups(module: MHLT) -> list[Group]:
    """Whole heads and FFN units of every encoder layer."""
    groups = []
    for i, layer in enumerate(module.audio.encoder.layers):
        attention, feed = f"audio.encoder.layers.{i}.attention", f"audio.encoder.layers.{i}.feed_forward"
        head_dim = layer.attention.head_dim
        made = [Slice(f"{attention}.{p}_proj", t, 0, "out", width=head_dim) for p in "qkv" for t in ("weight", "bias")]
        read = Slice(f"{attention}.out_proj", "weight", 1, "in", width=head_dim)
        groups.append(one_axis(attention, "heads", layer.attention.num_heads, [*made, read], step=1, heads=(attention,)))
        made = [Slice(f"{feed}.intermediate_dense", t, 0, "out") for t in ("weight", "bias")]
        read = Slice(f"{feed}.output_dense", "weight", 1, "in")
        groups.append(one_axis(feed, "ffn_units", layer.feed_forward.intermediate_dense.out_features, [*made, read]))
    return groups


def _fusion_group(module: MHLT) -> Group:
    """Both LSTMs, the attention and the three heads: Q = video and K = V = audio force one width on all.

    Equal in number, not in place: each LSTM loses its own least useful units, the attention whole
    heads, its output its own channels. A granule is one head, so head_dim stays.
    """
    width, head_dim = module.attn.embed_dim, module.attn.head_dim
    gates = tuple(i * width for i in range(4))
    qkv = gates[:3]

    def hidden(lstm: str, rows: tuple[int, int], fc: str) -> Axis:
        made = [Slice(lstm, f"{t}_l0", 0, "out", starts=gates) for t in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        read = [Slice(lstm, "weight_hh_l0", 1, "in"), Slice("attn", "in_proj_weight", 1, "in", rows=rows), Slice(fc, "weight", 1, "in")]
        return Axis(lstm, width, head_dim, (*made, *read))

    heads = (
        Slice("attn", "in_proj_weight", 0, "out", starts=qkv, width=head_dim),
        Slice("attn", "in_proj_bias", 0, "out", starts=qkv, width=head_dim),
        Slice("attn.out_proj", "weight", 1, "in", width=head_dim),
    )
    fused = (Slice("attn.out_proj", "weight", 0, "out"), Slice("attn.out_proj", "bias", 0, "out"), Slice("fc_o", "weight", 1, "in"))
    axes = (
        hidden("lstm_v", (0, width), "fc_v"),
        hidden("lstm_a", (width, 3 * width), "fc_a"),
        Axis("heads", module.attn.num_heads, 1, heads),
        Axis("fused", width, head_dim, fused),
    )
    return Group("fusion", "hidden_units", axes, heads=("attn",))

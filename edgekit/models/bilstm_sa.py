"""BiLSTM-SA: the emotion of an utterance from its sound and from one picture, the mean of all its frames.

An auto-encoder's bottleneck stands for the sound's MFCCs, ResNet-50's pooled feature for the picture. Of both together a fixed part is
selected (zebra.py), brought to tokens in the order of the features, and read by a bidirectional LSTM whose states attend to each other.
The paper's baselines leave the attention out (`bilstm`), or read the selected numbers by convolutions (`cnn`).

The selection is a step of training, between the encoders' own and that of the rest, and sees the train split alone; the checkpoint holds
it as `select.idx`. `balance` folds it into a loaded model: what is not selected is not computed. Three engines: `image`, `audio`, `head`. The configuration
`head` is the last of them alone, for a checkpoint that was trained on features which something else selected.

Source: Kirar et al. 2024, IJISAE. It gives hardly a size; those here are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import losses
from ..errors import CheckpointError, DataError
from ..formats import Engine
from . import zebra
from .blocks import resnet50
from .blocks.crossmodal import SelfAttention, split_in_proj
from .blocks.resnet50 import ResNet
from .groups import Group, Slice, one_axis
from .joint_groups import lstm_group

if TYPE_CHECKING:
    from ..training import ClipBank

OUTPUT = "emotion"
VARIANTS = ("bilstm_sa", "bilstm", "cnn")
MELD = ("sad", "happy", "surprise")
EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of pixels 0..1
MIN_STD = 1e-6


@dataclass(frozen=True)
class Config:
    """Sizes of one BiLSTM-SA. The defaults are the paper's for MELD, as far as it has any.

    Attributes:
        variant: "bilstm_sa", or the baselines "bilstm" and "cnn".
        keyframes: how many frames are averaged, evenly spread; 0 for all.
        stem, widths, blocks: of ResNet-50, see `blocks/resnet50.py`.
        samples: of the sound; a clip is cut at both ends, or padded, to it.
        coefficients, columns: MFCCs of a column, and how many columns, of which the transform gives one more.
        mfcc_mean, mfcc_std: of each coefficient, taken out before the network. A checkpoint that was trained on others may say
            so in `mfcc.mean` and `mfcc.std`.
        hidden, code: of the auto-encoder.
        selected: features that the head reads, of all `code` + `widths[3]`.
        seq: (tokens, features of each); zeros follow the selected ones up to there.
        lstm: hidden units of one direction.
        merge: "concat", or "sum" of both directions.
        cnn: channels of the baseline's three convolutions.
        head_only: without the encoders; the tokens come with the clips, as features `tokens`.
    """

    variant: str = "bilstm_sa"
    classes: tuple[str, ...] = MELD
    image: int = 224
    keyframes: int = 0
    stem: int = 64
    widths: tuple[int, int, int, int] = (256, 512, 1024, 2048)
    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    sample_rate_hz: int = 16_000
    samples: int = 64_000
    coefficients: int = 40
    columns: int = 128
    hop: int = 500
    n_fft: int = 1024
    window: int = 1000
    mfcc_mean: tuple[float, ...] = ()
    mfcc_std: tuple[float, ...] = ()
    hidden: int = 1024
    code: int = 256
    selected: int = 512
    seq: tuple[int, int] = (16, 32)
    lstm: int = 128
    heads: int = 4
    merge: str = "concat"
    cnn: tuple[int, int, int] = (64, 128, 256)
    dropout: float = 0.3
    head_only: bool = False

    def __post_init__(self):
        tokens, width = self.seq
        if self.variant not in VARIANTS or self.merge not in ("concat", "sum"):
            raise ValueError(f"variant must be one of {VARIANTS}, merge `concat` or `sum`, got {self.variant!r}, {self.merge!r}")
        if not 2 <= self.selected <= min(self.features, tokens * width):
            raise ValueError(f"{self.selected} of {self.features} features do not fill {tokens} x {width} tokens")
        if self.columns > 1 + self.samples // self.hop or len(self.mfcc_mean) != len(self.mfcc_std) or len(self.mfcc_mean) not in (0, self.coefficients):
            raise ValueError(f"{self.columns} columns, {len(self.mfcc_mean)} means and {len(self.mfcc_std)} deviations of {self.coefficients} coefficients do not fit {self.samples} samples")

    @property
    def features(self) -> int:
        """What is selected from."""
        return self.code + self.widths[3]

    @property
    def states(self) -> int:
        """Width of what the BiLSTM gives for a token."""
        return self.lstm * (2 if self.merge == "concat" else 1)

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping) -> Config:
        tuples = {k: tuple(fields[k]) for k in ("classes", "widths", "blocks", "mfcc_mean", "mfcc_std", "seq", "cnn")}
        return cls(**{**fields, **tuples})


# Of synthetic_emotion, padded to four seconds, and as it is: our input's scale until somebody trains on MELD.
_MEAN = (-350, 85, -12, 14, -7, 1, -5, 0, -5, 2, -2, 1, -2, 0, -2, 0, -1, -1, -2, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, 0, 0, 0, 0, 0, 0)
_STD = (172, 69, 34, 26, 19, 17, 15, 13, 12, 11, 10, 9, 9, 9, 9, *(8,) * 18, *(7,) * 7)
_SMALL_MEAN = (-176, 112, -18, 17, -11, 1, -8, 0, -6, 4, -2, 2, -2, 0, -2, 0, -2, -1, -2, 0)
_SMALL_STD = (84, 55, 37, 28, 20, 18, 15, 13, 11, 11, 10, *(8,) * 8, 7)

_DEFAULT = Config(mfcc_mean=_MEAN, mfcc_std=_STD)
_SMALL = Config(
    classes=EMOTIONS, image=96, stem=16, widths=(48, 80, 128, 192), blocks=(1, 2, 2, 2), samples=48_000, coefficients=20, columns=32, hop=1500, n_fft=2048, window=2000,
    mfcc_mean=_SMALL_MEAN, mfcc_std=_SMALL_STD,
    hidden=128, code=64, selected=128, seq=(8, 16), lstm=32, cnn=(16, 32, 48),
)  # fmt: skip
_TINY = Config(
    image=32, stem=4, widths=(16, 32, 64, 128), blocks=(1, 1, 1, 1), samples=16 * 1000, coefficients=10, columns=16, hop=1000,
    hidden=32, code=16, selected=32, seq=(4, 8), lstm=16, cnn=(8, 16, 16),
)  # fmt: skip

CONFIGS = {
    "default": _DEFAULT,
    "bilstm": replace(_DEFAULT, variant="bilstm"),
    "cnn": replace(_DEFAULT, variant="cnn"),
    "head": replace(_DEFAULT, head_only=True),
    "small": _SMALL,
    "small_bilstm": replace(_SMALL, variant="bilstm"),
    "small_cnn": replace(_SMALL, variant="cnn"),
    "small_all": replace(_SMALL, selected=_SMALL.features, seq=(16, 16)),
    "tiny": _TINY,
    "tiny_emotions": replace(_TINY, classes=EMOTIONS),
}


class AutoEncoder(nn.Module):
    """Two layers each way; `dec` is there for training only."""

    def __init__(self, width: int, hidden: int, code: int):
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, code))
        self.dec: nn.Sequential | None = nn.Sequential(nn.Linear(code, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, mfcc: Tensor) -> Tensor:
        """[n, coefficients, columns] → [n, code]."""
        return self.enc(mfcc.flatten(1))


class Scale(nn.Module):
    """(x - mean) / std with the statistics of the training clips."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Select(nn.Module):
    """The features to read. Until some are selected, evenly spread ones."""

    def __init__(self, count: int, of: int):
        super().__init__()
        self.register_buffer("idx", torch.arange(count) * of // count)

    def forward(self, x: Tensor) -> Tensor:
        """[n, f] → [n, count]; as it is where only the selected ones are computed at all."""
        return x if x.shape[1] == len(self.idx) else x.index_select(1, self.idx)


class BiLSTMSA(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.variant, self.seq, self.merge, self.head_only = cfg.variant, cfg.seq, cfg.merge, cfg.head_only
        if not cfg.head_only:
            self.ae = AutoEncoder(cfg.coefficients * cfg.columns, cfg.hidden, cfg.code)
            self.resnet = ResNet(cfg.stem, cfg.widths, cfg.blocks)
            self.scale = Scale(cfg.features)
            self.select = Select(cfg.selected, cfg.features)
        self.dropout = nn.Dropout(cfg.dropout)
        if cfg.variant == "cnn":
            inputs = (1, *cfg.cnn)
            self.cnn = nn.Sequential(*(
                nn.Sequential(nn.Conv1d(a, b, 3, padding=1), nn.BatchNorm1d(b), nn.ReLU(), nn.MaxPool1d(2)) for a, b in zip(inputs, cfg.cnn, strict=False)
            ))  # fmt: skip
            self.fc = nn.Linear(cfg.cnn[-1], len(cfg.classes))
            return
        self.rnn = nn.LSTM(cfg.seq[1], cfg.lstm, bidirectional=True, batch_first=True)
        if cfg.variant == "bilstm_sa":
            self.attn = SelfAttention(cfg.states, cfg.heads, bias=False)
            self.ln = nn.LayerNorm(cfg.states)
        self.fc = nn.Linear(cfg.states, len(cfg.classes))

    @property
    def is_narrow(self) -> bool:
        """Whether the encoders compute the selected features only."""
        return len(self.scale.mean) == self.ae.enc[2].out_features + self.resnet.features == len(self.select.idx)

    def head(self, audio: Tensor, image: Tensor) -> Tensor:
        """The encoders' features [n, code] and [n, width], all or the selected ones → logits [n, classes]. Either may have n = 1."""
        n = max(len(audio), len(image))
        x = self.select(self.scale(torch.cat((audio.expand(n, -1), image.expand(n, -1)), 1)))
        tokens, width = self.seq
        x = F.pad(x, (0, tokens * width - x.shape[1])) if x.shape[1] < tokens * width else x
        return self.classify(x.unflatten(1, (tokens, width)))

    def classify(self, tokens: Tensor) -> Tensor:
        """[n, *seq] → logits [n, classes]."""
        if self.variant == "cnn":
            return self.fc(self.dropout(self.cnn(tokens.flatten(1).unsqueeze(1)).mean(2)))
        x = self.rnn(tokens)[0]
        if self.merge == "sum":
            x = x[..., : self.rnn.hidden_size] + x[..., self.rnn.hidden_size :]
        x = self.dropout(x)
        if self.variant == "bilstm_sa":
            x = self.ln(x + self.attn(x))
        return self.fc(self.dropout(x.mean(1)))

    def forward(self, mfcc: Tensor, video: Tensor) -> Tensor:
        """[n, coefficients, columns] and the summary image [n, 3, h, w] → logits [n, classes]."""
        return self.head(self.ae(mfcc), self.resnet(video))


def build(cfg: Config) -> BiLSTMSA:
    return BiLSTMSA(cfg)


# --- the inference form ---


def fold(module: BiLSTMSA) -> BiLSTMSA:
    """Without the auto-encoder's decoder, in place."""
    if not module.head_only:
        module.ae.dec = None
    return module


def balance(module: BiLSTMSA) -> None:
    """Let the encoders compute only what is selected, in place; exact.

    The auto-encoder keeps the rows of its last layer that are selected, with their scaling folded in. ResNet keeps the selected
    channels of its last block, see `resnet50.keep`; their scaling stays a step of its own, since a pooled ReLU comes before it.

    Raises:
        CheckpointError: nothing of one of the two is selected, so that an engine would have no output.
    """
    if module.head_only or module.is_narrow:
        return
    last, chosen = module.ae.enc[2], module.select.idx.tolist()
    heard = [i for i in chosen if i < last.out_features]
    seen = [i - last.out_features for i in chosen[len(heard) :]]
    if not heard or not seen:
        raise CheckpointError(f"`select.idx` keeps {len(heard)} features of the sound and {len(seen)} of the picture", "select some of both, or use a model of one sense")
    with torch.no_grad():
        mean, std = module.scale.mean[chosen], module.scale.std[chosen]
        a = len(heard)
        last.weight = nn.Parameter(last.weight[heard] / std[:a, None])
        last.bias = nn.Parameter((last.bias[heard] - mean[:a]) / std[:a])
        last.out_features = a
        mean[:a], std[:a] = 0.0, 1.0
    resnet50.keep(module.resnet, seen)
    module.scale.mean, module.scale.std = mean, std
    module.select.idx = torch.arange(len(chosen))


# --- checkpoints ---


def normalize_keys(state: Mapping[str, Tensor], cfg: Config) -> dict[str, Tensor]:
    """nn.MultiheadAttention's spelling → ours; statistics of other MFCCs (`mfcc.mean`, `mfcc.std`, [coefficients]) → the first layer's weights.

    Raises:
        CheckpointError: a selection that is none: repeated, out of order or out of range.
    """
    ours = split_in_proj({k: v for k, v in state.items() if not k.startswith(("ae.dec.", "resnet.fc."))})
    mean, std = ours.pop("mfcc.mean", None), ours.pop("mfcc.std", None)
    if mean is not None and std is not None:
        ours |= _for_our_mfccs(ours["ae.enc.0.weight"], ours["ae.enc.0.bias"], mean, std, cfg)
    if "scale.std" in ours:
        ours["scale.std"] = ours["scale.std"].clamp_min(MIN_STD)
    if (idx := ours.get("select.idx")) is not None and (
        idx.is_floating_point() or idx.dim() != 1 or not bool((idx.diff() > 0).all()) or not 0 <= int(idx.min()) <= int(idx.max()) < cfg.features
    ):
        raise CheckpointError(f"`select.idx` must hold whole numbers that rise, each of 0 to {cfg.features - 1}", "are they indices into [sound's features, picture's features]?")
    return ours


def _for_our_mfccs(weight: Tensor, bias: Tensor, mean: Tensor, std: Tensor, cfg: Config) -> dict[str, Tensor]:
    """The first layer of (MFCC - mean) / std → that of MFCCs with the configuration's mean and std."""
    own_mean, own_std = (torch.tensor(x or y, dtype=torch.float64) for x, y in ((cfg.mfcc_mean, [0.0] * cfg.coefficients), (cfg.mfcc_std, [1.0] * cfg.coefficients)))
    by_coefficient = weight.double().unflatten(1, (cfg.coefficients, cfg.columns))
    gain, offset = own_std / std.double(), (own_mean - mean.double()) / std.double()
    added = (by_coefficient * offset[:, None]).sum((1, 2))
    return {"ae.enc.0.weight": (by_coefficient * gain[:, None]).flatten(1).to(weight.dtype), "ae.enc.0.bias": (bias.double() + added).to(bias.dtype)}


OPTIONAL_KEYS: tuple[str, ...] = ()


# --- engines ---


class Image(nn.Module):
    def __init__(self, model: BiLSTMSA):
        super().__init__()
        self.resnet = model.resnet

    def forward(self, image: Tensor) -> tuple[Tensor]:
        return (self.resnet(image),)


class Audio(nn.Module):
    def __init__(self, model: BiLSTMSA):
        super().__init__()
        self.ae = model.ae

    def forward(self, mfcc: Tensor) -> tuple[Tensor]:
        return (self.ae(mfcc),)


class Head(nn.Module):
    head, classify = BiLSTMSA.head, BiLSTMSA.classify

    def __init__(self, model: BiLSTMSA):
        super().__init__()
        self.variant, self.seq, self.merge = model.variant, model.seq, model.merge
        for name, child in model.named_children():
            if name not in ("ae", "resnet"):
                self.add_module(name, child)

    def forward(self, audio_feature: Tensor, image_feature: Tensor) -> tuple[Tensor]:
        return (self.head(audio_feature, image_feature),)


class Alone(Head):
    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        return (self.classify(tokens),)


def engines(module: BiLSTMSA, cfg: Config) -> list[Engine]:
    """The picture's feature, the sound's, and the rest. Widths come from the module: only what is selected, and it may be pruned."""
    if cfg.head_only:
        return [Engine("head", Alone(module), {"tokens": (1, *cfg.seq)}, {OUTPUT: (1, len(cfg.classes))})]
    audio, image = module.ae.enc[2].out_features, module.resnet.features
    return [
        Engine("image", Image(module), {"image": (1, 3, cfg.image, cfg.image)}, {"image_feature": (1, image)}),
        Engine("audio", Audio(module), {"mfcc": (1, cfg.coefficients, cfg.columns)}, {"audio_feature": (1, audio)}),
        Engine("head", Head(module), {"audio_feature": (1, audio), "image_feature": (1, image)}, {OUTPUT: (1, len(cfg.classes))}),
    ]


def flow(cfg: Config) -> dict:
    """How the engines make one utterance's answer, and what the host does around them."""
    window_s = cfg.samples / cfg.sample_rate_hz
    if cfg.head_only:
        inputs = {"tokens": {"shape": list(cfg.seq), "dtype": "float32"}}
        steps = [{"engine": "head", "feed": {"tokens": "tokens"}, "give": {OUTPUT: OUTPUT}}]
    else:
        inputs = {
            "video": {"shape": [3, cfg.image, cfg.image], "dtype": "float32"},
            "mfcc": {"shape": [cfg.coefficients, cfg.columns], "dtype": "float32"},
        }
        steps = [
            {"engine": "image", "feed": {"image": "video"}, "give": {"image_feature": "image_feature"}},
            {"engine": "audio", "feed": {"mfcc": "mfcc"}, "give": {"audio_feature": "audio_feature"}},
            {"engine": "head", "feed": {"audio_feature": "audio_feature", "image_feature": "image_feature"}, "give": {OUTPUT: OUTPUT}},
        ]
    return {
        "inputs": inputs,
        "steps": steps,
        "outputs": [OUTPUT],
        "primary": OUTPUT,
        "task": "classes",
        "classes": list(cfg.classes),
        "window_s": window_s,
        # The whole utterance goes into every engine, once.
        "rates_hz": {step["engine"]: 1 / window_s for step in steps},
        "host_steps": [{"step": "preprocess", "spec": "preprocess.json"}],
    }


def io_spec(cfg: Config) -> dict:
    """Units and meaning of what goes in and comes out; shapes are the engines'."""
    unit = "(MFCC − mean) / std, by coefficient" if cfg.mfcc_mean else "MFCC"
    inputs: dict = {
        "video": {"unit": "(pixel 0..255 − mean) / std of the mean frame", "axes": ["colour", "height", "width"]},
        "mfcc": {"unit": unit, "axes": ["coefficient", "column"], "sample_rate_hz": cfg.sample_rate_hz},
    }
    if cfg.head_only:
        inputs = {"tokens": {"unit": "(feature − mean) / std", "axes": ["token", "feature"]}}
    return {
        "inputs": inputs,
        "outputs": {OUTPUT: {"unit": "logit", "axes": ["class"], "meaning": ", ".join(cfg.classes)}},
    }


def preprocess_spec(cfg: Config) -> dict:
    """preprocess.json: one picture, the mean of the frames; MFCCs of the sound without its steady noise, at one loudness."""
    if cfg.head_only:
        return {"features": {"tokens": {"per": "clip", "rows": cfg.seq[0], "dim": cfg.seq[1], "mean": 0.0, "std": 1.0}}}
    mfcc = {
        "kind": "mfcc", "per": "clip", "samples": cfg.samples, "fit": "center", "frames": cfg.columns,
        "n_mfcc": cfg.coefficients, "n_mels": 128, "n_fft": cfg.n_fft, "hop_length": cfg.hop, "win_length": cfg.window, "window": "hann",
        "center": True, "pad_mode": "constant", "f_min": 0.0, "f_max": cfg.sample_rate_hz / 2,
    }  # fmt: skip
    if cfg.mfcc_mean:
        mfcc |= {"shift": [-mean for mean in cfg.mfcc_mean], "scale": list(cfg.mfcc_std)}
    return {
        "video": {
            "clips": 1, "frames_per_clip": 1, "average": cfg.keyframes or "all", "height": cfg.image, "width": cfg.image, "color": "RGB", "layout": "CHW",
            "resize": "bilinear_half_pixel", "sampling": "uniform_round_linspace",
            "mean": [255 * v for v in IMAGENET_MEAN], "std": [255 * v for v in IMAGENET_STD],
        },
        "audio": {
            "sample_rate_hz": cfg.sample_rate_hz, "scale": 32768.0, "peak": 0.95,
            "subtract": {"n_fft": 512, "hop_length": 128, "quietest": 0.1, "over": 1.0, "floor": 0.05},
            "features": {"mfcc": mfcc},
        },
    }  # fmt: skip


# --- training ---


def train_forward(module: BiLSTMSA, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{"mfcc" or "audio_feature", "video" or "image_feature"}, or {"tokens"} → {"emotion": [n, classes]}.

    A modality given with n = 1 is shared by all samples: a silenced one need not be encoded n times.
    """
    if module.head_only:
        return {OUTPUT: module.classify(batch["tokens"])}
    batch = encode(module, batch)
    return {OUTPUT: module.head(batch["audio_feature"], batch["image_feature"])}


def encode(module: BiLSTMSA, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch with what the encoders make of sound and picture, `audio_feature` and `image_feature`; an encoded one as it is."""
    out = {name: value for name, value in batch.items() if name not in ("mfcc", "video")}
    if "mfcc" in batch:
        out["audio_feature"] = module.ae(batch["mfcc"])
    if "video" in batch:
        out["image_feature"] = module.resnet(batch["video"])
    return out


def select(module: BiLSTMSA, bank: ClipBank, seed: int) -> None:
    """Between the encoders' training and the head's: the features' statistics, and which of them the head reads, from the training clips.

    With it the features are made, so the auto-encoder's decoder goes.

    Raises:
        DataError: the clips have no class of each.
    """
    if module.head_only:
        return
    if OUTPUT not in bank.labels:
        raise DataError(f"features are selected by their classes, and the clips have no label `{OUTPUT}`", "name a column of labels.csv so")
    module.eval()
    encoded = bank.encoded(lambda batch: encode(module, batch))
    given = {**encoded.inputs, **encoded.constants}
    parts = [given[name].expand(len(bank), -1) for name in ("audio_feature", "image_feature")]
    x = torch.cat(parts, 1)
    mean, std = x.double().mean(0), x.double().std(0, correction=0)
    std = torch.where(std < MIN_STD, 1.0, std)  # one that never moves here must not explode where it does
    module.scale.mean.copy_(mean)
    module.scale.std.copy_(std)
    if len(module.select.idx) < x.shape[1]:
        module.select.idx.copy_(zebra.select((x - mean) / std, bank.labels[OUTPUT], len(module.select.idx), seed))
    module.ae.dec = None


def loss(outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy, and the auto-encoder's squared error (Eq. 10: over batch and features) where it is there."""
    total = losses.cross_entropy(outputs[OUTPUT], labels[OUTPUT])
    return total + outputs["squared_error"].mean() if "squared_error" in outputs else total


def augment(batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Mirror, shift and relight each sample's picture; shift its MFCCs in time."""
    out = dict(batch)

    def uniform(n: int) -> list[float]:
        return (2 * torch.rand(n, generator=generator) - 1).tolist()

    if "video" in out:
        x = out["video"]
        n, reach = len(x), x.shape[-1] // 16
        draws = zip(x, *(uniform(n) for _ in range(4)), strict=True)
        out["video"] = torch.stack([(v.flip(-1) if flip > 0 else v).roll((round(down * reach), round(right * reach)), (-2, -1)) * (1 + 0.2 * light) for v, flip, down, right, light in draws])
    if "mfcc" in out:
        x = out["mfcc"]
        out["mfcc"] = torch.stack([v.roll(round(shift * (x.shape[-1] // 8)), -1) for v, shift in zip(x, uniform(len(x)), strict=True)])
    return out


class ImageTower(nn.Module):
    """ResNet with a linear classifier, in place of the paper's training on other pictures."""

    source = "video"

    def __init__(self, model: BiLSTMSA):
        super().__init__()
        self.resnet, self.fc = model.resnet, nn.Linear(model.resnet.features, model.fc.out_features)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {OUTPUT: self.fc(self.resnet(batch["video"]))}


class AudioTower(nn.Module):
    """The auto-encoder, by its reconstruction alone; the classifier beside it looks at the code and does not move it."""

    source = "mfcc"

    def __init__(self, model: BiLSTMSA):
        super().__init__()
        self.ae, self.fc = model.ae, nn.Linear(model.ae.enc[2].out_features, model.fc.out_features)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        mfcc = batch["mfcc"]
        code = self.ae(mfcc)
        return {OUTPUT: self.fc(code.detach()), "squared_error": (self.ae.dec(code) - mfcc.flatten(1)).square().mean(1)}


def towers(module: BiLSTMSA) -> dict[str, nn.Module]:
    """What is trained alone first: the encoders, which then stand in `module` as trained."""
    return {} if module.head_only else {"video": ImageTower(module), "audio": AudioTower(module)}


def for_training(module: BiLSTMSA) -> BiLSTMSA:
    """Laid out for the fastest training on a CPU."""
    if not module.head_only:
        module.resnet.to(memory_format=torch.channels_last)
    return module


# --- pruning ---

# What prune refuses to touch: {layer: why}.
UNPRUNABLE = {
    "ae.enc.2": "makes the sound's features, which were selected",
    "resnet.layer4": "makes the picture's features, which were selected; what its stream carries beside them can go",
    "rnn": "adds to what a LayerNorm reads, whose statistics see every channel",
    "attn.out_proj": "adds to what a LayerNorm reads, whose statistics see every channel",
    "fc": "is an output",
}


def prune_groups(module: BiLSTMSA, cfg: Config) -> list[Group]:
    """What can be removed, in the order of its layers. Widths come from the module, since it may be pruned."""
    found: list[Group] = []
    if not module.head_only:
        made = [Slice("ae.enc.0", name, 0, "out") for name in ("weight", "bias")]
        found = [
            *resnet50.prune_groups(module.resnet, "resnet."),
            one_axis("ae.enc.0", "ffn_units", module.ae.enc[0].out_features, [*made, Slice("ae.enc.2", "weight", 1, "in")]),
        ]
    if module.variant == "cnn":
        return [*found, *_cnn_groups(module)]
    if module.variant == "bilstm":
        # A sum of both directions adds unit to unit, which two free choices of units would tear apart.
        return [*found, lstm_group("rnn", module.rnn, [Slice("fc", "weight", 1, "in")])] if module.merge == "concat" else found
    heads = [Slice(f"attn.{p}_proj", "weight", 0, "out", width=module.attn.head_dim) for p in "qkv"]
    read = Slice("attn.out_proj", "weight", 1, "in", width=module.attn.head_dim)
    return [*found, one_axis("attn", "heads", module.attn.num_heads, [*heads, read], step=1, heads=("attn",))]


def _cnn_groups(module: BiLSTMSA) -> list[Group]:
    groups = []
    for i, layer in enumerate(module.cnn):
        made = [Slice(f"cnn.{i}.0", name, 0, "out") for name in ("weight", "bias")]
        made += [Slice(f"cnn.{i}.1", name, 0, "out") for name in ("weight", "bias", "running_mean", "running_var")]
        reader = "fc" if i + 1 == len(module.cnn) else f"cnn.{i + 1}.0"
        groups.append(one_axis(f"cnn.{i}.0", "channels", layer[0].out_channels, [*made, Slice(reader, "weight", 1, "in")]))
    return groups

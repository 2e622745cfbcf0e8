"""MHLT that hears through noise: DCCRN++ in front, and the voice counts for less the noisier it is.

    wave → STFT → denoiser → mask, inverse STFT → match → blend with the wave → normalize → audio encoder ┐
    wave and matched speech → SNR estimate (moving average) → α                                          ├→ head → o, a, v
    video → clip encoder, clip by clip ──────────────────────────────────────────────────────────────────┘

Where there is next to no noise, denoising can only take something away: from the knee of α on the wave itself comes back in, and from
`full_db` on the chain is plain MHLT. The voice's part in the answer is α, on one of two levels. `decision`: o = α·o(MHLT) + (1−α)·v,
on any MHLT checkpoint, by the host. `feature`: o = FC_o(α·mean(A_out) + (1−α)·mean(h_v)), in the head, for weights that were trained so.

On either level α says that a face alone answers well. It does where face and voice mostly agree, as people's do; a joint label of faces and
voices that disagree cannot be had without the voice, at no SNR.

The estimate is of matched speech (edgekit.snr): a denoiser that was trained on SI-SNR gives speech at any gain and of either sign, where
the plain ratio of speech to what it differs by says nothing, and an audio encoder that was trained on recordings hears a negative wave as
another voice.

A checkpoint has the parts `denoiser`, `mhlt` and, if it likes, `head`: weights that `edgekit train` taught to stand behind the encoders of
`mhlt`, in place of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..formats import Engine
from . import dccrn, dccrnpp, mhlt
from .groups import Axis, Group

OUTPUTS = ("o", "a", "v")
# What `edgekit train` teaches and saves; the rest comes from checkpoints of its own.
TAUGHT = ("mhlt.lstm_a.", "mhlt.attn.", "mhlt.fc_o.", "mhlt.fc_a.")
HEAD = ("lstm_v.", "lstm_a.", "attn.", "fc_o.", "fc_a.", "fc_v.")
SNR_DB, EMA = (-10.0, 40.0), 0.9


@dataclass(frozen=True)
class Alpha:
    """What the voice counts for at an estimated SNR: `at_knee` at `knee_db`, rising straight to 1 at `full_db`, never below `floor`."""

    at_knee: float = 0.3
    knee_db: float = 5.0
    full_db: float = 20.0
    floor: float = 0.0

    @property
    def wave(self) -> Alpha:
        """The wave's own part in what is heard: 0 up to the knee, 1 from `full_db` on."""
        return replace(self, at_knee=0.0, floor=0.0)

    def of(self, snr_db: Tensor) -> Tensor:
        return (self.at_knee + (1 - self.at_knee) * (snr_db - self.knee_db) / (self.full_db - self.knee_db)).clamp(self.floor, 1.0)


@dataclass(frozen=True)
class Config:
    """
    Attributes:
        level: `decision` or `feature`, where α acts.
    """

    denoiser: dccrn.Config
    mhlt: mhlt.Config
    level: str = "decision"
    alpha: Alpha = field(default_factory=Alpha)

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping) -> Config:
        return cls(dccrn.Config.from_json(fields["denoiser"]), mhlt.Config.from_json(fields["mhlt"]), fields["level"], Alpha(**fields["alpha"]))


def _config(denoiser: str, name: str, level: str, alpha: Alpha = Alpha(), chunk: int = 16) -> Config:
    """The denoiser takes `chunk` frames at a time: an answer comes once a clip, so 0.1 s more delay costs nothing, and calls are fewer."""
    listener = mhlt.CONFIGS[name]
    return Config(replace(dccrnpp.CONFIGS[denoiser], samples=listener.samples, chunk=chunk), listener, level, alpha)


# Of DCCRN++ half and MHLT small, on 192 clips of the calibration split. Estimates are 0.8 dB too high at 5 dB, at most 2.8: from a knee at
# 7 dB on the estimate's scale, α stays below 0.3 below 5 dB. And this MHLT, trained in noise, is worth a quarter of the answer even at -5 dB:
# with a floor of 0.25 its error is 0.092 in place of 0.101 where face and voice agree, 0.231 in place of 0.282 over all clips.
SMALL_ALPHA = Alpha(knee_db=7.0, floor=0.25)
CONFIGS = {
    "default": _config("default_causal", "default", "decision"),
    "default_feature": _config("default_causal", "default", "feature"),
    "small": _config("half_causal", "small", "decision", SMALL_ALPHA),
    "small_feature": _config("half_causal", "small", "feature", SMALL_ALPHA),
    "tiny": _config("tiny_causal", "tiny", "decision", chunk=4),
    "tiny_feature": _config("tiny_causal", "tiny", "feature", chunk=4),
}
OPTIONAL_KEYS = tuple(f"mhlt.{key}" for key in mhlt.OPTIONAL_KEYS)


class RobustMHLT(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.denoiser, self.mhlt = dccrnpp.build(cfg.denoiser), mhlt.build(cfg.mhlt)
        self.level, self.alpha = cfg.level, cfg.alpha

    def listen(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """Noisy wave [n, samples], -1..1 → matched speech [n, samples] and the estimated SNR in dB [n]; see edgekit.snr."""
        speech = self.denoiser(wave)
        power = speech.square().sum(1, keepdim=True)
        matched = speech * torch.where(power > 0, (wave * speech).sum(1, keepdim=True) / power.clamp_min(1e-30), torch.zeros_like(power))
        ratio = (matched.square().sum(1) + 1e-7) / ((wave - matched).square().sum(1) + 1e-7)
        return matched, (10 * ratio.log10()).clamp(*SNR_DB)

    def fuse(self, clip_features: Tensor, audio_features: Tensor, alpha: Tensor) -> dict[str, Tensor]:
        """Features of both and α [n] → o, a, v [n]."""
        inner = self.mhlt
        if self.level == "decision":
            out = inner.fuse(clip_features, audio_features)
            return {**out, "o": alpha * out["o"] + (1 - alpha) * out["v"]}
        return Head.fuse(inner, clip_features, audio_features, alpha)

    def forward(self, video: Tensor, wave: Tensor) -> dict[str, Tensor]:
        """video [n, k, 3, t, h, w], wave [n, samples] of -1..1 → o, a, v, alpha, snr_db [n]."""
        matched, snr_db = self.listen(wave)
        alpha = self.alpha.of(snr_db)
        out = self.fuse(self.mhlt.encode_clips(video), self.mhlt.encode_audio(heard(wave, matched, self.alpha.wave.of(snr_db))), alpha)
        return {**out, "alpha": alpha, "snr_db": snr_db}


def heard(wave: Tensor, speech: Tensor, share: Tensor) -> Tensor:
    """What the audio encoder gets [n, samples], with so much of the wave itself [n]."""
    return normalized(share[:, None] * wave + (1 - share[:, None]) * speech)


def normalized(wave: Tensor) -> Tensor:
    """[n, samples] with zero mean and unit variance."""
    return (wave - wave.mean(1, keepdim=True)) / (wave.var(1, keepdim=True, unbiased=False) + 1e-7).sqrt()


class Head(nn.Module):
    """MHLT's head with α on the level of features."""

    def __init__(self, model: mhlt.MHLT):
        super().__init__()
        self.lstm_v, self.lstm_a, self.attn = model.lstm_v, model.lstm_a, model.attn
        self.fc_o, self.fc_a, self.fc_v = model.fc_o, model.fc_a, model.fc_v

    @staticmethod
    def fuse(parts: nn.Module, clip_features: Tensor, audio_features: Tensor, alpha: Tensor) -> dict[str, Tensor]:
        h_v, _ = parts.lstm_v(clip_features)
        h_a, _ = parts.lstm_a(audio_features)
        fused, _ = parts.attn(h_v, h_a, h_a, need_weights=False)
        seen, share = h_v.mean(1), alpha[:, None]
        means = {"o": share * fused.mean(1) + (1 - share) * seen, "a": h_a.mean(1), "v": seen}
        return {k: getattr(parts, f"fc_{k}")(mean).squeeze(-1) for k, mean in means.items()}

    def forward(self, clip_features: Tensor, audio_features: Tensor, alpha: Tensor) -> tuple[Tensor, ...]:
        out = Head.fuse(self, clip_features, audio_features, alpha)
        return tuple(out[k] for k in OUTPUTS)


# --- model protocol ---


def build(cfg: Config) -> RobustMHLT:
    return RobustMHLT(cfg)


def fold(module: RobustMHLT) -> RobustMHLT:
    module.denoiser, module.mhlt = dccrnpp.fold(module.denoiser), mhlt.fold(module.mhlt)
    return module


def balance(module: RobustMHLT) -> None:
    dccrn.balance(module.denoiser)


def normalize_keys(state: Mapping[str, Tensor], cfg: Config) -> dict[str, Tensor]:
    """Every part's public spellings; the weights of `head` take the place of MHLT's.

    Raises:
        CheckpointError: `head` has weights that are not of MHLT's head, or a part is wrong.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        parts.setdefault(part, {})[rest] = value
    unknown = sorted(set(parts) - {"denoiser", "mhlt", "head"})
    if unknown:
        raise CheckpointError(f"`{unknown[0]}` is no part of this model", "give `checkpoint: {denoiser: …, mhlt: …}`, one file each")
    listener = mhlt.normalize_keys(parts.get("mhlt", {}), cfg.mhlt)
    for key, value in parts.get("head", {}).items():
        key = key.removeprefix("mhlt.")
        if not key.startswith(HEAD):
            raise CheckpointError(f"`{key}` is not of MHLT's head", f"a head has {', '.join(name.rstrip('.') for name in HEAD)}, or some of them")
        listener[key] = value
    found = {"denoiser": dccrnpp.normalize_keys(parts.get("denoiser", {}), cfg.denoiser), "mhlt": listener}
    return {f"{part}.{key}": value for part, values in found.items() for key, value in values.items()}


def engines(module: RobustMHLT, cfg: Config) -> list[Engine]:
    """Denoiser, clip encoder, audio encoder and head."""
    [denoiser], [clip, audio, head] = dccrnpp.engines(module.denoiser, cfg.denoiser), mhlt.engines(module.mhlt, cfg.mhlt)
    if cfg.level == "feature":
        head = Engine("head", Head(module.mhlt), {**head.inputs, "alpha": (1,)}, head.outputs)
    return [denoiser, clip, audio, head]


def flow(cfg: Config) -> dict:
    """How the engines make one window's answer, and what the host does around them, in its order."""
    front, back = dccrnpp.flow(cfg.denoiser), mhlt.flow(cfg.mhlt)
    [denoise], (clips, _, _) = front["steps"], back["steps"]
    preprocess, stft, istft = front["host_steps"]
    is_feature = cfg.level == "feature"
    joint = "o" if is_feature else "o_heard"
    feed = {"clip_features": "clip_features", "audio_features": "audio_features", **({"alpha": "alpha"} if is_feature else {})}
    samples = {"samples": cfg.mhlt.samples}
    blend = [{"step": "blend", "share": "alpha", "of": joint, "rest": "v", "give": "o", "shape": [], "why": "the voice counts for less the noisier it is"}]
    return {
        "inputs": back["inputs"],
        "steps": [
            denoise,
            clips,
            {"engine": "audio_encoder", "feed": {"wave": "heard"}, "give": {"audio_features": "audio_features"}},
            {"engine": "head", "feed": feed, "give": {"o": joint, "a": "a", "v": "v"}},
        ],
        "outputs": [*OUTPUTS, "alpha", "snr_db"],
        "primary": "o",
        "window_s": back["window_s"],
        "rates_hz": {**front["rates_hz"], **back["rates_hz"]},
        "latency_samples": front["latency_samples"],
        "host_steps": [
            preprocess,
            stft,
            istft,
            {"step": "match", "speech": istft["give"], "noisy": "wave", "give": "matched", **samples, "why": "the denoiser's gain and sign are its own"},
            {"step": "snr", "speech": "matched", "noisy": "wave", "give": "snr_db", "low": SNR_DB[0], "high": SNR_DB[1], "ema": EMA, "shape": []},
            {"step": "alpha", "snr_db": "snr_db", "give": "alpha", **asdict(cfg.alpha), "shape": []},
            {"step": "alpha", "snr_db": "snr_db", "give": "wave_share", **asdict(cfg.alpha.wave), "shape": []},
            {"step": "blend", "share": "wave_share", "of": "wave", "rest": "matched", "give": "mixed", **samples, "why": "where there is no noise, nothing is to be taken away"},
            {"step": "normalize", "from": "mixed", "give": "heard", "eps": 1e-7, **samples},
            *([] if is_feature else blend),
            *(step for step in back["host_steps"] if step["step"] in ("keep", "clamp")),
        ],
    }


def comparisons(cfg: Config) -> dict:
    """What the chain is measured against on the same clips, as flows over tensors of its own flow and its engines: {name: flow}.

    `mhlt`: MHLT alone on the noisy wave. `alpha_1`: what the chain hears, with α fixed at 1 where it answers. Where α acts on features, the
    head is asked for α = 1.
    """
    one = {"alpha": "one"} if cfg.level == "feature" else {}

    def flow(*steps: dict) -> dict:
        feed = {"clip_features": "clip_features", "audio_features": "features" if steps else "audio_features", **one}
        constant = [{"step": "constant", "give": "one", "value": 1.0}] if one else []
        normalize = [{"step": "normalize", "from": "wave", "give": "raw", "eps": 1e-7}] if steps else []
        inputs = ["clip_features", "wave" if steps else "audio_features"]
        return {"inputs": inputs, "steps": [*steps, {"engine": "head", "feed": feed, "give": {"o": "o"}}], "outputs": ["o"], "host_steps": [*normalize, *constant]}

    return {"mhlt": flow({"engine": "audio_encoder", "feed": {"wave": "raw"}, "give": {"audio_features": "features"}}), "alpha_1": flow()}


def io_spec(cfg: Config) -> dict:
    wave = dccrnpp.io_spec(cfg.denoiser)["inputs"]["wave"]
    spec = mhlt.io_spec(cfg.mhlt)
    outputs = {
        **spec["outputs"],
        "alpha": {"unit": "0..1", "meaning": "what the voice counts for"},
        "snr_db": {"unit": "dB", "meaning": "estimated ratio of speech to noise"},
    }
    return {"inputs": {**spec["inputs"], "wave": wave}, "outputs": outputs}


def preprocess_spec(cfg: Config) -> dict:
    return {"video": mhlt.preprocess_spec(cfg.mhlt)["video"], "audio": dccrnpp.preprocess_spec(cfg.denoiser)["audio"]}


# --- training: what follows the encoders, on what they give ---


def encode(module: RobustMHLT, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{"video", "wave"} → features of both, and α [n]."""
    matched, snr_db = module.listen(batch["wave"])
    return {
        "clip_features": module.mhlt.encode_clips(batch["video"]),
        "audio_features": module.mhlt.encode_audio(heard(batch["wave"], matched, module.alpha.wave.of(snr_db))),
        "alpha": module.alpha.of(snr_db),
    }


def train_forward(module: RobustMHLT, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Features as `encode` gives them, or video and wave → o, a, v."""
    encoded = batch if "clip_features" in batch else encode(module, batch)
    return module.fuse(encoded["clip_features"], encoded["audio_features"], encoded["alpha"])


def for_training(module: RobustMHLT) -> RobustMHLT:
    """Only TAUGHT learns: `v` stays what it was. What is frozen stands folded, as checkpoints hold it."""
    module = fold(module)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name.startswith(TAUGHT))
    return module


def towers(module: RobustMHLT) -> dict:
    return {}


# --- pruning ---

UNPRUNABLE = {**{f"mhlt.{path}": why for path, why in mhlt.UNPRUNABLE.items()}, **{f"denoiser.{path}": why for path, why in dccrn.UNPRUNABLE.items()}}


def prune_groups(module: RobustMHLT, cfg: Config) -> list[Group]:
    """Those of both models. Where α adds the joint hidden units to those of `lstm_v`, their places are tied, and they stay."""
    groups = [_within("denoiser", group) for group in dccrnpp.prune_groups(module.denoiser, cfg.denoiser)]
    listener = [group for group in mhlt.prune_groups(module.mhlt, cfg.mhlt) if group.name != "fusion" or cfg.level == "decision"]
    return groups + [_within("mhlt", group) for group in listener]


def _within(part: str, group: Group) -> Group:
    """`group` of a part, as one of the whole."""

    def axis(one: Axis) -> Axis:
        name = f"{part}.{one.name}" if "." in one.name or one.name.startswith("lstm") else one.name
        return replace(one, name=name, slices=tuple(replace(s, module=f"{part}.{s.module}") for s in one.slices))

    return replace(group, name=f"{part}.{group.name}", axes=tuple(axis(one) for one in group.axes), heads=tuple(f"{part}.{head}" for head in group.heads))

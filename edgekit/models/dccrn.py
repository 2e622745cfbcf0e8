"""DCCRN: a complex-valued U-net with an LSTM in the middle that denoises speech, one frame of 6.25 ms at a time.

The wave becomes a spectrum (host), the network makes a complex mask of it, the masked spectrum becomes a wave again (host).
Channels stand as real halves, then imaginary halves. A complex convolution has two real ones, W_r and W_i:

    re = W_r * x_r - W_i * x_i,    im = W_r * x_i + W_i * x_r

and is the same as one real convolution with [[W_r, -W_i], [W_i, W_r]], which is what engines get. Every decoder layer of the
published network drops its first frame of output and so sees one frame ahead: `look_ahead` frames late in all, one a layer;
without `look_ahead` it drops the last one and adds no delay.

Engine `denoiser` takes T new frames (T = 1 unless the configuration says `chunk`) and its states: the last input of every layer, those
frames of the encoders that the decoders are late for, and h and c of the recurrent nets. With a bidirectional GRU nothing can be
carried from chunk to chunk, and the engine takes a whole window at once.

Source: Hu et al. 2020, arXiv 2008.00264; `huyanxin/DeepComplexCRN:dc_crn.py`, whose keys a checkpoint may have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import losses
from ..errors import CheckpointError
from ..formats import Engine, State
from ..spectrum import Stft
from .groups import Axis, Group, Slice, channel_step

ENGINE, OUTPUT = "denoiser", "speech"
KERNEL, STRIDE = (5, 2), (2, 1)  # (frequency, time)


@dataclass(frozen=True)
class Config:
    """
    Attributes:
        channels: real plus imaginary, of each encoder layer.
        hidden: of each of the two real nets of a recurrent layer, per direction.
        samples: of the wave that a flow takes at once.
        chunk: frames that an engine takes at once; 0: one.
    """

    channels: tuple[int, ...] = (32, 64, 128, 256, 256, 256)
    rnn: str = "lstm"
    hidden: int = 128
    rnn_layers: int = 2
    is_bidirectional: bool = False
    look_ahead: bool = True
    mask: str = "E"
    win_length: int = 400
    hop_length: int = 100
    n_fft: int = 512
    sample_rate_hz: int = 16_000
    samples: int = 64_000
    chunk: int = 0

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping) -> Config:
        return cls(**{**fields, "channels": tuple(fields["channels"])})

    @property
    def stft(self) -> Stft:
        return Stft(self.win_length, self.hop_length, self.n_fft)

    @property
    def frames(self) -> int:
        return self.stft.frames(self.samples)

    @property
    def delay(self) -> int:
        """Frames by which the masks of a stream come late."""
        return len(self.channels) if self.look_ahead and not self.is_bidirectional else 0

    @property
    def rows(self) -> int:
        """Frequencies at the bottleneck."""
        return self.stft.bins >> len(self.channels)


HALF = (16, 32, 64, 128, 128, 128)
TINY = {"win_length": 128, "hop_length": 32, "n_fft": 128, "channels": (8, 16, 16), "samples": 1600}
CONFIGS = {
    "default": Config(),
    "default_causal": Config(look_ahead=False),
    "default_chunk": Config(chunk=16),
    "half": Config(channels=HALF, hidden=64),
    "half_chunk": Config(channels=HALF, hidden=64, chunk=16),
    "tiny": Config(**TINY, hidden=8),
    "tiny_causal": Config(**TINY, hidden=8, look_ahead=False),
    "tiny_chunk": Config(**TINY, hidden=8, chunk=4),
}
# The reference stores its transforms with the weights; they are made anew.
OPTIONAL_KEYS: tuple[str, ...] = ()


# --- layers ---


class ComplexConv2d(nn.Module):
    """[n, 2*c_in, f, t] → [n, 2*c_out, f/2, t]; the time axis is padded with one frame before it, so nothing ahead is seen."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.real_conv = nn.Conv2d(c_in, c_out, KERNEL, STRIDE, padding=(2, 0))
        self.imag_conv = nn.Conv2d(c_in, c_out, KERNEL, STRIDE, padding=(2, 0))
        for conv in (self.real_conv, self.imag_conv):
            nn.init.normal_(conv.weight, std=0.05)
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        x_r, x_i = F.pad(x, (1, 0)).chunk(2, 1)
        return _complex(lambda v, w: F.conv2d(v, w, None, STRIDE, (2, 0)), x_r, x_i, self.real_conv, self.imag_conv)


class ComplexConvTranspose2d(nn.Module):
    """[n, 2*c_in, f, t] → [n, 2*c_out, 2*f, t + 1]."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        options = {"stride": STRIDE, "padding": (2, 0), "output_padding": (1, 0)}
        self.real_conv = nn.ConvTranspose2d(c_in, c_out, KERNEL, **options)
        self.imag_conv = nn.ConvTranspose2d(c_in, c_out, KERNEL, **options)
        for conv in (self.real_conv, self.imag_conv):
            nn.init.normal_(conv.weight, std=0.05)
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        x_r, x_i = x.chunk(2, 1)
        return _complex(lambda v, w: F.conv_transpose2d(v, w, None, STRIDE, (2, 0), (1, 0)), x_r, x_i, self.real_conv, self.imag_conv)


def _complex(conv, x_r: Tensor, x_i: Tensor, real: nn.Module, imag: nn.Module) -> Tensor:
    """The complex product by three real ones (Gauss): a quarter less work than four, also in training."""
    a = conv(x_r + x_i, real.weight)
    b = conv(x_r, imag.weight - real.weight)
    c = conv(x_i, real.weight + imag.weight)
    # The published convolutions have a bias each: real parts get their difference, imaginary parts their sum.
    return torch.cat([a - c + (real.bias - imag.bias)[:, None, None], a + b + (real.bias + imag.bias)[:, None, None]], 1)


class ComplexRnn(nn.Module):
    """Two real nets R and I: re = R(x_r) - I(x_i), im = R(x_i) + I(x_r); [n, t, d] each."""

    def __init__(self, kind: str, width: int, hidden: int, is_bidirectional: bool, project_to: int | None):
        super().__init__()
        net = {"lstm": nn.LSTM, "gru": nn.GRU}[kind]
        self.kind = kind
        for part in ("real", "imag"):
            setattr(self, f"{part}_{kind}", net(width, hidden, batch_first=True, bidirectional=is_bidirectional))
        if project_to is not None:
            self.r_trans = nn.Linear(hidden * (1 + is_bidirectional), project_to)
            self.i_trans = nn.Linear(hidden * (1 + is_bidirectional), project_to)

    @property
    def nets(self) -> tuple[nn.RNNBase, nn.RNNBase]:
        return getattr(self, f"real_{self.kind}"), getattr(self, f"imag_{self.kind}")

    def forward(self, x_r: Tensor, x_i: Tensor) -> tuple[Tensor, Tensor]:
        n = len(x_r)
        both = torch.cat([x_r, x_i])
        (r, _), (i, _) = (net(both) for net in self.nets)
        y_r, y_i = r[:n] - i[n:], r[n:] + i[:n]
        return (self.r_trans(y_r), self.i_trans(y_i)) if hasattr(self, "r_trans") else (y_r, y_i)


class Transform(nn.Module):
    """The spectrum of a wave and back, as fixed convolutions; see edgekit.spectrum."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.hop, self.pad = cfg.hop_length, cfg.stft.pad
        angle = 2 * torch.pi * torch.outer(torch.arange(cfg.n_fft // 2 + 1), torch.arange(cfg.win_length)).double() / cfg.n_fft
        kernel = torch.cat([angle.cos(), -angle.sin()])
        window = torch.from_numpy(cfg.stft.window())
        self.register_buffer("forth", (kernel * window).float()[:, None], persistent=False)
        self.register_buffer("back", (torch.linalg.pinv(kernel).T * window).float()[:, None], persistent=False)
        self.register_buffer("square", window.square().float(), persistent=False)

    def analyse(self, wave: Tensor) -> Tensor:
        """[n, s] → [n, 2, bins, t], without DC."""
        y = F.conv1d(F.pad(wave, (self.pad, self.pad))[:, None], self.forth, stride=self.hop)
        return torch.stack([part[:, 1:] for part in y.chunk(2, 1)], 1)

    def synthesize(self, spectrum: Tensor, samples: int) -> Tensor:
        """[n, 2, bins, t] → [n, s]."""
        y = F.pad(spectrum, (0, 0, 1, 0)).flatten(1, 2)
        wave = F.conv_transpose1d(y, self.back, stride=self.hop)[:, 0]
        ones = torch.ones(1, 1, y.shape[-1])
        weight = F.conv_transpose1d(ones, self.square[None, None], stride=self.hop)[0, 0]
        wave = (wave / (weight + 1e-8))[:, self.pad :]
        return F.pad(wave, (0, max(0, samples - wave.shape[1])))[:, :samples].clamp(-1, 1)


class DCCRN(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        widths = [2, *cfg.channels]
        self.look_ahead, self.mask_kind, self.rows = cfg.look_ahead, cfg.mask, cfg.rows
        self.encoder = nn.ModuleList(
            nn.Sequential(ComplexConv2d(a // 2, b // 2), nn.BatchNorm2d(b), nn.PReLU()) for a, b in pairwise(widths)
        )
        deep = widths[-1] // 2 * cfg.rows
        directions = 1 + cfg.is_bidirectional
        self.enhance = nn.ModuleList(
            ComplexRnn(cfg.rnn, deep if k == 0 else cfg.hidden * directions, cfg.hidden, cfg.is_bidirectional, deep if k == cfg.rnn_layers - 1 else None)
            for k in range(cfg.rnn_layers)
        )
        layers = []
        for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True):
            conv = ComplexConvTranspose2d(a, b // 2)
            layers.append(nn.Sequential(conv) if b == 2 else nn.Sequential(conv, nn.BatchNorm2d(b), nn.PReLU()))
        self.decoder = nn.ModuleList(layers)
        self.transform = Transform(cfg)

    def mask(self, spectrum: Tensor) -> Tensor:
        """[n, 2, bins, t] → complex mask [n, 2, bins, t]."""
        x, skips = spectrum, []
        for layer in self.encoder:
            x = layer(x)
            skips.append(x)
        rows = x.shape[2]
        x_r, x_i = (part.permute(0, 3, 1, 2).flatten(2) for part in x.chunk(2, 1))
        for layer in self.enhance:
            x_r, x_i = layer(x_r, x_i)
        x = torch.cat([part.unflatten(2, (part.shape[2] // rows, rows)).permute(0, 2, 3, 1) for part in (x_r, x_i)], 1)
        for layer, skip in zip(self.decoder, reversed(skips), strict=True):
            (d_r, d_i), (s_r, s_i) = x.chunk(2, 1), skip.chunk(2, 1)
            y = layer[0](torch.cat([d_r, s_r, d_i, s_i], 1))
            y = y[..., 1:] if self.look_ahead else y[..., :-1]
            x = layer[1:](y)
        return x

    def forward(self, wave: Tensor) -> Tensor:
        """Noisy wave [n, s] → speech [n, s]."""
        spectrum = self.transform.analyse(wave)
        return self.transform.synthesize(masked(spectrum, self.mask(spectrum), self.mask_kind), wave.shape[1])


def masked(spectrum: Tensor, mask: Tensor, kind: str) -> Tensor:
    """A complex mask on a spectrum, both [n, 2, bins, t]. The published mask E works on phases with atan2; this is the same number."""
    (x_r, x_i), (m_r, m_i) = spectrum.unbind(1), mask.unbind(1)
    if kind == "R":
        return torch.stack([x_r * m_r, x_i * m_i], 1)
    if kind == "E":
        size = (m_r.square() + m_i.square()).clamp_min(1e-12).sqrt()
        gain = size.tanh() / size
        m_r, m_i = m_r * gain, m_i * gain
    return torch.stack([x_r * m_r - x_i * m_i, x_r * m_i + x_i * m_r], 1)


def build(cfg: Config) -> DCCRN:
    return DCCRN(cfg)


def fold(module: DCCRN) -> DCCRN:
    return module


def normalize_keys(state: Mapping[str, Tensor], cfg: Config) -> dict[str, Tensor]:
    """The reference's keys are ours; its stored transforms go, and its single unused wrapper `module.` too.

    Raises:
        CheckpointError: the checkpoint has complex batch norms (`use_cbn`), which are another network.
    """
    found = {}
    for key, value in state.items():
        key = key.removeprefix("module.")
        if key.split(".")[0] in ("stft", "istft", "transform"):
            continue
        if key.endswith((".Wrr", ".RMrr", ".RVrr")):
            raise CheckpointError(f"`{key}`: this checkpoint has complex batch norms (use_cbn), which are not built", "train with use_cbn=False")
        found[key] = value
    return found


def balance(module: DCCRN) -> None:
    """Rescale every complex channel by a power of two such that all channels of a layer reach about as far. Computes the same numbers, to the last bit.

    A tensor is quantized with one scale, so a channel that is 30 times weaker than its strongest neighbour would be left with 8 of
    255 values. PReLU keeps positive factors, and what reads a channel can undo them: here a batch norm makes 1/s of it, and the
    columns that read it become s times as large. How far it reaches follows from the batch norm: |shift| + 3 |gain|.
    """
    readers: dict[str, list[tuple[Tensor, int, int, int]]] = {}  # layer → (weight, axis, where the columns start, columns a channel)
    depth, rows = len(module.encoder), module.rows
    before = [module.enhance[-1].r_trans.out_features // rows, *(layer[0].real_conv.out_channels for layer in module.decoder[:-1])]
    for k in range(depth):
        skip = module.decoder[depth - 1 - k][0]
        found = [(conv.weight, 0, before[depth - 1 - k], 1) for conv in (skip.real_conv, skip.imag_conv)]
        if k + 1 < depth:
            found += [(conv.weight, 1, 0, 1) for conv in (module.encoder[k + 1][0].real_conv, module.encoder[k + 1][0].imag_conv)]
        else:
            found += [(value, 1, 0, rows) for net in module.enhance[0].nets for name, value in net.named_parameters() if name.startswith("weight_ih")]
        readers[f"encoder.{k}"] = found
        if k + 1 < depth:
            after = module.decoder[k + 1][0]
            readers[f"decoder.{k}"] = [(conv.weight, 0, 0, 1) for conv in (after.real_conv, after.imag_conv)]
    with torch.no_grad():
        for path, found in readers.items():
            norm = module.get_submodule(path)[1]
            reach = (norm.bias.abs() + 3 * norm.weight.abs()).unflatten(0, (2, -1)).amax(0).clamp_min(1e-6)
            factor = (reach / reach.amax()).log2().round().clamp_min(-8).exp2()
            for value in (norm.weight, norm.bias):
                value /= factor.repeat(2)
            for weight, axis, start, width in found:
                columns = weight.narrow(axis, start, len(factor) * width)
                columns *= factor.repeat_interleave(width).view([-1 if a == axis else 1 for a in range(weight.dim())])


# --- engines ---


class Frames(nn.Module):
    """T new frames at a time, with plain real layers only: what is exported.

    Complex layers are real ones with block weights, and transposed convolutions are two plain ones, for even and odd frequencies:
    of two neighbouring inputs each output frequency sees three or two, and none is computed to be dropped. Equal to `DCCRN.mask` up to rounding.
    """

    def __init__(self, model: DCCRN, frames: int):
        super().__init__()
        self.frames, self.look_ahead, self.rows = frames, model.look_ahead, model.rows
        self.encoder = nn.ModuleList(_encoder(layer, frames) for layer in model.encoder)
        self.enhance = nn.ModuleList(Recurrent(layer) for layer in model.enhance)
        self.decoder = nn.ModuleList()
        width = model.enhance[-1].r_trans.out_features // model.rows  # complex channels that reach the first decoder
        for layer, source in zip(model.decoder, reversed(model.encoder), strict=True):
            self.decoder.append(Decoder(layer, width, source[0].real_conv.out_channels, frames))
            width = layer[0].real_conv.out_channels

    def forward(self, frame: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """[1, 2, bins] or, of several frames, [1, 2, bins, T] and the states in the order of `states()` → the mask, then the new states."""
        x = frame.unsqueeze(3) if self.frames == 1 else frame
        given, new = iter(states), []
        skips = []
        for layer in self.encoder:
            x, last = layer(x, next(given))
            new.append(last)
            skips.append(x)
        x_r, x_i = (part.permute(0, 3, 1, 2).flatten(2) for part in x.chunk(2, 1))  # [1, T, c*f]
        for layer in self.enhance:
            x_r, x_i, *kept = layer(x_r, x_i, *(next(given) for _ in range(layer.n_states)))
            new += kept
        x = torch.cat([part.unflatten(2, (part.shape[2] // self.rows, self.rows)).permute(0, 2, 3, 1) for part in (x_r, x_i)], 1)
        for k, (layer, skip) in enumerate(zip(self.decoder, reversed(skips), strict=True)):
            if self.look_ahead and k:
                line = torch.cat([next(given), skip], 3)  # k frames late, as what it is joined to
                new.append(line[..., self.frames :])
                skip = line[..., : self.frames]
            x, last = layer(x, skip, next(given))
            new.append(last)
        return (x.squeeze(3) if self.frames == 1 else x, *new)

    def states(self, bins: int) -> dict[str, tuple[int, ...]]:
        """{name: shape}, in the order of forward's arguments."""
        found, f = {}, bins
        for k, layer in enumerate(self.encoder):
            found[f"enc{k}"] = (1, layer.c_in, f, 1)
            f //= 2
        for k, layer in enumerate(self.enhance):
            for run in ("rr", "ri", "ir", "ii"):
                found |= {f"{part}{k}_{run}": (1, 1, layer.hidden) for part in layer.parts}
        for k, layer in enumerate(self.decoder):
            if self.look_ahead and k:
                found[f"skip{k}"] = (1, 2 * layer.c_skip, f, k)
            found[f"dec{k}"] = (1, layer.c_in, f, 1)
            f *= 2
        return found


class Recurrent(nn.Module):
    """One complex recurrent layer: both nets on both parts, four runs with four states, so that every run is an ordinary one of batch 1."""

    def __init__(self, layer: ComplexRnn):
        super().__init__()
        self.real, self.imag = layer.nets
        self.hidden, self.parts = layer.nets[0].hidden_size, "hc" if layer.kind == "lstm" else "h"
        self.n_states = 4 * len(self.parts)
        if hasattr(layer, "r_trans"):
            self.r_trans, self.i_trans = layer.r_trans, layer.i_trans

    def forward(self, x_r: Tensor, x_i: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """[1, T, d] twice and the states of runs R(r), R(i), I(r), I(i) → both outputs, then the new states. Without states: from zero, none given back."""
        given, runs, new = iter(states), [], []
        for net in (self.real, self.imag):
            for x in (x_r, x_i):
                before = [next(given) for _ in self.parts] if states else []
                y, after = net(x, tuple(before) if len(before) > 1 else before[0]) if states else net(x)
                runs.append(y)
                new += (after if isinstance(after, tuple) else [after]) if states else []
        rr, ri, ir, ii = runs
        y_r, y_i = rr - ii, ri + ir
        if hasattr(self, "r_trans"):
            y_r, y_i = self.r_trans(y_r), self.i_trans(y_i)
        return (y_r, y_i, *new)


def _join(last: Tensor, x: Tensor, frames: int) -> Tensor:
    """Frame by frame, the frame before and the frame itself: side by side as channels where there is one, else along time."""
    return torch.cat([last, x], 1 if frames == 1 else 3)


def _newest(x: Tensor, frames: int) -> Tensor:
    return x if frames == 1 else x[..., -1:]


def _block(w_r: Tensor, w_i: Tensor) -> Tensor:
    """Complex weights [c_out, c_in, ...] as real ones on stacked halves."""
    return torch.cat([torch.cat([w_r, -w_i], 1), torch.cat([w_i, w_r], 1)], 0)


def _conv(weight: Tensor, bias: Tensor, frames: int, stride: int, pad: tuple[int, int]) -> nn.Module:
    """A convolution over (frequency, time) [c_out, c_in, kf, 2] as _join wants it; `pad` frequencies below and above."""
    if frames == 1:
        weight = torch.cat([weight[..., :1], weight[..., 1:]], 1)
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:], (stride, 1), padding=(pad[0] if pad[0] == pad[1] else 0, 0))
    conv.weight, conv.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
    return conv if pad[0] == pad[1] else nn.Sequential(nn.ZeroPad2d((0, 0, *pad)), conv)


class Encoder(nn.Module):
    def __init__(self, conv: nn.Module, norm: nn.Module, prelu: nn.Module, c_in: int, frames: int):
        super().__init__()
        self.conv, self.norm, self.prelu, self.c_in, self.frames = conv, norm, prelu, c_in, frames

    def forward(self, x: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        return self.prelu(self.norm(self.conv(_join(last, x, self.frames)))), _newest(x, self.frames)


def _encoder(layer: nn.Sequential, frames: int) -> Encoder:
    real, imag = layer[0].real_conv, layer[0].imag_conv
    bias = torch.cat([real.bias - imag.bias, real.bias + imag.bias])
    return Encoder(_conv(_block(real.weight, imag.weight), bias, frames, 2, (2, 2)), layer[1], layer[2], 2 * real.in_channels, frames)


class Decoder(nn.Module):
    """One transposed layer as two phases. Of frequency k of the input, even output 2k reads k-1..k+1 by taps 4, 2, 0, odd output 2k+1 reads k, k+1 by taps 3, 1."""

    def __init__(self, layer: nn.Sequential, c_before: int, c_skip: int, frames: int):
        super().__init__()
        real, imag = layer[0].real_conv, layer[0].imag_conv
        self.frames, self.c_in, self.c_skip = frames, 2 * (c_before + c_skip), c_skip
        # The published order of the input is [before_r, skip_r, before_i, skip_i]; here the layers' outputs are joined as they are.
        w_r, w_i = (conv.weight.transpose(0, 1) for conv in (real, imag))  # [c_out, c_in, 5, 2]
        blocks = [_block(w_r[:, part], w_i[:, part]) for part in (slice(0, c_before), slice(c_before, None))]
        weight = torch.cat(blocks, 1).flip(3)  # the newer frame meets the first time tap
        bias = torch.cat([real.bias - imag.bias, real.bias + imag.bias])
        self.even = _conv(weight[:, :, [4, 2, 0]], bias, frames, 1, (1, 1))
        self.odd = _conv(weight[:, :, [3, 1]], bias, frames, 1, (0, 1))
        self.norm, self.prelu = (layer[1], layer[2]) if len(layer) > 1 else (None, None)

    def forward(self, x: Tensor, skip: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([x, skip], 1)
        joined = _join(last, x, self.frames)
        phases = [phase(joined) for phase in (self.even, self.odd)]
        if self.norm is not None:
            phases = [self.prelu(self.norm(y)) for y in phases]
        return torch.stack(phases, 3).flatten(2, 3), _newest(x, self.frames)


class Chunk(nn.Module):
    """A whole window at once, without states: [1, 2, bins, T] → mask of the same shape. Transposed convolutions are phases here too."""

    def __init__(self, model: DCCRN, frames: int):
        super().__init__()
        self.inner = Frames(model, frames)
        self.look_ahead = model.look_ahead

    def forward(self, frame: Tensor) -> tuple[Tensor]:
        x, skips, inner = frame, [], self.inner
        for layer in inner.encoder:
            x = layer.prelu(layer.norm(layer.conv(F.pad(x, (1, 0)))))
            skips.append(x)
        x_r, x_i = (part.permute(0, 3, 1, 2).flatten(2) for part in x.chunk(2, 1))
        for layer in inner.enhance:
            x_r, x_i = layer(x_r, x_i)
        x = torch.cat([part.unflatten(2, (part.shape[2] // inner.rows, inner.rows)).permute(0, 2, 3, 1) for part in (x_r, x_i)], 1)
        for layer, skip in zip(inner.decoder, reversed(skips), strict=True):
            joined = F.pad(torch.cat([x, skip], 1), (0, 1) if self.look_ahead else (1, 0))
            phases = [phase(joined) for phase in (layer.even, layer.odd)]
            if layer.norm is not None:
                phases = [layer.prelu(layer.norm(y)) for y in phases]
            x = torch.stack(phases, 3).flatten(2, 3)
        return (x,)


def engines(module: DCCRN, cfg: Config) -> list[Engine]:
    """One engine, of one frame, several, or a whole window. Widths come from the module, since it may be pruned."""
    bins = cfg.stft.bins
    if cfg.is_bidirectional:
        shape = (1, 2, bins, cfg.frames)
        return [Engine(ENGINE, Chunk(module, cfg.frames), {"frame": shape}, {"mask": shape})]
    frames = cfg.chunk or 1
    net = Frames(module, frames)
    shapes = net.states(bins)
    shape = (1, 2, bins) if frames == 1 else (1, 2, bins, frames)
    return [
        Engine(
            ENGINE, net, {"frame": shape, **{f"{name}_in": s for name, s in shapes.items()}},
            {"mask": shape, **{f"{name}_out": s for name, s in shapes.items()}},
            tuple(State(f"{name}_in", f"{name}_out", s) for name, s in shapes.items()),
        )
    ]  # fmt: skip


def flow(cfg: Config) -> dict:
    """One window; a live system runs the engine on every hop, with the states of the hop before."""
    sizes, late = cfg.stft.to_json(), cfg.delay
    chunk = cfg.frames if cfg.is_bidirectional else cfg.chunk
    before = {"step": "stft", "from": "wave", "give": "spectrum", **sizes, "delay": late}
    after = {"step": "masked_istft", "spectrum": "spectrum", "masks": "masks", "give": OUTPUT, "mask": cfg.mask, **sizes, "delay": late, "samples": cfg.samples}
    if chunk:
        before, after = (one | {"chunk": chunk} for one in (before, after))
    step = {"engine": ENGINE, "each": {"frame": "spectrum"}, "stack": {"mask": "masks"}, "runs": -(-(cfg.frames + late) // (chunk or 1))}
    return {
        "inputs": {"wave": {"shape": [cfg.samples], "dtype": "float32"}},
        "steps": [step],
        "outputs": [OUTPUT],
        "primary": OUTPUT,
        "task": "speech",
        "window_s": cfg.samples / cfg.sample_rate_hz,
        "rates_hz": {ENGINE: cfg.sample_rate_hz / cfg.hop_length / (chunk or 1)},
        "latency_samples": cfg.win_length + (late + max(chunk - 1, 0)) * cfg.hop_length,
        "host_steps": [{"step": "preprocess", "spec": "preprocess.json"}, before, after],
    }


def io_spec(cfg: Config) -> dict:
    return {
        "inputs": {"wave": {"unit": "full scale", "axes": ["sample"], "sample_rate_hz": cfg.sample_rate_hz}},
        "outputs": {OUTPUT: {"unit": "full scale", "axes": ["sample"], "sample_rate_hz": cfg.sample_rate_hz, "meaning": "the wave without its noise"}},
    }


def preprocess_spec(cfg: Config) -> dict:
    return {
        "audio": {
            "sample_rate_hz": cfg.sample_rate_hz, "samples": cfg.samples, "scale": 32768.0, "normalize": "none", "pad": "right_zero_after_normalize",
        }
    }  # fmt: skip


# --- training ---


def train_forward(module: DCCRN, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{"wave": [n, s]} → {"speech": [n, s]}. In training the network runs in bfloat16 where the CPU has it (1.5 to 2.5 times as fast)."""
    spectrum = module.transform.analyse(batch["wave"])
    with torch.autocast("cpu", torch.bfloat16, enabled=module.training and torch.cpu._is_avx512_bf16_supported()):
        mask = module.mask(spectrum)
    return {OUTPUT: module.transform.synthesize(masked(spectrum, mask.float(), module.mask_kind), batch["wave"].shape[1])}


def loss(outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
    """-SI-SNR in dB, mean over the batch."""
    return -losses.si_snr(outputs[OUTPUT], labels[OUTPUT]).mean()


CROP = 24_000  # samples


def remix(batch: Mapping[str, Tensor], labels: Mapping[str, Tensor], generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """New mixtures of the batch's speech and noise: another clip's noise, another SNR (-5 to 20 dB), another level, and 1.5 s of each."""
    clean = labels[OUTPUT]
    noise = batch["wave"] - clean
    n, samples = clean.shape

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, generator=generator)

    def cut(waves: Tensor) -> Tensor:
        starts = torch.randint(0, max(1, samples - CROP + 1), (n,), generator=generator).tolist()
        return torch.stack([wave[start : start + CROP] for wave, start in zip(waves, starts, strict=True)])

    clean, noise = cut(clean), cut(noise[torch.randperm(n, generator=generator)])
    power_clean, power_noise = (v.square().mean(1, keepdim=True).clamp_min(1e-10) for v in (clean, noise))
    noise = noise * (power_clean / power_noise).sqrt() * 10 ** (-uniform(-5, 20) / 20)
    level = 10 ** (uniform(-10, 6) / 20)
    wave, clean = (clean + noise) * level, clean * level
    loud = wave.abs().amax(1, keepdim=True).clamp_min(1.0)
    return {**batch, "wave": wave / loud}, {**labels, OUTPUT: clean / loud}


def for_training(module: DCCRN) -> DCCRN:
    return module


def towers(module: DCCRN) -> dict:
    return {}


# --- pruning ---

UNPRUNABLE = {"the last decoder layer": "makes the mask"}


def prune_groups(module: DCCRN, cfg: Config) -> list[Group]:
    """Complex channels, real and imaginary part together, and the units of the recurrent nets."""
    groups, depth = [], len(module.encoder)
    widths = [layer[0].real_conv.out_channels for layer in module.encoder]
    before = [module.enhance[-1].r_trans.out_features // module.rows, *(layer[0].real_conv.out_channels for layer in module.decoder[:-1])]
    for k in range(depth):
        made = _made(module, f"encoder.{k}", widths[k])
        # Decoder layer depth-1-k reads it behind the channels of the layer before.
        skip = depth - 1 - k
        read = [Slice(f"decoder.{skip}.0.{part}_conv", "weight", 0, "in", starts=(before[skip],)) for part in ("real", "imag")]
        if k + 1 < depth:
            read += [Slice(f"encoder.{k + 1}.0.{part}_conv", "weight", 1, "in") for part in ("real", "imag")]
        else:  # each complex channel gives one feature per frequency, next to each other
            nets = [f"enhance.0.{part}_{module.enhance[0].kind}" for part in ("real", "imag")]
            names = [name for name, _ in module.enhance[0].nets[0].named_parameters() if name.startswith("weight_ih")]
            read += [Slice(net, name, 1, "in", width=module.rows) for net in nets for name in names]
        groups.append(_channels(f"encoder.{k}", widths[k], [*made, *read]))
    groups += _units(module)
    projected = [Slice(f"enhance.{len(module.enhance) - 1}.{part}_trans", name, 0, "out", width=module.rows) for part in "ri" for name in ("weight", "bias")]
    for k in range(depth):
        made = projected if k == 0 else _made(module, f"decoder.{k - 1}", before[k], axis=1)
        read = [Slice(f"decoder.{k}.0.{part}_conv", "weight", 0, "in") for part in ("real", "imag")]
        groups.append(_channels(made[0].module if k == 0 else f"decoder.{k - 1}", before[k], [*made, *read]))
    return groups


def _channels(name: str, units: int, slices: list[Slice]) -> Group:
    return Group(name, "channels", (Axis("units", units, channel_step(units), tuple(slices)),))


def _made(module: DCCRN, layer: str, width: int, axis: int = 0) -> list[Slice]:
    """What makes the complex channels of a layer: both convolutions, and the norm of real and imaginary halves."""
    made = [Slice(f"{layer}.0.{part}_conv", "weight", axis, "out") for part in ("real", "imag")]
    made += [Slice(f"{layer}.0.{part}_conv", "bias", 0, "out") for part in ("real", "imag")]
    return made + [Slice(f"{layer}.1", name, 0, "out", starts=(0, width)) for name in ("weight", "bias", "running_mean", "running_var")]


def _units(module: DCCRN) -> list[Group]:
    """The units of one recurrent layer: all four runs of its two nets have the same."""
    groups = []
    for k, layer in enumerate(module.enhance):
        hidden, gates = layer.nets[0].hidden_size, {"lstm": 4, "gru": 3}[layer.kind]
        rows = tuple(gate * hidden for gate in range(gates))
        nets = [f"enhance.{k}.{part}_{layer.kind}" for part in ("real", "imag")]
        directions = ("", "_reverse") if layer.nets[0].bidirectional else ("",)
        axes = []
        for d, way in enumerate(directions):
            made = [Slice(net, f"{name}_l0{way}", 0, "out", starts=rows) for net in nets for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            read = [Slice(net, f"weight_hh_l0{way}", 1, "in") for net in nets]
            if k + 1 < len(module.enhance):
                after = [f"enhance.{k + 1}.{part}_{layer.kind}" for part in ("real", "imag")]
                read += [Slice(net, f"weight_ih_l0{v}", 1, "in", starts=(d * hidden,)) for net in after for v in directions]
            else:
                read += [Slice(f"enhance.{k}.{part}_trans", "weight", 1, "in", starts=(d * hidden,)) for part in "ri"]
            axes.append(Axis(f"units{way}", hidden, channel_step(hidden), (*made, *read)))
        groups.append(Group(f"enhance.{k}", "hidden_units", tuple(axes)))
    return groups

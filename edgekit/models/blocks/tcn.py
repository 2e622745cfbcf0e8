"""Temporal convolutional network: causal dilated Conv1d blocks with residuals.

Key names are those of the public code: `network.{i}.{conv1,conv2,downsample}`. Its checkpoints hold
every convolution twice, also as `network.{i}.net.{0,4}`, and may hold its weight norm in either spelling;
`plain_weights` takes both away.
Source: Bai et al. 2018 (TCN), arXiv 1803.01271; Salimans and Kingma 2016 (weight norm), arXiv 1602.07868.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from ...errors import CheckpointError
from ..groups import Group, Slice, one_axis

_ALIAS = re.compile(r"(^|\.)network\.\d+\.net\.\d+\.")
# {the gain's ending: the direction's}, of nn.utils.weight_norm and of parametrizations.weight_norm.
_SPELLINGS = {".weight_g": ".weight_v", ".parametrizations.weight.original0": ".parametrizations.weight.original1"}


class TemporalBlock(nn.Module):
    """Twice causal Conv1d, activation and dropout; then the input is added, through a 1x1 Conv1d where widths differ."""

    def __init__(self, c_in: int, c_out: int, kernel: int, dilation: int, slope: float, dropout: float, normed: bool):
        super().__init__()
        norm = weight_norm if normed else nn.Identity()
        reach = (kernel - 1) * dilation
        self.pad = nn.ConstantPad1d((reach, 0), 0.0)  # only the past: output t sees inputs up to t
        self.conv1 = norm(nn.Conv1d(c_in, c_out, kernel, dilation=dilation))
        self.conv2 = norm(nn.Conv1d(c_out, c_out, kernel, dilation=dilation))
        self.downsample = nn.Conv1d(c_in, c_out, 1) if c_in != c_out else None
        self.act = nn.LeakyReLU(slope) if slope else nn.ReLU()
        self.drop = nn.Dropout1d(dropout)  # whole channels

    def forward(self, x: Tensor) -> Tensor:
        """[n, c_in, t] → [n, c_out, t]."""
        y = self.drop(self.act(self.conv1(self.pad(x))))
        y = self.drop(self.act(self.conv2(self.pad(y))))
        return self.act(y + (x if self.downsample is None else self.downsample(x)))


class TCN(nn.Module):
    """Blocks whose dilation doubles from 1 on; one per width. Sees (kernel - 1) * 2 * (2^blocks - 1) steps of the past.

    Args:
        slope: of the leaky ReLU, 0 for a plain one.
        normed: with weight norm, as published checkpoints of the leader-follower model are; `fold` writes it into the weights.
    """

    def __init__(self, c_in: int, widths: Sequence[int], kernel: int, slope: float = 0.0, dropout: float = 0.1, normed: bool = False):
        super().__init__()
        ins = [c_in, *widths[:-1]]
        self.network = nn.Sequential(*[TemporalBlock(a, b, kernel, 2**i, slope, dropout, normed) for i, (a, b) in enumerate(zip(ins, widths, strict=True))])

    def forward(self, x: Tensor) -> Tensor:
        """[n, t, c_in] → [n, t, widths[-1]]."""
        return self.network(x.transpose(1, 2)).transpose(1, 2)


def fold(module: nn.Module) -> None:
    """Replace every weight norm inside `module` by the plain weight, in place."""
    for sub in module.modules():
        if isinstance(sub, nn.Conv1d) and parametrize.is_parametrized(sub, "weight"):
            parametrize.remove_parametrizations(sub, "weight")


def plain_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the second names of convolutions, and with every weight norm multiplied out.

    The norm is taken over all but the output channels (dim 0): g is [out, 1, 1], v is [out, in, k].

    Raises:
        CheckpointError: g has another shape, or a weight is there in two spellings.
    """
    plain = {key: value for key, value in state.items() if not _ALIAS.search(key)}
    for g_key in [key for key in plain if key.endswith(tuple(_SPELLINGS))]:
        ending = next(e for e in _SPELLINGS if g_key.endswith(e))
        path = g_key.removesuffix(ending)
        if f"{path}{_SPELLINGS[ending]}" not in plain:
            continue  # half a weight norm: the weight will be reported as missing
        g, v = plain.pop(g_key).float(), plain.pop(f"{path}{_SPELLINGS[ending]}").float()
        if v.dim() != 3 or g.shape != (len(v), 1, 1):
            raise CheckpointError(f"`{g_key}` is {list(g.shape)} for a weight of {list(v.shape)}, expected [out, 1, 1]", "the norm is taken per output channel (dim=0)")
        if f"{path}.weight" in plain:
            raise CheckpointError(f"`{path}.weight` is there twice, once as `{g_key}`", "keep one of the two spellings in the checkpoint")
        # clamp_min: an all-zero filter has norm 0 and weight 0, not NaN.
        plain[f"{path}.weight"] = g * v / v.norm(dim=(1, 2), keepdim=True).clamp_min(1e-30)
    return plain


def tcn_groups(module: TCN, prefix: str, readers: Sequence[Slice]) -> list[Group]:
    """What can be removed of a folded TCN: each block's inner channels, and each stream that residuals carry from block to block.

    Args:
        readers: slices outside that read the last block's channels.
    """
    blocks = list(zip([f"{prefix}.network.{i}" for i in range(len(module.network))], module.network, strict=True))
    inner, streams = [], []
    name, width, stream = "", 0, []
    for path, block in blocks:
        made = [Slice(f"{path}.conv1", t, 0, "out") for t in ("weight", "bias")]
        inner.append(one_axis(f"{path}.conv1", "channels", block.conv1.out_channels, [*made, Slice(f"{path}.conv2", "weight", 1, "in")]))
        stream.append(Slice(f"{path}.conv1", "weight", 1, "in"))
        if block.downsample is not None:
            stream.append(Slice(f"{path}.downsample", "weight", 1, "in"))
            if name:
                streams.append(one_axis(name, "channels", width, stream))
            name, width = f"{path}.downsample", block.downsample.out_channels
            stream = [Slice(name, t, 0, "out") for t in ("weight", "bias")]
        stream += [Slice(f"{path}.conv2", t, 0, "out") for t in ("weight", "bias")]
    # Where the first block has as many channels as its input, that input is somebody else's stream.
    return [*streams, *([one_axis(name, "channels", width, [*stream, *readers])] if name else []), *inner]

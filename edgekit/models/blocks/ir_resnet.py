"""IR-ResNet: the face-recognition ResNet whose units are BN, conv, PReLU, conv, BN; an embedding of unit length.

Key names are those of the public code: `input_layer.{0,1,2}`, `body.{i}.{shortcut_layer,res_layer}`, `output_layer.{0,3,4}`.
The first stage keeps the picture's size, each later one halves it in the second convolution of its first unit.
Source: Deng et al. 2019 (ArcFace), arXiv 1801.07698; He et al. 2016, arXiv 1512.03385.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from ..groups import Group, Slice, one_axis


@dataclass(frozen=True)
class IRSize:
    """Widths of an IR-ResNet; the defaults are those of 50 layers."""

    widths: tuple[int, ...] = (64, 128, 256, 512)
    units: tuple[int, ...] = (3, 4, 14, 3)
    embedding: int = 512

    @property
    def halvings(self) -> int:
        return len(self.widths) - 1


class Unit(nn.Module):
    """x + BN(conv(PReLU(conv(BN(x))))); x through a 1x1 convolution where the width changes, else every `stride`-th pixel of it."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        if c_in == c_out:
            self.shortcut_layer = nn.MaxPool2d(1, stride)
        else:
            self.shortcut_layer = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(c_in),
            nn.Conv2d(c_in, c_out, 3, 1, 1, bias=False),
            nn.PReLU(c_out),
            nn.Conv2d(c_out, c_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class IRResNet(nn.Module):
    """A face → its embedding.

    Args:
        height, width: of the picture; the last linear layer has one column for each place of the last map.
        dropout: before the last linear layer.
    """

    def __init__(self, size: IRSize, height: int, width: int, dropout: float = 0.4):
        super().__init__()
        first, last = size.widths[0], size.widths[-1]
        self.input_layer = nn.Sequential(nn.Conv2d(3, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first), nn.PReLU(first))
        units, c_in = [], first
        for stage, (c_out, count) in enumerate(zip(size.widths, size.units, strict=True)):
            for i in range(count):
                units.append(Unit(c_in, c_out, 2 if stage and i == 0 else 1))
                c_in = c_out
        self.body = nn.Sequential(*units)
        places = halved(height, size.halvings) * halved(width, size.halvings)
        self.output_layer = nn.Sequential(nn.BatchNorm2d(last), nn.Dropout(dropout), nn.Flatten(), nn.Linear(last * places, size.embedding), nn.BatchNorm1d(size.embedding))

    def forward(self, faces: Tensor) -> Tensor:
        """[n, 3, height, width] → [n, embedding] of length 1."""
        return F.normalize(self.output_layer(self.body(self.input_layer(faces))), dim=1)


def halved(length: int, times: int) -> int:
    """What a 3x3 convolution of stride 2 and padding 1 leaves of a length, so many times over."""
    for _ in range(times):
        length = (length + 1) // 2
    return length


def ir_groups(module: IRResNet, prefix: str) -> list[Group]:
    """What can be removed: the channels inside each unit, and each residual stream with all that adds to it and reads it.

    The embedding stays as wide as it is: its length of 1 is over all of it.
    """
    units = [f"{prefix}.body.{i}" for i in range(len(module.body))]
    inner = [_inner(path, unit) for path, unit in zip(units, module.body, strict=True)]
    streams, open_stream = [], [*_rows(f"{prefix}.input_layer.0", "weight"), *_norm(f"{prefix}.input_layer.1"), *_rows(f"{prefix}.input_layer.2", "weight")]
    name, width = f"{prefix}.input_layer.0", module.input_layer[0].out_channels
    for path, unit in zip(units, module.body, strict=True):
        open_stream += [*_norm(f"{path}.res_layer.0"), Slice(f"{path}.res_layer.1", "weight", 1, "in")]
        if not isinstance(unit.shortcut_layer, nn.MaxPool2d):
            streams.append(one_axis(name, "channels", width, [*open_stream, Slice(f"{path}.shortcut_layer.0", "weight", 1, "in")]))
            name, width = f"{path}.shortcut_layer.0", unit.shortcut_layer[0].out_channels
            open_stream = [*_rows(name, "weight"), *_norm(f"{path}.shortcut_layer.1")]
        open_stream += [*_rows(f"{path}.res_layer.3", "weight"), *_norm(f"{path}.res_layer.4")]
    linear = f"{prefix}.output_layer.3"
    places = module.output_layer[3].in_features // width
    last = [*open_stream, *_norm(f"{prefix}.output_layer.0"), Slice(linear, "weight", 1, "in", width=places)]
    return [*streams, one_axis(name, "channels", width, last), *inner]


def _inner(path: str, unit: Unit) -> Group:
    made = [*_rows(f"{path}.res_layer.1", "weight"), *_rows(f"{path}.res_layer.2", "weight")]
    return one_axis(f"{path}.res_layer.1", "channels", unit.res_layer[1].out_channels, [*made, Slice(f"{path}.res_layer.3", "weight", 1, "in")])


def _rows(path: str, *parameters: str) -> list[Slice]:
    return [Slice(path, parameter, 0, "out") for parameter in parameters]


def _norm(path: str) -> list[Slice]:
    return _rows(path, "weight", "bias", "running_mean", "running_var")

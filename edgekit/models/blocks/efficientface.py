"""EfficientFace: one face image to one vector. ShuffleNetV2 units, a gate, and a branch that sees four patches apart.

Key names are those of the public backbone (zengqunzhao/EfficientFace), so its checkpoints load as they are:
`conv1.{0|1}`, `stage{2|3|4}.{i}.branch{1|2}.{j}`, `modulator.channel_att.gate_c.*`, `modulator.spatial_att.gate_s.*`,
`local.{conv|bn}{1..4}_{1|2}`, `conv5.{0|1}`.
Source: Zhao et al. 2021 (EfficientFace), AAAI; Ma et al. 2018 (ShuffleNetV2), arXiv 1807.11164.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..groups import Group, Slice, one_axis

STAGES = ("stage2", "stage3", "stage4")


@dataclass(frozen=True)
class EfficientFaceSize:
    """The defaults are the public backbone's.

    Attributes:
        repeats: units of each stage, the first of which halves height and width.
        channels: of the stem, the three stages and the feature. A stage's are even; stage 2's are a multiple of the stem's.
        image: height and width of the face, a multiple of 16, since the patches are fixed.
        reduction: how much narrower than stage 2 its gate is.
    """

    repeats: tuple[int, int, int] = (4, 8, 4)
    channels: tuple[int, int, int, int, int] = (29, 116, 232, 464, 1024)
    image: int = 224
    reduction: int = 16

    @property
    def half(self) -> int:
        """Height and width of a patch: a quarter of what the stem leaves, which is a fourth of the image's."""
        return self.image // 8

    @property
    def last(self) -> int:
        return self.channels[-1]

    @classmethod
    def from_json(cls, fields: Mapping) -> EfficientFaceSize:
        return cls(**{**fields, "repeats": tuple(fields["repeats"]), "channels": tuple(fields["channels"])})


SIZES = {
    "default": EfficientFaceSize(),
    "small": EfficientFaceSize(repeats=(3, 4, 3), channels=(24, 96, 160, 208, 224), image=64),
    "tiny": EfficientFaceSize(repeats=(2, 2, 2), channels=(4, 16, 32, 32, 64), image=64, reduction=4),
}


def _conv_bn_relu(c_in: int, c_out: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


def _depthwise(c_in: int, c_out: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, stride, padding=1, groups=c_in, bias=False)


class ShuffleUnit(nn.Module):
    """ShuffleNetV2: with stride 1 the first half of the channels passes by, with stride 2 both branches read all of them."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        half = c_out // 2
        if stride == 2:
            self.branch1 = nn.Sequential(_depthwise(c_in, c_in, 2), nn.BatchNorm2d(c_in), *_conv_bn_relu(c_in, half, 1, 1))
        self.branch2 = nn.Sequential(
            *_conv_bn_relu(c_in if stride == 2 else half, half, 1, 1), _depthwise(half, half, stride), nn.BatchNorm2d(half), *_conv_bn_relu(half, half, 1, 1)
        )
        self.stride = stride
        # Channel shuffle in two groups: one of the first half, one of the second, and so on. As a Gather along one axis it
        # is a single op on every runtime; the usual reshape and transpose need five axes, or a layout that not all of them keep.
        self.register_buffer("order", torch.arange(c_out).view(2, half).T.flatten(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 2:
            y = torch.cat((self.branch1(x), self.branch2(x)), 1)
        else:
            passing, worked = x.chunk(2, 1)
            y = torch.cat((passing, self.branch2(worked)), 1)
        if self.training:  # the same, with a gradient that is not a scatter
            return y.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return y.index_select(1, self.order)


class ChannelGate(nn.Module):
    """[n, c, h, w] → [n, c, 1, 1] from the mean over the image."""

    def __init__(self, channels: int, inner: int):
        super().__init__()
        layers = {
            "gate_c_fc_0": nn.Linear(channels, inner),
            "gate_c_bn_1": nn.BatchNorm1d(inner),
            "gate_c_relu_1": nn.ReLU(),
            "gate_c_fc_final": nn.Linear(inner, channels),
        }
        self.gate_c = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate_c(x.mean((2, 3)))[:, :, None, None]


class SpatialGate(nn.Module):
    """[n, c, h, w] → [n, 1, h, w], dilated so that a place sees far."""

    def __init__(self, channels: int, inner: int):
        super().__init__()
        layers: dict[str, nn.Module] = {
            "gate_s_conv_reduce0": nn.Conv2d(channels, inner, 1),
            "gate_s_bn_reduce0": nn.BatchNorm2d(inner),
            "gate_s_relu_reduce0": nn.ReLU(),
        }
        for i in range(2):
            layers[f"gate_s_conv_di_{i}"] = nn.Conv2d(inner, inner, 3, padding=4, dilation=4)
            layers[f"gate_s_bn_di_{i}"] = nn.BatchNorm2d(inner)
            layers[f"gate_s_relu_di_{i}"] = nn.ReLU()
        layers["gate_s_conv_final"] = nn.Conv2d(inner, 1, 1)
        self.gate_s = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate_s(x)


class Modulator(nn.Module):
    """sigmoid(channel gate * spatial gate) * x."""

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        self.channel_att = ChannelGate(channels, channels // reduction)
        self.spatial_att = SpatialGate(channels, channels // reduction)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.channel_att(x) * self.spatial_att(x)) * x


class LocalFeatures(nn.Module):
    """Four patches, each through depthwise convolutions of its own, put back where they were.

    The public order of the patches is by columns: 1 is top left, 2 below it, 3 top right, 4 below that.
    """

    def __init__(self, c_in: int, c_out: int, half: int):
        super().__init__()
        self.half = half
        for patch in range(1, 5):
            self.add_module(f"conv{patch}_1", _depthwise(c_in, c_out, 2))
            self.add_module(f"bn{patch}_1", nn.BatchNorm2d(c_out))
            self.add_module(f"conv{patch}_2", _depthwise(c_out, c_out, 1))
            self.add_module(f"bn{patch}_2", nn.BatchNorm2d(c_out))

    def patch(self, number: int, x: Tensor) -> Tensor:
        for step in (1, 2):
            x = torch.relu(getattr(self, f"bn{number}_{step}")(getattr(self, f"conv{number}_{step}")(x)))
        return x

    def forward(self, x: Tensor) -> Tensor:
        """[n, c_in, 2 * half, 2 * half] → [n, c_out, half, half]."""
        h = self.half
        left = torch.cat((self.patch(1, x[:, :, :h, :h]), self.patch(2, x[:, :, h:, :h])), 2)
        right = torch.cat((self.patch(3, x[:, :, :h, h:]), self.patch(4, x[:, :, h:, h:])), 2)
        return torch.cat((left, right), 3)


class EfficientFace(nn.Module):
    """The backbone up to the globally pooled feature; it may be a base class, so that its keys stand beside others."""

    def __init__(self, size: EfficientFaceSize = SIZES["default"]):
        super().__init__()
        stem, second = size.channels[:2]
        if size.image % 16 or second % stem or any(c % 2 for c in size.channels[1:4]):
            raise ValueError(f"{size}: `image` must be a multiple of 16, stages even, and stage 2 a multiple of the stem")
        self.conv1 = _conv_bn_relu(3, stem, 3, 2)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        c_in = stem
        for name, repeats, c_out in zip(STAGES, size.repeats, size.channels[1:4], strict=True):
            units = [ShuffleUnit(c_in, c_out, 2), *(ShuffleUnit(c_out, c_out, 1) for _ in range(repeats - 1))]
            self.add_module(name, nn.Sequential(*units))
            c_in = c_out
        self.local = LocalFeatures(stem, second, size.half)
        self.modulator = Modulator(second, size.reduction)
        self.conv5 = _conv_bn_relu(c_in, size.last, 1, 1)

    def features(self, face: Tensor) -> Tensor:
        """[n, 3, image, image] → [n, last]: mean over height and width."""
        x = self.maxpool(self.conv1(face))
        x = self.modulator(self.stage2(x)) + self.local(x)
        return self.conv5(self.stage4(self.stage3(x))).mean((2, 3))

    def forward(self, face: Tensor) -> Tensor:
        return self.features(face)


# What prune refuses to touch, by path within the backbone: {layer: why}.
UNPRUNABLE = {
    "conv1.0": "feeds grouped convolutions of four patches, whose outputs are stage 2's",
    **{f"{stage}.0.branch1": "makes a half of its stage's width, which every later unit splits and shuffles" for stage in STAGES},
    "local": "adds to stage 2, whose width every unit splits and shuffles",
    "modulator": "gates stage 2, and is a few channels wide",
}


def prune_groups(module: EfficientFace, prefix: str, readers: tuple[Slice, ...] = ()) -> list[Group]:
    """The inner width of every unit's working branch, and the feature's channels.

    Stage widths stay: shuffle sends each channel another way through every later unit, so that the halves of
    all units would have to lose the same number from channels that do not correspond.

    Args:
        readers: slices outside of `module` that read its feature's channels.
    """
    groups = []
    for stage in STAGES:
        for i, unit in enumerate(getattr(module, stage)):
            path = f"{prefix}{stage}.{i}.branch2"
            made = [*_conv_bn(f"{path}.0", f"{path}.1"), *_conv_bn(f"{path}.3", f"{path}.4")]
            groups.append(one_axis(f"{path}.0", "channels", unit.branch2[0].out_channels, [*made, Slice(f"{path}.5", "weight", 1, "in")]))
    return [*groups, one_axis(f"{prefix}conv5.0", "channels", module.conv5[0].out_channels, [*_conv_bn(f"{prefix}conv5.0", f"{prefix}conv5.1"), *readers])]


def _conv_bn(conv: str, norm: str) -> list[Slice]:
    """What a convolution without bias and its batch norm make."""
    return [Slice(conv, "weight", 0, "out"), *(Slice(norm, name, 0, "out") for name in ("weight", "bias", "running_mean", "running_var"))]

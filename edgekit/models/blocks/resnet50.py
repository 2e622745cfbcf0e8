"""ResNet of bottlenecks over a picture, up to its pooled feature: ResNet-50, and narrower ones of the same build.

Key names, strides (in the 3x3 convolution) and order of layers are torchvision's `resnet50`, so its checkpoints load as they are:
`conv1`, `bn1`, `layer{s}.{b}.{conv1,bn1,conv2,bn2,conv3,bn3}`, `layer{s}.0.downsample.{0,1}`.
Source: He et al. 2016, arXiv 1512.03385.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..groups import Group, Slice, one_axis
from .stages import add_stages

EXPANSION = 4  # a block's channels to those of its 3x3 convolution


class Bottleneck(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        inner = c_out // EXPANSION
        self.conv1 = nn.Conv2d(c_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.downsample = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        y = self.bn3(self.conv3(y))
        if self.conv3.out_channels < shortcut.shape[1]:  # the last block, after `keep`
            shortcut = shortcut[:, : self.conv3.out_channels]
        return torch.relu(y + shortcut)


class ResNet(nn.Module):
    """Args:
    stem: channels of the first 7x7 convolution; it and the pooling after it halve both axes each.
    widths: channels of the four stages, each a multiple of four; each after the first halves both axes.
    blocks: bottlenecks of each stage.
    """

    def __init__(self, stem: int = 64, widths: Sequence[int] = (256, 512, 1024, 2048), blocks: Sequence[int] = (3, 4, 6, 3)):
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        add_stages(self, stem, widths, blocks, Bottleneck)

    @property
    def features(self) -> int:
        """Width of the pooled feature."""
        return self.layer4[-1].conv3.out_channels

    def forward(self, image: Tensor) -> Tensor:
        """[n, 3, h, w] → [n, features]."""
        x = self.maxpool(torch.relu(self.bn1(self.conv1(image))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))


def keep(net: ResNet, channels: Sequence[int]) -> None:
    """Compute only these of the pooled features, in this order; exact, in place.

    What only the last block makes of the others is dropped. They stay in the stage's residual stream, since its blocks read them,
    but all of the stage is reordered so that the kept ones come first: the last shortcut is then a slice and no gather.
    """
    stage = net.layer4
    first = list(channels)
    order = first + sorted(set(range(net.features)) - set(first))
    with torch.no_grad():
        for i, block in enumerate(stage):
            rows = first if block is stage[-1] else order
            _take_rows(block.conv3, block.bn3, rows)
            if block.downsample is not None:
                _take_rows(*block.downsample, rows)
            if i:
                block.conv1.weight = nn.Parameter(block.conv1.weight[:, order].clone())


def _take_rows(conv: nn.Conv2d, norm: nn.BatchNorm2d, rows: Sequence[int]) -> None:
    conv.weight = nn.Parameter(conv.weight[rows].clone())
    norm.weight, norm.bias = nn.Parameter(norm.weight[rows].clone()), nn.Parameter(norm.bias[rows].clone())
    norm.running_mean, norm.running_var = norm.running_mean[rows].clone(), norm.running_var[rows].clone()
    conv.out_channels = norm.num_features = len(rows)


def prune_groups(net: ResNet, prefix: str) -> list[Group]:
    """All channels but those of the pooled feature: what the last stage's stream carries beside it, after `keep`, may go."""
    groups = [one_axis(f"{prefix}conv1", "channels", net.conv1.out_channels, [*_made(f"{prefix}conv1", f"{prefix}bn1"), *_entry(f"{prefix}layer1.0")])]
    for s in range(1, 5):
        stage, path = getattr(net, f"layer{s}"), f"{prefix}layer{s}"
        for b, block in enumerate(stage):
            for i, width in ((1, block.conv1.out_channels), (2, block.conv2.out_channels)):
                name = f"{path}.{b}.conv{i}"
                read = Slice(f"{path}.{b}.conv{i + 1}", "weight", 1, "in")
                groups.append(one_axis(name, "channels", width, [*_made(name, f"{path}.{b}.bn{i}"), read]))
        width = stage[0].conv3.out_channels
        kept = net.features if s == 4 else 0
        if kept == width:
            continue
        makers = [(f"{path}.0.downsample.0", f"{path}.0.downsample.1"), *((f"{path}.{b}.conv3", f"{path}.{b}.bn3") for b in range(len(stage) - (s == 4)))]
        made = [piece for conv, norm in makers for piece in _made(conv, norm, kept)]
        read = [Slice(f"{path}.{b}.conv1", "weight", 1, "in", starts=(kept,)) for b in range(1, len(stage))]
        after = _entry(f"{prefix}layer{s + 1}.0") if s < 4 else []
        groups.append(one_axis(f"{path}.0.conv3", "channels", width - kept, [*made, *read, *after]))
    return groups


def _made(conv: str, norm: str, start: int = 0) -> list[Slice]:
    return [Slice(conv, "weight", 0, "out", starts=(start,)), *(Slice(norm, n, 0, "out", starts=(start,)) for n in ("weight", "bias", "running_mean", "running_var"))]


def _entry(block: str) -> list[Slice]:
    """The first block of a stage reads the stage before twice."""
    return [Slice(f"{block}.conv1", "weight", 1, "in"), Slice(f"{block}.downsample.0", "weight", 1, "in")]

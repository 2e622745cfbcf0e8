"""ResNet of basic blocks over a one-channel picture, such as a spectrogram.

Key names and strides are torchvision's `resnet18`, so its checkpoints load as they are:
`conv1`, `bn1`, `layer{s}.{b}.{conv1,bn1,conv2,bn2}`, `layer{s}.{b}.downsample.{0,1}`.
Source: He et al. 2016, arXiv 1512.03385.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .stages import add_stages


class BasicBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + shortcut)


class ResNet2D(nn.Module):
    """Spectrogram backbone up to the globally pooled feature; no classes.

    Args:
        stem: channels of the first 7x7 convolution; it and the pooling after it halve both axes each.
        widths: channels of the four stages; each after the first halves both axes.
        blocks: residual blocks of each stage.
    """

    def __init__(self, stem: int = 64, widths: Sequence[int] = (64, 128, 256, 512), blocks: int = 2):
        super().__init__()
        self.conv1 = nn.Conv2d(1, stem, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        add_stages(self, stem, widths, blocks, BasicBlock)

    def forward(self, mel: Tensor) -> Tensor:
        """[n, 1, bands, frames] → [n, widths[-1]]."""
        x = self.maxpool(torch.relu(self.bn1(self.conv1(mel))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))

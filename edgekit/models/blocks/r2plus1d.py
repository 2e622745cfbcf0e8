"""R(2+1)D: 3-D residual network whose convolutions are a (1, k, k) one in space and a (3, 1, 1) one in time.

Key names, strides and the width between the two halves are torchvision's `r2plus1d_18`, so its checkpoints
load as they are: `stem.{0,1,3,4}`, `layer{s}.{b}.conv{1,2}.{0.{0,1,3},1}`, `layer{s}.{b}.downsample.{0,1}`.
Source: Tran et al. 2018, "A Closer Look at Spatiotemporal Convolutions", arXiv 1711.11248.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .stages import add_stages


def mid_width(c_in: int, c_out: int) -> int:
    """Channels between the halves with which both have about the weights of one 3x3x3 convolution."""
    return (27 * c_in * c_out) // (9 * c_in + 3 * c_out)


def spatial(c_in: int, c_out: int, kernel: int, stride: int) -> nn.Conv3d:
    return nn.Conv3d(c_in, c_out, (1, kernel, kernel), (1, stride, stride), padding=(0, kernel // 2, kernel // 2), bias=False)


def temporal(c_in: int, c_out: int, stride: int) -> nn.Conv3d:
    return nn.Conv3d(c_in, c_out, (3, 1, 1), (stride, 1, 1), padding=(1, 0, 0), bias=False)


def conv_2plus1d(c_in: int, c_out: int, mid: int, stride: int) -> nn.Sequential:
    return nn.Sequential(spatial(c_in, mid, 3, stride), nn.BatchNorm3d(mid), nn.ReLU(inplace=True), temporal(mid, c_out, stride))


class BasicBlock(nn.Module):
    """Two (2+1)-D convolutions, added to the input or to its 1x1x1 projection. Both have the first one's middle width."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        mid = mid_width(c_in, c_out)
        self.conv1 = nn.Sequential(conv_2plus1d(c_in, c_out, mid, stride), nn.BatchNorm3d(c_out), nn.ReLU(inplace=True))
        self.conv2 = nn.Sequential(conv_2plus1d(c_out, c_out, mid, 1), nn.BatchNorm3d(c_out))
        self.downsample = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(nn.Conv3d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm3d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return torch.relu(self.conv2(self.conv1(x)) + shortcut)


class R2Plus1D(nn.Module):
    """Video backbone up to the last feature map; no pooling, no classes.

    Args:
        stem: (channels between the stem's halves, channels after it). The stem halves height and width.
        widths: channels of the four stages; each after the first halves time, height and width.
        blocks: residual blocks of each stage.
    """

    def __init__(self, stem: tuple[int, int] = (45, 64), widths: Sequence[int] = (64, 128, 256, 512), blocks: int = 2):
        super().__init__()
        mid, c_in = stem
        self.stem = nn.Sequential(
            spatial(3, mid, 7, 2), nn.BatchNorm3d(mid), nn.ReLU(inplace=True),
            temporal(mid, c_in, 1), nn.BatchNorm3d(c_in), nn.ReLU(inplace=True),
        )  # fmt: skip
        add_stages(self, c_in, widths, blocks, BasicBlock)

    def forward(self, clip: Tensor) -> Tensor:
        """[n, 3, t, h, w] → [n, widths[-1], t/8, h/16, w/16], rounded up."""
        return self.layer4(self.layer3(self.layer2(self.layer1(self.stem(clip)))))

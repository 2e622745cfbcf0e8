"""3D-MobileNetV2: inverted residuals with depthwise 3x3x3 convolutions.

Key names and strides are those of the public backbone (okankop/Efficient-3DCNNs), so its
checkpoints load as they are: `features.{0}.{0|1}`, `features.{i}.conv.{j}`, `features.{n}.{0|1}`.
Source: Sandler et al. 2018 (MobileNetV2), arXiv 1801.04381; Köpüklü et al. 2019, arXiv 1904.02422.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

# One row of the architecture table: expansion, output channels, repeats, (time, height, width) stride.
Row = tuple[int, int, int, tuple[int, int, int]]

ROWS_MOBILENETV2_3D: tuple[Row, ...] = (
    (1, 16, 1, (1, 1, 1)),
    (6, 24, 2, (2, 2, 2)),
    (6, 32, 3, (2, 2, 2)),
    (6, 64, 4, (2, 2, 2)),
    (6, 96, 3, (1, 1, 1)),
    (6, 160, 3, (2, 2, 2)),
    (6, 320, 1, (1, 1, 1)),
)


def conv_bn_relu6(c_in: int, c_out: int, kernel: int, stride: tuple[int, int, int]) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm3d(c_out),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """Expand 1x1x1 → depthwise 3x3x3 → project 1x1x1, added to the input where shapes allow it."""

    def __init__(self, c_in: int, c_out: int, stride: tuple[int, int, int], expansion: int):
        super().__init__()
        hidden = c_in * expansion
        self.use_res_connect = stride == (1, 1, 1) and c_in == c_out
        depthwise = [
            nn.Conv3d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False),
            nn.BatchNorm3d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv3d(hidden, c_out, 1, bias=False),
            nn.BatchNorm3d(c_out),
        ]
        # The public backbone leaves the 1x1x1 expansion out where it would expand by 1.
        expand = [] if expansion == 1 else [nn.Conv3d(c_in, hidden, 1, bias=False), nn.BatchNorm3d(hidden), nn.ReLU6(inplace=True)]
        self.conv = nn.Sequential(*expand, *depthwise)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class MobileNetV2_3D(nn.Module):
    """Video backbone up to the globally pooled feature.

    Args:
        stem: channels after the first convolution, which halves height and width only.
        rows: the architecture table; a row's stride sits on its first block.
        last: channels of the final 1x1x1 convolution, which is the feature's width.
    """

    def __init__(self, stem: int = 32, rows: Sequence[Row] = ROWS_MOBILENETV2_3D, last: int = 1280):
        super().__init__()
        layers: list[nn.Module] = [conv_bn_relu6(3, stem, 3, (1, 2, 2))]
        c_in = stem
        for expansion, c_out, repeats, stride in rows:
            for i in range(repeats):
                layers.append(InvertedResidual(c_in, c_out, stride if i == 0 else (1, 1, 1), expansion))
                c_in = c_out
        layers.append(conv_bn_relu6(c_in, last, 1, (1, 1, 1)))
        self.features = nn.Sequential(*layers)

    def forward(self, clip: Tensor) -> Tensor:
        """[n, 3, t, h, w] → [n, last]: mean over time, height and width."""
        return self.features(clip).mean((2, 3, 4))

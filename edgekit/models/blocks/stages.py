"""What residual networks of four stages share, whatever their blocks are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn


def add_stages(net: nn.Module, c_in: int, widths: Sequence[int], blocks: int | Sequence[int], block: Callable[[int, int, int], nn.Module]) -> None:
    """Give `net` its layer1, layer2, ... of `blocks` residual blocks each (one number, or one per stage), then initialize every convolution in it as torchvision does.

    Args:
        c_in: channels that reach the first stage.
        widths: channels of the stages; the first block of each after the first has stride 2.
        block: (channels in, channels out, stride) -> module.
    """
    counts = [blocks] * len(widths) if isinstance(blocks, int) else blocks
    for stage, (width, count) in enumerate(zip(widths, counts, strict=True), 1):
        layers = []
        for i in range(count):
            layers.append(block(c_in, width, 2 if stage > 1 and i == 0 else 1))
            c_in = width
        setattr(net, f"layer{stage}", nn.Sequential(*layers))
    for sub in net.modules():
        if isinstance(sub, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(sub.weight, mode="fan_out", nonlinearity="relu")

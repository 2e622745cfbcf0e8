"""The backbones have torchvision's names and sizes, and their halves are the convolutions they stand for."""

from __future__ import annotations

import pytest
import torch

from edgekit.models.blocks.r2plus1d import BasicBlock, R2Plus1D, mid_width
from edgekit.models.blocks.resnet2d import ResNet2D


@pytest.mark.parametrize(
    ("c_in", "c_out", "mid"), [(64, 64, 144), (64, 128, 230), (128, 128, 288), (128, 256, 460), (256, 256, 576), (256, 512, 921), (512, 512, 1152)]
)
def test_the_width_between_the_halves_is_torchvisions(c_in, c_out, mid):
    assert mid_width(c_in, c_out) == mid


def test_both_convolutions_of_a_block_have_the_first_ones_middle():
    block = BasicBlock(64, 128, 2)
    assert block.conv1[0][0].weight.shape == (230, 64, 1, 3, 3) and block.conv2[0][0].weight.shape == (230, 128, 1, 3, 3)
    assert block.conv1[0][3].weight.shape == (128, 230, 3, 1, 1) and block.downsample[0].weight.shape == (128, 64, 1, 1, 1)
    assert BasicBlock(64, 64, 1).downsample is None


def test_names_and_shapes_are_r2plus1d_18s():
    with torch.device("meta"):
        state = R2Plus1D().state_dict()
    assert state["stem.0.weight"].shape == (45, 3, 1, 7, 7) and state["stem.3.weight"].shape == (64, 45, 3, 1, 1)
    assert {"stem.1.running_mean", "stem.4.running_var", "layer1.0.conv1.0.1.weight", "layer1.1.conv2.1.bias", "layer4.0.downsample.1.running_mean"} <= set(
        state
    )
    assert not any(key.startswith(("fc.", "layer1.0.downsample")) for key in state)
    assert state["layer4.1.conv2.0.3.weight"].shape == (512, 1152, 3, 1, 1)


def test_names_and_shapes_are_resnet18s_of_one_channel():
    with torch.device("meta"):
        state = ResNet2D().state_dict()
    assert state["conv1.weight"].shape == (64, 1, 7, 7) and state["layer4.0.downsample.0.weight"].shape == (512, 256, 1, 1)
    assert {"bn1.running_mean", "layer1.0.conv1.weight", "layer2.1.bn2.bias"} <= set(state) and not any(key.startswith("fc.") for key in state)


def test_stages_halve_time_and_space_and_the_stem_space_alone():
    net, x = R2Plus1D((4, 4), (4, 5, 6, 7), 1).eval(), torch.zeros(2, 3, 8, 48, 48)
    shapes = []
    with torch.inference_mode():
        for layer in (net.stem, net.layer1, net.layer2, net.layer3, net.layer4):
            x = layer(x)
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [(4, 8, 24, 24), (4, 8, 24, 24), (5, 4, 12, 12), (6, 2, 6, 6), (7, 1, 3, 3)]
    with torch.inference_mode():
        assert ResNet2D(4, (4, 5, 6, 7), 1).eval()(torch.zeros(2, 1, 40, 65)).shape == (2, 7)

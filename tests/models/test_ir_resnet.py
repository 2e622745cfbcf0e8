"""IR-ResNet50 has the published sizes, and gives unit vectors."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgekit.models.blocks import ir_resnet
from edgekit.models.blocks.ir_resnet import IRResNet, IRSize

SMALL = IRSize((6, 8, 12), (2, 2, 1), 10)


@functools.cache
def published_size() -> IRResNet:
    with torch.device("meta"):
        return IRResNet(IRSize(), 40, 40).eval()


def small() -> IRResNet:
    torch.manual_seed(2)
    module = IRResNet(SMALL, 12, 10).eval()
    with torch.no_grad():
        for sub in module.modules():
            if isinstance(sub, (nn.BatchNorm2d, nn.BatchNorm1d)):
                sub.weight.uniform_(0.5, 1.5)
                sub.bias.uniform_(-0.5, 0.5)
                sub.running_mean.uniform_(-0.5, 0.5)
                sub.running_var.uniform_(0.5, 1.5)
            if isinstance(sub, nn.PReLU):
                sub.weight.uniform_(0.1, 0.5)
    return module


def test_fifty_layers_have_37_283_520_parameters():
    module = published_size()
    assert sum(p.numel() for p in module.parameters()) == 37_283_520
    assert len(module.body) == 24 and module.output_layer[3].weight.shape == (512, 12_800)


def test_only_the_last_three_stages_halve():
    x, seen = torch.empty(1, 3, 40, 40, device="meta"), []
    module = published_size()
    x = module.input_layer(x)
    for unit in module.body:
        x = unit(x)
        seen.append(tuple(x.shape[1:]))
    assert seen == [(64, 40, 40)] * 3 + [(128, 20, 20)] * 4 + [(256, 10, 10)] * 14 + [(512, 5, 5)] * 3


def test_a_face_costs_3_03_gmac():
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        published_size()(torch.empty(1, 3, 40, 40, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(3.027, abs=0.001)


def test_the_keys_are_the_published_ones():
    keys = set(published_size().state_dict())
    assert {
        "input_layer.0.weight", "input_layer.1.running_mean", "input_layer.2.weight", "body.3.shortcut_layer.0.weight", "body.3.shortcut_layer.1.bias",
        "body.0.res_layer.0.weight", "body.23.res_layer.1.weight", "body.23.res_layer.2.weight", "body.23.res_layer.4.running_var",
        "output_layer.0.weight", "output_layer.3.weight", "output_layer.4.running_mean",
    } <= keys  # fmt: skip
    assert not any(k.startswith("body.0.shortcut_layer") for k in keys)  # as many channels as before: nothing to learn


def test_a_unit_is_what_its_docstring_says():
    module = small()
    unit = module.body[2]  # 6 to 8 channels, halves
    x = torch.randn(2, 6, 12, 10)
    norm = lambda y, bn: F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=1e-5)  # noqa: E731
    r, s = unit.res_layer, unit.shortcut_layer
    with torch.inference_mode():
        y = F.prelu(F.conv2d(norm(x, r[0]), r[1].weight, padding=1), r[2].weight)
        want = norm(F.conv2d(y, r[3].weight, stride=2, padding=1), r[4]) + norm(F.conv2d(x, s[0].weight, stride=2), s[1])
        assert torch.allclose(unit(x), want, atol=1e-6)
        assert torch.equal(module.body[1].shortcut_layer(x), x)


def test_embeddings_have_length_one_and_differ():
    with torch.inference_mode():
        out = small()(torch.randn(3, 3, 12, 10))
    assert out.shape == (3, 10) and torch.allclose(out.norm(dim=1), torch.ones(3), atol=1e-6) and not torch.allclose(out[0], out[1], atol=1e-3)


@pytest.mark.parametrize(("length", "times", "left"), [(40, 3, 5), (112, 4, 7), (32, 3, 4), (13, 2, 4), (1, 3, 1)])
def test_odd_lengths_round_up_when_they_halve(length, times, left):
    assert ir_resnet.halved(length, times) == left
    x = torch.zeros(1, 1, length, length)
    for _ in range(times):
        x = F.conv2d(x, torch.zeros(1, 1, 3, 3), stride=2, padding=1)
    assert x.shape[-1] == left

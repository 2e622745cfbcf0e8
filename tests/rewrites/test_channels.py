"""Shuffled channels that every layer reads where they were made."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekit import graph, rewrites
from edgekit.models.blocks.efficientface import SIZES, STAGES, EfficientFace, ShuffleUnit
from tests.onnx_nets import Lambda, op_counts
from tests.test_rewrites import check

DIRECT = ["direct_channels"]
MOVES = {"Gather", "Slice", "Reshape", "Transpose"}


SCATTERED = torch.tensor([3, 6, 0, 5, 1, 7, 2, 4])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("channels")


def seeded(module: nn.Module) -> nn.Module:
    """Statistics of batch norms that are no ones and zeros: a wrong order would not show otherwise."""
    torch.manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias)
            nn.init.normal_(part.running_mean, std=0.1)
    return module


def by_reshape(groups: int):
    return lambda x: x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class PublicUnit(ShuffleUnit):
    """The unit as public code writes it: the shuffle is Reshape, Transpose, Reshape."""

    def forward(self, x):
        passing, worked = (x, x) if self.stride == 2 else x.chunk(2, 1)
        y = torch.cat((self.branch1(x) if self.stride == 2 else passing, self.branch2(worked)), 1)
        return by_reshape(2)(y)


@pytest.mark.parametrize("unit", [ShuffleUnit, PublicUnit])
@pytest.mark.parametrize("half", [8, 7, 3])
def test_a_stage_of_shuffle_units_is_layers_splits_and_concats(folder, unit, half):
    stage = seeded(nn.Sequential(unit(4, 2 * half, 2), *(unit(2 * half, 2 * half, 1) for _ in range(4)), nn.Conv2d(2 * half, 5, 1)))
    model, changes = check(folder, Lambda(lambda m, x: m.stage(x), stage=stage), (2, 4, 8, 8), names=DIRECT)
    counts = op_counts(model)
    assert not MOVES & set(counts)
    assert len(changes) == 5  # what four units work on, and what the last layer reads
    assert counts["Concat"] <= 5 and counts["Split"] <= 6


def test_the_channels_of_one_reader_are_one_piece_of_each_layer(folder):
    """Of 2 * 8 channels the next unit reads a half of each layer's, the one after it a quarter, as whole pieces."""
    stage = seeded(nn.Sequential(ShuffleUnit(4, 16, 2), *(ShuffleUnit(16, 16, 1) for _ in range(2)), nn.Conv2d(16, 5, 1)))
    model, _ = check(folder, Lambda(lambda m, x: m.stage(x), stage=stage), (1, 4, 8, 8), names=DIRECT)
    pieces = sorted([graph.shape_of(part)[1] for part in node.outputs] for node in model.graph if node.op_type == "Split")
    assert pieces == [[4, 2, 2], [4, 2, 2], [4, 4]]


def test_all_of_efficientface(folder):
    face = seeded(EfficientFace(SIZES["tiny"]))
    names = ["multiplier_to_concat", "direct_channels"]
    model, _ = check(folder, Lambda(lambda m, x: m.face(x), face=face), (1, 3, 64, 64), names=names)
    counts = op_counts(model)
    assert not {"Gather", "Reshape", "Transpose"} & set(counts)
    assert counts["Slice"] == 6  # the patches: height and width, no channels
    units = sum(len(getattr(face, stage)) for stage in STAGES)
    assert counts["Concat"] <= units + 4 + 3  # of units, of the four patches' parts, and of the patches themselves


def test_a_convolution_of_one_channel_to_several_is_depthwise_ones(folder):
    conv = nn.Conv2d(5, 15, 3, stride=2, padding=1, groups=5)
    for activation in (torch.relu, lambda y: y * 2):
        model, changes = check(folder, Lambda(lambda m, x, f=activation: f(m.conv(x)), conv=conv), (2, 5, 8, 6), names=["multiplier_to_concat"])
        convs = [node for node in model.graph if node.op_type == "Conv"]
        assert len(convs) == 3 and len(changes) == 1
        assert all(graph.shape_of(node.inputs[1]) == (5, 1, 3, 3) for node in convs)
    assert op_counts(model)["Gather"] == 1


@pytest.mark.parametrize("conv", [nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(4, 8, 3), nn.Conv2d(1, 4, 3)])
def test_other_convolutions_stay(folder, conv):
    assert check(folder, Lambda(lambda m, x: m.conv(x), conv=conv), (1, conv.in_channels, 6, 6), names=["multiplier_to_concat"])[1] == []


def test_an_order_goes_through_all_that_works_on_single_channels(folder):
    """Pools, sums, products with a gate of the same channels, a Gemm's, and constants of one entry a channel."""
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    bias = torch.randn(12, 1, 1, generator=torch.Generator().manual_seed(1))
    slope = nn.PReLU(12)
    nn.init.uniform_(slope.weight)

    def forward(m, x):
        y = torch.cat((m.a(x), m.b(x)), 1).index_select(1, order)
        y = torch.relu(m.depthwise(y)) + bias
        y = nn.functional.max_pool2d(y, 2) * 0.5 + m.c(x)[:, :, ::2, ::2] / (bias.abs() + 1)
        gate = torch.sigmoid(m.out(torch.relu(m.fc(y.mean((2, 3))))))[:, :, None, None]
        return m.last(y * gate * torch.sigmoid(m.place(y)))

    parts = {"a": nn.Conv2d(3, 6, 1), "b": nn.Conv2d(3, 6, 3, padding=1), "c": nn.Conv2d(3, 12, 1), "depthwise": nn.Conv2d(12, 12, 3, padding=1, groups=12)}
    parts |= {"fc": nn.Linear(12, 4), "out": nn.Linear(4, 12), "place": nn.Conv2d(12, 1, 1), "last": nn.Conv2d(12, 2, 1)}
    model, changes = check(folder, Lambda(forward, **parts), (1, 3, 8, 8), names=DIRECT)
    assert "Gather" not in op_counts(model) and len(changes) == 1


def test_a_tensor_read_twice_in_different_orders_is_cut_once(folder):
    one, two = torch.arange(8).view(2, 4).T.flatten(), torch.arange(8).flip(0)
    module = Lambda(lambda m, x: m.u(m.a(x).index_select(1, one)) + m.v(m.a(x).index_select(1, two)), a=nn.Conv2d(3, 8, 1), u=nn.Conv2d(8, 4, 1), v=nn.Conv2d(8, 4, 1))
    model, changes = check(folder, module, (1, 3, 5, 5), names=DIRECT)
    assert not {"Gather", "Split", "Concat"} & set(op_counts(model)) and len(changes) == 2


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.a(x).index_select(1, SCATTERED),  # an output's order is the user's
        lambda m, x: m.grouped(m.a(x).index_select(1, SCATTERED).abs()),
        lambda m, x: m.a(x).index_select(1, SCATTERED).cumsum(1),
    ],
)
def test_orders_that_something_fixes_are_kept(folder, forward):
    """The layer makes its channels in the order that is wanted."""
    module = Lambda(forward, a=nn.Conv2d(3, 8, 1), grouped=nn.Conv2d(8, 8, 1, groups=2))
    model, changes = check(folder, module, (1, 3, 5, 5), names=DIRECT)
    assert len(changes) == 1 and not {"Gather", "Concat", "Split"} & set(op_counts(model))


def test_an_input_that_is_shuffled_stays_as_it_is(folder):
    """Eight pieces of one channel would be no gain, and the order of an input is the user's."""
    order = torch.arange(32).view(2, 16).T.flatten()
    module = Lambda(lambda m, x: (x.index_select(1, order) * 2).cumsum(1))
    model, changes = check(folder, module, (1, 32, 4, 4), names=DIRECT)
    assert changes == [] and op_counts(model)["Gather"] == 1


def test_splits_and_joins_without_a_shuffle_stay(folder):
    module = Lambda(lambda m, x: m.c(torch.cat((m.a(x)[:, 4:], m.b(x)), 1)), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(3, 8, 1), c=nn.Conv2d(12, 4, 1))
    assert check(folder, module, (1, 3, 4, 4), names=DIRECT)[1] == []


def test_a_second_time_nothing_changes(folder):
    stage = seeded(nn.Sequential(ShuffleUnit(4, 16, 2), ShuffleUnit(16, 16, 1), nn.Conv2d(16, 5, 1)))
    model, _ = check(folder, Lambda(lambda m, x: m.stage(x), stage=stage), (1, 4, 8, 8), names=DIRECT)
    assert rewrites.apply(model, "direct_channels") == []

"""A channel shuffle as copies, for compilers that have no Gather."""

from __future__ import annotations

import pytest
import torch

from tests.onnx_nets import Lambda, op_counts
from tests.test_rewrites import check


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shuffle")


def shuffled(groups: int, channels: int):
    order = torch.arange(channels).view(groups, -1).T.flatten()
    return Lambda(lambda m, x: x.index_select(1, order) * 2)


@pytest.mark.parametrize(("groups", "channels", "shape"), [(2, 8, (5, 3)), (4, 8, (2, 2)), (2, 6, (7,)), (3, 6, ())])
def test_a_shuffle_is_a_concat_of_its_groups(folder, groups, channels, shape):
    model, changes = check(folder, shuffled(groups, channels), (2, channels, *shape), names=["shuffle_to_concat"])
    counts = op_counts(model)
    assert "Gather" not in counts and counts["Concat"] == 1 and counts["Slice"] == groups and len(changes) == 1


def test_groups_that_a_concat_joined_are_joined_once(folder):
    order = torch.arange(8).view(2, 4).T.flatten()
    module = Lambda(lambda m, x: torch.cat((x[:, :4] * 2, x[:, 2:6].relu()), 1).index_select(1, order) * 3)
    counts = op_counts(check(folder, module, (1, 6, 4, 4), names=["shuffle_to_concat"])[0])
    assert counts["Concat"] == 1 and "Gather" not in counts and counts["Slice"] == 2


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [0, 2, 3, 1], [0, 2]])
def test_other_orders_stay(folder, order):
    module = Lambda(lambda m, x: x.index_select(1, torch.tensor(order)) * 2)
    model, changes = check(folder, module, (1, 4, 3, 3), names=["shuffle_to_concat"])
    assert changes == [] and "Concat" not in op_counts(model)


def test_an_axis_that_is_not_the_channels_stays(folder):
    order = torch.arange(6).view(2, 3).T.flatten()
    module = Lambda(lambda m, x: x.index_select(2, order) * 2)
    assert check(folder, module, (1, 3, 6, 2), names=["shuffle_to_concat"])[1] == []

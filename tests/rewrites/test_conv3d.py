"""Videos as frames: the same values, one accumulator, and words about ranges that are true."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgekit import graph, rewrites
from tests.onnx_nets import Inverted3d, Lambda, export, feeds, op_counts, run

few = settings(max_examples=25, deadline=None)
BOTH = ["conv3d_to_conv2d", "conv3d_to_conv2d_taps"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("conv3d")


def check(folder, module, *shapes, name="conv3d_to_conv2d", atol=2e-5):
    """Rewrite, compare every output, and hold every word against the values; returns (before, after)."""
    path = export(folder, module, *shapes)
    before, model = graph.load(path), graph.load(path)
    changes = rewrites.apply(model, name)
    after = path.with_suffix(".after.onnx")
    graph.save(model, after)
    fed = feeds(model)
    want, got = run(path, fed), run(after, fed)
    for output in want:
        assert got[output].shape == want[output].shape
        np.testing.assert_allclose(got[output], want[output], atol=atol * max(1.0, np.abs(want[output]).max()))
    old = {v.name for node in before.graph for v in node.outputs}
    new = {v.name for node in model.graph for v in node.outputs}
    words = {tensor: word for change in changes for tensor, word in change.tensors.items()}
    assert not new - old - set(words), "every new tensor has a word"
    ports = {v.name for v in (*before.graph.outputs, *before.graph.inputs)}
    original = {**run(path, fed, also=sorted(old - ports)), **fed}
    values = run(after, fed, also=sorted(new - ports))
    for tensor in new & set(words):
        word, seen = words[tensor], set()
        while word.startswith("same_as ") and word[8:] not in original:
            assert word[8:] not in seen
            seen.add(word[8:])
            word = words[word[8:]]
        if word.startswith("same_as "):
            source = original[word[8:]]
            slack = 1e-4 * max(1.0, np.abs(source).max())
            assert min(source.min(), 0) - slack <= values[tensor].min() and values[tensor].max() <= max(source.max(), 0) + slack, tensor
    return before, model


def convs(model):
    return {node.name: node for node in model.graph if node.op_type == "Conv"}


@few
@given(
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 1)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2), st.just(1)),
    bias=st.booleans(),
    batch=st.integers(1, 2),
    name=st.sampled_from(BOTH),
)
def test_a_conv3d_equals_its_frames(folder, groups, kernel, stride, padding, dilation, bias, batch, name):
    conv = nn.Conv3d(4, 8, kernel, stride, padding, dilation, groups, bias)
    _, model = check(folder, Lambda(lambda m, x: m.c(x), c=conv), (batch, 4, 6, 7, 8), name=name)
    assert all(len(graph.shape_of(node.inputs[0])) == 4 for node in convs(model).values())


@pytest.mark.parametrize("groups, kernel", [(1, (3, 3, 3)), (8, (3, 3, 3)), (1, (3, 1, 1)), (8, (5, 1, 1)), (2, (3, 1, 1)), (1, (1, 3, 3)), (4, (1, 2, 2))])
def test_one_layer_stays_one_layer_with_its_name_and_its_macs(folder, groups, kernel):
    conv = nn.Conv3d(8, 8, kernel, (2, 1, 1), tuple(k // 2 for k in kernel), groups=groups)
    before, model = check(folder, Lambda(lambda m, x: m.c(x), c=conv), (1, 8, 5, 6, 7))
    assert list(convs(model)) == list(convs(before)) == ["c/Conv"]
    assert graph.count_macs(model) == graph.count_macs(before)


def test_a_depthwise_layer_by_taps_is_one_conv_a_tap(folder):
    conv = nn.Conv3d(8, 8, 3, padding=1, groups=8)
    _, model = check(folder, Lambda(lambda m, x: m.c(x), c=conv), (1, 8, 5, 6, 7), name="conv3d_to_conv2d_taps")
    assert op_counts(model)["Conv"] == 3 and op_counts(model)["Add"] == 2
    assert all(graph.attribute(node, "strides", None) == (1, 1) for node in convs(model).values())


@pytest.mark.parametrize("name", BOTH)
def test_a_mobilenet_stays_on_frames_from_its_first_layer_to_its_mean(folder, name):
    before, model = check(folder, Inverted3d(), (1, 3, 4, 16, 16), name=name)
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("Transpose") == 1, "only the input is turned"
    assert [node.op_type for node in before.graph if node.op_type == "Clip"] == [kind for kind in kinds if kind == "Clip"]
    assert all(len(graph.shape_of(v)) == 4 for node in model.graph if node.op_type in ("Clip", "Add", "Conv") for v in node.outputs)
    if name == "conv3d_to_conv2d":
        assert graph.count_macs(model) == graph.count_macs(before)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("groups, kernel, padding, frames", [(8, 3, 1, 1), (1, 3, 1, 1), (1, (5, 1, 1), (2, 0, 0), 2), (8, 5, 2, 2)])
def test_taps_that_only_see_padding_are_dropped(folder, name, groups, kernel, padding, frames):
    conv = nn.Conv3d(8, 8, kernel, padding=padding, groups=groups)
    before, model = check(folder, Lambda(lambda m, x: m.c(x), c=conv), (1, 8, frames, 6, 7), name=name)
    macs = sum(graph.count_macs(model).values())
    assert macs < sum(graph.count_macs(before).values())
    if frames == 1 and padding == 1:
        assert macs * 3 == sum(graph.count_macs(before).values()) and op_counts(model) == {"Transpose": 2, "Reshape": 2, "Conv": 1}


class Gate(nn.Module):
    """Squeeze and excitation over a whole video."""

    def __init__(self):
        super().__init__()
        self.first, self.squeeze, self.excite = nn.Conv3d(3, 8, 3, padding=1), nn.Conv3d(8, 4, 1), nn.Conv3d(4, 8, 1)

    def forward(self, x):
        x = F.hardswish(self.first(x))
        return (x * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool3d(x, 1))))),)


def test_a_gate_over_the_whole_video_and_a_video_as_output(folder):
    _, model = check(folder, Gate(), (1, 3, 4, 6, 6))
    assert op_counts(model)["Transpose"] == 2  # in and out


@pytest.mark.parametrize("dims", [(2, 3, 4), (3, 4), (2,), (1,)])
@pytest.mark.parametrize("keep", [True, False])
def test_means_over_any_axes(folder, dims, keep):
    conv = nn.Conv3d(3, 8, (3, 1, 1), padding=(1, 0, 0))
    check(folder, Lambda(lambda m, x: m.c(x).mean(dims, keepdim=keep), c=conv), (1, 3, 4, 5, 6))
    check(folder, Lambda(lambda m, x: m.c(x).mean(dims, keepdim=keep), c=conv), (2, 3, 4, 5, 6))


@pytest.mark.parametrize("kernel, stride, padding", [((1, 2, 2), (1, 2, 2), 0), (2, 2, 0), (3, 1, 1), ((3, 1, 1), (2, 1, 1), (1, 0, 0)), (3, 2, 1)])
@pytest.mark.parametrize("kind", ["max", "average", "average without padding"])
def test_pools_over_time_and_space(folder, kernel, stride, padding, kind):
    pool = nn.MaxPool3d(kernel, stride, padding) if kind == "max" else nn.AvgPool3d(kernel, stride, padding, count_include_pad=kind == "average")
    conv = nn.Conv3d(3, 4, 1)
    _, model = check(folder, Lambda(lambda m, x: m.p(m.c(x)), c=conv, p=pool), (1, 3, 6, 6, 8))
    assert all(len(graph.shape_of(node.inputs[0])) == 4 for node in model.graph if node.op_type.endswith("Pool"))


def test_a_norm_a_slope_and_a_concat_stay_on_frames(folder):
    def forward(m, x):
        a = m.p(m.n(m.a(x)))
        return torch.cat([a, F.leaky_relu(m.b(x)) * 0.5 + 1], 1)

    norm = nn.BatchNorm3d(4)
    nn.init.normal_(norm.running_mean)
    parts = {"a": nn.Conv3d(3, 4, 3, padding=1), "b": nn.Conv3d(3, 4, 1), "n": norm, "p": nn.PReLU(4)}
    _, model = check(folder, Lambda(forward, **parts), (1, 3, 4, 5, 6))
    assert op_counts(model)["Transpose"] == 2


def test_a_video_that_others_read_is_put_together_again(folder):
    conv = nn.Conv3d(3, 4, 3, padding=1)
    _, model = check(folder, Lambda(lambda m, x: (m.c(x).flatten(1), F.relu(m.c(x))), c=conv), (1, 3, 4, 5, 6))
    assert "Conv" in op_counts(model)


@pytest.mark.parametrize("batch", [1, 2])
def test_activations_stay_directly_behind_a_convolution_over_time(folder, batch):
    """So an integer layer can take them in; turned in between, it would write signed values first and round twice."""
    norm = nn.BatchNorm3d(8)
    parts = {"a": nn.Conv3d(3, 6, (1, 3, 3), padding=(0, 1, 1)), "b": nn.Conv3d(6, 8, (3, 1, 1), (2, 1, 1), (1, 0, 0)), "c": nn.Conv3d(8, 8, (1, 3, 3)), "n": norm}
    _, model = check(folder, Lambda(lambda m, x: m.c(F.leaky_relu(F.relu(m.b(F.relu(m.a(x)))))) * 2, **parts), (batch, 3, 5, 6, 7))
    assert [node.inputs[0].producer().op_type for node in model.graph if node.op_type in ("Relu", "LeakyRelu")] == ["Conv", "Conv", "Relu"]
    assert op_counts(model)["Transpose"] == 4  # in and out, and to time and back
    both = Lambda(lambda m, x: F.relu(y := m.b(m.a(x))) + y, **parts)
    _, model = check(folder, both, (batch, 3, 5, 6, 7))
    assert op_counts(model)["Transpose"] == 5  # what others read too is turned both before and after


def test_two_dimensional_layers_are_left_alone(folder):
    path = export(folder, Lambda(lambda m, x: m.c(x), c=nn.Conv2d(3, 4, 3)), (1, 3, 8, 8))
    model = graph.load(path)
    assert rewrites.apply(model, "conv3d_to_conv2d") == []

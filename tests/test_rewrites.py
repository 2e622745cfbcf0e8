"""Every rewrite gives the outputs that the original gives, on nets of many shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgekit import graph, rewrites
from edgekit.errors import EdgekitError
from edgekit.target import load_target
from tests.onnx_nets import Block, Inverted3d, Lambda, Stem, export, feeds, op_counts, run

ELSEWHERE = ("conv3d_to_conv2d", "conv3d_to_conv2d_taps", "direct_channels", "fuse_gelu", "multiplier_to_concat")  # tests/rewrites
ALL = [name for name in rewrites.REWRITES if name not in ELSEWHERE]
few = settings(max_examples=25, deadline=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rewrites")


def check(folder, module, *shapes, names=ALL, atol=1e-4):
    """Apply `names`, compare with the original, and return (rewritten model, changes)."""
    path = export(folder, module, *shapes)
    model = graph.load(path)
    changes = [change for name in names for change in rewrites.apply(model, name)]
    after = path.with_suffix(".after.onnx")
    graph.save(model, after)
    fed = feeds(model)
    want, got = run(path, fed), run(after, fed)
    assert list(got) == list(want)
    for name in want:
        np.testing.assert_allclose(got[name], want[name], atol=atol * max(1.0, np.abs(want[name]).max()))
    check_words(folder, path, after, model, changes, fed)
    return model, changes


def check_words(folder, before, after, model, changes, fed):
    """Every word about a new tensor is true of its values."""
    words = {tensor: word for change in changes for tensor, word in change.tensors.items()}
    new = {v.name for node in model.graph for v in node.outputs}
    old = {v.name for node in graph.load(before).graph for v in node.outputs}
    outputs = {v.name for v in model.graph.outputs}
    values = run(after, fed, also=sorted(new - outputs))
    original = run(before, fed, also=sorted(old - {v.name for v in graph.load(before).graph.outputs}))
    unexplained = new - old - set(words)
    assert not unexplained, f"no word about {unexplained}"
    for name in new & set(words):
        word = words[name]
        seen = {name}
        while word is not None and word.startswith("same_as ") and word[8:] not in original and word[8:] not in fed:
            assert word[8:] not in seen
            seen.add(word[8:])
            word = words.get(word[8:])
        if word is None or word == "observe":
            continue
        if word.startswith("same_as "):
            source = {**fed, **original}[word[8:]]
            np.testing.assert_allclose(np.sort(values[name], axis=None), np.sort(source, axis=None), atol=2e-4 * max(1, np.abs(source).max()))
        else:
            low, high = map(float, word.split()[1:])
            assert low <= values[name].min() and values[name].max() <= high
    for name in new & old:  # a tensor that keeps its name keeps its values
        np.testing.assert_allclose(values[name], original[name], atol=2e-4 * max(1, np.abs(original[name]).max()))


@few
@given(
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    batch=st.integers(1, 3),
)
def test_conv1d_equals_its_conv2d(folder, groups, kernel, stride, padding, dilation, bias, batch):
    conv = nn.Conv1d(4, 8, kernel, stride, padding, dilation, groups, bias)
    model, _ = check(folder, Lambda(lambda m, x: m.c(x), c=conv), (batch, 4, 20), names=["conv1d_to_conv2d"])
    assert op_counts(model) == {"Unsqueeze": 1, "Conv": 1, "Squeeze": 1}
    assert sum(graph.count_macs(model).values()) == batch * conv(torch.zeros(1, 4, 20)).numel() * 4 // groups * kernel


@few
@given(groups=st.sampled_from([1, 2]), stride=st.integers(1, 3), padding=st.integers(0, 2), bias=st.booleans(), extra=st.booleans())
def test_transposed_conv1d_equals_its_conv2d(folder, groups, stride, padding, bias, extra):
    conv = nn.ConvTranspose1d(4, 6, 4, stride, padding, output_padding=int(extra and stride > 1), groups=groups, bias=bias)
    model, _ = check(folder, Lambda(lambda m, x: m.c(x), c=conv), (1, 4, 9), names=["conv1d_to_conv2d"])
    assert op_counts(model)["ConvTranspose"] == 1 and op_counts(model)["Squeeze"] == 1


@few
@given(kernel=st.integers(1, 4), stride=st.integers(1, 3), padding=st.integers(0, 2), mean=st.booleans())
def test_a_pool_over_time_equals_its_pool_over_an_image(folder, kernel, stride, padding, mean):
    padding = min(padding, kernel // 2)
    pool = (nn.AvgPool1d if mean else nn.MaxPool1d)(kernel, stride, padding)
    model, _ = check(folder, Lambda(lambda m, x: m.c(x), c=pool), (2, 4, 20), names=["conv1d_to_conv2d"])
    ranks = {node.op_type: len(graph.shape_of(node.inputs[0])) for node in model.graph}
    assert {rank for op, rank in ranks.items() if op.endswith("Pool")} <= {4}


def test_convolutions_and_pools_over_time_stay_four_dimensional_together(folder):
    net = nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.MaxPool1d(2, 1), nn.Conv1d(8, 6, 3), nn.ReLU(), nn.MaxPool1d(2, 1))
    model, _ = check(folder, Lambda(lambda m, x: m.c(x), c=net), (1, 4, 20), names=["conv1d_to_conv2d", "merge_layout_ops"])
    assert op_counts(model) == {"Unsqueeze": 1, "Conv": 2, "Relu": 2, "MaxPool": 2, "Squeeze": 1}


@few
@given(lead=st.lists(st.integers(1, 4), min_size=1, max_size=4), bias=st.booleans(), width=st.sampled_from([1, 5]))
def test_a_linear_equals_its_1x1_conv(folder, lead, bias, width):
    model, changes = check(folder, Lambda(lambda m, x: m.c(x), c=nn.Linear(6, width, bias)), (*lead, 6), names=["linear_to_conv2d"])
    counts = op_counts(model)
    assert len(changes) == 1 and counts["Conv"] == 1 and not {"MatMul", "Gemm", "Add"} & set(counts)
    conv = next(node for node in model.graph if node.op_type == "Conv")
    assert len(conv.inputs) == 2 + bias and len(graph.shape_of(conv.inputs[0])) == 4


@pytest.mark.parametrize(
    "shape, axis, groups, is_shuffle",
    [((1, 12, 3, 5), 1, 2, True), ((2, 12, 3, 5), 1, 3, True), ((1, 8, 7), 1, 4, True), ((3, 8), 1, 2, True), ((1, 12, 3, 5), 1, 12, False), ((1, 12, 3, 5), 1, 1, False)],
)
def test_a_shuffling_gather_becomes_a_transpose(folder, shape, axis, groups, is_shuffle):
    order = torch.arange(shape[axis]).view(groups, -1).T.flatten()
    model, changes = check(folder, Lambda(lambda m, x: x.index_select(axis, order) * 2), shape, names=["gather_to_shuffle"])
    assert len(changes) == is_shuffle == ("Transpose" in op_counts(model))
    assert all(len(graph.shape_of(value)) <= 4 for node in model.graph for value in node.outputs)


def test_a_gather_that_is_no_shuffle_stays(folder):
    for order in ([1, 0, 2, 3], [3, 2, 1, 0], [0, 2, 1], [0, 2, 0, 2]):
        model, changes = check(folder, Lambda(lambda m, x, order=order: x.index_select(1, torch.tensor(order)) * 2), (1, 4, 3), names=["gather_to_shuffle"])
        assert not changes and op_counts(model)["Gather"] == 1


@pytest.mark.parametrize("alpha, beta, trans", [(1.0, 1.0, 1), (0.5, 2.0, 0)])
def test_gemm_factors_go_into_the_weights(folder, alpha, beta, trans):
    import onnx

    rng = np.random.default_rng(0)
    w, b = rng.standard_normal((6, 5)).astype(np.float32), rng.standard_normal((1, 5)).astype(np.float32)
    node = onnx.helper.make_node("Gemm", ["x", "w", "b"], ["y"], "g", alpha=alpha, beta=beta, transB=trans)
    io = [onnx.helper.make_tensor_value_info(n, 1, [3, d]) for n, d in (("x", 6), ("y", 5))]
    inits = [onnx.numpy_helper.from_array(a, n) for a, n in ((w.T if trans else w, "w"), (b, "b"))]
    path = folder / "gemm.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", io[:1], io[1:], inits), opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    model = graph.load(path)
    graph.tidy(model)
    assert len(rewrites.apply(model, "linear_to_conv2d")) == 1
    graph.save(model, folder / "gemm2.onnx")
    fed = feeds(model)
    np.testing.assert_allclose(run(folder / "gemm2.onnx", fed)["y"], run(path, fed)["y"], atol=1e-5)


def test_a_bias_that_others_read_too_and_products_of_activations_stay(folder):
    module = Lambda(lambda m, x: (m.c(x) + 1.0) * (x @ x.transpose(1, 2)), c=nn.Linear(4, 4, bias=False))
    model, _ = check(folder, module, (1, 4, 4), names=["linear_to_conv2d"])
    assert op_counts(model)["MatMul"] == 1 and op_counts(model)["Conv"] == 1


@pytest.mark.parametrize("bias", [True, False])
def test_rows_equal_a_sequence_of_them(folder, bias):
    module = Lambda(lambda m, x: m.b(torch.relu(m.a(x))) * 2, a=nn.Linear(6, 8, bias), b=nn.Linear(8, 5))
    model, changes = check(folder, module, (3, 6), names=["rows_to_sequence"])
    assert len(changes) == 2 and [len(graph.shape_of(node.inputs[0])) for node in model.graph if node.op_type == "MatMul"] == [3, 3]
    assert "Gemm" not in op_counts(model) and sum(graph.count_macs(model).values()) == 3 * (6 * 8 + 8 * 5)


def test_one_row_and_products_of_activations_are_no_sequence(folder):
    model, changes = check(folder, Lambda(lambda m, x: m.a(x), a=nn.Linear(6, 8)), (1, 6), names=["rows_to_sequence"])
    assert not changes and op_counts(model) == {"Gemm": 1}
    assert not check(folder, Lambda(lambda m, x: x @ x.T), (3, 6), names=["rows_to_sequence"])[1]


@pytest.mark.parametrize("shape", [(2, 6, 9), (1, 6, 5, 7), (2, 6, 2, 3, 4)])
def test_a_batch_norm_that_joins_no_layer_equals_its_convolution(folder, shape):
    kind = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)]
    norm = kind(6)
    for tensor, low, high in ((norm.weight, -1.5, 1.5), (norm.bias, -1, 1), (norm.running_mean, -1, 1), (norm.running_var, 0.1, 2)):
        nn.init.uniform_(tensor, low, high)
    # Between two additions, as in a network whose norms stand before its layers.
    model, changes = check(folder, Lambda(lambda m, x: x + torch.relu(m.n(x + x.roll(1, 1))), n=norm), shape, names=["batch_norm_to_conv"])
    assert len(changes) == 1 and "BatchNormalization" not in op_counts(model)
    [conv] = [node for node in model.graph if node.op_type == "Conv"]
    assert graph.shape_of(conv.inputs[1]) == (6, 1, *[1] * (len(shape) - 2)) and conv.attributes["group"].value == 6
    assert sum(graph.count_macs(model).values()) == np.prod(shape)


def test_a_batch_norm_of_rows_stays_arithmetic(folder):
    model, changes = check(folder, Lambda(lambda m, x: torch.relu(m.n(torch.relu(x))), n=nn.BatchNorm1d(6)), (3, 6), names=["batch_norm_to_conv"])
    assert not changes and op_counts(model)["BatchNormalization"] == 1


@pytest.mark.parametrize("dim, keepdim", [(1, True), (1, False), (-1, True), ((1, 2), True)])
def test_a_length_equals_its_arithmetic(folder, dim, keepdim):
    model, changes = check(folder, Lambda(lambda m, x: torch.linalg.vector_norm(x, dim=dim, keepdim=keepdim) + 1.0), (2, 6, 5), names=["decompose_reduce_l2"])
    assert {"Mul": 1, "ReduceSum": 1, "Sqrt": 1}.items() <= op_counts(model).items() and "ReduceL2" not in op_counts(model)
    assert [node.op_type for node in model.graph if node.name in changes[0].fp32] == ["Mul", "ReduceSum", "Sqrt"]


def test_a_normalized_vector_of_25088_stays_within_float16_in_what_is_not_named_fp32(folder):
    """The sum of squares of a backbone's map is far beyond 65 504; only what is named fp32 may hold it."""
    module = Lambda(lambda m, x: F.normalize(x * 30, dim=1))
    model, changes = check(folder, module, (1, 25_088), names=["decompose_reduce_l2"])
    names = {node.outputs[0].name: node.name for node in model.graph}
    fed = feeds(model)
    path = folder / "normalized.onnx"
    graph.save(model, path)
    values = run(path, fed, also=[name for name in names if name not in {v.name for v in model.graph.outputs}])
    beyond = {names[name] for name, value in values.items() if np.abs(value).max() > 65_504}
    assert beyond and beyond <= set(changes[0].fp32)


@pytest.mark.parametrize("shape, groups", [((2, 8, 30), 8), ((1, 8, 5, 6), 2), ((1, 8, 3, 4, 5), 4)])
@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm_equals_its_arithmetic(folder, shape, groups, affine):
    norm = nn.GroupNorm(groups, 8, affine=affine)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    model, changes = check(folder, Lambda(lambda m, x: m.n(x * 3 + 5), n=norm), shape, names=["decompose_instance_norm"])
    assert "InstanceNormalization" not in op_counts(model) and "Pow" not in op_counts(model)
    nodes = {node.name: node.op_type for node in model.graph}
    assert {nodes[name] for name in changes[0].fp32} == {"ReduceMean", "Sub", "Mul", "Add", "Sqrt", "Div"}


@pytest.mark.parametrize("shape, last", [((2, 5, 8), (8,)), ((1, 4, 3, 8), (3, 8)), ((3, 8), (8,))])
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_equals_its_arithmetic(folder, shape, last, affine):
    norm = nn.LayerNorm(last, elementwise_affine=affine)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    model, changes = check(folder, Lambda(lambda m, x: m.n(x * 2 - 1), n=norm), shape, names=["decompose_layer_norm"])
    assert "LayerNormalization" not in op_counts(model) and "Pow" not in op_counts(model)
    alive = {node.name for node in model.graph}
    assert len(changes) == 1 and set(changes[0].fp32) <= alive
    assert any(name.endswith("/std") for name in changes[0].fp32)


def test_a_square_becomes_a_product_and_other_powers_stay(folder):
    model, _ = check(folder, Lambda(lambda m, x: x.pow(2) + x.abs().pow(1.5)), (2, 3), names=["pow_to_mul"])
    assert op_counts(model)["Pow"] == 1 and op_counts(model)["Mul"] == 1


def test_int64_constants_fit_in_int32_afterwards(folder):
    model, changes = check(folder, Lambda(lambda m, x: x[:, 1:] * 2), (2, 6), names=["clamp_int64"])
    assert len(changes) == 1
    for value in model.graph.initializers.values():
        array = graph.constant(value)
        assert array.dtype != np.int64 or np.abs(array).max() < 2**31


def test_nothing_but_arithmetic_is_left_between_convolutions_of_a_stem(folder):
    model, _ = check(folder, Stem(), (1, 400))
    kinds = [node.op_type for node in model.graph]
    first, last = kinds.index("Conv"), [i for i, kind in enumerate(kinds) if kind == "Conv"][2]
    assert not set(kinds[first:last]) & {"Squeeze", "Unsqueeze", "Transpose", "Reshape"}
    between = [node for node in model.graph if node.op_type == "Erf"]
    assert all(len(graph.shape_of(node.outputs[0])) == 4 for node in between)


def test_queries_keys_and_values_share_one_transposed_input(folder):
    model, _ = check(folder, Block(), (1, 7, 12))
    readers = {}
    for node in model.graph:
        if node.op_type == "Conv":
            readers.setdefault(node.inputs[0].name, []).append(node.name)
    assert max(len(names) for names in readers.values()) == 3
    # the FFN's GELU stays 4-D between its two layers
    erf = next(node for node in model.graph if node.op_type == "Erf")
    assert len(graph.shape_of(erf.outputs[0])) == 4


def test_a_residual_around_a_conv1d_stays_exact(folder):
    module = Lambda(lambda m, x: F.relu(x + m.b(F.gelu(m.a(x)))).mean(-1), a=nn.Conv1d(4, 4, 3, padding=1), b=nn.Conv1d(4, 4, 1))
    check(folder, module, (2, 4, 9))


def test_rank_2_4_and_5_and_recurrent_nets_come_through_all_rewrites(folder):
    check(folder, Inverted3d(), (1, 3, 4, 16, 16))
    check(folder, Lambda(lambda m, x: m.fc(m.rnn(x)[0].mean(1)), rnn=nn.LSTM(6, 8, batch_first=True), fc=nn.Linear(8, 2)), (1, 5, 6))
    attention = Lambda(lambda m, q, k: m.a(q, k, k, need_weights=False)[0], a=nn.MultiheadAttention(8, 2, batch_first=True))
    check(folder, attention, (1, 3, 8), (1, 11, 8))


@few
@given(seed=st.integers(0, 10_000))
def test_random_chains_come_through_all_rewrites(folder, seed):
    rng = np.random.default_rng(seed)
    parts, channels, steps = {}, 4, []
    for i in range(rng.integers(2, 6)):
        kind = rng.choice(["conv", "linear", "gelu", "relu", "norm", "layer_norm", "residual", "prelu", "slice"])
        if kind == "conv":
            out = int(rng.choice([4, 8]))
            parts[f"p{i}"] = nn.Conv1d(channels, out, int(rng.integers(1, 4)), padding=1, groups=int(rng.choice([1, 2])), bias=bool(rng.integers(2)))
            channels = out
        elif kind in ("linear", "residual"):
            out = channels if kind == "residual" else int(rng.choice([4, 8]))
            parts[f"p{i}"] = nn.Linear(channels, out, bias=bool(rng.integers(2)))
            channels = out
        elif kind == "norm":
            parts[f"p{i}"] = nn.GroupNorm(channels, channels)
        elif kind == "layer_norm":
            parts[f"p{i}"] = nn.LayerNorm(channels)
        elif kind == "prelu":
            parts[f"p{i}"] = nn.PReLU(channels)
        steps.append((kind, f"p{i}"))

    def forward(m, x):  # [n, c, t]
        for kind, name in steps:
            if kind in ("conv", "norm", "prelu"):
                x = getattr(m, name)(x)
            elif kind in ("linear", "layer_norm"):
                x = getattr(m, name)(x.transpose(1, 2)).transpose(1, 2)
            elif kind == "residual":
                x = x + getattr(m, name)(x.transpose(1, 2)).transpose(1, 2)
            elif kind == "slice":
                x = x[:, :, :-1]
            else:
                x = F.gelu(x) if kind == "gelu" else F.relu(x)
        return x

    model, _ = check(folder, Lambda(forward, **parts), (int(rng.integers(1, 3)), 4, 16))
    assert not {"Gemm", "LayerNormalization", "InstanceNormalization"} & set(op_counts(model))
    assert all(len(graph.shape_of(node.inputs[0])) == 4 for node in model.graph if node.op_type == "Conv")


def test_every_rewrite_that_a_target_lists_exists():
    from pathlib import Path

    for path in (Path(__file__).parents[1] / "targets").glob("*.yaml"):
        assert set(load_target(path.stem, path.parent.parent).rewrites) <= set(rewrites.REWRITES)


def test_an_unknown_rewrite_is_refused(folder):
    model = graph.load(export(folder, Block(), (1, 4, 12)))
    with pytest.raises(EdgekitError, match="unknown rewrite `einsum_to_magic`"):
        rewrites.apply(model, "einsum_to_magic")

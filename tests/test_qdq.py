"""Which layers are INT8, and that the Q/DQ graph computes exactly the target's numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import graph, qdq, rewrites
from edgekit.errors import EdgekitError
from edgekit.quant import Numbers, Range, Scale, fake_quantize, quantize_weight, scale_of, weight_scales
from tests.onnx_nets import Block, Inverted3d, Lambda, export, feeds, op_counts, run

INT8 = {"Conv": {"int8": True, "ranks": [4, 5]}, "Conv.depthwise": {"int8": False}, "Conv.odd_groups": {"int8": False}, "Clip": {"int8": True}}
ALL = {op: {"int8": True} for op in ("Conv", "ConvTranspose", "Gemm", "MatMul", "MatMul.activations", "Clip", "Relu", "Add", "Mul", "Sigmoid", "ReduceMean", "Softmax")}
FOUR = Numbers(nonnegative="uint8")
TFLITE = Numbers(symmetric=False, outputs=True)


def quantized(model, numbers=None, ops=ALL, ranges=None):
    """The Q/DQ graph of everything the table takes; every range is what a forward pass would roughly see."""
    numbers = numbers or Numbers()
    chosen = qdq.precisions(model, ops, outputs=numbers.outputs)
    return chosen, qdq.insert_qdq(model, chosen, ranges or dict.fromkeys(chosen.observed, Range(-3.0, 3.0)), numbers)


def readers_of(model, name):
    return sorted(node.op_type for node in model.graph for value in node.inputs if value is not None and value.name == name)


@pytest.mark.parametrize(
    ("numbers", "r"),
    [
        (Numbers(), Range(-2.0, 1.5)),
        (FOUR, Range(-2.0, 1.5)),
        (FOUR, Range(0.0, 2.5)),
        (Numbers(symmetric=False), Range(-1.0, 2.0)),
        (Numbers(weight_divisor=63), Range(-2.0, 2.0)),
        (Numbers(weight_per_channel=False), Range(-2.0, 2.0)),
    ],
)
def test_qdq_computes_exactly_the_targets_numbers(tmp_path, numbers, r):
    conv = nn.Conv2d(3, 4, 3, padding=1)
    path = export(tmp_path, Lambda(lambda m, x: m.c(x), c=conv), (1, 3, 6, 6))
    model = graph.load(path)
    file = tmp_path / "qdq.onnx"
    graph.save(quantized(model, numbers, ranges={"x0": r})[1], file)
    x = feeds(model)
    w = conv.weight.detach().numpy()
    scales = weight_scales(w, numbers)
    integers = quantize_weight(w, scales)
    assert np.abs(integers).max() == numbers.weight_divisor
    fake = fake_quantize(x["x0"], scale_of(r, numbers))
    with torch.no_grad():
        want = nn.functional.conv2d(torch.from_numpy(fake), torch.from_numpy(integers.astype(np.float32) * scales[:, None, None, None]), conv.bias, padding=1).numpy()
    np.testing.assert_allclose(run(file, x)["y0"], want, atol=1e-5)  # 27 products in another order
    assert op_counts(graph.load(path)) == {"Conv": 1}  # the float model is as it was


@pytest.mark.parametrize(
    ("layer", "shape", "axis"),
    [
        (nn.Linear(6, 5), (1, 7, 6), 1),  # MatMul
        (nn.Linear(6, 5), (1, 6), 0),  # Gemm with transB
        (nn.ConvTranspose2d(6, 5, 3), (1, 6, 4, 4), 1),
        (nn.Conv1d(6, 5, 3), (1, 6, 8), 0),
        (nn.Conv3d(6, 5, 3), (1, 6, 4, 4, 4), 0),
    ],
)
def test_every_kind_of_weight_is_quantized_per_output_channel(tmp_path, layer, shape, axis):
    model = graph.load(export(tmp_path, Lambda(lambda m, x: m.c(x), c=layer), shape))
    _, integer = quantized(model, ranges={"x0": Range(-100.0, 100.0)})
    [dq] = [node for node in integer.graph if node.op_type == "DequantizeLinear" and graph.constant(node.inputs[0]) is not None]
    assert graph.attribute(dq, "axis", None) == axis and graph.shape_of(dq.inputs[1]) == (5,)
    dequantized = graph.constant(dq.inputs[0]) * np.expand_dims(graph.constant(dq.inputs[1]), tuple(i for i in range(len(graph.shape_of(dq.inputs[0]))) if i != axis))
    [layer_node] = [node for node in model.graph if node.op_type in qdq.WEIGHTED]
    w = graph.constant(layer_node.inputs[1])
    assert np.abs(dequantized - w).max() <= np.abs(w).max() / 127 / 2 * 1.001


def test_layers_that_read_one_tensor_share_one_qdq_pair_and_biases_stay_float(tmp_path):
    module = Lambda(lambda m, x: m.a(x) + m.b(x), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 1))
    model = graph.load(export(tmp_path, module, (1, 3, 4, 4)))
    _, integer = quantized(model, ops=INT8, ranges={"x0": Range(-1, 1)})
    assert op_counts(integer) == {"QuantizeLinear": 1, "DequantizeLinear": 3, "Conv": 2, "Add": 1}
    for node in integer.graph:
        if node.op_type == "Conv":
            assert graph.constant(node.inputs[2]).dtype == np.float32


def test_a_layer_without_a_range_is_refused_by_name(tmp_path):
    model = graph.load(export(tmp_path, Lambda(lambda m, x: m.a(x), a=nn.Conv2d(3, 4, 1)), (1, 3, 4, 4)))
    with pytest.raises(EdgekitError, match="`a/Conv`: no range for `x0`"):
        qdq.insert_qdq(model, qdq.precisions(model, INT8), {}, Numbers())


def test_precisions_follow_the_table_and_say_why_not(tmp_path):
    model = graph.load(export(tmp_path, Inverted3d(), (1, 3, 4, 16, 16)))
    p = qdq.precisions(model, INT8, {"b.0/Conv": "quantize.skip: b.0*"})
    assert set(p.int8) == {"stem.0/Conv", "a.0/Conv", "a.6/Conv", "b.6/Conv"}
    assert p.skipped == {
        "a.3/Conv": "depthwise Conv is not taken in INT8",
        "b.0/Conv": "quantize.skip: b.0*",
        "b.3/Conv": "depthwise Conv is not taken in INT8",
    }
    # the stem's ReLU6 stands between two INT8 layers; a.2's feeds a depthwise layer in FP16
    assert p.fused == ("stem.2/Clip",)
    assert set(p.tensors) >= {"x0", "stem.0/Conv_out", "stem.2/Clip_out", "a.0/Conv_out"}
    assert "a.2/Clip_out" not in p.tensors


def test_products_of_two_activations_are_quantized_on_both_sides_where_the_table_says_so(tmp_path):
    model = graph.load(export(tmp_path, Block(), (1, 5, 12)))
    without, _ = quantized(model, ops={"MatMul": {"int8": True}})
    assert set(without.skipped.values()) == {"MatMul of two activations is not taken in INT8"} and len(without.skipped) == 2
    chosen, integer = quantized(model)
    assert not chosen.skipped
    for node in integer.graph:
        if node.op_type == "MatMul":
            assert [value.producer().op_type for value in node.inputs] == ["DequantizeLinear"] * 2


def test_residual_additions_between_integer_layers_are_integer_and_those_of_floats_are_not(tmp_path):
    parts = {name: nn.Conv2d(4, 4, 1) for name in "abc"}
    inside = Lambda(lambda m, x: m.c(m.a(x) + m.b(x)), **parts)
    outside = Lambda(lambda m, x: (m.c(torch.tanh(m.a(x)) + x), m.b(x)), **parts)
    model = graph.load(export(tmp_path, inside, (1, 4, 3, 3), name="inside"))
    chosen, integer = quantized(model)
    assert chosen.others == ("Add",) and chosen.reads["Add"] == (0, 1)
    assert [value.producer().op_type for value in next(n for n in integer.graph if n.op_type == "Add").inputs] == ["DequantizeLinear"] * 2
    chosen, _ = quantized(graph.load(export(tmp_path, outside, (1, 4, 3, 3), name="outside")))
    assert chosen.others == ()


def test_where_layers_write_integers_everybody_reads_the_rounded_tensor(tmp_path):
    module = Lambda(lambda m, x: (m.b(torch.relu(m.a(x))), torch.tanh(torch.relu(m.a(x)))), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 2, 1))
    model = graph.load(export(tmp_path, module, (1, 3, 4, 4)))
    chosen, integer = quantized(model, TFLITE)
    relu = [name for name in chosen.writes if name.endswith("Relu_out")]
    assert relu and not [name for name in chosen.writes if name.endswith("a/Conv_out")], "the activation is part of the layer"
    for name in relu:
        assert readers_of(integer, name) == ["QuantizeLinear"]
    # an output that an integer layer writes is the rounded one, under its own name
    assert integer.graph.outputs[0].name == "y0" and integer.graph.outputs[0].producer().op_type == "DequantizeLinear"
    assert integer.graph.outputs[1].producer().op_type == "Tanh"


def test_a_bias_added_after_a_product_is_part_of_the_layer_where_it_writes_integers(tmp_path):
    model = graph.load(export(tmp_path, Lambda(lambda m, x: torch.tanh(m.a(x)), a=nn.Linear(6, 5)), (1, 7, 6)))
    chosen, _ = quantized(model, TFLITE)
    assert chosen.fused == ("a/Add",) and chosen.writes == ("a/Add_out",)
    assert quantized(model)[0].fused == ()


def test_followers_are_integer_only_between_integers_and_write_in_their_own_scale(tmp_path):
    module = Lambda(lambda m, x: (m.b(torch.softmax(m.a(x), -1)), torch.softmax(m.b(x), -1)), a=nn.Linear(6, 6), b=nn.Linear(6, 6))
    model = graph.load(export(tmp_path, module, (1, 7, 6)))
    ops = {**ALL, "Softmax": {"int8": True, "int8_output": {"scale": 1 / 256, "zero_point": -128}}}
    chosen, integer = quantized(model, TFLITE, ops)
    assert chosen.others == ("Softmax",)  # the second softmax gives an output in float
    assert chosen.fixed == {"Softmax_out": Scale(1 / 256, -128, "int8")} and "Softmax_out" not in chosen.observed
    quantizers = {node.inputs[0].name: float(graph.constant(node.inputs[1])) for node in integer.graph if node.op_type == "QuantizeLinear"}
    assert quantizers["Softmax_out"] == 1 / 256


def test_the_tflite_form_stays_close_to_float(tmp_path):
    model_path = export(tmp_path, Block(), (1, 5, 12))
    model = graph.load(model_path)
    x = feeds(model)
    chosen = qdq.precisions(model, ALL, outputs=True)
    seen = run(model_path, x, also=[name for name in chosen.observed if name != "x0"]) | x
    ranges = {name: Range(float(seen[name].min()), float(seen[name].max())) for name in chosen.observed}
    file = tmp_path / "qdq.onnx"
    graph.save(qdq.insert_qdq(model, chosen, ranges, TFLITE), file)
    want, got = run(model_path, x)["y0"], run(file, x)["y0"]
    noise = np.square(got - want).mean() / np.square(want).mean()
    assert 1e-6 < noise < 1e-2  # 20 to 60 dB: quantized, and not broken


@pytest.mark.parametrize("groups, channels, kind", [(1, 8, None), (8, 8, "depthwise"), (2, 8, None), (2, 12, "odd_groups"), (4, 8, "odd_groups")])
def test_groups_must_be_multiples_of_4_channels(tmp_path, groups, channels, kind):
    module = Lambda(lambda m, x: m.c(x), c=nn.Conv2d(channels, channels, 3, groups=groups))
    model = graph.load(export(tmp_path, module, (1, channels, 5, 5)))
    assert qdq.conv_kind(next(iter(model.graph))) == kind


def test_a_recurrent_layer_is_a_loop_on_integers_with_its_state_on_one_scale(tmp_path):
    module = Lambda(lambda m, x: m.out(m.rnn(x)[0]), rnn=nn.LSTM(6, 8, batch_first=True), out=nn.Linear(8, 3))
    path = export(tmp_path, module, (1, 9, 6))
    model = graph.load(path)
    before = graph.count_macs(model)
    rewrites.apply(model, "rnn_to_scan")
    assert sum(graph.count_macs(model).values()) == sum(before.values())
    loop_form = tmp_path / "loop.onnx"
    graph.save(model, loop_form)
    chosen = qdq.precisions(model, {**ALL, "Scan": {"int8": True}}, outputs=True)
    [scan] = chosen.cells
    assert scan in chosen.int8 and not chosen.skipped
    x = feeds(model)
    seen = run(loop_form, x, also=[name for name in chosen.observed if name != "x0"]) | x
    ranges = {name: Range(float(seen[name].min()), float(seen[name].max())) for name in chosen.observed}
    looped = qdq.tied(model, chosen, ranges)
    assert looped and len(set(looped.values())) <= 2  # h and c
    file = tmp_path / "qdq.onnx"
    graph.save(qdq.insert_qdq(model, chosen, ranges | looped, TFLITE), file)
    want, got = run(path, x)["y0"], run(file, x)["y0"]
    noise = np.square(got - want).mean() / np.square(want).mean()
    assert 1e-6 < noise < 1e-2


def test_a_small_last_layer_is_found_behind_its_bias_and_reshape_and_a_large_one_is_not(tmp_path):
    module = Lambda(lambda m, x: (m.head(m.body(x).mean(1))[:, 0], m.body(x)), body=nn.Linear(40, 60), head=nn.Linear(60, 1))
    model = graph.load(export(tmp_path, module, (1, 50, 40)))
    assert qdq.last_layers(model, ["y0"]) == ["head/Gemm"]
    assert qdq.last_layers(model, ["y1"]) == []


def test_what_a_kernel_writes_in_keeps_its_sign(tmp_path):
    module = Lambda(lambda m, x: m.b(torch.tanh(m.a(x))), a=nn.Linear(6, 6), b=nn.Linear(6, 6))
    model = graph.load(export(tmp_path, module, (1, 7, 6)))
    ops = {**ALL, "Tanh": {"int8": True, "int8_output": {"scale": 1 / 128, "zero_point": 0}}}
    assert list(qdq.precisions(model, ops, outputs=True).fixed.values()) == [Scale(1 / 128, 0, "int8")]


def test_integers_that_are_only_moved_keep_their_scale(tmp_path):
    module = Lambda(lambda m, x: m.b(torch.nn.functional.max_pool2d(m.a(x), 2)[:, :, 1:]), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 2, 1))
    model = graph.load(export(tmp_path, module, (1, 3, 8, 8)))
    chosen = qdq.precisions(model, ALL, outputs=True)
    assert qdq.passed_on(model, chosen) == {"Slice_out": "a/Conv_out"}
    assert qdq.passed_on(model, qdq.precisions(model, ALL)) == {}


def test_a_range_ends_where_all_its_readers_are_flat(tmp_path):
    module = Lambda(lambda m, x: (m.b(torch.sigmoid(m.a(x))), torch.tanh(m.c(x)) + m.c(x)), a=nn.Linear(6, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 6))
    model = graph.load(export(tmp_path, module, (1, 7, 6)))
    assert qdq.useful(model, "a/Add_out", Range(-40.0, 2.0)) == Range(-6.24, 2.0)
    assert qdq.useful(model, "a/Add_out", Range(-40.0, -30.0)) == Range(-6.24, -6.24)
    assert qdq.useful(model, "c/Add_out", Range(-40.0, 2.0)) == Range(-40.0, 2.0)  # the sum reads it too


def test_products_of_two_activations_may_be_symmetric_where_nothing_else_is(tmp_path):
    model = graph.load(export(tmp_path, Block(), (1, 5, 12)))
    ops = {**ALL, "MatMul.activations": {"int8": True, "symmetric": True}}
    chosen, integer = quantized(model, Numbers(dtype="uint8", symmetric=False), ops, dict.fromkeys(qdq.precisions(model, ops).observed, Range(-3.0, 1.0)))
    assert len(chosen.symmetric) == 4
    points = {node.inputs[0].name: graph.constant(node.inputs[2]) for node in integer.graph if node.op_type == "QuantizeLinear"}
    for tensor, zero_point in points.items():
        assert (zero_point.dtype == np.int8 and zero_point == 0) == (tensor in chosen.symmetric)


def shuffle_units(m, x):
    """Two units of a shuffle network: half of the channels passes, half is worked on, both are joined and mixed."""
    for i in range(2):
        passing, worked = x.chunk(2, 1)
        x = torch.cat((passing, torch.relu(getattr(m, f"b{i}")(worked))), 1).index_select(1, torch.tensor([0, 2, 1, 3]))
    return m.last(x)


def shuffled(tmp_path, then=lambda m, x: shuffle_units(m, torch.relu(m.first(x)))):
    torch.manual_seed(2)
    parts = {"first": nn.Conv2d(3, 4, 1), "b0": nn.Conv2d(2, 2, 1), "b1": nn.Conv2d(2, 2, 1), "last": nn.Conv2d(4, 2, 1)}
    return graph.load(export(tmp_path, Lambda(then, **parts), (1, 3, 5, 5)))


def test_what_a_concat_joins_is_written_on_one_scale_and_joined_as_integers(tmp_path):
    model = shuffled(tmp_path)
    chosen, integer = quantized(model, TFLITE)
    concats = {node.name: node for node in integer.graph if node.op_type == "Concat"}
    assert chosen.joined == (("Concat_1_out", "Concat_out", "Relu_1_out", "Relu_2_out", "Relu_out"),)
    assert {f"{name}_out" for name in concats} < set(chosen.writes)
    for node in concats.values():
        assert [use.node.op_type for use in node.outputs[0].uses()] == ["QuantizeLinear"]
    # every reader behind has the scale of what was written
    assert set(qdq.passed_on(model, chosen).values()) == {"Concat_out", "Concat_1_out", "Relu_out"}


def test_where_layers_may_write_floats_a_concat_is_left_to_the_compiler(tmp_path):
    chosen, _ = quantized(shuffled(tmp_path))
    assert chosen.joined == () and chosen.writes == ()


MOVERS = {**ALL, **{op: {"int8": True} for op in ("Concat", "Slice", "Split", "Gather", "MaxPool")}}


def test_where_the_table_moves_integers_layers_write_what_a_concat_joins_and_nothing_else(tmp_path):
    model = shuffled(tmp_path)
    chosen, integer = quantized(model, ops=MOVERS)
    assert chosen.joined == (("Concat_1_out", "Concat_out", "Relu_1_out", "Relu_2_out", "Relu_out"),)
    assert set(chosen.writes) == set(chosen.joined[0])  # the last layer gives floats
    for node in integer.graph:
        if node.op_type == "Concat":
            assert {value.producer().op_type for value in node.inputs} == {"DequantizeLinear", "Slice"}


def test_a_layer_writes_integers_for_a_pool_before_another_layer(tmp_path):
    pooled = shuffled(tmp_path, lambda m, x: m.last(nn.functional.max_pool2d(torch.relu(m.first(x)), 2)))
    chosen, _ = quantized(pooled, ops=MOVERS)
    assert chosen.writes == ("Relu_out",) and "Relu" in chosen.fused and chosen.joined == ()
    assert qdq.passed_on(pooled, chosen) == {"MaxPool_out": "Relu_out"}
    assert quantized(pooled)[0].writes == ()
    floats = shuffled(tmp_path, lambda m, x: torch.tanh(nn.functional.max_pool2d(torch.relu(m.first(x)), 2)))
    assert quantized(floats, ops=MOVERS)[0].writes == ()


def test_a_concat_with_a_part_in_floats_is_not_joined_where_layers_may_write_floats(tmp_path):
    floats = shuffled(tmp_path, lambda m, x: m.last(torch.cat((torch.relu(m.b0(x[:, :2])), torch.tanh(x[:, 1:])), 1)))
    chosen, _ = quantized(floats, ops=MOVERS)
    assert chosen.joined == () and chosen.writes == ()


def test_a_concat_with_a_part_in_floats_or_without_an_integer_reader_is_not_joined(tmp_path):
    floats = shuffled(tmp_path, lambda m, x: m.last(torch.cat((torch.relu(m.b0(x[:, :2])), torch.tanh(x[:, 1:])), 1)))
    assert quantized(floats, TFLITE)[0].joined == ()
    unread = shuffled(tmp_path, lambda m, x: torch.tanh(torch.cat((torch.relu(m.b0(x[:, :2])), torch.relu(m.b1(x[:, 1:]))), 1)))
    assert quantized(unread, TFLITE)[0].joined == ()


def test_a_kernels_fixed_scale_is_not_joined(tmp_path):
    ops = {**ALL, "Sigmoid": {"int8": True, "int8_output": {"scale": 1 / 256, "zero_point": -128}}}
    gated = shuffled(tmp_path, lambda m, x: m.last(torch.cat((torch.sigmoid(m.b0(x[:, :2])), torch.relu(m.b1(x[:, 1:]))), 1)))
    assert quantized(gated, TFLITE, ops)[0].joined == ()


def test_a_product_that_broadcasts_is_integer_between_integers(tmp_path):
    gate = shuffled(tmp_path, lambda m, x: m.last((y := torch.relu(m.first(x))) * m.first(x).mean((2, 3), keepdim=True) + y))
    chosen, _ = quantized(gate, TFLITE)
    assert {"Mul", "Add"} <= {name.split("/")[-1] for name in chosen.others}


# --------------------------------------------------------------------------- kernels with a scale of their own


@pytest.mark.parametrize(("high", "is_coarse"), [(0.9, False), (0.26, False), (0.24, True), (0.01, True)])
def test_a_tanh_whose_values_are_small_is_too_coarse_in_steps_of_its_own(tmp_path, high, is_coarse):
    """Steps of 1/128 are as many as [-1, 1] needs; of what stays below a quarter of that, two bits and more are lost."""
    module = Lambda(lambda m, x: m.b(torch.tanh(m.a(x))), a=nn.Linear(6, 8), b=nn.Linear(8, 4))
    model = graph.load(export(tmp_path, module, (1, 5, 6)))
    ops = {**ALL, "Tanh": {"int8": True, "int8_output": {"scale": 1 / 128, "zero_point": 0}}}
    seen = {"Tanh_out": Range(-high, high)}
    found = qdq.too_coarse(model, ops, seen.get, TFLITE)
    assert found == (["Tanh"] if is_coarse else [])
    chosen = qdq.precisions(model, ops, dict.fromkeys(found, "coarse"), outputs=True)
    assert ("Tanh" in chosen.others) == (not is_coarse) and ("Tanh_out" in chosen.fixed) == (not is_coarse)
    # In float it still feeds an integer layer, which then reads it in a scale of its own.
    assert "b/MatMul" in chosen.int8 and ("Tanh_out" in chosen.observed) == is_coarse


def test_what_was_never_seen_and_what_has_no_scale_of_its_own_is_not_too_coarse(tmp_path):
    model = graph.load(export(tmp_path, Lambda(lambda m, x: m.b(torch.tanh(m.a(x))), a=nn.Linear(6, 8), b=nn.Linear(8, 4)), (1, 5, 6)))
    ops = {**ALL, "Tanh": {"int8": True, "int8_output": {"scale": 1 / 128, "zero_point": 0}}}
    assert qdq.too_coarse(model, ops, {}.get, TFLITE) == []
    assert qdq.too_coarse(model, {**ALL, "Tanh": {"int8": True}}, {"Tanh_out": Range(-1e-3, 1e-3)}.get, TFLITE) == []

"""Each op against ONNX Runtime, in float and in int8, and no TRANSPOSE, QUANTIZE or DEQUANTIZE without need."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit import rewrites
from edgekit.backends.tflite.lower import lower
from edgekit.errors import TargetError
from tests.backends.tflite.nets import check_float, check_int8, net, onnx_run, ops_of, quantized, random_feeds, types_of

pytest.importorskip("ai_edge_litert")

few = settings(max_examples=30, deadline=None)
MOVES = {"TRANSPOSE", "RESHAPE", "QUANTIZE", "DEQUANTIZE", "PAD", "SLICE"}


def weight(*shape, seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) * 0.3).astype(np.float32)


def between(lowered):
    """The ops between the two ends of an int8 graph, which are floats."""
    ops = ops_of(lowered)
    assert ops[0] == "QUANTIZE" and ops[-1] == "DEQUANTIZE", ops
    return ops[1:-1]


# --------------------------------------------------------------------------- convolutions


def out_size(d, k, s, r, pads):
    return (d + sum(pads) - (k - 1) * r - 1) // s + 1


@few
@given(
    kind=st.sampled_from(["dense", "depthwise", "multiplier", "grouped"]),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    bias=st.booleans(),
    activation=st.sampled_from([None, "Relu", "Clip"]),
    integer=st.booleans(),
)
def test_conv_2d(kind, kernel, stride, dilation, pads, bias, activation, integer):
    group, out = {"dense": (1, 6), "depthwise": (4, 4), "multiplier": (4, 8), "grouped": (2, 6)}[kind]
    size = [out_size(d, k, s, r, p) for d, k, s, r, p in zip((9, 10), kernel, stride, dilation, (pads[::2], pads[1::2]), strict=True)]
    weights = {"w": weight(out, 4 // group, *kernel), "b": weight(out), "lo": np.float32(0), "hi": np.float32(6)}
    attributes = {"kernel_shape": kernel, "strides": stride, "dilations": dilation, "pads": [pads[0], pads[1], pads[2], pads[3]], "group": group}
    nodes = [("Conv", "x w b" if bias else "x w", "c" if activation else "y", attributes)]
    if activation:
        nodes.append((activation, "c" if activation == "Relu" else "c lo hi", "y"))
    model = net(nodes, {"x": (1, 4, 9, 10)}, {"y": (1, out, *size)}, weights)
    if integer:
        lowered = check_int8(model)
        assert not {"float32"} & {dtype for op, dtype in types_of(lowered)[:-1] if op != "DEQUANTIZE"}
    else:
        lowered = check_float(model)
    assert [op for op in ops_of(lowered) if op not in MOVES] == ["DEPTHWISE_CONV_2D" if kind in ("depthwise", "multiplier") else "CONV_2D"]


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_automatic_padding(group, auto_pad):
    size = 4 if auto_pad == "VALID" else 5
    model = net([("Conv", "x w", "y", {"auto_pad": auto_pad, "strides": [2, 2], "group": group})], {"x": (1, 4, 10, 10)}, {"y": (1, 4, size, size)}, {"w": weight(4, 4 // group, 3, 3)})
    assert ("PAD" in ops_of(check_float(model))) == (auto_pad == "SAME_LOWER")


@pytest.mark.parametrize("check", [check_float, check_int8])
def test_a_1d_cnn_is_one_of_height_one_and_is_turned_at_its_ends_only(check):
    nodes = [
        ("Conv", "x w1 b1", "a", {"strides": [2], "pads": [1, 1]}),
        ("Relu", "a", "b"),
        ("Conv", "b w2", "c", {"pads": [2, 2], "dilations": [2], "group": 8}),
        ("Clip", "c lo hi", "d"),
        ("Conv", "d w3 b3", "e"),
        ("Add", "e b", "f"),
        ("Conv", "f w4", "y"),
    ]
    weights = {"w4": weight(8, 8, 1, seed=4), "w1": weight(8, 3, 3), "b1": weight(8), "w2": weight(8, 1, 3), "w3": weight(8, 8, 1), "b3": weight(8), "lo": np.float32(0), "hi": np.float32(6)}
    ops = ops_of(check(net(nodes, {"x": (1, 3, 20)}, {"y": (1, 8, 10)}, weights), **({"steps": 2} if check is check_int8 else {})))
    assert [op for op in ops if op not in MOVES] == ["CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D", "ADD", "CONV_2D"]
    assert ops.count("TRANSPOSE") == 2 and ops.count("QUANTIZE") <= 1 and ops.count("DEQUANTIZE") <= 1


@few
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    pads=st.lists(st.integers(0, 1), min_size=4, max_size=4),
    extra=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    group=st.sampled_from([1, 2]),
    activation=st.booleans(),
    integer=st.booleans(),
)
def test_transposed_conv_2d(kernel, stride, pads, extra, group, activation, integer):
    extra = tuple(min(e, s - 1) for e, s in zip(extra, stride, strict=True))
    size = [(d - 1) * s + k - p0 - p1 + e for d, s, k, p0, p1, e in zip((5, 4), stride, kernel, pads[:2], pads[2:], extra, strict=True)]
    if min(size) < 1:
        return
    attributes = {"strides": stride, "pads": pads, "output_padding": extra, "group": group, "kernel_shape": kernel}
    nodes = [("ConvTranspose", "x w b", "c" if activation else "y", attributes)] + ([("Relu", "c", "y")] if activation else [])
    model = net(nodes, {"x": (1, 4, 5, 4)}, {"y": (1, 6, *size)}, {"w": weight(4, 6 // group, *kernel), "b": weight(6)})
    (check_int8 if integer else check_float)(model)


def test_a_transposed_conv_1d():
    model = net([("ConvTranspose", "x w b", "y", {"strides": [2], "pads": [1, 1]})], {"x": (1, 4, 7)}, {"y": (1, 3, 14)}, {"w": weight(4, 3, 4), "b": weight(3)})
    check_float(model)
    assert "SLICE" not in ops_of(check_int8(model)), "the usual padding is TFLite's SAME"


def test_a_dead_channel_and_a_tiny_one_keep_their_bias():
    w = weight(3, 4, 1, 1)
    w[0], w[1] = 0, w[1] * 1e-12
    model = net([("Conv", "x w b", "y")], {"x": (1, 4, 5, 5)}, {"y": (1, 3, 5, 5)}, {"w": w, "b": np.array([0.71, -0.33, 0.1], np.float32)})
    check_int8(model)


# --------------------------------------------------------------------------- matrix products


@few
@given(
    lead=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    bias=st.sampled_from(["none", "right", "left"]),
    activation=st.booleans(),
    integer=st.booleans(),
)
def test_a_constant_matrix(lead, bias, activation, integer):
    out = "y" if not activation and bias == "none" else "m"
    nodes = [("MatMul", "x w", out)]
    if bias != "none":
        nodes.append(("Add", "m b" if bias == "right" else "b m", "a" if activation else "y"))
    if activation:
        nodes.append(("Relu", nodes[-1][2], "y"))
    model = net(nodes, {"x": (*lead, 6)}, {"y": (*lead, 5)}, {"w": weight(6, 5), "b": weight(5)})
    lowered = (check_int8 if integer else check_float)(model)
    assert [op for op in ops_of(lowered) if op not in ("QUANTIZE", "DEQUANTIZE")] == ["FULLY_CONNECTED"]


@pytest.mark.parametrize("check", [check_float, check_int8])
@pytest.mark.parametrize("trans", [0, 1])
def test_gemm(check, trans):
    w = weight(6, 5)
    model = net([("Gemm", "x w b", "c", {"transB": trans}), ("Relu", "c", "y")], {"x": (2, 6)}, {"y": (2, 5)}, {"w": w.T if trans else w, "b": weight(5)})
    assert [op for op in ops_of(check(model)) if op not in ("QUANTIZE", "DEQUANTIZE")] == ["FULLY_CONNECTED"]


def test_gemm_with_its_factors_and_a_transposed_input():
    model = net([("Gemm", "x w b", "y", {"alpha": 0.5, "beta": 2.0, "transA": 1})], {"x": (6, 2)}, {"y": (2, 5)}, {"w": weight(6, 5), "b": weight(5)})
    check_float(model)


@pytest.mark.parametrize("check", [check_float, check_int8])
def test_attention_turns_each_of_q_k_v_and_its_result_once(check):
    d, heads, t = 8, 2, 5
    nodes, weights = [], {"s4": np.array([1, t, heads, d // heads]), "s3": np.array([1, t, d]), "scale": np.float32(0.5)}
    for name in "qkv":
        weights[f"w{name}"], weights[f"b{name}"] = weight(d, d, seed=ord(name)), weight(d, seed=ord(name) + 1)
        nodes += [("MatMul", f"x w{name}", f"{name}0"), ("Add", f"{name}0 b{name}", f"{name}1"), ("Reshape", f"{name}1 s4", f"{name}2")]
        nodes.append(("Transpose", f"{name}2", f"{name}3", {"perm": [0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]}))
    weights["wo"], weights["bo"] = weight(d, d, seed=9), weight(d, seed=10)
    nodes += [
        ("MatMul", "q3 k3", "qk"), ("Mul", "qk scale", "l"), ("Softmax", "l", "p", {"axis": -1}), ("MatMul", "p v3", "o0"),
        ("Transpose", "o0", "o1", {"perm": [0, 2, 1, 3]}), ("Reshape", "o1 s3", "o2"), ("MatMul", "o2 wo", "o3"), ("Add", "o3 bo", "y"),
    ]  # fmt: skip
    model = net(nodes, {"x": (1, t, d)}, {"y": (1, t, d)}, weights)
    lowered = check(model, **({"steps": 2} if check is check_int8 else {}))
    ops = ops_of(lowered)
    assert ops.count("TRANSPOSE") == 4 and ops.count("BATCH_MATMUL") == 2 and ops.count("FULLY_CONNECTED") == 4


@few
@given(batch=st.lists(st.integers(1, 3), min_size=0, max_size=2), m=st.integers(1, 4), k=st.integers(1, 4), n=st.integers(1, 4), turned=st.booleans(), integer=st.booleans())
def test_two_activations(batch, m, k, n, turned, integer):
    perm = [*range(len(batch)), len(batch) + 1, len(batch)]
    nodes = [("Transpose", "b", "bt", {"perm": perm}), ("MatMul", "a bt", "y")] if turned else [("MatMul", "a b", "y")]
    model = net(nodes, {"a": (*batch, m, k), "b": (*batch, n, k) if turned else (*batch, k, n)}, {"y": (*batch, m, n)})
    lowered = (check_int8 if integer else check_float)(model)
    assert "TRANSPOSE" not in ops_of(lowered)


@pytest.mark.parametrize("left, right", [((2, 3), (1, 3, 4)), ((2, 3), (2, 5, 3, 4)), ((2, 2, 3), (2, 3, 4))])
def test_a_constant_on_the_left(left, right):
    model = net([("MatMul", "w x", "y")], {"x": right}, {"y": (*right[:-2], 2, 4)}, {"w": weight(*left)})
    check_float(model)


# --------------------------------------------------------------------------- arithmetic


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Max", "Min"])
@pytest.mark.parametrize("a, b", [((2, 3, 4, 5), (2, 3, 4, 5)), ((2, 3, 4, 5), (1, 3, 1, 1)), ((3, 4), (2, 3, 4)), ((1, 1, 4), (2, 3, 1)), ((2, 1, 2, 3, 4), (2, 3, 2, 3, 4))])
def test_two_operands_broadcast(op, a, b):
    shape = np.broadcast_shapes(a, b)
    nodes = [("Abs", "b", "p"), ("Add", "p one", "q"), (op, "a q", "y")]
    check_float(net(nodes, {"a": a, "b": b}, {"y": shape}, {"one": np.float32(1)}))


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("shape", [(), (3, 1, 1), (1, 3, 4, 1)])
@pytest.mark.parametrize("front", [True, False])
def test_a_constant_operand_is_turned_in_the_file(op, shape, front):
    if op == "Div" and front:
        return  # divides by numbers around zero
    nodes = [("Conv", "x w", "c"), (op, "k c" if front else "c k", "y0"), ("Conv", "y0 w", "y")]
    lowered = check_float(net(nodes, {"x": (1, 3, 4, 5)}, {"y": (1, 3, 4, 5)}, {"w": weight(3, 3, 1, 1), "k": np.abs(weight(*shape)) + 0.5}))
    assert ops_of(lowered).count("TRANSPOSE") == 2


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul"])
@pytest.mark.parametrize("activation", [False, True])
def test_a_join_of_two_integer_tensors_is_one_op(op, activation):
    nodes = [("Conv", "x w1", "a"), ("Conv", "x w2", "b"), (op, "a b", "j"), *([("Relu", "j", "r")] if activation else []), ("Conv", "r w3" if activation else "j w3", "y")]
    weights = {f"w{i}": weight(4, 4, 1, 1, seed=i) for i in (1, 2, 3)}
    lowered = check_int8(net(nodes, {"x": (1, 4, 5, 5)}, {"y": (1, 4, 5, 5)}, weights), steps=2)
    assert sorted(op for op in between(lowered) if op not in MOVES) == sorted(["CONV_2D", "CONV_2D", op.upper(), "CONV_2D", *(["RELU"] if activation and "RELU" in ops_of(lowered) else [])])


UNARY = ["Relu", "Sigmoid", "Tanh", "Exp", "Abs", "Neg", "Floor", "Ceil", "Sin", "Cos", "Elu", "HardSwish", "LeakyRelu", "HardSigmoid", "Softplus", "Gelu", "Identity"]


@pytest.mark.parametrize("op", UNARY)
def test_functions_of_one_value(op):
    shape = (1, 3, 4, 5)
    check_float(net([(op, "x", "a"), ("Neg", "a", "y")], {"x": shape}, {"y": shape}, known={"a": shape}), scale=3)


def test_functions_of_positive_values():
    nodes = [("Abs", "x", "a"), ("Add", "a k", "p"), ("Sqrt", "p", "s"), ("Log", "s", "l"), ("Pow", "p e", "q"), ("Pow", "l two", "l2"), ("Pow", "p half", "h"), ("Add", "q l2", "m"), ("Add", "m h", "y")]
    check_float(net(nodes, {"x": (2, 3)}, {"y": (2, 3)}, {"k": np.float32(0.1), "e": np.float32(1.7), "two": np.float32(2), "half": np.float32(0.5)}))


@pytest.mark.parametrize("op", ["Sigmoid", "Tanh", "Gelu", "HardSwish", "LeakyRelu"])
def test_a_function_between_integer_layers_stays_int8(op):
    nodes = [("Conv", "x w1 b", "a"), (op, "a", "f"), ("Conv", "f w2", "y")]
    lowered = check_int8(net(nodes, {"x": (1, 4, 6, 6)}, {"y": (1, 3, 6, 6)}, {"w1": weight(4, 4, 1, 1), "b": weight(4), "w2": weight(3, 4, 1, 1, seed=2)}, known={"f": (1, 4, 6, 6)}), steps=2)
    assert all(dtype == "int8" for _, dtype in types_of(lowered)[:-2]) and ops_of(lowered).count("QUANTIZE") == 1


@pytest.mark.parametrize("low, high, op", [(0, 6, "RELU6"), (-1, 1, "RELU_N1_TO_1"), (0, 1, None), (-0.5, 0.7, None), (None, 0.5, "MINIMUM")])
def test_clips(low, high, op):
    weights = {"lo": np.float32(-np.inf if low is None else low), "hi": np.float32(high)}
    lowered = check_float(net([("Neg", "x", "a"), ("Clip", "a lo hi", "b"), ("Neg", "b", "y")], {"x": (2, 3, 4)}, {"y": (2, 3, 4)}, weights), scale=4)
    if op is not None:
        assert op in ops_of(lowered)


@pytest.mark.parametrize("limits", [(0.0, 6.0), (-0.4, 0.3), (0.1, 0.9)])
def test_a_clip_that_is_fused_and_one_that_is_not(limits):
    weights = {"w1": weight(4, 4, 1, 1), "w2": weight(3, 4, 1, 1, seed=2), "lo": np.float32(limits[0]), "hi": np.float32(limits[1])}
    lowered = check_int8(net([("Conv", "x w1", "a"), ("Clip", "a lo hi", "c"), ("Conv", "c w2", "y")], {"x": (1, 4, 6, 6)}, {"y": (1, 3, 6, 6)}, weights), steps=2)
    if limits == (0.0, 6.0):
        assert between(lowered).count("CONV_2D") == 2 and not {"RELU6", "MAXIMUM"} & set(ops_of(lowered))


@pytest.mark.parametrize("shape", [(1,), (4, 1, 1)])
def test_prelu(shape):
    check_float(net([("PRelu", "x s", "y")], {"x": (1, 4, 5, 6)}, {"y": (1, 4, 5, 6)}, {"s": np.abs(weight(*shape))}))


@pytest.mark.parametrize(("kernel", "slope", "op"), [((1, 1), (4, 1, 1), "PRELU"), ((1, 1), (1,), "LEAKY_RELU"), ((1,), (4, 1), "PRELU")])
@pytest.mark.parametrize("is_negative", [False, True])
def test_an_int8_prelu_between_layers_stays_int8(kernel, slope, op, is_negative):
    slopes = np.abs(weight(*slope)) * (0.3 if not is_negative else -0.3)
    weights = {"w1": weight(4, 4, *kernel), "s": slopes, "w2": weight(3, 4, *kernel, seed=2)}
    picture = (6, 6)[: len(kernel)]
    nodes = [("Conv", "x w1", "a"), ("PRelu", "a s", "p"), ("Conv", "p w2", "y")]
    # 2: a step of the PRelu is one of the Conv behind it, which rounds once more
    lowered = check_int8(net(nodes, {"x": (1, 4, *picture)}, {"y": (1, 3, *picture)}, weights), steps=2)
    assert (op, "int8") in types_of(lowered)


def test_the_slopes_of_an_int8_prelu_are_what_the_simulation_multiplies_by():
    """On a coarse scale: one slope of 100 leaves the others almost none of the 127 steps."""
    slopes = np.array([100.0, 0.6, -0.6, 0.1], np.float32).reshape(4, 1, 1)
    weights = {"w1": weight(4, 4, 1, 1), "s": slopes, "w2": weight(3, 4, 1, 1, seed=2)}
    model = net([("Conv", "x w1", "a"), ("PRelu", "a s", "p"), ("Conv", "p w2", "y")], {"x": (1, 4, 6, 6)}, {"y": (1, 3, 6, 6)}, weights)
    qdq = quantized(model)
    [node] = [node for node in qdq.graph if node.op_type == "PRelu"]
    held = onnx_run(qdq, random_feeds(model), also=[node.inputs[1].name])[node.inputs[1].name]
    step = 100 / 127
    np.testing.assert_allclose(held.reshape(-1), [100, step, -step, 0], rtol=1e-6)
    check_int8(model, steps=2)


def test_a_constant_batch_norm():
    weights = {"g": weight(4), "b": weight(4), "m": weight(4), "v": np.abs(weight(4)) + 0.2}
    check_float(net([("BatchNormalization", "x g b m v", "y")], {"x": (1, 4, 5, 6)}, {"y": (1, 4, 5, 6)}, weights))


def test_comparisons_choose():
    nodes = [("Greater", "x k", "g"), ("Less", "x h", "l"), ("And", "g l", "b"), ("Not", "b", "n"), ("Where", "n x z", "y")]
    check_float(net(nodes, {"x": (2, 3, 4)}, {"y": (2, 3, 4)}, {"k": np.float32(-0.5), "h": np.float32(0.5), "z": weight(3, 1)}))


# --------------------------------------------------------------------------- moving values


def test_a_view_costs_nothing():
    nodes = [
        ("Transpose", "x", "a", {"perm": [0, 2, 1]}), ("Unsqueeze", "a one", "b"), ("Transpose", "b", "c", {"perm": [2, 0, 3, 1]}), ("Squeeze", "c last", "d"),
        ("Neg", "d", "e"), ("Transpose", "e", "y", {"perm": [1, 2, 0]}),
    ]  # fmt: skip
    lowered = check_float(net(nodes, {"x": (2, 3, 4)}, {"y": (2, 3, 4)}, {"one": np.array([1]), "last": np.array([3])}))
    assert ops_of(lowered) == ["NEG"]


@few
@given(data=st.data())
def test_any_chain_of_layout_ops(data):
    shape = tuple(data.draw(st.lists(st.sampled_from([1, 1, 2, 3, 4]), min_size=1, max_size=4)))
    nodes, weights, current, name = [], {}, shape, "x"
    for i in range(data.draw(st.integers(1, 6))):
        kind = data.draw(st.sampled_from(["Transpose", "Unsqueeze", "Squeeze", "Reshape", "Neg"]))
        out = f"t{i}"
        if kind == "Transpose":
            perm = data.draw(st.permutations(range(len(current))))
            nodes.append((kind, name, out, {"perm": list(perm)}))
            current = tuple(current[p] for p in perm)
        elif kind == "Unsqueeze" and len(current) < 5:
            axis = data.draw(st.integers(0, len(current)))
            weights[f"a{i}"] = np.array([axis])
            nodes.append((kind, f"{name} a{i}", out))
            current = (*current[:axis], 1, *current[axis:])
        elif kind == "Squeeze" and 1 in current and len(current) > 1:
            axis = data.draw(st.sampled_from([a for a, d in enumerate(current) if d == 1]))
            weights[f"a{i}"] = np.array([axis])
            nodes.append((kind, f"{name} a{i}", out))
            current = (*current[:axis], *current[axis + 1 :])
        elif kind == "Reshape" and len(current) > 1:
            axis = data.draw(st.integers(0, len(current) - 2))
            current = (*current[:axis], current[axis] * current[axis + 1], *current[axis + 2 :])
            if data.draw(st.booleans()):
                rest = current[-1]
                current = (*current[:-1], *((2, rest // 2) if rest % 2 == 0 else (rest, 1)))
            weights[f"s{i}"] = np.array(current)
            nodes.append((kind, f"{name} s{i}", out))
        else:
            nodes.append(("Neg", name, out))
        name = out
    nodes.append(("Neg", name, "y"))
    check_float(net(nodes, {"x": shape}, {"y": current}, weights))


@pytest.mark.parametrize(
    "node, shape, weights",
    [
        (("Slice", "c s e a t", "d"), (1, 4, 3, 6), {"s": [1], "e": [7], "a": [2], "t": [2]}),
        (("Slice", "c s e a t", "d"), (1, 4, 6, 6), {"s": [-1], "e": [-100], "a": [3], "t": [-1]}),
        (("Slice", "c s e a", "d"), (1, 2, 6, 5), {"s": [1, 1], "e": [3, 100], "a": [1, -1]}),
        (("Gather", "c i", "d", {"axis": 1}), (1, 3, 6, 6), {"i": [3, 0, 0]}),
        (("Gather", "c i", "d", {"axis": 2}), (1, 4, 2, 6), {"i": [2, 3]}),
        (("Pad", "c p", "d"), (1, 5, 7, 9), {"p": [0, 0, 1, 1, 0, 1, 0, 2]}),
        (("Concat", "c c", "d", {"axis": 1}), (1, 8, 6, 6), {}),
        (("Expand", "g n", "d"), (1, 4, 6, 6), {"n": [1, 4, 6, 6]}),
        (("MaxPool", "c", "d", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}), (1, 4, 3, 3), {}),
        (("MaxPool", "c", "d", {"kernel_shape": [2, 2], "strides": [2, 2]}), (1, 4, 3, 3), {}),
    ],
)
@pytest.mark.parametrize("check", [check_float, check_int8])
def test_between_convolutions_values_move_where_they_are_and_as_they_are(node, shape, weights, check):
    channels = shape[1]
    nodes = [("Conv", "x w1", "c"), ("GlobalAveragePool", "c", "g"), node, ("Conv", "d w2", "y")]
    arrays = {k: np.array(v) for k, v in weights.items()} | {"w1": weight(4, 4, 1, 1), "w2": weight(3, channels, 1, 1, seed=3)}
    nodes = [n for n in nodes if n[0] != "GlobalAveragePool" or "g" in node[1].split()]
    lowered = check(net(nodes, {"x": (1, 4, 6, 6)}, {"y": (1, 3, *shape[2:])}, arrays), **({"steps": 2} if check is check_int8 else {}))
    assert ops_of(lowered).count("TRANSPOSE") == 2
    if check is check_int8:
        assert ops_of(lowered).count("QUANTIZE") <= 2 and ops_of(lowered).count("DEQUANTIZE") == 1  # one more if what is left has another range


def shuffle_unit():
    """Half of the channels passes by, half goes through a convolution, and both are shuffled: ShuffleNetV2's unit, between two convolutions."""
    nodes = [
        ("Conv", "x w1", "c"),
        ("Relu", "c", "d"),
        ("Split", "d halves", "passing worked", {"axis": 1}),
        ("Conv", "worked w2", "e"),
        ("Relu", "e", "f"),
        ("Concat", "passing f", "g", {"axis": 1}),
        ("Gather", "g order", "h", {"axis": 1}),
        ("Conv", "h w3", "y"),
    ]
    weights = {"w1": weight(8, 3, 1, 1), "w2": weight(4, 4, 1, 1, seed=2), "w3": weight(5, 8, 1, 1, seed=3), "halves": np.array([4, 4]), "order": np.arange(8).reshape(2, 4).T.reshape(-1)}
    return net(nodes, {"x": (1, 3, 5, 7)}, {"y": (1, 5, 5, 7)}, weights)


@pytest.mark.parametrize("check", [check_float, check_int8])
@pytest.mark.parametrize("rewrite", [None, "shuffle_to_concat"])
def test_a_shuffle_unit_turns_nothing_inside_and_rounds_nothing_twice(check, rewrite):
    model = shuffle_unit()
    if rewrite:
        rewrites.apply(model, rewrite)
    ops = ops_of(check(model, **({"steps": 2} if check is check_int8 else {})))
    assert ops.count("TRANSPOSE") == 2 and ops.count("QUANTIZE") <= 1 and ops.count("DEQUANTIZE") <= 1
    assert ops.count("GATHER") == (rewrite is None) and ops.count("CONCATENATION") == 1


@pytest.mark.parametrize("sizes", [None, [1, 3]])
def test_split_into_several(sizes):
    nodes = [("Conv", "x w", "c"), ("Split", "c n" if sizes else "c", "a b", {"axis": 1}), ("Neg", "a", "y"), ("Relu", "b", "z")]
    one, two = sizes or (2, 2)
    check_float(net(nodes, {"x": (1, 4, 3, 3)}, {"y": (1, one, 3, 3), "z": (1, two, 3, 3)}, {"w": weight(4, 4, 1, 1), "n": np.array([one, two])}))


@pytest.mark.parametrize("mode, value", [("constant", 0.0), ("constant", 1.5), ("reflect", 0.0)])
def test_pads(mode, value):
    model = net([("Pad", "x p v", "y", {"mode": mode})], {"x": (1, 2, 4, 5)}, {"y": (1, 2, 6, 8)}, {"p": np.array([0, 0, 1, 2, 0, 0, 1, 1]), "v": np.float32(value)})
    check_float(model)


def test_scalar_and_far_gathers():
    nodes = [("Gather", "x i", "a", {"axis": 1}), ("Gather", "x j", "b", {"axis": -2}), ("Add", "a b", "y")]
    check_float(net(nodes, {"x": (2, 5, 3)}, {"y": (2, 3)}, {"i": np.array(-1), "j": np.array(0)}))


def test_an_output_that_is_an_input_turned_and_two_outputs_of_one_tensor():
    nodes = [("Transpose", "x", "y", {"perm": [1, 0]}), ("Neg", "x", "z"), ("Identity", "z", "u"), ("Unsqueeze", "x k", "v")]
    check_float(net(nodes, {"x": (2, 3)}, {"y": (3, 2), "z": (2, 3), "v": (1, 2, 3)}, {"k": np.array([0])}))


# --------------------------------------------------------------------------- reductions


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum"])
@pytest.mark.parametrize("axes", [[1], [2, 3], [-1], [0, 2]])
@pytest.mark.parametrize("keep", [0, 1])
def test_reductions(op, axes, keep):
    shape = np.zeros((2, 3, 4, 5)).mean(tuple(axes), keepdims=bool(keep)).shape
    sums = op == "ReduceSum"
    node = (op, "c a" if sums else "c", "y", {"keepdims": keep} if sums else {"axes": axes, "keepdims": keep})
    check_float(net([("Conv", "x w", "c"), node], {"x": (2, 3, 4, 5)}, {"y": shape}, {"w": weight(3, 3, 1, 1), "a": np.array(axes)}))


@pytest.mark.parametrize("op, attributes", [("ReduceMean", {"axes": [2, 3], "keepdims": 0}), ("GlobalAveragePool", {}), ("AveragePool", {"kernel_shape": [2, 2]})])
def test_means_between_integer_layers(op, attributes):
    shape = {"ReduceMean": (1, 4), "GlobalAveragePool": (1, 4, 1, 1), "AveragePool": (1, 4, 5, 5)}[op]
    last = ("MatMul", "m w2", "y") if op == "ReduceMean" else ("Conv", "m w3", "y")
    out = (1, 3) if op == "ReduceMean" else (1, 3, *shape[2:])
    weights = {"w1": weight(4, 4, 1, 1), "w2": weight(4, 3), "w3": weight(3, 4, 1, 1)}
    lowered = check_int8(net([("Conv", "x w1", "c"), (op, "c", "m", attributes), last], {"x": (1, 4, 6, 6)}, {"y": out}, weights), steps=2)
    assert all(dtype == "int8" for _, dtype in types_of(lowered)[:-2])


@few
@given(
    op=st.sampled_from(["MaxPool", "AveragePool"]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.lists(st.integers(0, 1), min_size=4, max_size=4),
    include=st.integers(0, 1),
    ceil=st.integers(0, 1),
)
def test_pools(op, kernel, stride, pads, include, ceil):
    pads = [min(p, k - 1) for p, k in zip(pads, (*kernel, *kernel), strict=True)]
    if op == "AveragePool" and ceil:
        include = 0
    size = []
    for d, k, s, a, b in zip((6, 7), kernel, stride, pads[:2], pads[2:], strict=True):
        n = (d + a + b - k + (s - 1 if ceil else 0)) // s + 1
        size.append(n - 1 if ceil and (n - 1) * s >= d + a else n)
    attributes = {"kernel_shape": kernel, "strides": stride, "pads": pads, "ceil_mode": ceil} | ({"count_include_pad": include} if op == "AveragePool" else {})
    check_float(net([(op, "x", "y", attributes)], {"x": (1, 3, 6, 7)}, {"y": (1, 3, *size)}))


def test_pools_over_time():
    nodes = [("MaxPool", "x", "a", {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}), ("AveragePool", "a", "y", {"kernel_shape": [2]})]
    check_float(net(nodes, {"x": (1, 3, 10)}, {"y": (1, 3, 4)}))


@pytest.mark.parametrize("axis", [1, 2, -1])
def test_softmax_along_any_axis(axis):
    check_float(net([("Conv", "x w", "c"), ("Softmax", "c", "y", {"axis": axis})], {"x": (1, 3, 4, 5)}, {"y": (1, 3, 4, 5)}, {"w": weight(3, 3, 1, 1)}))


@pytest.mark.parametrize("ways, rounding", [("half_pixel", "round_prefer_floor"), ("asymmetric", "floor"), ("align_corners", "round_prefer_ceil")])
@pytest.mark.parametrize("size", [(8, 10), (2, 5), (4, 15)])
def test_nearest_resizes_that_tflite_can(ways, rounding, size):
    nodes = [("Resize", "x  s", "y", {"mode": "nearest", "coordinate_transformation_mode": ways, "nearest_mode": rounding})]
    nodes = [("Resize", "x roi none s", "y", nodes[0][3])]
    model = net(nodes, {"x": (1, 2, 4, 5)}, {"y": (1, 2, *size)}, {"roi": np.zeros(0, np.float32), "none": np.zeros(0, np.float32), "s": np.array([1, 2, *size])})
    try:
        lower(model.graph)
    except TargetError:
        assert ways == "half_pixel" and size == (2, 5)  # halves are rounded down there
    else:
        check_float(model)


@pytest.mark.parametrize("ways", ["half_pixel", "asymmetric", "align_corners"])
def test_linear_resizes(ways):
    nodes = [("Resize", "x roi none s", "y", {"mode": "linear", "coordinate_transformation_mode": ways})]
    check_float(net(nodes, {"x": (1, 2, 4, 5)}, {"y": (1, 2, 7, 10)}, {"roi": np.zeros(0, np.float32), "none": np.zeros(0, np.float32), "s": np.array([1, 2, 7, 10])}))


# --------------------------------------------------------------------------- what is refused, and what stays float


def test_a_layer_that_is_read_in_float_runs_in_float_on_dequantized_weights():
    import onnx_ir.passes.common as passes

    from tests.backends.tflite.nets import tflite_run

    model = net([("Conv", "x w1", "c"), ("Conv", "c w2", "y")], {"x": (1, 4, 5, 5)}, {"y": (1, 3, 5, 5)}, {"w1": weight(4, 4, 1, 1), "w2": weight(3, 4, 1, 1)})
    qdq = quantized(model)
    for node in list(qdq.graph):  # let `c` be read in float, as on a target whose layers write floats
        if node.op_type == "QuantizeLinear" and node.inputs[0].producer() is not None and node.inputs[0].producer().op_type == "Conv":
            after = next(iter(node.outputs[0].uses())).node.outputs[0]
            after.replace_all_uses_with(node.inputs[0], replace_graph_outputs=True)
    passes.RemoveUnusedNodesPass()(qdq)
    lowered = lower(qdq.graph)
    convs = [op for op in lowered.model.subgraphs[0].ops if op.name == "CONV_2D"]
    tensors = lowered.model.subgraphs[0].tensors
    assert {tensors[i].dtype for op in convs for i in (*op.inputs, *op.outputs)} == {"float32"}, "never int8 weights on floats"
    fed = random_feeds(model)
    name = qdq.graph.outputs[0].name
    np.testing.assert_allclose(tflite_run(lowered, fed)[name], onnx_run(qdq, fed)[name], atol=1e-4)


@pytest.mark.parametrize(
    "nodes, outputs, weights, message",
    [
        ([("Erf", "x", "y")], {"y": (1, 2, 4, 4)}, {}, r"node `Erf0` \(Erf\): there is no TFLite form"),
        ([("Conv", "x w", "y", {"kernel_shape": [1, 1]})], {"y": (1, 2, 4, 4)}, None, "the weights are not constant"),
        ([("Pad", "x p", "y")], {"y": (1, 2, 3, 4)}, {"p": np.array([0, 0, -1, 0, 0, 0, 0, 0])}, "it crops"),
        ([("Elu", "x", "y", {"alpha": 2.0})], {"y": (1, 2, 4, 4)}, {}, "alpha is not 1"),
    ],
)
def test_what_cannot_be_lowered_is_refused_by_name(nodes, outputs, weights, message):
    inputs = {"x": (1, 2, 4, 4)}
    if weights is None:
        inputs["w"] = (2, 2, 1, 1)
    with pytest.raises(TargetError, match=message):
        lower(net(nodes, inputs, outputs, weights or {}).graph)


def test_a_3d_convolution_names_the_rewrite():
    model = net([("Conv", "x w", "y")], {"x": (1, 2, 4, 4, 4)}, {"y": (1, 2, 4, 4, 4)}, {"w": weight(2, 2, 1, 1, 1)})
    with pytest.raises(TargetError, match="conv3d_to_conv2d"):
        lower(model.graph)

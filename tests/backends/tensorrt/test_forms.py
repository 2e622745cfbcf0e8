"""The forms of a quantized model: form 10 is the contract's numbers, form 11 the same with every type written."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from edgekit import graph
from edgekit.backends import onnxruntime
from edgekit.backends.tensorrt import form_of, forms
from edgekit.errors import TargetError
from tests.backends.tensorrt.nets import ROOT, make


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return make(tmp_path_factory.mktemp("forms"))


def run(model, path, fed):
    graph.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    return onnxruntime.simulate(path, threads=1)(fed)


def types(model) -> dict[str, set[str]]:
    """{node: types of its float inputs and outputs}."""
    return {node.name: {v.dtype.name for v in (*node.inputs, *node.outputs) if v is not None and graph.is_float(v)} for node in model.graph}


@pytest.mark.parametrize(("version", "form"), [("8.5.2", "8.5"), ("8.5.10", "8.5"), ("8.6.1", "10"), ("10.3.0", "10"), ("10.16.1", "10"), ("11.4.1", "11"), ("7.1.3", None), ("8.4.1", None)])
def test_a_version_has_one_form(version, form):
    assert form_of(version) == form


def test_form_10_computes_the_simulated_numbers_bit_by_bit(net, tmp_path):
    model, _, _, fed = net
    want, got = run(model, tmp_path / "qdq.onnx", fed), run(forms.explicit(model, "net"), tmp_path / "10.onnx", fed)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])


def test_what_tensorrt_would_read_otherwise_is_refused_by_name(net):
    model = net[0].clone(deep_copy=True)
    edit = graph.Editor(model)
    q = next(node for node in model.graph if node.op_type == "QuantizeLinear")
    zero = q.inputs[2]
    for wrong, reason in [(np.uint8(0), "type uint8"), (np.int8(3), "zero point 3, only 0"), (np.int32(0), "type int32")]:
        q.replace_input_with(2, edit.constant("z", np.asarray(wrong)))
        with pytest.raises(TargetError, match=reason) as caught:
            forms.explicit(model, "engine `main`")
        assert f"`{q.name}`" in str(caught.value) and caught.value.exit_code == 4
    q.replace_input_with(2, zero)
    assert forms.faults(model) == []
    dq = next(node for node in model.graph if node.op_type == "DequantizeLinear" and graph.constant(node.inputs[0]) is not None)
    dq.replace_input_with(0, edit.constant("bias", np.zeros(8, np.int32)))
    assert [fault for fault in forms.faults(model) if "dequantizes int32" in fault]


def test_form_11_keeps_integer_layers_norms_and_softmax_in_float32_and_the_rest_in_fp16(net):
    model, chosen, fp32, _ = net
    typed = types(forms.strong(model, fp32))
    for name in (*chosen.int8, *chosen.fused, *fp32):
        assert typed[name] == {"FLOAT"}, name
    ops = {node.name: node.op_type for node in forms.strong(model, fp32).graph}
    by_op = {op: {t for name in typed if ops[name] == op for t in typed[name]} for op in set(ops.values())}
    assert by_op["Softmax"] == by_op["QuantizeLinear"] == by_op["ReduceMean"] == by_op["Sqrt"] == {"FLOAT"}
    assert by_op["LSTM"] == by_op["MatMul"] == {"FLOAT16"} and by_op["Cast"] == {"FLOAT", "FLOAT16"}
    residual = next(node.name for node in model.graph if node.op_type == "Add" and node.name not in fp32 and len([v for v in node.inputs if graph.constant(v) is None]) == 2)
    assert typed[residual] == {"FLOAT16"}


def test_form_11_keeps_ports_and_does_not_touch_what_it_was_made_of(net):
    model, _, fp32, _ = net

    def picture():
        return [(node.name, [(v.name, v.dtype) if v is not None else None for v in (*node.inputs, *node.outputs)]) for node in model.graph]

    before = picture()
    made = forms.strong(model, fp32)
    forms.rounded(made)
    assert before == picture()
    for ports in ("inputs", "outputs"):
        want, got = getattr(model.graph, ports), getattr(made.graph, ports)
        assert [(v.name, v.dtype.name, graph.shape_of(v)) for v in got] == [(v.name, v.dtype.name, graph.shape_of(v)) for v in want]
    assert {t for node in made.graph for t in types(made)[node.name]} == {"FLOAT", "FLOAT16"}


def test_form_11_is_as_near_to_form_10_as_fp16_is(net, tmp_path):
    model, _, fp32, fed = net
    want = run(model, tmp_path / "10.onnx", fed)
    made = forms.strong(model, fp32)
    for got in (run(forms.rounded(made), tmp_path / "rounded.onnx", fed), run(made, tmp_path / "11.onnx", fed)):
        for name in want:
            # FP16 keeps 11 bits, 5e-4; it may turn a rounding to int8 by one step, of 127 in the largest value, before the last layer.
            assert 0 < np.abs(got[name] - want[name]).max() <= (5e-4 + 1 / 127) * np.abs(want[name]).max() * 2


def test_a_simulated_form_11_rounds_every_fp16_result(tmp_path):
    """By itself ONNX Runtime computes two Adds in a row in float32, and the cost of form 11 would be measured of nothing."""
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    big = helper.make_tensor("big", TensorProto.FLOAT, [2], [2048.0, 2048.0])
    nodes = [helper.make_node("Add", ["x", "big"], ["s"], name="add"), helper.make_node("Sub", ["s", "big"], ["y"], name="sub")]
    proto = helper.make_model(helper.make_graph(nodes, "g", [x], [y], [big]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(proto), str(tmp_path / "small.onnx"))
    made = forms.strong(graph.load(tmp_path / "small.onnx"))
    fed = {"x": np.array([0.5, 2.0], np.float32)}
    assert run(forms.rounded(made), tmp_path / "rounded.onnx", fed)["y"].tolist() == [0.0, 2.0]  # from 2048 on, FP16 counts in steps of 2


@pytest.mark.parametrize(("constant", "wide"), [(1e-7, True), (1e-3, False), (7e4, True), (0.0, False)])
def test_constants_that_fp16_does_not_hold_keep_their_node_in_float32(tmp_path, constant, wide):
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    proto = helper.make_model(
        helper.make_graph([helper.make_node("Add", ["x", "c"], ["y"], name="add")], "g", [x], [y], [helper.make_tensor("c", TensorProto.FLOAT, [], [constant])]),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    onnx.save(proto, str(tmp_path / "c.onnx"))
    assert forms.keep_float32(graph.load(tmp_path / "c.onnx")) == ({"add"} if wide else set())


@pytest.mark.parametrize(("version", "flags"), [("10.3.0", ["--fp16", "--int8", "--precisions"]), ("11.4.1", ["--strongly-typed"])])
def test_a_kit_carries_the_form_of_its_version(tmp_path, version, flags):
    from edgekit.backends import EngineKit
    from edgekit.backends.tensorrt import kit
    from edgekit.target import load_target

    model, chosen, fp32, fed = make(tmp_path, "jetson_orin")
    graph.save(model, tmp_path / "qdq.onnx")
    spec = load_target("jetson_orin", ROOT).spec()
    engine = EngineKit("main", tmp_path / "float.onnx", tmp_path / "qdq.onnx", int8=chosen.int8, fused=chosen.fused, fp32=tuple(fp32))
    (tmp_path / "out").mkdir()
    arguments = kit.write_engine(engine, tmp_path / "out", {**spec, "runtime": {**spec["runtime"], "version": version}})
    assert [a for a in arguments if a.startswith("--") and a != "--workspace"] == flags
    delivered = graph.load(tmp_path / "out/model.onnx")
    assert forms.faults(delivered) == [] and any("FLOAT16" in t for t in types(delivered).values()) == (version[:2] == "11")
    nodes = {node.name: node.op_type for node in delivered.graph}
    assert "LayerNormalization" in nodes.values() and "MatMul" in {nodes[name] for name in chosen.int8}  # neither decomposed nor made a convolution
    if version[:2] == "10":
        lines = dict(line.split("\t") for line in (tmp_path / "out/precisions.txt").read_text().splitlines())
        assert set(lines.values()) == {"fp32"} and {"Softmax", "LayerNormalization"} <= {nodes[name] for name in lines}
        assert not set(lines) & {*chosen.int8, *chosen.fused}
        want, got = onnxruntime.simulate(tmp_path / "qdq.onnx", threads=1)(fed), onnxruntime.simulate(tmp_path / "out/model.onnx", threads=1)(fed)
        for name in want:
            np.testing.assert_array_equal(got[name], want[name])


def test_every_tensorrt_target_names_a_version_that_has_a_form():
    import yaml

    found = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "targets").glob("*.yaml"))}
    versions = {name: data["runtime"]["version"] for name, data in found.items() if data["backend"] == "tensorrt"}
    assert versions and all(form_of(version) for version in versions.values()), json.dumps(versions)

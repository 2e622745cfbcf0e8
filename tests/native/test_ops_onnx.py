"""edgekit.ComplexConv2d in ONNX: functions that ONNX Runtime runs, and the extension by which OpenVINO runs the fused kernels."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, inliner, numpy_helper

from edgekit import ops
from edgekit.errors import ToolMissing

CASES = {
    "ComplexConv2d": ((2, 5, 3, 5, 2), (2, 1), (2, 1, 2, 0), ops.packed_conv2d),
    "ComplexConvTranspose2d": ((2, 3, 5, 5, 2), (2, 1), (2, 1, 1, 0), ops.packed_conv_transpose2d),
}


def graph(name, weights_are_inputs=False, with_functions=True):
    """(model with one node, x, w, b, y by torch)"""
    size, stride, padding, plain = CASES[name]
    rng = np.random.default_rng(7)
    x, w, b = (rng.standard_normal(shape, np.float32) for shape in ((2, 6, 12, 9), size, (2, 5)))
    node = helper.make_node(name, ["x", "w", "b"], ["y"], domain=ops.ONNX_DOMAIN, strides=stride, pads=padding)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6, 12, "t"])]
    if weights_are_inputs:
        inputs += [helper.make_tensor_value_info("w", TensorProto.FLOAT, size), helper.make_tensor_value_info("b", TensorProto.FLOAT, (2, 5))]
    constants = [] if weights_are_inputs else [numpy_helper.from_array(w, "w"), numpy_helper.from_array(b, "b")]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10, "f_out", "t_out"])
    model = helper.make_model(
        helper.make_graph([node], "g", inputs, [output], constants),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(ops.ONNX_DOMAIN, 1)],
        ir_version=9,
        functions=ops.onnx_functions() if with_functions else [],
    )
    want = plain(torch.from_numpy(x), torch.from_numpy(w), torch.from_numpy(b), stride, padding).numpy()
    return model, x, w, b, want


def assert_close(got, want):
    assert got.shape == want.shape
    worst = np.abs(got - want).max()
    assert worst <= 1e-5 * max(1, np.abs(want).max()), worst  # float32 sums of 60 products


@pytest.fixture(scope="module")
def core():
    openvino = pytest.importorskip("openvino")
    try:
        extension = ops.openvino_extension()
    except ToolMissing as missing:
        pytest.skip(f"needs the OpenVINO extension of edgekit-native: {missing.message}")
    core = openvino.Core()
    core.add_extension(extension)
    return core


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("weights_are_inputs", [False, True])
def test_onnx_runtime_runs_the_function(name, weights_are_inputs):
    import onnxruntime

    model, x, w, b, want = graph(name, weights_are_inputs)
    onnx.checker.check_model(model, full_check=True)
    feed = {"x": x, "w": w, "b": b} if weights_are_inputs else {"x": x}
    assert_close(onnxruntime.InferenceSession(model.SerializeToString()).run(None, feed)[0], want)


@pytest.mark.parametrize("name", CASES)
def test_inlined_functions_are_standard_operators_that_openvino_reads_without_the_extension(name):
    openvino = pytest.importorskip("openvino")
    model, x, _, _, want = graph(name)
    inlined = inliner.inline_local_functions(model)
    assert not inlined.functions and {node.domain for node in inlined.graph.node} == {""}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(inlined.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert_close(compiled([x])[0], want)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("with_functions", [True, False])
def test_openvino_reads_the_node_as_the_fused_op_and_equals_the_plain_graph(core, name, with_functions):
    model, x, _, _, want = graph(name, with_functions=with_functions)
    read = core.read_model(model.SerializeToString())
    assert f"Edgekit{name}" in {op.get_type_name() for op in read.get_ops()}
    compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert_close(compiled([x])[0], want)
    plain = core.compile_model(core.read_model(inliner.inline_local_functions(graph(name)[0]).SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert_close(compiled([x])[0], plain([x])[0])
    longer = np.concatenate([x, x[:, :, :, ::-1]], 3)
    assert_close(compiled([longer])[0], plain([longer])[0])


@pytest.mark.parametrize("name", CASES)
def test_weights_that_are_inputs_are_read_in_every_call(core, name):
    model, x, w, b, want = graph(name, weights_are_inputs=True, with_functions=False)
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert_close(compiled([x, w, b])[0], want)
    assert_close(compiled([x, 2 * w, 2 * b])[0], 2 * want)


def test_openvino_keeps_the_op_in_its_own_file(core, tmp_path):
    openvino = pytest.importorskip("openvino")
    model, x, _, _, want = graph("ComplexConv2d")
    openvino.save_model(core.read_model(model.SerializeToString()), tmp_path / "m.xml", compress_to_fp16=False)
    compiled = core.compile_model(core.read_model(tmp_path / "m.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert_close(compiled([x])[0], want)


def test_openvino_refuses_channels_that_do_not_fit(core):
    model, *_ = graph("ComplexConv2d", with_functions=False)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 8
    with pytest.raises(RuntimeError, match=r"8 channels, W .* reads 2\*3"):
        core.read_model(model.SerializeToString())

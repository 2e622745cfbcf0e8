"""The host session gives out what is asked for and computes Q/DQ as written."""

from __future__ import annotations

import numpy as np
import onnx

from edgekit.backends import onnxruntime
from edgekit.quant import Scale, fake_quantize

SCALE = Scale(float(np.float32(0.1)))


def model(tmp_path):
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        onnx.helper.make_node("Conv", ["d", "w"], ["c"]),
        onnx.helper.make_node("Relu", ["c"], ["y"]),
    ]
    weight = np.random.default_rng(0).standard_normal((4, 3, 1, 1)).astype(np.float32)
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, [1, 3, 5, 5])],
        [onnx.helper.make_tensor_value_info("y", 1, [1, 4, 5, 5])],
        [
            onnx.numpy_helper.from_array(np.float32(SCALE.scale), "s"),
            onnx.numpy_helper.from_array(np.int8(0), "z"),
            onnx.numpy_helper.from_array(weight, "w"),
        ],
    )
    path = tmp_path / "m.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    return path, weight


def test_outputs_come_by_name_and_inner_tensors_on_request(tmp_path):
    path, _ = model(tmp_path)
    x = np.random.default_rng(1).standard_normal((1, 3, 5, 5)).astype(np.float32)
    plain = onnxruntime.simulate(path, threads=1)({"x": x})
    assert list(plain) == ["y"]
    more = onnxruntime.simulate(path, also=["c", "d"])({"x": x})
    assert set(more) == {"y", "c", "d"}
    assert (np.maximum(more["c"], 0) == more["y"]).all()


def test_quantized_values_are_ours_to_the_bit(tmp_path):
    path, weight = model(tmp_path)
    x = np.random.default_rng(1).standard_normal((1, 3, 5, 5)).astype(np.float32) * 5
    got = onnxruntime.simulate(path, also=["d"])({"x": x})
    want = fake_quantize(x, SCALE)
    assert (got["d"] == want).all()
    conv = np.maximum(np.einsum("oi,nihw->nohw", weight[:, :, 0, 0], want), 0)
    np.testing.assert_allclose(got["y"], conv, atol=1e-5)  # 3 products in another order

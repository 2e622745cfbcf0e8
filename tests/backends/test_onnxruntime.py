"""The simulation computes Q/DQ as written; the deployed session on integers, which is read out of the graph it made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgekit import graph, qdq
from edgekit.backends import EngineKit, Kit, onnxruntime
from edgekit.formats import read_json
from edgekit.quant import Numbers, Range, Scale, fake_quantize
from edgekit.target import Activation, load_target
from tests.onnx_nets import Block, Inverted3d, Lambda, export, feeds

ROOT = Path(__file__).parents[2]
INT8 = Activation(dtype="int8", symmetric=True, zero_point=0, divisor=127)
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


# deployed


class Everything(nn.Module):
    """One of each kind of layer with an integer kernel, and an LSTM, which has none."""

    def __init__(self):
        super().__init__()
        self.wave = nn.Conv1d(1, 8, 5, 2)
        self.mix = nn.Conv1d(8, 8, 3, padding=1, groups=8)
        self.clip = Inverted3d()
        self.image = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6())
        self.block = Block(8, 2)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, wave, clip, image):
        x = F.gelu(self.wave(wave))
        x = (x + self.mix(x)).transpose(1, 2)
        x = self.lstm(self.block(x)[0])[0][:, -1]
        return (self.head(x + self.image(image).mean((2, 3)) + self.clip(clip)[0]),)


SHAPES = ((1, 1, 63), (1, 3, 4, 12, 12), (1, 3, 12, 12))


@pytest.fixture(scope="module")
def shipped():
    return load_target("onnxruntime_x86", ROOT / "recipes")


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    torch.manual_seed(0)
    path = export(tmp_path_factory.mktemp("net"), Everything(), *SHAPES)
    return path, [feeds(graph.load(path), seed) for seed in range(4)]


def built(net, shipped, out: Path, skip=None) -> tuple[Path, EngineKit]:
    """The net in the shipped target's numbers, compiled: (folder of its engine, its kit)."""
    path, fed = net
    model = graph.load(path)
    spec = shipped.spec()
    numbers = Numbers.from_target(spec["numbers"])
    chosen = qdq.precisions(model, spec["ops"], skip, numbers.outputs)
    session = onnxruntime.simulate(path, threads=1, also=chosen.observed)
    seen = [{**one, **session(one)} for one in fed]
    ranges = {name: Range(float(min(s[name].min() for s in seen)), float(max(s[name].max() for s in seen))) for name in chosen.observed}
    graph.save(qdq.insert_qdq(model, chosen, ranges, numbers), out / "qdq.onnx")
    engine = EngineKit("main", path, out / "qdq.onnx", int8=chosen.int8)
    onnxruntime.compile(Kit((engine,), spec, out), out)
    return out / "engines/main", engine


def test_all_that_the_shipped_target_takes_in_int8_has_an_integer_kernel(net, shipped, tmp_path):
    folder, engine = built(net, shipped, tmp_path)
    measured = onnxruntime.coverage(folder, engine, shipped.spec())
    assert set(measured) == set(graph.count_macs(engine.float_onnx))
    lstm = [name for name in measured if "LSTM" in name]
    assert {name: precision for name, precision in measured.items() if precision != "int8"} == {lstm[0]: "fp32"}
    assert set(engine.int8) == set(measured) - set(lstm)
    kinds = {"wave/Conv", "mix/Conv", "image.2/Conv", "clip/stem.0/Conv", "block/MatMul", "block/up/MatMul", "head/Gemm"}
    assert kinds <= set(engine.int8)


@pytest.mark.parametrize("planted", ["clip/a.3/Conv", "block/MatMul_1", "block/up/MatMul", "head/Gemm"])
def test_a_layer_left_in_float_is_found_in_the_engine(net, shipped, tmp_path, planted):
    folder, engine = built(net, shipped, tmp_path, {planted: "planted"})
    measured = onnxruntime.coverage(folder, engine, shipped.spec())
    assert measured[planted] == "fp32"
    assert [name for name, precision in measured.items() if precision == "fp32"] == [name for name in measured if name == planted or "LSTM" in name]


def test_the_wrong_numbers_are_measured_as_float_whatever_was_declared(net, shipped, tmp_path):
    # int8 with zero point 0: a ReLU cannot be dropped, and what two layers read is not turned into uint8
    model = shipped.model_copy(update={"numbers": shipped.numbers.model_copy(update={"activation": INT8})})
    folder, engine = built(net, model, tmp_path)
    measured = onnxruntime.coverage(folder, engine, model.spec())
    assert measured["image.0/Conv"] == "fp32" and "image.0/Conv" in engine.int8


def test_float_layers_are_measured_as_float(net, shipped, tmp_path):
    path, _ = net
    engine = EngineKit("main", path, path)
    onnxruntime.compile(Kit((engine,), shipped.spec(), tmp_path), tmp_path)
    assert set(onnxruntime.coverage(tmp_path / "engines/main", engine, shipped.spec()).values()) == {"fp32"}


def test_the_deployed_engine_computes_what_the_simulation_does(net, shipped, tmp_path):
    folder, engine = built(net, shipped, tmp_path)
    deployed, simulated, plain = onnxruntime.open(folder, shipped.spec(), threads=1), onnxruntime.simulate(engine.qdq_onnx), onnxruntime.simulate(engine.float_onnx)
    assert deployed.outputs == simulated.outputs == ["y0"]
    for fed in net[1]:
        a, b, c = deployed(fed)["y0"], simulated(fed)["y0"], plain(fed)["y0"]
        # The kernels round in another order: a step here and there, and never more than INT8 itself costs.
        assert np.abs(a - b).max() <= 0.05 * np.abs(c).max()
        assert np.abs(b - c).max() > 0


def test_one_layer_deployed_is_within_one_step_of_the_simulation(shipped, tmp_path):
    torch.manual_seed(1)
    path = export(tmp_path, Lambda(lambda self, x: torch.relu(self.conv(x)), conv=nn.Conv2d(16, 16, 3)), (1, 16, 9, 9))
    one = (path, [feeds(graph.load(path), seed) for seed in range(2)])
    folder, engine = built(one, shipped, tmp_path / "out")
    step = np.abs(onnx.numpy_helper.to_array(next(i for i in onnx.load(engine.qdq_onnx).graph.initializer if i.name == "y0.scale")))
    a, b = onnxruntime.open(folder, shipped.spec())(one[1][0])["y0"], onnxruntime.simulate(engine.qdq_onnx)(one[1][0])["y0"]
    steps = np.rint((a - b) / step)
    assert np.abs(steps).max() <= 1 and np.mean(steps != 0) < 0.01  # values that lie between two steps


def test_compile_writes_the_same_bytes_again(net, shipped, tmp_path):
    built(net, shipped, tmp_path / "a")
    built(net, shipped, tmp_path / "b")
    for name in ("build.json", "engines/main/model.onnx"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    doc = read_json(tmp_path / "a/build.json")
    assert doc["engines"]["main"]["file"] == "engines/main/model.onnx" and doc["engines"]["main"]["int8_layers"] > 10


def test_the_shipped_target_is_served_and_numbers_without_kernels_are_refused(shipped):
    spec = shipped.spec()
    assert onnxruntime.problems(spec) == []
    assert all(onnxruntime.versions(spec).values())
    numbers = spec["numbers"]
    assert "build_on" in onnxruntime.problems({**spec, "build_on": "device"})[0]
    assert "outputs" in onnxruntime.problems({**spec, "numbers": {**numbers, "outputs": False}})[0]
    int8 = {"dtype": "int8", "symmetric": True, "zero_point": 0, "divisor": 127}
    assert onnxruntime.problems({**spec, "numbers": {**numbers, "activation": int8}}) == ["numbers.activation: int8, symmetric: x86 kernels take uint8, asymmetric"]


def test_a_fused_kernel_of_an_unknown_kind_is_not_called_integer(monkeypatch, net, shipped, tmp_path):
    folder, engine = built(net, shipped, tmp_path)
    monkeypatch.delitem(onnxruntime._KERNELS, "QLinearConv")
    measured = onnxruntime.coverage(folder, engine, shipped.spec())
    assert measured["wave/Conv"] == "unknown" and measured["head/Gemm"] == "int8"


def test_a_float_transposed_convolution_between_integers_keeps_its_weights(shipped, tmp_path):
    torch.manual_seed(2)
    parts = {"a": nn.Conv2d(3, 4, 3), "up": nn.ConvTranspose2d(4, 4, 2, 2), "b": nn.Conv2d(4, 4, 3)}
    parts["up"].weight.data[0] *= 100  # per tensor, the other channels would lose their bits
    path = export(tmp_path, Lambda(lambda self, x: self.b(self.up(self.a(x))), **parts), (1, 3, 9, 9))
    fed = [feeds(graph.load(path), seed) for seed in range(2)]
    folder, engine = built((path, fed), shipped, tmp_path / "out")
    assert onnxruntime.coverage(folder, engine, shipped.spec()) == {"a/Conv": "int8", "up/ConvTranspose": "fp32", "b/Conv": "int8"}
    a, b = onnxruntime.open(folder, shipped.spec())(fed[0])["y0"], onnxruntime.simulate(engine.qdq_onnx)(fed[0])["y0"]
    step = next(onnx.numpy_helper.to_array(i) for i in onnx.load(engine.qdq_onnx).graph.initializer if i.name == "y0.scale")
    assert np.abs(np.rint((a - b) / step)).max() <= 1


@pytest.mark.parametrize("moved", [lambda y: y, lambda y: y.transpose(1, 2).unflatten(1, (4, 6)).flatten(1, 2).transpose(1, 2)[:, :9]])
def test_a_softmax_that_the_target_leaves_in_float_stays_there(tmp_path, moved):
    """ONNX Runtime would make a QLinearSoftmax of it, whose table is coarse; through ops that only move values, too."""
    module = Lambda(lambda m, x: m.b(torch.softmax(moved(m.a(x)), -1)), a=nn.Linear(16, 24), b=nn.Linear(24, 8))
    path = export(tmp_path, module, (1, 9, 16))
    model, x = graph.load(path), feeds(graph.load(path))
    numbers = Numbers(dtype="uint8", symmetric=False, outputs=True)
    chosen = qdq.precisions(model, {"MatMul": {"int8": True}}, outputs=True)
    seen = onnxruntime.simulate(path, also=[name for name in chosen.observed if name != "x0"])(x) | x
    file = tmp_path / "qdq.onnx"
    graph.save(qdq.insert_qdq(model, chosen, {name: Range(float(seen[name].min()), float(seen[name].max())) for name in chosen.observed}, numbers), file)
    engine, target = EngineKit("e", path, file, chosen.int8), load_target("onnxruntime_x86", ROOT).spec()
    onnxruntime.compile(Kit((engine,), {**target, "ops": {"MatMul": {"int8": True}}}, tmp_path), tmp_path / "out")
    folder = tmp_path / "out/engines/e"
    kernels = [node.op_type for node in onnxruntime._optimized(folder / "model.onnx").graph.node]
    assert "Softmax" in kernels and "QLinearSoftmax" not in kernels
    want, got = onnxruntime.simulate(file)(x)["y0"], onnxruntime.open(folder, target)(x)["y0"]
    assert np.abs(got - want).max() <= 2 * float(np.abs(want).max()) / 127


def test_a_linear_layer_with_relu_between_integers_has_an_integer_kernel(shipped, tmp_path):
    """On three axes ONNX Runtime makes Reshape, Gemm, Reshape of it, and its Q would not get past the Relu."""
    torch.manual_seed(4)
    module = Lambda(lambda self, x: self.b(torch.relu(self.a(x))), a=nn.Linear(16, 24), b=nn.Linear(24, 8))
    path = export(tmp_path, module, (1, 9, 16))
    fed = [feeds(graph.load(path), seed) for seed in range(2)]
    folder, engine = built((path, fed), shipped, tmp_path / "out")
    assert set(onnxruntime.coverage(folder, engine, shipped.spec()).values()) == {"int8"} and len(engine.int8) == 2
    a, b = onnxruntime.open(folder, shipped.spec())(fed[0])["y0"], onnxruntime.simulate(engine.qdq_onnx)(fed[0])["y0"]
    step = next(onnx.numpy_helper.to_array(i) for i in onnx.load(engine.qdq_onnx).graph.initializer if i.name == "y0.scale")
    assert np.abs(np.rint((a - b) / step)).max() <= 1


def test_a_relu_stays_where_the_zero_point_does_not_clamp_or_floats_are_read(tmp_path):
    def relus(zero_point, also_read):
        nodes = [onnx.helper.make_node("Relu", ["x"], ["r"]), onnx.helper.make_node("QuantizeLinear", ["r", "s", "z"], ["q"]), onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])]
        nodes += [onnx.helper.make_node("Neg", ["r"], ["n"])] * also_read
        ports = [onnx.helper.make_tensor_value_info(name, 1, [4]) for name in ("x", "y")]
        numbers = [onnx.numpy_helper.from_array(np.float32(0.1), "s"), onnx.numpy_helper.from_array(zero_point, "z")]
        proto = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", ports[:1], ports[1:], numbers))
        onnxruntime._drop_relus(proto)
        return [node.op_type for node in proto.graph.node].count("Relu")

    assert relus(np.uint8(0), False) == relus(np.int8(-128), False) == 0
    assert relus(np.uint8(3), False) == relus(np.int8(0), False) == relus(np.uint8(0), True) == 1

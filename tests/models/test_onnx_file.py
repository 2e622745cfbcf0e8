"""An ONNX file is read without trust, and what comes out computes what the file says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit import graph
from edgekit.errors import CheckpointError, RecipeError
from edgekit.models import onnx_file

X = {"x": {"source": "video"}}
WEIGHT = np.random.default_rng(0).standard_normal((4, 3, 3, 3), np.float32)


def value(name: str, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes, inputs, outputs, weights=None, opset: int = 17, domains=(), **more) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    made = helper.make_graph(nodes, "net", inputs, outputs, tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)], ir_version=8, **more)


def conv(batch="n", **more) -> onnx.ModelProto:
    """x [batch, 3, 8, 8] -> Conv -> mean -> y [batch, 4]."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="/net/conv/Conv"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["y"], name="flat"),
    ]
    return model(nodes, [value("x", [batch, 3, 8, 8])], [value("y", [batch, 4])], {"w": WEIGHT}, **more)


@pytest.fixture
def read(tmp_path):
    def read(proto: onnx.ModelProto | bytes, sources=X) -> onnx_file.OnnxFile:
        path = tmp_path / "net.onnx"
        path.write_bytes(proto if isinstance(proto, bytes) else proto.SerializeToString())
        return onnx_file.read(path, sources)

    return read


def run(model: bytes, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def same(file: onnx_file.OnnxFile, proto: onnx.ModelProto, tmp_path: Path) -> bool:
    """Whether our form computes what the file does, on random inputs."""
    graph.save(file.model, tmp_path / "ours.onnx")
    [shape] = file.inputs.values()
    x = np.random.default_rng(1).standard_normal(shape, np.float32)
    want, got = run(proto.SerializeToString(), x), run((tmp_path / "ours.onnx").read_bytes(), x)
    return np.allclose(got.ravel(), want.ravel(), rtol=1e-5, atol=1e-6) and np.ptp(want) > 0  # 1e-5: float32 sums of 27 products


# what is taken


def test_an_open_batch_becomes_1_and_everything_else_stays(read, tmp_path):
    file = read(conv())
    assert (file.inputs, file.outputs, file.name, file.parameters) == ({"x": (1, 3, 8, 8)}, {"y": (1, 4)}, "net", WEIGHT.size)
    assert same(file, conv(), tmp_path) and same(file, onnx.ModelProto.FromString(file.source), tmp_path)
    assert file.log["onnxsim"] == "used" and file.log["max_abs"] == 0
    assert file.names["nodes"] == {"net/conv/Conv": "/net/conv/Conv", "pool": "pool", "flat": "flat"}


def test_sizes_that_the_file_leaves_open_come_from_the_recipe(read, tmp_path):
    proto = conv()
    for i, name in ((2, "h"), (3, "w")):
        proto.graph.input[0].type.tensor_type.shape.dim[i].dim_param = name
    with pytest.raises(RecipeError, match=r"`load.inputs.x`: .*net.onnx leaves its shape open: \['n', 3, 'h', 'w'\]"):
        read(proto)
    file = read(proto, {"x": {"source": "video", "shape": [1, 3, 10, 12]}})
    assert file.inputs == {"x": (1, 3, 10, 12)} and same(file, proto, tmp_path)


@pytest.mark.parametrize("opset", [11, 13, 16, 17, 18, 19, 20, 21, 22])
def test_older_and_newer_opsets_are_converted_with_a_proof(read, tmp_path, opset):
    axes = opset >= 18
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("ReduceMean", ["r", "axes"] if axes else ["r"], ["m"], name="mean", keepdims=0, **({} if axes else {"axes": [2, 3]})),
        helper.make_node("Softmax", ["m"], ["y"], name="softmax", axis=1),
    ]
    weights = {"w": WEIGHT} | ({"axes": np.array([2, 3])} if axes else {})
    proto = model(nodes, [value("x", [1, 3, 8, 8])], [value("y", [1, 4])], weights, opset=opset)
    file = read(proto)
    assert same(file, proto, tmp_path)
    assert file.model.graph.opset_imports[""] == 17
    assert file.log["opset"]["from"] == {"ai.onnx": opset} and (file.log["opset"]["max_abs"] is None) == (opset == 17)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_of_opset_20_is_written_out_and_its_neighbours_relabelled(read, tmp_path, approximate):
    """ONNX's converter has no way from 20 to 17 for it; reductions and Split have changed their form too."""
    nodes = [
        helper.make_node("Gelu", ["x"], ["g"], name="act", approximate=approximate),
        helper.make_node("Split", ["g"], ["a", "b"], name="split", axis=1, num_outputs=2),
        helper.make_node("ReduceMax", ["b", "axes"], ["m"], name="max", keepdims=1),
        helper.make_node("Sub", ["a", "m"], ["y"], name="sub"),
    ]
    proto = model(nodes, [value("x", [1, 64])], [value("y", [1, 32])], {"axes": np.array([1])}, opset=20)
    file = read(proto)
    assert same(file, proto, tmp_path) and file.log["opset"]["by"] == "relabelling"
    assert "Gelu" not in {node.op_type for node in file.model.graph}


def test_local_functions_are_written_out(read, tmp_path):
    double = helper.make_function("own", "Double", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)])
    nodes = [helper.make_node("Double", ["x"], ["h"], domain="own", name="twice"), helper.make_node("Double", ["h"], ["y"], domain="own", name="again")]
    proto = model(nodes, [value("x", [1, 8])], [value("y", [1, 8])], domains=("own",), functions=[double])
    file = read(proto)
    assert same(file, proto, tmp_path) and {node.op_type for node in file.model.graph} == {"Add"}


def test_weights_that_are_inputs_too_are_weights(read, tmp_path):
    proto = conv()
    proto.graph.input.append(value("w", WEIGHT.shape))
    file = read(proto)
    assert list(file.inputs) == ["x"] and same(file, conv(), tmp_path)


def test_names_that_vendors_files_cannot_hold_are_cleaned_and_mapped(read):
    proto = conv()
    for node in proto.graph.node:
        for side in (node.input, node.output):
            for i, name in enumerate(side):
                side[i] = {"x": "in:0,a", "y": "out put"}.get(name, name)
    proto.graph.input[0].name, proto.graph.output[0].name = "in:0,a", "out put"
    file = read(proto, {"in:0,a": {"source": "video"}})
    assert file.names["ports"] == {"in_0_a": "in:0,a", "out_put": "out put"} and file.ours == {"in:0,a": "in_0_a", "out put": "out_put"}
    assert [v.name for v in (*file.model.graph.inputs, *file.model.graph.outputs)] == ["in_0_a", "out_put"]


def test_one_number_for_each_clip_is_a_vector_of_one(read, tmp_path):
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], name="fc")]
    proto = model(nodes, [value("x", ["n", 8])], [value("y", ["n", 1])], {"w": np.ones((8, 1), np.float32)})
    file = read(proto)
    assert file.outputs == {"y": (1,)} and graph.shape_of(file.model.graph.outputs[0]) == (1,)


def test_the_same_file_gives_the_same_bytes(read, tmp_path):
    for name in ("a", "b"):
        graph.save(read(conv(opset=18)).model, tmp_path / f"{name}.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


# what is not


def outside(name: str):
    def change(proto):
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=name)

    return change


def weights(array):
    return lambda proto: proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "w"))


def damaged(index: int, number: float) -> np.ndarray:
    array = WEIGHT.copy()
    array.flat[index] = number
    return array


def attribute_outside(proto):
    tensor = numpy_helper.from_array(np.ones(3, np.float32), "inner")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    proto.graph.node.append(helper.make_node("Constant", [], ["k"], name="k", value=tensor))


def op(node):
    return lambda proto: proto.graph.node.insert(0, node)


def custom(proto):
    proto.opset_import.append(helper.make_opsetid("com.acme", 1))
    proto.graph.node[1].domain = "com.acme"


def huge(proto):
    proto.graph.initializer.append(numpy_helper.from_array(np.array([1 << 16, 1 << 16]), "s"))
    proto.graph.node.append(helper.make_node("ConstantOfShape", ["s"], ["k"], name="bomb"))


def claims_more(proto):
    proto.graph.initializer[0].dims[0] = 1 << 40


def branch(proto):
    inner = helper.make_graph([helper.make_node("Identity", ["p"], ["q"])], "then", [], [value("q", None)])
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    proto.graph.node.append(helper.make_node("If", ["yes"], ["z"], then_branch=inner, else_branch=inner, name="maybe"))


def recursive(proto):
    body = [helper.make_node("F", ["a"], ["b"], domain="own")]
    proto.functions.append(helper.make_function("own", "F", ["a"], ["b"], body, [helper.make_opsetid("own", 1)]))
    proto.opset_import.append(helper.make_opsetid("own", 1))
    proto.graph.node.append(helper.make_node("F", ["c"], ["z"], domain="own", name="f"))


def doubling(proto):
    """40 functions that call the next one twice: 2^40 nodes."""
    for i in range(40):
        inner = f"F{i + 1}" if i < 39 else "Relu"
        domain = "own" if i < 39 else ""
        body = [helper.make_node(inner, ["a"], ["m"], domain=domain), helper.make_node(inner, ["m"], ["b"], domain=domain)]
        proto.functions.append(helper.make_function("own", f"F{i}", ["a"], ["b"], body, [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]))
    proto.opset_import.append(helper.make_opsetid("own", 1))
    proto.graph.node.append(helper.make_node("F0", ["c"], ["z"], domain="own", name="f"))


def typed(index: int, kind):
    def change(proto):
        [proto.graph.input, proto.graph.output][index][0].type.tensor_type.elem_type = kind

    return change


def integers(proto):
    proto.graph.node.append(helper.make_node("ArgMax", ["y"], ["k"], axis=1, keepdims=0, name="top"))
    proto.graph.output.append(value("k", ["n"], TensorProto.INT64))


def values_decide(proto):
    proto.graph.node.append(helper.make_node("NonZero", ["y"], ["k"], name="nz"))
    proto.graph.node.append(helper.make_node("Cast", ["k"], ["f"], to=1, name="f"))
    proto.graph.output.append(value("f", [2, "m"]))


@pytest.mark.parametrize(
    "change, says",
    [
        (outside("../../secret.bin"), r"tensor `w` is in another file"),
        (outside("weights.bin"), r"tensor `w` is in another file"),
        (attribute_outside, r"tensor `inner` is in another file"),
        (weights(damaged(5, np.nan)), r"`w` holds NaN or infinity"),
        (weights(damaged(5, np.inf)), r"`w` holds NaN or infinity"),
        (custom, r"operators that are not ONNX's own: `com.acme::GlobalAveragePool`, first in node `pool`"),
        (op(helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q")), r"quantized already: `QuantizeLinear`"),
        (op(helper.make_node("RandomNormalLike", ["x"], ["q"], name="q")), r"random numbers: `RandomNormalLike`"),
        (op(helper.make_node("Nonsense", ["x"], ["q"], name="q")), r"not a valid ONNX model: .*Nonsense"),
        (branch, r"control flow: `If`"),
        (recursive, r"function `F` calls itself"),
        (doubling, r"nodes after writing out its functions"),
        (huge, r"tensor `k` has shape \[65536, 65536\]"),
        (claims_more, r"tensor `w` has shape \[1099511627776, 3, 3, 3\]"),
        (typed(0, TensorProto.FLOAT16), r"not a valid ONNX model|input `x` is float16"),
        (integers, r"output `k` is int64, only float32 is taken"),
        (values_decide, r"output `f` has no static shape"),
        (lambda p: p.opset_import[0].__setattr__("version", 999), r"ONNX Runtime cannot run it: .*FAIL"),
        (lambda p: p.graph.ClearField("node"), r"without a graph"),
        (lambda p: p.opset_import.pop(), r"says no opset"),
        (lambda p: p.graph.node[0].input.__setitem__(0, "nobody"), r"not a valid ONNX model"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)  # fmt: skip
def test_what_is_not_understood_is_refused_with_one_sentence(read, change, says):
    proto = conv()
    change(proto)
    with pytest.raises(CheckpointError, match=says) as caught:
        read(proto)
    assert "\n" not in caught.value.message and caught.value.exit_code == 2


@pytest.mark.parametrize("keep", [0, 1, 30, 0.5, 0.99])
def test_a_truncated_file_is_refused(read, keep):
    data = conv().SerializeToString()
    with pytest.raises(CheckpointError, match=r"not a whole ONNX file|not an ONNX file|says no opset|not a valid"):
        read(data[: keep if isinstance(keep, int) else int(keep * len(data))])


@pytest.mark.parametrize("data", [b"name: car\n" * 50, b"\x89PNG\r\n\x1a\n" + bytes(200), bytes(1000)])
def test_another_kind_of_file_is_refused(read, data):
    with pytest.raises(CheckpointError, match=r"not a whole ONNX file|not an ONNX file"):
        read(data)


def test_random_damage_never_ends_in_a_traceback(read):
    """Whatever one flipped byte does, it is refused, or the model is one that runs."""
    data = conv().SerializeToString()
    weights_at = data.index(WEIGHT.tobytes())
    around = [i for i in range(len(data)) if not weights_at <= i < weights_at + WEIGHT.nbytes]
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        at = int(rng.choice(around))
        changed = bytes(data[:at]) + bytes([int(rng.integers(256))]) + bytes(data[at + 1 :])
        try:
            read(changed)
        except (CheckpointError, RecipeError):
            refused += 1
    assert refused > 50


def test_a_batch_of_another_size_is_refused(read):
    with pytest.raises(RecipeError, match=r"`load.inputs.x`: shape \[4, 3, 8, 8\] in .*net.onnx, wanted \[1, 3, 8, 8\]"):
        read(conv(batch=4))


def test_a_shape_that_contradicts_the_file_is_refused(read):
    with pytest.raises(RecipeError, match=r"`load.inputs.x`: shape \['n', 3, 8, 8\] in .*, wanted \[1, 3, 9, 8\]"):
        read(conv(), {"x": {"source": "video", "shape": [1, 3, 9, 8]}})


def test_a_conversion_that_changes_values_is_refused(read, monkeypatch):
    from onnx import version_converter

    def wrong(proto, opset):
        changed = onnx.ModelProto.FromString(proto.SerializeToString())
        changed.opset_import[0].version = opset
        weights(WEIGHT * np.float32(1.01))(changed)
        return changed

    monkeypatch.setattr(version_converter, "convert_version", wrong)
    monkeypatch.setattr(onnx_file, "_relabelled", wrong)
    with pytest.raises(CheckpointError, match=r"opset 18 cannot be converted to 17: its outputs change by"):
        read(conv(opset=18))

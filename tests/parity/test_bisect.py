"""Bisection blames a layer for its own error only, finds layers under other names, and leaves a file that shows the fault."""

from __future__ import annotations

import dataclasses
import importlib.util
import math

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgekit.errors import DataError, UsageError
from edgekit.parity import repro
from edgekit.parity.bisect import FAULT, ROUNDING, SAME, bisect
from edgekit.parity.result import Comparison, SideInfo
from edgekit.parity.surgery import Grid, Net
from tests.parity import planted
from tests.parity.nets import F, save_graph, save_net, save_step


def chain(path, scales=(1.0, 1.0, 1.0), names="t", extra=()):
    """x [1, 8] → three MatMuls with a Tanh after each; `scales` multiply their weights."""
    rng = np.random.default_rng(1)
    weights = [numpy_helper.from_array((s * rng.standard_normal((8, 8)) / 2).astype(np.float32), f"w{i}") for i, s in enumerate(scales)]
    nodes = []
    for i in range(3):
        source = "x" if i == 0 else f"{names}{2 * i - 1}"
        out = "y" if i == 2 else f"{names}{2 * i + 1}"
        nodes += [helper.make_node("MatMul", [source, f"w{i}"], [f"{names}{2 * i}"], name=f"l{i}/MatMul"), helper.make_node("Tanh", [f"{names}{2 * i}"], [out], name=f"l{i}/Tanh")]
    ports = [helper.make_tensor_value_info(n, F, [1, 8]) for n in ("x", "y")]
    return save_graph(path, nodes, ports[:1], ports[1:], weights)


def data(n=4, shape=(1, 8), name="x"):
    return [{name: np.random.default_rng(i).standard_normal(shape).astype(np.float32)} for i in range(n)]


def test_only_the_layer_that_is_wrong_introduces_an_error(tmp_path):
    a, b = chain(tmp_path / "a.onnx"), chain(tmp_path / "b.onnx", (1, 1.1, 1))
    rows = bisect(a, b, data()).rows
    assert (rows[0].node, rows[0].rank, rows[0].verdict, rows[0].module) == ("l1/MatMul", 1, FAULT, "l1")
    assert rows[0].introduced_db == pytest.approx(20, abs=1e-3)  # a tenth of the signal
    assert rows[0].inherited_db == math.inf and rows[0].share == pytest.approx(1)
    after = next(row for row in rows if row.node == "l2/MatMul")
    assert after.introduced_db == math.inf and after.verdict == SAME and 0 < after.inherited_db < 40 and after.sqnr_db < 40


def test_introduced_and_inherited_errors_are_numpys(tmp_path):
    a, b = chain(tmp_path / "a.onnx", (1, 1, 1)), chain(tmp_path / "b.onnx", (1.05, 1, 1.2))
    fed = data(3)
    row = next(row for row in bisect(a, b, fed).rows if row.node == "l2/MatMul")
    w = [np.random.default_rng(1)]
    w = [(w[0].standard_normal((8, 8)) / 2).astype(np.float32) for _ in range(3)]
    clean = [np.tanh(np.tanh(d["x"] @ w[0]) @ w[1]) for d in fed]
    running = [np.tanh(np.tanh(d["x"] @ (1.05 * w[0])) @ w[1]) for d in fed]
    power = lambda xs: sum(float((x.astype(np.float64) ** 2).sum()) for x in xs)  # noqa: E731
    inherited = 10 * math.log10(power(clean) / power([c - r for c, r in zip(clean, running, strict=True)]))
    so_far = 10 * math.log10(power([c @ w[2] for c in clean]) / power([c @ w[2] - 1.2 * (r @ w[2]) for c, r in zip(clean, running, strict=True)]))
    assert row.inherited_db == pytest.approx(inherited, abs=1e-3) and row.sqnr_db == pytest.approx(so_far, abs=1e-3)
    assert row.introduced_db == pytest.approx(-20 * math.log10(0.2), abs=1e-3)
    assert row.max_abs == pytest.approx(max(float(np.abs(0.2 * (c @ w[2])).max()) for c in clean), rel=1e-4)


def test_layers_are_found_under_other_names_even_behind_a_wrong_one(tmp_path):
    a, b = chain(tmp_path / "a.onnx"), chain(tmp_path / "b.onnx", (1.3, 1, 1), names="onnx::other_")
    found = bisect(a, b, data())
    assert found.rows[0].node == "l0/MatMul" and found.rows[0].matched_by == "structure" and not found.unmatched_a and not found.unmatched_b
    assert found.matched == 6


def test_a_name_that_is_only_a_coincidence_is_no_match(tmp_path):
    """Both number their tensors, B from another end: `t0` of A is `t4` of B."""
    a = chain(tmp_path / "a.onnx")
    b = onnx.load(str(chain(tmp_path / "b.onnx", (1, 1.2, 1))))
    new = {"t0": "t3", "t1": "t2", "t2": "t1", "t3": "t0"}
    for node in b.graph.node:
        for names in (node.input, node.output):
            names[:] = [new.get(name, name) for name in names]
    onnx.save(b, str(tmp_path / "b.onnx"))
    found = bisect(a, tmp_path / "b.onnx", data())
    assert found.rows[0].node == "l1/MatMul" and {row.tensor_a: row.tensor_b for row in found.rows}["t0"] == "t3"


def test_a_transposed_layout_is_found_by_value_and_fed_back_turned(tmp_path):
    """A is a 1x1 convolution in NCHW; B computes it as a MatMul in NHWC, wrong in one weight."""
    rng = np.random.default_rng(0)
    w, v = rng.standard_normal((5, 3)).astype(np.float32), rng.standard_normal((2, 5)).astype(np.float32)
    bad = v.copy()
    bad[0, 0] += 1

    def ports(*shapes):
        return [helper.make_tensor_value_info(n, F, s) for n, s in shapes]

    conv = lambda name, x, k, y: helper.make_node("Conv", [x, k], [y], name=name)  # noqa: E731
    a = save_graph(tmp_path / "a.onnx", [conv("first/Conv", "x", "w", "h"), helper.make_node("Sigmoid", ["h"], ["s"], name="act"), conv("second/Conv", "s", "v", "y")],
                   ports(("x", [1, 3, 4, 6])), ports(("y", [1, 2, 4, 6])), [numpy_helper.from_array(w[..., None, None], "w"), numpy_helper.from_array(v[..., None, None], "v")])  # fmt: skip
    n = helper.make_node
    b = save_graph(tmp_path / "b.onnx", [n("Transpose", ["x"], ["xt"], perm=[0, 2, 3, 1]), n("MatMul", ["xt", "w"], ["p"]), n("Sigmoid", ["p"], ["q"]), n("MatMul", ["q", "v"], ["r"]), n("Transpose", ["r"], ["y"], perm=[0, 3, 1, 2])],
                   ports(("x", [1, 3, 4, 6])), ports(("y", [1, 2, 4, 6])), [numpy_helper.from_array(np.ascontiguousarray(w.T), "w"), numpy_helper.from_array(np.ascontiguousarray(bad.T), "v")])  # fmt: skip
    found = bisect(a, b, data(3, (1, 3, 4, 6)))
    how = {row.tensor_a: (row.tensor_b, row.matched_by) for row in found.rows}
    assert how["h"] == ("p", "value") and how["s"][0] == "q"
    assert found.rows[0].node == "second/Conv" and found.rows[0].verdict == FAULT
    assert next(row for row in found.rows if row.tensor_a == "h").verdict == SAME


def test_honest_rounding_does_not_rank_above_a_fault(tmp_path):
    """Every layer of the INT8 net costs some 40 dB; a bias that is off by less is found."""
    of = planted.subject("tiny")
    clean = bisect(of.path("float"), of.path("int8"), of.data, **of.how).rows
    assert {row.verdict for row in clean} == {ROUNDING, SAME}
    conv = next(row for row in clean if row.op == "Conv")
    assert abs(conv.introduced_db - conv.expected_db) < 1 and 30 < conv.introduced_db < 60
    patient = planted.Patient(of.path("int8"), of)
    lstm = of.layers["rnn"][0]
    patient.edit(lstm, lambda w: w * np.float32(1.003), 2)  # 0.3 % of a float layer: 50 dB
    rows = bisect(of.path("float"), patient.save(tmp_path / "b.onnx"), of.data, **of.how).rows
    assert rows[0].node == lstm and rows[0].verdict == FAULT and rows[0].introduced_db > conv.introduced_db


def test_a_range_that_clips_is_named(tmp_path):
    of = planted.subject("tiny")
    planted.plant("clipped range", 2, "tiny", "int8", tmp_path / "b.onnx")
    row = bisect(of.path("float"), tmp_path / "b.onnx", of.data, **of.how).rows[0]
    assert "of the values are beyond its scale" in row.note and "`clip`" in row.note


def test_what_an_honest_grid_is():
    grid = Grid(np.dtype("uint8"), 2 / 255, 128)
    assert grid.fitting(-1, 0.99, False) is grid  # its own, where it holds the values
    assert grid.fitting(-3, 3, True).scale == pytest.approx(6 / 255)  # it clips
    assert grid.fitting(-0.1, 0.1, False).scale == pytest.approx(0.2 / 255)  # ten times too coarse
    assert Grid(np.dtype("int8"), None, 0).fitting(-2, 1, True) == Grid(np.dtype("int8"), 2 / 127, 0)


def test_a_state_goes_on_from_call_to_call(tmp_path):
    """From a zero state a lost one cannot be seen; single calls without a stream carry it on, too."""
    a = save_step(tmp_path / "a.onnx")
    model = onnx.load(str(a))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1, 16), np.float32), "nothing"))
    lstm = next(node for node in model.graph.node if node.op_type == "LSTM")
    lstm.input[6] = "nothing"
    onnx.save(model, str(tmp_path / "b.onnx"))
    found = bisect(a, tmp_path / "b.onnx", data(3, (1, 3, 2, 16, 16), "clip"))
    assert found.rows[0].node == lstm.name and found.rows[0].verdict == FAULT
    once = bisect(a, tmp_path / "b.onnx", data(1, (1, 3, 2, 16, 16), "clip"))
    assert {row.verdict for row in once.rows} == {SAME}


def test_nan_ranks_first_and_infinities_that_are_equal_are_none(tmp_path):
    def save(path, value):
        nodes = [helper.make_node("Add", ["x", "mask"], ["m"], name="mask/Add"), helper.make_node("Softmax", ["m"], ["s"], name="soft"), helper.make_node("Mul", ["s", "k"], ["y"], name="out/Mul")]
        mask = np.zeros((1, 8), np.float32)
        mask[0, 3] = -np.inf
        return save_graph(path, nodes, *([helper.make_tensor_value_info(n, F, [1, 8])] for n in "xy"), [numpy_helper.from_array(mask, "mask"), numpy_helper.from_array(np.float32(value), "k")])

    a = save(tmp_path / "a.onnx", 2)
    assert {row.verdict for row in bisect(a, save(tmp_path / "same.onnx", 2), data()).rows} == {SAME}
    row = bisect(a, save(tmp_path / "b.onnx", np.nan), data()).rows[0]
    assert row.node == "out/Mul" and math.isnan(row.max_abs) and row.note == "NaN or infinity" and row.verdict == FAULT


def test_globs_choose_layers(tmp_path):
    a, b = chain(tmp_path / "a.onnx"), chain(tmp_path / "b.onnx", (1.3, 1.1, 1))
    assert [row.node for row in bisect(a, b, data(), nodes="l1/*").rows] == ["l1/MatMul", "l1/Tanh"]
    assert bisect(a, b, data(), nodes=["l2/MatMul", "l0/*"]).rows[0].node == "l0/MatMul"
    with pytest.raises(UsageError, match="no layer is called l1/MatMull"):
        bisect(a, b, data(), nodes="l1/MatMull")


def test_the_repro_shows_the_fault_by_itself(tmp_path):
    of = planted.subject("tiny")
    planted.plant("wrong scale", 2, "tiny", "int8", tmp_path / "b.onnx")
    found = bisect(of.path("float"), tmp_path / "b.onnx", of.data, repro=tmp_path / "bug", **of.how)
    folder = tmp_path / "bug"
    assert found.minimal["max_abs"] == pytest.approx(found.rows[0].max_abs, rel=0.01) == repro.check(folder)
    model = onnx.load(found.minimal["onnx"])
    onnx.checker.check_model(model)
    assert {node.op_type for node in model.graph.node} == {"QuantizeLinear", "DequantizeLinear", "Conv"} and [i.name for i in model.graph.input] == ["clip"]
    assert found.rows[0].node in (folder / "README.txt").read_text()
    assert {p.name for p in (folder / "test_data_set_0").iterdir()} == {"input_0.pb", "output_0.pb"}
    with pytest.raises(UsageError, match="not empty"):
        bisect(of.path("float"), tmp_path / "b.onnx", of.data, repro=folder, **of.how)


def test_the_result_goes_through_json(tmp_path):
    found = bisect(chain(tmp_path / "a.onnx"), chain(tmp_path / "b.onnx", (1, 1.1, 1)), data())
    side = SideInfo("a", "onnx", {}, {})
    comparison = Comparison(side, side, "differs", bisect=dataclasses.replace(found, minimal={}))
    assert Comparison.from_json(comparison.to_json()).bisect == comparison.bisect
    assert found.modules[0][0] == "l1" and sum(share for _, share in found.modules) == pytest.approx(1)


def test_what_cannot_be_bisected_is_refused_in_one_sentence(tmp_path):
    a = chain(tmp_path / "a.onnx")
    with pytest.raises(DataError, match="input `x` takes float32"):
        bisect(a, save_net(tmp_path / "other.onnx"), [{"x": np.zeros((1, 6), np.float32)}])
    with pytest.raises(UsageError, match="fused kernels give out no inner tensors"):
        bisect(a, f"{a}@fused", data())
    with pytest.raises(DataError, match="no samples"):
        bisect(a, a, [])


def test_tensors_of_types_that_numpy_lacks_are_passed_by(tmp_path):
    of = planted.subject("tiny")
    planted.plant("bf16 for f32", 1, "tiny", "float", tmp_path / "b.onnx")
    assert "as_bf16" not in Net(onnx.load(str(tmp_path / "b.onnx"))).tensors
    assert bisect(of.path("float"), tmp_path / "b.onnx", of.data, **of.how).rows[0].op == "Conv"


def test_the_command_line_ranks_layers_and_saves_the_first(tmp_path):
    import json

    from typer.testing import CliRunner

    from edgekit import cli

    a, b = chain(tmp_path / "a.onnx"), chain(tmp_path / "b.onnx", (1, 1.1, 1))
    run = lambda *more: CliRunner().invoke(cli.app, ["compare", str(a), str(b), "--data", "random:2", *more])  # noqa: E731
    ran = run("--save-repro", str(tmp_path / "bug"), "--json")
    assert ran.exit_code == 3, ran.output
    found = json.loads(ran.stdout)["bisect"]
    assert found["rows"][0]["node"] == "l1/MatMul" and found["minimal"]["onnx"] == str(tmp_path / "bug/model.onnx")
    shown = run("--bisect")
    assert "l1/MatMul" in shown.stdout and "introduced" in shown.stdout
    assert run("--nodes", "nothing/*").exit_code == 2


def test_float_against_int8_names_the_layer_that_outputs_hide(tmp_path):
    """The outputs keep 20 dB and more; one weight's scale is a quarter too large."""
    import edgekit

    of = planted.subject("tiny")
    planted.plant("wrong scale", 0, "tiny", "int8", tmp_path / "b.onnx")
    found = edgekit.compare(of.path("float"), tmp_path / "b.onnx", of.data, **of.how)
    assert not found and "layer `conv/Conv` (Conv) introduces an error of" in found.reasons[-1] and "rounding there costs" in found.reasons[-1]
    assert found.bisect.rows[0].op == "Conv" and "below what rounding costs A in the same places" in found.outputs[0].tolerance.why
    assert edgekit.compare(of.path("float"), tmp_path / "b.onnx", of.data, min_sqnr_db=5.0, **of.how)  # a limit that is given is the only one


needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")


@needs_openvino
def test_an_openvino_ir_is_bisected_against_its_onnx(tmp_path):
    import openvino as ov

    a, b = chain(tmp_path / "a.onnx"), chain(tmp_path / "b.onnx", (1, 1.1, 1))
    ov.save_model(ov.convert_model(b), tmp_path / "b.xml", compress_to_fp16=False)
    rows = bisect(a, tmp_path / "b.xml", data()).rows
    assert rows[0].node == "l1/MatMul" and rows[0].verdict == FAULT and rows[0].introduced_db == pytest.approx(20, abs=1e-3)
    assert [row.verdict for row in rows[1:]] == [SAME] * (len(rows) - 1) and len(rows) == 6


@needs_openvino
def test_the_lstm_that_openvino_computes_wrongly_is_named(tmp_path):
    """Its Q/DQ graph is right, as ONNX Runtime computes it: the layer in the IR is not."""
    import openvino as ov

    from tests.backends import wrong_lstm

    engine, fed = wrong_lstm.write(tmp_path)
    ov.save_model(ov.convert_model(engine.qdq_onnx), tmp_path / "b.xml", compress_to_fp16=False)
    rows = bisect(engine.qdq_onnx, tmp_path / "b.xml", [fed]).rows
    assert {row.node for row in rows if row.verdict == FAULT} == set(engine.int8)
    with pytest.raises(UsageError, match="only a part of an ONNX file can be saved"):
        bisect(engine.qdq_onnx, tmp_path / "b.xml", [fed], repro=tmp_path / "bug")
    with pytest.raises(UsageError, match="the reference of a bisection is an ONNX file"):
        bisect(tmp_path / "b.xml", engine.qdq_onnx, [fed])


@needs_openvino
def test_an_honest_int8_ir_has_no_fault_against_float(tmp_path):
    from tests.parity import honest

    of = planted.subject("tiny")
    qdq, ir = honest.compiled("x86_openvino", "int8")(of, tmp_path)
    rows = bisect(qdq.with_name(f"{qdq.stem}_float.onnx"), ir, of.data, **of.how).rows
    conv = next(row for row in rows if row.op == "Conv")
    assert {row.verdict for row in rows} == {ROUNDING, SAME} and abs(conv.introduced_db - conv.expected_db) < 1.5 and conv.introduced_db < 60

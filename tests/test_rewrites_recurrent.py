"""rnn_to_scan gives what LSTM and GRU give: one layer and two, both ways, with and without states, of one step and of many."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgekit import graph, rewrites
from tests.onnx_nets import Lambda, export, feeds, op_counts, run
from tests.test_rewrites import check

RNNS = {"lstm": nn.LSTM, "gru": nn.GRU}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("recurrent")


def strong(rnn: nn.RNNBase) -> nn.RNNBase:
    """Weights large enough that gates saturate now and then and the state matters."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in rnn.parameters():
            p.normal_(0, 0.6)
    return rnn


@pytest.mark.parametrize("kind", RNNS)
@pytest.mark.parametrize("steps", [1, 7, 149])
@pytest.mark.parametrize("layers, both", [(1, False), (2, False), (1, True), (2, True)])
def test_a_recurrent_layer_equals_its_scan(folder, kind, steps, layers, both):
    rnn = strong(RNNS[kind](6, 5, layers, batch_first=True, bidirectional=both))
    model, changes = check(folder, Lambda(lambda m, x: m.rnn(x)[0], rnn=rnn), (1, steps, 6), names=["rnn_to_scan"])
    assert [change.site for change in changes] == ["rnn/" + kind.upper(), f"rnn/{kind.upper()}_1"][:layers]
    counts = op_counts(model)
    assert counts["Scan"] == layers * (1 + both) and not {"LSTM", "GRU"} & set(counts)
    assert counts["MatMul"] == counts["Scan"]  # x W of all steps at once, once a direction


@pytest.mark.parametrize("kind", RNNS)
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("steps, batch_first", [(1, True), (1, False), (9, True)])
def test_states_are_taken_and_given(folder, kind, both, steps, batch_first):
    rnn = strong(RNNS[kind](6, 5, batch_first=batch_first, bidirectional=both))
    state = (1 + both, 1, 5)
    if kind == "lstm":
        module = Lambda(lambda m, x, h, c: (lambda y, s: (y, *s))(*m.rnn(x, (h, c))), rnn=rnn)
        shapes = [state, state]
    else:
        module, shapes = Lambda(lambda m, x, h: m.rnn(x, h), rnn=rnn), [state]
    model, _ = check(folder, module, (1, steps, 6) if batch_first else (steps, 1, 6), *shapes, names=["rnn_to_scan"])
    assert ("Scan" in op_counts(model)) == (steps > 1)  # the caller keeps the state of a single step: nothing to loop over


def same_outputs(folder, path):
    model = graph.load(path)
    fed = feeds(model)
    want = run(path, fed)
    assert len(rewrites.apply(model, "rnn_to_scan")) == 1
    graph.save(model, folder / "after.onnx")
    got = run(folder / "after.onnx", fed)
    assert list(got) == list(want)
    for name in want:
        np.testing.assert_allclose(got[name], want[name], atol=1e-5)


def test_only_the_last_state_is_read(folder):
    lstm = Lambda(lambda m, x: m.rnn(x)[1][0], rnn=strong(nn.LSTM(6, 5, batch_first=True, bidirectional=True)))
    gru = Lambda(lambda m, x: m.rnn(x)[1], rnn=strong(nn.GRU(6, 5, batch_first=True)))
    for module in (lstm, gru):
        same_outputs(folder, export(folder, module, (1, 8, 6)))


def test_a_layer_without_biases_gets_none(folder):
    for kind, rnn in RNNS.items():
        model, _ = check(folder, Lambda(lambda m, x: m.rnn(x)[0], rnn=rnn(6, 5, bias=False)), (8, 1, 6), names=["rnn_to_scan"])
        assert "Add" not in op_counts(model), kind


def raw(folder, kind: str, steps: int = 6, inputs=("x", "W", "R", "B"), outputs=("Y",), **attributes):
    """A graph of one ONNX op as no torch export writes it."""
    rng, gates, (into, hidden) = np.random.default_rng(0), {"LSTM": 4, "GRU": 3}[kind], (3, 4)
    d = 2 if attributes.get("direction") == "bidirectional" else 1
    arrays = {"W": (d, gates * hidden, into), "R": (d, gates * hidden, hidden), "B": (d, 2 * gates * hidden), "P": (d, 3 * hidden)}
    stored = [onnx.numpy_helper.from_array(rng.normal(0, 0.6, arrays[name]).astype(np.float32), name) for name in inputs if name in arrays]
    stored += [onnx.numpy_helper.from_array(np.full(1, steps, np.int32), "lens"), onnx.numpy_helper.from_array(np.full((d, 1, hidden), 0.3, np.float32), "h0")]
    shapes = {"Y": [steps, d, 1, hidden], "Y_h": [d, 1, hidden], "Y_c": [d, 1, hidden]}
    node = onnx.helper.make_node(kind, inputs, outputs, f"m/{kind}", hidden_size=hidden, **attributes)
    made = onnx.helper.make_graph(
        [node], "g", [onnx.helper.make_tensor_value_info("x", 1, [steps, 1, into])],
        [onnx.helper.make_tensor_value_info(name, 1, shapes[name]) for name in outputs if name], [s for s in stored if s.name in inputs],
    )  # fmt: skip
    path = folder / "raw.onnx"
    onnx.save(onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    return path, graph.load(path)


@pytest.mark.parametrize(
    "kind, options",
    [
        ("GRU", {"linear_before_reset": 0}),
        ("GRU", {"linear_before_reset": 1, "direction": "reverse"}),
        ("GRU", {"linear_before_reset": 0, "direction": "bidirectional"}),
        ("LSTM", {"direction": "reverse", "outputs": ("Y", "Y_h", "Y_c")}),
        ("LSTM", {"inputs": ("x", "W", "R", "", "lens", "h0"), "outputs": ("Y", "", "Y_c")}),
        ("LSTM", {"activations": ["Sigmoid", "Tanh", "Tanh"]}),
    ],
)
def test_forms_that_torch_does_not_export(folder, kind, options):
    same_outputs(folder, raw(folder, kind, **options)[0])


@pytest.mark.parametrize(
    "options",
    [{"clip": 1.0}, {"input_forget": 1}, {"activations": ["Relu", "Tanh", "Tanh"]}, {"inputs": ("x", "W", "R", "B", "", "", "", "P")}],
)
def test_unknown_forms_stay_as_they_are(folder, options):
    _, model = raw(folder, "LSTM", **options)
    assert rewrites.apply(model, "rnn_to_scan") == []
    assert op_counts(model) == {"LSTM": 1}


def test_names_come_from_the_module(folder):
    model, _ = check(folder, Lambda(lambda m, x: m.rnn(x)[0], rnn=nn.LSTM(6, 5, 2, bidirectional=True)), (8, 1, 6), names=["rnn_to_scan"])
    scans = [node for node in model.graph if node.op_type == "Scan"]
    assert [node.name for node in scans] == [f"rnn/LSTM{k}/{way}" for k in ("", "_1") for way in ("forward", "reverse")]
    body = scans[2].attributes["body"].value
    assert {node.name for node in body} >= {"rnn_1/forward/h_matmul", "rnn_1/forward/gates", "rnn_1/forward/c", "rnn_1/forward/h"}
    assert any(value.name == "rnn_1/forward/gates_all" for value in scans[2].outputs)

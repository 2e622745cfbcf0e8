"""State carried over chunks on both sides."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import edgekit
from edgekit.errors import DataError, UsageError
from tests.parity.nets import F, save_graph, save_int8_step, save_step, save_whole_lstm


def test_a_model_equals_itself_over_time_and_its_state_matters(tmp_path):
    path = save_step(tmp_path / "step.onnx")
    found = edgekit.compare(path, path, "random:3", stream=True, steps=20)
    assert found and found.stream.streams == 3 and found.stream.steps == 20
    assert found.stream.states_a == {"h_in": "h_out", "c_in": "c_out"}
    [output] = found.stream.outputs
    assert output.name == "y" and output.first_divergent is None and max(output.max_abs) == 0
    assert [(c.side, c.check, c.is_ok) for c in found.stream.checks] == [("a", "reset", True), ("a", "restore", True), ("b", "reset", True), ("b", "restore", True)]
    assert found.stream.state_effect_a == found.stream.state_effect_b > 0.1


def test_an_honest_int8_lstm_passes(tmp_path):
    found = edgekit.compare(save_step(tmp_path / "a.onnx"), save_int8_step(tmp_path / "b.onnx"), "random:3", stream=True, steps=40)
    assert found, found.reasons
    assert found.b.numbers == "int8" and found.stream.state_sqnr_db > 20 and found.outputs[0].errors.max_abs > 1e-4


@pytest.mark.parametrize("state", ["h_in", "c_in"])
@pytest.mark.parametrize("tolerance", [{}, {"atol": 1e9}])
def test_an_int8_lstm_that_loses_its_state_between_calls_is_caught(tmp_path, state, tolerance):
    """Of two states one is lost; and even where the outputs may be anything."""
    broken = save_int8_step(tmp_path / "b.onnx", loses=state)
    found = edgekit.compare(save_step(tmp_path / "a.onnx"), broken, "random:2", stream=True, steps=40, **tolerance)
    assert not found and found.exit_code == 3
    assert found.reasons[0].startswith("B loses its state") and found.stream.state_sqnr_db < 6


def test_a_state_that_is_wiped_is_named_even_where_the_outputs_are_allowed_to_differ(tmp_path):
    """Both h and c lost, and a tolerance that lets anything pass."""
    path = save_step(tmp_path / "a.onnx")
    model = onnx.load(str(path))
    lstm = next(node for node in model.graph.node if node.op_type == "LSTM")
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1, 16), np.float32), "nothing"))
    lstm.input[5] = lstm.input[6] = "nothing"
    onnx.save(model, str(tmp_path / "b.onnx"))
    found = edgekit.compare(path, tmp_path / "b.onnx", "random:2", stream=True, steps=20, atol=1e9)
    assert found.outputs[0].is_within and not found
    assert found.reasons[0].startswith("B loses its state") and found.stream.state_effect_b == 0


def test_without_stream_the_same_fault_is_not_seen(tmp_path):
    """One call from a zero state: that is what comparing clip by clip would say."""
    assert edgekit.compare(save_int8_step(tmp_path / "a.onnx"), save_int8_step(tmp_path / "b.onnx", loses="h_in"), "random:2", outputs=("y",))


def test_chunk_sizes_may_differ_and_the_common_length_is_compared(tmp_path):
    a, b = save_whole_lstm(tmp_path / "a.onnx", 4), save_whole_lstm(tmp_path / "b.onnx", 6)
    found = edgekit.compare(a, b, "random:2", stream=True, stream_axis=1, steps=22)
    assert found, found.reasons
    assert (found.stream.chunk_a, found.stream.calls_a, found.stream.chunk_b, found.stream.calls_b) == (4, 5, 6, 3)
    assert found.stream.steps == 18 and found.outputs[0].shape == (1, 18, 5)


def test_a_free_axis_takes_the_chunks_that_are_asked_for(tmp_path):
    a, b = save_whole_lstm(tmp_path / "a.onnx", "n"), save_whole_lstm(tmp_path / "b.onnx", "n")
    found = edgekit.compare(a, b, "random:1", stream=True, stream_axis=1, steps=20, chunk_a=20, chunk_b=1)
    assert found and (found.stream.calls_a, found.stream.calls_b) == (1, 20)


def test_single_steps_agree_with_a_whole_sequence(tmp_path):
    """B has no time axis: x [1, 3] a call."""
    whole = save_whole_lstm(tmp_path / "a.onnx", 5)
    model = onnx.load(str(whole))
    lstm = next(node for node in model.graph.node if node.op_type == "LSTM")
    nodes = [
        helper.make_node("Unsqueeze", ["x", "zero"], ["xt"], name="in"),
        lstm,
        helper.make_node("Squeeze", ["yt", "both"], ["y"], name="out"),
    ]
    state = [1, 1, 5]
    values = {i.name: i for i in model.graph.initializer}
    initializers = [values["W"], values["R"], values["B"], numpy_helper.from_array(np.array([0], np.int64), "zero"), numpy_helper.from_array(np.array([0, 1], np.int64), "both")]
    inputs = [helper.make_tensor_value_info(n, F, s) for n, s in (("x", [1, 3]), ("h_in", state), ("c_in", state))]
    outputs = [helper.make_tensor_value_info(n, F, s) for n, s in (("y", [1, 5]), ("h_out", state), ("c_out", state))]
    step = save_graph(tmp_path / "b.onnx", nodes, inputs, outputs, initializers)
    for pair in ((whole, step), (step, whole)):
        found = edgekit.compare(*pair, "random:2", stream=True, steps=15)
        assert found, found.reasons
        assert sorted((found.stream.calls_a, found.stream.calls_b)) == [3, 15]


def test_the_first_divergent_step_and_the_drift_are_found(tmp_path):
    """y = sum of all x so far; B adds 1e-3 with every call, so its error grows by that and no more."""

    def save(path, extra):
        nodes = [helper.make_node("Add", ["x", "s_in"], ["t"], name="add"), helper.make_node("Add", ["t", "e"], ["s_out"], name="drift"), helper.make_node("Identity", ["s_out"], ["y"], name="y")]
        ports = [helper.make_tensor_value_info(n, F, [1, 1]) for n in ("x", "s_in")], [helper.make_tensor_value_info(n, F, [1, 1]) for n in ("y", "s_out")]
        return save_graph(path, nodes, *ports, [numpy_helper.from_array(np.float32([[extra]]), "e")])

    a, b = save(tmp_path / "a.onnx", 0.0), save(tmp_path / "b.onnx", 1e-3)
    found = edgekit.compare(a, b, "random:2", stream=True, steps=50, atol=0.0105, rtol=0.0, rate_hz=10.0)
    [output] = found.stream.outputs
    assert not found and output.first_divergent == 10 and output.first_divergent_stream == "0"
    assert output.drift_per_step == pytest.approx(1e-3, rel=1e-2)
    assert output.time_s[:3] == (0.0, 0.1, 0.2) and output.max_abs[10] == pytest.approx(0.011, rel=1e-3)


def test_a_model_that_keeps_a_state_inside_fails_its_reset(tmp_path):
    from edgekit.parity.runners import Port, Side

    class Counts(Side):
        kind, numbers, inputs, outputs = "python", "float", {"x": Port("float32", (1, 2))}, {"y": Port("float32", (1, 2))}
        calls = 0

        def run(self, feeds, taps=(), sample=None):
            self.calls += 1
            return {"y": feeds["x"] + np.float32(self.calls)}

    found = edgekit.compare(Counts("a", tmp_path), Counts("b", tmp_path), "random:1", stream=True, steps=4)
    assert [check.is_ok for check in found.stream.checks] == [False, False]
    assert "after a reset" in found.reasons[0] and any("shows no states" in note for note in found.stream.notes)


def test_streams_that_do_not_fit_are_refused_in_one_sentence(tmp_path):
    path = save_whole_lstm(tmp_path / "a.onnx", 8)
    with pytest.raises(DataError, match="takes 8 steps a call, the stream has 5"):
        edgekit.compare(path, path, [{"x": np.zeros((1, 5, 3), np.float32)}], stream=True)
    with pytest.raises(DataError, match="has no `x`"):
        edgekit.compare(path, path, [{"q": np.zeros((1, 8, 3), np.float32)}], stream=True)
    with pytest.raises(UsageError, match="`x` and `y` are no state"):
        edgekit.compare(path, path, "random:1", stream=True, states={"x": "y"})

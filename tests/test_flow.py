"""flow.json means what it says: each, stack, feed, give and states."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import EdgekitError
from edgekit.flow import run_flow, runs_per_window

FLOW = {
    "inputs": {"video": {"shape": [3, 2], "dtype": "float32"}, "gain": {"shape": [1], "dtype": "float32"}},
    "steps": [
        {"engine": "clip", "each": {"x": "video"}, "stack": {"y": "features"}},
        {"engine": "head", "feed": {"features": "features", "gain": "gain"}, "give": {"out": "o"}},
    ],
    "outputs": ["o"],
    "states": {},
}
VIDEO = np.arange(6, dtype=np.float32).reshape(3, 2)


def clip(feeds):
    assert feeds["x"].shape == (1, 2)
    return {"y": feeds["x"].sum(1, keepdims=True)}


def head(feeds):
    assert feeds["features"].shape == (1, 3, 1)
    return {"out": feeds["features"].sum((1, 2)) * feeds["gain"][0]}


def test_each_runs_once_per_index_and_stack_collects():
    out = run_flow(FLOW, {"clip": clip, "head": head}, {"video": VIDEO, "gain": np.array([2.0])})
    assert out["o"].shape == () and out["o"] == 2 * VIDEO.sum()


def test_runs_per_window_counts_each():
    assert runs_per_window(FLOW) == {"clip": 3, "head": 1}


def test_each_over_an_earlier_stack_is_counted():
    flow = {**FLOW, "steps": [FLOW["steps"][0], {"engine": "again", "each": {"x": "features"}, "stack": {"y": "z"}}]}
    assert runs_per_window(flow) == {"clip": 3, "again": 3}


def test_states_start_at_init_and_go_from_step_to_step():
    flow = {
        "inputs": {"x": {"shape": [4, 1], "dtype": "float32"}},
        "steps": [{"engine": "sum", "each": {"x": "x"}, "stack": {"y": "ys"}, "give": {"s_out": "last"}}],
        "outputs": ["ys", "last"],
        "states": {"sum": [{"in": "s_in", "out": "s_out", "shape": [1, 1], "init": 10.0}]},
    }

    def accumulate(feeds):
        total = feeds["s_in"] + feeds["x"]
        return {"y": total * 2, "s_out": total}

    inputs = {"x": np.array([[1], [2], [3], [4]], np.float32)}
    out = run_flow(flow, {"sum": accumulate}, inputs)
    assert out["ys"][:, 0].tolist() == [22, 26, 32, 40]
    assert out["last"].tolist() == [20]
    again = run_flow(flow, {"sum": accumulate}, inputs)  # a new window starts at init
    assert (again["ys"] == out["ys"]).all()


def test_the_tap_sees_every_run_with_its_states():
    seen = []
    run_flow(FLOW, {"clip": clip, "head": head}, {"video": VIDEO, "gain": np.ones(1)}, lambda *call: seen.append(call))
    assert [engine for engine, _, _ in seen] == ["clip", "clip", "clip", "head"]
    assert (seen[1][1]["x"] == VIDEO[1:2]).all()


@pytest.mark.parametrize(
    "inputs, message",
    [({"video": VIDEO}, "`gain` is missing"), ({"video": VIDEO[:2], "gain": np.ones(1)}, r"`video` has shape \[2, 2\]")],
)
def test_wrong_inputs_are_refused_by_name(inputs, message):
    with pytest.raises(EdgekitError, match=message):
        run_flow(FLOW, {"clip": clip, "head": head}, inputs)


def test_an_output_without_batch_1_is_refused():
    with pytest.raises(EdgekitError, match="batch 1"):
        run_flow(FLOW, {"clip": lambda f: {"y": np.zeros((2, 1))}, "head": head}, {"video": VIDEO, "gain": np.ones(1)})


def test_a_step_that_asks_for_an_unknown_tensor_is_refused():
    flow = {**FLOW, "steps": FLOW["steps"][1:]}
    with pytest.raises(EdgekitError, match="`features`, which no earlier step gives"):
        run_flow(flow, {"head": head}, {"video": VIDEO, "gain": np.ones(1)})


def test_a_step_over_an_engines_output_says_how_often_it_runs():
    steps = [
        {"engine": "clip", "feed": {"x": "gain"}, "give": {"y": "frames"}},
        {"engine": "step", "each": {"x": "frames"}, "stack": {"y": "o"}, "runs": 5},
    ]
    flow = {**FLOW, "steps": steps}
    assert runs_per_window(flow) == {"clip": 1, "step": 5}
    engines = {"clip": lambda f: {"y": np.zeros((1, 4))}, "step": lambda f: {"y": np.zeros((1,))}}
    with pytest.raises(EdgekitError, match="`runs` is 5, `each` has length 4"):
        run_flow(flow, engines, {"video": VIDEO, "gain": np.ones(1)})
    del steps[1]["runs"]
    with pytest.raises(EdgekitError, match="add `runs`"):
        runs_per_window(flow)

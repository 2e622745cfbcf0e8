"""The toy's state goes from clip to clip, and it matters."""

from __future__ import annotations

import functools
import itertools
import json

import numpy as np
import pytest
import torch

from edgekit.float_model import torch_session
from edgekit.flow import run_flow, runs_per_window
from edgekit.models import tiny

CFG = tiny.Config()


@functools.cache
def model() -> tiny.Tiny:
    torch.manual_seed(6)
    module = tiny.build(CFG).eval()
    with torch.no_grad():
        for p in module.parameters():  # larger than as built, so that what the state holds shows
            p.mul_(3)
    return module


def video() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((CFG.clips, 3, CFG.frames, CFG.height, CFG.width)).astype(np.float32)


def sessions():
    return {e.name: torch_session(e) for e in tiny.engines(model(), CFG)}


def flow() -> dict:
    """The flow as a float model's directory has it: with the engines' states."""
    return {**tiny.flow(CFG), "states": {e.name: [s.to_json() for s in e.states] for e in tiny.engines(model(), CFG) if e.states}}


def whole(clips: np.ndarray) -> list[float]:
    with torch.inference_mode():
        return model()(torch.from_numpy(clips)[None])[0].tolist()


def test_engines_have_the_shapes_that_they_state():
    with torch.inference_mode():
        for engine in tiny.engines(model(), CFG):
            outputs = engine.module(*[torch.zeros(shape) for shape in engine.inputs.values()])
            assert [tuple(o.shape) for o in outputs] == list(engine.outputs.values())
            assert all(engine.inputs[s.input] == engine.outputs[s.output] == s.shape for s in engine.states)


def test_the_flow_carries_the_state_and_equals_the_whole():
    seen = []
    got = run_flow(flow(), sessions(), {"video": video()}, tap=lambda engine, feeds, outputs: seen.append((engine, feeds, dict(outputs))))
    assert [float(got[k]) for k in tiny.OUTPUTS] == pytest.approx(whole(video()), abs=1e-6)
    steps = [(feeds, outputs) for engine, feeds, outputs in seen if engine == "step"]
    assert len(steps) == CFG.clips == runs_per_window(flow())["step"]
    assert not steps[0][0]["h_in"].any() and not steps[0][0]["c_in"].any()
    for (_, before), (after, _) in itertools.pairwise(steps):
        assert np.array_equal(before["h_out"], after["h_in"]) and np.array_equal(before["c_out"], after["c_in"]) and after["h_in"].any()


@pytest.mark.parametrize("lost", ["h_in", "c_in"])
def test_losing_either_state_changes_the_answer(lost):
    forgetful = flow()
    kept = [pair for pair in forgetful["states"]["step"] if pair["in"] != lost]
    forgetful["states"] = {"step": kept}
    step = sessions()["step"]
    runs = {**sessions(), "step": lambda feeds: step({**feeds, lost: np.zeros((1, 1, CFG.hidden), np.float32)})}
    got = run_flow(forgetful, runs, {"video": video()})
    assert abs(float(got["o"]) - whole(video())[0]) > 1e-3


def test_the_order_of_clips_matters():
    assert np.abs(np.subtract(whole(video()), whole(video()[::-1].copy()))).max() > 1e-3


def test_two_windows_do_not_leak_into_each_other():
    runs = sessions()
    first = run_flow(flow(), runs, {"video": video()})
    run_flow(flow(), runs, {"video": -video()})
    again = run_flow(flow(), runs, {"video": video()})
    assert all(np.array_equal(first[k], again[k]) for k in tiny.OUTPUTS)


def test_training_sees_every_weight_and_needs_no_sound():
    module = tiny.build(CFG).train()
    out = tiny.train_forward(module, {"video": torch.from_numpy(video())[None].expand(2, -1, -1, -1, -1, -1)})
    assert {k: tuple(v.shape) for k, v in out.items()} == {k: (2,) for k in tiny.OUTPUTS}
    sum(out.values()).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())


def test_flow_preprocessing_and_configuration_agree():
    spec, inputs = tiny.preprocess_spec(CFG)["video"], tiny.flow(CFG)["inputs"]
    assert inputs["video"]["shape"] == [spec["clips"], 3, spec["frames_per_clip"], spec["height"], spec["width"]]
    assert set(tiny.io_spec(CFG)["inputs"]) == set(inputs) and list(tiny.io_spec(CFG)["outputs"]) == tiny.flow(CFG)["outputs"]
    assert tiny.Config.from_json(json.loads(json.dumps(CFG.to_json()))) == CFG
    assert [s.input for e in tiny.engines(model(), CFG) for s in e.states] == ["h_in", "c_in"]

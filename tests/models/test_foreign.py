"""A plain module behind the attributes of a model: its ports, its states, and a flow of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.errors import RecipeError
from edgekit.float_model import FloatModel, save_float_model, torch_session
from edgekit.flow import run_flow
from edgekit.formats import State
from edgekit.models import Foreign, code, foreign, ports, tiny

IMAGE = {"source": "video", "layout": "CHW", "mean": [1, 2, 3], "std": [4, 5, 6]}
SOUND = {"source": "audio", "layout": "S", "sample_rate_hz": 8000, "normalize": "zero_mean_unit_variance"}


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 4), nn.Linear(27, 1)

    def forward(self, wave, image):
        return {"feature": self.a(wave), "score": self.b(image.flatten(1))}


class Counting(nn.Module):
    """Adds up what it is given; its state is the sum."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, clip, total):
        total = total + self.scale * clip.mean((1, 2, 3, 4))[:, None]
        return total[:, 0], total


def definition(made: Foreign) -> foreign.Definition:
    return foreign.Definition(lambda: made, made, "net:make", "default")


def test_inputs_are_wired_by_name_and_an_output_of_one_number_is_scored():
    inputs, outputs = {"wave": (1, 8), "image": (1, 3, 3, 3)}, {"score": (1, 1), "feature": (1, 4)}
    model = definition(Foreign(Both(), inputs, outputs, {"image": IMAGE, "wave": SOUND}))
    cfg = model.CONFIGS["default"]
    flow = model.flow(cfg)
    assert flow["steps"] == [{"engine": "main", "feed": {"wave": "wave", "image": "video"}, "give": {"score": "score", "feature": "feature"}}]
    assert flow["primary"] == "score" and flow["inputs"]["video"]["shape"] == [3, 3, 3]
    assert model.preprocess_spec(cfg)["audio"]["samples"] == 8 and model.preprocess_spec(cfg)["video"]["std"] == [4, 5, 6]
    [engine] = model.engines(model.build(cfg).eval(), cfg)
    made = torch_session(engine)({"wave": np.ones((1, 8), np.float32), "image": np.ones((1, 3, 3, 3), np.float32)})
    assert {name: value.shape for name, value in made.items()} == {"score": (1,), "feature": (1, 4)}, "a dict is taken by name, not by order"


def test_a_state_is_carried_over_the_runs_of_a_flow_of_its_own(tmp_path):
    cfg = tiny.Config()
    clip, state = (1, 3, cfg.frames, cfg.height, cfg.width), (1, 1)
    flow = {
        "inputs": tiny.flow(cfg)["inputs"],
        "steps": [{"engine": "main", "each": {"clip": "video"}, "give": {"y": "o"}}],
        "outputs": ["o"],
        "primary": "o",
    }
    made = Foreign(Counting(), {"clip": clip, "total_in": state}, {"y": (1,), "total_out": state}, tiny.preprocess_spec(cfg), flow, [State("total_in", "total_out", state, 0.5)])
    spelling, sha256 = "net:make", "0" * 64
    code_of = {"sha256": sha256}
    (tmp_path / "out").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code, "factory", lambda *_: lambda name: made)
        model = foreign.definition(spelling, sha256, "default")
        save_float_model(tmp_path / "out", model.build(None).eval(), spelling, foreign.Config(), "default", {}, pruned=False, code=code_of)
        opened = FloatModel.open(tmp_path / "out")
        video = np.random.default_rng(0).standard_normal(flow["inputs"]["video"]["shape"]).astype(np.float32)
        got = run_flow(opened.flow, opened.sessions(), {"video": video})
        assert opened.ports() == {"main": ["clip", "total_in", "y", "total_out"]}
    assert opened.flow["states"] == {"main": [{"in": "total_in", "out": "total_out", "shape": [1, 1], "init": 0.5}]}
    assert got["o"] == pytest.approx(0.5 + 2 * sum(clip.mean() for clip in video), abs=1e-5)  # float32 sums of 1536 values


@pytest.mark.parametrize(
    "change, says",
    [
        ({"preprocess": {"image": IMAGE}}, r"nothing says what input `wave` \[1, 8\] is made of"),
        ({"preprocess": {"image": IMAGE, "wave": SOUND, "x": SOUND}}, r"there is no input `x`"),
        ({"preprocess": {"image": {**IMAGE, "layout": "HWC"}, "wave": SOUND}}, None),
        ({"inputs": {"wave": (1, 8), "image": (1, 4, 3, 3)}}, r"axis C of layout CHW must be 3, got 4"),
        ({"inputs": {"wave": (2, 8), "image": (1, 3, 3, 3)}}, r"`wave` has shape \[2, 8\]"),
        ({"inputs": {}}, r"no inputs or no outputs"),
        ({"outputs": {"feature": (1, 4, 2)}}, r"no output is one number or one score for each class, .*: `feature` \[1, 4, 2\]"),
        ({"module": Both}, r"`module` is type, not an nn.Module"),
        ({"states": [State("a", "b", (1,))]}, r"`states` without a `flow`"),
        ({"preprocess": {"image": IMAGE, "wave": {**SOUND, "source": "video", "layout": "CHW"}}}, r"an input from video needs `mean`"),
        ({"preprocess": {"image": IMAGE, "wave": {**SOUND, "rate": 1}}}, r"input `wave`: rate: "),
    ],
)
def test_what_does_not_fit_is_refused(change, says):
    parts = {"module": Both(), "inputs": {"wave": (1, 8), "image": (1, 3, 3, 3)}, "outputs": {"score": (1, 1), "feature": (1, 4)}, "preprocess": {"image": IMAGE, "wave": SOUND}}
    if says is None:  # 3 everywhere: any layout fits
        assert definition(Foreign(**{**parts, **change})).preprocess_spec(None)["video"]["layout"] == "HWC"
        return
    with pytest.raises(RecipeError, match=says):
        definition(Foreign(**{**parts, **change})).flow(None)


def test_two_inputs_of_one_source_are_refused():
    with pytest.raises(RecipeError, match="two inputs are made of `audio`"):
        ports.wire({"a": (1, 8), "b": (1, 8)}, {"y": (1,)}, {"a": SOUND, "b": SOUND}, "net")


def test_a_row_of_scores_is_taken_for_classes_called_by_their_index():
    parts = {"module": Both(), "inputs": {"wave": (1, 8), "image": (1, 3, 3, 3)}, "outputs": {"feature": (1, 4)}, "preprocess": {"image": IMAGE, "wave": SOUND}}
    flow = definition(Foreign(**parts)).flow(None)
    assert (flow["primary"], flow["task"], flow["classes"]) == ("feature", "classes", ["0", "1", "2", "3"])

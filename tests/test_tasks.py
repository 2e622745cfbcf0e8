"""Classes and timelines through the whole build, on `tiny` models with random weights: mechanics only, nothing has learned anything."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgekit import models
from edgekit.datasets import open_dataset, synthetic
from edgekit.errors import EdgekitError
from edgekit.flow import Live, run_flow, scored, title_of
from edgekit.metrics import METRICS
from edgekit.preprocess import labels_of, preprocess
from tests.small_project import SETTINGS, Project, save_random_weights

SETS = {"synthetic_emotion": "seed: 3", "synthetic_va": "seed: 4"}
GATES = {"synthetic_emotion": "{wa: {max_decrease: 100}, agreement: {min: 0}}", "synthetic_va": "{ccc: {max_decrease: 2}}"}
MODELS = {"avtca": "synthetic_emotion", "attsf": "synthetic_emotion", "bilstm_sa": "synthetic_emotion", "aver": "synthetic_va", "jca": "synthetic_va", "leader_follower": "synthetic_va"}

CONFIGS = {"bilstm_sa": "tiny_emotions"}  # MELD has three classes, the synthetic set eight


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """A folder with both synthetic sets, a few clips each, rendered once."""
    root = tmp_path_factory.mktemp("worlds")
    (root / "calibration").mkdir()
    for name, seed in SETS.items():
        (root / f"calibration/{name}.yaml").write_text(f"dataset: {name}\n{seed}\nsplits: {{train: 4, calibration: 3, test: 9}}\n")
    return root


def build(worlds, model: str, target: str = "onnxruntime_x86") -> tuple[dict, Project]:
    project = Project(worlds)
    config = CONFIGS.get(model, "tiny")
    save_random_weights(model, worlds / f"{model}.safetensors", config)
    data = MODELS[model]
    settings = {
        **SETTINGS, "name": model, "target": target, "load": f"{{model: {model}, config: {config}, checkpoint: {model}.safetensors}}",
        "calibrate": f"{{data: {data}, clips: 3}}", "verify": f"{{data: {data}}}", "gates": GATES[data],
    }  # fmt: skip
    (worlds / f"{model}.yaml").write_text("".join(f"{key}: {text}\n" for key, text in settings.items()))
    result = project.run("build", f"{model}.yaml")
    assert result.exit_code in (0, 3), result.output  # 3: a gate that random weights miss
    return json.loads((worlds / f"build/{model}/report.json").read_text()), project


@pytest.mark.parametrize("model", MODELS)
def test_a_model_is_built_and_scored_by_its_task(worlds, model, monkeypatch):
    monkeypatch.chdir(worlds)
    report, _ = build(worlds, model)
    definition = models.get(model)
    flow = definition.flow(definition.CONFIGS[CONFIGS.get(model, "tiny")])
    assert report["task"] == flow["task"] and report["primary"] == title_of(flow)
    assert set(report["metrics"]["artifact"]) == {name for name, metric in METRICS.items() if metric.task == flow["task"]}
    assert report["lead"] == {"classes": "wa", "timeline": "ccc"}[flow["task"]]
    assert all(np.isfinite(value) for value in report["metrics"]["artifact"].values())
    page = (worlds / f"build/{model}/report.html").read_text()
    if flow["task"] == "classes":
        assert report["classes"] == flow["classes"] and 0 <= report["agreement"]["low"] <= report["agreement"]["value"] <= 100
        assert "Chosen class by true class" in page
        assert {gate["name"]: gate["value"] for gate in report["gates"]}["agreement"] == report["agreement"]["value"]
    else:
        steps = np.asarray(report["predictions"]["artifact"]).shape
        assert steps == (9, len(report["predictions"]["label"][0]), 2)
        assert "valence: prediction over label" in page and "arousal, test-00000" in page


@pytest.mark.parametrize("model", [*(name for name in MODELS if name != "bilstm_sa"), "mhlt"])  # which sees an utterance once, whole
def test_a_live_system_answers_as_the_whole_window_does_with_one_new_piece(worlds, model):
    """What is kept makes no difference: windows that slide by one piece, against the same windows whole."""
    import torch

    definition = models.get(model)
    config = definition.CONFIGS["tiny"]
    torch.manual_seed(0)
    module = definition.fold(definition.build(config)).eval()
    flow = definition.flow(config)
    sessions = {engine.name: _session(engine) for engine in definition.engines(module, config)}
    live = Live(flow, sessions)
    rng = np.random.default_rng(0)
    long = {name: rng.standard_normal((2 + want["shape"][0], *want["shape"][1:])).astype(np.float32) for name, want in flow["inputs"].items() if name in live.inputs}
    rest = {name: rng.standard_normal(want["shape"]).astype(np.float32) for name, want in flow["inputs"].items() if name not in live.inputs}
    length = flow["inputs"][live.inputs[0]]["shape"][0]
    for i in range(length + 2):
        answer = live.push({name: values[i] for name, values in long.items()}, rest)
        if i < length - 1:
            assert answer is None, "the window is not full"
            continue
        window = {name: values[i - length + 1 : i + 1] for name, values in long.items()}
        want = run_flow(flow, sessions, {**window, **rest})
        for name in flow["outputs"]:
            np.testing.assert_array_equal(answer[name], want[name])
    assert set(live.runs.values()) == {length + 2}
    live.reset()
    assert live.push({name: values[0] for name, values in long.items()}, rest) is None


def _session(engine):
    import torch

    def run(feeds):
        with torch.inference_mode():
            outputs = engine.module(*(torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in engine.inputs))
        return {name: value.numpy() for name, value in zip(engine.outputs, outputs, strict=True)}

    return run


def test_a_flow_that_keeps_nothing_is_not_live():
    flow = {"inputs": {}, "steps": [{"engine": "e", "feed": {}, "give": {"y": "o"}}], "outputs": ["o"], "host_steps": []}
    with pytest.raises(EdgekitError, match="nothing is kept"):
        Live(flow, {})


def test_classes_of_another_data_set_are_refused(worlds, monkeypatch):
    monkeypatch.chdir(worlds)
    save_random_weights("avtca", worlds / "avtca.safetensors")
    open_split = synthetic.open_split

    def with_other_classes(*arguments):
        data = open_split(*arguments)
        data.classes = ("glad", "glum")
        return data

    monkeypatch.setattr(synthetic, "open_split", with_other_classes)
    settings = {**SETTINGS, "name": "other", "target": "onnxruntime_x86", "load": "{model: avtca, config: tiny, checkpoint: avtca.safetensors}"}
    settings |= {"calibrate": "{data: synthetic_emotion, clips: 3}", "verify": "{data: synthetic_emotion, clips: 3}", "gates": "{wa: {min: 0}}"}
    (worlds / "other.yaml").write_text("".join(f"{key}: {text}\n" for key, text in settings.items()))
    result = Project(worlds).run("build", "other.yaml")
    assert result.exit_code == 2 and "its classes are glad, glum; the model's are neutral, calm" in " ".join(result.output.split())


def test_labels_of_frames_are_taken_where_the_outputs_stand(worlds):
    data = open_dataset("synthetic_va", "test", None, worlds, worlds / ".edgekit")
    clip = data.clip(data.ids[0])
    spec = models.get("aver").preprocess_spec(models.get("aver").CONFIGS["small"])
    labels = labels_of(spec, clip)
    np.testing.assert_array_equal(labels["valence"], clip.labels["valence"][7::8])
    inputs = preprocess(spec, clip)
    assert inputs["video"].shape[0] == len(labels["arousal"]) == 8
    stacked = scored({"task": "timeline", "primary": ["valence", "arousal"]}, {f"label/{k}": v[None] for k, v in labels.items()}, "label/")
    assert stacked.shape == (1, 8, 2)

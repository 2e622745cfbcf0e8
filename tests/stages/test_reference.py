"""The float model's word on every clip, and golden clips that a device's preprocessing can be checked with."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from edgekit import float_model
from edgekit.datasets import Clip
from edgekit.errors import CheckpointError, DataError
from edgekit.float_model import save_float_model
from edgekit.models import tiny
from edgekit.preprocess import preprocess
from edgekit.stages import reference
from tests.stages.made_up import MadeUp, job

SPEC = {"data": "made_up", "metrics": ["mae", "f1", "corr"]}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Directories of load and of a prune that nudged the weights, of the stateful toy."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    module = tiny.build(tiny.CONFIGS["tiny"]).eval()
    for name in ("load", "prune"):
        (folder / name).mkdir()
        save_float_model(folder / name, module, "tiny", tiny.CONFIGS["tiny"], "tiny", {"checkpoint_sha256": "ab"}, pruned=False)
        with torch.no_grad():
            module.fc.weight.add_(0.01)
    return {"load": folder / "load", "prune": folder / "prune"}


@pytest.fixture(scope="module")
def ran(models, tmp_path_factory):
    data = MadeUp(6)
    done = job(tmp_path_factory.mktemp("ran"), "reference", SPEC, models, {"data": data})
    reference.run(done)
    return done, data


def test_every_clip_gets_a_prediction_of_both_models_in_order(ran, models):
    done, data = ran
    found = load_file(done.out / "predictions.safetensors")
    assert {f"{row}/{name}" for row in ("original", "pruned", "label") for name in "ov"} <= set(found)
    module = tiny.build(tiny.CONFIGS["tiny"]).eval()
    spec = json.loads((models["load"] / "preprocess.json").read_text())
    from safetensors.torch import load_file as load_torch

    for row, folder in (("original", "load"), ("pruned", "prune")):
        module.load_state_dict(load_torch(models[folder] / "model.safetensors"))
        with torch.inference_mode():
            want = [module(torch.from_numpy(preprocess(spec, data.clip(i))["video"])[None])[0] for i in data.ids]
        np.testing.assert_allclose(found[f"{row}/o"], [w[0] for w in want], atol=1e-6)  # float32, sums in another order
    np.testing.assert_array_equal(found["label/o"], np.float32([data.clip(i).labels["o"] for i in data.ids]))
    assert "label/a" not in found, "a label that clips lack is left out"


def test_reference_json_has_what_verify_needs(ran):
    done, data = ran
    found = json.loads((done.out / "reference.json").read_text())
    assert found["ids"] == data.ids and found["tags"][2] == data.clip(data.ids[2]).tags
    assert found["is_pruned"] is True
    assert found["data"] == {"name": "made_up", "split": "test", "clips": 6, "sha256": data.digest(), "licence": None}
    assert set(found["metrics"]["float"]) == {"mae", "f1", "corr"}
    assert found["models"]["float"]["parameters"] == sum(p.numel() for p in tiny.build(tiny.CONFIGS["tiny"]).parameters())


def test_golden_clips_hold_raw_tensors_answers_and_states(ran, models):
    done, data = ran
    golden = load_file(done.out / "golden.safetensors")
    described = json.loads((done.out / "reference.json").read_text())["golden"]
    spec = json.loads((models["prune"] / "preprocess.json").read_text())
    assert len(described) == 4
    for clip in described:
        raw = golden[f"{clip['id']}/raw/frames"]
        assert list(raw.shape) == clip["raw"]["frames"] and raw.dtype == np.uint8
        again = preprocess(spec, Clip(clip["id"], raw, clip["fps"], np.zeros(1, np.int16), clip["sample_rate_hz"], {}))
        np.testing.assert_array_equal(again["video"], golden[f"{clip['id']}/input/video"])
        assert golden[f"{clip['id']}/output/o"].shape == (), "a number stays a number"
        assert golden[f"{clip['id']}/state/step/h_out"].shape == (4, 1, 1, 16), "one state per run of the engine"
    labels = [data.clip(i).labels["o"] for i in data.ids]
    assert described[0]["labels"]["o"] == min(labels) and described[1]["labels"]["o"] == max(labels)


def test_golden_clips_come_in_raw_sizes_that_are_not_the_models_own(ran):
    described = json.loads((ran[0].out / "reference.json").read_text())["golden"]
    shapes = {tuple(clip["raw"]["frames"]) for clip in described}
    assert len(shapes) == 3
    assert all(h != w for _, h, w, _ in shapes)
    assert [clip["derived_from"] for clip in described] == [None, None, described[0]["id"], described[1]["id"]]


def test_cut_and_stretched_clips_pad_and_truncate():
    clip = MadeUp(2).clip("clip-000")
    for frames, samples in ((8, 400), (100, 9000), (2, 20)):  # windows around, above and below the clip
        shorter, longer = reference._shorter(clip, frames, samples), reference._longer(clip, frames, samples)
        assert len(shorter.audio) < samples < len(longer.audio)
        assert len(shorter.frames) < frames < len(longer.frames)
    one = Clip("x", np.zeros((1, 1, 1, 3), np.uint8), 1.0, np.zeros(1, np.int16), 16000, {"o": 0.0})
    assert reference._shorter(one, 8, 400).frames.size and reference._longer(one, 8, 400).frames.size


def test_an_unpruned_model_runs_once(models, tmp_path, monkeypatch):
    calls = []
    real = float_model.torch_session
    monkeypatch.setattr(float_model, "torch_session", lambda engine: (calls.append(engine.name), real(engine))[1])
    done = job(tmp_path, "reference", SPEC, {"load": models["load"], "prune": models["load"]}, {"data": MadeUp(3)})
    reference.run(done)
    assert sorted(calls) == ["head", "step"]
    found = load_file(done.out / "predictions.safetensors")
    np.testing.assert_array_equal(found["original/o"], found["pruned/o"])
    assert json.loads((done.out / "reference.json").read_text())["is_pruned"] is False


def test_a_model_that_gives_nan_is_refused_with_the_clip(models, tmp_path, monkeypatch):
    monkeypatch.setattr(float_model, "torch_session", lambda engine: lambda feeds: {n: np.full(s, np.nan, np.float32) for n, s in engine.outputs.items()})
    with pytest.raises(CheckpointError, match="gives nan in `o` on clip clip-000"):
        reference.run(job(tmp_path, "reference", SPEC, models, {"data": MadeUp(3)}))


def test_a_clip_without_the_primary_label_is_named(models, tmp_path):
    class Unlabelled(MadeUp):
        def clip(self, id):
            clip = super().clip(id)
            del clip.labels["o"]
            return clip

    with pytest.raises(DataError, match="clip clip-000 has no label `o`, nor have 2 others"):
        reference.run(job(tmp_path, "reference", SPEC, models, {"data": Unlabelled(3)}))


def test_the_same_job_writes_the_same_bytes(models, ran, tmp_path):
    done = job(tmp_path, "again", SPEC, models, {"data": MadeUp(6)})
    reference.run(done)
    for name in ("predictions.safetensors", "golden.safetensors", "reference.json"):
        assert (done.out / name).read_bytes() == (ran[0].out / name).read_bytes()

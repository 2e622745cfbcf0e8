"""load: whoever saved the checkpoint, the same float model's directory comes out, or one clear refusal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgekit.artifact import FileSource, directory_digest, hash_file
from edgekit.errors import CheckpointError, RecipeError
from edgekit.float_model import FloatModel
from edgekit.models import mhlt, tiny
from edgekit.recipe import load_recipe
from edgekit.stages import Job, load

RECIPE = """\
name: toy
target: toy
load: {model: tiny, config: tiny, checkpoint: weights.safetensors}
calibrate: {data: clips}
verify: {data: clips}
"""
FILES = {"model.safetensors", "model.json", "io.json", "ops.json", "preprocess.json", "flow.json"}


def tiny_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    return tiny.build(tiny.Config()).state_dict()


@pytest.fixture
def recipe(tmp_path):
    """A recipe for a checkpoint of the given tensors, with provenance beside it if given."""

    def recipe(state=None, beside: str | None = None, *overrides):
        save_file(tiny_state() if state is None else state, tmp_path / "weights.safetensors")
        if beside is not None:
            (tmp_path / "weights.json").write_text(beside)
        (tmp_path / "toy.yaml").write_text(RECIPE)
        return load_recipe(tmp_path / "toy.yaml", overrides)

    return recipe


@pytest.fixture
def run(tmp_path):
    def run(recipe, name: str = "out") -> Path:
        spec, files = load.plan(recipe, None)
        (tmp_path / name).mkdir()
        load.run(Job(spec, {}, files, tmp_path / name, tmp_path, tmp_path))
        return tmp_path / name

    return run


def test_the_directory_holds_what_later_stages_read(recipe, run):
    out = run(recipe())
    assert {f.name for f in out.iterdir()} == FILES
    loaded = FloatModel.open(out)
    assert loaded.meta["model"] == "tiny" and loaded.meta["config_name"] == "tiny" and loaded.config == tiny.Config()
    assert loaded.meta["parameters"] == sum(v.numel() for v in tiny_state().values()) and not loaded.meta["pruned"]
    assert loaded.flow.items() >= tiny.flow(tiny.Config()).items() and [pair["in"] for pair in loaded.flow["states"]["step"]] == ["h_in", "c_in"]
    assert loaded.preprocess == tiny.preprocess_spec(tiny.Config())
    assert loaded.io["engines"]["step"]["states"] == [{"in": "h_in", "out": "h_out", "shape": [1, 1, 16], "init": 0.0}, {"in": "c_in", "out": "c_out", "shape": [1, 1, 16], "init": 0.0}]
    assert all(torch.equal(loaded.module().state_dict()[k], v) for k, v in tiny_state().items())


def test_macs_are_of_a_window_so_an_engine_counts_as_often_as_it_runs(recipe, run):
    conv = 8 * 3 * 27 * 2 * 8 * 8  # out channels × taps × out positions: 2 frames, 8 × 8
    lstm = 4 * 16 * (8 + 16)
    assert FloatModel.open(run(recipe())).meta["macs"] == 4 * (conv + lstm) + 16 * 3


def test_ops_json_has_what_a_target_is_checked_against(recipe, run):
    ops = json.loads((run(recipe()) / "ops.json").read_text())
    assert ops["opset"] == 17
    assert {row["op"] for row in ops["ops"] if row["engine"] == "step"} >= {"Conv", "LSTM"}
    assert {row["engine"] for row in ops["ops"]} == {"step", "head"}
    assert all(row["dtype"] and row["count"] >= 1 and isinstance(row["rank"], int) for row in ops["ops"])


def test_equal_checkpoints_give_equal_directories_whatever_was_drawn_before(recipe, run, tmp_path):
    torch.manual_seed(1)
    state = mhlt.build(mhlt.CONFIGS["tiny"]).state_dict()
    del state["audio.masked_spec_embed"]
    r = recipe(state, None, "load.model=mhlt")
    torch.manual_seed(2)
    first = run(r, "first")
    torch.manual_seed(3)
    assert directory_digest(run(r, "second")) == directory_digest(first)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_stored_as_float32_of_the_same_values(recipe, run, dtype):
    out = run(recipe({k: v.to(dtype) for k, v in tiny_state().items()}))
    stored = load_file(out / "model.safetensors")
    assert all(v.dtype is torch.float32 and torch.equal(v, tiny_state()[k].to(dtype).float()) for k, v in stored.items())


def test_extra_heads_are_left_out_and_reported(recipe, run):
    out = run(recipe({**tiny_state(), "fc_arousal.weight": torch.ones(1, 16), "fc_arousal.bias": torch.zeros(1)}))
    assert FloatModel.open(out).meta["provenance"]["unused_keys"] == ["fc_arousal.bias", "fc_arousal.weight"]
    assert load_file(out / "model.safetensors").keys() == tiny_state().keys()


def test_provenance_is_the_checkpoints_sha256_and_what_stands_beside_it(recipe, run, tmp_path):
    training = {"trained_by": "edgekit train", "licence": "CC0-1.0", "log": []}
    out = run(recipe(None, json.dumps(training)))
    assert FloatModel.open(out).meta["provenance"] == {"checkpoint_sha256": hash_file(tmp_path / "weights.safetensors"), "unused_keys": [], "training": training}


def test_provenance_may_be_missing(recipe, run):
    assert "training" not in FloatModel.open(run(recipe())).meta["provenance"]


def test_provenance_is_in_the_key(recipe):
    files = [load.plan(recipe(None, text), None)[1] for text in (None, "{}", '{"licence": "MIT"}')]
    assert [set(f) for f in files] == [{"checkpoint"}, {"checkpoint", "provenance"}, {"checkpoint", "provenance"}]
    assert all(isinstance(source, FileSource) for f in files for source in f.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"weights.json: not JSON .*\n  hint: move it away"),
        ("\x00\udcff", r"weights.json: not JSON"),
        ("[" * 100_000, r"weights.json: not JSON"),
        ("[1]", r"weights.json: provenance must be a JSON object, got list"),
        ('{"sha256": "abc"}', r"weights.json: describes a checkpoint with sha256 abc, beside it is [0-9a-f]{64}"),
    ],
    ids=["cut off", "not text", "deep", "list", "another checkpoint's"],
)
def test_provenance_that_cannot_be_this_checkpoints_is_refused(recipe, run, tmp_path, text, message):
    r = recipe(None, "{}")
    (tmp_path / "weights.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=message) as caught:
        run(r)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("fc.bias"), r"weights.safetensors: 1 weights are missing: fc.bias"),
        (lambda s: s.update({"fc.weight": torch.ones(3, 99)}), r"`fc.weight` is \[3, 99\], this model has \[3, 16\]"),
        (lambda s: s["conv.weight"].fill_(float("nan")), r"`conv.weight` has 648 values that are NaN"),
        (lambda s: (s.clear(), s.update(mhlt.build(mhlt.CONFIGS["tiny"]).state_dict())), r"another model's checkpoint: 8 of 8 weights are missing, first `conv.weight`"),
        (lambda s: (s.clear(), s.update({"a": torch.ones(1)})), r"another model's checkpoint"),
    ],
    ids=["missing", "shape", "nan", "another model", "nothing of it"],
)
def test_a_checkpoint_that_does_not_fit_is_refused_and_nothing_is_written(recipe, run, tmp_path, change, message):
    state = tiny_state()
    change(state)
    with pytest.raises(CheckpointError, match=message):
        run(recipe(state))
    assert not list((tmp_path / "out").iterdir())


def test_another_size_of_the_same_model_is_refused(recipe, run):
    with pytest.raises(CheckpointError, match=r"this model has .*\n  hint: check `load.config`|missing"):
        run(recipe(mhlt.build(mhlt.CONFIGS["tiny"]).state_dict(), None, "load.model=mhlt", "load.config=small"))


@pytest.mark.parametrize("content", [b"", b"\x80\x04garbage", b"\x10" * 40])
def test_a_damaged_checkpoint_is_refused(recipe, run, tmp_path, content):
    r = recipe()
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="weights.safetensors: not a whole safetensors file"):
        run(r)


def test_a_plan_refuses_a_missing_checkpoint_and_an_unknown_configuration(recipe, tmp_path):
    r = recipe()
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(RecipeError, match=r"toy.yaml:3: `load.checkpoint` does not exist"):
        load.plan(r, None)
    with pytest.raises(RecipeError, match=r"`load.config`: model `mhlt` has no configuration `smal`\n  hint: did you mean `small`"):
        load.plan(recipe(None, None, "load.model=mhlt", "load.config=smal"), None)

"""The chain: parts from several checkpoints, α on either level, and a flow that computes what the module does."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edgekit import models
from edgekit.errors import CheckpointError, RecipeError
from edgekit.float_model import FloatModel, torch_session
from edgekit.flow import run_flow, runs_per_window
from edgekit.models import checkpoint, dccrnpp, mhlt, mhlt_robust, narrow
from edgekit.models.groups import heads_after, remove
from edgekit.recipe import load_recipe
from edgekit.stages import Job, load


def built(name: str, seed: int = 0):
    config = mhlt_robust.CONFIGS[name]
    torch.manual_seed(seed)
    module = mhlt_robust.fold(mhlt_robust.build(config)).eval()
    return config, module


def run(config, module, inputs):
    engines = mhlt_robust.engines(module, config)
    flow = {**mhlt_robust.flow(config), "states": {e.name: [s.to_json() for s in e.states] for e in engines if e.states}}
    tensors: dict = {}
    sessions = {engine.name: torch_session(engine) for engine in engines}
    return run_flow(flow, sessions, inputs, also=tensors), tensors, sessions


@pytest.fixture
def inputs():
    config = mhlt_robust.CONFIGS["tiny"]
    rng = np.random.default_rng(5)
    video = rng.normal(0, 1, (config.mhlt.clips, 3, config.mhlt.frames, config.mhlt.height, config.mhlt.width))
    return {"video": np.float32(video), "wave": np.float32(rng.normal(0, 0.1, config.mhlt.samples))}


@pytest.mark.parametrize("name", ["tiny", "tiny_feature"])
def test_four_engines_and_the_host_compute_what_the_module_does(name, inputs):
    config, module = built(name)
    got, _, sessions = run(config, module, inputs)
    assert list(sessions) == ["denoiser", "clip_encoder", "audio_encoder", "head"]
    with torch.inference_mode():
        want = module(*(torch.from_numpy(inputs[k])[None] for k in ("video", "wave")))
    # After the window's last frame the stream hears silence, the module nothing: its last three frames, of 250, have other masks.
    for output, limit in (("o", 1e-3), ("a", 1e-3), ("v", 1e-5), ("alpha", 1e-3), ("snr_db", 0.02)):
        assert abs(float(got[output]) - float(want[output])) < limit, output
    assert got["o"].shape == got["alpha"].shape == ()


def test_on_the_level_of_decisions_alpha_weighs_the_joint_answer_against_the_face(inputs):
    config, module = built("tiny")
    config = replace(config, alpha=mhlt_robust.Alpha(floor=0.2))
    got, tensors, _ = run(config, module, inputs)
    alpha = float(tensors["alpha"])
    assert alpha == pytest.approx(0.2)  # random weights denoise nothing
    assert float(got["o"]) == pytest.approx(alpha * float(tensors["o_heard"]) + (1 - alpha) * float(got["v"]), abs=1e-6)


@pytest.mark.parametrize("name", ["tiny", "tiny_feature"])
def test_with_alpha_1_it_is_mhlt_on_the_denoised_wave(name, inputs):
    config, module = built(name)
    _, tensors, sessions = run(config, module, inputs)
    found = {}
    for other, flow in mhlt_robust.comparisons(config).items():
        shapes = {key: {"shape": list(np.shape(tensors[key])), "dtype": "float32"} for key in flow["inputs"]}
        found[other] = float(run_flow({**flow, "inputs": shapes}, sessions, tensors)["o"])
    video = torch.from_numpy(inputs["video"])[None]
    with torch.inference_mode():
        for other, wave in (("mhlt", inputs["wave"]), ("alpha_1", tensors["mixed"])):
            alone = module.mhlt(video, mhlt_robust.normalized(torch.from_numpy(wave)[None]))["o"]
            assert found[other] == pytest.approx(float(alone), abs=1e-5), other
    assert found["mhlt"] != found["alpha_1"]


def test_without_a_voice_only_the_face_counts(inputs):
    """α = 0 on the level of features: the joint answer no longer depends on what is heard."""
    config, module = built("tiny_feature")
    head = mhlt_robust.Head(module.mhlt)
    clips = torch.randn(1, config.mhlt.clips, config.mhlt.last)
    heard = [torch.randn(1, mhlt.frames(config.mhlt.samples), config.mhlt.hubert.hidden) for _ in range(2)]
    with torch.inference_mode():
        silent, share = ([head(clips, h, torch.full((1,), alpha))[0].item() for h in heard] for alpha in (0.0, 0.5))
    assert silent[0] == silent[1] and share[0] != share[1]


def test_the_flow_says_rates_states_and_what_the_host_does():
    config = mhlt_robust.CONFIGS["small"]
    flow = mhlt_robust.flow(config)
    assert [step["step"] for step in flow["host_steps"]] == ["preprocess", "stft", "masked_istft", "match", "snr", "alpha", "alpha", "blend", "normalize", "blend", "keep", "clamp"]
    assert set(flow["rates_hz"]) == {"denoiser", "clip_encoder", "audio_encoder", "head"}
    assert flow["rates_hz"]["denoiser"] == 10 and flow["rates_hz"]["clip_encoder"] == pytest.approx(4 / 3)
    runs = runs_per_window(flow)
    assert runs["clip_encoder"] == 4 and runs["denoiser"] == -(-(483 + 6) // 16)  # frames of 3 s, 6 late, 16 at a time
    with torch.no_grad():
        [engine] = [e for e in mhlt_robust.engines(built("small")[1], config) if e.name == "denoiser"]
    assert engine.states


def test_parts_keep_their_own_spellings_and_a_head_replaces_mhlts():
    config, module = built("tiny_feature")
    state = {f"denoiser.module.{k.removeprefix('denoiser.')}": v for k, v in module.state_dict().items() if k.startswith("denoiser.")}
    state |= {f"mhlt.{k.removeprefix('mhlt.')}": v for k, v in module.state_dict().items() if k.startswith("mhlt.")}
    new = torch.full_like(module.mhlt.fc_o.weight, 0.5)
    found = mhlt_robust.normalize_keys({**state, "head.mhlt.fc_o.weight": new}, config)
    assert set(found) >= {k for k in module.state_dict() if not k.endswith("masked_spec_embed")}
    assert torch.equal(found["mhlt.fc_o.weight"], new)
    with pytest.raises(CheckpointError, match=r"`audio.x` is not of MHLT's head"):
        mhlt_robust.normalize_keys({**state, "head.audio.x": new}, config)
    with pytest.raises(CheckpointError, match="`video` is no part of this model"):
        mhlt_robust.normalize_keys({"video.x": new}, config)


def saved_parts(folder) -> None:
    """d.safetensors and m.safetensors, with random weights."""
    config = mhlt_robust.CONFIGS["tiny_feature"]
    for seed, (name, definition, part) in enumerate((("d", dccrnpp, config.denoiser), ("m", mhlt, config.mhlt))):
        torch.manual_seed(seed)
        save_file(definition.fold(definition.build(part)).state_dict(), folder / f"{name}.safetensors")


def project(tmp_path, checkpoints: str):
    (tmp_path / "calibration").mkdir(exist_ok=True)
    (tmp_path / "calibration/set.yaml").write_text("dataset: synthetic_av_noisy\nclips: {train: 2, calibration: 2, test: 1}\nsplits: {train: 4, calibration: 2, test: 4}\n")
    recipe = tmp_path / "car.yaml"
    load_line = f"load: {{model: mhlt_robust, config: tiny_feature, checkpoint: {checkpoints}}}"
    recipe.write_text(f"target: jetson_xavier\n{load_line}\ncalibrate: {{data: set, clips: 1}}\nverify: {{data: set}}\n")
    return load_recipe(recipe)


def test_load_takes_one_checkpoint_for_each_part_and_their_digests_make_the_key(tmp_path):
    saved_parts(tmp_path)
    (tmp_path / "m.json").write_text(json.dumps({"licence": "CC0-1.0"}))
    recipe = project(tmp_path, "{denoiser: d.safetensors, mhlt: m.safetensors}")
    spec, files = load.plan(recipe, None)
    assert set(files) == {"checkpoint.denoiser", "checkpoint.mhlt", "provenance.mhlt"}
    out = tmp_path / "out"
    out.mkdir()
    load.run(Job(spec, {}, files, out, tmp_path, tmp_path))
    model = FloatModel.open(out)
    digests = {part: files[f"checkpoint.{part}"].digest() for part in ("denoiser", "mhlt")}
    assert model.meta["provenance"] == {"checkpoint_sha256": digests, "unused_keys": [], "training": {"mhlt": {"licence": "CC0-1.0"}}}
    kept = model.module().state_dict()
    assert torch.equal(kept["mhlt.fc_o.weight"], checkpoint.read_state(tmp_path / "m.safetensors")["fc_o.weight"])
    assert set(model.comparisons()) == {"mhlt", "alpha_1"}
    assert set(model.flow["states"]) == {"denoiser"}


@pytest.mark.parametrize(
    "checkpoints, message",
    [
        ("d.safetensors", "is put together of several checkpoints"),
        ("{denoiser: d.safetensors}", "part `mhlt` is missing"),
        ("{denoiser: d.safetensors, mhlt: d.safetensors, lips: d.safetensors}", "has no part `lips`"),
        ("{denoiser: d.safetensors, mhlt: gone.safetensors}", r"car.yaml:2: `load.checkpoint.mhlt` does not exist"),
    ],
)
def test_wrong_parts_are_refused_by_name(tmp_path, checkpoints, message):
    (tmp_path / "d.safetensors").write_bytes(b"")
    with pytest.raises(RecipeError, match=message):
        load.plan(project(tmp_path, checkpoints), None)


def test_a_model_of_one_checkpoint_takes_no_parts():
    with pytest.raises(RecipeError, match="model `mhlt` has one checkpoint"):
        models.require_parts("mhlt", {"mhlt": "m.safetensors"})


@pytest.mark.parametrize("name", ["tiny", "tiny_feature"])
def test_pruning_cuts_both_models_and_the_rest_still_runs(name, inputs):
    config, module = built(name)
    groups = mhlt_robust.prune_groups(module, config)
    assert {group.name.split(".")[0] for group in groups} == {"denoiser", "mhlt"}
    assert any("fusion" in group.name for group in groups) == (name == "tiny")
    cut = {g.name: {axis.name: list(range(axis.step)) for axis in g.axes} for g in groups if g.granules > 1}
    state = remove(module.state_dict(), groups, cut)
    smaller = mhlt_robust.fold(mhlt_robust.build(config))
    narrow.fit(smaller, state, heads_after(narrow.heads(module), groups, cut))
    smaller.load_state_dict(state)
    got, _, _ = run(config, smaller.eval(), inputs)
    assert np.isfinite(got["o"]) and sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in module.parameters())


def test_training_teaches_the_head_alone_on_frozen_features():
    config, _ = built("tiny_feature")
    module = mhlt_robust.for_training(mhlt_robust.build(config)).train()
    with torch.no_grad():
        batch = mhlt_robust.encode(module.eval(), {"video": torch.randn(3, config.mhlt.clips, 3, 8, 32, 32), "wave": 0.1 * torch.randn(3, config.mhlt.samples)})
    out = mhlt_robust.train_forward(module.train(), batch)
    assert set(out) == {"o", "a", "v"}
    sum(value.abs().sum() for value in out.values()).backward()
    learned = {name for name, parameter in module.named_parameters() if parameter.grad is not None and parameter.grad.abs().sum() > 0}
    assert learned and all(name.startswith(mhlt_robust.TAUGHT) for name in learned)


def test_a_head_that_edgekit_trained_goes_behind_the_encoders(tmp_path):
    """From two checkpoints, `edgekit train` makes a third with the head alone, and load puts the three together."""
    from edgekit.training import train_from_file

    saved_parts(tmp_path)
    project(tmp_path, "{denoiser: d.safetensors, mhlt: m.safetensors, head: h.safetensors}")
    (tmp_path / "train.yaml").write_text(
        "model: mhlt_robust\nconfig: tiny_feature\ndata: set\nvalidate_clips: 2\nfrozen_encoders: true\n"
        "init: {denoiser: d.safetensors, mhlt: m.safetensors}\njoint: {epochs: 2, batch: 2, lr: 1.0e-3}\nout: h.safetensors\n"
    )
    head = checkpoint.read_state(train_from_file(tmp_path / "train.yaml", (), tmp_path / ".edgekit"))
    assert head and all(key.startswith(mhlt_robust.TAUGHT) for key in head)
    recipe = load_recipe(tmp_path / "car.yaml")
    spec, files = load.plan(recipe, None)
    assert {"checkpoint.head", "provenance.head"} <= set(files)
    out = tmp_path / "out"
    out.mkdir()
    load.run(Job(spec, {}, files, out, tmp_path, tmp_path))
    module, before = FloatModel.open(out).module(), checkpoint.read_state(tmp_path / "m.safetensors")
    assert torch.equal(module.mhlt.fc_o.weight, head["mhlt.fc_o.weight"]) and not torch.equal(module.mhlt.fc_o.weight, before["fc_o.weight"])
    assert torch.equal(module.mhlt.fc_v.weight, before["fc_v.weight"])


def test_from_full_db_on_the_wave_itself_is_heard_and_below_the_knee_the_speech_alone():
    alpha = mhlt_robust.CONFIGS["small"].alpha
    snr_db = torch.tensor([-10.0, alpha.knee_db, (alpha.knee_db + alpha.full_db) / 2, alpha.full_db, 40.0])
    assert alpha.wave.of(snr_db).tolist() == pytest.approx([0, 0, 0.5, 1, 1])
    assert alpha.of(snr_db).tolist() == pytest.approx([0.25, 0.3, 0.65, 1, 1])

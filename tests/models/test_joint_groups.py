"""Every group of AVER and its baseline names all that carries its units: without them the model is what it was with them silenced."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from edgekit import pruning
from edgekit.flow import runs_per_window
from edgekit.models import aver, groups, jca, narrow

MODELS = {"aver": (aver, aver.TINY), "paper": (aver, replace(aver.TINY, form="paper")), "jca": (jca, jca.CONFIGS["tiny"])}


@functools.cache
def model(name: str) -> nn.Module:
    """With all biases, statistics and starts other than zero, so that a silenced unit is silent for no other reason."""
    definition, cfg = MODELS[name]
    torch.manual_seed(3)
    module = definition.fold(definition.build(cfg)).eval()
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if key.endswith("bias") or "init_hidden" in key:
                parameter.uniform_(-0.5, 0.5)
        for sub in module.modules():
            if isinstance(sub, (nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm)):
                sub.weight.uniform_(0.5, 1.5)
            if isinstance(sub, (nn.BatchNorm2d, nn.BatchNorm3d)):
                sub.running_mean.uniform_(-0.5, 0.5)
                sub.running_var.uniform_(0.5, 1.5)
    return module


@functools.cache
def all_groups(name: str) -> dict[str, groups.Group]:
    definition, cfg = MODELS[name]
    return {g.name: g for g in definition.prune_groups(model(name), cfg)}


def fusion_names(name: str) -> list[str]:
    return [group for group in all_groups(name) if group.startswith("fusion.")]


def some_units(group: groups.Group, granules: int) -> dict[str, list[int]]:
    """Units out of order and different on every axis, as a ranking would give them."""
    generator = torch.Generator().manual_seed(len(group.name))
    return {a.name: torch.randperm(a.units, generator=generator)[: granules * a.step].tolist() for a in group.axes}


def silenced(name: str, cut: groups.Cut) -> dict[str, Tensor]:
    """The state with everything at zero that reads a cut unit."""
    state = {k: v.clone() for k, v in model(name).state_dict().items()}
    for key, slices in groups.slices_by_tensor(all_groups(name).values(), cut).items():
        state[key][groups.mark(state[key].shape, [(s, u) for s, u in slices if s.role == "in"])] = 0.0
    return state


def with_state(name: str, state: dict[str, Tensor]) -> nn.Module:
    definition, cfg = MODELS[name]
    module = definition.build(cfg).eval()
    narrow.fit(module, state, {})
    module.load_state_dict(state, strict=True)
    return module


def outputs(module: nn.Module) -> Tensor:
    """Both outputs for two windows of video, sound and, where a backbone's own features hide little changes, features drawn at random."""
    generator = torch.Generator().manual_seed(1)
    cfg = aver.TINY
    video = torch.randn(2, cfg.steps, 3, cfg.frames, cfg.height, cfg.width, generator=generator)
    mel = torch.randn(2, cfg.steps, 1, cfg.mel.n_mels, cfg.mel.frames, generator=generator)
    with torch.inference_mode():
        seen, heard = module.encode_video(video), module.encode_audio(mel)
        drawn = module.fusion(torch.randn(seen.shape, generator=generator), torch.randn(heard.shape, generator=generator))
        return torch.cat([seen.flatten(), heard.flatten(), torch.stack([*module.fusion(seen, heard), *drawn]).flatten()])


EVERY = [(model_name, group) for model_name in MODELS for group in fusion_names(model_name)]
BACKBONES = [("aver", group) for group in all_groups("aver") if not group.startswith("fusion.")]


@pytest.mark.parametrize(("name", "group"), [*EVERY, *BACKBONES])
def test_removing_units_that_nobody_reads_changes_nothing(name, group):
    group = all_groups(name)[group]
    cut = {group.name: some_units(group, max(1, group.granules // 2))}
    state = groups.remove(model(name).state_dict(), [group], cut)
    wide, slim = outputs(with_state(name, silenced(name, cut))), outputs(with_state(name, state))
    assert sum(v.numel() for v in state.values()) < sum(v.numel() for v in model(name).state_dict().values())
    # 1e-5: float32 sums of up to a thousand terms in another order
    assert torch.allclose(slim, wide, atol=1e-5, rtol=1e-5)
    # ... and the units mattered, or slices that miss would pass too
    assert (wide - outputs(model(name))).abs().max() > 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_all_groups_can_be_cut_at_once_and_again(name):
    definition, cfg = MODELS[name]
    every = list(all_groups(name).values())
    cut = {g.name: some_units(g, max(1, g.granules // 2)) for g in every}
    slim = with_state(name, groups.remove(model(name).state_dict(), every, cut))
    assert torch.allclose(outputs(slim), outputs(with_state(name, silenced(name, cut))), atol=1e-5, rtol=1e-5)
    again = {g.name: g for g in definition.prune_groups(slim, cfg)}
    assert list(again) == list(all_groups(name))
    assert all(again[g.name].units == g.units - len(next(iter(cut[g.name].values()))) for g in every)
    group = next(g for g in again.values() if g.granules > 1 and g.name.startswith("fusion."))
    with_state(name, groups.remove(slim.state_dict(), [group], {group.name: some_units(group, 1)}))
    assert [tuple(e.outputs.items()) for e in definition.engines(slim, cfg)] == [tuple(e.outputs.items()) for e in definition.engines(model(name), cfg)]


@pytest.mark.parametrize("name", MODELS)
def test_what_cannot_be_pruned_is_named_and_nothing_else_is_left_out(name):
    """Every layer with weights makes a group's units, or is one of those that UNPRUNABLE gives a reason for, or reads steps or positions."""
    definition, _ = MODELS[name]
    made = {m for g in all_groups(name).values() for axis in g.axes for s in axis.slices if s.axis == 0 for m in [s.module]}
    layers = {path for path, sub in model(name).named_modules() if isinstance(sub, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.LSTM))}
    left = {path for path in layers - made if not any(path == u or path.startswith(f"{u}.") for u in definition.UNPRUNABLE)}
    assert left == {
        "aver": {
            *(f"fusion.coattn.dcn_layers.{i}.{part}" for i in (0, 1) for part in ("dense_coattn.key1_linear", "dense_coattn.key2_linear")),
            *(f"fusion.coattn.dcn_layers.{i}.{part}" for i in (0, 1) for part in ("dense_coattn.value1_linear", "dense_coattn.value2_linear", "linears.0.0", "linears.1.0")),
            *(f"fusion.audio_tlab.tcn.network.{i}.conv2" for i in (0, 1)),
            "fusion.avga.attn.affine_g", "fusion.avga.attn.affine_h",
        },
        "paper": {
            *(f"fusion.{m}_tlab.tcn.network.{i}.conv2" for i in (0, 1) for m in ("audio", "video")), "fusion.head.3",
        },
        "jca": {
            *(f"fusion.coattn.dcn_layers.0.dense_coattn.{part}" for part in ("key1_linear", "key2_linear", "value2_linear")),
            "fusion.avga.attn.affine_g", "fusion.avga.attn.affine_h",
        },
    }[name]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_pruning_finds_a_cut_of_the_macs_by_the_loss(name):
    """Taylor scores by the model's own loss, a cut to 0.8 of the MACs, and what is left counted anew."""
    definition, cfg = MODELS[name]
    module, every = model(name), list(all_groups(name).values())
    runs = runs_per_window(definition.flow(cfg))
    generator = torch.Generator().manual_seed(2)

    def clip() -> tuple[dict, dict]:
        video = torch.randn(1, cfg.steps, 3, cfg.frames, cfg.height, cfg.width, generator=generator)
        mel = torch.randn(1, cfg.steps, 1, cfg.mel.n_mels, cfg.mel.frames, generator=generator)
        return {"video": video, "mel": mel}, {k: torch.rand(1, cfg.steps, generator=generator) for k in aver.OUTPUTS}

    scores = pruning.taylor_scores(every, module, [clip(), clip()], definition.loss, definition.train_forward)
    macs = pruning.mac_model(module, definition.engines(module, cfg), runs, every)
    cut = pruning.choose(every, scores, macs, 0.8, weigh_by_macs=False)
    slim = with_state(name, groups.remove(module.state_dict(), every, cut))
    left = pruning.mac_model(slim, definition.engines(slim, cfg), runs, definition.prune_groups(slim, cfg))
    assert left.total / macs.total == pytest.approx(0.8, abs=pruning.TOLERANCE)

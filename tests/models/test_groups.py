"""A group names everything that must go together: units that nobody reads can be removed without a trace."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.models import groups, mhlt, narrow
from edgekit.models.groups import Slice

CFG = mhlt.CONFIGS["tiny"]
LAST_OF_STEM = "audio.feature_extractor.conv_layers.6.conv"


@functools.cache
def model() -> mhlt.MHLT:
    torch.manual_seed(3)
    module = mhlt.fold(mhlt.build(CFG)).eval()
    with torch.no_grad():
        for sub in module.modules():
            if isinstance(sub, (nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)):  # as built they treat all channels alike
                sub.weight.uniform_(0.5, 1.5)
                sub.bias.uniform_(-0.5, 0.5)
            if isinstance(sub, nn.Conv3d):  # as built, the signal dies out on its way
                nn.init.kaiming_normal_(sub.weight)
            if isinstance(sub, nn.BatchNorm3d):
                sub.running_mean.uniform_(-0.5, 0.5)
                sub.running_var.uniform_(0.5, 1.5)
    return module


@functools.cache
def all_groups() -> dict[str, groups.Group]:
    return {g.name: g for g in mhlt.prune_groups(model(), CFG)}


GROUPS = [
    "video.features.0.0", "video.features.2.conv.0", "video.features.2.conv.6", "video.features.3.conv.0",
    "video.features.4.conv.0", "video.features.4.conv.6", "video.features.5.0",
    *(f"audio.feature_extractor.conv_layers.{i}.conv" for i in range(7)),
    "audio.encoder.layers.0.attention", "audio.encoder.layers.0.feed_forward",
    "audio.encoder.layers.1.attention", "audio.encoder.layers.1.feed_forward",
    "fusion",
]  # fmt: skip


def some_units(group: groups.Group, granules: int) -> dict[str, list[int]]:
    """Units out of order and different on every axis, as a ranking would give them."""
    generator = torch.Generator().manual_seed(len(group.name))
    return {a.name: torch.randperm(a.units, generator=generator)[: granules * a.step].tolist() for a in group.axes}


def silenced(module: nn.Module, cut: groups.Cut) -> dict[str, Tensor]:
    """The state with everything at zero that reads a cut unit."""
    state = {k: v.clone() for k, v in module.state_dict().items()}
    for key, slices in groups.slices_by_tensor(all_groups().values(), cut).items():
        state[key][groups.mark(state[key].shape, [(s, u) for s, u in slices if s.role == "in"])] = 0.0
    return state


def with_state(state: dict[str, Tensor], heads: dict[str, int]) -> mhlt.MHLT:
    module = mhlt.fold(mhlt.build(CFG)).eval()
    narrow.fit(module, state, heads)
    module.load_state_dict(state, strict=True)
    return module


def outputs(module: mhlt.MHLT) -> Tensor:
    """HuBERT's features and all three heads on two windows, in one row."""
    generator = torch.Generator().manual_seed(1)
    video = torch.randn(2, CFG.clips, 3, CFG.frames, CFG.height, CFG.width, generator=generator)
    wave = torch.randn(2, CFG.samples, generator=generator)
    with torch.inference_mode():
        audio = module.encode_audio(wave)
        out = module.fuse(module.encode_clips(video), audio)
    return torch.cat([audio.flatten(), *(out[k] for k in mhlt.OUTPUTS)])


class NormOfSome(nn.Module):
    """LayerNorm over some channels only; zero elsewhere."""

    def __init__(self, norm: nn.LayerNorm, kept: Tensor):
        super().__init__()
        self.norm, self.kept = norm, kept

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[..., self.kept] = F.layer_norm(x[..., self.kept], (len(self.kept),), self.norm.weight[self.kept], self.norm.bias[self.kept], self.norm.eps)
        return out


def test_mhlt_has_these_groups():
    assert sorted(all_groups()) == sorted(GROUPS)


@pytest.mark.parametrize("name", GROUPS)
def test_removing_units_that_nobody_reads_changes_nothing(name):
    group = all_groups()[name]
    cut = {name: some_units(group, group.granules // 2)}
    wide = with_state(silenced(model(), cut), narrow.heads(model()))
    if name == LAST_OF_STEM:  # LayerNorm's mean and variance see every channel, read or not
        removed = set(cut[name]["units"])
        kept = torch.tensor([i for i in range(group.units) if i not in removed])
        wide.audio.feature_projection.layer_norm = NormOfSome(wide.audio.feature_projection.layer_norm, kept)
    heads = groups.heads_after(narrow.heads(model()), [group], cut)
    slim = with_state(groups.remove(model().state_dict(), [group], cut), heads)
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in model().parameters())
    # 1e-5: float32 sums of up to 1e3 terms in another order
    assert torch.allclose(outputs(slim), outputs(wide), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", GROUPS)
def test_the_removed_units_mattered(name):
    """Otherwise the test above would pass for slices that miss."""
    group = all_groups()[name]
    cut = {name: some_units(group, group.granules // 2)}
    silent = with_state(silenced(model(), cut), narrow.heads(model()))
    assert (outputs(silent) - outputs(model())).abs().max() > 1e-4


def test_all_groups_can_be_cut_at_once_and_every_output_stays_finite():
    every = list(all_groups().values())
    cut = {g.name: some_units(g, g.granules // 2) for g in every}
    wide = silenced(model(), {k: v for k, v in cut.items() if k != LAST_OF_STEM})
    slim = with_state(groups.remove(model().state_dict(), every, cut), groups.heads_after(narrow.heads(model()), every, cut))
    assert outputs(slim).isfinite().all()
    assert narrow.heads(slim) == dict.fromkeys(narrow.heads(model()), 2)
    # Without the LayerNorm's group, whose statistics move, all of it together is exact too.
    others = [g for g in every if g.name != LAST_OF_STEM]
    slim = with_state(groups.remove(model().state_dict(), others, cut), groups.heads_after(narrow.heads(model()), others, cut))
    assert torch.allclose(outputs(slim), outputs(with_state(wide, narrow.heads(model()))), atol=1e-5, rtol=1e-5)


def test_a_pruned_model_can_be_grouped_and_cut_again():
    group = all_groups()["fusion"]
    cut = {"fusion": some_units(group, 1)}
    slim = with_state(groups.remove(model().state_dict(), [group], cut), groups.heads_after(narrow.heads(model()), [group], cut))
    again = {g.name: g for g in mhlt.prune_groups(slim, CFG)}["fusion"]
    assert [(a.name, a.units, a.step) for a in again.axes] == [("lstm_v", 24, 8), ("lstm_a", 24, 8), ("heads", 3, 1), ("fused", 24, 8)]


def test_grouping_leaves_the_model_as_it_was():
    module = model()
    state = {k: v.clone() for k, v in module.state_dict().items()}
    mhlt.prune_groups(module, CFG)
    assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


def test_the_residual_stream_of_hubert_is_in_no_group():
    touched = {(s.key, s.axis) for g in all_groups().values() for a in g.axes for s in a.slices}
    assert ("audio.feature_projection.projection.weight", 0) not in touched
    assert not any("pos_conv" in key or key.startswith("audio.encoder.layer_norm") for key, _ in touched)


def test_every_unpruned_layer_of_the_note_exists():
    paths = dict(model().named_modules())
    assert set(mhlt.UNPRUNABLE) <= set(paths)


def test_axes_of_one_group_must_lose_equally():
    cut = {"fusion": {"lstm_v": list(range(8))}}
    with pytest.raises(ValueError, match="in_proj_weight"):
        groups.remove(model().state_dict(), list(all_groups().values()), cut)


def test_a_slice_covers_every_gate_of_its_unit():
    assert Slice("lstm", "weight_ih_l0", 0, "out", starts=(0, 3, 6, 9)).positions([1]) == [[1, 4, 7, 10]]
    assert Slice("attn", "in_proj_weight", 0, "out", starts=(0, 4, 8), width=2).positions([0, 1]) == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]


@pytest.mark.parametrize(("width", "step"), [(1280, 8), (32, 8), (24, 4), (16, 4), (12, 2), (8, 2), (7, 1), (1, 1)])
def test_channels_go_by_eight_where_that_leaves_a_choice(width, step):
    assert groups.channel_step(width) == step

"""A module takes the widths of any consistent state dict, and refuses the others by name."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from edgekit.errors import CheckpointError
from edgekit.models import mhlt, narrow

CFG = mhlt.CONFIGS["tiny"]


def fitted(wide: nn.Module, slim: nn.Module, example: torch.Tensor | tuple) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of `slim`, and of `wide` after it was given slim's widths and weights."""
    state = {k: v.clone() for k, v in slim.state_dict().items()}
    narrow.fit(wide, state, narrow.heads(slim))
    wide.load_state_dict(state, strict=True)
    arguments = example if isinstance(example, tuple) else (example,)
    first = [m.eval()(*arguments) for m in (slim, wide)]
    return tuple(out[0] if isinstance(out, tuple) else out for out in first)  # type: ignore[return-value]


def conv_net(make, norm, c: int) -> nn.Module:
    return nn.Sequential(make(3, c, 3, bias=False), norm(c), make(c, c, 3, groups=c), make(c, 2, 1))


LAYERS = {
    "conv 1d": (lambda c: conv_net(nn.Conv1d, nn.BatchNorm1d, c), torch.randn(2, 3, 9)),
    "conv 2d": (lambda c: conv_net(nn.Conv2d, nn.BatchNorm2d, c), torch.randn(2, 3, 9, 9)),
    "conv 3d": (lambda c: conv_net(nn.Conv3d, nn.BatchNorm3d, c), torch.randn(2, 3, 9, 9, 9)),
    "grouped conv": (lambda c: nn.Sequential(nn.Conv1d(3, c, 1), nn.Conv1d(c, 2 * c, 3, groups=c // 4)), torch.randn(2, 3, 9)),
    "transposed conv": (lambda c: nn.Sequential(nn.Conv2d(3, c, 1), nn.ConvTranspose2d(c, 2, 3)), torch.randn(2, 3, 9, 9)),
    "group norm, a channel each": (lambda c: nn.Sequential(nn.Conv1d(3, c, 3), nn.GroupNorm(c, c)), torch.randn(2, 3, 9)),
    "group norm": (lambda c: nn.Sequential(nn.Conv1d(3, c, 3), nn.GroupNorm(c // 4, c)), torch.randn(2, 3, 9)),
    "instance norm": (lambda c: nn.Sequential(nn.Conv1d(3, c, 3), nn.InstanceNorm1d(c, affine=True)), torch.randn(2, 3, 9)),
    "linear and layer norm": (lambda c: nn.Sequential(nn.Linear(3, c), nn.LayerNorm(c), nn.Linear(c, 2)), torch.randn(2, 3)),
    "lstm": (lambda c: nn.LSTM(c + 1, c, num_layers=2, bidirectional=True, batch_first=True), None),
    "gru": (lambda c: nn.GRU(5, c, batch_first=True), torch.randn(2, 4, 5)),
    "lstm cell": (lambda c: nn.LSTMCell(5, c), torch.randn(2, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_wide_module_takes_a_slim_ones_widths(name):
    make, example = LAYERS[name]
    example = torch.randn(2, 4, 9) if example is None else example
    torch.manual_seed(0)
    want, got = fitted(make(16), make(8), example)
    assert torch.equal(got, want)


def test_an_attention_keeps_its_head_size_and_drops_heads():
    q, kv = torch.randn(1, 3, 16), torch.randn(1, 5, 16)
    want, got = fitted(nn.MultiheadAttention(32, 4, batch_first=True), nn.MultiheadAttention(16, 2, batch_first=True), (q, kv, kv))
    assert torch.equal(got, want)


def test_heads_are_found_in_both_kinds_of_attention():
    heads = narrow.heads(mhlt.build(CFG))
    assert heads == {"attn": 4, "audio.encoder.layers.0.attention": 4, "audio.encoder.layers.1.attention": 4}


def test_an_unpruned_state_fits_without_a_change():
    module = mhlt.fold(mhlt.build(CFG)).eval()
    state = {k: v.clone() for k, v in module.state_dict().items()}
    other = mhlt.fold(mhlt.build(CFG)).eval()
    narrow.fit(other, state, narrow.heads(module))
    other.load_state_dict(state, strict=True)
    wave = torch.randn(1, CFG.samples)
    assert torch.equal(module.encode_audio(wave), other.encode_audio(wave))


def cut_rows(key: str, axis: int = 0):
    def damage(state, heads):
        state[key] = state[key].narrow(axis, 0, state[key].shape[axis] - 1).clone()

    return damage


def drop(key: str):
    def damage(state, heads):
        del state[key]

    return damage


def add_tensor(state, heads):
    state["audio.extra"] = torch.zeros(1)


def flatten(state, heads):
    state["fc_o.weight"] = state["fc_o.weight"].flatten()


def empty(state, heads):
    state["fc_o.weight"] = state["fc_o.weight"][:, :0]


def wrong_heads(state, heads):
    heads["attn"] = 3


def wrong_audio_heads(state, heads):
    heads["audio.encoder.layers.0.attention"] = 2


def heads_of_nothing(state, heads):
    heads["audio.encoder.layers.7.attention"] = 2


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (cut_rows("video.features.0.1.running_mean"), "video.features.0.1"),
        (cut_rows("video.features.0.0.weight", 4), "video.features.0.0"),
        (cut_rows("audio.encoder.layers.0.feed_forward.output_dense.bias"), "output_dense"),
        (cut_rows("audio.encoder.pos_conv_embed.conv.weight", 1), "pos_conv_embed.conv"),
        (cut_rows("audio.feature_projection.layer_norm.bias"), "feature_projection.layer_norm"),
        (cut_rows("lstm_a.weight_hh_l0"), "lstm_a"),
        (cut_rows("lstm_a.bias_hh_l0"), "lstm_a"),
        (cut_rows("attn.in_proj_weight"), "attn"),
        (cut_rows("attn.in_proj_weight", 1), "attn"),
        (cut_rows("attn.out_proj.weight", 1), "attn"),
        (drop("fc_o.weight"), "fc_o.weight"),
        (add_tensor, "audio.extra"),
        (flatten, "fc_o.weight"),
        (empty, "fc_o.weight"),
        (wrong_heads, "attn"),
        (wrong_audio_heads, "audio.encoder.layers.0.attention"),
        (heads_of_nothing, "audio.encoder.layers.7.attention"),
    ],
)
def test_contradicting_widths_are_refused_by_name(damage, named):
    module = mhlt.fold(mhlt.build(CFG))
    state, heads = dict(module.state_dict()), narrow.heads(module)
    damage(state, heads)
    with pytest.raises(CheckpointError, match=re.escape(named)):
        narrow.fit(module, state, heads)

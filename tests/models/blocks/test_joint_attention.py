"""The fusions' layers compute what is written of them, here with explicit sums."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.models.blocks import joint_attention as ja

C, L, P = 8, 5, 3


def drawn(module: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.uniform_(-0.6, 0.6)
    return module.eval().requires_grad_(False)


def sequence(width: int = C, seed: int = 0) -> Tensor:
    return torch.randn(2, L, width, generator=torch.Generator().manual_seed(seed))


def test_a_vector_gets_length_one_and_zeros_stay_zeros():
    x = sequence() * torch.tensor([1e-2, 1.0, 10.0, 100.0, 1e4]).reshape(L, 1)
    assert torch.allclose(ja.l2_normalize(x), F.normalize(x, dim=-1), atol=1e-7)
    zeros = torch.zeros(1, 4, requires_grad=True)
    y = ja.l2_normalize(zeros)
    y.sum().backward()
    assert not y.any() and zeros.grad.isfinite().all()


def lstm_cell(x: Tensor, h: Tensor, c: Tensor, weights: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    w_ih, w_hh, b_ih, b_hh = weights
    i, f, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def test_a_recurrent_feature_starts_every_layer_and_direction_from_its_own_row():
    module = drawn(ja.RecurrentFeature(C, C, 0.4))
    layer_in = x = sequence()
    for layer in range(2):
        both = []
        for direction, suffix in enumerate(("", "_reverse")):
            weights = tuple(getattr(module.rnn, f"{t}_l{layer}{suffix}") for t in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            row = 2 * layer + direction
            h, c = (module.init_hidden[r].expand(2, -1) for r in (row, 4 + row))
            steps = {}
            for t in range(L) if direction == 0 else reversed(range(L)):
                h, c = lstm_cell(layer_in[:, t], h, c, weights)
                steps[t] = h
            both.append(torch.stack([steps[t] for t in range(L)], 1))
        layer_in = torch.cat(both, -1)
    want = F.normalize(torch.cat([x, layer_in], -1) @ module.linear.weight.T + module.linear.bias, dim=-1)
    assert torch.allclose(module(x), want, atol=1e-6)


def test_temporal_blocks_are_causal_and_reach_13_steps_back():
    module = drawn(ja.TemporalNetwork(C, 0.2))
    x = torch.randn(1, 20, C, generator=torch.Generator().manual_seed(3))
    moved = x.clone()
    moved[0, 4] += 1
    changed = (module(moved) - module(x)).abs().sum(-1)[0] > 0
    assert not changed[:4].any() and changed[4]
    assert not changed[4 + 13 :].any()  # two convolutions of three taps at dilations 1 and 2 see 2 * (2 + 4) steps back


def test_two_heads_ask_what_is_recurrent_and_answer_with_what_is_convolved():
    module, x = drawn(ja.TLAB(C, 2, 1.0)), sequence()
    recurrent, convolved = module.lstm(x), module.tcn(x)
    q, k, v = (fc(y) for fc, y in ((module.query_fc, recurrent), (module.key_fc, convolved), (module.value_fc, convolved)))
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        scores = torch.einsum("bid,bjd->bij", q[..., head], k[..., head]) / math.sqrt(4)
        heads.append(torch.einsum("bij,bjd->bid", scores.softmax(-1), v[..., head]))
    want = module.layer_norm(recurrent + module.out_fc(torch.cat(heads, -1)))
    assert torch.allclose(module(x), want, atol=1e-6)


def test_audio_adds_one_number_to_each_position_and_rows_mix_channels_as_they_lie():
    module = drawn(ja.AudioGuidedAttention(C, P))
    a, video, audio = module.attn, sequence(P * C, 1), sequence(C, 2)
    want = torch.zeros(2, L, C)
    for n in range(2):
        for step in range(L):
            rows = [video[n, step, p * C : (p + 1) * C] for p in range(P)]  # not channel by channel, which is how the map was flattened
            g = a.affine_g(a.affine_audio(audio[n, step]).relu())
            z = torch.stack([a.affine_h((a.affine_v(a.affine_video(row).relu()) + g[p]).tanh())[0] for p, row in enumerate(rows)])
            want[n, step] = a.affine_feat(sum(w * row for w, row in zip(z.softmax(0), rows, strict=True)))
    assert torch.allclose(module(video, audio), want, atol=1e-6)


def test_co_attention_correlates_each_stream_with_both_over_the_steps():
    module = drawn(ja.CoAttentionLayer(C, L, 0.4))
    video, audio = sequence(seed=1), sequence(seed=2)
    d, joint = module.dense_coattn, module.dense_coattn.query_linear(torch.cat([video, audio], -1))
    got = module(video, audio)
    for i, (x, key, value) in enumerate(((video, d.key1_linear, d.value1_linear), (audio, d.key2_linear, d.value2_linear))):
        mixed = torch.einsum("blc,ml->bcm", x, key.weight) + key.bias  # over the steps, for every channel
        correlation = torch.tanh(torch.einsum("bcm,bmj->bcj", mixed, joint) / math.sqrt(2 * C))
        h = torch.tanh(torch.einsum("blc,bcj->blj", value(x), correlation)).relu()
        assert torch.allclose(got[i], x + (h @ module.linears[i][0].weight.T + module.linears[i][0].bias).relu(), atol=1e-6)


def test_the_literal_block_attends_forth_and_back():
    """A_G (A_L V), both over sqrt(d) of the whole width."""
    module, x = drawn(ja.LiteralTLAB(C, 1.0)), sequence()
    recurrent, convolved = module.lstm(x)[0], module.tcn(x)
    q, k, v = module.query_fc(recurrent), module.key_fc(convolved), module.value_fc(convolved)
    forth = (torch.einsum("bid,bjd->bij", q, k) / math.sqrt(C)).softmax(-1)
    back = (torch.einsum("bid,bjd->bij", k, q) / math.sqrt(C)).softmax(-1)
    assert torch.allclose(module(x), forth @ (back @ v), atol=1e-6)


def test_the_literal_cross_attention_is_eqs_9_to_11_with_time_in_columns():
    module = drawn(ja.LiteralCrossAttention(C, L, 4))
    x, joint = sequence(seed=1), sequence(2 * C, 2)
    w_j, w, w_c, w_h = module.joint.weight.T, module.own.weight, module.correlated.weight, module.back.weight
    for n in range(2):
        x_cols, j_cols = x[n].T, joint[n].T  # [c, l] and [d, l], as the paper has them
        c = torch.tanh(x_cols.T @ w_j @ j_cols / math.sqrt(2 * C))
        h = torch.relu(w @ x_cols + w_c @ c.T)
        assert torch.allclose(module(x, joint)[n], (w_h @ h + x_cols).T, atol=1e-6)


@pytest.mark.parametrize("width", [8, 512])
def test_scales_stay_as_built_whatever_pruning_leaves(width):
    assert ja.DenseCoAttention(width, L, 0.0).scale == pytest.approx((2 * width) ** -0.5)
    assert ja.TLAB(width, 2, 0.0).scale == pytest.approx((width / 2) ** -0.5)

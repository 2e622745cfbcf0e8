"""The blocks are what their equations say, and folding changes no value."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.models.blocks import crossmodal
from edgekit.models.blocks.crossmodal import CrossModalBlock, Encoder, EncoderLayer, FoldedSharedAttentionBlock, SelfAttention, SharedAttentionBlock

WIDTH, HEADS, FFN = 24, 4, 40


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """As built, biases are near zero and norms treat all features alike."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return module.eval()


def stream(positions: int, n: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(n, positions, WIDTH, generator=torch.Generator().manual_seed(seed))


def plain(module: nn.Module) -> nn.MultiheadAttention:
    """torch's own attention with the weights of one of ours."""
    other = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    state = module.state_dict()
    joined = {f"in_proj_{t}": torch.cat([state[f"{p}_proj.{t}"] for p in "qkv"]) for t in ("weight", "bias")}
    other.load_state_dict(joined | {k: v for k, v in state.items() if k.startswith("out_proj")})
    return other.eval()


def asked(weights: nn.Module, query: Tensor, keys: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(weights.q(query), weights.k(keys), weights.v(keys), scale=WIDTH**-0.5)


@torch.inference_mode()
def test_self_attention_is_torchs():
    module = randomized(SelfAttention(WIDTH, HEADS))
    x = stream(9)
    assert torch.allclose(module(x), plain(module)(x, x, x)[0], atol=1e-5)


def test_torchs_in_proj_is_read_wherever_it_stands():
    module = randomized(SelfAttention(WIDTH, HEADS))
    state = {f"cmb.0.mha.{k}": v for k, v in plain(module).state_dict().items()} | {"head.weight": torch.ones(1)}
    split = crossmodal.split_in_proj(state)
    assert torch.equal(split.pop("head.weight"), torch.ones(1))
    assert {k.removeprefix("cmb.0.mha."): v.tolist() for k, v in split.items()} == {k: v.tolist() for k, v in module.state_dict().items()}


@torch.inference_mode()
def test_an_encoder_layer_is_torchs_with_norms_after():
    layer = randomized(EncoderLayer(WIDTH, HEADS, FFN, dropout=0.5))
    other = nn.TransformerEncoderLayer(WIDTH, HEADS, FFN, batch_first=True).eval()
    state = {k: v for k, v in layer.state_dict().items() if "_proj." not in k}
    other.load_state_dict(state | {f"self_attn.{k}": v for k, v in plain(layer.self_attn).state_dict().items()})
    assert torch.allclose(layer(stream(9)), other(stream(9)), atol=1e-5)


@torch.inference_mode()
def test_an_encoder_gives_the_mean_over_positions():
    encoder = randomized(Encoder(WIDTH, HEADS, FFN, layers=2, dropout=0.5))
    x = stream(9)
    assert torch.allclose(encoder(x), encoder.layers[1](encoder.layers[0](x)).mean(1), atol=1e-6)


@torch.inference_mode()
def test_a_cross_modal_block_asks_with_its_own_stream_and_is_answered_by_the_other():
    """Eq. 4-9: one head over the whole width, no output projection."""
    block = randomized(CrossModalBlock(WIDTH, HEADS, FFN, dropout=0.5))
    own, other = stream(9), stream(7, seed=2)
    x = block.ln1(own + asked(block, own, other))
    x = block.ln2(plain(block.mha)(x, x, x)[0] + x)
    want = block.ln3(block.ffn[2](block.ffn[0](x).relu()) + x)
    assert torch.allclose(block(own, other), want, atol=1e-5)


@pytest.mark.parametrize("residual", [False, True])
@torch.inference_mode()
def test_a_token_asks_the_video_and_then_the_audio(residual):
    """Eq. 10-13, and with the residual that Eq. 11 leaves out."""
    block = randomized(SharedAttentionBlock(WIDTH, HEADS, FFN, 0.5, residual))
    token, video, audio = stream(1), stream(9, seed=2), stream(9, seed=3)
    got = asked(block.xa, asked(block.xv, token, video), audio)
    x = block.ln1(token + got if residual else got)
    x = block.ln2(plain(block.mha)(x, x, x)[0] + x)
    want = block.ln3(block.ffn[2](block.ffn[0](x).relu()) + x)
    assert torch.allclose(block(token, video, audio), want, atol=1e-5)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("is_first", [False, True])
@torch.inference_mode()
def test_a_folded_block_gives_what_the_block_gave(residual, is_first):
    block = randomized(SharedAttentionBlock(WIDTH, HEADS, FFN, 0.5, residual))
    token = stream(1, n=1)
    state = {f"sab.3.{k}": v for k, v in block.state_dict().items()} | {"token": token}
    folded_state = crossmodal.fold_shared_attention(state, "sab.3.", token if is_first else None)
    assert torch.equal(folded_state.pop("token"), token)
    folded = FoldedSharedAttentionBlock(WIDTH, FFN, 0.5, residual, is_first).eval()
    folded.load_state_dict({k.removeprefix("sab.3."): v for k, v in folded_state.items()})
    video, audio = stream(9, seed=2), stream(7, seed=3)
    if is_first:
        got, want = folded(token, video, audio), block(token, video, audio)
    else:
        got, want = folded(stream(1), video, audio), block(stream(1), video, audio)
    assert torch.allclose(got, want, atol=1e-5)
    assert crossmodal.fold_shared_attention(folded_state, "sab.3.", None) == folded_state

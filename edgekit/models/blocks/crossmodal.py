"""ATTSF-Net's blocks: two streams that ask each other, a learnt token that asks both, and one stream on its own.

All are post-norm: x = LN(x + f(x)). Source: Zhang et al. 2025 (ATTSF-Net), IEEE T-AFFC, Eq. 1-13.
Where the paper leaves a choice: a cross-attention has one head and no output projection, scaled by the square root of the
stream's width (Eq. 6); K and V come from the other stream; the streams advance together, layer by layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Multi-head self-attention, head by head prunable: head_dim stays as built."""

    def __init__(self, width: int, heads: int, bias: bool = True):
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.k_proj = nn.Linear(width, width, bias=bias)
        self.v_proj = nn.Linear(width, width, bias=bias)
        self.out_proj = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[n, t, width] → [n, t, width]."""

        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

        q, k, v = split(self.q_proj(x) * self.head_dim**-0.5), split(self.k_proj(x)), split(self.v_proj(x))
        mixed = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.out_proj(mixed.transpose(1, 2).flatten(-2))


def split_in_proj(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """nn.MultiheadAttention's one in_proj, wherever it stands in a state dict, as q_proj, k_proj and v_proj."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        base, _, leaf = key.rpartition(".")
        if leaf in ("in_proj_weight", "in_proj_bias"):
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                renamed[f"{base}.{letter}_proj.{leaf.removeprefix('in_proj_')}"] = part
        else:
            renamed[key] = value
    return renamed


def feed_forward(width: int, inner: int, dropout: float) -> nn.Sequential:
    """Linear, ReLU, Linear; the dropout stands last, so that the second Linear is `.2` with and without it."""
    return nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width), nn.Dropout(dropout))


class CrossModalBlock(nn.Module):
    """CMB: one stream asks the other, then itself (Eq. 4-9)."""

    def __init__(self, width: int, heads: int, ffn: int, dropout: float):
        super().__init__()
        self.scale = width**-0.5  # of the width as built: pruned q and k rows leave the scores' meaning as it was
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.ln1 = nn.LayerNorm(width)
        self.mha = SelfAttention(width, heads)
        self.ln2 = nn.LayerNorm(width)
        self.ffn = feed_forward(width, ffn, dropout)
        self.ln3 = nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        """own [n, l, width], other [n, m, width] → own, [n, l, width]."""
        weights = (self.q(own) * self.scale @ self.k(other).transpose(-1, -2)).softmax(-1)
        x = self.ln1(own + self.drop(weights @ self.v(other)))
        x = self.ln2(x + self.drop(self.mha(x)))
        return self.ln3(x + self.ffn(x))


class Asking(nn.Module):
    """The projections of a token that asks a stream: softmax(q k / sqrt(width)) v."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = width**-0.5
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))

    def forward(self, token: Tensor, stream: Tensor) -> Tensor:
        """token [n, 1, width], stream [n, l, width] → [n, 1, width]."""
        weights = (self.q(token) * self.scale @ self.k(stream).transpose(-1, -2)).softmax(-1)
        return weights @ self.v(stream)


class TokenBlock(nn.Module):
    """What SAB does once the token has asked: attention of one token, FFN (Eq. 12-13). `ask` is the subclasses'."""

    def __init__(self, width: int, ffn: int, dropout: float, residual: bool, mha: nn.Module):
        super().__init__()
        self.residual = residual
        self.ln1 = nn.LayerNorm(width)
        self.mha = mha
        self.ln2 = nn.LayerNorm(width)
        self.ffn = feed_forward(width, ffn, dropout)
        self.ln3 = nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)

    def ask(self, token: Tensor, video: Tensor, audio: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, token: Tensor, video: Tensor, audio: Tensor) -> Tensor:
        """token [n or 1, 1, width], streams [n, l, width] → [n, 1, width]."""
        got = self.drop(self.ask(token, video, audio))
        x = self.ln1(token + got if self.residual else got)
        x = self.ln2(x + self.drop(self.mha(x)))
        return self.ln3(x + self.ffn(x))


class SharedAttentionBlock(TokenBlock):
    """SAB: the token asks the video, and what it got asks the audio (Eq. 10-11).

    Args:
        residual: add the token to what it got; Eq. 11 as printed does not.
    """

    def __init__(self, width: int, heads: int, ffn: int, dropout: float, residual: bool = False):
        super().__init__(width, ffn, dropout, residual, SelfAttention(width, heads))
        self.xv, self.xa = Asking(width), Asking(width)

    def ask(self, token: Tensor, video: Tensor, audio: Tensor) -> Tensor:
        return self.xa(self.xv(token, video), audio)


class FoldedSharedAttentionBlock(TokenBlock):
    """The same function, exactly, without what a single query makes superfluous.

    One token attends to itself with weight 1, so `mha` is out_proj(v_proj(x)), one Linear. A token that asks l positions
    needs neither a key nor a value of each: with q = W_q t + b_q,

        q · (W_k x + b_k) = (W_kᵀ q) · x + const      and softmax ignores the constant
        Σ w (W_v x + b_v) = W_v (Σ w x) + b_v          since the weights sum to 1

    so each is a Linear on the token instead of one on l positions. `ask_video` makes W_kᵀ q from the token, and is a
    constant in the first block, whose token is the learnt one. `ask_audio` is the video's value and the query that
    it makes for the audio, at once.
    """

    def __init__(self, width: int, ffn: int, dropout: float, residual: bool, is_first: bool):
        super().__init__(width, ffn, dropout, residual, nn.Linear(width, width))
        self.ask_video = Constant(width) if is_first else nn.Linear(width, width)
        self.ask_audio = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def ask(self, token: Tensor, video: Tensor, audio: Tensor) -> Tensor:
        return self.value(_mean_by(self.ask_audio(_mean_by(self.ask_video(token), video)), audio))


class Constant(nn.Module):
    """What a Linear of a constant gives."""

    def __init__(self, width: int):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, _: Tensor | None) -> Tensor:
        return self.value


def _mean_by(query: Tensor, stream: Tensor) -> Tensor:
    """query [n or 1, 1, width], stream [n, l, width] → the stream's mean, weighted by softmax(query · position): [n, 1, width]."""
    return (query @ stream.transpose(-1, -2)).softmax(-1) @ stream


def fold_shared_attention(state: Mapping[str, Tensor], prefix: str, token: Tensor | None) -> dict[str, Tensor]:
    """The weights of a SharedAttentionBlock as its folded form has them; unchanged where they are folded already.

    Args:
        prefix: of the block's keys, with its dot.
        token: the learnt token [1, 1, width] for the first block, None for the others.
    """
    if f"{prefix}xv.q.weight" not in state:
        return dict(state)
    folded = dict(state)

    def take(name: str) -> tuple[Tensor, Tensor]:
        return folded.pop(f"{prefix}{name}.weight").double(), folded.pop(f"{prefix}{name}.bias").double()

    def put(name: str, weight: Tensor, bias: Tensor) -> None:
        folded[f"{prefix}{name}.weight"], folded[f"{prefix}{name}.bias"] = weight.float(), bias.float()

    def query(name: str) -> tuple[Tensor, Tensor]:
        (wq, bq), (wk, _) = take(f"{name}.q"), take(f"{name}.k")
        scale = wq.shape[1] ** -0.5
        return scale * wk.T @ wq, scale * wk.T @ bq

    weight, bias = query("xv")
    if token is None:
        put("ask_video", weight, bias)
    else:
        folded[f"{prefix}ask_video.value"] = (token.double() @ weight.T + bias).float()
    weight, bias = query("xa")
    value, value_bias = take("xv.v")
    put("ask_audio", weight @ value, weight @ value_bias + bias)
    put("value", *take("xa.v"))
    for name in ("mha.q_proj", "mha.k_proj"):
        take(name)
    (value, value_bias), (out, out_bias) = take("mha.v_proj"), take("mha.out_proj")
    put("mha", out @ value, out @ value_bias + out_bias)
    return folded


class EncoderLayer(nn.Module):
    """A post-norm transformer encoder layer with ReLU; key names as in nn.TransformerEncoderLayer."""

    def __init__(self, width: int, heads: int, ffn: int, dropout: float):
        super().__init__()
        self.self_attn = SelfAttention(width, heads)
        self.linear1 = nn.Linear(width, ffn)
        self.linear2 = nn.Linear(ffn, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.drop(self.self_attn(x)))
        return self.norm2(x + self.drop(self.linear2(self.linear1(x).relu())))


class Encoder(nn.Module):
    """AVAM: encoder layers over one stream, and the mean over its positions: [n, l, width] → [n, width]."""

    def __init__(self, width: int, heads: int, ffn: int, layers: int, dropout: float):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(width, heads, ffn, dropout) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.mean(1)

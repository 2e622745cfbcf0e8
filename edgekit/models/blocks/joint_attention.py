"""Fusion of a sequence of video and audio features: recurrent features, temporal blocks, joint cross-attention.

Key names are those of the public code (asmoon002/AVER, praveena2j/Joint-Cross-Attention-for-Audio-Visual-Fusion),
so its checkpoints load as they are. Every scale of a product is kept as built: pruning narrows the
layers around it, and must not change what the remaining numbers mean.
Source: Praveen et al. 2023 (joint cross-attention), IEEE T-BIOM; Moon et al. 2025 (TLAB), CMC 85(2).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Least squared length to divide by. float16 holds it, unlike the usual 1e-24, so that there too a feature of zeros gives zeros.
SQUARE_MIN = 1e-7


def l2_normalize(x: Tensor) -> Tensor:
    """x over its Euclidean norm along the last axis, as Mul, ReduceSum, Max, Sqrt and Div: every target has these.

    The bound comes before the root, whose gradient at zero is infinite.
    """
    square = (x * x).sum(-1, keepdim=True)
    return x / torch.maximum(square, torch.tensor(SQUARE_MIN)).sqrt()


class RecurrentFeature(nn.Module):
    """A two-layer BiLSTM with learned initial states; its output beside its input, projected to unit length.

    `init_hidden` has one row per layer and direction (forward first), h0 above c0.
    """

    def __init__(self, c_in: int, c_out: int, dropout: float, layers: int = 2):
        super().__init__()
        self.rnn = nn.LSTM(c_in, c_out // 2, num_layers=layers, dropout=dropout, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(c_in + c_out, c_out)
        self.dropout = nn.Dropout(dropout)
        self.init_hidden = nn.Parameter(nn.init.xavier_uniform_(torch.empty(4 * layers, c_out // 2)))

    def forward(self, x: Tensor) -> Tensor:
        """[n, l, c_in] → [n, l, c_out], each step of length 1."""
        h0, c0 = (half.unsqueeze(1).expand(-1, len(x), -1).contiguous() for half in self.init_hidden.chunk(2))
        y, _ = self.rnn(x, (h0, c0))
        return l2_normalize(self.linear(self.dropout(torch.cat([x, y], -1))))


class TemporalBlock(nn.Module):
    """Two causal convolutions, each with ReLU, added to the input."""

    def __init__(self, channels: int, dilation: int, dropout: float, kernel: int = 3):
        super().__init__()
        self.pad = (kernel - 1) * dilation
        self.conv1 = nn.Conv1d(channels, channels, kernel, dilation=dilation)
        self.conv2 = nn.Conv1d(channels, channels, kernel, dilation=dilation)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, l] → [n, c, l]; a step sees itself and what came before."""
        y = self.dropout(torch.relu(self.conv1(F.pad(x, (self.pad, 0)))))
        y = self.dropout(torch.relu(self.conv2(F.pad(y, (self.pad, 0)))))
        return torch.relu(y + x)


class TemporalNetwork(nn.Module):
    """Temporal blocks with dilations 1 and 2."""

    def __init__(self, channels: int, dropout: float):
        super().__init__()
        self.network = nn.Sequential(TemporalBlock(channels, 1, dropout), TemporalBlock(channels, 2, dropout))

    def forward(self, x: Tensor) -> Tensor:
        """[n, l, c] → [n, l, c]."""
        return self.network(x.transpose(1, 2)).transpose(1, 2)


class TLAB(nn.Module):
    """Temporal attention block: recurrent features ask, convolutional ones answer; added to the recurrent ones and normalised.

    The rates of dropout are the public code's times `dropout`.
    """

    def __init__(self, channels: int, heads: int, dropout: float):
        super().__init__()
        self.lstm = RecurrentFeature(channels, channels, 0.4 * dropout)
        self.tcn = TemporalNetwork(channels, 0.2 * dropout)
        self.heads, self.scale = heads, (channels // heads) ** -0.5
        self.query_fc = nn.Linear(channels, channels)
        self.key_fc = nn.Linear(channels, channels)
        self.value_fc = nn.Linear(channels, channels)
        self.out_fc = nn.Linear(channels, channels)
        self.layer_norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(0.1 * dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[n, l, c] → [n, l, c]."""
        recurrent, convolved = self.lstm(x), self.tcn(x)
        q, k, v = (self._split(fc(y)) for fc, y in ((self.query_fc, recurrent), (self.key_fc, convolved), (self.value_fc, convolved)))
        weights = self.dropout(torch.softmax((q * self.scale) @ k.transpose(-1, -2), -1))
        attended = (weights @ v).transpose(1, 2).flatten(2)
        return self.layer_norm(recurrent + self.out_fc(attended))

    def _split(self, x: Tensor) -> Tensor:
        """[n, l, heads*d] → [n, heads, l, d]; d is what pruning left of it."""
        return x.unflatten(-1, (self.heads, x.shape[-1] // self.heads)).transpose(1, 2)


class PositionAttention(nn.Module):
    """Audio-guided attention over the positions of a video feature: the keys `attn.affine_*`.

    The number that audio adds is one per position and goes to all of that position's scores; so the
    public code has it, and trained weights mean it so.
    """

    def __init__(self, channels: int, positions: int):
        super().__init__()
        self.positions = positions
        self.affine_audio = nn.Linear(channels, channels)
        self.affine_video = nn.Linear(channels, channels)
        self.affine_v = nn.Linear(channels, positions, bias=False)
        self.affine_g = nn.Linear(channels, positions, bias=False)
        self.affine_h = nn.Linear(positions, 1, bias=False)
        self.affine_feat = nn.Linear(channels, channels)

    def forward(self, video: Tensor, audio: Tensor) -> Tensor:
        """video [n, l, positions*c], audio [n, l, c] → [n, l, c].

        `video` is a flattened [c, h, w] map read as [positions, c], channels and positions mixed as they
        then are: that is how the public weights were trained, so it must stay.
        """
        n, steps = video.shape[:2]
        maps = video.reshape(n * steps, self.positions, video.shape[-1] // self.positions)
        seen = torch.relu(self.affine_video(maps))
        heard = torch.relu(self.affine_audio(audio.reshape(n * steps, audio.shape[-1])))
        scores = self.affine_h(torch.tanh(self.affine_v(seen) + self.affine_g(heard).unsqueeze(2)))
        weights = torch.softmax(scores.transpose(1, 2), -1)
        return self.affine_feat((weights @ maps).reshape(n, steps, maps.shape[-1]))


class AudioGuidedAttention(nn.Module):
    def __init__(self, channels: int, positions: int):
        super().__init__()
        self.attn = PositionAttention(channels, positions)

    def forward(self, video: Tensor, audio: Tensor) -> Tensor:
        return self.attn(video, audio)


class DenseCoAttention(nn.Module):
    """Joint cross-attention of two streams of `steps` features: each is correlated with both side by side.

    The correlation is taken over the steps, so their number is part of the weights.
    """

    def __init__(self, channels: int, steps: int, dropout: float):
        super().__init__()
        joint = 2 * channels
        self.scale = 1 / math.sqrt(joint)
        self.query_linear = nn.Linear(joint, joint)
        self.key1_linear = nn.Linear(steps, steps)
        self.key2_linear = nn.Linear(steps, steps)
        self.value1_linear = nn.Linear(channels, channels)
        self.value2_linear = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """[n, steps, c] twice → [n, steps, 2c] twice."""
        joint = self.query_linear(torch.cat([video, audio], -1))
        return self._attend(joint, video, self.key1_linear, self.value1_linear), self._attend(joint, audio, self.key2_linear, self.value2_linear)

    def _attend(self, joint: Tensor, x: Tensor, key: nn.Linear, value: nn.Linear) -> Tensor:
        correlation = self.dropout(torch.tanh((key(x.transpose(1, 2)) @ joint) * self.scale))
        return torch.relu(torch.tanh(value(x) @ correlation))


class CoAttentionLayer(nn.Module):
    def __init__(self, channels: int, steps: int, dropout: float):
        super().__init__()
        self.dense_coattn = DenseCoAttention(channels, steps, dropout)
        self.linears = nn.ModuleList(nn.Sequential(nn.Linear(2 * channels, channels), nn.ReLU(), nn.Dropout(dropout)) for _ in range(2))

    def forward(self, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """[n, steps, c] twice → the same, with what the other modality adds."""
        from_video, from_audio = self.dense_coattn(video, audio)
        return video + self.linears[0](from_video), audio + self.linears[1](from_audio)


class CoAttention(nn.Module):
    """Co-attention layers, one after the other: the keys `dcn_layers.{i}`."""

    def __init__(self, channels: int, steps: int, layers: int, dropout: float):
        super().__init__()
        self.dcn_layers = nn.ModuleList(CoAttentionLayer(channels, steps, dropout) for _ in range(layers))

    def forward(self, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.dcn_layers:
            video, audio = layer(video, audio)
        return video, audio


def regressor(channels: int, hidden: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, outputs))


def xavier(module: nn.Module) -> None:
    """The public code's start: Xavier-uniform weights and zero biases of every linear layer and convolution."""
    for sub in module.modules():
        if isinstance(sub, (nn.Linear, nn.Conv1d)):
            nn.init.xavier_uniform_(sub.weight)
            if sub.bias is not None:
                nn.init.zeros_(sub.bias)


# --------------------------------------------------------------------------- as the paper's equations have it


class LiteralTLAB(nn.Module):
    """Eqs. 1-6 of Moon et al.: one attention forth and one back, no residual, no norm."""

    def __init__(self, channels: int, dropout: float):
        super().__init__()
        self.scale = channels**-0.5
        self.lstm = nn.LSTM(channels, channels // 2, num_layers=2, dropout=0.4 * dropout, bidirectional=True, batch_first=True)
        self.tcn = TemporalNetwork(channels, 0.2 * dropout)
        self.query_fc = nn.Linear(channels, channels)
        self.key_fc = nn.Linear(channels, channels)
        self.value_fc = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[n, l, c] → [n, l, c]: A_G (A_L V)."""
        convolved = self.tcn(x)
        q, k, v = self.query_fc(self.lstm(x)[0]) * self.scale, self.key_fc(convolved), self.value_fc(convolved)
        forth = torch.softmax(q @ k.transpose(1, 2), -1)
        back = torch.softmax(k @ q.transpose(1, 2), -1)
        return forth @ (back @ v)


class LiteralCrossAttention(nn.Module):
    """Eqs. 9-11 of Moon et al. for one modality: x [c, l] and J [2c, l] there, time in rows here.

    Args:
        inner: rows of H, the paper's k, which it gives no number for.
    """

    def __init__(self, channels: int, steps: int, inner: int):
        super().__init__()
        self.scale = 1 / math.sqrt(2 * channels)
        self.joint = nn.Linear(channels, 2 * channels, bias=False)  # W_J
        self.own = nn.Linear(channels, inner, bias=False)  # W
        self.correlated = nn.Linear(steps, inner, bias=False)  # W_C
        self.back = nn.Linear(inner, channels, bias=False)  # W_H

    def forward(self, x: Tensor, joint: Tensor) -> Tensor:
        """x [n, l, c], joint [n, l, 2c] → [n, l, c]."""
        correlation = torch.tanh((self.joint(x) @ joint.transpose(1, 2)) * self.scale)
        return self.back(torch.relu(self.own(x) + self.correlated(correlation))) + x

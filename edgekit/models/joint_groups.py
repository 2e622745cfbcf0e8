"""Pruning groups of the fusions made of `blocks/joint_attention.py`: found by walking the module, whatever its arrangement.

Every scale in these blocks is kept as built and every norm but TLAB's LayerNorm ignores zeros, so that
all of these removals are exact. What a LayerNorm or a backbone's unit-length feature spans stays.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .blocks.joint_attention import (
    TLAB,
    AudioGuidedAttention,
    CoAttentionLayer,
    LiteralCrossAttention,
    LiteralTLAB,
    PositionAttention,
    RecurrentFeature,
    TemporalBlock,
)
from .groups import Axis, Group, Slice, channel_step, one_axis


def fusion_groups(fusion: nn.Module, prefix: str) -> list[Group]:
    """Groups within the blocks of a fusion, in the order of its layers."""
    found: list[Group] = []
    for path, sub in fusion.named_modules(prefix=prefix):
        if isinstance(sub, RecurrentFeature):
            found.append(lstm_group(f"{path}.rnn", sub.rnn, [Slice(f"{path}.linear", "weight", 1, "in", starts=(sub.rnn.input_size,))], initial=path))
        elif isinstance(sub, LiteralTLAB):
            found += [lstm_group(f"{path}.lstm", sub.lstm, [_columns(f"{path}.query_fc")]), *_projection_groups(path, sub, heads=1)]
        elif isinstance(sub, TLAB):
            found += _projection_groups(path, sub, sub.heads)
        elif isinstance(sub, TemporalBlock):
            found.append(_pair(f"{path}.conv1", f"{path}.conv2", sub.conv1.out_channels, "channels"))
        elif isinstance(sub, PositionAttention):
            found += [
                _pair(f"{path}.affine_video", f"{path}.affine_v", sub.affine_video.out_features),
                _pair(f"{path}.affine_audio", f"{path}.affine_g", sub.affine_audio.out_features),
                _pair(f"{path}.affine_v", f"{path}.affine_h", sub.affine_v.out_features, has_bias=False),
            ]
        elif isinstance(sub, CoAttentionLayer):
            query = f"{path}.dense_coattn.query_linear"
            readers = [_columns(f"{path}.linears.{i}.0") for i in range(2)]
            found.append(one_axis(query, "hidden_units", sub.dense_coattn.query_linear.out_features, [*_rows(query), *readers]))
        elif isinstance(sub, LiteralCrossAttention):
            made = [*_rows(f"{path}.own", False), *_rows(f"{path}.correlated", False), _columns(f"{path}.back")]
            found.append(one_axis(f"{path}.own", "hidden_units", sub.own.out_features, made))
    return found


def regressor_group(path: str, regressor: nn.Sequential) -> Group:
    """Its hidden units."""
    return _pair(f"{path}.0", f"{path}.3", regressor[0].out_features)


def joint_group(path: str, feature: RecurrentFeature, readers: Sequence[str]) -> Group:
    """The channels of a recurrent feature that only `readers` read.

    The unit length is taken over all channels, so the rows that make one count as its readers: with them at zero it is gone from the length too.
    """
    made = [Slice(f"{path}.linear", name, 0, "in") for name in ("weight", "bias")]
    return one_axis(f"{path}.linear", "channels", feature.linear.out_features, [*made, *map(_columns, readers)])


def tlab_input(path: str) -> list[Slice]:
    """Everything of a TLAB that carries its input's channels: both branches read them, and the temporal blocks add to them."""
    recurrent = [Slice(f"{path}.lstm.rnn", f"weight_ih_l0{suffix}", 1, "in") for suffix in ("", "_reverse")]
    blocks = [f"{path}.tcn.network.{i}" for i in range(2)]
    added = [s for block in blocks for s in _rows(f"{block}.conv2")]
    readers = [*(f"{block}.conv1" for block in blocks), f"{path}.lstm.linear", f"{path}.key_fc", f"{path}.value_fc"]
    return [*added, *recurrent, *map(_columns, readers)]


def guided_group(path: str, attention: AudioGuidedAttention, carriers: Sequence[Slice]) -> Group:
    """The channels that an audio-guided attention gives on, with all the layers that carry them."""
    feat = f"{path}.attn.affine_feat"
    return one_axis(feat, "channels", attention.attn.affine_feat.out_features, [*_rows(feat), *carriers])


def lstm_group(path: str, lstm: nn.LSTM, readers: Sequence[Slice], initial: str | None = None) -> Group:
    """The cells of a bidirectional LSTM: each layer and direction loses its own, equal in number.

    Args:
        readers: what reads the last layer, each at the first forward cell; the backward ones follow.
        initial: the module whose `init_hidden` has a row of starts for every layer and direction, h0 above c0.
    """
    width, layers = lstm.hidden_size, lstm.num_layers
    axes = []
    for layer in range(layers):
        for direction, suffix in enumerate(("", "_reverse")):
            name = f"l{layer}{suffix}"
            slices = [
                Slice(path, f"{t}_{name}", 0, "out", starts=tuple(gate * width for gate in range(4))) for t in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            ]
            row = 2 * layer + direction
            for first in (row, 2 * layers + row) if initial else ():
                slices.append(Slice(initial, "init_hidden", 1, "out", rows=(first, first + 1)))
            slices.append(Slice(path, f"weight_hh_{name}", 1, "in"))
            offset = direction * width
            if layer + 1 < layers:
                slices += [Slice(path, f"weight_ih_l{layer + 1}{reader}", 1, "in", starts=(offset,)) for reader in ("", "_reverse")]
            else:
                slices += [Slice(s.module, s.parameter, s.axis, s.role, starts=(s.starts[0] + offset,)) for s in readers]
            axes.append(Axis(name, width, channel_step(width), tuple(slices)))
    return Group(path, "hidden_units", tuple(axes))


def _projection_groups(path: str, block: TLAB | LiteralTLAB, heads: int) -> list[Group]:
    """Of every head, equally many of the numbers that query and key are compared by, and of those that it hands on."""
    compared = block.query_fc.out_features // heads
    axes = []
    for head in range(heads):
        pair = [
            Slice(f"{path}.{fc}", t, 0, role, starts=(head * compared,)) for fc, role in (("query_fc", "out"), ("key_fc", "in")) for t in ("weight", "bias")
        ]
        axes.append(Axis(f"head{head}", compared, channel_step(compared), tuple(pair)))
    groups = [Group(f"{path}.query_fc", "hidden_units", tuple(axes))]
    if isinstance(block, TLAB):
        given = block.value_fc.out_features // heads
        axes = []
        for head in range(heads):
            made = [Slice(f"{path}.value_fc", t, 0, "out", starts=(head * given,)) for t in ("weight", "bias")]
            axes.append(Axis(f"head{head}", given, channel_step(given), (*made, Slice(f"{path}.out_fc", "weight", 1, "in", starts=(head * given,)))))
        groups.append(Group(f"{path}.value_fc", "hidden_units", tuple(axes)))
    return groups


def _pair(maker: str, reader: str, units: int, kind="hidden_units", has_bias: bool = True) -> Group:
    return one_axis(maker, kind, units, [*_rows(maker, has_bias), _columns(reader)])


def _rows(module: str, has_bias: bool = True) -> list[Slice]:
    return [Slice(module, name, 0, "out") for name in (("weight", "bias") if has_bias else ("weight",))]


def _columns(module: str) -> Slice:
    return Slice(module, "weight", 1, "in")

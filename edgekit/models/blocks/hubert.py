"""HuBERT from transformers, in the form edgekit trains, prunes and exports.

Source: Hsu et al. 2021 (HuBERT), arXiv 2106.07447; sizes as in facebook/hubert-base-ls960.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ...errors import CheckpointError

CONV_KERNELS = (10, 3, 3, 3, 3, 2, 2)
CONV_STRIDES = (5, 2, 2, 2, 2, 2, 2)
POS_CONV = "encoder.pos_conv_embed.conv"


@dataclass(frozen=True)
class HubertSize:
    """Widths of a HuBERT; the defaults are the base model's."""

    conv_dim: int = 512
    hidden: int = 768
    layers: int = 12
    heads: int = 12
    ffn: int = 3072
    pos_kernel: int = 128
    pos_groups: int = 16
    dropout: float = 0.1


def frames(samples: int) -> int:
    """Feature frames for a window of `samples`: ⌊(n − k)/s⌋ + 1 through the seven stem layers."""
    for kernel, stride in zip(CONV_KERNELS, CONV_STRIDES, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


def build_hubert(size: HubertSize) -> nn.Module:
    """transformers' HubertModel of this size: [n, samples] → .last_hidden_state [n, frames, hidden]."""
    from transformers import HubertConfig, HubertModel

    config = HubertConfig(
        conv_dim=(size.conv_dim,) * len(CONV_KERNELS),
        conv_kernel=CONV_KERNELS,
        conv_stride=CONV_STRIDES,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=size.ffn,
        num_conv_pos_embeddings=size.pos_kernel,
        num_conv_pos_embedding_groups=size.pos_groups,
        hidden_dropout=size.dropout,
        attention_dropout=size.dropout,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        layerdrop=0.0,  # skips whole layers by a host-side coin: breaks tracing in train mode and resuming bit for bit
        apply_spec_augment=False,  # masking belongs to pre-training
        attn_implementation="eager",  # the exporter needs plain MatMul and Softmax
    )
    return HubertModel(config)


def fold_pos_conv(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Write the positional convolution's weight norm, in either spelling, into one plain weight.

    The norm is taken over all but the kernel axis (dim 2): g is [1, 1, k], v is [out, in / groups, k].

    Raises:
        CheckpointError: g has another shape; over another axis it would broadcast to wrong weights.
    """
    base = f"{prefix}{POS_CONV}"
    spellings = (
        (f"{base}.parametrizations.weight.original0", f"{base}.parametrizations.weight.original1"),
        (f"{base}.weight_g", f"{base}.weight_v"),
    )
    folded = dict(state)
    for g_key, v_key in spellings:
        if g_key in folded and v_key in folded:
            g, v = folded.pop(g_key).float(), folded.pop(v_key).float()
            if v.dim() != 3 or g.shape != (1, 1, v.shape[2]):
                raise CheckpointError(f"`{g_key}` is {list(g.shape)} for a weight of {list(v.shape)}, expected [1, 1, kernel]", "the norm is taken per kernel tap (dim=2)")
            # clamp_min: an all-zero tap has norm 0 and weight 0, not NaN.
            folded[f"{base}.weight"] = g * v / v.norm(dim=(0, 1), keepdim=True).clamp_min(1e-30)
    return folded

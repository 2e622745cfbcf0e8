"""Exact rewrites: the same values in forms that a target's compiler takes.

Each is one function `rewrite(model) -> list[Change]`, edits the model in place, and says what it
requires and ensures. "Exact" means equal up to float32 rounding; stages/quantize.py measures that
on real data and refuses anything else. A target lists those it needs in `rewrites`, in order.

Every new tensor comes with one of three words about its range, so that statistics taken once on
the float graph stay good for every target:

    same_as NAME    it holds the values of NAME, rearranged, some of them several times or beside zeros: it has that tensor's range
    bound LOW HIGH  its range follows from the operator
    observe         nothing is known: observe it, if an INT8 layer turns out to read or write it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError
from edgekit.rewrites.arithmetic import clamp_int64, decompose_instance_norm, decompose_layer_norm, decompose_reduce_l2, pow_to_mul
from edgekit.rewrites.change import Change
from edgekit.rewrites.channels import direct_channels, multiplier_to_concat
from edgekit.rewrites.conv3d import conv3d_to_conv2d, conv3d_to_conv2d_taps
from edgekit.rewrites.gelu import fuse_gelu
from edgekit.rewrites.layout import batch_norm_to_conv, conv1d_to_conv2d, gather_to_shuffle, linear_to_conv2d, merge_layout_ops, rows_to_sequence
from edgekit.rewrites.recurrent import rnn_to_scan
from edgekit.rewrites.shuffle import shuffle_to_concat

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["REWRITES", "Change", "apply"]


def apply(model: ir.Model, name: str) -> list[Change]:
    """Run one rewrite by its name and remove what nobody uses any longer.

    Raises:
        EdgekitError: there is no such rewrite.
    """
    import onnx_ir.passes.common as passes

    if name not in REWRITES:
        raise EdgekitError(f"unknown rewrite `{name}`", f"known: {', '.join(REWRITES)}")
    changes = REWRITES[name](model)
    passes.RemoveUnusedNodesPass()(model)
    passes.TopologicalSortPass()(model)
    return changes


REWRITES: Mapping[str, Callable[[ir.Model], list[Change]]] = {
    "pow_to_mul": pow_to_mul,
    "clamp_int64": clamp_int64,
    "decompose_instance_norm": decompose_instance_norm,
    "decompose_layer_norm": decompose_layer_norm,
    "decompose_reduce_l2": decompose_reduce_l2,
    "batch_norm_to_conv": batch_norm_to_conv,
    "conv1d_to_conv2d": conv1d_to_conv2d,
    "linear_to_conv2d": linear_to_conv2d,
    "rows_to_sequence": rows_to_sequence,
    "merge_layout_ops": merge_layout_ops,
    "multiplier_to_concat": multiplier_to_concat,
    "direct_channels": direct_channels,
    "gather_to_shuffle": gather_to_shuffle,
    "shuffle_to_concat": shuffle_to_concat,
    "rnn_to_scan": rnn_to_scan,
    "conv3d_to_conv2d": conv3d_to_conv2d,
    "conv3d_to_conv2d_taps": conv3d_to_conv2d_taps,
    "fuse_gelu": fuse_gelu,
}

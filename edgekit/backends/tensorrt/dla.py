"""Which layers a DLA would take, and why it would not: the device's accelerator for convolutions, as data (`unit` of a target).

A layer that cannot run there falls back to the GPU, and every change of place costs a copy in another format. So
beside the share of the MACs it matters in how many pieces the graph falls apart: `pieces`.

The rules are those that TensorRT's header states for each layer. Combinations that exceed a DLA's buffers are
known to its compiler alone, which runs on the device only: this is an upper bound.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from edgekit.graph import LAYOUT_OPS, attribute, constant, data_input, shape_of

if TYPE_CHECKING:
    import onnx_ir as ir


def place(model: ir.Model, unit: Mapping[str, Any], precisions: Mapping[str, str]) -> dict[str, str | None]:
    """{node: None if the unit takes it, else why not}, of every node.

    Args:
        unit: `unit` of `Target.spec()`.
        precisions: {node: int8, fp16 or fp32}; others are fp16.
    """
    return {node.name: _fault(node, unit, precisions.get(node.name, "fp16")) for node in model.graph}


def pieces(model: ir.Model, placed: Mapping[str, str | None]) -> int:
    """How many connected parts of the graph the unit would run: at most 16 of them can be loaded on a core."""
    part: dict[str, str] = {}

    def root(name: str) -> str:
        while part[name] != name:
            name = part[name]
        return name

    for node in model.graph:  # in topological order
        if placed[node.name] is not None:
            continue
        part[node.name] = node.name
        for value in node.inputs:
            before = value.producer() if value is not None else None
            if before is not None and before.name in part:
                part[root(before.name)] = root(node.name)
    return len({root(name) for name in part})


def _fault(node: ir.Node, unit: Mapping[str, Any], precision: str) -> str | None:
    rule = unit["ops"].get(node.op_type)
    if rule is None:
        return f"{node.op_type} is not in the unit's table"
    if precision not in rule["dtypes"]:
        return f"computes in {precision}, taken: {', '.join(rule['dtypes'])}"
    shape = shape_of(data_input(node))
    if len(shape) not in rule["ranks"]:
        return f"has rank {len(shape)}, taken: {', '.join(map(str, rule['ranks']))}"
    batch = math.prod(shape[:-3])
    if batch > unit["batch_max"]:
        return f"has batch {batch}, taken up to {unit['batch_max']}"
    for value in (data_input(node), *node.outputs[:1]):
        largest = max(shape_of(value)[-3:], default=1)
        if largest > unit["dim_max"]:
            return f"has a dimension of {largest}, taken up to {unit['dim_max']}"
    for i in rule.get("constant_inputs", ()):
        if i < len(node.inputs) and node.inputs[i] is not None and constant(node.inputs[i]) is None:
            return f"computes its input {i}, which must be a constant"
    for i in rule.get("computed_inputs", ()):
        if i < len(node.inputs) and constant(node.inputs[i]) is not None:
            return f"has a constant as input {i}, taken are two activations"
    if (axis := rule.get("axis")) is not None:
        own = attribute(node, "axis", 0)
        if (own if own < 0 else own - len(shape)) != axis:
            return f"works along axis {own} of {len(shape)}, taken: {axis}"
    return _slice_fault(node, rule, len(shape)) if node.op_type == "Slice" else _window_fault(node, rule)


def _slice_fault(node: ir.Node, rule: Mapping[str, Any], rank: int) -> str | None:
    """Axes and steps of a Slice whose bounds are constants."""
    axes, steps = (constant(node.inputs[i]) if i < len(node.inputs) else None for i in (3, 4))
    cut = [int(axis) % rank for axis in axes] if axes is not None else list(range(rank))
    for axis in rule.get("not_axes", ()):
        if axis in cut:
            return f"cuts axis {axis}"
    bounds = rule.get("steps")
    if bounds is not None and steps is not None and not all(bounds[0] <= step <= bounds[1] for step in steps):
        return f"has steps {', '.join(map(str, steps))}, taken: {bounds[0]} to {bounds[1]}"
    return None


def _window_fault(node: ir.Node, rule: Mapping[str, Any]) -> str | None:
    """Kernel, stride, padding, dilation, channels and groups against the rule's bounds."""
    weight = node.inputs[1] if node.op_type in ("Conv", "ConvTranspose") else None
    kernel = list(attribute(node, "kernel_shape", None) or (shape_of(weight)[2:] if weight is not None else (1, 1)))
    pads = list(attribute(node, "pads", [0] * 2 * len(kernel)))
    group = attribute(node, "group", 1)
    found = {
        "kernel": kernel,
        "stride": list(attribute(node, "strides", [1] * len(kernel))),
        "padding": pads,
        "dilation": list(attribute(node, "dilations", [1] * len(kernel))),
        "channels": [shape_of(node.outputs[0])[1]] if len(shape_of(node.outputs[0])) > 1 else [1],
        "groups": [group],
    }
    for what, values in found.items():
        if (bounds := rule.get(what)) is not None and not all(bounds[0] <= value <= bounds[1] for value in values):
            return f"has {what} {', '.join(map(str, values))}, taken: {bounds[0]} to {bounds[1]}"
    if rule.get("padding_below_kernel") and any(pad >= kernel[i % len(kernel)] for i, pad in enumerate(pads)):
        return f"has padding {', '.join(map(str, pads))}, which must be less than the kernel, {', '.join(map(str, kernel))}"
    return None


def summary(model: ir.Model, placed: Mapping[str, str | None], macs: Iterable[str]) -> dict[str, Any]:
    """{layers: [taken, all] with MACs, pieces, falls_back: {reason: how many nodes}}; what only moves values is not told."""
    reasons = Counter(why for node in model.graph if (why := placed[node.name]) is not None and node.op_type not in LAYOUT_OPS)
    layers = list(macs)
    return {"layers": [sum(placed[node] is None for node in layers), len(layers)], "pieces": pieces(model, placed), "falls_back": dict(reasons.most_common())}

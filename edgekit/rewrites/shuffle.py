"""A channel shuffle for compilers that have no Gather."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edgekit.graph import Editor, attribute, constant, shape_of
from edgekit.rewrites.change import Change, free_name, nodes_of
from edgekit.rewrites.layout import shuffled_groups

if TYPE_CHECKING:
    import onnx_ir as ir


def shuffle_to_concat(model: ir.Model) -> list[Change]:
    """A Gather that shuffles channels in g groups -> Concat of the groups along a new axis behind the channels.

    [n, c, ...] in groups of c/g: each becomes [n, c/g, 1, p], p being all positions; joined they are [n, c/g, g, p], which is
    the shuffled tensor in another shape. With channels last that is one copy, and Vela, which leaves GATHER to the CPU,
    places all of it. Where a Concat made the groups, it goes.

    ensures: no such Gather over axis 1; at most four axes.
    """
    edit, changes = Editor(model), []
    for node in nodes_of(model, "Gather"):
        x, indices, old = node.inputs[0], constant(node.inputs[1]), node.outputs[0]
        shape = shape_of(x)
        if indices is None or constant(x) is not None or len(shape) < 2 or attribute(node, "axis", 0) % len(shape) != 1:
            continue
        groups = shuffled_groups(indices, shape[1])
        if groups is None:
            continue
        n, channels, positions = shape[0], shape[1] // groups, math.prod(shape[2:])
        name = free_name(edit, node)
        tensors: dict[str, str] = {}

        def reshape(before: ir.Node, value: ir.Value, to: tuple[int, ...], label: str, source: str, tensors=tensors, name=name) -> ir.Value:
            out = edit.add(before, "Reshape", [value, edit.constant(f"{name}.{label}", np.array(to, np.int64))], to, name=f"{name}/{label}")
            tensors[out.name] = f"same_as {source}"
            return out

        parts = _parts(edit, node, x, groups, name, tensors)
        columns = [reshape(node, part, (n, channels, 1, positions), f"group{i}", part.name) for i, part in enumerate(parts)]
        mixed = edit.add(node, "Concat", columns, (n, channels, groups, positions), {"axis": 2}, name)
        tensors[mixed.name] = f"same_as {x.name}"
        edit.take_over(old, reshape(node, mixed, shape, "together", x.name))
        changes.append(Change("shuffle_to_concat", name, tensors))
    return changes


def _parts(edit: Editor, node: ir.Node, x: ir.Value, groups: int, name: str, tensors: dict[str, str]) -> list[ir.Value]:
    """The groups of channels: what a Concat joined, or Slices."""
    shape = shape_of(x)
    width = shape[1] // groups
    made_by = x.producer()
    if made_by is not None and made_by.op_type == "Concat" and attribute(made_by, "axis", 0) % len(shape) == 1 and [shape_of(v)[1] for v in made_by.inputs] == [width] * groups:
        return list(made_by.inputs)
    parts = []
    for i in range(groups):
        bounds = [edit.constant(f"{name}.{label}{i}", np.array([value], np.int64)) for label, value in (("from", i * width), ("to", (i + 1) * width), ("axis", 1))]
        part = edit.add(node, "Slice", [x, *bounds], (shape[0], width, *shape[2:]), name=f"{name}/slice{i}")
        tensors[part.name] = "observe"
        parts.append(part)
    return parts

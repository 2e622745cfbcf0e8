"""Pruning groups: what must be removed together, and the removal itself.

A *unit* is the least that can be removed: a channel, an LSTM cell, an attention head, an FFN
neuron. Its rows and columns lie in several tensors, one `Slice` each. An `Axis` is a set of units
that can be chosen freely among themselves; a `Group` is one or more axes that must keep equal
counts, because one module has a single size for all of them.

Removal edits a state dict; `narrow.fit` then gives a fresh module the widths that are left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

Kind = Literal["channels", "hidden_units", "heads", "ffn_units"]
Cut = Mapping[str, Mapping[str, Sequence[int]]]  # {group: {axis: units to remove}}


@dataclass(frozen=True)
class Slice:
    """Where an axis's units lie in one tensor.

    Unit u covers, for every start, the indices start + u * width .. + width on `axis`: an LSTM has
    one start per gate, an attention a width of head_dim.

    Attributes:
        module, parameter: path and name; their dotted join is the state dict's key.
        role: "out" makes the units' values; "in" reads them. With every "in" slice of a unit at
            zero, the model's output no longer depends on the unit.
        rows: (low, high) on axis 0 that a column slice is limited to: the query's and the key's
            columns of nn.MultiheadAttention's one in_proj_weight belong to different inputs.
    """

    module: str
    parameter: str
    axis: int
    role: Literal["out", "in"]
    starts: tuple[int, ...] = (0,)
    width: int = 1
    rows: tuple[int, int] | None = None

    @property
    def key(self) -> str:
        return f"{self.module}.{self.parameter}"

    def positions(self, units: Iterable[int]) -> list[list[int]]:
        """Indices on `axis`, one list per unit."""
        return [[start + unit * self.width + i for start in self.starts for i in range(self.width)] for unit in units]

    def region(self, tensor: Tensor) -> Tensor:
        """The view of `tensor` that the slice is limited to."""
        return tensor if self.rows is None else tensor[self.rows[0] : self.rows[1]]


@dataclass(frozen=True)
class Axis:
    """Units that are ranked against each other; `step` of them make one granule of the group."""

    name: str
    units: int
    step: int
    slices: tuple[Slice, ...]


@dataclass(frozen=True)
class Group:
    """Axes that keep equal counts of granules.

    Attributes:
        name: the path of the layer that makes the units; what recipes and reports call the group.
        heads: attentions whose head count is the number of granules that stay.
    """

    name: str
    kind: Kind
    axes: tuple[Axis, ...]
    heads: tuple[str, ...] = ()

    @property
    def granules(self) -> int:
        return self.axes[0].units // self.axes[0].step

    @property
    def units(self) -> int:
        return self.axes[0].units

    @property
    def modules(self) -> set[str]:
        """Paths of every module whose shape changes with the group."""
        return {s.module for axis in self.axes for s in axis.slices}

    @property
    def makers(self) -> set[str]:
        """Paths of the modules that make the group's units."""
        return {s.module for axis in self.axes for s in axis.slices if s.role == "out"}


def channel_step(width: int) -> int:
    """Channels that go together: 8 where the layer is wide enough, since INT8 kernels pack channels by 4 to 32.

    The largest power of two up to 8 that divides the width and leaves four granules to choose from.
    """
    return next((step for step in (8, 4, 2) if width % step == 0 and width // step >= 4), 1)


def one_axis(name: str, kind: Kind, units: int, slices: Sequence[Slice], step: int | None = None, heads: tuple[str, ...] = ()) -> Group:
    """A group whose units are all of one sort."""
    return Group(name, kind, (Axis("units", units, step or channel_step(units), tuple(slices)),), heads)


def convolution_groups(module: nn.Module, example: Tensor, prefix: str, readers: Sequence[Slice] = ()) -> list[Group]:
    """Groups of a purely convolutional network, from torch-pruning's dependency graph.

    It finds what residuals, batch norms and depthwise convolutions couple.

    Args:
        module: runs on `example`; not changed.
        prefix: path of `module` in the whole model, put in front of every name.
        readers: slices outside of `module` that read its output's channels.

    Raises:
        ValueError: a channel order that the graph permutes (concatenation, shuffle): not described by a Slice.
    """
    import copy

    import torch
    import torch_pruning
    from torch import nn

    # The tracer runs the module in its own mode and leaves gradients; the original stays as it is.
    traced = copy.deepcopy(module).eval().requires_grad_(True)
    paths = {sub: f"{prefix}.{path}" for path, sub in traced.named_modules()}
    order = {path: i for i, path in enumerate(paths.values())}
    with torch.enable_grad():
        graph = torch_pruning.DependencyGraph().build_dependency(traced, example, verbose=False)
    found = []
    for coupled in graph.get_all_groups(root_module_types=[nn.Conv1d, nn.Conv2d, nn.Conv3d]):
        units, slices = 0, {}
        is_output = False
        for dependency, indices in coupled:
            sub, is_reader = dependency.target.module, dependency.handler.__name__ == "prune_in_channels"
            units = max(units, len(indices))
            is_output |= "OutputPruner" in type(dependency.handler.__self__).__name__
            if sub not in paths:  # an activation or an addition: no tensor of its own
                continue
            if list(indices) != list(range(len(indices))):
                raise ValueError(f"{paths[sub]}: its channels are permuted between layers, which a Slice cannot say")
            for s in _conv_slices(paths[sub], sub, is_reader):
                slices[s.key, s.axis] = s
        ordered = sorted(slices.values(), key=lambda s: order[s.module])
        name = next(s.module for s in ordered if s.role == "out")
        found.append(one_axis(name, "channels", units, [*ordered, *(readers if is_output else ())]))
    return sorted(found, key=lambda group: order[group.name])


def _conv_slices(path: str, sub: nn.Module, is_reader: bool) -> list[Slice]:
    if is_reader and getattr(sub, "groups", 1) == 1:
        return [Slice(path, "weight", 1, "in")]
    tensors = [n for n, _ in sub.named_parameters(recurse=False)] + [n for n, b in sub.named_buffers(recurse=False) if b.dim() > 0]
    return [Slice(path, name, 0, "out") for name in tensors]


def mark(shape: Sequence[int], slices: Iterable[tuple[Slice, Sequence[int]]]) -> Tensor:
    """True where a tensor of this shape belongs to one of the given units; all slices must be of that tensor."""
    import torch

    marked = torch.zeros(tuple(shape), dtype=torch.bool)
    for s, units in slices:
        positions = torch.tensor(list(chain.from_iterable(s.positions(units))), dtype=torch.long)
        s.region(marked).index_fill_(s.axis, positions, True)
    return marked


def slices_by_tensor(groups: Iterable[Group], cut: Cut) -> dict[str, list[tuple[Slice, Sequence[int]]]]:
    """{tensor: (slice, units) that a cut touches in it}."""
    touched: dict[str, list[tuple[Slice, Sequence[int]]]] = {}
    for group in groups:
        for axis in group.axes:
            units = cut.get(group.name, {}).get(axis.name, ())
            for s in axis.slices if units else ():
                touched.setdefault(s.key, []).append((s, units))
    return touched


def remove(state: Mapping[str, Tensor], groups: Sequence[Group], cut: Cut) -> dict[str, Tensor]:
    """A state dict without the cut units' rows and columns.

    Raises:
        ValueError: the cut leaves a tensor that is no rectangle: axes of one group with unequal counts.
    """
    narrowed = dict(state)
    for key, slices in slices_by_tensor(groups, cut).items():
        tensor = state[key]
        kept = ~mark(tensor.shape, slices)
        # A removed index on an axis is one where nothing of a limited slice's rows is left.
        shape = [int(_kept_along(kept, axis)) for axis in range(tensor.dim())]
        if prod(shape) != int(kept.sum()):
            raise ValueError(f"{key}: {list(tensor.shape)} cannot be cut to a rectangle; its axes keep unequal counts")
        narrowed[key] = tensor[kept].reshape(shape).clone()
    return narrowed


def _kept_along(kept: Tensor, axis: int) -> int:
    """Length that is left of an axis: the rows of which anything is left, and else the most entries kept on any line along it.

    Not the same for rows: where each loses columns of its own, no column need be left in all of them.
    """
    return (kept.flatten(1).any(1) if kept.dim() > 1 else kept).sum() if axis == 0 else kept.sum(axis).max()


def heads_after(heads: Mapping[str, int], groups: Sequence[Group], cut: Cut) -> dict[str, int]:
    """Head counts after a cut: the granules that stay of the group that an attention follows."""
    after = dict(heads)
    for group in groups:
        axis = group.axes[0]
        removed = len(cut.get(group.name, {}).get(axis.name, ())) // axis.step
        for path in group.heads:
            after[path] = heads[path] - removed
    return after


def summary(groups: Sequence[Group], cut: Cut) -> list[dict]:
    """Per group: its widths before and after and the removed units, as prune.json holds them."""
    rows = []
    for group in groups:
        removed = {axis.name: sorted(cut.get(group.name, {}).get(axis.name, ())) for axis in group.axes}
        first = group.axes[0]
        rows.append({"group": group.name, "kind": group.kind, "before": first.units, "after": first.units - len(removed[first.name]), "removed": removed})
    return rows

"""Which tensor of B belongs to which of A: the one of exactly its name, or the one that a mapping file says.

A mapping file is YAML, B's name to A's, for inputs and outputs alike:

    StatefulPartitionedCall:0: mask
    serving_default_x:0: audio

Nothing is paired by position or by part of a name: that is how wrong outputs come to agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit import document
from edgekit.document import suggestion
from edgekit.errors import DataError, UsageError
from edgekit.parity.runners import Arrays, Port, Side

if TYPE_CHECKING:
    import numpy as np


def read_map(path: Path) -> dict[str, str]:
    """{B's name: A's name} of a mapping file.

    Raises:
        RecipeError, UsageError: not a YAML mapping of words to words, or two names for one of A's.
    """
    read = document.read(path)
    found: dict[str, str] = {}
    for theirs, ours in read.data.items():
        if not isinstance(ours, str):
            raise UsageError(f"{read.where()}: `{theirs}` is mapped to {ours!r}, expected a name", "one line each: `theirs: ours`")
        if ours in found.values():
            raise UsageError(f"{read.where()}: two names are mapped to `{ours}`", "each tensor of A has one partner")
        found[theirs] = ours
    return found


def pair_outputs(a: Side, b: Side, mapping: Mapping[str, str], only: Sequence[str] = (), without_states: bool = False) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """([(A's output, B's)], those of A left out, those of B left out), in A's order.

    Args:
        mapping: {B's name: A's}.
        only: A's outputs to compare; all if empty.
        without_states: of streams, whose states go round inside each side: they may be other ones, and are compared by what they do.

    Raises:
        DataError: an output has no partner; all are named.
        UsageError: `only` or the mapping names what is not there.
    """
    for name in mapping:
        if name not in b.outputs and name not in b.inputs:
            raise UsageError(f"{b.text}: the mapping names `{name}`, which is not there", suggestion(name, [*b.outputs, *b.inputs]))
    for name in only:
        if name not in a.outputs:
            raise UsageError(f"{a.text}: there is no output `{name}`", suggestion(name, list(a.outputs)))
    ours, theirs = (states_apart(side, side.outputs) if without_states else list(side.outputs) for side in (a, b))
    partner = {mapping.get(name, name): name for name in theirs}
    wanted = [name for name in only if name in ours] or ours
    missing = [name for name in wanted if name not in partner]
    unexpected = [] if only else sorted(set(partner) - set(ours))
    if missing or unexpected:
        parts = [f"{what} {', '.join(f'`{n}`' for n in names)}" for what, names in (("B has no", missing), ("A has no", unexpected)) if names]
        raise DataError(f"{a.text} and {b.text}: outputs do not match: {'; '.join(parts)}", "name their partners in a mapping file (`--map`), or choose with `--outputs`")
    pairs = [(name, partner[name]) for name in wanted]
    return pairs, [n for n in ours if n not in wanted], [n for n in theirs if n not in dict(pairs).values()]


def states_apart(side: Side, names: Iterable[str]) -> list[str]:
    """`names` without the outputs that carry a state."""
    carried = {state.output for state in side.states}
    return [name for name in names if name not in carried]


def feeds_of(side: Side, sample: Arrays, mapping: Mapping[str, str]) -> dict[str, np.ndarray]:
    """What one side is fed with a sample, whose names are A's; states that the sample lacks start at their init.

    Raises:
        DataError: an input has no tensor, or one of another shape.
    """
    import numpy as np

    init = {state.input: state for state in side.states}
    feeds = {}
    for name, port in side.inputs.items():
        given = sample.get(mapping.get(name, name))
        if given is not None:
            feeds[name] = fit(given, port, f"{side.text}: input `{name}`")
        elif name in init:
            feeds[name] = np.full(init[name].shape, init[name].init, port.dtype)
        else:
            raise DataError(f"{side.text}: the data has no `{name}`", suggestion(name, list(sample)) or "name it in a mapping file (`--map`)")
    return feeds


def fit(array: np.ndarray, port: Port, where: str) -> np.ndarray:
    """`array` in the port's dtype, with or without batch 1 in front.

    Raises:
        DataError: its shape does not fit, or its numbers would change in the port's dtype.
    """
    import numpy as np

    for shaped in (array, array[None], array[0] if array.shape[:1] == (1,) else None):
        if shaped is not None and shaped.ndim == len(port.shape) and all(want in (None, got) for want, got in zip(port.shape, shaped.shape, strict=True)):
            break
    else:
        raise DataError(f"{where} takes {port}, the data has {array.dtype} {list(array.shape)}", "give data of this shape")
    dtype = np.dtype(port.dtype)
    if shaped.dtype.kind == "f" and dtype.kind in "iub":
        raise DataError(f"{where} takes {port}, the data has {array.dtype}", "give whole numbers")
    return np.ascontiguousarray(shaped, dtype)


def aligned(a: Side, b: Side, name: str, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in one shape: where only one side has a batch axis, its 1 is taken off.

    Raises:
        DataError: the shapes differ.
    """
    if a.has_batch and not b.has_batch and x.shape[:1] == (1,) and x.ndim == y.ndim + 1:
        x = x[0]
    elif b.has_batch and not a.has_batch and y.shape[:1] == (1,) and y.ndim == x.ndim + 1:
        y = y[0]
    if x.shape != y.shape:
        raise DataError(f"output `{name}` has shape {list(x.shape)} in A ({a.text}) and {list(y.shape)} in B ({b.text})", "values are compared only where shapes agree")
    return x, y

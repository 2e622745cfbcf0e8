"""Which inner tensor of B holds what which tensor of A holds.

By name first: all graphs that edgekit makes of one model share their names. Where names say
nothing, by structure (the same op on matched inputs) and by value: size, sum, sum of squares, smallest and
largest on a sample, which are the same in every layout; the axes' order is then found from the values.
To see behind a layer that is wrong, B is run with its matched tensors fed from A.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from edgekit.parity.surgery import DEQUANTIZE, PASSING, QUANTIZE, Net

Arrays = Mapping[str, np.ndarray]
MAX_ROUNDS = 6
FLOAT_CLOSE, INT8_CLOSE = 1e-3, 0.08
"""Relative distance of two fingerprints: float32 sums in another order keep 1e-3 with ease; a tensor between INT8 layers has some 20 to 40 dB of noise."""
MIN_COSINE = 0.5
"""Of two tensors of one name whose nodes are of different ops: below, the name is a coincidence (many exporters number tensors)."""


@dataclass(frozen=True)
class Match:
    """One tensor of A, and how it is turned into B's layout.

    Attributes:
        a: A's name.
        how: name, structure or value.
        perm: order of A's axes in B; None if it is the same.
        shape: B's shape.
    """

    a: str
    how: str
    perm: tuple[int, ...] | None
    shape: tuple[int, ...]

    def to_b(self, value: np.ndarray) -> np.ndarray:
        turned = value if self.perm is None else np.transpose(value, self.perm)
        return np.ascontiguousarray(turned.reshape(self.shape) if turned.shape != self.shape else turned)

    @property
    def is_plain(self) -> bool:
        return self.perm is None


def match(a: Net, b: Net, inputs: Mapping[str, str], values_a: Arrays, values_b: Arrays, run_clean: Callable[[Mapping[str, Match]], Arrays]) -> dict[str, Match]:
    """{B's tensor: its partner in A}, graph inputs among them.

    Args:
        inputs: {B's input: A's}.
        values_a, values_b: every float tensor on one sample, as each side computes it.
        run_clean: B's tensors when those that are matched so far are fed from A.
    """
    found = {theirs: Match(ours, "name", None, values_b[theirs].shape) for theirs, ours in inputs.items() if theirs in values_b and values_a[ours].size == values_b[theirs].size}
    for name in b.tensors:
        if name in values_a and name in values_b and name not in found and _same_name(a, b, name, values_a[name], values_b[name]):
            layout = _layout(values_a[name], values_b[name], math.inf)
            if layout is not None:
                found[name] = Match(name, "name", layout or None, values_b[name].shape)
    close = INT8_CLOSE if any(node.op_type in QUANTIZE for node in (*a.nodes, *b.nodes)) else FLOAT_CLOSE
    seen = values_b
    for _ in range(MAX_ROUNDS):
        before = len(found)
        _by_structure(a, b, found, values_a, values_b)
        if _open(a, b, found, values_a, values_b):
            _by_value(a, b, found, values_a, seen, close)
            _by_structure(a, b, found, values_a, values_b)
        if len(found) == before or not _open(a, b, found, values_a, values_b):
            break
        seen = {**values_b, **run_clean(found)}
    return found


def _same_name(a: Net, b: Net, name: str, x: np.ndarray, y: np.ndarray) -> bool:
    if x.size != y.size:
        return False
    if a.op(name) == b.op(name) or b.op(name) in DEQUANTIZE or (name in a.outputs and name in b.outputs):
        return True
    if a.nodes[a.producer[name]].name and a.nodes[a.producer[name]].name == b.nodes[b.producer[name]].name:
        return True
    perm = _layout(x, y, math.inf)
    return cosine(np.transpose(x, perm) if perm else x, y) > MIN_COSINE


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x.astype(np.float64).reshape(-1), y.astype(np.float64).reshape(-1)
    norms = math.sqrt(float(x @ x)) * math.sqrt(float(y @ y))
    return float(x @ y) / norms if norms > 0 else 0.0


def _open(a: Net, b: Net, found: Mapping[str, Match], values_a: Arrays, values_b: Arrays) -> bool:
    """Whether anything is left on both sides that might be matched."""
    taken = {m.a for m in found.values()}
    return any(name in values_a and name not in taken for name in a.tensors) and any(_is_candidate(b, name, found, values_b) for name in b.tensors)


def _is_candidate(b: Net, name: str, found: Mapping[str, Match], values_b: Arrays) -> bool:
    return name not in found and name in values_b and b.op(name) not in DEQUANTIZE


# --------------------------------------------------------------------------- structure


def _by_structure(a: Net, b: Net, found: dict[str, Match], values_a: Arrays, values_b: Arrays) -> None:
    """Match outputs of nodes of one op whose data comes from matched tensors in the same places."""
    taken = {m.a for m in found.values()}
    waiting: dict[tuple, list[int]] = {}
    computed = set(a.tensors)
    for i, node in enumerate(a.nodes):
        if any(name in computed for name in node.output):
            key = (node.op_type, tuple(_place(a.source(name), a) if name else "" for name in node.input))
            waiting.setdefault(key, []).append(i)
    for i, node in enumerate(b.nodes):
        outputs = [name for name in node.output if _is_candidate(b, name, found, values_b)]
        if not outputs or (node.op_type in PASSING and sum(bool(n) for n in node.input) == 1):
            continue
        places = []
        for name in node.input:
            source = _matched_source(b, name, found) if name and name not in b.constants else name
            partner = found.get(source)
            if name and name not in b.constants and (partner is None or not partner.is_plain):
                break
            places.append(a.source(partner.a) if partner is not None else ("" if not name else None))
        else:
            candidates = [j for j in waiting.get((node.op_type, tuple(places)), ()) if not any(n in taken for n in a.nodes[j].output if n)]
            j = _best(a, b, candidates, i)
            if j is None:
                continue
            for theirs, ours in zip(node.output, a.nodes[j].output, strict=False):
                if theirs in outputs and ours in values_a and values_a[ours].shape == values_b[theirs].shape:
                    found[theirs] = Match(ours, "structure", None, values_b[theirs].shape)
                    taken.add(ours)


def _place(name: str, net: Net) -> str | None:
    return None if name in net.constants else name


def _matched_source(b: Net, name: str, found: Mapping[str, Match]) -> str:
    """The nearest matched tensor that `name` only copies or rounds."""
    while name not in found:
        node = b.nodes[b.producer[name]] if name in b.producer else None
        data = [n for n in node.input if n] if node is not None else []
        if node is None or not (node.op_type in (*QUANTIZE, *DEQUANTIZE) or (node.op_type in PASSING and len(data) == 1)):
            break
        name = data[0]
    return name


def _best(a: Net, b: Net, candidates: list[int], i: int) -> int | None:
    """The node of A whose weights are nearest to those of B's node `i`."""
    if len(candidates) <= 1:
        return candidates[0] if candidates else None

    def distance(j: int) -> float:
        total = 0.0
        for ours, theirs in zip(a.nodes[j].input, b.nodes[i].input, strict=False):
            if not (ours in a.constants and theirs in b.constants):
                continue
            x, y = a.constant(ours), b.constant(theirs)
            if x is None or y is None or x.shape != y.shape:
                total += 1.0
            else:
                scale = float(np.abs(x.astype(np.float64)).sum())
                total += float(np.abs(x.astype(np.float64) - y.astype(np.float64)).sum()) / scale if scale else float(np.abs(y).sum() > 0)
        return total

    distances = sorted((distance(j), j) for j in candidates)
    return distances[0][1] if distances[0][0] < 0.5 * distances[1][0] or distances[0][0] < 1e-6 else None


# --------------------------------------------------------------------------- values


def fingerprint(value: np.ndarray) -> tuple[int, float, float, float, float]:
    """Size, sum, sum of squares, smallest, largest: the same in every layout."""
    x = value.astype(np.float64).reshape(-1)
    return (x.size, float(x.sum()), float(x @ x), float(x.min(initial=0)), float(x.max(initial=0)))


def _near(x: tuple, y: tuple, close: float) -> bool:
    if x[0] != y[0] or not (math.isfinite(x[2]) and math.isfinite(y[2])):
        return False
    power = max(x[2], y[2])
    peak = max(abs(x[3]), abs(x[4]), abs(y[3]), abs(y[4]))
    return (
        abs(x[2] - y[2]) <= 2 * close * power
        and abs(x[1] - y[1]) <= close * math.sqrt(power * x[0])
        and abs(x[3] - y[3]) <= 2 * close * peak and abs(x[4] - y[4]) <= 2 * close * peak
    )  # fmt: skip


def _by_value(a: Net, b: Net, found: dict[str, Match], values_a: Arrays, values_b: Arrays, close: float) -> None:
    taken = {m.a for m in found.values()}
    ours = {name: fingerprint(values_a[name]) for name in a.tensors if name in values_a and name not in taken and values_a[name].size > 1}
    by_size: dict[int, list[str]] = {}
    for name, print_ in ours.items():
        by_size.setdefault(print_[0], []).append(name)
    for theirs in b.tensors:
        if not _is_candidate(b, theirs, found, values_b) or values_b[theirs].size not in by_size:
            continue
        mark = fingerprint(values_b[theirs])
        near = [name for name in by_size[mark[0]] if name not in taken and _near(ours[name], mark, close)]
        # Of several tensors with one content the one of the same op, then the first: what only moves values follows in order.
        for name in sorted(near, key=lambda name: a.op(name) != b.op(theirs)):
            layout = _layout(values_a[name], values_b[theirs], close)
            if layout is not None:
                found[theirs] = Match(name, "value", layout or None, values_b[theirs].shape)
                taken.add(name)
                break


def _layout(x: np.ndarray, y: np.ndarray, close: float) -> tuple[int, ...] | None:
    """The order of x's axes that gives y, () for the order that they have; None if none does within `close` of y's power."""
    if x.shape == y.shape and not math.isfinite(close):
        return None if x.size == 0 else ()
    power = float((y.astype(np.float64) ** 2).sum())
    best, least = None, math.inf
    for perm in itertools.permutations(range(x.ndim)) if x.ndim <= 5 else [tuple(range(x.ndim))]:
        turned = np.transpose(x, perm)
        is_identity = perm == tuple(range(x.ndim))
        if not is_identity and _squeezed(turned.shape) != _squeezed(y.shape):
            continue
        noise = float(((turned.reshape(-1).astype(np.float64) - y.reshape(-1)) ** 2).sum())
        if noise < least:
            best, least = (() if is_identity else perm), noise
    return best if best is not None and (not math.isfinite(close) or least <= close * power) else None


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)

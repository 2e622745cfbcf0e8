"""GELU as one op."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edgekit.graph import Editor, constant, shape_of
from edgekit.rewrites.change import Change, nodes_of

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAIN = "com.microsoft"  # ONNX Runtime's; ONNX itself has Gelu from opset 20 on


def fuse_gelu(model: ir.Model) -> list[Change]:
    """x * (1 + erf(x / sqrt 2)) / 2 in the exporters' five ops -> one Gelu, named by the module that they stand in.

    TFLite has a GELU and no Erf. ONNX Runtime executes the op in its own domain.

    ensures: no such chain whose inner tensors nobody else reads.
    """
    edit, changes = Editor(model), []
    for erf in nodes_of(model, "Erf"):
        chain = _chain(erf)
        if chain is None:
            continue
        x, last = chain
        y = _add_gelu(edit, last, x, _module_path(erf.name))
        edit.take_over(last.outputs[0], y)
        changes.append(Change("fuse_gelu", y.producer().name))
    if changes:
        model.opset_imports.setdefault(DOMAIN, 1)
    return changes


def _module_path(name: str) -> str:
    """`ffn/gelu/Erf_1` -> `ffn/gelu/Gelu_1`: a second call of the module keeps its number."""
    head, _, tail = name.rpartition("/")
    return f"{head}/{tail.replace('Erf', 'Gelu', 1)}" if head else tail.replace("Erf", "Gelu", 1)


def _add_gelu(edit: Editor, before: ir.Node, x: ir.Value, name: str) -> ir.Value:
    y = edit.add(before, "Gelu", [x], shape_of(x), name=name)
    y.producer().domain = DOMAIN
    return y


def _chain(erf: ir.Node) -> tuple[ir.Value, ir.Node] | None:
    """(x, the last node) of the chain around an Erf: scaled -> Erf -> + 1 -> times x and 1/2, in either order."""
    scaled = erf.inputs[0].producer()
    if scaled is None or not _only_read_by(scaled, erf):
        return None
    x = _times(scaled, math.sqrt(0.5))
    add = _only_reader(erf)
    if x is None or add is None or add.op_type != "Add" or _other_number(add, erf.outputs[0]) != 1.0:
        return None
    last = _only_reader(add)
    if last is None:
        return None
    if last.op_type == "Mul" and _other(last, add.outputs[0]) is x:  # (1 + erf) * x, then halved
        final = _only_reader(last)
        return (x, final) if final is not None and _times(final, 0.5) is last.outputs[0] else None
    if _times(last, 0.5) is add.outputs[0]:  # (1 + erf) / 2, then times x
        final = _only_reader(last)
        return (x, final) if final is not None and final.op_type == "Mul" and _other(final, last.outputs[0]) is x else None
    # (x / 2) * (1 + erf)
    half = _other(last, add.outputs[0]) if last.op_type == "Mul" else None
    if half is not None and half.producer() is not None and _times(half.producer(), 0.5) is x and _only_read_by(half.producer(), last):
        return x, last
    return None


def _times(node: ir.Node, factor: float) -> ir.Value | None:
    """The activation that `node` multiplies by `factor`, a Div by its inverse included."""
    for i, value in enumerate(node.inputs):
        number = _number(node.inputs[1 - i]) if len(node.inputs) == 2 else None
        if number is None:
            continue
        if node.op_type == "Mul" and math.isclose(number, factor, rel_tol=1e-6):
            return value
        if node.op_type == "Div" and i == 0 and math.isclose(number, 1 / factor, rel_tol=1e-6):
            return value
    return None


def _number(value: ir.Value | None) -> float | None:
    array = constant(value)
    return float(np.reshape(array, ())) if array is not None and array.size == 1 else None


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    return next((v for v in node.inputs if v is not value), None)


def _other_number(node: ir.Node, value: ir.Value) -> float | None:
    return _number(_other(node, value))


def _only_reader(node: ir.Node) -> ir.Node | None:
    uses = list(node.outputs[0].uses())
    return uses[0].node if len(uses) == 1 and not node.outputs[0].is_graph_output() else None


def _only_read_by(node: ir.Node, reader: ir.Node) -> bool:
    return _only_reader(node) is reader

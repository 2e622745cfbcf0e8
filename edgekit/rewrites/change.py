"""What every rewrite is made of: the record of a change, and names that successors keep."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgekit.graph import Editor


@dataclass(frozen=True)
class Change:
    """One place that a rewrite changed.

    Attributes:
        rewrite: the function's name.
        site: name of the node that was rewritten.
        tensors: {new tensor: its range word}. Tensors that a later step removed are kept: a chain of
            `same_as` may lead through them.
        fp32: new nodes that overflow or lose their meaning in FP16 and must stay in FP32.
    """

    rewrite: str
    site: str
    tensors: dict[str, str] = field(default_factory=dict)
    fp32: tuple[str, ...] = ()


def nodes_of(model: ir.Model, *op_types: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type in op_types]


_REPLACED = "\0replaced "


def free_name(edit: Editor, node: ir.Node) -> str:
    """The name of a node that is about to be replaced, so that its successor can have it."""
    name = node.name
    edit._taken.discard(name)
    node.name = _REPLACED + name
    return name


def site_of(node: ir.Node) -> str:
    return node.name.removeprefix(_REPLACED)

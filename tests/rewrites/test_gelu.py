"""GELU as one op: the same values, named by its module."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch.nn.functional as F
from torch import nn

from edgekit import graph, rewrites
from tests.onnx_nets import Block, Lambda, Stem, export, feeds, op_counts, run


@pytest.mark.parametrize("module, shape, count", [(Block(), (1, 7, 12), 1), (Stem(), (1, 400), 4), (Lambda(lambda m, x: F.gelu(x)), (2, 3), 1)])
def test_gelu_equals_its_five_ops(tmp_path, module, shape, count):
    path = export(tmp_path, module, shape)
    model = graph.load(path)
    changes = rewrites.apply(model, "fuse_gelu")
    assert len(changes) == count == op_counts(model)["Gelu"] and "Erf" not in op_counts(model)
    graph.save(model, tmp_path / "after.onnx")
    fed = feeds(model)
    want, got = run(path, fed), run(tmp_path / "after.onnx", fed)
    for name in want:
        np.testing.assert_allclose(got[name], want[name], atol=1e-5 * max(1.0, np.abs(want[name]).max()))
    assert {node.name for node in model.graph if node.op_type == "Gelu"} == {change.site for change in changes}


def test_it_is_named_by_its_module_and_keeps_its_tensors_name(tmp_path):
    path = export(tmp_path, Lambda(lambda m, x: m.b(m.act(m.a(x))), a=nn.Linear(4, 8), act=nn.GELU(), b=nn.Linear(8, 4)), (2, 4))
    model = graph.load(path)
    before = {v.name for node in model.graph for v in node.outputs}
    rewrites.apply(model, "fuse_gelu")
    gelu = next(node for node in model.graph if node.op_type == "Gelu")
    assert gelu.name == "act/Gelu" and gelu.domain == "com.microsoft" and gelu.outputs[0].name in before


def chain(order: str):
    """x -> y in one of the ways to write it, and the same with another number in it."""
    steps = {
        "half last": [("Mul", "x r", "s"), ("Erf", "s", "e"), ("Add", "one e", "a"), ("Mul", "x a", "m"), ("Mul", "m h", "y")],
        "half first": [("Mul", "x r", "s"), ("Erf", "s", "e"), ("Add", "e one", "a"), ("Mul", "x h", "xh"), ("Mul", "xh a", "y")],
        "half of the sum": [("Div", "x d", "s"), ("Erf", "s", "e"), ("Add", "e one", "a"), ("Mul", "a h", "m"), ("Mul", "m x", "y")],
    }[order]
    return [onnx.helper.make_node(op, ins.split(), [out], f"n{i}") for i, (op, ins, out) in enumerate(steps)]


@pytest.mark.parametrize("order", ["half last", "half first", "half of the sum"])
@pytest.mark.parametrize("wrong", [None, "one", "h", "root"])
def test_every_order_is_known_and_other_numbers_are_not_gelu(order, wrong):
    import onnx_ir as ir

    numbers = {"one": 1.0, "h": 0.5, "r": 0.5**0.5, "d": 2**0.5}
    if wrong:
        numbers.update({"root": {"r": 0.7, "d": 1.4}}.get(wrong, {wrong: 0.75}))
    info = onnx.helper.make_tensor_value_info
    proto = onnx.helper.make_graph(
        chain(order), "g", [info("x", 1, [3])], [info("y", 1, [3])], [onnx.numpy_helper.from_array(np.float32(v), k) for k, v in numbers.items()]
    )
    model = ir.from_proto(onnx.helper.make_model(proto, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8))
    graph.tidy(model)
    changes = rewrites.apply(model, "fuse_gelu")
    assert len(changes) == (0 if wrong else 1)
    assert [node.op_type for node in model.graph] == ["Gelu"] or wrong

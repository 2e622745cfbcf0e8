"""The targets' tables: every row has a source, and every recipe's own graphs pass them, op by op."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from edgekit import graph
from edgekit.errors import TargetError
from edgekit.stages import export
from edgekit.target import load_target
from tests.backends.tensorrt import recipes
from tests.backends.tensorrt.nets import ROOT

TARGETS = [path.stem for path in sorted((ROOT / "targets").glob("*.yaml")) if yaml.safe_load(path.read_text())["backend"] == "tensorrt"]


@pytest.mark.parametrize("name", TARGETS)
def test_every_row_has_a_source_that_is_listed(name):
    target = load_target(name, ROOT)
    tables = {"ops": (target.ops, target.sources), **({"unit.ops": (target.unit.ops, target.unit.sources)} if target.unit else {})}
    for table, (rows, sources) in tables.items():
        listed = {match[1] for source in sources if (match := re.match(r"\[(\w+)\] \S+", source))}
        assert len(listed) == len(sources)
        for op, rule in rows.items():
            named = set(re.findall(r"\[(\w+)\]", rule.source or ""))
            assert named or "/issues/" in (rule.source or "") or " issues " in (rule.source or ""), f"{table}.{op}: no source"
            assert named <= listed, f"{table}.{op}: {named - listed} stands not under `sources`"


@pytest.mark.parametrize("name", TARGETS)
def test_the_types_of_a_row_are_those_that_its_source_names(name):
    """The operator table writes FP32, FP16, INT8..; a row that takes more than its source says would be a wish."""
    words = {"float32": "FP32", "float16": "FP16", "int32": "INT32", "int64": "INT64", "bool": "BOOL"}
    checked = 0
    for op, rule in load_target(name, ROOT).ops.items():
        match = re.search(r"\[operators\] ([A-Z0-9, ]+)", rule.source or "")
        if match and match[1].strip(", ") != "N":
            told = set(match[1].replace(" ", "").strip(",").split(","))
            assert {words[dtype] for dtype in rule.dtypes} <= told, op
            checked += 1
    assert checked > 30


@pytest.mark.parametrize("name", recipes.names())
def test_the_graphs_of_every_recipe_pass_the_whole_check(graphs_of, name):
    """Ops, types, ranks, opset, int64, constants and attributes, of each engine in the form that the device gets."""
    made = graphs_of(name)
    assert made
    for engine in made:
        export._check(engine.target, engine.engine, engine.model)
        limits = np.iinfo(np.int32)
        for value in engine.model.graph.initializers.values():
            array = graph.constant(value)
            if array.dtype == np.int64 and "clamp_int64" in engine.target["rewrites"]:
                assert ((array >= limits.min) & (array <= limits.max)).all(), value.name
        assert engine.model.graph.opset_imports[""] <= engine.target["opset_max"]


def broken(model, change: str):
    """A copy of a recipe's graph with one thing that TensorRT 8.5 does not take."""
    model = model.clone(deep_copy=True)
    edit = graph.Editor(model)

    def first(op):
        return next(node for node in model.graph if node.op_type == op)

    if change == "layout":
        import onnx_ir as ir

        first("LSTM").attributes.add(ir.AttrInt64("layout", 1))
    elif change == "opset":
        model.graph.opset_imports[""] = 18
    elif change == "op":
        first("Softmax").op_type = "BitShift"
    elif change == "dtype":
        import onnx_ir as ir

        node = first("Conv")
        for value in (*node.inputs, *node.outputs):
            value.type = ir.TensorType(ir.DataType.DOUBLE)
    elif change == "rank":
        node = first("Conv")
        node.replace_input_with(0, edit.add(node, "Reshape", [node.inputs[0], edit.constant("s", np.array([1, 1, 1, -1]))], (1, 1, 1, 1, 1, 1)))
    elif change == "constant":
        node = first("Squeeze")
        axes = edit.add(node, "Mul", [node.inputs[1], node.inputs[1]], (1,))
        node.replace_input_with(1, axes)
    return model


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("layout", r"\(LSTM\) has layout 1, taken: 0"),
        ("opset", "opset 18 is used, at most 17"),
        ("op", "`BitShift` in engine `head` is not in the table"),
        ("dtype", "has dtype float64, taken: float32, float16"),
        ("rank", "has rank 6, taken: 4, 5"),
        ("constant", r"\(Squeeze\) computes its input 1"),
    ],
)
def test_one_thing_that_the_table_does_not_take_is_found_in_a_real_graph(graphs_of, change, said):
    head = next(engine for engine in graphs_of("mhlt_xavier") if engine.engine == "head")
    with pytest.raises(TargetError, match=said) as caught:
        export._check(head.target, head.engine, broken(head.model, change))
    assert caught.value.exit_code == 4


def test_inputs_that_must_be_constants_and_outputs_that_must_not_be_read_are_told():
    from edgekit.target import attribute_faults, problems

    target = load_target("jetson_xavier", ROOT)
    row = {"engine": "main", "op": "Clip", "rank": 4, "dtype": "float32", "inputs": [4, 0, 0], "const_inputs": [False, True, False]}
    assert problems(target, {"opset": 17, "ops": [row]}) == ["`Clip` in engine `main` computes its input 2, which must be a constant"]
    assert problems(target, {"opset": 17, "ops": [{**row, "inputs": [4, 0, -1]}]}) == []  # left out
    assert attribute_faults(target, "MaxPool", {"dilations": (2, 2)}, 2) == ["has dilations [2, 2], taken: [1, 1], [1, 1, 1]", "has 2 outputs that are used, taken: 1"]
    assert attribute_faults(target, "MaxPool", {}, 1) == attribute_faults(target, "Relu", {"any": 1}, 1) == []


def test_the_new_rows_do_not_enter_the_key_of_quantize():
    from edgekit.recipe import load_recipe
    from edgekit.stages import quantize

    recipe = load_recipe(Path(ROOT) / "recipes/mhlt_xavier.yaml")
    spec, _ = quantize.plan(recipe, load_target(recipe.target, recipe.dir))
    assert spec["int8"]["Clip"] and not any(key in rule for rule in spec["int8"].values() for key in quantize.CHECKED_LATER)

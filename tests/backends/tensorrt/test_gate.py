"""The RTX gate: what the compiler's log says, refusals by name, and every TensorRT recipe's own graphs."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from edgekit import graph
from edgekit.backends.tensorrt import forms, gate
from edgekit.errors import TargetError, ToolMissing
from tests.backends.tensorrt import recipes
from tests.backends.tensorrt.nets import make

needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed: pip install 'edgekit[tensorrt]'")

# Two lines as TensorRT-RTX 1.7.1.116 writes them, shortened: a convolution of integers, and the kernel behind it.
LOG = """\
VERBOSE Layers:
Name: body/Conv_myl0_55, LayerType: correlation, Inputs: [ { Name: a, Dimensions: [1,48,1,4,4], StrideOrder: [4,0,3,2,1], Datatype: Int8, Format: (NDHWC) }], Constants: [ { Name: w, Dimensions: [288,48,1,1,1], Datatype: Int8, Format: (NDHWC) }, { Name: s, Dimensions: [1,288,1,1,1], Datatype: Float, Format: (NDHWC) }], Outputs: [ { Name: b, Dimensions: [1,288,1,4,4], Datatype: Float, Format: (NDHWC) }], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: body/Conv][ONNX Layer: x_out/DequantizeLinear]
Name: __myl_MulAdd_myl0_56, LayerType: kgen, Inputs: [ { Name: b, Dimensions: [1,288,1,4,4], Datatype: Float, Format: (NDHWC) }], Constants: [], Outputs: [ { Name: c, Dimensions: [1], Datatype: Half, Format: (Linear) }], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: body/Conv][ONNX Layer: gelu/Mul]
 Name: clip, IOMode: Input, DataType: Float, Dimensions: [1,3,8,64,64]
"""


def test_the_list_of_layers_is_read_out_of_the_log():
    conv, generated = gate.rows_of(LOG.splitlines())
    assert conv == gate.Row("body/Conv_myl0_55", "correlation", ("Int8",), ("Int8", "Float"), ("Float",), ("body/Conv", "x_out/DequantizeLinear"))
    assert generated.kind == "kgen" and generated.nodes == ("body/Conv", "gelu/Mul")
    built = gate.Built("", (conv, generated), 0)
    assert gate.precisions(built, ["body/Conv", "gone/Conv"]) == {"body/Conv": "int8", "gone/Conv": "not found"}


@pytest.mark.parametrize(
    ("rows", "want"),
    [
        ([("correlation", ("Int8",), ("Int8", "Float"))], "int8"),
        ([("correlation", ("Half",), ("Half",))], "fp16"),
        ([("correlation", ("Int8",), ("Float",))], "fp32"),  # integers in, float weights
        ([("correlation", ("Int8",), ("Int8",)), ("correlation", ("Float",), ("Int8",))], "fp32"),  # one of its two kernels
        ([("gemm", ("Half", "Half"), ("Float", "Float"))], "fp16"),  # two activations: the constants are alpha and beta
        ([("kgen", ("Int8",), ())], "not found"),  # generated kernels do not show that they compute on integers
        ([], "not found"),
    ],
)
def test_int8_is_what_reads_integers_and_holds_integer_weights(rows, want):
    assert gate.precision([gate.Row("x", kind, inputs, constants, ("Int8",), ("n",)) for kind, inputs, constants in rows]) == want


@needs_rtx
@pytest.mark.parametrize("form", ["10", "11"])
def test_a_graph_is_compiled_and_every_layer_found_in_the_type_that_was_asked_for(tmp_path, form):
    model, chosen, fp32, _ = make(tmp_path)
    macs = graph.count_macs(tmp_path / "float.onnx")
    built = gate.build(forms.explicit(model, "main") if form == "10" else forms.strong(model, fp32), "main")
    found = gate.precisions(built, macs)
    assert set(chosen.int8) == {node for node, precision in found.items() if precision == "int8"} and len(chosen.int8) == 3
    assert {found[node] for node in macs if node not in chosen.int8} == {"fp32" if form == "10" else "fp16"}
    assert built.engine_bytes > 1000 and f"SM {gate.SM}" in built.compiler


@needs_rtx
def test_an_integer_layer_whose_pair_was_lost_is_seen(tmp_path):
    """The gate must not repeat the declaration: one Q/DQ pair taken out, and the layer is float."""
    model, chosen, fp32, _ = make(tmp_path)
    node = next(node for node in model.graph if node.name == chosen.int8[0])
    pair = node.inputs[0].producer()
    node.replace_input_with(0, pair.inputs[0].producer().inputs[0])
    found = gate.precisions(gate.build(forms.strong(model, fp32), "main"), chosen.int8)
    assert found.pop(node.name) != "int8" and set(found.values()) == {"int8"}


@needs_rtx
def test_a_refusal_names_the_node_and_its_module(tmp_path):
    model, _, _, _ = make(tmp_path)
    edit = graph.Editor(model)
    node = next(node for node in model.graph if node.name == "body/Conv")
    for pair in (node.inputs[0].producer(), node.inputs[0].producer().inputs[0].producer()):
        pair.replace_input_with(2, edit.constant("z", np.asarray(np.int8(3))))
    with pytest.raises(TargetError, match="(?i)zero point") as caught:
        gate.build(model, "main")
    text = str(caught.value)
    assert "engine `main`" in text and "/QuantizeLinear` (QuantizeLinear) of module `" in text and caught.value.exit_code == 4
    assert "cudaError" not in text


@needs_rtx
def test_an_op_that_the_parser_does_not_know_is_named_with_its_module(tmp_path):
    model, _, _, _ = make(tmp_path)
    node = next(node for node in model.graph if node.op_type == "Softmax")
    edit = graph.Editor(model)
    strange = edit.add(node, "STFTish", [node.inputs[0]], graph.shape_of(node.inputs[0]), name="attn/inner/STFTish")
    node.replace_input_with(0, strange)
    with pytest.raises(TargetError, match=r"node `attn/inner/STFTish` \(STFTish\) of module `attn.inner`"):
        gate.build(model, "main")


def test_the_source_of_a_pair_is_the_module_of_its_tensor_or_of_its_reader(tmp_path):
    model, _, _, _ = make(tmp_path)
    nodes = {node.name: node for node in model.graph}
    assert gate.source_of(nodes["body/Conv"]) == "body" == gate.source_of(nodes["body/Conv/weight/DequantizeLinear"])
    assert gate.source_of(nodes["body/Conv"].inputs[0].producer()) == gate.source_of(nodes["body/Conv"].inputs[0].producer().inputs[0].producer())
    assert gate.source_of(nodes["stem/Conv"].inputs[0].producer()) == "stem"  # stands behind a graph input


def test_without_the_package_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "version", lambda: None)
    with pytest.raises(ToolMissing, match="tensorrt-rtx") as caught:
        gate.build(make(tmp_path)[0], "main")
    assert caught.value.exit_code == 5 and "edgekit[tensorrt]" in caught.value.hint


@needs_rtx
@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_passes_the_gate_and_runs_what_it_declares_in_int8(graphs_of, name):
    """Forms 10 and 11 of every engine, from the recipe's own checkpoint."""
    for engine in graphs_of(name):
        macs = graph.count_macs(engine.model)
        made = gate.check(engine.integer, engine.fp32, engine.engine, macs)
        assert {node for node, precision in made["precisions"].items() if precision == "int8"} == set(engine.chosen.int8)
        loops = {node.name for node in engine.model.graph if node.op_type in graph.LOOP_OPS}
        assert {node for node, precision in made["precisions"].items() if precision == "not found"} <= loops  # an unrolled loop may keep no name


@needs_rtx
@pytest.mark.parametrize("name", [name for name in recipes.names() if name.endswith("_orin")])
def test_every_layer_that_a_kit_in_form_10_keeps_from_fp16_is_one_of_the_parsers(graphs_of, name):
    """ek_trt refuses a precision for a layer that the network has not got."""
    for engine in graphs_of(name):
        ten = forms.explicit(engine.integer, engine.engine)
        wide = forms.keep_float32(ten, engine.fp32) - {*engine.chosen.int8, *engine.chosen.fused}
        assert wide <= gate.build(ten, engine.engine).parsed

"""The kit is complete, its coverage adds up, and what the table does not take is refused."""

from __future__ import annotations

import copy
import json

import pytest

from edgekit import graph
from edgekit.backends.tensorrt import cache
from edgekit.errors import TargetError
from edgekit.flow import runs_per_window
from edgekit.formats import read_json
from edgekit.stages import calibrate, export, quantize
from tests.stages.toy_model import TARGET, Noise, flow, link_stages, prune_dir, quantize_spec, run

NEEDS = ("prune", "quantize")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("export")
    prune_dir(root)
    run(calibrate, root, {"clips": 4}, ("prune",), {"data": Noise(4)})
    run(quantize, root, quantize_spec(skip=["cell/out/*"]), ("prune", "calibrate"), {"data": Noise(4)})
    run(export, root, {"target": TARGET}, NEEDS)
    return root


@pytest.fixture
def root(made, tmp_path):
    return link_stages(made, tmp_path, NEEDS)


def test_the_kit_is_complete(made):
    files = {str(p.relative_to(made / "export")) for p in (made / "export").rglob("*") if p.is_file()}
    names = ("model.onnx", "calibration.cache", "precisions.json", "precisions.txt", "int8_tensors.txt")
    shared = {"engines.txt", "build.json", "flow.json", "preprocess.json", "io.json", "names.json", "coverage.json", "target.json"}
    assert files == {f"engines/{e}/{name}" for e in ("encoder", "cell") for name in names} | shared


def test_the_cache_has_a_scale_for_every_tensor_of_an_int8_layer_and_no_other(made):
    layers, ranges = (read_json(made / f"quantize/{name}.json") for name in ("layers", "ranges"))
    for engine in ("encoder", "cell"):
        version, scales = cache.read_cache((made / f"export/engines/{engine}/calibration.cache").read_text())
        assert version == "8502" and set(scales) == set(layers[engine]["tensors"])
        for name, scale in scales.items():
            assert scale == pytest.approx(ranges[engine][name]["scale"], rel=1e-7)
        model = graph.load(made / f"export/engines/{engine}/model.onnx")
        known = {v.name for v in model.graph.inputs} | {v.name for node in model.graph for v in node.outputs}
        assert set(scales) <= known


def test_every_layer_that_computes_has_a_precision(made):
    for engine in ("encoder", "cell"):
        precisions = read_json(made / f"export/engines/{engine}/precisions.json")
        for node in graph.load(made / f"export/engines/{engine}/model.onnx").graph:
            assert (node.name in precisions) == (node.op_type not in (*graph.COPY_OPS, *graph.LOOP_OPS))
    assert set(precisions.values()) <= {"int8", "fp16", "fp32"}


def test_coverage_counts_macs_per_window_and_says_why_not(made):
    coverage = read_json(made / "export/coverage.json")
    runs = runs_per_window(flow(None))
    assert coverage["grade"] == "declared" and runs["cell"] == 9
    total = {e: sum(graph.count_macs(made / f"calibrate/engines/{e}/float.onnx").values()) for e in runs}
    assert coverage["macs"] == sum(total[e] * runs[e] for e in runs)  # rewrites do not change the count
    rows = {(row["engine"], row["node"]): row for row in coverage["layers"]}
    out = rows["cell", "out/Gemm"]
    assert (out["precision"], out["reason"], out["runs_per_window"], out["macs"]) == ("fp16", "quantize.skip: cell/out/*", 9, 8)
    int8 = sum(row["macs"] * row["runs_per_window"] for row in coverage["layers"] if row["precision"] == "int8")
    assert coverage["int8_macs"] == pytest.approx(int8 / coverage["macs"]) == pytest.approx(1 - 72 / coverage["macs"])


def test_names_lead_back_to_the_torch_module(made):
    names = read_json(made / "export/names.json")
    assert names["encoder"]["layers"]["c1/Conv"] == "c1"
    assert names["cell"]["layers"]["out/Gemm"] == "out"


def test_the_models_file_is_free_of_quantization_ops_and_within_the_opset(made):
    for engine in ("encoder", "cell"):
        model = graph.load(made / f"export/engines/{engine}/model.onnx")
        assert model.graph.opset_imports[""] == 17 and model.ir_version == 8
        assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in model.graph}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t["ops"].pop("Sqrt"), "`Sqrt` in engine `encoder` .*is not in the table"),
        (lambda t: t["ops"]["Conv"].update(ranks=[5]), "`Conv` .* has rank 4, taken: 5"),
        (lambda t: t["ops"]["Add"].update(dtypes=["float16"]), "`Add` .* has dtype float32, taken: float16"),
        (lambda t: t.update(opset_max=16), "opset 17 is used, at most 16"),
        (lambda t: t["ops"]["ReduceMean"].update(max_opset=16), "`ReduceMean` .* is of opset 17, taken up to 16"),
    ],
)
def test_what_the_table_does_not_take_is_refused_by_name(root, change, message):
    target = copy.deepcopy(TARGET)
    change(target)
    with pytest.raises(TargetError, match=message):
        run(export, root, {"target": target}, NEEDS)


def test_a_graph_that_was_not_rewritten_is_refused(root, made):
    (root / "quantize").unlink()
    (root / "quantize").mkdir()
    for name in ("layers", "ranges", "skipped"):
        (root / f"quantize/{name}.json").write_text((made / f"quantize/{name}.json").read_text())
    for engine in ("encoder", "cell"):
        path = root / f"quantize/engines/{engine}/float.onnx"
        path.parent.mkdir(parents=True)
        path.write_bytes((made / f"calibrate/engines/{engine}/float.onnx").read_bytes())
    with pytest.raises(TargetError, match=r"(LayerNormalization|InstanceNormalization).*should have been rewritten"):
        run(export, root, {"target": TARGET}, NEEDS)


def test_computed_int64_inputs_are_refused(root, made):
    import onnx

    (root / "quantize").unlink()
    source = made / "quantize"
    for path in source.rglob("*"):
        if path.is_file():
            (root / "quantize" / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (root / "quantize" / path.relative_to(source)).write_bytes(path.read_bytes())
    path = root / "quantize/engines/cell/float.onnx"
    model = onnx.load(path)
    model.graph.node.insert(0, onnx.helper.make_node("Shape", ["x"], ["shape"], "shape"))
    model.graph.node.insert(1, onnx.helper.make_node("Reshape", ["x", "shape"], ["again"], "again"))
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("shape", onnx.TensorProto.INT64, [2]))
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("again", onnx.TensorProto.FLOAT, [1, 8]))
    onnx.save(model, path)
    target = copy.deepcopy(TARGET)
    target["ops"]["Shape"] = {}
    with pytest.raises(TargetError, match=r"`again` \(Reshape\) computes its input 1, `shape` \(int64\)"):
        run(export, root, {"target": target}, NEEDS)


def test_what_a_compiler_here_made_of_the_graphs_stands_beside_the_declaration(made):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'edgekit[tensorrt]'")
    coverage = read_json(made / "export/coverage.json")
    assert coverage["grade"] == "declared" and "TensorRT-RTX" in coverage["gate"]["compiler"] and coverage["gate"]["form"] == "11"
    for row in coverage["layers"]:
        assert (row["gate"] == "int8") == (row["declared"] == "int8") == (row["precision"] == "int8"), row
    assert coverage["gate"]["int8_macs"] == pytest.approx(coverage["int8_macs"])


def test_without_that_compiler_nothing_of_it_is_said_and_the_key_is_another(made, tmp_path, monkeypatch):
    from edgekit.backends.tensorrt import gate
    from edgekit.target import Target

    target = Target.model_validate_json(json.dumps({"description": "toy", **TARGET}))
    with_it = export.tools(target)
    monkeypatch.setattr(gate, "version", lambda: None)
    assert export.tools(target) == {"tensorrt-rtx": "none"} != with_it or with_it == {"tensorrt-rtx": "none"}
    root = link_stages(made, tmp_path, NEEDS)
    run(export, root, {"target": TARGET}, NEEDS)
    coverage = read_json(root / "export/coverage.json")
    assert "gate" not in coverage and not any("gate" in row for row in coverage["layers"])


def test_a_dla_is_told_layer_by_layer(made):
    coverage = read_json(made / "export/coverage.json")
    unit = coverage["unit"]
    assert unit["name"] == "DLA" and set(unit["engines"]) == {"encoder", "cell"}
    for row in coverage["layers"]:
        assert row["off_unit"] is None or row["off_unit"]
    taken = sum(row["macs"] * row["runs_per_window"] for row in coverage["layers"] if row["off_unit"] is None)
    assert unit["macs"] == pytest.approx(taken / coverage["macs"])
    assert "Softmax" not in str(unit) and any("not in the unit's table" in why for why in unit["engines"]["encoder"]["falls_back"])

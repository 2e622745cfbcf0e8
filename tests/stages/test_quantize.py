"""Rewrites proved on real clips, ranges from the statistics, and Q/DQ that computes the target's numbers."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from edgekit import graph, rewrites
from edgekit.backends import onnxruntime
from edgekit.calibration import Statistics, batches
from edgekit.errors import EdgekitError, RecipeError
from edgekit.flow import run_flow
from edgekit.formats import read_json
from edgekit.stages import calibrate, quantize
from tests.stages.toy_model import Noise, flow, link_stages, preprocess_spec, prune_dir, quantize_spec, run

NEEDS = ("prune", "calibrate")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("quantize")
    prune_dir(root)
    run(calibrate, root, {"clips": 6}, ("prune",), {"data": Noise(6)})
    run(quantize, root, quantize_spec(), NEEDS, {"data": Noise(6)})
    return root


@pytest.fixture
def root(made, tmp_path):
    return link_stages(made, tmp_path, NEEDS)


def outputs(root, kind: str, n: int = 6) -> np.ndarray:
    sessions = {e: onnxruntime.simulate(root / f"quantize/engines/{e}/{kind}.onnx") for e in ("encoder", "cell")}
    return np.array([run_flow(flow(None), sessions, inputs)["o"] for _, inputs in batches(Noise(n), preprocess_spec(None))])


def test_it_leaves_both_graphs_and_its_decisions(made):
    files = {str(p.relative_to(made / "quantize")) for p in (made / "quantize").rglob("*") if p.is_file()}
    graphs = {f"engines/{e}/{kind}.onnx" for e in ("encoder", "cell") for kind in ("float", "qdq")}
    assert files == graphs | {"ranges.json", "skipped.json", "layers.json", "rewrites.json"}
    assert not any((made / "quantize-scratch").iterdir())


def test_every_rewrite_is_recorded_with_its_measured_proof(made):
    log = read_json(made / "quantize/rewrites.json")
    assert [entry["rewrite"] for entry in log["encoder"]] == [
        "decompose_instance_norm", "decompose_layer_norm", "conv1d_to_conv2d", "merge_layout_ops"]  # fmt: skip
    for entry in log["encoder"] + log["cell"]:
        assert entry["max_abs"] <= 1e-4 * entry["largest_output"] and entry["runs"] > 0 and entry["sites"]


def test_the_rewritten_graph_equals_the_float_graph(made):
    sessions = {e: onnxruntime.simulate(made / f"calibrate/engines/{e}/float.onnx") for e in ("encoder", "cell")}
    want = np.array([run_flow(flow(None), sessions, i)["o"] for _, i in batches(Noise(6), preprocess_spec(None))])
    np.testing.assert_allclose(outputs(made, "float"), want, atol=1e-5)


def test_int8_stays_close_to_float_and_is_not_float(made):
    want, got = outputs(made, "float"), outputs(made, "qdq")
    noise, signal = np.square(got - want).mean(), np.square(want - want.mean()).mean()
    assert 0 < noise < 0.01 * signal  # better than 20 dB


def test_all_convolutions_and_linears_run_in_int8(made):
    layers, skipped = read_json(made / "quantize/layers.json"), read_json(made / "quantize/skipped.json")
    assert layers["encoder"]["int8"] == ["c0/Conv", "c1/Conv", "c2/Conv"]
    assert len(layers["cell"]["int8"]) == 3 and skipped == {"encoder": {}, "cell": {}}
    assert layers["encoder"]["fused"] == ["Relu"]
    assert any(name.endswith("/std") for name in layers["encoder"]["fp32"])
    for engine in ("encoder", "cell"):
        alive = {node.name for node in graph.load(made / f"quantize/engines/{engine}/float.onnx").graph}
        assert set(layers[engine]["fp32"]) <= alive


def test_every_tensor_of_an_int8_layer_has_a_range_that_its_values_came_from(made):
    ranges, layers = read_json(made / "quantize/ranges.json"), read_json(made / "quantize/layers.json")
    statistics = Statistics.open(made / "calibrate")
    for engine in ("encoder", "cell"):
        assert set(layers[engine]["tensors"]) <= set(ranges[engine])
        for name, entry in ranges[engine].items():
            assert entry["scale"] == pytest.approx(max(-entry["low"], entry["high"]) / 127, rel=1e-6)
            source = entry["from"].removeprefix("same_as ") if entry["from"].startswith("same_as") else name
            histogram = statistics.find(engine, source)
            if histogram is not None and not entry["from"].startswith("state"):
                assert histogram.percentile(99.99).amax == pytest.approx(max(-entry["low"], entry["high"]))


def test_both_ends_of_a_state_and_their_readers_share_one_scale(made):
    cell = read_json(made / "quantize/ranges.json")["cell"]
    shared = [entry for entry in cell.values() if entry["from"].startswith("state h_in = h_out")]
    assert len(shared) >= 3 and len({(e["low"], e["high"], e["scale"]) for e in shared}) == 1
    statistics = Statistics.open(made / "calibrate")
    both = [statistics.find("cell", name).percentile(99.99) for name in ("h_in", "h_out")]
    assert cell["h_in"]["low"] == min(r.low for r in both) and cell["h_out"]["high"] == max(r.high for r in both)


def test_minmax_gives_the_extremes(root):
    out = run(quantize, root, quantize_spec(observer="minmax"), NEEDS, {"data": Noise(6)})
    h = Statistics.open(root / "calibrate").find("encoder", "wave")
    first = read_json(out / "layers.json")["encoder"]["tensors"][0]  # what c0 reads: the wave, made 4-D
    entry = read_json(out / "ranges.json")["encoder"][first]
    assert (entry["low"], entry["high"]) == (h.low, h.high)


def test_skipped_layers_stay_float_and_say_by_which_glob(root):
    out = run(quantize, root, quantize_spec(skip=["encoder/c1/*", "cell/out/*"]), NEEDS, {"data": Noise(6)})
    skipped = read_json(out / "skipped.json")
    assert skipped["encoder"] == {"c1/Conv": "quantize.skip: encoder/c1/*"}
    assert list(skipped["cell"].values()) == ["quantize.skip: cell/out/*"]
    model = graph.load(out / "engines/encoder/qdq.onnx")
    conv = next(node for node in model.graph if node.name == "c1/Conv")
    assert graph.constant(conv.inputs[1]).dtype == np.float32


def test_a_glob_that_matches_nothing_is_refused_with_a_suggestion(root):
    with pytest.raises(RecipeError, match=r"`encoder/c9/\*` matches no layer") as error:
        run(quantize, root, quantize_spec(skip=["encoder/c9/*"]), NEEDS, {"data": Noise(6)})
    assert "encoder/c" in error.value.hint


def test_a_tensor_without_statistics_is_observed_in_one_more_pass(root):
    statistics = (root / "calibrate").resolve()
    (root / "calibrate").unlink()
    shutil.copytree(statistics, root / "calibrate")
    doc = read_json(root / "calibrate/stats.json")
    full = Statistics.open(root / "calibrate").find("encoder", "c1/Conv_out")
    del doc["engines"]["encoder"]["tensors"]["c1/Conv_out"]
    (root / "calibrate/stats.json").write_text(json.dumps(doc))
    out = run(quantize, root, quantize_spec(rewrites=["conv1d_to_conv2d"]), NEEDS, {"data": Noise(6)})
    entry = read_json(out / "ranges.json")["encoder"]["c1/Conv_out_1"]
    assert entry["from"] == "same_as c1/Conv_out"
    want = full.percentile(99.99)
    assert (entry["low"], entry["high"]) == (pytest.approx(want.low, rel=1e-4), pytest.approx(want.high, rel=1e-4))


def test_a_rewrite_that_changes_the_outputs_is_refused(root, monkeypatch):
    def wrong(model):
        for value in model.graph.initializers.values():
            if graph.constant(value).dtype == np.float32 and graph.constant(value).size > 1:
                edit = graph.Editor(model)
                edit.replace(value, edit.constant("worse", graph.constant(value) * np.float32(1.01)))
                return [rewrites.Change("wrong", "somewhere")]

    monkeypatch.setitem(rewrites.REWRITES, "wrong", wrong)
    with pytest.raises(EdgekitError, match="rewrite `wrong` changes the outputs"):
        run(quantize, root, quantize_spec(rewrites=["wrong"]), NEEDS, {"data": Noise(6)})


def test_nan_after_a_rewrite_is_refused(root, monkeypatch):
    def poison(model):
        value = next(v for v in model.graph.initializers.values() if graph.constant(v).dtype == np.float32)
        edit = graph.Editor(model)
        edit.replace(value, edit.constant("poison", graph.constant(value) * np.float32("nan")))
        return [rewrites.Change("poison", "somewhere")]

    monkeypatch.setitem(rewrites.REWRITES, "poison", poison)
    with pytest.raises(EdgekitError, match="changes the outputs by nan"):
        run(quantize, root, quantize_spec(rewrites=["poison"]), NEEDS, {"data": Noise(6)})

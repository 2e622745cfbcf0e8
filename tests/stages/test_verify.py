"""verify measures what it should, blames the right engine, and always leaves a report."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from edgekit import slices
from edgekit.backends import onnxruntime
from edgekit.errors import DataError
from edgekit.flow import run_flow
from edgekit.metrics import METRICS, paired_bootstrap
from edgekit.preprocess import preprocess
from edgekit.stages import verify
from tests.stages.made_up import FLOW, PREPROCESS, TARGET, MadeUp, graphs, job, stage_dirs

SPEC = {"metrics": ["mae", "f1", "corr"], "resamples": 200, "seed": 0, "target": TARGET}


def run(tmp_path, data, dirs):
    done = job(tmp_path, "verify", SPEC, {name: dirs[name] for name in verify.NEEDS}, {"data": data})
    verify.run(done)
    return json.loads((done.out / "report.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON")), done


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder, data = tmp_path_factory.mktemp("verify"), MadeUp(40)
    dirs = stage_dirs(folder, data, noise=0.05)
    report, done = run(folder, data, dirs)
    return report, done, dirs, data


def test_the_stable_keys_are_there(measured):
    report, done, *_ = measured
    assert report["measured_on"] == "host-simulated"
    assert set(report["metrics"]) == {"float", "pruned", "artifact"}
    assert set(report["parity"]["o"]) >= {"max_abs", "sqnr_db", "cosine"}
    assert report["coverage"]["grade"] == "declared" and report["coverage"]["int8_macs"] == 0.8
    assert isinstance(report["slices"], list)
    assert "gates" not in report and "verdict" not in report, "verify knows no gates"
    assert (done.out / "report.html").read_text().startswith("<!doctype html>")


def test_the_artifact_is_the_quantized_graph_run_over_the_flow(measured):
    report, _, dirs, data = measured
    sessions = {e: onnxruntime.simulate(dirs["quantize"] / "engines" / e / "qdq.onnx") for e in ("eye", "head")}
    got = [run_flow(FLOW, sessions, preprocess(PREPROCESS, data.clip(i)))["o"] for i in data.ids]
    np.testing.assert_array_equal(np.float32(report["predictions"]["artifact"]), np.float32(got))
    assert report["metrics"]["artifact"]["mae"] == METRICS["mae"](report["predictions"]["label"], got)


def test_parity_is_against_the_pruned_model_and_drops_are_against_the_original(measured):
    report, _, dirs, _ = measured
    want = load_file(dirs["reference"] / "predictions.safetensors")
    p = report["predictions"]
    assert report["parity"]["o"]["max_abs"] == pytest.approx(np.abs(want["pruned/o"] - np.float32(p["artifact"])).max())
    total = paired_bootstrap(METRICS["mae"], want["label/o"], want["original/o"], p["artifact"], n=200, seed=0)
    assert tuple(report["drops"]["total"]["mae"][k] for k in ("value", "low", "high")) == pytest.approx(total, abs=1e-12)


def test_pruning_and_int8_add_up_to_the_total(measured):
    drops = measured[0]["drops"]
    for metric in drops["total"]:
        assert drops["prune_cost"][metric]["value"] + drops["int8_cost"][metric]["value"] == pytest.approx(drops["total"][metric]["value"], abs=1e-9)


def test_every_metric_that_may_be_gated_is_measured(measured):
    of_values = {name for name, metric in METRICS.items() if metric.task == "value"}
    assert of_values and set(measured[0]["metrics"]["artifact"]) == of_values
    assert measured[0]["lead"] == "mae"


def test_other_labelled_outputs_are_scored_too(measured):
    assert set(measured[0]["other_outputs"]["v"]) == {"float", "pruned", "artifact"}


def test_slices_cover_every_clip_once_per_tag(measured):
    report, _, _, data = measured
    assert {s["tag"] for s in report["slices"]} == {"snr_db", "voice"}, "a sentence per clip is no slice"
    bins = [s for s in report["slices"] if s["tag"] == "snr_db"]
    assert [s["value"] for s in bins] == ["-5 to 0", "0 to 5", "5 to 10", "10 to 15", "15 to 20"]
    assert sum(s["n"] for s in bins) == len(data.ids)
    mine = [i for i, id in enumerate(data.ids) if 5 <= data.clip(id).tags["snr_db"] < 10]
    p = report["predictions"]
    assert bins[2]["artifact"] == METRICS["mae"]([p["label"][i] for i in mine], [p["artifact"][i] for i in mine])
    assert all(s["low"] <= s["artifact"] <= s["high"] for s in bins)


@pytest.mark.parametrize("values, want", [
    ([-5.0, 5.0, 10.0, 5.0], {"-5": 1, "5": 2, "10": 1}),
    (["a", None, "b", "a"], {"a": 2, "b": 1}),
    ([float(i) for i in range(10)], {"0 to 5": 5, "5 to 10": 5}),
    ([math.inf, *[float(i) for i in range(10)]], {}),
    ([f"s{i}" for i in range(10)], {}),
])  # fmt: skip
def test_bins_of_a_tag(values, want):
    assert {label: sum(member) for label, _, _, member in slices.bins("snr_db", values)} == want


def test_quartiles_of_another_number_cover_every_clip():
    values = [float(i * i) for i in range(30)]
    bins = list(slices.bins("light", values))
    assert len(bins) == 4 and np.sum([member for *_, member in bins], axis=0).tolist() == [1] * 30


def test_an_engine_is_blamed_for_its_own_error_only(tmp_path):
    data = MadeUp(4)
    dirs = stage_dirs(tmp_path, data)
    onnx.save(graphs(0.001)["eye"], dirs["quantize"] / "engines/eye/qdq.onnx")  # as its float.onnx: exact
    report, _ = run(tmp_path, data, dirs)
    assert report["engines"]["eye"]["feature"]["max_abs"] == 0
    assert report["engines"]["eye"]["feature"]["sqnr_db"] is None, "equal: no noise to have a ratio to"
    assert report["engines"]["head"]["o"]["max_abs"] > 0
    assert {row["layer"] for row in report["layers"]} == {"head/fc", "head/skip"}
    assert report["layers"][0]["sqnr_db"] <= report["layers"][1]["sqnr_db"]


def test_coverage_is_summed_by_engine_and_op(measured):
    coverage = measured[0]["coverage"]
    assert coverage["engines"] == {"eye": {"macs": 24, "int8_macs": 24}, "head": {"macs": 16, "int8_macs": 8}}
    assert coverage["ops"] == {"MatMul": {"macs": 32, "int8_macs": 32}, "Gemm": {"macs": 8, "int8_macs": 0}}
    assert coverage["skipped"] == {"head": {"head/skip": "fp16: not an INT8 layer"}}


def test_an_artifact_that_gives_nan_is_reported_as_null_and_not_hidden(tmp_path):
    data = MadeUp(4)
    dirs = stage_dirs(tmp_path, data, noise=float("nan"))
    report, done = run(tmp_path, data, dirs)
    assert report["metrics"]["artifact"]["mae"] is None
    assert report["parity"]["o"]["max_abs"] is None
    assert report["drops"]["total"]["mae"] == {"value": None, "low": None, "high": None}
    assert report["drops"]["prune_cost"]["mae"]["value"] is not None
    assert report["layers"][0]["sqnr_db"] is None and report["layers"][0]["max_abs"] is None
    assert "not finite" in (done.out / "report.html").read_text()


def test_other_clips_than_the_reference_ran_on_are_refused(measured, tmp_path):
    _, _, dirs, _ = measured
    with pytest.raises(DataError, match="other clips"):
        run(tmp_path, MadeUp(39), dirs)


def test_constant_labels_leave_correlation_out_instead_of_failing(tmp_path):
    class Flat(MadeUp):
        metrics = ("mae",)

        def clip(self, id):
            clip = super().clip(id)
            clip.labels["o"] = 0.25
            return clip

    data = Flat(4)
    report, _ = run(tmp_path, data, stage_dirs(tmp_path, data))
    assert "corr" not in report["metrics"]["artifact"] and "acc5" in report["metrics"]["artifact"]


def test_the_golden_answers_of_the_artifact_are_kept_for_the_device(measured):
    report, _, dirs, _ = measured
    golden = load_file(dirs["reference"] / "golden.safetensors")
    answers = report["golden"]["clip-000"]["o"]
    assert answers["float"] == float(golden["clip-000/output/o"])
    assert answers["artifact"] == pytest.approx(report["predictions"]["artifact"][0])


def test_the_same_job_writes_the_same_bytes(measured, tmp_path):
    _, done, dirs, data = measured
    _, again = run(tmp_path, data, dirs)
    for name in ("report.json", "report.html"):
        assert (again.out / name).read_bytes() == (done.out / name).read_bytes()


def test_an_artifact_with_another_shape_is_refused(tmp_path):
    data = MadeUp(3)
    dirs = stage_dirs(tmp_path, data)
    predictions = load_file(dirs["reference"] / "predictions.safetensors")
    save_file({**predictions, "pruned/o": predictions["pruned/o"][:, None]}, dirs["reference"] / "predictions.safetensors")
    with pytest.raises(DataError, match=r"`o` has shape \[3\], expected \[3, 1\]"):
        run(tmp_path, data, dirs)

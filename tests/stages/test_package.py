"""Gates are judged by the bad end of an interval, and only what passes them can be flashed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from edgekit.backends import tensorrt
from edgekit.bundle import open_bundle
from edgekit.errors import RecipeError
from edgekit.stages import package, verify
from tests.stages.made_up import TARGET, MadeUp, job, stage_dirs


def report(value, low, high, **more):
    change = {"value": value, "low": low, "high": high}
    return {
        "metrics": {"artifact": {"mae": value, "f1": value}},
        "intervals": {"artifact": {"mae": [low, high], "f1": [low, high]}},
        "drops": {"total": {"mae": change, "f1": change}},
        "coverage": {"int8_macs": 0.7},
        **more,
    }


@pytest.mark.parametrize("value, low, high, verdict", [
    (0.005, 0.001, 0.009, "pass"),
    (0.005, 0.001, 0.010, "pass"),
    (0.005, 0.001, 0.011, "inconclusive"),
    (0.010, 0.001, 0.011, "inconclusive"),
    (0.011, 0.001, 0.021, "fail"),
    (-0.02, -0.03, -0.01, "pass"),
    (None, None, None, "fail"),
    (0.005, None, None, "inconclusive"),
])  # fmt: skip
def test_an_increase_is_judged_by_its_bad_end(value, low, high, verdict):
    [gate] = package.judge({"mae": {"max_increase": 0.01}}, report(value, low, high))
    assert (gate["verdict"], gate["pass"]) == (verdict, verdict == "pass")
    assert gate["limit"] == 0.01 and gate["value"] == value


@pytest.mark.parametrize("value, low, high, verdict", [
    (-1.0, -1.9, 0.3, "pass"),
    (-1.0, -2.1, 0.3, "inconclusive"),
    (-2.1, -3.0, -1.0, "fail"),
    (3.0, 1.0, 5.0, "pass"),
])  # fmt: skip
def test_a_decrease_turns_the_change_around(value, low, high, verdict):
    [gate] = package.judge({"f1": {"max_decrease": 2.0}}, report(value, low, high))
    assert gate["verdict"] == verdict
    assert (gate["value"], gate["low"], gate["high"]) == (-value, -high, -low)


@pytest.mark.parametrize("limits, verdict", [
    ({"max": 0.2}, "pass"), ({"max": 0.16}, "inconclusive"), ({"max": 0.1}, "fail"),
    ({"min": 0.1}, "pass"), ({"min": 0.14}, "inconclusive"), ({"min": 0.2}, "fail"),
])  # fmt: skip
def test_a_limit_on_the_value_itself_uses_the_values_interval(limits, verdict):
    assert package.judge({"mae": limits}, report(0.15, 0.12, 0.18))[0]["verdict"] == verdict


@pytest.mark.parametrize("low, verdict", [(0.6, "pass"), (0.7, "pass"), (0.71, "fail")])
def test_coverage_is_exact_so_it_passes_or_fails(low, verdict):
    assert package.judge({"int8_macs": {"min": low}}, report(0, 0, 0))[0]["verdict"] == verdict


def test_a_gate_on_what_was_not_measured_is_refused():
    with pytest.raises(RecipeError, match="gate `corr`: the report has no such metric"):
        package.judge({"corr": {"max_decrease": 0.1}}, report(0, 0, 0))


@pytest.mark.parametrize("verdicts, measured_on, want", [
    ([], "host", "pass"), (["pass"], "host-simulated", "pending-device"), (["pass", "inconclusive"], "host-simulated", "inconclusive"),
    (["inconclusive", "fail"], "host", "fail"),
])  # fmt: skip
def test_the_worst_gate_decides(verdicts, measured_on, want):
    assert package.verdict_of([{"verdict": v} for v in verdicts], measured_on) == want


SPEC = {
    "name": "toy_x",
    "gates": {"mae": {"max_increase": 0.05}, "int8_macs": {"min": 0.6}},
    "recipe": {"name": "toy_x", "calibrate": {"data": "made_up", "clips": 8}},
    "target": {"name": "toy", "description": "a device for tests", "build_on": "device", "runtime": {"name": "TensorRT", "version": "8.5.2"}, "spec": TARGET},
    "versions": {"edgekit": "0.1.0", "numpy": "2"},
    "finisher": tensorrt.finisher(TARGET),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder, data = tmp_path_factory.mktemp("stages"), MadeUp(30)
    dirs = stage_dirs(folder, data)
    measured = job(folder, "verify", {"metrics": ["mae"], "resamples": 200, "seed": 0, "target": TARGET, "heldout": 1}, dirs, {"data": data})
    verify.run(measured)
    return {**{name: dirs[name] for name in ("export", "reference", "prune")}, "verify": measured.out}


def run(tmp_path, inputs, **changes):
    done = job(tmp_path, "package", {**SPEC, **changes}, inputs, {"calibration": MadeUp(8)})
    package.run(done)
    return done.out / "bundle"


def test_a_bundle_is_whole_and_says_what_it_is(inputs, tmp_path):
    bundle = open_bundle(run(tmp_path, inputs))
    bundle.verify()
    manifest = bundle.manifest
    assert manifest["verdict"] == bundle.report["verdict"] == "pending-device"
    assert set(manifest["stages"]) == {"export", "verify", "reference", "prune"}
    assert manifest["provenance"]["checkpoint_sha256"] == "ab" * 32
    assert manifest["data"]["calibration"]["sha256"] == MadeUp(8).digest()
    assert manifest["data"]["verify"]["sha256"] == MadeUp(30).digest()
    assert manifest["versions"]["edgekit"] == "0.1.0"
    names = set(manifest["files"])
    assert names >= {"finish.sh", "device.sh", "engines.txt", "flow.txt", "passport.txt", "heldout.txt", "ek_trt/Makefile", "golden/tolerance.txt", "flow.json", "io.json", "preprocess.json", "PREPROCESS.txt", "coverage.json", "golden.safetensors", "golden.json",
                     "report.json", "report.html", "licences.json", "LICENSES.md", "README.txt", "recipe.yaml", "SHA256SUMS",
                     "engines/eye/model.onnx", "engines/eye/calibration.cache"}  # fmt: skip
    assert (bundle.path / "finish.sh").stat().st_mode & 0o100


def test_the_checksums_are_those_that_sha256sum_checks(inputs, tmp_path):
    bundle = run(tmp_path, inputs)
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=bundle).returncode == 0


@pytest.mark.parametrize("above, verdict", [(-1e-6, "fail"), (1e-6, "inconclusive")])
def test_a_gate_that_does_not_pass_leaves_the_report_and_nothing_flashable(inputs, tmp_path, above, verdict):
    value = json.loads((inputs["verify"] / "report.json").read_text())["metrics"]["artifact"]["mae"]
    bundle = run(tmp_path, inputs, gates={"mae": {"max": value + above}, "int8_macs": {"min": 0.6}})
    assert sorted(path.name for path in bundle.rglob("*")) == ["report.html", "report.json"]
    assert json.loads((bundle / "report.json").read_text())["verdict"] == verdict


def test_the_report_gains_gates_and_verdict_and_keeps_every_number(inputs, tmp_path):
    before = json.loads((inputs["verify"] / "report.json").read_text())
    bundle = run(tmp_path, inputs)
    after = json.loads((bundle / "report.json").read_text())
    assert {key: after[key] for key in before} == before
    assert [set(g) >= {"name", "limit", "value", "low", "high", "pass"} for g in after["gates"]] == [True, True]
    assert "Pending device" in (bundle / "report.html").read_text()


def test_what_ran_here_passes_without_a_device(inputs, tmp_path):
    measured = json.loads((inputs["verify"] / "report.json").read_text())
    (tmp_path / "verify").mkdir()
    (tmp_path / "verify/report.json").write_text(json.dumps({**measured, "measured_on": "host"}))
    done = job(tmp_path, "package", {**{key: value for key, value in SPEC.items() if key != "finisher"}, "target": {**SPEC["target"], "build_on": "host"}}, {**inputs, "verify": tmp_path / "verify"}, {"calibration": MadeUp(8)})
    package.run(done)
    bundle = done.out / "bundle"
    assert not (bundle / "finish.sh").exists()
    assert json.loads((bundle / "report.json").read_text())["verdict"] == "pass"


def test_licences_of_weights_and_clips_are_stated_or_said_not_to_be(inputs, tmp_path):
    bundle = run(tmp_path, inputs)
    licences = {row["part"]: row for row in json.loads((bundle / "licences.json").read_text())}
    assert licences["engines/"]["licence"] == "CC0-1.0"
    assert licences["golden.safetensors, report.html"]["licence"] == "not stated"
    assert licences["numpy"]["shipped"] is False
    assert "CC0-1.0" in (bundle / "LICENSES.md").read_text()


def test_the_readme_tells_the_engineer_the_order_states_and_how_to_check(inputs, tmp_path):
    text = (run(tmp_path, inputs) / "README.txt").read_text()
    for said in ("sha256sum -c SHA256SUMS", "sh finish.sh", "1. eye", "once for every i", "`h_out` back into `h_in`", "golden.json", "PENDING DEVICE"):
        assert said in text


def test_golden_json_says_how_close_is_close_enough(inputs, tmp_path):
    golden = json.loads((run(tmp_path, inputs) / "golden.json").read_text())
    assert set(golden["preprocess_max_abs"]) == {"video", "wave"}
    assert set(golden["answers"]["clip-000"]["o"]) == {"float", "artifact"}


def test_the_same_job_makes_the_same_bundle(inputs, tmp_path):
    a, b = run(tmp_path / "a", inputs), run(tmp_path / "b", inputs)
    assert (a / "manifest.json").read_bytes() == (b / "manifest.json").read_bytes()


def test_packaging_loads_no_torch_and_no_runtime(inputs, tmp_path):
    code = f"""
import sys
from pathlib import Path
from tests.stages.made_up import MadeUp, job
from edgekit.stages import package
inputs = {{k: Path(v) for k, v in {({k: str(v) for k, v in inputs.items()})!r}.items()}}
package.run(job(Path({str(tmp_path)!r}), "p", {SPEC!r}, inputs, {{"calibration": MadeUp(8)}}))
sys.exit(any(name in sys.modules for name in ("torch", "onnx", "onnxruntime", "transformers")))
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("stage", ["reference", "verify", "package"])
def test_a_stage_is_imported_for_a_plan_without_numpy_or_torch(stage):
    code = f"import edgekit.stages.{stage}, sys; sys.exit(any(n in sys.modules for n in ('numpy', 'torch', 'onnxruntime')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

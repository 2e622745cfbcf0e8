"""Recipes and bundles as sides, releases against each other, and `edgekit verify`."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil

import numpy as np
import pytest

import edgekit
from edgekit.bundle import MANIFEST, file_table, sealed
from edgekit.errors import IntegrityError, UsageError
from edgekit.formats import read_json, write_json
from edgekit.parity import golden
from edgekit.parity.runners import Options, Side, open_side
from tests.small_project import Project, make_project

PRUNE = "{importance: magnitude, macs: 0.75}"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Project:
    """The toy, pruned, built for a device that needs a simulation and for the host."""
    project = make_project(tmp_path_factory.mktemp("toy") / "car", "tiny")
    with contextlib.chdir(project.root):
        edgekit.build("car.yaml", out=project.root / "build")
        edgekit.build("car.yaml", ["name=host", "target=onnxruntime_x86"], out=project.root / "build")
    return project


@pytest.fixture
def project(built, tmp_path, monkeypatch) -> Project:
    """A copy of it as the current directory."""
    shutil.copytree(built.root, tmp_path / "car")
    monkeypatch.chdir(tmp_path / "car")
    return Project(tmp_path / "car")


def test_a_recipe_is_its_float_model_whole_or_by_engine(project):
    with open_side("car.yaml") as side:
        assert side.kind == "torch" and not side.has_batch and str(side.inputs["video"]) == "float32 [4, 3, 2, 16, 16]"
        assert {name: str(port) for name, port in side.outputs.items()} == dict.fromkeys("oav", "float32 []")
        assert side.taps() == ("step/y", "step/h_out", "step/c_out", "head/o", "head/a", "head/v")
        video = np.random.default_rng(0).standard_normal((4, 3, 2, 16, 16)).astype(np.float32)
        assert side.run({"video": video}, taps=("step/y",))["step/y"].shape == (4, 16)
    step = open_side("car.yaml@step")
    assert step.has_batch and [state.input for state in step.states] == ["h_in", "c_in"]
    with pytest.raises(UsageError, match="`@stepp`") as caught:
        open_side("car.yaml@stepp")
    assert "`step`" in caught.value.hint


def test_the_recipes_own_clips_are_fed_and_scored(project):
    found = edgekit.compare("car.yaml", "build/host", "car.yaml", min_sqnr_db=-100)
    assert found and found.data.samples == 6 and found.data.labels == ("o", "a", "v") and len(found.data.sha256) == 64
    assert {m.metric for m in found.metrics} == {"mae", "f1", "corr"} and found.metrics[0].samples == 6
    assert {s.tag for s in found.slices} == {"snr_db"} and sum(s.samples for s in found.slices if s.output == "o") == 6
    assert edgekit.compare("car.yaml", "car.yaml", "cabin:calibration", samples=2).data.samples == 2


def test_pruned_is_what_the_last_build_pruned(tmp_path, monkeypatch):
    project = make_project(tmp_path / "car", "mhlt", prune=PRUNE)
    monkeypatch.chdir(project.root)
    with pytest.raises(UsageError, match="holds no pruned model of `car`") as caught:
        open_side("car.yaml@pruned")
    assert "edgekit build car.yaml" in caught.value.hint


def test_pruned_of_a_recipe_that_changed_since_is_refused(project):
    assert edgekit.compare("car.yaml", "car.yaml@pruned", "random:2")  # this recipe prunes nothing
    from safetensors.torch import save_file

    from tests.small_project import random_weights

    save_file({key: value + 1 for key, value in random_weights("tiny").items()}, project.checkpoint)
    with pytest.raises(UsageError, match="the checkpoint has changed since `car` was pruned"):
        open_side("car.yaml@pruned")


def test_a_bundle_runs_its_artifact_or_its_simulation_and_says_which(project):
    with open_side("build/car") as device, open_side("build/host") as host, open_side("build/host.tar.zst") as packed:
        assert device.is_simulated and device.facts()["computed"] == "simulated by onnxruntime" and device.facts()["target"] == "jetson_xavier"
        assert not host.is_simulated and host.facts()["computed"] == "the artifact itself" and packed.facts()["manifest_sha256"] == host.facts()["manifest_sha256"]
    found = edgekit.compare("build/host", "build/host.tar.zst", "random:2")
    assert found and found.release.changes == ()


def test_a_simulated_tensorrt_kit_is_the_very_graph_that_quantize_wrote(built, monkeypatch):
    """Scales read back from the calibration cache give the same integers."""
    monkeypatch.chdir(built.root)
    for engine in ("step", "head"):
        graphs = [path for path in built.root.glob(f".edgekit/quantize-*/out/engines/{engine}/qdq.onnx")]
        same = [edgekit.compare(f"build/car@{engine}", graph, "random:3", atol=0, rtol=0) for graph in graphs]
        assert sum(bool(found) for found in same) == 1 and len(same) == 2  # the other one is of the other target


def test_without_data_a_bundle_brings_its_golden_clips_the_real_ones(project):
    found = edgekit.compare("car.yaml", "build/car", min_sqnr_db=-100)
    assert found.data.text.endswith("golden.safetensors") and found.data.samples == 2


def test_engines_of_a_recipe_and_a_bundle_are_streamed_clip_by_clip(project):
    found = edgekit.compare("car.yaml", "build/host", "cabin", stream=True, min_sqnr_db=-100)
    assert found.stream.streams == 6 and found.stream.steps == 4 and found.a.facts["engine"] == "step" and found.stream.states_b == {"h_in": "h_out", "c_in": "c_out"}
    assert all(check.is_ok for check in found.stream.checks) and found.stream.state_effect_b > 0


@pytest.mark.skipif(importlib.util.find_spec("ai_edge_litert") is None, reason="ai-edge-litert is not installed")
def test_an_int8_lstm_whose_runtime_wipes_the_state_between_calls_is_caught(project):
    """The LSTM of a TFLite bundle computes on integers. A runtime that forgets what it is fed gives good first steps."""
    edgekit.build("car.yaml", ["name=pi", "target=raspberry_pi5"], out=project.root / "build")

    class Forgets(Side):
        def __init__(self, real):
            super().__init__("forgets", real.path)
            self.real, self.kind, self.numbers, self.inputs, self.outputs, self.states = real, real.kind, real.numbers, real.inputs, real.outputs, real.states

        def run(self, feeds, taps=(), sample=None):
            return self.real.run({**feeds, **{state.input: np.zeros(state.shape, np.float32) for state in self.states}})

    with open_side("build/pi@step") as honest:
        assert edgekit.compare("car.yaml@step", honest, "cabin", stream=True)
        found = edgekit.compare("car.yaml@step", Forgets(honest), "cabin", stream=True)
        assert not found and found.reasons[0].startswith("B loses its state") and found.stream.state_effect_b == 0
        assert not edgekit.compare("car.yaml@step", Forgets(honest), "cabin", stream=True, atol=1e9)


def test_two_bundles_are_compared_as_releases(project):
    same = edgekit.compare("build/car", "build/car")
    assert same and same.release.changes == () and same.outputs == ()
    found = edgekit.compare("build/car", "build/host")
    assert not found and found.exit_code == 3
    changes = {(change.part, change.key): (change.a, change.b) for change in found.release.changes}
    assert changes["recipe", "target"] == ("jetson_xavier", "onnxruntime_x86") and changes["target", "runtime.name"] == ("TensorRT", "ONNX Runtime")
    assert {"recipe", "target", "accuracy", "coverage", "size", "files"} <= {change.part for change in found.release.changes}
    assert not [change for change in found.release.changes if change.part in ("data", "versions", "model")]


def test_a_changed_byte_in_a_bundle_is_found_before_anything_runs(project):
    path = project.root / "build/host/flow.json"
    path.write_text(path.read_text().replace('"primary": "o"', '"primary": "a"'))
    for call in (lambda: edgekit.compare("build/host", "build/car"), lambda: edgekit.compare("car.yaml", "build/host"), lambda: golden.verify("build/host")):
        with pytest.raises(IntegrityError, match="does not match its sha256"):
            call()


def test_a_report_without_a_bundle_says_why(project):
    (project.root / "failed").mkdir()
    shutil.copy("build/car/report.json", "failed/report.json")
    with pytest.raises(IntegrityError, match="this is no bundle") as caught:
        open_side("failed")
    assert "gates did not pass" in caught.value.hint


# --------------------------------------------------------------------------- verify


@pytest.mark.parametrize("bundle, where", [("build/car", "host-simulated"), ("build/host", "host"), ("build/host.tar.zst", "host")])
def test_a_delivered_bundle_verifies(project, bundle, where):
    found = golden.verify(bundle, Options(threads=1))
    assert found.is_ok and found.exit_code == 0 and found.measured_on == where
    # Four clips (two real, two made of them): an input and three answers each.
    assert sorted({check.kind for check in found.checks}) == ["answer", "preprocess"] and len(found.checks) == 16
    assert max(check.max_abs for check in found.checks if check.kind == "answer") <= 1e-6


def reseal(bundle) -> None:
    manifest = read_json(bundle / MANIFEST)
    write_json(bundle / MANIFEST, sealed({**manifest, "files": file_table(bundle)}))


def test_an_answer_that_is_off_fails_with_its_clip_and_size(project):
    path = project.root / "build/host/golden.json"
    document = json.loads(path.read_text())
    clip = document["clips"][0]["id"]
    document["answers"][clip]["o"]["artifact"] += 5.0
    path.write_text(json.dumps(document))
    reseal(path.parent)
    ran = project.run("verify", "build/host")
    assert ran.exit_code == 3 and f"clip {clip}: answer `o` is off by 5" in ran.stdout and "15 of 16 golden checks hold (the artifact, here)" in ran.stdout
    [failed] = [check for check in json.loads(project.run("verify", "build/host", "--json").stdout)["checks"] if not check["is_ok"]]
    assert failed["tensor"] == "o" and failed["max_abs"] == pytest.approx(5, abs=0.1)


def test_a_wrong_mean_in_preprocessing_is_found(project):
    path = project.root / "build/host/preprocess.json"
    document = json.loads(path.read_text())
    document["video"]["mean"] = [value + 1 for value in document["video"]["mean"]]
    path.write_text(json.dumps(document))
    reseal(path.parent)
    found = golden.verify("build/host")
    assert {(check.kind, check.is_ok) for check in found.checks} == {("preprocess", False), ("answer", True)}


def test_an_unmeasured_parity_lets_no_answer_pass(project):
    path = project.root / "build/host/golden.json"
    document = json.loads(path.read_text())
    document["parity"]["o"]["max_abs"] = None
    path.write_text(json.dumps(document))
    reseal(path.parent)
    assert {check.tensor for check in golden.verify("build/host").checks if not check.is_ok} == {"o"}


def test_what_is_no_bundle_cannot_be_verified(project):
    with pytest.raises(IntegrityError, match="no bundle"):
        golden.verify("car.yaml")


def test_tables_of_two_targets_are_no_change_and_one_that_changed_is():
    from edgekit.parity.release import _without_tables

    def manifest(name, table):
        return {"target": {"name": name, "spec": {"ops": table}}}

    assert all("spec" not in found["target"] for found in _without_tables(manifest("pi", {"Add": 1}), manifest("orin", {})))
    assert all("spec" in found["target"] for found in _without_tables(manifest("pi", {"Add": 1}), manifest("pi", {})))

"""One float model on every target whose runtime is here: built, run, checked against its references, and laid side by side.

Weights are random, so only mechanics: that what was declared INT8 is INT8 in the built file, that
float forms are exact, that stages before quantize are shared, and that a wrong kernel is caught.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json

import numpy as np
import pytest

import edgekit
from edgekit import matrix
from edgekit.backends import onnxruntime, openvino, tflite
from edgekit.errors import EdgekitError, TargetError, ToolMissing
from tests.small_project import Project, make_project

BACKENDS = {"onnxruntime_x86": onnxruntime, "x86_openvino": openvino, "raspberry_pi5": tflite}
PACKAGES = {"onnxruntime_x86": "onnxruntime", "x86_openvino": "openvino", "raspberry_pi5": "ai_edge_litert"}
HERE = [name for name, package in PACKAGES.items() if importlib.util.find_spec(package)]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Project, dict]:
    """(project, {target: Result}) of MHLT `tiny`."""
    project = make_project(tmp_path_factory.mktemp("targets") / "car", "mhlt")
    results = {}
    with contextlib.chdir(project.root):
        for target in ["jetson_xavier", *HERE]:
            results[target] = edgekit.build("car.yaml", [f"target={target}", f"name={target}"], out=project.root / "build")
    return project, results


def of(built, target):
    if target not in built[1]:
        pytest.skip(f"{PACKAGES[target]} is not installed")
    return built[1][target]


@pytest.mark.parametrize("target", BACKENDS)
def test_what_is_built_runs_here_and_its_float_form_is_exact(built, target):
    result = of(built, target)
    assert result.report["measured_on"] == "host" and result.report["verdict"] == "pass"
    assert set(result.report["self_check"]) == {"clip_encoder", "audio_encoder", "head"}
    for ports in result.report["self_check"].values():
        for row in ports.values():
            assert row["float_max_abs"] <= row["float_limit"]
            assert row["int8_sqnr_db"] is None or row["int8_sqnr_db"] >= min(30, row["cost_sqnr_db"])


@pytest.mark.parametrize("target", BACKENDS)
def test_coverage_is_read_out_of_the_built_engines(built, target):
    result = of(built, target)
    coverage = json.loads((result.bundle / "coverage.json").read_text())
    assert coverage["grade"] == "measured"
    for row in coverage["layers"]:
        assert row["precision"] == "int8" or row["declared"] != "int8", row
    assert 0.5 < coverage["int8_macs"] <= 1


@pytest.mark.parametrize("target", BACKENDS)
def test_the_float_form_is_not_delivered(built, target):
    result = of(built, target)
    assert not (result.bundle / "float").exists() and (result.bundle / "engines/head").is_dir()
    sizes = result.report["sizes"]["artifact"]
    # of so small a net OpenVINO's IR is mostly description
    assert 0 < sizes["engine_bytes"] < sizes["float_bytes"] or target == "x86_openvino"


def test_every_target_after_the_first_adds_only_what_is_its_own(built):
    for result in list(built[1].values())[1:]:
        assert result.ran == ("quantize", "export", "verify", "package")


def test_the_matrix_has_every_pair_and_says_what_was_not_measured(built, tmp_path, monkeypatch):
    monkeypatch.chdir(built[0].root)
    results = list(built[1].values())
    [made] = matrix.make(results)
    names = made["agreement"]["o"]["names"]
    assert names == ["float", *built[1]]
    worst, db = (np.array(made["agreement"]["o"][key], float) for key in ("max_abs", "sqnr_db"))
    np.testing.assert_array_equal(worst, worst.T)
    assert np.isnan(np.diag(worst)).all() and np.isfinite(worst[~np.eye(len(names), dtype=bool)]).all()
    # a pair that the reports know: an artifact against the pruned float model
    for i, result in enumerate(results, start=1):
        assert worst[0, i] == pytest.approx(result.report["parity"]["o"]["max_abs"])
        assert db[0, i] == pytest.approx(result.report["parity"]["o"]["sqnr_db"])
    latency = {row["name"]: row["latency_ms"] for row in made["rows"]}
    assert latency.pop("jetson_xavier") is None and all(ms > 0 for ms in latency.values())
    matrix.write([made], tmp_path / "matrix")
    page = (tmp_path / "matrix/report.html").read_text()
    assert "not measured" in page and all(name in page for name in names) and "<script" not in page
    assert json.loads((tmp_path / "matrix/report.json").read_text())["matrices"][0]["n"] == made["n"]


def test_targets_of_other_float_models_stand_in_a_matrix_of_their_own(built, monkeypatch):
    monkeypatch.chdir(built[0].root)
    results = list(built[1].values())
    assert matrix.make(results[:1]) == [] and matrix.make([]) == []


def test_several_recipes_end_in_a_matrix(built, monkeypatch):
    project, _ = built
    monkeypatch.chdir(project.root)
    first, second = ("jetson_xavier", HERE[0])
    for name in (first, second):
        (project.root / f"{name}.yaml").write_text(project.recipe.read_text().replace("target: jetson_xavier", f"target: {name}").replace("name: car", f"name: {name}"))
    done = project.run("build", f"{first}.yaml", f"{second}.yaml")
    assert done.exit_code == 0 and "agreement on o" in done.output and "not measured" in done.output
    assert (project.root / "build/matrix/report.html").is_file()
    lines = [json.loads(line) for line in project.run("build", "--json", f"{first}.yaml", f"{second}.yaml").output.splitlines()]
    assert "matrices" in lines[-1] and [line.get("recipe") for line in lines[:-1]] == [first, second]
    refused = project.run("build", f"{first}.yaml", "name=matrix")
    assert refused.exit_code == 2 and "cannot be `matrix`" in refused.stderr


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_a_kernel_that_computes_something_else_is_caught_engine_by_engine(built, monkeypatch, kind):
    """A runtime whose audio encoder is wrong in one of its forms."""
    project, _ = built
    monkeypatch.chdir(project.root)
    opened = onnxruntime.open

    def wrong(folder, target, threads=None):
        session = opened(folder, target, threads)
        if folder.name != "audio_encoder" or (folder.parents[1].name == "float") != (kind == "float"):
            return session
        return lambda feeds: {name: np.roll(value, 1, -1) for name, value in session(feeds).items()}

    monkeypatch.setattr(onnxruntime, "open", wrong)
    with pytest.raises(TargetError, match="engine `audio_encoder`, output `audio_features`: ONNX Runtime computes the (float|INT8) graph") as caught:
        edgekit.build("car.yaml", ["target=onnxruntime_x86", "name=wrong", f"verify.clips={2 if kind == 'float' else 3}"])
    assert caught.value.exit_code == 4 and not (project.root / "build/wrong").exists()


def test_a_runtime_that_is_not_installed_is_named_in_plan_and_build_with_its_command(built, monkeypatch):
    project, _ = built
    monkeypatch.chdir(project.root)
    monkeypatch.setattr(openvino, "versions", lambda target: {"openvino": None})
    planned = project.run("plan", "car.yaml", "target=x86_openvino", "--json")
    assert json.loads(planned.output)["missing_tools"] == ["`openvino`, not installed here: pip install 'edgekit[openvino]'"]
    assert "missing: `openvino`" in project.run("plan", "car.yaml", "target=x86_openvino").output
    with pytest.raises(ToolMissing, match="stage export needs `openvino`") as caught:
        edgekit.build("car.yaml", ["target=x86_openvino", "name=missing"])
    assert caught.value.exit_code == 5


def test_an_unknown_backend_is_refused_with_the_known_ones(built, monkeypatch):
    project, _ = built
    monkeypatch.chdir(project.root)
    (project.root / "targets").mkdir(exist_ok=True)
    text = (edgekit.target.load_target("onnxruntime_x86", project.root).path).read_text()
    (project.root / "targets/mine.yaml").write_text(text.replace("name: onnxruntime_x86", "name: mine").replace("backend: onnxruntime", "backend: onnxruntme"))
    with pytest.raises(EdgekitError, match="unknown backend `onnxruntme`"):
        edgekit.build("car.yaml", ["target=mine"])

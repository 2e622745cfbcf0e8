"""What a device brought back becomes a new bundle whose every number is the device's, or is refused."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import edgekit
from edgekit.backends.tensorrt import clips, result
from edgekit.bundle import open_bundle
from edgekit.errors import IntegrityError
from tests.backends.tensorrt.stub_device import StubDevice
from tests.small_project import Project, make_project

pytestmark = pytest.mark.skipif(shutil.which("flock") is None, reason="needs flock, as the device does")


def layers_json(coverage: dict, engine: str, but: str = "") -> str:
    """As TensorRT 8.5 writes it: every layer with MACs in INT8 as declared, except `but`."""
    rows = []
    for row in coverage["layers"]:
        if row["engine"] == engine:
            precision = "Half" if row["node"] == but else {"int8": "Int8", "fp16": "Half", "fp32": "Float"}[row["declared"]]
            rows.append({"Name": f"{row['node']} + {row['node']}/act", "LayerType": "CaskConvolution", "Weights": {"Type": precision, "Count": 12}, "Inputs": [{"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}]})
    return json.dumps({"Layers": [*rows, {"Name": "copy", "LayerType": "Reformat", "Inputs": []}]})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project whose bundle was built and finished on a stub device, result and all."""
    project = make_project(tmp_path_factory.mktemp("adopt") / "car")
    with contextlib.chdir(project.root):
        edgekit.build("car.yaml")
        bundle = project.root / "build/car"
        coverage = json.loads((bundle / "coverage.json").read_text())
        engines = sorted({row["engine"] for row in coverage["layers"]})
        device = StubDevice.make(project.root / "device", bundle, engines)
        for engine in engines:
            (device.stub / f"layers/{engine}.json").write_text(layers_json(coverage, engine))
        ran = device.finish()
        assert ran.returncode == 0, ran.stderr
    return project


@pytest.fixture
def project(finished, tmp_path, monkeypatch) -> Project:
    shutil.copytree(finished.root, tmp_path / "car")
    monkeypatch.chdir(tmp_path / "car")
    return Project(tmp_path / "car")


def seal(folder: Path) -> None:
    """As finish.sh does, after a test changed something."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    subprocess.run(["sha256sum", *names], cwd=folder, check=True, stdout=(folder / "SHA256SUMS").open("w"))


RESULT = Path("build/car/result")


# what it makes


def test_a_result_becomes_a_bundle_that_was_measured(project):
    before = (project.root / "build/car.tar.zst").read_bytes()
    done = project.run("adopt", str(RESULT))
    assert done.exit_code == 0, done.stderr
    assert (project.root / "build/car.tar.zst").read_bytes() == before, "the host's own bundle stays"
    with open_bundle("build/car-measured.tar.zst") as bundle:
        bundle.verify()
        manifest, report, names = bundle.manifest, bundle.report, set(bundle.manifest["files"])
    assert report["verdict"] == manifest["verdict"] == "pass"
    assert report["measured_on"] == "Jetson-AGX, sm_72, TensorRT 8.5.2"
    assert manifest["passport"] == {"name": "car", "target": "jetson_xavier", "sm": "72", "tensorrt": "8.5.2", "cuda": "11.4", "board": "Jetson-AGX", "l4t": "35.3.1"}
    assert {f"engines/{engine}/{file}" for engine in ("step", "head") for file in ("model.engine", "layers.json")} <= names
    assert {"check.sh", "device.sh", "ek_trt/Makefile", "golden/tolerance.txt"} <= names and not {"finish.sh", "engines.txt", "heldout.txt"} & names
    assert not (project.root / "build/car-measured.heldout.tar").exists()
    # The stub answers as the float model does, which the simulation cannot.
    host = json.loads(Path("build/car/report.json").read_text())
    assert all(row["max_abs"] == 0 for row in report["parity"].values()) and any(row["max_abs"] > 0 for row in host["parity"].values())
    assert report["metrics"]["artifact"] == report["metrics"]["pruned"] != host["metrics"]["artifact"]
    assert report["device"]["latency_ms"] == 5.5 and report["device"]["device_memory_mib"] == 50 and report["device"]["power_mode"] == "MAXN"
    page = Path("build/car-measured/report.html").read_text()
    assert "5.50 ms" in page and "MAXN" in page and "Jetson-AGX" in page


def test_adopting_twice_runs_nothing_and_a_build_of_the_host_is_not_disturbed(project):
    assert project.run("adopt", str(RESULT)).exit_code == 0
    assert edgekit.build("car.yaml").ran == ()
    kept = list((project.root / ".edgekit/results").iterdir())
    from edgekit.adopt import adopt

    assert adopt(RESULT).ran == ()
    assert list((project.root / ".edgekit/results").iterdir()) == kept and len(kept) == 1
    shutil.rmtree(RESULT)
    assert (kept[0] / "result.txt").is_file(), "the cache has its own copy"


def test_a_result_is_adopted_away_from_its_bundle(project):
    shutil.move(RESULT, "came_by_mail")
    assert project.run("adopt", "came_by_mail").exit_code == 0
    shutil.rmtree("build")
    refused = project.run("adopt", "came_by_mail")
    assert refused.exit_code == 2 and "--bundle" in refused.stderr


def test_coverage_is_counted_from_the_engines_own_layers(project):
    coverage = json.loads(Path("build/car/coverage.json").read_text())
    lost = max((row for row in coverage["layers"] if row["precision"] == "int8"), key=lambda row: row["macs"] * row["runs_per_window"])
    (RESULT / f"engines/{lost['engine']}/layers.json").write_text(layers_json(coverage, lost["engine"], but=lost["node"]))
    seal(RESULT)
    assert project.run("adopt", str(RESULT)).exit_code == 0
    measured = json.loads(Path("build/car-measured/report.json").read_text())["coverage"]
    share = lost["macs"] * lost["runs_per_window"] / coverage["macs"]
    assert measured["grade"] == "measured" and measured["int8_macs"] == pytest.approx(coverage["int8_macs"] - share)
    assert measured["skipped"][lost["engine"]][lost["node"]] == "fp16: declared INT8, the engine runs it in fp16"


@pytest.mark.parametrize(("limit", "verdict", "code"), [(5.5, "pass", 0), (5.4, "fail", 3)])
def test_a_latency_gate_waits_for_the_device_and_is_judged_by_it(project, limit, verdict, code):
    gates = [f"gates.latency_ms.max={limit}", "gates.device_memory_mib.max=64"]
    host = edgekit.build("car.yaml", gates)
    waiting = {gate["name"]: gate["verdict"] for gate in host.report["gates"]}
    assert host.exit_code == 0 and host.report["verdict"] == "pending-device"
    assert waiting["latency_ms"] == waiting["device_memory_mib"] == "pending-device"
    # Gates are in package's key only, so the kit is another, but for the engines: finish.sh would only run again.
    device = StubDevice(project.root / "device", project.root / "build/car")
    ran = device.finish()
    assert ran.returncode == 0, ran.stderr
    done = project.run("adopt", str(RESULT))
    assert done.exit_code == code, done.stderr
    report = json.loads(Path("build/car-measured/report.json").read_text())
    assert report["verdict"] == verdict
    assert {gate["name"]: gate["pass"] for gate in report["gates"]}["latency_ms"] is (verdict == "pass")
    assert Path("build/car-measured/engines").exists() is (verdict == "pass"), "nothing flashable after a missed gate"


def test_a_latency_gate_where_nothing_comes_back_is_refused(project):
    done = project.run("build", "car.yaml", "target=onnxruntime_x86", "gates.latency_ms.max=5")
    assert done.exit_code == 2 and "`latency_ms` is measured on a device" in done.stderr


def test_an_orin_goes_the_same_way_with_its_own_form_and_passport(tmp_path, monkeypatch):
    project = make_project(tmp_path / "orin", target="jetson_orin")
    monkeypatch.chdir(project.root)
    assert edgekit.build("car.yaml").report["verdict"] == "pending-device"
    bundle = project.root / "build/car"
    arguments = dict(line.split("\t", 1) for line in (bundle / "engines.txt").read_text().splitlines())
    assert all("--fp16" in words and "--cache" not in words for words in arguments.values()), "Q/DQ stands in the graph, no cache"
    device = StubDevice.make(project.root / "device", bundle, list(arguments))
    assert device.finish().returncode == 5, "a Xavier"
    device.become(tensorrt="10.3.0", cuda=12060, chip="tegra234", l4t="4.3", board="NVIDIA Jetson AGX Orin Developer Kit")
    ran = device.finish()
    assert ran.returncode == 0, ran.stderr
    assert project.run("adopt", str(RESULT)).exit_code == 0
    assert json.loads(Path("build/car-measured/report.json").read_text())["measured_on"] == "NVIDIA Jetson AGX Orin Developer Kit, sm_87, TensorRT 10.3.0"


# what it refuses


def change(path: Path, text: str) -> None:
    path.write_text(text)
    seal(RESULT)


def some_output() -> Path:
    return sorted(RESULT.glob("heldout/outputs/*/*.npy"))[0]


def put(value: np.ndarray) -> None:
    some_output().write_bytes(clips.npy(value))
    seal(RESULT)


def nan() -> None:
    value = np.load(some_output())
    put(np.full_like(value, np.nan))


DAMAGE = {
    "a changed engine": (lambda: sorted(RESULT.glob("engines/*/model.engine"))[0].write_text("x"), 6, "does not match its sha256"),
    "a missing output": (lambda: some_output().unlink(), 6, "is missing"),
    "a missing output, sealed": (lambda: (some_output().unlink(), seal(RESULT)), 6, "is missing"),
    "a file too many": (lambda: (RESULT / "more").write_text("x"), 6, "is not in SHA256SUMS"),
    "a link": (lambda: (RESULT / "link").symlink_to("/etc/passwd"), 6, "is a link"),
    "a clip of another bundle": (lambda: (shutil.copytree(some_output().parent, some_output().parent.with_name("zz")), seal(RESULT)), 6, "is of no clip"),
    "NaN": (nan, 6, "NaN or infinity"),
    "doubles": (lambda: put(np.load(some_output()).astype(np.float64)), 6, "float64"),
    "another shape": (lambda: put(np.zeros((3, 3), np.float32)), 6, "expected float32"),
    "a pickle": (lambda: (np.save(some_output(), np.array([{}], object), allow_pickle=True), seal(RESULT)), 6, "not an .npy file"),
    "another device": (lambda: change(RESULT / "device.txt", "sm=87\ntensorrt=8.5.2\ncuda=11.4\n"), 4, "sm is 87, the bundle is for 72"),
    "another library": (lambda: change(RESULT / "version.json", '{"sm": "72", "tensorrt": "8.5.1", "cuda_runtime": "11.4"}'), 4, "tensorrt is 8.5.1"),
    "of another bundle": (lambda: change(RESULT / "result.txt", "kit=00\nname=car\nheldout=no\n"), 2, "the result of another kit"),
    "without held-out clips": (lambda: change(RESULT / "result.txt", "\n".join(line if not line.startswith("heldout") else "heldout=no" for line in (RESULT / "result.txt").read_text().splitlines())), 2, "without the held-out clips"),
    "failed comparison": (lambda: change(RESULT / "heldout/compare.json", '{"failed": ["o"]}'), 6, "failed, yet it was published"),
    "latency that is none": (lambda: change(RESULT / "golden/run.json", '{"latency_ms": {"p50": 1, "p99": NaN}, "load_ms": 1, "device_memory_bytes": 1}'), 6, "latency_ms is nan"),
    "layers without detail": (lambda: change(sorted(RESULT.glob("engines/*/layers.json"))[0], '{"Layers": ["a", "b"]}'), 6, "names of layers only"),
    "unfinished": (lambda: (RESULT / "result.txt").unlink(), 2, "no finished result"),
    "a name that leaves the folder": (lambda: (shutil.move(RESULT, "r"), (Path("r") / "result.txt").write_text("name=../../etc\n")), 2, "names no bundle"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_not_right_is_refused_and_makes_no_bundle(project, damage):
    act, code, message = DAMAGE[damage]
    act()
    done = project.run("adopt", "r" if Path("r").exists() else str(RESULT))
    assert done.exit_code == code and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not Path("build/car-measured").exists()
    assert not list(Path(".edgekit").glob("results/*"))


def test_a_recipe_that_makes_another_kit_by_now_is_refused(project):
    done = project.run("adopt", str(RESULT), "car.yaml", "quantize.observer=minmax")
    assert done.exit_code == 2 and "its export is not the one of the bundle any more" in done.stderr
    assert not Path("build/car-measured").exists()


# the measured bundle on other boards


def check(device: StubDevice, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["sh", "check.sh", *arguments], cwd="build/car-measured", env=device.environment, capture_output=True, text=True, timeout=60)


def test_check_sh_asks_for_the_board_before_an_engine_is_flashed(project):
    assert project.run("adopt", str(RESULT)).exit_code == 0
    device = StubDevice(project.root / "device", project.root / "build/car-measured")
    before = {path: path.read_bytes() for path in Path("build/car-measured").rglob("*") if path.is_file()}
    good = check(device)
    assert good.returncode == 0 and "passport and files are right: Jetson-AGX, TensorRT 8.5.2" in good.stdout
    assert check(device, "--golden").returncode == 0, check(device, "--golden").stderr
    (device.stub / "off").touch()
    assert check(device, "--golden").returncode == 3
    assert {path: path.read_bytes() for path in Path("build/car-measured").rglob("*") if path.is_file()} == before
    device.become(board="NVIDIA Jetson Xavier NX")
    other = check(device)
    assert other.returncode == 5 and "board: expected Jetson-AGX, found NVIDIA Jetson Xavier NX" in other.stderr
    device.become()
    Path("build/car-measured/engines/head/model.engine").write_text("x")
    assert check(device).returncode == 6


# layers.json


@pytest.mark.parametrize(
    ("layer", "nodes"),
    [
        ({"Name": "a/Conv + a/Clip", "Weights": {"Type": "Int8", "Count": 8}}, {"a/Conv": "int8", "a/Clip": "int8"}),
        ({"Name": "a/Conv || b/Conv", "Weights": {"Type": "Half", "Count": 8}}, {"a/Conv": "fp16", "b/Conv": "fp16"}),
        ({"Name": "sum", "Inputs": [{"Format/Datatype": "Row major linear FP32"}]}, {"sum": "fp32"}),
        ({"Name": "_gemm_mha_v2", "Metadata": "[ONNX Layer: q/MatMul]\x1e[ONNX Layer: k/MatMul]", "Inputs": [{"Format/Datatype": "Int8"}]}, {"q/MatMul": "int8", "k/MatMul": "int8"}),
        ({"Name": "{ForeignNode[lstm/first...lstm/last]}", "Inputs": [{"Format/Datatype": "Row major linear FP16 format"}]}, {}),
        ({"Name": "a/Conv", "Weights": {"Type": "Int8", "Count": 0}, "Inputs": []}, {}),
    ],
)
def test_layers_are_read_as_tensorrt_writes_them(tmp_path, layer, nodes):
    (tmp_path / "layers.json").write_text(json.dumps({"Layers": [layer]}))
    assert result.layers(tmp_path) == nodes


def test_a_copy_named_after_its_layer_and_a_second_mention_do_not_count(tmp_path):
    layers = [
        {"Name": "a/Conv + a/Add", "LayerType": "CaskConvolution", "Weights": {"Type": "Int8", "Count": 8}},
        {"Name": "Reformatting CopyNode for Input Tensor 0 to b/Conv + a/Conv", "LayerType": "Reformat", "Inputs": [{"Format/Datatype": "Row major linear FP16 format"}]},
        {"Name": "x + a/Conv", "LayerType": "PointWiseV2", "Inputs": [{"Format/Datatype": "Row major linear FP16 format"}]},
    ]
    (tmp_path / "layers.json").write_text(json.dumps({"Layers": layers}))
    assert result.layers(tmp_path) == {"a/Conv": "int8", "a/Add": "int8", "x": "fp16"}


def test_layers_of_an_engine_without_detail_are_refused(tmp_path):
    (tmp_path / "layers.json").write_text("{}")
    with pytest.raises(IntegrityError, match="not a list"):
        result.layers(tmp_path)

"""ek_trt's use of TensorRT: compiled against real headers (see trt_standin.py for where they are looked for), linked to a stand-in without GPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgekit.backends.tensorrt.cache import write_cache

sys.path.insert(0, str(Path(__file__).parent))
from trt_standin import each_version, standin, version_of
from trt_toy import MHLT, MHLT_ENGINES, TOOL, ToyEngine, flow_text, load_clip, random_inputs, run, save_clip

from edgekit.flow import run_flow

pytestmark = pytest.mark.slow  # half a minute of compiling for each version of the headers

MODEL = """standin
input x 1,3
layer conv conv_out
layer relu relu_out
layer sum y
output y 1,2
"""


@pytest.fixture(scope="module", params=each_version())
def device(request) -> tuple[Path, int]:
    """(folder of programs, TensorRT's major version)."""
    return standin(*request.param), version_of(request.param[0])[0]


@pytest.fixture
def tool(device) -> Path:
    return device[0] / "ek_trt"


@pytest.fixture
def tool_8(device) -> Path:
    if device[1] != 8:
        pytest.skip("TensorRT 8 alone reads a calibration cache")
    return device[0] / "ek_trt"


@pytest.fixture
def kit(tmp_path) -> Path:
    (tmp_path / "model.onnx").write_text(MODEL)
    (tmp_path / "calibration.cache").write_text(write_cache({"x": 0.01, "conv_out": 0.02, "relu_out": 0.03, "y": 0.04}, "8502"))
    (tmp_path / "int8_tensors.txt").write_text("x\nconv_out\n")
    (tmp_path / "precisions.txt").write_text("conv\tint8\nsum\tfp32\n")
    return tmp_path


INT8 = ("--int8", "--fp16", "--cache", "calibration.cache", "--int8-tensors", "int8_tensors.txt", "--precisions", "precisions.txt")
RESULTS = ("model.engine", "layers.json", "report.json")


def build(tool: Path, kit: Path, *more: str, environment: dict | None = None) -> subprocess.CompletedProcess:
    command = (tool, "build", "--onnx", "model.onnx", "--engine", "model.engine", "--layers", "layers.json", "--report", "report.json", *more)
    return run(*command, cwd=kit, env={**os.environ, **(environment or {})})


def told(kit: Path) -> dict[str, str]:
    """What the builder was told, by its first word; the engine is a text of it."""
    lines = [line.split(" ", 1) for line in (kit / "model.engine").read_text().splitlines()]
    return {line[0]: line[1] if len(line) > 1 else "" for line in lines if line[0] not in ("built", "formats")}


def left(kit: Path) -> list[str]:
    return sorted(p.name for p in kit.iterdir() if p.name in RESULTS or p.suffix == ".part")


def edit(kit: Path, more: str) -> None:
    (kit / "model.onnx").write_text(MODEL + more)


# --------------------------------------------------------------------------- version


def test_version_is_one_line_of_json(tool, device):
    done = run(tool, "version")
    assert done.returncode == 0 and done.stdout.count("\n") == 1
    found = json.loads(done.stdout)
    assert found["tensorrt"] == found["tensorrt_built_for"] and found["tensorrt"].split(".")[0] == str(device[1])
    assert (found["cuda_runtime"], found["cuda_driver"], found["device"], found["sm"], found["memory_bytes"]) == ("11.4", "12.2", "Stand-in", "72", 32 << 30)


@pytest.mark.parametrize("devices", ["0", "-1"])
def test_without_a_device_it_ends_with_5_and_the_reason(tool, kit, devices):
    environment = {"STANDIN_DEVICES": devices}
    done = run(tool, "version", env={**os.environ, **environment})
    assert done.returncode == 5 and done.stdout == "" and "CUDA" in done.stderr and "TensorRT" in done.stderr
    assert build(tool, kit, environment=environment).returncode == 5 and left(kit) == []


def test_a_library_of_another_version_than_the_headers_is_5(tool, kit):
    done = build(tool, kit, environment={"STANDIN_VERSION": "8400"})
    assert done.returncode == 5 and "8.4.0" in done.stderr and left(kit) == []
    assert json.loads(run(tool, "version", env={**os.environ, "STANDIN_VERSION": "8400"}).stdout)["tensorrt"] == "8.4.0"


# --------------------------------------------------------------------------- build, TensorRT 8


def test_our_cache_is_served_and_precisions_are_obeyed(tool_8, kit):
    done = build(tool_8, kit, *INT8, "--workspace", "256")
    assert done.returncode == 0, done.stderr
    assert left(kit) == sorted(RESULTS)
    plan = told(kit)
    assert plan["flags"].split() == ["fp16", "int8", "obey", "detailed"], "TF32 is off"
    assert plan["network"] == "1" and plan["workspace"] == str(256 << 20) and "dla" not in plan
    assert json.loads((kit / "layers.json").read_text())["Layers"] == [{"Name": "conv", "Precision": "int8"}, {"Name": "relu", "Precision": "any"}, {"Name": "sum", "Precision": "fp32"}]
    report = json.loads((kit / "report.json").read_text())
    assert report["calibration_cache"] == "read" and report["without_scale"] == [] and report["precisions"] == {"int8": 1, "fp16": 0, "fp32": 1}
    assert report["engine_bytes"] == (kit / "model.engine").stat().st_size and report["sm"] == "72"


def test_data_is_never_given_to_calibrate_with(tool_8, kit):
    edit(kit, "ask_for_data\n")
    done = build(tool_8, kit, *INT8)
    assert done.returncode == 4 and "asked for data" in done.stderr and left(kit) == []


def test_a_builder_that_does_not_read_the_cache_is_4(tool_8, kit):
    edit(kit, "ignore_cache\n")
    done = build(tool_8, kit, *INT8)
    assert done.returncode == 4 and "without reading it" in done.stderr and left(kit) == []


def test_a_missing_scale_matters_where_an_int8_layer_uses_it(tool_8, kit):
    (kit / "calibration.cache").write_text(write_cache({"x": 0.01, "relu_out": 0.03, "y": 0.04}, "8502"))
    done = build(tool_8, kit, *INT8)
    assert done.returncode == 4 and "`conv_out`" in done.stderr and left(kit) == []

    (kit / "calibration.cache").write_text(write_cache({"x": 0.01, "conv_out": 0.02}, "8502"))
    assert build(tool_8, kit, *INT8).returncode == 0, "relu_out and y are nobody's int8 tensors"
    report = json.loads((kit / "report.json").read_text())
    assert report["without_scale"] == ["relu_out", "y"] and len(report["warnings"]) == 2


@pytest.mark.parametrize(
    "words",
    [
        "Could not parse the following line from the calibration cache: \"x\"",
        "Calibration table does not match calibrator algorithm type.",
        "Calibrator is not being used. Users must provide dynamic range for all tensors that are not Int32 or Bool.",
        "Missing scale and zero-point for something",
    ],
)
def test_what_tensorrt_says_of_a_cache_that_it_does_not_use_is_4(tool_8, kit, words):
    edit(kit, f"complain {words}\n")
    done = build(tool_8, kit, *INT8)
    assert done.returncode == 4 and words in done.stderr.splitlines()[-1] and left(kit) == []


def test_a_scale_whose_tensor_the_network_has_not_got_is_4(tool_8, kit):
    (kit / "int8_tensors.txt").write_text("x\nrenamed\n")
    (kit / "calibration.cache").write_text(write_cache({"x": 0.01, "conv_out": 0.02, "renamed": 0.1}, "8502"))
    done = build(tool_8, kit, *INT8)
    assert done.returncode == 4 and "`renamed`" in done.stderr and left(kit) == []


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (("--int8",), "--cache"),
        (("--int8", "--cache", "calibration.cache"), "--int8-tensors"),
        (("--cache", "calibration.cache", "--int8-tensors", "int8_tensors.txt"), "--int8"),
        (("--strongly-typed",), "--strongly-typed"),
        (("--gpu-fallback",), "--dla"),
    ],
)
def test_what_8_5_cannot_be_asked_for_is_2(tool_8, kit, words, word):
    (kit / "model.engine").write_text("old")
    done = build(tool_8, kit, *words)
    assert done.returncode == 2 and word in done.stderr and (kit / "model.engine").read_text() == "old"


# --------------------------------------------------------------------------- build, 10 and 11


def test_10_takes_the_networks_scales_and_11_its_types_too(device, tool, kit):
    if device[1] < 10:
        pytest.skip("for TensorRT 10 and later")
    for words in (INT8[:6], INT8):
        done = build(tool, kit, *words)
        assert done.returncode == 2 and "Q/DQ" in done.stderr
    if device[1] == 10:
        assert build(tool, kit, "--int8", "--fp16", "--precisions", "precisions.txt").returncode == 0
        assert told(kit)["flags"].split() == ["fp16", "int8", "obey", "detailed"] and told(kit)["network"] == "0"
        assert build(tool, kit, "--strongly-typed", "--fp16").returncode == 2
        assert build(tool, kit, "--strongly-typed").returncode == 0
        assert told(kit)["flags"] == "detailed" and told(kit)["network"] == "2", "1 << kSTRONGLY_TYPED"
    else:
        assert build(tool, kit, "--fp16").returncode == 2
        assert build(tool, kit, "--precisions", "precisions.txt").returncode == 2
        assert build(tool, kit, "--strongly-typed").returncode == 0
        assert build(tool, kit).returncode == 0
        assert told(kit)["flags"] == "detailed" and told(kit)["network"] == "0"
    assert "strongly_typed" in json.loads((kit / "report.json").read_text())["flags"]


# --------------------------------------------------------------------------- build, any


@pytest.mark.parametrize(
    ("more", "code", "word"),
    [
        ("refuse no importer for Einsum", 4, "no importer for Einsum"),
        ("fail no implementation obeys conv", 4, "no implementation obeys conv"),
        ("no_reload", 4, "does not load"),
        ("no_layers", 4, "nothing of the engine's layers"),
        ("integer x", 4, "`x` is not float32"),
        ("dynamic y", 4, "`y` has no fixed shape"),
    ],
)
def test_what_the_builder_does_not_do_is_4_and_leaves_nothing(tool, kit, more, code, word):
    for name in RESULTS:
        (kit / name).write_text("old")
    edit(kit, more + "\n")
    done = build(tool, kit)
    assert done.returncode == code and word in done.stderr, done.stderr
    assert left(kit) == [], "an old engine would pass for the new one"


def test_a_layer_that_is_not_there_is_4(device, tool, kit):
    if device[1] >= 11:
        pytest.skip("no precisions on 11")
    (kit / "precisions.txt").write_text("conv\tfp32\nnobody\tfp16\n")
    done = build(tool, kit, "--fp16", "--precisions", "precisions.txt")
    assert done.returncode == 4 and "`nobody`" in done.stderr and left(kit) == []


def test_without_a_builder_it_is_5(tool, kit):
    done = build(tool, kit, environment={"STANDIN_NO_BUILDER": "1"})
    assert done.returncode == 5 and "builder" in done.stderr and left(kit) == []


def test_a_missing_model_is_6(tool, kit):
    (kit / "model.onnx").unlink()
    assert build(tool, kit).returncode == 6


def test_files_go_in_and_out_in_linear_format(tool, kit):
    assert build(tool, kit).returncode == 0
    assert [line for line in (kit / "model.engine").read_text().splitlines() if line.startswith("formats")] == ["formats x 1", "formats y 1"]


def test_own_kernels_leave_cublas_and_cudnn_out(device, tool, kit):
    assert build(tool, kit).returncode == 0 and told(kit)["sources"] == "31"
    assert build(tool, kit, "--own-kernels").returncode == 0
    assert told(kit)["sources"] == ("24" if device[1] < 11 else "31"), "bits 0 to 2 are cuBLAS, cuBLASLt and cuDNN; 11 has none of them"


def test_dla_takes_what_it_can_and_says_what_it_cannot(tool, kit):
    assert build(tool, kit, "--dla", "1").returncode == 0
    assert told(kit)["dla"] == "1" and "gpu_fallback" not in told(kit)["flags"]
    assert json.loads((kit / "report.json").read_text())["dla"] == {"core": 1, "layers": 3, "elsewhere": []}
    edit(kit, "gpu_only relu\n")
    done = build(tool, kit, "--dla", "1")
    assert done.returncode == 4 and "Layer relu" in done.stderr.splitlines()[-1] and left(kit) == []
    assert build(tool, kit, "--dla", "1", "--gpu-fallback").returncode == 0
    assert json.loads((kit / "report.json").read_text())["dla"] == {"core": 1, "layers": 2, "elsewhere": ["relu"]} and "gpu_fallback" in told(kit)["flags"]
    done = build(tool, kit, "--dla", "2")
    assert done.returncode == 5 and "DLA core 2" in done.stderr


def test_the_timing_cache_is_made_used_and_replaced(tool, kit):
    states = []
    for content in (None, None, "of another device"):
        if content is not None:
            (kit / "timing").write_text(content)
        assert build(tool, kit, "--timing-cache", "timing").returncode == 0
        states.append(json.loads((kit / "report.json").read_text())["timing_cache"])
        assert (kit / "timing").read_text() == "timing of this device\n"
    assert states == ["new", "used", "replaced"]
    assert build(tool, kit).returncode == 0 and json.loads((kit / "report.json").read_text())["timing_cache"] is None


def test_an_interrupted_build_leaves_nothing(tool, kit):
    edit(kit, "sleep\n")
    command = [tool, "build", "--onnx", "model.onnx", "--engine", "model.engine", "--layers", "layers.json", "--report", "report.json"]
    (kit / "model.engine").write_text("old")
    with subprocess.Popen(command, cwd=kit, stderr=subprocess.DEVNULL) as process:
        while (kit / "model.engine").exists():
            time.sleep(0.01)
        time.sleep(0.3)  # now it sleeps in the builder
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    assert left(kit) == []


@pytest.mark.parametrize(("option", "others"), [("--layers", []), ("--report", ["layers.json"]), ("--engine", ["layers.json", "report.json"])])
def test_the_engine_comes_last(tool, kit, option, others):
    """Where the layers or the report cannot be written, there is no engine."""
    files = {"--engine": "model.engine", "--layers": "layers.json", "--report": "report.json", option: "nowhere/file"}
    done = run(tool, "build", "--onnx", "model.onnx", *(word for pair in files.items() for word in pair), cwd=kit)
    assert done.returncode == 5 and "nowhere/file" in done.stderr, done.stderr
    assert left(kit) == others


# --------------------------------------------------------------------------- run


def engine_file(path: Path, engine: ToyEngine, more: str = "") -> None:
    lines = ["plan", *(f"input {n} {','.join(map(str, s))}" for n, s in engine.inputs.items()), *(f"output {n} {','.join(map(str, s))}" for n, s in engine.outputs.items())]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + f"\n{more}\n")


def run_alone(tool: Path, folder: Path, *more: str) -> subprocess.CompletedProcess:
    return run(tool, "run", "--engine", folder / "e", "--inputs", folder / "in", "--outputs", folder / "out", "--report", folder / "r.json", *more)


def test_an_engine_that_was_built_runs(tool, kit):
    assert build(tool, kit).returncode == 0
    x = np.array([[0.5, -1, 2]], np.float32)
    save_clip(kit / "in" / "c", {"x": x})
    done = run(tool, "run", "--engine", kit / "model.engine", "--inputs", kit / "in", "--outputs", kit / "out", "--report", kit / "r.json", "--dla", "1")
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(kit / "out" / "c" / "y.npy"), ToyEngine({"x": [1, 3]}, {"y": [1, 2]})({"x": x})["y"], atol=1e-6)


def test_times_are_between_events_and_after_the_warm_up(tool, tmp_path):
    engine = ToyEngine({"x": [1, 3]}, {"y": [1, 2]})
    engine_file(tmp_path / "e", engine, "milliseconds 100,1,2,3,4,5,6,7,8,9,10")  # the first is the warm-up's
    for clip in ("a", "b"):
        save_clip(tmp_path / "in" / clip, {"x": np.zeros((1, 3), np.float32)})
    done = run_alone(tool, tmp_path, "--warm-up", "1", "--repeat", "5")
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "r.json").read_text())["engines"]["engine"]
    assert row["latency_ms"] == {"p50": 5, "p99": 10, "mean": 5.5, "n": 10}
    assert row["activation_bytes"] == 4321 and row["device_memory_bytes"] == (3 + 2) * 4


def test_a_flow_runs_on_several_engines(device, tmp_path):
    folder, _ = device
    for name, engine in MHLT_ENGINES.items():
        engine_file(tmp_path / "engines" / name / "model.engine", engine)
    (tmp_path / "flow.txt").write_text(flow_text(MHLT))
    (tmp_path / "flow.json").write_text(json.dumps(MHLT))
    tensors = random_inputs(MHLT, 3)
    save_clip(tmp_path / "in" / "c", tensors)
    want = run_flow(MHLT, MHLT_ENGINES, tensors)
    done = run(folder / "ek_trt", "run", "--flow", tmp_path / "flow.txt", "--engines", tmp_path / "engines", "--inputs", tmp_path / "in", "--outputs", tmp_path / "out", "--report", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    done = run(folder / "run_bundle", tmp_path, tmp_path / "engines", tmp_path / "in", tmp_path / "clamped")
    assert done.returncode == 0, done.stderr
    for name, value in want.items():
        np.testing.assert_allclose(load_clip(tmp_path / "out" / "c")[name], value, atol=1e-6)
        np.testing.assert_allclose(load_clip(tmp_path / "clamped" / "c")[name], np.clip(value, -0.15, 0.15), atol=1e-6)


@pytest.mark.parametrize(
    ("content", "code", "word"),
    [
        ("junk\n", 6, "not an engine of this TensorRT"),
        ("plan\ninput x 1,3\noutput y 1,2\ninteger y\n", 4, "`y` is not float32"),
        ("plan\ninput x 1,3\noutput y 1,2\ndynamic x\n", 4, "`x` has no fixed shape"),
        ("plan\ninput ../x 1,3\noutput y 1,2\n", 4, "`../x` cannot be a file"),
        ("plan\ninput x 1,3\noutput y 1,99999,99999\n", 5, "bytes of device memory"),
    ],
)
def test_an_engine_that_cannot_be_run_is_refused(tool, tmp_path, content, code, word):
    (tmp_path / "e").write_text(content)
    save_clip(tmp_path / "in" / "c", {"x": np.zeros((1, 3), np.float32)})
    done = run_alone(tool, tmp_path)
    assert done.returncode == code and word in done.stderr, done.stderr
    assert not (tmp_path / "r.json").exists() and not (tmp_path / "out").exists()


# --------------------------------------------------------------------------- the Makefile, and JetPack's language


def test_make_compiles_against_these_headers(device, tmp_path, request):
    tensorrt, cuda = request.node.callspec.params["device"]
    for name, headers in (("trt", tensorrt), ("cuda", cuda)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "include").symlink_to(headers)
    objects = [f"{tmp_path}/o/{p.stem}.o" for p in TOOL.glob("*.cpp")]
    done = run("make", "-s", "-C", TOOL, f"BUILD={tmp_path}/o", f"TENSORRT_DIR={tmp_path}/trt", f"CUDA_DIR={tmp_path}/cuda", "CXXFLAGS=-O0 -Werror -fsyntax-only", *objects)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif("EDGEKIT_TENSORRT_DIR" not in os.environ or "EDGEKIT_CUDA_DIR" not in os.environ, reason="needs TensorRT itself: EDGEKIT_TENSORRT_DIR and EDGEKIT_CUDA_DIR, as make's TENSORRT_DIR and CUDA_DIR")
def test_it_links_with_tensorrt_itself_and_asks_it_who_it_is(tmp_path):
    """With a GPU it says so; without one it ends with 5, and the library's version is in the sentence."""
    tensorrt, cuda = os.environ["EDGEKIT_TENSORRT_DIR"], os.environ["EDGEKIT_CUDA_DIR"]
    done = run("make", "-s", "-j2", "-C", TOOL, f"BUILD={tmp_path}", f"TENSORRT_DIR={tensorrt}", f"CUDA_DIR={cuda}", "CXXFLAGS=-O0", "all", "run_bundle")
    assert done.returncode == 0, done.stderr
    major, minor = version_of(Path(tensorrt) / "include")
    done = run(tmp_path / "ek_trt", "version")
    if done.returncode == 0:
        found = json.loads(done.stdout)
        assert found["tensorrt"] == found["tensorrt_built_for"] and found["tensorrt"].startswith(f"{major}.{minor}.") and found["memory_bytes"] > 0
    else:
        assert done.returncode == 5 and f"TensorRT {major}.{minor}." in done.stderr and "a CUDA device is not" in done.stderr, done.stderr

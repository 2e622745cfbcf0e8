"""The kit holds what trtexec needs, and build.sh ends well or leaves nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edgekit.backends import EngineKit, Kit, tensorrt
from edgekit.backends.tensorrt import cache
from edgekit.errors import EdgekitError
from edgekit.quant import Range
from edgekit.target import load_target

TARGET = load_target("jetson_xavier", Path(__file__).parents[3]).spec()

FAKE = r"""#!/bin/sh
# Behaves like trtexec of 8.5.2 as far as build.sh can see it. $MODE says what goes wrong.
echo "&&&& RUNNING TensorRT.trtexec [TensorRT v${VERSION:-8502}] # trtexec $*"
[ "$1" != --help ] || exit 0
printf '%s\n' "$@" >"$CALLS/$(date +%s%N)"
for flag in "$@"; do
  case $flag in
    --saveEngine=*) engine=${flag#*=} ;;
    --exportLayerInfo=*) layers=${flag#*=} ;;
  esac
done
missing() { echo "[W] [TRT] Missing scale and zero-point for tensor $1, expect fall back to non-int8 implementation for any layer consuming or producing given tensor"; }
case ${MODE:-} in
  calibrates) echo "[I] [TRT] Starting Calibration." ;;
  elsewhere) missing "encoder/other_out"; missing "encoder/Conv_ou" ;;
  missing) missing "encoder/other_out"; missing "encoder/Conv_out" ;;
  unreadable) echo "[W] [TRT] Missing scale, oh dear" ;;
  fails) echo half >"$engine"; echo "[E] Error[10]: no implementation obeys the precision"; exit 1 ;;
  empty) : >"$engine"; echo '{}' >"$layers"; exit 0 ;;
  nothing) exit 0 ;;
  nolayers) echo engine >"$engine"; exit 0 ;;
  killed) echo half >"$engine"; kill -TERM $PPID; exit 0 ;;
esac
echo engine >"$engine"
echo '{"Layers": []}' >"$layers"
"""


@pytest.fixture
def kit(tmp_path):
    """A kit of two engines in tmp_path/kit, and a fake trtexec."""
    onnx = tmp_path / "m.onnx"
    onnx.write_bytes(b"onnx")
    encoder = EngineKit(
        "encoder", onnx, onnx, ("encoder/Conv",), ("encoder/Clip",), ("encoder/norm/std",), ("encoder/Erf",), {"x": Range(-1, 2.54), "encoder/Conv_out": Range(0, 6)}
    )
    head = EngineKit("head", onnx, onnx)
    out = tmp_path / "kit"
    out.mkdir()
    tensorrt.compile(Kit((encoder, head), TARGET, tmp_path), out)
    trtexec = tmp_path / "bin" / "trtexec"
    trtexec.parent.mkdir()
    trtexec.write_text(FAKE)
    trtexec.chmod(0o755)
    (tmp_path / "calls").mkdir()
    return out


def build(kit: Path, mode: str = "", *arguments: str, **env: str) -> subprocess.CompletedProcess:
    root = kit.parent
    environment = {"PATH": f"{root / 'bin'}:{os.environ['PATH']}", "MODE": mode, "CALLS": str(root / "calls"), **env}
    return subprocess.run(["sh", "kit/build.sh", *arguments], cwd=root, env=environment, capture_output=True, text=True, timeout=30)


def left(kit: Path) -> set[str]:
    return {str(p.relative_to(kit.parent / "result")) for p in (kit.parent / "result").rglob("*") if p.is_file()}


def test_a_clean_build_leaves_engines_layers_and_logs(kit):
    done = build(kit)
    assert done.returncode == 0, done.stderr
    assert left(kit) == {f"{engine}/{file}" for engine in ("encoder", "head") for file in ("model.engine", "layers.json", "build.log")}


def test_trtexec_gets_exactly_the_flags_of_build_json(kit):
    build(kit)
    calls = [path.read_text().splitlines() for path in sorted((kit.parent / "calls").iterdir())]
    engines = json.loads((kit / "build.json").read_text())["engines"]
    for call, name in zip(calls, ("encoder", "head"), strict=True):
        assert call[: len(engines[name]["flags"])] == engines[name]["flags"]
    assert calls[0][:-2] == [
        "--onnx=engines/encoder/model.onnx",
        "--fp16",
        "--int8",
        "--calib=engines/encoder/calibration.cache",
        "--precisionConstraints=obey",
        "--layerPrecisions=encoder/Erf:fp16,encoder/norm/std:fp32,encoder/Conv:int8,encoder/Clip:int8",
        "--memPoolSize=workspace:2048",
        "--profilingVerbosity=detailed",
        "--buildOnly",
    ]
    assert [flag.split("=")[0] for flag in calls[0][-2:]] == ["--saveEngine", "--exportLayerInfo"]
    assert not any("int8" in flag or "calib" in flag for flag in calls[1])


def test_the_kit_holds_scales_by_max_abs_over_127(kit):
    version, scales = cache.read_cache((kit / "engines/encoder/calibration.cache").read_text())
    assert version == "8502"
    assert scales == {"x": pytest.approx(0.02), "encoder/Conv_out": pytest.approx(6 / 127)}
    assert json.loads((kit / "engines/encoder/precisions.json").read_text()) == {
        "encoder/Erf": "fp16", "encoder/norm/std": "fp32", "encoder/Conv": "int8", "encoder/Clip": "int8"}  # fmt: skip


@pytest.mark.parametrize(
    "mode, code, message",
    [
        ("calibrates", 4, "calibrated by itself"),
        ("missing", 4, "no scale for encoder/Conv_out"),
        ("unreadable", 4, "cannot read which tensor"),
        ("fails", 4, "trtexec failed"),
        ("empty", 4, "wrote no engine"),
        ("nothing", 4, "wrote no engine"),
        ("nolayers", 4, "wrote no layer information"),
    ],
)
def test_a_build_that_went_wrong_leaves_no_engine(kit, mode, code, message):
    done = build(kit, mode)
    assert done.returncode == code and message in done.stderr
    assert left(kit) == {"encoder/build.log"}


def test_a_missing_scale_of_a_float_layer_is_no_failure(kit):
    assert build(kit, "elsewhere").returncode == 0


def test_a_killed_build_leaves_no_half_engine(kit):
    assert build(kit, "killed").returncode in (130, -15)
    assert left(kit) <= {"encoder/build.log"}


def test_a_failed_rebuild_does_not_leave_the_engine_of_before(kit):
    assert build(kit).returncode == 0
    assert build(kit, "missing").returncode == 4
    assert "encoder/model.engine" not in left(kit)


@pytest.mark.parametrize("name", ["model.onnx", "calibration.cache", "int8_tensors.txt"])
def test_a_missing_or_changed_file_stops_the_build_before_trtexec_runs(kit, name):
    path = kit / "engines/encoder" / name
    original = path.read_bytes()
    path.write_bytes(original + b"x")
    changed = build(kit)
    assert changed.returncode == 6 and f"engines/encoder/{name} has changed" in changed.stderr
    path.unlink()
    missing = build(kit)
    assert missing.returncode == 6 and f"engines/encoder/{name} is missing" in missing.stderr
    assert not list((kit.parent / "calls").iterdir())


def test_another_version_of_tensorrt_is_refused(kit):
    done = build(kit, VERSION="8601")
    assert done.returncode == 5 and "is of TensorRT 8601, expected 8502" in done.stderr


def test_a_missing_trtexec_is_named(kit):
    done = build(kit, TRTEXEC="/nowhere/trtexec")
    assert done.returncode == 5 and "/nowhere/trtexec is not a program" in done.stderr
    (kit.parent / "bin/trtexec").unlink()
    if shutil.which("trtexec") is None and not Path("/usr/src/tensorrt/bin/trtexec").exists():
        done = build(kit)
        assert done.returncode == 5 and "trtexec is missing" in done.stderr


def test_results_go_where_they_are_asked_to_go(kit):
    target = kit.parent / "with space"
    assert build(kit, "", str(target)).returncode == 0
    assert (target / "encoder/model.engine").is_file()
    assert build(kit, "", "a", "b").returncode == 2


def test_the_script_is_posix_sh_and_carries_no_path_of_this_machine(kit):
    text = (kit / "build.sh").read_text()
    assert subprocess.run(["sh", "-n", kit / "build.sh"], check=False).returncode == 0
    assert str(kit.parent) not in text and not re.search(r"\[\[|\blocal\b|<<<|\$'", text)
    assert os.access(kit / "build.sh", os.X_OK)


def test_names_that_a_command_line_cannot_carry_are_refused(kit, tmp_path):
    onnx = tmp_path / "m.onnx"
    for engine in (EngineKit("e", onnx, onnx, ("a,b",)), EngineKit("e; rm -rf x", onnx, onnx)):
        with pytest.raises(EdgekitError, match="cannot stand"):
            tensorrt.compile(Kit((engine,), TARGET, tmp_path), tmp_path / "other")


def test_only_8_5_on_the_device_is_served():
    assert tensorrt.problems(TARGET) == []
    assert tensorrt.problems({**TARGET, "runtime": {"name": "TensorRT", "version": "10.3"}, "build_on": "host"}) == [
        "TensorRT 10.3: only the 8.5 build kit exists",
        "build_on: host: the 8.5 kit is built on the device",
    ]

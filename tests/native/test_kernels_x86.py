"""The x86 rows of kernels: every one equals the scalar row, bit for bit in int8; and the probes that their speed is measured against."""

from __future__ import annotations

import fcntl
import json
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import NATIVE

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="needs an x86-64 CPU")
ROWS = ("avx2_f32", "avx2_i8", "avx2_vnni_i8", "avx512_f32", "avx512_bf16", "avx512_i8")
EXACT = ("avx2_i8", "avx2_vnni_i8", "avx512_i8")


def run(*command: object) -> subprocess.CompletedProcess:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=500)


@pytest.fixture(scope="module")
def programs(native_build) -> Path:
    """test_rows and test_row_extremes, with the flags that ship."""
    with (native_build / ".lock").open("w") as lock:  # two test runs may want them at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        built = run("cmake", "--build", native_build, "-j", 2, "--target", "test_rows", "test_row_extremes")
    assert built.returncode == 0, built.stdout[-4000:] + built.stderr[-4000:]
    return native_build / "tests"


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_row_equals_the_scalar_row(programs, row, seed):
    """DCCRN's shapes at full and half width, and random ones around vector widths; `test_rows` holds the tolerances and why."""
    if f"{row} runs" not in run(programs / "test_rows", "--list").stdout:
        pytest.skip(f"this CPU lacks the instructions of {row}")
    done = run(programs / "test_rows", "--rounds", 40, "--seed", seed, row)
    assert done.returncode == 0, done.stdout[-3000:]
    compared, failed, off, int8 = map(int, re.match(rf"{row}: (\d+) numbers compared, (\d+) failed, (\d+) of (\d+) int8", done.stdout).groups())
    assert compared > 500_000 and failed == 0
    if row in EXACT:
        assert int8 > 100_000 and off <= 1e-4 * int8  # cells compute exp differently; convolutions are held to 0 inside


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_largest_sums_saturated_gates_and_nan(programs, isa):
    done = run(programs / "test_row_extremes", isa)
    if done.returncode == 2:
        pytest.skip(f"this CPU lacks {isa}")
    assert done.returncode == 0 and f"{isa} as avx" in done.stdout, done.stdout


def test_a_wrong_correction_of_int8_sums_is_seen(tmp_path):
    """The comparison has teeth: one unit less in what sums start at, and it fails."""
    compiler = shutil.which("g++")
    if compiler is None or "avx512_vnni" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("needs g++ and a CPU with AVX-512 VNNI")
    source = (NATIVE / "cpu" / "vnni.h").read_text()
    assert source.count("return -128 * sum;") == 1
    (tmp_path / "vnni.h").write_text(source.replace("return -128 * sum;", "return -127 * sum;"))
    wrong = tmp_path / "wrong.cpp"  # finds the vnni.h beside it first
    wrong.write_text((NATIVE / "cpu" / "avx512_i8.cpp").read_text())
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma"]
    built = run(compiler, *flags, "-I", NATIVE / "cpu", "-c", wrong, "-o", tmp_path / "wrong.o")
    assert built.returncode == 0, built.stderr
    stubs = tmp_path / "stubs.cpp"
    names = ["avx2_f32", "avx2_i8", "avx2_vnni_i8", "avx512_f32", "avx512_bf16"]
    rows = "\n".join(f'extern const Row {name} = {{"{name}", EK_F32}};' for name in names)
    stubs.write_text(f'#include "core/kernels.h"\nnamespace ek {{\n{rows}\n}}\n')
    built = run(compiler, "-std=c++17", "-O1", "-ffp-contract=off", "-I", NATIVE, stubs, NATIVE / "cpu" / "scalar_ref.cpp",
                NATIVE / "tests" / "rows.cpp", tmp_path / "wrong.o", "-o", tmp_path / "rows")  # fmt: skip
    assert built.returncode == 0, built.stderr
    done = run(tmp_path / "rows", "--rounds", 1, "avx512_i8")
    assert done.returncode == 1 and "FAIL avx512_i8" in done.stdout


def test_the_roofline_is_json_with_figures_in_a_believable_order(tmp_path):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    bench = NATIVE / "bench"
    built = run(compiler, "-std=c++17", "-O2", bench / "roofline_main.cpp", bench / "roofline.cpp", "-pthread", "-o", tmp_path / "roofline")
    assert built.returncode == 0, built.stderr
    done = run(tmp_path / "roofline", 1)
    assert done.returncode == 0, done.stderr
    one = json.loads(done.stdout)["1"]
    assert one["f32_avx2"]["median"] > 1e9 or "fma" not in Path("/proc/cpuinfo").read_text()
    if one["i8_avx512"]["median"] > 0:
        assert one["i8_avx512"]["max"] > 2 * one["f32_avx512"]["max"]  # four times, but this machine may be shared
    rates = [entry["max"] for entry in one["read"]]
    assert [entry["bytes"] for entry in one["read"]] == sorted(entry["bytes"] for entry in one["read"])
    assert rates[0] > rates[-1] > 0  # the first cache is faster than memory

"""The Arm rows, cross-compiled and run by qemu-aarch64: against the scalar rows, between guard pages, at their extremes, and in the whole engine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgekit import native_format

sys.path.insert(0, str(Path(__file__).parent))
from conftest import NATIVE, build
from reference_engine import quantized, random_model

COMPILER, EMULATOR, SYSROOT = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"
ROWS = ("neon_f32", "neon_i8", "neon_dotprod_i8")
PROGRAMS = ("test_rows", "test_row_extremes")
# Seen: 123 dB and 127 dB, that is float32 noise of the STFT. Where a libm is another, an activation of int8 may round to its neighbour.
SNR_F32_DB, SNR_INT8_DB = 110.0, 40.0


@pytest.fixture(scope="module")
def arm() -> Path:
    """native/build/aarch64, with the flags that ship."""
    for tool in (COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    folder = build("aarch64")
    done = subprocess.run(["cmake", "--build", folder, "-j", "2", "--target", *PROGRAMS], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return folder


def run(cpu: str, program: Path, *words: object, expect: int = 0) -> str:
    command = [EMULATOR, "-L", SYSROOT, "-cpu", cpu, program, *words]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=900)
    assert done.returncode == expect, (done.returncode, done.stdout[-3000:] + done.stderr[-1000:])
    return done.stdout


@pytest.mark.parametrize(("cpu", "rows"), [("max", ROWS), ("cortex-a53", ROWS[:2]), ("cortex-a72", ROWS[:2])])
def test_every_row_equals_the_scalar_row(arm, cpu, rows):
    """DCCRN's shapes at full and half width, and random ones around vector widths; `test_rows` holds the tolerances and why."""
    out = run(cpu, arm / "tests/test_rows", "--rounds", 40 if cpu == "max" else 8, *rows)
    assert re.findall(r"^(\w+): (?:[1-9]\d+) numbers compared, 0 failed", out, re.M) == list(rows)


def test_a_core_without_the_dot_product_is_not_offered_it(arm):
    assert "neon_dotprod_i8 lacking" in run("cortex-a72", arm / "tests/test_rows", "--list")
    assert "neon_dotprod_i8 runs" in run("max", arm / "tests/test_rows", "--list")
    run("cortex-a72", arm / "tests/test_row_extremes", "neon_dotprod", expect=2)


@pytest.mark.parametrize("isa", ["neon", "neon_dotprod"])
def test_largest_sums_saturated_gates_and_nan(arm, isa):
    assert f"{isa} as neon" in run("max", arm / "tests/test_row_extremes", isa)


@pytest.fixture(scope="module")
def guarded(arm, tmp_path_factory):
    """Links objects that are built already with an allocator that puts every piece between forbidden pages."""
    folder = tmp_path_factory.mktemp("guarded")

    def link(name: str, *more: object) -> Path:
        objects = [path for path in (arm / "CMakeFiles/edgekit_objects.dir").rglob("*.o")]
        objects += [*(arm / f"tests/CMakeFiles/{name}.dir").rglob("*.o")] if not more else []
        command = [COMPILER, "-std=c++17", "-O1", "-static", *objects, *more, NATIVE / "tests/guard/guard_pages.cpp"]
        command += ["-Wl,--wrap=posix_memalign,--wrap=free", "-o", folder / name]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return folder / name

    return link


def test_nothing_is_read_or_written_outside_of_buffers(guarded):
    out = run("max", guarded("test_rows"), "--rounds", 4, *ROWS)
    assert out.count(" 0 failed") == len(ROWS)
    run("max", guarded("test_row_extremes"), "neon", "neon_dotprod")


def test_guard_pages_catch_one_byte_too_far_and_one_too_early(guarded, tmp_path):
    """What the test above rests on."""
    source = tmp_path / "too_far.cpp"
    source.write_text(
        "#include <cstdlib>\n#include <vector>\n"
        "int main(int argc, char** argv) {\n"
        "  const int at = std::atoi(argv[argc - 1]), n = 100;\n"
        "  int sum = 0;\n"
        "  for (int i = 0; i < 2; i++) { volatile char* x = new char[n]; sum += x[at]; }\n"
        "  return sum == 0;\n}\n"
    )
    program = guarded("too_far", source)
    for at in (0, 99):
        run("max", program, at)
    for at in (-1, 100):
        done = subprocess.run([EMULATOR, "-L", SYSROOT, program, str(at)], capture_output=True, timeout=60)
        assert done.returncode not in (0, 1), at


@pytest.mark.parametrize(
    ("file", "function", "loops", "multiplications", "instructions"),
    [
        ("neon_f32", "four_mult<4>", 1, 128, 150),
        ("neon_f32", "gauss_pass<8>", 1, 64, 82),
        # Plain; the weights of both frames and then those of older ones; the newer ones.
        *(("neon_dotprod_i8", f"conv_block<ek::(anonymous namespace)::DotMac, 4, (ek::Turn){turn}>", loops, 128, 156) for turn, loops in enumerate((1, 2, 1))),
        *(("neon_i8", f"conv_block<ek::(anonymous namespace)::WideningMac, 2, (ek::Turn){turn}>", loops, 96, 112) for turn, loops in enumerate((1, 2, 1))),
    ],
)
def test_inner_loops_keep_their_sums_in_registers(arm, file, function, loops, multiplications, instructions):
    """No spill, no broadcast, next to no move: the only figure of speed that an emulator cannot blur. As GCC 12 compiles it, with a little room."""
    objdump = shutil.which("aarch64-linux-gnu-objdump")
    if objdump is None:
        pytest.skip("needs aarch64-linux-gnu-objdump")
    objects = list((arm / "CMakeFiles/edgekit_objects.dir/cpu").glob(f"{file}.cpp.*"))
    text = subprocess.run([objdump, "-dC", "--no-show-raw-insn", *objects], capture_output=True, text=True, check=True, timeout=300).stdout
    bodies = [body for body in innermost_loops(text, function) if sum(is_multiplication(op) for op, _ in body) >= multiplications]
    assert len(bodies) == loops
    for body in bodies:
        assert sum(is_multiplication(op) for op, _ in body) == multiplications
        assert len(body) <= instructions
        assert not [words for op, words in body if "sp" in re.split(r"\W+", words)]
        assert not [op for op, _ in body if op == "dup"]


def is_multiplication(op: str) -> bool:
    """Pairwise additions into 32 bits count, being a third of the plain int8 row's work."""
    return op in {"fmla", "fmls", "sdot", "sadalp"} or re.fullmatch(r"sml[as]l2?|smull2?", op) is not None


def innermost_loops(disassembly: str, function: str):
    """Straight-line bodies that end in a jump to their own begin, as lists of (mnemonic, operands)."""
    for block in re.split(r"\n(?=[0-9a-f]+ <)", disassembly):
        if function not in block.split("\n", 1)[0]:
            continue
        lines = [(int(a, 16), op, words) for a, op, words in re.findall(r"^\s+([0-9a-f]+):\s+(\S+)[ \t]*(.*)$", block, re.M)]
        index = {address: i for i, (address, _, _) in enumerate(lines)}
        for i, (_, op, words) in enumerate(lines):
            target = re.search(r"\b([0-9a-f]+) <", words)
            begin = index.get(int(target[1], 16)) if op.startswith("b.") and target else None
            if begin is None or begin > i:
                continue
            body = [(o, w) for _, o, w in lines[begin : i + 1]]
            if not any(o.startswith(("b", "cb", "tb", "ret")) for o, _ in body[:-1]):
                yield body


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A third of a second of noise in a file, and models of both formats whose widths fill vectors and do not."""
    folder = tmp_path_factory.mktemp("sound")
    wave = (0.2 * np.random.default_rng(0).standard_normal(5000)).astype(np.float32)
    soundfile.write(folder / "noisy.wav", wave, 16000, subtype="FLOAT")
    model = random_model(3, encoder=(16, 20, 33), hidden=(24, 17))
    spectrum = np.random.default_rng(1).standard_normal((2, model.n_fft // 2, 20)).astype(np.float32)
    native_format.write(model, folder / "fp32.ekd")
    native_format.write(quantized(model, spectrum), folder / "int8.ekd")
    return folder


def snr_db(want: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10(np.square(want).sum() / max(np.square(want - got).sum(), 1e-30)))


@pytest.mark.parametrize(
    ("precision", "isa", "cpu", "options"),
    [
        ("fp32", "neon", "cortex-a53", ()),
        ("fp32", "neon", "cortex-a72", ("--algorithm", "gauss", "--threads", "2")),
        ("int8", "neon", "cortex-a72", ()),
        ("int8", "neon_dotprod", "max", ()),
    ],
)
def test_the_engine_gives_what_it_gives_on_this_machine(arm, native, sound, tmp_path, precision, isa, cpu, options):
    """Sums in another order, another exp and sines of another libm: int8 rounds a few activations to their neighbour, nothing more."""
    model = sound / f"{precision}.ekd"
    out = run(cpu, arm / "ek_dccrn", "--isa", isa, *options, model, sound / "noisy.wav", tmp_path / "clean.wav")
    assert f"neon_{'f32' if precision == 'fp32' else 'i8' if isa == 'neon' else 'dotprod_i8'}" in out
    got = soundfile.read(tmp_path / "clean.wav", dtype="float32")[0]
    want = native.Denoiser(model, isa="scalar").denoise(soundfile.read(sound / "noisy.wav", dtype="float32")[0])
    assert snr_db(want, got) >= (SNR_F32_DB if precision == "fp32" else SNR_INT8_DB)


def test_both_int8_rows_give_the_same_samples(arm, sound, tmp_path):
    """Integer sums are exact, and everything else is the same code."""
    for isa in ("neon", "neon_dotprod"):
        run("max", arm / "ek_dccrn", "--isa", isa, sound / "int8.ekd", sound / "noisy.wav", tmp_path / f"{isa}.wav")
    assert (tmp_path / "neon.wav").read_bytes() == (tmp_path / "neon_dotprod.wav").read_bytes()

"""Programs without Python: ek_dccrn, the C example, and the engine's own tests, plain and under sanitizers."""

from __future__ import annotations

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
from reference_engine import random_model


@pytest.fixture
def model(tmp_path) -> Path:
    return native_format.write(random_model(), tmp_path / "model.ekd")


def run(*command: object, **options) -> subprocess.CompletedProcess:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=1000, **options)


def noisy(path: Path, n: int = 4000, rate: int = 16000, subtype: str = "PCM_16", channels: int = 1) -> np.ndarray:
    wave = 0.2 * np.random.default_rng(0).standard_normal((n, channels) if channels > 1 else n)
    soundfile.write(path, wave, rate, subtype=subtype)
    return soundfile.read(path, dtype="float32")[0]


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
@pytest.mark.parametrize("options", [(), ("--chunk", "7"), ("--threads", "2", "--algorithm", "gauss"), ("--isa", "scalar")])
def test_ek_dccrn_gives_what_the_library_gives(native, native_build, model, tmp_path, subtype, options):
    wave = noisy(tmp_path / "noisy.wav", subtype=subtype)
    done = run(native_build / "ek_dccrn", *options, model, tmp_path / "noisy.wav", tmp_path / "clean.wav")
    assert done.returncode == 0, done.stderr
    assert "RTF" in done.stdout and "latency" in done.stdout and "_f32" in done.stdout
    clean, rate = soundfile.read(tmp_path / "clean.wav", dtype="float32")
    assert rate == 16000
    assert soundfile.info(tmp_path / "clean.wav").subtype == subtype
    step = 1 / 32768 if subtype == "PCM_16" else 1e-6
    assert np.abs(clean - native.Denoiser(model).denoise(wave)).max() <= step


def test_ek_dccrn_ends_with_a_sentence_and_a_code(native_build, model, tmp_path):
    tool, wav, out = native_build / "ek_dccrn", tmp_path / "noisy.wav", tmp_path / "clean.wav"
    noisy(wav)
    stereo, slow, wide = tmp_path / "stereo.wav", tmp_path / "slow.wav", tmp_path / "wide.wav"
    noisy(stereo, channels=2)
    noisy(slow, rate=8000)
    noisy(wide, subtype="PCM_24")
    damaged, cut = tmp_path / "damaged.ekd", tmp_path / "cut.wav"
    data = bytearray(model.read_bytes())
    data[3000] ^= 1
    damaged.write_bytes(data)
    cut.write_bytes(wav.read_bytes()[:200])
    for command, code, sentence in (
        ((model, stereo, out), 2, "2 channels"),
        ((model, slow, out), 2, "8000 Hz, the model needs 16000"),
        ((model, wide, out), 2, "24 bits"),
        ((model, cut, out), 2, "truncated"),
        ((model, model, out), 2, "not a RIFF WAVE file"),
        ((model, tmp_path / "none.wav", out), 2, "cannot be read"),
        ((tmp_path / "none.ekd", wav, out), 2, "No such file"),
        ((damaged, wav, out), 6, "checksum"),
        ((wav, wav, out), 6, "not a weight file"),
        (("--isa", "sse9", model, wav, out), 2, "unknown instruction set"),
        (("--threads", "x", model, wav, out), 2, "from 1 to 64"),
        (("--precision", "int8", model, wav, out), 2, "quantized"),
        (("--speed", "9", model, wav, out), 2, "unknown option --speed"),
        ((model, wav), 2, "needs a model"),
    ):
        done = run(tool, *command)
        assert (done.returncode, sentence in done.stderr) == (code, True), (command, done.returncode, done.stderr)
        assert not out.exists()
    done = run(tool, "--info", model)
    assert done.returncode == 0
    assert "encoder 3 5 17 | lstm 5 7 | decoder 17 5 3 1" in done.stdout


def test_the_c_example_compiles_as_c99_and_denoises(native, native_build, model, tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    flags = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE / 'include'}", f"-L{native_build}", f"-Wl,-rpath,{native_build}")
    done = run(compiler, *flags, NATIVE / "examples" / "denoise.c", "-o", tmp_path / "denoise", "-ledgekit")
    assert done.returncode == 0, done.stderr
    wave = (0.2 * np.random.default_rng(0).standard_normal(3000)).astype(np.float32)
    done = subprocess.run([tmp_path / "denoise", model], input=wave.tobytes(), capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    denoiser = native.Denoiser(model)
    assert (np.frombuffer(done.stdout, np.float32)[denoiser.latency_samples :] == denoiser.denoise(wave)).all()
    assert len((NATIVE / "examples" / "denoise.c").read_text().splitlines()) <= 60


def test_the_header_is_c99(tmp_path):
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    done = run(compiler, "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-xc", NATIVE / "include" / "edgekit" / "edgekit.h")
    assert done.returncode == 0, done.stderr


def test_the_engines_own_program_passes_and_no_frame_allocates(native_build):
    done = run(native_build / "tests" / "test_engine")
    assert done.returncode == 0, done.stderr
    assert "all is well" in done.stdout and "not counted" not in done.stdout


def test_a_full_width_int8_stream_stays_within_10_mb(native_build):
    done = run(native_build / "tests" / "test_memory")
    assert done.returncode == 0, done.stdout + done.stderr


def test_damaged_files_states_and_wavs_do_not_crash(native_build):
    done = run(native_build / "tests" / "test_fuzz", "all", 20000)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("no crash") == 3


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["asan", "tsan"])
def test_the_engine_is_clean_under_sanitizers(preset):
    folder = build(preset)
    for command in (("test_engine",), ("test_fuzz", "all", 3000) if preset == "asan" else ("test_engine", "--quick")):
        done = run(folder / "tests" / command[0], *command[1:])
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]

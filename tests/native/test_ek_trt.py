"""ek_trt without TensorRT: compare, the files it reads and writes, flows on engines that compute on the CPU. test_ek_trt_standin.py has the rest."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgekit.compare import difference
from edgekit.flow import run_flow

sys.path.insert(0, str(Path(__file__).parent))
from trt_toy import MHLT, MHLT_ENGINES, TOOL, ToyEngine, denoiser, flow_text, load_clip, random_inputs, run, save_clip, toys, write_engines


@pytest.fixture(scope="module")
def programs() -> Path:
    return toys()


@pytest.fixture(scope="module")
def tool(programs) -> Path:
    return programs / "ek_trt"


def strict(text: str) -> object:
    """JSON as the standard has it: no NaN."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


# --------------------------------------------------------------------------- the program by itself


def test_make_without_tensorrt_gives_compare_only_and_says_so(tmp_path):
    for program in ("make", "g++"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    before = sorted(TOOL.iterdir())
    done = run("make", "-s", "-C", TOOL, f"BUILD={tmp_path}", "EK_TRT_WITHOUT_TENSORRT=1", "CXXFLAGS=-O0 -Werror")
    assert done.returncode == 0, done.stderr
    assert sorted(TOOL.iterdir()) == before, "the sources' folder stays as it is"
    for command in ("build", "run", "version"):
        refused = run(tmp_path / "ek_trt", command)
        assert refused.returncode == 5 and "compare" in refused.stderr and refused.stdout == ""
    save_clip(tmp_path / "want" / "c", {"o": np.zeros(2, np.float32)})
    (tmp_path / "limits").write_text("o\t0\t-\n")
    done = run(tmp_path / "ek_trt", "compare", "--reference", tmp_path / "want", "--outputs", tmp_path / "want", "--tolerance", tmp_path / "limits", "--report", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "word"),
    [
        ([], "command"),
        (["dance"], "dance"),
        (["compare"], "--reference"),
        (["compare", "--reference"], "needs a value"),
        (["compare", "--reference", "a", "--reference", "b"], "twice"),
        (["compare", "--colour", "red"], "--colour"),
        (["run", "--engine", "e", "--flow", "f"], "--engine"),
        (["run", "--flow", "f", "--inputs", "i"], "--engines"),
        (["run", "--engine", "e", "--inputs", "i", "--outputs", "o", "--report", "r", "--repeat", "0"], "--repeat"),
        (["run", "--engine", "e", "--inputs", "i", "--outputs", "o", "--report", "r", "--warm-up", "1x"], "--warm-up"),
        (["build", "--onnx", "m"], "--engine"),
    ],
)
def test_a_command_that_cannot_be_is_exit_2_and_names_the_word(tool, words, word):
    done = run(tool, *words)
    assert done.returncode == 2 and word in done.stderr and done.stdout == ""


# --------------------------------------------------------------------------- compare


def compare(tool: Path, folder: Path, limits: str) -> subprocess.CompletedProcess:
    (folder / "limits.txt").write_text(limits)
    return run(tool, "compare", "--reference", folder / "want", "--outputs", folder / "got", "--tolerance", folder / "limits.txt", "--report", folder / "report.json")


def test_compare_measures_what_edgekit_compare_measures(tool, tmp_path):
    rng = np.random.default_rng(0)
    want = {f"c{i}": {"o": rng.standard_normal((2, 3)).astype(np.float32), "v": np.float32(i)} for i in range(3)}
    got = {c: {n: (v + 0.01 * rng.standard_normal(np.shape(v))).astype(np.float32) for n, v in t.items()} for c, t in want.items()}
    for clip in want:
        save_clip(tmp_path / "want" / clip, want[clip])
        save_clip(tmp_path / "got" / clip, got[clip])
    assert compare(tool, tmp_path, "o\t1\t20\nv\t1\t-\n").returncode == 0
    report = strict((tmp_path / "report.json").read_text())
    assert report["passed"] is True and report["clips"] == 3 and report["failed"] == []
    for name in ("o", "v"):
        together = difference(name, np.stack([want[c][name] for c in want]), np.stack([got[c][name] for c in want]))
        row = report["outputs"][name]
        assert row["max_abs"] == pytest.approx(together.max_abs, rel=1e-6)
        assert row["sqnr_db"] == pytest.approx(together.sqnr_db, rel=1e-6)
        assert row["worst_clip"] == f"c{together.worst[0]}" and row["worst_index"] == list(together.worst[1:])
        assert row["n"] == np.size(want["c0"][name]) * 3


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("want", "got", "limits", "code", "word"),
    [
        ([1, 2], [1, 2], "o\t0\t999\n", 0, ""),
        ([1, 2], [1, 2.5], "o\t0.5\t-\n", 0, ""),
        ([1, 2], [1, 2.5], "o\t0.4\t-\n", 3, "clip `c`, index [1]: 2.5, expected 2"),
        ([1, 2], [1, 2.5], "o\t-\t13\n", 0, ""),  # 10 log10(5 / 0.25) = 13.01
        ([1, 2], [1, 2.5], "o\t-\t13.1\n", 3, "SQNR"),
        ([0, 0], [0, 1e-6], "o\t-\t-100\n", 3, "-inf dB"),
        ([1, NAN], [1, NAN], "o\t9\t-\n", 3, "index [1]: nan"),
        ([1, 2], [NAN, 99], "o\t9\t-\n", 3, "index [0]: nan"),
        ([1, 2], [99, NAN], "o\t999\t-\n", 3, "index [1]: nan"),
        ([1, INF], [1, INF], "o\t0\t-\n", 0, ""),
        ([1, INF], [1, 2], "o\t9\t-\n", 3, "off by inf"),
        ([1, 2], [[1, 2]], "o\t9\t-\n", 3, "shape [1, 2], expected [2]"),
        ([1, 2], [1, 2, 3], "o\t9\t-\n", 3, "shape [3]"),
    ],
)
def test_nan_infinities_and_shapes(tool, tmp_path, want, got, limits, code, word):
    save_clip(tmp_path / "want" / "c", {"o": np.array(want, np.float32)})
    save_clip(tmp_path / "got" / "c", {"o": np.array(got, np.float32)})
    done = compare(tool, tmp_path, limits)
    assert done.returncode == code, done.stderr
    assert word in done.stderr
    report = strict((tmp_path / "report.json").read_text())
    assert report["passed"] is (code == 0) and bool(report["failed"]) is (code == 3)


def _link(path: Path, to: Path) -> None:
    path.unlink()
    path.symlink_to(to)


@pytest.mark.parametrize(
    ("change", "code", "word"),
    [
        (lambda f: shutil.rmtree(f / "got" / "b"), 3, "clip `b` is missing"),
        (lambda f: shutil.copytree(f / "got" / "b", f / "got" / "extra"), 3, "clip `extra`"),
        (lambda f: (f / "got" / "b" / "v.npy").unlink(), 3, "b/v.npy is missing"),
        (lambda f: shutil.copy(f / "got" / "b" / "v.npy", f / "got" / "b" / "w.npy"), 3, "b/w.npy"),
        (lambda f: (f / "want" / "b" / "v.npy").unlink(), 6, "missing in the reference"),
        (lambda f: shutil.copy(f / "want" / "b" / "v.npy", f / "want" / "b" / "w.npy"), 6, "without a tolerance"),
        (lambda f: (shutil.rmtree(f / "want"), (f / "want").mkdir()), 6, "no clip"),
        (lambda f: shutil.rmtree(f / "got"), 6, "cannot be read"),
        (lambda f: (f / "got" / "b" / "v.npy").write_bytes(b"junk"), 6, "no .npy file"),
        (lambda f: np.save(f / "got" / "b" / "v.npy", np.zeros(2)), 6, "<f8"),
        (lambda f: _link(f / "got" / "b" / "v.npy", f / "got" / "a" / "v.npy"), 6, "neither a file nor a folder"),
        (lambda f: (f / "got" / "readme").write_text("x"), 6, "folders of clips only"),
    ],
)
def test_missing_and_foreign_files_fail(tool, tmp_path, change, code, word):
    for side in ("want", "got"):
        for clip in ("a", "b"):
            save_clip(tmp_path / side / clip, {"o": np.ones(2, np.float32), "v": np.ones(2, np.float32)})
    change(tmp_path)
    done = compare(tool, tmp_path, "o\t0\t-\nv\t0\t-\n")
    assert done.returncode == code and word in done.stderr, done.stderr
    assert (tmp_path / "report.json").exists() is (code == 3)


@pytest.mark.parametrize(
    "limits", ["", "o\t1\n", "o\t1\t2\t3\n", "o\t-1\t-\n", "o\tnan\t-\n", "o\tinf\t-\n", "o\t1\t-", "o\t1\t-\no\t1\t-\n", "../o\t1\t-\n", "o\t \t-\n", "\n", "o\t1e999\t-\n", "o\x00\t1\t-\n"]
)
def test_a_tolerance_that_would_let_anything_pass_is_refused(tool, tmp_path, limits):
    save_clip(tmp_path / "want" / "c", {"o": np.ones(2, np.float32)})
    shutil.copytree(tmp_path / "want", tmp_path / "got")
    (tmp_path / "report.json").write_text("old")
    done = compare(tool, tmp_path, limits)
    assert done.returncode == 6, done.stderr
    assert not (tmp_path / "report.json").exists(), "nothing old stands there for a new result"


# --------------------------------------------------------------------------- files that were not written by us


def npy(header: str, payload: bytes = b"\0" * 8, magic: bytes = b"\x93NUMPY\x01\x00", length: int | None = None) -> bytes:
    text = header.encode()
    return magic + (len(text) if length is None else length).to_bytes(2, "little") + text + payload


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        npy(GOOD)[:-1],
        npy(GOOD) + b"\0",
        npy(GOOD, magic=b"\x93NUMPY\x02\x00"),
        npy(GOOD, magic=b"\x93NUMPX\x01\x00"),
        npy(GOOD, length=65535),
        npy(GOOD, length=3),
        npy(GOOD[:-1]),
        npy(GOOD.replace("<f4", ">f4")),
        npy(GOOD.replace("<f4", "<f8")),
        npy(GOOD.replace("<f4", "|O")),
        npy(GOOD.replace("'<f4'", "[('a', '<f4')]")),
        npy(GOOD.replace("False", "True")),
        npy(GOOD.replace("(2,)", "(2)")),
        npy(GOOD.replace("(2,)", "(-2,)")),
        npy(GOOD.replace("(2,)", "(02,)")),
        npy(GOOD.replace("(2,)", "(2, )")),
        npy(GOOD.replace("(2,)", "(1, 2, )")),
        npy(GOOD.replace("(2,)", "(1, 2,)")),
        npy(GOOD.replace("(2,)", "(4294967296, 4294967296)")),
        npy(GOOD.replace("(2,)", "(2147483648, 2147483648, 4)")),
        npy(GOOD.replace("(2,)", "(99999999999999999999999,)")),
        npy(GOOD.replace("(2,)", "(1, 1, 1, 1, 1, 1, 1, 1, 2)")),
        npy(GOOD.replace("(2,)", "(2,")),
        npy(GOOD.replace("'shape'", "'shape': (2,), 'shape'")),
        npy(GOOD + "\n"),
        npy("__import__('os').system('true')\n"),
    ],
)
def test_a_hostile_npy_is_exit_6(programs, tmp_path, content):
    (tmp_path / "x.npy").write_bytes(content)
    done = run(programs / "probe", "npy", tmp_path / "x.npy")
    assert done.returncode == 6 and str(tmp_path / "x.npy") in done.stderr, done.stdout


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 1), (2, 3, 4), (1,) * 8])
@pytest.mark.parametrize("dtype", ["<f4", "|u1", "<i2"])
def test_what_numpy_writes_is_read(programs, tmp_path, shape, dtype):
    np.save(tmp_path / "x.npy", np.zeros(shape, dtype))
    done = run(programs / "probe", "npy", tmp_path / "x.npy")
    assert done.returncode == 0 and json.loads(done.stdout) == list(shape)


def mutations(seeds: list[bytes], count: int, seed: int) -> list[bytes]:
    """Seeds with bytes changed, cut out, doubled or cut off."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        data = bytearray(seeds[i % len(seeds)])
        for _ in range(int(rng.integers(1, 4))):
            at, kind = int(rng.integers(0, max(len(data), 1))), int(rng.integers(0, 5))
            if kind == 0 and data:
                data[at] = int(rng.integers(0, 256))
            elif kind == 1:
                data = data[:at]
            elif kind == 2:
                data = data[:at] + data[at : at + 8] + data[at:]
            elif kind == 3:
                del data[at : at + int(rng.integers(1, 9))]
            else:
                data[at:at] = rng.choice([b"\t", b"\n", b"-", b"9" * 12, b"\0", b"(", b"1e999", b"\\u", b"\xff"])
        made.append(bytes(data))
    return made


FUZZ = {
    "npy": [npy(GOOD), npy(GOOD.replace("(2,)", "(1, 2)"))],
    "json": [json.dumps(MHLT).encode(), b'[1, -2.5e3, "\\u00e9\\ud83d\\ude00\\n", {"a": null, "b": [true, false]}]'],
    "flow": [flow_text(MHLT).encode(), flow_text(denoiser(4)[0]).encode()],
    "cache": [b"TRT-8502-EntropyCalibration2\nx: 3c010204\n(Unnamed Layer* 1) [Shuffle]: 3f800000\n"],
    "tolerances": [b"o\t0.1\t30\nv\t-\t-\n"],
    "precisions": [b"conv\tint8\nsum\tfp32\nlong name with: colon\tfp16\n"],
}


@pytest.mark.parametrize("kind", FUZZ)
def test_a_damaged_file_is_refused_or_read_and_never_a_crash(programs, tmp_path, kind):
    """Under AddressSanitizer and UBSan, which would end the program."""
    for i, data in enumerate(mutations(FUZZ[kind], 400, seed=len(kind))):
        (tmp_path / f"{i:04}").write_bytes(data)
    done = run(programs / "probe", "many", kind, tmp_path, errors="replace")
    codes = [int(line.rsplit(" ", 1)[1]) for line in done.stdout.splitlines() if line[:4].isdigit() and line.count(" ") == 1 and line[4] == " "]
    assert done.returncode == 0 and len(codes) == 400, done.stderr[-2000:]
    assert set(codes) <= {0, 2, 5, 6} and codes.count(6) + codes.count(2) > 50
    for seed in FUZZ[kind]:
        (tmp_path / "whole").write_bytes(seed)
        assert run(programs / "probe", kind, tmp_path / "whole").returncode == 0


@pytest.mark.parametrize("text", ['{"a": 1', '{"a": 1, "a": 2}', "[1,]", "01", "+1", ".5", "1.", "NaN", "Infinity", "1e999", '"\t"', '"\\x"', '"\\ud800"', "nul", "[" * 99, "1 2", "", '{"a"}', "'a'"])
def test_what_is_no_json_is_refused(programs, tmp_path, text):
    (tmp_path / "x").write_text(text)
    assert run(programs / "probe", "json", tmp_path / "x").returncode == 6


def test_json_is_read_and_written_as_python_does(programs, tmp_path):
    value = {"a": [1, -2.5, 3e20, 0.125, True, None], "text": 'quote " back \\ line \n é 😀 /', "deep": {"": []}, "big": 64 << 30}
    (tmp_path / "x").write_text(json.dumps(value))
    assert json.loads(run(programs / "probe", "json", tmp_path / "x").stdout) == value


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("TRT-8502-EntropyCalibration2\nx: 3c010204\n", 0),
        ("TRT-8502-EntropyCalibration2\n", 0),
        ("TRT-8503-EntropyCalibration2\nx: 3c010204\n", 5),
        ("TRT-8502-MinMaxCalibration\nx: 3c010204\n", 5),
        ("x: 3c010204\n", 6),
        ("TRT-8502-EntropyCalibration2\nx: 3c010204", 6),
        ("TRT-8502-EntropyCalibration2\nx: 3c01020\n", 6),
        ("TRT-8502-EntropyCalibration2\nx: 3C010204\n", 6),
        ("TRT-8502-EntropyCalibration2\nx: 00000000\n", 6),
        ("TRT-8502-EntropyCalibration2\nx: 7f800000\n", 6),
        ("TRT-8502-EntropyCalibration2\nx: bc010204\n", 6),
        ("TRT-8502-EntropyCalibration2\nx: 3c010204\nx: 3c010204\n", 6),
        ("TRT-8502-EntropyCalibration2\r\nx: 3c010204\r\n", 5),
    ],
)
def test_a_cache_that_tensorrt_would_not_take_as_it_stands_is_refused(programs, tmp_path, text, code):
    (tmp_path / "x").write_bytes(text.encode())
    assert run(programs / "probe", "cache", tmp_path / "x").returncode == code


# --------------------------------------------------------------------------- run


def run_flow_tool(tool: Path, folder: Path, *more: object, **options) -> subprocess.CompletedProcess:
    return run(tool, "run", "--flow", folder / "flow.txt", "--engines", folder / "engines", "--inputs", folder / "in", "--outputs", folder / "out", "--report", folder / "run.json", *more, **options)


def prepare(folder: Path, flow: dict, engines: dict, clips: int = 2) -> dict[str, dict]:
    write_engines(folder / "engines", engines)
    (folder / "flow.txt").write_text(flow_text(flow))
    inputs = {f"clip-{i}": random_inputs(flow, i) for i in range(clips)}
    for name, tensors in inputs.items():
        save_clip(folder / "in" / name, tensors)
    return inputs


@pytest.mark.parametrize("case", ["mhlt", "frames", "chunks"])
def test_a_flow_gives_what_run_flow_gives(tool, tmp_path, case):
    flow, engines = {"mhlt": (MHLT, MHLT_ENGINES), "frames": denoiser(0, "E"), "chunks": denoiser(4, "C")}[case]
    inputs = prepare(tmp_path, flow, engines)
    done = run_flow_tool(tool, tmp_path, "--warm-up", 2, "--repeat", 3)
    assert done.returncode == 0, done.stderr
    for clip, tensors in inputs.items():
        want, got = run_flow(flow, engines, tensors), load_clip(tmp_path / "out" / clip)
        assert sorted(got) == sorted(want)
        for name in want:
            assert got[name].dtype == np.float32 and got[name].shape == want[name].shape
            np.testing.assert_allclose(got[name], want[name], rtol=0, atol=2e-6)  # sums in another order
    report = strict((tmp_path / "run.json").read_text())
    assert (report["clips"], report["warm_up"], report["repeat"], report["latency_ms"]["n"]) == (2, 2, 3, 6)
    per_clip = {"mhlt": 4, "frames": 45, "chunks": 12}[case]
    assert report["engines"][next(iter(engines))]["runs"] == per_clip * 2 * 3, "the warm-up is not counted"


def test_the_report_has_times_memory_and_loading(tool, tmp_path):
    prepare(tmp_path, MHLT, MHLT_ENGINES)
    assert run_flow_tool(tool, tmp_path, "--warm-up", 0).returncode == 0
    report = strict((tmp_path / "run.json").read_text())
    row = report["engines"]["clip_encoder"]  # its milliseconds are 5, 3, 9, 1, twice
    assert row["latency_ms"] == {"p50": 3, "p99": 9, "mean": 4.5, "n": 8}
    assert row["device_memory_bytes"] == 2000 and row["activation_bytes"] == 1000 and row["load_ms"] == 1
    assert row["engine_bytes"] == (tmp_path / "engines" / "clip_encoder" / "model.engine").stat().st_size
    assert report["load_ms"] == 3 and report["device_memory_bytes"] == 4096
    assert report["device"] == "toy" and report["not_finite"] is None and "power_mode" in report and isinstance(report["clocks_khz"], dict)


def test_an_engine_alone_takes_its_own_shapes(tool, tmp_path):
    engine = MHLT_ENGINES["head"]
    engine.write(tmp_path / "e")
    feeds = {n: np.random.default_rng(1).standard_normal(s).astype(np.float32) for n, s in engine.inputs.items()}
    save_clip(tmp_path / "in" / "c", feeds)
    done = run(tool, "run", "--engine", tmp_path / "e", "--inputs", tmp_path / "in", "--outputs", tmp_path / "out", "--report", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    for name, value in engine(feeds).items():
        np.testing.assert_allclose(np.load(tmp_path / "out" / "c" / f"{name}.npy"), value, atol=1e-6)


def test_integers_are_decoded_as_the_kit_says(tool, tmp_path):
    """uint8 frames by channel, int16 sound padded with zeros after it was normalized."""
    engine = ToyEngine({"video": [1, 2, 3, 4], "wave": [1, 10]}, {"o": [1, 2]})
    flow = {"inputs": {"video": {"shape": [2, 3, 4]}, "wave": {"shape": [10]}}, "outputs": ["o"], "states": {}, "steps": [{"engine": "e", "feed": {"video": "video", "wave": "wave"}, "give": {"o": "o"}}]}
    write_engines(tmp_path / "engines", {"e": engine})
    (tmp_path / "flow.txt").write_text(flow_text(flow))
    rng = np.random.default_rng(2)
    video, wave = rng.integers(0, 256, (2, 3, 4), dtype=np.uint8), rng.integers(-32768, 32768, 7).astype(np.int16)
    mean, gain = [100.5, 110.25, 90.0], [1 / 58, 0.02, 1 / 61]
    save_clip(tmp_path / "in" / "c", {"video": video, "wave": wave})
    (tmp_path / "in" / "c" / "decode.txt").write_text(f"video\t4\t{','.join(map(repr, mean))}\t{','.join(map(repr, gain))}\nwave\t1\t12.5\t{1 / 3000!r}\n")
    done = run_flow_tool(tool, tmp_path)
    assert done.returncode == 0, done.stderr
    floats = ((video - np.array(mean)[:, None]) * np.array(gain)[:, None]).astype(np.float32)
    padded = np.zeros(10, np.float32)
    padded[:7] = (wave - 12.5) / 3000
    np.testing.assert_allclose(load_clip(tmp_path / "out" / "c")["o"], engine({"video": floats[None], "wave": padded[None]})["o"][0], atol=1e-6)


def _decode(text: str):
    return lambda f: (np.save(f / "wave.npy", np.zeros(9, np.int16)), (f / "decode.txt").write_text(text))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda f: np.save(f / "wave.npy", np.zeros(9, np.int16)), "no line for it"),
        (_decode("wave\t1\t0\n"), "GAIN"),
        (_decode("wave\t0\t0\t1\n"), "whole number"),
        (_decode("wave\t1\t0,1\t1\n"), "as many"),
        (_decode("wave\t1\tx\t1\n"), "no number"),
        (_decode("wave\t1\t0\t1\nwave\t1\t0\t1\n"), "twice"),
        (_decode("wave\t1\t0\t1\nvideo\t1\t0\t1\n"), "video"),
        (lambda f: (np.save(f / "wave.npy", np.zeros(49, np.int16)), (f / "decode.txt").write_text("wave\t1\t0\t1\n")), "at most 48"),
        (lambda f: np.save(f / "wave.npy", np.zeros(47, np.float32)), "shape [47], expected [48]"),
        (lambda f: np.save(f / "wave.npy", np.zeros(48, np.float64)), "<f8"),
        (lambda f: np.save(f / "video.npy", np.asfortranarray(np.load(f / "video.npy"))), "Fortran"),
        (lambda f: np.save(f / "more.npy", np.zeros(2, np.float32)), "more files"),
        (lambda f: (f / "wave.npy").unlink(), "wave.npy"),
        (lambda f: _link(f / "wave.npy", Path("/etc/hostname")), "neither a file nor a folder"),
        (lambda f: (f / "sub").mkdir(), "files only"),
    ],
)
def test_a_clip_that_is_not_as_the_kit_has_it_is_exit_6(tool, tmp_path, change, word):
    prepare(tmp_path, MHLT, MHLT_ENGINES, clips=1)
    change(tmp_path / "in" / "clip-0")
    (tmp_path / "run.json").write_text("old")
    done = run_flow_tool(tool, tmp_path)
    assert done.returncode == 6 and word in done.stderr, done.stderr
    assert not (tmp_path / "run.json").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "code", "word"),
    [
        (lambda t: t.replace("step\thead", "step\t../head"), 6, "../head"),
        (lambda t: t.replace("step\thead", "step\tnobody"), 6, "nobody"),
        (lambda t: t.replace("feed\twave\twave", "feed\twave\tnobody"), 2, "nobody"),
        (lambda t: t.replace("feed\twave\twave", "feed\tsound\twave"), 2, "sound"),
        (lambda t: t.replace("give\to\to", "give\tq\to"), 2, "`q`"),
        (lambda t: t.replace("input\twave\t48", "input\twave\t47"), 6, "shape [48], expected [47]"),
        (lambda t: t.replace("output\tv", "output\t../v"), 6, "../v"),
        (lambda t: t.replace("output\tv", "output\tw"), 2, "`w`"),
        (lambda t: t.replace("step\tclip_encoder\n", ""), 2, "before any `step`"),
        (lambda t: t + "dance\n", 2, "dance"),
        (lambda t: t + "feed\tx\n", 2, "fields"),
        (lambda t: t + "output\tv", 6, "no end"),
        (lambda t: "# nothing\n", 2, "no step"),
    ],
)
def test_a_flow_that_does_not_fit_is_refused_by_name(tool, tmp_path, change, code, word):
    prepare(tmp_path, MHLT, MHLT_ENGINES, clips=1)
    (tmp_path / "flow.txt").write_text(change(flow_text(MHLT)))
    done = run_flow_tool(tool, tmp_path)
    assert done.returncode == code and word in done.stderr, done.stderr
    assert not (tmp_path / "run.json").exists()


def test_an_output_that_is_not_finite_is_written_and_ends_with_3(tool, tmp_path):
    prepare(tmp_path, MHLT, MHLT_ENGINES, clips=2)
    wave = np.zeros(48, np.float32)
    wave[7] = np.nan
    np.save(tmp_path / "in" / "clip-1" / "wave.npy", wave)
    done = run_flow_tool(tool, tmp_path)
    assert done.returncode == 3 and "clip-1" in done.stderr and "NaN" in done.stderr
    assert "clip-1" in strict((tmp_path / "run.json").read_text())["not_finite"]
    assert np.isnan(load_clip(tmp_path / "out" / "clip-1")["o"]).all()


@pytest.mark.parametrize(("share", "samples", "want"), [(0.5, [7], 7), (0.5, [1, 2], 1), (0.5, [3, 1, 2], 2), (0.99, range(1, 101), 99), (0.99, range(1, 102), 100), (0.99, range(100), 98), (1.0, [4, 9, 2], 9)])
def test_a_percentile_is_the_nearest_rank(programs, share, samples, want):
    samples = list(samples)
    assert float(run(programs / "probe", "percentile", share, *samples).stdout) == want
    assert sum(s <= want for s in samples) >= share * len(samples) > sum(s < want for s in samples)


def test_clocks_and_power_mode_are_read_where_they_are(programs, tmp_path):
    probe = programs / "probe"
    assert json.loads(run(probe, "clocks", tmp_path).stdout) == {}
    for path, value in {
        "class/devfreq/15340000.vic/cur_freq": 1,
        "class/devfreq/17000000.gv11b/cur_freq": 1377000000,
        "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": 2265600,
        "kernel/debug/bpmp/debug/clk/emc/rate": 2133000000,
    }.items():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(f"{value}\n")
    assert json.loads(run(probe, "clocks", tmp_path).stdout) == {"gpu": 1377000, "cpu": 2265600, "emc": 2133000}

    (tmp_path / "bin").mkdir()
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:/usr/bin:/bin"}
    assert json.loads(run(probe, "power", env=environment).stdout) is None
    (tmp_path / "bin" / "nvpmodel").write_text("#!/bin/sh\necho 'NV Fan Mode:quiet'; echo 'NV Power Mode: MODE_30W_ALL'; echo 3\n")
    (tmp_path / "bin" / "nvpmodel").chmod(0o755)
    assert json.loads(run(probe, "power", env=environment).stdout) == "MODE_30W_ALL"


# --------------------------------------------------------------------------- whole or not there


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE])
def test_an_interrupted_run_leaves_whole_files_and_no_report(tool, tmp_path, number):
    prepare(tmp_path, MHLT, MHLT_ENGINES, clips=1)
    for i in range(400):
        shutil.copytree(tmp_path / "in" / "clip-0", tmp_path / "in" / f"more-{i}")
    (tmp_path / "run.json").write_text("old")
    command = ["run", "--flow", "flow.txt", "--engines", "engines", "--inputs", "in", "--outputs", "out", "--report", "run.json", "--repeat", "100"]  # some seconds
    with subprocess.Popen([tool, *command], cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        while not list(tmp_path.glob("out/more-*/*.npy")) and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(number)
        assert process.wait(60) == 130
    assert not (tmp_path / "run.json").exists()
    written = list(tmp_path.glob("out/*/*"))
    assert written and not [p for p in written if p.suffix != ".npy"]
    for path in written:
        np.load(path, allow_pickle=False)


def test_a_full_disk_is_exit_5_and_leaves_no_half_file(tool, tmp_path):
    """A limit on files' sizes fails a write in its middle, as a full disk does."""
    engine = ToyEngine({"x": [1, 2]}, {"y": [1, 5000]})
    engine.write(tmp_path / "e")
    save_clip(tmp_path / "in" / "c", {"x": np.zeros((1, 2), np.float32)})
    done = run(
        *(tool, "run", "--engine", tmp_path / "e", "--inputs", tmp_path / "in", "--outputs", tmp_path / "out", "--report", tmp_path / "r"),
        preexec_fn=lambda: (signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))),
        restore_signals=False,
    )
    assert done.returncode == 5 and "too large" in done.stderr.lower(), done.stderr
    assert list((tmp_path / "out" / "c").iterdir()) == [] and not (tmp_path / "r").exists()


def test_outputs_that_cannot_be_written_are_exit_5(tool, tmp_path):
    ToyEngine({"x": [1, 2]}, {"y": [1, 3]}).write(tmp_path / "e")
    save_clip(tmp_path / "in" / "c", {"x": np.zeros((1, 2), np.float32)})
    (tmp_path / "out").write_text("a file, not a folder")
    done = run(tool, "run", "--engine", tmp_path / "e", "--inputs", tmp_path / "in", "--outputs", tmp_path / "out", "--report", tmp_path / "r")
    assert done.returncode == 5 and str(tmp_path / "out") in done.stderr


def test_infinite_decibels_are_null_in_the_report(tool, tmp_path):
    save_clip(tmp_path / "want" / "c", {"o": np.ones(2, np.float32)})
    shutil.copytree(tmp_path / "want", tmp_path / "got")
    assert compare(tool, tmp_path, "o\t0\t99\n").returncode == 0
    row = strict((tmp_path / "report.json").read_text())["outputs"]["o"]
    assert row["sqnr_db"] is None and row["max_abs"] == 0 and math.isclose(row["needed_sqnr_db"], 99)

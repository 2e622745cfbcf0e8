"""The process that runs tflite-runtime: with stand-ins for crashes and delays, and with the real one where it is installed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from edgekit import tools
from edgekit.backends.tflite import side
from edgekit.errors import EdgekitError, ToolMissing
from tests.backends.tflite import tiny_tflite

has_tool = pytest.mark.skipif(tools.version(side.NATIVE) is None, reason=f"needs `{side.install_hint()}`")

# Behaves like tflite_runtime.interpreter, as far as the worker looks.
STAND_IN = """
import os, signal, sys, time
import numpy as np
class Interpreter:
    def __init__(self, model_path, num_threads):
        self.what = open(model_path).read()
        if self.what == "broken": raise ValueError("Model provided has\\n model identifier ''")
        if self.what == "crash at once": os.kill(os.getpid(), signal.SIGSEGV)
        if self.what == "slow to load": time.sleep(60)
    def allocate_tensors(self): pass
    def get_signature_list(self): return {"one": {}, "two": {}} if self.what == "two" else {"serving_default": {}}
    def get_signature_runner(self, name): return Runner(self.what)
class Runner:
    def __init__(self, what): self.what = what
    def get_input_details(self):
        return {"x": {"dtype": np.float32, "shape": np.array([1, 3])}, "n": {"dtype": np.int32, "shape": np.array([], np.int32)}}
    def get_output_details(self): return {"y": {"dtype": np.int8, "shape": np.array([3, 1])}, "n": {"dtype": np.int32, "shape": np.array([], np.int32)}}
    def __call__(self, x, n):
        if self.what == "prints": print("a library that prints", flush=True); os.write(1, b"and again")
        if self.what == "crash": sys.stderr.write("ERROR: node 7 failed\\n"); sys.stderr.flush(); os.kill(os.getpid(), signal.SIGSEGV)
        if self.what == "slow": time.sleep(60)
        if self.what == "raises": raise RuntimeError("tensor 3 is null")
        if self.what == "exits": os._exit(9)
        return {"y": (x.T + n).astype(np.int8), "n": np.int32(n + 1)}
"""
FEEDS = {"x": np.array([[1, 2, 3]], np.float32), "n": np.array(4, np.int32)}


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """open(what) gives a session whose runtime does `what`."""
    package = tmp_path / "packages/tflite_runtime"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "interpreter.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setattr(tools, "command", lambda name: [sys.executable])

    def open_(what, **options):
        (tmp_path / "m.tflite").write_text(what)
        return side.open(tmp_path / "m.tflite", **options)

    return open_


def is_running(pid):
    """Whether the process is there and not a zombie."""
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_end(pid):
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_running(pid)


def test_arrays_travel_whole_and_by_name(stand_in):
    with stand_in("prints", threads=2) as session:
        assert session.inputs == ["x", "n"] and session.outputs == ["y", "n"]
        got = session(FEEDS)
        assert got["y"].dtype == np.int8 and got["y"].tolist() == [[5], [6], [7]]
        assert got["n"].shape == () and got["n"] == 5
        assert session({"x": np.asfortranarray(FEEDS["x"][:, ::-1]), "n": FEEDS["n"]})["y"].tolist() == [[7], [6], [5]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": np.zeros((1, 3))}, r"input `x` is float64 \[1, 3\], the model takes float32 \[1, 3\]"),
        ({"x": np.zeros((1, 4), np.float32)}, r"input `x` is float32 \[1, 4\]"),
        ({"z": FEEDS["x"]}, "there is no input `z`"),
        ({"n": None}, "input `n` is missing"),
    ],
)
def test_inputs_must_be_what_the_signature_says(stand_in, change, said):
    feeds = {name: value for name, value in {**FEEDS, **change}.items() if value is not None}
    with stand_in("") as session:
        with pytest.raises(EdgekitError, match=said):
            session(feeds)
        assert session(FEEDS)["n"] == 5, "a refused call leaves the session usable"


def test_an_error_of_the_runtime_is_ours_and_the_session_goes_on(stand_in):
    with stand_in("raises") as session:
        for _ in range(2):
            with pytest.raises(EdgekitError, match=r"m\.tflite: tflite-runtime failed while running: RuntimeError: tensor 3 is null"):
                session(FEEDS)


def test_a_crash_names_the_signal_and_the_last_lines(stand_in):
    with stand_in("crash") as session:
        for _ in range(2):  # and a dead session keeps saying why
            with pytest.raises(EdgekitError, match=r"m\.tflite: tflite-runtime crashed while running \(signal SIGSEGV\):\n    ERROR: node 7 failed"):
                session(FEEDS)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("crash at once", r"crashed while loading \(signal SIGSEGV\)"),
        ("broken", "failed while loading: ValueError: Model provided has model identifier ''"),
        ("two", "the model has 2 signatures, one is expected"),
    ],
)
def test_a_model_that_does_not_load_is_an_error_at_open(stand_in, what, said):
    with pytest.raises(EdgekitError, match=said):
        stand_in(what)


def test_an_exit_code_is_told(stand_in):
    with stand_in("exits") as session, pytest.raises(EdgekitError, match=r"crashed while running \(exit code 9\)"):
        session(FEEDS)


@pytest.mark.parametrize(("what", "doing"), [("slow", "running"), ("slow to load", "loading")])
def test_a_call_has_a_time_limit_and_leaves_no_process(stand_in, what, doing, monkeypatch):
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    # Loading takes a Python start and an import of numpy, even where that is slow.
    with pytest.raises(EdgekitError, match=f"was still {doing} after 3 s and was ended"):
        session = stand_in(what, timeout_s=3)
        session(FEEDS)
    assert wait_for_end(started[0].pid)


def test_closing_ends_the_process_and_calls_after_it_fail(stand_in):
    session = stand_in("")
    pid = session._process.pid
    session.close()
    assert not is_running(pid)
    with pytest.raises(EdgekitError, match="the session is closed"):
        session(FEEDS)


def test_a_forgotten_session_ends_its_process(stand_in):
    session = stand_in("")
    pid = session._process.pid
    del session
    assert not is_running(pid)


def test_the_process_dies_with_its_parent_in_the_middle_of_a_call(stand_in, tmp_path):
    (tmp_path / "slow.tflite").write_text("slow")
    script = f"""
        import sys, threading, time
        import numpy as np
        from edgekit import tools
        from edgekit.backends.tflite import side
        tools.command = lambda name: [sys.executable]
        session = side.open({str(tmp_path / "slow.tflite")!r})
        feeds = {{"x": np.zeros((1, 3), np.float32), "n": np.array(0, np.int32)}}
        threading.Thread(target=session, args=(feeds,), daemon=True).start()
        time.sleep(0.3)
        print(session._process.pid, flush=True)
        time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        os.kill(parent.pid, signal.SIGKILL)
        assert wait_for_end(pid)


def test_without_the_tool_opening_is_5_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_TOOLS", str(tmp_path))
    assert side.versions() == {"tflite-runtime": None}
    with pytest.raises(ToolMissing) as caught:
        side.open(tmp_path / "m.tflite")
    assert caught.value.hint == side.install_hint() == "edgekit doctor --install tflite214"


def linear_in_integers(x):
    """What `tiny_tflite.linear` computes: exact integer sums, one rounding."""
    t = tiny_tflite
    q = np.round(x.astype(np.float64) / t.X_SCALE)
    y = (t.W.astype(np.int64) @ q.T.astype(np.int64)).T + np.array([10, -20, 30, 0])
    return np.clip(np.round(y * t.W_SCALES.astype(np.float64) * t.X_SCALE / t.Y_SCALE) + t.Y_ZERO, -128, 127).astype(np.int8)


def test_the_check_model_is_the_one_the_schema_writes_and_its_answer_is_arithmetic():
    assert side.CHECK_MODEL.read_bytes() == tiny_tflite.linear()
    x = np.array(side._EXPECTED["x"], np.float32)
    assert ((linear_in_integers(x).astype(np.float32) - tiny_tflite.Y_ZERO) * tiny_tflite.Y_SCALE).tolist() == side._EXPECTED["y"]


@has_tool
def test_the_real_runtime_computes_int8_exactly(tmp_path):
    (tmp_path / "linear.tflite").write_bytes(tiny_tflite.linear(float_io=False))
    rng = np.random.default_rng(0)
    with side.open(tmp_path / "linear.tflite", threads=1) as session:
        assert session.ports["x"] == side.Port("x", "int8", (1, 8))
        for _ in range(20):
            x = rng.integers(-128, 128, (1, 8)).astype(np.int8)
            want = linear_in_integers((x.astype(np.float64) - tiny_tflite.X_ZERO) * tiny_tflite.X_SCALE)
            assert np.array_equal(session({"x": x})["y"], want)


@has_tool
def test_the_real_runtime_runs_float_outside_and_int8_inside(tmp_path):
    (tmp_path / "linear.tflite").write_bytes(tiny_tflite.linear())
    x = np.array(side._EXPECTED["x"], np.float32)
    with side.open(tmp_path / "linear.tflite") as session:
        assert session({"x": x})["y"].tolist() == side._EXPECTED["y"]


@has_tool
def test_the_real_runtime_refuses_what_is_no_model(tmp_path):
    (tmp_path / "no.tflite").write_bytes(b"not a flatbuffer")
    with pytest.raises(EdgekitError, match=r"no\.tflite: tflite-runtime failed while loading: ValueError"):
        side.open(tmp_path / "no.tflite")

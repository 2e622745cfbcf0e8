"""examples/run_bundle.cpp against edgekit.flow, on engines that compute on the CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from edgekit.flow import Live, run_flow

sys.path.insert(0, str(Path(__file__).parent))
from test_ek_trt_chain import chain
from trt_toy import MHLT, MHLT_ENGINES, NATIVE, denoiser, load_clip, random_inputs, run, save_clip, toys, write_engines


@pytest.fixture(scope="module")
def run_bundle() -> Path:
    return toys() / "run_bundle"


def bundle(folder: Path, flow: dict, engines: dict) -> Path:
    write_engines(folder / "result", engines)
    (folder / "flow.json").write_text(json.dumps(flow, indent=1, sort_keys=True))
    return folder


def test_the_example_fits_on_its_pages():
    assert len((NATIVE / "examples" / "run_bundle.cpp").read_text().splitlines()) <= 200


def test_it_does_what_run_flow_does_and_clamps(run_bundle, tmp_path):
    bundle(tmp_path, MHLT, MHLT_ENGINES)
    windows = {f"w{i}": random_inputs(MHLT, i) for i in range(3)}
    for name, tensors in windows.items():
        save_clip(tmp_path / "in" / name, tensors)
    done = run(run_bundle, tmp_path, tmp_path / "result", tmp_path / "in", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    is_clamped = False
    for name, tensors in windows.items():
        want = run_flow(MHLT, MHLT_ENGINES, tensors)
        got = load_clip(tmp_path / "out" / name)
        assert sorted(got) == ["a", "o", "v"]
        for output, value in want.items():
            is_clamped |= bool((np.abs(value) > 0.15).any())
            assert got[output].shape == value.shape == ()
            assert got[output] == pytest.approx(np.clip(value, -0.15, 0.15), abs=1e-6)  # the order of a float64 sum
    assert is_clamped, "the test's own inputs shall reach the clamp"
    assert "clip_encoder ran 12 times" in done.stdout and "head ran 3 times" in done.stdout


def test_sliding_windows_compute_what_is_new_and_answer_the_same(run_bundle, tmp_path):
    bundle(tmp_path, MHLT, MHLT_ENGINES)
    stream = np.random.default_rng(5).standard_normal((9, 3, 2, 5, 5)).astype(np.float32)
    live = Live(MHLT, MHLT_ENGINES)
    answers = []
    for i, clip in enumerate(stream):
        wave = random_inputs(MHLT, i)["wave"]
        answer = live.push({"video": clip}, {"wave": wave})
        if answer is not None:
            answers.append(answer)
            save_clip(tmp_path / "in" / f"w{i}", {"video": stream[i - 3 : i + 1], "wave": wave})
    done = run(run_bundle, "--sliding", tmp_path, tmp_path / "result", tmp_path / "in", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for want, folder in zip(answers, sorted((tmp_path / "out").iterdir()), strict=True):
        for output, value in want.items():
            assert load_clip(folder)[output] == pytest.approx(np.clip(value, -0.15, 0.15), abs=1e-6)
    assert live.runs == {"clip_encoder": 9} and "clip_encoder ran 9 times" in done.stdout  # 4 for the first window, then 1 each


@pytest.mark.parametrize(("chunk", "mask"), [(0, "E"), (4, "C"), (0, "R")])
def test_a_denoiser_keeps_its_states_and_its_spectra(run_bundle, tmp_path, chunk, mask):
    flow, engines = denoiser(chunk, mask)
    bundle(tmp_path, flow, engines)
    for i in range(2):  # states start anew in the second
        save_clip(tmp_path / "in" / f"w{i}", random_inputs(flow, i))
    done = run(run_bundle, tmp_path, tmp_path / "result", tmp_path / "in", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for i in range(2):
        want = run_flow(flow, engines, random_inputs(flow, i))["speech"]
        got = load_clip(tmp_path / "out" / f"w{i}")["speech"]
        assert np.abs(want).max() > 0.1
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)  # float32 spectra into tanh, both ways in float64


def test_what_the_host_computes_between_engines_is_what_run_flow_computes(run_bundle, tmp_path):
    flow, engines = chain(knee_db=-30.0, full_db=10.0)
    bundle(tmp_path, flow, engines)
    save_clip(tmp_path / "in" / "w", random_inputs(flow, 3))
    done = run(run_bundle, tmp_path, tmp_path / "result", tmp_path / "in", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    want, got = run_flow(flow, engines, random_inputs(flow, 3)), load_clip(tmp_path / "out" / "w")
    assert sorted(got) == sorted(want)
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=2e-6, atol=5e-6)  # as in test_ek_trt_chain.py


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda f: f["host_steps"][1].update(count=4), "nothing new"),
        (lambda f: f["host_steps"].append({"step": "snr", "speech": "wave", "noisy": "wave", "give": "x", "low": 0, "high": 1, "ema": 0.9}), "averages over windows"),
        (lambda f: f["steps"].append(f["steps"][0]), "two steps"),
        (lambda f: f.update(states={"clip_encoder": [{"in": "clip", "out": "clip_feature", "init": 0.0, "shape": [1]}]}), "has states"),
    ],
)
def test_windows_that_cannot_slide_are_refused(run_bundle, tmp_path, change, word):
    flow = json.loads(json.dumps(MHLT))
    change(flow)
    bundle(tmp_path, flow, MHLT_ENGINES)
    save_clip(tmp_path / "in" / "w", random_inputs(MHLT, 0))
    done = run(run_bundle, "--sliding", tmp_path, tmp_path / "result", tmp_path / "in", tmp_path / "out")
    assert done.returncode == 2 and word in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("change", "code", "word"),
    [
        (lambda f: f["steps"][2]["feed"].update(clip_features="nobody"), 2, "nobody"),
        (lambda f: f["host_steps"].append({"step": "dance"}), 2, "dance"),
        (lambda f: f["steps"][0].update(engine="../escape"), 6, "escape"),
        (lambda f: f["steps"][0]["each"].update(clip2="wave"), 2, "different lengths"),
        (lambda f: f.pop("outputs"), 6, "outputs"),
        (lambda f: f["outputs"].append("o\nstep\tx"), 6, "blank"),
        (lambda f: f["host_steps"][2].update(outputs=["nobody"]), 2, "nobody"),
        (lambda f: f["steps"][1].update(engine="missing"), 6, "missing"),
    ],
)
def test_a_flow_that_cannot_be_is_refused_by_name(run_bundle, tmp_path, change, code, word):
    flow = json.loads(json.dumps(MHLT))
    change(flow)
    bundle(tmp_path, flow, MHLT_ENGINES)
    save_clip(tmp_path / "in" / "w", random_inputs(MHLT, 0))
    done = run(run_bundle, tmp_path, tmp_path / "result", tmp_path / "in", tmp_path / "out")
    assert (done.returncode, word in done.stderr) == (code, True), done.stderr

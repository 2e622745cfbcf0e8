"""A kit's clips and flow.txt as the real ek_trt reads them, on engines that compute on the CPU."""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Mapping

import numpy as np
import pytest

from edgekit.backends.tensorrt import clips
from edgekit.backends.tensorrt import kit as kits
from edgekit.flow import run_flow
from edgekit.preprocess import preprocess
from tests.backends.tensorrt.kits import CLIPS, OwnSize, make_bundle
from tests.native.trt_toy import ToyEngine, denoiser, toys, write_engines
from tests.stages.made_up import FLOW, PREPROCESS

ENGINES = {
    "eye": ToyEngine({"clip": [1, 3, 4, 8, 8]}, {"feature": [1, 4]}),
    "head": ToyEngine({"features": [1, 2, 4], "wave": [1, 400], "h_in": [1, 4]}, {"o": [1], "v": [1], "h_out": [1, 4]}),
}


@pytest.fixture(scope="module")
def tool():
    return toys() / "ek_trt"


def call(tool, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([str(tool), *map(str, arguments)], capture_output=True, text=True, timeout=300)


def answers(flow: Mapping, engines: Mapping, inputs: Mapping) -> dict[str, np.ndarray]:
    return run_flow(dict(flow), dict(engines), inputs)


def test_held_out_clips_go_through_the_flow_to_the_answers_of_the_host(tool, tmp_path):
    bundle, heldout = make_bundle(tmp_path)
    with tarfile.open(heldout) as tar:
        tar.extractall(tmp_path / "clips", filter="data")
    engines = write_engines(tmp_path / "engines", ENGINES)
    (tmp_path / "out").mkdir()
    ran = call(tool, "run", "--flow", bundle / "flow.txt", "--engines", engines, "--inputs", tmp_path / "clips/inputs", "--outputs", tmp_path / "out",
               "--report", tmp_path / "run.json", "--warm-up", 1, "--repeat", 2)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    data = OwnSize(CLIPS)
    for clip_id in data.ids:
        want = answers(FLOW, ENGINES, preprocess(PREPROCESS, data.clip(clip_id)))
        for name, value in want.items():
            got = clips.read_npy(tmp_path / "out" / clips.folder_of(clip_id) / f"{name}.npy", np.shape(value))
            assert got == pytest.approx(value, abs=1e-6), (clip_id, name)  # inputs differ by a step of float32 at most
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["clips"] == CLIPS and set(report["engines"]) == {"eye", "head"}
    # The toys' answers are not the reference's: the comparison has to say so, by the kit's own tolerance.
    compared = call(tool, "compare", "--reference", tmp_path / "clips/reference", "--outputs", tmp_path / "out", "--tolerance", tmp_path / "clips/tolerance.txt", "--report", tmp_path / "c.json")
    assert compared.returncode == 3 and json.loads((tmp_path / "c.json").read_text())["failed"]
    same = call(tool, "compare", "--reference", tmp_path / "clips/reference", "--outputs", tmp_path / "clips/reference", "--tolerance", tmp_path / "clips/tolerance.txt", "--report", tmp_path / "c.json")
    assert same.returncode == 0 and json.loads((tmp_path / "c.json").read_text())["failed"] == []
    golden = call(tool, "compare", "--reference", bundle / "golden/reference", "--outputs", bundle / "golden/reference", "--tolerance", bundle / "golden/tolerance.txt", "--report", tmp_path / "c.json")
    assert golden.returncode == 0, golden.stderr


@pytest.mark.parametrize("chunk", [0, 4])
def test_a_denoisers_wave_goes_in_as_int16_and_comes_out_as_the_host_computes_it(tool, tmp_path, chunk):
    flow, engines = denoiser(chunk)
    spec = {"audio": {"sample_rate_hz": 16000, "samples": 203, "scale": 32768.0, "normalize": "none", "pad": "right_zero_after_normalize"}}
    rng = np.random.default_rng(0)

    def put(name: str, data: bytes) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)

    waves = {}
    for clip_id, samples in (("whole", 203), ("short", 150)):
        sound = rng.integers(-20000, 20000, samples).astype(np.int16)
        wave = np.zeros(203, np.float32)
        wave[:samples] = sound.astype(np.float32) / np.float32(32768)
        encoded = clips.encode(spec, {"wave": wave}, sound)
        assert encoded["wave"][0].dtype == np.int16 and len(encoded["wave"][0]) == samples
        clips.put_inputs(put, clip_id, encoded)
        waves[clip_id] = wave
    (tmp_path / "flow.txt").write_text(kits.flow_text(flow))
    (tmp_path / "out").mkdir()
    ran = call(tool, "run", "--flow", tmp_path / "flow.txt", "--engines", write_engines(tmp_path / "engines", engines), "--inputs", tmp_path / "inputs", "--outputs", tmp_path / "out", "--report", tmp_path / "run.json")
    assert ran.returncode == 0, ran.stderr
    for clip_id, wave in waves.items():
        want = answers(flow, engines, {"wave": wave})["speech"]
        got = clips.read_npy(tmp_path / "out" / clip_id / "speech.npy", (203,))
        assert np.abs(got - want).max() < 2e-6, clip_id  # float64 inside on both sides


def test_the_tool_in_a_kit_compiles_there_without_touching_it(tmp_path):
    """Without TensorRT only `compare`: which of the sources that needs, the kit has."""
    import shutil

    if shutil.which("g++") is None or shutil.which("make") is None:
        pytest.skip("needs make and g++")
    bundle, _ = make_bundle(tmp_path)
    before = sorted((bundle / "ek_trt").iterdir())
    made = subprocess.run(["make", "-C", bundle / "ek_trt", f"BUILD={tmp_path}/bin", "EK_TRT_WITHOUT_TENSORRT=1", "CXXFLAGS=-O0"], capture_output=True, text=True, timeout=500)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "bin/ek_trt").is_file() and sorted((bundle / "ek_trt").iterdir()) == before

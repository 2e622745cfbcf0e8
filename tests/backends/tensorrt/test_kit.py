"""What a kit holds, written by export and completed by package; finish.sh itself is tested in test_finish.py."""

from __future__ import annotations

import json
import os
import tarfile

import numpy as np
import pytest

from edgekit.backends import EngineKit, Kit, tensorrt
from edgekit.backends.tensorrt import cache, clips
from edgekit.backends.tensorrt import kit as kits
from edgekit.bundle import open_bundle
from edgekit.errors import EdgekitError
from edgekit.preprocess import preprocess
from edgekit.quant import Range
from tests.backends.tensorrt.kits import CLIPS, ENGINES, OwnSize, make_bundle
from tests.stages.made_up import FLOW, PREPROCESS, TARGET, MadeUp


@pytest.fixture
def kit(tmp_path):
    """A kit of two engines in tmp_path/kit, as export leaves it."""
    onnx = tmp_path / "m.onnx"
    onnx.write_bytes(b"onnx")
    encoder = EngineKit(
        "encoder", onnx, onnx, ("encoder/Conv",), ("encoder/Clip",), ("encoder/norm/std",), ("encoder/Erf",), {"x": Range(-1, 2.54), "encoder/Conv_out": Range(0, 6)}
    )
    head = EngineKit("head", onnx, onnx)
    out = tmp_path / "kit"
    out.mkdir()
    tensorrt.compile(Kit((encoder, head), TARGET, tmp_path), out)
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(bundle, heldout.tar)."""
    return make_bundle(tmp_path_factory.mktemp("bundle"))


# export


def test_engines_txt_holds_exactly_the_arguments_of_build_json(kit):
    engines = json.loads((kit / "build.json").read_text())["engines"]
    lines = [line.split("\t") for line in (kit / "engines.txt").read_text().splitlines()]
    assert {name: arguments for name, *arguments in lines} == {name: row["arguments"] for name, row in engines.items()}
    assert lines == [
        ["encoder", "--fp16", "--int8", "--cache", "engines/encoder/calibration.cache", "--int8-tensors", "engines/encoder/int8_tensors.txt",
         "--precisions", "engines/encoder/precisions.txt", "--workspace", "2048"],
        ["head", "--fp16", "--workspace", "2048"],
    ]  # fmt: skip


def test_the_kit_holds_scales_by_max_abs_over_127_and_the_precision_of_every_layer(kit):
    version, scales = cache.read_cache((kit / "engines/encoder/calibration.cache").read_text())
    assert version == "8502"
    assert scales == {"x": pytest.approx(0.02), "encoder/Conv_out": pytest.approx(6 / 127)}
    precisions = {"encoder/Erf": "fp16", "encoder/norm/std": "fp32", "encoder/Conv": "int8", "encoder/Clip": "int8"}
    assert json.loads((kit / "engines/encoder/precisions.json").read_text()) == precisions
    assert dict(line.split("\t") for line in (kit / "engines/encoder/precisions.txt").read_text().splitlines()) == precisions
    assert (kit / "engines/encoder/int8_tensors.txt").read_text().splitlines() == ["x", "encoder/Conv_out"]


def test_names_that_a_text_file_cannot_carry_are_refused(kit, tmp_path):
    onnx = tmp_path / "m.onnx"
    for engine in (EngineKit("e", onnx, onnx, ("a,b",)), EngineKit("e; rm -rf x", onnx, onnx), EngineKit("../e", onnx, onnx)):
        with pytest.raises(EdgekitError, match="cannot stand"):
            tensorrt.compile(Kit((engine,), TARGET, tmp_path), tmp_path / "other")


def test_a_target_that_no_kit_serves_is_refused():
    assert tensorrt.problems(TARGET) == []
    assert tensorrt.problems({**TARGET, "runtime": {"name": "TensorRT", "version": "7.1"}, "build_on": "host", "device": {"sm": 72}}) == [
        "TensorRT 7.1: no form of a model is known for it",
        "build_on: host: an engine is built on the device",
        "device.cuda is not given, which the kit's passport needs",
    ]


# package


def test_a_complete_kit_has_scripts_tool_passport_flow_and_golden_clips(made):
    with open_bundle(made[0]) as bundle:
        bundle.verify()
        names = set(bundle.manifest["files"])
        assert bundle.manifest["passport"] == {"name": "toy_x", "target": "jetson_xavier", "sm": "72", "tensorrt": "8.5.2", "cuda": "11.4"}
    assert names >= {"finish.sh", "device.sh", "engines.txt", "flow.txt", "passport.txt", "heldout.txt", "ek_trt/Makefile", "golden/tolerance.txt"}
    assert "check.sh" not in names and "build.sh" not in names
    assert any(name.startswith("ek_trt/") and name.endswith(".cpp") for name in names)
    assert os.access(made[0] / "finish.sh", os.X_OK)
    assert (made[0] / "flow.txt").read_text().splitlines() == [
        "input\tvideo\t2,3,4,8,8", "input\twave\t400", "step\teye", "each\tclip\tvideo", "stack\tfeature\tfeatures",
        "step\thead", "feed\tfeatures\tfeatures", "feed\twave\twave", "give\to\to", "give\tv\tv", "state\th_in\th_out\t0", "output\to", "output\tv",
    ]  # fmt: skip


def test_a_denoisers_host_steps_stand_in_flow_txt():
    sizes = {"win_length": 400, "hop_length": 100, "n_fft": 512, "delay": 6}
    flow = {
        "host_steps": [{"step": "preprocess"}, {"step": "stft", "from": "wave", "give": "spectrum", **sizes}, {"step": "masked_istft", "spectrum": "spectrum", "masks": "m", "give": "speech", "mask": "E", "samples": 640, **sizes}],
        "inputs": {"wave": {"shape": [640], "dtype": "float32"}}, "outputs": ["speech"], "steps": [{"engine": "d", "each": {"x": "spectrum"}, "stack": {"y": "m"}}],
    }  # fmt: skip
    lines = kits.flow_text(flow).splitlines()
    assert lines[1] == "stft\twave\tspectrum\t400\t100\t512\t6\t0"
    assert lines[-2] == "masked_istft\tspectrum\tm\tspeech\t400\t100\t512\t6\t0\tE\t640"
    with pytest.raises(EdgekitError, match="cannot stand"):
        kits.flow_text({**flow, "outputs": ["a\tb"]})


# clips


def floats(folder, name: str, shape) -> np.ndarray:
    """A clip's tensor as the device decodes it."""
    stored = np.load(folder / f"{name}.npy")
    lines = (folder / "decode.txt").read_text().splitlines() if (folder / "decode.txt").is_file() else []
    for line in lines:
        tensor, inner, means, gains = line.split("\t")
        if tensor == name:
            return clips.Decode(int(inner), tuple(map(float, means.split(","))), tuple(map(float, gains.split(",")))).floats(stored, int(np.prod(shape))).reshape(shape)
    assert stored.dtype == np.float32
    return stored


def test_held_out_clips_are_integers_that_decode_to_what_the_host_computes(made, tmp_path):
    with tarfile.open(made[1]) as tar:
        tar.extractall(tmp_path, filter="data")
    data = OwnSize(CLIPS)
    assert sorted(path.name for path in (tmp_path / "inputs").iterdir()) == sorted(data.ids)
    for clip_id in data.ids:
        folder = tmp_path / "inputs" / clip_id
        assert np.load(folder / "video.npy").dtype == np.uint8 and np.load(folder / "wave.npy").dtype == np.int16
        for name, want in preprocess(PREPROCESS, data.clip(clip_id)).items():
            # 2e-6: float32 steps of values up to 4, as clips.EXACT
            assert np.abs(floats(folder, name, want.shape) - want).max() <= 2e-6 * max(1.0, float(np.abs(want).max())), name
        assert {path.name for path in (tmp_path / "reference" / clip_id).iterdir()} == {f"{name}.npy" for name in FLOW["outputs"]}


def test_what_is_no_integer_any_more_goes_as_float32():
    clip = MadeUp(1).clip("clip-000")  # 12x10 frames, resized to 8x8
    inputs = preprocess(PREPROCESS, clip)
    encoded = clips.encode(PREPROCESS, inputs, clip.audio)
    assert encoded["video"][0].dtype == np.float32 and encoded["video"][1] is None and np.array_equal(encoded["video"][0], inputs["video"])
    assert encoded["wave"][0].dtype == np.int16 and len(encoded["wave"][0]) == 400


def test_a_clip_that_is_shorter_than_the_window_is_padded_after_decoding():
    clip = MadeUp(1).clip("clip-000")
    short = type(clip)(clip.id, clip.frames, clip.fps, clip.audio[:250], clip.sample_rate_hz, {})
    inputs = preprocess(PREPROCESS, short)
    stored, how = clips.encode(PREPROCESS, inputs, short.audio)["wave"]
    assert len(stored) == 250
    decoded = how.floats(stored, 400)
    assert np.abs(decoded - inputs["wave"]).max() < 5e-6 and not decoded[250:].any() and how.means != (0.0,)


@pytest.mark.parametrize("layout", ["KCTHW", "CTHW", "TCHW", "THWC", "CHW", "HWC"])
def test_pixels_decode_in_every_layout(layout):
    rng = np.random.default_rng(0)
    sizes = {"K": 2 if "K" in layout else 1, "T": 3 if "T" in layout else 1}
    video = {**PREPROCESS["video"], "layout": layout, "clips": sizes["K"], "frames_per_clip": sizes["T"], "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
    clip = MadeUp(1).clip("clip-000")
    frames = rng.integers(0, 256, (sizes["K"] * sizes["T"], 8, 8, 3)).astype(np.uint8)
    clip = type(clip)(clip.id, frames, 10.0, clip.audio, clip.sample_rate_hz, {})
    inputs = preprocess({"video": video}, clip)
    stored, how = clips.encode({"video": video}, inputs, None)["video"]
    assert stored.dtype == np.uint8 and np.abs(how.floats(stored, stored.size).reshape(stored.shape) - inputs["video"]).max() < 2e-6 * 3


def test_every_id_becomes_a_folder_of_its_own():
    ids = ["a/b", "a%2Fb", "..", ".", "a b", "ä", "clip~shorter", "a.b", "a\n"]
    folders = [clips.folder_of(i) for i in ids]
    assert len(set(folders)) == len(ids)
    assert all(folder and "/" not in folder and not folder.startswith(".") and folder.isascii() and " " not in folder for folder in folders)


def test_tolerance_follows_what_int8_cost_and_nan_passes_nothing():
    rows = {"o": {"max_abs": 0.2, "sqnr_db": 25.0}, "same": {"max_abs": 0.0, "sqnr_db": None}, "nan": {"max_abs": None, "sqnr_db": None}}
    assert clips.tolerance(rows, 6.0).decode() == "nan\t0\t1000\no\t0.401\t19\nsame\t0.001\t40\n"


def test_the_same_clips_give_the_same_tar(made, tmp_path):
    _, again = make_bundle(tmp_path)
    assert again.read_bytes() == made[1].read_bytes()


def test_engines_have_plain_names(made):
    assert {path.name for path in (made[0] / "engines").iterdir()} == set(ENGINES)

"""A denoiser through the whole pipeline and through parity: a wave goes in, a wave comes out, and states go from frame to frame."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import edgekit
from edgekit import native
from edgekit.bundle import file_table, sealed
from edgekit.cache import Cache
from edgekit.errors import DataError, IntegrityError, UsageError
from edgekit.flow import run_flow
from edgekit.formats import read_json, write_json
from edgekit.metrics import METRICS
from edgekit.parity import golden
from edgekit.parity.conditions import compare_all
from edgekit.parity.runners import kind_of, open_side
from edgekit.stages.reference import GOLDEN_RUNS
from tests.speech_project import SAMPLES, SPLITS, make_speech_project

FRAMES = 53 + 3  # of a wave, and the three that the masks come late
needs_native = pytest.mark.skipif(not native.available(), reason="the native engine is not installed: pip install ./native")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """Built for the host; one frame is one call of ONNX Runtime."""
    root = make_speech_project(tmp_path_factory.mktemp("speech") / "hush")
    with contextlib.chdir(root):
        edgekit.build("hush.yaml", out=root / "build")
    return root


@pytest.fixture(scope="module")
def built_native(project) -> Path:
    """The bundle of the native engine, which takes the wave and gives the wave."""
    with contextlib.chdir(project):
        edgekit.build("hush.yaml", ["name=own", "target=native_cpu"], out=project / "build")
    return project / "build/own"


@pytest.fixture
def here(project, monkeypatch) -> Path:
    monkeypatch.chdir(project)
    return project


def stage(project: Path, name: str, recipe: str = "hush") -> Path:
    with contextlib.chdir(project), Cache(Path(".edgekit")) as cache:
        return project / cache.find(cache.recall(recipe)["stages"][name]["key"]).out


# --------------------------------------------------------------------------- the pipeline


def test_reference_keeps_waves_and_the_states_of_the_first_frames_only(project):
    out = stage(project, "reference")
    told, tensors, predictions = read_json(out / "reference.json"), load_file(out / "golden.safetensors"), load_file(out / "predictions.safetensors")
    assert told["task"] == "speech" and told["primary"] == "speech" and predictions["label/speech"].shape == (SPLITS["test"], SAMPLES)
    assert all("speech" not in clip["labels"] for clip in told["golden"]), "a wave is no line of JSON"
    states = {key: value for key, value in tensors.items() if "/state/" in key}
    assert states and all(len(value) == GOLDEN_RUNS < FRAMES for value in states.values())
    flow = read_json(project / "build/hush/flow.json")
    clip = next(one["id"] for one in told["golden"] if one["derived_from"] is None)
    with contextlib.chdir(project), open_side("hush.yaml") as side:
        said = run_flow(flow, side.sessions, {"wave": tensors[f"{clip}/input/wave"]})["speech"]
    np.testing.assert_allclose(said, tensors[f"{clip}/output/speech"], atol=1e-5)


def test_verify_scores_every_clip_and_what_went_in(project):
    report = read_json(project / "build/hush/report.json")
    predictions, outputs = load_file(stage(project, "reference") / "predictions.safetensors"), load_file(stage(project, "verify") / "outputs.safetensors")
    clean, score = np.float64(predictions["label/speech"]), METRICS["si_sdr"].per_clip
    assert report["lead"] == "si_sdr" and set(report["metrics"]["float"]) == {"si_sdr"}, "0.1 s is too short for STOI"
    np.testing.assert_allclose(report["predictions"]["artifact"], score(clean, np.float64(outputs["speech"])))
    np.testing.assert_allclose(report["predictions"]["float"], score(clean, np.float64(predictions["original/speech"])))
    assert report["input"]["metrics"]["si_sdr"] == pytest.approx(np.mean(report["predictions"]["label"]))
    assert np.ptp(np.sort(report["predictions"]["label"]).reshape(3, 2), axis=1).max() < 1, "mixed at 0, 5 and 10 dB"
    gain = report["input"]["gain"]["artifact"]["si_sdr"]
    assert gain["value"] == pytest.approx(report["metrics"]["artifact"]["si_sdr"] - report["input"]["metrics"]["si_sdr"]) and gain["low"] <= gain["value"] <= gain["high"]
    assert {s["tag"] for s in report["slices"]} == {"snr_db", "noise"}


def test_the_self_check_of_a_step_goes_through_mask_and_states(project):
    [ports] = read_json(project / "build/hush/report.json")["self_check"].values()
    assert {"mask", "enc0_out", "h0_rr_out", "skip1_out"} <= set(ports) and all(port["float_max_abs"] <= port["float_limit"] for port in ports.values())
    assert ports["mask"]["int8_sqnr_db"] > ports["mask"]["cost_sqnr_db"]


@needs_native
def test_the_self_check_of_a_whole_flow_compares_waves(built_native):
    assert read_json(built_native / "report.json")["self_check"].keys() == {"denoiser"}
    [found] = read_json(built_native / "report.json")["self_check"]["denoiser"].values()
    assert found["float_max_abs"] <= 1e-4 and found["int8_sqnr_db"] >= min(30, found["cost_sqnr_db"])
    assert "step" not in str(read_json(built_native / "flow.json")["host_steps"][1:]) and (built_native / "graph_flow.json").is_file()


def test_the_page_draws_one_clip_and_package_draws_it_again_without_a_model(project, tmp_path, monkeypatch):
    text = (project / "build/hush/report.html").read_text()
    assert len(text) < 1_000_000 and text.count("data:image/png;base64,") == 5
    for said in ("Noisy input", "Clean speech", "INT8 − float", "SI-SDR in dB: output over noisy input", "gain"):
        assert said in text
    from edgekit.stages import package, reference, verify

    def never(job):
        raise AssertionError("a model ran")

    shutil.copytree(project, tmp_path / "again")
    monkeypatch.chdir(tmp_path / "again")
    for one in (verify, reference):
        monkeypatch.setattr(one, "run", never)
    monkeypatch.setattr(package, "SEMANTICS", package.SEMANTICS + 1)
    assert edgekit.build("hush.yaml", out=tmp_path / "again/build").ran == ("package",)


def test_the_terminal_and_the_matrix_tell_decibels_with_two_digits(project, capsys):
    from rich.console import Console

    from edgekit import console, matrix

    report = read_json(project / "build/hush/report.json")
    console.show_report(Console(width=160), "hush", report)
    shown = capsys.readouterr().out
    assert "noisy input" in shown and "INT8 - input, 95 %" in shown and f"{report['input']['metrics']['si_sdr']:.2f} " in shown and "si_sdr, dB" in shown
    gate = {"name": "si_sdr", "metric": "si_sdr", "kind": "max_decrease", "limit": 0.5, "value": 0.1234, "low": 0.0, "high": 0.2, "verdict": "pass", "pass": True}
    console.show_gates(Console(width=160), [gate], report)
    assert "+0.12 [+0.00, +0.20] dB, limit 0.5" in capsys.readouterr().out
    stages = {name: stage(project, name) for name in ("reference", "export", "verify")}
    from edgekit.build import Result

    pair = [Result(name, Path(), None, report, (), stages) for name in ("one", "two")]
    [made] = matrix.make(pair, latency=False)
    assert made["input"] == report["input"]["metrics"] and made["agreement"]["speech"]["max_abs"][1][2] == 0
    console.show_matrices(Console(width=160), [made])
    assert "noisy input" in capsys.readouterr().out
    page = matrix.render([made])
    assert "noisy input" in page and "SI-SDR, dB" in page and "window of 0.1 s" in page


# --------------------------------------------------------------------------- parity


def test_a_recipe_whose_checkpoint_is_packed_is_a_side_and_so_is_the_checkpoint(here):
    assert kind_of(here / "model.safetensors.xz") == "checkpoint"
    found = edgekit.compare("hush.yaml", "model.safetensors.xz@hush.yaml", "random:2", atol=0, rtol=0)
    assert found and found.outputs[0].name == "speech" and found.outputs[0].shape == (SAMPLES,)
    with pytest.raises(UsageError, match="do not say which model"):
        open_side("model.safetensors.xz")


def test_speech_is_scored_clip_by_clip_against_clean_waves(here):
    report = read_json(here / "build/hush/report.json")
    found = edgekit.compare("hush.yaml", "build/hush", "hush.yaml", keep=1)
    assert found, found.reasons
    [metric] = found.metrics
    assert (metric.metric, metric.unit, metric.samples) == ("si_sdr", "dB", SPLITS["test"])
    assert metric.a == pytest.approx(report["metrics"]["float"]["si_sdr"], abs=1e-3) and metric.b == pytest.approx(report["metrics"]["artifact"]["si_sdr"], abs=1e-3)
    assert metric.low <= metric.change <= metric.high
    assert {s.tag for s in found.slices} == {"snr_db", "noise"} and all(s.metric == "si_sdr" for s in found.slices)
    np.testing.assert_allclose(found.kept["*/b/speech"], report["predictions"]["artifact"], atol=1e-3)
    assert "*/label/speech" not in found.kept, "waves of all clips are no curve"


def test_the_page_of_a_comparison_draws_waves_and_spectrograms(here, tmp_path):
    from edgekit.parity import html

    found = edgekit.compare("hush.yaml", "build/hush", "hush.yaml", keep=1)
    html.write(found, tmp_path / "found.html")
    text = (tmp_path / "found.html").read_text()
    assert "Spectrogram of speech" in text and "0 to 8 kHz upwards" in text and "SI-SDR of speech, sample by sample" in text
    assert f"{found.metrics[0].a:.2f} dB".replace("-", "−") in text


def test_one_sample_for_each_value_of_a_tag_is_no_slice(here):
    found = edgekit.compare("hush.yaml", "build/hush", "hush.yaml", samples=2)
    assert [s.tag for s in found.slices] == []


def test_a_stream_of_frames_carries_its_states(here):
    found = edgekit.compare("hush.yaml", "build/hush", "tones", stream=True, samples=1, min_sqnr_db=20)
    assert found, found.reasons
    assert found.stream.steps == FRAMES and [o.name for o in found.outputs] == ["mask"] and found.stream.states_b["enc0_in"] == "enc0_out"
    assert all(check.is_ok for check in found.stream.checks) and found.stream.state_effect_b > 0


def test_conditions_that_change_nothing_of_sound_are_left_out_with_a_sentence(here):
    [found] = compare_all("hush.yaml", ["build/hush"], "hush.yaml", ("no-video", "blur", "noise-0", "mask-audio-10"), samples=2).comparisons
    assert {cell.condition for cell in found.conditions} == {"all", "noise-0", "mask-audio-10"}
    assert "no-video, blur were left out: the models take no video" in found.provenance["open"]
    with pytest.raises(UsageError, match="take no video, so nothing would change") as caught:
        compare_all("hush.yaml", ["build/hush"], "hush.yaml", ("mask-video-10",), samples=2)
    assert "no-audio" in caught.value.hint


def test_verify_checks_the_waves_of_golden_clips(here, tmp_path, monkeypatch):
    found = golden.verify("build/hush")
    waves = [check for check in found.checks if check.kind == "answer"]
    assert found and found.is_ok and {check.tensor for check in waves} == {"speech"} and len(waves) == 2, "cut and stretched clips have no limit of their own"
    shutil.copytree("build/hush", tmp_path / "hush")
    report = read_json(tmp_path / "hush/golden.json")
    report["parity"]["speech"]["max_abs"] = 1e-9
    write_json(tmp_path / "hush/golden.json", report)
    manifest = read_json(tmp_path / "hush/manifest.json")
    (tmp_path / "hush/manifest.json").unlink()
    manifest["files"] = file_table(tmp_path / "hush")
    write_json(tmp_path / "hush/manifest.json", sealed({key: value for key, value in manifest.items() if key != "sha256"}))
    assert any("answer `speech` is off" in said for said in golden.verify(tmp_path / "hush").failures())


# --------------------------------------------------------------------------- the native engine as a side


@needs_native
def test_a_native_bundle_is_a_side_from_wave_to_wave(here, built_native):
    assert golden.verify(built_native).is_ok
    found = edgekit.compare("build/hush", built_native, "hush.yaml")
    assert found.outputs[0].errors.sqnr_db > 20 and len(found.metrics) == 1 and found.b.facts["computed"] == "the artifact itself"
    with open_side(built_native) as side:
        assert not side.has_batch and str(side.inputs["wave"]) == f"float32 [{SAMPLES}]" and side.taps() == ("denoiser/speech",)


@needs_native
def test_a_weight_file_is_a_side_of_its_own(here, built_native):
    file = built_native / "engines/denoiser/model.ekd"
    found = edgekit.compare(built_native, file, "hush.yaml", atol=0, rtol=0)
    assert found and found.b.kind == "native" and found.b.numbers == "int8" and found.b.facts["sample_rate_hz"] == 16000 and len(found.metrics) == 1
    assert edgekit.compare(file, f"{file}@scalar", [{"wave": 0.1 * np.random.default_rng(1).standard_normal(700)}]), "integers are the same on every row"
    with pytest.raises(UsageError, match="nothing is known as `@setp`"):
        open_side(f"{file}@setp")
    with pytest.raises(DataError, match="inputs do not match"), open_side(file) as side:
        side.run({"sound": np.zeros(9, np.float32)})


@needs_native
def test_its_network_alone_streams_as_the_graph_of_one_frame_does(here, built_native):
    """Float against float: the states are inside the engine, and still come out the same after a reset and from a saved one."""
    graph = stage(here, "quantize", "own") / "engines/denoiser/float.onnx"
    file = stage(here, "export", "own") / "float/engines/denoiser/model.ekd"
    found = edgekit.compare(graph, file, "random:2", stream=True, steps=40)
    assert found, found.reasons
    assert [(o.name, o.is_within) for o in found.outputs] == [("mask", True)] and found.stream.states_b == {"state_in": "state_out"}
    assert {(check.side, check.check) for check in found.stream.checks if check.is_ok} == {(side, check) for side in "ab" for check in ("reset", "restore")}
    assert found.stream.state_sqnr_db > 60, "its states do what the graph's do"


@needs_native
def test_an_engine_of_a_native_bundle_is_fed_what_the_flow_feeds_it(here, built_native):
    found = edgekit.compare(f"{built_native}@denoiser", built_native / "engines/denoiser/model.ekd", "tones", stream=True, samples=1, atol=0, rtol=0)
    assert found and found.stream.steps == FRAMES and found.a.facts["engine"] == "denoiser"
    assert edgekit.compare("hush.yaml@denoiser", built_native, "tones", stream=True, samples=1, min_sqnr_db=20)


@needs_native
def test_a_network_that_loses_its_state_is_caught(here, built_native):
    from edgekit.parity.native import NativeStep
    from edgekit.parity.stream import one_graph

    graph = stage(here, "quantize", "own") / "engines/denoiser/float.onnx"
    file = stage(here, "export", "own") / "float/engines/denoiser/model.ekd"

    class Forgets(NativeStep):
        def run(self, feeds, taps=(), sample=None):
            return super().run({**feeds, "state_in": np.zeros_like(feeds["state_in"])}, taps, sample)

    with open_side(file) as whole:
        step = one_graph(whole)
        found = edgekit.compare(graph, Forgets("forgets", step.path, step.denoiser), "random:1", stream=True, steps=30)
    assert not found and "B loses its state" in found.reasons[0]


@needs_native
def test_single_calls_of_an_engine_that_keeps_its_states_are_refused(here, built_native):
    graph = stage(here, "quantize", "own") / "engines/denoiser/float.onnx"
    with pytest.raises(UsageError, match="cannot be set from outside") as caught:
        edgekit.compare(graph, f"{built_native / 'engines/denoiser/model.ekd'}@step", "random:1")
    assert "--stream" in caught.value.hint


@needs_native
def test_a_damaged_weight_file_is_named(here, built_native, tmp_path):
    data = bytearray((built_native / "engines/denoiser/model.ekd").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "model.ekd").write_bytes(data)
    with pytest.raises(IntegrityError, match=r"model\.ekd"):
        open_side(tmp_path / "model.ekd")

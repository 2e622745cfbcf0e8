"""Target × condition: slices and harder data, several sides at once, and what a comparison leaves open."""

from __future__ import annotations

import json

import numpy as np
import pytest

import edgekit
from edgekit.datasets import Clip
from edgekit.errors import CheckpointError, UsageError
from edgekit.metrics import METRICS, paired_bootstrap
from edgekit.parity import conditions, html
from edgekit.parity.conditions import CONDITIONS, changed, chosen, compare_all, sides_of
from edgekit.parity.result import Comparison
from edgekit.parity.runners import open_side
from tests.parity.nets import save_net
from tests.small_project import make_project, random_weights


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The toy, and weights a little off (`near`) and far off (`far`) beside it."""
    from safetensors.torch import save_file

    project = make_project(tmp_path / "car", "tiny")
    monkeypatch.chdir(project.root)
    for name, off in (("near", 1e-3), ("far", 0.2)):
        save_file({key: value * (1 + off) for key, value in random_weights("tiny").items()}, project.root / f"{name}.safetensors")
    return project


def clip(seed: int = 0) -> Clip:
    rng = np.random.default_rng(seed)
    return Clip("c", rng.integers(0, 256, (5, 32, 32, 3)).astype(np.uint8), 25.0, (3000 * rng.standard_normal(8000)).astype(np.int16), 16000, {"o": 0.5}, {"snr_db": 5.0})


# --------------------------------------------------------------------------- changes of clips


def test_every_condition_keeps_shape_type_and_label_and_is_the_same_each_time():
    for name in conditions.GROUPS["all"]:
        was = clip()
        first, again = changed(name, was), changed(name, was)
        assert first.frames.shape == was.frames.shape and first.frames.dtype == np.uint8 and first.audio.dtype == np.int16 and first.labels == was.labels, name
        assert np.array_equal(first.frames, again.frames) and np.array_equal(first.audio, again.audio), name
        assert not (np.array_equal(first.frames, was.frames) and np.array_equal(first.audio, was.audio)), name


def test_a_mask_makes_its_share_of_one_modality_random_between_black_and_white_or_with_its_deviation():
    rng = np.random.default_rng(1)
    video = {"layout": "TCHW", "mean": [10.0, 20.0, 30.0], "std": [50.0, 60.0, 70.0], "clips": 1, "frames_per_clip": 4, "height": 20, "width": 20}
    spec = {"video": {**video, "color": "RGB", "resize": "bilinear_half_pixel", "sampling": "uniform_round_linspace"}, "audio": {"sample_rate_hz": 16000, "samples": 9000, "scale": 32768.0, "normalize": "none", "pad": "right_zero_after_normalize"}}
    inputs = {"video": np.full((4, 3, 20, 20), 99, np.float32), "wave": (7 * rng.standard_normal(9000)).astype(np.float32)}
    for share in (10, 90):
        seen = conditions.masked(f"mask-video-{share}", inputs, spec, "c")
        heard = conditions.masked(f"mask-audio-{share}", inputs, spec, "c")
        assert seen["wave"] is inputs["wave"] and heard["video"] is inputs["video"] and seen["video"].dtype == np.float32
        assert abs((seen["video"] != 99).mean() - share / 100) < 0.02 and abs((heard["wave"] != inputs["wave"]).mean() - share / 100) < 0.02
        random = seen["video"][:, 0][seen["video"][:, 0] != 99]
        assert random.min() >= -10 / 50 and random.max() <= 245 / 50 and random.max() - random.min() > 4.5
        assert abs(heard["wave"][heard["wave"] != inputs["wave"]].std() - 7) < 0.5
        assert np.array_equal(seen["video"], conditions.masked(f"mask-video-{share}", inputs, spec, "c")["video"])
        assert not np.array_equal(seen["video"], conditions.masked(f"mask-video-{share}", inputs, spec, "d")["video"]), "every clip has its own"
    assert conditions.masked("blur", inputs, spec, "c") == inputs, "done to the clip already"


def test_noise_has_the_level_that_it_is_called_after():
    was = clip()
    for name, want in (("noise-10", 10), ("noise-0", 0)):
        noise = changed(name, was).audio.astype(float) - was.audio
        got = 10 * np.log10((was.audio.astype(float) ** 2).mean() / (noise**2).mean())
        assert abs(got - want) < 0.3, name  # 8000 samples of noise: its power varies by 1.6 %


def test_blur_keeps_flat_pictures_and_means_and_takes_detail():
    flat = np.full((2, 40, 30, 3), 77, np.uint8)
    assert np.array_equal(conditions.blurred(flat, 3), flat)
    busy = clip().frames
    soft = conditions.blurred(busy, 2).astype(float)
    assert abs(soft.mean() - busy.mean()) < 3 and np.abs(np.diff(soft, axis=1)).mean() < 0.1 * np.abs(np.diff(busy.astype(float), axis=1)).mean()
    impulse = np.zeros((1, 21, 21, 3), np.uint8)
    impulse[0, 10, 10] = 255
    spread = conditions.blurred(impulse, 1)[0, :, :, 0]
    assert spread[10, 10] == 28 and np.array_equal(spread, spread[::-1]) and np.array_equal(spread, spread.T)  # 255 * (3/9)^2, a triangle each way


def test_names_are_checked():
    assert chosen("all") == ("no-audio", "no-video", "blur", "noise-10", "noise-0") and len(chosen("masking")) == 18 and set(chosen("all,masking")) == set(CONDITIONS)
    assert chosen("blur, no-audio,blur") == ("blur", "no-audio")
    with pytest.raises(UsageError, match="`blurr` is not known") as caught:
        chosen("blurr")
    assert "`blur`" in caught.value.hint


# --------------------------------------------------------------------------- the table


def test_several_sides_are_rows_and_slices_and_conditions_columns(project):
    every = compare_all("car.yaml", ["near.safetensors@car.yaml", "far.safetensors@car.yaml"], "car.yaml", ("no-audio", "no-video"))
    cells = {(cell.target.partition(".")[0], cell.condition, cell.output): cell for cell in every.conditions}
    assert {key[1] for key in cells} == {"all", "snr_db 0", "snr_db 5", "snr_db 10", "snr_db 15", "no-video"} and {key[0] for key in cells} == {"near", "far"}
    for side, found in zip(("near", "far"), every.comparisons, strict=True):
        mae = next(m for m in found.metrics if m.metric == "mae" and m.output == "o")
        cell = cells[side, "all", "o"]
        assert (cell.metric, cell.a, cell.b, cell.low, cell.high, cell.samples) == ("mae", mae.a, mae.b, mae.low, mae.high, 6)
        parts = [cells[side, f"snr_db {n}", "o"] for n in (0, 5, 10, 15)]
        assert sum(part.samples for part in parts) == 6
        scored = [part for part in parts if part.metric]  # of one sample no interval can be taken
        assert {part.samples for part in scored} == {2} and all(part.low <= part.b - part.a <= part.high for part in scored)
    assert cells["far", "all", "o"].max_abs > 10 * cells["near", "all", "o"].max_abs
    assert cells["far", "no-video", "o"].b != cells["far", "all", "o"].b, "the toy looks"
    assert all("no-audio was left out: the models take no audio" in found.provenance["open"] for found in every.comparisons), "and does not listen"
    assert not every and every.exit_code == 3 and [bool(found) for found in every.comparisons] == [found.outputs[0].is_within and found.outputs[1].is_within and found.outputs[2].is_within for found in every.comparisons]


def test_a_slice_has_the_metric_and_interval_of_its_own_samples(project):
    from edgekit.parity.show import writer

    found = edgekit.compare("car.yaml", "far.safetensors@car.yaml", "car.yaml", keep=1, on_sample=writer(project.root / "out"))
    part = next(s for s in found.slices if s.samples == 2 and s.output == "o")
    rows = [line.split(",") for line in project.labels.read_text().splitlines()[1:]]
    ids = [row[0] for row in rows if row[4] == "test" and float(row[5]) == float(part.value)]
    labels = np.array([float(row[1]) for row in rows if row[0] in ids])
    a, b = (np.array([float(np.load(project.root / f"out/{side}/{id}.npz")["o"]) for id in ids]) for side in "ab")
    _, low, high = paired_bootstrap(METRICS["mae"], labels, a, b)
    assert part.metric == "mae" and part.a == pytest.approx(METRICS["mae"](labels, a)) and (part.low, part.high) == pytest.approx((low, high))
    assert found.kept["*/a/o"].shape == found.kept["*/label/o"].shape == (6,)


def test_the_command_line_shows_it_in_the_terminal_in_json_and_as_a_page(project):
    arguments = ("compare", "car.yaml", "near.safetensors@car.yaml", "far.safetensors@car.yaml", "--data", "car.yaml", "--conditions", "no-video")
    ran = project.run(*arguments, "--html", "table.html", "--junit", "table.xml")
    assert ran.exit_code == 3 and "o: mae" in ran.stdout and "no-video" in ran.stdout and "n 6" in ran.stdout, ran.stdout
    page = (project.root / "table.html").read_text()
    assert "video blanked" in page and page.count('class="heat') == 2 * 3 * 6 and len(page) < html.MAX_BYTES
    assert (project.root / "table.xml").read_text().count("<testsuite ") == 2
    document = json.loads(project.run(*arguments, "--json").stdout)
    assert document["verdict"] == "differs" and len(document["comparisons"]) == 2
    assert len(Comparison.from_json(document["comparisons"][1]).conditions) == 3 * 6
    one = project.run("compare", "car.yaml", "near.safetensors@car.yaml", "--data", "car.yaml", "--json")
    assert json.loads(one.stdout)["conditions"][0]["condition"] == "all"


def test_conditions_need_clips(project, tmp_path):
    save_net(tmp_path / "a.onnx")
    with pytest.raises(UsageError, match="is no data set of clips"):
        compare_all(tmp_path / "a.onnx", [tmp_path / "a.onnx"], "random:2", ("blur",))


def test_a_folder_of_bundles_is_its_bundles(tmp_path):
    for name in ("b", "a", "none"):
        (tmp_path / name).mkdir()
    for name in ("a", "b"):
        (tmp_path / name / "manifest.json").write_text("{}")
    assert sides_of(str(tmp_path)) == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert sides_of(str(tmp_path / "a")) == [str(tmp_path / "a")] and sides_of("x.onnx") == ["x.onnx"] and sides_of(str(tmp_path / "none")) == [str(tmp_path / "none")]


# --------------------------------------------------------------------------- weights beside a recipe


def test_weights_run_in_the_model_of_the_recipe_behind_them(project):
    assert edgekit.compare("car.yaml", "model.safetensors@car.yaml", "random:2", atol=0, rtol=0)
    assert not edgekit.compare("car.yaml", "far.safetensors@car.yaml", "random:2")
    import torch

    torch.save({"state_dict": random_weights("tiny")}, project.root / "weights.pt")
    assert edgekit.compare("car.yaml@head", "weights.pt@car.yaml,head", "random:2", atol=0, rtol=0)
    assert open_side("weights.pt@car.yaml").facts()["checkpoint_sha256"] != open_side("car.yaml").facts()["checkpoint_sha256"]
    with pytest.raises(UsageError, match="do not say which model") as caught:
        open_side("weights.pt")
    assert "weights.pt@recipe.yaml" in caught.value.hint
    (project.root / "cut.pt").write_bytes((project.root / "weights.pt").read_bytes()[:200])
    with pytest.raises(CheckpointError):
        open_side("cut.pt@car.yaml")


# --------------------------------------------------------------------------- what is left open


def test_what_was_not_run_is_said(project, tmp_path):
    save_net(tmp_path / "a.onnx")
    said = edgekit.compare(tmp_path / "a.onnx", tmp_path / "a.onnx", "random:2", outputs=["y"]).provenance["open"]
    assert any("random numbers (seed 0)" in text for text in said) and any("no labels" in text for text in said)
    assert "outputs of A that were not compared: z" in said and any("defaults" in text for text in said)
    clips = edgekit.compare("car.yaml", "near.safetensors@car.yaml", "car.yaml").provenance["open"]
    assert any("6 labelled samples" in text for text in clips) and any("--conditions all" in text for text in clips)
    run = compare_all("car.yaml", ["near.safetensors@car.yaml"], "car.yaml", ("no-video",)).comparisons[0].provenance["open"]
    assert not any("--conditions" in text for text in run)

"""Whatever is wrong, one clear error comes of it: its exit code, where and what, and nothing half-written."""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgekit import stages
from tests.small_project import Project, make_project, random_weights, save_random_weights

ROOT = Path(__file__).parents[1]
STAGES = ("load", "prune", "reference", "calibrate", "quantize", "export", "verify", "package")


@pytest.fixture(scope="session")
def pristine(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("pristine") / "car")


@pytest.fixture
def project(pristine, tmp_path, monkeypatch) -> Project:
    shutil.copytree(pristine.root, tmp_path / "car")
    monkeypatch.chdir(tmp_path / "car")
    return Project(tmp_path / "car")


def refused(project: Project, *arguments: str, code: int, says: str, before: str = "load", hint: str = "") -> str:
    """Run a command that must fail, and check everything that is promised of a failure.

    Args:
        says: regular expression for the first line of the message.
        before: the stage that may not have left anything, nor any stage after it.
        hint: text in the hint.
    """
    files = {path for path in project.root.rglob("*") if ".edgekit" not in path.parts}
    result = project.run(*(arguments or ("build", "car.yaml")))
    assert isinstance(result.exception, SystemExit), f"a traceback instead of a message: {result.exception!r}"
    assert result.exit_code == code, result.stderr
    assert result.stdout == "", "errors belong on stderr"
    lines = result.stderr.splitlines()
    assert re.search(says, lines[0]), result.stderr
    assert "Traceback" not in result.stderr and not lines[0].lower().startswith("error")
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("  hint: ")), result.stderr
    assert hint in "".join(lines[1:]), result.stderr

    assert {path for path in project.root.rglob("*") if ".edgekit" not in path.parts} == files, "nothing is left beside the cache"
    assert project.stages() <= set(STAGES[: STAGES.index(before)])
    staging = project.root / ".edgekit/staging"
    assert not staging.exists() or not list(staging.iterdir())
    assert not list(project.root.rglob("*.part"))
    return result.stderr


# the recipe and the command line


@pytest.mark.parametrize(
    ("old", "new", "says", "hint"),
    [
        ("calibrate:", "calibrat:", r"unknown key `calibrat`", "did you mean `calibrate`?"),
        ("clips: 4", "clip: 4", r"unknown key `clip`", "did you mean `clips`?"),
        ("clips: 4", "clips: many", r"`calibrate.clips` must be a whole number, got `many`", ""),
        ("clips: 4", "clips: 0", r"`calibrate.clips` must be at least 1, got 0", ""),
        ("clips: 4", "clips: '4'", r"`calibrate.clips` must be a whole number, got `4`", "remove the quotes"),
        ("max_increase: 2.0", "max_increase: .nan", r"`gates.mae.max_increase` must be a finite number, got NaN", ""),
        ("max_increase: 2.0", "max_decrease: 2.0", r"gate `mae` cannot have `max_decrease`", "max_increase"),
        ("target: jetson_xavier", "target: jetson_xavie", r"there is no `targets/jetson_xavie.yaml`", "jetson_xavier"),
        ("model: tiny", "model: tinny", r"unknown model `tinny`", "did you mean `tiny`?"),
        ("config: tiny", "config: tinny", r"`load.config`: model `tiny` has no configuration `tinny`", "tiny"),
        ("verify: {data: cabin}", "verify: {data: cabing}", r"there is no `calibration/cabing.yaml`", "did you mean `cabin`?"),
        ("name: car", "name: ../car", r"`name` must be text like", ""),
        ("name: car", "name: [car", r"not valid YAML", ""),
        ("gates: {mae", "bias_correction: true\ngates: {mae", r"unknown key `bias_correction`", ""),  # of a feature that is not built
    ],
)
def test_a_mistake_in_the_recipe_is_told_with_its_line(project, old, new, says, hint):
    line = project.replace(project.recipe, old, new)
    message = refused(project, code=2, says=says, hint=hint)
    if "there is no" not in message and "not valid YAML" not in message:
        assert message.startswith(f"car.yaml:{line}: ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("build", "none.yaml"), r"none.yaml: no such file"),
        (("build", "car.yaml", "quantize.observr=minmax"), r"command line `quantize.observr=minmax`: unknown key `observr`"),
        (("build", "car.yaml", "prune={importance: magnitude, macs: 2}"), r"`prune.macs` must be less than 1.0, got 2"),
        (("plan", "cabin"), r"cabin: a folder"),
        (("train", "car.yaml"), r"car.yaml:1: unknown key `name`"),
        (("build", "car.yaml", "--cache", "car.yaml"), r"^car.yaml: not a folder"),
        (("build", "car.yaml", "--out", "car.yaml/x"), r"^car.yaml/x: cannot be made, .*car.yaml is not a folder"),
        (("build", "car.yaml", "--out", ".", "name=cabin"), r"^cabin: exists and is not a bundle of ours"),
        (("new", "car.yaml/x.yaml"), r"^car.yaml/x.yaml: cannot be written"),
        (("cache", "ls", "--cache", "car.yaml"), r"^car.yaml: not a folder"),
        (("inspect", "build/car"), r"build/car: no such bundle"),
        (("inspect", "car.yaml"), r"car.yaml: not a whole zstd file"),
    ],
)
def test_a_mistake_on_the_command_line_is_told(project, arguments, says):
    refused(project, *arguments, code=6 if "zstd" in says else 2, says=says)


def test_a_model_without_anything_to_prune_says_so_before_any_other_stage(project):
    with project.recipe.open("a") as file:
        file.write("prune: {importance: magnitude, macs: 0.7}\n")
    refused(project, code=2, says=r"^car.yaml:7: `prune`: model `tiny` has nothing that can be removed", hint="drop `prune`", before="prune")


# the checkpoint


def test_a_missing_checkpoint_is_told_with_the_line_that_names_it(project):
    project.checkpoint.rename(project.root / "modell.safetensors")
    refused(project, code=2, says=r"^car.yaml:3: `load.checkpoint` does not exist: model.safetensors", hint="did you mean `modell.safetensors`?")


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_a_truncated_safetensors_file_is_refused(project, keep):
    data = project.checkpoint.read_bytes()
    project.checkpoint.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    refused(project, code=2, says=r"model.safetensors: not a whole safetensors file", hint="truncated")


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.999])
def test_a_truncated_torch_file_is_refused(project, keep):
    project.replace(project.recipe, "model.safetensors", "model.pt")
    path = project.root / "model.pt"
    torch.save(random_weights("tiny"), path)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    refused(project, code=2, says=r"model.pt: not a (whole )?torch checkpoint", hint="copy it again")


class Trap:
    """Runs code wherever it is unpickled: it makes the folder `sprung`."""

    def __reduce__(self):
        return os.mkdir, ("sprung",)


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.bin", "model.safetensors"])
@pytest.mark.parametrize("how", ["torch", "torch, whole model", "pickle"])
def test_the_code_in_a_pickled_checkpoint_never_runs(project, name, how):
    project.replace(project.recipe, "model.safetensors", name)
    path = project.root / name
    content = {"state_dict": random_weights("tiny"), "trap": Trap()}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content if how == "torch" else Trap(), path)
    refused(project, code=2, says=re.escape(name))
    assert not (project.root / "sprung").exists()
    # The trap is a live one: a careless loader would have sprung it.
    with path.open("rb") as file:
        pickle.load(file) if how == "pickle" else torch.load(file, weights_only=False)
    assert (project.root / "sprung").is_dir()


def test_another_models_checkpoint_is_recognized(project):
    save_random_weights("mhlt", project.checkpoint)
    refused(project, code=2, says=r"model.safetensors: another model's checkpoint: \d+ of \d+ weights are missing, first `conv.weight`", hint="check `load.model`")


def test_a_checkpoint_of_another_size_is_told_by_the_weights_shape(project):
    state = random_weights("tiny")
    save_file({**state, "fc.weight": torch.zeros(3, 24)}, project.checkpoint)
    refused(project, code=2, says=r"model.safetensors: `fc.weight` is \[3, 24\], this model has \[3, 16\]", hint="load.config")


def test_a_missing_weight_is_named(project):
    state = random_weights("tiny")
    del state["fc.bias"]
    save_file(state, project.checkpoint)
    refused(project, code=2, says=r"model.safetensors: 1 weights? (are|is) missing: fc.bias")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_the_weights_is_named(project, value):
    state = load_file(project.checkpoint)
    state["lstm.weight_hh_l0"][3, 5] = value
    save_file(state, project.checkpoint)
    refused(project, code=2, says=r"model.safetensors: `lstm.weight_hh_l0` has 1 values? that (are|is) NaN or infinite")


# the data


def test_a_missing_clip_is_told_with_the_line_of_its_label(project):
    project.clip("test2").unlink()
    refused(project, code=2, says=r"cabin/labels.csv:16: no media: .*test2.npz")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"labels.csv:1: empty"),
        ("id,o,a,v,split\n", r"labels.csv:1: no clips, only a header"),
        ("id,o,a,v,split\nx,0,0,0,other\n", r"cabin.yaml:3: split `\w+` is empty"),
    ],
)
def test_empty_data_is_refused_before_anything_runs(project, text, says):
    project.labels.write_text(text)
    message = refused(project, code=2, says=says)
    assert "cabin" in message


@pytest.mark.parametrize("empty", ["frames", "audio"])
def test_an_empty_clip_is_refused(project, empty):
    arrays = dict(np.load(project.clip("calibration1")))
    np.savez(project.clip("calibration1"), **{**arrays, empty: arrays[empty][:0]})
    refused(project, code=2, says=r"calibration1.npz: (video|audio) of zero length", before="calibrate")


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ("happy", r"label `o` is not a number: `happy`"),
        ("", r"label `o` is not a number: ``"),
        ("nan", r"label `o` is nan, expected -1 to 1"),
        ("inf", r"label `o` is inf, expected -1 to 1"),
        ("1.5", r"label `o` is 1.5, expected -1 to 1"),
    ],
)
def test_a_wrong_label_is_told_with_its_line(project, label, says):
    rows = project.labels.read_text().splitlines()
    cells = rows[10].split(",")
    rows[10] = ",".join([cells[0], label, *cells[2:]])
    project.labels.write_text("\n".join(rows) + "\n")
    refused(project, code=2, says=rf"cabin/labels.csv:11: {says}")


def test_a_clip_that_is_labelled_twice_is_told_with_both_lines(project):
    with project.labels.open("a") as file:
        file.write("test0,0,0,0,test,0\n")
    refused(project, code=2, says=r"labels.csv:20: id `test0` already stands in line 14")


def test_one_clip_in_two_splits_is_refused(project):
    project.replace(project.labels, "id,o", "path,o")
    project.labels.write_text(re.sub(r"^(\w+\d),", r"\1.npz,", project.labels.read_text(), flags=re.M).replace("test0.npz,", "./calibration0.npz,"))
    refused(project, code=2, says=r"labels.csv:14: media `calibration0.npz` is in split `test` here and in `calibration` in line 10")


@pytest.mark.parametrize("id", ["calibration2", "test3"])
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"audio": np.array([0.1, np.nan, 0.2])}, r"audio holds NaN"),
        ({"audio": np.array([0.1, -np.inf, 0.2])}, r"audio holds NaN or infinity"),
        ({"frames": np.full((4, 8, 8, 3), np.nan, np.float32)}, r"`frames` is float32"),
        ({"fps": np.nan}, r"`fps` must be a positive number, it is nan"),
    ],
)
def test_nan_in_a_clip_is_refused_by_the_file(project, id, changes, says):
    np.savez(project.clip(id), **{**np.load(project.clip(id)), **changes})
    refused(project, code=2, says=rf"{id}.npz: {says}", before="calibrate" if id.startswith("cal") else "reference")


def test_code_in_a_clip_never_runs(project):
    arrays = dict(np.load(project.clip("test1")))
    np.savez(project.clip("test1"), **{**arrays, "frames": np.array([Trap()], object)})
    refused(project, code=2, says=r"test1.npz: `frames` holds Python objects", before="reference", hint="pickles are never loaded")
    assert not (project.root / "sprung").exists()
    np.load(project.clip("test1"), allow_pickle=True)["frames"]
    assert (project.root / "sprung").is_dir()


@pytest.mark.parametrize(("keep", "suffix"), [(0, ".npz"), (0.5, ".npz"), (0.999, ".npz"), (0.5, ".mp4"), (0.5, ".mkv")])
def test_corrupt_media_are_refused_by_the_file(project, keep, suffix):
    path = project.clip("calibration3")
    data = path.read_bytes()  # in a container it is no media at all
    path.unlink()
    path.with_suffix(suffix).write_bytes(data[: int(keep * len(data))])
    refused(project, code=2, says=rf"calibration3{suffix}", before="load" if not keep else "calibrate")


def test_sound_that_is_cut_off_is_refused(project):
    soundfile = pytest.importorskip("soundfile")
    path = project.clip("test4").with_suffix(".wav")
    soundfile.write(path, np.zeros(16000, np.int16), 16000)
    path.write_bytes(path.read_bytes()[:9000])
    refused(project, code=2, says=r"test4.wav: 9000 bytes, its header says 32044", before="reference", hint="cut off")


# the machine


@pytest.fixture
def file_size_limit():
    """Let no file grow beyond so many bytes: to every library, in C too, the disk seems full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("limit", "fails"), [(0, "load"), (1000, "load"), (10_000, "load"), (14_000, "reference"), (200_000, "reference")])
def test_a_full_disk_is_told_whichever_library_meets_it_and_the_build_goes_on_when_there_is_room(project, file_size_limit, limit, fails):
    file_size_limit(limit)
    refused(project, code=5, says=r"^.edgekit.*: no space left on the disk", before=fails, hint="edgekit cache gc")
    file_size_limit(resource.RLIM_INFINITY)
    done = project.run("build", "car.yaml")
    assert done.exit_code == 0, done.stderr


def test_a_disk_that_fills_up_in_any_stage_leaves_nothing_of_it(project, monkeypatch):
    def until_full(run):
        def filled(job):
            run(job)
            with open("/dev/full", "wb", buffering=0) as full:  # a real ENOSPC
                full.write(b"x")

        return filled

    for name in STAGES:
        with monkeypatch.context() as patched:
            patched.setattr(stages.get(name), "run", until_full(stages.get(name).run))
            refused(project, code=5, says=r"no space left on the disk", before=name)
    with monkeypatch.context() as patched:
        patched.setattr("edgekit.build.pack", lambda source, archive: archive.write_bytes(b"half") and until_full(lambda job: None)(None))
        result = project.run("build", "car.yaml")
    assert result.exit_code == 5 and "no space left" in result.stderr
    assert not list((project.root / "build").iterdir()), "neither a folder nor an archive, not even a hidden one"
    assert project.run("build", "car.yaml").exit_code == 0


# the target


@pytest.mark.parametrize("op", ["LSTM", "Conv"])
def test_ops_that_the_target_lacks_end_the_build_before_any_training(project, op, monkeypatch):
    """No stage but load runs: pruning, fine-tuning and the float reference would be hours wasted."""
    from edgekit.stages import prune

    monkeypatch.setattr(prune, "run", lambda job: pytest.fail("prune ran for a target that cannot run the model"))
    (project.root / "targets").mkdir()
    text = (ROOT / "targets/jetson_xavier.yaml").read_text()
    (project.root / "targets/jetson_xavier.yaml").write_text(re.sub(rf"^  {op}:.*?\n(?=  \S|\S)", "", text, flags=re.M | re.S))
    says = rf"targets/jetson_xavier.yaml: TensorRT 8.5.2 cannot run this model: `{op}` in engine `step` .*is not in the table \(`{dict(LSTM='lstm/LSTM', Conv='conv/Conv')[op]}`\)"
    refused(project, code=4, says=says, before="prune", hint="pick another target")
    planned = project.run("plan", "car.yaml", "--json")
    assert planned.exit_code == 4 and len(json.loads(planned.stdout)["target_problems"]) == 1


def test_a_target_that_is_no_target_is_told_with_its_line(project):
    (project.root / "targets").mkdir()
    (project.root / "targets/jetson_xavier.yaml").write_text("name: jetson_xavier\nopset: 17\n")
    refused(project, code=2, says=r"targets/jetson_xavier.yaml:2: unknown key `opset`", hint="did you mean")

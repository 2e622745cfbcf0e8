"""What the loaders of acted emotion have in common with each other and with the models that learn from them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgekit.datasets import DATASETS, SPLITS, acted, cmu_mosei, cmu_mosi, cremad, iemocap, meld, open_dataset, ravdess

DOCS = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
LOADERS = ("ravdess", "cremad", "iemocap", "cmu_mosi", "cmu_mosei", "meld")


@pytest.mark.parametrize(("model", "config", "loader"), [("attsf", "default", ravdess), ("attsf", "iemocap", iemocap), ("avtca", "default", ravdess), ("avtca", "cremad", cremad), ("avtca", "mosei", cmu_mosei), ("bilstm_sa", "default", meld)])
def test_a_set_has_the_classes_of_the_model_that_learns_from_it(model, config, loader):
    from importlib import import_module

    module = import_module(f"edgekit.models.{model}")
    assert module.CONFIGS[config].classes == loader.CLASSES


def test_opening_a_set_imports_neither_numpy_nor_a_decoder():
    code = (
        f"import sys\nfor name in {LOADERS}: __import__(f'edgekit.datasets.{{name}}')\n"
        "print([m for m in ('numpy', 'torch', 'av', 'soundfile', 'scipy', 'h5py', 'cv2') if m in sys.modules])"
    )
    root = Path(acted.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_every_loader_is_listed_under_its_name():
    assert {DATASETS[name] for name in LOADERS} == {f"edgekit.datasets.{name}" for name in LOADERS}


@pytest.mark.parametrize("n", [1, 2, 5, 10, 91])
def test_people_are_divided_into_splits_that_share_nobody(n):
    people = [f"p{i}" for i in range(n)]
    divided = acted.divide_people(people, {"test": 0.2, "calibration": 0.1}, seed=0)
    assert set(divided) == set(SPLITS)
    assert sum(map(len, divided.values())) == n and set().union(*divided.values()) == set(people)
    assert len(divided["test"]) == round(0.2 * n) and len(divided["calibration"]) == round(0.1 * n)
    assert acted.divide_people(people[::-1], {"test": 0.2, "calibration": 0.1}, seed=0) == divided


def test_one_person_in_two_splits_is_refused(tmp_path):
    from edgekit.datasets import read_description
    from edgekit.errors import DataError

    (tmp_path / "x.yaml").write_text("dataset: cremad\nroot: .\nsplits: {test: all}\n")
    description = read_description(tmp_path / "x.yaml")
    takes = [acted.Take(id, "actor 1", {}, {}, Path("v"), Path("a")) for id in ("t1", "t2")]
    acted.refuse_shared({"train": takes, "test": []}, description)
    with pytest.raises(DataError, match=r"x.yaml:2: actor 1 is in split `test` \(t2\) and in `train` \(t1\)"):
        acted.refuse_shared({"train": takes[:1], "test": takes[1:]}, description)


# -- from files to a model's inputs ----------------------------------------------------------------


@pytest.mark.parametrize(("model", "sample_rate_hz", "columns"), [("attsf", 16000, (12, 121)), ("avtca", 22050, (10, 156))])
def test_a_take_of_ravdess_becomes_the_inputs_of_the_published_models(tmp_path, write_container, model, sample_rate_hz, columns):
    from importlib import import_module

    from edgekit.preprocess import preprocess

    for name in ("calibration", "R/Actor_01"):
        (tmp_path / name).mkdir(parents=True)
    video = write_container(tmp_path / "R" / "Actor_01" / "01-01-05-02-02-01-01.mp4", frames=100, rate_hz=48000, seconds=4.0)
    video.with_name(f"{video.stem}.faces.csv").write_text("frame,x,y,width,height\n0,4,2,20,20\n")
    (tmp_path / "calibration" / "r.yaml").write_text(f"dataset: ravdess\nroot: ../R\nsplits: {{test: all}}\nsample_rate_hz: {sample_rate_hz}\n")
    dataset = open_dataset("r", "test", None, tmp_path / "recipes", tmp_path / ".edgekit")
    clip = dataset.clip(dataset.ids[0])
    module = import_module(f"edgekit.models.{model}")
    inputs = preprocess(module.preprocess_spec(module.CONFIGS["default"]), clip)
    assert inputs["video"].shape == (15, 3, 224, 224) and inputs["mfcc"].shape == columns
    # The upper half of the picture is red (conftest); 0.16: mpeg4 and chroma.
    np.testing.assert_allclose(inputs["video"].mean((0, 2, 3)), np.array([220, 30, 30]) / 255, atol=0.16)


# -- documentation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("loader", [ravdess, cremad, iemocap, cmu_mosi, cmu_mosei, meld])
def test_every_key_is_in_the_documentation(loader):
    section = DOCS[DOCS.index("## Published sets of acted") : DOCS.index("## What is refused")]
    assert [key for key in loader.KEYS if f"`{key}`" not in section and f"{key}:" not in section] == []


def test_the_documented_conversion_of_a_csd_is_read_back(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    from edgekit.datasets.folder import Table

    with h5py.File(tmp_path / "CMU_MOSEI_Labels.csd", "w") as file:
        file["All Labels/data/a/features"] = np.array([[1, 0, 0.5, 0, 0, 0, 2], [0, 1, 0, 0, 0, 0, 0]], np.float32)
        file["All Labels/data/a/intervals"] = np.array([[0.25, 1.5], [2, 3]], np.float32)
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```\n(# labels.csv from .*?)```", DOCS, re.DOTALL)[1], {})  # our own documentation
    from_csv = [(s.video, s.clip, s.start_s, s.end_s, s.emotions) for s in cmu_mosei._from_csv(Table(tmp_path, "labels.csv"))]
    from_csd = [(s.video, s.clip, s.start_s, s.end_s, s.emotions) for s in cmu_mosei._from_csd(tmp_path / "CMU_MOSEI_Labels.csd")]
    assert from_csv == from_csd == [("a", "0", 0.25, 1.5, (0, 0.5, 0, 2, 0, 0)), ("a", "1", 2, 3, (1, 0, 0, 0, 0, 0))]

"""CMU-MOSI and CMU-MOSEI: labels, folds, whole videos and clips, and what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest

from edgekit.datasets import Dataset, cmu_mosei, open_dataset
from edgekit.errors import DataError, ToolMissing

SPLITS = ("train", "calibration", "test")
HEADER = "video_id,start,end,sentiment,happy,sad,anger,surprise,disgust,fear"
FOLDS = {"train": "standard_train_fold.txt", "calibration": "standard_valid_fold.txt", "test": "standard_test_fold.txt"}


class Place:
    def __init__(self, path, dataset):
        self.path, self.root, self.dataset = path, path / "CMU", dataset
        (path / "calibration").mkdir()
        (self.root / "Raw").mkdir(parents=True)
        self.yaml("")

    def yaml(self, more):
        text = f"dataset: {self.dataset}\nroot: ../CMU\nsplits: {{train: all, calibration: all, test: all}}\n"
        (self.path / "calibration" / "said.yaml").write_text(text + more)

    def put(self, *names):
        for name in names:
            path = self.root / "Raw" / f"{name}.mp4"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"x")

    def write(self, name, *lines):
        (self.root / name).write_text("\n".join(lines) + "\n")

    def open(self, split="test", limit=None):
        return open_dataset("said", split, limit, self.path / "recipes", self.path / ".edgekit")

    def refused(self, says, split="test"):
        with pytest.raises(DataError) as e:
            self.open(split)
        assert re.search(says, str(e.value)), str(e.value)


# -- CMU-MOSI --------------------------------------------------------------------------------------


@pytest.fixture
def mosi(tmp_path):
    place = Place(tmp_path, "cmu_mosi")
    place.put("a/1", "a/2", "-b_c/10", "d/1")
    mosi_labels(place, "a,1,ANYHOW IT WAS GOOD,2.4,Positive,train", 'a,2,"so, so",-0.8,Negative,train', "-b_c,10,x,0,Neutral,valid", "d,1,x,-3,Negative,test")
    return place


def mosi_labels(place, *rows):
    place.write("label.csv", "video_id,clip_id,text,label,annotation,mode", *rows)


def test_mosi_is_read_as_published(mosi):
    opened = {split: mosi.open(split) for split in SPLITS}
    assert {split: dataset.ids for split, dataset in opened.items()} == {"train": ["a/1", "a/2"], "calibration": ["-b_c/10"], "test": ["d/1"]}
    assert isinstance(opened["test"], Dataset) and not hasattr(opened["test"], "classes")
    assert opened["test"].metrics == ("mae7", "corr", "acc2_non0", "f1_non0", "acc7")
    assert opened["train"]._takes["a/2"].labels == {"score": -0.8}
    mosi.yaml("metrics: [corr]\n")
    assert mosi.open().metrics == ("corr",)


def test_the_metrics_that_a_set_suggests_exist():
    from edgekit.datasets import acted
    from edgekit.metrics import METRICS

    assert set(acted.CLASS_METRICS + acted.SCORE_METRICS) <= set(METRICS)


def test_a_mosi_clip_is_the_whole_file_with_its_text(mosi, write_container):
    write_container(mosi.root / "Raw" / "d" / "1.mp4")
    (mosi.root / "text" / "d").mkdir(parents=True)
    np.save(mosi.root / "text" / "d" / "1.npy", np.ones((50, 768), np.float32))
    mosi_labels(mosi, "d,1,x,-3,Negative,test")
    mosi.yaml("faces: none\ntext: text\n")
    clip = mosi.open().clip("d/1")
    assert clip.frames.shape == (12, 48, 64, 3) and clip.labels == {"score": -3.0} and abs(len(clip.audio) - 8000) < 800
    assert clip.features["text"].shape == (50, 768)
    write_container(mosi.root / "Raw" / "d" / "1.mp4", audio=None)
    with pytest.raises(DataError, match="Raw/d/1.mp4: no audio stream"):
        mosi.open().clip("d/1")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("e,1,x,3.1,Positive,test", "label.csv:2: `label` is 3.1, expected -3 to 3"),
        ("e,1,x,nan,Positive,test", "label.csv:2: `label` is nan"),
        ("e,1,x,,Positive,test", "label.csv:2: `label` is not a number: ``"),
        ("e,1,x,1,Positive,dev", "label.csv:2: `mode` is `dev`, expected train, valid, test"),
        ("e,1,x,1,Positive,test", "label.csv:2: `Raw/e/1.mp4` does not exist"),
        ("../a,1,x,1,Positive,test", "label.csv:2: `video_id` is `../a`, not a name"),
        ("a,../d,x,1,Positive,test", "label.csv:2: `clip_id` is"),
        (",1,x,1,Positive,test", "label.csv:2: `video_id` is ``"),
        ("a,1,x,1,Positive,test\na,1,x,1,Positive,test", "label.csv:3: clip a/1 already stands in line 2"),
        ("a,1,x,1,Positive,train\na,2,x,1,Positive,test", "label.csv:3: video a is in `test` here and in `train` in line 2"),
        ("a,1,x", "label.csv:2: 3 cells, the header has 6"),
    ],
)
def test_a_wrong_mosi_row_is_refused_by_its_line(mosi, row, says):
    mosi_labels(mosi, *row.split("\n"))
    mosi.refused(says)


def test_mosi_without_labels_or_columns_is_refused(mosi):
    mosi.write("label.csv", "video_id,clip_id,text,mode", "a,1,x,test")
    mosi.refused("label.csv:1: column `label` is missing")
    (mosi.root / "label.csv").unlink()
    mosi.refused("label.csv: the labels do not exist")


# -- CMU-MOSEI -------------------------------------------------------------------------------------


@pytest.fixture
def mosei(tmp_path):
    place = Place(tmp_path, "cmu_mosei")
    place.put("a", "b", "c/0", "c/1", "c/2")
    for split, videos in {"train": "a", "calibration": "b", "test": "c"}.items():
        place.write(FOLDS[split], videos)
    place.write("labels.csv", HEADER, "a,0,1.5,1,0,0,0,0,0,2", "a,2,4,1,0,0.66,0,0.33,0,0", "b,0,2,-1,0,0,1,0,0,0", "c,0,1,0,1,0,0,0,0,0", "c,1,2,0,0,0,0,3,0,0", "c,2,3,0,0,0,0,0,0.33,0")
    return place


def test_mosei_takes_the_strongest_emotion_in_the_order_of_its_classes(mosei):
    opened = {split: mosei.open(split) for split in SPLITS}
    assert isinstance(opened["test"], Dataset)
    assert opened["test"].classes == cmu_mosei.CLASSES == ("happy", "sad", "angry", "fearful", "disgust", "surprised")
    labels = {id: cmu_mosei.EMOTIONS[int(take.labels["emotion"])] for dataset in opened.values() for id, take in dataset._takes.items()}
    assert labels == {"a/0": "fear", "a/1": "sad", "b/0": "anger", "c/0": "happy", "c/1": "surprise", "c/2": "disgust"}
    assert opened["train"]._takes["a/1"].span_s == (2.0, 4.0) and opened["test"]._takes["c/1"].span_s is None


def test_what_has_no_single_emotion_no_fold_or_no_video_is_counted(mosei):
    text = (mosei.root / "labels.csv").read_text()
    (mosei.root / "labels.csv").write_text(text + "c,5,6,0,0,0,0,0,0,0\nc,6,7,0,1,0,1,0,0,0\nc,7,8,0,1,0,0,0,0,0\nz,0,1,0,1,0,0,0,0,0\n")
    dataset = mosei.open()
    assert dataset.ids == ["c/0", "c/1", "c/2"]
    assert dataset.counts == {
        "sentences without an emotion, left out": 1,
        "sentences with two strongest emotions, left out": 1,
        "sentences of videos in no fold, left out": 1,
        "sentences without a video, left out": 1,
    }
    assert cmu_mosei.strongest((0.0,) * 6) is None and cmu_mosei.strongest((0, 1, 0, 2, 0, 0)) == 3


def test_a_sentence_is_cut_from_its_video_with_its_sound(mosei, write_container):
    write_container(mosei.root / "Raw" / "a.mp4", frames=100, seconds=4.0, rate_hz=48000)
    mosei.yaml("faces: none\n")
    clip = mosei.open("train").clip("a/1")
    assert clip.frames.shape == (50, 48, 64, 3) and len(clip.audio) == 32000
    np.testing.assert_allclose(clip.frames[0, -5, 5], [0, 0, 16 * 50 % 251], atol=25)
    mosei.yaml("size: 16\n")
    boxes = mosei.root / "Raw" / "a_1.faces.csv"  # of this sentence, frames from its first
    boxes.write_text("frame,x,y,width,height\n0,2,2,20,20\n")
    assert mosei.open("train").clip("a/1").frames.shape == (50, 16, 16, 3)


def test_a_clip_of_another_length_than_its_label_is_refused(mosei, write_container):
    write_container(mosei.root / "Raw" / "c" / "0.mp4", frames=25, seconds=1.0)
    write_container(mosei.root / "Raw" / "c" / "1.mp4", frames=75, seconds=3.0)
    mosei.yaml("faces: none\n")
    assert mosei.open().clip("c/0").frames.shape[0] == 25
    with pytest.raises(DataError, match=r"c/1.mp4: 3.00 s, the label of c/1 is of 1.00 s\n  hint: are the clips of this video numbered in another order"):
        mosei.open().clip("c/1")


def test_a_column_may_number_the_clips(mosei):
    mosei.put("c/7")
    mosei.write("labels.csv", HEADER + ",clip_id", "c,0,1,0,1,0,0,0,0,0,7", "a,0,1,0,1,0,0,0,0,0,0")
    assert mosei.open().ids == ["c/7"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("c,2,1,0,1,0,0,0,0,0", "labels.csv:2: c/0 ends at 1 s, before it starts at 2 s"),
        ("c,0,1,0,4,0,0,0,0,0", "labels.csv:2: `happy` is 4, expected 0 to 3"),
        ("c,0,1,-4,1,0,0,0,0,0", "labels.csv:2: `sentiment` is -4"),
        ("c,0,inf,0,1,0,0,0,0,0", "labels.csv:2: `end` is inf"),
        ("c,0,1,0,1,0,x,0,0,0", "labels.csv:2: `anger` is not a number: `x`"),
        ("../c,0,1,0,1,0,0,0,0,0", "labels.csv:2: `video_id` is `../c`"),
        ("c,0,1", "labels.csv:2: 3 cells"),
    ],
)
def test_a_wrong_mosei_row_is_refused_by_its_line(mosei, row, says):
    mosei.write("labels.csv", HEADER, row)
    mosei.refused(says)


def test_folds_must_not_share_a_video(mosei):
    mosei.write(FOLDS["test"], "c", "", "a")
    mosei.refused(r"standard_test_fold.txt:3: video a is in split `test` here and in `train` in .*standard_train_fold.txt:1")
    mosei.write(FOLDS["test"], "'c',")
    mosei.refused(r"standard_test_fold.txt:1: `'c',` is not a video")
    (mosei.root / FOLDS["test"]).unlink()
    mosei.refused("list of split `test`: `standard_test_fold.txt` does not exist")
    mosei.yaml("folds: {train: standard_train_fold.txt}\n")
    mosei.refused("said.yaml:4: `folds` names no list for split `calibration`")


def test_mosei_without_labels_or_videos_is_refused(mosei):
    for path in list((mosei.root / "Raw").glob("**/*.mp4")):
        path.unlink()
    mosei.refused("split `test` is empty: found 0 takes in all splits, and 6 sentences without a video, left out")
    (mosei.root / "labels.csv").unlink()
    mosei.refused("CMU_MOSEI_Labels.csd: no such file")
    mosei.yaml("label_mode: multilabel\n")
    mosei.refused("said.yaml:4: `label_mode` cannot be `multilabel`")


def test_without_h5py_a_csd_says_what_to_do(mosei, monkeypatch):
    import sys

    mosei.write("CMU_MOSEI_Labels.csd", "x")
    mosei.yaml("labels: CMU_MOSEI_Labels.csd\n")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ToolMissing, match=r"h5py is not installed\n  hint: pip install 'edgekit\[mosei\]', or make labels.csv") as e:
        mosei.open()
    assert e.value.exit_code == 5


@pytest.fixture
def csd(mosei):
    h5py = pytest.importorskip("h5py")
    (mosei.root / "labels.csv").unlink()

    def write(change=None):
        with h5py.File(mosei.root / "CMU_MOSEI_Labels.csd", "w") as file:
            data = file.create_group("All Labels/data")
            for video, rows in {"a": [[0, 0, 0, 0, 1, 0, 2]], "b": [[0, 1, 0, 0, 0, 0, 0]], "c": [[0, 0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]]}.items():
                data[f"{video}/features"] = np.array(rows, np.float32)
                data[f"{video}/intervals"] = np.array([[i, i + 1] for i in range(len(rows))], np.float32)
            if change:
                change(file, data)
        return mosei

    return write


def test_a_csd_gives_the_same_as_a_csv(csd):
    mosei = csd()
    assert {split: [(id, take.labels["emotion"]) for id, take in mosei.open(split)._takes.items()] for split in SPLITS} == {"train": [("a/0", 3.0)], "calibration": [("b/0", 0.0)], "test": [("c/0", 1.0)]}
    assert mosei.open().counts == {"sentences without an emotion, left out": 1}


def _other_shape(file, data):
    del data["c/features"]
    data["c/features"] = np.zeros((2, 6), np.float32)


def _fewer(file, data):
    del data["c/intervals"]
    data["c/intervals"] = np.array([[0, 1]], np.float32)


def _nan(file, data):
    data["c/features"][0, 1] = np.nan


def _high(file, data):
    data["c/features"][0, 1] = 5


def _backward(file, data):
    data["c/intervals"][0] = [2, 1]


def _external(file, data):
    import h5py

    del data["c/features"]
    data["c/features"] = h5py.ExternalLink("/etc/passwd", "/x")


def _soft(file, data):
    import h5py

    del data["c"]
    data["c"] = h5py.SoftLink("/All Labels/data/a")


def _elsewhere(file, data):
    del data["c/features"]
    data.create_dataset("c/features", shape=(2, 7), dtype="f4", external=[("/etc/passwd", 0, 56)])


def _renamed(file, data):
    file.move("All Labels", "Labels")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_other_shape, r"`c/features` is not an array of numbers \[rows, 7\]"),
        (_fewer, "video c has 1 intervals and 2 labels"),
        (_nan, "`c/features` holds NaN"),
        (_high, "video c, row 0: emotions 5, 1, 0"),
        (_backward, "video c, row 0: from 2 s to 1 s"),
        (_external, "no `features` in it"),
        (_soft, "no `c` in it"),
        (_elsewhere, "`c/features` is not an array of numbers .* in the file itself"),
        (_renamed, "no `All Labels` in it"),
    ],
)
def test_a_wrong_csd_is_refused(csd, change, says):
    csd(change).refused(f"CMU_MOSEI_Labels.csd: {says}")


def test_a_damaged_csd_is_refused(csd):
    mosei = csd()
    path = mosei.root / "CMU_MOSEI_Labels.csd"
    path.write_bytes(path.read_bytes()[:300])
    mosei.refused("CMU_MOSEI_Labels.csd: not an HDF5 file that can be read")

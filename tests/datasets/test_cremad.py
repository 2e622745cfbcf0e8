"""CREMA-D: names, pairs, splits by actor, and what is refused. The layout is the real one."""

from __future__ import annotations

import re
import wave

import numpy as np
import pytest

from edgekit.datasets import Dataset, cremad, open_dataset
from edgekit.errors import DataError

YAML = "dataset: cremad\nroot: ../CREMA-D\nsplits: {train: all, calibration: all, test: all}\n"
SPLITS = ("train", "calibration", "test")


class Place:
    def __init__(self, path):
        self.path, self.root = path, path / "CREMA-D"
        for folder in ("calibration", "CREMA-D/AudioWAV", "CREMA-D/VideoFlash"):
            (path / folder).mkdir(parents=True)
        self.yaml("")

    def yaml(self, more):
        (self.path / "calibration" / "acted.yaml").write_text(YAML + more)

    def put(self, *stems, content=b"x"):
        for stem in stems:
            (self.root / "AudioWAV" / f"{stem}.wav").write_bytes(content)
            (self.root / "VideoFlash" / f"{stem}.flv").write_bytes(content)

    def everybody(self, *codes):
        self.put(*(f"{actor}_{code}" for actor in cremad.ACTORS for code in codes or ("DFA_ANG_XX",)))

    def open(self, split="test", limit=None):
        return open_dataset("acted", split, limit, self.path / "recipes", self.path / ".edgekit")

    def refused(self, says, split="test"):
        with pytest.raises(DataError) as e:
            self.open(split)
        assert re.search(says, str(e.value)), str(e.value)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_takes_are_divided_by_actor_whoever_is_there(place):
    place.everybody("DFA_ANG_XX", "IEO_SAD_HI")
    actors = {}
    for split in SPLITS:
        dataset = place.open(split)
        assert isinstance(dataset, Dataset) and dataset.metrics == ("wa", "ua", "f1_macro") and dataset.counts == {}
        actors[split] = {id[:4] for id in dataset.ids}
        assert len(dataset.ids) == 2 * len(actors[split])
    assert [len(actors[split]) for split in SPLITS] == [64, 9, 18]
    assert len(set().union(*actors.values())) == 91
    gone = sorted(actors["train"])[0]
    for path in place.root.glob(f"*/{gone}_*"):
        path.unlink()
    assert {id[:4] for id in place.open().ids} == actors["test"], "who is missing moves nobody"
    place.yaml("seed: 3\n")
    assert {id[:4] for id in place.open().ids} != actors["test"]


def test_labels_follow_the_order_of_the_classes(place, write_container):
    assert cremad.CLASSES == ("neutral", "happy", "sad", "angry", "fearful", "disgust")
    place.yaml("faces: none\nwindow_s: null\n")
    place.everybody()
    actor = place.open().ids[0][:4]
    seen = {}
    for emotion in cremad.EMOTIONS:
        stem = f"{actor}_TIE_{emotion}_LO"
        write_container(place.root / "VideoFlash" / f"{stem}.flv", video="flv", audio="libmp3lame")
        _wav(place.root / "AudioWAV" / f"{stem}.wav")
        clip = place.open().clip(stem)
        seen[emotion] = clip.labels["emotion"]
        assert clip.frames.shape == (12, 48, 64, 3) and clip.fps == 25 and len(clip.audio) == 800
        assert clip.tags == {"actor": actor, "sentence": "TIE", "level": "low"}
    assert [cremad.CLASSES[int(seen[e])] for e in ("NEU", "HAP", "SAD", "ANG", "FEA", "DIS")] == list(cremad.CLASSES)


def _wav(path):
    with wave.open(str(path), "wb") as w:
        w.setnchannels(1)
        w.setsampwidth(2)
        w.setframerate(16000)
        w.writeframes(np.arange(800, dtype="<i2").tobytes())


def test_a_level_of_one_letter_is_the_unspecified_one(place):
    place.everybody()
    actor = place.open().ids[0][:4]
    (place.root / "AudioWAV" / f"{actor}_IOM_DIS_X.wav").write_bytes(b"x")
    (place.root / "VideoFlash" / f"{actor}_IOM_DIS_XX.mp4").write_bytes(b"x")
    assert f"{actor}_IOM_DIS_XX" in place.open().ids
    (place.root / "AudioWAV" / f"{actor}_IOM_DIS_XX.wav").write_bytes(b"x")
    place.refused("is the same take")


def test_half_a_pair_is_left_out_and_counted(place):
    place.everybody()
    first, second, third = place.open().ids[:3]
    (place.root / "VideoFlash" / f"{first}.flv").unlink()
    (place.root / "AudioWAV" / f"{second}.wav").unlink()
    (place.root / "AudioWAV" / "readme.wav").write_bytes(b"x")
    (place.root / "VideoFlash" / f"{third}.faces.csv").write_text("")
    dataset = place.open()
    assert first not in dataset.ids and second not in dataset.ids
    assert dataset.counts == {"sounds without video, left out": 1, "videos without sound, left out": 1, "files of other names, left out": 1}


@pytest.mark.parametrize(
    ("stem", "says"),
    [
        ("1092_DFA_ANG_XX", "actor `1092` in the name, CREMA-D has 1001 to 1091"),
        ("1001_DFB_ANG_XX", "sentence `DFB`"),
        ("1001_DFA_CAL_XX", "emotion `CAL`"),
        ("1001_DFA_ANG_ZZ", "level `ZZ`"),
    ],
)
def test_a_code_that_is_not_of_this_set_is_refused_by_its_file(place, stem, says):
    place.everybody()
    place.put(stem)
    place.refused(rf"{stem}.wav: {says}")


def test_folders_that_are_missing_or_empty_are_refused(place):
    place.refused("acted.yaml:2: split `test` is empty: found 0 takes")
    (place.root / "VideoFlash").rmdir()
    place.refused("VideoFlash: cannot be read")
    with pytest.raises(DataError, match="name is not like"):
        cremad.parse("1001-DFA-ANG-XX", "x")


def test_a_link_out_of_the_folder_is_refused(place):
    place.everybody()
    (place.path / "outside.flv").write_bytes(b"x")
    path = place.root / "VideoFlash" / "1001_DFA_ANG_XX.flv"
    path.unlink()
    path.symlink_to(place.path / "outside.flv")
    place.refused("`VideoFlash/1001_DFA_ANG_XX.flv` is reached by a link that leaves the folder")

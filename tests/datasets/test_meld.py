"""MELD: lists, clips and what is left out, in the published layout."""

from __future__ import annotations

import re
import struct

import pytest

from edgekit.datasets import Dataset, meld, open_dataset
from edgekit.errors import DataError

SPLITS = ("train", "calibration", "test")
HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"
FOLDER = {part.name: (part.csv, part.folder) for part in meld.PARTS}


def box(kind: bytes, size: int = 8) -> bytes:
    return struct.pack(">I4s", size, kind) + bytes(size - 8)


WHOLE = box(b"ftyp", 24) + box(b"moov", 40) + box(b"mdat", 16)


class Place:
    def __init__(self, path):
        self.path, self.root = path, path / "MELD.Raw"
        (path / "calibration").mkdir()
        self.root.mkdir()
        self.rows = {name: [] for name in FOLDER}
        self.yaml("")

    def yaml(self, more):
        text = "dataset: meld\nroot: ../MELD.Raw\nsplits: {train: all, calibration: all, test: all}\n"
        (self.path / "calibration" / "said.yaml").write_text(text + more)

    def say(self, part, dialogue, utterance, emotion, content=WHOLE, text='"Oh, hi."'):
        """One row, and its clip."""
        csv, folder = FOLDER[part]
        self.rows[part].append(f'{len(self.rows[part]) + 1},{text},Ross,{emotion},neutral,{dialogue},{utterance},4,7,"00:20:57,256","00:21:00,049"')
        (self.root / csv).write_bytes("\n".join([HEADER, *self.rows[part], ""]).encode("utf-8", "surrogateescape"))
        if content is not None:
            (self.root / folder).mkdir(exist_ok=True)
            (self.root / folder / f"dia{dialogue}_utt{utterance}.mp4").write_bytes(content)

    def open(self, split="test", limit=None):
        return open_dataset("said", split, limit, self.path / "recipes", self.path / ".edgekit")

    def refused(self, says, split="test"):
        with pytest.raises(DataError) as e:
            self.open(split)
        assert re.search(says, str(e.value)), str(e.value)


@pytest.fixture
def said(tmp_path):
    place = Place(tmp_path)
    for part in FOLDER:
        for dialogue in range(4):
            for utterance, emotion in enumerate(("joy", "sadness", "neutral", "surprise", "anger")):
                place.say(part, dialogue, utterance, emotion)
    return place


def test_it_is_read_as_published(said):
    (said.root / "train_splits" / "._dia0_utt0.mp4").write_bytes(b"x")
    (said.root / "output_repeated_splits_test" / "final_videos_testdia0_utt0.mp4").write_bytes(b"x")
    opened = {split: said.open(split) for split in SPLITS}
    assert opened["test"].ids[:3] == ["test/dia0_utt0", "test/dia0_utt1", "test/dia0_utt3"] and all(len(d.ids) == 12 for d in opened.values())
    assert isinstance(opened["test"], Dataset) and opened["test"].classes == ("sad", "happy", "surprise")
    takes = opened["train"]._takes
    assert [takes[f"train/dia1_utt{u}"].labels["emotion"] for u in (1, 0, 3)] == [0.0, 1.0, 2.0]
    assert takes["train/dia1_utt3"].tags == {"speaker": "Ross", "part": "train"} and takes["train/dia1_utt3"].person == "dialogue train/1"
    assert opened["calibration"].counts == {"utterances of other emotions, left out": 24}
    assert opened["test"].metrics == ("wa", "ua", "f1_macro", "f1_weighted")


def test_clips_that_are_missing_or_damaged_are_left_out_and_counted(said):
    said.say("test", 9, 0, "joy", content=None)
    said.say("test", 9, 1, "joy", content=box(b"ftyp", 24) + box(b"mdat", 16))
    said.say("test", 9, 2, "joy", content=WHOLE[:-1])
    said.say("test", 9, 3, "joy", content=b"")
    said.say("test", 9, 4, "joy", content=b"not an MP4 of any sort")
    test = said.open()
    assert len(test.ids) == 12
    assert test.counts == {"utterances of other emotions, left out": 24, "utterances without a clip, left out": 1, "utterances with a damaged clip, left out": 4}


@pytest.mark.parametrize(
    ("content", "whole"),
    [
        (WHOLE, True),
        (box(b"moov", 16), True),
        (box(b"moov", 16) + struct.pack(">I4s", 0, b"mdat") + bytes(30), True),  # a last box without a size
        (struct.pack(">I4sQ", 1, b"mdat", 40) + bytes(24) + box(b"moov", 16), True),  # a size of 64 bits
        (struct.pack(">I4sQ", 1, b"mdat", 4) + bytes(24), False),
        (box(b"moov", 16) + b"abc", False),
        (box(b"moov", 16) + struct.pack(">I4s", 4, b"free"), False),  # smaller than its own head
    ],
)
def test_a_whole_mp4_is_told_by_its_boxes(tmp_path, content, whole):
    (tmp_path / "a.mp4").write_bytes(content)
    assert meld.is_whole_mp4(tmp_path / "a.mp4") is whole


def test_the_papers_split_shuffles_all_parts(said):
    said.yaml("split: paper80_20\n")
    opened = {split: said.open(split).ids for split in SPLITS}
    assert {split: len(ids) for split, ids in opened.items()} == {"train": 26, "calibration": 3, "test": 7}
    assert len(set().union(*opened.values())) == 36 and len({id.split("/")[0] for id in opened["test"]}) > 1
    said.yaml("split: paper80_20\nseed: 1\n")
    assert said.open("test").ids != opened["test"]


def test_bytes_that_are_not_utf8_may_stand_in_a_sentence(said):
    said.say("test", 9, 0, "joy", text="he\udc92s here")
    assert "test/dia9_utt0" in said.open().ids


def test_a_clip_is_the_whole_file_and_no_face(said, write_container):
    write_container(said.root / "output_repeated_splits_test" / "dia0_utt0.mp4")
    clip = said.open().clip("test/dia0_utt0")
    assert clip.frames.shape == (12, 48, 64, 3) and clip.labels == {"emotion": 1.0} and abs(len(clip.audio) - 8000) < 800
    assert meld.is_whole_mp4(said.root / "output_repeated_splits_test" / "dia0_utt0.mp4")


def test_a_clip_becomes_the_inputs_of_the_published_model(said, write_container):
    from edgekit.models import bilstm_sa
    from edgekit.preprocess import preprocess

    write_container(said.root / "output_repeated_splits_test" / "dia0_utt0.mp4", rate_hz=48000, seconds=3.0)
    inputs = preprocess(bilstm_sa.preprocess_spec(bilstm_sa.CONFIGS["default"]), said.open().clip("test/dia0_utt0"))
    assert inputs["video"].shape == (3, 224, 224) and inputs["mfcc"].shape == (40, 128)
    assert bilstm_sa.CONFIGS["default"].classes == meld.CLASSES


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (("0", "0", "joy"), "test_sent_emo.csv:22: dia0_utt0 already stands in line 2"),
        (("9", "0", "bliss"), "test_sent_emo.csv:22: `Emotion` is `bliss`, MELD has sadness, joy"),
        (("x", "0", "joy"), "test_sent_emo.csv:22: `Dialogue_ID` is `x`, expected a whole number"),
        (("9", "../3", "joy"), "test_sent_emo.csv:22: `Utterance_ID` is `../3`"),
    ],
)
def test_a_wrong_row_is_refused_with_its_line(said, row, says):
    said.say("test", *row, content=None)
    said.refused(says)


def test_a_missing_list_is_refused(said):
    (said.root / "dev_sent_emo.csv").unlink()
    said.refused("dev_sent_emo.csv: the labels does not exist|dev_sent_emo.csv: the labels do not exist")
    (said.root / "dev_sent_emo.csv").write_text("a,b\n1,2\n")
    said.refused("dev_sent_emo.csv:1: column `Utterance` is missing")


def test_an_unknown_key_or_split_is_refused(said):
    said.yaml("split: random\n")
    said.refused("said.yaml:4: `split`")

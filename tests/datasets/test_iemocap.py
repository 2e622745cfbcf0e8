"""IEMOCAP: evaluations, sides, sessions, cuts of a dialogue, and what is refused. The layout is the real one."""

from __future__ import annotations

import re
import wave

import numpy as np
import pytest

from edgekit.datasets import Dataset, iemocap, open_dataset
from edgekit.errors import DataError

YAML = "dataset: iemocap\nroot: ../IEMOCAP\nsplits: {train: all, calibration: all, test: all}\n"
SPLITS = ("train", "calibration", "test")
HEADING = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
RATERS = "C-E2:\tNeutral;\t()\nA-E3:\tval 3; act 2; dom  2;\t()\n\n"


def line(utterance, emotion="neu", start=0.4, end=1.2):
    return f"[{start:.4f} - {end:.4f}]\t{utterance}\t{emotion}\t[2.5000, 2.5000, 2.5000]\n"


class Place:
    def __init__(self, path):
        self.path, self.root = path, path / "IEMOCAP"
        (path / "calibration").mkdir()
        self.root.mkdir()
        self.sides = {}
        self.yaml("")

    def yaml(self, more):
        (self.path / "calibration" / "acted.yaml").write_text(YAML + more)

    def dialog(self, name, *lines, left="F"):
        """One dialogue with media that are there but are not media."""
        session = self.root / f"Session{name[4]}"
        evaluation = session / "dialog" / "EmoEvaluation" / f"{name}.txt"
        avi = session / "dialog" / "avi" / "DivX" / f"{name}.avi"
        for path in (evaluation, avi):
            path.parent.mkdir(parents=True, exist_ok=True)
        (evaluation.parent / "Categorical").mkdir(exist_ok=True)
        evaluation.write_text(HEADING + "".join(text + RATERS for text in lines))
        avi.write_bytes(b"x")
        for text in lines:
            wav = session / "sentences" / "wav" / name / f"{text.split()[3]}.wav"
            wav.parent.mkdir(parents=True, exist_ok=True)
            with wave.open(str(wav), "wb") as w:
                w.setnchannels(1)
                w.setsampwidth(2)
                w.setframerate(16000)
                w.writeframes(np.full(12800, 500, "<i2").tobytes())
        self.sides[name] = left
        (self.root / "sides.csv").write_text("dialog,left\n" + "".join(f"{dialog},{side}\n" for dialog, side in self.sides.items()))
        return evaluation

    def sessions(self):
        for session in range(1, 6):
            for dialog in (f"Ses0{session}F_impro0{i}" for i in range(1, 6)):
                self.dialog(dialog, line(f"{dialog}_F000"), line(f"{dialog}_M000", "ang"))

    def open(self, split="test", limit=None):
        return open_dataset("acted", split, limit, self.path / "recipes", self.path / ".edgekit")

    def refused(self, says, split="test"):
        with pytest.raises(DataError) as e:
            self.open(split)
        assert re.search(says, str(e.value)), str(e.value)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_session_5_tests_and_no_dialogue_is_in_two_splits(place):
    place.sessions()
    opened = {split: place.open(split) for split in SPLITS}
    assert all(isinstance(dataset, Dataset) for dataset in opened.values())
    assert opened["test"].classes == ("neutral", "happy", "sad", "angry") and opened["test"].metrics == ("wa", "ua", "f1_macro")
    dialogs = {split: {id.rpartition("_")[0] for id in dataset.ids} for split, dataset in opened.items()}
    assert [len(dialogs[split]) for split in SPLITS] == [18, 2, 5]
    assert len(set().union(*dialogs.values())) == 25
    assert {dialog[:5] for dialog in dialogs["test"]} == {"Ses05"} and "Ses05" not in {dialog[:5] for dialog in dialogs["train"] | dialogs["calibration"]}
    place.yaml("test_session: 2\n")
    assert {id[:5] for id in place.open().ids} == {"Ses02"}


def test_excited_is_happy_and_other_emotions_are_left_out_and_counted(place):
    place.sessions()
    name = "Ses05M_script01_1b"
    place.dialog(name, *(line(f"{name}_M{i:03}", emotion) for i, emotion in enumerate(("neu", "hap", "exc", "sad", "ang", "fru", "xxx", "dis"))))
    dataset = place.open()
    assert [dataset._takes[f"{name}_M{i:03}"].labels["emotion"] for i in range(5)] == [0, 1, 1, 2, 3]
    assert dataset.counts == {"utterances of other emotions, left out": 3}
    assert dataset._takes[f"{name}_M000"].tags == {"actor": "Ses05M", "gender": "male", "session": "5", "speech": "scripted"}


def test_a_clip_is_cut_to_its_time_its_half_and_its_text(place, write_container):
    name = "Ses05F_impro01"
    place.dialog("Ses01F_impro01", line("Ses01F_impro01_F000"))
    place.dialog(name, line(f"{name}_F000"), line(f"{name}_M000", start=1.0, end=2.0), left="M")
    avi = place.root / "Session5" / "dialog" / "avi" / "DivX" / f"{name}.avi"
    write_container(avi, frames=60, width=64, height=48, audio=None)
    place.yaml("size: 16\ntext: text\n")
    vectors = np.arange(50 * 768, dtype=np.float32).reshape(50, 768)
    (place.root / "text").mkdir()
    for id in (f"{name}_F000", f"{name}_M000", "Ses01F_impro01_F000"):
        np.save(place.root / "text" / f"{id}.npy", vectors)
    # The man sits left: his half is columns 0..31. Boxes are of the half, frames from the utterance's first.
    avi.with_name(f"{name}_M000.faces.csv").write_text("frame,x,y,width,height\n0,2,2,20,20\n24,2,26,20,20\n")
    avi.with_name(f"{name}_F000.faces.csv").write_text("frame,x,y,width,height\n0,30,2,2,20\n")
    clip = place.open().clip(f"{name}_M000")
    assert clip.frames.shape == (25, 16, 16, 3) and clip.fps == 25 and len(clip.audio) == 12800
    # 40: mpeg4 and chroma; the lower half of frame i is 16*i % 251 blue, and the last frame here is the 49th
    np.testing.assert_allclose(clip.frames[23].mean((0, 1)), [220, 30, 30], atol=40)
    np.testing.assert_allclose(clip.frames[24].mean((0, 1)), [0, 0, 16 * 49 % 251], atol=40)
    np.testing.assert_array_equal(clip.features["text"], vectors)
    assert place.open().clip(f"{name}_F000").frames.shape == (20, 16, 16, 3)
    before = place.open().digest()
    np.save(place.root / "text" / f"{name}_F000.npy", vectors + 1)
    assert place.open().digest() != before


def test_halves_are_told_by_who_sits_left(place):
    place.sessions()
    place.dialog("Ses05F_impro01", line("Ses05F_impro01_F000"), line("Ses05F_impro01_M000"), left="M")
    takes = place.open()._takes
    assert takes["Ses05F_impro01_F000"].half == "right" and takes["Ses05F_impro01_M000"].half == "left"
    assert takes["Ses05F_impro02_F000"].half == "left" and takes["Ses05F_impro02_M000"].half == "right"


def test_a_half_is_that_half(place, tmp_path):
    av = pytest.importorskip("av")
    name = "Ses05F_impro01"
    place.dialog(name, line(f"{name}_F000"), line(f"{name}_M000"))
    with av.open(str(place.root / "Session5" / "dialog" / "avi" / "DivX" / f"{name}.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        image = np.zeros((48, 64, 3), np.uint8)
        image[:, 32:] = 200
        for _ in range(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    place.yaml("faces: none\n")
    left, right = (place.open().clip(f"{name}_{who}000").frames for who in "FM")
    assert left.shape == right.shape == (20, 48, 32, 3)
    assert left[:, :, 8:24].mean() < 10 and right[:, :, 8:24].mean() > 190


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[6.29 - 8.23]\tSes05F_impro01_F000\tneu\n", "Ses05F_impro01.txt:3: expected `.start - end. utterance"),
        (line("Ses05F_impro01_F000", start=2.0, end=1.0), "Ses05F_impro01.txt:3: Ses05F_impro01_F000 ends at 1 s, before it starts at 2 s"),
        (line("Ses05F_impro02_F000"), "Ses05F_impro01.txt:3: utterance `Ses05F_impro02_F000` is not one of dialogue Ses05F_impro01"),
        (line("Ses05F_impro01_X000"), "Ses05F_impro01.txt:3: utterance `Ses05F_impro01_X000`"),
        (line("Ses05F_impro01_F0/../../x"), "Ses05F_impro01.txt:3: utterance"),
        (line("Ses05F_impro01_F000", "joy"), "Ses05F_impro01.txt:3: emotion `joy`, IEMOCAP has neu, hap"),
        (line("Ses05F_impro01_F000") + line("Ses05F_impro01_F000"), "Ses05F_impro01.txt:4: utterance Ses05F_impro01_F000 already stands in .*:3"),
        (line("Ses05F_impro01_F001"), "Ses05F_impro01.txt:3: `Session5/sentences/wav/Ses05F_impro01/Ses05F_impro01_F001.wav` does not exist"),
    ],
)
def test_a_broken_line_is_refused_by_its_line(place, text, says):
    evaluation = place.dialog("Ses05F_impro01", line("Ses05F_impro01_F000"))
    evaluation.write_text(HEADING + text)
    place.refused(says)


def test_a_missing_video_and_a_wrong_name_are_refused(place):
    evaluation = place.dialog("Ses05F_impro01", line("Ses05F_impro01_F000"))
    (place.root / "Session5" / "dialog" / "avi" / "DivX" / "Ses05F_impro01.avi").unlink()
    place.refused("Ses05F_impro01.txt:3: `Session5/dialog/avi/DivX/Ses05F_impro01.avi` does not exist")
    evaluation.rename(evaluation.with_name("Ses04F_impro01.txt"))
    place.refused("Ses04F_impro01.txt: not the name of a dialogue of session 5")


def test_sides_must_be_known_for_every_dialogue(place):
    place.dialog("Ses05F_impro01", line("Ses05F_impro01_F000"))
    sides = place.root / "sides.csv"
    for text, says in (
        ("dialog,left\nSes05F_impro02,F\n", "sides.csv: dialogue Ses05F_impro01 is missing"),
        ("dialog,left\nSes05F_impro01,L\n", "sides.csv:2: `left` is `L`, expected F or M"),
        ("dialog,left\nSes05F_impro01,F\nSes05F_impro01,M\n", "sides.csv:3: dialogue Ses05F_impro01 is there twice"),
        ("dialog,side\nSes05F_impro01,F\n", "sides.csv:1: column `left` is missing"),
    ):
        sides.write_text(text)
        place.refused(says)
    sides.unlink()
    place.refused("sides.csv: no such file, and the set does not say which half")


def test_an_utterance_that_ends_after_its_video_is_refused(place, write_container):
    place.dialog("Ses05F_impro01", line("Ses05F_impro01_F000", start=1.0, end=4.0))
    write_container(place.root / "Session5" / "dialog" / "avi" / "DivX" / "Ses05F_impro01.avi", frames=30, audio=None)
    place.yaml("faces: none\n")
    with pytest.raises(DataError, match=r"Ses05F_impro01.avi: video has nothing from 1.20 s on, 1.00 to 4.00 s is asked for"):
        place.open().clip("Ses05F_impro01_F000")


def test_an_empty_folder_is_refused(place):
    (place.root / "sides.csv").write_text("dialog,left\nx,F\n")
    place.refused("acted.yaml:2: split `test` is empty: found 0 takes")
    (place.root / "Session1").mkdir()
    place.refused("Session1/dialog/EmoEvaluation: cannot be read")


def test_text_must_be_there_and_be_vectors(place, write_container):
    place.dialog("Ses05F_impro01", line("Ses05F_impro01_F000"))
    write_container(place.root / "Session5" / "dialog" / "avi" / "DivX" / "Ses05F_impro01.avi", frames=40, audio=None)
    place.yaml("faces: none\ntext: text\n")
    place.refused("Ses05F_impro01.txt:3: `text/Ses05F_impro01_F000.npy` does not exist")
    (place.root / "text").mkdir()
    np.save(place.root / "text" / "Ses05F_impro01_F000.npy", np.zeros(768, np.float32))
    with pytest.raises(DataError, match=r"Ses05F_impro01_F000.npy: float32 \[768\], expected finite float32 \[tokens, dim\]"):
        place.open().clip("Ses05F_impro01_F000")
    assert iemocap.CLASS_OF["exc"] == iemocap.CLASS_OF["hap"]

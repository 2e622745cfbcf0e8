"""The layout of CH-SIMS: labels, faces from boxes, sound and noise, and what is refused."""

from __future__ import annotations

import re
import wave

import numpy as np
import pytest

from edgekit.datasets import Dataset, faces, open_dataset
from edgekit.errors import DataError, ToolMissing

HEADER = "video_id,clip_id,text,label,label_T,label_A,label_V,annotation,mode"
YAML = "dataset: chsims\nroot: ../sims\nsize: 16\nsplits: {train: train, calibration: valid, test: test}\n"
BOXES = "frame,x,y,width,height\n" + "".join(f"{i},20,10,20,20\n" for i in range(12))


class Place:
    def __init__(self, path, write_container):
        self.path, self.root, self.write_container = path, path / "sims", write_container
        for name in ("calibration", "recipes"):
            (path / name).mkdir()
        self.root.mkdir()
        self.yaml()
        self.labels("v1,1,你好,0.2,0,-0.4,0.6,Positive,train", 'v1,0002,"a, b",-1,0,-0.8,-1,Negative,valid', "v2,3,x,0,0,0,0,Neutral,test", "v2,4,x,0.5,0,0.5,0.5,Positive,test")
        for id in ("v1/0001", "v1/0002", "v2/0003", "v2/0004"):
            self.video(id)

    def yaml(self, more="", text=YAML):
        (self.path / "calibration" / "sims.yaml").write_text(text + more)

    def labels(self, *rows, header=HEADER):
        (self.root / "label.csv").write_text("\n".join((header, *rows)) + "\n", encoding="utf-8-sig")

    def video(self, id, boxes=BOXES, **changes):
        path = self.root / "Raw" / f"{id}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.write_container(path, **changes)
        if boxes is not None:
            path.with_name(f"{path.stem}.faces.csv").write_text(boxes)
        return path

    def open(self, split="calibration", limit=None):
        return open_dataset("sims", split, limit, self.path / "recipes", self.path / ".edgekit")

    def refused(self, says, split="calibration"):
        with pytest.raises(DataError) as e:
            dataset = self.open(split)
            for id in dataset.ids:
                dataset.clip(id)
        assert re.search(says, str(e.value)), str(e.value)


@pytest.fixture
def place(tmp_path, write_container):
    return Place(tmp_path, write_container)


def test_a_clip_has_its_labels_its_face_and_its_sound(place):
    dataset = place.open()
    assert isinstance(dataset, Dataset) and dataset.ids == ["v1/0002"] and dataset.counts == {}
    clip = dataset.clip("v1/0002")
    assert clip.labels == {"o": -1.0, "a": -0.8, "v": -1.0} and clip.tags == {"face_ok": "yes"}
    assert clip.frames.shape == (12, 16, 16, 3) and clip.frames.dtype == np.uint8 and clip.fps == 25
    # The box of 20 with its margin is 24 pixels about (30, 20): rows 8 to 32 of 48, so two thirds are the red upper half.
    np.testing.assert_allclose(clip.frames[:, :10, :, 0], 220, atol=25)
    np.testing.assert_allclose(clip.frames[:, 12:, :, 0], 0, atol=25)
    assert clip.sample_rate_hz == 16000 and clip.audio.dtype == np.int16 and abs(len(clip.audio) - 8000) < 800
    assert dataset.metrics == ("mae", "f1", "corr")


def test_splits_come_from_the_mode(place):
    assert place.open("train").ids == ["v1/0001"] and place.open("test").ids == ["v2/0003", "v2/0004"]
    assert len(place.open("test", 1).ids) == 1


@pytest.mark.parametrize(
    ("splits", "says"),
    [
        ("{calibration: test}", "yaml:4: split `calibration` cannot be made of `test`, which is held out"),
        ("{train: [train, test]}", "split `train` cannot be made of `test`"),
        ("{calibration: valid, test: [test, valid]}", "`valid` is in `calibration` and in `test`"),
        ("{calibration: validation}", "cannot be made of 'validation'(.|\n)*did you mean `valid`"),
        ("{calibration: 3}", "cannot be made of 3"),
    ],
)
def test_calibration_is_never_the_test(place, splits, says):
    place.yaml(text=YAML.replace("{train: train, calibration: valid, test: test}", splits))
    place.refused(says, "train" if "train" in splits else "calibration")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("v1,2,x,0.2,0,0,0,P", "csv:2: 8 cells, the header has 9"),
        ("v1,2,x,high,0,0,0,P,valid", "csv:2: label `label` is not a number: `high`"),
        ("v1,2,x,0,0,nan,0,P,valid", "csv:2: label `label_A` is nan, expected -1 to 1"),
        ("v1,2,x,0,0,0,1.2,P,valid", "csv:2: label `label_V` is 1.2"),
        ("v1,two,x,0,0,0,0,P,valid", "csv:2: clip_id `two` is not a whole number"),
        ("../v1,2,x,0,0,0,0,P,valid", "csv:2: video_id `../v1` is not the name of a folder"),
        ("..,2,x,0,0,0,0,P,valid", r"csv:2: media `Raw/../0002.mp4` must be a path inside the folder"),
        ("v1,2,x,0,0,0,0,P,valid\nv1,0002,x,0,0,0,0,P,train", "csv:3: clip `v1/0002` already stands in line 2"),
        ("v1,2,x,0,0,0,0,P,dev", "csv:2: mode `dev`, expected train, valid, test"),
        ("v1,9,x,0,0,0,0,P,valid", "csv:2: media `Raw/v1/0009.mp4` do not exist"),
        ("v1,1,x,0,0,0,0,P,train", "split `calibration` is empty"),
    ],
)
def test_a_wrong_row_is_refused_by_line(place, row, says):
    place.labels(*row.split("\n"))
    place.refused(says)


def test_a_missing_column_is_named(place):
    place.labels("v1,2,0,0,0,valid", header="video_id,clip_id,label,label_A,label_v,mode")
    place.refused("csv:1: column `label_V` is missing(.|\n)*did you mean `label_v`")


def test_a_clip_without_a_face_shows_its_middle_and_says_so(place):
    place.video("v1/0002", boxes="frame,x,y,width,height\n")
    dataset = place.open()
    clip = dataset.clip("v1/0002")
    dataset.clip("v1/0002")
    assert clip.tags == {"face_ok": "no"} and dataset.counts == {"clips without a face, their middle is shown": 1}
    np.testing.assert_allclose(clip.frames[:, :7, :, 0], 220, atol=25)  # 48x48 of the middle, halves as they were
    np.testing.assert_allclose(clip.frames[:, 9:, :, 0], 0, atol=25)
    place.yaml("without_face: refuse\n")
    place.refused("0002.mp4: no face in any frame of v1/0002(.|\n)*0002.faces.csv")


def test_frames_without_a_face_are_counted(place):
    place.video("v1/0002", boxes="\n".join(BOXES.splitlines()[:10]) + "\n")
    dataset = place.open()
    dataset.clip("v1/0002")
    assert dataset.counts == {"frames without a face, cut like the others": 3}


def test_a_broken_box_is_refused_by_line(place):
    place.video("v1/0002", boxes=BOXES + "12,1,1,5,5\n")
    place.refused("0002.faces.csv:14: frame 12, the video has 12")


def test_without_boxes_a_detector_is_needed_before_anything_is_decoded(place, monkeypatch):
    def absent():
        raise ToolMissing("no detector")

    monkeypatch.setattr(faces, "_cascade", absent)
    (place.root / "Raw/v1/0002.faces.csv").unlink()
    with pytest.raises(ToolMissing, match="no detector"):
        place.open().digest()
    place.yaml("faces: none\n")
    clip = place.open().clip("v1/0002")
    assert clip.frames.shape == (12, 48, 64, 3) and clip.tags == {} and place.open().digest()


def test_a_clip_without_sound_is_refused_or_silent(place):
    place.video("v1/0002", audio=None)
    place.refused("0002.mp4: no audio stream")
    place.yaml("without_sound: silent\n")
    dataset = place.open()
    clip = dataset.clip("v1/0002")
    assert len(clip.audio) == round(12 / 25 * 16000) and not clip.audio.any()
    assert clip.tags["sound"] == "none" and dataset.counts == {"clips without sound, silent": 1}


def test_a_clip_without_picture_and_a_damaged_one_are_refused(place):
    place.video("v1/0002", video=None)
    place.refused("0002.mp4: no video stream")
    path = place.video("v1/0002")
    path.write_bytes(path.read_bytes()[:900])
    place.refused("0002.mp4: not media that can be decoded")
    path.write_bytes(b"")
    place.refused("label.csv:3: media `Raw/v1/0002.mp4` are an empty file")


def write_noise(root):
    (root / "metadata").mkdir(parents=True)
    rows = ["slice_file_name,fsID,start,end,salience,fold,classID,class"]
    for fold in range(1, 11):
        path = root / "audio" / f"fold{fold}" / f"{fold}-8-0-0.wav"
        path.parent.mkdir(parents=True)
        with wave.open(str(path), "wb") as w:
            w.setnchannels(1)
            w.setsampwidth(2)
            w.setframerate(22050)
            w.writeframes(np.random.default_rng(fold).integers(-9000, 9000, 5000).astype("<i2").tobytes())
        rows.append(f"{path.name},1,0,1,1,{fold},8,siren")
    (root / "metadata" / "UrbanSound8K.csv").write_text("\n".join(rows) + "\n")


def test_noise_is_mixed_in_and_tagged(place):
    clean = place.open()
    write_noise(place.path / "us8k")
    place.yaml("noise: {root: ../us8k, snr_db: [5]}\n")
    noisy = place.open()
    clip, before = noisy.clip("v1/0002"), clean.clip("v1/0002").audio.astype(float)
    assert clip.tags == {"face_ok": "yes", "snr_db": 5.0, "noise": "siren"}
    ratio = 10 * np.log10(np.mean(before**2) / np.mean((clip.audio - before) ** 2))
    assert abs(ratio - 5) < 0.01
    np.testing.assert_array_equal(clip.audio, place.open().clip("v1/0002").audio)
    assert noisy.digest() != clean.digest()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("noise: {root: ../nothing}\n", "yaml:5: `noise.root` is not a folder"),
        ("noise: {snr_db: [5]}\n", "yaml:5: `noise.root` is missing"),
        ("noise: {root: ../sims, snr_db: []}\n", "yaml:5: `noise.snr_db`"),
        ("noise: {root: ../sims}\n", "UrbanSound8K.csv: the labels do not exist"),
        ("sized: 3\n", "yaml:5: unknown key `sized`"),
    ],
)
def test_a_wrong_description_is_refused_by_line(place, more, says):
    place.yaml(more)
    place.refused(says)


def test_the_digest_follows_what_is_read(place):
    before = place.open().digest()
    seen = {before, place.open("test").digest()}
    (place.root / "Raw/v1/0001.faces.csv").write_text("frame,x,y,width,height\n")
    assert place.open().digest() == before  # another split
    place.video("v1/0002", boxes=BOXES.replace("20,20", "21,21"))
    seen.add(place.open().digest())
    place.video("v1/0002", frames=11, boxes=None)
    seen.add(place.open().digest())
    place.yaml("size: 24\n", text=YAML.replace("size: 16\n", ""))
    seen.add(place.open().digest())
    place.labels("v1,2,x,0.1,0,0,0,P,valid")
    seen.add(place.open().digest())
    assert len(seen) == 6


def test_a_video_that_changes_during_a_command_is_refused(place):
    dataset = place.open()
    dataset.digest()
    place.video("v1/0002", frames=11)
    with pytest.raises(DataError, match="0002.mp4: changed since"):
        dataset.clip("v1/0002")


def test_opening_decodes_nothing(place):
    for path in (place.root / "Raw").rglob("*.mp4"):
        path.write_bytes(b"damaged")
    assert place.open().ids == ["v1/0002"]

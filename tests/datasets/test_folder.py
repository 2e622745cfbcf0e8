"""A folder of anybody's own: what is read, what enters the digest, and every mistake by file and line."""

from __future__ import annotations

import os
import re
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from edgekit.datasets import Dataset, folder, metrics_of, open_dataset
from edgekit.errors import DataError

HEADER = "id,o,a,v,split,snr_db,note"
YAML = "dataset: folder\nroot: ../cabin\nsplits: {calibration: calib, test: [test, extra]}\n"


class Place:
    """A project with calibration/cabin.yaml, and the folder cabin/ that it reads."""

    def __init__(self, path, write_npz):
        self.path, self.write_npz, self.root = path, write_npz, path / "cabin"
        for name in ("calibration", "cabin", "recipes"):
            (path / name).mkdir()
        self.yaml(YAML)
        self.labels(
            "c1,0.5,0.25,-1,calib,5,first",
            'c2,-0.5,0,1,calib,,"a note,\nof two lines"',
            "t1,1,1,1,test,-5,x",
            "t2,-1,0.1,0.2,extra,20,",
            "u1,0,0,0,unused,0,",
        )
        for i, id in enumerate(("c1", "c2", "t1", "t2", "u1")):
            write_npz(self.root / f"{id}.npz", seed=i)

    def yaml(self, text):
        (self.path / "calibration" / "cabin.yaml").write_text(text)

    def labels(self, *rows, header=HEADER, name="labels.csv"):
        (self.root / name).write_text("\n".join((header, *rows)) + "\n")

    def open(self, split="calibration", limit=None):
        return open_dataset("cabin", split, limit, self.path / "recipes", self.path / ".edgekit")

    def refused(self, says, split="calibration", limit=None):
        with pytest.raises(DataError) as e:
            self.open(split, limit)
        assert re.search(says, str(e.value)), str(e.value)
        return e.value


@pytest.fixture
def place(tmp_path, write_npz):
    return Place(tmp_path, write_npz)


def test_a_folder_gives_its_clips_with_labels_and_tags(place):
    dataset = place.open()
    assert isinstance(dataset, Dataset)
    assert dataset.name == "cabin" and dataset.ids == ["c1", "c2"] and dataset.metrics == ()
    clip = dataset.clip("c1")
    assert clip.frames.shape == (5, 6, 8, 3) and clip.fps == 25 and clip.audio.dtype == np.int16
    assert clip.sample_rate_hz == 16000
    assert clip.labels == {"o": 0.5, "a": 0.25, "v": -1.0} and clip.tags == {"snr_db": 5.0}
    assert dataset.clip("c2").tags == {}  # an empty cell is no tag
    assert place.open("test").ids == ["t1", "t2"]


def test_opening_a_folder_decodes_nothing(place):
    for file in place.root.glob("*.npz"):
        file.write_bytes(b"damaged")
    dataset = place.open()
    with pytest.raises(DataError, match="c1.npz: not a .npz"):
        dataset.clip("c1")


def test_picture_and_sound_may_come_from_two_files_or_one_container(place, write_container):
    place.labels("c1,0,0,0,calib,5,", "c2,0,0,0,calib,5,")
    with wave.open(str(place.root / "c1.wav"), "wb") as w:
        w.setnchannels(1)
        w.setsampwidth(2)
        w.setframerate(8000)
        w.writeframes(np.arange(800, dtype="<i2").tobytes())
    (place.root / "c2.npz").unlink()
    write_container(place.root / "c2.mp4")
    place.yaml("dataset: folder\nroot: ../cabin\nsplits: {calibration: calib}\n")
    dataset = place.open()
    assert dataset.clip("c1").frames.shape == (5, 6, 8, 3)
    assert len(dataset.clip("c1").audio) == 1600  # resampled from 8 kHz
    assert dataset.clip("c2").frames.shape == (12, 48, 64, 3)


@pytest.mark.parametrize("columns", [("path",), ("video", "audio")])
def test_columns_may_name_the_media(place, columns):
    header = ",".join((*columns, "o", "split"))
    rows = [",".join((*([f"{id}.npz"] * len(columns)), "0.1", split)) for id, split in (("c1", "calib"), ("t1", "test"))]
    place.labels(*rows, header=header)
    dataset = place.open()
    assert dataset.ids == ["c1"] and dataset.clip("c1").labels == {"o": 0.1}


def test_a_public_layout_with_other_column_names_needs_only_the_yaml(place):
    place.write_npz(place.root / "Raw" / "video_0001" / "0003.npz", seed=9)
    place.write_npz(place.root / "Raw" / "video_0001" / "0004.npz", seed=8)
    place.labels(
        "video_0001,3,hello,0.2,-0.4,train",
        "video_0001,4,again,0.3,-0.5,valid",
        header="video_id,clip_id,text,label,label_A,mode",
        name="label.csv",
    )
    place.yaml(
        "dataset: folder\nroot: ../cabin\ncsv: label.csv\nmedia: 'Raw/{video_id}/{clip_id:04}.npz'\n"
        "id: '{video_id}/{clip_id}'\nlabels: {o: label, a: label_A}\nsplits: {calibration: train, test: valid}\ntags: [text]\n"
    )
    dataset = place.open()
    assert dataset.ids == ["video_0001/3"]
    assert dataset.clip("video_0001/3").labels == {"o": 0.2, "a": -0.4}
    assert dataset.clip("video_0001/3").tags == {"text": "hello"}


def test_splits_given_as_numbers_are_drawn_without_overlap_and_stay_when_rows_move(place):
    rows = [f"u{i},0,0,0,,0," for i in range(30)]
    for i in range(30):
        place.write_npz(place.root / f"u{i}.npz", seed=i)
    place.labels(*rows)
    place.yaml("dataset: folder\nroot: ../cabin\nsplits: {train: 10, calibration: 8, test: 6}\n")
    ids = {split: place.open(split).ids for split in ("train", "calibration", "test")}
    assert [len(v) for v in ids.values()] == [10, 8, 6]
    assert len(set().union(*ids.values())) == 24
    place.labels(*reversed(rows))
    assert set(place.open("test").ids) == set(ids["test"])


def test_fewer_clips_are_always_the_same_clips(place):
    rows = [f"u{i},0,0,0,calib,0," for i in range(20)]
    for i in range(20):
        place.write_npz(place.root / f"u{i}.npz", seed=i)
    place.labels(*rows, "t1,0,0,0,test,0,")
    few, more = place.open(limit=5).ids, place.open(limit=9).ids
    assert len(few) == 5 and set(few) < set(more)
    assert more == sorted(more, key=lambda id: int(id[1:]))  # in the order of the file
    place.labels(*reversed(rows), "t1,0,0,0,test,0,")
    assert set(place.open(limit=5).ids) == set(few)
    place.refused("21 clips asked for, split `calibration` of data set `cabin` has 20", limit=21)


# -- digest --------------------------------------------------------------------------------------


def test_the_digest_is_of_the_content_and_not_of_the_place(place, tmp_path):
    before = place.open().digest()
    (tmp_path / "elsewhere").mkdir()
    place.root.rename(tmp_path / "elsewhere" / "moved")
    place.yaml(YAML.replace("../cabin", str(tmp_path / "elsewhere" / "moved")))
    assert place.open().digest() == before


def test_the_digest_changes_with_media_labels_tags_rate_and_choice(place):
    seen = [place.open().digest(), place.open(limit=1).digest(), place.open("test").digest()]
    place.write_npz(place.root / "c1.npz", seed=77)
    seen.append(place.open().digest())
    text = (place.root / "labels.csv").read_text()
    (place.root / "labels.csv").write_text(text.replace("c1,0.5", "c1,0.6"))
    seen.append(place.open().digest())
    (place.root / "labels.csv").write_text(text.replace("calib,5,", "calib,6,"))
    seen.append(place.open().digest())
    place.yaml(YAML + "sample_rate_hz: 8000\n")
    seen.append(place.open().digest())
    assert len(set(seen)) == len(seen)


def test_other_clips_and_columns_do_not_change_the_digest(place):
    before = place.open().digest()
    text = (place.root / "labels.csv").read_text()
    (place.root / "labels.csv").write_text(text.replace("t1,1,1,1", "t1,0,0,0").replace("first", "changed"))
    place.write_npz(place.root / "t1.npz", seed=55)
    assert place.open().digest() == before


def test_media_that_change_during_a_command_are_refused(place):
    dataset = place.open()
    dataset.digest()
    dataset.clip("c1")
    place.write_npz(place.root / "c1.npz", seed=5)
    with pytest.raises(DataError, match="c1.npz: changed since this command began"):
        dataset.clip("c1")


# -- metrics -------------------------------------------------------------------------------------


def test_a_set_may_choose_metrics_and_bring_its_own(place, tmp_path, monkeypatch):
    (tmp_path / "cabin_metrics_a.py").write_text("def worst(labels, predictions):\n    return abs(labels - predictions).max()\n")
    monkeypatch.syspath_prepend(tmp_path)
    place.yaml(YAML + "metrics: [mae, corr]\nmetric: cabin_metrics_a:worst\nmetric_direction: lower\n")
    dataset = place.open("test")
    assert dataset.metrics == ("mae", "corr", "cabin_metrics_a:worst")
    dataset.digest()
    assert "cabin_metrics_a" not in sys.modules  # opening and digesting run none of the user's code
    metrics = metrics_of(dataset)
    assert metrics["cabin_metrics_a:worst"]([0.0, 1.0, 0.5], [0.1, 0.2, 0.5]) == pytest.approx(0.8)

    from edgekit.metrics import paired_bootstrap

    labels = np.linspace(-1, 1, 20)
    delta, low, high = paired_bootstrap(metrics["cabin_metrics_a:worst"], labels, labels, labels + 0.25, n=50)
    assert (delta, low, high) == pytest.approx((0.25, 0.25, 0.25))


def test_the_code_of_an_own_metric_is_in_the_digest_of_test_only(place, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    code = tmp_path / "cabin_metrics_b.py"
    place.yaml(YAML + "metric: cabin_metrics_b:worst\n")
    code.write_text("def worst(labels, predictions):\n    return 0\n")
    test, calibration = place.open("test").digest(), place.open().digest()
    code.write_text("def worst(labels, predictions):\n    return 1000\n")
    assert place.open("test").digest() != test
    assert place.open().digest() == calibration


def test_a_metric_that_does_not_exist_is_refused(place, tmp_path, monkeypatch):
    place.yaml(YAML + "metrics: [mea]\n")
    with pytest.raises(DataError, match="unknown metric `mea`\n.*did you mean `mae`"):
        metrics_of(place.open())
    place.yaml(YAML + "metric: no_such_package_x:f\n")
    with pytest.raises(DataError, match="cannot be imported"):
        metrics_of(place.open())
    with pytest.raises(DataError, match="cannot be imported"):
        place.open("test").digest()
    place.yaml(YAML + "metric: math:no_such\n")
    with pytest.raises(DataError, match="math has no function `no_such`"):
        metrics_of(place.open())


# -- mistakes in the labels ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("c2,high,0,0,calib,0,", r"labels.csv:3: label `o` is not a number: `high`"),
        ("c2,,0,0,calib,0,", r"labels.csv:3: label `o` is not a number: ``"),
        ("c2,1_0,0,0,calib,0,", r"labels.csv:3: label `o` is not a number: `1_0`"),
        ("c2,0,nan,0,calib,0,", r"labels.csv:3: label `a` is nan, expected -1 to 1"),
        ("c2,0,0,inf,calib,0,", r"labels.csv:3: label `v` is inf"),
        ("c2,1.5,0,0,calib,0,", r"labels.csv:3: label `o` is 1.5, expected -1 to 1\n  hint: .*label_range"),
        ("c2,0,0,0,calib,nan,", r"labels.csv:3: tag `snr_db` is nan"),
        ("c1,0,0,0,calib,0,", r"labels.csv:3: id `c1` already stands in line 2"),
        (",0,0,0,calib,0,", r"labels.csv:3: `id` is empty"),
        ("c2,0,0,0,calib", r"labels.csv:3: 5 cells, the header has 7"),
        ("c2,0,0,0,calib,0,x,y", r"labels.csv:3: 8 cells, the header has 7"),
        ('c2,0,0,0,calib,0,"x', r"labels.csv:\d: not valid CSV"),
        ("c9,0,0,0,calib,0,", r"labels.csv:3: no media: .*cabin/c9.npz, .mp4, .mkv, .webm or .png is missing"),
        ("../out,0,0,0,calib,0,", r"labels.csv:3: "),
        ("/etc/passwd,0,0,0,calib,0,", r"labels.csv:3: "),
        ("c\x002,0,0,0,calib,0,", r"labels.csv:\d: "),
    ],
)
def test_a_wrong_row_is_refused_by_its_line(place, row, says):
    place.labels("c1,0,0,0,calib,0,", row, "t1,0,0,0,test,0,")
    place.refused(says)


def test_the_line_is_right_after_a_cell_of_several_lines_and_an_empty_line(place):
    place.labels('c1,0,0,0,calib,0,"two\nlines"', "", "c2,high,0,0,calib,0,")
    place.refused("labels.csv:5: label `o` is not a number")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "labels.csv:1: empty, expected a header"),
        ("\n\n", "labels.csv:1: empty, expected a header"),
        ("id,o,split\n", "labels.csv:1: no clips, only a header"),
        ("id;o;split\nc1;0;calib\n", "not separated by commas"),
        ("id,o,o,split\nc1,0,0,calib\n", "labels.csv:1: column `o` is there twice"),
        ("id,x,split\nc1,0,calib\n", "labels.csv:1: no label column, expected o, a, v"),
        ("name,o,split\nc1,0,calib\n", "labels.csv:1: no column `id`"),
        ("id,o\nc1,0\n", "labels.csv:1: no column `split` or `mode`"),
    ],
)
def test_a_wrong_header_is_refused(place, text, says):
    (place.root / "labels.csv").write_text(text)
    place.refused(says)


def test_labels_that_are_missing_or_not_text_are_refused(place):
    (place.root / "labels.csv").write_bytes("id,o,split\nc1,0,vidéo\n".encode("latin-1"))
    place.refused("labels.csv: not UTF-8 text")
    (place.root / "labels.csv").unlink()
    place.refused("labels.csv: the labels do not exist")


def test_a_byte_order_mark_as_excel_writes_it_is_no_part_of_the_first_column(place):
    text = (place.root / "labels.csv").read_text()
    (place.root / "labels.csv").write_text(text, encoding="utf-8-sig")
    assert place.open().ids == ["c1", "c2"]


# -- mistakes in the media -----------------------------------------------------------------------


def test_a_link_that_leaves_the_folder_is_refused_and_one_inside_is_followed(place, tmp_path):
    outside = place.write_npz(tmp_path / "outside.npz")
    (place.root / "c1.npz").unlink()
    (place.root / "c1.npz").symlink_to(outside)
    place.refused("labels.csv:2: media `c1.npz` are reached by a link that leaves the folder")
    (place.root / "c1.npz").unlink()
    (place.root / "c1.npz").symlink_to("u1.npz")
    assert place.open().clip("c1").frames.shape == (5, 6, 8, 3)
    (tmp_path / "labels.csv").write_text("id,o,split\nc1,0,calib\n")
    (place.root / "labels.csv").unlink()
    (place.root / "labels.csv").symlink_to(tmp_path / "labels.csv")
    place.refused("labels.csv: the labels are reached by a link that leaves the folder")


@pytest.mark.parametrize("path", ["../outside.npz", "sub/../../outside.npz", "/outside.npz", "a\\b.npz", "loop.npz", "c1.npz/x", "sub"])
def test_a_path_that_is_not_a_file_in_the_folder_is_refused(place, tmp_path, path):
    place.write_npz(tmp_path / "outside.npz")
    (place.root / "sub").mkdir()
    (place.root / "loop.npz").symlink_to("loop.npz")
    place.labels(f"{path},0,calib", "t1.npz,0,test", header="path,o,split")
    place.refused(r"labels.csv:2: media `.*` (must be a path inside|cannot be reached|are not a plain file)")


def test_an_empty_media_file_a_fifo_and_two_candidates_are_refused(place):
    (place.root / "c1.npz").write_bytes(b"")
    place.refused("labels.csv:2: media `c1.npz` are an empty file")
    (place.root / "c1.npz").unlink()
    os.mkfifo(place.root / "c1.npz")
    place.refused("labels.csv:2: ")
    (place.root / "c1.npz").unlink()
    place.write_npz(place.root / "c1.npz")
    (place.root / "c1.mp4").write_bytes(b"x")
    place.refused(r"labels.csv:2: which one is meant, c1.npz or c1.mp4\?")
    (place.root / "c1.npz").unlink()
    (place.root / "c1.mp4").rename(place.root / "c1.wav")
    place.refused("labels.csv:2: c1.wav has no picture beside it")


def test_media_without_sound_are_refused_by_their_name(place):
    place.write_npz(place.root / "c1.npz", audio=None)
    with pytest.raises(DataError, match="c1.npz: no audio"):
        place.open().clip("c1")


def test_a_clip_in_two_splits_is_refused(place):
    place.labels("a,c1.npz,0,calib", "b,./c1.npz,0,test", header="id,path,o,split")
    place.refused(r"labels.csv:3: media `c1.npz` is in split `test` here and in `calibration` in line 2")


def test_one_video_may_have_several_sounds_within_a_split(place):
    place.labels("a,c1.npz,c1.npz,0,calib", "b,c1.npz,c2.npz,0,calib", "c,t1.npz,t1.npz,0,test", header="id,video,audio,o,split")
    dataset = place.open()
    assert dataset.ids == ["a", "b"]
    np.testing.assert_array_equal(dataset.clip("a").frames, dataset.clip("b").frames)
    assert (dataset.clip("a").audio != dataset.clip("b").audio).any()


def test_a_speaker_in_two_splits_is_refused_where_the_yaml_asks_for_it(place):
    place.labels("c1,0,calib,anna", "t1,0,test,anna", header="id,o,split,speaker")
    place.open()
    place.yaml(YAML + "group: speaker\n")
    place.refused("labels.csv:3: speaker `anna` is in split `test` here and in `calibration` in line 2")


# -- mistakes in the YAML ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (YAML + "label: {o: o}\n", r"cabin.yaml:4: unknown key `label`\n  hint: did you mean `labels`"),
        (YAML + "sample_rate_hz: fast\n", r"cabin.yaml:4: `sample_rate_hz` must be a whole number"),
        (YAML + "labels: {o: emotion}\n", r"labels.csv:1: column `emotion` is missing \(label `o`\)"),
        (YAML + "tags: [noise]\n", r"labels.csv:1: column `noise` is missing \(tag\)"),
        (YAML + "group: speaker\n", r"labels.csv:1: column `speaker` is missing \(group\)"),
        (YAML + "split: fold\n", r"labels.csv:1: column `fold` is missing \(the split\)"),
        (YAML + "label_range: [1, -1]\n", r"cabin.yaml:4: `label_range` must be \[low, high\], got \[1, -1\]"),
        (YAML + "label_range: [0, 0.3]\n", r"labels.csv:2: label `o` is 0.5, expected 0 to 0.3"),
        (YAML + "media: '{name}.npz'\n", r"cabin.yaml:4: `media`: .*labels.csv has no column `name`"),
        (YAML + "media: '{id!r}.npz'\n", r"cabin.yaml:4: `media`: .*has no column `id!r`"),
        (YAML + "media: '{id:999999999}.npz'\n", r"cabin.yaml:4: `media`: .* is not text with"),
        (YAML + "media: 'x{'\n", r"cabin.yaml:4: `media`: .* is not text with"),
        (YAML + "video: '{id}.npz'\n", r"cabin.yaml:4: `video` is given without `audio`"),
        (YAML + "media: a\nvideo: b\naudio: c\n", r"cabin.yaml:4: give `media`, or `video` and `audio`, not both"),
        (YAML + "metric: os.system\n", r"cabin.yaml:4: `metric` must be text like"),
        (YAML.replace("../cabin", "../nowhere"), r"cabin.yaml:2: `root` is not a folder: .*nowhere"),
        (YAML.replace("root: ../cabin\n", ""), r"cabin.yaml:1: `root` is missing"),
        (YAML.replace("[test, extra]", "[test, calib]"), r"cabin.yaml:3: `calib` is in `calibration` and in `test`"),
        (YAML.replace("[test, extra]", "12"), r"cabin.yaml:3: splits are either all numbers or all values"),
        (YAML.replace("[test, extra]", "[1, 2]"), r"cabin.yaml:3: `test` must be a value of the split column"),
        (YAML.replace("[test, extra]", "tset"), r"cabin.yaml:3: split `test` is empty: .*\n  hint: did you mean `test`"),
        (YAML.replace("calib, test: [test, extra]", "3, test: 3"), r"cabin.yaml:3: 6 clips asked for in all splits, .* has 5"),
        (YAML.replace("calib, test: [test, extra]", "1, test: 1") + "group: note\n", r"cabin.yaml:4: .*cannot keep a `group` together"),
        (YAML.replace("calib, test: [test, extra]", "1, test: 1") + "split: split\n", r"cabin.yaml:4: splits are numbers"),
    ],
)
def test_a_wrong_description_is_refused_by_its_line(place, text, says):
    place.yaml(text)
    place.refused(says)


# -- documentation -------------------------------------------------------------------------------

DOCS = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def test_every_key_of_the_schema_is_in_the_documentation():
    assert [key for key in folder.KEYS if f"`{key}`" not in DOCS] == []


def test_the_example_of_the_documentation_works(tmp_path, monkeypatch):
    blocks = dict(re.findall(r"```(csv|yaml|python)\n(.*?)```", DOCS, re.DOTALL))
    for name in ("calibration", "cabin", "recipes"):
        (tmp_path / name).mkdir()
    (tmp_path / "cabin" / "labels.csv").write_text(blocks["csv"])
    (tmp_path / "calibration" / "cabin.yaml").write_text(blocks["yaml"])
    monkeypatch.chdir(tmp_path)
    exec(blocks["python"], {})  # our own documentation
    calibration, test = (open_dataset("cabin", s, 2, Path("recipes"), tmp_path) for s in ("calibration", "test"))
    assert calibration.ids == ["drive01_004", "drive01_009"] and test.ids == ["drive02_001", "drive02_007"]
    clip = test.clip("drive02_001")
    assert clip.labels == {"o": -0.8, "a": -0.6, "v": -1.0} and clip.tags == {"snr_db": -5.0}
    assert clip.frames.shape == (75, 80, 80, 3) and len(clip.audio) == 48000


# one part


def test_a_set_of_sound_alone_needs_no_picture(place, tmp_path):
    from edgekit.preprocess import preprocess

    place.yaml(YAML + "parts: audio\n")
    with pytest.raises(DataError, match="c1.npz: no audio"):
        place.write_npz(place.root / "c1.npz", audio=None)
        place.open().clip("c1")
    (place.root / "c1.npz").unlink()
    with wave.open(str(place.root / "c1.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(np.arange(100, dtype="<i2").tobytes())
    clip = place.open().clip("c1")
    assert clip.audio.tolist() == list(range(100)) and clip.frames.shape == (0, 0, 0, 3)
    video = {"clips": 1, "frames_per_clip": 1, "height": 4, "width": 4, "layout": "CHW", "color": "RGB", "resize": "bilinear_half_pixel",
             "sampling": "uniform_round_linspace", "mean": [0, 0, 0], "std": [1, 1, 1]}  # fmt: skip
    with pytest.raises(DataError, match="clip c1: no video"):
        preprocess({"video": video}, clip)


@pytest.mark.parametrize("suffix, codec, pixels", [(".png", "png", "rgb24"), (".jpg", "mjpeg", "yuvj444p")])
def test_a_set_of_pictures_alone_needs_no_sound(place, suffix, codec, pixels):
    av = pytest.importorskip("av")
    picture = np.full((16, 20, 3), (200, 100, 50), np.uint8)
    (place.root / "c1.npz").unlink()
    with av.open(str(place.root / f"c1{suffix}"), "w", format="image2") as container:
        stream = container.add_stream(codec)
        stream.width, stream.height, stream.pix_fmt = 20, 16, pixels
        for packet in (*stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)), *stream.encode()):
            container.mux(packet)
    with pytest.raises(DataError, match=f"c1{suffix}|audio cannot be read"):
        place.open().clip("c1")
    both = place.open().digest()
    place.yaml(YAML + "parts: video\n")
    clip = place.open().clip("c1")
    assert clip.frames.shape == (1, 16, 20, 3) and np.abs(clip.frames[0].astype(int) - picture).max() <= 4  # JPEG rounds colours
    assert len(clip.audio) == 0 and place.open().digest() != both


def test_a_part_that_is_not_read_may_not_be_described(place):
    place.yaml(YAML + "parts: video\nvideo: '{id}.npz'\naudio: '{id}.wav'\n")
    place.refused(r"cabin.yaml:6: `audio` is given, but `parts` is video")
    place.yaml(YAML + "parts: video\nvideo: '{id}.npz'\n")
    assert len(place.open().clip("c1").frames)

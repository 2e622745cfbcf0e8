"""RAVDESS: what its names say, who is in which split, and what is refused. Media are tiny, the layout is the real one."""

from __future__ import annotations

import re
import wave

import numpy as np
import pytest

from edgekit.datasets import Dataset, open_dataset, ravdess
from edgekit.errors import DataError, ToolMissing

YAML = "dataset: ravdess\nroot: ../RAVDESS\nsplits: {train: all, calibration: all, test: all}\n"
SPLITS = ("train", "calibration", "test")


def wav(path, seconds=0.5, rate_hz=48000):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as w:
        w.setnchannels(1)
        w.setsampwidth(2)
        w.setframerate(rate_hz)
        w.writeframes(np.full(int(seconds * rate_hz), 1000, "<i2").tobytes())
    return path


class Place:
    def __init__(self, path):
        self.path, self.root = path, path / "RAVDESS"
        (path / "calibration").mkdir()
        self.root.mkdir()
        self.yaml("")

    def yaml(self, more, text=YAML):
        (self.path / "calibration" / "acted.yaml").write_text(text + more)

    def put(self, name, content=b"x", folder="Actor_{}"):
        path = self.root / folder.format(name[-6:-4]) / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path

    def everybody(self, emotions=("03", "05"), folder="Actor_{}"):
        for actor in range(1, 25):
            for emotion in emotions:
                for first, ending in (("01", "mp4"), ("02", "mp4"), ("03", "wav")):
                    self.put(f"{first}-01-{emotion}-01-02-01-{actor:02}.{ending}", folder=folder)

    def open(self, split="test", limit=None):
        return open_dataset("acted", split, limit, self.path / "recipes", self.path / ".edgekit")

    def refused(self, says, split="test", limit=None):
        with pytest.raises(DataError) as e:
            self.open(split, limit)
        assert re.search(says, str(e.value)), str(e.value)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


@pytest.fixture
def take(place, write_container):
    """One take of test actor 1 with a face that jumps at frame 6, and no face in the first two frames."""
    (place.root / "Actor_01").mkdir()
    video = write_container(place.root / "Actor_01" / "01-01-05-02-02-01-01.mp4", frames=12, audio="aac")
    boxes = ["frame,x,y,width,height"] + [f"{i},4,2,20,20" for i in range(2, 6)] + [f"{i},30,26,20,20" for i in range(6, 10)]
    video.with_name(f"{video.stem}.faces.csv").write_text("\n".join(boxes) + "\n")
    wav(place.root / "Actor_01" / "03-01-05-02-02-01-01.wav")
    return video


# -- names and splits ------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["Actor_{}", "ACTOR{}"])
def test_a_take_is_counted_once_whatever_files_it_has(place, folder):
    place.everybody(folder=folder)
    dataset = place.open()
    assert isinstance(dataset, Dataset)
    assert dataset.ids == [f"01-01-{e}-01-02-01-{a:02}" for e in ("03", "05") for a in (1, 2, 3, 4)]
    assert dataset.classes == ravdess.CLASSES and dataset.classes[4] == "angry" and dataset.licence == "CC-BY-NC-SA-4.0"
    assert dataset.metrics == ("wa", "ua", "f1_macro")
    assert dataset.counts == {"silent videos (02-), left out": 48}


def test_no_actor_is_in_two_splits_of_a_fold_and_every_fold_tests_others(place):
    place.everybody(("01",))
    tested = []
    for fold in range(1, 6):
        place.yaml(f"fold: {fold}\n")
        actors = {split: {int(id[-2:]) for id in place.open(split).ids} for split in SPLITS}
        assert [len(actors[split]) for split in SPLITS] == [16, 4, 4]
        assert set().union(*actors.values()) == set(range(1, 25))
        tested.append(actors["test"])
        if fold == 5:
            assert actors["test"] == {17, 18, 19, 20} and actors["calibration"] == {21, 22, 23, 24}
    assert len(set().union(*tested)) == 20


def test_random622_has_the_published_sizes_and_shares_actors_but_no_take(place):
    emotions = [f"{e:02}" for e in range(1, 9)]
    for actor in range(1, 25):
        for emotion in emotions:
            for intensity in ("01",) if emotion == "01" else ("01", "02"):
                for sentence in ("01", "02"):
                    for repetition in ("01", "02"):
                        place.put(f"01-01-{emotion}-{intensity}-{sentence}-{repetition}-{actor:02}.mp4")
    place.yaml("split: random622\n")
    ids = {split: place.open(split).ids for split in SPLITS}
    assert [len(ids[split]) for split in SPLITS] == [864, 288, 288]
    assert len(set().union(*ids.values())) == 1440
    assert {id[-2:] for id in ids["train"]} & {id[-2:] for id in ids["test"]}
    place.yaml("split: random622\nseed: 1\n")
    assert place.open().ids != ids["test"]


def test_songs_are_left_out_unless_asked_for(place):
    place.everybody(("03",))
    place.put("01-02-03-01-02-01-01.mp4")
    assert len(place.open().ids) == 4 and place.open().counts["songs, left out"] == 1
    place.yaml("songs: true\n")
    dataset = place.open()
    assert len(dataset.ids) == 5 and dataset.counts["takes with the sound of their video"] == 1


def test_sound_may_lie_in_another_folder(place):
    place.put("01-01-03-01-02-01-01.mp4")
    wav(place.path / "speech" / "Actor_01" / "03-01-03-01-02-01-01.wav")
    wav(place.path / "speech" / "Actor_09" / "03-01-03-01-02-01-09.wav")
    place.yaml("audio_root: ../speech\n")
    assert place.open().counts == {"sounds without video, left out": 1}
    place.yaml("audio_root: ../nothing\n")
    place.refused("acted.yaml:4: `audio_root` is not a folder")


def test_a_split_may_be_drawn_smaller_and_a_limit_draws_from_that(place):
    place.everybody(tuple(f"{e:02}" for e in range(1, 9)))
    place.yaml("", YAML.replace("train: all", "train: 20"))
    twenty = place.open("train").ids
    assert len(twenty) == 20 and twenty == sorted(twenty)
    assert set(place.open("train", 7).ids) < set(twenty)
    place.refused("21 clips asked for, split `train` of data set `acted` has 20", "train", 21)
    place.yaml("", YAML.replace("train: all", "train: 129"))
    place.refused("acted.yaml:3: 129 clips asked for, split `train` has 128", "train")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("01-01-09-01-02-01-01.mp4", "emotion 09 in the name, RAVDESS has 01 to 08"),
        ("01-01-03-03-02-01-01.mp4", "intensity 03"),
        ("01-03-03-01-02-01-01.mp4", "channel 03"),
        ("03-01-03-01-00-01-01.wav", "sentence 00"),
        ("01-01-01-02-02-01-01.mp4", "strong neutral"),
    ],
)
def test_a_name_that_cannot_be_is_refused_by_its_file(place, name, says):
    place.everybody(("03",))
    place.put(name)
    place.refused(rf"Actor_01/{name}: {says}")


def test_a_file_in_another_actors_folder_or_twice_is_refused(place):
    place.everybody(("03",))
    moved = place.put("01-01-04-01-02-01-05.mp4", folder="Actor_06")
    place.refused("actor 05 in the name, the folder is of actor 06")
    moved.unlink()
    place.put("01-01-03-01-02-01-05.mp4", folder="ACTOR05")
    place.refused("Actor_05/01-01-03-01-02-01-05.mp4: also in .*ACTOR05/01-01-03-01-02-01-05.mp4")


def test_files_of_other_names_are_counted_and_hidden_ones_are_not(place):
    place.everybody(("03",))
    place.put("03-01-03-01-02-01-01_croppad.wav", folder="Actor_01")
    place.put("._01-01-03-01-02-01-01.mp4", folder="Actor_01")
    place.put("notes.txt", folder="Actor_01")
    assert place.open().counts["files of other names, left out"] == 1


def test_a_folder_without_takes_says_what_it_holds(place):
    place.refused("acted.yaml:2: split `test` is empty: found 0 takes in all splits, and no file with such a name")
    place.put("02-01-03-01-02-01-01.mp4")
    place.refused("found 0 takes in all splits, and 1 silent videos")
    place.yaml("", YAML.replace("../RAVDESS", "../elsewhere"))
    place.refused("acted.yaml:2: `root` is not a folder")


def test_a_link_out_of_the_folder_and_an_empty_file_are_refused(place):
    (place.path / "outside.mp4").write_bytes(b"x")
    place.everybody(("03",))
    link = place.put("01-01-04-01-02-01-01.mp4")
    link.unlink()
    link.symlink_to(place.path / "outside.mp4")
    place.refused("`Actor_01/01-01-04-01-02-01-01.mp4` is reached by a link that leaves the folder")
    link.unlink()
    link.write_bytes(b"")
    place.refused("`Actor_01/01-01-04-01-02-01-01.mp4` is an empty file")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("fold: 6\n", "acted.yaml:4: `fold` must be at most 5, got 6"),
        ("split: random\n", "acted.yaml:4: `split` cannot be `random`"),
        ("layout: annotations\nfold: 2\n", "acted.yaml:5: `fold` has no meaning with `layout: annotations`"),
        ("sample_rate_hz: 16k\n", "acted.yaml:4: `sample_rate_hz` must be a whole number"),
        ("foldd: 1\n", "acted.yaml:4: unknown key `foldd`"),
    ],
)
def test_a_wrong_key_is_refused_by_its_line(place, more, says):
    place.everybody(("03",))
    place.yaml(more)
    place.refused(says)


def test_a_split_is_all_or_a_number(place):
    place.yaml("", YAML.replace("test: all", "test: [1, 2]"))
    place.refused("acted.yaml:3: `test` must be `all` or a number of clips")


# -- clips -----------------------------------------------------------------------------------------


def test_a_clip_holds_face_crops_of_the_window_and_the_whole_sound(place, take):
    place.yaml("size: 16\n")
    dataset = place.open()
    clip = dataset.clip("01-01-05-02-02-01-01")
    assert clip.labels == {"emotion": 4.0}
    assert clip.tags == {"actor": "01", "gender": "male", "intensity": "strong", "sentence": "02"}
    assert clip.frames.shape == (90, 16, 16, 3) and clip.fps == 25  # 3.6 s
    assert not clip.frames[:2].any(), "no face yet"
    # Red above, blue below (conftest); 40: mpeg4 and chroma.
    np.testing.assert_allclose(clip.frames[3].mean((0, 1)), [220, 30, 30], atol=40)
    assert clip.frames[8].mean((0, 1))[0] < 40, "the box moved down"
    np.testing.assert_allclose(clip.frames[11].mean((0, 1)), [0, 0, 176], atol=40)  # the last box stays
    assert not clip.frames[12:].any(), "the take is over"
    assert clip.sample_rate_hz == 16000 and len(clip.audio) == 8000 and abs(int(clip.audio[4000]) - 1000) <= 1


def test_the_whole_take_may_be_kept_as_it_is(place, take):
    place.yaml("faces: none\nwindow_s: null\nsample_rate_hz: 22050\n")
    clip = place.open().clip("01-01-05-02-02-01-01")
    assert clip.frames.shape == (12, 48, 64, 3) and len(clip.audio) == 11025


def test_without_a_wav_the_sound_is_the_videos(place, take):
    (place.root / "Actor_01" / "03-01-05-02-02-01-01.wav").unlink()
    dataset = place.open()
    assert dataset.counts == {"takes with the sound of their video": 1}
    audio = dataset.clip(dataset.ids[0]).audio.astype(float)
    assert abs(np.sqrt(2 * np.mean(audio[2000:6000] ** 2)) / 32768 - 0.2) < 0.03  # conftest's tone


def test_a_take_without_any_sound_or_with_a_damaged_picture_is_refused(place, write_container):
    (place.root / "Actor_01").mkdir()
    path = write_container(place.root / "Actor_01" / "01-01-05-02-02-01-01.mp4", audio=None)
    place.yaml("faces: none\n")
    with pytest.raises(DataError, match=r"01-01-05-02-02-01-01.mp4: no audio stream"):
        place.open().clip("01-01-05-02-02-01-01")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match="01-01-05-02-02-01-01.mp4: not media"):
        place.open().clip("01-01-05-02-02-01-01")


def test_a_clip_without_a_face_is_refused_or_black_and_says_so(place, take):
    take.with_name(f"{take.stem}.faces.csv").write_text("frame,x,y,width,height\n")
    with pytest.raises(DataError, match=r"no face in any frame of 01-01-05-02-02-01-01\n.*faces.csv, or say `without_face: black`"):
        place.open().clip("01-01-05-02-02-01-01")
    place.yaml("without_face: black\nsize: 16\n")
    clip = place.open().clip("01-01-05-02-02-01-01")
    assert not clip.frames.any() and clip.tags["face"] == "none"


def test_detected_boxes_are_kept_for_the_next_time(place, take, monkeypatch):
    from edgekit.datasets import faces

    take.with_name(f"{take.stem}.faces.csv").unlink()
    calls = []

    def detect(frames):
        calls.append(len(frames))
        return [np.array([[4.0, 2, 20, 20]])] * len(frames)

    monkeypatch.setattr(faces, "detect", detect)
    monkeypatch.setattr(faces, "detector", lambda: "test")
    place.yaml("size: 16\n")
    first, second = place.open().clip("01-01-05-02-02-01-01"), place.open().clip("01-01-05-02-02-01-01")
    assert calls == [12] and first.frames[0].any()
    np.testing.assert_array_equal(first.frames, second.frames)
    monkeypatch.setattr(faces, "detector", lambda: "another")
    place.open().clip("01-01-05-02-02-01-01")
    assert calls == [12, 12]


def test_a_long_take_is_cropped_without_holding_its_pictures(place, take, monkeypatch):
    from edgekit.datasets import acted, faces

    place.yaml("size: 16\n")
    short = place.open().clip("01-01-05-02-02-01-01").frames
    monkeypatch.setattr(acted, "_MAX_HELD_BYTES", 3 * 48 * 64 * 3)
    np.testing.assert_array_equal(place.open().clip("01-01-05-02-02-01-01").frames, short)
    boxes = take.with_name(f"{take.stem}.faces.csv")
    kept = faces.read_boxes(boxes, 12, 48, 64)
    boxes.unlink()
    monkeypatch.setattr(acted, "_FRAMES_AT_ONCE", 5)
    monkeypatch.setattr(faces, "detector", lambda: "test")
    monkeypatch.setattr(faces, "detect", lambda frames: [kept.pop(0) for _ in frames])
    np.testing.assert_array_equal(place.open().clip("01-01-05-02-02-01-01").frames, short)
    assert not kept


# -- digest ----------------------------------------------------------------------------------------


def test_the_digest_is_of_the_content_and_not_of_the_place(place, take):
    before = place.open().digest()
    place.root.rename(place.path / "moved")
    place.yaml("", YAML.replace("../RAVDESS", "../moved"))
    assert place.open().digest() == before


def test_the_digest_changes_with_everything_that_changes_a_clip(place, take, write_container):
    seen = [place.open().digest()]
    for more in ("size: 96\n", "faces: none\n", "window_s: 1.2\n", "sample_rate_hz: 22050\n", "without_face: black\n"):
        place.yaml(more)
        seen.append(place.open().digest())
    place.yaml("")
    boxes = take.with_name(f"{take.stem}.faces.csv")
    boxes.write_text(boxes.read_text() + "10,1,1,9,9\n")
    seen.append(place.open().digest())
    write_container(take, frames=13)
    seen.append(place.open().digest())
    wav(take.with_name("03-01-05-02-02-01-01.wav"), 0.6)
    seen.append(place.open().digest())
    assert len(set(seen)) == len(seen)


def test_a_plan_says_that_no_detector_is_here(place, take, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "cv2", None)
    place.open().digest()  # there are boxes
    take.with_name(f"{take.stem}.faces.csv").unlink()
    with pytest.raises(ToolMissing, match=r"no detector is installed here.*\n  hint: pip install 'edgekit\[faces\]', or put `<video>.faces.csv`"):
        place.open().digest()
    place.yaml("faces: none\n")
    place.open().digest()


def test_media_that_change_during_a_command_are_refused(place, take, write_container):
    dataset = place.open()
    dataset.digest()
    dataset.clip(dataset.ids[0])
    wav(take.with_name("03-01-05-02-02-01-01.wav"), 0.6)
    with pytest.raises(DataError, match="changed since this command began"):
        dataset.clip(dataset.ids[0])


# -- annotations -----------------------------------------------------------------------------------


def annotated(place, *lines):
    (place.root / "annotations.txt").write_text("\n".join(lines) + "\n")


def crops(place, actor="09", modality="01", value=0):
    folder = place.root / f"Actor_{actor}"
    folder.mkdir(exist_ok=True)
    frames = np.full((15, 8, 8, 3), value, np.uint8)
    frames[..., 0] = 200  # blue, as OpenCV writes it
    np.save(folder / f"{modality}-01-03-02-01-01-{actor}_facecroppad.npy", frames)
    wav(folder / f"03-01-03-02-01-01-{actor}_croppad.wav", 3.6, 22050)


def line(actor="09", modality="01", label="3", subset="testing", before="", heard=None):
    return f"{before}Actor_{actor}/{modality}-01-03-02-01-01-{actor}_facecroppad.npy;{before}Actor_{heard or actor}/03-01-03-02-01-01-{heard or actor}_croppad.wav;{label};{subset}"


def test_annotations_give_their_crops_each_take_once(place):
    crops(place)
    crops(place, modality="02", value=7)
    crops(place, "10")
    # The public list names every take twice and has the paths of somebody's disk, and a running number.
    annotated(place, line(modality="02", before="/data1/x/RAVDESS/"), line(before="/data1/x/RAVDESS/"), line("10", subset="0;training"))
    place.yaml("layout: annotations\nsample_rate_hz: 22050\n")
    dataset = place.open()
    assert dataset.ids == ["01-01-03-02-01-01-09"] and dataset.counts == {"takes listed twice (01- and 02-), counted once": 1}
    clip = dataset.clip("01-01-03-02-01-01-09")
    assert clip.labels == {"emotion": 2.0} and clip.frames.shape == (15, 8, 8, 3) and len(clip.audio) == 79380
    assert clip.frames[0, 0, 0].tolist() == [0, 0, 200], "RGB here, BGR in the file"
    assert clip.fps == pytest.approx(15 / 3.6)
    assert place.open("train").ids == ["01-01-03-02-01-01-10"]
    bgr = dataset.digest()
    place.yaml("layout: annotations\nsample_rate_hz: 22050\nnpy_order: rgb\n")
    assert place.open().clip("01-01-03-02-01-01-09").frames[0, 0, 0].tolist() == [200, 0, 0]
    assert place.open().digest() != bgr


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("a;b;3", "annotations.txt:2: 3 parts, expected"),
        (line("10", subset="test"), "annotations.txt:2: subset `test`, expected training"),
        (line("10", label="2"), "annotations.txt:2: label `2`, the name of the file says 3"),
        (line("10", label="x"), "annotations.txt:2: label `x`"),
        (line("10", heard="09"), "annotations.txt:2: picture of take 01-01-03-02-01-01-10 with sound of take 03-01-03-02-01-01-09"),
        (line("09", subset="training", modality="02"), "annotations.txt:2: actor 09 is in `training` here and in `testing` in line 1"),
        (line(), "annotations.txt:2: take 01-01-03-02-01-01-09 already stands in line 1"),
        (line("10"), "annotations.txt:2: `Actor_10/01-01-03-02-01-01-10_facecroppad.npy` does not exist"),
        (line("10", before="../"), "annotations.txt:2: .*without .."),
        (line("10").replace("01-01-03-02-01-01-10_facecroppad.npy", "face.npy"), "annotations.txt:2: .* is not a file like"),
    ],
)
def test_a_wrong_annotation_is_refused_by_its_line(place, bad, says):
    crops(place)
    annotated(place, line(), bad)
    place.yaml("layout: annotations\n")
    place.refused(says)


def test_an_array_that_is_no_picture_is_refused(place):
    crops(place)
    annotated(place, line())
    place.yaml("layout: annotations\n")
    np.save(place.root / "Actor_09" / "01-01-03-02-01-01-09_facecroppad.npy", np.zeros((15, 8, 8), np.uint8))
    with pytest.raises(DataError, match=r"facecroppad.npy: uint8 \[15, 8, 8\], expected uint8 \[n, h, w, 3\]"):
        place.open().clip("01-01-03-02-01-01-09")

"""The layout of Aff-Wild2: windows over labelled frames, faces, sound by time stamps, and what is refused."""

from __future__ import annotations

import json
import re
import wave

import numpy as np
import pytest

from edgekit.datasets import Dataset, affwild2, open_dataset
from edgekit.datasets.affwild2 import lay_windows
from edgekit.errors import DataError

SIZE, FPS, RATE = 16, 25, 8000
YAML = (
    "dataset: affwild2\nroot: ../aff\nsize: 16\nsubsequences: 2\nframes_per_subsequence: 8\nsample_rate_hz: 8000\npartition: official\n"
    "splits: {calibration: Train_Set, test: Validation_Set}\n"
)


def write_jpg(path, grey):
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuvj444p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((SIZE, SIZE, 3), grey, np.uint8), format="rgb24")))
        container.mux(stream.encode())


def write_wav(path, samples, rate_hz=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as w:
        w.setnchannels(1)
        w.setsampwidth(2)
        w.setframerate(rate_hz)
        w.writeframes(samples.astype("<i2").tobytes())


def ramp(seconds):
    """Sample i is i: sound that says when it was."""
    return np.arange(int(seconds * RATE))


class Place:
    def __init__(self, path):
        self.path, self.root = path, path / "aff"
        for name in ("calibration", "recipes"):
            (path / name).mkdir()
        self.yaml()

    def yaml(self, more="", text=YAML):
        (self.path / "calibration" / "aff.yaml").write_text(text + more)

    def video(self, name, labels, part="Train_Set", faces=None, sound=True, stamps=True):
        """`labels`: (valence, arousal) of every frame, or the text of the annotation; `faces`: numbers, all by default."""
        n = len(labels)
        text = labels if isinstance(labels, str) else "valence,arousal\n" + "".join(f"{v},{a}\n" for v, a in labels)
        self.write(f"annotations/VA_Estimation_Challenge/{part}/{name}.txt", text)
        base = affwild2.base_of(name)
        for number in range(1, n + 1) if faces is None else faces:
            write_jpg(self.root / "cropped_aligned" / name / f"{number:05d}.jpg", 4 * number % 256)
        if sound:
            write_wav(self.root / "audio" / f"{base}.wav", ramp(n / FPS))
        if stamps:
            self.stamps(base, [1000 * i / FPS for i in range(n)])

    def stamps(self, base, times):
        self.write(f"realtimestamps/{base}_video_ts.txt", "# timestamp format v2\n" + "".join(f"{t:g}\n" for t in times))

    def write(self, name, text):
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text)

    def open(self, split="calibration", limit=None):
        return open_dataset("aff", split, limit, self.path / "recipes", self.path / ".edgekit")

    def refused(self, says, split="calibration"):
        with pytest.raises(DataError) as e:
            dataset = self.open(split)
            for id in dataset.ids:
                dataset.clip(id)
        assert re.search(says, str(e.value)), str(e.value)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def labels(n):
    return [(i / 100 % 1, -(i / 100 % 1)) for i in range(n)]


def ends(span, last, n, w):
    """Frames at which the sub-sequences of a window end."""
    return [max(0, last - span[0] - (n - 1 - j) * w) + span[0] for j in range(n)]


@pytest.mark.parametrize("n", [8, 31, 32, 480, 481, 511, 512, 513, 1024, 1300])
def test_with_a_stride_of_1_every_frame_ends_a_subsequence(n):
    windows = lay_windows(n, 16, 32, 1)
    assert all(0 <= first <= last < n and last - first < 512 for first, last in windows)
    assert {e for first, last in windows for e in ends((first,), last, 16, 32)} == set(range(n))
    assert len(windows) == len(set(windows)) and windows == sorted(windows, key=lambda window: window[1])


def test_windows_slide_for_one_subsequence_and_jump_over_the_rest():
    windows = lay_windows(1024, 16, 32, 1)
    assert len(windows) == 64
    assert windows[:2] == [(0, 480), (0, 481)] and windows[31:33] == [(0, 511), (481, 992)] and windows[-1] == (512, 1023)


def test_a_stride_of_a_subsequence_lays_windows_end_to_end():
    assert lay_windows(1024, 16, 32, 32) == [(0, 511), (512, 1023)]
    assert lay_windows(1300, 16, 32, 32) == [(0, 511), (512, 1023), (788, 1299)]
    assert lay_windows(100, 16, 32, 32) == [(0, 99)]
    assert lay_windows(512, 16, 32, 8) == [(0, 487), (0, 495), (0, 503), (0, 511)]


def test_a_window_holds_its_faces_labels_times_and_sound(place):
    place.video("v1", labels(40))
    dataset = place.open()
    assert isinstance(dataset, Dataset) and dataset.ids == ["v1/00016", "v1/00032", "v1/00040"] and dataset.counts == {}
    clip = dataset.clip("v1/00032")
    assert clip.frames.shape == (16, SIZE, SIZE, 3) and clip.frames.dtype == np.uint8
    np.testing.assert_allclose(clip.frames[:, 8, 8, 0], 4 * np.arange(17, 33), atol=3)  # 3: JPEG
    np.testing.assert_array_equal(clip.labels["valence"], np.float32([i / 100 for i in range(16, 32)]))
    np.testing.assert_array_equal(clip.labels["arousal"], -clip.labels["valence"])
    assert clip.labels["valence"].dtype == np.float32 and clip.fps == 25 and clip.sample_rate_hz == RATE and clip.tags == {}
    # Sound begins one sub-sequence (8 frames of 40 ms) before the window and ends with its last frame.
    assert clip.audio[0] == 8 * 320 and len(clip.audio) == 24 * 320 and clip.audio.dtype == np.int16
    np.testing.assert_array_equal(clip.frame_ms, 40.0 * np.arange(8, 24))
    # At the time of a frame, the sound is the one of that time.
    at = np.round(clip.frame_ms * RATE / 1000).astype(int)
    np.testing.assert_array_equal(clip.audio[at], 320 * np.arange(16, 32))
    first = dataset.clip("v1/00016")
    assert first.frame_ms[0] == 0 and first.audio[0] == 0


def test_in_test_every_frame_is_predicted_unless_a_stride_is_given(place):
    place.video("v1", labels(20), part="Validation_Set")
    place.video("t1", labels(20))
    assert place.open("test").ids == [f"v1/{i:05d}" for i in range(9, 21)]
    place.yaml("stride: {test: 4, calibration: 1}\n")
    assert place.open("test").ids == ["v1/00012", "v1/00016", "v1/00020"]
    assert len(place.open().ids) == 12


def test_frames_without_a_label_are_left_out_and_times_stay_true(place):
    rows = labels(30)
    for i in (4, 5, 6, 20):
        rows[i] = (-5, 0.5) if i % 2 else (-5, -5)
    place.video("v1", rows)
    dataset = place.open()
    assert dataset.counts == {"frames without a label, left out": 4} and dataset.ids == ["v1/00019", "v1/00030"]
    clip = dataset.clip("v1/00019")
    kept = [i for i in range(19) if i not in (4, 5, 6)]
    np.testing.assert_array_equal(clip.frame_ms, [40.0 * i for i in kept])
    np.testing.assert_allclose(clip.labels["valence"], [i / 100 for i in kept], rtol=1e-6)
    np.testing.assert_allclose(clip.frames[:, 0, 0, 0], [4 * (i + 1) for i in kept], atol=3)


def test_a_frame_without_a_face_is_black_and_counted(place):
    place.video("v1", labels(16), faces=[n for n in range(1, 17) if n not in (3, 4)])
    dataset = place.open()
    assert dataset.counts == {"frames without a face, black": 2}
    clip = dataset.clip("v1/00016")
    assert not clip.frames[2:4].any() and clip.frames[1].all() and clip.frames[4].all()


def test_two_people_of_a_video_share_its_sound_and_its_split(place):
    for name in ("a_left", "a_right", *(f"b{i}" for i in range(9))):
        place.video(name, labels(16))
    place.yaml(text=YAML.replace("partition: official\n", "").replace("{calibration: Train_Set, test: Validation_Set}", "{train: Train_Set, calibration: Validation_Set, test: Test_Set}"))
    of = {split: {id.split("/")[0] for id in place.open(split).ids} for split in ("train", "calibration", "test")}
    assert [len({affwild2.base_of(name) for name in of[s]}) for s in ("train", "calibration", "test")] == [6, 2, 2]
    assert sum(map(len, of.values())) == 11
    together = [names for names in of.values() if {"a_left", "a_right"} & names]
    assert len(together) == 1 and {"a_left", "a_right"} <= together[0]
    split = next(s for s, names in of.items() if "a_left" in names)
    dataset = place.open(split)
    np.testing.assert_array_equal(dataset.clip("a_left/00016").audio, dataset.clip("a_right/00016").audio)


def test_a_json_says_the_partition(place):
    for name in ("a", "b", "c"):
        place.video(name, labels(16))
    place.write("folds.json", json.dumps({"seed_3": {"Train_Set": ["b"], "Validation_Set": ["a"], "Test_Set": ["c"]}, "seed_0": {}}))
    place.yaml(text=YAML.replace("official", "folds.json") + "fold: seed_3\n")
    assert place.open().ids == ["b/00016"] and place.open("test").ids == [f"a/{i:05d}" for i in range(9, 17)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "folds.json: not JSON"),
        ("[" * 100_000, "folds.json: not JSON"),
        ("[]", "no fold `seed_0`"),
        ('{"seed_1": {}}', "no fold `seed_0`(.|\n)*did you mean `seed_1`"),
        ('{"seed_0": {"Train": ["a"]}}', "`seed_0.Train` must be a list of videos under one of"),
        ('{"seed_0": {"Train_Set": [3]}}', "must be a list of videos"),
        ('{"seed_0": {"Train_Set": ["../a"]}}', r"names `../a`, which has no annotation"),
        ('{"seed_0": {"Train_Set": ["a"], "Test_Set": ["a"]}}', "`a` is in Train_Set and in Test_Set"),
        ('{"seed_0": {"Train_Set": ["b_left"], "Validation_Set": ["b_right"]}}', "video `b` is in Train_Set and, as `b_right`, in Validation_Set"),
    ],
)
def test_a_wrong_partition_is_refused(place, content, says):
    for name in ("a", "b_left", "b_right"):
        place.video(name, labels(16))
    place.write("folds.json", content)
    place.yaml(text=YAML.replace("official", "folds.json"))
    place.refused(says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"v1.txt:1: expected `valence,arousal`"),
        ("0.1,0.2\n0.1,0.2\n", "v1.txt:1: expected `valence,arousal`, got `0.1,0.2`"),
        ("valence,arousal\n0.1,0.2\n0.1\n", "v1.txt:3: `0.1` is not valence,arousal"),
        ("valence,arousal\n0.1,0.2\n\n0.1,0.3\n", "v1.txt:3: `` is not"),
        ("valence,arousal\n0.1,nan\n", "v1.txt:2: arousal is not a finite number: `nan`"),
        ("valence,arousal\n1_0,0\n", "v1.txt:2: valence is not a finite number: `1_0`"),
        ("valence,arousal\n0.1,1.01\n", "v1.txt:2: arousal is 1.01, expected -1 to 1, or -5"),
        ("valence,arousal\n-4,0\n", "v1.txt:2: valence is -4"),
    ],
)
def test_a_broken_annotation_is_refused_by_line(place, text, says):
    place.video("v1", labels(16))
    place.write("annotations/VA_Estimation_Challenge/Train_Set/v1.txt", text)
    place.refused(says)


def test_annotations_may_be_csvs_of_the_labelled_frames(place):
    place.video("v1", labels(20))
    (place.root / "annotations/VA_Estimation_Challenge/Train_Set/v1.txt").unlink()
    rows = "".join(f"{i},v1/{i + 1:05d}.jpg,{i / 100},0.5,{i + 1:05d}\n" for i in range(20) if i != 7)
    place.write("annotations/VA_Estimation_Challenge/Train_Set/v1.csv", ",img,V,A,frame_id\n" + rows)
    clip = place.open().clip("v1/00020")
    np.testing.assert_array_equal(clip.labels["valence"], np.float32([i / 100 for i in range(3, 20) if i != 7]))
    for row, says in (
        ("0,x,0.1,0.1,5\n1,x,0.1,0.1,5\n", "v1.csv:3: frame 5 comes after frame 5"),
        ("0,x,0.1,0.1,0\n", "v1.csv:2: frame_id is 0"),
        ("0,x,0.1,0.1\n", "v1.csv:2: 4 cells, the header has 5"),
    ):
        place.write("annotations/VA_Estimation_Challenge/Train_Set/v1.csv", ",img,V,A,frame_id\n" + row)
        place.refused(says)
    place.write("annotations/VA_Estimation_Challenge/Train_Set/v1.csv", "img,V,frame_id\n")
    place.refused("v1.csv:1: needs one column `A`")


def test_a_video_of_fewer_than_8_labelled_frames_is_left_out_and_counted(place):
    place.video("v1", labels(7))
    place.video("v2", labels(8))
    dataset = place.open()
    assert dataset.ids == ["v2/00008"] and dataset.counts == {"videos with fewer than 8 labelled frames, left out": 1}
    assert len(dataset.clip("v2/00008").frames) == 8


def test_time_stamps_may_lack_a_few_of_the_last_frames_and_no_more(place):
    place.video("v1", labels(60))
    place.stamps("v1", [40 * i for i in range(50)])
    dataset = place.open()
    assert dataset.counts == {"frames without a time stamp, left out": 10} and dataset.ids[-1] == "v1/00050"
    place.stamps("v1", [40 * i for i in range(20)])
    place.refused("v1_video_ts.txt: 20 time stamps, the annotation has 60 frames")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0\n40\n80\n", "ts.txt:1: expected a header"),
        ("# timestamp format v2\n0\n40\nx\n", "ts.txt:4: time stamp is not a finite number: `x`"),
        ("# timestamp format v2\n0\n40\ninf\n", "ts.txt:4: time stamp is not a finite"),
        ("# timestamp format v2\n0\n40\n39\n", "ts.txt:4: 39 ms comes after 40 ms"),
        ("# timestamp format v2\n" + "0\n" * 16, "no two of them apart"),
        ("# timestamp format v2\n" + "".join(f"{i * 1e8}\n" for i in range(16)), "are the time stamps in ms|sound of"),
    ],
)
def test_broken_time_stamps_are_refused(place, text, says):
    place.video("v1", labels(16))
    place.write("realtimestamps/v1_video_ts.txt", text)
    place.refused(says)


def test_without_time_stamps_a_frame_rate_must_be_given(place):
    place.video("v1", labels(16), stamps=False)
    place.refused("no time stamps of video `v1`(.|\n)*set `fps`")
    place.yaml("fps: 25\n")
    np.testing.assert_array_equal(place.open().clip("v1/00016").frame_ms, 40.0 * np.arange(16))


def test_sound_is_shifted_by_its_offset(place):
    place.video("v1", labels(16))
    place.write("offsets.csv", "video,offset_ms\nv1,100\n")
    place.yaml("audio_offsets: offsets.csv\n")
    clip = place.open().clip("v1/00016")
    # The sound begins 100 ms after the picture: silence, then sample 0.
    at = np.round(clip.frame_ms * RATE / 1000).astype(int)
    np.testing.assert_array_equal(clip.audio[at], np.maximum(0, 320 * np.arange(16) - 800))
    assert clip.frame_ms[0] == 0
    place.write("offsets.csv", "video,offset_ms\nv1,100\nv1,1\n")
    place.refused("offsets.csv:3: `v1` is there twice")
    place.write("offsets.csv", "video,offset_ms\nv1,soon\n")
    place.refused("offsets.csv:2: offset is not a finite number")


def test_sound_may_come_in_segments(place):
    place.video("v1", labels(80))
    whole = place.open()
    place.yaml("segments: cut\n")
    want, before = {id: whole.clip(id) for id in whole.ids}, whole.digest()
    (place.root / "audio" / "v1.wav").unlink()
    sound = ramp(80 / FPS)
    for number in range(1, 81):
        begin, end = max(0, number - 32) * 320, max(1, number - 1) * 320
        write_wav(place.root / "cut" / "v1" / f"{number}.wav", sound[begin:end])
    dataset = place.open()
    assert dataset.ids == whole.ids
    for id, clip in want.items():
        got = dataset.clip(id)
        np.testing.assert_array_equal(got.frame_ms, clip.frame_ms)
        last = round(clip.frame_ms[-1] * RATE / 1000)  # a segment ends when its last frame is taken
        np.testing.assert_array_equal(got.audio[:last], clip.audio[:last])
    assert dataset.digest() != before
    (place.root / "cut" / "v1" / "80.wav").unlink()
    place.refused("80.wav: the data do not exist")


def test_a_video_without_sound_is_silent_and_counted(place):
    place.video("v1", labels(16), sound=False)
    place.video("v2", labels(16))
    dataset = place.open()
    assert dataset.counts == {"videos without sound, silent": 1}
    clip = dataset.clip("v1/00016")
    assert not clip.audio.any() and len(clip.audio) == 16 * 320 and clip.tags == {"sound": "none"}
    (place.root / "audio" / "v2.wav").unlink()
    place.refused("no video of split `calibration` has sound in .*audio/<video>.wav")


def test_sound_that_ends_long_before_the_picture_is_refused(place):
    place.video("v1", labels(60))
    write_wav(place.root / "audio" / "v1.wav", ramp(1))
    place.refused("v1.wav: sound of 1.00 s, the last frame of `v1` is at 2.36 s")


def test_no_face_at_all_is_a_wrong_folder(place):
    place.video("v1", labels(16), faces=[])
    place.refused("no video of split `calibration` has a face in .*cropped_aligned")


def test_a_face_of_another_size_is_refused(place):
    place.video("v1", labels(16))
    place.yaml(text=YAML.replace("size: 16", "size: 32"))
    place.refused("00001.jpg: face of 16x16, expected 32x32")


def test_features_are_taken_at_the_labelled_frames(place):
    rows = labels(20)
    rows[3] = (-5, -5)
    place.video("a_left", rows)
    table = np.arange(60, dtype=np.float64).reshape(20, 3)
    (place.root / "vggish").mkdir()
    np.save(place.root / "vggish" / "a.npy", table)
    place.yaml("features: {vggish: vggish}\n")
    clip = place.open().clip("a_left/00017")
    assert clip.features["vggish"].dtype == np.float32
    np.testing.assert_array_equal(clip.features["vggish"], np.delete(table, 3, 0)[:16])
    for bad, says in (
        (table[:19], "a.npy: 19 rows, frame 20 has a label"),
        (table.astype(int), "int64 .20, 3., expected float"),
        (np.full((20, 3), np.nan), "a.npy: holds NaN"),
        (np.array([{}]), "holds Python objects"),
    ):
        np.save(place.root / "vggish" / "a.npy", bad, allow_pickle=True)
        place.refused(says)
    (place.root / "vggish" / "a.npy").unlink()
    place.refused("vggish/a.npy: the data do not exist")


def test_the_digest_follows_every_file_that_is_read_and_no_other(place):
    place.video("v1", labels(16))
    place.video("v2", labels(16), part="Validation_Set")
    before = place.open().digest()
    assert place.open().digest() == before
    place.video("v2", labels(17), part="Validation_Set")
    assert place.open().digest() == before  # another split
    seen = {before}
    for change in (
        lambda: write_jpg(place.root / "cropped_aligned/v1/00003.jpg", 200),
        lambda: (place.root / "cropped_aligned/v1/00004.jpg").unlink(),
        lambda: write_wav(place.root / "audio/v1.wav", ramp(0.64)[::-1]),
        lambda: place.stamps("v1", [41 * i for i in range(16)]),
        lambda: place.write("annotations/VA_Estimation_Challenge/Train_Set/v1.txt", "valence,arousal\n" + "0,0\n" * 16),
    ):
        change()
        seen.add(place.open().digest())
    assert len(seen) == 6


def test_a_face_that_changes_during_a_command_is_refused(place):
    place.video("v1", labels(16))
    dataset = place.open()
    dataset.digest()
    write_jpg(place.root / "cropped_aligned/v1/00003.jpg", 200)
    with pytest.raises(DataError, match="00003.jpg: changed since"):
        dataset.clip("v1/00016")


def test_a_limit_keeps_the_same_windows(place):
    place.video("v1", labels(160))
    few, more = place.open(limit=3).ids, place.open(limit=5).ids
    assert len(few) == 3 and set(few) < set(more) < set(place.open().ids)


def test_decoded_faces_take_bounded_memory(place, monkeypatch):
    monkeypatch.setattr(affwild2, "_MAX_CACHED_BYTES", 20 * SIZE * SIZE * 3)
    place.video("v1", labels(64))
    dataset = place.open()
    for id in dataset.ids:
        dataset.clip(id)
    assert len(dataset._faces) == 20


def test_a_link_out_of_the_root_is_refused(place, tmp_path):
    place.video("v1", labels(16))
    write_jpg(tmp_path / "other.jpg", 9)
    (place.root / "cropped_aligned/v1/00002.jpg").unlink()
    (place.root / "cropped_aligned/v1/00002.jpg").symlink_to(tmp_path / "other.jpg")
    place.refused("00002.jpg: the data are reached by a link that leaves the folder")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("strides: {}\n", "aff.yaml:9: unknown key `strides`"),
        ("stride: {test: 3}\n", "aff.yaml:9: a stride must divide 8"),
        ("stride: {train: 4}\n", "`stride` names a split that is not there: `train`"),
    ],
)
def test_a_wrong_description_is_refused_by_line(place, more, says):
    place.video("v1", labels(16))
    place.yaml(more)
    place.refused(says)


def test_splits_name_parts_of_the_partition_and_share_none(place):
    place.video("v1", labels(16))
    for splits, says in (
        ("{calibration: Train_Set, test: Train_Set}", "`Train_Set` is in `calibration` and in `test`"),
        ("{calibration: Training_Set}", "cannot be made of `Training_Set`(.|\n)*did you mean `Train_Set`"),
        ("{calibration: 5}", "cannot be made of `5`"),
    ):
        place.yaml(text=YAML.replace("{calibration: Train_Set, test: Validation_Set}", splits))
        place.refused(says)


def test_a_video_in_two_folders_is_refused(place):
    place.video("v1", labels(16))
    place.video("v1", labels(16), part="Validation_Set")
    place.refused("`v1` is annotated in .*Train_Set/v1.txt too")


def test_no_annotations_is_a_wrong_root(place):
    place.root.mkdir()
    place.refused("no Train_Set/<video>.txt")

"""Boxes from a file or a detector, and frames cut along them."""

from __future__ import annotations

import builtins
import sys
import types

import numpy as np
import pytest

from edgekit.datasets import faces, scene
from edgekit.errors import DataError, ToolMissing

HEADER = "frame,x,y,width,height\n"


def boxes(*of_frames):
    return [np.array(of_frame, np.float64).reshape(-1, 4) for of_frame in of_frames]


def test_boxes_are_read_frame_by_frame(tmp_path):
    path = tmp_path / "a.faces.csv"
    path.write_text(HEADER + "2,1,2,3,4\n0,10,20,30,40\n\n0, -5.5,2,30.5,8\n")
    found = faces.read_boxes(path, 4, 48, 64)
    assert [b.tolist() for b in found] == [[[10, 20, 30, 40], [-5.5, 2, 30.5, 8]], [], [[1, 2, 3, 4]], []]
    assert faces.without_face(found) == 2


def test_what_is_written_is_read_again(tmp_path):
    before = boxes([[1, 2, 3, 4], [5.25, 6, 7, 8]], [], [[9, 10, 11, 12]])
    faces.write_boxes(tmp_path / "deep" / "a.faces.csv", before)
    after = faces.read_boxes(tmp_path / "deep" / "a.faces.csv", 3, 48, 64)
    assert [b.tolist() for b in after] == [b.tolist() for b in before]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.faces.csv"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"csv:1: the header is ``, expected `frame,x,y,width,height`"),
        ("x,y,width,height,frame\n", "csv:1: the header"),
        (HEADER + "0,1,2,3\n", "csv:2: 4 cells"),
        (HEADER + "0,1,2,3,4\n0,1,2,3,four\n", "csv:3: not numbers"),
        (HEADER + "0.5,1,2,3,4\n", "csv:2: not numbers"),
        (HEADER + "4,1,2,3,4\n", "csv:2: frame 4, the video has 4"),
        (HEADER + "-1,1,2,3,4\n", "csv:2: frame -1"),
        (HEADER + "0,1,2,0,4\n", "csv:2: box of 0 x 4"),
        (HEADER + "0,nan,2,3,4\n", "csv:2: box of 3 x 4 at nan"),
        (HEADER + "0,1,2,inf,4\n", "csv:2: box of inf"),
        (HEADER + "0,64,2,3,4\n", "csv:2: box at 64, 2 of 3 x 4 lies outside of the picture of 64 x 48"),
        (HEADER + "0,-4,2,3,4\n", "csv:2: box at -4, 2"),
        (HEADER + '0,"1,2,3,4\n', "not valid CSV"),
    ],
)
def test_a_broken_box_file_is_refused_by_line(tmp_path, text, says):
    path = tmp_path / "a.faces.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=says):
        faces.read_boxes(path, 4, 48, 64)


def test_a_box_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "a.faces.csv").write_bytes(b"frame\xff")
    with pytest.raises(DataError, match="not UTF-8 text .byte 5"):
        faces.read_boxes(tmp_path / "a.faces.csv", 4, 48, 64)


def test_one_box_is_the_median_of_the_face_that_is_there_most_often():
    # A passer-by of 30x30 in two frames, the driver about 20x20 at (40, 50) in five.
    driver = [[40 + d, 50 - d, 20, 20] for d in (-2, -1, 0, 1, 2)]
    passer = [100, 10, 30, 30]
    box, ok = faces.one_box(boxes([driver[0], passer], [passer, driver[1]], [driver[2]], [driver[3]], [], [driver[4]]), 120, 160)
    # 20 + 10 % on both sides = 24, about the centre (50, 60)
    assert ok and box.tolist() == [38, 48, 24, 24]


def test_one_box_is_square_and_stays_inside_the_picture():
    box, ok = faces.one_box(boxes([[-10, -10, 40, 60]]), 120, 160)
    assert ok and box.tolist() == [0, 0, 72, 72]
    box, _ = faces.one_box(boxes([[130, 90, 29, 29]]), 120, 160)
    assert box.tolist() == [125, 85, 35, 35]
    box, _ = faces.one_box(boxes([[20, 0, 118, 118]]), 120, 160)  # larger than the picture with its margin
    assert box.tolist() == [19, 0, 120, 120]
    box, _ = faces.one_box(boxes([[5, 5, 0.1, 0.1]]), 120, 160)
    assert box[2] == box[3] == 1


def test_without_any_face_one_box_is_the_middle_and_says_so():
    box, ok = faces.one_box(boxes([], [], []), 120, 160)
    assert not ok and box.tolist() == [20, 0, 120, 120]


def test_a_box_per_frame_stays_where_the_face_is_lost():
    got = faces.box_per_frame(boxes([], [[1, 2, 4, 4], [10, 10, 8, 9]], [], [[-3, 40, 13, 20.6]], []), 48, 64)
    assert got.tolist() == [[0, 0, 0, 0], [10, 10, 8, 9], [10, 10, 8, 9], [0, 40, 10, 8], [0, 40, 10, 8]]
    assert got.dtype == np.int64


def test_a_crop_is_the_pixels_of_its_box():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 20, 30, 3), np.uint8)
    same = faces.crop(frames, np.array([4, 5, 8, 8]), 8)
    np.testing.assert_array_equal(same, frames[:, 5:13, 4:12])
    each = faces.crop(frames, np.array([[0, 0, 0, 0], [4, 5, 8, 8], [22, 12, 8, 8]]), 8)
    assert not each[0].any()  # no face yet: black
    np.testing.assert_array_equal(each[1], frames[1, 5:13, 4:12])
    np.testing.assert_array_equal(each[2], frames[2, 12:20, 22:30])
    half = faces.crop(frames, np.array([4, 4, 8, 8]), 4)
    # Half the size, half-pixel centres: the mean of 2x2, rounded half to even
    mean = frames[:, 4:12, 4:12].reshape(3, 4, 2, 4, 2, 3).mean((2, 4))
    np.testing.assert_array_equal(half, np.rint(mean))


def test_a_short_clip_ends_black():
    frames = np.full((2, 4, 4, 3), 9, np.uint8)
    filled = faces.fill_black(frames, 5)
    assert filled.shape == (5, 4, 4, 3) and (filled[:2] == 9).all() and not filled[2:].any()
    assert faces.fill_black(frames, 1) is frames


@pytest.fixture
def no_opencv(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "cv2":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)


def test_boxes_in_a_file_need_no_detector(tmp_path, no_opencv):
    video = tmp_path / "a.mp4"
    (tmp_path / "a.faces.csv").write_text(HEADER + "0,1,2,3,4\n")
    assert len(faces.boxes_of(video, np.zeros((1, 48, 64, 3), np.uint8))[0]) == 1
    before = faces.origin(video)
    (tmp_path / "a.faces.csv").write_text(HEADER + "0,1,2,3,5\n")
    assert faces.origin(video) != before  # other boxes, other clips


def test_without_boxes_and_detector_the_error_says_what_to_install(tmp_path, no_opencv):
    for ask in (lambda: faces.origin(tmp_path / "a.mp4"), lambda: faces.boxes_of(tmp_path / "a.mp4", np.zeros((1, 48, 64, 3), np.uint8))):
        with pytest.raises(ToolMissing, match=r"no detector is installed(.|\n)*pip install 'edgekit\[faces\]'"):
            ask()


def test_an_opencv_without_cascades_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", types.SimpleNamespace(__version__="5.0.0"))
    with pytest.raises(ToolMissing, match="OpenCV 5.0.0 is installed, which has no Haar cascades"):
        faces.detector()


def test_detected_boxes_are_kept_and_belong_to_the_video(tmp_path, monkeypatch):
    calls = []

    def detect(frames):
        calls.append(len(frames))
        return boxes(*([[1, 2, 30, 30]] for _ in frames))

    monkeypatch.setattr(faces, "detect", detect)
    monkeypatch.setattr(faces, "detector", lambda: "test")
    video = tmp_path / "a.mp4"
    video.write_bytes(b"one")
    frames = np.zeros((2, 48, 64, 3), np.uint8)
    first = faces.boxes_of(video, frames, tmp_path / "store")
    again = faces.boxes_of(video, frames, tmp_path / "store")
    assert calls == [2] and [b.tolist() for b in first] == [b.tolist() for b in again] == [[[1, 2, 30, 30]]] * 2
    video.write_bytes(b"another")
    faces.boxes_of(video, frames, tmp_path / "store")
    assert calls == [2, 2]


def test_the_cascade_finds_rendered_faces_and_none_in_noise():
    pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (2, 120, 160, 3), np.uint8)
    assert faces.without_face(faces.detect(noise)) == 2
    # Drawn faces are not photographs: it finds about half of the people, this one among them.
    frames = scene.make_clip(7, "test", 0, size=128, frames=2).frames
    (x, y, side, _), ok = faces.one_box(faces.detect(frames), 128, 128)
    assert ok and 80 < side < 128 and abs(x + side / 2 - 64) < 16 and abs(y + side / 2 - 64) < 16
    assert faces.detector().startswith("opencv 4.")

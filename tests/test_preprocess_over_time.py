"""Which frames are taken, what outputs over time stand for, features and labels: against loops and by hand."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from edgekit.datasets import Clip
from edgekit.errors import DataError
from edgekit.preprocess import check_spec, labels_of, preprocess, shapes, sources, window
from edgekit.preprocess.picture import floor_offset_indices, subsequence_indices, subsequence_spans

VIDEO = {
    "clips": 1,
    "frames_per_clip": 4,
    "height": 2,
    "width": 3,
    "color": "RGB",
    "layout": "TCHW",
    "resize": "bilinear_half_pixel",
    "sampling": "uniform_round_linspace",
    "mean": [0.0, 0.0, 0.0],
    "std": [1.0, 1.0, 1.0],
}
SUBSEQUENCES = VIDEO | {"sampling": "subsequences", "clips": 3, "frames_per_clip": 2, "frames_per_window": 5, "layout": "KCTHW"}
FLOOR_OFFSET = VIDEO | {"sampling": "floor_offset", "offset_divisor": 6}
FEATURES = {"vggish": {"dim": 2, "mean": [1.0, 10.0], "std": [0.5, 4.0]}}
SPECTRUM = {"kind": "log_mel", "n_fft": 32, "win_length": 32, "window": "hann", "n_mels": 6, "f_min": 0, "f_max": 500}


def numbered(n, **changes) -> Clip:
    """Frame i is all i; row i of its features and value i of its labels say i too."""
    frames = np.zeros((n, 2, 3, 3), np.uint8) + np.arange(n, dtype=np.uint8)[:, None, None, None]
    rows = np.arange(n, dtype=np.float32)
    fields = {"id": "c", "frames": frames, "fps": 25.0, "audio": np.ones(900, np.int16), "sample_rate_hz": 1000, "labels": {"valence": rows / 100, "emotion": 3.0}}
    return Clip(**{**fields, "features": {"vggish": np.stack([rows, rows**2], 1)}, **changes})


def shown(spec, clip):
    """The number of every frame that is shown, in order."""
    video = preprocess({"video": spec}, clip)["video"]
    time = np.moveaxis(video, spec["layout"].index("T"), spec["layout"].index("K") + 1 if "K" in spec["layout"] else 0)
    flat = time.reshape(spec["clips"], spec["frames_per_clip"], -1)
    assert (flat == flat[:, :, :1]).all()
    return flat[:, :, 0].astype(int).tolist()


# Sub-sequences.


def counted_back(n, n_clips, n_times, per_window):
    """The rule in words: windows that follow each other up to the last frame, every s-th frame back from each one's end."""
    rows = []
    for later in reversed(range(n_clips)):
        end = n - 1
        for _ in range(later * per_window):
            end = max(0, end - 1)
        there = [i for i in range(end - per_window + 1, end + 1) if i >= 0]
        step = 1
        while (step + 1) * n_times <= len(there):
            step += 1
        taken = there[::-1][::step][:n_times][::-1]
        rows.append(taken + [there[-1]] * (n_times - len(taken)))
    return rows


def test_subsequences_are_counted_back_from_their_last_frame():
    for per_window, n_times in ((32, 8), (8, 8), (5, 2), (7, 3), (1, 1)):
        for n in range(1, 70):
            for n_clips in (1, 2, 4):
                assert subsequence_indices(n, n_clips, n_times, per_window).tolist() == counted_back(n, n_clips, n_times, per_window), (n, n_clips)


@pytest.mark.parametrize(("n", "taken"), [(32, range(3, 32, 4)), (31, range(9, 31, 3)), (24, range(2, 24, 3)), (23, range(8, 23, 2)), (16, range(1, 16, 2)), (15, range(7, 15)), (8, range(8)), (5, [0, 1, 2, 3, 4, 4, 4, 4]), (1, [0] * 8)])
def test_eight_frames_of_thirty_two(n, taken):
    assert subsequence_indices(n, 1, 8, 32).tolist() == [list(taken)]


def test_a_window_of_512_frames_is_16_subsequences():
    first, last = subsequence_spans(600, 16, 32)
    assert last.tolist() == [119 + 32 * k for k in range(16)] and (last - first == 31).all()


def test_subsequences_show_their_frames():
    assert shown(SUBSEQUENCES, numbered(15)) == [[2, 4], [7, 9], [12, 14]]
    assert shown(SUBSEQUENCES, numbered(8)) == [[0, 0], [1, 2], [5, 7]]  # 1 frame: again; 3 frames: the last two


# Floor and offset.


def test_fifteen_of_108_frames_begin_at_the_fourth():
    assert floor_offset_indices(108, 15, 30).tolist() == [i * 108 // 15 + 3 for i in range(15)]
    assert floor_offset_indices(108, 15, 30).tolist() == [3, 10, 17, 24, 31, 39, 46, 53, 60, 67, 75, 82, 89, 96, 103]


@pytest.mark.parametrize(("n", "want"), [(1, [0, 0, 0, 0]), (3, [0, 0, 1, 2]), (6, [1, 2, 4, 5]), (12, [2, 5, 8, 11]), (18, [3, 7, 12, 16])])
def test_floor_offset_stays_within_the_clip(n, want):
    assert shown(FLOOR_OFFSET, numbered(n)) == [want]
    assert max(floor_offset_indices(n, 4, 1)) == n - 1


def test_a_window_of_frames_leaves_out_what_follows():
    for n in (3, 12, 13, 200):
        assert shown(FLOOR_OFFSET | {"window_frames": 12}, numbered(n)) == shown(FLOOR_OFFSET, numbered(min(n, 12)))


# The middle of a larger picture.


def test_resize_to_takes_the_middle():
    frames = np.random.default_rng(3).integers(0, 256, (4, 9, 11, 3), np.uint8)
    clip = numbered(4, frames=frames)
    large = preprocess({"video": VIDEO | {"height": 7, "width": 8}}, clip)["video"]
    got = preprocess({"video": VIDEO | {"resize_to": [7, 8]}}, clip)["video"]
    assert got.shape == (4, 3, 2, 3)
    np.testing.assert_array_equal(got, large[:, :, 2:4, 2:5])


# Labels and features.


@pytest.mark.parametrize(("video", "frames"), [(VIDEO, [0, 4, 9, 13]), (SUBSEQUENCES, [3, 8, 13]), (FLOOR_OFFSET, [2, 5, 9, 12])])
def test_labels_and_features_are_of_the_frames_that_outputs_stand_for(video, frames):
    clip, spec = numbered(14), {"video": video, "features": FEATURES}
    labels = labels_of(spec, clip)
    assert labels["emotion"] == 3.0 and type(labels["emotion"]) is float
    assert labels["valence"].dtype == np.float32
    np.testing.assert_array_equal(labels["valence"], clip.labels["valence"][frames])
    got = preprocess(spec, clip)["vggish"]
    assert got.dtype == np.float32 and got.shape == (len(frames), 2)
    np.testing.assert_array_equal(got, np.float32([[(i - 1) / 0.5, (i**2 - 10) / 4] for i in frames]))


def test_labels_that_do_not_fit_the_frames_are_refused():
    with pytest.raises(DataError, match=r"clip c: label `valence` is float64 \[3\], expected one value for each of 4 frames"):
        labels_of({"video": VIDEO}, numbered(4, labels={"valence": np.zeros(3)}))
    sound = {"audio": {"sample_rate_hz": 1000, "scale": 1.0, "features": {"f": SPECTRUM | {"per": "clip", "samples": 32, "fit": "start", "hop_length": 8, "center": False}}}}
    with pytest.raises(DataError, match=r"clip c: label `valence` is float32 \[4\], the sound has \d+ samples"):
        labels_of(sound, numbered(4))
    assert labels_of(sound, numbered(4, labels={"o": np.float32(0.5)})) == {"o": 0.5}


@pytest.mark.parametrize(
    ("features", "says"),
    [
        ({}, "no features `vggish`, it has none"),
        ({"mfcc": np.zeros((4, 2), np.float32)}, "no features `vggish`, it has mfcc"),
        ({"vggish": np.zeros((5, 2), np.float32)}, r"are float32 \[5, 2\], expected a row for each of 4 frames"),
        ({"vggish": np.zeros((4, 3), np.float32)}, r"must be float32 \[rows, 2\], got float32 \[4, 3\]"),
        ({"vggish": np.zeros(4, np.float32)}, r"got float32 \[4\]"),
        ({"vggish": np.zeros((4, 2), np.int32)}, "got int32"),
        ({"vggish": [[0.0, 0.0]] * 4}, "got list"),
        ({"vggish": np.full((4, 2), np.nan, np.float32)}, "hold NaN"),
    ],
)
def test_features_that_cannot_be_used_are_refused(features, says):
    with pytest.raises(DataError, match=f"clip c: .*{says}"):
        preprocess({"video": VIDEO, "features": FEATURES}, numbered(4, features=features))


@pytest.mark.parametrize("n_words", [0, 2, 3, 5])
def test_features_of_a_whole_clip_are_cut_or_filled_to_their_rows(n_words):
    words = np.random.default_rng(1).normal(size=(n_words, 2)).astype(np.float32)
    spec = {"features": {"words": {"per": "clip", "rows": 3, "dim": 2, "mean": 1.0, "std": [0.5, 4.0]}}}
    got = preprocess(spec, numbered(4, features={"words": words}))["words"]
    assert got.shape == shapes(spec)["words"] == (3, 2) and sources(spec) == {"words": "features"}
    kept = min(n_words, 3)
    np.testing.assert_array_equal(got[:kept], (words[:3] - np.float32(1)) / np.float32([0.5, 4]))
    assert not got[kept:].any()


# What a spec says of its inputs.


def whole_spec():
    return {
        "video": SUBSEQUENCES,
        "audio": {
            "sample_rate_hz": 1000,
            "scale": 32768.0,
            "features": {"mel": SPECTRUM | {"per": "subsequence", "samples": 200, "hop_length": 10, "center": True, "pad_mode": "reflect", "frames": 25}, "pitch": SPECTRUM | {"per": "frame"}},
        },
        "features": FEATURES,
    }


def test_a_spec_says_which_inputs_it_makes_of_what_and_how_large():
    spec = json.loads(json.dumps(whole_spec()))  # as it comes from a bundle
    assert sources(spec) == {"video": "video", "mel": "audio", "pitch": "audio", "vggish": "features"}
    assert shapes(spec) == {"video": (3, 3, 2, 2, 3), "mel": (3, 1, 6, 25), "pitch": (3, 6), "vggish": (3, 2)}
    for n in (1, 4, 15, 40):
        got = preprocess(spec, numbered(n))
        assert list(got) == list(sources(spec)) and {k: v.shape for k, v in got.items()} == shapes(spec)
        assert all(v.dtype == np.float32 and np.isfinite(v).all() and v.flags.c_contiguous for v in got.values())


def test_the_guides_examples_are_specs():
    blocks = re.findall(r"```json\n(.*?)```", (Path(__file__).parents[1] / "docs/data.md").read_text(), re.S)
    assert [shapes(json.loads(block)) for block in blocks] == [
        {"video": (15, 3, 224, 224), "mfcc": (12, 121)},
        {"video": (16, 3, 8, 112, 112), "mel": (16, 1, 64, 104)},
    ]


def test_a_wave_is_made_of_the_sound():
    spec = {"audio": {"sample_rate_hz": 1000, "samples": 40, "scale": 1.0, "normalize": "none", "pad": "right_zero_after_normalize", "layout": "CS"}}
    assert sources(spec) == {"wave": "audio"} and shapes(spec) == {"wave": (1, 40)} and window(spec) == (1, 40)


def test_the_window_is_what_fills_the_inputs():
    assert window({"video": VIDEO}) == (4, 1)
    assert window({"video": FLOOR_OFFSET | {"window_frames": 12}}) == (12, 1)
    assert window(whole_spec()) == (15, 600)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"video": VIDEO | {"sampling": "first"}}, "`video.sampling` is 'first', defined are uniform_round_linspace, floor_offset, subsequences"),
        ({"video": VIDEO | {"sampling": ["floor_offset"]}}, "`video.sampling` is"),
        ({"video": VIDEO | {"offset_divisor": 30}}, "unknown key `video.offset_divisor`"),
        ({"video": VIDEO | {"sampling": "floor_offset"}}, "`video.offset_divisor` is missing"),
        ({"video": FLOOR_OFFSET | {"offset_divisor": 0}}, "`video.offset_divisor` must be an integer of 1"),
        ({"video": FLOOR_OFFSET | {"window_frames": 1.5}}, "`video.window_frames` must be an integer of 1"),
        ({"video": SUBSEQUENCES | {"window_frames": 9}}, "unknown key `video.window_frames`"),
        ({"video": SUBSEQUENCES | {"frames_per_window": 1}}, "`video.frames_per_window` is 1, fewer than `frames_per_clip` 2"),
        ({"video": SUBSEQUENCES | {"layout": "TCHW"}}, "no axis K"),
        ({"video": VIDEO | {"resize_to": [1, 3]}}, r"`video.resize_to` must be \[height, width\] of at least \[2, 3\], .* got \[1, 3\]"),
        ({"video": VIDEO | {"resize_to": 48}}, "`video.resize_to`"),
        ({"video": VIDEO | {"resize_to": [48, True]}}, "`video.resize_to`"),
        ({"features": {}}, "`features` must be a mapping"),
        ({"features": {"a b": FEATURES["vggish"]}}, "'a b' is no name"),
        ({"features": {"mel": FEATURES["vggish"]}}, "`features.mel`: another input has that name"),
        ({"features": {"v": {"dim": 2, "mean": [0, 0]}}}, "`features.v.std` is missing"),
        ({"features": {"v": {"dim": 2, "mean": [0, 0], "std": [1, 0]}}}, "`features.v.std` must be 2 finite positive numbers"),
        ({"features": {"v": {"dim": 2, "mean": [0], "std": [1, 1]}}}, "`features.v.mean` must be 2 finite numbers"),
        ({"features": {"v": {"dim": 2, "mean": None, "std": [1, 1]}}}, "`features.v.mean` must be 2 finite numbers"),
        ({"features": {"v": {"per": "word", "dim": 2, "mean": 0, "std": 1}}}, "`features.v.per` is 'word', defined are frame, clip"),
        ({"features": {"v": {"per": "clip", "dim": 2, "mean": 0, "std": 1}}}, "`features.v.rows` is missing"),
        ({"features": {"v": {"rows": 3, "dim": 2, "mean": 0, "std": 1}}}, "unknown key `features.v.rows`"),
        ({"features": {"v": {"dim": 0, "mean": [], "std": []}}}, "`features.v.dim`"),
        ({"features": {"v": {"dim": 1, "mean": [math.nan], "std": [1]}}}, "`features.v.mean`"),
    ],
)
def test_a_spec_that_is_not_defined_is_refused_by_its_key(changes, says):
    check_spec(whole_spec())
    with pytest.raises(DataError, match=f"preprocess.json: .*{says}"):
        check_spec(copy.deepcopy(whole_spec()) | changes)


def test_features_need_a_video_to_choose_frames_by():
    with pytest.raises(DataError, match="`features.vggish` are taken at the frames"):
        check_spec({"features": FEATURES})

"""Preprocessing against loops written from its definition, and against torch and scipy."""

from __future__ import annotations

import copy
import math
from fractions import Fraction

import numpy as np
import pytest

from edgekit.datasets import Clip
from edgekit.errors import DataError
from edgekit.preprocess import check_spec, frame_indices, preprocess, resize_bilinear, window

SPEC = {
    "video": {
        "clips": 2,
        "frames_per_clip": 3,
        "height": 5,
        "width": 7,
        "color": "RGB",
        "layout": "KCTHW",
        "resize": "bilinear_half_pixel",
        "sampling": "uniform_round_linspace",
        "mean": [114.7748, 107.7354, 99.4750],
        "std": [1.0, 2.0, 1.0],
    },
    "audio": {
        "sample_rate_hz": 16000,
        "samples": 400,
        "scale": 32768.0,
        "normalize": "zero_mean_unit_variance",
        "eps": 1e-7,
        "pad": "right_zero_after_normalize",
    },
}


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def make_clip(rng, n=11, h=9, w=12, samples=500, **changes) -> Clip:
    fields = {
        "id": "c",
        "frames": rng.integers(0, 256, (n, h, w, 3), np.uint8),
        "fps": 25.0,
        "audio": rng.integers(-20000, 20000, samples).astype(np.int16),
        "sample_rate_hz": 16000,
        "labels": {"o": 0.0},
    }
    return Clip(**{**fields, **changes})


def brute_video(spec, frames):
    """The definition, one pixel at a time, in Python integers and float32."""
    f32 = np.float32
    n, h, w, _ = frames.shape
    n_clips, n_times, height, width = (spec[k] for k in ("clips", "frames_per_clip", "height", "width"))
    wanted = n_clips * n_times
    out = np.zeros((n_clips, 3, n_times, height, width), np.float32)
    for i in range(wanted):
        index = round(Fraction(i * (n - 1), wanted - 1)) if wanted > 1 else 0  # Fraction rounds half to even
        for y in range(height):
            py = max(0, (2 * y + 1) * h - height)
            y0 = py // (2 * height)
            y1, ay = min(y0 + 1, h - 1), f32(py % (2 * height)) / f32(2 * height)
            for x in range(width):
                px = max(0, (2 * x + 1) * w - width)
                x0 = px // (2 * width)
                x1, ax = min(x0 + 1, w - 1), f32(px % (2 * width)) / f32(2 * width)
                for c in range(3):
                    tl, tr, bl, br = (f32(frames[index, yy, xx, c]) for yy in (y0, y1) for xx in (x0, x1))
                    top = tl + (tr - tl) * ax
                    bottom = bl + (br - bl) * ax
                    v = top + (bottom - top) * ay
                    out[i // n_times, c, i % n_times, y, x] = (v - f32(spec["mean"][c])) / f32(spec["std"][c])
    return out


def brute_wave(spec, audio):
    f32 = np.float32
    m = min(len(audio), spec["samples"])
    s1 = sum(int(x) for x in audio[:m])
    s2 = sum(int(x) ** 2 for x in audio[:m])
    mean = s1 / m
    var = max(0.0, s2 / m - mean * mean)
    offset = f32(mean / spec["scale"])
    gain = f32(1 / math.sqrt(var / spec["scale"] ** 2 + spec["eps"]))
    out = np.zeros(spec["samples"], np.float32)
    for i in range(m):
        out[i] = (f32(audio[i]) / f32(spec["scale"]) - offset) * gain
    return out


@pytest.mark.parametrize(("n", "h", "w"), [(11, 9, 12), (1, 9, 12), (3, 5, 7), (6, 2, 3), (40, 1, 1)])
def test_video_is_bit_equal_to_the_definition(rng, n, h, w):
    clip = make_clip(rng, n=n, h=h, w=w)
    got = preprocess(SPEC, clip)["video"]
    assert got.dtype == np.float32 and got.shape == (2, 3, 3, 5, 7)
    np.testing.assert_array_equal(got, brute_video(SPEC["video"], clip.frames))


@pytest.mark.parametrize("samples", [1, 399, 400, 401, 5000])
def test_wave_is_bit_equal_to_the_definition(rng, samples):
    clip = make_clip(rng, samples=samples)
    got = preprocess(SPEC, clip)["wave"]
    assert got.dtype == np.float32 and got.shape == (400,)
    np.testing.assert_array_equal(got, brute_wave(SPEC["audio"], clip.audio))


def test_frame_indices_are_the_exact_half_to_even_rounding_of_linspace():
    for n in range(1, 60):
        for wanted in range(1, 40):
            step = Fraction(n - 1, wanted - 1) if wanted > 1 else Fraction(0)
            assert frame_indices(n, wanted).tolist() == [round(i * step) for i in range(wanted)]


def test_frame_indices_agree_with_numpys_linspace_where_no_half_is_hit():
    assert frame_indices(150, 32).tolist() == np.round(np.linspace(0, 149, 32)).astype(int).tolist()


def test_a_short_clip_repeats_its_frames(rng):
    assert frame_indices(2, 6).tolist() == [0, 0, 0, 1, 1, 1]
    one = preprocess(SPEC, make_clip(rng, n=1))["video"]
    assert (one == one[:1, :, :1]).all()


@pytest.mark.parametrize("size", [(64, 64), (3, 200), (112, 1), (48, 80)])
def test_resize_equals_torchs_bilinear_interpolation(rng, size):
    torch = pytest.importorskip("torch")
    image = rng.integers(0, 256, (48, 80, 3), np.uint8)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    want = torch.nn.functional.interpolate(tensor, size=size, mode="bilinear", align_corners=False, antialias=False)
    # 2e-3: torch forms the coordinate in float32, up to 8e-6 of a pixel off at column 80, times 255
    np.testing.assert_allclose(resize_bilinear(image, *size), want[0].permute(1, 2, 0).numpy(), rtol=0, atol=2e-3)


def test_resize_equals_scipys_linear_interpolation(rng):
    ndimage = pytest.importorskip("scipy.ndimage")
    image = rng.integers(0, 256, (20, 31, 3), np.uint8)
    got = resize_bilinear(image, 33, 17)
    rows = np.maximum((np.arange(33) + 0.5) * 20 / 33 - 0.5, 0)
    columns = np.maximum((np.arange(17) + 0.5) * 31 / 17 - 0.5, 0)
    grid = np.meshgrid(rows, columns, indexing="ij")
    for c in range(3):
        want = ndimage.map_coordinates(image[:, :, c].astype(float), grid, order=1, mode="nearest")
        np.testing.assert_allclose(got[:, :, c], want, rtol=0, atol=1e-4)  # 1e-4: four float32 roundings of 255


def test_resize_to_the_same_size_changes_nothing(rng):
    image = rng.integers(0, 256, (13, 8, 3), np.uint8)
    np.testing.assert_array_equal(resize_bilinear(image, 13, 8), image)


def test_a_wave_has_zero_mean_and_unit_variance_and_its_padding_is_zero(rng):
    wave = preprocess(SPEC, make_clip(rng, samples=300))["wave"]
    assert abs(wave[:300].mean()) < 1e-6 and abs(wave[:300].var() - 1) < 1e-5
    assert not wave[300:].any()


def test_a_wave_equals_hubert_feature_extraction(rng):
    audio = make_clip(rng, samples=390).audio
    x = audio.astype(np.float64) / 32768
    want = (x - x.mean()) / np.sqrt(x.var() + 1e-7)
    got = preprocess(SPEC, make_clip(rng, audio=audio))["wave"]
    np.testing.assert_allclose(got[:390], want, rtol=0, atol=1e-6)  # 1e-6: values up to 2, float32


def test_what_is_cut_off_does_not_count_for_the_statistics(rng):
    audio = make_clip(rng, samples=400).audio
    longer = np.concatenate([audio, np.full(1000, 32767, np.int16)])
    short, long = (preprocess(SPEC, make_clip(rng, audio=a))["wave"] for a in (audio, longer))
    np.testing.assert_array_equal(short, long)


def test_a_silent_or_constant_wave_is_finite(rng):
    for value in (0, 32767, -32768):
        wave = preprocess(SPEC, make_clip(rng, audio=np.full(400, value, np.int16)))["wave"]
        assert np.isfinite(wave).all() and abs(wave).max() < 1e-3


def test_a_spec_of_one_modality_gives_that_modality(rng):
    assert set(preprocess({"audio": SPEC["audio"]}, make_clip(rng))) == {"wave"}
    assert set(preprocess({"video": SPEC["video"]}, make_clip(rng))) == {"video"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"audio": np.zeros(0, np.int16)}, "no audio"),
        ({"audio": np.full(9, np.nan, np.float32)}, "NaN"),
        ({"audio": np.zeros(9, np.float32)}, "must be int16, got float32"),
        ({"audio": np.zeros((2, 9), np.int16)}, "mono"),
        ({"frames": np.zeros((0, 4, 4, 3), np.uint8)}, "no video"),
        ({"frames": np.zeros((2, 4, 4, 1), np.uint8)}, r"must be \[n, h, w, 3\]"),
        ({"frames": np.full((2, 4, 4, 3), np.nan)}, "NaN"),
        ({"frames": np.zeros((2, 4, 4, 3), np.float32)}, "must be uint8"),
        ({"frames": None}, "NoneType"),
        ({"sample_rate_hz": 44100}, "audio is at 44100 Hz, the model takes 16000 Hz"),
    ],
)
def test_a_clip_that_cannot_be_used_is_refused_by_its_id(rng, changes, says):
    with pytest.raises(DataError, match=f"clip c: .*{says}"):
        preprocess(SPEC, make_clip(rng, **changes))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("video", "clips", 0),
        ("video", "clips", True),
        ("video", "height", 2.5),
        ("video", "width", 1 << 40),
        ("video", "color", "BGR"),
        ("video", "resize", "area"),
        ("video", "mean", [1.0, 2.0]),
        ("video", "mean", [1.0, 2.0, math.nan]),
        ("video", "std", [1.0, 0.0, 1.0]),
        ("audio", "samples", -1),
        ("audio", "scale", 0),
        ("audio", "eps", math.inf),
        ("audio", "normalize", "peak"),
        ("audio", "gain", 1),
    ],
)
def test_a_spec_that_is_not_defined_is_refused_by_its_key(section, key, value):
    spec = copy.deepcopy(SPEC)
    spec[section][key] = value
    with pytest.raises(DataError, match=f"`{section}.{key}`"):
        check_spec(spec)


@pytest.mark.parametrize("section", ["video", "audio"])
def test_a_spec_with_a_missing_key_is_refused(section):
    for key in SPEC[section]:
        spec = copy.deepcopy(SPEC)
        del spec[section][key]
        with pytest.raises(DataError, match=f"`{section}.{key}` is missing"):
            check_spec(spec)
    for broken in ({}, {"text": {}}, [], None, {section: 3}):
        with pytest.raises(DataError, match="preprocess.json"):
            check_spec(broken)


# layouts


@pytest.mark.parametrize("layout, shape", [("CTHW", (3, 4, 6, 5)), ("TCHW", (4, 3, 6, 5)), ("THWC", (4, 6, 5, 3))])
def test_a_layout_orders_the_same_values(layout, shape):
    spec = copy.deepcopy(SPEC)
    spec["video"] |= {"clips": 1, "frames_per_clip": 4, "height": 6, "width": 5}
    frames = np.random.default_rng(0).integers(0, 256, (9, 11, 7, 3), np.uint8)
    clip = Clip("a", frames, 25.0, np.ones(9, np.int16), 16000, {})
    [whole] = preprocess({"video": spec["video"]}, clip)["video"]  # of KCTHW's one clip: [3, t, h, w]
    got = preprocess({"video": {**spec["video"], "layout": layout}}, clip)["video"]
    assert got.shape == shape and got.flags.c_contiguous
    assert np.array_equal(np.moveaxis(got, [layout.index(axis) for axis in "CTHW"], range(4)), whole)


def test_a_picture_has_no_time_axis_and_must_not_need_one():
    spec = copy.deepcopy(SPEC["video"]) | {"layout": "HWC", "clips": 1, "frames_per_clip": 1, "height": 6, "width": 5}
    clip = Clip("a", np.full((9, 11, 7, 3), 100, np.uint8), 25.0, np.ones(9, np.int16), 16000, {})
    assert preprocess({"video": spec}, clip)["video"].shape == (6, 5, 3)
    with pytest.raises(DataError, match=r"`video.frames_per_clip` is 2, but `layout` HWC has no axis T"):
        preprocess({"video": {**spec, "frames_per_clip": 2}}, clip)


def test_sound_that_is_not_normalized_is_only_scaled():
    spec = {"sample_rate_hz": 16000, "samples": 4, "scale": 32768.0, "normalize": "none", "pad": "right_zero_after_normalize", "layout": "CS"}
    clip = Clip("a", np.zeros((1, 2, 2, 3), np.uint8), 25.0, np.array([16384, -32768, 1], np.int16), 16000, {})
    assert preprocess({"audio": spec}, clip)["wave"].tolist() == [[0.5, -1.0, 1 / 32768, 0.0]]


# summary images


def average_spec(**changes):
    return copy.deepcopy(SPEC["video"]) | {"clips": 1, "frames_per_clip": 1, "layout": "CHW", "average": "all", **changes}


@pytest.mark.parametrize(("average", "n", "chosen"), [("all", 4, [0, 1, 2, 3]), (3, 6, [0, 2, 5]), (3, 2, [0, 0, 1]), (1, 5, [0]), ("all", 1, [0])])
def test_a_summary_image_is_bit_equal_to_the_definition(rng, average, n, chosen):
    """Added up as integers, divided once, then resized like any frame: its mean is exact, so a whole number of it is a frame."""
    spec, clip = average_spec(average=average), make_clip(rng, n=n)
    got = preprocess({"video": spec}, clip)["video"]
    h, w = clip.frames.shape[1:3]
    mean = np.empty((h, w, 3), np.float32)
    for y in range(h):
        for x in range(w):
            for c in range(3):
                mean[y, x, c] = np.float32(sum(int(clip.frames[i, y, x, c]) for i in chosen)) / np.float32(len(chosen))
    expected = (resize_bilinear(mean, 5, 7) - np.float32(spec["mean"])) / np.float32(spec["std"])
    assert got.shape == (3, 5, 7) and np.array_equal(got, expected.transpose(2, 0, 1))


def test_the_summary_of_one_frame_over_and_over_is_that_frame(rng):
    clip = make_clip(rng, n=1)
    still = make_clip(rng, frames=np.repeat(clip.frames, 301, axis=0))
    plain = preprocess({"video": {k: v for k, v in average_spec().items() if k != "average"}}, clip)["video"]
    assert np.array_equal(preprocess({"video": average_spec()}, still)["video"], plain)


@pytest.mark.parametrize("changes", [{"average": 0}, {"average": "some"}, {"average": 2.0}, {"average": 3, "frames_per_clip": 2, "layout": "CTHW"}, {"sampling": "floor_offset", "offset_divisor": 30}])
def test_an_average_that_is_not_defined_is_refused(changes):
    with pytest.raises(DataError, match=r"`video.average`"):
        check_spec({"video": average_spec(**changes)})


def test_a_window_of_averaged_frames_is_as_long_as_they_are():
    assert window({"video": average_spec(average=16)}) == (16, 1) and window({"video": average_spec()}) == (1, 1)

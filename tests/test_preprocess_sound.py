"""Spectra of the sound against loops written from the definition, numbers from librosa, and torch's STFT."""

from __future__ import annotations

import cmath
import copy
import math

import numpy as np
import pytest

from edgekit.datasets import Clip
from edgekit.errors import DataError
from edgekit.preprocess import check_spec, preprocess, shapes
from edgekit.preprocess.sound import subtracted

RATE = 1000
VIDEO = {
    "clips": 3,
    "frames_per_clip": 2,
    "frames_per_window": 4,
    "height": 2,
    "width": 2,
    "color": "RGB",
    "layout": "KCTHW",
    "resize": "bilinear_half_pixel",
    "sampling": "subsequences",
    "mean": [0.0, 0.0, 0.0],
    "std": [255.0, 255.0, 255.0],
}
MFCC = {"kind": "mfcc", "n_fft": 32, "win_length": 21, "window": "hamming", "n_mels": 7, "n_mfcc": 4, "f_min": 20.0, "f_max": 480.0}
LOG_MEL = {"kind": "log_mel", "n_fft": 32, "win_length": 32, "window": "hann", "n_mels": 6, "f_min": 0, "f_max": 500}
CENTRED = {"hop_length": 9, "center": True, "pad_mode": "constant"}
CLIP = {"per": "clip", "samples": 130, "fit": "start", **CENTRED}
SUBSEQUENCE = {"per": "subsequence", "samples": 80, "hop_length": 9, "center": True, "pad_mode": "reflect"}


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def spec_of(how: dict, **audio) -> dict:
    return {"video": VIDEO, "audio": {"sample_rate_hz": RATE, "scale": 32768.0, "features": {"f": how}, **audio}}


def make_clip(rng, samples=150, n=13, **changes) -> Clip:
    fields = {"id": "c", "frames": np.zeros((n, 2, 2, 3), np.uint8), "fps": 50.0, "audio": rng.integers(-20000, 20000, samples).astype(np.int16), "sample_rate_hz": RATE, "labels": {}}
    return Clip(**{**fields, **changes})


# The definition, in plain loops.


def mel_edges(how):
    def to_mel(f):
        if how["kind"] == "log_mel":
            return 2595 * math.log10(1 + f / 700)
        return 3 * f / 200 if f < 1000 else 15 + 27 * math.log(f / 1000) / math.log(6.4)

    def to_hz(m):  # bisection: the inverse is not written down, so it cannot be wrong in the same way
        low, high = 0.0, 1e5
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if to_mel(middle) < m else (low, middle)
        return low

    a, b, n = to_mel(how["f_min"]), to_mel(how["f_max"]), how["n_mels"] + 1
    return [to_hz(a + (b - a) * j / n) for j in range(n + 1)]


def mel_powers(how, column, rate=RATE):
    n_fft, length = how["n_fft"], how["win_length"]
    a, left = {"hann": 0.5, "hamming": 0.54}[how["window"]], (n_fft - length) // 2
    weighted = [column[left + i] * (a - (1 - a) * math.cos(2 * math.pi * i / length)) for i in range(length)]
    powers = [abs(sum(x * cmath.exp(-2j * math.pi * k * (left + i) / n_fft) for i, x in enumerate(weighted))) ** 2 for k in range(n_fft // 2 + 1)]
    edges, out = mel_edges(how), []
    for j in range(how["n_mels"]):
        low, top, high = edges[j : j + 3]
        h = 2 / (high - low) if how["kind"] == "mfcc" else 1.0
        hz = [k * rate / n_fft for k in range(len(powers))]
        out.append(sum(p * h * max(0.0, min((f - low) / (top - low), (high - f) / (high - top))) for p, f in zip(powers, hz, strict=True)))
    return out


def columns_of(how, x):
    half = how["n_fft"] // 2
    if how["center"]:
        before = [x[half - i] for i in range(half)] if how["pad_mode"] == "reflect" else [0.0] * half
        after = [x[len(x) - 2 - i] for i in range(half)] if how["pad_mode"] == "reflect" else [0.0] * half
        x = [*before, *x, *after]
    starts = range(0, len(x) - how["n_fft"] + 1, how["hop_length"])
    return [x[start : start + how["n_fft"]] for start in starts]


def cepstra(how, columns):
    """[column][value] before deltas, shift and scale."""
    decibels = [[10 * math.log10(max(1e-10, p)) for p in mel_powers(how, column)] for column in columns]
    floor = max(map(max, decibels)) - 80
    decibels = [[max(v, floor) for v in column] for column in decibels]
    if how["kind"] == "log_mel":
        return decibels
    n = how["n_mels"]
    return [[math.sqrt((1 if u == 0 else 2) / n) * sum(b * math.cos(math.pi * u * (2 * j + 1) / (2 * n)) for j, b in enumerate(column)) for u in range(how["n_mfcc"])] for column in decibels]


def deltas_of(nine):
    """Derivatives of the least-squares line and parabola through nine columns, by numpy's fit."""
    t = np.arange(-4, 5)
    return [*(np.polyfit(t, v, 1)[0] for v in np.transpose(nine)), *(2 * np.polyfit(t, v, 2)[0] for v in np.transpose(nine))]


def finished(how, columns, nines):
    rows = [[*column, *(deltas_of(nine) if how.get("deltas") else [])] for column, nine in zip(columns, nines, strict=True)]
    return (np.array(rows).T + np.reshape(how.get("shift", 0), (-1, 1))) / np.reshape(how.get("scale", 1), (-1, 1))


def loop_spectrum(how, x):
    columns = cepstra(how, columns_of(how, x))
    middles = [min(max(c, 4), len(columns) - 5) for c in range(len(columns))]
    return finished(how, columns, [columns[m - 4 : m + 5] for m in middles])


def scaled(clip):
    return [int(v) / 32768 for v in clip.audio]


@pytest.mark.parametrize("samples", [1, 129, 130, 131, 200])
@pytest.mark.parametrize("fit", ["start", "center"])
def test_a_clips_mfcc_equals_the_definition(rng, samples, fit):
    how = MFCC | CLIP | {"fit": fit}
    clip, start = make_clip(rng, samples), max(0, samples - 130) // 2 if fit == "center" else 0
    x = scaled(clip)[start : start + 130]
    got = preprocess(spec_of(how), clip)["f"]
    assert got.dtype == np.float32 and got.shape == (4, 15)
    np.testing.assert_allclose(got, loop_spectrum(how, x + [0.0] * (130 - len(x))), rtol=1e-6, atol=1e-5)  # values of some 100, float32


@pytest.mark.parametrize(
    "changes",
    [
        {"deltas": True},
        {"pad_mode": "reflect"},
        {"center": False},
        {"window": "hann", "win_length": 32},
        {"shift": [1.0, -2.0, 3.0, 0.5], "scale": [2.0, 0.25, 100.0, 1]},
        {"deltas": True, "shift": 3.5, "scale": list(range(1, 13))},
        {"n_mels": 4, "hop_length": 1},
    ],
    ids=str,
)
def test_every_option_of_mfcc_equals_the_definition(rng, changes):
    how = MFCC | CLIP | changes
    if not how["center"]:
        del how["pad_mode"]
    clip = make_clip(rng, 117)
    want = loop_spectrum(how | {"pad_mode": how.get("pad_mode")}, scaled(clip) + [0.0] * 13)
    got = preprocess(spec_of(how), clip)["f"]
    assert got.shape == want.shape == shapes(spec_of(how))["f"]
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(("n", "samples"), [(13, 260), (13, 150), (12, 250), (5, 90), (1, 40), (40, 800), (13, 1)])
@pytest.mark.parametrize("until", ["end_of_frame", "start_of_frame"])
def test_a_subsequences_log_mel_is_of_what_is_heard_meanwhile(rng, n, samples, until):
    how = LOG_MEL | SUBSEQUENCE | {"shift": 14.8, "scale": 19.895, "until": until}
    clip = make_clip(rng, samples, n)
    got = preprocess(spec_of(how), clip)["f"]
    assert got.shape == (3, 1, 6, 9)
    for k in range(3):
        e = max(0, n - 1 - (2 - k) * 4)
        b = max(0, e - 3)
        x = scaled(clip)[20 * b : 20 * (e + (until == "end_of_frame"))]  # 50 frames and 1000 samples a second
        np.testing.assert_allclose(got[k, 0], loop_spectrum(how, [0.0] * (80 - len(x)) + x), rtol=1e-5, atol=1e-5)


def test_the_last_columns_are_kept_and_zeros_go_before_fewer(rng):
    how = LOG_MEL | SUBSEQUENCE | {"frames": 11, "shift": 14.8, "scale": 19.895}
    times = np.array([0, 10, 20, 30, 40, 100, 120, 140, 160, 162, 164, 166.5, 170])
    clip = make_clip(rng, 400, frame_ms=times)
    got = preprocess(spec_of(how), clip)["f"]
    assert got.shape == (3, 1, 6, 11)
    for k, (start, end) in enumerate([(10, 100), (100, 162), (162, 190)]):  # 166.5 ms begins no window; the last frame lasts 1/fps
        x = scaled(clip)[start:end]
        want = loop_spectrum(how, [0.0] * (80 - len(x)) + x)
        columns = want.shape[1]
        assert columns == (11, 9, 9)[k]
        np.testing.assert_allclose(got[k, 0, :, 11 - columns :], want, rtol=1e-5, atol=1e-5)
        assert not got[k, 0, :, : 11 - columns].any()
    long = make_clip(rng, 400, frame_ms=np.array([*times[:5], *(times[5:] + 100)]))  # window 0 lasts 190 ms: 22 columns
    want = loop_spectrum(how, scaled(long)[10:200])
    assert want.shape[1] == 22
    np.testing.assert_allclose(preprocess(spec_of(how), long)["f"][0, 0], want[:, -11:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("deltas", [False, True])
def test_a_column_at_every_output_frame(rng, deltas):
    how = MFCC | {"per": "frame"} | ({"deltas": True, "hop_length": 5} if deltas else {})
    video = VIDEO | {"clips": 1, "frames_per_clip": 6, "sampling": "uniform_round_linspace"}
    del video["frames_per_window"]
    times = np.array([-90.0, 0.4, 0.5, 77.0, 140.0, 900.0])
    clip = make_clip(rng, 150, 6, frame_ms=times)
    spec = spec_of(how) | {"video": video}
    got = preprocess(spec, clip)["f"]
    assert got.shape == (6, 12 if deltas else 4) == shapes(spec)["f"] and got.flags.c_contiguous

    x = scaled(clip)
    offsets = [5 * v for v in range(-4, 5)] if deltas else [0]
    columns = [[x[i] if 0 <= i < len(x) else 0.0 for i in range(s + o - 16, s + o + 16)] for s in (-90, 0, 1, 77, 140, 900) for o in offsets]
    values = cepstra(how, columns)
    nines = [values[i : i + len(offsets)] for i in range(0, len(values), len(offsets))]
    want = finished(how, [nine[len(nine) // 2] for nine in nines], nines)
    np.testing.assert_allclose(got, want.T, rtol=1e-6, atol=1e-5)


def test_columns_follow_the_ends_of_subsequences(rng):
    how = LOG_MEL | {"per": "frame"}
    clip = make_clip(rng, 260)
    got = preprocess(spec_of(how), clip)["f"]
    one = preprocess(spec_of(how) | {"video": VIDEO | {"clips": 1}}, clip)["f"]
    assert got.shape == (3, 6)
    np.testing.assert_allclose(one[0], preprocess(spec_of(how), make_clip(rng, 260, audio=clip.audio))["f"][2], rtol=0, atol=0)


# Against others.


def chirps(n):
    """int16 [n], made in integers so that another program can make the same."""
    i = np.arange(n, dtype=np.int64)
    return ((i * i * 31 // 64 + 17 * i) % 24001 * (1 + i // 4000 % 3) // 3 - 4000).astype(np.int16)


def spectrum(audio, rate, how):
    clip = Clip("c", np.zeros((1, 2, 2, 3), np.uint8), 25.0, audio, rate, {})
    return preprocess({"audio": {"sample_rate_hz": rate, "scale": 32768.0, "features": {"f": how}}}, clip)["f"]


# librosa 0.11.0, numpy 2.4.6, y = chirps(20000) / 32768 in float64; atol: they are rounded to 4 digits
def test_mfcc_equals_librosas_numbers():
    how = {"kind": "mfcc", "per": "clip", "samples": 16000, "fit": "start", "n_fft": 1024, "win_length": 800, "hop_length": 480, "window": "hamming", "n_mels": 128, "n_mfcc": 12, "f_min": 0.0, "f_max": 8000.0, "center": True, "pad_mode": "constant", "deltas": True}
    got = spectrum(chirps(20000), 16000, how)  # feature.mfcc(y[:16000], 16000, n_mfcc=12, ...), feature.delta(..., order=1 and 2)
    assert got.shape == (36, 34)
    np.testing.assert_allclose(got[np.ix_([0, 1, 11], [0, 15, 33])], [[-244.2931, -116.8844, -195.0278], [94.0785, -23.2447, -30.9781], [4.6836, 1.4449, -3.0188]], rtol=0, atol=1e-4)
    np.testing.assert_allclose(got[np.ix_([12, 13, 23], [0, 15, 33])], [[1.7381, 6.2116, -8.9892], [-13.9043, 1.6747, -9.9727], [-0.3758, -0.1221, 0.5436]], rtol=0, atol=1e-4)
    np.testing.assert_allclose(got[np.ix_([24, 25, 35], [0, 15, 33])], [[-2.4825, 3.044, 5.8608], [8.8916, -1.4352, 4.9454], [-0.7311, 1.9916, 0.5631]], rtol=0, atol=1e-4)


def test_mfcc_equals_librosas_numbers_for_its_defaults():
    how = {"kind": "mfcc", "per": "clip", "samples": 15000, "fit": "center", "n_fft": 2048, "win_length": 2048, "hop_length": 512, "window": "hann", "n_mels": 128, "n_mfcc": 10, "f_min": 0, "f_max": 11025, "center": True, "pad_mode": "constant"}
    got = spectrum(chirps(20000), 22050, how)  # feature.mfcc(y[2500:17500], 22050, n_mfcc=10)
    assert got.shape == (10, 30)
    np.testing.assert_allclose(got[np.ix_([0, 1, 9], [0, 15, 29])], [[-158.0171, -1.446, -49.2934], [-35.6838, -23.0118, -8.1727], [-24.1705, 5.6481, 12.7168]], rtol=0, atol=1e-4)


def test_log_mel_equals_librosas_numbers():
    how = {"kind": "log_mel", "per": "clip", "samples": 10240, "fit": "start", "n_fft": 512, "win_length": 320, "hop_length": 160, "window": "hann", "n_mels": 40, "f_min": 0, "f_max": 8000, "center": True, "pad_mode": "reflect"}
    got = spectrum(chirps(20000), 16000, how)  # power_to_db(feature.melspectrogram(y[:10240], 16000, htk=True, norm=None, pad_mode="reflect", ...), top_db=80)
    assert got.shape == (40, 65)
    np.testing.assert_allclose(got[np.ix_([0, 20, 39], [0, 30, 64])], [[21.8571, 22.8527, 28.6247], [-50.2789, -0.1935, 9.5078], [-50.2789, 6.5898, 16.1153]], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("window", "pad_mode"), [("hann", "reflect"), ("hamming", "constant")])
def test_powers_equal_torchs_stft(rng, window, pad_mode):
    torch = pytest.importorskip("torch")
    from edgekit.preprocess.sound import mel_filters

    audio = rng.integers(-9000, 9000, 4000).astype(np.int16)
    how = {"kind": "log_mel", "per": "clip", "samples": 4000, "fit": "start", "n_fft": 256, "win_length": 200, "hop_length": 100, "window": window, "n_mels": 20, "f_min": 0, "f_max": 4000, "center": True, "pad_mode": pad_mode}
    shape = getattr(torch, f"{window}_window")(200, periodic=True, dtype=torch.float64)
    transformed = torch.stft(torch.from_numpy(audio / 32768.0), 256, 100, 200, shape, center=True, pad_mode=pad_mode, return_complex=True)
    decibels = 10 * np.log10(mel_filters("log_mel", 8000, 256, 20, 0.0, 4000.0) @ transformed.abs().square().numpy())
    np.testing.assert_allclose(spectrum(audio, 8000, how), decibels, rtol=0, atol=1e-5)


# Edges.


def test_silence_is_at_the_floor_and_finite():
    how = LOG_MEL | CLIP | {"shift": 100.0}
    assert not spectrum(np.zeros(5, np.int16), RATE, how).any()


def test_nothing_is_80_db_below_the_loudest_band(rng):
    audio = np.r_[np.zeros(300), rng.integers(-9000, 9000, 100)].astype(np.int16)
    got = spectrum(audio, RATE, LOG_MEL | CLIP | {"samples": 400})
    assert math.isclose(got.max() - got.min(), 80, abs_tol=1e-4) and (got[:, :20] == got.min()).all()


def test_the_same_clip_gives_the_same_bits(rng):
    clip = make_clip(rng)
    spec = spec_of(MFCC | CLIP | {"deltas": True})
    assert preprocess(spec, clip)["f"].tobytes() == preprocess(spec, clip)["f"].tobytes()


def test_sound_that_cannot_be_used_is_refused_as_a_wave_is(rng):
    for changes, says in (({"audio": np.zeros(0, np.int16)}, "no audio"), ({"sample_rate_hz": 44100}, "audio is at 44100 Hz, the model takes 1000 Hz"), ({"audio": np.zeros(9, np.float32)}, "must be int16")):
        with pytest.raises(DataError, match=f"clip c: .*{says}"):
            preprocess(spec_of(MFCC | CLIP), make_clip(rng, **changes))


@pytest.mark.parametrize(
    ("times", "says"),
    [([0.0, 1.0], "a number for each of 3 frames, got float64"), ([0.0, 2.0, 1.0], "must not fall"), ([0.0, 1.0, math.nan], "finite"), ([0.0, 1.0, 1e300], "1e\\+09")],
)
def test_time_stamps_that_cannot_be_used_are_refused(rng, times, says):
    with pytest.raises(DataError, match=f"clip c: frame_ms .*{says}"):
        preprocess(spec_of(LOG_MEL | SUBSEQUENCE), make_clip(rng, n=3, frame_ms=np.array(times)))
    with pytest.raises(DataError, match="clip c: fps"):
        preprocess(spec_of(LOG_MEL | SUBSEQUENCE), make_clip(rng, n=3, fps=0.0))


@pytest.mark.parametrize(
    ("how", "key", "value"),
    [
        (MFCC | CLIP, "kind", "spectrogram"),
        (MFCC | CLIP, "per", "second"),
        (MFCC | CLIP, "window", "blackman"),
        (MFCC | CLIP, "fit", "end"),
        (MFCC | CLIP, "center", 1),
        (MFCC | CLIP, "pad_mode", "edge"),
        (MFCC | CLIP, "n_fft", 31),
        (MFCC | CLIP, "win_length", 33),
        (MFCC | CLIP, "hop_length", 0),
        (MFCC | CLIP, "n_mfcc", 8),
        (MFCC | CLIP, "n_mels", 2.0),
        (MFCC | CLIP, "f_min", -1),
        (MFCC | CLIP, "f_min", 480.0),
        (MFCC | CLIP, "shift", [1.0, 2.0]),
        (MFCC | CLIP, "scale", 0.0),
        (MFCC | CLIP, "deltas", 2),
        (MFCC | CLIP, "frames", 30),
        (MFCC | CLIP, "top_db", 80),
        (LOG_MEL | CLIP, "deltas", True),
        (LOG_MEL | CLIP, "n_mfcc", 4),
        (MFCC | CLIP | {"deltas": True}, "samples", 70),
        (LOG_MEL | SUBSEQUENCE, "samples", 16),
        (LOG_MEL | SUBSEQUENCE, "frames", 8),
        (LOG_MEL | SUBSEQUENCE, "fit", "start"),
        (LOG_MEL | SUBSEQUENCE, "until", "now"),
        (MFCC | {"per": "frame"}, "hop_length", 5),
    ],
)
def test_a_spectrum_that_is_not_defined_is_refused_by_its_key(how, key, value):
    check_spec(spec_of(how))
    with pytest.raises(DataError, match=f"`audio.features.f.{key}`"):
        check_spec(spec_of(how | {key: value}))


def test_f_max_is_at_most_half_the_sample_rate():
    with pytest.raises(DataError, match=r"`audio.features.f.f_min` and `f_max` .* <= 500 .* got 20.0 and 501"):
        check_spec(spec_of(MFCC | CLIP | {"f_max": 501}))


@pytest.mark.parametrize("how", [MFCC | CLIP, LOG_MEL | SUBSEQUENCE, MFCC | {"per": "frame", "deltas": True, "hop_length": 5}], ids=["clip", "subsequence", "frame"])
def test_a_spectrum_with_a_missing_key_is_refused(how):
    for key in set(how) - {"deltas"}:
        with pytest.raises(DataError, match=f"`audio.features.f.{key}` is missing"):
            check_spec(spec_of({k: v for k, v in how.items() if k != key}))


def test_features_replace_the_wave_and_need_their_video():
    spec = spec_of(MFCC | CLIP)
    with pytest.raises(DataError, match=r"unknown key `audio.samples`"):
        check_spec(spec_of(MFCC | CLIP, samples=9))
    for broken in (None, {}, 3, {"f": None}, {"f": 7}, {"a/b": MFCC | CLIP}, {"wave": MFCC | CLIP}, {"video": MFCC | CLIP}, {3: MFCC | CLIP}):
        with pytest.raises(DataError, match="`audio.features"):
            check_spec(spec | {"audio": spec["audio"] | {"features": broken}})
    with pytest.raises(DataError, match=r"`audio.features.f.per` is 'frame', but there is no `video`"):
        check_spec({"audio": spec_of(MFCC | {"per": "frame"})["audio"]})
    uniform = copy.deepcopy(spec_of(LOG_MEL | SUBSEQUENCE))
    uniform["video"]["sampling"] = "uniform_round_linspace"
    del uniform["video"]["frames_per_window"]
    with pytest.raises(DataError, match=r"`audio.features.f.per` is 'subsequence', but `video.sampling` is not 'subsequences'"):
        check_spec(uniform)


# spectral subtraction and loudness

SUBTRACT = {"n_fft": 16, "hop_length": 4, "quietest": 0.25, "over": 1.5, "floor": 0.1}


def loop_subtracted(how, x):
    """The definition, one number at a time."""
    length, hop, m = how["n_fft"], how["hop_length"], len(x)
    lead = length - hop
    count = math.ceil((m + lead) / hop)
    window = [0.5 - 0.5 * math.cos(2 * math.pi * n / length) for n in range(length)]
    starts = [c * hop - lead for c in range(count)]
    spectra = [
        [sum((x[s + n] if 0 <= s + n < m else 0.0) * window[n] * cmath.exp(-2j * math.pi * k * n / length) for n in range(length)) for k in range(length // 2 + 1)] for s in starts
    ]
    within = [c for c, s in enumerate(starts) if s >= 0 and s + length <= m] or list(range(count))
    quiet = sorted(within, key=lambda c: sum(abs(v) ** 2 for v in spectra[c]))[: max(1, math.floor(how["quietest"] * len(within)))]
    noise = [sum(abs(spectra[c][k]) for c in quiet) / len(quiet) for k in range(length // 2 + 1)]
    out, weight = [0.0] * m, [0.0] * m
    for s, spectrum in zip(starts, spectra, strict=True):
        kept = [v * max(1 - how["over"] * noise[k] / abs(v), how["floor"]) if v else 0.0 for k, v in enumerate(spectrum)]
        both = kept + [v.conjugate() for v in kept[-2:0:-1]]
        for n in range(length):
            if 0 <= s + n < m:
                out[s + n] += window[n] * sum(v * cmath.exp(2j * math.pi * k * n / length) for k, v in enumerate(both)).real / length
                weight[s + n] += window[n] ** 2
    return [a / b for a, b in zip(out, weight, strict=True)]


@pytest.mark.parametrize("samples", [1, 5, 16, 40, 41])
def test_spectral_subtraction_equals_the_definition(rng, samples):
    x = rng.normal(0, 0.1, samples) * (np.arange(samples) % 20 > 8)
    np.testing.assert_allclose(subtracted(x, **SUBTRACT), loop_subtracted(SUBTRACT, x.tolist()), atol=1e-12)


def test_without_noise_to_take_out_the_sound_comes_back(rng):
    x = rng.normal(0, 0.1, 999)
    np.testing.assert_allclose(subtracted(x, **SUBTRACT | {"over": 0.0}), x, atol=1e-12)
    assert not subtracted(np.zeros(50), **SUBTRACT).any()


def test_steady_noise_goes_and_what_rises_above_it_stays(rng):
    t = np.arange(8000) / 8000
    noise, tone = rng.normal(0, 0.02, 8000), 0.3 * np.sin(2 * np.pi * 440 * t) * (t > 0.5)
    out = subtracted(noise + tone, n_fft=512, hop_length=128, quietest=0.1, over=1.0, floor=0.05)
    assert out[:3500].std() < 0.6 * noise[:3500].std() and np.corrcoef(out[4600:], tone[4600:])[0, 1] > 0.99


def test_the_spectrum_is_of_the_cleaned_sound_at_its_loudness(rng):
    how, clip = MFCC | CLIP | {"frames": 11}, make_clip(rng)
    got = preprocess(spec_of(how, subtract=SUBTRACT, peak=0.95), clip)["f"]
    clean = np.array(loop_subtracted(SUBTRACT, scaled(clip)))
    clean *= 0.95 / np.abs(clean).max()
    whole = np.float32(loop_spectrum(how, [*clean[:130], *[0.0] * (130 - len(clean))]))
    assert got.shape == (4, 11) == shapes(spec_of(how))["f"]
    np.testing.assert_allclose(got, whole[:, :11], rtol=1e-5, atol=1e-5)
    silent = make_clip(rng, audio=np.zeros(99, np.int16))
    assert np.isfinite(preprocess(spec_of(how, subtract=SUBTRACT, peak=0.95), silent)["f"]).all()


@pytest.mark.parametrize(
    ("key", "value"), [("n_fft", 15), ("n_fft", 6), ("hop_length", 0), ("quietest", 1.5), ("quietest", None), ("over", -1), ("over", math.inf), ("floor", 2), ("noise", 1)]
)
def test_a_subtraction_that_is_not_defined_is_refused_by_its_key(key, value):
    with pytest.raises(DataError, match=f"`audio.subtract.{key}`"):
        check_spec(spec_of(MFCC | CLIP, subtract=SUBTRACT | {key: value}))
    with pytest.raises(DataError, match="`audio.peak` must be a positive number"):
        check_spec(spec_of(MFCC | CLIP, peak=0))
    for broken in (None, 3, {k: v for k, v in SUBTRACT.items() if k != "floor"}):
        with pytest.raises(DataError, match="`audio.subtract"):
            check_spec(spec_of(MFCC | CLIP, subtract=broken))

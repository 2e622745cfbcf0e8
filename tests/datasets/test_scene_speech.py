"""synthetic_speech: mixtures that are speech plus noise to the bit, at the SNR they say, of people that no other split has."""

from __future__ import annotations

import functools
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from edgekit.datasets import noise, open_dataset, read_description, scene, scene_speech, synthetic

ROOT = Path(__file__).parents[2]
SEED = 20261121
FULL = 32768


@functools.cache
def clip(split: str, k: int):
    return scene_speech.make_clip(SEED, split, k)


@functools.cache
def scripts(split: str) -> tuple[scene_speech.Script, ...]:
    count = read_description(ROOT / "calibration/synthetic_speech.yaml")["splits"][split]
    return tuple(scene_speech.draw_script(SEED, split, k)[0] for k in range(count))


def assert_disjoint(values) -> None:
    sets = [set(values(split)) for split in scene.SPLITS]
    assert all(sets) and sum(map(len, sets)) == len(set().union(*sets))


def parts(c) -> tuple[np.ndarray, np.ndarray]:
    """(speech, noise) [samples], as whole numbers."""
    said = c.labels["speech"].astype(np.float64) * FULL
    return said, c.audio - said


def test_the_shipped_set_is_as_large_as_the_training_needs():
    read = read_description(ROOT / "calibration/synthetic_speech.yaml")
    assert read["seed"] == SEED and read["splits"] == {"train": 1600, "calibration": 128, "test": 160}


def test_a_clip_is_four_seconds_of_sound_without_pictures():
    c = clip("test", 0)
    assert c.id == "test-00000" and c.frames.shape == (0, 0, 0, 3) and c.frames.dtype == np.uint8
    assert c.audio.shape == (64_000,) and c.audio.dtype == np.int16 and c.sample_rate_hz == 16_000
    assert list(c.labels) == ["speech"] and c.labels["speech"].shape == (64_000,) and c.labels["speech"].dtype == np.float32
    assert list(c.tags) == ["snr_db", "noise", "voice", "sentence"]


@pytest.mark.parametrize(("split", "k"), [("train", 3), ("train", 11), ("calibration", 2), ("test", 0), ("test", 4), ("test", 39)])
def test_the_mixture_is_its_speech_plus_noise_at_the_snr_of_its_tag(split, k):
    c = clip(split, k)
    said, rest = parts(c)
    assert np.array_equal(said, np.rint(said)) and np.array_equal(c.audio, said + rest)
    assert 10 * np.log10(np.mean(said**2) / np.mean(rest**2)) == pytest.approx(c.tags["snr_db"], abs=0.02)
    # Nothing clips, so both can be mixed anew.
    assert max(np.abs(said).max(), np.abs(rest).max(), np.abs(c.audio.astype(int)).max()) < 0.971 * FULL
    assert -42 < 10 * np.log10(np.mean((said / FULL) ** 2)) < -17.9


def test_a_sum_that_would_clip_is_made_softer_as_a_whole():
    said, heard = np.array([0.5, -0.2, 0.1]), np.array([0.9, 0.0, -0.6])
    clean, rest = scene_speech.at_16_bits(said, heard)
    assert (clean + rest).max() == round(0.97 * 32767)
    np.testing.assert_allclose(clean / rest.max(), said / 0.9, atol=1e-4)
    soft, _ = scene_speech.at_16_bits(said / 4, heard / 4)
    assert soft[0] == round(0.125 * 32767)


def test_nobody_and_no_sentence_is_in_two_splits():
    assert_disjoint(lambda split: (text for s in scripts(split) for text in s.sentences))
    assert_disjoint(lambda split: (astuple(scene.draw_person(SEED, split, s.person)[1]) for s in scripts(split)))
    assert len({s.person for s in scripts("train")}) > 350 and len({s.person for s in scripts("test")}) > 70


def test_the_test_holds_every_noise_at_every_snr_equally_often():
    cells = [(s.noise, s.snr_db) for s in scripts("test")]
    assert {cells.count((kind, snr)) for kind in noise.KINDS for snr in (-5, 0, 5, 10, 20)} == {4}


@pytest.mark.parametrize("split", ["train", "calibration"])
def test_snr_fills_its_range_whatever_the_noise(split):
    for kind in noise.KINDS:
        snr = [s.snr_db for s in scripts(split) if s.noise == kind]
        assert len(snr) >= 12 and -5 <= min(snr) < 1 and 14 < max(snr) <= 20


def test_speech_has_pauses_and_goes_on_to_the_end_of_the_clip():
    quiet, late = [], []
    for k in range(12):
        said, _ = parts(clip("train", k))
        level = np.sqrt(np.mean(said.reshape(-1, 320) ** 2, axis=1))
        quiet.append((level < 0.02 * level.max()).mean())
        late.append((level[-50:] > 0.1 * level.max()).any())  # in the last second
    assert 0.05 < np.mean(quiet) < 0.5 and all(late)


def test_a_mask_that_knows_the_answer_gains_5_db_even_where_little_noise_is():
    """What no denoiser beats by much; if this fell, the set would reward leaving good sound alone."""
    from scipy.signal import istft, stft

    def spectrum(x):
        return stft(x, 16_000, "hann", 400, 300, 512)[2]

    def si_sdr(s, e):
        target = (e @ s) / (s @ s) * s
        return 10 * np.log10((target @ target) / ((e - target) @ (e - target)))

    gains = []
    for k in range(4, 40, 5):  # 20 dB, one of every kind of noise
        assert clip("test", k).tags["snr_db"] == 20
        said, rest = parts(clip("test", k))
        share = np.abs(spectrum(said)) / np.hypot(np.abs(spectrum(said)), np.abs(spectrum(rest)) + 1e-9)
        cleaned = istft(share * spectrum(said + rest), 16_000, "hann", 400, 300, 512)[1][:64_000]
        gains.append(si_sdr(said, cleaned) - si_sdr(said, said + rest))
    assert np.mean(gains) > 5 and min(gains) > 2


def test_what_is_said_does_not_depend_on_what_is_in_the_way(monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(noise, "draw_noise", lambda kind, samples, rng: noise.unit(rng.standard_normal(samples)))
        other, _ = parts(scene_speech.make_clip(SEED, "train", 3))
    said, _ = parts(clip("train", 3))
    assert np.corrcoef(said, other)[0, 1] > 0.999999


def test_noises_of_two_clips_have_nothing_in_common():
    spectra = [np.fft.rfft(parts(clip(*which))[1], 1 << 17) for which in (("train", 0), ("train", 1), ("calibration", 0), ("test", 0))]
    for i, one in enumerate(spectra):
        for other in spectra[:i]:  # at no shift in time
            alike = np.abs(np.fft.irfft(one * other.conj())) / np.sqrt(np.mean(np.abs(one) ** 2) * np.mean(np.abs(other) ** 2))
            assert alike.max() < 0.5
    assert np.abs(np.fft.irfft(spectra[0] * spectra[0].conj())).max() / np.mean(np.abs(spectra[0]) ** 2) == pytest.approx(1, abs=0.01)


def test_a_clip_is_the_same_bytes_every_time_and_others_are_others():
    again, one = scene_speech.make_clip(SEED, "test", 0), clip("test", 0)
    assert np.array_equal(again.audio, one.audio) and np.array_equal(again.labels["speech"], one.labels["speech"]) and again.tags == one.tags
    for other in (clip("test", 4), clip("train", 0), scene_speech.make_clip(SEED + 1, "test", 0)):
        assert not np.array_equal(one.audio, other.audio) and not np.array_equal(one.labels["speech"], other.labels["speech"])


def test_a_clip_that_sounds_otherwise_needs_a_new_version():
    """Tolerant of another CPU's sine, of nothing else. When this fails, raise the world's version: caches and trained checkpoints depend on it."""
    assert synthetic.WORLDS["synthetic_speech"].version == 1
    one, other = clip("test", 0), clip("train", 7)
    assert one.tags == {
        "snr_db": -5.0, "noise": "car", "voice": "test-074",
        "sentence": "the driver stopped another road in the rain / nobody found the yellow van by the river",
    }  # fmt: skip
    assert other.tags["snr_db"] == 19.379 and other.tags["noise"] == "engine" and other.tags["voice"] == "train-326"
    assert one.audio[4000::8000].astype(int) == pytest.approx(np.array([1912, 8330, 1631, -2302, -6707, 7684, 8914, -1922]), abs=2)
    assert parts(one)[0][4000::8000] == pytest.approx(np.array([4411, 2382, -566, 1008, -6891, 475, -910, 0]), abs=2)
    assert np.sqrt(np.mean(other.audio.astype(float) ** 2)) == pytest.approx(2085.413, abs=0.1)


def test_a_stored_clip_is_small_and_comes_back_to_the_bit(tmp_path):
    dataset = open_dataset("synthetic_speech", "test", 1, ROOT / "recipes", tmp_path)
    got, want = dataset.clip("test-00000"), clip("test", 0)
    assert np.array_equal(got.labels["speech"], want.labels["speech"]) and np.array_equal(got.audio, want.audio)
    assert (dataset.folder / "test-00000.npz").stat().st_size < 2 * 2 * 64_000 + 2000

"""The synthesizer's prosody carries valence, and its mouth goes with its sound."""

from __future__ import annotations

import functools
from dataclasses import astuple

import numpy as np
import pytest

from edgekit.datasets import speech

RATE = speech.SAMPLE_RATE_HZ
SAMPLES = 40_000  # 2.5 s
VOICES = {name: speech.draw_voice(np.random.default_rng(seed)) for name, seed in (("low", 1), ("high", 2))}
PHONEMES = [p for slot, word in zip(speech.SLOTS, ("we", "moved", "the red car", "at seven"), strict=True) for p in slot[word].split()]


@functools.cache
def said(voice: str, valence: float, seed: int = 3, phonemes: str = " ".join(PHONEMES), samples: int = SAMPLES):
    return speech.speak(phonemes.split(), VOICES[voice], valence, samples, np.random.default_rng(seed))


def frames_of(wave: np.ndarray, size: int = 640, hop: int = 160) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(wave, size)[::hop]


def loud(frames: np.ndarray) -> np.ndarray:
    power = (frames**2).mean(1)
    return frames[power > 0.3 * power.max()]


def pitch_hz(wave: np.ndarray) -> np.ndarray:
    """Per loud frame of 40 ms, by the highest peak of the autocorrelation between 70 and 340 Hz."""
    found = []
    for frame in loud(frames_of(wave)):
        frame = (frame - frame.mean()) * np.hanning(len(frame))
        spectrum = np.abs(np.fft.rfft(frame, 2048)) ** 2
        row = np.fft.irfft(spectrum)
        low, high = RATE // 340, RATE // 70
        found.append(RATE / (low + np.argmax(row[low:high])))
    return np.array(found)


def centroid_hz(wave: np.ndarray) -> float:
    power = (np.abs(np.fft.rfft(loud(frames_of(wave)) * np.hanning(640))) ** 2).mean(0)
    return float((np.fft.rfftfreq(640, 1 / RATE) * power).sum() / power.sum())


def spoken_s(opening: np.ndarray) -> float:
    return np.flatnonzero(opening > 0.02).size * speech.FRAME / RATE


def test_the_two_voices_are_a_low_and_a_high_one():
    assert VOICES["low"].pitch_hz < 150 < 165 < VOICES["high"].pitch_hz


@pytest.mark.parametrize("voice", VOICES)
def test_measured_pitch_is_the_voices(voice):
    assert np.median(pitch_hz(said(voice, 0.0)[0])) == pytest.approx(VOICES[voice].pitch_hz, rel=0.15)


@pytest.mark.parametrize("voice", VOICES)
@pytest.mark.parametrize("seed", [3, 4])
def test_pitch_rises_with_valence(voice, seed):
    sad, calm, glad = (np.median(pitch_hz(said(voice, v, seed)[0])) for v in (-1.0, 0.0, 1.0))
    assert sad < calm < glad and glad > 1.15 * sad


@pytest.mark.parametrize("voice", VOICES)
def test_speech_is_faster_and_brighter_with_valence(voice):
    sad, glad = said(voice, -1.0), said(voice, 1.0)
    assert spoken_s(glad[1]) < 0.85 * spoken_s(sad[1])
    assert centroid_hz(glad[0]) > 1.1 * centroid_hz(sad[0])


@pytest.mark.parametrize("voice", VOICES)
def test_a_glad_voice_is_livelier(voice):
    """Median distance from the median pitch, in octaves: deaf to the tracker's octave errors."""

    def spread(valence):
        rows = [np.log2(pitch_hz(said(voice, valence, seed)[0])) for seed in (3, 4, 5)]
        return np.mean([np.median(np.abs(row - np.median(row))) for row in rows])

    assert spread(1.0) > 1.2 * spread(-1.0)


def test_a_smile_shortens_the_tract_so_formants_rise():
    """On one held vowel: the strongest frequency between 400 and 1000 Hz is the first formant of `a`."""

    def first_formant_hz(valence):
        wave, _ = said("low", valence, 3, "a " * 12)
        power = (np.abs(np.fft.rfft(loud(frames_of(wave)) * np.hanning(640), 4096)) ** 2).mean(0)
        hz = np.fft.rfftfreq(4096, 1 / RATE)
        band = (hz > 400) & (hz < 1000)
        return (hz[band] * power[band]).sum() / power[band].sum()

    assert first_formant_hz(1.0) > first_formant_hz(-1.0) + 20


@pytest.mark.parametrize("voice", VOICES)
def test_the_mouth_is_open_where_there_is_sound(voice):
    wave, opening = said(voice, 0.2)
    assert wave.shape == (SAMPLES,) and opening.shape == (SAMPLES // speech.FRAME,)
    assert opening.min() >= 0 and 0.5 < opening.max() <= 1 + 1e-12
    envelope = np.sqrt((wave.reshape(-1, speech.FRAME) ** 2).mean(1))
    assert np.corrcoef(opening, envelope)[0, 1] > 0.5
    # Before the first sound and after the last: shut and silent.
    before, after = np.flatnonzero(opening > 0)[[0, -1]]
    assert before > 2 and not opening[: before - 1].any() and envelope[: before - 1].max() < 0.02 * envelope.max()
    assert after < len(opening) - 2 and envelope[after + 40 :].max(initial=0) < 0.05 * envelope.max()


def test_lips_close_for_m_and_open_for_a():
    _, closed = said("low", 0.0, 3, "a m m m a")
    middle = np.flatnonzero(closed > 0.02)
    inside = closed[middle[0] : middle[-1]]
    assert inside[len(inside) // 2 - 3 : len(inside) // 2 + 3].max() < 0.2 < 0.6 < inside.max()


def test_a_sentence_longer_than_the_window_is_cut():
    wave, opening = said("low", -1.0, 3, " ".join(PHONEMES * 3))
    assert len(wave) == SAMPLES and np.isfinite(wave).all() and opening[-1] > 0
    assert np.abs(wave[-400:]).max() > 0.005


@pytest.mark.parametrize("valence", [-1.0, 1.0])
def test_every_phoneme_sounds_and_stays_finite(valence):
    for name in speech.PHONEMES:
        wave, _ = said("high", valence, 3, f"a {name} a", 16_000)
        assert np.isfinite(wave).all() and 0.02 < np.abs(wave).max() < 2


def test_speaking_is_deterministic_and_draws_from_its_stream():
    again = speech.speak(PHONEMES, VOICES["low"], 0.0, SAMPLES, np.random.default_rng(3))
    assert np.array_equal(again[0], said("low", 0.0)[0]) and np.array_equal(again[1], said("low", 0.0)[1])
    assert not np.array_equal(said("low", 0.0, 4)[0], said("low", 0.0)[0])


def test_every_word_is_made_of_known_phonemes():
    for slot in speech.SLOTS:
        assert len(slot) == 12
        for word, phonemes in slot.items():
            assert set(phonemes.split()) <= set(speech.PHONEMES), word


def test_sentences_are_one_word_of_every_slot():
    text, phonemes = speech.draw_sentence(np.random.default_rng(0))
    words = [next(word for word in slot if word in text) for slot in speech.SLOTS]
    assert " ".join(words) == text and phonemes == [p for slot, word in zip(speech.SLOTS, words, strict=True) for p in slot[word].split()]


def test_voices_drawn_are_all_different():
    assert len({astuple(speech.draw_voice(np.random.default_rng(seed))) for seed in range(500)}) == 500


# --------------------------------------------------------------------------- prosody, also over time

FRAMES = SAMPLES // speech.FRAME


def uttered(phrases: int = 1, voice: str = "low", samples: int = SAMPLES, **prosody) -> tuple[np.ndarray, np.ndarray]:
    return speech.utter([PHONEMES] * phrases, VOICES[voice], speech.Prosody(**prosody), samples, np.random.default_rng(3))


def envelope(wave: np.ndarray) -> np.ndarray:
    return np.sqrt((wave.reshape(-1, speech.FRAME) ** 2).mean(1))


def test_saying_something_neutrally_is_to_say_it_with_no_prosody():
    assert speech.prosody_of(0.0) == speech.Prosody()
    for got, want in zip(uttered(), said("low", 0.0), strict=True):
        assert np.array_equal(got, want)


@pytest.mark.parametrize("field", ["pitch", "liveliness", "rate", "tract", "final"])
def test_a_prosody_that_stands_still_over_time_is_one_number(field):
    value = {"pitch": 0.2, "liveliness": 1.5, "rate": 1.1, "tract": 0.95, "final": 0.5}[field]
    moving, still = uttered(**{field: np.full(FRAMES, value)}), uttered(**{field: value})
    assert moving[0] == pytest.approx(still[0], abs=1e-9) and moving[1] == pytest.approx(still[1], abs=1e-9)


def test_pitch_follows_its_course():
    low_then_high = np.repeat([-0.3, 0.3], FRAMES // 2)
    wave, _ = uttered(phrases=2, pitch=low_then_high, liveliness=0.2)
    first, second = (np.median(pitch_hz(part)) for part in np.split(wave, 2))
    assert second / first == pytest.approx(2**0.6, rel=0.15)


def test_level_and_tilt_follow_their_courses():
    first, second = np.split(uttered(phrases=3, level=np.repeat([0.5, 2.0], FRAMES // 2))[0], 2)
    even = np.split(uttered(phrases=3)[0], 2)
    assert first == pytest.approx(0.5 * even[0], abs=1e-12) and second == pytest.approx(2 * even[1], abs=1e-12)
    dark, bright = (uttered(phrases=3, brightness=np.repeat(tilt, FRAMES // 2))[0][SAMPLES // 2 :] for tilt in ([0.4, -0.4], [-0.4, 0.4]))
    assert centroid_hz(bright) > 1.2 * centroid_hz(dark)


def test_phonemes_pass_faster_where_the_rate_is_higher():
    ms, rate = np.full(40, 100.0), np.repeat([0.8, 1.25], FRAMES // 2)
    paced = speech._paced(ms, rate)
    assert paced[0] == 125 and paced[-1] == 80 and sorted(set(paced)) == [80, 125]
    assert np.cumsum(paced)[paced == 125][-1] == pytest.approx(1250, abs=125), "the change comes half-way through 2.5 s"


def test_phrases_follow_one_another_until_the_window_ends():
    wave, opening = uttered(phrases=4, samples=2 * SAMPLES)
    shut = np.flatnonzero(opening < 0.02)
    used = opening[30:-30]
    assert (used > 0.02).mean() > 0.8 and np.isfinite(wave).all() and len(shut) > 0
    assert spoken_s(opening) > 1.5 * spoken_s(uttered(samples=2 * SAMPLES)[1])


def test_speech_fades_swells_shakes_and_is_stressed():
    def halves(**prosody):
        wave, opening = uttered(**prosody)
        where = np.flatnonzero(opening > 0.02)
        middle = (where[0] + where[-1]) // 2 * speech.FRAME
        return np.mean(wave[middle:] ** 2) / np.mean(wave[:middle] ** 2)

    assert halves(fade=0.75) < halves() < halves(fade=-1.0)
    for field in ("shake", "stress"):
        rows = [envelope(uttered(**{field: strength})[0]) for strength in (0.0, 0.6)]
        assert np.abs(rows[1] - rows[0]).sum() > 0.1 * rows[0].sum(), field


def test_a_long_tract_lowers_formants_and_breath_is_noise():
    assert centroid_hz(uttered(tract=0.85)[0]) < centroid_hz(uttered(tract=1.1)[0])
    assert not np.allclose(uttered(breath=5.0)[0], uttered()[0], atol=0.005)

"""Valence and arousal over time: smooth labels, and what of them shows in face and voice."""

from __future__ import annotations

import functools
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest

from edgekit.datasets import read_description, scene, scene_va, speech
from edgekit.datasets.synthetic import WORLDS

SHIPPED = read_description(Path(__file__).parents[2] / "calibration/synthetic_va.yaml")
SEED = SHIPPED["seed"]
AT = (np.arange(scene_va.FRAMES) + 0.5) / scene_va.FPS
COURSES = ("valence", "arousal", "face_valence", "face_arousal", "voice_valence", "voice_arousal")


@functools.cache
def scripts(split: str) -> tuple[scene_va.Script, ...]:
    return tuple(scene_va.draw_script(SEED, split, k)[0] for k in range(SHIPPED["splits"][split]))


@functools.cache
def courses() -> dict[str, np.ndarray]:
    """{name: [clips, frames]} of the test split."""
    return {name: np.stack([getattr(s, name)(AT) for s in scripts("test")]) for name in COURSES}


@functools.cache
def clip(k: int):
    return scene_va.make_clip(SEED, "test", k)


def test_a_clip_is_what_its_script_says():
    script, c = scripts("test")[1], clip(1)
    assert c.id == "test-00001" and c.frames.shape == (64, 48, 48, 3) and c.frames.dtype == np.uint8 and c.fps == 12.5
    assert c.audio.shape == (81_920,) and c.audio.dtype == np.int16
    assert len(c.frames) / c.fps == pytest.approx(len(c.audio) / c.sample_rate_hz)
    assert set(c.labels) == {"valence", "arousal"}
    for name, values in c.labels.items():
        assert values.dtype == np.float32 and np.array_equal(values, getattr(script, name)(AT).astype(np.float32))
    who = f"test-{script.person:03d}"
    assert c.tags == {"snr_db": round(script.snr_db, 3), "identity": who, "voice": who, "sentence": " / ".join(script.sentences)}


def test_a_clip_is_the_same_bytes_every_time_and_no_other_clips():
    again = scene_va.make_clip(SEED, "test", 1)
    assert np.array_equal(again.frames, clip(1).frames) and np.array_equal(again.audio, clip(1).audio)
    assert all(np.array_equal(again.labels[name], clip(1).labels[name]) for name in again.labels)
    assert not np.array_equal(clip(0).frames, clip(1).frames) and not np.array_equal(clip(0).audio, clip(1).audio)


def test_labels_are_smooth_fill_their_range_and_are_unrelated():
    for name in ("valence", "arousal"):
        values = courses()[name]
        assert (np.abs(values) < 1).all() and values.min() < -0.85 and values.max() > 0.85 and abs(values.mean()) < 0.1
        assert values.std() == pytest.approx(0.5, abs=0.05) and values.std(1).mean() > 0.25, "they move within a clip"
        assert np.quantile(np.abs(np.diff(values)), 0.99) < 0.2, "in 80 ms"
    assert abs(np.corrcoef(courses()["valence"].ravel(), courses()["arousal"].ravel())[0, 1]) < 0.1


def ccc(want: np.ndarray, got: np.ndarray) -> float:
    return 2 * np.mean((want - want.mean()) * (got - got.mean())) / (want.var() + got.var() + (want.mean() - got.mean()) ** 2)


@pytest.mark.parametrize(("label", "clear", "faint"), [("valence", "face_valence", "voice_valence"), ("arousal", "voice_arousal", "face_arousal")])
def test_the_best_estimate_of_a_label_needs_both_modalities(label, clear, faint):
    """Least squares on what face and voice show, before anything is rendered: an upper bound for a linear reader."""
    want = courses()[label].ravel()

    def best(*names):
        shown = np.stack([*(courses()[name].ravel() for name in names), np.ones_like(want)], 1)
        return ccc(want, shown @ np.linalg.lstsq(shown, want, rcond=None)[0])

    assert 0.7 < best(faint) < best(clear) - 0.05 and best(clear) < best(clear, faint) - 0.03 < 0.93


def test_splits_share_neither_people_nor_sentences():
    sentences = [{sentence for s in scripts(split) for sentence in s.sentences} for split in scene.SPLITS]
    assert sum(map(len, sentences)) == len(set().union(*sentences)) > 1000
    people = [{astuple(p) for k in range(scene.SPLITS[split][1]) for p in scene.draw_person(SEED, split, k)} for split in scene.SPLITS]
    assert sum(map(len, people)) == len(set().union(*people))


def constant(value: float):
    return lambda seconds: np.full(len(seconds), value)


def rising(seconds: np.ndarray) -> np.ndarray:
    return np.clip(seconds / scene_va.SECONDS * 2 - 1, -1, 1)


def said(**shown) -> np.ndarray:
    """One speaker's wave with the given courses in the voice."""
    script, _ = scene_va.draw_script(SEED, "test", 1)
    script = replace(script, **{"voice_valence": constant(0.0), "voice_arousal": constant(0.0), **shown})
    voice = scene.draw_person(SEED, "test", script.person)[1]
    return speech.utter([list(p) for p in script.phrases], voice, scene_va.prosody_of(script), scene_va.SAMPLES, np.random.default_rng(0))[0]


def centroid_hz(wave: np.ndarray) -> float:
    power = np.abs(np.fft.rfft(wave)) ** 2
    return float((np.fft.rfftfreq(len(wave), 1 / 16_000) * power).sum() / power.sum())


def test_arousal_is_in_the_level_and_in_the_tilt_which_no_gain_takes_away():
    first, second = np.split(said(voice_arousal=rising), 2)
    assert np.mean(second**2) > 2 * np.mean(first**2)
    assert centroid_hz(second) > 1.1 * centroid_hz(first)
    assert centroid_hz(said(voice_arousal=constant(0.8))) > 1.2 * centroid_hz(said(voice_arousal=constant(-0.8)))


def test_valence_is_in_the_voice_too():
    """A smile shortens the tract: everything moves up."""
    assert centroid_hz(said(voice_valence=constant(0.8))) > 1.08 * centroid_hz(said(voice_valence=constant(-0.8)))


def test_arousal_opens_eyes():
    assert scene_va.expression_of(np.array([0.5])).lids > 0 > scene_va.expression_of(np.array([-0.5])).lids


def test_a_clip_that_looks_or_sounds_otherwise_needs_a_new_version():
    """Tolerant of another CPU's sine, of nothing else. When this fails, raise the version: caches and checkpoints depend on it."""
    assert WORLDS["synthetic_va"].version == 2
    c = clip(0)
    assert c.labels["valence"][::16] == pytest.approx(np.array([0.009, -0.0415, -0.0389, 0.5148]), abs=1e-4)
    assert c.labels["arousal"][::16] == pytest.approx(np.array([0.7202, 0.0256, 0.5223, -0.2469]), abs=1e-4)
    assert c.frames.mean((0, 1, 2)) == pytest.approx([82.118, 59.226, 52.208], abs=0.01)
    assert np.sqrt(np.mean(c.audio.astype(float) ** 2)) == pytest.approx(2538.854, abs=0.1)
    assert c.audio[::16_384].astype(int) == pytest.approx(np.array([945, 340, -5876, 282, 578]), abs=2)

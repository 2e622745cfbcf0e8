"""One clip of `synthetic_av`, from its seed: who, what they show and say, and what is in the way.

The other worlds (scene_emotion.py, scene_va.py) take their people, sentences, cabins and cameras from here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from . import Clip, face, noise, speech

SAMPLES, SAMPLE_RATE_HZ = 48_000, speech.SAMPLE_RATE_HZ
FRAMES, SIZE = 32, 64
FPS = FRAMES * SAMPLE_RATE_HZ / SAMPLES
SNR_DB = (-5.0, 20.0)
LABELS = ("o", "a", "v")

# (number in the random stream, people, share of sentences as [low, high) of a hash in 0..9)
SPLITS = {"train": (1, 400, (0, 7)), "calibration": (2, 48, (7, 8)), "test": (3, 100, (8, 10))}


@dataclass(frozen=True)
class Script:
    """Who says what, meaning what, how noisily: all of a clip but its pixels and samples."""

    person: int
    sentence: str
    phonemes: tuple[str, ...]
    labels: dict[str, float]
    snr_db: float


def draw_script(seed: int, split: str, k: int) -> tuple[Script, np.random.Generator]:
    """The script of clip `k`, and the stream that the rest of the clip is drawn from."""
    number, people, _ = SPLITS[split]
    rng = np.random.default_rng([seed, number, 1, k])
    person = int(rng.integers(people))
    sentence, phonemes = draw_sentence(rng, split)
    labels = draw_labels(rng)
    return Script(person, sentence, tuple(phonemes), labels, float(rng.uniform(*SNR_DB))), rng


def make_clip(seed: int, split: str, k: int, size: int = SIZE, frames: int = FRAMES) -> Clip:
    """Clip `k` of a split, by arithmetic alone. `size` and `frames` change the camera, not the scene."""
    script, rng = draw_script(seed, split, k)
    identity, voice = draw_person(seed, split, script.person)
    wave, opening = speech.speak(list(script.phonemes), voice, script.labels["a"], SAMPLES, rng)
    audio = in_car(wave, script.snr_db, rng)
    motion = draw_motion(rng, script.labels["v"], opening, frames)
    pixels = face.render(identity, motion, size, rng)
    tags = tags_of(split, script.person, script.sentence, script.snr_db)
    return Clip(f"{split}-{k:05d}", pixels, FPS * frames / FRAMES, audio, SAMPLE_RATE_HZ, script.labels, tags)


def in_car(wave: np.ndarray, snr_db: float, rng: np.random.Generator) -> np.ndarray:
    """Speech [samples] in car noise, as int16. The recorder's gain varies; it never clips."""
    mixed = noise.mix_at_snr(wave, noise.car_noise(len(wave), rng), snr_db)
    return np.rint(mixed / np.abs(mixed).max() * rng.uniform(0.3, 0.95) * 32767).astype(np.int16)


def tags_of(split: str, person: int, sentence: str, snr_db: float) -> dict[str, float | str]:
    who = f"{split}-{person:03d}"
    return {"snr_db": round(snr_db, 3), "identity": who, "voice": who, "sentence": sentence}


def draw_person(seed: int, split: str, person: int) -> tuple[face.Identity, speech.Voice]:
    """A face and a voice that no other person of any split has."""
    rng = np.random.default_rng([seed, SPLITS[split][0], 2, person])
    return face.draw_identity(rng), speech.draw_voice(rng)


def draw_labels(rng: np.random.Generator) -> dict[str, float]:
    """What face and voice say: the same in three clips of ten, unrelated in the others."""
    v = rng.uniform(-1, 1)
    a = np.clip(v + rng.normal(0, 0.15), -1, 1) if rng.random() < 0.3 else rng.uniform(-1, 1)
    weight_v, weight_a = 0.6 + abs(v), 0.5 + abs(a)
    o = (weight_v * v + weight_a * a) / (weight_v + weight_a)
    return {"o": round(float(o), 4), "a": round(float(a), 4), "v": round(float(v), 4)}


def draw_sentence(rng: np.random.Generator, split: str) -> tuple[str, list[str]]:
    """A sentence of this split: text and phonemes. No other split has it."""
    low, high = SPLITS[split][2]
    while True:
        text, phonemes = speech.draw_sentence(rng)
        # Not hash(): that one is salted per process.
        if low <= hashlib.sha256(text.encode()).digest()[0] % 10 < high:
            return text, phonemes


def draw_motion(rng: np.random.Generator, valence: float, opening: np.ndarray, frames: int, pace: float = 1.0) -> face.Motion:
    """Everything that moves in `frames` pictures, which show `valence`.

    Args:
        opening: [any] of the mouth over the whole clip, 0..1.
        pace: how many times as long as 3 s the clip is, so that heads move no faster in longer ones.
    """
    t = (np.arange(frames) + 0.5) / frames

    def drift(amount: float) -> np.ndarray:
        rates, phases = rng.uniform(0.3, 2.0, 3) * pace, rng.uniform(0, 6.28, 3)
        return amount * sum(np.sin(6.28 * r * t + p) for r, p in zip(rates, phases, strict=True)) / 3

    # The expression comes up from half its strength, holds, and wavers.
    onset = rng.uniform(-0.2, 0.25)
    shown = valence * (0.6 + 0.4 * np.clip((t - onset) / 0.25, 0, 1)) * (1 + drift(0.1))
    blink = np.zeros(frames)
    for start in rng.uniform(0, 1, rng.integers(0, 3)):
        blink = np.maximum(blink, np.clip(1 - np.abs(t - start) * pace / 0.04, 0, 1))
    occluder = np.zeros((frames, 4))
    if rng.random() < 0.3:  # a hand or the wheel's rim, for part of the clip
        start, length = rng.uniform(0, 0.8), rng.uniform(0.15, 0.5)
        passing = (t >= start) & (t < start + length)
        path = np.stack([rng.uniform(-0.6, 0.6) + drift(0.2), rng.uniform(-0.3, 0.8) + drift(0.2)], 1)
        size = rng.uniform(0.15, 0.4, 2)
        occluder = np.concatenate([path, np.broadcast_to(size, (frames, 2))], 1) * passing[:, None]
    cabin = rng.uniform(0.08, 0.55)
    centres = ((np.arange(frames) + 0.5) / frames * len(opening)).astype(int)
    return face.Motion(
        valence=shown,
        mouth_open=opening[centres],
        blink=blink,
        x=rng.uniform(-0.1, 0.1) + drift(0.06),
        y=rng.uniform(-0.1, 0.06) + drift(0.04),
        roll=rng.uniform(-0.1, 0.1) + drift(0.05),
        yaw=np.clip(rng.uniform(-0.5, 0.5) + drift(0.3), -1, 1),
        scale=rng.uniform(0.72, 0.86) + drift(0.02),
        light=np.clip(rng.uniform(0.6, 1.15) * (1 + drift(0.25)), 0.3, 1.4),
        light_x=rng.uniform(-1, 1),
        light_y=rng.uniform(-0.5, 0.5),
        warmth=rng.uniform(-1, 1),
        blur_px=rng.uniform(0.4, 1.3) if rng.random() < 0.35 else 0.0,
        noise=rng.uniform(0.0, 0.03),
        occluder=occluder,
        occluder_colour=tuple(rng.uniform(0.05, 0.7, 3)),
        background=cabin * rng.uniform(0.5, 1.5, (4, 1)) * rng.uniform(0.8, 1.2, (4, 3)),
    )

"""One clip of `synthetic_va`: valence and arousal that move while somebody drives and talks.

Both labels are smooth random courses in [−1, 1], unrelated to each other, one float32 per frame.
Nobody's face or voice follows them exactly: each shows each label with a slow error of its own.

    |         | face                                      | voice                                                           |
    | valence | clearly: mouth, cheeks, brows (error 0.3) | faintly: a smile's shorter tract, melody, breath (error 0.4)    |
    | arousal | faintly: eyes wide, brows up (error 0.4)  | clearly: pitch, rate, tilt and level (error 0.3)                |

The errors are standard deviations; that of the labels is about 0.5. The errors of face and voice are
unrelated, so the best estimate of either label weighs both. A clip's gain is normalized, so level
tells when somebody is more aroused, and pitch, rate and tilt against the speaker's own tell how much.

A clip is 5.12 s: 64 frames of 48×48 at 12.5 per second and 81 920 samples at 16 kHz.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from . import Clip, face, scene, speech

FRAMES, SIZE, SAMPLES = 64, 48, 81_920
FPS = FRAMES * scene.SAMPLE_RATE_HZ / SAMPLES
SECONDS = SAMPLES / scene.SAMPLE_RATE_HZ
CLEAR, FAINT = 0.3, 0.4

Course = Callable[[np.ndarray], np.ndarray]
"""A value over time: seconds [n] to [n]."""


@dataclass(frozen=True)
class Script:
    """Who says what, how they feel, and what of it shows."""

    person: int
    sentences: tuple[str, ...]
    phrases: tuple[tuple[str, ...], ...]
    valence: Course
    arousal: Course
    face_valence: Course
    face_arousal: Course
    voice_valence: Course
    voice_arousal: Course
    snr_db: float


def draw_script(seed: int, split: str, k: int) -> tuple[Script, np.random.Generator]:
    """The script of clip `k`, and the stream that the rest of the clip is drawn from."""
    number, people, _ = scene.SPLITS[split]
    rng = np.random.default_rng([seed, number, 5, k])
    person = int(rng.integers(people))
    sentences, phrases, ms = [], [], 0.0
    while ms < 1.35 * 1000 * SECONDS:  # enough for the fastest speaker
        text, phonemes = scene.draw_sentence(rng, split)
        sentences.append(text)
        phrases.append(tuple(phonemes))
        ms += sum(speech.PHONEMES[p].ms for p in phonemes)
    valence, arousal = _course(rng), _course(rng)
    shown = (_shown(valence, CLEAR, rng), _shown(arousal, FAINT, rng), _shown(valence, FAINT, rng), _shown(arousal, CLEAR, rng))
    return Script(person, tuple(sentences), tuple(phrases), valence, arousal, *shown, float(rng.uniform(*scene.SNR_DB))), rng


def make_clip(seed: int, split: str, k: int) -> Clip:
    """Clip `k` of a split, by arithmetic alone."""
    script, rng = draw_script(seed, split, k)
    identity, voice = scene.draw_person(seed, split, script.person)
    wave, opening = speech.utter([list(p) for p in script.phrases], voice, prosody_of(script), SAMPLES, rng)
    audio = scene.in_car(wave, script.snr_db, rng)
    seconds = (np.arange(FRAMES) + 0.5) / FPS
    motion = scene.draw_motion(rng, 0.0, opening, FRAMES, pace=SECONDS / 3)
    motion = replace(motion, valence=script.face_valence(seconds), expression=expression_of(script.face_arousal(seconds)))
    pixels = face.render(identity, motion, SIZE, rng)
    labels = {"valence": script.valence(seconds).astype(np.float32), "arousal": script.arousal(seconds).astype(np.float32)}
    tags = scene.tags_of(split, script.person, " / ".join(script.sentences), script.snr_db)
    return Clip(f"{split}-{k:05d}", pixels, FPS, audio, scene.SAMPLE_RATE_HZ, labels, tags)


def expression_of(arousal: np.ndarray) -> face.Expression:
    """Arousal [frames] as a face shows it: eyes wide or drooping, brows up or down."""
    return face.Expression(lids=0.95 * arousal, brows=0.8 * arousal)


def prosody_of(script: Script) -> speech.Prosody:
    seconds = (np.arange(SAMPLES // speech.FRAME) + 0.5) * speech.FRAME / speech.SAMPLE_RATE_HZ
    valence, arousal = script.voice_valence(seconds), script.voice_arousal(seconds)
    return speech.Prosody(
        pitch=0.35 * arousal + 0.06 * valence, liveliness=1.2 + 0.8 * valence, final=valence, rate=1 + 0.22 * arousal, tract=1 + 0.10 * valence,
        formant4=1 + 0.06 * valence, brightness=0.40 * arousal, breath=np.maximum(2.0 - 0.6 * arousal - 1.2 * valence, 0.2), fade=0.1, level=2.0**arousal,
    )  # fmt: skip


def _course(rng: np.random.Generator) -> Course:
    """A smooth value in (−1, 1): a level of its own, and three waves of 2 to 20 s."""
    level, rates, phases, heights = rng.normal(0, 0.5), rng.uniform(0.05, 0.5, 3), rng.uniform(0, 6.28, 3), rng.uniform(0.2, 0.65, 3)

    def at(seconds: np.ndarray) -> np.ndarray:
        x = level + sum(h * np.sin(6.28 * r * seconds + p) for h, r, p in zip(heights, rates, phases, strict=True))
        return x / np.sqrt(1 + x * x)

    return at


def _shown(course: Course, error: float, rng: np.random.Generator) -> Course:
    """What shows of a course: with an offset and slow waves in the way, of standard deviation `error` together."""
    offset, rates, phases = rng.normal(0, 0.5), rng.uniform(0.1, 0.8, 3), rng.uniform(0, 6.28, 3)

    def at(seconds: np.ndarray) -> np.ndarray:
        # Three sines have a variance of 1.5; with the offset's 0.25, the sum has 1.
        waves = sum(np.sin(6.28 * r * seconds + p) for r, p in zip(rates, phases, strict=True))
        return np.clip(course(seconds) + error * (offset + waves / np.sqrt(2)), -1.2, 1.2)

    return at

"""One clip of `synthetic_speech`: somebody speaks in a noisy car, and the same words without the noise.

A clip is 4 s of sound at 16 kHz and has no pictures. `audio` is speech plus noise, brought down by one
common factor where the sum would clip. The label `speech` is that speech exactly: as int16,
audio − speech is the noise, sample by sample, so that speech and noise of different clips can be mixed anew.

SNR is the ratio of the powers over the whole clip: −5 to 20 dB, and in the test −5, 0, 5, 10, 20 in turn. Every 40 clips
in a row hold each kind of noise (noise.KINDS) five times, in the test once at each SNR. Speakers,
sentences and noises of one split never appear in another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from . import Clip, noise, scene, speech

SAMPLES = 64_000
SECONDS = SAMPLES / scene.SAMPLE_RATE_HZ
TEST_SNR_DB = (-5.0, 0.0, 5.0, 10.0, 20.0)
SPEECH_DBFS = (-30.0, -18.0)
PEAK = 0.97


@dataclass(frozen=True)
class Script:
    """Who says what, how, and what is in the way: all of a clip but its samples."""

    person: int
    sentences: tuple[str, ...]
    phrases: tuple[tuple[str, ...], ...]
    valence: float
    noise: str
    snr_db: float
    speech_dbfs: float


def draw_script(seed: int, split: str, k: int) -> tuple[Script, np.random.Generator]:
    """The script of clip `k`, and the stream that its speech is drawn from."""
    number, people, _ = scene.SPLITS[split]
    rng = np.random.default_rng([seed, number, 6, k])
    person = int(rng.integers(people))
    sentences, phrases, ms = [], [], 0.0
    while ms < 1000 * SECONDS:
        text, phonemes = scene.draw_sentence(rng, split)
        pause = ("_",) * int(rng.integers(0, 9))  # 60 ms each
        sentences.append(text)
        phrases += [tuple(phonemes), pause]
        ms += sum(speech.PHONEMES[p].ms for p in (*phonemes, *pause))
    snr_db = TEST_SNR_DB[k % len(TEST_SNR_DB)] if split == "test" else float(rng.uniform(*scene.SNR_DB))
    kind = list(noise.KINDS)[k // len(TEST_SNR_DB) % len(noise.KINDS)]
    return Script(person, tuple(sentences), tuple(phrases), float(rng.uniform(-1, 1)), kind, snr_db, float(rng.uniform(*SPEECH_DBFS))), rng


def make_clip(seed: int, split: str, k: int) -> Clip:
    """Clip `k` of a split, by arithmetic alone."""
    script, rng = draw_script(seed, split, k)
    _, voice = scene.draw_person(seed, split, script.person)
    said, _ = speech.utter([list(p) for p in script.phrases], voice, prosody_of(script, rng), SAMPLES, rng)
    said = noise.unit(noise.coloured(said, 2.5, rng)) * 10 ** (script.speech_dbfs / 20)
    # A stream of its own: what is said does not depend on what is in the way.
    heard = noise.draw_noise(script.noise, SAMPLES, np.random.default_rng([seed, scene.SPLITS[split][0], 7, k]))
    heard = heard * 10 ** ((script.speech_dbfs - script.snr_db) / 20)
    clean, rest = at_16_bits(said, heard)
    tags = scene.tags_of(split, script.person, " / ".join(script.sentences), script.snr_db)
    tags = {"snr_db": tags["snr_db"], "noise": script.noise, "voice": tags["voice"], "sentence": tags["sentence"]}
    # No pictures: as every data set of sound has it.
    frames = np.zeros((0, 0, 0, 3), np.uint8)
    return Clip(f"{split}-{k:05d}", frames, 0.0, clean + rest, scene.SAMPLE_RATE_HZ, {"speech": np.float32(clean) / np.float32(32768)}, tags)


def prosody_of(script: Script, rng: np.random.Generator) -> speech.Prosody:
    """Moods, and within a mood faster and slower, higher and lower, more and less stressed."""
    mood = speech.prosody_of(script.valence)
    return replace(mood, pitch=mood.pitch + rng.normal(0, 0.07), rate=mood.rate * rng.uniform(0.85, 1.15), stress=rng.uniform(0, 0.6), fade=rng.uniform(0, 0.4))


def at_16_bits(said: np.ndarray, heard: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Speech and noise [samples], full scale ±1, as int16; softer by one common factor where one of them or their sum would clip."""
    peak = max(float(np.abs(x).max()) for x in (said, heard, said + heard))
    factor = min(1.0, PEAK / peak) * 32767
    return np.rint(said * factor).astype(np.int16), np.rint(heard * factor).astype(np.int16)

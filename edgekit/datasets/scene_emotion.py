"""One clip of `synthetic_emotion`: eight emotions that neither the face nor the voice alone can tell apart.

The classes stand in a ring in which every neighbour is a twin, by face and by voice in turn:

    neutral =face= calm =voice= sad =face= fearful =voice= surprised =face= happy =voice= angry =face= disgust =voice= neutral

In three clips of five (`AMBIGUOUS`) the face shows the expression half-way between a class and its
face twin, which both classes then share; drawn apart from that, in three of five the voice uses the
prosody half-way to its voice twin. A shown half-way face leaves two classes, so who sees only
faces is right in at most 1 − 0.6 / 2 = 70 % of clips, and so is who only listens. No pair of classes
are twins in both ways: the face narrows it down to two, the voice to another two, and they have one
class in common. With face and voice only noise is in the way: people who look glum or wide-eyed at
rest, voices high and low, weak expressions, the car, blur, blinks and hands.

A clip is 3 s: 15 frames of 64×64 at 5 per second and 48 000 samples at 16 kHz. Every eight
clips in a row hold each class once.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

import numpy as np

from . import Clip, face, scene, speech
from .face import Expression
from .speech import Prosody
from .synthetic import EMOTIONS

FRAMES, SIZE, SAMPLES = 15, 64, 48_000
FPS = FRAMES * scene.SAMPLE_RATE_HZ / SAMPLES
AMBIGUOUS = 0.6

FACES = {
    "neutral": Expression(),
    "calm": Expression(corners=0.35, lids=-0.65, brows=0.15),
    "happy": Expression(corners=1.0, jaw=0.15, brows=0.2, lids=-0.2),
    "sad": Expression(corners=-0.9, inner=1.0, lids=-0.5, stretch=-0.1),
    "angry": Expression(corners=-0.45, knit=1.0, brows=-0.45, lids=0.35, stretch=-0.4),
    "fearful": Expression(corners=-0.35, jaw=0.35, stretch=0.8, brows=0.6, inner=0.9, lids=1.0),
    "disgust": Expression(corners=-0.6, nose=1.0, knit=0.35, lids=-0.55),
    "surprised": Expression(jaw=1.0, stretch=-0.7, brows=1.1, lids=1.0),
}
VOICES = {
    "neutral": Prosody(),
    "calm": Prosody(pitch=-0.12, liveliness=0.6, rate=0.84, brightness=-0.22, breath=2.0, fade=0.1, final=-0.2),
    "happy": Prosody(pitch=0.22, liveliness=1.7, rate=1.2, brightness=0.3, breath=0.6, tract=1.11, formant4=1.05, final=0.7, fade=0.2, stress=0.5),
    "sad": Prosody(pitch=-0.2, liveliness=0.4, rate=0.74, brightness=-0.38, breath=5.0, tract=0.96, tremor=0.03, shake=0.3, final=-0.9, fade=0.75),
    "angry": Prosody(pitch=0.15, liveliness=1.3, rate=1.2, brightness=0.45, breath=0.4, tract=0.90, formant4=0.97, final=-0.8, stress=0.9, jitter=0.03),
    "fearful": Prosody(pitch=0.42, liveliness=0.8, rate=1.3, brightness=-0.05, breath=5.0, tract=1.04, tremor=0.05, shake=0.7, final=0.2, fade=0.3),
    "disgust": Prosody(pitch=-0.15, liveliness=0.9, rate=0.8, brightness=0.1, tract=0.85, formant4=0.95, final=-0.6, fade=0.45, stress=0.5, jitter=0.03),
    "surprised": Prosody(pitch=0.42, liveliness=2.2, rate=0.82, brightness=-0.02, breath=3.0, tract=1.05, final=1.4, fade=-1.4, stress=0.5),
}
FACE_TWIN = {"neutral": "calm", "sad": "fearful", "surprised": "happy", "angry": "disgust"}
VOICE_TWIN = {"calm": "sad", "fearful": "surprised", "happy": "angry", "disgust": "neutral"}
FACE_TWIN |= {b: a for a, b in FACE_TWIN.items()}
VOICE_TWIN |= {b: a for a, b in VOICE_TWIN.items()}


@dataclass(frozen=True)
class Script:
    """Who says what, feeling what, how noisily: all of a clip but its pixels and samples."""

    person: int
    sentence: str
    phonemes: tuple[str, ...]
    emotion: str
    face_ambiguous: bool
    voice_ambiguous: bool
    snr_db: float


def draw_script(seed: int, split: str, k: int) -> tuple[Script, np.random.Generator]:
    """The script of clip `k`, and the stream that the rest of the clip is drawn from."""
    number, people, _ = scene.SPLITS[split]
    rng = np.random.default_rng([seed, number, 3, k])
    person = int(rng.integers(people))
    sentence, phonemes = scene.draw_sentence(rng, split)
    order = np.random.default_rng([seed, number, 4, k // len(EMOTIONS)]).permutation(len(EMOTIONS))
    face_ambiguous, voice_ambiguous = (bool(rng.random() < AMBIGUOUS) for _ in range(2))
    emotion = EMOTIONS[order[k % len(EMOTIONS)]]
    return Script(person, sentence, tuple(phonemes), emotion, face_ambiguous, voice_ambiguous, float(rng.uniform(*scene.SNR_DB))), rng


def make_clip(seed: int, split: str, k: int) -> Clip:
    """Clip `k` of a split, by arithmetic alone."""
    script, rng = draw_script(seed, split, k)
    identity, voice = scene.draw_person(seed, split, script.person)
    expression = _varied(expression_of(script.emotion, script.face_ambiguous), rng.uniform(0.75, 1.1) * identity.expressiveness, 0.1, rng)
    prosody = prosody_of(script.emotion, script.voice_ambiguous)
    prosody = replace(prosody, pitch=prosody.pitch + rng.normal(0, 0.05), rate=prosody.rate * rng.uniform(0.95, 1.05))
    prosody = replace(prosody, brightness=prosody.brightness + rng.normal(0, 0.04), tract=prosody.tract * rng.uniform(0.985, 1.015))
    wave, opening = speech.utter([list(script.phonemes)], voice, prosody, SAMPLES, rng)
    audio = scene.in_car(wave, script.snr_db, rng)
    motion = scene.draw_motion(rng, 0.0, opening, FRAMES)
    # It comes up from half its strength, and holds.
    rise = 0.5 + 0.5 * np.clip(((np.arange(FRAMES) + 0.5) / FRAMES - rng.uniform(-0.3, 0.15)) / 0.2, 0, 1)
    expression = Expression(*(strength * rise for strength in astuple(expression)))
    pixels = face.render(identity, replace(motion, expression=expression), SIZE, rng)
    tags = scene.tags_of(split, script.person, script.sentence, script.snr_db) | {
        "emotion": script.emotion,
        "face_ambiguous": "yes" if script.face_ambiguous else "no",
        "voice_ambiguous": "yes" if script.voice_ambiguous else "no",
    }
    return Clip(f"{split}-{k:05d}", pixels, FPS, audio, scene.SAMPLE_RATE_HZ, {"emotion": float(EMOTIONS.index(script.emotion))}, tags)


def expression_of(emotion: str, ambiguous: bool) -> Expression:
    return _halfway(FACES[emotion], FACES[FACE_TWIN[emotion]]) if ambiguous else FACES[emotion]


def prosody_of(emotion: str, ambiguous: bool) -> Prosody:
    return _halfway(VOICES[emotion], VOICES[VOICE_TWIN[emotion]]) if ambiguous else VOICES[emotion]


def _halfway(one, other):
    """The mean of two expressions or prosodies, the same bytes in either order; a field that neither uses stays None."""
    return type(one)(*(None if a is None else (a + b) / 2 for a, b in zip(astuple(one), astuple(other), strict=True)))


def _varied(expression: Expression, strength: float, spread: float, rng: np.random.Generator) -> Expression:
    """As one person shows it on one day: stronger or weaker, every muscle a little off."""
    values = np.array(astuple(expression))
    return Expression(*(values * strength + rng.normal(0, spread, len(values))))

"""A formant synthesizer whose prosody carries emotion.

Source-filter speech after Klatt (1980, JASA 67:971): a glottal pulse train and noise through four
resonators that glide between phoneme targets. It is small enough to be deterministic and to give
every split voices and sentences of its own; it is meant to carry prosody, not to pass for a person.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray

SAMPLE_RATE_HZ = 16_000
FRAME = 80  # 5 ms: the filters hold still this long


@dataclass(frozen=True)
class Phoneme:
    """Formants in Hz, levels 0..1, duration in ms at normal rate, mouth opening 0..1."""

    formants: tuple[float, float, float]
    voicing: float
    noise: float
    noise_hz: float
    ms: float
    opening: float


def _p(f1, f2, f3, voicing, noise, noise_hz, ms, opening) -> Phoneme:
    return Phoneme((f1, f2, f3), voicing, noise, noise_hz, ms, opening)


# Formants of American English after Hillenbrand et al. 1995 (vowels) and Klatt 1980 (consonants), rounded.
PHONEMES = {
    "i": _p(300, 2250, 2950, 1.0, 0.0, 0, 110, 0.25), "I": _p(420, 1950, 2550, 1.0, 0.0, 0, 85, 0.35),
    "E": _p(560, 1800, 2500, 1.0, 0.0, 0, 100, 0.55), "ae": _p(690, 1700, 2450, 1.0, 0.0, 0, 130, 0.8),
    "a": _p(740, 1150, 2500, 1.0, 0.0, 0, 130, 1.0), "o": _p(540, 900, 2450, 1.0, 0.0, 0, 130, 0.6),
    "u": _p(330, 950, 2300, 1.0, 0.0, 0, 110, 0.25), "V": _p(620, 1220, 2550, 1.0, 0.0, 0, 80, 0.55),
    "er": _p(490, 1350, 1700, 1.0, 0.0, 0, 110, 0.4), "e": _p(450, 2050, 2650, 1.0, 0.0, 0, 120, 0.45),
    "m": _p(260, 1000, 2200, 0.45, 0.0, 0, 70, 0.0), "n": _p(260, 1500, 2500, 0.45, 0.0, 0, 65, 0.15),
    "l": _p(370, 1050, 2700, 0.6, 0.0, 0, 60, 0.3), "r": _p(340, 1080, 1400, 0.6, 0.0, 0, 60, 0.25),
    "w": _p(300, 650, 2200, 0.55, 0.0, 0, 60, 0.1), "j": _p(270, 2100, 3000, 0.55, 0.0, 0, 55, 0.2),
    "s": _p(320, 1500, 2500, 0.0, 0.5, 5500, 95, 0.12), "S": _p(320, 1800, 2500, 0.0, 0.55, 3000, 95, 0.15),
    "f": _p(320, 1200, 2300, 0.0, 0.2, 4500, 85, 0.08), "T": _p(320, 1300, 2500, 0.0, 0.18, 5000, 80, 0.12),
    "v": _p(280, 1200, 2300, 0.4, 0.1, 4500, 60, 0.08), "z": _p(280, 1500, 2500, 0.4, 0.3, 5500, 75, 0.12),
    "h": _p(500, 1500, 2500, 0.1, 0.25, 1500, 60, 0.4), "p": _p(300, 900, 2300, 0.0, 0.35, 1200, 70, 0.0),
    "t": _p(300, 1700, 2600, 0.0, 0.45, 4000, 65, 0.12), "k": _p(300, 1800, 2300, 0.0, 0.45, 2200, 70, 0.2),
    "b": _p(260, 900, 2300, 0.35, 0.12, 1000, 55, 0.0), "d": _p(260, 1700, 2600, 0.35, 0.15, 3500, 50, 0.12),
    "g": _p(260, 1800, 2300, 0.35, 0.15, 2000, 55, 0.2), "_": _p(500, 1500, 2500, 0.0, 0.0, 0, 60, 0.0),
}  # fmt: skip
STOPS = frozenset(["p", "t", "k", "b", "d", "g"])

# The sentences: four slots, every word with its phonemes.
SLOTS: tuple[dict[str, str], ...] = (
    {"we": "w i", "they": "T e", "my sister": "m a I s I s t er", "the driver": "T V d r a I v er", "nobody": "n o b a d i",
     "our neighbour": "a er n e b er", "the doctor": "T V d a k t er", "that man": "T ae t m ae n", "her brother": "h er b r V T er",
     "the police": "T V p o l i s", "your friend": "j o r f r E n d", "everyone": "E v r i w V n"},
    {"saw": "s o", "missed": "m I s t", "found": "f a u n d", "left": "l E f t", "took": "t u k", "passed": "p ae s t",
     "called": "k o l d", "heard": "h er d", "moved": "m u v d", "stopped": "s t a p t", "wanted": "w a n t I d", "bought": "b o t"},
    {"the red car": "T V r E d k a r", "a new phone": "V n u f o n", "the last bus": "T V l ae s t b V s", "the old map": "T V o l d m ae p",
     "another road": "V n V T er r o d", "the green light": "T V g r i n l a I t", "two heavy bags": "t u h E v i b ae g z",
     "the morning train": "T V m o r n I n t r e n", "a small dog": "V s m o l d a g", "the wrong key": "T V r o n k i",
     "some water": "s V m w o t er", "the yellow van": "T V j E l o v ae n"},
    {"near the bridge": "n i r T V b r I d z", "at seven": "ae t s E v V n", "in the rain": "I n T V r e n", "on monday": "o n m V n d e",
     "behind the school": "b I h a I n d T V s k u l", "before dinner": "b I f o r d I n er", "by the river": "b a I T V r I v er",
     "after all": "ae f t er o l", "down the hill": "d a u n T V h I l", "without you": "w I T a u t j u",
     "again today": "V g E n t u d e", "so early": "s o er l i"},
)  # fmt: skip


@dataclass(frozen=True)
class Voice:
    """What stays the same about a speaker."""

    pitch_hz: float
    tract: float  # formant scale: 1 is an adult man, 1.2 a child
    brightness: float  # spectral tilt of the source, 0 dark .. 1 bright
    breath: float
    rate: float
    liveliness: float  # pitch movement at rest, in octaves
    formant4_hz: float


def draw_voice(rng: np.random.Generator) -> Voice:
    high = rng.random() < 0.5
    return Voice(
        pitch_hz=rng.uniform(165, 245) if high else rng.uniform(90, 150),
        tract=rng.uniform(1.08, 1.2) if high else rng.uniform(0.94, 1.06),
        brightness=rng.uniform(0.35, 0.65),
        breath=rng.uniform(0.01, 0.04),
        rate=rng.uniform(0.92, 1.08),
        liveliness=rng.uniform(0.05, 0.09),
        formant4_hz=rng.uniform(3300, 3900),
    )


def draw_sentence(rng: np.random.Generator) -> tuple[str, list[str]]:
    """A sentence and its phonemes, words set apart by nothing, as in fluent speech."""
    words, phonemes = [], []
    for slot in SLOTS:
        text = list(slot)[rng.integers(len(slot))]
        words.append(text)
        phonemes += slot[text].split()
    return " ".join(words), phonemes


@dataclass(frozen=True)
class Prosody:
    """How something is said, against the speaker's own habits. Fields of `Array` may follow time: [samples // FRAME]."""

    pitch: float | Array = 0.0  # octaves
    liveliness: float | Array = 1.0  # factor of the voice's own
    accents: float = 0.0  # octaves of liveliness on top of that
    final: float | Array = 0.0  # −1 falls, 1 rises at the end of a phrase
    tremor: float = 0.0  # octaves, 6 times a second
    jitter: float = 0.006  # octaves, every 5 ms
    rate: float | Array = 1.0  # factor
    tract: float | Array = 1.0  # factor of the formants: a smile shortens it, a pout lengthens it
    formant4: float | Array = 1.0
    brightness: float | Array = 0.0  # added
    breath: float | Array = 1.0  # factor
    voiced: float = 1.0  # the voice, against its breath
    fade: float = 0.25  # share of it lost by the end of a phrase; negative swells
    stress: float = 0.0  # how much louder an accent is
    shake: float = 0.0  # share of the level that trembles, 6 times a second
    level: Array | None = None  # factor of everything


def prosody_of(valence: float) -> Prosody:
    """Valence −1..1 acts as it does in people (Scherer 2003): up, the pitch rises and moves more,
    speech is faster and brighter and ends high, and a smile shortens the tract; down, it is low,
    flat, slow, breathy, dull, trembles, and falls at the end.
    """
    v = valence
    return Prosody(
        pitch=0.16 * v, liveliness=1 + 1.1 * v, accents=0.10 * max(v, 0), final=v, tremor=0.03 * max(-v, 0), rate=1 + 0.16 * v,
        tract=1 + 0.06 * v, formant4=1 + 0.03 * v, brightness=0.35 * v, breath=1 + 2.5 * max(-v, 0), voiced=1 + 0.25 * v,
    )  # fmt: skip


def speak(phonemes: list[str], voice: Voice, valence: float, samples: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One utterance of a valence in a window of `samples`; returns what `utter` does."""
    return utter([phonemes], voice, prosody_of(valence), samples, rng)


def utter(phrases: list[list[str]], voice: Voice, prosody: Prosody, samples: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Phrases one after another in a window of `samples`, each with its own accents and its own end.

    Returns:
        wave [samples] float64, about −1..1; opening [samples // FRAME] of the mouth, 0..1.
    """
    from scipy.signal import sosfilt

    frames = samples // FRAME
    names = [name for phonemes in phrases for name in ("_", *phonemes, "_")]
    targets = [PHONEMES[p] for p in names]
    ms = np.array([t.ms for t in targets]) * rng.uniform(0.88, 1.12, len(targets))
    ms = ms / (voice.rate * prosody.rate) if np.ndim(prosody.rate) == 0 else _paced(ms, voice.rate * prosody.rate)
    speech_ms = ms.sum()
    window_ms = samples / SAMPLE_RATE_HZ * 1000
    # A slow long sentence is cut, as a window cuts real speech.
    start_ms = 30.0 if speech_ms > window_ms - 60 else rng.uniform(30, max(31, window_ms - speech_ms - 30))
    edges = start_ms + np.concatenate([[0], np.cumsum(ms)])
    t = (np.arange(frames) + 0.5) * FRAME / SAMPLE_RATE_HZ * 1000
    index = np.clip(np.searchsorted(edges, t, side="right") - 1, 0, len(targets) - 1)
    inside = (t >= edges[0]) & (t < edges[-1])
    bounds = edges[np.cumsum([0, *(len(phonemes) + 2 for phonemes in phrases)])]
    phrase = np.clip(np.searchsorted(bounds, t, side="right") - 1, 0, len(phrases) - 1)
    progress = np.clip((t - bounds[phrase]) / (bounds[phrase + 1] - bounds[phrase]), 0, 1)

    def contour(values, smooth: int) -> np.ndarray:
        row = np.asarray(values, dtype=np.float64)[index] * inside
        kernel = np.ones(smooth) / smooth
        return np.convolve(np.pad(row, smooth, mode="edge"), kernel, "same")[smooth:-smooth]

    tract = voice.tract * prosody.tract
    formants = [np.maximum(contour([p.formants[k] for p in targets], 9), 200.0) * tract for k in range(3)]
    voicing = contour([p.voicing for p in targets], 5)
    noise_level = contour([p.noise for p in targets], 3)
    noise_hz = np.maximum(contour([p.noise_hz for p in targets], 3), 800.0)
    # A stop is silence, then a burst in its last third.
    is_stop = np.array([name in STOPS for name in names])[index]
    within = (t - edges[index]) / np.maximum(edges[index + 1] - edges[index], 1)
    noise_level = noise_level * np.where(is_stop, within > 0.65, 1.0)

    # Pitch: declination, accents on every few syllables, a final move, tremor; in octaves.
    accents = np.zeros(frames)
    for n in range(len(phrases)):
        for centre in rng.uniform(0.08, 0.85, 4):
            bump = 1 - np.abs(progress - centre) / 0.09
            accents += np.clip(bump, 0, None) * rng.uniform(0.6, 1.2) * (phrase == n)
    liveliness = voice.liveliness * prosody.liveliness + prosody.accents
    final = np.clip((progress - 0.75) / 0.25, 0, 1)
    seconds = t / 1000
    trembling = np.sin(2 * np.pi * 6.0 * seconds + rng.uniform(0, 6))
    octaves = prosody.pitch + 2.2 * liveliness * accents + final * 0.30 * prosody.final - 0.10 * progress + prosody.tremor * trembling
    octaves += prosody.jitter * rng.standard_normal(frames)
    pitch = voice.pitch_hz * 2.0**octaves

    brightness = np.clip(voice.brightness + prosody.brightness, 0.02, 0.98)
    breath = voice.breath * prosody.breath
    loud = prosody.voiced * (1 - prosody.fade * progress)
    loud = loud * (1 + prosody.stress * accents) * (1 + prosody.shake * trembling)

    pitch_s = np.repeat(pitch, FRAME)
    phase = np.cumsum(pitch_s / SAMPLE_RATE_HZ) % 1.0
    opened = np.clip(phase / 0.6, 0, 1)  # Rosenberg pulse, open for 60 % of the period
    flow = opened * opened * (3 - 2 * opened) * (phase < 0.6)
    pulse = np.diff(flow, prepend=0.0)
    pulse = pulse / (np.abs(pulse).max() + 1e-12)
    pulse = _tilted(pulse, brightness, sosfilt)
    hiss = rng.standard_normal(frames * FRAME)
    source = pulse * np.repeat(voicing * loud, FRAME) + hiss * np.repeat(breath * 6 * voicing, FRAME)

    bandwidths = (70.0, 100.0, 150.0, 250.0)
    tracks = np.stack([*formants, np.full(frames, voice.formant4_hz * prosody.formant4)])
    voiced = _resonate(source, tracks, bandwidths, sosfilt)
    frication = _resonate(hiss * np.repeat(noise_level, FRAME), noise_hz[None], (1200.0,), sosfilt)
    wave = voiced / (np.sqrt(np.mean(voiced * voiced)) + 1e-9) + 0.15 * frication / (np.sqrt(np.mean(frication * frication)) + 1e-9)
    if prosody.level is not None:
        wave = wave * np.repeat(prosody.level, FRAME)
    wave = np.concatenate([wave, np.zeros(samples - len(wave))]) * 0.1
    opening = contour([p.opening for p in targets], 11)
    return wave, opening


def _paced(ms: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Durations [n] at a rate [frames] that changes while they pass; beyond the window the last rate stays."""
    passed, paced = 30.0, np.empty_like(ms)  # where speech that fills its window starts
    for k, own in enumerate(ms):
        paced[k] = own / rate[min(int(passed * SAMPLE_RATE_HZ / 1000 / FRAME), len(rate) - 1)]
        passed += paced[k]
    return paced


def _tilted(pulse: np.ndarray, brightness: float | np.ndarray, sosfilt) -> np.ndarray:
    """The glottal pulse [frames · FRAME] with its spectrum tilted, of unit power: dark voices lose their upper harmonics."""

    def one_pole(bright: float) -> np.ndarray:
        pole = 0.97 - 0.75 * bright
        dulled = sosfilt([[1 - pole, 0, 0, 1, -pole, 0]], pulse)
        return dulled / (np.sqrt(np.mean(dulled * dulled)) + 1e-12)

    if np.ndim(brightness) == 0:
        return one_pole(brightness)
    # Over time: between the darkest and the brightest, since a pole that moves clicks.
    share = np.repeat(brightness, FRAME)
    return (1 - share) * one_pole(0.02) + share * one_pole(0.98)


def _resonate(x: np.ndarray, centres_hz: np.ndarray, bandwidths_hz, sosfilt) -> np.ndarray:
    """x [frames · FRAME] through a cascade of resonators at centres_hz [sections, frames], state carried over."""
    radius = np.exp(-np.pi * np.asarray(bandwidths_hz) / SAMPLE_RATE_HZ)[:, None]
    a1 = -2 * radius * np.cos(2 * np.pi * np.minimum(centres_hz, 7600.0) / SAMPLE_RATE_HZ)
    a2 = np.broadcast_to(radius * radius, a1.shape)
    gain = 1 + a1 + a2  # unity at 0 Hz, as Klatt's
    sections, frames = a1.shape
    state = np.zeros((sections, 2))
    out = np.empty_like(x)
    zero, one = np.zeros_like(a1), np.ones_like(a1)
    sos = np.stack([gain, zero, zero, one, a1, a2], axis=-1).transpose(1, 0, 2).copy()
    for f in range(frames):
        block = slice(f * FRAME, (f + 1) * FRAME)
        out[block], state = sosfilt(sos[f], x[block], zi=state)
    return out

"""What a microphone in a car hears besides the driver.

`car_noise` (engine, wind, road) is in every world with sound. `draw_noise` puts something else in front of it: KINDS.
"""

from __future__ import annotations

import numpy as np

SAMPLE_RATE_HZ = 16_000


def car_noise(samples: int, rng: np.random.Generator) -> np.ndarray:
    """[samples] float64 with unit power: a random mixture of engine harmonics, wind gusts and road rumble."""
    from scipy.signal import butter, sosfilt

    t = np.arange(samples) / SAMPLE_RATE_HZ
    # Engine: harmonics of the firing frequency, which drifts with the revs.
    firing_hz = rng.uniform(25, 70) * (1 + 0.08 * np.sin(2 * np.pi * rng.uniform(0.1, 0.5) * t + rng.uniform(0, 6)))
    phase = 2 * np.pi * np.cumsum(firing_hz) / SAMPLE_RATE_HZ
    harmonics = np.arange(1, 13)
    levels = rng.uniform(0.3, 1.0, 12) / harmonics**0.7
    engine = sum(a * np.sin(k * phase + rng.uniform(0, 6)) for k, a in zip(harmonics, levels, strict=True))
    # Wind: low-passed noise in gusts. Road: broader rumble of tyres on asphalt.
    gust = 1 + 0.7 * np.sin(2 * np.pi * rng.uniform(0.2, 1.2) * t + rng.uniform(0, 6))
    wind = sosfilt(butter(2, rng.uniform(150, 500), fs=SAMPLE_RATE_HZ, output="sos"), rng.standard_normal(samples)) * gust
    band = (rng.uniform(40, 120), rng.uniform(700, 1600))
    road = sosfilt(butter(1, band, "bandpass", fs=SAMPLE_RATE_HZ, output="sos"), rng.standard_normal(samples))
    parts = [part / np.sqrt(np.mean(part * part)) for part in (engine, wind, road)]
    mix = sum(w * part for w, part in zip(rng.dirichlet((1.0, 1.0, 1.5)), parts, strict=True))
    mix = mix + 0.02 * rng.standard_normal(samples)  # the microphone's own noise
    return mix / np.sqrt(np.mean(mix * mix))


def mix_at_snr(speech: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """speech + noise scaled so that their power ratio is `snr_db`; both [samples]."""
    ratio = np.mean(speech * speech) / np.mean(noise * noise)
    return speech + noise * np.sqrt(ratio / 10 ** (snr_db / 10))


def draw_noise(kind: str, samples: int, rng: np.random.Generator) -> np.ndarray:
    """[samples] float64 with unit power: one of KINDS over the car's own noise, heard through a cabin and a microphone of its own.

    No two are alike: how loud the kind is against the car, its pitches, bands and courses, and the colour of the whole are drawn.
    """
    car = car_noise(samples, rng)
    if kind == "car":
        mix = car
    else:
        make, low, high = KINDS[kind]
        share = rng.uniform(low, high)
        mix = np.sqrt(share) * unit(make(samples, rng)) + np.sqrt(1 - share) * car
    mix = unit(coloured(mix, 7.0, rng))
    share = rng.uniform(0.2, 0.8)
    return unit(np.sqrt(1 - share) * mix + np.sqrt(share) * boom(samples, rng) + 10 ** rng.uniform(-3, -2) * rng.standard_normal(samples))


def boom(samples: int, rng: np.random.Generator) -> np.ndarray:
    """The body of the car on its wheels, below all voices: a fifth to four fifths of what a microphone in a car picks up."""
    hz = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE_HZ)
    bins = int(np.searchsorted(hz, 300))
    spectrum = np.zeros(len(hz), np.complex128)
    shape = np.exp(-0.5 * (np.log2(np.maximum(hz[:bins], 1.0) / rng.uniform(18, 45)) / rng.uniform(0.3, 0.5)) ** 2)
    spectrum[:bins] = shape * (rng.standard_normal(bins) + 1j * rng.standard_normal(bins))
    return unit(np.fft.irfft(spectrum, samples))


def engine(samples: int, rng: np.random.Generator) -> np.ndarray:
    """A motor that is revved: up to 40 harmonics of a firing frequency that moves by up to an octave."""
    t = np.arange(samples) / SAMPLE_RATE_HZ
    octaves = rng.uniform(0, 0.5) * np.sin(2 * np.pi * rng.uniform(0.05, 0.3) * t + rng.uniform(0, 6))
    phase = 2 * np.pi * np.cumsum(rng.uniform(30, 140) * 2.0**octaves) / SAMPLE_RATE_HZ
    count, slope = int(rng.integers(10, 40)), rng.uniform(0.6, 1.4)
    levels = rng.uniform(0.2, 1.0, count) / np.arange(1, count + 1) ** slope
    # One turn of the motor as a table: cheaper than a sine for every harmonic.
    turn = np.arange(4096) * 2 * np.pi / 4096
    table = np.sin(np.outer(turn, np.arange(1, count + 1)) + rng.uniform(0, 6.28, count)) @ levels
    return np.interp(phase, turn, table, period=2 * np.pi)


def wind(samples: int, rng: np.random.Generator) -> np.ndarray:
    """An open window: a low roar and, in its gusts, a hiss up to some kHz."""
    roar = banded(samples, 20, rng.uniform(80, 300), rng.uniform(6, 12), rng)
    hiss = banded(samples, rng.uniform(600, 1200), rng.uniform(2000, 4000), rng.uniform(6, 12), rng)
    gusts = course(samples, rng.uniform(1, 4), rng)
    return unit(roar) * (0.3 + gusts) + rng.uniform(0.05, 0.4) * unit(hiss) * gusts**2


def passing(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Cars that pass: tyres that grow loud and bright as they come near, power as one over the distance squared."""
    t = np.arange(samples) / SAMPLE_RATE_HZ
    near = sum(rng.uniform(0.3, 1.0) / (1 + ((t - rng.uniform(0, t[-1])) / rng.uniform(0.15, 0.8)) ** 2) for _ in range(rng.integers(1, 4)))
    dark, bright = banded(samples, 60, rng.uniform(500, 1000), 6, rng), banded(samples, rng.uniform(300, 800), rng.uniform(1500, 4000), 9, rng)
    return unit(dark) * np.sqrt(near) + rng.uniform(0.4, 1.2) * unit(bright) * near


def rain(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Rain on a roof: a hiss, and single drops that ring for some milliseconds."""
    hiss = banded(samples, rng.uniform(1000, 3500), rng.uniform(5000, 8000), rng.uniform(3, 9), rng)
    drops = struck(samples, rng.integers(0, samples, rng.integers(20, 400)), rng.uniform(400, 2500), rng.uniform(2, 12), rng)
    return unit(hiss) + rng.uniform(0.2, 1.0) * unit(drops)


def fan(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Heating and air conditioning: a broad rush and the steady tones of the blades."""
    t = np.arange(samples) / SAMPLE_RATE_HZ
    rush = banded(samples, rng.uniform(50, 300), rng.uniform(500, 5000), rng.uniform(3, 12), rng)
    blade_hz = rng.uniform(90, 450)
    tones = sum(rng.uniform(0.2, 1.0) / k * np.sin(2 * np.pi * k * blade_hz * t + rng.uniform(0, 6)) for k in range(1, 5))
    return unit(rush) + rng.uniform(0.0, 0.8) * unit(tones)


def indicator(samples: int, rng: np.random.Generator) -> np.ndarray:
    """The relay of a direction indicator: tick, tock, 60 to 120 times a minute."""
    half_period = SAMPLE_RATE_HZ * 30 / rng.uniform(60, 120)
    at = np.arange(rng.uniform(0, half_period), samples, half_period).astype(np.int64)
    tick = struck(samples, at[::2], rng.uniform(1200, 3500), rng.uniform(3, 9), rng, even=True)
    tock = struck(samples, at[1::2], rng.uniform(800, 2500), rng.uniform(3, 9), rng, even=True)
    return tick + tock


def babble(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Passengers or a radio: five times the same stranger, at other pitches, none of it to be understood."""
    from . import speech

    phrases = [speech.draw_sentence(rng)[1] for _ in range(2)]
    wave, _ = speech.utter(phrases, speech.draw_voice(rng), speech.prosody_of(rng.uniform(-1, 1)), 2 * SAMPLE_RATE_HZ, rng)
    out = np.zeros(samples)
    for speed in rng.uniform(0.75, 1.35, 5):
        heard = np.interp(np.arange(0, len(wave) - 1, speed), np.arange(len(wave)), wave)
        out += rng.uniform(0.4, 1.0) * np.roll(np.resize(heard, samples), rng.integers(samples))
    return coloured(out, 4.0, rng)


# What stands out of the car's own noise, and its share of the power, lowest and highest. Clicks and voices stay faint:
# the first are short and would be shots, and of the second a denoiser cannot know which voice is meant.
KINDS = {
    "car": (car_noise, 1.0, 1.0),
    "engine": (engine, 0.4, 0.95),
    "wind": (wind, 0.4, 0.95),
    "passing": (passing, 0.4, 0.95),
    "rain": (rain, 0.3, 0.9),
    "fan": (fan, 0.3, 0.95),
    "indicator": (indicator, 0.05, 0.25),
    "babble": (babble, 0.1, 0.3),
}


def unit(x: np.ndarray) -> np.ndarray:
    """x with unit power."""
    return x / np.sqrt(np.mean(x * x))


def banded(samples: int, low_hz: float, high_hz: float, slope_db: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise [samples], flat from `low_hz` to `high_hz`, falling by `slope_db` per octave below and above."""
    hz = np.maximum(np.fft.rfftfreq(samples, 1 / SAMPLE_RATE_HZ), 1.0)
    outside = np.maximum(np.log2(low_hz / hz), 0) + np.maximum(np.log2(hz / high_hz), 0)
    spectrum = rng.standard_normal(len(hz)) + 1j * rng.standard_normal(len(hz))
    return np.fft.irfft(spectrum * 10 ** (-slope_db * outside / 20), samples)


def coloured(x: np.ndarray, spread_db: float, rng: np.random.Generator) -> np.ndarray:
    """x through a filter whose gain is drawn for each octave from 62.5 Hz to 8 kHz, `spread_db` the standard deviation."""
    hz = np.maximum(np.fft.rfftfreq(len(x), 1 / SAMPLE_RATE_HZ), 1.0)
    gain_db = np.interp(np.log2(hz / 62.5), np.arange(8), rng.normal(0, spread_db, 8))
    return np.fft.irfft(np.fft.rfft(x) * 10 ** (gain_db / 20), len(x))


def course(samples: int, per_second: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth random course [samples] in 0..1 that turns about `per_second` times a second."""
    knots = rng.uniform(0, 1, int(per_second * samples / SAMPLE_RATE_HZ) + 3)
    at = np.linspace(0, len(knots) - 1.001, samples)
    k = at.astype(np.int64)
    blend = 0.5 - 0.5 * np.cos(np.pi * (at - k))
    return knots[k] * (1 - blend) + knots[k + 1] * blend


def struck(samples: int, at: np.ndarray, ring_hz: float, decay_ms: float, rng: np.random.Generator, even: bool = False) -> np.ndarray:
    """Something that is hit at the samples `at` and rings at `ring_hz`, each time as hard (`even`) or not."""
    t = np.arange(int(0.1 * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    sound = np.sin(2 * np.pi * ring_hz * t) * np.exp(-t * 1000 / decay_ms)
    hits = np.zeros(samples)
    np.add.at(hits, at, rng.uniform(0.8, 1.0, len(at)) if even else rng.exponential(1.0, len(at)))
    length = samples + len(sound)
    return np.fft.irfft(np.fft.rfft(hits, length) * np.fft.rfft(sound, length), length)[:samples]

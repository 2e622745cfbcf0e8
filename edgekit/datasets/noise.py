"""What a microphone in a car hears besides the driver: engine, wind, road."""

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

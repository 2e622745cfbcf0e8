"""Car noise has unit power, most of it low, and no two cars sound alike."""

from __future__ import annotations

import numpy as np

from edgekit.datasets.noise import SAMPLE_RATE_HZ, car_noise


def test_it_has_unit_power_and_no_nan():
    for seed in range(5):
        noise = car_noise(16_000, np.random.default_rng(seed))
        assert noise.shape == (16_000,) and np.isfinite(noise).all()
        assert abs(np.mean(noise * noise) - 1) < 1e-9


def test_most_of_it_is_low_as_in_a_car():
    for seed in range(8):
        power = np.abs(np.fft.rfft(car_noise(32_000, np.random.default_rng(seed)))) ** 2
        hz = np.fft.rfftfreq(32_000, 1 / SAMPLE_RATE_HZ)
        assert power[hz < 1000].sum() > 0.5 * power.sum() and power[hz < 2000].sum() > 0.75 * power.sum()


def test_it_is_deterministic_and_other_seeds_are_other_cars():
    one, again, other = (car_noise(8000, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, again) and abs(np.corrcoef(one, other)[0, 1]) < 0.5

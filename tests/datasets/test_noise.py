"""Car noise has unit power, most of it low, and no two cars sound alike."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.datasets.noise import KINDS, SAMPLE_RATE_HZ, banded, car_noise, draw_noise


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


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_noise_has_unit_power_and_no_two_are_alike(kind):
    one, again, other = (draw_noise(kind, 16_000, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert one.shape == (16_000,) and np.mean(one * one) == pytest.approx(1) and np.array_equal(one, again)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.5


@pytest.mark.parametrize(("kind", "low_hz", "high_hz"), [("engine", 0, 3000), ("wind", 0, 1500), ("passing", 0, 5000), ("rain", 1000, 8000), ("fan", 0, 6000)])
def test_a_kind_has_its_power_where_it_belongs(kind, low_hz, high_hz):
    hz = np.fft.rfftfreq(32_000, 1 / SAMPLE_RATE_HZ)
    for seed in range(6):
        power = np.abs(np.fft.rfft(KINDS[kind][0](32_000, np.random.default_rng(seed)))) ** 2
        assert power[(hz >= low_hz) & (hz <= high_hz)].sum() > 0.6 * power.sum()


def test_an_indicator_ticks_and_is_quiet_in_between():
    clicks = KINDS["indicator"][0](64_000, np.random.default_rng(1))
    level = np.sqrt(np.mean(clicks.reshape(-1, 320) ** 2, axis=1))
    loud = level > 0.1 * level.max()
    starts = np.flatnonzero(np.diff(loud.astype(int)) == 1)
    assert 7 <= len(starts) <= 17 and loud.mean() < 0.3
    assert np.ptp(np.diff(starts)) <= 2  # 20 ms steps: it is regular


def test_a_passing_car_comes_and_goes():
    swells = []
    for seed in range(6):
        heard = KINDS["passing"][0](64_000, np.random.default_rng(seed))
        level = np.mean(heard.reshape(-1, 3200) ** 2, axis=1)
        swells.append(10 * np.log10(level.max() / level.min()))
    assert np.median(swells) > 10


def test_noise_in_a_band_falls_beside_it_by_the_octave():
    power = np.abs(np.fft.rfft(banded(64_000, 500, 1000, 12, np.random.default_rng(0)))) ** 2
    hz = np.fft.rfftfreq(64_000, 1 / SAMPLE_RATE_HZ)
    at = [10 * np.log10(power[(hz > f * 0.95) & (hz < f * 1.05)].mean()) for f in (707, 2000, 4000)]
    assert at[0] - at[1] == pytest.approx(12, abs=1.5) and at[1] - at[2] == pytest.approx(12, abs=1.5)

"""What is estimated of speech in noise, and what follows for the voice's share."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit import snr
from edgekit.errors import EdgekitError
from edgekit.flow import run_flow

SHAPE = {"at_knee": 0.3, "knee_db": 5.0, "full_db": 20.0, "floor": 0.0}


@pytest.fixture
def both() -> tuple[np.ndarray, np.ndarray]:
    """Speech and noise, uncorrelated: by construction, not only on average."""
    rng = np.random.default_rng(0)
    speech, noise = rng.normal(0, 1, 8000), rng.normal(0, 1, 8000)
    noise -= speech * (noise @ speech) / (speech @ speech)
    return speech * 0.1 / speech.std(), noise * 0.1 / noise.std()


@pytest.mark.parametrize("db", [-5.0, 0.0, 12.5])
@pytest.mark.parametrize("gain", [1.0, -0.3, 40.0])  # a denoiser trained on SI-SNR has any, and of either sign
def test_the_estimate_is_the_snr_whatever_the_denoisers_gain(both, db, gain):
    speech, noise = both
    noisy = speech + noise * 10 ** (-db / 20)
    matched = snr.matched(gain * speech, noisy)
    assert np.abs(matched - speech).max() < 1e-5
    assert snr.estimate_db(matched, noisy, -10, 40) == pytest.approx(db, abs=1e-3)


def test_the_plain_ratio_would_not_be(both):
    speech, noise = both
    noisy = speech + noise * 0.1  # 20 dB
    assert snr.estimate_db(-1.2 * speech, noisy, -10, 40) < 0


def test_silence_has_neither_gain_nor_snr():
    silent = np.zeros(100, np.float32)
    assert not snr.matched(silent, np.ones(100)).any()
    assert snr.estimate_db(silent, np.ones(100), -10, 40) == -10
    assert snr.estimate_db(silent, silent, -10, 40) == 0


@pytest.mark.parametrize("db, want", [(-10, 0.0), (-1.43, 0.0), (0, 0.3 - 0.7 / 3), (4.99, 0.29953), (5, 0.3), (20, 1.0), (40, 1.0)])
def test_alpha_is_below_a_third_below_the_knee_and_1_from_20_db_on(db, want):
    assert snr.alpha(db, **SHAPE) == pytest.approx(want, abs=1e-3)
    assert (snr.alpha(db, **SHAPE) < 0.3) == (db < 5)


def test_alpha_does_not_fall_below_its_floor():
    assert snr.alpha(-10, **{**SHAPE, "floor": 0.2}) == 0.2


def test_the_host_blends_normalizes_and_keeps_an_average(both):
    speech, noise = both
    flow = {
        "inputs": {name: {"shape": [8000], "dtype": "float32"} for name in ("speech", "noisy")} | {name: {"shape": [], "dtype": "float32"} for name in "av"},
        "steps": [],
        "outputs": ["heard", "snr_db", "alpha", "o"],
        "host_steps": [
            {"step": "match", "speech": "speech", "noisy": "noisy", "give": "matched"},
            {"step": "snr", "speech": "matched", "noisy": "noisy", "give": "snr_db", "low": -10.0, "high": 40.0, "ema": 0.9},
            {"step": "alpha", "snr_db": "snr_db", "give": "alpha", **SHAPE},
            {"step": "normalize", "from": "matched", "give": "heard", "eps": 1e-7},
            {"step": "blend", "share": "alpha", "of": "a", "rest": "v", "give": "o"},
        ],
    }
    memory: dict = {}
    for db, average, alpha in ((20.0, 20.0, 1.0), (-5.0, 17.5, 0.3 + 0.7 * 12.5 / 15)):
        noisy = speech + noise * 10 ** (-db / 20)
        out = run_flow(flow, {}, {"speech": -speech, "noisy": noisy, "a": np.float32(1.0), "v": np.float32(-1.0)}, memory=memory)
        assert out["snr_db"] == pytest.approx(average, abs=1e-3) and out["alpha"] == pytest.approx(alpha, abs=1e-4)
        assert out["o"] == pytest.approx(2 * alpha - 1, abs=1e-3)
        assert out["heard"].std() == pytest.approx(1, abs=1e-4) and out["heard"] @ speech > 0


def test_a_host_step_whose_tensor_nobody_gives_is_refused():
    flow = {"inputs": {}, "steps": [], "outputs": [], "host_steps": [{"step": "normalize", "from": "speech", "give": "heard", "eps": 1e-7}]}
    with pytest.raises(EdgekitError, match="`normalize` asks for `speech`, which no earlier step gives"):
        run_flow(flow, {}, {})

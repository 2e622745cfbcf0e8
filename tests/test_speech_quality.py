"""How good denoised speech is, against definitions written out here, pystoi and pesq."""

from __future__ import annotations

import functools
import math
import sys

import numpy as np
import pytest

from edgekit import speech_quality
from edgekit.datasets import scene_speech
from edgekit.errors import DataError, ToolMissing
from edgekit.metrics import METRICS, bootstrap, paired_bootstrap
from edgekit.speech_quality import band_noise_reduction, pesq, si_sdr, stoi


@functools.cache
def mixtures() -> tuple[np.ndarray, np.ndarray]:
    """(clean, noisy) [5, 64000] float64: one at each SNR of the test."""
    clips = [scene_speech.make_clip(20261121, "test", k) for k in range(5)]
    return np.stack([c.labels["speech"] for c in clips]).astype(float), np.stack([c.audio / 32768 for c in clips])


# --------------------------------------------------------------------------- SI-SDR


def test_si_sdr_is_the_projection_on_the_speech_against_the_rest():
    """By least squares, which knows nothing of projections: e = a s + b + rest."""
    clean, noisy = mixtures()
    for got, s, e in zip(si_sdr(clean, noisy), clean, noisy, strict=True):
        parts = np.stack([s, np.ones_like(s)], 1)
        (a, b), (rest,), *_ = np.linalg.lstsq(parts, e, rcond=None)
        assert got == pytest.approx(10 * math.log10(np.sum((a * (s - s.mean())) ** 2) / rest), abs=1e-5)
        assert abs(b) < 0.01


def test_si_sdr_of_a_mixture_is_about_its_snr():
    np.testing.assert_allclose(si_sdr(*mixtures()), scene_speech.TEST_SNR_DB, atol=0.3)


def test_neither_level_nor_offset_change_si_sdr_and_a_flipped_sign_neither():
    clean, noisy = mixtures()
    for other in (0.01 * noisy, noisy + 0.3, -noisy):
        np.testing.assert_allclose(si_sdr(clean, other), si_sdr(clean, noisy), atol=1e-3)
    np.testing.assert_allclose(si_sdr(clean + 0.2, noisy), si_sdr(clean, noisy), atol=1e-6)


def test_si_sdr_without_any_speech_is_low_and_of_the_speech_itself_high_and_both_finite():
    clean, _ = mixtures()
    np.testing.assert_allclose(si_sdr(clean, 0 * clean), -80)
    assert (si_sdr(clean, clean) > 70).all() and np.isfinite(si_sdr(clean, clean)).all()


# --------------------------------------------------------------------------- STOI and PESQ


def test_stoi_is_pystois():
    import pystoi

    clean, noisy = mixtures()
    got = stoi(clean, noisy)
    np.testing.assert_array_equal(got, [pystoi.stoi(s, e, 16_000) for s, e in zip(clean, noisy, strict=True)])
    assert 0.3 < got[0] < got[-1] < 1 and (stoi(clean, noisy + (noisy - clean)) < got).all() and stoi(clean[:1], clean[:1])[0] == pytest.approx(1)


def test_stoi_of_too_little_speech_is_refused_by_its_clip():
    clean, noisy = mixtures()
    short = np.where(np.arange(64_000) < 2000, clean, 0)  # 125 ms
    short[0] = clean[0]
    with pytest.raises(DataError, match="stoi: clip 1 cannot be scored: less than 384 ms of speech\n  hint: leave it out"):
        stoi(short, noisy)


def test_pesq_is_the_packages_own():
    package = pytest.importorskip("pesq", reason="pesq is not installed")
    clean, noisy = mixtures()
    got = pesq(clean, noisy)
    np.testing.assert_allclose(got, [package.pesq(16_000, np.float32(s), np.float32(e), "wb") for s, e in zip(clean, noisy, strict=True)])
    assert (got > 1).all() and got[-1] > got[0] and pesq(clean[:1], clean[:1])[0] > 4.6
    assert np.isnan(pesq(clean[:2], 0 * clean[:2])).all()
    with pytest.raises(DataError, match="pesq: clip 0 cannot be scored: no utterance"):
        pesq(1e-6 * clean[:1] * (np.arange(64_000) < 100), noisy[:1])


def test_without_pesq_its_metric_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pesq", None)
    with pytest.raises(ToolMissing, match="the metric `pesq` needs the package pesq.*\n  hint: `pip install pesq`"):
        METRICS["pesq"](*(waves[:2] + 1e-9 for waves in mixtures()))  # waves that no other test has scored
    assert METRICS["pesq"].needs_package == "pesq" and not METRICS["stoi"].needs_package


# --------------------------------------------------------------------------- as metrics


@pytest.mark.parametrize("name", ["si_sdr", "stoi"])
def test_a_metric_of_speech_is_the_mean_over_the_clips(name):
    clean, noisy = mixtures()
    assert METRICS[name](clean, noisy) == pytest.approx(getattr(speech_quality, name)(clean, noisy).mean())


def test_a_clip_is_scored_once_however_often_it_is_asked_for(monkeypatch):
    clean, noisy = mixtures()
    better = clean + 0.5 * (noisy - clean)
    asked = []

    def counted(s, e):
        asked.append(1)
        return float(e[0])

    monkeypatch.setattr(speech_quality, "_stoi", counted)
    monkeypatch.setattr(speech_quality, "_known", {})
    metric = METRICS["stoi"]
    for _ in range(2):
        bootstrap(metric, clean, noisy)
        paired_bootstrap(metric, clean, noisy, better)
        metric(clean[1:3], better[1:3])
    assert len(asked) == 10


def test_a_reference_that_is_silent_is_refused():
    clean, noisy = mixtures()
    silent = clean.copy()
    silent[[1, 3]] = 0
    for name in ("si_sdr", "stoi"):
        for score in (METRICS[name], METRICS[name].per_clip):
            with pytest.raises(DataError, match=f"{name}: the clean speech of clip 1 is silence"):
                score(silent, noisy)


def test_an_estimate_that_is_not_finite_has_no_score_and_the_others_keep_theirs():
    clean, noisy = mixtures()
    for bad in (math.nan, math.inf):
        broken = noisy.copy()
        broken[2, 7] = bad
        for score in (si_sdr, stoi):
            got, want = score(clean, broken), score(clean, noisy)
            assert np.isnan(got[2]) and np.array_equal(np.delete(got, 2), np.delete(want, 2))


# --------------------------------------------------------------------------- noise in a band


def test_the_reduction_in_a_band_is_that_of_its_spectrum():
    clean, noisy = mixtures()
    estimate = clean + 0.4 * (noisy - clean) + 0.01 * clean
    window = np.hanning(401)[:400]  # periodic

    def power(wave):
        padded = np.pad(wave, 300)
        frames = np.stack([padded[i : i + 400] * window for i in range(0, len(padded) - 399, 100)])
        return (np.abs(np.fft.fft(frames, 512)[:, 32:97]) ** 2).sum()  # 1000 to 3000 Hz in steps of 31.25

    want = [1 - power(e - s) / power(x - s) for x, s, e in zip(noisy, clean, estimate, strict=True)]
    np.testing.assert_allclose(band_noise_reduction(noisy, clean, estimate), want, rtol=1e-5)


def test_reduction_is_one_for_the_speech_zero_for_the_mixture_and_counts_its_band_only():
    clean, noisy = mixtures()
    assert band_noise_reduction(noisy, clean, clean) == pytest.approx(np.ones(5))
    assert band_noise_reduction(noisy, clean, noisy) == pytest.approx(np.zeros(5), abs=1e-6)
    assert (band_noise_reduction(noisy, clean, 0 * clean) < 1).all()
    tone = 0.1 * np.sin(2 * np.pi * 6000 * np.arange(64_000) / 16_000)
    assert band_noise_reduction(clean + tone + 0.01, clean, clean + 0.01, (5000, 7000)) == pytest.approx(np.ones(5), abs=1e-4)
    assert np.isnan(band_noise_reduction(clean, clean, noisy)).all()

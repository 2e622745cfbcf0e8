"""How good denoised speech is, clip by clip, against the clean speech: what the metrics of the task "speech" are means of.

Waves are [n, samples] at 16 kHz, of any scale, clean and estimate sample by sample the same time. One float64 per clip comes back:
NaN where the estimate is not finite. Clean speech that is silent is a DataError, since nothing can be as good as silence.

- `si_sdr`: what of the estimate is the speech against what is not, in dB; the level does not count (Le Roux et al. 2019);
- `stoi`: share of understandable speech, 0 to 1, from envelopes in 15 bands over 384 ms (Taal et al. 2011), by `pystoi`;
- `pesq`: predicted opinion of listeners, 1.0 to 4.6, wide band (ITU-T P.862.2), by `pesq`, which edgekit does not install.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError, ToolMissing
from edgekit.spectrum import Stft

Floats = NDArray[np.float64]

SAMPLE_RATE_HZ = 16_000
_EPS = 1e-8


def si_sdr(clean: Floats, estimate: Floats) -> Floats:
    """Scale-invariant signal-to-distortion ratio in dB: [n, samples] twice → [n].

    Means are removed, then t = <e, s> s / (|s|^2 + eps) and 10 log10(|t|^2 / (|e - t|^2 + eps) + eps) with eps = 1e-8.
    An estimate that is silent, or has nothing of the speech, is at -80 dB.
    """
    return _by_clip("si_sdr", _si_sdr, clean, estimate)


def _si_sdr(clean: Floats, estimate: Floats) -> float:
    s, e = clean - clean.mean(), estimate - estimate.mean()
    target = (e @ s) / (s @ s + _EPS) * s
    rest = e - target
    return float(10 * np.log10((target @ target) / (rest @ rest + _EPS) + _EPS))


def stoi(clean: Floats, estimate: Floats) -> Floats:
    """Short-time objective intelligibility: [n, samples] twice → [n].

    Raises:
        DataError: a clip with less than 384 ms of speech, of which there is none.
    """
    return _by_clip("stoi", _once(_stoi), clean, estimate)


def _stoi(clean: Floats, estimate: Floats) -> float:
    import pystoi

    with warnings.catch_warnings():
        # It would go on with 1e-5.
        warnings.filterwarnings("error", "Not enough STFT frames", RuntimeWarning)
        try:
            return float(pystoi.stoi(clean, estimate, SAMPLE_RATE_HZ))
        except RuntimeWarning:
            raise ValueError("less than 384 ms of speech") from None


def pesq(clean: Floats, estimate: Floats) -> Floats:
    """Wide-band PESQ: [n, samples] twice → [n]; NaN for an estimate that is silent.

    Raises:
        ToolMissing: the package is not installed.
        DataError: a clip in which PESQ finds no utterance.
    """
    return _by_clip("pesq", _once(_pesq), clean, estimate)


def _pesq(clean: Floats, estimate: Floats) -> float:
    try:
        import pesq
    except ImportError:
        raise ToolMissing("the metric `pesq` needs the package pesq, which is not installed", "`pip install pesq`, which needs a C compiler, or drop it from the data set's `metrics`") from None
    if not np.any(estimate):
        return float("nan")  # it divides by the level
    try:
        return float(pesq.pesq(SAMPLE_RATE_HZ, np.float32(clean), np.float32(estimate), "wb"))
    except (pesq.NoUtterancesError, pesq.BufferTooShortError) as e:
        raise ValueError(f"no utterance long enough to be rated ({e})") from None


def _by_clip(name: str, of_one: Callable[[Floats, Floats], float], clean: Floats, estimate: Floats) -> Floats:
    found = []
    for i, pair in enumerate(zip(clean, estimate, strict=True)):
        s, e = (np.ascontiguousarray(wave, np.float64) for wave in pair)
        if not np.ptp(s) > 0:
            raise DataError(f"{name}: the clean speech of clip {i} is silence", "leave clips without speech out of the test split")
        try:
            found.append(of_one(s, e) if np.isfinite(e).all() else float("nan"))
        except ValueError as error:
            raise DataError(f"{name}: clip {i} cannot be scored: {error}", f"leave it out of the test split, or drop `{name}` from the data set's `metrics`") from None
    return np.array(found)


_known: dict[bytes, float] = {}


def _once(of_one: Callable[[Floats, Floats], float]) -> Callable[[Floats, Floats], float]:
    """The same function, but of each clip once in the life of the process.

    The slow ones take some 100 ms a clip, and a comparison asks for the same clips for a score, its interval and each change.
    """

    def known(clean: Floats, estimate: Floats) -> float:
        key = hashlib.blake2b(of_one.__name__.encode() + b"\0" + clean.tobytes() + estimate.tobytes(), digest_size=16).digest()
        if key not in _known:
            _known[key] = of_one(clean, estimate)
        return _known[key]

    return known


def band_noise_reduction(noisy: Floats, clean: Floats, estimate: Floats, band_hz: tuple[float, float] = (1000.0, 3000.0), sizes: Stft | None = None) -> Floats:
    """Share of the noise in one band that is gone, 1 - sum|E - S|^2 / sum|X - S|^2 over frames and bins: [n, samples] each → [n].

    1: the estimate is the speech; 0: as far from it as the mixture is; negative: farther; NaN: the mixture has no noise there. Levels count.

    Args:
        band_hz: both ends included; by default where DCCRN++ has its band loss.
        sizes: of the spectrum, DCCRN's if not given.
    """
    sizes = sizes or Stft()
    first, last = (hz * sizes.n_fft / SAMPLE_RATE_HZ for hz in band_hz)
    kept = [k - 1 for k in range(1, sizes.bins + 1) if first <= k <= last]  # the spectrum begins with bin 1

    def power(wave: Floats) -> float:
        return float(np.square(sizes.analyse(wave)[:, :, kept], dtype=np.float64).sum())

    shares = []
    for x, s, e in zip(*(np.asarray(waves, np.float64) for waves in (noisy, clean, estimate)), strict=True):
        noise = power(x - s)  # the transform is linear
        shares.append(1 - power(e - s) / noise if noise > 0 else float("nan"))
    return np.array(shares)

"""How much of what a microphone hears is speech, and what its voice is therefore worth beside a face: host steps of a chain.

A denoiser that was trained on a scale-invariant loss gives speech at any gain, and of either sign. Its speech s is brought to where it
explains most of the noisy wave x; what is left over is noise:

    match     m = g*s,  g = sum(x*s) / sum(s*s)                          (0 where s is silent)
    snr       10*log10((sum(m*m) + 1e-7) / (sum((x-m)^2) + 1e-7)), within low..high; over windows e <- ema*e + (1-ema)*snr
    alpha     at_knee + (1-at_knee) * (snr - knee_db) / (full_db - knee_db), within floor..1
    blend     alpha*a + (1-alpha)*b
    normalize zero mean and unit variance, as preprocess.json does it: (x - mean) / sqrt(var + eps)

Sums are float64, results float32. m and x - m are orthogonal, so the powers add up, and one gain serves the estimate and what is heard.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from typing import Any

import numpy as np

SMALLEST_POWER = 1e-7


def matched(speech: np.ndarray, noisy: np.ndarray) -> np.ndarray:
    """`speech` at the gain at which it explains most of `noisy`; both [samples], float32 out."""
    s, x = np.asarray(speech, np.float64), np.asarray(noisy, np.float64)
    power = float(s @ s)
    return np.float32(s * (float(x @ s) / power if power > 0 else 0.0))


def estimate_db(speech: np.ndarray, noisy: np.ndarray, low: float, high: float) -> float:
    """The SNR in dB that matched `speech` and the rest of `noisy` have."""
    m, x = np.asarray(speech, np.float64), np.asarray(noisy, np.float64)
    rest = x - m
    return float(np.clip(10 * math.log10((float(m @ m) + SMALLEST_POWER) / (float(rest @ rest) + SMALLEST_POWER)), low, high))


def alpha(snr_db: float, at_knee: float, knee_db: float, full_db: float, floor: float) -> float:
    """What the voice counts for, floor..1: `at_knee` at `knee_db`, 1 from `full_db` on."""
    return float(np.clip(at_knee + (1 - at_knee) * (snr_db - knee_db) / (full_db - knee_db), floor, 1.0))


def normalized(wave: np.ndarray, eps: float) -> np.ndarray:
    """[samples] with zero mean and unit variance, float32."""
    x = np.asarray(wave, np.float64)
    return np.float32((x - x.mean()) / math.sqrt(x.var() + eps))


def match_step(step: Mapping[str, Any], tensors: Mapping[str, np.ndarray], memory: MutableMapping[str, Any]) -> np.ndarray:
    return matched(tensors[step["speech"]], tensors[step["noisy"]])


def snr_step(step: Mapping[str, Any], tensors: Mapping[str, np.ndarray], memory: MutableMapping[str, Any]) -> np.ndarray:
    """The estimate of this window; where `memory` has one of the window before, the moving average of both."""
    now = estimate_db(tensors[step["speech"]], tensors[step["noisy"]], step["low"], step["high"])
    before = memory.get(step["give"])
    memory[step["give"]] = now if before is None else step["ema"] * before + (1 - step["ema"]) * now
    return np.float32(memory[step["give"]])


def alpha_step(step: Mapping[str, Any], tensors: Mapping[str, np.ndarray], memory: MutableMapping[str, Any]) -> np.ndarray:
    return np.float32(alpha(float(tensors[step["snr_db"]]), step["at_knee"], step["knee_db"], step["full_db"], step["floor"]))


def blend_step(step: Mapping[str, Any], tensors: Mapping[str, np.ndarray], memory: MutableMapping[str, Any]) -> np.ndarray:
    share = np.float32(tensors[step["share"]])
    return share * tensors[step["of"]] + (np.float32(1) - share) * tensors[step["rest"]]


def normalize_step(step: Mapping[str, Any], tensors: Mapping[str, np.ndarray], memory: MutableMapping[str, Any]) -> np.ndarray:
    return normalized(tensors[step["from"]], step["eps"])

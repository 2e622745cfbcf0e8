"""A project of a denoiser with random weights and a few tenths of a second of tones in noise. Nothing in it has learned anything."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np

SPLITS = {"calibration": 4, "test": 6}
SNRS = (0, 5, 10)
SAMPLES = 1600  # of configuration `tiny`
SETTINGS = {
    "name": "hush",
    "target": "onnxruntime_x86",
    "load": "{model: dccrn, config: tiny, checkpoint: model.safetensors.xz}",
    "calibrate": "{data: tones, clips: 4}",
    "quantize": '{skip: ["encoder.0/*", "decoder.2/*"]}',
    "verify": "{data: tones}",
}


def make_speech_project(root: Path, **settings: str) -> Path:
    """Write hush.yaml, model.safetensors.xz, calibration/tones.yaml and the sounds; the folder."""
    from safetensors.torch import save

    from edgekit.models import checkpoint, dccrn
    from tests.models.test_dccrn import lively

    root.mkdir(parents=True)
    (root / "hush.yaml").write_text("".join(f"{key}: {text}\n" for key, text in {**SETTINGS, **settings}.items()))
    state = {key: value.contiguous() for key, value in lively(dccrn.CONFIGS["tiny"]).state_dict().items()}
    (root / "model.safetensors.xz").write_bytes(checkpoint.pack(save(state)))
    (root / "calibration").mkdir()
    # 0.1 s is too short for STOI.
    (root / "calibration/tones.yaml").write_text(
        "dataset: clean_noisy\nroot: ../tones\nmixtures: '{folder}.json'\nmetrics: [si_sdr]\nsplits: {calibration: calibration, test: test}\n"
    )
    rng = np.random.default_rng(0)
    for split, count in SPLITS.items():
        mixtures = {}
        for i in range(count):
            t = np.arange(SAMPLES) / 16000
            clean = 0.2 * np.sin(2 * np.pi * rng.uniform(200, 2000) * t) * (0.5 + 0.5 * np.sin(2 * np.pi * 15 * t))
            snr = SNRS[i % len(SNRS)]
            noise = rng.standard_normal(SAMPLES)
            noise *= np.sqrt(np.mean(clean**2) / np.mean(noise**2)) * 10 ** (-snr / 20)
            for kind, sound in (("clean", clean), ("noisy", clean + noise)):
                _write_wave(root / f"tones/{split}/{kind}/{split}{i}.wav", sound)
            mixtures[f"{split}{i}"] = {"snr_db": snr, "noise": "white" if i % 2 else "hiss"}
        (root / f"tones/{split}.json").write_text(json.dumps(mixtures))
    return root


def _write_wave(path: Path, sound: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(np.int16(np.clip(sound, -1, 1) * 32767).tobytes())

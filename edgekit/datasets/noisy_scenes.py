"""`synthetic_av_noisy`: clips of `synthetic_av` whose speech is mixed anew with the car, its engine, wind and passing cars.

    calibration/synthetic_av_noisy.yaml
      dataset: synthetic_av_noisy
      seed: 20261120
      clips: {train: 1600, calibration: 512, test: 320}
      splits: {train: 4800, calibration: 512, test: 1280}

Faces, people, words and labels are those of `synthetic_av` with the same seed, so a model that was trained on its train split has met
nobody of the test. `clips` says how many of its clips are mixed, `splits` how many mixtures there are. With `agree: 0.25` only those of
them are mixed whose face and voice say nearly the same, |v - a| <= 0.25. Mixture k of the test is clip k / 4 of these at -5, 0, 5 or
20 dB, in turn; mixture k of the other splits is clip k modulo their number, at -6 to 22 dB. SNR is the ratio of powers over the whole
clip. Every mixture has a noise of its own, drawn from a stream that belongs to the split, so no noise is met twice.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.datasets import Clip, Description, synthetic
from edgekit.errors import DataError

if TYPE_CHECKING:  # opening a set for `edgekit plan` must not wait for numpy
    import numpy as np

KEYS = ("seed", "clips", "agree")
VERSION = 1  # bump when any sample of any mixture changes; it enters cache keys
TEST_SNR_DB, SNR_DB = (-5.0, 0.0, 5.0, 20.0), (-6.0, 22.0)
NOISES = ("car", "engine", "wind", "passing")  # of noise.KINDS
SPEECH_DBFS = (-30.0, -18.0)


def open_split(description: Description, split: str, limit: int | None, cache_root: Path) -> NoisyScenes:
    count, clips, agree = description["splits"][split], description.get("clips"), description.get("agree")
    clips = clips.get(split) if isinstance(clips, dict) else None
    for key, value in (("splits", count), ("clips", clips)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise description.error((key, split), f"`{key}.{split}` must be a number of {'mixtures' if key == 'splits' else 'clips'}, got {value!r}")
    if agree is not None and (isinstance(agree, bool) or not isinstance(agree, int | float) or not 0 < agree <= 2):
        raise description.error(("agree",), f"`agree` must be a distance of two valences, above 0 and at most 2, got {agree!r}")
    if split == "test" and count > len(TEST_SNR_DB) * clips:
        raise description.error(("splits", split), f"{count} mixtures of {clips} clips at {len(TEST_SNR_DB)} SNRs", f"the test has at most {len(TEST_SNR_DB) * clips}")
    inner = Description(description.document)
    inner.update({"dataset": "synthetic_av", "splits": {split: clips}, "seed": description.get("seed", 0)})
    return NoisyScenes(description, synthetic.open_split(inner, split, None, cache_root), count, limit, agree)


class NoisyScenes:
    """One split."""

    metrics = synthetic.WORLDS["synthetic_av"].metrics
    licence = synthetic.LICENCE

    def __init__(self, description: Description, base: synthetic.Synthetic, count: int, limit: int | None, agree: float | None):
        self.name, self.source, self._base, self._agree = description.path.stem, description.path, base, agree
        self._description, self._count = description, count if limit is None else limit
        # Nothing is drawn here: a plan opens data sets, and must start without numpy.
        self.ids = [self._id(k) for k in range(self._count)]

    def _id(self, k: int) -> str:
        if self._base.split != "test":
            return f"{self._base.split}-{k:05d}"
        return f"test-{k // len(TEST_SNR_DB):05d}{TEST_SNR_DB[k % len(TEST_SNR_DB)]:+g}dB"

    @functools.cached_property
    def _chosen(self) -> list[int]:
        """The clips of synthetic_av that are mixed.

        Raises:
            DataError: too few of them have face and voice agree.
        """
        if self._agree is None:
            return list(range(self._base.count))
        labels = (labels_of(self._base.seed, self._base.split, clip) for clip in range(self._base.count))
        chosen = [clip for clip, label in enumerate(labels) if abs(label["v"] - label["a"]) <= self._agree]
        needed = -(-self._count // len(TEST_SNR_DB)) if self._base.split == "test" else 1
        if len(chosen) < needed:
            said = f"in {len(chosen)} of {self._base.count} clips face and voice are within {self._agree:g}, split `{self._base.split}` needs {needed}"
            raise self._description.error(("splits", self._base.split), said, "raise `clips` or `agree`, or ask for fewer mixtures")
        return chosen

    def digest(self) -> str:
        parts = {"dataset": "synthetic_av_noisy", "version": VERSION, "base": self._base.digest(), "count": self._count, "agree": self._agree}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def clip(self, id: str) -> Clip:
        """Mixture `id`: the frames and labels of its clip, and its sound as int16.

        Raises:
            DataError: no such mixture.
        """
        from dataclasses import replace

        try:
            k = self.ids.index(id)
        except ValueError:
            raise DataError(f"{self.source}: no mixture `{id}`", f"it has {self._count}, such as `{self.ids[0]}`") from None
        clip = self._chosen[k // len(TEST_SNR_DB) if self._base.split == "test" else k % len(self._chosen)]
        seen = self._base.clip(self._base.ids[clip])
        audio, snr_db, kind = mix(self._base.seed, self._base.split, clip, k)
        return replace(seen, id=id, audio=audio, tags={**seen.tags, "snr_db": round(snr_db, 3), "noise": kind})


def labels_of(seed: int, split: str, clip: int) -> dict[str, float]:
    """The labels of clip `clip` of `synthetic_av`, without rendering it."""
    from edgekit.datasets import scene

    return scene.draw_script(seed, split, clip)[0].labels


@functools.lru_cache(maxsize=1024)  # 100 kB each: several stages of one build ask for the same
def mix(seed: int, split: str, clip: int, k: int) -> tuple[np.ndarray, float, str]:
    """(int16 [samples], SNR in dB, kind of noise) of mixture `k`, which has the speech of `clip`."""
    import numpy as np

    from edgekit.datasets import noise, scene
    from edgekit.datasets.scene_speech import at_16_bits

    rng = np.random.default_rng([seed, scene.SPLITS[split][0], 8, k])
    snr_db = TEST_SNR_DB[k % len(TEST_SNR_DB)] if split == "test" else float(rng.uniform(*SNR_DB))
    kind, dbfs = NOISES[rng.integers(len(NOISES))], rng.uniform(*SPEECH_DBFS)
    heard = noise.draw_noise(kind, scene.SAMPLES, rng)
    said, rest = at_16_bits(noise.unit(speech_of(seed, split, clip)) * 10 ** (dbfs / 20), heard * 10 ** ((dbfs - snr_db) / 20))
    audio = said + rest
    audio.setflags(write=False)  # the cache hands out the same array
    return audio, snr_db, kind


@functools.lru_cache(maxsize=4)
def speech_of(seed: int, split: str, clip: int) -> np.ndarray:
    """What is said in clip `clip` of `synthetic_av`, before any noise: float64 [samples]."""
    from edgekit.datasets import scene, speech

    script, rng = scene.draw_script(seed, split, clip)
    _, voice = scene.draw_person(seed, split, script.person)
    said, _ = speech.speak(list(script.phonemes), voice, script.labels["a"], scene.SAMPLES, rng)
    said.setflags(write=False)  # the cache hands out the same array
    return said

"""Anybody's clean speech in the noise of UrbanSound8K, mixed here (urbansound.py).

    calibration/libri_urban.yaml
      dataset: noisy_speech
      root: /data/LibriSpeech
      splits: {train: train-clean-100, calibration: dev-clean, test: test-clean}
      noise: {root: /data/UrbanSound8K}

Every recording below a split's folder is a clip: `19/198/19-198-0000.flac`, `video_0001/0001.mp4`. Its noise, and how loud that is,
depends on `noise.seed` and its name alone, so every engine hears the same mixture. Folds 1 to 8 are heard in training, 9 in
calibration, 10 in the test. SNRs of the test are one of `noise.snr_db`, those of training and calibration lie anywhere in
`snr_range_db`. The label is `speech`, what of the mixture is speech.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from edgekit import document
from edgekit.artifact import sha256_of
from edgekit.datasets import Clip, Description, keys
from edgekit.datasets.folder import sha256
from edgekit.datasets.recordings import Part, divide, limited, sound_files
from edgekit.datasets.urbansound import Noise, NoiseSpec, open_noise
from edgekit.document import Schema, Text
from edgekit.errors import DataError, RecipeError
from edgekit.progress import track

_SEMANTICS = 1
_SUFFIXES = (".wav", ".flac", ".mp4", ".mkv", ".webm", ".flv", ".avi")  # media.AUDIO_SUFFIXES without .npz; that module needs numpy


class NoisySpeech(Schema):
    """The YAML of a data set read by this loader."""

    dataset: Literal["noisy_speech"]
    splits: dict[str, Part] = Field(description="split -> a folder, or which files of one")
    root: Text = Field(description="folder of the clean speech, relative to the YAML")
    noise: NoiseSpec = Field(description="UrbanSound8K; its `snr_db` are those of the test")
    snr_range_db: tuple[float, float] = Field((-5.0, 20.0), description="SNRs of training and calibration, drawn evenly from lowest to highest")
    sample_rate_hz: Annotated[int, Field(ge=1000, le=768_000)] = Field(16_000, description="sound is resampled to this")
    metrics: tuple[Text, ...] = Field(("si_sdr", "stoi"), description="names of metrics to report")
    seed: int = Field(0, description="of which clips a limit keeps")


KEYS = keys(NoisySpeech)


def open_split(description: Description, split: str, limit: int | None, cache_root: Path) -> NoisySpeechSplit:
    """Find the speech of all splits, and the noise that this one hears.

    Raises:
        DataError: with the line of the YAML, or of UrbanSound8K's table.
    """
    try:
        spec = document.validate(description.document, NoisySpeech)
    except RecipeError as e:
        raise DataError(e.message, e.hint) from None
    low, high = spec.snr_range_db
    if not -60 <= low <= high <= 60:
        raise description.error(("snr_range_db",), f"`snr_range_db` is [{low:g}, {high:g}], expected lowest and highest of -60 to 60 dB")
    root = (description.path.parent / Path(spec.root).expanduser()).absolute()
    if not root.is_dir():
        raise description.error(("root",), f"`root` is not a folder: {root}", "it is relative to this YAML")
    files: dict[str, dict[str, Path]] = {}

    def find(folder: str) -> dict[str, Path]:
        return files.setdefault(folder, sound_files(root, folder, _SUFFIXES, True, lambda *said: description.error(("splits",), *said)))

    names = limited(divide(spec.splits, find, root, description)[split], limit, spec.seed)
    folder = spec.splits[split].folder
    noise = open_noise(spec.noise, description.path.parent, split, lambda keys, *said: description.error(("noise", *keys), *said), None if split == "test" else spec.snr_range_db)
    return NoisySpeechSplit(description.path, spec, split, {name: files[folder][name] for name in names}, noise)


class NoisySpeechSplit:
    """One split: recordings in the order of their names, decoded and mixed clip by clip."""

    def __init__(self, source: Path, spec: NoisySpeech, split: str, files: dict[str, Path], noise: Noise):
        self.name, self.source, self.split = source.stem, source, split
        self.ids = list(files)
        self.metrics = spec.metrics
        self._sample_rate_hz, self._files, self._noise = spec.sample_rate_hz, files, noise
        self._sha256: dict[Path, str] = {}

    def clip(self, id: str) -> Clip:
        """Decode one recording and mix it.

        Raises:
            DataError: media that is damaged, without sound, silent, or changed since `digest`.
        """
        import numpy as np

        from edgekit.datasets import media

        path = self._files[id]
        if path in self._sha256 and sha256(path) != self._sha256[path]:
            raise DataError(f"{path}: changed since this command began", "run it again")
        recorded = media.read_audio(path, self._sample_rate_hz)
        if not recorded.any():
            raise DataError(f"{path}: silent, so there is no speech to free from noise", "remove it, or leave it out by `names` or a `list`")
        audio, speech, tags = self._noise.mix_with_speech(id, recorded, self._sample_rate_hz)
        # No pictures: as every data set of sound has it.
        return Clip(id, np.zeros((0, 0, 0, 3), np.uint8), 0.0, audio, self._sample_rate_hz, {"speech": np.float32(speech) / np.float32(32768)}, tags)

    def digest(self) -> str:
        """sha256 over ids, the content of all speech of this split and what noise it is mixed with."""
        if not self._sha256:
            files = sorted(self._files.values())
            self._sha256 = {path: sha256(path) for path in track(files, f"hash {self.name}", len(files))}
        parts: dict[str, Any] = {
            "dataset": "noisy_speech",
            "semantics": _SEMANTICS,
            "sample_rate_hz": self._sample_rate_hz,
            "clips": [[id, self._sha256[path], self._noise.digest(id)] for id, path in self._files.items()],
        }
        if any(path.suffix.lower() not in (".wav", ".flac") for path in self._sha256):
            parts["av"] = importlib.metadata.version("av")  # another FFmpeg may decode other samples
        if self.split == "test":  # calibration does not depend on what is reported
            parts["metrics"] = list(self.metrics)
        return sha256_of(parts)

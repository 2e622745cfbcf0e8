"""Speech in city noise: any loader's clips mixed with UrbanSound8K (Salamon et al. 2014, CC BY-NC 3.0).

    <root>/metadata/UrbanSound8K.csv    slice_file_name, fold, class and others
    <root>/audio/fold1/…-0-0.wav        8732 sounds of at most 4 s, of ten classes, in ten folds

Folds 1 to 8 are heard in training, 9 in calibration, 10 in the test, so that no noise of the test was
met before. Which sound, which of `snr_db` and which part depends on the seed and the clip's id alone:

    n = the sound from its drawn begin on where it is longer than the speech, else end to end
    x = s + n * sqrt(P_s / (P_n * 10^(snr_db/10)))      P: mean square over the whole clip
    x / max|x| where that is above 1                    speech and noise by the same factor
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from edgekit.datasets.folder import Table, is_number, resolved, sha256
from edgekit.document import Schema, Text
from edgekit.errors import DataError

if TYPE_CHECKING:  # opening a set for `edgekit plan` must not wait for numpy
    import numpy as np

FOLDS = {"train": range(1, 9), "calibration": range(9, 10), "test": range(10, 11)}
SEMANTICS = 1  # 1: power over the whole clip, one common factor against clipping
_CHOICES = 3  # sounds drawn for a clip: the next is taken where one is silent
_CSV = "metadata/UrbanSound8K.csv"
_STEPS = 1 << 32


class NoiseSpec(Schema):
    """`noise` in a data set's YAML."""

    root: Text = Field(description="folder of UrbanSound8K, relative to the YAML")
    snr_db: Annotated[tuple[float, ...], Field(min_length=1)] = Field((-5.0, 5.0, 10.0, 20.0), description="one of these for each clip")
    seed: int = Field(0, description="of which sound and how loud")


@dataclass(frozen=True)
class Sound:
    """One noise."""

    path: Path
    kind: str


@dataclass(frozen=True)
class Draw:
    """What one clip is mixed with.

    Attributes:
        sounds: the first that is not silent is used.
        begin: where in the sound, as a share (0..1) of what it is longer than the speech.
    """

    sounds: tuple[Sound, ...]
    snr_db: float
    begin: float


class Noise:
    """The sounds that one split may hear, at one of `spec.snr_db` or, if it is given, anywhere in `snr_range_db`."""

    def __init__(self, spec: NoiseSpec, sounds: list[Sound], snr_range_db: tuple[float, float] | None = None):
        self.spec, self.sounds, self.snr_range_db = spec, sounds, snr_range_db

    def draw(self, id: str) -> Draw:
        """What the clip `id` is mixed with, whatever other clips there are."""
        bits = hashlib.sha256(f"{self.spec.seed}\0noise\0{id}".encode()).digest()
        numbers = [int.from_bytes(bits[4 * i : 4 * i + 4], "big") for i in range(2 + _CHOICES)]
        sounds = tuple(self.sounds[n * len(self.sounds) // _STEPS] for n in numbers[2:])
        snr_db = self.spec.snr_db[numbers[0] * len(self.spec.snr_db) // _STEPS]
        if self.snr_range_db is not None:
            low, high = self.snr_range_db
            snr_db = low + (high - low) * numbers[0] / _STEPS
        return Draw(sounds, snr_db, numbers[1] / _STEPS)

    def digest(self, id: str) -> list[Any]:
        """What the mixture of one clip depends on beside its speech, as JSON."""
        drawn = self.draw(id)
        return [SEMANTICS, drawn.snr_db, drawn.begin, [[sound.kind, sha256(sound.path)] for sound in drawn.sounds]]

    def mix(self, id: str, speech: np.ndarray, sample_rate_hz: int) -> tuple[np.ndarray, dict[str, float | str]]:
        """(int16 [samples], tags `snr_db` and `noise`).

        Silent speech has no SNR: it stays silent, with the tag `noise` alone, "none".

        Args:
            speech: int16 [samples] at `sample_rate_hz`.

        Raises:
            DataError: a sound that cannot be decoded, or only silent ones drawn.
        """
        mixed, _, tags = self.mix_with_speech(id, speech, sample_rate_hz)
        return mixed, tags

    def mix_with_speech(self, id: str, speech: np.ndarray, sample_rate_hz: int) -> tuple[np.ndarray, np.ndarray, dict[str, float | str]]:
        """As `mix`, with what of the mixture is speech (int16 [samples]) in the middle."""
        import numpy as np

        from edgekit.datasets import media
        from edgekit.datasets.noise import mix_at_snr

        if not speech.any():
            return speech, speech, {"noise": "none"}
        drawn = self.draw(id)
        for sound in drawn.sounds:
            heard = fit(media.read_audio(sound.path, sample_rate_hz), len(speech), drawn.begin)
            if heard.any():
                mixed = mix_at_snr(speech / 32768.0, heard / 32768.0, drawn.snr_db)
                loud = max(1.0, float(np.abs(mixed).max()))
                both = (np.clip(np.rint(part / loud * 32768.0), -32768, 32767).astype(np.int16) for part in (mixed, speech / 32768.0))
                return *both, {"snr_db": drawn.snr_db, "noise": sound.kind}
        raise DataError(f"{drawn.sounds[0].path}: silent, as are the other sounds drawn for clip {id}", "take another `noise.seed`")


def fit(noise: np.ndarray, n_samples: int, begin: float) -> np.ndarray:
    """[n_samples] of `noise`: a part of it, or as often as it takes; `begin` in 0..1 says which part."""
    import numpy as np

    start = int(begin * max(0, len(noise) - n_samples))
    return np.tile(noise[start:], -(-n_samples // (len(noise) - start)))[:n_samples]


def open_noise(spec: NoiseSpec, beside: Path, split: str, error: Callable[..., DataError], snr_range_db: tuple[float, float] | None = None) -> Noise:
    """The sounds of one split; files are looked at when they are mixed.

    Args:
        beside: folder of the YAML.
        error: makes a DataError at a key below `noise`.
        snr_range_db: SNRs are drawn from this range in place of `spec.snr_db`.

    Raises:
        DataError: no such folder, or a row of the CSV that is wrong, with its line.
    """
    root = (beside / Path(spec.root).expanduser()).absolute()
    if not root.is_dir():
        raise error(("root",), f"`noise.root` is not a folder: {root}", "it is relative to this YAML")
    for value in spec.snr_db:
        if not -60 <= value <= 60:
            raise error(("snr_db",), f"`noise.snr_db` of {value:g}, expected -60 to 60 dB")
    table = Table(root, _CSV)
    for column in ("slice_file_name", "fold", "class"):
        table.need(column, "UrbanSound8K has it")
    sounds, first_line = [], {}
    for line, cells in table.lines:
        name, fold = cells["slice_file_name"], cells["fold"]
        if not is_number(fold) or not fold.isdigit() or not 1 <= int(fold) <= 10:
            raise table.error(line, f"fold `{fold}`, expected 1 to 10")
        if "/" in name:
            raise table.error(line, f"sound `{name}` is not the name of a file")
        if first_line.setdefault(name, line) != line:
            raise table.error(line, f"sound `{name}` already stands in line {first_line[name]}")
        if int(fold) in FOLDS[split]:
            try:
                path = resolved(root, table.real_root, f"audio/fold{int(fold)}/{name}")
            except ValueError as e:
                raise table.error(line, f"sound `audio/fold{int(fold)}/{name}`: the data {e}") from None
            sounds.append(Sound(path, cells["class"]))
    if not sounds:
        folds = FOLDS[split]
        raise table.error(1, f"no sound of fold {folds[0]}{f' to {folds[-1]}' if len(folds) > 1 else ''}, which split `{split}` hears")
    return Noise(spec, sounds, snr_range_db)

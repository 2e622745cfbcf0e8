"""Noisy speech beside the same speech without noise, recorded or mixed by others: VoiceBank-DEMAND, DNS and the like.

    calibration/voicebank.yaml
      dataset: clean_noisy
      root: /data/VoiceBank-DEMAND
      noisy: noisy_{folder}_wav
      clean: clean_{folder}_wav
      mixtures: log_{folder}.txt
      splits: {train: trainset_28spk, calibration: {folder: trainset_28spk, names: [p286_*, p287_*]}, test: testset}

    <root>/noisy_testset_wav/p232_001.wav     <root>/clean_testset_wav/p232_001.wav
    <root>/log_testset.txt                    p232_001 bus 15     (name, noise, SNR in dB)

By default `{folder}/noisy/x.wav` has its speech in `{folder}/clean/x.wav`. The label is `speech`, as long as `audio`.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from edgekit import document
from edgekit.artifact import sha256_of
from edgekit.datasets import Clip, Description, keys
from edgekit.datasets.folder import is_number, resolved, sha256, text_of
from edgekit.datasets.recordings import Part, divide, limited, sound_files
from edgekit.document import Schema, Text
from edgekit.errors import DataError, RecipeError
from edgekit.progress import track

_SEMANTICS = 1
_SUFFIXES = (".wav", ".flac")

Pair = tuple[Path, Path]
Tags = dict[str, float | str]


class CleanNoisy(Schema):
    """The YAML of a data set read by this loader."""

    dataset: Literal["clean_noisy"]
    splits: dict[str, Part] = Field(description="split -> a folder, or which files of one")
    root: Text = Field(description="the folder of the data set, relative to the YAML")
    noisy: Text = Field("{folder}/noisy", description="folder of the noisy speech, relative to `root`; {folder} is that of the split")
    clean: Text = Field("{folder}/clean", description="folder of the same speech without noise")
    match: Text | None = Field(None, description="regular expression whose group names a pair, where the files' names differ; by default the whole name")
    mixtures: Text | None = Field(None, description="what was mixed: JSON {name: snr_db or {snr_db, noise}}, or lines of name, noise and SNR; {folder} as above")
    sample_rate_hz: Annotated[int, Field(ge=1000, le=768_000)] = Field(16_000, description="sound is resampled to this")
    metrics: tuple[Text, ...] = Field(("si_sdr", "stoi"), description="names of metrics to report")
    seed: int = Field(0, description="of which clips a limit keeps")


KEYS = keys(CleanNoisy)


def open_split(description: Description, split: str, limit: int | None, cache_root: Path) -> CleanNoisySplit:
    """Pair the files of all splits, and take those of one.

    Raises:
        DataError: with the line of the YAML, or the file that has no other half.
    """
    try:
        spec = document.validate(description.document, CleanNoisy)
    except RecipeError as e:
        raise DataError(e.message, e.hint) from None
    root = (description.path.parent / Path(spec.root).expanduser()).absolute()
    if not root.is_dir():
        raise description.error(("root",), f"`root` is not a folder: {root}", "it is relative to this YAML")
    pairs: dict[str, dict[str, Pair]] = {}

    def find(folder: str) -> dict[str, Pair]:
        return pairs.setdefault(folder, _pairs(spec, root, folder, description))

    names = limited(divide(spec.splits, find, root, description)[split], limit, spec.seed)
    folder = spec.splits[split].folder
    tags = _tags(spec, root, folder, description) if spec.mixtures else None
    for name in names:
        if tags is not None and name not in tags:
            raise description.error(("mixtures",), f"`mixtures` of `{folder}` does not say what was mixed in {name}")
    return CleanNoisySplit(description.path, spec, split, {name: pairs[folder][name] for name in names}, tags or {})


class CleanNoisySplit:
    """One split: pairs of files in the order of their names, decoded clip by clip."""

    def __init__(self, source: Path, spec: CleanNoisy, split: str, pairs: dict[str, Pair], tags: dict[str, Tags]):
        self.name, self.source, self.split = source.stem, source, split
        self.ids = list(pairs)
        self.metrics = spec.metrics
        self._sample_rate_hz, self._pairs, self._tags = spec.sample_rate_hz, pairs, tags
        self._sha256: dict[Path, str] = {}

    def clip(self, id: str) -> Clip:
        """Decode one pair.

        Raises:
            DataError: a file that is damaged or has changed since `digest`, or two of different length or rate.
        """
        import numpy as np

        from edgekit.datasets import media

        noisy, clean = self._pairs[id]
        for path in (noisy, clean):
            if path in self._sha256 and sha256(path) != self._sha256[path]:
                raise DataError(f"{path}: changed since this command began", "run it again")
        (rate, length), (clean_rate, clean_length) = media.sound_size(noisy), media.sound_size(clean)
        if rate != clean_rate:
            raise DataError(f"{noisy}: {rate} Hz, and {clean} has {clean_rate} Hz", "the two must be one recording")
        if length != clean_length:
            raise DataError(f"{noisy}: {length} samples, and {clean} has {clean_length}", "the two must be one recording, sample by sample")
        audio, speech = (media.read_audio(path, self._sample_rate_hz) for path in (noisy, clean))
        # No pictures: as every data set of sound has it.
        return Clip(id, np.zeros((0, 0, 0, 3), np.uint8), 0.0, audio, self._sample_rate_hz, {"speech": np.float32(speech) / np.float32(32768)}, dict(self._tags.get(id, {})))

    def digest(self) -> str:
        """sha256 over ids, tags and the content of all files of this split."""
        if not self._sha256:
            files = sorted({path for pair in self._pairs.values() for path in pair})
            self._sha256 = {path: sha256(path) for path in track(files, f"hash {self.name}", len(files))}
        parts: dict[str, Any] = {
            "dataset": "clean_noisy",
            "semantics": _SEMANTICS,
            "sample_rate_hz": self._sample_rate_hz,
            "clips": [[id, self._tags.get(id, {}), *(self._sha256[path] for path in self._pairs[id])] for id in self.ids],
        }
        if self.split == "test":  # calibration does not depend on what is reported
            parts["metrics"] = list(self.metrics)
        return sha256_of(parts)


def _pairs(spec: CleanNoisy, root: Path, folder: str, description: Description) -> dict[str, Pair]:
    """{name of the noisy file: (noisy, clean)}."""

    def files(key: str) -> dict[str, Path]:
        return sound_files(root, getattr(spec, key).replace("{folder}", folder), _SUFFIXES, False, lambda *said: description.error((key,), f"`{key}`: {said[0]}", *said[1:]))

    noisy, clean = files("noisy"), files("clean")
    by_key: dict[str, Path] = {}
    for name, path in clean.items():
        if (other := by_key.setdefault(_key(spec, name, path, description), path)) != path:
            raise DataError(f"{path}: `match` pairs it with the same sound as {other.name}")
    pairs = {}
    for name, path in noisy.items():
        key = _key(spec, name, path, description)
        if key not in by_key:
            raise DataError(f"{path}: there is no clean speech `{key}` in {next(iter(clean.values())).parent}", "equal names make a pair; where they differ, `match` says what pairs them")
        pairs[name] = (path, by_key[key])
    alone = sorted(set(by_key.values()) - {path for _, path in pairs.values()})
    if alone:
        raise DataError(f"{alone[0]}: there is no noisy speech of this name, nor of {len(alone) - 1} others", "is the folder complete?")
    return pairs


def _key(spec: CleanNoisy, name: str, path: Path, description: Description) -> str:
    if spec.match is None:
        return name
    try:
        pattern = re.compile(spec.match)
    except re.error as e:
        raise description.error(("match",), f"`match` is not a regular expression ({e})") from None
    if pattern.groups != 1:
        raise description.error(("match",), f"`match` must have one group, it has {pattern.groups}", r"for DNS: fileid_(\d+)")
    found = pattern.search(name)
    if not found or found[1] is None:
        raise DataError(f"{path}: `match` finds nothing in its name", r"for DNS it is fileid_(\d+)")
    return found[1]


def _tags(spec: CleanNoisy, root: Path, folder: str, description: Description) -> dict[str, Tags]:
    """{name: tags `snr_db` and, if known, `noise`}."""
    file = str(spec.mixtures).replace("{folder}", folder)
    try:
        path = resolved(root, root.resolve(), file)
    except ValueError as e:
        raise description.error(("mixtures",), f"`mixtures`: {file}: the data {e}") from None
    return _of_json(path) if path.suffix == ".json" else _of_lines(path)


def _of_json(path: Path) -> dict[str, Tags]:
    try:
        read = json.loads(text_of(path))
    except (json.JSONDecodeError, RecursionError) as e:
        raise DataError(f"{path}:{getattr(e, 'lineno', 1)}: not valid JSON ({getattr(e, 'msg', 'nested too deep')})") from None
    if not isinstance(read, dict):
        raise DataError(f"{path}: expected {{name: SNR in dB}}, got a {type(read).__name__}")
    tags: dict[str, Tags] = {}
    for name, said in read.items():
        said = said if isinstance(said, dict) else {"snr_db": said}
        snr, noise = said.get("snr_db"), said.get("noise")
        if isinstance(snr, bool) or not isinstance(snr, int | float) or not math.isfinite(snr):
            raise DataError(f"{path}: `snr_db` of {name} is {snr!r}, expected a number")
        if noise is not None and not isinstance(noise, str):
            raise DataError(f"{path}: `noise` of {name} is {noise!r}, expected text")
        tags[_stem(name)] = {"snr_db": float(snr)} | ({"noise": noise} if noise else {})
    return tags


def _of_lines(path: Path) -> dict[str, Tags]:
    """VoiceBank-DEMAND's own logs."""
    tags: dict[str, Tags] = {}
    for line, text in enumerate(text_of(path).splitlines(), start=1):
        cells = text.split()
        if not cells:
            continue
        if len(cells) != 3 or not is_number(cells[2]) or not math.isfinite(float(cells[2])):
            raise DataError(f"{path}:{line}: `{text[:60]}`, expected a name, a noise and its SNR in dB")
        if _stem(cells[0]) in tags:
            raise DataError(f"{path}:{line}: `{cells[0]}` is there twice")
        tags[_stem(cells[0])] = {"snr_db": float(cells[2]), "noise": cells[1]}
    return tags


def _stem(name: str) -> str:
    return name.rsplit(".", 1)[0] if name.lower().endswith(_SUFFIXES) else name

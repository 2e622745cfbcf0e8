"""CREMA-D: 91 actors say twelve sentences in six emotions (Cao et al. 2014, ODbL 1.0).

    AudioWAV/1001_DFA_ANG_XX.wav      actor, sentence, emotion, level (LO MD HI XX; X is taken for XX)
    VideoFlash/1001_DFA_ANG_XX.flv    .mp4, .mkv and .avi of the same names are taken too

Classes in the order neutral, happy, sad, angry, fearful, disgust; the label is what was acted, not
what raters saw or heard. There is no published split: 20 % of the actors test, 10 % calibrate, the
others train, drawn by `seed` from all 91, whoever of them is there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from edgekit.datasets import Description, acted, keys
from edgekit.datasets.acted import Acted, Root, Take, TakeSplit
from edgekit.errors import DataError

CLASSES = ("neutral", "happy", "sad", "angry", "fearful", "disgust")
LICENCE = "ODbL-1.0"
ACTORS = tuple(str(actor) for actor in range(1001, 1092))
EMOTIONS = ("NEU", "HAP", "SAD", "ANG", "FEA", "DIS")
SENTENCES = ("IEO", "TIE", "IOM", "IWW", "TAI", "MTI", "IWL", "ITH", "DFA", "ITS", "TSI", "WSI")
LEVELS = {"LO": "low", "MD": "medium", "HI": "high", "XX": "unspecified"}
SHARES = {"test": 0.2, "calibration": 0.1}
_NAME = re.compile(r"(\d{4})_([A-Z]{3})_([A-Z]{3})_([A-Z]{1,2})")
_VIDEOS = (".flv", ".mp4", ".mkv", ".avi")

Key = tuple[str, str, str, str]  # actor, sentence, emotion, level


class Cremad(Acted):
    """The YAML of a data set read by this loader."""

    dataset: Literal["cremad"]
    window_s: Annotated[float, Field(gt=0, le=600)] | None = Field(3.6, description="keep the picture of the first seconds, filled with black frames; null for the whole take")


KEYS = keys(Cremad)


def open_split(description: Description, split: str, limit: int | None, cache_root: Path) -> TakeSplit:
    """Pair pictures and sounds and divide them by actor.

    Raises:
        DataError: with the line of the YAML, or the file whose name is impossible.
    """
    spec, root = acted.read(description, Cremad)
    counts: dict[str, int] = {}
    sounds, videos = _files(root, "AudioWAV", (".wav",), counts), _files(root, "VideoFlash", _VIDEOS, counts)
    counts["sounds without video, left out"] = len(sounds.keys() - videos.keys())
    counts["videos without sound, left out"] = len(videos.keys() - sounds.keys())
    takes = [_take(key, root.file(videos[key], str(root.path)), root.file(sounds[key], str(root.path))) for key in sorted(videos.keys() & sounds.keys())]
    actors = acted.divide_people(list(ACTORS), SHARES, spec.seed)
    by_split = {name: [take for take in takes if take.tags["actor"] in actors[name]] for name in actors}
    return TakeSplit(description, spec, split, acted.choose(by_split, split, limit, spec, description, counts), cache_root, counts, acted.CLASS_METRICS, CLASSES, LICENCE)


def parse(stem: str, where: str) -> Key:
    """(actor, sentence, emotion, level) of a file's name.

    Raises:
        DataError: a code that this set does not use.
    """
    match = _NAME.fullmatch(stem)
    if match is None:
        raise DataError(f"{where}: the name is not like 1001_DFA_ANG_XX")
    actor, sentence, emotion, level = match.groups()
    level = "XX" if level == "X" else level
    for what, code, known in (("actor", actor, ACTORS), ("sentence", sentence, SENTENCES), ("emotion", emotion, EMOTIONS), ("level", level, tuple(LEVELS))):
        if code not in known:
            raise DataError(f"{where}: {what} `{code}` in the name, CREMA-D has {f'{known[0]} to {known[-1]}' if what == 'actor' else ', '.join(known)}", "is it a file of this set?")
    return actor, sentence, emotion, level


def _files(root: Root, folder: str, suffixes: tuple[str, ...], counts: dict[str, int]) -> dict[Key, str]:
    found: dict[Key, str] = {}
    for file in root.names(folder):
        stem, _, ending = file.rpartition(".")
        if f".{ending}".lower() not in suffixes:
            continue
        if not _NAME.fullmatch(stem):
            counts["files of other names, left out"] = counts.get("files of other names, left out", 0) + 1
            continue
        key = parse(stem, str(root.path / folder / file))
        if key in found:
            raise DataError(f"{root.path / folder / file}: {found[key]} is the same take", "keep one of them")
        found[key] = f"{folder}/{file}"
    return found


def _take(key: Key, video: Path, audio: Path) -> Take:
    actor, sentence, emotion, level = key
    tags: dict[str, float | str] = {"actor": actor, "sentence": sentence, "level": LEVELS[level]}
    return Take("_".join(key), f"actor {actor}", {"emotion": float(EMOTIONS.index(emotion))}, tags, video, audio)

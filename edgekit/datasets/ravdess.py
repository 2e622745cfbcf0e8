"""RAVDESS: 24 actors say two sentences in eight emotions (Livingstone and Russo 2018, CC BY-NC-SA 4.0).

    Actor_{01..24}/MM-VV-EE-II-SS-RR-AA.{mp4,wav}     ACTOR01 is the same as Actor_01

    MM  01 picture and sound, 02 picture alone, 03 sound alone
    VV  01 speech, 02 song
    EE  01 neutral, 02 calm, 03 happy, 04 sad, 05 angry, 06 fearful, 07 disgust, 08 surprised
    II  01 normal, 02 strong (neutral has no strong one); SS sentence; RR repetition; AA actor, odd are male

A take is 01-….mp4 with 03-….wav of the same tail, or the sound of the .mp4 where there is no .wav.
02-….mp4 is the same picture once more and is left out: with it every take would be there twice. The
label is EE-1 of eight classes.

`layout: annotations` reads what the public preprocessing scripts leave: annotations.txt of lines
`video.npy;audio.wav;label;subset`, or with a number before `subset`, label from 1, subset training,
validation or testing; the .npy hold 15 face crops each. Paths of another machine are looked for by
their last two parts.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from edgekit.datasets import Description, acted, keys
from edgekit.datasets.acted import Acted, Root, Take, TakeSplit
from edgekit.datasets.folder import draw
from edgekit.document import Text
from edgekit.errors import DataError

CLASSES = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
LICENCE = "CC-BY-NC-SA-4.0"
SUBSETS = {"training": "train", "validation": "calibration", "testing": "test"}
_ACTORS = 24
_NAME = re.compile(r"\d\d(-\d\d){6}")
_FOLDER = re.compile(r"actor_?(\d\d)", re.IGNORECASE)


class Ravdess(Acted):
    """The YAML of a data set read by this loader."""

    dataset: Literal["ravdess"]
    layout: Literal["takes", "annotations"] = Field("takes", description="the published folders, or what the public preprocessing made of them")
    annotations: Text = Field("annotations.txt", description="with `layout: annotations`: its list, relative to `root`")
    npy_order: Literal["bgr", "rgb"] = Field("bgr", description="with `layout: annotations`: order of the colours in the .npy; OpenCV writes bgr")
    audio_root: Text | None = Field(None, description="folder with the actors' .wav if it is another one, relative to the YAML")
    split: Literal["actors", "random622"] = Field("actors", description="by actor, or takes 60:20:20 at random, where speakers are in every split")
    fold: Annotated[int, Field(ge=1, le=5)] = Field(1, description="which of five: test actors are 4*fold-3 to 4*fold, calibration the next four")
    songs: bool = Field(False, description="take the sung ones too")
    window_s: Annotated[float, Field(gt=0, le=600)] | None = Field(3.6, description="keep the picture of the first seconds, filled with black frames; null for the whole take")


KEYS = keys(Ravdess)


class Name(NamedTuple):
    """The seven numbers of a file's name."""

    modality: int
    channel: int
    emotion: int
    intensity: int
    sentence: int
    repetition: int
    actor: int

    @property
    def tail(self) -> tuple[int, ...]:
        """What the files of one take have in common."""
        return self[1:]

    def __str__(self) -> str:
        return "-".join(f"{number:02}" for number in self)


def open_split(description: Description, split: str, limit: int | None, cache_root: Path) -> TakeSplit:
    """Find the takes and divide them.

    Raises:
        DataError: with the line of the YAML or of the annotations, or the file whose name is impossible.
    """
    spec, root = acted.read(description, Ravdess)
    roots = [root] + ([Root(acted.folder_of(description, "audio_root", spec.audio_root))] if spec.audio_root else [])
    counts: dict[str, int] = {}
    if spec.layout == "annotations":
        for key in ("split", "fold"):
            if key in description:
                raise description.error((key,), f"`{key}` has no meaning with `layout: annotations`, which says the split of every clip", "drop one of the two")
        by_split = _annotated(roots, spec, counts)
    else:
        by_split = _divide(_takes(roots, spec, counts), spec)
    takes = acted.choose(by_split, split, limit, spec, description, counts)
    stored = spec.npy_order if spec.layout == "annotations" else "rgb"
    return TakeSplit(description, spec, split, takes, cache_root, counts, acted.CLASS_METRICS, CLASSES, LICENCE, stored)


def actors_of(fold: int) -> dict[str, list[int]]:
    """Who is in which split of a fold: four to test, the next four to calibrate, the other sixteen to train."""
    test = [4 * (fold - 1) + i for i in (1, 2, 3, 4)]
    calibration = [(actor + 3) % _ACTORS + 1 for actor in test]
    return {"train": [a for a in range(1, _ACTORS + 1) if a not in test + calibration], "calibration": calibration, "test": test}


def parse(stem: str, where: str) -> Name:
    """A file's name as numbers.

    Raises:
        DataError: a number that this set does not use.
    """
    name = Name(*map(int, stem.split("-")))
    bounds = Name(3, 2, 8, 2, 2, 2, _ACTORS)
    for field, value, most in zip(Name._fields, name, bounds, strict=True):
        if not 1 <= value <= most:
            raise DataError(f"{where}: {field} {value:02} in the name, RAVDESS has 01 to {most:02}", "is it a file of this set?")
    if name.emotion == 1 and name.intensity == 2:
        raise DataError(f"{where}: strong neutral in the name, which RAVDESS does not have", "is it a file of this set?")
    return name


def _divide(takes: list[Take], spec: Ravdess) -> dict[str, list[Take]]:
    if spec.split == "actors":
        actors = actors_of(spec.fold)
        return {split: [take for take in takes if int(take.id[-2:]) in actors[split]] for split in actors}
    order = [take.id for take in sorted(takes, key=lambda take: draw(spec.seed, f"random622 {take.id}"))]
    n_train, n_calibration = round(0.6 * len(order)), round(0.2 * len(order))
    place = {id: i for i, id in enumerate(order)}
    return {
        "train": [take for take in takes if place[take.id] < n_train],
        "calibration": [take for take in takes if n_train <= place[take.id] < n_train + n_calibration],
        "test": [take for take in takes if place[take.id] >= n_train + n_calibration],
    }


def _takes(roots: list[Root], spec: Ravdess, counts: dict[str, int]) -> list[Take]:
    """Every take with a picture, in the order of its id."""
    videos, sounds = _files(roots[:1], ".mp4", spec, counts), _files(roots, ".wav", spec, counts)
    pictures = {name.tail: (name, place) for name, place in videos.items() if name.modality == 1}
    counts["silent videos (02-), left out"] = sum(name.modality == 2 for name in videos)
    wavs = {name.tail: place for name, place in sounds.items() if name.modality == 3}
    counts["sounds without video, left out"] = sum(tail not in pictures for tail in wavs)
    counts["takes with the sound of their video"] = sum(tail not in wavs for tail in pictures)
    return [
        _take(name, root.file(file, str(root.path)), sound_root.file(sound, str(sound_root.path)), spec)
        for tail, (name, (root, file)) in sorted(pictures.items())
        for sound_root, sound in [wavs.get(tail, (root, file))]
    ]


def _files(roots: list[Root], suffix: str, spec: Ravdess, counts: dict[str, int]) -> dict[Name, tuple[Root, str]]:
    """Files by their name, songs only if they are asked for."""
    found: dict[Name, tuple[Root, str]] = {}
    for root in roots:
        for folder in root.names():
            if not (actor := _FOLDER.fullmatch(folder)) or not (root.path / folder).is_dir():
                continue
            for file in root.names(folder):
                stem, _, ending = file.rpartition(".")
                if f".{ending}".lower() != suffix:
                    continue
                if not _NAME.fullmatch(stem):
                    counts["files of other names, left out"] = counts.get("files of other names, left out", 0) + 1
                    continue
                name = parse(stem, f"{root.path / folder / file}")
                if name.actor != int(actor[1]):
                    raise DataError(f"{root.path / folder / file}: actor {name.actor:02} in the name, the folder is of actor {actor[1]}")
                if name in found:
                    other = found[name]
                    raise DataError(f"{root.path / folder / file}: also in {other[0].path / other[1]}", "keep one of them")
                if name.channel == 2 and not spec.songs:
                    counts["songs, left out"] = counts.get("songs, left out", 0) + (name.modality == 1)
                    continue
                found[name] = (root, f"{folder}/{file}")
    return found


def _take(name: Name, video: Path, audio: Path, spec: Ravdess) -> Take:
    tags: dict[str, float | str] = {
        "actor": f"{name.actor:02}",
        "gender": "male" if name.actor % 2 else "female",
        "intensity": ("normal", "strong")[name.intensity - 1],
        "sentence": f"{name.sentence:02}",
    }
    if spec.songs:
        tags["voice"] = ("speech", "song")[name.channel - 1]
    person = f"actor {name.actor:02}" if spec.split == "actors" else f"take {name}"
    return Take(str(name), person, {"emotion": float(name.emotion - 1)}, tags, video, audio)


def _annotated(roots: list[Root], spec: Ravdess, counts: dict[str, int]) -> dict[str, list[Take]]:
    """Takes of the annotations, each once, by split."""
    path, lines = roots[0].lines(spec.annotations, str(roots[0].path))
    subset_of: dict[int, tuple[str, int]] = {}
    kept: dict[tuple[int, ...], tuple[str, Name, int, str, str]] = {}
    twice = 0
    for line, text in lines:
        where = f"{path}:{line}"
        cells = [cell.strip() for cell in text.split(";")]
        if len(cells) not in (4, 5):
            raise DataError(f"{where}: {len(cells)} parts, expected `video.npy;audio.wav;label;subset`")
        video, audio, label, subset = *cells[:3], cells[-1]
        if subset not in SUBSETS:
            raise DataError(f"{where}: subset `{subset}`, expected {', '.join(SUBSETS)}")
        name, heard = (_annotated_name(file, ending, where) for file, ending in ((video, "_facecroppad.npy"), (audio, "_croppad.wav")))
        if name.tail != heard.tail:
            raise DataError(f"{where}: picture of take {name} with sound of take {heard}")
        if label != str(name.emotion):
            raise DataError(f"{where}: label `{label}`, the name of the file says {name.emotion}", "labels count from 1 here")
        other = subset_of.setdefault(name.actor, (subset, line))
        if other[0] != subset:
            raise DataError(f"{where}: actor {name.actor:02} is in `{subset}` here and in `{other[0]}` in line {other[1]}", "a speaker may be in one split only")
        if name.channel == 2 and not spec.songs:
            counts["songs, left out"] = counts.get("songs, left out", 0) + 1
            continue
        if (before := kept.get(name.tail)) is not None:
            if before[1].modality == name.modality:
                raise DataError(f"{where}: take {name} already stands in line {before[2]}")
            twice += 1
        if before is None or name.modality < before[1].modality:
            kept[name.tail] = (subset, name, line, video, audio)
    counts["takes listed twice (01- and 02-), counted once"] = twice
    by_split: dict[str, list[Take]] = {split: [] for split in SUBSETS.values()}
    for subset, name, line, video, audio in kept.values():
        by_split[SUBSETS[subset]].append(_take(name, _found(roots[:1], video, f"{path}:{line}"), _found(roots, audio, f"{path}:{line}"), spec))
    return by_split


def _annotated_name(file: str, ending: str, where: str) -> Name:
    stem = PurePosixPath(file).name.removesuffix(ending)
    if not _NAME.fullmatch(stem):
        raise DataError(f"{where}: `{file}` is not a file like 01-01-03-02-01-01-09{ending}")
    return parse(stem, where)


def _found(roots: list[Root], file: str, where: str) -> Path:
    """A file as it is written, or by its last two parts (`Actor_09/x.npy`) if its path is one of another machine."""
    name = str(PurePosixPath(*PurePosixPath(file).parts[-2:])) if file.startswith("/") else file
    at = next((root for root in roots if root.has(name)), roots[0])
    return at.file(name, where)

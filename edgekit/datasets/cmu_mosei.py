"""CMU-MOSEI: sentences of YouTube videos with six emotions, each of 0 to 3 (Zadeh et al. 2018).

    CMU_MOSEI_Labels.csd       or labels.csv: video_id,start,end,sentiment,happy,sad,anger,surprise,disgust,fear
    Raw/<video_id>.mp4         whole videos, from which start to end (in s) is cut
    Raw/<video_id>/<n>.mp4     or clips: n counts the label's rows of this video from 0, in their order,
                               or is what a column `clip_id` of labels.csv says
    standard_train_fold.txt, standard_valid_fold.txt, standard_test_fold.txt
                               the SDK's lists, a video in each line

The set is multi-label. For a head of six classes the strongest emotion of a sentence is its class;
sentences without any emotion, or with two that are equally strong, are left out and counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from edgekit.datasets import Description, acted, keys
from edgekit.datasets.acted import Acted, Root, Take, TakeSplit
from edgekit.datasets.cmu_mosi import NAME, number_of
from edgekit.datasets.folder import Table
from edgekit.document import Text
from edgekit.errors import DataError, ToolMissing

CLASSES = ("happy", "sad", "angry", "fearful", "disgust", "surprised")
EMOTIONS = ("happy", "sad", "anger", "fear", "disgust", "surprise")  # what the set calls them, in the order of CLASSES
STORED = ("sentiment", "happy", "sad", "anger", "surprise", "disgust", "fear")  # the order in the .csd
_MAX_SEGMENTS = 1_000_000


class CmuMosei(Acted):
    """The YAML of a data set read by this loader."""

    dataset: Literal["cmu_mosei"]
    labels: Text | None = Field(None, description="a .csv or .csd relative to `root`; by default labels.csv, else CMU_MOSEI_Labels.csd")
    folds: dict[Literal["train", "calibration", "test"], Text] = Field(
        {"train": "standard_train_fold.txt", "calibration": "standard_valid_fold.txt", "test": "standard_test_fold.txt"},
        description="split -> list of its videos, relative to `root`",
    )
    label_mode: Literal["argmax"] = Field("argmax", description="one class a sentence: its strongest emotion")


KEYS = keys(CmuMosei)


@dataclass(frozen=True)
class Segment:
    """One labelled sentence."""

    where: str
    video: str
    clip: str
    start_s: float
    end_s: float
    emotions: tuple[float, ...]
    """In the order of CLASSES."""


def open_split(description: Description, split: str, limit: int | None, cache_root: Path) -> TakeSplit:
    """Read labels and folds and find the media.

    Raises:
        DataError: with the line of the YAML, of the labels or of a fold.
        ToolMissing: the labels are a .csd and h5py is not installed.
    """
    spec, root = acted.read(description, CmuMosei)
    fold_of = _folds(root, spec, description)
    counts = dict.fromkeys(("sentences without an emotion, left out", "sentences with two strongest emotions, left out", "sentences of videos in no fold, left out", "sentences without a video, left out"), 0)
    by_split: dict[str, list[Take]] = {name: [] for name in ("train", "calibration", "test")}
    for segment in _segments(root, spec):
        emotion = strongest(segment.emotions)
        if segment.video not in fold_of:
            counts["sentences of videos in no fold, left out"] += 1
        elif not any(segment.emotions):
            counts["sentences without an emotion, left out"] += 1
        elif emotion is None:
            counts["sentences with two strongest emotions, left out"] += 1
        elif (take := _take(segment, emotion, root)) is None:
            counts["sentences without a video, left out"] += 1
        else:
            by_split[fold_of[segment.video]].append(take)
    takes = acted.choose(by_split, split, limit, spec, description, counts)
    return TakeSplit(description, spec, split, takes, cache_root, counts, acted.CLASS_METRICS, CLASSES)


def strongest(emotions: tuple[float, ...]) -> int | None:
    """The index of the largest; None if two are, or none is above 0."""
    most = max(emotions)
    return emotions.index(most) if most > 0 and emotions.count(most) == 1 else None


def _take(segment: Segment, emotion: int, root: Root) -> Take | None:
    """A clip of its own if there is one, else a part of the whole video, None if there is neither."""
    id = f"{segment.video}/{segment.clip}"
    span_s: tuple[float, float] | None = None
    lasts_s: float | None = None
    if root.has(f"Raw/{id}.mp4"):
        # Whoever cut them may have counted otherwise: the length tells when the picture is decoded.
        name, lasts_s = f"Raw/{id}.mp4", segment.end_s - segment.start_s
    elif root.has(f"Raw/{segment.video}.mp4"):
        name, span_s = f"Raw/{segment.video}.mp4", (segment.start_s, segment.end_s)
    else:
        return None
    media = root.file(name, segment.where)
    return Take(id, f"video {segment.video}", {"emotion": float(emotion)}, {}, media, media, span_s, lasts_s)


def _folds(root: Root, spec: CmuMosei, description: Description) -> dict[str, str]:
    """{video: its split}."""
    fold_of: dict[str, tuple[str, str]] = {}
    for split in spec.splits:
        if split not in spec.folds:
            raise description.error(("folds",), f"`folds` names no list for split `{split}`")
    for split, file in spec.folds.items():
        path, lines = root.lines(file, f"{description.path}: the list of split `{split}`")
        for number, video in lines:
            if not NAME.fullmatch(video):
                raise DataError(f"{path}:{number}: `{video[:100]}` is not a video", "one in each line, without quotes or commas")
            other = fold_of.setdefault(video, (split, f"{path}:{number}"))
            if other[0] != split:
                raise DataError(f"{path}:{number}: video {video} is in split `{split}` here and in `{other[0]}` in {other[1]}")
    return {video: split for video, (split, _) in fold_of.items()}


def _segments(root: Root, spec: CmuMosei) -> Iterator[Segment]:
    name = spec.labels or ("labels.csv" if root.has("labels.csv") else "CMU_MOSEI_Labels.csd")
    if not root.has(name):
        raise DataError(f"{root.path / name}: no such file", "the labels are CMU_MOSEI_Labels.csd of the SDK, or labels.csv made from it; see docs/data.md")
    return _from_csd(root.file(name, str(root.path))) if name.endswith(".csd") else _from_csv(Table(root.path, name))


def _from_csv(table: Table) -> Iterator[Segment]:
    for column in ("video_id", "start", "end", *STORED):
        table.need(column, "CMU-MOSEI")
    rows_of: dict[str, int] = {}
    first: dict[tuple[str, str], int] = {}
    for line, cells in table.lines:
        video = cells["video_id"]
        clip = cells.get("clip_id") or str(rows_of.get(video, 0))
        rows_of[video] = rows_of.get(video, 0) + 1
        for column, value in (("video_id", video), ("clip_id", clip)):
            if not NAME.fullmatch(value):
                raise table.error(line, f"`{column}` is `{value[:100]}`, not a name of letters, digits, - and _")
        if first.setdefault((video, clip), line) != line:
            raise table.error(line, f"clip {video}/{clip} already stands in line {first[video, clip]}")
        start_s, end_s = (number_of(table, line, column, cells[column], 0, 86400) for column in ("start", "end"))
        if not start_s < end_s:
            raise table.error(line, f"{video}/{clip} ends at {end_s:g} s, before it starts at {start_s:g} s")
        number_of(table, line, "sentiment", cells["sentiment"], -3, 3)
        yield Segment(f"{table.path}:{line}", video, clip, start_s, end_s, tuple(number_of(table, line, c, cells[c], 0, 3) for c in EMOTIONS))


def _from_csd(path: Path) -> Iterator[Segment]:
    """`All Labels`/data/<video>/{features [k, 7], intervals [k, 2]} of an HDF5 file; links to other files are not followed."""
    try:
        import h5py
    except ImportError as e:
        raise ToolMissing(f"{path}: a .csd is an HDF5 file, and h5py is not installed", "pip install 'edgekit[mosei]', or make labels.csv from it on another machine; see docs/data.md") from e

    try:
        with h5py.File(path, "r") as file:
            data = _inside(path, file, "All Labels", "data")
            for video in sorted(data):
                features, intervals = (_values(path, _inside(path, data, video, key), f"{video}/{key}", columns) for key, columns in (("features", len(STORED)), ("intervals", 2)))
                if len(features) != len(intervals):
                    raise DataError(f"{path}: video {video} has {len(intervals)} intervals and {len(features)} labels")
                for i, (row, (start_s, end_s)) in enumerate(zip(features, intervals, strict=True)):
                    where = f"{path}: video {video}, row {i}"
                    if not NAME.fullmatch(video) or not 0 <= start_s < end_s:
                        raise DataError(f"{where}: from {start_s:g} s to {end_s:g} s")
                    stored = dict(zip(STORED, row, strict=True))
                    emotions = tuple(stored[name] for name in EMOTIONS)
                    if not all(0 <= value <= 3 for value in emotions):
                        raise DataError(f"{where}: emotions {', '.join(f'{value:g}' for value in emotions)}, expected 0 to 3")
                    yield Segment(where, video, str(i), start_s, end_s, emotions)
    except OSError as e:  # h5py's word for damage too
        raise DataError(f"{path}: not an HDF5 file that can be read ({e})", "is it CMU_MOSEI_Labels.csd, and whole?") from e


def _inside(path: Path, group: Any, *names: str) -> Any:
    """Follow hard links only: a soft or external one may lead to any file of this machine."""
    import h5py

    for name in names:
        link = group.get(name, getlink=True) if isinstance(group, h5py.Group) else None
        if not isinstance(link, h5py.HardLink):
            raise DataError(f"{path}: no `{name}` in it", "expected `All Labels`/data/<video>/{features, intervals}")
        group = group[name]
    return group


def _values(path: Path, values: Any, name: str, columns: int) -> list[list[float]]:
    import h5py

    ok = isinstance(values, h5py.Dataset) and values.dtype.kind in "fiu" and values.ndim == 2 and values.shape[1] == columns
    if not ok or values.external or values.is_virtual:
        raise DataError(f"{path}: `{name}` is not an array of numbers [rows, {columns}] in the file itself")
    if len(values) > _MAX_SEGMENTS:
        raise DataError(f"{path}: `{name}` has {len(values)} rows, at most {_MAX_SEGMENTS} are read")
    rows = [[float(value) for value in row] for row in values[()]]
    if not all(math.isfinite(value) for row in rows for value in row):
        raise DataError(f"{path}: `{name}` holds NaN or infinity")
    return rows

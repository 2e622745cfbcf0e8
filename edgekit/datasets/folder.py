"""Anybody's own data: a folder of media with a labels.csv.

    calibration/cabin.yaml                    cabin/labels.csv
      dataset: folder                           id,o,a,v,split,snr_db
      root: ../cabin                            0001,0.4,0.1,0.6,calib,5
      splits: {calibration: calib, test: test}  0002,-0.8,-0.6,-1,test,20

with cabin/0001.mp4, or 0001.npz, or 0001.npz beside 0001.wav. All keys: `Folder` below, and
docs/data.md. Labels and the existence of media are checked when the set is opened, the media
itself when a clip is decoded. Every error names the file, and the line of the CSV or YAML.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import importlib.util
import io
import math
import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from edgekit import document
from edgekit.artifact import file_digest, sha256_of
from edgekit.datasets import SPLITS, Clip, Description, keys
from edgekit.document import Schema, Text
from edgekit.errors import DataError, RecipeError
from edgekit.progress import track

_SEMANTICS = 1  # 1: float64 channel mean, resample_poly, half-to-even int16
_MAX_TEXT_BYTES = 64 << 20
_SPLIT_COLUMNS = ("split", "mode")  # looked for in this order; CH-SIMS says mode
_LABELS = ("o", "a", "v")
_FIELD = re.compile(r"\{([^{}:]+)(?::0?(\d{1,2}))?\}")

class Folder(Schema):
    """The YAML of a data set read by this loader."""

    dataset: Literal["folder"]
    splits: dict[str, Any] = Field(description="split -> value(s) of the split column, or a number of clips for every split")
    root: Text = Field(description="folder of the media, relative to the YAML")
    csv: Text = Field("labels.csv", description="the labels, relative to `root`")
    id: Text | None = Field(None, description="names a clip, such as `{video_id}/{clip_id:04}`; by default the column `id`, else the media path")
    parts: Literal["both", "video", "audio"] = Field("both", description="what the clips have; `video` and `audio` are for models that take one of them")
    media: Text | None = Field(None, description="file with picture and sound, such as `Raw/{id}.mp4`")
    video: Text | None = Field(None, description="file with the picture, if the sound is elsewhere")
    audio: Text | None = Field(None, description="file with the sound, if the picture is elsewhere")
    labels: dict[str, Text] = Field({}, description="our label -> column; by default the columns o, a and v that are there")
    label_range: tuple[float, float] = Field((-1.0, 1.0), description="labels outside are refused")
    split: Text | None = Field(None, description="column that says the split; by default `split` or `mode`")
    group: Text | None = Field(None, description="column of what no two splits may share, such as the speaker")
    tags: tuple[Text, ...] | None = Field(None, description="columns to slice results by; by default `snr_db` if it is there")
    sample_rate_hz: Annotated[int, Field(ge=1000, le=768_000)] = Field(16000, description="sound is resampled to this")
    metrics: tuple[Text, ...] = Field((), description="names of metrics to report")
    metric: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")] | None = Field(None, description="package.module:function(labels, predictions) -> float")
    metric_direction: Literal["lower", "higher"] = Field("lower", description="which way `metric` is better")
    seed: int = Field(0, description="of the drawing of splits that are given as numbers")


KEYS = keys(Folder)


@dataclass(frozen=True)
class Row:
    """One labelled clip as the CSV states it."""

    line: int
    id: str
    cells: dict[str, str]
    labels: dict[str, float]
    tags: dict[str, float | str]


def open_split(description: Description, split: str, limit: int | None, cache_root: Path) -> FolderSplit:
    """Read the labels, check all of them, and find the media of one split.

    Raises:
        DataError: with the line of the YAML or of the CSV.
    """
    try:
        spec = document.validate(description.document, Folder)
    except RecipeError as e:
        raise DataError(e.message, e.hint) from None
    _check(spec, description)
    root = (description.path.parent / Path(spec.root).expanduser()).absolute()
    if not root.is_dir():
        raise description.error(("root",), f"`root` is not a folder: {root}", "it is relative to this YAML")

    table = Table(root, spec.csv)
    rows = _rows(table, spec, description)
    media_of = _media_finder(table, spec, description)
    by_split = _divide(rows, table, spec, description)
    _refuse_shared(by_split, table, spec, media_of)
    chosen = sorted(by_split[split], key=lambda row: draw(spec.seed, row.id))[:limit]
    chosen.sort(key=lambda row: row.line)
    media = {row.id: tuple(_inside(table, row, name) for name in media_of(row)) for row in chosen}
    return FolderSplit(description.path, spec, split, chosen, media)


class FolderSplit:
    """One split: rows in the order of the CSV, media decoded clip by clip."""

    def __init__(self, source: Path, spec: Folder, split: str, rows: list[Row], media: dict[str, tuple[Path, Path]]):
        self.name = source.stem
        self.source = source
        self.split = split
        self.ids = [row.id for row in rows]
        self.metrics = spec.metrics + ((spec.metric,) if spec.metric else ())
        self.metric_direction = spec.metric_direction
        self._sample_rate_hz = spec.sample_rate_hz
        self._parts = spec.parts
        self._rows = {row.id: row for row in rows}
        self._media = media
        self._sha256: dict[Path, str] = {}

    def clip(self, id: str) -> Clip:
        """Decode one clip.

        Raises:
            DataError: media that is damaged, empty, without picture or sound (if it is to have both), or changed since `digest`.
        """
        # numpy: opening a set for `edgekit plan` must not wait for it.
        import numpy as np

        from edgekit.datasets import media

        row, (video, audio) = self._rows[id], self._media[id]
        for path in (video, audio):
            if path in self._sha256 and sha256(path) != self._sha256[path]:
                raise DataError(f"{path}: changed since this command began", "run it again")
        frames, fps = media.read_video(video) if self._parts != "audio" else (np.zeros((0, 0, 0, 3), np.uint8), 0.0)
        samples = media.read_audio(audio, self._sample_rate_hz) if self._parts != "video" else np.zeros(0, np.int16)
        return Clip(id, frames, fps, samples, self._sample_rate_hz, row.labels, row.tags)

    def digest(self) -> str:
        """sha256 over ids, labels, tags and the content of all media of this split."""
        if not self._sha256:
            files = sorted({path for pair in self._media.values() for path in pair})
            self._sha256 = {path: sha256(path) for path in track(files, f"hash {self.name}", len(files))}
        parts: dict[str, Any] = {
            "dataset": "folder",
            "semantics": _SEMANTICS,
            "sample_rate_hz": self._sample_rate_hz,
            "clips": [
                [id, self._rows[id].labels, self._rows[id].tags, *(self._sha256[path] for path in self._media[id])]
                for id in self.ids
            ],
        }
        if self._parts != "both":
            parts["parts"] = self._parts
        if any(path.suffix.lower() not in (".npz", ".wav", ".flac") for path in self._sha256):
            parts["av"] = importlib.metadata.version("av")  # another FFmpeg may decode other pixels
        if self.split == "test":  # calibration does not depend on what is reported
            parts["metrics"] = {name: code_sha256(name, self.source) for name in self.metrics}
            parts["metric_direction"] = self.metric_direction
        return sha256_of(parts)


class Table:
    """A CSV whose rows know their line.

    Args:
        errors: "replace" where bytes that are not UTF-8 stand in cells that nobody reads.
    """

    def __init__(self, root: Path, name: str, errors: str = "strict"):
        self.root = root
        self.real_root = root.resolve()
        try:
            self.path = resolved(root, self.real_root, name)
        except ValueError as e:
            raise DataError(f"{root / name}: the labels {e}", "their name is `csv` in the data set's YAML") from None
        text = text_of(self.path, "save it as `CSV UTF-8`", errors)
        self.lines: list[tuple[int, dict[str, str]]] = []
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            self.columns = [cell.strip() for cell in next(reader, [])]
            self._check_columns()
            before = reader.line_num
            for cells in reader:
                # A quoted cell may span lines: a row begins after the last line of the one before.
                line, before = before + 1, reader.line_num
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(self.columns):
                    raise self.error(line, f"{len(cells)} cells, the header has {len(self.columns)}", "quote a cell that holds a comma")
                self.lines.append((line, {c: cell.strip() for c, cell in zip(self.columns, cells, strict=True)}))
        except csv.Error as e:
            raise self.error(reader.line_num, f"not valid CSV ({e})") from None
        if not self.lines:
            raise self.error(1, "no clips, only a header")

    def error(self, line: int, message: str, hint: str | None = None) -> DataError:
        return DataError(f"{self.path}:{line}: {message}", hint)

    def need(self, column: str, why: str) -> None:
        if column not in self.columns:
            raise self.error(1, f"column `{column}` is missing ({why})", document.suggestion(column, self.columns))

    def _check_columns(self) -> None:
        if not any(self.columns):
            raise self.error(1, "empty, expected a header such as `id,o,a,v,split`")
        if len(self.columns) == 1 and (";" in self.columns[0] or "\t" in self.columns[0]):
            raise self.error(1, "cells are not separated by commas", "save it with commas as separator")
        for i, column in enumerate(self.columns):
            if column in self.columns[:i]:
                raise self.error(1, f"column `{column}` is there twice")


def text_of(path: Path, hint: str | None = None, errors: str = "strict") -> str:
    """A file's text, without its byte order mark.

    Raises:
        DataError: larger than any list of labels, not UTF-8 (with `hint`), or not readable.
    """
    try:
        if (size := path.stat().st_size) > _MAX_TEXT_BYTES:
            raise DataError(f"{path}: {size} bytes, at most {_MAX_TEXT_BYTES} are read")
        return path.read_bytes().decode("utf-8-sig", errors)
    except UnicodeDecodeError as e:
        raise DataError(f"{path}: not UTF-8 text (byte {e.start})", hint) from None
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror})") from e


def resolved(root: Path, real_root: Path, name: str) -> Path:
    """The real path of `name` in `root`; ValueError says what is wrong with it."""
    if not name or "\0" in name or "\\" in name or name.startswith("/") or ".." in name.split("/"):
        raise ValueError("must be a path inside the folder, with / and without ..")
    try:
        path = (root / name).resolve(strict=True)
    except FileNotFoundError:
        raise ValueError("do not exist") from None
    except (OSError, RuntimeError) as e:  # a link that points to itself, a file where a folder should be
        raise ValueError(f"cannot be reached ({getattr(e, 'strerror', None) or e})") from None
    if not path.is_relative_to(real_root):
        raise ValueError("are reached by a link that leaves the folder")
    if not path.is_file():
        raise ValueError("are not a plain file")
    return path


def _inside(table: Table, row: Row, name: str) -> Path:
    try:
        path = resolved(table.root, table.real_root, name)
    except ValueError as e:
        raise table.error(row.line, f"media `{name}` {e}") from None
    if not path.stat().st_size:
        raise table.error(row.line, f"media `{name}` are an empty file")
    return path


def _check(spec: Folder, description: Description) -> None:
    low, high = spec.label_range
    if not low < high:
        raise description.error(("label_range",), f"`label_range` must be [low, high], got [{low:g}, {high:g}]")
    if spec.media and (spec.video or spec.audio):
        raise description.error(("media",), "give `media`, or `video` and `audio`, not both")
    for part in ("video", "audio"):
        if spec.parts not in ("both", part) and getattr(spec, part):
            raise description.error((part,), f"`{part}` is given, but `parts` is {spec.parts}", "drop one of the two")
    if spec.parts == "both" and bool(spec.video) != bool(spec.audio):
        there, absent = ("video", "audio") if spec.video else ("audio", "video")
        raise description.error((there,), f"`{there}` is given without `{absent}`")
    numbers = [type(content) is int for content in spec.splits.values()]
    if any(numbers) and not all(numbers):
        raise description.error(("splits",), "splits are either all numbers or all values of the split column")
    if any(numbers) and spec.split:
        raise description.error(("split",), "splits are numbers, so no `split` column is read", "drop one of the two")
    if any(numbers) and spec.group:
        raise description.error(("group",), "splits drawn at random cannot keep a `group` together", "add a split column to the labels")
    if not any(numbers):
        taken: dict[str, str] = {}
        for split, content in spec.splits.items():
            for value in _values(content, split, description):
                if taken.setdefault(value, split) != split:
                    raise description.error(("splits", split), f"`{value}` is in `{taken[value]}` and in `{split}`; splits may not share clips")


def _values(content: Any, split: str, description: Description) -> list[str]:
    """Values of the split column that make one split."""
    values = content if isinstance(content, list) else [content]
    if not values or not all(isinstance(value, str) and value for value in values):
        raise description.error(("splits", split), f"`{split}` must be a value of the split column, a list of them, or a number, got {content!r}", "quote it if it looks like a number")
    return values


def _rows(table: Table, spec: Folder, description: Description) -> list[Row]:
    columns = spec.labels or {name: name for name in _LABELS if name in table.columns}
    if not columns:
        raise table.error(1, f"no label column, expected {', '.join(_LABELS)}", f"name yours in {description.path}: `labels: {{o: your_column}}`")
    for name, column in columns.items():
        table.need(column, f"label `{name}`")
    tag_columns = spec.tags if spec.tags is not None else tuple(c for c in ("snr_db",) if c in table.columns)
    for column in tag_columns:
        table.need(column, "tag")
    numeric = {c for c in tag_columns if all(is_number(cells[c]) for _, cells in table.lines if cells[c])}
    template = spec.id or next((f"{{{c}}}" for c in ("id", "path", "video") if c in table.columns), None) or spec.media or spec.video
    if template is None:
        raise table.error(1, "no column `id`", f"add one, or name clips in {description.path}: `id: \"{{your_column}}\"`")
    fill = _filler(template, table, description, "id")

    rows, first_line = [], {}
    for line, cells in table.lines:
        id = fill(cells, line)
        if spec.id is None and template != "{id}":
            id = posixpath.splitext(id)[0]
        if not id.isprintable() or len(id) > 200:
            raise table.error(line, "an id must be printable text of at most 200 characters")
        if id in first_line:
            raise table.error(line, f"id `{id}` already stands in line {first_line[id]}")
        first_line[id] = line
        labels = {name: _label(table, line, column, cells[column], spec.label_range) for name, column in columns.items()}
        tags = {c: _tag(table, line, c, cells[c], c in numeric) for c in tag_columns if cells[c]}
        rows.append(Row(line, id, cells, labels, tags))
    return rows


def _label(table: Table, line: int, column: str, text: str, bounds: tuple[float, float]) -> float:
    if not is_number(text):
        raise table.error(line, f"label `{column}` is not a number: `{text}`")
    value = float(text)
    if not bounds[0] <= value <= bounds[1]:  # NaN is in no range
        raise table.error(line, f"label `{column}` is {value:g}, expected {bounds[0]:g} to {bounds[1]:g}", "correct it, or declare `label_range: [low, high]`")
    return value


def _tag(table: Table, line: int, column: str, text: str, is_numeric: bool) -> float | str:
    if not is_numeric:
        return text
    if not math.isfinite(float(text)):
        raise table.error(line, f"tag `{column}` is {text}", "leave the cell empty if it is not known")
    return float(text)


def is_number(text: str) -> bool:
    if "_" in text:  # float() reads 1_0 as 10
        return False
    try:
        float(text)
    except ValueError:
        return False
    return True


def _filler(template: str, table: Table, description: Description, key: str) -> Callable[[dict[str, str], int], str]:
    """Fills `{column}` and `{column:04}` (zeros on the left) from a row.

    Not str.format: that would let a description reach attributes, or ask for gigabytes of padding.
    """
    for name, _ in _FIELD.findall(template):
        if name not in table.columns:
            raise description.error((key,), f"`{key}`: {table.path} has no column `{name}`", document.suggestion(name, table.columns))
    if re.search(r"[{}]", _FIELD.sub("", template)):
        raise description.error((key,), f"`{key}`: `{template}` is not text with {{column}} or {{column:04}}")

    def fill(cells: dict[str, str], line: int) -> str:
        for name, _ in _FIELD.findall(template):
            if not cells[name]:
                raise table.error(line, f"`{name}` is empty")
        return _FIELD.sub(lambda m: cells[m[1]].zfill(int(m[2] or 0)), template)

    return fill


def _media_finder(table: Table, spec: Folder, description: Description) -> Callable[[Row], tuple[str, str]]:
    """Row -> names of the files with its picture and its sound, relative to the root."""
    if spec.media:
        fill = _filler(spec.media, table, description, "media")
        return lambda row: (fill(row.cells, row.line),) * 2
    columns = {part: getattr(spec, part) or (f"{{{part}}}" if part in table.columns else None) for part in ("video", "audio")}
    if spec.parts != "both" and (spec.video or spec.audio or ("path" not in table.columns and columns[spec.parts])):
        fill = _filler(columns[spec.parts] or "", table, description, spec.parts)
        return lambda row: (fill(row.cells, row.line),) * 2
    if spec.video and spec.audio:
        video = _filler(spec.video, table, description, "video")
        audio = _filler(spec.audio, table, description, "audio")
        return lambda row: (video(row.cells, row.line), audio(row.cells, row.line))
    if "path" in table.columns:
        fill = _filler("{path}", table, description, "media")
        return lambda row: (fill(row.cells, row.line),) * 2
    if {"video", "audio"} <= set(table.columns):
        video = _filler("{video}", table, description, "video")
        audio = _filler("{audio}", table, description, "audio")
        return lambda row: (video(row.cells, row.line), audio(row.cells, row.line))
    return lambda row: _beside_id(table, row, spec.parts)


_PICTURES, _SOUNDS = (".npz", ".mp4", ".mkv", ".webm", ".png", ".jpg", ".jpeg"), (".wav", ".flac")


def _beside_id(table: Table, row: Row, parts: str) -> tuple[str, str]:
    """`<id>.npz`, .mp4, .mkv, .webm, .png or .jpg, with the sound in `<id>.wav` or .flac if there is one."""
    pictures = [f"{row.id}{s}" for s in _PICTURES if (table.root / f"{row.id}{s}").is_file()]
    sounds = [f"{row.id}{s}" for s in _SOUNDS if parts != "video" and (table.root / f"{row.id}{s}").is_file()]
    for found in (pictures, sounds):
        if len(found) > 1:
            raise table.error(row.line, f"which one is meant, {' or '.join(found)}?", "keep one, or name it in a column `path`")
    if parts == "audio" and sounds:
        return sounds[0], sounds[0]
    if not pictures:
        what = f"{sounds[0]} has no picture beside it" if sounds else "no media"
        hint = "if the clips have sound alone, say `parts: audio`" if sounds else None
        raise table.error(row.line, f"{what}: {table.root}/{row.id}.npz, .mp4, .mkv, .webm or .png is missing", hint)
    return pictures[0], (sounds or pictures)[0]


def _divide(rows: list[Row], table: Table, spec: Folder, description: Description) -> dict[str, list[Row]]:
    """{split: its rows} for every split that the YAML declares."""
    if all(type(content) is int for content in spec.splits.values()):
        wanted = sum(spec.splits.values())
        if wanted > len(rows):
            raise description.error(("splits",), f"{wanted} clips asked for in all splits, {table.path} has {len(rows)}")
        drawn: Iterator[Row] = iter(sorted(rows, key=lambda row: draw(spec.seed, row.id)))
        return {s: [next(drawn) for _ in range(spec.splits[s])] for s in SPLITS if s in spec.splits}

    column = spec.split or next((c for c in _SPLIT_COLUMNS if c in table.columns), None)
    if column is None:
        raise table.error(1, "no column `split` or `mode`", f"name yours in {description.path}: `split: your_column`, or give splits as numbers")
    table.need(column, "the split")
    divided = {}
    for split, content in spec.splits.items():
        values = _values(content, split, description)
        divided[split] = [row for row in rows if row.cells[column] in values]
        if not divided[split]:
            seen = sorted({row.cells[column] for row in rows})
            raise description.error(("splits", split), f"split `{split}` is empty: column `{column}` of {table.path} is never {' or '.join(values)}", document.suggestion(values[0], seen[:20]))
    return divided


def _refuse_shared(by_split: dict[str, list[Row]], table: Table, spec: Folder, media_of: Callable[[Row], tuple[str, str]]) -> None:
    """No media file and no group in two splits: held-out clips that calibration saw prove nothing."""
    if spec.group:
        table.need(spec.group, "group")
    by_id = spec.media is None and spec.video is None and not {"path", "video"} & set(table.columns)
    first: dict[tuple[str, str], tuple[str, Row]] = {}
    for split, rows in by_split.items():
        for row in rows:
            # Media found by id are as distinct as the ids, and need no look at the disk.
            shared = [] if by_id else [("media", posixpath.normpath(name)) for name in set(media_of(row))]
            if spec.group:
                shared.append((spec.group, row.cells[spec.group]))
            for what, value in shared:
                other_split, other = first.setdefault((what, value), (split, row))
                if other_split != split:
                    raise table.error(row.line, f"{what} `{value}` is in split `{split}` here and in `{other_split}` in line {other.line}")


def draw(seed: int, id: str) -> str:
    """A clip's place in a random order that does not change when other clips come or go."""
    return hashlib.sha256(f"{seed}\0{id}".encode()).hexdigest()


def sha256(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror})") from e


def code_sha256(metric: str, source: Path) -> str:
    """Digest of the file that a user's metric is written in; "" for one of ours."""
    if ":" not in metric:
        return ""
    try:
        found = importlib.util.find_spec(metric.partition(":")[0])
    except ImportError:
        found = None
    if found is None:
        raise DataError(f"{source}: metric `{metric}` cannot be imported", "install its package, or set PYTHONPATH to the folder that holds it")
    return sha256(Path(found.origin)) if found.has_location and found.origin else ""

"""CH-SIMS: Mandarin film and talk-show clips with a score in -1..1 for all, sound alone and face alone.

    calibration/chsims.yaml
      dataset: chsims
      root: /data/CH-SIMS
      splits: {train: train, calibration: valid, test: test}
      noise: {root: /data/UrbanSound8K, snr_db: [-5, 5, 10, 20]}

    <root>/label.csv                        video_id, clip_id, text, label, label_T, label_A, label_V, annotation, mode
    <root>/Raw/<video_id>/<clip_id>.mp4     clip_id of four digits, whatever the CSV writes
    <root>/Raw/<video_id>/<clip_id>.faces.csv   boxes of faces, optional (faces.py)

Labels are {o: label, a: label_A, v: label_V}. The column `mode` divides: calibration is `train` or `valid`
and never `test`, since calibrating on what is reported flatters it. Every frame of a clip is cut to the one
face that is there most often. A clip without a face keeps the middle of its picture and the tag
`face_ok: no`; a clip without sound is refused unless `without_sound: silent`.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from edgekit import document
from edgekit.artifact import sha256_of
from edgekit.datasets import Clip, Description, keys
from edgekit.datasets.folder import Table, draw, is_number, resolved, sha256
from edgekit.datasets.urbansound import Noise, NoiseSpec, open_noise
from edgekit.document import Schema, Text
from edgekit.errors import DataError, RecipeError
from edgekit.progress import track

if TYPE_CHECKING:  # opening a set for `edgekit plan` must not wait for numpy
    import numpy as np

_SEMANTICS = 1  # 1: one square crop of the most frequent face
MODES = ("train", "valid", "test")
COLUMNS = {"o": "label", "a": "label_A", "v": "label_V"}


class ChSims(Schema):
    """The YAML of a data set read by this loader."""

    dataset: Literal["chsims"]
    splits: dict[str, Any] = Field(description="split -> value of the column `mode`, or a list of them")
    root: Text = Field(description="the folder of the data set, relative to the YAML")
    csv: Text = Field("label.csv", description="the labels, relative to `root`")
    media: Text = Field("Raw", description="holds a folder of clips for every video")
    faces: Literal["crop", "none"] = Field("crop", description="cut every frame to the face; `none` if the videos are cropped already")
    size: Annotated[int, Field(ge=8, le=1024)] = Field(112, description="side of the face crops in pixels")
    without_face: Literal["center", "refuse"] = Field("center", description="of a clip in which no face is found: the middle of the picture, or an error")
    without_sound: Literal["refuse", "silent"] = Field("refuse", description="of a clip without a sound track: an error, or silence as long as the picture")
    sample_rate_hz: Annotated[int, Field(ge=1000, le=768_000)] = Field(16_000, description="sound is resampled to this")
    noise: NoiseSpec | None = Field(None, description="mix UrbanSound8K into the sound")
    metrics: tuple[Text, ...] = Field(("mae", "f1", "corr"), description="names of metrics to report")
    seed: int = Field(0, description="of which clips a limit keeps")


KEYS = keys(ChSims)


@dataclass(frozen=True)
class Row:
    """One clip as the CSV states it."""

    line: int
    id: str
    video: Path
    labels: dict[str, float]


def open_split(description: Description, split: str, limit: int | None, cache_root: Path) -> ChSimsSplit:
    """Read the labels, check all of them, and find the media of one split.

    Raises:
        DataError: with the line of the YAML or of the CSV.
    """
    try:
        spec = document.validate(description.document, ChSims)
    except RecipeError as e:
        raise DataError(e.message, e.hint) from None
    modes = _modes(spec, description)
    root = (description.path.parent / Path(spec.root).expanduser()).absolute()
    if not root.is_dir():
        raise description.error(("root",), f"`root` is not a folder: {root}", "it is relative to this YAML")
    table = Table(root, spec.csv)
    chosen = _rows(table, spec, modes[split])
    if not chosen:
        raise description.error(("splits", split), f"split `{split}` is empty: column `mode` of {table.path} is never {' or '.join(modes[split])}")
    chosen = sorted(chosen, key=lambda row: draw(spec.seed, row[0]))[:limit]
    rows = [_found(table, spec, *row) for row in sorted(chosen, key=lambda row: row[1])]
    noise = None
    if spec.noise:
        noise = open_noise(spec.noise, description.path.parent, split, lambda keys, *said: description.error(("noise", *keys), *said))
    return ChSimsSplit(description.path, spec, split, rows, noise, cache_root / "data" / "faces")


class ChSimsSplit:
    """One split: rows in the order of the CSV, media decoded clip by clip.

    `counts` fills as clips are decoded: whether there is a face or sound stands in no label.
    """

    def __init__(self, source: Path, spec: ChSims, split: str, rows: list[Row], noise: Noise | None, store: Path):
        self.name, self.source, self.split = source.stem, source, split
        self.ids = [row.id for row in rows]
        self.metrics = spec.metrics
        self._spec, self._noise, self._store = spec, noise, store
        self._rows = {row.id: row for row in rows}
        self._sha256: dict[Path, str] = {}
        self._missing: dict[str, set[str]] = {"clips without a face, their middle is shown": set(), "clips without sound, silent": set()}
        self._frames_without_face: dict[str, int] = {}

    @property
    def counts(self) -> dict[str, int]:
        """What was found in the clips decoded so far, each clip counted once."""
        found = {what: len(ids) for what, ids in self._missing.items()} | {"frames without a face, cut like the others": sum(self._frames_without_face.values())}
        return {what: n for what, n in found.items() if n}

    def clip(self, id: str) -> Clip:
        """Decode one clip.

        Raises:
            DataError: media that is damaged, without picture, without sound or face where these are asked for, or changed since `digest`.
            ToolMissing: there are no face boxes, and no detector to find them.
        """
        import numpy as np

        from edgekit.datasets import media

        row, spec = self._rows[id], self._spec
        if row.video in self._sha256 and sha256(row.video) != self._sha256[row.video]:
            raise DataError(f"{row.video}: changed since this command began", "run it again")
        tags: dict[str, float | str] = {}
        frames, fps = media.read_video(row.video)
        seconds = len(frames) / fps
        if spec.faces == "crop":
            frames, has_face = self._faces(row, frames)
            tags["face_ok"] = "yes" if has_face else "no"
        if spec.without_sound == "silent" and not media.has_audio(row.video):
            audio = np.zeros(max(1, round(seconds * spec.sample_rate_hz)), np.int16)
            self._missing["clips without sound, silent"].add(id)
            tags["sound"] = "none"
        else:
            audio = media.read_audio(row.video, spec.sample_rate_hz)
        if self._noise:
            audio, said = self._noise.mix(id, audio, spec.sample_rate_hz)
            tags |= said
        return Clip(id, frames, fps, audio, spec.sample_rate_hz, dict(row.labels), tags)

    def digest(self) -> str:
        """sha256 over ids, labels, the content of all media of this split, and where faces and noise come from."""
        if not self._sha256:
            files = sorted({row.video for row in self._rows.values()})
            self._sha256 = {path: sha256(path) for path in track(files, f"hash {self.name}", len(files))}
        parts: dict[str, Any] = {
            "dataset": "chsims",
            "semantics": _SEMANTICS,
            "spec": self._spec.model_dump(include={"faces", "size", "without_face", "without_sound", "sample_rate_hz"}),
            "clips": [[row.id, row.labels, self._sha256[row.video], *self._said_of(row)] for row in self._rows.values()],
            "av": importlib.metadata.version("av"),  # another FFmpeg may decode other pixels
        }
        if self.split == "test":  # calibration does not depend on what is reported
            parts["metrics"] = list(self.metrics)
        return sha256_of(parts)

    def _said_of(self, row: Row) -> list[Any]:
        """What else than the media a clip depends on."""
        from edgekit.datasets import faces

        return [
            faces.origin(row.video) if self._spec.faces == "crop" else None,
            self._noise.digest(row.id) if self._noise else None,
        ]

    def _faces(self, row: Row, frames: np.ndarray) -> tuple[np.ndarray, bool]:
        """(frames cut to the face of the clip, whether there is one)."""
        from edgekit.datasets import faces

        boxes = faces.boxes_of(row.video, frames, self._store)
        box, has_face = faces.one_box(boxes, *frames.shape[1:3])
        if not has_face and self._spec.without_face == "refuse":
            raise DataError(f"{row.video}: no face in any frame of {row.id}", f"put boxes into {faces.boxes_beside(row.video)}, or say `without_face: center` in {self.source}")
        if has_face:
            self._frames_without_face[row.id] = faces.without_face(boxes)
        else:
            self._missing["clips without a face, their middle is shown"].add(row.id)
        return faces.crop(frames, box, self._spec.size), has_face


def _modes(spec: ChSims, description: Description) -> dict[str, list[str]]:
    """{split: values of the column `mode`}."""
    modes: dict[str, list[str]] = {}
    taken: dict[str, str] = {}
    for split, content in spec.splits.items():
        modes[split] = content if isinstance(content, list) and content else [content]
        for mode in modes[split]:
            if mode not in MODES:
                raise description.error(("splits", split), f"split `{split}` cannot be made of {mode!r}", document.suggestion(str(mode), MODES))
            if mode == "test" and split != "test":
                raise description.error(("splits", split), f"split `{split}` cannot be made of `test`, which is held out", "take `train` or `valid`")
            if taken.setdefault(mode, split) != split:
                raise description.error(("splits", split), f"`{mode}` is in `{taken[mode]}` and in `{split}`; splits may not share clips")
    return modes


def _rows(table: Table, spec: ChSims, modes: list[str]) -> list[tuple[str, int, str, dict[str, float]]]:
    """(id, line, media, labels) of every row of these modes; all rows are checked."""
    for column in ("video_id", "clip_id", "mode", *COLUMNS.values()):
        table.need(column, "CH-SIMS has it")
    rows, first_line = [], {}
    for line, cells in table.lines:
        video, clip, mode = cells["video_id"], cells["clip_id"], cells["mode"]
        if not (clip.isascii() and clip.isdigit() and len(clip) <= 9):
            raise table.error(line, f"clip_id `{clip}` is not a whole number")
        if not video or not video.isprintable() or len(video) > 150 or "/" in video:
            raise table.error(line, f"video_id `{video[:60]}` is not the name of a folder")
        id = f"{video}/{int(clip):04}"
        if first_line.setdefault(id, line) != line:
            raise table.error(line, f"clip `{id}` already stands in line {first_line[id]}")
        if mode not in MODES:
            raise table.error(line, f"mode `{mode}`, expected {', '.join(MODES)}")
        labels = {name: _label(table, line, column, cells[column]) for name, column in COLUMNS.items()}
        if mode in modes:
            rows.append((id, line, f"{spec.media}/{id}.mp4", labels))
    return rows


def _label(table: Table, line: int, column: str, text: str) -> float:
    if not is_number(text):
        raise table.error(line, f"label `{column}` is not a number: `{text[:60]}`")
    if not -1 <= float(text) <= 1:  # NaN is in no range
        raise table.error(line, f"label `{column}` is {float(text):g}, expected -1 to 1")
    return float(text)


def _found(table: Table, spec: ChSims, id: str, line: int, media: str, labels: dict[str, float]) -> Row:
    try:
        path = resolved(table.root, table.real_root, media)
    except ValueError as e:
        raise table.error(line, f"media `{media}` {e}") from None
    if not path.stat().st_size:
        raise table.error(line, f"media `{media}` are an empty file")
    return Row(line, id, path, labels)

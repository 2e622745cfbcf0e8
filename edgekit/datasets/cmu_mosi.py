"""CMU-MOSI: opinions in videos, each with a sentiment of -3 to 3 (Zadeh et al. 2016).

    label.csv                          video_id,clip_id,text,label,mode, and any other columns
    Raw/<video_id>/<clip_id>.mp4       one clip, picture and sound

`mode` says the split: train, valid (which calibrates) or test. The label is one number, "score".
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field

from edgekit.datasets import Description, acted, keys
from edgekit.datasets.acted import Acted, Root, Take, TakeSplit
from edgekit.datasets.folder import Table, is_number
from edgekit.document import Text

MODES = {"train": "train", "valid": "calibration", "test": "test"}
COLUMNS = ("video_id", "clip_id", "label", "mode")
NAME = re.compile(r"[\w-][\w.-]{0,99}")  # of a video or clip: part of a path, and of what a report shows


class CmuMosi(Acted):
    """The YAML of a data set read by this loader."""

    dataset: Literal["cmu_mosi"]
    csv: Text = Field("label.csv", description="the labels, relative to `root`")
    text: Text | None = Field(None, description="folder of `<video_id>/<clip_id>.npy`, float32 [tokens, dim], relative to `root`")


KEYS = keys(CmuMosi)


def open_split(description: Description, split: str, limit: int | None, cache_root: Path) -> TakeSplit:
    """Read the labels and find the media of every clip.

    Raises:
        DataError: with the line of the YAML or of the CSV.
    """
    spec, root = acted.read(description, CmuMosi)
    table = Table(root.path, spec.csv)
    for column in COLUMNS:
        table.need(column, "CMU-MOSI")
    by_split: dict[str, list[Take]] = {name: [] for name in MODES.values()}
    first: dict[str, int] = {}
    mode_of: dict[str, tuple[str, int]] = {}
    for line, cells in table.lines:
        take = _take(table, line, cells, root, spec)
        if first.setdefault(take.id, line) != line:
            raise table.error(line, f"clip {take.id} already stands in line {first[take.id]}")
        mode = mode_of.setdefault(cells["video_id"], (cells["mode"], line))
        if mode[0] != cells["mode"]:
            raise table.error(line, f"{take.person} is in `{cells['mode']}` here and in `{mode[0]}` in line {mode[1]}", "a speaker may be in one split only")
        by_split[MODES[cells["mode"]]].append(take)
    takes = acted.choose(by_split, split, limit, spec, description, {})
    return TakeSplit(description, spec, split, takes, cache_root, {}, acted.SCORE_METRICS)


def number_of(table: Table, line: int, column: str, text: str, low: float, high: float) -> float:
    """A cell as a number.

    Raises:
        DataError: none, or outside of low..high.
    """
    if not is_number(text):
        raise table.error(line, f"`{column}` is not a number: `{text}`")
    if not low <= float(text) <= high:  # NaN is in no range
        raise table.error(line, f"`{column}` is {float(text):g}, expected {low:g} to {high:g}")
    return float(text)


def _take(table: Table, line: int, cells: dict[str, str], root: Root, spec: CmuMosi) -> Take:
    for column in ("video_id", "clip_id"):
        if not NAME.fullmatch(cells[column]):
            raise table.error(line, f"`{column}` is `{cells[column][:100]}`, not a name of letters, digits, - and _")
    if cells["mode"] not in MODES:
        raise table.error(line, f"`mode` is `{cells['mode']}`, expected {', '.join(MODES)}")
    score = number_of(table, line, "label", cells["label"], -3, 3)
    id = f"{cells['video_id']}/{cells['clip_id']}"
    media = root.file(f"Raw/{id}.mp4", f"{table.path}:{line}")
    take = Take(id, f"video {cells['video_id']}", {"score": score}, {}, media, media)
    return acted.with_text(take, root, spec.text, f"{table.path}:{line}")

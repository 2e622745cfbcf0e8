"""MELD: utterances of a television series with seven emotions, of which three are used (Poria et al. 2019).

    train_sent_emo.csv, dev_sent_emo.csv, test_sent_emo.csv
        Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime
    train_splits/dia{Dialogue_ID}_utt{Utterance_ID}.mp4                  of the first
    dev_splits_complete/…, output_repeated_splits_test/…                 of the others

Sadness, joy and surprise are the classes sad, happy and surprise; utterances of other emotions are left out. The archives also hold
files `._dia…` and `final_videos_test…`, which nothing names. A few clips are missing or damaged there: one without a file, or whose
file is no whole MP4 with an index, is left out and counted.

`dev` calibrates. `split: paper80_20` shuffles the utterances of all three parts instead, 20 % to test, and a tenth of the rest to
calibrate: scenes and speakers are then on both sides. The figures of BiLSTM-SA's paper need 3.4 times as many utterances as there are
(3 373 in its test set), so it must have multiplied them before it drew the test set; nothing here does.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from edgekit.datasets import Description, acted, keys
from edgekit.datasets.acted import Acted, Root, Take, TakeSplit
from edgekit.datasets.folder import Table, draw
from edgekit.errors import DataError

CLASSES = ("sad", "happy", "surprise")
CLASS_OF = {"sadness": 0, "joy": 1, "surprise": 2}
OTHERS = ("neutral", "anger", "disgust", "fear")
METRICS = (*acted.CLASS_METRICS, "f1_weighted")


@dataclass(frozen=True)
class Part:
    """One of the three published parts."""

    name: str
    split: str
    csv: str
    folder: str


PARTS = (
    Part("train", "train", "train_sent_emo.csv", "train_splits"),
    Part("dev", "calibration", "dev_sent_emo.csv", "dev_splits_complete"),
    Part("test", "test", "test_sent_emo.csv", "output_repeated_splits_test"),
)
TEST_SHARE, CALIBRATION_SHARE = 0.2, 0.1
COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")


class Meld(Acted):
    """The YAML of a data set read by this loader."""

    dataset: Literal["meld"]
    split: Literal["official", "paper80_20"] = Field("official", description="the published parts, or utterances of all of them at random, where scenes are in every split")
    faces: Literal["crop", "none"] = Field("none", description="whole frames, as the paper takes them, or every frame cut to its largest face")


KEYS = keys(Meld)


def open_split(description: Description, split: str, limit: int | None, cache_root: Path) -> TakeSplit:
    """Read the three lists and find the clips.

    Raises:
        DataError: with the line of the YAML or of a list.
    """
    spec, root = acted.read(description, Meld)
    counts = dict.fromkeys(("utterances of other emotions, left out", "utterances without a clip, left out", "utterances with a damaged clip, left out"), 0)
    found = {part.split: _takes(part, root, spec, counts) for part in PARTS}
    by_split = found if spec.split == "official" else _shuffled([take for takes in found.values() for take in takes], spec.seed)
    takes = acted.choose(by_split, split, limit, spec, description, counts)
    return TakeSplit(description, spec, split, takes, cache_root, counts, METRICS, CLASSES)


def _takes(part: Part, root: Root, spec: Meld, counts: dict[str, int]) -> list[Take]:
    table = Table(root.path, part.csv, errors="replace")
    for column in COLUMNS:
        table.need(column, "MELD")
    takes, first = [], {}
    for line, cells in table.lines:
        emotion = cells["Emotion"].lower()
        if emotion not in (*CLASS_OF, *OTHERS):
            raise table.error(line, f"`Emotion` is `{cells['Emotion'][:40]}`, MELD has {', '.join((*CLASS_OF, *OTHERS))}")
        dialogue, utterance = (_number(table, line, cells, column) for column in ("Dialogue_ID", "Utterance_ID"))
        name = f"dia{dialogue}_utt{utterance}"
        if first.setdefault(name, line) != line:
            raise table.error(line, f"{name} already stands in line {first[name]}")
        file = f"{part.folder}/{name}.mp4"
        if emotion in OTHERS:
            counts["utterances of other emotions, left out"] += 1
        elif not root.has(file):
            counts["utterances without a clip, left out"] += 1
        elif not is_whole_mp4(root.path / file):
            counts["utterances with a damaged clip, left out"] += 1
        else:
            # Numbers of dialogues begin anew in every part.
            id = f"{part.name}/{name}"
            person = f"dialogue {part.name}/{dialogue}" if spec.split == "official" else f"utterance {id}"
            media = root.file(file, f"{table.path}:{line}")
            takes.append(Take(id, person, {"emotion": float(CLASS_OF[emotion])}, {"speaker": cells["Speaker"], "part": part.name}, media, media))
    return takes


def _number(table: Table, line: int, cells: dict[str, str], column: str) -> int:
    if not (cells[column].isascii() and cells[column].isdigit() and len(cells[column]) <= 6):
        raise table.error(line, f"`{column}` is `{cells[column][:40]}`, expected a whole number")
    return int(cells[column])


def _shuffled(takes: list[Take], seed: int) -> dict[str, list[Take]]:
    order = sorted(takes, key=lambda take: draw(seed, f"paper80_20 {take.id}"))
    test = round(TEST_SHARE * len(order))
    calibration = test + round(CALIBRATION_SHARE * (len(order) - test))
    return {"test": order[:test], "calibration": order[test:calibration], "train": order[calibration:]}


def is_whole_mp4(path: Path) -> bool:
    """Whether the file's outermost boxes are all there, and its index (`moov`) among them. Nothing is decoded.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            end, at, has_index = file.seek(0, 2), 0, False
            while at < end:
                file.seek(at)
                head = file.read(16)
                if len(head) < 8:
                    return False
                size, kind = struct.unpack(">I4s", head[:8])
                if size == 1 and len(head) == 16:
                    size = struct.unpack(">Q", head[8:])[0]
                size = size or end - at  # 0: up to the end
                if size < 8 or at + size > end:
                    return False
                has_index |= kind == b"moov"
                at += size
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror})") from e
    return has_index

"""IEMOCAP: ten actors in pairs, five sessions, improvised and scripted (Busso et al. 2008).

    Session{1..5}/dialog/EmoEvaluation/<dialog>.txt     [6.2901 - 8.2357]<tab>Ses01F_impro01_F000<tab>neu<tab>[2.5000, 2.5000, 2.5000]
    Session{1..5}/sentences/wav/<dialog>/<utterance>.wav
    Session{1..5}/dialog/avi/DivX/<dialog>.avi          both actors side by side, the whole dialogue
    sides.csv                                           who sits where; not published, see below

Four classes: neutral, happy (with excited), sad, angry; utterances of other emotions are left out.
Session 5 tests, 10 % of the other dialogues calibrate (drawn by `seed`), the rest trains. The two
actors of a session speak in train and in calibration, never in test.

Nothing in the set says which half of the picture is whose, so it must be looked up: `sides.csv` has
columns `dialog` and `left`, F or M, a row for every dialogue that is used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from edgekit.datasets import Description, acted, keys
from edgekit.datasets.acted import Acted, Root, Take, TakeSplit
from edgekit.datasets.folder import Table, draw
from edgekit.document import Text
from edgekit.errors import DataError

CLASSES = ("neutral", "happy", "sad", "angry")
CLASS_OF = {"neu": 0, "hap": 1, "exc": 1, "sad": 2, "ang": 3}
OTHERS = ("fru", "sur", "fea", "dis", "oth", "xxx")
CALIBRATION_SHARE = 0.1
_DIALOG = re.compile(r"Ses0([1-5])[FM]_(impro|script)\w+")
_NUMBER = r"(\d+(?:\.\d+)?)"
_LINE = re.compile(rf"\[{_NUMBER} - {_NUMBER}\]\s+(\S+)\s+(\w+)\s+\[{_NUMBER}, {_NUMBER}, {_NUMBER}\]")


class Iemocap(Acted):
    """The YAML of a data set read by this loader."""

    dataset: Literal["iemocap"]
    sides: Text = Field("sides.csv", description="who sits on the left in each dialogue (`dialog,left`), relative to `root`")
    text: Text | None = Field(None, description="folder of `<utterance>.npy`, float32 [tokens, dim], relative to `root`")
    test_session: Annotated[int, Field(ge=1, le=5)] = Field(5, description="the session that tests")


KEYS = keys(Iemocap)


@dataclass(frozen=True)
class Utterance:
    """One line of an evaluation that has one of the four classes."""

    where: str
    session: int
    dialog: str
    id: str
    speaker: Literal["F", "M"]
    start_s: float
    end_s: float
    emotion: int


def open_split(description: Description, split: str, limit: int | None, cache_root: Path) -> TakeSplit:
    """Read the evaluations, divide them by dialogue, and find the media of one split.

    Raises:
        DataError: with the line of the YAML, of an evaluation or of the sides.
    """
    spec, root = acted.read(description, Iemocap)
    counts: dict[str, int] = {}
    utterances = _utterances(root, counts)
    left = _sides(root, spec)
    split_of = _divide({(u.session, u.dialog) for u in utterances}, spec)
    by_split: dict[str, list[Take]] = {name: [] for name in ("train", "calibration", "test")}
    for utterance in utterances:
        by_split[split_of[utterance.dialog]].append(_take(utterance, left, root, spec))
    takes = acted.choose(by_split, split, limit, spec, description, counts)
    return TakeSplit(description, spec, split, takes, cache_root, counts, acted.CLASS_METRICS, CLASSES)


def parse(line: str, dialog: str, where: str) -> tuple[float, float, str, str]:
    """(start in s, end in s, utterance, code of its emotion) of a line that begins with `[`.

    Raises:
        DataError: another form, a span that is empty, or an utterance of another dialogue.
    """
    match = _LINE.fullmatch(line)
    if match is None:
        raise DataError(f"{where}: expected `[start - end] utterance emotion [v, a, d]`, got `{line[:80]}`")
    start_s, end_s, utterance, emotion = float(match[1]), float(match[2]), match[3], match[4]
    if not start_s < end_s:
        raise DataError(f"{where}: {utterance} ends at {end_s:g} s, before it starts at {start_s:g} s")
    if not re.fullmatch(rf"{re.escape(dialog)}_[FM]\w+", utterance):
        raise DataError(f"{where}: utterance `{utterance}` is not one of dialogue {dialog}")
    if emotion not in CLASS_OF and emotion not in OTHERS:
        raise DataError(f"{where}: emotion `{emotion}`, IEMOCAP has {', '.join((*CLASS_OF, *OTHERS))}")
    return start_s, end_s, utterance, emotion


def _utterances(root: Root, counts: dict[str, int]) -> list[Utterance]:
    found: dict[str, Utterance] = {}
    others = 0
    for session in range(1, 6):
        folder = f"Session{session}/dialog/EmoEvaluation"
        if not (root.path / f"Session{session}").is_dir():
            continue
        for file in root.names(folder):
            dialog = file.removesuffix(".txt")
            if dialog == file:  # the folders of single raters lie there too
                continue
            if not (name := _DIALOG.fullmatch(dialog)) or int(name[1]) != session:
                raise DataError(f"{root.path / folder / file}: not the name of a dialogue of session {session}, such as Ses0{session}F_impro01.txt")
            path, lines = root.lines(f"{folder}/{file}", str(root.path / folder))
            for number, line in lines:
                if not line.startswith("["):  # the heading, and what single raters said
                    continue
                where = f"{path}:{number}"
                start_s, end_s, id, emotion = parse(line, dialog, where)
                if id in found:
                    raise DataError(f"{where}: utterance {id} already stands in {found[id].where}")
                if emotion not in CLASS_OF:
                    others += 1
                    continue
                speaker: Literal["F", "M"] = "F" if id[len(dialog) + 1] == "F" else "M"
                found[id] = Utterance(where, session, dialog, id, speaker, start_s, end_s, CLASS_OF[emotion])
    counts["utterances of other emotions, left out"] = others
    return list(found.values())


def _sides(root: Root, spec: Iemocap) -> dict[str, str]:
    """{dialogue: who sits on the left, F or M}."""
    if not root.has(spec.sides):
        raise DataError(
            f"{root.path / spec.sides}: no such file, and the set does not say which half of a picture is whose",
            "look at one frame of every dialogue and write `dialog,left` with rows such as `Ses01F_impro01,F`; see docs/data.md",
        )
    table = Table(root.path, spec.sides)
    for column in ("dialog", "left"):
        table.need(column, "who sits where")
    left: dict[str, str] = {}
    for line, cells in table.lines:
        if cells["left"] not in ("F", "M"):
            raise table.error(line, f"`left` is `{cells['left']}`, expected F or M")
        if left.setdefault(cells["dialog"], cells["left"]) != cells["left"]:
            raise table.error(line, f"dialogue {cells['dialog']} is there twice, with another side")
    return left


def _divide(dialogs: set[tuple[int, str]], spec: Iemocap) -> dict[str, str]:
    """{dialogue: its split}."""
    rest = sorted((dialog for session, dialog in dialogs if session != spec.test_session), key=lambda dialog: draw(spec.seed, dialog))
    calibration = set(rest[: round(CALIBRATION_SHARE * len(rest))])
    return {dialog: "test" if session == spec.test_session else "calibration" if dialog in calibration else "train" for session, dialog in dialogs}


def _take(utterance: Utterance, left: dict[str, str], root: Root, spec: Iemocap) -> Take:
    u = utterance
    if u.dialog not in left:
        raise DataError(f"{root.path / spec.sides}: dialogue {u.dialog} is missing", "add who sits on the left in its video, F or M")
    take = Take(
        id=u.id,
        person=f"dialogue {u.dialog}",
        labels={"emotion": float(u.emotion)},
        tags={
            "actor": f"Ses0{u.session}{u.speaker}",
            "gender": {"F": "female", "M": "male"}[u.speaker],
            "session": str(u.session),
            "speech": "improvised" if "_impro" in u.dialog else "scripted",
        },
        video=root.file(f"Session{u.session}/dialog/avi/DivX/{u.dialog}.avi", u.where),
        audio=root.file(f"Session{u.session}/sentences/wav/{u.dialog}/{u.id}.wav", u.where),
        span_s=(u.start_s, u.end_s),
        half="left" if left[u.dialog] == u.speaker else "right",
    )
    return acted.with_text(take, root, spec.text, u.where)

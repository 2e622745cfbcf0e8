"""Which sound files are in which split, for sets that have no table.

    splits:
      train: trainset                                    a folder: all in it that no other split names
      calibration: {folder: trainset, names: [p286_*]}   of a folder what a pattern fits, such as one speaker
      test: {folder: testset, list: test.txt}            or what a list names, one in each line

A file is called by its path in its folder, without suffix.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, Strict, model_validator

from edgekit.datasets import Description
from edgekit.datasets.folder import draw, resolved, text_of
from edgekit.document import Schema, Text
from edgekit.errors import DataError

MAX_FILES = 1 << 20


class Part(Schema):
    """What one split is made of."""

    folder: Text = Field(".", description="where its files are")
    # Not strict: what a validator has seen before is no JSON any more, and a list no tuple.
    names: Annotated[tuple[Text, ...], Strict(False)] | None = Field(None, description="patterns such as `p286_*`; only files that fit one of them")
    list: Text | None = Field(None, description="a text file below `root`; only files that it names")

    @model_validator(mode="before")
    @classmethod
    def _a_text_is_a_folder(cls, value: Any) -> Any:
        return {"folder": value} if isinstance(value, str) else value

    @property
    def is_rest(self) -> bool:
        return self.names is None and self.list is None


Find = Callable[[str], Mapping[str, Any]]
"""What a folder of a split holds: {name: anything that is one clip}, in a fixed order. Raises DataError."""


def divide(parts: Mapping[str, Part], find: Find, root: Path, description: Description) -> dict[str, list[str]]:
    """{split: names in its folder, sorted}; no clip in two splits.

    Raises:
        DataError: with the line of the YAML or of the list: nothing there, a name or pattern that finds nothing, a clip in two splits.
    """
    for split, part in parts.items():
        if part.names is not None and part.list is not None:
            raise description.error(("splits", split), f"split `{split}` has `names` and a `list`", "drop one of the two")
    found = {split: list(find(part.folder)) for split, part in parts.items()}
    chosen = {split: _named(part, split, found[split], root, description) for split, part in parts.items() if not part.is_rest}
    for split, part in parts.items():
        if part.is_rest:
            taken = {name for other, names in chosen.items() if not parts[other].is_rest and _same_folder(parts[other], part) for name in names}
            chosen[split] = [name for name in found[split] if name not in taken]
        if not chosen[split]:
            raise description.error(("splits", split), f"split `{split}` is empty", f"other splits have all {len(found[split])} recordings of `{part.folder}`" if part.is_rest else None)
    first: dict[str, str] = {}
    for split, names in chosen.items():
        for name in names:
            whole = os.path.normpath(f"{parts[split].folder}/{name}")
            if first.setdefault(whole, split) != split:
                raise description.error(("splits", split), f"`{whole}` is in split `{first[whole]}` and in `{split}`; splits may not share recordings", "give one of them `names` or a `list`")
    return {split: sorted(names) for split, names in chosen.items()}


def limited(names: list[str], limit: int | None, seed: int) -> list[str]:
    """`limit` of the names, the same ones whatever other names there are, in their order."""
    return sorted(sorted(names, key=lambda name: draw(seed, name))[:limit])


def sound_files(root: Path, folder: str, suffixes: tuple[str, ...], deep: bool, error: Callable[..., DataError]) -> dict[str, Path]:
    """{name without suffix: file} of a folder below `root`, sorted; with `deep`, of the folders in it too. Hidden files are passed over.

    Raises:
        DataError: no such folder, one outside of `root`, none or too many sounds in it, two files of one name, or an empty file.
    """
    top, real_root = directory(root, folder, error), root.resolve()
    found: dict[str, Path] = {}
    for here, below, names in os.walk(top):
        below[:] = sorted(name for name in below if deep and not name.startswith("."))
        for name in sorted(names):
            path = Path(here, name)
            if name.startswith(".") or path.suffix.lower() not in suffixes:
                continue
            key = path.relative_to(top).with_suffix("").as_posix()
            if key in found:
                raise DataError(f"{path}: {found[key].name} is there as well, which one is meant?", "keep one of them")
            try:
                found[key] = resolved(root, real_root, path.relative_to(root).as_posix())
            except ValueError as e:
                raise DataError(f"{path}: the data {e}") from None
            if not path.stat().st_size:
                raise DataError(f"{path}: an empty file")
            if len(found) > MAX_FILES:
                raise DataError(f"{top}: more than {MAX_FILES} sounds")
    if not found:
        raise error(f"no {', '.join(suffixes)} in {top}")
    return dict(sorted(found.items()))


def directory(root: Path, folder: str, error: Callable[..., DataError]) -> Path:
    """A folder below `root`, wherever links lead, or an error."""
    path = root / os.path.normpath(folder)
    if folder.startswith("/") or ".." in folder.split("/") or "\0" in folder or not path.resolve().is_relative_to(root.resolve()):
        raise error(f"folder `{folder}` must be a path inside `root`, without ..")
    if not path.is_dir():
        raise error(f"not a folder: {path}")
    return path


def _named(part: Part, split: str, names: list[str], root: Path, description: Description) -> list[str]:
    if part.names is not None:
        for i, pattern in enumerate(part.names):
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                raise description.error(("splits", split, "names", i), f"no recording of `{part.folder}` is called `{pattern}`", f"the first of {len(names)} is `{names[0]}`")
        return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in part.names)]
    try:
        path = resolved(root, root.resolve(), str(part.list))
    except ValueError as e:
        raise description.error(("splits", split, "list"), f"`{part.list}`: the list {e}") from None
    known, listed = set(names), {}
    for line, text in enumerate(text_of(path).splitlines(), start=1):
        name = text.strip()
        name = name if name in known else os.path.splitext(name)[0]
        if not name:
            continue
        if name not in known:
            raise DataError(f"{path}:{line}: no recording of `{part.folder}` is called `{text.strip()[:60]}`")
        if listed.setdefault(name, line) != line:
            raise DataError(f"{path}:{line}: `{name}` already stands in line {listed[name]}")
    return list(listed)


def _same_folder(a: Part, b: Part) -> bool:
    return os.path.normpath(a.folder) == os.path.normpath(b.folder)

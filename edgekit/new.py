"""`edgekit new`: a commented recipe that builds as it is, inside a checkout or anywhere else."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from edgekit import document
from edgekit.errors import UsageError
from edgekit.models.checkpoint import provenance_of
from edgekit.recipe import SCHEMA_PATH
from edgekit.target import load_target

TEMPLATE = Path(__file__).parent / "templates" / "recipe.yaml"
CHECKPOINT = "checkpoints/mhlt_small.safetensors.xz"


def write_recipe(path: Path, target: str = "jetson_xavier") -> list[Path]:
    """Write a recipe, and outside a checkout a copy of the shipped checkpoint beside it.

    Returns:
        The files written.

    Raises:
        UsageError: the file exists, or is no .yaml.
        RecipeError: no such target.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise UsageError(f"{path}: a recipe ends in .yaml", f"edgekit new {path.with_suffix('.yaml')}")
    if path.exists():
        raise UsageError(f"{path}: exists already", "give another name, or remove it first")
    load_target(target, path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = _place_checkpoint(path.parent)
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", path.stem).lstrip("_.-") or "recipe"
    text = TEMPLATE.read_text().format(schema=_seen_from(path.parent, SCHEMA_PATH), file=path, name=name, target=target, checkpoint=_checkpoint_from(path.parent))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return [path, *written]


def _place_checkpoint(folder: Path) -> list[Path]:
    shipped = document.shipped("recipes")
    if shipped is None or _is_near(folder, shipped / CHECKPOINT):
        return []
    written = []
    for source in (shipped / CHECKPOINT, provenance_of(shipped / CHECKPOINT)):
        copy = folder / "checkpoints" / source.name
        if source.is_file() and not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
            written.append(copy)
    return written


def _checkpoint_from(folder: Path) -> str:
    shipped = document.shipped("recipes")
    if shipped is not None and _is_near(folder, shipped / CHECKPOINT):
        return _seen_from(folder, shipped / CHECKPOINT)
    return CHECKPOINT


def _is_near(folder: Path, file: Path) -> bool:
    """Whether a relative path makes sense: the recipe is inside the checkout that holds the file."""
    in_wheel = "_data" in file.parts
    return not in_wheel and file.parents[2].absolute() in (folder.absolute(), *folder.absolute().parents)


def _seen_from(folder: Path, file: Path) -> str:
    """Relative inside one project, else absolute."""
    project = Path(__file__).parent.parent.absolute()
    if project in (folder.absolute(), *folder.absolute().parents):
        return Path(os.path.relpath(file.absolute(), folder.absolute())).as_posix()
    return file.absolute().as_posix()

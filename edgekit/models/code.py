"""A user's own code, named `package.module:factory` in a recipe: finding it, and importing it when a stage needs it.

Finding runs nothing. The file's sha256 enters load's key and, through model.json, that of every
later stage; a stage imports only a file that a recipe of this process named and that still has this
sha256. So code comes from the recipes on the command line alone, never from a cache or a bundle.

What the file itself imports is not in any key: after a change there, touch the file, or bump the
version of its package.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ..artifact import file_digest
from ..bundle import MANIFEST
from ..errors import RecipeError

SPELLING = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"


@dataclass(frozen=True)
class Found:
    """Where a factory's module lies."""

    module: str
    factory: str
    path: Path
    folder: Path
    """The recipe's, where its neighbours are found too."""


_FOUND: dict[tuple[str, str], Found] = {}  # (spelling, sha256 of the file), of the recipes of this process
_IMPORTED: set[tuple[Path, str]] = set()  # (file, its sha256) of what now stands in sys.modules
_NEIGHBOURS: set[str] = set()  # modules from recipes' folders


def find(spelling: str, recipe_dir: Path) -> Found:
    """Find the module of `package.module:factory` beside the recipe, then on sys.path; imports nothing.

    Raises:
        RecipeError: it is spelled wrongly, nowhere to be found, or asked for by the recipe of a bundle.
    """
    if not re.fullmatch(SPELLING, spelling):
        raise RecipeError(f"`load.model`: `{spelling}` is not `package.module:factory`", "for example `my_nets.gaze:make`, for my_nets/gaze.py beside the recipe")
    if (recipe_dir / MANIFEST).is_file():
        raise RecipeError(f"`load.model`: {recipe_dir} is a bundle, and no code is taken from one", "copy its recipe.yaml out, to where your own code is")
    module, _, factory = spelling.partition(":")
    folder = recipe_dir.absolute()
    spec = _spec(module.split("."), [str(folder)]) or _spec(module.split("."), None)
    if spec is None or not spec.has_location or spec.origin is None:
        raise RecipeError(f"`load.model`: there is no module `{module}`, neither in {folder} nor on the Python path", "put its folder beside the recipe, or install its package")
    found = Found(module, factory, Path(spec.origin), folder)
    _FOUND[spelling, file_digest(found.path)] = found
    return found


def _spec(parts: list[str], path: list[str] | None) -> importlib.machinery.ModuleSpec | None:
    """Like importlib.util.find_spec, which would import the packages above a module."""
    spec = None
    for i in range(len(parts)):
        name = ".".join(parts[: i + 1])
        spec = next((s for finder in _finders(path) if (s := finder.find_spec(name, path)) is not None), None)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or [])
    return spec


def _finders(path: list[str] | None) -> list[Any]:
    return [importlib.machinery.PathFinder] if path is not None else [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]


def factory(spelling: str, sha256: str) -> Callable[[str], Any]:
    """The factory, imported; it runs with the recipe's folder on sys.path.

    Raises:
        RecipeError: no recipe of this process named it, the file has changed since, or it cannot be imported.
    """
    found = _FOUND.get((spelling, sha256))
    if found is None or file_digest(found.path) != sha256:
        what = "no recipe of this command names it" if found is None else f"{found.path} changed since this command began"
        raise RecipeError(f"`load.model`: the code of `{spelling}` is not at hand: {what}", "run the build of its recipe again")
    with _beside(found):
        made = getattr(_imported(found), found.factory, None)
    if not callable(made):
        raise RecipeError(f"`load.model`: {found.path} has no function `{found.factory}`", "it takes the configuration's name and returns the model")

    def make(config_name: str) -> Any:
        with _beside(found):
            return made(config_name)

    return make


def _imported(found: Found) -> ModuleType:
    known = sys.modules.get(found.module)
    if known is not None and (found.path, file_digest(found.path)) not in _IMPORTED and _is_below(found.path, found.folder):
        _forget(found.module)
    try:
        module = importlib.import_module(found.module)
    # Whatever a user's module does while it is imported, the one thing to tell is where.
    except Exception as error:
        raise RecipeError(f"`load.model`: {found.path} cannot be imported: {type(error).__name__}: {error}", "try `python -c 'import ...'` in the recipe's folder") from error
    if not Path(module.__file__ or "").samefile(found.path):
        raise RecipeError(f"`load.model`: `{found.module}` is {module.__file__}, not {found.path}", "rename one of them")
    _IMPORTED.add((found.path, file_digest(found.path)))
    return module


def _forget(module: str) -> None:
    """Another recipe had a module of this name, or this one before it was edited: let it and its neighbours be imported anew."""
    for name in (*_NEIGHBOURS, module):
        sys.modules.pop(name, None)
    _NEIGHBOURS.clear()
    _IMPORTED.clear()


@contextmanager
def _beside(found: Found) -> Iterator[None]:
    """The recipe's folder first on sys.path, as for a script that lies there; nothing is written into it."""
    before, wrote_bytecode = dict(sys.modules), sys.dont_write_bytecode
    sys.path.insert(0, str(found.folder))
    sys.dont_write_bytecode = True  # a .pyc knows its source by size and second only
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(found.folder))
        sys.dont_write_bytecode = wrote_bytecode
        files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items()) if module is not before.get(name)}
        _NEIGHBOURS.update(name for name, file in files.items() if file is not None and _is_below(Path(file), found.folder))


def _is_below(file: Path, folder: Path) -> bool:
    """Whether the recipe's folder is what makes `file` importable, and not a site-packages that lies in it."""
    return folder in file.parents and "site-packages" not in file.parts

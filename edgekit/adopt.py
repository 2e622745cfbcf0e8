"""`edgekit adopt RESULT`: what a device brought back, checked, kept by its digest, and made a new bundle of.

The host's bundle stays as it is. verify takes the result in place of the simulation and package puts
the engines into `build/<name>-measured`, so that everything in it was measured on the device.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from edgekit import artifact, backends
from edgekit import target as targets
from edgekit.build import DEFAULT_OUT, Result, build, run_stages
from edgekit.bundle import MANIFEST, open_bundle
from edgekit.cache import Cache
from edgekit.errors import RecipeError, UsageError
from edgekit.progress import note
from edgekit.recipe import Recipe, load_recipe

BEFORE_VERIFY = ("load", "prune", "reference", "calibrate", "quantize", "export")


def adopt(
    result: str | Path,
    recipe: str | Path | Recipe | None = None,
    overrides: Sequence[str] = (),
    bundle: str | Path | None = None,
    cache_root: str | Path = ".edgekit",
    out: str | Path = DEFAULT_OUT,
) -> Result:
    """Verify what finish.sh left and package a new bundle of it.

    Args:
        result: the folder `result` of a device.
        recipe: what the bundle was built from; by default that of the last build of its name in this cache.
        bundle: the bundle that finish.sh ran in, folder or archive; by default the folder around `result`, or OUT/<name>.

    Raises:
        UsageError: no result, of another bundle, or the recipe makes another bundle by now.
        IntegrityError: damaged, incomplete, or with numbers that are none.
        TargetError: made on another device.
    """
    result, out = Path(result), Path(out)
    if not result.is_dir():
        raise UsageError(f"{result}: no such folder", "give the folder `result` that finish.sh left on the device")
    from edgekit.backends.tensorrt import result as results  # the one backend whose artifact is finished on a device

    with open_bundle(_bundle(result, bundle, out)) as opened:
        opened.verify()
        manifest = opened.manifest
        device = results.check(result, opened)
    note(f"{result} is whole: {device.title}")
    with Cache(cache_root) as cache:
        if not isinstance(recipe, Recipe):
            recipe = _recipe(recipe, overrides, str(manifest["name"]), cache)
        _require_same(recipe, manifest, cache)
        stored = _store(result, cache)
    return build(recipe.with_result(stored), out=out)


def _bundle(result: Path, bundle: str | Path | None, out: Path) -> Path:
    if bundle is not None:
        return Path(bundle)
    around = result.absolute().parent
    if (around / MANIFEST).is_file():
        return around
    name = _name(result)
    for candidate in (out / name, out / f"{name}.tar.zst"):
        if candidate.exists():
            return candidate
    raise UsageError(f"{result}: its bundle is not in {out / name}", "give the bundle that finish.sh ran in, with `--bundle`")


def _name(result: Path) -> str:
    """The recipe's name as result.txt has it; it comes from a device, so it must be a plain name."""
    import re

    from edgekit.recipe import NAME

    found = ""
    with contextlib.suppress(OSError, ValueError):
        lines = (result / "result.txt").read_text(encoding="utf-8").splitlines()
        found = next((line.removeprefix("name=") for line in lines if line.startswith("name=")), "")
    if not re.fullmatch(NAME, found):
        raise UsageError(f"{result}: no finished result of a device, result.txt names no bundle", "run finish.sh again: it goes on where it stopped")
    return found


def _recipe(recipe: str | Path | None, overrides: Sequence[str], name: str, cache: Cache) -> Recipe:
    if recipe is not None:
        return load_recipe(recipe, overrides, cache.root)
    origin = cache.recall(name).get("origin")
    if not isinstance(origin, dict) or not Path(str(origin.get("path"))).is_file():
        raise UsageError(f"no build of `{name}` is known in {cache.root}", "give its recipe too: `edgekit adopt RESULT RECIPE`")
    return load_recipe(origin["path"], [*map(str, origin.get("overrides", ())), *overrides], cache.root)


def _require_same(recipe: Recipe, manifest: dict, cache: Cache) -> None:
    """The recipe still makes the kit that went to the device.

    Raises:
        UsageError: an input, the recipe or edgekit has changed since.
    """
    if recipe.name != manifest["name"]:
        raise UsageError(f"{recipe.path}: makes `{recipe.name}`, the result is of `{manifest['name']}`", "give the recipe that the bundle was built from")
    backend = backends.get(targets.load_target(recipe.target, recipe.dir).backend)
    if not hasattr(backend, "finisher"):
        raise RecipeError(f"{recipe.where('target')}: nothing of {recipe.target} is finished on a device", "give the recipe that the bundle was built from")
    done, _ = run_stages(recipe, cache, BEFORE_VERIFY)
    for stage in ("reference", "export"):
        if done[stage].digest != manifest["stages"].get(stage):
            raise UsageError(f"{recipe.path}: its {stage} is not the one of the bundle any more", f"`edgekit why {stage} {recipe.path}` says what changed; build, finish and adopt again, or give the recipe as it was")


def _store(result: Path, cache: Cache) -> Path:
    """A copy in the cache, named by its digest; once there it is found again."""
    digest = artifact.directory_digest(result)
    place = cache.root / "results" / digest
    with cache.locked(f"result-{digest}"), cache.resources():
        if place.is_dir() and artifact.directory_digest(place) == digest:
            return place
        shutil.rmtree(place, ignore_errors=True)  # damaged since
        part = place.with_name(f"{digest}.{os.getpid()}.part")
        try:
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(result, part)
            part.rename(place)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return place

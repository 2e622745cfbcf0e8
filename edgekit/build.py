"""The loop: for each stage, reuse or run, record. Then what package made is laid into build/.

Read this first; `plan.py` says how a key is made, `cache.py` how an entry is kept.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import types
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit import artifact, stages
from edgekit import target as targets
from edgekit.bundle import HELDOUT, pack
from edgekit.cache import Cache, Entry, require_folder
from edgekit.errors import EdgekitError, IntegrityError, RecipeError, UsageError
from edgekit.formats import read_json
from edgekit.plan import Draft, make_drafts, make_step, read_ops, require_tools
from edgekit.progress import note
from edgekit.recipe import Recipe, load_recipe
from edgekit.target import Target

DEFAULT_OUT = Path("build")


@dataclass(frozen=True)
class Result:
    """What a build left behind.

    Attributes:
        name: the recipe's.
        bundle: `build/<name>/`; after a failed gate it holds the report and nothing flashable.
        archive: `build/<name>.tar.zst`, or None after a failed gate.
        report: report.json.
        ran: the stages that were not reused.
        stages: {stage: its output directory in the cache}.
    """

    name: str
    bundle: Path
    archive: Path | None
    report: dict[str, Any]
    ran: tuple[str, ...]
    stages: Mapping[str, Path] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0, or 3 when a gate failed or could not be decided."""
        return 0 if self.archive is not None else 3


def build(recipe: str | Path | Recipe, overrides: Iterable[str] = (), cache_root: str | Path = ".edgekit", out: str | Path = DEFAULT_OUT) -> Result:
    """Build one recipe. A failed gate is a Result, whatever else is wrong is raised.

    Raises:
        EdgekitError: with a sentence, a hint and an exit code.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides, cache_root)
    require_folder(Path(out), "--out")
    _require_ours(Path(out) / recipe.output_name)
    with Cache(recipe.cache_root) as cache:
        done, ran = run_stages(recipe, cache)
        bundle, archive, report = deliver(recipe.output_name, done["package"], cache, Path(out), done["verify"].out / HELDOUT if "verify" in done else None)
    return Result(recipe.output_name, bundle, archive, report, tuple(ran), {name: entry.out for name, entry in done.items()})


def run_stages(recipe: Recipe, cache: Cache, only: Container[str] = stages.STAGES) -> tuple[dict[str, Entry], list[str]]:
    """All stages in order, or `only` some; (their entries, the names of those that ran)."""
    target = targets.load_target(recipe.target, recipe.dir)
    drafts = make_drafts(recipe, target)
    done: dict[str, Entry] = {}
    ran: list[str] = []
    try:
        for name, draft in drafts.items():
            if name not in only:
                continue
            done[name], did_run = reuse_or_run(draft, done, cache)
            ran += [name] if did_run else []
            if name == "load":
                _check(target, done[name])  # before anything slow
    except BaseException as error:
        with contextlib.suppress(EdgekitError):  # what went wrong first is what is told
            _remember(recipe, done, cache)
        if isinstance(error, RecipeError):
            raise recipe.locate(error) from None
        raise
    _remember(recipe, done, cache)
    return done, ran


def _check(target: Target, load: Entry) -> None:
    """Refuse a model that the target cannot run, naming the modules that hold what it does not take.

    Raises:
        TargetError: names every op, up to eight, and the first module of each.
    """
    ops = read_ops(load)
    places = None
    if targets.problems(target, ops):
        from edgekit.float_model import FloatModel  # exports the engines once more: slow, and only on the way to an error

        with contextlib.suppress(EdgekitError):  # the refusal is what is told, with the modules if they can be had
            places = FloatModel.open(load.out).places()
    targets.check(target, ops, places)


def _remember(recipe: Recipe, done: dict[str, Entry], cache: Cache) -> None:
    """Note what was built, for `edgekit why`."""
    origin = {"origin": {"path": str(recipe.path.absolute()), "overrides": list(recipe.overrides)}}
    cache.remember(recipe.output_name, {name: entry.parts for name, entry in done.items()}, **origin)


def reuse_or_run(draft: Draft, done: dict[str, Entry], cache: Cache) -> tuple[Entry, bool]:
    """The entry of a stage whose inputs are done, and whether it had to run."""
    step = make_step(draft, done, cache)
    with cache.locked(step.key):
        entry = cache.find(step.key)  # again: another process may have built it while we waited
        did_run = entry is None
        if entry is None:
            require_tools(draft)
            note(f"{draft.stage}: running")
            with cache.staging(step.key, step.parts) as staging:
                inputs = {need: done[need].out for need in draft.needs}
                stages.get(draft.stage).run(stages.Job(draft.spec, inputs, draft.files, staging.out, staging.scratch, cache.root))
            entry = cache.find(step.key)
            if entry is None:
                raise IntegrityError(f"{cache.root / step.key}: damaged right after it was written", "check the disk")
        cache.hold(step.key)
    return entry, did_run


def build_all(recipes: Iterable[Recipe | EdgekitError], out: Path = DEFAULT_OUT) -> Iterator[Result | EdgekitError]:
    """Build each recipe whatever became of the others; equal stages are shared through the cache."""
    for recipe in recipes:
        if isinstance(recipe, EdgekitError):
            yield recipe
            continue
        try:
            yield build(recipe, out=out)
        except EdgekitError as error:
            yield error


def deliver(name: str, package: Entry, cache: Cache, out: Path, heldout: Path | None = None) -> tuple[Path, Path | None, dict[str, Any]]:
    """Lay package's output into build/<name>/ and build/<name>.tar.zst; untouched if they hold it already.

    Held-out clips for a device, where the bundle names them, go to build/<name>.heldout.tar.

    Returns:
        (bundle, archive or None after a failed gate, report).
    """
    source = package.out / "bundle" if (package.out / "bundle").is_dir() else package.out
    report = read_json(source / "report.json")
    may_ship = report["verdict"] in ("pass", "pending-device")
    bundle, archive = out / name, out / f"{name}.tar.zst"
    with cache.locked(f"output-{name}"):
        files = {relative: artifact.file_digest(source / relative) for relative in artifact.tree(source)}
        delivered = {"bundle": artifact.digest_of_files(files), "archive": _digest_or_none(archive) if may_ship else None}
        noted = cache.recall(name).get("delivered")
        is_there = noted == delivered and (archive.exists() == may_ship) and _holds(bundle, files)
        if not is_there:
            with cache.resources():
                _replace(source, bundle, archive if may_ship else None, stale=archive)
            delivered["archive"] = _digest_or_none(archive) if may_ship else None
            cache.remember(name, {}, delivered=delivered)
        _lay_heldout(heldout if may_ship and (source / "heldout.txt").is_file() else None, out / f"{name}.{HELDOUT}", cache)
    return bundle, archive if may_ship else None, report


def _replace(source: Path, bundle: Path, archive: Path | None, stale: Path) -> None:
    """Everything is written aside first; then the old bundle makes room by renames."""
    _require_ours(bundle)
    bundle.parent.mkdir(parents=True, exist_ok=True)
    new, old = (bundle.with_name(f".{bundle.name}.{word}.{os.getpid()}") for word in ("new", "old"))
    packed = bundle.with_name(f".{bundle.name}.tar.zst.{os.getpid()}")
    try:
        for relative in artifact.tree(source):
            copy = new / relative
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / relative, copy)
            copy.chmod(_mode((source / relative).stat().st_mode))
        if archive is not None:
            pack(source, packed)
        stale.unlink(missing_ok=True)  # never an archive beside a bundle of another build
        if bundle.exists():
            bundle.rename(old)
        new.rename(bundle)
        if archive is not None:
            packed.rename(archive)
    finally:
        packed.unlink(missing_ok=True)
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)


def _lay_heldout(source: Path | None, target: Path, cache: Cache) -> None:
    """Held-out clips beside the bundle they belong to; none of an older build stays."""
    if source is None or not source.is_file():
        target.unlink(missing_ok=True)
        return
    if target.is_file() and artifact.file_digest(target) == artifact.file_digest(source):
        return
    part = target.with_name(f".{target.name}.{os.getpid()}")
    with cache.resources():
        try:
            shutil.copyfile(source, part)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)


def _require_ours(bundle: Path) -> None:
    """Refuse to replace what no build of ours left there."""
    if bundle.is_symlink() or (bundle.exists() and not (bundle / "report.json").is_file()):
        raise UsageError(f"{bundle}: exists and is not a bundle of ours", "move it away, or build elsewhere with `--out`")


def _holds(bundle: Path, files: dict[str, str]) -> bool:
    """Whether every file is there unchanged; a device's `result/` beside them is welcome."""
    return all((bundle / name).is_file() and artifact.file_digest(bundle / name) == sha256 for name, sha256 in files.items())


def _digest_or_none(path: Path) -> str | None:
    return artifact.file_digest(path) if path.is_file() else None


def _mode(mode: int) -> int:
    return 0o755 if mode & 0o100 else 0o644


class _CallableModule(types.ModuleType):
    """`edgekit.build` is this module and the public function; whichever was imported first, both work."""

    def __call__(self, *args: Any, **kwargs: Any) -> Result:
        return build(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule

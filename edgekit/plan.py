"""What a build would do, and why: every stage with its key, whether it is there already, and the reason if not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgekit import backends, models, stages
from edgekit import target as targets
from edgekit.artifact import Source, tool_version
from edgekit.cache import Cache, Entry, key_of
from edgekit.document import suggestion
from edgekit.errors import RecipeError, ToolMissing
from edgekit.formats import read_json
from edgekit.recipe import Recipe
from edgekit.target import Target


@dataclass(frozen=True)
class Draft:
    """What a stage reads from the recipe: the part of its key that is known before anything ran."""

    stage: str
    spec: dict[str, Any]
    files: dict[str, Source]
    parts: dict[str, Any]
    """The key's parts without `inputs`."""
    needs: tuple[str, ...]
    target: Target


@dataclass(frozen=True)
class Step:
    """A draft whose inputs may be known."""

    draft: Draft
    parts: dict[str, Any] | None
    """All parts of the key, or None while an input is not built."""
    key: str | None
    entry: Entry | None
    """The cached output, if there is one."""

    @property
    def stage(self) -> str:
        return self.draft.stage


@dataclass(frozen=True)
class Plan:
    """Steps in order, each with a reason (`reuse`, or why it runs), and what the target cannot run."""

    recipe: Recipe
    target: Target
    steps: tuple[Step, ...]
    reasons: tuple[str, ...]
    problems: tuple[str, ...] | None
    """None: not known before `load` ran."""
    missing: tuple[str, ...] = ()
    """What the stages that would run need and is not installed here, each with the command that installs it."""
    unit: dict[str, Any] | None = None
    """What an accelerator of the device would take, if export has said so: see `stages/export.py`."""

    @property
    def is_up_to_date(self) -> bool:
        return all(step.entry is not None for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        rows = zip(self.steps, self.reasons, strict=True)
        return {
            "recipe": self.recipe.name,
            "target": self.target.name,
            "up_to_date": self.is_up_to_date,
            "steps": [{"stage": step.stage, "key": step.key, "cached": step.entry is not None, "reason": why} for step, why in rows],
            "target_problems": None if self.problems is None else list(self.problems),
            "missing_tools": list(self.missing),
            **({"unit": self.unit} if self.unit else {}),
        }


def make_plan(recipe: Recipe, cache: Cache) -> Plan:
    """Look at a recipe and a cache; nothing is run or written.

    Raises:
        RecipeError, DataError, CheckpointError: what the recipe names is missing or wrong.
    """
    target = targets.load_target(recipe.target, recipe.dir)
    done: dict[str, Entry] = {}
    steps = []
    for draft in make_drafts(recipe, target).values():
        step = make_step(draft, done, cache)
        steps.append(step)
        if step.entry is not None:
            done[draft.stage] = step.entry
    history = cache.recall(recipe.name).get("stages", {})
    reasons = tuple(_reason(step, done, history) for step in steps)
    problems = None
    if "load" in done:
        problems = tuple(targets.problems(target, read_ops(done["load"])))
    missing = tuple(dict.fromkeys(f"{what}: {hint}" for step in steps if step.entry is None for what, hint in _missing(step.draft)))
    unit = read_json(done["export"].out / "coverage.json").get("unit") if "export" in done else None
    return Plan(recipe, target, tuple(steps), reasons, problems, missing, unit)


def make_drafts(recipe: Recipe, target: Target) -> dict[str, Draft]:
    """Every stage's reading of the recipe, so that a missing data set is found before any training."""
    if not models.is_known(recipe.load.model):
        hint = suggestion(recipe.load.model, models.names())
        raise RecipeError(f"{recipe.where('load.model')}: unknown model `{recipe.load.model}`", hint)
    try:
        return {name: _draft(name, recipe, target) for name in stages.STAGES}
    except RecipeError as error:
        raise recipe.locate(error) from None


def make_step(draft: Draft, done: dict[str, Entry], cache: Cache) -> Step:
    """The key of a stage from the contents of its inputs, and its entry if the cache has it."""
    if any(need not in done for need in draft.needs):
        return Step(draft, None, None, None)
    parts = {**draft.parts, "inputs": {need: done[need].digest for need in draft.needs}}
    key = key_of(parts)
    return Step(draft, parts, key, cache.find(key))


def require_tools(draft: Draft) -> None:
    """Refuse to run a stage whose packages are not installed.

    Raises:
        ToolMissing: names them and the command that installs them.
    """
    for what, hint in _missing(draft):
        raise ToolMissing(f"stage {draft.stage} needs {what}", hint)


def _missing(draft: Draft) -> Iterator[tuple[str, str]]:
    """(what is not installed, how to install it) of a stage, its backend's tools first."""
    missing = [tool for tool, version in draft.parts["tools"].items() if version is None]
    backend = backends.get(draft.target.backend)
    own = [tool for tool in missing if tool in backend.versions(draft.target.spec())] if missing else []
    if own and hasattr(backend, "install_hint"):
        yield _listed(own), backend.install_hint(own)
        missing = [tool for tool in missing if tool not in own]
    if missing:
        yield _listed(missing), f"pip install {' '.join(missing)}"


def _listed(tools: list[str]) -> str:
    return f"{', '.join(f'`{tool}`' for tool in tools)}, not installed here"


def read_ops(load: Entry) -> dict[str, Any]:
    """What load says about the model's ops: {opset, ops: [{engine, op, rank, dtype, count}]}."""
    return read_json(load.out / "ops.json")


def why(stage: str, plan: Plan, cache: Cache) -> list[str]:
    """Why a stage is stale, against the newest build of a recipe of the same name; [] if it is not.

    Each line names an input, a file, a key of the spec, a version of a tool, or the stage's semantics.
    """
    step = next(step for step in plan.steps if step.stage == stage)
    if step.entry is not None:
        return []
    history = cache.recall(plan.recipe.name).get("stages", {})
    if stage not in history:
        return [f"{stage} was never built for recipe `{plan.recipe.name}`"]
    old = history[stage]["parts"]
    lines = list(differences(old, step.parts or {**step.draft.parts, "inputs": None}))
    for need in step.draft.needs:
        upstream = next(other for other in plan.steps if other.stage == need)
        if upstream.entry is None:
            lines.append(f"input `{need}` is stale itself")
            lines += [f"  {line}" for line in why(need, plan, cache)]
        elif step.parts is None and old["inputs"].get(need) != upstream.entry.digest:
            lines.append(f"input `{need}` has another content")
    return lines or ["its cache entry is gone or damaged; nothing that it is made from has changed"]


def differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """One line for each part of a key that differs. `inputs: None` are not known yet and not compared."""
    if old["semantics"] != new["semantics"]:
        yield f"edgekit computes it differently: semantics {old['semantics']} -> {new['semantics']}"
    for key, before, after in _changed(_flat(old["spec"]), _flat(new["spec"])):
        yield f"spec `{key}`: {before} -> {after}"
    for name, before, after in _changed(old["files"], new["files"]):
        yield f"file `{name}` " + ("is new" if before == "nothing" else "is gone" if after == "nothing" else "has another content")
    if new["inputs"] is not None:
        for name, _, _ in _changed(old["inputs"], new["inputs"]):
            yield f"input `{name}` has another content"
    for tool, before, after in _changed(old["tools"], new["tools"]):
        yield f"version of {tool}: {before.strip('`')} -> {after.strip('`')}"


def _draft(name: str, recipe: Recipe, target: Target) -> Draft:
    stage = stages.get(name)
    spec, files = stage.plan(recipe, target)
    parts = {
        "stage": name,
        "semantics": stage.SEMANTICS,
        "spec": json.loads(json.dumps(spec)),  # as it will be read back, so that tuples equal lists
        "files": {label: source.digest() for label, source in files.items()},
        "tools": {tool: tool_version(tool) for tool in stage.TOOLS} | (stage.tools(target) if hasattr(stage, "tools") else {}),
    }
    return Draft(name, spec, files, parts, tuple(stage.NEEDS), target)


def _reason(step: Step, done: dict[str, Entry], history: dict[str, Any]) -> str:
    if step.entry is not None:
        return "reuse"
    if step.stage not in history:
        return "not built yet"
    changed = list(differences(history[step.stage]["parts"], step.parts or {**step.draft.parts, "inputs": None}))
    if changed:
        return changed[0]
    missing = [need for need in step.draft.needs if need not in done]
    return f"after {', '.join(missing)}" if missing else "its entry is gone or damaged"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value}, so that a change deep in a spec is named by its own key."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {
        dotted: leaf
        for key, item in value.items()
        for dotted, leaf in _flat(item, f"{prefix}.{key}" if prefix else key).items()
    }


def _changed(old: dict[str, Any], new: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) or (key in old) != (key in new):
            yield key, _shown(old, key), _shown(new, key)


def _shown(values: dict[str, Any], key: str) -> str:
    if key not in values or values[key] is None:
        return "nothing"
    text = json.dumps(values[key], ensure_ascii=False)
    return f"`{text.strip(chr(34)) if len(text) <= 60 else text[:57] + '...'}`"

"""A plan says what would run and why, without running or importing anything heavy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import edgekit
from edgekit.cache import Cache
from edgekit.errors import RecipeError, ToolMissing
from edgekit.plan import make_drafts, make_plan, require_tools, why
from edgekit.recipe import load_recipe
from edgekit.target import load_target

ROOT = Path(__file__).parents[1]


@pytest.fixture
def plan_of(workspace, fake_stages):
    def plan_of(*overrides):
        with Cache(".edgekit") as cache:
            return make_plan(load_recipe("recipes/toy.yaml", overrides), cache)

    return plan_of


@pytest.fixture
def why_of(workspace, fake_stages):
    def why_of(stage, *overrides):
        with Cache(".edgekit") as cache:
            return why(stage, make_plan(load_recipe("recipes/toy.yaml", overrides), cache), cache)

    return why_of


def test_a_plan_of_an_empty_cache_runs_all_and_writes_nothing(plan_of, workspace):
    plan = plan_of()
    assert [step.key is not None for step in plan.steps] == [True, False, False, False]
    assert set(plan.reasons) == {"not built yet"} and plan.problems is None and not plan.is_up_to_date
    assert not (workspace / ".edgekit").exists()


def test_a_plan_after_a_build_reuses_all(plan_of):
    edgekit.build("recipes/toy.yaml")
    plan = plan_of()
    assert plan.is_up_to_date and set(plan.reasons) == {"reuse"} and plan.problems == ()
    assert plan.to_json()["up_to_date"] is True


def test_a_changed_key_runs_its_stage_and_all_after(plan_of):
    edgekit.build("recipes/toy.yaml")
    plan = plan_of("prune.macs=0.5")
    assert [step.entry is not None for step in plan.steps] == [True, False, False, False]
    assert plan.reasons == ("reuse", "spec `macs`: `0.7` -> `0.5`", "after prune", "after quantize")


def test_a_changed_gate_runs_package_only(plan_of):
    edgekit.build("recipes/toy.yaml")
    plan = plan_of("gates.mae.max_increase=0.02")
    assert [step.entry is not None for step in plan.steps] == [True, True, True, False]


def test_equal_content_upstream_stops_the_wave(plan_of, fake_stages, workspace):
    edgekit.build("recipes/toy.yaml")
    fake_stages["load"].SEMANTICS = 2  # runs again, and writes the same bytes
    plan = plan_of()
    assert plan.reasons[0] == "edgekit computes it differently: semantics 1 -> 2"
    assert edgekit.build("recipes/toy.yaml").ran == ("load",)


def test_the_same_content_at_another_path_is_the_same_key(plan_of, workspace):
    edgekit.build("recipes/toy.yaml")
    (workspace / "recipes/other.bin").write_bytes(b"weights")
    assert plan_of("load.checkpoint=other.bin").is_up_to_date


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda w, f: (w / "recipes/weights.bin").write_bytes(b"other"), "file `checkpoint` has another content"),
        (lambda w, f: setattr(f["load"], "SEMANTICS", 2), "edgekit computes it differently: semantics 1 -> 2"),
        (lambda w, f: setattr(f["load"], "TOOLS", ("pytest",)), f"version of pytest: nothing -> {pytest.__version__}"),
    ],
    ids=["file", "semantics", "tool"],
)
def test_why_names_what_made_a_stage_stale(why_of, workspace, fake_stages, change, line):
    edgekit.build("recipes/toy.yaml")
    assert why_of("load") == []
    change(workspace, fake_stages)
    assert why_of("load") == [line]
    assert why_of("prune") == ["input `load` is stale itself", f"  {line}"]


def test_why_names_the_key_of_the_spec(why_of):
    edgekit.build("recipes/toy.yaml")
    assert why_of("quantize", "quantize.observer=minmax") == ["spec `observer`: `percentile` -> `minmax`"]
    assert why_of("prune", "prune.finetune={epochs: 2}") == ["spec `finetune.distill`: nothing -> `1.0`", "spec `finetune.epochs`: nothing -> `2`"]


def test_why_of_an_input_whose_content_changed_names_the_input(why_of, fake_stages, workspace):
    edgekit.build("recipes/toy.yaml")
    fake_stages.run_prune = lambda job: (job.out / "result.json").write_text("other")
    fake_stages["prune"].SEMANTICS = 2
    with Cache(".edgekit") as cache:  # prune runs again on its own, as in a build that was interrupted after it
        from edgekit.build import reuse_or_run

        recipe = load_recipe("recipes/toy.yaml")
        drafts = make_drafts(recipe, load_target("toy", recipe.dir))
        done = {}
        for name in ("load", "prune"):
            done[name], _ = reuse_or_run(drafts[name], done, cache)
    assert why_of("quantize") == ["input `prune` has another content"]


def test_why_of_what_was_never_built_or_was_cleaned_says_so(why_of):
    assert why_of("load") == ["load was never built for recipe `toy`"]
    edgekit.build("recipes/toy.yaml")
    with Cache(".edgekit") as cache:
        cache.gc(0)
    assert why_of("load") == ["its cache entry is gone or damaged; nothing that it is made from has changed"]


def test_target_problems_are_known_once_load_is_cached(plan_of, fake_stages):
    fake_stages.ops = {"opset": 17, "ops": [{"engine": "main", "op": "Einsum", "rank": 3, "dtype": "float32", "count": 1}]}
    assert plan_of().problems is None
    with pytest.raises(edgekit.EdgekitError):
        edgekit.build("recipes/toy.yaml")
    assert plan_of().problems == ("`Einsum` in engine `main` is not in the table",)


def test_a_missing_file_of_a_late_stage_is_found_before_anything_runs(workspace, fake_stages):
    def plan(recipe, target):
        raise RecipeError("no such data set")

    fake_stages["package"].plan = plan
    with pytest.raises(RecipeError, match="no such data set"):
        edgekit.build("recipes/toy.yaml")
    assert fake_stages.ran == []


def test_an_unknown_model_is_told_with_its_line(workspace, fake_stages):
    with pytest.raises(RecipeError, match=r"^command line `load.model=tinny`: unknown model `tinny`\n  hint: did you mean `tiny`"):
        edgekit.build("recipes/toy.yaml", ["load.model=tinny"])


def test_an_unknown_configuration_is_told_with_its_line_before_anything_runs(workspace, fake_stages):
    from edgekit.stages import load

    fake_stages["load"].plan = load.plan
    with pytest.raises(RecipeError, match=r"^recipes/toy.yaml:3: `load.config`: model `tiny` has no configuration `tinny`\n  hint: did you mean `tiny`"):
        recipe = workspace / "recipes/toy.yaml"
        recipe.write_text(recipe.read_text().replace("config: tiny", "config: tinny"))
        edgekit.build("recipes/toy.yaml")
    assert fake_stages.ran == []


def test_the_configurations_that_a_plan_knows_are_the_models_own():
    from edgekit import models

    assert set(models.CONFIG_NAMES) == {name for name, module in models.MODELS.items() if module.startswith("edgekit.")}
    assert {name: tuple(models.get(name).CONFIGS) for name in models.CONFIG_NAMES} == models.CONFIG_NAMES


def test_a_key_that_a_stage_refuses_is_told_with_its_line(workspace, fake_stages):
    def run(job):
        raise RecipeError("`quantize.skip`: `nope*` matches no layer")

    fake_stages.run_quantize = run
    with pytest.raises(RecipeError, match=r"^recipes/toy.yaml:6: `quantize.skip`: `nope\*` matches no layer"):
        edgekit.build("recipes/toy.yaml")


def test_a_missing_tool_is_named_before_its_stage_runs(workspace, fake_stages):
    fake_stages["load"].TOOLS = ("no-such-distribution",)
    recipe = load_recipe("recipes/toy.yaml")
    with pytest.raises(ToolMissing, match=r"stage load needs `no-such-distribution`.*\n  hint: pip install no-such-distribution") as caught:
        require_tools(make_drafts(recipe, load_target("toy", recipe.dir))["load"])
    assert caught.value.exit_code == 5
    with pytest.raises(ToolMissing):
        edgekit.build("recipes/toy.yaml")


def test_planning_the_shipped_recipe_imports_nothing_heavy(tmp_path):
    """A checkpoint that is there or not: either way torch must not be needed to say so."""
    script = """
import sys
from edgekit.cache import Cache
from edgekit.errors import EdgekitError
from edgekit.plan import make_plan
from edgekit.recipe import load_recipe
recipe = load_recipe("recipes/mhlt_xavier.yaml", ["load.checkpoint=../README.md"], cache_root=sys.argv[1])
try:
    make_plan(recipe, Cache(sys.argv[1]))
except EdgekitError as error:
    print(error)
print("heavy:", sorted({"numpy", "torch", "transformers", "onnx", "onnxruntime", "scipy"} & set(sys.modules)))
"""
    ran = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert "heavy: []" in ran.stdout

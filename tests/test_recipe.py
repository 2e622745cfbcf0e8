"""What a recipe may say."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from edgekit.errors import RecipeError
from edgekit.quant import OBSERVERS
from edgekit.recipe import GATES, SCHEMA_PATH, Quantize, json_schema, limits_of, load_recipe


def test_a_recipe_loads_with_its_place(workspace):
    recipe = load_recipe("recipes/toy.yaml", cache_root="c")
    assert (recipe.name, recipe.load.model, recipe.prune.macs, recipe.calibrate.clips) == ("toy", "tiny", 0.7, 8)
    assert recipe.dir == recipe.path.parent and str(recipe.path) == "recipes/toy.yaml"
    assert str(recipe.cache_root) == "c"
    assert recipe.where("prune.macs") == "recipes/toy.yaml:4"
    assert recipe.file("load.checkpoint").read_bytes() == b"weights"


def test_a_section_is_plain_data_without_unset_keys(workspace):
    recipe = load_recipe("recipes/toy.yaml")
    prune = recipe.section("prune")
    assert prune["importance"] == "magnitude" and prune["protect"] == [] and "finetune" not in prune
    assert recipe.section("gates") == {"mae": {"max_increase": 0.01}}
    assert load_recipe("recipes/toy.yaml", ["prune="]).section("prune") is None


def test_the_name_defaults_to_the_file(workspace):
    (workspace / "recipes/car 2.yaml").write_text((workspace / "recipes/toy.yaml").read_text().replace("name: toy\n", ""))
    assert load_recipe("recipes/car 2.yaml").name == "car_2"


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("calibrat.clips=1", "unknown key `calibrat`", "did you mean `calibrate`?"),
        ("prune.ratio=0.5", "unknown key `ratio`", "known: `importance`, `macs`"),
        ("export.opset=17", "unknown key `export`", "known:"),
        ("prune.macs=1.5", "`prune.macs` must be less than 1", None),
        ("prune.macs=0", "`prune.macs` must be greater than 0", None),
        ("prune.macs=.nan", "`prune.macs` must be a finite number", None),
        ("prune.importance=tailor", "`prune.importance` cannot be `tailor`", "did you mean `taylor`?"),
        ("prune.importance=3", "`prune.importance` cannot be 3", "known: `magnitude`, `taylor`"),
        ("prune.finetune={distill: 1}", "`prune.finetune.epochs` is missing", None),
        ("prune.finetune={epochs: 0}", "`prune.finetune.epochs` must be at least 1", None),
        ("prune.finetune={epochs: 1, lr: -1}", "`prune.finetune.lr` must be greater than 0", None),
        ("calibrate.clips=0", "`calibrate.clips` must be at least 1", None),
        ("calibrate.clips=1e3", "`calibrate.clips` must be a whole number", None),
        ("quantize.observer=median", "`quantize.observer` cannot be `median`", "`minmax`, `percentile`, `entropy`, `mse`"),
        ("quantize={observer: minmax, percentile: 99.9}", "`percentile` is given, but the observer is `minmax`", None),
        ("quantize.percentile=101", "`quantize.percentile` must be at most 100", None),
        ("gates.mea={max: 1}", "unknown gate `mea`", "did you mean `mae`?"),
        ("gates.mae={}", "a gate without a limit", None),
        ("gates.mae={max_decrease: 1}", "gate `mae` cannot have `max_decrease`", "`max_increase` or `max`"),
        ("gates.f1={max_increase: 1}", "gate `f1` cannot have `max_increase`", "`max_decrease` or `min`"),
        ("gates.int8_macs={max_decrease: 1}", "gate `int8_macs` cannot have `max_decrease`", "`min` or `max`"),
        ("gates.mae={max_increase: -1}", "`gates.mae.max_increase` must be at least 0", None),
        ("name=../../etc", "`name` must be text like", None),
        ("name=", "`name` must be text, got nothing", None),
        ("load.checkpoint=", "`load.checkpoint` is missing", None),
        ("load.model=", "`load.model` must be text", None),
        ("verify=", "`verify` must be keys and values, got nothing", None),
    ],
)
def test_bad_values_are_refused(workspace, override, message, hint):
    with pytest.raises(RecipeError) as caught:
        load_recipe("recipes/toy.yaml", [override])
    assert message in caught.value.message and caught.value.exit_code == 2
    assert hint is None or hint in caught.value.hint


@pytest.mark.parametrize("key", ["target", "load", "calibrate", "verify"])
def test_every_required_part_is_asked_for_by_name(workspace, key):
    path = workspace / "recipes/toy.yaml"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.startswith(f"{key}:")))
    with pytest.raises(RecipeError, match=f"`{key}` is missing"):
        load_recipe(path)


def test_a_missing_checkpoint_names_line_and_neighbour(workspace):
    recipe = load_recipe("recipes/toy.yaml", ["load.checkpoint=wieghts.bin"])
    with pytest.raises(RecipeError, match=r"`load.checkpoint` does not exist: recipes/wieghts.bin\n  hint: did you mean `weights.bin`"):
        recipe.file("load.checkpoint")
    with pytest.raises(RecipeError, match="is a folder"):
        load_recipe("recipes/toy.yaml", ["load.checkpoint=."]).file("load.checkpoint")


def test_a_gate_may_name_the_data_sets_own_metric(workspace):
    recipe = load_recipe("recipes/toy.yaml", ['gates={"my.pkg:wer": {max_increase: 0.1}}'])
    assert recipe.section("gates") == {"my.pkg:wer": {"max_increase": 0.1}}


def test_gates_are_the_metrics_that_exist_and_point_their_way():
    from edgekit.metrics import METRICS

    assert {*METRICS, "int8_macs", "agreement", "latency_ms", "device_memory_mib"} == set(GATES)
    assert limits_of("latency_ms") == limits_of("device_memory_mib") == ("max",)
    for name, metric in METRICS.items():
        assert limits_of(name)[0] == ("max_increase" if metric.direction == "lower" else "max_decrease")


def test_every_observer_can_be_asked_for():
    assert get_args(Quantize.model_fields["observer"].annotation) == OBSERVERS


def test_the_shipped_json_schema_is_up_to_date():
    assert json.loads(SCHEMA_PATH.read_text()) == json.loads(json_schema()), "run `edgekit schema > edgekit/schemas/recipe.json`"


def test_the_json_schema_refuses_unknown_keys_and_describes_every_field():
    schema = json.loads(json_schema())
    for part in (schema, *schema["$defs"].values()):
        assert part["additionalProperties"] is False
        for name, field in part["properties"].items():
            assert "description" in field or "$ref" in json.dumps(field), name
    assert "name" not in schema["required"]

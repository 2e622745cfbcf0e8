"""Gates on slices of the report, and on what the artifact is compared with."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import RecipeError
from edgekit.metrics import METRICS
from edgekit.recipe import Recipe, load_recipe
from edgekit.stages.package import judge
from edgekit.stages.verify import _Judge, _slices


def report() -> dict:
    """20 clips at -5 dB and 20 at 20 dB: the artifact is off by 0.1, one comparison by 0.3, one by 0.1 as well."""
    rng = np.random.default_rng(0)
    labels = rng.uniform(-0.5, 0.5, 40)
    rows = {"float": labels + 0.1, "pruned": labels + 0.1, "artifact": labels + 0.1 + rng.normal(0, 1e-3, 40)}
    compared = {"mhlt": labels + np.where(np.arange(40) < 20, 0.3, 0.1), "alpha_1": labels + 0.1}
    tags = [{"snr_db": -5.0 if k < 20 else 20.0} for k in range(40)]
    alpha = np.where(np.arange(40) < 20, np.linspace(0, 0.25, 40), 1.0)
    made = _Judge(labels, 500, 0)
    metric = METRICS["mae"]
    slices = _slices(tags, metric, labels, rows, made, compared, {"alpha": alpha})
    return {"slices": slices, "comparisons": made.against({"mae": metric}, rows["artifact"], compared), "metrics": {"artifact": {"mae": 0.1}}}


@pytest.fixture(scope="module")
def measured() -> dict:
    return report()


def verdicts(gates: dict, measured: dict) -> dict[str, str]:
    return {row["kind"]: row["verdict"] for row in judge(gates, measured)}


def test_a_gate_on_a_slice_reads_that_slice(measured):
    [low] = judge({"mae at snr_db=-5": {"max_over": {"mhlt": 0.0}}}, measured)
    [high] = judge({"mae at snr_db=20": {"max_over": {"mhlt": 0.0}}}, measured)
    assert low["value"] == pytest.approx(-0.2, abs=1e-3) and low["verdict"] == "pass"
    assert high["value"] == pytest.approx(0, abs=1e-3) and high["verdict"] != "pass"


def test_a_gain_that_could_be_chance_is_no_pass(measured):
    rows = verdicts({"mae at snr_db=-5": {"max_over": {"alpha_1": -0.001, "mhlt": -0.001}}}, measured)
    assert rows == {"max_over alpha_1": "fail", "max_over mhlt": "pass"}


def test_own_value_and_change_of_a_slice(measured):
    assert verdicts({"mae at snr_db=-5": {"max": 0.11, "max_increase": 0.01}}, measured) == {"max": "pass", "max_increase": "pass"}
    assert verdicts({"mae at snr_db=-5": {"max": 0.05}}, measured) == {"max": "fail"}


def test_the_largest_alpha_of_a_slice_is_judged_and_not_its_mean(measured):
    rows = [judge({"alpha at snr_db=-5": {"max": limit}}, measured)[0] for limit in (0.2, 0.1)]
    assert [row["verdict"] for row in rows] == ["pass", "fail"]
    assert rows[0]["value"] == pytest.approx(np.linspace(0, 0.25, 40)[19])


def test_without_a_slice_the_whole_is_compared(measured):
    [row] = judge({"mae": {"max_over": {"mhlt": 0.0}}}, measured)
    assert row["value"] == pytest.approx(-0.1, abs=1e-3) and row["verdict"] == "pass"


@pytest.mark.parametrize(
    "gates, message",
    [
        ({"mae at snr_db=3": {"max": 1}}, "no such slice"),
        ({"f1 at snr_db=-5": {"min": 1}}, "no such slice"),
        ({"mae at snr_db=-5": {"max_over": {"lips": 0}}}, "no comparison `lips`"),
        ({"mae": {"max_over": {"lips": 0}}}, "no comparison `lips`"),
    ],
)
def test_what_the_report_lacks_is_named(measured, gates, message):
    with pytest.raises(RecipeError, match=message):
        judge(gates, measured)


def recipe(tmp_path, gates: str) -> Recipe:
    file = tmp_path / "car.yaml"
    file.write_text(f"target: jetson_xavier\nload: {{model: tiny, checkpoint: m.safetensors}}\ncalibrate: {{data: set}}\nverify: {{data: set}}\ngates: {gates}\n")
    return load_recipe(file)


def test_a_recipe_takes_gates_on_slices(tmp_path):
    gates = recipe(tmp_path, "{mae at snr_db=-5: {max_over: {mhlt: 0}}, alpha at snr_db=0: {max: 0.3}, si_sdr at noise=wind: {min: 3}}").section("gates")
    assert gates == {"mae at snr_db=-5": {"max_over": {"mhlt": 0.0}}, "alpha at snr_db=0": {"max": 0.3}, "si_sdr at noise=wind": {"min": 3.0}}


@pytest.mark.parametrize(
    "gates, message",
    [
        ("{mea at snr_db=-5: {max: 1}}", "unknown gate `mea at snr_db=-5`"),
        ("{alpha: {max: 1}}", "unknown gate `alpha`"),
        ("{int8_macs at snr_db=-5: {min: 1}}", "unknown gate"),
        ("{mae at snr_db=-5: {min: 1}}", "cannot have `min`"),
        ("{f1: {max_over: {mhlt: 0}}}", "cannot have `max_over`"),
        ("{alpha at snr_db=0: {max_increase: 1}}", "cannot have `max_increase`"),
    ],
)
def test_wrong_gates_on_slices_are_refused(tmp_path, gates, message):
    with pytest.raises(RecipeError, match=message):
        recipe(tmp_path, gates)

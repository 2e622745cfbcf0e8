"""The denoisers that ship: whole, small, and worth having; and the gate of their recipes tells INT8 from less."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from edgekit import cli, document, models, native
from edgekit.artifact import hash_file
from edgekit.datasets import open_dataset
from edgekit.metrics import METRICS, paired_bootstrap
from edgekit.models import checkpoint
from edgekit.training import ClipBank, TrainRecipe, predict

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".edgekit"
MOST = {"dccrn": 8_000_000, "dccrn_half": 1_200_000, "dccrnpp_half": 1_200_000}  # bytes


def recipe_of(name: str) -> TrainRecipe:
    return document.load(ROOT / f"recipes/training/{name}.yaml", TrainRecipe)


def path_of(name: str) -> Path:
    return ROOT / f"recipes/checkpoints/{name}.safetensors.xz"


@pytest.mark.parametrize("name", MOST)
def test_it_is_the_file_that_its_provenance_describes_and_not_too_large(name):
    path, recipe = path_of(name), recipe_of(name)
    provenance = json.loads(checkpoint.provenance_of(path).read_text())
    assert provenance["sha256"] == hash_file(path) and path.stat().st_size <= MOST[name]
    assert TrainRecipe.model_validate(provenance["recipe"], strict=False) == recipe, "trained as its recipe says"
    definition = models.get(recipe.model)
    config = definition.CONFIGS[recipe.config]
    module = definition.build(config)
    checkpoint.load_into(module, definition.normalize_keys(checkpoint.read_state(path), config), path, ())
    significant = [weight for weight in module.parameters() if weight.dim() > 1]
    for weight in significant:
        mantissa = np.frexp(weight.detach().numpy())[0] * 2**recipe.significant_bits
        assert np.array_equal(mantissa, np.round(mantissa))


@pytest.mark.slow
@pytest.mark.parametrize("name", MOST)
def test_it_takes_more_than_five_decibels_of_noise_away(name):
    """SI-SDR of 80 held-out mixtures, other voices, sentences and noises than in training; the interval is clear of 4.5 dB."""
    recipe = recipe_of(name)
    definition = models.get(recipe.model)
    config = definition.CONFIGS[recipe.config]
    module = definition.build(config).eval()
    checkpoint.load_into(module, definition.normalize_keys(checkpoint.read_state(path_of(name)), config), path_of(name), ())
    bank = ClipBank(open_dataset(recipe.data, "test", 80, ROOT / "recipes", CACHE), definition.preprocess_spec(definition.CONFIGS["half_causal" if recipe.model == "dccrnpp" else "half"]))
    clean, noisy = bank.labels["speech"].numpy(), bank.inputs["wave"].float().numpy()
    speech = predict(module, definition.train_forward, bank, batch=4)["speech"].numpy()
    for metric in ("si_sdr", "stoi"):
        gain, low, high = paired_bootstrap(METRICS[metric], clean, noisy, speech)
        print(f"{name}: {metric} {METRICS[metric](clean, noisy):.4f} -> {METRICS[metric](clean, speech):.4f}, gain {gain:.4f} [{low:.4f}, {high:.4f}], n {len(clean)}")
        if metric == "si_sdr":
            assert gain >= 5 and low > 4.5


@pytest.mark.slow
@pytest.mark.skipif(not native.available(), reason="needs the native engine: pip install ./native")
@pytest.mark.parametrize(("kind", "key", "divisor"), [("weight", "weight", 7), ("activation", "activation", 31)])
def test_the_recipe_s_gate_rejects_four_bit_weights_and_six_bit_activations(kind, key, divisor, tmp_path, monkeypatch):
    """A gate that lets everything through says nothing: the same recipe, with fewer values for weights or for activations, fails it."""
    monkeypatch.chdir(tmp_path)
    for folder in ("targets", "calibration"):
        (tmp_path / folder).mkdir()
    (tmp_path / "calibration/synthetic_speech.yaml").write_text((ROOT / "calibration/synthetic_speech.yaml").read_text())
    target = yaml.safe_load((ROOT / "targets/native_cpu.yaml").read_text())
    target["name"] = f"coarse_{kind}"
    target["numbers"][key]["divisor"] = divisor
    (tmp_path / f"targets/coarse_{kind}.yaml").write_text(yaml.safe_dump(target))
    recipe = yaml.safe_load((ROOT / "recipes/dccrn_half_native.yaml").read_text())
    recipe |= {"name": f"coarse_{kind}", "target": f"coarse_{kind}"}
    recipe["load"]["checkpoint"] = str(path_of("dccrn_half"))
    (tmp_path / "coarse.yaml").write_text(yaml.safe_dump(recipe))
    result = CliRunner().invoke(cli.app, ["build", "coarse.yaml", "--cache", str(CACHE)])
    report = json.loads((tmp_path / f"build/coarse_{kind}/report.json").read_text())
    gates = {gate["name"]: gate for gate in report["gates"]}
    print(kind, {name: (gate["value"], gate["pass"]) for name, gate in gates.items()})
    assert result.exit_code == 3 and not gates["si_sdr"]["pass"]
    assert math.isfinite(gates["si_sdr"]["value"])

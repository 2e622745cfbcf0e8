"""The checkpoints of the emotion models that ship: whole, small, better than either of their senses alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgekit import document, models
from edgekit.artifact import hash_file
from edgekit.datasets import open_dataset
from edgekit.flow import scored, task_of
from edgekit.metrics import METRICS, paired_bootstrap
from edgekit.models import checkpoint
from edgekit.training import ClipBank, TrainRecipe, predict, train_from_file

ROOT = Path(__file__).parents[1]
NAMES = ("aver", "jca", "leader_follower", "attsf", "avtca", "bilstm_sa")
LEAD = {"timeline": "ccc", "classes": "wa"}
CACHE = ROOT / ".edgekit"


def path_of(name: str) -> Path:
    return ROOT / "recipes/training" / document.load(ROOT / f"recipes/training/{name}_small.yaml", TrainRecipe).out


def load(name: str, path: Path):
    definition = models.get(name)
    config = definition.CONFIGS["small"]
    module = definition.fold(definition.build(config)).eval()
    checkpoint.load_into(module, definition.normalize_keys(checkpoint.read_state(path), config), path, getattr(definition, "OPTIONAL_KEYS", ()))
    return module


def said(name: str, path: Path, bank: ClipBank, modality: str = "both") -> np.ndarray:
    """What a checkpoint says of every held-out clip, as its task's metrics take it."""
    definition = models.get(name)
    flow = definition.flow(definition.CONFIGS["small"])
    return scored(flow, {k: v.numpy() for k, v in predict(load(name, path), definition.train_forward, bank, bank.silent(modality)).items()})


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_file_that_its_provenance_describes_and_at_most_one_megabyte(name):
    path = path_of(name)
    provenance = json.loads(checkpoint.provenance_of(path).read_text())
    recipe = document.load(ROOT / f"recipes/training/{name}_small.yaml", TrainRecipe)
    assert provenance["sha256"] == hash_file(path) and path.stat().st_size <= 1_000_000
    # Validated again: keys that recipes have gained since have their defaults.
    assert TrainRecipe.model_validate(provenance["recipe"], strict=False) == recipe, "trained as its recipe says"
    load(name, path)  # whole, and nothing in it is strange


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_both_senses_together_are_better_than_either_alone(name, tmp_path):
    """The same net, trained in the same way with the other input silenced; the interval of the difference is clear of 0."""
    definition = models.get(name)
    config = definition.CONFIGS["small"]
    flow = definition.flow(config)
    training = ROOT / f"recipes/training/{name}_small.yaml"
    data = open_dataset(document.load(training, TrainRecipe).data, "test", None, ROOT / "recipes", CACHE)
    bank = ClipBank(data, definition.preprocess_spec(config))
    truth = scored(flow, {f"label/{k}": v.numpy() for k, v in bank.labels.items()}, "label/")
    metric = METRICS[LEAD[task_of(flow)]]
    both = said(name, path_of(name), bank)
    print(f"{name}: {metric.title} {metric(truth, both):.4f}, n {len(truth)}")
    for modality in ("audio", "video"):
        path = train_from_file(training, [f"modality={modality}", f"out={tmp_path / modality}.safetensors"], CACHE)
        alone = said(name, path, bank, modality)
        gain, low, high = paired_bootstrap(metric, truth, alone, both)
        print(f"{name}: {modality} alone {metric(truth, alone):.4f}; together better by {gain:.4f} [{low:.4f}, {high:.4f}]")
        assert low > 0

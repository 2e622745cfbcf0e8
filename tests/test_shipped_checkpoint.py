"""What is claimed of recipes/checkpoints/mhlt_small.safetensors.xz, measured again on held-out clips.

Slow: the controls train MHLT anew on one modality (half an hour), and clips are rendered. The quick
part of the claim, that the checkpoint loads and is what its provenance says, runs always.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from edgekit.artifact import hash_file
from edgekit.datasets import open_dataset
from edgekit.models import checkpoint, mhlt
from edgekit.training import ClipBank, Schedule, predict, train, train_from_file

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "recipes/checkpoints/mhlt_small.safetensors.xz"
TRAINING = ROOT / "recipes/training/mhlt_small.yaml"


def load(path: Path):
    config = mhlt.CONFIGS["small"]
    module = mhlt.fold(mhlt.build(config)).eval()
    checkpoint.load_into(module, mhlt.normalize_keys(checkpoint.read_state(path), config), path, mhlt.OPTIONAL_KEYS)
    return mhlt.for_training(module)


def mae(module, bank: ClipBank, modality: str = "both") -> float:
    predicted = predict(module, mhlt.train_forward, bank, bank.silent(modality))["o"]
    return (predicted.clamp(-1, 1) - bank.labels["o"]).abs().mean().item()


@pytest.fixture(scope="module")
def cache_root() -> Path:
    return ROOT / ".edgekit"


@pytest.fixture(scope="module")
def held_out(cache_root) -> ClipBank:
    return ClipBank(open_dataset("synthetic_av", "test", None, ROOT / "recipes", cache_root), mhlt.preprocess_spec(mhlt.CONFIGS["small"]))


def test_it_is_the_file_that_its_provenance_describes():
    provenance = json.loads(checkpoint.provenance_of(CHECKPOINT).read_text())
    assert provenance["sha256"] == hash_file(CHECKPOINT)
    assert provenance["recipe"]["model"] == "mhlt" and provenance["recipe"]["config"] == "small"


def test_it_is_at_most_ten_megabytes_and_loads_whole():
    assert CHECKPOINT.stat().st_size <= 10_000_000
    assert sum(p.numel() for p in load(CHECKPOINT).parameters()) == 4_950_019 - 128  # 128: g of the weight norm, folded


@pytest.mark.slow
def test_its_error_is_at_most_half_of_the_best_constants_and_not_trivial(held_out):
    labels = held_out.labels["o"]
    constant = (labels - labels.median()).abs().mean().item()
    error = mae(load(CHECKPOINT), held_out)
    print(f"MAE {error:.4f}, best constant {constant:.4f}, n {len(labels)}")
    assert 0.03 <= error <= constant / 2


@pytest.mark.slow
def test_three_more_epochs_change_its_error_by_less_than_0_003(held_out, cache_root, tmp_path):
    recipe = json.loads(checkpoint.provenance_of(CHECKPOINT).read_text())["recipe"]
    joint = recipe["joint"]
    bank = ClipBank(open_dataset("synthetic_av", "train", recipe["clips"], ROOT / "recipes", cache_root), mhlt.preprocess_spec(mhlt.CONFIGS["small"]))
    module = load(CHECKPOINT)
    before = mae(module, held_out)
    # At the rate that training ended with: the schedule's tail, drawn out.
    schedule = Schedule(epochs=3, batch=joint["batch"], lr=joint["lr"] * joint["final_lr"], final_lr=1.0, seed=7)
    after = mae(train(module, mhlt.train_forward, bank, schedule, tmp_path), held_out)
    print(f"MAE {before:.4f} -> {after:.4f}, schedule {asdict(schedule)}")
    assert abs(after - before) < 0.003


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["audio", "video"])
def test_one_modality_alone_has_at_least_1_25_times_its_error(modality, held_out, cache_root, tmp_path):
    both = mae(load(CHECKPOINT), held_out)
    path = train_from_file(TRAINING, [f"modality={modality}", f"out={tmp_path / 'alone.safetensors'}"], cache_root)
    alone = mae(load(path), held_out, modality)
    print(f"{modality} alone: MAE {alone:.4f}, both {both:.4f}, ratio {alone / both:.2f}")
    assert alone >= 1.25 * both

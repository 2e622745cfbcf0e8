"""Training learns, goes on after a kill as if nothing had happened, and writes a whole checkpoint or none."""

from __future__ import annotations

import itertools
import json
import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from edgekit import training
from edgekit.artifact import hash_file
from edgekit.datasets import DATASETS, Clip
from edgekit.errors import DataError, RecipeError, ResourceError
from edgekit.losses import regression_loss
from edgekit.models import checkpoint, mhlt, tiny
from edgekit.training import MODALITIES, ClipBank, Schedule, augment, finetune, predict, save_checkpoint, train, train_from_file

ROOT = Path(__file__).parents[1]
CFG = tiny.Config()
SPEC = tiny.preprocess_spec(CFG)
QUICK = Schedule(epochs=3, batch=8, lr=3e-3, seed=5)


class Bright:
    """Clips whose brightness is their valence: a toy can learn that."""

    metrics, licence = ("mae",), "CC-BY-4.0"

    def __init__(self, count: int = 24, first: int = 0, labels: tuple[str, ...] = ("o", "a", "v")):
        self.name, self.source, self.labels = "bright", Path("bright.yaml"), labels
        self.ids = [f"c{i}" for i in range(first, first + count)]

    def clip(self, id: str) -> Clip:
        rng = np.random.default_rng(int(id[1:]))
        valence = float(rng.uniform(-1, 1))
        frames = np.clip(rng.normal(120 + 90 * valence, 12, (8, 16, 16, 3)), 0, 255).astype(np.uint8)
        return Clip(id, frames, 8.0, rng.integers(-9000, 9000, 8000).astype(np.int16), 16_000, {k: valence for k in self.labels})

    def digest(self) -> str:
        return f"{len(self.ids):064d}"


KEYS = ("labels",)


def open_split(description, split, limit, cache_root) -> Bright:
    """This module is a loader of data sets too."""
    first = {"train": 0, "calibration": 1000, "test": 2000}[split]
    return Bright(limit or description["splits"][split], first, tuple(description.get("labels", ("o", "a", "v"))))


@pytest.fixture(scope="module")
def bank() -> ClipBank:
    return ClipBank(Bright(), SPEC)


def fresh(seed: int = 0) -> tiny.Tiny:
    torch.manual_seed(seed)
    return tiny.build(CFG)


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def mae(module, bank) -> float:
    return (predict(module, tiny.train_forward, bank)["o"] - bank.labels["o"]).abs().mean().item()


class Killed(BaseException):
    pass


# --------------------------------------------------------------------------- the loop


def test_training_learns(bank, tmp_path):
    module, losses = fresh(), []
    before = mae(module, bank)
    train(module, tiny.train_forward, bank, replace(QUICK, epochs=30, lr=1e-2), tmp_path, after_epoch=lambda epoch, loss: losses.append(loss))
    assert len(losses) == 30 and losses[-1] < 0.5 * losses[0]
    assert mae(module, bank) < 0.5 * before
    assert not module.training


def test_the_same_seed_gives_the_same_weights_and_another_others(bank, tmp_path):
    states = []
    for n, seed in enumerate((5, 5, 6)):
        (tmp_path / str(n)).mkdir()
        states.append(state_of(train(fresh(), tiny.train_forward, bank, replace(QUICK, seed=seed), tmp_path / str(n))))
    assert equal(states[0], states[1]) and not equal(states[0], states[2])


@pytest.mark.parametrize("killed_in", [1, 2])
def test_a_killed_run_goes_on_and_equals_an_unbroken_one_bit_for_bit(bank, tmp_path, killed_in):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    want = state_of(train(fresh(), tiny.train_forward, bank, QUICK, tmp_path / "whole"))

    def kill(epoch, loss):
        if epoch == killed_in:
            raise Killed

    with pytest.raises(Killed):
        train(fresh(), tiny.train_forward, bank, QUICK, tmp_path / "killed", after_epoch=kill)
    torch.manual_seed(99)  # another process draws from another state
    epochs = []
    got = train(fresh(seed=7), tiny.train_forward, bank, QUICK, tmp_path / "killed", after_epoch=lambda epoch, loss: epochs.append(epoch))
    assert epochs == list(range(killed_in + 1, 4))
    assert equal(state_of(got), want)


def test_a_kill_within_an_epoch_costs_that_epoch_only(bank, tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    want = state_of(train(fresh(), tiny.train_forward, bank, QUICK, tmp_path / "whole"))
    calls = []

    def forward(module, batch):
        calls.append(1)
        if len(calls) == 5:  # the second batch of epoch 2 of 3
            raise Killed
        return tiny.train_forward(module, batch)

    with pytest.raises(Killed):
        train(fresh(), forward, bank, QUICK, tmp_path / "killed")
    assert equal(state_of(train(fresh(), forward, bank, QUICK, tmp_path / "killed")), want) and len(calls) == 5 + 6


def test_a_finished_run_is_read_and_not_trained_again(bank, tmp_path):
    want = state_of(train(fresh(), tiny.train_forward, bank, QUICK, tmp_path))

    def forward(module, batch):
        raise AssertionError("nothing is left to train")

    assert equal(state_of(train(fresh(3), forward, bank, QUICK, tmp_path)), want)


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "not a state", "another run's"])
def test_a_training_state_that_is_not_this_runs_is_ignored(bank, tmp_path, damage):
    (tmp_path / "whole").mkdir()
    (tmp_path / "damaged").mkdir()
    want = state_of(train(fresh(), tiny.train_forward, bank, QUICK, tmp_path / "whole"))
    path = tmp_path / "damaged/training.pt"
    raw = (tmp_path / "whole/training.pt").read_bytes()
    if damage == "another run's":
        train(fresh(), tiny.train_forward, bank, replace(QUICK, lr=1e-3), tmp_path / "damaged")
    elif damage == "not a state":
        torch.save(torch.ones(2), path)
    else:
        path.write_bytes({"truncated": raw[: len(raw) // 2], "empty": b"", "garbage": b"\x00" * 500}[damage])
    assert equal(state_of(train(fresh(), tiny.train_forward, bank, QUICK, tmp_path / "damaged")), want)


def test_a_loss_that_is_not_finite_is_refused_with_its_epoch(bank, tmp_path):
    module = fresh()
    with torch.no_grad():
        module.fc.weight[0, 0] = float("nan")
    with pytest.raises(DataError, match=r"train: the loss is nan in epoch 1\n  hint: look for NaN in the weights") as caught:
        train(module, tiny.train_forward, bank, QUICK, tmp_path)
    assert caught.value.exit_code == 2 and not list(tmp_path.iterdir())


def test_clips_without_a_label_that_the_model_predicts_are_refused(tmp_path):
    anger = ClipBank(Bright(4, labels=("anger", "joy")), SPEC)
    with pytest.raises(DataError, match=r"the clips have labels `anger`, `joy`, the model predicts `o`, `a`, `v`"):
        train(fresh(), tiny.train_forward, anger, QUICK, tmp_path)


def test_a_label_of_some_clips_only_is_refused():
    data = Bright(4)
    clip = data.clip
    data.clip = lambda id: replace(clip(id), labels={"o": 0.0}) if id == "c2" else clip(id)
    with pytest.raises(DataError, match="bright.yaml: label `a` is missing on some clips"):
        ClipBank(data, SPEC)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")])
def test_a_full_disk_is_one_clear_error_and_keeps_the_last_state(bank, tmp_path, monkeypatch, error):
    train(fresh(), tiny.train_forward, bank, QUICK, tmp_path)
    last = (tmp_path / "training.pt").read_bytes()

    def full(*_):
        (tmp_path / "training.part").write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ResourceError, match=r"training.pt: training state cannot be written") as caught:
        train(fresh(), tiny.train_forward, bank, replace(QUICK, seed=6), tmp_path)
    assert caught.value.exit_code == 5
    assert [f.name for f in tmp_path.iterdir()] == ["training.pt"] and (tmp_path / "training.pt").read_bytes() == last


def test_the_rate_warms_up_then_falls_to_its_share():
    s = Schedule(lr=1.0, final_lr=0.1, warmup=0.1)
    rates = [s.lr_at(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert all(a >= b for a, b in itertools.pairwise(rates[10:])) and rates[10] == 1.0 and 0.1 <= rates[-1] < 0.101


# --------------------------------------------------------------------------- distillation


def test_distillation_pulls_towards_the_teacher(tmp_path):
    """Labels say one thing, the teacher another; with enough weight the teacher wins, and it is left as it was."""
    bank = ClipBank(Bright(16), SPEC)
    teacher = fresh(2)
    with torch.no_grad():
        teacher.fc.bias.copy_(torch.tensor([3.0, -3.0, 2.0]))
    taught_by, answer = state_of(teacher), predict(teacher, tiny.train_forward, bank)

    def distance(weight):
        (tmp_path / str(weight)).mkdir()
        student = finetune(fresh(3), teacher.train(), tiny.train_forward, Bright(16), SPEC, replace(QUICK, epochs=15, lr=3e-2, distill=weight), tmp_path / str(weight))
        out = predict(student, tiny.train_forward, bank)
        return regression_loss(out, answer).item()

    alone, distilled = distance(0.0), distance(8.0)
    assert distilled < 0.5 * alone
    assert equal(state_of(teacher), taught_by)
    assert not teacher.training, "a teacher's dropout would be noise in its answers"


def test_a_teacher_alone_can_teach_clips_without_labels(tmp_path):
    train(fresh(), tiny.train_forward, ClipBank(Bright(4, labels=("anger",)), SPEC), replace(QUICK, epochs=1, distill=1.0), tmp_path, teacher=fresh(1))
    assert (tmp_path / "training.pt").is_file()


def test_the_loss_is_the_sum_of_mean_absolute_errors_of_heads_with_a_label():
    outputs = {"o": torch.tensor([1.0, 0.0]), "a": torch.tensor([2.0, 2.0]), "v": torch.tensor([9.0, 9.0])}
    assert regression_loss(outputs, {"o": torch.tensor([0.0, 0.0]), "a": torch.tensor([1.0, 5.0])}).item() == pytest.approx(0.5 + 2.0)


# --------------------------------------------------------------------------- augmentation


def batch_of(n: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"video": torch.randn(n, 2, 3, 4, 32, 32, generator=generator), "wave": torch.randn(n, 1600, generator=generator)}


def test_augmentation_keeps_shapes_and_leaves_its_input_alone():
    batch = batch_of()
    before = {k: v.clone() for k, v in batch.items()}
    out = augment(batch, torch.Generator().manual_seed(2))
    assert {k: (v.shape, v.dtype) for k, v in out.items()} == {k: (v.shape, v.dtype) for k, v in batch.items()}
    assert equal(batch, before) and not torch.equal(out["video"], batch["video"]) and not torch.equal(out["wave"], batch["wave"])


def test_augmentation_follows_its_generator_and_no_other():
    outs = []
    for seed in (2, 2, 3):
        torch.manual_seed(len(outs))
        outs.append(augment(batch_of(), torch.Generator().manual_seed(seed)))
    assert equal(outs[0], outs[1]) and not torch.equal(outs[0]["video"], outs[2]["video"])


def test_augmentation_mirrors_shifts_and_relights_whole_clips():
    """Every pixel is one of the clip's own, times one gain per sample; samples of a wave only move in time."""
    batch = batch_of(16)
    out = augment(batch, torch.Generator().manual_seed(4))
    gains, mirrored = [], 0
    for before, after in zip(batch["video"], out["video"], strict=True):
        gain = (after.square().sum() / before.square().sum()).sqrt().item()
        gains.append(gain)
        candidates = [(before.flip(-1) if flip else before).roll((y, x), (-2, -1)) for flip in (0, 1) for y in range(-2, 3) for x in range(-2, 3)]
        fits = [torch.allclose(c * gain, after, atol=1e-4) for c in candidates]
        assert sum(fits) == 1
        mirrored += fits.index(True) >= 25
    assert 0.8 <= min(gains) < 0.9 and 1.1 < max(gains) <= 1.2 and 0 < mirrored < 16
    for before, after in zip(batch["wave"], out["wave"], strict=True):
        assert torch.equal(before.sort().values, after.sort().values)


# --------------------------------------------------------------------------- banks and modalities


def test_a_bank_holds_preprocessed_clips_and_gives_them_back_as_float32(bank):
    from edgekit.preprocess import preprocess

    assert len(bank) == 24 and set(bank.inputs) == {"video"}
    inputs, labels = next(bank.batches(5, torch.tensor([3, 1, 2, 0, 4, 5]), ["video"]))
    want = preprocess(SPEC, Bright().clip("c3"))["video"]
    assert inputs["video"].dtype is torch.float32 and inputs["video"].shape == (5, 4, 3, 2, 16, 16)
    assert torch.equal(inputs["video"][0], torch.from_numpy(want.astype(np.float16)).float())
    assert labels["o"][0].item() == pytest.approx(Bright().clip("c3").labels["o"])


def test_one_modality_alone_never_sees_the_other():
    bank = ClipBank(Bright(3), mhlt.preprocess_spec(mhlt.CONFIGS["tiny"]))
    seen = []

    def forward(module, batch):
        seen.append({k: (len(v), bool(v.any())) for k, v in batch.items()})
        return {"o": torch.zeros(3)}

    for modality in MODALITIES:
        predict(nn.Identity(), forward, bank, bank.silent(modality))
    assert seen == [
        {"video": (3, True), "wave": (3, True)},
        {"video": (1, False), "wave": (3, True)},
        {"video": (3, True), "wave": (1, False)},
    ]


def test_predictions_are_in_the_clips_order_whatever_the_batch(bank):
    one, many = (predict(fresh(), tiny.train_forward, bank, batch=size) for size in (1, 7))
    assert all(torch.allclose(one[k], many[k], atol=1e-6) for k in one) and len(one["o"]) == 24


# --------------------------------------------------------------------------- the checkpoint


def test_a_checkpoint_is_float16_readable_by_others_and_described(tmp_path):
    old = os.umask(0o022)
    try:
        save_checkpoint(fresh(), tmp_path / "new/out.safetensors", {"licence": "CC0-1.0"})
    finally:
        os.umask(old)
    path = tmp_path / "new/out.safetensors"
    assert sorted(f.name for f in path.parent.iterdir()) == ["out.json", "out.safetensors"]
    assert [stat.S_IMODE(f.stat().st_mode) for f in path.parent.iterdir()] == [0o644, 0o644]
    assert json.loads(path.with_suffix(".json").read_text()) == {"licence": "CC0-1.0", "sha256": hash_file(path)}
    stored = load_file(path)
    assert all(v.dtype is torch.float16 and torch.equal(v, fresh().state_dict()[k].half()) for k, v in stored.items())
    again = fresh(9)
    assert checkpoint.load_into(again, checkpoint.read_state(path), path) == []


def test_what_float16_cannot_hold_stays_float32(tmp_path):
    module = nn.BatchNorm3d(2)
    module.running_var.fill_(3e5)  # the variance of pixels that nobody scaled
    save_checkpoint(module, tmp_path / "a.safetensors", {})
    stored = load_file(tmp_path / "a.safetensors")
    assert stored["running_var"].dtype is torch.float32 and stored["running_var"].tolist() == [3e5, 3e5]
    assert stored["weight"].dtype is torch.float16 and stored["num_batches_tracked"].dtype is torch.int64


def test_weights_laid_out_for_training_are_stored_plainly(tmp_path):
    torch.manual_seed(0)
    module = mhlt.for_training(mhlt.build(mhlt.CONFIGS["tiny"]))
    save_checkpoint(module, tmp_path / "a.safetensors", {})
    assert all(torch.equal(v.float(), module.state_dict()[k].half().float()) for k, v in load_file(tmp_path / "a.safetensors").items() if v.is_floating_point())


@pytest.mark.parametrize("fails_at", [".safetensors.part", ".json.part"])
def test_a_full_disk_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch, fails_at):
    path = tmp_path / "a.safetensors"
    save_checkpoint(fresh(1), path, {"n": 1})
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    write = Path.write_bytes

    def full(self, content):
        write(self, content[: len(content) // 2])
        if self.name.endswith(fails_at):
            raise OSError(28, "No space left on device")
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ResourceError, match=r"a.safetensors: cannot be written \(No space left on device\)\n  hint: free some disk space"):
        save_checkpoint(fresh(2), path, {"n": 2})
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    module = fresh()
    with torch.no_grad():
        module.fc.bias[1] = float("inf")
    with pytest.raises(DataError, match="`fc.bias` holds NaN or infinity"):
        save_checkpoint(module, tmp_path / "a.safetensors", {})
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------- edgekit train


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Write training/toy.yaml for the data set `bright`; returns its path."""
    monkeypatch.setitem(DATASETS, "bright", __name__)
    (tmp_path / "calibration").mkdir()
    (tmp_path / "calibration/bright.yaml").write_text("dataset: bright\nsplits: {train: 24, calibration: 8}\n")
    (tmp_path / "training").mkdir()

    def recipe(**changes):
        lines = {"model": "tiny", "config": "tiny", "data": "bright", "validate_clips": "8", "joint": "{epochs: 2, batch: 8, lr: 3.0e-3}", "out": "../out/toy.safetensors", **changes}
        (tmp_path / "training/toy.yaml").write_text("".join(f"{key}: {value}\n" for key, value in lines.items() if value is not None))
        return tmp_path / "training/toy.yaml"

    return recipe


def test_a_recipe_trains_and_leaves_a_checkpoint_with_its_provenance(recipe, tmp_path):
    path = train_from_file(recipe(), [], tmp_path / "cache")
    assert path.resolve() == (tmp_path / "out/toy.safetensors").resolve()
    told = json.loads(path.with_suffix(".json").read_text())
    assert told["trained_by"] == "edgekit train" and told["sha256"] == hash_file(path)
    assert told["recipe"]["model"] == "tiny" and told["recipe"]["joint"] == {"epochs": 2, "batch": 8, "lr": 3e-3, "final_lr": 0.03}
    assert told["train_data"] == Bright(24).digest() and told["validation_data"] == Bright(8).digest()
    assert [(row["phase"], row["epoch"]) for row in told["log"]] == [("both", 1), ("both", 2)]
    assert set(told["log"][0]["validation"]) == {"o", "a", "v"}
    module = tiny.build(CFG)
    assert checkpoint.load_into(module, checkpoint.read_state(path), path) == []


def test_the_licence_is_the_recipes_or_the_datas_or_unknown(recipe, tmp_path, monkeypatch):
    def licence(**changes):
        return json.loads(train_from_file(recipe(**changes), ["joint.epochs=1"], tmp_path / "cache").with_suffix(".json").read_text())["licence"]

    assert licence(licence="MIT") == "MIT"
    assert licence() == "CC-BY-4.0"
    monkeypatch.delattr(Bright, "licence")
    assert licence() is None


def test_models_of_the_shipped_set_are_cc0():
    from edgekit.datasets import open_dataset

    assert open_dataset("synthetic_av", "train", None, ROOT / "recipes/training", Path("nowhere")).licence == "CC0-1.0"


def test_a_resumed_run_tells_of_all_its_epochs(recipe, tmp_path, monkeypatch):
    whole = train_from_file(recipe(), [], tmp_path / "whole").read_bytes()
    monkeypatch.setattr(training, "save_checkpoint", lambda *_, **__: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        train_from_file(recipe(), [], tmp_path / "cache")
    monkeypatch.undo()
    monkeypatch.setitem(DATASETS, "bright", __name__)
    (log,) = (tmp_path / "cache").rglob("log.jsonl")
    log.write_text(log.read_text() + '{"phase": "both", "ep')  # cut off by the kill
    path = train_from_file(recipe(), [], tmp_path / "cache")
    assert path.read_bytes() == whole
    assert [row["epoch"] for row in json.loads(path.with_suffix(".json").read_text())["log"]] == [1, 2]


def test_a_run_killed_by_a_signal_goes_on_bit_for_bit(recipe, tmp_path):
    """The real thing: SIGKILL while an epoch runs, in a process of its own."""
    yaml = recipe(joint="{epochs: 6, batch: 4, lr: 3.0e-3}")
    script = f"""
import sys, time
sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
import test_training as t
from edgekit.datasets import DATASETS
from edgekit.models import tiny
DATASETS["bright"] = "test_training"
forward = tiny.train_forward
def slow(module, batch):
    time.sleep(0.05)
    return forward(module, batch)
tiny.train_forward = slow
t.train_from_file({str(yaml)!r}, [], t.Path({str(tmp_path / "cache")!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "cache").rglob("log.jsonl")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "out").exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        resumed = train_from_file(yaml, [], tmp_path / "cache").read_bytes()
        assert resumed == train_from_file(yaml, [], tmp_path / "other").read_bytes()
    finally:
        torch.set_num_threads(threads)


def test_towers_are_trained_first_on_their_own_label(recipe, tmp_path):
    yaml = recipe(model="mhlt", towers="{video: [{epochs: 1, batch: 4, lr: 1.0e-3}, {epochs: 1, batch: 4, lr: 1.0e-3}], audio: [{epochs: 1, batch: 4, lr: 1.0e-3}]}", joint="{epochs: 1, batch: 4, lr: 1.0e-3}", clips="4", validate_clips="2")
    told = json.loads(train_from_file(yaml, [], tmp_path / "cache").with_suffix(".json").read_text())
    assert [(row["phase"], sorted(row["validation"])) for row in told["log"]] == [("video 1", ["v"]), ("video 2", ["v"]), ("audio 1", ["a"]), ("both", ["a", "o", "v"])]
    assert len(list((tmp_path / "cache").rglob("training.pt"))) == 4
    alone = json.loads(train_from_file(yaml, ["modality=audio"], tmp_path / "cache").with_suffix(".json").read_text())
    assert [row["phase"] for row in alone["log"]] == ["audio 1", "audio"]


def test_a_model_may_select_by_the_training_clips_between_its_towers_and_the_rest(recipe, tmp_path, monkeypatch):
    """Once, from the train split alone; what it writes into the module is in the checkpoint."""
    from edgekit.models import mhlt

    happened = []

    def select(module, bank, seed):
        happened.append((len(bank), seed, sorted(bank.constants)))
        next(module.buffers()).fill_(7.0)

    monkeypatch.setattr(mhlt, "select", select, raising=False)
    monkeypatch.setattr(training, "train", lambda module, *args, what, **kwargs: happened.append(what))
    phase = "{epochs: 1, batch: 4, lr: 1.0e-3}"
    yaml = recipe(model="mhlt", towers=f"{{video: [{phase}], audio: [{phase}]}}", joint=phase, clips="4", validate_clips="2", seed="7")
    path = train_from_file(yaml, [], tmp_path / "cache")
    assert happened == ["video 1", "audio 1", (4, 7, []), "both"]
    [name] = [name for name, _ in mhlt.build(mhlt.CONFIGS["tiny"]).named_buffers()][:1]
    assert (checkpoint.read_state(path)[name] == 7).all()
    happened.clear()
    train_from_file(yaml, ["modality=audio"], tmp_path / "cache")
    assert happened == ["audio 1", (4, 7, ["video"]), "audio"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "tinny"}, r"toy.yaml:1: unknown model `tinny`\n  hint: did you mean `tiny`"),
        ({"config": "large"}, r"toy.yaml:2: model `tiny` has no configuration `large`"),
        ({"out": "toy.pt"}, r"toy.yaml:6: `out` must be a file that ends in .safetensors or .safetensors.xz, got `toy.pt`"),
        ({"towers": "{ears: [{epochs: 1, lr: 0.1}]}"}, r"toy.yaml:7: model `tiny` has no tower `ears`"),
        ({"model": "mhlt", "towers": "{vido: [{epochs: 1, lr: 0.1}]}"}, r"toy.yaml:7: model `mhlt` has no tower `vido`\n  hint: did you mean `video`"),
        ({"modality": "audio"}, r"toy.yaml:7: model `tiny` has no input left with `modality: audio`"),
        ({"modality": "smell"}, r"toy.yaml:7: `modality` cannot be `smell`"),
        ({"joint": "{epochs: 0, lr: 0.1}"}, r"toy.yaml:5: `joint.epochs` must be at least 1, got 0"),
        ({"joint": "{epochs: 1, lr: -1}"}, r"toy.yaml:5: `joint.lr` must be greater than 0"),
        ({"joint": "{epochs: 1, lr: 0.1, momentum: 1}"}, r"toy.yaml:5: unknown key `momentum`"),
        ({"joint": None}, r"toy.yaml:1: `joint` is missing"),
        ({"licence": "''"}, r"toy.yaml:7: `licence` must be text of length at least 1"),
        ({"data": "brigth"}, r"data set `brigth`: there is no `calibration/brigth.yaml`\n  hint: did you mean `bright`"),
        ({"clips": "25"}, r"bright.yaml:2: 25 clips asked for"),
        ({"model": "[tiny"}, r"toy.yaml:2: not valid YAML"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_recipe_is_refused_with_its_line_before_any_clip_is_read(recipe, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(Bright, "clip", lambda self, id: pytest.fail("a clip was read"))
    with pytest.raises(RecipeError, match=message) as caught:
        train_from_file(recipe(**changes), [], tmp_path / "cache")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "cache/training").exists() and not (tmp_path / "out").exists()


def test_the_shipped_training_recipe_is_of_the_shipped_checkpoint():
    from edgekit import document

    for path in (ROOT / "recipes/training").glob("*.yaml"):
        told = document.load(path, training.TrainRecipe)
        assert (path.parent / told.out).resolve().parent == ROOT / "recipes/checkpoints"
        assert told.modality == "both"


def test_what_frozen_encoders_give_stands_in_place_of_what_they_read(bank):
    """A silenced input is encoded once for all, and what comes out can be trained on."""
    scale = nn.Parameter(torch.tensor(2.0))

    def encode(batch):
        return {"bright": batch["video"].mean((1, 2, 3, 4, 5), keepdim=False)[:, None] * scale, "silence": torch.zeros(1, 3)}

    coded = bank.encoded(encode, batch=7)
    assert set(coded.inputs) == {"bright"} and coded.constants["silence"].shape == (1, 3) and len(coded) == len(bank)
    want = bank.inputs["video"].float().mean((1, 2, 3, 4, 5))[:, None] * 2
    torch.testing.assert_close(coded.inputs["bright"], want.detach())
    weight = nn.Parameter(torch.ones(3, 1))
    for inputs, _ in coded.batches(8, torch.arange(len(coded)), coded.inputs):
        (inputs["silence"] @ weight + inputs["bright"].mean()).sum().backward()
    assert weight.grad is not None and scale.grad is None


# --------------------------------------------------------------------------- what is saved small, and what is trained for INT8


@pytest.mark.parametrize(("bits", "most"), [(8, 127), (7, 63)])
def test_rounded_outputs_have_the_values_of_so_many_bits_while_training_and_gradients_pass(bits, most):
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU())
    x = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    plain = module.eval()(x)
    with training.rounded_outputs(module, ["1"], bits):
        assert torch.equal(module.eval()(x), plain)
        rounded = module.train()(x)
        rounded.sum().backward()
    assert len(rounded.unique()) <= most + 1 and len(plain.unique()) > 10_000  # a ReLU's outputs have no negative half
    step = plain.flatten().abs().kthvalue(round(0.9999 * plain.numel())).values / most
    inside = plain < most * step
    assert (rounded - plain)[inside].abs().max() <= 0.5001 * step
    weight = torch.autograd.grad(plain.sum(), module[0].weight)[0]
    assert torch.allclose(module[0].weight.grad, weight)
    assert torch.equal(module.train()(x), plain), "nothing is left behind"


def test_jitter_rounds_on_another_grid_every_batch():
    module = torch.nn.Sequential(torch.nn.Identity())
    x = torch.linspace(-1, 1, 5001)
    with training.rounded_outputs(module, ["0"], jitter=0.3):
        torch.manual_seed(0)
        grids = {round((values[1:] - values[:-1]).max().item() * 127, 3) for values in (module.train()(x).unique() for _ in range(20))}
    assert len(grids) == 20 and min(grids) >= 0.69 and max(grids) <= 1.31


def test_layers_to_round_that_are_not_there_are_refused():
    with pytest.raises(RecipeError, match=r"here: `decoder\.\*` matches no layer"), training.rounded_outputs(torch.nn.Sequential(torch.nn.ReLU()), ["0", "decoder.*"], where="here"):
        pass


def test_a_layer_to_round_that_is_only_called_in_parts_is_named(bank):
    class Parts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.block = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(3))

        def forward(self, x):
            return self.block[1:](self.block[0](x))

    module = Parts()

    def forward(module, inputs):
        return {"bright": module(next(iter(inputs.values())))}

    assert training.never_called(module, forward, bank, ["block.1"]) == {}
    assert training.never_called(module, forward, bank, ["block*"]) == {"block": "block.1"}
    assert not module.block._forward_hooks and not module.block[1]._forward_hooks
    with pytest.raises(RecipeError, match=r"here: `head` matches no layer"):
        training.never_called(module, forward, bank, ["head"], "here")


@pytest.mark.parametrize("bits", [4, 7, 11])
def test_rounded_weights_have_so_many_significant_bits(bits):
    module = torch.nn.Linear(50, 50)
    before, bias = module.weight.detach().clone(), module.bias.detach().clone()
    training.round_weights(module, bits)
    mantissa = torch.frexp(module.weight.detach())[0] * 2**bits
    assert torch.equal(mantissa, mantissa.round()) and torch.equal(module.bias, bias)
    assert ((module.weight - before).abs() <= before.abs() * 2.0**-bits).all()


def test_a_checkpoint_may_be_packed(tmp_path):
    module = torch.nn.Linear(64, 64)
    training.round_weights(module, 6)
    for name in ("plain.safetensors", "packed.safetensors.xz"):
        training.save_checkpoint(module, tmp_path / name, {"trained_by": "a test"})
    plain, packed = (checkpoint.read_state(tmp_path / name) for name in ("plain.safetensors", "packed.safetensors.xz"))
    assert all(torch.equal(plain[key], packed[key]) for key in plain) and set(plain) == set(packed)
    assert (tmp_path / "packed.safetensors.xz").stat().st_size < 0.75 * (tmp_path / "plain.safetensors").stat().st_size
    assert (tmp_path / "packed.json").is_file() and checkpoint.provenance_of(tmp_path / "packed.safetensors.xz") == tmp_path / "packed.json"

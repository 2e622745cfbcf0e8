"""Training and fine-tuning, resumable after a kill, on the CPU.

One loop serves both: `edgekit train` starts from fresh weights, the prune stage from pruned ones
with the original as teacher. The state is written after every epoch, and every epoch's order and
augmentation come from a generator seeded by (seed, epoch), so a resumed run equals an unbroken one.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import models
from .artifact import file_digest, sha256_of
from .datasets import Dataset, open_dataset
from .errors import CheckpointError, DataError, RecipeError, ResourceError
from .losses import regression_loss
from .preprocess import preprocess
from .progress import note, track

if TYPE_CHECKING:
    from torch import Tensor, nn

MODALITIES = {"both": (), "audio": ("video",), "video": ("wave",)}  # → inputs that are silenced


@dataclass(frozen=True)
class Schedule:
    """How to train. The learning rate warms up, then falls by a cosine to `final_lr` of its peak."""

    epochs: int = 20
    batch: int = 32
    lr: float = 6e-4
    final_lr: float = 0.03
    warmup: float = 0.08  # share of all steps
    weight_decay: float = 0.01
    distill: float = 0.0  # weight of the teacher's outputs beside the labels
    modality: str = "both"
    seed: int = 1

    def lr_at(self, step: int, steps: int) -> float:
        warm = max(1, round(self.warmup * steps))
        if step < warm:
            return self.lr * (step + 1) / warm
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))
        return self.lr * (self.final_lr + (1 - self.final_lr) * cosine)


class ClipBank:
    """A data set's clips, preprocessed once and held in memory as float16 (about 0.9 MB each for `small`)."""

    def __init__(self, dataset: Dataset, spec: dict, what: str = "load training clips"):
        import torch

        inputs: dict[str, list] = {}
        labels: dict[str, list] = {}
        for id in track(dataset.ids, what):
            clip = dataset.clip(id)
            for name, value in preprocess(spec, clip).items():
                inputs.setdefault(name, []).append(value.astype(np.float16))
            for name, value in clip.labels.items():
                labels.setdefault(name, []).append(value)
        ragged = [k for k, v in labels.items() if len(v) != len(dataset.ids)]
        if ragged:
            raise DataError(f"{dataset.source}: label `{ragged[0]}` is missing on some clips")
        self.inputs = {k: torch.from_numpy(np.stack(v)) for k, v in inputs.items()}
        self.labels = {k: torch.tensor(v, dtype=torch.float32) for k, v in labels.items()}

    def __len__(self) -> int:
        return len(next(iter(self.labels.values())))

    def batches(self, size: int, order: Tensor) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        for index in order.split(size):
            yield {k: v[index].float() for k, v in self.inputs.items()}, {k: v[index] for k, v in self.labels.items()}


def augment(batch: dict[str, Tensor], generator) -> dict[str, Tensor]:
    """Mirror, shift and relight the video [n, k, 3, t, h, w], shift the wave [n, samples] in time; labels stay true."""
    import torch

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    out = dict(batch)
    if "video" in out:
        video = out["video"].clone()
        for i in range(len(video)):
            if uniform(0, 1) < 0.5:
                video[i] = video[i].flip(-1)
            reach = video.shape[-1] // 16
            shift = [round(uniform(-reach, reach)) for _ in range(2)]
            video[i] = video[i].roll(shift, (-2, -1)) * uniform(0.8, 1.2)
        out["video"] = video
    if "wave" in out:
        reach = out["wave"].shape[-1] // 16
        out["wave"] = torch.stack([w.roll(round(uniform(-reach, reach))) for w in out["wave"]])
    return out


def train(
    module: nn.Module,
    forward: Callable,
    bank: ClipBank,
    schedule: Schedule,
    scratch: Path,
    teacher: nn.Module | None = None,
    after_epoch: Callable[[int, float], None] | None = None,
    what: str = "train",
) -> nn.Module:
    """Train `module` in place and return it in eval mode. A run that was killed goes on where it stood.

    Args:
        forward: (module, batch) → {output: [n]}.
        scratch: a folder that survives a kill; the state file in it belongs to exactly this run.
        teacher: with `schedule.distill`, its outputs on the same batch are targets too.

    Raises:
        DataError: the loss is not finite; the message says in which epoch.
    """
    import torch

    state_path = scratch / "training.pt"
    optimizer = torch.optim.AdamW(module.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay)
    run = sha256_of({**asdict(schedule), "clips": len(bank), "parameters": sum(p.numel() for p in module.parameters())})
    first = _resume(state_path, run, module, optimizer)
    steps_per_epoch = math.ceil(len(bank) / schedule.batch)
    steps = schedule.epochs * steps_per_epoch
    silent = MODALITIES[schedule.modality]
    for epoch in range(first, schedule.epochs):
        generator = torch.Generator().manual_seed(schedule.seed * 10_007 + epoch)
        torch.manual_seed(schedule.seed * 10_007 + epoch)  # dropout draws from the global one
        module.train()
        total = 0.0
        order = torch.randperm(len(bank), generator=generator)
        batches = track(bank.batches(schedule.batch, order), f"{what}, epoch {epoch + 1} of {schedule.epochs}", steps_per_epoch)
        for i, (inputs, labels) in enumerate(batches):
            inputs = augment({k: v for k, v in inputs.items() if k not in silent}, generator)
            inputs |= {k: torch.zeros(1, *bank.inputs[k].shape[1:]) for k in silent}
            for group in optimizer.param_groups:
                group["lr"] = schedule.lr_at(epoch * steps_per_epoch + i, steps)
            outputs = forward(module, inputs)
            loss = regression_loss(outputs, labels)
            if teacher is not None and schedule.distill > 0:
                with torch.no_grad():
                    taught = forward(teacher, inputs)
                loss = loss + schedule.distill * regression_loss(outputs, taught)
            if not torch.isfinite(loss):
                raise DataError(f"{what}: the loss is {loss.item()} in epoch {epoch + 1}", "look for NaN in the weights, or lower the learning rate")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            total += loss.item()
        _save_state(state_path, {"run": run, "epoch": epoch + 1, "module": module.state_dict(), "optimizer": optimizer.state_dict()})
        if after_epoch:
            after_epoch(epoch + 1, total / steps_per_epoch)
    return module.eval()


def _resume(path: Path, run: str, module: nn.Module, optimizer) -> int:
    import torch

    if not path.is_file():
        return 0
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception:  # a state cut off by the kill itself; torch raises several types for it
        return 0
    if state.get("run") != run:
        return 0
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    return state["epoch"]


def _save_state(path: Path, state: dict) -> None:
    import torch

    part = path.with_suffix(".part")
    try:
        torch.save(state, part)
        part.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        part.unlink(missing_ok=True)
        raise ResourceError(f"{path}: training state cannot be written ({error})", "free some disk space; training goes on where it stood") from error


def finetune(module: nn.Module, teacher: nn.Module | None, forward: Callable, dataset: Dataset, preprocess_spec: dict, schedule: Schedule, scratch: Path):
    """Recover a pruned module's accuracy; see `train`."""
    return train(module, forward, ClipBank(dataset, preprocess_spec), schedule, scratch, teacher, what="fine-tune")


def predict(module: nn.Module, forward: Callable, bank: ClipBank, silent: tuple[str, ...] = (), batch: int = 32) -> dict[str, Tensor]:
    """{output: [n]} over a bank, in eval mode."""
    import torch

    rows: dict[str, list] = {}
    with torch.inference_mode():
        for inputs, _ in bank.batches(batch, torch.arange(len(bank))):
            inputs |= {k: torch.zeros(1, *inputs[k].shape[1:]) for k in silent}
            for k, v in forward(module.eval(), inputs).items():
                rows.setdefault(k, []).append(v.float())
    return {k: torch.cat(v) for k, v in rows.items()}

"""Training and fine-tuning, resumable after a kill, on the CPU.

One loop serves both: `edgekit train` starts from fresh weights, the prune stage from pruned ones
with the original as teacher. The state is written after every epoch, and every epoch's order and
augmentation come from a generator seeded by (seed, epoch), so a resumed run equals an unbroken one.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from . import document, models
from .artifact import hash_file, sha256_of
from .datasets import Dataset, open_dataset
from .document import Schema
from .errors import CheckpointError, DataError, RecipeError, ResourceError
from .losses import regression_loss
from .models.checkpoint import PACKED, pack, provenance_of, read_parts
from .preprocess import labels_of, preprocess, sources
from .progress import note, track

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor, nn

MODALITIES = {"both": (), "audio": ("video",), "video": ("audio", "features")}  # → sources of the inputs that are silenced
SOUND = 1000  # values over time from which on they are samples of sound
Loss = Callable[[dict[str, "Tensor"], dict[str, "Tensor"]], "Tensor"]


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
    """A data set's clips, preprocessed once and held in memory, video as float16 (about 0.9 MB each for MHLT's `small`).

    Attributes:
        inputs: {flow input: [n, ...]}; labels: {name: [n] or [n, T]}.
        constants: {flow input: [1, ...]}, the same for all clips, such as a modality that is silenced.
    """

    def __init__(self, dataset: Dataset, spec: dict, what: str = "load training clips"):
        import torch

        self.sources = sources(spec)
        inputs: dict[str, list] = {}
        labels: dict[str, list] = {}
        for id in track(dataset.ids, what):
            clip = dataset.clip(id)
            for name, value in preprocess(spec, clip).items():
                # Half precision holds any pixel and sample; decibels and cepstra need more.
                inputs.setdefault(name, []).append(value.astype(np.float16 if name in ("video", "wave") else np.float32))
            for name, value in labels_of(spec, clip).items():
                labels.setdefault(name, []).append(value)
        ragged = [k for k, v in labels.items() if len(v) != len(dataset.ids)]
        if ragged:
            raise DataError(f"{dataset.source}: label `{ragged[0]}` is missing on some clips")
        self.inputs = {k: torch.from_numpy(np.stack(v)) for k, v in inputs.items()}
        self.labels = {k: torch.from_numpy(np.asarray(v, np.float32)) for k, v in labels.items()}
        self.constants: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(next(iter(self.labels.values())))

    def silent(self, modality: str) -> tuple[str, ...]:
        """The inputs that a training on one modality silences."""
        return tuple(name for name, source in self.sources.items() if source in MODALITIES[modality])

    def silenced(self, names: Iterable[str]) -> ClipBank:
        """This bank with zeros in place of some inputs; a whole clip of them stands for all."""
        import torch

        names = [name for name in names if name in self.inputs]
        zeros = {name: torch.zeros(1, *self.inputs[name].shape[1:]) for name in names}
        return self._with({k: v for k, v in self.inputs.items() if k not in names}, {**self.constants, **zeros})

    def encoded(self, encode: Callable[[dict[str, Tensor]], Mapping[str, Tensor]], batch: int = 32) -> ClipBank:
        """What frozen encoders make of every clip, in place of what they read; `encode` takes and gives [n, ...] or [1, ...]."""
        import torch

        rows: dict[str, list[Tensor]] = {}
        steps = math.ceil(len(self) / batch)
        with torch.no_grad():  # not inference_mode: its tensors cannot be trained on
            for inputs, _ in track(self.batches(batch, torch.arange(len(self)), self.inputs), "encode clips", steps):
                for name, value in encode(inputs).items():
                    rows.setdefault(name, []).append(value.float())
        same = {name for name, parts in rows.items() if len(parts[0]) == 1 and min(batch, len(self)) > 1}
        return self._with({k: torch.cat(v) for k, v in rows.items() if k not in same}, {k: rows[k][0] for k in same})

    def _with(self, inputs: dict[str, Tensor], constants: dict[str, Tensor]) -> ClipBank:
        other = copy.copy(self)
        other.inputs, other.constants = inputs, constants
        return other

    def batches(self, size: int, order: Tensor, names: Iterable[str]) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """The inputs called `names`, as float32, with the constants and all labels."""
        for index in order.split(size):
            yield {k: self.inputs[k][index].float() for k in names} | self.constants, {k: v[index] for k, v in self.labels.items()}


def keep_memory() -> None:
    """Tell glibc to reuse what it frees. Every step allocates the same gigabyte of activations, and returning
    it to the kernel each time cost 40 % of the CPU time in page faults (measured: 1.8× faster steps)."""
    import ctypes

    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_top_pad, 2**28)


def _names(values: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in values)


def augment(batch: dict[str, Tensor], generator) -> dict[str, Tensor]:
    """Mirror, shift and relight the video [n, ..., h, w], shift the wave [n, samples] in time; labels stay true."""
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
    names: Iterable[str] | None = None,
    loss: Loss | None = None,
    augmented: Callable | None = augment,
    remix: Callable | None = None,
) -> nn.Module:
    """Train `module` in place and return it in eval mode. A run that was killed goes on where it stood.

    Args:
        forward: (module, batch) → {output: [n, ...]}.
        scratch: a folder that survives a kill; the state file in it belongs to exactly this run.
        teacher: with `schedule.distill`, its outputs on the same batch are targets too.
        names: the inputs that `forward` reads; all of the bank's by default.
        loss: (outputs, all labels) → scalar; by default the L1 distance of every output that has a label.
        augmented: (batch, generator) → batch, drawn anew for every batch; None for none.
        remix: (batch, labels, generator) → (batch, labels), in place of `augmented` where the labels change too.

    Raises:
        DataError: the clips have no label that `forward` predicts, or the loss is not finite; the
            message says in which epoch.
    """
    import torch

    keep_memory()
    if teacher is not None:
        teacher.eval()
    state_path = scratch / "training.pt"
    optimizer = torch.optim.AdamW(module.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay)
    run = sha256_of({**asdict(schedule), "clips": len(bank), "parameters": sum(p.numel() for p in module.parameters())})
    first = _resume(state_path, run, module, optimizer)
    steps_per_epoch = math.ceil(len(bank) / schedule.batch)
    steps = schedule.epochs * steps_per_epoch
    heard = list(names or bank.inputs)
    silent = [k for k in bank.silent(schedule.modality) if k in heard]
    if silent:
        bank = bank.silenced(silent)
    heard = [k for k in heard if k in bank.inputs]
    for epoch in range(first, schedule.epochs):
        generator = torch.Generator().manual_seed(schedule.seed * 10_007 + epoch)
        torch.manual_seed(schedule.seed * 10_007 + epoch)  # dropout draws from the global one
        module.train()
        total = 0.0
        order = torch.randperm(len(bank), generator=generator)
        batches = track(bank.batches(schedule.batch, order, heard), f"{what}, epoch {epoch + 1} of {schedule.epochs}", steps_per_epoch)
        for i, (inputs, labels) in enumerate(batches):
            if remix is not None:
                inputs, labels = remix(inputs, labels, generator)
            elif augmented is not None:
                inputs = augmented({k: inputs[k] for k in heard}, generator) | bank.constants
            for group in optimizer.param_groups:
                group["lr"] = schedule.lr_at(epoch * steps_per_epoch + i, steps)
            outputs = forward(module, inputs)
            is_taught = teacher is not None and schedule.distill > 0
            targets = {k: labels[k] for k in outputs if k in labels}
            if not targets and not is_taught:
                raise DataError(f"{what}: the clips have labels {_names(labels)}, the model predicts {_names(outputs)}", "name a column of labels.csv so")
            cost = (loss or regression_loss)(outputs, labels if loss else targets) if targets else torch.zeros(())
            if is_taught:
                with torch.no_grad():
                    taught = forward(teacher, inputs)
                cost = cost + schedule.distill * regression_loss(outputs, {k: v for k, v in taught.items() if k in outputs})
            if not torch.isfinite(cost):
                raise DataError(f"{what}: the loss is {cost.item()} in epoch {epoch + 1}", "look for NaN in the weights, or lower the learning rate")
            optimizer.zero_grad(set_to_none=True)
            cost.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            total += cost.item()
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
    if not isinstance(state, dict) or state.get("run") != run:
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


def finetune(
    module: nn.Module, teacher: nn.Module | None, forward: Callable, dataset: Dataset, preprocess_spec: dict, schedule: Schedule, scratch: Path,
    loss: Loss | None = None, augmented: Callable | None = augment, remix: Callable | None = None,
):  # fmt: skip
    """Recover a pruned module's accuracy; see `train`."""
    return train(module, forward, ClipBank(dataset, preprocess_spec), schedule, scratch, teacher, what="fine-tune", loss=loss, augmented=augmented, remix=remix)


def predict(
    module: nn.Module, forward: Callable, bank: ClipBank, silent: tuple[str, ...] = (), batch: int = 32, names: Iterable[str] | None = None
) -> dict[str, Tensor]:
    """{output: [n, ...]} over a bank, in eval mode, with the inputs called `silent` silenced."""
    import torch

    bank = bank.silenced(silent) if set(silent) & set(bank.inputs) else bank
    rows: dict[str, list] = {}
    with torch.inference_mode():
        for inputs, _ in bank.batches(batch, torch.arange(len(bank)), [k for k in (names or bank.inputs) if k in bank.inputs]):
            for k, v in forward(module.eval(), inputs).items():
                rows.setdefault(k, []).append(v.float())
    return {k: torch.cat(v) for k, v in rows.items()}


def watched(predicted: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, float]:
    """How good predictions are, for a look while training: mean absolute error of a number, share of right classes in %, CCC over time, SI-SNR of sound in dB."""
    from .losses import si_snr
    from .metrics import METRICS, class_accuracy

    found = {}
    for name in predicted.keys() & labels.keys():
        got, want = predicted[name].double().numpy(), labels[name].double().numpy()
        if got.ndim == want.ndim == 1:
            found[name] = float(np.abs(got.clip(-1, 1) - want).mean()) if np.abs(want).max() <= 1 else float(np.abs(got - want).mean())
        elif want.ndim == 1:
            found[name] = float(class_accuracy(want, got.argmax(axis=1)))
        elif want.shape[1] >= SOUND:
            found[name] = float(si_snr(predicted[name], labels[name]).mean())
        else:
            found[name] = METRICS["ccc"](want[..., None], got[..., None])
    return {name: round(found[name], 4) for name in sorted(found)}


class Phase(Schema):
    """One phase of training."""

    epochs: int = Field(ge=1)
    batch: int = Field(32, ge=1)
    lr: float = Field(gt=0)
    final_lr: float = Field(0.03, ge=0, le=1)


class QuantizeAware(Phase):
    """A last phase with activations rounded as INT8 will round them, so that the weights come to rest where that costs little."""

    layers: tuple[str, ...] = Field(min_length=1, description="whose outputs are rounded: globs over module paths, such as `encoder.*`")
    bits: int = Field(8, ge=2, le=8, description="of the rounded outputs; fewer than 8 leave a margin, as the weights learn to bear more noise than INT8 makes")
    jitter: float = Field(0.0, ge=0, lt=1, description="vary every range by up to this share from batch to batch, so that no weight relies on one grid: calibration will find another")


class TrainRecipe(Schema):
    """`edgekit train`: how a float checkpoint comes about."""

    model: str
    config: str
    data: str = Field(description="data set in `calibration/`; its train split is used")
    clips: int | None = Field(None, ge=1, description="train on the first so many")
    validate_clips: int = Field(128, ge=2, description="clips of the calibration split to watch the error on; never trained on")
    towers: dict[str, tuple[Phase, ...]] = Field({}, description="encoders to be trained alone first, on their own labels; phase by phase")
    joint: Phase
    quantize_aware: QuantizeAware | Annotated[tuple[QuantizeAware, ...], Field(min_length=1)] | None = Field(None, description="after `joint`, with rounded activations; phase by phase")
    modality: Literal["both", "audio", "video"] = "both"
    init: str | dict[str, str] | None = Field(
        None, min_length=1, description="checkpoint whose weights stand in wherever name and shape are the same, relative to this file; {part: file} of a model that is put together"
    )
    frozen_encoders: bool = Field(False, description="train what follows the encoders only, on what they give for the clips as they are")
    seed: int = Field(1, ge=0)
    licence: str | None = Field(None, min_length=1, description="of the weights, such as `CC0-1.0`; by default that of the data, where it states one")
    significant_bits: int | None = Field(None, ge=4, le=11, description="round the weights of layers to so many before they are saved, for a smaller .xz; float16 has 11")
    out: str = Field(description="the checkpoint, float16 .safetensors or .safetensors.xz, relative to this file; provenance goes beside it as .json")

    def aware_phases(self) -> dict[str, QuantizeAware]:
        """{where it stands in the file: phase}."""
        given = self.quantize_aware
        if isinstance(given, tuple):
            return {f"quantize_aware.{k}": phase for k, phase in enumerate(given)}
        return {} if given is None else {"quantize_aware": given}


def train_from_file(path: str | Path, overrides: Iterable[str], cache_root: Path) -> Path:
    """Train what the file says; return the checkpoint's path. Resumes where a killed run stood.

    Raises:
        RecipeError: file:line and what is wrong there.
        DataError: the data set cannot be used.
    """
    import torch

    read = document.read(Path(path), overrides)
    recipe = document.validate(read, TrainRecipe)
    folder = Path(read.path).parent
    definition, config = _definition(recipe, read)
    out = folder / recipe.out
    if not out.name.endswith((".safetensors", PACKED)) or out.is_dir():
        raise RecipeError(f"{read.where('out')}: `out` must be a file that ends in .safetensors or {PACKED}, got `{recipe.out}`")
    inits = recipe.init if isinstance(recipe.init, dict) else {"": recipe.init} if recipe.init is not None else {}
    torch.manual_seed(recipe.seed)
    module = definition.for_training(definition.build(config))
    if recipe.init is not None:
        _start_from(module, definition, config, {part: folder / file for part, file in inits.items()}, read)
    if recipe.frozen_encoders and not hasattr(definition, "encode"):
        raise RecipeError(f"{read.where('frozen_encoders')}: model `{recipe.model}` has no encoders that can be frozen", "leave it out")
    phases = {name: [Schedule(**p.model_dump(), seed=recipe.seed) for p in row] for name, row in recipe.towers.items()}
    towers = definition.towers(module) if phases else {}
    for name in phases:
        if name not in towers:
            raise RecipeError(f"{read.where(f'towers.{name}')}: model `{recipe.model}` has no tower `{name}`", document.suggestion(name, list(towers)))
    spec = definition.preprocess_spec(config)
    if set(sources(spec).values()) <= set(MODALITIES[recipe.modality]):
        raise RecipeError(f"{read.where('modality')}: model `{recipe.model}` has no input left with `modality: {recipe.modality}`")
    loss, augmented = getattr(definition, "loss", None), getattr(definition, "augment", augment)
    train_set = open_dataset(recipe.data, "train", recipe.clips, folder, cache_root)
    watch_set = open_dataset(recipe.data, "calibration", recipe.validate_clips, folder, cache_root)
    bank = ClipBank(train_set, spec)
    watch = ClipBank(watch_set, spec, "load validation clips")
    scratch = Path(cache_root) / "training" / f"{recipe.model}-{recipe.config}-{train_set.digest()[:12]}"
    log: list[dict] = []
    started = time.time()

    def run(what: str, module: nn.Module, forward: Callable, schedule: Schedule, folder: Path, bank=bank, watch=watch, names=None, augmented=augmented) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        watch = watch.silenced(watch.silent(schedule.modality))

        def after_epoch(epoch: int, cost: float) -> None:
            scores = watched(predict(module, forward, watch, names=names), watch.labels)
            row = {"phase": what, "epoch": epoch, "loss": round(cost, 4), "validation": scores, "minutes": round((time.time() - started) / 60, 1)}
            note(f"{what} epoch {epoch}: loss {cost:.4f}, validation {scores}")
            rows = [*(known for known in _read_log(folder) if known["epoch"] < epoch), row]
            (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

        train(module, forward, bank, schedule, folder, after_epoch=after_epoch, what=what, names=names, loss=loss, augmented=augmented, remix=getattr(definition, "remix", None) if augmented is not None else None)
        log.extend(_read_log(folder))

    for name, row in phases.items():
        tower = towers[name]
        if tower.source in bank.silent(recipe.modality):
            continue
        for n, schedule in enumerate(row):
            key = sha256_of([asdict(s) for s in row[: n + 1]])  # a phase starts where the ones before it ended
            run(f"{name} {n + 1}", tower, type(tower).__call__, schedule, scratch / f"{name}-{key[:8]}", names=[tower.source])
    joint = Schedule(**recipe.joint.model_dump(), modality=recipe.modality, seed=recipe.seed)
    before = {"towers": {k: [asdict(s) for s in row] for k, row in phases.items()}} | ({"init": digests.get("", digests)} if (digests := {part: hash_file(folder / file) for part, file in inits.items()}) else {})
    key = sha256_of({"joint": asdict(joint), **before, **({"frozen": True} if recipe.frozen_encoders else {})})
    if recipe.frozen_encoders:
        module.eval()
        bank, watch = (
            b.silenced(b.silent(recipe.modality)).encoded(lambda batch: definition.encode(module, batch)) for b in (bank, watch)
        )  # fmt: skip
    aware = recipe.aware_phases()
    for name, phase in aware.items():
        where = read.where(f"{name}.layers")
        for path, instead in never_called(module, definition.train_forward, bank, phase.layers, where).items():
            note(f"{where}: `{path}` is never called as a whole, so nothing of it is rounded{f'; its last part is `{instead}`' if instead else ''}")
    if hasattr(definition, "select"):
        definition.select(module, bank.silenced(bank.silent(recipe.modality)), recipe.seed)
    run(recipe.modality, module, definition.train_forward, joint, scratch / f"{recipe.modality}-{key[:8]}", bank, watch, augmented=None if recipe.frozen_encoders else augmented)
    rounding = QuantizeAware.model_fields.keys() - Phase.model_fields.keys()
    for k, (name, phase) in enumerate(aware.items(), 1):
        schedule = Schedule(**phase.model_dump(exclude=rounding), modality=recipe.modality, seed=recipe.seed + k)
        key = sha256_of({"after": key, "schedule": asdict(schedule), **phase.model_dump(include=rounding, exclude_defaults=True)})
        folder = scratch / f"aware-{key[:8]}"
        with rounded_outputs(module, **phase.model_dump(include=rounding), where=read.where(f"{name}.layers")):
            run("quantize-aware", module, definition.train_forward, schedule, folder, bank, watch, augmented=None if recipe.frozen_encoders else augmented)
    if recipe.significant_bits is not None:
        round_weights(module, recipe.significant_bits)
    save_checkpoint(module, out, only=getattr(definition, "TAUGHT", ("",)), provenance={
        "trained_by": "edgekit train", "recipe": recipe.model_dump(mode="json"), "train_data": train_set.digest(),
        "validation_data": watch_set.digest(), "torch": torch.__version__, "log": log,
        "licence": recipe.licence or getattr(train_set, "licence", None),
    })  # fmt: skip
    return out


def _start_from(module: nn.Module, definition: ModuleType, config: Any, paths: Mapping[str, Path], read: document.Document) -> None:
    """Put the weights of another checkpoint, or of one for each part, into `module` where name and shape are the same.

    Raises:
        RecipeError: no such file.
        CheckpointError: not one weight of it fits.
    """
    known = module.state_dict()
    for path in paths.values():
        if not path.is_file():
            raise RecipeError(f"{read.where('init')}: `init` does not exist: {path}", "train that checkpoint first")
    state = definition.normalize_keys(read_parts(paths), config)
    fitting = {k: v.to(known[k].dtype) for k, v in state.items() if k in known and v.shape == known[k].shape}
    names = ", ".join(path.name for path in paths.values())
    if not fitting:
        raise CheckpointError(f"{names}: none of its {len(state)} weights has a name and shape of model `{definition.__name__.rpartition('.')[2]}`")
    module.load_state_dict(fitting, strict=False)
    note(f"{len(fitting)} of {len(known)} weights start from {names}")


def _definition(recipe: TrainRecipe, read: document.Document) -> tuple[ModuleType, Any]:
    """The model's module and configuration."""
    if recipe.model not in models.names():
        raise RecipeError(f"{read.where('model')}: unknown model `{recipe.model}`", document.suggestion(recipe.model, models.names()))
    definition = models.get(recipe.model)
    if recipe.config not in definition.CONFIGS:
        hint = document.suggestion(recipe.config, list(definition.CONFIGS))
        raise RecipeError(f"{read.where('config')}: model `{recipe.model}` has no configuration `{recipe.config}`", hint)
    return definition, definition.CONFIGS[recipe.config]


def _read_log(folder: Path) -> list[dict]:
    """The epochs that a phase has done so far, as its log has them; a line that a kill cut off is left out."""
    rows = []
    for line in (folder / "log.jsonl").read_text().splitlines() if (folder / "log.jsonl").is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def _layers(module: nn.Module, layers: Iterable[str], where: str) -> dict[str, nn.Module]:
    """{path: what the globs name}; RecipeError for a glob that matches no layer."""
    from fnmatch import fnmatchcase

    chosen = {path: sub for path, sub in module.named_modules() for pattern in layers if fnmatchcase(path, pattern)}
    for pattern in layers:
        if not any(fnmatchcase(path, pattern) for path in chosen):
            raise RecipeError(f"{where}: `{pattern}` matches no layer", f"for example `{next(path for path, _ in module.named_children())}`")
    return chosen


def never_called(module: nn.Module, forward: Callable, bank: ClipBank, layers: Iterable[str], where: str = "layers") -> dict[str, str]:
    """{layer that the globs name but a forward does not call as one: its last part, or ""}: containers whose parts are called one by one.

    `rounded_outputs` does nothing for them.

    Raises:
        RecipeError: a glob that matches no layer.
    """
    import torch

    chosen, called = _layers(module, layers, where), set()
    handles = [sub.register_forward_hook(lambda *_, path=path: called.add(path)) for path, sub in chosen.items()]
    try:
        with torch.inference_mode():
            inputs, _ = next(bank.batches(1, torch.arange(1), bank.inputs))
            forward(module.eval(), inputs)
    finally:
        for handle in handles:
            handle.remove()
    last = {path: [f"{path}.{name}" for name, _ in sub.named_children()][-1:] for path, sub in chosen.items()}
    return {path: "".join(last[path]) for path in chosen if path not in called}


@contextlib.contextmanager
def rounded_outputs(module: nn.Module, layers: Iterable[str], bits: int = 8, jitter: float = 0.0, where: str = "layers") -> Iterator[None]:
    """While training, the outputs of some layers are rounded to `bits`, symmetric, one scale a tensor; gradients pass as if they were not.

    The scale follows the 99.99th percentile of what the layer gives, as an INT8 range would: what is larger is clipped. With `jitter` it is off by
    up to that share, drawn anew for every batch.

    Raises:
        RecipeError: a glob that matches no layer.
    """
    import torch

    chosen, most = _layers(module, layers, where), 2 ** (bits - 1) - 1
    ranges: dict[str, float] = {}

    def rounding(path: str) -> Callable:
        def hook(sub: nn.Module, inputs: Any, y: Tensor) -> Tensor | None:
            if not sub.training:
                return None
            values = y.detach().float()
            some = values.flatten()[:: max(1, values.numel() // 500_000)].abs()
            seen = some.kthvalue(max(1, round(0.9999 * some.numel()))).values.item()
            ranges[path] = seen if path not in ranges else 0.98 * ranges[path] + 0.02 * seen
            off = 1 + jitter * (2 * torch.rand(()).item() - 1) if jitter else 1.0
            step = off * max(ranges[path], 1e-12) / most
            rounded = (values / step).round().clamp(-most, most) * step
            return y + (rounded - values).to(y.dtype)

        return hook

    handles = [sub.register_forward_hook(rounding(path)) for path, sub in chosen.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def round_weights(module: nn.Module, bits: int) -> None:
    """Round every weight of two axes or more to `bits` significant bits (7: by at most 0.4 %, less than INT8 does)."""
    import torch

    with torch.no_grad():
        for weight in module.parameters():
            if weight.dim() > 1:
                mantissa, exponent = torch.frexp(weight)
                weight.copy_(torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent))


def save_checkpoint(module: nn.Module, path: Path, provenance: dict, only: tuple[str, ...] = ("",)) -> None:
    """Write the weights as float16 safetensors (packed, if the name ends in .xz) and the provenance as JSON beside them, whole or not at all.

    Args:
        only: prefixes of the weights to be written.

    A tensor whose values float16 cannot hold, such as the variance of unscaled pixels, stays float32.

    Raises:
        DataError: a weight is NaN or infinite; the message names it.
        ResourceError: the disk is full, or the folder may not be written.
    """
    import torch
    from safetensors.torch import save

    state = {}
    for name, value in module.state_dict().items():
        if not name.startswith(only):
            continue
        if not value.isfinite().all():
            raise DataError(f"{path}: `{name}` holds NaN or infinity", "the training diverged: lower the learning rate")
        fits = value.is_floating_point() and value.abs().max() <= torch.finfo(torch.float16).max
        state[name] = (value.detach().half() if fits else value.detach()).contiguous()
    # Not save_file(): its files are readable by their owner only, and it raises its own type for a full disk.
    weights = pack(save(state)) if path.suffix == ".xz" else save(state)
    text = json.dumps({**provenance, "sha256": hashlib.sha256(weights).hexdigest()}, indent=1) + "\n"
    contents = {path: weights, provenance_of(path): text.encode()}
    parts = {target: target.with_suffix(target.suffix + ".part") for target in contents}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for target, content in contents.items():
            parts[target].write_bytes(content)
        for target, part in parts.items():
            part.replace(target)
    except OSError as error:
        for part in parts.values():
            part.unlink(missing_ok=True)
        raise ResourceError(f"{path}: cannot be written ({error.strerror})", "free some disk space, or change `out`") from error

"""prune: remove whole channels, heads and units until the asked share of the MACs stays, then fine-tune.

Writes a float model's directory like load's, and prune.json: what was removed, by group, and what
that left. Without `prune:` in the recipe it is a copy of load's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from edgekit import pruning
from edgekit.artifact import Source
from edgekit.datasets import Dataset, open_dataset
from edgekit.errors import CheckpointError, DataError, RecipeError
from edgekit.formats import read_json, write_json
from edgekit.models.groups import Cut, Group, heads_after, remove, summary
from edgekit.progress import note, track
from edgekit.stages import Job

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgekit.float_model import FloatModel
    from edgekit.recipe import Recipe
    from edgekit.target import Target

NEEDS: tuple[str, ...] = ("load",)
SEMANTICS = 1
TOOLS = ("torch", "torch-pruning", "transformers", "onnx")  # what counts the op table is in load's, which ran before

# Enough to rank units: 67 and 134 clips put a layer's units in the same order (rank correlation
# 0.98, median over the groups of MHLT small).
TAYLOR_CLIPS = 128
# Half of the peak rate that trains a model from nothing: weights are to move back, not to start over.
FINETUNE_LR = 3e-4
FINETUNE_BATCH = 16


def plan(recipe: Recipe, target: Target) -> tuple[dict[str, Any], dict[str, Source]]:
    spec = recipe.section("prune")
    if spec is None or recipe.prune is None:
        return {"none": True}, {}
    finetune = recipe.prune.finetune
    if recipe.prune.importance != "taylor" and finetune is None:
        return spec, {}
    name = (finetune and finetune.data) or recipe.calibrate.data
    data = open_dataset(name, "train", finetune.clips if finetune else None, recipe.dir, recipe.cache_root)
    # Which clips, and how many, is the data set's digest; its name is not part of the result.
    if finetune is not None:
        spec["finetune"] = {k: v for k, v in spec["finetune"].items() if k not in ("data", "clips")}
    return spec, {"data": cast(Source, data)}


def run(job: Job) -> None:
    if job.spec.get("none"):
        shutil.copytree(job.inputs["load"], job.out, dirs_exist_ok=True, copy_function=shutil.copyfile)
        return
    # Imported here: they need numpy, and a plan of a warm cache must not.
    from edgekit.float_model import FloatModel, save_float_model

    original = FloatModel.open(job.inputs["load"])
    _require_training(original, job.spec)
    module = original.module()
    groups = _groups(original, module, job.spec)
    cut = _cut(job, original, module, groups)
    pruned = _narrowed(original, module, groups, cut)
    _check_share(job.spec["macs"], _recount(original, pruned) / _recount(original, module))
    if "finetune" in job.spec:
        pruned = _finetuned(job, original, pruned, teacher=module)
    config_name, provenance = original.meta["config_name"], original.meta["provenance"]
    save_float_model(job.out, pruned, original.meta["model"], original.config, config_name, provenance, pruned=True, code=original.meta.get("code"))

    before, after = original.meta, read_json(job.out / "model.json")
    got = after["macs"] / before["macs"]
    _check_share(job.spec["macs"], got)
    write_json(
        job.out / "prune.json",
        {
            "importance": job.spec["importance"],
            "macs_share": {"asked": job.spec["macs"], "got": got},
            "macs": {"before": before["macs"], "after": after["macs"]},
            "parameters": {"before": before["parameters"], "after": after["parameters"]},
            "groups": summary(groups, cut),
            "protected": list(job.spec.get("protect", [])),
            "unprunable": dict(getattr(original.model, "UNPRUNABLE", {})),
            "finetune": job.spec.get("finetune"),
        },
    )


def _require_training(original: FloatModel, spec: dict[str, Any]) -> None:
    """Refuse what needs gradients of a model that does not say how it is trained.

    Raises:
        RecipeError: with the key of the recipe that asks for it.
    """
    if original.model.train_forward is not None:
        return
    for key, is_asked, way_out in (
        ("prune.finetune", "finetune" in spec, "drop `prune.finetune`"),
        ("prune.importance", spec["importance"] == "taylor", "use `importance: magnitude`"),
    ):
        if is_asked:
            raise RecipeError(f"`{key}`: model `{original.meta['model']}` came without `train_forward`, so it cannot be trained", f"give one, or {way_out}")


def _groups(original: FloatModel, module: nn.Module, spec: dict[str, Any]) -> list[Group]:
    """The groups that this recipe may cut.

    Raises:
        CheckpointError: a weight is NaN or infinite.
        RecipeError: nothing may be cut, by the model's nature or the recipe's wish.
    """
    import torch

    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"`{name}`: holds NaN or infinity", "check the checkpoint, or the training that made it")
    every = original.model.prune_groups(module, original.config)
    unprunable = getattr(original.model, "UNPRUNABLE", {})
    if not every:
        why = "; ".join(f"`{layer}` {reason}" for layer, reason in unprunable.items())
        raise RecipeError(f"`prune`: model `{original.meta['model']}` has nothing that can be removed" + (f": {why}" if why else ""), "drop `prune` from the recipe")
    paths = [path for path, _ in module.named_modules()]
    groups = pruning.only(every, spec.get("only", ()), paths, unprunable)
    groups = pruning.without(groups, spec.get("protect", ()), paths)
    if not groups:
        raise RecipeError("`prune.protect`: leaves nothing that may be removed", "protect less, or drop `prune` from the recipe")
    return groups


def _cut(job: Job, original: FloatModel, module: nn.Module, groups: list[Group]) -> Cut:
    """The units to remove. Kept in scratch, so that a build that was killed while fine-tuning goes on with the same net."""
    kept = job.scratch / "cut.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    macs = pruning.mac_model(module, original.model.engines(module, original.config), _runs(original), groups)
    is_taylor = job.spec["importance"] == "taylor"
    if is_taylor:
        from edgekit.losses import regression_loss

        scores = pruning.taylor_scores(groups, module, _clips(job, original), getattr(original.model, "loss", regression_loss), original.model.train_forward)
    else:
        scores = pruning.magnitude_scores(groups, module.state_dict())
    cut = pruning.choose(groups, scores, macs, job.spec["macs"], weigh_by_macs=not is_taylor)
    part = kept.with_suffix(".part")
    part.write_text(json.dumps(cut))
    part.replace(kept)
    return cut


def _clips(job: Job, original: FloatModel) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """(inputs, labels) of single clips, spread evenly over the training set."""
    import torch

    from edgekit.preprocess import labels_of, preprocess

    data = cast(Dataset, job.files["data"])
    count = min(TAYLOR_CLIPS, len(data.ids))
    ids = [data.ids[i * len(data.ids) // count] for i in range(count)]
    outputs = original.flow["outputs"]
    for id in track(ids, "weigh channels"):
        clip = data.clip(id)
        labels = {k: v for k, v in labels_of(original.preprocess, clip).items() if k in outputs}
        if not labels:
            raise DataError(f"{data.source}: clip `{id}` has none of the labels {', '.join(outputs)}", "name a data set with these labels, or use `importance: magnitude`")
        inputs = {k: torch.from_numpy(v)[None] for k, v in preprocess(original.preprocess, clip).items()}
        yield inputs, {k: torch.as_tensor(v, dtype=torch.float32)[None] for k, v in labels.items()}


def _narrowed(original: FloatModel, module: nn.Module, groups: list[Group], cut: Cut) -> nn.Module:
    from edgekit.models import narrow

    state = remove(module.state_dict(), groups, cut)
    pruned = original.model.fold(original.model.build(original.config))
    narrow.fit(pruned, state, heads_after(narrow.heads(module), groups, cut))
    pruned.load_state_dict(state, strict=True)
    return pruned.eval()


def _runs(original: FloatModel) -> dict[str, int]:
    from edgekit.flow import runs_per_window

    return runs_per_window(original.flow)


def _recount(original: FloatModel, module: nn.Module) -> float:
    """MACs of one window, seen by running the module as it is now."""
    return pruning.mac_model(module, original.model.engines(module, original.config), _runs(original), ()).total


def _check_share(asked: float, got: float) -> None:
    note(f"{got:.1%} of the MACs stay")
    if not abs(got - asked) <= pruning.TOLERANCE:
        raise RecipeError(f"`prune.macs`: {asked:.2f} of the MACs was asked, {got:.3f} stay after recounting", f"ask for {got:.2f}")


def _finetuned(job: Job, original: FloatModel, pruned: nn.Module, teacher: nn.Module) -> nn.Module:
    from edgekit import training

    wish = job.spec["finetune"]
    schedule = training.Schedule(epochs=wish["epochs"], batch=FINETUNE_BATCH, lr=wish.get("lr", FINETUNE_LR), distill=wish["distill"])
    data = cast(Dataset, job.files["data"])
    if hasattr(original.model, "for_training"):
        pruned = original.model.for_training(pruned)
    tuned = training.finetune(pruned, teacher, original.model.train_forward, data, original.preprocess, schedule, job.scratch, **_own(original))
    return tuned.eval()


def _own(original: FloatModel) -> dict[str, Any]:
    """How the model says that it is trained, where it does."""
    named = {"loss": "loss", "augmented": "augment", "remix": "remix"}
    return {argument: getattr(original.model, name) for argument, name in named.items() if hasattr(original.model, name)}

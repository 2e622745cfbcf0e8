"""load: a trained checkpoint, whatever its spelling, becomes a float model's directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .. import models
from ..artifact import FileSource, Source
from ..errors import CheckpointError
from ..float_model import save_float_model
from ..models import checkpoint
from . import Job

if TYPE_CHECKING:
    from ..recipe import Recipe
    from ..target import Target

NEEDS: tuple[str, ...] = ()
SEMANTICS = 2  # 2: io.json gives engine inputs the unit of the flow's tensor
TOOLS = ("torch", "onnx", "transformers")


def plan(recipe: Recipe, target: Target) -> tuple[dict[str, Any], dict[str, Source]]:
    models.require_config(recipe.load.model, recipe.load.config)
    path = recipe.file("load.checkpoint")
    files: dict[str, Source] = {"checkpoint": FileSource(path)}
    # `x.safetensors` may have `x.json` beside it, which says how it was trained.
    provenance = path.with_suffix(".json")
    if provenance.is_file():
        files["provenance"] = FileSource(provenance)
    return {"model": recipe.load.model, "config": recipe.load.config}, files


def run(job: Job) -> None:
    definition = models.get(job.spec["model"])
    config = models.config(job.spec["model"], job.spec["config"])
    source = cast(FileSource, job.files["checkpoint"])
    path = source.path
    module = definition.fold(definition.build(config)).eval()
    state = definition.normalize_keys(checkpoint.read_state(path), config)
    unused = checkpoint.load_into(module, state, path, definition.OPTIONAL_KEYS)
    provenance: dict[str, Any] = {"checkpoint_sha256": source.digest(), "unused_keys": unused}
    if "provenance" in job.files:
        provenance["training"] = _training(cast(FileSource, job.files["provenance"]).path, source.digest())
    save_float_model(job.out, module, job.spec["model"], config, job.spec["config"], provenance, pruned=False)


def _training(path: Path, checkpoint_sha256: str) -> dict[str, Any]:
    """What stands beside the checkpoint about its training.

    Raises:
        CheckpointError: not a JSON object, or it describes another file.
    """
    hint = "move it away if it does not belong to the checkpoint"
    try:
        training = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON ({error})", hint) from None
    if not isinstance(training, dict):
        raise CheckpointError(f"{path}: provenance must be a JSON object, got {type(training).__name__}", hint)
    if training.get("sha256", checkpoint_sha256) != checkpoint_sha256:
        raise CheckpointError(f"{path}: describes a checkpoint with sha256 {training['sha256']}, beside it is {checkpoint_sha256}", hint)
    return training

"""load: a trained checkpoint, whatever its spelling, becomes a float model's directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..artifact import FileSource, Source
from ..errors import CheckpointError
from ..float_model import save_float_model
from ..formats import read_json
from ..models import checkpoint
from . import Job

if TYPE_CHECKING:
    from ..recipe import Recipe
    from ..target import Target

NEEDS: tuple[str, ...] = ()
SEMANTICS = 1
TOOLS = ("torch", "onnx", "transformers")


def plan(recipe: Recipe, target: Target) -> tuple[dict[str, Any], dict[str, Source]]:
    path = recipe.file("load.checkpoint")
    files: dict[str, Source] = {"checkpoint": FileSource(path)}
    # `x.safetensors` may have `x.json` beside it, which says how it was trained.
    provenance = path.with_suffix(".json")
    if provenance.is_file():
        files["provenance"] = FileSource(provenance)
    return {"model": recipe.load.model, "config": recipe.load.config}, files


def run(job: Job) -> None:
    from .. import models

    definition = models.get(job.spec["model"])
    config = models.config(job.spec["model"], job.spec["config"])
    path = job.files["checkpoint"].path
    module = definition.fold(definition.build(config)).eval()
    state = definition.normalize_keys(checkpoint.read_state(path), config)
    unused = checkpoint.load_into(module, state, path, definition.OPTIONAL_KEYS)
    provenance = {"checkpoint_sha256": job.files["checkpoint"].digest(), "unused_keys": unused}
    if "provenance" in job.files:
        beside = read_json(job.files["provenance"].path)
        if not isinstance(beside, dict):
            raise CheckpointError(f"{job.files['provenance'].path}: provenance must be a JSON object")
        provenance["training"] = beside
    save_float_model(job.out, module, job.spec["model"], config, job.spec["config"], provenance, pruned=False)

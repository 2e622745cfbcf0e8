"""load: a trained checkpoint, whatever its spelling, or an ONNX file, becomes a float model's directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .. import models, plugins
from ..artifact import FileSource, Source
from ..errors import CheckpointError
from ..float_model import save_float_model, save_onnx_model
from ..models import checkpoint, code
from . import Job

if TYPE_CHECKING:
    from ..recipe import Recipe
    from ..target import Target

NEEDS: tuple[str, ...] = ()
SEMANTICS = 4  # 2: io.json gives engine inputs the unit of the flow's tensor. 3: onnxsim before counting. 4: batch norms in the layers beside them
TOOLS = ("torch", "onnx", "onnx_ir", "onnxsim", "onnxruntime", "transformers")


def plan(recipe: Recipe, target: Target) -> tuple[dict[str, Any], dict[str, Source]]:
    name = recipe.load.model
    if recipe.load.is_onnx:
        inputs = {key: value.model_dump(mode="json", exclude_none=True) for key, value in (recipe.load.inputs or {}).items()}
        return {"onnx": True, "inputs": inputs}, {"model": FileSource(recipe.file("load.model"))}
    models.require_config(name, recipe.load.config)
    spec: dict[str, Any] = {"model": name, "config": recipe.load.config}
    files: dict[str, Source] = {}
    if ":" in name:
        files["code"] = FileSource(code.find(name, recipe.dir).path)
    elif (plugin := plugins.find(models.GROUP, name, models.MODELS)) is not None:
        spec["distribution"] = f"{plugin.distribution} {plugin.version}"
    models.require_parts(name, recipe.load.checkpoint)
    for part, path in recipe.checkpoints().items():
        key = f".{part}" if part else ""
        files[f"checkpoint{key}"] = FileSource(path)
        # `x.safetensors` may have `x.json` beside it, which says how it was trained.
        provenance = checkpoint.provenance_of(path)
        if provenance.is_file():
            files[f"provenance{key}"] = FileSource(provenance)
    return spec, files


def run(job: Job) -> None:
    if job.spec.get("onnx"):
        _run_onnx(job)
        return
    name, config_name = job.spec["model"], job.spec["config"]
    origin = {"sha256": job.files["code"].digest()} if "code" in job.files else {key: job.spec[key] for key in ("distribution",) if key in job.spec}
    definition = models.get(name, origin, config_name)
    config = models.config(name, config_name, origin)
    found = {key.partition(".")[2]: cast(FileSource, source) for key, source in job.files.items() if key.partition(".")[0] == "checkpoint"}
    path = next(iter(found.values())).path
    module = definition.fold(definition.build(config)).eval()
    state = definition.normalize_keys(checkpoint.read_parts({part: source.path for part, source in found.items()}), config)
    unused = checkpoint.load_into(module, state, path, getattr(definition, "OPTIONAL_KEYS", ()))
    if hasattr(definition, "balance"):
        definition.balance(module)
    if unused and "code" in job.files:
        raise CheckpointError(f"{path}: `{name}` has no use for {len(unused)} of the weights, first `{unused[0]}`", "check `load.config`; or rename and drop keys in `normalize_keys` of a whole definition")
    digests = {part: source.digest() for part, source in found.items()}
    provenance: dict[str, Any] = {"checkpoint_sha256": digests[""] if "" in found else digests, "unused_keys": unused}
    training = {
        part: _training(cast(FileSource, job.files[key]).path, digests[part])
        for part in found
        if (key := f"provenance.{part}" if part else "provenance") in job.files
    }
    if training:
        provenance["training"] = training.get("", training)
    save_float_model(job.out, module, name, config, config_name, provenance, pruned=False, code=origin)


def _run_onnx(job: Job) -> None:
    """An ONNX file in place of a checkpoint and the code around it."""
    from ..models import onnx_file, ports

    source = cast(FileSource, job.files["model"])
    file = onnx_file.read(source.path, job.spec["inputs"])
    wiring = ports.wire(file.inputs, file.outputs, {file.ours[name]: text for name, text in job.spec["inputs"].items()}, str(source.path))
    save_onnx_model(job.out, file, wiring, {"checkpoint_sha256": source.digest(), "onnx": file.provenance})


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

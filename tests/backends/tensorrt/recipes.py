"""The graphs of every TensorRT recipe in this checkout: exported from its checkpoint, rewritten and quantized as its target asks.

Not pruned, and ranges are those of one run on random numbers: neither changes an op, a type or which layer is INT8.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import graph, models, qdq, rewrites
from edgekit.backends import onnxruntime
from edgekit.models import checkpoint
from edgekit.quant import Numbers, Range
from edgekit.recipe import load_recipe
from edgekit.target import load_target
from tests.backends.tensorrt.nets import ROOT


@dataclass(frozen=True)
class Graphs:
    """One engine of a recipe: float graph in the target's form, Q/DQ graph, what is INT8, and what rewrites keep in float32."""

    engine: str
    target: dict[str, Any]
    model: Any
    integer: Any
    chosen: qdq.Precisions
    fp32: tuple[str, ...]


def names() -> list[str]:
    """Every recipe for a target whose backend is tensorrt."""
    found = []
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        recipe = load_recipe(path)
        if load_target(recipe.target, recipe.dir).backend == "tensorrt":
            found.append(path.stem)
    return found


def graphs(name: str, folder: Path) -> Iterator[Graphs]:
    """Each engine of the recipe, one after the other."""
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
    spec = load_target(recipe.target, recipe.dir).spec()
    numbers = Numbers.from_target(spec["numbers"])
    for engine, path in _exported(recipe.load.model, recipe.load.config, tuple(recipe.checkpoints().items()), folder):
        model = graph.load(path)
        fp32 = tuple(node for rewrite in spec["rewrites"] for change in rewrites.apply(model, rewrite) for node in change.fp32)
        patterns = (recipe.section("quantize") or {}).get("skip", [])
        skip = {node.name: "recipe" for node in model.graph for pattern in patterns if fnmatchcase(node.name, pattern) or fnmatchcase(f"{engine}/{node.name}", pattern)}
        chosen = qdq.precisions(model, spec["ops"], skip, numbers.outputs)
        graph.save(model, folder / "rewritten.onnx")
        rng = np.random.default_rng(0)
        fed = {value.name: rng.standard_normal(graph.shape_of(value), np.float32) for value in model.graph.inputs}
        seen = {**fed, **onnxruntime.simulate(folder / "rewritten.onnx", threads=1, also=chosen.observed)(fed)}
        ranges = {tensor: Range(float(np.min(seen[tensor])), float(np.max(seen[tensor]))) for tensor in chosen.observed}
        names_here = {node.name for node in model.graph}
        yield Graphs(engine, spec, model, qdq.insert_qdq(model, chosen, ranges, numbers), chosen, tuple(node for node in fp32 if node in names_here))


@cache
def _exported(model: str, config_name: str, weights: tuple[tuple[str, Path], ...], folder: Path) -> list[tuple[str, Path]]:
    """[(engine, float.onnx)] of a checkpoint, or of one for each part; recipes of one checkpoint share them."""
    definition, config = models.get(model), models.config(model, config_name)
    module = definition.fold(definition.build(config)).eval()
    checkpoint.load_into(module, definition.normalize_keys(checkpoint.read_parts(dict(weights)), config), weights[0][1], getattr(definition, "OPTIONAL_KEYS", ()))
    if hasattr(definition, "balance"):
        definition.balance(module)
    found = []
    for engine in definition.engines(module, config):
        path = folder / f"{model}-{config_name}-{engine.name}.onnx"
        graph.export_onnx(engine, path)
        found.append((engine.name, path))
    return found

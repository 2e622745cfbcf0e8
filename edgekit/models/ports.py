"""From what a recipe or a factory says of a model's inputs to preprocess.json, io.json and a flow of one engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from pydantic import ValidationError

from ..errors import RecipeError
from ..formats import Shape
from ..recipe import Input

ENGINE = "main"
TENSOR_OF = {"video": "video", "audio": "wave"}  # a source, and what `preprocess` calls its tensor


@dataclass(frozen=True)
class Wiring:
    """The JSON documents of a model with one engine that runs once for each window."""

    preprocess: dict[str, Any]
    io: dict[str, Any]
    flow: dict[str, Any]


def wire(inputs: Mapping[str, Shape], outputs: Mapping[str, Shape], sources: Mapping[str, Input | Mapping[str, Any]], where: str) -> Wiring:
    """Wire every input to what of a clip it is made of.

    Args:
        inputs, outputs: {name: shape with batch 1}.
        sources: {input: `load.inputs` of the recipe, or the same as a dict}.
        where: what to name in messages.

    Raises:
        RecipeError: an input without a source, or of a shape that its layout does not fit; no output that is one number.
    """
    known = {name: _input(source, f"{where}, input `{name}`") for name, source in sources.items()}
    for name in known:
        if name not in inputs:
            raise RecipeError(f"{where}: there is no input `{name}`", f"there is {', '.join(f'`{n}`' for n in inputs)}")
    preprocess: dict[str, Any] = {}
    flow_inputs, feed, units = {}, {}, {}
    for name, shape in inputs.items():
        if name not in known:
            raise RecipeError(f"{where}: nothing says what input `{name}` {list(shape)} is made of", f"known are {', '.join(known) or 'none'}; see docs/models.md")
        source, tensor = known[name], TENSOR_OF[known[name].source]
        if source.source in preprocess:
            raise RecipeError(f"{where}: two inputs are made of `{source.source}`", "one tensor of each source is made; let the model take it apart")
        preprocess[source.source] = _part(source, shape, f"{where}: input `{name}`")
        flow_inputs[tensor] = {"shape": list(shape[1:]), "dtype": "float32"}
        feed[name] = tensor
        units[tensor] = {"unit": _unit(source), "axes": list(source.layout)}
    flow = {
        "inputs": flow_inputs,
        "steps": [{"engine": ENGINE, "feed": feed, "give": {name: name for name in outputs}}],
        "outputs": list(outputs),
        **scored(outputs, where),
        "rates_hz": {},
        "host_steps": [{"step": "preprocess", "spec": "preprocess.json"}],
    }
    return Wiring(preprocess, {"inputs": units, "outputs": {name: {"unit": "as trained"} for name in outputs}}, flow)


def scored(outputs: Mapping[str, Shape], where: str) -> dict[str, Any]:
    """The part of a flow that says what is scored: the first output that is one number for each clip, else the first that is
    one row of numbers, taken for the scores of classes that are called by their index.

    Raises:
        RecipeError: there is neither.
    """
    for name, shape in outputs.items():
        if prod(shape) == 1:
            return {"primary": name}
    for name, shape in outputs.items():
        if len(shape) == 2:
            return {"primary": name, "task": "classes", "classes": [str(i) for i in range(shape[1])]}
    listed = ", ".join(f"`{name}` {list(shape)}" for name, shape in outputs.items())
    raise RecipeError(
        f"{where}: no output is one number or one score for each class, which is what metrics score: {listed}", "add an output, such as the score of one class"
    )


def squeezed(shape: Shape) -> Shape:
    """The shape that an output has in our graphs: one number for each clip is [1], whatever it was."""
    return (1,) if prod(shape) == 1 else tuple(shape)


def _input(source: Input | Mapping[str, Any], where: str) -> Input:
    if isinstance(source, Input):
        return source
    try:
        return Input.model_validate_json(json.dumps(dict(source)))
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(f"{where}: {'.'.join(map(str, first['loc'])) or 'source'}: {first['msg']}", "the keys are those of `load.inputs`, see docs/models.md") from None


def _part(source: Input, shape: Shape, where: str) -> dict[str, Any]:
    """One part of preprocess.json, with sizes from the input's shape."""
    axes = source.layout
    if len(shape) != 1 + len(axes) or shape[0] != 1:
        raise RecipeError(f"{where} has shape {list(shape)}, layout {axes} with batch 1 in front has {1 + len(axes)} axes", "correct `layout`")
    size = dict(zip(axes, shape[1:], strict=True))
    channels = {"video": 3, "audio": 1}[source.source]
    if size.get("C", channels) != channels:
        raise RecipeError(f"{where} has shape {list(shape)}: axis C of layout {axes} must be {channels}, got {size['C']}", "correct `layout`")
    if source.source == "video":
        return {
            "clips": size.get("K", 1), "frames_per_clip": size.get("T", 1), "height": size["H"], "width": size["W"], "layout": axes,
            "color": "RGB", "resize": "bilinear_half_pixel", "sampling": "uniform_round_linspace",
            "mean": list(source.mean or ()), "std": list(source.std or ()),
        }  # fmt: skip
    part = {"sample_rate_hz": source.sample_rate_hz, "samples": size["S"], "scale": 32768.0, "normalize": source.normalize, "pad": "right_zero_after_normalize"}
    return part | ({"layout": axes} if axes != "S" else {}) | ({"eps": 1e-7} if source.normalize != "none" else {})


def _unit(source: Input) -> str:
    if source.source == "video":
        return "(pixel 0..255 − mean) / std"
    return "amplitude −1..1" if source.normalize == "none" else "zero-mean, unit-variance amplitude"

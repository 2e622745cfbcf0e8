"""The models edgekit knows: name → module, imported when asked for.

A model is a module with

    CONFIGS: dict[str, Config]           named configurations; Config is a frozen dataclass of JSON-able fields
    Config.from_json(dict) -> Config
    build(cfg) -> nn.Module              as published, so that parameter counts can be asserted
    fold(module) -> module               the inference form: weight norm and the like written into plain weights
    normalize_keys(state, cfg) -> state  every public spelling of the checkpoint's keys → the keys of fold(build(cfg))
    io_spec(cfg), preprocess_spec(cfg), flow(cfg) -> dict
    engines(module, cfg) -> list[Engine]
    prune_groups(module, cfg) -> list[Group]
    train_forward(module, batch) -> dict of tensors [n]
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from ..errors import RecipeError

MODELS = {
    "mhlt": "edgekit.models.mhlt",
    "tiny": "edgekit.models.tiny",
}


def get(name: str) -> ModuleType:
    """The model module called `name`.

    Raises:
        RecipeError: no such model; the message lists those there are.
    """
    if name not in MODELS:
        raise RecipeError(f"`load.model`: unknown model `{name}`", f"known models: {', '.join(sorted(MODELS))}")
    return import_module(MODELS[name])


def config(name: str, config_name: str):
    """The named configuration of a model.

    Raises:
        RecipeError: no such configuration; the message lists those there are.
    """
    configs = get(name).CONFIGS
    if config_name not in configs:
        raise RecipeError(f"`load.config`: model `{name}` has no configuration `{config_name}`", f"it has: {', '.join(configs)}")
    return configs[config_name]

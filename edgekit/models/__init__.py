"""The models edgekit knows: name → module, imported when asked for.

A model is a module with

    CONFIGS: dict[str, Config]           named configurations; Config is a frozen dataclass of JSON-able fields
    Config.from_json(dict) -> Config
    build(cfg) -> nn.Module              as published, so that parameter counts can be asserted
    fold(module) -> module               the inference form: weight norm and the like written into plain weights
    normalize_keys(state, cfg) -> state  every public spelling of the checkpoint's keys → the keys of fold(build(cfg))
    io_spec(cfg), preprocess_spec(cfg) -> dict
    flow(cfg) -> dict                    without states: those are the engines' own
    engines(module, cfg) -> list[Engine]
    prune_groups(module, cfg) -> list[Group]
    train_forward(module, batch) -> dict of tensors [n]
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from ..document import suggestion
from ..errors import RecipeError

MODELS = {
    "mhlt": "edgekit.models.mhlt",
    "tiny": "edgekit.models.tiny",
}
# The keys of each CONFIGS, so that a plan refuses a wrong name without importing torch.
CONFIG_NAMES = {
    "mhlt": ("default", "small", "tiny"),
    "tiny": ("default", "tiny"),
}


def get(name: str) -> ModuleType:
    """The model module called `name`.

    Raises:
        RecipeError: no such model; the message lists those there are.
    """
    if name not in MODELS:
        raise RecipeError(f"`load.model`: unknown model `{name}`", suggestion(name, sorted(MODELS)))
    return import_module(MODELS[name])


def require_config(name: str, config_name: str) -> None:
    """Refuse a configuration that a model of CONFIG_NAMES does not have; imports nothing.

    Raises:
        RecipeError: no such configuration; the message lists those there are.
    """
    known = CONFIG_NAMES.get(name)
    if known is not None and config_name not in known:
        raise RecipeError(f"`load.config`: model `{name}` has no configuration `{config_name}`", suggestion(config_name, known))


def config(name: str, config_name: str):
    """The named configuration of a model.

    Raises:
        RecipeError: no such configuration; the message lists those there are.
    """
    configs = get(name).CONFIGS
    if config_name not in configs:
        raise RecipeError(f"`load.config`: model `{name}` has no configuration `{config_name}`", suggestion(config_name, list(configs)))
    return configs[config_name]

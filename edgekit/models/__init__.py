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
    train_forward(module, batch) -> dict of tensors [n, ...]

and, if it likes,

    OPTIONAL_KEYS                        weights that a checkpoint may lack
    UNPRUNABLE                           {layer: why}
    balance(module)                      rescale channels of a loaded module, exactly, so that one scale fits a whole tensor; or drop those that nothing reads
    for_training(module) -> module       laid out for the fastest training
    loss(outputs, labels) -> scalar      by default the L1 distance; outputs may hold more while training, for auxiliary heads
    augment(batch, generator) -> batch   by default mirrored, shifted and relit video and shifted sound
    remix(batch, labels, generator) -> (batch, labels)   in place of `augment`, where the labels change too
    comparisons(cfg) -> {name: flow}     what verify measures it against on the same clips: flows over tensors (`inputs`: a list of names) and engines of its own
    TAUGHT                               prefixes of the weights that `edgekit train` saves, where the rest comes from checkpoints of its own
    towers(module) -> {name: module}     encoders that may be trained alone first: `source` (a flow input) and forward(batch) -> outputs
    select(module, bank, seed)           after the towers, before the rest is trained: choose by the training clips (a training.ClipBank) and write into
                                         the module's buffers, such as which features are read; the same clips, weights and seed give the same
    encode(module, batch) -> batch       what the encoders give, for `frozen_encoders`; train_forward takes either

What a flow's primary output is, its `task` says: "value" (one number a clip), "classes" (a score for each of
`classes`) or "timeline" (numbers over time; then `primary` may list several). Metrics, losses and the report follow it.

It is ours (MODELS), of an installed package (entry points of the group `edgekit.models`, see
`plugins.py`), or what a user's `package.module:factory` returns: the same, or a `Foreign`.
docs/models.md tells how to bring one.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from .. import plugins
from ..document import suggestion
from ..errors import RecipeError

MODELS = {
    "attsf": "edgekit.models.attsf",
    "aver": "edgekit.models.aver",
    "avtca": "edgekit.models.avtca",
    "bilstm_sa": "edgekit.models.bilstm_sa",
    "dccrn": "edgekit.models.dccrn",
    "dccrnpp": "edgekit.models.dccrnpp",
    "jca": "edgekit.models.jca",
    "leader_follower": "edgekit.models.leader_follower",
    "mhlt": "edgekit.models.mhlt",
    "mhlt_robust": "edgekit.models.mhlt_robust",
    "tiny": "edgekit.models.tiny",
}
# The keys of each CONFIGS, so that a plan refuses a wrong name without importing torch.
CONFIG_NAMES = {
    "attsf": ("default", "default_at_once", "ravdess_l2", "ravdess_gat", "iemocap", "iemocap_text", "mosi", "small", "small_at_once", "small_l2", "small_gat", "tiny"),
    "aver": ("default", "release", "paper", "small", "tiny"),
    "avtca": ("default", "release", "cremad", "mosei", "small", "tiny"),
    "bilstm_sa": ("default", "bilstm", "cnn", "head", "small", "small_bilstm", "small_cnn", "small_all", "tiny", "tiny_emotions"),
    "dccrn": ("default", "default_causal", "default_chunk", "half", "half_chunk", "tiny", "tiny_causal", "tiny_chunk"),
    "dccrnpp": ("default", "default_causal", "half", "half_causal", "half_causal_chunk", "tiny", "tiny_causal"),
    "jca": ("default", "release", "small", "tiny"),
    "leader_follower": ("default", "release", "release_valence", "release_arousal", "small", "tiny"),
    "mhlt": ("default", "small", "tiny"),
    "mhlt_robust": ("default", "default_feature", "small", "small_feature", "tiny", "tiny_feature"),
    "tiny": ("default", "tiny"),
}
# Models that are put together of several checkpoints: {model: (parts that it needs, parts that it may have)}.
PARTS = {"mhlt_robust": (("denoiser", "mhlt"), ("head",))}
GROUP = "edgekit.models"
PROTOCOL = (
    "CONFIGS", "Config", "build", "fold", "normalize_keys", "io_spec", "preprocess_spec", "flow", "engines", "prune_groups", "train_forward",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    """`edgekit.models.Foreign`, without torch for those who only look a name up."""
    if name == "Foreign":
        return import_module("edgekit.models.foreign").Foreign
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def names() -> list[str]:
    """Every registered model, ours first."""
    return plugins.names(GROUP, MODELS)


def is_known(name: str) -> bool:
    """Whether `load.model` can mean something: a registered name, `package.module:factory` or an .onnx file."""
    return ":" in name or name.lower().endswith(".onnx") or name in names()


def get(name: str, code: Mapping[str, str] | None = None, config_name: str = "default") -> ModuleType:
    """The model called `name`: a module, or an object with the same attributes.

    Args:
        code: what a float model's `model.json` says of the code it needs, see `code.py`.
        config_name: handed to a user's factory.

    Raises:
        RecipeError: no such model; the message lists those there are.
        UsageError, ToolMissing: two packages give it, or its package is broken.
    """
    if ":" in name:
        from . import foreign

        return foreign.definition(name, (code or {}).get("sha256", ""), config_name)  # type: ignore[return-value]
    module = plugins.load(GROUP, name, MODELS, PROTOCOL)
    if module is None:
        raise RecipeError(f"`load.model`: unknown model `{name}`", suggestion(name, names()))
    return module


def require_config(name: str, config_name: str) -> None:
    """Refuse a configuration that a model of CONFIG_NAMES does not have; imports nothing.

    Raises:
        RecipeError: no such configuration; the message lists those there are.
    """
    known = CONFIG_NAMES.get(name)
    if known is not None and config_name not in known:
        raise RecipeError(f"`load.config`: model `{name}` has no configuration `{config_name}`", suggestion(config_name, known))


def require_parts(name: str, checkpoint: str | Mapping[str, str] | None) -> None:
    """Refuse one checkpoint where a model has several, several where it has one, and wrong parts; imports nothing.

    Raises:
        RecipeError: the message lists the parts.
    """
    needed, optional = PARTS.get(name, ((), ()))
    if isinstance(checkpoint, Mapping) and not needed:
        raise RecipeError(f"`load.checkpoint`: model `{name}` has one checkpoint, not one for each part", "give the path of a file")
    if not needed:
        return
    listed = ", ".join((*needed, *(f"{part} (optional)" for part in optional)))
    if not isinstance(checkpoint, Mapping):
        raise RecipeError(f"`load.checkpoint`: model `{name}` is put together of several checkpoints", f"give {{part: file}}; the parts are {listed}")
    for part in checkpoint:
        if part not in (*needed, *optional):
            raise RecipeError(f"`load.checkpoint`: model `{name}` has no part `{part}`", f"the parts are {listed}")
    for part in needed:
        if part not in checkpoint:
            raise RecipeError(f"`load.checkpoint`: part `{part}` is missing", f"the parts of `{name}` are {listed}")


def config(name: str, config_name: str, code: Mapping[str, str] | None = None):
    """The named configuration of a model.

    Raises:
        RecipeError: no such configuration; the message lists those there are.
    """
    configs = get(name, code, config_name).CONFIGS
    if config_name not in configs:
        raise RecipeError(f"`load.config`: model `{name}` has no configuration `{config_name}`", suggestion(config_name, list(configs)))
    return configs[config_name]

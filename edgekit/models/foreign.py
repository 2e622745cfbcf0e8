"""A plain nn.Module with a few words about its ports, as a model that every stage can work with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..errors import RecipeError
from ..formats import Engine, Shape, State
from . import PROTOCOL, code, ports

if TYPE_CHECKING:
    from .groups import Group


@dataclass(frozen=True, eq=False)
class Foreign:
    """What a user's factory returns for a model that was not made for edgekit.

    Attributes:
        module: in its inference form; weights come from the recipe's checkpoint.
        inputs, outputs: {name: shape with batch 1}, in the order of forward's arguments and results.
        preprocess: {input: how it is made of a clip}, in the words of `load.inputs`; with a `flow`, a
            whole preprocess.json.
        flow: for a model that runs more than once for a window; its one engine is `main`.
        states: inputs that are fed from outputs, run after run; they need a `flow`.
        train_forward: (module, batch) -> {output: tensor [n]}, for fine-tuning and Taylor importance.
        prune_groups: module -> what may be removed from it.
    """

    module: nn.Module
    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    preprocess: Mapping[str, Any]
    flow: Mapping[str, Any] | None = None
    states: Sequence[State] = field(default=())
    train_forward: Callable[[nn.Module, Mapping[str, Tensor]], dict[str, Tensor]] | None = None
    prune_groups: Callable[[nn.Module], list[Group]] | None = None


@dataclass(frozen=True)
class Config:
    """A foreign model's configuration is whatever its factory makes of the name."""

    name: str = "default"

    def to_json(self) -> dict[str, str]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, str]) -> Config:
        return cls(**fields)


def definition(spelling: str, sha256: str, config_name: str) -> Any:
    """The model that the factory `package.module:factory` makes.

    Raises:
        RecipeError: the factory fails, or returns something that is no model.
    """
    make = code.factory(spelling, sha256)
    made = _made(make, spelling, config_name)
    if isinstance(made, Foreign):
        return Definition(lambda: _made(make, spelling, config_name), made, spelling, config_name)
    missing = [name for name in PROTOCOL if not hasattr(made, name)]
    if missing:
        hint = "return an edgekit.models.Foreign, or an object with all that edgekit/models/__init__.py lists"
        raise RecipeError(f"`load.model`: `{spelling}` returned {type(made).__name__} without {', '.join(f'`{name}`' for name in missing)}", hint)
    return made


def _made(make: Callable[[str], Any], spelling: str, config_name: str) -> Any:
    try:
        return make(config_name)
    except (RecipeError, KeyboardInterrupt):
        raise
    # Whatever a user's factory raises, it is about his model and this configuration.
    except Exception as error:
        raise RecipeError(f"`load.model`: `{spelling}` fails for configuration `{config_name}`: {type(error).__name__}: {error}", "is `load.config` right?") from error


class Main(nn.Module):
    """The module as an engine: a tuple of tensors of the declared shapes."""

    def __init__(self, module: nn.Module, outputs: Mapping[str, Shape], where: str):
        super().__init__()
        self.module = module
        self.shapes = list(outputs.values())
        self.names = list(outputs)
        self.where = where

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        made = self.module(*inputs)
        if isinstance(made, Mapping):
            made = tuple(made[name] for name in self.names if name in made)
        made = (made,) if isinstance(made, Tensor) else tuple(made)
        if len(made) != len(self.names) or any(prod(t.shape) != prod(shape) for t, shape in zip(made, self.shapes, strict=False)):
            raise RecipeError(f"{self.where}: forward returns {[[int(size) for size in t.shape] for t in made]}, declared are {dict(zip(self.names, self.shapes, strict=True))}", "correct `outputs`")
        return tuple(t if tuple(t.shape) == shape else t.reshape(shape) for t, shape in zip(made, self.shapes, strict=True))


class Definition:
    """A Foreign behind the attributes of a model's module."""

    OPTIONAL_KEYS: tuple[str, ...] = ()
    Config = Config

    def __init__(self, make: Callable[[], Foreign], made: Foreign, spelling: str, config_name: str):
        self._make, self._first, self._where = make, made, f"`load.model`: `{spelling}`"
        self.CONFIGS = {config_name: Config(config_name)}
        self.UNPRUNABLE = {} if made.prune_groups else {"Foreign": "was given no `prune_groups`"}
        self.train_forward = made.train_forward
        self.inputs = _shapes(made.inputs, self._where)
        kept = [state.output for state in made.states]  # both ends of a state have one shape
        self.outputs = {name: shape if name in kept else ports.squeezed(shape) for name, shape in _shapes(made.outputs, self._where).items()}
        if not isinstance(made.module, nn.Module):
            raise RecipeError(f"{self._where}: `module` is {type(made.module).__name__}, not an nn.Module")
        if made.states and made.flow is None:
            raise RecipeError(f"{self._where}: `states` without a `flow`", "a state is carried from run to run: say in `flow` over what the engine runs, with `each`")

    @cached_property
    def _wiring(self) -> ports.Wiring:
        made = self._first
        if made.flow is None:
            return ports.wire(self.inputs, self.outputs, made.preprocess, self._where)
        from ..preprocess import check_spec

        check_spec(dict(made.preprocess))
        defaults = {"rates_hz": {}, "host_steps": [{"step": "preprocess", "spec": "preprocess.json"}]}
        flow = {**defaults, **({} if "primary" in made.flow else ports.scored(self.outputs, self._where)), **made.flow}
        units = {name: {"unit": "as preprocess.json"} for name in flow["inputs"]}
        return ports.Wiring(dict(made.preprocess), {"inputs": units, "outputs": {name: {"unit": "as trained"} for name in flow["outputs"]}}, flow)

    def build(self, cfg: Config) -> nn.Module:
        return self._make().module

    def fold(self, module: nn.Module) -> nn.Module:
        return module

    def normalize_keys(self, state: Mapping[str, Tensor], cfg: Config) -> dict[str, Tensor]:
        return dict(state)

    def for_training(self, module: nn.Module) -> nn.Module:
        return module

    def io_spec(self, cfg: Config) -> dict:
        return self._wiring.io

    def preprocess_spec(self, cfg: Config) -> dict:
        return self._wiring.preprocess

    def flow(self, cfg: Config) -> dict:
        return self._wiring.flow

    def engines(self, module: nn.Module, cfg: Config) -> list[Engine]:
        return [Engine(ports.ENGINE, Main(module, self.outputs, self._where).eval(), self.inputs, self.outputs, tuple(self._first.states))]

    def prune_groups(self, module: nn.Module, cfg: Config) -> list[Group]:
        return [] if self._first.prune_groups is None else self._first.prune_groups(module)


def _shapes(given: Mapping[str, Shape], where: str) -> dict[str, Shape]:
    shapes = {name: tuple(shape) for name, shape in given.items()}
    for name, shape in shapes.items():
        if not shape or shape[0] != 1 or not all(type(size) is int and size > 0 for size in shape):
            raise RecipeError(f"{where}: `{name}` has shape {list(shape)}", "give whole numbers, with batch 1 in front")
    if not shapes:
        raise RecipeError(f"{where}: no inputs or no outputs", "give {name: shape with batch 1}")
    return shapes

"""What installed packages add: entry points of the groups `edgekit.models` and `edgekit.backends`.

    [project.entry-points."edgekit.backends"]
    hexagon = "my_package.hexagon"

Finding them reads metadata only. A package's code is imported when a recipe asks for its name, so
one that is broken stops nobody else.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType

from .errors import ToolMissing, UsageError

GROUPS = {"edgekit.models": "model", "edgekit.backends": "backend"}


@dataclass(frozen=True)
class Plugin:
    """One entry point of an installed distribution."""

    group: str
    name: str
    distribution: str
    version: str
    module: str

    @property
    def kind(self) -> str:
        return GROUPS[self.group]


def third_party() -> list[Plugin]:
    """Every model and backend that installed distributions add, by group and name; imports none of them."""
    return [plugin for group in GROUPS for plugin in _plugins(group)]


def names(group: str, own: Mapping[str, str]) -> list[str]:
    """Every name that may be asked for: ours in their order, then the others'."""
    return list(dict.fromkeys((*own, *(plugin.name for plugin in _plugins(group)))))


def find(group: str, name: str, own: Mapping[str, str]) -> Plugin | None:
    """Who provides `name`, without importing it: None for ours, or if nobody does.

    Raises:
        UsageError: two distributions give the same name.
    """
    found = [plugin for plugin in _plugins(group) if plugin.name == name]
    if not found or (name not in own and len(found) == 1):
        return found[0] if found else None
    owners = (["edgekit"] if name in own else []) + [f"{plugin.distribution} {plugin.version}" for plugin in found]
    kind = GROUPS[group]
    raise UsageError(f"{kind} `{name}` is given by {' and by '.join(owners)}", f"uninstall one: nothing says which {kind} is meant")


def load(group: str, name: str, own: Mapping[str, str], needs: Iterable[str] = ()) -> ModuleType | None:
    """The module behind `name`, or None if there is no such name.

    Args:
        own: our modules, by name.
        needs: what a third party's module must have.

    Raises:
        UsageError: two distributions give the same name.
        ToolMissing: the package cannot be imported, or its module lacks something.
    """
    plugin = find(group, name, own)
    if plugin is None:
        return importlib.import_module(own[name]) if name in own else None
    module = _import(plugin)
    missing = [attribute for attribute in needs if not hasattr(module, attribute)]
    if missing:
        listed = ", ".join(f"`{attribute}`" for attribute in missing)
        raise ToolMissing(f"{_where(plugin)}: `{plugin.module}` has no {listed}", f"its authors must add them; what a {plugin.kind} needs stands in {group}'s docstring")
    return module


def _import(plugin: Plugin) -> ModuleType:
    path, _, attribute = plugin.module.partition(":")
    try:
        found: object = importlib.import_module(path)
        for part in filter(None, attribute.split(".")):
            found = getattr(found, part)
    # Whatever somebody else's module does while it is imported, SystemExit too, the one thing to tell is whose it is.
    except (Exception, SystemExit) as error:
        raise ToolMissing(f"{_where(plugin)} cannot be imported: {type(error).__name__}: {error}", f"repair or uninstall `{plugin.distribution}`") from error
    return found  # type: ignore[return-value]


def _where(plugin: Plugin) -> str:
    return f"{plugin.kind} `{plugin.name}` of {plugin.distribution} {plugin.version}"


def _plugins(group: str) -> list[Plugin]:
    found = []
    for point in importlib.metadata.entry_points(group=group):
        distribution = point.dist
        name, version = (distribution.name, distribution.version) if distribution is not None else ("an unnamed distribution", "?")
        found.append(Plugin(group, point.name, name, version, point.value))
    return sorted(found, key=lambda plugin: (plugin.name, plugin.distribution))

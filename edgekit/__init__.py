"""edgekit: from a trained audio-visual model to a bundle that an embedded team can flash.

    import edgekit
    result = edgekit.build("recipes/mhlt_xavier.yaml")
    print(result.report["verdict"], result.bundle)

Names are imported when first used, so that `import edgekit` and `edgekit --help` stay instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit import build as build
    from edgekit import compare as compare
    from edgekit.bundle import open_bundle as open_bundle
    from edgekit.errors import EdgekitError as EdgekitError
    from edgekit.plan import make_plan as make_plan
    from edgekit.recipe import load_recipe as load_recipe
    from edgekit.target import load_target as load_target

__version__ = "0.1.0"
__all__ = ["EdgekitError", "build", "compare", "load_recipe", "load_target", "make_plan", "open_bundle"]

_HOMES = {
    "EdgekitError": "errors",
    "load_recipe": "recipe",
    "load_target": "target",
    "make_plan": "plan",
    "open_bundle": "bundle",
}


def __getattr__(name: str) -> Any:
    if name in ("build", "compare"):
        return importlib.import_module(f"edgekit.{name}")  # callable modules, see their ends
    if name in _HOMES:
        return getattr(importlib.import_module(f"edgekit.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'edgekit' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

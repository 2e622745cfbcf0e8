"""TensorRT: what a device needs to build its own engines.

`cache.py` is the calibration cache that gives TensorRT 8.5 our scales, `kit.py` what stands around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.backends import EngineKit, Kit

EXECUTES = False


def versions(target: Mapping[str, Any]) -> dict[str, str | None]:
    """None on the host: the engine is built on the device."""
    return {}


def problems(target: Mapping[str, Any]) -> list[str]:
    found = []
    if not str(target["runtime"]["version"]).startswith("8.5."):
        found.append(f"TensorRT {target['runtime']['version']}: only the 8.5 build kit exists")
    if target["build_on"] != "device":
        found.append(f"build_on: {target['build_on']}: the 8.5 kit is built on the device")
    return found


def compile(kit: Kit, out: Path) -> None:
    """Write the kit, see `kit.compile`."""
    # Here and not at the top: a plan asks this module for `problems`.
    from edgekit.backends.tensorrt import kit as writer

    writer.compile(kit, out)


def coverage(folder: Path, engine: EngineKit, target: Mapping[str, Any]) -> None:
    """Nothing is built here, so nothing can be read."""
    return None

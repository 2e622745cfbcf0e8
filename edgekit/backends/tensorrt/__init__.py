"""TensorRT: what a device needs to build its own engines, and what came of it.

`cache.py` is the calibration cache that gives TensorRT 8.5 our scales, `kit.py` the kit around it,
`clips.py` the clips that are run on the device, `device/` the scripts that run there, `result.py`
what they bring back.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.backends import EngineKit, Kit

if TYPE_CHECKING:
    import onnx_ir as ir

EXECUTES = False
KIT = 2  # of what `compile` writes: 2: engines.txt and precisions.txt for ek_trt, where 1 had a script for trtexec

FORMS = {"8.5": "8.5", "8.6": "10", "10": "10", "11": "11"}
"""Form of a model (see `forms.py`) by TensorRT version: major and minor, or major alone."""


def form_of(version: str) -> str | None:
    """The form that a TensorRT version takes, or None if we have none for it."""
    major, _, rest = version.partition(".")
    return FORMS.get(f"{major}.{rest.partition('.')[0]}") or FORMS.get(major)


def versions(target: Mapping[str, Any]) -> dict[str, str | None]:
    """None on the host: the engine is built on the device."""
    return {}


def problems(target: Mapping[str, Any]) -> list[str]:
    found = []
    if form_of(str(target["runtime"]["version"])) is None:
        found.append(f"TensorRT {target['runtime']['version']}: no form of a model is known for it")
    if target["build_on"] != "device":
        found.append(f"build_on: {target['build_on']}: an engine is built on the device")
    for fact in ("sm", "cuda"):
        if fact not in target["device"]:
            found.append(f"device.{fact} is not given, which the kit's passport needs")
    return found


def compile(kit: Kit, out: Path) -> None:
    """Write the kit, see `kit.compile`."""
    # Here and not at the top: a plan asks this module for `problems`.
    from edgekit.backends.tensorrt import kit as writer

    writer.compile(kit, out)


def coverage(folder: Path, engine: EngineKit, target: Mapping[str, Any]) -> None:
    """Nothing is built here, so nothing can be read; `result.layers` reads what the device built."""
    return None


def finisher(target: Mapping[str, Any]) -> dict[str, str]:
    """What of the kit's own tools enters the key of `package`."""
    from edgekit.backends.tensorrt.kit import tools_digest

    return {"tools": tools_digest()}


def optional(target: Mapping[str, Any]) -> dict[str, str]:
    """What `gated` uses where it is installed."""
    from edgekit.backends.tensorrt import gate

    return {gate.PACKAGE: gate.version() or "none"}


def gated(engine: EngineKit, model: ir.Model, target: Mapping[str, Any]) -> dict[str, Any] | None:
    """What TensorRT-RTX makes of the engine's Q/DQ graph on this host, or None where it is not installed: see `gate.check`."""
    from edgekit import graph
    from edgekit.backends.tensorrt import gate

    if gate.version() is None:
        return None
    return gate.check(graph.load(engine.qdq_onnx), engine.fp32, engine.name, graph.count_macs(model))


def unit(engine: EngineKit, model: ir.Model, target: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the device's DLA would take of a graph, see `dla.py`; None where the target states none."""
    from edgekit import graph
    from edgekit.backends.tensorrt import dla

    if target.get("unit") is None:
        return None
    precisions = {**dict.fromkeys(engine.fp32, "fp32"), **dict.fromkeys((*engine.int8, *engine.fused), "int8")}
    placed = dla.place(model, target["unit"], precisions)
    return {"name": target["unit"]["name"], "placed": placed, **dla.summary(model, placed, graph.count_macs(model))}

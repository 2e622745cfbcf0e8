"""TensorFlow Lite: our own lowering of the Q/DQ graph to a .tflite flatbuffer, float and INT8.

    writer.py     the flatbuffer: tensors, ops, versions
    lower.py      ONNX to TFLite, with lazy layout and lazy integers; ops in macs, elementwise, layout, reduce, loop
    session.py    compile, and run in this process
    precision.py  the precision of each layer, read out of the file
    side.py       run under tflite-runtime 2.14, in an environment of its own
    vela.py       compile on for an Ethos-U

A .tflite is one file for every device. `runtime.name` of a target says what will run it: `LiteRT` (its
Python package is ai-edge-litert), `tflite-runtime`, or `Vela`, whose file holds NPU commands and does not
run here: then `open` runs the .tflite that Vela was given, which computes the same integers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from edgekit.backends import EngineKit, Kit

EXECUTES = True
RUNTIMES = ("LiteRT", "tflite-runtime", "Vela")
MODEL = "model.tflite"


def versions(target: Mapping[str, Any]) -> dict[str, str | None]:
    from edgekit.backends.tflite import side, vela

    found: dict[str, str | None] = {}
    try:
        found["ai-edge-litert"] = version("ai-edge-litert")
    except PackageNotFoundError:
        found["ai-edge-litert"] = None
    runtime = target["runtime"]["name"]
    return found | (side.versions() if runtime == "tflite-runtime" else vela.versions() if runtime == "Vela" else {})


def install_hint(missing: list[str]) -> str:
    from edgekit.backends.tflite import side, vela

    if "ai-edge-litert" in missing:
        return "pip install 'edgekit[tflite]'"
    return vela.install_hint() if "ethos-u-vela" in missing else side.install_hint()


def problems(target: Mapping[str, Any]) -> list[str]:
    """Numbers and runtimes that TFLite does not have."""
    found = []
    runtime, numbers = target["runtime"]["name"], target["numbers"]
    if runtime not in RUNTIMES:
        found.append(f"runtime.name: {runtime}: one of {', '.join(RUNTIMES)} runs a .tflite")
    if target["build_on"] != "host":
        found.append(f"build_on: {target['build_on']}: a .tflite is written here, there is nothing to build on the device")
    activation = numbers["activation"]
    if activation["dtype"] != "int8" or activation.get("nonnegative"):
        found.append("numbers.activation: int8 kernels take int8 activations, symmetric or not")
    if not numbers.get("outputs"):
        found.append("numbers.outputs: false: an INT8 kernel writes INT8")
    if target.get("floats", "fp32") != "fp32":
        found.append(f"floats: {target['floats']}: what is not INT8 is float32")
    return found


def simulates(target: Mapping[str, Any]) -> bool:
    """An NPU's commands do not run here: the file that they were compiled from does."""
    return target["runtime"]["name"] == "Vela"


def compile(kit: Kit, out: Path) -> None:
    """Write engines/<name>/model.tflite, ops.json (where each ONNX node went) and build.json; every file is loaded and run once."""
    from edgekit.backends.tflite import session

    session.compile(kit, out)


def open(folder: Path, target: Mapping[str, Any], threads: int | None = None) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """The engine in `folder` under the target's runtime."""
    from edgekit.backends.tflite import session, side

    if target["runtime"]["name"] == "tflite-runtime":
        return side.open(folder / MODEL, threads)
    return session.Session(folder / MODEL, threads)


def coverage(folder: Path, engine: EngineKit, target: Mapping[str, Any]) -> dict[str, str] | None:
    """{node of float.onnx with MACs: int8, fp32, mixed or unknown}, from the types of the tensors that its op reads."""
    from edgekit.backends.tflite import precision

    return precision.of_layers(folder, engine)


def placement(folder: Path, engine: EngineKit, target: Mapping[str, Any]) -> dict[str, str] | None:
    """{node of float.onnx with MACs: npu or cpu}, from what Vela compiled; None where there is no NPU."""
    if target["runtime"]["name"] != "Vela":
        return None
    from edgekit.backends.tflite import precision, vela

    return precision.placed(folder, engine, vela.placement(folder / MODEL, (folder / MODEL).with_stem("model_vela")))

"""ONNX Runtime on the host: float inference, statistics, and the simulation of a target's numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def versions() -> dict[str, str]:
    return {"onnxruntime": version("onnxruntime")}


class Session:
    """An ONNX graph that can be called: {input: array} -> {output: array}, batch 1 in front."""

    def __init__(self, model: Path | str | bytes, threads: int | None = None):
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.inter_op_num_threads = 1
        if threads is not None:
            options.intra_op_num_threads = threads
        # Waiting threads sleep: with as many busy processes as cores, spinning costs more than it saves.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # The simulation must compute Q, DQ and the float op between them as written: ONNX Runtime
        # would fuse them into integer kernels with roundings of its own.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        source = model if isinstance(model, bytes) else str(model)
        self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self.inputs = [value.name for value in self._session.get_inputs()]
        self.outputs = [value.name for value in self._session.get_outputs()]

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self.outputs, self._session.run(self.outputs, dict(feeds)), strict=True))


def simulate(path: Path | str, threads: int | None = None, also: Iterable[str] = ()) -> Session:
    """A session that computes the graph at `path` as written, Q and DQ included.

    Args:
        threads: inside one op; all cores if None.
        also: further tensors of the graph to give out beside its outputs.
    """
    also = list(also)
    return Session(path if not also else with_outputs(path, also), threads)


def with_outputs(path: Path | str, names: Iterable[str]) -> bytes:
    """The graph at `path` with `names` among its outputs, serialized."""
    import onnx

    model = onnx.load(str(path))
    outputs = {value.name for value in model.graph.output}
    known = {value.name: value for value in model.graph.value_info}
    for name in names:
        if name not in outputs:
            outputs.add(name)
            model.graph.output.append(known.get(name) or onnx.helper.make_empty_tensor_value_info(name))
    return model.SerializeToString()

"""A float model's directory, opened and saved: what load writes, prune writes again, and all stages after read.

`model.safetensors` (float32), `model.json` (which model, its configuration, sizes, provenance),
`io.json`, `ops.json`, `preprocess.json`, `flow.json`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from . import models
from .formats import Engine, Shape, read_json, write_json

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from .flow import Session


class FloatModel:
    """A float model's directory, opened."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.meta: dict = read_json(directory / "model.json")
        self.io: dict = read_json(directory / "io.json")
        self.flow: dict = read_json(directory / "flow.json")
        self.preprocess: dict = read_json(directory / "preprocess.json")

    @classmethod
    def open(cls, directory: Path) -> FloatModel:
        return cls(directory)

    @property
    def model(self):
        """The module of edgekit.models that this model is of."""
        return models.get(self.meta["model"])

    @property
    def config(self):
        return self.model.Config.from_json(self.meta["config"])

    def module(self) -> nn.Module:
        """A fresh torch module in eval mode with this directory's weights and widths."""
        from safetensors.torch import load_file

        from .models import narrow

        module = self.model.fold(self.model.build(self.config))
        state = load_file(self.directory / "model.safetensors")
        if self.meta["pruned"]:
            narrow.fit(module, state, self.meta["heads"])
        module.load_state_dict(state, strict=True)
        return module.eval()

    @cached_property
    def _engines(self) -> list[Engine]:
        return self.model.engines(self.module(), self.config)

    def engines(self) -> list[Engine]:
        return self._engines


def torch_session(engine: Engine) -> Session:
    """A torch engine called as flow.py calls sessions: {input: array} → {output: array}, tensors with batch 1."""
    import numpy as np
    import torch

    def call(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            tensors = engine.module(*(torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in engine.inputs))
        return {name: tensor.numpy() for name, tensor in zip(engine.outputs, tensors, strict=True)}

    return call


def save_float_model(directory: Path, module: nn.Module, model: str, config, config_name: str, provenance: Mapping, pruned: bool) -> None:
    """Write a folded module as a float model's directory; counts and op table come from its ONNX export.

    Args:
        module: the folded module, in eval mode, on the CPU.
        model: its name in edgekit.models.MODELS.
        pruned: widths differ from the configuration's, and are read from the weights when opened.
    """
    from safetensors.torch import save_file

    # Imported here: they need numpy, and a plan imports the stages that open float models.
    from . import graph
    from .flow import runs_per_window
    from .models import narrow

    definition = models.get(model)
    engines = definition.engines(module, config)
    # States are the engines' own: pruning may have narrowed them.
    flow = {**definition.flow(config), "states": {e.name: [s.to_json() for s in e.states] for e in engines if e.states}}
    macs, ops = 0, []
    for engine in engines:
        with tempfile.TemporaryDirectory(dir=directory) as temporary:  # not /tmp, which may be small
            path = Path(temporary) / "float.onnx"
            graph.export_onnx(engine, path)
            macs += sum(graph.count_macs(path).values()) * runs_per_window(flow)[engine.name]
            ops += [{"engine": engine.name, **row} for row in graph.op_table(path)]
    state = {k: v.detach().float().contiguous().clone() for k, v in module.state_dict().items() if v.is_floating_point()}
    counters = {k: v.clone() for k, v in module.state_dict().items() if not v.is_floating_point()}
    save_file({**state, **counters}, directory / "model.safetensors")
    write_json(
        directory / "model.json",
        {
            "model": model,
            "config": config.to_json(),
            "config_name": config_name,
            "pruned": pruned,
            "heads": narrow.heads(module),
            "parameters": sum(p.numel() for p in module.parameters()),
            "macs": macs,
            "provenance": dict(provenance),
        },
    )
    write_json(directory / "io.json", _io_json(definition.io_spec(config), engines, flow))
    write_json(directory / "ops.json", {"opset": graph.OPSET, "ops": ops})
    write_json(directory / "preprocess.json", definition.preprocess_spec(config))
    write_json(directory / "flow.json", flow)


def _io_json(spec: dict, engines: list[Engine], flow: dict) -> dict:
    units = {name: tensor["unit"] for name, tensor in (*spec["inputs"].items(), *spec["outputs"].items())}
    ways = ("each", "feed", "stack", "give")
    tensor_of = {(step["engine"], port): tensor for step in flow["steps"] for way in ways for port, tensor in step.get(way, {}).items()}

    def tensors(engine: Engine, shapes: Mapping[str, Shape]) -> list[dict]:
        ports = {name: units.get(tensor_of.get((engine.name, name), name), "feature") for name in shapes}
        return [{"name": name, "shape": list(shape), "dtype": "float32", "unit": ports[name]} for name, shape in shapes.items()]

    return {
        **spec,
        "engines": {
            e.name: {"inputs": tensors(e, e.inputs), "outputs": tensors(e, e.outputs), "dynamic": {}, "states": [s.to_json() for s in e.states]}
            for e in engines
        },
        "flow_inputs": flow["inputs"],
        "flow_outputs": flow["outputs"],
    }

"""A float model's directory, opened and saved: what load writes, prune writes again, and all stages after read.

`model.safetensors` (float32), `model.json` (which model, its configuration, sizes, provenance),
`io.json`, `ops.json`, `preprocess.json`, `flow.json`. A model that came as an ONNX file has
`engines/main/` in place of weights, and `names.json` (ours → those in the file).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import models
from .errors import EdgekitError
from .formats import Engine, Shape, read_json, write_json

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from .flow import Session
    from .models.onnx_file import OnnxFile
    from .models.ports import Wiring

ENGINE = "main"  # of an ONNX file


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
        return OnnxModel(directory) if (directory / "engines").is_dir() else cls(directory)

    @property
    def weights(self) -> Path:
        """The file that holds them."""
        return self.directory / "model.safetensors"

    @property
    def model(self):
        """The module of edgekit.models that this model is of."""
        return models.get(self.meta["model"], self.meta.get("code"), self.meta["config_name"])

    @property
    def config(self):
        return self.model.Config.from_json(self.meta["config"])

    def module(self) -> nn.Module:
        """A fresh torch module in eval mode with this directory's weights and widths."""
        from safetensors.torch import load_file

        from .models import narrow

        module = self.model.fold(self.model.build(self.config))
        state = load_file(self.weights)
        built = module.state_dict()
        if self.meta["pruned"] or any(k in built and built[k].shape != v.shape for k, v in state.items()):  # `balance` may have narrowed it
            narrow.fit(module, state, self.meta["heads"])
        module.load_state_dict(state, strict=True)
        return module.eval()

    @cached_property
    def _engines(self) -> list[Engine]:
        return self.model.engines(self.module(), self.config)

    def engines(self) -> list[Engine]:
        return self._engines

    def ports(self) -> dict[str, list[str]]:
        """{engine: names of its inputs and outputs}, engines in the order in which they first run."""
        engines = self.io["engines"]
        return {step["engine"]: [t["name"] for way in ("inputs", "outputs") for t in engines[step["engine"]][way]] for step in self.flow["steps"]}

    def sessions(self) -> dict[str, Session]:
        """{engine: session}, as the reference that everything is measured against."""
        return {engine.name: torch_session(engine) for engine in self.engines()}

    def comparisons(self) -> dict[str, dict[str, Any]]:
        """{name: flow} that the model is measured against, over its own tensors and engines; see edgekit.models."""
        definition = self.model
        return definition.comparisons(self.config) if hasattr(definition, "comparisons") else {}

    def export(self, engine: str, path: Path) -> dict[str, Any]:
        """Write one engine as a canonical ONNX graph; what was done, see `graph.canonical`."""
        from . import graph

        [found] = [e for e in self.engines() if e.name == engine]
        return graph.export_onnx(found, path)


    def places(self) -> dict[tuple[str, str], list[str]]:
        """{(engine, ONNX op): names of the nodes, which are the paths of their modules}."""
        from . import graph

        found: dict[tuple[str, str], list[str]] = {}
        with tempfile.TemporaryDirectory() as temporary:
            for engine in self.ports():
                path = Path(temporary) / "float.onnx"
                self.export(engine, path)
                for node in graph.load(path).graph:
                    found.setdefault((engine, node.op_type), []).append(node.name)
        return found


class OnnxModel(FloatModel):
    """A float model that came as an ONNX file: `source.onnx` is what the user gave, `float.onnx` our form of it."""

    @property
    def weights(self) -> Path:
        return self.directory / "engines" / ENGINE / "float.onnx"

    @property
    def source(self) -> Path:
        return self.directory / "engines" / ENGINE / "source.onnx"

    @property
    def model(self):
        raise EdgekitError("a model that came as an ONNX file has no torch module", "this is a bug of edgekit; please report it")

    def comparisons(self) -> dict[str, dict[str, Any]]:
        return {}

    def sessions(self) -> dict[str, Session]:
        """The user's own graph, so that a fault of our form of it shows."""
        from .backends import onnxruntime

        session = onnxruntime.simulate(self.source)
        theirs = read_json(self.directory / "names.json")[ENGINE]["ports"]
        outputs = {tensor["name"]: tensor["shape"] for tensor in self.io["engines"][ENGINE]["outputs"]}

        def call(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            made = session({theirs[name]: array for name, array in feeds.items()})
            return {name: made[theirs[name]].reshape(shape) for name, shape in outputs.items()}

        return {ENGINE: call}

    def export(self, engine: str, path: Path) -> dict[str, Any]:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.weights, path)
        return dict(self.meta["export"])


def torch_session(engine: Engine) -> Session:
    """A torch engine called as flow.py calls sessions: {input: array} → {output: array}, tensors with batch 1."""
    import numpy as np
    import torch

    def call(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            tensors = engine.module(*(torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in engine.inputs))
        return {name: tensor.numpy() for name, tensor in zip(engine.outputs, tensors, strict=True)}

    return call


def save_float_model(
    directory: Path, module: nn.Module, model: str, config, config_name: str, provenance: Mapping, pruned: bool, code: Mapping[str, str] | None = None
) -> None:
    """Write a folded module as a float model's directory; counts and op table come from its ONNX export.

    Args:
        module: the folded module, in eval mode, on the CPU.
        model: its name, as `load.model` gives it.
        pruned: widths differ from the configuration's, and are read from the weights when opened.
        code: what identifies code that is not ours, for keys and for `models.get`.
    """
    from safetensors.torch import save_file

    # Imported here: they need numpy, and a plan imports the stages that open float models.
    from . import graph
    from .models import narrow

    definition = models.get(model, code, config_name)
    engines = definition.engines(module, config)
    # States are the engines' own: pruning may have narrowed them.
    flow = {**definition.flow(config), "states": {e.name: [s.to_json() for s in e.states] for e in engines if e.states}}
    macs, ops = 0, []
    for engine in engines:
        with tempfile.TemporaryDirectory(dir=directory) as temporary:  # not /tmp, which may be small
            path = Path(temporary) / "float.onnx"
            graph.export_onnx(engine, path)
            counted, rows = _counted(engine.name, path, flow)
        macs += counted
        ops += rows
    state = {k: v.detach().float().contiguous().clone() for k, v in module.state_dict().items() if v.is_floating_point()}
    counters = {k: v.clone() for k, v in module.state_dict().items() if not v.is_floating_point()}
    save_file({**state, **counters}, directory / "model.safetensors")
    meta = {
        "model": model,
        "config": config.to_json(),
        "config_name": config_name,
        "pruned": pruned,
        "heads": narrow.heads(module),
        "parameters": sum(p.numel() for p in module.parameters()),
        "macs": macs,
        "provenance": dict(provenance),
        **({"code": dict(code)} if code else {}),
    }
    _write(directory, meta, definition.io_spec(config), definition.preprocess_spec(config), flow, engines, ops)


def save_onnx_model(directory: Path, file: OnnxFile, wiring: Wiring, provenance: Mapping) -> None:
    """Write a model that came as an ONNX file as a float model's directory."""
    from . import graph

    folder = directory / "engines" / ENGINE
    folder.mkdir(parents=True)
    graph.save(file.model, folder / "float.onnx")
    (folder / "source.onnx").write_bytes(file.source)
    write_json(directory / "names.json", {ENGINE: file.names})
    macs, ops = _counted(ENGINE, folder / "float.onnx", wiring.flow)
    meta = {
        "model": "onnx",
        "config": {},
        "config_name": file.name,
        "pruned": False,
        "heads": {},
        "parameters": file.parameters,
        "macs": macs,
        "provenance": dict(provenance),
        "export": file.log,
    }
    engine = Engine(ENGINE, None, file.inputs, file.outputs)  # type: ignore[arg-type]
    _write(directory, meta, wiring.io, wiring.preprocess, wiring.flow, [engine], ops)


def _counted(engine: str, path: Path, flow: dict[str, Any]) -> tuple[int, list[dict[str, Any]]]:
    """(MACs of one window, rows of the op table) of one engine."""
    from . import graph
    from .flow import runs_per_window

    return sum(graph.count_macs(path).values()) * runs_per_window(flow)[engine], [{"engine": engine, **row} for row in graph.op_table(path)]


def _write(directory: Path, meta: dict, io: dict, preprocess: dict, flow: dict, engines: list[Engine], ops: list[dict]) -> None:
    from . import graph

    write_json(directory / "model.json", meta)
    write_json(directory / "io.json", _io_json(io, engines, flow))
    write_json(directory / "ops.json", {"opset": graph.OPSET, "ops": ops})
    write_json(directory / "preprocess.json", preprocess)
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

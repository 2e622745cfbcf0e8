"""Write .tflite files for a kit, and run them in this process by ai-edge-litert."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.backends.tflite import MODEL, open, vela
from edgekit.backends.tflite.lower import Lowered, lower
from edgekit.errors import EdgekitError, TargetError, ToolMissing
from edgekit.formats import read_json, write_json

if TYPE_CHECKING:
    from edgekit.backends import EngineKit, Kit

OPS = "ops.json"


def compile(kit: Kit, out: Path) -> None:
    """Write engines/<name>/model.tflite, ops.json and build.json.

    Raises:
        TargetError: a node has no TFLite form, or the runtime refuses the file; the message names the node.
    """
    facts = {engine.name: _compile_engine(engine, kit.target, out / "engines" / engine.name) for engine in kit.engines}
    write_json(
        out / "build.json",
        {"backend": "tflite", "runtime": dict(kit.target["runtime"]), "build_on": kit.target["build_on"], "engines": facts},
    )


def _compile_engine(engine: EngineKit, target: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    from edgekit import graph

    try:
        lowered = lower(graph.load(engine.qdq_onnx).graph, f"edgekit: {engine.name}")
    except TargetError as error:
        raise TargetError(f"engine `{engine.name}`: {error.message}", error.hint) from None
    lowered.model.save(folder / MODEL)
    write_json(folder / OPS, lowered.made)
    _run_once(engine.name, folder, target)
    facts = {"file": f"engines/{engine.name}/{MODEL}", **_facts(lowered)}
    if target["runtime"]["name"] == "Vela" and engine.int8:
        vela.check_version(target)
        compiled = vela.compile(folder / MODEL, folder, **vela.options(target))
        facts["file"], facts["compiled_from"] = f"engines/{engine.name}/{compiled.model.name}", facts["file"]
        facts["vela"] = compiled.summary
    return facts


def _facts(lowered: Lowered) -> dict[str, Any]:
    """What a reader of build.json asks first: how many ops, how many of them on integers."""
    ops = [(op.name, subgraph.tensors[op.outputs[0]].dtype) for subgraph in lowered.model.subgraphs for op in subgraph.ops]
    return {
        "ops": dict(sorted(Counter(name for name, _ in ops).items())),
        "int8_ops": sum(dtype == "int8" for _, dtype in ops),
        "min_runtime_version": lowered.model.min_runtime_version(),
    }


def _run_once(name: str, folder: Path, target: Mapping[str, Any]) -> None:
    """Load and run the file on zeros: a runtime may know every op and still refuse a form of one."""
    zeros = {port: np.zeros(shape, dtype) for port, (shape, dtype) in _input_shapes(folder / MODEL).items()}
    refused = _refusal(lambda: open(folder, target, threads=1)(zeros))
    if refused is not None:
        # A delegate stands for many nodes; the built-in kernels say which one it is.
        plain = _refusal(lambda: Session(folder / MODEL, 1, xnnpack=False)(zeros))
        raise TargetError(f"engine `{name}`: the runtime refuses {MODEL}: {_name_node(plain or refused, folder)}", "this is a bug of the lowering; please report it")


def _refusal(run: Callable[[], Any]) -> str | None:
    """The message with which loading or running fails, or None."""
    try:
        run()
    except ToolMissing:
        raise
    except (EdgekitError, ValueError, RuntimeError) as error:
        return str(error)
    return None


def _name_node(message: str, folder: Path) -> str:
    """The message with the ONNX node behind `Node number 12 (CONV_2D)`."""
    from edgekit.backends.tflite.precision import read

    found = re.search(r"Node number (\d+)", message)
    if found is None:
        return message
    ops = read(folder / MODEL)[0]
    number = int(found.group(1))
    if number >= len(ops):
        return message  # a delegate's own node
    made = read_json(folder / OPS)
    nodes = [node for node, tensors in made.items() if ops[number].output in tensors]
    return f"{message} (ONNX node `{nodes[0]}`)" if nodes else f"{message} (it writes `{ops[number].output}`)"


def _input_shapes(path: Path) -> dict[str, tuple[tuple[int, ...], Any]]:
    """{input: (shape, dtype)} of the file's signature, without running it."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    types = {value: name.lower() for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    found = {}
    for port in model.signatureDefs[0].inputs:
        tensor = model.subgraphs[0].tensors[port.tensorIndex]
        shape = () if tensor.shape is None else tuple(int(d) for d in np.atleast_1d(tensor.shape))
        found[port.name.decode()] = (shape, types[tensor.type])
    return found


class Session:
    """A .tflite that can be called: {input: array} -> {output: array}, by its signature's names.

    It runs with XNNPACK, which LiteRT applies by itself on every CPU: what is measured here is what a device
    computes. XNNPACK also rounds as the Q/DQ graph says, half to even from one float32 product; the built-in
    kernels rescale in fixed point and round halves up, and so leave the reference a little earlier. Neither
    result depends on the number of threads: a thread computes whole outputs.
    """

    def __init__(self, path: Path, threads: int | None = None, xnnpack: bool = True):
        try:
            from ai_edge_litert.interpreter import Interpreter, OpResolverType
        except ImportError as error:
            raise ToolMissing(f"ai-edge-litert cannot be loaded: {error}", "pip install 'edgekit[tflite]'") from None

        kernels = OpResolverType.AUTO if xnnpack else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        self._interpreter = Interpreter(str(path), num_threads=threads, experimental_op_resolver_type=kernels)
        self._run = self._interpreter.get_signature_runner()
        self._shapes = {name: tuple(int(d) for d in detail["shape"]) for name, detail in self._run.get_input_details().items()}
        self.inputs, self.outputs = list(self._shapes), list(self._run.get_output_details())

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        got = {name: tuple(np.shape(array)) for name, array in feeds.items()}
        if got != self._shapes:  # the interpreter would resize itself, and half of the shapes in the file are constants
            raise EdgekitError(f"inputs are {got}, the model takes {self._shapes}")
        results = self._run(**dict(feeds))
        return {name: results[name] for name in self.outputs}

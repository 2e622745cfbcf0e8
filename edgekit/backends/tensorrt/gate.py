"""The RTX gate: a graph in form 10 or 11 is parsed, compiled and read back on this host, without a GPU.

TensorRT-RTX is a package for any Linux host that has TensorRT's parser and builder, and compiles for GPUs that
are not there. It knows neither SM 7.2 (Xavier) nor SM 8.7 (Orin): it compiles for SM 8.6, the nearest relative
of Orin, and its engines run nowhere here. So what it shows is

- that the parser takes the graph, node by node, and the builder every layer;
- which type each layer was compiled in, from the builder's own list of layers in its verbose log: coverage of
  grade `gate`. Kernels are not chosen by time on a device, so it says what can be INT8, not what is fastest.

Source: the package tensorrt-rtx 1.7.1.116, as it behaves; its engine inspector needs a GPU, its log does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import TYPE_CHECKING, Any

from edgekit.errors import TargetError, ToolMissing

if TYPE_CHECKING:
    import onnx_ir as ir

PACKAGE = "tensorrt-rtx"
SM = "8.6"
INT8 = "Int8"
_GENERATED = "kgen"  # kernels that the compiler writes for element-wise work around layers


@dataclass(frozen=True)
class Row:
    """A layer of the compiled engine.

    Attributes:
        kind: the compiler's word, such as correlation (a convolution), gemm, kgen.
        inputs, constants, outputs: data types, such as Int8, in order; constants begin with the weight.
        nodes: ONNX nodes that it was made of.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Built:
    """What the compiler made of one graph.

    Attributes:
        rows: its layers.
        engine_bytes: size of the engine, which nothing here can run.
        parsed: names of the layers that the parser made, before any were joined: a list of precisions must name these.
    """

    compiler: str
    rows: tuple[Row, ...]
    engine_bytes: int
    parsed: frozenset[str] = frozenset()


def version() -> str | None:
    """Of the installed TensorRT-RTX, or None."""
    try:
        return installed(PACKAGE)
    except PackageNotFoundError:
        return None


def compiler() -> str:
    """As reports name it."""
    return f"TensorRT-RTX {version()} for SM {SM}, on the host"


def build(model: ir.Model, engine: str) -> Built:
    """Parse and compile a graph in form 10 or 11.

    Raises:
        ToolMissing: tensorrt-rtx is not installed.
        TargetError: it refuses the graph; names the node and the module that it came from.
    """
    if version() is None:
        raise ToolMissing(f"`{PACKAGE}` is not installed", "pip install 'edgekit[tensorrt]'")
    import onnx_ir as ir
    import tensorrt_rtx as trt

    log = _log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(ir.to_proto(model).SerializeToString()):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        raise _refused(model, engine, [(error.node_name(), error.desc()) for error in errors])
    parsed = frozenset(network.get_layer(i).name for i in range(network.num_layers))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{SM.replace('.', '')}"), 0)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    made = builder.build_serialized_network(network, config)
    if made is None:
        raise _refused(model, engine, [("", text) for text in log.errors])
    rows = tuple(rows_of(log.lines))
    if not rows:
        raise TargetError(f"engine `{engine}`: the log of TensorRT-RTX {version()} lists no layers", "its log has another form than 1.7's; please report it")
    return Built(compiler(), rows, made.nbytes, parsed)


def _log(trt: Any) -> Any:
    class Log(trt.ILogger):
        """Keeps what is said; without a GPU one error about the driver is said at the start, which is none of ours."""

        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines += message.splitlines()
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR) and "cudaError" not in message:
                self.errors.append(message)

    return Log()


# --------------------------------------------------------------------------- the list of layers

_ROW = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: (?P<rest>.*)")
_NODE = re.compile(r"\[ONNX Layer: ([^\]\x1e]+)")
_TYPE = re.compile(r"Datatype: (\w+)")


def rows_of(lines: list[str]) -> list[Row]:
    """The layers in a verbose log: lines of `Name: .., LayerType: .., Inputs: [..], Constants: [..], Outputs: [..], .., Metadata: ..`."""
    found = []
    for line in lines:
        match = _ROW.match(line)
        if match is None:
            continue
        rest, _, metadata = match["rest"].partition(", Metadata: ")
        before, _, outputs = rest.partition("], Outputs: [")
        inputs, _, constants = before.partition("], Constants: [")
        types = [tuple(_TYPE.findall(part)) for part in (inputs, constants, outputs)]
        found.append(Row(match["name"], match["kind"], *types, tuple(_NODE.findall(metadata))))
    return found


def precision(rows: list[Row]) -> str:
    """What an ONNX layer was compiled in, given the compiled layers that were made of it.

    INT8 only if every kernel that computes it reads integers and holds integer weights. A layer that is
    nothing but generated kernels (an unrolled loop, a fused attention) has the float type that these read and write.
    """
    computing = [row for row in rows if row.kind != _GENERATED]
    if computing:
        # of a product of two activations the constants are factors
        reads = {kind for row in computing for kind in (*row.inputs, *(row.constants[:1] if len(row.inputs) < 2 else ()))}
        if reads == {INT8}:
            return "int8"
    else:
        reads = {kind for row in rows for kind in (*row.inputs, *row.outputs)}
    return "fp16" if "Half" in reads else "fp32" if "Float" in reads else "not found"


def precisions(built: Built, nodes: Iterable[str]) -> dict[str, str]:
    """{ONNX node: what it was compiled in}."""
    where: dict[str, list[Row]] = {}
    for row in built.rows:
        for node in row.nodes:
            where.setdefault(node, []).append(row)
    return {node: precision(where.get(node, [])) for node in nodes}


# --------------------------------------------------------------------------- refusals


def _refused(model: ir.Model, engine: str, errors: list[tuple[str, str]]) -> TargetError:
    """The compiler's first word, with the node that it is about and where that came from."""
    nodes = {node.name: node for node in model.graph}
    said = "; ".join(text.strip().splitlines()[0][:300] for _, text in errors[:2]) or "it says nothing"
    named = next((name for name, _ in errors if name in nodes), None)
    if named is None:  # the builder names nodes in its text
        text = " ".join(text for _, text in errors)
        named = max((name for name in nodes if name and name in text), key=len, default=None)
    if named is None:
        where = ""
    else:
        source = source_of(nodes[named])
        where = f"node `{named}` ({nodes[named].op_type}) of module `{source}`: "
    return TargetError(f"engine `{engine}`: TensorRT-RTX {version()} refuses {where}{said}", "TensorRT 10 and 11 would do the same; rewrite or skip the layer, see docs/tensorrt.md")


_BETWEEN = ("QuantizeLinear", "DequantizeLinear", "Cast")


def source_of(node: ir.Node) -> str:
    """The torch module that a node came from; for a Q, DQ or Cast that of the tensor it stands behind, else of who reads it."""
    while node.op_type in _BETWEEN and node.inputs[0].producer() is not None:
        node = node.inputs[0].producer()
    while node.op_type in _BETWEEN and node.outputs[0].uses():
        node = next(iter(node.outputs[0].uses())).node
    return node.name.rsplit("/", 1)[0].replace("/", ".")


def check(model: ir.Model, fp32: Iterable[str], engine: str, nodes: Iterable[str]) -> dict[str, Any]:
    """Form 10 and form 11 of a Q/DQ graph through the compiler: {compiler, form, precisions of `nodes`}, these from form 11.

    Raises:
        TargetError: one of them is refused.
    """
    from edgekit.backends.tensorrt import forms

    ten = forms.explicit(model, f"engine `{engine}`")
    build(ten, engine)
    built = build(forms.strong(ten, fp32), engine)
    return {"compiler": built.compiler, "form": "11", "precisions": precisions(built, nodes)}

"""A user's ONNX file as a float model: read without trust, made static, brought to our opset, renamed with a map back.

Everything that is not understood is refused with one sentence: what is computed must be what the
file says. Each step that changes the graph is run against the graph before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import graph
from ..errors import CheckpointError, RecipeError
from ..formats import Shape
from . import ports

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

MAX_BYTES = (1 << 31) - 1  # what one protobuf message can hold
MAX_ELEMENTS = 1 << 28  # of one tensor: 1 GiB of float32
MAX_NODES = 100_000
OWN_DOMAINS = ("", "ai.onnx")
QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")
RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file in both forms.

    Attributes:
        source: what the user gave, serialized, with static shapes and nothing else changed.
        model: canonical, opset 17.
        inputs, outputs: {our name: shape}; an output of one number is [1].
        names: {"nodes", "tensors", "ports": {our name: the file's}}.
        log: what `graph.canonical` did, and what was converted.
        provenance: what the file says of itself.
    """

    name: str
    source: bytes
    model: ir.Model
    inputs: dict[str, Shape]
    outputs: dict[str, Shape]
    names: dict[str, dict[str, str]]
    log: dict[str, Any]
    provenance: dict[str, Any]
    parameters: int

    @property
    def ours(self) -> dict[str, str]:
        """{the file's name of a port: ours}."""
        return {theirs: ours for ours, theirs in self.names["ports"].items()}


def read(path: Path, sources: Mapping[str, Mapping[str, Any]]) -> OnnxFile:
    """Read an ONNX file.

    Args:
        sources: `load.inputs`; a `shape` in it fixes what the file leaves open.

    Raises:
        CheckpointError: not whole, weights in other files, NaN, operators that are not ONNX's own, quantized already, not static.
        RecipeError: `load.inputs` does not fit the file.
    """
    import onnx

    proto = _parse(path)
    given = {"opset": {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}, "producer": f"{proto.producer_name} {proto.producer_version}".strip()}
    _refuse_foreign_data(path, proto)
    proto = _inlined(path, proto)
    _refuse_ops(path, proto)
    _drop_default_inputs(proto)
    _fix_shapes(path, proto, sources)
    _check(path, proto)
    _refuse_types(path, proto)
    inputs, outputs = ({v.name: _shape(v) for v in values} for values in (proto.graph.input, proto.graph.output))
    source = proto.SerializeToString()
    _require_running(path, source)
    converted, conversion = _at_our_opset(path, proto)
    port_names = _name_ports(converted)
    _squeeze_outputs(converted)
    onnx.checker.check_model(converted)
    model, log, names = graph.canonical(converted.SerializeToString(), str(path))
    parameters = _count_finite(path, model, names["tensors"])
    ours = {theirs: name for name, theirs in port_names.items()}
    return OnnxFile(
        name=re.sub(r"[^A-Za-z0-9_.-]+", "_", proto.graph.name)[:60] or "graph",
        source=source,
        model=model,
        inputs={ours[name]: shape for name, shape in inputs.items()},
        outputs={ours[name]: ports.squeezed(shape) for name, shape in outputs.items()},
        names=_of_the_file(names, port_names, proto),
        log={**log, "opset": {"from": given["opset"], "to": graph.OPSET, **conversion}},
        provenance=given,
        parameters=parameters,
    )


# --------------------------------------------------------------------------- without trust


def _parse(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    size = path.stat().st_size
    if size > MAX_BYTES:
        raise CheckpointError(f"{path}: {size} bytes, an ONNX file holds at most {MAX_BYTES}")
    try:
        proto = onnx.load_model_from_string(path.read_bytes())
    except (DecodeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a whole ONNX file ({str(error).partition(chr(10))[0]})", "copy it again; it may be truncated") from None
    if not proto.graph.node or not proto.graph.output:
        raise CheckpointError(f"{path}: not an ONNX file, or one without a graph", "export the model again")
    if not any(entry.domain in OWN_DOMAINS for entry in proto.opset_import):
        raise CheckpointError(f"{path}: says no opset of ONNX's own operators", "export the model again")
    return proto


def _messages(message: Any) -> Iterator[Any]:
    """Every message inside a message, itself first."""
    pending = [message]
    while pending:
        current = pending.pop()
        yield current
        for field, value in current.ListFields():
            if field.message_type is not None:
                pending += list(value) if not hasattr(value, "ListFields") else [value]


def _refuse_foreign_data(path: Path, proto: onnx.ModelProto) -> None:
    import onnx

    for message in _messages(proto):
        # protobuf gives text that is not UTF-8 as bytes
        if any(field.type == field.TYPE_STRING and bytes in map(type, [value] if isinstance(value, (str, bytes)) else value) for field, value in message.ListFields()):
            raise CheckpointError(f"{path}: a name in it is not UTF-8 text", "copy it again; it may be damaged")
        if isinstance(message, onnx.TensorProto):
            # Whatever file it names, inside the folder or out of it: only this one is in the key.
            if message.data_location == onnx.TensorProto.EXTERNAL or message.external_data:
                raise CheckpointError(
                    f"{path}: tensor `{message.name}` is in another file", "save all in one: onnx.save(onnx.load('model.onnx'), 'one.onnx', save_as_external_data=False)"
                )
            if min(message.dims, default=0) < 0 or prod(message.dims) > MAX_ELEMENTS:
                raise CheckpointError(f"{path}: tensor `{message.name}` has shape {list(message.dims)}, at most {MAX_ELEMENTS} elements are taken")
        elif isinstance(message, onnx.SparseTensorProto):
            raise CheckpointError(f"{path}: holds sparse tensors", "export dense weights")


def _inlined(path: Path, proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with its local functions written out."""
    import onnx.inliner

    if not proto.functions:
        return proto
    functions = {(f.domain, f.name): f for f in proto.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(key: tuple[str, str], above: tuple) -> int:
        if key in above:
            raise CheckpointError(f"{path}: function `{key[1]}` calls itself", "export the model again")
        if key not in sizes:
            sizes[key] = sum(size((n.domain, n.op_type), (*above, key)) if (n.domain, n.op_type) in functions else 1 for n in functions[key].node)
        return sizes[key]

    total = sum(size((n.domain, n.op_type), ()) if (n.domain, n.op_type) in functions else 1 for n in proto.graph.node)
    if total > MAX_NODES:
        raise CheckpointError(f"{path}: {total} nodes after writing out its functions, at most {MAX_NODES} are taken")
    return onnx.inliner.inline_local_functions(proto)


def _refuse_ops(path: Path, proto: onnx.ModelProto) -> None:
    nodes = list(proto.graph.node)
    if len(nodes) > MAX_NODES:
        raise CheckpointError(f"{path}: {len(nodes)} nodes, at most {MAX_NODES} are taken")
    for why, hint, found in (
        ("operators that are not ONNX's own", "export without them; no runtime of ours has them", [n for n in nodes if n.domain not in OWN_DOMAINS]),
        ("quantized already", "give the float model; edgekit quantizes it itself", [n for n in nodes if n.op_type in QUANTIZED]),
        ("random numbers", "export in eval mode", [n for n in nodes if n.op_type in RANDOM]),
        ("control flow", "export it as torch's tracing does, with static shapes", [n for n in nodes if any(a.HasField("g") or a.graphs for a in n.attribute)]),
    ):
        if found:
            kinds = sorted({f"`{n.domain}::{n.op_type}`" if n.domain else f"`{n.op_type}`" for n in found})
            raise CheckpointError(f"{path}: {why}: {', '.join(kinds[:5])}{', …' if len(kinds) > 5 else ''}, first in node `{found[0].name}`", hint)


def _drop_default_inputs(proto: onnx.ModelProto) -> None:
    """Before IR version 4 every weight was an input too, which a caller may override; nobody does here."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    kept = [value for value in proto.graph.input if value.name not in weights]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)


def _fix_shapes(path: Path, proto: onnx.ModelProto, sources: Mapping[str, Mapping[str, Any]]) -> None:
    """Batch 1, and the recipe's sizes where the file leaves them open; inferred shapes of before are dropped."""
    known = {value.name for value in proto.graph.input}
    for name in sources:
        if name not in known:
            raise RecipeError(f"`load.inputs.{name}`: {path} has no such input", f"it has {', '.join(f'`{n}`' for n in sorted(known))}")
    for value in proto.graph.input:
        if not value.type.HasField("tensor_type"):
            raise CheckpointError(f"{path}: input `{value.name}` is not a tensor")
        dims = value.type.tensor_type.shape.dim
        seen = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims]
        wish = sources.get(value.name, {}).get("shape")
        if not dims:
            raise CheckpointError(f"{path}: input `{value.name}` has no shape, or no batch axis", "export with batch 1 in front")
        if wish is not None and len(wish) != len(dims):
            raise RecipeError(f"`load.inputs.{value.name}.shape`: {list(wish)}, the file has {seen}")
        for i, dim in enumerate(dims):
            static = dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
            size = static if static is not None else wish[i] if wish is not None else 1 if i == 0 else None
            if size is None:
                raise RecipeError(f"`load.inputs.{value.name}`: {path} leaves its shape open: {seen}", "give `shape`, with batch 1 in front")
            if (wish is not None and size != wish[i]) or (i == 0 and size != 1):
                raise RecipeError(f"`load.inputs.{value.name}`: shape {seen} in {path}, wanted {list(wish) if wish else [1, *seen[1:]]}", "export it with batch 1 and this shape")
            dim.Clear()
            dim.dim_value = size
    del proto.graph.value_info[:]
    for value in proto.graph.output:  # inferred anew, for these sizes
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()


def _check(path: Path, proto: onnx.ModelProto) -> None:
    """ONNX's own checker, and static shapes for everything."""
    import onnx

    del proto.metadata_props[:]
    del proto.training_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
        onnx.checker.check_model(inferred)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CheckpointError(f"{path}: not a valid ONNX model: {first.strip()[:300]}", "export the model again") from None
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        sizes = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if prod(sizes) > MAX_ELEMENTS:
            raise CheckpointError(f"{path}: tensor `{value.name}` has shape {sizes}, at most {MAX_ELEMENTS} elements are taken")
    _infer_outputs(path, proto)


def _infer_outputs(path: Path, proto: onnx.ModelProto) -> None:
    """Static shapes of the outputs, where need be after folding what shapes decide."""
    import onnx

    folded, _ = graph.simplified(proto)
    inferred = {v.name: v for v in onnx.shape_inference.infer_shapes(folded or proto, data_prop=True).graph.output}
    for value in proto.graph.output:
        dims = inferred[value.name].type.tensor_type.shape.dim
        if not inferred[value.name].type.tensor_type.HasField("shape") or not all(d.HasField("dim_value") and d.dim_value > 0 for d in dims):
            seen = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims]
            raise CheckpointError(f"{path}: output `{value.name}` has no static shape: {seen}", "its size depends on values; export a form that does not")
        if not dims or dims[0].dim_value != 1:
            raise CheckpointError(f"{path}: output `{value.name}` has shape {[d.dim_value for d in dims]}, expected batch 1 in front")
        value.CopyFrom(inferred[value.name])


def _refuse_types(path: Path, proto: onnx.ModelProto) -> None:
    import onnx

    for kind, values in (("input", proto.graph.input), ("output", proto.graph.output)):
        for value in values:
            element = value.type.tensor_type.elem_type
            if element != onnx.TensorProto.FLOAT:
                raise CheckpointError(f"{path}: {kind} `{value.name}` is {onnx.TensorProto.DataType.Name(element).lower()}, only float32 is taken", "export the float32 model")


def _require_running(path: Path, model: bytes) -> None:
    try:
        graph.on_random_inputs(model)
    # ONNX Runtime raises types of its own, without a common base: all of them say that this graph does not run.
    except Exception as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CheckpointError(f"{path}: ONNX Runtime cannot run it: {first[:300]}", "export the model again") from None


def _count_finite(path: Path, model: ir.Model, theirs: Mapping[str, str]) -> int:
    """How many weights there are.

    Raises:
        CheckpointError: one holds NaN or infinity.
    """
    count = 0
    for name, value in model.graph.initializers.items():
        array = graph.constant(value)
        if array is None or array.dtype.kind != "f":
            continue
        # A mask may hold -inf on purpose; a weight of a layer may not.
        layers = {use.node.op_type for use in value.uses()}
        if np.isnan(array).any() or (layers & set(graph.MAC_OPS) and not np.isfinite(array).all()):
            raise CheckpointError(f"{path}: `{theirs.get(name, name)}` holds NaN or infinity", "the training diverged, or the file is damaged")
        count += array.size if array.ndim else 0
    return count


# --------------------------------------------------------------------------- to our form


def _at_our_opset(path: Path, proto: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The same graph at our opset; what brought it there (`by`), and how far apart they are on random inputs (`max_abs`).

    Raises:
        CheckpointError: ONNX cannot convert it, or converts it wrongly.
    """
    import onnx
    from onnx import version_converter

    opset = next(entry.version for entry in proto.opset_import if entry.domain in OWN_DOMAINS)
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    del copy.opset_import[:]  # of domains that nothing uses any more
    copy.opset_import.append(onnx.helper.make_opsetid("", opset))
    if opset == graph.OPSET:
        copy.ir_version = min(copy.ir_version, graph.IR_VERSION)
        return copy, {"by": None, "max_abs": None}
    hint = f"export it with opset {graph.OPSET}: torch.onnx.export(..., opset_version={graph.OPSET}, dynamo=False)"
    fault = None
    for by, convert in (("onnx.version_converter", version_converter.convert_version), ("relabelling", _relabelled)):
        try:
            converted = convert(copy, graph.OPSET)
            converted.ir_version = graph.IR_VERSION
            onnx.checker.check_model(converted, full_check=True)
            max_abs, largest = graph.difference(graph.on_random_inputs(copy.SerializeToString()), graph.on_random_inputs(converted.SerializeToString()))
        # The converter's C++ core raises whatever fits; ONNX Runtime has types of its own. The graph is then not converted.
        except Exception as error:
            fault = fault or next((line.strip()[:200] for line in str(error).splitlines() if line.strip()), type(error).__name__)
            continue
        if max_abs <= graph.PROOF_TOLERANCE * largest:  # NaN fails
            return converted, {"by": by, "max_abs": max_abs}
        fault = fault or f"its outputs change by {max_abs:.3g}"
    raise CheckpointError(f"{path}: opset {opset} cannot be converted to {graph.OPSET}: {fault}", hint)


def _relabelled(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The same nodes under an older opset, for those that have not changed but in the types they take.

    Two that changed their form are rewritten: reductions, whose axes became an input in 18, and Gelu, which
    is a function since 20. The checker and a run decide whether the rest fits.
    """
    import onnx
    from onnx import helper, numpy_helper

    converted = onnx.ModelProto.FromString(proto.SerializeToString())
    constants = {tensor.name: tensor for tensor in converted.graph.initializer}
    constants |= {node.output[0]: a.t for node in converted.graph.node if node.op_type == "Constant" for a in node.attribute if a.name == "value"}
    nodes = []
    for node in converted.graph.node:
        if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum" and len(node.input) == 2:
            axes = numpy_helper.to_array(constants[node.input.pop()]).tolist() if node.input[1] else None
            if axes is not None:
                node.attribute.append(helper.make_attribute("axes", axes))
        elif node.op_type == "Split":
            kept = [a for a in node.attribute if a.name != "num_outputs"]
            del node.attribute[:]
            node.attribute.extend(kept)
        elif node.op_type == "Gelu":
            nodes += _gelu(node, converted)
            continue
        nodes.append(node)
    del converted.graph.node[:]
    converted.graph.node.extend(nodes)
    converted.opset_import[0].version = opset
    return converted


def _gelu(node: onnx.NodeProto, proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    """x/2 · (1 + erf(x/√2)), or with approximate="tanh" x/2 · (1 + tanh(√(2/π)·(x + 0.044715·x³)))."""
    from onnx import helper, numpy_helper

    is_tanh = any(a.name == "approximate" and a.s == b"tanh" for a in node.attribute)
    x, y, base = node.input[0], node.output[0], node.name or node.output[0]

    def number(name: str, value: float) -> str:
        proto.graph.initializer.append(numpy_helper.from_array(np.float32(value), f"{base}/{name}"))
        return f"{base}/{name}"

    def make(op: str, *inputs: str, out: str | None = None) -> str:
        out = out or f"{base}/{op}_{len(made)}"
        made.append(helper.make_node(op, inputs, [out], name=out if out != y else f"{base}/Mul"))
        return out

    made: list[onnx.NodeProto] = []
    if is_tanh:
        cube = make("Mul", make("Mul", x, x), x)
        inner = make("Mul", make("Add", x, make("Mul", cube, number("c", 0.044715))), number("k", float(np.sqrt(2 / np.pi))))
        bent = make("Tanh", inner)
    else:
        bent = make("Erf", make("Div", x, number("sqrt2", float(np.sqrt(2)))))
    make("Mul", make("Mul", x, make("Add", bent, number("one", 1.0))), number("half", 0.5), out=y)
    return made


def _name_ports(proto: onnx.ModelProto) -> dict[str, str]:
    """Make the names of inputs and outputs safe in vendors' files; {our name: the file's}."""
    taken = {name for node in proto.graph.node for name in (*node.input, *node.output)}
    names: dict[str, str] = {}
    for value in (*proto.graph.input, *proto.graph.output):
        old = value.name
        clean = re.sub(r"[^A-Za-z0-9_./-]+", "_", old).strip("/") or "tensor"
        new = clean
        while new != old and new in taken:
            new += "_"
        names[new] = old
        if new == old:
            continue
        taken.add(new)
        value.name = new
        for node in proto.graph.node:
            for side in (node.input, node.output):
                for i, name in enumerate(side):
                    if name == old:
                        side[i] = new
    return names


def _of_the_file(names: dict[str, dict[str, str]], port_names: dict[str, str], proto: onnx.ModelProto) -> dict[str, dict[str, str]]:
    """`rename`'s map without what the conversions made up."""
    nodes = {node.name for node in proto.graph.node}
    tensors = {name for node in proto.graph.node for name in (*node.input, *node.output)} | {port.name for port in proto.graph.input}
    tensor_names = {name: port_names.get(old, old) for name, old in names["tensors"].items()}
    return {
        "nodes": {name: old for name, old in names["nodes"].items() if old in nodes},
        "tensors": {name: old for name, old in tensor_names.items() if old in tensors},
        "ports": port_names,
    }


def _squeeze_outputs(proto: onnx.ModelProto) -> None:
    """One number for each clip is [1], as in our own models: [1, 1] and the like get a Reshape."""
    from onnx import helper, numpy_helper

    for value in proto.graph.output:
        dims = value.type.tensor_type.shape.dim
        if len(dims) == 1 or prod(d.dim_value for d in dims) != 1:
            continue
        inner, shape = f"{value.name}_as_given", f"{value.name}_shape"
        for node in proto.graph.node:
            for side in (node.input, node.output):
                for i, name in enumerate(side):
                    if name == value.name:
                        side[i] = inner
        proto.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), shape))
        proto.graph.node.append(helper.make_node("Reshape", [inner, shape], [value.name], name=f"{value.name}/Reshape"))
        del dims[1:]


def _shape(value: onnx.ValueInfoProto) -> Shape:
    return tuple(d.dim_value for d in value.type.tensor_type.shape.dim)

"""ONNX graphs through onnx-ir: export from torch, MACs, the op table, editing.

The exact rewrites that targets ask for stand in `rewrites/`, their Q/DQ form is made by `qdq.py`; all share `Editor`.

Names matter here more than usual: scales, precisions and skips are all addressed by tensor or
node name, and end up in text files of vendors who split on `:` and `,`. So every name is
unique and made of [A-Za-z0-9_./-] only, and the node's name is the module's path.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import CheckpointError, EdgekitError
from .progress import note

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from .formats import Engine

OPSET = 17
PROOF_TOLERANCE = 1e-4  # of the largest output: float32 keeps 1e-7, and a deep net's sums in another order lose about 100 times that
IR_VERSION = 8  # of ONNX 1.12, the first with opset 17: newer ones make old parsers warn

MAC_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "Scan")


# --------------------------------------------------------------------------- export


def export_onnx(engine: Engine, path: Path) -> dict[str, Any]:
    """Write an engine's module as ONNX: opset 17, static shapes, one LSTM or GRU op per layer.

    The exporter folds a BatchNorm behind a convolution; others, and all that is computed from constants, weight
    norm too, are folded by `canonical`, so that every shape is a constant and every weight a plain initializer.

    Returns:
        what `canonical` did.

    Raises:
        CheckpointError: a weight holds NaN or infinity.
        EdgekitError: the exported shapes are not the engine's.
    """
    import copy
    import warnings

    import torch

    for name, tensor in engine.module.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"engine `{engine.name}`: weight `{name}` holds NaN or infinity")

    module = copy.deepcopy(engine.module).cpu().float().eval()
    # Not zeros: an op that divides by a norm would fold to NaN while tracing.
    generator = torch.Generator().manual_seed(0)
    examples = tuple(torch.randn(shape, generator=generator) for shape in engine.inputs.values())
    path.parent.mkdir(parents=True, exist_ok=True)
    # dynamo=False: one LSTM/GRU op per layer, 0.1 s instead of 10, and no bugs on RNNs.
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            examples,
            str(path),
            dynamo=False,
            opset_version=OPSET,
            do_constant_folding=True,
            input_names=list(engine.inputs),
            output_names=list(engine.outputs),
        )
    model, log, _ = canonical(path.read_bytes(), f"engine `{engine.name}`")
    for kind, values, want in (("input", model.graph.inputs, engine.inputs), ("output", model.graph.outputs, engine.outputs)):
        got = {value.name: shape_of(value) for value in values}
        if got != {name: tuple(shape) for name, shape in want.items()}:
            raise EdgekitError(f"engine `{engine.name}`: exported {kind}s are {got}, expected {dict(want)}")
    save(model, path)
    return log


def canonical(exported: bytes, where: str) -> tuple[ir.Model, dict[str, Any], dict[str, dict[str, str]]]:
    """A graph as all stages want it: simplified, tidy, renamed, and proven to compute what it did.

    onnxsim first: it folds what hangs on constants and shapes, with ONNX Runtime. Its graph optimizer stays
    off, since it turns MatMul and Add into Gemm between Reshapes and gives layers new names
    (docs/design.md has the numbers). A graph that it breaks or refuses is taken as exported, and the log says so.

    Args:
        exported: a serialized model with static shapes; every input float32.
        where: what to call it in messages.

    Returns:
        the model, and {"nodes": {"exported", "simplified", "final"}, "onnxsim": "used" or why not,
        "max_abs" on random inputs against the graph as exported, "largest_output"}, and `rename`'s map.

    Raises:
        EdgekitError: `tidy` changes what the graph computes.
    """
    import onnx
    import onnx_ir as ir

    proto = onnx.load_from_string(exported)
    nodes = {"exported": len(proto.graph.node)}
    want = on_random_inputs(exported)
    folded, fault = simplified(proto)
    for source in (folded, proto):
        if source is None:
            continue
        model = ir.from_proto(source)
        tidy(model)
        names = rename(model)
        model.ir_version = IR_VERSION
        max_abs, largest = difference(want, on_random_inputs(ir.to_proto(model).SerializeToString()))
        if max_abs <= PROOF_TOLERANCE * largest:  # NaN fails; no floor, since an untrained net's outputs may all be 1e-9
            nodes |= {"simplified": len((folded or proto).graph.node), "final": len(model.graph)}
            return model, {"nodes": nodes, "onnxsim": fault or "used", "max_abs": max_abs, "largest_output": largest}, names
        if source is folded:
            fault = f"not used: outputs change by {max_abs:.3g} (max_abs), the largest is {largest:.3g}"
            note(f"{where}: onnxsim {fault}")
    raise EdgekitError(
        f"{where}: folding constants changes the outputs by {max_abs:.3g} (max_abs), the largest is {largest:.3g}", "this is a bug of edgekit; please report it"
    )


def simplified(proto: onnx.ModelProto) -> tuple[onnx.ModelProto | None, str | None]:
    """(the graph without what constants and shapes decide, None), or (None, why onnxsim would not)."""
    import onnxsim

    try:
        folded, _ = onnxsim.simplify(proto, perform_optimization=False, certify=False)
    # Errors of its C++ core come as RuntimeError, ValueError or types of its own; whichever it is, the graph is taken as exported.
    except Exception as error:
        return None, f"not used: {type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
    return folded, None


def on_random_inputs(model: bytes) -> list[np.ndarray]:
    """Outputs for normally distributed inputs, the same for every form of a graph."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # As written: fusions would only add their own rounding.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    return session.run(None, {value.name: rng.standard_normal(value.shape, np.float32) for value in session.get_inputs()})


def difference(want: list[np.ndarray], got: list[np.ndarray]) -> tuple[float, float]:
    """(largest absolute difference, largest absolute value); NaN unless both are finite in the same places."""
    worst = largest = 0.0
    for a, b in zip(want, got, strict=True):
        finite = np.isfinite(a)
        if a.shape != b.shape or not np.array_equal(finite, np.isfinite(b)):
            return math.nan, largest
        worst = max(worst, float(np.abs(a[finite] - b[finite]).max(initial=0)))
        largest = max(largest, float(np.abs(a[finite]).max(initial=0)))
    return worst, largest


def load(path: Path) -> ir.Model:
    """The model at `path`, with every tensor in memory."""
    import onnx_ir as ir

    return ir.load(path)


def save(model: ir.Model, path: Path) -> None:
    """Write `model` in one file, the same bytes for the same graph."""
    import onnx_ir as ir

    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "edgekit", ""
    for node in model.graph:
        node.doc_string = None
        node.metadata_props.clear()
    path.parent.mkdir(parents=True, exist_ok=True)
    ir.save(model, path)


def tidy(model: ir.Model) -> None:
    """Make a graph canonical without changing any value.

    ensures: constants and everything computed from constants are initializers of the node that
    uses them; no Identity, no Reshape, Transpose, Expand or MaxPool that changes nothing; no batch norm that a
    layer beside it can take in; nothing unused; every tensor has a static shape; nodes in topological order.
    """
    import onnx_ir.passes.common as passes

    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for _ in range(10):  # folding a Shape makes the next shape inference see more
        passes.ShapeInferencePass()(model)
        changed = _fold_constants(model)
        changed |= bool(passes.IdentityEliminationPass()(model).modified)
        changed |= _drop_no_ops(model)
        changed |= _fold_batch_norms(model)
        passes.RemoveUnusedNodesPass()(model)
        if not changed:
            break
    _trim_optional(model)
    passes.TopologicalSortPass()(model)
    for node in model.graph:
        for value in node.outputs:
            if value.name and value.shape is None:
                raise EdgekitError(f"node `{node.name}` ({node.op_type}): no static shape for `{value.name}`")


def _trim_optional(model: ir.Model) -> None:
    """Drop trailing outputs nobody reads (an LSTM's last h and c): parsers need not make them."""
    kept = {value.name for value in model.graph.outputs}
    for node in model.graph:
        if node.op_type in ("LSTM", "GRU"):
            used = [i for i, value in enumerate(node.outputs) if value.uses() or value.name in kept]
            if used and used[-1] + 1 < len(node.outputs):
                node.resize_outputs(used[-1] + 1)


def _fold_constants(model: ir.Model) -> bool:
    """Replace nodes that compute on constants (or ask for a static shape) by initializers."""
    import onnx
    import onnx_ir as ir
    from onnx.reference import ReferenceEvaluator

    edit = Editor(model)
    changed = False
    outputs = {value.name for value in model.graph.outputs}
    for node in list(model.graph):
        if any(value.name in outputs for value in node.outputs):
            continue
        if node.op_type == "Shape" and node.inputs[0].shape is not None and node.inputs[0].shape.is_static():
            start, end = attribute(node, "start", 0), attribute(node, "end", None)
            folded = [np.array(shape_of(node.inputs[0])[start:end], np.int64)]
        elif node.inputs and all(value is None or constant(value) is not None for value in node.inputs):
            names = [f"i{i}" if value is not None else "" for i, value in enumerate(node.inputs)]
            feeds = {name: constant(value) for name, value in zip(names, node.inputs, strict=True) if value is not None}
            lone = onnx.helper.make_node(node.op_type, names, [f"o{i}" for i in range(len(node.outputs))])
            lone.attribute.extend(ir.to_proto(a) for a in node.attributes.values())
            graph = onnx.helper.make_graph(
                [lone],
                "fold",
                [onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in feeds.items()],
                [onnx.helper.make_empty_tensor_value_info(name) for name in lone.output],
            )
            folded = ReferenceEvaluator(
                onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)])
            ).run(None, feeds)
        else:
            continue
        for old, array in zip(node.outputs, folded, strict=True):
            edit.replace(old, edit.constant(old.name, np.asarray(array)))
        model.graph.remove(node, safe=True)
        changed = True
    return changed


_BROADCASTS = ("Add", "Sub", "Mul", "Div")


def _drop_no_ops(model: ir.Model) -> bool:
    """Remove Reshape, Transpose, Squeeze, Expand... whose output is their input, Dropout, Expand before arithmetic that broadcasts by itself."""
    edit = Editor(model)
    changed = False
    for node in list(model.graph):
        if not node.inputs or node.inputs[0] is None:
            continue
        source, result = node.inputs[0], node.outputs[0]
        same_shape = _static(source) and _static(result) and shape_of(source) == shape_of(result)
        is_no_op = (
            (node.op_type in ("Reshape", "Flatten", "Expand", "Squeeze", "Unsqueeze") and same_shape)
            or (node.op_type == "Transpose" and list(attribute(node, "perm", [])) == sorted(attribute(node, "perm", [-1])))
            or (node.op_type == "Dropout" and len(node.inputs) < 3)
            or (node.op_type == "Cast" and source.dtype == result.dtype)
            or (node.op_type == "Expand" and _broadcasts_itself(result))
            or (node.op_type == "MaxPool" and same_shape and set(attribute(node, "kernel_shape", [0])) == {1} and len(node.outputs) == 1)
        )
        # A graph input must not become a graph output: an engine binding is one or the other.
        if is_no_op and not (result.is_graph_output() and (source.is_graph_input() or source.is_graph_output())):
            edit.replace(result, source)
            model.graph.remove(node, safe=True)
            changed = True
    return changed


def _broadcasts_itself(expanded: ir.Value) -> bool:
    """Whether all readers of an Expand's output are arithmetic whose other operand has its shape already."""
    uses = list(expanded.uses())
    if not uses or expanded.is_graph_output() or not _static(expanded):
        return False
    others = [use.node.inputs[1 - use.idx] for use in uses if use.node.op_type in _BROADCASTS]
    return len(others) == len(uses) and all(other is not expanded and _static(other) and shape_of(other) == shape_of(expanded) for other in others)


def _fold_batch_norms(model: ir.Model) -> bool:
    """Write a batch norm into the Conv or Gemm that makes its input, or into the one that reads its output.

    The exporter does the first for convolutions only. Behind a norm, a convolution that pads keeps it: the
    border is zeros after the norm, not before.
    """
    edit = Editor(model)
    changed = False
    for node in [node for node in model.graph if node.op_type == "BatchNormalization"]:
        affine = batch_norm_affine(node)
        if affine is None or any(extra.uses() for extra in node.outputs[1:]):
            continue
        x, y = node.inputs[0], node.outputs[0]
        if _takes_weights(layer := x.producer(), ("Conv", "Gemm")) and len(x.uses()) == 1 and not x.is_graph_output():
            _scale_channels(edit, layer, *affine)
            edit.replace(y, x)
        elif (reader := _unpadded_reader(y)) is not None:
            _scale_inputs(edit, reader, *affine)
            edit.replace(y, x)
        else:
            continue
        model.graph.remove(node, safe=True)
        changed = True
    return changed


def batch_norm_affine(node: ir.Node) -> tuple[np.ndarray, np.ndarray] | None:
    """(factor, shift) float64 [channels] of a BatchNormalization in inference form, or None if its statistics are computed."""
    parts = [constant(value) for value in node.inputs[1:5]]
    if any(part is None for part in parts) or attribute(node, "training_mode", 0):
        return None
    gamma, beta, mean, variance = (part.astype(np.float64) for part in parts)
    factor = gamma / np.sqrt(variance + float(attribute(node, "epsilon", 1e-5)))
    return factor, beta - mean * factor


def _takes_weights(node: ir.Node | None, ops: tuple[str, ...]) -> bool:
    """Whether a layer's weight and bias are constants that may be changed."""
    if node is None or node.op_type not in ops or constant(node.inputs[1]) is None:
        return False
    if len(node.inputs) > 2 and node.inputs[2] is not None and constant(node.inputs[2]) is None:
        return False
    return node.op_type == "Conv" or (not attribute(node, "transA", 0) and attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0)


def _unpadded_reader(value: ir.Value) -> ir.Node | None:
    """The Conv without padding, or the Gemm (through a Flatten of everything behind the batch), that alone reads a batch norm's output."""
    channels = shape_of(value)[1]
    while len(value.uses()) == 1 and not value.is_graph_output():
        node = next(iter(value.uses())).node
        if node.op_type in ("Flatten", "Reshape") and len(shape_of(node.outputs[0])) == 2 and shape_of(node.outputs[0])[0] == shape_of(value)[0]:
            value = node.outputs[0]
            continue
        if not _takes_weights(node, ("Conv", "Gemm")) or node.inputs[0] is not value:
            return None
        if node.op_type == "Conv" and (any(attribute(node, "pads", [0])) or attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID") or shape_of(value)[1] != channels):
            return None
        return node
    return None


def _scale_channels(edit: Editor, layer: ir.Node, factor: np.ndarray, shift: np.ndarray) -> None:
    """Let a layer compute factor * y + shift, one of each for every output channel."""
    weight = constant(layer.inputs[1]).astype(np.float64)
    axis = 1 if layer.op_type == "Gemm" and not attribute(layer, "transB", 0) else 0
    _set_weights(edit, layer, weight * factor.reshape([-1 if i == axis else 1 for i in range(weight.ndim)]), _bias_of(layer) * factor + shift)


def _scale_inputs(edit: Editor, layer: ir.Node, factor: np.ndarray, shift: np.ndarray) -> None:
    """Let a layer read factor * x + shift, one of each for every channel of x; a Gemm's columns may be several for one channel."""
    weight = constant(layer.inputs[1]).astype(np.float64)
    if layer.op_type == "Gemm":
        rows = weight if attribute(layer, "transB", 0) else weight.T  # [out, in]
        factor, shift = (np.repeat(terms, rows.shape[1] // len(terms)) for terms in (factor, shift))
        bias, rows = _bias_of(layer) + rows @ shift, rows * factor
        _set_weights(edit, layer, rows if attribute(layer, "transB", 0) else rows.T, bias)
        return
    group = attribute(layer, "group", 1)
    grouped = weight.reshape(group, len(weight) // group, weight.shape[1], -1)  # [group, out, in, kernel]
    factor, shift = (terms.reshape(group, 1, -1, 1) for terms in (factor, shift))
    bias = _bias_of(layer) + (grouped * shift).sum((2, 3)).reshape(-1)
    _set_weights(edit, layer, (grouped * factor).reshape(weight.shape), bias)


def _bias_of(layer: ir.Node) -> np.ndarray | float:
    bias = constant(layer.inputs[2]) if len(layer.inputs) > 2 else None
    return 0.0 if bias is None else bias.astype(np.float64).reshape(-1)


def _set_weights(edit: Editor, layer: ir.Node, weight: np.ndarray, bias: np.ndarray) -> None:
    if len(layer.inputs) < 3:
        layer.resize_inputs(3)
    for i, array in ((1, weight), (2, bias)):
        layer.replace_input_with(i, edit.constant(f"{layer.name}.{_input_name(layer.op_type, i)}", array.astype(np.float32)))


def rename(model: ir.Model) -> dict[str, dict[str, str]]:
    """Give every node and tensor a unique name of [A-Za-z0-9_./-], from the module's path where there is one.

    Graph inputs and outputs keep their names. A node's name is the module's path and its op
    (`encoder/layers.0/attention/q_proj/MatMul`; a second call of the module counts up), a tensor's is its node's with `_out`, a weight's
    its node's with the ONNX input's name.

    Returns:
        {"nodes": {new name: old}, "tensors": {new: old}}, without those that had no name.
    """
    nodes = [(node, node.name) for node in model.graph]
    tensors = [(value, value.name) for value in (*model.graph.inputs, *model.graph.initializers.values(), *(v for n in model.graph for v in n.outputs))]
    ports = [value.name for value in (*model.graph.inputs, *model.graph.outputs)]
    taken = set(ports)

    def unique(wanted: str) -> str:
        clean = re.sub(r"[^A-Za-z0-9_./-]+", "_", wanted.lstrip("/")).strip("/") or "tensor"
        name, i = clean, 1
        while name in taken:
            name, i = f"{clean}_{i}", i + 1
        taken.add(name)
        return name

    for node in model.graph:
        node.name = unique(_short_path(node.name or node.op_type))
    for node in model.graph:
        for i, value in enumerate(node.outputs):
            if value.name and value.name not in ports:
                value.name = unique(node.name + ("_out" if len(node.outputs) == 1 else f"_out{i}"))
    # Temporary names first, since an old name may be another's new one.
    initializers = list(model.graph.initializers.values())
    for i, value in enumerate(initializers):
        value.name = f"\0{i}"
    for value in initializers:
        uses = list(value.uses())
        node, index = (uses[0].node, uses[0].idx) if uses else (None, 0)
        value.name = unique(f"{node.name}.{_input_name(node.op_type, index)}" if node else "unused")
    return {"nodes": {n.name: old for n, old in nodes if n.name and old}, "tensors": {v.name: old for v, old in tensors if v.name and old}}


def _short_path(scope: str) -> str:
    """The exporter's scope without the parents that nn.Sequential repeats: /net/net.0/net.0.1/Conv -> net.0.1/Conv."""
    parts: list[str] = []
    for part in scope.strip("/").split("/"):
        if parts and part.startswith(parts[-1] + "."):
            parts[-1] = part
        else:
            parts.append(part)
    return "/".join(parts)


_INPUT_NAMES = {
    "Conv": ("x", "weight", "bias"),
    "ConvTranspose": ("x", "weight", "bias"),
    "Gemm": ("x", "weight", "bias"),
    "LSTM": ("x", "W", "R", "B", "lens", "h0", "c0"),
    "GRU": ("x", "W", "R", "B", "lens", "h0"),
    "LayerNormalization": ("x", "weight", "bias"),
    "InstanceNormalization": ("x", "weight", "bias"),
    "Reshape": ("x", "shape"),
}


def _input_name(op_type: str, index: int) -> str:
    names = _INPUT_NAMES.get(op_type, ())
    return names[index] if index < len(names) else f"in{index}"


# --------------------------------------------------------------------------- reading


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array of an initializer, or None for an activation."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """The static shape of a value."""
    return tuple(int(d) for d in value.shape)


def _static(value: ir.Value) -> bool:
    return value.shape is not None and value.shape.is_static()


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    found = node.attributes.get(name)
    return default if found is None else found.value


def is_float(value: ir.Value) -> bool:
    import onnx_ir as ir

    return value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


def dtype_name(value: ir.Value) -> str:
    """The ONNX data type as targets/*.yaml spells it: float32, int64, bool..."""
    name = value.dtype.name.lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def count_macs(model: Path | ir.Model) -> dict[str, int]:
    """Multiply-accumulates of one run: {node name: MACs}, for MAC_OPS only, in graph order.

    Every MatMul counts, activation × activation too. An LSTM or GRU counts both its matrices at
    every time step, a Scan the products in its body (ours scan over axis 0). Biases, gates and element-wise ops do not count.
    """
    model = model if not isinstance(model, (str, Path)) else load(model)
    macs = {}
    for node in model.graph:
        if node.op_type not in MAC_OPS:
            continue
        shapes = [None if value is None else shape_of(value) for value in node.inputs]
        out = shape_of(node.outputs[0])
        if node.op_type == "Conv":
            macs[node.name] = math.prod(out) * math.prod(shapes[1][1:])
        elif node.op_type == "ConvTranspose":
            macs[node.name] = math.prod(shapes[0]) * math.prod(shapes[1][1:])
        elif node.op_type == "Gemm":
            macs[node.name] = math.prod(out) * shapes[0][0 if attribute(node, "transA", 0) else 1]
        elif node.op_type == "MatMul":
            macs[node.name] = math.prod(out) * shapes[0][-1]
        elif node.op_type == "Scan":
            body, sequences = node.attributes["body"].value, int(attribute(node, "num_scan_inputs", 0))
            once = sum(math.prod(shape_of(n.outputs[0])) * shape_of(n.inputs[0])[-1] for n in body if n.op_type == "MatMul")
            macs[node.name] = shapes[len(shapes) - sequences][0] * once
        else:  # LSTM, GRU: x [T, B, I] (or [B, T, I]), W [dirs, gates*H, I], R [dirs, gates*H, H]
            macs[node.name] = shapes[0][0] * shapes[0][1] * (math.prod(shapes[1]) + math.prod(shapes[2]))
    return macs


def data_input(node: ir.Node) -> ir.Value:
    """The value whose rank and type decide whether a target takes the node.

    The first activation of float type, else the first activation, else the output.
    """
    activations = [value for value in node.inputs if value is not None and constant(value) is None]
    floats = [value for value in activations if is_float(value)]
    return (floats or activations or list(node.outputs))[0]


def op_table(model: Path | ir.Model) -> list[dict[str, Any]]:
    """What a plan needs to judge a target: {op, rank, dtype, count, inputs, const_inputs} of every kind of node.

    rank and dtype are those of `data_input`; inputs holds the ranks of all inputs (-1: left out).
    """
    model = model if not isinstance(model, (str, Path)) else load(model)
    rows: Counter = Counter()
    for node in model.graph:
        value = data_input(node)
        ranks = tuple(-1 if v is None or v.shape is None else len(v.shape) for v in node.inputs)
        const = tuple(v is not None and constant(v) is not None for v in node.inputs)
        rows[(node.op_type, len(value.shape), dtype_name(value), ranks, const)] += 1
    keys = ("op", "rank", "dtype", "inputs", "const_inputs")
    return [
        {**dict(zip(keys, (op, rank, dtype, list(ranks), list(const)), strict=True)), "count": count}
        for (op, rank, dtype, ranks, const), count in sorted(rows.items())
    ]


# --------------------------------------------------------------------------- editing


class Editor:
    """The few edits that rewrites are made of. Names stay unique; new tensors carry their shape."""

    def __init__(self, model: ir.Model):
        self.model = model
        self.graph = model.graph
        self._taken = {value.name for value in (*self.graph.inputs, *self.graph.initializers.values())}
        for node in self.graph:
            self._taken.add(node.name)
            self._taken.update(value.name for value in node.outputs)

    def unique(self, wanted: str) -> str:
        name, i = wanted, 1
        while name in self._taken:
            name, i = f"{wanted}_{i}", i + 1
        self._taken.add(name)
        return name

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """A new initializer."""
        import onnx_ir as ir

        name = self.unique(name)
        value = ir.Value(name=name, const_value=ir.tensor(np.ascontiguousarray(array).reshape(np.shape(array)), name=name))
        value.dtype, value.shape = value.const_value.dtype, ir.Shape(np.shape(array))
        self.graph.register_initializer(value)
        return value

    def add(
        self,
        before: ir.Node,
        op_type: str,
        inputs: list[ir.Value | None],
        shape: Iterable[int],
        attributes: Mapping[str, Any] | None = None,
        name: str = "",
        dtype: ir.DataType | None = None,
    ) -> ir.Value:
        """Insert a node with one output before `before` and return the output."""
        import onnx_ir as ir

        name = self.unique(name or f"{before.name}/{op_type}")
        node = ir.node(op_type, inputs, attributes, name=name)
        out = node.outputs[0]
        out.name = self.unique(f"{name}_out")
        out.shape = ir.Shape(tuple(shape))
        out.dtype = dtype or inputs[0].dtype
        self.graph.insert_before(before, node)
        return out

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let everybody who reads `old` read `new`; a graph output keeps its name."""
        if old.is_graph_output():
            name = old.name
            old.name = self.unique(f"{name}_before")
            new.name = name
        old.replace_all_uses_with(new, replace_graph_outputs=True)

    def take_over(self, old: ir.Value, new: ir.Value) -> None:
        """Like replace, for a `new` that holds the same values in the same shape: it takes the name of `old` too."""
        name = old.name
        if not old.is_graph_output():
            old.name = self.unique(f"{name}_before")
            new.name = name
        self.replace(old, new)


# --------------------------------------------------------------------------- value-preserving ops

LAYOUT_OPS = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity")
COPY_OPS = (*LAYOUT_OPS, "Concat", "Expand", "Gather", "Pad", "Slice", "Split")  # values go through unchanged
LOOP_OPS = ("LSTM", "GRU")


def aliases(model: ir.Model) -> dict[str, str]:
    """{tensor: the tensor it only rearranges}: a layout op's output has its input's range."""
    found: dict[str, str] = {}
    for node in model.graph:
        if node.op_type in LAYOUT_OPS and is_float(node.outputs[0]):
            source = node.inputs[0].name
            found[node.outputs[0].name] = found.get(source, source)
    return found


def worth_observing(model: ir.Model) -> list[str]:
    """Float activations whose range some target may need, without those that only rearrange another.

    These are graph inputs and outputs and what Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU,
    pooling, Concat and a residual Add read or write, and what an activation after one of these
    writes. Left out is the inside of composed ops (GELU's Erf, a norm's square, a softmax's
    input), which no INT8 target quantizes on its own: it would triple the time for nothing.
    """
    rearranged = aliases(model)
    wanted: set[str] = set()

    def want(value: ir.Value | None) -> None:
        if value is not None and constant(value) is None and value.name and value.dtype is not None and is_float(value):
            wanted.add(rearranged.get(value.name, value.name))

    for value in (*model.graph.inputs, *model.graph.outputs):
        want(value)
    for node in model.graph:
        activations = [v for v in node.inputs if v is not None and constant(v) is None]
        producers = {v.producer().op_type for v in activations if v.producer() is not None}
        is_compute = node.op_type in (*MAC_OPS, "Concat", "AveragePool", "MaxPool", "GlobalAveragePool", "ReduceMean")
        is_add = node.op_type == "Add" and (len(activations) == 2 or producers & set(MAC_OPS))
        is_activation = node.op_type in ("Relu", "Clip", "PRelu", "LeakyRelu", "Sigmoid", "Tanh", "HardSwish") and producers & {
            *MAC_OPS,
            "Add",
        }
        if is_compute or is_add or is_activation:
            for value in (*node.inputs, *node.outputs):
                want(value)
    order = [v.name for v in model.graph.inputs] + [v.name for node in model.graph for v in node.outputs]
    return [name for name in order if name in wanted]

"""In which precision the compiled model runs the layers of the ONNX graph.

The plug-in fuses, renames and swallows layers, and says for each of its own nodes from which it was
made (`originalLayersNames`) and in which type it reads its data (`runtimePrecision`). So the way is

    ONNX node -> its output tensor, whose name the IR keeps -> up to the IR's Convolution, MatMul or
    LSTMSequence -> the compiled node that carries its name, or that of an op soon after it: a MatMul
    without Q/DQ is called by its bias Add, and one of an attention by what follows it. One that lost
    every name still reads its own weight.

Attention becomes one `Subgraph` whose type is that of its first input. A MatMul inside counts as
INT8 if the IR has Q/DQ on both its inputs and the subgraph reads as many integer tensors as all its
quantized MatMuls take from outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    import openvino as ov

PRECISIONS = {"u8": "int8", "i8": "int8", "f32": "fp32", "f16": "fp16", "bf16": "bf16"}
RNN = ("LSTMSequence", "GRUSequence", "LSTMCell", "GRUCell")
MAC_TYPES = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul", *RNN)
# What the plug-in calls its nodes that multiply and add; the rest (Reorder, Transpose, Eltwise...) may carry a layer's name too.
COMPUTE = ("Convolution", "Deconvolution", "FullyConnected", "MatMul", "RNNSeq", "RNNCell", "ScaledDotProductAttention", "Subgraph")
SUFFIX = "/DequantizationMultiply"
WEIGHT_OF = "weight of "  # before a layer's name: the node that reads its weight
WEIGHT_ENDINGS = (".weight.int8", "/transpose_b")  # how a layer's weight is called after it
HOPS = 8


@dataclass(frozen=True)
class Node:
    """A node of the compiled model: its type, the type of its data, how many integer tensors it reads."""

    name: str
    kind: str
    precision: str
    integers: int


def precisions(xml: Path, config: Mapping[str, Any], tensors: Mapping[str, str]) -> dict[str, str]:
    """{layer: `int8`, `fp32`, `fp16` or `bf16`}, of `tensors` {layer: the name of its output tensor}.

    Raises:
        EdgekitError: a layer is not found, or runs in a type that is none of these.
    """
    from edgekit.backends.openvino import runtime

    core = runtime().Core()
    model = core.read_model(xml)
    executed = _executed(core.compile_model(model, "CPU", dict(config)))
    made = {name: output.get_node() for op in model.get_ordered_ops() for output in op.outputs() for name in output.get_names()}
    found, swallowed = {}, {}
    for layer, tensor in tensors.items():
        op = _up(made.get(tensor))
        node = None if op is None else _down(op, executed)
        if node is None:
            raise EdgekitError(f"{xml}: layer `{layer}` is not in the model that OpenVINO compiled", "its precision cannot be measured")
        if node.precision not in PRECISIONS:
            raise EdgekitError(f"{xml}: OpenVINO runs layer `{layer}` in `{node.precision}`, known: {', '.join(PRECISIONS)}")
        found[layer] = PRECISIONS[node.precision]
        if node.kind == "Subgraph":
            swallowed.setdefault(node.name, (node, {}))[1][layer] = op
    for node, matmuls in swallowed.values():
        found.update(_in_subgraph(node, matmuls, PRECISIONS[str(config["INFERENCE_PRECISION_HINT"])]))
    return found


def _executed(compiled: ov.CompiledModel) -> dict[str, Node]:
    """The compiled nodes that compute, by every name of the IR that they were made from."""
    nodes: dict[str, Node] = {}
    for op in compiled.get_runtime_model().get_ordered_ops():
        info = op.get_rt_info()
        kind = info["layerType"].astype(str)
        if kind not in COMPUTE:
            continue
        read = [port.get_source_output().get_element_type().get_type_name() for port in op.inputs()]
        node = Node(op.get_friendly_name(), kind, info["runtimePrecision"].astype(str), sum(PRECISIONS.get(name) == "int8" for name in read))
        for name in _layers_of_weights(op):
            nodes.setdefault(f"{WEIGHT_OF}{name}", node)
        for name in (op.get_friendly_name(), *info["originalLayersNames"].astype(str).split(",")):
            name = name.removesuffix(SUFFIX)
            # A Subgraph may be nothing but the element-wise ops after a layer of the same name.
            if name and (name not in nodes or nodes[name].kind == "Subgraph"):
                nodes[name] = node
        if kind == "RNNSeq":
            for joint in _joints(op):
                nodes.setdefault(joint, node)
    return nodes


def _layers_of_weights(op: ov.Node) -> list[str]:
    """The layers whose constant weights a compiled node reads, turned or not, by the weights' names."""
    names = [port.get_source_output().get_node().get_friendly_name() for port in op.inputs()]
    return [name.removesuffix(ending) for name in names for ending in WEIGHT_ENDINGS if name.endswith(ending)]


def _joints(op: ov.Node) -> list[str]:
    """Where the two directions of a recurrent layer meet again, which alone carries its name: `name.0` of a Concatenation."""
    after = [port.get_node() for port in op.output(0).get_target_inputs()]
    after += [port.get_node() for reshape in after for port in reshape.output(0).get_target_inputs()]
    return [node.get_friendly_name().removesuffix(".0") for node in after if node.get_rt_info()["layerType"].astype(str) == "Concatenation"]


def _up(op: ov.Node | None) -> ov.Node | None:
    """The op that multiplies, at `op` or before it: biases, transposes and reshapes come after."""
    for _ in range(HOPS):
        if op is None or op.get_type_name() in MAC_TYPES:
            return op
        op = op.input_value(0).get_node() if op.get_input_size() else None
    return None


def _down(op: ov.Node, executed: Mapping[str, Node]) -> Node | None:
    """The compiled node that computes `op`."""
    may_swallow = op.get_type_name() == "MatMul" and not any(_is_constant(port) for port in op.input_values())
    kinds = COMPUTE if may_swallow else tuple(kind for kind in COMPUTE if kind != "Subgraph")
    here = [op]
    for _ in range(HOPS):
        for candidate in here:
            node = executed.get(candidate.get_friendly_name().removesuffix(SUFFIX))
            if node is not None and node.kind in kinds:
                return node
        here = [port.get_node() for candidate in here for output in candidate.outputs() for port in output.get_target_inputs()]
        # Beyond the next layer that multiplies, a name is that layer's own. Attention holds two, in one node.
        here = [after for after in here if after.get_type_name() not in MAC_TYPES]
    return executed.get(WEIGHT_OF + op.get_friendly_name().removesuffix("/WithoutBiases"))


def _is_constant(port: ov.Output) -> bool:
    """Whether a tensor is computed from constants only: a weight, its Q/DQ too. No recursion: an activation has the whole network before it."""
    waiting, seen = [port.get_node()], set()
    while waiting:
        op = waiting.pop()
        if op.get_friendly_name() in seen or op.get_type_name() == "Constant":
            continue
        if not op.get_input_size():
            return False
        seen.add(op.get_friendly_name())
        waiting += [before.get_node() for before in op.input_values()]
    return True


def _in_subgraph(node: Node, matmuls: Mapping[str, ov.Node], floating: str) -> dict[str, str]:
    """The precision of the MatMuls that one Subgraph computes."""
    quantized = {layer: op for layer, op in matmuls.items() if all(_is_quantized(port.get_node()) for port in op.input_values())}
    inside = {op.get_friendly_name() for op in matmuls.values()}
    outer = [port for op in quantized.values() for port in op.input_values() if not _follows(port.get_node(), inside)]
    precision = "int8" if node.integers >= len(outer) else floating
    return {layer: precision if layer in quantized else floating for layer in matmuls}


def _is_quantized(op: ov.Node) -> bool:
    """Whether `op` gives what DequantizeLinear gives: Multiply of (Subtract of) a converted integer, or a FakeQuantize."""
    if op.get_type_name() == "FakeQuantize":
        return True
    if op.get_type_name() not in ("Multiply", "Subtract", "Convert"):
        return False
    read = op.input(0)
    return (op.get_type_name() == "Convert" and read.get_element_type().get_type_name() in ("i8", "u8")) or _is_quantized(read.get_source_output().get_node())


def _follows(op: ov.Node, names: set[str]) -> bool:
    """Whether one of the ops called `names` comes before `op`, with no other layer between."""
    while op.get_input_size() and op.get_type_name() not in MAC_TYPES:
        op = op.input_value(0).get_node()
    return op.get_friendly_name() in names

"""An OpenVINO IR with its inner tensors in reach.

Its ops are told as an ONNX graph of the same shape, so that matching and bisection know one kind of graph only:
FakeQuantize is a QuantizeLinear, and the Convert, Subtract and Multiply behind it are its DequantizeLinear. Running is
OpenVINO's. A result on an inner tensor keeps it from being fused into the next op; the integer kernels stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.parity.matching import Match
from edgekit.parity.surgery import HALF, QUANTIZE, Grid, Net, Rounding

Arrays = Mapping[str, np.ndarray]
Call = Callable[[Arrays], dict[str, np.ndarray]]

OPS = {
    "Convolution": "Conv", "GroupConvolution": "Conv", "ConvolutionBackpropData": "ConvTranspose", "FakeQuantize": "QuantizeLinear", "Multiply": "Mul", "Subtract": "Sub", "Divide": "Div",
    "LSTMSequence": "LSTM", "GRUSequence": "GRU", "SoftMax": "Softmax", "MVN": "LayerNormalization", "Convert": "Cast",
}  # fmt: skip


class OpenvinoInside:
    """The CPU plug-in with float layers in float32."""

    def __init__(self, path: Path, threads: int | None = None):
        import openvino as ov

        self._core, self._path, self._threads = ov.Core(), path, threads
        self._model = self._core.read_model(path)
        self._ops: list[Any] = []
        floats = [_name(port) for op in self._model.get_ordered_ops() for port in op.outputs() if port.get_element_type().get_type_name() in ("f32", "f16", "f64")]
        self.net = Net(self._told(), floats)

    # ------------------------------------------------------------------------- structure

    def _told(self) -> Any:
        """The IR as an ONNX model, whose nodes are self._ops in their order."""
        from onnx import helper

        nodes, rounded = [], set()
        for op in self._model.get_ordered_ops():
            kind = op.get_type_name()
            if kind in ("Parameter", "Result"):
                continue
            told = OPS.get(kind, kind)
            source = op.input_value(0).get_node().get_friendly_name() if op.get_input_size() else ""
            if kind == "FakeQuantize" or (source in rounded and kind in ("Convert", "Subtract", "Multiply")):
                rounded.add(op.get_friendly_name())
                told = "DequantizeLinear" if kind == "Multiply" else "QuantizeLinear"
                if told == "DequantizeLinear":
                    rounded.discard(op.get_friendly_name())
            self._ops.append(op)
            inputs = [_name(op.input_value(i)) for i in range(op.get_input_size())]
            nodes.append(helper.make_node(told, inputs, [_name(port) for port in op.outputs()], name=op.get_friendly_name(), domain="" if told in QUANTIZE or told == "DequantizeLinear" or not inputs else "openvino"))
        ports = [[helper.make_empty_tensor_value_info(_name(port)) for port in side] for side in (self._model.inputs, [r.input_value(0) for r in self._model.get_results()])]
        return helper.make_model(helper.make_graph(nodes, "ir", *ports))

    def rounding(self, tensor: str, partner: str, matched: Mapping[str, Match]) -> Rounding:
        part = self.net.part(tensor, matched)
        reads: dict[str, Grid] = {}
        output = None
        weights: list[tuple[tuple[int, ...], int | None]] = []
        for i in part.nodes:
            op = self._ops[i]
            if op.get_type_name() == "FakeQuantize" and (grid := _grid(op)) is not None:
                source = self.net.source(self.net.nodes[i].input[0])
                if source in part.taps and source in matched:
                    reads[matched[source].a] = grid
                else:
                    output = grid
            for k in range(op.get_input_size()):
                if self.net.nodes[i].input[k] in self.net.constants and (found := _short_weight(op.input_value(k))) is not None:
                    weights.append(found)
        return Rounding(partner, reads, output, tuple(weights))

    # ------------------------------------------------------------------------- running

    def open(self, wanted: Iterable[str]) -> Call:
        wanted = list(dict.fromkeys(wanted))
        model = self._core.read_model(self._path)
        named = _ports(model)
        computed = [name for name in wanted if name in named and name not in self.net.inputs]
        call = self._compiled(model, [named[name] for name in computed], computed)
        return lambda feeds: {**{name: feeds[name] for name in wanted if name in feeds}, **call(feeds)}

    def open_loose(self, matched: Mapping[str, Match], examples: Arrays, wanted: Iterable[str]) -> Call:
        import openvino as ov
        from openvino import opset13

        model = self._core.read_model(self._path)
        named = _ports(model)
        feeds = {}
        for name in matched:
            if name in self.net.inputs or name not in named:
                continue
            example = examples[name]
            parameter = opset13.parameter(ov.PartialShape(list(example.shape)), named[name].get_element_type(), name=f"{name}/clean")
            parameter.output(0).set_names({f"{name}/clean"})
            for target in named[name].get_target_inputs():
                if target.get_node().get_type_name() != "Result":
                    target.replace_source_output(parameter.output(0))
            model.add_parameters([parameter])
            feeds[f"{name}/clean"] = name
        computed = [name for name in wanted if name in named and name not in self.net.inputs]
        call = self._compiled(model, [named[name] for name in computed], computed)
        return lambda clean: call({**{name: clean[name] for name in self.net.inputs}, **{feed: clean[name] for feed, name in feeds.items()}})

    def _compiled(self, model: Any, ports: list[Any], names: list[str]) -> Call:
        before = len(model.outputs)
        # A port that is an output already gives no second one.
        given = {name: i for i, result in enumerate(model.get_results()) for name in [_name(result.input_value(0))]}
        added = [(name, port) for name, port in zip(names, ports, strict=True) if name not in given]
        if added:
            model.add_outputs([port for _, port in added])
        at = {**given, **{name: before + i for i, (name, _) in enumerate(added)}}
        config = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
        if self._threads is not None:
            config["INFERENCE_NUM_THREADS"] = str(self._threads)
        request = self._core.compile_model(model, "CPU", config).create_infer_request()
        ports_of = {name for port in model.inputs for name in port.get_names()}

        def call(feeds: Arrays) -> dict[str, np.ndarray]:
            request.infer({name: np.ascontiguousarray(value) for name, value in feeds.items() if name in ports_of})
            return {name: np.array(request.get_output_tensor(at[name]).data) for name in names}

        return call


def _name(port: Any) -> str:
    """A tensor's name in the IR; the op's where it has none."""
    names = sorted(port.get_names())
    node = port.get_node()
    return names[0] if names else node.get_friendly_name() if node.get_output_size() == 1 else f"{node.get_friendly_name()}.{port.get_index()}"


def _ports(model: Any) -> dict[str, Any]:
    return {_name(port): port for op in model.get_ordered_ops() if op.get_type_name() != "Result" for port in op.outputs()}


def _value(port: Any) -> np.ndarray | None:
    node = port.get_node()
    return np.array(node.data) if node.get_type_name() == "Constant" else None


def _grid(op: Any) -> Grid | None:
    """The grid of a FakeQuantize of 256 levels with one range."""
    low, high = _value(op.input_value(1)), _value(op.input_value(2))
    if low is None or high is None or low.size != 1 or op.get_attributes().get("levels") != 256:
        return None
    low, high = float(low.reshape(-1)[0]), float(high.reshape(-1)[0])
    scale = (high - low) / 255
    return Grid(np.dtype("uint8"), scale, round(-low / scale)) if scale > 0 else None


def _short_weight(port: Any) -> tuple[tuple[int, ...], int | None] | None:
    """(shape, axis of its scales) of a weight that is made of integers; axis HALF of one in float16."""
    scales, node = None, port.get_node()
    while node.get_type_name() in ("Multiply", "Subtract", "Convert", "Reshape"):
        if node.get_type_name() == "Multiply":
            scales = _value(node.input_value(1))
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant":  # a recurrent layer's gates are put into another order
        halves = [n for n in _ancestors(node) if n.get_type_name() == "Constant" and n.get_element_type().get_type_name() == "f16"]
        return (tuple(halves[0].get_output_shape(0)), HALF) if halves else None
    kind = node.get_element_type().get_type_name()
    shape = tuple(node.get_output_shape(0))
    if kind == "f16":
        return shape, HALF
    if kind not in ("i8", "u8") or scales is None:
        return None
    return shape, next((k for k in reversed(range(scales.ndim)) if scales.shape[k] > 1), None)


def _ancestors(node: Any) -> list[Any]:
    found, stack = {}, [node]
    while stack:
        node = stack.pop()
        if node.get_friendly_name() not in found:
            found[node.get_friendly_name()] = node
            stack.extend(value.get_node() for value in node.input_values())
    return list(found.values())

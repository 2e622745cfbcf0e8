"""Arithmetic and activations: the order in which their input is stored is their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgekit.backends.tflite.lower import Constant, Lowering, Order, Ref, Tail, dtype_of, index_of, lowers, unsupported
from edgekit.backends.tflite.macs import ACTIVATIONS
from edgekit.backends.tflite.writer import Quant
from edgekit.graph import attribute, shape_of

if TYPE_CHECKING:
    import onnx_ir as ir

FORCED = {"LOGISTIC": Quant.per_tensor(1 / 256, -128), "SOFTMAX": Quant.per_tensor(1 / 256, -128), "TANH": Quant.per_tensor(1 / 128, 0)}
"""What the int8 kernels of these ops write in, whatever the data (tensorflow/lite/g3doc/performance/quantization_spec)."""


# --------------------------------------------------------------------------- two operands

_BINARY = {"Add": "ADD", "Sub": "SUB", "Mul": "MUL", "Div": "DIV", "Max": "MAXIMUM", "Min": "MINIMUM", "Pow": "POW"}
_COMPARISONS = {
    "Equal": "EQUAL",
    "Greater": "GREATER",
    "GreaterOrEqual": "GREATER_EQUAL",
    "Less": "LESS",
    "LessOrEqual": "LESS_EQUAL",
    "And": "LOGICAL_AND",
    "Or": "LOGICAL_OR",
}
_FUSES_ACTIVATION = ("ADD", "SUB", "MUL", "DIV")
_MOST_AXES = 4  # that broadcast in every kernel


def align(ref: Ref, rank: int) -> Ref:
    """The value with axes of length 1 in front, as ONNX broadcasts."""
    return ref.view((None,) * (rank - len(ref.shape)) + tuple(range(len(ref.shape))))


def common_order(refs: Sequence[Ref], shape: Sequence[int]) -> Order:
    """The order of the largest operand, with a place for every axis of the result: a new one stands before the axis that follows it."""
    driver = max(refs, key=lambda ref: math.prod(ref.shape))
    order = list(driver.order)
    if len(order) > _MOST_AXES:
        order = [a for a in order if a is not None and shape[a] > 1]
    for axis in reversed(range(len(shape))):
        if shape[axis] > 1 and axis not in order:
            following = [order.index(a) for a in range(axis + 1, len(shape)) if a in order]
            place = following[0] if following else len(order)
            if None in order[:place]:  # an axis of length 1 may just as well be this one
                order[max(i for i in range(place) if order[i] is None)] = axis
            else:
                order.insert(place, axis)
    return tuple(order)


def operands(low: Lowering, values: Sequence[ir.Value], rank: int) -> list[Ref | Constant]:
    return [low.constant(value) or align(low.ref(value), rank) for value in values]


def laid(low: Lowering, value: Ref | Constant, rank: int, order: Order) -> int:
    """An operand's tensor in `order`: floats, or its own type if that is not quantized."""
    return low.laid_constant(value, rank, order) if isinstance(value, Constant) else low.floats(value, order)


@lowers(*_BINARY)
def binary(low: Lowering, node: ir.Node) -> None:
    op = _BINARY[node.op_type]
    if op == "POW":
        return power(low, node)
    if len(node.inputs) == 1:
        return low.bind(node.outputs[0], low.ref(node.inputs[0]))
    if len(node.inputs) > 2:
        return variadic(low, node, op)
    tail = low.tail(node) if op in _FUSES_ACTIVATION else Tail(node.outputs[0], "NONE", low.quant_of(node.outputs[0]), (node,))
    shape = shape_of(node.outputs[0])
    values = operands(low, node.inputs, len(shape))
    refs = [value for value in values if isinstance(value, Ref)]
    if not refs:
        raise unsupported(node, "both operands are constants", "fold them first: graph.tidy")
    order = common_order(refs, shape)
    options = {"fusedActivationFunction": ACTIVATIONS[tail.activation]} if op in _FUSES_ACTIVATION else {}
    integer = _integer_operands(low, op, values, len(shape), order, tail.quant)
    if integer is not None:
        name, inputs, quant = integer
        out = low.emit(tail, name, inputs, shape, order, quant=quant, options=options)
        low.bind(tail.value, out if tail.quant is None else low.quantize(out, tail.quant))
        return None
    inputs = [laid(low, value, len(shape), order) for value in values]
    low.bind(tail.value, low.emit(tail, op, inputs, shape, order, dtype=low.sub.tensors[inputs[0]].dtype, options=options))
    return None


def _integer_operands(low: Lowering, op: str, values: list, rank: int, order: Order, quant: Quant | None) -> tuple[str, list[int], Quant] | None:
    """(op, its int8 inputs, its output's numbers) if the op can run in int8, else None.

    A constant takes part if it is one number: that is exactly representable, at its own scale.
    """
    if op == "DIV" and isinstance(values[1], Constant) and values[1].array.size == 1 and values[1].array.dtype == np.float32:
        op, values = "MUL", [values[0], Constant(values[1].name, (np.float32(1) / values[1].array).astype(np.float32))]
    if op in ("MAXIMUM", "MINIMUM"):
        same = {value.quant for value in values}
        if len(same) == 1 and None not in same and not any(isinstance(value, Constant) for value in values):
            return op, [low.native(value, order) for value in values], same.pop()
        return None
    if op not in ("ADD", "SUB", "MUL") or quant is None:
        return None
    inputs = []
    for value in values:
        if isinstance(value, Ref):
            if value.quant is None:
                return None
            inputs.append(low.native(value, order))
        elif value.integers is not None and len(value.quant.scale) == 1:
            inputs.append(low.laid_constant(value, rank, order, integers=True))
        elif value.array.size == 1 and value.array.dtype == np.float32:
            number = float(value.array.reshape(()))
            exact = Constant(f"{value.name}/int8", value.array, np.sign(value.array).astype(np.int8), Quant.per_tensor(abs(number) or 1.0))
            inputs.append(low.laid_constant(exact, rank, order, integers=True))
        else:
            return None
    return op, inputs, quant


def variadic(low: Lowering, node: ir.Node, op: str) -> None:
    """Max and Min of three and more, in pairs."""
    shape = shape_of(node.outputs[0])
    values = operands(low, node.inputs, len(shape))
    order = common_order([value for value in values if isinstance(value, Ref)], shape)
    index = laid(low, values[0], len(shape), order)
    for value in values[1:]:
        out = low.emit(node, op, [index, laid(low, value, len(shape), order)], shape, order)
        index = index_of(out)
    low.bind(node.outputs[0], out)


def power(low: Lowering, node: ir.Node) -> None:
    x, exponent = low.ref(node.inputs[0]), low.constant(node.inputs[1])
    if exponent is None or exponent.array.size != 1:
        raise unsupported(node, "the exponent is not one constant number")
    number, order = float(exponent.array.reshape(())), x.order
    source = low.floats(x, order)
    if number == 2.0:
        out = low.emit(node, "MUL", [source, source], order=order)
    elif number == 0.5:
        out = low.emit(node, "SQRT", [source], order=order)
    else:
        out = low.emit(node, "POW", [source, low.sub.constant(exponent.name, np.array(number, np.float32))], order=order)
    low.bind(node.outputs[0], out)


@lowers(*_COMPARISONS)
def comparison(low: Lowering, node: ir.Node) -> None:
    shape = shape_of(node.outputs[0])
    values = operands(low, node.inputs, len(shape))
    order = common_order([value for value in values if isinstance(value, Ref)], shape)
    inputs = [laid(low, value, len(shape), order) for value in values]
    low.bind(node.outputs[0], low.emit(node, _COMPARISONS[node.op_type], inputs, shape, order, dtype="bool"))


@lowers("Where")
def where(low: Lowering, node: ir.Node) -> None:
    shape = shape_of(node.outputs[0])
    values = operands(low, node.inputs, len(shape))
    order = common_order([value for value in values if isinstance(value, Ref)], shape)
    inputs = [laid(low, value, len(shape), order) for value in values]
    low.bind(node.outputs[0], low.emit(node, "SELECT_V2", inputs, shape, order, dtype=low.sub.tensors[inputs[1]].dtype))


@lowers("BatchNormalization", ranks=(2, 3, 4, 5))
def batch_norm(low: Lowering, node: ir.Node) -> None:
    """x * a + b, a and b per channel."""
    x = low.ref(node.inputs[0])
    parts = [low.constant(value) for value in node.inputs[1:5]]
    if any(part is None for part in parts):
        raise unsupported(node, "its statistics are not constants")
    gamma, beta, mean, var = (part.array.astype(np.float64) for part in parts)
    a = gamma / np.sqrt(var + float(attribute(node, "epsilon", 1e-5)))
    rank, order = len(x.shape), x.order
    factor, shift = (
        Constant(f"{node.name}.{name}", array.astype(np.float32).reshape(-1, *[1] * (rank - 2))) for name, array in (("scale", a), ("shift", beta - mean * a))
    )
    order = common_order([x], x.shape)
    scaled = low.emit(node, "MUL", [low.floats(x, order), low.laid_constant(factor, rank, order)], order=order, name=f"{node.name}/scaled")
    low.bind(node.outputs[0], low.emit(node, "ADD", [index_of(scaled), low.laid_constant(shift, rank, order)], order=order))


# --------------------------------------------------------------------------- one operand

_UNARY = {
    "Abs": "ABS",
    "Ceil": "CEIL",
    "Cos": "COS",
    "Elu": "ELU",
    "Exp": "EXP",
    "Floor": "FLOOR",
    "Gelu": "GELU",
    "HardSwish": "HARD_SWISH",
    "LeakyRelu": "LEAKY_RELU",
    "Log": "LOG",
    "Neg": "NEG",
    "Not": "LOGICAL_NOT",
    "Relu": "RELU",
    "Sigmoid": "LOGISTIC",
    "Sin": "SIN",
    "Sqrt": "SQRT",
    "Tanh": "TANH",
}
_INT8_UNARY = frozenset(["ELU", "EXP", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOG", "LOGISTIC", "RELU", "TANH"])


@lowers(*_UNARY)
def unary(low: Lowering, node: ir.Node) -> None:
    op = _UNARY[node.op_type]
    x, quant = low.ref(node.inputs[0]), low.quant_of(node.outputs[0])
    options = {}
    if op == "LEAKY_RELU":
        options["alpha"] = float(attribute(node, "alpha", 0.01))
    elif op == "GELU":
        options["approximate"] = attribute(node, "approximate", "none") == "tanh"
    elif op == "ELU" and float(attribute(node, "alpha", 1.0)) != 1.0:
        raise unsupported(node, "alpha is not 1")
    if op == "RELU" and x.quant is not None and quant is None:
        quant = x.quant  # exact: it only moves integers up to the zero point
    if x.quant is not None and quant is not None and op in _INT8_UNARY:
        out = low.emit(node, op, [low.native(x, x.order)], order=x.order, quant=FORCED.get(op, quant), options=options)
        low.bind(node.outputs[0], low.quantize(out, quant))
        return
    low.bind(node.outputs[0], low.emit(node, op, [low.floats(x, x.order)], order=x.order, options=options, dtype="bool" if op == "LOGICAL_NOT" else "float32"))


@lowers("Clip")
def clip(low: Lowering, node: ir.Node) -> None:
    """RELU6 and the like, or MAXIMUM and MINIMUM with constants.

    Rounding to a grid keeps order, so Q(clip(x)) = clip(Q(x)): an int8 Clip is one between integers.
    """
    x, limits, quant = low.ref(node.inputs[0]), low.clip_limits(node), low.quant_of(node.outputs[0])
    if limits is None:
        raise unsupported(node, "its bounds are not constants")
    order, fused = x.order, low.fused_activation(node)
    if fused is not None:
        integer = x.quant is not None and quant is not None
        source = low.native(x, order) if integer else low.floats(x, order)
        low.bind(node.outputs[0], low.emit(node, fused, [source], order=order, quant=quant if integer else None))
        return
    integer = x.quant is not None and quant is not None
    out = low.quantize(x, quant) if integer else x
    for op, limit in (("MAXIMUM", limits[0]), ("MINIMUM", limits[1])):
        if not math.isfinite(limit):
            continue
        bound = Constant(f"{node.name}/{op.lower()}", np.array(limit, np.float32))
        if integer:
            q = int(np.clip(np.rint(limit / quant.scale[0]) + quant.zero_point[0], -128, 127))
            if q == (-128 if op == "MAXIMUM" else 127):
                continue
            bound = Constant(f"{bound.name}/int8", bound.array, np.array(q, np.int8), quant)
        source = low.native(out, order) if integer else low.floats(out, order)
        constant = low.laid_constant(bound, len(x.shape), order, integers=integer)
        out = low.emit(node, op, [source, constant], order=order, quant=quant if integer else None, name=f"{node.outputs[0].name}")
    low.bind(node.outputs[0], out)


@lowers("PRelu")
def prelu(low: Lowering, node: ir.Node) -> None:
    x, slope = low.ref(node.inputs[0]), low.constant(node.inputs[1])
    if slope is None:
        raise unsupported(node, "its slope is not constant")
    quant = low.quant_of(node.outputs[0])
    if slope.array.size == 1:
        options = {"alpha": float(slope.array.reshape(()))}
        integer = x.quant is not None and quant is not None
        source = low.native(x, x.order) if integer else low.floats(x, x.order)
        low.bind(node.outputs[0], low.emit(node, "LEAKY_RELU", [source], order=x.order, quant=quant if integer else None, options=options))
        return
    order = common_order([x], x.shape)
    integer = x.quant is not None and quant is not None and slope.integers is not None and len(slope.quant.scale) == 1
    source = low.native(x, order) if integer else low.floats(x, order)
    slopes = low.laid_constant(slope, len(x.shape), order, integers=integer)
    low.bind(node.outputs[0], low.emit(node, "PRELU", [source, slopes], order=order, quant=quant if integer else None))


@lowers("HardSigmoid")
def hard_sigmoid(low: Lowering, node: ir.Node) -> None:
    """min(max(alpha x + beta, 0), 1)."""
    x = low.ref(node.inputs[0])
    out = index = low.floats(x, x.order)
    for op, number in (("MUL", attribute(node, "alpha", 0.2)), ("ADD", attribute(node, "beta", 0.5)), ("MAXIMUM", 0.0), ("MINIMUM", 1.0)):
        out = low.emit(node, op, [index, low.sub.constant(f"{node.name}/{op.lower()}", np.array(number, np.float32))], order=x.order)
        index = index_of(out)
    low.bind(node.outputs[0], out)


@lowers("Softplus")
def softplus(low: Lowering, node: ir.Node) -> None:
    """max(x, 0) + log(1 + exp(-|x|)), which never overflows."""
    x = low.ref(node.inputs[0])
    source = index = low.floats(x, x.order)
    for op in ("ABS", "NEG", "EXP"):
        index = index_of(low.emit(node, op, [index], order=x.order, name=f"{node.name}/{op.lower()}"))
    one = low.sub.constant(f"{node.name}/one", np.array(1, np.float32))
    index = index_of(low.emit(node, "ADD", [index, one], order=x.order, name=f"{node.name}/plus1"))
    index = index_of(low.emit(node, "LOG", [index], order=x.order, name=f"{node.name}/log"))
    positive = index_of(low.emit(node, "RELU", [source], order=x.order, name=f"{node.name}/relu"))
    low.bind(node.outputs[0], low.emit(node, "ADD", [positive, index], order=x.order))


@lowers("Cast")
def cast(low: Lowering, node: ir.Node) -> None:
    x, dtype = low.ref(node.inputs[0]), dtype_of(node.outputs[0])
    if x.quant is None and x.dtype == dtype:
        low.bind(node.outputs[0], x)
        return
    low.bind(node.outputs[0], low.emit(node, "CAST", [low.floats(x, x.order)], order=x.order, dtype=dtype))

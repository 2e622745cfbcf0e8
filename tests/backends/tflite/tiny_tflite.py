"""Small TFLite files, built from nothing but the schema, for the side environment and for Vela."""

from __future__ import annotations

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

FLOAT32, INT32, INT8 = schema.TensorType.FLOAT32, schema.TensorType.INT32, schema.TensorType.INT8
_DTYPES = {FLOAT32: np.float32, INT32: np.int32, INT8: np.int8}


class Net:
    """One subgraph under construction: `tensor` and `op` return tensor indices."""

    def __init__(self) -> None:
        self._tensors: list = []
        self._ops: list = []
        self._codes: list = []
        self._buffers = [schema.BufferT()]  # buffer 0 is empty by convention

    def tensor(self, name, shape, dtype=FLOAT32, data=None, scale=None, zero_point=0, axis=None) -> int:
        """`scale` is a number or, with `axis`, one per channel."""
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name, list(shape), dtype, 0
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data, _DTYPES[dtype]).tobytes(), np.uint8)
            self._buffers.append(buffer)
            made.buffer = len(self._buffers) - 1
        if scale is not None:
            quantization = schema.QuantizationParametersT()
            quantization.scale = np.atleast_1d(np.asarray(scale, np.float32))
            quantization.zeroPoint = np.full(quantization.scale.shape, zero_point, np.int64)
            quantization.quantizedDimension = axis or 0
            made.quantization = quantization
        self._tensors.append(made)
        return len(self._tensors) - 1

    def op(self, kind, inputs, output, options=None, version=1) -> int:
        """`kind` as in BuiltinOperator, such as "ADD"; `options` an object such as AddOptionsT()."""
        code = schema.OperatorCodeT()
        number = getattr(schema.BuiltinOperator, kind)
        code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), version
        self._codes.append(code)
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = len(self._codes) - 1, list(inputs), [output]
        if options is not None:
            made.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
            made.builtinOptions = options
        self._ops.append(made)
        return output

    def bytes(self, inputs: dict[str, int], outputs: dict[str, int]) -> bytes:
        graph = schema.SubGraphT()
        graph.name, graph.tensors, graph.operators = "main", self._tensors, self._ops
        graph.inputs, graph.outputs = list(inputs.values()), list(outputs.values())
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "serving_default", 0
        signature.inputs, signature.outputs = _map(inputs), _map(outputs)
        model = schema.ModelT()
        model.version, model.description = 3, "edgekit"
        model.operatorCodes, model.subgraphs, model.buffers, model.signatureDefs = self._codes, [graph], self._buffers, [signature]
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def _map(names: dict[str, int]) -> list:
    made = []
    for name, index in names.items():
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name, index
        made.append(entry)
    return made


W = np.array([[16, -32, 64, 127, -127, 5, 0, 8], [127, 1, 2, 3, 4, 5, 6, 7], [-9, 8, -127, 6, -5, 4, -3, 2], [127, 127, 127, 127, 127, 127, 127, 127]], np.int8)
W_SCALES = np.array([0.01, 0.02, 0.005, 0.002], np.float32)
X_SCALE, X_ZERO, Y_SCALE, Y_ZERO = 2.0**-5, 3, 2.0**-3, -5


def linear(float_io: bool = True) -> bytes:
    """x[1, 8] -> y[1, 4], INT8 fully connected with scales per channel; float outside if `float_io`."""
    net = Net()
    x8 = net.tensor("x_int8" if float_io else "x", [1, 8], INT8, scale=X_SCALE, zero_point=X_ZERO)
    y8 = net.tensor("y_int8" if float_io else "y", [1, 4], INT8, scale=Y_SCALE, zero_point=Y_ZERO)
    w = net.tensor("w", [4, 8], INT8, W, scale=W_SCALES, axis=0)
    b = net.tensor("b", [4], INT32, [10, -20, 30, 0], scale=W_SCALES * np.float32(X_SCALE), axis=0)
    x, y = x8, y8
    if float_io:
        x = net.tensor("x", [1, 8])
        net.op("QUANTIZE", [x], x8, schema.QuantizeOptionsT())
    net.op("FULLY_CONNECTED", [x8, w, b], y8, schema.FullyConnectedOptionsT(), version=4)
    if float_io:
        y = net.op("DEQUANTIZE", [y8], net.tensor("y", [1, 4]), schema.DequantizeOptionsT(), version=2)
    return net.bytes({"x": x}, {"y": y})


def attention_like() -> bytes:
    """x[1, 8, 8, 4] -> y[1, 64, 64]: convolution, reshape, a product of two activations and softmax in INT8, then a float sine."""
    net = Net()
    rng = np.random.default_rng(0)
    x = net.tensor("x", [1, 8, 8, 4])
    x8 = net.op("QUANTIZE", [x], net.tensor("x_int8", [1, 8, 8, 4], INT8, scale=2.0**-5, zero_point=3), schema.QuantizeOptionsT())
    w_scales = np.linspace(0.01, 0.02, 16, dtype=np.float32)
    w = net.tensor("w", [16, 3, 3, 4], INT8, rng.integers(-127, 128, (16, 3, 3, 4)), scale=w_scales, axis=0)
    b = net.tensor("b", [16], INT32, rng.integers(-999, 999, 16), scale=w_scales * np.float32(2.0**-5), axis=0)
    conv = schema.Conv2DOptionsT()
    conv.strideH = conv.strideW = conv.dilationHFactor = conv.dilationWFactor = 1
    conv.padding, conv.fusedActivationFunction = schema.Padding.SAME, schema.ActivationFunctionType.RELU
    c = net.op("CONV_2D", [x8, w, b], net.tensor("conv", [1, 8, 8, 16], INT8, scale=0.05, zero_point=-128), conv, version=3)
    flat = net.op("RESHAPE", [c, net.tensor("shape", [3], INT32, [1, 64, 16])], net.tensor("tokens", [1, 64, 16], INT8, scale=0.05, zero_point=-128), schema.ReshapeOptionsT())
    product = schema.BatchMatMulOptionsT()
    product.adjY = True
    scores = net.op("BATCH_MATMUL", [flat, flat], net.tensor("scores", [1, 64, 64], INT8, scale=0.5, zero_point=-20), product, version=2)
    softmax = schema.SoftmaxOptionsT()
    softmax.beta = 1.0
    p = net.op("SOFTMAX", [scores], net.tensor("softmax", [1, 64, 64], INT8, scale=1 / 256, zero_point=-128), softmax, version=2)
    p32 = net.op("DEQUANTIZE", [p], net.tensor("softmax_float", [1, 64, 64]), schema.DequantizeOptionsT(), version=2)
    y = net.op("SIN", [p32], net.tensor("y", [1, 64, 64]))
    return net.bytes({"x": x}, {"y": y})


def product() -> bytes:
    """a[1, 8, 16], b[1, 8, 16] -> y[1, 8, 8] = a b^T, in INT8 with zero points 0."""
    net = Net()
    a, b = (net.tensor(name, [1, 8, 16], INT8, scale=0.05) for name in ("a", "b"))
    options = _options("BatchMatMulOptionsT", adjY=True)
    y = net.op("BATCH_MATMUL", [a, b], net.tensor("y", [1, 8, 8], INT8, scale=0.5), options, version=2)
    return net.bytes({"a": a, "b": b}, {"y": y})


def _options(name, **values):
    made = getattr(schema, name)()
    for key, value in values.items():
        setattr(made, key, value)
    return made


_PICTURE, _POOLED, _MEANED = [1, 4, 4, 8], [1, 2, 2, 8], [1, 1, 1, 8]
_POOL = {"padding": 1, "strideH": 2, "strideW": 2, "filterHeight": 2, "filterWidth": 2}
# kind: (scales and zero points of the inputs, [shape, scale, zero point] of the output, options, int32 constants, version)
SINGLE_OPS = {
    "ADD": ([(0.05, 3), (0.07, -9)], [_PICTURE, 0.1, 0], ("AddOptionsT", {}), [], 2),
    "SUB": ([(0.05, 3), (0.07, -9)], [_PICTURE, 0.1, 0], ("SubOptionsT", {}), [], 2),
    "MUL": ([(0.05, 3), (0.07, -9)], [_PICTURE, 0.2, 0], ("MulOptionsT", {}), [], 2),
    "CONCATENATION": ([(0.05, 3), (0.05, 3)], [[1, 4, 4, 16], 0.05, 3], ("ConcatenationOptionsT", {"axis": 3}), [], 2),
    "AVERAGE_POOL_2D": ([(0.05, 3)], [_POOLED, 0.05, 3], ("Pool2DOptionsT", _POOL), [], 2),
    "MAX_POOL_2D": ([(0.05, 3)], [_POOLED, 0.05, 3], ("Pool2DOptionsT", _POOL), [], 2),
    "MEAN": ([(0.05, 3)], [_MEANED, 0.02, 3], ("ReducerOptionsT", {"keepDims": True}), [[1, 2]], 2),
    "REDUCE_MAX": ([(0.05, 3)], [_MEANED, 0.05, 3], ("ReducerOptionsT", {"keepDims": True}), [[1, 2]], 2),
    "LOGISTIC": ([(0.05, 3)], [_PICTURE, 1 / 256, -128], None, [], 2),
    "TANH": ([(0.02, 3)], [_PICTURE, 1 / 128, 0], None, [], 2),
    "SOFTMAX": ([(0.05, 3)], [_PICTURE, 1 / 256, -128], ("SoftmaxOptionsT", {"beta": 1.0}), [], 2),
    "GELU": ([(0.05, 3)], [_PICTURE, 0.03, -100], ("GeluOptionsT", {"approximate": False}), [], 1),
    "LEAKY_RELU": ([(0.05, 3)], [_PICTURE, 0.04, -60], ("LeakyReluOptionsT", {"alpha": 0.1}), [], 2),
    "RELU": ([(0.05, 3)], [_PICTURE, 0.03, -128], None, [], 2),
    "TRANSPOSE": ([(0.05, 3)], [[1, 8, 4, 4], 0.05, 3], ("TransposeOptionsT", {}), [[0, 3, 1, 2]], 2),
    "PAD": ([(0.05, 3)], [[1, 6, 6, 8], 0.05, 3], ("PadOptionsT", {}), [[[0, 0], [1, 1], [1, 1], [0, 0]]], 2),
}


def single_op(kind: str) -> bytes:
    """One INT8 op of SINGLE_OPS on pictures [1, 4, 4, 8]."""
    numbers, (shape, scale, zero_point), options, constants, version = SINGLE_OPS[kind]
    net = Net()
    inputs = {f"x{i}": net.tensor(f"x{i}", _PICTURE, INT8, scale=s, zero_point=z) for i, (s, z) in enumerate(numbers)}
    extra = [net.tensor(f"c{i}", np.shape(values), INT32, values) for i, values in enumerate(constants)]
    y = net.tensor("y", shape, INT8, scale=scale, zero_point=zero_point)
    net.op(kind, [*inputs.values(), *extra], y, None if options is None else _options(options[0], **options[1]), version)
    return net.bytes(inputs, {"y": y})

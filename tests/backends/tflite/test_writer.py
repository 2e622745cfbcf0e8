"""The flatbuffer: bytes that repeat, constants once, versions of the types, and ports by name."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.backends.tflite.writer import ALIGNMENT, Model, Quant, Tensor, op_version
from edgekit.errors import EdgekitError

pytest.importorskip("ai_edge_litert")

F = "float32"


def conv(seed: int = 0) -> Model:
    rng = np.random.default_rng(seed)
    model = Model("a convolution and its GELU")
    main = model.subgraph("main")
    x = main.tensor("x", (1, 4, 4, 3), F)
    weight = main.constant("w", rng.standard_normal((8, 3, 3, 3)).astype(np.float32))
    y, z = main.tensor("y", (1, 2, 2, 8), F), main.tensor("z", (1, 2, 2, 8), F)
    bias = main.constant("b", np.zeros(8, np.float32))
    main.op("CONV_2D", [x, weight, bias], [y], {"padding": 1, "strideW": 1, "strideH": 1})
    main.op("GELU", [y], [z])
    main.inputs, main.outputs = {"picture": x}, {"features": z}
    return model


def interpreter(model: Model):
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(model_content=model.serialize(), num_threads=1)


def test_the_interpreter_runs_it_by_signature_names():
    runner = interpreter(conv()).get_signature_runner("serving_default")
    assert list(runner.get_input_details()) == ["picture"] and list(runner.get_output_details()) == ["features"]
    assert runner(picture=np.zeros((1, 4, 4, 3), np.float32))["features"].tolist() == np.zeros((1, 2, 2, 8)).tolist()


def test_the_same_calls_give_the_same_bytes():
    assert conv().serialize() == conv().serialize() != conv(seed=1).serialize()


def test_equal_bytes_are_stored_once_across_subgraphs():
    big = np.arange(5000, dtype=np.float32)

    def size(copies: int) -> int:
        model = Model()
        for i in range(copies):
            part = model.subgraph(f"part{i}")
            part.constant("c", big.copy())
            assert part.constant("again", big.copy()) == 0
        return len(model.serialize())

    assert size(2) - size(1) < 500 < big.nbytes


def test_constants_start_at_a_multiple_of_the_schemas_alignment():
    from ai_edge_litert import schema_py_generated as schema

    data = conv().serialize()
    model = schema.Model.GetRootAs(data, 0)
    starts = []
    for i in range(model.BuffersLength()):
        buffer = model.Buffers(i)
        if buffer.DataLength():
            starts.append(buffer._tab.Vector(buffer._tab.Offset(4)))
    assert len(starts) == 3 and all(start % ALIGNMENT == 0 for start in starts)


def test_the_file_says_which_runtime_it_needs():
    model = conv()
    assert model.min_runtime_version() == "2.9.0"  # for GELU
    assert b"min_runtime_version" in model.serialize() and b"2.9.0\0" in model.serialize()


def test_a_name_that_is_taken_gets_a_number_and_wrong_data_is_refused():
    main = Model().subgraph("main")
    main.tensor("x", (1,), F)
    assert main.tensors[main.tensor("x", (1,), F)].name == "x;1"
    with pytest.raises(EdgekitError, match="data is float64"):
        main.tensor("c", (1,), F, np.zeros(1))
    with pytest.raises(EdgekitError, match="no option `stride`"):
        main.op("CONV_2D", [0, main.constant("w", np.zeros((1, 1, 1, 1), np.float32))], [1], {"stride": 1}, version=1)
        main.model.subgraphs[0].inputs = {"x": 0}
        main.model.serialize()


def t(shape, dtype="int8", scale=0.1):
    return Tensor("t", tuple(shape), dtype, Quant.per_tensor(scale) if dtype == "int8" else None, False)


@pytest.mark.parametrize(
    "op, inputs, output, options, version",
    [
        ("CONV_2D", [t((1, 4, 4, 8)), t((8, 1, 1, 8))], t((1, 4, 4, 8)), {}, 3),
        ("CONV_2D", [t((1, 4, 4, 8), F), t((8, 1, 1, 8), F)], t((1, 4, 4, 8), F), {}, 1),
        ("CONV_2D", [t((1, 4, 4, 8), F), t((8, 1, 1, 4), F)], t((1, 4, 4, 8), F), {}, 6),
        ("DEPTHWISE_CONV_2D", [t((1, 4, 4, 8), F), t((1, 3, 3, 8), F)], t((1, 4, 4, 8), F), {"dilationWFactor": 2}, 2),
        ("FULLY_CONNECTED", [t((1, 8)), t((8, 8)), t((8,))], t((1, 8)), {}, 4),
        ("FULLY_CONNECTED", [t((1, 8)), t((8, 8)), t((8,))], t((1, 8)), {"keepNumDims": True}, 5),
        ("FULLY_CONNECTED", [t((1, 8)), t((8, 8))], t((1, 8)), {}, 6),
        ("TRANSPOSE_CONV", [t((4,), "int32"), t((8, 2, 2, 8)), t((1, 2, 2, 8)), t((8,))], t((1, 4, 4, 8)), {}, 3),
        ("MUL", [t((2,)), t((2,))], t((2,)), {}, 2),
        ("MUL", [t((2,), scale=2), t((2,), scale=2)], t((2,), scale=1), {}, 3),
        ("ADD", [t((2,)), t((2,))], t((2,)), {}, 2),
        ("ADD", [t((2,), F), t((2,), F)], t((2,), F), {}, 1),
        ("SUB", [t((1, 1, 1, 1, 2), F), t((2, 2, 2, 2, 2), F)], t((2, 2, 2, 2, 2), F), {}, 3),
        ("TRANSPOSE", [t((1, 2, 3, 4, 5), F), t((5,), "int32")], t((5, 4, 3, 2, 1), F), {}, 4),
        ("QUANTIZE", [t((2,), F)], t((2,)), {}, 1),
        ("DEQUANTIZE", [t((2,))], t((2,), F), {}, 2),
    ],
)
def test_versions_are_those_of_tensorflow_lites_table(op, inputs, output, options, version):
    assert op_version(op, inputs, [output], options) == version

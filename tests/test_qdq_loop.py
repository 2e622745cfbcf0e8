"""A recurrent layer on integers: what is rounded, on which scales, and that the state keeps its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import graph, qdq_loop, rewrites
from edgekit.errors import EdgekitError
from edgekit.quant import Histogram, Numbers, Range, Scale, fake_quantize, scale_of
from tests.onnx_nets import Lambda, export, run

TFLITE = Numbers(dtype="int8", symmetric=False, outputs=True)
KINDS = {"lstm": nn.LSTM, "gru": nn.GRU}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("qdq_loop")


@dataclass
class Net:
    """A one-layer net as float.onnx, its Scan, and the ranges that some sequences give."""

    path: object
    model: object
    ranges: dict[str, Range]

    @property
    def scan(self):
        return next(node for node in self.model.graph if node.op_type == "Scan")

    def quantized(self, cell: str, **options):
        """(path, Scan) of the graph with Q/DQ in its body."""
        model = self.model.clone()
        scan = next(node for node in model.graph if node.op_type == "Scan")
        qdq_loop.quantize_scan(scan, self.ranges, TFLITE, cell, **options)
        path = self.path.with_suffix(f".{cell}.onnx")
        graph.save(model, path)
        return path, scan


def sequences(count: int, steps: int, width: int = 12) -> list[np.ndarray]:
    """Smooth random sequences, so that there is something to remember."""
    rng = np.random.default_rng(7)
    noise = rng.standard_normal((count, 1, steps, width)).astype(np.float32)
    for t in range(1, steps):
        noise[:, :, t] = 0.8 * noise[:, :, t - 1] + 0.6 * noise[:, :, t]
    return list(noise)


def net(folder, kind: str, steps: int = 20, hidden: int = 16, state: float | None = None, **options) -> Net:
    """`state`: also give the states out, and start at this value."""
    torch.manual_seed(3)
    rnn = KINDS[kind](12, hidden, batch_first=True, **options)
    with torch.no_grad():
        for p in rnn.parameters():
            p.normal_(0, 0.35)

    def forward(m, x):
        start = torch.full((1 + m.rnn.bidirectional, 1, hidden), state or 0.0)
        y, last = m.rnn(x, start if kind == "gru" else (start, start))
        return y if state is None else (y, *([last] if kind == "gru" else last))

    path = export(folder, Lambda(forward, rnn=rnn), (1, steps, 12), name=f"{kind}{steps}")
    model = graph.load(path)
    rewrites.apply(model, "rnn_to_scan")
    graph.save(model, path)
    wanted = {name for node in model.graph if node.op_type == "Scan" for cell in qdq_loop.CELLS for name in qdq_loop.tensors_of(node, cell).observed}
    histograms = {name: Histogram() for name in wanted}
    for x in sequences(8, steps):
        values = run(path, {"x0": x}, also=sorted(wanted - {"y0", "y1", "y2"}))
        for name, histogram in histograms.items():
            histogram.update(values[name])
    return Net(path, model, {name: h.minmax() for name, h in histograms.items()})


def sqnr_db(want: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10((want**2).sum() / ((want - got) ** 2).sum()))


def outputs(path, xs) -> np.ndarray:
    return np.stack([run(path, {"x0": x})["y0"] for x in xs])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell, least_db", [("int8", 24), ("float", 30)])
def test_a_loop_on_integers_stays_near_the_float_one(folder, kind, cell, least_db):
    made = net(folder, kind)
    xs = sequences(12, 20)[8:]
    quantized, _ = made.quantized(cell)
    assert least_db < sqnr_db(outputs(made.path, xs), outputs(quantized, xs)) < 60


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_does_not_grow_over_300_steps(folder, kind):
    made = net(folder, kind, steps=300)
    xs = sequences(10, 300)[8:]
    quantized, _ = made.quantized("int8")
    want, got = outputs(made.path, xs), outputs(quantized, xs)
    whole, last = sqnr_db(want, got), sqnr_db(want[:, :, -50:], got[:, :, -50:])
    assert last > whole - 2 and whole > 24


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_has_one_scale_wherever_it_stands(folder, kind):
    made = net(folder, kind, state=-3.0)
    path, scan = made.quantized("int8")
    body = scan.attributes["body"].value
    states = 2 if kind == "lstm" else 1
    for k in range(states):
        entry = next(use.node for use in body.inputs[k].uses())
        left = body.outputs[k].producer()
        assert (entry.op_type, left.op_type) == ("QuantizeLinear", "DequantizeLinear")
        for i in (1, 2):
            np.testing.assert_array_equal(graph.constant(entry.inputs[i]), graph.constant(left.inputs[i]))
        low = scale_of(Range(-3.0, 0.0), TFLITE)
        assert graph.constant(entry.inputs[1]) >= np.float32(low.scale)  # it starts at -3, which no step reaches
    # What comes out stands on that grid: quantizing it once more changes nothing.
    values = run(path, {"x0": sequences(1, 20)[0]})
    scale = Scale(float(graph.constant(entry.inputs[1])), int(graph.constant(entry.inputs[2])))
    last = values["y2" if kind == "lstm" else "y1"]
    np.testing.assert_array_equal(fake_quantize(last, scale), last)


def test_every_int8_kernel_finds_its_tensors_rounded(folder):
    """In an int8 cell each op reads and writes rounded tensors, whatever only moves values aside."""
    for kind in KINDS:
        _, scan = net(folder, kind).quantized("int8")
        for node in scan.attributes["body"].value:
            if node.op_type in ("MatMul", "Add", "Sub", "Mul", "Sigmoid", "Tanh"):
                behind = {use.node.op_type for use in node.outputs[0].uses()}
                assert behind == {"QuantizeLinear"} or (node.op_type == "MatMul" and behind <= {"Add", "Identity"}), node.name
                for value in node.inputs:
                    while value.producer() is not None and value.producer().op_type == "Split":
                        value = value.producer().inputs[0]
                    before = value.producer()
                    assert (before is None and graph.constant(value) is not None) or before.op_type in ("DequantizeLinear", "MatMul"), node.name


def test_sigmoid_and_tanh_write_on_their_kernels_grids(folder):
    _, scan = net(folder, "lstm").quantized("int8")
    found = {}
    for node in scan.attributes["body"].value:
        if node.op_type in ("Sigmoid", "Tanh"):
            q = next(use.node for use in node.outputs[0].uses())
            found.setdefault(node.op_type, set()).add((float(graph.constant(q.inputs[1])), int(graph.constant(q.inputs[2]))))
    assert found == {"Sigmoid": {(1 / 256, -128)}, "Tanh": {(1 / 128, 0)}}


def test_a_kernels_scale_that_cuts_off_half_of_tanh_is_refused(folder):
    with pytest.raises(EdgekitError, match="Tanh on scale 0.0078125, zero point 0 in uint8 reaches from 0 to 1"):
        net(folder, "gru").quantized("int8", fixed={**qdq_loop.FIXED, "Tanh": Scale(1 / 128, 0, "uint8")})


def test_no_bits_are_spent_where_a_gate_is_shut_anyway(folder):
    made = net(folder, "lstm")
    wide = {**made.ranges, "rnn/gates_all": Range(-40.0, 40.0)}
    _, scan = Net(made.path, made.model, wide).quantized("int8")
    gates = next(node for node in scan.attributes["body"].value if node.name == "rnn/gates")
    scale = float(graph.constant(next(use.node for use in gates.outputs[0].uses()).inputs[1]))
    assert scale == pytest.approx(2 * 6.24 / 255, rel=1e-3)


def test_a_float_cell_keeps_c_and_gates_in_float(folder):
    made = net(folder, "lstm")
    _, scan = made.quantized("float")
    body = scan.attributes["body"].value
    assert body.outputs[0].producer().op_type == "DequantizeLinear" and body.outputs[1].producer().op_type == "Add"
    rounded = {node.inputs[0].name for node in body if node.op_type == "QuantizeLinear"}
    assert rounded == {"rnn/h_in", "rnn/gates_x", "rnn/h_matmul_out", "rnn/h_out"}
    assert "rnn/c_all" not in qdq_loop.tensors_of(made.scan, "float").observed


def test_a_missing_range_is_named(folder):
    made = net(folder, "gru")
    for name in qdq_loop.tensors_of(made.scan, "int8").observed:
        fewer = {key: r for key, r in made.ranges.items() if key != name}
        with pytest.raises(EdgekitError, match=f"no range for `{name}`"):
            Net(made.path, made.model, fewer).quantized("int8")


def test_only_loops_of_recurrent_layers_and_known_cells_are_quantized(folder):
    made = net(folder, "lstm")
    with pytest.raises(EdgekitError, match="a cell is one of float, int8, not `int4`"):
        made.quantized("int4")
    _, scan = made.quantized("int8")
    with pytest.raises(EdgekitError):  # twice
        qdq_loop.quantize_scan(scan, made.ranges, TFLITE)

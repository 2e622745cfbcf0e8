"""Scan as WHILE: what ONNX Runtime computes, on this runtime and on tflite-runtime 2.14, for any number of steps and any state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from edgekit import graph, qdq, rewrites, tools
from edgekit.backends import onnxruntime
from edgekit.backends.tflite import side
from edgekit.backends.tflite.lower import lower
from edgekit.errors import TargetError
from edgekit.quant import Histogram, Numbers
from tests.onnx_nets import Lambda, export

litert = pytest.importorskip("ai_edge_litert.interpreter")

NUMBERS = Numbers(dtype="int8", symmetric=False, outputs=True)
INT8_OPS = {"MatMul": {"int8": True}, "Gemm": {"int8": True}}
KINDS = {"lstm": nn.LSTM, "gru": nn.GRU}
RUNTIMES = ["litert", pytest.param("tflite214", marks=pytest.mark.skipif(tools.version(side.NATIVE) is None, reason=f"needs `{side.install_hint()}`"))]
IN = 12


def session(path: Path, runtime: str = "litert"):
    if runtime == "tflite214":
        return side.open(path, 1)
    runner = litert.Interpreter(str(path), num_threads=1).get_signature_runner()
    return lambda feeds: runner(**feeds)


def write(onnx_path: Path) -> Path:
    path = onnx_path.with_suffix(".tflite")
    lower(graph.load(onnx_path).graph).model.save(path)
    return path


def recurrent(kind: str, hidden: int = 16, strength: float = 0.35, **options) -> nn.RNNBase:
    torch.manual_seed(3)
    rnn = KINDS[kind](IN, hidden, batch_first=True, **options)
    with torch.no_grad():
        for p in rnn.parameters():
            p.normal_(0, strength)
    return rnn


def sequences(count: int, steps: int, seed: int = 7) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 1, steps, IN)).astype(np.float32)
    for t in range(1, steps):
        x[:, :, t] = 0.8 * x[:, :, t - 1] + 0.6 * x[:, :, t]
    return list(x)


def rewritten(folder: Path, module: nn.Module, *shapes: tuple[int, ...]) -> Path:
    path = export(folder, module, *shapes, name="net")
    model = graph.load(path)
    assert rewrites.apply(model, "rnn_to_scan")
    graph.save(model, path)
    return path


def quantized(path: Path, feeds: list[dict], cell: str = "float", untie: bool = False) -> Path:
    """The Q/DQ graph of a float one, on the ranges that `feeds` give."""
    model = graph.load(path)
    chosen = qdq.precisions(model, {**INT8_OPS, "Scan": {"int8": True, "cell": cell}}, outputs=True)
    ports = [value.name for value in (*model.graph.inputs, *model.graph.outputs)]
    run, histograms = onnxruntime.simulate(path, 1, [name for name in chosen.observed if name not in ports]), {name: Histogram() for name in chosen.observed}
    for fed in feeds:
        values = {**fed, **run(fed)}
        for name, histogram in histograms.items():
            histogram.update(values[name])
    ranges = {name: h.minmax() for name, h in histograms.items()}
    model = qdq.insert_qdq(model, chosen, {**ranges, **qdq.tied(model, chosen, ranges)}, NUMBERS)
    if untie:
        _untie(model)
    out = path.with_name(f"qdq.{cell}.onnx")
    graph.save(model, out)
    return out


def _untie(model: ir.Model) -> None:
    """Let the first state leave on another scale than it enters."""
    body = next(node for node in model.graph if node.op_type == "Scan").attributes["body"].value
    dq = body.outputs[0].producer()
    name = f"{dq.inputs[1].name}/other"
    other = ir.Value(name=name, const_value=ir.tensor(np.float32(1.1 * graph.constant(dq.inputs[1])), name=name))
    other.dtype, other.shape = ir.DataType.FLOAT, ir.Shape(())
    body.register_initializer(other)
    for half in (dq, dq.inputs[0].producer()):
        half.replace_input_with(1, other)


def sqnr_db(want: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10((want.astype(np.float64) ** 2).sum() / max(((want - got) ** 2).sum(), 1e-30)))


def same(path: Path, feeds: dict, runtime: str) -> None:
    want, got = onnxruntime.simulate(path, 1)(feeds), session(write(path), runtime)(feeds)
    assert set(got) == set(want)
    for name in want:
        assert got[name].shape == want[name].shape
        np.testing.assert_allclose(got[name], want[name], atol=1e-4 * max(1.0, np.abs(want[name]).max()))


# --------------------------------------------------------------------------- float


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 7, 149])
@pytest.mark.parametrize("layers, both", [(1, False), (2, False), (1, True), (2, True)])
def test_a_loop_gives_what_onnx_runtime_gives(tmp_path, kind, steps, layers, both, runtime):
    rnn = recurrent(kind, strength=0.6, num_layers=layers, bidirectional=both)
    path = rewritten(tmp_path, Lambda(lambda m, x: m.rnn(x)[0], rnn=rnn), (1, steps, IN))
    same(path, {"x0": sequences(1, steps)[0]}, runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("steps, both", [(1, False), (9, False), (9, True)])
def test_states_come_in_and_go_out(tmp_path, steps, both, runtime):
    state = (1 + both, 1, 16)
    module = Lambda(lambda m, x, h, c: (lambda y, last: (y, *last))(*m.rnn(x, (h, c))), rnn=recurrent("lstm", bidirectional=both))
    path = rewritten(tmp_path, module, (1, steps, IN), state, state)
    rng = np.random.default_rng(0)
    same(path, {"x0": sequences(1, steps)[0], **{f"x{k}": rng.standard_normal(state).astype(np.float32) for k in (1, 2)}}, runtime)


def test_the_file_does_not_grow_with_the_number_of_steps(tmp_path):
    sizes = []
    for steps in (2, 300):
        path = rewritten(tmp_path, Lambda(lambda m, x: m.rnn(x)[0], rnn=recurrent("lstm")), (1, steps, IN))
        for made in (path, quantized(path, [{"x0": x} for x in sequences(2, steps)])):
            sizes.append(write(made).stat().st_size)
    assert abs(sizes[0] - sizes[2]) < 64 and abs(sizes[1] - sizes[3]) < 64


def test_what_only_calibration_read_is_not_computed(tmp_path):
    path = rewritten(tmp_path, Lambda(lambda m, x: m.rnn(x)[0], rnn=recurrent("lstm")), (1, 5, IN))
    model = lower(graph.load(path).graph).model
    body = next(sub for sub in model.subgraphs if sub.name.endswith("/body"))
    assert [op.name for op in body.ops].count("DYNAMIC_UPDATE_SLICE") == 1


# --------------------------------------------------------------------------- INT8


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("cell, least_db", [("int8", 24), ("float", 30)])
@pytest.mark.parametrize("kind, layers, both", [("lstm", 2, False), ("gru", 2, False), ("lstm", 1, True), ("gru", 1, True)])
def test_an_int8_loop_is_its_simulation_and_does_not_drift(tmp_path, kind, layers, both, cell, least_db, runtime):
    steps = 300
    rnn = recurrent(kind, num_layers=layers, bidirectional=both)
    path = rewritten(tmp_path, Lambda(lambda m, x: m.fc(m.rnn(x)[0]), rnn=rnn, fc=nn.Linear(16 * (1 + both), 8)), (1, steps, IN))
    integers = quantized(path, [{"x0": x} for x in sequences(8, steps)], cell)
    run, simulate, exact = session(write(integers), runtime), onnxruntime.simulate(integers, 1), onnxruntime.simulate(path, 1)
    feeds = [{"x0": x} for x in sequences(3, steps, seed=11)]
    got, simulated, want = (np.stack([call(fed)["y0"] for fed in feeds]) for call in (run, simulate, exact))
    # The simulation's float sums round to the other side of a half once in some thousand values, and the state remembers it.
    assert sqnr_db(simulated, got) > 30
    if not both:  # after one step there is nothing yet to remember
        step = float(graph.constant(graph.load(integers).graph.outputs[0].producer().inputs[1]))
        np.testing.assert_allclose(got[:, :, 0], simulated[:, :, 0], rtol=0, atol=1.01 * step)
    assert sqnr_db(want, got) > least_db
    assert sqnr_db(want[:, :, -50:], got[:, :, -50:]) > sqnr_db(want, got) - 2


@pytest.mark.skipif(tools.version(side.ARM64) is None, reason=f"needs qemu-user and `{tools.install_hint(side.ARM64)}`")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", ["int8", "float"])
def test_arm64_runs_the_loop_too(tmp_path, kind, cell):
    steps = 40
    path = rewritten(tmp_path, Lambda(lambda m, x: m.rnn(x)[0], rnn=recurrent(kind, bidirectional=True)), (1, steps, IN))
    integers = quantized(path, [{"x0": x} for x in sequences(4, steps)], cell)
    fed = {"x0": sequences(1, steps, seed=11)[0]}
    with side.open(write(integers), 1, tool=side.ARM64) as call:
        assert sqnr_db(onnxruntime.simulate(integers, 1)(fed)["y0"], call(fed)["y0"]) > 30


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell, inside", [("int8", {"int8", "int32"}), ("float", {"int8", "int32", "float32"})])
def test_what_goes_round_is_int8(tmp_path, kind, cell, inside):
    path = rewritten(tmp_path, Lambda(lambda m, x: m.rnn(x)[0], rnn=recurrent(kind)), (1, 5, IN))
    model = lower(graph.load(quantized(path, [{"x0": x} for x in sequences(4, 5)], cell)).graph).model
    body = next(sub for sub in model.subgraphs if sub.name.endswith("/body"))
    handed = {name: body.tensors[index] for name, index in body.inputs.items()}
    assert {handed[name].dtype for name in ("sequence0", "state0", "stacked0")} == {"int8"}
    assert kind == "gru" or handed["state1"].dtype == ("int8" if cell == "int8" else "float32")
    assert {tensor.dtype for tensor in body.tensors} == inside
    (product,) = (op for op in body.ops if op.name == "FULLY_CONNECTED")
    assert [body.tensors[i].dtype for i in (*product.inputs[:2], *product.outputs)] == ["int8"] * 3
    for name, index in body.inputs.items():
        assert body.tensors[index].quant == body.tensors[body.outputs[name]].quant


def test_an_untied_state_is_refused(tmp_path):
    path = rewritten(tmp_path, Lambda(lambda m, x: m.rnn(x)[0], rnn=recurrent("lstm")), (1, 5, IN))
    broken = quantized(path, [{"x0": x} for x in sequences(4, 5)], untie=True)
    with pytest.raises(TargetError, match=r"node `rnn/LSTM` \(Scan\): state 0 is read with scale .* and written with scale"):
        lower(graph.load(broken).graph)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_int8_step_with_its_callers_state_does_not_drift(tmp_path, runtime):
    """One step an engine call, the state float and passed on as it is: 300 calls are the float net's 300 steps, nearly."""
    rnn, state, steps = recurrent("lstm"), (1, 1, 16), 300
    module = Lambda(lambda m, x, h, c: (lambda y, last: (y, *last))(*m.rnn(x, (h, c))), rnn=rnn)
    path = rewritten(tmp_path, module, (1, 1, IN), state, state)

    def stream(call, x, feeds=None) -> np.ndarray:
        h = c = np.zeros(state, np.float32)
        out = []
        for t in range(steps):
            fed = {"x0": x[:, t : t + 1], "x1": h, "x2": c}
            if feeds is not None:
                feeds.append(fed)
            given = call(fed)
            h, c = given["y1"], given["y2"]
            out.append(given["y0"])
        return np.stack(out)

    exact, seen = onnxruntime.simulate(path, 1), []
    for x in sequences(4, steps):
        stream(exact, x, seen)
    integers = quantized(path, seen)
    x = sequences(1, steps, seed=11)[0]
    want, simulated, got = stream(exact, x), stream(onnxruntime.simulate(integers, 1), x), stream(session(write(integers), runtime), x)
    assert sqnr_db(simulated, got) > 30 and 28 < sqnr_db(want, got) < 60
    assert sqnr_db(want[-50:], got[-50:]) > sqnr_db(want, got) - 3

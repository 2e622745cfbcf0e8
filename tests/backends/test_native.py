"""The native backend: a weight file that computes the float graph exactly and the Q/DQ graph closely, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekit import graph, native, native_format, qdq, rewrites
from edgekit.backends import EngineKit, Kit, onnxruntime
from edgekit.backends import native as backend
from edgekit.calibration import observe
from edgekit.compare import difference
from edgekit.errors import TargetError
from edgekit.float_model import save_float_model
from edgekit.flow import run_flow
from edgekit.formats import engines_of, read_json
from edgekit.models import dccrn, dccrnpp
from edgekit.quant import Numbers
from edgekit.target import load_target
from tests.models.test_dccrn import lively

ROOT = Path(__file__).parents[2]
TARGET = load_target("native_cpu", ROOT).spec()
NUMBERS = Numbers.from_target(TARGET["numbers"])

needs_library = pytest.mark.skipif(not native.available(), reason="needs the native engine: pip install ./native")
MODELS = {"look-ahead": ("dccrn", dccrn.CONFIGS["tiny"]), "causal": ("dccrn", dccrn.CONFIGS["tiny_causal"]), "gru": ("dccrnpp", dccrnpp.CONFIGS["tiny_causal"])}


def waves(cfg: dccrn.Config, n: int = 4) -> list[np.ndarray]:
    """Tones that come and go in noise: loud and faint frames, as speech has."""
    rng, t = np.random.default_rng(2), np.arange(cfg.samples) / cfg.sample_rate_hz
    return [np.float32(0.2 * np.sin(2 * np.pi * rng.uniform(100, 3000) * t) * np.hanning(len(t)) + 0.02 * rng.standard_normal(len(t))) for _ in range(n)]


@pytest.fixture(scope="module", params=MODELS)
def kit(request, tmp_path_factory) -> Kit:
    """A float model's directory, its step as the target rewrites it, and the Q/DQ graph with ranges of four waves."""
    folder = tmp_path_factory.mktemp("native")
    name, cfg = MODELS[request.param]
    module = lively(cfg)
    dccrn.balance(module)
    (folder / "prune").mkdir()
    save_float_model(folder / "prune", module, name, cfg, "tiny", {}, pruned=False)
    [engine] = dccrn.engines(module, cfg)
    path, integer = folder / "float.onnx", folder / "qdq.onnx"
    graph.export_onnx(engine, path)
    model = graph.load(path)
    rewrites.apply(model, "rnn_to_scan")
    graph.save(model, path)
    skip = {node.name: "float" for node in model.graph if node.op_type == "Conv" and node.name.startswith(("encoder.0/", "decoder.2/"))}
    chosen = qdq.precisions(model, TARGET["ops"], skip=skip)
    flow = read_json(folder / "prune/flow.json")
    session = onnxruntime.simulate(path, threads=1, also=[tensor for tensor in chosen.observed if tensor not in engine.inputs])
    seen = observe(flow, {engine.name: session}, {engine.name: chosen.observed}, [(str(i), {"wave": wave}) for i, wave in enumerate(waves(cfg))])
    ranges = {tensor: histogram.minmax() for tensor, histogram in seen.histograms[engine.name].items()}
    ranges |= qdq.joined(chosen, ranges)
    for pair in flow["states"][engine.name]:
        ends = [end for end in (pair["in"], pair["out"]) if end in ranges]
        both = ranges[ends[0]].union(ranges[ends[-1]]) if ends else None
        ranges |= dict.fromkeys(ends, both)
    ranges |= qdq.joined(chosen, ranges)
    graph.save(qdq.insert_qdq(model, chosen, ranges, NUMBERS), integer)
    return Kit((EngineKit(engine.name, path, integer, int8=chosen.int8),), TARGET, folder / "prune")


def heard(kit: Kit, folder: Path) -> tuple[dict, list[np.ndarray]]:
    """The artifact's flow, and what it makes of the waves."""
    flow = backend.flow(read_json(kit.source / "flow.json"))
    [name] = engines_of(flow)
    session = backend.open(folder / "engines" / name, TARGET)
    config = dccrn.Config.from_json(read_json(kit.source / "model.json")["config"])
    return flow, [run_flow(flow, {name: session}, {"wave": wave})["speech"] for wave in waves(config)]


def expected(kit: Kit, which: str) -> list[np.ndarray]:
    flow = read_json(kit.source / "flow.json")
    session = onnxruntime.simulate(getattr(kit.engines[0], which), threads=1)
    config = dccrn.Config.from_json(read_json(kit.source / "model.json")["config"])
    return [run_flow(flow, {kit.engines[0].name: session}, {"wave": wave})["speech"] for wave in waves(config)]


@needs_library
def test_a_float_file_computes_the_float_graph(kit, tmp_path):
    backend.compile(replace(kit, engines=tuple(engine.as_float() for engine in kit.engines)), tmp_path)
    _, got = heard(kit, tmp_path)
    want = expected(kit, "float_onnx")
    assert np.abs(np.stack(got) - np.stack(want)).max() <= 1e-6  # full scale is 1
    assert set(backend.coverage(tmp_path / "engines/denoiser", kit.engines[0], TARGET).values()) == {"fp32"}


@needs_library
@pytest.mark.parametrize("sums_fit", [True, False])
def test_an_int8_file_computes_the_qdq_graph(kit, tmp_path, monkeypatch, sums_fit):
    if not sums_fit:
        monkeypatch.setattr(backend, "LARGEST_SUM", 1000)
    backend.compile(kit, tmp_path)
    _, got = heard(kit, tmp_path)
    want, plain = np.stack(expected(kit, "qdq_onnx")), np.stack(expected(kit, "float_onnx"))
    cost = difference("cost", plain, want).sqnr_db
    # It is nearer to the Q/DQ graph than that is to the float graph: scales that the engine fixes by itself move a step here and there. Weights
    # that need not add up within int8 are the graph's own; those that do have a step up to twice as large.
    assert difference("speech", want, np.stack(got)).sqnr_db >= cost + (0 if sums_fit else 6)
    assert cost < 60, "INT8 that costs nothing has not run"


@needs_library
def test_coverage_is_read_from_the_file(kit, tmp_path):
    backend.compile(kit, tmp_path)
    found = backend.coverage(tmp_path / "engines/denoiser", kit.engines[0], TARGET)
    assert {name for name, precision in found.items() if precision == "fp32"} == {"encoder.0/conv/Conv", "decoder.2/even/Conv", "decoder.2/odd.1/Conv"}
    assert sum(name.endswith("h_matmul") for name in found) == 8
    assert {name for name, precision in found.items() if precision == "int8"} == set(kit.engines[0].int8)
    build = json.loads((tmp_path / "build.json").read_text())
    assert build["engines"]["denoiser"] == {"file": "engines/denoiser/model.ekd", "int8_layers": len(kit.engines[0].int8)}


def test_the_artifact_s_flow_is_one_step_from_wave_to_wave(kit):
    flow = backend.flow(read_json(kit.source / "flow.json"))
    assert flow["steps"] == [{"engine": "denoiser", "feed": {"wave": "wave"}, "give": {"speech": "speech"}}]
    assert "states" not in flow and flow["hop_samples"] == 32
    assert [step["step"] for step in flow["host_steps"]] == ["preprocess"]
    assert [step["step"] for step in flow["inside"]] == ["stft", "masked_istft"]


def test_weights_and_scales_of_the_file_are_the_graph_s(kit, tmp_path, monkeypatch):
    """Integers of a layer are those of the Q/DQ graph, row by row: a complex layer's real and imaginary rows hold the same numbers."""
    written = {}
    monkeypatch.setattr(backend, "LARGEST_SUM", 1000)
    monkeypatch.setattr(native_format, "write", lambda model, path: written.setdefault("model", model) and path)
    backend.compile(kit, tmp_path)
    model = written["model"]
    integer = graph.load(kit.engines[0].qdq_onnx)
    nodes = {node.name: node for node in integer.graph}
    dequantize = nodes["encoder.1/conv/Conv"].inputs[1].producer()
    block, c_out = graph.constant(dequantize.inputs[0]), model.encoder[1].weight.shape[1]
    own = model.encoder[1].weight  # [2, c_out, c_in, 5, 2]
    c_in = own.shape[2]
    older, newer = block[:c_out, : 2 * c_in], block[:c_out, 2 * c_in :]
    sign = np.sign(model.encoder[1].gain[0])[:, None, None]
    for t, half in enumerate((older, newer)):
        difference_real = np.abs(np.int32(half[:, :c_in, :, 0]) * np.int32(sign) - own[0, ..., t])
        difference_imag = np.abs(np.int32(half[:, c_in:, :, 0]) * np.int32(sign) + own[1, ..., t])
        assert max(difference_real.max(), difference_imag.max()) <= 1  # ties of the folded batch norm
        assert np.mean(difference_real) < 0.01


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("largest", [127, 7])
def test_weights_of_two_frames_add_up_within_int8_and_no_finer_than_that_needs(transposed, largest):
    rng = np.random.default_rng(3)
    weight = np.float32(rng.standard_normal((2, 6, 5, 5, 2)))
    c_out = 2 if transposed else 1
    alike, opposed = (np.moveaxis(weight, c_out, 0)[i] for i in (0, 1))
    alike[...] = np.abs(alike)
    opposed[..., 1] = -opposed[..., 0]
    layer = native_format.ConvLayer(weight, np.ones((2, weight.shape[c_out])), np.zeros((2, weight.shape[c_out])))
    made = backend._conv(layer, [(0.5, slice(None))], 1.0, largest, transposed)
    rows = np.moveaxis(np.int32(made.weight), c_out, 0)
    assert np.abs(rows.sum(-1)).max() <= 127 and np.abs(rows[1]).max() == largest
    if largest == 127:
        assert np.abs(rows[0].sum(-1)).max() in (126, 127)  # as fine as it can be
    step = made.gain[0] / 0.5
    exact = np.moveaxis(np.float64(weight), c_out, 0)
    assert np.abs(rows * step[:, None, None, None, None] - exact).max() <= 0.5001 * step.max()


def test_layers_that_the_engine_would_compute_in_int8_and_are_not_are_named(kit, tmp_path):
    float_only = replace(kit.engines[0], qdq_onnx=kit.engines[0].float_onnx)
    with pytest.raises(TargetError, match=r"`encoder\.1/conv/Conv` is not INT8"):
        backend.compile(replace(kit, engines=(float_only,)), tmp_path)


def test_a_bidirectional_model_is_refused(tmp_path):
    cfg = dccrnpp.CONFIGS["tiny"]
    save_float_model(tmp_path, lively(cfg), "dccrnpp", cfg, "tiny", {}, pruned=False)
    with pytest.raises(TargetError, match="cannot stream"):
        backend.compile(Kit((EngineKit("denoiser", tmp_path / "x", tmp_path / "x"),), TARGET, tmp_path), tmp_path)


def test_another_model_is_refused(tmp_path):
    (tmp_path / "model.json").write_text('{"model": "mhlt", "config": {}}')
    with pytest.raises(TargetError, match="computes DCCRN only, not `mhlt`"):
        backend.compile(Kit((EngineKit("main", tmp_path / "x", tmp_path / "x"),), TARGET, tmp_path), tmp_path)


def test_a_target_with_other_numbers_is_refused():
    assert backend.problems(TARGET) == []
    wrong = {**TARGET, "runtime": {"name": "edgekit native", "version": "2"}, "numbers": {**TARGET["numbers"], "outputs": True}}
    assert len(backend.problems(wrong)) == 2


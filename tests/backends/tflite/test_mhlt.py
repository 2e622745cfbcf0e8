"""The shipped MHLT through the whole lowering: the same values in float, the simulation's quality in int8, and no op without need."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit import graph, rewrites
from edgekit.backends.tflite.lower import lower
from edgekit.models import checkpoint, mhlt
from edgekit.qdq import insert_qdq, precisions
from edgekit.quant import Histogram, Numbers
from edgekit.target import load_target
from tests.backends.tflite.nets import onnx_run, ops_of, sqnr_db, tflite_run, types_of

pytest.importorskip("ai_edge_litert")

ROOT = Path(__file__).parents[3]
CHECKPOINT = ROOT / "recipes/checkpoints/mhlt_small.safetensors.xz"
TARGET = load_target("raspberry_pi5", ROOT).spec()
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """{engine: its graph after the target's rewrites}, of the trained checkpoint."""
    config = mhlt.CONFIGS["small"]
    module = mhlt.fold(mhlt.build(config)).eval()
    checkpoint.load_into(module, mhlt.normalize_keys(checkpoint.read_state(CHECKPOINT), config), CHECKPOINT, mhlt.OPTIONAL_KEYS)
    folder, found = tmp_path_factory.mktemp("mhlt"), {}
    for engine in mhlt.engines(module, config):
        graph.export_onnx(engine, folder / f"{engine.name}.onnx")
        found[engine.name] = graph.load(folder / f"{engine.name}.onnx")
        for name in TARGET["rewrites"]:
            rewrites.apply(found[engine.name], name)
    return found


def moving_picture(model, seed: int) -> dict[str, np.ndarray]:
    """Smooth inputs, since white noise is nothing that these layers were trained on: a few sine waves along every axis."""
    rng = np.random.default_rng(seed)
    fed = {}
    for value in model.graph.inputs:
        shape = graph.shape_of(value)
        x = np.zeros(shape, np.float32)
        for axis, length in enumerate(shape):
            waves = sum(np.sin(np.arange(length) * rng.uniform(0.02, 0.6) + rng.uniform(0, 6)) for _ in range(3)) / 3
            x += waves.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        fed[value.name] = (x + 0.1 * rng.standard_normal(shape)).astype(np.float32)
    return fed


@pytest.mark.parametrize("name, turned", [("clip_encoder", 1), ("audio_encoder", 16), ("head", 4)])
def test_float_engines_compute_what_the_graph_says(engines, name, turned):
    model = engines[name]
    lowered, fed = lower(model.graph), moving_picture(engines[name], 0)
    want = onnx_run(model, fed)
    for xnnpack in (False, True):
        got = tflite_run(lowered, fed, xnnpack)
        for output, values in want.items():
            assert np.abs(got[output] - values).max() <= 1e-4 * max(1.0, np.abs(values).max())
    assert ops_of(lowered).count("TRANSPOSE") <= turned


def test_the_int8_clip_encoder_is_as_good_as_its_simulation_and_a_third_of_the_size(engines):
    model = engines["clip_encoder"]
    chosen = precisions(model, TARGET["ops"], outputs=True)
    assert not chosen.skipped
    ranges = {name: Histogram() for name in chosen.observed}
    clips = [moving_picture(model, seed) for seed in range(6)]
    for fed in clips:
        values = {**onnx_run(model, fed, also=[name for name in ranges if name not in fed]), **fed}
        for name, histogram in ranges.items():
            histogram.update(values[name])
    qdq = insert_qdq(model, chosen, {name: h.minmax() for name, h in ranges.items()}, Numbers.from_target(TARGET["numbers"]))
    lowered = lower(qdq.graph)
    types = types_of(lowered)
    assert {dtype for op, dtype in types if "CONV" in op} == {"int8"} and ops_of(lowered).count("QUANTIZE") == 1
    want = np.concatenate([onnx_run(model, fed)["clip_feature"] for fed in clips])
    simulated = np.concatenate([onnx_run(qdq, fed)["clip_feature"] for fed in clips])
    for xnnpack in (False, True):
        got = np.concatenate([tflite_run(lowered, fed, xnnpack)["clip_feature"] for fed in clips])
        # Each op is within one step of the simulation (test_lower.py), but 52 layers later the roundings are other ones,
        # of the same size: 3 dB would be as much noise again.
        assert sqnr_db(want, got) >= sqnr_db(want, simulated) - 3
    assert len(lowered.model.serialize()) < 0.36 * len(lower(model.graph).model.serialize())

"""Every TensorRT recipe with its own calibration: through the gate, and what the FP16 of form 11 costs on held-out clips.

Slow: a recipe that is not in `.edgekit` yet is pruned and calibrated first. `pytest -m slow -s -k test_trained` prints the rows of
docs/tensorrt.md.
"""

from __future__ import annotations

import importlib.util
import math
from itertools import islice

import numpy as np
import pytest

from edgekit import graph
from edgekit.backends import onnxruntime
from edgekit.backends.tensorrt import forms, gate
from edgekit.build import run_stages
from edgekit.cache import Cache
from edgekit.calibration import batches
from edgekit.datasets import open_dataset
from edgekit.flow import run_flow, runs_per_window
from edgekit.formats import read_json
from edgekit.recipe import load_recipe
from tests.backends.tensorrt import recipes
from tests.backends.tensorrt.nets import ROOT

CLIPS = {"dccrn_xavier": 4, "dccrnpp_xavier": 4, "dccrn_orin": 4}  # of seconds, hop by hop; others 24
STAGES = ("load", "prune", "calibrate", "quantize")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed: pip install 'edgekit[tensorrt]'"),
]


@pytest.mark.parametrize("name", recipes.names())
def test_a_trained_recipe_passes_the_gate_and_fp16_costs_less_than_int8(name, tmp_path):
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml", (), ROOT / ".edgekit")
    with Cache(recipe.cache_root) as cache:
        done, _ = run_stages(recipe, cache, STAGES)
    flow, layers = read_json(done["prune"].out / "flow.json"), read_json(done["quantize"].out / "layers.json")
    runs, total, int8, declared = runs_per_window(flow), 0, 0, 0
    sessions: dict[str, dict] = {"float": {}, "10": {}, "11": {}}
    for engine, mine in layers.items():
        folder = done["quantize"].out / "engines" / engine
        ten = forms.explicit(graph.load(folder / "qdq.onnx"), engine)
        eleven = forms.strong(ten, mine["fp32"])
        macs = graph.count_macs(folder / "float.onnx")
        gate.build(ten, engine)
        found = gate.precisions(gate.build(eleven, engine), macs)
        assert {node for node, precision in found.items() if precision == "int8"} == set(mine["int8"])
        total += runs[engine] * sum(macs.values())
        int8 += runs[engine] * sum(n for node, n in macs.items() if found[node] == "int8")
        declared += runs[engine] * sum(n for node, n in macs.items() if node in mine["int8"])
        graph.save(ten, tmp_path / f"{engine}.10.onnx")
        graph.save(forms.rounded(eleven), tmp_path / f"{engine}.11.onnx")
        paths = {"float": folder / "float.onnx", "10": tmp_path / f"{engine}.10.onnx", "11": tmp_path / f"{engine}.11.onnx"}
        for form, path in paths.items():
            sessions[form][engine] = onnxruntime.simulate(path, threads=1)
    data = open_dataset(recipe.verify.data, "test", recipe.verify.clips, recipe.dir, recipe.cache_root)
    made: dict[str, list[np.ndarray]] = {form: [] for form in sessions}
    n = CLIPS.get(name, 24)
    primary = [flow["primary"]] if isinstance(flow["primary"], str) else flow["primary"]
    for _, inputs in islice(batches(data, read_json(done["prune"].out / "preprocess.json")), n):
        for form, engines in sessions.items():
            outputs = run_flow(flow, engines, inputs)
            made[form].append(np.concatenate([np.ravel(outputs[name]) for name in primary]))
    got = {form: np.concatenate(parts) for form, parts in made.items()}
    cost = {form: decibels(got["float"], got[form]) for form in ("10", "11")}
    print(f"\n| {name} | {100 * declared / total:.1f} % | {100 * int8 / total:.1f} % | {cost['10']:.1f} | {cost['11']:.1f} | {decibels(got['10'], got['11']):.1f} | {n} |")
    assert int8 == declared
    # FP16 must not cost what INT8 does; 1 dB, since its roundings turn some of INT8's by a step, for better or worse
    assert cost["11"] >= cost["10"] - 1


def decibels(want: np.ndarray, got: np.ndarray) -> float:
    """Signal-to-noise ratio of `got` against `want`."""
    noise = float(np.sum((got - want) ** 2))
    return 10 * math.log10(float(np.sum(want**2)) / noise) if noise else math.inf

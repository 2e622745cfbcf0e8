"""Fixtures that several test files share: a small workspace with a recipe, a target, and fake stages."""

from __future__ import annotations

import json
import types
from pathlib import Path

import pytest

TARGET = """\
name: toy
description: a device for tests
backend: tensorrt
runtime: {name: TensorRT, version: "8.5.2"}
build_on: device
opset_max: 17
numbers:
  activation: {dtype: int8, symmetric: true, zero_point: 0, divisor: 127}
  weight: {dtype: int8, granularity: per_channel, range: max_abs}
  rounding: half_even
ops:
  Conv: {dtypes: [float32], ranks: [4, 5], int8: true, rewrite: {by: conv1d_to_conv2d, ranks: [3]}}
  Relu: {}
  LayerNormalization: {rewrite: {by: layer_norm_to_primitives}}
rewrites: [conv1d_to_conv2d, layer_norm_to_primitives]
"""
RECIPE = """\
name: toy
target: toy
load: {model: tiny, config: tiny, checkpoint: weights.bin}
prune: {importance: magnitude, macs: 0.70}
calibrate: {data: clips, clips: 8}
quantize: {observer: percentile}
verify: {data: clips}
gates: {mae: {max_increase: 0.01}}
"""
OPS = {"opset": 17, "ops": [{"engine": "main", "op": "Conv", "rank": 4, "dtype": "float32", "count": 3}]}


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    """A folder with recipes/toy.yaml, its checkpoint and targets/toy.yaml; the current directory."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/toy.yaml").write_text(RECIPE)
    (tmp_path / "recipes/weights.bin").write_bytes(b"weights")
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets/toy.yaml").write_text(TARGET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class FakeStages(dict):
    """Stages that write small files and note in `ran` that they ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.ops = OPS
        self.float_mae, self.artifact_mae = 0.10, 0.105
        spec_of = {
            "load": lambda r: ({"model": r.load.model}, {"checkpoint": r.file("load.checkpoint")}),
            "prune": lambda r: (r.section("prune") or {"none": True}, {}),
            "quantize": lambda r: (r.section("quantize"), {}),
            "package": lambda r: ({"gates": r.section("gates")}, {}),
        }
        needs = {"prune": ("load",), "quantize": ("prune",), "package": ("quantize",)}
        for name, read in spec_of.items():
            self[name] = self._stage(name, needs.get(name, ()), read)

    def _stage(self, name, needs, read):
        from edgekit.artifact import FileSource

        def plan(recipe, target):
            spec, files = read(recipe)
            return spec, {label: FileSource(path) for label, path in files.items()}

        def run(job):
            self.ran.append(name)
            getattr(self, f"run_{name}", self.run_any)(job)

        return types.SimpleNamespace(NEEDS=needs, SEMANTICS=1, TOOLS=(), plan=plan, run=run)

    def run_any(self, job):
        (job.out / "result.json").write_text(json.dumps(job.spec, sort_keys=True))
        for need, folder in job.inputs.items():
            (job.out / f"{need}.txt").write_text("".join(sorted(file.read_text() for file in folder.glob("*.json"))))

    def run_load(self, job):
        (job.out / "ops.json").write_text(json.dumps(self.ops))
        (job.out / "weights.bin").write_bytes(job.files["checkpoint"].path.read_bytes())

    def run_package(self, job):
        increase = self.artifact_mae - self.float_mae
        limit = job.spec["gates"]["mae"]["max_increase"]
        passed = increase <= limit
        report = {
            "verdict": "pass" if passed else "fail",
            "measured_on": "host-simulated",
            "metrics": {"float": {"mae": self.float_mae}, "pruned": {"mae": 0.1}, "artifact": {"mae": self.artifact_mae}},
            "parity": {},
            "coverage": {"int8_macs": 0.8, "grade": "declared"},
            "gates": [{"name": "mae.max_increase", "limit": limit, "value": increase, "low": 0.0, "high": 0.01, "pass": passed}],
            "slices": {},
        }
        bundle = job.out / "bundle"
        bundle.mkdir()
        (bundle / "report.json").write_text(json.dumps(report))
        if passed:
            (bundle / "build.sh").write_text("#!/bin/sh\n")
            (bundle / "build.sh").chmod(0o755)
            (bundle / "model.onnx").write_bytes(b"onnx")


@pytest.fixture
def fake_stages(monkeypatch) -> FakeStages:
    """Four stages (load, prune, quantize, package) in place of the real ones."""
    from edgekit import stages

    fakes = FakeStages()
    monkeypatch.setattr(stages, "STAGES", stages.STAGES.copy())
    for name in list(stages.STAGES):
        del stages.STAGES[name]
    stages.STAGES.update(fakes)
    return fakes

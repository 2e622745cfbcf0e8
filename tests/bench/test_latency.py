"""What is measured beside an artifact computes what it should."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import graph
from edgekit.backends import EngineKit, Kit
from edgekit.backends import openvino as backend
from edgekit.bench.latency import _readable
from edgekit.target import load_target
from tests.onnx_nets import Lambda, export, feeds, op_counts, run

TARGET = load_target("x86_openvino").spec()


def shuffled(folder):
    torch.manual_seed(0)
    order = torch.arange(8).view(2, 4).T.flatten()
    return export(folder, Lambda(lambda m, x: m.b(m.a(x).index_select(1, order)), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1)), (1, 3, 5, 5))


@pytest.mark.skipif(backend.versions(TARGET)["openvino"] is None, reason="needs openvino: pip install 'edgekit[openvino]'")
def test_openvino_is_given_shuffles_in_a_form_that_it_computes_right(tmp_path):
    """As exported, its answer is another one: nobody should be measured by that."""
    path = shuffled(tmp_path)
    x = feeds(graph.load(path))
    answers = []
    for source in (path, _readable(path, tmp_path / "readable.onnx", TARGET)):
        backend.compile(Kit((EngineKit("main", source, source),), TARGET, tmp_path), tmp_path / source.stem)
        answers.append(backend.open(tmp_path / source.stem / "engines/main", TARGET, 1)(x)["y0"])
    want = run(path, x)["y0"]
    assert np.abs(answers[1] - want).max() < 1e-5
    assert np.abs(answers[0] - want).max() > 0.1, "OpenVINO reads Gathers right by now: measure graphs as they are"


def test_other_graphs_are_measured_as_they_are(tmp_path):
    path = shuffled(tmp_path)
    assert _readable(path, tmp_path / "r.onnx", {"rewrites": ["rows_to_sequence"]}) == path
    made = _readable(path, tmp_path / "r.onnx", TARGET)
    assert "Gather" not in op_counts(graph.load(made)) and _readable(made, tmp_path / "again.onnx", TARGET) == made

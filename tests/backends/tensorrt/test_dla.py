"""Which layers a DLA would take, by the target's data, and why it would not; on networks of the kind that it is made for."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from edgekit import graph, models
from edgekit.backends.tensorrt import dla
from edgekit.target import load_target
from tests.backends.tensorrt.nets import ROOT
from tests.onnx_nets import Lambda, export
from tests.small_project import make_project

UNITS = {name: load_target(name, ROOT).spec()["unit"] for name in ("jetson_xavier", "jetson_orin")}


def placed(tmp_path, module, *shapes, unit="jetson_xavier", precisions=None):
    model = graph.load(export(tmp_path, module, *shapes))
    found = dla.place(model, UNITS[unit], precisions or {})
    return model, found, {node.op_type: found[node.name] for node in model.graph}


def conv(*args, **kwargs):
    return Lambda(lambda m, x: m.c(x), c=nn.Conv2d(*args, **kwargs))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(
    ("args", "kwargs", "size", "said"),
    [
        ((3, 8, 3), {"padding": 1}, 64, None),
        ((3, 8, 32), {}, 64, None),
        ((3, 8, 33), {}, 64, "has kernel 33, 33, taken: 1 to 32"),
        ((3, 8, 9), {"stride": 8}, 64, None),
        ((3, 8, 9), {"stride": 9}, 64, "has stride 9, 9, taken: 1 to 8"),
        ((3, 8, 1), {"padding": 1}, 64, "has padding 1, 1, 1, 1, which must be less than the kernel, 1, 1"),
        ((3, 8, 3), {"dilation": 32}, 80, None),
        ((3, 8, 3), {"dilation": 33}, 80, "has dilation 33, 33, taken: 1 to 32"),
        ((8, 8, 3), {"groups": 8}, 64, None),
        ((3, 8193, 1), {}, 4, "has a dimension of 8193, taken up to 8192"),
    ],
)
def test_a_convolution_within_the_bounds_is_taken_and_outside_falls_back(tmp_path, unit, args, kwargs, size, said):
    assert placed(tmp_path, conv(*args, **kwargs), (1, args[0], size, size), unit=unit)[2]["Conv"] == said


def test_ranks_batches_and_types(tmp_path):
    assert placed(tmp_path, Lambda(lambda m, x: m.c(x), c=nn.Conv3d(3, 4, 3)), (1, 3, 4, 8, 8))[2]["Conv"] == "has rank 5, taken: 4"
    assert placed(tmp_path, conv(1, 1, 1), (4097, 1, 2, 2))[2]["Conv"] == "has batch 4097, taken up to 4096"
    model = graph.load(export(tmp_path, conv(3, 8, 3), (1, 3, 8, 8)))
    [node] = list(model.graph)
    assert dla.place(model, UNITS["jetson_xavier"], {node.name: "fp32"}) == {node.name: "computes in fp32, taken: int8, fp16"}


@pytest.mark.parametrize(
    ("function", "op", "said"),
    [
        (lambda m, x: m.pool(x), "MaxPool", None),
        (lambda m, x: m.wide(x), "MaxPool", "has kernel 9, 9, taken: 1 to 8"),
        (lambda m, x: torch.relu(x), "Relu", None),
        (lambda m, x: x.clamp(0, 6), "Clip", None),
        (lambda m, x: torch.sigmoid(x) + x, "Add", None),
        (lambda m, x: x * 3.5, "Mul", "has a constant as input 1, taken are two activations"),
        (lambda m, x: torch.cat([x, torch.relu(x)], 1), "Concat", None),
        (lambda m, x: torch.cat([x, torch.relu(x)], 3), "Concat", "works along axis 3 of 4, taken: -3"),
        (lambda m, x: x[:, 1:3, :, 2:], "Slice", None),
        (lambda m, x: x[:, :, ::2], "Slice", "has steps 2, taken: 1 to 1"),
        (lambda m, x: torch.softmax(x, 1), "Softmax", "Softmax is not in the unit's table"),
        (lambda m, x: m.transposed(x), "ConvTranspose", None),
        (lambda m, x: m.cropped(x), "ConvTranspose", "has padding 1, 1, 1, 1, taken: 0 to 0"),
    ],
)
def test_other_layers(tmp_path, function, op, said):
    parts = {"pool": nn.MaxPool2d(3, 2, 1), "wide": nn.MaxPool2d(9), "transposed": nn.ConvTranspose2d(4, 4, 2, 2), "cropped": nn.ConvTranspose2d(4, 4, 4, 2, 1)}
    assert placed(tmp_path, Lambda(function, **parts), (1, 4, 16, 16))[2][op] == said


def test_pieces_are_what_a_layer_that_falls_back_cuts_apart(tmp_path):
    a, b, c = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    joined = placed(tmp_path, Lambda(lambda m, x: m.b(m.a(x)) + m.c(x), a=a, b=b, c=c), (1, 4, 8, 8))
    assert dla.pieces(joined[0], joined[1]) == 1
    cut = placed(tmp_path, Lambda(lambda m, x: m.b(torch.softmax(m.a(x), 1)), a=a, b=b), (1, 4, 8, 8))
    assert dla.pieces(cut[0], cut[1]) == 2
    told = dla.summary(cut[0], cut[1], graph.count_macs(cut[0]))
    assert told == {"layers": [2, 2], "pieces": 2, "falls_back": {"Softmax is not in the unit's table": 1}}


@pytest.mark.parametrize(
    ("model", "engine", "share", "layers", "pieces", "falls_back"),
    [
        # EfficientFace: its channel shuffles are Gathers, and its modulator pads more than its kernels are wide.
        ("attsf", "face", 0.98, [45, 49], 12, {"Gather is not in the unit's table": 9, "has padding 4, 4, 4, 4, which must be less than the kernel, 3, 3": 2}),
        # ResNet-50's blocks, narrower: everything but the average at the end.
        ("bilstm_sa", "image", 1.0, [26, 26], 1, {"ReduceMean is not in the unit's table": 1}),
    ],
)
def test_networks_of_the_kind_that_it_is_made_for(tmp_path, model, engine, share, layers, pieces, falls_back):
    torch.manual_seed(0)
    definition, config = models.get(model), models.config(model, "small")
    found = next(e for e in definition.engines(definition.fold(definition.build(config)).eval(), config) if e.name == engine)
    graph.export_onnx(found, tmp_path / "x.onnx")
    net = graph.load(tmp_path / "x.onnx")
    macs = graph.count_macs(net)
    for unit in UNITS.values():
        where = dla.place(net, unit, {})
        told = dla.summary(net, where, macs)
        assert sum(n for node, n in macs.items() if where[node] is None) / sum(macs.values()) >= share
        assert told["layers"] == layers and told["pieces"] == pieces
        assert falls_back.items() <= told["falls_back"].items()


def test_plan_and_report_tell_what_the_dla_would_take(tmp_path, monkeypatch):
    project = make_project(tmp_path / "car")
    monkeypatch.chdir(project.root)
    assert "unit" not in json.loads(project.run("plan", "car.yaml", "--json").output)
    built = project.run("build", "car.yaml")
    assert built.exit_code in (0, 3), built.output
    told = json.loads(project.run("plan", "car.yaml", "--json").output)["unit"]
    assert told["name"] == "DLA" and 0 <= told["macs"] <= 1 and told["engines"]
    assert "the DLA would take" in project.run("plan", "car.yaml").output
    page = next((project.root / "build/car").glob("report.html")).read_text()
    assert "On the DLA" in page and "the kit builds for the GPU" in page

"""Exported graphs are canonical and counted right."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import graph
from edgekit.errors import CheckpointError, EdgekitError
from edgekit.formats import Engine
from tests.onnx_nets import Block, Inverted3d, Lambda, Stem, export, feeds, op_counts, run


@pytest.mark.parametrize("net, shape", [(Stem, (1, 400)), (Block, (1, 7, 12)), (Inverted3d, (1, 3, 4, 16, 16))])
def test_the_exported_graph_computes_what_torch_computes(tmp_path, net, shape):
    module = net().eval()
    path = export(tmp_path, module, shape)
    x = feeds(graph.load(path))
    with torch.no_grad():
        want = module(torch.from_numpy(x["x0"]))[0].numpy()
    np.testing.assert_allclose(run(path, x)["y0"], want, atol=2e-5)  # float32 through up to 10 layers


def test_batch_norm_and_weight_norm_are_folded_and_constants_are_gone(tmp_path):
    ops = op_counts(graph.load(export(tmp_path, Inverted3d(), (1, 3, 4, 16, 16))))
    assert ops == {"Conv": 7, "Clip": 5, "Add": 1, "ReduceMean": 1}
    ops = op_counts(graph.load(export(tmp_path, Stem(), (1, 400))))
    assert not set(ops) & {"Constant", "Identity", "Shape", "ReduceSum", "Pow", "Cast"}
    assert ops["Conv"] == 4


def lively(module: nn.Module) -> nn.Module:
    """Batch norms that treat no two channels alike."""
    torch.manual_seed(8)
    for sub in module.modules():
        if isinstance(sub, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in ((sub.weight, 0.5, 1.5), (sub.bias, -1, 1), (sub.running_mean, -1, 1), (sub.running_var, 0.5, 2)):
                nn.init.uniform_(tensor, low, high)
    return module.eval()


@pytest.mark.parametrize(
    "parts, shape, ops",
    [
        ([nn.Linear(6, 8), nn.BatchNorm1d(8)], (3, 6), {"Gemm": 1}),
        ([nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()], (3, 6), {"Gemm": 1, "Relu": 1}),
        ([nn.BatchNorm1d(6), nn.Linear(6, 8)], (3, 6), {"Gemm": 1}),
        ([nn.BatchNorm2d(4), nn.Dropout(0.4), nn.Flatten(), nn.Linear(24, 5), nn.BatchNorm1d(5)], (2, 4, 3, 2), {"Flatten": 1, "Gemm": 1}),
        ([nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3)], (1, 4, 7, 7), {"Conv": 1}),
        ([nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1, 2, groups=2, bias=False)], (1, 4, 7, 7), {"Conv": 1}),
        ([nn.BatchNorm1d(4), nn.Conv1d(4, 4, 3, groups=4)], (1, 4, 9), {"Conv": 1}),
        # A border of zeros stands behind the norm.
        ([nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1)], (1, 4, 7, 7), {"BatchNormalization": 1, "Conv": 1}),
        ([nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 1)], (1, 4, 7, 7), {"BatchNormalization": 1, "Relu": 1, "Conv": 1}),
    ],
)
def test_a_batch_norm_becomes_part_of_the_layer_beside_it(tmp_path, parts, shape, ops):
    module = lively(Lambda(lambda m, x: m.net(x), net=nn.Sequential(*parts)))
    path = export(tmp_path, module, shape)
    assert op_counts(graph.load(path)) == ops
    fed = feeds(graph.load(path))
    with torch.no_grad():
        np.testing.assert_allclose(run(path, fed)["y0"], module(torch.from_numpy(fed["x0"]))[0].numpy(), atol=1e-5)  # float32, a factor more or less


def test_a_batch_norm_stays_where_others_read_what_it_reads_or_writes(tmp_path):
    shared = lively(Lambda(lambda m, x: shared_norm(m, m.c(x)), c=nn.Linear(4, 4), n=nn.BatchNorm1d(4), d=nn.Linear(4, 4)))
    path = export(tmp_path, shared, (3, 4), name="shared")
    assert op_counts(graph.load(path))["BatchNormalization"] == 1
    fed = feeds(graph.load(path))
    with torch.no_grad():
        np.testing.assert_allclose(run(path, fed)["y0"], shared(torch.from_numpy(fed["x0"]))[0].numpy(), atol=1e-5)


def shared_norm(module, x):
    """Both what the norm reads and what it writes have another reader."""
    y = module.n(x)
    return x + module.d(y) * y


def test_an_expand_before_arithmetic_that_broadcasts_is_gone(tmp_path):
    module = Lambda(lambda m, x: torch.nn.functional.normalize(x, dim=1))
    path = export(tmp_path, module, (2, 6))
    assert op_counts(graph.load(path)) == {"ReduceL2": 1, "Clip": 1, "Div": 1}
    needed = Lambda(lambda m, x: torch.cat([x, x[:, :1].expand(2, 6)], 1))
    assert op_counts(graph.load(export(tmp_path, needed, (2, 6), name="needed")))["Expand"] == 1


def test_rnn_is_one_node_with_constant_states(tmp_path):
    module = Lambda(lambda m, x: m.rnn(x)[0], rnn=nn.LSTM(5, 4, 2, batch_first=True))
    model = graph.load(export(tmp_path, module, (1, 6, 5)))
    assert op_counts(model)["LSTM"] == 2
    assert not set(op_counts(model)) & {"Shape", "Gather", "Expand", "Concat"}


def test_names_are_unique_readable_and_safe_in_vendors_files(tmp_path):
    model = graph.load(export(tmp_path, nn.Sequential(Lambda(lambda m, x: m.c(x)[:, 0], c=Stem2())), (1, 3, 8, 8)))
    names = [node.name for node in model.graph] + [v.name for node in model.graph for v in node.outputs]
    names += list(model.graph.initializers)
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_./-]+", name) for name in names)
    assert "0/c/body.0/Conv" in names and "0/c/body.0/Conv.weight" in names and "0/c/body.2.0/Conv_out" in names


class Stem2(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 1)))

    def forward(self, x):
        return self.body(x)


def test_ports_keep_their_names_and_the_file_is_reproducible(tmp_path):
    module = Block()
    first = export(tmp_path, module, (1, 5, 12), name="a")
    second = export(tmp_path, module, (1, 5, 12), name="b")
    model = graph.load(first)
    assert [v.name for v in model.graph.inputs] == ["x0"] and [v.name for v in model.graph.outputs] == ["y0"]
    assert model.graph.opset_imports == {"": 17} and model.ir_version == 8
    assert first.read_bytes() == second.read_bytes()


def test_nan_weights_are_refused_by_name(tmp_path):
    module = Block()
    module.up.weight.data[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"`main`: weight `up.weight` holds NaN"):
        export(tmp_path, module, (1, 5, 12))


def test_a_module_with_other_shapes_than_the_engine_says_is_refused(tmp_path):
    from edgekit.formats import Engine

    with pytest.raises(EdgekitError, match="exported outputs"):
        graph.export_onnx(Engine("e", Block().eval(), {"x": (1, 5, 12)}, {"y": (1, 5, 13)}), tmp_path / "m.onnx")


@pytest.mark.parametrize(
    "module, shape, macs",
    [
        (Lambda(lambda m, x: m.c(x), c=nn.Conv2d(6, 8, 3, 2, 1, groups=2)), (1, 6, 9, 9), 8 * 5 * 5 * 3 * 9),
        (Lambda(lambda m, x: m.c(x), c=nn.Conv1d(3, 5, 4)), (1, 3, 10), 5 * 7 * 3 * 4),
        (Lambda(lambda m, x: m.c(x), c=nn.Conv3d(2, 4, (1, 3, 3))), (1, 2, 3, 6, 6), 4 * 3 * 4 * 4 * 2 * 9),
        (Lambda(lambda m, x: m.c(x), c=nn.ConvTranspose2d(4, 6, 3, 2, groups=2)), (1, 4, 5, 5), 4 * 25 * 3 * 9),
        (Lambda(lambda m, x: m.c(x), c=nn.Linear(7, 9)), (1, 7), 63),
        (Lambda(lambda m, x: m.c(x), c=nn.Linear(7, 9)), (1, 4, 7), 4 * 63),
        (Lambda(lambda m, x: x @ x.transpose(1, 2)), (1, 4, 7), 4 * 4 * 7),
        (Lambda(lambda m, x: m.c(x)[0], c=nn.LSTM(5, 6, batch_first=True)), (1, 8, 5), 8 * 24 * (5 + 6)),
        (Lambda(lambda m, x: m.c(x)[0], c=nn.LSTM(5, 6, bidirectional=True, batch_first=True)), (1, 8, 5), 2 * 8 * 24 * (5 + 6)),
        (Lambda(lambda m, x: m.c(x)[0], c=nn.GRU(5, 6, batch_first=True)), (1, 8, 5), 8 * 18 * (5 + 6)),
    ],
)
def test_macs_are_counted_from_static_shapes(tmp_path, module, shape, macs):
    assert sum(graph.count_macs(export(tmp_path, module, shape)).values()) == macs


def test_the_op_table_has_every_node_once(tmp_path):
    path = export(tmp_path, Block(), (1, 5, 12))
    model, rows = graph.load(path), graph.op_table(path)
    assert sum(row["count"] for row in rows) == sum(op_counts(model).values())
    linear = [r for r in rows if r["op"] == "MatMul" and r["const_inputs"] == [False, True]]
    assert linear == [{"op": "MatMul", "rank": 3, "dtype": "float32", "inputs": [3, 2], "const_inputs": [False, True], "count": 6}]


def test_layout_ops_are_aliases_and_only_compute_is_observed(tmp_path):
    model = graph.load(export(tmp_path, Stem(), (1, 400)))
    observed, aliases = graph.worth_observing(model), graph.aliases(model)
    assert not set(observed) & set(aliases)
    produced = {v.name: node.op_type for node in model.graph for v in node.outputs}
    assert "Erf" not in {produced.get(name) for name in observed}
    for node in model.graph:
        if node.op_type in ("Conv", "MatMul"):
            for value in (node.inputs[0], node.outputs[0]):
                assert aliases.get(value.name, value.name) in observed


# onnxsim


def test_onnxsim_runs_first_and_keeps_every_layers_name(tmp_path):
    engine = Engine("main", Block().eval(), {"x0": (1, 7, 12)}, {"y0": (1, 7, 12)})
    log = graph.export_onnx(engine, tmp_path / "with.onnx")
    assert log["onnxsim"] == "used" and log["max_abs"] <= 1e-5 * log["largest_output"]
    assert log["nodes"]["exported"] > log["nodes"]["simplified"] >= log["nodes"]["final"] == len(graph.load(tmp_path / "with.onnx").graph)
    layers = [node.name for node in graph.load(tmp_path / "with.onnx").graph if node.op_type == "MatMul"]
    assert layers and not any(re.search(r"[vn]_\d+$", name) for name in layers), "q, k and v are not merged and keep their modules' paths"


@pytest.mark.parametrize("fault", ["raises", "is wrong"])
def test_a_graph_that_onnxsim_breaks_is_taken_as_exported_and_the_log_says_so(tmp_path, monkeypatch, fault):
    import onnx
    import onnxsim

    def simplify(proto, **options):
        if fault == "raises":
            raise RuntimeError("no such op\nmore")
        changed = onnx.ModelProto.FromString(proto.SerializeToString())
        weight = next(t for t in changed.graph.initializer if len(t.dims) > 1)
        values = onnx.numpy_helper.to_array(weight)
        weight.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(1.01), weight.name))
        return changed, True

    engine = Engine("main", Block().eval(), {"x0": (1, 7, 12)}, {"y0": (1, 7, 12)})
    graph.export_onnx(engine, tmp_path / "honest.onnx")
    monkeypatch.setattr(onnxsim, "simplify", simplify)
    log = graph.export_onnx(engine, tmp_path / "g.onnx")
    assert log["onnxsim"].startswith("not used: RuntimeError: no such op" if fault == "raises" else "not used: outputs change by")
    names = [[node.name for node in graph.load(tmp_path / f"{name}.onnx").graph] for name in ("g", "honest")]
    assert names[0] == names[1]


def test_a_tidy_that_changes_values_is_a_bug_and_stops(tmp_path, monkeypatch):
    def broken(model):
        weight = next(v for v in model.graph.initializers.values() if len(v.shape) > 1)
        weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(2))

    import onnx_ir as ir

    tidy = graph.tidy
    monkeypatch.setattr(graph, "tidy", lambda model: (tidy(model), broken(model)))
    with pytest.raises(EdgekitError, match=r"engine `main`: folding constants changes the outputs"):
        graph.export_onnx(Engine("main", Block().eval(), {"x0": (1, 7, 12)}, {"y0": (1, 7, 12)}), tmp_path / "g.onnx")

"""compile, open and coverage: files that run, repeatable bytes, and precisions that are read and not assumed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgekit import backends, graph
from edgekit.backends import EngineKit, Kit, tflite
from edgekit.backends.tflite import precision, session
from edgekit.backends.tflite.lower import load_handlers
from edgekit.backends.tflite.writer import Model, Quant
from edgekit.errors import EdgekitError, TargetError
from edgekit.formats import write_json
from edgekit.target import load_target
from tests.backends.tflite.nets import net, onnx_run, quantized, random_feeds

pytest.importorskip("ai_edge_litert")

ROOT = Path(__file__).parents[3]
TARGETS = [path.stem for path in sorted((ROOT / "targets").glob("*.yaml")) if "\nbackend: tflite\n" in path.read_text()]


def pi() -> dict:
    return load_target("raspberry_pi5", ROOT).spec()


def small():
    rng = np.random.default_rng(0)
    weights = {"w1": rng.standard_normal((4, 3, 3, 3)), "w2": rng.standard_normal((4, 1, 3, 3)), "m": rng.standard_normal((4, 5))}
    nodes = [
        ("Conv", "x w1", "a", {"pads": [1, 1, 1, 1]}),
        ("Relu", "a", "b"),
        ("Conv", "b w2", "c", {"group": 4}),
        ("ReduceMean", "c", "p", {"axes": [2, 3], "keepdims": 0}),
        ("MatMul", "p m", "y"),
    ]
    return net(nodes, {"x": (1, 3, 8, 8)}, {"y": (1, 5)}, {k: v.astype(np.float32) for k, v in weights.items()})


def kit(folder: Path, model=None) -> Kit:
    model = small() if model is None else model
    graph.save(model, folder / "float.onnx")
    graph.save(quantized(model), folder / "qdq.onnx")
    return Kit((EngineKit("main", folder / "float.onnx", folder / "qdq.onnx", int8=("Conv0", "Conv2", "MatMul4")),), pi(), folder)


def test_it_keeps_the_protocol():
    assert backends.get("tflite") is tflite and tflite.EXECUTES
    assert tflite.versions(pi())["ai-edge-litert"] and "edgekit[tflite]" in tflite.install_hint(["ai-edge-litert"])


@pytest.mark.parametrize("float_form", [False, True])
def test_a_compiled_engine_runs_and_says_what_it_runs_in(tmp_path, float_form):
    made = kit(tmp_path)
    if float_form:
        made = Kit((made.engines[0].as_float(),), made.target, tmp_path)
    tflite.compile(made, tmp_path / "out")
    folder = tmp_path / "out" / "engines" / "main"
    fed = random_feeds(small())
    want = onnx_run(graph.load(made.engines[0].qdq_onnx), fed)["y"]
    got = tflite.open(folder, made.target, 1)(fed)["y"]
    np.testing.assert_allclose(got, want, atol=1e-5 if float_form else 0.1)
    assert tflite.coverage(folder, made.engines[0], made.target) == dict.fromkeys(("Conv0", "Conv2", "MatMul4"), "fp32" if float_form else "int8")
    facts = json.loads((tmp_path / "out" / "build.json").read_text())["engines"]["main"]
    assert facts["ops"]["CONV_2D"] == 1 and (facts["int8_ops"] == 0) == float_form


def test_the_same_kit_gives_the_same_files(tmp_path):
    made = kit(tmp_path)
    for out in ("a", "b"):
        tflite.compile(made, tmp_path / out)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert [str(f) for f in files] == ["build.json", "engines/main/model.tflite", "engines/main/ops.json"]
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_threads_change_no_bit(tmp_path):
    made = kit(tmp_path)
    tflite.compile(made, tmp_path / "out")
    fed = random_feeds(small())
    one, two = (tflite.open(tmp_path / "out" / "engines" / "main", made.target, n)(fed)["y"] for n in (1, 2))
    assert (one == two).all()


def test_wrong_inputs_are_refused_before_the_interpreter_resizes_itself(tmp_path):
    made = kit(tmp_path)
    tflite.compile(made, tmp_path / "out")
    run = tflite.open(tmp_path / "out" / "engines" / "main", made.target, 1)
    with pytest.raises(EdgekitError, match=r"inputs are .*\(2, 3, 8, 8\)"):
        run({"x": np.zeros((2, 3, 8, 8), np.float32)})
    with pytest.raises(EdgekitError, match="the model takes"):
        run({})


def test_a_node_that_has_no_form_is_named_with_its_engine(tmp_path):
    model = net([("Erf", "x", "y")], {"x": (1, 2)}, {"y": (1, 2)})
    graph.save(model, tmp_path / "float.onnx")
    with pytest.raises(TargetError, match=r"engine `main`: node `Erf0` \(Erf\)"):
        tflite.compile(Kit((EngineKit("main", tmp_path / "float.onnx", tmp_path / "float.onnx"),), pi(), tmp_path), tmp_path / "out")


def bad_file(folder: Path) -> None:
    """A file that no interpreter takes: an ADD of shapes that do not broadcast, made of the ONNX node `sum`."""
    model = Model()
    main = model.subgraph("main")
    x, y = main.tensor("x", (1, 3), "float32"), main.tensor("y", (1, 3), "float32")
    main.op("ADD", [x, main.constant("c", np.zeros((2,), np.float32))], [y])
    main.inputs, main.outputs = {"x": x}, {"y": y}
    model.save(folder / "model.tflite")
    write_json(folder / "ops.json", {"sum": ["y"]})


def test_a_file_that_the_interpreter_refuses_names_the_onnx_node(tmp_path):
    bad_file(tmp_path)
    with pytest.raises(TargetError, match=r"engine `main`: the runtime refuses model.tflite: (?s:.)*\(ONNX node `sum`\)"):
        session._run_once("main", tmp_path, pi())


def test_coverage_tells_float_activations_on_int8_weights_and_what_it_cannot_find(tmp_path):
    model = Model()
    main = model.subgraph("main")
    x, y = main.tensor("x", (1, 4), "float32"), main.tensor("y", (1, 5), "float32")
    weights = main.constant("w", np.ones((5, 4), np.int8), Quant.per_channel([0.1] * 5, 0))
    main.op("FULLY_CONNECTED", [x, weights, main.constant("b", np.zeros(5, np.float32))], [y], version=3)
    main.inputs, main.outputs = {"x": x}, {"y": y}
    model.save(tmp_path / "model.tflite")
    nodes = [("MatMul", "x w", "a"), ("MatMul", "x v", "b"), ("Add", "a b", "y")]
    graph.save(net(nodes, {"x": (1, 4)}, {"y": (1, 5)}, {"w": np.ones((4, 5), np.float32), "v": np.ones((4, 5), np.float32)}), tmp_path / "float.onnx")
    write_json(tmp_path / "ops.json", {"MatMul0": ["y"]})
    assert precision.of_layers(tmp_path, EngineKit("main", tmp_path / "float.onnx", tmp_path / "float.onnx")) == {"MatMul0": "mixed", "MatMul1": "unknown"}


def test_every_tflite_target_lists_what_we_lower_or_rewrite():
    lowered = load_handlers()
    assert TARGETS
    for name in TARGETS:
        for op, rule in load_target(name, ROOT).spec()["ops"].items():
            kind = op.split(".")[0]
            rewritten = set((rule.get("rewrite") or {}).get("ranks") or ()) if rule.get("rewrite") else None
            if rule.get("rewrite") and not rewritten:
                continue  # every rank of it becomes something else
            assert kind in lowered, f"{name}: {op}"
            assert set(rule.get("ranks") or ()) - (rewritten or set()) <= set(lowered[kind]), f"{name}: {op}"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"runtime": {"name": "TFLM", "version": "1"}}, "TFLM"),
        ({"build_on": "device"}, "nothing to build on the device"),
        ({"floats": "fp16"}, "float32"),
        ({"numbers": {**pi()["numbers"], "outputs": False}}, "writes INT8"),
        ({"numbers": {**pi()["numbers"], "activation": {"dtype": "uint8", "symmetric": False}}}, "int8 activations"),
    ],
)
def test_targets_that_tflite_cannot_serve(change, message):
    assert tflite.problems(pi()) == []
    found = tflite.problems({**pi(), **change})
    assert len(found) == 1 and message in found[0]

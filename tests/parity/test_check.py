"""The loop: pairing, data, labels, verdicts, and what is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from safetensors.numpy import save_file

import edgekit
from edgekit.errors import DataError, IntegrityError, RecipeError, UsageError
from edgekit.parity.result import Comparison
from edgekit.parity.runners import Port, Side
from tests.parity.nets import save_net


@pytest.fixture
def nets(tmp_path):
    """Two nets that are the same, and one whose `z` is 1 % larger."""
    return save_net(tmp_path / "a.onnx"), save_net(tmp_path / "b.onnx"), save_net(tmp_path / "off.onnx", scale=1.01)


def test_equal_models_are_the_same_and_the_result_reads_back(nets):
    found = edgekit.compare(nets[0], nets[1], "random:5", seed=3)
    assert found and found.verdict == "same" and found.exit_code == 0 and found.reasons == ()
    assert found.data.samples == 5 and found.data.seed == 3 and [o.errors.max_abs for o in found.outputs] == [0, 0]
    assert all(o.errors.sqnr_db == math.inf for o in found.outputs)
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert Comparison.from_json(document).to_json() == found.to_json()
    with pytest.raises(IntegrityError, match="not a comparison"):
        Comparison.from_json({"schema": 1, "a": 3})


def test_what_differs_is_named_with_its_size_and_place(nets):
    found = edgekit.compare(nets[0], nets[2], "random:5")
    y, z = found.outputs
    assert not found and found.exit_code == 3 and y.is_within and not z.is_within
    assert z.errors.sqnr_db == pytest.approx(40, abs=0.1) and z.errors.max_rel == pytest.approx(0.01 / 1.01, rel=1e-3)
    assert "output `z` is off by" in found.reasons[0] and f"sample {z.worst.sample} at" in found.reasons[0]
    assert edgekit.compare(nets[0], nets[2], "random:5", rtol=0.011, atol=0)
    assert not edgekit.compare(nets[0], nets[2], "random:5", rtol={"": 1.0, "z": 0.009}, atol=0)
    assert edgekit.compare(nets[0], nets[2], "random:5", min_sqnr_db=39) and not edgekit.compare(nets[0], nets[2], "random:5", min_sqnr_db=41)
    assert edgekit.compare(nets[0], nets[2], "random:5", outputs=["y"]).only_a == ("z",)


def test_random_data_is_the_same_for_a_seed_and_keeps_its_range(nets):
    seen = []
    for seed, count in ((1, 2), (1, 4), (2, 2)):
        fed = []
        edgekit.compare(nets[0], nets[1], f"random:{count}", seed=seed, val_range={"": (5.0, 6.0)}, on_sample=lambda id, feeds, a, b, fed=fed: fed.append(feeds["x"]))
        seen.append(fed)
    assert np.array_equal(seen[0], seen[1][:2]) and not np.array_equal(seen[0], seen[2])
    assert all(x.min() >= 5 and x.max() < 6 for fed in seen for x in fed)


def test_outputs_and_inputs_of_other_names_need_a_mapping(nets, tmp_path):
    other = save_net(tmp_path / "c.onnx", outputs=("StatefulPartitionedCall:0", "StatefulPartitionedCall:1"))
    with pytest.raises(DataError, match=r"B has no `y`, `z`; A has no `StatefulPartitionedCall:0`, `StatefulPartitionedCall:1`") as caught:
        edgekit.compare(nets[0], other, "random:1")
    assert "--map" in caught.value.hint and "\n" not in caught.value.message
    (tmp_path / "names.yaml").write_text("'StatefulPartitionedCall:0': y\n'StatefulPartitionedCall:1': z\n")
    found = edgekit.compare(nets[0], other, "random:3", mapping=tmp_path / "names.yaml")
    assert found and [(o.name, o.name_b) for o in found.outputs] == [("y", "StatefulPartitionedCall:0"), ("z", "StatefulPartitionedCall:1")]
    for text, match in (("q: y\n", "names `q`"), ("'StatefulPartitionedCall:0': [1]\n", "expected a name"), ("a: y\nb: y\n", "two names"), ("- y\n", "expected keys and values")):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises((UsageError, RecipeError), match=match):
            edgekit.compare(nets[0], other, "random:1", mapping=tmp_path / "bad.yaml")


class Gives(Side):
    """A side that gives what it is told."""

    kind, numbers = "python", "float"

    def __init__(self, text, outputs, has_batch=True):
        super().__init__(text, None)
        self.inputs, self.outputs = {"x": Port("float32", (1, 2))}, {name: Port(value.dtype.name, value.shape) for name, value in outputs.items()}
        self.given, self.has_batch = outputs, has_batch

    def run(self, feeds, taps=(), sample=None):
        return self.given


def test_shapes_come_before_values_and_are_never_broadcast():
    with pytest.raises(DataError, match=r"output `y` has shape \[1, 3\] in A \(a\) and \[1, 1\] in B \(b\)"):
        edgekit.compare(Gives("a", {"y": np.full((1, 3), np.nan)}), Gives("b", {"y": np.zeros((1, 1))}), "random:1")
    assert edgekit.compare(Gives("a", {"y": np.ones((1, 3))}), Gives("b", {"y": np.ones(3)}, has_batch=False), "random:1")


def test_dtypes_may_differ_and_are_said():
    found = edgekit.compare(Gives("a", {"y": np.ones((1, 3), np.float32)}), Gives("b", {"y": np.ones((1, 3), np.int8)}), "random:1")
    assert found and (found.outputs[0].dtype_a, found.outputs[0].dtype_b) == ("float32", "int8")


def test_a_side_that_leaves_an_output_out_is_told():
    broken = Gives("b", {"y": np.ones((1, 3))})
    broken.given = {}
    with pytest.raises(DataError, match="output `y` was not given out"):
        edgekit.compare(Gives("a", {"y": np.ones((1, 3))}), broken, "random:1")


@pytest.mark.parametrize("kind", ["rows", "keys", "folder"])
def test_saved_inputs_are_read_in_every_form(nets, tmp_path, kind):
    x = np.random.default_rng(0).standard_normal((3, 1, 6)).astype(np.float32)
    if kind == "rows":
        path = tmp_path / "x.npz"
        np.savez(path, x=x[:, 0])  # without the batch axis
    elif kind == "keys":
        path = tmp_path / "x.safetensors"
        save_file({f"clip{i}/input/x": v for i, v in enumerate(x)}, path)
    else:
        path = tmp_path / "clips"
        path.mkdir()
        for i, v in enumerate(x):
            np.savez(path / f"clip{i}.npz", x=v)
    found = edgekit.compare(nets[0], nets[2], path)
    assert found.data.samples == 3 and len(found.data.sha256) == 64
    want = edgekit.compare(nets[0], nets[2], [{"x": v} for v in x])
    assert found.outputs[1].errors == want.outputs[1].errors
    assert edgekit.compare(nets[0], nets[1], path, samples=2).data.samples == 2


def test_labels_beside_the_inputs_give_task_metrics_with_a_paired_interval(tmp_path):
    from edgekit.metrics import METRICS, paired_bootstrap

    class Scores(Side):
        kind, numbers, inputs, outputs = "python", "float", {"x": Port("float32", (1, 1))}, {"o": Port("float32", (1,))}

        def run(self, feeds, taps=(), sample=None):
            return {"o": feeds["x"][0] * np.float32(1.0 if self.text == "a" else 0.9)}

    rng = np.random.default_rng(0)
    x, label = rng.uniform(-1, 1, (40, 1)).astype(np.float32), rng.uniform(-1, 1, 40)
    np.savez(tmp_path / "x.npz", x=x, **{"label/o": label})
    found = edgekit.compare(Scores("a", tmp_path), Scores("b", tmp_path), tmp_path / "x.npz", atol=1.0)
    mae = next(m for m in found.metrics if m.metric == "mae")
    a, b = x[:, 0].astype(np.float64), (x[:, 0] * np.float32(0.9)).astype(np.float64)
    assert (mae.a, mae.b, mae.samples) == (METRICS["mae"](label, a), METRICS["mae"](label, b), 40)
    assert (mae.change, mae.low, mae.high) == paired_bootstrap(METRICS["mae"], label, a, b) and found.data.labels == ("o",)


def test_recorded_outputs_stand_for_a_model(nets, tmp_path):
    """What compare wrote down is compared again, with the model and with itself."""
    from edgekit.parity.show import writer

    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32))
    edgekit.compare(nets[0], nets[2], tmp_path / "x.npz", on_sample=writer(tmp_path / "out"))
    assert edgekit.compare(nets[0], tmp_path / "out/a", tmp_path / "x.npz") and not edgekit.compare(nets[0], tmp_path / "out/b", tmp_path / "x.npz")
    assert not edgekit.compare(tmp_path / "out/a", tmp_path / "out/b")
    with pytest.raises(DataError, match="holds outputs only"):
        edgekit.compare(nets[0], tmp_path / "out/a")
    np.savez(tmp_path / "other.npz", x=np.zeros((7, 6), np.float32))
    with pytest.raises(DataError, match="4 samples were recorded, the data has 7"):
        edgekit.compare(nets[0], tmp_path / "out/a", tmp_path / "other.npz")


def test_free_axes_take_the_other_sides_length_or_the_one_that_is_asked_for(tmp_path):
    a, b = save_net(tmp_path / "a.onnx", batch="n"), save_net(tmp_path / "b.onnx", batch=1)
    assert edgekit.compare(a, b, "random:1").outputs[0].shape == (1, 4)
    assert edgekit.compare(a, a, "random:1", input_shapes={"x": (5, 6)}).outputs[0].shape == (5, 4)
    with pytest.raises(UsageError, match="no such input"):
        edgekit.compare(a, a, "random:1", input_shapes={"q": (5, 6)})


def test_data_that_cannot_be_used_is_one_sentence(nets, tmp_path):
    a, b, _ = nets
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "none.npz", x=np.zeros((0, 6), np.float32))
    np.savez(tmp_path / "named.npz", q=np.zeros((2, 6), np.float32))
    np.savez(tmp_path / "shape.npz", x=np.zeros((2, 5), np.float32))
    np.savez(tmp_path / "extra.npz", x=np.zeros((2, 6), np.float32), q=np.zeros((2, 6), np.float32))
    (tmp_path / "bad.npz").write_bytes(b"PK\3\4")
    for data, kind, match in (
        (tmp_path / "empty", DataError, "holds no"), (tmp_path / "none.npz", DataError, "holds no inputs"), (tmp_path / "named.npz", DataError, "`q` is no input"),
        (tmp_path / "shape.npz", DataError, r"takes float32 \[1, 6\], the data has float32 \[5\]"), (tmp_path / "extra.npz", DataError, "`q` is no input"),
        (tmp_path / "bad.npz", IntegrityError, "not a whole .npz"), (tmp_path / "missing.npz", DataError, "no such file"), ("random:0", DataError, "0 samples"),
        ("random:many", UsageError, "not a number of samples"), ("nowhere/x", UsageError, "no such file or folder"), ([], DataError, "no samples"), ("cabin", UsageError, "neither side says how"),
    ):  # fmt: skip
        with pytest.raises(kind, match=match) as caught:
            edgekit.compare(a, b, data)
        assert "\n" not in caught.value.message, data


def test_integers_are_fed_as_integers_and_fractions_are_not(tmp_path):
    from onnx import TensorProto, helper, numpy_helper

    from tests.parity.nets import save_graph

    table = numpy_helper.from_array(np.arange(20, dtype=np.float32).reshape(10, 2), "t")
    node = helper.make_node("Gather", ["t", "ids"], ["y"], name="g")
    path = save_graph(tmp_path / "g.onnx", [node], [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, 4])], [helper.make_tensor_value_info("y", 1, [1, 4, 2])], [table])
    assert edgekit.compare(path, path, "random:5", val_range={"ids": (0, 9)})
    with pytest.raises(DataError, match=r"takes int64 \[1, 4\], the data has float64"):
        edgekit.compare(path, path, [{"ids": np.full((1, 4), 0.5)}])


def test_a_tolerance_for_what_is_not_compared_is_a_mistake(nets):
    with pytest.raises(UsageError, match="output `zz`, which is not compared") as caught:
        edgekit.compare(nets[0], nets[1], "random:1", atol={"zz": 1.0})
    assert "`z`" in caught.value.hint


def test_tensors_of_the_first_samples_are_kept_for_a_report_and_stay_out_of_the_json(nets):
    found = edgekit.compare(nets[0], nets[1], "random:4", keep=2)
    assert sorted(found.kept) == sorted(f"{i}/{part}" for i in "01" for part in ("a/y", "a/z", "b/y", "b/z", "input/x"))
    assert "kept" not in found.to_json()


def test_the_function_and_the_module_of_one_name_both_work(nets):
    from edgekit import compare as imported
    from edgekit.compare import compare as tensors

    assert imported is edgekit.compare and edgekit.compare(nets[0], nets[1], "random:1")
    assert tensors({"y": [1.0]}, {"y": [1.5]})["y"].max_abs == 0.5


def test_memory_does_not_grow_with_the_samples(nets):
    """Errors are kept up to 4 M elements, samples never: 10,000 samples of 7 numbers."""
    import tracemalloc

    tracemalloc.start()
    edgekit.compare(Gives("a", {"y": np.ones((1, 64, 1024), np.float32)}), Gives("b", {"y": np.ones((1, 64, 1024), np.float32)}), "random:120")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 << 20  # the samples alone, kept as float64, would be 126 MB a side; errors are 2 x 32 MB and 4 MB of bins

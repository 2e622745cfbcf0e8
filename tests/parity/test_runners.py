"""Every kind of side opens, runs and shows its inner tensors; a bad file is one sentence."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import save_file

import edgekit
from edgekit.errors import DataError, EdgekitError, IntegrityError, ToolMissing, UsageError
from edgekit.parity.runners import Options, open_side
from tests.parity.nets import save_net, save_step

TFLITE = Path(edgekit.__file__).parent / "backends/tflite/check.tflite"
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
needs_litert = pytest.mark.skipif(importlib.util.find_spec("ai_edge_litert") is None, reason="ai-edge-litert is not installed")


@pytest.fixture
def net(tmp_path) -> Path:
    return save_net(tmp_path / "net.onnx")


@pytest.fixture
def ir(tmp_path, net) -> Path:
    ov = pytest.importorskip("openvino")
    ov.save_model(ov.Core().read_model(net), tmp_path / "net.xml", compress_to_fp16=False)
    return tmp_path / "net.xml"


X = {"x": np.linspace(-1, 1, 6, dtype=np.float32)[None]}


def test_an_onnx_file_has_ports_numbers_and_taps(net):
    with open_side(net) as side:
        assert (side.kind, side.numbers, str(side.inputs["x"])) == ("onnx", "float", "float32 [1, 6]")
        assert list(side.outputs) == ["y", "z"] and side.taps() == ("xw", "xwb") and side.engine_graph() == net
        plain, tapped = side.run(X), side.run(X, taps=("xwb",))
        assert set(tapped) == {"y", "z", "xwb"} and np.array_equal(np.maximum(tapped["xwb"], 0), tapped["y"]) and np.array_equal(plain["z"], tapped["z"])
        assert side.info().facts["runtime"] == "onnxruntime" and len(side.info().facts["sha256"]) == 64


def test_an_openvino_ir_agrees_and_shows_the_same_tensors(net, ir):
    with open_side(net) as a, open_side(ir) as b:
        assert b.kind == "openvino" and str(b.inputs["x"]) == "float32 [1, 6]" and {"xw", "xwb"} <= set(b.taps())
        want, got = a.run(X, taps=("xwb",)), b.run(X, taps=("xwb",))
        for name in ("y", "z", "xwb"):
            np.testing.assert_allclose(got[name], want[name], atol=1e-6)
    assert edgekit.compare(net, ir)


@needs_litert
def test_a_tflite_model_gives_named_outputs_and_dequantized_taps():
    with open_side(TFLITE) as side:
        assert side.kind == "tflite" and side.numbers == "int8" and list(side.inputs) == ["x"] and list(side.outputs) == ["y"]
        got = side.run({"x": np.array([[-1.0, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1.0]], np.float32)}, taps=side.taps())
        np.testing.assert_array_equal(got["y"], np.array([[-0.75, -2.25, 0.375, 0.0]], np.float32))
        assert side.taps() and all(value.dtype == np.float32 for value in got.values())


@needs_litert
def test_the_interpreter_of_2023_answers_or_says_how_to_get_it(monkeypatch, tmp_path):
    from edgekit import tools

    if tools.version("tflite214") is not None:
        assert edgekit.compare(TFLITE, f"{TFLITE}@2.14")
    monkeypatch.setenv("EDGEKIT_TOOLS", str(tmp_path))
    with pytest.raises(ToolMissing, match="not installed here") as caught:
        open_side(f"{TFLITE}@2.14")
    assert "edgekit doctor --install tflite214" in caught.value.hint


def test_states_are_found_by_name_or_given(tmp_path):
    path = save_step(tmp_path / "step.onnx")
    assert [(s.input, s.output, s.shape) for s in open_side(path).states] == [("h_in", "h_out", (1, 1, 16)), ("c_in", "c_out", (1, 1, 16))]
    assert [s.input for s in open_side(path, Options(states={"h_in": "c_out"})).states] == ["h_in"]
    assert open_side(path, Options(states={})).states == ()


def test_an_installed_runtime_is_asked_for_before_it_fails(net, monkeypatch, tmp_path):
    (tmp_path / "a.xml").write_text("<net/>")
    (tmp_path / "a.tflite").write_bytes(b"\0\0\0\0TFL3")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for path, hint in ((net, "onnxruntime"), (tmp_path / "a.xml", "edgekit[openvino]"), (tmp_path / "a.tflite", "edgekit[tflite]")):
        with pytest.raises(ToolMissing, match="is not installed here") as caught:
            open_side(path)
        assert hint in caught.value.hint and caught.value.exit_code == 5


@pytest.mark.parametrize("cut", [0, 1, 20, 100, -1])
def test_a_cut_onnx_file_is_one_sentence(net, cut):
    whole = net.read_bytes()
    net.write_bytes(whole[:cut])
    with pytest.raises(IntegrityError) as caught:
        open_side(net).run(X)
    assert "\n" not in caught.value.message and "net.onnx" in caught.value.message


def test_bytes_that_are_not_the_format_are_one_sentence(tmp_path):
    for name in ("a.onnx", "a.xml", "a.tflite", "a.npz", "a.safetensors"):
        (tmp_path / name).write_bytes(b"not that" * 50)
        if name == "a.xml" and importlib.util.find_spec("openvino") is None:
            continue
        with pytest.raises(IntegrityError) as caught:
            open_side(tmp_path / name)
        assert "\n" not in caught.value.message and name in caught.value.message


def test_a_damaged_onnx_file_or_ir_never_ends_in_a_traceback(net, tmp_path):
    """Bytes changed at random: it opens and runs, or one sentence says why not."""
    formats = {".onnx": net.read_bytes(), ".step.onnx": save_step(tmp_path / "s.onnx").read_bytes()}
    if importlib.util.find_spec("openvino") is not None:
        import openvino as ov

        ov.save_model(ov.Core().read_model(net), tmp_path / "f.xml")
        formats[".xml"] = (tmp_path / "f.xml").read_bytes()
    rng = np.random.default_rng(0)
    opened = 0
    for i in range(120):
        suffix = list(formats)[i % len(formats)]
        bad = bytearray(formats[suffix])
        for at in rng.integers(0, len(bad), int(rng.integers(1, 4))):
            bad[at] = int(rng.integers(256))
        path = tmp_path / f"f{suffix}"
        path.write_bytes(bad)
        try:
            side = open_side(path)
            side.run({name: np.zeros([n or 1 for n in port.shape], port.dtype) for name, port in side.inputs.items()})
            opened += 1
        except EdgekitError as error:
            assert "\n" not in error.message
    assert 10 < opened < 110


@needs_litert
def test_a_damaged_tflite_never_ends_the_process(tmp_path):
    whole, rng = bytearray(TFLITE.read_bytes()), np.random.default_rng(0)
    for i in range(40):
        bad = bytearray(whole)
        for at in rng.integers(8, len(bad), 4):
            bad[at] = int(rng.integers(256))
        path = tmp_path / f"{i}.tflite"
        path.write_bytes(bad if i % 2 else bad[: rng.integers(8, len(bad))])
        try:
            with open_side(path) as side:
                side.run({name: np.zeros(port.shape, port.dtype) for name, port in side.inputs.items()})
        except EdgekitError as error:
            assert "\n" not in error.message


def external(tmp_path: Path, location: str) -> Path:
    """A net whose weight `w` says that it lies at `location`."""
    model = onnx.load(str(save_net(tmp_path / "inside/net.onnx")))
    weight = next(init for init in model.graph.initializer if init.name == "w")
    size = len(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(size))):
        weight.external_data.add(key=key, value=value)
    (tmp_path / "inside/net.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "secret").write_bytes(b"\1" * size)
    return tmp_path / "inside/net.onnx"


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "a/../../secret", "link", "c:\\secret", "", "nothing_there"])
def test_weights_outside_the_models_folder_are_refused(tmp_path, location):
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside/link").symlink_to("../secret")
    with pytest.raises(IntegrityError, match="weight|which is not there"):
        open_side(external(tmp_path, location))


def test_weights_beside_the_model_are_read(tmp_path):
    (tmp_path / "inside").mkdir()
    path = external(tmp_path, "w.bin")
    w = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    (tmp_path / "inside/w.bin").write_bytes(w.tobytes())
    assert edgekit.compare(path, save_net(tmp_path / "plain.onnx"))
    assert open_side(path).run(X, taps=("xw",))["xw"].shape == (1, 4)


def test_weights_hidden_in_a_subgraph_are_found_too(tmp_path):
    from onnx import helper

    inner = helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [1.0])
    inner.ClearField("float_data")
    inner.data_location = onnx.TensorProto.EXTERNAL
    inner.external_data.add(key="location", value="../secret")
    branch = helper.make_graph([helper.make_node("Constant", [], ["v"], value=inner)], "then", [], [helper.make_tensor_value_info("v", 1, [1])])
    node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", onnx.TensorProto.BOOL, [])], [helper.make_tensor_value_info("y", 1, [1])])
    (tmp_path / "if.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(IntegrityError, match="outside the model's folder"):
        open_side(tmp_path / "if.onnx")


def test_nothing_there_unknown_kinds_and_words_are_refused(net, tmp_path):
    with pytest.raises(UsageError, match="no such file") as caught:
        open_side(tmp_path / "nett.onnx")
    assert "net.onnx" in caught.value.hint
    (tmp_path / "a.h5").write_bytes(b"")
    with pytest.raises(UsageError, match="not a kind of model"):
        open_side(tmp_path / "a.h5")
    with pytest.raises(UsageError, match="nothing is known as `@deployed`"):
        open_side(f"{net}@deployed")
    assert open_side(f"{net}@fused").info().facts["computed"] == "fused"


def test_a_side_of_ones_own_is_taken_as_it_is(net):
    side = open_side(net)
    assert open_side(side) is side


# --------------------------------------------------------------------------- recordings


def test_recordings_are_one_file_of_rows_keys_or_a_folder(tmp_path):
    y, z = np.arange(8, dtype=np.float32).reshape(2, 1, 4), np.ones((2, 1, 3), np.float32)
    np.savez(tmp_path / "rows.npz", y=y, z=z)
    save_file({f"s{i}/output/{n}": v[i] for i in range(2) for n, v in (("y", y), ("z", z))}, tmp_path / "keys.safetensors")
    (tmp_path / "folder").mkdir()
    for i in range(2):
        np.savez(tmp_path / f"folder/s{i}.npz", y=y[i], z=z[i])
    sides = [open_side(tmp_path / name) for name in ("rows.npz", "keys.safetensors", "folder")]
    assert [side.recording.ids for side in sides] == [["0", "1"], ["s0", "s1"], ["s0", "s1"]]
    for side in sides:
        assert side.numbers == "unknown" and np.array_equal(side.run({}, sample=side.recording.ids[1])["y"], y[1])
        assert edgekit.compare(side.path, tmp_path / "folder")


def test_pickles_and_objects_are_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    np.savez(tmp_path / "a.npz", y=np.array([Bomb()], dtype=object))
    with pytest.raises(IntegrityError, match="Python objects are never loaded|cannot be read"):
        open_side(tmp_path / "a.npz")
    assert not (tmp_path / "ran").exists()


def test_a_zip_that_unpacks_to_more_than_is_sane_is_refused(tmp_path, monkeypatch):
    from edgekit.parity import recorded

    monkeypatch.setattr(recorded, "MAX_BYTES", 10_000)
    np.savez_compressed(tmp_path / "a.npz", y=np.zeros(100_000))
    with pytest.raises(IntegrityError, match="unpacks to more than"):
        open_side(tmp_path / "a.npz")


def test_strange_members_and_texts_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(IntegrityError, match="expected real numbers|cannot be read"):
        open_side(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", y=np.array(["a"]))
    with pytest.raises(IntegrityError, match="expected real numbers"):
        open_side(tmp_path / "b.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no \.npz"):
        open_side(tmp_path / "empty")
    np.savez(tmp_path / "c.npz", y=np.zeros((2, 3)), z=np.zeros((3, 3)))
    with pytest.raises(DataError, match="different numbers of samples"):
        open_side(tmp_path / "c.npz")

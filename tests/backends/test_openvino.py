"""An IR is the Q/DQ graph, byte for byte the same each time, and coverage is what the compiled model really does."""

from __future__ import annotations

import copy
import hashlib
import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgekit import graph, qdq, rewrites
from edgekit.backends import EngineKit, Kit, onnxruntime
from edgekit.backends import openvino as backend
from edgekit.backends.openvino import isolated
from edgekit.compare import compare
from edgekit.errors import EdgekitError, IntegrityError, TargetError, ToolMissing
from edgekit.models.blocks.efficientface import ShuffleUnit
from edgekit.quant import Numbers, Range
from edgekit.target import load_target
from tests.backends import wrong_lstm
from tests.onnx_nets import Block, Inverted3d, Lambda, export, feeds

ROOT = Path(__file__).parents[2]
TARGET = load_target("x86_openvino", ROOT).spec()
LEGACY = load_target("x86_openvino_legacy", ROOT).spec()
NUMBERS = Numbers.from_target(TARGET["numbers"])
SYMMETRIC = Numbers(nonnegative="uint8")
WITH_ATTENTION = {**TARGET["ops"], "MatMul.activations": {"int8": True}}
CPU = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""

needs_openvino = pytest.mark.skipif(backend.versions(TARGET)["openvino"] is None, reason="needs openvino: pip install 'edgekit[openvino]'")
needs_vnni = pytest.mark.skipif("avx512_vnni" not in CPU, reason="needs a CPU with AVX-512 VNNI to compare with")


def quantized(folder: Path, module: nn.Module, *shapes: tuple[int, ...], numbers=NUMBERS, ops=TARGET["ops"], skip=None, rewrite: str | tuple[str, ...] = ()) -> tuple[EngineKit, dict]:
    """An engine in `folder` with ranges of one random input, and that input."""
    torch.manual_seed(0)
    path = export(folder, module, *shapes, name="float")
    model = graph.load(path)
    for name in (rewrite,) if isinstance(rewrite, str) else rewrite:
        rewrites.apply(model, name)
    graph.save(model, path)
    chosen = qdq.precisions(model, ops, skip=skip)
    x = feeds(model)
    seen = {**x, **onnxruntime.simulate(path, threads=1, also=[name for name in chosen.observed if name not in x])(x)}
    ranges = {name: Range(float(seen[name].min()), float(seen[name].max())) for name in chosen.observed}
    ranges.update(qdq.joined(chosen, ranges))
    ranges.update({tensor: ranges[written] for tensor, written in qdq.passed_on(model, chosen).items()})
    graph.save(qdq.insert_qdq(model, chosen, ranges, numbers), folder / "qdq.onnx")
    return EngineKit("main", path, folder / "qdq.onnx", int8=chosen.int8), x


def compiled(folder: Path, engine: EngineKit, target=TARGET) -> Path:
    backend.compile(Kit((engine,), target, folder), folder / "out")
    return folder / "out/engines/main"


def simulated(engine: EngineKit, x: dict) -> dict:
    return onnxruntime.simulate(engine.qdq_onnx, threads=1)(x)


class Recurrent(nn.Module):
    """Two layers of both directions and a Linear on the last step."""

    def __init__(self, kind):
        super().__init__()
        self.rnn, self.fc = kind(8, 8, 2, batch_first=True, bidirectional=True), nn.Linear(16, 4)

    def forward(self, x):
        return (self.fc(self.rnn(x)[0][:, -1]),)


# --------------------------------------------------------------------------- what needs no OpenVINO


def test_without_openvino_there_is_no_version(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(backend, "version", missing)
    assert backend.versions(TARGET) == {"openvino": None}
    assert "edgekit[openvino]" in backend.install_hint(["openvino"])


def test_an_openvino_that_cannot_be_loaded_is_a_missing_tool(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ToolMissing, match="openvino"):
        backend.runtime()
    assert sys.modules.get("openvino_telemetry", True), "what was hidden is back"


@pytest.mark.parametrize("name", ["x86_openvino", "x86_openvino_legacy"])
def test_shipped_targets_are_served(name):
    target = load_target(name, ROOT)
    assert target.name == name and backend.problems(target.spec()) == []
    named = {source.split("]")[0] + "]" for source in target.sources}
    used = {f"[{part.split(']')[0]}]" for rule in target.ops.values() for part in (rule.source or "").split("[")[1:]}
    assert used <= named, "each [source] is listed"


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("runtime", "name"), "TensorRT", "runtime"),
        (("build_on",), "device", "build_on"),
        (("device", "precision_hint"), "f16", "precision_hint"),
        (("device", "precision_hint"), "bf16", "floats"),
        (("device", "max_cpu_isa"), "AVX2", "max_cpu_isa"),
        (("device", "recurrent_weights"), "int8", "recurrent_weights"),
        (("ops", "LSTM", "int8"), True, "LSTM"),
        (("ops", "GRU", "int8"), True, "GRU"),
        (("ops", "MatMul.activations", "symmetric"), False, "symmetric"),
    ],
)
def test_a_target_that_cannot_be_served_is_refused(path, value, says):
    target = copy.deepcopy(TARGET)
    inner = target
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    found = backend.problems(target)
    assert len(found) == 1 and says in found[0]


def test_seven_bit_weights_leave_room_for_two_products_in_sixteen_bits():
    divisor = LEGACY["numbers"]["weight"]["divisor"]
    assert 2 * 255 * divisor <= 32767 < 2 * 255 * 127
    assert "max_cpu_isa" in LEGACY["device"] and not LEGACY["ops"]["MatMul.activations"].get("int8")


# --------------------------------------------------------------------------- artifacts



@needs_openvino
@needs_vnni
@pytest.mark.parametrize("joined", [2, 3])
def test_a_padding_convolution_of_what_is_joined_along_time_or_space_runs_in_int8(tmp_path, monkeypatch, joined):
    """As DCCRN's encoder reads the last frame and the new ones."""

    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, (5, 2), stride=(2, 1), padding=(2, 0))

        def forward(self, state, x):
            return (self.second(torch.cat([state, torch.relu(self.first(x)) - 0.3], joined)),)

    shape = [1, 16, 32, 5]
    state = [1, 16, 32, 5]
    state[joined] = 1
    engine, x = quantized(tmp_path, Joined(), tuple(state), tuple(shape))
    got = backend.open(compiled(tmp_path, engine), TARGET)(x)
    assert backend.coverage(tmp_path / "out/engines/main", engine, TARGET) == {"first/Conv": "int8", "second/Conv": "int8"}
    assert compare(simulated(engine, x), got)["y0"].sqnr_db >= 40
    monkeypatch.setattr(backend, "_pad_before_quantizing", lambda model: None)
    plain = compiled(tmp_path, engine)
    assert backend.coverage(plain, engine, TARGET)["second/Conv"] != "int8", "OpenVINO can do it by itself now: pad no more"


@needs_openvino
@pytest.mark.parametrize("make", [Block, Inverted3d], ids=lambda make: make.__name__)
def test_an_artifact_computes_its_graph(tmp_path, make):
    shape = (1, 6, 12) if make is Block else (1, 3, 4, 16, 16)
    engine, x = quantized(tmp_path, make(), shape)
    for kit in (engine, engine.as_float()):
        session = backend.open(compiled(tmp_path, kit), TARGET, threads=1)
        assert (session.inputs, session.outputs) == (["x0"], ["y0"])
        # 90 dB: one float32 rounding in another place flips an integer here and there; a wrong kernel is at 30 or below
        assert compare(simulated(kit, x), session(x))["y0"].sqnr_db > 90
    assert compare(simulated(engine.as_float(), x), simulated(engine, x))["y0"].sqnr_db < 60, "the Q/DQ graph is not the float graph"


@needs_openvino
def test_results_belong_to_the_caller(tmp_path):
    engine, x = quantized(tmp_path, Block(), (1, 6, 12))
    session = backend.open(compiled(tmp_path, engine), TARGET, threads=1)
    first = session(x)["y0"]
    kept = first.copy()
    session({"x0": x["x0"] + 1})
    np.testing.assert_array_equal(first, kept)
    with pytest.raises(EdgekitError, match="x9"):
        session({"x9": x["x0"]})


@needs_openvino
def test_outputs_have_the_graphs_names_whatever_the_plug_in_joins_to_them(tmp_path):
    """A Squeeze before the last op: the compiled port has the Squeeze's name too, and that is the first in the alphabet."""
    engine, x = quantized(tmp_path, Lambda(lambda m, x: torch.tanh(m.b(x[None]).squeeze(0)), b=nn.Linear(24, 4)), (4, 24))
    session = backend.open(compiled(tmp_path, engine), TARGET, threads=1)
    assert session.outputs == ["y0"] and compare(simulated(engine, x), session(x))["y0"].sqnr_db > 60


@needs_openvino
def test_equal_kits_are_equal_files_whatever_was_compiled_before(tmp_path):
    engine, _ = quantized(tmp_path, Recurrent(nn.LSTM), (1, 5, 8))

    def digests(out: Path) -> dict[str, str]:
        return {str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(out.rglob("*")) if file.is_file()}

    backend.compile(Kit((engine,), TARGET, tmp_path), tmp_path / "a")
    backend.compile(Kit((engine,), TARGET, tmp_path), tmp_path / "b")
    script = (
        "import json, sys; from pathlib import Path; from edgekit.backends import EngineKit, Kit, openvino\n"
        "folder, target = Path(sys.argv[1]), json.loads(sys.argv[2])\n"
        "openvino.compile(Kit((EngineKit('main', folder / 'float.onnx', folder / 'qdq.onnx'),), target, folder), folder / 'c')"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path), json.dumps(TARGET)], cwd=ROOT, check=True, timeout=60)
    a = digests(tmp_path / "a")
    assert sorted(a) == ["build.json", "engines/main/model.bin", "engines/main/model.xml"]
    assert a == digests(tmp_path / "b") == digests(tmp_path / "c")


@needs_openvino
def test_nothing_is_sent_to_anybody(tmp_path):
    """`import openvino` alone reports itself, if its telemetry package is there."""
    quantized(tmp_path, Lambda(lambda m, x: m.c(x), c=nn.Conv2d(3, 4, 3)), (1, 3, 8, 8))
    script = (
        "import json, socket, sys; from pathlib import Path\n"
        "def refuse(*arguments, **more): raise SystemExit('telemetry')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from edgekit.backends import EngineKit, Kit, openvino\n"
        "folder, target = Path(sys.argv[1]), json.loads(sys.argv[2])\n"
        "engine = EngineKit('main', folder / 'float.onnx', folder / 'qdq.onnx')\n"
        "openvino.compile(Kit((engine,), target, folder), folder / 'out')\n"
        "openvino.open(folder / 'out/engines/main', target), openvino.coverage(folder / 'out/engines/main', engine, target)\n"
        "assert not [name for name in sys.modules if 'telemetry' in name and 'stub' not in name and 'ovc' not in name]\n"
        "assert 'nncf' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path), json.dumps(TARGET)], cwd=ROOT, check=True, timeout=60)


@needs_openvino
def test_weights_stay_int8(tmp_path):
    engine, _ = quantized(tmp_path, Lambda(lambda m, x: m.c(x), c=nn.Conv2d(64, 64, 3)), (1, 64, 8, 8))
    size = (compiled(tmp_path, engine) / "model.bin").stat().st_size
    assert 64 * 64 * 9 < size < 1.1 * 64 * 64 * 9


@needs_openvino
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_weights_are_stored_in_half_beside_int8_layers_only(tmp_path, kind):
    engine, x = quantized(tmp_path, Lambda(lambda m, x: m.fc(m.rnn(x)[0]), rnn=kind(32, 64, batch_first=True), fc=nn.Linear(64, 4)), (1, 5, 32))
    sizes, off = {}, {}
    for stored in ("float32", "float16"):
        target = {**TARGET, "device": {"recurrent_weights": stored}}
        for name, kit in (("int8", engine), ("float", engine.as_float())):
            folder = compiled(tmp_path / stored / name, kit, target)
            sizes[stored, name] = (folder / "model.bin").stat().st_size
            off[stored, name] = compare(simulated(kit, x), backend.open(folder, target, threads=1)(x))["y0"].sqnr_db
    assert sizes["float16", "float"] == sizes["float32", "float"]
    gates = {nn.LSTM: 4, nn.GRU: 3}[kind]
    assert sizes["float32", "int8"] - sizes["float16", "int8"] == 2 * gates * 64 * (32 + 64)
    assert off["float32", "int8"] > 90 and off["float16", "float"] > 90
    assert 50 < off["float16", "int8"] < 90  # float16 alone is about 70; where it tips the rounding before `fc`, one step of INT8 is off


@needs_openvino
def test_another_openvino_than_the_targets_is_refused(tmp_path):
    engine, _ = quantized(tmp_path, Lambda(lambda m, x: m.c(x), c=nn.Conv2d(3, 4, 3)), (1, 3, 8, 8))
    target = {**TARGET, "runtime": {"name": "OpenVINO", "version": "2026"}}
    compiled(tmp_path, engine, target)
    with pytest.raises(TargetError, match="2025.1"):
        compiled(tmp_path, engine, {**target, "runtime": {"name": "OpenVINO", "version": "2025.1"}})


@needs_openvino
def test_a_damaged_artifact_is_an_integrity_error(tmp_path):
    engine, _ = quantized(tmp_path, Lambda(lambda m, x: m.c(x), c=nn.Conv2d(3, 4, 3)), (1, 3, 8, 8))
    folder = compiled(tmp_path, engine)
    (folder / "model.xml").write_text("<net>")
    with pytest.raises(IntegrityError, match="model.xml"):
        backend.open(folder, TARGET)


@needs_openvino
def test_the_deployed_session_has_the_targets_precision(tmp_path):
    engine, x = quantized(tmp_path, Recurrent(nn.LSTM), (1, 5, 8))
    folder = compiled(tmp_path, engine)
    target = {**TARGET, "floats": "bf16", "device": {"precision_hint": "bf16"}}
    assert backend.problems(target) == []
    exact, deployed = (open_(folder, target, threads=1)(x)["y0"] for open_ in (backend.open, backend.open_deployed))
    want = simulated(engine, x)
    assert compare(want, {"y0": exact})["y0"].sqnr_db > 90
    if "avx512_bf16" in CPU or "amx_bf16" in CPU:
        # bfloat16 keeps 8 bits of each value
        assert 20 < compare(want, {"y0": deployed})["y0"].sqnr_db < 70
        assert backend.coverage(folder, engine, target)["rnn/LSTM"] == "bf16"


# --------------------------------------------------------------------------- coverage


@needs_openvino
def test_convolutions_of_every_kind_are_measured_as_int8(tmp_path):
    engine, _ = quantized(tmp_path, Inverted3d(), (1, 3, 4, 16, 16))
    found = backend.coverage(compiled(tmp_path, engine), engine, TARGET)
    assert len(found) == 7 and set(found.values()) == {"int8"}, found  # two of them depthwise
    folder = compiled(tmp_path, engine.as_float())
    assert set(backend.coverage(folder, engine, TARGET).values()) == {"fp32"}


@needs_openvino
def test_a_planted_float_layer_is_measured_as_float(tmp_path):
    engine, _ = quantized(tmp_path, Inverted3d(), (1, 3, 4, 16, 16), skip={"a.3/Conv": "planted"})
    found = backend.coverage(compiled(tmp_path, engine), engine, TARGET)
    assert [name for name, precision in found.items() if precision == "fp32"] == ["a.3/Conv"]
    # A kit that calls the layer INT8 changes nothing: what is measured is the artifact.
    assert backend.coverage(tmp_path / "out/engines/main", EngineKit("main", engine.float_onnx, engine.qdq_onnx, int8=tuple(found)), TARGET) == found


@needs_openvino
def test_attention_is_int8_with_symmetric_numbers_only(tmp_path):
    for name, numbers, want in (("symmetric", SYMMETRIC, "int8"), ("asymmetric", NUMBERS, "fp32")):
        engine, _ = quantized(tmp_path / name, Block(), (1, 6, 12), numbers=numbers, ops=WITH_ATTENTION)
        found = backend.coverage(compiled(tmp_path / name, engine), engine, TARGET)
        attention = [node for node in found if node in ("MatMul", "MatMul_1")]
        assert {found[node] for node in attention} == {want} and len(attention) == 2, (name, found)
        assert {found[node] for node in found if node not in attention} == {"int8"} and len(found) == 8


@needs_openvino
def test_the_float_half_of_an_attention_is_measured_as_float(tmp_path):
    engine, _ = quantized(tmp_path, Block(), (1, 6, 12), numbers=SYMMETRIC, ops=WITH_ATTENTION, skip={"MatMul_1": "planted"})
    found = backend.coverage(compiled(tmp_path, engine), engine, TARGET)
    assert found["MatMul_1"] == "fp32" and found["qkv.0/MatMul"] == "int8"


@needs_openvino
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_of_two_directions_are_found(tmp_path, kind):
    engine, x = quantized(tmp_path, Recurrent(kind), (1, 5, 8))
    folder = compiled(tmp_path, engine)
    name = kind.__name__
    assert backend.coverage(folder, engine, TARGET) == {f"rnn/{name}": "fp32", f"rnn/{name}_1": "fp32", "fc/Gemm": "int8"}
    assert compare(simulated(engine, x), backend.open(folder, TARGET, threads=1)(x))["y0"].sqnr_db > 55  # float16 weights


@needs_openvino
def test_a_layer_that_cannot_be_found_is_an_error_and_no_guess(tmp_path):
    engine, _ = quantized(tmp_path, Lambda(lambda m, x: m.c(x), c=nn.Conv2d(3, 4, 3)), (1, 3, 8, 8))
    folder = compiled(tmp_path, engine)
    other = export(tmp_path, Lambda(lambda m, x: m.b(m.a(x)), a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 4, 3)), (1, 3, 8, 8), name="other")
    with pytest.raises(EdgekitError, match="a/Conv"):
        backend.coverage(folder, EngineKit("main", other, engine.qdq_onnx), TARGET)


# --------------------------------------------------------------------------- wrong numbers


@needs_openvino
def test_a_quantized_lstm_is_wrong_and_the_comparison_with_its_own_graph_says_so(tmp_path):
    engine, x = wrong_lstm.write(tmp_path)
    folder = compiled(tmp_path, engine)
    want, cost = simulated(engine, x), compare(simulated(engine.as_float(), x), simulated(engine, x))["y0"].sqnr_db
    got = compare(want, backend.open(folder, TARGET, threads=1)(x))["y0"].sqnr_db
    assert cost > 35, "as written, the graph is a fine INT8 LSTM"
    assert got < cost - 5, "OpenVINO computes something else"
    assert "int8" in backend.coverage(folder, engine, TARGET).values(), "which coverage alone would call a success"


def rows_without_bias() -> nn.Module:
    return Lambda(lambda m, x: torch.tanh(m.b(torch.relu(m.a(x)))), a=nn.Linear(24, 24, bias=False), b=nn.Linear(24, 4))


@needs_openvino
@needs_vnni
def test_two_integer_layers_on_rows_are_wrong_and_the_targets_rewrite_keeps_them_apart(tmp_path):
    engine, x = quantized(tmp_path / "rows", rows_without_bias(), (4, 24))
    off = compare(simulated(engine, x), backend.open(compiled(tmp_path / "rows", engine), TARGET, threads=1)(x))["y0"].sqnr_db
    assert off < 10, "OpenVINO computes something else; if not, `rows_to_sequence` has done its duty"
    assert "rows_to_sequence" in TARGET["rewrites"] and "rows_to_sequence" in LEGACY["rewrites"]
    engine, x = quantized(tmp_path / "sequence", rows_without_bias(), (4, 24), rewrite="rows_to_sequence")
    folder = compiled(tmp_path / "sequence", engine)
    assert compare(simulated(engine, x), backend.open(folder, TARGET, threads=1)(x))["y0"].sqnr_db > 60
    assert set(backend.coverage(folder, engine, TARGET).values()) == {"int8"}


@needs_openvino
@pytest.mark.parametrize("target", [TARGET, LEGACY])
@pytest.mark.parametrize("columns", [1, 4])  # a weight of one column is turned at once, others by a node of their own
def test_a_layer_that_lost_its_name_is_found_by_its_weight(tmp_path, target, columns):
    """Without a bias, the plug-in calls what is left of it `Multiply_123`."""
    module = Lambda(lambda m, x: m.b(torch.relu(m.a(x))).flatten(1).unsqueeze(-1), a=nn.Linear(24, 16), b=nn.Linear(16, columns, bias=False))
    engine, _ = quantized(tmp_path, module, (1, 4, 24), numbers=Numbers.from_target(target["numbers"]))
    assert backend.coverage(compiled(tmp_path, engine, target), engine, target) == {"a/MatMul": "int8", "b/MatMul": "int8"}


@needs_openvino
@needs_vnni
def test_a_shuffle_network_stays_on_integers_between_its_layers(tmp_path):
    """Without shuffles; what is split and joined is in 8 bits, at once and not converted before."""
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    stage = nn.Sequential(ShuffleUnit(8, 16, 2), *(ShuffleUnit(16, 16, 1) for _ in range(3)), nn.Conv2d(16, 5, 1))
    net = Lambda(lambda m, x: m.stage(m.stem(x)), stem=stem, stage=stage)
    engine, x = quantized(tmp_path, net, (1, 3, 16, 16), rewrite=tuple(TARGET["rewrites"]))
    folder = compiled(tmp_path, engine)
    assert compare(simulated(engine, x), backend.open(folder, TARGET, 1)(x), "the artifact")["y0"].sqnr_db > 35
    ran = [op.get_rt_info() for op in backend._compiled(folder / backend.MODEL, backend.configuration("f32", 1))[1].get_runtime_model().get_ordered_ops()]
    types = [(info["layerType"].astype(str), info["outputPrecisions"].astype(str)) for info in ran]
    assert not {"ShuffleChannels", "Gather", "Transpose"} & {kind for kind, _ in types}
    moved = [precision for kind, precision in types if kind in ("Concatenation", "Split", "Pooling")]
    assert len(moved) >= 8 and {one for entry in moved for one in entry.split(",")} == {"u8"}


def saturating(folder: Path, divisor: int) -> Path:
    """A convolution whose weights and inputs are all at their largest."""
    conv = nn.Conv2d(32, 8, 1, bias=False)
    nn.init.constant_(conv.weight, 1.0)
    numbers = Numbers(dtype="uint8", symmetric=False, weight_divisor=divisor)
    path = export(folder, Lambda(lambda m, x: m.c(x), c=conv), (1, 32, 4, 4), name="float")
    model = graph.load(path)
    chosen = qdq.precisions(model, TARGET["ops"])
    graph.save(qdq.insert_qdq(model, chosen, {"x0": Range(0.0, 1.0)}, numbers), folder / "qdq.onnx")
    return compiled(folder, EngineKit("main", path, folder / "qdq.onnx"))


@needs_openvino
@needs_vnni
def test_without_vnni_sums_saturate_and_seven_bit_weights_do_not(tmp_path):
    x = {"x0": np.ones((1, 32, 4, 4), np.float32)}
    eight, seven = saturating(tmp_path / "8", 127), saturating(tmp_path / "7", 63)
    off = backend.saturation(eight, [x])["y0"]
    assert off.max_abs > 10  # of 32
    assert backend.saturation(seven, [x])["y0"].max_abs < 1e-4
    # The legacy target runs its artifact so, and nowhere else.
    np.testing.assert_allclose(backend.open(eight, TARGET)(x)["y0"], 32, rtol=1e-5)
    np.testing.assert_allclose(backend.open(eight, LEGACY)(x)["y0"], 32 - off.max_abs, rtol=1e-4)
    engine = EngineKit("main", tmp_path / "7/float.onnx", tmp_path / "7/qdq.onnx")
    assert backend.coverage(seven, engine, LEGACY) == {"c/Conv": "int8"}


@needs_openvino
def test_an_error_in_the_other_process_arrives_here(tmp_path):
    (tmp_path / "model.xml").write_text("<net>")
    with pytest.raises(IntegrityError, match="model.xml"):
        backend.open(tmp_path, LEGACY)
    worker = isolated._Worker("AVX512_CORE")
    worker._process.kill()
    with pytest.raises(EdgekitError, match="exit code -9"):
        worker.ask("open", "nothing", {})


# --------------------------------------------------------------------------- the table

F = onnx.TensorProto.FLOAT
SHAPES = {"Gemm": (4, 6), "LSTM": (5, 1, 6), "GRU": (5, 1, 6), "Squeeze": (1, 1, 4, 6), "Expand": (1, 1, 4, 6)}
BINARY = ("Add", "Sub", "Mul", "Div", "Max", "Min")


def arguments(op: str, rng) -> tuple[list[np.ndarray], dict]:
    """Constant inputs behind the first one, and attributes, of a form of `op` that our graphs may hold."""

    def f(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    def i(*values):
        return np.array(values, np.int64)

    table = {
        "Conv": ([f(5, 4, 3, 3), f(5)], {}),
        "ConvTranspose": ([f(4, 5, 3, 3), f(5)], {}),
        "MatMul": ([f(6, 3)], {}),
        "Gemm": ([f(3, 6), f(3)], {"transB": 1}),
        "LSTM": ([f(1, 28, 6), f(1, 28, 7), f(1, 56)], {"hidden_size": 7}),
        "GRU": ([f(1, 21, 6), f(1, 21, 7), f(1, 42)], {"hidden_size": 7, "linear_before_reset": 1}),
        "Clip": ([np.float32(0), np.float32(6)], {}),
        "Pow": ([np.float32(2)], {}),
        "PRelu": ([f(4, 1, 1)], {}),
        "LayerNormalization": ([f(6), f(6)], {"axis": -1}),
        "InstanceNormalization": ([f(4), f(4)], {}),
        "BatchNormalization": ([f(4), f(4), f(4), np.abs(f(4)) + 1], {}),
        "ReduceMean": ([], {"axes": [-1]}),
        "ReduceSum": ([i(-1)], {}),
        "ReduceMax": ([], {"axes": [-1]}),
        "AveragePool": ([], {"kernel_shape": [2, 2]}),
        "MaxPool": ([], {"kernel_shape": [2, 2]}),
        "Reshape": ([i(0, -1)], {}),
        "Transpose": ([], {"perm": [0, 2, 3, 1]}),
        "Squeeze": ([i(1)], {}),
        "Unsqueeze": ([i(0)], {}),
        "Concat": ([f(1, 4, 6, 6)], {"axis": 1}),
        "Split": ([i(3, 3)], {"axis": -1}),
        "Slice": ([i(1), i(5), i(-1), i(2)], {}),
        "Gather": ([i(2, 0)], {"axis": -1}),
        "Expand": ([i(1, 3, 4, 6)], {}),
        "Pad": ([i(0, 0, 1, 1, 0, 0, 1, 2)], {}),
        "Cast": ([], {"to": F}),
    }
    return table.get(op, ([f(1, 4, 6, 6)] if op in BINARY else [], {}))


@needs_openvino
@pytest.mark.parametrize("op", [op for op in TARGET["ops"] if "." not in op])
def test_every_op_of_the_table_is_read_and_computed(tmp_path, op):
    rng = np.random.default_rng(0)
    x = {"x": rng.standard_normal(SHAPES.get(op, (1, 4, 6, 6))).astype(np.float32)}
    if op in ("Log", "Sqrt"):
        x["x"] = np.abs(x["x"])
    constants, attributes = arguments(op, rng)
    names = [f"c{n}" for n in range(len(constants))]
    outputs = ["y", "z"] if op == "Split" else ["y"]
    inputs = ["x", *names]
    if op == "Where":
        inputs, names, constants = ["c0", "x", "c1"], ["c0", "c1"], [np.array([True, False] * 3), np.float32(0)]
    node = onnx.helper.make_node(op, inputs, outputs, **attributes)
    made = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x", F, x["x"].shape)],
        [onnx.helper.make_empty_tensor_value_info(name) for name in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in zip(names, constants, strict=True)],
    )
    model = onnx.shape_inference.infer_shapes(onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8))
    onnx.save(model, tmp_path / "m.onnx")
    engine = EngineKit("main", tmp_path / "m.onnx", tmp_path / "m.onnx")
    got = backend.open(compiled(tmp_path, engine), TARGET, threads=1)(x)
    for name, difference in compare(simulated(engine, x), got).items():
        assert difference.within(1e-4), (op, name)


def test_where_a_product_of_two_activations_comes_from_is_asked_of_a_deep_network_too(tmp_path):
    """As deep as 18 blocks of attention are; every joint has two ways back, so asking each way again would never end."""
    import onnx
    from onnx import TensorProto, helper

    from edgekit.backends.openvino import layers, runtime

    nodes, name = [], "x"
    for i in range(1500):
        nodes.append(helper.make_node("Add", [name, name], [f"y{i}"]))
        name = f"y{i}"
    nodes.append(helper.make_node("MatMul", [name, name], ["y"], name="product"))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "deep", [value("x", TensorProto.FLOAT, [1, 4, 4])], [value("y", TensorProto.FLOAT, [1, 4, 4])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "deep.onnx")
    model = runtime().Core().read_model(tmp_path / "deep.onnx")
    product = next(op for op in model.get_ops() if op.get_type_name() == "MatMul")
    assert not any(layers._is_constant(port) for port in product.input_values())

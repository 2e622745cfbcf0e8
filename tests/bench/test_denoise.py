"""The speed benchmark of DCCRN compares equal things: every graph is the network, states come back where they belong, and ratios are what they say."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit import native, native_format
from edgekit.bench import denoise, denoise_page, denoise_turns
from edgekit.bench import denoise_engines as engines
from edgekit.bench import denoise_graphs as graphs
from edgekit.bench.denoise_turns import Candidate, Group
from edgekit.bench.svg import decades
from edgekit.errors import EdgekitError, IntegrityError, TargetError, ToolMissing, UsageError
from edgekit.models import dccrn

ROOT = Path(__file__).parents[2]
TINY = dccrn.CONFIGS["tiny"]
SECOND = TINY.stft.frames(TINY.sample_rate_hz)
needs_engine = pytest.mark.skipif(not native.available(), reason="edgekit-native is not installed: pip install ./native")


def random_network(cfg=TINY, seed=0):
    """Seeded weights with batch norms, biases and slopes that matter."""
    torch.manual_seed(seed)
    module = dccrn.build(cfg)
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
            torch.nn.init.normal_(part.bias, std=0.3)
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 2)
        if isinstance(part, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            torch.nn.init.normal_(part.bias, std=0.1)
    return module.eval()


def spectrum(frames, seed=0, bins=TINY.stft.bins):
    return np.random.default_rng(seed).standard_normal((2, bins, frames)).astype(np.float32)


def mask_of(module, x):
    with torch.inference_mode():
        return module.mask(torch.from_numpy(x)[None])[0].numpy()


def masks(engine, plan, x):
    """[2, bins, t] of a whole spectrum through an engine, call by call."""
    parts = [engine(part).copy() for part in engines.calls(x, plan)]
    return np.concatenate([part.reshape(*x.shape[:2], -1) for part in parts], axis=2)


def decibels(want, got):
    return 10 * np.log10(np.square(want).sum() / np.square(want - got).sum())


@pytest.fixture(scope="module")
def net():
    return random_network()


def _prepare(net, work, effort):
    """Everything that a measurement reads, of a tiny network, and its groups."""
    int8 = None
    if native.available():
        from tests.native.reference_engine import quantized

        sizes = {"n_fft": TINY.n_fft, "win_length": TINY.win_length, "hop_length": TINY.hop_length}
        model = native_format.from_state({key: value.numpy() for key, value in net.state_dict().items()}, **sizes)
        int8 = native_format.write(quantized(model, spectrum(64, 3)), work / "int8.ekd")
    return work, denoise.prepare(net, TINY, int8, [spectrum(SECOND, 1)], spectrum(SECOND + 20, 9), work, effort), effort


@pytest.fixture(scope="module")
def prepared(net, tmp_path_factory):
    """Without OpenVINO and NNCF, as where they are not installed, and without chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoise, "find_spec", lambda name: None)
        return _prepare(net, tmp_path_factory.mktemp("work"), dataclasses.replace(denoise_turns.QUICK, chunks=()))


# --------------------------------------------------------------------------- graphs


@pytest.mark.parametrize("form", graphs.FORMS)
@pytest.mark.parametrize(("name", "rnn"), [("tiny", "lstm"), ("tiny_causal", "lstm"), ("tiny", "gru")])
def test_every_form_is_the_network_frame_by_frame_in_chunks_and_whole(form, name, rnn):
    cfg = dataclasses.replace(dccrn.CONFIGS[name], rnn=rnn)
    module, x = random_network(cfg), spectrum(12)
    net, want = graphs.network(module, cfg.stft.bins), mask_of(module, x)
    assert net.late == cfg.delay
    for graph in (graphs.step(net, form), graphs.chunk(net, form, 2), graphs.chunk(net, form, 4)):
        got = masks(engines.TorchEngine(graph), engines.Plan.of(graph), x)[:, :, net.late :]
        assert np.abs(got - want[:, :, : 12 - net.late]).max() <= 1e-5
    with torch.inference_mode():
        assert np.abs(graphs.clip(net, form, 12).module(torch.from_numpy(x)[None])[0][0].numpy() - want).max() <= 1e-5


@pytest.mark.parametrize("form", graphs.FORMS)
def test_a_decoder_narrower_than_the_encoder_is_still_the_network(form):
    module, x = random_network(), spectrum(10)
    module.decoder[0] = torch.nn.Sequential(dccrn.ComplexConvTranspose2d(16, 5), torch.nn.BatchNorm2d(10), torch.nn.PReLU()).eval()
    module.decoder[1][0] = dccrn.ComplexConvTranspose2d(5 + 8, 4)
    net = graphs.network(module, TINY.stft.bins)
    assert [layer.own for layer in net.decoder] == [8, 5, 4]
    graph = graphs.step(net, form)
    got = masks(engines.TorchEngine(graph), engines.Plan.of(graph), x)[:, :, net.late :]
    assert np.abs(got - mask_of(module, x)[:, :, : 10 - net.late]).max() <= 1e-5


def test_multiplications_are_counted_as_the_published_network_has_them():
    net = graphs.network(dccrn.build(dccrn.CONFIGS["default"]), 256)
    assert net.macs == 53_329_920 and net.late == 6


def test_a_bidirectional_network_has_no_step():
    module = dccrn.build(dataclasses.replace(TINY, rnn="gru", is_bidirectional=True))
    with pytest.raises(UsageError, match="bidirectional"):
        graphs.network(module, TINY.stft.bins)


def test_no_two_recurrent_nets_of_a_graph_read_one_tensor(net, tmp_path):
    """OpenVINO 2026.4 computes one of them wrongly, for batch 2 and several frames."""
    import onnx

    for form in graphs.FORMS[1:]:
        path = engines.export(graphs.chunk(graphs.network(net, 64), form, 4), tmp_path / "chunk.onnx")
        read = [node.input[0] for node in onnx.load(str(path)).graph.node if node.op_type == "LSTM"]
        assert len(read) == 4 and len(set(read)) == 4


# --------------------------------------------------------------------------- engines


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("form", graphs.FORMS)
def test_frameworks_give_what_torch_gives_with_their_states_bound_in_place(kind, form, net, tmp_path):
    if kind == "openvino":
        pytest.importorskip("openvino")
    network, x = graphs.network(net, 64), spectrum(24)
    want = mask_of(net, x)
    for graph in (graphs.step(network, form), graphs.chunk(network, form, 4)):
        path = engines.export(graph, tmp_path / "graph.onnx")
        engine = engines.OnnxRuntimeEngine(path, 1) if kind == "onnxruntime" else engines.OpenVinoEngine(path, 1, "f32")
        for _ in range(2):  # a reset brings back the first frame's states
            got = masks(engine, engines.Plan.read(path), x)[:, :, network.late :]
            assert np.abs(got - want[:, :, : 24 - network.late]).max() <= 1e-4
            engine.reset()


def test_buffers_hold_what_was_so_many_calls_ago():
    plan = engines.Plan({"x": (1, 2, 4), "a": (1, 2, 4), "b": (1, 1, 3)}, ("mask", "s"), {"a": ("x", 1), "b": ("s", 3)})
    rings = engines.Rings(plan)
    assert rings.period == 4 and [len(rings.buffers[name]) for name in ("x", "mask", "s")] == [2, 1, 4]
    for t in range(9):
        inputs, outputs = rings.bound(t)
        assert list(inputs) == ["x", "a", "b"] and list(outputs) == ["mask", "s"]
        assert inputs["b"] is rings.bound(t - 3)[1]["s"] and inputs["a"] is rings.bound(t - 1)[0]["x"]
        assert all(inputs["b"] is not array for array in outputs.values())
        assert all(array.ctypes.data % 64 == 0 for array in inputs.values())


def test_a_graph_that_computes_nothing_has_the_same_ports(net, tmp_path):
    path = engines.export(graphs.step(graphs.network(net, 64), "subpixel"), tmp_path / "step.onnx")
    nothing = engines.identity(engines.Plan.read(path), tmp_path / "nothing.onnx")
    assert engines.Plan.read(nothing) == engines.Plan.read(path)
    engine, x = engines.OnnxRuntimeEngine(nothing, 1), spectrum(3)
    assert (masks(engine, engines.Plan.read(nothing), x) == x).all()


def test_quantizers_are_given_the_states_that_the_graph_really_has(net):
    graph, x = graphs.step(graphs.network(net, 64), "folded"), spectrum(6)
    feeds = engines.recorded(graph, [x, x], limit=4)  # every third of twelve calls
    assert [set(feed) == set(graph.inputs) for feed in feeds] == [True] * 4
    assert not feeds[0]["h0R"].any() and feeds[1]["h0R"].any() and not feeds[2]["h0R"].any(), "the second clip starts from silence"
    assert (feeds[1]["before_e0"][0] == x[:, :, 2]).all() and (feeds[1]["x"][0] == x[:, :, 3]).all()


# --------------------------------------------------------------------------- measuring


@pytest.mark.slow
def test_every_group_runs_and_every_engine_is_the_network(net, tmp_path):
    pytest.importorskip("nncf")
    work, groups, effort = _prepare(net, tmp_path, denoise_turns.QUICK)
    least = {"fp32": 100, "bf16": 30, "int8": 15}  # dB; bf16 keeps 8 bits
    for group in groups:
        found = denoise_turns.take_turns(group, work, 1, effort)
        assert not found["failed"], found
        assert [row["engine"] for row in found["engines"]] == [one.engine for one in group.candidates]
        for row in found["engines"]:
            assert 0 < row["p10_us"] <= row["median_us"] <= row["p99_us"]
            if row["sqnr_db"] is not None:
                assert row["sqnr_db"] > least[row["precision"]], row
            else:
                assert group.mode in ("overhead", "clip", "live")
    assert {group.mode for group in groups} == {"step", "chunk", "clip", "live", "overhead"}


@pytest.mark.slow
def test_a_run_gives_rows_with_the_fields_that_scripts_rely_on(prepared, tmp_path, monkeypatch):
    work, groups, effort = prepared
    monkeypatch.setattr(denoise, "roofline", lambda threads: {"fp32": 1e11 * threads})
    few = [group for group in groups if group.name in ("fp32, ONNX Runtime", "overhead")]
    result = denoise.measure(few, work, (1,), 2, effort, tmp_path / "speed.json", {"model": "tiny"})
    assert json.loads((tmp_path / "speed.json").read_text()) == result
    assert {"engine", "precision", "threads", "median_us", "p10_us", "p99_us", "roofline_share"} <= set(result["rows"][0])
    assert {row["engine"] for row in result["rows"]} >= {f"ONNX Runtime, {title}" for title in ("folded", "sub-pixel", "three products")}
    assert all(row["runs"] == 2 and (row["roofline_share"] is None or row["roofline_share"] > 0) for row in result["rows"])
    assert result["overhead"][0]["engine"] == "ONNX Runtime, nothing" and all(row["resident_mb"] > 0 for row in result["memory"])


@needs_engine
def test_ours_takes_turns_with_a_framework(prepared):
    work, groups, effort = prepared
    [group] = [group for group in groups if group.name == "fp32, ONNX Runtime"]
    rows = denoise_turns.take_turns(group, work, 1, effort)["engines"]
    ours = {row["precision"]: row["sqnr_db"] for row in rows if row["engine"].startswith("edgekit")}
    assert ours["fp32"] > 110 and ours["int8"] > 15
    assert all(row["sqnr_db"] is None for row in denoise_turns.take_turns(group, work, 1, effort, first=1)["engines"]), "parity is taken once"


@needs_engine
def test_a_live_stream_is_ours_on_hops_and_its_row_is_the_quietest_window(prepared, monkeypatch):
    work, groups, effort = prepared
    [group] = [group for group in groups if group.mode == "live"]
    assert {one.kind for one in group.candidates} == {"native_live"} and {one.precision for one in group.candidates} == {"fp32", "bf16", "int8"}
    group = dataclasses.replace(group, candidates=[one for one in group.candidates if one.precision == "int8"][:1])
    windows = iter([[1e-4] * 98 + [9e-4] * 2, [2e-4] * 98 + [3e-4] * 2, [1e-4] * 98 + [4e-4] * 2])
    asked = []

    def turn(engine, feeds, frames, warm, timed):
        heard = np.concatenate([engine(part).copy() for fed in feeds for part in fed])
        assert len(feeds) > 100 and len(heard) == len(feeds) * TINY.hop_length and np.abs(heard).max() > 0
        asked.append(timed)
        return next(windows)

    monkeypatch.setattr(denoise_turns, "_turn", turn)
    [row] = denoise_turns.take_turns(group, work, 1, dataclasses.replace(effort, windows=3, window=100))["engines"]
    assert asked == [100] * 3 and row["sqnr_db"] is None
    assert (row["median_us"], row["p99_us"]) == (pytest.approx(200), pytest.approx(300)), "1.5 times the median; the others' are 9 and 4"


def test_live_streams_are_measured_in_the_first_run_only(prepared, monkeypatch):
    work, _, effort = prepared
    group = Group("live", "live", 1, (Candidate("edgekit", "int8", "native_live", "file"),), runs=1)
    monkeypatch.setattr(denoise, "roofline", lambda threads: {})
    monkeypatch.setattr(denoise, "_child", lambda work, job: {"engines": [], "failed": []})
    assert [len(denoise._one_run([group], work, (1, 2), effort, number)) for number in (0, 1)] == [2, 0]


def test_a_second_cut_from_a_clip_is_compared_where_it_is_the_clip(prepared):
    work, groups, effort = prepared
    [group] = [group for group in groups if group.name == "1 s, fp32, ONNX Runtime"]
    for row in denoise_turns.take_turns(group, work, 1, effort)["engines"]:
        assert row["sqnr_db"] is None if row["engine"].startswith("edgekit") else row["sqnr_db"] > 100


def test_an_engine_that_cannot_run_here_is_named_and_the_others_go_on(prepared, monkeypatch):
    work, groups, effort = prepared
    [group] = [group for group in groups if group.name == "fp32, ONNX Runtime"]
    first, *others = [one for one in group.candidates if one.kind == "onnxruntime"]

    def refuse(candidate, *rest, open_engine=denoise_turns.open_engine):
        if candidate is first:
            raise TargetError("this CPU lacks it")
        return open_engine(candidate, *rest)

    monkeypatch.setattr(denoise_turns, "open_engine", refuse)
    found = denoise_turns.take_turns(dataclasses.replace(group, candidates=(first, *others)), work, 1, effort)
    assert found["failed"] == [{"engine": first.engine, "precision": "fp32", "reason": "this CPU lacks it"}]
    assert [row["engine"] for row in found["engines"]] == [one.engine for one in others]


def test_clips_shorter_than_a_second_are_refused(net, tmp_path):
    with pytest.raises(UsageError, match="shorter than the second"):
        denoise.prepare(net, TINY, None, [spectrum(SECOND - 1)], spectrum(SECOND), tmp_path, denoise_turns.QUICK)


def test_an_artifact_without_a_weight_file_is_refused(tmp_path):
    (tmp_path / "float/engines/denoiser").mkdir(parents=True)
    (tmp_path / "float/engines/denoiser/model.ekd").write_bytes(b"not quantized")
    with pytest.raises(IntegrityError, match="0 weight files"):
        denoise._weight_file(tmp_path)
    (tmp_path / "engines/denoiser").mkdir(parents=True)
    (tmp_path / "engines/denoiser/model.ekd").write_bytes(b"quantized")
    assert denoise._weight_file(tmp_path) == tmp_path / "engines/denoiser/model.ekd"


def test_a_recipe_of_another_backend_is_refused():
    from edgekit.recipe import load_recipe

    with pytest.raises(TargetError, match="`x86_openvino` is not for the native engine"):
        denoise.run(load_recipe(ROOT / "recipes/mhlt_openvino.yaml"))


def test_a_recipe_that_was_not_built_is_refused(tmp_path):
    from edgekit.recipe import load_recipe

    (tmp_path / "weights").write_bytes(b"any")
    with pytest.raises(UsageError, match="is not built"):
        denoise.run(load_recipe(ROOT / "recipes/dccrn_native.yaml", [f"load.checkpoint={tmp_path / 'weights'}"], tmp_path / "cache"))


@needs_engine
def test_the_roofline_is_probed():
    try:
        peaks = denoise.roofline(1)
    except ToolMissing as missing:
        pytest.skip(missing.message)
    assert peaks["fp32"] > 1e9 and peaks["int8"] > peaks["fp32"]


# --------------------------------------------------------------------------- figures


def process(engines_us, mode="step", frames=1, threads=1, peaks=None):
    """One process of a run: {(engine, precision): us}, p10 a tenth less."""
    rows = [{"engine": name, "precision": precision, "median_us": us, "p10_us": 0.9 * us, "p99_us": 1.5 * us, "sqnr_db": 120.0} for (name, precision), us in engines_us.items()]
    return {"mode": mode, "frames": frames, "threads": threads, "peaks": peaks or {"fp32": 1e11}, "engines": rows, "failed": []}


OURS, GAUSS, INT8 = ("edgekit, four products", "fp32"), ("edgekit, three products", "fp32"), ("edgekit", "int8")
ORT, OV, EAGER = ("ONNX Runtime, folded", "fp32"), ("OpenVINO, sub-pixel", "fp32"), ("torch eager, folded", "fp32")
RUNS = [
    [process({OURS: 100, GAUSS: 90, INT8: 30, ORT: 360}), process({OURS: 200, GAUSS: 180, INT8: 60, OV: 540}), process({INT8: 30, EAGER: 3000})],
    [process({OURS: 100, GAUSS: 110, INT8: 25, ORT: 300}), process({OURS: 100, GAUSS: 100, INT8: 25, OV: 450}), process({INT8: 30, EAGER: 2400})],
    [process({OURS: 100, GAUSS: 100, INT8: 20, ORT: 500}), process({OURS: 100, GAUSS: 100, INT8: 20, OV: 400}), process({INT8: 30, EAGER: 2700})],
]


def test_a_ratio_is_within_a_process_against_the_best_of_its_run():
    found = {(row["what"], row["precision"]): row for row in denoise.ratios(RUNS)}
    best = found["best framework", "fp32"]  # OpenVINO 540/180, ONNX Runtime 300/100, OpenVINO 400/100
    assert (best["ratio"], best["low"], best["high"], best["best"]) == (3.0, 3.0, 4.0, "OpenVINO, sub-pixel")
    assert best["p10"] == pytest.approx(3.0)
    four = found["best framework, ours with four products", "fp32"]
    assert (four["low"], four["high"]) == (540 / 200, 4.0)
    assert found["best framework in fp32", "int8"]["ratio"] == 12.0  # 540/60, 300/25, 400/20
    assert found["torch eager", "int8"]["ratio"] == 90.0
    assert ("best framework", "int8") not in found, "nothing was measured in INT8 but ours"


def test_a_row_is_the_median_over_runs_and_its_share_of_that_runs_roofline():
    rows = {row["engine"]: row for row in denoise.collect(RUNS, macs=5_000_000)["rows"] if row["precision"] == "fp32"}
    ours = rows["edgekit, four products"]  # medians of the processes of each run: 150, 100, 100
    assert ours["median_us"] == 100 and ours["p10_us"] == pytest.approx(90) and ours["runs"] == 3
    assert ours["roofline_share"] == pytest.approx(0.5)  # 5e6 / 100e-6 of 1e11
    assert rows["ONNX Runtime, folded"]["roofline_share"] == pytest.approx(5e6 / 360e-6 / 1e11)
    shares = denoise.collect([[process({("edgekit", "bf16"): 50})]], macs=1)["rows"]
    assert shares[0]["roofline_share"] is None, "the probe has no such instruction"


def result():
    runs = [[*run, process({OURS: 80, ORT: 100}, "chunk", 8), process({OURS: 80, ORT: 60}, "clip", 163), process({("ONNX Runtime, nothing", "fp32"): 20}, "overhead")] for run in RUNS]
    runs[0].append(process({INT8: 125}, "live"))
    about = {"macs_per_frame": 5_000_000, "hop_us": 6250.0, "windows": 5, "frames_a_window": 2000, "cpu": "a CPU", "cores": 2, "versions": {"torch": "2"}, "date": "2026-11-21", "runs": 3, "rounds": 1, "frames_a_turn": 2, "load_before": 0.1}
    memory = [{"engine": "ONNX Runtime, folded", "precision": "fp32", "resident_mb": 12.0, "library_mb": 18.0}, {"engine": "edgekit", "precision": "int8", "resident_mb": 9.0, "library_mb": 0.2}]
    return {"about": about, **denoise.collect(runs, 5_000_000), "memory": memory}


def test_the_tables_say_what_was_measured():
    text = denoise_page.tables(result())
    assert "| fp32 | best framework | 3.00 [3.00 to 4.00] (3.00) |" in text
    assert "| edgekit, four products | fp32 | 100 (90) | 50% | 120.0 |" in text
    assert "| fp32 | best framework | 1.25 [1.25 to 1.25] (1.25) | 0.75 [0.75 to 0.75] (0.75) |" in text, "where the frameworks are ahead it says so"
    assert "| edgekit | int8 | 125 (188, 1.50×) | 0.0200 |" in text and "6.25 ms" in text
    assert "| engine | precision | 1 | 8 | 1 s clip | SNR, dB |" in text and "| ONNX Runtime | 20 (18) |" in text and "| edgekit | int8 | 9.0 | 0.2 |" in text


def test_the_page_gets_the_tables_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{denoise_page.BEGIN}\nlast week\n{denoise_page.END}\n\nafter\n")
    denoise_page.embed(result(), page)
    once = page.read_text()
    assert once.startswith("before\n") and once.endswith("\nafter\n") and denoise_page.tables(result()) in once and "last week" not in once
    denoise_page.embed(result(), page)
    assert page.read_text() == once
    page.write_text("no marks")
    with pytest.raises(EdgekitError, match="no `<!-- measured: begin -->`"):
        denoise_page.embed(result(), page)


def test_the_pages_tables_are_those_of_the_numbers_beside_it():
    text, numbers = (ROOT / "docs/performance.md").read_text(), ROOT / "docs/figures/dccrn_speed.json"
    between = text.partition(denoise_page.BEGIN)[2].partition(denoise_page.END)[0].strip()
    want = f"{denoise_page.tables(json.loads(numbers.read_text()))}\n{denoise_page.FIGURE}" if numbers.is_file() else "Not measured yet."
    assert between == want


def test_publishing_leaves_page_figure_and_numbers_together(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "performance.md").write_text(f"{denoise_page.BEGIN}\n{denoise_page.END}\n")
    denoise.publish(result(), tmp_path)
    assert json.loads((tmp_path / "figures/dccrn_speed.json").read_text())["rows"] == result()["rows"]
    [link] = [line for line in (tmp_path / "performance.md").read_text().splitlines() if line.startswith("![")]
    assert (tmp_path / link.partition("](")[2].rstrip(")")).is_file()


def test_the_figure_has_a_dot_an_engine_its_roofline_and_a_line_a_kind(tmp_path):
    denoise_page.plot(result(), tmp_path / "speed.svg")
    root = ET.parse(tmp_path / "speed.svg").getroot()
    first, second = root.findall("{*}g")
    dots = {circle.find("{*}title").text: float(circle.get("cx")) for circle in first.findall("{*}circle")}
    assert set(dots) == {"edgekit int8: 25", "edgekit fp32: 100", "ONNX Runtime fp32: 360", "OpenVINO fp32: 450", "torch eager fp32: 2700"}
    assert dots["edgekit int8: 25"] < dots["edgekit fp32: 100"] < dots["ONNX Runtime fp32: 360"]
    assert len([line for line in first.findall("{*}line") if line.get("stroke") == "#222"]) == 4, "one roofline each, but none for int8"
    assert len(second.findall("{*}polyline")) == 3


def test_decades_cover_the_data():
    assert decades(99, 2700) == [50, 100, 200, 500, 1000, 2000, 5000]
    assert decades(100, 100) == [100]


def test_a_group_survives_its_journey_to_a_process_as_json():
    group = Group("g", "step", 1, (Candidate("e", "fp32", "torch", "file", "folded", {"compiled": True}),), 1)
    told = json.loads(json.dumps(dataclasses.asdict(group)))
    assert Group(**{**told, "candidates": tuple(Candidate(**one) for one in told["candidates"])}) == group

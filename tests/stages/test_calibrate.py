"""One streamed pass: histograms of every step of every clip, in memory that does not grow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgekit import graph
from edgekit.backends import onnxruntime
from edgekit.calibration import Statistics, batches, observe
from edgekit.errors import DataError, IntegrityError
from edgekit.flow import run_flow
from edgekit.formats import read_json
from edgekit.stages import calibrate
from tests.stages.toy_model import FRAMES, Noise, flow, preprocess_spec, prune_dir, run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("calibrate")
    prune_dir(root)
    run(calibrate, root, {"clips": 5}, ("prune",), {"data": Noise(5)})
    return root


def test_it_leaves_a_canonical_graph_and_statistics(root):
    files = {str(p.relative_to(root / "calibrate")) for p in (root / "calibrate").rglob("*") if p.is_file()}
    assert files == {"engines/encoder/float.onnx", "engines/cell/float.onnx", "export.json", "stats.json", "stats.npz"}


def test_histograms_hold_every_value_of_every_step(root):
    statistics = Statistics.open(root / "calibrate")
    assert statistics.clips == 5
    assert statistics.find("encoder", "wave").n == 5 * 400
    assert statistics.find("encoder", "features").n == 5 * FRAMES * 8
    assert statistics.find("cell", "h_in").n == 5 * FRAMES * 8  # once per step, not once per clip


def test_histograms_equal_brute_force(root):
    names = ["c1/Conv_out", "wave", "features"]
    path = root / "calibrate/engines/encoder/float.onnx"
    also = onnxruntime.simulate(path, also=names[:1])
    seen = {name: [] for name in names}

    def tap(engine, feeds, outputs):
        if engine == "encoder":
            for name in names:
                seen[name].append(({**feeds, **outputs})[name].ravel())

    sessions = {"encoder": also, "cell": onnxruntime.simulate(root / "calibrate/engines/cell/float.onnx")}
    for _, inputs in batches(Noise(5), preprocess_spec(None)):
        run_flow(flow(None), sessions, inputs, tap)
    statistics = Statistics.open(root / "calibrate")
    for name in names:
        values, h = np.concatenate(seen[name]), statistics.find("encoder", name)
        edges = (np.arange(len(h.counts) + 1) - len(h.counts) // 2) * h.width
        assert (h.counts == np.histogram(values, edges)[0]).all()
        assert (h.low, h.high) == (values.min(), values.max())


def test_a_state_starts_at_its_init_and_is_then_fed_back(root):
    h_in, h_out = (Statistics.open(root / "calibrate").find("cell", name) for name in ("h_in", "h_out"))
    assert h_in.low <= 0.5 <= h_in.high
    assert h_in.high <= max(h_out.high, 0.5) and h_in.low >= min(h_out.low, 0.5)


def test_what_an_int8_layer_reads_or_writes_is_known(root):
    statistics = Statistics.open(root / "calibrate")
    for engine in ("encoder", "cell"):
        for node in graph.load(root / f"calibrate/engines/{engine}/float.onnx").graph:
            if node.op_type in graph.MAC_OPS:
                assert statistics.find(engine, node.inputs[0].name) is not None
                assert statistics.find(engine, node.outputs[0].name) is not None


def test_the_same_clips_give_the_same_bytes(root, tmp_path):
    prune_dir(tmp_path)
    again = run(calibrate, tmp_path, {"clips": 5}, ("prune",), {"data": Noise(5)})
    for path in (root / "calibrate").rglob("*.*"):
        assert (again / path.relative_to(root / "calibrate")).read_bytes() == path.read_bytes()


def test_nan_in_a_clip_is_refused_with_clip_engine_and_tensor(root):
    sessions = {e: onnxruntime.simulate(root / f"calibrate/engines/{e}/float.onnx") for e in ("encoder", "cell")}
    clips = [("good", {"wave": np.ones(400, np.float32)}), ("bad", {"wave": np.full(400, np.nan, np.float32)})]
    with pytest.raises(DataError, match="clip bad: engine `encoder`, tensor `wave`"):
        observe(flow(None), sessions, {"encoder": ["wave"]}, clips)


def test_no_clips_is_an_error(root):
    with pytest.raises(DataError, match="no clips"):
        observe(flow(None), {}, {}, [])


def test_statistics_of_other_bins_are_refused(root, tmp_path):
    doc = read_json(root / "calibrate/stats.json")
    (tmp_path / "stats.json").write_text(json.dumps({**doc, "bins_per_side": 3}))
    np.savez(tmp_path / "stats.npz", counts=np.zeros((1, 6), np.int64))
    with pytest.raises(IntegrityError):
        Statistics.open(tmp_path)


PEAK = """
import resource, sys
from pathlib import Path
from edgekit.stages import calibrate
from tests.stages.toy_model import Noise, prune_dir, run
root, n = Path(sys.argv[1]), int(sys.argv[2])
prune_dir(root)
run(calibrate, root, {"clips": n}, ("prune",), {"data": Noise(n)})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # KiB
"""


def test_peak_memory_of_512_clips_is_that_of_32(tmp_path):
    def peak_mib(n: int) -> float:
        command = [sys.executable, "-c", PEAK, str(tmp_path / str(n)), str(n)]
        done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True, env={"PYTHONPATH": ".", "OMP_NUM_THREADS": "1"})
        return int(done.stdout) / 1024

    few, many = peak_mib(32), peak_mib(512)
    # One clip's observed tensors are 0.3 MiB, so keeping them would add about 150 MiB; allocators wobble by a few.
    assert many - few < 16, f"{few:.0f} MiB with 32 clips, {many:.0f} MiB with 512"

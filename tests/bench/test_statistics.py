"""The statistics benchmark measures the same work on both sides, streams on ours, and says when a side ran out of memory."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from edgekit.bench import statistics
from edgekit.bench.feeds import finished, read, record
from edgekit.bench.svg import Panel, ticks, write_panels
from edgekit.errors import EdgekitError, UsageError
from tests.onnx_nets import Lambda, export

ROOT = Path(__file__).parents[2]
SHAPE = (1, 3, 16, 16)


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    return export(tmp_path_factory.mktemp("graph"), Lambda(lambda self, x: self.net(x), net=net), SHAPE)


@pytest.fixture(scope="module")
def feeds(tmp_path_factory):
    """Four clips of two runs each, as `record` takes them from a flow."""
    flow = {
        "inputs": {"frames": {"shape": [2, *SHAPE[1:]], "dtype": "float32"}},
        "steps": [{"engine": "main", "each": {"x0": "frames"}, "stack": {"y0": "all"}}],
        "outputs": ["all"],
    }
    rng = np.random.default_rng(0)
    clips = [(str(i), {"frames": rng.standard_normal((2, *SHAPE[1:])).astype(np.float32)}) for i in range(4)]
    paths = record(flow, {"main": lambda fed: {"y0": fed["x0"]}}, clips, "main", tmp_path_factory.mktemp("feeds"))
    assert [len(list(read(path))) for path in paths] == [2, 2, 2, 2]
    for path, (_, inputs) in zip(paths, clips, strict=True):
        assert (np.concatenate([fed["x0"] for fed in read(path)]) == inputs["frames"]).all()
    return paths


@pytest.mark.slow
def test_both_sides_count_the_same_tensors_and_find_the_same_ranges(graph, feeds):
    rows = statistics.run(graph, feeds, clips=(1, 4))
    assert [(row["method"], row["clips"]) for row in rows] == [(method, n) for n in (1, 4) for method in statistics.METHODS]
    for row in rows:
        assert row["runs"] == 2 * row["clips"] and row["tensors"] == 5 and row["seconds"] > 0 and row["cpu_seconds"] > 0
        assert 0 < row["before_mb"] <= row["peak_mb"]
        assert row.get("max_off_percent", 0) < 2  # bins of max|x| / 2048 on their side
    assert sum("max_off_percent" in row for row in rows) == 4


@pytest.mark.slow
def test_a_side_that_needs_too_much_memory_is_a_row_that_says_so(graph, feeds):
    rows = statistics.run(graph, feeds, clips=(1,), methods=("edgekit",), limit_gb=0.05)
    assert rows[0]["failed"] == "needs more than 0.05 GB" and "seconds" not in rows[0]


@pytest.mark.slow
def test_any_other_failure_is_not_a_measurement(graph, feeds, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    with pytest.raises(EdgekitError, match="edgekit, 1 clips: exit code 1"):
        statistics.run(broken, feeds, clips=(1,))


def test_more_clips_than_recorded_are_refused(graph, feeds):
    with pytest.raises(EdgekitError, match="4 clips are recorded, 8 are asked for"):
        statistics.run(graph, feeds, clips=(8,))


def test_a_recipe_that_was_not_built_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # its cache is empty
    with pytest.raises(UsageError, match="`prune` is not built"):
        finished(ROOT / "recipes/mhlt_xavier.yaml", ("prune",))


def test_the_plot_has_a_line_for_each_method_and_a_cross_for_what_failed(tmp_path):
    rows = [{"method": "edgekit", "clips": n, "seconds": 0.1 * n, "peak_mb": 100.0} for n in (8, 16)]
    rows += [{"method": "onnxruntime", "clips": 8, "seconds": 2.0, "peak_mb": 900.0}, {"method": "onnxruntime", "clips": 16, "failed": "needs more than 12 GB"}]
    statistics.plot(rows, tmp_path / "plot.svg")
    root = ET.parse(tmp_path / "plot.svg").getroot()
    found = {tag: root.findall(f".//{{*}}{tag}") for tag in ("polyline", "circle", "path", "text")}
    assert (len(found["polyline"]), len(found["circle"]), len(found["path"])) == (4, 6, 2)
    assert {"seconds", "peak memory, GB", "edgekit", "onnxruntime"} <= {text.text for text in found["text"]}


def test_points_lie_where_their_values_say(tmp_path):
    write_panels([Panel("t", "x", {"a": [(1, 0), (2, 5), (4, 10)]})], tmp_path / "p.svg")
    points = ET.parse(tmp_path / "p.svg").getroot().find(".//{*}polyline").get("points")
    (x0, y0), (x1, y1), (x2, y2) = ([float(v) for v in point.split(",")] for point in points.split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.1) and y0 - y1 == pytest.approx(y1 - y2, abs=0.1) and x0 < x1 and y0 > y1
    write_panels([Panel("t", "x", {"a": [(1, 0), (2, 5), (4, 10)]}, is_linear=True)], tmp_path / "l.svg")
    xs = [float(point.split(",")[0]) for point in ET.parse(tmp_path / "l.svg").getroot().find(".//{*}polyline").get("points").split()]
    assert xs[1] - xs[0] == pytest.approx((xs[2] - xs[1]) / 2, abs=0.1)


@pytest.mark.parametrize(("high", "want"), [(0, [0, 1]), (1, [0, 0.25, 0.5, 0.75, 1]), (13.9, [0, 5, 10, 15]), (108.5, [0, 50, 100, 150]), (0.0021, [0, 0.001, 0.002, 0.003])])
def test_ticks_are_round_and_cover_the_data(high, want):
    assert ticks(high) == want

"""Percentile statistics of all float tensors of a graph: edgekit against onnxruntime.quantization.

    python -m edgekit.bench.statistics recipes/mhlt_xavier.yaml --engine clip_encoder --out build/bench

Same graph, same tensors, same clips, same percentile, each measurement in a process of its own that
reads one clip at a time. ONNX Runtime's calibrator runs in the two ways that its interface allows:
`onnxruntime` collects all clips in one call, as its `quantize_static` does, and holds every tensor of
every clip until then; `onnxruntime, clip by clip` calls `collect_data` once a clip, so that memory is
freed in between. Seconds are from the graph's file to the ranges, without imports.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.bench.feeds import read
from edgekit.bench.svg import Panel, write_panels
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.datasets import Dataset

CLIPS = (8, 16, 32, 64, 128)
METHODS = ("edgekit", "onnxruntime", "onnxruntime, clip by clip")
PERCENTILE = 99.99
LIMIT_GB = 12.0
Row = dict[str, Any]


def run(graph: Path, feeds: Sequence[Path], clips: Sequence[int] = CLIPS, methods: Sequence[str] = METHODS, limit_gb: float = LIMIT_GB) -> list[Row]:
    """Measure every method on every number of clips.

    Args:
        graph: float.onnx of an engine.
        feeds: one file a clip, from `feeds.record`.
        limit_gb: of address space for each process; one that needs more is a row with `failed`.

    Returns:
        rows {method, clips, runs, tensors, seconds, cpu_seconds, peak_mb, before_mb, load_before, max_off_percent} or
        {method, clips, failed}. peak_mb is the process' largest resident set, before_mb that after imports.
        max_off_percent compares ranges with edgekit's on as many clips; load_before is the machine's
        load average just before: seconds under load are not comparable, cpu_seconds (of all threads) nearly are.

    Raises:
        EdgekitError: fewer clips than asked for, or a process failed for another reason than memory.
    """
    if len(feeds) < max(clips):
        raise EdgekitError(f"{len(feeds)} clips are recorded, {max(clips)} are asked for")
    rows: list[Row] = []
    for count in clips:
        own: dict[str, float] | None = None
        for method in methods:
            row, ranges = _measure(method, graph, feeds[:count], limit_gb)
            if method == "edgekit":
                own = ranges
            elif ranges is not None and own is not None:
                row["max_off_percent"] = max(100 * abs(ranges[name] / own[name] - 1) for name in own if own[name] > 0)
            rows.append(row)
    return rows


def plot(rows: Sequence[Row], path: Path) -> None:
    """Seconds and peak memory over the number of clips, as SVG. A method that failed ends in a cross."""
    panels = []
    for title, key, factor in (("seconds", "seconds", 1), ("peak memory, GB", "peak_mb", 1e-3)):
        lines = {method: [(row["clips"], row[key] * factor) for row in rows if row["method"] == method and "failed" not in row] for method in METHODS}
        failed = {row["method"]: row["clips"] for row in reversed(rows) if "failed" in row}
        panels.append(Panel(title, "clips", {method: points for method, points in lines.items() if points}, failed))
    write_panels(panels, path)


def _measure(method: str, graph: Path, feeds: Sequence[Path], limit_gb: float) -> tuple[Row, dict[str, float] | None]:
    row: Row = {"method": method, "clips": len(feeds), "load_before": round(os.getloadavg()[0], 2)}
    with tempfile.TemporaryDirectory(prefix="edgekit-bench-") as name:
        folder = Path(name)
        shutil.copyfile(graph, folder / "model.onnx")  # onnxruntime writes beside it
        job = {"method": method, "feeds": [str(path.resolve()) for path in feeds], "limit": int(limit_gb * 1e9)}
        (folder / "job.json").write_text(json.dumps(job))
        command = [sys.executable, "-m", "edgekit.bench.statistics", "--work"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
        if done.returncode != 0:
            if not _is_memory(done):
                raise EdgekitError(f"{method}, {len(feeds)} clips: exit code {done.returncode}: {done.stderr.strip()[-500:]}")
            return {**row, "failed": f"needs more than {limit_gb:g} GB"}, None
        measured = json.loads((folder / "result.json").read_text())
    ranges = measured.pop("ranges")
    return {**row, **measured}, ranges


def _is_memory(done: subprocess.CompletedProcess[str]) -> bool:
    return any(word in done.stderr for word in ("MemoryError", "bad_alloc", "Failed to allocate memory", "Cannot allocate memory", "Unable to allocate"))


# --------------------------------------------------------------------------- in the measured process


def _work(folder: Path) -> None:
    import onnx
    import onnxruntime.quantization.calibrate

    from edgekit import calibration
    from edgekit.backends import onnxruntime as ours

    job = json.loads((folder / "job.json").read_text())
    resource.setrlimit(resource.RLIMIT_AS, (job["limit"], job["limit"]))
    modules = (onnx, onnxruntime.quantization.calibrate, calibration, ours)
    assert all(modules)
    before = _peak_mb()
    graph, feeds = folder / "model.onnx", [Path(path) for path in job["feeds"]]
    start, cpu_start = time.perf_counter(), time.process_time()
    ranges = _edgekit(graph, feeds) if job["method"] == "edgekit" else _onnxruntime(graph, feeds, job["method"] != "onnxruntime")
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    runs = sum(1 for path in feeds for _ in read(path))
    (folder / "result.json").write_text(
        json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": _peak_mb(), "before_mb": before, "runs": runs, "tensors": len(ranges), "ranges": ranges})
    )


def _peak_mb() -> float:
    """Largest resident set since this program started. getrusage's ru_maxrss would begin with that of the parent."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


def _edgekit(graph: Path, feeds: Sequence[Path]) -> dict[str, float]:
    from edgekit.backends import onnxruntime
    from edgekit.calibration import inference_threads, observe

    names = _tensors(graph)
    example = next(read(feeds[0]))
    session = onnxruntime.simulate(graph, threads=inference_threads(), also=[name for name in names if name not in example])
    flow = {
        "inputs": {name: {"shape": list(array.shape[1:]), "dtype": "float32"} for name, array in example.items()},
        "steps": [{"engine": "main", "feed": {name: name for name in example}, "give": {}}],
        "outputs": [],
    }
    clips = ((path.stem, {name: array[0] for name, array in fed.items()}) for path in feeds for fed in read(path))
    statistics = observe(flow, {"main": session}, {"main": names}, clips)
    return {name: h.percentile(PERCENTILE).amax for name, h in statistics.histograms["main"].items()}


def _onnxruntime(graph: Path, feeds: Sequence[Path], clip_by_clip: bool) -> dict[str, float]:
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    calibrator = create_calibrator(
        graph,
        augmented_model_path="augmented.onnx",
        calibrate_method=CalibrationMethod.Percentile,
        extra_options={"symmetric": True, "num_bins": 2048, "percentile": PERCENTILE},
    )
    for part in [[path] for path in feeds] if clip_by_clip else [feeds]:
        calibrator.collect_data(_Reader(fed for path in part for fed in read(path)))
    found = calibrator.compute_data()
    return {name: float(max(abs(low) for low in data.range_value)) for name, data in found.items()}


class _Reader:
    """onnxruntime's CalibrationDataReader over an iterator."""

    def __init__(self, items: Iterator[dict[str, np.ndarray]]):
        self._items = iter(items)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._items, None)


def _tensors(graph: Path) -> list[str]:
    """The tensors that onnxruntime's calibrator counts: every float one with a known shape."""
    from onnxruntime.quantization.calibrate import CalibraterBase

    names, _ = CalibraterBase.select_tensors_to_calibrate(_Selection(), _inferred(graph))
    return sorted(names)


class _Selection:
    op_types_to_calibrate = None


def _inferred(graph: Path) -> Any:
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

    return load_model_with_shape_infer(graph)


# --------------------------------------------------------------------------- by hand


def main(arguments: Sequence[str] | None = None) -> None:
    import argparse

    parser = argparse.ArgumentParser(prog="python -m edgekit.bench.statistics", description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", help="a recipe that was built before")
    parser.add_argument("--engine", default="clip_encoder")
    parser.add_argument("--clips", type=int, nargs="+", default=list(CLIPS))
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.work:
        _work(Path.cwd())
        return
    rows = of_recipe(args.recipe, args.engine, args.clips)
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / f"statistics-{args.engine}"
    stem.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    plot(rows, stem.with_suffix(".svg"))
    for row in rows:
        print("{method:<28} {clips:>4} clips".format(**row), row.get("failed") or "{seconds:8.2f} s {peak_mb:8.0f} MB".format(**row))


def of_recipe(recipe: str | Path, engine: str, clips: Sequence[int] = CLIPS) -> list[Row]:
    """`run` on an engine and the calibration clips of a recipe that was built before."""
    from edgekit.bench.feeds import finished
    from edgekit.datasets import open_dataset
    from edgekit.recipe import load_recipe

    stages = finished(recipe, ("prune", "calibrate"))
    loaded = load_recipe(recipe)
    data = open_dataset(loaded.calibrate.data, "calibration", max(clips), loaded.dir, loaded.cache_root)
    return of_stages(stages["prune"], stages["calibrate"], data, engine, clips)


def of_stages(prune: Path, calibrate: Path, data: Dataset, engine: str, clips: Sequence[int] = CLIPS) -> list[Row]:
    """`run` on an engine of these stages' outputs and as many clips of `data`."""
    from edgekit.backends import onnxruntime
    from edgekit.bench.feeds import record
    from edgekit.calibration import batches
    from edgekit.formats import read_json

    graphs = {path.name: path / "float.onnx" for path in sorted((calibrate / "engines").iterdir())}
    sessions = {name: onnxruntime.simulate(path) for name, path in graphs.items()}
    found = batches(data, read_json(prune / "preprocess.json"))
    with tempfile.TemporaryDirectory(prefix="edgekit-bench-") as folder:
        return run(graphs[engine], record(read_json(prune / "flow.json"), sessions, found, engine, Path(folder)), clips)


if __name__ == "__main__":
    main()

"""What happens in a measured process: engines take turns, or one is weighed.

It reads job.json in its folder, and the graphs beside that folder, and writes result.json.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bench import denoise_engines as engines
from edgekit.bench import denoise_graphs as graphs
from edgekit.errors import EdgekitError

Row = dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """How long is measured.

    Attributes:
        rounds: turns of every engine in a process, half as many of those with more than one frame a call.
        warm, timed: frames of a turn; at least one call each.
        pause_s: before a turn, so that another framework's threads stop spinning.
        chunks: frames of the calls with more than one.
        windows, window: of a live stream: how many, and frames of each.
        further_runs: in how many of the runs calls of several frames, and torch.compile, are measured.
        compile: whether torch.compile is measured too, which takes a minute to compile.
        calibration: frames that the frameworks' INT8 is calibrated on.
    """

    rounds: int = 20
    warm: int = 8
    timed: int = 40
    pause_s: float = 0.01
    chunks: tuple[int, ...] = (2, 4, 8, 16, 32)
    windows: int = 5
    window: int = 2000
    further_runs: int = 3
    compile: bool = True
    calibration: int = 300


QUICK = Effort(rounds=1, warm=1, timed=2, pause_s=0.0, chunks=(2,), windows=2, window=20, compile=False, calibration=16)


@dataclass(frozen=True)
class Candidate:
    """One engine of a process.

    Attributes:
        kind: native, native_live, native_clip, torch, onnxruntime or openvino.
        file: its graph or weights; for torch the module.
        form: the graph that torch builds.
        options: of its constructor.
    """

    engine: str
    precision: str
    kind: str
    file: str
    form: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Engines that take turns in a process of their own.

    Attributes:
        mode: step, chunk, clip, live or overhead.
        frames: that one call takes.
        threads: that it is measured with; None: all that are asked for.
        runs: how many of the first runs it is measured in; None: all. What takes long and decides no figure need not be in every run.
    """

    name: str
    mode: str
    frames: int
    candidates: tuple[Candidate, ...]
    threads: int | None = None
    runs: int | None = None


def _work(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    work = folder.parent
    if "memory" in job:
        found = weigh(Candidate(**job["memory"]), work)
    else:
        group = Group(**{**job["group"], "candidates": tuple(Candidate(**one) for one in job["group"]["candidates"])})
        found = take_turns(group, work, job["threads"], Effort(**job["effort"]), job["turn"])
    (folder / "result.json").write_text(json.dumps(found))


def take_turns(group: Group, work: Path, threads: int, effort: Effort, first: int = 0) -> dict[str, Any]:
    """{engines: rows {engine, precision, median_us, p10_us, p99_us, sqnr_db}, failed: rows {engine, precision, reason}}, in us of a frame.

    Of live streams a row is its quietest window: the one whose 99th percentile is closest to its median.

    Args:
        first: the number of the run: which engine begins; parity is taken in run 0 only, `sqnr_db` is None in the others.
    """
    about = json.loads((work / "about.json").read_text())
    with np.load(work / "test.npz") as file:
        spectrum, mask = file["spectrum"], file["mask"]
    opened, failed = [], []
    for candidate in group.candidates:
        try:
            opened.append((candidate, open_engine(candidate, group, threads, work)))
        except EdgekitError as error:  # such as bf16 on a CPU without it
            failed.append({"engine": candidate.engine, "precision": candidate.precision, "reason": error.message})
    feeds = [_feeds(candidate, group, spectrum, about) for candidate, _ in opened]
    is_compared = first == 0 and group.mode != "overhead"  # once is enough: parity does not change from run to run
    sqnr = [_sqnr(candidate, engine, fed, mask, about["late"], group.mode) if is_compared else None for (candidate, engine), fed in zip(opened, feeds, strict=True)]
    windows: list[list[list[float]]] = [[] for _ in opened]  # seconds of every call, a list a turn
    turns = effort.windows if group.mode == "live" else effort.rounds if group.mode == "step" else max(1, effort.rounds // 2)
    timed = effort.window if group.mode == "live" else effort.timed
    for turn in range(turns):
        for k in range(len(opened)):
            i = (k + turn + first) % len(opened)
            time.sleep(effort.pause_s)
            windows[i].append(_turn(opened[i][1], feeds[i], group.frames, effort.warm, timed))
    rows = []
    for (candidate, _), taken, db in zip(opened, windows, sqnr, strict=True):
        of_windows = taken if group.mode == "live" else [[one for window in taken for one in window]]
        times = min((_times(seconds, group.frames) for seconds in of_windows), key=lambda times: times["p99_us"] / times["median_us"])
        rows.append({"engine": candidate.engine, "precision": candidate.precision, **times, "sqnr_db": db})
    return {"engines": rows, "failed": failed}


def _times(seconds: Sequence[float], frames: int) -> dict[str, float]:
    median, p10, p99 = np.percentile(np.array(seconds) * 1e6 / frames, (50, 10, 99))
    return {"median_us": float(median), "p10_us": float(p10), "p99_us": float(p99)}


def _turn(engine: Any, feeds: Sequence[Any], frames: int, warm: int, timed: int) -> list[float]:
    """Seconds of calls of `frames` frames each; `warm` frames before are not timed."""
    warm, timed = (max(1, count // frames) for count in (warm, timed))
    taken = []
    for k in range(warm + timed):
        fed = feeds[k % len(feeds)]
        start = time.perf_counter()
        for part in fed:
            engine(part)
        if k >= warm:
            taken.append(time.perf_counter() - start)
    return taken


def open_engine(candidate: Candidate, group: Group, threads: int, work: Path) -> Any:
    """The candidate, ready to be called."""
    options = dict(candidate.options)
    if candidate.kind == "onnxruntime":
        return engines.OnnxRuntimeEngine(Path(candidate.file), threads)
    if candidate.kind == "openvino":
        return engines.OpenVinoEngine(Path(candidate.file), threads, options["hint"])
    if candidate.kind == "torch":
        import torch

        torch.set_num_threads(threads)
        module = torch.load(candidate.file, weights_only=False)  # written by this very benchmark
        net = graphs.network(module, json.loads((work / "about.json").read_text())["bins"])
        return engines.TorchEngine(graphs.step(net, candidate.form), **options)
    return {"native": engines.NativeEngine, "native_live": engines.NativeLive, "native_clip": engines.NativeClip}[candidate.kind](Path(candidate.file), threads, **options)


def _feeds(candidate: Candidate, group: Group, spectrum: np.ndarray, about: Mapping[str, Any]) -> list[list[np.ndarray]]:
    """What every timed call is given: a list of parts, since ours takes the frames of a chunk one by one."""
    if candidate.kind in ("native_clip", "native_live"):
        wave = (0.1 * np.random.default_rng(0).standard_normal(about["rate"])).astype(np.float32)
        hop = about["stft"]["hop_length"]
        return [[wave]] if candidate.kind == "native_clip" else [[part] for part in wave[: len(wave) // hop * hop].reshape(-1, hop)]
    if candidate.kind == "native":
        frames = np.ascontiguousarray(spectrum.transpose(2, 0, 1))
        return [list(frames[start : start + group.frames]) for start in range(0, len(frames) - group.frames + 1, group.frames)]
    plan = engines.Plan.read(Path(candidate.file)) if candidate.kind != "torch" else None
    if plan is None:
        frames = np.ascontiguousarray(spectrum.transpose(2, 0, 1))
        return [[frame[..., None] if candidate.form == "naive" else frame] for frame in frames]
    return [[part] for part in engines.calls(spectrum, plan)]


def _sqnr(candidate: Candidate, engine: Any, feeds: Sequence[Sequence[np.ndarray]], mask: np.ndarray, late: int, mode: str) -> float | None:
    """In dB, of the masks from the first frame on; None for ours on waves, whose masks are not given out.

    Args:
        mask: [2, bins, t] of the whole test clip. Of a second of it the last `late` frames differ: what they look ahead to is cut off.
    """
    if candidate.kind in ("native_clip", "native_live"):
        return None
    engine.reset()
    parts = [engine(part).copy() for fed in (feeds[:1] if mode == "clip" else feeds) for part in fed]
    got = np.concatenate([part.reshape(*mask.shape[:2], -1) for part in parts], axis=2)
    got = got[:, :, : got.shape[2] - late] if mode == "clip" else got[:, :, late:]
    want = mask[:, :, : got.shape[2]]
    return float(10 * np.log10(np.square(want, dtype=np.float64).sum() / np.square(got - want, dtype=np.float64).sum()))


def weigh(candidate: Candidate, work: Path) -> Row:
    """{engine, precision, resident_mb, library_mb} of this process, which must be a fresh one; {reason} if it cannot be opened."""
    row: Row = {"engine": candidate.engine, "precision": candidate.precision}
    before = _resident_mb()
    if candidate.kind == "openvino":
        from edgekit.backends.openvino import runtime

        runtime().Core().get_property("CPU", "FULL_DEVICE_NAME")  # loads the plug-in
    elif candidate.kind == "onnxruntime":
        import onnxruntime

        onnxruntime.get_available_providers()
    elif candidate.kind == "torch":
        import torch

        torch.zeros(1)
    else:
        from edgekit.native import library

        library()
    imported = _resident_mb()
    try:
        engine = open_engine(candidate, Group("memory", "step", 1, (candidate,)), 1, work)
    except EdgekitError as error:
        return {**row, "reason": error.message}
    with np.load(work / "test.npz") as file:
        group = Group("memory", "step", 1, (candidate,))
        for fed in _feeds(candidate, group, file["spectrum"], {})[:40]:
            engine(fed[0])
    return {**row, "resident_mb": _resident_mb() - imported, "library_mb": imported - before}


def _resident_mb() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    _work(Path.cwd())

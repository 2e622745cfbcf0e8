"""The native DCCRN engine, against every graph and framework that a user could pick instead.

    edgekit bench recipes/dccrn_native.yaml
    python -m edgekit.bench.denoise recipes/dccrn_native.yaml --docs docs

What is compared takes turns in one process: a few calls to warm up, then some dozens that are timed, then the next. More engines in a
process slow the frameworks down (their weights push each other out of the caches), so each process holds few: ours, and the graphs of one
framework in one precision. All of that is one run. A figure is the median over runs of each run's median; a ratio is taken within a process,
against the best framework of that run, and its median and range over the runs are given. So a busy moment of the machine hits both sides.

`roofline_share` is the time that the multiplications alone would take at the rate that a probe of this very run reached with this number
format, over the time taken. A complex product counts as four multiplications, so Gauss's three may pass 100 %, and so may a step that shares products with the one before.

Ours is also timed as a live stream runs it, a hop of samples in and one out, and how late its slowest frames are: five windows of 2000
frames in the first run, of which the quietest counts, since one disturbance by another process is not the engine's.

Parity is the signal-to-noise ratio of every engine's masks against torch's in float32, on other clips than INT8 was calibrated on.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.bench import denoise_engines as engines
from edgekit.bench import denoise_graphs as graphs
from edgekit.bench.denoise_turns import QUICK, Candidate, Effort, Group, Row
from edgekit.errors import EdgekitError, IntegrityError, TargetError, ToolMissing, UsageError
from edgekit.progress import note, track

if TYPE_CHECKING:
    from edgekit.models.dccrn import DCCRN, Config
    from edgekit.recipe import Recipe

CALIBRATION_CLIPS = 15
TEST_FRAMES = 320
TIMES = ("median_us", "p10_us", "p99_us")
FP32, BF16, INT8 = ("four_mult", "fast"), ("bf16_four_mult", "bf16"), ("int8_four_mult", "int8")  # of ours, beside each framework; few, since every engine of a process slows the others
BETTER = ("folded", "subpixel", "three_mult")  # than what is exported first
TITLES = {"naive": "as exported", "folded": "folded", "subpixel": "sub-pixel", "three_mult": "three products"}


# --------------------------------------------------------------------------- the whole


def run(recipe: Recipe, threads: Sequence[int] = (1, 2), runs: int = 7, effort: Effort | None = None, out: Path | None = None) -> dict[str, Any]:
    """Measure a recipe that was built before.

    Args:
        out: a folder; the result is written there after every run, as speed-<recipe>.json.

    Returns:
        what `measure` does, and which recipe.

    Raises:
        UsageError: it is not built, or not of a DCCRN that streams.
        TargetError: it is not for backend `native`.
    """
    from edgekit.float_model import FloatModel

    if not serves(recipe):
        raise TargetError(f"{recipe.path}: target `{recipe.target}` is not for the native engine, which this benchmark is of", "bench recipes/dccrn_native.yaml")
    stages = _built(recipe, ("prune", "export"))
    model = FloatModel.open(stages["prune"])
    int8 = _weight_file(stages["export"])
    clips = {split: _spectra(recipe, model, split) for split in ("calibration", "test")}
    with tempfile.TemporaryDirectory(prefix="edgekit-bench-") as folder:
        work = Path(folder)
        groups = prepare(model.module(), model.config, int8, clips["calibration"], clips["test"][0], work, effort or Effort())
        path = None if out is None else out / f"speed-{recipe.name}.json"
        return measure(groups, work, threads, runs, effort or Effort(), path, {"recipe": recipe.path.name, "model": f"{model.meta['model']}/{model.meta['config_name']}"})


def serves(recipe: Recipe) -> bool:
    """Whether a recipe is one for this benchmark: its target is for the native engine."""
    from edgekit.target import load_target

    return load_target(recipe.target, recipe.dir).spec()["backend"] == "native"


def measure(groups: Sequence[Group], work: Path, threads: Sequence[int], runs: int, effort: Effort, path: Path | None = None, about: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """{about, rows, ratios, overhead, memory, failed}, all of it JSON-able.

    rows: {engine, precision, threads, mode, frames, median_us, p10_us, p99_us, roofline_share, sqnr_db, runs}, in us of a frame. Those of
        mode `live` are of the quietest window of the first run.
    ratios: {what, precision, threads, mode, frames, ratio, low, high, p10, best}: how many times as fast ours is; `best` is what it was held against.
    overhead: {engine, threads, median_us, p10_us} of a graph with the same inputs and outputs that computes nothing.
    memory: {engine, precision, resident_mb, library_mb}: what opening and running it adds to a process, and its library before that.
    failed: {engine, precision, reason} of what this machine cannot run.
    """
    network = json.loads((work / "about.json").read_text())
    macs, hop_us = network["macs"], network["stft"]["hop_length"] / network["rate"] * 1e6
    said: dict[str, Any] = {**(about or {}), **_machine(), "macs_per_frame": macs, "hop_us": hop_us, "runs": runs, "rounds": effort.rounds, "frames_a_turn": effort.timed}
    said |= {"windows": effort.windows, "frames_a_window": effort.window}
    memory = [_child(work, {"memory": asdict(candidate)}) for candidate in _to_weigh(groups)]
    measured: list[list[Row]] = []
    result: dict[str, Any] = {}
    for number in track(range(runs), "runs"):
        measured.append(_one_run(groups, work, threads, effort, number))
        result = {"about": {**said, "runs": number + 1}, **collect(measured, macs), "memory": [row for row in memory if "reason" not in row]}
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result, indent=1) + "\n")
    return result


def _one_run(groups: Sequence[Group], work: Path, threads: Sequence[int], effort: Effort, number: int) -> list[Row]:
    found: list[Row] = []
    for count in threads:
        peaks = roofline(count)
        for group in groups:
            if group.threads not in (None, count) or (group.runs is not None and number >= group.runs):
                continue
            note(f"run {number + 1}, {count} threads: {group.name}")
            job = {"group": asdict(group), "threads": count, "effort": asdict(effort), "turn": number}
            found.append({"group": group.name, "mode": group.mode, "frames": group.frames, "threads": count, "peaks": peaks, **_child(work, job)})
    return found


def _child(work: Path, job: Mapping[str, Any]) -> Any:
    """What a process of its own makes of a job."""
    with tempfile.TemporaryDirectory(dir=work, prefix="job-") as name:
        folder = Path(name)
        (folder / "job.json").write_text(json.dumps(job))
        root = str(Path(__file__).parents[2])
        paths = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
        # Threads are counted by each engine; a pool that numpy or OpenMP opens beside it would only be in the way.
        environment = {**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        environment.pop("OMP_NUM_THREADS", None)
        done = subprocess.run([sys.executable, "-m", "edgekit.bench.denoise_turns"], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
        if done.returncode != 0:
            what = job["group"]["name"] if "group" in job else job["memory"]["engine"]
            raise EdgekitError(f"{what}: exit code {done.returncode}: {done.stderr.strip()[-800:]}")
        return json.loads((folder / "result.json").read_text())


def _built(recipe: Recipe, stages: Iterable[str]) -> dict[str, Path]:
    from edgekit.cache import Cache
    from edgekit.plan import make_plan

    with Cache(recipe.cache_root) as cache:
        entries = {step.stage: step.entry for step in make_plan(recipe, cache).steps}
    missing = [stage for stage in stages if entries[stage] is None]
    if missing:
        raise UsageError(f"{recipe.path}: `{missing[0]}` is not built", f"run `edgekit build {recipe.path}` first")
    return {stage: entries[stage].out for stage in stages}


def _weight_file(export: Path) -> Path:
    """The file of the native engine that export wrote.

    Raises:
        IntegrityError: there is none.
    """
    from edgekit.backends.native import FILE

    found = sorted(export.glob(f"engines/*/{FILE}"))
    if len(found) != 1:
        raise IntegrityError(f"{export}: {len(found)} weight files of the native engine, expected one", "build the recipe again")
    return found[0]


def _spectra(recipe: Recipe, model: Any, split: str) -> list[np.ndarray]:
    """Spectra [2, bins, t] of a recipe's clips."""
    from edgekit.calibration import batches
    from edgekit.datasets import open_dataset

    name, clips = (recipe.calibrate.data, CALIBRATION_CLIPS) if split == "calibration" else (recipe.verify.data, 1)
    data = open_dataset(name, split, clips, recipe.dir, recipe.cache_root)
    [wave] = [name for name, want in model.flow["inputs"].items() if len(want["shape"]) == 1]
    return [model.config.stft.analyse(inputs[wave]).transpose(1, 2, 0) for _, inputs in batches(data, model.preprocess)]


# --------------------------------------------------------------------------- what is compared


def prepare(module: DCCRN, cfg: Config, int8: Path | None, calibration: Sequence[np.ndarray], test: np.ndarray, work: Path, effort: Effort) -> list[Group]:
    """Write every graph, quantized ones too, weights of ours and what they are checked against, into `work`; the groups that use them.

    Args:
        int8: the quantized weight file of the native engine; None leaves ours out, so that the frameworks can be looked at without it.
        calibration: in-domain spectra [2, bins, t].
        test: another one, which parity is taken on.
    """
    import torch

    net = graphs.network(module, cfg.stft.bins)
    second = cfg.stft.frames(cfg.sample_rate_hz)
    if min(clip.shape[2] for clip in (*calibration, test)) < second:
        raise UsageError("a clip is shorter than the second that whole clips are measured on", "calibrate and verify on longer clips")
    test = np.ascontiguousarray(test[:, :, : max(TEST_FRAMES, second)])
    calibration = [clip[:, :, : 2 * second] for clip in calibration[: max(1, effort.calibration // 20)]]  # some 20 frames of each, spread over 2 s
    with torch.inference_mode():
        want = module.mask(torch.from_numpy(test)[None])[0].numpy()
    np.savez(work / "test.npz", spectrum=test, mask=want)
    torch.save(module, work / "module.pt")
    (work / "about.json").write_text(json.dumps({"macs": net.macs, "late": net.late, "bins": cfg.stft.bins, "stft": cfg.stft.to_json(), "rate": cfg.sample_rate_hz}))
    ours = _ours(module, cfg, int8, work)
    lacking = [name for name in ("openvino", "nncf") if find_spec(name) is None]
    if lacking:
        note(f"{' and '.join(lacking)} not installed, those rows are left out: pip install 'edgekit[openvino,bench]'")
    return [*_step_groups(net, ours, calibration, work, effort, lacking), *_frame_groups(net, ours, calibration, work, effort, lacking, cfg)]


def _ours(module: DCCRN, cfg: Config, int8: Path | None, work: Path) -> dict[str, Candidate]:
    """{four_mult, gauss, fast, bf16_four_mult, bf16, int8_four_mult, int8: ours}."""
    from edgekit import native_format

    state = {key: value.numpy() for key, value in module.state_dict().items()}
    sizes = {"sample_rate_hz": cfg.sample_rate_hz, "n_fft": cfg.n_fft, "win_length": cfg.win_length, "hop_length": cfg.hop_length}
    floats = native_format.write(native_format.from_state(state, **sizes, mask=cfg.mask, look_ahead=cfg.look_ahead), work / "float.ekd")
    if int8 is None:
        return {}
    return {
        "four_mult": Candidate("edgekit, four products", "fp32", "native", str(floats), options={"precision": "fp32", "algorithm": "four_mult"}),
        "gauss": Candidate("edgekit, three products", "fp32", "native", str(floats), options={"precision": "fp32", "algorithm": "gauss"}),
        "fast": Candidate("edgekit", "fp32", "native", str(floats), options={"precision": "fp32", "algorithm": "fast"}),
        "bf16_four_mult": Candidate("edgekit, four products", "bf16", "native", str(floats), options={"precision": "bf16", "algorithm": "four_mult"}),
        "bf16": Candidate("edgekit", "bf16", "native", str(floats), options={"precision": "bf16", "algorithm": "fast"}),
        "int8_four_mult": Candidate("edgekit, four products", "int8", "native", str(int8.resolve()), options={"precision": "int8", "algorithm": "four_mult"}),
        "int8": Candidate("edgekit", "int8", "native", str(int8.resolve()), options={"precision": "int8"}),
    }


def _step_groups(net: graphs.Network, ours: Mapping[str, Candidate], calibration: Sequence[np.ndarray], work: Path, effort: Effort, lacking: Sequence[str]) -> list[Group]:
    module = str(work / "module.pt")
    files = {form: engines.export(graphs.step(net, form), work / f"step-{form}.onnx") for form in graphs.FORMS}
    nothing = engines.identity(engines.Plan.read(files["subpixel"]), work / "identity.onnx")
    note("quantizing the frameworks' graphs")
    feeds = engines.recorded(graphs.step(net, "subpixel"), calibration, effort.calibration)
    int8 = [_onnxruntime("sub-pixel", "int8", engines.quantize_onnxruntime(files["subpixel"], feeds, work / "step-int8.onnx"))]
    fp32, bf16 = [ours[name] for name in (*FP32, "int8") if name in ours], [ours[name] for name in BF16 if name in ours]
    eager = [Candidate(f"torch eager, {TITLES[form]}", "fp32", "torch", module, form) for form in ("naive", "folded", "subpixel")]
    compiled = []
    if effort.compile and shutil.which("g++"):
        compiled = [Candidate(f"torch.compile, {TITLES[form]}", "fp32", "torch", module, form, {"compiled": True}) for form in ("folded", "subpixel")]
    exported = [_onnxruntime(TITLES["naive"], "fp32", files["naive"])]
    overhead = [_onnxruntime("nothing", "fp32", nothing)]
    groups = [Group("fp32, ONNX Runtime", "step", 1, (*fp32, *(_onnxruntime(TITLES[form], "fp32", files[form]) for form in BETTER)))]
    if "openvino" not in lacking:
        groups.append(Group("fp32, OpenVINO", "step", 1, (*fp32, *(_openvino(TITLES[form], "fp32", files[form]) for form in BETTER))))
        groups.append(Group("bf16", "step", 1, (*bf16, *(_openvino(TITLES[form], "bf16", files[form]) for form in BETTER))))
        exported.append(_openvino(TITLES["naive"], "fp32", files["naive"]))
        overhead.append(_openvino("nothing", "fp32", nothing))
    if not lacking:
        file = engines.quantize_openvino(files["subpixel"], feeds, work / "step-int8.xml")
        int8 += [_openvino("sub-pixel", "int8", file), _openvino("sub-pixel, rest in bf16", "int8", file, "bf16")]
    live = tuple(Candidate(one.engine, one.precision, "native_live", one.file, options=one.options) for one in ours.values())
    groups += [
        *([Group("live", "live", 1, live, runs=1)] if live else []),
        Group("fp32, as exported", "step", 1, (*fp32, *(ours[name] for name in ("gauss",) if name in ours), *exported)),
        Group("fp32, torch", "step", 1, (*fp32, *eager)),
        *([Group("fp32, torch.compile", "step", 1, (*fp32, *compiled), runs=effort.further_runs)] if compiled else []),
        Group("int8", "step", 1, (*(ours[name] for name in INT8 if name in ours), *int8)),
        Group("overhead", "overhead", 1, tuple(overhead)),
    ]
    return groups


def _frame_groups(net: graphs.Network, ours: Mapping[str, Candidate], calibration: Sequence[np.ndarray], work: Path, effort: Effort, lacking: Sequence[str], cfg: Config) -> list[Group]:
    """Chunks, and a whole second, on one thread."""
    second = cfg.stft.frames(cfg.sample_rate_hz)
    whole = {name: Candidate(one.engine, one.precision, "native_clip", one.file, options=one.options) for name, one in ours.items()}
    groups = []
    for mode, frames, own in (*(("chunk", t, ours) for t in effort.chunks), ("clip", second, whole)):
        some = effort.further_runs if mode == "chunk" else None
        title = f"{frames} frames" if mode == "chunk" else "1 s"
        make = graphs.chunk if mode == "chunk" else graphs.clip
        made = {form: make(net, form, frames) for form in BETTER}
        files = {form: engines.export(graph, work / f"{mode}-{frames}-{form}.onnx") for form, graph in made.items()}
        fp32, bf16 = [own[name] for name in FP32 if name in own], [own[name] for name in BF16 if name in own]
        feeds = engines.recorded(made["subpixel"], calibration, max(4, effort.calibration // frames))
        int8 = [own[name] for name in INT8 if name in own]
        int8.append(_onnxruntime("sub-pixel", "int8", engines.quantize_onnxruntime(files["subpixel"], feeds, work / f"{mode}-{frames}-int8.onnx")))
        groups.append(Group(f"{title}, fp32, ONNX Runtime", mode, frames, (*fp32, *(_onnxruntime(TITLES[form], "fp32", files[form]) for form in BETTER)), 1, some))
        if "openvino" not in lacking:
            groups.append(Group(f"{title}, fp32, OpenVINO", mode, frames, (*fp32, *(_openvino(TITLES[form], "fp32", files[form]) for form in BETTER)), 1, some))
            groups.append(Group(f"{title}, bf16", mode, frames, (*bf16, *(_openvino(TITLES[form], "bf16", files[form]) for form in BETTER)), 1, some))
        if not lacking:
            for form in ("subpixel",) if mode == "chunk" else ("subpixel", "folded"):
                file = engines.quantize_openvino(files[form], feeds, work / f"{mode}-{frames}-{form}-int8.xml")
                int8 += [_openvino(TITLES[form], "int8", file), _openvino(f"{TITLES[form]}, rest in bf16", "int8", file, "bf16")]
        groups.append(Group(f"{title}, int8", mode, frames, tuple(int8), 1, some))
    return groups


def _onnxruntime(title: str, precision: str, file: Path) -> Candidate:
    return Candidate(f"ONNX Runtime, {title}", precision, "onnxruntime", str(file))


def _openvino(title: str, precision: str, file: Path, hint: str | None = None) -> Candidate:
    return Candidate(f"OpenVINO, {title}", precision, "openvino", str(file), options={"hint": hint or {"bf16": "bf16"}.get(precision, "f32")})


def _to_weigh(groups: Sequence[Group]) -> list[Candidate]:
    """Every engine of T = 1 once, and of torch one."""
    found = {(one.engine, one.precision): one for group in groups if group.mode == "step" for one in group.candidates if one.kind != "torch" or one.form == "folded"}
    return [one for one in found.values() if "compiled" not in one.options]


def roofline(threads: int) -> dict[str, float]:
    """{fp32, bf16, int8: multiply-accumulates per second} that this machine's instructions reach right now on so many threads; none that it lacks.

    Raises:
        ToolMissing: edgekit-native, or the probe that comes with it, is not here.
    """
    from edgekit.native import INSTALL_HINT, library

    folder = Path(library()._name).resolve().parent
    program = next((path for path in (folder / "roofline", folder / "bench" / "roofline") if path.is_file()), None)
    if program is None:
        raise ToolMissing(f"there is no program `roofline` beside {library()._name}", f"{INSTALL_HINT}, or build native/ with -DEK_BENCH=ON and point EDGEKIT_NATIVE to it")
    done = subprocess.run([str(program), str(threads)], capture_output=True, text=True)
    if done.returncode != 0:
        raise EdgekitError(f"{program}: exit code {done.returncode}: {done.stderr.strip()[-300:]}")
    peaks = {name: found["median"] for name, found in json.loads(done.stdout)[str(threads)].items() if name != "read"}
    best = {precision: max((rate for name, rate in peaks.items() if name.startswith(start)), default=0) for precision, start in (("fp32", "f32"), ("bf16", "bf16"), ("int8", "i8"))}
    return {precision: threads * rate for precision, rate in best.items() if rate > 0}


# --------------------------------------------------------------------------- figures out of runs


def collect(measured: Sequence[Sequence[Row]], macs: int) -> dict[str, Any]:
    """{rows, ratios, overhead, failed} of `measure`, from the processes of all runs."""
    seen: dict[tuple[Any, ...], list[Row]] = {}
    failed: dict[tuple[str, str], Row] = {}
    for processes in measured:
        of_run: dict[tuple[Any, ...], list[Row]] = {}
        for process in processes:
            failed |= {(row["engine"], row["precision"]): row for row in process["failed"]}
            for row in process["engines"]:
                key = (process["mode"], process["frames"], process["threads"], row["precision"], row["engine"])
                peak = process["peaks"].get(row["precision"])
                of_run.setdefault(key, []).append({**row, "peak": peak})
        for key, rows in of_run.items():  # ours stands in several processes of a run
            merged = {name: statistics.median(row[name] for row in rows) for name in TIMES}
            seen.setdefault(key, []).append({**rows[0], **merged})
    rows, overhead = [], []
    for (mode, frames, threads, precision, engine), runs in seen.items():
        row = {"engine": engine, "precision": precision, "threads": threads, **{name: statistics.median(run[name] for run in runs) for name in TIMES}}
        if mode == "overhead":
            overhead.append({name: row[name] for name in ("engine", "threads", "median_us", "p10_us")})
            continue
        shares = [macs / (run["median_us"] * 1e-6) / run["peak"] for run in runs if run["peak"]]
        decibels = [run["sqnr_db"] for run in runs if run["sqnr_db"] is not None]
        rows.append({**row, "roofline_share": statistics.median(shares) if shares else None, "mode": mode, "frames": frames, "sqnr_db": min(decibels, default=None), "runs": len(runs)})
    return {"rows": rows, "ratios": ratios(measured), "overhead": overhead, "failed": list(failed.values())}


def ratios(measured: Sequence[Sequence[Row]]) -> list[Row]:
    """Ours against the best that could be picked instead, for every mode and number of threads that was measured."""
    found = []
    settings = list(dict.fromkeys((p["mode"], p["frames"], p["threads"]) for processes in measured for p in processes if p["mode"] != "overhead"))
    for mode, frames, threads in settings:
        for what, precision, mine, rivals in QUESTIONS:
            if mode != "step" and not what.startswith("best"):
                continue
            answers = [_answer([p for p in processes if (p["mode"], p["frames"], p["threads"]) == (mode, frames, threads)], mine, rivals) for processes in measured]
            answers = [answer for answer in answers if answer is not None]
            if not answers:
                continue
            values, tenths, names = zip(*answers, strict=True)
            best = max(set(names), key=names.count)
            found.append({"what": what, "precision": precision, "threads": threads, "mode": mode, "frames": frames, "ratio": statistics.median(values), "low": min(values), "high": max(values), "p10": statistics.median(tenths), "best": best})
    return found


def _is(precision: str, start: str = "") -> Callable[[Row], bool]:
    return lambda row: row["precision"] == precision and row["engine"].startswith(start)


def _framework(precision: str) -> Callable[[Row], bool]:
    return lambda row: row["precision"] == precision and not row["engine"].startswith("edgekit")


# (what ours is held against, our precision, ours, the others): the fastest of either side counts.
QUESTIONS: tuple[tuple[str, str, Callable[[Row], bool], Callable[[Row], bool]], ...] = (
    ("best framework", "fp32", _is("fp32", "edgekit"), _framework("fp32")),
    ("best framework, ours with four products", "fp32", _is("fp32", "edgekit, four"), _framework("fp32")),
    ("best framework", "bf16", _is("bf16", "edgekit"), _framework("bf16")),
    ("best framework", "int8", _is("int8", "edgekit"), _framework("int8")),
    ("best framework in fp32", "int8", _is("int8", "edgekit"), _framework("fp32")),
    ("torch eager", "int8", _is("int8", "edgekit"), _is("fp32", "torch eager")),
    ("torch eager as exported", "int8", _is("int8", "edgekit"), _is("fp32", "torch eager, as exported")),
    ("ONNX Runtime as exported", "fp32", _is("fp32", "edgekit"), _is("fp32", "ONNX Runtime, as exported")),
    ("OpenVINO as exported", "fp32", _is("fp32", "edgekit"), _is("fp32", "OpenVINO, as exported")),
)


def _answer(processes: Sequence[Row], mine: Callable[[Row], bool], rivals: Callable[[Row], bool]) -> tuple[float, float, str] | None:
    """(ratio of medians, of p10s, the rival's name) of one run, each rival held against ours in its own process; the hardest rival counts."""
    found = []
    for process in processes:
        ours = [row for row in process["engines"] if mine(row)]
        for rival in process["engines"] if ours else ():
            if rivals(rival):
                found.append((rival["median_us"] / min(row["median_us"] for row in ours), rival["p10_us"] / min(row["p10_us"] for row in ours), rival["engine"]))
    if not found:
        return None
    ratio, _, name = min(found)
    return ratio, min(tenth for _, tenth, _ in found), name


def _machine() -> dict[str, Any]:
    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    cpu = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("model name", "Model"))), "unknown")
    names = ("torch", "onnxruntime", "openvino", "nncf", "edgekit-native")
    return {"date": time.strftime("%Y-%m-%d"), "cpu": cpu, "cores": os.cpu_count(), "load_before": round(os.getloadavg()[0], 2), "versions": {name: installed(name) for name in names if installed(name)}}


# --------------------------------------------------------------------------- by hand


def main(arguments: Sequence[str] | None = None) -> None:
    import argparse

    from edgekit.bench import denoise_page
    from edgekit.recipe import load_recipe

    parser = argparse.ArgumentParser(prog="python -m edgekit.bench.denoise", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", nargs="?", help="a recipe that was built before")
    parser.add_argument("--render", type=Path, help="a result to show in place of measuring")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a few calls of everything: to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--docs", type=Path, help="a folder whose performance.md and figures/ get the result")
    args = parser.parse_args(arguments)
    if (args.recipe is None) == (args.render is None):
        parser.error("a recipe, or --render with a result")
    try:
        if args.render is None:
            result = run(load_recipe(args.recipe), args.threads, args.runs, QUICK if args.quick else Effort(), args.out)
        else:
            result = json.loads(args.render.read_text())
        if args.docs is not None:
            publish(result, args.docs)
    except EdgekitError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    print(denoise_page.tables(result), end="")


def publish(result: Mapping[str, Any], docs: Path) -> None:
    """Write a result into docs: performance.md's tables, the figure, and the numbers themselves."""
    from edgekit.bench import denoise_page

    denoise_page.embed(result, docs / "performance.md")
    denoise_page.plot(result, docs / "figures" / "dccrn_speed.svg")
    (docs / "figures" / "dccrn_speed.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""One window through a recipe's artifact, against the same network in the frameworks a user would try first.

Every chain runs the whole flow (all engines as often as a window needs them) on equal inputs. The
values do not matter for speed, so with `--random-weights` any configuration can be timed without a
trained checkpoint; accuracy is never taken here.
"""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import backends, models
from edgekit.build import run_stages
from edgekit.cache import Cache
from edgekit.errors import TargetError
from edgekit.float_model import FloatModel, torch_session
from edgekit.flow import run_flow
from edgekit.formats import read_json
from edgekit.progress import note
from edgekit.recipe import Recipe
from edgekit.target import load_target
from edgekit.timing import interleaved

STAGES = ("load", "prune", "calibrate", "quantize", "export")
NNCF_SAMPLES = 32

Row = dict[str, Any]
Chain = Mapping[str, Any]  # {engine: session}


def run(recipe: Recipe, threads: int = 2, runs: int = 5) -> list[Row]:
    """Rows {engine, precision, threads, median_us, p10_us, roofline_share, ratio}; ratio: times as fast as the first row.

    Args:
        threads: of all chains.
        runs: of each chain, in turn.

    Raises:
        TargetError: the recipe's artifact does not run on this machine.
    """
    target = load_target(recipe.target, recipe.dir).spec()
    backend = backends.get(target["backend"])
    if not backend.EXECUTES:
        raise TargetError(f"{target['name']}: what {target['backend']} makes does not run on this machine", "bench a recipe for OpenVINO, ONNX Runtime or TFLite")
    with Cache(recipe.cache_root) as cache, tempfile.TemporaryDirectory() as work:
        done, _ = run_stages(recipe, cache, only=STAGES)
        dirs = {name: entry.out for name, entry in done.items()}
        chains = _chains(backend, target, dirs, Path(work), threads)
        flow = read_json(dirs["prune"] / "flow.json")
        macs = {name: FloatModel.open(dirs[stage]).meta["macs"] for name, stage in (("unpruned", "load"), ("pruned", "prune"))}
        rng = np.random.default_rng(0)
        inputs = {name: rng.standard_normal(want["shape"]).astype(np.float32) for name, want in flow["inputs"].items()}
        seconds = interleaved({name: partial(run_flow, flow, chain, inputs) for (name, _, _), chain in chains.items()}, runs)
        peaks = probe(threads)
    micros = {name: [1e6 * s for s in values] for name, values in seconds.items()}
    first = statistics.median(next(iter(micros.values())))
    rows = []
    for (name, precision, size), _ in chains.items():
        median, peak = statistics.median(micros[name]), peaks.get(precision)
        share = None if peak is None else macs[size] / (median * 1e-6) / peak
        rows.append({"engine": name, "precision": precision, "threads": threads, "median_us": median, "p10_us": float(np.percentile(micros[name], 10)), "roofline_share": share, "ratio": first / median})
    return rows


def _chains(backend: Any, target: Row, dirs: Mapping[str, Path], work: Path, threads: int) -> dict[tuple[str, str, str], Chain]:
    """{(name, precision, unpruned or pruned): sessions}, what is measured against each other."""
    import torch

    from edgekit.backends import onnxruntime

    torch.set_num_threads(threads)
    original = FloatModel.open(dirs["load"])
    kind = target["backend"]
    names = [engine.name for engine in original.engines()]
    onnx = {("pruned", name): dirs["calibrate"] / "engines" / name / "float.onnx" for name in names}
    for name in names:
        onnx["unpruned", name] = work / "unpruned" / f"{name}.onnx"
        original.export(name, onnx["unpruned", name])
    chains: dict[tuple[str, str, str], Chain] = {
        ("torch eager, unpruned", "fp32", "unpruned"): {engine.name: torch_session(engine) for engine in original.engines()},
        ("onnxruntime, unpruned", "fp32", "unpruned"): {name: onnxruntime.simulate(onnx["unpruned", name], threads) for name in names},
    }
    if kind == "openvino":
        onnx = {(size, name): _readable(path, work / "readable" / size / f"{name}.onnx", target) for (size, name), path in onnx.items()}
    for size in ("unpruned", "pruned"):
        kit = backends.Kit(tuple(backends.EngineKit(name, onnx[size, name], onnx[size, name]) for name in names), target, dirs["prune"])
        if kind != "tflite":  # whose own form needs the target's rewrites: quantize made it, for the pruned net
            backend.compile(kit, work / f"{size}-{kind}")
            chains[f"{kind}, {size}", "fp32", size] = _open(backend.open, work / f"{size}-{kind}", names, target, threads)
    if kind == "tflite":
        chains["tflite, pruned", "fp32", "pruned"] = _open(backend.open, dirs["export"] / "float", names, target, threads)
    if kind == "openvino" and importlib.util.find_spec("nncf") is None:
        note("nncf is not installed, its rows are left out: pip install 'edgekit[bench]'")
    elif kind == "openvino":
        for size in ("unpruned", "pruned"):
            chains[f"nncf.quantize, {size}", "int8", size] = {name: _nncf(onnx[size, name], threads) for name in names}
    chains["edgekit, pruned", "int8", "pruned"] = _open(backend.open, dirs["export"], names, target, threads)
    if kind == "openvino":  # what is not on integers in bfloat16, where the CPU has it
        hinted = {**target, "device": {**target["device"], "precision_hint": "bf16"}}
        chains["edgekit, pruned, rest in bf16", "int8", "pruned"] = _open(backend.open_deployed, dirs["export"], names, hinted, threads)
    return chains


def _readable(path: Path, to: Path, target: Row) -> Path:
    """The graph without the Gathers that OpenVINO computes wrongly, in the form that public code has: a wrong answer is no competitor."""
    from edgekit import graph, rewrites

    model = graph.load(path)
    if "gather_to_shuffle" not in target.get("rewrites", []) or not rewrites.apply(model, "gather_to_shuffle"):
        return path
    graph.save(model, to)
    return to


def _open(opener: Any, folder: Path, names: Iterable[str], target: Row, threads: int) -> Chain:
    return {name: opener(folder / "engines" / name, target, threads) for name in names}


def _nncf(path: Path, threads: int) -> Any:
    """The graph as plain `nncf.quantize` makes it, on inputs of noise: only its speed is looked at."""
    import logging

    from edgekit.backends.openvino import configuration, runtime

    ov = runtime()
    import nncf  # after OpenVINO, which it would import with its telemetry on

    logging.getLogger("nncf").setLevel(logging.ERROR)
    note(f"nncf.quantize {path.stem}")
    core = ov.Core()
    model = core.read_model(path)
    rng = np.random.default_rng(0)
    feeds = [{port.any_name: rng.standard_normal(tuple(port.shape)).astype(np.float32) for port in model.inputs} for _ in range(NNCF_SAMPLES)]
    request = core.compile_model(nncf.quantize(model, nncf.Dataset(feeds), subset_size=NNCF_SAMPLES), "CPU", configuration("f32", threads)).create_infer_request()
    outputs = [port.any_name for port in model.outputs]

    def call(fed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = request.infer(dict(fed))
        return {name: np.array(value) for name, value in zip(outputs, results.values(), strict=True)}

    return call


def probe(threads: int, size: int = 1024, runs: int = 20) -> dict[str, float]:
    """Multiply-accumulates per second that this machine reaches on one square matrix product: {precision: MAC/s}.

    Through OpenVINO where it is installed (fp32 and int8), else numpy's fp32.
    """
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((size, size)).astype(np.float32) for _ in range(2))
    from edgekit.backends.openvino import configuration, runtime, versions

    if versions({})["openvino"] is None:
        return {"fp32": size**3 / min(interleaved({"fp32": lambda: a @ b}, runs)["fp32"])}
    ov = runtime()
    from openvino import opset13 as ops

    def rounded(x: Any, low: float, high: float, levels: int) -> Any:
        limits = [ops.constant(np.float32(v)) for v in (low, high, low, high)]
        return ops.fake_quantize(x, *limits, levels)

    requests = {}
    for precision in ("fp32", "int8"):
        x = ops.parameter([size, size], np.float32, "x")
        left, right = (rounded(x, -4.0, 4.0, 256), rounded(ops.constant(b), -5.0, 5.0, 255)) if precision == "int8" else (x, ops.constant(b))
        model = ov.Model([ops.matmul(left, right, False, False)], [x])
        requests[precision] = ov.Core().compile_model(model, "CPU", configuration("f32", threads)).create_infer_request()
    seconds = interleaved({precision: partial(request.infer, [a]) for precision, request in requests.items()}, runs)
    return {precision: size**3 / min(times) for precision, times in seconds.items()}


def random_checkpoint(model: str, config: str, folder: Path) -> Path:
    """A checkpoint of seeded random weights, for speed only; made once."""
    import torch
    from safetensors.torch import save_file

    path = folder / f"random-{model}-{config}.safetensors"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        definition = models.get(model)
        module = definition.fold(definition.build(models.config(model, config))).eval()
        part = path.with_suffix(".part")
        save_file({key: value.contiguous().clone() for key, value in module.state_dict().items()}, part)
        part.rename(path)
    return path

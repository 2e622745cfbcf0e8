"""A made-up data set and hand-made stage directories, so that stages can be tested without the ones before them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from edgekit.datasets import Clip
from edgekit.formats import write_json
from edgekit.stages import Job
from edgekit.target import load_target

TARGET = load_target("jetson_xavier", Path(__file__).parents[2]).spec()
FLOW = {
    "inputs": {"video": {"shape": [2, 3, 4, 8, 8], "dtype": "float32"}, "wave": {"shape": [400], "dtype": "float32"}},
    "steps": [
        {"engine": "eye", "each": {"clip": "video"}, "stack": {"feature": "features"}},
        {"engine": "head", "feed": {"features": "features", "wave": "wave"}, "give": {"o": "o", "v": "v"}},
    ],
    "outputs": ["o", "v"],
    "primary": "o",
    "rates_hz": {"eye": 2.0, "head": 1.0},
    "states": {"head": [{"in": "h_in", "out": "h_out", "shape": [1, 4], "init": 0.0}]},
}
PREPROCESS = {
    "video": {"clips": 2, "frames_per_clip": 4, "height": 8, "width": 8, "color": "RGB", "layout": "KCTHW", "resize": "bilinear_half_pixel",
              "sampling": "uniform_round_linspace", "mean": [127.0, 127.0, 127.0], "std": [64.0, 64.0, 64.0]},
    "audio": {"sample_rate_hz": 16000, "samples": 400, "scale": 32768.0, "normalize": "zero_mean_unit_variance", "eps": 1e-7, "pad": "right_zero_after_normalize"},
}  # fmt: skip


class MadeUp:
    """Clips of noise whose labels the brightness gives away."""

    name, source = "made_up", Path("calibration/made_up.yaml")
    metrics: tuple[str, ...] = ("mae", "f1", "corr")

    def __init__(self, n: int = 24, seed: int = 0):
        self.ids = [f"clip-{i:03d}" for i in range(n)]
        self.seed = seed

    def clip(self, id: str) -> Clip:
        i = self.ids.index(id)
        rng = np.random.default_rng([self.seed, i])
        label = float(rng.uniform(-1, 1))
        frames = np.clip(rng.normal(127 + 60 * label, 30, (9, 12, 10, 3)), 0, 255).astype(np.uint8)
        audio = rng.integers(-9000, 9000, 500).astype(np.int16)
        return Clip(id, frames, 10.0, audio, 16000, {"o": label, "v": -label}, {"snr_db": float(rng.uniform(-5, 20)), "voice": f"f{i % 2}", "sentence": f"s {i}"})

    def digest(self) -> str:
        return hashlib.sha256(f"{self.seed} {len(self.ids)}".encode()).hexdigest()


def job(tmp_path: Path, name: str, spec: dict, inputs: dict[str, Path], files: dict) -> Job:
    folder = tmp_path / f"job-{name}"
    (folder / "out").mkdir(parents=True)
    (folder / "scratch").mkdir()
    return Job(spec, inputs, files, folder / "out", folder / "scratch", tmp_path / ".edgekit")


def graphs(noise: float, seed: int = 1) -> dict[str, object]:
    """{engine: ONNX model} of FLOW's two engines; `noise` is what quantization does to the weights."""
    from onnx import TensorProto, checker, helper, numpy_helper

    rng = np.random.default_rng(seed)
    weights = {"eye.w": np.full((3, 4), 0.08, np.float32), "head.w": np.float32([[1.0, -0.9]] * 4) / 2, "head.r": np.full((4, 2), 0.01, np.float32)}
    weights = {k: (w + noise * rng.normal(size=w.shape)).astype(np.float32) for k, w in weights.items()}
    constants = [numpy_helper.from_array(w, k) for k, w in weights.items()]

    def value(name: str, *shape: int) -> object:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    def model(nodes: list, inputs: list, outputs: list, used: tuple[str, ...]) -> object:
        graph = helper.make_graph(nodes, "g", inputs, outputs, [c for c in constants if c.name in used])
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        checker.check_model(made, full_check=True)
        return made

    node = helper.make_node
    eye = model(
        [node("ReduceMean", ["clip"], ["m"], "mean", axes=[2, 3, 4], keepdims=0), node("MatMul", ["m", "eye.w"], ["feature"], "eye/fc")],
        [value("clip", 1, 3, 4, 8, 8)], [value("feature", 1, 4)], ("eye.w",),
    )  # fmt: skip
    head = model(
        [
            node("ReduceMean", ["features"], ["f"], "time", axes=[1], keepdims=0),
            node("ReduceMean", ["wave"], ["level"], "level", axes=[1], keepdims=1),
            node("Add", ["f", "level"], ["heard"], "hear"),
            node("Add", ["h_in", "heard"], ["h_out"], "step"),
            node("MatMul", ["h_out", "head.w"], ["y1"], "head/fc"),
            node("MatMul", ["heard", "head.r"], ["y2"], "head/skip"),
            node("Add", ["y1", "y2"], ["y"], "sum"),
            node("Split", ["y"], ["o2", "v2"], "split", axis=1),
            node("Squeeze", ["o2", "one"], ["o"], "so"),
            node("Squeeze", ["v2", "one"], ["v"], "sv"),
        ],
        [value("features", 1, 2, 4), value("wave", 1, 400), value("h_in", 1, 4)], [value("o", 1), value("v", 1), value("h_out", 1, 4)], ("head.w", "head.r", "one"),
    ) if constants.append(numpy_helper.from_array(np.int64([1]), "one")) is None else None  # fmt: skip
    return {"eye": eye, "head": head}


def stage_dirs(tmp_path: Path, data: MadeUp, noise: float = 0.002, pruned_noise: float = 0.001) -> dict[str, Path]:
    """Directories of prune, reference, quantize and export as those stages leave them, for FLOW's engines."""
    import onnx
    from safetensors.numpy import save_file

    from edgekit.backends import onnxruntime
    from edgekit.flow import run_flow
    from edgekit.preprocess import preprocess

    dirs = {name: tmp_path / name for name in ("prune", "reference", "quantize", "export")}
    for path in dirs.values():
        path.mkdir()
    for kind, amount in (("original", 0.0), ("float", pruned_noise), ("qdq", noise)):
        for engine, model in graphs(amount).items():
            path = dirs["quantize"] / "engines" / engine / f"{kind}.onnx"
            path.parent.mkdir(parents=True, exist_ok=True)
            onnx.save(model, path)

    rows: dict[str, list] = {}
    golden, described = {}, []
    for id in data.ids:
        clip = data.clip(id)
        inputs = preprocess(PREPROCESS, clip)
        for row, kind in (("original", "original"), ("pruned", "float")):
            sessions = {engine: onnxruntime.simulate(dirs["quantize"] / "engines" / engine / f"{kind}.onnx") for engine in ("eye", "head")}
            outputs = run_flow(FLOW, sessions, inputs)
            for name, value in outputs.items():
                rows.setdefault(f"{row}/{name}", []).append(value)
        for name in FLOW["outputs"]:
            rows.setdefault(f"label/{name}", []).append(clip.labels[name])
        if len(described) < 2:
            golden |= {f"{id}/raw/frames": clip.frames, f"{id}/raw/audio": clip.audio}
            golden |= {f"{id}/input/{name}": value for name, value in inputs.items()} | {f"{id}/output/{name}": np.asarray(v) for name, v in outputs.items()}
            described.append({"id": id, "derived_from": None, "how": "as recorded", "fps": 10.0, "sample_rate_hz": 16000, "labels": clip.labels, "tags": clip.tags,
                              "raw": {"frames": list(clip.frames.shape), "audio": list(clip.audio.shape)}})  # fmt: skip
    for kind in ("eye", "head"):
        (dirs["quantize"] / "engines" / kind / "original.onnx").unlink()

    save_file({k: np.asarray(v, np.float32) for k, v in rows.items()}, dirs["reference"] / "predictions.safetensors")
    save_file(golden, dirs["reference"] / "golden.safetensors")
    size = {"parameters": 30, "macs": 50, "bytes": 120}
    write_json(dirs["reference"] / "reference.json", {
        "data": {"name": "made_up", "split": "test", "clips": len(data.ids), "sha256": data.digest(), "licence": None},
        "ids": data.ids, "tags": [data.clip(i).tags for i in data.ids], "primary": "o", "outputs": ["o", "v"], "is_pruned": True,
        "metrics": {}, "models": {"float": size, "pruned": {**size, "parameters": 20, "macs": 35}}, "golden": described,
    })  # fmt: skip

    for engine in ("eye", "head"):
        folder = dirs["export"] / "engines" / engine
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes((dirs["quantize"] / "engines" / engine / "float.onnx").read_bytes())
        (folder / "calibration.cache").write_text("TRT-8502-EntropyCalibration2\nm: 3c010204\n")
    (dirs["export"] / "engines.txt").write_text("".join(f"{engine}\t--fp16\t--workspace\t64\n" for engine in ("eye", "head")))
    write_json(dirs["export"] / "flow.json", FLOW)
    write_json(dirs["export"] / "preprocess.json", PREPROCESS)
    tensor = lambda name, *shape: {"name": name, "shape": [1, *shape], "dtype": "float32", "unit": "feature"}  # noqa: E731
    write_json(dirs["export"] / "io.json", {"engines": {
        "eye": {"inputs": [tensor("clip", 3, 4, 8, 8)], "outputs": [tensor("feature", 4)]},
        "head": {"inputs": [tensor("features", 2, 4), tensor("wave", 400)], "outputs": [tensor("o"), tensor("v")]},
    }})  # fmt: skip
    layer = {"runs_per_window": 1, "reason": None}
    write_json(dirs["export"] / "build.json", {"engines": {}})
    write_json(dirs["export"] / "coverage.json", {"grade": "declared", "macs": 40, "int8_macs": 0.8, "layers": [
        {**layer, "engine": "eye", "node": "eye/fc", "op": "MatMul", "macs": 12, "runs_per_window": 2, "precision": "int8"},
        {**layer, "engine": "head", "node": "head/fc", "op": "MatMul", "macs": 8, "precision": "int8"},
        {**layer, "engine": "head", "node": "head/skip", "op": "Gemm", "macs": 8, "precision": "fp16", "reason": "not an INT8 layer"},
    ]})  # fmt: skip
    write_json(dirs["prune"] / "model.json", {"model": "toy", "config_name": "tiny", "pruned": True, "parameters": 20, "macs": 35,
                                              "provenance": {"checkpoint_sha256": "ab" * 32, "training": {"licence": "CC0-1.0"}}})  # fmt: skip
    return dirs

"""ek_trt and run_bundle compiled for tests: with engines that compute on the CPU, so that no TensorRT is needed."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

NATIVE = Path(__file__).parents[2] / "native"
TOOL = NATIVE / "tools" / "ek_trt"
TOYS = NATIVE / "tests" / "trt"
FLAGS = ("-std=c++17", "-O0", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wno-deprecated-declarations", f"-I{TOOL}")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")

AROUND = [TOOL / f"{name}.cpp" for name in ("files", "json", "npy", "lists", "compare", "spectrum", "flow", "clips", "clocks", "run")]
TOY = [TOYS / "toy_engine.cpp", TOYS / "toy_build.cpp"]
PROGRAMS = {
    "ek_trt": [TOOL / "main.cpp", *AROUND, *TOY],
    "run_bundle": [NATIVE / "examples" / "run_bundle.cpp", *AROUND, TOYS / "toy_engine.cpp"],
    "probe": [TOYS / "probe.cpp", *AROUND, TOYS / "toy_engine.cpp"],
}


def compile_programs(folder: Path, programs: Mapping[str, Sequence[Path]], flags: Sequence[str], link: Sequence[str] = ()) -> Path:
    """folder/<program>, up to date; skips the test without a compiler."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    folder.mkdir(parents=True, exist_ok=True)
    headers = max(p.stat().st_mtime for p in [*TOOL.glob("*.h"), *TOYS.glob("*.h"), Path(__file__)])
    with (folder / ".lock").open("w") as lock:  # two test runs may want it at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        running: list[tuple[subprocess.Popen, Path]] = []
        for source in dict.fromkeys(s for sources in programs.values() for s in sources):
            made = folder / f"{source.stem}.o"
            if made.exists() and made.stat().st_mtime > max(headers, source.stat().st_mtime):
                continue
            if len(running) == 2:
                _finish(*running.pop(0))
            running.append((subprocess.Popen(["g++", *flags, "-c", "-o", made.with_suffix(".part"), source], stderr=subprocess.PIPE, text=True), made))
        for job in running:
            _finish(*job)
        for name, sources in programs.items():
            objects = [folder / f"{s.stem}.o" for s in sources]
            if not (folder / name).exists() or (folder / name).stat().st_mtime < max(o.stat().st_mtime for o in objects):
                done = subprocess.run(["g++", *(f for f in flags if f.startswith("-fsanitize")), "-o", folder / name, *objects, *link, "-pthread"], capture_output=True, text=True)
                assert done.returncode == 0, done.stderr
    return folder


def _finish(compiler: subprocess.Popen, made: Path) -> None:
    errors = compiler.communicate()[1]
    assert compiler.returncode == 0, errors
    os.replace(made.with_suffix(".part"), made)


def toys() -> Path:
    """The folder with ek_trt, run_bundle and probe on toy engines, under AddressSanitizer and UBSan."""
    return compile_programs(NATIVE / "build" / "trt_toys", PROGRAMS, (*FLAGS, *SANITIZERS))


def run(*command: object, **options) -> subprocess.CompletedProcess:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300, **options)


# --------------------------------------------------------------------------- toy engines


class ToyEngine:
    """What toy_engine.cpp computes, and the file that says so."""

    def __init__(self, inputs: Mapping[str, Sequence[int]], outputs: Mapping[str, Sequence[int]], milliseconds: Sequence[float] = ()):
        """Shapes with batch 1. An output's salt is its place, so no two outputs are the same."""
        self.inputs, self.outputs, self.milliseconds = dict(inputs), dict(outputs), list(milliseconds)

    def write(self, path: Path) -> None:
        lines = ["toy", *(f"input\t{n}\t{','.join(map(str, s))}" for n, s in self.inputs.items())]
        lines += [f"output\t{n}\t{','.join(map(str, s))}\t{0.1 * i}" for i, (n, s) in enumerate(self.outputs.items())]
        if self.milliseconds:
            lines.append("milliseconds\t" + ",".join(map(str, self.milliseconds)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert {n: list(np.shape(v)) for n, v in feeds.items()} == {n: list(s) for n, s in self.inputs.items()}
        total = 0.0
        for count, name in enumerate(sorted(feeds), start=1):
            x = np.asarray(feeds[name], np.float64).reshape(-1)
            total += count * (x * (1 + np.arange(x.size) % 7)).mean()
        return {n: np.tanh(total / 4 + np.arange(np.prod(s, dtype=int)) / 100 + 0.1 * i).astype(np.float32).reshape(s) for i, (n, s) in enumerate(self.outputs.items())}


def save_clip(folder: Path, tensors: Mapping[str, np.ndarray]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in tensors.items():
        np.save(folder / f"{name}.npy", value)


def load_clip(folder: Path) -> dict[str, np.ndarray]:
    return {p.stem: np.load(p, allow_pickle=False) for p in folder.glob("*.npy")}


# --------------------------------------------------------------------------- flows


def flow_text(flow: Mapping) -> str:
    """flow.json's content as the lines that `ek_trt run --flow` reads."""
    lines = [f"input\t{n}\t{','.join(map(str, w['shape']))}" for n, w in flow["inputs"].items()]
    host = {step["step"]: step for step in flow.get("host_steps", [])}

    def sizes(step: Mapping) -> str:
        return "\t".join(str(step.get(key, 0)) for key in ("win_length", "hop_length", "n_fft", "delay", "chunk"))

    if stft := host.get("stft"):
        lines.append(f"stft\t{stft['from']}\t{stft['give']}\t{sizes(stft)}")
    for step in flow["steps"]:
        lines.append(f"step\t{step['engine']}")
        lines += [f"{kind}\t{port}\t{tensor}" for kind in ("feed", "each", "stack", "give") for port, tensor in step.get(kind, {}).items()]
        lines += [f"state\t{pair['in']}\t{pair['out']}\t{pair['init']}" for pair in flow["states"].get(step["engine"], [])]
    if istft := host.get("masked_istft"):
        lines.append(f"masked_istft\t{istft['spectrum']}\t{istft['masks']}\t{istft['give']}\t{sizes(istft)}\t{istft['mask']}\t{istft['samples']}")
    lines += [f"output\t{name}" for name in flow["outputs"]]
    return "\n".join(lines) + "\n"


# MHLT's flow.json, with small tensors: one engine over clips, one once, and a third on both.
MHLT = {
    "inputs": {"video": {"dtype": "float32", "shape": [4, 3, 2, 5, 5]}, "wave": {"dtype": "float32", "shape": [48]}},
    "outputs": ["o", "a", "v"],
    "primary": "o",
    "states": {},
    "steps": [
        {"each": {"clip": "video"}, "engine": "clip_encoder", "stack": {"clip_feature": "clip_features"}},
        {"engine": "audio_encoder", "feed": {"wave": "wave"}, "give": {"audio_features": "audio_features"}},
        {"engine": "head", "feed": {"audio_features": "audio_features", "clip_features": "clip_features"}, "give": {"a": "a", "o": "o", "v": "v"}},
    ],
    "host_steps": [
        {"spec": "preprocess.json", "step": "preprocess"},
        {"count": 3, "step": "keep", "tensor": "clip_feature", "why": "sliding window: only the new clip is encoded"},
        {"high": 0.15, "low": -0.15, "outputs": ["o", "a", "v"], "step": "clamp", "why": "metrics clamp"},
    ],
}
MHLT_ENGINES = {
    "clip_encoder": ToyEngine({"clip": [1, 3, 2, 5, 5]}, {"clip_feature": [1, 6]}, [5, 3, 9, 1]),
    "audio_encoder": ToyEngine({"wave": [1, 48]}, {"audio_features": [1, 7, 2]}),
    "head": ToyEngine({"clip_features": [1, 4, 6], "audio_features": [1, 7, 2]}, {"o": [1], "a": [1], "v": [1]}),
}


def denoiser(chunk: int = 0, mask: str = "E") -> tuple[dict, dict[str, ToyEngine]]:
    """DCCRN's flow.json, small: a transform, an engine with states frame by frame, and the transform back."""
    win, hop, n_fft, delay, samples = 20, 5, 32, 2, 203
    frames = (samples + 2 * (win - hop) - win) // hop + 1 + delay
    runs = -(-frames // chunk) if chunk else frames
    piece = [2, n_fft // 2, chunk] if chunk else [2, n_fft // 2]
    sizes = {"win_length": win, "hop_length": hop, "n_fft": n_fft, "delay": delay, **({"chunk": chunk} if chunk else {})}
    flow = {
        "inputs": {"wave": {"dtype": "float32", "shape": [samples]}},
        "outputs": ["speech"],
        "primary": "speech",
        "states": {"denoiser": [{"in": "h_in", "out": "h_out", "init": 0.25, "shape": [1, 3]}, {"in": "c_in", "out": "c_out", "init": 0.0, "shape": [1, 2, 2]}]},
        "steps": [{"each": {"frame": "spectrum"}, "engine": "denoiser", "runs": runs, "stack": {"mask": "masks"}}],
        "host_steps": [
            {"step": "stft", "from": "wave", "give": "spectrum", **sizes},
            {"step": "masked_istft", "spectrum": "spectrum", "masks": "masks", "give": "speech", "mask": mask, "samples": samples, **sizes},
        ],
    }
    engine = ToyEngine({"frame": [1, *piece], "h_in": [1, 3], "c_in": [1, 2, 2]}, {"mask": [1, *piece], "h_out": [1, 3], "c_out": [1, 2, 2]})
    return flow, {"denoiser": engine}


def write_engines(folder: Path, engines: Mapping[str, ToyEngine]) -> Path:
    for name, engine in engines.items():
        engine.write(folder / name / "model.engine")
    return folder


def random_inputs(flow: Mapping, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.standard_normal(w["shape"]).astype(np.float32) for n, w in flow["inputs"].items()}


Session = Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]]

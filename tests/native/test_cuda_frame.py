"""The CUDA frame step without a GPU: its own tests in C++, and a weight file through the very nodes that a GPU would run, against torch."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgekit import native_format

NATIVE = Path(__file__).parents[2] / "native"
CUDA = NATIVE / "cuda"
READER = [NATIVE / "stream/file.cpp", NATIVE / "core/status.cpp"]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Compiles one of native/cuda/tests, once."""
    folder = tmp_path_factory.mktemp("cuda")

    def build(name: str) -> Path:
        out = folder / name
        if not out.exists():
            sources = [CUDA / "tests" / f"{name}.cpp", CUDA / "plan.cpp", *([CUDA / "load.cpp", *READER] if name == "from_file" else [])]
            options = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-I", NATIVE, "-I", NATIVE / "include"]
            done = subprocess.run(["g++", *options, *sources, "-o", out], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        return out

    return build


@pytest.mark.parametrize("name", ["indexing", "frame"])
def test_in_cpp(program, name):
    done = subprocess.run([program(name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("all checks passed\n")


def stream(program, folder: Path, model: native_format.SpeechModel, spectra: np.ndarray, precision: str, processors: int) -> tuple[np.ndarray, dict]:
    """spectra [frames, streams, 2, bins] → masks of the same shape, and what the program counted."""
    native_format.write(model, folder / "model.ekd")
    np.ascontiguousarray(spectra, np.float32).tofile(folder / "spectra")
    command = [program("from_file"), folder / "model.ekd", folder / "spectra", folder / "masks", spectra.shape[1], precision, processors]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.fromfile(folder / "masks", np.float32).reshape(spectra.shape), json.loads(done.stdout)


@pytest.mark.parametrize(
    ("config", "precision", "streams", "processors"),
    [("tiny", "fp32", 3, 8), ("tiny_causal", "fp32", 1, 132), ("tiny", "fp16", 2, 132), ("half", "fp32", 1, 8)],
)
def test_a_streamed_weight_file_equals_torch(program, tmp_path, config, precision, streams, processors):
    torch = pytest.importorskip("torch")
    from edgekit.models import dccrn

    cfg = dccrn.CONFIGS[config]
    torch.manual_seed(3)
    module = dccrn.build(cfg).eval()
    for part in module.modules():  # batch norm that does something
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(part.weight, 1, 0.2)
            torch.nn.init.normal_(part.bias, 0, 0.1)
    state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    model = native_format.from_state(state, n_fft=cfg.n_fft, win_length=cfg.win_length, hop_length=cfg.hop_length, look_ahead=cfg.look_ahead)

    frames, bins = 12, cfg.n_fft // 2
    clips = torch.randn(streams, 2, bins, frames)
    with torch.no_grad():
        want = module.mask(clips).numpy()
    spectra = torch.cat([clips, torch.randn(streams, 2, bins, cfg.delay)], -1).permute(3, 0, 1, 2).numpy()
    got, counted = stream(program, tmp_path, model, spectra, precision, processors)
    assert counted == {"nodes": 2 + 2 * len(cfg.channels) + cfg.rnn_layers, "frames": frames + cfg.delay, "bad_values": 0}
    # A mask comes `delay` frames late. The last ones look ahead at what torch takes as zeros, so they are not compared here (frame.cpp does).
    got, want = got[cfg.delay : frames].transpose(1, 2, 3, 0), want[..., : frames - cfg.delay]
    allowed = {"fp32": 1e-5, "fp16": 1e-2}[precision] * np.abs(want).max()  # some tens of roundings of 2^-24 and of 2^-11
    worst = np.abs(got - want).max()
    assert worst <= allowed


def test_a_damaged_file_is_refused_with_a_sentence(program, tmp_path):
    (tmp_path / "spectra").write_bytes(b"")
    (tmp_path / "model.ekd").write_bytes(bytes(64))
    command = [program("from_file"), tmp_path / "model.ekd", tmp_path / "spectra", tmp_path / "masks", "1", "fp32", "8"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 1
    assert "weight file" in done.stderr

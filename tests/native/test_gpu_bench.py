"""The GPU benchmark, as far as it goes without one: its torch baseline is right, and it says in one sentence that there is no GPU."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "native/bench/gpu.py"


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu_bench", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("config", ["tiny", "tiny_causal"])
def test_the_baseline_step_streams_as_the_network_offline(gpu, config):
    module, cfg = gpu.random_module(config)
    bins, streams, frames = cfg.n_fft // 2, 3, 12
    clips = torch.randn(streams, 2, bins, frames)
    step = gpu.Step(gpu.graphs.network(module, bins), streams)
    with torch.no_grad():
        want = module.mask(clips)
        for _ in range(2):  # `zero` makes the second round equal the first
            step.zero()
            got = torch.stack([step(clips[..., t]).clone() for t in range(frames)], -1)
            worst = (got[..., cfg.delay :] - want[..., : frames - cfg.delay]).abs().max()
            assert worst <= 1e-5 * want.abs().max()  # some tens of roundings of 6e-8


def test_parity_is_of_the_error(gpu):
    want = np.full((1, 1, 2, 4), 2.0)
    assert gpu.parity(want + 0.02, want) == {"snr_db": 40.0, "max_abs": pytest.approx(0.02)}
    assert np.isnan(gpu.parity(want * np.nan, want)["max_abs"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_in_one_sentence():
    done = subprocess.run([sys.executable, SCRIPT, "--library", "none.so"], capture_output=True, text=True, cwd=SCRIPT.parents[2])
    assert done.returncode == 5
    assert done.stdout == ""
    assert done.stderr == "this benchmark needs an NVIDIA GPU that torch can use, and there is none here\n"

"""ek_trt runs a chain: what the host computes between engines is what edgekit.snr computes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from edgekit.backends.tensorrt.kit import flow_text
from edgekit.errors import EdgekitError
from edgekit.flow import run_flow

sys.path.insert(0, str(Path(__file__).parent))
from trt_toy import ToyEngine, denoiser, load_clip, random_inputs, run, save_clip, toys, write_engines


@pytest.fixture(scope="module")
def tool() -> Path:
    return toys() / "ek_trt"


def chain(**alpha: float) -> tuple[dict, dict[str, ToyEngine]]:
    """The flow of `mhlt_robust` with small tensors: a denoiser, what the host makes of its speech, an encoder and a head."""
    front, engines = denoiser(4)
    [stft, istft] = front["host_steps"]
    shape = {"at_knee": 0.3, "knee_db": 5.0, "full_db": 20.0, "floor": 0.0} | alpha
    engines |= {
        "audio_encoder": ToyEngine({"wave": [1, 203]}, {"features": [1, 6]}),
        "head": ToyEngine({"features": [1, 6], "alpha": [1]}, {"o": [1], "v": [1]}),
    }
    flow = {
        **front,
        "steps": [
            *front["steps"],
            {"engine": "audio_encoder", "feed": {"wave": "heard"}, "give": {"features": "features"}},
            {"engine": "head", "feed": {"features": "features", "alpha": "alpha"}, "give": {"o": "o_heard", "v": "v"}},
        ],
        "outputs": ["o", "v", "alpha", "snr_db", "heard"],
        "host_steps": [
            stft,
            istft,
            {"step": "match", "speech": "speech", "noisy": "wave", "give": "matched"},
            {"step": "snr", "speech": "matched", "noisy": "wave", "give": "snr_db", "low": -10.0, "high": 40.0, "ema": 0.9},
            {"step": "alpha", "snr_db": "snr_db", "give": "alpha", **shape},
            {"step": "blend", "share": "alpha", "of": "wave", "rest": "matched", "give": "mixed"},
            {"step": "normalize", "from": "mixed", "give": "heard", "eps": 1e-7},
            {"step": "blend", "share": "alpha", "of": "o_heard", "rest": "v", "give": "o"},
        ],
    }
    return flow, engines


def ran(tool: Path, folder: Path, text: str):
    (folder / "flow.txt").write_text(text)
    return run(tool, "run", "--flow", folder / "flow.txt", "--engines", folder / "engines", "--inputs", folder / "in", "--outputs", folder / "out", "--report", folder / "run.json")


@pytest.mark.parametrize("alpha", [{"floor": 0.2}, {"knee_db": -30.0, "full_db": 10.0}, {"knee_db": -60.0, "full_db": -50.0}])  # floor, slope, 1
def test_a_chain_gives_what_run_flow_gives(tool, tmp_path, alpha):
    flow, engines = chain(**alpha)
    write_engines(tmp_path / "engines", engines)
    inputs = random_inputs(flow, 3)
    save_clip(tmp_path / "in/clip", inputs)
    done = ran(tool, tmp_path, flow_text(flow))
    assert done.returncode == 0, done.stderr
    want, got = run_flow(flow, engines, inputs), load_clip(tmp_path / "out/clip")
    assert sorted(got) == sorted(flow["outputs"])
    for name in want:
        assert got[name].shape == want[name].shape
        np.testing.assert_allclose(got[name], want[name], rtol=2e-6, atol=5e-6)
    assert want["alpha"] == (pytest.approx(0.2) if "floor" in alpha else 1 if alpha["full_db"] < -10 else pytest.approx(want["alpha"]))


@pytest.mark.parametrize(
    "change, word",
    [
        (lambda text: text.replace("match\tspeech\twave\tmatched\n", ""), "asks for `heard`, which no earlier step gives"),
        (lambda text: text.replace("blend\talpha\to_heard\tv\to\n", "blend\talpha\to_heard\twave\to\n"), "takes tensors of one size"),
        (lambda text: text.replace("blend\talpha\to_heard\tv\to\n", "blend\twave\to_heard\tv\to\n"), "takes one number"),
        (lambda text: text.replace("\t0.3\t5\t20\t0", "\t0.3\t20\t20\t0"), "rises from one SNR to the same"),
        (lambda text: text.replace("normalize\tmixed\theard\t1e-07", "normalize\tmixed\theard"), "has 2 fields, expected 3"),
    ],
)
def test_a_chain_that_does_not_fit_is_refused_by_name(tool, tmp_path, change, word):
    flow, engines = chain()
    write_engines(tmp_path / "engines", engines)
    save_clip(tmp_path / "in/clip", random_inputs(flow, 3))
    text = flow_text(flow)
    assert change(text) != text
    done = ran(tool, tmp_path, change(text))
    assert done.returncode == 2 and word in done.stderr, done.stderr


def test_a_host_step_that_ek_trt_lacks_makes_no_kit():
    flow, _ = chain()
    flow["host_steps"].append({"step": "constant", "give": "one", "value": 1.0})
    with pytest.raises(EdgekitError, match="`constant` is not in ek_trt"):
        flow_text(flow)

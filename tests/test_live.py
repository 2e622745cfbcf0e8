"""A chain on streams answers as its windows do, with states carried and every clip encoded once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.errors import EdgekitError
from edgekit.float_model import torch_session
from edgekit.flow import run_flow
from edgekit.live import LiveChain, SpeechStream
from edgekit.models import dccrn, mhlt, mhlt_robust


def parts(definition, config):
    """(flow with states, sessions, how often each engine ran)."""
    torch.manual_seed(0)
    engines = definition.engines(definition.fold(definition.build(config)).eval(), config)
    flow = {**definition.flow(config), "states": {e.name: [s.to_json() for s in e.states] for e in engines if e.states}}
    runs: dict[str, int] = {}

    def counted(engine):
        session = torch_session(engine)

        def call(feeds):
            runs[engine.name] = runs.get(engine.name, 0) + 1
            return session(feeds)

        return call

    return flow, {engine.name: counted(engine) for engine in engines}, runs


@pytest.mark.parametrize("name", ["tiny", "tiny_causal", "tiny_chunk"])  # 3 frames late, none late, four frames at a time
def test_speech_in_pieces_is_the_speech_of_the_whole_wave(name):
    config = dccrn.CONFIGS[name]
    flow, sessions, _ = parts(dccrn, config)
    wave = np.random.default_rng(1).normal(0, 0.1, config.samples).astype(np.float32)
    whole = run_flow(flow, sessions, {"wave": wave})["speech"]
    stream = SpeechStream(flow, sessions["denoiser"])
    pieces = [stream.push(piece) for piece in np.split(wave, [1, 200, 201, 700, 1500])]
    got = np.concatenate(pieces)
    assert config.samples - flow["latency_samples"] <= len(got) < config.samples
    assert np.abs(got - whole[: len(got)]).max() < 1e-6 and np.abs(whole).max() > 1e-3


def test_a_reset_speech_stream_starts_anew():
    flow, sessions, _ = parts(dccrn, dccrn.CONFIGS["tiny"])
    wave = np.random.default_rng(1).normal(0, 0.1, 900).astype(np.float32)
    stream = SpeechStream(flow, sessions["denoiser"])
    first = stream.push(wave)
    assert not np.array_equal(stream.push(wave)[: len(first)], first)  # its states remember
    stream.reset()
    assert np.array_equal(stream.push(wave), first)


@pytest.mark.parametrize("name", ["tiny", "tiny_feature"])
def test_a_stream_is_answered_clip_by_clip(name):
    config = mhlt_robust.CONFIGS[name]
    flow, sessions, runs = parts(mhlt_robust, config)
    rng = np.random.default_rng(2)
    hop = config.mhlt.samples // config.mhlt.clips
    clips = rng.normal(0, 1, (5, *flow["inputs"]["video"]["shape"][1:])).astype(np.float32)
    wave = rng.normal(0, 0.1, 5 * hop).astype(np.float32)
    live = LiveChain(flow, sessions)
    answers = [live.push(clip, wave[k * hop : (k + 1) * hop]) for k, clip in enumerate(clips)]
    assert [answer is None for answer in answers] == [True, False, False, False, False]  # a window is two clips
    assert runs["clip_encoder"] == 5 and runs["head"] == runs["audio_encoder"] == 4
    # The last answer by hand: the denoiser's speech of the stream so far, the window that ends with it, and the average of all estimates.
    spoken = SpeechStream(flow, sessions["denoiser"]).push(wave)
    ends = [SpeechStream(flow, sessions["denoiser"]).push(wave[: (k + 1) * hop]).shape[0] for k in range(1, 5)]
    samples, memory = config.mhlt.samples, {}
    rest = {
        **flow,
        "inputs": {**flow["inputs"], "speech": {"shape": [samples], "dtype": "float32"}},
        "steps": [step for step in flow["steps"] if step["engine"] != "denoiser"],
        "host_steps": [step for step in flow["host_steps"] if step["step"] not in ("stft", "masked_istft")],
    }
    for k, end in enumerate(ends, start=1):
        before = np.zeros(max(0, samples - end), np.float32)
        window = {name: np.concatenate([before, w[max(0, end - samples) : end]]) for name, w in (("wave", wave), ("speech", spoken))}
        want = run_flow(rest, sessions, {"video": clips[k - 1 : k + 1], **window}, memory=memory)
        for output, value in want.items():
            assert np.abs(answers[k][output] - value).max() < 1e-5, (k, output)


def test_the_average_of_the_snr_outlives_a_window_and_not_a_stream():
    config = mhlt_robust.CONFIGS["tiny"]
    flow, sessions, _ = parts(mhlt_robust, config)
    rng = np.random.default_rng(3)
    video = rng.normal(0, 1, flow["inputs"]["video"]["shape"]).astype(np.float32)
    waves = [rng.normal(0, 0.1, config.mhlt.samples).astype(np.float32) for _ in range(2)]
    alone = [float(run_flow(flow, sessions, {"video": video, "wave": wave})["snr_db"]) for wave in waves]
    memory: dict = {}
    carried = [float(run_flow(flow, sessions, {"video": video, "wave": wave}, memory=memory)["snr_db"]) for wave in waves]
    assert carried[0] == alone[0] and carried[1] == pytest.approx(0.9 * alone[0] + 0.1 * alone[1], abs=1e-5) and alone[0] != alone[1]


def test_a_flow_without_a_denoiser_is_refused():
    flow, sessions, _ = parts(mhlt, mhlt.CONFIGS["tiny"])
    with pytest.raises(EdgekitError, match="no engine reads what the host step `stft` gives"):
        LiveChain(flow, sessions)

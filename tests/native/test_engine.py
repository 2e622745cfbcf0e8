"""The native engine against the same network in float64 (reference_engine.py), for every instruction set that runs here."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from edgekit import native_format
from edgekit.errors import CheckpointError, DataError, IntegrityError, TargetError, ToolMissing, UsageError

sys.path.insert(0, str(Path(__file__).parent))
from reference_engine import denoised, int8_mask, network_mask, quantized, random_model

ISAS = ("scalar", "avx2", "avx512", "neon", "neon_dotprod")
# Several million float32 sums of up to 12 000 terms each, on an output of about unit size.
MAX_ABS, MIN_SNR_DB = 1e-5, 110.0

SHAPES = {
    "odd": {},
    "gru": {"kind": "gru", "encoder": (17, 3, 5)},
    "causal": {"look_ahead": False},
    "mask_c": {"mask": "C", "encoder": (1, 2)},
    "mask_r": {"mask": "R"},
    "pruned": {"encoder": (4, 6, 15), "decoder": (9, 5, 3), "hidden": (9,)},
    "deep": {"encoder": (3, 4, 5, 4, 3, 5, 2), "hidden": (4, 3, 6), "n_fft": 512},
    "shallow": {"encoder": (2, 3), "hidden": (4,), "n_fft": 512},
    "many": {"encoder": (40, 33, 64), "hidden": (48, 16), "n_fft": 64},
    "quarter": {"encoder": (4, 8, 16, 32, 32, 32), "hidden": (32, 32), "n_fft": 512},
}
FULL = {"encoder": (16, 32, 64, 128, 128, 128), "hidden": (128, 128), "n_fft": 512}


def snr_db(want: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10(np.square(want).sum() / max(np.square(want - got).sum(), 1e-30)))


@cache
def case(name: str, frames: int = 20):
    """(float model, its spectrum [2, bins, frames], the reference's mask)."""
    model = random_model(7, **({**FULL, "kind": "gru"} if name == "full_gru" else FULL if name == "full" else SHAPES[name]))
    spectrum = np.random.default_rng(3).standard_normal((2, model.n_fft // 2, frames)).astype(np.float32)
    return model, spectrum, network_mask(model, spectrum)


def noise(n: int, seed: int = 5) -> np.ndarray:
    return (0.3 * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


def open_or_skip(native, data: bytes, isa: str, **options):
    try:
        return native.Denoiser(data, isa=isa, **options)
    except TargetError as error:
        pytest.skip(str(error))


def masks(denoiser, spectrum: np.ndarray, delay: int) -> np.ndarray:
    """Every frame through step(), those of no frame dropped."""
    return np.stack([denoiser.step(spectrum[:, :, t]) for t in range(spectrum.shape[2])], 2)[:, :, delay:]


def delay_of(model) -> int:
    return len(model.encoder) if model.look_ahead else 0


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("isa", ISAS)
def test_frames_and_clips_equal_the_float64_network(native, isa, name):
    model, spectrum, mask = case(name)
    want = mask[:, :, : spectrum.shape[2] - delay_of(model)]
    wave = noise(model.hop_length * 15 + 7)
    clip = denoised(model, wave)
    for algorithm in ("four_mult", "gauss", "fast"):
        if algorithm == "fast" and isa.startswith("neon"):
            continue
        denoiser = open_or_skip(native, native_format.to_bytes(model), isa, algorithm=algorithm)
        got = masks(denoiser, spectrum, delay_of(model))
        assert np.abs(got - want).max() <= MAX_ABS * max(1.0, np.sqrt(np.square(want).mean()))
        assert snr_db(want, got) >= MIN_SNR_DB
        assert snr_db(clip, denoiser.denoise(wave)) >= MIN_SNR_DB


@pytest.mark.parametrize("name", ["full", "full_gru"])
@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "scalar"])
def test_full_width_equals_the_float64_network(native, isa, name):
    model, spectrum, mask = case(name, 12)
    want = mask[:, :, : spectrum.shape[2] - delay_of(model)]
    denoiser = open_or_skip(native, native_format.to_bytes(model), isa)
    got = masks(denoiser, spectrum, delay_of(model))
    assert np.abs(got - want).max() <= MAX_ABS
    assert snr_db(want, got) >= MIN_SNR_DB
    assert denoiser.info["macs_per_frame"] == 53_329_920 or name == "full_gru"  # counted by hand: 17.12 + 1.97 + 34.24 million
    assert denoiser.latency_samples == 1000  # 62.5 ms: a window and six hops of look-ahead


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("algorithm", ["four_mult", "fast"])
def test_bf16_is_close_to_the_float64_network(native, isa, algorithm):
    if algorithm == "fast" and isa.startswith("neon"):
        pytest.skip("these kernels share no products between frames")
    model, spectrum, mask = case("quarter")
    denoiser = open_or_skip(native, native_format.to_bytes(model), isa, precision="bf16", algorithm=algorithm)
    # bf16 has 8 bits: about 48 dB after one rounding, and some dozen roundings stand in a row here; what changed between frames is rounded too.
    assert snr_db(mask[:, :, : -delay_of(model)], masks(denoiser, spectrum, delay_of(model))) >= (38 if algorithm == "four_mult" else 34)


@pytest.mark.parametrize("name", ["odd", "gru", "causal", "pruned", "deep", "shallow", "many", "quarter"])
@pytest.mark.parametrize("isa", ISAS)
def test_int8_is_the_integers_of_the_format(native, isa, name):
    model, spectrum, mask = case(name)
    model_int8 = quantized(model, spectrum, sums_fit=False)
    frames = spectrum.shape[2] - delay_of(model)
    want = int8_mask(model_int8, spectrum)[:, :, :frames]
    denoiser = open_or_skip(native, native_format.to_bytes(model_int8), isa)
    got = masks(denoiser, spectrum, delay_of(model))
    # Integers agree bit for bit; only the first layer's float sums and the gates may turn a rounding, about once in 1e5 numbers.
    assert (np.abs(got - want) > 1e-5).mean() < 0.05
    assert snr_db(want, got) >= 50
    assert snr_db(mask[:, :, :frames], got) >= 25


@pytest.mark.parametrize("name", ["odd", "gru", "causal", "pruned", "many", "quarter"])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2])
def test_int8_in_turns_is_the_plain_form_to_the_bit(native, isa, name, threads):
    model, spectrum, _ = case(name)
    data = native_format.to_bytes(quantized(model, spectrum))
    # Up and down, so that what changes between frames fits eight bits in some of them and not in others.
    loudness = np.geomspace(0.05, 4, 16)[np.random.default_rng(2).permutation(40) % 16]
    frames = np.random.default_rng(4).standard_normal((2, model.n_fft // 2, 40)) * loudness
    fast, plain = (open_or_skip(native, data, isa, algorithm=algorithm, threads=threads) for algorithm in ("fast", "four_mult"))
    assert fast.info["algorithm"] == "fast"
    np.testing.assert_array_equal(*(masks(denoiser, frames.astype(np.float32), 0) for denoiser in (fast, plain)))


def test_int8_weights_whose_sums_do_not_fit_are_not_taken_in_turns(native):
    model, spectrum, _ = case("odd")
    data = native_format.to_bytes(quantized(model, spectrum, sums_fit=False))
    assert native.Denoiser(data).info["algorithm"] == "four_mult"
    with pytest.raises(TargetError, match="do not add up within int8: build the file again"):
        native.Denoiser(data, isa="scalar", algorithm="fast")


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", ["odd", "causal", "gru"])
def test_a_stream_equals_the_whole_clip_in_any_chunks(native, name, threads):
    model, _, _ = case(name)
    denoiser = native.Denoiser(native_format.to_bytes(model), threads=threads)
    wave = noise(model.hop_length * 21 + 11)
    want = denoiser.denoise(wave)
    late = denoiser.latency_samples
    assert late == model.win_length + delay_of(model) * model.hop_length
    for chunk in (1, 5, model.hop_length, 3 * model.hop_length + 1, len(wave)):
        parts = [denoiser.process(wave[at : at + chunk]) for at in range(0, len(wave), chunk)]
        assert all(len(part) <= chunk for part in parts)
        got = np.concatenate([*parts, denoiser.process(np.zeros(0, np.float32)), denoiser.flush()])
        assert (got[:late] == 0).all()
        assert (got[late:] == want).all()


def test_a_saved_state_goes_on_where_it_was(native):
    model, _, _ = case("odd")
    data = native_format.to_bytes(model)
    a, b = native.Denoiser(data), native.Denoiser(data, threads=2)
    a.process(noise(1000))
    state = a.save()
    assert len(state) == a.info["state_bytes"]
    want = a.process(noise(700, 9))
    b.restore(state)
    assert (b.process(noise(700, 9)) == want).all()
    a.reset()
    assert (a.process(noise(1000)) == native.Denoiser(data).process(noise(1000))).all()
    with pytest.raises(DataError, match="another model"):
        native.Denoiser(native_format.to_bytes(random_model(8))).restore(state)
    with pytest.raises(DataError, match="kernels"):
        native.Denoiser(data, precision="bf16").restore(state)
    with pytest.raises(DataError, match="damaged"):
        b.restore(state[:-1] + bytes([state[-1] ^ 1]))


def test_results_can_be_written_into_arrays_of_the_caller(native):
    model, spectrum, _ = case("odd")
    wave, frames = noise(model.hop_length * 9), np.ascontiguousarray(spectrum.transpose(2, 0, 1))
    with native.Denoiser(native_format.to_bytes(model), isa="scalar") as denoiser:
        want, mask = [denoiser.step(frame) for frame in frames], np.empty_like(frames[0])
        assert want[0] is not want[1] and not np.shares_memory(want[0], want[1]), "each is its own"
        denoiser.reset()
        turns = [mask, mask, np.empty_like(mask), None, mask]
        for k, frame in enumerate(frames):
            out = turns[k % len(turns)]
            given = frame.astype(np.float64) if k % 3 else frame[:, ::-1].copy()[:, ::-1]  # neither need be float32 nor contiguous
            got = denoiser.step(given, out)
            assert (out is None or got is out) and (got == want[k]).all()
        denoiser.reset()
        heard, out = denoiser.process(wave), wave.copy()
        denoiser.reset()
        assert denoiser.process(out, out) is out and (out == heard).all()
        for bad in (np.empty((2, 5), np.float32), np.empty(mask.shape), np.empty((mask.shape[1], 2), np.float32).T, frozen(mask)):
            with pytest.raises(UsageError, match=r"`out` is .*, expected float32\[2, \d+\]"):
                denoiser.step(frames[0], bad)
        with pytest.raises(UsageError, match=r"`out` is float32\[3\], expected float32\[288\]"):
            denoiser.process(wave, np.empty(3, np.float32))
        with pytest.raises(UsageError, match=r"a spectrum is \[2, \d+\], got \[7\]"):
            denoiser.step(frames[0].ravel()[:7])
    with pytest.raises(UsageError):
        denoiser.step(frames[0], mask)  # closed


def frozen(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


def test_bad_audio_is_refused_and_changes_nothing(native):
    denoiser = native.Denoiser(native_format.to_bytes(random_model()))
    denoiser.process(noise(500))
    before = denoiser.save()
    for bad in (np.nan, np.inf, -np.inf, 1e9):
        wave = noise(500)
        wave[250] = bad
        with pytest.raises(DataError, match="sample 250 of 500"):
            denoiser.process(wave)
    with pytest.raises(UsageError, match="one channel"):
        denoiser.process(np.zeros((2, 10), np.float32))
    with pytest.raises(UsageError, match=r"\[2, 64\]"):
        denoiser.step(np.zeros((2, 65), np.float32))
    assert denoiser.save() == before


def test_damaged_files_say_what_is_wrong(native, tmp_path):
    data = native_format.to_bytes(random_model())
    for damage, sentence in (
        (data[:-64], "truncated"),
        (data[:1000] + bytes([data[1000] ^ 1]) + data[1001:], "checksum"),
        (b"RIFF" + data[4:], "EKDCCRN"),
        (data[:8] + b"\2" + data[9:], "version 2"),
        (b"", "few"),
    ):
        with pytest.raises(IntegrityError, match=sentence):
            native.Denoiser(damage)
    path = tmp_path / "model.ekd"
    with pytest.raises(DataError, match="No such file"):
        native.Denoiser(path)
    path.write_bytes(data)
    assert native.file_info(path)["hidden"] == [5, 7]
    assert native.file_info(path)["row"] is None


def test_what_cannot_run_is_said(native):
    data = native_format.to_bytes(random_model())
    with pytest.raises(TargetError, match="unknown instruction set `sse9`"):
        native.Denoiser(data, isa="sse9")
    with pytest.raises(TargetError, match="int8 needs a quantized"):
        native.Denoiser(data, precision="int8")
    with pytest.raises(UsageError, match="unknown precision `fp8`"):
        native.Denoiser(data, precision="fp8")
    with pytest.raises(UsageError, match="0 threads"):
        native.Denoiser(data, threads=0)


def test_edgekit_isa_chooses_the_kernels(native, native_build):
    code = "from edgekit import native; print(native.best_isa())"
    env = {**os.environ, native.LIBRARY_VARIABLE: str(native_build)}
    run = subprocess.run([sys.executable, "-c", code], env={**env, "EDGEKIT_ISA": "scalar"}, capture_output=True, text=True)
    assert run.stdout.strip() == "scalar"
    run = subprocess.run([sys.executable, "-c", code], env={**env, "EDGEKIT_ISA": "mmx"}, capture_output=True, text=True)
    assert run.returncode != 0
    assert "TargetError" in run.stderr and "unknown instruction set `mmx`" in run.stderr


def test_without_the_library_the_hint_says_how_to_get_it(monkeypatch, tmp_path):
    from edgekit import native

    monkeypatch.setenv(native.LIBRARY_VARIABLE, str(tmp_path / "libedgekit.so"))
    native.library.cache_clear()
    assert not native.available()
    with pytest.raises(ToolMissing) as error:
        native.library()
    assert error.value.hint == "pip install ./native"
    native.library.cache_clear()


# --- the writer ---


def test_weights_that_are_float16_take_half_the_bytes(native):
    model = random_model()
    whole = native_format.to_bytes(model)
    for layer in (*model.encoder, *model.decoder):
        layer.weight = layer.weight.astype(np.float16).astype(np.float32)
    for layer in model.recurrent:
        for net in layer.nets:
            net.w_x, net.w_h = (w.astype(np.float16).astype(np.float32) for w in (net.w_x, net.w_h))
    for dense in model.projection:
        dense.weight = dense.weight.astype(np.float16).astype(np.float32)
    half = native_format.to_bytes(model)
    assert len(half) < 0.6 * len(whole)
    denoiser = native.Denoiser(half)
    assert denoiser.info["weight_format"] == "f16"
    spectrum = np.random.default_rng(3).standard_normal((2, 64, 12)).astype(np.float32)
    assert snr_db(network_mask(model, spectrum)[:, :, :9], masks(denoiser, spectrum, 3)) >= MIN_SNR_DB


@pytest.mark.parametrize("config", ["tiny", "tiny_causal"])
@pytest.mark.parametrize("rnn", ["lstm", "gru"])
def test_a_checkpoint_runs_as_the_module_that_wrote_it(native, config, rnn):
    """Names, batch norm and the two biases of a complex convolution: edgekit's own torch module, forward on a wave."""
    from dataclasses import replace

    import torch

    from edgekit.models import dccrn

    cfg = replace(dccrn.CONFIGS[config], rnn=rnn)
    torch.manual_seed(0)
    module = dccrn.build(cfg)
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.02, 0.1)
    module.eval()
    state = {key: value.numpy() for key, value in module.state_dict().items()}
    model = native_format.from_state(state, n_fft=cfg.n_fft, win_length=cfg.win_length, hop_length=cfg.hop_length, mask=cfg.mask, look_ahead=cfg.look_ahead)
    denoiser = native.Denoiser(native_format.to_bytes(model))
    for samples in (cfg.hop_length * 30, cfg.hop_length * 30 + 17):
        wave = noise(samples)
        with torch.no_grad():
            want = module(torch.from_numpy(wave)[None])[0].numpy()
        got = denoiser.denoise(wave)
        assert np.sqrt(np.square(want).mean()) > 0.01
        assert np.abs(want - got).max() <= MAX_ABS
        assert snr_db(want, got) >= 100  # torch's own float32 stands on the other side


def test_what_is_no_dccrn_is_refused():
    with pytest.raises(CheckpointError, match="not a DCCRN"):
        native_format.from_state({"conv.weight": np.zeros(3)})
    key = "encoder.0.0.real_conv.weight"
    with pytest.raises(CheckpointError, match="bidirectional"):
        native_format.from_state({key: 0, "enhance.0.real_gru.weight_ih_l0": 0, "enhance.0.real_gru.weight_ih_l0_reverse": 0})
    with pytest.raises(CheckpointError, match="no `enhance"):
        native_format.from_state({key: np.zeros((1, 1, 5, 2)), "encoder.0.0.imag_conv.weight": np.zeros((1, 1, 5, 2)), "enhance.0.real_gru.weight_ih_l0": 0})
    model = random_model()
    model.encoder[1].gain = model.encoder[1].gain[:, :-1]
    with pytest.raises(CheckpointError, match="encoder 1 gain is"):
        native_format.to_bytes(model)

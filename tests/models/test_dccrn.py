"""DCCRN and DCCRN++: the published counts and keys, engines that equal the network frame by frame, exact balancing and pruning."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit import graph, losses, models
from edgekit.errors import CheckpointError
from edgekit.float_model import torch_session
from edgekit.flow import run_flow, runs_per_window
from edgekit.models import dccrn, dccrnpp, groups, narrow

TINY = dccrn.CONFIGS["tiny"]
VARIANTS = {
    "look-ahead": TINY,
    "causal": dccrn.CONFIGS["tiny_causal"],
    "chunks": dccrn.CONFIGS["tiny_chunk"],
    "chunks, causal": replace(dccrn.CONFIGS["tiny_chunk"], look_ahead=False),
    "gru": dccrnpp.CONFIGS["tiny_causal"],
    "both ways": dccrnpp.CONFIGS["tiny"],
    "mask C": replace(TINY, mask="C"),
    "mask R": replace(TINY, mask="R"),
}


def lively(cfg: dccrn.Config, seed: int = 3) -> dccrn.DCCRN:
    """Norms that treat every channel in its own way, as trained ones do."""
    torch.manual_seed(seed)
    module = dccrn.build(cfg)
    with torch.no_grad():
        for sub in module.modules():
            if isinstance(sub, nn.BatchNorm2d):
                sub.weight.uniform_(0.05, 1.5)
                sub.bias.uniform_(-0.5, 0.5)
                sub.running_mean.uniform_(-0.5, 0.5)
                sub.running_var.uniform_(0.5, 1.5)
            if isinstance(sub, (nn.Conv2d, nn.ConvTranspose2d)):
                sub.bias.uniform_(-0.3, 0.3)
                sub.weight.normal_(std=(20 * sub.in_channels) ** -0.5)  # ten taps, real and imaginary: sums of the size of their inputs
    return module.eval()


@functools.cache
def model(name: str) -> dccrn.DCCRN:
    return lively(VARIANTS[name])


def wave(cfg: dccrn.Config, n: int = 1) -> Tensor:
    return 0.1 * torch.randn(n, cfg.samples, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("definition", "config", "count"),
    [(dccrn, "default", 3_671_053), (dccrn, "tiny", 13_239), (dccrnpp, "default", 3_342_349), (dccrnpp, "tiny", 11_383), (dccrn, "half", 920_589)],
)
def test_a_network_has_the_published_number_of_parameters(definition, config, count):
    assert sum(p.numel() for p in definition.build(definition.CONFIGS[config]).parameters()) == count


def test_parts_have_the_published_number_of_parameters():
    module = dccrn.build(dccrn.CONFIGS["default"])
    counts = [sum(p.numel() for p in part.parameters()) for part in (*module.encoder, module.enhance, *module.decoder)]
    assert counts == [417, 10_433, 41_345, 164_609, 328_449, 328_449, 1_053_696, 656_129, 656_129, 328_065, 82_113, 20_577, 642]


def test_the_names_of_weights_are_the_reference_s():
    keys = set(dccrn.build(TINY).state_dict())
    for key in ("encoder.0.0.real_conv.weight", "encoder.2.1.running_var", "encoder.1.2.weight", "enhance.0.real_lstm.weight_ih_l0",
                "enhance.1.imag_lstm.bias_hh_l0", "enhance.1.r_trans.weight", "enhance.1.i_trans.bias", "decoder.0.0.imag_conv.bias", "decoder.1.1.weight"):  # fmt: skip
        assert key in keys
    assert not any(key.startswith(("decoder.2.1", "decoder.2.2", "transform", "stft")) for key in keys)


def test_a_reference_checkpoint_with_its_stored_transforms_loads():
    state = dccrn.build(TINY).state_dict()
    theirs = {f"module.{k}": v for k, v in state.items()} | {"module.stft.weight": torch.zeros(1), "module.istft.window": torch.zeros(1)}
    assert set(dccrn.normalize_keys(theirs, TINY)) == set(state)


def test_complex_batch_norms_are_refused():
    with pytest.raises(CheckpointError, match="use_cbn"):
        dccrn.normalize_keys({"encoder.0.1.Wrr": torch.zeros(4)}, TINY)


def test_a_complex_convolution_is_one_in_complex_numbers():
    torch.manual_seed(0)
    conv = dccrn.ComplexConv2d(3, 4)
    x = torch.randn(2, 6, 16, 5)
    weight = torch.complex(conv.real_conv.weight, conv.imag_conv.weight)
    padded = torch.nn.functional.pad(torch.complex(x[:, :3], x[:, 3:]), (1, 0))
    want = torch.nn.functional.conv2d(padded, weight, stride=(2, 1), padding=(2, 0))
    p, q = conv.real_conv.bias, conv.imag_conv.bias
    got = conv(x)
    assert torch.allclose(got[:, :4], want.real + (p - q)[:, None, None], atol=1e-6)
    assert torch.allclose(got[:, 4:], want.imag + (p + q)[:, None, None], atol=1e-6)


def test_mask_e_is_the_published_one_without_its_phases():
    spectrum, mask = torch.randn(2, 1, 2, 8, 3), 3 * torch.randn(1, 2, 8, 3)
    x = torch.complex(*spectrum[0].unbind(1))
    m = torch.complex(*mask.unbind(1))
    want = x.abs() * m.abs().tanh() * torch.exp(1j * (x.angle() + m.angle()))
    got = dccrn.masked(spectrum[0], mask, "E")
    assert torch.allclose(torch.complex(*got.unbind(1)), want, atol=1e-5)
    assert torch.equal(dccrn.masked(spectrum[0], torch.zeros_like(mask), "E"), torch.zeros_like(got))  # the bin that is masked away is 0, not NaN


@pytest.mark.parametrize("name", VARIANTS)
def test_a_flow_of_single_runs_equals_the_network_on_the_whole_wave(name):
    """Spectrum, engine run by run with its states, masks and their delay, and back."""
    cfg, module = VARIANTS[name], model(name)
    [engine] = dccrn.engines(module, cfg)
    flow = {**dccrn.flow(cfg), "states": {engine.name: [s.to_json() for s in engine.states]}}
    calls = []
    got = run_flow(flow, {engine.name: torch_session(engine)}, {"wave": wave(cfg)[0].numpy()}, tap=lambda *_: calls.append(1))["speech"]
    want = module(wave(cfg)).detach()[0].numpy()
    assert len(calls) == runs_per_window(flow)[engine.name]
    # A stream goes on with silence, the network on a whole wave ends with nothing: the last frames hear that.
    known = cfg.samples - (cfg.delay + 1) * cfg.hop_length - cfg.win_length if cfg.delay else cfg.samples
    assert np.abs(got[:known] - want[:known]).max() <= 1e-6
    assert np.abs(want[:known]).max() > 0.01


@pytest.mark.parametrize("name", ["look-ahead", "chunks", "gru", "both ways"])
def test_the_exported_graph_has_standard_operators_and_equals_the_engine(name, tmp_path):
    [engine] = dccrn.engines(model(name), VARIANTS[name])
    log = graph.export_onnx(engine, tmp_path / "float.onnx")
    assert log["max_abs"] <= 1e-5 * max(1.0, log["largest_output"])
    ops = {node.op_type for node in graph.load(tmp_path / "float.onnx").graph}
    assert "ConvTranspose" not in ops and "Conv" in ops


def test_balancing_changes_no_bit_of_the_answer_and_evens_out_the_channels():
    module = lively(TINY)
    before = module(wave(TINY))
    dccrn.balance(module)
    assert torch.equal(module(wave(TINY)), before)
    for layer in (*module.encoder, *module.decoder[:-1]):
        reach = (layer[1].bias.abs() + 3 * layer[1].weight.abs()).unflatten(0, (2, -1)).amax(0)
        assert reach.max() / reach.min() <= 2.01  # powers of two leave at most a factor of two


@pytest.mark.parametrize(("name", "definition"), [("look-ahead", dccrn), ("gru", dccrnpp), ("both ways", dccrnpp)])
def test_removing_a_unit_equals_silencing_it(name, definition):
    """For every group: the pruned network says what the whole one says with that unit's readers at zero."""
    cfg, module = VARIANTS[name], model(name)
    state = module.state_dict()
    x = wave(cfg)
    for group in definition.prune_groups(module, cfg):
        cut = {group.name: {axis.name: list(range(axis.step)) for axis in group.axes}}
        silenced = {key: value.clone() for key, value in state.items()}
        for axis in group.axes:
            for s in axis.slices:
                if s.role == "in":
                    silenced[s.key][groups.mark(silenced[s.key].shape, [(s, cut[group.name][axis.name])])] = 0
        whole, less = definition.build(cfg).eval(), definition.build(cfg).eval()
        whole.load_state_dict(silenced)
        narrowed = groups.remove(state, [group], cut)
        narrow.fit(less, narrowed, {})
        less.load_state_dict(narrowed)
        assert (whole(x) - less(x)).abs().max() <= 1e-6, group.name
        assert sum(p.numel() for p in less.parameters()) < sum(p.numel() for p in whole.parameters())


def test_a_pruned_network_still_streams():
    module = lively(TINY)
    found = dccrn.prune_groups(module, TINY)
    cut = {group.name: {axis.name: list(range(axis.step)) for axis in group.axes} for group in found}
    state = groups.remove(module.state_dict(), found, cut)
    less = dccrn.build(TINY).eval()
    narrow.fit(less, state, {})
    less.load_state_dict(state)
    [engine] = dccrn.engines(less, TINY)
    flow = {**dccrn.flow(TINY), "states": {engine.name: [s.to_json() for s in engine.states]}}
    got = run_flow(flow, {engine.name: torch_session(engine)}, {"wave": wave(TINY)[0].numpy()})["speech"]
    want = less(wave(TINY)).detach()[0].numpy()
    assert np.abs(got[:1000] - want[:1000]).max() <= 1e-6


def test_new_mixtures_hold_the_batch_s_speech_and_somebody_s_noise():
    generator = torch.Generator().manual_seed(1)
    clean, noise = torch.randn(4, 24_400) * 0.1, torch.randn(4, 24_400) * 0.05
    batch, labels = dccrn.remix({"wave": clean + noise}, {"speech": clean}, generator)
    assert batch["wave"].shape == labels["speech"].shape == (4, dccrn.CROP)
    for mixture, speech in zip(batch["wave"], labels["speech"], strict=True):
        snr = 10 * (speech.square().mean() / (mixture - speech).square().mean()).log10()
        assert -5.1 <= snr <= 20.1
        own = [torch.nn.functional.cosine_similarity(speech, clean[i].unfold(0, dccrn.CROP, 1), dim=-1).amax() for i in range(4)]
        assert max(own) > 0.999
    assert batch["wave"].abs().max() <= 1


def test_the_loss_of_dccrnpp_adds_the_band_and_the_lips():
    torch.manual_seed(0)
    outputs, labels = {"speech": torch.randn(2, 4000) * 0.1}, {"speech": torch.randn(2, 4000) * 0.1}
    plain = dccrn.loss(outputs, labels)
    band = losses.band_loss(outputs["speech"], labels["speech"]).mean()
    assert dccrnpp.loss(outputs, labels) == plain + band
    lips = {"lips": torch.randn(2, 8), "sound": torch.randn(2, 8)}
    with_lips = dccrnpp.loss(outputs | lips, labels)
    assert torch.isclose(with_lips, plain + band + 0.1 * losses.sync_loss(**lips).mean())


def test_frozen_lip_encoders_are_used_in_training_only():
    module = lively(VARIANTS["gru"])
    object.__setattr__(module, "sync", lambda video, speech: (video.flatten(1)[:, :4], speech[:, :4]))
    batch = {"wave": wave(VARIANTS["gru"], 2), "video": torch.randn(2, 3, 4)}
    assert set(dccrnpp.train_forward(module.train(), batch)) == {"speech", "lips", "sound"}
    assert set(dccrnpp.train_forward(module.eval(), batch)) == {"speech"}


def test_both_are_registered_with_their_configurations():
    for name, definition in (("dccrn", dccrn), ("dccrnpp", dccrnpp)):
        assert models.get(name) is definition
        assert models.CONFIG_NAMES[name] == tuple(definition.CONFIGS)
        for config in definition.CONFIGS.values():
            assert definition.Config.from_json(config.to_json()) == config

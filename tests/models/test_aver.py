"""AVER has the published sizes, loads the published checkpoints, and its engines make the whole."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit import preprocess as prep
from edgekit.datasets import Clip
from edgekit.errors import CheckpointError
from edgekit.float_model import torch_session
from edgekit.flow import Live, run_flow, runs_per_window
from edgekit.losses import ccc_loss
from edgekit.models import aver, checkpoint

TINY = aver.CONFIGS["tiny"]
PAPER_TINY = replace(TINY, form="paper")
SMALL = aver.CONFIGS["small"]


@functools.cache
def on_meta(cfg: aver.Config) -> aver.AVER:
    """A model without memory for its weights: enough to count and to run shapes through."""
    with torch.device("meta"):
        return aver.build(cfg).eval()


def varied(module: nn.Module) -> nn.Module:
    """In eval mode, with statistics, gains and biases that treat no two channels alike."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias") or name.endswith("init_hidden"):
                parameter.uniform_(-0.3, 0.3)
        for sub in module.modules():
            if isinstance(sub, (nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm)):
                sub.weight.uniform_(0.5, 1.5)
            if isinstance(sub, (nn.BatchNorm2d, nn.BatchNorm3d)):
                sub.running_mean.uniform_(-0.5, 0.5)
                sub.running_var.uniform_(0.5, 1.5)
    return module.eval()


@functools.cache
def model(cfg: aver.Config = TINY) -> aver.AVER:
    torch.manual_seed(3)
    return varied(aver.build(cfg))


def window(n: int = 2, cfg: aver.Config = TINY) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(n)
    video = torch.randn(n, cfg.steps, 3, cfg.frames, cfg.height, cfg.width, generator=generator)
    return {"video": video, "mel": torch.randn(n, cfg.steps, 1, cfg.mel.n_mels, cfg.mel.frames, generator=generator)}


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# --------------------------------------------------------------------------- numbers of the published model


def test_the_releases_fusion_has_the_papers_26_971_763_parameters():
    release = on_meta(aver.CONFIGS["release"])
    assert {name: parameters(part) for name, part in release.fusion.named_children()} == {
        "coattn": 5_250_112, "avga": 838_193, "audio_tlab": 7_880_192, "video_tlab": 7_880_192, "Joint": 4_991_488, "vregressor": 65_793, "aregressor": 65_793,
    }  # fmt: skip
    assert parameters(release.fusion) == 26_971_763
    assert parameters(release.video_model) == 31_300_125  # torchvision's r2plus1d_18 without its classes
    assert parameters(release.audio_model) == 11_170_240  # and resnet18 of one channel
    assert aver.CONFIGS["default"] == aver.CONFIGS["release"]


def test_the_literal_fusion_has_19_562_882_parameters():
    paper = on_meta(aver.CONFIGS["paper"])
    assert {name: parameters(part) for name, part in paper.fusion.named_children()} == {
        "audio_tlab": 7_089_664, "video_tlab": 7_089_664, "video_cross": 557_568, "audio_cross": 557_568, "lstm": 4_202_496, "head": 65_922,
    }  # fmt: skip
    assert parameters(paper.fusion) == 19_562_882


def test_tiny_counts():
    assert {k: parameters(v) for k, v in on_meta(TINY).named_children()} == {"video_model": 48_088, "audio_model": 17_408, "fusion": 62_214}
    assert parameters(on_meta(PAPER_TINY).fusion) == 45_378


def test_small_fits_a_checkpoint_of_one_megabyte_and_costs_0_3_gmac():
    state = on_meta(SMALL).state_dict()
    assert sum(v.numel() for v in state.values()) < 490_000
    assert sum(gmac(SMALL)[name] * runs for name, runs in runs_per_window(aver.flow(SMALL)).items()) == pytest.approx(0.293, abs=0.002)


def gmac(cfg: aver.Config) -> dict[str, float]:
    """By torch's own counter."""
    from torch.utils.flop_counter import FlopCounterMode

    found = {}
    for engine in aver.engines(on_meta(cfg).requires_grad_(False), cfg):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            engine.module(*[torch.empty(shape, device="meta") for shape in engine.inputs.values()])
        found[engine.name] = counter.get_total_flops() / 2e9
    return found


def test_a_new_sub_sequence_of_the_release_costs_20_26_gmac_in_the_video_backbone():
    cost = gmac(aver.CONFIGS["release"])
    assert cost["v_backbone"] == pytest.approx(20.26, abs=0.01)
    assert cost["a_backbone"] == pytest.approx(0.247, abs=0.001) and cost["fusion"] == pytest.approx(0.720, abs=0.001)


def test_the_features_have_the_published_shapes():
    release = on_meta(aver.CONFIGS["release"])
    clip, mel = torch.empty(1, 3, 8, 112, 112, device="meta"), torch.empty(1, 1, 64, 104, device="meta")
    assert release.video_model.r2plus1d(clip).shape == (1, 512, 1, 7, 7)
    assert release.video_model(clip).shape == (1, 25_088) and release.audio_model(mel).shape == (1, 512)
    assert on_meta(TINY).video_model.r2plus1d(torch.empty(1, 3, 8, 32, 32, device="meta")).shape == (1, 24, 1, 2, 2)


@pytest.mark.parametrize("name", aver.CONFIGS)
def test_flow_preprocessing_and_engines_agree_on_shapes(name):
    cfg = aver.CONFIGS[name]
    flow, spec = aver.flow(cfg), aver.preprocess_spec(cfg)
    assert prep.shapes(spec) == {k: tuple(v["shape"]) for k, v in flow["inputs"].items()}
    made = {e.name: e for e in aver.engines(on_meta(cfg), cfg)}
    with torch.inference_mode():
        for engine in made.values():
            outputs = engine.module(*[torch.empty(shape, device="meta") for shape in engine.inputs.values()])
            assert isinstance(outputs, tuple) and [tuple(o.shape) for o in outputs] == list(engine.outputs.values()), engine.name
    assert {step["engine"] for step in flow["steps"]} == set(made) == set(flow["rates_hz"])
    assert [*made["v_backbone"].inputs["clip"][1:]] == flow["inputs"]["video"]["shape"][1:]
    units = aver.io_spec(cfg)
    assert set(units["inputs"]) == set(flow["inputs"]) and list(units["outputs"]) == flow["outputs"] == flow["primary"]
    assert aver.Config.from_json(json.loads(json.dumps(cfg.to_json()))) == cfg


def mel_by_torch(x: Tensor, m: aver.Mel) -> Tensor:
    """[bands, columns] of samples in -1..1, by torch's own Fourier transform and triangles written out."""
    power = torch.stft(x, m.n_fft, m.hop_length, m.win_length, torch.hann_window(m.win_length, dtype=x.dtype), return_complex=True).abs() ** 2
    top = 2595 * np.log10(1 + m.sample_rate_hz / 2 / 700)
    edges = torch.tensor([700 * (10 ** (top * i / (m.n_mels + 1) / 2595) - 1) for i in range(m.n_mels + 2)], dtype=x.dtype)
    bins = torch.arange(m.n_fft // 2 + 1, dtype=x.dtype) * m.sample_rate_hz / m.n_fft
    filters = torch.stack([torch.minimum((bins - a) / (b - a), (c - bins) / (c - b)).clamp_min(0) for a, b, c in edges.unfold(0, 3, 1)])
    decibels = 10 * torch.log10((filters @ power).clamp_min(1e-10))
    return (torch.maximum(decibels, decibels.max() - 80) + m.shift) / m.scale


def test_the_release_hears_what_the_public_code_hears():
    """Per sub-sequence the 31 intervals between its 32 frames, zeros in front up to 45 599 samples: 104 columns at 30 frames a second."""
    cfg = replace(aver.CONFIGS["release"], height=8, width=8)
    sound = (np.random.default_rng(0).normal(size=44_100 * 18) * 3000).astype(np.int16)
    clip = Clip("a", np.zeros((512, 8, 8, 3), np.uint8), 30.0, sound, 44_100, {"valence": np.linspace(-1, 1, 512, dtype=np.float32)})
    got = prep.preprocess(aver.preprocess_spec(cfg), clip)["mel"]
    start, end = round(32 * 44_100 / 30), round(63 * 44_100 / 30)
    heard = np.concatenate([np.zeros(45_599 - (end - start)), sound[start:end] / 32768])
    want = mel_by_torch(torch.from_numpy(heard), cfg.mel)
    assert want.shape == (64, 104) and got.shape == (16, 1, 64, 104)
    assert np.abs(got[1, 0] - want.numpy()).max() < 1e-4  # float32 of values around 1
    labels = prep.labels_of(aver.preprocess_spec(cfg), clip)["valence"]
    assert labels.tolist() == clip.labels["valence"][31::32].tolist()  # the last frame's of each


# --------------------------------------------------------------------------- the whole and its parts


@pytest.mark.parametrize("cfg", [TINY, PAPER_TINY], ids=["release", "paper"])
def test_forward_gives_valence_and_arousal_of_every_sub_sequence(cfg):
    with torch.inference_mode():
        out = model(cfg)(**window(2, cfg))
        alone = model(cfg)(**{k: v[1:] for k, v in window(2, cfg).items()})
    assert {k: tuple(v.shape) for k, v in out.items()} == {"valence": (2, cfg.steps), "arousal": (2, cfg.steps)}
    for name, value in out.items():
        assert value.isfinite().all() and value.std() > 0
        assert torch.allclose(value[1:], alone[name], atol=1e-6)  # samples do not see each other


def test_a_sub_sequences_features_have_length_one_and_come_channel_by_channel():
    module, clip = model(), window(1)["video"][0]
    with torch.inference_mode():
        maps, feature = module.video_model.r2plus1d(clip), module.video_model(clip)
        heard = module.audio_model(window(1)["mel"][0])
    assert torch.allclose(feature, F.normalize(maps.reshape(TINY.steps, -1), dim=-1), atol=1e-6)
    assert feature[0, 5] == pytest.approx((maps[0, 1, 0, 0, 1] / maps[0].norm()).item(), abs=1e-6)  # 4 positions of channel 0, then 1 of channel 1
    assert torch.allclose(feature.norm(dim=-1), torch.ones(TINY.steps)) and torch.allclose(heard.norm(dim=-1), torch.ones(TINY.steps))


def test_a_black_and_silent_sub_sequence_gives_numbers_and_gradients():
    """A backbone can give a feature of zeros: neither its length nor the length's gradient may be divided by."""
    module = aver.build(TINY).train()
    with torch.no_grad():
        for norm in (module.video_model.r2plus1d.layer4[0], module.audio_model.resnet.layer4[0]):
            for sub in norm.modules():
                if isinstance(sub, (nn.BatchNorm2d, nn.BatchNorm3d)):
                    sub.weight.zero_()
                    sub.bias.fill_(-1)
    out = module(**window(2))
    (out["valence"].sum() + out["arousal"].sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
    assert all(v.isfinite().all() for v in out.values())


@pytest.mark.parametrize("cfg", [TINY, PAPER_TINY], ids=["release", "paper"])
def test_engines_along_the_flow_equal_the_whole(cfg):
    inputs = window(1, cfg)
    got = run_flow(aver.flow(cfg), {e.name: torch_session(e) for e in aver.engines(model(cfg), cfg)}, {k: v[0].numpy() for k, v in inputs.items()})
    with torch.inference_mode():
        want = model(cfg)(**inputs)
    assert list(got) == ["valence", "arousal"]
    for name, value in got.items():
        assert np.abs(value - want[name][0].numpy()).max() < 1e-5  # float32, sub-sequences one by one or together


def test_live_each_new_sub_sequence_is_encoded_once():
    """Nine sub-sequences, a window of four: six answers, each that of the whole window, and nine runs of each backbone."""
    generator = torch.Generator().manual_seed(5)
    video = torch.randn(9, 3, TINY.frames, TINY.height, TINY.width, generator=generator).numpy()
    mel = torch.randn(9, 1, TINY.mel.n_mels, TINY.mel.frames, generator=generator).numpy()
    sessions = {e.name: torch_session(e) for e in aver.engines(model(), TINY)}
    live = Live(aver.flow(TINY), sessions)
    answers = [live.push({"video": video[i], "mel": mel[i]}) for i in range(9)]
    assert [a is None for a in answers] == [True] * 3 + [False] * 6
    assert live.runs["v_backbone"] == live.runs["a_backbone"] == 9
    for i, answer in enumerate(answers[3:]):
        whole = run_flow(aver.flow(TINY), sessions, {"video": video[i : i + 4], "mel": mel[i : i + 4]})
        assert all(np.array_equal(answer[k], whole[k]) for k in ("valence", "arousal"))
    kept = [step for step in aver.flow(TINY)["host_steps"] if step["step"] == "keep"]
    assert [(step["tensor"], step["count"]) for step in kept] == [("v_feature", 3), ("a_feature", 3)]


@pytest.mark.parametrize("cfg", [TINY, PAPER_TINY, SMALL], ids=["tiny", "paper", "small"])
def test_exported_engines_equal_torch(cfg, tmp_path):
    from edgekit import graph
    from edgekit.backends import onnxruntime

    module = model(cfg)
    for engine in aver.engines(module, cfg):
        path = tmp_path / f"{engine.name}.onnx"
        graph.export_onnx(engine, path)
        feeds = {k: torch.randn(shape, generator=torch.Generator().manual_seed(1)) for k, shape in engine.inputs.items()}
        if engine.name == "fusion":
            feeds = {k: F.normalize(v, dim=-1) for k, v in feeds.items()}
        got = onnxruntime.simulate(path, threads=1)({k: v.numpy() for k, v in feeds.items()})
        with torch.inference_mode():
            want = engine.module(*feeds.values())
        for name, value in zip(engine.outputs, want, strict=True):
            assert np.abs(got[name] - value.numpy()).max() <= 1e-4 * value.abs().max(), (engine.name, name)


# --------------------------------------------------------------------------- public checkpoints


def published() -> dict[str, dict[str, Tensor]]:
    """What the public files hold, in tiny's sizes and under their names: TSAV, four-channel stem and classes, and the fusion, with aliases."""
    state = model().state_dict()
    tsav = {k: v for k, v in state.items() if not k.startswith("fusion.")}
    stem = "video_model.r2plus1d.stem.0.weight"
    tsav[stem] = torch.cat([state[stem], torch.ones_like(state[stem][:, :1])], 1)
    tsav |= {"fc.1.weight": torch.ones(17, 48), "fc.1.bias": torch.ones(17)}
    fusion = {k.removeprefix("fusion."): v for k, v in state.items() if k.startswith("fusion.")}
    for key, value in list(fusion.items()):
        for name, alias in ((".conv1.", ".net.0."), (".conv2.", ".net.4.")):
            if ".tcn." in key and name in key:
                fusion[key.replace(name, alias)] = value
    return {"tsav": tsav, "fusion": fusion}


def load(state: dict, tmp_path) -> tuple[aver.AVER, list[str]]:
    path = tmp_path / "weights.pt"
    torch.save(state, path)
    module = aver.build(TINY).eval()
    return module, checkpoint.load_into(module, aver.normalize_keys(checkpoint.read_state(path), TINY), path)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapper", [None, "net", "state_dict", "model_state_dict"])
def test_the_public_files_load_as_they_are(tmp_path, prefix, wrapper):
    files = published()
    state = {**{prefix + k: v for k, v in files["tsav"].items()}, **files["fusion"]}
    module, unused = load(state if wrapper is None else {wrapper: state, "best_Val_accV": 0.6}, tmp_path)
    assert unused == ["fc.1.bias", "fc.1.weight"]
    want = model().state_dict()
    assert all(torch.equal(v, want[k]) for k, v in module.state_dict().items())


def test_our_own_state_loads_under_a_prefix_too(tmp_path):
    module, unused = load({f"module.{k}": v for k, v in model().state_dict().items()}, tmp_path)
    assert unused == [] and torch.equal(module.fusion.Joint.init_hidden, model().fusion.Joint.init_hidden)


def test_backbones_are_known_by_their_own_names(tmp_path):
    state = {k.removeprefix("video_model.").removeprefix("audio_model."): v for k, v in model().state_dict().items()}
    assert load(state, tmp_path)[1] == []


def test_a_temporal_block_may_be_there_by_its_place_alone(tmp_path):
    fusion = {k: v for k, v in published()["fusion"].items() if not (".tcn." in k and (".conv1." in k or ".conv2." in k))}
    module, unused = load({**published()["tsav"], **fusion}, tmp_path)
    assert unused == ["fc.1.bias", "fc.1.weight"]
    assert torch.equal(module.fusion.audio_tlab.tcn.network[1].conv2.weight, model().fusion.audio_tlab.tcn.network[1].conv2.weight)


@pytest.mark.parametrize(
    ("part", "missing"),
    [
        ("fusion", r"the video backbone \(`video_model.r2plus1d.`\) and the audio backbone \(`audio_model.resnet.`\) are not in it"),
        ("tsav", r"the fusion \(`fusion.`\) is not in it"),
    ],
)
def test_half_of_the_public_files_is_refused_by_what_is_missing(tmp_path, part, missing):
    with pytest.raises(CheckpointError, match=missing):
        load({"net": published()[part]}, tmp_path)


def test_another_models_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="another model's checkpoint"):
        load({"encoder.weight": torch.ones(3)}, tmp_path)


def test_a_missing_weight_is_named(tmp_path):
    state = {k: v for k, v in model().state_dict().items() if k != "fusion.Joint.init_hidden"}
    with pytest.raises(CheckpointError, match=r"1 weights are missing: fusion.Joint.init_hidden"):
        load(state, tmp_path)


def test_two_spellings_of_one_weight_are_refused(tmp_path):
    state = {**model().state_dict(), "Joint.init_hidden": torch.zeros(8, 12)}
    with pytest.raises(CheckpointError, match=r"`fusion.Joint.init_hidden` is there twice, once as `Joint.init_hidden`"):
        load(state, tmp_path)


# --------------------------------------------------------------------------- training


def labels(n: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(n)
    return {k: torch.rand(n, TINY.steps, generator=generator) * 2 - 1 for k in aver.OUTPUTS}


def test_the_loss_is_one_minus_the_mean_concordance_over_all_steps():
    out, want = {k: v * 0.5 + 0.1 for k, v in labels(3).items()}, labels(3)
    expected = sum(ccc_loss(out[k].reshape(-1), want[k].reshape(-1)) for k in aver.OUTPUTS) / 2
    assert aver.loss(out, want).item() == pytest.approx(expected.item(), abs=1e-6)
    assert aver.loss(want, want).item() == pytest.approx(0, abs=1e-6)


def test_train_forward_takes_encoded_features_and_shares_a_silenced_modality():
    batch, module = window(3), model()
    with torch.inference_mode():
        whole = aver.train_forward(module, batch)
    encoded = aver.encode(module, batch)
    assert {k: tuple(v.shape) for k, v in encoded.items()} == {"v_features": (3, 4, 96), "a_features": (3, 4, 24)}
    with torch.inference_mode():
        assert all(torch.allclose(whole[k], v, atol=1e-6) for k, v in aver.train_forward(module, encoded).items())
        silent = aver.train_forward(module, {**batch, "video": torch.zeros_like(batch["video"][:1])})
        spelled = aver.train_forward(module, {**batch, "video": torch.zeros_like(batch["video"])})
    assert all(torch.allclose(silent[k], spelled[k], atol=1e-6) for k in aver.OUTPUTS)


def test_encoding_leaves_the_backbones_statistics_alone():
    module = aver.build(TINY).train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    aver.encode(module, window(2))
    assert module.training and all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_every_parameter_learns_in_a_tower_or_in_the_whole():
    module = aver.for_training(aver.build(TINY)).train()
    learnt = set()
    for tower in aver.towers(module).values():
        module.zero_grad()
        out = tower(window(4))
        assert {k for k in out if not k.endswith(".mse")} == set(aver.OUTPUTS) and out["valence"].shape == (4, TINY.steps)
        aver.loss(out, labels(4)).backward()
        learnt |= {k for k, p in module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert tower.fc.weight.grad.abs().sum() > 0
    assert learnt == {k for k, _ in module.named_parameters() if not k.startswith("fusion.")}
    module.zero_grad()
    aver.loss(aver.train_forward(module, window(4)), labels(4)).backward()
    assert {k for k, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0} <= KEY_BIASES


# A constant added to all keys moves all of a query's scores alike, and softmax does not see it.
KEY_BIASES = {"fusion.audio_tlab.key_fc.bias", "fusion.video_tlab.key_fc.bias"}


def test_a_tower_answers_with_two_values_a_sub_sequence_once_trained():
    tower = aver.towers(model())["audio"].eval()
    assert tower.source == "mel" and aver.towers(model())["video"].source == "video"
    with torch.inference_mode():
        assert {k: tuple(v.shape) for k, v in tower(window(2)).items()} == {"valence": (2, 4), "arousal": (2, 4)}


def test_the_squared_error_counts_in_towers_only():
    out = {k: v * 0.5 for k, v in labels().items()}
    extra = aver.loss({**out, "valence.mse": out["valence"]}, labels()) - aver.loss(out, labels())
    assert extra.item() == pytest.approx(0.1 * (0.5 * labels()["valence"]).square().mean().item(), abs=1e-6)


def test_augmentation_is_drawn_from_the_generator_and_leaves_the_batch_alone():
    batch = window(3)
    kept = {k: v.clone() for k, v in batch.items()}
    one, same, other = (aver.augment(batch, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(batch[k], kept[k]) for k in batch)
    assert all(torch.equal(one[k], same[k]) and not torch.equal(one[k], other[k]) and one[k].shape == batch[k].shape for k in batch)
    mel = batch["mel"]
    covered = (one["mel"] == mel.mean()).float().mean(dim=(1, 2, 3, 4))  # of each sample: at most two runs a fifth long on each axis
    assert 0 < covered.max() <= 1 - 0.6 * 0.6
    assert set(aver.augment({"mel": mel}, torch.Generator())) == {"mel"}  # as a tower's batch has it

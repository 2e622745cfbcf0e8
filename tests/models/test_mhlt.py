"""MHLT has the published sizes, loads the published checkpoints, and its engines make the whole."""

from __future__ import annotations

import functools
import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.errors import CheckpointError
from edgekit.float_model import torch_session
from edgekit.flow import run_flow, runs_per_window
from edgekit.models import checkpoint, mhlt
from edgekit.models.blocks import hubert, mobilenet3d

TINY = mhlt.CONFIGS["tiny"]


@functools.cache
def on_meta(name: str) -> mhlt.MHLT:
    """A model without memory for its weights: enough to count and to run shapes through."""
    with torch.device("meta"):
        return mhlt.build(mhlt.CONFIGS[name]).eval()


@functools.cache
def tiny() -> mhlt.MHLT:
    """As built, not folded, with statistics and gains that treat no two channels alike."""
    torch.manual_seed(3)
    module = mhlt.build(TINY).eval()
    with torch.no_grad():
        for sub in module.modules():
            if isinstance(sub, nn.Conv3d):
                nn.init.kaiming_normal_(sub.weight)
            if isinstance(sub, (nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)):
                sub.weight.uniform_(0.5, 1.5)
                sub.bias.uniform_(-0.5, 0.5)
            if isinstance(sub, nn.BatchNorm3d):
                sub.running_mean.uniform_(-0.5, 0.5)
                sub.running_var.uniform_(0.5, 1.5)
    return module


def folded_copy(module: mhlt.MHLT) -> mhlt.MHLT:
    other = mhlt.build(TINY).eval()
    other.load_state_dict(module.state_dict())
    return mhlt.fold(other)


def window(n: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    video = torch.randn(n, TINY.clips, 3, TINY.frames, TINY.height, TINY.width, generator=generator)
    return video, torch.randn(n, TINY.samples, generator=generator)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# --------------------------------------------------------------------------- numbers of the paper's model


def test_the_default_has_99_615_235_parameters():
    assert parameters(on_meta("default")) == 99_615_235
    assert {name: parameters(part) for name, part in on_meta("default").named_children()} == {
        "video": 2_354_048, "audio": 94_371_712, "lstm_v": 1_574_912, "lstm_a": 1_050_624, "attn": 263_168, "fc_o": 257, "fc_a": 257, "fc_v": 257,
    }  # fmt: skip


def test_small_is_about_five_million_and_at_most_ten_megabytes_in_float16():
    from safetensors.torch import save

    module = mhlt.build(mhlt.CONFIGS["small"])
    assert 4.9e6 < parameters(module) < 5.1e6
    assert len(save({k: v.half() if v.is_floating_point() else v for k, v in module.state_dict().items()})) <= 10_000_000
    c = mhlt.CONFIGS["small"]
    assert (c.clips, c.frames, c.height, c.width, c.samples, c.hubert.conv_dim, c.hubert.hidden, c.hubert.layers) == (4, 8, 64, 64, 48_000, 128, 192, 4)


def test_tiny_has_94_211_parameters():
    assert parameters(on_meta("tiny")) == 94_211


@pytest.mark.parametrize(("samples", "count"), [(96_000, 299), (48_000, 149), (16_000, 49), (400, 1), (719, 1), (720, 2)])
def test_hubert_makes_a_frame_every_320_samples_from_a_field_of_400(samples, count):
    assert hubert.frames(samples) == count == (samples - 400) // 320 + 1


def test_the_backbones_shapes_are_the_papers_row_by_row():
    rows = {
        0: (32, 16, 56, 56), 1: (16, 16, 56, 56), 3: (24, 8, 28, 28), 6: (32, 4, 14, 14), 10: (64, 2, 7, 7),
        13: (96, 2, 7, 7), 16: (160, 1, 4, 4), 17: (320, 1, 4, 4), 18: (1280, 1, 4, 4),
    }  # fmt: skip
    x = torch.empty(1, 3, 16, 112, 112, device="meta")
    for i, layer in enumerate(on_meta("default").video.features):
        x = layer(x)
        if i in rows:
            assert tuple(x.shape[1:]) == rows[i], i
    assert i == 18


@pytest.mark.parametrize("name", mhlt.CONFIGS)
def test_engines_have_the_shapes_that_they_state(name):
    cfg = mhlt.CONFIGS[name]
    with torch.device("meta"):
        module = mhlt.fold(mhlt.build(cfg)).eval()
    made = mhlt.engines(module, cfg)
    assert [e.name for e in made] == ["clip_encoder", "audio_encoder", "head"]
    with torch.inference_mode():
        for engine in made:
            outputs = engine.module(*[torch.empty(shape, device="meta") for shape in engine.inputs.values()])
            assert isinstance(outputs, tuple)
            assert [tuple(o.shape) for o in outputs] == list(engine.outputs.values()), engine.name
            assert engine.states == ()


def test_a_window_of_the_default_costs_47_8_gmac():
    """By torch's own counter: 8 clips at 0.518 G, HuBERT 43.3 G of which its stem 14.7 G, the rest 0.37 G."""
    from torch.utils.flop_counter import FlopCounterMode

    cfg = mhlt.CONFIGS["default"]
    with torch.device("meta"):
        module = mhlt.fold(mhlt.build(cfg)).eval()
    gmac, stem = {}, 0.0
    for engine in mhlt.engines(module, cfg):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            engine.module(*[torch.empty(shape, device="meta") for shape in engine.inputs.values()])
        gmac[engine.name] = counter.get_total_flops() / 2e9
        stem += sum(counter.get_flop_counts().get("AudioEncoder.audio.feature_extractor", {}).values()) / 2e9
    assert gmac == {"clip_encoder": pytest.approx(0.518, abs=0.001), "audio_encoder": pytest.approx(43.3, abs=0.05), "head": pytest.approx(0.368, abs=0.001)}
    assert stem == pytest.approx(14.7, abs=0.05)
    runs = runs_per_window(mhlt.flow(cfg))
    assert runs == {"clip_encoder": 8, "audio_encoder": 1, "head": 1}
    assert sum(gmac[name] * times for name, times in runs.items()) == pytest.approx(47.8, abs=0.05)


# --------------------------------------------------------------------------- the whole and its parts


def test_forward_gives_three_valences_and_the_attention():
    with torch.inference_mode():
        out = tiny()(*window(2))
    frames = hubert.frames(TINY.samples)
    assert {k: tuple(v.shape) for k, v in out.items()} == {"o": (2,), "a": (2,), "v": (2,), "attn": (2, TINY.clips, frames)}
    assert torch.allclose(out["attn"].sum(-1), torch.ones(2, TINY.clips), atol=1e-6)  # a softmax over audio frames, per clip
    assert all(v.isfinite().all() for v in out.values())


def test_video_asks_and_audio_answers_in_every_head():
    """Eq. 5 and 6 written out, with the square root that the paper's print lost."""
    module = tiny()
    generator = torch.Generator().manual_seed(8)
    clips = torch.randn(1, TINY.clips, TINY.last, generator=generator)
    audio = torch.randn(1, 24, TINY.hubert.hidden, generator=generator)
    with torch.inference_mode():
        got = module.fuse(clips, audio, with_weights=True)
        h_v, h_a = module.lstm_v(clips)[0][0], module.lstm_a(audio)[0][0]
        weight, bias = module.attn.in_proj_weight.chunk(3), module.attn.in_proj_bias.chunk(3)
        q, k, v = (x @ w.T + b for x, w, b in zip((h_v, h_a, h_a), weight, bias, strict=True))
        d = TINY.hidden // TINY.heads
        scores = [(q[:, s] @ k[:, s].T / math.sqrt(d)).softmax(-1) for s in (slice(i * d, (i + 1) * d) for i in range(TINY.heads))]
        fused = torch.cat([w @ v[:, i * d : (i + 1) * d] for i, w in enumerate(scores)], 1)
        fused = module.attn.out_proj(fused)
        want = {"o": module.fc_o(fused.mean(0)), "a": module.fc_a(h_a.mean(0)), "v": module.fc_v(h_v.mean(0))}
    for name, value in want.items():
        assert got[name].item() == pytest.approx(value.item(), abs=1e-6)
    assert torch.allclose(got["attn"][0], torch.stack(scores).mean(0), atol=1e-6)


def test_unimodal_heads_hear_or_see_only_their_own():
    video, wave = window(1)
    with torch.inference_mode():
        one, other_wave, other_video = tiny()(video, wave), tiny()(video, wave.flip(-1)), tiny()(video.flip(-1), wave)
    assert torch.equal(one["v"], other_wave["v"]) and not torch.equal(one["a"], other_wave["a"])
    assert torch.equal(one["a"], other_video["a"]) and not torch.equal(one["v"], other_video["v"])
    assert not torch.equal(one["o"], other_wave["o"]) and not torch.equal(one["o"], other_video["o"])


def test_engines_along_the_flow_equal_the_whole():
    video, wave = window(1)
    module = folded_copy(tiny())
    got = run_flow(mhlt.flow(TINY), {e.name: torch_session(e) for e in mhlt.engines(module, TINY)}, {"video": video[0].numpy(), "wave": wave[0].numpy()})
    with torch.inference_mode():
        want = module(video, wave)
    assert list(got) == ["o", "a", "v"]
    for name, value in got.items():
        assert np.shape(value) == () and float(value) == pytest.approx(want[name].item(), abs=1e-5)  # float32, clips one by one or together


def test_folding_changes_no_output_and_leaves_one_plain_weight():
    folded = folded_copy(tiny())
    keys = [k for k in folded.state_dict() if "pos_conv_embed" in k]
    assert keys == ["audio.encoder.pos_conv_embed.conv.bias", "audio.encoder.pos_conv_embed.conv.weight"]
    with torch.inference_mode():
        want, got = tiny()(*window()), folded(*window())
    assert all(torch.equal(want[k], got[k]) for k in want)


def test_folding_twice_is_folding_once():
    once = folded_copy(tiny())
    state = {k: v.clone() for k, v in once.state_dict().items()}
    again = mhlt.fold(once)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in state.items())


def test_what_inference_never_reads_does_not_depend_on_chance():
    torch.manual_seed(1)
    one = mhlt.fold(mhlt.build(TINY)).audio.masked_spec_embed
    assert not one.any()


@pytest.mark.parametrize("name", mhlt.CONFIGS)
def test_a_configuration_survives_json(name):
    cfg = mhlt.CONFIGS[name]
    assert mhlt.Config.from_json(json.loads(json.dumps(cfg.to_json()))) == cfg


@pytest.mark.parametrize("name", mhlt.CONFIGS)
def test_flow_preprocessing_and_engines_agree_on_shapes(name):
    cfg = mhlt.CONFIGS[name]
    flow, spec = mhlt.flow(cfg), mhlt.preprocess_spec(cfg)
    video, audio = spec["video"], spec["audio"]
    assert flow["inputs"]["video"]["shape"] == [video["clips"], 3, video["frames_per_clip"], video["height"], video["width"]]
    assert flow["inputs"]["wave"]["shape"] == [audio["samples"]] and audio["sample_rate_hz"] == 16_000
    engines = {e.name: e for e in mhlt.engines(on_meta(name), cfg)}
    assert [*engines["clip_encoder"].inputs["clip"][1:]] == flow["inputs"]["video"]["shape"][1:]
    assert [*engines["audio_encoder"].inputs["wave"][1:]] == flow["inputs"]["wave"]["shape"]
    assert {step["engine"] for step in flow["steps"]} == set(engines) == set(flow["rates_hz"])
    assert engines["head"].inputs["clip_features"][1] == cfg.clips
    units = mhlt.io_spec(cfg)
    assert set(units["inputs"]) == set(flow["inputs"]) and list(units["outputs"]) == flow["outputs"]


# --------------------------------------------------------------------------- public checkpoints


def published_hubert() -> nn.Module:
    """transformers' own HubertModel of tiny's sizes, made without edgekit."""
    from transformers import HubertConfig, HubertModel

    s = TINY.hubert
    config = HubertConfig(
        conv_dim=(s.conv_dim,) * 7, conv_kernel=(10, 3, 3, 3, 3, 2, 2), conv_stride=(5, 2, 2, 2, 2, 2, 2), hidden_size=s.hidden,
        num_hidden_layers=s.layers, num_attention_heads=s.heads, intermediate_size=s.ffn,
        num_conv_pos_embeddings=s.pos_kernel, num_conv_pos_embedding_groups=s.pos_groups,
    )  # fmt: skip
    torch.manual_seed(11)
    return HubertModel(config).eval()


class PublishedBackbone(nn.Module):
    """okankop/Efficient-3DCNNs' MobileNetV2 written out for tiny's sizes, with its classifier."""

    def __init__(self):
        super().__init__()

        def conv_bn(c_in, c_out, kernel, stride):
            return nn.Sequential(nn.Conv3d(c_in, c_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm3d(c_out), nn.ReLU6())

        layers, c_in = [conv_bn(3, TINY.stem, 3, (1, 2, 2))], TINY.stem
        for t, c, n, s in TINY.rows:
            for i in range(n):
                layers.append(PublishedBlock(c_in, c, s if i == 0 else (1, 1, 1), t))
                c_in = c
        self.features = nn.Sequential(*layers, conv_bn(c_in, TINY.last, 1, (1, 1, 1)))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(TINY.last, 600))

    def forward(self, x):
        x = self.features(x)
        return nn.functional.avg_pool3d(x, x.shape[-3:]).flatten(1)


class PublishedBlock(nn.Module):
    def __init__(self, c_in, c_out, stride, t):
        super().__init__()
        wide = c_in * t
        expand = [] if t == 1 else [nn.Conv3d(c_in, wide, 1, bias=False), nn.BatchNorm3d(wide), nn.ReLU6()]
        self.conv = nn.Sequential(
            *expand, nn.Conv3d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm3d(wide), nn.ReLU6(), nn.Conv3d(wide, c_out, 1, bias=False), nn.BatchNorm3d(c_out)
        )
        self.adds = stride == (1, 1, 1) and c_in == c_out

    def forward(self, x):
        return x + self.conv(x) if self.adds else self.conv(x)


@functools.cache
def published() -> tuple[nn.Module, nn.Module]:
    audio = published_hubert()
    backbone = PublishedBackbone().eval()
    with torch.no_grad():
        for sub in backbone.modules():
            if isinstance(sub, nn.BatchNorm3d):
                sub.running_mean.uniform_(-0.5, 0.5)
                sub.running_var.uniform_(0.5, 1.5)
    return audio, backbone


POS = "encoder.pos_conv_embed.conv"
NEW = (f"{POS}.parametrizations.weight.original0", f"{POS}.parametrizations.weight.original1")
OLD = (f"{POS}.weight_g", f"{POS}.weight_v")


def rest() -> dict[str, Tensor]:
    """LSTMs, attention and heads: nobody publishes these."""
    return {k: v for k, v in tiny().state_dict().items() if not k.startswith(("audio.", "video."))}


def load_all(state: dict[str, Tensor], tmp_path) -> tuple[mhlt.MHLT, list[str]]:
    torch.save(state, tmp_path / "weights.pt")
    module = mhlt.fold(mhlt.build(TINY)).eval()
    read = mhlt.normalize_keys(checkpoint.read_state(tmp_path / "weights.pt"), TINY)
    return module, checkpoint.load_into(module, read, tmp_path / "weights.pt", mhlt.OPTIONAL_KEYS)


@pytest.mark.parametrize("spelling", ["new", "old"])
@pytest.mark.parametrize("prefix", ["", "hubert.", "audio.", "audio.hubert."])
@pytest.mark.parametrize("video_prefix", ["", "video."])
def test_published_encoders_give_their_own_features(tmp_path, prefix, spelling, video_prefix):
    audio, backbone = published()
    state = rest()
    for key, value in audio.state_dict().items():
        if spelling == "old" and key in NEW:
            key = OLD[NEW.index(key)]
        state[prefix + key] = value
    state |= {video_prefix + k: v for k, v in backbone.state_dict().items()}
    module, unused = load_all(state, tmp_path)
    assert unused == []
    video, wave = window(2)
    with torch.inference_mode():
        # 1e-5: average pooling sums in another order than mean
        assert torch.allclose(module.encode_clips(video), backbone(video.flatten(0, 1)).unflatten(0, (2, TINY.clips)), atol=1e-5)
        # 1e-5: another attention kernel and g·v/‖v‖ in another order, through 2 layers of float32
        assert torch.allclose(module.encode_audio(wave), audio(wave).last_hidden_state, atol=1e-5)


def test_the_public_spellings_are_those_of_transformers_and_the_backbone():
    audio, backbone = published()
    assert set(NEW) < set(audio.state_dict()) and "masked_spec_embed" in audio.state_dict()
    assert audio.state_dict()[NEW[0]].shape == (1, 1, TINY.hubert.pos_kernel)
    assert audio.state_dict()[NEW[1]].shape == (TINY.hubert.hidden, TINY.hubert.hidden // TINY.hubert.pos_groups, TINY.hubert.pos_kernel)
    assert {"features.0.0.weight", "features.0.1.running_mean", "features.2.conv.6.weight", "classifier.1.weight"} < set(backbone.state_dict())


def test_base_sizes_match_the_published_shapes():
    state = on_meta("default").state_dict()
    assert state["audio." + NEW[0]].shape == (1, 1, 128) and state["audio." + NEW[1]].shape == (768, 48, 128)
    assert state["audio.masked_spec_embed"].shape == (768,)
    assert state["video.features.18.0.weight"].shape == (1280, 320, 1, 1, 1)


@pytest.mark.parametrize("wrapped", ["state_dict", "net", "module.", "state_dict and module."])
def test_a_trained_mhlt_loads_however_it_was_wrapped(tmp_path, wrapped):
    state = dict(tiny().state_dict())
    if wrapped.endswith("module."):
        state = {f"module.{k}": v for k, v in state.items()}
    if not wrapped.startswith("module."):
        state = {wrapped.split()[0]: state, "epoch": 3}
    module, unused = load_all(state, tmp_path)
    assert unused == []
    with torch.inference_mode():
        want, got = tiny()(*window()), module(*window())
    # 1e-6: the weight norm is multiplied out in another order
    assert all(torch.allclose(want[k], got[k], atol=1e-6) for k in want)


def test_a_folded_checkpoint_loads_as_it_is(tmp_path):
    folded = folded_copy(tiny())
    module, _ = load_all(dict(folded.state_dict()), tmp_path)
    assert all(torch.equal(v, folded.state_dict()[k]) for k, v in module.state_dict().items())


def test_classes_of_the_backbone_and_heads_of_hubert_are_not_mhlts(tmp_path):
    state = {**tiny().state_dict(), "classifier.1.weight": torch.ones(600, 32), "video.classifier.1.bias": torch.ones(600), "lm_head.weight": torch.ones(5, 48)}
    assert load_all(state, tmp_path)[1] == ["lm_head.weight"]


@pytest.mark.parametrize("key", ["masked_spec_embed", "hubert.masked_spec_embed", "audio.masked_spec_embed"])
def test_the_mask_of_pre_training_is_ignored_whatever_it_holds(tmp_path, key):
    state = {k: v for k, v in tiny().state_dict().items() if k != "audio.masked_spec_embed"}
    module, unused = load_all({**state, key: torch.full((48,), 9.0)}, tmp_path)
    assert unused == [] and not module.audio.masked_spec_embed.any()


def test_a_tap_without_weight_folds_to_zero_and_not_to_nan():
    v = torch.randn(6, 2, 3)
    v[:, :, 1] = 0
    folded = hubert.fold_pos_conv({OLD[0]: torch.ones(1, 1, 3), OLD[1]: v}, "")
    assert list(folded) == [f"{POS}.weight"] and not folded[f"{POS}.weight"][:, :, 1].any() and folded[f"{POS}.weight"].isfinite().all()


def test_a_weight_norm_over_another_axis_is_refused(tmp_path):
    state = {**tiny().state_dict(), f"audio.{NEW[0]}": torch.ones(48, 1, 1)}
    with pytest.raises(CheckpointError, match=r"original0` is \[48, 1, 1\] for a weight of \[48, 12, 16\]"):
        load_all(state, tmp_path)


def test_half_of_a_weight_norm_is_a_missing_weight(tmp_path):
    state = {k: v for k, v in tiny().state_dict().items() if not k.endswith(NEW[0])}
    with pytest.raises(CheckpointError, match=r"1 weights are missing: audio.encoder.pos_conv_embed.conv.weight"):
        load_all(state, tmp_path)


def test_two_encoders_in_one_file_are_refused(tmp_path):
    state = {**tiny().state_dict(), "hubert.encoder.layer_norm.bias": torch.zeros(48)}
    with pytest.raises(CheckpointError, match=r"`audio.encoder.layer_norm.bias` is there twice, once as `hubert.encoder.layer_norm.bias`"):
        load_all(state, tmp_path)


def test_an_encoder_alone_is_refused_by_what_is_missing(tmp_path):
    with pytest.raises(CheckpointError, match=r"weights are missing.*video\.features\.0\.0\.weight|missing, first `video\.features\.0\.0\.weight`"):
        load_all(dict(published()[0].state_dict()), tmp_path)


# --------------------------------------------------------------------------- training


def test_in_eval_mode_training_computes_what_inference_does():
    video, wave = window()
    with torch.inference_mode():
        want, got = tiny()(video, wave), mhlt.train_forward(tiny(), {"video": video, "wave": wave})
    assert set(got) == set(mhlt.OUTPUTS) and all(torch.allclose(got[k], want[k], atol=1e-6) for k in got)


def test_a_silenced_input_given_once_counts_for_all():
    video, wave = window()
    silence, dark = torch.zeros(1, TINY.samples), torch.zeros(1, *video.shape[1:])
    with torch.inference_mode():
        once = mhlt.train_forward(tiny(), {"video": video, "wave": silence})["o"], mhlt.train_forward(tiny(), {"video": dark, "wave": wave})["o"]
        each = tiny()(video, silence.expand(2, -1))["o"], tiny()(dark.expand(2, *video.shape[1:]), wave)["o"]
    assert all(torch.allclose(a, b, atol=1e-6) and a.shape == (2,) for a, b in zip(once, each, strict=True))


def test_the_gradient_reaches_every_weight():
    torch.manual_seed(0)
    module = mhlt.for_training(mhlt.build(TINY)).train()
    video, wave = window(3)
    sum(mhlt.train_forward(module, {"video": video, "wave": wave}).values()).square().sum().backward()
    unreached = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert unreached == ["audio.masked_spec_embed"]
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)


def test_towers_train_the_encoders_of_the_module_itself():
    module = mhlt.build(TINY)
    towers = mhlt.towers(module)
    assert {name: (t.source, t.label) for name, t in towers.items()} == {"video": ("video", "v"), "audio": ("wave", "a")}
    assert towers["video"].encoder is module.video and towers["audio"].encoder is module.audio
    video, wave = window(3)
    batch = {"video": video, "wave": wave}
    for mode in (True, False):
        for tower in towers.values():
            (out,) = tower.train(mode)(batch).values()
            assert out.shape == (3,) and out.isfinite().all() and out.dtype is torch.float32


def test_the_layout_for_training_changes_no_value():
    with torch.inference_mode():
        want = tiny()(*window())
        other = mhlt.build(TINY).eval()
        other.load_state_dict(tiny().state_dict())
        got = mhlt.for_training(other)(*window())
    assert all(torch.allclose(want[k], got[k], atol=1e-5) for k in want)


def test_rows_of_the_backbone_expand_and_add_as_published():
    features = mobilenet3d.MobileNetV2_3D().features
    blocks = [b for b in features if isinstance(b, mobilenet3d.InvertedResidual)]
    assert len(features) == 19 and len(blocks) == 17
    assert [b.use_res_connect for b in blocks] == [False, *[False, True], *[False, True, True], *[False, True, True, True], *[False, True, True], *[False, True, True], False]
    assert [len(b.conv) for b in blocks] == [5, *[8] * 16]  # the first expands by 1: no expansion

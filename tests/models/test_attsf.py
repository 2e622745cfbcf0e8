"""ATTSF-Net has the published sizes, folds exactly, its engines make the whole, and what is pruned was unread."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit import graph
from edgekit.errors import CheckpointError
from edgekit.float_model import torch_session
from edgekit.flow import run_flow, runs_per_window
from edgekit.models import CONFIG_NAMES, attsf, checkpoint, groups, narrow
from edgekit.models.blocks.efficientface import EfficientFace
from edgekit.preprocess import shapes, sources

TINY = attsf.CONFIGS["tiny"]
# One of everything that is optional.
RICH = replace(TINY, fusion="gat", text=7, text_width=20, sab_residual=True)
WORLDS = {"net": TINY, "l2": replace(TINY, fusion="l2"), "rich": RICH, "score": replace(TINY, text=7, text_width=20, classes=())}


@functools.cache
def on_meta(name: str) -> attsf.ATTSF:
    with torch.device("meta"):
        return attsf.build(attsf.CONFIGS[name]).eval()


@functools.cache
def world(name: str) -> attsf.ATTSF:
    """As built, not folded, with norms, statistics, positions and a token that treat no two features alike."""
    torch.manual_seed(3)
    module = attsf.build(WORLDS[name]).eval()
    with torch.no_grad():
        for sub in module.modules():
            if isinstance(sub, (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)):
                sub.weight.uniform_(0.5, 1.5)
                sub.bias.uniform_(-0.5, 0.5)
            if isinstance(sub, (nn.BatchNorm1d, nn.BatchNorm2d)):
                sub.running_mean.uniform_(-0.5, 0.5)
                sub.running_var.uniform_(0.5, 1.5)
            if isinstance(sub, nn.Conv2d):  # as built, the signal dies out on its way
                nn.init.kaiming_normal_(sub.weight)
        for parameter in (module.pos_a, module.pos_v, module.token):
            parameter.normal_()
    return module


@functools.cache
def folded(name: str) -> attsf.ATTSF:
    module = attsf.build(WORLDS[name]).eval()
    module.load_state_dict(world(name).state_dict())
    return attsf.fold(module)


def batch(cfg: attsf.Config, n: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(n)
    size = cfg.face.image
    rows = {
        "mfcc": torch.randn(n, cfg.coefficients, cfg.steps, generator=generator),
        "video": torch.rand(n, cfg.frames, 3, size, size, generator=generator),
    }
    return rows | ({"text": torch.randn(n, cfg.text, cfg.text_width, generator=generator)} if cfg.text else {})


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# --------------------------------------------------------------------------- numbers of the paper's model


def test_the_default_has_6_378_478_parameters_part_by_part():
    assert parameters(on_meta("default")) == 6_378_478
    assert {name: parameters(part) for name, part in on_meta("default").named_children()} == {
        "audio": 225_216, "video": 1_268_118, "lstm_a": 132_096, "lstm_v": 590_848, "len_a": 14_080, "len_v": 2_048,
        "cmb_a": 1_093_632, "cmb_v": 1_093_632, "sab": 1_390_848, "avam_a": 264_960, "avam_v": 264_960, "head": 3_080, "aux_a": 1_032, "aux_v": 1_032,
    }  # fmt: skip
    assert [tuple(p.shape) for p in (on_meta("default").pos_a, on_meta("default").pos_v, on_meta("default").token)] == [(1, 128, 128), (1, 128, 128), (1, 1, 128)]


@pytest.mark.parametrize(
    ("name", "count"),
    [("ravdess_l2", 6_378_478), ("ravdess_gat", 6_379_506), ("iemocap", 5_424_354), ("iemocap_text", 5_424_354 + 459_776 + 3_264 + 99_584 + 512), ("tiny", 110_949)],
)
def test_variants_have_the_published_number_of_parameters(name, count):
    assert parameters(on_meta(name)) == count


def test_text_adds_an_lstm_a_length_and_an_encoder():
    text = {name: parameters(part) for name, part in on_meta("iemocap_text").named_children() if name.endswith("_t")}
    assert text == {"lstm_t": 459_776, "len_t": 3_264, "avam_t": 99_584}
    assert tuple(on_meta("iemocap_text").head.weight.shape) == (4, 512) and tuple(on_meta("mosi").head.weight.shape) == (1, 512)


@pytest.mark.parametrize("name", ["small", "small_l2", "small_gat"])
def test_small_stays_under_a_megabyte_in_float16(name):
    assert sum(v.numel() for v in on_meta(name).state_dict().values()) < 490_000


def test_each_audio_layer_shortens_by_three_steps():
    rows, x = [], torch.empty(1, 12, 121, device="meta")
    for layer in on_meta("default").audio.cnn:
        x = layer(x)
        rows.append(tuple(x.shape[1:]))
    assert rows == [(64, 118), (128, 115), (256, 112), (128, 109)]
    assert (on_meta("default").len_a.in_channels, on_meta("tiny").len_a.in_channels) == (109, 28)


@pytest.mark.parametrize("name", attsf.CONFIGS)
def test_engines_have_the_shapes_that_they_state(name):
    cfg = attsf.CONFIGS[name]
    with torch.device("meta"):
        module = attsf.fold(attsf.build(cfg)).eval()
        made = attsf.engines(module, cfg)
        assert [e.name for e in made] == ["face", "head"]
        for engine in made:
            outputs = engine.module(*[torch.empty(shape) for shape in engine.inputs.values()])
            assert isinstance(outputs, tuple)
            assert [tuple(o.shape) for o in outputs] == list(engine.outputs.values()), engine.name


def test_a_window_of_the_default_costs_2_8_gmac_of_which_faces_2_25():
    """By torch's own counter, which leaves the LSTMs out: 0.02 G."""
    from torch.utils.flop_counter import FlopCounterMode

    cfg, gmac = attsf.CONFIGS["default"], {}
    with torch.device("meta"):
        for engine in attsf.engines(attsf.build(cfg).eval(), cfg):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                engine.module(*[torch.empty(shape) for shape in engine.inputs.values()])
            gmac[engine.name] = counter.get_total_flops() / 2e9
    runs = runs_per_window(attsf.flow(cfg))
    assert runs == {"face": 15, "head": 1}
    assert gmac["face"] * 15 == pytest.approx(2.25, abs=0.02)
    assert sum(gmac[name] * times for name, times in runs.items()) == pytest.approx(2.81, abs=0.01)


@torch.inference_mode()
def test_all_frames_at_once_give_what_one_after_the_other_give():
    x = {name: value.numpy() for name, value in batch(TINY).items()}
    answers = []
    for cfg in (TINY, replace(TINY, at_once=True)):
        sessions = {e.name: torch_session(e) for e in attsf.engines(folded("net"), cfg)}
        answers.append(run_flow(attsf.flow(cfg), sessions, {name: value[0] for name, value in x.items()})["emotion"])
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-5)
    assert runs_per_window(attsf.flow(replace(TINY, at_once=True))) == {"face": 1, "head": 1}


# --------------------------------------------------------------------------- the whole, its parts and its folded form


@pytest.mark.parametrize("name", WORLDS)
@torch.inference_mode()
def test_folding_changes_no_answer(name):
    x = batch(WORLDS[name])
    (want,), (got,) = world(name)(**x).values(), folded(name)(**x).values()
    assert torch.allclose(got, want, atol=1e-5) and want.abs().max() > 0.05


def test_folding_saves_what_one_token_makes_superfluous():
    with torch.device("meta"):
        module = attsf.fold(attsf.build(attsf.CONFIGS["default"]))
    square, line = 128 * 128, 128
    every = 6 * (square + line)  # of six projections three stay, of the attention's four one
    lost = 6 * every + square + 128 + 2 * 128  # the first query is a constant; the token; the biases over time
    assert parameters(on_meta("default")) - parameters(module) == lost == 611_200


@pytest.mark.parametrize("name", WORLDS)
def test_folding_twice_is_folding_once(name):
    state = {k: v.clone() for k, v in folded(name).state_dict().items()}
    assert all(torch.equal(v, state[k]) for k, v in attsf.fold(folded(name)).state_dict().items())
    assert all(torch.equal(v, state[k]) for k, v in attsf.normalize_keys(state, WORLDS[name]).items())


@torch.inference_mode()
def test_the_blocks_are_wired_as_decided():
    """Both streams advance together, the token reads what they have become, and each modality's own encoder sees the streams at the start."""
    module, x = world("net"), batch(TINY)
    audio = module.len_a(module.lstm_a(module.audio(x["mfcc"]))[0]) + module.pos_a
    frames = torch.stack([module.video(frame) for frame in x["video"].unbind(1)], 1)
    video = module.len_v(module.lstm_v(frames)[0]) + module.pos_v
    own = module.avam_a(audio), module.avam_v(video)
    token = module.token.expand(2, -1, -1)
    for i in range(TINY.layers):
        audio, video = module.cmb_a[i](audio, video), module.cmb_v[i](video, audio)
        token = module.sab[i](token, video, audio)
    want = module.head(torch.cat((audio.mean(1) + own[0], video.mean(1) + own[1], token[:, 0]), 1))
    assert torch.allclose(module(**x)["emotion"], want, atol=1e-5)
    got = module.fuse(*module.streams(x["mfcc"], frames), for_loss=True)
    assert torch.allclose(got["emotion_a"], module.aux_a(own[0]), atol=1e-5) and torch.allclose(got["emotion_v"], module.aux_v(own[1]), atol=1e-5)


@torch.inference_mode()
def test_the_three_rules_of_fusion():
    mixed, own = torch.randn(2, 32), torch.randn(2, 32)
    assert torch.equal(world("net")._combine("a", mixed, own), mixed + own)
    m, u = mixed.norm(dim=1, keepdim=True), own.norm(dim=1, keepdim=True)
    assert torch.allclose(world("l2")._combine("a", mixed, own), (m * mixed + u * own) / (m + u), atol=1e-6)
    zero = torch.zeros(1, 32)
    assert torch.equal(world("l2")._combine("v", zero, zero), zero)
    rich = world("rich")
    for modality, gate in (("a", rich.gate_a), ("v", rich.gate_v)):
        w = gate(torch.cat((own, mixed), 1)).softmax(1)
        assert torch.allclose(rich._combine(modality, mixed, own), w[:, 0:1] * own + w[:, 1:2] * mixed, atol=1e-6)


@pytest.mark.parametrize("name", WORLDS)
def test_engines_along_the_flow_equal_the_whole(name):
    cfg = WORLDS[name]
    x = batch(cfg, 1)
    flow = attsf.flow(cfg)
    got = run_flow(flow, {e.name: torch_session(e) for e in attsf.engines(folded(name), cfg)}, {k: v[0].numpy() for k, v in x.items()})
    with torch.inference_mode():
        want = world(name)(**x)[cfg.output][0]
    assert list(got) == flow["outputs"] == [cfg.output] == [flow["primary"]]
    assert np.allclose(got[cfg.output], want.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", WORLDS)
def test_exported_engines_compute_what_torch_does(name, tmp_path):
    cfg = WORLDS[name]
    for engine in attsf.engines(folded(name), cfg):
        path = tmp_path / f"{engine.name}.onnx"
        graph.export_onnx(engine, path)
        generator = torch.Generator().manual_seed(5)
        feeds = [torch.rand(shape, generator=generator) for shape in engine.inputs.values()]
        with torch.inference_mode():
            want = engine.module(*feeds)
        got = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {k: v.numpy() for k, v in zip(engine.inputs, feeds, strict=True)})
        for a, b in zip(got, want, strict=True):
            assert np.abs(a - b.numpy()).max() <= 1e-4 and b.abs().max() > 1e-2


def test_the_heads_of_training_are_not_exported(tmp_path):
    head = attsf.engines(folded("rich"), RICH)[1]
    assert not any(name.startswith("aux_") or name.startswith("video") for name, _ in head.module.named_parameters())
    graph.export_onnx(head, tmp_path / "head.onnx")
    initializers = {i.name for i in onnx.load(tmp_path / "head.onnx").graph.initializer}
    assert any("avam_t" in name for name in initializers) and not any("aux" in name for name in initializers)


# --------------------------------------------------------------------------- configurations


def test_the_plan_knows_every_configuration():
    assert CONFIG_NAMES["attsf"] == tuple(attsf.CONFIGS)


@pytest.mark.parametrize("name", attsf.CONFIGS)
def test_a_configuration_survives_json(name):
    cfg = attsf.CONFIGS[name]
    assert attsf.Config.from_json(json.loads(json.dumps(cfg.to_json()))) == cfg


@pytest.mark.parametrize("wrong", [{"fusion": "sum"}, {"similarity": "cosine"}])
def test_an_unknown_choice_is_refused(wrong):
    with pytest.raises(ValueError, match="must be one of"):
        replace(TINY, **wrong)


@pytest.mark.parametrize("name", attsf.CONFIGS)
def test_flow_preprocessing_and_engines_agree_on_shapes(name):
    cfg = attsf.CONFIGS[name]
    flow, spec = attsf.flow(cfg), attsf.preprocess_spec(cfg)
    assert {k: v["shape"] for k, v in flow["inputs"].items()} == {k: list(v) for k, v in shapes(spec).items()}
    assert sources(spec) == {"video": "video", "mfcc": "audio"} | ({"text": "features"} if cfg.text else {})
    engines = {e.name: e for e in attsf.engines(on_meta(name), cfg)}
    [(port, shape)] = engines["face"].inputs.items()
    assert (port, [*shape[1:]]) == (("frames", flow["inputs"]["video"]["shape"]) if cfg.at_once else ("frame", flow["inputs"]["video"]["shape"][1:]))
    assert [*engines["head"].inputs["mfcc"][1:]] == flow["inputs"]["mfcc"]["shape"]
    assert engines["head"].inputs["frame_features"][1] == cfg.frames
    assert {step["engine"] for step in flow["steps"]} == set(engines) == set(flow["rates_hz"])
    units = attsf.io_spec(cfg)
    assert set(units["inputs"]) == set(flow["inputs"]) and list(units["outputs"]) == flow["outputs"]
    if cfg.classes:
        assert flow["task"] == "classes" and flow["classes"] == list(cfg.classes) and engines["head"].outputs == {"emotion": (1, len(cfg.classes))}
    else:
        assert flow["task"] == "value" and engines["head"].outputs == {"score": (1,)}


def test_the_papers_window_takes_every_seventh_frame_from_the_fourth():
    video = attsf.preprocess_spec(attsf.CONFIGS["default"])["video"]
    assert [min(i * 108 // 15 + 108 // video["offset_divisor"], 107) for i in range(3)] == [3, 10, 17]
    assert (video["sampling"], video["window_frames"], attsf.CONFIGS["default"].samples) == ("floor_offset", 108, 57_600)


# --------------------------------------------------------------------------- checkpoints


def test_a_trained_checkpoint_becomes_the_folded_model(tmp_path):
    path = tmp_path / "trained.pth.tar"
    torch.save({"state_dict": {f"module.{k}": v for k, v in world("rich").state_dict().items()}}, path)
    module = attsf.fold(attsf.build(RICH)).eval()
    assert checkpoint.load_into(module, attsf.normalize_keys(checkpoint.read_state(path), RICH), path) == []
    with torch.inference_mode():
        assert torch.equal(module(**batch(RICH))["emotion"], folded("rich")(**batch(RICH))["emotion"])


def test_torchs_spelling_of_attention_is_accepted():
    state = dict(world("net").state_dict())
    for key in [k for k in state if k.endswith("q_proj.weight")]:
        base = key.removesuffix("q_proj.weight")
        for t in ("weight", "bias"):
            state[f"{base}in_proj_{t}"] = torch.cat([state.pop(f"{base}{p}_proj.{t}") for p in "qkv"])
    got = attsf.normalize_keys(state, TINY)
    want = folded("net").state_dict()
    assert set(got) == set(want) and all(torch.equal(got[k], want[k]) for k in want)


def test_the_public_efficientface_lands_in_the_video_encoder(tmp_path):
    torch.manual_seed(8)
    public = EfficientFace(TINY.face).state_dict()
    path = tmp_path / "EfficientFace_Trained_on_AffectNet7.pth.tar"
    torch.save({"state_dict": {f"module.{k}": v for k, v in {**public, "fc.weight": torch.zeros(7, 64), "fc.bias": torch.zeros(7)}.items()}}, path)
    state = attsf.normalize_keys(checkpoint.read_state(path), TINY)
    assert set(state) == {k for k in world("net").state_dict() if k.startswith("video.")}
    assert all(torch.equal(state[f"video.{k}"], v) for k, v in public.items())
    with pytest.raises(CheckpointError, match="weights are missing"):  # it is not the whole model
        checkpoint.load_into(attsf.fold(attsf.build(TINY)), state, path)


# --------------------------------------------------------------------------- training


@pytest.mark.parametrize("name", WORLDS)
@torch.inference_mode()
def test_in_eval_mode_training_computes_what_inference_does_from_frames_or_their_vectors(name):
    x = batch(WORLDS[name])
    want = world(name)(**x)
    got = attsf.train_forward(world(name), x)
    encoded = attsf.encode(world(name), x)
    assert "video" not in encoded and encoded["frame_features"].shape == (2, TINY.frames, TINY.face.last)
    again = attsf.train_forward(world(name), encoded)
    assert set(got) == set(again) == set(want)
    assert all(torch.allclose(got[k], want[k], atol=1e-6) and torch.allclose(again[k], want[k], atol=1e-6) for k in want)


@torch.inference_mode()
def test_a_silenced_input_given_once_counts_for_all():
    x = batch(TINY)
    for silent in ("mfcc", "video"):
        zeros = torch.zeros(1, *x[silent].shape[1:])
        once = attsf.train_forward(world("net"), {**x, silent: zeros})["emotion"]
        each = world("net")(**{**x, silent: zeros.expand_as(x[silent])})["emotion"]
        assert once.shape == (2, 8) and torch.allclose(once, each, atol=1e-5)


@pytest.mark.parametrize("similarity", attsf.SIMILARITIES)
def test_the_loss_is_equation_18(similarity):
    torch.manual_seed(0)
    module = attsf.build(replace(TINY, similarity=similarity, dropout=0.0)).train()
    out = attsf.train_forward(module, batch(TINY, 3))
    label = torch.tensor([0.0, 7.0, 3.0])
    assert {k: tuple(v.shape) for k, v in out.items()} == {"emotion": (3, 8), "emotion_a": (3, 8), "emotion_v": (3, 8), "similarity": (3,)}
    heads = [F.cross_entropy(out[k], label.long()).item() for k in ("emotion", "emotion_a", "emotion_v")]
    want = heads[0] + 0.5 * heads[1] + 0.5 * heads[2] + 0.3 * out["similarity"].mean().item()
    assert attsf.loss(out, {"emotion": label}).item() == pytest.approx(want, rel=1e-5)
    assert attsf.loss({"emotion": out["emotion"]}, {"emotion": label}).item() == pytest.approx(heads[0], rel=1e-5)


def test_a_score_is_trained_by_its_distance():
    cfg = WORLDS["score"]
    torch.manual_seed(0)
    out = attsf.train_forward(attsf.build(cfg).train(), batch(cfg, 3))
    label = torch.tensor([-3.0, 0.5, 2.0])
    apart = [(out[k] - label).abs().mean().item() for k in ("score", "score_a", "score_v")]
    want = apart[0] + 0.5 * apart[1] + 0.5 * apart[2] + 0.3 * out["similarity"].mean().item()
    assert attsf.loss(out, {"score": label}).item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("name", WORLDS)
def test_the_gradient_reaches_every_weight_but_those_of_one_tokens_attention(name):
    cfg = replace(WORLDS[name], dropout=0.0)
    torch.manual_seed(0)
    module = attsf.for_training(attsf.build(cfg)).train()
    label = torch.tensor([1.0, 2.0, 0.0])
    attsf.loss(attsf.train_forward(module, batch(cfg, 3)), {cfg.output: label}).backward()
    unreached = {n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()}
    assert unreached == {f"sab.{i}.mha.{p}_proj.{t}" for i in range(cfg.layers) for p in "qk" for t in ("weight", "bias")}
    assert all(p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("name", ["net", "score"])
def test_towers_train_the_encoders_of_the_module_itself(name):
    cfg = WORLDS[name]
    module = attsf.build(cfg)
    towers = attsf.towers(module)
    assert {k: t.source for k, t in towers.items()} == {"video": "video", "audio": "mfcc"}
    for mode in (True, False):
        for tower in towers.values():
            out = tower.train(mode)(batch(cfg, 3))
            loss = attsf.loss(out, {cfg.output: torch.tensor([1.0, 2.0, 0.0])})
            assert out[cfg.output].shape == ((3, 8) if cfg.classes else (3,)) and loss.isfinite()
            loss.backward()
    trained = {n.split(".")[0] for n, p in module.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {"video", "audio", "lstm_a"}


def test_augmenting_moves_light_place_and_time_and_leaves_the_original():
    x = batch(TINY, 4)
    before = {k: v.clone() for k, v in x.items()}
    one, two, again = (attsf.augment(x, torch.Generator().manual_seed(seed)) for seed in (1, 2, 1))
    for k in x:
        assert torch.equal(x[k], before[k]) and torch.equal(one[k], again[k]) and not torch.equal(one[k], two[k]) and one[k].shape == x[k].shape
    for i in range(4):  # but for time, all coefficients above the first are as they were
        moved = one["mfcc"][i, 1:]
        assert any(torch.equal(moved, x["mfcc"][i, 1:].roll(shift, -1)) for shift in (-2, -1, 0, 1, 2))


# --------------------------------------------------------------------------- pruning


@functools.cache
def all_groups() -> dict[str, groups.Group]:
    return {g.name: g for g in attsf.prune_groups(folded("rich"), RICH)}


OWN_GROUPS = [
    *(f"audio.cnn.{i}.0" for i in range(4)),
    *(f"cmb_{m}.{i}.{part}" for m in "av" for i in range(2) for part in ("q", "mha", "ffn.0")),
    *(f"sab.{i}.ffn.0" for i in range(2)),
    *(f"avam_{m}.layers.0.{part}" for m in "avt" for part in ("self_attn", "linear1")),
    "video.conv5.0",
]  # fmt: skip


def some_units(group: groups.Group) -> dict[str, list[int]]:
    generator = torch.Generator().manual_seed(len(group.name))
    return {a.name: torch.randperm(a.units, generator=generator)[: group.granules // 2 * a.step].tolist() for a in group.axes}


def silenced(cut: groups.Cut) -> dict[str, Tensor]:
    """The state with everything at zero that reads a cut unit."""
    state = {k: v.clone() for k, v in folded("rich").state_dict().items()}
    for key, slices in groups.slices_by_tensor(all_groups().values(), cut).items():
        state[key][groups.mark(state[key].shape, [(s, u) for s, u in slices if s.role == "in"])] = 0.0
    return state


def with_state(state: dict[str, Tensor], heads: dict[str, int]) -> attsf.ATTSF:
    module = attsf.fold(attsf.build(RICH)).eval()
    narrow.fit(module, state, heads)
    module.load_state_dict(state, strict=True)
    return module


@torch.inference_mode()
def answers(module: attsf.ATTSF) -> Tensor:
    return module(**batch(RICH, 3))["emotion"]


def test_these_can_be_pruned():
    assert [n for n in all_groups() if not n.startswith("video.stage")] == ["video.conv5.0", *OWN_GROUPS[:-1]]


@pytest.mark.parametrize("name", OWN_GROUPS)
def test_removing_units_that_nobody_reads_changes_nothing(name):
    group = all_groups()[name]
    cut = {name: some_units(group)}
    heads = narrow.heads(folded("rich"))
    wide = with_state(silenced(cut), heads)
    slim = with_state(groups.remove(folded("rich").state_dict(), [group], cut), groups.heads_after(heads, [group], cut))
    assert parameters(slim) < parameters(folded("rich"))
    assert torch.allclose(answers(slim), answers(wide), atol=1e-5)
    assert (answers(wide) - answers(folded("rich"))).abs().max() > 1e-4  # they mattered


def test_all_groups_can_be_cut_at_once():
    every = list(all_groups().values())
    cut = {g.name: some_units(g) for g in every}
    heads = narrow.heads(folded("rich"))
    slim = with_state(groups.remove(folded("rich").state_dict(), every, cut), groups.heads_after(heads, every, cut))
    assert torch.allclose(answers(slim), answers(with_state(silenced(cut), heads)), atol=1e-5)
    assert set(narrow.heads(slim).values()) == {2}
    assert attsf.engines(slim, RICH)[0].outputs == {"frame_feature": (1, 32)}
    assert {g.name for g in attsf.prune_groups(slim, RICH)} == set(all_groups())


def test_every_unprunable_layer_of_the_note_exists():
    assert set(attsf.UNPRUNABLE) <= set(dict(folded("rich").named_modules()))


def test_key_names_stay():
    """A renamed module would orphan what is trained."""
    heads = {k.split(".")[0] for k in world("rich").state_dict()}
    assert heads == {"audio", "video", "lstm_a", "lstm_v", "lstm_t", "len_a", "len_v", "len_t", "pos_a", "pos_v", "token", "cmb_a", "cmb_v", "sab", "avam_a", "avam_v", "avam_t",
                     "gate_a", "gate_v", "head", "aux_a", "aux_v"}  # fmt: skip
    assert {k.split(".", 2)[2] for k in world("rich").state_dict() if k.startswith("cmb_a.0.")} == {
        f"{layer}.{t}" for layer in ("q", "k", "v", "ln1", "ln2", "ln3", "ffn.0", "ffn.2", *(f"mha.{p}_proj" for p in ("q", "k", "v", "out"))) for t in ("weight", "bias")
    }

"""AVT-CA: the paper's counts and shapes, the release's checkpoints, one graph per engine, and pruning that is exact."""

from __future__ import annotations

import functools
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit import graph, models, pruning
from edgekit.datasets import Clip
from edgekit.errors import CheckpointError
from edgekit.float_model import torch_session
from edgekit.flow import Live, run_flow, runs_per_window
from edgekit.models import avtca, checkpoint, groups, narrow
from edgekit.preprocess import preprocess

TINY = avtca.CONFIGS["tiny"]
# The public module at this test's sizes, since both have the same blocks.
RELEASE = replace(TINY, variant="release", channel_order="bgr")



def is_close(got: torch.Tensor, want: torch.Tensor) -> bool:
    """Within 1e-5 of the largest value: sums over other shapes round otherwise, and random nets say tens."""
    return got.shape == want.shape and bool((got - want).abs().max() <= 1e-5 * want.abs().max().clamp_min(1))


def lively(module: nn.Module, seed: int = 3) -> nn.Module:
    """Weights under which signals neither die out nor treat all channels alike."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for sub in module.modules():
            if isinstance(sub, (nn.Conv1d, nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(sub.weight)
            if isinstance(sub, (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)):
                sub.weight.uniform_(0.5, 1.5)
                sub.bias.uniform_(-0.5, 0.5)
            if isinstance(sub, (nn.BatchNorm1d, nn.BatchNorm2d)):
                sub.running_mean.uniform_(-0.5, 0.5)
                sub.running_var.uniform_(0.5, 1.5)
        for path, sub in module.named_modules():  # attention between flat and one-hot
            if path.endswith(("q_proj", "k_proj")):
                sub.weight.mul_(0.5)
    return module.eval()


@functools.cache
def model(variant: str = "paper") -> avtca.AVTCA:
    return lively(avtca.fold(avtca.build(TINY if variant == "paper" else RELEASE)))


def window(n: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    size = TINY.face.image
    return {
        "mfcc": torch.randn(n, TINY.coefficients, TINY.steps, generator=generator),
        "video": torch.rand(n, TINY.frames, 3, size, size, generator=generator),
    }


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# --- sizes ---


@pytest.mark.parametrize(("name", "parameters"), [("default", 2_199_774), ("release", 2_002_398), ("cremad", 2_199_260), ("small", 460_359), ("tiny", 53_901)])
def test_parameters(name, parameters):
    assert count(avtca.build(avtca.CONFIGS[name])) == parameters


def test_parts_of_the_paper_have_the_published_counts():
    module = avtca.build(avtca.CONFIGS["default"])
    net, eyes = module.audio_model, module.visual_model
    faces = sum(count(child) for name, child in eyes.named_children() if not name.startswith("conv1d"))
    assert (count(net.conv1d_0) + count(net.conv1d_1), count(net.conv1d_2) + count(net.conv1d_3)) == (27_072, 197_760)
    assert (faces, count(eyes.conv1d_0) + count(eyes.conv1d_1), count(eyes.conv1d_2) + count(eyes.conv1d_3)) == (1_268_118, 209_280, 74_496)
    assert (count(module.av1), count(module.va1), count(module.sav), count(module.fa), count(module.classifier_1)) == (115_840, 41_728, 65_664, 66_048, 2_056)
    assert count(avtca.build(avtca.CONFIGS["release"]).finalAttention) == 66_048


def test_streams_have_the_published_lengths():
    cfg = avtca.CONFIGS["default"]
    module, shapes = avtca.build(cfg).eval(), {}
    for path in ("av1", "va1", "sav", "sva", "fa", "fv"):
        module.get_submodule(path).register_forward_hook(lambda _, __, out, path=path: shapes.update({path: tuple(out.shape[1:])}))
    assert cfg.steps == 156
    with torch.inference_mode():
        logits = module.fuse(torch.zeros(1, 10, 156), torch.zeros(1, 15, 1024))
    assert logits.shape == (1, 8)
    assert shapes == {"av1": (150, 128), "sav": (144, 128), "fa": (144, 128), "va1": (15, 64), "sva": (15, 128), "fv": (15, 128)}


def test_small_fits_half_a_million_numbers():
    assert sum(v.numel() for v in avtca.build(avtca.CONFIGS["small"]).state_dict().values()) == 469_137


def test_registered_configurations_are_the_models():
    assert models.MODELS["avtca"] == "edgekit.models.avtca" and models.CONFIG_NAMES["avtca"] == tuple(avtca.CONFIGS)
    for cfg in avtca.CONFIGS.values():
        assert avtca.Config.from_json(json.loads(json.dumps(cfg.to_json()))) == cfg


@pytest.mark.parametrize("wrong", [{"variant": "papre"}, {"video": (16, 16, 32, 16)}])
def test_configurations_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValueError, match="variant"):
        avtca.build(replace(TINY, **wrong))


# --- the definition, again ---


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention of [t, d] and [s, d], head by head."""
    d = q.shape[1] // heads
    parts = []
    for h in range(heads):
        of_head = slice(h * d, (h + 1) * d)
        scores = q[:, of_head] @ k[:, of_head].T / d**0.5
        parts.append(torch.exp(scores) / torch.exp(scores).sum(1, keepdim=True) @ v[:, of_head])
    return torch.cat(parts, 1)


def test_attention_is_the_textbooks():
    block = lively(avtca.Attention(8, 12, 2, bias=True))
    generator = torch.Generator().manual_seed(2)
    query, memory = torch.randn(5, 8, generator=generator), torch.randn(3, 12, generator=generator)
    with torch.inference_mode():
        expected = block.out_proj(attend(block.q_proj(query), block.k_proj(memory), block.v_proj(memory), 2))
        assert torch.allclose(block(query[None], memory[None])[0], expected, atol=1e-5)


def test_a_block_replaces_its_query_and_adds_its_mlp():
    block = lively(avtca.AttentionBlock(8, 12, 2, 2))
    generator = torch.Generator().manual_seed(2)
    query, memory = torch.randn(1, 5, 8, generator=generator), torch.randn(1, 3, 12, generator=generator)
    with torch.inference_mode():
        asked = block.attn(block.norm1_q(query), block.norm1_k(memory))
        expected = asked + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(asked))))
        assert torch.allclose(block(query, memory), expected, atol=1e-6)


def test_the_release_is_what_its_sources_say():
    """Streams step by step with torch's own attention, [t, n, d] as there."""
    module, inputs = model("release"), window()
    a, v = module.audio_model, module.visual_model
    ends = nn.MultiheadAttention(32, 2)
    with torch.inference_mode():
        ends.in_proj_weight.copy_(torch.cat([getattr(module.finalAttention, f"{p}_proj").weight for p in "qkv"]))
        ends.in_proj_bias.copy_(torch.cat([getattr(module.finalAttention, f"{p}_proj").bias for p in "qkv"]))
        ends.out_proj.load_state_dict(module.finalAttention.out_proj.state_dict())
        frames = inputs["video"]
        audio = a.conv1d_1(a.conv1d_0(inputs["mfcc"]))
        video = v.conv1d_1(v.conv1d_0(torch.stack([v.features(x) for x in frames]).permute(0, 2, 1)))
        heard, seen = audio.permute(0, 2, 1), video.permute(0, 2, 1)
        h_av, h_va = module.av1(heard, seen), module.va1(seen, heard)
        audio = a.conv1d_3(a.conv1d_2(h_av.permute(0, 2, 1) + audio)).permute(2, 0, 1)
        video = v.conv1d_3(v.conv1d_2(h_va.permute(0, 2, 1) + video)).permute(2, 0, 1)
        pooled = [ends(x, x, x)[0].permute(1, 2, 0).mean(-1) for x in (audio, video)]
        expected = module.classifier_1(torch.cat(pooled, -1))
        assert torch.allclose(module(**inputs), expected, atol=1e-4)


def test_the_paper_pools_the_maximum_over_time_of_each_streams_own_attention():
    module, inputs, seen = model(), window(), {}
    hooks = [
        getattr(module, name).register_forward_hook(lambda _, args, out, name=name: seen.update({name: (args, out)})) for name in ("sav", "sva", "fa", "fv")
    ]
    with torch.inference_mode():
        logits = module(**inputs)
        for own, other, last in (("sav", "sva", "fa"), ("sva", "sav", "fv")):
            stream = seen[own][0][0]
            assert torch.equal(seen[own][0][1], seen[other][0][0]), "each asks the other stream"
            assert torch.equal(seen[last][0][0], stream + seen[own][1]) and seen[last][0][0] is seen[last][0][1]
        pooled = torch.cat([seen[name][1].max(1).values for name in ("fa", "fv")], 1)
        assert torch.equal(logits, module.classifier_1(pooled))
    for hook in hooks:
        hook.remove()


# --- checkpoints ---


def public(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state in the release's spelling, with the heads that it does not use."""
    out = {}
    for key, value in state.items():
        if "finalAttention" in key and "_proj." in key and "out_proj" not in key:
            continue
        if ".attn.k_proj" in key:
            out[key.replace("k_proj", "kv")] = torch.cat([value, state[key.replace("k_proj", "v_proj")]])
        elif ".attn.v_proj" not in key:
            out[key.replace(".attn.q_proj.", ".attn.q.").replace(".attn.out_proj.", ".attn.proj.")] = value
    for name in ("weight", "bias"):
        out[f"finalAttention.in_proj_{name}"] = torch.cat([state[f"finalAttention.{p}_proj.{name}"] for p in "qkv"])
    unused = {"weight": torch.zeros(8, 32), "bias": torch.zeros(8)}
    return out | {f"{net}.classifier_1.0.{name}": value for net in ("audio_model", "visual_model") for name, value in unused.items()}


def test_a_release_checkpoint_is_read_and_its_colours_turned(tmp_path):
    theirs = public(model("release").state_dict())
    torch.save({"state_dict": {f"module.{key}": value for key, value in theirs.items()}}, tmp_path / "release.pth")
    ours = avtca.fold(avtca.build(RELEASE))
    unused = checkpoint.load_into(ours, avtca.normalize_keys(checkpoint.read_state(tmp_path / "release.pth"), RELEASE), tmp_path)
    assert unused == []
    inputs = window()
    with torch.inference_mode():
        as_trained = model("release")(inputs["mfcc"], inputs["video"].flip(2))
        got = ours.eval()(**inputs)
        assert is_close(got, as_trained)
        assert (got - model("release")(**inputs)).abs().max() > 1e-2, "the colours mattered"


def test_a_normalization_of_the_coefficients_is_folded_into_the_first_convolution():
    mean, std = (-145.0, 99.0, -18.0, 18.0, -9.0, 5.0), (90.0, 36.0, 27.0, 19.0, 15.0, 12.0)
    cfg = replace(RELEASE, mfcc_mean=mean, mfcc_std=std, channel_order="rgb")
    ours = avtca.build(cfg)
    ours.load_state_dict(avtca.normalize_keys(public(model("release").state_dict()), cfg))
    inputs = window()
    plain = inputs["mfcc"] * torch.tensor(std)[:, None] + torch.tensor(mean)[:, None]
    with torch.inference_mode():
        expected = model("release")(plain, inputs["video"])
        assert torch.allclose(ours.eval()(**inputs), expected, atol=1e-4, rtol=1e-4)


def test_our_own_spelling_stays_as_it_is():
    for variant, cfg in (("paper", TINY), ("release", replace(RELEASE, mfcc_mean=(1.0,) * 6, mfcc_std=(2.0,) * 6))):
        state = model(variant).state_dict()
        again = avtca.normalize_keys(state, cfg)
        assert list(again) == list(state) and all(again[k] is v for k, v in state.items())


def test_spellings_that_contradict_are_refused():
    theirs = public(model("release").state_dict())
    with pytest.raises(CheckpointError, match="twice"):
        avtca.normalize_keys({**theirs, **model("release").state_dict()}, RELEASE)
    with pytest.raises(CheckpointError, match=r"\[5, 2\].*3 projections"):
        avtca.normalize_keys({"finalAttention.in_proj_weight": torch.zeros(5, 2)}, RELEASE)


# --- engines ---


@pytest.mark.parametrize("variant", ["paper", "release"])
def test_the_flow_equals_the_whole(variant):
    cfg = TINY if variant == "paper" else RELEASE
    sessions = {e.name: torch_session(e) for e in avtca.engines(model(variant), cfg)}
    inputs = window(1)
    with torch.inference_mode():
        expected = model(variant)(**inputs)[0].numpy()
    flow = avtca.flow(cfg)
    got = run_flow(flow, sessions, {name: value[0].numpy() for name, value in inputs.items()})
    assert is_close(torch.from_numpy(np.asarray(got["emotion"])), torch.as_tensor(np.asarray(expected)))
    assert runs_per_window(flow) == {"face": TINY.frames, "head": 1}


def test_engines_have_the_shapes_that_they_state():
    with torch.inference_mode():
        for engine in avtca.engines(model(), TINY):
            outputs = engine.module(*[torch.zeros(shape) for shape in engine.inputs.values()])
            assert [tuple(o.shape) for o in outputs] == list(engine.outputs.values())


def test_a_live_system_encodes_each_frame_once():
    sessions = {e.name: torch_session(e) for e in avtca.engines(model(), TINY)}
    generator = np.random.default_rng(0)
    frames = generator.random((TINY.frames + 2, 3, 64, 64), dtype=np.float32)
    sound = generator.standard_normal((TINY.coefficients, TINY.steps)).astype(np.float32)
    live = Live(avtca.flow(TINY), sessions)
    answers = [live.push({"video": frame}, {"mfcc": sound}) for frame in frames]
    assert [a is None for a in answers] == [True] * (TINY.frames - 1) + [False] * 3 and live.runs["face"] == len(frames)
    last = run_flow(avtca.flow(TINY), sessions, {"video": frames[-TINY.frames :], "mfcc": sound})
    assert np.allclose(answers[-1]["emotion"], last["emotion"], atol=1e-6)


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_the_exported_graphs_equal_the_model(name, tmp_path):
    import onnxruntime as ort

    cfg = avtca.CONFIGS[name]
    module = lively(avtca.fold(avtca.build(cfg)))
    for engine in avtca.engines(module, cfg):
        path = tmp_path / f"{engine.name}.onnx"
        graph.export_onnx(engine, path)
        generator = np.random.default_rng(1)
        feeds = {k: generator.standard_normal(shape).astype(np.float32) for k, shape in engine.inputs.items()}
        [want] = torch_session(engine)(feeds).values()
        [got] = ort.InferenceSession(str(path)).run(None, feeds)
        assert np.abs(got - want).max() <= 1e-4 * max(1.0, np.abs(want).max()), engine.name
        assert all(len(v.shape) <= 4 for node in graph.load(path).graph for v in node.outputs), "no runtime needs five axes"


def test_preprocessing_gives_what_the_flow_takes():
    generator = np.random.default_rng(4)
    for name in ("default", "small", "tiny"):
        cfg = avtca.CONFIGS[name]
        frames = generator.integers(0, 256, (40, 20, 20, 3), np.uint8)
        audio = generator.integers(-9000, 9000, cfg.samples - 100).astype(np.int16)
        inputs = preprocess(avtca.preprocess_spec(cfg), Clip("c", frames, 30.0, audio, cfg.sample_rate_hz, {}, {}))
        assert {k: list(v.shape) for k, v in inputs.items()} == {k: v["shape"] for k, v in avtca.flow(cfg)["inputs"].items()}
        assert set(avtca.io_spec(cfg)["inputs"]) == set(inputs)
        assert inputs["video"].min() >= 0 and inputs["video"].max() <= 1


def test_mfccs_come_without_their_mean():
    cfg = replace(avtca.CONFIGS["small"], mfcc_mean=(7.0,) * 10, mfcc_std=tuple(range(1, 11)))
    audio = np.random.default_rng(4).integers(-9000, 9000, cfg.samples).astype(np.int16)
    clip = Clip("c", np.zeros((8, 64, 64, 3), np.uint8), 5.0, audio, 16_000, {}, {})
    plain = preprocess(avtca.preprocess_spec(replace(cfg, mfcc_mean=(), mfcc_std=())), clip)["mfcc"]
    assert np.allclose(preprocess(avtca.preprocess_spec(cfg), clip)["mfcc"], (plain - 7) / np.arange(1, 11)[:, None], atol=1e-3)


# --- training ---


def test_training_reaches_every_weight_and_takes_encoded_frames():
    module = lively(avtca.build(TINY)).train()
    batch = window(4)
    avtca.loss(avtca.train_forward(module, batch), {"emotion": torch.tensor([0.0, 1.0, 2.0, 7.0])}).backward()
    assert [k for k, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []
    module.eval()
    with torch.inference_mode():
        whole = avtca.train_forward(module, batch)["emotion"]
        assert is_close(avtca.train_forward(module, avtca.encode(module, batch))["emotion"], whole)


@pytest.mark.parametrize("silent", ["mfcc", "video"])
def test_one_sample_of_a_modality_serves_all_of_the_other(silent):
    batch = window(3)
    shared = {**batch, silent: batch[silent][:1]}
    repeated = {**batch, silent: batch[silent][:1].expand_as(batch[silent])}
    with torch.inference_mode():
        together, apart = (avtca.train_forward(model(), each)["emotion"] for each in (shared, repeated))
    assert is_close(together, apart)


def test_towers_train_each_encoder_alone():
    module = lively(avtca.build(TINY)).train()
    found = avtca.towers(module)
    assert {name: tower.source for name, tower in found.items()} == {"video": "video", "audio": "mfcc"}
    for tower, net in ((found["video"], module.visual_model), (found["audio"], module.audio_model)):
        avtca.loss(tower.train()(window(4)), {"emotion": torch.tensor([0.0, 1.0, 2.0, 7.0])}).backward()
        assert tower.net is net and all(p.grad is not None and p.grad.any() for p in net.parameters())


def test_augmentation_repeats_itself_silences_some_and_leaves_the_batch():
    batch = {k: v + 0.1 for k, v in window(64).items()}
    before = {k: v.clone() for k, v in batch.items()}
    one, again = (avtca.augment(batch, torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(one[k], again[k]) and torch.equal(batch[k], before[k]) and one[k].shape == batch[k].shape for k in batch)
    deaf, blind = (one[k].flatten(1).abs().sum(1) == 0 for k in ("mfcc", "video"))
    assert 0 < deaf.sum() < 20 and 0 < blind.sum() < 20 and not (deaf & blind).any()
    shared = avtca.augment({**batch, "mfcc": batch["mfcc"][:1]}, torch.Generator().manual_seed(5))
    assert torch.equal(shared["mfcc"], batch["mfcc"][:1]), "a modality that is silenced for all stays one sample"


# --- pruning ---


def all_groups(variant: str) -> dict[str, groups.Group]:
    return {g.name: g for g in avtca.prune_groups(model(variant), TINY if variant == "paper" else RELEASE)}


INNER = [f"visual_model.stage{s}.{i}.branch2.0" for s in (2, 3, 4) for i in (0, 1)]
COMMON = [
    *INNER, "visual_model.conv5.0", *(f"{net}.conv1d_{i}.0" for net in ("visual_model", "audio_model") for i in (0, 2)),
    "av1.mlp", "va1.mlp", "av1.attn", "va1.attn",
]  # fmt: skip
ENDS = {
    "release": ["finalAttention", "audio_model.conv1d_3.0", "finalAttention.out_proj"],
    "paper": ["sav", "sva", "fa", "fv", "audio_model.conv1d_3.0", "visual_model.conv1d_3.0", "fa.out_proj", "fv.out_proj"],
}
CASES = [(variant, name) for variant in ENDS for name in (*COMMON[5:], *ENDS[variant])]


@pytest.mark.parametrize("variant", ENDS)
def test_the_search_for_what_to_prune_counts_every_multiplication(variant, tmp_path):
    """Attention between streams of two lengths too."""
    cfg = TINY if variant == "paper" else RELEASE
    engines, runs = avtca.engines(model(variant), cfg), runs_per_window(avtca.flow(cfg))
    expected = 0
    for engine in engines:
        graph.export_onnx(engine, tmp_path / "float.onnx")
        expected += runs[engine.name] * sum(graph.count_macs(tmp_path / "float.onnx").values())
    assert pruning.mac_model(model(variant), engines, runs, list(all_groups(variant).values())).total == expected


def some_units(group: groups.Group) -> dict[str, list[int]]:
    generator = torch.Generator().manual_seed(len(group.name))
    return {a.name: torch.randperm(a.units, generator=generator)[: group.granules // 2 * a.step].tolist() for a in group.axes}


def silenced(variant: str, cut: groups.Cut) -> dict[str, Tensor]:
    """The state with everything at zero that reads a cut unit."""
    state = {k: v.clone() for k, v in model(variant).state_dict().items()}
    for key, slices in groups.slices_by_tensor(all_groups(variant).values(), cut).items():
        state[key][groups.mark(state[key].shape, [(s, u) for s, u in slices if s.role == "in"])] = 0.0
    return state


def answer(variant: str, state: dict[str, Tensor], heads: dict[str, int]) -> tuple[Tensor, nn.Module]:
    module = avtca.fold(avtca.build(TINY if variant == "paper" else RELEASE)).eval()
    narrow.fit(module, state, heads)
    module.load_state_dict(state, strict=True)
    with torch.inference_mode():
        return module(**window()), module


@pytest.mark.parametrize("variant", ENDS)
def test_groups(variant):
    assert sorted(all_groups(variant)) == sorted([*COMMON, *ENDS[variant]])
    assert set(avtca.UNPRUNABLE) <= set(dict(model(variant).named_modules()))
    unpruned = {path for path in avtca.UNPRUNABLE if not path.startswith("visual_model.stage")}
    assert not [path for g in all_groups(variant).values() for path, made in itertools.product(unpruned, g.makers) if made == path]


@pytest.mark.parametrize(("variant", "name"), CASES)
def test_removing_units_that_nobody_reads_changes_nothing(variant, name):
    group = all_groups(variant)[name]
    cut = {name: some_units(group)}
    as_built = narrow.heads(model(variant))
    wide, _ = answer(variant, silenced(variant, cut), as_built)
    slim, module = answer(variant, groups.remove(model(variant).state_dict(), [group], cut), groups.heads_after(as_built, [group], cut))
    assert count(module) < count(model(variant))
    assert torch.allclose(slim, wide, atol=1e-4, rtol=1e-4)  # float32 sums in another order
    with torch.inference_mode():
        assert (wide - model(variant)(**window())).abs().max() > 1e-3, "the removed units mattered"


@pytest.mark.parametrize("variant", ENDS)
def test_all_groups_can_be_cut_at_once_and_the_engines_follow(variant):
    every = list(all_groups(variant).values())
    cut = {g.name: some_units(g) for g in every}
    as_built = narrow.heads(model(variant))
    wide, _ = answer(variant, silenced(variant, cut), as_built)
    slim, module = answer(variant, groups.remove(model(variant).state_dict(), every, cut), groups.heads_after(as_built, every, cut))
    assert torch.allclose(slim, wide, atol=1e-4, rtol=1e-4)
    assert set(narrow.heads(module).values()) == {1}
    cfg = TINY if variant == "paper" else RELEASE
    face, head = avtca.engines(module, cfg)
    assert face.outputs == {"frame_feature": (1, 32)} and head.inputs["frame_features"] == (1, TINY.frames, 32)
    inputs = {name: value[0].numpy() for name, value in window().items()}
    got = run_flow(avtca.flow(cfg), {e.name: torch_session(e) for e in (face, head)}, inputs)
    assert np.allclose(got["emotion"], slim[0].numpy(), atol=1e-4)
    assert {g.name: g.granules for g in avtca.prune_groups(module, cfg)}.keys() == {g.name for g in every}

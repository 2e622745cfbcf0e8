"""BiLSTM-SA: the spec's counts and shapes, selection that folds exactly, checkpoints, one graph per engine, exact pruning."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit import graph, models, pruning
from edgekit.datasets import Clip
from edgekit.errors import CheckpointError, DataError
from edgekit.float_model import FloatModel, save_float_model, torch_session
from edgekit.flow import run_flow, runs_per_window
from edgekit.models import bilstm_sa, checkpoint, groups, narrow
from edgekit.models.blocks.resnet50 import ResNet
from edgekit.preprocess import preprocess
from edgekit.training import ClipBank

TINY = bilstm_sa.CONFIGS["tiny"]
DEEP = replace(TINY, blocks=(1, 1, 1, 2))  # its last shortcut carries the whole stage
CASES = {
    "tiny": TINY,
    "deep": DEEP,
    "bilstm": replace(TINY, variant="bilstm"),
    "cnn": replace(TINY, variant="cnn"),
    "sum": replace(TINY, merge="sum"),
}


def lively(module: nn.Module, seed: int = 3) -> nn.Module:
    """Weights under which signals neither die out nor treat all channels alike, and a selection of some of both senses."""
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
        module.scale.mean.uniform_(-0.5, 0.5)
        module.scale.std.uniform_(0.5, 2.0)
        heard, k = module.ae.enc[2].out_features, len(module.select.idx)
        some = [torch.randperm(heard)[: heard // 2], heard + torch.randperm(len(module.scale.mean) - heard)[: k - heard // 2]]
        module.select.idx.copy_(torch.cat(some).sort().values)
    return module.eval()


def whole(case: str = "tiny") -> bilstm_sa.BiLSTMSA:
    torch.manual_seed(3)
    return lively(bilstm_sa.fold(bilstm_sa.build(CASES[case])))


@functools.cache
def model(case: str = "tiny") -> bilstm_sa.BiLSTMSA:
    module = whole(case)
    bilstm_sa.balance(module)
    return module


def window(n: int = 2, cfg: bilstm_sa.Config = TINY) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "mfcc": torch.randn(n, cfg.coefficients, cfg.columns, generator=generator),
        "video": torch.randn(n, 3, cfg.image, cfg.image, generator=generator),
    }


def is_close(got: Tensor, want: Tensor) -> bool:
    return got.shape == want.shape and bool((got - want).abs().max() <= 2e-5 * want.abs().max().clamp_min(1))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# --- sizes ---


@pytest.mark.parametrize(("name", "head"), [("default", 429_315), ("bilstm", 166_659), ("cnn", 125_187)])
def test_parameters_of_the_published_sizes(name, head):
    with torch.device("meta"):
        module = bilstm_sa.build(bilstm_sa.CONFIGS[name])
    assert (count(module.ae.enc), count(module.ae.dec), count(module.resnet)) == (5_506_304, 5_511_168, 23_508_032)
    assert count(module) - count(module.ae) - count(module.resnet) == head
    if name == "default":
        assert (count(module.rnn) + count(module.fc), count(module.attn), count(module.ln)) == (166_659, 262_144, 512)
        assert count(bilstm_sa.fold(module)) == 29_443_651


@pytest.mark.parametrize(("variant", "head"), [("bilstm_sa", 7_587), ("cnn", 1_347)])
def test_parameters_of_tiny(variant, head):
    assert (TINY.coefficients * TINY.columns, TINY.features, TINY.selected, TINY.seq) == (160, 144, 32, (4, 8))
    module = bilstm_sa.build(replace(TINY, variant=variant))
    assert (count(module.ae), count(module.resnet)) == (11_504, 32_996)
    assert count(module) - count(module.ae) - count(module.resnet) == head


def test_shapes_and_macs_of_the_published_sizes():
    cfg = bilstm_sa.CONFIGS["default"]
    assert (cfg.features, cfg.selected, cfg.seq, cfg.states) == (2304, 512, (16, 32), 256)
    with torch.device("meta"):
        module = bilstm_sa.fold(bilstm_sa.build(cfg))
    module, macs = module.to_empty(device="cpu").eval(), {}  # what is in it does not matter
    module.select.idx.copy_(torch.arange(512))
    seen: dict[str, tuple[int, ...]] = {}
    for path in ("ae", "resnet", "scale", "select", "attn", "ln", "fc"):
        module.get_submodule(path).register_forward_hook(lambda _, __, out, path=path: seen.update({path: tuple(out.shape[1:])}))
    for engine in bilstm_sa.engines(module, cfg):
        macs[engine.name] = pruning.mac_model(module, [engine], {engine.name: 1}, ()).total
    assert seen == {"ae": (256,), "resnet": (2048,), "scale": (2304,), "select": (512,), "attn": (16, 256), "ln": (16, 256), "fc": (3,)}
    assert macs["image"] == pytest.approx(4.09e9, rel=1e-3) and macs["audio"] == 5120 * 1024 + 1024 * 256
    assert macs["head"] == pytest.approx(6.9e6, rel=0.02) and sum(macs.values()) == pytest.approx(4.10e9, rel=1e-3)
    cnn = bilstm_sa.build(replace(bilstm_sa.CONFIGS["cnn"], head_only=True)).eval()
    [head] = bilstm_sa.engines(cnn, replace(bilstm_sa.CONFIGS["cnn"], head_only=True))
    assert pruning.mac_model(cnn, [head], {"head": 1}, ()).total == pytest.approx(19.0e6, rel=0.005)
    preprocessing = bilstm_sa.preprocess_spec(cfg)
    mfcc, video = preprocessing["audio"]["features"]["mfcc"], preprocessing["video"]
    assert mfcc["n_mfcc"] * mfcc["frames"] == 5120 and mfcc["samples"] == 64_000 and (video["height"], video["width"]) == (224, 224)


def test_small_fits():
    assert sum(v.numel() for v in bilstm_sa.fold(bilstm_sa.build(bilstm_sa.CONFIGS["small"])).state_dict().values()) < 490_000


def test_registered_configurations_are_the_models():
    assert models.MODELS["bilstm_sa"] == "edgekit.models.bilstm_sa" and models.CONFIG_NAMES["bilstm_sa"] == tuple(bilstm_sa.CONFIGS)
    for cfg in (*bilstm_sa.CONFIGS.values(), *CASES.values()):
        assert bilstm_sa.Config.from_json(json.loads(json.dumps(cfg.to_json()))) == cfg


@pytest.mark.parametrize("wrong", [{"variant": "lstm"}, {"merge": "mean"}, {"selected": 33}, {"selected": 200, "seq": (20, 10)}, {"columns": 18}, {"mfcc_mean": (1.0,), "mfcc_std": (1.0,)}])
def test_configurations_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValueError, match="variant|tokens|columns"):
        replace(TINY, **wrong)


# --- the definition, again ---


def test_the_head_is_what_the_paper_says():
    """Tokens in the order of the features; softmax(QK'/sqrt(d_k))V head by head; LN(X + R); mean over tokens."""
    module = whole()
    audio, image = (torch.randn(3, n, generator=torch.Generator().manual_seed(n)) for n in (16, 128))
    with torch.inference_mode():
        x = (torch.cat([audio, image], 1) - module.scale.mean) / module.scale.std
        r = module.rnn(x[:, module.select.idx].reshape(3, 4, 8))[0]
        q, k, v = (getattr(module.attn, f"{p}_proj")(r) for p in "qkv")
        parts = [torch.softmax(q[..., s] @ k[..., s].transpose(1, 2) / 8**0.5, -1) @ v[..., s] for s in (slice(8 * h, 8 * h + 8) for h in range(4))]
        expected = module.fc(module.ln(r + module.attn.out_proj(torch.cat(parts, -1))).mean(1))
        assert is_close(module.head(audio, image), expected)


def test_the_sum_of_directions_and_missing_features():
    module = whole("sum")
    states = []
    module.rnn.register_forward_hook(lambda _, __, out: states.append(out[0]))
    module.attn.register_forward_pre_hook(lambda _, args: states.append(args[0]))
    with torch.inference_mode():
        module(**window())
    both, merged = states
    assert torch.equal(merged, both[..., :16] + both[..., 16:])
    padded = bilstm_sa.build(replace(TINY, selected=30))
    padded.rnn.register_forward_pre_hook(lambda _, args: states.append(args[0]))
    padded.eval()(**window())
    assert states[-1].shape == (2, 4, 8) and not states[-1][:, 3, 6:].any() and states[-1][:, 3, :6].any()


def test_resnet_is_torchvisions():
    """Keys of one block and of a downsample, and strides, as torchvision's resnet50 has them."""
    net = ResNet()
    keys = set(net.state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer1.0.downsample.0.weight", "layer4.2.bn3.bias", "layer3.5.conv2.weight"} <= keys and len(keys) == 318
    assert net.layer2[0].conv2.stride == (2, 2) and net.layer2[0].conv1.stride == (1, 1) and net.layer1[0].downsample[0].stride == (1, 1)
    assert not [k for k in keys if "downsample" in k and ".0.downsample" not in k]


# --- selection ---


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_selected_is_not_computed_and_answers_stay(case):
    module = whole(case)
    with torch.inference_mode():
        expected = module(**window())
        chosen = module.select.idx
        heard = int((chosen < 16).sum())
        full = torch.cat([module.ae(window()["mfcc"]), module.resnet(window()["video"])], 1)
        bilstm_sa.balance(module)
        assert is_close(module(**window()), expected)
        assert module.ae.enc[2].out_features == heard and module.resnet.features == TINY.selected - heard
        assert is_close(module.resnet(window()["video"]), full[:, chosen[heard:]])
    again = {k: v.clone() for k, v in module.state_dict().items()}
    bilstm_sa.balance(module)
    assert all(torch.equal(again[k], v) for k, v in module.state_dict().items()), "once is enough"


def test_the_graphs_shrink_by_what_is_left_out(tmp_path):
    def macs(module: nn.Module) -> dict[str, tuple[int, set[str]]]:
        made = {}
        for engine in bilstm_sa.engines(module, DEEP):
            graph.export_onnx(engine, tmp_path / "float.onnx")
            made[engine.name] = (sum(graph.count_macs(tmp_path / "float.onnx").values()), {n.op_type for n in graph.load(tmp_path / "float.onnx").graph})
        return made

    before, after = macs(whole("deep")), macs(model("deep"))
    heard, seen = model("deep").ae.enc[2].out_features, model("deep").resnet.features
    assert before["audio"][0] - after["audio"][0] == 32 * (16 - heard)
    assert before["image"][0] - after["image"][0] == 32 * (128 - seen)  # one position in the last stage of a 32 x 32 picture
    assert after["head"][0] == before["head"][0]
    assert "Gather" in before["head"][1] and not {"Gather", "GatherND"} & (after["head"][1] | after["image"][1] | after["audio"][1])


def test_a_selection_of_one_sense_alone_is_refused():
    module = whole()
    module.select.idx = torch.arange(16, 48)
    with pytest.raises(CheckpointError, match="0 features of the sound and 32 of the picture"):
        bilstm_sa.balance(module)


def test_a_narrowed_model_is_saved_and_opened_again(tmp_path):
    save_float_model(tmp_path, model("deep"), "bilstm_sa", DEEP, "tiny", {}, pruned=False)
    opened = FloatModel.open(tmp_path)
    assert not opened.meta["pruned"]
    with torch.inference_mode():
        assert torch.equal(opened.module()(**window()), model("deep")(**window()))


class Pairs:
    """Clips whose sound and picture say their class in a few numbers each."""

    source, ids = "pairs", [str(i) for i in range(60)]

    def clip(self, id):
        rng = np.random.default_rng(int(id))
        label = int(id) % 3
        frames = rng.integers(0, 60, (4, 32, 32, 3)).astype(np.uint8)
        frames[:, :, :, label] += 150
        t = np.arange(16_000) / 16_000
        audio = (8000 * np.sin(2 * np.pi * (200, 900, 3000)[label] * t) * (t > 0.2) + rng.normal(0, 200, 16_000)).astype(np.int16)
        return Clip(id, frames, 25.0, audio, 16_000, {"emotion": float(label)}, {})


@functools.cache
def bank() -> ClipBank:
    return ClipBank(Pairs(), bilstm_sa.preprocess_spec(TINY))


def selected(seed: int, clips: ClipBank) -> bilstm_sa.BiLSTMSA:
    module = lively(bilstm_sa.build(TINY))
    bilstm_sa.select(module, clips, seed)
    return module


def test_selection_scales_by_the_clips_and_repeats_itself():
    module, again, other = selected(1, bank()), selected(1, bank()), selected(2, bank())
    assert torch.equal(module.select.idx, again.select.idx) and not torch.equal(module.select.idx, other.select.idx)
    assert module.select.idx.shape == (32,) and (module.select.idx.diff() > 0).all() and module.ae.dec is None
    with torch.no_grad():
        encoded = bilstm_sa.encode(module, {k: v.float() for k, v in bank().inputs.items()})
        x = module.scale(torch.cat([encoded["audio_feature"], encoded["image_feature"]], 1))
    moves = x.std(0, correction=0) > 0
    assert moves.sum() > 100 and x.mean(0).abs().max() < 1e-3 and (x.std(0, correction=0)[moves] - 1).abs().max() < 1e-3
    assert (module.scale.std[~moves] == 1).all(), "a feature that never moves is not blown up"


def test_selection_serves_a_silenced_sense_and_needs_classes():
    module = selected(1, bank().silenced(["video"]))
    assert (module.scale.std[16:] == 1).all() and module.select.idx.shape == (32,)
    unlabelled = bank().silenced([])
    unlabelled.labels = {"valence": unlabelled.labels["emotion"]}
    with pytest.raises(DataError, match="no label `emotion`"):
        selected(1, unlabelled)


# --- checkpoints ---


def test_a_checkpoint_of_the_specs_spelling_is_read(tmp_path):
    module = whole()
    state = dict(module.state_dict())
    state["attn.in_proj_weight"] = torch.cat([state.pop(f"attn.{p}_proj.weight") for p in "qkv"])
    state |= {"ae.dec.0.weight": torch.zeros(32, 16), "resnet.fc.weight": torch.zeros(1000, 128)}
    torch.save({"state_dict": state}, tmp_path / "theirs.pth")
    ours = bilstm_sa.fold(bilstm_sa.build(TINY)).eval()
    assert checkpoint.load_into(ours, bilstm_sa.normalize_keys(checkpoint.read_state(tmp_path / "theirs.pth"), TINY), tmp_path) == []
    with torch.inference_mode():
        assert torch.equal(ours(**window()), module(**window()))


def test_statistics_of_other_mfccs_move_into_the_first_layer():
    module = whole()
    mean, std = torch.linspace(-50, 40, 10), torch.linspace(1, 30, 10)
    cfg = replace(TINY, mfcc_mean=tuple(range(10)), mfcc_std=tuple(range(1, 11)))
    ours = bilstm_sa.fold(bilstm_sa.build(cfg)).eval()
    ours.load_state_dict(bilstm_sa.normalize_keys({**module.state_dict(), "mfcc.mean": mean, "mfcc.std": std}, cfg))
    plain = 20 * window()["mfcc"]
    scaled = (plain - torch.arange(10.0)[:, None]) / torch.arange(1.0, 11)[:, None]
    with torch.inference_mode():
        want = module.ae((plain - mean[:, None]) / std[:, None])
        assert torch.allclose(ours.ae(scaled), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("idx", [torch.arange(32).flip(0), torch.zeros(32, dtype=torch.long), torch.arange(113, 145), torch.arange(32.0)])
def test_a_selection_that_is_none_is_refused(idx):
    with pytest.raises(CheckpointError, match="`select.idx` must hold whole numbers that rise, each of 0 to 143"):
        bilstm_sa.normalize_keys({**whole().state_dict(), "select.idx": idx}, TINY)


def test_a_tiny_deviation_is_clamped():
    state = bilstm_sa.normalize_keys({**whole().state_dict(), "scale.std": torch.zeros(144)}, TINY)
    assert (state["scale.std"] == bilstm_sa.MIN_STD).all()


def test_a_head_alone_takes_tokens_that_something_else_selected(tmp_path):
    cfg = replace(TINY, head_only=True)
    torch.save({k: v for k, v in whole().state_dict().items() if not k.startswith(("ae.", "resnet.", "scale.", "select."))}, tmp_path / "head.pth")
    head = bilstm_sa.fold(bilstm_sa.build(cfg)).eval()
    assert checkpoint.load_into(head, bilstm_sa.normalize_keys(checkpoint.read_state(tmp_path / "head.pth"), cfg), tmp_path) == []
    bilstm_sa.balance(head)
    assert count(head) == 7_587 and bilstm_sa.towers(head) == {} and [g.name for g in bilstm_sa.prune_groups(head, cfg)] == ["attn"]
    seen = []
    hook = model().rnn.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.inference_mode():
        expected = model()(**window())
    hook.remove()
    clip = Clip("c", np.zeros((1, 2, 2, 3), np.uint8), 25.0, np.ones(9, np.int16), 16_000, {}, {}, features={"tokens": seen[0][0].numpy()})
    inputs = preprocess(bilstm_sa.preprocess_spec(cfg), clip)
    got = run_flow(bilstm_sa.flow(cfg), {e.name: torch_session(e) for e in bilstm_sa.engines(head, cfg)}, inputs)
    assert set(bilstm_sa.io_spec(cfg)["inputs"]) == set(bilstm_sa.flow(cfg)["inputs"]) == {"tokens"}
    assert np.allclose(got["emotion"], expected[0].numpy(), atol=1e-5)
    assert is_close(bilstm_sa.train_forward(head, {"tokens": seen[0]})["emotion"], expected)
    assert count(bilstm_sa.build(bilstm_sa.CONFIGS["head"])) == 429_315


# --- engines ---


@pytest.mark.parametrize("case", CASES)
def test_the_flow_equals_the_whole(case):
    cfg = CASES[case]
    for module in (whole(case), model(case)):
        sessions = {e.name: torch_session(e) for e in bilstm_sa.engines(module, cfg)}
        with torch.inference_mode():
            expected = whole(case)(**window(1))[0]
        got = run_flow(bilstm_sa.flow(cfg), sessions, {name: value[0].numpy() for name, value in window(1).items()})
        assert is_close(torch.from_numpy(np.asarray(got["emotion"])), expected)
    assert runs_per_window(bilstm_sa.flow(cfg)) == {"image": 1, "audio": 1, "head": 1}


def test_engines_have_the_shapes_that_they_state():
    with torch.inference_mode():
        for engine in bilstm_sa.engines(model(), TINY):
            outputs = engine.module(*[torch.zeros(shape) for shape in engine.inputs.values()])
            assert [tuple(o.shape) for o in outputs] == list(engine.outputs.values())


@pytest.mark.parametrize("case", [*CASES, "small"])
def test_the_exported_graphs_equal_the_model(case, tmp_path):
    import onnxruntime as ort

    cfg = CASES.get(case, bilstm_sa.CONFIGS["small"])
    module = lively(bilstm_sa.fold(bilstm_sa.build(cfg)))
    bilstm_sa.balance(module)
    for engine in bilstm_sa.engines(module, cfg):
        path = tmp_path / f"{engine.name}.onnx"
        graph.export_onnx(engine, path)
        generator = np.random.default_rng(1)
        feeds = {k: generator.standard_normal(shape).astype(np.float32) for k, shape in engine.inputs.items()}
        [want] = torch_session(engine)(feeds).values()
        [got] = ort.InferenceSession(str(path)).run(None, feeds)
        assert np.abs(got - want).max() <= 1e-4 * max(1.0, np.abs(want).max()), engine.name
        assert all(len(v.shape) <= 4 for node in graph.load(path).graph for v in node.outputs), "no runtime needs five axes"


@pytest.mark.parametrize("name", ["default", "small", "tiny"])
def test_preprocessing_gives_what_the_flow_takes(name):
    generator = np.random.default_rng(4)
    cfg = bilstm_sa.CONFIGS[name]
    frames = np.broadcast_to(np.uint8([124, 116, 104]), (7, 20, 30, 3))
    audio = generator.integers(-900, 900, cfg.samples - 100).astype(np.int16)
    inputs = preprocess(bilstm_sa.preprocess_spec(cfg), Clip("c", frames, 30.0, audio, cfg.sample_rate_hz, {}, {}))
    assert {k: list(v.shape) for k, v in inputs.items()} == {k: v["shape"] for k, v in bilstm_sa.flow(cfg)["inputs"].items()}
    assert set(bilstm_sa.io_spec(cfg)["inputs"]) == set(inputs)
    assert np.abs(inputs["video"]).max() < 0.02, "the mean colour of ImageNet is 0"
    assert bilstm_sa.preprocess_spec(replace(cfg, keyframes=16))["video"]["average"] == 16


# --- training ---


@pytest.mark.parametrize("case", CASES)
def test_training_reaches_every_weight_and_takes_encoded_clips(case):
    module = lively(bilstm_sa.build(CASES[case])).train()
    bilstm_sa.loss(bilstm_sa.train_forward(module, window(4)), {"emotion": torch.tensor([0.0, 1.0, 2.0, 1.0])}).backward()
    assert [k for k, p in module.named_parameters() if not k.startswith("ae.dec.") and (p.grad is None or not p.grad.any())] == []
    module.eval()
    with torch.inference_mode():
        expected = module(**window(4))
        assert is_close(bilstm_sa.train_forward(module, bilstm_sa.encode(module, window(4)))["emotion"], expected)


@pytest.mark.parametrize("silent", ["mfcc", "video"])
def test_one_sample_of_a_modality_serves_all_of_the_other(silent):
    batch = window(3)
    shared = {**batch, silent: batch[silent][:1]}
    repeated = {**batch, silent: batch[silent][:1].expand_as(batch[silent])}
    with torch.inference_mode():
        together, apart = (bilstm_sa.train_forward(model(), each)["emotion"] for each in (shared, repeated))
    assert is_close(together, apart)


def test_towers_train_each_encoder_alone():
    module = lively(bilstm_sa.build(TINY)).train()
    found = bilstm_sa.towers(module)
    assert {name: tower.source for name, tower in found.items()} == {"video": "video", "audio": "mfcc"}
    labels, batch = {"emotion": torch.tensor([0.0, 1.0, 2.0, 1.0])}, window(4)
    out = found["audio"](batch)
    error = (module.ae.dec(module.ae(batch["mfcc"])).reshape(batch["mfcc"].shape) - batch["mfcc"]).square().mean((1, 2))
    assert torch.allclose(out["squared_error"], error)
    out["emotion"].sum().backward()
    assert all(p.grad is None for p in module.ae.parameters()), "the classifier beside the auto-encoder does not move it"
    bilstm_sa.loss(found["audio"](batch), labels).backward()
    bilstm_sa.loss(found["video"](batch), labels).backward()
    assert all(p.grad is not None and p.grad.any() for net in (module.ae, module.resnet) for p in net.parameters())


def test_augmentation_repeats_itself_and_leaves_the_batch():
    batch = window(8)
    before = {k: v.clone() for k, v in batch.items()}
    one, again = (bilstm_sa.augment(batch, torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(one[k], again[k]) and torch.equal(batch[k], before[k]) and one[k].shape == batch[k].shape for k in batch)
    assert all(not torch.equal(one[k], batch[k]) for k in batch)
    assert torch.equal(one["mfcc"].sort(-1).values, batch["mfcc"].sort(-1).values), "only moved in time"


# --- pruning ---


def all_groups(case: str) -> dict[str, groups.Group]:
    return {g.name: g for g in bilstm_sa.prune_groups(model(case), CASES[case])}


RESNET = ["resnet.conv1", *(f"resnet.layer{s}.0.conv{i}" for s in (1, 2, 3, 4) for i in (1, 2)), *(f"resnet.layer{s}.0.conv3" for s in (1, 2, 3)), "ae.enc.0"]
OWN = {
    "tiny": ["attn"],
    "deep": ["resnet.layer4.0.conv3", "resnet.layer4.1.conv1", "resnet.layer4.1.conv2", "attn"],
    "bilstm": ["rnn"],
    "cnn": ["cnn.0.0", "cnn.1.0", "cnn.2.0"],
    "sum": ["attn"],
}


@pytest.mark.parametrize("case", CASES)
def test_groups(case, tmp_path):
    assert sorted(all_groups(case)) == sorted([*RESNET, *OWN[case]])
    if case in ("tiny", "deep"):
        makers = {path for g in all_groups(case).values() for path in g.makers}
        assert not makers & set(bilstm_sa.UNPRUNABLE) and set(bilstm_sa.UNPRUNABLE) <= set(dict(model(case).named_modules()))
    engines, runs = bilstm_sa.engines(model(case), CASES[case]), runs_per_window(bilstm_sa.flow(CASES[case]))
    expected = 0
    for engine in engines:
        graph.export_onnx(engine, tmp_path / "float.onnx")
        expected += sum(graph.count_macs(tmp_path / "float.onnx").values())
    assert pruning.mac_model(model(case), engines, runs, list(all_groups(case).values())).total == expected


def some_units(group: groups.Group) -> dict[str, list[int]]:
    generator = torch.Generator().manual_seed(len(group.name))
    return {a.name: torch.randperm(a.units, generator=generator)[: group.granules // 2 * a.step].tolist() for a in group.axes}


def answer(case: str, state: dict[str, Tensor], heads: dict[str, int]) -> tuple[Tensor, nn.Module]:
    module = bilstm_sa.fold(bilstm_sa.build(CASES[case])).eval()
    narrow.fit(module, state, heads)
    module.load_state_dict(state, strict=True)
    with torch.inference_mode():
        return module(**window()), module


@pytest.mark.parametrize(("case", "name"), [("tiny", name) for name in RESNET] + [(case, name) for case in OWN for name in OWN[case]])
def test_removing_units_that_nobody_reads_changes_nothing(case, name):
    group = all_groups(case)[name]
    cut = {name: some_units(group)}
    as_built = narrow.heads(model(case))
    silenced = {k: v.clone() for k, v in model(case).state_dict().items()}
    for key, slices in groups.slices_by_tensor([group], cut).items():
        silenced[key][groups.mark(silenced[key].shape, [(s, u) for s, u in slices if s.role == "in"])] = 0.0
    wide, _ = answer(case, silenced, as_built)
    slim, module = answer(case, groups.remove(model(case).state_dict(), [group], cut), groups.heads_after(as_built, [group], cut))
    assert count(module) < count(model(case))
    assert torch.allclose(slim, wide, atol=1e-4, rtol=1e-4)  # float32 sums in another order
    with torch.inference_mode():
        assert (wide - model(case)(**window())).abs().max() > 1e-3, "the removed units mattered"


@pytest.mark.parametrize("case", CASES)
def test_all_groups_can_be_cut_at_once_and_the_engines_follow(case):
    every = list(all_groups(case).values())
    cut = {g.name: some_units(g) for g in every}
    as_built = narrow.heads(model(case))
    slim, module = answer(case, groups.remove(model(case).state_dict(), every, cut), groups.heads_after(as_built, every, cut))
    inputs = {name: value[0].numpy() for name, value in window().items()}
    got = run_flow(bilstm_sa.flow(CASES[case]), {e.name: torch_session(e) for e in bilstm_sa.engines(module, CASES[case])}, inputs)
    assert np.allclose(got["emotion"], slim[0].numpy(), atol=1e-4)
    assert {g.name for g in bilstm_sa.prune_groups(module, CASES[case])} == {g.name for g in every}

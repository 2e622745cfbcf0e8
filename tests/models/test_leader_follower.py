"""Leader-Follower has the published sizes, computes what the published code does, and its engines make the whole."""

from __future__ import annotations

import functools
import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit import preprocess as prep
from edgekit.datasets import Clip
from edgekit.errors import CheckpointError
from edgekit.float_model import torch_session
from edgekit.flow import run_flow, runs_per_window
from edgekit.losses import ccc_loss
from edgekit.models import checkpoint, groups, narrow
from edgekit.models import leader_follower as lf

TINY = lf.CONFIGS["tiny"]


@functools.cache
def on_meta(name: str) -> lf.LeaderFollower:
    """A model without memory for its weights: enough to count and to run shapes through."""
    with torch.device("meta"):
        return lf.build(lf.CONFIGS[name]).eval()


@functools.cache
def tiny() -> lf.LeaderFollower:
    """As built, not folded, with statistics and gains that treat no two channels alike."""
    torch.manual_seed(3)
    module = lf.build(TINY).eval()
    with torch.no_grad():
        for sub in module.modules():
            if isinstance(sub, (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)):
                sub.weight.uniform_(0.5, 1.5)
                sub.bias.uniform_(-0.5, 0.5)
            if isinstance(sub, (nn.BatchNorm1d, nn.BatchNorm2d)):
                sub.running_mean.uniform_(-0.5, 0.5)
                sub.running_var.uniform_(0.5, 1.5)
            if isinstance(sub, nn.PReLU):
                sub.weight.uniform_(0.1, 0.5)
    return module


@functools.cache
def folded() -> lf.LeaderFollower:
    other = lf.build(TINY).eval()
    other.load_state_dict(tiny().state_dict())
    return lf.fold(other)


def window(n: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(n)
    return {name: torch.randn(n, *value["shape"], generator=generator) for name, value in lf.flow(TINY)["inputs"].items()}


def whole(module: lf.LeaderFollower, batch: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        return module(batch["video"], batch["log_mel"], batch["mfcc"])


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# --------------------------------------------------------------------------- published numbers


@pytest.mark.parametrize("name", ["release_valence", "release_arousal"])
def test_one_output_has_38_376_449_parameters(name):
    assert parameters(on_meta(name)) == 38_376_449
    assert on_meta(name).regressor.weight.shape == (1, 224)


def test_both_outputs_cost_225_parameters_more_and_are_the_default():
    assert lf.CONFIGS["default"] == lf.CONFIGS["release"] and lf.CONFIGS["release"].outputs == ("valence", "arousal")
    assert parameters(on_meta("release")) == 38_376_449 + 225
    assert {name: parameters(part) for name, part in on_meta("release").named_children()} == {
        "spatial": 37_283_520, "temporal": 968_832, "temporal1": 60_960, "temporal2": 43_872,
        "encoder1": 4_128, "encoder2": 1_056, "encoder3": 1_056, "encoderQ1": 4_128, "encoderQ2": 1_056, "encoderQ3": 1_056,
        "encoderV1": 4_128, "encoderV2": 1_056, "encoderV3": 1_056, "gn1": 64, "gn2": 64, "ln": 192, "regressor": 450,
    }  # fmt: skip


def test_small_fits_a_repository_and_tiny_has_19_798_parameters():
    module = lf.fold(lf.build(lf.CONFIGS["small"]))
    assert parameters(module) == 205_418 and sum(v.numel() for v in module.state_dict().values()) < 490_000
    assert parameters(on_meta("tiny")) == 19_798


def test_release_takes_the_published_shapes():
    flow = lf.flow(lf.CONFIGS["release"])
    assert {k: v["shape"] for k, v in flow["inputs"].items()} == {"video": [300, 3, 40, 40], "vggish": [300, 128], "mfcc": [300, 39]}
    assert {k: v["shape"] for k, v in lf.flow(lf.CONFIGS["small"])["inputs"].items()} == {"video": [64, 3, 32, 32], "log_mel": [64, 40], "mfcc": [64, 39]}


@pytest.mark.parametrize(("name", "frame", "head"), [("release", 3027.25, 326.96), ("small", 6.873, 3.955), ("tiny", 0.981, 0.0554)])
def test_engines_have_the_shapes_that_they_state_and_these_mmac(name, frame, head):
    from torch.utils.flop_counter import FlopCounterMode

    cfg = lf.CONFIGS[name]
    with torch.device("meta"):
        module = lf.fold(lf.build(cfg)).eval()
    made = lf.engines(module, cfg)
    mmac = {}
    for engine in made:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            outputs = engine.module(*[torch.empty(shape, device="meta") for shape in engine.inputs.values()])
        assert isinstance(outputs, tuple) and engine.states == ()
        assert [tuple(o.shape) for o in outputs] == list(engine.outputs.values()), engine.name
        mmac[engine.name] = counter.get_total_flops() / 2e6
    assert mmac == {"frame": pytest.approx(frame, rel=1e-3), "head": pytest.approx(head, rel=1e-3)}
    assert runs_per_window(lf.flow(cfg)) == {"frame": cfg.frames, "head": 1}


# --------------------------------------------------------------------------- the whole and its parts


def test_the_attention_is_the_published_one():
    """Written out per frame: keys ask queries, and the followers' queries and values come from their keys."""
    module, batch = tiny(), window(1)
    with torch.inference_mode():
        faces = module.encode_faces(batch["video"])
        got = module.fuse(faces, batch["log_mel"], batch["mfcc"])[0]
        x = module.temporal(faces)[0], module.temporal1(batch["log_mel"])[0], module.temporal2(batch["mfcc"])[0]
        for t in range(TINY.frames):
            lead = x[0][t]
            key = [module.encoder1(lead), module.encoder2(x[1][t]), module.encoder3(x[2][t])]
            query = [module.encoderQ1(lead), module.encoderQ2(key[1]), module.encoderQ3(key[2])]
            value = [module.encoderV1(lead), module.encoderV2(key[1]), module.encoderV3(key[2])]
            rows = []
            for i in range(3):
                scores = torch.stack([key[i] @ query[j] for j in range(3)]) / math.sqrt(TINY.attention)
                rows.append(sum(w * v for w, v in zip(scores.softmax(0), value, strict=True)) + value[i])
            attended = F.layer_norm(torch.stack(rows), (3, TINY.attention), module.ln.weight, module.ln.bias)
            want = module.regressor(torch.cat([lead, attended.flatten()]))
            assert torch.allclose(got[t], want, atol=1e-5)


def test_the_future_does_not_matter():
    batch = window(1)
    later = {k: torch.cat([v[:, :7], v[:, 7:] + 1.0], 1) for k, v in batch.items()}
    before, after = whole(folded(), batch), whole(folded(), later)
    # 1e-6: a batch of frames may be cut elsewhere
    assert torch.allclose(before[:, :7], after[:, :7], atol=1e-6) and not torch.allclose(before[:, 7], after[:, 7], atol=1e-3)


@pytest.mark.parametrize("name", ["video", "log_mel", "mfcc"])
def test_every_input_matters(name):
    batch = window(1)
    assert (whole(folded(), batch) - whole(folded(), {**batch, name: batch[name].flip(-1)})).abs().max() > 1e-3


def test_engines_along_the_flow_equal_the_whole():
    batch = window(1)
    made = lf.engines(folded(), TINY)
    got = run_flow(lf.flow(TINY), {e.name: torch_session(e) for e in made}, {k: v[0].numpy() for k, v in batch.items()})
    want = whole(folded(), batch)[0]
    assert list(got) == ["valence", "arousal"]
    for i, value in enumerate(got.values()):
        assert value.shape == (TINY.frames,) and np.allclose(value, want[:, i].numpy(), atol=1e-5)  # float32, faces one by one or together


def test_folding_changes_no_output_and_leaves_plain_weights():
    assert torch.allclose(whole(folded(), window()), whole(tiny(), window()), atol=1e-6)
    keys = set(folded().state_dict())
    assert "temporal.network.1.conv2.weight" in keys and not any("parametrizations" in k or k.startswith("gn") for k in keys)
    state = {k: v.clone() for k, v in folded().state_dict().items()}
    again = lf.fold(folded())
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in state.items())


def test_torch_and_onnx_agree(tmp_path):
    from edgekit import graph
    from edgekit.backends import onnxruntime

    for engine in lf.engines(folded(), TINY):
        path = tmp_path / f"{engine.name}.onnx"
        graph.export_onnx(engine, path)
        generator = torch.Generator().manual_seed(5)
        feeds = {name: torch.randn(shape, generator=generator) for name, shape in engine.inputs.items()}
        with torch.inference_mode():
            want = engine.module(*feeds.values())
        got = onnxruntime.simulate(path)({name: value.numpy() for name, value in feeds.items()})
        for name, value in zip(engine.outputs, want, strict=True):
            assert np.abs(got[name] - value.numpy()).max() <= 1e-4 * max(1.0, float(value.abs().max()))


# --------------------------------------------------------------------------- documents


@pytest.mark.parametrize("name", lf.CONFIGS)
def test_a_configuration_survives_json(name):
    cfg = lf.CONFIGS[name]
    assert lf.Config.from_json(json.loads(json.dumps(cfg.to_json()))) == cfg


@pytest.mark.parametrize("name", lf.CONFIGS)
def test_flow_preprocessing_and_engines_agree_on_shapes(name):
    cfg = lf.CONFIGS[name]
    flow, spec = lf.flow(cfg), lf.preprocess_spec(cfg)
    assert {k: list(v) for k, v in prep.shapes(spec).items()} == {k: v["shape"] for k, v in flow["inputs"].items()}
    engines = {e.name: e for e in lf.engines(on_meta(name), cfg)}
    assert [*engines["frame"].inputs["face"][1:]] == flow["inputs"]["video"]["shape"][1:]
    assert {k: [*v[1:]] for k, v in engines["head"].inputs.items() if k != "frame_features"} == {k: v["shape"] for k, v in flow["inputs"].items() if k != "video"}
    assert {step["engine"] for step in flow["steps"]} == set(engines) == set(flow["rates_hz"])
    assert flow["task"] == "timeline" and flow["primary"] == flow["outputs"] == list(cfg.outputs)
    units = lf.io_spec(cfg)
    assert set(units["inputs"]) == set(flow["inputs"]) and list(units["outputs"]) == flow["outputs"]
    assert sum(step["step"] == "keep" for step in flow["host_steps"]) == 1


def test_vggish_comes_with_the_clip_and_the_rest_is_made_of_it():
    cfg = lf.CONFIGS["release"]
    assert prep.sources(lf.preprocess_spec(cfg)) == {"video": "video", "mfcc": "audio", "vggish": "features"}
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (300, 48, 48, 3), np.uint8)
    brought = rng.standard_normal((300, 128)).astype(np.float32)
    clip = Clip("c", frames, 30.0, rng.integers(-3000, 3000, 160_000, np.int16), 16_000, {"valence": 0.0}, features={"vggish": brought})
    inputs = prep.preprocess(lf.preprocess_spec(cfg), clip)
    assert np.array_equal(inputs["vggish"], brought)
    middle = (frames[:, 4:44, 4:44].transpose(0, 3, 1, 2).astype(np.float32) - 127.5) / 127.5  # 48x48, of which the published code takes the middle 40x40
    assert np.allclose(inputs["video"], middle, atol=1e-6) and inputs["mfcc"].shape == (300, 39)


# --------------------------------------------------------------------------- public checkpoints


def published() -> dict[str, Tensor]:
    """tiny's weights as the public code saves them: old weight norm, convolutions named twice, group norms that nothing reads."""
    state = {}
    for key, value in tiny().state_dict().items():
        key = key.replace("parametrizations.weight.original0", "weight_g").replace("parametrizations.weight.original1", "weight_v")
        state[key] = value
        for conv, alias in (("conv1", "net.0"), ("conv2", "net.4")):
            if f".{conv}." in key:
                state[key.replace(conv, alias)] = value
    return state


def load(state: dict[str, Tensor], tmp_path) -> tuple[lf.LeaderFollower, list[str]]:
    torch.save(state, tmp_path / "weights.pt")
    module = lf.fold(lf.build(TINY)).eval()
    read = lf.normalize_keys(checkpoint.read_state(tmp_path / "weights.pt"), TINY)
    return module, checkpoint.load_into(module, read, tmp_path / "weights.pt", lf.OPTIONAL_KEYS)


@pytest.mark.parametrize("wrap", ["", "module.", "state_dict"])
def test_a_published_checkpoint_gives_its_own_answers(tmp_path, wrap):
    state = published()
    assert {"temporal.network.0.conv1.weight_g", "temporal1.network.1.net.4.weight_v", "gn1.weight", "spatial.body.0.res_layer.0.running_mean"} <= set(state)
    if wrap == "module.":
        state = {f"module.{k}": v for k, v in state.items()}
    module, unused = load({"state_dict": state} if wrap == "state_dict" else state, tmp_path)
    assert unused == [] and torch.allclose(whole(module, window()), whole(tiny(), window()), atol=1e-6)


@pytest.mark.parametrize("make", [tiny, folded])
def test_what_edgekit_trains_loads_as_it_is(tmp_path, make):
    module, unused = load(dict(make().state_dict()), tmp_path)
    assert unused == [] and torch.allclose(whole(module, window()), whole(tiny(), window()), atol=1e-6)


def test_a_checkpoint_of_one_output_is_refused_where_both_are_wanted(tmp_path):
    state = {**published(), "regressor.weight": torch.ones(1, 36), "regressor.bias": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"`regressor.weight` is \[1, 36\], this model has \[2, 36\]"):
        load(state, tmp_path)


# --------------------------------------------------------------------------- training


def test_in_eval_mode_training_computes_what_inference_does_of_faces_or_of_their_features():
    batch, want = window(), whole(folded(), window())
    with torch.inference_mode():
        raw = lf.train_forward(folded(), batch)
        encoded = lf.encode(folded(), batch)
        cached = lf.train_forward(folded(), encoded)
    assert set(encoded) == {"frame_features", "log_mel", "mfcc"} and encoded["frame_features"].shape == (2, TINY.frames, TINY.face.embedding)
    for got in (raw, cached):
        assert list(got) == ["valence", "arousal"]
        assert all(torch.allclose(got[k], want[..., i], atol=1e-6) for i, k in enumerate(got))


@pytest.mark.parametrize("name", ["video", "log_mel", "mfcc"])
def test_a_silenced_input_given_once_counts_for_all(name):
    batch = window()
    silence = torch.zeros(1, *batch[name].shape[1:])
    with torch.inference_mode():
        once = lf.train_forward(folded(), {**batch, name: silence})
        each = lf.train_forward(folded(), {**batch, name: silence.expand(2, *silence.shape[1:])})
    assert all(once[k].shape == (2, TINY.frames) and torch.allclose(once[k], each[k], atol=1e-6) for k in each)


def test_the_gradient_reaches_every_weight_but_the_unread_group_norms():
    torch.manual_seed(0)
    module = lf.for_training(lf.build(TINY)).train()
    labels = {k: torch.rand(3, TINY.frames) for k in TINY.outputs}
    lf.loss(lf.train_forward(module, window(3)), labels).backward()
    unreached = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert unreached == ["gn1.weight", "gn1.bias", "gn2.weight", "gn2.bias"]
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)


def test_the_loss_is_one_minus_the_mean_concordance_of_what_is_labelled():
    outputs = {k: torch.randn(2, 9, generator=torch.Generator().manual_seed(i)) for i, k in enumerate(TINY.outputs)}
    labels = {k: torch.randn(2, 9, generator=torch.Generator().manual_seed(9 + i)) for i, k in enumerate(TINY.outputs)}
    want = [ccc_loss(outputs[k], labels[k]).item() for k in TINY.outputs]
    assert lf.loss(outputs, labels).item() == pytest.approx(sum(want) / 2, abs=1e-6)
    assert lf.loss(outputs, {"arousal": labels["arousal"]}).item() == pytest.approx(want[1], abs=1e-6)


def test_the_tower_trains_the_face_encoder_of_the_module_itself():
    torch.manual_seed(1)
    module = lf.build(TINY)
    tower = lf.towers(module)["video"]
    assert tower.encoder is module.spatial and tower.source == "video"
    seen = []
    tower.encoder.register_forward_hook(lambda sub, args, out: seen.append(len(out)))
    trained = tower.train()(window(3))
    assert seen == [3 * TINY.frames // lf.STRIDE]
    assert all(v.shape == (3, TINY.frames) for v in trained.values()) and list(trained) == ["valence", "arousal"]
    blocks = trained["valence"].unflatten(1, (-1, lf.STRIDE))
    assert torch.equal(blocks, blocks[..., :1].expand_as(blocks))
    assert (tower.eval()(window(3))["valence"].diff() != 0).all() and seen[-1] == 3 * TINY.frames


# --------------------------------------------------------------------------- pruning


@functools.cache
def all_groups() -> dict[str, groups.Group]:
    return {g.name: g for g in lf.prune_groups(folded(), TINY)}


GROUPS = [
    "spatial.input_layer.0", "spatial.body.1.shortcut_layer.0", "spatial.body.3.shortcut_layer.0",
    *(f"spatial.body.{i}.res_layer.1" for i in range(4)),
    *(f"{t}.network.{part}" for t in ("temporal", "temporal1", "temporal2") for part in ("0.downsample", "0.conv1", "1.conv1")),
]  # fmt: skip


def some_units(group: groups.Group) -> dict[str, list[int]]:
    """Half of the granules, out of order, as a ranking would give them."""
    generator = torch.Generator().manual_seed(len(group.name))
    return {a.name: torch.randperm(a.units, generator=generator)[: group.granules // 2 * a.step].tolist() for a in group.axes}


def silenced(cut: groups.Cut) -> dict[str, Tensor]:
    """The state with everything at zero that reads a cut unit."""
    state = {k: v.clone() for k, v in folded().state_dict().items()}
    for key, slices in groups.slices_by_tensor(all_groups().values(), cut).items():
        state[key][groups.mark(state[key].shape, [(s, u) for s, u in slices if s.role == "in"])] = 0.0
    return state


def with_state(state: dict[str, Tensor]) -> lf.LeaderFollower:
    module = lf.fold(lf.build(TINY)).eval()
    narrow.fit(module, state, {})
    module.load_state_dict(state, strict=True)
    return module


def test_it_has_these_groups():
    assert sorted(all_groups()) == sorted(GROUPS)
    assert set(lf.UNPRUNABLE) <= set(dict(folded().named_modules()))


@pytest.mark.parametrize("name", GROUPS)
def test_removing_units_that_nobody_reads_changes_nothing_and_they_mattered(name):
    cut = {name: some_units(all_groups()[name])}
    silent, slim = with_state(silenced(cut)), with_state(groups.remove(folded().state_dict(), [all_groups()[name]], cut))
    assert parameters(slim) < parameters(silent)
    # 1e-5: float32 sums of up to 1e3 terms in another order
    assert torch.allclose(whole(slim, window()), whole(silent, window()), atol=1e-5)
    assert (whole(silent, window()) - whole(folded(), window())).abs().max() > 1e-4


def test_all_groups_can_be_cut_at_once_and_again_and_the_engines_follow():
    cut = {name: some_units(group) for name, group in all_groups().items()}
    slim = with_state(groups.remove(folded().state_dict(), list(all_groups().values()), cut))
    assert torch.allclose(whole(slim, window()), whole(with_state(silenced(cut)), window()), atol=1e-5)
    again = {g.name: g.units for g in lf.prune_groups(slim, TINY)}
    assert set(again) == set(GROUPS) and all(units < all_groups()[name].units for name, units in again.items())
    batch = window(1)
    got = run_flow(lf.flow(TINY), {e.name: torch_session(e) for e in lf.engines(slim, TINY)}, {k: v[0].numpy() for k, v in batch.items()})
    assert np.allclose(got["valence"], whole(slim, batch)[0, :, 0].numpy(), atol=1e-5)


def test_release_groups_are_found_without_running_it():
    module = lf.fold(on_meta_copy())
    found = {g.name: g.units for g in lf.prune_groups(module, lf.CONFIGS["release"])}
    assert {u for n, u in found.items() if n.startswith("spatial.body") and "shortcut" in n} == {128, 256, 512} and found["temporal.network.0.downsample"] == 128
    # Channels as wide as the stage before them join its stream.
    assert len([n for n in found if n.startswith("spatial")]) == 4 + 24


def on_meta_copy() -> lf.LeaderFollower:
    with torch.device("meta"):
        return lf.build(lf.CONFIGS["release"]).eval()

"""EfficientFace is the public backbone: its keys, its counts, and every part computed again from its definition."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit import graph, rewrites
from edgekit.formats import Engine
from edgekit.models import groups, narrow
from edgekit.models.blocks import efficientface
from edgekit.models.blocks.efficientface import SIZES, EfficientFace, EfficientFaceSize, LocalFeatures, Modulator, ShuffleUnit
from edgekit.target import load_target
from tests.onnx_nets import Lambda


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights under which signals neither die out nor treat all channels alike."""
    torch.manual_seed(seed)
    for sub in module.modules():
        if isinstance(sub, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(sub.weight)
        if isinstance(sub, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(sub.weight, 0.5, 1.5)
            nn.init.uniform_(sub.bias, -0.5, 0.5)
            sub.running_mean.uniform_(-0.5, 0.5)
            sub.running_var.uniform_(0.5, 1.5)
    return module.eval()


@pytest.fixture
def face() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def macs(size: EfficientFaceSize) -> int:
    """Of one face; multiplications by gates and pools left out."""
    module, total = EfficientFace(size).eval(), []
    for sub in module.modules():
        if isinstance(sub, (nn.Conv2d, nn.Linear)):
            sub.register_forward_hook(lambda sub, _, out: total.append(out.numel() // out.shape[1] * sub.weight.numel()))
    with torch.inference_mode():
        assert module(torch.zeros(1, 3, size.image, size.image)).shape == (1, size.last)
    return sum(total)


@pytest.mark.parametrize(("name", "parameters", "million_macs"), [("default", 1_268_118, 149.7), ("small", 235_263, 4.2), ("tiny", 9_429, 0.2)])
def test_sizes(name, parameters, million_macs):
    assert count(EfficientFace(SIZES[name])) == parameters
    assert macs(SIZES[name]) / 1e6 == pytest.approx(million_macs, abs=0.05)


def test_maps_of_the_default_have_the_published_shapes():
    module, shapes = EfficientFace().eval(), {}
    for name in ("conv1", "maxpool", "stage2", "modulator", "local", "stage3", "stage4", "conv5"):
        getattr(module, name).register_forward_hook(lambda _, __, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
    with torch.inference_mode():
        module(torch.zeros(1, 3, 224, 224))
    middle = (116, 28, 28)
    assert shapes == {
        "conv1": (29, 112, 112), "maxpool": (29, 56, 56), "stage2": middle, "modulator": middle, "local": middle,
        "stage3": (232, 14, 14), "stage4": (464, 7, 7), "conv5": (1024, 7, 7),
    }  # fmt: skip


def test_keys_are_the_public_ones():
    state = EfficientFace().state_dict()
    expected = {
        "conv1.0.weight": (29, 3, 3, 3), "stage2.0.branch1.0.weight": (29, 1, 3, 3), "stage2.0.branch2.5.weight": (58, 58, 1, 1),
        "stage3.7.branch2.3.weight": (116, 1, 3, 3), "conv5.0.weight": (1024, 464, 1, 1),
        "local.conv4_1.weight": (116, 1, 3, 3), "local.bn3_2.bias": (116,), "modulator.channel_att.gate_c.gate_c_fc_0.weight": (7, 116),
        "modulator.channel_att.gate_c.gate_c_bn_1.running_mean": (7,), "modulator.channel_att.gate_c.gate_c_fc_final.bias": (116,),
        "modulator.spatial_att.gate_s.gate_s_conv_reduce0.weight": (7, 116, 1, 1), "modulator.spatial_att.gate_s.gate_s_bn_di_1.weight": (7,),
        "modulator.spatial_att.gate_s.gate_s_conv_di_0.weight": (7, 7, 3, 3), "modulator.spatial_att.gate_s.gate_s_conv_final.bias": (1,),
    }  # fmt: skip
    assert {k: tuple(state[k].shape) for k in expected} == expected
    assert len(state) == 416 and not any("order" in k for k in state)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_unit_puts_its_halves_channel_by_channel(stride):
    unit = lively(ShuffleUnit(8, 8, stride))
    x = torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        y = unit(x)
        first, second = (x[:, :4], unit.branch2(x[:, 4:])) if stride == 1 else (unit.branch1(x), unit.branch2(x))
    for i in range(4):
        assert torch.equal(y[:, 2 * i], first[:, i]) and torch.equal(y[:, 2 * i + 1], second[:, i])


def test_units_shuffle_alike_in_training():
    unit = lively(ShuffleUnit(8, 8, 1))
    x = torch.randn(3, 8, 6, 6, generator=torch.Generator().manual_seed(2))
    for sub in unit.modules():
        if isinstance(sub, nn.BatchNorm2d):
            sub.momentum = 0.0  # statistics stay
    as_trained = unit.train()(x)
    for sub in unit.modules():
        if isinstance(sub, nn.BatchNorm2d):
            sub.train()
    unit.training = False  # the unit in its inference form, its norms still on the batch
    assert torch.equal(as_trained, unit(x))


def test_patches_stay_where_they_were_and_see_nothing_of_each_other():
    local = lively(LocalFeatures(2, 4, 4))
    x = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        whole = local(x)
        for number, (row, column) in {1: (0, 0), 2: (1, 0), 3: (0, 1), 4: (1, 1)}.items():
            patch = x[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            first = F.relu(getattr(local, f"bn{number}_1")(getattr(local, f"conv{number}_1")(patch)))
            second = F.relu(getattr(local, f"bn{number}_2")(getattr(local, f"conv{number}_2")(first)))
            assert torch.equal(whole[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2], second)


def test_the_modulator_gates_by_channel_and_place():
    gate = lively(Modulator(16, 4))
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(4))
    c, s = gate.channel_att.gate_c, gate.spatial_att.gate_s
    with torch.inference_mode():
        by_channel = c.gate_c_fc_final(F.relu(c.gate_c_bn_1(c.gate_c_fc_0(x.mean((2, 3))))))
        y = F.relu(s.gate_s_bn_reduce0(s.gate_s_conv_reduce0(x)))
        for i in range(2):
            conv = getattr(s, f"gate_s_conv_di_{i}")
            y = F.relu(getattr(s, f"gate_s_bn_di_{i}")(F.conv2d(y, conv.weight, conv.bias, padding=4, dilation=4)))
        by_place = s.gate_s_conv_final(y)
        expected = x / (1 + torch.exp(-by_channel[:, :, None, None] * by_place))
        assert torch.allclose(gate(x), expected, atol=1e-6)


def test_stage_two_and_the_patches_are_added(face):
    module = lively(EfficientFace(SIZES["tiny"]))
    with torch.inference_mode():
        x = module.maxpool(module.conv1(face))
        y = module.stage4(module.stage3(module.modulator(module.stage2(x)) + module.local(x)))
        assert torch.equal(module(face), module.conv5(y).mean((2, 3)))


@pytest.mark.parametrize("target", ["x86_openvino", "x86_openvino_legacy"])
def test_openvino_computes_the_shuffles_that_its_targets_rewrite(tmp_path, target):
    """Left as a Gather, a shuffle goes into the next convolution's weights the wrong way round in OpenVINO 2026.4."""
    openvino = pytest.importorskip("openvino")
    module = lively(EfficientFace(SIZES["tiny"]))
    engine = Engine("face", Lambda(lambda m, x: (m.face(x),), face=module), {"frame": (1, 3, 64, 64)}, {"feature": (1, 64)})
    graph.export_onnx(engine, tmp_path / "face.onnx")
    rewritten = graph.load(tmp_path / "face.onnx")
    for name in load_target(target, tmp_path).rewrites:
        rewrites.apply(rewritten, name)
    graph.save(rewritten, tmp_path / "rewritten.onnx")
    frame = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(tmp_path / "rewritten.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.inference_mode():
        expected = module(frame).numpy()
    assert abs(compiled(frame.numpy())[0] - expected).max() <= 1e-4 * abs(expected).max()


def test_every_weight_is_trained(face):
    module = lively(EfficientFace(SIZES["tiny"])).train()
    module(face.repeat(4, 1, 1, 1) + torch.randn(8, 3, 64, 64)).square().sum().backward()
    assert [k for k, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("wrong", [{"image": 72}, {"channels": (4, 18, 32, 32, 64)}, {"channels": (3, 15, 32, 32, 64)}])
def test_sizes_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValueError, match="multiple of"):
        EfficientFace(EfficientFaceSize(**{**asdict(SIZES["tiny"]), **wrong}))


def test_a_size_survives_json():
    for size in SIZES.values():
        assert EfficientFaceSize.from_json(json.loads(json.dumps(asdict(size)))) == size


def tiny_groups(module: EfficientFace) -> dict[str, groups.Group]:
    return {g.name: g for g in efficientface.prune_groups(module, "")}


def some_units(group: groups.Group) -> dict[str, list[int]]:
    generator = torch.Generator().manual_seed(len(group.name))
    return {a.name: torch.randperm(a.units, generator=generator)[: group.granules // 2 * a.step].tolist() for a in group.axes}


def test_what_may_be_pruned():
    module = EfficientFace(SIZES["tiny"])
    assert list(tiny_groups(module)) == [*(f"stage{s}.{i}.branch2.0" for s in (2, 3, 4) for i in (0, 1)), "conv5.0"]
    assert set(efficientface.UNPRUNABLE) <= set(dict(module.named_modules()))


def test_pruned_equals_silenced(face):
    """All inner widths halved at once is the wide backbone whose readers hold zeros there; and these units mattered."""
    module = lively(EfficientFace(SIZES["tiny"]))
    inner = [g for g in tiny_groups(module).values() if g.name != "conv5.0"]
    cut = {g.name: some_units(g) for g in inner}
    state = {k: v.clone() for k, v in module.state_dict().items()}
    for key, slices in groups.slices_by_tensor(inner, cut).items():
        state[key][groups.mark(state[key].shape, [(s, u) for s, u in slices if s.role == "in"])] = 0.0
    slim_state = groups.remove(module.state_dict(), inner, cut)
    slim, wide = EfficientFace(SIZES["tiny"]).eval(), EfficientFace(SIZES["tiny"]).eval()
    narrow.fit(slim, slim_state, {})
    slim.load_state_dict(slim_state)
    wide.load_state_dict(state)
    with torch.inference_mode():
        assert count(slim) < count(wide)
        assert torch.allclose(slim(face), wide(face), atol=1e-5, rtol=1e-5)  # sums in another order
        assert (module(face) - wide(face)).abs().max() > 1e-2

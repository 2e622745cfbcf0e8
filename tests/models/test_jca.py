"""JCA has the published size, loads the published checkpoint, and shares AVER's backbones."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit import models
from edgekit.errors import CheckpointError
from edgekit.float_model import torch_session
from edgekit.flow import run_flow
from edgekit.models import aver, checkpoint, jca

TINY = jca.CONFIGS["tiny"]


@functools.cache
def model(name: str = "tiny") -> aver.AVER:
    torch.manual_seed(4)
    module = jca.build(jca.CONFIGS[name]).eval()
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if key.endswith("bias") or "init_hidden" in key:
                parameter.uniform_(-0.3, 0.3)
    return module


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def window(n: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(n)
    video = torch.randn(n, TINY.steps, 3, TINY.frames, TINY.height, TINY.width, generator=generator)
    return {"video": video, "mel": torch.randn(n, TINY.steps, 1, TINY.mel.n_mels, TINY.mel.frames, generator=generator)}


def test_the_releases_fusion_has_8_586_323_parameters():
    with torch.device("meta"):
        release = jca.build(jca.CONFIGS["release"])
    assert {name: parameters(part) for name, part in release.fusion.named_children()} == {
        "coattn": 2_625_056, "avga": 838_193, "Joint": 4_991_488, "vregressor": 65_793, "aregressor": 65_793,
    }  # fmt: skip
    assert parameters(release.fusion) == 8_586_323
    assert parameters(model().fusion) == 20_222
    assert sum(v.numel() for v in model("small").state_dict().values()) < 490_000


def test_the_model_has_all_of_the_protocol():
    assert models.get("jca") is jca and set(models.PROTOCOL) <= set(dir(jca)) and tuple(jca.CONFIGS) == models.CONFIG_NAMES["jca"]
    assert tuple(aver.CONFIGS) == models.CONFIG_NAMES["aver"] and set(models.PROTOCOL) <= set(dir(aver))


def test_backbones_are_avers_key_by_key():
    ours, theirs = model().state_dict(), aver.build(aver.CONFIGS["tiny"]).state_dict()
    backbones = {k for k in theirs if not k.startswith("fusion.")}
    assert backbones == {k for k in ours if not k.startswith("fusion.")}
    assert all(ours[k].shape == theirs[k].shape for k in backbones)


def test_the_fusion_is_one_layer_of_attention_between_guided_video_and_plain_audio():
    generator = torch.Generator().manual_seed(1)
    video, audio = (F.normalize(torch.randn(2, TINY.steps, d, generator=generator), dim=-1) for d in (TINY.video_feature, TINY.channels))
    fusion = model().fusion
    with torch.inference_mode():
        valence, arousal = fusion(video, audio)
        seen, heard = fusion.coattn.dcn_layers[0](fusion.avga(video, audio), audio)
        joint = fusion.Joint(torch.cat([seen, heard], -1))
        assert torch.allclose(valence, fusion.vregressor(joint)[..., 0], atol=1e-6) and torch.allclose(arousal, fusion.aregressor(joint)[..., 0], atol=1e-6)
    assert len(fusion.coattn.dcn_layers) == 1 and valence.std() > 0 and not torch.allclose(valence, arousal)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_public_file_loads_under_its_own_names(tmp_path, prefix):
    """There the guided attention is called `video_attn`, and a file is wrapped in `net`."""
    state = {k.removeprefix("fusion.").replace("avga.", "video_attn."): v for k, v in model().state_dict().items()}
    path = tmp_path / "weights.pt"
    torch.save({"net": {prefix + k: v for k, v in state.items()}}, path)
    module = jca.build(TINY).eval()
    assert checkpoint.load_into(module, jca.normalize_keys(checkpoint.read_state(path), TINY), path) == []
    assert all(torch.equal(v, model().state_dict()[k]) for k, v in module.state_dict().items())


def test_the_fusion_alone_is_refused_by_what_is_missing():
    state = {k.removeprefix("fusion."): v for k, v in model().state_dict().items() if k.startswith("fusion.")}
    with pytest.raises(CheckpointError, match="the checkpoint is partial: the video backbone"):
        jca.normalize_keys(state, TINY)


def test_engines_along_the_flow_equal_the_whole():
    got = run_flow(jca.flow(TINY), {e.name: torch_session(e) for e in jca.engines(model(), TINY)}, {k: v[0].numpy() for k, v in window(1).items()})
    with torch.inference_mode():
        want = model()(**window(1))
    assert all(np.abs(got[k] - want[k][0].numpy()).max() < 1e-5 for k in ("valence", "arousal"))  # float32 in another order


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_the_exported_fusion_equals_torch(name, tmp_path):
    from edgekit import graph
    from edgekit.backends import onnxruntime

    engine = next(e for e in jca.engines(model(name), jca.CONFIGS[name]) if e.name == "fusion")
    graph.export_onnx(engine, tmp_path / "fusion.onnx")
    generator = torch.Generator().manual_seed(2)
    feeds = {k: F.normalize(torch.randn(shape, generator=generator), dim=-1) for k, shape in engine.inputs.items()}
    got = onnxruntime.simulate(tmp_path / "fusion.onnx", threads=1)({k: v.numpy() for k, v in feeds.items()})
    with torch.inference_mode():
        want = engine.module(*feeds.values())
    assert all(np.abs(got[k] - v.numpy()).max() <= 1e-4 * v.abs().max() for k, v in zip(engine.outputs, want, strict=True))


def test_the_fusion_learns_from_encoded_features():
    module = jca.build(TINY).train()
    encoded = jca.encode(module, window(4))
    generator = torch.Generator().manual_seed(1)
    labels = {k: torch.rand(4, TINY.steps, generator=generator) * 2 - 1 for k in aver.OUTPUTS}
    jca.loss(jca.train_forward(module, encoded), labels).backward()
    assert {k for k, p in module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0} == {
        k for k, _ in module.named_parameters() if k.startswith("fusion.")
    }

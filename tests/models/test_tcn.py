"""A TCN sees the past only, and its published spellings become one plain weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.errors import CheckpointError
from edgekit.models.blocks import tcn


def made(normed: bool = True, slope: float = 0.01) -> tcn.TCN:
    torch.manual_seed(4)
    return tcn.TCN(6, (8, 8, 4), 3, slope, normed=normed).eval()


def written_out(state: dict[str, Tensor], x: Tensor, slope: float) -> Tensor:
    """Both convolutions padded on both sides and cut at the end, as the published code does it. x: [n, c, t]."""
    for i in range(3):
        y = x
        for conv in ("conv1", "conv2"):
            pad = 2 * 2**i
            y = F.conv1d(y, state[f"network.{i}.{conv}.weight"], state[f"network.{i}.{conv}.bias"], padding=pad, dilation=2**i)[:, :, :-pad]
            y = F.leaky_relu(y, slope)
        if f"network.{i}.downsample.weight" in state:
            x = F.conv1d(x, state[f"network.{i}.downsample.weight"], state[f"network.{i}.downsample.bias"])
        x = F.leaky_relu(x + y, slope)
    return x


@pytest.mark.parametrize("slope", [0.0, 0.01])
def test_it_is_the_published_network(slope):
    module = made(normed=False, slope=slope)
    assert [name for name, block in enumerate(module.network) if block.downsample is not None] == [0, 2]
    x = torch.randn(2, 15, 6)
    with torch.inference_mode():
        # 1e-6: the same sums, perhaps in another order
        assert torch.allclose(module(x), written_out(module.state_dict(), x.transpose(1, 2), slope).transpose(1, 2), atol=1e-6)


@pytest.mark.parametrize("t", [1, 7, 13])
def test_the_future_does_not_matter_and_the_past_does_for_28_steps(t):
    x = torch.randn(1, 40, 6)
    changed = x.clone()
    changed[:, t:] += 1.0
    with torch.inference_mode():
        before, after = made()(x), made()(changed)
    assert torch.equal(before[:, :t], after[:, :t]) and not torch.equal(before[:, t], after[:, t])
    # Two convolutions a block, each of two steps of its dilation: (3 - 1) * 2 * (1 + 2 + 4) = 28.
    pulse = x.clone()
    pulse[:, t] += 100.0
    with torch.inference_mode():
        moved = (made()(pulse) - before).abs().sum(-1)[0]
    assert torch.nonzero(moved)[-1].item() == min(t + 28, 39)


def spelled(state: dict[str, Tensor], spelling: str) -> dict[str, Tensor]:
    """Plain weights as public checkpoints hold them."""
    out = {}
    for key, value in state.items():
        if key.endswith(("conv1.weight", "conv2.weight")):
            g = value.norm(dim=(1, 2), keepdim=True)
            names = ("weight_g", "weight_v") if spelling == "old" else ("parametrizations.weight.original0", "parametrizations.weight.original1")
            path = key.removesuffix("weight")
            out |= {path + names[0]: g, path + names[1]: value * torch.rand(len(value), 1, 1)}  # v's own length does not count
        else:
            out[key] = value
    return out


@pytest.mark.parametrize("aliases", [False, True])
@pytest.mark.parametrize("spelling", ["old", "new", "plain"])
def test_every_spelling_becomes_the_plain_weight(spelling, aliases):
    plain = made(normed=False).state_dict()
    state = plain if spelling == "plain" else spelled(plain, spelling)
    if aliases:
        state = {**state, **{k.replace("conv1", "net.0").replace("conv2", "net.4"): v for k, v in state.items() if "conv" in k}}
    got = tcn.plain_weights(state)
    assert set(got) == set(plain)
    assert all(torch.allclose(got[k], plain[k], atol=1e-6) for k in plain)


def test_folding_writes_the_same_weights_as_a_checkpoint_of_it():
    module = made()
    state = {k: v.clone() for k, v in module.state_dict().items()}
    assert any("original0" in k for k in state)
    x = torch.randn(2, 15, 6)
    with torch.inference_mode():
        want = module(x)
        tcn.fold(module)
        assert torch.allclose(module(x), want, atol=1e-6)
    read = tcn.plain_weights(state)
    assert all(torch.allclose(read[k], v, atol=1e-6) for k, v in module.state_dict().items()) and set(read) == set(module.state_dict())
    tcn.fold(module)  # again: nothing left to do
    assert set(read) == set(module.state_dict())


def test_a_filter_without_weight_folds_to_zero_and_not_to_nan():
    v = torch.randn(4, 3, 2)
    v[1] = 0
    folded = tcn.plain_weights({"network.0.conv1.weight_g": torch.ones(4, 1, 1), "network.0.conv1.weight_v": v})
    assert list(folded) == ["network.0.conv1.weight"] and not folded["network.0.conv1.weight"][1].any() and folded["network.0.conv1.weight"].isfinite().all()


def test_a_weight_norm_over_another_axis_is_refused():
    with pytest.raises(CheckpointError, match=r"weight_g` is \[1, 1, 2\] for a weight of \[4, 3, 2\]"):
        tcn.plain_weights({"network.0.conv1.weight_g": torch.ones(1, 1, 2), "network.0.conv1.weight_v": torch.ones(4, 3, 2)})


def test_a_weight_in_two_spellings_is_refused():
    state = spelled(made(normed=False).state_dict(), "old")
    with pytest.raises(CheckpointError, match=r"`network.0.conv1.weight` is there twice"):
        tcn.plain_weights({**state, "network.0.conv1.weight": torch.ones(8, 6, 3)})


def test_half_of_a_weight_norm_stays_half():
    state = {"network.0.conv1.weight_g": torch.ones(4, 1, 1)}
    assert tcn.plain_weights(state) == state


def test_dropout_takes_whole_channels():
    module = tcn.TCN(6, (8,), 3, 0.01, dropout=0.5).train()
    module.network[0].conv2.register_forward_hook(lambda sub, args, out: torch.ones_like(out))
    seen = []
    module.network[0].drop.register_forward_hook(lambda sub, args, out: seen.append(out))
    torch.manual_seed(0)
    module(torch.randn(1, 15, 6))
    per_channel = seen[1][0]
    assert isinstance(module.network[0].drop, nn.Dropout1d) and {float(c.unique().numel()) for c in per_channel} == {1.0} and per_channel.unique().numel() == 2

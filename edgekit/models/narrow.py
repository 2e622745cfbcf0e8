"""Give a freshly built module the widths of a pruned state dict.

A pruned model is stored as its configuration, its weights and its head counts: every other width
can be read off a weight's shape, so that there is no second description to disagree with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from ..errors import CheckpointError


def heads(module: nn.Module) -> dict[str, int]:
    """{module path: head count} of every attention; the one width that no weight's shape tells."""
    return {path: sub.num_heads for path, sub in module.named_modules() if _is_attention(sub)}


def fit(module: nn.Module, state: Mapping[str, Tensor], heads: Mapping[str, int]) -> None:
    """Resize `module` in place so that `load_state_dict(state, strict=True)` and forward work.

    Only widths change: kernels, layer counts, head size and which biases exist must be as built.
    Parameters whose shape changes are left empty (not initialised): load the state afterwards.

    Args:
        heads: {module path: head count}, as `heads()` gave it for the pruned module.

    Raises:
        CheckpointError: names the first tensor or module whose width contradicts another's.
    """
    _check_names(module, state)
    unknown = sorted(set(heads) - set(dict(module.named_modules())))
    if unknown:
        raise CheckpointError(f"heads: `{unknown[0]}` is not a module of this model")
    for path, sub in list(module.named_modules()):
        prefix = f"{path}." if path else ""
        shapes = {name: tuple(state[prefix + name].shape) for name in _own(sub)}
        for kind, resize in _RESIZE:
            if isinstance(sub, kind):
                resize(sub, shapes, path)
        for name, shape in shapes.items():
            _set_shape(sub, name, shape)
        if _is_attention(sub):
            _fit_attention(sub, path, heads.get(path, sub.num_heads), {k.removeprefix(prefix): tuple(v.shape) for k, v in state.items() if k.startswith(prefix)})
    for name, tensor in module.state_dict().items():
        if tensor.shape != state[name].shape:
            raise CheckpointError(f"`{name}`: shape {list(state[name].shape)} does not fit its layer, which needs {list(tensor.shape)}")


def _check_names(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    wanted = module.state_dict()
    for name in wanted:
        if name not in state:
            raise CheckpointError(f"`{name}`: missing from the weights")
        if state[name].dim() != wanted[name].dim():
            raise CheckpointError(f"`{name}`: {state[name].dim()} axes, expected {wanted[name].dim()}; only widths may differ")
        if 0 in state[name].shape:
            raise CheckpointError(f"`{name}`: empty, shape {list(state[name].shape)}")
    for name in state:
        if name not in wanted:
            raise CheckpointError(f"`{name}`: the weights hold a tensor that this model lacks")


def _own(sub: nn.Module) -> Iterator[str]:
    """Names of the tensors that `sub` itself stores."""
    yield from (n for n, _ in sub.named_parameters(recurse=False))
    stored = sub.state_dict()
    yield from (n for n, _ in sub.named_buffers(recurse=False) if n in stored)


def _set_shape(sub: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    old = getattr(sub, name)
    if tuple(old.shape) == shape:
        return
    new = torch.empty(shape, dtype=old.dtype, device=old.device)
    setattr(sub, name, nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new)


def _refuse_unless(equal: bool, path: str, what: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    if not equal:
        seen = ", ".join(f"{n} {list(s)}" for n, s in shapes.items())
        raise CheckpointError(f"`{path}`: {what} ({seen})", "the weights are damaged, or were pruned by something else")


def _fit_conv(sub: nn.Module, shapes: Mapping, path: str) -> None:
    is_transposed = isinstance(sub, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    weight = shapes["weight"]
    _refuse_unless(weight[2:] == tuple(sub.kernel_size), path, f"kernel must be {list(sub.kernel_size)}", shapes)
    # A weight is [out, in / groups, ...], and [in, out / groups, ...] when transposed: `per_group` is the second axis.
    full, built_full = weight[0], sub.weight.shape[0]
    per_group, built_per_group = weight[1], sub.weight.shape[1]
    groups = sub.groups
    if groups > 1:
        # Only whole groups can go (a depthwise convolution loses its channels so); each one stays as built.
        size = built_full // groups
        _refuse_unless(full % size == 0 and per_group == built_per_group, path, f"groups of {size} cannot be cut", shapes)
        groups = full // size
    widths = (per_group * groups, full)
    sub.groups = groups
    sub.in_channels, sub.out_channels = widths[::-1] if is_transposed else widths
    if "bias" in shapes:
        _refuse_unless(shapes["bias"] == (sub.out_channels,), path, "bias and weight disagree", shapes)


def _fit_linear(sub: nn.Linear, shapes: Mapping, path: str) -> None:
    sub.out_features, sub.in_features = shapes["weight"]
    if "bias" in shapes:
        _refuse_unless(shapes["bias"] == (sub.out_features,), path, "bias and weight disagree", shapes)


def _fit_batch_norm(sub: nn.Module, shapes: Mapping, path: str) -> None:
    widths = {s for n, s in shapes.items() if n != "num_batches_tracked"}
    _refuse_unless(len(widths) <= 1, path, "widths disagree", shapes)
    if widths:
        (sub.num_features,) = widths.pop()


def _fit_group_norm(sub: nn.GroupNorm, shapes: Mapping, path: str) -> None:
    if not shapes:
        return
    _refuse_unless(shapes["weight"] == shapes["bias"], path, "widths disagree", shapes)
    size = sub.num_channels // sub.num_groups
    (channels,) = shapes["weight"]
    # Statistics are per group, so a group may only go as a whole.
    _refuse_unless(channels % size == 0, path, f"groups of {size} cannot be cut", shapes)
    sub.num_channels, sub.num_groups = channels, channels // size


def _fit_layer_norm(sub: nn.LayerNorm, shapes: Mapping, path: str) -> None:
    if shapes:
        _refuse_unless(len(set(shapes.values())) == 1, path, "widths disagree", shapes)
        sub.normalized_shape = shapes["weight"]


def _fit_recurrent(sub: nn.Module, shapes: Mapping, path: str) -> None:
    """LSTM, GRU and RNN, any depth, one or two directions, and their cells; without projections."""
    _refuse_unless(not getattr(sub, "proj_size", 0), path, "recurrent projections cannot be resized", shapes)
    hh = [n for n in shapes if n.startswith("weight_hh")]
    hidden = shapes[hh[0]][1]
    gates = sub.weight_hh.shape[0] // sub.hidden_size if hh == ["weight_hh"] else sub.weight_hh_l0.shape[0] // sub.hidden_size
    directions = 2 if getattr(sub, "bidirectional", False) else 1
    first_inputs = shapes["weight_ih" if hh == ["weight_hh"] else "weight_ih_l0"][1]
    for name, shape in shapes.items():
        if name.startswith("weight_hh"):
            wanted: tuple[int, ...] = (gates * hidden, hidden)
        elif name.startswith("weight_ih"):
            is_first = name in ("weight_ih", "weight_ih_l0", "weight_ih_l0_reverse")
            wanted = (gates * hidden, first_inputs if is_first else hidden * directions)
        else:
            wanted = (gates * hidden,)
        _refuse_unless(shape == wanted, path, f"{name} should be {list(wanted)} for a hidden size of {hidden}", shapes)
    sub.hidden_size, sub.input_size = hidden, first_inputs


def _is_attention(sub: nn.Module) -> bool:
    """nn.MultiheadAttention, or one in transformers' style: q_proj, k_proj, v_proj and out_proj of a fixed head_dim."""
    return isinstance(sub, nn.MultiheadAttention) or all(hasattr(sub, n) for n in ("num_heads", "head_dim", "q_proj", "k_proj", "v_proj"))


def _fit_attention(sub: nn.Module, path: str, n_heads: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Head size stays as built: it is in the softmax's scale, so another one would change every weight's meaning.

    Args:
        shapes: of the attention's own tensors and of its projections'.
    """
    inner = n_heads * sub.head_dim
    made_of = f"{n_heads} heads of {sub.head_dim}"
    if not isinstance(sub, nn.MultiheadAttention):
        for name in ("q_proj", "k_proj", "v_proj"):
            _refuse_unless(shapes[f"{name}.weight"][0] == inner, path, f"{name} makes {shapes[f'{name}.weight'][0]} features, {made_of} need {inner}", {})
        _refuse_unless(shapes["out_proj.weight"][1] == inner, path, f"out_proj reads {shapes['out_proj.weight'][1]} features, {made_of} make {inner}", {})
        sub.num_heads = n_heads
        return
    own = {name: shapes[name] for name in (*_own(sub), "out_proj.weight")}
    _refuse_unless(own["out_proj.weight"] == (inner, inner), path, f"{made_of} need an out_proj of [{inner}, {inner}]", own)
    if "in_proj_weight" in own:
        _refuse_unless(own["in_proj_weight"] == (3 * inner, inner), path, f"{made_of} need an in_proj of [{3 * inner}, {inner}]", own)
        sub.kdim = sub.vdim = inner
    else:
        sub.kdim, sub.vdim = own["k_proj_weight"][1], own["v_proj_weight"][1]
    if "in_proj_bias" in own:
        _refuse_unless(own["in_proj_bias"] == (3 * inner,), path, f"{made_of} need an in_proj_bias of [{3 * inner}]", own)
    sub.embed_dim, sub.num_heads = inner, n_heads


_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_RESIZE: tuple[tuple[type | tuple[type, ...], Callable], ...] = (
    (_CONVS, _fit_conv),
    (nn.Linear, _fit_linear),
    (_BATCH_NORMS, _fit_batch_norm),
    (nn.GroupNorm, _fit_group_norm),
    (nn.LayerNorm, _fit_layer_norm),
    ((nn.RNNBase, nn.RNNCellBase), _fit_recurrent),
)

"""DCCRN as the graphs that a framework could be given: what is exported first, and better ones.

    naive       the published modules on the frame before and this one: four convolutions a layer, batch norm by itself, a transposed convolution
    folded      batch norm folded into one real convolution [[Wr, -Wi], [Wi, Wr]] a layer, one LSTM call for both inputs
    subpixel    that, with the transposed convolutions as two plain ones (even and odd frequencies) and an interleave
    three_mult  three convolutions a layer (Gauss) in place of four, with the sub-pixel form

For one frame (T = 1) all but `naive` are convolutions over frequency alone, with the two frames of time stacked as channels. For more
frames, and for whole clips, they stay 2-D.

Nothing is copied that need not be: an output of a layer is the next frame's input by binding its memory, also where it is needed several
frames later, so a graph names for each carried input the output and how many calls ago (`carried`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekit.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FORMS = ("naive", "folded", "subpixel", "three_mult")
INPUT, OUTPUT = "x", "mask"


@dataclass(frozen=True, eq=False)
class Layer:
    """A complex convolution, batch norm and PReLU.

    Attributes:
        real, imag: [c_out, c_in, 5, 2]; of a transposed layer [c_in, c_out, 5, 2].
        own: how many of the c_in are not the skip's.
        biases: (p, q) of the two published convolutions, [c_out] each.
        gain, offset: [2 * c_out], the batch norm as one affine form; None: there is none.
        slope: [1] of the PReLU; None: there is none.
    """

    real: Tensor
    imag: Tensor
    own: int
    biases: tuple[Tensor, Tensor]
    gain: Tensor | None
    offset: Tensor | None
    slope: Tensor | None


@dataclass(frozen=True, eq=False)
class Network:
    """The weights of a DCCRN, as its checkpoint has them.

    Attributes:
        encoder: [c_out, c_in, ...] weights.
        decoder: [c_in, c_out, ...] weights; c_in is the layer's own channels, then the skip's.
        nets: (R, I) of every recurrent layer.
        projection: (real, imaginary) Linear of the last.
        bins: frequencies of the input.
        rows: frequencies at the bottleneck.
        look_ahead: whether every decoder layer sees one frame ahead.
    """

    encoder: tuple[Layer, ...]
    decoder: tuple[Layer, ...]
    nets: tuple[tuple[torch.nn.RNNBase, torch.nn.RNNBase], ...]
    projection: tuple[torch.nn.Linear, torch.nn.Linear]
    bins: int
    rows: int
    look_ahead: bool

    @property
    def late(self) -> int:
        """Frames by which a stream's masks come late."""
        return len(self.decoder) if self.look_ahead else 0

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one frame, a complex product counted as four."""
        total, f = 0, self.bins
        for layer in self.encoder:
            f //= 2
            total += 4 * layer.real.numel() * f
        for layer in self.decoder:
            total += 4 * layer.real.numel() * f
            f *= 2
        for pair in self.nets:
            total += sum(2 * (net.weight_ih_l0.numel() + net.weight_hh_l0.numel()) for net in pair)
        return total + sum(linear.weight.numel() for linear in self.projection)


def network(module: Any, bins: int) -> Network:
    """The weights of an `edgekit.models.dccrn.DCCRN`, of any widths.

    Raises:
        UsageError: its recurrent nets see the future, so there is no step to measure.
    """
    if module.enhance[0].nets[0].bidirectional:
        raise UsageError("this network is bidirectional: it has no step of one frame", "bench a recipe whose model streams")
    last = module.enhance[-1]
    skips = [len(layer[0].real_conv.weight) for layer in reversed(module.encoder)]
    return Network(
        encoder=tuple(_layer(layer, layer[0].real_conv.weight.shape[1]) for layer in module.encoder),
        decoder=tuple(_layer(layer, len(layer[0].real_conv.weight) - skip) for layer, skip in zip(module.decoder, skips, strict=True)),
        nets=tuple(layer.nets for layer in module.enhance),
        projection=(last.r_trans, last.i_trans),
        bins=bins,
        rows=bins >> len(module.encoder),
        look_ahead=module.look_ahead,
    )


def _layer(layer: Any, own: int) -> Layer:
    conv, *rest = layer
    norm, act = rest or (None, None)
    gain = offset = slope = None
    if norm is not None:
        gain = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
        offset, slope = (norm.bias - gain * norm.running_mean).detach(), act.weight.detach()
    biases = (conv.real_conv.bias.detach(), conv.imag_conv.bias.detach())
    return Layer(conv.real_conv.weight.detach(), conv.imag_conv.weight.detach(), own, biases, gain, offset, slope)


@dataclass(frozen=True, eq=False)
class Graph:
    """A torch module and how its outputs come back as inputs.

    Attributes:
        module: called with tensors in the order of `inputs`, gives a tuple in the order of `outputs`.
        inputs: {name: shape}, all float32; "x" is the spectrum.
        outputs: names; "mask" is the first.
        carried: {input: (output or "x", k)}: what that was k calls ago; zeros before the first.
        frames: that one call takes.
    """

    module: torch.nn.Module
    inputs: Mapping[str, tuple[int, ...]]
    outputs: tuple[str, ...]
    carried: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    frames: int = 1


def step(net: Network, form: str) -> Graph:
    """One frame [1, 2, bins] with its states -> its mask [1, 2, bins], `net.late` frames late."""
    return chunk(net, form, 1) if form == "naive" else _step(net, form)


@functools.cache
def _bound() -> type[torch.nn.Module]:
    """A function of tensors as a module, so that exporters keep its weights as weights."""
    import torch

    class Bound(torch.nn.Module):
        def __init__(self, function: Callable[..., tuple[Tensor, ...]], weights: Mapping[str, Tensor], nets: Mapping[str, torch.nn.Module]):
            super().__init__()
            self.function = function
            for name, tensor in weights.items():
                self.register_buffer(name, tensor.detach().clone().contiguous())
            for name, module in nets.items():
                self.add_module(name, module)
            self.eval()

        def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
            return self.function(self, *inputs)

    return Bound


# --------------------------------------------------------------------------- T = 1


def _step(net: Network, form: str) -> Graph:
    import torch

    n, weights = len(net.encoder), {}
    convs = [_conv(f"e{i}", layer, form, 1, False, weights) for i, layer in enumerate(net.encoder)]
    deconvs = [_conv(f"d{j}", layer, form, 1, True, weights) for j, layer in enumerate(net.decoder)]
    recurrent = Recurrent(net, together=True)

    inputs: dict[str, tuple[int, ...]] = {INPUT: (1, 2, net.bins)}
    carried: dict[str, tuple[str, int]] = {}
    f = net.bins
    for i, layer in enumerate(net.encoder):
        inputs[f"before_e{i}"] = (1, 2 * layer.real.shape[1], f)
        carried[f"before_e{i}"] = (INPUT if i == 0 else f"e{i - 1}", 1)
        f //= 2
    inputs |= recurrent.shapes
    carried |= {name: (f"{name}_new", 1) for name in recurrent.shapes}
    for j, layer in enumerate(net.decoder):
        inputs[f"before_d{j}"] = (1, 2 * layer.real.shape[0], f)
        carried[f"before_d{j}"] = (f"d{j}", 1)
        if net.look_ahead and j > 1:  # that of d1 is before_e{n-1}
            inputs[f"skip{j}"] = (1, 2 * net.encoder[n - 1 - j].real.shape[0], f)
            carried[f"skip{j}"] = (f"e{n - 1 - j}", j)
        f *= 2
    names = list(inputs)
    outputs = (OUTPUT, *(f"e{i}" for i in range(n - 1)), *(f"{name}_new" for name in recurrent.shapes), *(f"d{j}" for j in range(n)))

    def forward(m: torch.nn.Module, *tensors: Tensor) -> tuple[Tensor, ...]:
        old = dict(zip(names, tensors, strict=True))
        x, encoded, joined = old[INPUT], [], []
        for i, conv in enumerate(convs):
            x = conv(m, torch.cat([old[f"before_e{i}"], x], 1) if form != "three_mult" else (old[f"before_e{i}"], x))
            encoded.append(x)
        # [1, 2c, rows] -> two of [t = 1, 1, c * rows]
        y_r, y_i, states = recurrent(m, *(part.reshape(1, 1, -1) for part in x.chunk(2, 1)), old)
        x = torch.cat([y_r, y_i], 1).reshape(1, -1, net.rows)
        for j, conv in enumerate(deconvs):
            skip = encoded[n - 1 - j]
            if net.look_ahead and j > 0:
                skip = old[f"skip{j}"] if j > 1 else old[f"before_e{n - 1}"]
            joined.append(torch.cat([x, skip], 1))
            x = conv(m, torch.cat([old[f"before_d{j}"], joined[-1]], 1) if form != "three_mult" else (old[f"before_d{j}"], joined[-1]))
        return (x, *encoded[:-1], *states, *joined)

    return Graph(_bound()(forward, weights, recurrent.modules), inputs, outputs, carried)


# --------------------------------------------------------------------------- T > 1


def chunk(net: Network, form: str, frames: int) -> Graph:
    """`frames` frames [1, 2, bins, frames] with their states -> their masks, `net.late` frames late."""
    return _frames(net, form, frames, carry=True)


def clip(net: Network, form: str, frames: int) -> Graph:
    """A whole clip [1, 2, bins, frames] -> its masks, none late."""
    return _frames(net, form, frames, carry=False)


def _frames(net: Network, form: str, frames: int, carry: bool) -> Graph:
    import torch
    from torch.nn import functional as F

    n, weights = len(net.encoder), {}
    convs = [_conv(f"e{i}", layer, form, 2, False, weights) for i, layer in enumerate(net.encoder)]
    deconvs = [_conv(f"d{j}", layer, form, 2, True, weights) for j, layer in enumerate(net.decoder)]
    recurrent = Recurrent(net, together=form != "naive")

    inputs: dict[str, tuple[int, ...]] = {INPUT: (1, 2, net.bins, frames)}
    if carry:
        f = net.bins
        for i, layer in enumerate(net.encoder):
            inputs[f"before_e{i}"] = (1, 2 * layer.real.shape[1], f, 1)
            f //= 2
        inputs |= recurrent.shapes
        for j, layer in enumerate(net.decoder):
            inputs[f"before_d{j}"] = (1, 2 * layer.real.shape[0], f, 1)
            if net.look_ahead and j > 0:
                inputs[f"skip{j}"] = (1, 2 * net.encoder[n - 1 - j].real.shape[0], f, j)
            f *= 2
    names = list(inputs)
    carried = {name: (f"{name}_new", 1) for name in names[1:]}

    def forward(m: torch.nn.Module, *tensors: Tensor) -> tuple[Tensor, ...]:
        old, new = dict(zip(names, tensors, strict=True)), {}

        def with_frame_before(name: str, x: Tensor) -> Tensor:
            new[name] = x[..., -1:] if frames > 1 else x
            return torch.cat([old[name], x], -1)

        x, encoded = old[INPUT], []
        for i, conv in enumerate(convs):
            x = conv(m, with_frame_before(f"before_e{i}", x) if carry else F.pad(x, (1, 0)))
            encoded.append(x)
        # [1, 2c, rows, t] -> two of [t, 1, c * rows]
        y_r, y_i, states = recurrent(m, *(part.permute(3, 0, 1, 2).reshape(frames, 1, -1) for part in x.chunk(2, 1)), old)
        new |= dict(zip(recurrent.shapes, states, strict=True))
        x = torch.cat([y_r, y_i], 1).reshape(frames, -1, net.rows).permute(1, 2, 0)[None]
        for j, conv in enumerate(deconvs):
            skip = encoded[n - 1 - j]
            if carry and net.look_ahead and j > 0:
                line = torch.cat([old[f"skip{j}"], skip], -1)
                skip, new[f"skip{j}"] = line[..., :frames], line[..., -j:]
            if form == "naive":
                (x_r, x_i), (s_r, s_i) = x.chunk(2, 1), skip.chunk(2, 1)
                x = torch.cat([x_r, s_r, x_i, s_i], 1)
            else:
                x = torch.cat([x, skip], 1)
            x = conv(m, with_frame_before(f"before_d{j}", x) if carry else F.pad(x, (0, 1) if net.look_ahead else (1, 0)))
        return (x, *(new[name] for name in names[1:]))

    outputs = (OUTPUT, *(f"{name}_new" for name in names[1:]))
    return Graph(_bound()(forward, weights, recurrent.modules), inputs, outputs, carried, frames)


# --------------------------------------------------------------------------- parts


class Recurrent:
    """All recurrent layers and the projection, on [t, 1, width] each.

    Args:
        together: both inputs of a net as one batch, so that its weights are read once; the published code calls it twice.
    """

    def __init__(self, net: Network, together: bool):
        self.together = together
        self.modules: dict[str, torch.nn.Module] = {"project_r": net.projection[0], "project_i": net.projection[1]}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.layers = len(net.nets)
        self.cells = "hc" if type(net.nets[0][0]).__name__ == "LSTM" else "h"
        self.parts = ("",) if together else ("r", "i")
        for k, pair in enumerate(net.nets):
            for name, trained in zip("RI", pair, strict=True):
                self.modules[f"{name}{k}"] = _time_first(trained)
                for part in self.parts:
                    for cell in self.cells:
                        self.shapes[f"{cell}{k}{name}{part}"] = (1, 2 if together else 1, trained.hidden_size)

    def __call__(self, m: torch.nn.Module, x_r: Tensor, x_i: Tensor, old: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """(real, imaginary, new states in the order of `shapes`); without states in `old` they start at zero."""
        import torch

        states: list[Tensor] = []

        def run(name: str, part: str, x: Tensor) -> Tensor:
            before = tuple(old[f"{cell}{name[1:]}{name[0]}{part}"] for cell in self.cells if f"{cell}{name[1:]}{name[0]}{part}" in old)
            y, after = getattr(m, name)(x, (before if len(before) > 1 else before[0]) if before else None)
            states.extend(after if isinstance(after, tuple) else (after,))
            return y

        for k in range(self.layers):
            if self.together:
                # Two tensors, not one: OpenVINO 2026.4 computes one of two LSTMs that read one tensor wrongly (batch 2, several frames).
                rr, ri = run(f"R{k}", "", torch.cat([x_r, x_i], 1)).chunk(2, 1)
                ii, ir = run(f"I{k}", "", torch.cat([x_i, x_r], 1)).chunk(2, 1)
            else:
                rr, ri, ir, ii = (run(f"{name}{k}", part, x) for name in "RI" for part, x in (("r", x_r), ("i", x_i)))
            x_r, x_i = rr - ii, ri + ir
        return m.project_r(x_r), m.project_i(x_i), states


def _time_first(trained: torch.nn.RNNBase) -> torch.nn.RNNBase:
    net = type(trained)(trained.input_size, trained.hidden_size)
    net.load_state_dict(trained.state_dict())
    return net


def _conv(name: str, layer: Layer, form: str, dims: int, is_transposed: bool, weights: dict[str, Tensor]) -> Callable[[torch.nn.Module, Any], Tensor]:
    """A layer's function of (module, frames); its tensors are put into `weights`.

    Frames are [1, c, f, t + 1] (dims 2), or this frame and that before as [1, 2 * c, f], old first (dims 1; three_mult: a pair of [1, c, f]).
    A decoder layer takes its own channels before those of the skip: (real, imaginary) each, or the published order if naive.
    """
    make = {"naive": _naive, "folded": _folded, "subpixel": _folded, "three_mult": _three_mult}[form]
    return make(name, layer, dims, is_transposed, is_transposed and form != "folded", weights)


def _affine(layer: Layer) -> tuple[Tensor, Tensor]:
    """(gain, bias) [2 * c_out] of a layer, so that y = gain * (complex convolution without bias) + bias."""
    import torch

    p, q = layer.biases
    bias = torch.cat([p - q, p + q])
    return (torch.ones_like(bias), bias) if layer.gain is None else (layer.gain, layer.gain * bias + layer.offset)


def _naive(name: str, layer: Layer, dims: int, is_transposed: bool, _: bool, weights: dict[str, Tensor]) -> Callable[[torch.nn.Module, Tensor], Tensor]:
    import torch
    from torch.nn import functional as F

    weights |= {f"{name}_wr": layer.real, f"{name}_wi": layer.imag, f"{name}_p": layer.biases[0], f"{name}_q": layer.biases[1]}
    if layer.gain is not None:  # kept as a batch norm: mean 0, variance 1
        weights |= {f"{name}_gain": layer.gain, f"{name}_offset": layer.offset, f"{name}_slope": layer.slope}
        weights |= {f"{name}_mean": torch.zeros_like(layer.gain), f"{name}_var": torch.ones_like(layer.gain)}

    def one(m: torch.nn.Module, x: Tensor, part: str, bias: str) -> Tensor:
        w, b = getattr(m, f"{name}_{part}"), getattr(m, f"{name}_{bias}")
        if is_transposed:
            return F.conv_transpose2d(x, w, b, (2, 1), (2, 0), (1, 0))
        return F.conv2d(x, w, b, (2, 1), (2, 0))

    def run(m: torch.nn.Module, x: Tensor) -> Tensor:
        x_r, x_i = x.chunk(2, 1)
        y = torch.cat([one(m, x_r, "wr", "p") - one(m, x_i, "wi", "q"), one(m, x_i, "wr", "p") + one(m, x_r, "wi", "q")], 1)
        y = y[..., 1:-1] if is_transposed else y
        if layer.gain is None:
            return y
        y = F.batch_norm(y, *(getattr(m, f"{name}_{what}") for what in ("mean", "var", "gain", "offset")), eps=0.0)
        return F.prelu(y, getattr(m, f"{name}_slope"))

    return run


def _folded(name: str, layer: Layer, dims: int, is_transposed: bool, by_phases: bool, weights: dict[str, Tensor]) -> Callable[[torch.nn.Module, Tensor], Tensor]:
    from torch.nn import functional as F

    gain, bias = _affine(layer)
    w = gain[:, None, None, None] * _block(layer, is_transposed)
    op = _Op(name, w, dims, is_transposed, by_phases, weights)
    weights[f"{name}_b"] = bias
    if layer.slope is not None:
        weights[f"{name}_slope"] = layer.slope

    def run(m: torch.nn.Module, x: Tensor) -> Tensor:
        y = op(m, x, getattr(m, f"{name}_b"))
        return y if layer.slope is None else F.prelu(y, getattr(m, f"{name}_slope"))

    return run


def _three_mult(name: str, layer: Layer, dims: int, is_transposed: bool, by_phases: bool, weights: dict[str, Tensor]) -> Callable[[torch.nn.Module, Any], Tensor]:
    import torch
    from torch.nn import functional as F

    gain, bias = _affine(layer)
    real, imag = ((w.transpose(0, 1) if is_transposed else w) for w in (layer.real, layer.imag))
    ops = [_Op(f"{name}_{k}", w, dims, is_transposed, by_phases, weights) for k, w in enumerate((real, imag - real, real + imag))]
    shape = (-1, *(1 for _ in range(dims)))
    weights |= {f"{name}_gain": gain.reshape(shape), f"{name}_b": bias.reshape(shape)}
    if layer.slope is not None:
        weights[f"{name}_slope"] = layer.slope

    def halves(x: Tensor) -> tuple[Tensor, Tensor]:
        """Real and imaginary parts, a decoder layer's own channels before those of the skip."""
        if not is_transposed:
            return x.chunk(2, 1)
        skip = len(layer.real) - layer.own
        x_r, x_i, s_r, s_i = x.split([layer.own, layer.own, skip, skip], 1)
        return torch.cat([x_r, s_r], 1), torch.cat([x_i, s_i], 1)

    def run(m: torch.nn.Module, x: Any) -> Tensor:
        if dims == 1:
            x_r, x_i = (torch.cat(parts, 1) for parts in zip(*(halves(frame) for frame in x), strict=True))
        else:
            x_r, x_i = halves(x)
        a, b, c = ops[0](m, x_r + x_i), ops[1](m, x_r), ops[2](m, x_i)
        y = torch.cat([a - c, a + b], 1) * getattr(m, f"{name}_gain") + getattr(m, f"{name}_b")
        return y if layer.slope is None else F.prelu(y, getattr(m, f"{name}_slope"))

    return run


def _block(layer: Layer, is_transposed: bool) -> Tensor:
    """[2 * c_out, 2 * c_in, 5, 2]: one real convolution, its input channels real, imaginary (of the skip: again)."""
    import torch

    real, imag = ((w.transpose(0, 1) if is_transposed else w) for w in (layer.real, layer.imag))
    columns = []
    for here in (slice(None, layer.own), slice(layer.own, None)):
        columns += [torch.cat([real[:, here], imag[:, here]]), torch.cat([-imag[:, here], real[:, here]])]
    return torch.cat(columns, 1)


class _Op:
    """A convolution of two frames, or a transposed one of which the frame between the two is kept.

    Args:
        w: [c_out, c_in, 5, 2].
    """

    def __init__(self, name: str, w: Tensor, dims: int, is_transposed: bool, by_phases: bool, weights: dict[str, Tensor]):
        import torch

        self.name, self.dims, self.is_transposed, self.by_phases = name, dims, is_transposed, by_phases
        if is_transposed and (by_phases or dims == 1):
            w = w.flip(3)  # a transposed kernel's tap 1 meets the older frame
        if dims == 1:
            w = torch.cat([w[..., 0], w[..., 1]], 1)
        if by_phases:
            weights |= {f"{name}_even": w[:, :, [4, 2, 0]], f"{name}_odd": w[:, :, [3, 1]]}
        else:
            weights[f"{name}_w"] = w.transpose(0, 1) if is_transposed else w

    def __call__(self, m: torch.nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        import torch
        from torch.nn import functional as F

        flat = self.dims == 1
        if self.by_phases:
            even, odd = getattr(m, f"{self.name}_even"), getattr(m, f"{self.name}_odd")
            conv, beside = (F.conv1d, (0, 1)) if flat else (F.conv2d, (0, 0, 0, 1))
            phases = [conv(x, even, bias, padding=1 if flat else (1, 0)), conv(F.pad(x, beside), odd, bias)]
            return torch.stack(phases, 3).flatten(2, 3)
        w = getattr(m, f"{self.name}_w")
        if self.is_transposed:
            return F.conv_transpose1d(x, w, bias, 2, 2, 1) if flat else F.conv_transpose2d(x, w, bias, (2, 1), (2, 0), (1, 0))[..., 1:-1]
        return F.conv1d(x, w, bias, 2, 2) if flat else F.conv2d(x, w, bias, (2, 1), (2, 0))

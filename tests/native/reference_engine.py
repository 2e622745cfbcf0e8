"""The network of a SpeechModel in plain torch and numpy, offline, to hold the native engine against: in float64, and int8 as the format says it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F

from edgekit.native_format import ConvLayer, Dense, Net, RecurrentLayer, SpeechModel

WINDOWS = {512: (400, 100), 128: (128, 32), 64: (48, 12)}  # n_fft → window, hop


def random_model(
    seed: int = 0,
    *,
    encoder: tuple[int, ...] = (3, 5, 17),
    decoder: tuple[int, ...] | None = None,
    hidden: tuple[int, ...] = (5, 7),
    kind: str = "lstm",
    n_fft: int = 128,
    look_ahead: bool = True,
    mask: str = "E",
) -> SpeechModel:
    """Weights as of a trained network: activations of about unit size, batch norms that differ between real and imaginary rows.

    decoder: complex channels of the projection and of every decoder layer but the last; None: mirrors the encoder.
    """
    rng = np.random.default_rng(seed)
    depth = len(encoder)
    decoder = (*(encoder[::-1] if decoder is None else decoder), 1)
    win, hop = WINDOWS[n_fft]

    def conv(shape: tuple[int, ...], c_out: int, taps: float, *, last: bool = False) -> ConvLayer:
        c_in = shape[1] * shape[2] // c_out
        weight = rng.standard_normal(shape).astype(np.float32) / np.sqrt(2 * taps * c_in)
        if last:
            return ConvLayer(weight.astype(np.float32), np.ones((2, c_out), np.float32), 0.1 * rng.standard_normal((2, c_out)).astype(np.float32))
        gain = rng.uniform(0.7, 1.8, (2, c_out)).astype(np.float32)
        return ConvLayer(
            weight.astype(np.float32), gain, 0.2 * rng.standard_normal((2, c_out)).astype(np.float32), slope=float(np.float32(rng.uniform(0.05, 0.4)))
        )

    def net(rows: int, width: int, h: int) -> Net:
        size = 1 / np.sqrt(h)
        return Net(*(rng.uniform(-size, size, shape).astype(np.float32) for shape in ((rows, width), (rows, h), (rows,), (rows,))))

    channels = (1, *encoder)
    frequencies = n_fft // 2 >> depth
    recurrent, width = [], encoder[-1] * frequencies
    for h in hidden:
        recurrent.append(RecurrentLayer(kind, tuple(net({"lstm": 4, "gru": 3}[kind] * h, width, h) for _ in "RI")))
        width = h
    rows = decoder[0] * frequencies
    return SpeechModel(
        sample_rate_hz=16000,
        win_length=win,
        hop_length=hop,
        n_fft=n_fft,
        mask=mask,
        look_ahead=look_ahead,
        encoder=[conv((2, channels[i + 1], channels[i], 5, 2), channels[i + 1], 10) for i in range(depth)],
        recurrent=recurrent,
        projection=tuple(
            Dense(2 * rng.standard_normal((rows, width)).astype(np.float32) / np.sqrt(width), 0.1 * rng.standard_normal(rows).astype(np.float32)) for _ in "ri"
        ),
        decoder=[conv((2, decoder[j] + channels[depth - j], decoder[j + 1], 5, 2), decoder[j + 1], 5, last=j == depth - 1) for j in range(depth)],
    )


# --- float64 ---


def network_mask(model: SpeechModel, spectrum: np.ndarray) -> np.ndarray:
    """[2, bins, T] → mask [2, bins, T], offline in float64."""
    x = torch.from_numpy(np.asarray(spectrum, np.float64))[:, None]  # [2, c, f, t]
    skips = []
    for layer in model.encoder:
        x = _affine(layer, _complex(lambda v, w: F.conv2d(F.pad(v[None], (1, 0, 2, 2)), w, stride=(2, 1))[0], x, layer.weight))
        skips.append(x)
    y = x.permute(0, 3, 1, 2).flatten(2)  # [2, t, c * f]
    for layer in model.recurrent:
        y = _recurrent(layer, y)
    x = torch.stack([y[part] @ _double(dense.weight).T + _double(dense.bias) for part, dense in enumerate(model.projection)])
    x = x.unflatten(2, (-1, model.features)).permute(0, 2, 3, 1)
    for layer, skip in zip(model.decoder, reversed(skips), strict=True):
        joined = torch.cat([x, skip], 1)
        y = _complex(lambda v, w: F.conv_transpose2d(v[None], w, stride=(2, 1), padding=(2, 0), output_padding=(1, 0))[0], joined, layer.weight)
        x = _affine(layer, y[..., 1:] if model.look_ahead else y[..., :-1])
    return x[:, 0].numpy()


def denoised(model: SpeechModel, wave: np.ndarray) -> np.ndarray:
    """[n] → [n], the reference's fixed convolutions in float64: pad, mask, pseudo-inverse, trim, clamp."""
    win, hop, n_fft = model.win_length, model.hop_length, model.n_fft
    pad, bins = win - hop, n_fft // 2
    angle = 2 * np.pi * np.outer(np.arange(bins + 1), np.arange(win)) / n_fft
    kernel = np.concatenate([np.cos(angle), -np.sin(angle)])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(win) / win)
    padded = np.pad(np.asarray(wave, np.float64), pad)
    frames = (len(padded) - win) // hop + 1
    x = np.stack([kernel @ (padded[t * hop : t * hop + win] * window) for t in range(frames)], 1).reshape(2, bins + 1, frames)[:, 1:]
    m = network_mask(model, x)
    if model.mask == "R":
        y = x * m
    else:
        if model.mask == "E":
            size = np.maximum(np.hypot(*m), 1e-9)
            m = m * np.tanh(size) / size
        y = np.stack([x[0] * m[0] - x[1] * m[1], x[0] * m[1] + x[1] * m[0]])
    spectrum = np.concatenate([np.pad(part, ((1, 0), (0, 0))) for part in y])
    back = np.linalg.pinv(kernel) * window[:, None]
    out, weight = np.zeros(frames * hop + win), np.zeros(frames * hop + win)
    for t in range(frames):
        out[t * hop : t * hop + win] += back @ spectrum[:, t]
        weight[t * hop : t * hop + win] += window**2
    return np.clip((out / (weight + 1e-8))[pad : pad + len(wave)], -1, 1)


def _double(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(x, np.float64))


def _complex(conv, x: torch.Tensor, weight: np.ndarray) -> torch.Tensor:
    w_r, w_i = _double(weight)
    return torch.stack([conv(x[0], w_r) - conv(x[1], w_i), conv(x[1], w_r) + conv(x[0], w_i)])


def _affine(layer: ConvLayer, x: torch.Tensor) -> torch.Tensor:
    y = _double(layer.gain)[:, :, None, None] * x + _double(layer.bias)[:, :, None, None]
    return torch.where(y > 0, y, layer.slope * y)


def _recurrent(layer: RecurrentLayer, x: torch.Tensor) -> torch.Tensor:
    """[2, t, in] → [2, t, hidden]; both inputs go through both nets as a batch of two."""
    outs = []
    for net in layer.nets:
        cell = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[layer.kind](x.shape[2], net.w_h.shape[1], batch_first=True, dtype=torch.float64)
        cell.load_state_dict(
            {"weight_ih_l0": _double(net.w_x), "weight_hh_l0": _double(net.w_h), "bias_ih_l0": _double(net.b_x), "bias_hh_l0": _double(net.b_h)}
        )
        outs.append(cell(x)[0].detach())
    r, i = outs
    return torch.stack([r[0] - i[1], r[1] + i[0]])


# --- int8, the integers as the format says them ---


def quantized(model: SpeechModel, spectrum: np.ndarray, *, sums_fit: bool = True) -> SpeechModel:
    """The model in int8, with the largest activations on `spectrum` [2, bins, T] as scales. Symmetric; one scale a tensor, one a weight row.

    Args:
        sums_fit: a convolution's weights of two frames add up to at most 127, as edgekit exports them.
    """
    seen = _activations(model, spectrum)
    scale = {name: np.float32(max(np.abs(value).max(), 1e-6) / 127) for name, value in seen.items()}
    depth, channels = len(model.encoder), model.encoder_channels

    def conv(layer: ConvLayer, of_input: np.ndarray, out: str, *, transposed: bool) -> ConvLayer:
        """of_input: the scale of every input channel. Where they differ the ratio is in the weights."""
        weight = layer.weight.astype(np.float64) * (of_input[None, :, None, None, None] if transposed else of_input[None, None, :, None, None])
        rows = np.abs(weight).max(axis=(0, 1, 3, 4) if transposed else (0, 2, 3, 4)) / 127
        if sums_fit:
            rows = np.maximum(rows, np.abs(weight.sum(4)).max(axis=(0, 1, 3) if transposed else (0, 2, 3)) / 126)
        q = np.rint(weight / (rows[None, None, :, None, None] if transposed else rows[None, :, None, None, None]))
        return ConvLayer(q.astype(np.int8), (layer.gain * rows).astype(np.float32), layer.bias, layer.slope, float(scale[out]))

    def rows_of(weight: np.ndarray, in_scale: float) -> tuple[np.ndarray, np.ndarray]:
        rows = np.abs(weight).max(1) / 127
        return np.rint(weight / rows[:, None]).astype(np.int8), (rows * in_scale).astype(np.float32)

    first, last = model.encoder[0], model.decoder[-1]
    encoder = [ConvLayer(first.weight, first.gain, first.bias, first.slope, float(scale["e0"]))]
    encoder += [conv(model.encoder[i], np.full(channels[i], scale[f"e{i - 1}"]), f"e{i}", transposed=False) for i in range(1, depth)]
    recurrent, source = [], scale[f"e{depth - 1}"]
    for k, layer in enumerate(model.recurrent):
        nets = []
        for net in layer.nets:
            (q_x, scale_x), (q_h, scale_h) = rows_of(net.w_x, source), rows_of(net.w_h, 1 / 127)
            nets.append(Net(q_x, q_h, net.b_x, net.b_h, scale_x, scale_h))
        recurrent.append(RecurrentLayer(layer.kind, tuple(nets), float(scale[f"r{k}"])))
        source = scale[f"r{k}"]
    projection = []
    for dense in model.projection:
        q, rows = rows_of(dense.weight, source)
        projection.append(Dense(q, dense.bias, rows))
    decoder = []
    for j in range(depth - 1):
        of_input = np.concatenate([np.full(model.decoder_channels[j], scale[f"d{j}"]), np.full(channels[depth - j], scale[f"e{depth - 1 - j}"])])
        decoder.append(conv(model.decoder[j], of_input, f"d{j + 1}", transposed=True))
    return replace(model, encoder=encoder, recurrent=recurrent, projection=tuple(projection), projection_scale=float(scale["d0"]), decoder=[*decoder, last])


def int8_mask(model: SpeechModel, spectrum: np.ndarray) -> np.ndarray:
    """[2, bins, T] → mask [2, bins, T] of a quantized model: exact integer sums, every float operation rounded to float32."""
    x = torch.from_numpy(np.asarray(spectrum, np.float64))[:, None]
    skips = []
    for i, layer in enumerate(model.encoder):
        y = _complex(lambda v, w: F.conv2d(F.pad(v[None], (1, 0, 2, 2)), w, stride=(2, 1))[0], x, layer.weight)
        y = _affine32(layer, y)
        x = _round(y, layer.out_scale)
        skips.append(y.double() if i == 0 else x)  # the last decoder layer reads the first layer's floats
    y = x.permute(0, 3, 1, 2).flatten(2)
    for layer in model.recurrent:
        y = _round(_recurrent_int8(layer, y), layer.out_scale)
    x = torch.stack([(y[part] @ _double(d.weight).T).float() * _single(d.scale) + _single(d.bias) for part, d in enumerate(model.projection)])
    x = _round(x.unflatten(2, (-1, model.features)).permute(0, 2, 3, 1), model.projection_scale)
    for j, (layer, skip) in enumerate(zip(model.decoder, reversed(skips), strict=True)):
        joined = torch.cat([x, skip], 1)
        y = _complex(lambda v, w: F.conv_transpose2d(v[None], w, stride=(2, 1), padding=(2, 0), output_padding=(1, 0))[0], joined, layer.weight)
        y = _affine32(layer, y[..., 1:] if model.look_ahead else y[..., :-1])
        x = y.double() if j >= len(model.decoder) - 2 else _round(y, layer.out_scale)
    return x[:, 0].numpy()


def _activations(model: SpeechModel, spectrum: np.ndarray) -> dict[str, np.ndarray]:
    """Every tensor that int8 rounds: e0 .., r0 .., d0 (the projection), d1 .."""
    found = {}
    x = torch.from_numpy(np.asarray(spectrum, np.float64))[:, None]
    skips = []
    for i, layer in enumerate(model.encoder):
        x = _affine(layer, _complex(lambda v, w: F.conv2d(F.pad(v[None], (1, 0, 2, 2)), w, stride=(2, 1))[0], x, layer.weight))
        found[f"e{i}"] = x.numpy()
        skips.append(x)
    y = x.permute(0, 3, 1, 2).flatten(2)
    for k, layer in enumerate(model.recurrent):
        y = _recurrent(layer, y)
        found[f"r{k}"] = y.numpy()
    x = torch.stack([y[part] @ _double(dense.weight).T + _double(dense.bias) for part, dense in enumerate(model.projection)])
    x = x.unflatten(2, (-1, model.features)).permute(0, 2, 3, 1)
    for j, (layer, skip) in enumerate(zip(model.decoder, reversed(skips), strict=True)):
        found[f"d{j}"] = x.numpy()
        y = _complex(
            lambda v, w: F.conv_transpose2d(v[None], w, stride=(2, 1), padding=(2, 0), output_padding=(1, 0))[0], torch.cat([x, skip], 1), layer.weight
        )
        x = _affine(layer, y[..., 1:] if model.look_ahead else y[..., :-1])
    return found


def _single(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(x, np.float32))


def _affine32(layer: ConvLayer, x: torch.Tensor) -> torch.Tensor:
    y = _single(layer.gain)[:, :, None, None] * x.float() + _single(layer.bias)[:, :, None, None]
    return torch.where(y > 0, y, np.float32(layer.slope).item() * y)


def _round(y: torch.Tensor, scale: float) -> torch.Tensor:
    """int8 as float64, so that sums of products are exact."""
    return (y * torch.tensor(np.float32(1) / np.float32(scale))).round().clamp(-127, 127).double()


def _recurrent_int8(layer: RecurrentLayer, x: torch.Tensor) -> torch.Tensor:
    outs = []
    for net in layer.nets:
        h_width = net.w_h.shape[1]
        h = torch.zeros(2, h_width)
        q, c = h.double(), h.clone()
        frames = []
        for t in range(x.shape[1]):
            from_x = (x[:, t] @ _double(net.w_x).T).float() * _single(net.scale_x) + _single(net.b_x)
            from_h = (q @ _double(net.w_h).T).float() * _single(net.scale_h) + _single(net.b_h)
            if layer.kind == "lstm":
                i, f, g, o = (from_x + from_h).split(h_width, 1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
            else:
                (x_r, x_z, x_n), (h_r, h_z, h_n) = from_x.split(h_width, 1), from_h.split(h_width, 1)
                r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
                h = (1 - z) * (x_n + r * h_n).tanh() + z * h
            q = (h * 127.0).round().clamp(-127, 127).double()
            frames.append(h)
        outs.append(torch.stack(frames, 1))
    r, i = outs
    return torch.stack([r[0] - i[1], r[1] + i[0]])

"""The weight file of the native DCCRN engine: one portable file, little endian, tensors on 64-byte boundaries.

    header   magic "EKDCCRN\\0" | u32 version | u32 header bytes | u64 total bytes | u32 crc32 of every byte behind this field | u32 weight format
             u32 sample_rate_hz win_length hop_length n_fft kernel_f kernel_t stride_f depth mask look_ahead rnn_kind rnn_layers
             u32[depth + 1] complex channels of the encoder, u32[depth + 1] of the decoder, u32[rnn_layers] hidden; zeros to 64 bytes
    tensors  in one fixed order (`_tensors`), each with zeros to 64 bytes; the numbers above give every size, so the total must match

Weight format: 0 float32, 1 float16 (written where it loses nothing: checkpoints are float16), 3 int8. The reader is native/stream/file.cpp.

In an int8 file the first encoder layer and the last decoder layer are float32. `gain` holds input scale * weight scale * batch norm, so that a
layer is y = gain * sum + bias, PReLU, q = clamp(round_half_even(y / out_scale), -127, 127). A decoder layer adds two inputs in one sum: where
their scales differ, the ratio is in the weights. States h are int8 with scale 1/127; `scale_h` holds weight scale / 127.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .errors import CheckpointError

MAGIC = b"EKDCCRN\0"
VERSION = 1
MASKS = ("E", "C", "R")
KINDS = ("lstm", "gru")
KERNEL_F, KERNEL_T, STRIDE_F = 5, 2, 2
F32, F16, INT8 = 0, 1, 3
BATCH_NORM_EPS = 1e-5
_ALIGN = 64


@dataclass
class ConvLayer:
    """A complex convolution, batch norm and PReLU.

    weight: [2, c_out, c_in, 5, 2] real and imaginary, float32 or int8; a decoder layer's is torch's transposed [2, c_in, c_out, 5, 2].
    gain, bias: [2, c_out] of the real and of the imaginary output rows.
    """

    weight: np.ndarray
    gain: np.ndarray
    bias: np.ndarray
    slope: float = 1.0
    out_scale: float = 1.0


@dataclass
class Net:
    """One real recurrent net, gates in torch's order: w_x [gates * h, in], w_h [gates * h, h], biases and int8 scales [gates * h]."""

    w_x: np.ndarray
    w_h: np.ndarray
    b_x: np.ndarray
    b_h: np.ndarray
    scale_x: np.ndarray | None = None
    scale_h: np.ndarray | None = None


@dataclass
class RecurrentLayer:
    """re = R(re) - I(im), im = R(im) + I(re); kind "lstm" or "gru"."""

    kind: str
    nets: tuple[Net, Net]
    out_scale: float = 1.0


@dataclass
class Dense:
    """weight [channels * F, hidden], rows in the order channel * F + f; bias and int8 scale [rows]."""

    weight: np.ndarray
    bias: np.ndarray
    scale: np.ndarray | None = None


@dataclass
class SpeechModel:
    """A DCCRN as the native engine runs it. `projection` is (real, imaginary)."""

    sample_rate_hz: int
    win_length: int
    hop_length: int
    n_fft: int
    mask: str
    look_ahead: bool
    encoder: list[ConvLayer]
    recurrent: list[RecurrentLayer]
    projection: tuple[Dense, Dense]
    decoder: list[ConvLayer]
    projection_scale: float = 1.0
    name: str = field(default="", compare=False)  # for messages only

    @property
    def is_int8(self) -> bool:
        return self.projection[0].weight.dtype == np.int8

    @property
    def features(self) -> int:
        """Frequencies of the bottleneck."""
        return self.n_fft // 2 >> len(self.encoder)

    @property
    def encoder_channels(self) -> list[int]:
        return [1, *(layer.weight.shape[1] for layer in self.encoder)]

    @property
    def decoder_channels(self) -> list[int]:
        return [self.projection[0].weight.shape[0] // max(self.features, 1), *(layer.weight.shape[2] for layer in self.decoder)]

    @property
    def hidden(self) -> list[int]:
        return [layer.nets[0].w_h.shape[1] for layer in self.recurrent]


def write(model: SpeechModel, path: Path | str) -> Path:
    """Writes the weight file; CheckpointError if the model's shapes do not fit together."""
    Path(path).write_bytes(to_bytes(model))
    return Path(path)


def to_bytes(model: SpeechModel) -> bytes:
    """The weight file's bytes."""
    tensors = [(what, np.asarray(array), shape, is_weight) for what, array, shape, is_weight in _tensors(model)]
    for what, array, shape, _ in tensors:
        if array.shape != shape:
            raise CheckpointError(f"{model.name or 'model'}: {what} is {list(array.shape)}, the layers around it need {list(shape)}")
        if array.dtype != np.int8 and not np.isfinite(array).all():
            raise CheckpointError(f"{model.name or 'model'}: {what} holds numbers that are not finite")
    weight_format = INT8 if model.is_int8 else F16 if all(_is_float16(array) for _, array, _, is_weight in tensors if is_weight) else F32
    plain = {"encoder 0 weight", f"decoder {len(model.decoder) - 1} weight"}  # float32 in an int8 file

    header = _header(model, weight_format)
    body = bytearray()
    for what, array, _, is_weight in tensors:
        wanted = {F32: np.float32, F16: np.float16, INT8: np.float32 if what in plain else np.int8}[weight_format] if is_weight else np.float32
        if (array.dtype == np.int8) != (wanted == np.int8):
            raise CheckpointError(
                f"{model.name or 'model'}: {what} is {array.dtype}, an {'int8' if weight_format == INT8 else 'float'} file needs {np.dtype(wanted)}"
            )
        if wanted == np.int8 and (array == -128).any():
            raise CheckpointError(f"{model.name or 'model'}: {what} holds -128; weights are symmetric, -127 to 127")
        body += np.ascontiguousarray(array, dtype=np.dtype(wanted).newbyteorder("<")).tobytes()
        body += bytes(-len(body) % _ALIGN)
    total = len(header) + len(body)
    head = MAGIC + struct.pack("<IIQ", VERSION, len(header), total)
    behind = bytes(header[len(head) + 4 :]) + bytes(body)
    return head + struct.pack("<I", zlib.crc32(behind)) + behind


def _header(model: SpeechModel, weight_format: int) -> bytes:
    """With zeros for the crc; long enough to know its own length."""
    depth = len(model.encoder)
    numbers = [model.sample_rate_hz, model.win_length, model.hop_length, model.n_fft, KERNEL_F, KERNEL_T, STRIDE_F, depth]
    numbers += [MASKS.index(model.mask), int(model.look_ahead), KINDS.index(model.recurrent[0].kind), len(model.recurrent)]
    numbers += [*model.encoder_channels, *model.decoder_channels, *model.hidden]
    body = bytes(len(MAGIC)) + bytes(4 + 4 + 8 + 4) + struct.pack(f"<I{len(numbers)}I", weight_format, *numbers)
    return body + bytes(-len(body) % _ALIGN)


def _tensors(model: SpeechModel) -> Iterator[tuple[str, np.ndarray, tuple[int, ...], bool]]:
    """(what, array, the shape it must have, is it a weight) in the file's order."""
    depth, frequencies = len(model.encoder), model.features
    if len(model.decoder) != depth or frequencies < 1 or frequencies << depth != model.n_fft // 2:
        raise CheckpointError(
            f"{model.name or 'model'}: {depth} encoder and {len(model.decoder)} decoder layers do not fit {model.n_fft // 2} frequencies",
            hint="both need one number of layers, and every layer halves the frequencies",
        )
    if len({layer.kind for layer in model.recurrent}) != 1 or model.recurrent[0].kind not in KINDS:
        raise CheckpointError(f"{model.name or 'model'}: recurrent layers are {[layer.kind for layer in model.recurrent]}, all must be one of {KINDS}")
    encoder, decoder, hidden = model.encoder_channels, model.decoder_channels, model.hidden

    for i, layer in enumerate(model.encoder):
        yield from _conv_tensors(f"encoder {i}", layer, (2, encoder[i + 1], encoder[i], KERNEL_F, KERNEL_T), encoder[i + 1])
    gates = {"lstm": 4, "gru": 3}[model.recurrent[0].kind]
    width = encoder[depth] * frequencies
    for i, layer in enumerate(model.recurrent):
        rows = gates * hidden[i]
        for part, net in zip("RI", layer.nets, strict=True):
            what = f"recurrent {i} {part}"
            yield f"{what} w_x", net.w_x, (rows, width), True
            yield f"{what} w_h", net.w_h, (rows, hidden[i]), True
            yield f"{what} b_x", net.b_x, (rows,), False
            yield f"{what} b_h", net.b_h, (rows,), False
            if model.is_int8:
                yield f"{what} scale_x", _present(net.scale_x), (rows,), False
                yield f"{what} scale_h", _present(net.scale_h), (rows,), False
        yield f"recurrent {i} out_scale", np.float32([layer.out_scale]), (1,), False
        width = hidden[i]
    for part, dense in zip(("real", "imaginary"), model.projection, strict=True):
        rows = decoder[0] * frequencies
        yield f"projection {part} weight", dense.weight, (rows, width), True
        yield f"projection {part} bias", dense.bias, (rows,), False
        if model.is_int8:
            yield f"projection {part} scale", _present(dense.scale), (rows,), False
    yield "projection out_scale", np.float32([model.projection_scale]), (1,), False
    for j, layer in enumerate(model.decoder):
        c_in, c_out = decoder[j] + encoder[depth - j], decoder[j + 1] if j + 1 < depth else 1
        yield from _conv_tensors(f"decoder {j}", layer, (2, c_in, c_out, KERNEL_F, KERNEL_T), c_out)


def _conv_tensors(what: str, layer: ConvLayer, shape: tuple[int, ...], c_out: int) -> Iterator[tuple[str, np.ndarray, tuple[int, ...], bool]]:
    yield f"{what} weight", layer.weight, shape, True
    yield f"{what} gain", layer.gain, (2, c_out), False
    yield f"{what} bias", layer.bias, (2, c_out), False
    yield f"{what} slope and out_scale", np.float32([layer.slope, layer.out_scale]), (2,), False


def _present(array: np.ndarray | None) -> np.ndarray:
    return np.zeros(0, np.float32) if array is None else array  # its shape is then reported


def _is_float16(array: np.ndarray) -> bool:
    with np.errstate(over="ignore"):
        return bool((np.asarray(array, np.float32).astype(np.float16).astype(np.float32) == array).all())


def from_state(
    state: Mapping[str, np.ndarray],
    *,
    sample_rate_hz: int = 16000,
    n_fft: int = 512,
    win_length: int = 400,
    hop_length: int = 100,
    mask: str = "E",
    look_ahead: bool = True,
) -> SpeechModel:
    """A float model from a reference-named state_dict.

    Keys: encoder.{i}.0.{real,imag}_conv.*, .1 (BatchNorm2d), .2 (PReLU); enhance.{l}.{real,imag}_{lstm,gru}.*; enhance.{last}.{r,i}_trans.*;
    decoder.{i} like the encoder, batch norm and PReLU absent where the layer has none.
    Source: Hu et al. 2020 (DCCRN), arXiv 2008.00264, and its public reference code's names.

    Raises:
        CheckpointError: a key is missing, or the recurrent layers are bidirectional: a stream has no future.
    """
    reader = _State(state)
    depth = reader.count("encoder.{}.0.real_conv.weight")
    layers = reader.count("enhance.{}.real_lstm.weight_ih_l0")
    kind = "lstm" if layers else "gru"
    layers = layers or reader.count("enhance.{}.real_gru.weight_ih_l0")
    if depth == 0 or layers == 0:
        raise CheckpointError(
            "not a DCCRN: no encoder.0.0.real_conv.weight, or no enhance.0.real_lstm.weight_ih_l0 or real_gru",
            hint="keys must have the reference's names; see edgekit/native_format.py",
        )
    if f"enhance.0.real_{kind}.weight_ih_l0_reverse" in state:
        raise CheckpointError("the recurrent layers are bidirectional, and a stream has no future", hint="train the model with a uni-directional GRU or LSTM")
    if f"enhance.0.real_{kind}.weight_ih_l1" in state:
        raise CheckpointError("a recurrent net has two layers in one; a complex layer holds one real and one imaginary net of one layer each")
    return SpeechModel(
        sample_rate_hz=sample_rate_hz,
        win_length=win_length,
        hop_length=hop_length,
        n_fft=n_fft,
        mask=mask,
        look_ahead=look_ahead,
        encoder=[reader.conv(f"encoder.{i}", transposed=False) for i in range(depth)],
        recurrent=[RecurrentLayer(kind, (reader.net(f"enhance.{i}.real_{kind}"), reader.net(f"enhance.{i}.imag_{kind}"))) for i in range(layers)],
        projection=(reader.dense(f"enhance.{layers - 1}.r_trans"), reader.dense(f"enhance.{layers - 1}.i_trans")),
        decoder=[reader.conv(f"decoder.{i}", transposed=True) for i in range(depth)],
    )


class _State:
    """A state_dict read as float32, with an error that names the key."""

    def __init__(self, state: Mapping[str, np.ndarray]):
        self.state = state

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self.state:
            raise CheckpointError(f"the checkpoint has no `{key}`", hint="keys must have the reference's names; see edgekit/native_format.py")
        return np.asarray(self.state[key], dtype=np.float32)

    def count(self, pattern: str) -> int:
        n = 0
        while pattern.format(n) in self.state:
            n += 1
        return n

    def conv(self, key: str, *, transposed: bool) -> ConvLayer:
        weight = np.stack([self[f"{key}.0.real_conv.weight"], self[f"{key}.0.imag_conv.weight"]])
        c_out = weight.shape[2 if transposed else 1]
        p, q = (self[f"{key}.0.{part}_conv.bias"] if f"{key}.0.{part}_conv.bias" in self.state else np.zeros(c_out, np.float32) for part in ("real", "imag"))
        bias = np.stack([p - q, p + q]).astype(np.float64)
        gain = np.ones((2, c_out))
        if f"{key}.1.running_var" in self.state:
            # Stacked channels: rows 0 .. c_out - 1 are real, the rest imaginary.
            norm = {name: self[f"{key}.1.{name}"].astype(np.float64).reshape(2, c_out) for name in ("weight", "bias", "running_mean", "running_var")}
            gain = norm["weight"] / np.sqrt(norm["running_var"] + BATCH_NORM_EPS)
            bias = gain * (bias - norm["running_mean"]) + norm["bias"]
        slope = 1.0
        if f"{key}.2.weight" in self.state:
            slopes = self[f"{key}.2.weight"].ravel()
            if slopes.size != 1:
                raise CheckpointError(f"`{key}.2.weight` holds {slopes.size} slopes; the engine's PReLU has one a layer")
            slope = float(slopes[0])
        return ConvLayer(weight, gain.astype(np.float32), bias.astype(np.float32), slope)

    def net(self, key: str) -> Net:
        return Net(self[f"{key}.weight_ih_l0"], self[f"{key}.weight_hh_l0"], self[f"{key}.bias_ih_l0"], self[f"{key}.bias_hh_l0"])

    def dense(self, key: str) -> Dense:
        return Dense(self[f"{key}.weight"], self[f"{key}.bias"])

"""Video as frames: 3-D convolutions and what stands between them on [n*t, c, h, w], with the frames in the batch.

Runtimes for small devices have integer kernels for 2-D convolution only. All their layers run as they
are on frames, and only a kernel that is longer than one frame needs more:

- dense: the kt shifted (strided, zero-padded) copies of the frames side by side as channels, one Conv;
- depthwise: the rows of the kt shifted copies interleaved, so that a (kt, kh, kw) kernel is a
  (kh*kt, kw) one with vertical stride kt*sh, one Conv;
- (kt, 1, 1): a Conv along t of [n, c, t, h*w];
- grouped, or depthwise with vertical dilation: one Conv a tap, and Adds.

All but the last keep one accumulator per output, which an INT8 engine rounds once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.graph import Editor, attribute, constant, shape_of
from edgekit.rewrites.change import Change, free_name
from edgekit.rewrites.layout import ELEMENTWISE

if TYPE_CHECKING:
    import onnx_ir as ir

_UNARY = (ELEMENTWISE - {"Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "PRelu"}) | {"Gelu"}
_TO_FRAMES = (0, 2, 1, 3, 4)  # [n, c, t, h, w] <-> [n, t, c, h, w]


def conv3d_to_conv2d(model: ir.Model) -> list[Change]:
    """Conv on [n, c, t, h, w] -> Conv on [n*t, c, h, w], with everything between two of them on frames too.

    requires: constant weights.
    ensures: no Conv of rank 5; strides, dilations, groups, padding and bias as before; pools, reductions,
        batch norms and element-wise ops that follow such a Conv read and write frames.
    """
    return _Frames(model, "conv3d_to_conv2d", interleave=True).run()


def conv3d_to_conv2d_taps(model: ir.Model) -> list[Change]:
    """As `conv3d_to_conv2d`, but a depthwise kernel of kt frames becomes kt depthwise Convs and Adds.

    For compilers that take vertical strides of at most 3. The partial sums are new tensors, each rounded on its own in INT8.
    """
    return _Frames(model, "conv3d_to_conv2d_taps", interleave=False).run()


@dataclass
class _Conv:
    """The attributes of a 3-D convolution or pool, each for (t, h, w)."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    group: int = 1

    @classmethod
    def of(cls, node: ir.Node, kernel: Sequence[int], sizes: Sequence[int]) -> _Conv:
        strides = tuple(attribute(node, "strides", [1, 1, 1]))
        dilations = tuple(attribute(node, "dilations", [1, 1, 1]))
        pads = tuple(attribute(node, "pads", [0] * 6))
        auto = attribute(node, "auto_pad", "NOTSET")
        if auto != "NOTSET":
            pads = _auto_pads(auto, kernel, strides, dilations, sizes)
        return cls(tuple(kernel), strides, dilations, pads[:3], pads[3:], attribute(node, "group", 1))

    def without_unused_taps(self, weight: np.ndarray, t: int, t_out: int) -> tuple[_Conv, np.ndarray]:
        """The same without the first and last taps that see nothing but padding: of a clip of one frame, a kernel of three sees one."""
        stride, dilation, before = self.strides[0], self.dilations[0], self.before[0]
        sees = [any(0 <= i * stride + j * dilation - before < t for i in range(t_out)) for j in range(self.kernel[0])]
        used = [j for j, sees_frames in enumerate(sees) if sees_frames]
        if not used or len(used) == len(sees):
            return self, weight
        first, last = used[0], used[-1]
        kernel, padding = (last - first + 1, *self.kernel[1:]), (before - first * dilation, *self.before[1:])
        return replace(self, kernel=kernel, before=padding), weight[:, :, first : last + 1]

    def spatial(self, rows: int = 1) -> dict[str, Any]:
        """The attributes of its 2-D form; `rows`: how many rows stand for each of the picture's."""
        (_, kh, kw), (_, sh, sw), (_, dh, dw) = self.kernel, self.strides, self.dilations
        pads = [self.before[1] * rows, self.before[2], self.after[1] * rows, self.after[2]]
        return {"kernel_shape": [kh * rows, kw], "strides": [sh * rows, sw], "dilations": [dh, dw], "pads": pads, "group": self.group}


def _auto_pads(auto: str, kernel, strides, dilations, sizes) -> tuple[int, ...]:
    totals = [0 if auto == "VALID" else max((-(-d // s) - 1) * s + (k - 1) * r + 1 - d, 0) for d, k, s, r in zip(sizes, kernel, strides, dilations, strict=True)]
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return (*small, *large) if auto != "SAME_LOWER" else (*large, *small)


@dataclass
class _Frames:
    """The rewrite on its way through one graph.

    Attributes:
        frames: {name of a 5-D value: the value that holds it as [n*t, c, h, w]}.
        over_time: {name of frames that a Conv along t made: the Conv's own output, [n, c, t, h*w]}.
        padded: {layer: its input with frames of zeros around it}.
        tensors: of the change that is being made.
    """

    model: ir.Model
    rewrite: str
    interleave: bool
    frames: dict[str, ir.Value] = field(default_factory=dict)
    over_time: dict[str, ir.Value] = field(default_factory=dict)
    padded: dict[str, ir.Value] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    tensors: dict[str, str] = field(default_factory=dict)

    def run(self) -> list[Change]:
        self.edit = Editor(self.model)
        rewritten: list[ir.Node] = []
        for node in list(self.model.graph):
            handler = self._handler(node)
            if handler is None:
                continue
            old = node.outputs[0]
            name = free_name(self.edit, node)
            self.tensors = {}
            result = handler(node, name)
            if result is None:  # a form that stays as it is
                node.name = name
                self.edit._taken.add(name)
                continue
            rewritten.append(node)
            if len(shape_of(old)) == 5:
                self.frames[old.name] = result
                self.tensors.setdefault(result.name, f"same_as {old.name}")
            else:
                self.edit.take_over(old, result)
            self.changes.append(Change(self.rewrite, name, self.tensors))
        gone = set(rewritten)
        for node in rewritten:
            self._give_back(node.outputs[0], gone)
        for node in reversed(rewritten):
            self.model.graph.remove(node, safe=True)
        return self.changes

    def _handler(self, node: ir.Node) -> Callable[[ir.Node, str], ir.Value | None] | None:
        if not node.inputs or node.inputs[0] is None or node.inputs[0].shape is None:
            return None
        if node.op_type == "Conv" and len(shape_of(node.inputs[0])) == 5 and constant(node.inputs[1]) is not None:
            return self._conv
        if not any(value is not None and value.name in self.frames for value in node.inputs):
            return None
        if node.op_type in _UNARY and all(constant(value) is not None for value in node.inputs[1:] if value is not None):
            return self._unary
        return {
            **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu"), self._binary),
            "BatchNormalization": self._unary,
            "Concat": self._concat,
            "AveragePool": self._pool,
            "MaxPool": self._pool,
            "GlobalAveragePool": self._mean,
            "ReduceMean": self._mean,
        }.get(node.op_type)

    # ------------------------------------------------------------------ to frames and back

    def _as_frames(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """[n, c, t, h, w] as [n*t, c, h, w]."""
        if value.name not in self.frames:
            n, c, t, h, w = shape_of(value)
            moved = self._add(before, "Transpose", [value], (n, t, c, h, w), {"perm": _TO_FRAMES}, f"{value.name}/time_first")
            self.frames[value.name] = self._reshape(before, moved, (n * t, c, h, w), f"{value.name}/frames")
            for made in (moved, self.frames[value.name]):
                self.tensors[made.name] = f"same_as {value.name}"
        return self.frames[value.name]

    def _give_back(self, old: ir.Value, gone: set[ir.Node]) -> None:
        """Put [n, c, t, h, w] together again for the readers that stay and for a graph output."""
        frames = self.frames.get(old.name)
        if frames is None or not (old.is_graph_output() or any(use.node not in gone for use in old.uses())):
            return
        n, c, t, h, w = shape_of(old)
        anchor = old.producer()
        split = self._reshape(anchor, frames, (n, t, c, h, w), f"{old.name}/unframed")
        whole = self._add(anchor, "Transpose", [split], (n, c, t, h, w), {"perm": _TO_FRAMES}, f"{old.name}/channels_first")
        name = old.name
        self.edit.take_over(old, whole)
        self.changes[-1].tensors.update({split.name: f"same_as {name}"})
        self.changes[-1].tensors[frames.name] = f"same_as {name}"

    # ------------------------------------------------------------------ ops that stay as they are

    def _unary(self, node: ir.Node, name: str) -> ir.Value | None:
        if node.inputs[0].name not in self.frames or len(node.outputs) > 1:
            return None
        frames = self.frames[node.inputs[0].name]
        # An activation directly behind a Conv is part of it: between them, a layer that writes integers would round once more.
        x = self.over_time.get(frames.name, frames)
        y = self._add(node, node.op_type, [x, *node.inputs[1:]], shape_of(x), dict(node.attributes), name)
        y.producer().domain = node.domain
        return y if x is frames else self._time_to_frames(node, y, name, shape_of(frames), node.outputs[0].name)

    def _binary(self, node: ir.Node, name: str) -> ir.Value | None:
        """Two videos of one length, a video and what it is scaled by, or a video and a constant."""
        if len(node.inputs) != 2 or len(shape_of(node.outputs[0])) != 5:
            return None
        n, _, t, _, _ = shape_of(node.outputs[0])
        arrays = [None if constant(v) is None else constant(v).reshape((1,) * (5 - constant(v).ndim) + constant(v).shape) for v in node.inputs]
        for value, array in zip(node.inputs, arrays, strict=True):
            if array is not None and (array.shape[0], array.shape[2]) != (1, 1):
                return None
            if array is None and (len(shape_of(value)) != 5 or (shape_of(value)[2] != t and n > 1)):
                return None
        inputs = [
            self._as_frames(value, node) if array is None else self.edit.constant(f"{value.name}.frames", array[:, :, 0])
            for value, array in zip(node.inputs, arrays, strict=True)
        ]
        c, h, w = (shape_of(node.outputs[0])[i] for i in (1, 3, 4))
        return self._add(node, node.op_type, inputs, (n * t, c, h, w), dict(node.attributes), name)

    def _concat(self, node: ir.Node, name: str) -> ir.Value | None:
        if attribute(node, "axis", 0) % 5 != 1 or any(constant(value) is not None for value in node.inputs):
            return None
        parts = [self._as_frames(value, node) for value in node.inputs]
        n, c, t, h, w = shape_of(node.outputs[0])
        return self._add(node, "Concat", parts, (n * t, c, h, w), {"axis": 1}, name)

    # ------------------------------------------------------------------ Conv

    def _conv(self, node: ir.Node, name: str) -> ir.Value:
        weight = constant(node.inputs[1])
        bias = [value for value in node.inputs[2:] if value is not None]
        n, c, t, h, w = shape_of(node.inputs[0])
        _, o, t_out, h_out, w_out = shape_of(node.outputs[0])
        conv, weight = _Conv.of(node, weight.shape[2:], (t, h, w)).without_unused_taps(weight, t, t_out)
        shape = (n * t_out, o, h_out, w_out)
        x = self._as_frames(node.inputs[0], node)
        source = node.inputs[0].name
        kt, kh, kw = conv.kernel
        only_time = kh == kw == 1 and conv.strides[1:] == (1, 1) and not any((*conv.before[1:], *conv.after[1:]))
        if only_time and kt > 1 and conv.before[0] >= 0:
            return self._along_time(node, name, x, weight, bias, conv, shape)

        taps = [self._tap(node, name, x, conv, j, n, t_out, source) for j in range(kt)]
        if kt == 1:
            return self._conv2d(node, name, taps[0], weight[:, :, 0], bias, conv.spatial(), shape)
        if conv.group == 1:
            rows = (n * t_out, kt * c, h, w)
            stacked = self._same(self._add(node, "Concat", taps, rows, {"axis": 1}, f"{name}/taps"), source)
            # [o, c, kt, kh, kw] -> [o, kt, c, kh, kw]: the channels of one tap stand together.
            return self._conv2d(node, name, stacked, weight.transpose(0, 2, 1, 3, 4).reshape(weight.shape[0], kt * c, kh, kw), bias, conv.spatial(), shape)
        if self.interleave and weight.shape[1] == 1 and conv.dilations[1] == 1:
            return self._interleaved(node, name, taps, weight, bias, conv, shape, source)
        return self._sum_of_taps(node, name, taps, weight, bias, conv, shape)

    def _conv2d(self, node, name: str, x: ir.Value, weight: np.ndarray, bias: list, attributes: dict[str, Any], shape) -> ir.Value:
        w = self.edit.constant(f"{name}.weight2d", weight)
        return self._add(node, "Conv", [x, w, *bias], shape, attributes, name)

    def _interleaved(self, node, name, taps, weight, bias, conv: _Conv, shape, source: str) -> ir.Value:
        """Rows h0 of tap 0, h0 of tap 1, .., h1 of tap 0, ..: one depthwise kernel sees a window's rows of every tap."""
        kt, kh, kw = conv.kernel
        frames, c, h, w = shape_of(taps[0])
        # Rows of kt*w values: tap 0's row h, tap 1's row h, ..; read as kt rows of w values.
        stacked = self._same(self._add(node, "Concat", taps, (frames, c, h, kt * w), {"axis": 3}, f"{name}/rows"), source)
        rows = self._same(self._reshape(node, stacked, (frames, c, h * kt, w), f"{name}/interleaved"), source)
        # [c, 1, kt, kh, kw] -> [c, 1, kh*kt, kw]: kernel row i of tap j is row i*kt + j.
        kernel = weight.transpose(0, 1, 3, 2, 4).reshape(weight.shape[0], 1, kh * kt, kw)
        return self._conv2d(node, name, rows, kernel, bias, conv.spatial(rows=kt), shape)

    def _sum_of_taps(self, node, name, taps, weight, bias, conv: _Conv, shape) -> ir.Value:
        total = None
        for j, tap in enumerate(taps):
            part = self._conv2d(node, f"{name}/tap{j}", tap, weight[:, :, j], bias if j == 0 else [], conv.spatial(), shape)
            self.tensors[part.name] = "observe"
            if total is None:
                total = part
                continue
            last = j == len(taps) - 1
            total = self._add(node, "Add", [total, part], shape, None, name if last else f"{name}/sum{j}")
            if not last:
                self.tensors[total.name] = "observe"
        return total

    def _along_time(self, node, name, x, weight, bias, conv: _Conv, shape) -> ir.Value:
        """A (kt, 1, 1) kernel: a 2-D convolution over (t, h*w)."""
        source = node.inputs[0].name
        n, c, t, h, w = shape_of(node.inputs[0])
        o, t_out = shape[1], shape[0] // n
        split = self._same(self._reshape(node, x, (n, t, c, h * w), f"{name}/pixels"), source)
        moved = self._same(self._add(node, "Transpose", [split], (n, c, t, h * w), {"perm": [0, 2, 1, 3]}, f"{name}/over_time"), source)
        attributes = {
            "kernel_shape": [conv.kernel[0], 1],
            "strides": [conv.strides[0], 1],
            "dilations": [conv.dilations[0], 1],
            "pads": [conv.before[0], 0, (t_out - 1) * conv.strides[0] + (conv.kernel[0] - 1) * conv.dilations[0] + 1 - t - conv.before[0], 0],
            "group": conv.group,
        }
        y = self._conv2d(node, name, moved, weight.reshape(*weight.shape[:2], conv.kernel[0], 1), bias, attributes, (n, o, t_out, h * w))
        return self._time_to_frames(node, y, name, shape, node.outputs[0].name)

    def _time_to_frames(self, node, y: ir.Value, name: str, shape, source: str) -> ir.Value:
        """[n, c, t, h*w] as [n*t, c, h, w]."""
        n, c, t, pixels = shape_of(y)
        back = self._same(self._add(node, "Transpose", [y], (n, t, c, pixels), {"perm": [0, 2, 1, 3]}, f"{name}/time_first"), source)
        self._same(y, source)
        frames = self._reshape(node, back, shape, f"{name}/frames")
        self.over_time[frames.name] = y
        return frames

    def _tap(self, node, name: str, x: ir.Value, conv: _Conv, j: int, n: int, t_out: int, source: str) -> ir.Value:
        """The frames that tap `j` of a kernel sees, [n*t_out, c, h, w]; zeros before the first and after the last."""
        t = shape_of(x)[0] // n
        stride, dilation = conv.strides[0], conv.dilations[0]
        before, skipped = max(conv.before[0], 0), max(-conv.before[0], 0)
        after = max((t_out - 1) * stride + (conv.kernel[0] - 1) * dilation + 1 - t - conv.before[0], 0)
        start = j * dilation + skipped
        stop = start + (t_out - 1) * stride + 1
        if (start, stop, stride) == (0, t, 1) and not before and not after:
            return x
        key = f"{name}/padded"
        padded = self._padded_frames(node, key, x, n, before, after, source)
        length = t + before + after
        return self._slice_frames(node, f"{name}/tap{j}", padded, n, length, start, stop, stride, source)

    def _padded_frames(self, node, key: str, x: ir.Value, n: int, before: int, after: int, source: str) -> ir.Value:
        """Frames with frames of zeros around each video; one Pad for all taps of a layer."""
        if not before and not after:
            return x
        if key in self.padded:
            return self.padded[key]
        frames, c, h, w = shape_of(x)
        t = frames // n
        value = x if n == 1 else self._same(self._reshape(node, x, (n, t, c * h, w), f"{key}/videos"), source)
        axis = 0 if n == 1 else 1
        shape = [*shape_of(value)]
        shape[axis] += before + after
        pads = np.zeros(8, np.int64)
        pads[axis], pads[axis + 4] = before, after
        padded = self._same(self._add(node, "Pad", [value, self.edit.constant(f"{key}.pads", pads)], shape, None, key), source)
        if n > 1:
            padded = self._same(self._reshape(node, padded, (n * (t + before + after), c, h, w), f"{key}/frames"), source)
        self.padded[key] = padded
        return padded

    def _slice_frames(self, node, name: str, x: ir.Value, n: int, length: int, start: int, stop: int, step: int, source: str) -> ir.Value:
        _, c, h, w = shape_of(x)
        count = len(range(start, stop, step))
        if count == length and step == 1:
            return x
        value = x if n == 1 else self._same(self._reshape(node, x, (n, length, c * h, w), f"{name}/videos"), source)
        axis = 0 if n == 1 else 1
        shape = [*shape_of(value)]
        shape[axis] = count
        bounds = [self.edit.constant(f"{name}.{what}", np.array([number], np.int64)) for what, number in (("start", start), ("stop", stop), ("axis", axis), ("step", step))]
        picked = self._same(self._add(node, "Slice", [value, *bounds], shape, None, name), source)
        return picked if n == 1 else self._same(self._reshape(node, picked, (n * count, c, h, w), f"{name}/frames"), source)

    # ------------------------------------------------------------------ pools and means

    def _pool(self, node: ir.Node, name: str) -> ir.Value | None:
        """A pool over (h, w), then over t by Max or by a mean of the shifted frames."""
        if len(node.outputs) > 1 or attribute(node, "ceil_mode", 0):
            return None
        x, source = self.frames[node.inputs[0].name], node.inputs[0].name
        n, c, t, h, w = shape_of(node.inputs[0])
        conv = _Conv.of(node, attribute(node, "kernel_shape", None), (t, h, w))
        _, _, t_out, h_out, w_out = shape_of(node.outputs[0])
        average = node.op_type == "AveragePool"
        kt, kh, kw = conv.kernel
        over_time = kt > 1 or conv.strides[0] > 1 or conv.before[0] or conv.after[0]
        if over_time and (n > 1 or conv.dilations[0] > 1):
            return None
        spatial = (kh, kw, *conv.strides[1:]) != (1, 1, 1, 1) or any((*conv.before[1:], *conv.after[1:]))
        pooled = x
        if spatial:
            attributes = {key: value for key, value in conv.spatial().items() if key != "group" and (key != "dilations" or not average)}
            if average:
                attributes["count_include_pad"] = attribute(node, "count_include_pad", 0)
            pooled = self._add(node, node.op_type, [x], (n * t, c, h_out, w_out), attributes, f"{name}/frame" if over_time else name)
            if over_time:
                self.tensors[pooled.name] = f"same_as {source}"
        if not over_time:
            return pooled
        # A window that reaches beyond the ends has frame 0 or t-1 in it, so these may stand in for what is missing.
        at = [np.arange(t_out) * conv.strides[0] - conv.before[0] + j for j in range(kt)]
        if not average:
            taps = [self._pick_frames(node, f"{name}/tap{j}", pooled, np.clip(i, 0, t - 1), source) for j, i in enumerate(at)]
            return self._add(node, "Max", taps, (t_out, c, h_out, w_out), None, name)
        inside = np.array([(i >= 0) & (i < t) for i in at])
        counts = np.full(t_out, kt) if attribute(node, "count_include_pad", 0) else inside.sum(axis=0)
        total = None
        for j, i in enumerate(at):
            tap = self._pick_frames(node, f"{name}/tap{j}", pooled, np.clip(i, 0, t - 1), source)
            share = (inside[j] / counts).astype(np.float32).reshape(-1, 1, 1, 1)
            factor = np.float32(share.flat[0]) if (share == share.flat[0]).all() else share
            part = self._add(node, "Mul", [tap, self.edit.constant(f"{name}.share{j}", factor)], shape_of(tap), None, f"{name}/share{j}")
            self.tensors[part.name] = "observe"
            if total is None:
                total = part
                continue
            total = self._add(node, "Add", [total, part], shape_of(tap), None, name if j == kt - 1 else f"{name}/sum{j}")
            self.tensors[total.name] = "observe"
        self.tensors.pop(total.name)
        return total

    def _pick_frames(self, node, name: str, x: ir.Value, indices: np.ndarray, source: str) -> ir.Value:
        """Frames by number: a Slice if they are evenly spaced, else a Gather."""
        _, c, h, w = shape_of(x)
        steps = set(np.diff(indices).tolist())
        if len(steps) <= 1 and not steps & {0}:
            step = steps.pop() if steps else 1
            return self._slice_frames(node, name, x, 1, shape_of(x)[0], int(indices[0]), int(indices[-1]) + 1, step, source)
        wanted = self.edit.constant(f"{name}.indices", indices.astype(np.int64))
        return self._same(self._add(node, "Gather", [x, wanted], (len(indices), c, h, w), {"axis": 0}, name), source)

    def _mean(self, node: ir.Node, name: str) -> ir.Value | None:
        """A mean over any of (c, t, h, w): one ReduceMean on frames, if there is one video."""
        old, x = node.outputs[0], self.frames[node.inputs[0].name]
        shape = shape_of(node.inputs[0])
        is_global = node.op_type == "GlobalAveragePool"
        axes = [2, 3, 4] if is_global else [a % 5 for a in attribute(node, "axes", None) or range(5)]
        keep = is_global or bool(attribute(node, "keepdims", 1))
        if shape[0] != 1 or not set(axes) - {0}:
            return None
        mine = sorted({1: 1, 2: 0, 3: 2, 4: 3}[a] for a in axes if a != 0)
        reduced = tuple(1 if i in mine else d for i, d in enumerate(shape_of(x)))
        y = self._add(node, "ReduceMean", [x], reduced, {"axes": mine, "keepdims": 1}, name)
        if keep:
            return y
        whole = y
        if reduced[0] > 1 and reduced[1] > 1:  # ONNX has the channels before the frames
            turned = (reduced[1], reduced[0], *reduced[2:])
            whole = self._same(self._add(node, "Transpose", [y], turned, {"perm": [1, 0, 2, 3]}, f"{name}/channels_first"), old.name)
        self._same(y, old.name)
        return self._reshape(node, whole, shape_of(old), f"{name}/squeezed")

    # ------------------------------------------------------------------ edits

    def _add(self, before: ir.Node, op: str, inputs: list, shape, attributes, name: str) -> ir.Value:
        return self.edit.add(before, op, inputs, shape, attributes, name)

    def _reshape(self, before: ir.Node, x: ir.Value, shape: Sequence[int], name: str) -> ir.Value:
        return self._add(before, "Reshape", [x, self.edit.constant(f"{name}.shape", np.array(shape, np.int64))], shape, None, name)

    def _same(self, value: ir.Value, source: str) -> ir.Value:
        self.tensors[value.name] = f"same_as {source}"
        return value

"""What INT8 may cost, measured on the very models and data that are compared, in place of a limit for all.

    float against INT8   A is rounded wherever B rounds, with scales that fit its own values: an honest INT8 of this
                         model. B may be a few dB worse, since its ranges come from other data
                         layer by layer too: an output with 20 dB of honest noise hides a layer that is wrong
    INT8 against INT8    A without its rounding of activations shows how much noise that is; kernels that round a sum
                         the other way make less of it

Both take graphs in ONNX; for others the fixed defaults of measure.py hold.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit.compare import decibel
from edgekit.errors import DataError
from edgekit.parity.graphs import OnnxSide
from edgekit.parity.measure import LUCK, SAME_INT8_SQNR_DB
from edgekit.parity.runners import Options, Side, open_side
from edgekit.parity.surgery import QUANTIZE, Net, rounded_twin

if TYPE_CHECKING:
    import onnx

    from edgekit.parity.result import Bisect
    from edgekit.parity.samples import Samples

MARGIN_DB = 6.0
"""As for one layer (bisect.MARGIN), and as there more where there are few values."""
SAMPLES = 4
MOST_CALLS = 64
MOST_REASONS = 3


@dataclass(frozen=True)
class Cost:
    """What INT8 costs, on the first samples.

    Attributes:
        limits: {A's output: (least SQNR in dB, why)}.
        layers: what every layer introduces, of float against INT8; None where the graphs do not say.
        reasons: one sentence on each of the layers that introduce more than rounding does, at most MOST_REASONS.
    """

    limits: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    layers: Bisect | None = None
    reasons: tuple[str, ...] = ()


def cost(a: Side, b: Side, mapping: Mapping[str, str], source: Samples, stream: bool = False, axis: int = 1) -> Cost:
    """Limits for every output, and the layers that are wrong by themselves; empty where nothing can be measured, and the fixed defaults hold.

    An output of 20 dB hides a layer that is wrong by 10: such a layer is seen only where it is.

    Args:
        mapping: {B's name: A's}.
    """
    if not isinstance(a, OnnxSide) or [a.numbers, b.numbers].count("int8") == 0:
        return Cost()
    if a.numbers == "int8":
        return Cost(_own_noise(a, source, stream, axis)) if b.numbers == "int8" else Cost()
    return _against_float(a, b, mapping, source, stream, axis) if isinstance(b, OnnxSide) and b.engine_graph() is not None and not b.is_fused else Cost()


def _own_noise(a: OnnxSide, source: Samples, stream: bool, axis: int) -> dict[str, tuple[float, str]]:
    why = f"default for INT8 against INT8: what rounding activations costs A on these data, at most {SAME_INT8_SQNR_DB:g} dB"
    costs = _noise(a, _without_rounding(a), source, stream, axis)
    return {name: (min(cost, SAME_INT8_SQNR_DB), why) for name, (cost, _) in costs.items() if not math.isnan(cost)}


def _against_float(a: Side, b: Side, mapping: Mapping[str, str], source: Samples, stream: bool, axis: int) -> Cost:
    from edgekit.parity.bisect import FAULT, Calls, Hunt

    started = time.perf_counter()
    hunt = Hunt(a, b, mapping, Calls(a, source, stream, axis, SAMPLES, MOST_CALLS), None)
    try:
        found = hunt.run([])
    except DataError:  # other inputs, or not one tensor in common: the comparison itself says so
        return Cost()
    twin = rounded_twin(hunt.a.net, hunt.parts_a, hunt.all_roundings, hunt.all_fits)
    limits = {}
    for name, (noise, count) in _noise(a, twin, source, stream, axis).items():
        margin = MARGIN_DB + 10 * math.log10(math.e) * LUCK / math.sqrt(max(count, 1))
        if math.isfinite(noise):
            limits[name] = (noise - margin, f"default for INT8 against float: {margin:.1f} dB below what rounding costs A in the same places on these data, {noise:.1f} dB")
    wrong = [row.row for row in found if row.row.verdict == FAULT]
    reasons = [
        f"layer `{row.node}` ({row.op}) introduces an error of {row.introduced_db:.1f} dB SQNR by itself, rounding there costs {row.expected_db:.1f} dB{f': {row.note}' if row.note else ''}"
        for row in wrong[:MOST_REASONS]
    ]  # fmt: skip
    if len(wrong) > MOST_REASONS:
        reasons.append(f"{len(wrong) - MOST_REASONS} more layers introduce more than rounding costs")
    return Cost(limits, hunt.result(found, time.perf_counter() - started), tuple(reasons))


def _without_rounding(a: OnnxSide) -> onnx.ModelProto:
    """A whose activations skip Q and DQ; its weights stay as they are."""
    import onnx

    net = Net(onnx.load(str(a.path)))
    model = onnx.ModelProto()
    model.CopyFrom(net.model)
    for node, source in zip(model.graph.node, net.nodes, strict=True):
        back = net.nodes[net.producer[source.input[0]]] if source.op_type == "DequantizeLinear" and source.input[0] in net.producer else None
        if back is not None and back.op_type in QUANTIZE and back.input[0] not in net.constants:
            node.CopyFrom(onnx.helper.make_node("Identity", [back.input[0]], source.output, name=source.name))
    return model


def _noise(a: Side, model: onnx.ModelProto, source: Samples, stream: bool, axis: int) -> dict[str, tuple[float, int]]:
    """(SQNR, number of values) of `model`'s outputs against A's, over the first samples."""
    import onnx

    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, str(path))
        with open_side(path, Options(1, states={s.input: s.output for s in a.states})) as other:
            return _sqnr(a, other, source, stream, axis)


def _sqnr(a: Side, b: Side, source: Samples, stream: bool, axis: int) -> dict[str, tuple[float, int]]:
    from edgekit.parity.bisect import Calls

    sums = {name: [0.0, 0.0, 0] for name in a.outputs}
    states: list[dict[str, np.ndarray]] = [{}, {}]
    for _, is_first, feeds in Calls(a, source, stream, axis, SAMPLES, MOST_CALLS):
        given = []
        for k, side in enumerate((a, b)):
            start = {s.input: np.full(s.shape, s.init, side.inputs[s.input].dtype) for s in side.states}
            out = side.run({**start, **({} if is_first or not stream else states[k]), **feeds})
            states[k] = {s.input: np.array(out[s.output]) for s in side.states}
            given.append(out)
        for name, pair in sums.items():
            want, got = (np.asarray(out[name], np.float64) for out in given)
            pair[0] += float((want**2).sum())
            pair[1] += float(((want - got) ** 2).sum())
            pair[2] += want.size
    return {name: (decibel(signal, noise), count) for name, (signal, noise, count) in sums.items()}


"""What INT8 may cost, measured on the very models and data that are compared, in place of a limit for all.

    float against INT8   A is rounded wherever B rounds, with scales that fit its own values: an honest INT8 of this
                         model. B may be a few dB worse, since its ranges come from other data
    INT8 against INT8    A without its rounding of activations shows how much noise that is; kernels that round a sum
                         the other way make less of it

Both take graphs in ONNX; for others the fixed defaults of measure.py hold.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit.compare import decibel
from edgekit.errors import DataError
from edgekit.parity.graphs import OnnxSide
from edgekit.parity.measure import SAME_INT8_SQNR_DB
from edgekit.parity.runners import Options, Side, open_side
from edgekit.parity.surgery import QUANTIZE, Net, rounded_twin

if TYPE_CHECKING:
    import onnx

    from edgekit.parity.samples import Samples

MARGIN_DB = 6.0
"""As for one layer (bisect.MARGIN)."""
SAMPLES = 4
MOST_CALLS = 64


def expected(a: Side, b: Side, mapping: Mapping[str, str], source: Samples, stream: bool = False, axis: int = 1) -> dict[str, tuple[float, str]]:
    """{A's output: (least SQNR in dB, why)}; empty where nothing can be measured, and the fixed defaults hold.

    Args:
        mapping: {B's name: A's}.
    """
    if not isinstance(a, OnnxSide) or [a.numbers, b.numbers].count("int8") == 0:
        return {}
    if a.numbers == "int8":
        if b.numbers != "int8":
            return {}
        costs = _noise(a, _without_rounding(a), source, stream, axis)
        why = f"default for INT8 against INT8: what rounding activations costs A on these data, at most {SAME_INT8_SQNR_DB:g} dB"
        return {name: (min(cost, SAME_INT8_SQNR_DB), why) for name, cost in costs.items() if not math.isnan(cost)}
    if not isinstance(b, OnnxSide):
        return {}
    try:
        twin = _rounded(a, b, mapping, source, stream, axis)
    except DataError:  # other inputs, or not one tensor in common: the comparison itself says so
        return {}
    costs = _noise(a, twin, source, stream, axis)
    return {name: (cost - MARGIN_DB, f"default for INT8 against float: {MARGIN_DB:g} dB below what rounding costs A in the same places on these data, {cost:.1f} dB") for name, cost in costs.items() if math.isfinite(cost)}


def _rounded(a: Side, b: Side, mapping: Mapping[str, str], source: Samples, stream: bool, axis: int) -> onnx.ModelProto:
    from edgekit.parity.bisect import Calls, Hunt

    hunt = Hunt(a, b, mapping, Calls(a, source, stream, axis, SAMPLES, MOST_CALLS), None)
    hunt.match()
    roundings = hunt.roundings(hunt.rows([]))
    return rounded_twin(hunt.a.net, hunt.parts_a, roundings, hunt.fits(roundings))


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


def _noise(a: Side, model: onnx.ModelProto, source: Samples, stream: bool, axis: int) -> dict[str, float]:
    """SQNR of `model`'s outputs against A's, over the first samples."""
    import onnx

    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, str(path))
        with open_side(path, Options(1, states={s.input: s.output for s in a.states})) as other:
            return _sqnr(a, other, source, stream, axis)


def _sqnr(a: Side, b: Side, source: Samples, stream: bool, axis: int) -> dict[str, float]:
    from edgekit.parity.bisect import Calls

    sums = {name: [0.0, 0.0] for name in a.outputs}
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
    return {name: decibel(*pair) for name, pair in sums.items()}


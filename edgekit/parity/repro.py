"""The smallest graph that shows an error, as a folder to attach to a bug report.

    model.onnx                  the part of B that introduces it
    test_data_set_0/input_0.pb  its inputs, in the graph's order, as the reference has them
    test_data_set_0/output_0.pb what the reference makes of them
    README.txt                  which layer, how far it is off, and how to run it

This is the layout of ONNX's own tests, which `onnx_test_runner` and most vendors' tools read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.artifact import tool_version
from edgekit.errors import EdgekitError, UsageError
from edgekit.parity.result import LayerRow
from edgekit.parity.surgery import Net, Part, extract

DATA = "test_data_set_0"
README = """\
{node} ({op}): its output `{tensor}` is off by {max_abs:.6g} (max_abs), {sqnr:.1f} dB.

model.onnx is this part of the graph alone: {count} nodes, {ops}.
{data}/ holds its inputs and the output of the reference, in the layout of ONNX's own tests.
Seen with onnxruntime {version}, Q and DQ computed as written.

    import numpy, onnx, onnxruntime
    load = lambda path: onnx.numpy_helper.to_array(onnx.load_tensor(path))
    session = onnxruntime.InferenceSession("model.onnx")
    feeds = {{value.name: load(f"{data}/input_{{i}}.pb") for i, value in enumerate(session.get_inputs())}}
    print(abs(session.run(None, feeds)[0] - load("{data}/output_0.pb")).max())
"""


def save(folder: Path, net: Net, tensor: str, part: Part, arrays: Mapping[str, np.ndarray], row: LayerRow) -> dict[str, Any]:
    """Write the part that computes `tensor`, and check that what was written shows the error.

    Args:
        arrays: {tensor: array} of the part's taps, and of `tensor` as the reference has it.

    Returns:
        {"onnx", "inputs", "nodes", "max_abs"}, as `result.Bisect.minimal` wants it.

    Raises:
        UsageError: the folder holds something already.
        EdgekitError: what was written does not show the error.
    """
    import onnx

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: not empty", "name a new folder for `--save-repro`")
    model = extract(net, tensor, part, arrays)
    (folder / DATA).mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(folder / "model.onnx"))
    for kind, names in (("input", part.taps), ("output", (tensor,))):
        for i, name in enumerate(names):
            onnx.save_tensor(onnx.numpy_helper.from_array(arrays[name], name), str(folder / DATA / f"{kind}_{i}.pb"))
    ops = ", ".join(node.op_type for node in model.graph.node[:12])
    (folder / "README.txt").write_text(
        README.format(node=row.node, op=row.op, tensor=tensor, max_abs=row.max_abs, sqnr=row.introduced_db, count=len(model.graph.node), ops=ops, data=DATA, version=tool_version("onnxruntime"))
    )
    off = check(folder)
    if np.isfinite(row.max_abs) and not abs(off - row.max_abs) <= 1e-6 + 0.01 * row.max_abs:
        raise EdgekitError(f"{folder}: the part by itself is off by {off:.4g}, in the whole graph by {row.max_abs:.4g}", "this is a bug of edgekit; please report it")
    return {"onnx": str(folder / "model.onnx"), "inputs": str(folder / DATA), "nodes": [node.name for node in model.graph.node], "max_abs": off}


def check(folder: Path) -> float:
    """Load a saved part again and run it: how far its output is off, NaN if it is not finite where it should be."""
    import onnx

    from edgekit.backends.onnxruntime import Session

    model = onnx.load(str(folder / "model.onnx"))
    onnx.checker.check_model(model)
    session = Session(folder / "model.onnx")

    def load(kind: str, i: int) -> np.ndarray:
        return onnx.numpy_helper.to_array(onnx.load_tensor(str(folder / DATA / f"{kind}_{i}.pb")))

    got = session({value.name: load("input", i) for i, value in enumerate(model.graph.input)})
    want = load("output", 0)
    with np.errstate(invalid="ignore"):
        off = np.where(want == got[session.outputs[0]], 0.0, np.abs(want.astype(np.float64) - got[session.outputs[0]]))
    return float(off.max(initial=0))

"""export: what the device needs, and which layers it is declared to run in INT8.

Every node of the final ONNX is checked against the target's table first: a device that refuses the
graph after an hour of building is a bad place to learn it.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from edgekit import backends
from edgekit.artifact import Source
from edgekit.errors import TargetError
from edgekit.formats import read_json, write_json
from edgekit.stages import Job

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgekit.recipe import Recipe
    from edgekit.target import Target

NEEDS = ("prune", "quantize")
SEMANTICS = 1
TOOLS = ("onnx", "onnx_ir", "numpy")


def plan(recipe: Recipe, target: Target) -> tuple[dict[str, Any], dict[str, Source]]:
    found = backends.get(target.backend).problems(target.spec())
    if found:
        raise TargetError(f"{target.path}: {'; '.join(found)}")
    return {"target": target.spec()}, {}


def run(job: Job) -> None:
    from edgekit import graph
    from edgekit.flow import runs_per_window
    from edgekit.quant import Range

    target, quantized, prune = job.spec["target"], job.inputs["quantize"], job.inputs["prune"]
    flow = read_json(prune / "flow.json")
    layers, ranges, skipped = (read_json(quantized / f"{name}.json") for name in ("layers", "ranges", "skipped"))
    runs = runs_per_window(flow)

    kits, coverage, names = [], [], {}
    for name in sorted(layers):
        path = quantized / "engines" / name / "float.onnx"
        model = graph.load(path)
        _check(target, name, model)
        mine = layers[name]
        kits.append(
            backends.EngineKit(
                name=name,
                onnx=path,
                int8=(*mine["int8"], *mine["fused"]),
                fp32=tuple(mine["fp32"]),
                ranges={tensor: Range(ranges[name][tensor]["low"], ranges[name][tensor]["high"]) for tensor in mine["tensors"]},
            )
        )
        coverage += _coverage(name, model, mine, skipped[name], runs[name])
        names[name] = _names(model, ranges[name])

    backends.get(target["backend"]).lower(backends.Kit(tuple(kits), target), job.out)
    for file in ("flow.json", "preprocess.json", "io.json"):
        shutil.copyfile(prune / file, job.out / file)
    total = sum(row["macs"] * row["runs_per_window"] for row in coverage)
    in_int8 = sum(row["macs"] * row["runs_per_window"] for row in coverage if row["precision"] == "int8")
    write_json(
        job.out / "coverage.json",
        {"grade": "declared", "int8_macs": in_int8 / total if total else 0.0, "macs": total, "layers": coverage},
    )
    write_json(job.out / "names.json", names)


def _check(target: dict[str, Any], engine: str, model: ir.Model) -> None:
    """Refuse a final graph that the target's table does not take, node by node.

    Raises:
        TargetError: engine, node and the reason; up to eight of them.
    """
    found = []
    opset = model.graph.opset_imports.get("", 0)
    if opset > target["opset_max"]:
        found.append(f"opset {opset} is used, at most {target['opset_max']} is taken")
    foreign = sorted(set(model.graph.opset_imports) - {""})
    if foreign:
        found.append(f"operators of {', '.join(foreign)} are used, only ONNX's own are taken")
    for node in model.graph:
        fault = _fault(target, node, opset)
        if fault is not None:
            found.append(f"`{node.name}` ({node.op_type}) {fault}")
    if found:
        shown = "; ".join(found[:8]) + (f"; and {len(found) - 8} more" if len(found) > 8 else "")
        runtime = target["runtime"]
        raise TargetError(
            f"targets/{target['name']}.yaml: {runtime['name']} {runtime['version']} cannot run engine `{engine}`: {shown}",
            "what it takes stands under `ops`",
        )


def _fault(target: dict[str, Any], node: ir.Node, opset: int) -> str | None:
    from edgekit import graph

    rule = target["ops"].get(node.op_type)
    if rule is None:
        return "is not in the table"
    if rule.get("rewrite") and not rule.get("ranks"):
        return f"should have been rewritten by `{rule['rewrite']['by']}`"
    value = graph.data_input(node)
    rank, dtype = len(graph.shape_of(value)), graph.dtype_name(value)
    if rule.get("dtypes") and dtype not in rule["dtypes"]:
        return f"has dtype {dtype}, taken: {', '.join(rule['dtypes'])}"
    if rule.get("ranks") and rank not in rule["ranks"]:
        return f"has rank {rank}, taken: {', '.join(str(r) for r in rule['ranks'])}"
    if rule.get("max_opset") is not None and opset > rule["max_opset"]:
        return f"is of opset {opset}, taken up to {rule['max_opset']}"
    for i, source in enumerate(node.inputs):
        # Shapes, axes and indices that are computed would be INT64 arithmetic on the device.
        if source is not None and graph.constant(source) is None and graph.dtype_name(source) == "int64":
            return f"computes its input {i} (`{source.name}`, int64); it must be a constant"
    return None


def _coverage(engine: str, model: ir.Model, layers: dict[str, Any], skipped: dict[str, str], runs: int) -> list[dict[str, Any]]:
    """One row for every layer with MACs: its precision on the device as declared, and why it is not INT8."""
    from edgekit import graph

    ops = {node.name: node.op_type for node in model.graph}
    rows = []
    for node, macs in graph.count_macs(model).items():
        is_int8 = node in layers["int8"]
        rows.append(
            {
                "engine": engine,
                "node": node,
                "op": ops[node],
                "macs": macs,
                "runs_per_window": runs,
                "precision": "int8" if is_int8 else "fp32" if node in layers["fp32"] else "fp16",
                "reason": None if is_int8 else skipped.get(node, "not an INT8 layer"),
            }
        )
    return rows


def _names(model: ir.Model, ranges: dict[str, Any]) -> dict[str, Any]:
    """Where each layer and each new tensor comes from: {"layers": {node: module path}, "tensors": {tensor: source}}."""
    from edgekit.graph import MAC_OPS

    layers = {node.name: node.name.rsplit("/", 1)[0].replace("/", ".") for node in model.graph if node.op_type in MAC_OPS}
    return {"layers": layers, "tensors": {tensor: entry["from"] for tensor, entry in ranges.items()}}

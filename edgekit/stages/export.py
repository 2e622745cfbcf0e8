"""export: what the device needs, and which layers run in INT8.

Every node of the final ONNX is checked against the target's table first: a device that refuses the
graph after an hour of building is a bad place to learn it.

Where the backend runs here, its float form is compiled too (`float/`, not delivered): verify tells
by it what the lowering broke from what the integers cost. Coverage is then read out of the built
engines (grade `measured`), elsewhere it is what the target's table promises (`declared`). Where a
compiler of the same family runs here, it compiles the graphs too, and what it made of each layer
stands beside that (`gate`), never in its place: it is not the device's compiler.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from edgekit import backends
from edgekit.artifact import Source
from edgekit.errors import TargetError
from edgekit.formats import read_json, write_json
from edgekit.progress import note
from edgekit.stages import Job
from edgekit.target import Target, attribute_faults, problems

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgekit.recipe import Recipe

NEEDS = ("prune", "quantize")
SEMANTICS = 4  # 4: TFLite stacks next to the axis before. 3: units of the device. 2: float form beside the artifact; coverage measured where it can be
TOOLS = ("onnx", "onnx_ir", "numpy")

GRAPH_FLOW = "graph_flow.json"  # of the graphs, where the artifact's own flow is another


def tools(target: Target) -> dict[str, str | None]:
    backend = backends.get(target.backend)
    return {**backend.versions(target.spec()), **(backend.optional(target.spec()) if hasattr(backend, "optional") else {})}


def plan(recipe: Recipe, target: Target) -> tuple[dict[str, Any], dict[str, Source]]:
    backend = backends.get(target.backend)
    found = backend.problems(target.spec())
    if found:
        raise TargetError(f"{target.path}: {'; '.join(found)}")
    form = {"kit": backend.KIT} if hasattr(backend, "KIT") else {}
    return {"target": target.spec(), **form}, {}


def run(job: Job) -> None:
    from edgekit import graph
    from edgekit.flow import runs_per_window
    from edgekit.quant import Range

    target, quantized, prune = job.spec["target"], job.inputs["quantize"], job.inputs["prune"]
    backend = backends.get(target["backend"])
    flow = read_json(prune / "flow.json")
    layers, ranges, skipped = (read_json(quantized / f"{name}.json") for name in ("layers", "ranges", "skipped"))
    runs = runs_per_window(flow)

    models: dict[str, ir.Model] = {}
    engines = []
    for name in sorted(layers):
        path = quantized / "engines" / name / "float.onnx"
        model = models[name] = graph.load(path)
        _check(target, name, model)
        mine = layers[name]
        named = {*mine["int8"], *mine["fused"], *mine["fp32"]}
        others = [node.name for node in model.graph if node.op_type not in (*graph.COPY_OPS, *graph.LOOP_OPS) and node.name not in named]
        engines.append(
            backends.EngineKit(
                name=name,
                float_onnx=path,
                qdq_onnx=quantized / "engines" / name / "qdq.onnx",
                int8=tuple(mine["int8"]),
                fused=tuple(mine["fused"]),
                fp32=tuple(mine["fp32"]),
                fp16=tuple(others),
                ranges={tensor: Range(ranges[name][tensor]["low"], ranges[name][tensor]["high"]) for tensor in mine["tensors"]},
            )
        )

    if backend.EXECUTES:
        note(f"compiling the float form for {target['backend']}")
        (job.out / "float").mkdir()
        backend.compile(backends.Kit(tuple(engine.as_float() for engine in engines), target, prune), job.out / "float")
    note(f"compiling for {target['backend']}")
    backend.compile(backends.Kit(tuple(engines), target, prune), job.out)

    rows, grades, names, gates, off = [], set(), {}, {}, {}
    for engine in engines:
        gated = backend.gated(engine, models[engine.name], target) if hasattr(backend, "gated") else None
        if gated is not None:
            gates[engine.name] = gated
        unit = backend.unit(engine, models[engine.name], target) if hasattr(backend, "unit") else None
        if unit is not None:
            off[engine.name] = unit
        measured = backend.coverage(job.out / "engines" / engine.name, engine, target)
        grades.add("declared" if measured is None else "measured")
        placed = backend.placement(job.out / "engines" / engine.name, engine, target) if hasattr(backend, "placement") else None
        rows += _coverage(engine, models[engine.name], target, measured, placed, skipped[engine.name], runs[engine.name], gated, unit)
        names[engine.name] = _names(models[engine.name], ranges[engine.name])
    for file in ("preprocess.json", "io.json"):
        shutil.copyfile(prune / file, job.out / file)
    write_json(job.out / "flow.json", backend.flow(flow) if hasattr(backend, "flow") else flow)
    if hasattr(backend, "flow"):
        write_json(job.out / GRAPH_FLOW, flow)
    total = sum(row["macs"] * row["runs_per_window"] for row in rows)
    in_int8 = sum(row["macs"] * row["runs_per_window"] for row in rows if row["precision"] == "int8")
    [grade] = grades  # of one backend, so all engines can be read or none
    summary = {"grade": grade, "int8_macs": in_int8 / total if total else 0.0, "macs": total, "layers": rows}
    if total and any("unit" in row for row in rows):
        units = sorted({row["unit"] for row in rows})
        summary["units"] = {unit: sum(row["macs"] * row["runs_per_window"] for row in rows if row["unit"] == unit) / total for unit in units}
    if gates:
        gated_int8 = sum(row["macs"] * row["runs_per_window"] for row in rows if row["gate"] == "int8")
        summary["gate"] = {"compiler": next(iter(gates.values()))["compiler"], "form": next(iter(gates.values()))["form"], "int8_macs": gated_int8 / total if total else 0.0}
    if off:
        summary["unit"] = _unit(off, rows)
    write_json(job.out / "coverage.json", summary)
    write_json(job.out / "names.json", names)
    write_json(job.out / "target.json", target)


def _check(spec: dict[str, Any], engine: str, model: ir.Model) -> None:
    """Refuse a final graph that the target's table does not take.

    Raises:
        TargetError: up to eight reasons.
    """
    from edgekit import graph

    # The schema is strict: lists become tuples only when they come as JSON.
    target = Target.model_validate_json(json.dumps({"description": spec["name"], **spec}))
    table = {"opset": model.graph.opset_imports.get("", 0), "ops": [{"engine": engine, **row} for row in graph.op_table(model)]}
    found = problems(target, table, rewritten=True)
    found += [f"operators of `{domain}` are used, only ONNX's own are taken" for domain in model.graph.opset_imports if domain and domain not in target.domains]
    for node in model.graph:
        read = sum(bool(value.uses()) or value.is_graph_output() for value in node.outputs)
        attributes = {a.name: a.value for a in node.attributes.values()}
        found += [f"`{node.name}` ({node.op_type}) {fault}" for fault in attribute_faults(target, node.op_type, attributes, read)]
        # Shapes, axes and indices that are computed would be INT64 arithmetic on the device.
        for i, value in enumerate(node.inputs):
            if value is not None and graph.constant(value) is None and graph.dtype_name(value) == "int64":
                found.append(f"`{node.name}` ({node.op_type}) computes its input {i}, `{value.name}` (int64); it must be a constant")
    if found:
        shown = "; ".join(found[:8]) + (f"; and {len(found) - 8} more" if len(found) > 8 else "")
        raise TargetError(
            f"target `{target.name}`: {target.runtime.name} {target.runtime.version} cannot run engine `{engine}`: {shown}",
            f"what it takes stands under `ops` in targets/{target.name}.yaml",
        )


def _coverage(
    engine: backends.EngineKit,
    model: ir.Model,
    target: dict[str, Any],
    measured: dict[str, str] | None,
    placed: dict[str, str] | None,
    skipped: dict[str, str],
    runs: int,
    gated: dict[str, Any] | None,
    unit: dict[str, Any] | None,
) -> list[dict[str, Any]]:
    """One row for every layer with MACs: its precision, as read out of the engine or as declared, and why it is not INT8; beside it what a compiler here made of it."""
    from edgekit import graph

    ops = {node.name: node.op_type for node in model.graph}
    rows = []
    for node, macs in graph.count_macs(model).items():
        declared = "int8" if node in engine.int8 else "fp32" if node in engine.fp32 else target["floats"]
        precision = declared if measured is None else measured.get(node, "not found")
        reason = None if precision == "int8" else skipped.get(node, "not an INT8 layer")
        if precision != "int8" and declared == "int8":
            reason = f"declared INT8, the engine runs it in {precision}" if precision != "not found" else "declared INT8, not found in the engine"
        where = {} if placed is None else {"unit": placed.get(node, "unknown")}
        if gated is not None:
            where["gate"] = gated["precisions"][node]
        if unit is not None:
            where["off_unit"] = unit["placed"][node]
        rows.append({**where, "engine": engine.name, "node": node, "op": ops[node], "macs": macs, "runs_per_window": runs, "declared": declared, "precision": precision, "reason": reason})
    return rows


def _unit(off: dict[str, dict[str, Any]], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the device's accelerator would take, over all engines: {name, macs: share, engines: {engine: {macs: share, layers, pieces, falls_back}}}."""

    def share(rows: list[dict[str, Any]]) -> float:
        macs = sum(row["macs"] * row["runs_per_window"] for row in rows)
        return sum(row["macs"] * row["runs_per_window"] for row in rows if row["off_unit"] is None) / macs if macs else 0.0

    engines = {name: {"macs": share([row for row in rows if row["engine"] == name]), **{key: unit[key] for key in ("layers", "pieces", "falls_back")}} for name, unit in off.items()}
    return {"name": next(iter(off.values()))["name"], "macs": share(rows), "engines": engines}


def _names(model: ir.Model, ranges: dict[str, Any]) -> dict[str, Any]:
    """Where each layer and each new tensor comes from: {"layers": {node: module path}, "tensors": {tensor: source}}."""
    from edgekit.graph import MAC_OPS

    layers = {node.name: node.name.rsplit("/", 1)[0].replace("/", ".") for node in model.graph if node.op_type in MAC_OPS}
    return {"layers": layers, "tensors": {tensor: entry["from"] for tensor, entry in ranges.items()}}

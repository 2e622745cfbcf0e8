"""The parity matrix: one float model, every target that was built from it, and how they agree.

Each build verified its artifact on the same clips, and kept every output. So the matrix is arithmetic
on what is there; only latency is measured now, where an artifact runs on this machine, all of them
interleaved. Where it cannot run, the matrix says *not measured*.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import backends
from edgekit.build import Result
from edgekit.compare import difference
from edgekit.flow import run_flow
from edgekit.formats import engines_of, outputs_in, read_json, write_json
from edgekit.page import digits_of, document, esc, table
from edgekit.timing import interleaved

FLOAT = "float"
RUNS = 5
NOT_MEASURED = "not measured"

Row = dict[str, Any]


@dataclass(frozen=True)
class _Built:
    """What the matrix reads of one build."""

    name: str
    report: Row
    outputs: Mapping[str, np.ndarray]
    stages: Mapping[str, Path]


def make(results: Sequence[Result], latency: bool = True) -> list[Row]:
    """One matrix per pruned float model and set of clips that two or more results share.

    Returns:
        [{reference, n, lead, primary, task, rows: [...], agreement: {output: {names, sqnr_db: [[...]], max_abs: [[...]]}}}];
        of speech also `input`, the scores of the noisy input, and `window_s`, what one run takes in.
        `names` starts with `float`, the pruned float model; null on the diagonal and for equal tensors.
        A row is {name, target, runtime, measured_on, verdict, metrics, int8_cost, coverage, engine_bytes,
        float_bytes, latency_ms, latency_note}.
    """
    from safetensors.numpy import load_file

    groups: dict[tuple, list[_Built]] = {}
    for result in (result for result in results if "verify" in result.stages):
        built = _Built(result.name, result.report, load_file(result.stages["verify"] / "outputs.safetensors"), result.stages)
        key = (str(result.stages["reference"]), tuple(sorted(built.outputs)))
        groups.setdefault(key, []).append(built)
    return [_matrix(group, load_file(group[0].stages["reference"] / "predictions.safetensors"), latency) for group in groups.values() if len(group) > 1]


def _matrix(group: list[_Built], predictions: Mapping[str, np.ndarray], latency: bool) -> Row:
    first = group[0].report
    times = _latencies(group) if latency else {}
    rows = []
    for built in group:
        report, sizes = built.report, built.report["sizes"]["artifact"]
        rows.append(
            {
                "name": built.name,
                "target": report["target"]["name"],
                "runtime": report["target"]["runtime"],
                "measured_on": report["measured_on"],
                "verdict": report["verdict"],
                "metrics": report["metrics"]["artifact"],
                "int8_cost": report["drops"]["int8_cost"],
                "coverage": {key: report["coverage"][key] for key in ("int8_macs", "grade")},
                "engine_bytes": sizes["engine_bytes"],
                "float_bytes": sizes["float_bytes"],
                "latency_ms": times.get(built.name),
                "latency_note": "on this machine, median" if built.name in times else NOT_MEASURED,
            }
        )
    agreement = {}
    for output in sorted(group[0].outputs):
        tensors = {FLOAT: predictions[f"pruned/{output}"], **{built.name: built.outputs[output] for built in group}}
        pairs = [[None if a == b else difference(output, tensors[a], tensors[b]) for b in tensors] for a in tensors]
        agreement[output] = {
            "names": list(tensors),
            "sqnr_db": [[None if d is None or not np.isfinite(d.sqnr_db) else d.sqnr_db for d in line] for line in pairs],
            "max_abs": [[None if d is None else d.max_abs for d in line] for line in pairs],
            "mean_abs": [[None if d is None else d.mean_abs for d in line] for line in pairs],
        }
    return {
        "schema": 1,
        "n": first["n"],
        "data": first["data"],
        "lead": first["lead"],
        "primary": first["primary"],
        "task": first.get("task", "value"),
        **({"input": first["input"]["metrics"]} if first.get("input") else {}),
        "window_s": read_json(group[0].stages["export"] / "flow.json").get("window_s"),
        "metrics": {row: first["metrics"][row] for row in ("float", "pruned")},
        "metric_info": first["metric_info"],
        "rows": rows,
        "agreement": agreement,
    }


def _latencies(group: list[_Built]) -> dict[str, float]:
    """{name: median ms of one whole window}, of those whose engines run here, run in turn so that noise hits all alike."""
    from safetensors.numpy import load_file

    calls = {}
    for built in group:
        target = read_json(built.stages["export"] / "target.json")
        backend = backends.get(target["backend"])
        if not backend.EXECUTES:
            continue
        flow = read_json(built.stages["export"] / "flow.json")
        open_engine = getattr(backend, "open_deployed", backend.open)
        sessions = {engine: open_engine(built.stages["export"] / "engines" / engine, target) for engine in engines_of(flow)}
        golden = load_file(built.stages["reference"] / "golden.safetensors")
        clip = read_json(built.stages["reference"] / "reference.json")["golden"][0]["id"]
        inputs = {name: golden[f"{clip}/input/{name}"] for name in flow["inputs"]}
        calls[built.name] = partial(run_flow, flow, sessions, inputs)
    return {name: 1e3 * statistics.median(seconds) for name, seconds in interleaved(calls, RUNS, "latency here").items()}


def write(matrices: list[Row], folder: Path) -> None:
    """report.json and report.html in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", {"schema": 1, "matrices": matrices})
    (folder / "report.html").write_text(render(matrices), encoding="utf-8")


# --------------------------------------------------------------------------- page


def render(matrices: list[Row]) -> str:
    """One self-contained page."""
    targets = ", ".join(f"{len(m['rows'])} targets from one float model" for m in matrices)
    header = f'<h1>Parity matrix<small> {targets}</small></h1><p class="note">Every artifact ran over the same held-out clips. Where it says host-simulated, ONNX Runtime computed the target’s numbers.</p>'
    sections = []
    for i, m in enumerate(matrices):
        more = f" ({i + 1})" if len(matrices) > 1 else ""
        sections.append((f"targets-{i}", f"Targets{more}", _targets_table(m)))
        outputs = sorted(m["agreement"], key=lambda output: output not in outputs_in(m["primary"]))
        sections += [(f"agreement-{i}-{k}", f"Agreement on {output}{more}", _heat(output, m["agreement"][output])) for k, output in enumerate(outputs)]
        sections.append((f"metrics-{i}", f"Every metric{more}", _metrics_table(m)))
    return document("Parity matrix", header, sections, footer="Numbers for machines are in <code>report.json</code>.")


def _targets_table(m: Row) -> str:
    lead = m["lead"]
    title = _title(m, lead)
    head = ["", title, "INT8 cost", "INT8 MACs", "Engines", "of float", "Latency here", "Verdict"]
    rows = [[esc(name), _number(m, lead, metrics[lead]), "", "", "", "", "", ""] for name, metrics in _before(m)]
    for row in m["rows"]:
        cost = row["int8_cost"][lead]
        rows.append(
            [
                f"{esc(row['name'])}<br><small>{esc(row['runtime']['name'])} {esc(row['runtime']['version'])}, {esc(row['measured_on'])}</small>",
                _number(m, lead, row["metrics"][lead]),
                f"{_number(m, lead, cost['value'], '+')}<span class=\"ci\">{_number(m, lead, cost['low'], '+')} to {_number(m, lead, cost['high'], '+')}</span>",
                f"{row['coverage']['int8_macs']:.1%}<span class=\"ci\">{esc(row['coverage']['grade'])}</span>",
                f"{row['engine_bytes'] / 1e6:.2f} MB",
                "" if not row["float_bytes"] else f"{row['engine_bytes'] / row['float_bytes']:.0%}",
                NOT_MEASURED if row["latency_ms"] is None else f"{row['latency_ms']:.1f} ms",
                f'<span class="chip {esc(row["verdict"])}">{esc(row["verdict"])}</span>',
            ]
        )
    long = f" of {m['window_s']:g} s" if m.get("window_s") else ""
    note = f'<p class="note">Latency is one whole window{long} on the machine that built, not on the device.</p>'
    return table(f"{m['n']} held-out clips", head, rows, numeric=range(1, len(head) - 1)) + note


def _metrics_table(m: Row) -> str:
    names = [m["lead"], *(name for name in m["rows"][0]["metrics"] if name != m["lead"])]
    rows = [[esc(title), *(_number(m, name, metrics[name]) for name in names)] for title, metrics in _before(m)]
    rows += [[esc(row["name"]), *(_number(m, name, row["metrics"][name]) for name in names)] for row in m["rows"]]
    head = ["", *(_title(m, name) for name in names)]
    return table(f"Output {m['primary']}, {m['n']} held-out clips", head, rows, numeric=range(1, len(head)))


def _heat(output: str, pair: Row) -> str:
    """SQNR of every pair, the row as reference; the closer the darker."""
    known = [v for line in pair["sqnr_db"] for v in line if v is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    rows = []
    for name, line, worst in zip(pair["names"], pair["sqnr_db"], pair["max_abs"], strict=True):
        cells = []
        for db, max_abs in zip(line, worst, strict=True):
            if max_abs is None:
                cells.append("")
                continue
            strength = 8 + 40 * ((db - low) / (high - low) if db is not None and high > low else 1.0)
            text = "equal" if max_abs == 0 else "not finite" if db is None else f"{db:.1f} dB"
            cells.append(f'<span style="display:block;background:color-mix(in srgb, var(--pruned) {strength:.0f}%, transparent);border-radius:.3rem;padding:.1rem .4rem">{text}<span class="ci">max {max_abs:.3g}</span></span>')
        rows.append([esc(name), *cells])
    note = '<p class="note">Signal to noise of the column against the row, over all clips; more is closer. Below it the largest difference.</p>'
    return table(f"SQNR between artifacts, {output}", ["", *pair["names"]], rows, numeric=range(1, len(pair["names"]) + 1)) + note


def _before(m: Row) -> list[tuple[str, Row]]:
    """What stands above the targets: (name, metrics)."""
    given = [("noisy input", m["input"])] if m.get("input") else []
    return [*given, ("float, original", m["metrics"]["float"]), ("float, pruned", m["metrics"]["pruned"])]


def _title(m: Row, metric: str) -> str:
    info = m["metric_info"].get(metric, {})
    return info.get("title", metric) + (", dB" if info.get("unit") == "dB" else "")


def _number(m: Row, metric: str, value: float | None, sign: str = "") -> str:
    if value is None:
        return ""
    digits = digits_of(metric, m["metric_info"].get(metric, {}).get("unit", ""))
    return f"{value:{sign}.{digits}f}".replace("-", "−")

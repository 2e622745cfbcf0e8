"""What people read: tables on a terminal, plain lines elsewhere. Numbers come from report.json only."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgekit.build import Result
from edgekit.formats import outputs_in
from edgekit.page import digits_of
from edgekit.plan import Plan
from edgekit.recipe import GATES
from edgekit.systems import Group

ROWS = ("float", "pruned", "artifact")
TITLES = {"float": "float", "pruned": "pruned", "artifact": "INT8"}
VERDICTS = {"pass": "green", "fail": "red", "pending-device": "yellow", "inconclusive": "yellow"}


def line(result: Result) -> str:
    """One line for logs: verdict and where the result lies."""
    gates = result.report.get("gates", [])
    missed = [gate["name"] for gate in gates if not gate["pass"]]
    verdict = result.report["verdict"] + (f" ({', '.join(missed)})" if missed else "")
    return f"{result.name}: {verdict}, {result.archive or result.bundle / 'report.html'}"


def show_result(console: Console, result: Result) -> None:
    """The closing table of a build."""
    show_report(console, result.name, result.report)
    ran = f"ran {', '.join(result.ran)}" if result.ran else "nothing to do, all reused"
    size = f" ({megabytes(result.archive.stat().st_size)})" if result.archive else ""
    console.print(f"  {result.archive or result.bundle / 'report.html'}{size}   {ran}", style="dim", highlight=False, soft_wrap=True)


def show_report(console: Console, name: str, report: dict[str, Any]) -> None:
    """Size, MACs, accuracy from float over pruned to INT8 with interval, gates."""
    verdict = report["verdict"]
    console.print(f"{name}: {verdict}", style=f"bold {VERDICTS.get(verdict, '')}", markup=False, highlight=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("", min_width=12)
    given = report.get("input")  # of speech: what the noisy input itself is worth
    before = () if given is None else ("",)
    for title in (*(["noisy input"] if given else []), *(TITLES[row] for row in ROWS), "INT8 - float, 95 %", *(["INT8 - input, 95 %"] if given else [])):
        table.add_column(title, justify="right")
    sizes = report.get("sizes", {})
    for key, label, shown in (("parameters", "parameters", millions), ("macs", "MACs, window", millions), ("bytes", "weights", megabytes)):
        values = [sizes.get(row, {}).get(key) for row in ROWS]
        if any(value is not None for value in values):
            table.add_row(label, *before, *("" if value is None else shown(value) for value in values), "")
    for metric in sorted(report["metrics"].get("float", {}), key=_gate_order):
        values = [report["metrics"].get(row, {}).get(metric) for row in ROWS]
        change = report.get("drops", {}).get("total", {}).get(metric)
        unit, digits = _written(report, metric)
        noisy, gain = ([], []) if given is None else ([number(given["metrics"].get(metric), digits)], [interval(given["gain"]["artifact"].get(metric), digits=digits)])
        table.add_row(f"{metric}, {unit}" if unit else metric, *noisy, *(number(value, digits) for value in values), interval(change, digits=digits), *gain)
    console.print(table)
    coverage = report.get("coverage", {})
    if coverage.get("int8_macs") is not None:
        clips = f", {report['n']} clips" if "n" in report else ""
        measured = report["measured_on"]
        where = measured if measured == "host-simulated" else f"measured on {measured}"
        gate = f"; {coverage['gate']['int8_macs']:.1%} when compiled here" if coverage.get("gate") else ""
        console.print(f"  INT8 on {coverage['int8_macs']:.1%} of MACs ({coverage['grade']}{gate}), {where}{clips}", highlight=False)
    show_gates(console, report.get("gates", []), report)


def show_gates(console: Console, gates: list[dict[str, Any]], report: dict[str, Any] | None = None) -> None:
    for gate in gates:
        unit, digits = _written(report or {}, gate["name"])
        undecided, waits = gate.get("verdict") == "inconclusive", gate.get("verdict") == "pending-device"
        mark, style = ("pass", "green") if gate["pass"] else ("open", "yellow") if undecided or waits else ("FAIL", "red")
        is_change = gate.get("kind", gate["name"]).endswith(("increase", "decrease"))
        between = interval(gate, "+" if is_change else "", digits) if gate.get("low") is not None else number(gate.get("value"), digits)
        between += f" {unit}" if unit else ""
        name = f"{gate['name']} {gate['kind']}" if "kind" in gate else gate["name"]
        why = "; the interval reaches past the limit: more clips would decide" if undecided else "; to be measured on the device" if waits else ""
        console.print(f"  [{style}]{mark}[/]  {escape(name)}  {between}, limit {limit(gate['limit'])}{why}", highlight=False)


def show_plan(console: Console, plan: Plan) -> None:
    console.print(f"{plan.recipe.name} for {plan.target.name}", markup=False, highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    for step, reason in zip(plan.steps, plan.reasons, strict=True):
        table.add_row(step.stage, "[green]reuse[/]" if step.entry else "[yellow]run[/]", "" if step.entry else escape(reason))
    console.print(table)
    if plan.problems is None:
        console.print("  target: not checked yet, it is right after load", style="dim")
    for tool in plan.missing:
        console.print(f"  [yellow]missing:[/] {escape(tool)}", highlight=False)
    for problem in plan.problems or ():
        console.print(f"  [red]target:[/] {escape(problem)}", highlight=False)
    if plan.unit is not None:
        console.print(f"  the {plan.unit['name']} would take {plan.unit['macs']:.1%} of the MACs; the kit builds for the GPU", style="dim", markup=False, highlight=False)
        for engine, row in plan.unit["engines"].items():
            why = "; ".join(f"{reason} ({n})" for reason, n in list(row["falls_back"].items())[:3])
            console.print(f"    {engine}: {row['macs']:.1%}, {row['pieces']} pieces{f', falls back: {why}' if why else ''}", style="dim", markup=False, highlight=False)


def show_matrices(console: Console, matrices: list[dict[str, Any]]) -> None:
    """Targets against metrics, and how every two agree on the primary output."""
    for matrix in matrices:
        lead = matrix["lead"]
        unit, digits = _written(matrix, lead)
        names = [row["name"] for row in matrix["rows"]]
        words = [name.split("_") for name in names]
        shared = next((i for i, same in enumerate(zip(*words, strict=False)) if len(set(same)) > 1), 0)
        common = "".join(f"{word}_" for word in words[0][:shared])
        table = Table(box=None, pad_edge=False, title=f"{matrix['n']} held-out clips", title_justify="left", title_style="dim")
        table.add_column("")
        for column in (f"{lead}, {unit}" if unit else lead, "INT8 cost, 95 %", "INT8 MACs", "engines", "of float", "ms here", "verdict"):
            table.add_column(column, justify="right")
        for name, metrics in (("noisy input", matrix.get("input")), ("float, pruned", matrix["metrics"]["pruned"])):
            if metrics is not None:
                table.add_row(name, number(metrics[lead], digits), "", "", "", "", "", "")
        for row in matrix["rows"]:
            share = "" if not row["float_bytes"] else f"{row['engine_bytes'] / row['float_bytes']:.0%}"
            latency = row["latency_note"] if row["latency_ms"] is None else f"{row['latency_ms']:.1f}"
            macs = f"{row['coverage']['int8_macs']:.1%} {row['coverage']['grade']}"
            table.add_row(escape(row["name"].removeprefix(common)), number(row["metrics"][lead], digits), interval(row["int8_cost"][lead], digits=digits), macs, megabytes(row["engine_bytes"]), share, latency, f"[{VERDICTS.get(row['verdict'], 'default')}]{row['verdict']}[/]")
        console.print(table)
        for output in outputs_in(matrix["primary"]):
            _show_agreement(console, output, matrix["agreement"][output], common)


def _show_agreement(console: Console, output: str, agreement: dict[str, Any], common: str) -> None:
    pairs = Table(box=None, pad_edge=False, title=f"agreement on {escape(output)}, SQNR in dB, the row as reference", title_justify="left", title_style="dim")
    pairs.add_column("")
    for name in agreement["names"]:
        pairs.add_column(escape(name.removeprefix(common)), justify="right", overflow="fold")
    for name, line, worst in zip(agreement["names"], agreement["sqnr_db"], agreement["max_abs"], strict=True):
        pairs.add_row(escape(name.removeprefix(common)), *("" if m is None else "equal" if m == 0 else "-" if db is None else f"{db:.1f}" for db, m in zip(line, worst, strict=True)))
    console.print(pairs)


def show_bench(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("one window")
    for column in ("precision", "threads", "median", "p10", "of the machine's best", "times as fast"):
        table.add_column(column, justify="right")
    for row in rows:
        share = "" if row["roofline_share"] is None else f"{row['roofline_share']:.0%}"
        cells = (row["precision"], str(row["threads"]), f"{row['median_us'] / 1e3:.2f} ms", f"{row['p10_us'] / 1e3:.2f} ms", share, f"{row['ratio']:.2f}x")
        table.add_row(escape(row["engine"]), *cells)
    console.print(table)


def show_systems(console: Console, groups: Iterable[Group]) -> None:
    """What was measured of many builds, task by task."""
    for group in groups:
        table = Table(box=None, pad_edge=False, title=escape(group.title), title_justify="left", title_style="bold")
        for i, column in enumerate(group.columns):
            table.add_column(column, justify="right" if i in group.numeric else "left", overflow="fold")
        for row in group.rows:
            table.add_row(*(f"[{VERDICTS[cell]}]{cell}[/]" if cell in VERDICTS else escape(cell.strip("`")) for cell in row))
        console.print(table, highlight=False)
        console.print()


def show_rows(console: Console, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column == "size" else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def show_bundle(console: Console, path: Path, manifest: dict[str, Any], report: dict[str, Any]) -> None:
    """What is in a bundle whose hashes have been checked."""
    console.print(f"{escape(str(path))}: {len(manifest['files'])} files, every sha256 matches", highlight=False, soft_wrap=True)
    target, model, versions = (manifest.get(key) or {} for key in ("target", "model", "versions"))
    runtime = target.get("runtime") or {}
    facts = {
        "target": f"{target.get('name')}, {runtime.get('name')} {runtime.get('version')}, engines {_built('measured' if manifest.get('device') else target.get('build_on'))}",
        "model": f"{model.get('model')} {model.get('config_name')}",
        "made with": ", ".join(f"{name} {version}" for name, version in sorted(versions.items())),
    }
    for key, text in facts.items():
        console.print(f"  {key}: {escape(text)}", highlight=False, soft_wrap=True)
    rows = [(name, megabytes(entry["size"]), entry["sha256"][:12]) for name, entry in sorted(manifest["files"].items())]
    show_rows(console, ("file", "size", "sha256"), rows)
    show_report(console, str(manifest.get("name", path.name)), report)


def _built(build_on: Any) -> str:
    if build_on == "measured":
        return "built and measured on a reference board"
    return "to be built on the device: sh finish.sh" if build_on == "device" else "built on the host"


def millions(count: float) -> str:
    return f"{count / 1e6:,.2f} M" if count >= 1e6 else f"{count / 1e3:,.1f} k"


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.2f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"


def number(value: Any, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def interval(change: dict[str, Any] | None, sign: str = "+", digits: int = 4) -> str:
    """`value [low, high]`; `sign` is "+" for a change, and "" for a value of its own."""
    if change is None or change.get("value") is None:
        return ""
    ends = "" if change.get("low") is None else f" [{change['low']:{sign}.{digits}f}, {change['high']:{sign}.{digits}f}]"
    return escape(f"{change['value']:{sign}.{digits}f}{ends}")


def _written(report: dict[str, Any], metric: str) -> tuple[str, int]:
    """(unit that is worth a word, digits) of a metric."""
    unit = report.get("metric_info", {}).get(metric, {}).get("unit", "")
    return ("dB", digits_of(metric, unit)) if unit == "dB" else ("", 4)  # shares too with all their digits: logs are searched


def _gate_order(metric: str) -> tuple[int, str]:
    return (GATES.index(metric) if metric in GATES else len(GATES), metric)


def limit(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)

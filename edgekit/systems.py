"""What was measured of many systems, in one place: a table for each task, of nothing but report.json files.

Reports stand together that were made on the same data set with the same lead metric; no number of one is put beside one of another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import UsageError
from edgekit.formats import read_json
from edgekit.page import digits_of

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

Row = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """The builds of one task.

    Attributes:
        title: data set, metric with its unit, and which way is better.
        columns: of the table; `numeric` are the numbers of those with figures.
        rows: text, as many as there are columns; in the order in which the reports came.
        reports: what the rows were made of, one each; none of a table by slices.
    """

    title: str
    columns: tuple[str, ...]
    numeric: frozenset[int]
    rows: tuple[tuple[str, ...], ...]
    reports: tuple[Row, ...]


def read(paths: Iterable[str | Path]) -> list[Row]:
    """The reports of bundles, given as their folders or as their report.json.

    Raises:
        UsageError: there is none, or it is of something else than a build.
        IntegrityError: it is not JSON.
    """
    found = []
    for path in map(Path, paths):
        file = path / "report.json" if path.is_dir() else path
        if not file.is_file():
            raise UsageError(f"{file}: no such report", f"build it first: edgekit build recipes/{file.parent.name}.yaml")
        report = read_json(file)
        missing = [key for key in ("name", "lead", "metrics", "drops", "coverage", "data") if not isinstance(report, dict) or key not in report]
        if missing:
            raise UsageError(f"{file}: not the report of a build, it has no `{missing[0]}`", "give build/NAME/report.json; a matrix has another form")
        found.append(report)
    return found


def grouped(reports: Sequence[Row]) -> list[Group]:
    """One group for each data set and lead metric, in the order in which they come; behind it what a model is compared with, where gates look at slices."""
    together: dict[tuple[str, str], list[Row]] = {}
    for report in reports:
        together.setdefault((report["data"]["name"], report["lead"]), []).append(report)
    found = []
    for (data, lead), members in together.items():
        found.append(_group(data, lead, members))
        compared = [report for report in members if report.get("comparisons")]
        tags = dict.fromkeys(match[1] for report in compared for gate in report["gates"] if (match := re.search(r" at (\w+)=", gate["name"])))
        found += [_slices(data, lead, tag, compared) for tag in tags]
    return found


def _group(data: str, lead: str, reports: Sequence[Row]) -> Group:
    info = reports[0]["metric_info"][lead]
    digits = digits_of(lead, info["unit"])
    pruned, noisy, chosen = (any(test(r) for r in reports) for test in (lambda r: r["is_pruned"], lambda r: r.get("input"), lambda r: r.get("agreement")))

    def metric(report: Row, row: str) -> str:
        return _number(report["metrics"][row][lead], digits)

    def drop(report: Row, what: str) -> str:
        return _interval(report["drops"][what][lead], digits)

    columns = {
        "recipe": lambda r: f"`{r['name']}`",
        "device": lambda r: f"{r['target']['name']}, {r['target']['runtime']['name']}{'' if r['measured_on'] == 'host' else ', simulated'}",
        "clips": lambda r: f"{r['n']:,}".replace(",", " "),
        **({"noisy input": lambda r: _number(r["input"]["metrics"][lead], digits)} if noisy else {}),
        "float": lambda r: metric(r, "float"),
        **({"pruned": lambda r: metric(r, "pruned") if r["is_pruned"] else ""} if pruned else {}),
        "INT8": lambda r: metric(r, "artifact"),
        "INT8 cost, 95 %": lambda r: drop(r, "int8_cost"),
        **({"in all, 95 %": lambda r: drop(r, "total")} if pruned else {}),
        **({"gain of INT8 over the input, 95 %": lambda r: _interval(r["input"]["gain"]["artifact"][lead], digits)} if noisy else {}),
        **({"agreement, %": lambda r: _interval(r["agreement"], 1, sign="")} if chosen else {}),
        "INT8 MACs": lambda r: f"{100 * r['coverage']['int8_macs']:.1f} % {r['coverage']['grade']}",
        "engines": lambda r: "built there" if r["target"].get("build_on") == "device" else f"{r['sizes']['artifact']['engine_bytes'] / 1e6:.2f} MB",
        "verdict": lambda r: r["verdict"],
    }
    texts = {"recipe", "device", "INT8 MACs", "verdict"}
    rows = tuple(tuple(make(report) for make in columns.values()) for report in reports)
    numeric = frozenset(i for i, name in enumerate(columns) if name not in texts)
    return Group(_title(data, info), tuple(columns), numeric, rows, tuple(reports))


def _slices(data: str, lead: str, tag: str, reports: Sequence[Row]) -> Group:
    """The same by a tag of the clips, such as their SNR: INT8 against what the model is compared with, on the same clips."""
    info = reports[0]["metric_info"][lead]
    digits = digits_of(lead, info["unit"])
    others = list(dict.fromkeys(other for report in reports for other in report["comparisons"]))
    outputs = list(dict.fromkeys(name for report in reports for part in report["slices"] for name in part.get("outputs", {})))
    columns = ("recipe", tag, "clips", "float", "INT8", "INT8 cost, 95 %", *(text for other in others for text in (other, f"INT8 against {other}, 95 %")), *(f"{name}, mean" for name in outputs))
    rows = []
    for report in reports:
        for part in (part for part in report["slices"] if part["tag"] == tag and part["metric"] == lead):
            against = [part["comparisons"][other][lead] for other in others]
            rows.append(
                (
                    f"`{report['name']}`",
                    str(part["value"]).replace("-", "−"),
                    str(part["n"]),
                    _number(part["float"], digits),
                    _number(part["artifact"], digits),
                    _interval(part["total"], digits),
                    *(text for row in against for text in (_number(row["value"], digits), _interval(row["over"], digits))),
                    *(_number(part["outputs"][name]["mean"], 2) for name in outputs),
                )
            )
    return Group(f"{_title(data, info)}, by {tag}", columns, frozenset(range(1, len(columns))), tuple(rows), ())


def _title(data: str, info: Row) -> str:
    unit = f", {info['unit']}" if info["unit"] else ""
    return f"{data}: {info['title']}{unit}, {info['direction']} is better"


def markdown(groups: Iterable[Group], level: int = 3) -> str:
    """Every group as a heading and a table."""
    parts = []
    for group in groups:
        rule = "|".join("---:" if i in group.numeric else "---" for i in range(len(group.columns)))
        lines = [f"{'#' * level} {group.title}", "", f"| {' | '.join(group.columns)} |", f"|{rule}|"]
        parts.append("\n".join([*lines, *(f"| {' | '.join(row)} |" for row in group.rows)]))
    return "\n\n".join(parts) + "\n"


def to_json(group: Group) -> list[Row]:
    """The same for machines: numbers as the reports have them, all digits, of the lead metric."""
    return [
        {
            "table": group.title,
            "recipe": report["name"],
            "target": report["target"]["name"],
            "measured_on": report["measured_on"],
            "data": report["data"]["name"],
            "clips": report["n"],
            "metric": report["lead"],
            "values": {row: values[report["lead"]] for row, values in report["metrics"].items()},
            "drops": {what: changes[report["lead"]] for what, changes in report["drops"].items()},
            "agreement": report.get("agreement"),
            "int8_macs": report["coverage"]["int8_macs"],
            "grade": report["coverage"]["grade"],
            "engine_bytes": report["sizes"]["artifact"]["engine_bytes"],
            "verdict": report["verdict"],
        }
        for report in group.reports
    ]


def embed(groups: Iterable[Group], page: Path) -> None:
    """Put the tables into a page, between its two marks.

    Raises:
        UsageError: there is no such page, or it has no such marks, each once.
    """
    if not page.is_file():
        raise UsageError(f"{page}: no such page", f"it needs `{BEGIN}` and `{END}` on lines of their own")
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise UsageError(f"{page}: `{BEGIN}` and `{END}` must stand in it once each", "put both on lines of their own, where the tables belong")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{markdown(groups)}\n{END}{after}", encoding="utf-8")


def _number(value: float, digits: int, sign: str = "") -> str:
    return f"{value:{sign}.{digits}f}".replace("-", "−")


def _interval(change: Row, digits: int, sign: str = "+") -> str:
    return f"{_number(change['value'], digits, sign)} [{_number(change['low'], digits, sign)}, {_number(change['high'], digits, sign)}]"

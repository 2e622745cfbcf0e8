"""The result of `edgekit.bench.denoise` for people: tables for docs/performance.md and a terminal, and a figure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.bench.svg import Dots, Panel, write_panels
from edgekit.errors import EdgekitError

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
FIGURE = "![us of a frame: engines and their roofline, and frames a call](figures/dccrn_speed.svg)"
PRECISIONS = ("fp32", "bf16", "int8")
LONGER = ("chunk", "clip")  # modes of more than one frame a call

Row = Mapping[str, Any]


def tables(result: Mapping[str, Any]) -> str:
    """Markdown: what was measured and how, ratios, engines at T = 1, longer calls, cost of a call, memory."""
    parts = [_about(result["about"])]
    if result["ratios"]:
        parts += ["How many times as fast edgekit is as the best of what it is held against (median over the runs, [range], of the 10th percentiles):", _ratios(result["ratios"], "step")]
    parts += ["One frame a call, us (10th percentile) and the share of the roofline:", _steps(result["rows"])]
    live = [row for row in result["rows"] if row["mode"] == "live"]
    if live:
        about = result["about"]
        parts += [
            f"A live stream, {about['hop_us'] / 1000:g} ms in and as much out, the transform and back included, us of a frame in the quietest of "
            f"{about['windows']} windows of {about['frames_a_window']} frames (99th percentile, and it over the median), and the share of real time:",
            _live(live, about["hop_us"]),
        ]
    longer = [row for row in result["rows"] if row["mode"] in LONGER]
    if longer:
        parts += ["Several frames a call, and a clip of 1 s, us of a frame, one thread; edgekit always takes one frame a call:", _longer(result["rows"])]
        parts += [_ratios([row for row in result["ratios"]], "longer")] if any(row["mode"] in LONGER for row in result["ratios"]) else []
    if result["overhead"]:
        parts += ["A call of a graph with the same inputs and outputs that computes nothing:", _overhead(result["overhead"])]
    if result["memory"]:
        parts += ["Resident memory that an engine adds to a process, and its library before that, MB:", _memory(result["memory"])]
    if result["failed"]:
        parts += ["Not measured on this machine:", "\n".join(f"- {row['engine']}, {row['precision']}: {row['reason']}" for row in result["failed"])]
    return "\n\n".join(parts) + "\n"


def embed(result: Mapping[str, Any], page: Path) -> None:
    """Put the tables and the figure into a page, between its two marks.

    Raises:
        EdgekitError: the page has no such marks.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise EdgekitError(f"{page}: no `{BEGIN}` and `{END}`", "put both on lines of their own, where the tables belong")
    page.write_text(f"{before}{BEGIN}\n\n{tables(result)}\n{FIGURE}\n\n{END}{after}", encoding="utf-8")


def plot(result: Mapping[str, Any], path: Path) -> None:
    """us of a frame: the fastest graph of each framework with its roofline, and what larger chunks give; one thread, or the fewest measured."""
    threads = min(row["threads"] for row in result["rows"])
    rows = [row for row in result["rows"] if row["threads"] == threads]
    best: dict[str, Row] = {}
    for row in rows:
        label = f"{_family(row['engine'])} {row['precision']}"
        if row["mode"] == "step" and (label not in best or row["median_us"] < best[label]["median_us"]):
            best[label] = row
    dots = [(label, row["median_us"], row["median_us"] * row["roofline_share"] if row["roofline_share"] else None) for label, row in sorted(best.items(), key=lambda item: item[1]["median_us"])]
    panels: list[Panel | Dots] = [Dots("us of a frame, one a call; |: roofline", dots)]
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in sorted(rows, key=lambda row: row["frames"]):
        if row["mode"] in ("step", "chunk") and not row["engine"].startswith("torch"):
            who = "edgekit" if row["engine"].startswith("edgekit") else "others"
            line = lines.setdefault(f"{who} {row['precision']}", [])
            if line and line[-1][0] == row["frames"]:
                line[-1] = (row["frames"], min(line[-1][1], row["median_us"]))
            else:
                line.append((row["frames"], row["median_us"]))
    if any(row["mode"] == "chunk" for row in rows):
        panels.append(Panel("us of a frame, the best of its kind", "frames a call", dict(sorted(lines.items()))))
    write_panels(panels, path)


def _family(engine: str) -> str:
    """`ONNX Runtime` of `ONNX Runtime, folded`; graphs as exported stand by themselves."""
    name, _, graph = engine.partition(", ")
    return f"{name} {graph}" if graph == "as exported" and not name.startswith("torch") else name


def _about(about: Row) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    return (
        f"{about.get('model', 'a DCCRN')}, {about['macs_per_frame'] / 1e6:.2f} M multiply-accumulates a frame; {about['cpu']}, {about['cores']} cores; {versions}; "
        f"{about['date']}, {about['runs']} runs of {about['rounds']} rounds of {about['frames_a_turn']} frames, load average before {about['load_before']}."
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in rows)])


def _times(row: Row) -> str:
    return f"{row['ratio']:.2f} [{row['low']:.2f} to {row['high']:.2f}] ({row['p10']:.2f})"


def _ratios(ratios: Sequence[Row], which: str) -> str:
    rows = [row for row in ratios if (row["mode"] == "step") == (which == "step")]
    columns = list(dict.fromkeys((row["mode"], row["frames"], row["threads"]) for row in rows))
    heads = [f"{threads} thread{'s' * (threads > 1)}" if mode == "step" else "1 s clip" if mode == "clip" else f"{frames} frames" for mode, frames, threads in columns]
    cells: dict[tuple[str, str], dict[tuple[Any, ...], str]] = {}
    for row in rows:
        cells.setdefault((row["precision"], row["what"]), {})[row["mode"], row["frames"], row["threads"]] = _times(row)
    return _table(("edgekit", "against", *heads), [(precision, what, *(found.get(column, "") for column in columns)) for (precision, what), found in cells.items()])


def _by_engine(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """{(precision, engine): its rows}, by precision and then as fast as they are."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["precision"], row["engine"]), []).append(row)
    return dict(sorted(found.items(), key=lambda item: (PRECISIONS.index(item[0][0]), min(row["median_us"] for row in item[1]))))


def _steps(rows: Sequence[Row]) -> str:
    counts = sorted({row["threads"] for row in rows if row["mode"] == "step"})
    out = []
    for (precision, engine), mine in _by_engine(row for row in rows if row["mode"] == "step").items():
        cells = []
        for count in counts:
            row = next((row for row in mine if row["threads"] == count), None)
            cells += ["", ""] if row is None else [f"{row['median_us']:.0f} ({row['p10_us']:.0f})", "" if row["roofline_share"] is None else f"{row['roofline_share']:.0%}"]
        out.append((engine, precision, *cells, _noise(mine)))
    heads = [head for count in counts for head in (f"{count} thread{'s' * (count > 1)}", "roofline")]
    return _table(("engine", "precision", *heads, "SNR, dB"), out)


def _live(rows: Sequence[Row], hop_us: float) -> str:
    counts = sorted({row["threads"] for row in rows})
    out = []
    for (precision, engine), mine in _by_engine(rows).items():
        at = {row["threads"]: row for row in mine}
        cells = []
        for count in counts:
            median, p99 = (at[count][name] for name in ("median_us", "p99_us"))
            cells += [f"{median:.0f} ({p99:.0f}, {p99 / median:.2f}×)", f"{median / hop_us:.4f}"]
        out.append((engine, precision, *cells))
    heads = [head for count in counts for head in (f"{count} thread{'s' * (count > 1)}", "of real time")]
    return _table(("engine", "precision", *heads), out)


def _longer(rows: Sequence[Row]) -> str:
    threads = min(row["threads"] for row in rows)
    mine = [row for row in rows if row["threads"] == threads and row["mode"] in ("step", *LONGER)]
    sizes = sorted({(row["mode"] == "clip", row["frames"]) for row in mine})
    engines = {(row["precision"], row["engine"]) for row in mine if row["mode"] != "step"}
    out = []
    for (precision, engine), found in _by_engine(mine).items():
        if (precision, engine) not in engines:
            continue
        by_size = {(row["mode"] == "clip", row["frames"]): row for row in found}
        out.append((engine, precision, *(f"{by_size[size]['median_us']:.0f}" if size in by_size else "" for size in sizes), _noise(found)))
    return _table(("engine", "precision", *("1 s clip" if is_clip else str(frames) for is_clip, frames in sizes), "SNR, dB"), out)


def _noise(rows: Iterable[Row]) -> str:
    """The lowest signal-to-noise ratio of an engine; none was taken of whole waves."""
    found = [row["sqnr_db"] for row in rows if row["sqnr_db"] is not None]
    return f"{min(found):.1f}" if found else ""


def _overhead(rows: Sequence[Row]) -> str:
    counts = sorted({row["threads"] for row in rows})
    names = list(dict.fromkeys(row["engine"] for row in rows))
    at = {(row["engine"], row["threads"]): row for row in rows}
    cells = [(name.partition(",")[0], *(f"{at[name, count]['median_us']:.0f} ({at[name, count]['p10_us']:.0f})" for count in counts)) for name in names]
    return _table(("framework", *(f"{count} thread{'s' * (count > 1)}, us" for count in counts)), cells)


def _memory(rows: Sequence[Row]) -> str:
    """Of a framework's graphs of one precision the smallest."""
    best: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        best.setdefault((row["engine"].partition(",")[0], row["precision"]), []).append(row)
    cells = [(name, precision, f"{min(row['resident_mb'] for row in found):.1f}", f"{statistics.median(row['library_mb'] for row in found):.1f}") for (name, precision), found in best.items()]
    return _table(("engine", "precision", "engine, MB", "library, MB"), sorted(cells, key=lambda row: (row[0] != "edgekit", row[0])))

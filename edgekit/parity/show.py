"""A comparison for people and for CI: the terminal's table, and JUnit XML."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgekit.errors import ResourceError
from edgekit.metrics import METRICS
from edgekit.parity.conditions import CONDITIONS
from edgekit.parity.result import Cell, Comparison, Comparisons, OutputResult

MAX_CHANGES = 60
MOST_LAYERS = 8
WORDS = {True: "[green]within[/]", False: "[red]DIFFERS[/]"}


def show_all(console: Console, every: Comparisons) -> None:
    """One comparison as it is; several one after another. Then target × condition."""
    for found in every.comparisons:
        show(console, found)
    if len(every.comparisons) > 1 or any(cell.condition in CONDITIONS for cell in every.conditions):
        _conditions(console, every)


def _conditions(console: Console, every: Comparisons) -> None:
    """A table per output: what each side is worth under each condition and what changed against A; errors where there are no labels."""
    for output in dict.fromkeys(cell.output for cell in every.conditions):
        cells = {(cell.target, cell.condition): cell for cell in every.conditions if cell.output == output}
        rows, columns = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
        metric = next((cell.metric for cell in cells.values() if cell.metric), "")
        table = Table(box=None, pad_edge=False, title=f"{output}: {_named(metric) if metric else 'SQNR in dB'}", title_justify="left")
        table.add_column("", overflow="fold")
        for column in columns:
            table.add_column(f"{escape(column)}\nn {max(cells[row, column].samples for row in rows if (row, column) in cells)}", justify="right")
        if metric:
            table.add_row("A", *(next((f"{cells[row, column].a:.{_digits(metric)}f}" for row in rows if (row, column) in cells), "") for column in columns))
        for row in rows:
            table.add_row(escape(row), *(_cell(cells[row, column]) if (row, column) in cells else "" for column in columns))
        console.print(table)


def _cell(cell: Cell) -> str:
    d = _digits(cell.metric)
    worth = f"{cell.b:.{d}f}\n{escape(f'{cell.b - cell.a:+.{d}f} [{cell.low:+.{d}f}, {cell.high:+.{d}f}]')}" if cell.metric else f"{_decibel(cell.sqnr_db)}\nmax {_short(cell.max_abs)}"
    return worth if cell.is_within else f"[red]{worth}[/]"


def show(console: Console, found: Comparison) -> None:
    """Verdict first, then outputs, metrics, streams and what changed between two bundles."""
    footer = "PASSED" if found else "FAILED"
    console.print(f"[bold {'green' if found else 'red'}]{found.verdict}[/]: A {escape(found.a.text)} ({_side(found.a)}), B {escape(found.b.text)} ({_side(found.b)})", highlight=False, soft_wrap=True)
    for reason in found.reasons:
        console.print(f"  {escape(reason)}", highlight=False, soft_wrap=True)
    if found.outputs:
        _outputs(console, found)
    _metrics(console, found)
    _layers(console, found)
    _stream(console, found)
    _release(console, found)
    spent = sum(found.seconds.values())
    on = f" | {found.data.samples} samples of {found.data.text}" if found.data else ""
    console.print(f"{footer} | {len(found.outputs)} outputs{escape(on)}{f' | {spent:.1f} s' if spent else ''} | edgekit compare {escape(found.a.text)} {escape(found.b.text)}", highlight=False, soft_wrap=True)


def _side(info: Any) -> str:
    computed = info.facts.get("computed")
    return escape(", ".join(str(part) for part in (info.kind, info.numbers, info.facts.get("version"), computed) if part))


def _outputs(console: Console, found: Comparison) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("output", "", "max_abs", "mean_abs", "99 %", "max_rel", "SQNR dB", "PSNR dB", "cosine", "worst in"):
        table.add_column(column, justify="left" if column in ("output", "", "worst in") else "right", overflow="fold")
    for output in found.outputs:
        e, w = output.errors, output.worst
        name = output.name if output.name == output.name_b else f"{output.name} = {output.name_b}"
        where = "" if w is None else f"{w.sample} {list(w.index)}: A {w.a:.6g}, B {w.b:.6g}"
        numbers = (_short(e.max_abs), _short(e.mean_abs), _short(e.quantiles_abs["0.99"]), _short(e.max_rel), _decibel(e.sqnr_db), _decibel(e.psnr_db), f"{e.cosine:.6f}")
        table.add_row(escape(name), WORDS[output.is_within], *numbers, escape(where))
    console.print(table)
    for why in dict.fromkeys(asked(output) for output in found.outputs):
        console.print(f"  {escape(why)}", style="dim", highlight=False, soft_wrap=True)
    mixed = [f"`{o.name}` is {o.dtype_a} in A and {o.dtype_b} in B" for o in found.outputs if o.dtype_a != o.dtype_b]
    if mixed:
        console.print(f"  {escape('; '.join(mixed))}", style="dim", highlight=False, soft_wrap=True)


def _layers(console: Console, found: Comparison) -> None:
    """The layers that introduce most; all of the wrong ones."""
    if found.bisect is None:
        return
    wrong = [row for row in found.bisect.rows if row.verdict == "fault"]
    table = Table(box=None, pad_edge=False)
    for column in ("layer", "op", "", "introduced dB", "expected dB", "inherited dB", "max_abs", "note"):
        table.add_column(column, justify="right" if column.endswith(("dB", "abs")) else "left", overflow="fold")
    for row in found.bisect.rows[: max(MOST_LAYERS, len(wrong))]:
        colour = "red" if row.verdict == "fault" else "dim"
        table.add_row(escape(row.node), row.op, f"[{colour}]{row.verdict}[/]", *(_decibel(x) for x in (row.introduced_db, row.expected_db, row.inherited_db)), _short(row.max_abs), escape(row.note))
    console.print(table)
    if found.bisect.minimal:
        console.print(f"  the first by itself: {escape(found.bisect.minimal['onnx'])}, off by {found.bisect.minimal['max_abs']:.4g}", highlight=False, soft_wrap=True)


def asked(output: OutputResult) -> str:
    """The limits of an output and where they come from."""
    t = output.tolerance
    parts = []
    if t.of_peak is not None:
        parts.append(f"max_abs at most {t.of_peak:g} of the largest value of A")
    elif t.atol is not None or t.rtol is not None:
        limits = " or ".join(f"{kind} {value:g}" for kind, value in (("atol", t.atol), ("rtol", t.rtol)) if value is not None)
        parts.append(f"{limits} ({t.stat}{f' {t.quantile:g}' if t.stat == 'quantile' else ''})")
    parts += [f"SQNR at least {t.min_sqnr_db:g} dB"] if t.min_sqnr_db is not None else []
    parts += [f"cosine at least {t.min_cosine:g}"] if t.min_cosine is not None else []
    return f"asked: {', '.join(parts)}; {t.why}"


def _metrics(console: Console, found: Comparison) -> None:
    if not found.metrics:
        return
    table = Table(box=None, pad_edge=False)
    for column in ("metric", "A", "B", "B - A, 95 %"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for m in found.metrics:
        d = _digits(m.metric)
        table.add_row(escape(f"{_named(m.metric)} of {m.output}"), f"{m.a:.{d}f}", f"{m.b:.{d}f}", escape(f"{m.change:+.{d}f} [{m.low:+.{d}f}, {m.high:+.{d}f}]"))
    console.print(table)


def _named(metric: str) -> str:
    """With its unit where numbers are in decibels."""
    return f"{metric} in dB" if _unit(metric) == "dB" else metric


def _digits(metric: str) -> int:
    return 2 if _unit(metric) == "dB" else 4


def _unit(metric: str) -> str:
    return METRICS[metric].unit if metric in METRICS else ""


def _stream(console: Console, found: Comparison) -> None:
    stream = found.stream
    if stream is None:
        return
    console.print(f"  {stream.streams} streams of {stream.steps} steps; A {stream.calls_a} calls of {stream.chunk_a}, B {stream.calls_b} calls of {stream.chunk_b}", highlight=False)
    for output in stream.outputs:
        since = "no step is beyond the tolerance" if output.first_divergent is None else f"the first step beyond the tolerance is {output.first_divergent} of stream {output.first_divergent_stream}"
        console.print(f"  {escape(output.name)}: {escape(since)}; the mean error grows by {output.drift_share:+.0%} of itself along the stream", highlight=False, soft_wrap=True)
    for check in stream.checks:
        console.print(f"  {check.check} of {check.side.upper()}: {'[green]the same again[/]' if check.is_ok else f'[red]off by {check.max_abs:.4g}[/]'}", highlight=False)
    for note in stream.notes:
        console.print(f"  {escape(note)}", style="dim", highlight=False, soft_wrap=True)


def _release(console: Console, found: Comparison) -> None:
    if found.release is None:
        return
    if not found.release.changes:
        console.print("  both bundles are the same release", highlight=False)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("part", "what", "A", "B"):
        table.add_column(column, overflow="fold")
    for change in found.release.changes[:MAX_CHANGES]:
        table.add_row(escape(change.part), escape(change.key), escape(_value(change.a)), escape(_value(change.b)))
    console.print(table)
    if len(found.release.changes) > MAX_CHANGES:
        console.print(f"  and {len(found.release.changes) - MAX_CHANGES} more, see --json", style="dim")


def _value(value: Any) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _short(value: float) -> str:
    return "0" if value == 0 else f"{value:.3g}"


def _decibel(value: float) -> str:
    return "equal" if value == math.inf else f"{value:.1f}"


def writer(folder: Path) -> Callable[..., None]:
    """What writes each sample's outputs to folder/a/<sample>.npz and folder/b/<sample>.npz.

    Raises:
        ResourceError: the folder cannot be written.
    """
    import numpy as np

    def write(sample: str, feeds: Mapping[str, Any], a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
        name = re.sub(r"[^A-Za-z0-9_.~#-]", "_", sample)
        try:
            for side, tensors in (("a", a), ("b", b)):
                (folder / side).mkdir(parents=True, exist_ok=True)
                part = folder / side / f".{name}.part"
                with part.open("wb") as file:
                    np.savez(file, **tensors)
                part.replace(folder / side / f"{name}.npz")
        except OSError as error:
            raise ResourceError(f"{folder}: cannot be written ({str(error.strerror).lower()})") from None

    return write


def write_junit(comparisons: Sequence[Comparison], path: Path) -> None:
    """A suite per comparison: one test case per output, per state check, and one for the whole; what differs is a failure with its sentence.

    Raises:
        ResourceError: it cannot be written.
    """
    root = xml.Element("testsuites")
    root.extend(_suite(found) for found in comparisons)
    text = xml.tostring(root, encoding="unicode", xml_declaration=True)
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written ({str(error.strerror).lower()})") from None


def _suite(found: Comparison) -> xml.Element:
    cases: list[tuple[str, str]] = [(f"output {output.name}", output.reason) for output in found.outputs]
    if found.stream is not None:
        cases += [(f"{check.check} of {check.side.upper()}", "" if check.is_ok else f"off by {check.max_abs:.4g}") for check in found.stream.checks]
    told = {reason for _, reason in cases}
    cases += [("verdict", "; ".join(reason for reason in found.reasons if reason not in told))] if not told >= set(found.reasons) or not cases else []
    spent = f"{sum(found.seconds.values()):.3f}"
    suite = xml.Element("testsuite", name=_clean(f"{found.a.text} {found.b.text}"), tests=str(len(cases)), failures=str(sum(bool(reason) for _, reason in cases)), errors="0", time=spent)
    for name, reason in cases:
        case = xml.SubElement(suite, "testcase", classname="edgekit.compare", name=_clean(name), time="0")
        if reason:
            xml.SubElement(case, "failure", message=_clean(reason)).text = _clean(reason)
    return suite


def _clean(text: str) -> str:
    """Without the control characters that XML 1.0 has no way to write."""
    return "".join(c if c in "\t\n" or (ord(c) >= 32 and ord(c) not in (0xFFFE, 0xFFFF) and not 0xD800 <= ord(c) <= 0xDFFF) else "?" for c in text)

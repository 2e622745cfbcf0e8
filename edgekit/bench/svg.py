"""Charts as SVG, written by hand: a benchmark needs no plotting library."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

# Okabe and Ito's colours, which color-blind readers can tell apart; dashes tell lines apart in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
DASHES = ("", "7 4", "2 3", "9 3 2 3", "1 2", "12 4")
WIDTH, HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 34, 40


@dataclass(frozen=True)
class Panel:
    """One chart: x with a tick at every x, y linear from 0.

    Attributes:
        title: what y is, with its unit.
        lines: {name: [(x, y)]}, x ascending.
        failed: {name: x where the line's method gave up}, drawn as a cross at the top.
        is_linear: x as it is; if not, on a logarithmic axis.
    """

    title: str
    x_title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    failed: Mapping[str, float] = field(default_factory=dict)
    is_linear: bool = False


@dataclass(frozen=True)
class Dots:
    """One dot a row on a logarithmic axis, with a line to the limit that it could reach.

    Attributes:
        title: what is measured, with its unit.
        rows: (label, value, limit or None), from top to bottom.
    """

    title: str
    rows: Sequence[tuple[str, float, float | None]]


def write_panels(panels: Sequence[Panel | Dots], path: Path) -> None:
    """Write the panels side by side, with one legend for the lines of all."""
    names = list(dict.fromkeys(name for panel in panels if isinstance(panel, Panel) for name in (*panel.lines, *panel.failed)))
    style = {name: (COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]) for i, name in enumerate(names)}
    width, height = WIDTH * len(panels), HEIGHT + 26
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12" fill="#222">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for i, panel in enumerate(panels):
        drawn = _panel(panel, style) if isinstance(panel, Panel) else _dots(panel)
        parts += [f'<g transform="translate({i * WIDTH} 0)">', *drawn, "</g>"]
    parts += _legend(style)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def ticks(high: float) -> list[float]:
    """0 and up to five round numbers, the last at or above `high`."""
    if high <= 0:
        return [0.0, 1.0]
    raw = high / 4
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(m * base for m in (1, 2, 2.5, 5, 10) if m * base >= raw * (1 - 1e-9))
    return [round(i * step, 12) for i in range(math.ceil(high / step - 1e-9) + 1)]


def _panel(panel: Panel, style: Mapping[str, tuple[str, str]]) -> Iterable[str]:
    xs = sorted({x for line in panel.lines.values() for x, _ in line} | set(panel.failed.values()))
    marks = ticks(max((y for line in panel.lines.values() for _, y in line), default=0))
    place = float if panel.is_linear else math.log
    low, high = place(xs[0]), place(xs[-1])
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT

    def at_x(x: float) -> float:
        return _LEFT + (right - _LEFT) * ((place(x) - low) / (high - low) if high > low else 0.5)

    def at_y(y: float) -> float:
        return bottom - (bottom - _TOP) * y / marks[-1]

    yield f'<text x="{_LEFT}" y="20" font-weight="bold">{escape(panel.title)}</text>'
    for mark in marks:
        yield f'<line x1="{_LEFT}" y1="{at_y(mark):.1f}" x2="{right}" y2="{at_y(mark):.1f}" stroke="#ddd"/>'
        yield f'<text x="{_LEFT - 6}" y="{at_y(mark) + 4:.1f}" text-anchor="end">{mark:g}</text>'
    for x in xs:
        yield f'<text x="{at_x(x):.1f}" y="{bottom + 17}" text-anchor="middle">{x:g}</text>'
    yield f'<text x="{(_LEFT + right) / 2:.1f}" y="{bottom + 33}" text-anchor="middle">{escape(panel.x_title)}</text>'
    for name, line in panel.lines.items():
        colour, dash = style[name]
        points = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in line)
        yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
        for x, y in line:
            yield f'<circle cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="3" fill="{colour}"><title>{escape(name)}: {y:.3g}</title></circle>'
    for name, x in panel.failed.items():
        cx, cy = at_x(x), at_y(marks[-1])
        yield f'<path d="M{cx - 5:.1f} {cy - 5:.1f}l10 10m0 -10l-10 10" stroke="{style[name][0]}" stroke-width="2"><title>{escape(name)}: failed</title></path>'


def decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, from at or below `low` to at or above `high`."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [round(m * 10.0**e, 12) for e in exponents for m in (1, 2, 5)]
    first = max(i for i, mark in enumerate(marks) if mark <= low * (1 + 1e-9))
    last = min(i for i, mark in enumerate(marks) if mark >= high * (1 - 1e-9))
    return marks[first : last + 1]


def _dots(panel: Dots) -> Iterable[str]:
    values = [value for _, *found in panel.rows for value in found if value is not None]
    marks = decades(min(values), max(values))
    left, right, bottom = 196, WIDTH - _RIGHT - 8, HEIGHT - _BOTTOM
    low, high = math.log(marks[0]), math.log(marks[-1])

    def at(value: float) -> float:
        return left + (right - left) * ((math.log(value) - low) / (high - low) if high > low else 0.5)

    yield f'<text x="12" y="20" font-weight="bold">{escape(panel.title)}</text>'
    free = 0.0  # where the next number may begin
    for mark in marks:
        yield f'<line x1="{at(mark):.1f}" y1="{_TOP}" x2="{at(mark):.1f}" y2="{bottom}" stroke="#ddd"/>'
        half = 3 * len(f"{mark:g}") + 2
        if at(mark) - half >= free:
            free = at(mark) + half
            yield f'<text x="{at(mark):.1f}" y="{bottom + 17}" text-anchor="middle" font-size="10">{mark:g}</text>'
    for i, (label, value, limit) in enumerate(panel.rows):
        y = _TOP + (bottom - _TOP) * (i + 0.5) / len(panel.rows)
        yield f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end" font-size="11">{escape(label)}</text>'
        colour = COLOURS[0] if label.startswith("edgekit") else COLOURS[1]
        if limit is not None:
            yield f'<line x1="{at(limit):.1f}" y1="{y:.1f}" x2="{at(value):.1f}" y2="{y:.1f}" stroke="{colour}" stroke-opacity="0.4"/>'
            yield f'<line x1="{at(limit):.1f}" y1="{y - 5:.1f}" x2="{at(limit):.1f}" y2="{y + 5:.1f}" stroke="#222" stroke-width="2"/>'
        yield f'<circle cx="{at(value):.1f}" cy="{y:.1f}" r="4" fill="{colour}"><title>{escape(label)}: {value:.4g}</title></circle>'


def _legend(style: Mapping[str, tuple[str, str]]) -> Iterable[str]:
    x = float(_LEFT)
    for name, (colour, dash) in style.items():
        yield f'<line x1="{x:.0f}" y1="{HEIGHT + 10}" x2="{x + 26:.0f}" y2="{HEIGHT + 10}" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
        yield f'<text x="{x + 32:.0f}" y="{HEIGHT + 14}">{escape(name)}</text>'
        x += 50 + 6.6 * len(name)

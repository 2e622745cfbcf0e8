"""A comparison as one self-contained page: the verdict first, then what it costs, where it comes from, and what was not shown.

It is evidence for somebody who decides whether B may ship, so that every chart has its numbers beside
it, and the page ends with what was compared, with which data and versions, and what it leaves open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import ResourceError
from edgekit.metrics import METRICS
from edgekit.page import WIDTH, axis_y, digits_of, document, esc, legend, scale, svg, table, tick_text, ticks_of
from edgekit.parity import pictures
from edgekit.parity.conditions import ALL, title
from edgekit.parity.result import Cell, Comparison, Comparisons, OutputResult, SideInfo, StreamOutput
from edgekit.parity.show import asked
from edgekit.parity.stream import MAX_BINS
from edgekit.report import coverage_chart, coverage_parts

MAX_BYTES = 3_000_000
PICTURES = 1_800_000  # bytes of what is drawn of samples; what comes after is named and not drawn
MAX_CHARTS = 6  # outputs that are drawn; tables have them all
MAX_ROWS = 40  # of a table of layers, of changes in one part
MAX_POINTS = 1200
LARGE = 32  # values of an output that are drawn as one curve

Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def write(found: Comparison | Comparisons, path: Path, command: str = "") -> None:
    """The page of one comparison, or of several sides against one A.

    Args:
        command: that made it, so that others can make it again.

    Raises:
        ResourceError: it cannot be written.
    """
    text = render(found, command) if isinstance(found, Comparison) else render_all(found, command)
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written ({str(error.strerror).lower()})") from None


def render(found: Comparison, command: str = "") -> str:
    """The whole page; parts that the comparison lacks are left out."""
    page = _Page(found, command)
    sections = (
        ("why", "Why it differs", page.why()),
        ("drop", "What it costs", page.drop()),
        ("outputs", "Outputs", page.outputs()),
        ("layers", "Worst layers", page.layers()),
        ("errors", "Error distribution", page.errors()),
        ("streams", "Streams over time", page.streams()),
        ("conditions", "By condition", conditions(found.conditions) or page.slices()),
        ("release", "What changed between the releases", page.release()),
        ("coverage", "INT8 coverage", page.coverage()),
        ("samples", "Samples", page.samples()),
        ("open", "What this does not show", page.open_points()),
        ("provenance", "Provenance", page.provenance()),
    )
    return document(f"{_name(found.b)} against {_name(found.a)}: {found.verdict}", page.header(), sections, page.cards(), "Numbers for machines: <code>edgekit compare --json</code>.")


def render_all(every: Comparisons, command: str = "") -> str:
    """Several sides: which are the same as A, and the table of target × condition."""
    first = every.comparisons[0]
    same = sum(bool(found) for found in every.comparisons)
    count = len(every.comparisons)
    word = f"<strong>{'Same' if every else 'Differs'}</strong>: {same} of {count} give what A gives within the limits"
    header = (
        f'<p class="verdict {"pass" if every else "fail"}"><span class="mark" aria-hidden="true">{"✓" if every else "✗"}</span><span>{word}</span></p>'
        f'<h1>{count} models against {esc(_name(first.a))}</h1><p class="note">{esc(_on(first, len(every.comparisons)))}</p>'
    )
    sections = [("sides", "Sides", _sides(every)), ("conditions", "By condition", conditions(every.conditions))]
    opened = list(dict.fromkeys(f"{_name(found.b)}: {text}" for found in every.comparisons for text in found.provenance.get("open", ())))
    sections += [("open", "What this does not show", _list(opened)), ("provenance", "Provenance", _Page(first, command).provenance([first.a, *(found.b for found in every.comparisons)]))]
    return document(f"{count} models against {_name(first.a)}", header, sections, footer="Numbers for machines: <code>edgekit compare --json</code>.")


def _sides(every: Comparisons) -> str:
    rows = []
    for found in every.comparisons:
        worst = min(found.outputs, key=lambda o: o.errors.sqnr_db, default=None)
        numbers = ["", "", ""] if worst is None else [_decibel(worst.errors.sqnr_db), _short(worst.errors.max_abs), f"<code>{esc(worst.name)}</code>"]
        lead = found.metrics[0] if found.metrics else None
        cost = "" if lead is None else f"{_signed(lead.change, lead.metric)} {_interval(lead.low, lead.high, lead.metric)}"
        side = ", ".join(str(part) for part in (found.b.kind, found.b.numbers, found.b.facts.get("target"), found.b.facts.get("computed")) if part)
        rows.append([f"{esc(_name(found.b))} <small>{esc(side)}</small>", _chip(bool(found)), cost, *numbers, f'<span class="text">{_prose(found.reasons[0] if found.reasons else "")}</span>'])
    lead = next((found.metrics[0] for found in every.comparisons if found.metrics), None)
    change = "Change" if lead is None else f"Change of {lead.metric}, {lead.output}"
    return table("Every side against A", ["Side", "Verdict", change, "SQNR dB", "Max abs", "Worst output", "First reason"], rows, numeric=(2, 3, 4))


class _Page:
    """The parts of the page, each a string of HTML, empty where there is nothing to show."""

    def __init__(self, found: Comparison, command: str = ""):
        self.found, self.command = found, command
        self.spent = 0  # bytes of pictures

    # ------------------------------------------------------------------------- the top

    def header(self) -> str:
        found = self.found
        same = "B gives what A gives, within the limits" if found.outputs else "both bundles are the same release"
        mark, word, meaning = ("✓", "Same", same) if found else ("✗", "Differs", _prose(found.reasons[0]))
        return (
            f'<p class="verdict {"pass" if found else "fail"}"><span class="mark" aria-hidden="true">{mark}</span><span><strong>{word}</strong>: {meaning}</span></p>'
            f"<h1>{esc(_name(found.b))} <small>against {esc(_name(found.a))}</small></h1>"
            f'<p class="note">{esc(_on(found))}</p>'
        )

    def cards(self) -> str:
        found = self.found
        cards = [_side_card("A, the reference", "float", found.a), _side_card("B, judged", "artifact", found.b)]
        worst = min(found.outputs, key=lambda o: (math.isfinite(o.errors.max_abs), o.errors.sqnr_db), default=None)
        if found.metrics:
            lead = found.metrics[0]
            facts = [("A", _number(lead.a, lead.metric)), ("B", _number(lead.b, lead.metric)), ("Labelled samples", str(lead.samples))]
            facts += [("Worst output", f"{_decibel(worst.errors.sqnr_db, ' dB')}")] if worst is not None else []
            cards.append(_card("Change, B − A", "total", f'{_signed(lead.change, lead.metric)}<span class="unit">{esc(lead.metric)} of {esc(lead.output)}</span>', _interval(lead.low, lead.high, lead.metric), facts))
        elif worst is not None:
            e = worst.errors
            facts = [("Largest error", _short(e.max_abs)), ("99 % of values within", _short(e.quantiles_abs["0.99"])), ("Cosine", f"{e.cosine:.6f}")]
            cards.append(_card("Worst output", "total", f'{_decibel(e.sqnr_db)}<span class="unit">dB SQNR of {esc(worst.name)}</span>', "", facts))
        return f'<section aria-label="A, B and their difference at a glance"><ol class="cards">{"".join(cards)}</ol></section>'

    def why(self) -> str:
        return _list(self.found.reasons) if len(self.found.reasons) > 1 else ""  # one alone is the verdict's own sentence

    # ------------------------------------------------------------------------- numbers

    def drop(self) -> str:
        metrics = self.found.metrics
        if not metrics:
            return ""
        rows = []
        for m in metrics:
            better = "lower" if m.direction == "lower" else "higher"
            rows.append([f"<code>{esc(m.output)}</code> {esc(m.title)} <small>{better} is better</small>", _number(m.a, m.metric), _number(m.b, m.metric), f"{_signed(m.change, m.metric)} {_interval(m.low, m.high, m.metric)}"])
        note = f'<p class="note">{metrics[0].samples} labelled samples. The interval of the change is 95 %, from a bootstrap that draws the same samples for A and B. An interval that holds 0 shows no loss on these data; it does not prove that there is none.</p>'
        return f'<div class="pair lean">{_changes(metrics)}{table("Task metrics", ["Metric", "A", "B", "B − A"], rows, numeric=(1, 2, 3))}</div>{note}'

    def outputs(self) -> str:
        outputs = self.found.outputs
        if not outputs:
            return ""
        rows = []
        for o in outputs:
            e, w = o.errors, o.worst
            named = f"<code>{esc(o.name)}</code>" + (f" <small>in B <code>{esc(o.name_b)}</code></small>" if o.name_b != o.name else "")
            named += f'<br><small class="keep">{esc(o.dtype_a)} {esc("×".join(map(str, o.shape)) or "scalar")}</small>'
            index = f" <code>{list(w.index)}</code>" if w is not None and w.index else ""
            where = "" if w is None else f'<span class="keep">{esc(w.sample)}{index}<br><small>A {_short(w.a)}, B {_short(w.b)}</small></span>'
            rows.append([named, _chip(o.is_within, "within", "beyond"), _decibel(e.sqnr_db), _short(e.max_abs), _short(e.mean_abs), _short(e.quantiles_abs["0.99"]), _short(e.max_rel), _decibel(e.psnr_db), f"{e.cosine:.6f}", where])
        head = ["Output", "Verdict", "SQNR dB", "Max abs", "Mean abs", "99 % abs", "Max rel", "PSNR dB", "Cosine", "Worst at"]
        limits = list(dict.fromkeys(asked(o) for o in outputs))
        near = "".join(_near(o) for o in outputs[:MAX_CHARTS] if o.worst is not None and len(o.worst.around_a) > 1)
        around = f"<h3>Around the largest error</h3><div class=\"pair\">{near}</div>" if near else ""
        return table("Every output over all samples", head, rows, numeric=range(2, 9)) + _list(limits, "note") + around

    def layers(self) -> str:
        bisect = self.found.bisect
        if bisect is None or not bisect.rows:
            return ""
        words = {"fault": "✗ fault", "rounding": "rounding", "same": "✓ same"}
        rows = []
        told = [r for r in bisect.rows if r.verdict == "fault" or r.introduced_db != math.inf]  # NaN stays
        for r in told[:MAX_ROWS]:
            rows.append([
                f"{r.rank}. <code>{esc(r.node)}</code>", f'<span class="chip {"fail" if r.verdict == "fault" else "pass"}">{esc(words.get(r.verdict, r.verdict))}</span>', esc(r.op),
                _decibel(r.introduced_db), _decibel(r.expected_db), _decibel(r.inherited_db), _decibel(r.sqnr_db), f"{100 * r.share:.1f} %", f'<span class="text">{_prose(r.note)}</span>' if r.note else "",
            ])  # fmt: skip
        head = ["Layer", "Verdict", "Op", "Introduced", "Expected", "Inherited", "In all", "Share", "Note"]
        top = [(r.node, r.share, r.verdict) for r in bisect.rows[:10] if r.share > 0]
        modules = [(name, share, "") for name, share in bisect.modules[:10] if share > 0]
        charts = "".join(_shares(parts, name) for parts, name in ((top, "Share of the error introduced, by layer"), (modules, "By module")) if parts)
        left = [f"{len(names)} tensors of {side} found no partner" for side, names in (("A", bisect.unmatched_a), ("B", bisect.unmatched_b)) if names]
        minimal = f'<p>The smallest graph that shows it: <code>{esc(bisect.minimal["onnx"])}</code></p>' if bisect.minimal.get("onnx") else ""
        note = (
            '<p class="note">Levels are dB of signal to noise: more is better. <em>Introduced</em>: both sides get A’s inputs, so the layer is blamed for its own error only. <em>Expected</em>: '
            "what rounding in the same places costs where nothing is wrong. <em>Inherited</em>: of the layer’s inputs as B computes them. "
            f"{bisect.matched} layers were found on both sides{'; ' + '; '.join(left) if left else ''}.</p>"
        )
        silent = len(bisect.rows) - len(told)
        more = f"<p>and {len(told) - MAX_ROWS} more, see <code>--json</code></p>" if len(told) > MAX_ROWS else ""
        more += f"<p>{silent} layers introduce nothing.</p>" if silent else ""
        return f'<div class="pair">{charts}</div>{table("Layers, the one that introduces most error first", head, rows, numeric=range(3, 8))}{more}{note}{minimal}'

    def errors(self) -> str:
        parts = []
        for o in self.found.outputs[:MAX_CHARTS]:
            if o.errors.max_abs == 0:
                parts.append(f'<p><code>{esc(o.name)}</code>: every one of {o.errors.elements} values is equal.</p>')
                continue
            charts = _histogram(o) + (_per_sample(o) if len(o.curve) > 1 else "")
            parts.append(f"<h3>{esc(o.name)}</h3><div class=\"pair\">{charts}</div>{_quantiles(o)}")
        more = len(self.found.outputs) - MAX_CHARTS
        return "".join(parts) + (f"<p>{more} more outputs are in the table above.</p>" if more > 0 else "")

    # ------------------------------------------------------------------------- streams and slices

    def streams(self) -> str:
        stream = self.found.stream
        if stream is None:
            return ""
        unit = "s" if any(len(o.time_s) > 1 and o.time_s[1] != int(o.time_s[1]) for o in stream.outputs) else "step"
        charts = "".join(_course(o, unit, stream.steps) for o in stream.outputs[:MAX_CHARTS])
        rows = []
        for o in stream.outputs:
            first = '<span class="chip pass">none</span>' if o.first_divergent is None else f'<span class="bad">step {o.first_divergent}</span> <small>of stream {esc(o.first_divergent_stream)}</small>'
            rows.append([f"<code>{esc(o.name)}</code>", first, f"{o.drift_share:+.0%}".replace("-", "−"), _short(o.drift_per_step)])
        courses = table("Over time", ["Output", "First step beyond the limits", "Growth of the mean error, end to end", "Per step"], rows, numeric=(2, 3))
        checks = [
            [{"reset": "Again after a reset", "restore": "On from a saved state"}[c.check], c.side.upper(), _chip(c.is_ok, "the same", "differs"), _short(c.max_abs), "" if c.at_step is None else f"saved after call {c.at_step}"]
            for c in stream.checks
        ]
        effect = [["State reset before every call", side, "", _short(value), "what the state is worth"] for side, value in (("A", stream.state_effect_a), ("B", stream.state_effect_b)) if not math.isnan(value)]
        states = table("States", ["Check", "Side", "Verdict", "Max abs", "Note"], checks + effect, numeric=(3,))
        said = f"{stream.streams} streams of {stream.steps} steps. A: {stream.calls_a} calls of {stream.chunk_a}, B: {stream.calls_b} calls of {stream.chunk_b}."
        if not math.isnan(stream.state_sqnr_db):
            said += f" SQNR of what B’s state does against what A’s does: {_decibel(stream.state_sqnr_db, ' dB')}; near or below 0 the state is lost."
        carried = "; ".join(f"{side} {esc(', '.join(f'{k} ← {v}' for k, v in states.items()) or 'none')}" for side, states in (("A", stream.states_a), ("B", stream.states_b)))
        return f'<p>{said} <small>States: {carried}.</small></p><div class="pair">{charts}</div>{courses}{states}{_list(stream.notes, "note")}'

    def slices(self) -> str:
        rows = []
        for s in self.found.slices:
            cost = "" if not s.metric else f"{_signed(s.b - s.a, s.metric)} {_interval(s.low, s.high, s.metric)}"
            worth = ["", ""] if not s.metric else [_number(s.a, s.metric), _number(s.b, s.metric)]
            rows.append([f"{esc(s.tag)} {esc(s.value)}", f"<code>{esc(s.output)}</code>", str(s.samples), _decibel(s.sqnr_db), _short(s.max_abs), *worth, cost])
        metric = next((s.metric for s in self.found.slices if s.metric), "metric")
        return table("Slices of the data by tag", ["Slice", "Output", "Samples", "SQNR dB", "Max abs", f"A, {metric}", "B", "B − A"], rows, numeric=range(2, 8)) if rows else ""

    def coverage(self) -> str:
        grades = {"declared": "declared by its graph", "gate": "read from a compiler’s log", "measured": "read from the built engine"}
        parts = []
        for name, side in (("A", self.found.a), ("B", self.found.b)):
            coverage = side.facts.get("coverage") or {}
            if not isinstance(coverage.get("int8_macs"), int | float):
                continue
            charts = "".join(coverage_chart(made, f"{name}, by {what}") for what, key in (("engine", "engines"), ("op", "ops")) if (made := coverage_parts(coverage, key)))
            grade = str(coverage.get("grade", ""))
            parts.append(f'<p><strong>{name}: {100 * coverage["int8_macs"]:.1f} %</strong> of all MACs run in INT8 <small>({esc(grades.get(grade, grade))})</small></p><div class="pair">{charts}</div>')
        return "".join(parts)

    # ------------------------------------------------------------------------- samples

    def samples(self) -> str:
        kept = self.found.kept
        ids = list(dict.fromkeys(key.split("/input/")[0].split("/a/")[0].split("/b/")[0] for key in kept if not key.startswith("*/")))
        parts = [self._values(o.name) for o in self.found.outputs if f"*/a/{o.name}" in kept]
        left_out = 0
        for id in ids:
            shown = [part for part in self._sample(id) if part]
            size = sum(len(part) for part in shown)
            if self.spent + size > PICTURES:
                left_out += 1
                continue
            self.spent += size
            if shown:
                parts.append(f'<h3>Sample {esc(id)}</h3><div class="shots">{"".join(shown)}</div>')
        if left_out:
            parts.append(f"<p>{left_out} more samples are not drawn: the page would become too large.</p>")
        return "".join(parts)

    def _values(self, name: str) -> str:
        kept = self.found.kept
        a, b, label = (kept.get(f"*/{part}/{name}") for part in ("a", "b", "label"))
        if a is None or b is None or len(a) < 3:
            return ""
        # Of a wave each sample has a score in its place.
        name = next((f"{METRICS[m.metric].title} of {name}" for m in self.found.metrics if m.output == name and m.metric in METRICS and METRICS[m.metric].task == "speech"), name)
        return f'<div class="pair">{_scatter(name, a, b)}{_curves(f"{name}, sample by sample", "sample", [("float", "A", a), ("artifact", "B", b), *([("pruned", "label", label)] if label is not None else [])])}</div>'

    def _sample(self, id: str) -> Iterable[str]:
        kept, rate = self.found.kept, next((side.facts["sample_rate_hz"] for side in (self.found.a, self.found.b) if "sample_rate_hz" in side.facts), None)
        for key, value in kept.items():
            if key.startswith(f"{id}/input/"):
                yield _input(key.rpartition("/input/")[2], value, rate)
        said = []
        for o in self.found.outputs:
            a, b = kept.get(f"{id}/a/{o.name}"), kept.get(f"{id}/b/{o.name_b}")
            if a is None or b is None:
                continue
            if a.size != b.size:  # streams of other chunk sizes: over the common length, flat
                a, b = (np.asarray(x).reshape(-1)[: min(a.size, b.size)] for x in (a, b))
            b = np.asarray(b).reshape(a.shape)
            if a.size == 1:
                x, y = float(a.reshape(())), float(b.reshape(()))
                said.append([f"<code>{esc(o.name)}</code>", _short(x), _short(y), _short(y - x)])
            else:
                yield _output(o.name, a, b, rate)
        if said:
            yield table(f"Answers to {id}", ["Output", "A", "B", "B − A"], said, numeric=(1, 2, 3))

    # ------------------------------------------------------------------------- the end

    def release(self) -> str:
        release = self.found.release
        if release is None:
            return ""
        if not release.changes:
            return "<p>Nothing: both are the same release.</p>"
        parts = [f"<p>A is <code>{esc(release.name_a)}</code>, B is <code>{esc(release.name_b)}</code>.</p>"]
        for part in dict.fromkeys(change.part for change in release.changes):
            mine = [change for change in release.changes if change.part == part]
            rows = [[f"<code>{esc(c.key)}</code>", _value(c.a), _value(c.b), _relative(c.a, c.b)] for c in mine[:MAX_ROWS]]
            more = f"<p>and {len(mine) - MAX_ROWS} more, see <code>--json</code></p>" if len(mine) > MAX_ROWS else ""
            listed = table(f"{part.capitalize()}: {len(mine)} changed", ["What", "A", "B", "Change"], rows, numeric=(3,))
            parts.append(f"<details{' open' if part != 'files' else ''}><summary>{esc(part.capitalize())} <small>{len(mine)}</small></summary>{listed}{more}</details>")
        return "".join(parts)

    def open_points(self) -> str:
        return _list(self.found.provenance.get("open", ())) or "<p>Nothing that is known.</p>"

    def provenance(self, sides: Sequence[SideInfo] | None = None) -> str:
        found, p = self.found, self.found.provenance
        parts = []
        for i, side in enumerate(sides or (found.a, found.b)):
            facts = [("Given as", f"<code>{esc(side.text)}</code>"), ("Kind", esc(f"{side.kind}, {side.numbers}"))]
            facts += [(str(k).replace("_", " ").capitalize(), f"<code>{esc(_flat(v))}</code>") for k, v in side.facts.items() if k != "coverage" and v is not None]
            facts += [(what, f"<code>{esc('; '.join(f'{k} {v}' for k, v in ports.items()))}</code>") for what, ports in (("Inputs", side.inputs), ("Outputs", side.outputs)) if ports]
            facts += [("States", f"<code>{esc('; '.join(f'{k} from {v}' for k, v in side.states.items()))}</code>")] if side.states else []
            parts.append(f"<h3>{'A' if i == 0 else 'B' if len(sides or '12') == 2 else esc(_name(side))}</h3>{_facts(facts)}")
        data = found.data
        facts = []
        if data is not None:
            facts.append(("Data", f"{esc(data.text)}, {data.samples} samples"))
            facts += [("Data, sha256", f"<code>{esc(data.sha256)}</code>")] if data.sha256 else []
            facts += [("Seed", str(data.seed))] if data.seed is not None else []
            facts += [("Labels", esc(", ".join(data.labels)))] if data.labels else []
        facts += [("edgekit", esc(p.get("edgekit", ""))), ("Python", esc(p.get("python", ""))), ("Machine", esc(p.get("machine", "")))]
        facts.append(("Libraries", esc(", ".join(f"{k} {v}" for k, v in (p.get("versions") or {}).items()))))
        spent = {name: s for name, s in found.seconds.items() if s > 0}
        facts += [("Seconds", esc(", ".join(f"{name} {s:.2f}" for name, s in spent.items())))] if spent else []
        facts += [("Made by", f"<code>{esc(self.command)}</code>")] if self.command else []
        return "".join(parts) + "<h3>Data and software</h3>" + _facts(facts)


# --------------------------------------------------------------------------- target × condition


def conditions(cells: Sequence[Cell]) -> str:
    """Heat tables, one per output: rows are sides, columns conditions; the worse, the redder. Empty where there is one cell for all."""
    if len({(cell.target, cell.condition) for cell in cells}) < 2:
        return ""
    return "".join(_heat(output, [cell for cell in cells if cell.output == output]) for output in dict.fromkeys(cell.output for cell in cells)) + _HEAT_NOTE


_HEAT_NOTE = '<p class="note">The large number is B’s; below it the change against A with its 95 % interval, or the largest error where there are no labels. Redder is worse than A by more of the table’s largest loss; a frame marks cells beyond the limits. Tags cut the same samples into parts; the other conditions change every clip before it is preprocessed.</p>'


def _heat(output: str, cells: Sequence[Cell]) -> str:
    by_place = {(cell.target, cell.condition): cell for cell in cells}
    targets, columns = (list(dict.fromkeys(key[i] for key in by_place)) for i in (0, 1))
    metric = next((cell.metric for cell in cells if cell.metric), "")
    losses = [x for cell in cells if (x := _loss(cell)) is not None and math.isfinite(x)]
    most = max([x for x in losses if x > 0], default=0.0) or max([-x for x in losses], default=0.0) or 1.0
    levels = [cell.sqnr_db for cell in cells if math.isfinite(cell.sqnr_db)]
    rows = []
    if metric:
        rows.append(["A", *(next((f"{_number(by_place[t, c].a, metric)}<span class=\"ci\">n {by_place[t, c].samples}</span>" for t in targets if (t, c) in by_place and by_place[t, c].metric), "") for c in columns)])
    for target in targets:
        line = [f"<code>{esc(Path(target).name if len({Path(t).name for t in targets}) == len(targets) else target)}</code>"]
        for column in columns:
            cell = by_place.get((target, column))
            line.append("" if cell is None else _heat_cell(cell, most, levels))
        rows.append(line)
    named = f"{METRICS[metric].title if metric in METRICS else metric}" if metric else "SQNR in dB"
    return f'<div class="first">{table(f"{output}: {named}", ["", *map(_condition, columns)], rows, numeric=range(1, len(columns) + 1))}</div>'


def _condition(name: str) -> str:
    if name == ALL:
        return "all samples"
    return f"SNR {name.removeprefix('snr_db ').replace('-', '−')} dB" if name.startswith("snr_db ") else title(name)


def _heat_cell(cell: Cell, most: float, levels: Sequence[float]) -> str:
    if cell.metric:
        loss = _loss(cell)
        strength = 0.0 if loss is None or not math.isfinite(loss) else max(-1.0, min(1.0, loss / most))
        text = f"{_number(cell.b, cell.metric)}<span class=\"ci\">{_signed(cell.b - cell.a, cell.metric)}</span>{_interval(cell.low, cell.high, cell.metric)}"
    else:
        low, high = (min(levels), max(levels)) if levels else (0.0, 1.0)
        strength = (high - cell.sqnr_db) / (high - low) if math.isfinite(cell.sqnr_db) and high > low else 0.0
        text = f"{_decibel(cell.sqnr_db)}<span class=\"ci\">max {_short(cell.max_abs)}</span><span class=\"ci\">n {cell.samples}</span>"
    tone = "--bad" if strength > 0 else "--good"
    beyond = "" if cell.is_within else '<span class="ci bad">beyond the limits</span>'
    return f'<span class="heat{"" if cell.is_within else " beyond"}" style="background:color-mix(in srgb,var({tone}) {6 + 34 * abs(strength):.0f}%,transparent)">{text}{beyond}</span>'


def _loss(cell: Cell) -> float | None:
    """How much worse B is than A in the metric; None without labels."""
    if not cell.metric:
        return None
    is_lower = cell.metric in METRICS and METRICS[cell.metric].direction == "lower"
    return (cell.b - cell.a) if is_lower else (cell.a - cell.b)


# --------------------------------------------------------------------------- samples


def _input(name: str, value: np.ndarray, rate: int | None) -> str:
    strip = pictures.frames_of(value)
    if strip is not None:
        return f'<figure class="clip">{pictures.image(strip, f"Frames of input {name}, first to last")}<figcaption>Input <code>{esc(name)}</code>, frames first to last</figcaption></figure>'
    wave = pictures.waveform_of(name, value)
    if wave is not None:
        peak = float(np.abs(wave).max()) or 1.0
        long = f"{len(wave) / rate:.2f} s" if rate else f"{len(wave)} samples"
        return f'<figure class="clip">{pictures.envelopes([("pruned", f"peak {peak:.3g}", wave)], peak, f"input {name}")}<figcaption>Input <code>{esc(name)}</code>, {long}</figcaption></figure>'
    return ""


def _output(name: str, a: np.ndarray, b: np.ndarray, rate: int | None) -> str:
    waves = pictures.waveform_of(name, a), pictures.waveform_of(name, b)
    if waves[0] is not None and waves[1] is not None:
        return _wave_output(name, waves[0], waves[1], rate)
    maps = pictures.map_of(a), pictures.map_of(b)
    if maps[0] is not None and maps[1] is not None:
        images, (low, high), worst = pictures.maps(maps[0], maps[1])
        words = (f"A, {low:.3g} to {high:.3g}", "B, on A’s scale", f"difference, 0 to {worst:.3g}")
        return f'<figure class="clip wide"><div class="three">{_captioned(images, words, name)}</div><figcaption>Output <code>{esc(name)}</code></figcaption></figure>'
    if a.dtype.kind in "fiu" and a.size <= MAX_POINTS:
        flat = a.reshape(-1).astype(np.float64), b.reshape(-1).astype(np.float64)
        return _curves(f"Output {name}", "element" if a.size <= LARGE else "step", [("float", "A", flat[0]), ("artifact", "B", flat[1])])
    return ""


def _wave_output(name: str, a: np.ndarray, b: np.ndarray, rate: int | None) -> str:
    off = a - b
    peak = max(float(np.abs(a).max()), float(np.abs(b).max())) or 1.0
    worst = float(np.abs(off).max())
    long = f"{len(a) / rate:.2f} s" if rate else f"{len(a)} samples"
    outlines = pictures.envelopes([("float", f"A, peak {peak:.3g}", a), ("artifact", "B, on A’s scale", b)], peak, f"output {name}")
    difference = pictures.envelopes([("total", f"A − B, peak {worst:.3g}, on a scale of its own", off)], worst or 1.0, f"output {name}")
    images, loudest = pictures.spectrograms(a, b)
    top = f"0 to {rate / 2000:g} kHz upwards" if rate else "frequency upwards"
    words = (f"A, {top}", "B", f"A − B: what differs, from {pictures.FLOOR_DB:.0f} to 0 dB of the loudest, {loudest:.0f} dBFS".replace("-", "−"))
    return f'<figure class="clip wide">{outlines}{difference}<div class="three">{_captioned(images, words, f"Spectrogram of {name}")}</div><figcaption>Output <code>{esc(name)}</code>, {long}; spectrograms of {pictures.WINDOW} samples, all on one scale</figcaption></figure>'


def _captioned(images: Sequence[np.ndarray], words: Sequence[str], name: str) -> str:
    return "".join(f"<div>{pictures.image(pixels, f'{name}: {word}', 'pixels')}<small>{esc(word)}</small></div>" for pixels, word in zip(images, words, strict=True))


# --------------------------------------------------------------------------- charts


def _changes(metrics: Sequence[Any]) -> str:
    """Each metric's change with its interval, every row on its own scale: right of the line is worse."""
    body = []
    for i, m in enumerate(metrics[:12]):
        y, sign = 22 + 34 * i, 1 if m.direction == "lower" else -1
        ends = sorted((sign * m.low, sign * m.high))
        most = max(abs(ends[0]), abs(ends[1]), abs(m.change)) * 1.15 or 1.0
        x = scale(-most, most, 110, WIDTH - 10)
        body.append(f'<text x="102" y="{y + 4}" text-anchor="end">{esc(f"{m.output} {m.metric}"[:15])}</text><line class="grid" x1="110" x2="{WIDTH - 10}" y1="{y}" y2="{y}"/>')
        if all(map(math.isfinite, (*ends, m.change))):
            body.append(f'<line class="whisker total" x1="{x(ends[0]):.1f}" x2="{x(ends[1]):.1f}" y1="{y}" y2="{y}"/><circle class="dot total" cx="{x(sign * m.change):.1f}" cy="{y}" r="5"/>')
        else:
            body.append(f'<text class="bad" x="{x(0) + 8:.1f}" y="{y + 4}">not finite</text>')
    bottom = 34 * min(len(metrics), 12) + 10
    middle = (110 + WIDTH - 10) / 2
    body.append(f'<line class="zero" x1="{middle:.0f}" x2="{middle:.0f}" y1="6" y2="{bottom}"/><text class="small faint" x="{middle - 6:.0f}" y="{bottom + 14}" text-anchor="end">← B better</text><text class="small faint" x="{middle + 6:.0f}" y="{bottom + 14}">B worse →</text>')
    said = "; ".join(f"{m.output} {m.metric} {m.change:+.4g}, {m.low:+.4g} to {m.high:+.4g}" for m in metrics[:12])
    return svg(bottom + 22, "Change with its 95 % interval, each row on a scale of its own", said, "".join(body))


def _histogram(o: OutputResult) -> str:
    """How many values are off by how much: octaves of the error, and the limit."""
    h = o.histogram
    if not h.counts:
        return f"<p>{h.nonfinite} differences are not finite.</p>"
    edges = [e for e in h.edges if math.isfinite(e)]
    counts = list(h.counts[: len(edges) - 1])
    if len(counts) > 40:  # the far end of tiny errors says little
        edges, counts = edges[-41:], [sum(counts[:-39]), *counts[-39:]]
    low, high = math.log2(edges[0]), math.log2(edges[-1])
    total = sum(h.counts) + h.zeros
    x, y = scale(low, high, 44, WIDTH - 8), scale(0, 100 * max(counts) / total * 1.08, 210, 26)
    body = [axis_y(y, ticks_of(0, 100 * max(counts) / total, 4)), '<text class="small faint" x="40" y="14" text-anchor="end">%</text>']
    path = f"M{x(low):.1f} {y(0):.1f}" + "".join(f"V{y(100 * n / total):.1f}H{x(math.log2(edges[i + 1])):.1f}" for i, n in enumerate(counts)) + f"V{y(0):.1f}Z"
    body.append(f'<path class="area total" d="{path}"/>')
    for power in range(math.ceil(low * math.log10(2)), math.floor(high * math.log10(2)) + 1):
        if len(range(math.ceil(low * math.log10(2)), math.floor(high * math.log10(2)) + 1)) <= 7 or power % 2 == 0:
            at = x(power / math.log10(2))
            body.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="210" y2="214"/><text class="small faint" x="{at:.1f}" y="227" text-anchor="middle">{_power(power)}</text>')
    limit = o.tolerance.atol
    if limit and low <= math.log2(limit) <= high:
        at = x(math.log2(limit))
        body.append(f'<line class="limit" x1="{at:.1f}" x2="{at:.1f}" y1="20" y2="210"/><text class="limit" x="{at:.1f}" y="14" text-anchor="middle">limit</text>')
    equal = f"{100 * h.zeros / total:.3g} % equal"
    body.append(f'<text class="small faint" x="{(44 + WIDTH) / 2:.0f}" y="244" text-anchor="middle">|A − B|; {equal}{f", {h.nonfinite} not finite" if h.nonfinite else ""}</text>')
    said = f"{total} values, {equal}, from {edges[0]:.3g} to {edges[-1]:.3g}"
    return svg(250, f"How far values of {o.name} are off", said, "".join(body))


def _power(exponent: int) -> str:
    small = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return {0: "1", 1: "10", 2: "100", -1: "0.1", -2: "0.01"}.get(exponent, f"10{small}")


def _per_sample(o: OutputResult) -> str:
    """SQNR of every sample: which are hard."""
    points = [(i, p.sqnr_db, p.is_within, p.id) for i, p in enumerate(o.curve)]
    finite = [p[1] for p in points if math.isfinite(p[1])]
    if not finite:
        return ""
    step = math.ceil(len(points) / MAX_POINTS)
    low, high = min(finite), max(finite)
    pad = max((high - low) * 0.08, 0.5)
    x, y = scale(-0.5, len(points) - 0.5, 44, WIDTH - 8), scale(low - pad, high + pad, 210, 20)
    body = [axis_y(y, ticks_of(low - pad, high + pad, 4)), '<text class="small faint" x="40" y="14" text-anchor="end">dB</text>']
    t = o.tolerance
    strong = " strong" if len(points) <= 300 else ""
    is_whole = t.min_sqnr_db is not None and t.atol is None and t.rtol is None  # asked of all samples together, so that one below it breaks nothing
    for tone, is_within in (("pruned", True), ("artifact", False)):
        dots = "".join(f"M{x(i):.1f} {y(min(v, high)):.1f}h0" for i, v, w, _ in points[::step] if w == is_within and not math.isnan(v))
        body += [f'<path class="points{strong} {tone}" d="{dots}"/>'] if dots else []
    worst = min((p for p in points if not math.isnan(p[1])), key=lambda p: p[1])
    body.append(f'<text class="small faint" x="44" y="228">{len(points)} samples in order; worst: {esc(worst[3][:24])}, {_decibel(worst[1], " dB")}</text>')
    if is_whole and low - pad < t.min_sqnr_db < high + pad:
        body.append(f'<line class="limit" x1="44" x2="{WIDTH - 8}" y1="{y(t.min_sqnr_db):.1f}" y2="{y(t.min_sqnr_db):.1f}"/>')
    if is_whole:
        body.append(f'<text class="limit" x="44" y="246">asked of all together: {t.min_sqnr_db:.1f} dB, found {_decibel(o.errors.sqnr_db, " dB")}</text>')
    else:
        kinds = {p[2] for p in points}
        body.append(legend([(tone, said) for tone, said, is_in in (("pruned", "within the limits", True), ("artifact", "beyond", False)) if is_in in kinds], 246))
    return svg(252, f"SQNR of every sample, {o.name}", f"from {low:.1f} to {high:.1f} dB, worst in {worst[3]}", "".join(body))


def _quantiles(o: OutputResult) -> str:
    e = o.errors
    head = ["", "Median", "90 %", "99 %", "99.9 %", "Max", "Mean"]
    rows = [["absolute", *(_short(e.quantiles_abs[q]) for q in ("0.5", "0.9", "0.99", "0.999")), _short(e.max_abs), _short(e.mean_abs)]]
    rows.append(["relative to |B|", *(_short(e.quantiles_rel[q]) for q in ("0.5", "0.9", "0.99", "0.999")), _short(e.max_rel), _short(e.mean_rel)])
    exact = "" if e.quantiles_are_exact else ", quantiles within 0.4 %"
    return table(f"Errors of {o.name}: {e.elements} values{exact}", head, rows, numeric=range(1, 7))


def _near(o: OutputResult) -> str:
    w = o.worst
    assert w is not None
    at = [w.start + i for i in range(len(w.around_a))]
    return _curves(f"{o.name}, sample {w.sample}, last axis", "index", [("float", "A", np.array(w.around_a)), ("artifact", "B", np.array(w.around_b))], at=at, mark=w.index[-1] if w.index else None)


def _curves(name: str, unit: str, lines: Sequence[tuple[str, str, np.ndarray]], at: Sequence[float] | None = None, mark: float | None = None) -> str:
    """Lines over one axis; each is (css tone, name, values)."""
    count = max(len(values) for _, _, values in lines)
    where = list(range(count)) if at is None else list(at)
    finite = np.concatenate([np.asarray(values, np.float64)[np.isfinite(np.asarray(values, np.float64))] for _, _, values in lines])
    if not finite.size:
        return ""
    low, high = float(finite.min()), float(finite.max())
    pad = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    x, y = scale(where[0], where[-1], 48, WIDTH - 10), scale(low - pad, high + pad, 170, 16)
    body = [axis_y(y, ticks_of(low - pad, high + pad, 4)), _bottom(x, where[0], where[-1], 170, unit)]
    if mark is not None:
        body.append(f'<line class="limit" x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="12" y2="170"/>')
    for tone, _, values in lines:
        body.append(f'<path class="outline {tone}" d="{_path(where, values, x, y)}"/>')
    body.append(legend([(tone, said) for tone, said, _ in lines], 206))
    return svg(212, name, f"{count} values from {low:.3g} to {high:.3g}", "".join(body))


def _path(where: Sequence[float], values: Any, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    """Moves over what is not finite; at most MAX_POINTS."""
    step = math.ceil(len(values) / MAX_POINTS)
    parts, is_down = [], False
    for i in range(0, len(values), step):
        value = float(values[i])
        if math.isfinite(value):
            parts.append(f"{'L' if is_down else 'M'}{x(where[i]):.1f} {y(value):.1f}{'' if is_down else 'h.01'}")
        is_down = math.isfinite(value)
    return "".join(parts)


def _bottom(x: Callable[[float], float], low: float, high: float, y: float, unit: str) -> str:
    marks = [t for t in ticks_of(low, high, 5) if unit == "s" or t == int(t)] if high > low else [low]
    ticks = "".join(f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{y}" y2="{y + 4}"/><text class="small faint" x="{x(t):.1f}" y="{y + 16}" text-anchor="middle">{f"{t:.0f}" if t == int(t) else tick_text(t)}</text>' for t in marks)
    return ticks + f'<text class="small faint" x="{WIDTH - 8}" y="{y + 36}" text-anchor="end">{esc(unit)} →</text>'


def _course(o: StreamOutput, unit: str, steps: int) -> str:
    """Error over time on a logarithmic axis: largest and mean of each bin, and the first step beyond the limits."""
    positive = [v for v in (*o.max_abs, *o.mean_abs) if v > 0 and math.isfinite(v)]
    if not positive or len(o.time_s) < 2:
        return f"<p><code>{esc(o.name)}</code>: no difference at any time.</p>"
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)) + 1e-9)
    high = max(high, low + 1)
    x, y = scale(o.time_s[0], o.time_s[-1], 48, WIDTH - 10), scale(low, high, 190, 16)
    every = math.ceil((high - low) / 6)
    body = [f'<line class="grid" x1="48" x2="{WIDTH - 8}" y1="{y(p):.1f}" y2="{y(p):.1f}"/><text class="small faint" x="42" y="{y(p) + 4:.1f}" text-anchor="end">{_power(p)}</text>' for p in range(low, high + 1, every)]
    body.append(_bottom(x, o.time_s[0], o.time_s[-1], 190, unit))
    for tone, values in (("artifact", o.max_abs), ("float", o.mean_abs)):
        logs = [math.log10(v) if v > 0 else math.nan for v in values]
        body.append(f'<path class="outline solid {tone}" d="{_path(o.time_s, logs, x, y)}"/>')
    if o.first_divergent is not None:
        per_step = (o.time_s[1] - o.time_s[0]) / math.ceil(steps / MAX_BINS)
        at = min(o.time_s[-1], o.first_divergent * per_step)
        body.append(f'<line class="limit" x1="{x(at):.1f}" x2="{x(at):.1f}" y1="16" y2="190"/><text class="limit" x="{min(max(x(at), 110), WIDTH - 60):.1f}" y="11" text-anchor="middle">first beyond: step {o.first_divergent}</text>')
    body.append(legend((("artifact", "largest error"), ("float", "mean error")), 226))
    return svg(232, f"Error over time, {o.name}", f"largest {max(positive):.3g}, growth {o.drift_share:+.0%} from end to end", "".join(body))


def _scatter(name: str, a: np.ndarray, b: np.ndarray) -> str:
    """B over A, a dot per sample."""
    ok = np.isfinite(a) & np.isfinite(b)
    a, b = a[ok], b[ok]
    if not a.size:
        return ""
    step = math.ceil(len(a) / MAX_POINTS)
    low, high = float(min(a.min(), b.min())), float(max(a.max(), b.max()))
    pad = (high - low) * 0.04 or 1.0
    x, y = scale(low - pad, high + pad, 48, WIDTH - 10), scale(low - pad, high + pad, 190, 16)
    body = [axis_y(y, ticks_of(low, high, 4)), f'<line class="zero" x1="{x(low - pad):.1f}" y1="{y(low - pad):.1f}" x2="{x(high + pad):.1f}" y2="{y(high + pad):.1f}"/>']
    body += [f'<text class="small faint" x="{x(t):.1f}" y="206" text-anchor="middle">{tick_text(t)}</text>' for t in ticks_of(low, high, 4)]
    dots = "".join(f"M{x(float(p)):.1f} {y(float(q)):.1f}h0" for p, q in zip(a[::step], b[::step], strict=True))
    body.append(f'<path class="points{" strong" if len(a) <= 300 else ""} artifact" d="{dots}"/>')
    return svg(212, f"{name}: B over A, a dot per sample", f"{len(a)} samples; on the diagonal B says what A says", "".join(body))


def _shares(parts: Sequence[tuple[str, float, str]], name: str) -> str:
    most = max(share for _, share, _ in parts) or 1.0
    body = []
    for i, (node, share, verdict) in enumerate(parts):
        y, short = 4 + 34 * i, node if len(node) <= 40 else f"…{node[-39:]}"
        body.append(f'<text x="0" y="{y + 10}" class="small">{esc(short)}</text><text x="{WIDTH}" y="{y + 10}" text-anchor="end" class="small faint">{100 * share:.1f} %</text><rect class="fill {"artifact" if verdict in ("fault", "") else "pruned"}" x="0" y="{y + 15}" width="{max(1.0, WIDTH * share / most):.1f}" height="9" rx="2"/>')
    said = "; ".join(f"{node} {100 * share:.1f} %" for node, share, _ in parts)
    return svg(34 * len(parts) + 6, name, said, "".join(body))


# --------------------------------------------------------------------------- text


def _side_card(heading: str, tone: str, side: SideInfo) -> str:
    facts = [("Computes in", side.numbers), ("Runs on", side.facts.get("runtime")), ("Target", side.facts.get("target")), ("Computed", side.facts.get("computed")), ("Model", side.facts.get("model")), ("Engine", side.facts.get("engine"))]
    return _card(heading, tone, f'<span class="name">{esc(_name(side))}</span>', f'<span class="ci">{esc(side.kind)}</span>', [(k, esc(_flat(v))) for k, v in facts if v])


def _card(heading: str, tone: str, big: str, small: str, facts: Sequence[tuple[str, str]]) -> str:
    items = "".join(f"<div><dt>{esc(k)}</dt><dd>{v}</dd></div>" for k, v in facts)
    return f'<li class="card {tone}"><h2>{esc(heading)}</h2><p class="big">{big}</p><p class="ci">{small}</p><dl>{items}</dl></li>'


def _on(found: Comparison, sides: int = 1) -> str:
    if found.data is None:
        return "Releases, compared by their files and reports; nothing was run."
    if sides > 1:
        return f"{found.data.samples} {'streams' if found.stream else 'samples'} ({found.data.text}), the same for all."
    said = f"{found.data.samples} {'streams' if found.stream else 'samples'} ({found.data.text}), the same for both."
    return said + (f" {len(found.outputs)} outputs, {sum(not o.is_within for o in found.outputs)} beyond their limits." if found.outputs else "")


def _name(side: SideInfo) -> str:
    path = Path(side.text)
    return path.name or side.text


def _list(texts: Iterable[str], css: str = "") -> str:
    items = "".join(f"<li>{_prose(text)}</li>" for text in texts)
    return f"<ul{f' class={chr(34)}{css}{chr(34)}' if css else ''}>{items}</ul>" if items else ""


def _prose(text: str) -> str:
    """A sentence of ours as HTML: names in backticks become code."""
    parts = esc(text).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 and i < len(parts) - 1 else part if not i % 2 else f"`{part}" for i, part in enumerate(parts))


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    return f'<dl class="facts">{"".join(f"<div><dt>{esc(k)}</dt><dd>{v}</dd></div>" for k, v in facts)}</dl>'


def _chip(is_ok: bool, good: str = "same", bad: str = "differs") -> str:
    return f'<span class="chip {"pass" if is_ok else "fail"}">{"✓" if is_ok else "✗"} {good if is_ok else bad}</span>'


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_flat(v)}" for k, v in value.items())
    return ", ".join(map(_flat, value)) if isinstance(value, list | tuple) else str(value)


def _value(value: Any) -> str:
    if value is None:
        return '<small>not there</small>'
    return esc(f"{value:.6g}" if isinstance(value, float) else str(value))


def _relative(a: Any, b: Any) -> str:
    """The change of two numbers in percent."""
    if any(isinstance(v, bool) or not isinstance(v, int | float) or not math.isfinite(v) for v in (a, b)) or a == 0:
        return ""
    return f"{100 * (b - a) / abs(a):+.1f} %".replace("-", "−")


def _short(value: float) -> str:
    if not math.isfinite(value):
        return '<span class="bad">not finite</span>'
    return "0" if value == 0 else f"{value:.3g}".replace("-", "−")


def _decibel(value: float, unit: str = "") -> str:
    if math.isnan(value):
        return '<span class="bad">not finite</span>'
    if math.isinf(value):
        return "equal" if value > 0 else '<span class="bad">no signal</span>'
    return f"{value:.1f}{unit}".replace("-", "−")


def _unit(metric: str) -> str:
    return METRICS[metric].unit if metric in METRICS else ""


def _in_db(metric: str) -> str:
    return " dB" if _unit(metric) == "dB" else ""


def _digits(metric: str) -> int:
    return digits_of(metric, _unit(metric))


def _number(value: float, metric: str) -> str:
    return f"{value:.{_digits(metric)}f}{_in_db(metric)}".replace("-", "−") if math.isfinite(value) else '<span class="bad">not finite</span>'


def _signed(value: float, metric: str) -> str:
    return f"{value:+.{_digits(metric)}f}{_in_db(metric)}".replace("-", "−") if math.isfinite(value) else '<span class="bad">not finite</span>'


def _interval(low: float, high: float, metric: str) -> str:
    if not (math.isfinite(low) and math.isfinite(high)):
        return '<span class="ci">no interval</span>'
    return f'<span class="ci">{_signed(low, metric).removesuffix(" dB")} to {_signed(high, metric)}</span>'

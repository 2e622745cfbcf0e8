"""report.json as one self-contained page: no network, no script, light and dark, readable on a phone.

Names of clips, layers and recipes come from anywhere, so every text is escaped and the page's own
policy forbids scripts and requests.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.formats import outputs_in, read_json
from edgekit.page import WIDTH, axis_x, axis_y, digits_of, document, esc, legend, scale, svg, table, ticks_of
from edgekit.pictures import FLOOR_DB, MAX_COLUMNS, WINDOW, png, uri

if TYPE_CHECKING:  # package renders again within seconds: numpy only where an array is touched
    import numpy as np

ROWS = {"float": "Float", "pruned": "Pruned", "artifact": "INT8"}
COSTS = {"prune_cost": "Pruning", "int8_cost": "INT8", "total": "In all"}
MAX_POINTS = 1500
MAX_LISTED = 200
WORST_CLIPS = 5

VERDICTS = {
    "pass": ("✓", "Pass", "every gate holds"),
    "pending-device": ("◔", "Pending device", "every gate holds in host simulation; the engines are still to be built and checked on the device"),
    "inconclusive": ("?", "Inconclusive", "cannot be decided, the interval reaches beyond the limit; not flashable"),
    "fail": ("✗", "Fail", "missed; not flashable"),
}


@dataclass(frozen=True)
class Sample:
    """What the page shows of one golden clip."""

    id: str
    how: str
    tags: Mapping[str, Any]
    strip_png: bytes | None
    envelope: tuple[tuple[float, float], ...]
    """(lowest, highest) amplitude in -1..1 of equal stretches of time; empty without audio."""
    seconds: float
    answers: tuple[tuple[str, float | None, float | None, float | None], ...] = ()


def samples(golden: Mapping[str, np.ndarray], described: Iterable[Mapping[str, Any]], limit: int = 3) -> list[Sample]:
    """The first `limit` golden clips, drawn small: four frames and the outline of the waveform.

    Args:
        golden: tensors of golden.safetensors.
        described: `golden` of reference.json.
    """
    found = []
    for clip in list(described)[:limit]:
        frames, audio = golden.get(f"{clip['id']}/raw/frames"), golden.get(f"{clip['id']}/raw/audio")
        seconds = 0.0 if audio is None else len(audio) / clip["sample_rate_hz"]
        found.append(
            Sample(
                id=str(clip["id"]),
                how=str(clip.get("how", "")),
                tags=clip.get("tags", {}),
                strip_png=None if frames is None else png(_strip(frames)),
                envelope=() if audio is None else envelope(audio),
                seconds=seconds,
            )
        )
    return found


@dataclass(frozen=True)
class Sound:
    """Spectrograms of one golden clip, all on one scale.

    Attributes:
        pictures: (what it is, PNG), time to the right, frequency upwards.
        top_khz: of the highest row.
        loudest_db: of full scale; bright is this, dark is FLOOR_DB below.
    """

    id: str
    pictures: tuple[tuple[str, bytes], ...]
    seconds: float
    top_khz: float
    loudest_db: float


def sound(reference: Path, outputs: Path, sample_rate_hz: int) -> Sound | None:
    """The first golden clip that stands as it was recorded, before and after; None where the task is no speech.

    Args:
        reference: the folder that stage reference left.
        outputs: the artifact's waves on every held-out clip, as verify left them.
    """
    described = read_json(reference / "reference.json")
    clip = next((one for one in described["golden"] if one["derived_from"] is None), None)
    if described.get("task") != "speech" or clip is None:
        return None
    import numpy as np
    from safetensors import safe_open

    from edgekit import pictures

    row, name = described["ids"].index(clip["id"]), described["primary"]

    def wave(file: Path, key: str) -> np.ndarray:
        with safe_open(file, "numpy") as tensors:  # of hundreds of clips only this one is read
            return np.float64(tensors.get_slice(key)[row])

    with safe_open(reference / "golden.safetensors", "numpy") as golden:
        [given] = [key for key in golden.keys() if key.startswith(f"{clip['id']}/input/")]  # noqa: SIM118  no mapping
        noisy = np.float64(golden.get_tensor(given))
    before, after = (wave(file, key) for file, key in ((reference / "predictions.safetensors", f"original/{name}"), (outputs, name)))
    clean = wave(reference / "predictions.safetensors", f"label/{name}")
    waves = {"Noisy input": noisy, "Clean speech": clean, "Float": before, "INT8": after, "INT8 − float": after - before}
    hop = max(pictures.HOP, math.ceil((len(noisy) - WINDOW) / (MAX_COLUMNS - 1)))
    levels = {what: pictures.spectrogram(np.nan_to_num(values), hop)[:-1] for what, values in waves.items()}
    loudest = max(float(level.max()) for level in levels.values())
    colours = pictures.palette()
    drawn = tuple((what, png(pictures.levels_of(pictures.thinned((level - loudest - FLOOR_DB) / -FLOOR_DB)), colours)) for what, level in levels.items())
    return Sound(str(clip["id"]), drawn, len(noisy) / sample_rate_hz, sample_rate_hz / 2000, loudest)


def _strip(frames: np.ndarray, count: int = 4, max_height: int = 96) -> np.ndarray:
    """uint8 [h, count*w, 3]: frames over the whole clip side by side, thinned to at most `max_height` rows."""
    import numpy as np

    step = math.ceil(max(frames.shape[1] / max_height, frames.shape[2] / (2 * max_height)))
    picked = [frames[round(i * (len(frames) - 1) / (count - 1)), ::step, ::step] for i in range(count)]
    return np.ascontiguousarray(np.concatenate(picked, axis=1))


def envelope(audio: np.ndarray, count: int = 170) -> tuple[tuple[float, float], ...]:
    import numpy as np

    pieces = np.array_split(audio.astype(np.float64) / 32768, min(count, len(audio)))
    return tuple((float(p.min()), float(p.max())) for p in pieces)


# page


def render(report: Mapping[str, Any], clips: Sequence[Sample] = (), sound: Sound | None = None) -> str:
    """The whole page. Parts whose numbers are not in `report` are left out, such as gates before package."""
    page = _Page(report)
    sections = (
        ("gates", "Gates", page.gates()),
        ("cost", "What it costs", page.costs()),
        ("accuracy", "Accuracy", page.accuracy()),
        ("slices", "By condition", page.slices()),
        ("coverage", "INT8 coverage", page.coverage()),
        ("device", "On the device", page.device()),
        ("parity", "Parity with the pruned float model", page.parity()),
        ("predictions", "Clip by clip" if report.get("task") == "speech" else "Predictions", page.predictions()),
        ("sound", "One clip before and after", "" if sound is None else _spectrograms(sound)),
        ("clips", "Golden clips", page.clips(clips)),
        ("provenance", "Provenance", page.provenance()),
    )
    title = f"{report.get('name') or 'edgekit report'}: {_verdict(report)[1]}"
    return document(title, page.header(), sections, page.cards(), "Numbers for machines are in <code>report.json</code>.")


def _verdict(report: Mapping[str, Any]) -> tuple[str, str, str]:
    return VERDICTS.get(str(report.get("verdict")), ("·", "Measured", "gates are judged when the bundle is packaged"))


class _Page:
    """The parts of the page, each a string of HTML, empty where the report has nothing to show."""

    def __init__(self, report: Mapping[str, Any]):
        self.report = report
        self.info = report.get("metric_info", {})
        self.metrics = report.get("metrics", {})
        # The data set's first metric leads; JSON objects are written sorted, so its name stands apart.
        names = list(self.metrics.get("float", {}))
        self.lead = report.get("lead") if report.get("lead") in names else next(iter(names), "")

    def header(self) -> str:
        mark, word, meaning = _verdict(self.report)
        target = self.report.get("target", {})
        where = f" on {esc(target.get('description') or target.get('name', ''))}" if target else ""
        kind = esc(str(self.report.get("verdict", "measured")))
        simulated = self.report.get("measured_on") == "host-simulated"
        note = "<strong>host-simulated</strong>: the device’s numbers, computed on the build machine; nothing here was measured on the device" if simulated else f"measured on <strong>{esc(self.report.get('measured_on', ''))}</strong>"
        gates = self.report.get("gates")
        missed = list(dict.fromkeys(gate["name"] for gate in gates or [] if gate["verdict"] == self.report.get("verdict") != "pass"))
        if missed:
            meaning = f"{', '.join(missed)} {VERDICTS[self.report['verdict']][2]}"
        if gates is not None and not gates:
            meaning = "the recipe has no gates" + ("; the engines are still to be built and checked on the device" if kind == "pending-device" else "")
        return (
            f'<p class="verdict {kind}"><span class="mark" aria-hidden="true">{mark}</span><span><strong>{word}</strong>: {esc(meaning)}</span></p>'
            f"<h1>{esc(self.report.get('name', 'edgekit report'))}<small>{where}</small></h1>"
            f'<p class="note">{note}. {self.report.get("n", 0)} held-out clips; intervals are 95 %, from a bootstrap over clips.</p>'
        )

    def cards(self) -> str:
        sizes = self.report.get("sizes", {})
        tiles = []
        for row, title in ROWS.items():
            score = self.metrics.get(row, {}).get(self.lead)
            size = sizes.get(row, {})
            facts = [("MACs per window", _count(size.get("macs"))), ("Parameters", _count(size.get("parameters"))), ("Weights", _bytes(size.get("bytes")))]
            if row != "float" and sizes.get("float"):
                facts = [(k, f"{v}{_share(size.get(key), sizes['float'].get(key))}") for (k, v), key in zip(facts, ("macs", "parameters", "bytes"), strict=True)]
            items = "".join(f"<div><dt>{esc(k)}</dt><dd>{v}</dd></div>" for k, v in facts)
            tiles.append(
                f'<li class="card {row}"><h3>{title}</h3><p class="big">{self.number(self.lead, score)}<span class="unit">{esc(self.label(self.lead))}</span></p>'
                f'<p class="ci">{self.interval(self.lead, self.report.get("intervals", {}).get(row, {}).get(self.lead))}</p><dl>{items}</dl></li>'
            )
        return f'<section aria-label="Float, pruned and INT8 at a glance"><ol class="cards">{"".join(tiles)}</ol></section>' if self.lead else ""

    def gates(self) -> str:
        gates = self.report.get("gates")
        if gates is None:
            return ""
        if not gates:
            return "<p>The recipe asks for none, so nothing was judged.</p>"
        words = {"pass": "✓ pass", "fail": "✗ fail", "inconclusive": "? inconclusive", "pending-device": "◔ pending device"}
        rows = []
        for gate in gates:
            verdict = str(gate.get("verdict"))
            band = "exact" if gate.get("low") == gate.get("high") and gate.get("low") is not None else self.interval(gate["metric"], [gate.get("low"), gate.get("high")])
            rows.append(
                [
                    f"<code>{esc(gate['name'])}</code>",
                    f'<span class="chip {esc(verdict)}">{esc(words.get(verdict, verdict))}</span>',
                    self.number(gate["metric"], gate.get("value"), signed=gate["kind"].startswith("max_") and "_" in gate["kind"]),
                    band,
                    f"{esc(gate['kind'].replace('_', ' '))} {self.number(gate['metric'], gate['limit'])}",
                ]
            )
        listed = table("Gates of the recipe", ["Gate", "Verdict", "Value", "95 % interval", "Limit"], rows, numeric=(2, 3))
        return listed + '<p class="note">A gate passes when the bad end of its interval is within the limit, fails when the value itself is beyond it, and is inconclusive in between. Increases and decreases are of the INT8 artifact against the original float model.</p>'

    def costs(self) -> str:
        drops = self.report.get("drops")
        if not drops or not self.lead:
            return ""
        limits = [g["limit"] for g in self.report.get("gates") or [] if g["metric"] == self.lead and g["kind"] in ("max_increase", "max_decrease")]
        sign = -1 if self.info.get(self.lead, {}).get("direction") == "higher" else 1
        worse = "decrease" if sign < 0 else "increase"
        rows = []
        for cost, title in COSTS.items():
            change = drops[cost][self.lead]
            ends = [_times(sign, change[k]) for k in ("low", "high")]
            rows.append((title, _times(sign, change["value"]), *(reversed(ends) if sign < 0 else ends)))
        chart = _forest(rows, limits, f"{worse.capitalize()} of {self.label(self.lead, unit=True)}", lambda x: self.number(self.lead, x, signed=True))
        changes = []
        for name in self.names():
            cells = [f"<span title='{esc(self.info.get(name, {}).get('title', ''))}'>{esc(self.label(name))}</span>"]
            for cost in COSTS:
                change = drops[cost].get(name, {})
                cells.append(f"{self.number(name, change.get('value'), signed=True)} {self.interval(name, [change.get('low'), change.get('high')], signed=True)}")
            changes.append(cells)
        return f'<div class="pair lean">{chart}{table("Change of every metric", ["Metric", *COSTS.values()], changes, numeric=(1, 2, 3))}</div>'

    def accuracy(self) -> str:
        if not self.metrics:
            return ""
        rows = []
        for name in self.names():
            info = self.info.get(name, {})
            cells = [f"{esc(info.get('title', name))} <small>{'lower' if info.get('direction') == 'lower' else 'higher'} is better</small>"]
            for row in ROWS:
                band = self.report.get("intervals", {}).get(row, {}).get(name)
                cells.append(f"{self.number(name, self.metrics.get(row, {}).get(name))} {self.interval(name, band)}")
            rows.append(cells)
        tables = self.gain() + table(f"Output {self.report.get('primary', '')}", ["Metric", *ROWS.values()], rows, numeric=(1, 2, 3))
        other = self.report.get("other_outputs") or {}
        if other:
            rows = [
                [f"<code>{esc(output)}</code>", esc(self.label(name)), *(self.number(name, by_row.get(row, {}).get(name)) for row in ROWS)]
                for output, by_row in other.items()
                for name in self.names()[:3]
            ]
            tables += f"<details><summary>Other outputs</summary>{table('Other outputs', ['Output', 'Metric', *ROWS.values()], rows, numeric=(2, 3, 4))}</details>"
        smooth = self.report.get("postprocessed") or {}
        if smooth:
            rows = [[esc(self.label(name)), *(self.number(name, smooth["metrics"].get(row, {}).get(name)) for row in ROWS)] for name in self.names()]
            tables += table(f"The same after post-processing: {smooth['how']}", ["Metric", *ROWS.values()], rows, numeric=(1, 2, 3))
        return tables

    def gain(self) -> str:
        """What went in, what came out, and what lies between."""
        given = self.report.get("input")
        if not given:
            return ""
        shown = [row for row in ROWS if row != "pruned" or self.report.get("is_pruned")]
        rows = []
        for name in self.names():
            cells = [f"{esc(self.info.get(name, {}).get('title', name))} <small>{'lower' if self.info.get(name, {}).get('direction') == 'lower' else 'higher'} is better</small>"]
            cells.append(self.number(name, given["metrics"].get(name)))
            for row in shown:
                change = given["gain"].get(row, {}).get(name, {})
                band = self.interval(name, [change.get("low"), change.get("high")], signed=True)
                cells.append(f'{self.number(name, self.metrics.get(row, {}).get(name))}<span class="ci">gain {self.number(name, change.get("value"), signed=True)}</span>{band}')
            rows.append(cells)
        said = table("What goes in, and what comes out of it", ["Metric", "Noisy input", *(ROWS[row] for row in shown)], rows, numeric=range(1, 2 + len(shown)))
        return said + '<p class="note">Each is the mean over the clips. The gain is over the noisy input of the same clips, with its 95 % interval.</p>'

    def slices(self) -> str:
        slices = self.report.get("slices") or []
        parts = []
        for tag in dict.fromkeys(s["tag"] for s in slices):
            mine = [s for s in slices if s["tag"] == tag]
            name = mine[0]["metric"]
            title = "SNR in dB" if tag == "snr_db" else str(tag)
            chart = _bars(mine, f"{self.label(name, unit=True)} by {title}", lambda x, name=name: self.number(name, x))
            rows = [
                [esc(_minus(s["value"])), str(s["n"]), *(self.number(name, s[row]) for row in ROWS), f"{self.number(name, s['total']['value'], signed=True)} {self.interval(name, [s['total']['low'], s['total']['high']], signed=True)}"]
                for s in mine
            ]
            listed = table(f"{self.label(name)} by {title}", [title, "Clips", *ROWS.values(), "INT8 − float"], rows, numeric=(1, 2, 3, 4, 5))
            parts.append(f'<h3>{esc(title)}</h3><div class="pair lean">{chart}{listed}</div>{self._compared(mine, title)}')
        return "".join(parts)

    def _compared(self, slices: Sequence[Mapping[str, Any]], title: str) -> str:
        """What the artifact is measured against on the same clips, and the outputs that tell why."""
        others = list(slices[0].get("comparisons", {}))
        outputs = list(slices[0].get("outputs", {}))
        if not others and not outputs:
            return ""
        name, rows = slices[0]["metric"], []
        for s in slices:
            cells = [esc(_minus(s["value"])), self.number(name, s["artifact"])]
            for other in others:
                row = s["comparisons"][other][name]
                band = self.interval(name, [row["over"]["low"], row["over"]["high"]], signed=True)
                cells.append(f'{self.number(name, row["value"])}<span class="ci">INT8 {self.number(name, row["over"]["value"], signed=True)}</span>{band}')
            cells += [f'{s["outputs"][key]["mean"]:.3f}<span class="ci">at most {s["outputs"][key]["max"]:.3f}</span>' for key in outputs]
            rows.append(cells)
        return table(f"{self.label(name)} against the alternatives by {title}", [title, "INT8", *map(esc, others), *map(esc, outputs)], rows, numeric=range(1, 2 + len(others) + len(outputs)))

    def device(self) -> str:
        """Latency and memory as the device measured them; nothing in a report of the host."""
        device = self.report.get("device")
        if not device:
            return ""
        passport = device.get("passport") or {}
        clocks = ", ".join(f"{esc(unit)} {khz / 1e3:.0f} MHz" for unit, khz in sorted((device.get("clocks_khz") or {}).items()) if isinstance(khz, int | float))
        memory = device.get("device_memory_mib")
        facts = [
            f"{device['latency_p50_ms']:.2f} ms a window at the median, <strong>{device['latency_ms']:.2f} ms</strong> at the 99th percentile of {device.get('windows_timed')} windows",
            "device memory not measured" if memory is None else f"{memory:.1f} MiB of device memory with all engines loaded",
            f"{device['load_ms']:.0f} ms to load them",
            f"power mode {esc(str(device.get('power_mode') or 'not readable'))}; {clocks or 'clocks not readable'}",
            f"{esc(device.get('board') or 'unnamed board')}, sm_{esc(passport.get('sm', ''))}, TensorRT {esc(passport.get('tensorrt', ''))}, CUDA {esc(passport.get('cuda', ''))}, L4T {esc(passport.get('l4t') or 'unknown')}",
        ]
        rows = []
        for name, engine in sorted((device.get("engines") or {}).items()):
            latency = engine.get("latency_ms") or {}
            times = [f"{latency[key]:.3f}" if isinstance(latency.get(key), int | float) else "" for key in ("p50", "p99")]
            rows.append([f"<code>{esc(name)}</code>", *times, esc(str(engine.get("runs", ""))), _bytes(engine.get("engine_bytes"))])
        listed = table("Engines on the device", ["Engine", "p50, ms", "p99, ms", "Runs a window", "Engine file"], rows, numeric=(1, 2, 3, 4))
        return f"<ul>{''.join(f'<li>{fact}</li>' for fact in facts)}</ul>{listed}"

    def coverage(self) -> str:
        coverage = self.report.get("coverage") or {}
        if coverage.get("int8_macs") is None:
            return ""
        grades = {
            "declared": "declared: Q/DQ in the graph, on ops that the target’s table takes in INT8",
            "gate": "gate: read from a compiler’s log",
            "measured": "measured: read from the built engine",
        }
        grade = str(coverage.get("grade", ""))
        lead = f"<p><strong>{100 * coverage['int8_macs']:.1f} %</strong> of all MACs run in INT8 <small>({esc(grades.get(grade, grade))})</small></p>"
        if gate := coverage.get("gate"):
            lead += f"<p><strong>{100 * gate['int8_macs']:.1f} %</strong> when another compiler builds the same graph <small>(gate: read from the log of {esc(gate['compiler'])}; form {esc(gate['form'])})</small></p>"
        charts = []
        for title, key in (("By engine", "engines"), ("By op", "ops")):
            parts = coverage_parts(coverage, key)
            if parts:
                charts.append(coverage_chart(parts, title))
        skipped = coverage.get("skipped") or {}
        rows = [[f"<code>{esc(engine)}</code>", f"<code>{esc(layer)}</code>", esc(reason)] for engine, layers in skipped.items() if isinstance(layers, Mapping) for layer, reason in layers.items()]
        details = ""
        if rows:
            rest = f"<p>and {len(rows) - MAX_LISTED} more in <code>coverage.json</code></p>" if len(rows) > MAX_LISTED else ""
            details = f"<details><summary>{_layers(len(rows))} in float, and why</summary>{table('Layers in float', ['Engine', 'Layer', 'Why'], rows[:MAX_LISTED])}{rest}</details>"
        return f'{lead}<div class="pair">{"".join(charts)}</div>{details}{_unit(coverage.get("unit"))}'

    def parity(self) -> str:
        parity = self.report.get("parity") or {}
        if not parity:
            return ""
        def cells(d: Mapping[str, Any]) -> list[str]:
            return [_plain(d.get("max_abs")), _plain(d.get("mean_abs")), _decibel(d), _plain(d.get("cosine"), 5)]

        rows = [[f"<code>{esc(name)}</code>", *cells(d), f"<code>{esc(d.get('worst_clip', ''))}</code>"] for name, d in parity.items()]
        parts = [table("Outputs on all clips", ["Output", "Max abs", "Mean abs", "SQNR dB", "Cosine", "Worst clip"], rows, numeric=(1, 2, 3, 4))]
        rows = [[f"<code>{esc(engine)}</code>", f"<code>{esc(port)}</code>", *cells(d)] for engine, ports in (self.report.get("engines") or {}).items() for port, d in ports.items()]
        if rows:
            parts.append(table("Engines alone, each fed float inputs (golden clips)", ["Engine", "Output", "Max abs", "Mean abs", "SQNR dB", "Cosine"], rows, numeric=(2, 3, 4, 5)))
        layers = self.report.get("layers") or []
        if layers:
            rows = [[f"<code>{esc(r['layer'])}</code>", f"<code>{esc(r['engine'])}</code>", esc(r["op"]), _decibel(r), _plain(r.get("max_abs"))] for r in layers]
            parts.append(table("Layers with the largest error, worst first", ["Layer", "Engine", "Op", "SQNR dB", "Max abs"], rows, numeric=(3, 4)))
        return "".join(parts)

    def predictions(self) -> str:
        p = self.report.get("predictions") or {}
        if not p.get("label"):
            return ""
        if self.report.get("task") == "classes":
            return _confusion(p, self.report.get("classes") or [], self.report.get("agreement") or {})
        if self.report.get("task") == "timeline":
            return _timelines(p, outputs_in(str(self.report.get("primary", ""))))
        everything = list(zip(p["label"], p["float"], p["artifact"], strict=True))
        step = math.ceil(len(everything) / MAX_POINTS)
        points = [point for point in everything[::step] if None not in point]
        if not points:
            return "<p>No finite predictions.</p>"
        if self.report.get("task") == "speech":
            return self.clip_by_clip(p, points, step)
        less = f'<p class="note">Every {step}th clip is drawn.</p>' if step > 1 else ""
        return f'<div class="pair">{_scatter(points)}{_histogram(everything)}</div>{less}'

    def clip_by_clip(self, p: Mapping[str, Any], points: Sequence[tuple[float, float, float]], step: int) -> str:
        """What each clip gained, and what INT8 changed of that; all in the leading metric."""
        lead, what = self.lead, self.label(self.lead, unit=True)
        sign = -1 if self.info.get(lead, {}).get("direction") == "lower" else 1
        rows = [row for row in zip(p["ids"], p["label"], p["float"], p["artifact"], strict=True) if None not in row]
        changes = [after - before for _, _, before, after in rows]
        better = sum(sign * change > 0 for change in changes)
        said = f"<p>INT8 is better than float in {better} of {len(rows)} clips; the change is {self.number(lead, statistics.median(changes), signed=True)} in the median.</p>"
        worst = sorted(rows, key=lambda row: sign * (row[3] - row[2]))[:WORST_CLIPS]
        cells = [[f"<code>{esc(id)}</code>", *(self.number(lead, v) for v in (given, before, after)), self.number(lead, after - before, signed=True)] for id, given, before, after in worst]
        listed = table("Clips that lose most to INT8", ["Clip", "Noisy input", "Float", "INT8", "INT8 − float"], cells, numeric=(1, 2, 3, 4))
        above = "above" if sign > 0 else "below"
        less = f'<p class="note">Every {step}th clip is drawn.</p>' if step > 1 else ""
        dots = _scatter(points, f"{what}: output over noisy input", f"{len(points)} clips; {above} the diagonal is gain", ("input", "output"), "no gain")
        return f'{said}<div class="pair">{dots}{_change_histogram(changes, f"{what}: INT8 minus float, clip by clip")}</div>{less}{listed}'

    def clips(self, clips: Sequence[Sample]) -> str:
        answers = self.report.get("golden") or {}
        figures = []
        for clip in clips:
            image = ""
            if clip.strip_png is not None:
                image = f'<img src="{uri(clip.strip_png)}" alt="Four frames of clip {esc(clip.id)}, first to last">'
            wave = _waveform(clip) if clip.envelope else ""
            said = "<br>".join(
                f"<code>{esc(name)}</code> {_answer(both.get('float'))} pruned float, {_answer(both.get('artifact'))} INT8" for name, both in (answers.get(clip.id) or {}).items()
            )
            tags = ", ".join(f"{esc(k)} {esc(f'{v:g}' if isinstance(v, float) else v)}" for k, v in clip.tags.items())
            figures.append(f'<figure class="clip">{image}{wave}<figcaption><strong>{esc(clip.id)}</strong> <small>{esc(clip.how)}</small><br>{said}<br><small>{tags}</small></figcaption></figure>')
        return f'<div class="clips">{"".join(figures)}</div>' if figures else ""

    def provenance(self) -> str:
        p = self.report.get("provenance") or {}
        data = self.report.get("data") or {}
        facts = [("Held-out data", f"{esc(data.get('name', ''))}, {data.get('clips', 0)} clips, sha256 <code>{esc(data.get('sha256', ''))}</code>")] if data else []
        if data.get("counts"):
            facts.append(("Found in the data", esc(", ".join(f"{what}: {count}" for what, count in data["counts"].items()))))
        boot = self.report.get("bootstrap") or {}
        if boot:
            facts.append(("Intervals", f"paired bootstrap over clips, {boot.get('resamples')} resamples, seed {boot.get('seed')}, percentile"))
        for key, value in p.items():
            if key == "recipe":
                continue
            if isinstance(value, Mapping):
                value = ", ".join(f"{k} {v}" for k, v in value.items())
            facts.append((str(key).replace("_", " ").capitalize(), f"<code>{esc(value)}</code>"))
        if not facts:
            return ""
        listed = "".join(f"<div><dt>{esc(k)}</dt><dd>{v}</dd></div>" for k, v in facts)
        recipe = f"<h3>Recipe</h3><pre tabindex='0'>{esc(p['recipe'], lines=True)}</pre>" if p.get("recipe") else ""
        return f'<dl class="facts">{listed}</dl>{recipe}'

    # numbers

    def names(self) -> list[str]:
        """The leading metric first."""
        names = list(self.metrics.get("float", {}))
        order = {name: i for i, name in enumerate(("mae", "f1", "corr", "acc2", "acc3", "acc5", "wa", "ua", "f1_macro", "f1_weighted", "ccc", "ccc_valence", "ccc_arousal", "rmse", "si_sdr", "stoi", "pesq"))}
        return sorted(names, key=lambda name: (name != self.lead, order.get(name, -1), name))

    def label(self, name: str, unit: bool = False) -> str:
        """Its name in a few letters; with `unit`, for an axis that has no room for it at every number."""
        known = {"mae": "MAE", "f1": "F1", "corr": "correlation", "int8_macs": "INT8 MACs", "wa": "WA", "ua": "UA", "ccc": "CCC", "rmse": "RMSE", "si_sdr": "SI-SDR", "stoi": "STOI", "pesq": "PESQ"}
        return known.get(name, str(name).rpartition(":")[2].replace("_", " ")) + (" in dB" if unit and self.unit(name) == "dB" else "")

    def unit(self, name: str) -> str:
        return str(self.info.get(name, {}).get("unit", ""))

    def number(self, name: str, value: Any, signed: bool = False) -> str:
        if value is None or not math.isfinite(value):
            return '<span class="bad">not finite</span>'
        if name == "int8_macs":
            return f"{100 * value:.1f} %"
        unit = self.unit(name)
        digits = digits_of(name, unit)
        text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
        return f"{text.replace('-', '−')}{' dB' if unit == 'dB' else ' %' if unit == '%' and not signed else ''}"

    def interval(self, name: str, band: Sequence[float | None] | None, signed: bool = False) -> str:
        if not band or None in band:
            return '<span class="ci">no interval</span>'
        return f'<span class="ci">{self.number(name, band[0], signed).removesuffix(" %").removesuffix(" dB")} to {self.number(name, band[1], signed)}</span>'


def coverage_parts(coverage: Mapping[str, Any], key: str) -> list[tuple[str, float, float]]:
    """(name, MACs, INT8 MACs) per engine or op, largest first."""
    parts = []
    for name, entry in (coverage.get(key) or {}).items():
        if isinstance(entry, Mapping) and isinstance(entry.get("macs"), (int, float)):
            parts.append((str(name), float(entry["macs"]), float(entry.get("int8_macs", 0))))
    return sorted(parts, key=lambda part: -part[1])


# charts: 360 units wide, so that their 12-unit text is 12 px on a phone



def _forest(rows: Sequence[tuple[str, float | None, float | None, float | None]], limits: Sequence[float], title: str, show: Callable[[float], str]) -> str:
    """Points with intervals around zero, and the gates' limits as dashed lines."""
    finite = [x for row in rows for x in row[1:] if x is not None] + list(limits) + [0.0]
    low, high = min(finite), max(finite)
    pad = (high - low) * 0.08 or 0.01
    x = scale(low - pad, high + pad, 74, WIDTH - 12)
    height = 34 * len(rows) + 50
    body = [axis_x(x, height - 34, ticks_of(low - pad, high + pad, 4))]
    body.append(f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="8" y2="{height - 34}"/>')
    for limit in limits:
        body.append(f'<line class="limit" x1="{x(limit):.1f}" x2="{x(limit):.1f}" y1="8" y2="{height - 34}"/><text class="limit" x="{x(limit) - 4:.1f}" y="{height - 4}" text-anchor="end">gate</text>')
    for i, (name, value, left, right) in enumerate(rows):
        y = 26 + 34 * i
        body.append(f'<text x="66" y="{y + 4}" text-anchor="end">{esc(name)}</text>')
        if value is None or left is None or right is None:
            body.append(f'<text class="bad" x="{x(0) + 6:.1f}" y="{y + 4}">not finite</text>')
            continue
        tone = ("pruned", "artifact", "total")[i % 3]
        body.append(f'<line class="whisker {tone}" x1="{x(left):.1f}" x2="{x(right):.1f}" y1="{y}" y2="{y}"/><circle class="dot {tone}" cx="{x(value):.1f}" cy="{y}" r="5"/>')
    said = "; ".join(f"{name} {_strip_tags(show(v)) if v is not None else 'not finite'}" for name, v, *_ in rows)
    return svg(height, title, said, "".join(body))


def _bars(slices: Sequence[Mapping[str, Any]], title: str, show: Callable[[float], str]) -> str:
    """Float and INT8 per slice, with the interval of INT8."""
    values = [s[k] for s in slices for k in ("float", "artifact", "high", "low") if s[k] is not None] + [0.0]
    bottom, top = 190.0, max(values) or 1.0
    y = scale(min(values), top * 1.05, bottom, 12)
    body = [axis_y(y, ticks_of(min(values), top, 4))]
    step = (WIDTH - 52) / len(slices)
    width = min(22.0, step / 3)
    names = [_minus(s["value"])[:14] for s in slices]
    # Where neighbours would touch, every second name stands a line lower.
    lower = 13 if max(map(len, names)) * 6 > step else 0
    for i, s in enumerate(slices):
        centre = 48 + step * (i + 0.5)
        for row, offset in (("float", -width), ("artifact", 0.0)):
            if s[row] is not None:
                edge, base = sorted((y(s[row]), y(0)))
                body.append(f'<rect class="fill {row}" x="{centre + offset:.1f}" y="{edge:.1f}" width="{width - 1:.1f}" height="{max(base - edge, 0.5):.1f}"/>')
        if s["low"] is not None and s["high"] is not None:
            at = centre + width / 2
            body.append(f'<line class="error" x1="{at:.1f}" x2="{at:.1f}" y1="{y(s["low"]):.1f}" y2="{y(s["high"]):.1f}"/>')
        body.append(f'<text x="{centre:.1f}" y="{bottom + 16 + lower * (i % 2)}" text-anchor="middle" class="small">{esc(names[i])}</text><text x="{centre:.1f}" y="{bottom + 30 + lower}" text-anchor="middle" class="small faint">n {s["n"]}</text>')
    body.append(legend((("float", "Float"), ("artifact", "INT8, 95 % interval")), 236 + lower))
    said = "; ".join(f"{s['value']}: {_strip_tags(show(s['float']))} float, {_strip_tags(show(s['artifact']))} INT8" for s in slices)
    return svg(244 + lower, title, said, "".join(body))


def coverage_chart(parts: Sequence[tuple[str, float, float]], title: str) -> str:
    total = sum(macs for _, macs, _ in parts) or 1.0
    parts = list(parts)[:12]
    widest = parts[0][1] or 1.0
    body = []
    for i, (name, macs, int8) in enumerate(parts):
        y = 6 + 40 * i
        width = (WIDTH - 8) * macs / widest
        body.append(
            f'<text x="0" y="{y + 10}">{esc(name[:24])}</text><text x="{WIDTH}" y="{y + 10}" text-anchor="end" class="small faint">{100 * macs / total:.1f} % of MACs, {100 * int8 / macs if macs else 0:.0f} % INT8</text>'
            f'<rect class="track" x="0" y="{y + 16}" width="{max(width, 1):.1f}" height="12" rx="2"/><rect class="fill artifact" x="0" y="{y + 16}" width="{width * int8 / macs if macs else 0:.1f}" height="12" rx="2"/>'
        )
    height = 40 * len(parts) + 26
    body.append(legend((("artifact", "INT8"), ("track", "float")), height - 8, x=0.0))
    said = "; ".join(f"{name}: {100 * macs / total:.1f} % of MACs, {100 * int8 / macs if macs else 0:.0f} % of them INT8" for name, macs, int8 in parts)
    return svg(height, title, said, "".join(body))


def _scatter(points: Sequence[tuple[float, float, float]], title: str = "Prediction over label", what: str = "", axes: tuple[str, str] = ("", ""), diagonal: str = "") -> str:
    """Prediction over label, float and INT8.

    Args:
        what: what it shows, for who cannot see it.
        axes: what stands to the right and upwards; then the axes reach as far as the values, else from -1 to 1 at least.
        diagonal: what it means where both are equal.
    """
    least = () if any(axes) else (-1.0, 1.0)
    low, high = min(*least, *(min(p) for p in points)), max(*least, *(max(p) for p in points))
    pad = 0.03 * (high - low) if any(axes) else 0.0
    low, high = low - pad, high + pad
    x, y = scale(low, high, 44, WIDTH - 10), scale(low, high, 300, 10)
    ticks = ticks_of(low, high, 4)
    body = [axis_x(x, 300, ticks), axis_y(y, ticks), f'<line class="zero" x1="{x(low):.1f}" y1="{y(low):.1f}" x2="{x(high):.1f}" y2="{y(high):.1f}"/>']
    strong = " strong" if len(points) <= 300 else ""
    for row, at in (("float", 1), ("artifact", 2)):
        dots = "".join(f"M{x(p[0]):.1f} {y(p[at]):.1f}h0" for p in points)
        body.append(f'<path class="points{strong if any(axes) else ""} {row}" d="{dots}"/>')
    if diagonal:
        at = low + 0.8 * (high - low)
        body.append(f'<text class="small faint" x="{x(at) + 8:.1f}" y="{y(at) + 16:.1f}">{esc(diagonal)}</text>')
    right, up = axes
    body.append(f'<text class="small faint" x="48" y="20">↑ {esc(up)}</text>' if up else "")
    body.append(f'<text class="small faint" x="{WIDTH - 10}" y="336" text-anchor="end">{esc(right)} →</text>' if right else "")
    body.append(legend((("float", "Float"), ("artifact", "INT8")), 336))
    return svg(344, title, what if diagonal else f"{what or f'{len(points)} clips'}; the closer to the diagonal the better", "".join(body))


def _confusion(predictions: Mapping[str, Any], classes: Sequence[str], agreement: Mapping[str, Any]) -> str:
    """Which class was chosen for clips of each class: INT8's share large and coloured, float's below."""
    names = list(classes) or [str(i) for i in range(len(predictions["artifact"][0]))]
    chosen = {row: [None if None in scores else max(range(len(scores)), key=scores.__getitem__) for scores in predictions[row]] for row in ("float", "artifact")}
    counts = {row: [[0] * len(names) for _ in names] for row in chosen}
    for i, label in enumerate(predictions["label"]):
        for row, picks in chosen.items():
            if picks[i] is not None:
                counts[row][int(label)][picks[i]] += 1
    rows = []
    for truth, name in enumerate(names):
        total = sum(1 for label in predictions["label"] if int(label) == truth)
        cells = []
        for pick in range(len(names)):
            share, before = (counts[row][truth][pick] / total if total else 0.0 for row in ("artifact", "float"))
            tone = "pruned" if pick == truth else "artifact"
            text = f'{share:.0%}<span class="ci">{before:.0%}</span>' if share or before else ""
            cells.append(f'<span class="heat" style="background:color-mix(in srgb, var(--{tone}) {50 * share:.0f}%, transparent)">{text}</span>')
        rows.append([f'{esc(name)}<br><small>{total} clips</small>', *cells])
    said = ""
    if agreement.get("value") is not None:
        said = f'<p>INT8 chooses the class of the pruned float model in <strong>{agreement["value"]:.2f} %</strong> of clips <span class="ci">{agreement["low"]:.2f} to {agreement["high"]:.2f}</span>.</p>'
    note = '<p class="note">Rows are true classes, columns what was chosen: INT8, and below it the original float model.</p>'
    return said + table("Chosen class by true class, share of the true class", ["", *names], rows, numeric=range(1, len(names) + 1)) + note


def _timelines(predictions: Mapping[str, Any], names: Sequence[str]) -> str:
    """Every moment of every clip in one scatter a quantity, and the course of a few clips."""
    figures = []
    for d, name in enumerate(names):
        moments = [(y[d], a[d], b[d]) for row in zip(predictions["label"], predictions["float"], predictions["artifact"], strict=True) for y, a, b in zip(*row, strict=True)]
        step = math.ceil(len(moments) / MAX_POINTS)
        points = [moment for moment in moments[::step] if None not in moment]
        if points:
            figures.append(_scatter(points, f"{name}: prediction over label", f"{len(points)} moments"))
    clips = len(predictions["label"])
    shown = sorted({round(i * (clips - 1) / 3) for i in range(4)}) if clips else []
    courses = [_course(predictions, i, d, name) for i in shown for d, name in enumerate(names)]
    return f'<div class="pair">{"".join(figures)}</div><div class="pair">{"".join(courses)}</div>'


def _course(predictions: Mapping[str, Any], clip: int, d: int, name: str) -> str:
    """Label, float and INT8 of one clip over its moments."""
    lines = {row: [moment[d] for moment in predictions[row][clip]] for row in ("label", "float", "artifact")}
    finite = [v for values in lines.values() for v in values if v is not None]
    low, high, last = min(-1.0, *finite), max(1.0, *finite), max(1, len(lines["label"]) - 1)
    x, y = scale(0, last, 44, WIDTH - 10), scale(low, high, 160, 10)
    body = [axis_y(y, ticks_of(low, high, 4))]
    for row, tone in (("label", "pruned"), ("float", "float"), ("artifact", "artifact")):
        points = [f"{x(t):.1f} {y(v):.1f}" for t, v in enumerate(lines[row]) if v is not None]
        body.append(f'<path class="outline {tone}" d="M{"L".join(points)}"/>' if points else "")
    body.append(legend((("pruned", "Label"), ("float", "Float"), ("artifact", "INT8")), 196))
    return svg(204, f"{name}, {predictions['ids'][clip]}", f"over {last + 1} moments", "".join(body))


def _histogram(points: Sequence[tuple[Any, Any, Any]], bins: int = 24) -> str:
    """How large the errors are, and how far INT8 is from float."""
    errors = {row: [p[at] - p[0] for p in points if None not in p] for row, at in (("float", 1), ("artifact", 2))}
    edge = max((abs(e) for values in errors.values() for e in values), default=0.0) or 1.0
    counts = {}
    for row, values in errors.items():
        counts[row] = [0] * bins
        for e in values:
            counts[row][min(bins - 1, int((e + edge) / (2 * edge) * bins))] += 1
    top = max(max(c) for c in counts.values()) or 1
    x, y = scale(-edge, edge, 44, WIDTH - 10), scale(0, top * 1.05, 300, 10)
    body = [axis_x(x, 300, ticks_of(-edge, edge, 4)), axis_y(y, ticks_of(0, top, 4))]
    for row in ("float", "artifact"):
        path = f"M{x(-edge):.1f} {y(0):.1f}"
        for i, count in enumerate(counts[row]):
            left, right = (-edge + 2 * edge * (i + k) / bins for k in (0, 1))
            path += f"L{x(left):.1f} {y(count):.1f}L{x(right):.1f} {y(count):.1f}"
        body.append(f'<path class="outline {row}" d="{path}L{x(edge):.1f} {y(0):.1f}"/>')
    body.append(legend((("float", "Float"), ("artifact", "INT8")), 336))
    return svg(344, "Error: prediction minus label", f"number of clips per error, from {-edge:.2f} to {edge:.2f}", "".join(body))


def _change_histogram(changes: Sequence[float], title: str) -> str:
    """How many clips change by how much, as bars on both sides of zero, and their mean."""
    edge = max(map(abs, changes)) or 1.0
    half = min(12, max(3, round(math.sqrt(len(changes)))))  # bars on each side, so that none holds losses and gains
    counts = [0] * (2 * half)
    for change in changes:
        counts[min(2 * half - 1, int((change + edge) / edge * half))] += 1
    top = max(counts)
    x, y = scale(-edge, edge, 44, WIDTH - 10), scale(0, top * 1.05, 300, 24)
    body = [axis_x(x, 300, ticks_of(-edge, edge, 6)), axis_y(y, [t for t in ticks_of(0, top, 4) if t == int(t)])]
    for i, count in enumerate(counts):
        left, right = (x(edge * (i + k - half) / half) for k in (0, 1))
        body.append(f'<rect class="fill artifact" x="{left + 0.5:.1f}" y="{y(count):.1f}" width="{right - left - 1:.1f}" height="{y(0) - y(count):.1f}"/>' if count else "")
    mean = statistics.fmean(changes)
    body.append(f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="24" y2="300"/><line class="whisker total" x1="{x(mean):.1f}" x2="{x(mean):.1f}" y1="26" y2="300"/>')
    body.append('<text class="small faint" x="44" y="16">↑ clips</text>')
    body.append(legend((("artifact", "clips"), ("total", f"mean {mean:+.2f}".replace("-", "−"))), 336))
    return svg(344, title, f"{len(changes)} clips from {min(changes):+.2f} to {max(changes):+.2f}, mean {mean:+.2f}", "".join(body))


def _spectrograms(sound: Sound) -> str:
    """Each with its axes: seconds to the right, kHz upwards."""
    x, y = scale(0, sound.seconds, 44, WIDTH - 8), scale(0, sound.top_khz, 158, 18)
    axes = axis_x(x, 158, ticks_of(0, sound.seconds, 5)) + axis_y(y, ticks_of(0, sound.top_khz, 4))
    axes += f'<text class="small faint" x="4" y="12">kHz</text><text class="small faint" x="{WIDTH - 8}" y="188" text-anchor="end">s</text>'
    figures = []
    for what, picture in sound.pictures:
        pixels = f'<image href="{uri(picture)}" x="44" y="18" width="{WIDTH - 52}" height="140" preserveAspectRatio="none"/>'
        figures.append(svg(192, what, f"Spectrogram of clip {sound.id}, {sound.seconds:.1f} seconds, 0 to {sound.top_khz:g} kHz", axes + pixels))
    loudest = f"{sound.loudest_db:.0f}".replace("-", "−")
    note = f"Clip {sound.id}. Spectrograms of {WINDOW} samples, all on one scale: bright is {loudest} dB of full scale, dark is {-FLOOR_DB:.0f} dB less."
    return f'<p class="note">{esc(note)} What the last one shows above the noise floor is what one would hear of INT8.</p><div class="pair">{"".join(figures)}</div>'


def _waveform(clip: Sample) -> str:
    step = WIDTH / len(clip.envelope)
    peak = max(max(-low, high) for low, high in clip.envelope) or 1.0
    path = "".join(f"M{step * (i + 0.5):.1f} {24 - 22 * high / peak:.1f}V{24 - 22 * low / peak + 0.5:.1f}" for i, (low, high) in enumerate(clip.envelope))
    return f'<svg class="wave" viewBox="0 0 {WIDTH} 48" role="img" aria-label="Waveform of clip {esc(clip.id)}, {clip.seconds:.1f} seconds"><path d="{path}"/></svg>'


# tables and text


def _unit(unit: Mapping[str, Any] | None) -> str:
    """What the device's accelerator would take of each engine, and why not the rest."""
    if not unit:
        return ""
    name = esc(unit["name"])
    rows = [
        [f"<code>{esc(engine)}</code>", f"{100 * row['macs']:.1f} %", "{} of {}".format(*row["layers"]), str(row["pieces"]), "; ".join(f"{esc(why)} ({n})" for why, n in list(row["falls_back"].items())[:4])]
        for engine, row in unit["engines"].items()
    ]
    listed = table(f"On the {name}", ["Engine", "MACs", "Layers", "Pieces", "What falls back most often, and why (nodes)"], rows, numeric=(1, 2, 3))
    return f"<details><summary>The {name} would take {100 * unit['macs']:.1f} % of the MACs; the kit builds for the GPU</summary>{listed}</details>"


def _layers(count: int) -> str:
    return "1 layer stays" if count == 1 else f"{count} layers stay"


def _minus(text: Any) -> str:
    """A range such as "-5 to 0" with true minus signs; other texts as they are."""
    return str(text).replace("-", "−") if re.fullmatch(r"-?[\d.]+( to -?[\d.]+)?", str(text)) else str(text)


def _strip_tags(text: str) -> str:
    return "not finite" if text.startswith("<") else text


def _times(sign: int, value: float | None) -> float | None:
    return None if value is None else sign * value


def _answer(value: Any) -> str:
    if isinstance(value, (int, float)):
        return f"{value:+.3f}".replace("-", "−")
    return esc(", ".join(f"{v:+.3f}" for v in value)) if isinstance(value, list) and all(isinstance(v, (int, float)) for v in value) else "…"


def _plain(value: float | None, digits: int = 3) -> str:
    return '<span class="bad">not finite</span>' if value is None else f"{value:.{digits}g}".replace("-", "−")


def _decibel(d: Mapping[str, Any]) -> str:
    if d.get("sqnr_db") is not None:
        return f"{d['sqnr_db']:.1f}".replace("-", "−")
    return "equal" if d.get("max_abs") == 0 else '<span class="bad">not finite</span>'


def _count(value: float | None) -> str:
    if value is None:
        return "unknown"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.0f}"


def _bytes(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value / 1e6:.2f} MB" if value >= 1e5 else f"{value / 1e3:.1f} kB"


def _share(value: float | None, whole: float | None) -> str:
    return f" <small>({100 * value / whole:.0f} %)</small>" if value is not None and whole else ""

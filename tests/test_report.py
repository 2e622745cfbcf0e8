"""The page stands alone, says the verdict first, and lets nothing out of an untrusted name."""

import base64
import html.parser
import json
import re
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest

from edgekit.page import ticks_of
from edgekit.report import esc, png, render, samples, sound


def measured(**more):
    """A small report.json as verify writes it."""
    rows = {"float": [0.1, -0.4, 0.6], "pruned": [0.2, -0.4, 0.5], "artifact": [0.2, -0.3, 0.5]}
    change = {"mae": {"value": 0.004, "low": 0.001, "high": 0.007}, "f1": {"value": -1.0, "low": -2.0, "high": 0.0}}
    return {
        "schema": 1, "measured_on": "host-simulated", "n": 3, "primary": "o", "lead": "mae",
        "metrics": {row: {"f1": 90.0, "mae": 0.1} for row in rows},
        "intervals": {row: {"f1": [85.0, 95.0], "mae": [0.09, 0.11]} for row in rows},
        "drops": {cost: change for cost in ("prune_cost", "int8_cost", "total")},
        "metric_info": {"mae": {"unit": "", "direction": "lower", "title": "mean absolute error"}, "f1": {"unit": "points", "direction": "higher", "title": "weighted F1 at 0"}},
        "parity": {"o": {"max_abs": 0.05, "mean_abs": 0.01, "sqnr_db": 27.0, "cosine": 0.999, "worst_clip": "c2"}},
        "engines": {"main": {"o": {"max_abs": 0.0, "mean_abs": 0.0, "sqnr_db": None, "cosine": 1.0}}},
        "layers": [{"engine": "main", "layer": "conv1", "op": "Conv", "sqnr_db": 21.0, "max_abs": 0.2}],
        "coverage": {"grade": "declared", "int8_macs": 0.75, "macs": 100, "engines": {"main": {"macs": 100, "int8_macs": 75}}, "ops": {"Conv": {"macs": 80, "int8_macs": 75}}, "skipped": {"main": {"lstm": "fp16: a loop"}}},
        "sizes": {row: {"parameters": 1000, "macs": 2_000_000, "bytes": 4000} for row in rows},
        "slices": [{"tag": "snr_db", "value": v, "n": 2, "metric": "mae", "float": 0.1, "pruned": 0.1, "artifact": 0.12, "low": 0.1, "high": 0.14, "total": change["mae"]} for v in ("-5 to 0", "0 to 5")],
        "predictions": {"ids": ["c0", "c1", "c2"], "label": [0.0, -0.5, 0.7], **rows},
        "golden": {"c0": {"o": {"float": 0.1, "artifact": 0.2}}},
        "data": {"name": "clips", "clips": 3, "sha256": "ab"}, "bootstrap": {"resamples": 2000, "seed": 0},
        **more,
    }  # fmt: skip


def judged(verdict="pass", **more):
    gate = {"name": "mae", "metric": "mae", "kind": "max_increase", "limit": 0.01, "value": 0.004, "low": 0.001, "high": 0.007, "verdict": verdict if verdict != "pending-device" else "pass", "pass": verdict != "fail"}
    return measured(name="mhlt_xavier", target={"name": "x", "description": "a device"}, verdict=verdict, gates=[gate], provenance={"recipe": "name: x\n", "checkpoint": "cd"}, **more)


def clips(names=("c0",)):
    golden, described = {}, []
    for name in names:
        golden[f"{name}/raw/frames"] = np.random.default_rng(0).integers(0, 255, (5, 300, 200, 3)).astype(np.uint8)
        golden[f"{name}/raw/audio"] = (1000 * np.sin(np.arange(16000))).astype(np.int16)
        described.append({"id": name, "how": "as recorded", "sample_rate_hz": 16000, "tags": {"snr_db": 3.0}})
    return samples(golden, described)


class Page(html.parser.HTMLParser):
    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.texts, self.ids = [], [], [], []
        self.feed(text)
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        self.ids += [dict(attrs)["id"]] if "id" in dict(attrs) else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style"} & set(self.open):
            self.texts.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.seen if name == tag]


def test_the_page_asks_for_nothing_from_outside_and_runs_no_script():
    page = Page(text := render(judged(), clips()))
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    assert not re.search(r"(?:src|href)=[\"'](?!#|data:image/png;base64,)", text)
    assert not re.search(r"url\(|@import|https?:", text)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert len(text) < 1_000_000


def test_the_verdict_is_the_first_thing_said():
    for verdict, word in {"pass": "Pass", "fail": "Fail", "inconclusive": "Inconclusive", "pending-device": "Pending device"}.items():
        said = " ".join(" ".join(Page(render(judged(verdict))).texts).split())
        assert said.index(word) < said.index("mhlt_xavier on a device")
    assert "mae missed; not flashable" in "".join(Page(render(judged("fail"))).texts)


def test_verifys_own_page_has_no_gates_and_says_who_judges():
    text = render(measured())
    assert "gates are judged when the bundle is packaged" in text
    assert 'id="gates"' not in text


def test_no_gates_are_not_sold_as_gates_that_hold():
    assert "the recipe has no gates" in render({**judged("pending-device"), "gates": []})


def test_everything_untrusted_is_escaped():
    evil = "</style></title><script>alert(1)</script><img src=x onerror=alert(1)>\"'&\u202e\x00"
    report = judged()
    for path in (["name"], ["primary"], ["target", "description"], ["parity", "o", "worst_clip"], ["layers", 0, "layer"], ["layers", 0, "op"],
                 ["slices", 0, "tag"], ["slices", 1, "value"], ["data", "name"], ["provenance", "recipe"], ["provenance", "checkpoint"],
                 ["metric_info", "mae", "title"], ["gates", 0, "name"], ["coverage", "grade"], ["measured_on"], ["verdict"]):  # fmt: skip
        at = report
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = evil
    for table in ("engines", "parity", "other_outputs"):
        report[table] = {evil: {"o": {"max_abs": 1.0}} if table == "engines" else {"max_abs": 1.0}} if table != "other_outputs" else {evil: {"float": {"mae": 1.0}}}
    for table in ("engines", "ops"):
        report["coverage"][table] = {evil: {"macs": 3, "int8_macs": 1}}
    report["coverage"]["skipped"] = {evil: {evil: evil}}
    shown = clips([evil])
    report["golden"] = {evil: {evil: {"float": evil, "artifact": [1.0]}}}
    page = Page(text := render(report, shown))
    assert not page.all("script")
    assert not any(key.startswith("on") for _, attrs in page.seen for key in attrs)
    assert "\x00" not in text and "\u202e" not in text


def test_a_screen_reader_finds_landmarks_headings_and_names():
    page = Page(render(judged(), clips()))
    tags = [tag for tag, _ in page.seen]
    assert all(tags.count(landmark) == 1 for landmark in ("header", "main", "footer", "nav", "h1"))
    assert page.all("html")[0]["lang"] == "en"
    assert all(a.get("alt") for a in page.all("img"))
    assert all(a.get("role") == "img" and a.get("aria-label") for a in page.all("svg"))
    assert all(a.get("scope") in ("row", "col") for a in page.all("th"))
    assert tags.count("caption") == tags.count("table")
    assert len(page.ids) == len(set(page.ids))
    links = [a["href"].removeprefix("#") for a in page.all("a")]
    assert set(links) <= set(page.ids)
    assert "viewport" in [a.get("name") for a in page.all("meta")]


def test_both_colour_schemes_have_readable_contrast():
    style = re.search(r"<style>(.*?)</style>", render(measured()), re.S).group(1)

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    schemes = re.findall(r":root\{(.*?)\}", style, re.S)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = {k: v if len(v) == 7 else "#" + "".join(2 * c for c in v[1:]) for k, v in re.findall(r"--([a-z-]+):(#[0-9a-f]{3,6})\b", scheme)}
        pairs = [(ink, bg) for ink in ("ink", "soft", "link", "float", "pruned", "artifact", "bad") for bg in ("bg", "card")]
        pairs += [(tone, f"{tone}-bg") for tone in ("good", "bad", "warn", "info")]
        for ink, background in pairs:
            a, b = sorted((luminance(colours[ink]), luminance(colours[background])))
            assert (b + 0.05) / (a + 0.05) >= 4.5, (ink, background)  # WCAG AA for text


def test_numbers_that_are_not_finite_are_said_to_be():
    report = judged("fail")
    report["metrics"]["artifact"]["mae"] = None
    report["intervals"]["artifact"]["mae"] = [None, None]
    report["drops"]["int8_cost"] = {"mae": {"value": None, "low": None, "high": None}, "f1": {"value": None, "low": None, "high": None}}
    report["drops"]["total"] = report["drops"]["int8_cost"]
    report["gates"][0] |= {"value": None, "low": None, "high": None}
    report["predictions"]["artifact"] = [None, None, None]
    report["parity"]["o"] |= {"max_abs": None, "sqnr_db": None, "cosine": None}
    report["slices"][0] |= {"artifact": None, "low": None, "high": None, "total": {"value": None, "low": None, "high": None}}
    text = render(json.loads(json.dumps(report)))
    Page(text)
    assert text.count("not finite") > 5
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", text)


def test_costs_of_a_score_are_drawn_as_decreases():
    text = render({**measured(), "lead": "f1"})
    assert "Decrease of F1. Pruning +1.00; INT8 +1.00; In all +1.00" in text


def test_thousands_of_clips_stay_a_small_page():
    n = 20_000
    report = measured(n=n)
    report["predictions"] = {"ids": list(range(n)), **{k: np.random.default_rng(1).uniform(-1, 1, n).tolist() for k in ("label", "float", "pruned", "artifact")}}
    report["coverage"]["skipped"] = {"main": {f"layer{i}": "why" for i in range(5000)}}
    assert len(render(report, clips(["a", "b", "c"]))) < 1_000_000


def test_a_png_decodes_to_its_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3)).astype(np.uint8)
    data = png(pixels)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        (size,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + body)
        chunks[kind], at = body, at + 12 + size
    assert struct.unpack(">II", chunks[b"IHDR"][:8]) == (5, 7)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(7, 16)
    out = np.zeros((7, 15), np.uint8)
    for y in range(7):
        out[y] = rows[y, 1:] + (out[y - 1] if rows[y, 0] == 2 else 0)
    np.testing.assert_array_equal(out.reshape(7, 5, 3), pixels)


def test_sample_images_are_thinned():
    image = base64.b64decode(re.search(r"base64,([^\"]+)", render(judged(), clips())).group(1))
    width, height = struct.unpack(">II", image[16:24])
    assert height <= 96 and width <= 4 * 192


def test_silence_and_single_clips_draw():
    golden = {"c0/raw/audio": np.zeros(3, np.int16)}
    [sample] = samples(golden, [{"id": "c0", "sample_rate_hz": 16000}])
    assert sample.strip_png is None and len(sample.envelope) == 3
    Page(render(judged(), [sample]))


@pytest.mark.parametrize("low, high", [(0, 1), (-1, 1), (0, 1e-9), (-3.2e5, 7.1e5), (0.1, 0.1)])
def test_ticks_are_round_and_inside(low, high):
    ticks = ticks_of(low, high, 4)
    assert len(ticks) <= 11
    assert all(low - 1e-9 * max(1, abs(low)) <= t <= max(high, low + 1) + 1e-9 * max(1, abs(high)) for t in ticks)


def test_esc_keeps_lines_only_where_asked():
    assert esc("a\nb<") == "a\N{REPLACEMENT CHARACTER}b&lt;"
    assert esc("a\nb", lines=True) == "a\nb"


def test_importing_the_page_needs_no_numpy():
    code = "import edgekit.report, sys; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_equal_tensors_are_called_equal_rather_than_not_finite():
    text = render(measured())
    assert ">equal<" in text


# speech


def speech(**more):
    """report.json of a denoiser on three clips, the second of which INT8 makes worse than what went in."""
    rows = {"float": [4.8, 11.0, 18.1], "pruned": [4.8, 11.0, 18.1], "artifact": [4.7, -0.5, 18.2]}
    change = {"si_sdr": {"value": -3.9, "low": -11.5, "high": 0.1}, "stoi": {"value": -0.002, "low": -0.004, "high": 0.0}}
    scores = {"si_sdr": 11.3, "stoi": 0.8514}
    return measured(**dict(
        task="speech", primary="speech", lead="si_sdr", is_pruned=False, metrics={row: scores for row in rows},
        intervals={row: {"si_sdr": [9.8, 18.4], "stoi": [0.78, 0.91]} for row in rows}, drops={cost: change for cost in ("prune_cost", "int8_cost", "total")},
        metric_info={"si_sdr": {"unit": "dB", "direction": "higher", "title": "SI-SDR"}, "stoi": {"unit": "", "direction": "higher", "title": "STOI"}},
        input={"metrics": {"si_sdr": 1.67, "stoi": 0.85}, "gain": {row: change | {"si_sdr": {"value": 8.05, "low": 6.744, "high": 9.33}} for row in rows}},
        predictions={"ids": ["c0", "c1", "c2"], "label": [-5.0, 0.0, 10.0], **rows},
        slices=[{"tag": "snr_db", "value": v, "n": 2, "metric": "si_sdr", "float": 5.0, "pruned": 5.0, "artifact": 4.9, "low": -1.0, "high": 6.0, "total": change["si_sdr"]} for v in ("-5", "0")],
    ) | more)  # fmt: skip


def words(text):
    return " ".join(" ".join(Page(text).texts).split())


def test_speech_is_told_as_gain_over_the_noisy_input_in_decibels():
    said = words(render(speech()))
    assert "Noisy input" in said and "1.67 dB" in said and "gain +8.05 dB +6.74 to +9.33 dB" in said
    assert "INT8 is better than float in 1 of 3 clips; the change is −0.10 dB in the median" in said
    assert "0.8514" in said and "SI-SDR in dB: output over noisy input" in said and "SI-SDR in dB: INT8 minus float, clip by clip" in said
    assert re.search(r"Clips that lose most to INT8.*?c1 0\.00 dB 11\.00 dB −0\.50 dB −11\.50 dB", said), "the worst stands first"
    assert "3 clips from -11.50 to +0.10" in render(speech())


def test_every_bar_of_the_change_lies_on_one_side_of_zero():
    """Three losses and one gain, so that a bar across zero would hide one."""
    rows = speech()["predictions"] | {"ids": list("abcd"), "label": [0.0] * 4, "float": [0.0] * 4, "artifact": [-0.01, -0.02, -1.0, 0.01]}
    chart = re.search(r"INT8 minus float, clip by clip</figcaption>.*?</svg>", render(speech(predictions=rows)), re.S).group()
    zero = float(re.search(r'class="zero" x1="([\d.]+)"', chart).group(1))
    bars = [(float(x), float(x) + float(width)) for x, width in re.findall(r'class="fill artifact" x="([\d.]+)" y="[\d.]+" width="([\d.]+)" height', chart)]
    bars = bars[:-1]  # the last is the legend's
    assert len(bars) == 3 and all(right <= zero or left >= zero for left, right in bars) and sum(left >= zero for left, _ in bars) == 1


def test_speech_without_one_finite_clip_still_renders():
    silent = speech()["predictions"] | {"artifact": [None] * 3}
    assert "No finite predictions" in render(json.loads(json.dumps(speech(predictions=silent))))


@pytest.fixture
def recorded(tmp_path):
    """What reference and verify leave of three clips of speech, the second of which is golden."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    waves = {key: (0.1 * rng.standard_normal((3, 16000))).astype(np.float32) for key in ("label/speech", "original/speech", "pruned/speech")}
    save_file(waves, tmp_path / "predictions.safetensors")
    save_file({"c1~shorter/input/wave": waves["label/speech"][0], "c1/input/wave": waves["label/speech"][1], "c1/output/speech": waves["pruned/speech"][1]}, tmp_path / "golden.safetensors")
    save_file({"speech": waves["original/speech"]}, tmp_path / "outputs.safetensors")
    described = {"task": "speech", "primary": "speech", "ids": ["c0", "c1", "c2"], "golden": [{"id": "c1~shorter", "derived_from": "c1"}, {"id": "c1", "derived_from": None}]}
    (tmp_path / "reference.json").write_text(json.dumps(described))
    return tmp_path


def test_one_golden_clip_is_drawn_before_and_after(recorded):
    drawn = sound(recorded, recorded / "outputs.safetensors", 16000)
    assert drawn.id == "c1" and drawn.seconds == 1.0 and drawn.top_khz == 8.0
    assert [what for what, _ in drawn.pictures] == ["Noisy input", "Clean speech", "Float", "INT8", "INT8 − float"]
    pictures = dict(drawn.pictures)
    assert pictures["Noisy input"] == pictures["Clean speech"], "the made-up input is the label"
    assert pictures["Float"] == pictures["INT8"] != pictures["Noisy input"]
    lengths = [struct.unpack(">II", picture[16:24]) for picture in pictures.values()]
    assert set(lengths) == {(122, 128)}, "of 256 frequencies two make a row"
    text = render(speech(), (), drawn)
    assert len(text) < 1_000_000 and text.count("data:image/png;base64,") == 5 and len(Page(text).all("image")) == 5


def test_other_tasks_have_no_spectrograms(recorded):
    (recorded / "reference.json").write_text((recorded / "reference.json").read_text().replace('"task": "speech"', '"task": "value"'))
    assert sound(recorded, recorded / "outputs.safetensors", 16000) is None


def test_a_palette_png_decodes_to_its_colours():
    from edgekit import pictures

    levels = np.arange(pictures.LEVELS, dtype=np.uint8).reshape(6, 8)
    data = png(levels, pictures.palette())
    assert data[25] == 3 and pictures.palette().tobytes() in data
    body = data[data.index(b"IDAT") + 4 :]
    np.testing.assert_array_equal(np.frombuffer(zlib.decompressobj().decompress(body), np.uint8).reshape(6, 9)[:, 1:], levels)

"""The page of a comparison: it stands alone, shows what was found, and reads on a phone, by keyboard and in the dark."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re

import numpy as np
import pytest
from typer.testing import CliRunner

import edgekit
from edgekit import cli
from edgekit.errors import ResourceError
from edgekit.parity import html, pictures
from edgekit.parity.result import Bisect, Cell, Change, Comparison, Comparisons, LayerRow, ReleaseDiff, TaskMetric
from tests.browser import CHROMIUM, REASON, Browser
from tests.parity.nets import save_int8_step, save_net, save_step
from tests.test_report import Page

RATE = 16000


def speech(seconds: float = 2.0, count: int = 2) -> np.ndarray:
    """float32 [count, samples]: a voice's harmonics that come and go."""
    t = np.arange(int(RATE * seconds)) / RATE
    phase = 2 * np.pi * np.cumsum(120 + 40 * np.sin(2 * np.pi * 0.7 * t)) / RATE
    voice = 0.1 * sum(np.sin(n * phase) / n for n in range(1, 20)) * (0.5 + 0.5 * np.sin(2 * np.pi * 3 * t)) ** 2
    return np.stack([voice * (1 + 0.1 * i) for i in range(count)]).astype(np.float32)


@pytest.fixture
def denoised(tmp_path, monkeypatch) -> Comparison:
    """Two recordings of a denoiser, B with a hiss and a click."""
    monkeypatch.chdir(tmp_path)
    a = speech()
    b = a + 0.003 * np.random.default_rng(0).standard_normal(a.shape).astype(np.float32)
    b[1, 9000:9100] += 0.3
    np.savez("a.npz", enhanced=a)
    np.savez("b.npz", enhanced=b)
    return edgekit.compare("a.npz", "b.npz", keep=2)


@pytest.fixture
def lost(tmp_path, monkeypatch) -> Comparison:
    """A stream whose B forgets half of its state, with layers ranked."""
    monkeypatch.chdir(tmp_path)
    save_step(tmp_path / "step.onnx")
    save_int8_step(tmp_path / "lost.onnx", loses="c_in")
    found = edgekit.compare("step.onnx", "lost.onnx", stream=True, steps=60, samples=2, keep=1, rate_hz=25.0)
    rows = (LayerRow(1, "lstm/LSTM", "LSTM", "lstm", "y", "y", "step", 5.0, 4.6, 7.3, 0.4, 0.9, expected_db=47.0, verdict="fault"), LayerRow(2, "conv/Conv", "Conv", "conv", "c", "c", "step", 40.0, 41.0, math.inf, 0.01, 0.1, expected_db=40.0, verdict="rounding"))
    return dataclasses.replace(found, bisect=Bisect(rows, (("lstm", 0.9), ("conv", 0.1)), 2))


def labelled(found: Comparison) -> Comparison:
    """With task metrics and two conditions, as a data set gives them."""
    metric = TaskMetric("y", "mae", "mean absolute error", "", "lower", 40, 0.10, 0.14, 0.04, 0.01, 0.07)
    cells = tuple(Cell("b.onnx", name, "y", 40, 0.1, 20.0, is_in, "mae", 0.1, b, b - 0.12, b - 0.08) for name, is_in, b in (("all", True, 0.14), ("no-audio", False, 0.4)))
    return dataclasses.replace(found, metrics=(metric,), conditions=cells)


@pytest.fixture
def pages(tmp_path, denoised, lost) -> dict:
    """{name: file} of every kind of page."""
    release = dataclasses.replace(lost, release=ReleaseDiff("1.2", "1.3", (Change("size", "bundle bytes", 100, 150), Change("recipe", "quantize.observer", "minmax", None))))
    made = {"denoised": denoised, "lost": lost, "labelled": labelled(release)}
    for name, found in made.items():
        html.write(found, tmp_path / f"{name}.html")
    html.write(Comparisons((labelled(lost), dataclasses.replace(labelled(lost), conditions=()))), tmp_path / "several.html")
    return {path.stem: path for path in tmp_path.glob("*.html")}


def test_the_verdict_comes_first_and_everything_has_its_section(pages):
    text = pages["labelled"].read_text()
    page = Page(text)
    order = [text.index(f'id="{key}"') for key in ("why", "drop", "outputs", "layers", "errors", "streams", "conditions", "release", "samples", "open", "provenance")]
    assert order == sorted(order) and text.index('class="verdict fail"') < order[0]
    assert len(set(page.ids)) == len(page.ids) and {link["href"] for link in page.all("a")} <= {f"#{id}" for id in page.ids}
    said = " ".join(page.texts)
    assert "B loses its state" in said and "+0.0400" in said and "+0.0100 to +0.0700" in said and "audio silenced" in said and "+50.0 %" in said
    assert "random numbers" in said, "open points are on the page"


def test_a_page_asks_for_nothing_from_outside(pages):
    for path in pages.values():
        text = path.read_text()
        assert not Page(text).all("script") and not re.search(r"url\(|@import|https?:|(?:src|href)=[\"'](?!#|data:image/png;base64,)", text), path
        assert path.stat().st_size < html.MAX_BYTES


def test_names_from_a_model_cannot_become_markup(denoised):
    evil = "<script>alert(1)</script>`\u202e"
    output = dataclasses.replace(denoised.outputs[0], name=evil, reason=evil)
    text = html.render(dataclasses.replace(denoised, outputs=(output,), reasons=(evil,), a=dataclasses.replace(denoised.a, text=evil, facts={evil: evil})))
    assert "<script" not in text and "\u202e" not in text and "&lt;script&gt;" in text
    Page(text)


def test_what_is_equal_or_not_finite_is_said_and_not_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", y=np.ones((2, 50), np.float32))
    np.savez("nan.npz", y=np.full((2, 50), np.nan, np.float32))
    equal, broken = (html.render(edgekit.compare("a.npz", name, keep=2)) for name in ("a.npz", "nan.npz"))
    assert "every one of 100 values is equal" in equal and 'class="verdict pass"' in equal
    assert "not finite" in broken and 'class="verdict fail"' in broken and "NaN" not in re.sub(r"holds NaN[^<]*", "", broken)
    assert not re.search(r' [dxy]\d?="[^"]*(nan|inf)', equal + broken)


def test_the_page_stays_small_however_much_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    arrays = {f"wave{i}": rng.standard_normal((12, 4 * RATE)).astype(np.float32) for i in range(3)}
    np.savez("a.npz", **arrays)
    np.savez("b.npz", **{name: value + 0.1 for name, value in arrays.items()})
    text = html.render(edgekit.compare("a.npz", "b.npz", keep=12))
    assert len(text) < html.MAX_BYTES and "more samples are not drawn" in text


def test_a_page_that_cannot_be_written_is_one_sentence(denoised, tmp_path):
    with pytest.raises(ResourceError, match="cannot be written"):
        html.write(denoised, tmp_path / "nowhere/x.html")


def test_the_command_line_writes_it_and_says_how_it_was_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_net(tmp_path / "a.onnx")
    save_net(tmp_path / "b.onnx", scale=1.5)
    ran = CliRunner().invoke(cli.app, ["compare", "a.onnx", "b.onnx", "--html", "found.html", "-q"])
    text = (tmp_path / "found.html").read_text()
    assert ran.exit_code == 3 and 'class="verdict fail"' in text and "Made by" in text and [p.name for p in tmp_path.glob("*.part")] == []


# --------------------------------------------------------------------------- pictures


def test_a_tone_is_one_line_of_the_spectrogram_at_its_frequency_and_level():
    wave = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    levels = pictures.spectrogram(wave)
    assert levels.shape == (257, 1 + (RATE - 512) // 128)
    assert (levels.argmax(0) == 32).all()  # 1000 Hz * 512 / 16000
    assert np.allclose(levels.max(0), 20 * np.log10(0.5), atol=0.1)  # full scale is 0 dB
    assert np.median(levels) < -100


def test_what_is_a_waveform_a_map_and_a_frame():
    assert pictures.waveform_of("y", np.zeros((1, 1, 2000), np.float32)).shape == (2000,)
    assert pictures.waveform_of("audio_out", np.zeros((20, 256), np.float32)).shape == (5120,), "chunks of a stream, by their name"
    assert pictures.waveform_of("features", np.zeros((20, 256), np.float32)) is None and pictures.waveform_of("y", np.zeros(100, np.float32)) is None
    assert pictures.map_of(np.zeros((1, 64, 50), np.float32)).shape == (64, 50) and pictures.map_of(np.zeros((3, 200), np.float32)) is None
    for shape in ((4, 3, 8, 32, 24), (1, 8, 32, 24, 3), (3, 32, 24)):
        strip = pictures.frames_of(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
        assert strip.dtype == np.uint8 and strip.shape[0] in (32, 8) and strip.shape[2] == 3 and strip.min() == 0 and strip.max() == 255, shape
    assert pictures.frames_of(np.zeros((4, 1, 32), np.float32)) is None


def test_pictures_of_one_value_are_still_pictures():
    images, _, worst = pictures.maps(np.ones((20, 20)), np.ones((20, 20)))
    assert worst == 0 and {image.shape for image in images} == {(20, 20, 3)}
    images, loudest = pictures.spectrograms(np.zeros(2000), np.zeros(2000))
    assert math.isfinite(loudest) and images[2].dtype == np.uint8


# --------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason=REASON)
def test_in_chromium_every_page_opens_quickly_without_a_word_on_the_console(browser, pages):
    for path in pages.values():
        for width in (390, 1200):
            for scheme in ("light", "dark"):
                seconds = browser.open(path, width, 800, scheme)
                assert seconds < 2, f"{path.name} takes {seconds:.2f} s"
                assert browser.js("document.documentElement.scrollWidth") <= width, f"{path.name} scrolls sideways at {width}"
    assert browser.messages == []
    browser.open(pages["several"], 390)
    assert min(browser.js("[...document.querySelectorAll('.first tbody th')].map(h => h.clientWidth)")) > 60, "names of sides stay words"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason=REASON)
def test_in_chromium_charts_show_data_and_pictures_are_decoded(browser, pages):
    for name, least_charts, least_pictures in (("denoised", 8, 6), ("lost", 5, 1), ("labelled", 6, 1)):
        browser.open(pages[name])
        drawn = browser.js("[...document.querySelectorAll('svg')].map(s => { const b = s.getBBox(); return [s.getAttribute('aria-label') || '', b.width, b.height, [...s.querySelectorAll('path,rect,circle,line.whisker')].length] })")
        assert len(drawn) >= least_charts, (name, len(drawn))
        for label, width, height, marks in drawn:
            assert label and width > 50 and height > 10 and marks > 0, (name, label, width, height, marks)
        empty = browser.js("[...document.querySelectorAll('svg path')].filter(p => (p.getAttribute('d') || '').length < 8 || !(p.getBoundingClientRect().width > 0)).map(p => p.outerHTML.slice(0, 80))")
        assert empty == [], name
        images = browser.js("[...document.images].map(i => [i.alt, i.complete && i.naturalWidth > 0, i.clientHeight])")
        assert len(images) >= least_pictures and all(alt and decoded and height > 20 for alt, decoded, height in images), (name, images)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason=REASON)
def test_in_chromium_landmarks_headings_and_keyboard(browser, pages):
    for path in pages.values():
        browser.open(path, 390)
        marks = browser.js("['header', 'nav', 'main', 'footer'].map(t => document.querySelectorAll(t).length)")
        assert marks == [1, 1, 1, 1] and browser.js("document.documentElement.lang") == "en"
        levels = [int(level) for level in browser.js("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => h.tagName[1])")]
        assert levels.count(1) == 1 and levels[0] == 1
        assert all(b - a <= 1 for a, b in itertools.pairwise(levels)), "no level is skipped"
        seen = []
        for _ in range(200):
            browser.press("Tab", 9)
            at = browser.js("(e => e === document.body ? null : [e.tagName, e.getAttribute('href') || e.getAttribute('aria-label') || e.textContent.slice(0, 20), getComputedStyle(e).outlineStyle])(document.activeElement)")
            if at is None:
                break
            seen.append(at)
        assert seen[0][1] == "#main", "first the link past the navigation"
        links = [href for tag, href, _ in seen if tag == "A"][1:]
        assert links == browser.js("[...document.querySelectorAll('nav a')].map(a => a.getAttribute('href'))")
        regions = [label for tag, label, _ in seen if tag == "DIV"]
        assert regions == browser.js("[...document.querySelectorAll('.scroll')].map(d => d.getAttribute('aria-label'))"), "every table that may scroll is reached"
        assert all(outline != "none" for _, _, outline in seen), "and one sees where one is"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason=REASON)
def test_in_chromium_light_and_dark_are_both_readable(browser, pages):
    def contrast(foreground, background):
        def light(rgb):
            parts = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (int(v) / 255 for v in re.findall(r"\d+", rgb)[:3])]
            return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

        high, low = sorted((light(foreground), light(background)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    colours = {}
    for scheme in ("light", "dark"):
        browser.open(pages["labelled"], 1200, 800, scheme)
        colours[scheme] = browser.js("getComputedStyle(document.body).backgroundColor")
        pairs = browser.js("['body', '.note', '.verdict', '.chip.fail', '.chip.pass', 'nav a', '.card dt', 'td .ci'].map(s => { const e = document.querySelector(s); let b = e; while (getComputedStyle(b).backgroundColor === 'rgba(0, 0, 0, 0)') b = b.parentElement; return [s, getComputedStyle(e).color, getComputedStyle(b).backgroundColor] })")
        for what, foreground, background in pairs:
            if "color(" not in background:  # a mixed one of the heat table
                assert contrast(foreground, background) >= 4.5, (scheme, what, foreground, background)  # WCAG 2.2, AA
    assert colours["light"] != colours["dark"]

"""Self-contained HTML: no network, no script, light and dark, readable on a phone. What all our pages are made of.

Names of clips, layers and recipes come from anywhere, so every text goes through `esc`, and the
page's own policy forbids scripts and requests.
"""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

WIDTH = 360  # of every chart, in its own units; CSS scales it


def document(title: str, header: str, sections: Iterable[tuple[str, str, str]], lead: str = "", footer: str = "") -> str:
    """A whole page.

    Args:
        title: text, for the tab.
        header, lead: HTML at the top, and right before the sections.
        sections: (id, title, HTML); those without HTML are left out.
        footer: HTML after "Written by edgekit.".
    """
    shown = [section for section in sections if section[2]]
    links = "".join(f'<li><a href="#{key}">{esc(name)}</a></li>' for key, name, _ in shown)
    body = "".join(f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{esc(name)}</h2>{content}</section>' for key, name, content in shown)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{esc(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the results</a>
<header>{header}</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main id="main">{lead}{body}</main>
<footer><p>Written by edgekit. {footer}</p></footer>
</body>
</html>
"""


def svg(height: float, title: str, description: str, body: str) -> str:
    return (
        f'<figure class="chart"><figcaption>{esc(title)}</figcaption><svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{esc(title)}. {esc(description)}">{body}</svg></figure>'
    )


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """A table whose first column heads its rows; cells are HTML already. It scrolls sideways alone."""

    def css(i: int) -> str:
        return ' class="n"' if i in numeric else ""

    top = "".join(f'<th scope="col"{css(i)}>{esc(h)}</th>' for i, h in enumerate(head))
    body = "".join("<tr>" + "".join(f'<th scope="row">{c}</th>' if i == 0 else f"<td{css(i)}>{c}</td>" for i, c in enumerate(row)) + "</tr>" for row in rows)
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{esc(caption)}"><table><caption>{esc(caption)}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def esc(value: Any, lines: bool = False) -> str:
    """Text for HTML. Control and direction-changing characters of untrusted names become visible marks."""
    text = "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in ("Cc", "Cf", "Cs") and not (lines and c in "\n\t") else c for c in str(value))
    return html.escape(text, quote=True)


def digits_of(metric: str, unit: str) -> int:
    """Digits behind the point that say something of a metric."""
    return 2 if unit in ("points", "%", "dB") or metric == "pesq" else 4


# charts: 360 units wide, so that their 12-unit text is 12 px on a phone


def scale(low: float, high: float, at_low: float, at_high: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: at_low + (value - low) / span * (at_high - at_low)


def ticks_of(low: float, high: float, about: int) -> list[float]:
    """Round numbers from low to high."""
    span = (high - low) or 1.0
    raw = span / about
    step = 10.0 ** math.floor(math.log10(raw))
    step *= next(m for m in (1, 2, 5, 10) if m * step >= raw * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float) -> str:
    return f"{value:.4g}".replace("-", "−") if abs(value) > 1e-12 else "0"


def axis_x(x: Callable[[float], float], y: float, ticks: Sequence[float]) -> str:
    return "".join(f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="8" y2="{y}"/><text class="small faint" x="{x(t):.1f}" y="{y + 15}" text-anchor="middle">{tick_text(t)}</text>' for t in ticks)


def axis_y(y: Callable[[float], float], ticks: Sequence[float]) -> str:
    return "".join(f'<line class="grid" x1="44" x2="{WIDTH - 8}" y1="{y(t):.1f}" y2="{y(t):.1f}"/><text class="small faint" x="40" y="{y(t) + 4:.1f}" text-anchor="end">{tick_text(t)}</text>' for t in ticks)


def legend(entries: Sequence[tuple[str, str]], y: float, x: float = 44.0) -> str:
    parts = []
    for tone, text in entries:
        parts.append(f'<rect class="fill {tone}" x="{x}" y="{y - 9}" width="10" height="10" rx="2"/><text class="small" x="{x + 15}" y="{y}">{esc(text)}</text>')
        x += 26 + 7 * len(text)
    return "".join(parts)


STYLE = """
:root{--bg:#f7f7f5;--card:#fff;--ink:#1b1f24;--soft:#59626d;--line:#dcdfe3;--float:#5b6675;--pruned:#17728a;--artifact:#b84c10;--total:#6b3fa0;
--good:#17703a;--good-bg:#e2f3e7;--bad:#b3261e;--bad-bg:#fbe6e4;--warn:#855600;--warn-bg:#fdf0d5;--info:#1c5fa8;--info-bg:#e3eefb;--track:#d9dde2;--shade:#1b1f2438;--link:#1c5fa8}
@media(prefers-color-scheme:dark){:root{--bg:#14171b;--card:#1d2126;--ink:#e8eaed;--soft:#a3acb7;--line:#343a42;--float:#a7b1be;--pruned:#5cc0d8;--artifact:#f29a5f;--total:#c3a2f0;
--good:#7bd99a;--good-bg:#173222;--bad:#ff9c93;--bad-bg:#3d1d1b;--warn:#f2c46d;--warn-bg:#382b10;--info:#8fc1ff;--info-bg:#182c45;--track:#3a414a;--shade:#000a;--link:#8fc1ff}}
*{box-sizing:border-box}html{-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:70rem;padding:1rem clamp(.9rem,3vw,2rem) 3rem;background:var(--bg);color:var(--ink);font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:1.7rem;line-height:1.2;margin:1rem 0 .3rem;overflow-wrap:anywhere}h1 small{font-size:1rem;font-weight:400;color:var(--soft)}
h2{font-size:1.2rem;margin:2.2rem 0 .7rem;padding-top:.6rem;border-top:1px solid var(--line)}h3{font-size:1rem;margin:1.2rem 0 .4rem}
small,.note{color:var(--soft);font-size:.85rem}.note{max-width:46rem}a{color:var(--link)}
a:focus-visible,[tabindex]:focus-visible,summary:focus-visible{outline:3px solid var(--info);outline-offset:2px}
code,pre{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.84em;overflow-wrap:anywhere}
.skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:.5rem;background:var(--card);padding:.5rem}
.verdict{display:flex;gap:.8rem;align-items:center;margin:0;padding:.8rem 1rem;border-radius:.6rem;font-size:1.1rem;background:var(--info-bg);color:var(--info)}
.verdict .mark{font-size:1.5rem;line-height:1;font-weight:700}.verdict.pass{background:var(--good-bg);color:var(--good)}.verdict.fail{background:var(--bad-bg);color:var(--bad)}.verdict.inconclusive{background:var(--warn-bg);color:var(--warn)}
nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1rem;list-style:none;margin:.8rem 0 1.2rem;padding:0;font-size:.9rem}nav a{display:inline-block;padding:.25rem 0}
.cards{display:grid;grid-template-columns:repeat(3,1fr);gap:.9rem;list-style:none;margin:0;padding:0}
.card{background:var(--card);border:1px solid var(--line);border-top:4px solid var(--tone);border-radius:.6rem;padding:.8rem 1rem}.card h3{margin:0;color:var(--tone)}
.card.float{--tone:var(--float)}.card.pruned{--tone:var(--pruned)}.card.artifact{--tone:var(--artifact)}.card.total{--tone:var(--total)}
.big{font-size:1.9rem;font-weight:650;margin:.2rem 0 0;line-height:1.1;font-variant-numeric:tabular-nums}.unit{font-size:.9rem;font-weight:400;color:var(--soft);margin-left:.4rem}.card .ci{margin:.1rem 0 .6rem}
dl{margin:0}.card dl div{display:flex;justify-content:space-between;gap:.5rem;font-size:.88rem;border-top:1px solid var(--line);padding:.22rem 0}dt{color:var(--soft)}dd{margin:0;font-variant-numeric:tabular-nums;text-align:right}
.ci{color:var(--soft);font-size:.82rem;white-space:nowrap}.bad{color:var(--bad);font-weight:600;fill:var(--bad)}
/* the shadows at the sides show that a table goes on; the covers in front of them move with its ends */
.scroll{overflow-x:auto;margin:.4rem 0 1rem;min-width:0;background:linear-gradient(90deg,var(--bg) 40%,transparent) 0 0/2rem 100% local no-repeat,linear-gradient(270deg,var(--bg) 40%,transparent) 100% 0/2rem 100% local no-repeat,linear-gradient(90deg,var(--shade),transparent) 0 0/.8rem 100% no-repeat,linear-gradient(270deg,var(--shade),transparent) 100% 0/.8rem 100% no-repeat}
table{border-collapse:collapse;width:100%;font-size:.9rem;border:1px solid var(--line)}
caption{text-align:left;color:var(--soft);font-size:.85rem;padding:0 0 .3rem}th,td{padding:.38rem .6rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
thead th{font-weight:600;color:var(--soft);white-space:nowrap}tbody th{font-weight:500}td code,th code{overflow-wrap:normal}.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.n .ci{display:block}.chip{white-space:nowrap;border-radius:1rem;padding:.1rem .6rem;font-weight:600}.chip.pass{background:var(--good-bg);color:var(--good)}.chip.fail{background:var(--bad-bg);color:var(--bad)}.chip.inconclusive{background:var(--warn-bg);color:var(--warn)}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,21rem),1fr));gap:1rem;align-items:start}
.pair>*{min-width:0}.pair+.pair{margin-top:1rem}.pair.lean{grid-template-columns:1fr}@media(min-width:62rem){.pair.lean{grid-template-columns:minmax(0,2fr) minmax(0,3fr)}}
figure{margin:0;min-width:0}.chart{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.7rem .9rem;max-width:34rem}.chart figcaption{font-weight:600;font-size:.9rem;margin-bottom:.4rem}
svg{display:block;width:100%;height:auto}svg text{font-size:12px;fill:var(--ink);font-family:inherit}svg text.small{font-size:11px}svg text.faint{fill:var(--soft)}
.float{--c:var(--float)}.pruned{--c:var(--pruned)}.artifact{--c:var(--artifact)}.total{--c:var(--total)}.track{--c:var(--track)}
.fill,.dot,rect.track{fill:var(--c)}.whisker{stroke:var(--c);stroke-width:4;stroke-linecap:round;opacity:.55}.error{stroke:var(--ink);stroke-width:1.5}
.grid{stroke:var(--line)}.zero{stroke:var(--soft)}line.limit{stroke:var(--bad);stroke-dasharray:4 3;stroke-width:1.5}svg text.limit{fill:var(--bad);font-size:11px}
.points{stroke:var(--c);stroke-width:4.5;stroke-linecap:round;opacity:.45;fill:none}.outline{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round}.outline.artifact{stroke-dasharray:5 2}
.clips{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,17rem),1fr));gap:1rem}.clip{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.7rem;font-size:.9rem;overflow-wrap:anywhere}
.clip img{width:100%;height:auto;border-radius:.3rem;display:block;image-rendering:auto}.wave{margin:.4rem 0}.wave path{stroke:var(--pruned);stroke-width:1.4;fill:none}
.facts div{display:grid;grid-template-columns:minmax(8rem,13rem) 1fr;gap:.3rem 1rem;padding:.3rem 0;border-bottom:1px solid var(--line);font-size:.9rem}.facts dd{text-align:left;min-width:0;overflow-wrap:anywhere}
.points.strong{opacity:.85;stroke-width:5.5}.row small{display:block}svg.wide{height:3.6rem;margin-bottom:.4rem}.area{fill:var(--c);opacity:.75}.outline.solid{stroke-dasharray:none;stroke-width:1.6}
.shots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,17rem),1fr));gap:1rem;align-items:start}.shots .wide{grid-column:1/-1}.shots figure{min-width:0}.shots figcaption{margin-top:.4rem}
.three{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,15rem),1fr));gap:.6rem;margin-top:.5rem}.three small{display:block}.clip img.pixels{image-rendering:pixelated;height:8rem;border-radius:.2rem}
.keep{white-space:nowrap}.text{display:block;min-width:16rem}.card h2{margin:0;padding:0;border:0;font-size:1rem;color:var(--tone)}.first tbody th{position:sticky;left:0;background:var(--bg);max-width:9rem}.first th code{display:block;min-width:6.5rem;max-width:9rem;overflow-wrap:anywhere}.heat{display:block;border-radius:.3rem;padding:.15rem .4rem}.heat.beyond{outline:2px solid var(--bad);outline-offset:-2px}.big .name{font-size:1.2rem;overflow-wrap:anywhere}ul.note{padding-left:1.1rem}
pre{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.8rem;overflow-x:auto;overflow-wrap:normal}details{margin:.6rem 0}summary{cursor:pointer;padding:.3rem 0}footer{margin-top:3rem;color:var(--soft);font-size:.85rem}
@media(max-width:44rem){th,td{padding:.35rem .4rem}table{font-size:.84rem}.ci{font-size:.76rem}.cards{grid-template-columns:1fr}.facts div{grid-template-columns:1fr}body{padding-top:.7rem}}
@media print{body{max-width:none}nav,.skip{display:none}section{break-inside:avoid}}
"""

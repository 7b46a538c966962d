"""The HTML building blocks of the report's sections, and the style and script of the page.

Both are embedded in the page, so a report needs no network.
"""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
from typing import Any

from pretrain.redaction import redacted


def text(value: Any) -> str:
    """A value as escaped text without secrets."""
    words = {None: "null", True: "true", False: "false"}  # as in a config
    return html.escape(words[value] if value is None or isinstance(value, bool) else redacted(str(value)))


def table(rows: Sequence[Sequence[str]], heads: Sequence[str] = ()) -> str:
    """A table of cells that are already HTML; empty if there are no rows."""
    if not rows:
        return ""
    head = "<tr>" + "".join(f"<th>{cell}</th>" for cell in heads) + "</tr>" if heads else ""
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table>{head}{body}</table></div>'


def when(seconds: float) -> str:
    """A point in time, empty for 0."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else ""


STYLE = """
:root { color-scheme: light dark; --fg: #1c2024; --dim: #60646c; --bg: #ffffff; --card: #f6f7f9; --line: #dfe1e6;
  --c0: #2563eb; --c1: #dc6803; --c2: #16a34a; --c3: #c11574; --c4: #0e7490; --c5: #9333ea;
  --c6: #a16207;  --c7: #4b5563; --bad: #c11515; --mark: #8b8d98; }
@media (prefers-color-scheme: dark) { :root { --fg: #e6e8eb; --dim: #9ba1a6; --bg: #121416; --card: #1b1e21;
  --line: #2f3438; --c0: #6ea8fe; --c1: #f5a356; --c2: #5fd38a; --c3: #f27bb4; --c4: #5cc8dd; --c5: #c084fc;
  --c6: #e0b84c; --c7: #a3abb5; --bad: #ff7b7b; --mark: #757b82; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--fg); background: var(--bg); margin: 0 auto;
  max-width: 1180px; padding: 24px; }
h1 { font-size: 1.5rem; margin: 0 0 4px; } h2 { font-size: 1.15rem; margin: 36px 0 10px; }
p.dim, .dim, small { color: var(--dim); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 14px; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 8px 10px; }
figcaption { font-weight: 600; font-size: .9rem; display: flex; gap: 8px; align-items: baseline; }
figcaption output { margin-left: auto; font-weight: 400; font-size: .8rem; color: var(--dim); text-align: right; }
svg { width: 100%; height: auto; display: block; }
svg text { font-size: 11px; fill: var(--dim); } svg text.y { text-anchor: end; } svg text.x { text-anchor: middle; }
svg text.axis { text-anchor: end; }
.grid { stroke: var(--line); } .cursor { stroke: var(--dim); }
polyline { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
.mark line { stroke: var(--mark); stroke-dasharray: 3 3; stroke-width: 1.4; }
.mark.skipped_update line, .mark.bad_samples line, .mark.rollback line { stroke: var(--bad); }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td { overflow-wrap: break-word; } .state, td:first-child { white-space: nowrap; }
.wide td:first-child, .wide th:first-child { position: sticky; left: 0; background: var(--bg); }
.name { display: inline-block; margin-right: 14px; }
.facts { max-width: 44em; } .facts td:first-child { color: var(--dim); width: 14em; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px; overflow-x: auto;
  font-size: .82rem; white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: 6px 0; } details summary { cursor: pointer; color: var(--dim); }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 6px; }
.state { padding: 1px 8px; border-radius: 10px; border: 1px solid var(--line); font-size: .8rem; }
.wide { overflow-x: auto; } img { max-width: 100%; background: #fff; border-radius: 6px; }
""" + "\n".join(
    f"polyline.c{i}, circle.c{i} {{ stroke: var(--c{i}); }}\n"
    f"circle.c{i} {{ fill: var(--c{i}); }} .key.c{i} {{ background: var(--c{i}); }}"
    for i in range(8)
)

# Shows the values under the pointer; everything else works without it.
SCRIPT = """
for (const figure of document.querySelectorAll('.chart')) {
  const {x, curves} = JSON.parse(figure.dataset.chart);
  const svg = figure.querySelector('svg'), out = figure.querySelector('output'), cursor = svg.querySelector('.cursor');
  const short = v => Math.abs(v) >= 1e6 || (v !== 0 && Math.abs(v) < 1e-3) ? v.toExponential(2) : +v.toPrecision(5);
  svg.addEventListener('pointermove', event => {
    const place = svg.createSVGPoint(); place.x = event.clientX; place.y = event.clientY;
    const pixel = place.matrixTransform(svg.getScreenCTM().inverse()).x;
    const step = x[0] + (pixel - x[2]) / (x[3] - x[2]) * (x[1] - x[0]);
    let at = null;
    const texts = curves.map(curve => {
      let best = 0;
      for (let i = 1; i < curve.steps.length; i++)
        if (Math.abs(curve.steps[i] - step) < Math.abs(curve.steps[best] - step)) best = i;
      at = at === null ? curve.steps[best] : at;
      return (curves.length > 1 ? curve.name + ' ' : '') + short(curve.values[best]);
    });
    out.textContent = 'step ' + at + ': ' + texts.join(' · ');
    cursor.setAttribute('x1', pixel); cursor.setAttribute('x2', pixel);
  });
  svg.addEventListener('pointerleave', () => {
    out.textContent = ''; cursor.setAttribute('x1', -9); cursor.setAttribute('x2', -9);
  });
}
"""

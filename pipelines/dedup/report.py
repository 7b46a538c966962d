"""The pairs side by side, in one self-contained HTML file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from pipelines.dedup.matching import Match
from pipelines.dedup.sets import ImageSet
from pretrain.data.images.decode import open_image
from pretrain.errors import BadSample
from pretrain.files import write_atomic
from pretrain.names import printable, shown

MOST_SHOWN = 500
THUMBNAIL = 160
STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;color:#222;background:#fff}
table{border-collapse:collapse}td,th{padding:.4rem .8rem;text-align:left;border-bottom:1px solid #ddd}
img{max-width:160px;max-height:160px;background:#eee}code{font-size:13px}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}td,th{border-color:#444}img{background:#333}}"""


class Pair(NamedTuple):
    """An upstream image, the test image that it shows, and how the match was found."""

    part: int
    index: int
    key: str
    test: ImageSet
    test_part: int
    test_index: int
    test_key: str
    match: Match


def write_report(path: Path, upstream: ImageSet, pairs: Sequence[Pair], summary: dict[str, Any]) -> None:
    """Writes the file; the least certain pairs come first, since they are the ones to review."""
    shown = sorted(pairs, key=lambda pair: pair.match.score)[:MOST_SHOWN]
    title = f"{summary['num_dropped']:,} of {summary['num_upstream']:,} images of {upstream.name} show test images"
    found = ", ".join(f"{count:,} × {how}" for how, count in summary["found"].items()) or "none"
    more = f" The {MOST_SHOWN} least certain are shown." if len(pairs) > MOST_SHOWN else ""
    rows = "\n".join(_row(upstream, pair) for pair in shown)
    text = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Duplicates</title><style>{STYLE}</style>
<h1>{html.escape(title)}</h1>
<p>Against {html.escape(", ".join(summary["against"]))} ({summary["num_test"]:,} images). Found: {html.escape(found)}.
Threshold {summary["threshold"]:g}, hash radius {summary["radius"]}.{more}</p>
<table><tr><th>training image</th><th>test image</th><th>score</th><th>what</th></tr>
{rows}
</table></html>
"""
    write_atomic(path, printable(text))


def _row(upstream: ImageSet, pair: Pair) -> str:
    left = _thumbnail(upstream.image(pair.part, pair.index))
    right = _thumbnail(pair.test.image(pair.test_part, pair.test_index))
    place = f"{upstream.parts[pair.part]} {pair.key}" if not upstream.files else pair.key
    return (
        f"<tr><td>{left}<br><code>{html.escape(shown(place))}</code></td>"
        f"<td>{right}<br><code>{html.escape(pair.test.name)} {html.escape(shown(pair.test_key))}</code></td>"
        f"<td>{pair.match.score:.3f}</td><td>{html.escape(pair.match.how)}</td></tr>"
    )


def _thumbnail(data: bytes) -> str:
    try:
        image = Image.fromarray(open_image(data).decode(THUMBNAIL, THUMBNAIL))
    except BadSample:  # an exact copy of a file that cannot be decoded
        return "(cannot be decoded)"
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'

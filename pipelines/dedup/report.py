"""The pairs side by side, in one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.dedup.matching import Match
from pipelines.dedup.sets import ImageSet, Named
from pipelines.pages.pictures import Picture, thumbnail
from pipelines.pages.templates import render
from pretrain.errors import BadSample
from pretrain.files import write_atomic
from pretrain.names import shown

MOST_SHOWN = 500


class Pair(NamedTuple):
    """An upstream image, the test image that it shows, and how the match was found."""

    part: int
    index: int
    named: Named
    test: ImageSet
    test_part: int
    test_index: int
    test_name: str
    match: Match


def write_report(path: Path, upstream: ImageSet, pairs: Sequence[Pair], summary: dict[str, Any]) -> None:
    """Writes the file; the least certain pairs come first, since they are the ones to review."""
    chosen = sorted(pairs, key=lambda pair: pair.match.score)[:MOST_SHOWN]
    found = ", ".join(f"{count:,} × {how}" for how, count in summary["found"].items()) or "none"
    more = f" The {MOST_SHOWN} least certain are shown." if len(pairs) > MOST_SHOWN else ""
    about = (
        f"Against {', '.join(summary['against'])} ({summary['num_test']:,} images). Found: {found}. Threshold "
        f"{summary['threshold']:g}, hash radius {summary['radius']}.{more}"
    )
    title = f"{summary['num_dropped']:,} of {summary['num_upstream']:,} images of {upstream.name} show test images"
    rows = [_row(upstream, pair) for pair in chosen]
    write_atomic(path, render("duplicates.html", title=title, about=about, pairs=rows))


def _row(upstream: ImageSet, pair: Pair) -> dict[str, Any]:
    test = pair.test.image(pair.test_part, pair.test_index)
    return {
        "train": {
            "picture": _thumbnail(upstream.image(pair.part, pair.index)),
            "name": shown(pair.named.name),
        },
        "test": {"picture": _thumbnail(test), "name": f"{pair.test.name} {shown(pair.test_name)}"},
        "score": f"{pair.match.score:.3f}",
        "how": pair.match.how,
    }


def _thumbnail(data: bytes) -> Picture | None:
    """None for an exact copy of a file that cannot be decoded."""
    try:
        return thumbnail(data)
    except BadSample:
        return None

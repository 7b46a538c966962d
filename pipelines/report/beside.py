"""The results of other stages for a run: the card of its data, a search for duplicates, an export."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pretrain.data.storage.card import CARD_FILE, Card
from pretrain.errors import DataError

SHOWN_DUPLICATES = 12
# Fields of a card that are shown at once; the others can be unfolded.
FIRST_FACTS = frozenset(
    {
        *("name", "split", "source", "release", "licence", "homepage", "num_samples", "num_classes", "class_counts"),
        *("short_sides", "held_out", "selection", "quarantined", "dropped"),
    }
)
_PROGRAM = re.compile(r"^([\w-]+):\n\n```python\n(.*?)```", re.MULTILINE | re.DOTALL)


def card_of(shards: object) -> dict[str, Any] | None:
    """The card of a packed set in a local folder; None if it has none."""
    if not shards or not (Path(str(shards)) / CARD_FILE).is_file():
        return None
    try:
        facts = Card.load(str(shards)).facts()
    except DataError as error:
        return {"name": shards, "problem": str(error), "rows": [], "more": []}
    rows = {chosen: [fact for fact in facts if (fact[0] in FIRST_FACTS) == chosen] for chosen in (True, False)}
    return {"name": shards, "problem": "", "rows": rows[True], "more": rows[False]}


def duplicates_of(folder: Path) -> dict[str, Any]:
    """The result of ``dedup``: its counts in words, and the most certain duplicates.

    Raises:
        DataError: it is not such a folder.
    """
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        lines = [json.loads(line) for line in (folder / "drop.jsonl").read_text(encoding="utf-8").splitlines()]
        found = ", ".join(f"{count:,} × {how}" for how, count in summary["found"].items())
        text = (
            f"{summary['num_dropped']:,} of the {summary['num_upstream']:,} images of {summary['upstream']} show one "
            f"of the {summary['num_test']:,} images of {', '.join(summary['against'])}"
            f"{f' ({found})' if found else ''}; the pairs are in {folder / 'report.html'}."
        )
        surest = sorted(lines, key=lambda line: -float(line["score"]))[:SHOWN_DUPLICATES]
        rows = [[line.get("image") or line["file"], line["because"], f"{line['score']:.3f}"] for line in surest]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"--duplicates {folder}: not a result of dedup ({error!r}); make one with python -m pipelines dedup"
        ) from error
    return {"text": text, "rows": rows}


def programs_of(folder: Path) -> list[dict[str, str]]:
    """The programs in the README of an export that load it.

    Raises:
        DataError: it is not such a folder.
    """
    try:
        found = _PROGRAM.findall((folder / "README.md").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--export {folder}: not an exported folder ({error}); make one with export") from error
    if not found:
        raise DataError(f"--export {folder}: its README.md has no program; export to --format timm or hf")
    return [{"name": name, "code": code} for name, code in found]

"""Generated sections of docs/import_export.md, between a line that begins one and a line that ends it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "import_export.md"


def section_of(page: str, name: str) -> str:
    """The generated text of a section, without the lines around it."""
    found = _pattern(name).search(page)
    assert found is not None, f"{PAGE} has no section {name}"
    return found[2].strip("\n")


def with_section(page: str, name: str, text: str) -> str:
    """The page with ``text`` as the section ``name``, which it has."""
    section_of(page, name)
    return _pattern(name).sub(lambda found: f"{found[1]}\n\n{text}\n\n{found[3]}", page)


def table(header: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> list[str]:
    """The lines of a table."""
    lines = [header, ("---",) * len(header), *rows]
    return [f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines]


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- python -m tests\.sweeps: {name} -->)(.*?)(<!-- end of {name} -->)", re.DOTALL)

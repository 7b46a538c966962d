"""Every path and symbol that docs/adding.md names is in the tree."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "adding.md").read_text()

PATH = re.compile(r"(?:pretrain|pipelines|tests|docs|configs)/[\w./]*\w/?")
NAMES = r"`\w+`(?:(?:,| and) `\w+`)*"
SYMBOLS = re.compile(rf"({NAMES}) (?:of|in)\s+`([\w/]+\.py)`")


def missing(page: str) -> list[str]:
    """Paths and symbols that a page names and the tree does not have; paths with ``NAME`` in them are the reader's."""
    page = re.sub(r"\s+", " ", page)
    paths = {path for path in PATH.findall(page) if "NAME" not in path}
    absent = sorted(path for path in paths if not (ROOT / path).exists())
    for names, path in SYMBOLS.findall(page):
        if "NAME" not in path and (ROOT / path).is_file():
            known = defined(ROOT / path)
            absent += [f"{name} of {path}" for name in re.findall(r"`(\w+)`", names) if name not in known]
    return absent


def defined(path: Path) -> set[str]:
    """Functions, classes and variables at the top of a module."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_what_the_page_names_exists() -> None:
    assert len(SYMBOLS.findall(re.sub(r"\s+", " ", PAGE))) > 30, "the page writes `SYMBOL` of `PATH`"
    assert missing(PAGE) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One row in `STAGES` of `pipelines/nowhere.py`.", ["pipelines/nowhere.py"]),
        ("One row in `STAGS` of\n`pipelines/__main__.py`.", ["STAGS of pipelines/__main__.py"]),
        ("`STAGES` and `STAGS` of `pipelines/__main__.py`", ["STAGS of pipelines/__main__.py"]),
        ("See tests/unit/nowhere.", ["tests/unit/nowhere"]),
        ("`STAGES` of `pipelines/__main__.py`, tests/unit, and a class in `pipelines/NAME/cli.py`", []),
    ],
)
def test_what_does_not_exist_is_found(text: str, expected: list[str]) -> None:
    assert missing(text) == expected

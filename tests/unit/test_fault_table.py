"""docs/faults.md names tests: each must exist, or the table promises what nobody checks."""

from __future__ import annotations

import ast
import re

import pytest

from tests.command import ROOT

PAGE = (ROOT / "docs/faults.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))
TABLE = re.compile(r"(?m)^\| fault \|.*\n\|-.*\n((?:\| .*\n)+)")


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_it_exists(path: str, name: str) -> None:
    tree = ast.parse((ROOT / path).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_row_names_one() -> None:
    rows = [row for table in TABLE.findall(PAGE) for row in table.splitlines()]
    assert len(rows) >= 40 and all(re.search(r"`tests/[\w/]+\.py::\w+`", row) for row in rows)

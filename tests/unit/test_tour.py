"""The tour of the code in docs/architecture.md leads to functions that exist."""

from __future__ import annotations

import ast
import re

import pytest

from tests.command import ROOT

PAGE = ROOT / "docs/architecture.md"
STOP = re.compile(r"\[`([\w.]+)`\]\(([^)]+\.py)\)")


def stops() -> list[tuple[str, str]]:
    """(name, path relative to docs/) of every linked function or class of the tour."""
    tour = PAGE.read_text().split("## Tour of the code\n")[1].split("\n## ")[0]
    assert len(re.findall(r"^\d+\. ", tour, flags=re.MULTILINE)) == 10
    return STOP.findall(tour)


def defined(text: str) -> set[str]:
    """Functions and classes of a module, methods as CLASS.METHOD."""
    names = set()
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return names


@pytest.mark.parametrize(("name", "path"), stops())
def test_a_stop_of_the_tour_exists(name: str, path: str) -> None:
    file = (PAGE.parent / path).resolve()
    assert file.is_relative_to(ROOT) and name in defined(file.read_text()), f"{path} does not define {name}"


def test_a_name_that_is_missing_would_be_found() -> None:
    assert "Trainer.fly" not in defined("class Trainer:\n    def fit(self): ...\n")

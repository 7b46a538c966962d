""".ci/run in a tree of its own: it fails when tests fail, and removes the environment only if it made it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.command import Commands

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree whose make test makes an environment; fast and slow tests end with the codes in two files."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@" >>calls\nexit $(cat slow)\n')
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "Makefile").write_text(
        "test:\n\tmkdir -p .venv/bin && cp python .venv/bin/python\n\texit $$(cat fast)\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("fast", "slow", "expected"),
    [(0, 0, 0), (0, 5, 0), (0, 1, 1), (0, 2, 2), (0, 137, 137), (1, 0, 1)],
)
def test_its_code_is_that_of_the_tests(command: Commands, tree: Path, fast: int, slow: int, expected: int) -> None:
    (tree / "fast").write_text(str(fast))
    (tree / "slow").write_text(str(slow))
    assert command.run(".ci/run", cwd=tree).returncode == expected
    assert (tree / "calls").exists() == (fast == 0)
    assert not (tree / ".venv").exists()


def test_an_environment_that_was_there_stays(command: Commands, tree: Path) -> None:
    (tree / "fast").write_text("0")
    (tree / "slow").write_text("0")
    (tree / ".venv").mkdir()
    command.run(".ci/run", cwd=tree, check=True)
    assert (tree / ".venv").exists()
    assert "-m pytest -m slow" in (tree / "calls").read_text()

"""Runs each group of cases once, in a process of its own."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.command import ROOT, clean_environment
from tests.cuda.simulation import UNAVAILABLE, is_possible

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="session")
def simulate() -> Callable[..., Results]:
    """(group, cases or none for all) → case → result, see ``tests.cuda.worker``; runs each group once."""
    if not is_possible():
        pytest.skip(UNAVAILABLE)
    return functools.cache(run_group)


@pytest.fixture(scope="session")
def on_the_cpu() -> Callable[..., Results]:
    """``simulate`` for groups that need no simulated GPU."""
    return functools.cache(run_group)


def run_group(group: str, *cases: str) -> Results:
    """The results of a group in a new process."""
    command = [sys.executable, "-m", "tests.cuda.worker", group, *cases]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout)

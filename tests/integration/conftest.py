"""Data for the jobs: the digits, packed once, where the configs expect them."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator

import pytest

from tests.command import ROOT, Commands

PACKS = {
    "data/demo/upstream": ["--classes", "0-4", "--holdout", "0.2"],
    "data/demo/downstream": ["--classes", "5-9", "--holdout", "0.5", "--per-class", "10"],
}


@pytest.fixture(scope="session")
def digits() -> Iterator[None]:
    """The demo's data sets; packing what is there already does nothing. One test process at a time."""
    commands = Commands()
    (ROOT / "data").mkdir(exist_ok=True)
    with open(ROOT / "data" / ".tests.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for folder, options in PACKS.items():
            commands.run("python", "-m", "pipelines", "pack", "digits", "--out", ROOT / folder, *options, check=True)
    yield
    commands.close()

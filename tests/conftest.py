"""Fixtures for all tests: pools of ranks, and command lines in a clean environment."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import psutil
import pytest

from tests.command import ROOT, Commands
from tests.pool import Nursery, Pool
from tests.slow import is_second_case, unmatched

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of a shell's `make test &`: our children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


GIB_PER_PROCESS = 4.0  # a test process with its pools of 1, 2 and 4 ranks, at their largest
MOST_PROCESSES = 12  # with more, the longest file decides, and each pays for the start of its pools


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """How many test processes ``--numprocesses auto`` starts; None leaves PYTEST_XDIST_AUTO_NUM_WORKERS in force."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    return num_processes(len(os.sched_getaffinity(0)), psutil.virtual_memory().available / 2**30)


def num_processes(cores: int, free_gib: float) -> int:
    """One process per core, as far as the free memory holds their pools; at least one."""
    return max(1, min(cores, int(free_gib / GIB_PER_PROCESS), MOST_PROCESSES))


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks the second cases as slow; an entry that matches no test is an error."""
    names: dict[str, list[str]] = {}
    for item in items:
        file = item.path.relative_to(ROOT / "tests").as_posix()
        names.setdefault(file, []).append(item.name)
        if is_second_case(file, item.name):
            item.add_marker(pytest.mark.slow)
    if not any("::" in argument for argument in config.args):
        stale = {file: found for file in names if (found := unmatched(file, names[file]))}
        if stale:
            raise pytest.UsageError(f"tests/slow.py has entries that match no test: {stale}")


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture(scope="session")
def pool1(nursery: Nursery) -> Iterator[Pool]:
    """One rank in a group of its own."""
    pool = Pool(1, nursery)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def pool2(nursery: Nursery) -> Iterator[Pool]:
    """Two ranks in one gloo group, started once."""
    pool = Pool(2, nursery)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def pool4(nursery: Nursery) -> Iterator[Pool]:
    """Four ranks in one gloo group, started once."""
    pool = Pool(4, nursery)
    yield pool
    pool.close()


@pytest.fixture
def command() -> Iterator[Commands]:
    """Runs command lines with a clean environment and a time limit; what still runs at the test's end is killed."""
    commands = Commands()
    yield commands
    commands.close()

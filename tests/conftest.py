"""Fixtures for all tests: pools of ranks, and command lines in a clean environment."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.command import Commands
from tests.pool import Nursery, Pool

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of a shell's `make test &`: our children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


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

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def benchmark_line() -> Callable[[str, Callable[[], Any]], float]:
    """Times one call, prints it (``pytest -s``) and returns the seconds."""

    def timed(name: str, call: Callable[[], Any]) -> float:
        started = time.perf_counter()
        call()
        elapsed = time.perf_counter() - started
        print(f"{name}: {elapsed * 1e3:.1f} ms")
        return elapsed

    return timed

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest

# For the S3 server on loopback. Set before any test: data processes have the environment of the first one's start.
os.environ.update(AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b", AWS_DEFAULT_REGION="us-east-1")


@pytest.fixture
def benchmark_line() -> Callable[[str, Callable[[], Any]], float]:
    """Times one call, prints it (``pytest -s``) and returns the processor's seconds, which a busy machine leaves."""

    def timed(name: str, call: Callable[[], Any]) -> float:
        started = time.process_time()
        call()
        elapsed = time.process_time() - started
        print(f"{name}: {elapsed * 1e3:.1f} ms")
        return elapsed

    return timed

"""In each layout a job on a simulated GPU trains, stops, saves, resumes, and evaluates every kind of set."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cuda.jobs import CASES


@pytest.mark.parametrize("layout", CASES)
def test_job(simulate: Any, layout: str) -> None:
    found = simulate("jobs")[layout]
    assert found["error"] is None, found["trace"]

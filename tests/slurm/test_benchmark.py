"""The benchmark of restarts, in its smallest form."""

from __future__ import annotations

import json

import pytest

from tests.command import Commands
from tests.slurm.cluster import missing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def test_two_faults_and_a_requeue() -> None:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    commands = Commands()
    done = commands.run("python", "-m", "benchmarks.restart", "--tiny", timeout_s=1400, check=True)
    commands.close()
    result = json.loads(done.stdout.splitlines()[-1])
    kept, queued = result["variants"]["in the allocation"], result["variants"]["requeued"]
    assert (kept["faults"], kept["jobs_requeued"]) == (2, 0), done.stdout
    assert (queued["faults"], queued["jobs_requeued"]) == (1, 1), done.stdout
    assert kept["bit_identical"] and queued["bit_identical"]
    assert result["ratio"] == pytest.approx(kept["lost_s"] / queued["lost_s"], rel=1e-2)

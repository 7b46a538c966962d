"""Faults in real runs, and what ``goodput`` says that they cost, beside clocks of the test.

A clock runs around the loop's own methods and inside what is injected, so it bounds each part however busy the machine
is; and every line of the metrics has the time of day at which it was written.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.runs.goodput import Account
from pipelines.runs.run_record import RunRecord
from pretrain.records import read_lines
from pretrain.telemetry.metrics import read_metrics
from tests.command import Commands, kill_tree
from tests.faults.job import Faults, job
from tests.faults.test_stop import ranks_of
from tests.integration.small_run import pretrain, verdict
from tests.pool import Pool

NEAR_S = 0.05  # times are integer milliseconds, and a part has a charge for each step
SECOND = 1.0


def seconds_of(account: Account, index: int) -> dict[str, float]:
    return {part: cost.ms / 1000 for part, cost in account.parts[index].items()}


def test_slow_data_on_one_rank_and_a_slow_evaluation(digits: None, pool2: Pool, tmp_path: Path) -> None:
    settings = ["evaluation.every=5 steps", "duration=6 steps"]
    slow = {"slow_data_s": (1, 0.3), "slow_evaluation_s": 0.7}
    began = time.time()
    results = [pool2.run(job, str(tmp_path), settings, Faults(**slow, **more)) for more in ({"stop_at": (4, 0)}, {})]
    ended = time.time()
    account = Account.of(RunRecord.read(tmp_path / "run"))
    for index, (clock, other) in enumerate([rank["clock"] for rank in ranks] for ranks in results):
        seconds = seconds_of(account, index)
        assert other["data"] - NEAR_S <= seconds["data"] <= clock["step"] + NEAR_S, "the rank that others wait for"
        assert seconds["data"] + seconds["step"] >= clock["step"] - NEAR_S
        assert seconds["save"] >= clock["save"] - NEAR_S
        assert ("evaluate" in clock) == ("evaluate" in seconds) == (index == 1)
        if index == 1:
            assert clock["evaluate"] - NEAR_S <= seconds["evaluate"] <= clock["run_evaluation"] + NEAR_S
        assert sum(seconds.get(part, 0.0) for part in ("data", "step", "save", "evaluate", "shutdown")) >= clock["fit"]
    stop, *more = account.incidents
    assert not more and (stop.kind, stop.step, stop.cause) == ("requeue", 4, "stopped on request (the test)")
    assert account.attempts[1].ended_ms / 1000 <= ended + NEAR_S
    assert account.attempts[1].began_ms / 1000 >= began - NEAR_S, "not when the process of both runs began"
    assert sum(cost.ms for cost in account.totals.values()) == account.wall_ms


def crashing_job(folder: str, faults: Faults) -> None:
    with pytest.raises(RuntimeError, match="a bug of the test"):
        job(folder, [], faults)


def test_a_crash_is_recorded_with_its_rank_and_cause(digits: None, pool1: Pool, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pool1.run(crashing_job, str(tmp_path), Faults(bug_at=7))
    times = {(line["kind"], line["step"]): line["time"] for line in lines_of(run)}
    pool1.run(job, str(tmp_path), [])
    account = Account.of(RunRecord.read(run))
    (crash,) = account.incidents
    assert (crash.kind, crash.step, crash.cause) == ("crash", 7, "RuntimeError: a bug of the test")
    assert crash.where.startswith("rank 0 on ")
    repeated = seconds_of(account, 0)["repeated"]
    assert repeated == pytest.approx(times["train", 7] - times["save", 4], abs=SECOND)
    assert [one.outcome for one in account.attempts] == ["crash", "complete"]


def lines_of(run: Path) -> list[dict[str, Any]]:
    return read_lines(run / "metrics.jsonl").values


def wait_for_step(run: Path, step: int, process: Any) -> None:
    deadline = time.monotonic() + 240
    while max(read_metrics(run / "metrics.jsonl"), default=0) < step:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_a_kill_and_a_signal(command: Commands, digits: None, tmp_path: Path) -> None:
    run, changes = tmp_path / "run", "resume.allow_changes=[duration]"
    long = ("duration=2000 steps", "checkpoint.every=20 steps")
    process = command.start(*pretrain("deepspeed", tmp_path, *long))
    wait_for_step(run, 30, process)
    kill_tree(process)
    killed = time.time()
    process.wait()
    first = lines_of(run)
    started = time.time()
    process = command.start(*pretrain("torchrun", tmp_path, *long))
    wait_for_step(run, max(line["step"] for line in first) + 5, process)
    os.kill(ranks_of("pretrain/run.py", tmp_path)[-1], signal.SIGTERM)
    process.communicate(timeout=240)
    stopped, step = time.time(), verdict(run)["step"]
    command.run(*pretrain("torchrun", tmp_path, f"duration={step + 3} steps", changes), check=True)
    account = Account.of(RunRecord.read(run))
    assert [one.outcome for one in account.attempts] == ["crash", "requeue", "complete"]

    saved = min(read_metrics(run / "metrics.jsonl", "resume"))
    at_save = next(line["time"] for line in first if (line["kind"], line["step"]) == ("save", saved))
    lost = seconds_of(account, 0)
    assert lost["repeated"] == pytest.approx(first[-1]["time"] - at_save, abs=SECOND)
    assert first[-1]["time"] - NEAR_S <= account.attempts[0].ended_ms / 1000 <= killed + NEAR_S
    gaps = [parts["queue"].ms / 1000 for parts in account.parts[1:]]
    assert gaps[0] >= started - killed - NEAR_S
    assert account.attempts[1].began_ms / 1000 >= started - NEAR_S
    assert account.attempts[1].ended_ms / 1000 <= stopped <= account.attempts[2].began_ms / 1000 + NEAR_S
    crash, stop = account.incidents
    restart = seconds_of(account, 1)
    assert (crash.kind, crash.attempt) == ("crash", 0)
    assert crash.cost.ms / 1000 == pytest.approx(
        lost["repeated"] + lost.get("lost", 0) + gaps[0] + restart["startup"] + restart["load"], abs=0.002
    )
    assert (stop.kind, stop.step) == ("requeue", step) and "repeated" not in restart
    assert stop.cause.startswith("stopped on request (")
    assert sum(cost.ms for cost in account.totals.values()) == account.wall_ms

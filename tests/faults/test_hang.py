"""A rank that stops answering, or never comes: found within its phase's limit, named, and the job ends with a code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.runs.goodput import Account
from pipelines.runs.run_record import RunRecord
from pretrain.distributed.watchdog import EXIT_HUNG
from pretrain.telemetry.metrics import read_metrics
from tests.command import Commands
from tests.faults.test_stop import ranks_of
from tests.integration.small_run import free_port, pretrain

# The ranks of a job have the same command. Imports, which take long on a busy machine, come before the limit applies.
BEGIN = """
import sys
sys.argv = sys.argv[1:]
import torch
from pipelines.weights import ranks
from pretrain.check import experiment
from pretrain.distributed import startup
from pretrain.distributed.rank import detect
from pretrain.run import leave, main
print("imported", flush=True)
"""
JOB = BEGIN + "leave(main(sys.argv[1:]))"
STAGE = (
    BEGIN
    + """
import argparse
ranks.START_LIMIT_S = 12
with ranks.joined(argparse.Namespace(device=None), timeout_s=600):
    print("met")
"""
)
# Joins the ranks as a job does, then hangs before its first collective, as with a file server that stalls.
SILENT = (
    BEGIN
    + """
import time
startup.start(detect(), timeout_s=600)
time.sleep(1000)
"""
)


def start_rank(command: Commands, rank: int, port: int, script: str, words: list[str]) -> subprocess.Popen[str]:
    """One of two ranks, without a launcher that would notice its end; returns when it has imported all it needs."""
    env = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": os.getcwd()}
    process = command.start(sys.executable, "-c", script, *words, env=env)
    assert process.stdout is not None and process.stdout.readline() == "imported\n"
    return process


def limited(folder: Path, seconds: int) -> list[str]:
    """The command line of a job with this limit of its start."""
    return pretrain("alone", folder, f"cluster.phase_limits_s.start={seconds}")[1:]


def test_a_rank_that_never_comes_is_named_and_the_job_ends(command: Commands, digits: None, tmp_path: Path) -> None:
    waiting = start_rank(command, 0, free_port(), JOB, limited(tmp_path, 12))
    output, errors = waiting.communicate(timeout=240)
    assert waiting.returncode == 2, output + errors
    assert "phase join: rank 1 did not come" in errors and "cluster.phase_limits_s.start" in errors


@pytest.mark.parametrize(("script", "waits_in"), [(JOB, "engine/run_folder.py"), (STAGE, "weights/ranks.py")])
def test_a_rank_that_joins_and_falls_silent_is_named(
    command: Commands, digits: None, tmp_path: Path, script: str, waits_in: str
) -> None:
    port, words = free_port(), limited(tmp_path, 12)
    start_rank(command, 1, port, SILENT, words)
    waiting = start_rank(command, 0, port, script, words)
    output, errors = waiting.communicate(timeout=240)
    assert waiting.returncode == EXIT_HUNG, output + errors
    assert "has been in phase join" in errors and "cluster.phase_limits_s.start" in errors
    assert "no heartbeat of rank 1 can be read" in errors and waits_in in errors


def test_a_signal_while_the_ranks_meet_ends_the_process(command: Commands, digits: None, tmp_path: Path) -> None:
    """The other rank never comes, and rank 0 waits inside torch, where Python runs no signal handlers."""
    port = free_port()
    waiting = start_rank(command, 0, port, JOB, limited(tmp_path, 900))
    deadline = time.monotonic() + 240
    while f":{port:04X} " not in Path("/proc/net/tcp6").read_text() + Path("/proc/net/tcp").read_text():
        assert waiting.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    waiting.send_signal(signal.SIGTERM)
    output, errors = waiting.communicate(timeout=240)
    assert waiting.returncode == 75, output + errors
    assert "signal SIGTERM during the start" in errors


def test_a_frozen_rank_is_named_and_the_job_ends(command: Commands, digits: None, tmp_path: Path) -> None:
    run = tmp_path / "run"
    limits = ["cluster.phase_limits_s.step=6", "cluster.phase_limits_s.data=6"]
    process = command.start(
        *pretrain("torchrun", tmp_path, "duration=5000 steps", "checkpoint.every=5000 steps", *limits)
    )
    deadline = time.monotonic() + 240
    while max(read_metrics(run / "metrics.jsonl"), default=0) < 5:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    frozen = ranks_of("pretrain/run.py", tmp_path)[-1]
    os.kill(frozen, signal.SIGSTOP)
    output, errors = process.communicate(timeout=240)
    assert process.returncode != 0
    assert f"(process {frozen} on" in errors and "the others wait for rank" in errors, output + errors
    assert "stacks of rank" in errors and "engine/loop.py" in errors
    assert not (run / "exit.json").exists(), "no verdict: the job script counts it as a crash and starts it again"
    (hang,) = Account.of(RunRecord.read(run)).incidents
    assert hang.kind == "hang" and f"(process {frozen} on" in hang.cause and hang.where.startswith("rank ")
    assert hang.cost.ms >= 5000, "the limit of the phase, less what was written meanwhile"

"""The run folder: one owner at a time, taken over from the dead, and a verdict that is whole."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretrain.distributed.rank import Rank
from pretrain.engine.run_folder import COMPLETE, LEASE_S, RunFolder, Verdict
from pretrain.errors import SetupError

ALONE = Rank(0, 0, 1, 1, "here", "alone")


def _dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def _lock(folder: Path, **owner: object) -> None:
    default = {"job_id": "7", "restart_count": 0, "host": "elsewhere", "pid": 1, "heartbeat": time.time()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lock.json").write_text(json.dumps(default | owner))


def test_verdict_and_release(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open(ALONE, ("local", 0))
    assert (tmp_path / "run" / "lock.json").exists() and folder.checkpoints.is_dir()
    folder.close(Verdict(COMPLETE, "done", 12), ("local", 0), writes=True)
    record = json.loads(folder.exit.read_text())
    assert (record["outcome"], record["step"], record["exit_code"]) == ("complete", 12, 0)
    assert not (tmp_path / "run" / "lock.json").exists()


def test_a_new_start_removes_the_old_verdict(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.exit.write_text("{}")
    folder.open(ALONE, ("local", 0))
    assert not folder.exit.exists()
    folder.close(None, ("local", 0), writes=True)


@pytest.mark.parametrize(
    ("owner", "job"),
    [
        ({"host": socket.gethostname(), "pid": os.getpid()}, ("local", 0)),  # alive on this host
        ({}, ("8", 0)),  # another job on another host with a fresh heartbeat
        ({}, ("7", 0)),  # the same job, but not a later restart
    ],
)
def test_a_second_owner_is_refused(tmp_path: Path, owner: dict, job: tuple[str, int]) -> None:
    _lock(tmp_path, **owner)
    with pytest.raises(SetupError, match="is in use by job 7"):
        RunFolder(tmp_path).open(ALONE, job)
    assert json.loads((tmp_path / "lock.json").read_text())["job_id"] == "7"


@pytest.mark.parametrize(
    ("owner", "job"),
    [
        ({"host": socket.gethostname(), "pid": -1}, ("local", 0)),  # its process is gone (pid filled in below)
        ({"heartbeat": time.time() - 2 * LEASE_S}, ("8", 0)),  # its lease expired
        ({}, ("7", 1)),  # the same job's next restart
    ],
)
def test_a_dead_owner_is_replaced(tmp_path: Path, owner: dict, job: tuple[str, int]) -> None:
    if owner.get("pid") == -1:
        owner = owner | {"pid": _dead_pid()}
    _lock(tmp_path, **owner)
    folder = RunFolder(tmp_path)
    folder.open(ALONE, job)
    assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    folder.close(None, job, writes=True)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="cannot be written"):
        RunFolder(tmp_path / "file" / "run").open(ALONE, ("local", 0))

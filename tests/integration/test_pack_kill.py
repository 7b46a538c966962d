"""Packing that is killed at any moment and run again: it completes, byte for byte as if nothing had happened."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.unit.pipelines.photos import tree, write_photos

NUM_SHARDS = 24
OPTIONS = ("--shard-samples", "10", "--holdout", "0.25", "--seed", "5")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("raw") / "photos", {"cat": 100, "dog": 60, "owl": 70})


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, photos):
    from pipelines.__main__ import main

    out = tmp_path_factory.mktemp("whole") / "out"
    assert main(["pack", "folder", str(photos), "--out", str(out), *OPTIONS]) == 0
    whole = tree(out)
    assert sum(name.endswith(".tar") for name in whole) == NUM_SHARDS
    return whole


def shards_in(out: Path) -> int:
    return len(list(out.glob("*/*.records.safetensors")))


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("workers", ["1", "2"])
def test_killed_at_many_moments_it_completes_without_a_difference(tmp_path, photos, uninterrupted, workers, command):
    out = tmp_path / "out"
    arguments = ("python", "-m", "pipelines", "pack", "folder", photos, "--out", out, *OPTIONS, "--workers", workers)
    kills, helpers = 0, set()
    for more in (0, 1, 3, 5, 2, 4):  # so many shards further than it came before
        goal = min(shards_in(out) + more, NUM_SHARDS)
        process = command.start(*arguments)
        while process.poll() is None and (not (out / "pack.json").exists() or shards_in(out) < goal):
            time.sleep(0.001)
        if process.poll() is None:
            helpers |= {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
            os.kill(process.pid, signal.SIGKILL)  # the parent alone: its helpers must end by themselves
            kills += 1
        process.wait()
    assert kills >= 3
    deadline = time.monotonic() + 10
    while any(map(is_running, helpers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in helpers if is_running(pid)]
    command.run(*arguments, check=True)
    assert tree(out) == uninterrupted


def test_ctrl_c_leaves_a_message_and_no_process(tmp_path, photos, command):
    out = tmp_path / "out"
    arguments = ("python", "-m", "pipelines", "pack", "folder", photos, "--out", out, *OPTIONS, "--workers", "2")
    process = command.start(*arguments)
    while process.poll() is None and shards_in(out) < 2:
        time.sleep(0.001)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error == "interrupted; the same command goes on from here\n"
    assert not (out / ".pack.lock").exists()

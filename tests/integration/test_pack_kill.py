"""Packing that is killed at any moment and run again: it completes, byte for byte as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipelines.__main__ import main
from tests.command import Commands
from tests.unit.pipelines.photos import encode, tree, write_photos

NUM_SHARDS = 24
OPTIONS = ("--shard-samples", "10", "--holdout", "0.25", "--seed", "5")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("raw") / "photos", {"cat": 100, "dog": 60, "owl": 70})


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, photos):
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main(["pack", "folder", str(photos), "--out", str(out), *OPTIONS]) == 0
    whole = tree(out)
    assert sum(name.endswith(".tar") for name in whole) == NUM_SHARDS
    return whole


def shards_in(out: Path) -> int:
    return len(list(out.glob("*/*.records.safetensors")))


def killed(process: subprocess.Popen[str], when: Callable[[], bool]) -> bool:
    """Kills the process alone as soon as ``when`` holds; False: it had ended before."""
    while process.poll() is None and not when():
        time.sleep(0.0005)
    alive = process.poll() is None
    if alive:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return alive


def after(seconds: float) -> Callable[[], bool]:
    """Holds when so much time has gone by."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


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
            os.kill(process.pid, signal.SIGKILL)  # the parent alone: its helpers must end on their own
            kills += 1
        process.wait()
    assert kills >= 3
    deadline = time.monotonic() + 120
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
    _, error = process.communicate(timeout=240)
    assert process.returncode == 130
    assert error == "interrupted; rerun the same command to continue\n"
    assert not (out / ".pack.lock").exists()


def tasks_of(photos: Path, out: Path) -> list[list[str]]:
    """The command lines of an array of two tasks, and of the merge."""
    pack = ["pack", "folder", str(photos), "--out", str(out), *OPTIONS, "--workers", "1"]
    return [*([*pack, "--task", f"{number}/2"] for number in (1, 2)), ["pack", "merge", str(out)]]


def test_tasks_and_a_merge_that_are_killed_complete_without_a_difference(tmp_path, photos, uninterrupted, command):
    out = tmp_path / "out"
    first, second, merge = tasks_of(photos, out)
    assert killed(command.start("python", "-m", "pipelines", *first), lambda: shards_in(out) >= 3)
    assert 3 <= shards_in(out) < NUM_SHARDS // 2
    assert main(merge) == 2, "shards are missing, and the merge says so"
    assert main(second) == main(first) == 0
    killed(command.start("python", "-m", "pipelines", *merge), lambda: bool(list(out.glob("*/card.json*"))))
    assert main(merge) == 0
    assert tree(out) == uninterrupted


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_tasks_that_are_killed_at_random_moments(tmp_path, photos, uninterrupted, command: Commands, seed):
    generator, out = random.Random(seed), tmp_path / "out"
    for line in tasks_of(photos, out):
        for _ in range(3):
            killed(command.start("python", "-m", "pipelines", *line), after(generator.uniform(0.3, 2.5)))
        command.run("python", "-m", "pipelines", *line, check=True)
    assert tree(out) == uninterrupted


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """Two parquet files as on Hugging Face."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = tmp_path_factory.mktemp("parquet")
    images = [{"bytes": encode(number), "path": None} for number in range(120)]
    for split, repeats in (("train", 12), ("test", 1)):
        table = pyarrow.table({"image": images * repeats, "label": [number % 3 for number in range(120 * repeats)]})
        parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet", row_group_size=100)
    return folder


def laid_out_in_part(out: Path) -> bool:
    return any(path.stat().st_size for path in (out / ".plan").rglob("*.bytes.*"))


@pytest.fixture(scope="module")
def undisturbed_rows(tmp_path_factory, rows) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "rows"
    assert main(["pack", "parquet", str(rows), "--out", str(out), "--shard-samples", "100"]) == 0
    return tree(out)


def test_parquet_that_is_killed_while_laid_out_and_while_written(tmp_path, rows, undisturbed_rows, command):
    out = tmp_path / "out"
    line = ["pack", "parquet", str(rows), "--out", str(out), "--shard-samples", "100", "--workers", "1"]
    assert killed(command.start("python", "-m", "pipelines", *line), lambda: laid_out_in_part(out))
    assert not (out / "pack.json").exists(), "it came too far for this test"
    assert killed(command.start("python", "-m", "pipelines", *line), lambda: shards_in(out) >= 2)
    assert main(line) == 0
    assert tree(out) == undisturbed_rows


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_parquet_that_is_killed_at_random_moments(tmp_path, rows, undisturbed_rows, command: Commands, workers):
    generator, out = random.Random(int(workers)), tmp_path / "out"
    line = ["pack", "parquet", str(rows), "--out", str(out), "--shard-samples", "100", "--workers", workers]
    for _ in range(6):
        killed(command.start("python", "-m", "pipelines", *line), after(generator.uniform(0.5, 3.0)))
    command.run("python", "-m", "pipelines", *line, check=True)
    assert tree(out) == undisturbed_rows

"""Data processes: their threads, their signals, and their end."""

from __future__ import annotations

import collections
import functools
import os
import signal
import time
from multiprocessing import forkserver
from typing import Any

import cv2
import psutil
import pytest
import torch

from pretrain.data.stream import TrainStream
from pretrain.data.workers.processes import _ended, loader
from pretrain.data.workers.worker import IGNORED_SIGNALS, fork_server
from pretrain.errors import DataError
from tests.unit.data.sets import experiment, write_set
from tests.unit.data.workers.test_reader import damage

SCRIPT = """
import sys, time
import psutil, torch
import torch.distributed as dist
from tests.unit.data.sets import experiment
from pretrain.data.stream import TrainStream
from pathlib import Path

if __name__ != "__main__":
    raise SystemExit("a data process imported the launch script")
folder = Path(sys.argv[1])
dist.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{folder}/rendezvous")
dist.all_reduce(torch.ones(1))
batches = TrainStream(experiment(folder / "set", 40, cluster__num_workers=2), 0, 1, 4).iterate(0, 10_000)
for _ in range(5):
    next(batches)
print(*[child.pid for child in psutil.Process().children(recursive=True)], flush=True)
time.sleep(600)
"""


def asked_of_workers(question: Any) -> set[Any]:
    """The answers of two data processes to a call; a missing key makes a defaultdict call its factory, over there."""
    return set(loader(collections.defaultdict(question), range(8), num_workers=2, prefetch_factor=1))  # pyright: ignore


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (torch.get_num_threads, 1),
        (cv2.getNumThreads, 1),
        (functools.partial(signal.getsignal, signal.SIGINT), signal.SIG_IGN),
        (functools.partial(signal.getsignal, signal.SIGUSR1), signal.SIG_IGN),
    ],
)
def test_data_processes_have_one_thread_and_ignore_stop_signals(question, answer):
    assert asked_of_workers(question) == {answer}


def test_data_processes_are_not_the_rank():
    pids = asked_of_workers(os.getpid)
    assert len(pids) == 2
    assert os.getpid() not in pids


def data_processes() -> list[psutil.Process]:
    """The processes that this one's fork server has forked; other children (pools of ranks) are not meant."""
    return psutil.Process(server_pid()).children(recursive=True)


def server_pid() -> int:
    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]  # no public name says it
    assert pid is not None
    return pid


def test_stop_signals_to_every_process_of_the_step_leave_the_data_processes_alone(tmp_path, command):
    """As Slurm sends them: to the ranks, the fork server and the data processes alike."""
    folder = write_set(tmp_path / "set", [40])
    stream = TrainStream(experiment(folder, 40, cluster__num_workers=2), 0, 1, 4)
    batches = stream.iterate(0, 20)
    received = [next(batches)]
    assert len(data_processes()) == 2
    pids = [str(pid) for pid in (server_pid(), *(child.pid for child in data_processes()))]
    for number in IGNORED_SIGNALS:
        command.run("kill", f"-{int(number)}", *pids, check=True)
    time.sleep(0.2)
    received += batches
    assert len(received) == 20 * 4
    assert all(batch.valid.all() for batch in received)


def test_signals_that_come_while_processes_start_reach_the_rank():
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        fork_server()
        assert asked_of_workers(os.getppid)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [signal.SIGUSR1, signal.SIGUSR1]


def test_data_processes_end_with_a_killed_rank_that_has_a_process_group(tmp_path, command):
    write_set(tmp_path / "set", [40])
    script = tmp_path / "rank.py"
    script.write_text(SCRIPT)
    rank = command.start("python", script, tmp_path, env={"PYTHONPATH": os.getcwd()})
    line = rank.stdout.readline()
    assert line, rank.stderr.read()
    pids = [int(word) for word in line.split()]
    assert len(pids) >= 3  # two data processes and their fork server
    os.kill(rank.pid, signal.SIGKILL)
    rank.wait()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and any(map(is_running, pids)):
        time.sleep(0.05)
    assert not [pid for pid in pids if is_running(pid)]


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_an_abandoned_stream_ends_its_processes(tmp_path):
    folder = write_set(tmp_path / "set", [40])
    batches = TrainStream(experiment(folder, 40, cluster__num_workers=2), 0, 1, 4).iterate(0, 1000)
    next(batches)
    workers = data_processes()
    assert len(workers) == 2
    batches.close()
    assert psutil.wait_procs(workers, timeout=120)[1] == []


def test_a_failed_stream_ends_its_processes_although_somebody_holds_the_error(tmp_path):
    folder = write_set(tmp_path / "set", [4, 4])
    damage(folder, *range(4))
    config = experiment(folder, 8, global_batch_size=8, data__max_bad_sample_rate=1, cluster__num_workers=2)
    with pytest.raises(DataError) as caught:
        list(TrainStream(config, 0, 1, 2).iterate(0, 5))
    assert caught.tb is not None
    assert psutil.wait_procs(data_processes(), timeout=2)[1] == []


LEFT_OPEN = """
import sys
from pathlib import Path
from tests.unit.data.sets import experiment
from pretrain.data.stream import TrainStream

batches = TrainStream(experiment(Path(sys.argv[1]), 40, cluster__num_workers=2), 0, 1, 4).iterate(0, 10_000)
next(batches)
cycle = [batches]
cycle.append(cycle)
raise SystemExit(7)
"""


def test_a_rank_that_exits_with_its_stream_open_does_not_wait(tmp_path, command):
    folder = write_set(tmp_path / "set", [40])
    script = tmp_path / "rank.py"
    script.write_text(LEFT_OPEN)
    done = command.run("python", script, folder, env={"PYTHONPATH": os.getcwd()}, timeout_s=300)
    assert (done.returncode, done.stderr) == (7, "")


def test_a_connection_that_ends_before_the_process_is_reported_dead() -> None:
    """The kernel closes a killed process's sockets first; the loader must not take the process for a living one."""
    process = fork_server().Process(target=time.sleep, args=(0.5,))  # type: ignore[attr-defined]
    process.start()
    assert _ended([process], RuntimeError("an error of the data set")) == [], "nothing is waited for"
    assert _ended([process], ConnectionResetError()) == [process.pid]
    process.join()

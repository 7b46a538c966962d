"""kill -9 of a data process: new ones continue from the batch that it had not delivered."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch

from pretrain.data.stream import TrainStream
from pretrain.data.workers.processes import MAX_DEATHS_IN_A_ROW, loader
from pretrain.errors import DataError
from tests.unit.data.sets import experiment, write_set
from tests.unit.data.workers.test_processes import data_processes


def test_a_killed_data_process_costs_no_batch(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write_set(tmp_path / "set", [40])
    wanted = list(TrainStream(experiment(folder, 40, cluster__num_workers=0), 0, 1, 4).iterate(0, 20))
    batches = TrainStream(experiment(folder, 40, cluster__num_workers=2), 0, 1, 4).iterate(0, 20)
    received = [next(batches) for _ in range(3)]
    for process in data_processes():
        os.kill(process.pid, signal.SIGKILL)
    received += batches
    assert len(received) == len(wanted)
    for ours, theirs in zip(received, wanted, strict=True):
        assert torch.equal(ours.sample_ids, theirs.sample_ids) and torch.equal(ours.images, theirs.images)
    assert "died; new ones continue from the same batch" in capfd.readouterr().err


class Deadly:
    """A set whose reading kills the process, as the kernel does when memory is short."""

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index


@pytest.mark.slow
def test_data_processes_that_keep_dying_end_the_run() -> None:
    with pytest.raises(DataError, match=f"died {MAX_DEATHS_IN_A_ROW + 1} times .* lower cluster.num_workers"):
        list(loader(Deadly(), range(8), num_workers=1, prefetch_factor=1))  # type: ignore[arg-type]


class Numbers:
    """A set that a data process answers at once from."""

    def __getitem__(self, index: int) -> int:
        return index


def test_a_fork_server_that_is_killed_early(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """It is asked for a data process, and killed while it is still importing PyTorch for it."""
    ask = forkserver.connect_to_new_process
    killed: list[int] = []

    def ask_and_kill(descriptors: list[int]) -> tuple[int, int]:
        answer = ask(descriptors)
        if not killed:
            killed.append(forkserver._forkserver._forkserver_pid)  # type: ignore[attr-defined]
            os.kill(killed[0], signal.SIGKILL)
        return answer

    stop_fork_server()
    monkeypatch.setattr(forkserver, "connect_to_new_process", ask_and_kill)
    numbers = loader(Numbers(), range(8), num_workers=2, prefetch_factor=1)  # type: ignore[arg-type]
    assert list(numbers) == list(range(8))
    assert killed and "fork server of the data processes died" in capfd.readouterr().err


def test_a_fork_server_that_keeps_dying_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def dies() -> object:
        raise EOFError("unexpected EOF")  # what a dead server's socket gives

    monkeypatch.setattr("pretrain.data.workers.processes.fork_server", dies)
    numbers = loader(Numbers(), range(8), num_workers=1, prefetch_factor=1)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"died \d times while they were started: .* lower cluster.num_workers"):
        list(numbers)


def stop_fork_server() -> None:
    """So that the next one is new, and still importing PyTorch when it is killed."""
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if server is not None:
        os.kill(server, signal.SIGKILL)
        time.sleep(0.2)

"""Long runs of the stream: memory stays flat, from a folder and through the node's cache; a first batch comes soon."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import psutil
import pytest

from pretrain.config.schema.experiment import Experiment
from pretrain.data.stream import TrainStream
from tests.faulty_server import folder_server, running
from tests.unit.data.sets import experiment, write_set
from tests.unit.data.workers.test_processes import data_processes

SIZES = [400] * 5
MICRO = 100


def memory_of_the_worker() -> float:
    """Memory that the one data process wrote and nobody shares. Pages of libraries would count as its own from the
    moment when the last other process that has read them ends.
    """
    (worker,) = data_processes()
    lines = Path(f"/proc/{worker.pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024


def soak(config: Experiment, num_samples: int) -> list[float]:
    """Private memory of the one data process in MiB: after a tenth, two tenths, … of the samples."""
    num_batches = num_samples // MICRO
    began, memory = time.monotonic(), []
    for number, _ in enumerate(TrainStream(config, 0, 1, MICRO).iterate(0, num_batches), start=1):
        if number == 1:
            print(f"first batch after {time.monotonic() - began:.1f} s")
            assert time.monotonic() - began < 60
        if number % (num_batches // 10) == 0 and number < num_batches:
            memory.append(memory_of_the_worker())
    print("MiB", [round(value, 1) for value in memory])
    return memory


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("where", "num_samples"), [("folder", 100_000), ("web server", 30_000)])
def test_memory_is_flat(tmp_path, where, num_samples):
    folder = write_set(tmp_path / "train", SIZES)
    with running(folder_server(tmp_path)) as server:
        config = experiment(
            folder if where == "folder" else f"{server.url}/train",
            sum(SIZES),
            global_batch_size=MICRO,
            data__lanes=2,
            data__shuffle_window=128,
            cluster__num_workers=1,
            # smaller than the set: chunks come and go all the time
            cluster__cache={"dir": str(tmp_path / "cache"), "chunk_bytes": 8192, "max_bytes": 2_000_000},
        )
        memory = soak(config, num_samples)
    settled, last = max(memory[:3]), memory[-1]
    assert last - settled < 4
    assert psutil.Process().num_fds() < 300


def _first_ids(config: Experiment, queue: multiprocessing.Queue) -> None:
    batch = next(TrainStream(config, 0, 1, 8).iterate(0, 1))
    queue.put(batch.sample_ids.tolist())


@pytest.mark.slow
def test_a_spawned_process_can_stream(tmp_path: Path):
    config = experiment(write_set(tmp_path / "train", [40]), 40)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_first_ids, args=(config, queue))
    process.start()
    ids = queue.get(timeout=120)
    process.join(60)
    assert ids == next(TrainStream(config, 0, 1, 8).iterate(0, 1)).sample_ids.tolist()

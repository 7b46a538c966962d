"""Runs the shards of a plan over worker processes, which end with this one."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

from pipelines.packing.plan import Shard
from pipelines.packing.shard import write_shard
from pipelines.sources.protocol import Source
from pretrain.data.worker import become_helper
from pretrain.errors import SetupError

LOOK_EVERY_S = 0.25
WAITING_PER_WORKER = 2

Task = tuple[Path, Shard]


def run_shards(tasks: Sequence[Task], source: Source, num_workers: int, show: Callable[[int], None]) -> Iterator[int]:
    """Writes every shard and yields the number of quarantined images of each, as they are done.

    Args:
        tasks: (folder, shard).
        source: where the bytes come from.
        num_workers: processes; 1 writes in this one.
        show: called now and then with the number of images that are done.
    """
    if num_workers <= 1 or len(tasks) <= 1:
        yield from _run_here(tasks, source, show)
    else:
        yield from _run_in_pool(tasks, source, min(num_workers, len(tasks)), show)


def _run_here(tasks: Sequence[Task], source: Source, show: Callable[[int], None]) -> Iterator[int]:
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        show(done)

    for folder, shard in tasks:
        yield write_shard(folder, shard, source, progress)


def _run_in_pool(tasks: Sequence[Task], source: Source, num_workers: int, show: Callable[[int], None]) -> Iterator[int]:
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    executor = ProcessPoolExecutor(num_workers, context, _start_worker, (os.getpid(), source, counter))
    remaining = iter(tasks)
    waiting: set[Future[int]] = set()
    try:
        while True:
            while len(waiting) < WAITING_PER_WORKER * num_workers and (task := next(remaining, None)):
                with _interrupts_blocked():
                    waiting.add(executor.submit(_write_in_worker, *task))
            if not waiting:
                return
            finished, waiting = wait(waiting, timeout=LOOK_EVERY_S, return_when=FIRST_COMPLETED)
            show(counter.value)
            for future in finished:
                yield future.result()
    except BrokenProcessPool as error:
        raise SetupError(
            "a packing process was killed, most likely for want of memory; run the same command with fewer --workers, "
            "it goes on from here"
        ) from error
    finally:  # also when the caller has heard enough, or the user pressed Ctrl-C: what is half written is not needed
        for process in multiprocessing.active_children():
            process.kill()
        # The executor's thread must be gone before the interpreter's exit, which writes into the pipe that it closes.
        executor.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes that start inside inherit the mask: a Ctrl-C while they import is for the parent to answer."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_worker: dict[str, Any] = {}


def _start_worker(parent: int, source: Source, counter: Synchronized[int]) -> None:
    become_helper(parent)
    _worker.update(source=source, counter=counter)


def _write_in_worker(folder: Path, shard: Shard) -> int:
    def progress(count: int) -> None:
        with _worker["counter"].get_lock():
            _worker["counter"].value += count

    return write_shard(folder, shard, _worker["source"], progress)

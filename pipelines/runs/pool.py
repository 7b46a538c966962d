"""Runs one function over many tasks in worker processes, which end with this one."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized
from typing import Any, TypeVar

from pretrain.data.workers.worker import become_helper
from pretrain.errors import SetupError

LOOK_EVERY_S = 0.25
WAITING_PER_WORKER = 2

Shared = TypeVar("Shared")
Task = TypeVar("Task")
Result = TypeVar("Result")
Progress = Callable[[int], None]
Job = Callable[[Shared, Task, Progress], Result]


def run_tasks(
    job: Job[Shared, Task, Result],
    tasks: Iterable[Task],
    shared: Shared,
    num_workers: int,
    show: Callable[[int], None],
) -> Iterator[Result]:
    """Runs ``job(shared, task, progress)`` for every task and yields the results in the order in which they finish.

    Args:
        job: a function of a module. It calls ``progress`` with the number of units that are newly done.
        tasks: drawn as workers are free, so that they need not all be in memory.
        shared: sent to each worker once.
        num_workers: processes; 1 works in this one.
        show: called periodically with the number of units that are done.
    """
    if num_workers <= 1:
        yield from _run_here(job, tasks, shared, show)
    else:
        yield from _run_in_pool(job, iter(tasks), shared, num_workers, show)


def _run_here(
    job: Job[Shared, Task, Result], tasks: Iterable[Task], shared: Shared, show: Callable[[int], None]
) -> Iterator[Result]:
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        show(done)

    for task in tasks:
        yield job(shared, task, progress)


def _run_in_pool(
    job: Job[Shared, Task, Result],
    remaining: Iterator[Task],
    shared: Shared,
    num_workers: int,
    show: Callable[[int], None],
) -> Iterator[Result]:
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    executor = ProcessPoolExecutor(num_workers, context, _start_worker, (os.getpid(), job, shared, counter))
    waiting: set[Future[Any]] = set()
    try:
        while True:
            while len(waiting) < WAITING_PER_WORKER * num_workers:
                try:
                    task = next(remaining)
                except StopIteration:
                    break
                with _interrupts_blocked():
                    waiting.add(executor.submit(_work, task))
            if not waiting:
                return
            finished, waiting = wait(waiting, timeout=LOOK_EVERY_S, return_when=FIRST_COMPLETED)
            show(counter.value)
            for future in finished:
                yield future.result()
    except BrokenProcessPool as error:
        raise SetupError(
            "a worker process was killed, most likely because memory ran out; run the same command with "
            "fewer --workers to continue from here"
        ) from error
    finally:  # also when the caller stops early or the user pressed Ctrl-C: partly written files are not needed
        for process in multiprocessing.active_children():
            process.kill()
        # The executor's thread must end before the interpreter's exit hook writes into the pipe that the thread closes.
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


def _start_worker(parent: int, job: Job[Any, Any, Any], shared: Any, counter: Synchronized[int]) -> None:
    become_helper(parent)
    _worker.update(job=job, shared=shared, counter=counter)


def _work(task: Any) -> Any:
    def progress(count: int) -> None:
        with _worker["counter"].get_lock():
            _worker["counter"].value += count

    return _worker["job"](_worker["shared"], task, progress)

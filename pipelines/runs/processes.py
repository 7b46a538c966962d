"""Processes that a stage starts: workers for many tasks, which end with this one, and training jobs it watches."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any, TypeVar

from pipelines.terminal.output import LazyBar
from pretrain.data.workers.worker import become_helper
from pretrain.distributed.processes import STARTED_BY
from pretrain.errors import SetupError
from pretrain.telemetry.metrics import read_metrics

LOOK_EVERY_S = 0.25
WAITING_PER_WORKER = 2

Shared = TypeVar("Shared")
Task = TypeVar("Task")
Result = TypeVar("Result")
Progress = Callable[[int], None]
Work = Callable[[Shared, Task, Progress], Result]

ROOT = Path(__file__).resolve().parents[2]  # of a checkout; of an installed product, the folder of its packages
POLL_S = 0.1
TAIL_LINES = 15
# One thread per rank: on a few cores, more threads would only compete.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def run_tasks(
    job: Work[Shared, Task, Result],
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
    job: Work[Shared, Task, Result], tasks: Iterable[Task], shared: Shared, show: Callable[[int], None]
) -> Iterator[Result]:
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        show(done)

    for task in tasks:
        yield job(shared, task, progress)


def _run_in_pool(
    job: Work[Shared, Task, Result],
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


_worker: dict[str, Any] = {}  # of a worker process: its job and what the job is given


def _start_worker(parent: int, job: Work[Any, Any, Any], shared: Any, counter: Synchronized[int]) -> None:
    become_helper(parent)
    _worker.update(job=job, shared=shared, counter=counter)


def _work(task: Any) -> Any:
    def progress(count: int) -> None:
        with _worker["counter"].get_lock():
            _worker["counter"].value += count

    return _worker["job"](_worker["shared"], task, progress)


def entry_script(name: str) -> str:
    """The file that launchers start, such as ``pretrain/run.py``: as it is typed in a checkout, else its full path."""
    return name if Path.cwd() == ROOT else str(ROOT / name)


@dataclass
class Job:
    """A training as the user would start it, here, with its output in a file, watched by its metrics."""

    command: list[str]
    run: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.run.mkdir(parents=True, exist_ok=True)
        self.output = self.run / "output.txt"
        with open(self.output, "ab") as output:
            self.process = subprocess.Popen(
                self.command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **ENVIRONMENT, STARTED_BY: str(os.getpid()), **self.environment},
                start_new_session=True,
            )

    @property
    def step(self) -> int:
        """The last step in its metrics."""
        return max(read_metrics(self.run / "metrics.jsonl"), default=0)

    def wait(self, bar: LazyBar, done_before: int = 0, stop_at: int | None = None) -> bool:
        """Waits for the end; True. At step ``stop_at`` it kills every process of the job instead; False."""
        try:
            while self.process.poll() is None:
                step = self.step
                bar.show(done_before + step)
                if stop_at is not None and step >= stop_at:
                    self.kill()
                    return False
                time.sleep(POLL_S)
        finally:
            self.kill()
        if self.process.returncode:
            raise SetupError(self.failure())
        return True

    def failure(self) -> str:
        """The last output of a job that failed."""
        tail = "\n".join(self.output.read_text(errors="replace").splitlines()[-TAIL_LINES:])
        return f"{' '.join(self.command)} left with {self.process.returncode}:\n{tail}\nsee {self.output}"

    def kill(self) -> None:
        """kill -9 of the launcher and of all ranks."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def last_value(run: Path, metric: str) -> float:
    """A metric of the run's last evaluation, such as ``val/top1``."""
    evaluations = read_metrics(run / "metrics.jsonl", "eval")
    return evaluations[max(evaluations)][metric]


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

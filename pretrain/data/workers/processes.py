"""The loader: micro-batches in order, from data processes that never outlive the rank, whatever ends it."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import traceback
import types
import warnings
import weakref
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import wait
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from pretrain.data.batch import forget_blocks
from pretrain.data.storage.tally import take_row
from pretrain.data.workers.worker import become_helper, fork_server, signals_blocked
from pretrain.errors import DataError
from pretrain.names import tell

MAX_DEATHS_IN_A_ROW = 3
DEATH_IS_REPORTED_WITHIN_S = 10
_with_processes: weakref.WeakSet[Any] = weakref.WeakSet()


def loader(dataset: Dataset[Any], places: Any, *, num_workers: int, prefetch_factor: int) -> Generator[Any, None, None]:
    """Yields ``dataset[place]`` for each place, in order, from ``num_workers`` processes (0: from this one).

    Close it (``contextlib.closing``) to end the processes immediately.
    """
    common: dict[str, Any] = {
        "sampler": places,
        "batch_size": None,
        "pin_memory": torch.cuda.is_available(),
        "generator": torch.Generator(),  # a separate one, so that the loader does not advance the global generator
    }
    if num_workers == 0:
        yield from DataLoader(dataset, **common)
        return
    done, deaths = 0, 0
    while done < len(places):
        common["sampler"] = map(places.__getitem__, range(done, len(places)))
        made: Any = _start_surely(dataset, common, num_workers, prefetch_factor)
        try:
            for batch in made:
                yield batch
                done, deaths = done + 1, 0
        except (RuntimeError, EOFError, OSError) as error:
            dead = _ended(made._workers, error)
            deaths += 1
            if not dead:
                raise
            _say_deaths(dead, deaths, error)
        finally:
            made._shutdown_workers()
            forget_blocks({process.pid for process in made._workers})


def _ended(processes: Sequence[Any], error: Exception) -> list[int]:
    """The ids of the processes that have ended.

    The kernel closes the sockets of a killed process before it reports the death, so a lost connection to one that
    seems to be alive is given a moment.
    """
    if isinstance(error, (EOFError, ConnectionError)):
        wait([process.sentinel for process in processes], timeout=DEATH_IS_REPORTED_WITHIN_S)
    return [process.pid for process in processes if not process.is_alive()]


def _say_deaths(dead: list[int], times: int, error: Exception) -> None:
    """Reports killed processes. Nothing is lost: the batches that they did not deliver are made again.

    Raises:
        DataError: processes keep dying before they deliver anything.
    """
    names = ", ".join(map(str, dead))
    if times > MAX_DEATHS_IN_A_ROW:
        raise DataError(
            f"data processes died {times} times without delivering a batch (last: {names}; {error}): if the kernel "
            "killed them for memory (dmesg), lower cluster.num_workers or cluster.prefetch_factor"
        ) from None
    tell(f"data process {names} died; new ones continue from the same batch", file=sys.stderr, flush=True)


def _start_surely(dataset: Dataset[Any], common: dict[str, Any], num_workers: int, prefetch_factor: int) -> Any:
    """Starts the data processes, with a new fork server if the old one was killed.

    Raises:
        DataError: the fork server keeps dying.
    """
    deaths = 0
    while True:
        try:
            return _start_processes(dataset, common, num_workers, prefetch_factor)
        except (EOFError, ConnectionError) as error:
            _abandon(error)
            deaths += 1
            if deaths > MAX_DEATHS_IN_A_ROW:
                raise DataError(
                    f"the process that data processes are forked from died {deaths} times while they were started: if "
                    "the kernel killed it for memory (dmesg), lower cluster.num_workers"
                ) from None
        tell("the fork server of the data processes died; a new one is started", file=sys.stderr, flush=True)


def _abandon(error: BaseException) -> None:
    """Ends the processes of a loader that failed to start all of them, since its own clean-up expects all."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        made = frame.f_locals.get("self")
        if isinstance(made, _MultiProcessingDataLoaderIter):
            made._shutdown = True
            for process in made._workers:
                process.kill()


def _start_processes(dataset: Dataset[Any], common: dict[str, Any], num_workers: int, prefetch_factor: int) -> Any:
    with warnings.catch_warnings(), signals_blocked(), _light_main():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # the user chose the number
        several = DataLoader(
            dataset,
            **common,
            num_workers=num_workers,
            prefetch_factor=prefetch_factor,
            multiprocessing_context=fork_server(),
            worker_init_fn=partial(_start, os.getpid()),
        )
        made = iter(several)
    _with_processes.add(made)
    atexit.unregister(_close_all)
    atexit.register(_close_all)  # registered after PyTorch's handlers, so it runs first: they wait 5 s per process
    return made


def _close_all() -> None:
    """Ends the processes of loaders that are still open when the rank exits."""
    for made in list(_with_processes):
        made._shutdown_workers()


def _start(rank_pid: int, worker: int) -> None:
    """Runs first in every data process."""
    become_helper(rank_pid)
    take_row(worker + 1)
    import cv2

    gc.freeze()  # imported objects stay, so the collector need not traverse them again and again
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@contextmanager
def _light_main() -> Iterator[None]:
    """Hides the main module, since a new process would import the launch script and everything that it imports."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main

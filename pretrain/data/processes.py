"""The loader: micro-batches in their order, from data processes that no signal and no crash leaves behind."""

from __future__ import annotations

import atexit
import os
import sys
import types
import warnings
import weakref
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from pretrain.data.worker import become_helper, fork_server, signals_blocked

_with_processes: weakref.WeakSet[Any] = weakref.WeakSet()


def loader(dataset: Dataset[Any], places: Any, *, num_workers: int, prefetch_factor: int) -> Generator[Any, None, None]:
    """``dataset[place]`` for each place, in order, made by ``num_workers`` processes (0: by this one).

    Close it (``contextlib.closing``) to end the processes at once.
    """
    common: dict[str, Any] = {
        "sampler": places,
        "batch_size": None,
        "pin_memory": torch.cuda.is_available(),
        "generator": torch.Generator(),  # of its own: the global generator's state is not the loader's to advance
    }
    if num_workers == 0:
        yield from DataLoader(dataset, **common)
        return
    made: Any = _start_processes(dataset, common, num_workers, prefetch_factor)
    try:
        yield from made
    finally:
        made._shutdown_workers()


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
    atexit.register(_close_all)  # after PyTorch's own, so before them: those wait 5 s for each process
    return made


def _close_all() -> None:
    """Ends the processes of loaders that a dying rank has left open."""
    for made in list(_with_processes):
        made._shutdown_workers()


def _start(rank_pid: int, worker: int) -> None:
    """The first thing that a data process does."""
    become_helper(rank_pid)
    import cv2

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@contextmanager
def _light_main() -> Iterator[None]:
    """Hides the main module: a new process would import the launch script, and with it all that the rank has."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main

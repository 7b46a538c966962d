"""Starts data processes so that they are quick to come, deaf to stop signals, and never left over.

They are forked from a fork server, a small process that has imported PyTorch and nothing else: a fork of the rank
itself would copy its CUDA context, its collectives' threads and whatever locks these hold at that moment.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import BaseContext
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from pretrain.data.worker import IGNORED_SIGNALS, end_with, ignore_signals

PRELOADED = ["pretrain.data.dataset"]


def fork_server() -> BaseContext:
    """The start method of data processes; starts the server, which then imports PyTorch while the rank goes on."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with _signals_blocked():
        multiprocessing.forkserver.ensure_running()
    return context


def loader(dataset: Dataset[Any], places: Any, *, num_workers: int, prefetch_factor: int) -> Iterator[Any]:
    """``dataset[place]`` for each place, in order, made by ``num_workers`` processes (0: by this one)."""
    common: dict[str, Any] = {
        "sampler": places,
        "batch_size": None,
        "pin_memory": torch.cuda.is_available(),
        "generator": torch.Generator(),  # of its own: the global generator's state is not the loader's to advance
    }
    if num_workers == 0:
        return iter(DataLoader(dataset, **common))
    several = DataLoader(
        dataset,
        **common,
        num_workers=num_workers,
        prefetch_factor=prefetch_factor,
        multiprocessing_context=fork_server(),
        worker_init_fn=partial(_start, os.getpid()),
    )
    with _signals_blocked(), _light_main():
        return iter(several)


def _start(rank_pid: int, worker: int) -> None:
    """The first thing that a data process does."""
    import cv2

    end_with(rank_pid)
    ignore_signals()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Processes that start in here are born with the stop signals blocked; the rank gets its own ones afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield  # the main thread takes the signals, and a mask of this thread would not hold them off
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _light_main() -> Iterator[None]:
    """Hides the main module: a new process would import the launch script, and with it all that the rank has."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main

"""The loader: micro-batches in their order, from data processes that no signal and no crash leaves behind."""

from __future__ import annotations

import os
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from pretrain.data.worker import end_with, fork_server, ignore_signals, signals_blocked


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
        return iter(several)


def _start(rank_pid: int, worker: int) -> None:
    """The first thing that a data process does."""
    import cv2

    end_with(rank_pid)
    ignore_signals()
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

"""Helper processes: they start quickly, ignore stop signals, and never outlive their parent.

This module does not import torch, so that packers can use it and the fork server can start before torch is imported.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext

from pretrain import threads

IGNORED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
PRELOADED = ["pretrain.data.workers.dataset"]
_POLL_S = 1.0


def fork_server() -> BaseContext:
    """The start method of data processes: they are forked from a small process that has only imported PyTorch.

    A fork of the rank itself would copy its CUDA context, the threads of its collectives, and any locks that these
    hold; a fresh interpreter would import PyTorch for every process. The first call starts the server, which imports
    PyTorch while the rank continues, so call it early.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    multiprocessing.resource_tracker.ensure_running()  # starting it unblocks the signals, so start it first
    with signals_blocked():
        multiprocessing.forkserver.ensure_running()
    return context


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Processes started inside start with the stop signals blocked; the rank receives its own signals afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield  # the main thread receives the signals, and a mask of this thread would not block them
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def become_helper(parent: int) -> None:
    """Ignores the stop signals, and ends this process when its parent ends. Runs first in every helper process.

    A rank that was told to stop finishes its step with the batches in progress, so only the rank ends its helpers.

    Args:
        parent: process id of the rank, or of another process that uses this one. A fork server may be in between, so
            the usual signal at a parent's death would refer to the wrong process.
    """
    _ignore_signals(except_from=parent)  # first, since existing threads would still receive them
    _end_with(parent)


def _ignore_signals(*, except_from: int) -> None:
    """SIGTERM from the parent still ends the process, since Python terminates its helpers and joins them at exit."""
    for number in IGNORED_SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # not Linux
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threads.start("exit-on-term", _exit_on_term, except_from)


def _exit_on_term(sender: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != sender:
        pass
    os._exit(1)


def _end_with(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        os._exit(1)
    except (AttributeError, OSError):  # not Linux, or a kernel before 5.3
        descriptor = None
    threads.start("end-with-parent", _wait_and_exit, pid, descriptor)


def _wait_and_exit(pid: int, descriptor: int | None) -> None:
    if descriptor is not None:
        select.select([descriptor], [], [])
        os._exit(1)
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            os._exit(1)
        time.sleep(_POLL_S)

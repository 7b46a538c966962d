"""How helper processes start and behave: quick to come, deaf to stop signals, and never left over.

Nothing here imports torch, so that packers use it too, and the fork server can be started before torch is imported.
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

IGNORED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
PRELOADED = ["pretrain.data.workers.dataset"]
_POLL_S = 1.0


def fork_server() -> BaseContext:
    """The start method of data processes: forked from a small process that has imported PyTorch and nothing else.

    A fork of the rank itself would copy its CUDA context, its collectives' threads and whatever locks these hold at
    that moment; a fresh interpreter would import PyTorch for every process. The first call starts the server, which
    imports PyTorch while the rank continues: call it early.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    multiprocessing.resource_tracker.ensure_running()  # its own start ends with the signals unblocked, so: beforehand
    with signals_blocked():
        multiprocessing.forkserver.ensure_running()
    return context


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Processes that start in here are born with the stop signals blocked; the rank gets its own ones afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield  # the main thread takes the signals, and a mask of this thread would not hold them off
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def become_helper(parent: int) -> None:
    """Leaves the stop signals to the parent, and ends with it. The first thing that a helper process does.

    A rank that was told to stop finishes its step with the batches that are under way, so nobody but the rank ends its
    helpers.

    Args:
        parent: process id of the rank, or of whoever needs this process. A fork server may come between the two, so
            the usual signal at a parent's death would come from the wrong one.
    """
    _ignore_signals(except_from=parent)  # first: threads that exist already would still take them
    _end_with(parent)


def _ignore_signals(*, except_from: int) -> None:
    """SIGTERM from the parent still ends the process: a Python that exits terminates its helpers and waits for them."""
    for number in IGNORED_SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # no Linux
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_on_term, args=(except_from,), name="exit-on-term", daemon=True).start()


def _exit_on_term(sender: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != sender:
        pass
    os._exit(1)


def _end_with(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        os._exit(1)
    except (AttributeError, OSError):  # no Linux, or a kernel before 5.3
        descriptor = None
    threading.Thread(target=_wait_and_exit, args=(pid, descriptor), name="end-with-parent", daemon=True).start()


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

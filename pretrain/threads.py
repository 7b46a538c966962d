"""Background threads: the only module that starts them.

A thread has a name, which the stacks in a report of the watchdog show, and it does not keep the process from ending. An
error that ends a thread is reported with that name, and without secrets: Python's own report would print the
credentials of a URL.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pretrain.names import tell


def start(name: str, work: Callable[..., object], *arguments: Any) -> threading.Thread:
    """Starts a thread that calls ``work(*arguments)``."""
    thread = threading.Thread(target=_reporting, args=(name, work, *arguments), name=name, daemon=True)
    thread.start()
    return thread


def after(seconds: float, name: str, work: Callable[[], object]) -> threading.Timer:
    """Starts a timer that calls ``work`` once, in a thread of its own, unless it is cancelled before."""
    timer = threading.Timer(seconds, _reporting, (name, work))
    timer.name, timer.daemon = name, True
    timer.start()
    return timer


def pool(name: str, num_threads: int) -> ThreadPoolExecutor:
    """Threads for calls whose results, and errors, the caller collects; the process waits for them before it ends."""
    return ThreadPoolExecutor(num_threads, thread_name_prefix=name)


def _reporting(name: str, work: Callable[..., object], *arguments: Any) -> None:
    try:
        work(*arguments)
    except Exception:
        tell(f"error: thread {name} ended:\n{traceback.format_exc()}", end="", file=sys.stderr, flush=True)

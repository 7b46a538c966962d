"""How a helper process behaves: it leaves signals to its parent, ends with it, and uses one thread.

Nothing here imports torch, so that packers use it too.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time

IGNORED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_POLL_S = 1.0


def ignore_signals() -> None:
    """Leaves the stop signals to the rank: it finishes its step with the batches that are under way."""
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_with(pid: int) -> None:
    """Ends this process as soon as process ``pid`` has ended, however that came about.

    A fork server stands between a rank and its workers, so the usual signal at the parent's death comes from the wrong
    parent; a descriptor of the rank itself does not.
    """
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

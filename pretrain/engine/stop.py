"""The wish to stop: a signal, a file or the end of the launcher; the loop looks at it at step boundaries only.

Imports no torch, so that the handlers stand before the slow imports begin: a signal that comes early is not lost.
"""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType

from pretrain import disk
from pretrain.distributed.launchers import Launcher

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Remembers why this rank was asked to stop; ``reason`` is None until it is."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._stop_file: Path | None = None
        self._launchers: list[Launcher] = []

    def install(self) -> StopRequest:
        """Takes over SIGTERM, SIGUSR1 and SIGINT; a second SIGINT interrupts at once, for a person at a terminal."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._on_signal)
        return self

    def watch_file(self, path: Path) -> None:
        """Also stops when ``path`` exists; only one rank needs to look, since the flag is shared at the boundary."""
        self._stop_file = path

    def watch_launchers(self, found: list[Launcher]) -> None:
        """Also stops when one of the processes that started this rank is gone: nobody else would end it then."""
        self._launchers = found

    def check(self) -> str | None:
        """The reason to stop, or None. Cheap: at most a few looks at the file system."""
        if self.reason is None:
            self.reason = next((f"its launcher is gone: {one}" for one in self._launchers if one.is_gone), None)
        if self.reason is None and self._stop_file is not None and _is_there(self._stop_file):
            self.reason = f"file {self._stop_file}"
        return self.reason

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason is not None:
            raise KeyboardInterrupt
        self.reason = f"signal {signal.Signals(number).name}"


def _is_there(path: Path) -> bool:
    try:
        return disk.current.exists(path)
    except OSError:  # a file server that does not answer now is not a wish to stop
        return False

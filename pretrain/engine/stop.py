"""The wish to stop: a signal or a file sets a flag, and the loop looks at it at step boundaries only.

Imports no torch, so that the handlers stand before the slow imports begin: a signal that comes early is not lost.
"""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Remembers why this rank was asked to stop; ``reason`` is None until it is."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._stop_file: Path | None = None

    def install(self) -> StopRequest:
        """Takes over SIGTERM, SIGUSR1 and SIGINT; a second SIGINT interrupts at once, for a person at a terminal."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._on_signal)
        return self

    def watch_file(self, path: Path) -> None:
        """Also stops when ``path`` exists; only one rank needs to look, since the flag is shared at the boundary."""
        self._stop_file = path

    def check(self) -> str | None:
        """The reason to stop, or None. Cheap: at most one look at the file system."""
        if self.reason is None and self._stop_file is not None and self._stop_file.exists():
            self.reason = f"file {self._stop_file}"
        return self.reason

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason is not None:
            raise KeyboardInterrupt
        self.reason = f"signal {signal.Signals(number).name}"

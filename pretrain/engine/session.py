"""One process of a run: its rank, device, run folder, reporting and stop requests.

Does not import torch, so that signal handlers are installed before the slow imports and no early signal is lost.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from pretrain import disk
from pretrain.distributed.launchers import Launcher
from pretrain.distributed.rank import Rank
from pretrain.distributed.watchdog import Watchdog
from pretrain.engine.run_folder import RunFolder

if TYPE_CHECKING:
    import torch

    from pretrain.telemetry.console import Reporter

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Remembers why this rank was asked to stop: a signal, a file, or the end of its launcher.

    The loop reads it only at step boundaries, so that all ranks stop at the same step.

    Attributes:
        reason: the reason to stop, or None.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._stop_file: Path | None = None
        self._launchers: list[Launcher] = []

    def install(self) -> StopRequest:
        """Handles SIGTERM, SIGUSR1 and SIGINT. A second SIGINT interrupts immediately, for users at a terminal."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._on_signal)
        return self

    def watch_file(self, path: Path) -> None:
        """Also stops when ``path`` exists. One rank is enough, since the flag is shared at the boundary."""
        self._stop_file = path

    def watch_launchers(self, found: list[Launcher]) -> None:
        """Also stops when a process that started this rank has ended, since nothing else would stop the rank."""
        self._launchers = found

    def check(self) -> str | None:
        """The reason to stop, or None. Cheap: at most a few file system calls."""
        if self.reason is None:
            self.reason = next((f"its launcher is gone: {one}" for one in self._launchers if one.is_gone), None)
        if self.reason is None and self._stop_file is not None and _exists(self._stop_file):
            self.reason = f"file {self._stop_file}"
        return self.reason

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason is not None:
            raise KeyboardInterrupt
        self.reason = f"signal {signal.Signals(number).name}"


def _exists(path: Path) -> bool:
    try:
        return disk.current.exists(path)
    except OSError:  # a file server that does not respond is not a request to stop
        return False


@dataclass(frozen=True)
class Session:
    """The resources of a rank for one start of a run; every part that is built receives it.

    Attributes:
        rank: this process among its peers.
        device: the device it computes on.
        folder: the run folder, opened.
        reporter: prints on rank 0 and writes log.txt.
        stop_request: whether, and why, this rank was asked to stop.
        watchdog: ends the process if a phase exceeds its limit; started by the caller.
    """

    rank: Rank
    device: torch.device
    folder: RunFolder
    reporter: Reporter
    stop_request: StopRequest
    watchdog: Watchdog

    @classmethod
    def of(
        cls,
        rank: Rank,
        device: torch.device,
        folder: RunFolder,
        stop_request: StopRequest | None = None,
        phase_limits_s: Mapping[str, float] | None = None,
    ) -> Session:
        """The session of a rank whose run folder is open.

        Args:
            rank, device, folder: see the class.
            stop_request: also stops by the folder's STOP file from now on; None: a new one.
            phase_limits_s: see ``Watchdog``; None: no phase has a limit.
        """
        from pretrain.telemetry.console import Reporter  # rich is slow to import; install signal handlers first

        stop_request = stop_request or StopRequest()
        stop_request.watch_file(folder.stop_file)
        watchdog = Watchdog(folder.heartbeats, rank.rank, rank.host, phase_limits_s or {})
        return cls(rank, device, folder, Reporter(rank.is_main, folder.log), stop_request, watchdog)

    def say(self, text: str) -> None:
        """Prints one line for the user, on rank 0."""
        self.reporter.say(text)

"""One process of a run: its rank, device, run folder, reporting and stop requests.

Does not import torch, so that signal handlers are installed before the slow imports and no early signal is lost.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from pretrain import disk, threads
from pretrain.command_line import INTERRUPTED
from pretrain.distributed.processes import Launcher
from pretrain.distributed.rank import Rank
from pretrain.distributed.watchdog import ANSWER_S, Watchdog, within
from pretrain.engine.run_folder import EXIT_CODES, FIRST_STEP, REQUEUE, RunFolder, try_to_record
from pretrain.engine.timesheet import Timesheet
from pretrain.names import tell

if TYPE_CHECKING:
    import torch

    from pretrain.telemetry.console import Reporter

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Remembers why this rank was asked to stop: a signal, a file, or the end of its launcher.

    During the start there is nothing to save, and the main thread may wait where Python runs no signal handlers (for
    its peers, for a file server), so a signal ends the process at once. After ``wait_for_boundaries`` a reason is only
    remembered: the loop reads it at step boundaries, so that all ranks stop at the same step.

    Attributes:
        reason: the reason to stop, or None.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._is_starting = True
        self._stop_file: Path | None = None
        self._launchers: list[Launcher] = []

    def install(self) -> StopRequest:
        """Handles SIGTERM, SIGUSR1 and SIGINT. A second SIGINT interrupts immediately, for users at a terminal."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._on_signal)
            noted, arrived = socket.socketpair()
            noted.setblocking(False)  # as set_wakeup_fd requires
            signal.set_wakeup_fd(noted.detach(), warn_on_full_buffer=False)
            # a forked child inherits the socket, and a signal to it would end us
            os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
            threads.start("signals", self._end_early, arrived)
        return self

    def wait_for_boundaries(self) -> None:
        """From now on a signal is honoured at the next step boundary."""
        self._is_starting = False

    def _end_early(self, arrived: socket.socket) -> None:
        """Ends the process at the first signal during the start, whatever the main thread waits for."""
        while numbers := arrived.recv(1):
            if self._is_starting and numbers[0] in SIGNALS:
                name = signal.Signals(numbers[0]).name
                text = f"signal {name} during the start: ended; there is nothing to save yet"
                within(ANSWER_S, lambda text=text: tell(text, file=sys.stderr, flush=True))
                os._exit(INTERRUPTED if numbers[0] == signal.SIGINT else EXIT_CODES[REQUEUE])

    def watch_file(self, path: Path) -> None:
        """Also stops when ``path`` exists. One rank is enough, since the flag is shared at the boundary."""
        self._stop_file = path

    def watch_launchers(self, found: list[Launcher]) -> None:
        """Also stops when a process that started this rank has ended, since nothing else would stop the rank."""
        self._launchers = found

    def check(self) -> str | None:
        """The reason to stop, or None. Cheap: at most a few file system calls."""
        if self.reason is None:
            gone = next((f"its launcher is gone: {one}" for one in self._launchers if one.is_gone), None)
            if gone is not None:  # assigning None would erase the reason of a signal that came meanwhile
                self.reason = gone
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
        watchdog: ends the process if a phase exceeds its limit.
        timesheet: what the time of this start was spent on.
    """

    rank: Rank
    device: torch.device
    folder: RunFolder
    reporter: Reporter
    stop_request: StopRequest
    watchdog: Watchdog
    timesheet: Timesheet

    @classmethod
    def of(
        cls,
        rank: Rank,
        device: torch.device,
        folder: RunFolder,
        stop_request: StopRequest | None = None,
        watchdog: Watchdog | None = None,
    ) -> Session:
        """The session of a rank whose run folder is open.

        Args:
            rank, device, folder: see the class.
            stop_request: also stops by the folder's STOP file from now on; None: a new one.
            watchdog: watches this rank; None: one that never looks.
        """
        from pretrain.telemetry.console import Reporter  # rich is slow to import; install signal handlers first

        stop_request = stop_request or StopRequest()
        stop_request.watch_file(folder.stop_file)
        reporter = Reporter(rank.is_main, folder.log)
        timesheet = Timesheet(folder.timesheet, reporter.say)
        return cls(rank, device, folder, reporter, stop_request, watchdog or Watchdog(rank, {}), timesheet)

    def record_first_step(self, step: int) -> None:
        """Rank 0 records how the time from its process to the end of the first step of this start was spent."""
        began = self.watchdog.began
        if self.rank.is_main and FIRST_STEP not in began:
            phases = dict(began)
            began[FIRST_STEP] = time.time()
            try_to_record(self.folder.history, FIRST_STEP, step, self.say, began=phases)

    def say(self, text: str) -> None:
        """Prints one line for the user, on rank 0."""
        self.reporter.say(text)

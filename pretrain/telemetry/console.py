"""Output for people: a live view on a terminal, plain lines elsewhere, and log.txt in the run folder."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from pretrain.files import Journal
from pretrain.redaction import redacted

PLAIN_INTERVAL_S = 5.0
SMOOTHING = 0.1  # share of the newest step time in the average that the time left is estimated by


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:,.2f}"


# Figures in their order: metric → (label, form). Those in _PLAIN are also in plain lines.
_FIGURES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "loss": ("loss", lambda value: f"{value:.4f}"),
    "lr": ("lr", lambda value: f"{value:.3g}"),
    "grad_norm": ("grad norm", lambda value: f"{value:.3g}"),
    "weight_norm": ("weight norm", lambda value: f"{value:.4g}"),
    "images_per_s": ("images/s", lambda value: f"{value:,.0f}"),
    "images_per_s_per_device": ("images/s per device", lambda value: f"{value:,.1f}"),
    "mfu": ("MFU", _percent),
    "data_wait": ("data wait", _percent),
    "slowest_rank": ("slowest rank", str),
    "slowest_rank_ratio": ("its time over the median", lambda value: f"{value:.2f}"),
    "memory_gib": ("memory GiB", lambda value: f"{value:.2f}"),
    "skipped_updates": ("skipped updates", str),
    "bad_samples": ("bad samples", str),
    "bytes_read": ("GB read", _gigabytes),
    "bytes_fetched": ("GB fetched", _gigabytes),
    "cache_hit_rate": ("cache hits", _percent),
    "fetch_retries": ("retries", lambda value: f"{value:.0f}"),
}
_PLAIN = ("loss", "images_per_s", "mfu", "data_wait")


class Reporter:
    """Prints for rank 0 and is silent on the others; every line is also appended to log.txt.

    Args:
        active: False: prints nothing.
        log: a file to append to.
        file: where to print; None: standard output.
    """

    def __init__(self, active: bool, log: Path | None = None, file: IO[str] | None = None) -> None:
        self._console = Console(file=file or sys.stdout, quiet=not active, soft_wrap=True, highlight=False)
        self._log = Journal(log) if active and log is not None else None
        self._log_waits = False
        self._live: Live | None = None
        self._figures: dict[str, Any] = {}
        self._plain_after = 0.0

    def say(self, text: str) -> None:
        """One line for the user, without secrets."""
        text = redacted(text)
        self._console.print(text, markup=False)
        if not self._console.is_terminal:
            self._console.file.flush()
        if self._log is not None:
            self._note(self._log, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")

    def _note(self, log: Journal, line: str) -> None:
        failure = log.add(line)
        if failure is not None and not self._log_waits:
            self._console.print(f"warning: {log.path} cannot be written: {failure}; its lines wait", markup=False)
        self._log_waits = failure is not None

    def start(self, title: str, total: int, done: int) -> None:
        """Begins the view of a long task of ``total`` steps, ``done`` of which are complete."""
        self._plain_after = time.monotonic() + PLAIN_INTERVAL_S
        self._title, self._total, self._done = title, total, done
        self._last, self._step_s = time.monotonic(), None
        if not self._console.is_terminal or self._console.quiet:
            return
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
        )
        self._task = self._progress.add_task(title, total=total, completed=done, left="")
        self._live = Live(self._view(), console=self._console, refresh_per_second=4)
        self._live.start()

    def advance(self, done: int, values: Mapping[str, Any]) -> None:
        """Shows how far the task is; figures that are measured now and then stay until they are measured again."""
        self._count(done)
        self._figures |= {name: form(values[name]) for name, (_, form) in _FIGURES.items() if name in values}
        if self._live is not None:
            self._progress.update(self._task, completed=done, left=f"{self.time_left()} left")
            self._live.update(self._view())
        elif time.monotonic() >= self._plain_after or done == self._total:
            figures = "  ".join(
                f"{_FIGURES[name][0]} {self._figures[name]}" for name in _PLAIN if name in self._figures
            )
            self.say(f"{self._title} {done}/{self._total}  {figures}  {self.time_left()} left")
            self._plain_after = time.monotonic() + PLAIN_INTERVAL_S

    def time_left(self) -> str:
        """Time left, by the smoothed time of a step: ``0:12:05``; pauses for evaluation count too."""
        seconds = (self._step_s or 0.0) * (self._total - self._done)
        return str(datetime.timedelta(seconds=round(seconds)))

    def stop(self) -> None:
        """Ends the live view."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def close(self) -> None:
        """Ends the live view and the log file; nothing can be printed afterwards."""
        self.stop()
        self._log = None

    def _count(self, done: int) -> None:
        now = time.monotonic()
        if done > self._done:
            taken = (now - self._last) / (done - self._done)
            self._step_s = taken if self._step_s is None else (1 - SMOOTHING) * self._step_s + SMOOTHING * taken
        self._last, self._done = now, done

    def _view(self) -> Group:
        table = Table.grid(padding=(0, 3))
        shown = [(_FIGURES[name][0], value) for name, value in self._figures.items()]
        for first in range(0, len(shown), 4):
            table.add_row(*(f"[dim]{label}[/] {value}" for label, value in shown[first : first + 4]))
        return Group(self._progress, table)

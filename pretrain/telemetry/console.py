"""What a person sees: a live progress bar on a terminal, plain lines elsewhere, and log.txt beside the run."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_INTERVAL_S = 5.0


class Reporter:
    """Prints for rank 0 and is silent on the others; everything printed is also appended to log.txt."""

    def __init__(self, active: bool, log: Path | None = None) -> None:
        self._console = Console(file=sys.stdout, quiet=not active, soft_wrap=True, highlight=False)
        self._log = open(log, "a", buffering=1) if active and log is not None else None
        self._progress: Progress | None = None
        self._plain_after = 0.0

    def say(self, text: str) -> None:
        """One line for the user."""
        self._console.print(text, markup=False)
        if not self._console.is_terminal:
            sys.stdout.flush()
        if self._log is not None:
            self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def start(self, title: str, total: int, done: int) -> None:
        """Begins the bar of a long task of ``total`` steps, ``done`` of which lie behind."""
        self._plain_after = time.monotonic() + PLAIN_INTERVAL_S
        if self._console.is_terminal and not self._console.quiet:
            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._progress.add_task(title, total=total, completed=done, figures="")
            self._progress.start()
        self._title, self._total = title, total

    def advance(self, done: int, figures: dict[str, Any]) -> None:
        """Shows how far the task is."""
        text = "  ".join(f"{name} {value}" for name, value in figures.items())
        if self._progress is not None:
            self._progress.update(self._task, completed=done, figures=text)
        elif time.monotonic() >= self._plain_after or done == self._total:
            self.say(f"{self._title} {done}/{self._total}  {text}")
            self._plain_after = time.monotonic() + PLAIN_INTERVAL_S

    def stop(self) -> None:
        """Ends the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

"""A progress bar for work that takes longer than two seconds; nothing for shorter work."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

QUIET_S = 2.0
PLAIN_EVERY_S = 20.0


class LazyBar:
    """Count, rate and time left on stderr: a bar on a terminal, an occasional line elsewhere.

    Args:
        doing: what is being done, such as "packing".
        total: how many units there are.
        unit: their name, in the plural.
    """

    def __init__(self, doing: str, total: int, unit: str) -> None:
        self._doing, self._total, self._unit = doing, total, unit
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._started = self._printed = time.monotonic()
        self._first: int | None = None

    def show(self, done: int) -> None:
        """Reports that ``done`` units are finished; the rate is measured from the first call."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._started = done, now
        elapsed = now - self._started
        if elapsed < QUIET_S:
            return
        rate = f"{(done - self._first) / elapsed:,.0f} {self._unit}/s"
        if not self._console.is_terminal:
            self._plain(done, rate, now)
            return
        if self._bar is None:
            self._bar = _bar(self._console)
            self._bar.add_task(self._doing, total=self._total, rate="")
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, rate=rate)

    def _plain(self, done: int, rate: str, now: float) -> None:
        if now - self._printed >= PLAIN_EVERY_S:
            self._printed = now
            self._console.print(f"{self._doing}: {done:,} of {self._total:,} {self._unit}, {rate}", highlight=False)

    def __enter__(self) -> LazyBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _bar(console: Console) -> Progress:
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    ]
    return Progress(*columns, console=console, transient=True)

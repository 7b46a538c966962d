"""Text for the terminal and for files: readable durations and counts, CSV and JSON lines, and a progress bar."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from pretrain.names import printable, printable_in

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

QUIET_S = 2.0
PLAIN_EVERY_S = 20.0


def duration(seconds: float) -> str:
    """A duration in its two largest units; tenths of a second below ten."""
    rounded = round(seconds)
    days, hours, minutes = rounded // 86400, rounded // 3600 % 24, rounded // 60 % 60
    if days:
        return f"{days:,} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {rounded % 60} s"
    return f"{rounded} s" if seconds >= 10 or seconds == rounded else f"{seconds:.1f} s"


def counted(number: int, unit: str) -> str:
    """``1 run``, ``2 runs``; ``unit`` is the singular of a regular noun."""
    return f"{number:,} {unit}{'' if number == 1 else 's'}"


def as_csv(rows: Iterable[Sequence[object]]) -> str:
    """The lines of a CSV file; None is an empty cell."""
    text = io.StringIO()
    cells = (["" if cell is None else printable(cell) for cell in row] for row in rows)
    csv.writer(text, lineterminator="\n").writerows(cells)
    return text.getvalue()


def as_json(content: dict[str, object]) -> str:
    """One line of a JSONL file."""
    return json.dumps(printable_in(content), ensure_ascii=False)


class LazyBar:
    """Count, rate and time left on stderr: a bar on a terminal, an occasional line elsewhere.

    Args:
        doing: what is being done, such as "packing".
        total: how many units there are.
        unit: their name, in the plural.
    """

    def __init__(self, doing: str, total: int, unit: str) -> None:
        from rich.console import Console

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
        rate = f"{_rate((done - self._first) / elapsed)} {self._unit}/s"
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


def _rate(per_s: float) -> str:
    return f"{per_s:,.0f}" if per_s >= 10 else f"{per_s:.2g}"


def _bar(console: Console) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    ]
    return Progress(*columns, console=console, transient=True)

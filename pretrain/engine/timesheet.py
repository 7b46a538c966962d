"""The timesheet of a run: what the time of each start was spent on, for ``python -m pipelines goodput``.

Rank 0 charges the time since its last charge to one part, so the parts of a start add up to its duration. The sums
since the last line go to ``timesheet.jsonl`` with every line of metrics, evaluation, save, rollback and skipped update:

    begin      a start: its process's beginning, job and ranks, and when the start before was last seen alive
    spent      seconds up to a step; ``from_step`` after a start or a load, ``back_to`` after a rollback
    end        the verdict; without this line the start was killed

Times are integer milliseconds of a monotonic clock, so sums are exact.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from pretrain import records
from pretrain.distributed.rank import Rank
from pretrain.engine.crashes import CRASH
from pretrain.files import Journal
from pretrain.names import printable_in
from pretrain.redaction import redacted_in

STARTUP, LOAD, COMPILE, DATA, STEP = "startup", "load", "compile", "data", "step"
SKIPPED, EVALUATE, SAVE, SHUTDOWN, LOST = "skipped", "evaluate", "save", "shutdown", "lost"
PARTS = (STARTUP, LOAD, COMPILE, DATA, STEP, SKIPPED, EVALUATE, SAVE, SHUTDOWN, LOST)
BEGIN, SPENT, END = "begin", "spent", "end"
MOST_TEXT = 2000  # characters of an error
_free_since_ms = 0  # when the last training of this process ended, on its monotonic clock


def _parts(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() <= set(PARTS) and all(map(records.whole, value.values()))


LINE: records.Shape = {
    "kind": lambda value: value in (BEGIN, SPENT, END),
    "start": records.whole,
    "step": records.whole,
    "ms": _parts,
    **dict.fromkeys(("began_ms?", "world_size?", "restart_count?", "from_step?", "back_to?"), records.whole),
    "seen_before_ms?": lambda value: value is None or records.whole(value),
    **dict.fromkeys(("job_id?", "host?", "outcome?", "reason?"), records.text),
}


class Timesheet:
    """Counts and writes nothing before ``begin``, and on ranks other than 0.

    Args:
        path: of ``timesheet.jsonl``.
        say: prints one line for the user.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self._journal, self._say = Journal(path), say
        self._is_on = self._in_trouble = False
        self._start = self._step = self._charged = 0
        self._has_loaded = False
        self._parts: dict[str, int] = {}
        self._compile_s, self._compile_began = 0.0, 0.0

    def begin(self, start: int, rank: Rank, job: tuple[str, int], seen_before: float | None) -> None:
        """Begins with the time since this process was started, or since its last training ended.

        Args:
            start: the number of this start of the run.
            rank: this process.
            job: (job id, restart count).
            seen_before: the last sign of life of the start before, in seconds since the epoch; None: unknown.
        """
        if not rank.is_main:
            return
        now, clock = _now_ms(), round(1000 * time.time())
        age_ms = max(0, clock - round(1000 * psutil.Process().create_time()))
        self._is_on, self._start = True, start
        self._charged = max(now - age_ms, _free_since_ms)
        self._add(
            BEGIN,
            began_ms=clock - (now - self._charged),
            job_id=job[0],
            restart_count=job[1],
            world_size=rank.world,
            host=rank.host,
            seen_before_ms=None if seen_before is None else round(1000 * seen_before),
        )

    def watch_compilation(self) -> None:
        """Charges torch's compilations separately from now on, also of a backward pass in another thread."""
        if self._is_on:
            from torch._dynamo.callback import callback_handler  # slow to import

            callback_handler.register_start_callback(self._compilation_began)
            callback_handler.register_end_callback(self._compilation_ended)

    def charge(self, part: str) -> None:
        """Charges the time since the last charge to a part, except for compilation."""
        self._charge(lambda left: {part: left})

    def step(self, waited_s: float, *, applied: bool) -> None:
        """Charges a step: ``waited_s``, the longest wait for data of all ranks, and the rest."""
        rest = STEP if applied else SKIPPED

        def split(left: int) -> dict[str, int]:
            waited = min(left, round(1000 * waited_s))
            return {DATA: waited, rest: left - waited}

        self._charge(split)

    def _charge(self, split: Callable[[int], Mapping[str, int]]) -> None:
        if not self._is_on:
            return
        now = _now_ms()
        total, self._charged = now - self._charged, now
        compiled = min(total, round(1000 * self._compile_s))
        self._compile_s = 0.0
        for part, ms in {COMPILE: compiled, **split(total - compiled)}.items():
            self._parts[part] = self._parts.get(part, 0) + ms

    @contextlib.contextmanager
    def spending(self, part: str, step: int) -> Iterator[None]:
        """Context that interrupts the steps: its time is charged to a part, and a line is written."""
        self.charge(STEP)
        yield
        self.charge(part)
        self.write(step)

    def write(self, step: int, **details: int) -> None:
        """Writes a line with the time charged since the last one.

        Args:
            step: the steps done.
            **details: ``from_step`` if the training begins or continues there, ``back_to`` after a rollback.
        """
        self._step = step
        self._has_loaded |= "from_step" in details
        self._add(SPENT, **details)

    def end(self, outcome: str, reason: str) -> None:
        """Writes the last line; time that no part has is lost if the outcome is a crash."""
        self.charge(LOST if outcome == CRASH else SHUTDOWN if self._has_loaded else STARTUP)
        self._add(END, outcome=outcome, reason=reason[:MOST_TEXT])
        if self._is_on:
            global _free_since_ms
            _free_since_ms = self._charged

    def _add(self, kind: str, **details: Any) -> None:
        if not self._is_on:
            return
        parts = {part: ms for part, ms in self._parts.items() if ms}
        content = {"kind": kind, "start": self._start, "step": self._step, "ms": parts, **details}
        self._parts = {}
        failure = self._journal.add(json.dumps(printable_in(redacted_in(content)), ensure_ascii=False))
        if failure is not None and not self._in_trouble:
            self._say(f"warning: {self._journal.path} cannot be written: {failure}; its lines wait")
        self._in_trouble = failure is not None

    def _compilation_began(self, *_: Any) -> None:
        self._compile_began = time.monotonic()

    def _compilation_ended(self, *_: Any) -> None:
        self._compile_s += time.monotonic() - self._compile_began


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000

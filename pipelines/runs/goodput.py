"""The account of a run's time: every millisecond from its first process to its last, in exactly one part.

Training that was lost, because the next start continued from an older checkpoint or the run was rolled back, is
*repeated*: its steps, data waits, evaluations and saves are taken out of their parts. What follows the last line of a
start that crashed or hung is *lost*. The time between two starts is *queue*, or *between* if one job held its GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from pipelines.runs.attempts import LOCAL, RUNNING, Attempt, attempts_of
from pipelines.runs.run_record import RunRecord
from pretrain.engine import timesheet as sheet
from pretrain.engine.run_folder import COMPLETE
from pretrain.errors import ConfigError

REPEATED, BETWEEN, QUEUE, UNEXPLAINED = "repeated", "between", "queue", "unexplained"
# Part → its meaning, in the order of the tables. They add up to the time of the run.
MEANINGS = {
    sheet.STEP: "productive steps",
    sheet.DATA: "waiting for data",
    sheet.COMPILE: "compilation",
    sheet.EVALUATE: "evaluation",
    sheet.SAVE: "training stopped by saves",
    sheet.STARTUP: "start: imports, ranks, model",
    sheet.LOAD: "choosing and loading checkpoints",
    sheet.SHUTDOWN: "end of a start",
    sheet.SKIPPED: "steps whose update was skipped",
    REPEATED: "lost training, repeated later",
    sheet.LOST: "crashed or hanging",
    BETWEEN: "between starts of one job",
    QUEUE: "between jobs",
    UNEXPLAINED: "unexplained",
}
IDLE = "idle"
IDLE_MEANING = "idle GPUs beside the ranks"
DONE_AGAIN = (sheet.STEP, sheet.DATA, sheet.EVALUATE, sheet.SAVE, sheet.SKIPPED)
ROLLBACK, SKIP = "rollback", "skipped update"


class Cost(NamedTuple):
    """Wall time and GPU time in milliseconds."""

    ms: int = 0
    gpu_ms: int = 0

    def plus(self, ms: int, gpus: int) -> Cost:
        """With more wall time, of so many GPUs."""
        return Cost(self.ms + ms, self.gpu_ms + ms * gpus)


NOTHING = Cost()


@dataclass
class Incident:
    """An event that cost time: an end of a start, a rollback or a skipped update.

    Attributes:
        kind: requeue, fatal, crash, hang, rollback or skipped update.
        attempt: index of its start.
        step: at which it happened.
        cause: in words.
        where: rank and node, as far as they are known.
        cost: of lost training, of the time until the next start trained, and of skipped steps.
    """

    kind: str
    attempt: int
    step: int
    cause: str
    where: str = ""
    cost: Cost = NOTHING


@dataclass
class Account:
    """The account of a run.

    Attributes:
        attempts: its starts in order.
        parts: for each start, part → cost; the time before a start belongs to it.
        incidents: in order.
        idle_gpu_ms: for each start, GPU time of the job's GPUs that no rank uses.
    """

    attempts: list[Attempt]
    parts: list[dict[str, Cost]]
    incidents: list[Incident] = field(default_factory=list)
    idle_gpu_ms: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, record: RunRecord, *, until: int | None = None) -> Account:
        """The account of a run folder.

        Args:
            record: what it holds.
            until: ends with the evaluation at this step; None: with the run.

        Raises:
            ConfigError: the run has no timesheet, or none of its lines is of that evaluation.
        """
        attempts = attempts_of(record.path, record.timesheet, record.history, is_held=record.is_held)
        if not record.timesheet or not attempts:
            raise ConfigError(
                f"{record.path} has no usable timesheet.jsonl, from which the account is made: the run has not begun, "
                "or an earlier version trained it; the next start of the run writes one"
            )
        if until is not None:
            attempts = _up_to_evaluation(attempts, until)
            if not attempts:
                raise ConfigError(f"{record.path}/timesheet.jsonl has no evaluation at step {until:,}")
        account = cls(attempts, [{} for _ in attempts])
        account._add_lines()
        account._add_gaps(record.launches)
        account.incidents = sorted([*account.incidents, *account._ends()], key=lambda one: (one.attempt, one.step))
        account.idle_gpu_ms = [(one.gpus - one.ranks) * (one.ended_ms - one.began_ms) for one in attempts]
        return account

    @property
    def wall_ms(self) -> int:
        """From the beginning of the first start to the end of the last, plus unrecorded time before the first."""
        first = self.parts[0].get(UNEXPLAINED, NOTHING).ms
        return first + self.attempts[-1].ended_ms - self.attempts[0].began_ms

    @property
    def totals(self) -> dict[str, Cost]:
        """Part → cost over all starts, in the order of ``MEANINGS``; the wall times add up to ``wall_ms``."""
        found = {}
        for part in MEANINGS:
            costs = [parts[part] for parts in self.parts if part in parts]
            if costs:
                found[part] = Cost(sum(cost.ms for cost in costs), sum(cost.gpu_ms for cost in costs))
        assert sum(cost.ms for cost in found.values()) == self.wall_ms, "every millisecond is in exactly one part"
        return found

    @property
    def goodput(self) -> float:
        """The share of the time that was spent in productive steps."""
        return self.totals.get(sheet.STEP, NOTHING).ms / self.wall_ms if self.wall_ms else 0.0

    def _add(self, index: int, part: str, ms: int, gpus: int) -> None:
        if ms:
            self.parts[index][part] = self.parts[index].get(part, NOTHING).plus(ms, gpus)

    def _add_lines(self) -> None:
        """Adds the times of the timesheets, from the last line to the first: a later load decides what was lost."""
        kept: int | None = None  # the training up to this step counts; None: up to any
        for index in range(len(self.attempts) - 1, -1, -1):
            attempt, rollback = self.attempts[index], None
            for part, ms in attempt.extra.items():
                self._add(index, part, ms, attempt.ranks)
            for line in reversed(attempt.lines):
                is_again = kept is not None and line["step"] > kept
                for part, ms in line["ms"].items():
                    again = is_again and part in DONE_AGAIN
                    self._add(index, REPEATED if again else part, ms, attempt.ranks)
                    if again and rollback is not None:
                        rollback.cost = rollback.cost.plus(ms, attempt.ranks)
                if "back_to" in line:
                    rollback = _rollback(index, line, attempt.ranks)
                    self.incidents.append(rollback)
                elif line["ms"].get(sheet.SKIPPED) and not is_again:
                    cost = Cost().plus(line["ms"][sheet.SKIPPED], attempt.ranks)
                    cause = "loss or gradient was not finite"
                    self.incidents.append(Incident(SKIP, index, line["step"], cause, cost=cost))
                for step in (line[key] for key in ("back_to", "from_step") if key in line):
                    kept = step if kept is None else min(kept, step)

    def _add_gaps(self, launches: Sequence[Mapping[str, Any]]) -> None:
        """Adds the time before each start; before the first, that of launches that an earlier version made."""
        first = self.attempts[0]
        if launches and (early := first.began_ms - round(1000 * float(launches[0]["time"]))) > 0:
            self._add(0, UNEXPLAINED, early, 0)
        for index, (before, after) in enumerate(zip(self.attempts, self.attempts[1:], strict=False), start=1):
            gap = after.began_ms - before.ended_ms
            is_held = before.job == after.job and before.job[0] != LOCAL
            if gap < 0 or _lack_a_start(before, after):  # clocks that differ, or a start without a record
                self._add(index, UNEXPLAINED, gap, 0)
            else:
                self._add(index, BETWEEN if is_held else QUEUE, gap, after.gpus if is_held else 0)

    def _ends(self) -> list[Incident]:
        """The ends of all starts but a complete or running one, with the time until the next trained."""
        found = []
        for index, attempt in enumerate(self.attempts):
            if attempt.outcome in (COMPLETE, RUNNING):
                continue
            cost = NOTHING
            lost = sum(one.cost.ms for one in self.incidents if one.attempt == index and one.kind == ROLLBACK)
            loads = sum(line["ms"].get(sheet.LOAD, 0) for line in attempt.lines if "back_to" in line)
            repeated = self.parts[index].get(REPEATED, NOTHING).ms - (lost - loads)
            cost = cost.plus(repeated + self.parts[index].get(sheet.LOST, NOTHING).ms, attempt.ranks)
            if index + 1 < len(self.attempts):
                following = self.parts[index + 1]
                for part in (BETWEEN, QUEUE, UNEXPLAINED, sheet.STARTUP, sheet.LOAD, sheet.COMPILE):
                    some = following.get(part, NOTHING)
                    cost = Cost(cost.ms + some.ms, cost.gpu_ms + some.gpu_ms)
            step = attempt.lines[-1]["step"] if attempt.lines else 0
            found.append(Incident(attempt.outcome, index, step, attempt.cause, attempt.where, cost))
        return found


def _up_to_evaluation(attempts: Sequence[Attempt], step: int) -> list[Attempt]:
    """The starts up to the last line of the evaluation at a step; empty without such a line."""
    for index in range(len(attempts) - 1, -1, -1):
        attempt = attempts[index]
        for place in range(len(attempt.lines) - 1, -1, -1):
            line = attempt.lines[place]
            if line["step"] == step and line["ms"].get(sheet.EVALUATE):
                begun = {part: ms for part, ms in attempt.extra.items() if part == sheet.STARTUP}
                cut = replace(attempt, lines=attempt.lines[: place + 1], extra=begun, outcome=COMPLETE, cause="")
                return [*attempts[:index], cut]
    return []


def _lack_a_start(before: Attempt, after: Attempt) -> bool:
    return before.number is not None and after.number is not None and after.number - before.number > 1


def _rollback(index: int, line: Mapping[str, Any], ranks: int) -> Incident:
    cause = f"updates failed in a row: back to step {line['back_to']}"
    return Incident(ROLLBACK, index, line["step"], cause, cost=NOTHING.plus(line["ms"].get(sheet.LOAD, 0), ranks))

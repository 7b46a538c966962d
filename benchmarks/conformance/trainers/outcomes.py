"""The reports of the ranks of a run."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

SILENT_END = "its ranks ended without a word"


@dataclass
class RankOutcome:
    """The outcome of one rank.

    Attributes:
        losses: step → loss.
        error: that ended it.
        done: whether it came to its end.
        held: whether it waits to be killed.
        killed: the time at which it was killed, in seconds since 1970.
    """

    losses: dict[int, float] = field(default_factory=dict)
    error: str | None = None
    done: bool = False
    held: bool = False
    killed: float | None = None


@dataclass
class Outcome:
    """The outcome of a run.

    Attributes:
        ranks: in their order.
        log: what they and the launcher printed.
        code: exit code of the launcher, if there was one.
        ended: time at which the last process had ended, in seconds since 1970; None: it was still running.
    """

    ranks: list[RankOutcome]
    log: str = ""
    code: int | None = None
    ended: float | None = None

    @property
    def start(self) -> int | None:
        """The first step of all ranks; None: there was none."""
        first = {min(rank.losses, default=0) for rank in self.ranks}
        return first.pop() if len(first) == 1 and first != {0} else None

    @property
    def problem(self) -> str | None:
        """Why it did not come to its end; None: it did."""
        errors = [line[:300] for line in self.log.splitlines() if line.startswith("error: ")]
        errors += [rank.error[:300] for rank in self.ranks if rank.error]
        if errors and not all(rank.done for rank in self.ranks):
            return max(errors, key=lambda error: "peer" not in error.lower())
        return None if all(rank.done for rank in self.ranks) else SILENT_END

    @property
    def text(self) -> str:
        """Everything that was said."""
        return "\n".join([self.log, *(rank.error or "" for rank in self.ranks)])

    def reports(self, words: re.Pattern[str], full: Outcome) -> bool:
        """Whether a line has one of the words and is not one that the uninterrupted run prints too."""
        usual = {_without_digits(line) for line in full.text.splitlines()}
        return any(words.search(line) for line in self.text.splitlines() if _without_digits(line) not in usual)

    @property
    def losses(self) -> dict[int, float]:
        """Step → loss of the global batch: ranks have equal parts."""
        steps = set.intersection(*(set(rank.losses) for rank in self.ranks))
        return {step: sum(rank.losses[step] for rank in self.ranks) / len(self.ranks) for step in sorted(steps)}

    def difference(self, full: Outcome) -> float:
        """Largest relative difference of the losses to those of an uninterrupted run; infinite if a step is missing."""
        mine, wanted = self.losses, full.losses
        if not mine or max(mine) != max(wanted):
            return math.inf
        differences = [abs(loss - wanted[step]) / abs(wanted[step]) for step, loss in mine.items()]
        return max(value if math.isfinite(value) else math.inf for value in differences)

    def is_same(self, full: Outcome) -> bool:
        """Whether every rank has the losses of the uninterrupted run, bit for bit, to the last step."""
        pairs = list(zip(self.ranks, full.ranks, strict=False))
        equal = all(mine.losses[step] == theirs.losses.get(step) for mine, theirs in pairs for step in mine.losses)
        return equal and len(self.ranks) == len(full.ranks) and self.difference(full) == 0


def read_rank(out: Path) -> RankOutcome:
    """Reads the lines of JSON of a rank."""
    found = RankOutcome()
    for line in map(json.loads, out.read_text().splitlines() if out.exists() else []):
        if "step" in line:
            found.losses[line["step"]] = line["loss"]
        found.error = line.get("error", found.error)
        found.killed = line.get("killed", found.killed)
        found.done, found.held = found.done or "done" in line, found.held or "held" in line
    return found


def _without_digits(line: str) -> str:
    return re.sub(r"\d+", "", line)

"""The batches, errors and logs of the ranks of a run."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

HUNG, DIED = "it hung", "its process died without an error, as by a segmentation fault"


@dataclass
class RankOutcome:
    """The outcome of one rank.

    Attributes:
        batches: the labels of each batch.
        epochs: the epoch of each batch.
        wrong: samples whose pixels are another sample's, or damaged.
        error: that ended it; None: it came to its end.
        done: whether the process came to its end, with or without an error.
        died: whether it ended before that.
        first: CPU seconds and MiB read until the first batch.
        memory_mib: (batch, private MiB of all its processes).
        killed: process id of the data process that was killed.
        reports: of the loader, on samples that it could not read.
        log: what the process printed.
    """

    batches: list[list[int]] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    wrong: list[int] = field(default_factory=list)
    error: str | None = None
    done: bool = False
    died: bool = False
    first: dict[str, float] = field(default_factory=dict)
    memory_mib: list[tuple[int, float]] = field(default_factory=list)
    killed: int | None = None
    reports: list[str] = field(default_factory=list)
    log: str = ""


@dataclass
class Outcome:
    """The outcome of all ranks."""

    ranks: list[RankOutcome]

    @property
    def silent_end(self) -> str | None:
        """How a rank ended without a word; None: all came to their end or raised an error."""
        if any(rank.died for rank in self.ranks):
            return DIED
        return None if all(rank.done for rank in self.ranks) else HUNG

    @property
    def problem(self) -> str | None:
        """Why it did not come to its end; None: it did."""
        return self.silent_end or next((rank.error[:300] for rank in self.ranks if rank.error), None)

    @property
    def wrong(self) -> list[int]:
        """Samples with wrong pixels."""
        return [number for rank in self.ranks for number in rank.wrong]

    @property
    def text(self) -> str:
        """Everything that the loader said."""
        return "\n".join(f"{rank.log}\n{rank.error or ''}\n" + "\n".join(rank.reports) for rank in self.ranks)

    def counts(self, epoch: int | None = None) -> Counter[int]:
        """Sample → how often it was drawn, in an epoch or in all."""
        return Counter(
            label
            for rank in self.ranks
            for batch, of in zip(rank.batches, rank.epochs, strict=True)
            if epoch in (None, of)
            for label in batch
        )

    def global_batches(self, epoch: int | None = None) -> list[list[int]]:
        """The samples of each step over all ranks, sorted; ranks that have no batch left add none."""
        chosen = [
            [batch for batch, of in zip(rank.batches, rank.epochs, strict=True) if epoch in (None, of)]
            for rank in self.ranks
        ]
        steps = max((len(batches) for batches in chosen), default=0)
        return [sorted(n for batches in chosen if step < len(batches) for n in batches[step]) for step in range(steps)]


def read_rank(out: Path, log: Path) -> RankOutcome:
    """Reads the lines of JSON and the log of a rank."""
    found = RankOutcome(log=log.read_text(errors="replace"))
    for line in map(json.loads, out.read_text().splitlines()):
        if "labels" in line:
            found.batches.append(line["labels"])
            found.epochs.append(line["epoch"])
            found.wrong += line["wrong"]
        elif "memory_mib" in line:
            found.memory_mib.append((line["after"], line["memory_mib"]))
        elif "cpu_s" in line:
            found.first = line
        found.error = line.get("error", found.error)
        found.killed = line.get("killed", found.killed)
        found.reports = line.get("reports", found.reports)
        found.done = found.done or "done" in line
    return found

"""The two kinds of systems, loaders and trainers: each has its systems, its laws, and its part of the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.conformance import loaders, trainers
from benchmarks.conformance.loaders.laws import GROUPS as LOADER_GROUPS
from benchmarks.conformance.loaders.lessons import LESSONS as LOADER_LESSONS
from benchmarks.conformance.loaders.system import System as Loader
from benchmarks.conformance.trainers.laws import GROUPS as TRAINER_GROUPS
from benchmarks.conformance.trainers.lessons import LESSONS as TRAINER_LESSONS
from benchmarks.conformance.trainers.system import System as Trainer


@dataclass(frozen=True)
class Kind:
    """One kind of systems.

    Attributes:
        word: for one of them.
        systems: name → name in the table.
        groups: heading → laws, by name.
        lessons: name → what we learned.
        prefix: of the page's anchors.
        open: (name, work, a limit of a run or nothing) → the system.
    """

    word: str
    systems: Mapping[str, str]
    groups: Mapping[str, Mapping[str, Any]]
    lessons: Mapping[str, str]
    prefix: str
    open: Callable[..., Any]

    @property
    def laws(self) -> dict[str, Any]:
        """All laws, in their order."""
        return {name: law for laws in self.groups.values() for name, law in laws.items()}


def _loader(name: str, work: Path, *limit: float) -> Loader:
    return Loader(name, work, work / "tars", *limit)


def _trainer(name: str, work: Path, *limit: float) -> Trainer:
    return Trainer(name, work / "trainers", *limit)


KINDS = {
    "loaders": Kind("loader", loaders.SYSTEMS, LOADER_GROUPS, LOADER_LESSONS, "", _loader),
    "trainers": Kind("trainer", trainers.SYSTEMS, TRAINER_GROUPS, TRAINER_LESSONS, "trainer-", _trainer),
}

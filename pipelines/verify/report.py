"""The job for every shard of a set, the report on one, and the verdict on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.sources.class_names import ClassList
from pipelines.sources.label_classes import LabelOptions
from pipelines.sources.remote import RemoteFiles
from pipelines.sources.vectors import Moments
from pretrain.data.ledger import Ledger
from pretrain.data.storage.index import ShardRow
from pretrain.data.storage.location import Location

MOST_SHOWN = 5
MOST_NOTES = 8  # about how the labels of the shards were read


@dataclass(frozen=True)
class Job:
    """The arguments that all shards of a set share.

    Attributes:
        folder: where the index is, and the tars unless they are remote.
        location: of the tars if they are remote; None: they are in the folder.
        remote: fetches them.
        classes: the list of the classes; None: there is none.
        labels: the user's options about them.
        decode: every image is decoded.
        stock: every shard is read by webdataset too.
    """

    folder: Path
    location: Location | None = None
    remote: RemoteFiles = field(default_factory=RemoteFiles)
    classes: ClassList | None = None
    labels: LabelOptions = field(default_factory=LabelOptions)
    decode: bool = True
    stock: bool = True


@dataclass
class Report:
    """The findings in one shard.

    Attributes:
        name: of the tar.
        row: of the table, as the shard would be indexed now; None: it cannot be read.
        labels: int32 (n,), the most specific label of each sample.
        all_labels: int32 (m,), every label that occurs, once.
        max_labels: the most labels of one sample.
        highest: the largest label; -1 where there are none.
        moments: of the vectors, where samples have those.
        num_masks: samples with a mask.
        mask_classes: the classes in them, as far as they were decoded; ``None`` where they were not.
        ledger: accounts for everything in the tar.
        notes: how the labels were read, where they are ambiguous.
        problems: descriptions of the first few.
        num_problems: how many there are.
    """

    name: str
    row: ShardRow | None = None
    labels: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    all_labels: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    max_labels: int = 1
    highest: int = -1
    moments: Moments = field(default_factory=Moments)
    num_masks: int = 0
    mask_classes: set[int] | None = None
    ledger: Ledger = field(default_factory=Ledger)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    num_problems: int = 0

    @property
    def highest_in_masks(self) -> int:
        """The largest class in masks; -1: none was seen."""
        return max(self.mask_classes or {-1})

    def add(self, problem: str) -> None:
        """Records a problem."""
        self.num_problems += 1
        if len(self.problems) < MOST_SHOWN:
            self.problems.append(problem)


@dataclass
class Verdict:
    """The findings in one set.

    Attributes:
        where: the set.
        num_samples: in the set.
        num_shards: tars.
        made: files that were written.
        errors: problems that must be fixed.
        warnings: problems that do not make the set unusable.
        ledger: accounts for everything in the folder and its shards.
    """

    where: str
    num_samples: int = 0
    num_shards: int = 0
    made: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)

    def add(self, reports: Sequence[Report]) -> None:
        """Adds the findings in the shards."""
        for report in reports:
            self.ledger.merge(report.ledger)
            self.errors += [f"{report.name}: {problem}" for problem in report.problems]
            if report.num_problems > len(report.problems):
                self.errors.append(f"{report.name}: and {report.num_problems - len(report.problems)} more")
        self.num_samples = sum(report.row.num_samples for report in reports if report.row)
        self.warnings += sorted({note for report in reports for note in report.notes})[:MOST_NOTES]

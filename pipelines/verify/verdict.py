"""The job for every shard of a set, the report on one, and the verdict on all of them with its checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.sources.class_names import ClassList
from pipelines.sources.file_patterns import STATE_FILE
from pipelines.sources.label_classes import LabelOptions
from pipelines.sources.label_values import Moments
from pipelines.sources.remote import RemoteFiles
from pipelines.sources.samples import SAMPLES
from pipelines.verify.targets import Target
from pretrain.data.ledger import Account, Ledger
from pretrain.data.storage.card import CARD_FILE, Card
from pretrain.data.storage.card import check_card as check_card_fits
from pretrain.data.storage.index import TABLE_FILE, ShardRow, ShardTable
from pretrain.data.storage.location import Location
from pretrain.errors import DataError

MOST_SHOWN = 5
MOST_NOTES = 8  # about how the labels of the shards were read
# of the check that labels are shuffled; see ``label_correlation``
SHUFFLES = 12
MOST_SAMPLES = 1_000_000  # more would add no information: shards are drawn up to this number of labels
LEAST_SAMPLES = 64
ALARM_RATIO = 1.25
ALARM_DEVIATIONS = 8.0


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
        num_negatives: samples with none of the classes.
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
    num_negatives: int = 0
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


def known_table(target: Target, verdict: Verdict) -> ShardTable | None:
    """The index of a set; None: it has none.

    Raises:
        DataError: a pack is not complete, or there are tars that are not in the index.
    """
    if not (target.folder / TABLE_FILE).is_file():
        if (target.folder.parent / STATE_FILE).is_file() and not (target.folder / CARD_FILE).is_file():
            raise DataError(  # an index of the existing shards would make the pack look finished
                f"{target.folder} is not completely packed yet; run the same python -m pipelines pack … again (or pack "
                f"merge {target.folder.parent}) to complete it"
            )
        return None
    table = ShardTable.load(target.folder)
    indexed, there = {row.name for row in table.rows}, set(target.names)
    verdict.errors += [f"{name}: in {TABLE_FILE}, but not there" for name in sorted(indexed - there)]
    extra = sorted(there - indexed)
    if extra:
        raise DataError(
            f"{target}: {len(extra)} tars are not in {TABLE_FILE}, such as {extra[0]}; move them away, or delete "
            f"{target.folder / TABLE_FILE} to make a new one of all of them"
        )
    return table


def check_ledger(verdict: Verdict, reports: Sequence[Report]) -> None:
    """Warns about samples that are left out. A shard that could not be read to its end already has an error."""
    samples = verdict.ledger.accounts.get(SAMPLES, Account())
    for reason, lost in samples.lost.items():
        verdict.warnings.append(f"samples are left out: {lost.count} ({reason}, such as {lost.examples[0]})")
    empty = [report.name for report in reports if report.row is not None and not report.row.num_samples]
    if empty:
        verdict.warnings.append(f"shards without a sample: {len(empty)}, such as {empty[0]}")
    if all(report.row is not None for report in reports):
        verdict.ledger.check(verdict.where)


def check_labels(verdict: Verdict, reports: Sequence[Report]) -> None:
    """Warns about labels that are not shuffled across the shards."""
    found = label_correlation([report.labels for report in reports])
    if found is not None and found.is_ordered:
        verdict.warnings.append(
            f"the labels are not mixed along the shards: {found}. Shuffling while reading cannot fix that, and "
            "training on it goes wrong. Pack it again: python -m pipelines pack webdataset "
            f"{verdict.where} --out DIR"
        )


def check_masks(table: ShardTable, reports: Sequence[Report], verdict: Verdict) -> None:
    """Masks that contain no class of the set, or not all classes: usually their numbers were misread."""
    seen = {number for report in reports for number in report.mask_classes or ()}
    if table.target != "mask" or not any(report.mask_classes is not None for report in reports):
        return
    missing = [number for number in range(table.num_classes) if number not in seen]
    if not seen:
        verdict.errors.append("no pixel of the masks has a class: all are 255")
    elif max(seen) >= table.num_classes:
        verdict.errors.append(
            f"a pixel of a mask is {max(seen)}, but there are {table.num_classes} classes (255: none)"
        )
    if seen and missing:
        named = ", ".join(map(str, missing[:MOST_NOTES])) + (", …" if len(missing) > MOST_NOTES else "")
        verdict.warnings.append(
            f"{len(missing)} of {table.num_classes} classes occur in no mask: {named}. If they should, pack the masks "
            "again: pack reports the numbers that they are stored as"
        )


def check_card(target: Target, table: ShardTable, verdict: Verdict) -> None:
    """Compares the card of a set with its index."""
    try:
        check_card_fits(Card.load(target.folder), table, str(target))
    except DataError as error:
        verdict.errors.append(str(error))


@dataclass(frozen=True)
class Correlation:
    """The measured shares, and those of shuffled labels: (mean, standard deviation).

    Attributes:
        neighbours: share of neighbouring pairs with equal labels.
        mates: share of pairs in one shard with equal labels.
        shuffled_neighbours: the same of shuffled labels.
        shuffled_mates: the same of shuffled labels.
    """

    neighbours: float
    mates: float
    shuffled_neighbours: tuple[float, float]
    shuffled_mates: tuple[float, float]

    @property
    def is_ordered(self) -> bool:
        """Labels are more correlated along the shards than chance explains."""
        return _is_high(self.neighbours, *self.shuffled_neighbours) or _is_high(self.mates, *self.shuffled_mates)

    def __str__(self) -> str:
        return (
            f"neighbours share one in {self.neighbours:.1%} of pairs (shuffled: {self.shuffled_neighbours[0]:.1%}), "
            f"samples of one shard in {self.mates:.1%} (shuffled: {self.shuffled_mates[0]:.1%})"
        )


def label_correlation(shards: list[NDArray[np.int32]]) -> Correlation | None:
    """Measures whether the labels are shuffled across the shards; None: too few to measure.

    Sets that were packed class by class pass every other check. Two measures are used. *Neighbours*: how often two
    neighbours in a shard have the same label. *Mates*: how often any two samples of one shard do. In a shuffled set
    both equal the share for any two samples of the set, Σ p². Both are compared with their values for the same labels
    in random order, so that a few large classes or small shards raise no alarm.

    Args:
        shards: one label per sample; the most specific one if there are several.
    """
    labels, starts = _drawn(shards)
    if len(labels) < LEAST_SAMPLES or len(np.unique(labels)) < 2:
        return None
    generator = np.random.default_rng(0)
    shuffled = np.array([_measure(generator.permutation(labels), starts) for _ in range(SHUFFLES)])
    neighbours, mates = _measure(labels, starts)
    mean, deviation = shuffled.mean(axis=0), shuffled.std(axis=0)
    return Correlation(neighbours, mates, (mean[0], deviation[0]), (mean[1], deviation[1]))


def _drawn(shards: list[NDArray[np.int32]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    order = np.random.default_rng(0).permutation(len(shards))
    taken, count = [], 0
    for index in order:
        taken.append(int(index))
        count += len(shards[index])
        if count >= MOST_SAMPLES:
            break
    chosen = [shards[index] for index in sorted(taken)]
    starts = np.cumsum([0, *(len(shard) for shard in chosen)]).astype(np.int64)
    _, labels = np.unique(np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.int32), return_inverse=True)
    return labels.astype(np.int64), starts


def _measure(labels: NDArray[np.int64], starts: NDArray[np.int64]) -> tuple[float, float]:
    inside = np.ones(len(labels) - 1, dtype=bool)
    inside[starts[1:-1][(starts[1:-1] > 0) & (starts[1:-1] < len(labels))] - 1] = False
    equal = labels[1:] == labels[:-1]
    neighbours = float(equal[inside].mean()) if inside.any() else 0.0
    sizes = np.diff(starts)
    shard = np.repeat(np.arange(len(sizes)), sizes)
    _, counts = np.unique(shard * (labels.max() + 1) + labels, return_counts=True)
    pairs = float((sizes * (sizes - 1)).sum())
    return neighbours, float((counts * (counts - 1)).sum()) / pairs if pairs else 0.0


def _is_high(value: float, mean: float, deviation: float) -> bool:
    return value > ALARM_RATIO * mean and value > mean + ALARM_DEVIATIONS * max(deviation, 1e-6)

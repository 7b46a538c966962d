"""The index and the card of shards that another program packed; they contain only what was found in the shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.sources.class_names import ClassList
from pipelines.sources.label_doubts import gaps_in_words
from pipelines.sources.label_values import Moments
from pipelines.sources.protocol import NOT_STATED
from pipelines.sources.splits import Place, Splits, splits_of_files, to_split_name
from pipelines.verify.targets import Target
from pipelines.verify.verdict import Report
from pretrain.data.ledger import Ledger
from pretrain.data.storage.card import Card
from pretrain.data.storage.classes import encode_classes
from pretrain.data.storage.index import ShardTable
from pretrain.errors import ConfigError, DataError
from pretrain.files import digest


@dataclass(frozen=True)
class Stated:
    """Facts about a set without a card, given by the user; "" and 0: not given."""

    name: str = ""
    licence: str = ""
    split: str = ""
    num_classes: int = 0


@dataclass(frozen=True)
class Indexing:
    """Makes the index and the card of one set.

    Attributes:
        target: the set.
        reports: of all its shards, which could all be read.
        classes: the list of the classes; None: there is none.
        stated: facts given by the user.
    """

    target: Target
    reports: Sequence[Report]
    classes: ClassList | None
    stated: Stated

    def table(self) -> tuple[ShardTable, list[str]]:
        """Writes the index; returns it, and remarks on classes without an image.

        Raises:
            DataError: the shards do not make one set. ConfigError: --num-classes is not the number of names.
        """
        num_classes = self._num_classes()
        rows = [report.row for report in self.reports if report.row]
        remarks: list[str] = []
        target, max_labels = "labels", 0
        if masks := sum(report.num_masks for report in self.reports):
            if masks < sum(row.num_samples for row in rows):
                raise DataError(f"{self.target}: only {masks} samples have a mask; index them apart")
            target = "mask"
        elif length := self._vector_length():
            target, num_classes = "vector", length
        else:
            max_labels = max(report.max_labels for report in self.reports)
            if self.classes is None:
                seen = {int(label) for report in self.reports for label in np.unique(report.all_labels)}
                remarks = gaps_in_words(seen, num_classes, invented=not self.stated.num_classes)
        table = ShardTable(self.target.folder, rows, num_classes=num_classes, max_labels=max_labels, target=target)
        table.save()
        return table, remarks

    def card(self, table: ShardTable, ledger: Ledger) -> None:
        """Writes the card and the list of classes.

        Args:
            table: the index.
            ledger: accounts for everything in the shards.
        """
        known = list(self.classes.classes) if self.classes else []
        named = known + [(str(index), str(index)) for index in range(len(known), table.num_classes)]
        counts, moments = np.zeros(table.num_classes, dtype=np.int64), Moments()
        for report in self.reports:
            counts += np.bincount(report.labels, minlength=table.num_classes)
            moments.merge(report.moments)
        split = split_of(self.target, self.stated.split)
        Card(
            name=self.stated.name or self.target.folder.resolve().name,
            split=split.names[0],
            split_rule=split.rule,
            source=f"shards at {self.target}, indexed in place",
            release="",
            homepage="",
            held_out="",
            selection="",
            licence=self.stated.licence or NOT_STATED,
            num_samples=table.num_samples,
            num_classes=table.num_classes,
            labels=("multi" if table.max_labels > 1 else "single") if table.target == "labels" else table.target,
            max_labels=table.max_labels,
            num_shards=len(table.rows),
            num_bytes=sum(row.num_bytes for row in table.rows),
            negatives=sum(report.num_negatives for report in self.reports),
            class_counts=counts.tolist() if table.max_labels == 1 else [],
            target_mean=moments.mean.tolist(),
            target_std=moments.std.tolist(),
            ledger=ledger.accounts,
            shuffle_seed=0,
            classes_digest=digest(encode_classes(named)),
            index_digest=table.digest,
        ).save(self.target.folder, named)

    def _num_classes(self) -> int:
        highest = max(max(report.highest, report.highest_in_masks) for report in self.reports)
        stated, classes = self.stated.num_classes, self.classes
        if classes and stated not in (0, len(classes.classes)):
            raise ConfigError(f"--num-classes {stated}, but {classes.where} names {len(classes.classes)} classes")
        num_classes = len(classes.classes) if classes else stated or highest + 1
        if highest >= num_classes:
            raise DataError(f"{self.target}: a label is {highest}, but there are {num_classes} classes")
        if min((int(report.labels.min(initial=0)) for report in self.reports), default=0) < 0:
            raise DataError(f"{self.target}: a label is below 0; samples without a class cannot be trained on")
        return num_classes

    def _vector_length(self) -> int:
        """Numbers of each vector; 0: the samples have labels."""
        read = [report for report in self.reports if report.row and report.row.num_samples]
        lengths = {len(report.moments.mean): report.name for report in read}
        if len(lengths) > 1:
            (one, first), (other, second), *_ = lengths.items()
            raise DataError(
                f"{self.target}: samples of {first} have targets of {one} numbers, of {second} {other} (0: labels); "
                "index them as two sets"
            )
        return next(iter(lengths), 0)


def split_of(target: Target, stated: str) -> Splits:
    """The split of shards without a card, for all of them.

    Raises:
        DataError: they are of several splits, which one index would mix.
    """
    if stated:
        return Splits((to_split_name(stated, "--split"),), "--split")
    above, _, root = str(target).rstrip("/").rpartition("/")
    below = f"{target.below}/" if target.below else ""
    try:
        found = splits_of_files([Place(f"{below}{name}", root, above) for name in target.names])
    except DataError as error:
        raise DataError(
            f"{target}: {error.args[0].partition(';')[0]}; say which split they are with --split"
        ) from error
    counts = Counter(found.names)
    if len(counts) > 1:
        shown = ", ".join(f"{count} of {split}" for split, count in counts.items())
        raise DataError(
            f"{target}: the shards are of several splits ({shown}), and an index is of one. Move each split into a "
            f"folder of its own, pack them (python -m pipelines pack webdataset {target} --out DIR), or say that all "
            "are one with --split"
        )
    return found

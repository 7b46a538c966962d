"""Samples that are files of their own, read as the samples of packed sets are: for training without packing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pretrain.config.schema.data import Target
from pretrain.data.storage.records import PADDING_LABEL
from pretrain.data.storage.tally import Fault
from pretrain.data.workers.reader import MAX_NEIGHBOURS, Place, Sample, ShardReader
from pretrain.errors import BadSample, DataError

Decoded = TypeVar("Decoded")


class FileTable(NamedTuple):
    """The facts that a batch needs of its set; see ``ShardTable``."""

    num_classes: int
    num_samples: int
    max_labels: int
    target: Target = "labels"


class FileReader:
    """Reads images of a folder; sample id i is the i-th file. See ``MixedReader``, whose place it takes.

    Args:
        root: the folder.
        names: paths of the files below it.
        labels: class indices of each.
        num_classes: of the set.
    """

    readers: tuple[ShardReader, ...] = ()  # no tars

    def __init__(self, root: Path, names: Sequence[str], labels: Sequence[tuple[int, ...]], num_classes: int) -> None:
        self.root, self.names, self.labels = root, tuple(names), tuple(labels)
        self.max_labels = max(map(len, self.labels))
        self.table = FileTable(num_classes, len(self.names), self.max_labels)

    def places(self, sample_ids: NDArray[np.int64]) -> tuple[list[Place], NDArray[np.int64]]:
        """The files of several samples, and their labels, int64 (b, M), padded."""
        labels = np.full((len(sample_ids), self.max_labels), PADDING_LABEL, dtype=np.int64)
        places = []
        for row, sample_id in enumerate(sample_ids.tolist()):
            own = self.labels[sample_id]
            labels[row, : len(own)] = own
            places.append(Place(self.names[sample_id], 0, 0, 0))
        return places, labels

    def read_at(self, sample_id: int, place: Place) -> bytes:
        """The bytes of a file.

        Raises:
            BadSample: it cannot be read.
        """
        try:
            return (self.root / self.names[sample_id]).read_bytes()
        except OSError as error:
            raise BadSample("read", error.strerror or str(error)) from error

    def read(self, sample_id: int) -> Sample:
        """One sample; raises as ``read_at``."""
        return Sample(sample_id, self.read_at(sample_id, Place("", 0, 0, 0)), self.labels[sample_id])

    def read_decoded(self, sample_id: int, decode: Callable[[Sample], Decoded]) -> tuple[Sample, Decoded]:
        """One sample and the result of ``decode``; raises as ``read_at``, or what ``decode`` raises."""
        sample = self.read(sample_id)
        return sample, decode(sample)

    def fault(self, sample_id: int, bad: BadSample, *, replaced_by: int = -1) -> Fault:
        """The record of an unusable file."""
        return Fault(sample_id, replaced_by, str(self.root), self.names[sample_id], bad.kind, bad.detail)

    def neighbour(
        self, sample_id: int, bad: BadSample, decode: Callable[[Sample], Decoded]
    ) -> tuple[Sample, Decoded, Fault]:
        """The next good file, which replaces a bad one; ``bad`` is the reason.

        Raises:
            DataError: the next files cannot be used either.
        """
        for distance in range(1, min(MAX_NEIGHBOURS, len(self.names) - 1) + 1):
            other = (sample_id + distance) % len(self.names)
            try:
                return *self.read_decoded(other, decode), self.fault(sample_id, bad, replaced_by=other)
            except BadSample:
                continue
        raise DataError(
            f"{self.root / self.names[sample_id]} cannot be used ({bad}), nor can the next {MAX_NEIGHBOURS} files; "
            "check the folder with python -m pipelines pack folder"
        ) from bad

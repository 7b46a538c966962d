"""Makes micro-batches from their positions in the order. Every data process imports this module.

Legend: b images in the micro-batch · M largest number of labels of a sample · H, W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, get_worker_info

from pretrain.config.target import IGNORED_PIXEL
from pretrain.data.batch import NO_SLOT, Batch
from pretrain.data.images.augment import EvalTransform, TrainTransform, View
from pretrain.data.order.mixture import Mixture
from pretrain.data.storage.index import ShardTable
from pretrain.data.storage.records import PADDING_LABEL
from pretrain.data.storage.store import Store
from pretrain.data.workers import lent_memory
from pretrain.data.workers.ahead import FetchAhead
from pretrain.data.workers.reader import MixedReader, Sample, ShardReader
from pretrain.errors import BadSample, DataError, UserError

NO_SAMPLE = -1


class Share(NamedTuple):
    """The share of rank ``rank`` of ``world``, of a global batch or an evaluation set, in micro-batches of b."""

    rank: int
    world: int
    micro_batch_size: int


class Failure:
    """Carries a user's error out of a data process; raised there, it would arrive wrapped in a stack trace."""

    def __init__(self, error: UserError) -> None:
        self.error = error


class TrainDataset(Dataset[Any]):
    """(position, first) → this rank's micro-batch, from its ``first`` sample of the global batch at ``position`` on.

    Args:
        reader: of the training sets.
        order: position → samples.
        transform: bytes → pixels.
        share: of this rank.
        fetch_threads: concurrent requests for samples that will be read next; only for remote sets.
    """

    # many: all that a data process needs, since only this object is sent to it
    def __init__(
        self,
        reader: MixedReader,
        order: Mixture,
        transform: TrainTransform,
        share: Share,
        *,
        fetch_threads: int = 1,
    ) -> None:
        self.reader, self.order, self.transform = reader, order, transform
        self.rank, self.world, self.micro_batch_size = share
        self.fetch_threads = fetch_threads
        self._ahead: FetchAhead | None = None

    def __getitem__(self, index: tuple[int, int]) -> Batch | Failure:
        try:
            return self._batch(*index)
        except UserError as error:
            return Failure(error)

    def _batch(self, position: int, first: int) -> Batch:
        stop = first + self.micro_batch_size
        draws = self.order.batch(position, self.rank, self.world, start=first, stop=stop)
        self._fetch_ahead(position, draws.sample_ids)
        numbers = self.transform.numbers(draws.epochs, draws.sample_ids, self.order.copy_numbers(draws.slots))
        batch = empty_batch(len(draws.sample_ids), self.transform, self.reader.max_labels, self.reader.table)
        places, labels = self.reader.places(draws.sample_ids)
        batch.labels.numpy()[...] = labels
        batch.sample_ids.numpy()[...] = draws.sample_ids
        batch.slots.numpy()[...] = draws.slots
        batch.valid.fill_(True)
        rows = batch.images.permute(0, 2, 3, 1).numpy()
        for row, sample_id in enumerate(draws.sample_ids.tolist()):
            try:
                if batch.targets is None:
                    self.transform(self.reader.read_at(sample_id, places[row]), numbers[row], rows[row])
                else:
                    sample = self.reader.read(sample_id)
                    _fill_target(batch.targets, row, sample, self.transform.pair(sample, numbers[row], rows[row]))
            except BadSample as bad:
                self._replace(batch, row, sample_id, bad, numbers[row])
        return batch

    def _replace(self, batch: Batch, row: int, sample_id: int, bad: BadSample, numbers: NDArray[np.float64]) -> None:
        """Replaces a bad sample by the next good one of the shard."""
        sample, view, fault = self.reader.neighbour(sample_id, bad, lambda sample: self.transform.pair(sample, numbers))
        fill_row(batch, row, sample, view)
        batch.faults.append(fault)

    def close(self) -> None:
        """Stops fetching ahead in this process."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _fetch_ahead(self, position: int, sample_ids: NDArray[np.int64]) -> None:
        readers = self.reader.readers
        if self._ahead is None and any(reader.store.keeps_up for reader in readers):
            worker = get_worker_info()
            self._ahead = FetchAhead(
                self.order,
                [ShardReader(reader.table, reader.store) for reader in readers],
                rank=self.rank,
                world=self.world,
                share=(0, 1) if worker is None else (worker.id, worker.num_workers),
                num_threads=self.fetch_threads,
            )
        if self._ahead is not None:
            self._ahead.at(position, sample_ids)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ahead": None}


class EvalDataset(Dataset[Any]):
    """Batch number → this rank's evaluated samples (rank, rank + world, …); the last batch may have padding.

    Args:
        table: the set.
        transform: bytes → pixels.
        share: of this rank.
        sample_ids: the samples to evaluate; None: all.
        store: reads the tars; None: from the table's folder.
    """

    # many: all that a data process needs, since only this object is sent to it
    def __init__(
        self,
        table: ShardTable,
        transform: EvalTransform,
        share: Share,
        *,
        sample_ids: NDArray[np.int64] | None = None,
        store: Store | None = None,
    ) -> None:
        self.table, self.transform = table, transform
        self.rank, self.world, self.micro_batch_size = share
        self.sample_ids = sample_ids
        self.num_samples = table.num_samples if sample_ids is None else len(sample_ids)
        self.reader = ShardReader(table, store)

    def __len__(self) -> int:
        """Number of batches, the same on every rank."""
        per_rank = -(-self.num_samples // self.world)
        return -(-per_rank // self.micro_batch_size)

    def __getitem__(self, index: int) -> Batch | Failure:
        try:
            return self._batch(index)
        except UserError as error:
            return Failure(error)

    def _batch(self, index: int) -> Batch:
        numbers = index * self.micro_batch_size + np.arange(self.micro_batch_size)
        batch = empty_batch(len(numbers), self.transform, self.table.max_labels, self.table)
        for row, place in enumerate((numbers * self.world + self.rank).tolist()):
            if place >= self.num_samples:
                break
            sample_id = place if self.sample_ids is None else int(self.sample_ids[place])
            try:
                fill_row(batch, row, *self.reader.read_decoded(sample_id, self.transform.pair))
            except BadSample as bad:  # a replacement would be counted twice
                batch.faults.append(self.reader.fault(sample_id, bad))
        batch.images[~batch.valid] = 0
        return batch


def empty_batch(size: int, transform: TrainTransform | EvalTransform, max_labels: int, table: ShardTable) -> Batch:
    """A batch in which every row is padding, for samples of a set like ``table``; its images are not initialised.

    In a data process, the images are in memory shared with the rank. Otherwise the entire batch would be copied into
    shared memory once it is made, and mapping new memory costs more than a copy.
    """
    shape, block = (size, transform.height, transform.width, 3), None
    if get_worker_info() is not None:
        block = lent_memory.take(math.prod(shape))
        if block is None:
            storage = torch.UntypedStorage._new_shared(math.prod(shape), device="cpu")
            content = torch.empty(0, dtype=torch.uint8).set_(storage, 0, shape)  # pyright: ignore[reportCallIssue]
        else:
            content = torch.from_numpy(block.content).view(shape)
    else:
        content = torch.empty(shape, dtype=torch.uint8)
    return Batch(
        images=content.permute(0, 3, 1, 2),  # channels last, as decoders write them
        labels=torch.full((size, max_labels), PADDING_LABEL, dtype=torch.int64),
        sample_ids=torch.full((size,), NO_SAMPLE, dtype=torch.int64),
        slots=torch.full((size,), NO_SLOT, dtype=torch.int64),
        valid=torch.zeros(size, dtype=torch.bool),
        targets=_empty_targets(size, transform, table),
        block=block,
    )


def _empty_targets(size: int, transform: TrainTransform | EvalTransform, table: ShardTable) -> torch.Tensor | None:
    if table.target == "vector":
        return torch.zeros(size, table.num_classes)
    if table.target == "mask":
        return torch.full((size, transform.height, transform.width), IGNORED_PIXEL, dtype=torch.uint8)
    return None


def _fill_target(targets: torch.Tensor, row: int, sample: Sample, view: View) -> None:
    targets.numpy()[row] = sample.vector if view.mask is None else view.mask


def fill_row(batch: Batch, row: int, sample: Sample, view: View) -> None:
    """Writes one sample into its row."""
    batch.images.numpy()[row] = view.pixels.transpose(2, 0, 1)  # both are channels-last, so this copies one block
    batch.labels.numpy()[row] = PADDING_LABEL
    batch.labels.numpy()[row, : len(sample.labels)] = sample.labels
    batch.sample_ids.numpy()[row] = sample.sample_id
    batch.valid.numpy()[row] = True
    if batch.targets is not None:
        _fill_target(batch.targets, row, sample, view)


def read_samples(reader: MixedReader, sample_ids: Sequence[int], transform: EvalTransform) -> tuple[Batch, list[str]]:
    """Reads samples, replacing bad ones as in training; a sample without a replacement gets no row.

    Args:
        reader: of the training sets.
        sample_ids: in row order.
        transform: bytes → pixels.

    Returns:
        The batch, in which all rows are real images, and descriptions of the samples that could not be read.
    """
    batch = empty_batch(len(sample_ids), transform, reader.max_labels, reader.table)
    problems: list[str] = []
    filled = 0
    for sample_id in sample_ids:
        try:
            try:
                sample = reader.read(sample_id)
                view = transform.pair(sample)
            except BadSample as bad:
                sample, view, fault = reader.neighbour(sample_id, bad, transform.pair)
                problems.append(f"shard {fault.shard}, member {fault.member}: {bad}; its neighbour takes its place")
        except DataError as error:
            problems.append(str(error))
            if not isinstance(error.__cause__, BadSample):  # if the set cannot be reached, do not try every row
                break
            continue
        fill_row(batch, filled, sample, view)
        filled += 1
    return _rows(batch, filled), _unique(problems)


def _rows(batch: Batch, count: int) -> Batch:
    targets = None if batch.targets is None else batch.targets[:count]
    return Batch(
        images=batch.images[:count],
        labels=batch.labels[:count],
        sample_ids=batch.sample_ids[:count],
        slots=batch.slots[:count],
        valid=batch.valid[:count],
        targets=targets,
    )


def _unique(lines: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(lines))

"""Makes micro-batches from their positions in the order. Every data process imports this module.

Legend: b images in the micro-batch · M largest number of labels of a sample · H, W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, get_worker_info

from pretrain.config.image_sizes import Tiling
from pretrain.config.schema.data import IGNORED_PIXEL
from pretrain.data.batch import NO_SLOT, Batch, take_block, views_of
from pretrain.data.images.augment import TrainTransform, View
from pretrain.data.images.native import AnyEval, AnyTrain, NativeEvalTransform, NativeTrainTransform
from pretrain.data.order.mixture import Mixture
from pretrain.data.order.order import Draws
from pretrain.data.storage.index import ShardTable
from pretrain.data.storage.records import PADDING_LABEL
from pretrain.data.workers.ahead import FetchAhead
from pretrain.data.workers.files import FileReader, FileTable
from pretrain.data.workers.reader import MixedReader, Sample, ShardReader
from pretrain.errors import BadSample, DataError, UserError

NO_SAMPLE = -1


class Share(NamedTuple):
    """The share of rank ``rank`` of ``world``, of a global batch or an evaluation set, in micro-batches of b."""

    rank: int
    world: int
    micro_batch_size: int


class MicroStep(NamedTuple):
    """One micro-batch of a rank: the same size and the same samples in every data process.

    Attributes:
        position: samples that all ranks drew before its global batch.
        first: number of its first sample among the rank's samples of the global batch.
        size: number of its samples.
        tiling: size of the images and their patches.
    """

    position: int
    first: int
    size: int
    tiling: Tiling


class Failure:
    """Carries a user's error out of a data process; raised there, it would arrive wrapped in a stack trace."""

    def __init__(self, error: UserError) -> None:
        self.error = error


class TrainDataset(Dataset[Any]):
    """``MicroStep`` → this rank's micro-batch.

    Args:
        reader: of the training sets.
        order: position → samples.
        transform: bytes → pixels, of the largest size that any step has.
        share: of this rank.
        fetch_threads: concurrent requests for samples that will be read next; only for remote sets.
        largest_batch: pixels of the largest micro-batch of any step; None: b images of the transform.
    """

    # many: all that a data process needs, since only this object is sent to it
    def __init__(
        self,
        reader: MixedReader | FileReader,
        order: Mixture,
        transform: AnyTrain,
        share: Share,
        *,
        fetch_threads: int = 1,
        largest_batch: int | None = None,
    ) -> None:
        self.reader, self.order, self.transform = reader, order, transform
        self.rank, self.world, micro_batch_size = share
        self.largest_batch = largest_batch or micro_batch_size * transform.height * transform.width
        self.fetch_threads = fetch_threads
        self._transforms: dict[tuple[int, int], AnyTrain] = {}
        self._ahead: FetchAhead | None = None

    def __getitem__(self, index: MicroStep) -> Batch | Failure:
        try:
            return self._batch(index)
        except UserError as error:
            return Failure(error)

    def _batch(self, step: MicroStep) -> Batch:
        draws = self._draws(step)
        self._fetch_ahead(step.position, draws.sample_ids)
        transform = self._transform_of(step.tiling.size)
        numbers = transform.numbers(draws.epochs, draws.sample_ids, self.order.copy_numbers(draws.slots))
        largest = self.largest_batch * transform.views * 3
        batch = empty_batch(
            len(draws.sample_ids), transform, self.reader.max_labels, self.reader.table, largest_batch=largest
        )
        batch.patch = step.tiling.patch
        places, labels = self.reader.places(draws.sample_ids)
        batch.labels.numpy()[...] = labels
        batch.sample_ids.numpy()[...] = draws.sample_ids
        batch.slots.numpy()[...] = draws.slots
        batch.valid.fill_(True)
        rows = batch.images.permute(0, 2, 3, 1).numpy()
        for row, sample_id in enumerate(draws.sample_ids.tolist()):
            try:
                if batch.targets is None and batch.second is None and isinstance(transform, TrainTransform):
                    transform(self.reader.read_at(sample_id, places[row]), numbers[row], rows[row])
                else:
                    sample = self.reader.read(sample_id)
                    _fill_others(batch, row, sample, transform.pair(sample, numbers[row], rows[row]))
            except BadSample as bad:
                self._replace(batch, row, bad, lambda sample, row=row: transform.pair(sample, numbers[row]))
        return batch

    def _draws(self, step: MicroStep) -> Draws:
        """The samples of a micro-batch. A step is one or more batches of the order, of which a rank takes its share."""
        unit, end, found = self.order.global_batch_size, step.first + step.size, []
        per_rank = unit // self.world
        for number in range(step.first // per_rank, -(-end // per_rank)):
            start, stop = max(0, step.first - number * per_rank), min(per_rank, end - number * per_rank)
            position = step.position + number * unit
            found.append(self.order.batch(position, self.rank, self.world, start=start, stop=stop))
        return found[0] if len(found) == 1 else Draws(*map(np.concatenate, zip(*found, strict=True)))

    def _transform_of(self, size: tuple[int, int]) -> AnyTrain:
        """The transform to a size, kept because its policies take time to build."""
        if size not in self._transforms:
            self._transforms[size] = self.transform.at_size(size)
        return self._transforms[size]

    def _replace(self, batch: Batch, row: int, bad: BadSample, decode: Callable[[Sample], View]) -> None:
        """Replaces a bad sample by the next good one of the shard."""
        sample, view, fault = self.reader.neighbour(int(batch.sample_ids[row]), bad, decode)
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
        reader: of the set.
        transform: bytes → pixels.
        share: of this rank.
        sample_ids: the samples to evaluate; None: all.
    """

    def __init__(
        self,
        reader: ShardReader | FileReader,
        transform: AnyEval,
        share: Share,
        sample_ids: NDArray[np.int64] | None = None,
    ) -> None:
        self.reader, self.table, self.transform = reader, reader.table, transform
        self.rank, self.world, self.micro_batch_size = share
        self.sample_ids = sample_ids
        self.num_samples = self.table.num_samples if sample_ids is None else len(sample_ids)

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


def empty_batch(
    size: int,
    transform: AnyTrain | AnyEval,
    max_labels: int,
    table: ShardTable | FileTable,
    *,
    largest_batch: int = 0,
) -> Batch:
    """A batch in which every row is padding, for samples of a set like ``table``; its images are not initialised.

    ``largest_batch`` is the bytes of the images of the largest of this and later batches, for which memory is reserved.

    In a data process, the images are in memory shared with the rank. Otherwise the entire batch would be copied into
    shared memory once it is made, and mapping new memory costs more than a copy.
    """
    shape, block = (transform.views * size, transform.height, transform.width, 3), None
    if get_worker_info() is not None:
        block = take_block(math.prod(shape), max(math.prod(shape), largest_batch))
        if block is None:
            storage = torch.UntypedStorage._new_shared(math.prod(shape), device="cpu")
            content = torch.empty(0, dtype=torch.uint8).set_(storage, 0, shape)  # pyright: ignore[reportCallIssue]
        else:
            content = torch.from_numpy(block.content).view(shape)
    else:
        content = torch.empty(shape, dtype=torch.uint8)
    images, *second = views_of(content, size)  # channels last, as decoders write them
    return Batch(
        images=images,
        labels=torch.full((size, max_labels), PADDING_LABEL, dtype=torch.int64),
        sample_ids=torch.full((size,), NO_SAMPLE, dtype=torch.int64),
        slots=torch.full((size,), NO_SLOT, dtype=torch.int64),
        valid=torch.zeros(size, dtype=torch.bool),
        targets=_empty_targets(size, transform, table),
        grids=torch.ones(size, 2, dtype=torch.int64) if isinstance(transform, _NATIVE) else None,
        second=second[0] if second else None,
        block=block,
    )


_NATIVE = (NativeTrainTransform, NativeEvalTransform)


def _empty_targets(size: int, transform: AnyTrain | AnyEval, table: ShardTable | FileTable) -> torch.Tensor | None:
    if table.target == "vector":
        return torch.zeros(size, table.num_classes)
    if table.target == "mask":
        return torch.full((size, transform.height, transform.width), IGNORED_PIXEL, dtype=torch.uint8)
    return None


def _fill_others(batch: Batch, row: int, sample: Sample, view: View) -> None:
    """Writes what a batch has of one sample beside image and labels: vector or mask, patch grid, second view."""
    if batch.targets is not None:
        batch.targets.numpy()[row] = sample.vector if view.mask is None else view.mask
    if batch.grids is not None:
        batch.grids.numpy()[row] = view.grid
    if batch.second is not None and view.second is not None:
        batch.second.numpy()[row] = view.second.transpose(2, 0, 1)


def fill_row(batch: Batch, row: int, sample: Sample, view: View) -> None:
    """Writes one sample into its row."""
    batch.images.numpy()[row] = view.pixels.transpose(2, 0, 1)  # both are channels-last, so this copies one block
    batch.labels.numpy()[row] = PADDING_LABEL
    batch.labels.numpy()[row, : len(sample.labels)] = sample.labels
    batch.sample_ids.numpy()[row] = sample.sample_id
    batch.valid.numpy()[row] = True
    _fill_others(batch, row, sample, view)


def read_samples(reader: MixedReader, sample_ids: Sequence[int], transform: AnyEval) -> tuple[Batch, list[str]]:
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
    return Batch(
        images=batch.images[:count],
        labels=batch.labels[:count],
        sample_ids=batch.sample_ids[:count],
        slots=batch.slots[:count],
        valid=batch.valid[:count],
        targets=None if batch.targets is None else batch.targets[:count],
        grids=None if batch.grids is None else batch.grids[:count],
    )


def _unique(lines: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(lines))

"""The first samples that a training set is drawn from, as one batch without augmentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pretrain.data.batch import Batch
from pretrain.data.images.augment import EvalTransform
from pretrain.data.workers.dataset import empty_batch, fill_row
from pretrain.data.workers.faults import BadSample
from pretrain.data.workers.reader import MixedReader
from pretrain.errors import DataError


def read_samples(reader: MixedReader, sample_ids: Sequence[int], transform: EvalTransform) -> tuple[Batch, list[str]]:
    """These samples, each bad one replaced as in training; a sample that has no replacement gets no row.

    Args:
        reader: of the training sets.
        sample_ids: in the order of the rows.
        transform: bytes → pixels.

    Returns:
        The batch, all of whose rows are real images, and what could not be read, in words.
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
            if not isinstance(error.__cause__, BadSample):  # a set that cannot be reached is not asked for every row
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

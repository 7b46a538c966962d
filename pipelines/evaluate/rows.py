"""The steps of every evaluation: open a set and a network, process each image once over all ranks, account for them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.weights.ranks import batches_of
from pretrain.config.schema.cluster import AutoClusterConfig
from pretrain.data.batch import Batch
from pretrain.data.images.augment import EvalTransform
from pretrain.data.ledger import Ledger
from pretrain.data.storage.packed_set import PackedSet, open_packed
from pretrain.data.workers.dataset import EvalDataset, Share
from pretrain.data.workers.reader import ShardReader
from pretrain.distributed.collectives import gather_objects
from pretrain.distributed.rank import Rank
from pretrain.errors import DataError

IMAGES = "images"


class Evaluated(NamedTuple):
    """The figures of a set.

    Attributes:
        figures: by name, with ``num_samples``, ``num_bad`` and ``ledger``.
        tables: makes the tables of the results folder, file → rows; called on rank 0 only.
    """

    figures: dict[str, Any]
    tables: Callable[[], Mapping[str, Sequence[Sequence[object]]]]


class Evaluator(NamedTuple):
    """How the weights of one task are evaluated: ``evaluate`` computes the figures, ``text`` makes lines of them."""

    evaluate: Callable[[argparse.Namespace, Rank, Callable[[str], None]], Evaluated]
    text: Callable[[dict[str, Any]], list[str]]


def open_set(args: argparse.Namespace) -> PackedSet:
    """The set to evaluate on.

    Raises:
        DataError: it cannot be read, is incomplete, or holds no image.
    """
    packed = open_packed(str(args.shards), AutoClusterConfig())
    packed.check_files()
    if not packed.table.num_samples:
        raise DataError(f"{args.shards}: holds no image; pack it again, or name another split")
    return packed


def rows_of_set(
    args: argparse.Namespace,
    packed: PackedSet,
    transform: EvalTransform,
    rank: Rank,
    look: Callable[[Batch], list[NDArray[Any]]],
) -> tuple[list[NDArray[Any]], Ledger]:
    """Processes every image of a set once, in the set's order. Collective: yes; every rank returns all rows.

    Args:
        args: the stage's: ``micro_batch_size``, ``num_workers``, and ``shards`` for errors.
        packed: the set.
        transform: how its images are made.
        rank: this process; rank r takes the images i ≡ r.
        look: a micro-batch → arrays with a row for each of its valid images, the sample ids first.

    Returns:
        The arrays, and the ledger with the images that could not be read; the caller enters the others (``finished``).

    Raises:
        DataError: a shard cannot be read, or not one image.
    """
    parts, ledger = list[list[NDArray[Any]]](), Ledger()
    dataset = EvalDataset(ShardReader(packed.table), transform, Share(rank.rank, rank.world, args.micro_batch_size))
    with closing(batches_of(dataset, rank, args.num_workers, "evaluating")) as batches:
        for batch in batches:
            parts.append(look(batch))
            for fault in batch.faults:
                ledger.lost(IMAGES, fault.kind, f"{fault.shard}/{fault.member}")
    gathered = gather_objects(([np.concatenate(column) for column in zip(*parts, strict=True)], ledger))
    arrays = [np.concatenate(column) for column in zip(*(mine for mine, _ in gathered), strict=True)]
    num_samples = packed.card.num_samples
    if not len(arrays[0]):
        raise DataError(f"{args.shards}: none of its {num_samples} images could be read")
    order = np.argsort(arrays[0], kind="stable")
    total = Ledger()
    total.found(IMAGES, num_samples)
    for _, theirs in gathered:
        total.merge(theirs)
    return [array[order] for array in arrays], total


def finished(ledger: Ledger, num_used: int, where: object) -> dict[str, Any]:
    """``num_bad`` and ``ledger`` of a result, once the number of images behind its figures is known.

    Raises:
        DataError: the ledger does not account for every image.
    """
    ledger.used(IMAGES, "evaluated", num_used)
    ledger.check(where)
    return {"num_bad": ledger.accounts[IMAGES].num_lost, "ledger": ledger.to_dict()}

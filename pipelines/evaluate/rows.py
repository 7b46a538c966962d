"""Every image of a packed split is looked at once, on any number of ranks."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.terminal.progress import LazyBar
from pretrain.config.schema.cluster import ClusterConfig
from pretrain.data.batch import Batch
from pretrain.data.images.augment import EvalTransform
from pretrain.data.ledger import Ledger
from pretrain.data.storage.packed_set import PackedSet, open_packed
from pretrain.data.workers.dataset import EvalDataset, Failure
from pretrain.data.workers.processes import loader
from pretrain.distributed.collectives import gather_objects
from pretrain.distributed.rank import Rank
from pretrain.errors import DataError

PREFETCH = 2
IMAGES = "images"


def open_set(args: argparse.Namespace) -> PackedSet:
    """The set that a stage evaluates on.

    Raises:
        DataError: it cannot be read, its files are not whole, or it holds no image.
    """
    packed = open_packed(str(args.shards), ClusterConfig())
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
    """What is seen in every image of a set, in the set's order. Collective: yes; every rank returns all of it.

    Args:
        args: the stage's: ``micro_batch_size``, ``num_workers``, and ``shards`` for errors.
        packed: the set.
        transform: how its images are made.
        rank: this process; rank r takes the images i ≡ r.
        look: a micro-batch → arrays with a row for each of its valid images, the sample ids first.

    Returns:
        The arrays, and the ledger of the images: those that could not be read are left out. What the others are used
        as is for the caller to tell it; see ``finished``.

    Raises:
        DataError: a shard cannot be read, or not one image.
    """
    size, num_samples = args.micro_batch_size, packed.card.num_samples
    dataset = EvalDataset(packed.table, transform, rank=rank.rank, world=rank.world, micro_batch_size=size)
    parts: list[list[NDArray[Any]]] = []
    ledger, done = Ledger(), 0
    num_workers = min(args.num_workers, len(dataset) - 1)
    made = loader(dataset, range(len(dataset)), num_workers=num_workers, prefetch_factor=PREFETCH)
    with LazyBar("evaluating", -(-num_samples // rank.world), "images") as bar, closing(made):
        for batch in made:
            if isinstance(batch, Failure):
                raise batch.error
            parts.append(look(batch))
            for fault in batch.faults:
                ledger.lost(IMAGES, fault.kind, f"{fault.shard}/{fault.member}")
            done += len(batch)
            if rank.is_main:
                bar.show(done)
    gathered = gather_objects(([np.concatenate(column) for column in zip(*parts, strict=True)], ledger))
    arrays = [np.concatenate(column) for column in zip(*(mine for mine, _ in gathered), strict=True)]
    if not len(arrays[0]):
        raise DataError(f"{args.shards}: none of its {num_samples} images could be read")
    order = np.argsort(arrays[0], kind="stable")
    whole = Ledger()
    whole.found(IMAGES, num_samples)
    for _, theirs in gathered:
        whole.merge(theirs)
    return [array[order] for array in arrays], whole


def finished(ledger: Ledger, num_used: int, where: object) -> dict[str, Any]:
    """``num_bad`` and ``ledger`` of a result, once it is known how many images its figures are of.

    Raises:
        DataError: images are missing from the account.
    """
    ledger.used(IMAGES, "evaluated", num_used)
    ledger.check(where)
    return {"num_bad": ledger.accounts[IMAGES].num_lost, "ledger": ledger.to_dict()}


def ledger_lines(result: dict[str, Any]) -> list[str]:
    """The ledger of a result for people."""
    return Ledger.of_dict(result["ledger"]).lines()

"""Every image of a packed split is looked at once, on any number of ranks."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.progress import LazyBar
from pretrain.config.schema.cluster import ClusterConfig
from pretrain.data.augment import EvalTransform
from pretrain.data.batch import Batch
from pretrain.data.dataset import EvalDataset, Failure
from pretrain.data.index import ShardTable
from pretrain.data.processes import loader
from pretrain.data.sources import PackedSet, open_packed
from pretrain.distributed.collectives import gather_objects
from pretrain.distributed.rank import Rank
from pretrain.errors import DataError

PREFETCH = 2


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


def rows_of_stage(
    args: argparse.Namespace,
    packed: PackedSet,
    transform: EvalTransform,
    rank: Rank,
    look: Callable[[Batch], list[NDArray[Any]]],
) -> tuple[list[NDArray[Any]], int]:
    """``rows_of_set`` with a stage's options, and its progress bar.

    Raises:
        DataError: a shard cannot be read, or not one image.
    """
    with LazyBar("evaluating", -(-packed.card.num_samples // rank.world), "images") as bar:
        arrays, num_bad = rows_of_set(
            packed.table,
            transform,
            rank,
            look,
            micro_batch_size=args.micro_batch_size,
            num_workers=args.num_workers,
            show=bar.show if rank.is_main else lambda done: None,
        )
    if not len(arrays[0]):
        raise DataError(f"{args.shards}: none of its {packed.card.num_samples} images could be read")
    return arrays, num_bad


def rows_of_set(
    table: ShardTable,
    transform: EvalTransform,
    rank: Rank,
    look: Callable[[Batch], list[NDArray[Any]]],
    *,
    micro_batch_size: int,
    num_workers: int,
    show: Callable[[int], None],
) -> tuple[list[NDArray[Any]], int]:
    """What is seen in every image of a set, in the set's order. Collective: yes; every rank returns all of it.

    Args:
        table: the set.
        transform: how its images are made.
        rank: this process; rank r takes the images i ≡ r.
        look: a micro-batch → arrays with a row for each of its valid images, the sample ids first.
        micro_batch_size: images in one forward pass.
        num_workers: data processes.
        show: called with the number of images that this rank is done with.

    Returns:
        The arrays, and the number of images that could not be read (they are left out).

    Raises:
        DataError: a shard cannot be read.
    """
    dataset = EvalDataset(table, transform, rank=rank.rank, world=rank.world, micro_batch_size=micro_batch_size)
    parts: list[list[NDArray[Any]]] = []
    num_bad = done = 0
    made = loader(
        dataset, range(len(dataset)), num_workers=min(num_workers, len(dataset) - 1), prefetch_factor=PREFETCH
    )
    with closing(made):
        for batch in made:
            if isinstance(batch, Failure):
                raise batch.error
            parts.append(look(batch))
            num_bad, done = num_bad + len(batch.faults), done + len(batch)
            show(done)
    gathered = gather_objects(([np.concatenate(column) for column in zip(*parts, strict=True)], num_bad))
    arrays = [np.concatenate(column) for column in zip(*(mine for mine, _ in gathered), strict=True)]
    order = np.argsort(arrays[0], kind="stable")
    return [array[order] for array in arrays], sum(bad for _, bad in gathered)

"""The steps of every evaluation: open a set and a network, process each image once over all ranks, account for them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.terminal.arguments import model_options
from pipelines.terminal.progress import LazyBar
from pipelines.weights.load import warn_of_trained_images
from pipelines.weights.network import AnyNetwork, load_network
from pretrain.config.schema.cluster import ClusterConfig
from pretrain.data.batch import Batch
from pretrain.data.images.augment import EvalTransform
from pretrain.data.ledger import Ledger
from pretrain.data.sources import check_target
from pretrain.data.storage.packed_set import PackedSet, open_packed
from pretrain.data.workers.dataset import EvalDataset, Failure, Share
from pretrain.data.workers.processes import loader
from pretrain.distributed.collectives import gather_objects
from pretrain.distributed.rank import Rank
from pretrain.errors import DataError

PREFETCH = 2
IMAGES = "images"
MOST_NAMES = 6  # in a message


class Evaluated(NamedTuple):
    """The figures of a set.

    Attributes:
        figures: by name, with ``num_samples``, ``num_bad`` and ``ledger``.
        tables: makes the tables of the results folder, file → rows; called on rank 0 only.
    """

    figures: dict[str, Any]
    tables: Callable[[], Mapping[str, Sequence[Sequence[object]]]]


def open_set(args: argparse.Namespace) -> PackedSet:
    """The set to evaluate on.

    Raises:
        DataError: it cannot be read, is incomplete, or holds no image.
    """
    packed = open_packed(str(args.shards), ClusterConfig())
    packed.check_files()
    if not packed.table.num_samples:
        raise DataError(f"{args.shards}: holds no image; pack it again, or name another split")
    return packed


def open_matching(
    args: argparse.Namespace, kind: type[AnyNetwork], say: Callable[[str], None]
) -> tuple[PackedSet, AnyNetwork]:
    """The set and the network, for a network whose outputs are the set's, in the same order.

    Raises:
        DataError: a set that cannot be read, without such targets, or whose names are not the network's.
        CheckpointError: weights that were trained for something else.
    """
    packed = open_set(args)
    if kind.target is not None:
        check_target(packed, kind.target, f"{args.source}, a {kind.task},")
    network = load_network(args.source, kind, **model_options(args), say=say)
    names = tuple(name for _, name in packed.classes)
    if names != network.names:
        raise DataError(
            f"{args.shards} has {_some(names)}, but the model gives {_some(network.names)}; name a set with the same"
        )
    warn_of_trained_images(args.source, args.weights, packed.table, say)
    return packed, network


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_NAMES]) + (f", … ({len(names)})" if len(names) > MOST_NAMES else "")


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
        The arrays, and the ledger of the images with those that could not be read; the caller enters what the others
        are used for (``finished``).

    Raises:
        DataError: a shard cannot be read, or not one image.
    """
    parts, ledger = list[list[NDArray[Any]]](), Ledger()
    with closing(_batches(args, packed, transform, rank)) as batches:
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


def _batches(
    args: argparse.Namespace, packed: PackedSet, transform: EvalTransform, rank: Rank
) -> Generator[Batch, None, None]:
    """This rank's micro-batches, with a progress bar."""
    size, num_samples = args.micro_batch_size, packed.card.num_samples
    dataset = EvalDataset(packed.table, transform, Share(rank.rank, rank.world, size))
    num_workers = min(args.num_workers, len(dataset) - 1)
    made = loader(dataset, range(len(dataset)), num_workers=num_workers, prefetch_factor=PREFETCH)
    done = 0
    with LazyBar("evaluating", -(-num_samples // rank.world), "images") as bar, closing(made):
        for batch in made:
            if isinstance(batch, Failure):
                raise batch.error
            yield batch
            done += len(batch)
            if rank.is_main:
                bar.show(done)


def finished(ledger: Ledger, num_used: int, where: object) -> dict[str, Any]:
    """``num_bad`` and ``ledger`` of a result, once the number of images behind its figures is known.

    Raises:
        DataError: the ledger does not account for every image.
    """
    ledger.used(IMAGES, "evaluated", num_used)
    ledger.check(where)
    return {"num_bad": ledger.accounts[IMAGES].num_lost, "ledger": ledger.to_dict()}

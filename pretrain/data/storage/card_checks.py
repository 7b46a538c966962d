"""Whether a card fits the table beside it: training takes numbers from both.

N samples · D numbers of a vector
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pretrain.data.storage.card import CARD_FILE, Card
from pretrain.data.storage.index import REMEDY, TABLE_FILE, ShardTable
from pretrain.errors import DataError

_KINDS = {"labels": ("single", "multi"), "vector": ("vector",), "mask": ("mask",)}


def check_card(card: Card, table: ShardTable, where: str) -> None:
    """Compares what both say.

    Args:
        card: of the set.
        table: of the set.
        where: the set, for messages.

    Raises:
        DataError: names the first number in which they differ, or that cannot be.
    """
    if table.digest != card.index_digest:
        raise DataError(f"{where}: {TABLE_FILE} and {CARD_FILE} come from two packs (one of them is stale). {REMEDY}")
    expected = {
        "num_samples": table.num_samples,
        "num_classes": table.num_classes,
        "max_labels": table.max_labels,
        "num_shards": len(table.rows),
        "num_bytes": sum(row.num_bytes for row in table.rows),
    }
    for name, value in expected.items():
        if getattr(card, name) != value:
            raise _changed(where, f"{name} is {getattr(card, name):,}, {TABLE_FILE} has {value:,}")
    if card.labels not in _KINDS[table.target]:
        raise _changed(where, f"labels is {card.labels}, {TABLE_FILE} has the target {table.target}")
    counts = card.class_counts
    if counts and (len(counts) != card.num_classes or min(counts) < 0 or max(counts) > card.num_samples):
        raise _changed(where, f"class_counts are not {card.num_classes:,} numbers of images")
    if table.target == "vector":
        _check_moments(card, table, where)


def _check_moments(card: Card, table: ShardTable, where: str) -> None:
    mean, std = card.target_mean, card.target_std
    if {len(mean), len(std)} != {table.num_classes} or not all(map(math.isfinite, (*mean, *std))) or min(std) < 0:
        raise _changed(where, f"target_mean and target_std are not {table.num_classes} numbers each")
    if card.facts_digest or not table.num_samples:
        return
    # a card of an earlier version: nothing else says whether these numbers were changed
    total = squares = np.zeros(table.num_classes)
    for vectors in _vectors(table):
        total = total + vectors.sum(axis=0)
    true_mean = total / table.num_samples
    for vectors in _vectors(table):
        squares = squares + ((vectors - true_mean) ** 2).sum(axis=0)
    true_std = np.sqrt(squares / table.num_samples)
    near = 1e-6 * (np.abs(true_mean) + true_std) + 1e-12
    if np.any(np.abs(np.array(mean) - true_mean) > near) or np.any(np.abs(np.array(std) - true_std) > near):
        raise _changed(where, "target_mean and target_std are not those of the vectors")


def _vectors(table: ShardTable) -> Iterator[NDArray[np.float64]]:
    for shard, row in enumerate(table.rows):
        if row.num_samples:
            yield table.open_records(shard).vectors


def _changed(where: str, what: str) -> DataError:
    return DataError(f"{where}: {CARD_FILE} was changed or damaged: {what}. {REMEDY}")

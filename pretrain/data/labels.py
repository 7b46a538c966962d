"""What the index says about all samples of a set, without reading an image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pretrain.data.batch import PADDING_LABEL
from pretrain.data.index import Records, ShardTable
from pretrain.data.store import LocalStore, Store


def read_labels(table: ShardTable, store: Store | None = None) -> NDArray[np.int64]:
    """Labels of every sample in canonical order, int64 (N, M), padded with −1.

    Args:
        table: the set.
        store: where its record files come from; None: the table's own folder.

    Raises:
        DataError: a record file is missing or stale.
    """
    labels = np.full((table.num_samples, table.max_labels), PADDING_LABEL, dtype=np.int64)
    for shard, first in enumerate(table.starts[:-1].tolist()):
        columns = _records(table, shard, store).columns
        counts = np.diff(columns["label_starts"])
        rows = first + np.repeat(np.arange(len(counts)), counts)
        places = np.arange(len(columns["labels"])) - np.repeat(columns["label_starts"][:-1], counts)
        labels[rows, places] = columns["labels"]
    return labels


def read_sources(table: ShardTable, store: Store | None = None) -> list[str]:
    """The packer's key of every sample in canonical order, such as the path of the file that was packed.

    Raises:
        DataError: a record file is missing or stale.
    """
    sources: list[str] = []
    for shard in range(len(table.rows)):
        records = _records(table, shard, store)
        sources += [records[index].source for index in range(len(records))]
    return sources


def _records(table: ShardTable, shard: int, store: Store | None) -> Records:
    row, store = table.rows[shard], store or LocalStore(table.folder)
    return Records.open(store.records(row.name), digest_wanted=row.records, num_samples=row.num_samples)


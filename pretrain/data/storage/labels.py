"""What the index says about all samples of a set, without reading an image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pretrain.data.storage.index import PADDING_LABEL, ShardTable


def read_labels(table: ShardTable) -> NDArray[np.int64]:
    """Labels of every sample in canonical order, int64 (N, M), padded with −1.

    Raises:
        DataError: a record file is missing or stale.
    """
    labels = np.full((table.num_samples, table.max_labels), PADDING_LABEL, dtype=np.int64)
    for shard, first in enumerate(table.starts[:-1].tolist()):
        columns = table.open_records(shard).columns
        counts = np.diff(columns["label_starts"])
        rows = first + np.repeat(np.arange(len(counts)), counts)
        places = np.arange(len(columns["labels"])) - np.repeat(columns["label_starts"][:-1], counts)
        labels[rows, places] = columns["labels"]
    return labels


def read_sources(table: ShardTable) -> list[str]:
    """The packer's key of every sample in canonical order, such as the path of the file that was packed.

    Raises:
        DataError: a record file is missing or stale.
    """
    sources: list[str] = []
    for shard in range(len(table.rows)):
        records = table.open_records(shard)
        sources += [records[index].source for index in range(len(records))]
    return sources

"""Images that two packed splits have in common, by their bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pretrain.data.storage.index import ShardTable


def num_in_common(first: ShardTable, second: ShardTable) -> int:
    """Images of ``second`` whose bytes are, by size and CRC-32, those of an image of ``first``.

    Two different images of one size agree by chance in one case of four billion. Images that were encoded again are
    not found: that is the work of de-duplication.

    Raises:
        DataError: a record file is missing or stale.
    """
    return int(np.isin(_names(second), _names(first)).sum())


def _names(table: ShardTable) -> NDArray[np.uint64]:
    """(size, CRC-32) of every image in one number."""
    parts = [np.zeros(0, np.uint64)]
    for shard in range(len(table.rows)):
        records = table.open_records(shard)
        parts.append(
            (records.columns["sizes"].astype(np.uint64) << np.uint64(32)) | records.columns["crc32"].astype(np.uint64)
        )
    return np.concatenate(parts)

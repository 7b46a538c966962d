"""The list of samples that a run must not draw, such as near-duplicates of a test set.

A JSONL file; each line names one sample by its shard and its WebDataset key, and may say more (why, of what):

    {"shard": "shard-000000.tar", "key": "000000042", "reason": "near-duplicate of …"}

The key is the member's name up to its first dot. A sample that is named twice is dropped once.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pretrain.data.storage.index import Records, ShardTable
from pretrain.errors import DataError
from pretrain.names import from_bytes, parsed


def load_drop_list(path: str | Path, table: ShardTable, open_records: Callable[[int], Records]) -> NDArray[np.int64]:
    """The sample ids that a drop list names, ascending.

    Args:
        path: the file.
        table: the set that it speaks of.
        open_records: shard number → its records; called for the shards in the list only.

    Raises:
        DataError: the file cannot be read, a line is no such object, or names a sample that the set does not have.
    """
    numbers = {row.name: index for index, row in enumerate(table.rows)}
    wanted: dict[int, dict[str, int]] = {}
    for line, (shard, key) in enumerate(_read(Path(path)), start=1):
        if shard not in numbers:
            raise DataError(f"{path}:{line}: the set has no shard {shard!r}; it was made for another set")
        wanted.setdefault(numbers[shard], {}).setdefault(key, line)
    ids = []
    for shard, keys in sorted(wanted.items()):
        found = _records_of(keys, open_records(shard))
        if len(found) < len(keys):
            key = next(key for key in keys if key not in found)
            raise DataError(
                f"{path}:{keys[key]}: shard {table.rows[shard].name} has no sample with the key {key!r}; the key is "
                "the member's name up to its first dot"
            )
        ids += [int(table.starts[shard]) + record for record in found.values()]
    return np.array(sorted(ids), dtype=np.int64)


def _read(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.drop_list: {path} cannot be read: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            shard, key = row["shard"], row["key"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f'{path}:{number}: not {{"shard": "shard-000000.tar", "key": "000000042"}}: {line[:80]!r}'
            ) from error
        if not isinstance(shard, str) or not isinstance(key, str):
            raise DataError(f"{path}:{number}: shard and key must be text: {line[:80]!r}")
        rows.append((parsed(shard), parsed(key)))
    return rows


def _records_of(keys: dict[str, int], records: Records) -> dict[str, int]:
    names, starts = records.columns["members"].tobytes(), records.columns["member_starts"].tolist()
    found = {}
    for record, (start, stop) in enumerate(itertools.pairwise(starts)):
        key = webdataset_key(from_bytes(names[start:stop]))
        if key in keys:
            found[key] = record
    return found


def webdataset_key(member: str) -> str:
    """``a/b.c.jpg`` → ``a/b``: the path up to the first dot of its last part."""
    folder, slash, name = member.rpartition("/")
    return f"{folder}{slash}{name.partition('.')[0]}"

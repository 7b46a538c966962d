"""Splits by explicit lists: one file per split, one image per line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from pipelines.packing.table import ItemTable
from pretrain.errors import ConfigError, DataError
from pretrain.files import digest


@dataclass(frozen=True)
class SplitList:
    """One file: what it names, and the digest by which the card names it."""

    split: str
    path: Path
    ids: frozenset[str]
    digest: str


class SplitLists:
    """All ``--split NAME=FILE`` of a pack.

    A line is an image's key as the packer lists it, its file name, or its file name without the extension. Images on
    no list stay where the source has them, unless there is a list for train: then they are left out.
    """

    def __init__(self, lists: list[SplitList]) -> None:
        self.lists = lists
        self.names = [entry.split for entry in lists]
        self._split_of: dict[str, int] = {}
        for index, entry in enumerate(lists):
            for identifier in entry.ids:
                other = self._split_of.setdefault(identifier, index)
                if other != index:
                    raise ConfigError(
                        f"--split: {identifier!r} is on the lists of {self.names[other]} and {entry.split}"
                    )

    @classmethod
    def load(cls, arguments: list[str]) -> SplitLists:
        """Reads the files.

        Raises:
            ConfigError: an argument is not NAME=FILE, a file cannot be read or is empty, an image is on two lists.
        """
        lists = []
        for argument in arguments:
            split, is_given, path = argument.partition("=")
            if not is_given or not split.isidentifier() or not path:
                raise ConfigError(f"--split {argument}: write NAME=FILE, such as val=val_ids.txt")
            if split in [entry.split for entry in lists]:
                raise ConfigError(f"--split {split} is given twice")
            try:
                data = Path(path).read_bytes()
                ids = frozenset(line.strip() for line in data.decode().splitlines() if line.strip())
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"--split {argument}: cannot be read ({error})") from error
            if not ids:
                raise ConfigError(f"--split {argument}: the file names no image")
            lists.append(SplitList(split, Path(path), ids, digest(data)))
        return cls(lists)

    def assign(self, table: ItemTable, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Index of the list that names each row, -1 where none does.

        Raises:
            DataError: a list names an image that is not there, or one name fits several images.
        """
        found = np.full(len(rows), -1, dtype=np.int64)
        used: dict[str, str] = {}
        for place, row in enumerate(rows):
            key = table.key(int(row))
            name = next((one for one in _names(key) if one in self._split_of), None)
            if name is None:
                continue
            if name in used:
                raise DataError(f"--split: {name!r} fits {used[name]!r} and {key!r}; write the whole key")
            used[name] = key
            found[place] = self._split_of[name]
        for entry in self.lists:
            missing = sorted(entry.ids - used.keys())
            if missing:
                raise DataError(
                    f"--split {entry.split}={entry.path}: {len(missing)} of its {len(entry.ids)} images are not among "
                    f"those to pack, such as {missing[0]!r}; keys look like {table.key(int(rows[0]))!r}"
                )
        return found


def _names(key: str) -> tuple[str, str, str]:
    path = PurePosixPath(key)
    return key, path.name, path.stem

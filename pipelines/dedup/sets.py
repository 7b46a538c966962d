"""The images of a set in order: a packed split, or a folder of image files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipelines.sources.entries import Walk, images_of
from pipelines.sources.samples import split_name
from pretrain.data.ledger import Ledger
from pretrain.data.storage.index import TABLE_FILE, ShardTable
from pretrain.data.storage.records import Records
from pretrain.data.storage.store import LocalStore
from pretrain.errors import DataError
from pretrain.files import digest
from pretrain.names import to_bytes

FILES_PER_PART = 1000


class Named(NamedTuple):
    """The WebDataset key of an image (of a file: its path), and the name by which people know it."""

    key: str
    name: str


@dataclass(frozen=True)
class ImageSet:
    """A set in parts that are processed one at a time.

    Attributes:
        folder: where it is.
        name: for messages and reports.
        parts: shards, or the first file of each run of files.
        sizes: images in each part.
        files: of a set that is not packed.
        digest: identifies the content as far as possible without reading it.
    """

    folder: Path
    name: str
    parts: tuple[str, ...]
    sizes: tuple[int, ...]
    files: tuple[str, ...]
    digest: str

    @property
    def num_images(self) -> int:
        """Images in all parts."""
        return sum(self.sizes)

    @classmethod
    def open(cls, folder: Path, ledger: Ledger | None = None) -> ImageSet:
        """A folder with an index is a packed split; any other is a tree of files, all recorded in the ledger.

        Raises:
            DataError: neither.
        """
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder; give a packed split or a folder of images")
        name = "/".join(folder.resolve().parts[-2:])
        if (folder / TABLE_FILE).is_file() or any(folder.glob("*.tar")):
            table = ShardTable.load(folder)
            rows = table.rows
            return cls(folder, name, tuple(row.name for row in rows), tuple(table.sizes.tolist()), (), table.digest)
        files = [path for path, _ in images_of(Walk(folder, Ledger() if ledger is None else ledger))]
        if not files:
            below = sorted(path.parent.name for path in folder.glob(f"*/{TABLE_FILE}"))
            hint = f"; give one of its splits: {', '.join(str(folder / one) for one in below)}" if below else ""
            raise DataError(f"{folder} holds neither shards nor images{hint}")
        starts = range(0, len(files), FILES_PER_PART)
        sizes = tuple(min(FILES_PER_PART, len(files) - start) for start in starts)
        listing = digest(to_bytes("\n".join(_listed(folder, name) for name in files)))
        return cls(folder, name, tuple(files[start] for start in starts), sizes, tuple(files), listing)

    def names(self, part: int) -> list[Named]:
        """The names of each image of a part."""
        if self.files:
            return [Named(name, name) for name in self._files(part)]
        records = Records.open(ShardTable.load(self.folder).records_path(part))
        found = (records[index] for index in range(len(records)))
        return [Named(split_name(one.member)[0], one.shown_in(self.parts[part])) for one in found]

    def images(self, part: int) -> Iterator[bytes | None]:
        """The bytes of each image of a part; None: they cannot be read."""
        if self.files:
            yield from (_read(self.folder / name) for name in self._files(part))
            return
        records, store = Records.open(ShardTable.load(self.folder).records_path(part)), LocalStore(self.folder)
        columns = records.columns
        for offset, size in zip(columns["offsets"].tolist(), columns["sizes"].tolist(), strict=True):
            yield store.read(self.parts[part], offset, size)
        store.close()

    def image(self, part: int, index: int) -> bytes:
        """One image."""
        if self.files:
            return (self.folder / self._files(part)[index]).read_bytes()
        record = Records.open(ShardTable.load(self.folder).records_path(part))[index]
        store = LocalStore(self.folder)
        try:
            return store.read(self.parts[part], record.offset, record.size)
        finally:
            store.close()

    def _files(self, part: int) -> tuple[str, ...]:
        return self.files[part * FILES_PER_PART : (part + 1) * FILES_PER_PART]


def _listed(folder: Path, name: str) -> str:
    """Identifies a file without reading it: an overwritten file has a different time."""
    try:
        status = (folder / name).stat()
    except OSError:
        return f"{name} gone"
    return f"{name} {status.st_size} {status.st_mtime_ns}"


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None

"""Opens a packed split, local or remote: reads and checks its table and card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pretrain.config.schema.cluster import ClusterConfig
from pretrain.data.storage.cache import NodeCache, default_folder, on_disk
from pretrain.data.storage.card import CARD_FILE, Card, check_card
from pretrain.data.storage.classes import CLASSES_FILE, load_classes
from pretrain.data.storage.index import TABLE_FILE, ShardTable
from pretrain.data.storage.location import Location
from pretrain.data.storage.records import REMEDY
from pretrain.data.storage.store import MAX_OPEN_SHARDS, LocalStore, RemoteStore, Store, automatic_chunk_bytes
from pretrain.data.storage.tally import Tally
from pretrain.data.storage.transport import Missing, Retries, Transport
from pretrain.data.storage.transports import open_transport
from pretrain.errors import DataError
from pretrain.files import digest, write_atomic

LARGEST_TABLE = 256 << 20  # bytes of an index.json, a card or a class list: millions of shards


_SETS = "sets"  # cache folder for tables, cards and class lists, which are small and do not count towards the cap


@dataclass(frozen=True)
class PackedSet:
    """One packed split, local or remote.

    Attributes:
        location: its folder or address.
        table: its shards; the table's folder has the table, card and class list (copies, for a remote set).
        card: its card.
        transport: None for a local folder.
        cache: None for a local folder.
    """

    location: Location
    table: ShardTable
    card: Card
    transport: Transport | None = None
    cache: NodeCache | None = None

    @property
    def num_bytes(self) -> int:
        """Total size of the tars."""
        return sum(row.num_bytes for row in self.table.rows)

    @property
    def classes(self) -> list[tuple[str, str]]:
        """(id, name) in index order."""
        return load_classes(self.table.folder)

    def store(
        self, cluster: ClusterConfig, lanes: int, *, max_open: int = MAX_OPEN_SHARDS, tally: Tally | None = None
    ) -> Store:
        """The store that reads the tars.

        Args:
            cluster: how to fetch them.
            lanes: L, for the automatic size of chunks; 1 for sets that are read in sequence.
            max_open: shards that are open at the same time, for a local folder.
            tally: counts the bytes read and fetched.
        """
        if self.transport is None or self.cache is None:
            return LocalStore(self.table.folder, max_open, tally)
        chunk = cluster.cache.chunk_bytes
        return RemoteStore(
            self.transport,
            self.cache,
            self.table.rows,
            chunk_bytes=automatic_chunk_bytes(self.num_bytes, lanes) if chunk == "auto" else chunk,
            retries=Retries(cluster.remote.attempts),
            tally=tally,
        )

    def check_files(self) -> None:
        """Compares every file's size with the table, if sizes can be known without reading the files.

        Raises:
            DataError: names the first file that is missing or has the wrong size, and counts the others.
        """
        if self.transport is None:
            self.table.check_files()
            return
        wrong = []
        expected = {row.name: row.num_bytes for row in self.table.rows}
        for name, size in self.transport.sizes(list(expected)):
            if size is None:
                wrong.append(f"shard {name} is missing")
            elif size != expected[name]:
                what = "truncated" if size < expected[name] else "not the file that was indexed"
                wrong.append(f"shard {name} is {what}: it has {size} bytes, not the {expected[name]} in {TABLE_FILE}")
        if wrong:
            more = f" (and {len(wrong) - 1} more problems like this)" if len(wrong) > 1 else ""
            raise DataError(f"{self.location}: {wrong[0]}{more}. {REMEDY}")


def open_packed(shards: str, cluster: ClusterConfig, *, allow_pipe: bool = False) -> PackedSet:
    """Opens a split by its table and card.

    Raises:
        DataError: a file is missing, unreadable or stale. ConfigError: the location is invalid or not allowed.
        SetupError: a package is missing, or the cache cannot be made.
    """
    location = Location.parse(shards)
    if not location.is_remote:
        table, card = ShardTable.load(location.base), Card.load(location.base)
        packed = PackedSet(location, table, card)
    else:
        transport = open_transport(location, cluster.remote, allow_pipe=allow_pipe)
        folder = Path(cluster.cache.dir) if cluster.cache.dir else default_folder()
        cache = NodeCache(folder, cluster.cache.max_bytes)
        copies = _fetch_small_files(transport, cache, Retries(cluster.remote.attempts))
        packed = PackedSet(location, ShardTable.load(copies), Card.load(copies), transport, cache)
        store = packed.store(cluster, 1)
        assert isinstance(store, RemoteStore)
        packed.table.find_records, packed.table.forget_records = store.records, store.forget_records
    check_card(packed.card, packed.table, str(location))
    return packed


def _fetch_small_files(transport: Transport, cache: NodeCache, retries: Retries) -> Path:
    """Copies table, card and class list to the node, into a folder named after their digest."""
    contents = {}
    for name in (TABLE_FILE, CARD_FILE, CLASSES_FILE):
        try:
            contents[name] = retries.fetch(transport, name, most_bytes=LARGEST_TABLE)
        except Missing as error:
            raise DataError(
                f"{error}; a set needs its {TABLE_FILE}, {CARD_FILE} and {CLASSES_FILE} beside the tars. Copy the "
                "whole folder that python -m pipelines pack has written there, or correct the place"
            ) from error
    folder = cache.folder / _SETS / digest(b"\0".join(contents.values()))
    with on_disk(cache.folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in contents.items():
            if not _is_kept(folder / name, data):
                write_atomic(folder / name, data)
    return folder


def _is_kept(path: Path, data: bytes) -> bool:
    """Whether this node has an undamaged copy."""
    try:
        return path.read_bytes() == data
    except OSError:
        return False

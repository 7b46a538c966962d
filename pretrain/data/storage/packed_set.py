"""One packed split, wherever it is stored: opened by its table and card, checked, and ready to read from."""

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


_SETS = "sets"  # folder of the cache for tables, cards and class lists: small, and not counted by its cap


@dataclass(frozen=True)
class PackedSet:
    """One packed split, wherever it is.

    Attributes:
        location: where.
        table: its shards; the table's folder has table, card and class list, if remote as copies.
        card: its card.
        transport: None for a folder.
        cache: None for a folder.
    """

    location: Location
    table: ShardTable
    card: Card
    transport: Transport | None = None
    cache: NodeCache | None = None

    @property
    def num_bytes(self) -> int:
        """Of all tars."""
        return sum(row.num_bytes for row in self.table.rows)

    @property
    def classes(self) -> list[tuple[str, str]]:
        """(id, name) in index order."""
        return load_classes(self.table.folder)

    def store(
        self, cluster: ClusterConfig, lanes: int, *, max_open: int = MAX_OPEN_SHARDS, tally: Tally | None = None
    ) -> Store:
        """Where the bytes come from.

        Args:
            cluster: how to fetch them.
            lanes: L, for the automatic size of chunks; 1 for sets that are read in sequence.
            max_open: shards that are open at a time, in a folder.
            tally: counts what is read and fetched.
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
        """Compares every file's size with the table, as far as that can be known without reading them.

        Raises:
            DataError: names the first that is missing or has another size, and how many there are in all.
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
                wrong.append(f"shard {name} is {what}: it has {size} bytes, {TABLE_FILE} says {expected[name]}")
        if wrong:
            more = f" (and {len(wrong) - 1} more problems like this)" if len(wrong) > 1 else ""
            raise DataError(f"{self.location}: {wrong[0]}{more}. {REMEDY}")


def open_packed(shards: str, cluster: ClusterConfig, *, allow_pipe: bool = False) -> PackedSet:
    """Opens a split by its table and card.

    Raises:
        DataError: something is missing, unreadable or stale. ConfigError: a place that cannot be, or is not allowed.
        SetupError: a package is missing, or there is no place for the cache.
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
    """Copies table, card and class list to the node, into a folder that their content names."""
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
    """Whether a copy on this node is there and was not damaged by its disk."""
    try:
        return path.read_bytes() == data
    except OSError:
        return False

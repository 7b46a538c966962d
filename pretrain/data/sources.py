"""Config → the sets that a run reads: opened, compared with the config and with each other, ready to draw from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretrain.config.schema.cluster import ClusterConfig
from pretrain.config.schema.experiment import Experiment
from pretrain.config.schema.objective import makers_of
from pretrain.config.schema.source import SourceConfig
from pretrain.config.target import IN_WORDS, Target
from pretrain.data.order.mixture import Mixture, Part
from pretrain.data.order.order import Order
from pretrain.data.order.selection import Selection, load_drop_list
from pretrain.data.storage.cache import NodeCache, default_folder, on_disk
from pretrain.data.storage.card import CARD_FILE, CLASSES_FILE, Card, load_classes
from pretrain.data.storage.card_checks import check_card
from pretrain.data.storage.index import REMEDY, TABLE_FILE, ShardTable
from pretrain.data.storage.location import Location
from pretrain.data.storage.remote_store import RemoteStore, automatic_chunk_bytes
from pretrain.data.storage.store import MAX_OPEN_SHARDS, LocalStore, Store
from pretrain.data.storage.transport import Missing, Retries, Transport, open_transport
from pretrain.data.workers.tally import Tally
from pretrain.errors import ConfigError, DataError
from pretrain.files import digest, write_atomic
from pretrain.seeds import integer_seed

LARGEST_TABLE = 256 << 20  # bytes of an index.json, a card or a class list: millions of shards
_SETS = "sets"  # folder of the cache for tables, cards and class lists: small, and not counted by its cap


@dataclass(frozen=True)
class PackedSet:
    """One packed split, wherever it lies.

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


@dataclass(frozen=True)
class Source:
    """A set that the training draws from.

    Attributes:
        config: what the config says of it.
        packed: the set.
        selection: which of its samples.
        first_sample_id: number of its first sample among those of all sources.
    """

    config: SourceConfig
    packed: PackedSet
    selection: Selection
    first_sample_id: int


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


def open_sources(config: Experiment) -> tuple[Source, ...]:
    """The sets that the training draws from.

    Raises:
        DataError: a set is damaged, is not what the config says, or has other classes than the first one.
        ConfigError, SetupError: as ``open_packed``.
    """
    sources: list[Source] = []
    first = 0
    for number, source in enumerate(config.data.sources):
        key = f"data.mixture[{number}]" if config.data.mixture else "data"
        packed = open_packed(source.shards, config.cluster, allow_pipe=config.data.allow_pipe)
        selection = select(packed, source)
        found = packed.table.num_samples - selection.num_dropped
        _expect(packed, f"{key}.num_samples", found, source.num_samples, selection.num_dropped)
        _expect(packed, "data.num_classes", packed.card.num_classes, config.data.num_classes, 0)
        wanted = sources[0].packed.table.target if sources else config.objective.needs.target
        check_target(packed, wanted, f"objective.name: {config.objective.name}")
        if sources:
            _same_classes(sources[0].packed, packed)
        sources.append(Source(source, packed, selection, first))
        first += packed.table.num_samples
    return tuple(sources)


def check_target(packed: PackedSet, wanted: Target | None, setting: str) -> None:
    """Whether the samples carry what a setting needs; None: it takes any.

    Raises:
        DataError: they carry something else, or masks that show one class alone.
    """
    found = packed.table.target
    if wanted not in (None, found):
        raise DataError(
            f"{packed.location}: its images have {IN_WORDS[found]}, but {setting} needs {IN_WORDS[wanted]}; name "
            f"another set, or {makers_of(found)} there"
        )
    counts = packed.card.class_counts
    if found == "mask" and len(counts) > 1 and sum(count > 0 for count in counts) < 2:
        raise DataError(
            f"{packed.location}: {CARD_FILE} says that its masks show {sum(count > 0 for count in counts)} of "
            f"{len(counts)} classes, from which nothing can be learnt. An earlier version read masks of 1 bit as 0 and "
            "255, and 255 is not a class: pack the set again"
        )


def select(packed: PackedSet, source: SourceConfig) -> Selection:
    """Which samples of a set the config chooses.

    Raises:
        DataError: the drop list cannot be read, or is not of this set.
    """
    table, count = packed.table, None if source.subset is None else source.drawn_samples
    if source.drop_list is None:
        return Selection(table.sizes, count=count)

    dropped = load_drop_list(source.drop_list, table, table.open_records)
    return Selection(table.sizes, dropped, count)


def mix(sources: Sequence[Source], config: Experiment, lanes: int) -> Mixture:
    """The order in which all sources together are drawn.

    Raises:
        DataError: a source has fewer samples than lanes.
    """
    parts = []
    for number, source in enumerate(sources):
        seed = integer_seed(config.seed, "source", number) if config.data.mixture else config.seed
        order = Order(
            source.selection.sizes,
            seed=seed,
            global_batch_size=config.global_batch_size,
            lanes=lanes,
            window=config.data.shuffle_window,
        )
        parts.append(Part(order, source.selection, source.first_sample_id))
    weights = [source.weight for source in config.data.mixture] or [1.0]
    return Mixture(parts, weights, seed=config.seed, copies=config.data.repeated_augmentation)


def sources_digest(sources: Sequence[Source], mixture: Mixture) -> str:
    """Names what the stream draws from; for one whole set it is the digest of its table."""
    if len(sources) == 1 and sources[0].selection.is_all:
        return sources[0].packed.table.digest
    rows = [[source.packed.table.digest, source.selection.digest] for source in sources]
    return digest(json.dumps([rows, mixture.quanta]).encode())


def check_cache(sources: Sequence[Source], config: Experiment, lanes: int, *, world: int, local_world: int) -> None:
    """Whether the node's cache can hold what its lanes shuffle: two windows of each.

    Args:
        sources: what is drawn from.
        config: the experiment.
        lanes: L.
        world: R.
        local_world: ranks of this node.

    Raises:
        ConfigError: it cannot; says how many bytes would do, and which window.
    """
    cap, window = config.cluster.cache.max_bytes, config.data.shuffle_window
    needed, fixed = [needed_bytes(sources, config, lanes, world, local_world, size) for size in (window, 0)]
    if needed > cap:
        fits = int(window * max(0.0, cap - fixed) / (needed - fixed)) if needed > fixed else 0
        raise ConfigError(
            f"cluster.cache.max_bytes: {cap:,} cannot hold two shuffle windows of {window:,} samples for each of this "
            f"node's {node_lanes(lanes, world, local_world)} lanes, about {needed:,} bytes; allow that many, use more "
            f"nodes, or start a run with data.shuffle_window: {max(1, fits):,} (which changes the order)"
        )


def needed_bytes(
    sources: Sequence[Source], config: Experiment, lanes: int, world: int, local_world: int, window: int
) -> int:
    """Bytes that a node's lanes have in use at a time, over all remote sources."""
    total, num_lanes = 0, node_lanes(lanes, world, local_world)
    for source in sources:
        if not source.packed.location.is_remote:
            continue
        store = source.packed.store(config.cluster, lanes)
        assert isinstance(store, RemoteStore)
        drawn = int(source.selection.sizes.sum())
        per_lane = min(2 * window, drawn // lanes) * source.packed.num_bytes // drawn + 4 * store.chunk_bytes
        rounded_up = len(source.packed.table.rows) * store.chunk_bytes
        total += min(num_lanes * per_lane, source.packed.num_bytes + rounded_up)
    return total


def node_lanes(lanes: int, world: int, local_world: int) -> int:
    """Lanes that the ranks of one node draw from."""
    return local_world * lanes // world if lanes % world == 0 else int(np.ceil(local_world * lanes / world))


def _expect(packed: PackedSet, key: str, found: int, wanted: int, num_dropped: int) -> None:
    if found != wanted:
        name = key.rpartition(".")[2]
        less = f" less the {num_dropped} of the drop list" if num_dropped else ""
        says = f"the card says {name} {found + num_dropped}{less}"
        raise DataError(
            f"{packed.location}: {says}, the config says {key} {wanted}. Set {key}: {found}, or "
            f"{key.rpartition('.')[0]}.shards to the set that was meant"
        )


def _same_classes(one: PackedSet, other: PackedSet) -> None:
    if one.card.classes_digest == other.card.classes_digest:
        return
    first, second = one.classes, other.classes
    different = next((i for i, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), None)
    if different is None:
        what = f"{len(first)} and {len(second)} classes"
    else:
        what = f"class {different} is {' '.join(first[different])!r} and {' '.join(second[different])!r}"
    raise DataError(
        f"data.mixture: the sets of a mixture must have the same classes, but between {one.location} and "
        f"{other.location} they differ: {what}. Pack one of them again with the other's classes"
    )

"""Opens the sets of a config, and compares them with the config and with each other."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pretrain.config.schema.data import IN_WORDS, SourceConfig, Target
from pretrain.config.schema.experiment import Experiment
from pretrain.config.schema.objective import makers_of
from pretrain.data.order.mixture import Mixture, Part, Selection
from pretrain.data.order.order import Order, resolve_lanes
from pretrain.data.sampling import check_sampling, order_by_class
from pretrain.data.storage.card import CARD_FILE
from pretrain.data.storage.index import ShardTable
from pretrain.data.storage.packed_set import PackedSet, open_packed
from pretrain.data.storage.records import Records
from pretrain.data.storage.store import RemoteStore
from pretrain.errors import ConfigError, DataError
from pretrain.files import digest
from pretrain.names import from_bytes, parsed
from pretrain.seeds import integer_seed


@dataclass(frozen=True)
class Source:
    """A set that the training draws from.

    Attributes:
        config: its section of the config.
        packed: the set.
        selection: the samples that are drawn.
        first_sample_id: id of its first sample, counted over all sources.
    """

    config: SourceConfig
    packed: PackedSet
    selection: Selection
    first_sample_id: int


def lanes_of(experiment: Experiment) -> int:
    """The number of lanes of an experiment, from ``resolve_lanes`` with its batch size and its smallest set."""
    return resolve_lanes(experiment.batches.unit, experiment.data.lanes, experiment.data.smallest_source)


def open_sources(config: Experiment) -> tuple[Source, ...]:
    """The sets that the training draws from.

    Raises:
        DataError: a set is damaged, does not match the config, or has other classes than the first one.
        ConfigError, SetupError: as ``open_packed``. ConfigError: as ``check_sampling``.
    """
    check_sampling(config)
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
    """Checks that the samples have the kind of target that a setting needs (None: any).

    Raises:
        DataError: they have another kind, or masks that show only one class.
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
            f"{packed.location}: according to {CARD_FILE}, its masks show {sum(count > 0 for count in counts)} of "
            f"{len(counts)} classes, from which nothing can be learnt. An earlier version read masks of 1 bit as 0 and "
            "255, and 255 is not a class: pack the set again"
        )


def select(packed: PackedSet, source: SourceConfig) -> Selection:
    """The samples of a set that the config selects.

    Raises:
        DataError: the drop list cannot be read, or belongs to another set.
    """
    table, count = packed.table, None if source.subset is None else source.drawn_samples
    if source.drop_list is None:
        return Selection(table.sizes, count=count)

    dropped = load_drop_list(source.drop_list, table, table.open_records)
    return Selection(table.sizes, dropped, count)


def load_drop_list(path: str | Path, table: ShardTable, open_records: Callable[[int], Records]) -> NDArray[np.int64]:
    """The sample ids that a drop list names, ascending.

    Args:
        path: the file.
        table: the set that it refers to.
        open_records: shard number → its records; only called for shards in the list.

    Raises:
        DataError: the file cannot be read, or a line is malformed or names a sample that the set does not have.
    """
    numbers = {row.name: index for index, row in enumerate(table.rows)}
    wanted: dict[int, dict[str, int]] = {}
    for line, (shard, key) in enumerate(_drop_list_lines(Path(path)), start=1):
        if shard not in numbers:
            raise DataError(f"{path}:{line}: the set has no shard {shard!r}; it was made for another set")
        wanted.setdefault(numbers[shard], {}).setdefault(key, line)
    ids = []
    for shard, keys in sorted(wanted.items()):
        found = _records_with(keys, open_records(shard))
        if len(found) < len(keys):
            key = next(key for key in keys if key not in found)
            raise DataError(
                f"{path}:{keys[key]}: shard {table.rows[shard].name} has no sample with the key {key!r}; the key is "
                "the member's name up to its first dot"
            )
        ids += [int(table.starts[shard]) + record for record in found.values()]
    return np.array(sorted(ids), dtype=np.int64)


def _drop_list_lines(path: Path) -> list[tuple[str, str]]:
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


def _records_with(keys: dict[str, int], records: Records) -> dict[str, int]:
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


def mix(sources: Sequence[Source], config: Experiment, lanes: int) -> Mixture:
    """The order in which all sources together are drawn.

    Raises:
        DataError: a source has fewer samples than lanes. ConfigError, DataError: as ``order_by_class``.
    """
    if config.data.sampling != "natural":  # of one set; the schema refuses it for a mixture
        order = order_by_class(config, sources[0].packed, sources[0].selection, lanes)
        only = Part(order, sources[0].selection, sources[0].first_sample_id)
        return Mixture([only], seed=config.seed, copies=config.data.repeated_augmentation)
    parts = []
    for number, source in enumerate(sources):
        seed = integer_seed(config.seed, "source", number) if config.data.mixture else config.seed
        order = Order(
            source.selection.sizes,
            seed=seed,
            global_batch_size=config.batches.unit,
            lanes=lanes,
            window=config.data.shuffle_window,
        )
        parts.append(Part(order, source.selection, source.first_sample_id))
    weights = [source.weight for source in config.data.mixture] or [1.0]
    return Mixture(parts, weights, seed=config.seed, copies=config.data.repeated_augmentation)


def sources_digest(sources: Sequence[Source], mixture: Mixture) -> str:
    """Digest of the sets that the stream draws from; for a single complete set, the digest of its table."""
    if len(sources) == 1 and sources[0].selection.is_all:
        return sources[0].packed.table.digest
    rows = [[source.packed.table.digest, source.selection.digest] for source in sources]
    return digest(json.dumps([rows, mixture.quanta]).encode())


def check_cache(sources: Sequence[Source], config: Experiment, lanes: int, *, world: int, local_world: int) -> None:
    """Checks that the node's cache can hold two shuffle windows of each of its lanes.

    Args:
        sources: the training sets.
        config: the experiment.
        lanes: L.
        world: R.
        local_world: ranks of this node.

    Raises:
        ConfigError: it cannot; gives the size that would suffice, and the window that would fit.
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
    """Bytes that a node's lanes use at the same time, over all remote sources."""
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
        says = f"the card has {name} {found + num_dropped}{less}"
        raise DataError(
            f"{packed.location}: {says}, but the config has {key} {wanted}. Set {key}: {found}, or "
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

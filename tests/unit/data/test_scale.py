"""The laws at the scale that they are for: 300 million samples in 30,000 shards, up to 4,096 ranks."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pretrain.config.schema.cluster import AutoClusterConfig
from pretrain.data.order.mixture import Mixture, Part, Selection
from pretrain.data.order.order import Order, allowed_worlds, check_world
from pretrain.data.storage.cache import NodeCache
from pretrain.data.storage.index import ShardRow, ShardTable
from pretrain.data.storage.location import Location
from pretrain.data.storage.store import RemoteStore, automatic_chunk_bytes
from pretrain.data.storage.transport import Retries
from pretrain.data.storage.transports import open_transport
from pretrain.data.workers.processes import loader
from pretrain.data.workers.reader import MixedReader, ShardReader
from pretrain.errors import ConfigError

NUM_SHARDS, PER_SHARD = 30_000, 10_000
NUM = NUM_SHARDS * PER_SHARD
BATCH, LANES, WINDOW = 8192, 512, 8192
WORLDS = [1 << bit for bit in range(13)]
POSITIONS = [position // LANES * LANES for position in (0, NUM - BATCH, 17 * NUM, 10**12)]
MIB = 2**20


def mixture(num_sets: int = 1, subset: int | None = None) -> Mixture:
    parts = []
    for number in range(num_sets):
        selection = Selection(np.full(NUM_SHARDS, PER_SHARD), count=subset)
        order = Order(selection.sizes, seed=number, global_batch_size=BATCH, lanes=LANES, window=WINDOW)
        parts.append(Part(order, selection, number * NUM))
    return Mixture(parts, [1.0 / (number + 1) for number in range(num_sets)])


def test_of_all_numbers_of_ranks_those_that_keep_the_laws_are_taken_and_the_others_refused():
    assert allowed_worlds(BATCH, LANES, 4096) == WORLDS
    for world in (3, 5, 48, 96, 511, 513, 1000, 1536, 4095):
        with pytest.raises(ConfigError, match="1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096"):
            check_world(BATCH, LANES, world)


@pytest.mark.parametrize("num_sets", [1, 3])
def test_any_number_of_ranks_draws_the_same_batch_at_any_position(num_sets):
    mixed = mixture(num_sets)
    for position in POSITIONS:
        whole = np.stack(mixed.batch(position))
        for world in WORLDS:
            per_rank = BATCH // world
            for rank in {0, world // 3, world - 1}:
                part = np.stack(mixed.batch(position, rank, world))
                assert np.array_equal(part, whole[:, rank * per_rank : (rank + 1) * per_rank])


class Seeks:
    """Item i: a fresh copy of everything that a data process has, and one seek with it, in that process."""

    def __init__(self, table: ShardTable, folder: Path, num_sets: int, subset: int | None) -> None:
        self.num_sets, self.subset = num_sets, subset
        transport = open_transport(Location.parse("http://127.0.0.1:9/x"), AutoClusterConfig().remote, allow_pipe=False)
        cache = NodeCache(folder, 1 << 30)
        store = RemoteStore(transport, cache, table.rows, chunk_bytes=1 << 22, retries=Retries())
        self.reader = MixedReader([ShardReader(table, store)] * num_sets, [n * NUM for n in range(num_sets)], [""])

    def __getitem__(self, index: int) -> tuple[float, float]:
        mixed = mixture(self.num_sets, self.subset)
        world = WORLDS[index % len(WORLDS)]
        position = POSITIONS[index % len(POSITIONS)]
        gc.collect()
        began = time.process_time()  # other programs on the machine are not what is measured
        mixed.batch(position, world // 2, world, start=0, stop=min(64, BATCH // world))
        elapsed = time.process_time() - began
        return elapsed, psutil.Process().memory_full_info().uss / MIB


@pytest.mark.parametrize(("num_sets", "subset"), [(1, None), (3, None), (1, NUM // 10)])
def test_a_seek_takes_less_than_50_ms_and_a_process_less_than_200_mb(tmp_path, num_sets, subset):
    rows = [ShardRow(f"shard-{i:06d}.tar", PER_SHARD, PER_SHARD * 112_000, f"{i:032x}") for i in range(NUM_SHARDS)]
    ShardTable(tmp_path, rows, num_classes=1000, max_labels=1).save()
    seeks: Any = Seeks(ShardTable.load(tmp_path), tmp_path / "cache", num_sets, subset)
    places = [*range(13)] * 2
    measured = list(loader(seeks, places, num_workers=1, prefetch_factor=2))
    times, memory = zip(*measured, strict=True)
    print(
        f"{num_sets} sets, subset {subset}: seek {np.median(times) * 1e3:.1f} ms at the median, {max(memory):.0f} MiB"
    )
    best = np.minimum(times[:13], times[13:])  # of two tries, for a process may lose its core in the middle
    assert max(best) < 0.05
    assert max(memory) < 200e6 / MIB


@pytest.mark.parametrize(("num_shards", "num_nodes"), [(30_000, 512), (1024, 64), (1024, 512)])
def test_read_amplification_is_at_most_1_15_while_nodes_are_at_most_lanes(num_shards, num_nodes):
    """The chunks that each node's lanes touch in an epoch, in bytes; images of 110 KB in uneven shards."""
    image, sizes = 110_000, 1200 + np.arange(num_shards) * 37 % 103
    starts = np.concatenate([[0], np.cumsum(sizes)])
    order = Order(sizes, seed=0, global_batch_size=BATCH, lanes=LANES, window=WINDOW)
    chunk = automatic_chunk_bytes(int(sizes.sum()) * image, LANES)
    fetched, drawn, lanes_per_node = 0, 0, LANES // num_nodes
    for node in range(0, num_nodes, max(1, num_nodes // 64)):
        touched: list[np.ndarray] = []
        for lane in range(node * lanes_per_node, (node + 1) * lanes_per_node):
            for draw in range(0, order.samples_per_lane, WINDOW):
                ids = order.window_samples(lane, draw)
                drawn += len(ids)
                shards = np.searchsorted(starts, ids, side="right") - 1
                first = (ids - starts[shards]) * image
                touched += [shards * 10**6 + first // chunk, shards * 10**6 + (first + image - 1) // chunk]
        chunks = np.unique(np.concatenate(touched))
        fetched += int(np.minimum(chunk, sizes[chunks // 10**6] * image - chunks % 10**6 * chunk).sum())
    amplification = fetched / (drawn * image)
    print(f"{num_shards} shards, {num_nodes} nodes, chunks of {chunk}: {amplification:.4f}")
    assert 1 < amplification <= 1.15

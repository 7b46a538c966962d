"""All pairs of hashes that differ in few bits, in constant memory and without comparing every pair.

Each of many tables sorts one side by some of its bits, chosen at random, and looks the other side up: two hashes that
differ in d of 63 bits meet in a table of b bits with probability p = C(63 − d, b) / C(63, b). The number
of tables is chosen so that a pair at the radius is found with probability ``RECALL_AT_RADIUS``. Closer pairs are found
more reliably (at radius 10 with 18 bits: 0.95 at d = 10, 0.999 at d = 8), and a copy has several close views, each with
its own chance. The smaller the sorted side, the fewer the bits, so that a look-up finds about one hash.

The bits of neighbouring tables are disjoint: the hashes' bits are permuted once, and each table takes the next b.

Legend: n queries · m stored hashes · b bits of a table · d bits in which two hashes differ.
Source: Indyk and Motwani, "Approximate Nearest Neighbors", 1998, section 4.2 (bit sampling).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.dedup.prints import NUM_BITS, distances

FEWEST_BITS, MOST_BITS = 8, 18
RECALL_AT_RADIUS = 0.95
MOST_AT_ONCE = 1 << 20  # candidate pairs in memory; their arrays stay in the processor's cache
CROWD = 4096  # larger buckets are skipped: their pictures agree because they are nearly empty

Found = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]


def near_pairs(
    queries: NDArray[np.uint64],
    stored: NDArray[np.uint64],
    radius: int,
    show: Callable[[int], None] = lambda done: None,
) -> Iterator[Found]:
    """Yields (query, stored, distance) of pairs within ``radius`` bits; a pair may be yielded more than once.

    Args:
        queries: uint64 (n,).
        stored: uint64 (m,).
        radius: the most bits that may differ.
        show: called after each table with the number of tables done.
    """
    if not len(queries) or not len(stored):
        return
    num_bits = bits_of_tables(len(stored))
    wanted, done = num_tables(num_bits, radius), 0
    generator = np.random.default_rng(0)
    while done < wanted:
        order = generator.permutation(NUM_BITS)
        mixed_queries, mixed_stored = permuted(queries, order), permuted(stored, order)
        for first in range(0, NUM_BITS - num_bits + 1, num_bits):
            table = _Table.of(_keys(mixed_stored, first, num_bits), mixed_stored, num_bits)
            yield from _within(mixed_queries, _keys(mixed_queries, first, num_bits), table, radius)
            done += 1
            show(done)
            if done == wanted:
                return


def bits_of_tables(num_stored: int) -> int:
    """b, so that a bucket holds about one stored hash."""
    return min(MOST_BITS, max(FEWEST_BITS, round(math.log2(max(num_stored, 1)))))


def num_tables(num_bits: int, radius: int) -> int:
    """The number of tables that find a pair at the radius with probability ``RECALL_AT_RADIUS``."""
    share = math.comb(NUM_BITS - radius, num_bits) / math.comb(NUM_BITS, num_bits)
    return 1 if share == 1 else math.ceil(math.log(1 - RECALL_AT_RADIUS) / math.log1p(-share))


def permuted(hashes: NDArray[np.uint64], order: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hashes with bit ``order[i]`` moved to position i; distances do not change."""
    place = np.empty(64, dtype=np.uint64)
    place[order] = np.arange(NUM_BITS, dtype=np.uint64)
    place[NUM_BITS:] = NUM_BITS  # the unused bit stays at its place
    octets = hashes.astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(np.uint64)
    mixed = np.zeros(len(hashes), dtype=np.uint64)
    for number in range(8):
        moved = (bits << place[8 * number : 8 * number + 8]).sum(axis=1, dtype=np.uint64)
        mixed |= moved[octets[:, number]]
    return mixed


def _keys(mixed: NDArray[np.uint64], first: int, num_bits: int) -> NDArray[np.int32]:
    return ((mixed >> np.uint64(first)) & np.uint64((1 << num_bits) - 1)).astype(np.int32)


class _Table(NamedTuple):
    """The stored side in the order of its keys.

    Attributes:
        hashes: uint64 (m,), in that order.
        order: int32 (m,), the place of each among the stored.
        starts: int32 (2^b + 1,), where each key begins.
        counts: int32 (2^b,), hashes of a key; 0 for buckets that are too large.
    """

    hashes: NDArray[np.uint64]
    order: NDArray[np.int32]
    starts: NDArray[np.int32]
    counts: NDArray[np.int32]

    @classmethod
    def of(cls, keys: NDArray[np.int32], mixed: NDArray[np.uint64], num_bits: int) -> _Table:
        # one sort of (key, place) in one number is several times as fast as an argsort
        packed = np.sort((keys.astype(np.uint64) << np.uint64(40)) | np.arange(len(keys), dtype=np.uint64))
        order = (packed & np.uint64((1 << 40) - 1)).astype(np.int32)
        counts = np.bincount(keys, minlength=1 << num_bits).astype(np.int32)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        counts[counts > CROWD] = 0
        return cls(mixed[order], order, starts, counts)


def _within(queries: NDArray[np.uint64], keys: NDArray[np.int32], table: _Table, radius: int) -> Iterator[Found]:
    counts = table.counts[keys]
    found = np.flatnonzero(counts)
    counts = counts[found]
    ends = np.cumsum(counts, dtype=np.int64)
    start = 0
    while start < len(found):
        before = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, before + MOST_AT_ONCE, side="right")), start + 1)
        rows, sizes = found[start:stop], counts[start:stop]
        # of pair i the place in the table: i, shifted by where its query's bucket begins
        shift = table.starts[keys[rows]] - (ends[start:stop] - before - sizes)
        place = np.arange(int(ends[stop - 1]) - before) + np.repeat(shift, sizes)
        far = distances(np.repeat(queries[rows], sizes), table.hashes[place])
        near = np.flatnonzero(far <= radius)
        if len(near):
            query = rows[np.searchsorted(ends[start:stop] - before, near, side="right")]
            yield query, table.order[place[near]].astype(np.int64), far[near]
        start = stop

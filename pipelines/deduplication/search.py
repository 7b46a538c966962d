"""All pairs of hashes that differ in few bits, in constant memory and without looking at every pair.

Each of many tables sorts one side by some of its bits, chosen at random, and looks the other side up: two hashes that
differ in d of 63 bits meet in one table with probability C(63 − d, b) / C(63, b), here 0.05 at d = 8, so in one of 96
tables with 0.995, and with 0.91 at d = 10; a copy has several views that are near, each with a chance of its own.

Source: Indyk and Motwani, "Approximate Nearest Neighbors", 1998, section 4.2 (bit sampling).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from pipelines.deduplication.hashes import NUM_BITS, distances

NUM_TABLES = 96
BITS_PER_TABLE = 18
MOST_AT_ONCE = 4_000_000  # candidate pairs in memory
CROWD = 4096  # a bucket with more says nothing: so many pictures agree by being empty


def near_pairs(
    queries: NDArray[np.uint64],
    stored: NDArray[np.uint64],
    radius: int,
    show: Callable[[int], None] = lambda done: None,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]]:
    """Yields (query, stored, distance) of pairs within ``radius`` bits; a pair may come more than once.

    Args:
        queries: uint64 (n,).
        stored: uint64 (m,).
        radius: the most bits that may differ.
        show: told after each table how many are done.
    """
    generator = np.random.default_rng(0)
    for table in range(NUM_TABLES):
        bits = generator.choice(NUM_BITS, BITS_PER_TABLE, replace=False).astype(np.uint64)
        mask = np.bitwise_or.reduce(np.uint64(1) << bits)
        keys = stored & mask
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        wanted = queries & mask
        first = np.searchsorted(keys, wanted, side="left")
        counts = np.searchsorted(keys, wanted, side="right") - first
        counts[counts > CROWD] = 0
        yield from _within(queries, stored, order, first, counts, radius)
        show(table + 1)


def _within(
    queries: NDArray[np.uint64],
    stored: NDArray[np.uint64],
    order: NDArray[np.int64],
    first: NDArray[np.int64],
    counts: NDArray[np.int64],
    radius: int,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]]:
    found = np.flatnonzero(counts)
    ends = np.cumsum(counts[found])
    start = 0
    while start < len(found):
        before = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, before + MOST_AT_ONCE, side="right")), start + 1)
        rows = found[start:stop]
        sizes = counts[rows]
        query = np.repeat(rows, sizes)
        within = np.arange(len(query)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        other = order[np.repeat(first[rows], sizes) + within]
        far = distances(queries[query], stored[other])
        near = far <= radius
        if near.any():
            yield query[near], other[near], far[near]
        start = stop

"""Fetches chunks before a rank reads them. The order is known, so nothing is guessed.

A lane draws from one shuffle window at a time, in random order. All chunks of the current window are fetched
immediately; the fetches of the next window are spread over the duration of the current one. The data processes of a
rank divide the chunks among themselves, and the node's cache ensures that each chunk is fetched only once.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pretrain import threads
from pretrain.data.order.mixture import Mixture, Window
from pretrain.data.storage.store import RemoteStore
from pretrain.data.workers.reader import ShardReader
from pretrain.errors import UserError

Chunk = tuple[int, str, int]  # set, shard, chunk


@dataclass
class _Plan:
    """The chunks of one window, and how many of them were passed to the threads."""

    chunks: list[Chunk]
    num_asked: int = 0


class FetchAhead:
    """Threads of one data process that fill the node's cache.

    Args:
        order: the sample at each position.
        readers: of each set, not used elsewhere; only remote sets are fetched ahead.
        rank: this rank.
        world: number of ranks.
        share: (i, n): this process fetches every n-th chunk from the i-th on.
        num_threads: number of concurrent requests.
    """

    def __init__(
        self,
        order: Mixture,
        readers: Sequence[ShardReader],
        *,
        rank: int,
        world: int,
        share: tuple[int, int],
        num_threads: int,
    ) -> None:
        self._order, self._readers = order, readers
        self._rank, self._world, self._share = rank, world, share
        self._wanted = threading.Condition()
        self._wish: tuple[int, NDArray[np.int64]] | None = None
        self._queue: deque[Chunk] = deque()
        self._plans: dict[tuple[int, int, int], _Plan] = {}
        self._closed = False
        threads.start("plan-ahead", self._plan_forever)
        for number in range(num_threads):
            threads.start(f"fetch-ahead-{number}", self._fetch_forever)

    def at(self, position: int, sample_ids: NDArray[np.int64]) -> None:
        """Reports that the stream is at ``position`` and reads these samples next; returns immediately."""
        with self._wanted:
            self._wish = (position, sample_ids)
            self._wanted.notify_all()

    def close(self) -> None:
        """Stops the threads after their current requests."""
        with self._wanted:
            self._closed = True
            self._queue.clear()
            self._wanted.notify_all()

    def _plan_forever(self) -> None:
        planned = None
        while True:
            with self._wanted:
                self._wanted.wait_for(lambda last=planned: self._closed or self._wish is not last)
                if self._closed:
                    return
                planned = self._wish
            assert planned is not None
            try:
                self._hurry(planned[1])
                self._plan(planned[0])
            except UserError:  # the reader of the sample will get the same error, and can name the sample
                continue

    def _hurry(self, sample_ids: NDArray[np.int64]) -> None:
        """Moves the chunks that are read now to the front, so that a cold start does not fetch them one by one."""
        for part, reader in enumerate(self._readers):
            store, first = reader.store, self._order.parts[part].first_sample_id
            mine = np.unique(sample_ids[(sample_ids >= first) & (sample_ids < first + reader.table.num_samples)])
            if not len(mine) or not isinstance(store, RemoteStore):
                continue
            absent = [chunk for chunk in chunks_of(reader, part, mine - first) if not store.has(chunk[1], chunk[2])]
            with self._wanted:
                self._queue.extendleft(reversed(absent))
                self._wanted.notify_all()

    def _plan(self, position: int) -> None:
        windows = self._order.windows(position, self._rank, self._world)
        windows = [window for window in windows if self._readers[window.part].store.keeps_up]
        for window in windows:
            self._ask(self._plan_of(window, window.draw), 1.0)
        for window in windows:
            self._ask(self._plan_of(window, window.next_draw), window.progress)
        keep = {(window.part, window.lane, draw) for window in windows for draw in (window.draw, window.next_draw)}
        self._plans = {key: plan for key, plan in self._plans.items() if key in keep}

    def _plan_of(self, window: Window, draw: int) -> _Plan:
        key = (window.part, window.lane, draw)
        if key not in self._plans:
            index, count = self._share
            samples = self._order.window_samples(window.part, window.lane, draw)
            self._plans[key] = _Plan(list(chunks_of(self._readers[window.part], window.part, samples))[index::count])
        return self._plans[key]

    def _ask(self, plan: _Plan, share: float) -> None:
        """Passes the first ``share`` of a window's chunks to the threads, except those passed before."""
        stop = math.ceil(len(plan.chunks) * share)
        if stop > plan.num_asked:
            with self._wanted:
                self._queue.extend(plan.chunks[plan.num_asked : stop])
                self._wanted.notify_all()
            plan.num_asked = stop

    def _fetch_forever(self) -> None:
        while True:
            with self._wanted:
                self._wanted.wait_for(lambda: self._closed or self._queue)
                if self._closed:
                    return
                part, shard, chunk = self._queue.popleft()
            store = self._readers[part].store
            assert isinstance(store, RemoteStore)
            try:
                store.fetch_ahead(shard, chunk)
            except UserError:  # as above
                continue


def chunks_of(reader: ShardReader, part: int, sample_ids: NDArray[np.int64]) -> Iterator[Chunk]:
    """The chunks that contain these samples, shard by shard in byte order, without repetition.

    Args:
        reader: of the set, over a remote store.
        part: number of the set.
        sample_ids: ascending.
    """
    store = reader.store
    assert isinstance(store, RemoteStore)
    shards, records = reader.table.locate(sample_ids)
    for shard in np.unique(shards).tolist():
        starts, stops = reader.spans(shard, records[shards == shard])
        first, last = starts // store.chunk_bytes, (stops - 1) // store.chunk_bytes
        longest = int((last - first).max()) + 1
        numbers = np.unique(np.concatenate([np.minimum(first + step, last) for step in range(longest)]))
        name = reader.table.rows[shard].name
        yield from ((part, name, int(number)) for number in numbers)

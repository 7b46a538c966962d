"""Counts the bytes that the data processes of a rank have read and fetched, in memory that they share with the rank.

Each process adds to its own row, so no process waits for another; the rank sums the rows when it logs.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Sequence
from typing import Any

COUNTED = ("bytes_read", "bytes_fetched", "fetch_retries", "cache_hits", "cache_misses")
_row = 0  # of this process: 0 the rank, n + 1 its n-th data process


def take_row(row: int) -> None:
    """Sets the row that this process adds to."""
    global _row
    _row = row


class Tally:
    """Counts since the start; see ``COUNTED``. It can only be passed to data processes when they start.

    A *hit* is a part of a chunk that was in the node's cache when it was asked for; a *miss* had to be fetched, or
    waited for while another process fetched it.

    Args:
        num_workers: data processes.
    """

    def __init__(self, num_workers: int) -> None:
        # a context whose processes inherit the memory, so that a killed job leaves no file behind
        context = multiprocessing.get_context("forkserver")
        self._num_rows = num_workers + 1
        self._values: Any = context.RawArray("q", self._num_rows * len(COUNTED))
        self._lock = threading.Lock()
        self._before = (0.0, 0.0)

    def add(self, **counts: int) -> None:
        """Adds to this process's row; thread-safe."""
        first = min(_row, self._num_rows - 1) * len(COUNTED)
        with self._lock:
            for name, count in counts.items():
                self._values[first + COUNTED.index(name)] += count

    def totals(self) -> list[float]:
        """This rank's counts, in the order of ``COUNTED``."""
        return [float(sum(self._values[column :: len(COUNTED)])) for column in range(len(COUNTED))]

    def figures(self, totals: Sequence[float]) -> dict[str, float]:
        """Metrics from the sums over ranks; network metrics only if something was fetched or cached.

        The hit rate covers the time since the last call.
        """
        counts = dict(zip(COUNTED, totals, strict=True))
        hits, misses = counts.pop("cache_hits"), counts.pop("cache_misses")
        if not (hits or misses or counts["bytes_fetched"] or counts["fetch_retries"]):
            return {"bytes_read": counts["bytes_read"]}
        new_hits, new_misses = hits - self._before[0], misses - self._before[1]
        self._before = (hits, misses)
        asked = new_hits + new_misses
        return {**counts, **({"cache_hit_rate": new_hits / asked} if asked else {})}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

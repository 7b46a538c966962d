"""Counts the bytes that a rank reads, and the samples that could not be used.

A ``Tally`` is in memory that the data processes share with their rank. Each process adds to its own row, so no process
waits for another; the rank sums the rows when it logs.

A ``Fault`` is one bad sample, which is replaced by the next good one of its shard, so the stream continues with the
same number of samples on every rank. Too many of them indicate a broken set or broken storage, and stop the run.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pretrain import disk
from pretrain.errors import DataError
from pretrain.files import Journal
from pretrain.names import printable, shown, tell

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


@dataclass(frozen=True)
class Fault:
    """One unusable sample, and the sample that replaced it (-1: none, in evaluation)."""

    sample_id: int
    replaced_by: int
    shard: str
    member: str
    kind: str
    detail: str


class FaultLog:
    """Counts the distinct bad samples of this rank.

    Args:
        num_samples: samples of the set.
        max_rate: the largest allowed fraction of bad samples.
        path: file that gets one JSON line per bad sample; None: not written.

    Attributes:
        counts: (shard, kind) → distinct bad samples.
    """

    def __init__(self, num_samples: int, max_rate: float, path: Path | None = None) -> None:
        self.num_samples = num_samples
        self.max_rate = max_rate
        self.path = path
        self.counts: Counter[tuple[str, str]] = Counter()
        self._journal = None if path is None else Journal(path)
        self._is_told = False
        self._seen: set[int] = set()

    @property
    def num_bad(self) -> int:
        """Distinct bad samples so far."""
        return len(self._seen)

    def add(self, faults: Iterable[Fault]) -> None:
        """Counts and logs new faults, and checks the limit.

        Raises:
            DataError: more than ``max_rate`` of the set's samples are bad; names the last one.
        """
        for fault in faults:
            if fault.sample_id in self._seen:
                continue
            self._seen.add(fault.sample_id)
            self.counts[fault.shard, fault.kind] += 1
            self._write(fault)
            if self.num_bad > self.max_rate * self.num_samples:
                raise DataError(self._message(fault))

    def summary(self) -> str:
        """The counts in one line, most frequent first."""
        return ", ".join(f"{shown(shard)} {kind} × {count}" for (shard, kind), count in self.counts.most_common(8))

    def _write(self, fault: Fault) -> None:
        if self._journal is None:
            return
        names = {"shard": shown(fault.shard), "member": shown(fault.member), "detail": printable(fault.detail)}
        with contextlib.suppress(OSError):  # the journal reports the error
            disk.current.make_folder(self._journal.path.parent)  # not its parents: the run folder may be gone
        failure = self._journal.add(json.dumps(asdict(fault) | names))
        if failure is not None and not self._is_told:
            tell(f"warning: {self.path} cannot be written: {failure}; the sample still counts", file=sys.stderr)
        self._is_told = failure is not None

    def _message(self, fault: Fault) -> str:
        written = f"; all of them: {self.path}" if self.path else ""
        last = f"shard {shown(fault.shard)}, member {shown(fault.member)}, {fault.kind} ({printable(fault.detail)})"
        return (
            f"{self.num_bad} of {self.num_samples} samples could not be used, more than data.max_bad_sample_rate "
            f"{self.max_rate:g} allows. The last: {last}. Counts: {self.summary()}{written}. Copy or pack the shards "
            "again, or raise data.max_bad_sample_rate"
        )

"""Counts unusable samples by shard and reason, logs them to a file, and limits their number.

A bad sample is replaced by the next good one of its shard, so the stream continues with the same number of samples on
every rank. Too many bad samples indicate a broken set or broken storage, and stop the run.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from pretrain import disk
from pretrain.errors import DataError
from pretrain.files import Journal
from pretrain.names import printable, shown, tell


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

"""The shards of a pack, divided among the tasks of an array: written, counted, and merged once all are there.

Shard number k of the pack belongs to task k modulo the number of tasks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.pack.finish import QUARANTINE_FILE, encode_lines, quarantined_in, remove_leftovers
from pipelines.pack.plan import Plan, Shard
from pipelines.pack.shard import Writing, is_done, num_bad, write_shard
from pipelines.pack.state import Task
from pipelines.runs.pool import run_tasks
from pipelines.terminal.progress import LazyBar
from pretrain.errors import DataError
from pretrain.files import TEMPORARY_SUFFIX, write_atomic


@dataclass(frozen=True)
class Shares:
    """The shards of a plan in the folder of the pack.

    Attributes:
        plan: what is packed.
        out: the folder.
        max_bad_rate: share of the images that may be bad.
        task: the one whose share is meant; None: all tasks.
    """

    plan: Plan
    out: Path
    max_bad_rate: float
    task: Task | None = None

    @property
    def shards(self) -> list[tuple[Path, Shard]]:
        """(folder of the split, shard) of the task."""
        every = [(self.out / split.name, shard) for split in self.plan.splits for shard in split.shards]
        return every[self.task.number - 1 :: self.task.count] if self.task else every

    @property
    def done(self) -> list[tuple[Path, Shard]]:
        """The shards that an earlier run finished."""
        return [(folder, shard) for folder, shard in self.shards if is_done(folder, shard)]

    def write(self, writing: Writing, num_workers: int) -> None:
        """Writes the missing shards, and counts the bad images of all shards.

        Raises:
            DataError: more images are bad than allowed.
        """
        self._clean()
        shards, done = self.shards, {(folder, shard.name) for folder, shard in self.done}
        finished = [(folder, shard) for folder, shard in shards if (folder, shard.name) in done]
        tasks = [(folder, shard) for folder, shard in shards if (folder, shard.name) not in done]
        num_items, num_done = _num_images(shards), _num_images(finished)
        bad, limit = _num_bad(finished), self.max_bad_rate * num_items
        with LazyBar("packing", num_items, "images") as bar:
            if bad <= limit:
                workers = min(num_workers, len(tasks))
                for more in run_tasks(write_shard, tasks, writing, workers, lambda count: bar.show(num_done + count)):
                    bad += more
                    if bad > limit:
                        break
        if bad > limit:
            raise DataError(self._too_many_bad())

    def check_complete(self, num_tasks: int) -> None:
        """Rejects a merge before all tasks are done.

        Raises:
            DataError: names the tasks to run again.
        """
        shards = self.shards
        missing = [number for number, (folder, shard) in enumerate(shards) if not is_done(folder, shard)]
        if missing:
            tasks = sorted({number % num_tasks + 1 for number in missing})
            shown = ", ".join(f"{number}/{num_tasks}" for number in tasks[:16]) + (" …" if len(tasks) > 16 else "")
            raise DataError(
                f"{self.out}: {len(missing)} of {len(shards)} shards are missing; run again with --task {shown}, then "
                "merge"
            )

    def check_rate(self) -> None:
        """Rejects finished shards with too many bad images.

        Raises:
            DataError: more are bad than allowed.
        """
        if _num_bad(self.shards) > self.max_bad_rate * self.plan.num_items:
            raise DataError(self._too_many_bad())

    def _clean(self) -> None:
        """Makes the folders and removes partly written files; a task touches those of its own shards only."""
        for split in self.plan.splits:
            (self.out / split.name).mkdir(exist_ok=True)
            if self.task is None:
                remove_leftovers(self.out / split.name)
        for folder, shard in self.shards if self.task else ():
            for leftover in folder.glob(f"{shard.name.removesuffix('.tar')}.*{TEMPORARY_SUFFIX}"):
                leftover.unlink(missing_ok=True)

    def _too_many_bad(self) -> str:
        """The error message; lists all bad images so far in a file."""
        entries = [
            {"split": folder.name, **entry}
            for folder, shard in self.done
            for entry in quarantined_in(folder, [shard])
            if num_bad([entry])
        ]
        write_atomic(self.out / QUARANTINE_FILE, encode_lines(entries))
        counts = Counter(entry["kind"] for entry in entries).most_common()
        kinds = ", ".join(f"{kind} × {count}" for kind, count in counts)
        first = entries[0]
        return (
            f"at least {len(entries)} of {_num_images(self.shards)} images cannot be used ({kinds}), more than "
            f"--max-bad-rate {self.max_bad_rate:g} allows. First: {first['source']} ({first['kind']}: "
            f"{first['detail']}). All so far: {self.out / QUARANTINE_FILE}. Fix or remove them, or run again with a "
            "higher --max-bad-rate"
        )


def _num_images(shards: Sequence[tuple[Path, Shard]]) -> int:
    return sum(len(shard.items) for _, shard in shards)


def _num_bad(shards: Sequence[tuple[Path, Shard]]) -> int:
    return sum(num_bad(quarantined_in(folder, [shard])) for folder, shard in shards)

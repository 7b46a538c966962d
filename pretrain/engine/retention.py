"""Which complete checkpoints are kept: the last k, every n-th step, and the best by a metric.

Only intact checkpoints count: a damaged one among the last k would displace one that can be resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pretrain import disk, records
from pretrain.config.schema.evaluation import LOWER_IS_BETTER
from pretrain.engine.checkpoint_folder import MARKER, complete_checkpoints, examine, read_marker, remove, step_of
from pretrain.errors import CheckpointError


@dataclass(frozen=True)
class Retention:
    """The retention rule. It depends only on the folder, so a resumed run continues as if it had not stopped.

    Attributes:
        keep_last: how many of the newest to keep.
        keep_every: also keep those whose step is a multiple of this.
        keep_best: also keep the best by this metric (``val/top1``) among those evaluated at their step; the first one
            wins a tie.
    """

    keep_last: int
    keep_every: int | None = None
    keep_best: str | None = None

    def kept(self, metrics: Mapping[int, Mapping[str, float]]) -> set[int]:
        """The steps to keep.

        Args:
            metrics: step of every complete checkpoint → its metrics.
        """
        return self.counted(metrics) | self.at_multiples(metrics)

    def at_multiples(self, steps: Iterable[int]) -> set[int]:
        """The steps at multiples of ``keep_every``."""
        return set() if self.keep_every is None else {step for step in steps if step % self.keep_every == 0}

    def counted(self, metrics: Mapping[int, Mapping[str, float]]) -> set[int]:
        """The steps of ``kept`` that would be replaced by another one if they did not exist."""
        kept = set(sorted(metrics)[-self.keep_last :])
        if (best := self.best(metrics)) is not None:
            kept.add(best)
        return kept

    def best(self, metrics: Mapping[int, Mapping[str, float]]) -> int | None:
        """The step of the best checkpoint, or None if none was evaluated."""
        if self.keep_best is None:
            return None
        measured = [step for step in sorted(metrics) if self.keep_best in metrics[step]]
        return max(measured, key=lambda step: self._rank(metrics[step]), default=None)

    def improves(self, values: Mapping[str, float], metrics: Mapping[int, Mapping[str, float]]) -> bool:
        """Whether a checkpoint with these values would be the best one."""
        if self.keep_best is None or self.keep_best not in values:
            return False
        best = self.best(metrics)
        return best is None or self._rank(values) > self._rank(metrics[best])

    def _rank(self, values: Mapping[str, float]) -> float:
        assert self.keep_best is not None
        value = values[self.keep_best]
        if value != value:  # NaN is worse than any number
            return float("-inf")
        return -value if self.keep_best.rsplit("/", 1)[-1] in LOWER_IS_BETTER else value


class Keeper:
    """Applies the rule to a folder.

    Args:
        folder: the checkpoint folder.
        rule: which checkpoints to keep.
        say: prints one line for the user.
        in_use: → steps that are not removed yet, since they are being read.
    """

    def __init__(
        self,
        folder: Path,
        rule: Retention,
        say: Callable[[str], None],
        in_use: Callable[[], set[int]] = set,
    ) -> None:
        self.folder, self.rule, self._say, self._in_use = folder, rule, say, in_use
        self._intact: set[tuple[Path, int]] = set()
        self._damaged: dict[Path, str] = {}

    def trust(self, path: Path) -> None:
        """Records that a checkpoint is intact, since this process has just written and hashed it."""
        self._damaged.pop(path, None)
        self._intact.add((path, _marker_stamp(path)))

    def prune(self) -> None:
        """Removes the checkpoints that the rule does not keep; a failed removal is reported.

        Nothing is removed before enough intact checkpoints exist. A damaged one is removed once a newer one is intact;
        an unreadable one is kept, since its disk may come back.
        """
        paths = {step_of(path): path for path in complete_checkpoints(self.folder)}
        counted = self._counted(paths)
        if not counted:
            return
        kept = counted | self.rule.at_multiples(paths) | self._in_use()
        for step, path in paths.items():
            problem = self._damaged.get(path)
            if step in kept or (problem is not None and (step > max(counted) or records.UNREADABLE in problem)):
                continue
            try:
                remove(path)
            except OSError as error:
                self._say(f"warning: checkpoint {path} could not be removed: {error}")

    def improves(self, values: Mapping[str, float]) -> bool:
        """Whether a checkpoint with these values would be the best of all intact ones."""
        paths = {step_of(path): path for path in complete_checkpoints(self.folder)}
        counted = self._counted(paths)
        return self.rule.improves(values, {step: self._metrics(paths[step]) for step in counted})

    def _counted(self, paths: Mapping[int, Path]) -> set[int]:
        """Steps of the last k and the best, checking older ones until enough of them are intact."""
        candidates = {step: self._metrics(path) for step, path in paths.items() if path not in self._damaged}
        while True:
            counted = self.rule.counted(candidates)
            damaged = [step for step in sorted(counted) if not self._is_intact(paths[step])]
            if not damaged:
                return counted
            for step in damaged:
                del candidates[step]

    def _is_intact(self, path: Path) -> bool:
        stamp = path, _marker_stamp(path)
        if stamp in self._intact:
            return True
        try:
            problem = examine(path)[1]
        except CheckpointError as error:
            problem = f"it {records.UNREADABLE} ({error})"
        if problem is None:
            self._intact.add(stamp)
            return True
        if path not in self._damaged:
            self._say(f"checkpoint {path} does not count: {problem}")
        self._damaged[path] = problem
        return False

    def _metrics(self, path: Path) -> dict[str, float]:
        try:
            return read_marker(path).get("metrics", {})
        except CheckpointError:
            return {}


def _marker_stamp(path: Path) -> int:
    """A number that changes when a checkpoint is replaced by another one."""
    try:
        status = disk.current.status(path / MARKER)
    except OSError:
        return 0
    return 0 if status is None else status.st_mtime_ns

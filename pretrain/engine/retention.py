"""Which complete checkpoints stay: the last k, every n-th step, and the best by a metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.config.target import LOWER_IS_BETTER
from pretrain.engine.checkpoint_folder import complete_checkpoints, read_marker, remove, step_of


@dataclass(frozen=True)
class Retention:
    """The rule. It looks at the folder alone, so a resumed run goes on as if it had not stopped.

    Attributes:
        keep_last: so many of the newest.
        keep_every: also those whose step is a multiple of this.
        keep_best: also the best by this metric (``val/top1``) among those that were evaluated at their step; of equals
            the first.
    """

    keep_last: int
    keep_every: int | None = None
    keep_best: str | None = None

    def kept(self, metrics: Mapping[int, Mapping[str, float]]) -> set[int]:
        """The steps that stay.

        Args:
            metrics: step of every complete checkpoint → what was measured at it.
        """
        steps = sorted(metrics)
        kept = set(steps[-self.keep_last :])
        if self.keep_every is not None:
            kept |= {step for step in steps if step % self.keep_every == 0}
        if (best := self.best(metrics)) is not None:
            kept.add(best)
        return kept

    def best(self, metrics: Mapping[int, Mapping[str, float]]) -> int | None:
        """The step of the best checkpoint, or None where none was measured."""
        if self.keep_best is None:
            return None
        measured = [step for step in sorted(metrics) if self.keep_best in metrics[step]]
        return max(measured, key=lambda step: self._rank(metrics[step]), default=None)

    def improves(self, values: Mapping[str, float], metrics: Mapping[int, Mapping[str, float]]) -> bool:
        """Whether a checkpoint with these values would be the best of all."""
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


def measured(folder: Path) -> dict[int, dict[str, float]]:
    """Step → metrics of every complete checkpoint in the folder."""
    return {step_of(path): _metrics(path) for path in complete_checkpoints(folder)}


def prune(folder: Path, rule: Retention) -> None:
    """Removes every complete checkpoint that the rule does not keep."""
    kept = rule.kept(measured(folder))
    for path in complete_checkpoints(folder):
        if step_of(path) not in kept:
            remove(path)


def _metrics(path: Path) -> dict[str, Any]:
    try:
        return read_marker(path).get("metrics", {})
    except (OSError, ValueError):
        return {}

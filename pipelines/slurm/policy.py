"""Decides after a failure: restart on the nodes that the job has, requeue without some, or end. A pure function."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.slurm.layout import Layout, largest_layout
from pipelines.slurm.starts import Failure

SAME_FAILURES = 3  # of one rank, after the same step, with the same error: it would come again
FAILED_STARTS = 2  # in a row: other nodes may help
DEFAULT_NODE_FAILURES = 2
LEAST_TIME_S = 300.0  # a step that starts later may miss the job scripts' signal, which precedes the time limit by this


@dataclass(frozen=True)
class Situation:
    """The means of a job when a step has ended.

    Attributes:
        nodes: those of the allocation that answer, in Slurm's order.
        used: those that the step ran on.
        worlds: the numbers of ranks that draw the same batches.
        ranks: those of the first step; a restart uses no more, so that spare nodes stay spare.
        ranks_per_node: the most that a node takes.
        without_progress: restarts in a row that brought no newer checkpoint.
        left_s: seconds until the time limit.
    """

    nodes: Sequence[str]
    used: Collection[str]
    worlds: Sequence[int]
    ranks: int
    ranks_per_node: int
    without_progress: int
    left_s: float


@dataclass(frozen=True)
class Limits:
    """How much a job bears: restarts in a row without progress, and failures of one node.

    Without ``in_place`` it gives its nodes back after any failure.
    """

    without_progress: int
    node_failures: int
    in_place: bool = True


@dataclass(frozen=True)
class Action:
    """A decision and its reason.

    Attributes:
        kind: restart the step; requeue, which may also give up; stop for good.
        reason: for the user.
        layout, nodes: of the next step, for a restart.
        excluded: the nodes that have failed too often.
    """

    kind: Literal["restart", "requeue", "stop"]
    reason: str
    layout: Layout | None = None
    nodes: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()


def next_action(failures: Sequence[Failure], now: Situation, limits: Limits) -> Action:
    """Decides after the last of ``failures``, which are all of this job's, the oldest first."""
    counts = Counter(failure.node for failure in failures if failure.node)
    excluded = tuple(sorted(node for node, count in counts.items() if count >= limits.node_failures))
    last = failures[-1]
    if is_loop(failures):
        return Action("stop", f"crash loop: {SAME_FAILURES} times in a row, {last}", excluded=excluded)
    if not limits.in_place:
        return Action("requeue", str(last), excluded=excluded)
    if now.without_progress >= limits.without_progress:
        return Action("requeue", str(last), excluded=excluded)
    if now.left_s < LEAST_TIME_S:
        return Action("requeue", f"{last}; too little time is left to start again", excluded=excluded)
    if len(failures) >= FAILED_STARTS and not any(one.has_trained for one in failures[-FAILED_STARTS:]):
        return Action("requeue", f"{last}; no step was done in {FAILED_STARTS} starts", excluded=excluded)
    fit = [node for node in now.nodes if node not in excluded]
    worlds = [world for world in now.worlds if world <= now.ranks]
    layout = largest_layout(worlds, len(fit), now.ranks_per_node)
    if layout is None:
        return Action("requeue", f"{last}; too few nodes are left", excluded=excluded)
    # The others stay, which have the fast checkpoint; the one that failed is replaced by one with fewer failures.
    stay = set(now.used) - {last.node}
    ordered = sorted(
        fit, key=lambda node: (node not in stay, counts[node], node not in now.used, now.nodes.index(node))
    )
    chosen = set(ordered[: layout.num_nodes])
    return Action("restart", str(last), layout, tuple(node for node in now.nodes if node in chosen), excluded)


def is_loop(failures: Sequence[Failure]) -> bool:
    """Whether the last failures are of the same rank, after the same step, with the same error.

    Numbers in the error (addresses, ports) do not count. Failures before the first step do not either: other nodes may
    help there.
    """
    last = failures[-SAME_FAILURES:]
    kinds = {(one.rank, one.step, re.sub(r"0x[0-9a-f]+|\d+", "#", one.error)) for one in last}
    return (
        len(last) == SAME_FAILURES
        and len(kinds) == 1
        and all(one.has_trained for one in last)
        and last[0].rank is not None
    )

"""The ranks of a step: how many on which nodes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipelines.slurm import starts


@dataclass(frozen=True)
class Layout:
    """A step: ``ranks_per_node`` ranks on each of the first ``num_nodes`` nodes."""

    num_nodes: int
    ranks_per_node: int

    @property
    def ranks(self) -> int:
        return self.num_nodes * self.ranks_per_node


def largest_layout(worlds: Iterable[int], num_nodes: int, gpus_per_node: int) -> Layout | None:
    """The largest number of ranks that fits the batch and the nodes, on as few nodes as it needs.

    Every node that is used gets the same number of ranks.

    Args:
        worlds: the valid world sizes, all of which draw the same batches.
        num_nodes: nodes that the job got.
        gpus_per_node: GPUs of each.

    Returns:
        None where no number fits.
    """
    for ranks in sorted(set(worlds), reverse=True):
        for nodes in range(1, num_nodes + 1):
            if ranks % nodes == 0 and ranks // nodes <= gpus_per_node:
                return Layout(nodes, ranks // nodes)
    return None


def headline(start: starts.Start, before: Sequence[starts.Start], layout: Layout, spare: int = 0) -> str:
    """The first line of each start in the log, with the cost of idle GPUs, of which ``spare`` are wanted."""
    number = sum(earlier.job_id == start.job_id for earlier in before) + 1
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(start.time))
    lines = [
        f"==== {when}  job {start.job_id}, start {number}: {layout.ranks} ranks on {layout.num_nodes} of "
        f"{len(start.nodes)} nodes ({', '.join(start.nodes)}), from step {start.step}"
    ]
    if spare:
        lines.append(f"{spare} GPUs are spare: nodes that fail are replaced by theirs")
    if (gpus := start.gpus - spare) > start.ranks:
        lines.append(f"{gpus} GPUs do not fit the batch: {start.ranks} are used, {gpus - start.ranks} stay idle")
    first = before[0].ranks if before else start.ranks
    if start.ranks < first:
        lines.append(f"{start.ranks} ranks instead of {first}: a step takes about {first / start.ranks:.3g} × as long")
    return "\n".join(lines)

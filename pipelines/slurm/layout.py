"""How many ranks a job starts, and on which of its nodes. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


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

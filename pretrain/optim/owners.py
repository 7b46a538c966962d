"""Which rank updates which tensor, where an update reads the complete tensor. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def owners_of(batches: Sequence[Mapping[str, int]], world: int) -> dict[str, int]:
    """Tensor → the rank that owns it: those with the most work first, each to the rank with the least work.

    Every rank waits for the slowest one in each batch, so the work of a batch is balanced first; among equally busy
    ranks the one that holds the least of all batches is chosen.

    Args:
        batches: work on each of the tensors that are updated at the same time, in the order of the updates.
        world: number of ranks.

    Source: longest processing time first (Graham, 1969).
    """
    owners: dict[str, int] = {}
    held = [0] * world
    for costs in batches:
        busy = [0] * world
        for name in sorted(costs, key=lambda name: (-costs[name], name)):
            rank = min(range(world), key=lambda rank: (busy[rank], held[rank], rank))
            owners[name] = rank
            busy[rank] += costs[name]
            held[rank] += costs[name]
    return owners

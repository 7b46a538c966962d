"""Updates of complete tensors where the parameters are sharded: what ranks send and allocate. Does not import torch.

Follows ``pretrain.optim.exchange``: the owners collect gradients, and all changes are sent back together. A tensor that
one rank holds completely is not copied there, and elsewhere it stays in the message that it came in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from pretrain.optim.owners import owners_of
from pretrain.sharding.complete import Complete

Groups = tuple[tuple[Complete, ...], ...]  # each is updated at once, one after the other
# (tensors of a group, number of ranks) → for each tensor, rank → elements that it holds
Cut = Callable[[Sequence[Complete], int], list[dict[int, int]]]


def even_parts(count: int, size: int, num_devices: int) -> dict[int, int]:
    """A ``Cut`` of one tensor: rank → elements, where each has equally many pieces of a size; the last ones have fewer.

    Args:
        count: number of pieces.
        size: elements of each.
        num_devices: number of ranks.
    """
    most = -(-count // num_devices)
    return {rank: size * min(most, count - rank * most) for rank in range(-(-count // most))}


@dataclass
class _Rank:
    """One rank's part in the update of a group, in elements.

    Attributes:
        sent: of other ranks' tensors, which it holds.
        received: of its own tensors, which others hold.
        owned: of each own tensor the first rank that sends it, -1 for this one, and whether several ranks hold parts.
    """

    sent: int = 0
    received: int = 0
    owned: list[tuple[Complete, int, bool]] = field(default_factory=list)

    def peak(self, num_collected: int) -> int:
        """fp32 values that are allocated at the same time, see ``most_allocated``."""
        joined = sum(each.size for each, _, is_split in self.owned if is_split)
        has_views = any(sender >= 0 and not is_split for _, sender, is_split in self.owned)
        kept = joined + (self.received if has_views else 0)
        most = (num_collected - 1) * kept + self.received + max(self.sent, joined)
        kept, changes = num_collected * kept, 0
        for each, _, is_split in sorted(self.owned, key=lambda one: one[1]):  # in the order of the messages
            most = max(most, kept + changes + each.temporaries)
            kept -= num_collected * each.size if is_split else 0
            changes += each.size
        return max(most, changes + self.sent + self.received)


def most_allocated(groups: Groups, num_devices: int, cut: Cut, num_collected: int) -> int:
    """fp32 values that the update allocates on the rank that allocates the most.

    Args:
        groups: the tensors.
        num_devices: number of ranks.
        cut: how they are sharded.
        num_collected: tensors that an owner needs for each change: the gradient, and for some optimisers the weights.
    """
    ranks = _ranks(groups, num_devices, cut)
    return max((rank.peak(num_collected) for rank in ranks), default=0)


def num_sent(groups: Groups, num_devices: int, cut: Cut) -> int:
    """Elements that all ranks together send to owners; as many come back."""
    return sum(rank.sent for rank in _ranks(groups, num_devices, cut))


@lru_cache(maxsize=64)
def _ranks(groups: Groups, num_devices: int, cut: Cut) -> list[_Rank]:
    owners = owners_of([{each.name: each.cost for each in group} for group in groups], num_devices)
    return [rank for group in groups for rank in _ranks_of_group(group, owners, cut(group, num_devices), num_devices)]


def _ranks_of_group(
    group: tuple[Complete, ...], owners: Mapping[str, int], cut: list[dict[int, int]], num_devices: int
) -> list[_Rank]:
    ranks = [_Rank() for _ in range(num_devices)]
    for each, parts in zip(group, cut, strict=True):
        owner = owners[each.name]
        ranks[owner].owned.append((each, -1 if owner in parts else min(parts), len(parts) > 1))
        ranks[owner].received += each.size - parts.get(owner, 0)
        for rank, held in parts.items():
            ranks[rank].sent += held if rank != owner else 0
    return ranks

"""Sums of gradients over micro-steps and ranks, for weights that every rank holds completely.

Gradients are collected in flat buckets as the backward pass produces them. In the last backward pass of a step a bucket
is reduced as soon as it is complete, while the pass continues.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass
class Bucket:
    """Gradients that are reduced by one collective.

    Attributes:
        members: the weights, in the order in which a backward pass is expected to reach them.
        sums: their gradients, flat and in the order of the members; None before the first one of a step.
        num_ready: members whose gradients of all micro-steps have been added.
        work: the collective, once it has started.
    """

    members: list[nn.Parameter]
    sums: Tensor | None = None
    num_ready: int = 0
    work: Any = None

    offsets: list[int] = field(init=False)

    def __post_init__(self) -> None:
        ends = torch.tensor([0, *(member.numel() for member in self.members)]).cumsum(0)
        self.offsets = ends.tolist()

    def view(self, index: int) -> Tensor:
        """The sum of one member, in its shape."""
        assert self.sums is not None
        return self.sums[self.offsets[index] : self.offsets[index + 1]].view_as(self.members[index])


class GradientSums:
    """Takes the gradient of each weight as soon as autograd has produced it.

    Args:
        weights: in the order of the model, which is about the reverse of that of a backward pass.
        dtype: type of the sums; they are reduced in it, too.
        world: number of ranks.
        bucket_elements: the most weights of a bucket; a larger tensor has a bucket of its own.
    """

    def __init__(self, weights: Sequence[nn.Parameter], dtype: torch.dtype, world: int, bucket_elements: int) -> None:
        self._dtype, self._world = dtype, world
        self._buckets = [Bucket(members) for members in _cut(list(reversed(weights)), bucket_elements)]
        self._is_last, self._num_started = True, 0
        for bucket in self._buckets:
            for index, weight in enumerate(bucket.members):
                weight.register_post_accumulate_grad_hook(
                    lambda _, bucket=bucket, index=index: self._add(bucket, index)
                )

    def expect(self, *, last: bool) -> None:
        """Whether the next backward pass is the last one of its step."""
        self._is_last = last

    def finish(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """(weight, its gradient summed over micro-steps, mean over ranks); then the next step begins. Collective: yes.

        A weight without a gradient has a sum of zeros. A bucket is freed when all of its sums have been dropped.
        """
        for bucket in self._buckets[self._num_started :]:
            self._start(bucket)
        self._num_started = 0
        for bucket in self._buckets:
            if bucket.work is not None:
                bucket.work.wait()
            found = [(member, bucket.view(index)) for index, member in enumerate(bucket.members)]
            bucket.sums, bucket.work, bucket.num_ready = None, None, 0
            while found:
                yield found.pop()

    @torch.no_grad()
    def _add(self, bucket: Bucket, index: int) -> None:
        weight = bucket.members[index]
        assert weight.grad is not None
        self._allocate(bucket)
        bucket.view(index).add_(weight.grad)
        weight.grad = None
        if self._is_last:
            bucket.num_ready += 1
            self._start_complete()

    def _start_complete(self) -> None:
        """Starts complete buckets in their order, which is the same on all ranks."""
        for bucket in self._buckets[self._num_started :]:
            if bucket.num_ready < len(bucket.members):
                return
            self._start(bucket)

    @torch.no_grad()
    def _start(self, bucket: Bucket) -> None:
        sums = self._allocate(bucket)
        self._num_started += 1
        if self._world > 1:
            sums.div_(self._world)
            bucket.work = dist.all_reduce(sums, async_op=True)

    def _allocate(self, bucket: Bucket) -> Tensor:
        if bucket.sums is None:
            device = bucket.members[0].device
            bucket.sums = torch.zeros(bucket.offsets[-1], dtype=self._dtype, device=device)
        return bucket.sums


def _cut(weights: list[nn.Parameter], most: int) -> Iterator[list[nn.Parameter]]:
    """Consecutive weights of at most so many elements together."""
    members, size = [], 0
    for weight in weights:
        if members and size + weight.numel() > most:
            yield members
            members, size = [], 0
        members.append(weight)
        size += weight.numel()
    if members:
        yield members

"""Gradients summed in buckets over micro-steps and ranks are those of torch's DistributedDataParallel."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pretrain.engine.gradient_sums import GradientSums
from tests.pool import Pool

MICRO_STEPS, STEPS = 3, 2


class Net(nn.Module):
    """A network with a layer that runs twice and, if asked, one that runs on the first rank only."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.twice, self.rare = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.last = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, *, rare: bool) -> torch.Tensor:
        x = self.twice(self.twice(self.first(x).tanh())).tanh()
        return self.last(x + self.rare(x) if rare else x).square().sum()


def compare(bucket_elements: int, everywhere: bool) -> tuple[float, int, int]:
    """Largest relative error, and of the buckets: all, and those that the backward pass has started to reduce."""
    rank, world = dist.get_rank(), dist.get_world_size()
    net = Net()
    reference = DistributedDataParallel(copy.deepcopy(net), find_unused_parameters=True)
    sums = GradientSums(list(net.parameters()), torch.float32, world, bucket_elements)
    generator, error, started = torch.Generator().manual_seed(rank), 0.0, 0
    for _ in range(STEPS):
        inputs = torch.randn(MICRO_STEPS, 4, 6, generator=generator)
        for index, x in enumerate(inputs):
            sums.expect(last=index == MICRO_STEPS - 1)
            net(x, rare=everywhere or rank == 0).backward()
        started = sum(bucket.work is not None for bucket in sums._buckets)
        found = {id(weight): total.clone() for weight, total in sums.finish()}
        for index, x in enumerate(inputs):
            with contextlib.nullcontext() if index == MICRO_STEPS - 1 else reference.no_sync():
                reference(x, rare=everywhere or rank == 0).backward()
        for mine, other in zip(net.parameters(), reference.parameters(), strict=True):
            assert mine.grad is None and other.grad is not None
            error = max(error, float((found[id(mine)] - other.grad).norm() / other.grad.norm()))
        reference.zero_grad()
    return error, len(sums._buckets), started


@pytest.mark.parametrize(("bucket_elements", "expected"), [(1, 7), (50, 4), (10**6, 1)])
def test_buckets(pool2: Pool, pool4: Pool, bucket_elements: int, expected: int) -> None:
    for error, number, started in [*pool2.run(compare, bucket_elements, True), *pool4.run(compare, 50, True)]:
        assert error < 1e-6
        assert started == number, "all buckets are reduced while the backward pass runs"
    assert pool2.run(compare, bucket_elements, True)[0][1] == expected


def test_a_weight_without_a_gradient_on_one_rank(pool2: Pool) -> None:
    """Buckets are reduced in the same order on all ranks, so those after the missing one wait for the end."""
    (error, number, started), (other, _, fewer) = pool2.run(compare, 1, False)
    assert max(error, other) < 1e-6 and started == number and fewer < number

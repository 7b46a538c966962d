"""Probes of speed: a matrix product on each device, and an all-reduce between pairs of nodes.

A collective is as slow as its slowest member, so an all-reduce over all nodes shows that one is slow, but not which.
Here each node is measured in a few pairs with different partners: only a node that is slow itself is slow in all of
them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

import torch
import torch.distributed as dist

GEMM_SIZE = {"cuda": 8192, "cpu": 512}
GEMM_S = {"cuda": 20.0, "cpu": 0.2}  # a GPU that is not cooled well slows down after some seconds of full power
GEMM_PART_S = 0.25
ALL_REDUCE_BYTES = {"cuda": 256 << 20, "cpu": 1 << 20}
RUNS = 5
ROUNDS = 3


class GemmRate(NamedTuple):
    """10¹² operations per second of a matrix product: at the start, and after it has been repeated for a while."""

    first: float
    sustained: float

    @classmethod
    def of(cls, rates: Sequence[float]) -> GemmRate:
        """From the rates of equal parts of the time: the first, and the median of the last quarter."""
        return cls(rates[0], median(rates[-max(1, len(rates) // 4) :]))


def gemm_rate(device: torch.device) -> GemmRate:
    """The rate of a square product, bfloat16 on a GPU and float32 on a CPU.

    The operands are random: a GPU draws less power on constant ones, and so never reaches its limits.
    """
    size = GEMM_SIZE[device.type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty_like(a)

    def part(products: int) -> float:
        started = time.perf_counter()
        for _ in range(products):
            torch.mm(a, b, out=out)
        _wait(device)
        return time.perf_counter() - started

    part(1)
    products = max(1, int(GEMM_PART_S / part(1))) if device.type == "cuda" else 1
    rates, until = [], time.perf_counter() + GEMM_S[device.type]
    while not rates or time.perf_counter() < until:
        rates.append(products * 2 * size**3 / part(products) / 1e12)
    return GemmRate.of(rates)


def all_reduce_gb_per_s(
    device: torch.device, group: dist.ProcessGroup | None = None, *, num_bytes: int | None = None
) -> float:
    """Bytes of the tensor per second of an all-reduce in ``group``, in GB/s. Collective: every rank of the group."""
    values = torch.ones((num_bytes or ALL_REDUCE_BYTES[device.type]) // 4, device=device)
    seconds = _best_s(lambda: dist.all_reduce(values, group=group), device)
    return values.numel() * 4 / seconds / 1e9


def rounds_of_pairs(num_nodes: int, num_rounds: int = ROUNDS) -> list[list[tuple[int, int]]]:
    """Pairs of nodes to measure at the same time, round by round: as many rounds for 256 nodes as for 4.

    Source: the circle method for round-robin tournaments: one node stays, the others move on by one seat. No node is
    in two pairs of a round, and no pair comes twice.
    """
    seats: list[int | None] = [*range(num_nodes), *([None] if num_nodes % 2 else [])]
    rounds = []
    for _ in range(min(num_rounds, len(seats) - 1)):
        facing = zip(seats[: len(seats) // 2], reversed(seats), strict=False)
        rounds.append([(one, other) for one, other in facing if one is not None and other is not None])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return rounds


def pair_rates(device: torch.device, ranks_of_nodes: list[list[int]], own: int) -> list[float]:
    """GB/s of this node with its partner of each round. Collective: all ranks of these nodes.

    Args:
        device: this rank's.
        ranks_of_nodes: the ranks of each node that is measured.
        own: the number of this rank's node.

    Returns:
        one rate per pair that this node is in: none for a single node, one for two.
    """
    rates, backend = [], "nccl" if device.type == "cuda" else "gloo"
    for pairs in rounds_of_pairs(len(ranks_of_nodes)):
        # A node without a partner makes a group of its own: torch names groups by how many a rank has made before.
        nodes = next((pair for pair in pairs if own in pair), (own,))
        # Only the members meet: otherwise every rank of the job would wait for every pair to be made, one by one. All
        # take the rounds in the same order, so no two pairs wait for each other.
        ranks = [rank for node in sorted(nodes) for rank in ranks_of_nodes[node]]
        group = dist.new_group(ranks, backend=backend, use_local_synchronization=True)
        assert isinstance(group, dist.ProcessGroup)
        if len(nodes) == 2:
            rates.append(all_reduce_gb_per_s(device, group))
        dist.destroy_process_group(group)
    return rates


def _best_s(run: Callable[[], object], device: torch.device) -> float:
    """The shortest of a few runs, after a warm-up run."""
    run()
    best = float("inf")
    for _ in range(RUNS):
        _wait(device)
        started = time.perf_counter()
        run()
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Measures and prints. Collective: all ranks."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpu else "gloo")
    rate = all_reduce_gb_per_s(device)
    if dist.get_rank() == 0:
        print(json.dumps({"gb_per_s": rate, "ranks": dist.get_world_size()}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""Probes of speed: a matrix product on each device, and an all-reduce between neighbouring nodes.

A collective is as slow as its slowest member, so an all-reduce over all nodes shows that one is slow, but not which.
Here each node is measured in two pairs, with the node before it and with the one after it: only a node that is slow
itself is slow in both.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

GEMM_SIZE = {"cuda": 8192, "cpu": 512}
ALL_REDUCE_BYTES = {"cuda": 256 << 20, "cpu": 1 << 20}
ROUNDS = 5


def gemm_tflops(device: torch.device) -> float:
    """10¹² operations per second of a square product (bfloat16 on a GPU, float32 on a CPU): the best of a few."""
    size = GEMM_SIZE[device.type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    a = torch.ones(size, size, device=device, dtype=dtype)
    out = torch.empty_like(a)
    seconds = _best_s(lambda: torch.mm(a, a, out=out), device)
    return 2 * size**3 / seconds / 1e12


def all_reduce_gb_per_s(device: torch.device, group: dist.ProcessGroup | None = None) -> float:
    """Bytes of the tensor per second of an all-reduce in ``group``, in GB/s. Collective: every rank of the group."""
    values = torch.ones(ALL_REDUCE_BYTES[device.type] // 4, device=device)
    seconds = _best_s(lambda: dist.all_reduce(values, group=group), device)
    return values.numel() * 4 / seconds / 1e9


def pair_rates(device: torch.device, ranks_of_nodes: list[list[int]], own: int) -> list[float]:
    """GB/s of this node with the node before it and the node after it, in a ring. Collective: all ranks.

    Args:
        device: this rank's.
        ranks_of_nodes: the ranks of each node.
        own: the number of this rank's node.

    Returns:
        one rate per pair that this node is in: none for a single node, one for two.
    """
    num_nodes, rates = len(ranks_of_nodes), []
    pairs = [(node, (node + 1) % num_nodes) for node in range(num_nodes)] if num_nodes > 1 else []
    for first, second in dict.fromkeys(tuple(sorted(pair)) for pair in pairs):
        group = dist.new_group(ranks_of_nodes[first] + ranks_of_nodes[second])
        if own in (first, second):
            assert isinstance(group, dist.ProcessGroup)
            rates.append(all_reduce_gb_per_s(device, group))
            dist.destroy_process_group(group)
    return rates


def _best_s(run: Callable[[], object], device: torch.device) -> float:
    """The shortest of a few runs, after a warm-up run."""
    run()
    best = float("inf")
    for _ in range(ROUNDS):
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

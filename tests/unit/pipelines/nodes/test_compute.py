"""Rates of devices and of pairs of nodes, on real ranks; the tournament, by its laws."""

from __future__ import annotations

import math

import pytest
import torch

from pipelines.nodes import compute
from pipelines.nodes.compute import GemmRate, pair_rates, rounds_of_pairs
from pipelines.slurm.preflight import probe_devices
from pretrain.distributed.rank import detect
from tests.pool import Pool


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 5, 8, 255, 256])
def test_every_node_is_measured_with_different_partners_at_the_same_time(nodes: int) -> None:
    rounds = rounds_of_pairs(nodes)
    assert len(rounds) == min(compute.ROUNDS, nodes - 1 + nodes % 2) if nodes > 1 else not any(rounds)
    for pairs in rounds:
        busy = [node for pair in pairs for node in pair]
        assert len(set(busy)) == len(busy) == 2 * (nodes // 2), "no node twice, and no more than one without a partner"
    every = [tuple(sorted(pair)) for pairs in rounds for pair in pairs]
    assert len(set(every)) == len(every), "a pair comes once"
    for node in range(nodes if nodes > 2 else 0):
        assert sum(node in pair for pair in every) >= 2


def test_a_complete_tournament_has_every_pair() -> None:
    assert sum(map(len, rounds_of_pairs(7, 100))) == math.comb(7, 2)


def test_the_sustained_rate_is_that_of_the_end() -> None:
    assert GemmRate.of([700.0] * 4) == (700.0, 700.0)
    assert GemmRate.of([710.0, 700.0, 690.0, 600.0, 500.0, 410.0, 400.0, 390.0]) == (710.0, 395.0)
    assert GemmRate.of([3.0]) == (3.0, 3.0)


def rates_of_four_nodes() -> list[float]:
    return pair_rates(torch.device("cpu"), [[0], [1], [2], [3]], detect().rank)


def rates_without_node_2() -> list[float]:
    """Rank 2 has no usable GPU, so it takes no part."""
    own = {0: 0, 1: 1, 3: 2}.get(detect().rank)
    return [] if own is None else pair_rates(torch.device("cpu"), [[0], [1], [3]], own)


def test_pairs_meet_without_the_others(pool4: Pool) -> None:
    assert [len(rates) for rates in pool4.run(rates_of_four_nodes, timeout_s=60)] == [3, 3, 3, 3]
    found = pool4.run(rates_without_node_2, timeout_s=60)
    assert [len(rates) for rates in found] == [2, 2, 0, 2] and all(rate > 0 for rates in found for rate in rates)


def on_a_node_without_gpus() -> list[tuple[str, str]]:
    rank = detect()
    return [(finding.probe, finding.level) for finding in probe_devices(rank, gpus=8 if rank.rank == 1 else 0)]


def test_a_rank_without_its_gpu_is_red_and_keeps_nobody_waiting(pool2: Pool) -> None:
    ranks = pool2.run(on_a_node_without_gpus)
    pool2.close()  # the preflight leaves the process group
    assert ranks == [[("gemm", "green")], [("device", "red")]]

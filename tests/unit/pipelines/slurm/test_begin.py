"""The largest number of ranks that fits the batch and the nodes."""

from __future__ import annotations

import pytest

from pipelines.slurm.layout import Layout, largest_layout
from pretrain.data.order.order import allowed_worlds, default_lanes

POWERS = [1, 2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize(
    ("worlds", "nodes", "gpus", "expected"),
    [
        (POWERS, 8, 8, Layout(8, 8)),
        (POWERS, 7, 8, Layout(4, 8)),  # 56 GPUs: 32 ranks, on as few nodes as hold them
        (POWERS, 3, 1, Layout(2, 1)),
        (POWERS, 2, 3, Layout(2, 2)),  # 6 GPUs: as many ranks on each node
        (POWERS, 1, 3, Layout(1, 2)),
        ([3, 6, 9], 2, 4, Layout(2, 3)),
        ([5, 7], 2, 4, None),  # 7 ranks cannot be spread evenly over two nodes of 4, nor 5
        ([4], 1, 3, None),
    ],
)
def test_the_largest_that_fits(worlds: list[int], nodes: int, gpus: int, expected: Layout | None) -> None:
    assert largest_layout(worlds, nodes, gpus) == expected


@pytest.mark.parametrize("batch", [64, 96, 4096, 4098])
def test_every_layout_keeps_the_laws(batch: int) -> None:
    worlds = allowed_worlds(batch, default_lanes(batch), 64)
    for nodes in range(1, 9):
        layout = largest_layout(worlds, nodes, 8)
        assert layout is not None and layout.ranks in worlds
        assert layout.num_nodes <= nodes and layout.ranks_per_node <= 8

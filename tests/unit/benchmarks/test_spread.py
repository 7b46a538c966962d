"""How much features differ, on features whose spread is known."""

from __future__ import annotations

import pytest
import torch

from benchmarks.transferring.spread import effective_rank, spread


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_equal_variance_along_k_axes_has_rank_k(rank: int) -> None:
    corners = torch.cat([torch.eye(8)[:rank], -torch.eye(8)[:rank]])
    turned = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0))).Q
    assert effective_rank(corners @ turned + 3.0) == pytest.approx(rank, rel=1e-4)


def test_spread_is_the_distance_from_the_mean_over_its_length() -> None:
    features = torch.tensor([[3.0, 4.0], [3.0, 4.0]]) + torch.tensor([[0.0, 2.0], [0.0, -2.0]])
    assert spread(features) == pytest.approx(2.0 / 5.0)

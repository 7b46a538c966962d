"""Stochastic depth as a function of the draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pretrain.models.layers.drop_path import drop_path_rates, drop_path_scales, scale_branch


def scales(slots: list[int] | np.ndarray, rate: float, depth: int, seed: int = 0) -> torch.Tensor:
    made = drop_path_scales(np.asarray(slots), rate, depth, seed=seed)
    assert made is not None
    return made


@pytest.mark.parametrize(("rate", "depth", "expected"), [(0.3, 4, [0, 0.1, 0.2, 0.3]), (0.5, 1, [0.0]), (0, 2, [0, 0])])
def test_rates_grow_linearly_from_zero(rate: float, depth: int, expected: list[float]) -> None:
    np.testing.assert_allclose(drop_path_rates(rate, depth), expected)


def test_a_constant_rate_is_that_of_every_block() -> None:
    """DeiT III's models: twice the linear shape's rate on average, in each of the two branches."""
    np.testing.assert_allclose(drop_path_rates(0.45, 24, "constant"), [0.45] * 24)
    made = drop_path_scales(np.arange(20_000), 0.45, 6, seed=0, shape="constant")
    assert made is not None
    dropped = (made == 0).float().mean(0)
    assert dropped.shape == (6, 2) and (dropped - 0.45).abs().max() < 0.015
    assert set(made.unique().tolist()) == {0.0, torch.tensor(1 / 0.55, dtype=torch.float32).item()}


def test_values_shares_and_mean() -> None:
    made = scales(np.arange(20_000), 0.4, 5)
    assert made.shape == (20_000, 5, 2) and made.dtype == torch.float32
    for block, rate in enumerate(drop_path_rates(0.4, 5)):
        kept = torch.tensor(1 / (1 - rate), dtype=torch.float32).item()
        assert set(made[:, block].unique().tolist()) <= {0.0, kept}
        assert (made[:, block] == 0).float().mean().item() == pytest.approx(rate, abs=0.01)
        assert made[:, block].mean().item() == pytest.approx(1.0, abs=0.02)


def test_each_draw_and_branch_has_its_own_mask_whatever_the_batch() -> None:
    whole = scales(list(range(100, 164)), 0.5, 6, seed=3)
    parts = torch.cat([scales([slot], 0.5, 6, seed=3) for slot in range(100, 164)])
    assert torch.equal(whole, parts)
    assert torch.equal(scales(list(range(163, 99, -1)), 0.5, 6, seed=3), whole.flip(0))
    assert len({tuple(row) for row in whole[:, 3:].flatten(1).tolist()}) > 30
    assert not torch.equal(whole[..., 0], whole[..., 1])
    assert not torch.equal(whole, scales(list(range(100, 164)), 0.5, 6, seed=4))


def test_rate_zero_makes_no_tensor() -> None:
    assert drop_path_scales(np.arange(4), 0.0, 12, seed=0) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scaling_keeps_the_branchs_type(dtype: torch.dtype) -> None:
    branch = torch.ones(3, 2, 4, dtype=dtype)
    scaled = scale_branch(branch, torch.tensor([0.0, 1.0, 2.0]))
    assert scaled.dtype == dtype
    assert scaled[:, 0, 0].tolist() == [0.0, 1.0, 2.0]
    assert scale_branch(branch, None) is branch

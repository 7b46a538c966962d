"""Blocks and Kronecker factors: inverse roots, failures of a decomposition, and what is kept, counted and owned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor, nn

from pretrain.config.schema.optim.choice import Optim
from pretrain.errors import ConfigError
from pretrain.models.families.registry import build_model
from pretrain.optim.kronecker import FactorError, eigh
from pretrain.optim.matrices import blocks_of
from pretrain.optim.optimizers import build_optimizer
from pretrain.optim.owned import OwnedOptimizer
from pretrain.optim.shampoo import inverse_fourth_root
from pretrain.sharding.weights import weights_of
from tests.distributed.training import CLASSES, experiment

NAMES = ("shampoo", "soap")


class Layers(nn.Module):
    """One kernel below a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 2)

    def layer_ids(self) -> dict[str, int]:
        """The head is above the body."""
        return {name: int(name.startswith("head")) for name, _ in self.named_parameters()}


def updated(times: int, scale: float = 1.0, **settings: Any) -> OwnedOptimizer:
    """An optimiser after updates with random gradients."""
    torch.manual_seed(0)
    model = Layers()
    config = TypeAdapter(Optim).validate_python({"lr": 0.01, "precondition_frequency": 1} | settings)
    optimizer = build_optimizer(model, config)
    assert isinstance(optimizer, OwnedOptimizer)
    for _ in range(times):
        for parameter in model.parameters():
            parameter.grad = scale * torch.randn(parameter.shape)
        optimizer.step()
    return optimizer


@given(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20), st.integers(1, 25))
def test_blocks_tile_the_matrices(count: int, rows: int, columns: int, largest: int) -> None:
    seen = torch.zeros(count, rows, columns)
    for block in blocks_of((count, rows, columns), largest):
        seen[block.matrix, block.rows, block.columns] += 1
        assert block.height <= largest and block.width <= largest
    assert bool((seen == 1).all())
    assert sum(block.height * block.width for block in blocks_of((count, rows, columns), largest)) == seen.numel()


def test_the_inverse_root_of_a_singular_matrix() -> None:
    """Against numpy's powers in double precision: the null space gets the root of epsilon."""
    half = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    matrix, epsilon = half @ half.T, 1e-2
    root = inverse_fourth_root(matrix, epsilon).double()
    product = torch.linalg.matrix_power(root, 4) @ (matrix.double() + epsilon * torch.eye(9))
    torch.testing.assert_close(product, torch.eye(9, dtype=torch.float64), rtol=0, atol=2e-3)


class Failing:
    """LAPACK's ``syevd`` that does not converge, in one precision or in both."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *dtypes: torch.dtype) -> None:
        self.real, self.dtypes = torch.linalg.eigh, dtypes
        monkeypatch.setattr(torch.linalg, "eigh", self)

    def __call__(self, matrix: Tensor) -> Any:
        """Fails, or computes."""
        if matrix.dtype in self.dtypes:
            raise torch.linalg.LinAlgError("linalg.eigh: the algorithm failed to converge")
        return self.real(matrix)


def test_a_decomposition_that_fails_is_repeated_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    matrix = matrix @ matrix.T
    wanted = torch.linalg.eigh(matrix)
    Failing(monkeypatch, torch.float32)
    values, vectors = eigh(matrix)
    torch.testing.assert_close(values, wanted[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((vectors * values) @ vectors.T, matrix, rtol=1e-5, atol=1e-5)


def test_after_failures_the_last_roots_are_used_and_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    optimizer = updated(2, name="shampoo")
    state = optimizer.owned_states()["body.weight"]
    roots = state["inverse_roots"].clone()
    parameter = optimizer.param_groups[0]["params"][0]
    before = parameter.detach().clone()
    Failing(monkeypatch, torch.float32, torch.float64)
    for count in (1, 2, 3):
        optimizer.step()
        assert torch.equal(state["inverse_roots"], roots)
        text = capsys.readouterr().err
        assert f"optim: update {2 + count}: the eigendecomposition of a factor of body.weight failed" in text
        assert f"failure {count} of at most 3 in a row" in text
    assert not torch.equal(parameter, before)
    with pytest.raises(FactorError, match=r"body\.weight .*for the 4th time in a row"):
        optimizer.step()


def test_failures_in_a_row_are_counted_anew_after_a_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    optimizer = updated(2, name="shampoo")
    for _ in range(3):
        with monkeypatch.context() as patch:
            Failing(patch, torch.float32, torch.float64)
            optimizer.step()
            optimizer.step()
        optimizer.step()
    assert "failure 2 of" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_factors_that_are_not_finite_are_an_error(name: str) -> None:
    """Squares of gradients overflow, although gradients are finite."""
    with pytest.raises(FactorError, match=r"a factor of body\.weight is not finite"):
        updated(3, scale=1e25, name=name)


@pytest.mark.parametrize("name", NAMES)
def test_owners_are_balanced_by_work(name: str) -> None:
    """Four times the elements may be much more or hardly more work; both sides of the estimate know."""
    config = experiment(optim={"name": name, "lr": 1e-3, "max_preconditioner_dim": 16})
    optimizer = build_optimizer(build_model(config.model, CLASSES), config.optim)
    assert isinstance(optimizer, OwnedOptimizer)
    for each in (each for group in weights_of(config).complete for each in group):
        assert optimizer._rule.cost(each.name, ()) == each.cost != each.size


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_nesterov": True}, "use_nesterov would be ignored with momentum: 0"),
        ({"start_preconditioning_step": 4}, "start_preconditioning_step is 4, but must be at least .*10"),
        ({"max_preconditioner_dim": 0}, "max_preconditioner_dim"),
    ],
)
def test_settings_that_would_be_ignored(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        TypeAdapter(Optim).validate_python({"name": "shampoo", "lr": 1e-3} | settings)

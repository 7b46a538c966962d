"""Objectives by name, and a law of all of them: the mean over the images, and no read on the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pretrain.config.schema import ObjectiveConfig
from pretrain.errors import ConfigError
from pretrain.models.vit import build_vit
from pretrain.objectives.registry import OBJECTIVES, build_objective
from pretrain.objectives.sigmoid import Sigmoid
from pretrain.objectives.softmax import Softmax
from tests.golden.twins import small_config
from tests.unit.objectives.batches import Inputs, images, linear_model

CONFIGS: list[dict[str, Any]] = [
    {"name": "softmax"},
    {"name": "softmax", "label_smoothing": 0.1},
    {"name": "sigmoid"},
    {"name": "sigmoid", "reduction": "mean"},
]


def test_settings_arrive() -> None:
    built = [build_objective(ObjectiveConfig(**config), 10) for config in CONFIGS]
    assert built == [Softmax(0.0), Softmax(0.1), Sigmoid("sum_classes"), Sigmoid("mean")]
    assert {config["name"] for config in CONFIGS} == set(OBJECTIVES), "each objective stands in the table above"


@pytest.mark.parametrize("config", CONFIGS)
def test_the_loss_is_the_mean_over_the_images(config: dict[str, Any]) -> None:
    """Two micro-batches of 3 average to one of 6: accumulation changes nothing."""
    objective, model = build_objective(ObjectiveConfig(**config), 5), linear_model(5)
    x, labels = images(6), torch.tensor([[0], [1], [2], [3], [4], [0]])
    whole = objective(model, Inputs(x, labels))
    halves = [objective(model, Inputs(x[part], labels[part])) for part in (slice(0, 3), slice(3, 6))]
    assert whole.shape == () and whole.dtype == torch.float32
    torch.testing.assert_close(whole, torch.stack(halves).mean())


@pytest.mark.parametrize("config", CONFIGS)
def test_nothing_is_read_on_the_host(config: dict[str, Any]) -> None:
    """Meta tensors have no values: a loss that needed one would raise."""
    with torch.device("meta"):
        model = build_vit(small_config(), 11)
        batch = Inputs(torch.empty(2, 3, 32, 48), torch.empty(2, 1, dtype=torch.int64), torch.empty(2, 3, 2))
    loss = build_objective(ObjectiveConfig(**config), 11)(model, batch)
    loss.backward()
    assert loss.is_meta and model.head.weight.grad is not None


def test_softmax_over_one_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="softmax over 1 class is always 0; use sigmoid"):
        build_objective(ObjectiveConfig(), 1)


def test_a_name_without_a_row_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(OBJECTIVES, "sigmoid")
    with pytest.raises(ConfigError, match="unknown objective 'sigmoid'; known are softmax"):
        build_objective(ObjectiveConfig(name="sigmoid"), 5)

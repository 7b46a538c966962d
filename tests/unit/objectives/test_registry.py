"""Objectives by name, and a law of all of them: the mean over the images, and no read on the host."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from pretrain.config.schema.base import choice_of
from pretrain.config.schema.objective import Objective
from pretrain.errors import ConfigError
from pretrain.models.families.registry import build_model
from pretrain.models.metadata import TargetScale
from pretrain.objectives.distillation import Distillation
from pretrain.objectives.masked_patches import MaskedPatches
from pretrain.objectives.protocol import MicroBatch
from pretrain.objectives.registry import OBJECTIVES, Context, build_objective
from pretrain.objectives.regression import Regression
from pretrain.objectives.segmentation import Segmentation
from pretrain.objectives.sigmoid import Sigmoid
from pretrain.objectives.softmax import Softmax
from tests.golden.twins import small_config
from tests.unit.objectives.batches import images, linear_model, settings_of

CONFIGS: list[dict[str, Any]] = [
    {"name": "softmax"},
    {"name": "softmax", "label_smoothing": 0.1},
    {"name": "sigmoid"},
    {"name": "sigmoid", "reduction": "mean", "binarise": True},
    {"name": "distillation", "teacher": "t"},
    {"name": "distillation", "teacher": "t", "distillation": "soft", "tau": 3.0},
    {"name": "masked_patches"},
    {"name": "regression"},
    {"name": "regression", "regression": "smooth_l1", "beta": 0.5},
    {"name": "segmentation"},
]
OF_LABELS = [config for config in CONFIGS if config["name"] not in ("masked_patches", "regression", "segmentation")]
OF_VECTORS = [config for config in CONFIGS if config["name"] == "regression"]
SCALE = TargetScale((1.0, 2.0, 3.0, 4.0, 5.0), (1.0, 0.1, 2.0, 3.0, 1.0))
TEACHER = linear_model(5, seed=4)


def build(config: dict[str, Any], num_classes: int, **context: Any) -> Any:
    half = (0.5, 0.5, 0.5)
    given = Context(3, half, half, patch=(8, 8), grid=(4, 6), teacher=TEACHER, scale=SCALE, **context)
    return build_objective(settings_of(**config), num_classes, given)


def test_settings_arrive() -> None:
    half = (0.5, 0.5, 0.5)
    assert [build(config, 10) for config in CONFIGS] == [
        Softmax(0.0),
        Softmax(0.1),
        Sigmoid("sum_classes"),
        Sigmoid("mean", binarise=True),
        Distillation(TEACHER, two_heads=False),
        Distillation(TEACHER, "soft", tau=3.0, two_heads=False),
        MaskedPatches((4, 6), (8, 8), half, half, seed=3),
        Regression(SCALE),
        Regression(SCALE, "smooth_l1", beta=0.5),
        Segmentation(),
    ]
    assert {config["name"] for config in CONFIGS} == set(OBJECTIVES), "each objective stands in the table above"


@pytest.mark.parametrize(
    ("config", "mixed"),
    [*((config, mixed) for config in OF_LABELS for mixed in (False, True)), *((config, True) for config in OF_VECTORS)],
)
def test_the_loss_is_the_mean_over_the_images(config: dict[str, Any], mixed: bool) -> None:
    """Two micro-batches of 3 average to one of 6: accumulation changes nothing."""
    objective, model = build(config, 5), linear_model(5)
    x, labels = images(6), torch.tensor([[0], [1], [2], [3], [4], [0]])
    targets = torch.rand(6, 5).softmax(1) if mixed else None

    def loss(part: slice) -> torch.Tensor:
        return objective(model, MicroBatch(x[part], labels[part], targets=None if targets is None else targets[part]))

    whole, halves = loss(slice(0, 6)), [loss(slice(0, 3)), loss(slice(3, 6))]
    assert whole.shape == () and whole.dtype == torch.float32
    torch.testing.assert_close(whole, torch.stack(halves).mean())


@pytest.mark.parametrize("config", CONFIGS)
def test_nothing_is_read_on_the_host(config: dict[str, Any]) -> None:
    """Meta tensors have no values: a loss that needed one would raise."""
    masked, distilled = config["name"] == "masked_patches", config["name"] == "distillation"
    dense = config["name"] == "segmentation"
    num_classes = 512 if masked else 11
    with torch.device("meta"):
        head = "dense" if dense else "pooled"
        model: Any = build_model(small_config(mask_token=masked, distilled=distilled, head=head), num_classes)
        teacher = build_model(small_config(), num_classes).eval()
        batch = MicroBatch(torch.empty(2, 3, 32, 48), torch.empty(2, 1, dtype=torch.int64), torch.empty(2, 3, 2))
        targets = torch.empty(2, 32, 48, dtype=torch.uint8) if dense else torch.empty(2, num_classes)
    batch = replace(batch, slots=torch.arange(2))
    mixed = replace(batch, targets=targets)
    context = Context(3, patch=(8, 8), grid=(4, 6), teacher=torch.no_grad()(teacher), two_heads=distilled)
    context = replace(context, scale=TargetScale((0.0,) * num_classes, (1.0,) * num_classes))
    for inputs in (mixed,) if dense or config in OF_VECTORS else (batch, mixed):
        loss = build_objective(settings_of(**config), num_classes, context)(model, inputs)
        loss.backward()
        assert loss.is_meta and model.head.weight.grad is not None


def test_softmax_over_one_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="softmax over 1 class is always 0; use sigmoid"):
        build_objective(settings_of(), 1)
    with pytest.raises(ConfigError, match="distillation over 1 class is always 0"):
        build_objective(settings_of(name="distillation", teacher="t"), 1)


def test_every_objective_of_the_config_has_a_row() -> None:
    choice = choice_of(Objective)
    assert choice is not None and list(OBJECTIVES) == list(choice.models)

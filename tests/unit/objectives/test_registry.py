"""Objectives by name, and a law of all of them: the mean over the images, and no read on the host."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch

from pretrain.config.schema.base import choice_of
from pretrain.config.schema.objective import Objective
from pretrain.errors import ConfigError
from pretrain.models.families.registry import build_model
from pretrain.models.metadata import TargetScale
from pretrain.models.variants import resolve
from pretrain.objectives.class_weights import ClassCounts
from pretrain.objectives.classification import Sigmoid, Softmax
from pretrain.objectives.dense import Regression, Segmentation
from pretrain.objectives.distillation import Distillation
from pretrain.objectives.feature_distillation import (
    FeatureAndTokenDistillation,
    FeatureDistillation,
    TokenDistillation,
)
from pretrain.objectives.masked_autoencoding import MaskedAutoencoding
from pretrain.objectives.masked_patches import MaskedPatches
from pretrain.objectives.protocol import MicroBatch
from pretrain.objectives.registry import OBJECTIVES, Context, build_objective
from pretrain.objectives.teacher import VIEWS
from tests.golden.twins import small_config
from tests.unit.objectives.batches import images, linear_model, settings_of

CONFIGS: list[dict[str, Any]] = [
    {"name": "softmax"},
    {"name": "softmax", "label_smoothing": 0.1},
    {"name": "softmax", "class_weights": "balanced"},
    {"name": "sigmoid"},
    {"name": "sigmoid", "label_smoothing": 0.1, "pos_weight": "balanced"},
    {"name": "sigmoid", "reduction": "mean", "binarise": True},
    {"name": "distillation", "teacher": "t"},
    {"name": "distillation", "teacher": "t", "distillation": "soft", "tau": 3.0},
    {"name": "feature_distillation", "teacher": "t", "width": 5},
    {"name": "token_distillation", "teacher": "t", "width": 5, "imitation": "smooth_l1", "beta": 0.5},
    {"name": "feature_and_token_distillation", "teacher": "t", "width": 5, "token_weight": 2.0},
    {"name": "masked_patches"},
    {"name": "mae"},
    {"name": "mae", "normalised_pixels": False},
    {"name": "regression"},
    {"name": "regression", "regression": "smooth_l1", "beta": 0.5},
    {"name": "segmentation"},
]
OF_LABELS = [config for config in CONFIGS if settings_of(**config).needs.target == "labels"]
OF_VECTORS = [config for config in CONFIGS if config["name"] == "regression"]
SCALE = TargetScale((1.0, 2.0, 3.0, 4.0, 5.0), (1.0, 0.1, 2.0, 3.0, 1.0))
TEACHER = linear_model(5, seed=4)
AUTOENCODER = {"patch_drop": 0.75, "decoder": {"embed_dim": 16, "depth": 1, "num_heads": 2}}
ENCODER = resolve(small_config(**AUTOENCODER))


def build(config: dict[str, Any], num_classes: int, **context: Any) -> Any:
    half = (0.5, 0.5, 0.5)
    context |= {"class_counts": ClassCounts((2,) * num_classes, 3 * num_classes)}
    context |= {"patch": (8, 8), "grid": (4, 6), "encoder": ENCODER}
    given = Context(3, half, half, teacher=TEACHER, scale=SCALE, **context)
    return build_objective(settings_of(**config), num_classes, given)


def test_settings_arrive() -> None:
    half = (0.5, 0.5, 0.5)
    assert [build(config, 10) for config in CONFIGS] == [
        Softmax(0.0),
        Softmax(0.1),
        Softmax(0.0, (1.5,) * 10),
        Sigmoid("sum_classes"),
        Sigmoid("sum_classes", label_smoothing=0.1, pos_weight=(14.0,) * 10),
        Sigmoid("mean", binarise=True),
        Distillation(TEACHER, two_heads=False),
        Distillation(TEACHER, "soft", tau=3.0, two_heads=False),
        FeatureDistillation(TEACHER),
        TokenDistillation(TEACHER, "smooth_l1", 0.5),
        FeatureAndTokenDistillation(TEACHER, (4, 6), token_weight=2.0),
        MaskedPatches((4, 6), (8, 8), half, half, seed=3),
        MaskedAutoencoding(ENCODER, 3),
        MaskedAutoencoding(ENCODER, 3, normalised_pixels=False),
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


NEEDS = {one["name"]: settings_of(**one).needs for one in CONFIGS}
POOLED = [one for one in CONFIGS if NEEDS[one["name"]].head == "pooled" and NEEDS[one["name"]].part is None]


@pytest.mark.parametrize("config", POOLED)
def test_the_model_is_told_which_patches_are_kept(config: dict[str, Any]) -> None:
    seen: list[torch.Tensor | None] = []
    model, kept = linear_model(5), torch.tensor([[0, 2], [1, 3]])

    def told(x: torch.Tensor, drop_path: torch.Tensor | None, kept: torch.Tensor | None = None) -> torch.Tensor:
        seen.append(kept)
        return model(x, drop_path)

    build(config, 5)(told, MicroBatch(images(2), torch.tensor([[0], [1]]), targets=torch.rand(2, 5), kept=kept))
    assert len(seen) == 1 and seen[0] is kept


@pytest.mark.parametrize("config", CONFIGS)
def test_nothing_is_read_on_the_host(config: dict[str, Any]) -> None:
    """Meta tensors have no values: a loss that needed one would raise."""
    masked, distilled = config["name"] == "masked_patches", config["name"] == "distillation"
    head, more = NEEDS[config["name"]].head, AUTOENCODER if config["name"] == "mae" else {}
    dense = config["name"] == "segmentation"
    num_classes = 512 if masked else 48 if config["name"].startswith(("feature_", "token_")) else 11
    with torch.device("meta"):
        model: Any = build_model(small_config(mask_token=masked, distilled=distilled, head=head, **more), num_classes)
        net: Any = build_model(small_config(), num_classes).eval()
        view = settings_of(**config).needs.teacher or "logits"
        teacher = functools.partial(VIEWS[view], net)
        batch = MicroBatch(torch.empty(2, 3, 32, 48), torch.empty(2, 1, dtype=torch.int64), torch.empty(2, 3, 2))
        targets = torch.empty(2, 32, 48, dtype=torch.uint8) if dense else torch.empty(2, num_classes)
    batch = replace(batch, slots=torch.arange(2))
    mixed = replace(batch, targets=targets)
    context = Context(3, patch=(8, 8), grid=(4, 6), teacher=torch.no_grad()(teacher), two_heads=distilled)
    context = replace(context, encoder=ENCODER, scale=TargetScale((0.0,) * num_classes, (1.0,) * num_classes))
    context = replace(context, class_counts=ClassCounts((2,) * num_classes, 3 * num_classes))
    for inputs in (mixed,) if dense or config in OF_VECTORS else (batch, mixed):
        loss = build_objective(settings_of(**config), num_classes, context)(model, inputs)
        loss.backward()
        last = model.decoder.pred if more else model.head
        assert loss.is_meta and last.weight.grad is not None


def test_softmax_over_one_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="softmax over 1 class is always 0; use sigmoid"):
        build_objective(settings_of(), 1)
    with pytest.raises(ConfigError, match="distillation over 1 class is always 0"):
        build_objective(settings_of(name="distillation", teacher="t"), 1)


def test_every_objective_of_the_config_has_a_row() -> None:
    choice = choice_of(Objective)
    assert choice is not None and list(OBJECTIVES) == list(choice.models)

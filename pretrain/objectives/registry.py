"""Registry of objectives: a new one is one file and one row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pretrain.config.schema.objective import (
    DistillationConfig,
    MaskedPatchesConfig,
    ObjectiveConfig,
    RegressionConfig,
    SigmoidConfig,
    SoftmaxConfig,
)
from pretrain.errors import ConfigError
from pretrain.models.metadata import TargetScale
from pretrain.objectives.distillation import Distillation
from pretrain.objectives.masked_patches import MaskedPatches
from pretrain.objectives.protocol import Objective
from pretrain.objectives.regression import Regression
from pretrain.objectives.segmentation import Segmentation
from pretrain.objectives.sigmoid import Sigmoid
from pretrain.objectives.softmax import Softmax


@dataclass(frozen=True)
class Context:
    """Information that some objectives need besides their settings.

    Attributes:
        seed: the experiment's.
        mean, std: normalisation of the images.
        patch, grid: patch size and grid of the Vision Transformer.
        teacher: normalised images → fp32 logits, without gradients.
        two_heads: the model can return the logits of a class head and a distillation head.
        scale: scale of the regression targets.
    """

    seed: int = 0
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    patch: tuple[int, int] | None = None
    grid: tuple[int, int] | None = None
    teacher: Callable[[Tensor], Tensor] | None = None
    two_heads: bool = False
    scale: TargetScale | None = None


def _softmax(config: SoftmaxConfig, context: Context) -> Objective:
    return Softmax(config.label_smoothing)


def _sigmoid(config: SigmoidConfig, context: Context) -> Objective:
    return Sigmoid(config.reduction, config.binarise)


def _distillation(config: DistillationConfig, context: Context) -> Objective:
    assert context.teacher is not None, "the caller must provide the teacher"
    return Distillation(
        context.teacher,
        kind=config.distillation,
        alpha=config.alpha,
        tau=config.tau,
        kl_reduction=config.kl_reduction,
        label_smoothing=config.label_smoothing,
        two_heads=context.two_heads,
    )


def _masked_patches(config: MaskedPatchesConfig, context: Context) -> Objective:
    if context.grid is None or context.patch is None:
        raise ConfigError("objective.name: masked_patches needs model.name: vit, whose patches it masks")
    return MaskedPatches(
        context.grid, context.patch, context.mean, context.std, seed=context.seed, share=config.corrupted
    )


def _regression(config: RegressionConfig, context: Context) -> Objective:
    assert context.scale is not None, "the caller must provide the scale of the targets"
    return Regression(context.scale, config.regression, config.beta)


OBJECTIVES: dict[str, Callable[[Any, Context], Objective]] = {
    "softmax": _softmax,
    "sigmoid": _sigmoid,
    "distillation": _distillation,
    "masked_patches": _masked_patches,
    "regression": _regression,
    "segmentation": lambda config, context: Segmentation(),
}


def build_objective(config: ObjectiveConfig, num_classes: int, context: Context | None = None) -> Objective:
    """The objective for these settings and a head of ``num_classes``.

    Raises:
        ConfigError: it is meaningless for so few classes, or for this model.
    """
    if num_classes < config.needs.min_classes:
        raise ConfigError(
            f"objective.name: {config.name} over {num_classes} class is always 0; use sigmoid or more classes"
        )
    return OBJECTIVES[config.name](config, context or Context())

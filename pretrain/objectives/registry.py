"""Registry of objectives: a new one is one class and one row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pretrain.config.schema.objective import (
    DistillationConfig,
    FeatureAndTokenDistillationConfig,
    FeatureDistillationConfig,
    MaskedAutoencodingConfig,
    MaskedPatchesConfig,
    ObjectiveConfig,
    RegressionConfig,
    SigmoidConfig,
    SoftmaxConfig,
)
from pretrain.errors import ConfigError
from pretrain.models.metadata import TargetScale
from pretrain.models.variants import ViTShape
from pretrain.objectives.class_weights import ClassCounts, absent_to_present, by_class, weights_of
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
from pretrain.objectives.protocol import Objective


@dataclass(frozen=True)
class Context:
    """Information that some objectives need besides their settings.

    Attributes:
        seed: the experiment's.
        mean, std: normalisation of the images.
        patch, grid: patch size and grid of the Vision Transformer.
        encoder: of a masked autoencoder.
        teacher: normalised images → what the objective's ``needs.teacher`` names, fp32 and without gradients.
        two_heads: the model can return the logits of a class head and a distillation head.
        scale: scale of the regression targets.
        class_counts: images of each class in the training set.
    """

    seed: int = 0
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    patch: tuple[int, int] | None = None
    grid: tuple[int, int] | None = None
    encoder: ViTShape | None = None
    teacher: Callable[[Tensor], Any] | None = None
    two_heads: bool = False
    scale: TargetScale | None = None
    class_counts: ClassCounts | None = None


def _softmax(config: SoftmaxConfig, context: Context) -> Objective:
    weights = weights_of(*config.class_weighting, context.class_counts, by_class)
    return Softmax(config.label_smoothing, weights)


def _sigmoid(config: SigmoidConfig, context: Context) -> Objective:
    weights = weights_of(*config.class_weighting, context.class_counts, absent_to_present)
    return Sigmoid(config.reduction, config.binarise, config.label_smoothing, weights)


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


def _feature_distillation(config: FeatureDistillationConfig, context: Context) -> Objective:
    assert context.teacher is not None, "the caller must provide the teacher"
    return FeatureDistillation(context.teacher, config.imitation, config.beta)


def _token_distillation(config: FeatureDistillationConfig, context: Context) -> Objective:
    assert context.teacher is not None, "the caller must provide the teacher"
    return TokenDistillation(context.teacher, config.imitation, config.beta)


def _feature_and_token_distillation(config: FeatureAndTokenDistillationConfig, context: Context) -> Objective:
    assert context.teacher is not None and context.grid is not None, "the caller must provide teacher and grid"
    return FeatureAndTokenDistillation(
        context.teacher, context.grid, config.imitation, config.beta, config.token_weight
    )


def _masked_patches(config: MaskedPatchesConfig, context: Context) -> Objective:
    if context.grid is None or context.patch is None:
        raise ConfigError("objective.name: masked_patches needs model.name: vit, whose patches it masks")
    return MaskedPatches(
        context.grid, context.patch, context.mean, context.std, seed=context.seed, share=config.corrupted
    )


def _masked_autoencoding(config: MaskedAutoencodingConfig, context: Context) -> Objective:
    assert context.encoder is not None, "the caller must provide the shape of the encoder"
    return MaskedAutoencoding(context.encoder, context.seed, config.normalised_pixels)


def _regression(config: RegressionConfig, context: Context) -> Objective:
    assert context.scale is not None, "the caller must provide the scale of the targets"
    return Regression(context.scale, config.regression, config.beta)


OBJECTIVES: dict[str, Callable[[Any, Context], Objective]] = {
    "softmax": _softmax,
    "sigmoid": _sigmoid,
    "distillation": _distillation,
    "feature_distillation": _feature_distillation,
    "token_distillation": _token_distillation,
    "feature_and_token_distillation": _feature_and_token_distillation,
    "masked_patches": _masked_patches,
    "mae": _masked_autoencoding,
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

"""Config → the transforms of images, and the size that they give them. No other code decides it."""

from __future__ import annotations

from pretrain.config.schema.experiment import Experiment
from pretrain.config.schema.transforms import EvalTransformConfig
from pretrain.data.images.augment import EvalTransform, TrainTransform
from pretrain.data.images.native import AnyEval, AnyTrain, NativeEvalTransform, NativeTrainTransform, Strip


def train_transform(config: Experiment) -> AnyTrain:
    """Bytes → pixels of training images: of the largest size, or strips of patches at their own aspect ratio."""
    data = config.data
    views = config.objective.num_views
    largest = config.image_sizes.largest
    transform = TrainTransform(data.augmentation, *largest, config.seed, data.mean, views)
    return NativeTrainTransform(Strip.of(largest), transform) if data.augmentation.sequence_lengths else transform


def eval_transform(config: Experiment, transform: EvalTransformConfig) -> AnyEval:
    """The same for evaluation."""
    if transform.max_tokens is None:
        return EvalTransform(transform, *config.model.size)
    return NativeEvalTransform(Strip(config.model.patch, transform.max_tokens), transform)

"""What every evaluator needs of the run that it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pretrain.config.schema.data import EvalTransformConfig
from pretrain.config.schema.evaluation import EvaluationSetConfig
from pretrain.config.schema.experiment import Experiment
from pretrain.data.batch import Batch
from pretrain.data.stream import EvalStream
from pretrain.evaluation.interrupt import InterruptibleStream
from pretrain.models.metadata import TargetScale

# Source: google-research/big_vision, evaluators/common_fewshot.py: resize(256) of both sides, central_crop(224); and
# its `resize`, which is bilinear without antialias.
FEW_SHOT_TRANSFORM = EvalTransformConfig(resize="squash_crop", crop_fraction=0.875, resize_filter="bilinear")


@dataclass(frozen=True)
class Context:
    """A model that can be asked, and where this rank stands.

    Attributes:
        experiment: its model's size, its transforms and its evaluation settings.
        rank, world: this rank, of so many.
        device: where the model is.
        model: the module, whose last layers are listened to for features.
        forward: normalised images → logits (B, K); calls ``model``.
        to_images: uint8 images on the device → normalised floats.
        scale: of a regression's targets; None elsewhere.
        say: one line for the user.
        wants_stop: whether this rank was asked to stop; looked at between batches.
    """

    experiment: Experiment
    rank: int
    world: int
    device: torch.device
    model: nn.Module
    forward: Callable[[Tensor], Tensor]
    to_images: Callable[[Tensor], Tensor]
    say: Callable[[str], None]
    wants_stop: Callable[[], bool] = lambda: False
    scale: TargetScale | None = None

    def stream(
        self, config: EvaluationSetConfig, shards: str, sample_ids: NDArray[np.int64] | None = None
    ) -> EvalStream:
        """This rank's share of a set, or of some of its samples.

        Raises:
            DataError: the shards are missing, or labelled otherwise than the training set where that matters.
        """
        return InterruptibleStream(
            self.experiment,
            shards,
            self.rank,
            self.world,
            self.experiment.evaluation.micro_batch_size,
            sample_ids=sample_ids,
            transform=self.transform(config),
            any_classes=config.has_own_classes,
            kind=config.kind,
            wants_stop=self.wants_stop,
            device=self.device,
        )

    def transform(self, config: EvaluationSetConfig) -> EvalTransformConfig:
        """How the images of a set are made."""
        default = FEW_SHOT_TRANSFORM if config.kind == "few_shot" else self.experiment.data.eval_transform
        return config.transform or default

    def logits(self, batch: Batch) -> Tensor:
        """Logits (B, K) of a batch on the device. Collective: at ZeRO-3."""
        return self.forward(self.to_images(batch.images))

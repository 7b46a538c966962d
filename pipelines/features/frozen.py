"""Weights of any format as a frozen model that is asked for features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from pipelines.classifier import eval_transform_of, network_of, pick_device
from pipelines.weights import load_source
from pretrain.config.schema.data import EvalTransformConfig
from pretrain.data.batch import Batch
from pretrain.data.device import to_model_input
from pretrain.models.init import digest
from pretrain.models.interop import WeightsMetadata


@dataclass(frozen=True)
class Frozen:
    """A model in evaluation mode (``evaluation.features.FrozenModel``).

    Attributes:
        model: fp32, on ``device``; of weights without a head it has one that says nothing.
        metadata: of the weights, at the resolution that is used.
        transform: how the weights' images are made for evaluation.
        device: where it is.
    """

    model: nn.Module
    metadata: WeightsMetadata
    transform: EvalTransformConfig
    device: torch.device

    @torch.inference_mode()
    def logits(self, batch: Batch) -> Tensor:
        """See ``FrozenModel.logits``."""
        return self.model(to_model_input(batch.images, self.metadata.mean, self.metadata.std))

    def digests(self) -> dict[str, str]:
        """Name → short hash of every tensor, at the resolution that is used."""
        return digest(self.model)


def load_frozen(
    source: Path,
    *,
    weights: Literal["raw", "ema"],
    img_size: int | None,
    device: str | None,
    say: Callable[[str], None],
) -> Frozen:
    """Reads weights, with or without a head; errors as ``classifier.load_classifier``."""
    state, metadata = load_source(source, weights, say)
    model, metadata = network_of(state, metadata, img_size, "bilinear_corners", say)
    chosen = pick_device(device)
    frozen = model.float().eval().requires_grad_(False).to(chosen)
    return Frozen(frozen, metadata, eval_transform_of(metadata, say), chosen)

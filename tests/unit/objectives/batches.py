"""Micro-batches and models for the objectives' tests."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from pretrain.config.schema.objective import Objective, ObjectiveConfig


def settings_of(**settings: Any) -> ObjectiveConfig:
    """The section ``objective`` of a config."""
    return TypeAdapter(Objective).validate_python(settings)


def linear_model(num_classes: int, seed: int = 0) -> Any:
    """The smallest model: flatten and one dense layer; takes drop-path scales as a second argument."""
    torch.manual_seed(seed)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(3 * 4 * 4, num_classes)

        def forward(self, images: Tensor, drop_path: Tensor | None = None) -> Tensor:
            logits = self.head(images.flatten(1))
            return logits if drop_path is None else logits * drop_path.sum()

    return Model()


def images(num_images: int, seed: int = 1) -> Tensor:
    return torch.randn(num_images, 3, 4, 4, generator=torch.Generator().manual_seed(seed))

"""The model and the batches of every trainer: an MLP, and scikit-learn's digits as a pure function of the step."""

from __future__ import annotations

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

GLOBAL_BATCH, WIDTH, LR = 64, 256, 1e-3


def model() -> nn.Sequential:
    """The same weights for every trainer and rank: 85,002 parameters, so that a rank's state exceeds ``FILE_LIMIT``."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))


def optimizer(parameters: object) -> torch.optim.Adam:
    """Adam, so that a lost moment shows in the losses."""
    return torch.optim.Adam(parameters, lr=LR)  # type: ignore[arg-type]


def batch(step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
    """A rank's part of the batch of a step.

    Returns:
        float32 images (64 / world, 64) in 0…1, and int64 labels.
    """
    images, labels = _digits()
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(step))[:GLOBAL_BATCH]
    mine = chosen[rank * GLOBAL_BATCH // world : (rank + 1) * GLOBAL_BATCH // world]
    return images[mine], labels[mine]


@cache
def _digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    return torch.tensor(found.data, dtype=torch.float32) / 16, torch.tensor(found.target)

"""The transform of an ordinary torchvision training script, for the loaders that leave it to their user."""

from __future__ import annotations

import io
from typing import Any

import torch
from PIL import Image
from torchvision import transforms

from benchmarks.loaders.measure import BATCH, MIN_AREA, PREFETCH, SIZE

TRANSFORM = transforms.Compose(
    [
        transforms.RandomResizedCrop(SIZE, scale=(MIN_AREA, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize((0.5,) * 3, (0.5,) * 3),
    ]
)


def decoded(data: bytes) -> torch.Tensor:
    """JPEG bytes → a normalised image."""
    return TRANSFORM(Image.open(io.BytesIO(data)).convert("RGB"))  # type: ignore[return-value]


def loader(dataset: Any, workers: int, **options: Any) -> Any:
    """PyTorch's loader with the benchmark's settings."""
    if workers:
        options |= {"prefetch_factor": PREFETCH, "persistent_workers": True}
    return torch.utils.data.DataLoader(dataset, batch_size=BATCH, num_workers=workers, **options)


def size(batch: Any) -> int:
    """Images of a batch (images, labels)."""
    return len(batch[0])

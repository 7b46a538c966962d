"""Normalisation of images on the device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def to_model_input(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalises pixels for the model: (x / 255 − mean) / std.

    Args:
        images: uint8 (b, 3, H, W).
        mean: three values for pixels in [0, 1].
        std: three values for pixels in [0, 1].

    Returns:
        float32 (b, 3, H, W) on the same device.
    """
    offset, scale = _constants(tuple(mean), tuple(std), images.device)
    return (images.contiguous().to(torch.float32) / 255 - offset) / scale  # images are filled as channels-last


@lru_cache(maxsize=16)
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Cached per device, since a copy from the host in every step would wait for the device."""
    offset = torch.tensor(mean, dtype=torch.float32, device=device).view(-1, 1, 1)
    return offset, torch.tensor(std, dtype=torch.float32, device=device).view(-1, 1, 1)

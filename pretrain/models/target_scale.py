"""The units of a regression: the model gives standardised numbers, people want the data's own.

Legend: B images · D numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class TargetScale:
    """Mean and standard deviation of each of the D numbers, over the training set.

    A number that never changes has the standard deviation 0; it is only shifted.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, mean: Sequence[float], std: Sequence[float]) -> TargetScale:
        """From a card or from the metadata of weights."""
        assert len(mean) == len(std)
        return cls(tuple(mean), tuple(value if value > 0 else 1.0 for value in std))

    def standardised(self, vectors: Tensor) -> Tensor:
        """(x − mean) / std of (B, D), fp32: what a model learns to give."""
        mean, std = _constants(self.mean, self.std, vectors.device)
        return (vectors.float() - mean) / std

    def restored(self, outputs: Tensor) -> Tensor:
        """What a model gives, (B, D), in the units of the data; fp32."""
        mean, std = _constants(self.mean, self.std, outputs.device)
        return outputs.float() * std + mean


@lru_cache(maxsize=16)
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Made once per device: a copy from the host in every step would wait for the device."""
    return torch.tensor(mean, device=device), torch.tensor(std, device=device)

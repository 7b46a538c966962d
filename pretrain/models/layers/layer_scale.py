"""A learned factor per channel on a branch, small at the start.

Legend: B images · T tokens · D width.
Source: CaiT (2103.17239), equation 4; DeiT III starts from 1e-4, CaiT from 1e-4 to 1e-6 by depth.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LayerScale(nn.Module):
    """x · gamma. The initial gamma is set by ``models.init`` from ``model.layer_scale``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Scales the channels of x (B, T, D)."""
        return x * self.gamma


def layer_scale(dim: int, initial: float | None) -> nn.Module:
    """A LayerScale, or nothing where the config has no initial value."""
    return nn.Identity() if initial is None else LayerScale(dim)

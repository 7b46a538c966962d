"""Element dropout, left out altogether where its rate is 0."""

from __future__ import annotations

from torch import nn


def dropout(rate: float) -> nn.Module:
    """Dropout at ``rate`` from torch's own generator (the engine seeds it), or nothing at rate 0."""
    return nn.Dropout(rate) if rate else nn.Identity()

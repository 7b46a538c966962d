"""The two dense layers of a block.

Legend: B images · T tokens · D width · M hidden width.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from pretrain.models.layers.dropout import dropout


def gelu(form: Literal["erf", "tanh"]) -> nn.GELU:
    """GELU in its exact form (erf, timm) or the tanh approximation (flax's default)."""
    return nn.GELU(approximate="none" if form == "erf" else "tanh")


class Mlp(nn.Module):
    """D → M → GELU → D, with dropout after each dense layer."""

    def __init__(self, dim: int, mlp_dim: int, gelu_form: Literal["erf", "tanh"] = "erf", drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, mlp_dim)
        self.act = gelu(gelu_form)
        self.drop1 = dropout(drop)
        self.fc2 = nn.Linear(mlp_dim, dim)
        self.drop2 = dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Maps each token of x (B, T, D) by itself; the same shape comes out."""
        return self.drop2(self.fc2(self.drop1(self.act(self.fc1(x)))))

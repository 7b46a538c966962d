"""The MLP of a block: dense, activation, dense; with GELU or gated by SiLU.

Legend: B images · T tokens · D width · M hidden width.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config.schema.model import ModelConfig
from pretrain.models.variants import ViTShape


def gelu(form: Literal["erf", "tanh"]) -> nn.GELU:
    """GELU in its exact form (erf, timm) or the tanh approximation (flax's default)."""
    return nn.GELU(approximate="none" if form == "erf" else "tanh")


def dropout(rate: float) -> nn.Module:
    """Dropout at ``rate`` from torch's own generator (the engine seeds it), or an identity at rate 0."""
    return nn.Dropout(rate) if rate else nn.Identity()


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
        """Maps each token of x (B, T, D) independently; returns the same shape."""
        return self.drop2(self.fc2(self.drop1(self.act(self.fc1(x)))))


class SwiGlu(nn.Module):
    """D → two times M, SiLU of the first times the second → D, with dropout before and after the last dense layer.

    Source: Shazeer, "GLU Variants Improve Transformer" (2002.05202), equation 6, with biases; the first layer holds
    both matrices, gate first, as timm's SwiGLUPacked.
    """

    def __init__(self, dim: int, mlp_dim: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * mlp_dim)
        self.drop1 = dropout(drop)
        self.fc2 = nn.Linear(mlp_dim, dim)
        self.drop2 = dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Maps each token of x (B, T, D) independently; returns the same shape."""
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.drop2(self.fc2(self.drop1(F.silu(gate) * value)))


def block_mlp(shape: ViTShape, model: ModelConfig) -> nn.Module:
    """The MLP of ``model.mlp``."""
    if model.mlp == "swiglu":
        return SwiGlu(shape.embed_dim, shape.mlp_dim, model.dropout)
    return Mlp(shape.embed_dim, shape.mlp_dim, model.gelu, model.dropout)

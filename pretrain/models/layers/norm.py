"""Norms over the channels, and LayerScale.

Statistics and affine maps are computed in fp32: torch's kernels keep them so for bfloat16 tensors and round once at the
end, so nothing is upcast in memory there; where the types of input and weights differ, both are upcast.

Legend: B images · T tokens · D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config.schema.model import ModelConfig


class LayerNorm(nn.LayerNorm):
    """Layer normalisation: (x − mean) / √(variance + ε), times a weight, plus a bias."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalises the last dimension of ``input`` (…, D)."""
        if input.dtype == self.weight.dtype:
            return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(input.float(), self.normalized_shape, weight, bias, self.eps).to(input.dtype)


class RmsNorm(nn.RMSNorm):
    """Root-mean-square normalisation: x / √(mean of x² + ε), times a weight; no mean is subtracted, no bias added.

    Source: Zhang & Sennrich (1910.07467), equation 4; equal to timm's RmsNorm.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalises the last dimension of ``x`` (…, D)."""
        if x.dtype == self.weight.dtype:
            return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)
        return F.rms_norm(x.float(), self.normalized_shape, self.weight.float(), self.eps).to(x.dtype)


_NORMS: dict[str, type[LayerNorm] | type[RmsNorm]] = {"layer_norm": LayerNorm, "rms_norm": RmsNorm}


def norm_layer(model: ModelConfig, dim: int) -> nn.Module:
    """The norm of ``model.norm`` over ``dim`` channels."""
    return _NORMS[model.norm](dim, eps=model.layer_norm_eps)


class LayerScale(nn.Module):
    """x · gamma: a learned factor per channel on a branch, small at the start (``models.init`` sets it).

    Source: CaiT (2103.17239), equation 4; DeiT III starts from 1e-4, CaiT from 1e-4 to 1e-6 by depth.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Scales the channels of x (B, T, D)."""
        return x * self.gamma


def layer_scale(dim: int, initial: float | None) -> nn.Module:
    """A LayerScale, or an identity if the config has no initial value."""
    return nn.Identity() if initial is None else LayerScale(dim)

"""Layers that compute in fp32 regardless of weight type and autocast: norms after pooling, and heads.

Logits of 21,843 classes or the mean of 256 tokens lose precision that the loss needs if rounded to bfloat16.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which no operation on ``device`` is cast down."""
    if device.type == "meta":  # autocast does not support the meta device, so nothing is cast there
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation whose mean, variance and affine map are computed in fp32.

    torch's kernels keep statistics and the affine map in fp32 for bfloat16 tensors and round once at the end, so
    nothing is upcast in memory there; where the types of input and weights differ, both are upcast.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalises the last dimension of ``input`` (…, D)."""
        if input.dtype == self.weight.dtype:
            return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(input.float(), self.normalized_shape, weight, bias, self.eps).to(input.dtype)


class Fp32Linear(nn.Linear):
    """A dense layer in fp32: input, weight and bias are upcast and an autocast around it has no effect."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps (B, in) of any floating type to fp32 (B, out)."""
        with without_autocast(input.device):
            return F.linear(input.float(), self.weight.float(), self.bias.float())


class Fp32Conv2d(nn.Conv2d):
    """A convolution in fp32 whatever the weights' type or an autocast around it: BiT's head is one of 1×1."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolves (B, C, H, W) of any floating type to fp32."""
        with without_autocast(input.device):
            bias = None if self.bias is None else self.bias.float()
            return self._conv_forward(input.float(), self.weight.float(), bias)

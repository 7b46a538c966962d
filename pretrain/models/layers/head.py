"""From tokens to logits: pooling, and heads in fp32 regardless of weight type and autocast.

Logits of 21,843 classes or the mean of 256 tokens lose precision that the loss needs if rounded to bfloat16.

Legend: B images · T tokens with prefix · N patch tokens · D width · A heads · E head width (D = A·E).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config.schema.model import ModelConfig
from pretrain.models.layers.mlp import Mlp
from pretrain.models.layers.norm import norm_layer
from pretrain.models.variants import ViTShape

Pool = Literal["token", "norm_avg", "avg_norm", "map"]


def pool_tokens(tokens: Tensor, pool: Pool, num_prefix_tokens: int, valid: Tensor | None = None) -> Tensor:
    """The class token, or the mean of the patch tokens (without the prefix), in fp32: (B, T, D) → (B, D).

    Of padded sequences, the mean of the patches that ``valid``, bool (B, N), marks.
    """
    assert pool != "map", "attention pooling is a module of its own"
    if pool == "token":
        return tokens[:, 0].float().contiguous()  # a view would keep all T tokens for the head's backward pass
    patches = tokens[:, num_prefix_tokens:]
    if valid is None:
        return patches.mean(dim=1, dtype=torch.float32)
    kept = patches.float() * valid[..., None]
    return kept.sum(dim=1) / valid.sum(dim=1, keepdim=True)


class AttentionPool(nn.Module):
    """One learned query attends to all patch tokens: y = proj(attention(q(latent), kv(x))), then y + mlp(norm(y)).

    Source: Scaling ViT (2106.04560), section 3.2 (MAP, from Set Transformer, 1810.00825); names are timm's.
    """

    def __init__(self, shape: ViTShape, model: ModelConfig) -> None:
        super().__init__()
        dim, self.num_heads = shape.embed_dim, shape.num_heads
        self.latent = nn.Parameter(torch.zeros(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = norm_layer(model, dim)
        self.mlp = Mlp(dim, shape.mlp_dim, model.gelu)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Pools the tokens of x (B, N, D) into (B, D); ``bias`` is added to the logits of the keys, (B, 1, 1, N)."""
        images, tokens, width = x.shape
        heads = (self.num_heads, width // self.num_heads)
        q = self.q(self.latent.expand(images, -1, -1)).reshape(images, 1, *heads).transpose(1, 2)
        k, v = self.kv(x).reshape(images, tokens, 2, *heads).permute(2, 0, 3, 1, 4).unbind(0)
        mask = None if bias is None else bias.to(q.dtype)
        pooled = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(images, 1, width)
        y = self.proj(pooled)
        return (y + self.mlp(self.norm(y)))[:, 0]


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which no operation on ``device`` is cast down."""
    if device.type == "meta":  # autocast does not support the meta device, so nothing is cast there
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


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

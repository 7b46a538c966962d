"""A Transformer block whose attention and MLP read the same normed tokens.

Legend: B images · T tokens · D width · M hidden width of the MLP · A heads · E head width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config.schema.model import ModelConfig
from pretrain.models.layers.attention import attention_weights, qk_norms
from pretrain.models.layers.drop_path import scale_branch
from pretrain.models.layers.mlp import dropout, gelu
from pretrain.models.layers.norm import layer_scale, norm_layer
from pretrain.models.layers.positions import rotate
from pretrain.models.variants import ViTShape


class ParallelBlock(nn.Module):
    """x + attention(norm(x)) + mlp(norm(x)), with one dense layer for the MLP's first matrix, q, k and v.

    Stochastic depth drops both branches together, with the first factor of the block.

    Source: ViT-22B (2302.05442), section 2; equal to timm's ParallelScalingBlock, whose names its tensors have.
    """

    def __init__(self, shape: ViTShape, model: ModelConfig) -> None:
        super().__init__()
        width, self.num_heads = shape.embed_dim, shape.num_heads
        self.in_split = [shape.mlp_dim, width, width, width]
        self.in_norm = norm_layer(model, width)
        self.in_proj = nn.Linear(width, sum(self.in_split))
        self.q_norm, self.k_norm = qk_norms(shape, model)
        self.mlp_drop = dropout(model.dropout)
        self.mlp_act = gelu(model.gelu)
        self.attn_out_proj = nn.Linear(width, width)
        self.mlp_out_proj = nn.Linear(shape.mlp_dim, width)
        self.ls = layer_scale(width, model.layer_scale)

    def forward(
        self, x: Tensor, scales: Tensor | None = None, bias: Tensor | None = None, rotary: Tensor | None = None
    ) -> Tensor:
        """Transforms x (B, T, D); arguments as ``layers.block.Block``."""
        hidden, q, k, v = self._project(x, rotary)
        mask = None if bias is None else bias.to(q.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(x.shape)
        hidden = self.mlp_drop(self.mlp_act(hidden))
        both = self.ls(self.attn_out_proj(mixed) + self.mlp_out_proj(hidden))
        return x + scale_branch(both, None if scales is None else scales[:, 0])

    def weights(
        self, x: Tensor, scales: Tensor | None = None, bias: Tensor | None = None, rotary: Tensor | None = None
    ) -> Tensor:
        """Attention weights of each token (rows) over all tokens, never materialised by ``forward``: (B, A, T, T)."""
        _, q, k, _ = self._project(x, rotary)
        return attention_weights(q, k, bias)

    def _project(self, x: Tensor, rotary: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The MLP's hidden layer before its activation (B, T, M), and queries, keys and values, each (B, A, T, E)."""
        hidden, *qkv = self.in_proj(self.in_norm(x)).split(self.in_split, dim=-1)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)) for part in qkv)
        q, k, v = self.q_norm(q).transpose(1, 2), self.k_norm(k).transpose(1, 2), v.transpose(1, 2)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        return hidden, q, k, v

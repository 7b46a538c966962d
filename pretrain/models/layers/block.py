"""One pre-norm Transformer block.

Legend: B images · T tokens · D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from pretrain.config.schema import ModelConfig
from pretrain.models.layers.attention import Attention
from pretrain.models.layers.drop_path import scale_branch
from pretrain.models.layers.mlp import Mlp
from pretrain.models.layers.precision import LayerNorm
from pretrain.models.variants import ViTShape


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Source: ViT (2010.11929) equations 2 and 3.
    """

    def __init__(self, shape: ViTShape, model: ModelConfig) -> None:
        super().__init__()
        self.norm1 = LayerNorm(shape.embed_dim, eps=model.layer_norm_eps)
        self.attn = Attention(shape.embed_dim, shape.num_heads, model.dropout)
        self.norm2 = LayerNorm(shape.embed_dim, eps=model.layer_norm_eps)
        self.mlp = Mlp(shape.embed_dim, shape.mlp_dim, model.gelu, model.dropout)

    def forward(self, x: Tensor, scales: Tensor | None = None) -> Tensor:
        """Transforms x (B, T, D); ``scales`` (B, 2) multiplies the attention and the MLP branch of each image."""
        attn_scale, mlp_scale = (None, None) if scales is None else scales.unbind(1)
        x = x + scale_branch(self.attn(self.norm1(x)), attn_scale)
        return x + scale_branch(self.mlp(self.norm2(x)), mlp_scale)

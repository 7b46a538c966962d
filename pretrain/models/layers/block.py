"""One pre-norm Transformer block.

Legend: B images · T tokens · D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from pretrain.config.schema.model import ModelConfig
from pretrain.models.layers.attention import Attention
from pretrain.models.layers.drop_path import scale_branch
from pretrain.models.layers.layer_scale import layer_scale
from pretrain.models.layers.mlp import Mlp
from pretrain.models.layers.pos_embed import add_positions, learned_table
from pretrain.models.layers.precision import LayerNorm
from pretrain.models.layers.relative import relative_term
from pretrain.models.variants import ViTShape, num_position_rows, placement


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    With ``pos_embed_placement: every_layer`` a block adds position tables of its own to x first, or has a relative
    term of its own in its attention.

    Source: ViT (2010.11929) equations 2 and 3; D.4 for the positions.
    """

    def __init__(self, shape: ViTShape, model: ModelConfig) -> None:
        super().__init__()
        own = placement(model) == "every_layer"
        self.pos_embed = None
        if own and model.pos_embed in ("learned_1d", "learned_2d"):
            self.pos_embed = learned_table(model.pos_embed, shape.grid, shape.embed_dim, num_position_rows(model))
        self.norm1 = LayerNorm(shape.embed_dim, eps=model.layer_norm_eps)
        self.attn = Attention(
            shape.embed_dim,
            shape.num_heads,
            model.dropout,
            qk_norm_eps=model.layer_norm_eps if model.qk_norm else None,
            rel_pos=relative_term(model, shape) if own else None,
        )
        self.ls1 = layer_scale(shape.embed_dim, model.layer_scale)
        self.norm2 = LayerNorm(shape.embed_dim, eps=model.layer_norm_eps)
        self.mlp = Mlp(shape.embed_dim, shape.mlp_dim, model.gelu, model.dropout)
        self.ls2 = layer_scale(shape.embed_dim, model.layer_scale)

    def forward(
        self, x: Tensor, scales: Tensor | None = None, bias: Tensor | None = None, rotary: Tensor | None = None
    ) -> Tensor:
        """Transforms x (B, T, D).

        Args:
            x: tokens.
            scales: what multiplies the attention and the MLP branch of each image, (B, 2), or None.
            bias: what all layers add to the attention's logits, (1, A, T, T), or None.
            rotary: what turns queries and keys, (2, T, E), or None.
        """
        attn_scale, mlp_scale = (None, None) if scales is None else scales.unbind(1)
        x = add_positions(x, self.pos_embed)
        x = x + scale_branch(self.ls1(self.attn(self.norm1(x), bias, rotary)), attn_scale)
        return x + scale_branch(self.ls2(self.mlp(self.norm2(x))), mlp_scale)

"""One pre-norm Transformer block: attention, then MLP.

Legend: B images · T tokens · D width · A heads · E head width.
"""

from __future__ import annotations

from torch import Tensor, nn

from pretrain.config.schema.model import ModelConfig
from pretrain.models.layers.attention import Attention
from pretrain.models.layers.drop_path import scale_branch
from pretrain.models.layers.mlp import block_mlp
from pretrain.models.layers.norm import layer_scale, norm_layer
from pretrain.models.layers.positions import add_positions, learned_table, relative_term
from pretrain.models.tensor_shapes import num_position_rows
from pretrain.models.variants import ViTShape, placement


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    With ``pos_embed_placement: every_layer``, each block first adds its own position tables to x, or has its own
    relative term in its attention.

    Source: ViT (2010.11929) equations 2 and 3; D.4 for the positions.
    """

    def __init__(self, shape: ViTShape, model: ModelConfig) -> None:
        super().__init__()
        own = placement(model) == "every_layer"
        self.pos_embed = None
        if own and model.pos_embed in ("learned_1d", "learned_2d"):
            self.pos_embed = learned_table(model.pos_embed, shape.grid, shape.embed_dim, num_position_rows(model))
        self.norm1 = norm_layer(model, shape.embed_dim)
        self.attn = Attention(shape, model, relative_term(model, shape) if own else None)
        self.ls1 = layer_scale(shape.embed_dim, model.layer_scale)
        self.norm2 = norm_layer(model, shape.embed_dim)
        self.mlp = block_mlp(shape, model)
        self.ls2 = layer_scale(shape.embed_dim, model.layer_scale)

    def forward(
        self, x: Tensor, scales: Tensor | None = None, bias: Tensor | None = None, rotary: Tensor | None = None
    ) -> Tensor:
        """Transforms x (B, T, D).

        Args:
            x: tokens.
            scales: factors of the attention and the MLP branch of each image, (B, 2), or None.
            bias: added to the attention's logits in all layers (see ``Attention.forward``), or None.
            rotary: cosines and sines that turn queries and keys, (2, …, T, E), or None.
        """
        attn_scale, mlp_scale = (None, None) if scales is None else scales.unbind(1)
        x = add_positions(x, self.pos_embed)
        x = x + scale_branch(self.ls1(self.attn(self.norm1(x), bias, rotary)), attn_scale)
        return x + scale_branch(self.ls2(self.mlp(self.norm2(x))), mlp_scale)

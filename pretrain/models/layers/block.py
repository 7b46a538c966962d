"""One pre-norm Transformer block and its parts: attention, MLP, LayerScale, dropout and stochastic depth.

Legend: B images · T tokens · D width · A heads · E head width (D = A·E) · M hidden width of the MLP.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pretrain import seeds
from pretrain.config.schema.model import ModelConfig
from pretrain.models.layers.embed import add_positions, learned_table, rotate
from pretrain.models.layers.precision import LayerNorm
from pretrain.models.layers.relative import relative_term
from pretrain.models.variants import ViTShape, num_position_rows, placement


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
            scales: factors of the attention and the MLP branch of each image, (B, 2), or None.
            bias: added to the attention's logits in all layers, (1, A, T, T), or None.
            rotary: cosines and sines that turn queries and keys, (2, T, E), or None.
        """
        attn_scale, mlp_scale = (None, None) if scales is None else scales.unbind(1)
        x = add_positions(x, self.pos_embed)
        x = x + scale_branch(self.ls1(self.attn(self.norm1(x), bias, rotary)), attn_scale)
        return x + scale_branch(self.ls2(self.mlp(self.norm2(x))), mlp_scale)


class Attention(nn.Module):
    """Softmax(q kᵀ / √E + bias) v over A heads, with one fused projection for q, k and v.

    The softmax is inside torch's fused kernel, which accumulates in fp32 for every input type.

    Args:
        dim: D.
        num_heads: A.
        proj_drop: rate of the dropout after the output projection.
        qk_norm_eps: epsilon of the LayerNorm over E of queries and keys; None: they are not normalised.
            Source: ViT-22B (2302.05442), section 2.
        rel_pos: computes the bias from the queries (see ``layers.relative``).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        proj_drop: float = 0.0,
        *,
        qk_norm_eps: float | None = None,
        rel_pos: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        head_dim = dim // num_heads
        self.q_norm = nn.Identity() if qk_norm_eps is None else LayerNorm(head_dim, eps=qk_norm_eps)
        self.k_norm = nn.Identity() if qk_norm_eps is None else LayerNorm(head_dim, eps=qk_norm_eps)
        self.rel_pos = rel_pos
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = dropout(proj_drop)

    def forward(self, x: Tensor, bias: Tensor | None = None, rotary: Tensor | None = None) -> Tensor:
        """Mixes the tokens of x (B, T, D); returns the same shape.

        Args:
            x: tokens.
            bias: added to the logits in all layers, (1, A, T, T), or None.
            rotary: cosines and sines (2, T, E) that turn queries and keys, or None.
        """
        q, k, v, bias = self._project(x, bias, rotary)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
        return self.proj_drop(self.proj(mixed.transpose(1, 2).reshape(x.shape)))

    def weights(self, x: Tensor, bias: Tensor | None = None, rotary: Tensor | None = None) -> Tensor:
        """Attention weights of each token (rows) over all tokens, never materialised by ``forward``: (B, A, T, T)."""
        q, k, _, bias = self._project(x, bias, rotary)
        logits = q.float() @ k.float().transpose(-2, -1) / q.shape[-1] ** 0.5
        return (logits if bias is None else logits + bias.float()).softmax(dim=-1)

    def _project(
        self, x: Tensor, bias: Tensor | None, rotary: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys and values, each (B, A, T, E), and the term added to the logits."""
        images, tokens, width = x.shape
        qkv = self.qkv(x).reshape(images, tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.unbind(2)  # each (B, T, A, E), in whose order attention's output needs no copy
        q, k, v = self.q_norm(q).transpose(1, 2), self.k_norm(k).transpose(1, 2), v.transpose(1, 2)  # (B, A, T, E)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        if self.rel_pos is not None:
            bias = self.rel_pos(q)
        return q, k, v, bias


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
        """Maps each token of x (B, T, D) independently; returns the same shape."""
        return self.drop2(self.fc2(self.drop1(self.act(self.fc1(x)))))


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


def dropout(rate: float) -> nn.Module:
    """Dropout at ``rate`` from torch's own generator (the engine seeds it), or an identity at rate 0."""
    return nn.Dropout(rate) if rate else nn.Identity()


# ── stochastic depth ──
# The masks are arguments, computed from the image's slot and not from a generator's state, so that they are the same
# in the recomputation of a checkpointed block, under compilation, after a resume and on another number of devices.
# Source: Huang et al., "Deep Networks with Stochastic Depth" (1603.09382), section 3: rates linear in the depth;
# DeiT III (facebookresearch/deit, models_v2.py): one rate for all blocks.
# Differs: survivors are divided by their probability in training, as in timm, instead of multiplied at test time.

NUM_BRANCHES = 2
DropPathShape = Literal["linear", "constant"]


def drop_path_rates(rate: float, depth: int, shape: DropPathShape = "linear") -> NDArray[np.float64]:
    """Rate of each block, (depth,): linear from 0 in the first to ``rate`` in the last, or ``rate`` in all."""
    return np.full(depth, rate) if shape == "constant" else np.linspace(0.0, rate, depth)


def drop_path_scales(
    slots: NDArray[np.int64], rate: float, depth: int, *, seed: int, shape: DropPathShape = "linear"
) -> Tensor | None:
    """The factor of each branch of each image: 0 if it is dropped, 1 / (1 − rate) if it is kept.

    Args:
        slots: (B,) numbers of the draws in the global stream; each has its own masks.
        rate: of the last block (linear) or of each (constant), in [0, 1); 0 gives None, since nothing is dropped.
        depth: number of blocks.
        seed: the experiment's seed.
        shape: how the rate grows with the depth.

    Returns:
        fp32 (B, depth, 2) on the CPU, or None.
    """
    if not rate:
        return None
    rates = drop_path_rates(rate, depth, shape)[None, :, None]
    branch = np.arange(depth * NUM_BRANCHES).reshape(1, depth, NUM_BRANCHES)
    uniform = seeds.uniform(seed, "drop_path", np.asarray(slots)[:, None, None], branch)
    return torch.from_numpy(np.where(uniform >= rates, 1.0 / (1.0 - rates), 0.0).astype(np.float32))


def scale_branch(branch: Tensor, scales: Tensor | None) -> Tensor:
    """Multiplies each image of ``branch`` (B, T, D) by its scale (B,), in the branch's type; None leaves it."""
    return branch if scales is None else branch * scales.to(branch.dtype)[:, None, None]

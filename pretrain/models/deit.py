"""The distilled Vision Transformer of DeiT: a second learned token with a head of its own, which imitates a teacher.

State-dict names are timm's (``dist_token``, ``head_dist``). The prediction is the mean of both heads' logits, as
published; training asks for the logits of each head.

Legend: B images · C H W · D width · T tokens with prefix · K classes.
Source: Touvron et al., "Training data-efficient image transformers & distillation through attention" (2012.12877),
section 4; the order of the tokens (class, distillation, patches) and the mean of logits from its code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pretrain.config.schema.model import ModelConfig
from pretrain.models.layers.precision import Fp32Linear, without_autocast
from pretrain.models.vit import VisionTransformer


class DistilledVisionTransformer(VisionTransformer):
    """A Vision Transformer with ``model.distilled``. ``has_two_heads`` tells objectives so."""

    has_two_heads = True

    def __init__(self, model: ModelConfig, num_classes: int) -> None:
        super().__init__(model, num_classes)
        self.dist_token = nn.Parameter(torch.zeros(1, 1, self.shape.embed_dim))
        self.head_dist = Fp32Linear(self.shape.embed_dim, num_classes)

    def prefix_tokens(self) -> list[Tensor]:
        """The class token, the distillation token, and what else stands before the patches."""
        first, *rest = super().prefix_tokens()
        return [first, self.dist_token, *rest]

    def forward(self, images: Tensor, drop_path: Tensor | None = None, *, separate_heads: bool = False) -> Tensor:
        """fp32 logits (B, K), the mean of both heads; with ``separate_heads`` (B, 2, K): class head, distillation head.

        Args:
            images: normalised floats (B, C, H, W).
            drop_path: see ``VisionTransformer.forward``.
            separate_heads: what a distillation objective asks for.
        """
        logits = self._both_heads(self.forward_features(images, drop_path))
        return logits if separate_heads else logits.mean(1)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Mean logits (B, K) of tokens (B, T, D), or with ``pre_logits`` the mean of both heads' inputs (B, D)."""
        if pre_logits:
            return tokens[:, :2].mean(dim=1, dtype=torch.float32)
        return self._both_heads(tokens).mean(1)

    def _both_heads(self, tokens: Tensor) -> Tensor:
        with without_autocast(tokens.device):
            pair = tokens[:, :2].float()  # small: lets go of all other tokens
            return torch.stack([self.head(pair[:, 0]), self.head_dist(pair[:, 1])], dim=1)

"""A Vision Transformer that can be shown corrupted patch embeddings and then predicts something for each of them.

Legend: B images · C H W · N patch tokens · M corrupted patches of an image · T tokens with prefix · D width ·
K outputs per patch.
Source: ViT (2010.11929), appendix B.1.2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pretrain.config.schema.model import ModelConfig
from pretrain.models.layers.precision import without_autocast
from pretrain.models.vit import VisionTransformer

MASK_TOKEN = -1


class Corruption(NamedTuple):
    """Which patch embeddings are replaced, and by what; both int64 (B, M).

    Attributes:
        positions: the corrupted patches, row-major in the grid, each at most once per image.
        sources: what stands there instead: the patch of that number, or the [mask] embedding for −1. A patch that is
            its own source stays as it is (and is still predicted).
    """

    positions: Tensor
    sources: Tensor


class MaskedPatchTransformer(VisionTransformer):
    """A Vision Transformer with ``model.mask_token``."""

    def __init__(self, model: ModelConfig, num_classes: int) -> None:
        super().__init__(model, num_classes)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.shape.embed_dim))

    def forward(self, images: Tensor, drop_path: Tensor | None = None, corruption: Corruption | None = None) -> Tensor:
        """fp32 logits of the corrupted patches (B, M, K); without ``corruption`` those of the image (B, K).

        Args:
            images: normalised floats (B, C, H, W).
            drop_path: see ``VisionTransformer.forward``.
            corruption: see ``Corruption``.
        """
        if corruption is None:
            return super().forward(images, drop_path)
        patches = corrupt(self.embed_patches(images), corruption, self.mask_token)
        tokens = self.forward_tokens(self.add_prefix_and_positions(patches), drop_path)
        chosen = _take(tokens[:, self.shape.num_prefix_tokens :], corruption.positions)
        with without_autocast(tokens.device):
            return self.head(self.pre_logits(self.fc_norm(chosen.float())))


def corrupt(patches: Tensor, corruption: Corruption, mask_token: Tensor) -> Tensor:
    """Patch embeddings (B, N, D) with those at ``positions`` replaced by their ``sources``."""
    originals = _take(patches, corruption.sources.clamp(min=0))
    is_mask = (corruption.sources == MASK_TOKEN)[..., None]
    replacements = torch.where(is_mask, mask_token.to(patches.dtype), originals)
    index = corruption.positions[..., None].expand_as(replacements)
    return patches.scatter(1, index, replacements)


def _take(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens (B, N, D) at ``index`` (B, M): (B, M, D)."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[2]))

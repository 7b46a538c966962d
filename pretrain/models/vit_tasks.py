"""Vision Transformers for tasks other than classification: distillation, segmentation, masked patches.

Legend: B images · C H W · N patch tokens of a grid (h, w) · M corrupted patches of an image · T tokens with prefix ·
D width · K classes, or outputs per patch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config.schema.model import ModelConfig
from pretrain.models.layers.head import Fp32Linear, without_autocast
from pretrain.models.vit import VisionTransformer

MASK_TOKEN = -1


class DistilledVisionTransformer(VisionTransformer):
    """``model.distilled``: a second learned token with its own head, which imitates a teacher (DeiT).

    State-dict names are timm's (``dist_token``, ``head_dist``). The prediction is the mean of both heads' logits, as
    published; training asks for the logits of each head, and ``has_two_heads`` tells objectives that it can.

    Source: Touvron et al., "Training data-efficient image transformers & distillation through attention" (2012.12877),
    section 4; the order of the tokens (class, distillation, patches) and the mean of logits from its code.
    """

    has_two_heads = True

    def __init__(self, model: ModelConfig, num_classes: int) -> None:
        super().__init__(model, num_classes)
        self.dist_token = nn.Parameter(torch.zeros(1, 1, self.shape.embed_dim))
        self.head_dist = Fp32Linear(self.shape.embed_dim, num_classes)

    def prefix_tokens(self) -> list[Tensor]:
        """The class token, the distillation token, and any others before the patches."""
        first, *rest = super().prefix_tokens()
        return [first, self.dist_token, *rest]

    def forward(  # type: ignore[override]
        self,
        images: Tensor,
        drop_path: Tensor | None = None,
        *,
        kept: Tensor | None = None,
        patch: int | None = None,
        separate_heads: bool = False,
    ) -> Tensor:
        """fp32 logits (B, K), the mean of both heads; with ``separate_heads`` (B, 2, K): class head, distillation head.

        Args:
            images: normalised floats (B, C, H, W).
            drop_path: see ``VisionTransformer.forward``.
            kept: likewise.
            patch: likewise.
            separate_heads: for distillation objectives.
        """
        logits = self._both_heads(self.forward_features(images, drop_path, kept, patch=patch))
        return logits if separate_heads else logits.mean(1)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False, valid: Tensor | None = None) -> Tensor:
        """Mean logits (B, K) of tokens (B, T, D), or with ``pre_logits`` the mean of both heads' inputs (B, D)."""
        if pre_logits:
            return tokens[:, :2].mean(dim=1, dtype=torch.float32)
        return self._both_heads(tokens).mean(1)

    def _both_heads(self, tokens: Tensor) -> Tensor:
        with without_autocast(tokens.device):
            pair = tokens[:, :2].float()  # a small copy, so that all other tokens can be freed
            return torch.stack([self.head(pair[:, 0]), self.head_dist(pair[:, 1])], dim=1)


class PatchTransformer(VisionTransformer):
    """``model.head: patches``: outputs of every patch, by the head on the patch tokens after the final norm.

    Class, register and other tokens take part in attention only.
    """

    def forward(self, images: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """fp32 outputs (B, K, h, w) of normalised images (B, C, H, W)."""
        return self.patch_logits(self.forward_features(images, drop_path))

    def patch_logits(self, tokens: Tensor) -> Tensor:
        """fp32 outputs of every patch in its place, (B, K, h, w), from tokens (B, T, D)."""
        return self.patch_outputs(tokens, self.head).unflatten(2, self.shape.grid)

    def patch_outputs(self, tokens: Tensor, head: nn.Module) -> Tensor:
        """fp32 outputs (B, K, N) of a head on the patches of tokens (B, T, D)."""
        with without_autocast(tokens.device):
            patches = self.fc_norm(tokens[:, self.shape.num_prefix_tokens :].float())
            return head(self.pre_logits(patches)).transpose(1, 2)


class PooledAndPatchTransformer(PatchTransformer):
    """``model.head: pooled_and_patches``: outputs of the image by ``head``, and of every patch by ``head_patches``."""

    def __init__(self, model: ModelConfig, num_classes: int) -> None:
        super().__init__(model, num_classes)
        self.head_patches = Fp32Linear(self.shape.embed_dim, num_classes)

    def forward(self, images: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """fp32 outputs (B, K, 1 + N) of normalised images (B, C, H, W): of the image, then of its patches."""
        tokens = self.forward_features(images, drop_path)
        patches = self.patch_outputs(tokens, self.head_patches)
        return torch.cat([self.forward_head(tokens)[:, :, None], patches], dim=2)


class DenseTransformer(PatchTransformer):
    """``model.head: dense``: logits of every pixel: those of the patches, interpolated to the image.

    Source: DINOv2 (2304.07193), section 7.4, "linear"; the same head is BEiT's (2106.08254) without its deconvolutions.
    Differs: DINOv2 puts a batch norm before the layer; the tokens are normed here already.
    """

    def forward(self, images: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """fp32 logits (B, K, H, W) of normalised images (B, C, H, W)."""
        return self.upsampled(self.patch_logits(self.forward_features(images, drop_path)))

    def upsampled(self, logits: Tensor) -> Tensor:
        """Logits of the grid (B, K, h, w) at every pixel, (B, K, H, W): bilinear between the patches' centres."""
        with without_autocast(logits.device):
            return F.interpolate(logits, self.shape.img_size, mode="bilinear", align_corners=False)


class Corruption(NamedTuple):
    """The patch embeddings to replace and their replacements; both int64 (B, M).

    Attributes:
        positions: the corrupted patches, row-major in the grid, each at most once per image.
        sources: the patch whose embedding is shown instead, or ``MASK_TOKEN`` for the [mask] embedding. A patch that is
            its own source is unchanged (and is still predicted).
    """

    positions: Tensor
    sources: Tensor


class MaskedPatchTransformer(VisionTransformer):
    """``model.mask_token``: can be shown corrupted patch embeddings and then predicts something for each of them.

    Source: ViT (2010.11929), appendix B.1.2.
    """

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

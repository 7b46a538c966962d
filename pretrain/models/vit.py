"""The plain Vision Transformer of "An Image is Worth 16x16 Words" (2010.11929), as single-device code.

State-dict names are timm's; the tanh layer of the pretraining head is ``pre_logits.fc``, timm's name for it while it
had one. Nothing here waits for the device: no value is read on the host and no branch looks at a tensor's content.

Legend: B images · C H W · N patch tokens · T tokens with prefix · D width · R width of the pre-logits · K classes.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pretrain.config.schema import ModelConfig
from pretrain.models.layers.block import Block
from pretrain.models.layers.drop_path import NUM_BRANCHES
from pretrain.models.layers.dropout import dropout
from pretrain.models.layers.patch_embed import PatchEmbed
from pretrain.models.layers.pool import pool_tokens
from pretrain.models.layers.precision import Fp32Linear, LayerNorm, without_autocast
from pretrain.models.variants import representation_size, resolve


class VisionTransformer(nn.Module):
    """Patches → tokens → blocks → pooled vector → logits.

    ``config``, ``shape`` and ``num_classes`` say what was built. Weights are torch's defaults until
    ``pretrain.models.init.init_weights`` or a weights file sets them.

    Args:
        model: the architecture.
        num_classes: K, the width of the head.

    Raises:
        ConfigError: the architecture is impossible (see ``variants.resolve``).
    """

    def __init__(self, model: ModelConfig, num_classes: int) -> None:
        super().__init__()
        shape = resolve(model)
        self.config, self.shape, self.num_classes = model, shape, num_classes
        self.grad_checkpointing = False
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.embed_dim)) if model.class_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, shape.num_tokens, shape.embed_dim))
        self.patch_embed = PatchEmbed(shape.patch, shape.embed_dim)
        self.pos_drop = dropout(model.dropout)
        self.blocks = nn.ModuleList(Block(shape, model) for _ in range(shape.depth))
        norm = LayerNorm(shape.embed_dim, eps=model.layer_norm_eps)
        pool_first = model.pool == "avg_norm"
        self.norm = nn.Identity() if pool_first else norm
        self.fc_norm = norm if pool_first else nn.Identity()
        hidden = representation_size(model)
        self.pre_logits = nn.Identity() if hidden is None else _tanh_layer(shape.embed_dim, hidden)
        self.head = Fp32Linear(hidden or shape.embed_dim, num_classes)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keeps only each block's input for the backward pass, which computes the rest again."""
        self.grad_checkpointing = enable

    def forward(self, images: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """Logits of normalised images.

        Args:
            images: floats (B, C, H, W) of the config's size, already normalised.
            drop_path: None, or what multiplies the branches of each block, (B, depth, 2) of 0 or 1 / keep.

        Returns:
            fp32 (B, K), also with bfloat16 weights and under autocast.
        """
        return self.forward_head(self.forward_features(images, drop_path))

    def forward_features(self, images: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """Tokens after the last block and, unless ``pool: avg_norm`` norms after pooling, the norm: (B, T, D)."""
        return self.forward_tokens(self._embed(images), drop_path)

    def forward_tokens(self, x: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """All blocks and the final norm on embedded tokens (B, T, D)."""
        for index in range(self.shape.depth):
            x = self._run_block(index, x, drop_path)
        return self.norm(x)

    def forward_intermediates(self, images: Tensor) -> list[Tensor]:
        """Tokens after each block, prefix included, before any final norm: ``depth`` tensors (B, T, D)."""
        x, outputs = self._embed(images), []
        for index in range(self.shape.depth):
            x = self._run_block(index, x, None)
            outputs.append(x)
        return outputs

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools tokens (B, T, D) and maps them to logits (B, K), or with ``pre_logits`` to the head's input (B, R).

        Everything from the pooling on is fp32.
        """
        with without_autocast(tokens.device):
            pooled = pool_tokens(tokens, self.config.pool, self.shape.num_prefix_tokens)
            features = self.pre_logits(self.fc_norm(pooled))
            return features if pre_logits else self.head(features)

    def prefix_tokens(self) -> list[Tensor]:
        """The learned tokens (1, 1, D) that stand before the patches, in the order of the position embedding."""
        return [] if self.cls_token is None else [self.cls_token]

    def embed_patches(self, images: Tensor) -> Tensor:
        """Patch embeddings without positions: (B, N, D)."""
        assert images.shape[2:] == self.shape.img_size, f"images of {self.shape.img_size} expected, not {images.shape}"
        return self.patch_embed(images.to(self.patch_embed.proj.weight.dtype))

    def add_prefix_and_positions(self, patches: Tensor) -> Tensor:
        """What the first block sees, from patch embeddings (B, N, D): (B, T, D)."""
        prefix = [token.expand(patches.shape[0], -1, -1) for token in self.prefix_tokens()]
        return self.pos_drop(torch.cat([*prefix, patches], dim=1) + self.pos_embed)

    def _embed(self, images: Tensor) -> Tensor:
        return self.add_prefix_and_positions(self.embed_patches(images))

    def _run_block(self, index: int, x: Tensor, drop_path: Tensor | None) -> Tensor:
        block = self.blocks[index]
        scales = None
        if drop_path is not None:
            assert drop_path.shape == (x.shape[0], self.shape.depth, NUM_BRANCHES), f"drop_path is {drop_path.shape}"
            scales = drop_path[:, index]
        if not (self.grad_checkpointing and torch.is_grad_enabled()):
            return block(x, scales)
        uses_rng = self.training and self.config.dropout > 0  # saving the generator's state costs a copy per block
        return checkpoint(block, x, scales, use_reentrant=False, preserve_rng_state=uses_rng)


def _tanh_layer(embed_dim: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict([("fc", Fp32Linear(embed_dim, hidden)), ("act", nn.Tanh())]))


def build_vit(model: ModelConfig, num_classes: int) -> VisionTransformer:
    """A Vision Transformer on torch's default device (``with torch.device("meta")`` costs no memory).

    Raises:
        ConfigError: the architecture is impossible.
    """
    return VisionTransformer(model, num_classes)

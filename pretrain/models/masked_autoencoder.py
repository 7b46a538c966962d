"""``model.decoder``: the masked autoencoder, whose encoder sees only the patches that are kept.

Source: He et al., "Masked Autoencoders Are Scalable Vision Learners" (2111.06377), and its code; equal to transformers'
ViTMAE for the same weights and masks.

Legend: B images · C H W · N patches · K of them kept · F prefix tokens · D width · P numbers of a patch's pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pretrain.config.schema.model import ModelConfig
from pretrain.models.layers.head import Fp32Linear
from pretrain.models.layers.positions import add_positions
from pretrain.models.tensor_shapes import num_pixels
from pretrain.models.variants import decoder_model, resolve
from pretrain.models.vit import VisionTransformer


class Decoder(VisionTransformer):
    """Predicts every patch from the encoder's tokens of the kept ones; others start as a learned token.

    Args:
        model: that of the autoencoder.
    """

    def __init__(self, model: ModelConfig) -> None:
        super().__init__(decoder_model(model), 1)
        width = self.shape.embed_dim
        self.cls_token = self.reg_token = None  # the encoder's come with its tokens
        self.patch_embed, self.head = nn.Identity(), nn.Identity()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.embed = nn.Linear(resolve(model).embed_dim, width)
        self.pred = Fp32Linear(width, num_pixels(self.shape))

    def forward(self, tokens: Tensor, kept: Tensor) -> Tensor:  # type: ignore[override]
        """fp32 predictions (B, N, P) of the pixels of every patch.

        Args:
            tokens: of the encoder (B, F + K, D), after its norm.
            kept: the patches that they are of, int64 (B, K).
        """
        prefix = self.shape.num_prefix_tokens
        x = self.embed(tokens).to(self.mask_token.dtype)  # under autocast the stream stays fp32
        visible = x[:, prefix:]
        patches = self.mask_token.expand(x.shape[0], self.shape.num_patches, -1)
        patches = patches.scatter(1, kept[:, :, None].expand_as(visible), visible)
        x = torch.cat([x[:, :prefix], patches], dim=1)
        decoded = self.forward_tokens(add_positions(x, self._added_positions(x, self.shape)))
        return self.pred(decoded[:, prefix:])


class MaskedAutoencoder(VisionTransformer):
    """An encoder with a decoder in place of a head; without a choice of patches it gives the encoder's features."""

    def __init__(self, model: ModelConfig, num_classes: int) -> None:
        super().__init__(model, 1)
        self.num_classes = num_classes
        self.head = nn.Identity()  # its input are the features, as with any head
        self.decoder = Decoder(model)

    def forward(self, images: Tensor, drop_path: Tensor | None = None, *, kept: Tensor | None = None) -> Tensor:
        """fp32 predictions of the pixels of every patch (B, N, P), or without ``kept`` features (B, D).

        Args:
            images: normalised floats (B, C, H, W).
            drop_path: see ``VisionTransformer.forward``.
            kept: the patches that the encoder sees, int64 (B, K).
        """
        tokens = self.forward_features(images, drop_path, kept)
        return self.forward_head(tokens) if kept is None else self.decoder(tokens, kept)

    def set_grad_checkpointing(self, policy: bool | str = True) -> None:
        """The policy of the blocks of both; with ``every_k`` each counts its own."""
        super().set_grad_checkpointing(policy)
        self.decoder.set_grad_checkpointing(policy)

    def units(self) -> list[str]:
        """The blocks of both."""
        return [*super().units(), *(f"decoder.{unit}" for unit in self.decoder.units())]

    def compile_blocks(self, backend: str = "inductor") -> None:
        """The blocks of both, in a graph each."""
        self.decoder.compiled = True
        super().compile_blocks(backend)

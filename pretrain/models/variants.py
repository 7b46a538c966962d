"""Named sizes of Vision Transformers, and the geometry of a config. Does not import torch.

Legend: P patch side · D width · M width of the MLP · A heads · N patch tokens · T tokens with prefix.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import NamedTuple

from pretrain.config.schema.model import POS_EMBED_PLACEMENTS, ModelConfig
from pretrain.errors import ConfigError


class Size(NamedTuple):
    """A row of ``VARIANTS``: D, number of blocks, M, A."""

    embed_dim: int
    depth: int
    mlp_dim: int
    num_heads: int


# Source: Ti, S: DeiT (2012.12877) Table 1. B, L, H: ViT (2010.11929) Table 1. M, g, G: Scaling ViT (2106.04560) Table 2
# and big_vision's models/vit.py, which also has `mu`. `nano` is ours: the smallest that learns small real images.
# So400m: Getting ViT in Shape (2305.13035), section 5. So150m, So150m2: timm's vit_so150m_… and vit_so150m2_…, which
# differ from the paper's SoViT-150m.
VARIANTS: dict[str, Size] = {
    "mu":   Size(  32,  1,  128,  2),
    "nano": Size(  96,  6,  384,  3),
    "Ti":   Size( 192, 12,  768,  3),
    "S":    Size( 384, 12, 1536,  6),
    "M":    Size( 512, 12, 2048,  8),
    "B":    Size( 768, 12, 3072, 12),
    "L":    Size(1024, 24, 4096, 16),
    "H":    Size(1280, 32, 5120, 16),
    "g":    Size(1408, 40, 6144, 16),
    "G":    Size(1664, 48, 8192, 16),
    "So150m":  Size( 896, 18, 2304, 14),
    "So150m2": Size( 832, 21, 2176, 13),
    "So400m":  Size(1152, 27, 4304, 16),
}  # fmt: skip

NUM_CHANNELS = 3

# The ResNet-50 of a hybrid, R50+SIZE/STRIDE: residual blocks per stage for each total stride. Stride 16 drops stage 4.
# Source: google-research/vision_transformer, configs/models.py; timm's vit_base_r50_s16 and vit_large_r50_s32.
# Differs: ViT's text says that the dropped stage's blocks go to stage 3; the released R50+ViT-B/16 has 3, 4, 9 blocks.
STEM_BLOCKS: dict[int, tuple[int, ...]] = {16: (3, 4, 9), 32: (3, 4, 6, 3)}
STEM_WIDTH = 64  # of the 7 × 7 root; stage s is 4 · 64 · 2^s wide, with bottlenecks of a quarter


@dataclass(frozen=True)
class ViTShape:
    """The numbers that fix the geometry of one Vision Transformer; pairs are (height, width)."""

    patch: tuple[int, int]
    grid: tuple[int, int]
    embed_dim: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_prefix_tokens: int
    img_size: tuple[int, int]
    num_kept: int  # patch tokens of a training image that enter the blocks
    stem_blocks: tuple[int, ...] = ()  # residual blocks per stage of a hybrid's ResNet; none where patches are cut

    @property
    def num_patches(self) -> int:
        """N, the patch tokens of one image."""
        return self.grid[0] * self.grid[1]

    @property
    def num_tokens(self) -> int:
        """T, the patch tokens and the prefix."""
        return self.num_patches + self.num_prefix_tokens

    @property
    def num_trained_tokens(self) -> int:
        """Tokens of a training image in the blocks: T without the patches that ``model.patch_drop`` leaves out."""
        return self.num_kept + self.num_prefix_tokens


def resolve(model: ModelConfig) -> ViTShape:
    """The geometry of ``model``: its variant's dimensions with overrides, and its patch grid.

    Raises:
        ConfigError: unknown variant, a patch that does not divide the image, heads that do not divide the width.
    """
    size, patch, hybrid = _split_variant(model.variant)
    embed_dim, depth, mlp_dim, num_heads = VARIANTS[size]
    img_size = model.size
    grid = (img_size[0] // patch, img_size[1] // patch)
    shape = ViTShape(
        patch=(patch, patch),
        grid=grid,
        embed_dim=model.embed_dim or embed_dim,
        depth=model.depth or depth,
        mlp_dim=model.mlp_dim or mlp_dim,
        num_heads=model.num_heads or num_heads,
        num_prefix_tokens=int(model.class_token) + int(model.distilled) + model.num_registers,
        img_size=img_size,
        num_kept=max(1, int(grid[0] * grid[1] * (1 - model.patch_drop))),
        stem_blocks=STEM_BLOCKS[patch] if hybrid else (),
    )
    _check(shape, model)
    return shape


def _split_variant(variant: str) -> tuple[str, int, bool]:
    match = re.fullmatch(r"(R50\+)?([A-Za-z][A-Za-z0-9]*)/([1-9][0-9]*)", variant)
    if match is None:
        raise ConfigError(
            f"model.variant: {variant!r} is not SIZE/PATCH, such as B/16 or H/14, nor R50+SIZE/STRIDE; "
            f"sizes are {', '.join(VARIANTS)}"
        )
    hybrid, size, patch = match[1] is not None, match[2], int(match[3])
    if size not in VARIANTS:
        near = [name for name in VARIANTS if name.lower() == size.lower()]
        near = near or difflib.get_close_matches(size, VARIANTS, n=1, cutoff=0.4)
        hint = f"; did you mean {match[1] or ''}{near[0]}/{patch}?" if near else ""
        raise ConfigError(f"model.variant: unknown size {size!r} in {variant!r}; known are {', '.join(VARIANTS)}{hint}")
    if hybrid and patch not in STEM_BLOCKS:
        strides = " or ".join(f"R50+{size}/{stride}" for stride in STEM_BLOCKS)
        raise ConfigError(f"model.variant: {variant!r}: a ResNet-50 has the total stride 16 or 32; use {strides}")
    return size, patch, hybrid


def _check(shape: ViTShape, model: ModelConfig) -> None:
    patch, variant = shape.patch[0], model.variant
    for name, pixels in zip(("height", "width"), shape.img_size, strict=True):
        if pixels % patch:
            below, above = pixels // patch * patch, (pixels // patch + 1) * patch
            allowed = f"{below} or {above}" if below else f"{above}"
            raise ConfigError(
                f"model.img_size: the {name} {pixels} is not a multiple of the patch {patch} of {variant}; "
                f"use {allowed}"
            )
    if shape.embed_dim % shape.num_heads:
        raise ConfigError(
            f"model.num_heads: {shape.num_heads} heads do not divide the width {shape.embed_dim} of {variant}; "
            "set model.num_heads or model.embed_dim so that they do"
        )
    head_width = shape.embed_dim // shape.num_heads
    for kind, what, channels, divisor in (
        ("learned_2d", "width", shape.embed_dim, 2),
        ("sincos2d_big_vision", "width", shape.embed_dim, 4),
        ("sincos2d_timm", "width", shape.embed_dim, 4),
        ("sincos2d_mae", "width", shape.embed_dim, 4),
    ):
        if model.pos_embed == kind and channels % divisor:
            raise ConfigError(
                f"model.pos_embed: {kind} needs a {what} that {divisor} divides, not {channels}; set model.embed_dim, "
                "or choose another kind"
            )
    if model.rope is not None and head_width % 4:
        raise ConfigError(
            f"model.rope: {model.rope} needs a head width that 4 divides, not {head_width}; set model.embed_dim or "
            "model.num_heads, or remove it"
        )


def placement(model: ModelConfig) -> str | None:
    """Where the position embedding acts: as configured, else the first that its kind allows; None if there is none."""
    allowed = POS_EMBED_PLACEMENTS[model.pos_embed]
    return model.pos_embed_placement or (allowed[0] if allowed else None)


_ROPE_TEMPERATURES = {"axial": 10_000.0, "mixed": 10.0}  # EVA-02's (2303.11331) and RoPE-ViT's (2403.13298) code


def rope_temperature(model: ModelConfig) -> float:
    """The base of the rotary frequencies: the configured one, or that of the kind."""
    assert model.rope is not None
    return model.rope_temperature or _ROPE_TEMPERATURES[model.rope]


def decoder_model(model: ModelConfig) -> ModelConfig:
    """The decoder of ``model`` as a Transformer of its own, whose patches are embedded already.

    It has all patches at fixed positions, the encoder's prefix tokens, and blocks of the encoder's kind without
    dropout, drop-path and LayerScale.
    """
    size = model.decoder
    assert size is not None, "the model has a decoder"
    kept = ("name", "variant", "img_size", "class_token", "num_registers", "block", "norm", "mlp", "qkv_bias")
    kept += ("qk_norm", "gated_attention", "gelu", "layer_norm_eps")
    return ModelConfig.model_construct(
        **{key: getattr(model, key) for key in kept},
        embed_dim=size.embed_dim,
        depth=size.depth,
        num_heads=size.num_heads,
        mlp_dim=4 * size.embed_dim,
        pos_embed="sincos2d_mae",
        pool="norm_avg",
    )


def representation_size(model: ModelConfig) -> int | None:
    """Width of the tanh layer before the head, or None if there is none."""
    return resolve(model).embed_dim if model.representation_size == "width" else model.representation_size

"""Named sizes of Vision Transformers, and the tensor shapes of a config. Does not import torch.

Legend: P patch side · D width · M width of the MLP · A heads · N patch tokens · T tokens with prefix · K classes.
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
    stem_blocks: tuple[int, ...] = ()  # residual blocks per stage of a hybrid's ResNet; none where patches are cut

    @property
    def num_patches(self) -> int:
        """N, the patch tokens of one image."""
        return self.grid[0] * self.grid[1]

    @property
    def num_tokens(self) -> int:
        """T, the patch tokens and the prefix."""
        return self.num_patches + self.num_prefix_tokens


def resolve(model: ModelConfig) -> ViTShape:
    """The geometry of ``model``: its variant's dimensions with overrides, and its patch grid.

    Raises:
        ConfigError: unknown variant, a patch that does not divide the image, heads that do not divide the width.
    """
    size, patch, hybrid = _split_variant(model.variant)
    embed_dim, depth, mlp_dim, num_heads = VARIANTS[size]
    img_size = model.size
    shape = ViTShape(
        patch=(patch, patch),
        grid=(img_size[0] // patch, img_size[1] // patch),
        embed_dim=model.embed_dim or embed_dim,
        depth=model.depth or depth,
        mlp_dim=model.mlp_dim or mlp_dim,
        num_heads=model.num_heads or num_heads,
        num_prefix_tokens=int(model.class_token) + int(model.distilled) + model.num_registers,
        img_size=img_size,
        stem_blocks=STEM_BLOCKS[patch] if hybrid else (),
    )
    _check(shape, model)
    return shape


def _split_variant(variant: str) -> tuple[str, int, bool]:
    match = re.fullmatch(r"(R50\+)?([A-Za-z]+)/([1-9][0-9]*)", variant)
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
        ("rope_2d", "head width", head_width, 4),
    ):
        if model.pos_embed == kind and channels % divisor:
            raise ConfigError(
                f"model.pos_embed: {kind} needs a {what} that {divisor} divides, not {channels}; set model.embed_dim "
                "or model.num_heads, or choose another kind"
            )


def placement(model: ModelConfig) -> str | None:
    """Where the position embedding acts: as configured, else the first that its kind allows; None if there is none."""
    allowed = POS_EMBED_PLACEMENTS[model.pos_embed]
    return model.pos_embed_placement or (allowed[0] if allowed else None)


def representation_size(model: ModelConfig) -> int | None:
    """Width of the tanh layer before the head, or None if there is none."""
    return resolve(model).embed_dim if model.representation_size == "width" else model.representation_size


def parameter_shapes(model: ModelConfig, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Name → shape of every parameter, in the order and with the names of the state dict (timm's).

    The tanh layer of the pretraining head is ``pre_logits.fc``, as timm named it while it had one.
    """
    shape, width, where = resolve(model), resolve(model).embed_dim, placement(model)
    tensors: dict[str, tuple[int, ...]] = {}
    if model.class_token:
        tensors["cls_token"] = (1, 1, width)
    if model.distilled:
        tensors["dist_token"] = (1, 1, width)
    if model.num_registers:
        tensors["reg_token"] = (1, model.num_registers, width)
    if model.mask_token:
        tensors["mask_token"] = (1, 1, width)
    if where in ("stem", "every_layer_shared"):
        tensors |= _prefixed("pos_embed", _table_shapes(model, shape))
    tensors |= _prefixed("patch_embed.", _patch_embed_shapes(shape))
    if where == "every_layer_shared":
        tensors |= _prefixed("shared_rel_pos.", _relative_shapes(model, shape))
    block = _block_shapes(model, shape)
    for index in range(shape.depth):
        tensors |= _prefixed(f"blocks.{index}.", block)
    norm = "fc_norm" if model.pool == "avg_norm" else "norm"
    tensors |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    if model.pool == "map":
        tensors |= _prefixed("attn_pool.", _attn_pool_shapes(width, shape.mlp_dim))
    hidden = representation_size(model)
    if hidden is not None:
        tensors |= {"pre_logits.fc.weight": (hidden, width), "pre_logits.fc.bias": (hidden,)}
    heads = ("head", "head_dist") if model.distilled else ("head",)
    for head in heads:
        tensors |= {f"{head}.weight": (num_classes, hidden or width), f"{head}.bias": (num_classes,)}
    return tensors


Shapes = dict[str, tuple[int, ...]]


def _prefixed(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: dims for name, dims in shapes.items()}


def _dense(name: str, out: int, into: int) -> Shapes:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def num_position_rows(model: ModelConfig) -> int:
    """Rows of a learned 1-D position embedding: one per token, or per patch only."""
    shape = resolve(model)
    return shape.num_tokens if model.pos_embed_prefix else shape.num_patches


def _table_shapes(model: ModelConfig, shape: ViTShape) -> Shapes:
    """One learned table that is added to tokens; keys are the suffixes after ``pos_embed``."""
    if model.pos_embed == "learned_1d":
        return {"": (1, num_position_rows(model), shape.embed_dim)}
    if model.pos_embed == "learned_2d":
        half = shape.embed_dim // 2
        return {".row": (1, shape.grid[0], half), ".column": (1, shape.grid[1], half)}
    return {}


def num_relative_rows(shape: ViTShape) -> int:
    """Rows of a relative bias: one per 2-D offset of two patches, and three for pairs with prefix tokens."""
    return (2 * shape.grid[0] - 1) * (2 * shape.grid[1] - 1) + 3 * (shape.num_prefix_tokens > 0)


def _relative_shapes(model: ModelConfig, shape: ViTShape) -> Shapes:
    if model.pos_embed == "relative_bias":
        return {"relative_position_bias_table": (num_relative_rows(shape), shape.num_heads)}
    if model.pos_embed == "relative_1d":
        return {"relative_keys": (2 * shape.num_tokens - 1, shape.embed_dim // shape.num_heads)}
    return {}


def _patch_embed_shapes(shape: ViTShape) -> Shapes:
    if not shape.stem_blocks:
        return {"proj.weight": (shape.embed_dim, NUM_CHANNELS, *shape.patch), "proj.bias": (shape.embed_dim,)}
    tensors = _resnet_shapes(shape.stem_blocks)
    channels = 4 * STEM_WIDTH * 2 ** (len(shape.stem_blocks) - 1)
    return _prefixed("backbone.", tensors) | {
        "proj.weight": (shape.embed_dim, channels, 1, 1),
        "proj.bias": (shape.embed_dim,),
    }


def _resnet_shapes(stem_blocks: tuple[int, ...]) -> Shapes:
    tensors: Shapes = {"stem.conv.weight": (STEM_WIDTH, NUM_CHANNELS, 7, 7), **_norm("stem.norm", STEM_WIDTH)}
    into = STEM_WIDTH
    for stage, num_blocks in enumerate(stem_blocks):
        middle = STEM_WIDTH * 2**stage
        for index in range(num_blocks):
            block: Shapes = {}
            if index == 0:
                block |= {"downsample.conv.weight": (4 * middle, into, 1, 1), **_norm("downsample.norm", 4 * middle)}
            block |= {"conv1.weight": (middle, into, 1, 1), **_norm("norm1", middle)}
            block |= {"conv2.weight": (middle, middle, 3, 3), **_norm("norm2", middle)}
            block |= {"conv3.weight": (4 * middle, middle, 1, 1), **_norm("norm3", 4 * middle)}
            tensors |= _prefixed(f"stages.{stage}.blocks.{index}.", block)
            into = 4 * middle
    return tensors


def _block_shapes(model: ModelConfig, shape: ViTShape) -> Shapes:
    width, head_width = shape.embed_dim, shape.embed_dim // shape.num_heads
    own = placement(model) == "every_layer"
    scale = [{f"ls{index}.gamma": (width,)} if model.layer_scale is not None else {} for index in (1, 2)]
    head_norms = _norm("attn.q_norm", head_width) | _norm("attn.k_norm", head_width)
    return {
        **(_prefixed("pos_embed", _table_shapes(model, shape)) if own else {}),
        **_norm("norm1", width),
        **_dense("attn.qkv", 3 * width, width),
        **(head_norms if model.qk_norm else {}),
        **(_prefixed("attn.rel_pos.", _relative_shapes(model, shape)) if own else {}),
        **_dense("attn.proj", width, width),
        **scale[0],
        **_norm("norm2", width),
        **_dense("mlp.fc1", shape.mlp_dim, width),
        **_dense("mlp.fc2", width, shape.mlp_dim),
        **scale[1],
    }


def _attn_pool_shapes(width: int, mlp_dim: int) -> Shapes:
    return {
        "latent": (1, 1, width),
        **_dense("q", width, width),
        **_dense("kv", 2 * width, width),
        **_dense("proj", width, width),
        **_norm("norm", width),
        **_dense("mlp.fc1", mlp_dim, width),
        **_dense("mlp.fc2", width, mlp_dim),
    }


def is_head_tensor(name: str) -> bool:
    """Whether a tensor belongs to the classification head, which a new task replaces (tanh layer included)."""
    return name.startswith(("head.", "head_dist.", "pre_logits."))


_STEM = re.compile(r"(cls_token|dist_token|reg_token|mask_token|pos_embed|patch_embed)")
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def layer_id(name: str, depth: int) -> int:
    """0 for tokens, positions and patches; i + 1 for block i, ``depth`` for the norm after it; else the head's.

    Args:
        name: the parameter's.
        depth: number of blocks.

    Source: timm's ``VisionTransformer.group_matcher`` (BEiT's rule, but the final norm goes with the last block).
    """
    if _STEM.match(name):
        return 0
    block = _BLOCK.match(name)
    if block is not None:
        return int(block[1]) + 1
    return depth if name.startswith("norm.") else depth + 1

"""The sizes of Vision Transformers by name, and the shape of every tensor that follows from a config. No torch.

Legend: P patch side · D width · M width of the MLP · A heads · N patch tokens · T tokens with prefix · K classes.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from pretrain.config.schema import ModelConfig
from pretrain.errors import ConfigError

# Source: Ti, S: DeiT (2012.12877) Table 1. B, L, H: ViT (2010.11929) Table 1. M, g, G: Scaling ViT (2106.04560) Table 2
# and big_vision's models/vit.py, which also has `mu`. `nano` is ours: the smallest that learns small real images.
VARIANTS: dict[str, tuple[int, int, int, int]] = {
    # size: (embed_dim, depth, mlp_dim, num_heads)
    "mu":   (  32,  1,  128,  2),
    "nano": (  96,  6,  384,  3),
    "Ti":   ( 192, 12,  768,  3),
    "S":    ( 384, 12, 1536,  6),
    "M":    ( 512, 12, 2048,  8),
    "B":    ( 768, 12, 3072, 12),
    "L":    (1024, 24, 4096, 16),
    "H":    (1280, 32, 5120, 16),
    "g":    (1408, 40, 6144, 16),
    "G":    (1664, 48, 8192, 16),
}  # fmt: skip

NUM_CHANNELS = 3


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

    @property
    def num_patches(self) -> int:
        """N, the patch tokens of one image."""
        return self.grid[0] * self.grid[1]

    @property
    def num_tokens(self) -> int:
        """T, the patch tokens and the prefix."""
        return self.num_patches + self.num_prefix_tokens


def resolve(model: ModelConfig) -> ViTShape:
    """The geometry that ``model`` asks for: its variant's row with the overrides, cut into patches.

    Raises:
        ConfigError: unknown variant, a patch that does not divide the image, heads that do not divide the width.
    """
    size, patch = _split_variant(model.variant)
    embed_dim, depth, mlp_dim, num_heads = VARIANTS[size]
    img_size = (model.img_size, model.img_size) if isinstance(model.img_size, int) else model.img_size
    shape = ViTShape(
        patch=(patch, patch),
        grid=(img_size[0] // patch, img_size[1] // patch),
        embed_dim=model.embed_dim or embed_dim,
        depth=model.depth or depth,
        mlp_dim=model.mlp_dim or mlp_dim,
        num_heads=model.num_heads or num_heads,
        num_prefix_tokens=int(model.class_token) + int(model.distilled),
        img_size=img_size,
    )
    _check(shape, model.variant)
    return shape


def _split_variant(variant: str) -> tuple[str, int]:
    match = re.fullmatch(r"([A-Za-z]+)/([1-9][0-9]*)", variant)
    if match is None:
        raise ConfigError(
            f"model.variant: {variant!r} is not SIZE/PATCH, such as B/16 or H/14; sizes are {', '.join(VARIANTS)}"
        )
    size = match[1]
    if size not in VARIANTS:
        near = [name for name in VARIANTS if name.lower() == size.lower()]
        near = near or difflib.get_close_matches(size, VARIANTS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}/{match[2]}?" if near else ""
        raise ConfigError(f"model.variant: unknown size {size!r} in {variant!r}; known are {', '.join(VARIANTS)}{hint}")
    return size, int(match[2])


def _check(shape: ViTShape, variant: str) -> None:
    patch = shape.patch[0]
    for name, pixels in zip(("height", "width"), shape.img_size, strict=True):
        if pixels % patch:
            below, above = pixels // patch * patch, (pixels // patch + 1) * patch
            allowed = f"{below} or {above}" if below else f"{above}"
            raise ConfigError(
                f"model.img_size: the {name} {pixels} is no multiple of the patch {patch} of {variant}; use {allowed}"
            )
    if shape.embed_dim % shape.num_heads:
        raise ConfigError(
            f"model.num_heads: {shape.num_heads} heads do not divide the width {shape.embed_dim} of {variant}; "
            "set model.num_heads or model.embed_dim so that they do"
        )


def representation_size(model: ModelConfig) -> int | None:
    """Width of the tanh layer before the head, or None where there is none."""
    return resolve(model).embed_dim if model.representation_size == "width" else model.representation_size


def parameter_shapes(model: ModelConfig, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Name → shape of every parameter, in the order and with the names of the state dict (timm's).

    The tanh layer of the pretraining head is ``pre_logits.fc``, as timm named it while it had one.
    """
    shape, width = resolve(model), resolve(model).embed_dim
    tensors: dict[str, tuple[int, ...]] = {}
    if model.class_token:
        tensors["cls_token"] = (1, 1, width)
    if model.distilled:
        tensors["dist_token"] = (1, 1, width)
    if model.mask_token:
        tensors["mask_token"] = (1, 1, width)
    tensors["pos_embed"] = (1, shape.num_tokens, width)
    tensors["patch_embed.proj.weight"] = (width, NUM_CHANNELS, *shape.patch)
    tensors["patch_embed.proj.bias"] = (width,)
    for index in range(shape.depth):
        block = {f"blocks.{index}.{name}": dims for name, dims in _block_shapes(width, shape.mlp_dim).items()}
        tensors.update(block)
    norm = "fc_norm" if model.pool == "avg_norm" else "norm"
    tensors |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    hidden = representation_size(model)
    if hidden is not None:
        tensors |= {"pre_logits.fc.weight": (hidden, width), "pre_logits.fc.bias": (hidden,)}
    heads = ("head", "head_dist") if model.distilled else ("head",)
    for head in heads:
        tensors |= {f"{head}.weight": (num_classes, hidden or width), f"{head}.bias": (num_classes,)}
    return tensors


def _block_shapes(width: int, mlp_dim: int) -> dict[str, tuple[int, ...]]:
    return {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
        "mlp.fc1.weight": (mlp_dim, width),
        "mlp.fc1.bias": (mlp_dim,),
        "mlp.fc2.weight": (width, mlp_dim),
        "mlp.fc2.bias": (width,),
    }


def is_head_tensor(name: str) -> bool:
    """Whether a tensor belongs to the classification head, which a new task replaces (tanh layer included)."""
    return name.startswith(("head.", "head_dist.", "pre_logits."))

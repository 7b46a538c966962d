"""The patch tokens of a backbone of transformers, in their places.

Legend: B images · C H W · D width · N patch tokens of a grid (h, w).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pretrain.errors import ConfigError
from pretrain.models.families.hf_backbone import HfBackbone
from pretrain.models.families.hf_classes import VISION

_MOST_PREFIX_TOKENS = 32
_LATE_NORM = "post_layernorm"  # of CLIP, which its own tower applies to the class token only


def patch_features(net: nn.Module, images: Tensor) -> Tensor:
    """The last feature map (B, D, h, w) of normalised images (B, C, H, W), after the last norm where there is one.

    Raises:
        ConfigError: its tokens are not a class token, registers and one grid.
    """
    assert isinstance(net, HfBackbone)
    tower: Any = _tower(net.body)
    tokens = tower(pixel_values=images.to(next(net.parameters()).dtype)).last_hidden_state
    if tokens.ndim == 4:
        return tokens
    if hasattr(tower, "pre_layrnorm") and hasattr(tower, _LATE_NORM):
        tokens = tower.post_layernorm(tokens)
    height, width = _grid(net, tokens.shape[1])
    patches = tokens[:, tokens.shape[1] - height * width :]
    return patches.transpose(1, 2).unflatten(2, (height, width))


def _tower(body: Any) -> nn.Module:
    """The network without its classifier: the module itself, or the part that holds the blocks."""
    for name in ("vision_model", body.base_model_prefix):
        inner = getattr(body, name, None) if name else None
        if isinstance(inner, nn.Module) and not hasattr(body, "embeddings"):
            return inner
    return body


def _grid(net: HfBackbone, num_tokens: int) -> tuple[int, int]:
    """(h, w) of the patches, with a few tokens before them, or of a deeper stage, whose patches are 2 × 2 of those."""
    config: Any = net.body.config
    patch = getattr(getattr(config, VISION, None) or config, "patch_size", None)
    if isinstance(patch, int):
        height, width = (side // patch for side in net.config.size)
        if 0 <= num_tokens - height * width <= _MOST_PREFIX_TOKENS:
            return height, width
        while height * width > num_tokens:
            height, width = height // 2, width // 2
        if height * width == num_tokens:
            return height, width
    raise ConfigError(
        f"model.name: {net.config.name} gives {num_tokens} tokens for {net.config.size} pixels, which do not form a "
        "grid of patches; choose another network"
    )

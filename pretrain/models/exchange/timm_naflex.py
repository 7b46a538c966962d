"""timm's ``NaFlexVit`` as our Vision Transformer: the same blocks behind an embedding of flat patches.

On images at their own aspect ratio it computes what ours does with ``crop: native``, on images of the size of its
position table what any ViT does. The other direction is timm's own: it loads a plain ViT into a NaFlexVit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pretrain.config.schema.model import ModelConfig
from pretrain.errors import CheckpointError
from pretrain.models.exchange.translation import named_config
from pretrain.models.variants import NUM_CHANNELS, Size

_EMBEDS = "embeds."
_DEFAULT_GRID = (16, 16)  # of the images, where there is no table


def naflex_config(twin: Any, where: Path, options: Mapping[str, Any]) -> ModelConfig:
    """The config of ours that computes what one of timm's NaFlexVit models computes.

    Args:
        twin: of timm, on any device.
        where: the file that describes it, for errors.
        options: what the pooling, the norms and the blocks of the model decide.

    Raises:
        CheckpointError: none of our models computes the same; the message names the difference.
    """
    embeds = twin.embeds
    _require_ours(twin, where)
    patch, table = embeds.patch_size[0], embeds.pos_embed
    rows, columns = _DEFAULT_GRID if table is None else table.shape[1:3]
    return named_config(
        where,
        Size(twin.embed_dim, len(twin.blocks), twin.blocks[0].mlp.fc2.in_features, twin.blocks[0].attn.num_heads),
        patch=patch,
        img_size=(rows * patch, columns * patch),
        class_token=twin.has_class_token,
        num_registers=twin.num_reg_tokens,
        pos_embed="none" if table is None else "learned_1d",
        **({} if table is None else {"pos_embed_prefix": False}),
        **options,
    )


def _require_ours(twin: Any, where: Path) -> None:
    """Settings whose effect the tensors would not show."""
    embeds = twin.embeds
    differences = {
        f"patches of {embeds.patch_size} pixels": embeds.patch_size[0] != embeds.patch_size[1],
        f"positions of kind {embeds.pos_embed_type}": embeds.pos_embed_type not in ("learned", "none"),
        f"positions interpolated as {embeds.pos_embed_interp_mode}": embeds.pos_embed_interp_mode != "bicubic",
        "positions interpolated without antialias": not embeds.pos_embed_antialias,
        "positions that keep their aspect ratio": embeds.pos_embed_ar_preserving,
        "positions by grid_sample or with aligned corners": embeds.pos_embed_use_grid_sample
        or embeds.pos_embed_align_corners,
        "rotary positions": twin.rope is not None,
        "a norm of the patches or of their embedding": embeds.norm_input is not None
        or not isinstance(embeds.norm, nn.Identity),
        "a norm before the blocks": not isinstance(twin.norm_pre, nn.Identity),
        "flat patches with the channels first": not embeds.channels_last,
    }
    for difference, found in differences.items():
        if found:
            raise CheckpointError(f"{where}: the NaFlexVit has {difference}, which our vit has not")


def plain_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a NaFlexVit under the names, and in the shapes, of a plain Vision Transformer."""
    found = dict(state)
    for name in [name for name in found if name.startswith(_EMBEDS)]:
        leaf, tensor = name.removeprefix(_EMBEDS), found.pop(name)
        if leaf == "pos_embed":
            tensor = tensor.flatten(1, 2)
        if leaf == "proj.weight" and tensor.ndim == 2:  # (D, P · P · C), the channels last
            side = round((tensor.shape[1] / NUM_CHANNELS) ** 0.5)
            tensor = tensor.unflatten(1, (side, side, NUM_CHANNELS)).permute(0, 3, 1, 2).contiguous()
        found[f"patch_embed.{leaf}" if leaf.startswith("proj.") else leaf] = tensor
    return found

"""Masked autoencoders of other programs: MAE's own checkpoints with decoder, and the decoder of transformers' ViTMAE.

Their position tables are stored, and must be the fixed ones: those are computed here.

Legend: N patch tokens · D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.config.schema.model import DecoderConfig
from pretrain.config.schema.transforms import EvalTransformConfig
from pretrain.errors import CheckpointError
from pretrain.models.exchange.huggingface_names import our_name
from pretrain.models.exchange.translation import named_config, refuse_leftovers, require, square_grid
from pretrain.models.interop import expected_shapes
from pretrain.models.layers.positions import sincos_2d
from pretrain.models.metadata import WeightsMetadata
from pretrain.models.tensor_shapes import DECODER
from pretrain.models.variants import VARIANTS, Size

PROGRAM = "MAE"
MARK = "decoder_pred.weight"  # a tensor that tells MAE's own checkpoints apart
FIXED = "sincos2d_mae"
TOLERANCE = 1e-5  # between tables in double precision and ours
_THEIRS = "decoder_"
TABLES = ("pos_embed", f"{DECODER}pos_embed")  # of encoder and decoder
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of its code, as is the transform below
_TRANSFORM = EvalTransformConfig(resize="short_side", crop_fraction=0.875, resize_filter="bicubic_aa")


def read_mae(state: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], WeightsMetadata]:
    """The weights of MAE's own checkpoint under our names, and their metadata.

    The file does not record the number of heads: that of the encoder follows from its named size, and the decoder must
    be the published one.

    Args:
        state: the tensors, among them ``MARK``.
        path: of the file, for errors.

    Raises:
        CheckpointError: another size than the published ones, positions that are not fixed, or another architecture.
    """
    kernel, table = (require(state, name, path, PROGRAM) for name in ("patch_embed.proj.weight", TABLES[0]))
    size, published = _published_size(state, path), DecoderConfig()
    grid, patch = square_grid(table.shape[1] - 1, path, TABLES[0]), kernel.shape[2]
    model = named_config(
        path,
        size,
        patch=patch,
        img_size=(grid[0] * patch, grid[1] * patch),
        pos_embed=FIXED,
        decoder=published,
    )
    ours = {_our_own_name(name): tensor for name, tensor in state.items()}
    for name in TABLES:
        if not is_fixed(require(ours, name, path, PROGRAM)):
            raise CheckpointError(
                f"{path}: tensor {name} is not the fixed sine-cosine table of MAE, whose positions are not trained; "
                "name the weights of the encoder alone"
            )
    tensors = without_tables(ours)
    about = WeightsMetadata.of(model, 0, _MEAN, _STD, eval_transform=_TRANSFORM, objective="mae")
    refuse_leftovers(tensors.keys() - expected_shapes(about).keys(), path, PROGRAM)
    return {name: require(tensors, name, path, PROGRAM) for name in expected_shapes(about)}, about


def _published_size(state: Mapping[str, Tensor], path: Path) -> Size:
    """The size of the encoder, if it has a name and the decoder is the published one."""
    size, decoder_size = _size(state, "blocks.", path), _size(state, f"{_THEIRS}blocks.", path)
    named = [row for row in VARIANTS.values() if (row.embed_dim, row.depth, row.mlp_dim) == size]
    published = DecoderConfig()
    wanted = (published.embed_dim, published.depth, 4 * published.embed_dim)
    if len(named) != 1 or decoder_size != wanted:
        raise CheckpointError(
            f"{path}: an encoder of (width, depth, MLP) {size} with a decoder of {decoder_size}; the file does not "
            f"record numbers of heads, so a named size with the published decoder {wanted} is read"
        )
    return Size(*named[0])


def _size(state: Mapping[str, Tensor], blocks: str, path: Path) -> tuple[int, int, int]:
    """Width, number of blocks, and width of the MLP."""
    depth = len({name.removeprefix(blocks).partition(".")[0] for name in state if name.startswith(blocks)})
    mlp_dim, width = require(state, f"{blocks}0.mlp.fc1.weight", path, PROGRAM).shape
    return width, depth, mlp_dim


def _our_own_name(name: str) -> str:
    if name == "mask_token":
        return f"{DECODER}mask_token"
    return DECODER + name.removeprefix(_THEIRS) if name.startswith(_THEIRS) else name


def decoder_name(theirs: str) -> str | None:
    """Our name of a tensor of transformers' ViTMAE decoder (``decoder.…``); None: it has no place."""
    own = theirs.removeprefix("decoder.").removeprefix(_THEIRS)
    if own.startswith(("layers.", "encoder.")):  # of other versions
        inner = our_name(own)
        return None if inner is None else DECODER + inner
    return DECODER + own


def decoder_of(settings: Mapping[str, Any]) -> DecoderConfig:
    """The decoder that config.json of a ViTMAE describes, if ``unlike_ours`` has nothing against it."""
    return DecoderConfig(
        embed_dim=settings["decoder_hidden_size"],
        depth=settings["decoder_num_hidden_layers"],
        num_heads=settings["decoder_num_attention_heads"],
    )


def unlike_ours(theirs: Mapping[str, Tensor], settings: Mapping[str, Any]) -> str | None:
    """The first reason why transformers' ViTMAE is not a masked autoencoder of ours; None: it is one."""
    width, hidden = settings["decoder_hidden_size"], settings["decoder_intermediate_size"]
    if hidden != 4 * width:
        return f"decoder_intermediate_size: {hidden} is not 4 × decoder_hidden_size: {width}"
    for name in ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"):
        if name not in theirs:
            return f"tensor {name} is missing"
        if not is_fixed(theirs[name]):
            return f"tensor {name} is not MAE's fixed table"
    return None


def is_fixed(table: Tensor) -> bool:
    """Whether a position table (1, 1 + N, D) is zeros for the class token and MAE's sines for a square of patches."""
    side = math.isqrt(table.shape[-2] - 1)
    fixed = F.pad(sincos_2d("mae", (side, side), table.shape[-1], torch.device("cpu")), (0, 0, 1, 0))
    tolerance = max(TOLERANCE, torch.finfo(table.dtype).eps)
    return table.shape == fixed.shape and torch.allclose(table.float(), fixed, rtol=0, atol=tolerance)


def without_tables(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the position tables of encoder and decoder, which are computed here."""
    return {name: tensor for name, tensor in state.items() if name not in TABLES}

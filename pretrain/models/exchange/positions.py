"""Position embeddings that are added to the tokens, as the one table of numbers that every program has a place for."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pretrain.models.interop import expected_shapes
from pretrain.models.metadata import WeightsMetadata
from pretrain.models.variants import placement
from pretrain.models.vit import build_vit

ADDED = ("sincos2d_big_vision", "sincos2d_timm", "learned_2d")


@torch.no_grad()
def with_learned_table(
    state: Mapping[str, Tensor], metadata: WeightsMetadata
) -> tuple[dict[str, Tensor], WeightsMetadata]:
    """Weights with ``pos_embed: learned_1d``, whose table has the numbers that were added; others as they are.

    Fixed sines and cosines, and tables by axis, are known to few programs; their sum with the patches at one resolution
    is a table (1, P + N, D), in which the P prefix tokens have rows of zeros.
    """
    model = metadata.model
    if model.pos_embed not in ADDED or placement(model) != "stem":
        return dict(state), metadata
    network = build_vit(model, max(1, metadata.num_classes)).eval()
    network.load_state_dict(dict(state), strict=False)  # a head may be missing
    shape = metadata.shape
    num_patches = shape.grid[0] * shape.grid[1]
    tokens = network.add_prefix_and_positions(torch.zeros(1, num_patches, shape.embed_dim))
    changed = model.model_copy(update={"pos_embed": "learned_1d", "pos_embed_placement": None})
    metadata = metadata.model_copy(update={"model": changed})
    shapes = expected_shapes(metadata)
    table = torch.zeros(shapes["pos_embed"])
    table[:, -num_patches:] = tokens[:, -num_patches:]
    return {name: table if name == "pos_embed" else state[name] for name in shapes}, metadata

"""From weights and images to the numbers behind the pictures.

Legend: B images · N patch tokens of a grid (h, w) · F prefix tokens · T = F + N · A heads · L blocks · D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pretrain.models.layers.attention import Attention
from pretrain.models.layers.parallel import ParallelBlock
from pretrain.models.layers.positions import Learned2d
from pretrain.models.vit import VisionTransformer

NUM_COMPONENTS = 28  # as the paper shows


def patch_filters(model: VisionTransformer) -> Tensor | None:
    """Principal components of the patch embedding's filters as RGB patches: (28, P, P, 3), each scaled to [0, 1].

    None for a hybrid, whose patches are not pixels.

    Source: ViT (2010.11929), Figure 7, left.
    """
    weight = model.patch_embed.proj.weight.detach().float()  # type: ignore[union-attr]
    if model.shape.stem_blocks:
        return None
    flat = weight.flatten(1)
    components = torch.linalg.svd(flat - flat.mean(dim=0), full_matrices=False).Vh[:NUM_COMPONENTS]
    low, high = components.amin(dim=1, keepdim=True), components.amax(dim=1, keepdim=True)
    scaled = (components - low) / (high - low).clamp_min(1e-12)
    return scaled.unflatten(1, weight.shape[1:]).permute(0, 2, 3, 1)


def position_table(model: VisionTransformer) -> Tensor | None:
    """The positions added to the patches at the stem (or before every block, from one table): (N, D), or None."""
    if model.pos_embed_placement not in ("stem", "every_layer_shared"):
        return None
    num_patches, width = model.shape.num_patches, model.shape.embed_dim
    positions = model._added_positions(torch.zeros(1, num_patches, width), model.shape)
    if positions is None:
        return None
    if isinstance(positions, Learned2d):
        return positions(torch.zeros(1, num_patches, width))[0].detach()
    assert isinstance(positions, Tensor)
    return positions[0, -num_patches:].detach().float()


def position_similarity(model: VisionTransformer) -> Tensor | None:
    """Cosine similarity of each patch's position embedding with each other's: (h, w, h, w), or None without a table.

    Source: ViT (2010.11929), Figure 7, centre.
    """
    table = position_table(model)
    if table is None:
        return None
    unit = torch.nn.functional.normalize(table, dim=-1)
    return (unit @ unit.T).view(*model.shape.grid, *model.shape.grid)


@torch.no_grad()
def attention_weights(model: VisionTransformer, images: Tensor) -> Iterator[Tensor]:
    """Each block's attention weights on images (B, C, H, W): L tensors (B, A, T, T), one after the other."""
    seen: list[Tensor] = []

    def look(module: Attention | ParallelBlock, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(module.weights(*args, **kwargs))

    attentions = [module for module in model.blocks.modules() if isinstance(module, Attention | ParallelBlock)]
    hooks = [module.register_forward_pre_hook(look, with_kwargs=True) for module in attentions]
    try:
        for _ in model._run_blocks(model._embed(images), None, model.shape):
            yield seen.pop()
    finally:
        for hook in hooks:
            hook.remove()


def patch_distances(model: VisionTransformer) -> Tensor:
    """Pixels between the centres of two patches: (N, N)."""
    (height, width), (rows, columns) = model.shape.img_size, model.shape.grid
    y = torch.arange(rows).repeat_interleave(columns) * (height / rows)
    x = torch.arange(columns).repeat(rows) * (width / columns)
    return torch.hypot(y[:, None] - y, x[:, None] - x)


def attention_distance(weights: Tensor, distances: Tensor, num_prefix: int) -> Tensor:
    """Mean distance in pixels between a patch and the patches that it attends to, per head: (A,).

    Attention between patches counts, scaled so that it sums to one for each query; the mean is over queries and images.

    Source: ViT (2010.11929), Figure 7, right, and D.7. Differs: the paper does not say how it treats the class
    token; here prefix tokens are left out.

    Args:
        weights: (B, A, T, T).
        distances: (N, N).
        num_prefix: F.
    """
    patches = weights[:, :, num_prefix:, num_prefix:]
    shares = patches / patches.sum(dim=-1, keepdim=True).clamp_min(1e-12)
    return (shares * distances).sum(dim=-1).mean(dim=(0, 2))


def rollout(layers: list[Tensor], num_prefix: int, *, from_class_token: bool) -> Tensor:
    """How much of each patch reaches the output through all blocks: (B, N).

    The mean over heads, half of it the residual path, multiplied over the blocks; read in the class token's row, or,
    where there is none, as the mean over the patches' rows.

    Source: Abnar & Zuidema (2005.00928), equations 1 and 2; ViT (2010.11929), Figure 6 and D.7.
    """
    total: Tensor | None = None
    for weights in layers:
        mean = weights.mean(dim=1)
        step = 0.5 * mean + 0.5 * torch.eye(mean.shape[-1])
        step = step / step.sum(dim=-1, keepdim=True)
        total = step if total is None else step @ total
    assert total is not None, "a model has at least one block"
    rows = total[:, 0] if from_class_token else total[:, num_prefix:].mean(dim=1)
    return rows[:, num_prefix:]


def head_maps(weights: Tensor, num_prefix: int, *, from_class_token: bool) -> Tensor:
    """How much each head of one block reads from each patch for the output: (B, A, N)."""
    rows = weights[:, :, 0] if from_class_token else weights[:, :, num_prefix:].mean(dim=2)
    return rows[:, :, num_prefix:]


def measure_attention(
    model: VisionTransformer, batches: Callable[[], Iterator[Tensor]], num_maps: int
) -> dict[str, Tensor]:
    """Everything about attention on batches of normalised images.

    Returns:
        ``attention_distance`` (L, A) in pixels over all images; for the first ``num_maps`` images
        ``attention_rollout`` (num_maps, h, w) and the last block's ``attention_heads`` (num_maps, A, h, w).
    """
    prefix, grid = model.shape.num_prefix_tokens, model.shape.grid
    has_class = model.config.class_token
    distances, sums, count = patch_distances(model), [], 0
    maps: dict[str, list[Tensor]] = {"attention_rollout": [], "attention_heads": []}
    for images in batches():
        layers, per_layer = [], []
        for weights in attention_weights(model, images):
            per_layer.append(attention_distance(weights, distances, prefix) * len(images))
            layers.append(weights[: max(0, num_maps - count)])
        if count < num_maps:
            maps["attention_rollout"].append(rollout(layers, prefix, from_class_token=has_class))
            maps["attention_heads"].append(head_maps(layers[-1], prefix, from_class_token=has_class))
        sums.append(torch.stack(per_layer))
        count += len(images)
    found = {name: torch.cat(parts).unflatten(-1, grid) for name, parts in maps.items()}
    return {"attention_distance": torch.stack(sums).sum(dim=0) / count, **found}

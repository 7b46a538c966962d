"""Token dropping in training: which patches of which images enter the blocks.

The choice is an argument of the model and a function of the image's slot, as are the masks of stochastic depth, so that
it is the same after a resume and on another number of devices. Positions are added, or taken, before patches are left
out.

Source: Liu et al., "PatchDropout" (2208.07220), section 3.2, and FLIP (2212.00794); equal to timm's PatchDropout.

Legend: B images · N patch tokens · K kept of them · F prefix tokens · T = F + N tokens · D width · E head width.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain import seeds
from pretrain.models.variants import ViTShape


def kept_patches(slots: NDArray[np.int64], shape: ViTShape, *, seed: int) -> Tensor | None:
    """The patches of each image that enter the blocks, in their order.

    Args:
        slots: (B,) numbers of the draws in the global stream; each has its own choice.
        shape: of the model; its ``num_kept`` is K.
        seed: the experiment's seed.

    Returns:
        int64 (B, K) on the CPU, or None if no patch is left out.
    """
    if shape.num_kept == shape.num_patches:
        return None
    uniform = seeds.uniform(seed, "patch_drop", np.asarray(slots)[:, None], np.arange(shape.num_patches)[None])
    chosen = np.argsort(uniform, axis=1, kind="stable")[:, : shape.num_kept]
    return torch.from_numpy(np.sort(chosen, axis=1))


def keep_tokens(x: Tensor, kept: Tensor, num_prefix: int) -> Tensor:
    """The prefix and the kept patches of tokens (B, T, D): (B, F + K, D)."""
    images, tokens, _ = x.shape
    rows = kept + num_prefix + tokens * torch.arange(images, device=x.device)[:, None]
    patches = x.flatten(0, 1).index_select(0, rows.flatten())  # unlike gather, it does not keep x for the backward pass
    return torch.cat([x[:, :num_prefix], patches.unflatten(0, kept.shape)], dim=1)


def keep_rotary(rotary: Tensor, kept: Tensor, num_prefix: int) -> Tensor:
    """Cosines and sines (2, T, E) of the tokens that each image keeps: (2, B, 1, F + K, E)."""
    prefix = torch.arange(num_prefix, device=kept.device).expand(kept.shape[0], -1)
    return rotary[:, torch.cat([prefix, kept + num_prefix], dim=1)].unsqueeze(2)

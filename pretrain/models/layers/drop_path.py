"""Stochastic depth: which branches of which images are dropped.

The masks are arguments, computed from the image's slot and not from a generator's state, so that they are the same in
the recomputation of a checkpointed block, under compilation, after a resume and on another number of devices.

Source: Huang et al., "Deep Networks with Stochastic Depth" (1603.09382), section 3: rates linear in the depth; DeiT III
(facebookresearch/deit, models_v2.py): one rate for all blocks. Differs: survivors are divided by their probability in
training, as in timm, instead of multiplied at test time.

Legend: B images · T tokens · D width.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain import seeds

NUM_BRANCHES = 2
DropPathShape = Literal["linear", "constant"]


def drop_path_rates(rate: float, depth: int, shape: DropPathShape = "linear") -> NDArray[np.float64]:
    """Rate of each block, (depth,): linear from 0 in the first to ``rate`` in the last, or ``rate`` in all."""
    return np.full(depth, rate) if shape == "constant" else np.linspace(0.0, rate, depth)


def drop_path_scales(
    slots: NDArray[np.int64], rate: float, depth: int, *, seed: int, shape: DropPathShape = "linear"
) -> Tensor | None:
    """The factor of each branch of each image: 0 if it is dropped, 1 / (1 − rate) if it is kept.

    Args:
        slots: (B,) numbers of the draws in the global stream; each has its own masks.
        rate: of the last block (linear) or of each (constant), in [0, 1); 0 gives None, since nothing is dropped.
        depth: number of blocks.
        seed: the experiment's seed.
        shape: how the rate grows with the depth.

    Returns:
        fp32 (B, depth, 2) on the CPU, or None.
    """
    if not rate:
        return None
    rates = drop_path_rates(rate, depth, shape)[None, :, None]
    branch = np.arange(depth * NUM_BRANCHES).reshape(1, depth, NUM_BRANCHES)
    uniform = seeds.uniform(seed, "drop_path", np.asarray(slots)[:, None, None], branch)
    return torch.from_numpy(np.where(uniform >= rates, 1.0 / (1.0 - rates), 0.0).astype(np.float32))


def scale_branch(branch: Tensor, scales: Tensor | None) -> Tensor:
    """Multiplies each image of ``branch`` (B, T, D) by its scale (B,), in the branch's type; None leaves it."""
    return branch if scales is None else branch * scales.to(branch.dtype)[:, None, None]

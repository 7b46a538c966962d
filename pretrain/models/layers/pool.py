"""From tokens to one vector per image.

Legend: B images · T tokens with prefix · D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Pool = Literal["token", "norm_avg", "avg_norm", "map"]


def pool_tokens(tokens: Tensor, pool: Pool, num_prefix_tokens: int) -> Tensor:
    """The class token, or the mean of the patch tokens (without the prefix), in fp32: (B, T, D) → (B, D)."""
    assert pool != "map", "a module of its own: layers.attention_pool"
    if pool == "token":
        return tokens[:, 0].float().contiguous()  # a view would keep all T tokens for the head's backward pass
    return tokens[:, num_prefix_tokens:].mean(dim=1, dtype=torch.float32)

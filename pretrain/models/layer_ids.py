"""Which layer of a Vision Transformer a parameter belongs to, for layer-wise decay of the learning rate. No torch.

Source: timm's ``VisionTransformer.group_matcher`` (BEiT's rule, but the final norm goes with the last block).
"""

from __future__ import annotations

import re

_STEM = re.compile(r"(cls_token|dist_token|reg_token|mask_token|pos_embed|patch_embed)")
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def layer_id(name: str, depth: int) -> int:
    """0 for tokens, positions and patches; i + 1 for block i, ``depth`` for the norm after it; else the head's.

    Args:
        name: the parameter's.
        depth: number of blocks.
    """
    if _STEM.match(name):
        return 0
    block = _BLOCK.match(name)
    if block is not None:
        return int(block[1]) + 1
    return depth if name.startswith("norm.") else depth + 1

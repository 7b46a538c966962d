"""Images at their own aspect ratio as sequences of at most N patches: their rows and columns, and the padding.

Source: NaFlex (SigLIP 2, 2502.14786), and timm's ``get_image_size_for_seq``, which searches for this size to 1e-5.

Legend: N length of the sequence · h, w rows and columns of an image's patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Grid = tuple[int, int]
_SHOWN = {"1:1": (300, 300), "4:3": (300, 400), "16:9": (900, 1600)}
_WIDEST = 3


def native_grid(height: int, width: int, max_tokens: int) -> Grid:
    """h and w at the largest scale with h · w ≤ N, where each side is rounded up to complete patches.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        max_tokens: N.
    """
    # h rows leave N // h columns; their scale is above (h - 1) / height, in units of the patch
    rows = min(max_tokens, math.isqrt(max_tokens * height // width) + 2)
    while (max_tokens // rows) * height <= (rows - 1) * width:
        rows -= 1
    return rows, min(-(-rows * width // height), max_tokens // rows)


def padding_share(height: int, width: int, max_tokens: int) -> float:
    """The share of the sequence that an image of this size leaves empty."""
    return 1 - math.prod(native_grid(height, width, max_tokens)) / max_tokens


def lengths_in_words(lengths: Sequence[int]) -> list[str]:
    """A line for each length of the sequences, with the padding of images of usual ratios."""
    lines = [_padding_in_words(length) for length in lengths]
    return lines if len(lines) < 2 else ["one length for each batch, drawn by seed and step:", *lines]


def _padding_in_words(max_tokens: int) -> str:
    shown = (f"{padding_share(*size, max_tokens):.1%} at {name}" for name, size in _SHOWN.items())
    largest = max(padding_share(1000, width, max_tokens) for width in range(1000, 1000 * _WIDEST, 5))
    return f"{max_tokens:,} patches; padding: {', '.join(shown)}, up to {largest:.1%} at other ratios to {_WIDEST}:1"

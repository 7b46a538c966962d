"""What becomes of a segmentation mask when it is packed: a grey PNG of class numbers, of its image's size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipelines.sources.png import encode_grey
from pretrain.config.target import IGNORED_PIXEL
from pretrain.data.faults import BadSample
from pretrain.data.masks import Mask, read_mask

MASK_EXTENSION = "seg.png"


@dataclass(frozen=True)
class MaskOptions:
    """What a mask's numbers mean.

    Attributes:
        num_classes: K; the numbers are 0 … K − 1, and 255 where a pixel has none.
        reduce_zero_label: 0 stands for none, and class k for k + 1 (ADE20K's files).
    """

    num_classes: int = 0
    reduce_zero_label: bool = False


def make_mask(
    data: bytes, original: tuple[int, int], size: tuple[int, int], options: MaskOptions
) -> tuple[bytes, Mask]:
    """The bytes to pack, and the classes in them.

    Args:
        data: the mask's file.
        original: (height, width) of its upright image before it was made smaller.
        size: (height, width) of the image that is packed.
        options: what its numbers mean.

    Raises:
        BadSample: it is no mask of that size, or has a number that is no class.
    """
    mask = read_mask(data)
    if mask.shape != original:
        raise BadSample("mask", f"{mask.shape[1]}×{mask.shape[0]} pixels, its image {original[1]}×{original[0]}")
    if options.reduce_zero_label:
        mask = np.where((mask == 0) | (mask == IGNORED_PIXEL), IGNORED_PIXEL, mask - 1).astype(np.uint8)
    largest = int(mask[mask != IGNORED_PIXEL].max(initial=0))
    if largest >= options.num_classes:
        raise BadSample("mask", f"a pixel is {largest}, but there are {options.num_classes} classes (255: none)")
    if mask.shape != size:
        mask = np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))
    return encode_grey(mask), mask

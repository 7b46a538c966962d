"""Images that a caller has in memory → the pixels that the same image has when it is read from a file."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretrain.data.images.colour import Pixels, to_srgb
from pretrain.data.images.opening import check_pixels, orientation_of, upright
from pretrain.errors import DataError

InMemory = Image.Image | NDArray[np.uint8]


def pixels_of(image: InMemory) -> Pixels:
    """Pixels in sRGB and upright, uint8 (H, W, 3).

    Args:
        image: of Pillow: its profile, orientation and transparency are used as those of a file; or an array, uint8
            (H, W, 3) in RGB or (H, W) in grey, which is taken as it is.

    Raises:
        BadSample: more pixels than any file may have.
        DataError: an array of another type or shape.
    """
    if isinstance(image, Image.Image):
        check_pixels(image.height, image.width)
        pixels, _, _ = to_srgb(image)
        return upright(pixels, orientation_of(image))
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)) or not image.size:
        raise DataError(
            f"an array of {image.dtype} {image.shape} is not an image; give uint8 (height, width, 3) in RGB, or "
            "(height, width) in grey"
        )
    return np.ascontiguousarray(image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2))

"""Photos on which attention is drawn: as the model sees them, and the same part of them at their own resolution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipelines.figures.source import Source
from pipelines.sources.given_images import GivenImage, images_of
from pretrain.data.images.colour import Pixels
from pretrain.data.images.decode import inside, open_image
from pretrain.data.ledger import Ledger
from pretrain.errors import BadSample, DataError


class Photo(NamedTuple):
    """A photo for one model.

    Attributes:
        name: of the image.
        truth: names of its classes, in a packed split.
        input: as the model sees it before it is normalised, uint8 (H, W, 3).
        seen: the part of the photo that the model sees, at the photo's own resolution; None if it is not drawn.
    """

    name: str
    truth: str
    input: Pixels
    seen: Pixels | None


def find(paths: Sequence[Path], limit: int) -> list[GivenImage]:
    """Files as given, those of folders, and those of packed splits, in their order; at most ``limit``.

    Raises:
        DataError: a path does not exist, or there are no images.
    """
    return list(islice(images_of(paths, Ledger()), limit))


def photos_of(images: Sequence[GivenImage], source: Source, num_drawn: int) -> list[Photo]:
    """Each image for a model; the first ``num_drawn`` of them with their own resolution.

    Raises:
        DataError: a file cannot be read or decoded. CheckpointError: the weights do not record their preprocessing.
    """
    transform, found = source.transform, []
    for number, image in enumerate(images):
        try:
            pixels = open_image(image.read()).decode()
            seen = inside(pixels, transform.seen(*pixels.shape[:2])) if number < num_drawn else None
            found.append(Photo(image.name, image.truth, transform.of_pixels(pixels), seen))
        except (BadSample, OSError) as error:
            raise DataError(f"--images {image.name}: cannot be decoded: {error}") from error
    return found


def normalised(photos: Sequence[Photo], source: Source, batch_size: int) -> Iterator[Tensor]:
    """Batches (B, 3, H, W) as the model takes them."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in source.metadata.normalisation)
    for start in range(0, len(photos), batch_size):
        batch = torch.from_numpy(np.stack([photo.input for photo in photos[start : start + batch_size]]))
        yield (batch.permute(0, 3, 1, 2).float() / 255 - mean) / std


def lit(photo: Pixels, attention: NDArray[Any]) -> Pixels:
    """The photo, dark where there is little attention: the map, enlarged smoothly, times the pixels.

    Source: the code for ViT (2010.11929), Figure 6: ``cv2.resize(mask / mask.max(), size) * image``.

    Args:
        photo: uint8 (height, width, 3).
        attention: (h, w), of the same part of the photo.

    Returns:
        uint8 (height, width, 3).
    """
    mask = torch.as_tensor(attention, dtype=torch.float32)[None, None]
    mask = mask / mask.max().clamp_min(1e-12)
    mask = F.interpolate(mask, photo.shape[:2], mode="bilinear", align_corners=False)[0, 0]
    return (torch.from_numpy(photo.astype(np.float32)) * mask[..., None]).round().to(torch.uint8).numpy()

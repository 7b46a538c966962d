"""Random erasing on the device: rectangles of noise in normalised images, as functions of (seed, slot, pixel).

The noise is also counter-based: a hash of (seed, slot, rectangle, pixel). So there is no generator state to save, and
the noise does not depend on the ranks and micro-batches.

Legend: b images · C H W.
Source: random erasing (1708.04896), with timm's modes, ranges and attempts (``timm/data/random_erasing.py``): 1 … count
rectangles share the area, and a rectangle that does not fit is drawn again, up to 10 times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain import seeds
from pretrain.config.schema.augmentation import RandomErasingConfig

ATTEMPTS = 10


class Rectangle(NamedTuple):
    """An erased rectangle in pixels, and the key of its noise."""

    image: int
    top: int
    left: int
    height: int
    width: int
    key: int


@dataclass(frozen=True)
class RandomErasing:
    """Erases rectangles in a micro-batch.

    Args:
        config: probability, sizes and content.
        seed: the experiment's.
    """

    config: RandomErasingConfig
    seed: int

    def __call__(self, images: Tensor, slots: NDArray[np.int64]) -> Tensor:
        """The images, changed in place.

        Args:
            images: floats (b, C, H, W), normalised.
            slots: (b,) positions of the draws in the global stream, on the host.
        """
        channels, height, width = images.shape[1:]
        for place in self.rectangles(slots, height, width):
            part = images[place.image, :, place.top : place.top + place.height, place.left : place.left + place.width]
            part.copy_(self._filling(channels, place, images.device))
        return images

    def rectangles(self, slots: NDArray[np.int64], height: int, width: int) -> list[Rectangle]:
        """The rectangles to erase, which depend only on the slots.

        Args:
            slots: (b,)
            height: H.
            width: W.
        """
        config, found = self.config, []
        chances = seeds.uniform(self.seed, "erasing.prob", slots)
        counts = 1 + (seeds.uniform(self.seed, "erasing.count", slots) * config.count).astype(int)
        for row in np.flatnonzero(chances < config.prob):
            for number in range(counts[row]):
                keys = (self.seed, "erasing", int(slots[row]), number)
                box = self._box(seeds.uniform(*keys, np.arange(4 * ATTEMPTS)), counts[row], height, width)
                if box is not None:
                    found.append(Rectangle(int(row), *box, key=int(seeds.hash64(*keys, "noise")) >> 1))
        return found

    def _box(
        self, numbers: NDArray[np.float64], count: int, height: int, width: int
    ) -> tuple[int, int, int, int] | None:
        """Top, left, height and width of the first attempt that fits."""
        config = self.config
        share, aspect, top, left = numbers.reshape(4, ATTEMPTS)
        area = (config.min_area + (config.max_area - config.min_area) * share) * height * width / count
        low = math.log(config.min_aspect)
        ratio = np.exp(low - 2 * low * aspect)
        heights = np.rint(np.sqrt(area * ratio)).astype(int)
        widths = np.rint(np.sqrt(area / ratio)).astype(int)
        fitting = np.flatnonzero((heights < height) & (widths < width))
        if not fitting.size:
            return None
        first = fitting[0]
        box_height, box_width = int(heights[first]), int(widths[first])
        box_top = int(top[first] * (height - box_height + 1))
        return box_top, int(left[first] * (width - box_width + 1)), box_height, box_width

    def _filling(self, channels: int, place: Rectangle, device: torch.device) -> Tensor:
        if self.config.mode == "const":
            return torch.zeros(channels, 1, 1, device=device)
        if self.config.mode == "rand":
            return normal(place.key, channels, device).view(channels, 1, 1)
        whole = channels * place.height * place.width
        return normal(place.key, whole, device).view(channels, place.height, place.width)


def normal(key: int, count: int, device: torch.device) -> Tensor:
    """Standard normal numbers, fp32 (count,), as a function of (key, index).

    Source: the hash's finaliser as in ``pretrain.seeds``; Box and Muller 1958 for the transformation.
    """
    bits = _hashed(torch.arange(count, device=device), key)
    upper, lower = (bits >> 32) & 0xFFFFFF, bits & 0xFFFFFF
    radius = torch.sqrt(-2 * torch.log((upper + 1).float() * 2.0**-24))  # the argument is in (0, 1]
    return radius * torch.cos(lower.float() * (2 * math.pi * 2.0**-24))


def _hashed(index: Tensor, key: int) -> Tensor:
    """64 well-mixed bits per index; int64 arithmetic wraps around, as the hash requires."""
    bits = (index + 1) * _signed(0x9E3779B97F4A7C15) + key
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        bits = (bits ^ _logical_shift(bits)) * _signed(factor)
    return bits ^ _logical_shift(bits)


def _logical_shift(bits: Tensor) -> Tensor:
    return (bits >> 33) & 0x7FFFFFFF


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number

"""Augmentation of micro-batches on the device: random erasing, then mixup or CutMix, as functions of stream positions.

Every number is a hash of (seed, slot), and of the pixel for the noise. No generator state needs to be saved, and the
result is the same for any ranks, micro-batches and accumulation, and after a resume. A global batch draws the slots
[s · B, (s + 1) · B), so its number s is known from any slot.

The images 2i and 2i + 1 of a lane are a pair, and each gets a part of the other.

Legend: b images of a micro-batch (even if it is mixed) · C H W · K classes · B images of a global batch · L lanes.
Source: random erasing (1708.04896), with timm's modes, ranges and attempts (``timm/data/random_erasing.py``): 1 … count
rectangles share the area, and a rectangle that does not fit is drawn again, up to 10 times. Mixup (1710.09412), section
2; CutMix (1905.04899), section 3.1, equation 1 and algorithm A1. The correction of λ to the area of the clipped box is
that of CutMix's code and of timm.
Differs: the partner is the neighbour in the lane (timm: the mirrored position of the local batch; big_vision: the
previous image of the device), so that results do not depend on the number of devices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betaincinv
from torch import Tensor

from pretrain import seeds
from pretrain.config.schema.data import MixingConfig
from pretrain.config.schema.transforms import RandomErasingConfig

ATTEMPTS = 10  # to find a rectangle that fits
IntArray = NDArray[np.int64]


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
        use: of its numbers; the second view of a sample has others than the first.
    """

    config: RandomErasingConfig
    seed: int
    use: str = "erasing"

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
        chances = seeds.uniform(self.seed, f"{self.use}.prob", slots)
        counts = 1 + (seeds.uniform(self.seed, f"{self.use}.count", slots) * config.count).astype(int)
        for row in np.flatnonzero(chances < config.prob):
            for number in range(counts[row]):
                keys = (self.seed, self.use, int(slots[row]), number)
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


class Mix(NamedTuple):
    """How b images are mixed.

    Attributes:
        lam: float64 (b,), the weight of an image's own target (λ); 1: not mixed.
        boxes: int64 (b, 4), top, bottom, left, right of the part that CutMix takes from the partner; empty for mixup.
    """

    lam: NDArray[np.float64]
    boxes: IntArray


@dataclass(frozen=True)
class Mixing:
    """Mixes a micro-batch.

    Args:
        config: kinds and strengths.
        seed: the experiment's.
        global_batch_size: B.
    """

    config: MixingConfig
    seed: int
    global_batch_size: int

    def __call__(self, images: Tensor, targets: Tensor, slots: IntArray) -> tuple[Tensor, Tensor]:
        """Mixed images and targets.

        Args:
            images: floats (b, C, H, W), normalised.
            targets: fp32 (b, K), share of each class; an image may have several.
            slots: (b,) positions of the draws in the global stream, on the host.
        """
        assert len(slots) % 2 == 0, "pairs do not straddle micro-batches"
        height, width = images.shape[-2:]
        mix = self.plan(slots, height, width)
        lam = _to_device(mix.lam, images.device)[:, None]
        partner = _swap(targets)
        targets = lam * targets + (1 - lam) * partner
        own = lam.view(-1, 1, 1, 1).to(images.dtype)
        if self.config.cutmix:
            own = _share_of_each_pixel(own, _to_device(mix.boxes, images.device), height, width)
        return own * images + (1 - own) * _swap(images), targets

    def plan(self, slots: IntArray, height: int, width: int) -> Mix:
        """λ and box of each image, which depend only on the slots.

        Args:
            slots: (b,)
            height: H.
            width: W.
        """
        config = self.config
        keys = self._keys(slots)

        def uniform(purpose: str) -> NDArray[np.float64]:
            return seeds.uniform(self.seed, f"mixing.{purpose}", keys)

        mixed = uniform("prob") < config.prob
        cut = mixed & self._cuts(uniform("switch"))
        blended = mixed & ~cut
        blend = _beta(uniform("lam"), config.mixup)
        if config.keep_larger:
            blend = np.maximum(blend, 1 - blend)
        centres = (uniform("row"), uniform("column"))
        boxes = cutmix_boxes(_beta(uniform("lam"), config.cutmix), *centres, height, width) * cut[:, None]
        covered = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
        return Mix(np.where(blended, blend, 1 - covered / (height * width)), boxes)

    def _keys(self, slots: IntArray) -> IntArray:
        """The key of each random choice: the global batch, or the pair (identified by its first slot)."""
        if self.config.per == "batch":
            return slots // self.global_batch_size
        return np.repeat(slots[::2], 2)

    def _cuts(self, numbers: NDArray[np.float64]) -> NDArray[np.bool_]:
        if self.config.mixup and self.config.cutmix:
            return numbers < self.config.switch_prob
        return np.full(len(numbers), self.config.cutmix > 0)


def cutmix_boxes(
    lam: NDArray[np.float64], row: NDArray[np.float64], column: NDArray[np.float64], height: int, width: int
) -> IntArray:
    """Boxes of a 1 − λ share of the image around a uniform centre, clipped at the edges.

    Args:
        lam: (b,) λ.
        row: (b,) uniform numbers, for the centre.
        column: (b,) likewise.
        height: H.
        width: W.

    Returns:
        int64 (b, 4): top, bottom, left, right.
    """
    side = np.sqrt(1 - lam)
    edges = []
    for number, size in ((row, height), (column, width)):
        length, centre = (size * side).astype(np.int64), (number * size).astype(np.int64)
        edges += [np.clip(centre - length // 2, 0, size), np.clip(centre + (length + 1) // 2, 0, size)]
    return np.stack(edges, axis=1)


def _beta(numbers: NDArray[np.float64], parameter: float) -> NDArray[np.float64]:
    """Numbers of Beta(p, p) from uniform ones, by its inverse distribution function; 1 where p is 0."""
    if not parameter:
        return np.ones_like(numbers)
    return betaincinv(parameter, parameter, numbers)


def _swap(tensor: Tensor) -> Tensor:
    """Rows 2i and 2i + 1 exchanged."""
    return tensor.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def _share_of_each_pixel(own: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """(b, 1, H, W): 0 inside an image's box, elsewhere 1 if it has a box, and its λ otherwise."""
    top, bottom, left, right = (edge.view(-1, 1, 1, 1) for edge in boxes.unbind(1))
    row = torch.arange(height, device=own.device).view(1, 1, -1, 1)
    column = torch.arange(width, device=own.device).view(1, 1, 1, -1)
    in_box = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    base = torch.where(bottom > top, torch.ones_like(own), own)
    return base * ~in_box


def _to_device(array: NDArray[np.generic], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    if device.type == "cuda":  # from pageable memory the host would wait for the copy
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)

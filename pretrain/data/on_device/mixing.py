"""Mixup and CutMix on the device: mixes neighbouring images and targets, as a function of (seed, stream position).

The images 2i and 2i + 1 of a lane are a pair, and each gets a part of the other. The result depends on nothing else, so
it is the same for any ranks, micro-batches and accumulation, and after a resume. A global batch draws the slots
[s · B, (s + 1) · B), so its number s is known from any slot.

Legend: b images of a micro-batch (even) · C H W · K classes · B images of a global batch · L lanes.
Source: mixup (1710.09412), section 2; CutMix (1905.04899), section 3.1, equation 1 and algorithm A1. The correction of
λ to the area of the clipped box is that of CutMix's code and of timm.
Differs: the partner is the neighbour in the lane (timm: the mirrored position of the local batch; big_vision: the
previous image of the device), so that results do not depend on the number of devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betaincinv
from torch import Tensor

from pretrain import seeds
from pretrain.config.schema.augmentation import MixingConfig

IntArray = NDArray[np.int64]


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

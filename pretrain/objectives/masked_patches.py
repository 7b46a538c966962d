"""Masked patch prediction: predicts the mean colours of corrupted patches, without labels.

Half of the patch embeddings are corrupted: 80 % of them are replaced by a learned [mask] embedding, 10 % by the
embedding of another patch of the image and 10 % are kept. For each corrupted patch the model predicts the mean colour
in 3 bits per channel, 512 classes.

The corruption is a function of (seed, slot), so it is the same on any number of devices and after a resume.

Legend: B images · C H W · N patches of a grid (h, w) · M corrupted patches of an image.
Source: ViT (2010.11929), appendix B.1.2.
Differs: choices the paper leaves open: every image has the same number of corrupted patches, the other patch is from
the same image, and a mean colour in [0, 1] falls into the bin ⌊8 · colour⌋.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pretrain import seeds
from pretrain.models.vit_tasks import MASK_TOKEN, Corruption
from pretrain.objectives.protocol import MicroBatch, Model

MASKED, REPLACED = 0.8, 0.1  # fractions of the corrupted patches; the rest is kept
LEVELS = 8  # per channel: 3 bits


@dataclass(frozen=True)
class MaskedPatches:
    """Mean over the images and their corrupted patches of the cross-entropy with the patch's mean colour.

    Attributes:
        grid: (h, w) of the patches.
        patch: their (height, width) in pixels.
        mean, std: normalisation of the images.
        seed: the experiment's.
        share: fraction of the patches that are corrupted.
    """

    grid: tuple[int, int]
    patch: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    seed: int
    share: float = 0.5

    def __call__(self, model: Model, batch: MicroBatch) -> Tensor:
        """The loss, an fp32 scalar."""
        assert batch.slots is not None, "masks are functions of the slots"
        num_patches = self.grid[0] * self.grid[1]
        chosen = corruption(batch.slots.numpy(), num_patches, self.share, seed=self.seed)
        corrupted = Corruption(*(to_device(part, batch.images.device) for part in chosen))
        logits = model(batch.images, batch.drop_path, corrupted).float()
        colours = mean_colours(batch.images, self.patch, self.mean, self.std).gather(1, corrupted.positions)
        return F.cross_entropy(logits.flatten(0, 1), colours.flatten())


def corruption(
    slots: NDArray[np.int64], num_patches: int, share: float, *, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions and sources of ``models.vit_tasks.Corruption``, int64 (B, M), as a function of (seed, slot).

    Args:
        slots: (B,) numbers of the draws in the global stream.
        num_patches: N.
        share: M / N; at least one patch is corrupted.
        seed: the experiment's.
    """
    rows, patches = np.asarray(slots)[:, None], np.arange(num_patches)[None]
    count = max(1, round(share * num_patches))
    order = seeds.hash64(seed, "masked_patches", rows, patches).argsort(axis=1, kind="stable")
    positions = np.sort(order[:, :count], axis=1)
    others = seeds.hash64(seed, "masked_patches.other", rows, patches).argsort(axis=1, kind="stable")
    other = np.take_along_axis(others, positions, axis=1)  # from a permutation, so that few patches are copied twice
    other = np.where(other == positions, (other + 1) % num_patches, other)
    draw = seeds.uniform(seed, "masked_patches.kind", rows, positions)
    sources = np.where(draw < MASKED, MASK_TOKEN, np.where(draw < MASKED + REPLACED, other, positions))
    return positions, sources


def mean_colours(
    images: Tensor, patch: tuple[int, int], mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Tensor:
    """The class of each patch's mean colour, int64 (B, N) in row-major order of the grid: 64·red + 8·green + blue."""
    pooled = F.avg_pool2d(images.float(), patch).flatten(2)
    classes = torch.zeros_like(pooled[:, 0], dtype=torch.int64)
    for channel in range(3):  # Python numbers; a constant tensor would be copied to the device
        colour = pooled[:, channel] * std[channel] + mean[channel]
        classes = classes * LEVELS + (colour * LEVELS).long().clamp(0, LEVELS - 1)
    return classes


def to_device(array: NDArray[np.int64], device: torch.device) -> Tensor:
    """A choice of patches on the device, which the host does not wait for."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":  # the host would wait for a copy from pageable memory
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)

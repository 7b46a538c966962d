"""Accuracy on a labelled set: every image once, on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from pretrain.data.batch import Batch
from pretrain.evaluation.topk import TopK


@torch.no_grad()
def accuracy(
    forward: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    to_images: Callable[[Tensor], Tensor],
    device: torch.device,
) -> dict[str, float]:
    """Top-1 and top-5 over all ranks' batches.

    Collective: yes; every rank must bring the same number of batches (padded ones count nothing).

    Args:
        forward: normalised images → logits (B, K).
        batches: this rank's share of the set.
        to_images: uint8 images on the device → normalised floats.
        device: where the model is.
    """
    meter = TopK(device=device)
    for batch in batches:
        batch = batch.to(device)
        meter.update(forward(to_images(batch.images)), batch.labels, batch.valid)
    return meter.result()

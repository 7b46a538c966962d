"""Pixel-wise cross-entropy: torch's of the pixels that have a class, over all pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pretrain.objectives.protocol import MicroBatch
from pretrain.objectives.segmentation import Segmentation

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(3, 5, 4, 6, generator=GENERATOR)
MASKS = torch.randint(5, (3, 4, 6), generator=GENERATOR, dtype=torch.uint8)


def loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    labels = torch.zeros(len(logits), 0, dtype=torch.int64)
    return Segmentation()(lambda images, drop_path: logits, MicroBatch(torch.zeros(len(logits)), labels, targets=masks))


def test_the_loss_is_torchs() -> None:
    torch.testing.assert_close(loss(LOGITS, MASKS), F.cross_entropy(LOGITS, MASKS.long()))


def test_pixels_without_a_class_count_as_nothing_but_are_counted() -> None:
    masks = MASKS.clone()
    masks[0] = 255
    masks[1, :2] = 255
    chosen = masks != 255
    wanted = F.cross_entropy(LOGITS.movedim(1, 3)[chosen], masks[chosen].long(), reduction="sum") / masks.numel()
    torch.testing.assert_close(loss(LOGITS, masks), wanted)
    parts = torch.stack([loss(LOGITS[k : k + 1], masks[k : k + 1]) for k in range(3)])
    torch.testing.assert_close(loss(LOGITS, masks), parts.mean())
    assert loss(LOGITS[:1], masks[:1]) == 0

"""Labels as dense targets.

Legend: B images · M most labels of an image · K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def dense_targets(labels: Tensor, num_classes: int) -> Tensor:
    """Multi-hot targets: 1 at each label of an image, 0 elsewhere; a repeated label counts once.

    Args:
        labels: int64 (B, M), padded with −1.
        num_classes: K.

    Returns:
        fp32 (B, K) on the labels' device.
    """
    padded = torch.where(labels < 0, num_classes, labels)  # padding goes to an extra column that is dropped
    targets = torch.zeros(len(labels), num_classes + 1, dtype=torch.float32, device=labels.device)
    return targets.scatter_(1, padded, 1.0)[:, :num_classes]

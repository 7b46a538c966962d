"""What a training objective is: a function of the model and a micro-batch that gives one scalar.

An objective calls the model itself, because some need more than its logits. It never waits for the device: no value is
read on the host, so the loss reaches the host only with the step's other numbers.

Legend: B images · C H W · M most labels of an image · K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Model = Callable[..., Tensor]


@dataclass(frozen=True)
class Inputs:
    """One micro-batch on the device.

    Attributes:
        images: normalised floats (B, C, H, W).
        labels: int64 (B, M), padded with −1.
        drop_path: None, or (B, depth, 2) of 0 or 1 / keep (see ``models.layers.drop_path``).
        targets: None, or what goes before ``labels``: the share of each class, fp32 (B, K), which mixing made of them;
            or, of a set that has vectors in their place, those, fp32 (B, K), in the units of the data; or
            masks, uint8 (B, H, W).
        slots: int64 (B,) on the **host**: the number of each draw in the global stream, of which masks are a function.
    """

    images: Tensor
    labels: Tensor
    drop_path: Tensor | None = None
    targets: Tensor | None = None
    slots: Tensor | None = None


class Objective(Protocol):
    """A training objective."""

    def __call__(self, model: Model, batch: Inputs) -> Tensor:
        """The loss, an fp32 scalar: the mean over the images of the micro-batch.

        Args:
            model: ``model(images, drop_path)`` gives fp32 logits (B, K); may be wrapped by an engine.
            batch: the micro-batch.
        """
        ...

"""A training objective: a function of the model and a micro-batch that returns one scalar.

An objective calls the model, because some need more than its logits. It must not read a value on the host, which would
synchronise with the device in every micro-step. The loss is read once per step, with the step's other values.

Legend: B images · C H W · M most labels of an image · K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

Model = Callable[..., Tensor]


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch as passed to the model, made from a ``pretrain.data.batch.Batch`` by ``assembly.feeder``.

    Attributes:
        images: normalised floats (B, C, H, W) on the device.
        labels: int64 (B, M), padded with −1.
        drop_path: None, or (B, depth, 2) of 0 or 1 / keep (see ``models.layers.drop_path``).
        kept: None, or the patches that enter the blocks, int64 (B, K) (see ``models.layers.patch_drop``).
        second: None, or a second view of each image, as ``images``.
        targets: None, or targets that replace ``labels``: class shares fp32 (B, K) made by mixing; vectors
            fp32 (B, K) in the units of the data; or masks uint8 (B, H, W).
        slots: int64 (B,) on the **host**: the number of each draw in the global stream. Masks are a function of it.
        sample_ids: int64 (B,) on the host: the samples, for the record of a step that is skipped.
        digest: order-free checksum of the (sample, slot) pairs, for the record of the step.
        num_bad: number of unusable samples that were replaced, for the record of the step.
        grids: None, or rows and columns of the patches of images as padded sequences, int64 (B, 2) (see
            ``models.layers.places``).
        padding: share of the sequences that is padding; NaN for images of one size.
        patch: side of the patches in pixels; None: that of the model.
    """

    images: Tensor
    labels: Tensor
    drop_path: Tensor | None = None
    targets: Tensor | None = None
    slots: Tensor | None = None
    sample_ids: Tensor | None = None
    digest: int = 0
    num_bad: int = 0
    kept: Tensor | None = None
    grids: Tensor | None = None
    padding: float = math.nan
    second: Tensor | None = None
    patch: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the model beside images and drop-path scales, for those that it has."""
        given = {"kept": self.kept, "grids": self.grids, "patch": self.patch}
        return {name: value for name, value in given.items() if value is not None}


class Objective(Protocol):
    """A training objective."""

    def __call__(self, model: Model, batch: MicroBatch) -> Tensor:
        """The loss, an fp32 scalar: the mean over the images of the micro-batch.

        Args:
            model: ``model(images, drop_path)`` gives fp32 logits (B, K); may be wrapped by an engine.
            batch: the micro-batch.
        """
        ...

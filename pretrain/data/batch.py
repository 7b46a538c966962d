"""One micro-batch as the engine gets it.

Legend: b images in the micro-batch · H, W pixels · M labels per sample at most.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from pretrain.data.faults import Fault

NO_SLOT = -1


@dataclass
class Batch:
    """Images with what is known about them.

    Attributes:
        images: uint8 (b, 3, H, W); normalised on the device by ``pretrain.data.device.to_model_input``.
        labels: int64 (b, M), padded with -1.
        sample_ids: int64 (b,), numbers in the set's canonical order.
        slots: int64 (b,), number of each draw in the global stream; -1 in evaluation.
        valid: bool (b,), True = a real image that counts, False = padding.
        faults: samples that could not be used while this batch was made.
    """

    images: Tensor
    labels: Tensor
    sample_ids: Tensor
    slots: Tensor
    valid: Tensor
    faults: list[Fault] = field(default_factory=list)

    def __len__(self) -> int:
        return self.images.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """The same batch on ``device``."""
        moved = {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self._tensors().items()}
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which a copy to the device runs beside the computation."""
        return replace(self, **{name: tensor.pin_memory() for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "faults"}

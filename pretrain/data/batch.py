"""One micro-batch on the host, as a data process makes it.

Legend: b images in the micro-batch · H, W pixels · M largest number of labels of a sample · D numbers of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from pretrain import seeds
from pretrain.data.workers.faults import Fault
from pretrain.data.workers.lent_memory import Block

NO_SLOT = -1


@dataclass
class Batch:
    """Images and their targets.

    Attributes:
        images: uint8 (b, 3, H, W); normalised on the device by ``pretrain.data.on_device.device.to_model_input``.
        labels: int64 (b, M), padded with -1.
        sample_ids: int64 (b,), positions in the set's canonical order.
        slots: int64 (b,), position of each draw in the global stream; -1 in evaluation.
        valid: bool (b,), True = a real image that counts, False = padding.
        targets: targets other than labels: vectors, float32 (b, D), or masks, uint8 (b, H, W), with 255 for pixels
            without a class; None for a set with labels.
        faults: samples that could not be used while this batch was made.
        block: in the data process that makes the batch, the shared memory of the images; None: ordinary memory.
    """

    images: Tensor
    labels: Tensor
    sample_ids: Tensor
    slots: Tensor
    valid: Tensor
    targets: Tensor | None = None
    faults: list[Fault] = field(default_factory=list)
    block: Block | None = None

    def __len__(self) -> int:
        return self.images.shape[0]

    def digest(self) -> int:
        """Order-independent checksum of the (sample, slot) pairs: equal global batches have equal sums over ranks."""
        return int((seeds.hash64(self.sample_ids.numpy(), self.slots.numpy()) >> 32).sum())

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """The same batch on ``device``."""
        moved = {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self._tensors().items()}
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, so that its copy to the device can overlap with computation."""
        return replace(self, **{name: tensor.pin_memory() for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        found = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in ("faults", "block")}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def __getstate__(self) -> dict[str, Any]:
        """Used to send a batch to the rank: PyTorch would send a file descriptor for every small tensor."""
        small = {name: tensor.numpy() for name, tensor in self._tensors().items() if name != "images"}
        images = self.images if self.block is None else (self.block, tuple(self.images.shape))
        return {**small, "images": images, "faults": self.faults}

    def __setstate__(self, state: dict[str, Any]) -> None:
        images, faults = state.pop("images"), state.pop("faults")
        small = {name: torch.from_numpy(array) for name, array in state.items()}
        if not isinstance(images, Tensor):
            content, (size, channels, height, width) = images
            images = torch.from_numpy(content).view(size, height, width, channels).permute(0, 3, 1, 2)
        self.__dict__.update({"targets": None} | small, images=images, faults=faults, block=None)

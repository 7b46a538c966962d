"""One micro-batch on the host, as a data process makes it, and the shared memory in which the rank receives it.

A data process has a few blocks of shared memory for images, each mapped once by the process and once by the rank, so
that no batch needs new pages. The byte after a block's content is a flag for whether the block is lent: the process
sets it before it fills the block, and the rank clears it when the last tensor that refers to the content is freed,
including views and slices.

Legend: b images in the micro-batch · H, W pixels · M largest number of labels of a sample · D numbers of a vector.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from multiprocessing import reduction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain import seeds
from pretrain.data.storage.tally import Fault

NO_SLOT = -1
MAX_BLOCKS = 8  # per process: the batches that are ready, and those that the rank is using
_FREE, _LENT = 0, 1

_Key = tuple[int, int]  # process id of the lender, number of its block
_own: list[Block] = []
_borrowed: dict[_Key, mmap.mmap] = {}


@dataclass
class Batch:
    """Images and their targets.

    Attributes:
        images: uint8 (b, 3, H, W); normalised on the device by ``to_model_input``.
        labels: int64 (b, M), padded with -1.
        sample_ids: int64 (b,), positions in the set's canonical order.
        slots: int64 (b,), position of each draw in the global stream; -1 in evaluation.
        valid: bool (b,), True = a real image that counts, False = padding.
        targets: targets other than labels: vectors, float32 (b, D), or masks, uint8 (b, H, W), with 255 for pixels
            without a class; None for a set with labels.
        grids: int64 (b, 2), rows and columns of the patches of images that keep their aspect ratio, which ``images``
            then holds as strips (see ``images.native``); None: all images have the size of the model.
        second: a second view of each image, augmented on its own, as ``images``; None: there is none.
        faults: samples that could not be used while this batch was made.
        block: in the data process that makes the batch, the shared memory of the images; None: ordinary memory.
        patch: side of the patches into which the model cuts the images; None: its own.
    """

    images: Tensor
    labels: Tensor
    sample_ids: Tensor
    slots: Tensor
    valid: Tensor
    targets: Tensor | None = None
    grids: Tensor | None = None
    second: Tensor | None = None
    faults: list[Fault] = field(default_factory=list)
    block: Block | None = None
    patch: int | None = None

    def __len__(self) -> int:
        return self.images.shape[0]

    def digest(self) -> int:
        """Order-independent checksum of the (sample, slot) pairs: equal global batches have equal sums over ranks."""
        return int((seeds.hash64(self.sample_ids.numpy(), self.slots.numpy()) >> 32).sum())

    @property
    def options(self) -> dict[str, Tensor]:
        """Arguments of the model beside the images."""
        return {} if self.grids is None else {"grids": self.grids}

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """The same batch on ``device``."""
        moved = {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self._tensors().items()}
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, so that its copy to the device can overlap with computation."""
        return replace(self, **{name: tensor.pin_memory() for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}

    def __getstate__(self) -> dict[str, Any]:
        """Used to send a batch to the rank: PyTorch would send a file descriptor for every small tensor."""
        small = {name: tensor.numpy() for name, tensor in self._tensors().items() if name not in ("images", "second")}
        views = [self.images] if self.second is None else [self.images, self.second]
        content = views if self.block is None else (self.block, len(views), tuple(self.images.shape))
        return {**small, "views": content, "faults": self.faults, "patch": self.patch}

    def __setstate__(self, state: dict[str, Any]) -> None:
        views, faults, patch = state.pop("views"), state.pop("faults"), state.pop("patch")
        small = {name: torch.from_numpy(array) for name, array in state.items()}
        if isinstance(views, tuple):
            content, number, (size, channels, height, width) = views
            views = views_of(torch.from_numpy(content).view(number * size, height, width, channels), size)
        images, second = (*views, None)[:2]
        absent = {"targets": None, "grids": None, "patch": patch}
        self.__dict__.update(absent | small, images=images, second=second, faults=faults, block=None)


def views_of(content: Tensor, size: int) -> tuple[Tensor, ...]:
    """The views of ``size`` images in memory as decoders write it, uint8 (V · b, H, W, 3): each (b, 3, H, W)."""
    return tuple(part.permute(0, 3, 1, 2) for part in content.split(size))


def to_model_input(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalises pixels for the model: (x / 255 − mean) / std.

    Args:
        images: uint8 (b, 3, H, W).
        mean: three values for pixels in [0, 1].
        std: three values for pixels in [0, 1].

    Returns:
        float32 (b, 3, H, W) on the same device.
    """
    offset, scale = _constants(tuple(mean), tuple(std), images.device)
    return (images.contiguous().to(torch.float32) / 255 - offset) / scale  # images are filled as channels-last


@lru_cache(maxsize=16)
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Cached per device, since a copy from the host in every step would wait for the device."""
    offset = torch.tensor(mean, dtype=torch.float32, device=device).view(-1, 1, 1)
    return offset, torch.tensor(std, dtype=torch.float32, device=device).view(-1, 1, 1)


class Block:
    """A block of this process. When pickled, it arrives in the rank as an array of its content.

    Args:
        number: index among the blocks of this process.
        capacity: bytes of the longest content.

    Attributes:
        content: uint8 (n,), not initialised: it still has its previous content.
    """

    def __init__(self, number: int, capacity: int) -> None:
        self._key, self._capacity = (os.getpid(), number), capacity
        self._descriptor = os.memfd_create("batch", os.MFD_CLOEXEC)
        os.ftruncate(self._descriptor, capacity + 1)
        self._memory = mmap.mmap(self._descriptor, capacity + 1)
        self._was_sent = False
        self.content: NDArray[np.uint8] = np.frombuffer(self._memory, np.uint8, capacity)

    def lend(self, num_bytes: int) -> bool:
        """Takes the block for new content of ``num_bytes``, if it is free and large enough."""
        if num_bytes > self._capacity or self._memory[self._capacity] != _FREE:
            return False
        self._memory[self._capacity] = _LENT
        self.content = np.frombuffer(self._memory, np.uint8, num_bytes)
        return True

    def __reduce__(self) -> Any:
        descriptor = None if self._was_sent else reduction.DupFd(self._descriptor)
        self._was_sent = True  # only the rank can free a block to be lent again, so the rank has mapped it by then
        return _borrow, (self._key, len(self.content), self._capacity, descriptor)


def take_block(num_bytes: int, capacity: int | None = None) -> Block | None:
    """A free block of this process; None: all are lent, or this system does not support shared memory.

    Args:
        num_bytes: of the content.
        capacity: the longest content that a new block must hold, now or later; None: ``num_bytes``.
    """
    found = next((block for block in _own if block.lend(num_bytes)), None)
    if found is None and len(_own) < MAX_BLOCKS and hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            found = Block(len(_own), capacity or num_bytes)
            found.lend(num_bytes)
            _own.append(found)
    return found


def forget_blocks(process_ids: set[int]) -> None:
    """Unmaps the blocks of processes that have ended, once nothing refers to them."""
    for key in [key for key in _borrowed if key[0] in process_ids]:
        del _borrowed[key]


def _borrow(key: _Key, num_bytes: int, capacity: int, descriptor: Any) -> NDArray[np.uint8]:
    if descriptor is not None:
        number = descriptor.detach()
        try:
            _borrowed[key] = mmap.mmap(number, capacity + 1)
        finally:
            os.close(number)
    memory = _borrowed[key]
    content = np.frombuffer(memory, np.uint8, num_bytes)
    weakref.finalize(content, memory.__setitem__, capacity, _FREE).atexit = False
    return content

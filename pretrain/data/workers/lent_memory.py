"""Shared-memory buffers reused between data processes and the training process, so that no batch needs new pages.

A data process has a few blocks, each mapped once by the process and once by the rank. The byte after a block's content
is a flag for whether the block is lent: the process sets it before it fills the block, and the rank clears it when the
last tensor that refers to the content is freed, including views and slices.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import weakref
from multiprocessing import reduction
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_BLOCKS = 8  # per process: the batches that are ready, and those that the rank is using
_FREE, _LENT = 0, 1

Key = tuple[int, int]  # process id of the lender, number of its block
_own: list[Block] = []
_borrowed: dict[Key, mmap.mmap] = {}


class Block:
    """A block of this process. When pickled, it arrives in the rank as an array of its content.

    Args:
        number: index among the blocks of this process.
        num_bytes: of the content.

    Attributes:
        content: uint8 (num_bytes,), not initialised: it still has its previous content.
    """

    def __init__(self, number: int, num_bytes: int) -> None:
        self._key, self._num_bytes = (os.getpid(), number), num_bytes
        self._descriptor = os.memfd_create("batch", os.MFD_CLOEXEC)
        os.ftruncate(self._descriptor, num_bytes + 1)
        self._memory = mmap.mmap(self._descriptor, num_bytes + 1)
        self._was_sent = False
        self.content: NDArray[np.uint8] = np.frombuffer(self._memory, np.uint8, num_bytes)

    def lend(self, num_bytes: int) -> bool:
        """Takes the block for new content, if it is free and has this size."""
        if num_bytes != self._num_bytes or self._memory[num_bytes] != _FREE:
            return False
        self._memory[num_bytes] = _LENT
        return True

    def __reduce__(self) -> Any:
        descriptor = None if self._was_sent else reduction.DupFd(self._descriptor)
        self._was_sent = True  # only the rank can free a block to be lent again, so the rank has mapped it by then
        return _borrow, (self._key, self._num_bytes, descriptor)


def take(num_bytes: int) -> Block | None:
    """A free block of this process; None: all are lent, or this system does not support shared memory."""
    found = next((block for block in _own if block.lend(num_bytes)), None)
    if found is None and len(_own) < MAX_BLOCKS and hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            found = Block(len(_own), num_bytes)
            found.lend(num_bytes)
            _own.append(found)
    return found


def forget(process_ids: set[int]) -> None:
    """Unmaps the blocks of processes that have ended, once nothing refers to them."""
    for key in [key for key in _borrowed if key[0] in process_ids]:
        del _borrowed[key]


def _borrow(key: Key, num_bytes: int, descriptor: Any) -> NDArray[np.uint8]:
    if descriptor is not None:
        number = descriptor.detach()
        try:
            _borrowed[key] = mmap.mmap(number, num_bytes + 1)
        finally:
            os.close(number)
    memory = _borrowed[key]
    content = np.frombuffer(memory, np.uint8, num_bytes)
    weakref.finalize(content, memory.__setitem__, num_bytes, _FREE).atexit = False
    return content

"""Counts the bytes of what a piece of a program makes and still holds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveStorages(TorchDispatchMode):
    """Watches every tensor that is made under it, and adds up the distinct storages that are still alive.

    Unlike hooks on saved tensors it also sees what selective checkpointing keeps in its own cache. Storages of the
    weights, which views share, do not count.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.known = {weight.untyped_storage().data_ptr() for weight in weights}
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operation and remembers the storages of what it gives, weakly."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in self.known:
                storage = leaf.untyped_storage()
                reference = StorageWeakRef(storage)
                self.made[reference.cdata] = (reference, storage.nbytes())
        return result

    def total(self) -> int:
        """Bytes that are alive now."""
        return sum(size for reference, size in self.made.values() if not reference.expired())

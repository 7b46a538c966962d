"""A process group of any size in one process, whose backend is called NCCL and behaves like rank 0's.

Every rank is assumed to hold the same values. A tensor that is not on the GPU raises, as in a group of NCCL alone.
"""

from __future__ import annotations

import contextlib
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.cuda.record import communicated, waited
from tests.cuda.tensors import known, remember

NUMBERS = " of numbers"  # added to the kind of a collective that moves norms, flags or reports, and no weights


class Done:
    """The handle of a collective that has completed."""

    def wait(self, *args: object) -> bool:
        return True

    def is_completed(self) -> bool:
        return True


def _call(kind: str, unsharded: list[Tensor], others: list[Tensor], async_op: bool) -> Done | None:
    for tensor in (*unsharded, *others):
        if not tensor.is_cuda:
            raise RuntimeError(f"{kind}: no backend type associated with device type {tensor.device.type}")
    if all(tensor.numel() == 1 or tensor.dtype == torch.float64 for tensor in unsharded):
        kind += NUMBERS
    communicated(kind, sum(tensor.numel() * tensor.element_size() for tensor in unsharded))
    return Done() if async_op else None


def all_reduce(tensor: Tensor, op: Any = None, group: Any = None, async_op: bool = False) -> Done | None:
    return _call("all_reduce", [tensor], [], async_op)


def broadcast(tensor: Tensor, src: int = 0, group: Any = None, async_op: bool = False, **_: Any) -> Done | None:
    return _call("broadcast", [tensor], [], async_op)


def all_gather(tensor_list: list[Tensor], tensor: Tensor, group: Any = None, async_op: bool = False) -> Done | None:
    for one in tensor_list:
        one.copy_(tensor)
        remember(one, known(tensor))
    return _call("all_gather", tensor_list, [tensor], async_op)


def all_gather_into_tensor(
    output_tensor: Tensor, input_tensor: Tensor, group: Any = None, async_op: bool = False
) -> Done | None:
    return _call("all_gather", [output_tensor], [input_tensor], async_op)


def reduce_scatter_tensor(
    output: Tensor, input: Tensor, op: Any = None, group: Any = None, async_op: bool = False
) -> Done | None:
    return _call("reduce_scatter", [input], [output], async_op)


def all_gather_single(*args: Any, **options: Any) -> Done | None:
    return all_gather_into_tensor(*args, **options)


def reduce_scatter_single(*args: Any, **options: Any) -> Done | None:
    return reduce_scatter_tensor(*args, **options)


def all_gather_object(object_list: list[Any], obj: Any, group: Any = None) -> None:
    object_list[:] = [obj] * len(object_list)
    waited("all_gather_object")


def broadcast_object_list(object_list: list[Any], src: int = 0, group: Any = None, **_: Any) -> None:
    waited("broadcast_object_list")


def barrier(*_: Any, **__: Any) -> None:
    waited("barrier")


class DistributedDataParallel(nn.Module):
    """Reduces each gradient when it is complete; torch's own reducer needs real events."""

    def __init__(self, module: nn.Module, **_: Any) -> None:
        super().__init__()
        self.module, self._reduces = module, True
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._reduce)

    def _reduce(self, parameter: Tensor) -> None:
        if self._reduces:
            assert parameter.grad is not None
            all_reduce(parameter.grad)

    def forward(self, *args: Any, **options: Any) -> Any:
        return self.module(*args, **options)

    @contextlib.contextmanager
    def no_sync(self) -> Any:
        self._reduces = False
        try:
            yield
        finally:
            self._reduces = True


COLLECTIVES = (
    all_reduce, broadcast, all_gather, all_gather_into_tensor, all_gather_single, reduce_scatter_tensor,
    reduce_scatter_single, all_gather_object, broadcast_object_list, barrier,
)  # fmt: skip
OLD_NAMES = {"_all_gather_base": all_gather_into_tensor, "_reduce_scatter_base": reduce_scatter_tensor}


def install(stack: contextlib.ExitStack, world: int) -> None:
    """Joins a group of ``world`` ranks as rank 0, for as long as ``stack`` is open."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    stack.callback(dist.destroy_process_group)
    named = {function.__name__: function for function in COLLECTIVES} | OLD_NAMES
    for name, function in named.items():
        stack.enter_context(mock.patch(f"torch.distributed.{name}", function))
    stack.enter_context(mock.patch("torch.distributed.get_backend", lambda *_: "nccl"))
    stack.enter_context(mock.patch("torch.nn.parallel.DistributedDataParallel", DistributedDataParallel))
    _skip_comparisons(stack)


def _skip_comparisons(stack: contextlib.ExitStack) -> None:
    """DeepSpeed compares some numbers with those of the other ranks, which are zero here."""
    import deepspeed.runtime.zero.partition_parameters as partition
    import deepspeed.runtime.zero.partitioned_param_coordinator as coordinator
    import deepspeed.runtime.zero.utils as utils

    for module in (utils, partition, coordinator):
        for name in ("assert_ints_same_as_other_ranks", "assert_lst_len_same_as_other_ranks"):
            if hasattr(module, name):
                stack.enter_context(mock.patch.object(module, name, lambda *args, **options: None))

"""The few collectives that the project needs. In one process without a process group each is the identity."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.errors import PeerError


def is_distributed() -> bool:
    """True if a process group exists."""
    return dist.is_available() and dist.is_initialized()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of ``tensor`` over all ranks, as a new tensor on its device. Collective: all ranks, with equal shapes.

    NCCL reduces on GPUs only, so a tensor on the host is copied to the GPU and back.
    """
    if not is_distributed():
        return tensor.clone()
    total = tensor.clone() if dist.get_backend() != "nccl" else tensor.to(_object_device(), copy=True)
    dist.all_reduce(total)
    return total.to(tensor.device)


def all_gather_rows(tensor: Tensor) -> Tensor:
    """Every rank's ``tensor`` (b, …), concatenated in rank order: (R b, …). Collective: equal shapes."""
    if not is_distributed():
        return tensor
    tensor = tensor.contiguous()
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor)
    return torch.cat(parts)


def all_to_all_flat(tensor: Tensor, sent: list[int], received: list[int]) -> Tensor:
    """Sends a piece of ``tensor`` to every rank, and returns the pieces of all ranks, in rank order. Collective: yes.

    Args:
        tensor: one dimension: the pieces in the order of the ranks.
        sent: elements for each rank.
        received: elements from each rank.
    """
    if not is_distributed():
        return tensor
    output = tensor.new_empty(sum(received))
    dist.all_to_all_single(output, tensor, received, sent)
    return output


def all_gather_flat(values: list[Tensor], sizes: list[int], device: torch.device) -> list[Tensor]:
    """The fp32 values of every rank, joined to one dimension, in rank order. Collective: yes.

    Every rank sends as much as the largest, because not every library gathers pieces of different sizes.

    Args:
        values: this rank's, of one dimension each.
        sizes: elements of each rank.
        device: where the result is.
    """
    if not is_distributed():
        return [torch.cat(values)]
    largest, rank = max(sizes), dist.get_rank()
    output = torch.empty(len(sizes) * largest, device=device)
    own = output.narrow(0, rank * largest, largest)
    if values:
        torch.cat(values, out=own[: sizes[rank]])
    dist.all_gather_into_tensor(output, own)
    return [piece[:size] for piece, size in zip(output.split(largest), sizes, strict=True)]


def broadcast_tensor(tensor: Tensor) -> Tensor:
    """Overwrites ``tensor`` with rank 0's, of equal shape, and returns it. Collective: yes."""
    if is_distributed():
        dist.broadcast(tensor, src=0)
    return tensor


def broadcast_object(value: Any) -> Any:
    """Rank 0's ``value`` on every rank. Collective: yes; ``value`` must be picklable and small."""
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=_object_device())
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Every rank's ``value``, in rank order, on every rank. Collective: yes; small picklable values only."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def raise_together(error: BaseException | None, *, doing: str) -> None:
    """Raises on every rank if any rank failed, so that no rank waits for one that has left.

    Collective: yes. The failing rank raises its own error; the others raise one that names the rank and the cause.
    """
    failures = gather_objects(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    for rank, failure in enumerate(failures):
        if failure is not None:
            raise PeerError(f"rank {rank} failed while {doing}: {failure}")


def barrier() -> None:
    """Waits until every rank has reached this call. Collective: yes."""
    if is_distributed():
        dist.barrier()


def _object_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")

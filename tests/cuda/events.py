"""Events that the simulation must notice, and events that it must let pass, one per case."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from tests.cuda.record import Record, recording


def read_a_value(device: torch.device) -> None:
    assert float(torch.ones(3, device=device).sum()) == 0.0


def read_a_list(device: torch.device) -> None:
    assert torch.ones(3, device=device).tolist() == [0.0] * 3


def branch_on_a_value(device: torch.device) -> None:
    assert not torch.ones((), device=device) > 0


def copy_pageable(device: torch.device) -> None:
    torch.ones(3).to(device)


def copy_pinned_without_waiting(device: torch.device) -> None:
    torch.ones(3).pin_memory().to(device, non_blocking=True)


def read_into_pinned_memory(device: torch.device) -> None:
    torch.empty(3, pin_memory=True).copy_(torch.ones(3, device=device), non_blocking=True)


def select_by_a_mask(device: torch.device) -> None:
    values, mask = torch.arange(4), torch.tensor([True, False, True, True])
    both = [one.pin_memory().to(device, non_blocking=True) for one in (values, mask)]
    assert both[0][both[1]].shape == (3,), "a mask from the host is remembered"


def read_known_labels(device: torch.device) -> None:
    labels = torch.tensor([[3], [1]]).pin_memory().to(device, non_blocking=True)
    gathered = [torch.empty_like(labels) for _ in range(2)]
    dist.all_gather(gathered, labels)
    assert torch.cat(gathered).tolist() == [[3], [1], [3], [1]]


def compute_on_the_device(device: torch.device) -> None:
    weight = torch.ones(3, 3, device=device, requires_grad=True)
    (torch.ones(2, 3, device=device) @ weight).sum().backward()
    assert weight.grad is not None and weight.grad.device.type == "cuda"


def mix_devices(device: torch.device) -> None:
    torch.ones(3, device=device).add(torch.ones(3))


def reduce_a_host_tensor(device: torch.device) -> None:
    dist.all_reduce(torch.ones(3))


CASES: dict[str, Callable[[torch.device], None]] = {
    function.__name__: function
    for function in (
        read_a_value, read_a_list, branch_on_a_value, copy_pageable, copy_pinned_without_waiting,
        read_into_pinned_memory, select_by_a_mask, read_known_labels, compute_on_the_device, mix_devices,
        reduce_a_host_tensor,
    )
}  # fmt: skip


def record_of(event: Callable[[torch.device], None], device: torch.device) -> Record:
    """The record of one event."""
    with recording() as record:
        event(device)
    return record

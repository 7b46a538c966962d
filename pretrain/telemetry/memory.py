"""The most memory that this rank has had in use."""

from __future__ import annotations

import resource

import torch


def memory_bytes(device: torch.device) -> int:
    """Peak of the device's allocator so far; on a CPU the largest resident set of the process. No wait."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

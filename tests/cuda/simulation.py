"""Simulated GPUs: one process is rank 0 of a job on H100s with NCCL. Needs a CUDA build of torch, no GPU, no driver.

It patches torch globally, so each use is a process of its own: see ``tests.cuda.worker``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from tests.cuda import driver, group, tensors

UNAVAILABLE = "this torch was built without CUDA, whose tensors the simulation needs"


def is_possible() -> bool:
    """Whether this torch knows CUDA tensors."""
    return torch.backends.cuda.is_built()


@contextlib.contextmanager
def simulated(world: int) -> Iterator[torch.device]:
    """This process as rank 0 of ``world`` ranks with a GPU each; yields its device."""
    local = str(min(world, driver.NUM_DEVICES))
    os.environ |= {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": local,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999", "DS_ACCELERATOR": "cuda",
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        driver.install(stack)
        group.install(stack, world)
        tensors.install(stack)
        yield torch.device("cuda", 0)

"""Joins the process group once, for every launcher and every backend."""

from __future__ import annotations

import datetime
import os

import torch
import torch.distributed as dist

from pretrain.distributed.rank import Rank
from pretrain.distributed.rendezvous import meet
from pretrain.errors import SetupError

DEFAULT_PORT = 29_500  # torch's and DeepSpeed's


def device_of(rank: Rank) -> torch.device:
    """The device of this rank: its GPU by local rank, or the CPU if there is no GPU.

    Raises:
        SetupError: more ranks than GPUs on this node.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    index = 0 if visible == 1 else rank.local_rank  # --gpus-per-task=1 shows each task its own GPU as number 0
    if index >= visible:
        raise SetupError(
            f"rank {rank.rank} on {rank.host} is local rank {rank.local_rank}, but {visible} GPUs are visible: "
            "start at most one rank per GPU"
        )
    return torch.device("cuda", index)


def start(rank: Rank, *, timeout_s: int) -> torch.device:
    """Joins the process group (nccl on GPUs, gloo on CPUs) and returns this rank's device.

    Collective: yes. A single rank gets a group of one, without a port or network.

    Args:
        timeout_s: seconds after which a collective fails.

    Raises:
        SetupError: the rendezvous failed (the port is in use or belongs to another job, or peers are missing).
    """
    device = device_of(rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        os.environ["LOCAL_RANK"] = str(device.index)  # DeepSpeed and Accelerate use it as the device index
    # DeepSpeed and Accelerate read these as well, so they must be set for every launcher.
    for key, value in (("RANK", rank.rank), ("LOCAL_RANK", rank.local_rank), ("WORLD_SIZE", rank.world)):
        os.environ.setdefault(key, str(value))
    _set_address(rank)
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if dist.is_initialized():
        return device
    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = datetime.timedelta(seconds=timeout_s)
    store = dist.HashStore() if rank.world == 1 else meet(rank, timeout_s)
    try:
        dist.init_process_group(backend, store=store, rank=rank.rank, world_size=rank.world, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise SetupError(
            f"rank {rank.rank} of {rank.world} on {rank.host} could not join its peers at {address}: {error}"
        ) from error
    return device


def _set_address(rank: Rank) -> None:
    """Sets the rendezvous address unless the launcher has; in a Slurm job the port is derived from the job id.

    Raises:
        SetupError: the ranks are on several nodes and the address of rank 0 is not set.
    """
    if "MASTER_ADDR" not in os.environ and rank.local_world < rank.world:
        raise SetupError(
            "MASTER_ADDR is not set, but the ranks are on several nodes: export the name of rank 0's node, as the job "
            "scripts in slurm/ do"
        )
    job_id = os.environ.get("SLURM_JOB_ID", "")
    port = 20_000 + int(job_id) % 20_000 if job_id.isdigit() else DEFAULT_PORT
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(port))


def leave() -> None:
    """Leaves the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()

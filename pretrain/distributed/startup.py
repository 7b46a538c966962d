"""The ranks of a job meet and join one process group, once, for every launcher and every backend.

They find each other in a store that rank 0 (or torchrun's agent) hosts at MASTER_ADDR:MASTER_PORT, where the job first
records its identity. A rank of another job on the same port finds another identity, or its own rank taken, and exits;
the first job is not affected. Ranks that do not come are named.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import sys
import time
import uuid
from pathlib import Path

import torch
import torch.distributed as dist

from pretrain.distributed.device import choose_device, claim_gpu
from pretrain.distributed.heartbeats import ranks
from pretrain.distributed.processes import without_rank
from pretrain.distributed.rank import Rank
from pretrain.distributed.watchdog import Watchdog
from pretrain.errors import SetupError
from pretrain.files import digest

JOIN_LIMIT_S = 900  # for the slowest peer to start
DEFAULT_PORT = 29_500  # torch's and DeepSpeed's
ANSWER_LIMIT_S = 60  # for a store that answers to report which job it belongs to
REMEDY = (
    "give each job on a machine a port of its own: deepspeed --master_port, torchrun --master-port, accelerate "
    "--main_process_port, or MASTER_PORT"
)
_ADDED_WITH_A_VALUE = ("--local_rank", "--local-rank")


def start(rank: Rank, *, timeout_s: int, device: str = "auto", watchdog: Watchdog | None = None) -> torch.device:
    """Joins the process group (nccl on GPUs, gloo on CPUs) and returns this rank's device.

    Collective: yes. A single rank gets a group of one, without a port or network.

    Args:
        rank: this process.
        timeout_s: seconds after which a collective fails.
        device: the wanted one, as for ``choose_device``.
        watchdog: its limit applies to the meeting of the ranks, after which it begins to beat. None: JOIN_LIMIT_S.

    Raises:
        SetupError: the device cannot be used, or the rendezvous failed (the port is in use or belongs to another job,
            or peers are missing).
    """
    chosen = choose_device(device, rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        os.environ["LOCAL_RANK"] = str(chosen.index)  # DeepSpeed and Accelerate use it as the device index
    # DeepSpeed and Accelerate read these as well, so they must be set for every launcher.
    for key, value in (("RANK", rank.rank), ("LOCAL_RANK", rank.local_rank), ("WORLD_SIZE", rank.world)):
        os.environ.setdefault(key, str(value))
    _set_address(rank)
    os.environ["DS_ACCELERATOR"] = chosen.type  # DeepSpeed would choose for itself
    if dist.is_initialized():
        return chosen
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    timeout = datetime.timedelta(seconds=timeout_s)
    store = _store(rank, timeout_s, watchdog)
    if chosen.type == "cuda":
        claim_gpu(store, rank, str(torch.cuda.get_device_properties(chosen).uuid))
    try:
        dist.init_process_group(backend, store=store, rank=rank.rank, world_size=rank.world, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise SetupError(
            f"rank {rank.rank} of {rank.world} on {rank.host} could not join its peers at {address}: {error}"
        ) from error
    return chosen


def _store(rank: Rank, timeout_s: int, watchdog: Watchdog | None) -> dist.Store:
    """The store of this job, in which all of its ranks have met; the watchdog beats from then on."""
    if watchdog is not None:
        watchdog.at("join", 0)
    if rank.world == 1:
        store, start_name = dist.HashStore(), uuid.uuid4().hex[:16]
    else:
        limit_s = JOIN_LIMIT_S if watchdog is None else watchdog.left_s
        store, start_name = meet(rank, timeout_s, max(1.0, min(limit_s, timeout_s)))
    if watchdog is not None:
        watchdog.beat(start_name)
    return store


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


def limit_groups(timeout_s: int) -> None:
    """Gives every process group of this process the same timeout, also those that a library created.

    DeepSpeed reduces in groups of its own, which would keep torch's defaults: 10 minutes over NCCL, after which ranks
    that only wait for a slow one are aborted before the watchdog can name it; 30 minutes over gloo.
    """
    limit, torch_distributed = datetime.timedelta(seconds=timeout_s), dist.distributed_c10d
    change = getattr(dist, "set_timeout", None) or torch_distributed._set_pg_timeout  # public since torch 2.14
    for group in torch_distributed._world.pg_map:
        change(limit, group)


def leave() -> None:
    """Leaves the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def meet(rank: Rank, timeout_s: int, limit_s: float) -> tuple[dist.Store, str]:
    """The store in which the ranks of this job find each other, after all have come and it is known to be this job's.

    Args:
        rank: this process.
        timeout_s: timeout of the store after the rendezvous.
        limit_s: seconds to wait for the slowest rank.

    Returns:
        the store, and a name of this start of the job, equal on all ranks.

    Raises:
        SetupError: the port is in use or belongs to another job, or ranks are missing, which are named.
    """
    host, port = os.environ["MASTER_ADDR"], _port(os.environ["MASTER_PORT"])
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    deadline = time.monotonic() + limit_s
    try:
        store = dist.TCPStore(
            host,
            port,
            is_master=rank.is_main and not by_agent,
            timeout=datetime.timedelta(seconds=limit_s),
            wait_for_workers=False,
            multi_tenant=True,
        )
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        own = dist.PrefixStore(f"vit-pretrain/{attempt}", store)
        _identify(own, rank, f"{host}:{port}", limit_s if by_agent else min(limit_s, ANSWER_LIMIT_S))
        _wait_for_all(own, rank, f"{host}:{port}", deadline)
        start = own.compare_set("start", "", uuid.uuid4().hex[:16]).decode()
    except (RuntimeError, ValueError, OSError) as error:
        raise SetupError(
            f"rank {rank.rank} of {rank.world} on {rank.host} could not join its peers at {host}:{port}: {error}\n"
            f"If the port is in use, {REMEDY} (such as {_free_port()})."
        ) from error
    store.set_timeout(datetime.timedelta(seconds=timeout_s))
    return own, start


def identity() -> str:
    """A job identity: equal on all ranks of a job, different for a job with another command."""
    words = [Path(sys.argv[0]).name, *_typed(sys.argv[1:])]
    of_launcher = [os.environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID")]
    return digest(json.dumps([words, of_launcher, os.environ.get("WORLD_SIZE", "")]).encode())


def _identify(store: dist.Store, rank: Rank, address: str, limit_s: float) -> None:
    """Raises SetupError if the store belongs to another job, or another process has taken this rank."""
    ours = {"job": identity(), "command": " ".join([Path(sys.argv[0]).name, *_typed(sys.argv[1:])])}
    ours |= {"host": rank.host, "pid": os.getpid()}
    if rank.is_main:
        found = store.compare_set("job", "", json.dumps(ours))
    else:
        try:
            store.wait(["job"], datetime.timedelta(seconds=limit_s))
        except RuntimeError as error:
            raise SetupError(
                f"rank {rank.rank} of {rank.world} on {rank.host}: {address} does not tell in {limit_s:.0f} s which "
                f"job it belongs to; if it is another program's, {REMEDY} (such as {_free_port()})"
            ) from error
        found = store.get("job")
    theirs = json.loads(found)
    if theirs["job"] != ours["job"] or store.add(f"rank/{rank.rank}", 1) > 1:
        raise SetupError(
            f"rank {rank.rank} of {rank.world} on {rank.host}: port {address} belongs to another job, process "
            f"{theirs['pid']} on {theirs['host']} ({theirs['command']}), which continues; {REMEDY} (such as "
            f"{_free_port()})"
        )


def _wait_for_all(store: dist.Store, rank: Rank, address: str, deadline: float) -> None:
    """Waits until every rank has come. Raises: SetupError with the ranks that have not, at the deadline."""
    if store.add("joined", 1) == rank.world:
        store.set("all joined", "yes")
    try:
        store.wait(["all joined"], datetime.timedelta(seconds=max(1.0, deadline - time.monotonic())))
    except RuntimeError as error:
        missing = [peer for peer in range(rank.world) if not store.check([f"rank/{peer}"])]
        raise SetupError(
            f"rank {rank.rank} of {rank.world} on {rank.host} in phase join: {ranks(missing)} did not come to "
            f"{address} in the time allowed (in a training: cluster.phase_limits_s.start); see the output of "
            f"{ranks(missing)}, and whether the launcher starts all ranks"
        ) from error


def _typed(words: list[str]) -> list[str]:
    """The command line shared by all ranks, without the rank number that a launcher may pass as an argument."""
    values = {place + 1 for place, word in enumerate(words) if word in _ADDED_WITH_A_VALUE}
    return without_rank(word for place, word in enumerate(words) if place not in values)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise SetupError(f"MASTER_PORT={text!r} is not a port: it must be a number from 1 to 65535")
    return int(text)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]

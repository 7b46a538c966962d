"""The rendezvous of a job's ranks: a rank of another job on the same port is refused and told which job uses it.

Rank 0 (or torchrun's agent) hosts a store at MASTER_ADDR:MASTER_PORT, where the job first records its identity. A rank
that finds another identity, or its own rank taken, exits; the first job is not affected.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import sys
from pathlib import Path

import torch.distributed as dist

from pretrain.distributed.launchers import without_rank
from pretrain.distributed.rank import Rank
from pretrain.errors import SetupError
from pretrain.files import digest

JOIN_LIMIT_S = 900  # for the slowest peer to start
ANSWER_LIMIT_S = 60  # for a store that answers to report which job it belongs to
REMEDY = (
    "give each job on a machine a port of its own: deepspeed --master_port, torchrun --master-port, accelerate "
    "--main_process_port, or MASTER_PORT"
)
_ADDED_WITH_A_VALUE = ("--local_rank", "--local-rank")


def meet(rank: Rank, timeout_s: int) -> dist.Store:
    """The store in which the ranks of this job find each other, after verifying that it belongs to this job.

    Args:
        rank: this process.
        timeout_s: timeout of the store after the rendezvous.

    Raises:
        SetupError: the port is in use or belongs to another job, or peers are missing.
    """
    host, port = os.environ["MASTER_ADDR"], _port(os.environ["MASTER_PORT"])
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    limit_s = min(timeout_s, JOIN_LIMIT_S)
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
    except (RuntimeError, ValueError, OSError) as error:
        raise SetupError(
            f"rank {rank.rank} of {rank.world} on {rank.host} could not join its peers at {host}:{port}: {error}\n"
            f"If the port is in use, {REMEDY} (such as {_free_port()})."
        ) from error
    store.set_timeout(datetime.timedelta(seconds=timeout_s))
    return own


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

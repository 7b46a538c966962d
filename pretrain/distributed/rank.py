"""Who am I? One answer for every way of being started: deepspeed, torchrun, srun or plain python.

The only place that reads launcher variables. Nothing here imports torch, so signal handlers and error messages can
know the rank before the slow imports.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from pretrain.errors import SetupError


@dataclass(frozen=True)
class Rank:
    """This process among its peers: ``rank`` of ``world``, ``local_rank`` of ``local_world`` on ``host``."""

    rank: int
    local_rank: int
    world: int
    local_world: int
    host: str
    launcher: str

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes shared files and prints."""
        return self.rank == 0


def detect(env: Mapping[str, str] | None = None) -> Rank:
    """Reads the launcher's variables; torchrun and deepspeed set RANK, srun sets SLURM_PROCID, alone sets nothing.

    Raises:
        SetupError: some of the variables are set and others are missing, or one is not a number.
    """
    env = os.environ if env is None else env
    host = socket.gethostname()
    if "RANK" in env or "WORLD_SIZE" in env:
        rank, world = _number(env, "RANK"), _number(env, "WORLD_SIZE")
        local_rank = _number(env, "LOCAL_RANK", default=0)
        local_world = _number(env, "LOCAL_WORLD_SIZE", default=world if "LOCAL_RANK" not in env else 0)
        if "TORCHELASTIC_RUN_ID" in env:
            launcher = "torchrun"
        else:
            launcher = "srun" if "SLURM_STEP_ID" in env else "deepspeed"
        return Rank(rank, local_rank, world, local_world or world, host, launcher)
    if "SLURM_STEP_ID" in env and _number(env, "SLURM_NTASKS", default=1) > 1:
        world = _number(env, "SLURM_NTASKS")
        return Rank(
            rank=_number(env, "SLURM_PROCID"),
            local_rank=_number(env, "SLURM_LOCALID"),
            world=world,
            local_world=max(1, world // _number(env, "SLURM_NNODES", default=1)),
            host=host,
            launcher="srun",
        )
    return Rank(0, 0, 1, 1, host, "alone")


def job() -> tuple[str, int]:
    """(job id, restart count): Slurm's where it started us, otherwise ("local", 0)."""
    return os.environ.get("SLURM_JOB_ID", "local"), _number(os.environ, "SLURM_RESTART_COUNT", default=0)


def environment(*prefixes: str) -> dict[str, str]:
    """The environment variables with these prefixes, for the run's record."""
    return {key: value for key, value in sorted(os.environ.items()) if key.startswith(prefixes)}


def _number(env: Mapping[str, str], key: str, default: int | None = None) -> int:
    text = env.get(key)
    if text is None:
        if default is not None:
            return default
        raise SetupError(
            f"{key} is not set, but other launcher variables are: start with deepspeed, torchrun, srun or plain python"
        )
    try:
        return int(text)
    except ValueError:
        raise SetupError(f"{key}={text!r} is not a whole number: it must come from the launcher unchanged") from None

"""The rank of this process, however it was started: deepspeed, torchrun, srun or plain python.

Only this module reads launcher variables. It does not import torch, so signal handlers and error messages can
know the rank before the slow imports.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pretrain.errors import SetupError

# Set by the job scripts and by the manifests for Kubernetes.
RESTART_COUNT = "VIT_PRETRAIN_RESTART_COUNT"
JOB_ID, LAUNCHER = "VIT_PRETRAIN_JOB_ID", "VIT_PRETRAIN_LAUNCHER"  # by the latter alone
RECORDED_PREFIXES = ("SLURM_", "SLURMD_", "NCCL_", "CUDA_", "CUBLAS_", "OMP_", "MKL_", "TORCH_", "PYTORCH_", "DS_")
RECORDED_VARIABLES = frozenset(
    """
    SLURM_JOB_ID SLURM_JOB_NAME SLURM_JOB_NODELIST SLURM_JOB_NUM_NODES SLURM_JOB_PARTITION SLURM_JOB_QOS
    SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID SLURM_CLUSTER_NAME SLURM_CPUS_ON_NODE SLURM_CPUS_PER_TASK SLURM_GPUS
    SLURM_GPUS_ON_NODE SLURM_GPUS_PER_NODE SLURM_GPUS_PER_TASK SLURM_LOCALID SLURM_MEM_PER_NODE SLURM_NNODES
    SLURM_NODEID SLURM_NODELIST SLURM_NTASKS SLURM_NTASKS_PER_NODE SLURM_PROCID SLURM_RESTART_COUNT SLURM_STEP_ID
    SLURM_STEP_NODELIST SLURM_STEP_NUM_TASKS SLURM_TASKS_PER_NODE SLURMD_NODENAME
    NCCL_ALGO NCCL_ASYNC_ERROR_HANDLING NCCL_BUFFSIZE NCCL_CROSS_NIC NCCL_CUMEM_ENABLE NCCL_DEBUG NCCL_DEBUG_SUBSYS
    NCCL_IB_DISABLE NCCL_IB_GID_INDEX NCCL_IB_HCA NCCL_IB_QPS_PER_CONNECTION NCCL_IB_RETRY_CNT NCCL_IB_TC
    NCCL_IB_TIMEOUT NCCL_MAX_NCHANNELS NCCL_MIN_NCHANNELS NCCL_NET NCCL_NET_GDR_LEVEL NCCL_NTHREADS NCCL_NVLS_ENABLE
    NCCL_P2P_DISABLE NCCL_P2P_LEVEL NCCL_PROTO NCCL_SHM_DISABLE NCCL_SOCKET_FAMILY NCCL_SOCKET_IFNAME
    NCCL_SOCKET_NTHREADS
    CUDA_DEVICE_MAX_CONNECTIONS CUDA_DEVICE_ORDER CUDA_LAUNCH_BLOCKING CUDA_MODULE_LOADING CUDA_VISIBLE_DEVICES
    CUBLAS_WORKSPACE_CONFIG OMP_NUM_THREADS OMP_PLACES OMP_PROC_BIND MKL_NUM_THREADS
    TORCH_CUDA_ARCH_LIST TORCH_CPP_LOG_LEVEL TORCH_DISTRIBUTED_DEBUG TORCH_NCCL_ASYNC_ERROR_HANDLING
    TORCH_NCCL_BLOCKING_WAIT TORCH_NCCL_ENABLE_MONITORING TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC TORCH_SHOW_CPP_STACKTRACES
    PYTORCH_CUDA_ALLOC_CONF PYTORCH_NO_CUDA_MEMORY_CACHING
    DS_ACCELERATOR DS_SKIP_CUDA_CHECK
    """.split()  # noqa: SIM905
)


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
    """Reads the launcher's variables; torchrun, deepspeed and pods set RANK, srun SLURM_PROCID, plain python none.

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
            launcher = "srun" if "SLURM_STEP_ID" in env else env.get(LAUNCHER, "deepspeed")
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
    """(job id, restart count): Slurm's id or the JobSet's name if one of them started us, otherwise "local".

    The count is that of our job scripts, which also count restarts inside an allocation, else Slurm's, else 0.
    """
    slurms = _number(os.environ, "SLURM_RESTART_COUNT", default=0)
    return os.environ.get("SLURM_JOB_ID", os.environ.get(JOB_ID, "local")), _number(
        os.environ, RESTART_COUNT, default=slurms
    )


def environment(env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The part of the environment that a run records: values of known variables, names of related ones.

    An unknown variable may hold a secret (``SLURM_JWT``), so only its name is recorded.
    """
    env = os.environ if env is None else env
    related = sorted(key for key in env if key.startswith(RECORDED_PREFIXES))
    return {
        "variables": {key: env[key] for key in related if key in RECORDED_VARIABLES},
        "unrecorded_variables": [key for key in related if key not in RECORDED_VARIABLES],
    }


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
        raise SetupError(f"{key}={text!r} is not an integer: it must come from the launcher unchanged") from None

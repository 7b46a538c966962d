"""The device of a process, which every command asks for here, and the precision of its fp32 matrix products."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.distributed.rank import Rank
from pretrain.errors import ConfigError, SetupError

DRIVER = Path("/proc/driver/nvidia")
VISIBLE = "CUDA_VISIBLE_DEVICES"
USE_CPU = "to compute on the CPU, set cluster.device: cpu (--device cpu)"


def choose_device(wanted: str = "auto", rank: Rank | None = None) -> torch.device:
    """The device that this process computes on.

    A GPU that was meant to be used and cannot be is an error: on the CPU the same work would take weeks.

    Args:
        wanted: cpu; cuda: this rank's GPU, or an error; cuda:N; auto: a GPU if there is one, and the CPU if the machine
            has no NVIDIA driver or ``CUDA_VISIBLE_DEVICES`` is set to nothing.
        rank: this process among its peers; None: it has none.

    Raises:
        SetupError: no such device, a driver whose GPUs torch cannot use, or more ranks than GPUs on this node.
    """
    try:
        device = None if wanted == "auto" else torch.device(wanted)
        if device is not None and device.type != "cuda":
            torch.empty(0, device=device)
            return device
    except (RuntimeError, AssertionError) as error:
        raise SetupError(f"device {wanted}: {str(error).splitlines()[0]}; use auto, cpu, cuda or cuda:N") from error
    if not torch.cuda.is_available():
        if device is None and (os.environ.get(VISIBLE) == "" or not has_driver()):
            return torch.device("cpu")
        raise SetupError(_unusable(wanted))
    visible = torch.cuda.device_count()
    if device is not None and device.index is not None:
        return _numbered(device, visible, rank)
    return torch.device("cuda", 0 if rank is None else _index(rank, visible))


def has_driver() -> bool:
    """Whether this machine has NVIDIA's driver, and so most likely GPUs."""
    return DRIVER.exists() or shutil.which("nvidia-smi") is not None


def claim_gpu(store: dist.Store, rank: Rank, gpu: str) -> None:
    """Makes sure that no two ranks of a job compute on one GPU, also where each sees its own as number 0.

    Args:
        store: of the job.
        rank: this process.
        gpu: the GPU's unique id.

    Raises:
        SetupError: another rank has it.
    """
    ours = f"rank {rank.rank} on {rank.host}"
    found = store.compare_set(f"gpu/{gpu}", "", ours).decode()
    if found != ours:
        raise SetupError(
            f"{ours} and {found} have the same GPU ({gpu}): start one rank per GPU, and give each rank its own "
            f"({VISIBLE}={os.environ.get(VISIBLE, 'is not set')}; with srun: --gpus-per-task=1, or --gpus-per-node=N)"
        )


def _unusable(wanted: str) -> str:
    """Why torch cannot use a GPU, and what to do."""
    host, visible = os.uname().nodename, os.environ.get(VISIBLE)
    driver = "NVIDIA's driver is installed" if has_driver() else "there is no NVIDIA driver"
    if torch.version.cuda is None and torch.version.hip is None:
        problem, remedy = f"torch {torch.__version__} is built for CPUs", "install torch's build for CUDA"
    elif visible is not None:
        problem, remedy = f"{VISIBLE}={visible!r} names no usable GPU ({_cuda_error()})", "correct it, or unset it"
    else:
        problem, remedy = _cuda_error(), "see nvidia-smi and python -m pipelines doctor, or use another node"
    meant = driver if wanted == "auto" else f"device {wanted} is expected (cluster.device, device_memory_gib, --device)"
    return f"no usable GPU on {host}: {meant}, but {problem}; {remedy}; {USE_CPU}"


def _cuda_error() -> str:
    """CUDA's own words for why it does not start."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0].strip().rstrip(".")
    return "CUDA starts, but shows no device"


def _numbered(device: torch.device, visible: int, rank: Rank | None) -> torch.device:
    if rank is not None and rank.world > 1:
        raise SetupError(f"device {device} is one GPU, but {rank.world} ranks were started: name no number")
    if device.index >= visible:
        raise SetupError(f"device {device}: {visible} GPUs are visible, cuda:0 to cuda:{visible - 1}")
    return device


def _index(rank: Rank, visible: int) -> int:
    """The number of a rank's GPU among the visible ones."""
    if rank.local_rank < visible:
        return rank.local_rank
    if visible == 1 and rank.launcher == "srun":  # --gpus-per-task=1 shows each task its own GPU as number 0
        return 0
    raise SetupError(
        f"rank {rank.rank} on {rank.host} is local rank {rank.local_rank}, but GPUs visible there: {visible} "
        f"({VISIBLE}={os.environ.get(VISIBLE, 'is not set')}): start at most one rank per GPU, or make more visible"
    )


def copied_to(device: torch.device, tensor: Tensor) -> Tensor:
    """A tensor of the host on ``device``, without waiting for the device: a GPU's copy starts from pinned memory."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def choose_matmul_precision(device: torch.device, *, tf32: bool) -> None:
    """Sets the precision of fp32 matrix products and convolutions on a GPU, for which torch has different defaults.

    Raises:
        ConfigError: the device does not support TensorFloat-32.
    """
    if device.type != "cuda":
        if tf32:
            raise ConfigError("tf32: true would be ignored: the device is not a GPU; set it to false")
        return
    if tf32 and not has_tf32(device):
        name = torch.cuda.get_device_name(device)
        raise ConfigError(
            f"tf32: true would be ignored: {name} has no TensorFloat-32 (A100 and later); set it to false"
        )
    # torch has two interfaces for this, and raises an error where it reads one after the other has been set. What is
    # set through the older one can be read through both: inductor and torch.compile use both.
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


def has_tf32(device: torch.device) -> bool:
    """Whether the device computes in TensorFloat-32."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)

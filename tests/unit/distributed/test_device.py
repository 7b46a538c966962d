"""The device of a process, on machines that claim to have GPUs, and the precision of fp32 products."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pretrain.distributed import device
from pretrain.distributed.device import choose_device, choose_matmul_precision, claim_gpu
from pretrain.distributed.rank import Rank
from pretrain.errors import ConfigError, SetupError
from tests.command import Commands


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """A machine without a driver and GPUs, to which both can be added."""
    return Machine(monkeypatch, tmp_path)


class Machine:
    """The answers of torch and of the operating system."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._patch, self._folder = monkeypatch, folder
        monkeypatch.setattr(device, "DRIVER", folder / "driver")
        monkeypatch.setenv("PATH", str(folder / "bin"))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        self.has_gpus(0)

    def has_gpus(self, count: int) -> None:
        """How many GPUs torch can use."""
        self._patch.setattr(torch.cuda, "is_available", lambda: count > 0)
        self._patch.setattr(torch.cuda, "device_count", lambda: count)

    def has_driver(self, kind: str) -> None:
        """The kernel's folder of the driver, or its program."""
        if kind == "proc":
            (self._folder / "driver").mkdir()
        else:
            (self._folder / "bin").mkdir()
            (self._folder / "bin" / "nvidia-smi").write_text("#!/bin/sh\n")
            (self._folder / "bin" / "nvidia-smi").chmod(0o755)

    def shows(self, visible: str) -> None:
        self._patch.setenv("CUDA_VISIBLE_DEVICES", visible)


def of_node(local_rank: int, launcher: str = "torchrun") -> Rank:
    return Rank(local_rank, local_rank, 4, 4, "node1", launcher)


@pytest.mark.parametrize(
    ("gpus", "wanted", "rank", "expected"),
    [
        (0, "auto", None, "cpu"),
        (0, "cpu", of_node(3), "cpu"),
        (4, "cpu", of_node(3), "cpu"),
        (4, "auto", None, "cuda:0"),
        (4, "auto", of_node(3), "cuda:3"),
        (4, "cuda", of_node(2), "cuda:2"),
        (4, "cuda:1", None, "cuda:1"),
        (1, "cuda", of_node(3, "srun"), "cuda:0"),  # --gpus-per-task=1
    ],
)
def test_the_device(machine: Machine, gpus: int, wanted: str, rank: Rank | None, expected: str) -> None:
    machine.has_gpus(gpus)
    assert str(choose_device(wanted, rank)) == expected


@pytest.mark.parametrize(
    ("gpus", "wanted", "rank", "message"),
    [
        (0, "cuda", of_node(0), "device cuda is expected"),
        (0, "cuda:0", None, "device cuda:0 is expected"),
        (1, "auto", of_node(1), "local rank 1, but GPUs visible there: 1"),  # all four would use the same one
        (2, "cuda", of_node(3), "local rank 3, but GPUs visible there: 2"),
        (2, "cuda", of_node(3, "srun"), "local rank 3, but GPUs visible there: 2"),
        (4, "cuda:4", None, "cuda:0 to cuda:3"),
        (4, "cuda:1", of_node(1), "name no number"),
        (0, "gpu", None, "use auto, cpu, cuda or cuda:N"),
    ],
)
def test_a_device_that_cannot_be_used(
    machine: Machine, gpus: int, wanted: str, rank: Rank | None, message: str
) -> None:
    machine.has_gpus(gpus)
    with pytest.raises(SetupError, match=message):
        choose_device(wanted, rank)


@pytest.mark.parametrize("kind", ["proc", "nvidia-smi"])
def test_a_driver_without_a_usable_gpu_is_an_error(machine: Machine, kind: str) -> None:
    machine.has_driver(kind)
    for visible in (None, "7", "NoDevFiles"):
        if visible is not None:
            machine.shows(visible)
        with pytest.raises(SetupError, match=r"NVIDIA's driver is installed, but .*cluster.device: cpu"):
            choose_device("auto", of_node(0))
    assert choose_device("cpu").type == "cpu"
    machine.shows("")  # how a user hides all GPUs
    assert choose_device("auto").type == "cpu"
    with pytest.raises(SetupError, match="CUDA_VISIBLE_DEVICES='' names no usable GPU"):
        choose_device("cuda")


def test_two_ranks_on_one_gpu_are_refused() -> None:
    store = dist.HashStore()
    first, second = of_node(0, "srun"), of_node(1, "srun")
    claim_gpu(store, first, "GPU-a")
    claim_gpu(store, first, "GPU-a")
    claim_gpu(store, second, "GPU-b")
    with pytest.raises(SetupError, match="rank 1 on node1 and rank 0 on node1 have the same GPU"):
        claim_gpu(store, second, "GPU-a")


# In a process of its own, since torch keeps the choice: what every reader of the precision sees after it.
READERS = """
import json, sys, torch
from pretrain.distributed.device import choose_matmul_precision
torch.cuda.get_device_capability = lambda device=None: (9, 0)
seen = []
for tf32 in json.loads(sys.argv[1]):
    choose_matmul_precision(torch.device("cuda", 0), tf32=tf32)
    for _ in range(2):  # torch.compile sets again what it has read
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=torch.backends.cudnn.allow_tf32):
            pass
        legacy = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        seen.append([*legacy, torch.get_float32_matmul_precision()])
        if hasattr(torch._C, "_get_fp32_precision_getter"):
            precision = torch._C._get_fp32_precision_getter("cuda", "matmul")
            assert (precision == "tf32") == tf32, precision
            assert (torch.backends.cudnn.conv.fp32_precision == "tf32") == tf32
            torch._C._set_fp32_precision_setter("cuda", "matmul", precision)
print(json.dumps(seen))
"""


def test_every_interface_of_torch_reads_what_was_chosen(command: Commands) -> None:
    choices = [True, False, True]
    done = command.run("python", "-c", READERS, json.dumps(choices), env={"PYTHONPATH": "."}, check=True)
    expected = [[tf32, tf32, "high" if tf32 else "highest"] for tf32 in choices for _ in range(2)]
    assert json.loads(done.stdout) == expected


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_tf32_is_refused_where_the_device_has_none(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla V100")
    with pytest.raises(ConfigError, match="not a GPU" if device == "cpu" else "Tesla V100 has no TensorFloat-32"):
        choose_matmul_precision(torch.device(device), tf32=True)

"""Runs of a sweep that share a machine: each gets GPUs that exist, or the sweep is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipelines.sweep.trials import Sweep, gpus_of_slots
from pretrain.config.schema.jobs import SweepConfig
from pretrain.distributed import device
from pretrain.errors import SetupError


def sweep(parallel: int, ranks: int) -> Sweep:
    settings = SweepConfig(grid={"optim.lr": [0.1]})
    return Sweep("configs/finetune/demo_digits.yaml", None, Path("out"), settings, (), 0, ranks, parallel)


def machine(monkeypatch: pytest.MonkeyPatch, folder: Path, gpus: int, visible: str | None, driver: bool) -> None:
    monkeypatch.setattr(device, "DRIVER", folder if driver else folder / "none")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


@pytest.mark.parametrize(
    ("gpus", "visible", "parallel", "ranks", "expected"),
    [
        (4, None, 2, 2, ["0,1", "2,3"]),
        (3, "5,6,7", 3, 1, ["5", "6", "7"]),
        (8, None, 2, 1, ["0", "1"]),
        (4, None, 1, 4, [None]),  # the run sees all
        (0, None, 3, 1, [None] * 3),  # no GPU and no driver: the CPU
    ],
)
def test_every_slot_has_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpus: int, visible: str | None, parallel: int, ranks: int,
    expected: list[str | None],
) -> None:  # fmt: skip  # many: the columns of a table
    machine(monkeypatch, tmp_path, gpus, visible, driver=gpus > 0)
    assert [slot.get("CUDA_VISIBLE_DEVICES") for slot in gpus_of_slots(sweep(parallel, ranks))] == expected


@pytest.mark.parametrize(
    ("gpus", "visible", "parallel", "ranks", "said"),
    [
        (1, "0", 2, 1, "needs 2 GPUs, but 1 can be used .*use --parallel 1"),  # the second ran on the CPU
        (3, "0,1,2", 4, 1, "needs 4 GPUs, but 3 can be used .*use --parallel 3"),
        (4, None, 16, 1, "needs 16 GPUs, but 4 can be used"),  # numbers up to 15 were given out
        (1, "0,9", 2, 1, "needs 2 GPUs, but 1 can be used"),  # torch sees no GPU 9
        (0, None, 2, 1, "no usable GPU"),
    ],
)
def test_more_than_there_are_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpus: int, visible: str | None, parallel: int, ranks: int,
    said: str,
) -> None:  # fmt: skip  # many: the columns of a table
    machine(monkeypatch, tmp_path, gpus, visible, driver=True)
    with pytest.raises(SetupError, match=said):
        gpus_of_slots(sweep(parallel, ranks))

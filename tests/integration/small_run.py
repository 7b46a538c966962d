"""A real job as a user starts it, small enough for a test: digits, a tiny ViT, a dozen steps."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

from pretrain.telemetry.metrics import read_metrics

PRETRAIN = "configs/pretrain/demo_digits.yaml"
FINETUNE = "configs/finetune/demo_digits.yaml"
BIN = Path(sys.executable).parent
SMALL = [
    "model.variant=mu/2",
    "duration=12 steps",
    "optim.lr=1e-3",
    "optim.schedule.warmup=3 steps",
    "evaluation.every=null",
    "checkpoint.every=4 steps",
    "telemetry.log_every=1",
    "telemetry.tensorboard=false",
    "cluster.num_workers=0",
]


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launcher(kind: str, ranks: int = 2) -> list[str]:
    """The words before the script's name."""
    port = str(free_port())
    return {
        "alone": ["python"],
        "deepspeed": [str(BIN / "deepspeed"), "--num_gpus", str(ranks), "--master_port", port],
        "torchrun": [str(BIN / "torchrun"), "--nproc_per_node", str(ranks), "--master_port", port],
        "accelerate": [
            # --cpu would start one rank, whatever the number
            str(BIN / "accelerate"), "launch", "--multi_gpu", "--num_processes", str(ranks), "--main_process_port", port
        ],
    }[kind]  # fmt: skip


def pretrain(kind: str, folder: Path, *settings: str, ranks: int = 2) -> list[str]:
    """The command line of a small pretraining into ``folder/run``."""
    script = ["pretrain/run.py", "--config", PRETRAIN, *SMALL, f"output_dir={folder}", "name=run"]
    return [*launcher(kind, ranks), *script, *settings]


def curve(run: Path, *names: str) -> dict[int, tuple]:
    """Step → the named numbers, by default loss, gradient norm, learning rate and checksum of the batch."""
    names = names or ("loss", "grad_norm", "lr", "batch_digest")
    return {step: tuple(line[name] for name in names) for step, line in read_metrics(run / "metrics.jsonl").items()}


def verdict(run: Path) -> dict[str, Any]:
    """The run's exit.json."""
    return json.loads((run / "exit.json").read_text())

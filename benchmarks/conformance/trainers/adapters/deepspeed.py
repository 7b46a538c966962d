"""DeepSpeed with ZeRO stage 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import deepspeed
import torch.distributed as dist
from torch.nn.functional import cross_entropy

from benchmarks.conformance.trainers import digits
from benchmarks.conformance.trainers.job import Job, Probe

PACKAGE = "deepspeed"
DOCUMENTATION = {
    "use": "https://www.deepspeed.ai/getting-started/",
    "checkpoints": "https://deepspeed.readthedocs.io/en/latest/model-checkpointing.html",
    "other ranks": "https://www.deepspeed.ai/tutorials/universal-checkpointing/",
}
NOT_OFFERED: dict[str, str] = {}
LAUNCHER = ("deepspeed", "--num_gpus", "2", "--master_port", "{port}", "--module")
NEWEST = ("global_step8/*", "latest")
CONFIG = {
    "train_micro_batch_size_per_gpu": 0,
    "zero_optimization": {"stage": 2},
    "checkpoint": {"load_universal": False},
}


def train(job: Job, probe: Probe) -> None:
    """The loop of "Getting started", with ``save_checkpoint`` and ``load_checkpoint``."""
    gloo_only()
    deepspeed.init_distributed("gloo")
    other = other_ranks(job)
    config = CONFIG | {
        "train_micro_batch_size_per_gpu": digits.GLOBAL_BATCH // job.world,
        "checkpoint": {"load_universal": other},
    }
    model = digits.model()
    engine, _, _, _ = deepspeed.initialize(model=model, optimizer=digits.optimizer(model.parameters()), config=config)
    tag = universal(job) if other else None
    _, client = engine.load_checkpoint(job.folder, tag=tag)
    for step in range(client["step"] + 1 if client else 1, job.steps + 1):
        images, labels = digits.batch(step, job.rank, job.world)
        loss = probe.poisoned(step, cross_entropy(engine(images), labels))
        engine.backward(loss)
        engine.step()
        probe.after(step, loss.item())
        if step % job.save_every == 0:
            engine.save_checkpoint(job.folder, client_state={"step": step})


def gloo_only() -> None:
    """Leaves out the collectives in shared memory, which DeepSpeed would compile at the first start on a CPU."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def other_ranks(job: Job) -> bool:
    """Whether the newest checkpoint has another number of optimizer files than there are ranks."""
    latest = Path(job.folder) / "latest"
    if not latest.exists():
        return False
    return len(list((latest.parent / latest.read_text().strip()).glob("*optim_states.pt"))) not in (0, job.world)


def universal(job: Job) -> str:
    """Converts the newest checkpoint as the tutorial shows; returns its tag."""
    newest = (Path(job.folder) / "latest").read_text().strip()
    tag = f"{newest}_universal"
    if job.rank == 0:
        script = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
        folders = ["--input_folder", f"{job.folder}/{newest}", "--output_folder", f"{job.folder}/{tag}"]
        subprocess.run([*script, *folders, "--inject_missing_state"], check=True)
    dist.barrier()
    return tag

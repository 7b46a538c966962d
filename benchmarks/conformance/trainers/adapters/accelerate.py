"""Accelerate with DDP: without a GPU, its FSDP and DeepSpeed plugins leave each rank on its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from torch.nn.functional import cross_entropy

from benchmarks.conformance.trainers import digits
from benchmarks.conformance.trainers.job import Job, Probe

PACKAGE = "accelerate"
DOCUMENTATION = {
    "use": "https://huggingface.co/docs/accelerate/quicktour",
    "checkpoints": "https://huggingface.co/docs/accelerate/usage_guides/checkpoint",
}
NOT_OFFERED: dict[str, str] = {}
LAUNCHER = ("accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "{port}", "-m")
NEWEST = ("checkpoints/checkpoint_1/*",)


class Step:
    """The number of steps, registered for the checkpoints."""

    def __init__(self) -> None:
        self.done = 0

    def state_dict(self) -> dict[str, Any]:
        """To save."""
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.done = state["done"]


def train(job: Job, probe: Probe) -> None:
    """Prepares, loads the newest of the numbered checkpoints if there is one, and trains."""
    project = ProjectConfiguration(project_dir=job.folder, automatic_checkpoint_naming=True)
    accelerator = Accelerator(cpu=True, project_config=project)
    model = digits.model()
    model, optimizer = accelerator.prepare(model, digits.optimizer(model.parameters()))
    step = Step()
    accelerator.register_for_checkpointing(step)
    saved = list(Path(job.folder).glob("checkpoints/checkpoint_*"))
    if saved:
        accelerator.load_state()
        project.iteration = len(saved)
    while step.done < job.steps:
        images, labels = digits.batch(step.done + 1, job.rank, job.world)
        loss = probe.poisoned(step.done + 1, cross_entropy(model(images), labels))
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        step.done += 1
        probe.after(step.done, loss.item())
        if step.done % job.save_every == 0:
            accelerator.save_state()
    accelerator.end_training()

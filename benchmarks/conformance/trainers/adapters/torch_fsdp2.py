"""PyTorch alone: FSDP2 and Distributed Checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

from benchmarks.conformance.trainers import digits
from benchmarks.conformance.trainers.job import Job, Probe

PACKAGE = "torch"
DOCUMENTATION = {
    "use": "https://docs.pytorch.org/tutorials/intermediate/FSDP_tutorial.html",
    "checkpoints": "https://docs.pytorch.org/tutorials/recipes/distributed_checkpoint_recipe.html",
    "ranks": "https://docs.pytorch.org/docs/stable/elastic/run.html",
}
NOT_OFFERED: dict[str, str] = {}
LAUNCHER = ("{python}", "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "{port}", "-m")
NEWEST = ("step-8/*", "step-8/.metadata")


class AppState(Stateful):
    """Model and optimizer, as in the recipe, with the step."""

    def __init__(self, model: nn.Module, optimizer: Any, step: int = 0) -> None:
        self.model, self.optimizer, self.step = model, optimizer, step

    def state_dict(self) -> dict[str, Any]:
        """The sharded state."""
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optim": optimizer, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Puts a loaded state back."""
        set_state_dict(
            self.model, self.optimizer, model_state_dict=state_dict["model"], optim_state_dict=state_dict["optim"]
        )
        self.step = state_dict["step"]


def train(job: Job, probe: Probe) -> None:
    """The loop of the tutorial; the newest folder with the file that DCP writes last is loaded, as torchtitan does."""
    dist.init_process_group("gloo")
    model, mesh = digits.model(), init_device_mesh("cpu", (job.world,))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    app = AppState(model, digits.optimizer(model.parameters()))
    saved = [path.parent for path in Path(job.folder).glob("step-*/.metadata")]
    if saved:
        dcp.load({"app": app}, checkpoint_id=max(saved, key=lambda path: int(path.name[5:])))
    for step in range(app.step + 1, job.steps + 1):
        images, labels = digits.batch(step, job.rank, job.world)
        loss = probe.poisoned(step, cross_entropy(model(images), labels))
        loss.backward()
        app.optimizer.step()
        app.optimizer.zero_grad()
        probe.after(step, loss.item())
        if step % job.save_every == 0:
            dcp.save({"app": AppState(model, app.optimizer, step)}, checkpoint_id=f"{job.folder}/step-{step}")
    dist.destroy_process_group()

"""Lightning's Trainer with DDP: its strategies that shard need GPUs."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from benchmarks.conformance.trainers import digits
from benchmarks.conformance.trainers.job import Job, Probe

PACKAGE = "lightning"
DOCUMENTATION = {
    "use": "https://lightning.ai/docs/pytorch/stable/starter/introduction.html",
    "checkpoints": "https://lightning.ai/docs/pytorch/stable/common/checkpointing_basic.html",
    "torchrun": "https://lightning.ai/docs/pytorch/stable/clouds/cluster_intermediate_2.html",
}
NOT_OFFERED: dict[str, str] = {}
LAUNCHER = ("{python}", "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "{port}", "-m")
NEWEST = ("last.ckpt",)


class Module(lightning.LightningModule):
    """The model, and its loss on the batch of the step."""

    def __init__(self, job: Job, probe: Probe) -> None:
        super().__init__()
        self.model, self._job, self._probe = digits.model(), job, probe

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One step."""
        del batch, batch_idx
        images, labels = digits.batch(self.global_step + 1, self._job.rank, self._job.world)
        return self._probe.poisoned(self.global_step + 1, cross_entropy(self.model(images), labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return digits.optimizer(self.parameters())


class Losses(Callback):
    """Tells the probe; Lightning calls it before its checkpoints."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After the update."""
        self._probe.after(trainer.global_step, float(outputs["loss"]))


def train(job: Job, probe: Probe) -> None:
    """``fit`` with the newest checkpoint."""
    saves = ModelCheckpoint(dirpath=job.folder, every_n_train_steps=job.save_every, save_last=True)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=job.world,
        strategy="ddp",
        max_steps=job.steps,
        callbacks=[Losses(probe), saves],
        logger=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
    )
    trainer.fit(Module(job, probe), DataLoader(range(1000), batch_size=1), ckpt_path="last")

"""The bytes of all tensor storages that live in a rank at each moment of real training steps."""

from __future__ import annotations

import os

import torch

from pretrain.config.schema.experiment import Experiment
from pretrain.models.families.timm_cost import LiveBytes
from tests.distributed import training


class LiveHere(LiveBytes):
    """Without the meta device, on which DeepSpeed keeps the shapes of what it has flattened."""

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage.device.type != "meta":
            super()._count(storage)


def measure(config: Experiment, kind: str = "deepspeed") -> dict[str, int]:
    """Most bytes alive in each phase of a step, of this rank.

    The first step makes the optimiser's state. Of the two after it the lesser counts: gloo's threads sometimes hold
    what they have reduced for a moment after its wait.
    """
    os.environ["DS_ACCELERATOR"] = "cpu"
    batch = training.global_batch(0, config)
    with LiveHere() as live:
        backend, accumulation = training.make(config, kind)
        objective = training.objective_for(config, backend)
        backend.train(True)
        _, *steps = [_step(live, backend, objective, batch, accumulation) for _ in range(3)]
    return {phase: min(found[phase] for found in steps) for phase in steps[0]}


def _step(live: LiveHere, backend, objective, batch: training.MicroBatch, accumulation: int) -> dict[str, int]:  # type: ignore[no-untyped-def]
    micro, found = training.BATCH // torch.distributed.get_world_size() // accumulation, {}
    for index in range(accumulation):
        part = slice(index * micro, (index + 1) * micro)
        inputs = training.MicroBatch(batch.images[part].clone(), batch.labels[part], None, slots=None)
        with backend.micro_step(boundary=index == accumulation - 1):
            loss = objective(backend.forward, inputs)
            found["forward"] = live.peak = live.live
            backend.backward(loss)
            found["backward"] = max(found.get("backward", 0), live.peak)
        del loss, inputs
    live.peak = live.live
    backend.step(1e-4)
    found["step"] = live.peak
    return found

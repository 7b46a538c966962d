"""The bytes of all tensor storages that live in a rank at each moment of real training steps."""

from __future__ import annotations

import os
import weakref
from typing import Any

import torch

from pretrain.config.schema.experiment import Experiment
from pretrain.models.families.live_bytes import LiveBytes
from tests.distributed import training

NUM_STEPS = 6


class LiveHere(LiveBytes):
    """Without the meta device, on which DeepSpeed keeps the shapes of what it has flattened."""

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage.device.type != "meta":
            super()._count(storage)


class LiveNow(LiveHere):
    """Counts storages by their present size: ``fully_shard`` frees complete weights by resizing their storage to 0."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: weakref.WeakKeyDictionary[torch.UntypedStorage, list[int]] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Looks at all storages before and after the operation."""
        self._look()
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self._look()
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage.device.type != "meta" and storage not in self._sizes:
            size = self._sizes[storage] = [0]
            weakref.finalize(storage, self._gone, size)

    def _look(self) -> None:
        for storage, size in list(self._sizes.items()):
            self.live += storage.nbytes() - size[0]
            size[0] = storage.nbytes()
        self.peak = max(self.peak, self.live)

    def _gone(self, size: list[int]) -> None:
        self.live -= size[0]


def measure(config: Experiment, kind: str = "deepspeed") -> dict[str, int]:
    """Most bytes alive in each phase of a step, of this rank.

    The first step makes the optimiser's state. Of the ones after it the least counts: gloo's threads sometimes hold
    what they have reduced for a moment after its wait, longer on a busy machine.
    """
    os.environ["DS_ACCELERATOR"] = "cpu"
    batch = training.global_batch(0, config)
    with (LiveNow if kind == "fsdp2" else LiveHere)() as live:
        backend, accumulation = training.make(config, kind)
        objective = training.objective_for(config, backend)
        backend.train(True)
        _, *steps = [_step(live, backend, objective, batch, accumulation) for _ in range(1 + NUM_STEPS)]
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

"""Host batches → micro-batches on the device."""

from __future__ import annotations

import functools
from collections.abc import Generator
from contextlib import closing
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pretrain.config.schema.experiment import Experiment
from pretrain.data.batch import Batch
from pretrain.data.on_device.device import to_model_input
from pretrain.data.on_device.erasing import RandomErasing
from pretrain.data.on_device.mixing import Mixing
from pretrain.data.stream import TrainStream
from pretrain.engine.state import TrainState
from pretrain.models.layers.block import drop_path_scales
from pretrain.objectives.protocol import MicroBatch
from pretrain.objectives.targets import dense_targets


class Feeder:
    """Turns host batches into micro-batches: on the device, normalised, erased, mixed, with drop-path scales."""

    def __init__(self, experiment: Experiment, model: nn.Module, stream: TrainStream, device: torch.device) -> None:
        self._experiment, self._stream, self._device = experiment, stream, device
        network: Any = model
        # A network that takes no drop-path masks draws its own.
        self._drop_path = experiment.model.drop_path if experiment.model.family.takes_drop_path else 0.0
        self._depth = network.shape.depth if self._drop_path else 0
        data, seed = experiment.data, experiment.seed
        self.to_images = functools.partial(to_model_input, mean=data.mean, std=data.std)
        erasing, mixing = data.augmentation.random_erasing, data.effective_mixing
        self._erase = None if erasing is None else RandomErasing(erasing, seed)
        self._mix = Mixing(mixing, seed, experiment.global_batch_size) if mixing.active else None

    def __call__(self, state: TrainState) -> Generator[MicroBatch, None, None]:
        """This rank's micro-batches from ``state`` to the end of the run."""
        steps_left = self._experiment.num_steps - state.progress(self._experiment.global_batch_size)
        with closing(self._stream.iterate(state.position, steps_left)) as batches:
            for batch in batches:
                yield self.prepare(batch)

    def prepare(self, batch: Batch) -> MicroBatch:
        """One micro-batch on the device."""
        slots = batch.slots.numpy()
        model, seed = self._experiment.model, self._experiment.seed
        scales = drop_path_scales(slots, self._drop_path, self._depth, seed=seed, shape=model.drop_path_shape)
        moved = batch.to(self._device)
        images, targets = self._augment(moved, slots)
        return MicroBatch(
            images=images,
            labels=moved.labels,
            drop_path=None if scales is None else scales.to(self._device, non_blocking=True),
            targets=targets,
            slots=batch.slots,
            digest=batch.digest(),
            num_bad=len(batch.faults),
        )

    def _augment(self, moved: Batch, slots: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        """Normalised images, erased and mixed, and their targets (unmixed: those of the set, or None).

        Args:
            moved: the micro-batch on the device.
            slots: its slots on the host: erasing and mixing draw from them there, so the device is not waited for.
        """
        images = self.to_images(moved.images)
        if self._erase is not None:
            images = self._erase(images, slots)
        if self._mix is None:
            return images, moved.targets
        return self._mix(images, dense_targets(moved.labels, self._experiment.data.num_classes), slots)

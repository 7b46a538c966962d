"""Host batches → micro-batches on the device."""

from __future__ import annotations

import functools
import math
from collections.abc import Generator
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pretrain.config.schema.experiment import Experiment
from pretrain.data.batch import Batch, to_model_input
from pretrain.data.on_device import Mixing, RandomErasing
from pretrain.data.stream import TrainStream
from pretrain.distributed.device import copied_to
from pretrain.engine.state import TrainState
from pretrain.models.layers.drop_path import drop_path_scales
from pretrain.models.layers.patch_drop import kept_patches
from pretrain.objectives.classification import dense_targets
from pretrain.objectives.protocol import MicroBatch


class Feeder:
    """Turns host batches into micro-batches: on the device, normalised, erased, mixed, with what each image drops."""

    def __init__(self, experiment: Experiment, model: nn.Module, stream: TrainStream, device: torch.device) -> None:
        self._experiment, self._stream, self._device = experiment, stream, device
        network: Any = model
        # A network that takes no drop-path masks draws its own.
        self._drop_path = experiment.model.drop_path if experiment.model.family.takes_drop_path else 0.0
        self._depth = network.shape.depth if self._drop_path else 0
        self._shape_at = network.shape_at if experiment.model.patch_drop else None
        data, seed = experiment.data, experiment.seed
        self.to_images = functools.partial(to_model_input, mean=data.mean, std=data.std)
        erasing, mixing = data.augmentation.random_erasing, data.effective_mixing
        self._erase = None if erasing is None else RandomErasing(erasing, seed)
        self._erase_second = None if erasing is None else RandomErasing(erasing, seed, "erasing_second")
        self._mix = Mixing(mixing, seed, experiment.batches.unit) if mixing.active else None

    def __call__(self, state: TrainState) -> Generator[MicroBatch, None, None]:
        """This rank's micro-batches from ``state`` to the end of the run."""
        step = self._step_of(state)
        with closing(self._stream.iterate(state.position, self._experiment.num_steps - step, step)) as batches:
            for batch in batches:
                yield self.prepare(batch)

    def of_all_ranks(
        self, state: TrainState, num_steps: int, world: int, micro_batch_size: int
    ) -> Generator[MicroBatch, None, None]:
        """The micro-batches of every rank of a job, in each step those of one rank after the other."""
        streams = [self._stream.as_rank(rank, world, micro_batch_size) for rank in range(world)]
        per_step, step = streams[0].samples_per_rank // micro_batch_size, self._step_of(state)
        with ExitStack() as opened:
            batches = [opened.enter_context(closing(one.iterate(state.position, num_steps, step))) for one in streams]
            for _ in range(num_steps):
                for of_rank in batches:
                    for _ in range(per_step):
                        yield self.prepare(next(of_rank))

    def _step_of(self, state: TrainState) -> int:
        """The position on the schedule, which decides the size of the images."""
        return state.progress(self._experiment.batches)

    def name_of(self, sample_id: int) -> str:
        """A sample in words; see ``MixedReader.named``."""
        return self._stream.reader(counted=False).named(sample_id)

    def prepare(self, batch: Batch) -> MicroBatch:
        """One micro-batch on the device."""
        slots = batch.slots.numpy()
        model, seed = self._experiment.model, self._experiment.seed
        scales = drop_path_scales(slots, self._drop_path, self._depth, seed=seed, shape=model.drop_path_shape)
        kept = None
        if self._shape_at is not None:
            kept = kept_patches(slots, self._shape_at(batch.images, batch.patch), seed=seed)
        moved = batch.to(self._device)
        images, targets = self._augment(moved, slots)
        return MicroBatch(
            images=images,
            labels=moved.labels,
            drop_path=None if scales is None else copied_to(self._device, scales),
            targets=targets,
            slots=batch.slots,
            sample_ids=batch.sample_ids,
            digest=batch.digest(),
            num_bad=len(batch.faults),
            kept=None if kept is None else copied_to(self._device, kept),
            grids=moved.grids,
            padding=math.nan if batch.grids is None else self._padding(batch.images, batch.grids),
            second=self._second(moved, slots),
            patch=batch.patch,
        )

    def _padding(self, strips: Tensor, grids: Tensor) -> float:
        """The share of the sequences that is padding, of a batch on the host."""
        num_places = strips.shape[0] * (strips.shape[3] // self._experiment.model.patch)
        return 1 - int(grids.prod(dim=1).sum()) / num_places

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

    def _second(self, moved: Batch, slots: NDArray[np.int64]) -> Tensor | None:
        """The second views, normalised and erased, or None; no objective mixes them."""
        if moved.second is None:
            return None
        images = self.to_images(moved.second)
        return images if self._erase_second is None else self._erase_second(images, slots)

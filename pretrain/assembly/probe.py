"""The probe batch: the loss of a few fixed samples, saved with every checkpoint and compared after a load."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.config.schema.experiment import Experiment
from pretrain.data.images.augment import EVALUATION_PIXELS
from pretrain.data.stream import TrainStream
from pretrain.distributed.collectives import broadcast_object
from pretrain.distributed.rank import Rank
from pretrain.engine.backend import Backend
from pretrain.engine.self_check import FIRST_SAMPLES, Reading
from pretrain.files import digest
from pretrain.objectives.protocol import MicroBatch, Objective


class _Rows(NamedTuple):
    """The probe batch as rank 0 sends it; every row is a real image."""

    images: Tensor
    labels: Tensor
    targets: Tensor | None
    samples: tuple[int, ...]


class Probe:
    """Loss of the training set's first samples, the same on every rank, with dropout off.

    The samples are those that training draws from (less the drop list, of the subset), and a sample that cannot be
    read is replaced as in training. Rank 0 reads them once, and every rank gets its answer.

    Args:
        experiment: the settings.
        stream: the training stream.
        rank: this process.
        device: where the model is.
        backend: its forward pass.
        to_images: uint8 images on the device → normalised floats.
        objective: the training objective.
        say: one line for the user.
    """

    def __init__(
        self,
        experiment: Experiment,
        stream: TrainStream,
        rank: Rank,
        device: torch.device,
        backend: Backend,
        to_images: Callable[[Tensor], Tensor],
        objective: Objective,
        say: Callable[[str], None],
    ) -> None:
        self._stream, self._rank, self._device, self._backend = stream, rank, device, backend
        self._to_images, self._objective, self._say = to_images, objective, say
        self._settings = settings_digest(experiment)
        self._rows: _Rows | None = None
        self._is_read = False

    @torch.no_grad()
    def __call__(self) -> Reading | None:
        """The loss, or None where no sample can be read: that is reported once. Collective: yes."""
        rows = self._read()
        if rows is None:
            return None
        self._backend.train(False)
        inputs = MicroBatch(
            images=self._to_images(rows.images.to(self._device)),
            labels=rows.labels.to(self._device),
            targets=None if rows.targets is None else rows.targets.to(self._device),
            slots=torch.arange(len(rows.samples)),
        )
        loss = float(self._objective(self._backend.forward, inputs))
        self._backend.train(True)
        return Reading(loss, rows.samples, self._settings)

    def _read(self) -> _Rows | None:
        if not self._is_read:
            self._rows = broadcast_object(self._build() if self._rank.is_main else None)
            self._is_read = True
        return self._rows

    def _build(self) -> _Rows | None:
        """Reads the samples; what cannot be read is reported, never raised: peers wait for the answer."""
        try:
            batch, problems = self._stream.first_samples(len(FIRST_SAMPLES))
        except Exception as error:
            self._say(f"warning: checkpoints are saved without a probe batch: {error}")
            return None
        more = f" (and {len(problems) - 1} more like this)" if len(problems) > 1 else ""
        if not len(batch):
            self._say(f"warning: checkpoints are saved without a probe batch: {problems[0]}{more}")
            return None
        if problems:
            self._say(f"warning: probe batch: {problems[0]}{more}")
        return _Rows(batch.images, batch.labels, batch.targets, tuple(batch.sample_ids.tolist()))


def settings_digest(experiment: Experiment) -> str:
    """Names the settings, beside the weights and the samples, that decide the loss of the probe batch."""
    data = experiment.data
    settings = {
        "objective": experiment.objective.model_dump(mode="json"),
        "eval_transform": data.eval_transform.model_dump(mode="json"),
        "pixels": EVALUATION_PIXELS,
        "normalisation": [data.mean, data.std],
        "tf32": experiment.tf32,
    }
    return digest(json.dumps(settings, sort_keys=True).encode())

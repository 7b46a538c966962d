"""Measurements in evaluation mode: the evaluation sets, and the probe batch of checkpoints."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pretrain.config.schema.experiment import Experiment
from pretrain.data.images.augment import EVALUATION_PIXELS
from pretrain.data.stream import TrainStream
from pretrain.distributed.collectives import broadcast_object
from pretrain.engine.backend import Backend
from pretrain.engine.loading import FIRST_SAMPLES, Reading
from pretrain.engine.session import Session
from pretrain.evaluation.context import Context as EvaluationContext
from pretrain.evaluation.context import Interrupted
from pretrain.evaluation.registry import build_evaluators
from pretrain.files import digest
from pretrain.models.metadata import TargetScale
from pretrain.objectives.protocol import MicroBatch, Objective


class Evaluator:
    """Runs the evaluation sets.

    Args:
        experiment: the settings.
        session: this process.
        backend: the model.
        to_images: uint8 images on the device → normalised floats.
        scale: of a regression's targets.
    """

    def __init__(
        self,
        experiment: Experiment,
        session: Session,
        backend: Backend,
        to_images: Callable[[Tensor], Tensor],
        *,
        scale: TargetScale | None = None,
    ) -> None:
        self._experiment, self._backend = experiment, backend
        context = EvaluationContext(experiment, session, backend.model, backend.forward, to_images, scale)
        self._evaluators = build_evaluators(context)

    def __call__(self) -> dict[str, float] | None:
        """``set/metric`` → value over all sets, and ``set_ema/metric`` of the Polyak average. Collective: yes.

        If the optimiser averages the weights itself, its average is evaluated in their place. None where a rank was
        asked to stop during it; all ranks stop at the same batch. The averaged weights use the running statistics of
        the raw weights, as torch's AveragedModel does by default.
        """
        self._backend.statistics.unify()
        try:
            results: dict[str, float] = {}
            for suffix, is_average in self._experiment.optim.evaluated.items():
                with self._backend.averaged() if is_average else contextlib.nullcontext():
                    results |= self._all_sets(suffix)
        except Interrupted:
            return None
        return results

    def _all_sets(self, suffix: str) -> dict[str, float]:
        results = {}
        for name, evaluator in self._evaluators.items():
            results |= {f"{name}{suffix}/{metric}": value for metric, value in evaluator().items()}
        return results


class _Rows(NamedTuple):
    """The probe batch as rank 0 sends it; every row is a real image."""

    images: Tensor
    labels: Tensor
    targets: Tensor | None
    grids: Tensor | None
    samples: tuple[int, ...]


class Probe:
    """Loss of the training set's first samples, the same on every rank, with dropout off.

    It is saved with every checkpoint and compared after a load. The samples are those that training draws from (without
    the drop list, within the subset), and a sample that cannot be read is replaced as in training. Rank 0 reads them
    once and sends them to every rank.

    Args:
        experiment: the settings.
        session: this process.
        stream: the training stream.
        backend: its forward pass.
        to_images: uint8 images on the device → normalised floats.
        objective: the training objective.
    """

    def __init__(
        self,
        experiment: Experiment,
        session: Session,
        stream: TrainStream,
        backend: Backend,
        to_images: Callable[[Tensor], Tensor],
        objective: Objective,
    ) -> None:
        self._session, self._stream, self._backend = session, stream, backend
        self._to_images, self._objective = to_images, objective
        self._settings = settings_digest(experiment)
        self._rows: _Rows | None = None
        self._is_read = False

    @torch.no_grad()
    def __call__(self) -> Reading | None:
        """The loss, or None where no sample can be read: that is reported once. Collective: yes."""
        rows = self._read()
        if rows is None:
            return None
        device = self._session.device
        self._backend.train(False)
        batch = MicroBatch(
            images=self._to_images(rows.images.to(device)),
            labels=rows.labels.to(device),
            targets=None if rows.targets is None else rows.targets.to(device),
            grids=None if rows.grids is None else rows.grids.to(device),
            slots=torch.arange(len(rows.samples)),
        )
        loss = float(self._objective(self._backend.forward, batch))
        self._backend.train(True)
        return Reading(loss, rows.samples, self._settings)

    def _read(self) -> _Rows | None:
        if not self._is_read:
            self._rows = broadcast_object(self._build() if self._session.rank.is_main else None)
            self._is_read = True
        return self._rows

    def _build(self) -> _Rows | None:
        """Reads the samples; an error is reported, never raised, since the other ranks wait for the answer."""
        try:
            batch, problems = self._stream.first_samples(len(FIRST_SAMPLES))
        except Exception as error:
            self._session.say(f"warning: checkpoints are saved without a probe batch: {error}")
            return None
        more = f" (and {len(problems) - 1} more like this)" if len(problems) > 1 else ""
        if not len(batch):
            self._session.say(f"warning: checkpoints are saved without a probe batch: {problems[0]}{more}")
            return None
        if problems:
            self._session.say(f"warning: probe batch: {problems[0]}{more}")
        return _Rows(batch.images, batch.labels, batch.targets, batch.grids, tuple(batch.sample_ids.tolist()))


# The objective's settings as versions before the discriminated union wrote them: every key, also of other objectives.
# They are part of the digest, so that the probe batch of a checkpoint from then is still compared.
_EVERY_OBJECTIVE: dict[str, Any] = {
    "label_smoothing": 0.0,
    "reduction": "sum_classes",
    "binarise": False,
    "teacher": None,
    "distillation": "hard",
    "alpha": 0.5,
    "tau": 1.0,
    "kl_reduction": "mean",
    "corrupted": 0.5,
    "regression": "mse",
    "beta": 1.0,
}


def settings_digest(experiment: Experiment) -> str:
    """A digest of the settings that decide the loss of the probe batch, given the weights and the samples."""
    data, objective = experiment.data, experiment.objective.model_dump(mode="json")
    # A key that those versions did not have, such as class_weights, counts only where it is set.
    known = {key: value for key, value in objective.items() if value is not None or key in _EVERY_OBJECTIVE}
    settings = {
        "objective": _EVERY_OBJECTIVE | known,
        "eval_transform": data.eval_transform.model_dump(mode="json", exclude_none=True),  # max_tokens is newer
        "pixels": EVALUATION_PIXELS,
        "normalisation": [data.mean, data.std],
        "tf32": experiment.tf32,
    }
    return digest(json.dumps(settings, sort_keys=True).encode())

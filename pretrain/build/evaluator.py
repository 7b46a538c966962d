"""The evaluation sets of a run, and the probe batch that a checkpoint is verified with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pretrain.config.schema.experiment import Experiment
from pretrain.data.batch import Batch
from pretrain.data.stream import EvalStream
from pretrain.distributed.rank import Rank
from pretrain.engine.backend import Backend
from pretrain.engine.stop import StopRequest
from pretrain.evaluation.context import Context as EvaluationContext
from pretrain.evaluation.interrupt import Interrupted
from pretrain.evaluation.registry import build_evaluators
from pretrain.models.target_scale import TargetScale
from pretrain.objectives.protocol import Inputs

PROBE_SAMPLES = 8


class Evaluator:
    """Runs the evaluation sets, and the probe batch that a checkpoint is verified with."""

    def __init__(
        self,
        experiment: Experiment,
        rank: Rank,
        device: torch.device,
        backend: Backend,
        to_images: Callable[[Tensor], Tensor],
        stop_request: StopRequest,
        say: Callable[[str], None],
        *,
        scale: TargetScale | None = None,
    ) -> None:
        self._experiment, self._device = experiment, device
        self._backend, self._to_images = backend, to_images
        context = EvaluationContext(
            experiment,
            rank.rank,
            rank.world,
            device,
            backend.model,
            backend.forward,
            to_images,
            say,
            wants_stop=lambda: stop_request.check() is not None,
            scale=scale,
        )
        self._evaluators = build_evaluators(context)
        self._probe: Batch | None = None

    def __call__(self) -> dict[str, float] | None:
        """``set/metric`` → value over all sets, and ``set_ema/metric`` of the Polyak average. Collective: yes.

        None where a rank was asked to stop in between; all ranks leave at the same batch. The average of the weights
        uses the running statistics of the weights themselves, as torch's AveragedModel.
        """
        self._backend.statistics.unify()
        try:
            results = self._all_sets("")
            if self._experiment.optim.ema_decay is not None:
                with self._backend.averaged():
                    results |= self._all_sets("_ema")
        except Interrupted:
            return None
        return results

    def _all_sets(self, suffix: str) -> dict[str, float]:
        results = {}
        for name, evaluator in self._evaluators.items():
            results |= {f"{name}{suffix}/{metric}": value for metric, value in evaluator().items()}
        return results

    @torch.no_grad()
    def probe(self, objective: Callable[..., Tensor]) -> float:
        """Loss of the training set's first samples, the same on every rank, with dropout off. Collective: yes."""
        if self._probe is None:
            shards = self._experiment.data.sources[0].shards
            first = np.arange(min(PROBE_SAMPLES, self._experiment.data.sources[0].num_samples))
            self._probe = next(iter(EvalStream(self._experiment, shards, 0, 1, PROBE_SAMPLES, sample_ids=first)))
        batch = self._probe.to(self._device)
        self._backend.train(False)
        slots = torch.arange(len(batch.images))
        inputs = Inputs(images=self._to_images(batch.images), labels=batch.labels, targets=batch.targets, slots=slots)
        loss = float(objective(self._backend.forward, inputs))
        self._backend.train(True)
        return loss

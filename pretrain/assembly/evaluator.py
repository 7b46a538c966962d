"""The evaluation sets of a run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pretrain.config.schema.experiment import Experiment
from pretrain.distributed.rank import Rank
from pretrain.engine.backend import Backend
from pretrain.engine.stop import StopRequest
from pretrain.evaluation.context import Context as EvaluationContext
from pretrain.evaluation.interrupt import Interrupted
from pretrain.evaluation.registry import build_evaluators
from pretrain.models.metadata import TargetScale


class Evaluator:
    """Runs the evaluation sets."""

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
        self._experiment, self._backend = experiment, backend
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

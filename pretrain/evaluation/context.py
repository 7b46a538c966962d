"""The parts that all evaluators share: a model in its session, sets that stop on request, the pass over a set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from pretrain.config.schema.evaluation import EvaluationSetConfig
from pretrain.config.schema.experiment import Experiment
from pretrain.data.batch import Batch
from pretrain.data.stream import EvalRequest, EvalStream
from pretrain.distributed.collectives import is_distributed
from pretrain.engine.session import Session, StopRequest
from pretrain.models.metadata import TargetScale

if TYPE_CHECKING:
    from typing_extensions import Self


class Interrupted(Exception):
    """A rank was asked to stop. Not an error."""


class InterruptibleStream(EvalStream):
    """A rank's share of a set that ends early, on all ranks together, when one of them was asked to stop.

    Args:
        stop_request: of this rank.
        device: of the model.
    """

    def __init__(self, *args: Any, stop_request: StopRequest, device: torch.device, **options: Any) -> None:
        super().__init__(*args, **options)
        self._stop_request, self._device = stop_request, device

    def __iter__(self) -> Iterator[Batch]:
        """The batches, until a rank was asked to stop.

        The request is summed over the ranks while a batch is evaluated and read before the next one, so no rank waits
        for the batch that it has just begun.

        Collective: yes; every rank has the same number of batches.

        Raises:
            Interrupted: on every rank, at most one batch after the request.
        """
        wanted, pending = torch.zeros((), device=self._device), None
        for batch in super().__iter__():
            self._leave_if(wanted, pending)
            wanted = torch.full((), float(self._stop_request.check() is not None), device=self._device)
            pending = dist.all_reduce(wanted, async_op=True) if is_distributed() else None
            yield batch
        self._leave_if(wanted, pending)

    def _leave_if(self, wanted: torch.Tensor, pending: Any) -> None:
        if pending is not None:
            pending.wait()
        if wanted.item():
            raise Interrupted


@dataclass(frozen=True)
class Context:
    """A model to evaluate, in the session of its run.

    Attributes:
        experiment: its model's size, its transforms and its evaluation settings.
        session: this process; its request to stop is checked between batches.
        model: the module; features are what its last layers receive.
        forward: normalised images, and options of a batch → logits (B, K); calls ``model``.
        to_images: uint8 images on the device → normalised floats.
        scale: of a regression's targets; None elsewhere.
    """

    experiment: Experiment
    session: Session
    model: nn.Module
    forward: Callable[..., Tensor]
    to_images: Callable[[Tensor], Tensor]
    scale: TargetScale | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.session.device

    def stream(
        self, config: EvaluationSetConfig, shards: str, sample_ids: NDArray[np.int64] | None = None
    ) -> EvalStream:
        """This rank's share of a set, or of some of its samples.

        Raises:
            DataError: the shards are missing, or labelled otherwise than the training set where that matters.
        """
        transform = config.transform_or(self.experiment.data.eval_transform)
        return InterruptibleStream(
            self.experiment,
            shards,
            self.session.rank.rank,
            self.session.rank.world,
            self.experiment.evaluation.micro_batch_size,
            EvalRequest(sample_ids, transform, config.has_own_classes, config.kind),
            stop_request=self.session.stop_request,
            device=self.device,
        )

    def logits(self, batch: Batch) -> Tensor:
        """Logits (B, K) of a batch on the device. Collective: at ZeRO-3."""
        return self.forward(self.to_images(batch.images), **batch.options)


class Evaluator(ABC):
    """A measurement of a model on one set."""

    @classmethod
    @abstractmethod
    def in_run(cls, config: EvaluationSetConfig, context: Context) -> Self:
        """The evaluator of a set inside a run.

        Raises:
            DataError: the set is missing, damaged, or not what its kind needs.
        """

    @abstractmethod
    def __call__(self) -> dict[str, float]:
        """Registered metric → value, the same on every rank. Collective: yes."""


class OnLogits(Evaluator):
    """The steps that all evaluators of logits share: one set, each image once over all ranks.

    Args:
        config: the set.
        context: the model.

    Raises:
        DataError: see ``Context.stream``.
    """

    def __init__(self, config: EvaluationSetConfig, context: Context) -> None:
        self.context, self.shards = context, config.shards
        self.stream = context.stream(config, config.shards)

    @classmethod
    def in_run(cls, config: EvaluationSetConfig, context: Context) -> Self:
        """See ``Evaluator``."""
        return cls(config, context)

    def prepared(self, batch: Batch) -> Batch:
        """The batch on the host before it is used, such as with other labels."""
        return batch

    def answers(self) -> Iterator[tuple[Batch, Tensor]]:
        """(batch on the device, its logits), every rank the same number of batches. Collective: yes."""
        for batch in self.stream:
            moved = self.prepared(batch).to(self.context.device)
            yield moved, self.context.logits(moved)

"""Reruns a step of a run in this process, with the micro-batches of all of its ranks.

The trainer is the run's own, for one rank whose accumulated micro-batches are those of all ranks, one rank after the
other. Losses then agree up to rounding: sums are formed in another order. Nothing is written to the run folder.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from pipelines.replay.finite import Finding, Watch, in_loss, in_weights
from pipelines.replay.origin import Origin
from pretrain.assembly.feeder import Feeder
from pretrain.assembly.trainer import build_trainer, reseed
from pretrain.config.loader import Resolved
from pretrain.distributed import startup
from pretrain.distributed.rank import Rank
from pretrain.engine.boundary import StepClock
from pretrain.engine.capture import weights_only
from pretrain.engine.run_folder import RunFolder
from pretrain.engine.session import Session
from pretrain.engine.slices import SliceReader, load_into
from pretrain.engine.state import TrainState
from pretrain.objectives.protocol import MicroBatch
from pretrain.telemetry.console import Reporter


@dataclass(frozen=True)
class Replayed:
    """The result of a replay.

    Attributes:
        begun_at: steps done before the replay.
        losses: step → loss, of the steps on the way and of the last.
        grad_norm: of the last step; NaN if its forward pass is not finite, since there is no backward pass then.
        batch_digest: checksum of the last step's batch.
        finding: the first tensor that is not finite; None: all are.
        rank, micro_step: where it was found; None: in the weights, or nowhere.
        samples: the samples in question, in words.
    """

    begun_at: int
    losses: dict[int, float]
    grad_norm: float
    batch_digest: int
    finding: Finding | None
    rank: int | None = None
    micro_step: int | None = None
    samples: tuple[str, ...] = ()


class Rerun:
    """One replay.

    Args:
        origin: where it begins.
        device: as for ``choose_device``.
        scratch: an empty folder for what a run writes.
    """

    def __init__(self, origin: Origin, device: str, scratch: Path) -> None:
        self._origin, self._layout = origin, origin.layout
        experiment = origin.resolved.experiment
        ranks = self._layout.world
        self._micro_batch_size = experiment.global_batch_size // ranks // self._layout.accumulation_steps
        self._resolved = _for_one_process(origin.resolved, self._micro_batch_size)
        rank = Rank(0, 0, 1, 1, "replay", "alone")
        chosen = startup.start(rank, timeout_s=experiment.cluster.collective_timeout_s, device=device)
        session = replace(Session.of(rank, chosen, RunFolder(scratch)), reporter=Reporter(False))
        kind = self._layout.backend
        self._trainer = build_trainer(self._resolved, session, kind=kind, head="keep", start=origin.start)
        self._trainer.seed_step = self._seed_step
        self._feeder = cast(Feeder, self._trainer.batches)

    def __call__(self, step: int) -> Replayed:
        """Trains up to ``step``, whose tensors are examined."""
        trainer, begun = self._trainer, self._load()
        state, losses = begun, {}
        with closing(self._batches(state, step - state.step)) as batches:
            trainer.backend.train(True)
            clock = StepClock(trainer.session.device)
            while state.step < step - 1:
                state, _, _, boundary = trainer.step(state, batches, clock)
                losses[state.step] = boundary.loss
            drawn = [next(batches) for _ in range(trainer.cadence.accumulation_steps)]
        return self._examine(state, drawn, begun.step, losses)

    def _load(self) -> TrainState:
        origin, trainer = self._origin, self._trainer
        if origin.state is not None and origin.weights is not None:
            reader = SliceReader(origin.weights, range(self._layout.world))
            load_into(weights_only(trainer.backend.slices()), reader)
            trainer.backend.finish_load(origin.state.num_updates)
            return origin.state
        if origin.start is None:
            return TrainState()
        return trainer.checkpointer.load(origin.start.path, origin.start.marker)

    def _batches(self, state: TrainState, num_steps: int) -> Generator[MicroBatch, None, None]:
        return self._feeder.of_all_ranks(state, num_steps, self._layout.world, self._micro_batch_size)

    def _seed_step(self, step: int, index: int) -> None:
        rank, micro_step = divmod(index, self._layout.accumulation_steps)
        reseed(self._resolved.experiment, step, micro_step, rank)

    def _examine(self, state: TrainState, drawn: list[MicroBatch], begun_at: int, losses: dict[int, float]) -> Replayed:
        """Forward and backward of one step under watch, until something is not finite."""
        trainer, backend = self._trainer, self._trainer.backend
        digest = sum(batch.digest for batch in drawn)
        watch, place, norm = Watch(backend.model), None, math.nan
        watch.found = in_weights(backend.slices())
        total = torch.zeros((), device=trainer.session.device)
        for index, batch in enumerate(drawn):
            before = watch.found
            self._seed_step(state.step, index)
            with watch.passes(len(batch.images)), backend.micro_step(boundary=index == len(drawn) - 1):
                loss = trainer.objective(backend.forward, batch)
                if torch.isfinite(loss.detach()) and watch.found is None:
                    backend.backward(loss)
            total += loss.detach()
            if watch.found is None:
                watch.found = in_loss(loss, trainer.objective, backend.forward, batch)
            place = index if before is None and watch.found is not None else place
        if watch.found is None:
            norm = backend.step(trainer.schedule(state)).grad_norm
        losses[state.step + 1] = float(total) / len(drawn)
        place_of = (None, None) if place is None else divmod(place, self._layout.accumulation_steps)
        samples = () if place is None or watch.found is None else self._named(drawn[place], watch.found.rows)
        return Replayed(begun_at, losses, norm, digest, watch.found, *place_of, samples)

    def _named(self, batch: MicroBatch, rows: tuple[int, ...]) -> tuple[str, ...]:
        assert batch.sample_ids is not None
        ids: list[Any] = batch.sample_ids.tolist()
        return tuple(self._feeder.name_of(ids[row]) for row in rows)


def _for_one_process(resolved: Resolved, micro_batch_size: int) -> Resolved:
    """The settings without what only a job needs: compilation, data processes, copies, evaluation sets, sinks."""
    experiment = resolved.experiment
    cluster = {"micro_batch_size": micro_batch_size, "num_devices": "auto", "compile": False, "num_workers": 0}
    changed = {
        "cluster": experiment.cluster.model_copy(update=cluster),
        "checkpoint": experiment.checkpoint.model_copy(update={"mirror": None}),
        "telemetry": experiment.telemetry.model_copy(update={"tensorboard": False, "wandb": None}),
        "evaluation": experiment.evaluation.model_copy(update={"sets": {}}),
    }
    return replace(resolved, experiment=experiment.model_copy(update=changed))

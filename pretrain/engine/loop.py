"""The training loop, and what it is made of. It knows no backend, no model and no data set."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.distributed.collectives import is_distributed
from pretrain.distributed.rank import Rank
from pretrain.distributed.watchdog import Watchdog
from pretrain.engine.backend import Backend, Update, square_sum
from pretrain.engine.checkpoint import Checkpointer
from pretrain.engine.clock import StepClock
from pretrain.engine.rollback import roll_back
from pretrain.engine.run_folder import COMPLETE, FATAL, REQUEUE, RunFolder, Verdict
from pretrain.engine.state import TrainState
from pretrain.engine.stop import StopRequest
from pretrain.objectives.protocol import MicroBatch, Objective
from pretrain.telemetry.memory import memory_bytes
from pretrain.telemetry.telemetry import OwnTimes, Telemetry

UNSAID = ("num_samples", "num_classes", "_std")  # figures of an evaluation that are written but not printed


class Tally(Protocol):
    """What the loop sees of the counts that a rank's data processes keep."""

    def totals(self) -> list[float]:
        """This rank's counts since the start; as many on every rank."""
        ...

    def figures(self, totals: Sequence[float]) -> dict[str, float]:
        """Metrics of the sums over all ranks."""
        ...


@dataclass
class Boundary:
    """What all ranks agree on at the end of a step, after one collective and one read by the host.

    ``times`` has one entry per rank; memory (bytes), weight norm and the counts of data processes (sums over ranks) are
    measured where a line is due, else None.
    """

    loss: float
    batch_digest: int
    bad_samples: int
    stop: bool
    lost: bool
    saving: list[float]
    times: OwnTimes
    memory_bytes: float | None
    weight_norm: float | None
    counts: list[float] | None = None


@dataclass
class Trainer:
    """Everything that a run consists of, built and connected.

    Attributes:
        objective: (forward, micro-batch) → its mean loss.
        batches: position → the micro-batches of this rank from there on, without end.
        schedule: state → learning rate of its next update.
        evaluate: → metrics of all evaluation sets, or None where a wish to stop came in between. Collective.
        seed_step: (step, micro_step) → reseeds element dropout.
        tally: what was read and fetched.
        num_steps: of the whole schedule.
        evaluate_every, save_every: steps between two, or None.
        max_consecutive_skips: so many skipped updates in a row, and the run is rolled back.
        max_rollbacks: after so many the run ends.
    """

    rank: Rank
    backend: Backend
    objective: Objective
    folder: RunFolder
    batches: Callable[[TrainState], Generator[MicroBatch, None, None]]
    schedule: Callable[[TrainState], float]
    evaluate: Callable[[], dict[str, float] | None]
    seed_step: Callable[[int, int], None]
    tally: Tally
    checkpointer: Checkpointer
    telemetry: Telemetry
    stop_request: StopRequest
    device: torch.device
    watchdog: Watchdog
    num_steps: int
    global_batch_size: int
    accumulation_steps: int
    evaluate_every: int | None
    save_every: int | None
    max_consecutive_skips: int
    max_rollbacks: int
    clock: StepClock = field(init=False)

    def last_step(self, state: TrainState) -> int:
        """The step at which the run is done: ``num_steps``, unless the batch has changed on the way."""
        return state.step + self.num_steps - state.progress(self.global_batch_size)

    def fit(self, state: TrainState) -> Verdict:
        """Trains from ``state`` to the end, or until a stop; every rank returns the same verdict. Collective: yes."""
        batches, last, bad_samples = self.batches(state), self.last_step(state), 0
        self.backend.train(True)
        self.clock = StepClock(self.device)
        while state.step < last:
            lr = self.schedule(state)
            loss, record = self.accumulate(state, batches)
            update = self.backend.step(lr)
            state = state.advance(batch_size=self.global_batch_size, applied=update.applied)
            boundary = self.meet(loss, record, measure=self.telemetry.is_due(state.step))
            bad_samples += boundary.bad_samples
            self.report(state, lr, update, boundary, bad_samples)
            if boundary.lost:
                self.folder.raise_if_lost()
            self.checkpointer.advance(boundary.saving)
            if state.skipped_in_a_row >= self.max_consecutive_skips:
                self.watchdog.at("load", state.step)
                rolled = roll_back(self.checkpointer, state, self.max_rollbacks, self.folder, self.telemetry)
                if isinstance(rolled, Verdict):
                    return rolled
                batches.close()
                state, batches = rolled, self.batches(rolled)
                continue
            stop, best = boundary.stop, False
            if self.evaluate_every and state.step % self.evaluate_every == 0 and state.step < last and not stop:
                stop, best = self.run_evaluation(state)
            due = self.save_every and state.step % self.save_every == 0 and not state.skipped_in_a_row
            if stop or best or due or state.step == last:
                self.save(state)
            if stop and state.step < last:
                return self._stopped(state)
        return self._finished(state)

    def accumulate(self, state: TrainState, batches: Iterator[MicroBatch]) -> tuple[Tensor, list[float]]:
        """Forward and backward over the micro-batches of one step.

        Returns:
            the mean loss on the device, and [batch digest, bad samples] of this rank.
        """
        digest, num_bad = 0, 0
        total = torch.zeros((), device=self.device)
        for micro_step in range(self.accumulation_steps):
            self.watchdog.at("data", state.step)
            with self.clock.waiting():
                batch = next(batches)
            self.watchdog.at("step", state.step)
            digest, num_bad = digest + batch.digest, num_bad + batch.num_bad
            self.seed_step(state.step, micro_step)
            with self.backend.micro_step(boundary=micro_step == self.accumulation_steps - 1):
                with self.clock.forward():
                    loss = self.objective(self.backend.forward, batch)
                self.backend.backward(loss)
            total += loss.detach()
        return total / self.accumulation_steps, [digest, num_bad]

    def meet(self, loss: Tensor, record: list[float], *, measure: bool) -> Boundary:
        """The one collective and the one host read at the end of a step; ``measure`` adds what costs. Collective."""
        memory = memory_bytes(self.device) if measure else 0
        wishes = [float(self.stop_request.check() is not None), float(self.folder.lost is not None)]
        wishes.append(float(self.checkpointer.progress))
        weights = square_sum(self.backend.slices()) if measure else torch.zeros((), dtype=torch.float64)
        counts = self.tally.totals() if measure else []
        numbers = [*record, *wishes, *self.clock.take(), float(memory), *counts]
        own = torch.tensor(numbers, dtype=torch.float64).to(self.device)
        own = torch.cat([loss.double().view(1), own, weights.to(self.device).view(1)])
        rows = [own]
        if is_distributed():
            rows = [torch.empty_like(own) for _ in range(dist.get_world_size())]
            dist.all_gather(rows, own)
        columns = torch.stack(rows).T.tolist()
        losses, digests, bad, stop, lost, saving, waited, forward, memories, *counted, squares = columns
        return Boundary(
            loss=sum(losses) / len(losses),
            batch_digest=int(sum(digests)),
            bad_samples=int(sum(bad)),
            stop=any(stop),
            lost=any(lost),
            saving=saving,
            times=OwnTimes(waited, forward),
            memory_bytes=max(memories) if measure else None,
            weight_norm=math.sqrt(sum(squares)) if measure else None,
            counts=[sum(ranks) for ranks in counted] if measure else None,
        )

    def report(self, state: TrainState, lr: float, update: Update, boundary: Boundary, bad_samples: int) -> None:
        """One step's line; a skipped update is always said."""
        values = {
            "loss": boundary.loss,
            "lr": lr,
            "grad_norm": update.grad_norm,
            "skipped_updates": state.step - state.num_updates,
            "bad_samples": bad_samples,
            "batch_digest": boundary.batch_digest,
        }
        if boundary.weight_norm is not None and boundary.memory_bytes is not None:
            values |= {"weight_norm": boundary.weight_norm, "memory_gib": boundary.memory_bytes / 2**30}
        if boundary.counts is not None:
            values |= self.tally.figures(boundary.counts)
        self.telemetry.step(state.step, state.position, values, boundary.times)
        if not update.applied:
            self.telemetry.reporter.say(
                f"step {state.step}: loss {boundary.loss} with gradient norm {update.grad_norm}: update skipped on all "
                f"ranks ({state.skipped_in_a_row} in a row)"
            )

    def run_evaluation(self, state: TrainState) -> tuple[bool, bool]:
        """Measures accuracy with dropout off, after the save in flight, which an error here must not lose.

        Collective: yes.

        Returns:
            whether a wish to stop cut it short, and whether these weights are the best so far (``keep_best``).
        """
        self.watchdog.at("save", state.step)
        self.checkpointer.wait()
        started = time.monotonic()
        self.watchdog.at("evaluate", state.step)
        self.backend.train(False)
        values = self.evaluate()
        self.backend.train(True)
        if values is None:
            self.telemetry.reporter.say(f"step {state.step}: the evaluation was left for a wish to stop")
            return True, False
        if values:
            self.telemetry.event("eval", state.step, {**values, "seconds": time.monotonic() - started})
            text = "  ".join(f"{name} {value:.4f}" for name, value in values.items() if not name.endswith(UNSAID))
            self.telemetry.reporter.say(f"step {state.step}: {text}")
        return False, self.checkpointer.evaluated(state.step, values)

    def save(self, state: TrainState) -> None:
        """Begins a checkpoint; its event says how long the training stood still. Collective: yes."""
        started = time.monotonic()
        self.watchdog.at("save", state.step)
        self.checkpointer.start(state)
        self.backend.train(True)
        self.telemetry.event("save", state.step, {"seconds": time.monotonic() - started})

    def _stopped(self, state: TrainState) -> Verdict:
        """The verdict of a run that was asked to stop; the checkpoint is on the disk. Collective: yes."""
        self.checkpointer.wait()
        self.folder.raise_if_lost()
        reason = f"stopped on request ({self.stop_request.reason or 'by a peer'})"
        if self.checkpointer.failure is not None:
            reason += f"; its checkpoint failed, an older one is the newest: {self.checkpointer.failure}"
        return Verdict(REQUEUE, reason, state.step)

    def _finished(self, state: TrainState) -> Verdict:
        """The last evaluation and the verdict. Collective: yes."""
        cut_short, _ = self.run_evaluation(state)
        self.folder.raise_if_lost()
        if self.checkpointer.failure is not None:
            return Verdict(FATAL, f"all steps done, but they are not saved: {self.checkpointer.failure}", state.step)
        if cut_short:
            return self._stopped(state)
        return Verdict(COMPLETE, "all steps done", state.step)

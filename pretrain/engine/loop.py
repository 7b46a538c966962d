"""The training loop, independent of backend, model and data set."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from pretrain.engine.backend import Backend, Update, square_sum
from pretrain.engine.boundary import Boundary, RankReport, StepClock, memory_bytes
from pretrain.engine.checkpoint import Checkpointer
from pretrain.engine.rollback import Guard, roll_back
from pretrain.engine.run_folder import COMPLETE, FATAL, REQUEUE, Verdict
from pretrain.engine.session import Session
from pretrain.engine.state import Cadence, TrainState
from pretrain.objectives.protocol import MicroBatch, Objective
from pretrain.telemetry.telemetry import Telemetry

UNPRINTED = ("num_samples", "num_classes", "_std")  # evaluation values that are written but not printed


class Tally(Protocol):
    """The counts of a rank's data processes, as seen by the loop."""

    def totals(self) -> list[float]:
        """This rank's counts since the start; equally many on every rank."""
        ...

    def figures(self, totals: Sequence[float]) -> dict[str, float]:
        """Metrics from the counts summed over all ranks."""
        ...


@dataclass
class Trainer:
    """All parts of a run, built and connected.

    Attributes:
        session: this process.
        backend: the model that is trained.
        objective: (forward, micro-batch) → its mean loss.
        batches: state → this rank's micro-batches from that state on, as an infinite iterator.
        schedule: state → learning rate of its next update.
        evaluate: → metrics of all evaluation sets, or None if a request to stop interrupted it. Collective.
        seed_step: (step, micro_step) → reseeds element dropout.
        tally: bytes read and fetched by the data processes.
        checkpointer: saves and loads.
        telemetry: receives the metrics of each step.
        cadence: length, batch size, and what is due when.
        guard: handling of repeatedly failing updates.
    """

    session: Session
    backend: Backend
    objective: Objective
    batches: Callable[[TrainState], Generator[MicroBatch, None, None]]
    schedule: Callable[[TrainState], float]
    evaluate: Callable[[], dict[str, float] | None]
    seed_step: Callable[[int, int], None]
    tally: Tally
    checkpointer: Checkpointer
    telemetry: Telemetry
    cadence: Cadence
    guard: Guard

    def fit(self, state: TrainState) -> Verdict:
        """Trains from ``state`` to the end, or until a stop; every rank returns the same verdict. Collective: yes."""
        cadence, batches, clock = self.cadence, self.batches(state), StepClock(self.session.device)
        last, bad_samples = cadence.last_step(state), 0
        self.backend.train(True)
        while state.step < last:
            lr = self.schedule(state)
            own = self.accumulate(state, batches, clock)
            update = self.backend.step(lr)
            state = state.advance(batch_size=cadence.global_batch_size, applied=update.applied)
            boundary = self.meet(own, measure=self.telemetry.is_due(state.step))
            bad_samples += boundary.bad_samples
            self.report(state, lr, update, boundary, bad_samples)
            if boundary.lost:
                self.session.folder.raise_if_lost()
            self.checkpointer.advance(boundary.saving)
            if state.skipped_in_a_row >= self.guard.max_consecutive_skips:
                rolled = roll_back(self.checkpointer, state, self.guard, self.telemetry)
                if isinstance(rolled, Verdict):
                    return rolled
                batches.close()
                state, batches = rolled, self.batches(rolled)
                continue
            stop, best = boundary.stop, False
            if cadence.evaluates_at(state.step) and state.step < last and not stop:
                stop, best = self.run_evaluation(state)
            due = cadence.saves_at(state.step) and not state.skipped_in_a_row  # skipped: a rollback may come
            if stop or best or due or state.step == last:
                self.save(state)
            if stop and state.step < last:
                return self._stopped(state)
        return self._finished(state)

    def accumulate(self, state: TrainState, batches: Iterator[MicroBatch], clock: StepClock) -> RankReport:
        """Forward and backward over the micro-batches of one step.

        Returns:
            the rank's report so far: its loss (still on the device), its batches and its seconds.
        """
        watchdog, steps = self.session.watchdog, self.cadence.accumulation_steps
        digest, num_bad = 0, 0
        total = torch.zeros((), device=self.session.device)
        for micro_step in range(steps):
            watchdog.at("data", state.step)
            with clock.waiting():
                batch = next(batches)
            watchdog.at("step", state.step)
            digest, num_bad = digest + batch.digest, num_bad + batch.num_bad
            self.seed_step(state.step, micro_step)
            with self.backend.micro_step(boundary=micro_step == steps - 1):
                with clock.forward():
                    loss = self.objective(self.backend.forward, batch)
                self.backend.backward(loss)
            total += loss.detach()
        waited_s, forward_s = clock.take()
        return RankReport(total / steps, digest, num_bad, waited_s, forward_s)

    def meet(self, own: RankReport, *, measure: bool) -> Boundary:
        """The single collective and host read at the end of a step. Collective: yes.

        Args:
            own: this rank's report of the step.
            measure: include memory, weight norm and data-process counts, which are not free.
        """
        session = self.session
        own = replace(
            own,
            wants_stop=session.stop_request.check() is not None,
            has_lost_folder=session.folder.lost is not None,
            saving=self.checkpointer.progress,
        )
        if measure:
            own = replace(
                own,
                memory_bytes=memory_bytes(session.device),
                square_sum=square_sum(self.backend.slices()),
                counts=tuple(self.tally.totals()),
            )
        return Boundary.of(own.gathered(session.device), measured=measure)

    def report(self, state: TrainState, lr: float, update: Update, boundary: Boundary, bad_samples: int) -> None:
        """Prints one step's line; a skipped update is always printed."""
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
            self.session.say(
                f"step {state.step}: loss {boundary.loss} with gradient norm {update.grad_norm}: update skipped on all "
                f"ranks ({state.skipped_in_a_row} in a row)"
            )

    def run_evaluation(self, state: TrainState) -> tuple[bool, bool]:
        """Evaluates with dropout off. First finishes the save in flight, so that an error here cannot lose it.

        Collective: yes.

        Returns:
            whether a request to stop interrupted it, and whether these weights are the best so far (``keep_best``).
        """
        self.session.watchdog.at("save", state.step)
        self.checkpointer.finish_save()
        started = time.monotonic()
        self.session.watchdog.at("evaluate", state.step)
        self.backend.train(False)
        values = self.evaluate()
        self.backend.train(True)
        if values is None:
            self.session.say(f"step {state.step}: the evaluation was interrupted by a request to stop")
            return True, False
        if values:
            self.telemetry.event("eval", state.step, {**values, "seconds": time.monotonic() - started})
            text = "  ".join(f"{name} {value:.4f}" for name, value in values.items() if not name.endswith(UNPRINTED))
            self.session.say(f"step {state.step}: {text}")
        return False, self.checkpointer.evaluated(state.step, values)

    def save(self, state: TrainState) -> None:
        """Begins a checkpoint; its event records how long the training was paused. Collective: yes."""
        started = time.monotonic()
        self.session.watchdog.at("save", state.step)
        self.checkpointer.begin_save(state)
        self.backend.train(True)
        self.telemetry.event("save", state.step, {"seconds": time.monotonic() - started})

    def _stopped(self, state: TrainState) -> Verdict:
        """The verdict of a run that was asked to stop, with its checkpoint on disk. Collective: yes."""
        self.checkpointer.finish_save()
        self.session.folder.raise_if_lost()
        reason = f"stopped on request ({self.session.stop_request.reason or 'by a peer'})"
        if self.checkpointer.failure is not None:
            reason += f"; its checkpoint failed, an older one is the newest: {self.checkpointer.failure}"
        return Verdict(REQUEUE, reason, state.step)

    def _finished(self, state: TrainState) -> Verdict:
        """Runs the last evaluation and returns the verdict. Collective: yes."""
        cut_short, _ = self.run_evaluation(state)
        self.session.folder.raise_if_lost()
        if self.checkpointer.failure is not None:
            return Verdict(FATAL, f"all steps done, but they are not saved: {self.checkpointer.failure}", state.step)
        if cut_short:
            return self._stopped(state)
        return Verdict(COMPLETE, "all steps done", state.step)

"""The training loop, independent of backend, model and data set."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from pretrain.engine.backend import Backend, Update, square_sum
from pretrain.engine.boundary import Boundary, Measured, RankMeasurement, RankReport, StepClock, memory_bytes
from pretrain.engine.capture import Captures
from pretrain.engine.checkpoint import Checkpointer
from pretrain.engine.rollback import Guard, roll_back
from pretrain.engine.run_folder import COMPLETE, FATAL, REQUEUE, Verdict
from pretrain.engine.session import Session
from pretrain.engine.state import Cadence, TrainState
from pretrain.engine.timesheet import EVALUATE, LOAD, SAVE, STEP
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
        captures: keeps the steps whose update was skipped.
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
    captures: Captures = field(init=False)

    def __post_init__(self) -> None:
        self.captures = Captures(self.session, self.backend, self.checkpointer.origin.config_yaml)

    def fit(self, state: TrainState) -> Verdict:
        """Trains from ``state`` to the end, or until a stop; every rank returns the same verdict. Collective: yes."""
        cadence, batches, clock = self.cadence, self.batches(state), StepClock(self.session.device)
        last, bad_samples = cadence.last_step(state), 0
        self.backend.train(True)
        while state.step < last:
            state, lr, update, boundary = self.step(state, batches, clock)
            bad_samples += boundary.bad_samples
            self.report(state, lr, update, boundary, bad_samples)
            self.session.record_first_step(state.step)
            if boundary.lost:
                self.session.folder.raise_if_lost()
            self.checkpointer.advance(boundary.saving, boundary.copying)
            if self.checkpointer.fast is not None:
                self.checkpointer.fast.advance(boundary.fast_saving)
            if state.skipped_in_a_row >= self.guard.max_consecutive_skips:
                rolled = roll_back(self.checkpointer, state, self.guard, self.telemetry)
                self.session.timesheet.charge(LOAD)
                if isinstance(rolled, Verdict):
                    return self._end(rolled)
                self.session.timesheet.write(state.step, back_to=rolled.step)
                batches.close()
                state, batches = rolled, self.batches(rolled)
                continue
            stop, best = boundary.stop, False
            if cadence.evaluates_at(state.step) and state.step < last and not stop:
                stop, best = self.run_evaluation(state)
            due = boundary.save or cadence.saves_at(state.step)
            due = due and not state.skipped_in_a_row  # skipped: a rollback may come
            if stop or best or due or state.step == last:
                self.save(state)
            if stop and state.step < last:
                return self._end(self._stopped(state))
            if state.step < last and not state.skipped_in_a_row:
                self.save_fast(state, boundary)
        return self._end(self._finished(state))

    def step(
        self, state: TrainState, batches: Iterator[MicroBatch], clock: StepClock
    ) -> tuple[TrainState, float, Update, Boundary]:
        """One optimiser step, in which the ranks meet. Collective: yes.

        Returns:
            the state after it, its learning rate, its update, and the values that all ranks agree on.
        """
        lr = self.schedule(state)
        own, boundary = self.accumulate(state, batches, clock), None

        def read(grad_norm: Tensor) -> float:
            """The ranks meet when the backend asks for the norm, so that the host waits once."""
            nonlocal boundary
            boundary = self.meet(replace(own, grad_norm=grad_norm))
            return boundary.grad_norm

        update = self.backend.step(lr, read)
        assert boundary is not None, "every backend reads the norm"
        if not update.applied:
            about = {"lr": lr, "accumulation_steps": self.cadence.accumulation_steps, **boundary.figures}
            self.captures.keep(state, self.cadence.skipped_from(state), float(own.loss), about)
        state = state.advance(batch_size=self.cadence.batch_size(state), applied=update.applied)
        if self.telemetry.is_due(state.step):
            boundary = replace(boundary, measured=self.measure())
        return state, lr, update, boundary

    def accumulate(self, state: TrainState, batches: Iterator[MicroBatch], clock: StepClock) -> RankReport:
        """Forward and backward over the micro-batches of one step.

        Returns:
            the rank's report so far: its loss (still on the device), its batches and its seconds.
        """
        watchdog, steps = self.session.watchdog, self.cadence.accumulation_steps
        digest, num_bad, padding = 0, 0, 0.0
        self.captures.sample_ids = []
        total = torch.zeros((), device=self.session.device)
        for micro_step in range(steps):
            watchdog.at("data", state.step)
            with clock.waiting():
                batch = next(batches)
            watchdog.at("step", state.step)
            digest, num_bad = digest + batch.digest, num_bad + batch.num_bad
            padding += batch.padding / steps
            if batch.sample_ids is not None:
                self.captures.sample_ids.append(batch.sample_ids)
            self.seed_step(state.step, micro_step)
            with self.backend.micro_step(boundary=micro_step == steps - 1):
                with clock.forward():
                    loss = self.objective(self.backend.forward, batch)
                self.backend.backward(loss)
            total += loss.detach()
        waited_s, forward_s = clock.take()
        return RankReport(total / steps, digest, num_bad, waited_s, forward_s, padding=padding)

    def meet(self, own: RankReport) -> Boundary:
        """The single collective and host read of a step; ``own`` is this rank's report of it. Collective: yes."""
        session, fast = self.session, self.checkpointer.fast
        own = replace(
            own,
            wants_stop=session.stop_request.check() is not None,
            has_lost_folder=session.folder.lost is not None,
            wants_save=self.cadence.saves_after(self.checkpointer.seconds_since_save),
            saving=self.checkpointer.progress,
            copying=self.checkpointer.copying,
            wants_fast_save=0.0 if fast is None else fast.is_due_by_time,
            fast_saving=0.0 if fast is None else fast.progress,
        )
        return Boundary.of(own.gathered(session.device))

    def measure(self) -> Measured:
        """Measurements after an update that a step whose line is due adds, by a second collective. Collective: yes."""
        device = self.session.device
        own = RankMeasurement(memory_bytes(device), square_sum(self.backend.slices()), tuple(self.tally.totals()))
        return Measured.of(own.gathered(device))

    def report(self, state: TrainState, lr: float, update: Update, boundary: Boundary, bad_samples: int) -> None:
        """Prints one step's line; a skipped update is always printed."""
        values = {
            "loss": boundary.loss,
            "lr": lr,
            "grad_norm": update.grad_norm,
            "skipped_updates": state.step - state.num_updates,
            "bad_samples": bad_samples,
            "batch_digest": boundary.batch_digest,
            **boundary.of_sequences,
            **self.cadence.tiling_before(state),
        }
        if (measured := boundary.measured) is not None:
            values |= {"weight_norm": measured.weight_norm, "memory_gib": measured.memory_bytes / 2**30}
            values |= self.tally.figures(measured.counts)
        self.telemetry.step(state.step, state.position, values, boundary.times)
        timesheet = self.session.timesheet
        timesheet.step(max(boundary.times.waited_s), applied=update.applied)
        if self.telemetry.is_due(state.step) or not update.applied:
            timesheet.write(state.step)
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
        self.session.timesheet.charge(STEP)
        self.checkpointer.finish_save()
        self.session.timesheet.charge(SAVE)
        started = time.monotonic()
        self.session.watchdog.at("evaluate", state.step)
        self.backend.train(False)
        values = self.evaluate()
        self.backend.train(True)
        self.session.timesheet.charge(EVALUATE)
        self.session.timesheet.write(state.step)
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
        with self.session.timesheet.spending(SAVE, state.step):
            self.checkpointer.begin_save(state)
            self.backend.train(True)
        self.telemetry.event("save", state.step, {"seconds": time.monotonic() - started})

    def save_fast(self, state: TrainState, boundary: Boundary) -> None:
        """Begins a fast checkpoint if one is due and none is in flight. Collective: yes."""
        fast = self.checkpointer.fast
        if fast is None or not (boundary.fast_save or fast.is_due(state.step)):
            return
        if fast.is_busy:
            fast.postpone()
            return
        started = time.monotonic()
        self.session.watchdog.at("save", state.step)
        with self.session.timesheet.spending(SAVE, state.step):
            self.checkpointer.begin_fast_save(state)
            self.backend.train(True)
        self.telemetry.event("fast_save", state.step, {"seconds": time.monotonic() - started})

    def _end(self, verdict: Verdict) -> Verdict:
        """Ends the fast checkpoints, and removes them if a newer one is on the shared disk. Collective: yes."""
        if self.checkpointer.fast is not None:
            self.session.watchdog.at("save", verdict.step)
            is_saved = verdict.outcome in (COMPLETE, REQUEUE) and self.checkpointer.failure is None
            self.checkpointer.fast.finish(discard=is_saved)
            self.session.timesheet.charge(SAVE)
        return verdict

    def _stopped(self, state: TrainState) -> Verdict:
        """The verdict of a run that was asked to stop, with its checkpoint on disk. Collective: yes."""
        self.checkpointer.finish()
        self.session.timesheet.charge(SAVE)
        self.session.folder.raise_if_lost()
        reason = f"stopped on request ({self.session.stop_request.reason or 'by a peer'})"
        if self.checkpointer.failure is not None:
            reason += f"; its checkpoint failed, an older one is the newest: {self.checkpointer.failure}"
        if self.checkpointer.copy_failure is not None:
            reason += f"; {self.checkpointer.copy_failure}"
        return Verdict(REQUEUE, reason, state.step)

    def _finished(self, state: TrainState) -> Verdict:
        """Runs the last evaluation and returns the verdict. Collective: yes."""
        cut_short, _ = self.run_evaluation(state)
        self.session.watchdog.at("save", state.step)
        self.checkpointer.finish()
        self.session.timesheet.charge(SAVE)
        self.session.folder.raise_if_lost()
        if self.checkpointer.failure is not None:
            return Verdict(FATAL, f"all steps done, but they are not saved: {self.checkpointer.failure}", state.step)
        if cut_short:
            return self._stopped(state)
        if self.checkpointer.copy_failure is not None:
            reason = f"all steps done and saved, but {self.checkpointer.copy_failure}; rerun the command to copy it"
            return Verdict(FATAL, reason, state.step)
        return Verdict(COMPLETE, "all steps done", state.step)

"""A run of a few numbers by the real loop, checkpoints, telemetry and run folder: milliseconds, and no job.

Its weights are a function of the step, so that any checkpoint, and any end, can be compared with what it must be.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pretrain.config.batches import Batches
from pretrain.distributed.processes import Identity
from pretrain.distributed.rank import Rank
from pretrain.engine.backend import HeldSlice, Read, Update
from pretrain.engine.checkpoint import Checkpointer
from pretrain.engine.checkpoint_folder import clean, newest_valid
from pretrain.engine.loop import Trainer
from pretrain.engine.retention import Retention
from pretrain.engine.rollback import Guard
from pretrain.engine.run_folder import FATAL, RunFolder, Verdict, try_to_record
from pretrain.engine.saving import Origin, SavePolicy
from pretrain.engine.session import Session
from pretrain.engine.state import Cadence, TrainState
from pretrain.engine.statistics import RunningStatistics
from pretrain.errors import UserError
from pretrain.files import write_atomic
from pretrain.objectives.protocol import MicroBatch
from pretrain.telemetry.console import Reporter
from pretrain.telemetry.metrics import JsonlSink
from pretrain.telemetry.telemetry import Telemetry, Work

ALONE = Rank(0, 0, 1, 1, "here", "alone")
JOB = ("local", 0)
SHAPE = (2, 3)


def weights_at(step: int) -> Tensor:
    """The weights after so many steps of training."""
    return torch.arange(6, dtype=torch.float32) + step**2


class Backend:
    """Weights and one moment that are set, not learned."""

    name = "tiny"

    def __init__(self) -> None:
        self.model: nn.Module = nn.Identity()
        self.forward: Callable[..., Tensor] = lambda inputs: inputs
        self.statistics = RunningStatistics(self.model, 1)
        self.master, self.moment, self.num_updates = weights_at(0), torch.zeros(6), 0

    def micro_step(self, *, boundary: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        pass

    def step(self, lr: float, read: Read = float) -> Update:
        self.num_updates += 1
        self.master.copy_(weights_at(self.num_updates))
        self.moment.fill_(float(self.num_updates))
        return Update(True, read(torch.ones(())))

    def train(self, mode: bool) -> None:
        pass

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def slices(self) -> list[HeldSlice]:
        return [HeldSlice("w", SHAPE, 0, {"master": self.master, "exp_avg": self.moment}, (0, 6))]

    def finish_load(self, num_updates: int) -> None:
        self.num_updates = num_updates


class Tally:
    def totals(self) -> list[float]:
        return []

    def figures(self, totals: Any) -> dict[str, float]:
        return {}


@dataclass
class Told:
    """How a start ended, and what it said on its way.

    Attributes:
        verdict: None where it was refused.
        error: why it was refused.
    """

    said: list[str] = field(default_factory=list)
    verdict: Verdict | None = None
    error: UserError | None = None

    @property
    def saved(self) -> list[int]:
        """Steps of the checkpoints that it said were saved."""
        return [int(line.split(":")[0].split()[1]) for line in self.said if ": saved " in line]


_PROCESS = Identity.own()


def dead_process(number: int) -> Identity:
    """A process of its own for each start; for every other one it is dead."""
    assert _PROCESS.started is not None
    return dataclasses.replace(_PROCESS, started=_PROCESS.started - 1 - number)


def start(run: Path, steps: int, told: Told, *, stop_at: int | None = None, on_error: str = "continue") -> Told:
    """One start of the run, as ``pretrain.run`` makes it; ``told`` is filled on the way."""
    folder = RunFolder(run)
    try:
        folder.open(ALONE, JOB)
    except UserError as error:
        told.error = error
        return told
    verdict: Verdict | None = None
    try:
        verdict = _train(folder, steps, told, stop_at, on_error)
    except UserError as error:
        verdict = Verdict(FATAL, str(error), 0)
    finally:
        if folder._renewal is not None:
            folder._renewal.stop()  # also where the machine loses its power in the next line
        told.verdict = folder.close(verdict, JOB, writes=True)
    return told


def _train(folder: RunFolder, steps: int, told: Told, stop_at: int | None, on_error: str) -> Verdict:
    reporter = Reporter(True, folder.log, file=io.StringIO())
    say = reporter.say

    def noted(text: str) -> None:
        told.said.append(text)
        say(text)

    reporter.say = noted  # type: ignore[method-assign]
    clean(folder.checkpoints)
    found = newest_valid(folder.checkpoints, noted)
    with contextlib.suppress(OSError):
        write_atomic(folder.config, "the config")
    try_to_record(folder.history, "launch", 0, noted)
    session = dataclasses.replace(Session.of(ALONE, torch.device("cpu"), folder), reporter=reporter)
    session.timesheet.begin(folder.attempt, ALONE, JOB, folder.seen_before)
    request = session.stop_request
    trainer = _trainer(session, steps, on_error)
    if stop_at is not None:
        schedule = trainer.schedule

        def stopping(state: TrainState) -> float:
            if state.step + 1 == stop_at:
                request.reason = "the test"
            return schedule(state)

        trainer.schedule = stopping
    state = TrainState() if found is None else trainer.checkpointer.load(*found)
    reporter.start("tiny", steps, state.step)
    try:
        return trainer.fit(state)
    finally:
        trainer.telemetry.close()
        reporter.close()


def _trainer(session: Session, steps: int, on_error: str) -> Trainer:
    backend = Backend()

    def batches(state: TrainState) -> Generator[MicroBatch, None, None]:
        while True:
            yield MicroBatch(torch.zeros(1, 3, 1, 1), torch.zeros(1, 1, dtype=torch.int64), digest=1)

    checkpointer = Checkpointer(
        session=session,
        backend=backend,
        write_weights=lambda path, tensors: save_file(tensors, path),
        probe=lambda: None,
        schedule=lambda state: 1e-3,
        origin=Origin("the config", "c", "d", "fp32"),
        policy=SavePolicy(Retention(1, keep_best="val/top1"), asynchronous=False, stop_on_error=on_error == "stop"),
        own_average=None,
    )
    telemetry = Telemetry([JsonlSink(session.folder.metrics)], session.reporter, log_every=1, work=Work(1, 1, 1))
    return Trainer(
        session=session,
        backend=backend,
        objective=lambda model, batch: torch.ones(()),
        batches=batches,
        schedule=lambda state: 1e-3,
        evaluate=lambda: {"val/top1": 0.5 - abs(backend.num_updates - 2) / 10},  # step 2 is the best
        seed_step=lambda step, micro_step: None,
        tally=Tally(),
        checkpointer=checkpointer,
        telemetry=telemetry,
        cadence=Cadence(num_steps=steps, batches=Batches.constant(1), evaluate_every=2, save_every=1),
        guard=Guard(max_consecutive_skips=3, max_rollbacks=1),
    )


def newest(run: Path) -> int:
    """The step of the newest whole checkpoint, whose weights must be those of that step; 0 without one."""
    found = newest_valid(run / "checkpoints", lambda text: None)
    if found is None:
        return 0
    step = int(found[1]["step"])
    assert torch.equal(load_file(found[0] / "weights.safetensors")["w"], weights_at(step).view(SHAPE))
    assert torch.equal(load_file(found[0] / "slices/rank-00000.safetensors")["master:w"], weights_at(step))
    return step

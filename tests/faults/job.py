"""A whole small job inside a rank of a pool, with faults that the test puts into it: seconds less than a process.

Everything is the code of a real run (``pretrain.run.train``); a fault is hung around the trainer that it builds.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.integration.small_run import PRETRAIN, SMALL


@dataclass(frozen=True)
class Faults:
    """The faults to inject.

    Attributes:
        nan: (first, end) positions of the stream whose samples make the loss NaN.
        stop_at: asked to stop in the first step that ends with this number and so many rollbacks behind it.
        stop_in_evaluation: rank and batch of an evaluation in which it is asked to stop.
        file_limit: (rank, step, bytes): from that step on, the rank can write no file larger than this.
        slow_weights_s: seconds by which the last part of a save takes longer.
    """

    nan: tuple[int, int] | None = None
    stop_at: tuple[int, int] | None = None
    stop_in_evaluation: tuple[int, int] | None = None
    file_limit: tuple[int, int, int] | None = None
    slow_weights_s: float = 0.0


NONE = Faults()


@dataclass
class Seen:
    """Facts for the test beside the run folder: printed lines, and how far saves were at each boundary."""

    said: list[str] = field(default_factory=list)
    saving: list[list[float]] = field(default_factory=list)


def job(folder: str, settings: list[str], faults: Faults = NONE) -> dict[str, Any]:
    """Runs ``folder/run`` to its verdict; a user's error is returned as one. Collective: yes."""
    from pretrain import run
    from pretrain.assembly import trainer as build
    from pretrain.config.loader import load_experiment
    from pretrain.distributed.rank import detect
    from pretrain.engine.run_folder import RunFolder
    from pretrain.engine.session import Session
    from pretrain.errors import UserError
    from pretrain.telemetry.console import Reporter

    resolved = load_experiment(PRETRAIN, overrides=[*SMALL, f"output_dir={folder}", "name=run", *settings])
    rank, seen = detect(), Seen()
    run_folder = RunFolder(Path(folder) / resolved.experiment.name)
    build_trainer, say, limit = build.build_trainer, Reporter.say, resource.getrlimit(resource.RLIMIT_FSIZE)

    def with_faults(*args: Any, **kwargs: Any) -> Any:
        trainer = build_trainer(*args, **kwargs)
        _hang_faults(trainer, faults, seen)
        return trainer

    def noted(self: Reporter, text: str) -> None:
        seen.said.append(text)
        say(self, text)

    build.build_trainer, Reporter.say = with_faults, noted  # type: ignore[method-assign]
    run_folder.open(rank, ("local", 0))
    outcome: dict[str, Any] = {}
    try:
        session = Session.of(
            rank, torch.device("cpu"), run_folder, None, resolved.experiment.cluster.phase_limits_s.model_dump()
        )
        verdict = run.train(resolved, session, run.Entry("deepspeed", "keep"))
        outcome = {"outcome": verdict.outcome, "reason": verdict.reason, "step": verdict.step}
    except UserError as error:
        outcome = {"outcome": type(error).__name__, "reason": str(error), "step": 0}
    finally:
        build.build_trainer, Reporter.say = build_trainer, say  # type: ignore[method-assign]
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        run_folder.close(None, ("local", 0), writes=False)
    return outcome | {"said": seen.said, "saving": seen.saving}


def _hang_faults(trainer: Any, faults: Faults, seen: Seen) -> None:
    objective, report, meet = trainer.objective, trainer.report, trainer.meet
    rank, write_weights = trainer.session.rank.rank, trainer.checkpointer.write_weights

    def poisoned(forward: Callable[..., Tensor], inputs: Any) -> Tensor:
        loss = objective(forward, inputs)
        if faults.nan is not None and inputs.slots is not None and trainer.backend.model.training:
            first, end = faults.nan
            if bool(((inputs.slots >= first) & (inputs.slots < end)).any()):
                return loss * float("nan")
        return loss

    def reported(state: Any, *args: Any, **kwargs: Any) -> None:
        report(state, *args, **kwargs)
        if faults.stop_at == (state.step + 1, len(state.skipped_windows)):
            trainer.session.stop_request.reason = "the test"
        if faults.file_limit is not None and faults.file_limit[1] == state.step:
            trainer.checkpointer.finish_save()
            if faults.file_limit[0] == rank:
                hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
                resource.setrlimit(resource.RLIMIT_FSIZE, (faults.file_limit[2], hard))

    def met(*args: Any, **kwargs: Any) -> Any:
        boundary = meet(*args, **kwargs)
        seen.saving.append(boundary.saving)
        return boundary

    def slow(*args: Any) -> None:
        time.sleep(faults.slow_weights_s)
        write_weights(*args)

    trainer.objective, trainer.report, trainer.meet = poisoned, reported, met
    trainer.checkpointer.write_weights = slow
    if faults.stop_in_evaluation is not None and faults.stop_in_evaluation[0] == rank:
        _stop_in_evaluation(trainer, faults.stop_in_evaluation[1])


def _stop_in_evaluation(trainer: Any, batch: int) -> None:
    check, calls = trainer.session.stop_request.check, []

    def counted() -> str | None:
        if not trainer.backend.model.training:
            calls.append(1)
            if len(calls) == batch:
                trainer.session.stop_request.reason = "the test, during an evaluation"
        return check()

    trainer.session.stop_request.check = counted


def checkpoint_steps(run: Path) -> list[int]:
    """The steps whose complete checkpoint is there."""
    return sorted(int(path.parent.name.removeprefix("step-")) for path in run.glob("checkpoints/step-*/COMPLETE.json"))

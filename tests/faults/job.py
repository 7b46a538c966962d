"""A whole small job inside a rank of a pool, with faults that the test puts into it: seconds less than a process.

Everything is the code of a real run (``pretrain.run.train``); a fault is hung around the trainer that it builds.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
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
        fast_lag: steps of training before a rank begins to write a fast checkpoint; 0: training waits for each.
        slow_weights_s: seconds by which the last part of a save takes longer.
        silent_peer: rank whose copies never leave it, from the start.
        crash_at: the step after which all ranks end without a save.
        nodes: the node that each rank believes to be on, whose name replaces ``{node}`` in the settings.
        slow_data_s: (rank, seconds): each of this rank's batches comes so late.
        slow_evaluation_s: seconds by which an evaluation takes longer.
        scaled: (step, name, factor): after this step the weights of a tensor are multiplied, but stay finite.
        filled: (step, name, value): after this step a tensor has this value everywhere.
        bug_at: the step in which rank 0 raises an error that is not a user's.
        hours: rank → the steps in which its clock, and no other's, moves an hour.
    """

    nan: tuple[int, int] | None = None
    stop_at: tuple[int, int] | None = None
    stop_in_evaluation: tuple[int, int] | None = None
    file_limit: tuple[int, int, int] | None = None
    fast_lag: int = 0
    slow_weights_s: float = 0.0
    silent_peer: int | None = None
    crash_at: int | None = None
    nodes: tuple[int, ...] | None = None
    slow_data_s: tuple[int, float] = (0, 0.0)
    slow_evaluation_s: float = 0.0
    bug_at: int | None = None
    scaled: tuple[int, str, float] | None = None
    filled: tuple[int, str, float] | None = None
    hours: Mapping[int, Sequence[int]] = field(default_factory=dict)


NONE = Faults()


@dataclass
class Seen:
    """Facts for the test beside the run folder: printed lines, how far saves were at each boundary, and a clock.

    ``clock`` has the seconds of each injected sleep (data, evaluate) and around the loop's own methods.
    """

    said: list[str] = field(default_factory=list)
    saving: list[list[float]] = field(default_factory=list)
    fast_saving: list[list[float]] = field(default_factory=list)
    step: int = 0
    clock: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.clock[name] = self.clock.get(name, 0.0) + time.monotonic() - began


def job(folder: str, settings: list[str], faults: Faults = NONE) -> dict[str, Any]:
    """Runs ``folder/run`` to its verdict; a user's error is returned as one. Collective: yes."""
    from pretrain import run
    from pretrain.assembly import trainer as build
    from pretrain.config.loader import load_experiment
    from pretrain.distributed import neighbours
    from pretrain.distributed.rank import detect
    from pretrain.distributed.watchdog import Watchdog
    from pretrain.engine.run_folder import RunFolder
    from pretrain.engine.session import Session
    from pretrain.errors import UserError
    from pretrain.telemetry.console import Reporter

    rank, seen = detect(), Seen()
    if faults.nodes is not None:
        rank = replace(rank, host=f"node-{faults.nodes[rank.rank]}")
    settings = [setting.replace("{node}", rank.host) for setting in settings]
    resolved = load_experiment(PRETRAIN, overrides=[*SMALL, f"output_dir={folder}", "name=run", *settings])
    run_folder = RunFolder(Path(folder) / resolved.experiment.name)
    limit_s = neighbours.LIMIT_S
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
        with Watchdog(rank, resolved.experiment.cluster.phase_limits_s.model_dump()) as watchdog:
            session = Session.of(rank, torch.device("cpu"), run_folder, None, watchdog)
            verdict = run.recorded(resolved, session, run.Entry("deepspeed", "keep"))
        outcome = {"outcome": verdict.outcome, "reason": verdict.reason, "step": verdict.step}
    except UserError as error:
        outcome = {"outcome": type(error).__name__, "reason": str(error), "step": seen.step}
    finally:
        build.build_trainer, Reporter.say = build_trainer, say  # type: ignore[method-assign]
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        neighbours.LIMIT_S = limit_s
        run_folder.close(None, ("local", 0), writes=False)
    return asdict(seen) | outcome


def _hang_faults(trainer: Any, faults: Faults, seen: Seen) -> None:
    from pretrain.errors import SetupError

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
        seen.step = state.step
        if trainer.checkpointer.fast is not None and not faults.fast_lag:
            trainer.checkpointer.fast.finish(discard=False)  # each save is complete before the next is due
        if faults.crash_at == state.step:
            raise SetupError("the test")
        if faults.bug_at == state.step and rank == 0:
            raise RuntimeError("a bug of the test")
        if faults.stop_at == (state.step + 1, len(state.skipped_windows)):
            trainer.session.stop_request.reason = "the test"
        _plant(trainer.backend, state, faults.scaled, torch.mul)
        _plant(trainer.backend, state, faults.filled, torch.full_like)
        if state.step + 1 in faults.hours.get(rank, ()):
            trainer.checkpointer._saved -= 3600
        if faults.file_limit is not None and faults.file_limit[1] == state.step:
            trainer.checkpointer.finish_save()
            if faults.file_limit[0] == rank:
                hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
                resource.setrlimit(resource.RLIMIT_FSIZE, (faults.file_limit[2], hard))

    def met(*args: Any, **kwargs: Any) -> Any:
        boundary = meet(*args, **kwargs)
        seen.saving.append(boundary.saving)
        seen.fast_saving.append(boundary.fast_saving)
        return boundary

    def slow(*args: Any) -> None:
        time.sleep(faults.slow_weights_s)
        write_weights(*args)

    _hang_sleeps(trainer, faults, seen)
    trainer.objective, trainer.report, trainer.meet = poisoned, reported, met
    trainer.checkpointer.write_weights = slow
    if trainer.checkpointer.fast is not None:
        _hang_fast_faults(trainer, faults, seen)
    if faults.stop_in_evaluation is not None and faults.stop_in_evaluation[0] == rank:
        _stop_in_evaluation(trainer, faults.stop_in_evaluation[1])


def _hang_fast_faults(trainer: Any, faults: Faults, seen: Seen) -> None:
    from pretrain.distributed import neighbours

    fast, last = trainer.checkpointer.fast, trainer.cadence.num_steps
    write = fast.node.write

    def late(rank: int, part: Any) -> None:
        while seen.step < min(part.key.step + faults.fast_lag, last):
            time.sleep(0.01)
        write(rank, part)

    fast.node.write = late
    if faults.silent_peer is not None:
        neighbours.LIMIT_S = 0.5
    if faults.silent_peer == trainer.session.rank.rank:
        fast.channel.exchange = lambda *args: None


def _plant(backend: Any, state: Any, fault: tuple[int, str, float] | None, change: Callable[..., Tensor]) -> None:
    """Changes the weights of a tensor after a step; they stay finite."""
    if fault is None or fault[0] != state.step:
        return
    largest = torch.finfo(torch.float32).max
    for piece in backend.slices():
        if piece.name == fault[1]:
            piece.states["master"].copy_(change(piece.states["master"].clone(), fault[2]).clamp(-largest, largest))
    backend.finish_load(state.num_updates)


def _hang_sleeps(trainer: Any, faults: Faults, seen: Seen) -> None:
    batches, evaluate, late = trainer.batches, trainer.evaluate, faults.slow_data_s

    def slow_batches(state: Any) -> Iterator[Any]:
        with closing(batches(state)) as made:
            for batch in made:
                with seen.timed("data"):
                    time.sleep(late[1] if trainer.session.rank.rank == late[0] else 0.0)
                yield batch

    def slow_evaluate() -> Any:
        with seen.timed("evaluate"):
            time.sleep(faults.slow_evaluation_s)
        return evaluate()

    def around(method: str) -> Any:
        call = getattr(trainer, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with seen.timed(method):
                return call(*args, **kwargs)

        return timed

    trainer.batches, trainer.evaluate = slow_batches, slow_evaluate
    for method in ("step", "save", "run_evaluation", "fit"):
        setattr(trainer, method, around(method))


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

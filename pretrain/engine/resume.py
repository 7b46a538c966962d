"""Where a run starts: its own newest checkpoint, another run's (a fork), given weights, or nothing.

Order: this run's own folder → ``resume.from`` → ``init.from`` → from the seed. It is said which, and why. A resume
that changes what decides the result is refused unless the change is named in ``resume.allow_changes``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pretrain.config.changes import Change, changes, refuse_changes
from pretrain.config.duration import Duration
from pretrain.config.loader import Resolved
from pretrain.config.saved import load_saved
from pretrain.config.schema.base import names_of
from pretrain.config.schema.experiment import Experiment
from pretrain.config.schema.optim import Schedule
from pretrain.distributed.collectives import broadcast_object, raise_together
from pretrain.distributed.rank import Rank
from pretrain.engine.checkpoint_folder import clean, newest_valid, read_state
from pretrain.engine.history import try_to_record
from pretrain.engine.loop import Trainer
from pretrain.engine.run_folder import RunFolder
from pretrain.engine.state import TrainState
from pretrain.errors import CheckpointError, ConfigError, UserError
from pretrain.telemetry.sinks import read_metrics

# What decides which samples a position stands for.
STREAM_KEYS = ("seed", "data.num_samples", "data.lanes", "data.shuffle_window", "data.subset", "data.mixture")
_STREAM_PREFIXES = tuple(f"{key}." for key in STREAM_KEYS)
COOLDOWN_KEYS = ("duration", "optim.schedule.cooldown")
Lanes = Callable[[Experiment], int]


@dataclass(frozen=True)
class Start:
    """A checkpoint to go on from.

    Attributes:
        path, marker: the checkpoint.
        is_fork: it is another run's.
        changed: what decides the result and differs from the saved run.
        num_steps: length of a fork that cools down; None: as configured.
    """

    path: Path
    marker: dict[str, Any]
    is_fork: bool
    changed: tuple[Change, ...] = ()
    num_steps: int | None = None

    @property
    def step(self) -> int:
        return int(self.marker["step"])


def choose_start(
    resolved: Resolved, folder: RunFolder, rank: Rank, say: Callable[[str], None], lanes_of: Lanes
) -> tuple[Resolved, Start | None]:
    """Rank 0 chooses what to go on from and every rank gets its answer; None: start at step 0. Collective: yes.

    Args:
        resolved: the settings.
        folder: of the run.
        rank: this process.
        say: where a line for the user goes.
        lanes_of: the lanes that ``data.lanes`` means.

    Returns:
        the settings that the run goes on with (a cooldown fixes its length), and the start.

    Raises:
        CheckpointError: there are checkpoints but none is whole, or ``resume.from`` has none.
        ConfigError: the config differs from the saved one in what decides the result.
    """
    start: Start | None = None
    error: UserError | None = None
    if rank.is_main:
        try:
            clean(folder.checkpoints)
            start = _find(resolved, folder, say)
            if start is not None:
                start = _accept_changes(resolved, start, lanes_of, say)
        except UserError as found:
            error = found
    raise_together(error, doing="choosing where to start")
    start = broadcast_object(start)
    return (resolved if start is None else _cooling_down(resolved, start.num_steps)), start


def _find(resolved: Resolved, folder: RunFolder, say: Callable[[str], None]) -> Start | None:
    source = resolved.experiment.resume.from_
    if (own := newest_valid(folder.checkpoints, say)) is not None:
        say(f"resuming {folder.path} from {own[0]}, its newest complete checkpoint")
        return Start(*own, is_fork=False)
    if source is not None:
        if not Path(source).exists() or (parent := newest_valid(Path(source), say)) is None:
            raise CheckpointError(
                f"resume.from: {source} holds no complete checkpoint: give a run folder or one of its checkpoints"
            )
        say(f"forking from {parent[0]}: weights, optimiser and stream go on in {folder.path}")
        return Start(*parent, is_fork=True)
    given = resolved.experiment.init.from_
    say(f"no checkpoint in {folder.path}: starting from {given if given is not None else 'the seed'}")
    return None


def _accept_changes(resolved: Resolved, start: Start, lanes_of: Lanes, say: Callable[[str], None]) -> Start:
    """The start with what changes at it. Raises: ConfigError where a change is not allowed."""
    saved = load_saved(start.path / "config.resolved.yaml")
    allowed = resolved.experiment.resume.allow_changes
    if resolved.experiment.resume.cooldown is not None:
        start = replace(start, num_steps=_cooldown_end(resolved.experiment, saved.experiment, start))
        allowed = (*allowed, *COOLDOWN_KEYS) if start.is_fork else allowed
    resolved = _cooling_down(resolved, start.num_steps)
    before, after = (_with_lanes(each, lanes_of) for each in (saved, resolved))
    found = changes(before, after)
    _refuse_another_order([change for change in found if f"{change.key}.".startswith(_STREAM_PREFIXES)], found)
    for change in refuse_changes(found, allowed):
        say(f"changed from step {start.step} on: {change}")
    return replace(start, changed=tuple(found))


def _refuse_another_order(stream: list[Change], found: list[Change]) -> None:
    if not stream:
        return
    remedy = "go back to the saved settings, or start a new run from the weights with init.from"
    if any(change.key == "global_batch_size" for change in found) and stream[-1].key == "data.lanes":
        remedy = f"a changed batch keeps its place with the lanes of before: data.lanes={stream[-1].old}"
    raise ConfigError(
        f"{', '.join(map(str, stream))}: {', '.join(STREAM_KEYS)} cannot change in a resume or a fork, since the "
        f"order of the samples would be another one from here on; {remedy}"
    )


def _with_lanes(resolved: Resolved, lanes_of: Lanes) -> dict[str, Any]:
    """The settings with what ``data.lanes: auto`` means, which a changed batch may leave as it is."""
    settings = resolved.to_dict()
    return settings | {"data": settings["data"] | {"lanes": lanes_of(resolved.experiment)}}


def _cooldown_end(experiment: Experiment, saved: Experiment, start: Start) -> int:
    """The step on the schedule at which a fork with ``resume.cooldown`` ends."""
    if not start.is_fork:
        if saved.resume.cooldown is None:
            raise ConfigError(
                "resume.cooldown begins a fork, but this folder has a run of its own: choose another name"
            )
        return saved.num_steps
    schedule, cooldown = experiment.optim.schedule, experiment.resume.cooldown
    if schedule.needs_length or saved.optim.schedule.cooldown.value:
        found = saved.optim.schedule
        open_ended = sorted(names_of(Schedule, lambda model: not model.needs_length))
        raise ConfigError(
            f"resume.cooldown needs a trunk with optim.schedule.name {' or '.join(open_ended)} and no cooldown "
            f"of its own; {start.path} has {found.name} with a cooldown of {found.cooldown}"
        )
    assert cooldown is not None
    trained = TrainState.of(read_state(start.path)).progress(experiment.global_batch_size)
    return trained + experiment.steps(cooldown)


def _cooling_down(resolved: Resolved, num_steps: int | None) -> Resolved:
    """The settings of a run that ends at this step with ``resume.cooldown``; None: as they are."""
    if num_steps is None:
        return resolved
    experiment = resolved.experiment
    schedule = experiment.optim.schedule.model_copy(update={"cooldown": experiment.resume.cooldown})
    optim = experiment.optim.model_copy(update={"schedule": schedule})
    cooled = experiment.model_copy(update={"duration": Duration(num_steps, "steps"), "optim": optim})
    provenance = resolved.provenance | dict.fromkeys(COOLDOWN_KEYS, "resume.cooldown")
    return Resolved(cooled, provenance, resolved.path)


def load_start(trainer: Trainer, start: Start | None, say: Callable[[str], None]) -> TrainState:
    """Loads the chosen checkpoint into the trainer and proves that it worked. Collective: yes."""
    if start is None:
        _record(trainer, "start", 0)
        return TrainState()
    trainer.watchdog.at("load", start.step)
    loaded = trainer.checkpointer.load(start.path, start.marker)
    ranks = start.marker["world_size"]
    _record(trainer, "fork" if start.is_fork else "resume", loaded.step, checkpoint=str(start.path), written_by=ranks)
    lr, saved = trainer.schedule(loaded), float(start.marker["lr"])
    jumps = not math.isclose(lr, saved, rel_tol=1e-9, abs_tol=1e-15)
    if jumps:
        say(f"the learning rate at step {loaded.step} is {lr:.6g} now, it was {saved:.6g}")
    if start.changed or jumps:
        settings = [{"key": change.key, "old": change.old, "new": change.new} for change in start.changed]
        _record(trainer, "change", loaded.step, settings=settings, lr=[saved, lr])
    if any(change.key == "global_batch_size" for change in start.changed):
        say(
            f"{loaded.samples_seen} samples were seen; they count as {loaded.progress(trainer.global_batch_size)} of "
            f"{trainer.num_steps} steps of {trainer.global_batch_size}, so the run ends at step "
            f"{trainer.last_step(loaded)}"
        )
    trainer.telemetry.event("resume", loaded.step, {"samples": loaded.position})
    say(f"step {loaded.step}: loaded {start.path}, written by {ranks} ranks; verified")
    if not start.is_fork and _owes_evaluation(trainer, loaded):
        trainer.run_evaluation(loaded)  # a wish to stop in it is met at the end of the next step
    return loaded


def _owes_evaluation(trainer: Trainer, state: TrainState) -> bool:
    """Whether a stop came in the place of the evaluation that was due at this step. Collective: yes."""
    if not trainer.evaluate_every or state.step % trainer.evaluate_every or state.step >= trainer.last_step(state):
        return False
    missing = trainer.rank.is_main and state.step not in read_metrics(trainer.folder.metrics, "eval")
    return broadcast_object(missing)


def _record(trainer: Trainer, kind: str, step: int, **details: Any) -> None:
    if trainer.rank.is_main:
        say = trainer.telemetry.reporter.say
        try_to_record(trainer.folder.history, kind, step, say, world_size=trainer.rank.world, **details)

"""The start of a run: from its own newest checkpoint, another run's (a fork), given weights, or the seed.

Precedence: this run's own folder, its mirror or its fast checkpoints, whichever is newest, ``resume.from``,
``init.from``, the seed. The choice is printed. A resume that changes settings that decide the result is refused unless
the change is listed in ``resume.allow_changes``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pretrain.config.changes import COOLDOWN_KEYS, changes, refuse_another_order, refuse_changes
from pretrain.config.duration import Duration
from pretrain.config.loader import Resolved, load_saved
from pretrain.config.schema.base import names_of
from pretrain.config.schema.experiment import Experiment
from pretrain.config.schema.optim.schedules import Schedule
from pretrain.data.sources import lanes_of
from pretrain.distributed.collectives import broadcast_object, raise_together
from pretrain.engine.checkpoint_folder import clean, newest_valid, read_state
from pretrain.engine.fast_resume import Found, bring, newest_fast
from pretrain.engine.fast_saving import FastTier
from pretrain.engine.loop import Trainer
from pretrain.engine.own_start import Start, own_start
from pretrain.engine.run_folder import try_to_record
from pretrain.engine.session import Session
from pretrain.engine.state import TrainState
from pretrain.errors import CheckpointError, ConfigError, UserError
from pretrain.telemetry.metrics import read_metrics


def choose_start(resolved: Resolved, session: Session, tier: FastTier | None = None) -> tuple[Resolved, Start | None]:
    """Rank 0 chooses the checkpoint to continue from; None: start at step 0. Collective: yes.

    Args:
        resolved: the settings.
        session: this process.
        tier: the fast checkpoints; None: there are none.

    Returns:
        the settings that the run continues with (a cooldown fixes its length), and the start.

    Raises:
        CheckpointError: there are checkpoints but none is intact, or ``resume.from`` has none.
        ConfigError: the config differs from the saved one in settings that decide the result.
    """
    start: Start | None = None
    error: UserError | None = None
    session.watchdog.at("choose", 0)
    fast = None if tier is None else newest_fast(tier)
    if session.rank.is_main:
        try:
            clean(session.folder.checkpoints)
            start = _find(resolved, session, tier, fast)
            if start is not None:
                start = _accept_changes(resolved, start, session.say)
        except UserError as found:
            error = found
    raise_together(error, doing="choosing where to start")
    start = broadcast_object(start)
    if start is not None and start.fast is not None and tier is not None:
        start = replace(start, path=tier.node.save_path(start.fast.key))
    session.watchdog.at("start", 0 if start is None else start.step)
    return (resolved if start is None else _cooling_down(resolved, start.num_steps)), start


def _find(resolved: Resolved, session: Session, tier: FastTier | None, fast: Found | None) -> Start | None:
    source, folder, say = resolved.experiment.resume.from_, session.folder, session.say
    if (own := own_start(resolved.experiment, session, fast)) is not None:
        say(f"resuming {folder.path} from {own.path}, its newest complete checkpoint")
        return own
    if tier is not None and fast is not None:
        path = tier.node.save_path(fast.key)
        say(f"resuming {folder.path} from the fast checkpoint of step {fast.key.step} on the nodes")
        return Start(path, fast.marker, is_fork=False, fast=fast)
    if source is not None:
        if not Path(source).exists() or (parent := newest_valid(Path(source), say)) is None:
            raise CheckpointError(
                f"resume.from: {source} holds no complete checkpoint: give a run folder or one of its checkpoints"
            )
        say(f"forking from {parent[0]}: weights, optimiser and stream continue in {folder.path}")
        return Start(*parent, is_fork=True)
    given = resolved.experiment.init.from_
    say(f"no checkpoint in {folder.path}: starting from {given if given is not None else 'the seed'}")
    return None


def _accept_changes(resolved: Resolved, start: Start, say: Callable[[str], None]) -> Start:
    """The start and the settings that change there. Raises: ConfigError if a change is not allowed."""
    saved = load_saved(start.path / "config.resolved.yaml")
    allowed = resolved.experiment.resume.allow_changes
    if resolved.experiment.resume.cooldown is not None:
        start = replace(start, num_steps=_cooldown_end(resolved.experiment, saved.experiment, start))
        allowed = (*allowed, *COOLDOWN_KEYS) if start.is_fork else allowed
    resolved = _cooling_down(resolved, start.num_steps)
    before, after = (_with_lanes(each) for each in (saved, resolved))
    found = changes(before, after)
    refuse_another_order(found)
    for change in refuse_changes(found, allowed):
        say(f"changed from step {start.step} on: {change}")
    return replace(start, changed=tuple(found))


def _with_lanes(resolved: Resolved) -> dict[str, Any]:
    """The settings with ``data.lanes: auto`` resolved, since it may be the same for another batch size."""
    settings = resolved.to_dict()
    return settings | {"data": settings["data"] | {"lanes": lanes_of(resolved.experiment)}}


def _cooldown_end(experiment: Experiment, saved: Experiment, start: Start) -> int:
    """The schedule step at which a fork with ``resume.cooldown`` ends."""
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
    trained = TrainState.of(read_state(start.path)).progress(experiment.batches)
    return trained + experiment.steps(cooldown)


def _cooling_down(resolved: Resolved, num_steps: int | None) -> Resolved:
    """The settings of a run that ends at this step with ``resume.cooldown``; None: unchanged."""
    if num_steps is None:
        return resolved
    experiment = resolved.experiment
    schedule = experiment.optim.schedule.model_copy(update={"cooldown": experiment.resume.cooldown})
    optim = experiment.optim.model_copy(update={"schedule": schedule})
    cooled = experiment.model_copy(update={"duration": Duration(num_steps, "steps"), "optim": optim})
    provenance = resolved.provenance | dict.fromkeys(COOLDOWN_KEYS, "resume.cooldown")
    return Resolved(cooled, provenance, resolved.path)


def load_start(trainer: Trainer, start: Start | None) -> TrainState:
    """Loads the chosen checkpoint into the trainer and verifies it. Collective: yes."""
    session, tier = trainer.session, trainer.checkpointer.fast
    if tier is not None and (start is None or start.fast is None):
        tier.keep_only(None)  # older ones, whose space the next one needs
    if start is None:
        _record(trainer, "start", 0)
        return TrainState()
    session.watchdog.at("load", start.step)
    marker = start.marker
    if start.fast is not None and tier is not None:
        tier.keep_only(start.fast.key)
        marker = bring(tier, start.fast, trainer.backend.slices())
    loaded = trainer.checkpointer.load(start.path, marker)
    trainer.checkpointer.attempt_before = start.marker.get("attempt", 0)
    ranks = start.marker["world_size"]
    _record(trainer, "fork" if start.is_fork else "resume", loaded.step, checkpoint=str(start.path), written_by=ranks)
    is_own = not start.is_fork and start.fast is None
    if trainer.checkpointer.mirror is not None and is_own and not start.is_copied:
        trainer.checkpointer.mirror.add(start.step, start.path, start.marker["files"])
    _report_changes(trainer, start, loaded)
    trainer.telemetry.event("resume", loaded.step, {"samples": loaded.position})
    session.say(f"step {loaded.step}: loaded {start.path}, written by {ranks} ranks; verified")
    return loaded


def run_owed_evaluation(trainer: Trainer, start: Start | None, state: TrainState) -> None:
    """Runs the evaluation that was due at the checkpoint if the run was stopped before it. Collective: yes.

    A request to stop during it takes effect at the end of the next step.
    """
    if start is not None and not start.is_fork and _owes_evaluation(trainer, state):
        trainer.run_evaluation(state)


def _report_changes(trainer: Trainer, start: Start, loaded: TrainState) -> None:
    """Prints and records a jump of the learning rate and the settings that differ from this step on."""
    say, cadence = trainer.session.say, trainer.cadence
    lr, saved = trainer.schedule(loaded), float(start.marker["lr"])
    jumps = not math.isclose(lr, saved, rel_tol=1e-9, abs_tol=1e-15)
    if jumps:
        say(f"the learning rate at step {loaded.step} is {lr:.6g} now, it was {saved:.6g}")
    if start.changed or jumps:
        settings = [{"key": change.key, "old": change.old, "new": change.new} for change in start.changed]
        _record(trainer, "change", loaded.step, settings=settings, lr=[saved, lr])
    if any(change.key in ("global_batch_size", "batch_unit") for change in start.changed):
        say(
            f"{loaded.samples_seen} samples were seen; they count as {loaded.progress(cadence.batches)} of "
            f"{cadence.num_steps} steps of {cadence.batches.largest}, so the run ends at step "
            f"{cadence.last_step(loaded)}"
        )


def _owes_evaluation(trainer: Trainer, state: TrainState) -> bool:
    """Whether the run was stopped before the evaluation that was due at this step. Collective: yes."""
    if not trainer.cadence.evaluates_at(state.step) or state.step >= trainer.cadence.last_step(state):
        return False
    session = trainer.session
    missing = session.rank.is_main and state.step not in read_metrics(session.folder.metrics, "eval")
    return broadcast_object(missing)


def _record(trainer: Trainer, kind: str, step: int, **details: Any) -> None:
    session = trainer.session
    if session.rank.is_main:
        history = session.folder.history
        layout = {"accumulation_steps": trainer.cadence.accumulation_steps, "backend": trainer.backend.name}
        try_to_record(history, kind, step, session.say, world_size=session.rank.world, **layout, **details)

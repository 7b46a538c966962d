"""Where a run starts: its own newest checkpoint, another run's (a fork), given weights, or nothing.

Order: this run's own folder → ``resume.from`` → ``init.from`` → from the seed. It is said which, and why. A resume
that changes what decides the result is refused unless the change is named in ``resume.allow_changes``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.config.changes import changes, refuse_changes
from pretrain.config.loader import Resolved, load_experiment
from pretrain.distributed.collectives import broadcast_object, raise_together
from pretrain.distributed.rank import Rank
from pretrain.engine.checkpoint import clean, newest_valid
from pretrain.engine.loop import Trainer
from pretrain.engine.run_folder import RunFolder
from pretrain.engine.state import TrainState
from pretrain.errors import CheckpointError, ConfigError, UserError

# What decides which samples a position stands for.
STREAM_KEYS = (
    "seed",
    "global_batch_size",
    "data.num_samples",
    "data.lanes",
    "data.shuffle_window",
    "data.subset",
    "data.mixture",
)


@dataclass(frozen=True)
class Start:
    """A checkpoint to go on from."""

    path: Path
    marker: dict[str, Any]
    is_fork: bool

    @property
    def step(self) -> int:
        return int(self.marker["step"])


def choose_start(resolved: Resolved, folder: RunFolder, rank: Rank, say: Callable[[str], None]) -> Start | None:
    """Rank 0 chooses what to go on from and every rank gets its answer; None: start at step 0. Collective: yes.

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
        except UserError as found:
            error = found
    raise_together(error, doing="choosing where to start")
    return broadcast_object(start)


def _find(resolved: Resolved, folder: RunFolder, say: Callable[[str], None]) -> Start | None:
    source = resolved.experiment.resume.from_
    if (own := newest_valid(folder.checkpoints, say)) is not None:
        start = Start(*own, is_fork=False)
        say(f"resuming {folder.path} from {start.path}, its newest complete checkpoint")
    elif source is not None:
        if not Path(source).exists() or (parent := newest_valid(Path(source), say)) is None:
            raise CheckpointError(
                f"resume.from: {source} holds no complete checkpoint: give a run folder or one of its checkpoints"
            )
        start = Start(*parent, is_fork=True)
        say(f"forking from {start.path}: weights, optimiser and stream go on in {folder.path}")
    else:
        given = resolved.experiment.init.from_
        say(f"no checkpoint in {folder.path}: starting from {given if given is not None else 'the seed'}")
        return None
    saved = load_experiment(start.path / "config.resolved.yaml")
    allowed = resolved.experiment.resume.allow_changes
    found = refuse_changes(changes(saved.to_dict(), resolved.to_dict()), allowed)
    if any(change.key == key or change.key.startswith(f"{key}.") for change in found for key in STREAM_KEYS):
        raise ConfigError(
            f"{', '.join(STREAM_KEYS)} cannot change in a resume or a fork: the order of the samples would be another "
            "one from here on; start a new run from the weights with init.from"
        )
    for change in found:
        say(f"changed from step {start.step} on: {change}")
    return start


def load_start(trainer: Trainer, start: Start | None, say: Callable[[str], None]) -> TrainState:
    """Loads the chosen checkpoint into the trainer and proves that it worked. Collective: yes."""
    if start is None:
        return TrainState()
    trainer.watchdog.at("load", start.step)
    loaded = trainer.checkpointer.load(start.path, start.marker)
    lr, saved = trainer.schedule(loaded.step), float(start.marker["lr"])
    if not math.isclose(lr, saved, rel_tol=1e-9, abs_tol=1e-15):
        say(f"the learning rate at step {loaded.step} is {lr:.6g} now, it was {saved:.6g}")
    trainer.telemetry.event("resume", loaded.step, {"samples": loaded.position})
    say(f"step {loaded.step}: loaded {start.path}, written by {start.marker['world_size']} ranks; verified")
    return loaded

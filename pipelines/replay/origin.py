"""Where a replay begins: a capture of the very step, a checkpoint before it, or the seed."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.runs.run_record import CONFIG, RunRecord
from pretrain import records
from pretrain.config.loader import Resolved, load_saved
from pretrain.engine.capture import FILE as CAPTURE
from pretrain.engine.capture import SHAPE, captures_of, step_of_capture
from pretrain.engine.checkpoint_folder import newest_valid, step_of
from pretrain.engine.own_start import Start
from pretrain.engine.state import TrainState
from pretrain.errors import CheckpointError, ConfigError
from pretrain.names import tell

FROM_CAPTURE, FROM_CHECKPOINT, FROM_SEED = "capture", "checkpoint", "seed"


@dataclass(frozen=True)
class Layout:
    """How the run was trained: ranks, micro-batches of a rank in a step, and backend."""

    world: int
    accumulation_steps: int
    backend: str


@dataclass(frozen=True)
class Origin:
    """The beginning of a replay.

    Attributes:
        kind: capture, checkpoint or seed.
        resolved: the settings.
        layout: of the run at that step.
        start: the checkpoint; None: the seed. Of a capture, whose weights are in ``weights``, only the step counts.
        state: of a capture.
        weights: folder with the slices of a capture's weights.
        recorded: what the capture records of the step.
    """

    kind: str
    resolved: Resolved
    layout: Layout
    start: Start | None
    state: TrainState | None = None
    weights: Path | None = None
    recorded: dict[str, Any] | None = None


def origin_of(record: RunRecord, step: int) -> Origin:
    """The best beginning for a replay of ``step``, counted as in the log, from 1.

    Raises:
        ConfigError, CheckpointError: the step cannot be replayed, and why.
    """
    if step < 1:
        raise ConfigError(f"--step {step}: the first step is 1")
    kept = captures_of(record.path)
    reached = max([0, *record.lines.get("train", {}), *map(step_of_capture, kept)])
    if step > reached:
        raise ConfigError(f"--step {step} is not in the log of {record.path}, which ends at step {reached}")
    captures = [path for path in kept if step_of_capture(path) == step]
    if captures and (found := _of_capture(captures[-1])) is not None:
        return found
    layout = _layout(record, step)
    chosen = newest_valid(record.path, _warn, wanted=lambda path: step_of(path) < step)
    if chosen is not None:
        path, marker = chosen
        return Origin(FROM_CHECKPOINT, load_saved(path / CONFIG), layout, Start(path, marker, is_fork=False))
    resolved = load_saved(record.path / CONFIG)
    begins = [event for event in record.events if event["kind"] in ("start", "fork")]
    if not begins or begins[-1]["kind"] == "fork" or resolved.experiment.init.from_ is not None:
        raise ConfigError(
            f"{record.path} has no checkpoint before step {step} and no capture of it, and it did not start from the "
            "seed: choose a later step, or keep more checkpoints (checkpoint.keep_last, checkpoint.keep_every)"
        )
    return Origin(FROM_SEED, resolved, layout, None)


def _of_capture(path: Path) -> Origin | None:
    """The origin of a capture; None if its weights are not kept.

    Raises:
        CheckpointError: it is damaged.
    """
    found = records.read(path / CAPTURE, SHAPE, without_hash=lambda value: False)
    if found.value is None:
        raise CheckpointError(f"{path}: {found.problem}; remove the folder to replay the step from a checkpoint")
    content = found.value
    weights = path.parent / content["weights"]
    if not (weights / "slices").is_dir():
        _warn(f"{path} has no weights ({weights} is missing): the replay begins at a checkpoint")
        return None
    layout = Layout(content["world_size"], content["accumulation_steps"], content["backend"])
    state = TrainState.of(content["state"])
    start = Start(path, {"step": state.step}, is_fork=False)
    return Origin(FROM_CAPTURE, load_saved(path / CONFIG), layout, start, state, weights, content)


def _layout(record: RunRecord, step: int) -> Layout:
    """The layout of the last start that trained this step.

    Raises:
        ConfigError: the history does not have it.
    """
    begins = [event for event in record.events if event["kind"] in ("start", "resume", "fork") and event["step"] < step]
    if not begins or not {"world_size", "accumulation_steps", "backend"} <= begins[-1].keys():
        raise ConfigError(
            f"{record.path}: history.jsonl does not have the ranks and micro-batches with which step {step} was "
            "trained; an earlier version trained it, or the run has not reached it"
        )
    last = begins[-1]
    return Layout(last["world_size"], last["accumulation_steps"], last["backend"])


def _warn(text: str) -> None:
    tell(f"warning: {text}", file=sys.stderr)

"""Rollback: when updates fail repeatedly, return to the last good checkpoint and skip the samples seen since then.

The weights, the moments and the step are the checkpoint's. The stream continues where the run gave up, so neither the
batches that failed nor those before them are drawn again. The skipped samples are part of the state
(``skipped_windows``), so a resume after a rollback is exact, and the rolled-back state is saved at once.

Source: PaLM (2204.02311), section 5.1: restart from a checkpoint before the spike and skip the batches seen
before and during it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pretrain.distributed.collectives import broadcast_object, raise_together
from pretrain.engine.checkpoint import Checkpointer
from pretrain.engine.checkpoint_folder import complete_checkpoints, newest_valid, read_state, remove, step_of
from pretrain.engine.run_folder import FATAL, Verdict, try_to_record
from pretrain.engine.state import TrainState
from pretrain.errors import CheckpointError, UserError
from pretrain.telemetry.telemetry import Telemetry

REMEDY = "lower optim.lr, set optim.clip_grad, or look at the data"


@dataclass(frozen=True)
class Guard:
    """Limits on failed updates and rollbacks.

    Attributes:
        max_consecutive_skips: number of skipped updates in a row after which the run is rolled back.
        max_rollbacks: number of rollbacks after which the next failure ends the run.
    """

    max_consecutive_skips: int
    max_rollbacks: int


def roll_back(
    checkpointer: Checkpointer, state: TrainState, guard: Guard, telemetry: Telemetry
) -> TrainState | Verdict:
    """The state to continue from after ``state``, whose last updates were skipped; or a verdict if there is none.

    Collective: yes.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, or the new state cannot be saved.
    """
    session = checkpointer.session
    session.watchdog.at("load", state.step)
    failed = f"{state.skipped_in_a_row} updates in a row had a loss or gradient that was not finite"
    if len(state.skipped_windows) >= guard.max_rollbacks:
        reason = f"{failed}, after {len(state.skipped_windows)} rollbacks (guard.max_rollbacks: {guard.max_rollbacks})"
        return Verdict(FATAL, f"{reason}; the newest checkpoint has the state before them: {REMEDY}", state.step)
    checkpointer.finish()
    found = _last_good(checkpointer, state)
    if found is None:
        return Verdict(FATAL, f"{failed}, and there is no checkpoint before them to go back to: {REMEDY}", state.step)
    path, marker = found
    loaded = checkpointer.load(path, marker)
    back = loaded.past(state.position)
    checkpointer.save(back, marker.get("metrics", {}))  # a resume from here on starts after the skipped window
    checkpointer.backend.train(True)
    window = [loaded.position, state.position]
    if session.rank.is_main:
        details = {"back_to": back.step, "checkpoint": str(path), "skipped_window": window}
        try_to_record(session.folder.history, "rollback", state.step, session.say, **details)
    telemetry.event("rollback", back.step, {"samples": back.position})
    session.say(
        f"step {state.step}: {failed}: rolled back to {path}; samples {window[0]} to {window[1]} of the stream are "
        f"left out (rollback {len(back.skipped_windows)} of at most {guard.max_rollbacks})"
    )
    return back


def _last_good(checkpointer: Checkpointer, state: TrainState) -> tuple[Path, dict] | None:
    """The newest intact checkpoint before the failed updates; newer ones are abandoned and removed."""
    first_failed = state.step - state.skipped_in_a_row

    def good(path: Path) -> bool:
        try:
            return step_of(path) <= first_failed and not read_state(path)["skipped_in_a_row"]
        except CheckpointError:
            return True  # damaged: newest_valid reports it and skips it

    found, error = None, None
    if checkpointer.session.rank.is_main:
        try:
            found = newest_valid(checkpointer.folder, checkpointer.session.say, wanted=good)
            if found is not None:
                for path in complete_checkpoints(checkpointer.folder):
                    if path > found[0]:
                        remove(path)
                if checkpointer.mirror is not None:
                    checkpointer.mirror.abandon_after(step_of(found[0]))
        except (UserError, OSError) as failure:
            error = CheckpointError(f"no checkpoint to roll back to: {failure}")
    raise_together(error, doing="looking for a checkpoint to roll back to")
    return broadcast_object(found)

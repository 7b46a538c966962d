"""When updates fail in a row: back to the last good checkpoint, and past the samples that were seen since then.

The weights, the moments and the step are the checkpoint's; the stream goes on where the run gave up, so neither the
batches that failed nor those before them are drawn again. What is left out is part of the state (``skipped_windows``),
so a resume after a rollback is exact, and the rolled-back state is saved at once.

Source: PaLM (2204.02311), section 5.1: restart from a checkpoint before the spike and skip the batches that were seen
before and during it.
"""

from __future__ import annotations

from pathlib import Path

from pretrain.distributed.collectives import broadcast_object, raise_together
from pretrain.engine.checkpoint import Checkpointer
from pretrain.engine.checkpoint_folder import complete_checkpoints, newest_valid, read_state, remove, step_of
from pretrain.engine.history import try_to_record
from pretrain.engine.run_folder import FATAL, RunFolder, Verdict
from pretrain.engine.state import TrainState
from pretrain.errors import CheckpointError, UserError
from pretrain.telemetry.telemetry import Telemetry

REMEDY = "lower optim.lr, set optim.clip_grad, or look at the data"


def roll_back(
    checkpointer: Checkpointer, state: TrainState, max_rollbacks: int, folder: RunFolder, telemetry: Telemetry
) -> TrainState | Verdict:
    """Where the run goes on after ``state``, whose last updates were skipped; or the verdict that it cannot.

    Collective: yes.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, or the new state not be saved.
    """
    failed = f"{state.skipped_in_a_row} updates in a row had a loss or gradient that was not finite"
    if len(state.skipped_windows) >= max_rollbacks:
        reason = f"{failed}, after {len(state.skipped_windows)} rollbacks (guard.max_rollbacks: {max_rollbacks})"
        return Verdict(FATAL, f"{reason}; the newest checkpoint has the state before them: {REMEDY}", state.step)
    checkpointer.wait()
    found = _last_good(checkpointer, state)
    if found is None:
        return Verdict(FATAL, f"{failed}, and there is no checkpoint before them to go back to: {REMEDY}", state.step)
    path, marker = found
    loaded = checkpointer.load(path, marker)
    back = loaded.past(state.position)
    checkpointer.save(
        back, marker.get("metrics", {})
    )  # a kill from here on goes on after the window, not into it again
    checkpointer.backend.train(True)
    window = [loaded.position, state.position]
    if checkpointer.rank.is_main:
        details = {"back_to": back.step, "checkpoint": str(path), "skipped_window": window}
        try_to_record(folder.history, "rollback", state.step, telemetry.reporter.say, **details)
    telemetry.event("rollback", back.step, {"samples": back.position})
    telemetry.reporter.say(
        f"step {state.step}: {failed}: rolled back to {path}; samples {window[0]} to {window[1]} of the stream are "
        f"left out (rollback {len(back.skipped_windows)} of at most {max_rollbacks})"
    )
    return back


def _last_good(checkpointer: Checkpointer, state: TrainState) -> tuple[Path, dict] | None:
    """The newest whole checkpoint before the updates that failed; newer ones, of the way given up, are removed."""
    first_failed = state.step - state.skipped_in_a_row

    def good(path: Path) -> bool:
        try:
            return step_of(path) <= first_failed and not read_state(path)["skipped_in_a_row"]
        except CheckpointError:
            return True  # damaged: newest_valid says so and passes it over

    found, error = None, None
    if checkpointer.rank.is_main:
        try:
            found = newest_valid(checkpointer.folder, checkpointer.say, wanted=good)
            if found is not None:
                for path in complete_checkpoints(checkpointer.folder):
                    if path > found[0]:
                        remove(path)
        except (UserError, OSError) as failure:
            error = CheckpointError(f"no checkpoint to roll back to: {failure}")
    raise_together(error, doing="looking for a checkpoint to roll back to")
    return broadcast_object(found)

"""The newest checkpoint of a run itself: in its folder, in its mirror, or on the nodes.

A mirror that does not answer stops no restart that has an intact checkpoint available; this is reported and counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pretrain.config.changes import Change
from pretrain.config.schema.experiment import Experiment
from pretrain.data.storage.transport import Unreachable
from pretrain.engine.checkpoint_folder import newest_valid, read_marker, read_state
from pretrain.engine.fast_resume import Found, is_newer
from pretrain.engine.mirror_folder import DamagedCopy, MirrorFolder
from pretrain.engine.run_folder import COPY, read_events, try_to_record
from pretrain.engine.session import Session
from pretrain.errors import CheckpointError, DataError

UNANSWERED = "did not answer at a start"  # in a recorded problem, by which such starts are counted


@dataclass(frozen=True)
class Start:
    """A checkpoint to continue from.

    Attributes:
        path, marker: the checkpoint.
        is_fork: it belongs to another run.
        changed: settings that decide the result and differ from the saved run's.
        num_steps: length of a fork that cools down; None: as configured.
        is_copied: ``checkpoint.mirror`` has a complete copy of it.
        fast: the fast checkpoint that it is; None: it is on the shared disk. Each rank has its own ``path`` then.
    """

    path: Path
    marker: dict[str, Any]
    is_fork: bool
    changed: tuple[Change, ...] = ()
    num_steps: int | None = None
    is_copied: bool = False
    fast: Found | None = None

    @property
    def step(self) -> int:
        return int(self.marker["step"])


def own_start(experiment: Experiment, session: Session, fast: Found | None) -> Start | None:
    """The newest intact checkpoint in the run folder or its mirror, from which a newer one is downloaded.

    None if there is none, or none that is newer than the fast one. If the mirror does not answer, what is here counts.

    Raises:
        CheckpointError: there are checkpoints but none is intact, the mirror refuses, or it does not answer and there
            is nothing here.
    """
    mirror = MirrorFolder.of(experiment)
    if mirror is None:
        return _local_start(session, fast)
    try:
        return _newest_of_both(mirror, session, fast)
    except Unreachable as error:
        return _without_mirror(mirror, session, fast, error)
    except DataError as error:
        raise CheckpointError(f"checkpoint.mirror: {error}") from error


def _local_start(session: Session, fast: Found | None, *, or_none: bool = False) -> Start | None:
    """The newest intact checkpoint in the run folder; ``or_none`` as of ``newest_valid``."""

    def wanted(path: Path) -> bool:
        return is_newer(lambda: (read_marker(path), read_state(path)), fast)

    or_none = or_none or fast is not None
    found = newest_valid(session.folder.checkpoints, session.say, wanted=wanted, or_none=or_none)
    return None if found is None else Start(*found, is_fork=False)


def _newest_of_both(mirror: MirrorFolder, session: Session, fast: Found | None) -> Start | None:
    copies = _newer_copies(mirror, fast)
    found = _local_start(session, fast, or_none=bool(copies))
    for step in copies:
        if found is not None and step < found.step:
            break
        if found is not None and step == found.step:
            return replace(found, is_copied=mirror.has(step, found.marker))
        if (fetched := _fetched(mirror, step, session.folder.checkpoints, session.say)) is not None:
            return Start(*fetched, is_fork=False, is_copied=True)
    if found is None and copies and fast is None:
        raise CheckpointError(
            f"none of the {len(copies)} checkpoints in {mirror.address} is intact, and the run folder has none: "
            "restore one, or start again under another name"
        )
    return found


def _without_mirror(mirror: MirrorFolder, session: Session, fast: Found | None, error: Unreachable) -> Start | None:
    """The start from what is here, reported, recorded and counted."""
    history, found = session.folder.history, _local_start(session, fast)
    if found is None and fast is None:
        raise CheckpointError(
            f"checkpoint.mirror: {error}. Neither {session.folder.path} nor a node has a checkpoint, and the mirror "
            "may have some: start again when it answers, or under another name"
        ) from error
    step = found.step if found is not None else fast.key.step if fast is not None else 0
    problem = f"{mirror.address} {UNANSWERED} of {session.rank.host}"
    before = [event for event in read_events(history) if UNANSWERED in str(event.get("problem"))]
    session.say(f"warning: {error}")
    session.say(
        f"warning: {problem} (start {len(before) + 1} of this run without it): step {step} is the newest checkpoint "
        "here, but the mirror may have a newer one"
    )
    try_to_record(history, COPY, step, session.say, problem=problem)
    return found


def _newer_copies(mirror: MirrorFolder, fast: Found | None) -> list[int]:
    """Steps of the complete copies that are newer than the fast checkpoint, the newest first."""
    steps = mirror.complete()
    return [step for step in steps if is_newer(lambda step=step: (mirror.marker(step), mirror.state(step)), fast)]


def _fetched(
    mirror: MirrorFolder, step: int, folder: Path, say: Callable[[str], None]
) -> tuple[Path, dict[str, Any]] | None:
    """A checkpoint that was downloaded and verified; None if its copy is damaged, which is reported."""
    try:
        began, found = time.monotonic(), mirror.fetch(step, folder)
        say(f"step {step}: downloaded from {mirror.address} in {time.monotonic() - began:.2f} s")
        return found
    except DamagedCopy as error:
        say(f"{error}: passed over")
        return None

"""Copies each complete checkpoint to an object store while training continues (``checkpoint.mirror``).

Each rank uploads and verifies its own slices in a thread, rank 0 also the other files; once all ranks have reported
theirs at a boundary, rank 0 completes the copy and removes old ones. One copy is in flight at a time. If more
checkpoints are saved meanwhile, only the newest is copied next, and the log names the others. The run folder decides:
a failed copy is reported, and the next checkpoint is copied again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pretrain import disk, threads
from pretrain.distributed.collectives import gather_objects
from pretrain.engine import saving
from pretrain.engine.checkpoint_folder import MARKER
from pretrain.engine.mirror_folder import MirrorFolder
from pretrain.engine.retention import Retention
from pretrain.engine.run_folder import COPY, try_to_record
from pretrain.engine.saving import InFlight
from pretrain.engine.session import Session
from pretrain.engine.slices import rank_of_file
from pretrain.errors import UserError

_thread = threads.pool("mirror", 1)  # its work runs in the order in which it was submitted


@dataclass
class Copy(InFlight):
    """One copy in flight.

    Attributes:
        step, path: the checkpoint.
        files: name → size and hash of its files, as in its marker.
    """

    step: int
    path: Path
    files: Mapping[str, Mapping[str, Any]]
    began: float = field(default_factory=time.monotonic)


class Mirror:
    """Copies the checkpoints of a run. All ranks call its methods at the same boundaries.

    Args:
        session: this process.
        folder: the copies.
        rule: which of them to keep.
    """

    def __init__(self, session: Session, folder: MirrorFolder, rule: Retention) -> None:
        self.session, self.folder, self._rule = session, folder, rule
        self.failure: str | None = None  # why the newest copy failed; None if it did not
        self._copy: Copy | None = None
        self._next: Copy | None = None
        self._marked: Future[None] | None = None

    @property
    def progress(self) -> int:
        """This rank's progress with the copy in flight, to be reported at the boundary of a step."""
        return saving.IDLE if self._copy is None else self._copy.progress

    @property
    def steps(self) -> set[int]:
        """Steps whose checkpoints are still to be read from the disk."""
        return {copy.step for copy in (self._copy, self._next) if copy is not None}

    def add(self, step: int, path: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
        """Begins to copy a checkpoint, or does so after the copy in flight. On every rank, with equal arguments."""
        if self._copy is not None and self._next is not None:
            self.session.say(
                f"step {self._next.step}: not copied to {self.folder.address}, since step {self._copy.step} is still "
                f"being copied; step {step} is next"
            )
        self._next = Copy(step, path, files)
        self._begin_next()

    def _begin_next(self) -> None:
        if self._copy is None and self._next is not None:
            copy, self._copy, self._next = self._next, self._next, None
            copy.start(partial(self._upload, copy), saving.WRITING, _thread)

    def _upload(self, copy: Copy) -> None:
        """This rank's part, run in the thread."""
        disk.current.may_change(copy.path)  # a job that has lost the run folder changes no copies either
        rank = self.session.rank
        own = {name: entry for name, entry in copy.files.items() if rank_of_file(name) % rank.world == rank.rank}
        if rank.is_main:
            self.folder.begin(copy.step)
        self.folder.upload(copy.step, copy.path, own)

    def _complete(self, copy: Copy) -> None:
        """Rank 0's part, run in the thread once every file is there."""
        disk.current.may_change(copy.path)
        self.folder.publish(copy.step, copy.path)
        try:
            self.folder.prune(self._rule, copy.step)
        except UserError as error:
            self.session.say(f"warning: older copies in {self.folder.address} could not be removed: {error}")

    def advance(self, progress: list[float]) -> None:
        """Continues the copy in flight once every rank has done its part. Collective: if a rank failed.

        Args:
            progress: of every rank, as reported at this boundary.
        """
        copy, stage = self._copy, saving.all_ranks_are(progress)
        if copy is None or stage in (saving.WRITING, saving.COMPLETING):
            return
        if stage == saving.WRITTEN:
            copy.start(partial(self._complete, copy) if self.session.rank.is_main else None, saving.COMPLETING, _thread)
            return
        if stage == saving.FAILED:
            self._fail(copy)
        else:
            self.failure = None
            self._record(copy.step)
            where = f"{self.folder.address}/{copy.path.name}"
            self.session.say(f"step {copy.step}: copied to {where} in {time.monotonic() - copy.began:.2f} s")
        self._copy = None
        self._begin_next()

    def _fail(self, copy: Copy) -> None:
        """Reports a copy that failed on some rank. Collective: yes."""
        rank, error = self.session.rank, copy.error
        own = None if error is None else f"rank {rank.rank} on {rank.host}: {_in_words(error)}"
        reasons = [reason for reason in gather_objects(own) if reason is not None]
        self.failure = f"step {copy.step} is not in {self.folder.address}: {'; '.join(reasons[:3])}"
        self._record(copy.step, problem=self.failure)
        self.session.say(f"warning: {self.failure}; the checkpoint in {copy.path} is not affected")

    def _record(self, step: int, **problem: str) -> None:
        """Rank 0 records the end of a copy, for ``status``."""
        if self.session.rank.is_main:
            try_to_record(self.session.folder.history, COPY, step, self.session.say, **problem)

    def finish(self) -> None:
        """Waits until nothing is in flight. Collective: if something is."""
        while self._copy is not None:
            self._copy.join()
            self.advance(gather_objects(self._copy.progress))
        if self._marked is not None:
            wait([self._marked])

    def remark(self, step: int, path: Path) -> None:
        """Copies a marker again that was changed after its checkpoint was complete. Rank 0 only."""
        is_early = self._copy is not None and self._copy.step == step and self._copy.is_in(saving.WRITING)
        if is_early or (self._next is not None and self._next.step == step):
            return  # its marker is yet to be copied
        self._marked = _thread.submit(self._copy_marker, step, path)

    def _copy_marker(self, step: int, path: Path) -> None:
        try:
            disk.current.may_change(path)
            if MARKER in self.folder.copies().get(step, {}):
                self.folder.write_marker(step, path)
        except (UserError, OSError) as error:
            self.session.say(f"warning: the metrics of step {step} are not in {self.folder.address}: {error}")

    def abandon_after(self, step: int) -> None:
        """Removes copies of later steps after a rollback. Rank 0 only, while nothing is in flight."""
        try:
            self.folder.remove_after(step)
        except UserError as error:
            self.session.say(f"warning: copies after step {step} remain in {self.folder.address}: {error}")


def _in_words(error: BaseException) -> str:
    return str(error) if isinstance(error, (UserError, OSError)) else f"{type(error).__name__}: {error}"

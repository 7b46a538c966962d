"""The run folder: where its files are, its verdict, which the job script reads, and its history.

Its owner has the newest claim (``ownership.py``): every write of every rank checks the claims first, and an owner that
was replaced exits without changing anything.

``history.jsonl`` has one line for each event that is not visible in the curve of a run. The first event of every
command that trains into the folder is ``launch``, with its machine. It is followed by ``start`` (from the seed or given
weights), ``resume`` or ``fork`` (with its parent), and later ``change`` (settings that differ from this step on, so the
curve may jump) and ``rollback``. A report marks these. ``first_step`` records
when the phases before the first step of a launch began (``began``, in seconds since the epoch), and ``copy`` that a
checkpoint was copied to ``checkpoint.mirror``, or the ``problem``.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pretrain import disk, records
from pretrain.distributed.heartbeats import remove_beats
from pretrain.distributed.rank import Rank
from pretrain.engine import ownership
from pretrain.engine.crashes import keep_first_crashes
from pretrain.engine.ownership import LOCK, LOCK_SHAPE, Ownership, Renewal
from pretrain.errors import SetupError, UserError
from pretrain.files import make_folders
from pretrain.names import printable_in, tell
from pretrain.redaction import redacted_in

VERDICT_TRIES, VERDICT_PAUSE_S = 3, 0.5
TOKEN_TRIES, TOKEN_PAUSE_S = 20, 0.1

COMPLETE, REQUEUE, FATAL = "complete", "requeue", "fatal"
EXIT_CODES = {COMPLETE: 0, FATAL: 2, REQUEUE: 75}  # 75 is sysexits' EX_TEMPFAIL: try again
FIRST_STEP, COPY = "first_step", "copy"
EVENT_KINDS = ("launch", "start", "resume", "fork", "change", "rollback", FIRST_STEP, COPY)


@dataclass(frozen=True)
class Verdict:
    """How a run ended: ``complete``, ``requeue`` (start it again to resume) or ``fatal`` (needs attention)."""

    outcome: str
    reason: str
    step: int

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.outcome]


# The content of exit.json.
VERDICT_SHAPE: records.Shape = {
    "outcome": lambda value: isinstance(value, str) and value in EXIT_CODES,
    "reason?": records.text,
    "step?": records.whole,
    "job_id?": records.text,
    "restart_count?": records.whole,
    "exit_code?": records.whole,
    "time?": records.moment,
}


def _changed_setting(value: Any) -> bool:
    return isinstance(value, dict) and {"key", "old", "new"} <= value.keys()


# Description of the machine in environment.json and in ``launch`` events.
ENVIRONMENT_SHAPE: records.Shape = {
    "world_size?": records.whole,
    "command?": records.each(records.text),
    "packages?": records.fields,
    "variables?": records.fields,
    "provenance?": lambda value: isinstance(value, dict) and all(map(records.text, value.values())),
    **dict.fromkeys(("python?", "platform?", "host?", "device?", "launcher?", "source?", "digest?"), records.text),
}
EVENT_SHAPE: records.Shape = {
    **ENVIRONMENT_SHAPE,
    "kind": lambda value: value in EVENT_KINDS,
    "step": records.whole,
    "time": records.moment,
    "settings?": records.each(_changed_setting),
    "lr?": records.each(records.number, 2),
    "skipped_window?": records.each(records.whole, 2),
    "back_to?": records.whole,
    "began?": lambda value: isinstance(value, dict) and all(map(records.moment, value.values())),
    "accumulation_steps?": records.whole,
    "backend?": records.text,
    "problem?": records.text,
}


def read_verdict(run: Path) -> records.Record:
    """The content of exit.json of a run folder; neither value nor problem if there is none."""
    known = {key.removesuffix("?") for key in VERDICT_SHAPE}
    return records.read(run / "exit.json", VERDICT_SHAPE, without_hash=lambda value: value.keys() <= known)


def read_lock(run: Path) -> records.Record:
    """The content of lock.json of a run folder: the job that trains into it now."""
    return records.read(run / LOCK, LOCK_SHAPE)


class RunFolder:
    """Paths of a run folder; ``open`` creates and locks it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.history = path / "history.jsonl"
        self.log = path / "log.txt"
        self.timesheet = path / "timesheet.jsonl"
        self.config = path / "config.resolved.yaml"
        self.environment = path / "environment.json"
        self.exit = path / "exit.json"
        self.stop_file = path / "STOP"
        self.heartbeats = path / "heartbeats"
        self._ownership: Ownership | None = None
        self._renewal: Renewal | None = None

    def open(self, rank: Rank, job: tuple[str, int]) -> None:
        """Creates the folder, claims it and verifies that every rank sees the same folder.

        Collective: yes.

        Raises:
            SetupError: another job owns the folder, it cannot be written, or a rank does not see it.
        """
        # Imported here so that code that only reads a run folder does not import torch.
        from pretrain.distributed.collectives import broadcast_object, raise_together

        token = uuid.uuid4().hex
        self._ownership = owned = Ownership(self.path, job, say=_announce)
        error = self._claim(owned, token) if rank.is_main else None
        try:
            raise_together(error, doing="opening the run folder")
            token, epoch = broadcast_object((token, owned.epoch))
            raise_together(self._token_error(rank, token), doing="looking for the shared run folder")
        except UserError:
            self._give_back()
            raise
        if not rank.is_main:
            owned.follow(epoch)
            disk.current.fence(self.path, owned.check)
        else:
            with contextlib.suppress(OSError):
                disk.current.unlink(self.stop_file)

    def _claim(self, owned: Ownership, token: str) -> SetupError | None:
        """Rank 0's part of ``open``; returns why the folder cannot be used."""
        try:
            make_folders(self.path)
            owned.acquire()
            disk.current.fence(self.path, owned.check)
            make_folders(self.checkpoints)
            self._renewal = Renewal(owned, _announce)
            self._renewal.start()
            remove_beats(self.heartbeats)
            keep_first_crashes(self.path)
            disk.current.write(self.path / "token", token.encode())
            disk.current.unlink(self.exit)
        except SetupError as taken:
            return taken
        except OSError as failure:
            return SetupError(f"run folder {self.path} cannot be written: {failure}")
        return None

    @property
    def attempt(self) -> int:
        """The number of this start of the run, higher than all before it in this folder; 0 if it is not open."""
        return 0 if self._ownership is None else self._ownership.epoch

    @property
    def seen_before(self) -> float | None:
        """The last sign of life of the start before, in seconds since the epoch; None: unknown."""
        return None if self._ownership is None else self._ownership.seen_before

    @property
    def lost(self) -> str | None:
        """Why this run may no longer write to its folder, if this rank has noticed; None while it may."""
        return None if self._ownership is None else self._ownership.lost

    def raise_if_lost(self) -> None:
        """Ends the run on every rank if one of them may no longer write to the folder. Collective: yes.

        Raises:
            SetupError: why.
        """
        from pretrain.distributed.collectives import raise_together

        raise_together(self._lost_error(), doing="writing the run folder")

    def _lost_error(self) -> SetupError | None:
        if self._ownership is None:
            return None
        try:
            self._ownership.check()
        except disk.FencedOut as gone:
            return SetupError(str(gone))
        except OSError:  # the folder cannot be read now, which is not evidence of a new owner
            return None
        return None

    def _token_error(self, rank: Rank, token: str) -> SetupError | None:
        for _ in range(TOKEN_TRIES):  # a network file system may show a new file with a delay
            try:
                if disk.current.read(self.path / "token").decode(errors="replace") == token:
                    return None
            except OSError:
                pass
            time.sleep(TOKEN_PAUSE_S)
        return SetupError(
            f"rank {rank.rank} on {rank.host} does not see the run folder {self.path.resolve()} of rank 0: "
            "output_dir must be on a file system that all nodes share"
        )

    def close(self, verdict: Verdict | None, job: tuple[str, int], *, writes: bool) -> Verdict | None:
        """Writes the verdict durably and gives the folder back.

        Args:
            verdict: how the run ended; None writes no verdict, which indicates a crash.
            job: (job id, restart count).
            writes: True on rank 0, and on a rank with a fatal error that rank 0 may not survive to report.

        Returns:
            the verdict; a fatal one if it could not be written, since the intended one is then lost.
        """
        if verdict is not None and writes:
            record = {**asdict(verdict), "exit_code": verdict.exit_code, "job_id": job[0], "restart_count": job[1]}
            failure = self._write_verdict({**record, "time": time.time()})
            if failure is not None:
                reason = f"{verdict.outcome} ({verdict.reason}), but {self.exit} could not be written: {failure}"
                verdict = Verdict(FATAL, reason, verdict.step)
        self._give_back()
        return verdict

    def _write_verdict(self, record: dict[str, Any]) -> OSError | None:
        failure: OSError | None = None
        for attempt in range(VERDICT_TRIES):
            try:
                records.write(self.exit, record)
                return None
            except disk.FencedOut as gone:  # the folder holds its new owner's verdict
                return gone
            except OSError as error:
                failure = error
                time.sleep(VERDICT_PAUSE_S if attempt + 1 < VERDICT_TRIES else 0)
        return failure

    def _give_back(self) -> None:
        if self._renewal is not None:
            self._renewal.stop()
            try:
                self._renewal.owned.release()
            except disk.FencedOut:
                pass
            except OSError as error:
                _announce(
                    f"run folder {self.path} could not be given back ({error}): the next start on another machine "
                    f"waits {ownership.LEASE_S:.0f} s"
                )
        disk.current.fence(self.path, None)
        self._renewal = self._ownership = None


def _announce(text: str) -> None:
    tell(text, file=sys.stderr, flush=True)


def record_event(path: Path, kind: str, step: int, **details: Any) -> None:
    """Appends one line durably. Rank 0 only. Raises: OSError."""
    assert kind in EVENT_KINDS
    content = {"kind": kind, "step": step, "time": round(time.time(), 3), **details}
    line = json.dumps(printable_in(redacted_in(content)), ensure_ascii=False)
    disk.current.append(path, f"{line}\n".encode(), durable=True)


def try_to_record(path: Path, kind: str, step: int, say: Callable[[str], None], **details: Any) -> None:
    """As ``record_event``, but a line that cannot be written is reported and does not end the run."""
    try:
        record_event(path, kind, step, **details)
    except OSError as error:
        say(f"warning: {path} cannot be written, so it lacks the {kind} at step {step}: {error}")


def read_events(path: Path) -> list[dict[str, Any]]:
    """All lines, the oldest first; damaged or truncated lines are left out."""
    return records.read_lines(path, EVENT_SHAPE).values

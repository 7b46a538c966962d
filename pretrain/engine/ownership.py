"""Ownership of a run folder: one owner at a time, by numbered claims that are never reused.

RUN/owners/00000007.json   the claim of the seventh owner: job, process, and whether it has given the folder back
RUN/lock.json              the current owner, with its heartbeats; for users and monitoring

A claim is created by ``link``, which succeeds for exactly one process, also on NFS. The highest number owns the folder.
Every write to the folder first checks the claims (``Ownership.check``, installed as ``disk.Disk.fence``), so an owner
that was paused and replaced changes nothing when it wakes up.

Whether an owner is alive is asked of the kernel where possible (``processes``). Otherwise its heartbeats are
watched: silence for LEASE_S on the watcher's own monotonic clock ends its ownership, so clocks are never compared.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from pretrain import disk, records, threads
from pretrain.distributed.processes import Identity, lives
from pretrain.errors import SetupError
from pretrain.files import TEMPORARY_SUFFIX, make_folders

HEARTBEAT_S = 5.0
LEASE_S = 60.0
LOOK_EVERY_S = 1.0
OWNERS, LOCK = "owners", "lock.json"
_CLAIM = re.compile(r"\d{8}\.json")
_OLD_CLAIMS = 8  # number of old claims kept for inspection
_ATTEMPTS = 20
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
_IDENTITY: records.Shape = {
    "job_id": records.text,
    "restart_count": records.whole,
    "host": records.text,
    "pid": records.whole,
    "boot_id?": lambda value: value is None or records.text(value),
    "pid_namespace?": lambda value: value is None or records.text(value),
    "started?": lambda value: value is None or records.whole(value),
}
LOCK_SHAPE: records.Shape = {**_IDENTITY, "heartbeat": records.number, "epoch?": records.whole}
CLAIM_SHAPE: records.Shape = {
    **_IDENTITY,
    "token": records.text,
    "released": lambda value: isinstance(value, bool),
}


class Holder(NamedTuple):
    """The newest claim: its number and its content (None: it is damaged)."""

    epoch: int
    claim: dict[str, Any] | None


class Ownership:
    """This process's claim on a run folder.

    Args:
        run: the folder.
        job: (job id, restart count).
        identity: the owner's identity; None: this process.
        say: prints one line for the user.

    Attributes:
        epoch: the number of the claim; 0 before there is one.
        lost: why this process no longer owns the folder; None while it does.
    """

    def __init__(
        self,
        run: Path,
        job: tuple[str, int],
        *,
        identity: Identity | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.run, self.owners = run, run / OWNERS
        self.identity = Identity.own() if identity is None else identity
        self.about = {"job_id": job[0], "restart_count": job[1], **asdict(self.identity)}
        self.epoch = 0
        self.lost: str | None = None
        self._token, self._say, self._beats = uuid.uuid4().hex, say, 0

    def acquire(self) -> None:
        """Claims the folder, which must exist.

        Raises:
            SetupError: another process owns it.
            OSError: it cannot be read or written.
        """
        make_folders(self.owners)
        self._refuse_older_version()
        for _ in range(_ATTEMPTS):
            holder = newest(self.owners)
            if holder is not None and not self._is_free(holder):
                if newest(self.owners) != holder:
                    continue  # the folder was given back or claimed by another process while we watched
                raise self._in_use(holder.claim or {})
            if self._claim(1 if holder is None else holder.epoch + 1):
                with contextlib.suppress(OSError):
                    self._forget_old_claims()
                return
        raise SetupError(f"run folder {self.run} is claimed by others all the time: start one job in it")

    @property
    def seen_before(self) -> float | None:
        """The last sign of life of the owner before, in seconds since the epoch; None: there was none, or unknown."""
        return last_seen(self.owners, self.epoch - 1)

    def follow(self, epoch: int) -> None:
        """Takes over the epoch that another rank of this job has claimed."""
        self.epoch = epoch

    def check(self) -> None:
        """Raises FencedOut if the folder now belongs to another process or no longer exists."""
        if self.lost is not None:
            raise disk.FencedOut(self.lost)
        try:
            epochs = _epochs(self.owners)
        except (FileNotFoundError, NotADirectoryError):
            epochs = []
        if self.epoch not in epochs:
            self.lost = f"run folder {self.run} has vanished, or somebody removed what is in it, while it was in use"
        elif epochs[-1] > self.epoch:
            claim = _read_claim(self.owners, epochs[-1]) or {}
            self.lost = (
                f"run folder {self.run} was taken over by job {claim.get('job_id', '?')} (process "
                f"{claim.get('pid', '?')} on {claim.get('host', '?')}), because this job gave no sign of life for "
                f"{LEASE_S:.0f} s or was started again; this one ends and has changed nothing since"
            )
        if self.lost is not None:
            raise disk.FencedOut(self.lost)

    def beat(self) -> None:
        """Sends a heartbeat. Raises: OSError."""
        self._beats += 1
        disk.current.touch(self._path(self.epoch))  # needs no disk space: a full disk does not stop the heartbeats
        self._write_lock()

    def release(self) -> None:
        """Gives the folder back. Raises: OSError."""
        self.check()
        records.write(self._path(self.epoch), {**self.about, "token": self._token, "released": True})
        disk.current.unlink(self.run / LOCK)

    def _path(self, epoch: int) -> Path:
        return self.owners / f"{epoch:08d}.json"

    def _write_lock(self) -> None:
        temporary = self.run / f"{LOCK}.{self.epoch}{TEMPORARY_SUFFIX}"
        about = {**self.about, "epoch": self.epoch, "beats": self._beats, "heartbeat": time.time()}
        disk.current.write(temporary, json.dumps(about).encode())
        disk.current.rename(temporary, self.run / LOCK)

    def _claim(self, epoch: int) -> bool:
        """Tries to claim this number."""
        path = self._path(epoch)
        temporary = self.owners / f"{self._token}{TEMPORARY_SUFFIX}"
        try:
            records.write(temporary, {**self.about, "token": self._token, "released": False})
            self._link(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                disk.current.unlink(temporary)
        disk.current.sync(self.owners)
        # A network file system may report "exists" for a successful link, and an old number whose claim was removed
        # can be taken again, so only the current content of the folder counts.
        found = newest(self.owners)
        if found is not None and found.epoch == epoch and found.claim and found.claim["token"] == self._token:
            self.epoch = epoch
            return True
        claim = _read_claim(self.owners, epoch)
        if claim is not None and claim["token"] == self._token:
            disk.current.unlink(path)
        return False

    def _link(self, temporary: Path, path: Path) -> None:
        try:
            disk.current.link(temporary, path)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with contextlib.suppress(FileExistsError):
                disk.current.write(path, disk.current.read(temporary), exclusive=True)
                disk.current.sync(path)

    def _forget_old_claims(self) -> None:
        for epoch in _epochs(self.owners):
            if epoch < self.epoch - _OLD_CLAIMS:
                disk.current.unlink(self._path(epoch))

    def _is_free(self, holder: Holder) -> bool:
        if holder.claim is not None:
            if holder.claim["released"] or self._is_later_start(holder.claim):
                return True
            alive = lives(Identity.of(holder.claim), self.identity)
            if alive is not None:
                return not alive
        return self._is_silent(holder.claim or {}, lambda: pulse(self.run, holder.epoch))

    def _is_later_start(self, claim: dict[str, Any]) -> bool:
        """Whether this is the next restart of the same job, which its scheduler starts after the previous one ended."""
        same_job = claim["job_id"] == self.about["job_id"] != "local"
        return same_job and claim["restart_count"] < self.about["restart_count"]

    def _refuse_older_version(self) -> None:
        """Refuses the folder of a running older version, which makes no claims and owns it while it writes the lock.

        Raises:
            SetupError: such an owner is alive.
        """
        found = records.read(self.run / LOCK, LOCK_SHAPE).value
        if found is None or "epoch" in found or self._is_later_start(found):
            return
        if not self._is_silent(found, lambda: records.read(self.run / LOCK).value):
            raise self._in_use(found)

    def _is_silent(self, holder: dict[str, Any], look: Callable[[], Any]) -> bool:
        """Watches for LEASE_S, counted in polls, so that a pause of this process is not mistaken for silence."""
        self._say(
            f"run folder {self.run} was last used by job {holder.get('job_id', '?')} (process {holder.get('pid', '?')} "
            f"on {holder.get('host', '?')}); whether it lives cannot be told from here: watching for its signs of life "
            f"for {LEASE_S:.0f} s"
        )
        before, silence, last = look(), 0.0, time.monotonic()
        while silence < LEASE_S:
            time.sleep(LOOK_EVERY_S)
            now = time.monotonic()
            silence, last = silence + min(now - last, 2 * LOOK_EVERY_S), now
            if look() != before:
                return False
        return True

    def _in_use(self, holder: dict[str, Any]) -> SetupError:
        return SetupError(
            f"run folder {self.run} is in use by job {holder.get('job_id', '?')} (process {holder.get('pid', '?')} on "
            f"{holder.get('host', '?')}): wait for it, stop it (touch STOP in the folder), or choose another name"
        )


def living_owner(run: Path, *, patience_s: float) -> dict[str, Any] | None:
    """The claim of a run folder's owner; None if no living owner was seen.

    Args:
        run: the folder.
        patience_s: how long to watch its heartbeats if the kernel cannot tell.
    """
    holder, lock = newest(run / OWNERS), records.read(run / LOCK, LOCK_SHAPE).value
    owner = lock if holder is None or (lock is not None and "epoch" not in lock) else holder.claim
    if owner is None or owner.get("released"):
        return None
    alive = lives(Identity.of(owner))
    if alive is not None:
        return owner if alive else None
    epoch = 0 if holder is None else holder.epoch
    before, end = (pulse(run, epoch), records.read(run / LOCK).value), time.monotonic() + patience_s
    while time.monotonic() < end:
        time.sleep(min(LOOK_EVERY_S, patience_s))
        if (pulse(run, epoch), records.read(run / LOCK).value) != before:
            return owner
    return None


class Renewal:
    """The thread that renews a claim by heartbeats; a disk error is reported once and does not end it."""

    def __init__(self, owned: Ownership, say: Callable[[str], None]) -> None:
        self.owned, self._say = owned, say
        self._released = threading.Event()
        self._in_trouble = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._beat()
        self._thread = threads.start("run-lock", self._run)

    def stop(self) -> None:
        self._released.set()
        if self._thread is not None:
            self._thread.join(timeout=HEARTBEAT_S)

    def _run(self) -> None:
        while self.owned.lost is None and not self._released.wait(HEARTBEAT_S):
            self._beat()

    def _beat(self) -> None:
        try:
            self.owned.beat()
            self._in_trouble = False
        except disk.FencedOut as gone:
            self._say(f"warning: {gone}")
        except OSError as error:
            if not self._in_trouble:
                self._say(f"warning: no heartbeat could be written to {self.owned.run}: {error}; trying again")
            self._in_trouble = True


def newest(owners: Path) -> Holder | None:
    """The newest claim in a folder of claims; None if there is none or no folder."""
    try:
        epochs = _epochs(owners)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Holder(epochs[-1], _read_claim(owners, epochs[-1])) if epochs else None


def last_seen(owners: Path, epoch: int) -> float | None:
    """When an owner last beat, or gave the folder back, in seconds since the epoch; None: unknown."""
    try:
        status = disk.current.fresh_status(owners / f"{epoch:08d}.json")
    except OSError:
        return None
    return None if status is None else status.st_mtime


def pulse(run: Path, epoch: int) -> Any:
    """A value that changes with every heartbeat of an owner and with every change of owner."""
    claims = newest(run / OWNERS)
    status = disk.current.fresh_status(run / OWNERS / f"{epoch:08d}.json")
    lock = records.read(run / LOCK).value or {}
    beats = lock.get("beats") if lock.get("epoch") == epoch else None
    return claims, None if status is None else status.st_mtime_ns, beats


def _epochs(owners: Path) -> list[int]:
    return [int(name[:8]) for name in disk.current.entries(owners) if _CLAIM.fullmatch(name)]


def _read_claim(owners: Path, epoch: int) -> dict[str, Any] | None:
    return records.read(owners / f"{epoch:08d}.json", CLAIM_SHAPE, without_hash=lambda value: False).value

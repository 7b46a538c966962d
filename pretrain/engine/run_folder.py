"""One run's folder: who may write into it, what lies where, and the verdict that the job script trusts.

The lock is a lease: an owner (job id, restart count, host, pid) whose heartbeat renews it. The same job's next restart
takes it over at once, and so does anybody when the owner's process is dead or its lease has expired.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pretrain.distributed.rank import Rank
from pretrain.errors import SetupError, UserError
from pretrain.files import write_atomic

HEARTBEAT_S = 5.0
LEASE_S = 60.0

COMPLETE, REQUEUE, FATAL = "complete", "requeue", "fatal"
EXIT_CODES = {COMPLETE: 0, FATAL: 2, REQUEUE: 75}  # 75 is sysexits' EX_TEMPFAIL: try again


@dataclass(frozen=True)
class Verdict:
    """How a run ended: ``complete``, ``requeue`` (start it again, it goes on) or ``fatal`` (a person must look)."""

    outcome: str
    reason: str
    step: int

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.outcome]


class RunFolder:
    """Paths of a run folder; ``open`` makes and locks it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.history = path / "history.jsonl"
        self.log = path / "log.txt"
        self.config = path / "config.resolved.yaml"
        self.environment = path / "environment.json"
        self.exit = path / "exit.json"
        self.stop_file = path / "STOP"
        self.heartbeats = path / "heartbeats"
        self._lease: _Lease | None = None

    def open(self, rank: Rank, job: tuple[str, int]) -> None:
        """Creates the folder, takes its lock and proves that every rank sees the same folder.

        Collective: yes.

        Raises:
            SetupError: another job holds the lock, the folder cannot be written, or a rank does not see it.
        """
        # Here, so that what only reads a run folder needs no torch.
        from pretrain.distributed.collectives import broadcast_object, raise_together

        error: UserError | None = None
        token = uuid.uuid4().hex
        if rank.is_main:
            try:
                self.checkpoints.mkdir(parents=True, exist_ok=True)
                self._lease = _Lease(self.path / "lock.json", job)
                self._lease.acquire()
                (self.path / "token").write_text(token)
                self.exit.unlink(missing_ok=True)
            except SetupError as taken:
                error = taken
            except OSError as failure:
                error = SetupError(f"run folder {self.path} cannot be written: {failure}")
        raise_together(error, doing="opening the run folder")
        token = broadcast_object(token)
        raise_together(self._token_error(rank, token), doing="looking for the shared run folder")
        if rank.is_main:
            self.stop_file.unlink(missing_ok=True)

    def _token_error(self, rank: Rank, token: str) -> SetupError | None:
        for _ in range(20):  # a network file system may show a new file a little late
            try:
                if (self.path / "token").read_text() == token:
                    return None
            except OSError:
                pass
            time.sleep(0.1)
        return SetupError(
            f"rank {rank.rank} on {rank.host} does not see the run folder {self.path.resolve()} of rank 0: "
            "output_dir must lie on a file system that all nodes share"
        )

    def close(self, verdict: Verdict | None, job: tuple[str, int], *, writes: bool) -> None:
        """Writes the verdict durably and gives the lock back.

        Args:
            verdict: how the run ended; None leaves no verdict, which says that it crashed.
            job: (job id, restart count).
            writes: rank 0, and a rank that knows of a fatal error which rank 0 may not live to see.
        """
        if verdict is not None and writes:
            record = {**asdict(verdict), "exit_code": verdict.exit_code, "job_id": job[0], "restart_count": job[1]}
            write_atomic(self.exit, json.dumps({**record, "time": time.time()}, indent=1))
        if self._lease is not None:
            self._lease.release()


class _Lease:
    """The lock file of a run folder and the thread that renews it."""

    def __init__(self, path: Path, job: tuple[str, int]) -> None:
        self.path = path
        self.owner = {"job_id": job[0], "restart_count": job[1], "host": socket.gethostname(), "pid": os.getpid()}
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="run-lock", daemon=True)

    def acquire(self) -> None:
        if (holder := self._holder()) is not None and self._is_alive(holder):
            raise SetupError(
                f"run folder {self.path.parent} is in use by job {holder['job_id']} (process {holder['pid']} on "
                f"{holder['host']}, seen {time.time() - holder['heartbeat']:.0f} s ago): "
                "wait for it, stop it (touch STOP in the folder), or choose another name"
            )
        self._write()
        self._thread.start()

    def release(self) -> None:
        self._released.set()
        self._thread.join(timeout=HEARTBEAT_S)
        self.path.unlink(missing_ok=True)

    def _holder(self) -> dict[str, Any] | None:
        try:
            return json.loads(self.path.read_text())
        except (OSError, ValueError):
            return None

    def _is_alive(self, holder: dict[str, Any]) -> bool:
        same_job = holder["job_id"] == self.owner["job_id"] != "local"
        if same_job and holder["restart_count"] < self.owner["restart_count"]:
            return False
        if holder["host"] == self.owner["host"]:
            return _process_exists(int(holder["pid"]))
        return time.time() - holder["heartbeat"] < LEASE_S

    def _renew(self) -> None:
        while not self._released.wait(HEARTBEAT_S):
            self._write()

    def _write(self) -> None:
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps({**self.owner, "heartbeat": time.time()}))
        temporary.replace(self.path)


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:  # a killed process whose parent has not looked yet is a zombie: dead for us
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return True

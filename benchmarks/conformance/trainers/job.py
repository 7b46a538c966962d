"""The task of a rank, and the probe through which it reports losses and suffers its faults."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

VARIABLE = "CONFORMANCE_JOB"
FILE_LIMIT = 48 * 1024  # bytes; less than any rank's part of the optimiser's state


@dataclass(frozen=True)
class Job:
    """A training, and its faults.

    Attributes:
        folder: of the trainer's checkpoints; from the newest one there the training continues.
        out: folder of what the ranks report.
        steps: to train; step 1 is the first.
        save_every: steps between two checkpoints.
        hold_at: step after which every rank waits to be killed.
        die_at: step after which rank 1 is killed.
        nan_at: step in which the loss of rank 1 is NaN.
        full_at: step after which no file can grow beyond ``FILE_LIMIT``, as on a full disk.
        kill_in_save: whether the first write beyond it kills the rank.
    """

    folder: str
    out: str
    steps: int = 12
    save_every: int = 4
    hold_at: int | None = None
    die_at: int | None = None
    nan_at: int | None = None
    full_at: int | None = None
    kill_in_save: bool = False

    @property
    def rank(self) -> int:
        """Of this process."""
        return int(os.environ["RANK"])

    @property
    def world(self) -> int:
        """Number of ranks."""
        return int(os.environ["WORLD_SIZE"])

    def dumps(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def of_process(cls) -> Job:
        """The job in this process's environment."""
        return cls(**json.loads(os.environ[VARIABLE]))


class Probe:
    """The calls that an adapter makes in its loop."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._lines = (Path(job.out) / f"rank-{job.rank}.jsonl").open("a", encoding="utf-8")

    def poisoned(self, step: int, loss: Any) -> Any:
        """The loss of a step: as it is, or NaN."""
        job = self._job
        return loss * float("nan") if job.nan_at == step and job.rank == min(1, job.world - 1) else loss

    def after(self, step: int, loss: float) -> None:
        """Notes the loss of a step that was applied, and does to the rank what the job says, before the save.

        Args:
            step: the first is 1.
            loss: of this rank's part of the batch, or of the global batch.
        """
        job = self._job
        self.tell({"step": step, "loss": float(loss)})
        if job.full_at == step:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if job.kill_in_save else signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))
        if job.die_at == step and job.rank == 1:
            self.tell({"killed": time.time()})
            os.kill(os.getpid(), signal.SIGKILL)
        if job.hold_at == step:
            self.tell({"held": True})
            time.sleep(3600)

    def tell(self, line: Any) -> None:
        """Writes a line of JSON that a killed process does not take along."""
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()

"""Training jobs that a stage starts and watches."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.terminal.progress import LazyBar
from pretrain.distributed.launchers import STARTED_BY
from pretrain.errors import SetupError
from pretrain.telemetry.sinks import read_metrics

ROOT = Path(__file__).resolve().parents[2]
POLL_S = 0.1
TAIL_LINES = 15
# One thread per rank: on a few cores, more threads would only compete.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass
class Job:
    """A training as the user would start it, with its output in a file, watched by its metrics."""

    command: list[str]
    run: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.run.mkdir(parents=True, exist_ok=True)
        self.output = self.run / "output.txt"
        with open(self.output, "ab") as output:
            self.process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **ENVIRONMENT, STARTED_BY: str(os.getpid()), **self.environment},
                start_new_session=True,
            )

    @property
    def step(self) -> int:
        """The last step in its metrics."""
        return max(read_metrics(self.run / "metrics.jsonl"), default=0)

    def wait(self, bar: LazyBar, done_before: int = 0, stop_at: int | None = None) -> bool:
        """Waits for the end; True. At step ``stop_at`` it kills every process of the job instead; False."""
        try:
            while self.process.poll() is None:
                step = self.step
                bar.show(done_before + step)
                if stop_at is not None and step >= stop_at:
                    self.kill()
                    return False
                time.sleep(POLL_S)
        finally:
            self.kill()
        if self.process.returncode:
            raise SetupError(self.failure())
        return True

    def failure(self) -> str:
        """The last output of a job that failed."""
        tail = "\n".join(self.output.read_text(errors="replace").splitlines()[-TAIL_LINES:])
        return f"{' '.join(self.command)} left with {self.process.returncode}:\n{tail}\nsee {self.output}"

    def kill(self) -> None:
        """kill -9 of the launcher and of all ranks."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def last_value(run: Path, metric: str) -> float:
    """A metric of the run's last evaluation, such as ``val/top1``."""
    evaluations = read_metrics(run / "metrics.jsonl", "eval")
    return evaluations[max(evaluations)][metric]


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

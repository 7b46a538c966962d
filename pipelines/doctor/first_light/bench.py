"""The bench of a first light: where the results go, the time that is left, and how jobs are started on it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.nodes.checks import FIRST_LIGHT, Finding
from pipelines.runs.processes import Job, entry_script, free_port
from pretrain.files import write_atomic
from pretrain.shipped_files import located
from pretrain.telemetry.metrics import read_metrics

STARTUP_S = 120.0  # imports, rendezvous and the first kernels on a cold file system
RANK_SECTIONS = "pipelines.doctor.first_light.ranks"


@dataclass(frozen=True)
class Ended:
    """A training job that has ended.

    Attributes:
        code: its exit code; None: it exceeded its time and was killed.
        seconds: from start to end.
        losses: step → loss, as in metrics.jsonl.
        tail: the last lines of its output.
    """

    code: int | None
    seconds: float
    losses: Mapping[int, float]
    tail: Sequence[str]

    @property
    def problem(self) -> str:
        """The reason of a failure in a few words; "" if it succeeded."""
        if self.code == 0:
            return ""
        how = "exceeded its time" if self.code is None else f"left with {self.code}"
        return f"{how}: {self.tail[-1] if self.tail else 'no output'}"


@dataclass
class Bench:
    """The state that the sections of a first light share.

    Attributes:
        out: folder of the runs, the data and the logs.
        ranks: ranks of a job, one per GPU.
        gpus: visible GPUs; 0: a trial on CPU ranks.
        tiny: nano models and few steps, to try the procedure itself.
        deadline: ``time.monotonic`` at which it should be over.
        findings: the results so far.
        trained: name → the end of each training so far.
    """

    out: Path
    ranks: int
    gpus: int
    tiny: bool
    deadline: float
    findings: list[Finding] = field(default_factory=list)
    trained: dict[str, Ended] = field(default_factory=dict)

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return self.deadline - time.monotonic()

    @property
    def runs(self) -> Path:
        """Folder of the run folders."""
        return self.out / "runs"

    def torchrun(self, ranks: int) -> list[str]:
        """The words that start ``ranks`` processes on this machine."""
        port = str(free_port())
        return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", port]

    def job(self, name: str, *settings: str, ranks: int | None = None) -> Job:
        """Starts a training of the demo's digits, as a user would."""
        script = [entry_script("pretrain/run.py"), "--config", located("recipe:pretrain/demo_digits")]
        places = [f"output_dir={self.runs}", f"name={name}", *self.digits]
        return Job([*self.torchrun(ranks or self.ranks), *script, *places, *settings], self.runs / name)

    @property
    def digits(self) -> list[str]:
        """The settings that every training of digits shares."""
        data = self.out / "digits"
        return [
            f"data.shards={data}/train",
            f"evaluation.sets.val.shards={data}/val",
            "model.variant=nano/2",
            "model.drop_path=0.1",
            "optim.schedule.warmup=4 steps",
            "evaluation.every=1000 steps",
            "telemetry.log_every=1",
            "telemetry.tensorboard=false",
            "cluster.num_workers=2",
        ]

    def train(self, name: str, *settings: str, ranks: int | None = None) -> Ended:
        """Runs such a training to its end."""
        began = time.monotonic()
        self.trained[name] = self.ended(self.job(name, *settings, ranks=ranks), began)
        return self.trained[name]

    def ended(self, job: Job, began: float, limit_s: float | None = None) -> Ended:
        """Waits for a job; kills it when its time is up.

        Args:
            job: the job.
            began: ``time.monotonic`` of its start.
            limit_s: seconds to wait; None: until the deadline, but long enough for any start.
        """
        try:
            code: int | None = job.process.wait(max(STARTUP_S, self.left_s) if limit_s is None else limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            job.kill()
        losses = {step: line["loss"] for step, line in read_metrics(job.run / "metrics.jsonl").items()}
        tail = job.output.read_text(errors="replace").splitlines()[-4:]
        return Ended(code, round(time.monotonic() - began, 1), losses, tail)

    def in_ranks(self, section: str, spec: Mapping[str, Any], ranks: int | None = None) -> dict[str, Any]:
        """Runs a section of ``ranks.py`` under torchrun.

        Returns:
            its answer; rows that were measured before a failure, and ``problem``, if it failed.
        """
        name = f"{section}-{spec['name']}" if "name" in spec else section
        folder = self.out / "sections" / name
        answer = folder / "answer.json"
        answer.unlink(missing_ok=True)
        words = ["-m", RANK_SECTIONS, section, json.dumps({**spec, "out": str(folder)})]
        ended = self.ended(Job([*self.torchrun(ranks or self.ranks), *words], folder), time.monotonic())
        found = json.loads(answer.read_text()) if answer.exists() else {}
        return {**found, **({"problem": ended.problem} if ended.problem else {})}

    def add(self, finding: Finding) -> None:
        """Records a finding; the file is complete after each."""
        self.findings.append(finding)
        found = {
            "format": FIRST_LIGHT,
            "environment": self.environment(),
            "findings": [one.to_dict() for one in self.findings],
        }
        write_atomic(self.out / "first_light.json", json.dumps(found, indent=1))

    def environment(self) -> dict[str, Any]:
        """The hardware and software that it ran on."""
        import torch

        asked = {"driver": ["nvidia-smi"], "links": ["nvidia-smi", "topo", "-m"]}
        return {
            "time": time.strftime("%Y-%m-%d %H:%M:%S"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
            "ranks": self.ranks,
            "tiny": self.tiny,
            **{name: _answer(command) for name, command in asked.items() if self.gpus},
        }


def _answer(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)

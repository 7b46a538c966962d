"""A training that is built and run from Python: the same job as on the command line, in processes of its own.

The processes leave this one as it is (its CUDA state, its signal handlers), so a notebook may start several, one after
the other, and a training on several GPUs is the same call.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.runs.processes import POLL_S, Job, entry_script, free_port
from pipelines.terminal.output import LazyBar
from pretrain.check.derived import load_complete
from pretrain.check.experiment import check
from pretrain.config.loader import Resolved
from pretrain.config.tree import override
from pretrain.engine.run_folder import REQUEUE, read_verdict
from pretrain.errors import ConfigError, SetupError
from pretrain.telemetry.metrics import read_metrics

if TYPE_CHECKING:
    from pipelines.python_api.model import Model
    from pretrain.config.schema.experiment import Experiment


@dataclass(frozen=True)
class TrainingResult:
    """A training that has ended.

    Attributes:
        folder: the run folder.
        outcome: ``complete``, or ``requeue`` for one that was stopped on request and that ``fit`` continues.
        step: the last one.
        metrics: of the last evaluation, such as ``val/top1``; empty if there was none.
        history: step → its line of ``metrics.jsonl``.
    """

    folder: Path
    outcome: str
    step: int
    metrics: dict[str, Any]
    history: dict[int, dict[str, Any]]

    def load(self, **options: Any) -> Model:
        """The trained weights; arguments and errors as ``load``."""
        from pipelines.python_api.model import load

        return load(self.folder, **options)


class Trainer:
    """One training.

    Args:
        config: YAML of the experiment, or ``recipe:NAME``.
        settings: over the file's: ``{"duration": "2 epochs", "data": {"shards": "data/mine/train"}}``, or with dotted
            keys.
        weights: what to start from, with a new head: a run folder or a weights file. This is fine-tuning
            (``init.from``), with Accelerate unless the config has another backend.

    Raises:
        ConfigError: settings are wrong: all problems, with file, line, key and remedy.
    """

    def __init__(
        self, config: str | Path, settings: Mapping[str, Any] | None = None, *, weights: str | Path | None = None
    ) -> None:
        self._config, self._weights = str(config), None if weights is None else str(weights)
        self._overrides = _overrides(settings or {})
        started = [] if self._weights is None else [override("init.from", self._weights)]
        head = "keep" if self._weights is None else "replace"
        self._resolved: Resolved = load_complete(config, overrides=[*self._overrides, *started], head=head)

    @property
    def experiment(self) -> Experiment:
        """All settings, typed."""
        return self._resolved.experiment

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.experiment.output_dir) / self.experiment.name

    def check(self, num_processes: int | None = None) -> list[str]:
        """Checks the training before its first step; returns the lines that ``--check`` prints.

        Raises:
            UserError: something is wrong.
        """
        backend = self.experiment.cluster.backend_in("deepspeed" if self._weights is None else "accelerate")
        return check(self._resolved, world=num_processes, require_data=False, backend=backend)

    def fit(self, *, num_processes: int = 1) -> TrainingResult:
        """Trains to the end, from the newest checkpoint if the run folder has one; a complete run is only measured.

        Args:
            num_processes: one per GPU of this machine.

        Raises:
            SetupError: the training failed; the message has its last lines.
        """
        if num_processes < 1:
            raise ConfigError(f"num_processes: {num_processes} is not at least 1")
        verdict_file, threads = self.folder / "exit.json", max(1, (os.cpu_count() or 1) // num_processes)
        before = _written_at(verdict_file)
        environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
        job = Job(self.command(num_processes), self.folder, environment)
        with LazyBar("training", self.experiment.num_steps, "steps") as bar:
            try:
                while job.process.poll() is None:
                    bar.show(job.step)
                    time.sleep(POLL_S)
            finally:  # also for Ctrl-C: nothing is left running
                job.kill()
        verdict = read_verdict(self.folder).value
        stopped = verdict is not None and verdict["outcome"] == REQUEUE and _written_at(verdict_file) != before
        if verdict is None or (job.process.returncode and not stopped):  # an old verdict says nothing of a crash
            raise SetupError(job.failure())
        evaluations = read_metrics(self.folder / "metrics.jsonl", "eval")
        history = read_metrics(self.folder / "metrics.jsonl")
        metrics = evaluations[max(evaluations)] if evaluations else {}
        return TrainingResult(self.folder, verdict["outcome"], verdict["step"], metrics, history)

    def command(self, num_processes: int = 1) -> list[str]:
        """The command that ``fit`` starts."""
        script = entry_script("pretrain/run.py" if self._weights is None else "pipelines/finetune.py")
        launcher = [sys.executable]
        if num_processes > 1:
            launcher += ["-m", "torch.distributed.run", "--nproc-per-node", str(num_processes)]
            launcher += ["--master-port", str(free_port())]
        start = [] if self._weights is None else ["--from", self._weights]
        return [*launcher, script, "--config", self._config, *start, *self._overrides]


def _written_at(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def _overrides(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``key.sub=value`` for each leaf; an empty section stays one, which clears the config's."""
    words: list[str] = []
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            words += _overrides(value, f"{prefix}{key}.")
        else:
            words.append(override(f"{prefix}{key}", value if not isinstance(value, Path) else str(value)))
    return words

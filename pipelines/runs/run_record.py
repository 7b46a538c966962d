"""The state and history of a run, read from its folder while it runs or afterwards. No torch.

``status``, ``watch`` and ``report`` all read through this module. Any part may be missing or truncated, since a
run can be killed at any time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from pipelines.slurm import scheduler, starts
from pipelines.terminal.output import counted
from pretrain import disk, records
from pretrain.config.loader import Resolved, load_saved, read_settings
from pretrain.distributed.heartbeats import Beat, accuse, read_beats
from pretrain.distributed.processes import Identity, lives
from pretrain.engine import timesheet
from pretrain.engine.ownership import HEARTBEAT_S, LEASE_S
from pretrain.engine.run_folder import COPY, EVENT_SHAPE, FATAL, RunFolder, read_lock, read_verdict
from pretrain.errors import ConfigError, UserError
from pretrain.telemetry.metrics import LINE, is_line

TRAIN, EVAL = "train", "eval"
LONGEST_S = 1e10  # about 300 years; a larger value, or NaN, is not a useful estimate
SILENT_S = 4 * HEARTBEAT_S
RATE_LINES = 20  # lines of metrics that the rate is the median of
LOG_TAIL_BYTES = 1 << 18
CONFIG = "config.resolved.yaml"
# Every run folder has at least one of these.
TRACES = (CONFIG, "metrics.jsonl", "timesheet.jsonl", "exit.json", "lock.json", "log.txt", starts.STARTS_FILE)
# The run folder does not show that the job that continues the run is queued.
QUEUED = {"PENDING": "queued", "REQUEUED": "queued", "CONFIGURING": "starting", "SUSPENDED": "suspended"}


@dataclass(frozen=True)
class RunRecord:
    """One reading of a run folder.

    Attributes:
        path: the run folder.
        lines: kind (train, eval, save, resume, …) → step → the last line of that step in metrics.jsonl.
        verdict: exit.json, or None while it runs and after a crash.
        lease: lock.json: the process that is training in the folder; ``heartbeat`` in seconds since the epoch.
        beats: the last reported activity of each rank.
        history: the starts and ends of its Slurm jobs, in order.
        timesheet: the lines of timesheet.jsonl, in order: what the time of each start was spent on.
        events: the lines of history.jsonl, in order: launches, resumes, forks, changes, rollbacks.
        read_at: seconds since the epoch.
        damaged: which files, or how many of their lines, cannot be used, and why.
    """

    path: Path
    lines: dict[str, dict[int, dict[str, Any]]]
    verdict: dict[str, Any] | None
    lease: dict[str, Any] | None
    beats: list[Beat]
    history: list[starts.Start | starts.End] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    read_at: float = field(default_factory=time.time)
    damaged: list[str] = field(default_factory=list)
    timesheet: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> RunRecord:
        """Reads the folder as it is now.

        Raises:
            ConfigError: ``path`` is not a run folder.
        """
        if not path.is_dir() or not any((path / name).exists() for name in TRACES):
            what = "is not a run folder (it holds none of a run's files)" if path.is_dir() else "does not exist"
            raise ConfigError(f"{path} {what}; name a folder such as runs/my_run")
        folder = RunFolder(path)
        metrics = records.read_lines(folder.metrics, LINE)
        events = records.read_lines(folder.history, EVENT_SHAPE)
        times = records.read_lines(folder.timesheet, timesheet.LINE)
        verdict, lease = read_verdict(path), read_lock(path)
        return cls(
            path=path,
            lines=_by_kind(line for line in metrics.values if is_line(line)),
            verdict=verdict.value,
            lease=lease.value,
            beats=read_beats(folder.heartbeats),
            history=starts.read(path),
            events=events.values,
            timesheet=times.values,
            damaged=[
                *filter(None, (verdict.problem, lease.problem)),
                *_of_lines(folder.metrics, metrics),
                *_of_lines(folder.history, events),
                *_of_lines(folder.timesheet, times),
            ],
        )

    @cached_property
    def _config(self) -> tuple[Resolved | None, str | None]:
        try:
            return load_saved(self.path / CONFIG), None
        except UserError as error:
            return None, str(error) if (self.path / CONFIG).exists() else None

    @property
    def resolved(self) -> Resolved | None:
        """The config that the run was started with; None if it did not get that far, or this version cannot use it."""
        return self._config[0]

    @property
    def config_problem(self) -> str | None:
        """Why the saved config cannot be used: which key, and the version that wrote it."""
        return self._config[1]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings; if this version cannot use the config, those that can be read from its file."""
        if self.resolved is not None:
            return self.resolved.to_dict()
        try:
            return read_settings(self.path / CONFIG)
        except UserError:
            return {}

    @property
    def num_steps(self) -> int | None:
        """The length of the run in steps."""
        if self.resolved is not None:
            return self.resolved.experiment.num_steps
        value, _, unit = str(self.settings.get("duration", "")).partition(" ")
        return int(value) if unit == "steps" and value.isdecimal() else None

    @property
    def step(self) -> int:
        """The newest step: of a heartbeat, the verdict or the line written last, or of the newest checkpoint.

        A run that was killed resumes from its checkpoint, so lines from before the last start may have larger steps.
        """
        launched = float(self.launches[-1]["time"]) if self.launches else 0.0
        newest = max(self.train, key=lambda line: (float(line.get("time", 0)), int(line["step"])), default=None)
        reached = [beat.step for beat in self.beats if not beat.is_starting]  # heartbeats are of the last start
        if newest is not None and float(newest.get("time", 0)) >= launched:
            reached.append(int(newest["step"]))
        if self.verdict is not None and not self.is_held and records.whole(self.verdict.get("step")):
            reached.append(self.verdict["step"])
        return max(reached, default=0) or (starts.checkpoint_step(self.path) if newest is None else int(newest["step"]))

    @property
    def train(self) -> list[dict[str, Any]]:
        """The lines of training in the order of their steps."""
        return [line for _, line in sorted(self.lines.get(TRAIN, {}).items())]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The lines of evaluation in the order of their steps."""
        return [line for _, line in sorted(self.lines.get(EVAL, {}).items())]

    @property
    def is_held(self) -> bool:
        """Whether a process trains into the folder: asked of the kernel on its own machine; elsewhere an estimate.

        (An outside observer cannot wait for the next heartbeat, so the estimate compares the clocks of both machines.)
        """
        if self.lease is None:
            return False
        alive = lives(Identity.of(self.lease))
        age = self.read_at - float(self.lease["heartbeat"])
        return age < LEASE_S if alive is None else alive

    @property
    def heartbeat_age_s(self) -> float | None:
        """Seconds since the owner's last heartbeat, by two clocks if it is elsewhere; None without one."""
        return None if self.lease is None else self.read_at - float(self.lease["heartbeat"])

    @property
    def _is_silent(self) -> bool:
        """Whether several heartbeats are missing of an owner that the kernel of this machine does not know."""
        age = self.heartbeat_age_s
        return self.lease is not None and age is not None and age > SILENT_S and lives(Identity.of(self.lease)) is None

    @property
    def state(self) -> str:
        """``complete``, ``fatal``, ``stopped`` (resumes when started again), ``running``, ``starting``, ``crashed``,
        ``silent`` (on another machine, without heartbeats) or ``waiting`` (a job asked to be requeued, or has never
        begun to train).
        """
        last = self.history[-1] if self.history else None
        if isinstance(last, starts.End) and last.outcome == FATAL:
            return FATAL
        if self.verdict is not None and not self.is_held:
            outcome = str(self.verdict.get("outcome"))
            return "stopped" if outcome == "requeue" else outcome
        if self.is_held and self._is_silent:
            return "silent"
        if self.is_held:
            return "running" if any(not beat.is_starting for beat in self.beats) else "starting"
        if isinstance(last, starts.End):
            return {"requeue": "waiting", "restart": "starting"}.get(last.decision, "crashed")
        if isinstance(last, starts.Start) and self.read_at - last.time < LEASE_S:
            return "starting"
        return "crashed" if self.lines or self.beats or self.lease else "waiting"

    @property
    def step_s(self) -> float | None:
        """Seconds per step: the median of the last lines."""
        rates = [float(line["step_s"]) for line in self.train[-RATE_LINES:] if "step_s" in line]
        return median(rates) if rates else None

    @property
    def eta_s(self) -> float | None:
        """Seconds of training that are left at the last rate; evaluations and saves not counted."""
        if self.num_steps is None or self.step_s is None:
            return None
        seconds = max(0, self.num_steps - self.step) * self.step_s
        return seconds if 0 <= seconds < LONGEST_S else None

    @property
    def launches(self) -> list[dict[str, Any]]:
        """Every command that trained into the folder, with its machine, in order; older runs have none."""
        return [event for event in self.events if event["kind"] == "launch"]

    @property
    def starts(self) -> list[starts.Start]:
        """Each time a Slurm job began to train, in order."""
        return [entry for entry in self.history if isinstance(entry, starts.Start)]

    @property
    def num_restarts(self) -> int:
        """How often the run was restarted, by any launcher."""
        resumes = sum(event["kind"] == "resume" for event in self.events)
        return max(len(self.starts) - 1, resumes, len(self.lines.get("resume", {})), 0)

    @property
    def last_error(self) -> str | None:
        """Why the run ended when it should not have: the fatal verdict, else the last error in its job's log."""
        last = self.history[-1] if self.history else None
        if isinstance(last, starts.End) and last.outcome == FATAL:
            return last.reason
        if self.verdict is not None and self.verdict.get("outcome") == FATAL:
            return str(self.verdict.get("reason"))
        if self.state == "complete":
            return None
        logs = [Path(start.log) for start in self.starts[-1:] if start.log]
        found = [line for log in logs for line in _errors_in(log)]
        ends = [entry.reason for entry in self.history if isinstance(entry, starts.End) and entry.outcome == "crash"]
        return (found or ends or [None])[-1]


def find_runs(folder: Path) -> list[Path]:
    """The run folders at or directly below ``folder``."""
    names = disk.current.entries(folder) if folder.is_dir() else []
    candidates = [folder, *(folder / name for name in names if (folder / name).is_dir())]
    return [path for path in candidates if any((path / name).exists() for name in TRACES)]


def runs_of(given: Iterable[Path]) -> list[Path]:
    """The run folders given on a command line: each argument is a run, or a folder of runs.

    Raises:
        ConfigError: one of them is neither.
    """
    found = []
    for path in given:
        found += find_runs(path) or [RunRecord.read(path).path]  # not a run: raises the reason
    return found


def describe(record: RunRecord) -> dict[str, Any]:
    """The state of a run as plain values, which ``status --json`` prints."""
    state = record.state
    last_start = record.starts[-1] if record.starts else None
    job = str(last_start.job_id) if last_start is not None else None
    if job is not None and state in ("stopped", "waiting", "crashed", "starting"):
        state = QUEUED.get(scheduler.queue_state(job), state)
    line = record.train[-1] if record.train else {}
    return {
        "run": str(record.path),
        "state": state,
        "step": record.step,
        "num_steps": record.num_steps,
        "eta_s": record.eta_s if state not in ("complete", "fatal") else None,
        "loss": line.get("loss"),
        "images_per_s": line.get("images_per_s"),
        "evaluation": _accuracies(record),
        "mirror": _mirror(record),
        "restarts": record.num_restarts,
        "job": job,
        "nodes": list(last_start.nodes) if last_start is not None else [],
        "last_error": record.last_error,
        "config_problem": record.config_problem,
        "damaged": record.damaged,
        "doing": accuse(record.beats) if state == "running" and record.beats else None,
        "heartbeat_age_s": None if record.heartbeat_age_s is None else round(record.heartbeat_age_s, 1),
        "last_line_age_s": round(record.read_at - float(line["time"]), 1) if "time" in line else None,
    }


def _mirror(record: RunRecord) -> dict[str, Any] | None:
    """The newest copy of a checkpoint, and why the last one failed; None: the run makes no copies."""
    address = None if record.resolved is None else record.resolved.experiment.mirror_address
    if address is None:
        return None
    ends = [event for event in record.events if event["kind"] == COPY]
    newest = next((event for event in reversed(ends) if "problem" not in event), None)
    return {
        "address": address,
        "step": None if newest is None else newest["step"],
        "age_s": None if newest is None else round(record.read_at - float(newest["time"]), 1),
        "problem": ends[-1].get("problem") if ends else None,
    }


def _accuracies(record: RunRecord) -> dict[str, float]:
    line = record.evaluations[-1] if record.evaluations else {}
    return {name: value for name, value in line.items() if name.endswith(("/top1", "/top5")) and records.number(value)}


def _by_kind(lines: Iterable[dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    """The last line of each kind and step."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for line in lines:
        found.setdefault(line["kind"], {})[line["step"]] = line
    return found


def _of_lines(path: Path, lines: records.Lines) -> Iterator[str]:
    if lines.problem is not None:
        yield lines.problem
    if lines.num_damaged:
        yield f"{path.name} has {counted(lines.num_damaged, 'damaged line')}"


def _errors_in(log: Path) -> list[str]:
    """The lines of a job's log that begin with ``error:``, from its last part."""
    try:
        text = disk.current.tail(log, LOG_TAIL_BYTES).decode(errors="replace")
    except OSError:
        return []
    return [line.removeprefix("error: ") for line in text.splitlines() if line.startswith("error: ")]

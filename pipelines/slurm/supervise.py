"""``python -m pipelines.slurm supervise -- srun …``: runs the step of a job, again and again while that helps.

When a rank or node fails, the survivors are stopped, and the step starts again in the same allocation, from the newest
checkpoint, without the queue, the preflight and the checks in between. ``policy.py`` decides, ``end.py`` requeues.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from pipelines.slurm import end, scheduler, starts
from pipelines.slurm.diagnosis import Evidence, diagnose
from pipelines.slurm.layout import Layout, headline
from pipelines.slurm.policy import Action, Limits, Situation, next_action
from pipelines.slurm.starts import End, Failure, Start
from pipelines.slurm.step import Step, Watch, unreachable
from pipelines.slurm.timeline import in_words, parts
from pretrain.distributed.rank import RESTART_COUNT
from pretrain.engine.crashes import Crash, read_crashes
from pretrain.engine.ownership import OWNERS, newest
from pretrain.engine.run_folder import FIRST_STEP, RunFolder, read_events
from pretrain.telemetry.metrics import read_metrics


@dataclass(frozen=True)
class Plan:
    """The work of a job.

    Attributes:
        run: run folder.
        command: srun, its options that do not depend on the nodes, and the command of a rank.
        nodes, layout: of the first step.
        worlds: the numbers of ranks that draw the same batches.
        limits: how many failures it bears.
        silent_s, stop_s: see ``Watch``.
    """

    run: Path
    command: tuple[str, ...]
    nodes: tuple[str, ...]
    layout: Layout
    worlds: tuple[int, ...]
    limits: Limits
    silent_s: float
    stop_s: float


@dataclass
class Supervisor:
    """The steps of one job.

    Attributes:
        plan: what it runs.
        start: the present start; ``begin`` has recorded the first.
        failed: how the step before it ended; None at first.
        is_ending: Slurm or the user has asked the job to stop.
        step, first_step: the running step, and its event of that name.
        lost: nodes that do not answer since the last failure.
    """

    plan: Plan
    start: Start
    failed: End | None = None
    is_ending: bool = False
    step: Step | None = field(default=None, init=False)
    first_step: Mapping[str, Any] | None = field(default=None, init=False)
    lost: set[str] = field(default_factory=set, init=False)
    _num_before: int = field(default=0, init=False)
    _start_before: int = field(default=0, init=False)

    def run(self) -> int:
        """Runs steps until one ends that is not followed by another; returns the job's exit code."""
        signal.signal(signal.SIGUSR1, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)
        nodes, layout = self.plan.nodes, self.plan.layout
        while True:
            code, watch = self._run_step(nodes, layout)
            outcome = end.read_outcome(self.plan.run, self.start.job_id, self.start.restart_count, code)
            failure = self._failure(code, watch, nodes) if outcome.kind == end.CRASH else None
            action = None if failure is None or self.is_ending else self._decide(failure, nodes)
            if action is None or action.kind == "requeue":
                excluded, reason = (action.excluded, action.reason) if action else ((), str(failure or ""))
                limit = self.plan.limits.without_progress
                return end.end(self.plan.run, code, limit, end.Cause(reason, excluded, failure))
            if action.kind == "stop":
                return end.refuse(self.plan.run, action.reason, failure)
            assert action.layout is not None
            nodes, layout = action.nodes, action.layout
            self._restart(action, layout, code, failure)

    def _run_step(self, nodes: Sequence[str], layout: Layout) -> tuple[int, Watch]:
        os.environ[RESTART_COUNT] = str(self.start.restart_count)
        environment = {"MASTER_ADDR": nodes[0], "MASTER_PORT": str(port(self.start))}
        self.first_step, self._num_before, plan = None, len(self._first_steps()), self.plan
        self._start_before = self._newest_start()
        self.step = Step(words(plan.command, nodes, layout), environment)
        if self.is_ending:  # the signal came between two steps
            self.step.signal(signal.SIGUSR1)
        heartbeats = RunFolder(plan.run).heartbeats
        watch = Watch(self.step, heartbeats, silent_s=plan.silent_s, stop_s=plan.stop_s, look=self._look)
        watch.until_the_end()
        return self.step.finish(), watch

    def _look(self) -> bool:
        """Prints how long the restart took, once its first step is done; returns whether it is still awaited."""
        events = self._first_steps()
        if len(events) <= self._num_before:
            return True
        self.first_step = events[-1]
        if self.failed is not None and "began" in self.first_step:
            say(f"restart: {in_words(parts(self.failed, self.start, self.first_step))}")
        return False

    def _first_steps(self) -> list[dict[str, Any]]:
        return [event for event in read_events(RunFolder(self.plan.run).history) if event["kind"] == FIRST_STEP]

    def _failure(self, code: int, watch: Watch, nodes: Sequence[str]) -> Failure:
        if self.first_step is None:
            self._look()
        ended_at, ends = time.time(), watch.step.ends
        silent_for = max((time.monotonic() - at for _, at in watch.silent), default=0.0)
        told = {each.node for each in ends if each.ranks}
        is_open = watch.was_abandoned or watch.step.gave_up
        suspects = [node for node in nodes if node not in told] if is_open or ends or watch.silent else []
        self.lost = unreachable(suspects)
        return diagnose(
            Evidence(
                code=code,
                ends=ends,
                silent=[beat for beat, _ in watch.silent],
                silent_since=ended_at - silent_for,
                lost=self.lost or (suspects if is_open else ()),  # one that has booted meanwhile answers again
                crashes=self._reports(),
                beats=watch.beats,
                step=self._newest_step(),
                has_trained=self.first_step is not None,
                detected_at=watch.detected_at or ended_at,
            )
        )

    def _reports(self) -> list[Crash]:
        """The ranks' own reports of the step; none if it did not come to opening the run folder."""
        start = self._newest_start()
        return read_crashes(self.plan.run, start) if start > self._start_before else []

    def _newest_start(self) -> int:
        claims = newest(self.plan.run / OWNERS)
        return 0 if claims is None else claims.epoch

    def _newest_step(self) -> int:
        """The newest step that was logged since the start; that of its checkpoint if there is none."""
        lines = read_metrics(RunFolder(self.plan.run).metrics).values() if self.first_step else ()
        newest = max(lines, key=lambda line: float(line["time"]), default={"step": self.start.step})
        return int(newest["step"])

    def _decide(self, failure: Failure, used: Sequence[str]) -> Action:
        run, job_id = self.plan.run, self.start.job_id
        known, job = starts.read(run), scheduler.record(job_id)
        allocated = scheduler.host_names(job["NodeList"]) if job.get("NodeList") else tuple(used)
        failures = [*starts.failures(known, job_id), failure]
        doubtful = {one.node for one in failures if one.rank is None and one.node in allocated} - self.lost
        gone = self.lost | unreachable(sorted(doubtful))  # a node that failed may be back
        begun = [entry for entry in known if isinstance(entry, Start)]
        situation = Situation(
            nodes=[node for node in allocated if node not in gone],
            used=used,
            worlds=self.plan.worlds,
            ranks=self.plan.layout.ranks,
            ranks_per_node=scheduler.current_job().gpus_per_node,
            without_progress=starts.restarts_without_progress(begun, job_id, starts.checkpoint_step(run)),
            left_s=scheduler.seconds_left(job),
        )
        return next_action(failures, situation, self.plan.limits)

    def _restart(self, action: Action, layout: Layout, code: int, failure: Failure | None) -> None:
        """Records the end and the new start, and announces both."""
        run, before, now = self.plan.run, self.start, starts.now()
        step = starts.checkpoint_step(run)
        self.failed = End(
            before.job_id, before.restart_count, step, code, end.CRASH, "restart", action.reason, now, failure
        )
        starts.append(run, self.failed)
        say(f"==== crash at step {step}: {action.reason}")
        for node in action.excluded:
            say(f"{node} has failed {self.plan.limits.node_failures} times and is not used any more")
        gpus = before.gpus // len(before.nodes) * len(action.nodes)
        self.start = replace(
            before,
            restart_count=before.restart_count + 1,
            nodes=action.nodes,
            gpus=gpus,
            ranks=layout.ranks,
            step=step,
            time=starts.now(),
        )
        known = starts.starts(run)
        starts.append(run, self.start)
        say(headline(self.start, known, layout))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """USR1 goes on to the ranks. TERM means that Slurm ends the job, and tells the ranks itself."""
        self.is_ending = True
        if number == signal.SIGUSR1 and self.step is not None:
            self.step.signal(number)


def words(command: Sequence[str], nodes: Sequence[str], layout: Layout) -> list[str]:
    """The command with the nodes and ranks of a step; options of the site file follow, and prevail."""
    return [
        command[0],
        f"--nodes={layout.num_nodes}",
        f"--nodelist={','.join(nodes)}",
        f"--ntasks={layout.ranks}",
        f"--ntasks-per-node={layout.ranks_per_node}",
        *command[1:],
    ]


def port(start: Start) -> int:
    """A port that another job on the node is unlikely to have, and another for each restart."""
    return 20_000 + (int(start.job_id) + 101 * start.restart_count) % 20_000


def supervise(plan: Plan) -> int:
    """Runs the job's steps; returns its exit code."""
    job = scheduler.current_job()
    mine = [start for start in starts.starts(plan.run) if start.job_id == job.job_id]
    assert mine, "begin has recorded the start"
    return Supervisor(plan, mine[-1]).run()


def say(text: str) -> None:
    """Prints into the job's log."""
    print(text, file=sys.stderr, flush=True)

"""The sections of a first light that run real trainings: layouts, tf32, kill and resume, other ranks, a frozen rank."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping

import psutil

from pipelines.doctor.first_light.bench import STARTUP_S, Bench, Ended
from pipelines.nodes.checks import AMBER, GREEN, RED, Finding
from pipelines.runs.processes import Job

STEPS, SAVE_AT = 24, 12
# The largest relative difference of a loss from fp32's: sums in another order, or products rounded to bf16.
FP32_LIMIT, LOW_LIMIT = 1e-4, 5e-2
FROZEN_LIMIT_S = 8
LONG_STEPS, TINY_STEPS = 400, 48  # long enough to be killed on the way

# Name → settings, the most important first; the first is what the others are compared with.
LAYOUTS: dict[str, list[str]] = {
    "fp32 ddp": ["precision=fp32", "cluster.backend=accelerate"],
    "bf16 zero1": ["precision=bf16", "cluster.zero_stage=1"],
    "bf16 zero2": ["precision=bf16", "cluster.zero_stage=2"],
    "bf16 zero3": ["precision=bf16", "cluster.zero_stage=3"],
    "autocast ddp": ["precision=autocast", "cluster.backend=accelerate"],
    "bf16 fsdp2": ["precision=bf16", "cluster.backend=fsdp2"],
    "fp32 zero1": ["precision=fp32", "cluster.zero_stage=1"],
    "fp32 zero2": ["precision=fp32", "cluster.zero_stage=2"],
    "fp32 zero3": ["precision=fp32", "cluster.zero_stage=3"],
    "fp32 zero0": ["precision=fp32", "cluster.zero_stage=0"],
    "autocast zero1": ["precision=autocast", "cluster.zero_stage=1"],
    "bf16 zero1 compiled": ["precision=bf16", "cluster.zero_stage=1", "cluster.compile=true"],
    "bf16 zero1 selective": ["precision=bf16", "cluster.zero_stage=1", "cluster.activation_checkpointing=selective"],
    "bf16 zero1 ema": ["precision=bf16", "cluster.zero_stage=1", "optim.ema_decay=0.99"],
}
NUM_FIRST = 5  # layouts that are tried before everything else; the others if time is left
NUM_TINY = 2


def first_layouts(bench: Bench) -> Finding:
    """The layouts that most people train with."""
    return _layouts(bench, "layouts", list(LAYOUTS)[: NUM_TINY if bench.tiny else NUM_FIRST])


def other_layouts(bench: Bench) -> Finding:
    """All other layouts."""
    names = list(LAYOUTS)
    return _layouts(bench, "other_layouts", [names[0], *names[NUM_FIRST : NUM_FIRST + 1 if bench.tiny else None]])


def _layouts(bench: Bench, probe: str, names: list[str]) -> Finding:
    """Trains a few steps with each layout and compares the losses with those of fp32."""
    rows: list[dict[str, object]] = []
    wrong: list[str] = []
    truth: Mapping[int, float] = {}
    for name in names:
        ended = _layout(bench, name)
        truth = truth or ended.losses
        apart = largest_difference(ended.losses, truth)
        row = {"layout": name, "seconds": ended.seconds, "largest_difference": apart, "problem": ended.problem}
        rows.append(row)
        limit = FP32_LIMIT if name.startswith("fp32") else LOW_LIMIT
        if ended.problem or apart is None or apart > limit:
            wrong.append(f"{name} ({ended.problem or f'losses differ from fp32 by {apart}'})")
        if bench.left_s < 0:
            break
    values = {"rows": rows, "not_tried": names[len(rows) :]}
    if wrong:
        return Finding(probe, RED, f"{'; '.join(wrong)}", "see the outputs in runs/ and report them", values)
    worst = max(float(str(row["largest_difference"])) for row in rows)
    text = f"{len(rows)} of {len(names)} layouts train; their losses differ from fp32's by at most {worst:.1e}"
    return Finding(probe, GREEN if len(rows) == len(names) else AMBER, text, values=values)


def _layout(bench: Bench, name: str) -> Ended:
    """A training with this layout, unless there was one already."""
    run = name.replace(" ", "_")
    steps = [f"duration={STEPS} steps", f"checkpoint.every={SAVE_AT} steps"]
    return bench.trained.get(run) or bench.train(run, *LAYOUTS[name], *steps)


def largest_difference(ours: Mapping[int, float], truth: Mapping[int, float]) -> float | None:
    """The largest relative difference of two loss curves at the steps that both have; None: they share none."""
    shared = ours.keys() & truth.keys()
    return max((abs(ours[step] - truth[step]) / abs(truth[step]) for step in shared), default=None)


def tf32(bench: Bench) -> Finding:
    """fp32 with TF32 products: torch has two interfaces for it, which exclude each other."""
    short = ["duration=3 steps", "optim.schedule.warmup=1 steps", "checkpoint.every=3 steps"]
    ended = bench.train("tf32", "precision=fp32", "tf32=true", *short)
    if ended.problem:
        return Finding("tf32", RED, ended.problem, "train with tf32: false, and report the output")
    return Finding("tf32", GREEN, f"tf32: true trains; loss {ended.losses[3]:.4f} after 3 steps")


def resume(bench: Bench) -> Finding:
    """Kills a job and resumes it on the same layout: nothing may differ from a job that was left alone."""
    settings = ["precision=bf16", "cluster.zero_stage=1"]
    return _killed_and_resumed(bench, "resume", settings, settings, bench.ranks, limit=0.0)


def elastic(bench: Bench) -> Finding:
    """Kills a job and resumes it with half of the ranks and another ZeRO stage: sums are taken in another order."""
    before, after = (["precision=fp32", f"cluster.zero_stage={stage}"] for stage in (1, 3))
    return _killed_and_resumed(bench, "elastic", before, after, bench.ranks // 2, limit=FP32_LIMIT)


def _killed_and_resumed(
    bench: Bench, name: str, before: list[str], after: list[str], ranks: int, *, limit: float
) -> Finding:
    """Compares a job that was killed after its first checkpoint and resumed with one that was left alone.

    Args:
        bench: the bench.
        name: of the finding and of the killed run.
        before, after: the settings until the kill, and from the resume on.
        ranks: ranks of the resumed job.
        limit: largest relative difference of a loss.
    """
    long = TINY_STEPS if bench.tiny else LONG_STEPS
    steps = [f"duration={long} steps", f"checkpoint.every={SAVE_AT} steps"]
    straight = bench.train(f"{name}_straight", *before, *steps)
    if straight.problem:
        return Finding(name, RED, straight.problem, f"see runs/{name}_straight/output.txt")
    job = bench.job(name, *before, *steps)
    _wait_for(lambda: (job.run / "checkpoints" / f"step-{SAVE_AT:08d}").exists(), job)
    reached = job.step
    _kill_tree(job.process.pid)
    job.kill()
    resumed = bench.train(name, *after, *steps, ranks=ranks)
    apart = largest_difference(resumed.losses, straight.losses)
    values = {"killed_at": reached, "steps": len(resumed.losses), "largest_difference": apart}
    if resumed.problem or apart is None or len(resumed.losses) < long:
        return Finding(name, RED, resumed.problem or "steps are missing after the resume", "report it", values)
    if reached >= long:
        return Finding(name, AMBER, "the job had ended before it could be killed", values=values)
    text = f"killed at step {reached}, resumed on {ranks} of {bench.ranks} ranks: "
    if apart > limit:
        text += f"losses differ by up to {apart:.1e} from those of an undisturbed run"
        return Finding(name, AMBER if apart <= LOW_LIMIT else RED, text, "report it", values)
    same = "are bit-identical to" if apart == 0 else f"are within {apart:.1e} of"
    return Finding(name, GREEN, f"{text}all {long} losses {same} those of an undisturbed run", values=values)


def watchdog(bench: Bench) -> Finding:
    """Freezes one rank of a running job: the others must end within the limit of their phase, and name it."""
    forever = ["duration=100000 steps", "checkpoint.every=100000 steps"]
    limits = [f"cluster.phase_limits_s.{phase}={FROZEN_LIMIT_S}" for phase in ("step", "data")]
    began = time.monotonic()
    job = bench.job("frozen", "precision=fp32", *forever, *limits)
    _wait_for(lambda: job.step >= 5, job)
    ranks = _ranks_of(job.process.pid)
    if not ranks:
        return Finding("watchdog", RED, bench.ended(job, began, 0).problem, "see runs/frozen/output.txt")
    os.kill(ranks[-1], signal.SIGSTOP)
    frozen = time.monotonic()
    ended = bench.ended(job, began, 10 * FROZEN_LIMIT_S)
    _kill_tree(ranks[-1])
    seconds = round(time.monotonic() - frozen, 1)
    named = str(ranks[-1]) in job.output.read_text(errors="replace")
    values = {"seconds": seconds, "named": named, "code": ended.code}
    if ended.code is None:
        return Finding("watchdog", RED, f"the job still hangs {seconds} s after a rank was frozen", "report it", values)
    text = f"a frozen rank: the job ended after {seconds} s{' and named the process' if named else ''}"
    return Finding("watchdog", GREEN if named else AMBER, text, values=values)


def _wait_for(condition: Callable[[], bool], job: Job) -> None:
    """Until the condition holds or the job ends, at most for a slow start."""
    end = time.monotonic() + STARTUP_S
    while not condition() and job.process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)


def _ranks_of(launcher: int) -> list[int]:
    """The processes that a launcher has started directly: its ranks."""
    try:
        return [child.pid for child in psutil.Process(launcher).children()]
    except psutil.NoSuchProcess:
        return []


def _kill_tree(pid: int) -> None:
    """SIGKILL to a process and to all that it has started, which torchrun puts into sessions of their own."""
    try:
        top = psutil.Process(pid)
        for process in [*top.children(recursive=True), top]:
            process.kill()
    except psutil.NoSuchProcess:
        pass

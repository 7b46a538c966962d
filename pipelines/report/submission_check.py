"""Whether a submission is consistent with itself and keeps the rules of its race.

It shows mistakes and careless edits. That a run took place at all, only its repetition shows: the file holds the
settings for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from pydantic import ValidationError

from pipelines.report.race import RACES
from pipelines.runs.goodput import BETWEEN, MEANINGS, QUEUE
from pretrain.config import changes
from pretrain.config.devices import Device, device_reported_as, load_devices
from pretrain.config.schema.experiment import Experiment
from pretrain.config.schema.submission import Start, Submission
from pretrain.engine.timesheet import EVALUATE, STEP
from pretrain.sharding.work import flops_until

TOLERANCE = 1e-9  # relative; all sums are of integer milliseconds


def problems(submission: Submission) -> list[str]:
    """Everything that is wrong with it, in words; empty if it may be submitted."""
    try:
        experiment = Experiment.model_validate(submission.settings)
    except ValidationError as error:
        return [f"settings are not valid in this version: {error.errors()[0]['msg']}"]
    found = [*_settings(submission, experiment), *_times(submission), *_curve(submission)]
    return [*found, *_speed(submission), *_rules(submission, experiment)]


def _settings(submission: Submission, experiment: Experiment) -> Iterator[str]:
    if changes.digest(submission.settings) != submission.config_digest:
        yield "config_digest is not that of settings"
    if (experiment.seed, experiment.name) != (submission.seed, submission.run):
        yield "seed and run are not those of settings"
    if submission.target.set_name not in experiment.evaluation.sets:
        yield f"target: settings have no evaluation set {submission.target.set_name}"
    if submission.step > experiment.num_steps:
        yield f"step {submission.step:,} is after the end of the run ({experiment.num_steps:,})"
    samples = experiment.samples_until(submission.step)
    if submission.samples != samples:
        yield f"samples must be {samples:,}, which is step × global_batch_size"
    exaflops = flops_until(experiment, submission.step) / 1e18
    if not math.isclose(submission.exaflops, exaflops, rel_tol=1e-6):
        yield f"exaflops must be {exaflops:.6g} with these settings and this step"


def _times(submission: Submission) -> Iterator[str]:
    starts = submission.starts
    unknown = {name for start in starts for name in start.parts} - MEANINGS.keys()
    if unknown:
        yield f"starts: unknown parts {', '.join(sorted(unknown))}; known are {', '.join(MEANINGS)}"
    total = sum(spent.ms for start in starts for spent in start.parts.values()) / 1000
    evaluated = sum(start.parts[EVALUATE].ms for start in starts if EVALUATE in start.parts) / 1000
    if not math.isclose(submission.seconds, total, rel_tol=TOLERANCE):
        yield f"seconds must be {total}, the sum of all parts"
    if not math.isclose(submission.seconds_without_evaluation, total - evaluated, rel_tol=TOLERANCE):
        yield f"seconds_without_evaluation must be {total - evaluated}, the sum of all parts but {EVALUATE}"
    for number, start in enumerate(starts, start=1):
        wrong = [name for name, spent in start.parts.items() if spent.gpu_ms != spent.ms * _held(start, name)]
        if wrong or start.gpus < start.ranks:
            yield f"start {number}: gpu_ms is not ms times the devices held: {', '.join(wrong) or 'gpus < ranks'}"
    hours = sum(map(_gpu_ms, starts)) / 3.6e6
    if not math.isclose(submission.gpu_hours, hours, rel_tol=TOLERANCE):
        yield f"gpu_hours must be {hours}, the sum over all starts with their idle devices"


def _held(start: Start, part: str) -> int:
    """Devices that are held during a part: none while a job waits."""
    return 0 if part == QUEUE else start.gpus if part == BETWEEN else start.ranks


def _gpu_ms(start: Start) -> int:
    """Time of all devices of a start, those without a rank included."""
    own = sum(spent.ms for part, spent in start.parts.items() if part not in (QUEUE, BETWEEN))
    return sum(spent.gpu_ms for spent in start.parts.values()) + (start.gpus - start.ranks) * own


def _curve(submission: Submission) -> Iterator[str]:
    curve, target = submission.curve, submission.target
    if any(after.step <= before.step or after.seconds <= before.seconds for before, after in pairwise(curve)):
        yield "curve: steps and seconds must increase"
    early = [point.step for point in curve[:-1] if point.value >= target.value]
    if early:
        yield f"curve: the target was reached at step {early[0]:,} already"
    last = curve[-1]
    if last.value < target.value:
        yield f"curve: ends at {last.value:.5f}, below the target of {target.value:.5f}"
    if last.step != submission.step or not math.isclose(last.seconds, submission.seconds, rel_tol=TOLERANCE):
        yield "curve: must end at step and seconds of the submission"


def known_devices(submission: Submission) -> list[Device]:
    """Its devices as the table has them; empty if it lacks one of them."""
    table = load_devices()
    found = [device_reported_as(name, table) for name in submission.devices]
    return [] if None in found else [device for device in found if device is not None]


def _speed(submission: Submission) -> Iterator[str]:
    """A rate above what the devices can compute."""
    devices = known_devices(submission)
    peak = max((device.bf16_tflops for device in devices), default=math.inf) * 1e12
    busy = sum(start.parts[STEP].gpu_ms for start in submission.starts if STEP in start.parts) / 1000
    if submission.exaflops * 1e18 > peak * busy:
        yield f"{submission.exaflops:.4g} exaFLOPs in {busy:,.0f} device-seconds exceed the peak of the devices"


def _rules(submission: Submission, experiment: Experiment) -> Iterator[str]:
    if submission.race is None:
        return
    race = RACES.get(submission.race)
    if race is None:
        yield f"race: unknown {submission.race!r}; known are {', '.join(RACES)}"
        return
    target = submission.target
    if target.value != race.value or not target.metric.endswith("/top1"):
        yield f"target: the race is to top1 {race.value:.5f}, not to {target.metric} {target.value:.5f}"
    yield from race.breaches(experiment, target.set_name)

"""The submission of a run to a race: one JSON file made from what the run recorded, up to the target."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipelines.report.race import RACES, S16_77
from pipelines.runs.goodput import UNEXPLAINED, Account
from pipelines.runs.run_record import RunRecord
from pretrain import records
from pretrain.config.loader import Resolved, writer_of
from pretrain.config.schema.submission import SUBMISSION_FORMAT, DataOrder, Point, Spent, Start, Submission, Target
from pretrain.engine.timesheet import EVALUATE
from pretrain.errors import ConfigError
from pretrain.files import digest
from pretrain.redaction import redacted_in
from pretrain.sharding.work import flops_until


# long: one line for each value of the file
def submission_of(record: RunRecord, target: Target | None) -> Submission:
    """The submission of a run.

    Args:
        record: of its folder.
        target: of the user's own; None: the race's, which ``race.py`` states.

    Raises:
        ConfigError: the target was not reached, or what the run recorded does not suffice.
    """
    resolved = record.resolved
    if resolved is None:
        raise ConfigError(f"{record.path}: no submission without its config: {record.config_problem or 'none written'}")
    race = S16_77 if target is None else None
    target = _race_target(record) if target is None else target
    step = _reached(record, target)
    launch = _launch(record, resolved)
    account = Account.of(record, until=step)
    if UNEXPLAINED in account.totals:
        raise ConfigError(f"{record.path}: the clocks of its starts disagree, or one has no record; see goodput")
    wall = account.wall_ms / 1000
    idle_ms = sum(account.idle_gpu_ms)
    return Submission(
        format=SUBMISSION_FORMAT,
        race=race,
        run=resolved.experiment.name,
        target=target,
        step=step,
        samples=resolved.experiment.samples_until(step),
        exaflops=exaflops_of(resolved, step),
        seconds=wall,
        seconds_without_evaluation=wall - account.totals[EVALUATE].ms / 1000,
        gpu_hours=(sum(cost.gpu_ms for cost in account.totals.values()) + idle_ms) / 3.6e6,
        seed=resolved.experiment.seed,
        config_digest=resolved.digest,
        settings=redacted_in(resolved.to_dict()),
        version=writer_of(record.path / "config.resolved.yaml"),
        source=launch["source"],
        packages=launch.get("packages", {}),
        devices=sorted({str(one["device"]) for one in record.launches if one["step"] < step}),
        starts=_starts(account),
        curve=_curve(record, target.metric, step),
        data_order=_data_order(record, step),
    )


def exaflops_of(resolved: Resolved, step: int) -> float:
    """FLOPs of training up to a step, in 10^18; repeated steps count once."""
    return flops_until(resolved.experiment, step) / 1e18


def _race_target(record: RunRecord) -> Target:
    """The race's target for the raw weights, or for their average if only that reaches it."""
    targets = [RACES[S16_77].target(f"{name}/top1") for name in ("val", "val_ema")]
    return next((target for target in targets if _points(record, target)), targets[0])


def _points(record: RunRecord, target: Target) -> list[int]:
    return [
        line["step"]
        for line in record.evaluations
        if records.number(line.get(target.metric)) and line[target.metric] >= target.value
    ]


def _reached(record: RunRecord, target: Target) -> int:
    found = _points(record, target)
    if found:
        return found[0]
    values = [line[target.metric] for line in record.evaluations if records.number(line.get(target.metric))]
    if values:
        raise ConfigError(
            f"{record.path}: {target.metric} has reached {max(values):.5f} at most; the target is {target.value:.5f} "
            "(--target METRIC=VALUE sets your own)"
        )
    known = sorted({name for line in record.evaluations for name in line if "/" in name})
    raise ConfigError(f"{record.path}: no evaluation has {target.metric}; there are {', '.join(known) or 'none'}")


def _launch(record: RunRecord, resolved: Resolved) -> dict[str, Any]:
    """The record of the first start, once all starts ran the same settings and code."""
    launches = record.launches
    if not launches or any("source" not in one or "device" not in one for one in launches):
        raise ConfigError(f"{record.path}: an earlier version trained it and did not record its code; train it again")
    for key, own in (("digest", resolved.digest), ("source", launches[0]["source"])):
        if any(one.get(key) != own for one in launches):
            what = "settings that decide the result" if key == "digest" else "code"
            raise ConfigError(f"{record.path}: its {what} changed between two starts, so it is not one run")
    return launches[0]


def _starts(account: Account) -> list[Start]:
    return [
        Start(
            ranks=attempt.ranks,
            gpus=attempt.gpus,
            parts={name: Spent(ms=cost.ms, gpu_ms=cost.gpu_ms) for name, cost in parts.items()},
        )
        for attempt, parts in zip(account.attempts, account.parts, strict=True)
    ]


def _curve(record: RunRecord, metric: str, last: int) -> list[Point]:
    return [
        Point(step=line["step"], seconds=Account.of(record, until=line["step"]).wall_ms / 1000, value=line[metric])
        for line in record.evaluations
        if line["step"] <= last and records.number(line.get(metric))
    ]


def _data_order(record: RunRecord, last: int) -> DataOrder:
    drawn = [(line["step"], line["batch_digest"]) for line in record.train if line["step"] <= last]
    return DataOrder(lines=len(drawn), digest=digest(json.dumps(drawn).encode()))


def read(path: Path) -> Submission:
    """A submission from its file.

    Raises:
        ConfigError: it is not one, or was changed after it was written.
    """
    found = records.read(path, without_hash=lambda value: False)
    if found.value is None:
        raise ConfigError(f"{path}: {found.problem or 'does not exist'}")
    return parsed(found.value, str(path))


def parsed(value: Mapping[str, Any], where: str) -> Submission:
    """A submission from plain values. Raises ConfigError with the values that do not fit."""
    try:
        return Submission.model_validate(value)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise ConfigError(f"{where} is not a submission: {'; '.join(wrong[:8])}") from error


def write(path: Path, submission: Submission) -> None:
    """Writes the file with a hash of its values."""
    records.write(path, submission.model_dump(mode="json"))
